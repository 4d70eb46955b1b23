"""The member that knows volumes alone: hippocampi, ventricles and tissues over the intracranial volume.

Each volume is compared with what is usual for a person's age and sex, as the training fold shows it within its
classes, or at the same value of a number that is to be predicted, so that a wide ventricle of an old person counts for
less than one of a young person, and age itself is no evidence. A few plain numbers hold all of it; they stand in
``model.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from brainstage.models.linear_fit import fit_classes, fit_number

SUMMED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "hippocampi_pct_icv": ("hippocampus_left_pct_icv", "hippocampus_right_pct_icv"),
        "ventricles_pct_icv": ("ventricle_left_pct_icv", "ventricle_right_pct_icv"),
        "grey_matter_pct_icv": ("grey_matter_pct_icv",),
        "white_matter_pct_icv": ("white_matter_pct_icv",),
        "csf_pct_icv": ("csf_pct_icv",),
    }
)
"""What the member knows of a scan, in per cent of the intracranial volume, and the measures whose sum it is. Both sides
together are measured better than each: with them apart the AUC for a simulated loss of 10, 15 and 20 % of the
hippocampi in 48 brains is 0.60, 0.70 and 0.79, with their sums 0.66, 0.74 and 0.80."""
MEASURES: Final = tuple(SUMMED)
LEAST_KNOWN: Final = 15
"""People whose age, or sex, is known, from which a slope is estimated; as for norms."""
LEAST_AGE_SD_YEARS: Final = 1.0
LEAST_WITHIN: Final = 0.1
"""Of the variance of age or sex that must lie within classes: otherwise it is the class, and nothing is compared."""
_SCALE_FLOOR: Final = 1e-3
"""Of the logarithm of a measure: a tenth of a per cent."""

Measures = Mapping[str, float | None]
"""Name to value; what is withheld is None or absent."""


class MeasureScale(BaseModel):
    """How the logarithm of one measure is spread in a training fold.

    Attributes
    ----------
    measure : str
    mean : float
        At `age` and `male`.
    per_year, male_minus_female : float
        Within the classes; 0 where too few ages, or sexes, are known.
    age : float
        Mean of those known, years.
    male : float
        Fraction of those known.
    scale : float
        SD of what is left.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measure: str
    mean: float
    per_year: float
    male_minus_female: float
    age: float
    male: float = Field(ge=0, le=1)
    scale: float = Field(gt=0)

    def standardised(self, measures: Measures, age: float | None, male: float | None) -> float:
        """Return how far a scan lies from what is usual, in SD; 0 where the measure is not known."""
        value = measures.get(self.measure)
        if value is None or value <= 0:
            return 0.0
        expected = self.mean
        expected += self.per_year * (age - self.age) if age is not None else 0.0
        expected += self.male_minus_female * (male - self.male) if male is not None else 0.0
        return float((np.log(value) - expected) / self.scale)


class VolumeModel(BaseModel):
    """A linear map from standardised volumes to logits, or to one number, fitted in one training fold.

    Attributes
    ----------
    scales : tuple of MeasureScale
    weight : tuple of tuple of float
        (C, D), with one row for a number.
    bias : tuple of float
        (C,).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scales: tuple[MeasureScale, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    @model_validator(mode="after")
    def _of_one_piece(self) -> VolumeModel:
        if len(self.weight) != len(self.bias) or {len(row) for row in self.weight} != {len(self.scales)}:
            raise ValueError("scales, weight and bias do not fit each other")
        return self

    @property
    def uses_age(self) -> bool:
        """Whether another age gives another answer."""
        return any(scale.per_year for scale in self.scales)

    @property
    def uses_sex(self) -> bool:
        """Whether the other sex gives another answer."""
        return any(scale.male_minus_female for scale in self.scales)

    def standardised(self, scans: Sequence[ScanVolumes]) -> NDArray[np.float64]:
        """Return the deviations (N, D) of scans from what is usual, in SD."""
        return np.array(
            [[scale.standardised(one.measures, one.age, one.male) for scale in self.scales] for one in scans]
        ).reshape(len(scans), len(self.scales))

    def logits(self, scans: Sequence[ScanVolumes]) -> NDArray[np.float64]:
        """Return uncalibrated logits (N, C)."""
        return np.asarray(self.standardised(scans) @ np.array(self.weight).T + np.array(self.bias))

    def contributions(self, scan: ScanVolumes, output: int) -> dict[str, float]:
        """Return what each measure adds to the logit of a class, beyond its mean over the classes, or to a number.

        Parameters
        ----------
        scan : ScanVolumes
        output : int
            Of the class.
        """
        weight = np.array(self.weight)
        against = weight[output] - weight.mean(axis=0) if len(weight) > 1 else weight[output]
        added = against * self.standardised([scan])[0]
        return {scale.measure: float(value) for scale, value in zip(self.scales, added, strict=True)}


class ScanVolumes(BaseModel):
    """What the member is given of one scan.

    Attributes
    ----------
    measures : mapping
        A name of `SUMMED` to its value.
    age : float or None
        Years.
    male : float or None
        1 for male, 0 for female, None where the sex is not known.
    """

    model_config = ConfigDict(frozen=True)

    measures: Mapping[str, float | None]
    age: float | None = None
    male: float | None = None


def scan_volumes(measures: Measures, age: float | None, sex: str | None) -> ScanVolumes:
    """Return what the member is given of a scan, from its volumes and its row of a table.

    >>> scan_volumes({}, 71.0, "female").male
    0.0
    """
    letter = (sex or "").strip().lower()[:1]
    summed = {name: _sum([measures.get(part) for part in parts]) for name, parts in SUMMED.items()}
    return ScanVolumes(measures=summed, age=age, male={"m": 1.0, "f": 0.0}.get(letter))


def log_measures(scans: Sequence[ScanVolumes]) -> NDArray[np.float32]:
    """Return the logarithms (N, D) of `MEASURES`; NaN where one is not known."""
    values = np.array(
        [[one.measures.get(name) or np.nan for name in MEASURES] for one in scans], dtype=np.float64
    )
    return np.log(values.reshape(len(scans), len(MEASURES))).astype(np.float32)


def with_log_measures(scans: Sequence[ScanVolumes], logarithms: NDArray[np.float32]) -> list[ScanVolumes]:
    """Return scans with other values of `MEASURES`, from their logarithms (N, D)."""
    return [
        one.model_copy(
            update={
                "measures": {
                    name: float(np.exp(value)) if np.isfinite(value) else None
                    for name, value in zip(MEASURES, row, strict=True)
                }
            }
        )
        for one, row in zip(scans, logarithms, strict=True)
    ]


def _sum(parts: Sequence[float | None]) -> float | None:
    """Return the sum; None where a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def fit_volume_model(
    scans: Sequence[ScanVolumes],
    targets: NDArray[np.int64],
    *,
    classes: int,
    imbalance: str,
    seed: int = 0,
) -> VolumeModel:
    """Fit an L2-penalised logistic regression on the volumes of one training fold.

    Parameters
    ----------
    scans : sequence of ScanVolumes
        N of them.
    targets : ndarray, (N,) int64
    imbalance : str
        One of :data:`~brainstage.models.choices.IMBALANCE`.
    """
    scales = _fitted_scales(scans, np.eye(classes)[targets])
    empty = VolumeModel(scales=scales, weight=((0.0,) * len(scales),) * classes, bias=(0.0,) * classes)
    if not scales:
        return empty
    weight, bias = fit_classes(
        empty.standardised(scans), targets, classes=classes, imbalance=imbalance, seed=seed
    )
    return VolumeModel(
        scales=scales,
        weight=tuple(tuple(map(float, row)) for row in weight),
        bias=tuple(map(float, bias)),
    )


