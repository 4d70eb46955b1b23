"""From the members of a model of a number to the value that is published; as :mod:`brainstage.models.predictor`.

Each member is recalibrated by a line whose slope is at least zero, fitted to what it says about scans that it did not
learn from, so that what has learnt nothing says the mean. A stack adds up their distances from the mean with weights
of at least zero that sum to at most one, drawn a little towards equal weights (Breiman 1996, doi:10.1007/BF00117832),
and stretches the sum: members that err independently shrink too much each by itself. Covariates join it likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from brainstage.models.choices import MEMBERS, Member, PredictorChoice
from brainstage.models.predictor import RIDGE, Chosen, best_weights, stack_or_member

Numbers = NDArray[np.float64]
AtLeastZero = Annotated[float, Field(ge=0)]


class Line(BaseModel):
    """What makes an unbiased value of what a member says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    slope: AtLeastZero
    intercept: float

    def of(self, said: Numbers) -> Numbers:
        """Return the values (N,) of what a member says."""
        return self.intercept + self.slope * said


class FoldNumberPredictor(BaseModel):
    """How one fold makes a value of what its members say.

    Attributes
    ----------
    chosen : str
        A member, or ``stack``.
    lines : dict
        Of every member.
    mean : float
        Of the target on the training side.
    weights : dict
        Of the members that take part, each above 0; they sum to at most 1.
    stretch : float
        Of the weighted distance from the mean.
    covariate_weight : float or None
        Of the distance from the mean that covariates say; None without covariates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    chosen: Chosen
    lines: dict[Member, Line]
    mean: float
    weights: dict[Member, Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    stretch: AtLeastZero = 1.0
    covariate_weight: AtLeastZero | None = None

    @model_validator(mode="after")
    def _of_one_piece(self) -> FoldNumberPredictor:
        if not set(self.weights) <= set(self.lines):
            raise ValueError("weights names a member without a line")
        if sum(self.weights.values()) > 1 + 1e-6:
            raise ValueError("the weights sum to more than 1")
        return self

    def member_values(self, said: Mapping[Member, Numbers]) -> dict[Member, Numbers]:
        """Return the value (N,) of each member by itself."""
        return {name: self.lines[name].of(found) for name, found in said.items()}

    def values(self, said: Mapping[Member, Numbers], covariates: Numbers | None = None) -> Numbers:
        """Return the values (N,) that are published.

        Parameters
        ----------
        said : mapping
            Of every member that has a weight, (N,).
        covariates : ndarray, (N,) float64, optional
            What covariates alone say.
        """
        values = self.mean + self.stretch * self._distance(said)
        if self.covariate_weight is None or covariates is None:
            return values
        return np.asarray(values + self.covariate_weight * (covariates - self.mean))

    def _distance(self, said: Mapping[Member, Numbers]) -> Numbers:
        return np.asarray(
            sum(
                weight * (self.lines[name].of(said[name]) - self.mean)
                for name, weight in self.weights.items()
            )
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class InnerNumbers:
    """What is known of one training side without its outer fold.

    Attributes
    ----------
    said : mapping
        What each member says, (N,), out of inner folds.
    targets : ndarray, (N,) float64
    folds, persons : ndarray, (N,) int64
    covariates : ndarray, (N,) float64 or None
        What covariates alone say, out of inner folds.
    """

    said: Mapping[Member, Numbers]
    targets: Numbers
    folds: NDArray[np.int64]
    persons: NDArray[np.int64]
    covariates: Numbers | None = None

    def where(self, scans: NDArray[np.bool_]) -> InnerNumbers:
        """Return the chosen scans, (N,) bool."""
        return InnerNumbers(
            said={name: found[scans] for name, found in self.said.items()},
            targets=self.targets[scans],
            folds=self.folds[scans],
            persons=self.persons[scans],
            covariates=None if self.covariates is None else self.covariates[scans],
        )


def fit_number_predictor(inner: InnerNumbers, choice: PredictorChoice) -> FoldNumberPredictor:
    """Fit the predictor of a fold to what its members say about scans that they were not fitted on.

    Parameters
    ----------
    inner : InnerNumbers
    choice : str
        A member, ``stack``, or ``auto``: the stack, unless the squared error of a member is lower by more than two
        standard errors of the difference over persons. The error of a candidate is measured on each inner fold with
        lines and weights from the others.
    """
    chosen = stack_or_member(candidate_errors(inner), inner.persons) if choice == "auto" else choice
    return fit_chosen_number(inner, chosen)


def fit_chosen_number(inner: InnerNumbers, chosen: Chosen) -> FoldNumberPredictor:
    """Fit lines, the weights of a stack, and how far the weighted distance from the mean is stretched."""
    mean = float(inner.targets.mean())
    lines = {name: fitted_line(found, inner.targets) for name, found in inner.said.items()}
    values = {name: lines[name].of(found) for name, found in inner.said.items()}
    weights: dict[Member, float]
    weights = number_weights(values, inner.targets) if chosen == "stack" else {chosen: 1.0}
    predictor = FoldNumberPredictor(chosen=chosen, lines=lines, mean=mean, weights=weights)
    if chosen != "stack" and inner.covariates is None:
        return predictor  # the line of the member has done it
    parts = [predictor.values(inner.said) - mean]
    parts += [] if inner.covariates is None else [inner.covariates - mean]
    stretch = _non_negative(np.column_stack(parts), inner.targets - mean)
    joined = {"stretch": stretch[0], "covariate_weight": stretch[1] if len(stretch) > 1 else None}
    return predictor.model_copy(update=joined)


def fitted_line(said: Numbers, targets: Numbers) -> Line:
    """Return the line of least squares whose slope is at least 0; flat where all that is said is the same."""
    centred = said - said.mean()
    spread = float(centred @ centred)
    slope = max(0.0, float(centred @ targets) / spread) if spread > 0 else 0.0
    return Line(slope=slope, intercept=float(targets.mean() - slope * said.mean()))


def number_weights(values: Mapping[Member, Numbers], targets: Numbers) -> dict[Member, float]:
    """Return the weights of a stack: at least 0, together at most 1.

    Parameters
    ----------
    values : mapping
        Member to recalibrated values (N,), of scans that it was not fitted on.
    targets : ndarray, (N,) float64
    """
    names = [name for name in MEMBERS if name in values]
    equal = np.full(len(names), 1 / len(names))
    spread = float(targets.std()) or 1.0
    distance = (targets - targets.mean()) / spread
    columns = np.column_stack([values[name] - targets.mean() for name in names]) / spread

    def loss(weights: Numbers) -> tuple[float, Numbers]:
        error = columns @ weights - distance
        away = weights - equal
        value = error @ error + RIDGE * away @ away
        gradient = 2 * (columns.T @ error + RIDGE * away)
        return float(value) / len(targets), gradient / len(targets)

    return best_weights(loss, names)


def candidate_errors(inner: InnerNumbers) -> dict[Chosen, Numbers]:
    """Return the squared error (N,) of each candidate on each scan, with nothing fitted on the scan's inner fold."""
    candidates: list[Chosen] = [name for name in MEMBERS if name in inner.said]
    candidates += ["stack"] if len(candidates) > 1 else []
    errors: dict[Chosen, Numbers] = {}
    for candidate in candidates:
        values = np.empty(len(inner.targets))
        for fold in np.unique(inner.folds):
            test = inner.folds == fold
            part = inner.where(test)
            values[test] = fit_chosen_number(inner.where(~test), candidate).values(part.said, part.covariates)
        errors[candidate] = (values - inner.targets) ** 2
    return errors


def _non_negative(columns: Numbers, targets: Numbers) -> list[float]:
    """Return the coefficients of least squares that are at least 0."""
    from scipy.optimize import nnls  # heavy, and predictions do without

    return [float(value) for value in nnls(columns, targets)[0]]


def cross_recalibrated(said: Numbers, targets: Numbers, folds: NDArray[np.int64]) -> Numbers:
    """Recalibrate each fold with the line of the others, (N,), for evaluation: no scan's own target has a part in it.

    Parameters
    ----------
    said, targets : ndarray, (N,) float64
        Out of fold.
    folds : ndarray, (N,) int64
    """
    values = np.empty(len(said))
    for fold in np.unique(folds):
        own = folds == fold
        values[own] = fitted_line(said[~own], targets[~own]).of(said[own])
    return values
