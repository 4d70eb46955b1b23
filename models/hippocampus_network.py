"""The network that finds a hippocampus in a small box around it; its weights lie in the package.

They were made by ``training/hippocampus.py`` from hand-drawn crops and carry the licence of these (``NOTICE``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.files import sha256_of_bytes

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE: Final = "hippocampus.safetensors"
CHANNELS: Final = (16, 32, 64, 96)
"""From the finest level to the coarsest; 1,135,809 parameters."""

Segmenter = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised crops (N, D, H, W) to the probability that a voxel is hippocampus, (N, D, H, W)."""


def build_network() -> nn.Module:
    """Return the network without weights: (N, 1, D, H, W) to logits of the same shape; sizes are multiples of 8."""
    from monai.networks.nets.dynunet import DynUNet  # heavy: torch

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        kernel_size=[3] * len(CHANNELS),
        strides=[1, *[2] * (len(CHANNELS) - 1)],
        upsample_kernel_size=[2] * (len(CHANNELS) - 1),
        filters=list(CHANNELS),
        norm_name=("INSTANCE", {"affine": True}),
        res_block=False,
    )
    return network


@cache
def hippocampus_weights_sha256() -> str:
    """Return the sha256 of the weights in the package."""
    return sha256_of_bytes((files("brainstage.models") / WEIGHTS_FILE).read_bytes())


@cache
def hippocampus_segmenter() -> Segmenter:
    """Return what finds hippocampi in normalised crops; the weights are read once per process."""
    from safetensors.torch import load_file  # heavy: torch

    network = build_network()
    with as_file(files("brainstage.models") / WEIGHTS_FILE) as path:
        network.load_state_dict({name: values.float() for name, values in load_file(path).items()})
    return segmenter_of(network)


def segmenter_of(network: nn.Module) -> Segmenter:
    """Return what finds hippocampi with a network.

    Parameters
    ----------
    network : torch.nn.Module
        As of :func:`build_network`.
    """
    import torch

    network.eval()

    def segment(crops: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.ascontiguousarray(crops, dtype=np.float32))[:, None]
        with torch.inference_mode():
            found: NDArray[np.float32] = torch.sigmoid(network(batch))[:, 0].numpy()
        return found

    return segment
