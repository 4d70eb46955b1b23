"""The linear baseline keeps what differs between classes, and finds it in its training fold alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from brainstage.models import baseline
from brainstage.models.baseline import SCREENED_LEAST, baseline_values, fit_baseline
from brainstage.models.cross_validation import cross_validate
from brainstage.models.member_learners import LinearLearner
from brainstage.models.metrics import auc
from brainstage.models.splits import fold_of_scans
from brainstage.pipeline.records import NetworkInput

PEOPLE, VALUES = 60, 24_000
NAMES = [f"sub-{n:02d}" for n in range(PEOPLE)]
TARGETS = np.arange(PEOPLE) % 2
INSIDE = np.ones((PEOPLE, VALUES), dtype=bool)


def cohort(effect: float = 0.0, places: slice = slice(0, 150), seed: int = 0) -> np.ndarray:
    """Make noise of which some values share an effect, and all of them a large common part."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((PEOPLE, VALUES)) + generator.standard_normal((PEOPLE, 1))
    values[:, places] += effect * TARGETS[:, None]
    return values.astype(np.float32)


def learner(values: np.ndarray, classes: int = 2) -> LinearLearner:
    return LinearLearner(values=values, inside=INSIDE, classes=classes, imbalance="weights")


def auc_of(values: np.ndarray, targets: np.ndarray = TARGETS, seed: int = 0) -> float:
    folds = fold_of_scans([str(t) for t in targets], NAMES, folds=5, seed=seed)
    logits = cross_validate(learner(values), targets, folds, classes=2, seed=seed).logits
    return float(auc(logits[:, 1] - logits[:, 0], targets == 1, np.ones((1, len(targets))))[0])


def test_an_effect_in_few_of_many_values_is_found(monkeypatch) -> None:
    values = cohort(effect=1.3)
    screened = auc_of(values)
    monkeypatch.setattr(baseline, "SCREENED_PART", 1.0)
    assert screened > 0.85
    assert screened > auc_of(values) + 0.1


def test_one_of_a_hundred_values_is_used_and_a_minimum_where_there_are_few() -> None:
    for count, used in ((VALUES, VALUES // 100), (3000, SCREENED_LEAST), (150, 150)):
        model = fit_baseline(cohort()[:, :count], INSIDE[:, :count], TARGETS, classes=2, imbalance="none")
        assert (model.weight[1] != 0).sum() == used
        assert model.weight.shape == (2, count)


def test_values_are_screened_in_the_training_fold_alone() -> None:
    values, folds = cohort(effect=1.0), np.arange(PEOPLE) // 2 % 5
    altered = values.copy()
    altered[folds == 0, 5000:6000] += 50.0 * TARGETS[folds == 0, None]  # what only the left-out scans show
    models, others = (
        cross_validate(learner(given), TARGETS, folds, classes=2, seed=0).models
        for given in (values, altered)
    )
    assert np.array_equal(models[0].weight, others[0].weight)
    assert not np.array_equal(models[1].weight, others[1].weight)


def test_labels_drawn_at_random_end_at_chance_although_values_are_chosen_by_them() -> None:
    found = [
        auc_of(cohort(seed=draw), np.random.default_rng(draw).permutation(TARGETS), draw)
        for draw in range(12)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_values_that_do_not_vary_are_left_out_in_silence() -> None:
    values = cohort(effect=1.0)
    values[:, 200:400] = 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit_baseline(values, INSIDE, TARGETS, classes=2, imbalance="weights")
    assert not model.weight[:, 200:400].any()
    assert np.isfinite(model.weight).all()


def test_blocks_outside_the_brain_of_most_scans_are_not_used() -> None:
    inside = INSIDE.copy()
    inside[: PEOPLE // 2 + 1, :150] = False
    model = fit_baseline(cohort(effect=2.0), inside, TARGETS, classes=2, imbalance="weights")
    assert not model.weight[:, :150].any()


def test_three_classes_are_told_apart_by_different_values() -> None:
    targets = np.arange(PEOPLE) % 3
    values = cohort()
    for label in range(3):
        values[:, 1000 * label : 1000 * label + 100] += 2.0 * (targets == label)[:, None]
    folds = fold_of_scans([str(t) for t in targets], NAMES, folds=5, seed=0)
    logits = cross_validate(learner(values, 3), targets, folds, classes=3, seed=0).logits
    assert (logits.argmax(axis=1) == targets).mean() > 0.8


def test_the_baseline_sees_blocks_first_and_then_local_volume() -> None:
    generator = np.random.default_rng(0)
    given = NetworkInput(
        image=generator.standard_normal((1, 8, 8, 8)).astype(np.float32),
        brain_mask=np.ones((8, 8, 8), dtype=bool),
        voxel_to_ras=np.eye(4),
        local_volume=generator.standard_normal((3, 4, 5)).astype(np.float32),
    )
    values, inside = baseline_values(given)
    assert values.shape == inside.shape == (4**3 + 60,)
    assert values[0] == pytest.approx(given.image[0, :2, :2, :2].mean(), rel=1e-5)
    assert np.array_equal(values[64:], given.local_volume.ravel())
