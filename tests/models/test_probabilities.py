"""Laws of calibrated probabilities and of novelty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainstage.models.calibration import (
    calibrated,
    cross_calibrated,
    fit_temperature,
    negative_log_likelihood,
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
