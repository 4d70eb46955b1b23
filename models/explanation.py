"""Where a network found what it says: maps of a class's logit, by Grad-CAM and by occlusion (MONAI).

A voxel ``i`` of a stage's map is centred on voxel ``step * i`` of the network's image, for every convolution on the
way is padded by half its width. Stretching the map over the image, as is common, moves it by nearly half a map voxel,
7 mm here. So maps are given as they are, with the place of their voxels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, get_args

import numpy as np
import torch
from monai.visualize import GradCAM, OcclusionSensitivity
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d

from brainstage.models.choices import Strides
from brainstage.models.features import pooled_features
from brainstage.models.heads import head_module
from brainstage.models.med3d import stage_maps
from brainstage.models.model_store import StoredModel
from brainstage.models.pooling import POOLING
from brainstage.pipeline.errors import InferenceError
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import Affine, Volume

Method = Literal["gradcam", "occlusion"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
"""How a prediction may be explained."""
EXPLANATION_VERSION: Final = "1"
UNITS: Final[Mapping[str, str]] = MappingProxyType({"gradcam": "logit/ml", "occlusion": "logit"})
"""Of Grad-CAM, so that maps of different voxel sizes can be added and an integral over a region is a logit."""

STEPS: Final[Mapping[Strides, Mapping[str, int]]] = MappingProxyType(
    {
        "med3d": MappingProxyType({"layer2": 8, "layer3": 8, "layer4": 8}),
        "monai": MappingProxyType({"layer2": 4, "layer3": 8, "layer4": 16}),
    }
)
"""Voxels of the network's image from one voxel of a stage's map to the next."""

_Group = tuple[nn.Module, list[nn.Module]]
"""A network, and the heads of the folds that share it."""

COVER_VOXELS: Final = 16
"""Edge of the box that occlusion covers: 32 mm on the default grid, about a lobe's width."""
COVER_OVERLAP: Final = 0.5
COVERED_AT_A_TIME: Final = 8


def explanation_of(
    model: StoredModel,
    network_input: NetworkInput,
    label: str,
    folds: Sequence[int],
    method: Method,
    site: str | None = None,
) -> tuple[Volume, ...]:
    """Return maps whose sum, once they are on one grid, says where the logit of a class comes from.

    Parameters
    ----------
    model : StoredModel
    network_input : NetworkInput
    label : str
        A class of the model.
    folds : sequence of int
        From ``StoredModel.folds_for``; their logits are averaged, and so their maps.
    method : str
        One of :data:`METHODS`.
    site : str or None
        Where the scan was taken, for models that take it out of features.

    Returns
    -------
    tuple of Volume
        In template space, units of :data:`UNITS`, one for each size of voxel. Positive speaks for the class.

    Raises
    ------
    InferenceError
        When a value is not finite.
    """
    target = model.classes.index(label)
    groups = _by_network(model, folds, site)
    image = torch.from_numpy(np.array(network_input.image)).unsqueeze(0).to(model.extractor.device)
    if method == "occlusion":
        return (_occlusion(groups, image, network_input, target),)
    return _grad_cam(groups, image, network_input, target, model.description.backbone.strides)


def _map(data: NDArray[np.float32], voxel_to_ras: Affine) -> Volume:
    if not np.isfinite(data).all():
        raise InferenceError("the map of the network is not finite: its weights do not suit this input")
    return Volume(data=data, voxel_to_ras=voxel_to_ras)


def _by_network(model: StoredModel, folds: Sequence[int], site: str | None) -> list[_Group]:
    """Return each network once, with what the folds that share it make of its features."""
    groups: dict[int, _Group] = {}
    for fold in folds:
        network = model.networks[fold]
        head: nn.Module = head_module(model.heads[fold])
        if (taken_out := model.stretch_and_shift(site, fold)) is not None:
            head = nn.Sequential(_WithoutSite(*taken_out), head)
        groups.setdefault(id(network), (network, []))[1].append(head)
    return list(groups.values())


