"""``model.json``: what a model is, but for its weights."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from brainstage.models.baseline import BASELINE_VERSION
from brainstage.models.choices import HeadKind, Member, PredictorChoice, Regime, Strides, class_fault
from brainstage.models.conformal import Scores, attainable_level
from brainstage.models.covariates import CovariateExpert, CovariateNumber, Row
from brainstage.models.norms import ReferenceClass
from brainstage.models.number_intervals import Residuals
from brainstage.models.number_predictor import FoldNumberPredictor
from brainstage.models.pooling import feature_id
from brainstage.models.predictor import FoldPredictor
from brainstage.models.published import Origin
from brainstage.models.volume_model import VolumeModel
from brainstage.pipeline.config import NetworkGridConfig, differences
from brainstage.pipeline.errors import ModelError
from brainstage.pipeline.files import read_json_or_empty, read_regular, sha256_of_bytes

DESCRIPTION_FILE: Final = "model.json"
AGE_AND_SEX: Final = ("age", "sex")
"""What a class of reference goes by, and what the control without an image knows in any case."""
MOST_WEIGHTS_BYTES: Final = 512 * 1024**2
"""Of one file; those of the largest network have 185 MB."""
_NO_PART_OF_ID: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "model_id": True,
        "versions": True,
        "kernels": True,
        "backbone": {"origin"},
    }  # the words say the origin too
)
_MAX_DIFFERENCES_SHOWN: Final = 5
_ROUNDING: Final = 1e-9
"""By which a probability may lie outside 0 to 1."""
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneDescription(_Part):
    """The network before training: what it is, where its weights come from, the hash of all that changes a feature."""

    kind: str
    architecture: str
    strides: Strides = "med3d"
    sha256: str
    words: str
    origin: Origin = "unknown"
    feature_id: str


class ConformalDescription(_Part):
    """What prediction sets are made of.

    Attributes
    ----------
    levels : dict
        Class to the level that its scans allow, at most 0.9.
    scores : dict
        Class to the score, the fold that did not learn from it, and the person (a number) of each training scan.
    """

    levels: dict[str, Annotated[float, Field(gt=0, lt=1)]]
    scores: dict[
        str, tuple[tuple[Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)], Count, Count], ...]
    ]

    @property
    def level(self) -> float:
        """What sets hold for every class: the smallest of the levels."""
        return min(self.levels.values())


class PredictorDescription(_Part):
    """Whose probabilities are published.

    Attributes
    ----------
    choice : str
        As asked for.
    folds : tuple of FoldPredictor
    above_chance : bool
        The interval of the out-of-fold balanced accuracy lies above chance.
    compared_members : tuple of str
        Members whose own answers are better than chance out of fold.
    disagreement_flags : bool
        Out of fold, scans about which these members disagree were predicted wrongly more often.
    """

    choice: PredictorChoice
    folds: tuple[FoldPredictor, ...]
    above_chance: bool
    compared_members: tuple[Member, ...] = ()
    disagreement_flags: bool = False


class TierBounds(_Part):
    """``high`` above the first bound, ``review`` down to the second, ``low`` below."""

    high: float = Field(default=0.85, gt=0, le=1)
    review: float = Field(default=0.60, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> TierBounds:
        if self.review > self.high:
            raise ValueError(f"review, {self.review:g}, lies above high, {self.high:g}")
        return self

    def tier(self, confidence: float) -> str:
        """Return the tier of a largest probability.

        >>> TierBounds().tier(0.85)
        'review'
        """
        return "high" if confidence > self.high else "review" if confidence >= self.review else "low"


class CommonDescription(_Part, ABC):
    """What models of classes and of numbers have in common: all but what is predicted.

    `members` are those that the model has. `training_scans` leads from the sha256 of a training scan's file to the
    fold that did not learn from it, and to the number of its person among what was measured out of fold.
    `harmonised_sites` names, for each fold and member, the sites whose location and scale are taken out; it is empty
    without harmonisation. `kernels` are those of the training, from :func:`~brainstage.models.kernels.kernels`;
    another processor adds in another order.
    """

    schema_version: Literal[2] = 2
    model_id: str = ""
    label_column: str
    backbone: BackboneDescription
    head: HeadKind = "linear"
    finetune: Regime = "frozen"
    augment: tuple[str, ...] = ()
    folds: int = Field(ge=2)
    network_grid: dict[str, Any]
    baseline_version: int = 1  # of those written before there was a second
    preprocessing_id: str
    preprocessing_content: dict[str, Any]
    members: tuple[Member, ...] = Field(min_length=1)
    novelty_threshold: float = Field(ge=0)
    seed: int
    pretraining_cohorts: tuple[str, ...] = ()
    training_scans: dict[str, tuple[Count, Count]] = Field(default_factory=dict)
    volume_models: tuple[VolumeModel, ...] = ()
    harmonised_sites: tuple[dict[Member, tuple[str, ...]], ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    kernels: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @field_validator("network_grid")
    @classmethod
    def _usable_grid(cls, grid: dict[str, Any]) -> dict[str, Any]:
        NetworkGridConfig.model_validate(grid)
        return grid

    @model_validator(mode="after")
    def _of_as_many_folds(self) -> CommonDescription:
        """Compare what is said of members and folds with how many there are."""
        folds = {fold for fold, _ in self.training_scans.values()}
        if folds and max(folds) >= self.folds:
            raise ValueError(f"training_scans name fold {max(folds)}, and there are {self.folds} from 0 on")
        if bool(self.volume_models) is not ("volumes" in self.members):
            raise ValueError(
                "volume_models must be there where volumes is one of the members, and only there"
            )
        if len(self.volume_models) not in (0, self.folds):
            raise ValueError(f"{len(self.volume_models)} volume_models, where there are {self.folds} folds")
        if len(self.harmonised_sites) not in (0, self.folds):
            raise ValueError(
                f"{len(self.harmonised_sites)} harmonised_sites, where there are {self.folds} folds"
            )
        return self

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers each member answers with."""

    @property
    @abstractmethod
    def covariate_columns(self) -> tuple[str, ...]:
        """The columns that the model looks at besides the image."""

    @property
    @abstractmethod
    def weighted_members(self) -> frozenset[Member]:
        """The members that what is published depends on, in any fold."""

    @abstractmethod
    def misses_covariates(self, row: Row) -> bool:
        """Tell whether a covariate that the model uses is unknown, or has a value that a training fold did not have."""

    @property
    def compares_with_reference(self) -> bool:
        """Whether reports compare volumes with a class of the training cohort."""
        return False

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns that anything said with this model depends on."""
        whose = AGE_AND_SEX if self.compares_with_reference or self.volume_models else ()
        where = ("site",) if self.harmonised_sites else ()
        return tuple(dict.fromkeys((*self.covariate_columns, *whose, *where)))

    @property
    def reads_volumes(self) -> bool:
        """Whether anything said with this model depends on the volumes of a scan."""
        return bool(self.volume_models) or self.compares_with_reference

    @property
    def own_id(self) -> str:
        """The `model_id` that the content gives: ``m`` and a short hash of everything that changes a prediction."""
        content = self.model_dump(mode="json", exclude=dict(_NO_PART_OF_ID))
        return f"m{sha256_of_bytes(json.dumps(content, sort_keys=True).encode())[:11]}"


class ModelDescription(CommonDescription):
    """``model.json`` of a model of classes: all of it but its weights.

    `covariate_experts` has one for each fold, or none where the model looks at images alone. `reference` says what is
    usual in one of the classes, and has no part in predictions.
    """

    classes: tuple[str, ...] = Field(min_length=2)
    predictor: PredictorDescription
    conformal: ConformalDescription
    tiers: TierBounds = TierBounds()
    covariate_experts: tuple[CovariateExpert, ...] = ()
    reference: ReferenceClass | None = None

    @field_validator("classes")
    @classmethod
    def _usable_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if fault := class_fault(name):
                raise ValueError(f"the class {name!r} {fault}")
            if names.count(name) > 1:
                raise ValueError(f"the class {name!r} stands there twice")
        return names

    @model_validator(mode="after")
    def _of_one_piece(self) -> ModelDescription:
        """Compare what is said of classes, members and folds with how many there are."""
        if set(self.conformal.levels) != set(self.classes) or set(self.conformal.scores) != set(self.classes):
            raise ValueError(
                f"conformal.levels and conformal.scores must name the classes {', '.join(self.classes)}, each once"
            )
        folds = {fold for scores in self.conformal.scores.values() for _, fold, _ in scores}
        if folds and max(folds) >= self.folds:
            raise ValueError(
                f"training_scans or conformal.scores name fold {max(folds)}, and there are {self.folds} from 0 on"
            )
        if len(self.predictor.folds) != self.folds:
            raise ValueError(
                f"predictor.folds has {len(self.predictor.folds)} entries for {self.folds} folds"
            )
        for fold in self.predictor.folds:
            if set(fold.temperatures) != set(self.members):
                raise ValueError(f"a temperature is needed for each of {', '.join(self.members)}")
        return self

    @model_validator(mode="after")
    def _of_the_classes(self) -> ModelDescription:
        """Compare what is said of the models that stand here with the classes and folds."""
        if len(self.covariate_experts) not in (0, self.folds):
            raise ValueError(
                f"{len(self.covariate_experts)} covariate_experts, where there are {self.folds} folds"
            )
        for name, models in (
            ("volume_models", self.volume_models),
            ("covariate_experts", self.covariate_experts),
        ):
            for model in models:
                if len(model.bias) != len(self.classes):
                    raise ValueError(
                        f"one of {name} tells {len(model.bias)} of {len(self.classes)} classes apart"
                    )
        if self.reference is not None and self.reference.label not in self.classes:
            raise ValueError(f"reference.label {self.reference.label!r} is none of the classes")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers each member answers with: a logit for each class."""
        return len(self.classes)

    @property
    def covariate_columns(self) -> tuple[str, ...]:
        """The columns that the model looks at besides the image."""
        return tuple(column.name for expert in self.covariate_experts[:1] for column in expert.columns)

    @property
    def weighted_members(self) -> frozenset[Member]:
        """The members that what is published depends on, in any fold."""
        return frozenset(name for fold in self.predictor.folds for name in fold.weights)

    def misses_covariates(self, row: Row) -> bool:
        """Tell whether a covariate that the model uses is unknown, or has a value that a training fold did not have."""
        return any(one.misses(row) for one in self.covariate_experts)

    @property
    def compares_with_reference(self) -> bool:
        """Whether reports compare volumes with a class of the training cohort."""
        return self.reference is not None

    @property
    def scores(self) -> tuple[Scores, ...]:
        """Scores of the training scans, in the order of the classes."""
        return tuple(
            Scores(
                score=np.array([score for score, _, _ in found], dtype=np.float64),
                fold=np.array([fold for _, fold, _ in found], dtype=np.int64),
                person=np.array([person for _, _, person in found], dtype=np.int64),
            )
            for found in (self.conformal.scores[name] for name in self.classes)
        )

    @property
    def levels(self) -> list[float]:
        """Levels of the prediction sets, in the order of the classes."""
        return [self.conformal.levels[name] for name in self.classes]


