"""The head learns what is there, and nothing outside the training fold has a part in it."""

from __future__ import annotations

import numpy as np
import pytest

from brainstage.models.calibration import calibrated
from brainstage.models.cross_validation import cross_validate, leakage_warnings, random_label_control
from brainstage.models.learners import FrozenLearner
from brainstage.models.metrics import Estimate, evaluate
from brainstage.models.splits import fold_of_scans
from brainstage.models.training import HeadOptions, class_weights, rotate, train_head

CLASSES = ("CN", "MCI", "AD")


def cohort(scans=90, features=400, effect=1.5, seed=0):
    """Noise with a shift in the first 40 features that grows with the class."""
    generator = np.random.default_rng(seed)
    targets = np.arange(scans) % 3
    values = generator.standard_normal((scans, features)).astype(np.float32)
    values[:, :40] += effect * targets[:, None].astype(np.float32)
    return values, targets.astype(np.int64), [f"sub-{n}" for n in range(scans)]


def folds_of(targets, participants):
    return fold_of_scans([CLASSES[t] for t in targets], participants, folds=5, seed=0)


def cross_validated(values, targets, participants, folds, seed=0):
    learner = FrozenLearner(features=values, participants=participants, classes=3, options=HeadOptions())
    return cross_validate(learner, targets, folds, classes=3, seed=seed)


def test_planted_signal_is_found():
    values, targets, participants = cohort()
    run = cross_validated(values, targets, participants, folds_of(targets, participants))
    assert (run.logits.argmax(axis=1) == targets).mean() > 0.8


def test_rotation_is_exact():
    values, _, _ = cohort(scans=30)
    rotation = rotate(values)
    weight = np.random.default_rng(1).standard_normal((3, rotation.scores.shape[1])).astype(np.float32)
    standardised = (values - rotation.mean) / rotation.scale
    assert rotation.scores[:, 0].std() == pytest.approx(1, rel=1e-3)
    assert np.allclose(rotation.project(values), rotation.scores, atol=2e-3)
    assert np.allclose(standardised @ rotation.unrotate(weight).T, rotation.scores @ weight.T, atol=2e-3)


def test_scans_left_out_change_nothing_in_their_fold():
    values, targets, participants = cohort(scans=45)
    folds = folds_of(targets, participants)
    run = cross_validated(values, targets, participants, folds)
    altered = values.copy()
    altered[folds == 0] = 1000.0
    again = cross_validated(altered, targets, participants, folds)
    assert np.array_equal(run.models[0].head.weight, again.models[0].head.weight)
    assert not np.array_equal(run.models[1].head.weight, again.models[1].head.weight)


def test_training_stops_early_and_logs_both_phases():
    values, targets, participants = cohort(effect=0)
    options = HeadOptions(epochs=400, patience=10)
    _, rows = train_head(values, targets, participants, classes=3, options=options)
    searched = [row for row in rows if row.phase == "search"]
    fitted = [row for row in rows if row.phase == "final"]
    best = min(searched, key=lambda row: row.validation_loss)
    assert len(searched) == best.epoch + options.patience
    assert len(fitted) == best.epoch
    assert all(row.validation_loss is None for row in fitted)


def test_class_weights_make_classes_equal():
    targets = np.array([0] * 8 + [1] * 2)
    weights = class_weights(targets, 2, "weights")
    assert weights[0] * 8 == pytest.approx(weights[1] * 2)
    assert class_weights(targets, 2, "none").tolist() == [1, 1]


def test_constant_features_do_no_harm():
    values, targets, participants = cohort(scans=30)
    values[:, 100:] = 3.0
    head, _ = train_head(values, targets, participants, classes=3, options=HeadOptions(epochs=20))
    assert np.isfinite(head.logits(values)).all()
    unseen = values.copy()
    unseen[:, 100:] = 3.1
    assert np.abs(head.logits(unseen) - head.logits(values)).max() < 1.0


def test_random_labels_end_at_chance():
    values, targets, participants = cohort(scans=60)
    labels = [CLASSES[t] for t in targets]

    def refit(wanted, folds, seed, _):
        run = cross_validated(values, wanted, participants, folds, seed)
        return {"network": calibrated(run.logits, 1.0)}

    run = random_label_control(refit, labels, participants, CLASSES, folds=5, seed=0)["network"]
    assert run.draws == 5
    assert len(run.targets) == len(run.participants) == len(run.probabilities) == 5 * 60
    found = evaluate(run.probabilities, run.targets, run.participants, CLASSES, seed=0)
    accuracy = found.measures["balanced_accuracy"]
    assert accuracy.low <= 1 / 3 <= accuracy.high + 0.1
    assert not leakage_warnings(Estimate(value=0.6, low=0.5, high=0.7), {"network": accuracy}, 3)


def test_leakage_warnings_name_their_number_and_their_model():
    high, honest = Estimate(value=0.93, low=0.9, high=0.96), Estimate(value=0.5, low=0.3, high=0.6)
    chance = Estimate(value=0.33, low=0.3, high=0.36)
    assert "0.93" in leakage_warnings(high, {"network": honest}, 3)[0]
    (found,) = leakage_warnings(honest, {"network": chance, "linear baseline": high}, 3)
    assert "random labels" in found
    assert "with the linear baseline" in found
    assert (
        leakage_warnings(high, {"network": honest}, 2) == ()
    )  # two classes can honestly be told apart that well
