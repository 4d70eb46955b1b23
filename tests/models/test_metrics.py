"""With weights of one every measure is scikit-learn's; the interval is over participants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from brainstage.models.calibration import calibrated
from brainstage.models.metrics import auc, average_precision, bootstrap_weights, evaluate, proportion

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
        "average_precision_AD": reference.average_precision_score(targets == 2, probabilities[:, 2]),
        "average_precision": reference.average_precision_score(np.eye(3)[targets], probabilities),
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


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25).filter(
        lambda scans: {up for _, up, weight in scans if weight} == {True, False}
    )
)
def test_weighted_average_precision_equals_scikit_learns_with_ties(scans):
    tenths, positive, drawn = (np.array(values) for values in zip(*scans, strict=True))
    weights = np.stack([np.ones(len(drawn)), drawn]).astype(float)
    found = average_precision(tenths / 10, positive, weights)
    for row, value in zip(weights, found, strict=True):
        expected = reference.average_precision_score(positive, tenths / 10, sample_weight=row)
        assert value == pytest.approx(expected)


def test_average_precision_is_undefined_where_a_sample_holds_one_class():
    scores, positive = np.array([0.1, 0.8, 0.4]), np.array([False, True, True])
    weights = np.array([[1.0, 1, 1], [2, 0, 0], [0, 1, 1]])
    assert np.isnan(average_precision(scores, positive, weights)).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (9, 10, 0.5550, 0.9975), (81, 90, 0.8186, 0.9532)],
)
def test_exact_interval_of_a_proportion(hits, trials, low, high):
    found = proportion(hits, trials)
    assert (found.value, found.low, found.high) == pytest.approx((hits / trials, low, high), abs=5e-5)
    beta = [stats.beta.ppf(0.025, hits, trials - hits + 1), stats.beta.ppf(0.975, hits + 1, trials - hits)]
    assert [found.low, found.high] == pytest.approx(
        [0.0 if hits == 0 else beta[0], 1.0 if hits == trials else beta[1]]
    )


def test_a_proportion_of_nothing_is_undefined():
    assert np.isnan(proportion(0, 0).value)


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