class NumberPredictorDescription(_Part):
    """Whose values are published.

    Attributes
    ----------
    choice : str
        As asked for.
    folds : tuple of FoldNumberPredictor
    above_chance : bool
        The interval of the out-of-fold R2 lies above 0.
    """

    choice: PredictorChoice
    folds: tuple[FoldNumberPredictor, ...]
    above_chance: bool


class IntervalsDescription(_Part):
    """What intervals are made of.

    Attributes
    ----------
    level : float
        What the training scans allow, at most 0.9.
    residuals : tuple
        Distance of prediction and truth, the fold that did not learn from it, and the person (a number), of each
        training scan.
    """

    level: Annotated[float, Field(gt=0, lt=1)]
    residuals: tuple[tuple[Annotated[float, Field(ge=0)], Count, Count], ...]


class NumberDescription(CommonDescription):
    """``model.json`` of a model of a number: all of it but its weights. `label_column` is the number's column.

    `covariate_models` has one for each fold, or none where the model looks at images alone.
    """

    kind: Literal["number"] = "number"
    predictor: NumberPredictorDescription
    intervals: IntervalsDescription
    covariate_models: tuple[CovariateNumber, ...] = ()

    @model_validator(mode="after")
    def _of_one_piece(self) -> NumberDescription:
        folds = {fold for _, fold, _ in self.intervals.residuals}
        if folds and max(folds) >= self.folds:
            raise ValueError(
                f"intervals.residuals name fold {max(folds)}, and there are {self.folds} from 0 on"
            )
        persons = np.array([person for _, _, person in self.intervals.residuals], dtype=np.int64)
        if len(set(persons.tolist())) < 2:
            raise ValueError("intervals.residuals must be of two or more persons")
        if self.intervals.level > attainable_level(persons) + 1e-9:
            raise ValueError(
                f"intervals.level is {self.intervals.level:g}, and {len(persons)} residuals allow "
                f"{attainable_level(persons):g}"
            )
        return self

    @model_validator(mode="after")
    def _of_the_number(self) -> NumberDescription:
        """Compare what is said of the models that stand here with members, covariates and folds."""
        for name, count in (
            ("predictor.folds", len(self.predictor.folds)),
            ("covariate_models", len(self.covariate_models) or self.folds),
        ):
            if count != self.folds:
                raise ValueError(f"{name} has {count} entries for {self.folds} folds")
        for fold in self.predictor.folds:
            if set(fold.lines) != set(self.members):
                raise ValueError(f"a line is needed for each of {', '.join(self.members)}")
            if (fold.covariate_weight is None) is bool(self.covariate_models):
                raise ValueError("covariate_weight must be there with covariate_models, and only with them")
        if any(len(model.bias) != 1 for model in self.volume_models):
            raise ValueError("one of volume_models does not answer with one number")
        if self.label_column in self.covariate_columns:
            raise ValueError(f"the column {self.label_column!r} is predicted from itself")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers each member answers with."""
        return 1

    @property
    def covariate_columns(self) -> tuple[str, ...]:
        """The columns that the model looks at besides the image."""
        return tuple(column.name for model in self.covariate_models[:1] for column in model.columns)

    @property
    def weighted_members(self) -> frozenset[Member]:
        """The members that what is published depends on, in any fold."""
        return frozenset(name for fold in self.predictor.folds for name in fold.weights)

    def misses_covariates(self, row: Row) -> bool:
        """Tell whether a covariate that the model uses is unknown, or has a value that a training fold did not have."""
        return any(one.misses(row) for one in self.covariate_models)

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns that anything said with this model depends on: never the number itself."""
        return tuple(name for name in super().columns_read if name != self.label_column)

    @property
    def residuals(self) -> Residuals:
        """Of the training scans."""
        residual, fold, person = zip(*self.intervals.residuals, strict=True)
        return Residuals(
            residual=np.array(residual, dtype=np.float64),
            fold=np.array(fold, dtype=np.int64),
            person=np.array(person, dtype=np.int64),
        )


