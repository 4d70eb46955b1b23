"""Laws of models of a number: folds, ridge regressions, the predictor over members, intervals, measures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score

from brainstage.models.baseline import fit_number_baseline
from brainstage.models.covariates import Column, CovariateNumber, fit_covariate_number
from brainstage.models.cross_validation import Nested, cross_validate
from brainstage.models.linear_fit import NUMBER_PENALTY, fit_number
from brainstage.models.number_cross_validation import (
    cross_validate_number_predictor,
    fold_means,
    member_values,
    number_leakage_warnings,
    random_target_control,
)
from brainstage.models.number_intervals import Residuals, interval, out_of_fold_intervals
from brainstage.models.number_learners import NumberHeadLearner, NumberVolumesLearner
from brainstage.models.number_metrics import evaluate_numbers
from brainstage.models.number_predictor import (
    FoldNumberPredictor,
    InnerNumbers,
    Line,
    cross_recalibrated,
    fit_chosen_number,
    fit_number_predictor,
    fitted_line,
    number_weights,
)
from brainstage.models.number_table import number_association_warnings, number_table
from brainstage.models.splits import (
    fold_of_numbers,
    fold_of_sites,
    participant_means,
    quantile_groups,
    shuffled_numbers,
)
from brainstage.models.volume_model import MEASURES, ScanVolumes, fit_number_volume_model
from brainstage.pipeline.errors import UsageError

PEOPLE = [f"sub-{n:03d}" for n in range(60)]


def ages(count: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(50, 85, count)


def of_one_member(said: np.ndarray, folds: np.ndarray) -> Nested[None]:
    """Return a member that says the same whatever it was fitted without."""
    count = int(folds.max()) + 1
    nested = np.repeat(said[None, :, None], count, axis=0)
    return Nested(nested_logits=nested, folds=folds, models=(None,) * count, log=())


# folds


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_alike_in_the_number_and_keep_people_together(seed):
    values = ages(seed=seed)
    people = [*PEOPLE, *PEOPLE[:20]]
    values = np.concatenate([values, values[:20] + 1])
    folds = fold_of_numbers(values, people, folds=5, seed=seed)
    fold_of = {}
    for person, fold in zip(people, folds.tolist(), strict=True):
        assert fold_of.setdefault(person, fold) == fold
    means = [values[folds == fold].mean() for fold in range(5)]
    assert np.ptp(means) < 0.5 * values.std()
    assert {list(fold_of.values()).count(fold) for fold in range(5)} == {12}


def test_groups_hold_two_people_for_each_fold_and_equal_numbers_are_no_trouble():
    groups = quantile_groups(np.full(60, 30.0), PEOPLE, folds=5)
    assert {groups.count(name) for name in set(groups)} == {10}
    assert len(set(quantile_groups(ages(12), PEOPLE[:12], folds=5))) == 1


@pytest.mark.parametrize(("count", "advice"), [(9, "use --folds 4, or add"), (5, "there are 5: add")])
def test_too_few_people_are_refused(count, advice):
    with pytest.raises(UsageError, match=advice):
        fold_of_numbers(ages(count), PEOPLE[:count], folds=5, seed=0)


def test_sites_may_differ_in_the_number():
    """The site of the oldest can be left out: a number is learnt without the whole of its range."""
    values = np.sort(ages())
    sites = ["A"] * 20 + ["B"] * 20 + ["C"] * 20
    groups = quantile_groups(values, PEOPLE, folds=3)
    folds, names = fold_of_sites(sites, groups, PEOPLE, every_class_elsewhere=False)
    assert names == ("site A", "site B", "site C")
    assert [len(set(folds[np.array(sites) == name])) for name in "ABC"] == [1, 1, 1]
    with pytest.raises(UsageError, match="participants of the class"):
        fold_of_sites(sites, groups, PEOPLE)


def test_permuted_numbers_are_those_of_other_people_and_say_nothing_of_the_true_ones():
    people = [*PEOPLE, *PEOPLE[:20]]
    values = np.concatenate([ages(), ages()[:20] + 1])
    drawn = shuffled_numbers(values, people, seed=3)
    of_people = participant_means(values, people)
    given = participant_means(drawn, people)
    assert sorted(given.values()) == pytest.approx(sorted(of_people.values()))
    assert all(np.ptp(drawn[[p == name for p in people]]) == 0 for name in PEOPLE)
    true, false = ([found[name] for name in PEOPLE] for found in (of_people, given))
    assert abs(pearsonr(true, false).statistic) < 0.02


# ridge regressions


def test_the_ridge_is_the_library_s():
    generator = np.random.default_rng(0)
    columns, targets = generator.normal(3, 2, (40, 6)), ages(40)
    weight, bias = fit_number(columns, targets)
    reference = Ridge(alpha=NUMBER_PENALTY).fit(columns, targets)
    np.testing.assert_allclose(weight, reference.coef_, rtol=1e-8)
    assert bias == pytest.approx(reference.intercept_)


def test_a_linear_function_of_volumes_is_found():
    generator = np.random.default_rng(1)
    targets = ages(200)
    scans = [
        ScanVolumes(
            measures=dict.fromkeys(MEASURES, 1.0)
            | {MEASURES[1]: float(np.exp(0.02 * age + 0.02 * generator.standard_normal()))}
        )
        for age in targets
    ]
    model = fit_number_volume_model(scans[:100], targets[:100])
    said = model.logits(scans[100:])[:, 0]
    assert r2_score(targets[100:], said) > 0.95
    added = model.contributions(scans[150], 0)
    assert sum(added.values()) + model.bias[0] == pytest.approx(said[50])
    assert max(added, key=lambda name: abs(added[name])) == MEASURES[1]


def test_volumes_that_nobody_has_give_the_mean():
    model = fit_number_volume_model([ScanVolumes(measures={})] * 10, ages(10))
    assert model.logits([ScanVolumes(measures={})])[0, 0] == pytest.approx(ages(10).mean())


def test_the_linear_member_finds_the_few_values_that_go_with_the_number():
    generator = np.random.default_rng(2)
    targets = ages(160)
    values = generator.standard_normal((160, 30_000)).astype(np.float32)
    values[:, 500:520] += (targets[:, None] - 67) / 10
    inside = np.ones(values.shape, dtype=bool)
    model = fit_number_baseline(values[:80], inside[:80], targets[:80])
    used = np.flatnonzero(model.weight[0])
    assert len(used) == 300
    assert set(range(500, 520)) <= set(used.tolist())
    # 280 values that go with it by chance shrink what is said, which the line of the predictor undoes
    assert pearsonr(targets[80:], model.logits(values[80:])[:, 0]).statistic > 0.8


def test_covariates_predict_and_say_what_they_miss():
    targets = ages()
    rows = [{"height": f"{150 + age}", "sex": "M"} for age in targets]
    columns = (Column(name="height", kind="number"), Column(name="sex", kind="text"))
    model = fit_covariate_number(columns, rows, targets)
    assert r2_score(targets, model.values(rows)) > 0.95
    assert not model.misses(rows[0])
    assert model.misses({"height": None, "sex": "M"})
    assert model.values([{"height": None, "sex": None}])[0] == pytest.approx(targets.mean(), abs=1)
    assert CovariateNumber.model_validate_json(model.model_dump_json()) == model


# members and predictor


class Spy:
    """A learner that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def fit(self, chosen, targets, **_):
        self.seen.append((chosen.copy(), targets.copy()))
        return targets[chosen].mean(), []

    def logits(self, model, chosen):
        return np.full((int(chosen.sum()), 1), model)


