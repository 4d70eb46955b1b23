"""What is measured out of fold is what is deployed: nothing of a scan has a part in what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from brainstage.models.choices import PREDICTORS
from brainstage.models.covariates import chosen_columns
from brainstage.models.cross_validation import (
    cross_validate,
    cross_validate_predictor,
    member_probabilities,
    random_label_control,
)
from brainstage.models.learners import FrozenLearner
from brainstage.models.member_learners import CovariateLearner, LinearLearner, VolumesLearner
from brainstage.models.metrics import evaluate
from brainstage.models.splits import fold_of_scans
from brainstage.models.training import HeadOptions
from brainstage.models.volume_model import scan_volumes

SCANS, FOLDS = 48, 4
CLASSES = ("CN", "AD")


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A cohort as its members see it."""

    targets: np.ndarray
    features: np.ndarray
    values: np.ndarray
    hippocampi: np.ndarray
    ages: np.ndarray

    @property
    def names(self) -> list[str]:
        return [f"sub-{n}" for n in range(len(self.targets))]

    def learners(self):
        scans = [
            scan_volumes({"grey_matter_pct_icv": float(volume)}, float(age), None)
            for volume, age in zip(self.hippocampi, self.ages, strict=True)
        ]
        return {
            "volumes": VolumesLearner(scans=scans, classes=2, imbalance="weights"),
            "linear": LinearLearner(
                values=self.values,
                inside=np.ones(self.values.shape, dtype=bool),
                classes=2,
                imbalance="weights",
            ),
            "network": FrozenLearner(
                features=self.features,
                participants=self.names,
                classes=2,
                options=HeadOptions(epochs=25, patience=5),
            ),
        }

    def covariates(self):
        rows = [{"age": f"{age:.3f}"} for age in self.ages]
        columns = chosen_columns(("age",), rows, ["age"])
        return CovariateLearner(columns=columns, rows=rows, classes=2, imbalance="weights")

    def fitted(self, folds, choice="auto", seed=0):
        """Cross-validate members, covariates, and the predictor over them."""
        nested = {
            name: cross_validate(learner, self.targets, folds, classes=2, seed=seed, name=name, pairs=True)
            for name, learner in self.learners().items()
        }
        columns = cross_validate(self.covariates(), self.targets, folds, classes=2, seed=seed, pairs=True)
        persons = np.arange(len(folds))
        predicted = cross_validate_predictor(
            nested, self.targets, folds, persons, choice, columns.nested_logits
        )
        return nested, columns, predicted

    def altered(self, chosen):
        """Other values and the other label, for some scans."""
        generator = np.random.default_rng(99)

        def other(array, shift):
            found = array.copy()
            found[chosen] = shift + generator.standard_normal(array[chosen].shape)
            return found

        return Data(
            targets=np.where(chosen, 1 - self.targets, self.targets),
            features=other(self.features, 5.0).astype(np.float32),
            values=other(self.values, -4.0).astype(np.float32),
            hippocampi=np.abs(other(self.hippocampi, 3.0)),
            ages=other(self.ages, 30.0),
        )


def data(effect=1.0, seed=0, scans=SCANS):
    generator = np.random.default_rng(seed)
    targets = (np.arange(scans) % 2).astype(np.int64)
    features = generator.standard_normal((scans, 30)).astype(np.float32)
    values = generator.standard_normal((scans, 300)).astype(np.float32)
    features[:, :5] += 0.5 * effect * targets[:, None].astype(np.float32)
    values[:, :20] += effect * targets[:, None].astype(np.float32)
    return Data(
        targets=targets,
        features=features,
        values=values,
        hippocampi=0.25 * np.exp(0.1 * generator.standard_normal(scans) - 0.1 * effect * targets),
        ages=generator.normal(70 + 3 * effect * targets, 7),
    )


def numbers_of(model):
    """Return every number of a fitted member as text that can be compared."""
    if hasattr(model, "model_dump_json"):
        return model.model_dump_json()
    head = getattr(model, "head", model)
    return head.weight.tobytes() + head.bias.tobytes()


@pytest.fixture(scope="module")
def folds():
    return np.arange(SCANS) // 2 % FOLDS


@pytest.fixture(scope="module")
def before(folds):
    return data().fitted(folds)


@pytest.mark.parametrize("fold", range(FOLDS))
def test_a_fold_has_no_part_in_its_models_weights_temperatures_or_choice(folds, before, fold):
    after = data().altered(folds == fold).fitted(folds)
    for name in before[0]:
        models = [found[0][name].models for found in (before, after)]
        assert numbers_of(models[0][fold]) == numbers_of(models[1][fold])
        assert numbers_of(models[0][fold - 1]) != numbers_of(models[1][fold - 1])
    assert before[1].models[fold] == after[1].models[fold]
    assert before[2].predictors[fold] == after[2].predictors[fold]
    assert before[2].predictors != after[2].predictors


