"""Experts on age, sex and other columns: what they learn, what a gap does, how they are joined with images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from brainstage.models.covariates import (
    CovariateExpert,
    chosen_columns,
    fit_expert,
)
from brainstage.models.cross_validation import cross_validate
from brainstage.models.member_learners import CovariateLearner
from brainstage.pipeline.errors import UsageError

KNOWN = ["age", "education", "sex", "site"]


def cohort(count=400, seed=0, effect=1.0):
    """The second class is older and more often female; education says nothing."""
    generator = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    rows = [
        {
            "age": f"{generator.normal(70 + 8 * effect * target, 8):.1f}",
            "sex": "F" if generator.random() < 0.4 + 0.3 * effect * target else "M",
            "education": f"{generator.integers(8, 20)}",
        }
        for target in targets
    ]
    return rows, targets.astype(np.int64)


def fitted(rows, targets, names=("age", "sex"), imbalance="weights"):
    columns = chosen_columns(names, rows, KNOWN)
    return fit_expert(columns, rows, targets, classes=2, imbalance=imbalance)


def cross_validated(rows, targets, folds, imbalance):
    columns = chosen_columns(("age", "sex"), rows, KNOWN)
    learner = CovariateLearner(columns=columns, rows=rows, classes=2, imbalance=imbalance)
    return cross_validate(learner, targets, folds, classes=2, seed=0)


def test_age_and_sex_tell_classes_apart_out_of_fold_when_they_differ_and_not_when_they_do_not():
    for effect, low, high in ((1.0, 0.62, 0.85), (0.0, 0.4, 0.6)):
        rows, targets = cohort(effect=effect)
        found = cross_validated(rows, targets, np.arange(400) // 2 % 5, imbalance="weights")
        assert low < (found.logits.argmax(axis=1) == targets).mean() < high
        assert len(found.models) == 5


def test_scans_left_out_change_nothing_in_their_fold():
    rows, targets = cohort(60)
    folds = np.arange(60) // 2 % 3
    altered = [
        {**row, "age": "99", "sex": "other"} if fold == 0 else row
        for row, fold in zip(rows, folds, strict=True)
    ]
    first, second = (
        cross_validated(given, targets, folds, imbalance="none").models for given in (rows, altered)
    )
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_an_unknown_value_says_what_the_average_says():
    rows, targets = cohort()
    expert = fitted(rows, targets, ("age",))
    mean = np.mean([float(row["age"]) for row in rows])
    unknown, average = expert.log_probabilities([{"age": None}, {"age": str(mean)}])
    assert unknown == pytest.approx(
        average, abs=0.02
    )  # nothing was missing in training, so missing says nothing
    assert expert.misses({})
    assert expert.misses({"age": "old"})
    assert not expert.misses({"age": "71"})


def test_that_a_value_is_missing_can_say_something():
    rows, targets = cohort(effect=0)
    rows = [
        {**row, "age": None if target and n % 4 else row["age"]}
        for n, (row, target) in enumerate(zip(rows, targets, strict=True))
    ]
    expert = fitted(rows, targets, ("age",))
    assert expert.log_probabilities([{"age": None}]).argmax() == 1


def test_a_level_that_was_not_met_in_training_counts_as_unknown():
    rows, targets = cohort()
    expert = fitted(rows, targets, ("sex",))
    known, new, empty = expert.log_probabilities([{"sex": "female"}, {"sex": "intersex"}, {"sex": None}])
    assert np.array_equal(new, empty)
    assert not np.array_equal(known, new)
    assert np.array_equal(known, expert.log_probabilities([{"sex": "F"}])[0])
    assert expert.misses({"sex": "intersex"})
    assert not expert.misses({"sex": "Male"})


@pytest.mark.parametrize("imbalance", ["none", "weights", "smote"])
def test_the_prior_is_what_the_expert_has_learnt(imbalance):
    rows, targets = cohort(400, effect=0)
    kept = [n for n in range(400) if targets[n] == 0 or n % 8 == 1]
    expert = fitted([rows[n] for n in kept], targets[kept], imbalance=imbalance)
    prior = softmax(expert.log_prior)
    assert prior == pytest.approx([0.8, 0.2] if imbalance == "none" else [0.5, 0.5])
    # covariates that say nothing leave the network's logits as they are
    assert np.abs(expert.evidence(rows).mean(axis=0)).max() < 0.15


@pytest.mark.parametrize("imbalance", ["none", "weights"])
def test_the_product_of_independent_experts_is_bayes(imbalance):
    """An image and an age that are independent given the class: the fused probability is the true one."""
    generator = np.random.default_rng(3)
    part = 0.2 if imbalance == "none" else 0.5
    targets = (generator.random(20000) < part).astype(np.int64)
    image, age = generator.normal(targets, 1), generator.normal(targets, 1)
    prior = np.log([1 - part, part])
    network = log_softmax(np.column_stack([-image * 0, image - 0.5]) + prior, axis=1)
    expert = fitted([{"age": f"{value:.4f}"} for value in age], targets, ("age",), imbalance)
    fused = softmax(network + expert.evidence([{"age": f"{value:.4f}"} for value in age]), axis=1)
    truth = softmax(np.column_stack([0 * image, image + age - 1]) + prior, axis=1)
    assert np.abs(fused - truth).mean() < 0.01


def test_an_expert_is_plain_numbers_and_comes_back_the_same():
    rows, targets = cohort()
    expert = fitted(rows, targets, ("age", "sex", "education"))
    text = expert.model_dump_json()
    assert set(json.loads(text)) == {"columns", "weight", "bias", "log_prior"}
    again = CovariateExpert.model_validate_json(text)
    assert again == expert
    assert np.array_equal(again.evidence(rows), expert.evidence(rows))


def test_three_classes_have_three_rows():
    rows, _ = cohort(90)
    targets = (np.arange(90) % 3).astype(np.int64)
    columns = chosen_columns(("age",), rows, KNOWN)
    expert = fit_expert(columns, rows, targets, classes=3, imbalance="none")
    assert np.exp(expert.log_probabilities(rows)).sum(axis=1) == pytest.approx(np.ones(90))
    assert expert.log_probabilities(rows).shape == (90, 3)


def test_numbers_and_names_are_told_apart():
    rows = [{"age": "70", "site": "1", "education": "12", "scanner": "A"} for _ in range(4)]
    kinds = {column.name: column.kind for column in chosen_columns(list(rows[0]), rows, list(rows[0]))}
    assert kinds == {"age": "number", "site": "text", "education": "number", "scanner": "text"}


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        pytest.param(("edu",), [{"edu": None}], "no column 'edu'.* age, education, sex, site", id="absent"),
        pytest.param(("education",), [{"education": None}], "'education' is empty", id="empty"),
        pytest.param(("age", "age"), [{"age": "70"}], "twice", id="twice"),
        pytest.param(
            ("education",),
            [{"education": "12"}, {"education": "9"}, {"education": "college"}],
            "holds numbers, but also 'college'.* age, education, sex, site",
            id="text among numbers",
        ),
        pytest.param(
            ("education",),
            [{"education": f"school {n}"} for n in range(30)],
            "30 different values",
            id="remarks",
        ),
    ],
)
def test_a_bad_column_is_one_sentence(names, rows, message):
    with pytest.raises(UsageError, match=message):
        chosen_columns(names, rows, KNOWN)
