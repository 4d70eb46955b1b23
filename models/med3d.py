"""The Med3D 3D ResNet, built from MONAI's blocks with the strides and dilations it was pretrained with.

MONAI's own ``resnetNN`` takes the same weights but computes other features: its first convolution has stride 1
and its layers 3 and 4 have stride 2 without dilation. Here the first convolution has stride 2, layers 3 and 4
keep stride 1 with dilation 2 and 4, as in MedicalNet (Chen, Ma and Zheng 2019, arXiv 1904.00625), so the
features are those the weights were trained for, at a seventh of the time. MONAI's own are kept on demand, to
compare with what others built on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol, cast

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from brainstage.models.choices import Strides
from brainstage.pipeline.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What tells one Med3D ResNet from another.

    Attributes
    ----------
    block : str
        ``basic`` (two 3x3x3 convolutions) or ``bottleneck`` (1, 3, 1).
    blocks : tuple of int
        Residual blocks in each of the four layers.
    shortcut : str
        ``A`` pads the shortcut with zero channels, ``B`` convolves it.
    bias_downsample : bool
        MONAI's switch that has to go with the shortcut for the keys to match.
    """

    block: str
    blocks: tuple[int, int, int, int]
    shortcut: str
    bias_downsample: bool


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        "resnet10": Architecture(block="basic", blocks=(1, 1, 1, 1), shortcut="B", bias_downsample=False),
        "resnet18": Architecture(block="basic", blocks=(2, 2, 2, 2), shortcut="A", bias_downsample=True),
        "resnet34": Architecture(block="basic", blocks=(3, 4, 6, 3), shortcut="A", bias_downsample=True),
        "resnet50": Architecture(
            block="bottleneck", blocks=(3, 4, 6, 3), shortcut="B", bias_downsample=False
        ),
    }
)
"""The networks for which weights trained on 23 data sets were published."""

DILATIONS: Final[Mapping[str, int]] = MappingProxyType({"layer3": 2, "layer4": 4})
"""Layers that keep their input's resolution and widen their view by dilation instead (MedicalNet, ``resnet.py``)."""

STAGES: Final = ("conv1", "layer1", "layer2", "layer3", "layer4")
"""Names of the feature maps of :func:`stage_maps`, shallow to deep."""


class _ResNetParts(Protocol):
    """The attributes of MONAI's ``ResNet`` that are called here; MONAI ships no types."""

    conv1: nn.Conv3d
    bn1: nn.Module
    act: nn.Module
    maxpool: nn.Module
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential


def build_med3d(architecture: str, strides: Strides = "med3d") -> nn.Module:
    """Return an untrained Med3D ResNet without classification layer, in evaluation mode.

    Parameters
    ----------
    architecture : str
        A key of :data:`ARCHITECTURES`.
    strides : str
        ``med3d``, or ``monai`` for the network as MONAI's ``resnetNN`` builds it. Both take the same weights.

    Returns
    -------
    torch.nn.Module
        MONAI's ``ResNet`` for images of shape (B, 1, D, H, W).
    """
    design = ARCHITECTURES[architecture]
    with torch.random.fork_rng(devices=[]):
        network = ResNet(
            block=design.block,
            layers=list(design.blocks),
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_stride=2 if strides == "med3d" else 1,
            shortcut_type=design.shortcut,
            bias_downsample=design.bias_downsample,
            feed_forward=False,
        )
    if strides == "med3d":
        for layer, dilation in DILATIONS.items():
            for block in getattr(network, layer):
                _dilate(block, dilation)
    return cast("nn.Module", network.eval())


def _dilate(block: nn.Module, dilation: int) -> None:
    """Trade a residual block's stride for dilation; the padding keeps the size of the map."""
    for part in block.modules():
        if isinstance(part, nn.Conv3d):
            part.stride = (1, 1, 1)
            if part.kernel_size == (3, 3, 3):
                part.dilation = part.padding = (dilation, dilation, dilation)
    shortcut = block.downsample
    if isinstance(shortcut, partial):  # shortcut A is a function that carries its stride as a keyword
        block.downsample = partial(shortcut.func, **{**shortcut.keywords, "stride": 1})  # type: ignore[assignment]


def initialise_randomly(network: nn.Module, seed: int) -> None:
    """Fill convolutions with He-normal values drawn from `seed`; normalisation layers become the identity.

    Not pretrained: a fixed random filter bank (He et al. 2015, doi:10.1109/ICCV.2015.123).
    """
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.BatchNorm3d):
            part.reset_running_stats()
            part.reset_parameters()


def stage_maps(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Run the network and keep the map after each stage.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`build_med3d`.
    image : Tensor, (B, 1, D, H, W) float32

    Returns
    -------
    dict
        Each of :data:`STAGES` to a map (B, C, d, h, w). With Med3D's strides the edge length is a half of the
        image's after ``conv1``, a quarter after ``layer1`` and an eighth from ``layer2`` on; with MONAI's it is
        whole, a half, a quarter, an eighth and a sixteenth.
    """
    net = cast("_ResNetParts", network)
    maps = {"conv1": net.act(net.bn1(net.conv1(image)))}
    maps["layer1"] = net.layer1(net.maxpool(maps["conv1"]))
    maps["layer2"] = net.layer2(maps["layer1"])
    maps["layer3"] = net.layer3(maps["layer2"])
    maps["layer4"] = net.layer4(maps["layer3"])
    return maps


def infer_architecture(state: Mapping[str, Tensor]) -> str:
    """Return which of :data:`ARCHITECTURES` a state dict with bare keys belongs to.

    Raises
    ------
    WeightsError
        When the keys are those of none of them.
    """
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)
    )
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for name, design in ARCHITECTURES.items():
        if (design.block, design.blocks) == (block, blocks):
            return name
    raise WeightsError(
        f"these weights are of no Med3D network: {block} blocks {blocks} in layers 1 to 4; "
        f"known are {', '.join(ARCHITECTURES)}"
    )