def test_no_fold_and_no_pair_learns_from_what_it_predicts():
    targets = ages()
    folds = fold_of_numbers(targets, PEOPLE, folds=4, seed=0)
    spy = Spy()
    nested = cross_validate(spy, targets, folds, classes=1, seed=0, pairs=True)
    assert len(spy.seen) == 4 + 6
    for left, (chosen, _) in enumerate(spy.seen[:4]):
        assert (folds[~chosen] == left).all()
    for scan in range(60):
        for fold in range(4):
            kept = (folds != folds[scan]) & (folds != fold)
            assert nested.nested_logits[fold, scan, 0] == pytest.approx(targets[kept].mean())


def test_the_target_of_a_test_scan_has_no_part_in_its_own_prediction():
    generator = np.random.default_rng(4)
    targets = ages()
    folds = fold_of_numbers(targets, PEOPLE, folds=3, seed=0)
    features = generator.standard_normal((60, 40)).astype(np.float32)
    features[:, 0] += targets / 5
    changed = np.where(folds == 0, 1000.0, targets)
    said = []
    for given in (targets, changed):
        nested = {
            "network": cross_validate(
                NumberHeadLearner(features=features), given, folds, classes=1, seed=0, pairs=True
            )
        }
        found = cross_validate_number_predictor(nested, given, folds, np.arange(60), "auto")
        said.append(found.values[folds == 0])
    np.testing.assert_array_equal(*said)


