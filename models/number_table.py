"""Who is in a cohort whose target is a number: how it is spread, over all and by sex and site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainstage.models.cohort_table import Association, Variable, cohort_table
from brainstage.models.covariates import text_of
from brainstage.models.splits import participant_means


@dataclass(frozen=True, kw_only=True)
class NumberRow:
    """Some participants, and their mean targets.

    Attributes
    ----------
    name : str
    participants, scans : int
    mean, sd, low, high : float
        Over participants; `sd` is 0 for one.
    """

    name: str
    participants: int
    scans: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """All participants, then those of each sex and site; and how far sex and site go together with the number."""

    rows: tuple[NumberRow, ...]
    associations: tuple[Association, ...]


def number_table(
    targets: NDArray[np.float64],
    participants: Sequence[str],
    *,
    sexes: Sequence[str | None],
    sites: Sequence[str | None],
) -> NumberTable:
    """Describe the participants of a cohort.

    Parameters
    ----------
    targets : ndarray, (N,) float64
        Of each scan; of several of a participant their mean counts.
    participants, sexes, sites : sequence
        Of each scan; None where unknown.
    """
    one_spelling = [text_of({"sex": sex}, "sex") for sex in sexes]
    rows = [_row("all", targets, participants)]
    associations = []
    known: tuple[tuple[Variable, Sequence[str | None]], ...] = (("sex", one_spelling), ("site", sites))
    for variable, values in known:
        for name in sorted({value for value in values if value}):
            chosen = [place for place, value in enumerate(values) if value == name]
            rows.append(_row(f"{variable} {name}", targets[chosen], [participants[n] for n in chosen]))
        associations.append(_association(variable, values, targets, participants))
    return NumberTable(rows=tuple(rows), associations=tuple(associations))


def number_association_warnings(table: NumberTable, column: str) -> tuple[str, ...]:
    """Return a sentence for each of sex and site that goes together with the number.

    >>> found = Association(variable="site", participants=40, strength=0.5, p=0.001)
    >>> number_association_warnings(NumberTable(rows=(), associations=(found,)), "age")[0][:56]
    'Site and age go together (correlation ratio 0.50, p = 0.'
    """
    return tuple(
        f"{found.variable.capitalize()} and {column} go together (correlation ratio {found.strength:.2f}, "
        f"{f'p = {found.p:.2g}' if (found.p or 0) >= 1e-4 else 'p < 0.0001'}): a model can learn the {found.variable} "
        "instead."
        for found in table.associations
        if found.notable
    )


def _row(name: str, targets: NDArray[np.float64], participants: Sequence[str]) -> NumberRow:
    of_people = np.array(list(participant_means(targets, participants).values()))
    return NumberRow(
        name=name,
        participants=len(of_people),
        scans=len(targets),
        mean=float(of_people.mean()),
        sd=float(of_people.std(ddof=1)) if len(of_people) > 1 else 0.0,
        low=float(of_people.min()),
        high=float(of_people.max()),
    )


def _association(
    variable: Variable,
    values: Sequence[str | None],
    targets: NDArray[np.float64],
    participants: Sequence[str],
) -> Association:
    """Return how far a number differs between groups: what :func:`cohort_table` measures for age and classes."""
    places = [place for place, value in enumerate(values) if value]
    if not places:
        return Association(variable=variable, participants=0, strength=None, p=None)
    table = cohort_table(
        [str(values[place]) for place in places],
        [participants[place] for place in places],
        ages=[float(targets[place]) for place in places],
        sexes=[None] * len(places),
        sites=[None] * len(places),
    )
    (by_group,) = (found for found in table.associations if found.variable == "age")
    return Association(
        variable=variable, participants=by_group.participants, strength=by_group.strength, p=by_group.p
    )