class _WithoutSite(nn.Module):
    """Features without the location and scale of their site."""

    stretch: Tensor
    shift: Tensor

    def __init__(self, stretch: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("stretch", torch.from_numpy(stretch))
        self.register_buffer("shift", torch.from_numpy(shift))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.stretch + self.shift


class _Readout(nn.Module):
    """Network and heads to mean logits, with a place to listen between each stage's map and its pooling.

    A stage feeds the next one too. What is heard here is only what its map itself gives to the features, so maps of
    several stages can be added and nothing is counted twice. No gradient runs through the network.
    """

    def __init__(self, network: nn.Module, heads: Sequence[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(heads).to(device)
        self.taps = nn.ModuleDict({stage: nn.Identity() for stage in POOLING})
        self.eval()  # MONAI gives a module back in the mode that it came in, and the network is shared

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            maps = stage_maps(self.network, image)
        pooled = [
            adaptive_avg_pool3d(self.taps[stage](maps[stage].requires_grad_()), grid).flatten(1)
            for stage, grid in POOLING.items()
        ]
        features = torch.cat(pooled, dim=1)
        return torch.stack([head(features) for head in self.heads]).mean(dim=0)


def _grad_cam(
    groups: Sequence[_Group],
    image: Tensor,
    network_input: NetworkInput,
    target: int,
    strides: Strides,
) -> tuple[Volume, ...]:
    """Return activation times gradient of every stage that feeds the head, one volume for each step.

    Grad-CAM averages the gradient of a channel over its map (Selvaraju 2017, doi:10.1109/ICCV.2017.74). That is the
    same where a stage is pooled as a whole. Where it is pooled cell by cell, the head tells places apart and the
    average would not, so every voxel keeps its own gradient (Draelos and Carin 2020, arXiv 2011.08891). The sum over
    all voxels is then the logit, less what the scan has no part in. Negative values stay until all maps are added.
    """
    count = sum(len(heads) for _, heads in groups)
    by_step: dict[int, NDArray[np.float32]] = {}
    for network, heads in groups:
        readout = _Readout(network, heads, image.device)
        cam = GradCAM(readout, target_layers=[f"taps.{stage}" for stage in POOLING])
        with torch.enable_grad():
            _, activations, gradients = cam.nn_module(image, class_idx=target)
        for stage, activation, gradient in zip(POOLING, activations, gradients, strict=True):
            contribution = (activation * gradient).sum(dim=1)[0].detach().cpu().numpy()
            step = STEPS[strides][stage]
            weighted = np.float32(len(heads) / count) * contribution
            by_step[step] = by_step[step] + weighted if step in by_step else weighted
    return tuple(
        _per_ml(data, network_input.voxel_to_ras @ np.diag([step, step, step, 1.0]))
        for step, data in by_step.items()
    )


def _per_ml(data: NDArray[np.float32], voxel_to_ras: Affine) -> Volume:
    voxel_ml = abs(np.linalg.det(voxel_to_ras[:3, :3])) / 1000.0
    return _map((data / voxel_ml).astype(np.float32), voxel_to_ras)


class _Covered(nn.Module):
    """Images with a part covered to mean logits. Only brain is covered; where there is none, nothing is computed."""

    def __init__(self, groups: Sequence[_Group], image: Tensor, brain: Tensor) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network for network, _ in groups)
        self.heads = nn.ModuleList(nn.ModuleList(heads) for _, heads in groups).to(image.device)
        self.image, self.brain = image, brain
        self.eval()  # as above
        self.uncovered = self._logits(image)

    def _logits(self, images: Tensor) -> Tensor:
        logits = []
        with torch.inference_mode():
            for network, heads in zip(self.networks, self.heads, strict=True):
                features = pooled_features(network, images.contiguous(memory_format=torch.channels_last_3d))
                logits += [head(features) for head in heads]  # type: ignore[attr-defined]
        return torch.stack(logits).mean(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        images = torch.where(self.brain, images, self.image)
        altered = (images != self.image).flatten(1).any(dim=1)
        logits = self.uncovered.repeat(len(images), 1)
        if altered.any():
            logits[altered] = self._logits(images[altered])
        return logits


def _occlusion(
    groups: Sequence[_Group],
    image: Tensor,
    network_input: NetworkInput,
    target: int,
) -> Volume:
    """Return by how much the logit falls when the brain around each voxel has its own mean intensity.

    Occlusion sensitivity (Zeiler and Fergus 2014, doi:10.1007/978-3-319-10590-1_53), over the brain's box.
    """
    mask = network_input.brain_mask
    where = np.argwhere(mask)
    if not len(where):
        raise InferenceError("the brain mask is empty on the network's grid: there is nothing to cover")
    first, end = where.min(axis=0), where.max(axis=0) + 1
    brain = torch.from_numpy(np.array(mask)).to(image.device)
    covered = _Covered(groups, image, brain)
    sensitivity = OcclusionSensitivity(
        nn_module=covered,
        mask_size=COVER_VOXELS,
        n_batch=COVERED_AT_A_TIME,
        overlap=COVER_OVERLAP,
        mode=float(image[0, 0][brain].mean()),
        activate=False,
        verbose=False,
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # of MONAI's own indexing
        logits, _ = sensitivity(image, b_box=np.stack([first, end], axis=1).ravel().tolist())
    fallen = (covered.uncovered[0, target] - logits[0, target]).cpu().numpy()
    matrix = np.array(network_input.voxel_to_ras)
    matrix[:3, 3] += matrix[:3, :3] @ first
    return _map(np.asarray(fallen, dtype=np.float32), matrix)