Description = ModelDescription | NumberDescription


def read_description(path: Path) -> Description:
    """Read and check ``model.json`` of a model directory.

    That content and `model_id` agree finds accidents. It is no signature: whoever alters a model can compute its
    hashes anew.

    Raises
    ------
    ModelError
        When it is absent, not JSON, not what this version writes, holds a number that is not finite or not in its
        range, or is of a version with other features or another baseline.
    """
    file = path / DESCRIPTION_FILE
    try:
        content = read_regular(file)
        description = _kind_of(content).model_validate_json(content)
    except OSError as error:
        raise ModelError(
            f"{path.name} is no model directory: {DESCRIPTION_FILE} cannot be read ({error.strerror})"
        ) from error
    except ValidationError as error:
        if made_by := older_version(path):
            raise ModelError(
                f"{path.name} was made by brainstage {made_by}, whose models have one member alone: train it again"
            ) from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path.name}/{DESCRIPTION_FILE} is not usable: {where}: {first['msg']}") from error
    if description.baseline_version != BASELINE_VERSION:
        raise ModelError(
            f"{path.name} was made by brainstage {description.versions.get('brainstage', '?')}, whose linear baseline "
            "sees other values: train the model again"
        )
    if description.model_id != description.own_id:
        raise ModelError(
            f"{path.name}/{DESCRIPTION_FILE} was altered after training: its content gives another model_id; copy "
            "or train the model again"
        )
    backbone = description.backbone
    if backbone.feature_id != feature_id(backbone.sha256, backbone.architecture, backbone.strides):
        raise ModelError(
            f"{path.name} was made by brainstage {description.versions.get('brainstage', '?')}, whose features are "
            "pooled otherwise: train the model again"
        )
    return description