def test_training_twice_gives_the_same_model():
    targets = ages()
    folds = fold_of_numbers(targets, PEOPLE, folds=3, seed=0)
    features = np.random.default_rng(4).standard_normal((60, 40)).astype(np.float32)
    learner = NumberHeadLearner(features=features)
    first, second = (cross_validate(learner, targets, folds, classes=1, seed=0, pairs=True) for _ in range(2))
    np.testing.assert_array_equal(first.nested_logits, second.nested_logits)
    np.testing.assert_array_equal(first.models[0].head.weight, second.models[0].head.weight)


def inner(seed: int = 0, noise: dict[str, float] | None = None, count: int = 200) -> InnerNumbers:
    generator = np.random.default_rng(seed)
    targets = generator.normal(70, 8, count)
    given = noise or {"volumes": 8.0, "linear": 8.0}
    said = {name: targets + generator.normal(0, sd, count) for name, sd in given.items()}
    return InnerNumbers(
        said=said, targets=targets, folds=np.arange(count) % 4, persons=np.arange(count), covariates=None
    )


def test_a_line_never_turns_round_and_noise_says_the_mean():
    targets = ages()
    line = fitted_line(-targets, targets)
    assert line == Line(slope=0.0, intercept=float(targets.mean()))
    assert fitted_line(np.full(60, 3.0), targets).slope == 0.0
    exact = fitted_line(2 * targets + 3, targets)
    np.testing.assert_allclose(exact.of(2 * targets + 3), targets)


def test_members_that_err_independently_are_better_together():
    known = inner()
    stack = fit_chosen_number(known, "stack")
    alone = fit_chosen_number(known, "linear")
    fresh = inner(seed=1)
    errors = [np.mean((one.values(fresh.said) - fresh.targets) ** 2) for one in (stack, alone)]
    assert errors[0] < 0.8 * errors[1]
    assert stack.stretch > 1.1  # each by itself shrinks more than both together need


def test_noise_gets_little_weight_in_a_stack_and_hardly_harms():
    known = inner(noise={"volumes": 4.0, "linear": 500.0, "network": 500.0})
    weights = number_weights(
        {name: fitted_line(said, known.targets).of(said) for name, said in known.said.items()}, known.targets
    )
    assert weights["volumes"] > 0.9
    assert sum(weights.values()) <= 1 + 1e-9
    fresh = inner(seed=1, noise={"volumes": 4.0, "linear": 500.0, "network": 500.0})
    errors = [
        np.mean((fit_chosen_number(known, one).values(fresh.said) - fresh.targets) ** 2)
        for one in ("stack", "volumes")
    ]
    assert errors[0] < 1.1 * errors[1]


def test_auto_leaves_the_stack_for_a_member_that_is_clearly_better():
    exact = inner(noise={"volumes": 0.5, "linear": 400.0})
    assert fit_number_predictor(exact, "auto").values(exact.said) == pytest.approx(exact.targets, abs=3)
    assert fit_number_predictor(inner(), "auto").chosen == "stack"
    assert fit_number_predictor(inner(noise={"linear": 3.0}), "auto").chosen == "linear"


def test_covariates_join_as_far_as_they_say_something():
    known = inner(noise={"linear": 8.0})
    generator = np.random.default_rng(5)
    good = InnerNumbers(
        **{**vars(known), "covariates": known.targets + generator.normal(0, 4, len(known.targets))}
    )
    useless = InnerNumbers(**{**vars(known), "covariates": generator.normal(70, 8, len(known.targets))})
    assert fit_chosen_number(good, "linear").covariate_weight > 0.5
    assert fit_chosen_number(useless, "linear").covariate_weight < 0.2
    predictor = fit_chosen_number(good, "linear")
    assert np.mean((predictor.values(good.said, good.covariates) - good.targets) ** 2) < 0.8 * np.mean(
        (predictor.values(good.said) - good.targets) ** 2
    )


