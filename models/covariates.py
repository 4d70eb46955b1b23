"""What age, sex and other columns of a table say about the class, and how that is joined with what the image says.

Two experts that err independently are joined by multiplying what they say and dividing by the prior that both have
learnt (a product of experts; Hinton 2002, doi:10.1162/089976602760128018). The expert on covariates is a logistic
regression of plain numbers, which stand in ``model.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import log_softmax

from brainstage.models.linear_fit import fit_number
from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.tables import number_or_none

Row = Mapping[str, str | None]
"""One scan's values by column, as text; None where unknown."""

MAX_LEVELS: Final = 20
"""A text column with more values than this holds names or remarks."""
_NUMBERS: Final = ("age",)
_TEXTS: Final = ("sex", "site")
_SEXES: Final = {"f": "F", "female": "F", "m": "M", "male": "M"}
_INVERSE_PENALTY: Final = 1.0
"""scikit-learn's C, on standardised columns; fixed, so nothing is chosen on a fold."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Column(_Part):
    """A column, and whether its values are numbers or names."""

    name: str
    kind: Literal["number", "text"]


class NumberColumn(_Part):
    """A column of numbers, as the training fold had it."""

    name: str
    mean: float
    scale: float = Field(gt=0)

    def design(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return the standardised value, 0 where it is unknown, and whether it is unknown: (N, 2)."""
        values = np.array([_number(row, self.name) for row in rows], dtype=np.float64)
        unknown = np.isnan(values)
        return np.column_stack([np.where(unknown, 0.0, (values - self.mean) / self.scale), unknown])