def fit_number_volume_model(scans: Sequence[ScanVolumes], targets: NDArray[np.float64]) -> VolumeModel:
    """Fit a ridge regression of a number on the volumes of one training fold.

    Parameters
    ----------
    scans : sequence of ScanVolumes
        N of them; without their age where the number is age.
    targets : ndarray, (N,) float64
    """
    scales = _fitted_scales(scans, np.column_stack([np.ones(len(targets)), targets]))
    model = VolumeModel(scales=scales, weight=((0.0,) * len(scales),), bias=(float(np.mean(targets)),))
    if not scales:
        return model
    weight, bias = fit_number(model.standardised(scans), targets)
    return model.model_copy(update={"weight": (tuple(map(float, weight)),), "bias": (bias,)})


def _fitted_scales(scans: Sequence[ScanVolumes], groups: NDArray[np.float64]) -> tuple[MeasureScale, ...]:
    return tuple(scale for name in MEASURES if (scale := _fitted_scale(name, scans, groups)) is not None)


def _fitted_scale(
    name: str, scans: Sequence[ScanVolumes], groups: NDArray[np.float64]
) -> MeasureScale | None:
    """Return how a measure is spread; None where fewer than two scans have it.

    Parameters
    ----------
    groups : ndarray, (N, G) float64
        What else explains the measure: the class of each scan, or the number, beside a column of ones.
    """
    values = np.array([one.measures.get(name) or np.nan for one in scans], dtype=np.float64)
    known = np.isfinite(values) & (values > 0)
    if known.sum() < 2:
        return None
    logarithms = np.log(values[known])
    ages = _column([one.age for one in scans])[known]
    sexes = _column([one.male for one in scans])[known]
    age, male = _mean(ages, 0.0), _mean(sexes, 0.5)
    design = [*groups[known].T]
    within = groups[known]
    by_age = _varies_within(ages, within) and np.nanstd(ages) >= LEAST_AGE_SD_YEARS
    by_sex = _varies_within(sexes, within)
    design += [np.nan_to_num(ages - age)] if by_age else []
    design += [np.nan_to_num(sexes - male)] if by_sex else []
    coefficients = np.linalg.lstsq(np.column_stack(design), logarithms, rcond=None)[0][groups.shape[1] :]
    per_year = float(coefficients[0]) if by_age else 0.0
    male_minus_female = float(coefficients[-1]) if by_sex else 0.0
    left = logarithms - per_year * np.nan_to_num(ages - age) - male_minus_female * np.nan_to_num(sexes - male)
    return MeasureScale(
        measure=name,
        mean=float(left.mean()),
        per_year=per_year,
        male_minus_female=male_minus_female,
        age=age,
        male=male,
        scale=max(float(left.std()), _SCALE_FLOOR),
    )


def _varies_within(values: NDArray[np.float64], groups: NDArray[np.float64]) -> bool:
    """Tell whether a column is known of enough scans, and is more than another name of the class."""
    known = np.isfinite(values)
    if known.sum() < LEAST_KNOWN or not values[known].std():
        return False
    design = np.column_stack([np.ones(known.sum()), groups[known]])
    left = values[known] - design @ np.linalg.lstsq(design, values[known], rcond=None)[0]
    return bool(left.var() >= LEAST_WITHIN * values[known].var())


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _mean(values: NDArray[np.float64], otherwise: float) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else otherwise