def _kind_of(content: bytes) -> type[ModelDescription] | type[NumberDescription]:
    """Return what a ``model.json`` describes: classes, unless it says that it is a number."""
    try:
        found = json.loads(content)
    except ValueError:
        return ModelDescription  # which says what is wrong
    is_number = isinstance(found, dict) and found.get("kind") == "number"
    return NumberDescription if is_number else ModelDescription


def older_version(path: Path) -> str:
    """Return which version wrote a model directory of an earlier schema; empty for any other directory."""
    content = read_json_or_empty(path / DESCRIPTION_FILE)
    versions = content.get("versions")
    if content.get("schema_version") != 1 or not isinstance(versions, dict):
        return ""
    return str(versions.get("brainstage", "?"))


def checked_content(path: Path, name: str, sha256: str) -> bytes:
    """Return the content of a weights file that ``model.json`` names.

    Raises
    ------
    ModelError
        When it cannot be read, or is not what was written with the model.
    """
    if Path(name).name != name or "\0" in name:
        raise ModelError(
            f"{path.name}/{DESCRIPTION_FILE} names {name!r}, which is not a file of the directory"
        )
    try:
        content = read_regular(path / name, MOST_WEIGHTS_BYTES)
    except OSError as error:
        raise ModelError(f"{path.name}/{name} cannot be read: {error.strerror}") from error
    found = sha256_of_bytes(content)
    if found != sha256:
        raise ModelError(
            f"{path.name}/{name} was altered: sha256 {found[:12]}, {sha256[:12]} when it was trained"
        )
    return content


def require_same_preprocessing(
    model: CommonDescription, other_id: str, other_content: Mapping[str, Any]
) -> None:
    """Raise unless scans went through the preprocessing that the model was trained on.

    Parameters
    ----------
    model : ModelDescription or NumberDescription
    other_id : str
        Hash of the scans' preprocessing.
    other_content : mapping
        What that hash was made from.

    Raises
    ------
    ModelError
        With the values that differ.
    """
    if other_id == model.preprocessing_id:
        return
    differing = [
        f"{key} is {here} here and {there} in the model"
        for key, here, there in differences(other_content, model.preprocessing_content)
    ]
    shown = "; ".join(differing[:_MAX_DIFFERENCES_SHOWN]) or "no value differs, only the hash"
    more = len(differing) - _MAX_DIFFERENCES_SHOWN
    raise ModelError(
        f"the model was trained on scans preprocessed otherwise ({model.preprocessing_id}, here {other_id}): {shown}"
        + (f"; and {more} more" if more > 0 else "")
    )
