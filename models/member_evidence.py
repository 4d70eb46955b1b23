"""What the linear members of a model add to what is published about one scan, exact and in one unit.

The published log-probabilities are a weighted sum of the members' logits, each over its temperature and that of the
product. So the parts of a linear member add up, and those of several members stand beside each other: each is what it
adds to the logarithm of the published probability of a class, relative to the geometric mean over the classes. That
the folds are averaged changes nothing, for the mean of logarithms is what is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member
from brainstage.models.predictor import FoldPredictor
from brainstage.models.volume_model import MEASURES

if TYPE_CHECKING:
    from brainstage.models.model_store import ScanInputs, StoredModel


def member_factors(predictors: Sequence[FoldPredictor], member: Member) -> tuple[float, ...]:
    """Return by what the logits of a member are multiplied in each fold.

    Parameters
    ----------
    predictors : sequence of FoldPredictor
        Of the folds that answer.
    member : str
        Where it has no weight in any of them, its logits are those of its own calibrated probabilities.
    """
    if any(member in one.weights for one in predictors):
        return tuple(one.factor(member) for one in predictors)
    return tuple(1.0 / one.temperatures[member] for one in predictors)


def linear_contributions(
    model: StoredModel, values: NDArray[np.float32], site: str | None, label: str, folds: Sequence[int]
) -> NDArray[np.float64]:
    """Return what each value adds to a class through the linear member, beyond the mean of the training scans.

    Parameters
    ----------
    model : StoredModel
    values : ndarray, (V,) float32
        From :func:`~brainstage.models.baseline.baseline_values`.
    site : str or None
        Where the scan was taken, for models that take it out.
    label : str
    folds : sequence of int
        From ``StoredModel.folds_for``.

    Returns
    -------
    ndarray, (V,) float64
        0 for the values that are not used.
    """
    output = model.classes.index(label)
    factors = member_factors([model.description.predictor.folds[fold] for fold in folds], "linear")
    parts = [
        factor * model.baselines[fold].contributions(model.linear_values(values, site, fold), output)
        for fold, factor in zip(folds, factors, strict=True)
    ]
    return np.asarray(np.mean(parts, axis=0))


def volume_contributions(
    model: StoredModel, scan: ScanInputs, label: str, folds: Sequence[int]
) -> dict[str, float]:
    """Return what each volume adds to a class, beyond what is usual; empty where volumes have no weight.

    Parameters
    ----------
    model : StoredModel
    scan : ScanInputs
    label : str
    folds : sequence of int
        From ``StoredModel.folds_for``.

    Returns
    -------
    dict
        Measure to contribution, without those that are not known of the scan.
    """
    predictors = [model.description.predictor.folds[fold] for fold in folds]
    if not any("volumes" in one.weights for one in predictors):
        return {}
    output = model.classes.index(label)
    found = dict.fromkeys((name for name in MEASURES if scan.volumes.measures.get(name) is not None), 0.0)
    for fold, factor in zip(folds, member_factors(predictors, "volumes"), strict=True):
        added = model.volume_model(fold).contributions(model.volumes_of(scan, fold), output)
        for name in found:
            found[name] += factor * added.get(name, 0.0) / len(folds)
    return found
