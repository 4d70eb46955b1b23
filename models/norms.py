"""What a measure of the brain is in a class of reference, by age and sex: a person is held against it.

A linear model of the training scans of that class, and the interval in which 95 of 100 further people like them are
expected (a prediction interval, wider than the spread of those seen). Outside the ages that were seen nothing is
said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import stdtr, stdtrit

from brainstage.pipeline.records import ReferenceFinding

By = Literal["age", "sex"]

COVERAGE: Final = 0.95
LEAST_PEOPLE: Final = 15
LEAST_OF_A_SEX: Final = 5
LEAST_AGE_SD_YEARS: Final = 1.0
_CHOICES: Final[tuple[tuple[By, ...], ...]] = (("age", "sex"), ("age",), ("sex",), ())
"""The first of them is used for which a person's values are known."""


@dataclass(frozen=True, kw_only=True)
class ReferencePerson:
    """One person of the class of reference.

    Attributes
    ----------
    measures : mapping
        Name to value; above 0.
    age : float or None
        Years.
    sex : str or None
        As written in a table.
    """

    measures: Mapping[str, float]
    age: float | None = None
    sex: str | None = None


class Norm(BaseModel):
    """The logarithm of one measure as a linear function of age and sex.

    Attributes
    ----------
    measure : str
    by : tuple of str
        What it depends on.
    people : int
        That it was fitted to.
    coefficients : tuple of float
        Intercept, then one for each of `by`: per year, and male against female.
    spread : tuple of tuple of float
        Inverse of the normal matrix: how well the coefficients are known, in units of the residual variance.
    residual_sd : float
    ages : (float, float) or None
        The youngest and the oldest seen, where it depends on age.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measure: str
    by: tuple[By, ...]
    people: int
    coefficients: tuple[float, ...]
    spread: tuple[tuple[float, ...], ...]
    residual_sd: float = Field(ge=0)
    ages: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _of_one_piece(self) -> Norm:
        size = 1 + len(self.by)
        if {len(self.coefficients), len(self.spread), *map(len, self.spread)} != {
            size
        } or self.people <= size:
            raise ValueError(f"coefficients, spread and people do not fit a norm by {len(self.by)} column(s)")
        if (self.ages is None) is ("age" in self.by) or (self.ages and self.ages[0] > self.ages[1]):
            raise ValueError(
                "ages must be the youngest and the oldest where a norm is by age, and nothing elsewhere"
            )
        return self


class ReferenceClass(BaseModel):
    """The norms of one class.

    Attributes
    ----------
    label : str
    norms : tuple of Norm
    measured_by : str
        Version of the measures; values of another version are compared with nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    label: str
    norms: tuple[Norm, ...]
    measured_by: str = "1"  # of those written before there was a second


def fit_reference(
    label: str, people: Sequence[ReferencePerson], measures: Sequence[str], measured_by: str = "1"
) -> ReferenceClass | None:
    """Fit every norm that the people of a class allow; None when there are too few for any.

    Parameters
    ----------
    label : str
        Of the class.
    people : sequence of ReferencePerson
        One entry a person.
    measures : sequence of str
    measured_by : str
        Version of the measures.
    """
    norms = [norm for name in measures for by in _CHOICES if (norm := _fitted(name, by, people)) is not None]
    return ReferenceClass(label=label, norms=tuple(norms), measured_by=measured_by) if norms else None


def compare(
    reference: ReferenceClass,
    measures: Mapping[str, float | None],
    age: float | None,
    sex: str | None,
    measured_by: str = "1",
) -> tuple[ReferenceFinding, ...]:
    """Compare a person's measures with a class of reference.

    Parameters
    ----------
    reference : ReferenceClass
    measures : mapping
        Name to value; one that is unknown or not above 0 is left out.
    age, sex
        Of the person; None where unknown, and then compared with everybody of the class.
    measured_by : str
        Version of the person's measures.
    """
    findings = []
    for name in dict.fromkeys(norm.measure for norm in reference.norms):
        value = measures.get(name)
        if value is None or value <= 0:
            continue
        fitting = [
            norm for norm in reference.norms if norm.measure == name and _row(norm.by, age, sex) is not None
        ]
        if fitting and measured_by != reference.measured_by:
            findings.append(
                ReferenceFinding(
                    measure=name,
                    value=float(value),
                    label=reference.label,
                    people=fitting[0].people,
                    by=(),
                    reason="the model's cohort was measured by another version of brainstage: train it again",
                )
            )
        elif fitting:
            findings.append(_finding(reference.label, fitting[0], float(value), age, sex))
    return tuple(findings)


def _fitted(name: str, by: tuple[By, ...], people: Sequence[ReferencePerson]) -> Norm | None:
    known = [
        (row, person)
        for person in people
        if person.measures.get(name, 0.0) > 0 and (row := _row(by, person.age, person.sex)) is not None
    ]
    if len(known) < LEAST_PEOPLE:
        return None
    design = np.array([row for row, _ in known])
    ages = design[:, 1 + by.index("age")] if "age" in by else None
    if ages is not None and ages.std() < LEAST_AGE_SD_YEARS:
        return None
    if "sex" in by:
        men = int(design[:, 1 + by.index("sex")].sum())
        if min(men, len(known) - men) < LEAST_OF_A_SEX:
            return None
    values = np.log([person.measures[name] for _, person in known])
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(known) - design.shape[1]
    residual_sd = float(np.sqrt(np.square(values - design @ coefficients).sum() / freedom))
    return Norm(
        measure=name,
        by=by,
        people=len(known),
        coefficients=tuple(map(float, coefficients)),
        spread=tuple(tuple(map(float, row)) for row in np.linalg.inv(design.T @ design)),
        residual_sd=residual_sd,
        ages=(float(ages.min()), float(ages.max())) if ages is not None else None,
    )


def _finding(label: str, norm: Norm, value: float, age: float | None, sex: str | None) -> ReferenceFinding:
    row = _row(norm.by, age, sex)
    about = ReferenceFinding(measure=norm.measure, value=value, label=label, people=norm.people, by=norm.by)
    if norm.ages is not None and age is not None and not norm.ages[0] <= age <= norm.ages[1]:
        seen = f"{norm.ages[0]:g} to {norm.ages[1]:g}"
        return replace(about, reason=f"an age of {age:g} is outside the {seen} years of the class")
    design = np.array(row)
    freedom = norm.people - len(norm.coefficients)
    expected = float(design @ norm.coefficients)
    sd = norm.residual_sd * float(np.sqrt(1.0 + design @ np.array(norm.spread) @ design))
    reach = sd * float(stdtrit(freedom, 0.5 + COVERAGE / 2))
    percentile = 100.0 * float(stdtr(freedom, (np.log(value) - expected) / sd)) if sd > 0 else 50.0
    low, high = np.exp([expected - reach, expected + reach])
    return replace(
        about, expected=float(np.exp(expected)), low=float(low), high=float(high), percentile=percentile
    )


def _row(by: tuple[By, ...], age: float | None, sex: str | None) -> NDArray[np.float64] | None:
    """Return the row of the design; None where a value is unknown."""
    values = {"age": age, "sex": _male(sex)}
    row = [1.0, *(values[name] for name in by)]
    return None if None in row else np.array(row, dtype=np.float64)


def _male(sex: str | None) -> float | None:
    """Return 1 for male, 0 for female, None for anything else.

    >>> _male("Female"), _male("m"), _male("n/a")
    (0.0, 1.0, None)
    """
    return {"m": 1.0, "male": 1.0, "f": 0.0, "female": 0.0}.get((sex or "").strip().lower())
