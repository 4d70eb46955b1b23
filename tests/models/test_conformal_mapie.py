"""Our prediction sets against MAPIE's: with one fold and with several; and what calibration does to errors."""

from __future__ import annotations

import numpy as np
import pytest
from mapie.classification import CrossConformalClassifier, SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit

from brainstage.models.calibration import calibrated, cross_calibrated
from brainstage.models.conformal import Scores, class_scores, p_values, set_members
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
def test_the_sets_of_one_fold_are_those_of_mapie(count, level):
    for seed in range(5):
        logits, targets = scans(count, seed)
        fresh = calibrated(scans(500, seed + 100)[0], 1.0)
        probabilities = calibrated(logits, 1.0)
        scores = class_scores(probabilities, targets, 0 * targets, np.arange(count))
        ours = set_members(np.stack([p_values(one[None], scores) for one in fresh]), [level] * CLASSES)
        assert np.array_equal(ours, sets_of_mapie(probabilities, targets, fresh, level))


@pytest.mark.parametrize(("count", "alpha"), [(90, 0.2), (200, 0.1), (300, 0.05)])
def test_the_comparisons_of_several_folds_are_those_of_mapie(count, alpha):
    """MAPIE has no classes within the several folds, so one class's scores stand for all scans.

    A class is in MAPIE's set from ``level (n - 1)`` scores as high on, and in ours from ``level (n + 1) - 1``: it is
    asked for the level at which it counts up to the same number.
    """
    generator = np.random.default_rng(count)
    for _ in range(3):
        targets = np.arange(count) % CLASSES
        values = generator.standard_normal((count, 4)) + 0.5 * targets[:, None]
        fresh = generator.standard_normal((200, 4)) + 0.5 * generator.integers(0, CLASSES, 200)[:, None]
        folds = generator.permutation(np.arange(count) % 5)
        models = [LogisticRegression().fit(values[folds != k], targets[folds != k]) for k in range(5)]
        own = np.stack([model.predict_proba(values) for model in models])[folds, np.arange(count)]
        pooled = Scores(score=1.0 - own[np.arange(count), targets], fold=folds, person=np.arange(count))
        said = np.stack([model.predict_proba(fresh) for model in models])
        p = np.stack([p_values(said[:, n], [pooled] * CLASSES) for n in range(200)])
        theirs = CrossConformalClassifier(
            LogisticRegression(),
            1.0 - int(np.floor(alpha * (count + 1) + 1e-9)) / (count - 1),
            conformity_score="lac",
            cv=PredefinedSplit(folds),
        ).fit_conformalize(values, targets)
        expected = theirs.predict_set(fresh, agg_scores="crossval")[1][:, :, 0]
        assert np.array_equal(set_members(p, [1.0 - alpha] * CLASSES), expected)
        assert 1.0 < expected.sum(axis=1).mean() < 2.5


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