def test_a_predictor_survives_being_written():
    predictor = fit_chosen_number(inner(), "stack")
    assert FoldNumberPredictor.model_validate_json(predictor.model_dump_json()) == predictor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"network": 1.0}}, "without a line"),
        ({"weights": {"volumes": 0.9, "linear": 0.9}}, "more than 1"),
        ({"lines": {"volumes": {"slope": -1.0, "intercept": 0.0}}}, "greater than or equal to 0"),
    ],
)
def test_an_impossible_predictor_is_refused(change, message):
    content = fit_chosen_number(inner(), "stack").model_dump()
    with pytest.raises(ValueError, match=message):
        FoldNumberPredictor.model_validate(content | change)


# controls


def test_permuted_targets_are_predicted_by_nothing():
    generator = np.random.default_rng(6)
    targets = ages()
    features = generator.standard_normal((60, 40)).astype(np.float32)
    features[:, :5] += ((targets - 67) / 5)[:, None]

    def refit(wanted, folds, seed, name):
        nested = {
            "network": cross_validate(
                NumberHeadLearner(features=features), wanted, folds, classes=1, seed=seed, pairs=True
            )
        }
        found = cross_validate_number_predictor(nested, wanted, folds, np.arange(60), "auto")
        return {"predictor": found.values}

    control = random_target_control(refit, targets, PEOPLE, folds=3, seed=0, draws=5)["predictor"]
    measured = evaluate_numbers(
        control.values, control.targets, control.participants, expected=control.expected, seed=0
    )
    assert measured.measures["r2"].low <= 0
    assert not number_leakage_warnings(
        measured.measures["correlation"], {"predictor": measured.measures["r2"]}
    )
    true = refit(targets, fold_of_numbers(targets, PEOPLE, folds=3, seed=0), 0, "")["predictor"]
    assert r2_score(targets, true) > 0.5


def test_leakage_is_said():
    targets = ages()
    measured = evaluate_numbers(targets + 0.01, targets, PEOPLE, seed=0).measures
    first, second = number_leakage_warnings(measured["correlation"], {"network": measured["r2"]})
    assert "correlate at 1.00" in first
    assert "R2 of 1.00" in second


# intervals


def test_an_interval_is_made_of_the_residuals_in_order():
    residuals = Residuals(residual=np.arange(1.0, 20.0), fold=np.zeros(19, int), person=np.arange(19))
    assert interval(np.array([70.0]), residuals, 0.9) == (70.0 - 18, 70.0 + 18)
    assert interval(np.array([70.0]), residuals, 0.5) == (70.0 - 10, 70.0 + 10)
    with pytest.raises(ValueError, match="too few"):
        interval(np.array([70.0]), residuals, 0.99)


def test_each_scan_is_compared_with_its_own_fold():
    residuals = Residuals(residual=np.zeros(20), fold=np.repeat([0, 1], 10), person=np.arange(20))
    low, high = interval(np.array([60.0, 80.0]), residuals, 0.9)
    assert (low, high) == (60.0, 80.0)


def test_own_residuals_are_left_out():
    residual = np.r_[np.full(5, 100.0), np.ones(40)]
    person = np.r_[np.zeros(5), np.arange(1, 41)].astype(int)
    residuals = Residuals(residual=residual, fold=np.zeros(45, int), person=person)
    assert interval(np.array([70.0]), residuals, 0.9, without_person=0) == (69.0, 71.0)
    assert interval(np.array([70.0]), residuals, 0.9) == (-30.0, 170.0)
    widths = np.diff(out_of_fold_intervals(np.full(45, 70.0), residuals, 0.9), axis=1)
    assert widths[0] == 2.0
    assert widths[-1] == 200.0


