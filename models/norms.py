"""What a measure of the brain is in a class of reference, by age and sex, and where a person lies among them.

The logarithm of a measure follows age as a line, or, where that predicts people who were held out better, as a curve
(a natural cubic spline of three knots; Durrleman 1989, 10.1002/sim.4780080504) with a spread that changes with age
(Davidian 1987, 10.1080/01621459.1987.10478543). A person is given the interval in which 95 of 100 further people like
those are expected (a prediction interval, wider than the spread of those seen), and a percentile with the interval
that the sample leaves it. Outside the ages that were seen nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from scipy.special import gammaln, ndtr, stdtr, stdtrit

from brainstage.pipeline.records import VOLUMES, ReferenceFinding

By = Literal["age", "sex"]
Numbers = NDArray[np.float64]
Knots = tuple[()] | tuple[float, float, float]
"""Years where the pieces of a curve meet; none for a line."""

NORMED_MEASURES: Final[Mapping[str, str]] = {
    VOLUMES[0]: f"{VOLUMES[0]}_ml",
    **{name: f"{name}_pct_icv" for name in VOLUMES[1:]},
}
"""Volume to the measure of it that is compared: per cent of the intracranial volume, and that itself in millilitres."""

COVERAGE: Final = 0.95
LEAST_PEOPLE: Final = 15
LEAST_OF_A_SEX: Final = 5
LEAST_AGE_SD_YEARS: Final = 1.0
LEAST_PEOPLE_OF_A_CURVE: Final = 50
"""Fewer do not show that a curve or a changing spread predicts better than a line."""
LEAST_SPAN_OF_A_CURVE_YEARS: Final = 20.0
FOLDS: Final = 10
KNOT_QUANTILES: Final = (0.1, 0.5, 0.9)
"""Harrell's choice for three knots."""
MOST_WIDENING: Final = 2.5
"""Logarithm of how much the spread may change between the youngest and the oldest: a factor of twelve."""
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
    """The logarithm of one measure as a function of age and sex.

    Attributes
    ----------
    measure : str
    by : tuple of str
        What it depends on.
    people : int
        That it was fitted to.
    coefficients : tuple of float
        Intercept, then one for each of `by` (per year, and male against female), then that of the curve.
    spread : tuple of tuple of float
        Inverse of the normal matrix: how well the coefficients are known, in units of the residual variance.
    residual_sd : float
        In the middle of `ages`.
    ages : (float, float) or None
        The youngest and the oldest seen, where it depends on age.
    knots : tuple of float
        Years, where age is a curve; empty for a line.
    widening : float
        How much the logarithm of the spread grows in a year.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measure: str
    by: tuple[By, ...]
    people: int
    coefficients: tuple[float, ...]
    spread: tuple[tuple[float, ...], ...]
    residual_sd: float = Field(ge=0)
    ages: tuple[float, float] | None = None
    knots: Knots = ()
    widening: float = 0.0

    @model_validator(mode="after")
    def _of_one_piece(self) -> Norm:
        size = 1 + len(self.by) + bool(self.knots)
        if {len(self.coefficients), len(self.spread), *map(len, self.spread)} != {
            size
        } or self.people <= size:
            raise ValueError(f"coefficients, spread and people do not fit a norm by {len(self.by)} column(s)")
        if (self.ages is None) is ("age" in self.by) or (self.ages and self.ages[0] > self.ages[1]):
            raise ValueError(
                "ages must be the youngest and the oldest where a norm is by age, and nothing elsewhere"
            )
        if self.ages is None and (self.knots or self.widening):
            raise ValueError("knots and widening are of norms by age only")
        if any(low >= high for low, high in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError("knots must increase")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what norms had not at first: the hash of a model that holds such norms stays the same."""
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if value or name not in ("knots", "widening")}

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the residual."""
        return self.people - len(self.coefficients)

    def design(self, age: float | None, sex: str | None) -> Numbers | None:
        """Return the row of a person in the design; None where a value is unknown."""
        row = _row(self.by, age, sex)
        if row is None or not self.knots or age is None:
            return row
        return np.append(row, _curve(np.array([age]), self.knots))

    def scale(self, ages: Numbers) -> Numbers:
        """Return the spread at some ages over that in the middle of those seen."""
        if self.ages is None:
            return np.ones(len(ages))
        return np.asarray(np.exp(self.widening * (ages - _middle(self.ages))))


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
    label: str,
    people: Sequence[ReferencePerson],
    measures: Sequence[str],
    measured_by: str = "1",
    *,
    needs_age: bool = False,
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
    needs_age : bool
        Fit one norm for each measure, by age and, where both are among the people, by sex: nobody is compared
        with people of any age, and nobody of unknown sex with men and women alike.
    """
    choices = tuple(by for by in _CHOICES if "age" in by) if needs_age else _CHOICES
    norms: list[Norm] = []
    for name in measures:
        fitted = [norm for by in choices if (norm := _fitted(name, by, people)) is not None]
        norms += fitted[:1] if needs_age else fitted
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
            norm for norm in reference.norms if norm.measure == name and norm.design(age, sex) is not None
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


