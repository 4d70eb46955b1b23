"""What may be chosen about a model, by name; nothing heavy is loaded to know it."""

from __future__ import annotations

from typing import Final, Literal, get_args

Strides = Literal["med3d", "monai"]
"""Whose strides and dilations: those of the pretraining, or MONAI's."""
STRIDES: Final[tuple[Strides, ...]] = get_args(Strides)

HeadKind = Literal["linear", "multiscale-attention"]
HEADS: Final[tuple[HeadKind, ...]] = get_args(HeadKind)

Regime = Literal["frozen", "head+last", "full"]
"""How much of the network is trained."""
REGIMES: Final[tuple[Regime, ...]] = get_args(Regime)

MED3D_ASSETS: Final = ("med3d-resnet10", "med3d-resnet18", "med3d-resnet34", "med3d-resnet50")
"""Names of the published weights, as given to ``brainstage fetch`` and ``--weights``."""

IMBALANCE: Final = ("none", "weights", "oversample", "undersample", "smote")
"""What may be done about classes of different size."""