@pytest.mark.parametrize("seed", range(3))
def test_intervals_hold_fresh_scans_as_often_as_they_say(seed):
    """Over many fresh scans of one training; one training varies by some per cent around its level."""
    generator = np.random.default_rng(seed)
    count, more = 200, 4000
    targets = generator.normal(70, 8, count + more)
    features = generator.standard_normal((count + more, 30)).astype(np.float32)
    features[:, :3] += ((targets - 70) / 8)[:, None]
    folds = fold_of_numbers(targets[:count], [f"p{n}" for n in range(count)], folds=5, seed=0)
    learner = NumberHeadLearner(features=features[:count])
    nested = cross_validate(learner, targets[:count], folds, classes=1, seed=0)
    said = nested.logits[:, 0]
    residuals = Residuals(residual=np.abs(said - targets[:count]), fold=folds, person=np.arange(count))
    of_folds = np.stack([model.head.logits(features[count:])[:, 0] for model in nested.models], axis=1)
    ends = np.array([interval(values, residuals, 0.9) for values in of_folds])
    covered = np.mean((ends[:, 0] <= targets[count:]) & (targets[count:] <= ends[:, 1]))
    assert 0.86 < covered < 0.94


# measures and table


def test_measures_are_the_library_s_and_r2_is_against_what_was_expected():
    generator = np.random.default_rng(0)
    targets = ages()
    values = 0.5 * (targets - 67) + 67 + generator.normal(0, 2, 60)
    measures = evaluate_numbers(values, targets, PEOPLE, seed=0).measures
    assert measures["mae"].value == pytest.approx(mean_absolute_error(targets, values))
    assert measures["r2"].value == pytest.approx(r2_score(targets, values))
    assert measures["correlation"].value == pytest.approx(pearsonr(values, targets).statistic)
    assert measures["mean_error"].value == pytest.approx((values - targets).mean())
    assert measures["error_by_target"].value == pytest.approx(-0.5, abs=0.1)
    assert measures["mae"].low < measures["mae"].value < measures["mae"].high
    means = fold_means(targets, np.arange(60) % 3)
    assert means[0] == pytest.approx(targets[np.arange(60) % 3 != 0].mean())
    nothing = evaluate_numbers(means, targets, PEOPLE, expected=means, seed=0)
    assert nothing.measures["r2"].value == pytest.approx(0.0)
    assert not nothing.above_chance


def test_constant_predictions_have_no_correlation():
    found = evaluate_numbers(np.full(60, 67.0), ages(), PEOPLE, seed=0).measures["correlation"]
    assert np.isnan([found.value, found.low, found.high]).all()


def test_values_alone_are_recalibrated_by_the_other_folds():
    targets = ages()
    folds = np.arange(60) % 3
    recalibrated = cross_recalibrated(3 * targets - 7, targets, folds)
    np.testing.assert_allclose(recalibrated, targets)


def test_members_speak_through_the_line_of_each_fold():
    targets = ages()
    folds = fold_of_numbers(targets, PEOPLE, folds=3, seed=0)
    nested = {"linear": of_one_member(2 * targets, folds)}
    found = cross_validate_number_predictor(nested, targets, folds, np.arange(60), "linear")
    np.testing.assert_allclose(found.values, targets)
    np.testing.assert_allclose(member_values(nested, found.predictors)["linear"], targets)


def test_the_table_counts_people_and_warns_of_sites():
    values = np.sort(ages())
    table = number_table(values, PEOPLE, sexes=["F", "m"] * 30, sites=["young"] * 30 + ["old"] * 29 + [None])
    rows = {row.name: row for row in table.rows}
    assert set(rows) == {"all", "sex F", "sex M", "site old", "site young"}
    assert rows["site old"].participants == 29
    assert rows["all"].low == values.min()
    (warning,) = number_association_warnings(table, "age")
    assert warning.startswith("Site and age go together (correlation ratio 0.8")


def test_volumes_are_never_adjusted_by_the_number_that_they_predict():
    """Without an age the same volumes give the same answer; with one, age would be known from what it predicts."""
    targets = ages()
    scans = [ScanVolumes(measures={MEASURES[1]: float(np.exp(age / 50))}, male=1.0) for age in targets]
    learner = NumberVolumesLearner(scans=scans)
    model, _ = learner.fit(np.ones(60, bool), targets, fold=0, seed=0)
    assert not model.uses_age
