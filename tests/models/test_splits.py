"""No participant is on two sides, whatever the cohort looks like."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.models.splits import fold_of_scans, inner_validation, participant_classes, shuffled_labels
from brainstage.pipeline.errors import UsageError


@st.composite
def cohorts(draw):
    """Two to four classes of 3 to 12 participants with one to three scans each, in any order."""
    scans = []
    for name in "ABCD"[: draw(st.integers(2, 4))]:
        for number in range(draw(st.integers(3, 12))):
            scans += [(name, f"sub-{name}{number}")] * draw(st.integers(1, 3))
    order = draw(st.permutations(scans))
    return [label for label, _ in order], [participant for _, participant in order]


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000))
def test_participants_stay_whole_and_classes_balanced(cohort, seed):
    labels, participants = cohort
    folds = fold_of_scans(labels, participants, folds=3, seed=seed)
    where = defaultdict(set)
    for participant, fold in zip(participants, folds, strict=True):
        where[participant].add(int(fold))
    assert all(len(found) == 1 for found in where.values())
    per_fold = Counter(
        (label, min(where[p])) for p, label in participant_classes(labels, participants).items()
    )
    for name in set(labels):
        counts = [per_fold[(name, fold)] for fold in range(3)]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1


@settings(max_examples=40, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000))
def test_inner_validation_keeps_participants_whole_and_every_class_on_both_sides(cohort, seed):
    labels, participants = cohort
    held = inner_validation(labels, participants, seed=seed)
    names, classes = np.array(participants), np.array(labels)
    assert not set(names[held]) & set(names[~held])
    assert set(classes[held]) == set(classes[~held]) == set(labels)


def test_same_seed_same_folds_and_order_does_not_matter():
    labels, participants = ["A", "B"] * 10, [f"sub-{n}" for n in range(20)]
    folds = fold_of_scans(labels, participants, folds=5, seed=1)
    assert np.array_equal(folds, fold_of_scans(labels, participants, folds=5, seed=1))
    backwards = fold_of_scans(labels[::-1], participants[::-1], folds=5, seed=1)
    assert np.array_equal(folds, backwards[::-1])
    assert not np.array_equal(folds, fold_of_scans(labels, participants, folds=5, seed=2))


def test_too_few_participants_say_what_to_do():
    labels, participants = ["A"] * 6 + ["B"] * 4, [f"sub-{n}" for n in range(10)]
    with pytest.raises(UsageError, match=r"'B' has 4: use --folds 4, or leave the class out"):
        fold_of_scans(labels, participants, folds=5, seed=0)


def test_one_class_or_two_folds_are_refused():
    with pytest.raises(UsageError, match="at least two classes"):
        fold_of_scans(["A"] * 5, [f"sub-{n}" for n in range(5)], folds=3, seed=0)
    with pytest.raises(UsageError, match="at least 3 folds"):
        fold_of_scans(["A", "B"] * 5, [f"sub-{n}" for n in range(10)], folds=2, seed=0)


def test_shuffled_labels_keep_the_class_sizes_and_one_label_for_each_participant():
    labels, participants = ["A", "A", "B", "B", "C", "C"], ["1", "1", "2", "2", "3", "3"]
    drawn = shuffled_labels(labels, participants, seed=5)
    assert Counter(drawn) == Counter(labels)
    assert all(drawn[i] == drawn[i + 1] for i in (0, 2, 4))
