"""Laws of the predictor over a model's members: how it weighs, what it chooses, what it says."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from brainstage.models.calibration import calibrated, fit_temperature
from brainstage.models.choices import MEMBERS
from brainstage.models.predictor import (
    FoldPredictor,
    InnerPredictions,
    calibrated_log,
    candidate_losses,
    disagreement_goes_with_errors,
    fit_chosen,
    fit_predictor,
    mean_log_probabilities,
    stack_or_member,
    stack_weights,
)

CLASSES = 3


def inner(signals, scans=240, seed=0, persons=None):
    """Predictions of members whose logits carry the class as strongly as `signals` says, each with noise of its own."""
    generator = np.random.default_rng(seed)
    targets = (np.arange(scans) % CLASSES).astype(np.int64)
    logits = {
        name: strength * np.eye(CLASSES)[targets] + generator.standard_normal((scans, CLASSES))
        for name, strength in signals.items()
    }
    one = np.arange(scans) if persons is None else persons
    return InnerPredictions(logits=logits, targets=targets, folds=one // CLASSES % 4, persons=one)


def said_of(given):
    return {
        name: calibrated_log(logits, fit_temperature(logits, given.targets))
        for name, logits in given.logits.items()
    }


def loss_of(log_probabilities, targets):
    return float(-log_probabilities[np.arange(len(targets)), targets].mean())


# --- a stack


@settings(max_examples=30, deadline=None)
@given(
    signals=st.fixed_dictionaries({name: st.floats(-1.0, 6.0) for name in MEMBERS}),
    scans=st.integers(6, 60),
    seed=st.integers(0, 1000),
)
def test_weights_are_not_negative_and_sum_to_at_most_one(signals, scans, seed):
    predictor = fit_chosen(inner(signals, scans, seed), "stack")
    assert predictor.weights
    assert all(0 < weight <= 1 for weight in predictor.weights.values())
    assert sum(predictor.weights.values()) <= 1 + 1e-6


@pytest.mark.parametrize("noise", MEMBERS)
def test_a_member_of_noise_gets_next_to_no_weight(noise):
    for seed in range(5):
        given = inner({name: 0.0 if name == noise else 2.0 for name in MEMBERS}, seed=seed)
        weights = fit_chosen(given, "stack").weights
        assert weights.get(noise, 0.0) < 0.05
        assert min(weight for name, weight in weights.items() if name != noise) > 0.3


def test_two_copies_of_a_member_share_its_weight():
    given = inner({"volumes": 2.0, "linear": 2.0})
    copied = replace(given, logits=given.logits | {"network": given.logits["linear"]})
    weights = fit_chosen(copied, "stack").weights
    assert weights["linear"] == pytest.approx(weights["network"], abs=1e-3)
    alone = fit_chosen(given, "stack").weights
    assert weights["linear"] + weights["network"] == pytest.approx(alone["linear"], abs=0.05)


def test_neither_the_order_of_members_nor_their_names_change_what_is_fitted():
    given = inner({"volumes": 2.0, "linear": 2.3, "network": 2.6})
    backwards = replace(given, logits=dict(reversed(given.logits.items())))
    for choice in ("stack", "auto"):
        assert fit_predictor(backwards, choice) == fit_predictor(given, choice)
    other = dict(zip(("network", "volumes", "linear"), given.logits.values(), strict=True))
    first, second = (
        fit_chosen(given, "stack").weights,
        fit_chosen(replace(given, logits=other), "stack").weights,
    )
    assert len(first) == len(second) == 3
    assert [second[name] for name in ("network", "volumes", "linear")] == pytest.approx(
        [first[name] for name in ("volumes", "linear", "network")], abs=1e-3
    )


def test_the_order_of_scans_changes_nothing():
    given = inner({"volumes": 1.0, "linear": 2.0})
    mixed = np.random.default_rng(0).permutation(240)
    other = fit_predictor(given.where(mixed), "stack")
    first = fit_predictor(given, "stack")
    assert other.weights == pytest.approx(first.weights, abs=1e-3)
    assert other.temperatures == pytest.approx(first.temperatures, rel=1e-3)


def test_independent_errors_average_out_on_scans_that_nothing_was_fitted_on():
    for seed in range(5):
        signals = dict.fromkeys(MEMBERS, 1.5)
        predictor = fit_predictor(inner(signals, seed=seed), "stack")
        fresh = inner(signals, scans=900, seed=seed + 100)
        together = loss_of(predictor.log_probabilities(fresh.logits), fresh.targets)
        alone = predictor.member_log_probabilities(fresh.logits)
        assert together < min(loss_of(said, fresh.targets) for said in alone.values()) - 0.05


def test_the_pull_towards_equal_weights_is_strong_for_few_scans_and_none_for_many():
    for seed in range(5):
        given = inner({"volumes": 1.0, "linear": 2.0}, scans=30, seed=seed)
        apart = []
        for times in (1, 10, 100):
            said = {name: np.tile(found, (times, 1)) for name, found in said_of(given).items()}
            weights = stack_weights(said, np.tile(given.targets, times))
            apart.append(weights.get("linear", 0.0) - weights.get("volumes", 0.0))
        assert 0.0 < apart[0] <= apart[1] + 1e-3
        assert apart[1] <= apart[2] + 1e-3


def test_where_nothing_says_anything_the_stack_says_nothing_and_is_still_one():
    given = inner({"volumes": 0.0, "linear": 0.0, "network": 0.0}, scans=600)
    predictor = fit_chosen(given, "stack")
    assert sum(predictor.weights.values()) <= 1 + 1e-6
    assert np.exp(predictor.log_probabilities(given.logits)) == pytest.approx(1 / CLASSES, abs=0.1)


# --- what `auto` chooses


def test_of_equals_it_does_not_matter_who_takes_part():
    given = inner({"linear": 2.0})
    same = replace(given, logits=dict.fromkeys(MEMBERS, given.logits["linear"]))
    assert list(fit_predictor(same, "stack").weights.values()) == pytest.approx([1 / 3] * 3, abs=1e-3)
    said = [
        np.exp(fit_predictor(same, choice).log_probabilities(same.logits))
        for choice in ("auto", "stack", "linear")
    ]
    # a stack has a temperature of its own, which the prior leaves a little room
    assert said[0] == pytest.approx(said[1], abs=0.03)
    assert said[0] == pytest.approx(said[2], abs=0.03)


@pytest.mark.parametrize("best", MEMBERS)
def test_the_clearly_better_is_taken(best):
    """One member that knows nearly all, two that know nothing: alone, or with nearly all of the weight."""
    for seed in range(3):
        given = inner({name: 5.0 if name == best else 0.0 for name in MEMBERS}, seed=seed)
        predictor = fit_predictor(given, "auto")
        assert predictor.weights[best] > 0.9 * sum(predictor.weights.values())


def test_a_stack_is_taken_where_all_members_help():
    for seed in range(3):
        assert fit_predictor(inner(dict.fromkeys(MEMBERS, 1.5), seed=seed), "auto").chosen == "stack"


@settings(max_examples=15, deadline=None)
@given(
    signals=st.fixed_dictionaries({name: st.floats(0.0, 4.0) for name in MEMBERS}),
    seed=st.integers(0, 1000),
)
def test_what_is_taken_is_never_clearly_worse_than_the_best_member(signals, seed):
    """On scans that nothing was fitted on, whatever the members are worth."""
    predictor = fit_predictor(inner(signals, seed=seed), "auto")
    fresh = inner(signals, scans=1500, seed=seed + 5000)
    alone = predictor.member_log_probabilities(fresh.logits)
    best = min(loss_of(said, fresh.targets) for said in alone.values())
    assert loss_of(predictor.log_probabilities(fresh.logits), fresh.targets) < best + 0.03


def test_the_rule_of_two_standard_errors_counted_by_hand():
    persons = np.arange(4)
    losses = {
        "volumes": np.array([0.9, 1.1, 0.9, 1.1]),
        "network": np.array([1.9, 2.1, 1.9, 2.1]),
        "stack": np.array([1.05, 1.25, 0.85, 1.25]),
    }
    # the lead of the volumes over the stack: 0.15, 0.15, -0.05, 0.15: mean 0.1, standard error 0.1 / 2
    assert stack_or_member(losses, persons) == "stack"
    losses["stack"] = losses["stack"] + 0.001
    assert stack_or_member(losses, persons) == "volumes"
    del losses["stack"]
    assert stack_or_member(losses, persons) == "volumes"


def test_many_scans_of_one_person_count_as_one():
    noise = np.random.default_rng(0).standard_normal(30)
    together = 1.0 + np.arange(30) / 30
    lead = 0.04 + 0.15 * (noise - noise.mean()) / noise.std(
        ddof=1
    )  # two standard errors of 30 persons are 0.054
    once = {"network": together - lead, "stack": together}
    visits = {name: np.repeat(loss, 40) for name, loss in once.items()}
    assert stack_or_member(once, np.arange(30)) == "stack"
    assert stack_or_member(visits, np.repeat(np.arange(30), 40)) == "stack"
    assert stack_or_member(visits, np.arange(1200)) == "network"


def test_the_loss_of_a_candidate_rests_on_nothing_of_its_own_inner_fold():
    given = inner({"volumes": 1.0, "linear": 2.0})
    own = given.folds == 2
    flipped = replace(given, targets=np.where(own, (given.targets + 1) % CLASSES, given.targets))
    again = replace(flipped, targets=np.where(own, (given.targets + 2) % CLASSES, given.targets))
    losses = [candidate_losses(one) for one in (given, flipped, again)]
    assert set(losses[0]) == {"volumes", "linear", "stack"}
    for name in losses[0]:
        # the probabilities of the three labels, by predictors that saw none of them, sum to one
        assert sum(np.exp(-loss[name][own]) for loss in losses) == pytest.approx(1.0)
        assert not np.allclose(losses[0][name][~own], losses[1][name][~own])


# --- one member alone


@pytest.mark.parametrize("choice", ["linear", "auto", "stack"])
def test_a_predictor_over_one_member_is_that_member(choice):
    given = inner({"linear": 2.0})
    predictor = fit_predictor(given, choice)
    assert set(predictor.weights) == {"linear"}
    alone = calibrated(given.logits["linear"], fit_temperature(given.logits["linear"], given.targets))
    assert np.exp(predictor.log_probabilities(given.logits)) == pytest.approx(alone, abs=0.01)


@pytest.mark.parametrize("choice", MEMBERS)
def test_a_chosen_member_takes_part_alone_and_the_others_are_calibrated_all_the_same(choice):
    given = inner(dict.fromkeys(MEMBERS, 1.5))
    predictor = fit_predictor(given, choice)
    assert (predictor.chosen, predictor.weights) == (choice, {choice: 1.0})
    assert set(predictor.temperatures) == set(MEMBERS)
    others = {name: 0 * logits if name != choice else logits for name, logits in given.logits.items()}
    assert np.array_equal(predictor.log_probabilities(others), predictor.log_probabilities(given.logits))


# --- what it says


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 100.0),
    temperature=st.floats(0.05, 20.0),
    weights=st.lists(st.floats(0.02, 0.33), min_size=3, max_size=3),
)
def test_probabilities_sum_to_one_and_depend_on_no_order(seed, scale, temperature, weights):
    generator = np.random.default_rng(seed)
    logits = {name: scale * generator.standard_normal((6, CLASSES)) for name in MEMBERS}
    predictor = FoldPredictor(
        chosen="stack",
        temperatures=dict.fromkeys(MEMBERS, temperature),
        weights=dict(zip(MEMBERS, weights, strict=True)),
    )
    said = np.exp(predictor.log_probabilities(logits))
    assert said.sum(axis=1) == pytest.approx(np.ones(6))
    backwards = dict(reversed(logits.items()))
    assert np.exp(predictor.log_probabilities(backwards)) == pytest.approx(said)


def test_the_product_is_that_of_the_members_probabilities():
    generator = np.random.default_rng(0)
    logits = {name: generator.standard_normal((20, CLASSES)) for name in ("linear", "network")}
    predictor = FoldPredictor(
        chosen="stack",
        temperatures={"linear": 2.0, "network": 0.5},
        weights={"linear": 0.25, "network": 0.5},
        temperature=1.5,
    )
    product = calibrated(logits["linear"], 2.0) ** 0.25 * calibrated(logits["network"], 0.5) ** 0.5
    evidence = generator.standard_normal((20, CLASSES))
    for added in (None, evidence):
        powered = (product * (1.0 if added is None else np.exp(added))) ** (1 / 1.5)
        said = np.exp(predictor.log_probabilities(logits, added))
        assert said == pytest.approx(powered / powered.sum(axis=1, keepdims=True))
    # the same member twice, with weights that sum to one, is that member
    same = {"linear": logits["linear"], "network": logits["linear"]}
    twice = FoldPredictor(
        chosen="stack",
        temperatures=dict.fromkeys(same, 1.0),
        weights={"linear": 0.3, "network": 0.7},
    )
    assert np.exp(twice.log_probabilities(same)) == pytest.approx(calibrated(logits["linear"], 1.0))


def test_uncalibrated_is_without_any_temperature():
    given = inner(dict.fromkeys(MEMBERS, 8.0))
    predictor = fit_predictor(given, "linear")
    said = predictor.uncalibrated.log_probabilities(given.logits)
    assert np.exp(said) == pytest.approx(calibrated(given.logits["linear"], 1.0))
    assert predictor.uncalibrated.weights == predictor.weights


def test_evidence_of_covariates_moves_the_probabilities_and_is_calibrated_with_them():
    """Evidence that is four times too strong is taken back as far as the inner folds show it."""
    given = inner({"linear": 1.5}, scans=900)
    generator = np.random.default_rng(5)
    truth = 1.5 * np.eye(CLASSES)[given.targets] + generator.standard_normal((900, CLASSES))
    honest, loud = (fit_predictor(replace(given, evidence=k * truth), "linear") for k in (1.0, 6.0))
    assert loud.temperature > 1.5 * honest.temperature
    assert loud.temperatures == honest.temperatures
    alone = loss_of(honest.log_probabilities(given.logits), given.targets)
    assert loss_of(honest.log_probabilities(given.logits, truth), given.targets) < alone - 0.05


def test_folds_together_are_their_geometric_mean():
    folds = np.log(calibrated(np.random.default_rng(0).standard_normal((5, CLASSES)), 0.3))
    product = np.exp(folds).prod(axis=0) ** (1 / 5)
    assert np.exp(mean_log_probabilities(folds)) == pytest.approx(product / product.sum())
    assert np.exp(mean_log_probabilities(folds[:1])) == pytest.approx(np.exp(folds[0]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": {"network": 1.0}}, "names a member without a temperature"),
        ({"weights": {"linear": 0.7, "volumes": 0.7}}, "sum to more than 1"),
        ({"weights": {}}, "at least 1 item"),
        ({"weights": {"linear": 0.0}}, "greater than 0"),
        ({"temperatures": {"linear": 0.0, "volumes": 1.0}}, "greater than or equal to 0.05"),
        ({"temperature": float("nan")}, "finite number"),
        ({"chosen": "both"}, "'volumes', 'linear', 'network' or 'stack'"),
    ],
)
def test_a_predictor_that_contradicts_itself_is_refused(changes, says):
    whole = {
        "chosen": "stack",
        "temperatures": {"linear": 1.0, "volumes": 1.0},
        "weights": {"linear": 0.5, "volumes": 0.5},
    }
    found = FoldPredictor.model_validate(whole)
    assert FoldPredictor.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValidationError, match=says):
        FoldPredictor.model_validate(whole | changes)


# --- whether disagreement means anything


def table(disagreeing_wrong, disagreeing_right, agreeing_wrong, agreeing_right):
    wrong = [True] * disagreeing_wrong + [False] * disagreeing_right
    wrong += [True] * agreeing_wrong + [False] * agreeing_right
    disagreeing = np.arange(len(wrong)) < disagreeing_wrong + disagreeing_right
    return disagreeing, np.array(wrong, dtype=bool)


def test_disagreement_means_something_only_where_it_goes_with_errors_beyond_doubt():
    assert disagreement_goes_with_errors(*table(15, 15, 10, 60))
    assert not disagreement_goes_with_errors(*table(5, 15, 18, 62))
    assert not disagreement_goes_with_errors(*table(2, 2, 3, 7))
    assert not disagreement_goes_with_errors(*table(2, 28, 40, 30))  # wrong less often
    assert not disagreement_goes_with_errors(*table(0, 0, 20, 60))  # nobody disagrees
    assert not disagreement_goes_with_errors(*table(20, 60, 0, 0))
    assert not disagreement_goes_with_errors(*table(0, 30, 0, 60))  # nothing is wrong


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 12), min_size=4, max_size=4).filter(any))
def test_beyond_doubt_is_a_tail_of_the_hypergeometric_distribution(counts):
    a, b, c, d = counts
    wrong, disagreeing, scans = a + c, a + b, a + b + c + d
    tail = sum(
        comb(disagreeing, k) * comb(scans - disagreeing, wrong - k)
        for k in range(a, min(wrong, disagreeing) + 1)
    ) / comb(scans, wrong)
    assert disagreement_goes_with_errors(*table(*counts)) is (tail < 0.05)


def test_weights_are_those_of_the_lowest_loss():
    """No other weights on a grid predict better, but for the little pull towards equal ones."""
    given = inner({"volumes": 1.0, "linear": 2.0}, scans=600)
    said = said_of(given)
    found = stack_weights(said, given.targets)

    def loss(first, second):
        return loss_of(calibrated_log(first * said["volumes"] + second * said["linear"], 1.0), given.targets)

    grid = [(a, b) for a in np.linspace(0, 1, 41) for b in np.linspace(0, 1, 41) if a + b <= 1 + 1e-9]
    lowest = min(loss(*point) for point in grid)
    assert loss(found["volumes"], found["linear"]) < lowest + 1e-3