def held_out_share(norm: Norm, people: Sequence[ReferencePerson]) -> float:
    """Return the share of people inside the interval of a norm of the same form, fitted without them.

    Parameters
    ----------
    norm : Norm
        By age.
    people : sequence of ReferencePerson
        Whom it was fitted to.
    """
    known = _known(norm.measure, norm.by, people)
    inside = [
        _standing(fitted, rows, values, known.ages_of(rows))[1]
        for fitted, rows, values in _folds(known, norm.knots, widens=bool(norm.widening))
    ]
    return float(np.mean(np.concatenate(inside)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """The people who have a measure and what it is to depend on.

    Attributes
    ----------
    rows : ndarray, (N, 1 + len(by))
        Of the design, without the curve.
    values : ndarray, (N,)
        Logarithm of the measure.
    """

    measure: str
    by: tuple[By, ...]
    rows: Numbers
    values: Numbers

    def ages_of(self, rows: Numbers) -> Numbers | None:
        """Return the ages in some rows; None where they have none."""
        return rows[:, 1 + self.by.index("age")] if "age" in self.by else None


def _known(name: str, by: tuple[By, ...], people: Sequence[ReferencePerson]) -> _Known:
    found = [
        (row, person.measures[name])
        for person in people
        if person.measures.get(name, 0.0) > 0 and (row := _row(by, person.age, person.sex)) is not None
    ]
    return _Known(
        measure=name,
        by=by,
        rows=np.array([row for row, _ in found]).reshape(len(found), 1 + len(by)),
        values=np.log([value for _, value in found]),
    )


def _fitted(name: str, by: tuple[By, ...], people: Sequence[ReferencePerson]) -> Norm | None:
    known = _known(name, by, people)
    count = len(known.values)
    ages = known.ages_of(known.rows)
    if count < LEAST_PEOPLE or (ages is not None and ages.std() < LEAST_AGE_SD_YEARS):
        return None
    if "sex" in by:
        men = int(known.rows[:, 1 + by.index("sex")].sum())
        if min(men, count - men) < LEAST_OF_A_SEX:
            return None
    knots, widens = _chosen_form(known)
    return _norm(known, known.rows, known.values, knots, widens=widens)


def _chosen_form(known: _Known) -> tuple[Knots, bool]:
    """Return the knots of the curve, none for a line, and whether the spread changes with age.

    The simplest form whose predictions of people held out are no worse, by one standard error, than those of the best.
    """
    ages = known.ages_of(known.rows)
    if ages is None or len(ages) < LEAST_PEOPLE_OF_A_CURVE or np.ptp(ages) < LEAST_SPAN_OF_A_CURVE_YEARS:
        return (), False
    first, second, third = map(float, np.quantile(ages, KNOT_QUANTILES))
    knots = (first, second, third)
    forms: list[tuple[Knots, bool]] = [((), False), ((), True)]
    if first < second < third:
        forms = [((), False), (knots, False), ((), True), (knots, True)]
    scores = np.stack(
        [
            np.concatenate(
                [
                    _standing(norm, rows, values, known.ages_of(rows))[0]
                    for norm, rows, values in _folds(known, bend, widens=widens)
                ]
            )
            for bend, widens in forms
        ]
    )
    lost = scores[scores.mean(axis=1).argmax()] - scores
    tolerated = lost.std(axis=1) / np.sqrt(scores.shape[1])
    return forms[int(np.flatnonzero(lost.mean(axis=1) <= tolerated)[0])]


def _folds(known: _Known, knots: Knots, *, widens: bool) -> list[tuple[Norm, Numbers, Numbers]]:
    """Return, for each fold, a norm fitted without its people, and their rows and values; all ages are in each."""
    ages = known.ages_of(known.rows)
    order = np.arange(len(known.values)) if ages is None else np.argsort(ages, kind="stable")
    fold = np.empty(len(order), dtype=int)
    fold[order] = np.arange(len(order)) % FOLDS
    return [
        (
            _norm(known, known.rows[fold != n], known.values[fold != n], knots, widens=widens),
            known.rows[fold == n],
            known.values[fold == n],
        )
        for n in range(FOLDS)
    ]


def _norm(
    known: _Known,
    rows: Numbers,
    values: Numbers,
    knots: Knots,
    *,
    widens: bool,
) -> Norm:
    ages = known.ages_of(rows)
    design = rows if ages is None else _with_curve(rows, ages, knots)
    seen = None if ages is None else (float(ages.min()), float(ages.max()))
    widening = _widening(design, values, ages) if ages is not None and widens else 0.0
    scale = (
        np.ones(len(values)) if ages is None or seen is None else np.exp(widening * (ages - _middle(seen)))
    )
    weighted = design / scale[:, None]
    coefficients, residual = _least_squares(weighted, values / scale)
    return Norm(
        measure=known.measure,
        by=known.by,
        people=len(values),
        coefficients=tuple(map(float, coefficients)),
        spread=tuple(tuple(map(float, row)) for row in np.linalg.inv(weighted.T @ weighted)),
        residual_sd=float(np.sqrt(residual / (len(values) - design.shape[1]))),
        ages=seen,
        knots=knots,
        widening=widening,
    )


def _widening(design: Numbers, values: Numbers, ages: Numbers) -> float:
    """Return by how much the logarithm of the spread grows in a year, by maximum likelihood."""
    from scipy.optimize import minimize_scalar  # not needed for comparing

    span = float(np.ptp(ages))
    along = (ages - _middle((float(ages.min()), float(ages.max())))) / span

    def unlikelihood(change: float) -> float:
        scale = np.exp(change * along)
        _, residual = _least_squares(design / scale[:, None], values / scale)
        return len(values) / 2.0 * float(np.log(max(residual, np.finfo(float).tiny))) + change * float(
            along.sum()
        )

    found = minimize_scalar(unlikelihood, bounds=(-MOST_WIDENING, MOST_WIDENING), method="bounded")
    return float(found.x) / span


def _least_squares(design: Numbers, values: Numbers) -> tuple[Numbers, float]:
    """Return the coefficients and the sum of the squared residuals."""
    coefficients = np.asarray(np.linalg.lstsq(design, values, rcond=None)[0], dtype=np.float64)
    return coefficients, float(np.square(values - design @ coefficients).sum())


def _standing(
    norm: Norm, rows: Numbers, values: Numbers, ages: Numbers | None
) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the logarithm of the predicted density of some people, and whether they lie inside the interval."""
    design = rows if ages is None else _with_curve(rows, ages, norm.knots)
    scale = np.ones(len(rows)) if ages is None else norm.scale(ages)
    unknown = np.einsum("ni,ij,nj->n", design, np.array(norm.spread), design)
    sd = np.maximum(norm.residual_sd * np.sqrt(scale**2 + unknown), np.finfo(float).tiny)
    away = (values - design @ np.array(norm.coefficients)) / sd
    freedom = norm.freedom
    density = (
        gammaln((freedom + 1) / 2)
        - gammaln(freedom / 2)
        - np.log(freedom * np.pi) / 2
        - np.log(sd)
        - (freedom + 1) / 2 * np.log1p(away**2 / freedom)
    )
    return density, np.abs(away) <= stdtrit(freedom, 0.5 + COVERAGE / 2)


def _finding(label: str, norm: Norm, value: float, age: float | None, sex: str | None) -> ReferenceFinding:
    about = ReferenceFinding(measure=norm.measure, value=value, label=label, people=norm.people, by=norm.by)
    if norm.ages is not None and age is not None and not norm.ages[0] <= age <= norm.ages[1]:
        seen = f"{norm.ages[0]:g} to {norm.ages[1]:g}"
        return replace(about, reason=f"an age of {age:g} is outside the {seen} years of the class")
    design = norm.design(age, sex)
    if design is None:
        raise ValueError(
            f"a norm by {' and '.join(norm.by)} is asked about a person of whom that is not known"
        )
    scale = 1.0 if age is None else float(norm.scale(np.array([age]))[0])
    unknown = float(design @ np.array(norm.spread) @ design)
    expected = float(design @ np.array(norm.coefficients))
    sd = norm.residual_sd * float(np.sqrt(scale**2 + unknown))
    reach = sd * float(stdtrit(norm.freedom, 0.5 + COVERAGE / 2))
    away = float(np.log(value)) - expected
    percentile = 100.0 * float(stdtr(norm.freedom, away / sd)) if sd > 0 else 50.0
    of_sample = (0.0, 100.0)
    if sd > 0:
        of_sample = _percentile_interval(away / (norm.residual_sd * scale), unknown / scale**2, norm)
    low, high = np.exp([expected - reach, expected + reach])
    return replace(
        about,
        expected=float(np.exp(expected)),
        low=float(low),
        high=float(high),
        percentile=percentile,
        percentile_low=min(percentile, of_sample[0]),
        percentile_high=max(percentile, of_sample[1]),
    )


def _percentile_interval(away: float, unknown: float, norm: Norm) -> tuple[float, float]:
    """Return the 95 % interval of a percentile, for the mean and the spread of the class were estimated.

    Parameters
    ----------
    away : float
        From what is expected, in standard deviations of the class.
    unknown : float
        Variance of what is expected, in units of the variance of the class.
    norm : Norm

    Notes
    -----
    An estimated distance follows a noncentral t distribution (Crawford 2002, 10.1016/S0028-3932(01)00224-X); here its
    variance is approximated by the delta method, which holds the level from 15 people on.
    """
    reach = float(stdtrit(norm.freedom, 0.5 + COVERAGE / 2)) * float(
        np.sqrt(unknown + away**2 / (2.0 * norm.freedom))
    )
    return 100.0 * float(ndtr(away - reach)), 100.0 * float(ndtr(away + reach))


def _with_curve(rows: Numbers, ages: Numbers, knots: Knots) -> Numbers:
    return np.column_stack([rows, _curve(ages, knots)]) if knots else rows


def _curve(ages: Numbers, knots: tuple[float, float, float]) -> Numbers:
    """Return what a natural cubic spline has beside the line: a line again before the first and after the last knot."""
    first, second, third = knots

    def cubed(knot: float) -> Numbers:
        return np.asarray(np.maximum(ages - knot, 0.0) ** 3)

    bent = (
        cubed(first)
        - cubed(second) * (third - first) / (third - second)
        + cubed(third) * (second - first) / (third - second)
    )
    return np.asarray(bent / (third - first) ** 2)


def _middle(ages: tuple[float, float]) -> float:
    return (ages[0] + ages[1]) / 2.0


def _row(by: tuple[By, ...], age: float | None, sex: str | None) -> Numbers | None:
    """Return the row of the design without a curve; None where a value is unknown."""
    values = {"age": age, "sex": male(sex)}
    row = [1.0, *(values[name] for name in by)]
    return None if None in row else np.array(row, dtype=np.float64)


def male(sex: str | None) -> float | None:
    """Return 1 for male, 0 for female, None for anything else.

    >>> male("Female"), male("m"), male("n/a")
    (0.0, 1.0, None)
    """
    return {"m": 1.0, "male": 1.0, "f": 0.0, "female": 0.0}.get((sex or "").strip().lower())
