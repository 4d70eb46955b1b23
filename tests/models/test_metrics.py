"""With weights of one every measure is scikit-learn's; the interval is over participants."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from brainstage.models.calibration import calibrated
from brainstage.models.metrics import auc, bootstrap_weights, evaluate

CLASSES = ("CN", "MCI", "AD")


@pytest.fixture(scope="module")
def predictions():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 150)
    logits = generator.standard_normal((150, 3)) + np.eye(3)[targets]
    return np.round(calibrated(logits, 1.0), 2), targets


@pytest.fixture(scope="module")
def measures(predictions):
    probabilities, targets = predictions
    return evaluate(probabilities, targets, [f"sub-{n}" for n in range(150)], CLASSES, seed=0).measures


def test_measures_equal_scikit_learns(predictions, measures):
    probabilities, targets = predictions
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(targets, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(targets, predicted),
        "f1": reference.f1_score(targets, predicted, average="macro"),
        "mcc": reference.matthews_corrcoef(targets, predicted),
        "sensitivity_MCI": reference.recall_score(targets == 1, predicted == 1),
        "specificity_MCI": reference.recall_score(targets != 1, predicted != 1),
        "auc_AD": reference.roc_auc_score(targets == 2, probabilities[:, 2]),
        "brier": np.mean(((probabilities - np.eye(3)[targets]) ** 2).sum(axis=1)),
    }
    for name, value in expected.items():
        assert measures[name].value == pytest.approx(value), name


def test_intervals_hold_the_value(measures):
    for name, found in measures.items():
        if name != "ece":  # biased upwards in every resample
            assert found.low <= found.value <= found.high, name


def test_weighted_auc_equals_scikit_learns_with_ties():
    generator = np.random.default_rng(1)
    scores, positive = np.round(generator.random(60), 1), generator.random(60) < 0.4
    weights = generator.integers(0, 3, (1, 60)).astype(float)
    expected = reference.roc_auc_score(positive, scores, sample_weight=weights[0])
    assert auc(scores, positive, weights)[0] == pytest.approx(expected)


def test_participants_are_drawn_whole():
    weights = bootstrap_weights(["a", "a", "b", "c", "c", "c"], samples=20, seed=0)
    assert (weights[0] == 1).all()
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 5])
    assert (weights[1:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_many_scans_of_few_people_widen_the_interval():
    generator = np.random.default_rng(2)
    targets = np.repeat(generator.integers(0, 2, 30), 10)
    right = np.repeat(generator.random(30) < 0.7, 10)
    probabilities = np.eye(2)[np.where(right, targets, 1 - targets)]
    apart = evaluate(probabilities, targets, [str(n) for n in range(300)], ("A", "B"), seed=0)
    whole = evaluate(probabilities, targets, [str(n // 10) for n in range(300)], ("A", "B"), seed=0)
    width = [e.measures["accuracy"].high - e.measures["accuracy"].low for e in (apart, whole)]
    assert width[1] > 2 * width[0]


def test_a_class_without_scans_is_undefined_not_zero():
    found = evaluate(np.array([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 0]), ["a", "b"], ("A", "B"), seed=0)
    assert np.isnan(found.measures["auc_A"].value)
    assert np.isnan(found.measures["sensitivity_B"].value)
    assert found.measures["balanced_accuracy"].value == 1.0
