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

Member = Literal["volumes", "linear", "network"]
"""What a model consists of: volumes of structures, a linear model on voxels, a network."""
MEMBERS: Final[tuple[Member, ...]] = get_args(Member)
"""The simplest first, which is the order in which one of several equally good ones is preferred."""

PredictorChoice = Literal["auto", "network", "linear", "volumes", "stack"]
"""Whose probabilities are published: one member's, the product of all, or what inner folds find best."""
PREDICTORS: Final[tuple[PredictorChoice, ...]] = get_args(PredictorChoice)

FoldsBy = Literal["participant", "site"]
"""What has all its scans in one fold."""
FOLDS_BY: Final[tuple[FoldsBy, ...]] = get_args(FoldsBy)

Harmonise = Literal["none", "site"]
"""Whose location and scale are taken out of what members are given."""
HARMONISE: Final[tuple[Harmonise, ...]] = get_args(Harmonise)

IMBALANCE: Final = ("none", "weights", "oversample", "undersample", "smote")
"""What may be done about classes of different size."""


def class_fault(name: str) -> str | None:
    """Return why a class cannot have a name, as the rest of a sentence, or None where it can.

    >>> class_fault("MCI"), class_fault("AD;MCI")
    (None, 'has a ; in it, which stands between the classes of a prediction set')
    """
    if not name or name != name.strip():
        return "is empty, or has a blank at an end"
    if ";" in name:
        return "has a ; in it, which stands between the classes of a prediction set"
    if name[0] in "$@%":
        return f"begins with {name[0]}, so that MONAI would run it as a program where it reads the model's bundle"
    if not name.isprintable():
        return "holds a line break or another character that cannot be seen"
    return None
