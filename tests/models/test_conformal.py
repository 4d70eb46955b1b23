"""What prediction sets promise, and whom a scan is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.models.calibration import calibrated
from brainstage.models.conformal import (
    LEVEL,
    Scores,
    attainable_level,
    class_scores,
    out_of_fold_p_values,
    p_values,
    set_members,
)

CLASSES = 3
COMMON = np.array([0.5, 0.3, 0.2])
"""Of the classes."""


def drawn_scans(count, generator):
    """Return what is measured of scans, two numbers, and the classes, of which one is rare."""
    targets = generator.choice(CLASSES, size=count, p=COMMON).astype(np.int64)
    centres = np.array([[0.0, 0.0], [1.6, 0.0], [0.8, 1.4]])
    return centres[targets] + generator.standard_normal((count, 2)), targets


def fitted_folds(values, targets, folds):
    """Fit a classifier without each fold, over-confident as those of few scans are; nearest means need no solver."""
    centres = []
    for fold in range(int(folds.max()) + 1):
        own = folds != fold
        centres.append([values[own & (targets == c)].mean(axis=0) for c in range(CLASSES)])
    return np.array(centres)


def said_by(centres, values):
    """Return the probabilities (K, N, C) of each fold."""
    distances = ((values[None, :, None] - centres[:, None]) ** 2).sum(axis=3)
    return np.stack([calibrated(-1.5 * one, 1.0) for one in distances])


def coverage(in_set, targets):
    hit = in_set[np.arange(len(targets)), targets]
    return np.array([hit[targets == c].mean() for c in range(CLASSES)])


@pytest.mark.parametrize("count", [60, 200])
def test_each_class_is_covered_out_of_fold_and_of_new_scans_through_all_folds(count):
    """Averaged over cohorts: what is promised of exchangeable scans, in every class, rare ones too."""
    generator = np.random.default_rng(count)
    out_of_fold, fresh = [], []
    for _ in range(60):
        values, targets = drawn_scans(count, generator)
        folds, persons = np.arange(count) % 5, np.arange(count)
        centres = fitted_folds(values, targets, folds)
        own = said_by(centres, values)[folds, np.arange(count)]
        scores = class_scores(own, targets, folds, persons)
        levels = [attainable_level(known.person) for known in scores]
        promised = np.array(levels)
        in_set = set_members(out_of_fold_p_values(own, targets, persons), levels)
        out_of_fold.append(coverage(in_set, targets) - promised)
        new, truth = drawn_scans(150, generator)
        said = said_by(centres, new)
        in_set = set_members(np.stack([p_values(said[:, n], scores) for n in range(150)]), levels)
        fresh.append(coverage(in_set, truth) - promised)
    for found in (out_of_fold, fresh):
        assert np.mean(found, axis=0).min() > -0.02, np.mean(found, axis=0)  # chance of 60 cohorts: 0.013
        assert np.mean(found, axis=0).max() < 0.06, np.mean(found, axis=0)


@pytest.mark.parametrize("scans", [9, 20, 101])
def test_the_guarantee_of_one_fold_is_exact_in_every_class(scans):
    """With exchangeable scores the coverage is ``ceil((n + 1) level) / (n + 1)``, in expectation."""
    generator = np.random.default_rng(scans)
    covered = []
    for _ in range(400):
        known = generator.random((scans, 2))
        nobody, one = np.zeros(scans, dtype=np.int64), np.arange(scans)
        scores = [Scores(score=known[:, c], fold=nobody, person=one) for c in range(2)]
        new = generator.random((20, 2))
        covered.append(np.mean([set_members(p_values(1 - row[None], scores), [LEVEL] * 2) for row in new]))
    exact = np.ceil((scans + 1) * LEVEL - 1e-9) / (scans + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=0.012)


@given(count=st.integers(1, 200), level=st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]))
@settings(max_examples=100, deadline=None)
def test_at_the_attainable_level_a_class_can_be_left_out_and_at_no_higher_tenth(count, level):
    persons = np.arange(count)
    found = attainable_level(persons, level)
    others = count - 1  # those whom a training scan is compared with
    lowest_p = 1 / (1 + others)
    assert 0.1 <= found <= level
    if others:
        assert not set_members(np.array([lowest_p]), [found])[0]
    higher = round(found + 0.1, 10)
    assert higher > level or set_members(np.array([lowest_p]), [higher])[0]


def test_the_scans_of_the_person_with_most_of_them_do_not_count_for_the_level():
    assert attainable_level(np.arange(10)) == 0.9
    assert attainable_level(np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 5])) == 0.8
    assert attainable_level(np.zeros(30, dtype=np.int64)) == 0.1  # nobody else to compare with
    assert attainable_level(np.zeros(0, dtype=np.int64)) == 0.1


def test_too_few_scans_put_the_class_into_every_set_at_nine_tenths_and_not_at_the_level_they_allow():
    probabilities = np.array([[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 8)
    targets, one = np.repeat([0, 1], [20, 8]), np.arange(28)
    scores = class_scores(probabilities, targets, 0 * one, one)
    p = p_values(np.array([[1.0, 0.0]]), scores)
    assert set_members(p, [LEVEL, LEVEL]).tolist() == [True, True]
    levels = [attainable_level(known.person) for known in scores]
    assert levels == [0.9, 0.8]
    assert set_members(p, levels).tolist() == [True, False]


def test_nobody_is_compared_with_the_own_person():
    """What the other scans of a person say, however odd, changes nothing about that person's sets."""
    generator = np.random.default_rng(0)
    values, targets = drawn_scans(90, generator)
    persons = np.arange(90) // 3
    targets = targets[persons * 3]
    said = said_by(fitted_folds(values, targets, persons % 5), values)[persons % 5, np.arange(90)]
    before = out_of_fold_p_values(said, targets, persons)
    altered = said.copy()
    altered[persons == 7] = [0.98, 0.01, 0.01]
    altered[21] = said[21]
    after = out_of_fold_p_values(altered, targets, persons)
    assert np.array_equal(before[21], after[21])
    assert not np.array_equal(before[persons != 7], after[persons != 7])
    # and the person's number is all that matters: not the place among the scans
    scores = class_scores(said, targets, np.zeros(90, dtype=np.int64), persons)
    assert np.array_equal(before[21], p_values(said[21][None], scores, without_person=7))
    fewer = persons != 7
    without = class_scores(said[fewer], targets[fewer], np.zeros(87, dtype=np.int64), persons[fewer])
    assert np.array_equal(before[21], p_values(said[21][None], without))


