"""Tuning moves what it should and nothing else, helps where it can, and goes on where it was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from brainstage.models import fine_tuning
from brainstage.models.cross_validation import cross_validate
from brainstage.models.features import FeatureExtractor
from brainstage.models.fine_tuning import (
    TuneOptions,
    fine_tune,
    mixed_precision,
    trained_keys,
    tuned_extractor,
)
from brainstage.models.learners import FrozenLearner, TuningLearner
from brainstage.models.splits import validation_part
from brainstage.models.training import HeadOptions, train_head
from brainstage.models.weights import load_weights
from brainstage.pipeline.errors import InferenceError

PARTICIPANTS = [f"sub-{n:02d}" for n in range(20)]
TARGETS = np.arange(20, dtype=np.int64) % 2


def extractor():
    loaded = load_weights("random", seed=0)
    return FeatureExtractor(loaded.network, loaded.source)


def cohort(seed=0):
    """Noise with stripes in class 1 that are as bright on average."""
    generator = np.random.default_rng(seed)
    images = generator.standard_normal((20, 1, 32, 32, 32)).astype(np.float32)
    images[TARGETS == 1, :, ::4] += 1.5
    images[TARGETS == 1, :, 2::4] -= 1.5
    return images


def features_of(base, images):
    return np.concatenate([base.features_of_images(image[None]) for image in images])


def starts(base, images):
    features = features_of(base, images)
    held = validation_part(TARGETS, PARTICIPANTS, seed=0)
    names = np.array(PARTICIPANTS)
    inner, _ = train_head(
        features[~held], TARGETS[~held], names[~held].tolist(), classes=2, options=HeadOptions()
    )
    whole, _ = train_head(features, TARGETS, PARTICIPANTS, classes=2, options=HeadOptions())
    return inner, whole


def tuned(options, images=None, **more):
    base = extractor()
    images = cohort() if images is None else images
    start = starts(base, images)
    result = fine_tune(base, start, images, TARGETS, PARTICIPANTS, classes=2, options=options, **more)
    return base, start, *result


@pytest.mark.parametrize(
    ("regime", "first"),
    [("head+last", {"layer4"}), ("full", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})],
)
def test_each_regime_trains_its_stages(regime, first):
    network = extractor().network
    assert {key.partition(".")[0] for key in trained_keys(network, regime)} == first


@pytest.mark.parametrize("regime", ["head+last", "full"])
def test_tuning_lowers_the_validation_loss_and_touches_only_its_stages(regime):
    options = TuneOptions(regime=regime, epochs=4, augment=("noise",))
    base, _, found, rows = tuned(options)
    before = {key: value.clone() for key, value in extractor().network.state_dict().items()}
    assert all(torch.equal(value, base.network.state_dict()[key]) for key, value in before.items())
    assert set(found.state) == set(trained_keys(base.network, regime))
    assert any(not torch.equal(value, before[key]) for key, value in found.state.items())
    losses = [row.validation_loss for row in rows]
    assert [row.epoch for row in rows] == list(range(len(rows)))
    assert min(losses[1:]) < losses[0]
    held = validation_part(TARGETS, PARTICIPANTS, seed=0)
    features = features_of(tuned_extractor(base, found.state), cohort())
    logits = torch.from_numpy(found.head.logits(features[held]))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(TARGETS[held])).item()
    assert loss == pytest.approx(min(losses), abs=2e-3)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bfloat16_computes_in_float16(monkeypatch, native, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert mixed_precision(torch.device("cuda")) == expected


def test_running_statistics_stay_what_they_were():
    base, _, found, _ = tuned(TuneOptions(regime="full", epochs=1))
    kept = base.network.state_dict()
    after = tuned_extractor(base, found.state).network.state_dict()
    statistics = [key for key in kept if "running" in key or "num_batches" in key]
    assert statistics
    assert not set(statistics) & set(found.state)
    assert all(torch.equal(kept[key], after[key]) for key in statistics)


def test_the_head_of_the_whole_fold_stands_where_tuning_does_not_help(monkeypatch):
    monkeypatch.setattr(fine_tuning, "HEAD_RATE", 1e3)  # every step leads astray
    _, start, found, rows = tuned(TuneOptions(regime="head+last", epochs=9, patience=2))
    assert found.state == {}
    assert found.head is start[1]
    assert len(rows) == 3


class CutError(Exception):
    """The process ended here."""


@pytest.mark.slow
def test_training_that_was_cut_short_ends_the_same(tmp_path):
    options = TuneOptions(regime="head+last", epochs=3, augment=("pose", "noise"))
    _, _, whole, rows = tuned(options)

    def cut(row):
        if row.epoch == 2:
            raise CutError

    with pytest.raises(CutError):
        tuned(options, checkpoint=tmp_path / "fold-0.pt", log=cut)
    heard = []
    _, _, resumed, again = tuned(options, checkpoint=tmp_path / "fold-0.pt", log=heard.append)
    assert [row.epoch for row in heard] == [2, 3]
    assert again == rows
    assert all(torch.equal(value, resumed.state[key]) for key, value in whole.state.items())
    assert np.array_equal(whole.head.weight, resumed.head.weight)


def test_a_damaged_checkpoint_costs_only_time(tmp_path):
    options = TuneOptions(regime="head+last", epochs=1)
    (tmp_path / "fold-0.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    _, _, _, rows = tuned(options, checkpoint=tmp_path / "fold-0.pt")
    assert [row.epoch for row in rows] == [0, 1]
    assert torch.load(tmp_path / "fold-0.pt", weights_only=True)["rows"][1]["epoch"] == 1


def test_images_that_are_not_finite_are_refused_in_words():
    images = cohort()
    base = extractor()
    start = starts(base, images)
    images[:, 0, 0, 0, 0] = np.inf
    with pytest.raises(InferenceError, match="--finetune frozen"):
        fine_tune(
            base, start, images, TARGETS, PARTICIPANTS, classes=2, options=TuneOptions(regime="head+last")
        )


@pytest.mark.parametrize(
    ("imbalance", "counts"),
    [("none", (9, 3)), ("weights", (9, 3)), ("oversample", (9, 9)), ("undersample", (3, 3))],
)
def test_an_epoch_holds_as_many_of_each_class_as_asked_for(imbalance, counts):
    targets = np.array([0] * 9 + [1] * 3, dtype=np.int64)
    options = TuneOptions(regime="full", imbalance=imbalance)
    orders = [fine_tuning._order(np.arange(12), targets, options, epoch) for epoch in (1, 2)]
    for order in orders:
        assert tuple(np.bincount(targets[order])) == counts
    assert not np.array_equal(*orders)
    if imbalance == "oversample":
        assert set(orders[0]) == set(range(12))


def test_what_is_drawn_more_often_has_no_weight_on_top():
    images, targets = cohort(), np.array([0] * 14 + [1] * 6, dtype=np.int64)
    base = extractor()
    features = features_of(base, images)
    head, _ = train_head(features, targets, PARTICIPANTS, classes=2, options=HeadOptions())
    losses = {}
    for imbalance in ("none", "weights", "oversample"):
        options = TuneOptions(regime="head+last", imbalance=imbalance, epochs=1)
        _, rows = fine_tune(base, (head, head), images, targets, PARTICIPANTS, classes=2, options=options)
        losses[imbalance] = rows[0].validation_loss
    assert losses["weights"] == pytest.approx(losses["oversample"])
    assert losses["weights"] != pytest.approx(losses["none"])


@pytest.mark.slow
def test_scans_left_out_have_no_part_in_their_fold():
    images, folds = cohort(), np.arange(20) // 2 % 3
    base = extractor()

    def run(images):
        frozen = FrozenLearner(
            features=features_of(base, images), participants=PARTICIPANTS, classes=2, options=HeadOptions()
        )
        learner = TuningLearner(
            frozen=frozen, base=base, images=images, options=TuneOptions(regime="head+last", epochs=1)
        )
        return cross_validate(learner, TARGETS, folds, classes=2, seed=0)

    altered = images.copy()
    altered[folds == 0] *= 50.0
    one, other = run(images), run(altered)
    assert np.array_equal(one.models[0].head.weight, other.models[0].head.weight)
    assert not np.array_equal(one.models[1].head.weight, other.models[1].head.weight)
    assert not np.array_equal(one.logits[folds == 0], other.logits[folds == 0])