class TextColumn(_Part):
    """A column of names, as the training fold had it: the levels that occurred, and the part of scans with each."""

    name: str
    levels: tuple[str, ...]
    parts: tuple[float, ...]

    @model_validator(mode="after")
    def _of_one_piece(self) -> TextColumn:
        if len(self.levels) != len(self.parts):
            raise ValueError(f"{len(self.levels)} levels have {len(self.parts)} parts")
        return self

    def design(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return one column for each level, their parts where the value is unknown or new, and whether it is."""
        values = [text_of(row, self.name) for row in rows]
        known = np.array([[float(value == level) for level in self.levels] for value in values])
        unknown = known.sum(axis=1, keepdims=True) == 0
        return np.column_stack([np.where(unknown, np.array(self.parts), known), unknown.astype(np.float64)])


class CovariateExpert(_Part):
    """A multinomial logistic regression on covariates, fitted in one training fold.

    Attributes
    ----------
    columns : tuple
    weight : tuple of tuple of float
        (C, D): a row for each class, over the columns' design.
    bias : tuple of float
        (C,).
    log_prior : tuple of float
        (C,): of the classes as the expert has learnt them.
    """

    columns: tuple[NumberColumn | TextColumn, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    log_prior: tuple[float, ...]

    @model_validator(mode="after")
    def _of_one_piece(self) -> CovariateExpert:
        width = sum(_width(column) for column in self.columns)
        if {len(self.weight), len(self.log_prior)} != {len(self.bias)} or {
            len(row) for row in self.weight
        } != {width}:
            raise ValueError("weight, bias and log_prior do not fit each other and the columns")
        return self

    def log_probabilities(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return log p(class | covariates), (N, C)."""
        design = np.column_stack([column.design(rows) for column in self.columns])
        return np.asarray(log_softmax(design @ np.array(self.weight).T + np.array(self.bias), axis=1))

    def evidence(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return what is added to a network's logits, (N, C): the log-probabilities without the prior."""
        return np.asarray(self.log_probabilities(rows) - np.array(self.log_prior))

    def misses(self, row: Row) -> bool:
        """Tell whether any value is unknown, or one that the training fold did not have."""
        return bool(any(column.design([row])[0, -1] for column in self.columns))


class CovariateNumber(_Part):
    """A ridge regression of a number on covariates, fitted in one training fold.

    Attributes
    ----------
    columns : tuple
    weight : tuple of float
        (D,): over the columns' design.
    bias : float
    """

    columns: tuple[NumberColumn | TextColumn, ...]
    weight: tuple[float, ...]
    bias: float

    @model_validator(mode="after")
    def _of_one_piece(self) -> CovariateNumber:
        if len(self.weight) != sum(_width(column) for column in self.columns):
            raise ValueError("weight does not fit the columns")
        return self

    def values(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return the number that covariates alone say, (N,)."""
        design = np.column_stack([column.design(rows) for column in self.columns])
        return np.asarray(design @ np.array(self.weight) + self.bias)

    def misses(self, row: Row) -> bool:
        """Tell whether any value is unknown, or one that the training fold did not have."""
        return bool(any(column.design([row])[0, -1] for column in self.columns))


def chosen_columns(names: Sequence[str], rows: Sequence[Row], known: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns asked for, and tell numbers from names.

    Age is a number, sex and site are names; any other column holds numbers when most of its values are.

    Parameters
    ----------
    names : sequence of str
    rows : sequence of mapping
        Of all scans to learn from.
    known : sequence of str
        The columns that may be asked for.

    Raises
    ------
    UsageError
        For a column that is not there, is empty, or mixes numbers and text.
    """
    if len(set(names)) != len(names):
        raise UsageError(f"--covariates {' '.join(names)}: a column stands there twice")
    return tuple(_chosen(name, rows, known) for name in names)


def fit_expert(
    columns: Sequence[Column],
    rows: Sequence[Row],
    targets: NDArray[np.int64],
    *,
    classes: int,
    imbalance: str,
) -> CovariateExpert:
    """Fit an L2-penalised logistic regression on the covariates of one training fold.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of mapping
        N scans.
    targets : ndarray, (N,) int64
    imbalance : str
        With all but ``none`` the classes are weighted to count the same, and the prior is uniform.
    """
    from sklearn.linear_model import LogisticRegression  # heavy, and every run looks for covariates

    fitted = _fitted_columns(columns, rows)
    design = np.column_stack([column.design(rows) for column in fitted])
    balanced = imbalance != "none"
    model = LogisticRegression(
        C=_INVERSE_PENALTY, class_weight="balanced" if balanced else None, max_iter=1000
    ).fit(design, targets)
    weight, bias = model.coef_, model.intercept_
    if classes == 2:  # scikit-learn gives one row for two classes
        weight, bias = np.vstack([0 * weight, weight]), np.r_[0, bias]
    counts = np.bincount(targets, minlength=classes)
    prior = np.full(classes, 1 / classes) if balanced else counts / counts.sum()
    return CovariateExpert(
        columns=fitted,
        weight=tuple(tuple(map(float, row)) for row in weight),
        bias=tuple(map(float, bias)),
        log_prior=tuple(map(float, np.log(prior))),
    )


def fit_covariate_number(
    columns: Sequence[Column], rows: Sequence[Row], targets: NDArray[np.float64]
) -> CovariateNumber:
    """Fit a ridge regression of a number on the covariates of one training fold.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of mapping
        N scans.
    targets : ndarray, (N,) float64
    """
    fitted = _fitted_columns(columns, rows)
    weight, bias = fit_number(np.column_stack([column.design(rows) for column in fitted]), targets)
    return CovariateNumber(columns=fitted, weight=tuple(map(float, weight)), bias=bias)


def text_of(row: Row, name: str) -> str | None:
    """Return a value as text; the sexes under one spelling.

    >>> text_of({"sex": "female"}, "sex"), text_of({"site": "female"}, "site"), text_of({}, "sex")
    ('F', 'female', None)
    """
    value = row.get(name) or None
    return _SEXES.get(value.lower(), value) if value and name == "sex" else value


def _width(column: NumberColumn | TextColumn) -> int:
    """Return how many columns a column's design has."""
    return len(column.levels) + 1 if isinstance(column, TextColumn) else 2


def _fitted_columns(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[NumberColumn | TextColumn, ...]:
    return tuple(
        _number_column(column.name, rows) if column.kind == "number" else _text_column(column.name, rows)
        for column in columns
    )


def _number(row: Row, name: str) -> float:
    value = number_or_none(row.get(name))
    return float("nan") if value is None else value


def _chosen(name: str, rows: Sequence[Row], known: Sequence[str]) -> Column:
    if name not in known:
        raise UsageError(
            f"--covariates: data_manifest.csv has no column {name!r} that a model may use; it has {', '.join(known)}"
        )
    values = [value for row in rows if (value := row.get(name))]
    if not values:
        raise UsageError(f"--covariates: the column {name!r} is empty for every scan that is learnt from")
    strange = [value for value in values if number_or_none(value) is None]
    if name in _NUMBERS or (name not in _TEXTS and 2 * len(strange) < len(values)):
        if strange:
            raise UsageError(
                f"--covariates: the column {name!r} holds numbers, but also {strange[0]!r}; correct it or leave it "
                f"empty, or choose among {', '.join(known)}"
            )
        return Column(name=name, kind="number")
    levels = {text_of(row, name) for row in rows} - {None}
    if len(levels) > MAX_LEVELS:
        raise UsageError(
            f"--covariates: the text column {name!r} has {len(levels)} different values, more than the {MAX_LEVELS} "
            f"that can be learnt as groups; numbers are expected there, or choose among {', '.join(known)}"
        )
    return Column(name=name, kind="text")


def _number_column(name: str, rows: Sequence[Row]) -> NumberColumn:
    values = np.array([_number(row, name) for row in rows], dtype=np.float64)
    known = values[~np.isnan(values)]
    spread = float(known.std()) if known.size else 0.0
    return NumberColumn(name=name, mean=float(known.mean()) if known.size else 0.0, scale=spread or 1.0)


def _text_column(name: str, rows: Sequence[Row]) -> TextColumn:
    values = [value for row in rows if (value := text_of(row, name)) is not None]
    levels = tuple(sorted(set(values)))
    return TextColumn(
        name=name, levels=levels, parts=tuple(values.count(level) / len(values) for level in levels)
    )
