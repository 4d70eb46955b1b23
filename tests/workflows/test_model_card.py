"""The first box of a model card: whether to use a model, whose probabilities it publishes, and what adds nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from brainstage.models.metrics import Estimate
from brainstage.models.model_description import PredictorDescription
from brainstage.models.predictor import FoldPredictor
from brainstage.workflows.learning.model_card import predictor_sentences, recommendation

MEMBERS = ("volumes", "linear", "network")


def fold(chosen, **weights) -> FoldPredictor:
    return FoldPredictor(chosen=chosen, temperatures=dict.fromkeys(MEMBERS, 1.0), weights=weights)


def predictor(*folds, choice="auto", above_chance=True, compared=MEMBERS) -> PredictorDescription:
    return PredictorDescription(
        choice=choice, folds=folds, above_chance=above_chance, compared_members=compared
    )


def auc(value, low) -> SimpleNamespace:
    return SimpleNamespace(measures={"auc": Estimate(value=value, low=low, high=1.0)})


@pytest.mark.parametrize(
    ("above_chance", "compared", "published", "network", "linear", "words"),
    [
        pytest.param(True, MEMBERS, 0.9, (0.9, 0.8), (0.9, 0.8), "Use, for research", id="as it is"),
        pytest.param(True, (), 0.7, (0.9, 0.8), (0.9, 0.8), "Use, for research", id="no able member"),
        pytest.param(True, MEMBERS, 0.7, (0.6, 0.5), (0.9, 0.8), "Use the member linear", id="clearly better"),
        pytest.param(True, MEMBERS, 0.7, (0.6, 0.5), (0.8, 0.6), "Use, for research", id="by luck"),
        pytest.param(True, MEMBERS, 0.86, (0.6, 0.5), (0.9, 0.88), "Use, for research", id="a little better"),
        pytest.param(False, ("linear",), 0.6, (0.9, 0.4), (0.7, 0.6), "Use the member linear", id="able"),
        pytest.param(False, (), 0.6, (0.9, 0.4), (0.7, 0.4), "Do not use: not above chance", id="chance"),
    ],
)  # fmt: skip
def test_a_model_is_recommended_by_its_own_numbers(above_chance, compared, published, network, linear, words):
    description = SimpleNamespace(
        predictor=predictor(fold("linear", linear=1.0), above_chance=above_chance, compared=compared)
    )
    result = SimpleNamespace(
        predictor=auc(published, 0.5),
        members={"volumes": auc(0.5, 0.4), "linear": auc(*linear), "network": auc(*network)},
    )
    said = recommendation(description, result)
    assert said.startswith(words)
    if "member" in words:
        assert f"its AUC is {linear[0]:.2f}, and {published:.2f} that of the published" in said


def test_whose_probabilities_are_published_is_said_in_plain_words():
    stacked = fold("stack", linear=0.5, network=0.4)
    said = " ".join(predictor_sentences(predictor(fold("linear", linear=1.0), stacked), MEMBERS))
    assert "linear in 1 of 2 folds, stack in 1 of 2 folds (each fold takes the stack, unless" in said
    assert "volumes 0.00, linear 0.75, network 0.20." in said
    assert "no weight" not in said


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("auto", "its training scans did not show that it adds anything"),
        ("stack", "its training scans did not show that it adds anything"),
        ("linear", "--predictor linear was asked for"),
    ],
)
def test_a_network_without_weight_is_said_with_the_reason(choice, why):
    said = predictor_sentences(predictor(fold("linear", linear=1.0), choice=choice), MEMBERS)
    assert said[-1].startswith("The network has no weight: ")
    assert why in said[-1]
    assert said[-1].endswith("No published probability rests on it.")
