"""``model.json``: what a model is, but for its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from brainstage.models.baseline import BASELINE_VERSION
from brainstage.models.calibration import BOUNDS
from brainstage.models.choices import HeadKind, Regime, Strides, class_fault
from brainstage.models.covariates import CovariateExpert
from brainstage.models.norms import ReferenceClass
from brainstage.models.pooling import feature_id
from brainstage.models.published import Origin
from brainstage.pipeline.config import NetworkGridConfig, differences
from brainstage.pipeline.errors import ModelError
from brainstage.pipeline.files import read_regular, sha256_of_bytes

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
    """Class-conditional quantiles of the non-conformity; None stands for infinite, the class is in every set."""

    level: float = Field(gt=0, lt=1)
    quantiles: dict[str, Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)] | None]


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


class ModelDescription(_Part):
    """``model.json``: all of a model but its weights.

    `fold_of_training_scan` leads from the sha256 of a training scan's file to the fold that held it out;
    `covariate_experts` has one for each fold, or none where the model looks at the image alone. `reference` says what
    is usual in one of the classes, and has no part in predictions. `kernels` are those of the training, from
    :func:`~brainstage.models.kernels.kernels`; another processor adds in another order.
    """

    schema_version: Literal[1] = 1
    model_id: str = ""
    classes: tuple[str, ...] = Field(min_length=2)
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
    temperature: float = Field(ge=BOUNDS[0], le=BOUNDS[1])
    conformal: ConformalDescription
    novelty_threshold: float = Field(ge=0)
    tiers: TierBounds = TierBounds()
    seed: int
    pretraining_cohorts: tuple[str, ...] = ()
    fold_of_training_scan: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    covariate_experts: tuple[CovariateExpert, ...] = ()
    reference: ReferenceClass | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    kernels: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @field_validator("classes")
    @classmethod
    def _usable_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if fault := class_fault(name):
                raise ValueError(f"the class {name!r} {fault}")
            if names.count(name) > 1:
                raise ValueError(f"the class {name!r} stands there twice")
        return names

    @field_validator("network_grid")
    @classmethod
    def _usable_grid(cls, grid: dict[str, Any]) -> dict[str, Any]:
        NetworkGridConfig.model_validate(grid)
        return grid

    @model_validator(mode="after")
    def _of_one_piece(self) -> ModelDescription:
        """Hold what is said of classes and folds against how many there are."""
        if set(self.conformal.quantiles) != set(self.classes):
            raise ValueError(
                f"conformal.quantiles must name the classes {', '.join(self.classes)}, each once"
            )
        strange = {fold for fold in self.fold_of_training_scan.values() if fold >= self.folds}
        if strange:
            raise ValueError(
                f"fold_of_training_scan names fold {min(strange)}, and there are {self.folds} from 0 on"
            )
        if len(self.covariate_experts) not in (0, self.folds):
            raise ValueError(
                f"{len(self.covariate_experts)} covariate_experts, where there are {self.folds} folds"
            )
        for expert in self.covariate_experts:
            if len(expert.bias) != len(self.classes):
                raise ValueError(
                    f"a covariate_expert tells {len(expert.bias)} of {len(self.classes)} classes apart"
                )
        if self.reference is not None and self.reference.label not in self.classes:
            raise ValueError(f"reference.label {self.reference.label!r} is none of the classes")
        return self

    @property
    def covariate_columns(self) -> tuple[str, ...]:
        """The columns that the model looks at besides the image."""
        return tuple(column.name for expert in self.covariate_experts[:1] for column in expert.columns)

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns that anything said with this model depends on."""
        of_reference = AGE_AND_SEX if self.reference else ()
        return tuple(dict.fromkeys((*self.covariate_columns, *of_reference)))

    @property
    def own_id(self) -> str:
        """The `model_id` that the content gives: ``m`` and a short hash of everything that changes a prediction."""
        content = self.model_dump(mode="json", exclude=dict(_NO_PART_OF_ID))
        return f"m{sha256_of_bytes(json.dumps(content, sort_keys=True).encode())[:11]}"

    @property
    def class_quantiles(self) -> list[float]:
        """The quantiles of the conformal sets, in the order of the classes."""
        found = (self.conformal.quantiles[name] for name in self.classes)
        return [np.inf if quantile is None else quantile for quantile in found]


def read_description(path: Path) -> ModelDescription:
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
        description = ModelDescription.model_validate_json(read_regular(file))
    except OSError as error:
        raise ModelError(
            f"{path.name} is no model directory: {DESCRIPTION_FILE} cannot be read ({error.strerror})"
        ) from error
    except ValidationError as error:
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
    model: ModelDescription, other_id: str, other_content: Mapping[str, Any]
) -> None:
    """Raise unless scans went through the preprocessing that the model was trained on.

    Parameters
    ----------
    model : ModelDescription
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