def test_a_new_scan_is_compared_fold_by_fold():
    """Hand-counted: each known score meets what its own fold says of the new scan."""
    scores = [Scores(score=np.array([0.3, 0.5, 0.6]), fold=np.array([0, 1, 1]), person=np.arange(3))]
    said = 1.0 - np.array([[0.4], [0.7]])  # scores of the new scan by fold 0 and fold 1
    assert p_values(said, scores)[0] == pytest.approx(1 / 4)  # 0.3 < 0.4, and 0.5 and 0.6 < 0.7
    assert p_values(said[::-1], scores)[0] == pytest.approx((1 + 2) / 4)  # 0.3 < 0.7, and 0.5 and 0.6 >= 0.4


@given(seed=st.integers(0, 1000), count=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_p_values_lie_above_zero_and_rise_with_the_probability(seed, count):
    generator = np.random.default_rng(seed)
    scores = [
        Scores(score=generator.random(count), fold=generator.integers(0, 3, count), person=np.arange(count))
        for _ in range(2)
    ]
    said = generator.random((3, 2))
    lower, higher = p_values(0.8 * said, scores), p_values(said, scores)
    assert (lower <= higher).all()
    assert (lower >= 1 / (count + 1) - 1e-12).all()
    assert (higher <= 1).all()


def test_a_set_may_be_empty_and_may_hold_all():
    assert set_members(np.array([0.05, 0.1]), [0.9, 0.9]).tolist() == [False, False]
    assert set_members(np.array([0.11, 1.0]), [0.9, 0.9]).tolist() == [True, True]
