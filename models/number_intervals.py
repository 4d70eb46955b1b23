"""Intervals around predicted numbers, from the errors that the folds made on scans that they had not seen (CV+).

Every training scan has a residual: how far off the one fold was that did not learn from its person. A new scan is
predicted by the same folds, and its interval is made of their values with the residuals of their own scans laid to
either side (Barber et al. 2021, doi:10.1214/20-AOS1965). Proven is a coverage of ``1 - 2 alpha`` for exchangeable
persons; what is found is close to ``1 - alpha``, and the coverage that was measured stands in the model card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROUNDING: Final = 1e-9
"""0.1 * 10 is less than 1 by an ulp in some orders."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Residuals:
    """Errors on training scans, out of fold.

    Attributes
    ----------
    residual : ndarray, (N,) float64
        Distances, at least 0.
    fold, person : ndarray, (N,) int64
        The fold that did not learn from the scan, and whose scan it is.
    """

    residual: NDArray[np.float64]
    fold: NDArray[np.int64]
    person: NDArray[np.int64]

    def of_others(self, person: int | None) -> Residuals:
        """Return those of all other persons."""
        others = self.person != person if person is not None else np.ones(len(self.person), dtype=np.bool_)
        return Residuals(residual=self.residual[others], fold=self.fold[others], person=self.person[others])


def interval(
    values: NDArray[np.float64], residuals: Residuals, level: float, *, without_person: int | None = None
) -> tuple[float, float]:
    """Return the ends of the interval of one scan.

    Parameters
    ----------
    values : ndarray, (K,) float64
        Predicted by each fold; ``(1,)`` for a training scan, by the fold that did not learn from it.
    residuals : Residuals
    level : float
        At most what :func:`~brainstage.models.conformal.attainable_level` gives for the residuals' persons.
    without_person : int, optional
        Whose residuals are left out: the scan's own.
    """
    known = residuals.of_others(without_person)
    centre = values[known.fold] if len(values) > 1 else np.broadcast_to(values, known.residual.shape)
    place = int(np.floor((1 - level) * (len(known.residual) + 1) + _ROUNDING))
    if place < 1:
        raise ValueError(f"{len(known.residual)} residuals are too few for intervals at {level:g}")
    low = np.sort(centre - known.residual)[place - 1]
    high = np.sort(centre + known.residual)[-place]
    return float(low), float(high)


def out_of_fold_intervals(
    values: NDArray[np.float64], residuals: Residuals, level: float
) -> NDArray[np.float64]:
    """Return the intervals (N, 2) of training scans, each from the residuals of all other persons.

    Parameters
    ----------
    values : ndarray, (N,) float64
        Out of fold.
    residuals : Residuals
        Of the same scans.
    level : float
    """
    width_of = {
        person: interval(np.zeros(1), residuals, level, without_person=person)[1]
        for person in np.unique(residuals.person).tolist()
    }
    width = np.array([width_of[person] for person in residuals.person.tolist()])
    return np.stack([values - width, values + width], axis=1)
