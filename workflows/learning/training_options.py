"""How a model is to be trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from brainstage.models.augmentation import DEFAULT_RECIPES, Augmentation
from brainstage.models.choices import (
    IMBALANCE,
    FoldsBy,
    Harmonise,
    HeadKind,
    PredictorChoice,
    Regime,
    Strides,
)
from brainstage.models.fine_tuning import TuneOptions
from brainstage.models.model_description import TierBounds
from brainstage.models.training import HeadOptions
from brainstage.pipeline.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the options of ``brainstage train``.

    Attributes
    ----------
    classes : tuple of str or None
        In the order of the probabilities; None takes every label present.
    label_column : str
        Column of the run's ``data_manifest.csv``.
    target : str or None
        A column of numbers to predict instead of classes.
    qc_decisions : Path or None
        What a person decided about scans.
    weights : str
        ``med3d-resnet10`` (18, 34, 50), a path, or ``random``.
    strides : str
        ``med3d``, as the weights were trained, or ``monai``, as MONAI builds the network.
    finetune : str
        ``frozen``: a head on features computed once; ``head+last``: the last stage as well; ``full``: all.
    head : str
        ``linear`` or ``multiscale-attention``.
    augment : tuple of str or None
        Recipes that alter training images; only where the network is trained. None for the usual ones.
    imbalance : str
        ``none``; or so that every class counts the same: ``weights``, ``oversample``, ``undersample``, ``smote``.
    covariates : tuple of str
        Columns of the manifest that the model looks at besides the image.
    predictor : str
        ``auto``, ``network``, ``linear``, ``volumes`` or ``stack``: whose probabilities are published.
    folds_by : str
        ``participant``, or ``site``, which leaves one site out at a time; `folds` is then of no account.
    harmonise : str
        ``none``, or ``site``: location and scale of each site are taken out, as the reference class shows them.
    folds, seed : int
    epochs, patience : int or None
        None for 300 and 30 where the network is frozen, 30 and 8 otherwise.
    device : str
        ``auto``, ``cpu`` or ``cuda``, for the network.
    tensorboard : Path or None
        Folder for the curves of tuning.
    tiers : TierBounds
        Bounds of the tiers of confidence.
    reference_class : str or None
        The class that measures of the brain are held against; None for CN where it is one of the classes.

    Raises
    ------
    UsageError
        For a value that is not allowed.
    """

    classes: tuple[str, ...] | None = None
    label_column: str = "diagnosis"
    target: str | None = None
    qc_decisions: Path | None = None
    weights: str = "med3d-resnet10"
    strides: Strides = "med3d"
    finetune: Regime = "frozen"
    head: HeadKind = "linear"
    augment: tuple[str, ...] | None = None
    imbalance: str = "weights"
    covariates: tuple[str, ...] = ()
    predictor: PredictorChoice = "auto"
    folds_by: FoldsBy = "participant"
    harmonise: Harmonise = "none"
    folds: int = 5
    epochs: int | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    tensorboard: Path | None = None
    tiers: TierBounds = field(default_factory=TierBounds)
    reference_class: str | None = None

    def __post_init__(self) -> None:
        if self.imbalance not in IMBALANCE:
            raise UsageError(f"--imbalance {self.imbalance!r} is unknown: known are {', '.join(IMBALANCE)}")
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: at least 1 is needed")
        if self.finetune == "frozen" and (self.augment or self.tensorboard):
            unused = "--augment" if self.augment else "--tensorboard"
            raise UsageError(
                f"{unused} concerns a network that is trained; with --finetune frozen features are computed once: "
                "choose head+last or full, or leave it out"
            )
        if self.finetune != "frozen" and self.imbalance == "smote":
            raise UsageError(
                "--imbalance smote draws points between features, and --finetune "
                f"{self.finetune} learns from images: choose oversample, undersample or weights, or --finetune frozen"
            )
        if self.finetune != "frozen" and self.harmonise != "none":
            raise UsageError(
                f"--harmonise {self.harmonise} changes values that are computed once, and --finetune {self.finetune} "
                "learns from images: choose --finetune frozen, or leave it out"
            )
        if self.target is not None:
            self._check_number(self.target)
        Augmentation(self.augment or ())
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: 0 to {2**31 - 1} are allowed")

    def _check_number(self, target: str) -> None:
        """Raise where an option was given that is about classes, or about a network that is trained."""
        about_classes = {
            "--classes": self.classes is not None,
            f"--label-column {self.label_column}": self.label_column != "diagnosis",
            "--reference-class": self.reference_class is not None,
            f"--imbalance {self.imbalance}": self.imbalance != "weights",
        }
        about_descent = {
            f"--finetune {self.finetune}": self.finetune != "frozen",
            f"--head {self.head}": self.head != "linear",
            "--epochs": self.epochs is not None,
            "--patience": self.patience is not None,
        }
        for name, given in about_classes.items():
            if given:
                raise UsageError(
                    f"{name} is about classes, and --target {target} predicts a number: leave one of the two out"
                )
        for name, given in about_descent.items():
            if given:
                raise UsageError(
                    f"{name} is about a network or a head that is trained step by step; with --target {target} a "
                    "ridge regression on the features of the frozen network is solved in one step: leave it out"
                )
        if target in self.covariates:
            raise UsageError(
                f"--covariates {target}: this is the number that is to be predicted; leave it out there"
            )

    @property
    def head_options(self) -> HeadOptions:
        """What concerns the head on frozen features."""
        given = self._given_length if self.finetune == "frozen" else {}
        return HeadOptions(imbalance=self.imbalance, seed=self.seed, **given)

    @property
    def tune_options(self) -> TuneOptions:
        """What concerns the network."""
        return TuneOptions(
            regime=self.finetune,
            imbalance=self.imbalance,
            augment=self.recipes,
            seed=self.seed,
            **self._given_length,
        )

    @property
    def _given_length(self) -> dict[str, int]:
        chosen = {"epochs": self.epochs, "patience": self.patience}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def recipes(self) -> tuple[str, ...]:
        """Of the augmentation."""
        if self.augment is not None:
            return self.augment
        return () if self.finetune == "frozen" else DEFAULT_RECIPES
