"""Classes come out equal, and no scan that is held back is ever sampled from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.models import training
from brainstage.models.baseline import fit_baseline
from brainstage.models.choices import IMBALANCE
from brainstage.models.cross_validation import cross_validate
from brainstage.models.imbalance import resampled
from brainstage.models.learners import FrozenLearner
from brainstage.models.member_learners import LinearLearner
from brainstage.models.splits import fold_of_scans, inner_validation
from brainstage.models.training import HeadOptions, train_head
from brainstage.pipeline.errors import UsageError

SAMPLERS = ("oversample", "undersample", "smote")


def cohort(sizes=(60, 12), features=60, effect=1.0, seed=0):
    """Classes of different size, shifted apart in the first features."""
    generator = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    values = generator.standard_normal((len(targets), features)).astype(np.float32)
    values[:, :10] += effect * targets[:, None].astype(np.float32)
    names = [f"sub-{n}" for n in range(len(targets))]
    folds = fold_of_scans([str(t) for t in targets], names, folds=3, seed=0)
    return values, targets, names, folds


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 20), min_size=2, max_size=4),
    imbalance=st.sampled_from(SAMPLERS),
    seed=st.integers(0, 100),
)
def test_sampling_makes_classes_equal_and_keeps_to_the_given_scans(sizes, imbalance, seed):
    targets = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    scores = np.random.default_rng(seed).standard_normal((len(targets), 4)).astype(np.float32)
    found, wanted = resampled(scores, targets, imbalance, seed=seed)
    assert set(np.bincount(wanted)) == {min(sizes) if imbalance == "undersample" else max(sizes)}
    for name in range(len(sizes)):
        mine, given_ones = found[wanted == name], scores[targets == name]
        if imbalance == "smote":  # between two scans of the class, so never outside their range
            assert (mine >= given_ones.min(axis=0) - 1e-5).all()
            assert (mine <= given_ones.max(axis=0) + 1e-5).all()
        else:
            assert {tuple(row) for row in mine} <= {tuple(row) for row in given_ones}
    again = resampled(scores, targets, imbalance, seed=seed)
    assert np.array_equal(again[0], found)


@pytest.mark.parametrize("imbalance", ["none", "weights"])
def test_weights_change_no_scan(imbalance):
    values, targets, _, _ = cohort()
    found, wanted = resampled(values, targets, imbalance, seed=0)
    assert found is values
    assert wanted is targets


def test_smote_of_a_single_scan_says_what_to_do():
    with pytest.raises(UsageError, match="oversample or weights"):
        resampled(np.zeros((4, 2), dtype=np.float32), np.array([0, 0, 0, 1]), "smote", seed=0)


@pytest.mark.parametrize("imbalance", IMBALANCE)
def test_scans_left_out_change_nothing_in_their_fold(imbalance):
    values, targets, names, folds = cohort()
    altered = values.copy()
    altered[folds == 0] = 1000.0
    inside = np.ones(values.shape, dtype=bool)
    options = HeadOptions(imbalance=imbalance, epochs=20)
    heads, baselines = [], []
    for seen in (values, altered):
        network = FrozenLearner(features=seen, participants=names, classes=2, options=options)
        linear = LinearLearner(values=seen, inside=inside, classes=2, imbalance=imbalance)
        run = cross_validate(network, targets, folds, classes=2, seed=0)
        heads.append([model.head for model in run.models])
        baselines.append(cross_validate(linear, targets, folds, classes=2, seed=0).models)
    for first, second in (heads, baselines):
        assert np.array_equal(first[0].weight, second[0].weight)
        assert not np.array_equal(first[1].weight, second[1].weight)


@pytest.mark.parametrize("imbalance", SAMPLERS)
def test_scans_held_back_for_early_stopping_are_not_sampled_from(imbalance, monkeypatch):
    values, targets, names, _ = cohort()
    seen = []

    def spy(scores, wanted, kind, *, seed):
        seen.append((len(scores), tuple(np.bincount(wanted))))
        return resampled(scores, wanted, kind, seed=seed)

    monkeypatch.setattr(training, "resampled", spy)
    train_head(values, targets, names, classes=2, options=HeadOptions(imbalance=imbalance, epochs=5))
    held = inner_validation([str(t) for t in targets], names, seed=0)
    assert seen == [
        (n.sum(), tuple(np.bincount(targets[n]))) for n in (~held, np.ones(len(held), dtype=bool))
    ]


@pytest.mark.parametrize("imbalance", ["weights", *SAMPLERS])
def test_the_rare_class_is_found_where_without_treatment_it_is_missed(imbalance):
    values, targets, _, _ = cohort(sizes=(200, 10), effect=0.5)
    fresh, truth, _, _ = cohort(sizes=(300, 300), effect=0.5, seed=1)
    inside = np.ones(values.shape, dtype=bool)

    def sensitivity(kind):
        model = fit_baseline(values, inside, targets, classes=2, imbalance=kind)
        return float((model.logits(fresh).argmax(axis=1) == 1)[truth == 1].mean())

    assert sensitivity(imbalance) > sensitivity("none") + 0.1


@pytest.mark.parametrize("imbalance", SAMPLERS)
def test_heads_learn_from_sampled_scans(imbalance):
    values, targets, names, folds = cohort(sizes=(60, 18), effect=1.5)
    options = HeadOptions(imbalance=imbalance)
    learner = FrozenLearner(features=values, participants=names, classes=2, options=options)
    run = cross_validate(learner, targets, folds, classes=2, seed=0)
    hits = run.logits.argmax(axis=1) == targets
    assert min(hits[targets == 0].mean(), hits[targets == 1].mean()) > 0.7
    again = cross_validate(learner, targets, folds, classes=2, seed=0)
    assert np.array_equal(run.logits, again.logits)


@pytest.mark.parametrize("imbalance", SAMPLERS)
def test_features_that_never_vary_do_no_harm(imbalance):
    """Such are those of the mask-only control when all masks are the same."""
    _, targets, names, _ = cohort()
    values = np.ones((len(targets), 5), dtype=np.float32)
    head, _ = train_head(
        values, targets, names, classes=2, options=HeadOptions(imbalance=imbalance, epochs=5)
    )
    assert np.isfinite(head.logits(values)).all()
