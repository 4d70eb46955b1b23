"""Multi-level features of a frozen network, pooled so that they still say where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d

from brainstage.models.med3d import ARCHITECTURES, stage_maps
from brainstage.models.pooling import POOLING, feature_id
from brainstage.models.weights import WeightsSource
from brainstage.pipeline.errors import DeviceError, InferenceError
from brainstage.pipeline.records import NetworkInput

CHANNELS: Final[Mapping[str, int]] = MappingProxyType({"layer2": 128, "layer3": 256, "layer4": 512})
"""Of networks with basic blocks; bottlenecks have four times as many."""


def feature_channels(architecture: str) -> NDArray[np.int64]:
    """Return which channel, of those of all stages together, each feature belongs to: (F,) int64."""
    wider = 4 if ARCHITECTURES[architecture].block == "bottleneck" else 1
    repeats = [
        np.full(CHANNELS[stage] * wider, math.prod(grid), dtype=np.int64) for stage, grid in POOLING.items()
    ]
    counts = np.concatenate(repeats)
    return np.repeat(np.arange(len(counts)), counts)


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises
    ------
    DeviceError
        When ``cuda`` is asked for and absent.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise DeviceError("--device cuda: no CUDA device is available; choose --device cpu or auto")
    raise DeviceError(f"--device {name!r} is unknown; known are auto, cpu and cuda")


def pooled_features(network: nn.Module, image: Tensor) -> Tensor:
    """Return the features of a batch.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`~brainstage.models.med3d.build_med3d`.
    image : Tensor, (B, 1, D, H, W) float32

    Returns
    -------
    Tensor, (B, F) float32
        The stages of :data:`~brainstage.models.pooling.POOLING`, each averaged over its coarse grid, one after the
        other.
    """
    maps = stage_maps(network, image)
    pooled = [adaptive_avg_pool3d(maps[stage], grid).flatten(1) for stage, grid in POOLING.items()]
    return torch.cat(pooled, dim=1)


class FeatureExtractor:
    """A frozen network that turns a network input into a feature vector.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`~brainstage.models.weights.load_weights`; it is moved to `device` and never trained.
    source : WeightsSource
    device : torch.device
    """

    def __init__(self, network: nn.Module, source: WeightsSource, device: torch.device | None = None) -> None:
        self.source = source
        self.device = device or torch.device("cpu")
        self.network = network.eval().requires_grad_(False).to(self.device)
        for parameter in self.network.parameters():
            if parameter.ndim == 5:  # 0.4 s instead of 0.5 s for resnet10 on two CPU cores
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def feature_id(self) -> str:
        """From :func:`~brainstage.models.pooling.feature_id`."""
        return feature_id(self.source.sha256, self.source.architecture, self.source.strides)

    def features(self, network_input: NetworkInput) -> NDArray[np.float32]:
        """Return the features (F,) float32 of one scan, as :meth:`features_of` does."""
        only: NDArray[np.float32] = self.features_of([network_input])[0]
        return only

    def features_of(self, network_inputs: Sequence[NetworkInput]) -> NDArray[np.float32]:
        """Return the features of several scans, in one pass through the network.

        Returns
        -------
        ndarray, (N, F) float32

        Raises
        ------
        InferenceError
            When a feature is not finite.
        """
        return self.features_of_images(np.stack([one.image for one in network_inputs]))

    def features_of_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features (N, F) of images (N, 1, D, H, W), as :meth:`features_of` does."""
        image = torch.from_numpy(images).to(self.device)
        # TF32 and the choice among cuDNN's algorithms would change features from one GPU to the next.
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with torch.inference_mode(), exact:
            image = image.contiguous(memory_format=torch.channels_last_3d)
            features = pooled_features(self.network, image).cpu().numpy()
        if not np.isfinite(features).all():
            raise InferenceError(
                "the network gave features that are not finite: its weights do not suit this input"
            )
        return np.asarray(features, dtype=np.float32)