@pytest.mark.parametrize("choice", [choice for choice in PREDICTORS if choice != "auto"])
def test_whatever_is_chosen_is_fitted_without_the_fold(folds, before, choice):
    persons = np.arange(SCANS)
    targets = data().targets
    other = data().altered(folds == 0)
    nested, columns, _ = other.fitted(folds, "volumes")
    first = cross_validate_predictor(before[0], targets, folds, persons, choice, before[1].nested_logits)
    second = cross_validate_predictor(nested, other.targets, folds, persons, choice, columns.nested_logits)
    assert first.predictors[0] == second.predictors[0]
    assert first.predictors[1] != second.predictors[1]


def test_an_inner_prediction_changes_with_neither_of_its_two_folds(folds, before):
    changed = {fold: data().altered(folds == fold).fitted(folds, "volumes")[:2] for fold in range(FOLDS)}

    def nested_of(found, name):
        return (found[1] if name == "covariates" else found[0][name]).nested_logits

    for name in (*before[0], "covariates"):
        kept = nested_of(before, name)
        for fold, found in changed.items():
            other = nested_of(found, name)
            for outer in range(FOLDS):
                for inner in range(FOLDS):
                    own = folds == inner
                    same = np.array_equal(kept[outer, own], other[outer, own])
                    if inner == fold:
                        continue  # these scans were altered themselves, so their logits are others
                    assert same is (outer == fold), (name, fold, outer, inner)


def test_of_altered_scans_the_labels_alone_change_nothing_that_is_said_about_them(folds, before):
    """Values stay: what a fold and a pair of folds say about their own scans rests on nobody's label there."""
    flipped = replace(data(), targets=np.where(folds == 1, 1 - data().targets, data().targets))
    nested, columns, predicted = flipped.fitted(folds)
    own = folds == 1
    for name, one in nested.items():
        assert np.array_equal(one.nested_logits[:, own], before[0][name].nested_logits[:, own])
        assert np.array_equal(one.logits[own], before[0][name].logits[own])
    assert np.array_equal(columns.nested_logits[:, own], before[1].nested_logits[:, own])
    assert np.array_equal(predicted.log_probabilities[own], before[2].log_probabilities[own])
    assert not np.array_equal(predicted.log_probabilities[~own], before[2].log_probabilities[~own])


def test_out_of_fold_are_the_logits_of_the_models_that_are_kept(folds, before):
    for name, learner in data().learners().items():
        found = before[0][name]
        assert len(found.models) == FOLDS
        assert found.nested_logits.shape == (FOLDS, SCANS, 2)
        for fold, model in enumerate(found.models):
            own = folds == fold
            assert np.array_equal(found.logits[own], learner.logits(model, own))
            assert np.array_equal(found.logits[own], found.nested_logits[fold, own])
    assert {row.fold for row in before[0]["network"].log} == set(range(FOLDS))


def test_without_pairs_the_models_of_single_folds_stand_in(folds, before):
    for name, learner in data().learners().items():
        found = cross_validate(learner, data().targets, folds, classes=2, seed=0, name=name)
        assert np.array_equal(found.logits, before[0][name].logits)
        assert (found.nested_logits == found.logits).all()


def test_what_the_predictor_says_is_put_together_from_its_fold_alone(folds, before):
    nested, columns, predicted = before
    members = member_probabilities(nested, predicted.predictors)
    for fold, one in enumerate(predicted.predictors):
        own = folds == fold
        logits = {name: found.logits[own] for name, found in nested.items()}
        said = one.log_probabilities(logits, columns.logits[own])
        assert np.allclose(predicted.log_probabilities[own], said)
        for name, log_probabilities in one.member_log_probabilities(logits).items():
            assert np.allclose(members[name][own], np.exp(log_probabilities))


def test_the_same_seed_gives_the_same(folds, before):
    again = data().fitted(folds)
    assert np.array_equal(again[2].log_probabilities, before[2].log_probabilities)
    assert again[2].predictors == before[2].predictors


def test_random_labels_end_at_chance_for_the_predictor_and_every_member():
    """Members that find a real effect find nothing in permuted labels, however the predictor is put together."""
    given = data(effect=1.5, scans=60)
    labels = [CLASSES[target] for target in given.targets]

    def refit(wanted, parts, seed, _):
        nested, _, predicted = replace(given, targets=wanted).fitted(parts, seed=seed)
        members = member_probabilities(nested, predicted.predictors)
        return {"predictor": np.exp(predicted.log_probabilities), **members}

    folds = fold_of_scans(labels, given.names, folds=FOLDS, seed=0)
    found = refit(given.targets, folds, 0, "")
    runs = random_label_control(refit, labels, given.names, CLASSES, folds=FOLDS, seed=0, draws=4)
    assert set(runs) == set(found) == {"predictor", "volumes", "linear", "network"}

    def accuracy(probabilities, targets, participants):
        return evaluate(probabilities, targets, participants, CLASSES, seed=0).measures["balanced_accuracy"]

    for name, run in runs.items():
        assert accuracy(found[name], given.targets, given.names).low > 0.5, name
        reached = accuracy(run.probabilities, run.targets, run.participants)
        assert reached.low <= 0.5, (name, reached)
        assert reached.value == pytest.approx(0.5, abs=0.12), (name, reached)
