"""Laws of calibrated probabilities, prediction sets and novelty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainstage.models.calibration import (
    calibrated,
    combined,
    cross_calibrated,
    fit_temperature,
    negative_log_likelihood,
    uncalibrated,
)
from brainstage.models.conformal import (
    class_quantiles,
    conformal_quantile,
    cross_fitted_members,
    set_members,
)
from brainstage.models.cross_validation import cross_validate_novelty
from brainstage.models.novelty import fit_novelty, novelty_threshold


def overconfident(scans=600, seed=0):
    """Logits whose softmax is right on average, multiplied by four."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((scans, 3)) * 1.5
    targets = np.array([generator.choice(3, p=p) for p in calibrated(logits, 1.0)])
    return 4.0 * logits, targets.astype(np.int64)


@settings(max_examples=50, deadline=None)
@given(
    logits=arrays(np.float64, (5, 4), elements=st.floats(-500, 500)),
    temperature=st.floats(0.05, 20),
)
def test_probabilities_sum_to_one(logits, temperature):
    probabilities = calibrated(logits, temperature)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert probabilities.min() >= 0


def test_temperature_is_recovered_and_lowers_the_likelihood_loss():
    logits, targets = overconfident(scans=4000)
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(4, rel=0.1)
    assert negative_log_likelihood(logits, targets, temperature) < negative_log_likelihood(logits, targets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scans=st.integers(2, 30))
def test_calibration_never_raises_the_likelihood_loss_it_was_fitted_on(seed, scans):
    generator = np.random.default_rng(seed)
    logits, targets = generator.standard_normal((scans, 3)) * 3, generator.integers(0, 3, scans)
    temperature = fit_temperature(logits, targets)
    assert negative_log_likelihood(logits, targets, temperature) <= negative_log_likelihood(logits, targets)


def test_own_labels_have_no_part_in_cross_calibration():
    logits, targets = overconfident(scans=200)
    folds = np.arange(200) % 4
    other = targets.copy()
    other[folds == 2] = (other[folds == 2] + 1) % 3
    first, second = (cross_calibrated(logits, t, folds) for t in (targets, other))
    assert np.array_equal(first[folds == 2], second[folds == 2])
    assert not np.array_equal(first[folds == 0], second[folds == 0])


@pytest.mark.parametrize("scans", [9, 20, 101])
def test_conformal_sets_cover_each_class(scans):
    """Averaged over many draws, the finite-sample guarantee holds in every class, rare ones too."""
    generator = np.random.default_rng(scans)
    covered = []
    for _ in range(400):
        scores = generator.random((scans + 20, 2))
        quantiles = (
            conformal_quantile(scores[:scans, 0]),
            conformal_quantile(scores[: max(9, scans // 2), 1]),
        )
        covered.append((scores[scans:] <= quantiles).mean(axis=0))
    coverage = np.mean(covered, axis=0)
    assert (coverage > 0.885).all()
    assert (coverage < 0.9 + 1 / (scans // 2 + 1) + 0.03).all()


def test_too_few_scans_put_the_class_into_every_set():
    probabilities = np.array([[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 8)
    targets = np.array([0] * 20 + [1] * 8)
    quantiles = class_quantiles(probabilities, targets)
    assert math.isfinite(quantiles[0])
    assert math.isinf(quantiles[1])
    assert set_members(np.array([[1.0, 0.0]]), quantiles)[0, 1]


def test_coverage_of_cross_fitted_sets_is_near_nominal():
    logits, targets = overconfident(scans=1500)
    probabilities = calibrated(logits, 4.0)
    members = cross_fitted_members(probabilities, targets, np.arange(1500) % 5)
    for c in range(3):
        assert 0.85 <= members[targets == c, c].mean() <= 0.95


def test_novelty_flags_a_twentieth_of_the_training_distribution_and_all_that_is_strange():
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((10, 300))
    features = (generator.standard_normal((200, 10)) @ mixing + generator.standard_normal((200, 300))).astype(
        np.float32
    )
    scores, models = cross_validate_novelty(features, np.arange(200) % 5)
    threshold = novelty_threshold(scores)
    fresh = (generator.standard_normal((400, 10)) @ mixing + generator.standard_normal((400, 300))).astype(
        np.float32
    )
    flagged = np.mean([model.scores(fresh) for model in models], axis=0) > threshold
    assert 0.01 < flagged.mean() < 0.11
    strange = fresh + 3 * generator.standard_normal(fresh.shape).astype(np.float32)
    assert (models[0].scores(strange) > threshold).all()


def test_novelty_of_few_scans_is_finite():
    features = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    assert np.isfinite(fit_novelty(features).scores(features)).all()


@settings(max_examples=50, deadline=None)
@given(
    first=arrays(np.float64, (5, 3), elements=st.floats(-50, 50)),
    second=arrays(np.float64, (5, 3), elements=st.floats(-50, 50)),
)
def test_two_models_together_are_probabilities_that_depend_on_no_order(first, second):
    one, other = calibrated(first, 1.0), calibrated(second, 1.0)
    both = combined(one, other)
    assert np.allclose(both.sum(axis=1), 1)
    assert np.allclose(both, combined(other, one))
    assert np.allclose(both, calibrated(first + second, 2.0), atol=1e-9)


def test_a_model_together_with_itself_is_that_model():
    probabilities = calibrated(np.random.default_rng(0).standard_normal((20, 3)), 0.5)
    assert np.allclose(combined(probabilities, probabilities), probabilities)
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.allclose(combined(certain, certain), certain)


def test_independent_errors_average_out():
    generator = np.random.default_rng(0)
    targets = np.arange(600) % 2
    folds = np.arange(600) % 5
    both_logits = [
        (2.0 * targets[:, None] - 1) * np.array([-1.0, 1.0]) + 2 * generator.standard_normal((600, 2))
        for _ in range(2)
    ]
    alone = [cross_calibrated(logits, targets, folds) for logits in both_logits]
    losses = [-np.log(p[np.arange(600), targets]).mean() for p in (*alone, combined(*alone))]
    assert losses[2] < min(losses[:2])


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_logits_are_found_again_from_calibrated_probabilities(temperature):
    logits = np.random.default_rng(0).normal(0.0, 5.0, (40, 3))
    again = uncalibrated(calibrated(logits, temperature), temperature)
    assert np.allclose(calibrated(again, 1.0), calibrated(logits, 1.0), atol=1e-9)
