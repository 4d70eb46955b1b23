"""Our prediction sets against MAPIE's on the same scores, and what they promise on simulated scans."""

from __future__ import annotations

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from brainstage.models.calibration import calibrated, cross_calibrated, fit_temperature
from brainstage.models.conformal import class_quantiles, set_members
from brainstage.models.metrics import bootstrap_weights, expected_calibration_error

CLASSES = 3


class Probabilities(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose input is already its probabilities."""

    def __init__(self):
        self.classes_ = np.arange(CLASSES)
        self.is_fitted_ = True

    def fit(self, *_):
        return self

    def predict(self, probabilities):
        return probabilities.argmax(axis=1)

    def predict_proba(self, probabilities):
        return probabilities


def scans(count, seed, sharpness=1.0):
    """Logits whose softmax is right on average, multiplied; and the classes, the first twice as common as the last."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((count, CLASSES)) * 1.5 + np.log([2.0, 1.5, 1.0])
    drawn = (calibrated(logits, 1.0).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    return sharpness * logits, np.minimum(drawn, CLASSES - 1).astype(np.int64)


def sets_of_mapie(probabilities, targets, fresh, level):
    """Return MAPIE's sets with one conformal model for each class, fitted on the scans of that class."""
    members = np.zeros(fresh.shape, dtype=bool)
    for c in range(CLASSES):
        model = SplitConformalClassifier(Probabilities(), level, conformity_score="lac", prefit=True)
        own = targets == c
        model.conformalize(probabilities[own], targets[own])
        members[:, c] = model.predict_set(fresh)[1][:, c, 0]
    return members


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels:UserWarning")
@pytest.mark.parametrize(("count", "level"), [(60, 0.8), (200, 0.9), (1000, 0.95), (1000, 0.99)])
def test_the_sets_are_those_of_mapie(count, level):
    for seed in range(5):
        logits, targets = scans(count, seed)
        fresh = calibrated(scans(500, seed + 100)[0], 1.0)
        probabilities = calibrated(logits, 1.0)
        ours = set_members(fresh, class_quantiles(probabilities, targets, level))
        assert np.array_equal(ours, sets_of_mapie(probabilities, targets, fresh, level))


@pytest.mark.parametrize("count", [120, 600])
def test_each_class_is_covered_at_its_level_on_exchangeable_scans(count):
    """Calibrated on some scans, asked about others of the same kind, many times over."""
    covered = np.zeros(CLASSES)
    seen = np.zeros(CLASSES)
    for seed in range(60):
        logits, targets = scans(count, seed, sharpness=4.0)
        temperature = fit_temperature(*scans(300, seed + 1000, sharpness=4.0))
        quantiles = class_quantiles(calibrated(logits, temperature), targets)
        fresh, truth = scans(500, seed + 2000, sharpness=4.0)
        members = set_members(calibrated(fresh, temperature), quantiles)
        hits = members[np.arange(len(truth)), truth]
        covered += np.bincount(truth, weights=hits, minlength=CLASSES)
        seen += np.bincount(truth, minlength=CLASSES)
    assert ((covered / seen >= 0.85) & (covered / seen <= 0.95)).all(), covered / seen


def expected_error(probabilities, targets):
    """Return the expected calibration error of the data, and of 200 bootstrap samples."""
    weights = bootstrap_weights([str(n) for n in range(len(targets))], samples=200, seed=0)
    return expected_calibration_error(probabilities, targets, weights)


def test_calibration_lowers_the_error_of_overconfident_logits():
    for seed in range(5):
        logits, targets = scans(600, seed, sharpness=4.0)
        before = expected_error(calibrated(logits, 1.0), targets)
        after = expected_error(cross_calibrated(logits, targets, np.arange(600) % 5), targets)
        assert np.quantile(before - after, 0.025) > 0, (before[0], after[0])


@pytest.mark.parametrize("sharpness", [0.5, 1.0])
def test_calibration_does_not_make_logits_worse_that_are_right_or_too_careful(sharpness):
    for seed in range(5):
        logits, targets = scans(600, seed, sharpness=sharpness)
        before = expected_error(calibrated(logits, 1.0), targets)
        after = expected_error(cross_calibrated(logits, targets, np.arange(600) % 5), targets)
        assert np.quantile(after - before, 0.025) <= 0, (before[0], after[0])
