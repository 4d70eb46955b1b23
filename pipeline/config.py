"""The configuration: pydantic models, read from TOML, every key known.

Everything under :class:`PreprocessingConfig` changes voxels and is part of the ``preprocessing_id``;
the rest does not.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from brainstage.pipeline.derivatives import RESOLUTION_LABELS
from brainstage.pipeline.errors import ConfigError, InputMissingError
from brainstage.pipeline.files import read_regular


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not 0 < low < high:
        raise ValueError("two numbers above 0 are needed, the lower one first")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The smallest and the largest of a length or a volume that are taken."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IngestConfig(_Section):
    """How a file is believed.

    Attributes
    ----------
    on_conflict : str
        What to do when sform and qform put left and right, or the axes, differently: refuse the scan, or believe one.
    missing_orientation : str
        What to do when neither is set: refuse, or assume what the voxel sizes and storage order suggest.
    spacing_bounds_mm : (float, float)
        Voxel sizes outside are no T1w scan of a head.
    field_of_view_bounds_mm : (float, float)
        Extent of each axis; below, no head fits in, above, the unit is wrong.
    """

    on_conflict: Literal["refuse", "sform", "qform"] = "refuse"
    missing_orientation: Literal["refuse", "assume"] = "refuse"
    spacing_bounds_mm: Bounds = (0.2, 6.0)
    field_of_view_bounds_mm: Bounds = (80.0, 512.0)


class BrainExtractionConfig(_Section):
    """How the brain is found.

    Attributes
    ----------
    method : str
        ``auto`` leaves a stripped scan as it is, uses deepbet otherwise, and the template (``ants``) where
        deepbet finds no plausible brain; ``none`` demands a stripped scan.
    volume_bounds_ml : (float, float)
        A mask outside is a failed extraction. Adult intracranial content lies within 1000 to 2000 ml; the
        lower bound leaves room for advanced atrophy and for masks without the extra-axial fluid.
    """

    method: Literal["auto", "deepbet", "ants", "none"] = "auto"
    volume_bounds_ml: Bounds = (600.0, 2300.0)


class BiasFieldConfig(_Section):
    """How the bias field is removed (N4; Tustison 2010, 10.1109/TMI.2010.2046908).

    Attributes
    ----------
    method : str
        ``fast``: N4 on a lattice of the mask's voxels; ``ants``: N4 as ANTs runs it; ``none``.
    grid_mm : float
        Voxel size at which ``fast`` estimates the field.
    levels, iterations, tolerance
        Levels of the B-spline pyramid, iterations at each (8 at most on meshes of 8 and more, which could follow the
        folds of the cortex), and the relative change at which a level ends.
    """

    method: Literal["fast", "ants", "none"] = "fast"
    grid_mm: float = Field(default=4.0, ge=1.0, le=8.0)
    levels: int = Field(default=4, ge=1, le=6)
    iterations: int = Field(default=80, ge=1, le=500)
    tolerance: float = Field(default=1e-4, gt=0.0, lt=1.0)


class IntensityConfig(_Section):
    """How intensities are made comparable, inside the mask.

    Attributes
    ----------
    method : str
        ``zscore``: mean 0 and SD 1. ``percentile``: the 2nd and 98th percentile become 0 and 1.
        ``whitestripe``: the white-matter peak becomes 0, the spread around it 1
        (Shinohara 2014, 10.1016/j.nicl.2014.08.008).
    """

    method: Literal["zscore", "percentile", "whitestripe"] = "zscore"


class RegistrationConfig(_Section):
    """How a brain comes to the template.

    Attributes
    ----------
    method : str
        ``affine``, or ``syn`` for a deformation on top of it.
    resolution_mm : float
        Voxel size of the output grid.
    """

    method: Literal["affine", "syn"] = "affine"
    resolution_mm: float = 1.0

    @model_validator(mode="after")
    def _known_resolution(self) -> RegistrationConfig:
        if self.resolution_mm not in RESOLUTION_LABELS:
            raise ValueError(f"resolution_mm {self.resolution_mm:g}: allowed are 1, 1.5 and 2")
        return self


MOST_VOXELS: Final = 256
"""Along an axis of the network's image: 0.75 mm over the whole template."""


class NetworkGridConfig(_Section):
    """What the network sees.

    Attributes
    ----------
    spacing_mm : float
        Voxel size of the network's image.
    shape : (int, int, int)
        Its voxels. 80 x 96 x 80 at 2 mm holds the template's brain and is divisible by 16.
    normalisation : str
        ``kept``: intensities as the chain left them; ``zscore``: mean 0 and SD 1 over the brain's voxels of the
        network's image, as in Med3D's loader.
    background : str
        Value outside the mask: ``zero``; ``noise`` of N(0, 1) as in Med3D's loader; ``minimum`` of the brain.
    """

    spacing_mm: float = Field(default=2.0, ge=0.5, le=4.0)
    shape: tuple[int, int, int] = (80, 96, 80)
    normalisation: Literal["kept", "zscore"] = "kept"
    background: Literal["zero", "noise", "minimum"] = "zero"

    @model_validator(mode="after")
    def _divisible(self) -> NetworkGridConfig:
        if any(n < 32 or n > MOST_VOXELS or n % 8 for n in self.shape):
            raise ValueError(
                f"shape {self.shape}: each axis needs 32 to {MOST_VOXELS} voxels, and a multiple of 8"
            )
        return self


class PreprocessingConfig(_Section):
    """Everything that changes a voxel."""

    ingest: IngestConfig = IngestConfig()
    brain_extraction: BrainExtractionConfig = BrainExtractionConfig()
    bias_field: BiasFieldConfig = BiasFieldConfig()
    intensity: IntensityConfig = IntensityConfig()
    registration: RegistrationConfig = RegistrationConfig()
    network_grid: NetworkGridConfig = NetworkGridConfig()


class QualityBounds(_Section):
    """Within `passing` a measure is fine, within `tolerated` it warns, outside it fails. None leaves a side open."""

    model_config = ConfigDict(allow_inf_nan=True)  # said below what they mean

    passing: tuple[float | None, float | None]
    tolerated: tuple[float | None, float | None] = (None, None)

    @field_validator("passing", "tolerated")
    @classmethod
    def _open_ends(cls, ends: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
        """Read an infinite bound as an open side: TOML knows no null."""
        low, high = (None if end is not None and math.isinf(end) else end for end in ends)
        if any(end is not None and math.isnan(end) for end in (low, high)):
            raise ValueError("nan is no bound; leave a side open with inf or -inf")
        if low is not None and high is not None and low > high:
            raise ValueError(f"the lower bound {low:g} lies above the upper {high:g}")
        return low, high

    @model_validator(mode="after")
    def _nested(self) -> QualityBounds:
        (low, high), (least, most) = self.passing, self.tolerated
        if (least is not None and (low is None or low < least)) or (
            most is not None and (high is None or high > most)
        ):
            raise ValueError(
                "tolerated does not hold all of passing; it is where a scan warns instead of failing"
            )
        return self


class PredictionConfig(_Section):
    """How a prediction is worded.

    Attributes
    ----------
    high_confidence, review_confidence : float
        ``high`` above the first, ``review`` down to the second, ``low`` below.
    """

    high_confidence: float = Field(default=0.85, gt=0.0, le=1.0)
    review_confidence: float = Field(default=0.60, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> PredictionConfig:
        if self.review_confidence > self.high_confidence:
            raise ValueError("review_confidence must not lie above high_confidence")
        return self


class ReportsConfig(_Section):
    """What the pictures of a report show.

    Attributes
    ----------
    keep_face : bool
        Draw the whole head around the brain mask, with its face, instead of the brain and a narrow rim.
    """

    keep_face: bool = False


class Config(PreprocessingConfig):
    """A whole configuration file.

    Attributes
    ----------
    quality : mapping
        Bounds by measure, in place of the built-in ones.
    second_opinion : bool
        Also find each brain with the extractor that was not used, and report how far the two masks agree.
    prediction : PredictionConfig
    reports : ReportsConfig
    label_column : str
        Column of ``participants.tsv`` that holds the class.
    seed : int
        Seeds every random draw of the preprocessing; written to the provenance.
    """

    quality: Mapping[str, QualityBounds] = Field(default_factory=dict)
    second_opinion: bool = False
    prediction: PredictionConfig = PredictionConfig()
    reports: ReportsConfig = ReportsConfig()
    label_column: str = Field(default="diagnosis", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """The part that changes voxels."""
        return PreprocessingConfig(**{name: getattr(self, name) for name in PreprocessingConfig.model_fields})


def read_config(path: Path | None, overrides: Mapping[str, Mapping[str, Any]]) -> Config:
    """Read a TOML configuration and lay the command line over it.

    Parameters
    ----------
    path : Path or None
        None for the defaults.
    overrides : mapping
        Section to key to value, what the command line says; it wins.

    Raises
    ------
    InputMissingError
        No such file.
    ConfigError
        Not TOML, an unknown key (with a suggestion), or a value that is not allowed; all faults in one.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(read_regular(path).decode("utf-8"))
        except OSError as error:
            raise InputMissingError(f"configuration {path.name} cannot be read: {error.strerror}") from error
        except RecursionError as error:
            raise ConfigError(f"configuration {path.name} is nested too deeply") from error
        except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
            raise ConfigError(f"configuration {path.name} is not valid TOML: {error}") from error
    for section, values in overrides.items():
        present = content.setdefault(section, {})
        if isinstance(present, dict):
            present.update(values)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explained(error, path)) from error


def _explained(error: ValidationError, path: Path | None) -> str:
    name = path.name if path else "from the command line"
    return f"configuration {name}: " + "; ".join(_fault(fault) for fault in error.errors(include_url=False))


_SECTION_OF: Final[dict[str, type[BaseModel]]] = {
    name: annotation
    for name, info in Config.model_fields.items()
    if isinstance(annotation := info.annotation, type) and issubclass(annotation, BaseModel)
} | {"quality": QualityBounds}


def _fault(fault: Mapping[str, Any]) -> str:
    where = [str(part) for part in fault["loc"]]
    dotted = ".".join(where)
    if fault["type"] == "extra_forbidden":
        model = _SECTION_OF.get(where[0], Config) if len(where) > 1 else Config
        known = list(model.model_fields)
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"unknown key {dotted!r}; {hint}"
    return f"{dotted} = {_shown(fault['input'])}: {fault['msg']}"


def _shown(value: object) -> str:
    """Return the beginning of a value; one that is nested a thousand deep has no other way to be shown."""
    try:
        return f"{value!r:.200}"
    except RecursionError:
        return "something nested too deeply"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what differs between two nested mappings: dotted key, and both values as JSON or ``absent``.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}})
    [('a.c', '2', 'absent')]
    """
    first, second = _flat(one), _flat(other)
    return [
        (key, first.get(key, "absent"), second.get(key, "absent"))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values under dotted keys, as text."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
    return flat
