"""What the benchmarks measured of quality control still holds for the bounds in use; how atrophy is dealt out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from brainstage.models.metrics import Estimate
from brainstage.preprocessing.quality import MEASURE_BY_NAME
from brainstage.workflows.synthetic.variation import AGEINGS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def script(name: str) -> ModuleType:
    """Import a benchmark, which finds its siblings as when it is run."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


failures = script("failures")
quality_bounds = script("quality_bounds")
atrophy_sensitivity = script("atrophy_sensitivity")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [failures.judged_again(row, {}) for row in failures.read_csv(BENCHMARKS / "failures.csv")]


def share(rows: list[dict], *verdicts: str) -> float:
    return sum(row["verdict"] in verdicts for row in rows) / len(rows)


def test_bounds_in_use_stay_near_the_derived_ones(rows) -> None:
    """Within what unharmed scans differ by: a bound that moves further away needs new data, or a reason."""
    unharmed = [row for row in rows if row["failure"] in quality_bounds.UNHARMED]
    for name, derived in quality_bounds.derived(rows).items():
        used = MEASURE_BY_NAME[name].bounds
        values = sorted(float(row[name]) for row in unharmed if row[name])
        spread = values[-1] - values[0]
        for mine, theirs in zip(used.passing, derived.passing, strict=True):
            assert (mine is None) == (theirs is None), name
            assert mine is None or abs(mine - theirs) < max(spread, 0.03), name


def test_unharmed_scans_pass_as_they_are(rows) -> None:
    as_they_are = [row for row in rows if row["kind"] == failures.AS_IT_IS]
    assert len(as_they_are) >= 60
    assert share(as_they_are, "pass") >= 0.95
    assert share(as_they_are, "fail", "failed") == 0.0


def test_harmed_scans_are_caught(rows) -> None:
    harmed = [row for row in rows if row["failure"] not in quality_bounds.UNHARMED]
    meaningless = [row for row in harmed if row["failure"] in failures.MEANINGLESS]
    assert share(harmed, "warn", "fail", "failed") >= 0.98
    assert share(meaningless, "fail", "failed") >= 0.95


def test_a_measure_out_of_bounds_is_counted() -> None:
    row = {"verdict": "pass", "header_warnings": "", "brain_volume_ml": "100.0"}
    assert failures.judged_again(row, {})["verdict"] == "fail"


def test_bounds_follow_the_unharmed_and_not_the_harmed() -> None:
    unharmed = [{"failure": "unharmed", "snr": str(value)} for value in range(10, 111)]
    bounds = quality_bounds.derived([*unharmed, {"failure": "heavy noise", "snr": "1.0"}])["snr"]
    assert bounds.passing[0] == pytest.approx(11.0 - 0.5 * 49.0)
    assert bounds.tolerated[0] == pytest.approx(11.0 - 49.0)


def test_the_tables_name_what_passed_unseen() -> None:
    missed = {"scan": "a/b", "failure": "heavy noise", "kind": "loud", "verdict": "pass", "reasons": ""}
    unharmed = {"scan": "a/b", "failure": "unharmed", "kind": "as it is", "verdict": "warn", "reasons": "snr"}
    table = failures.table_of([missed, unharmed])
    assert "| heavy noise | 1 | 0.0 % | 0.0 % | no | loud (1) |" in table
    assert "| whole, as it is | 1 | 0.0 % | 1 | 0 | snr |" in table


def test_the_cost_of_the_bounds_is_shown_by_age() -> None:
    rows = [
        {
            "scan": f"a/sub-{age}",
            "failure": failures.UNHARMED,
            "kind": failures.AS_IT_IS,
            "verdict": "pass",
            "reasons": "",
            "header_warnings": "",
            "age": str(age),
            "cjv": str(0.4 + 0.012 * age),
        }
        for age in range(20, 92, 3)
    ]
    table = quality_bounds.age_table(rows)
    (cjv,) = (line for line in table if line.startswith("| `cjv`"))
    assert cjv.startswith("| `cjv` | +1.00 | 1.47 | to 1.4 | -")  # the oldest lie beyond the bound
    assert "| under 40 | 7 | 100.0 % | 0.0 % | 0.0 % |  |" in table
    assert "| 80 and more | 4 | 50.0 % | 50.0 % | 0.0 % | cjv |" in table


def test_three_scans_in_a_row_are_aged_at_all_strengths(monkeypatch) -> None:
    stripped = SimpleNamespace(head=None)
    monkeypatch.setattr("brainstage.preprocessing.ingest.ingest", lambda *_: stripped)
    monkeypatch.setattr("brainstage.preprocessing.brain_extraction.stripped_foreground", lambda _: object())
    cases = [
        case
        for position in range(9)
        for case in failures.cases_of(
            f"sub-{position}", Path("x"), position, kinds=1, harm_every=2, age_every=3
        )
    ]
    aged = [(case.scan, case.kind) for case in cases if case.kind in AGEINGS]
    assert aged == list(zip(("sub-0", "sub-3", "sub-6"), AGEINGS, strict=True))
    assert all(case.failure == failures.UNHARMED for case in cases if case.kind in AGEINGS)


def people(count: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            row=SimpleNamespace(sex="FM"[n % 3 == 0], age=20.0 + (7 * n) % 40),
            files=SimpleNamespace(key=f"sub-{n:02d}"),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_atrophy_is_dealt_to_half_of_the_people_of_each_sex_and_age(seed) -> None:
    scans = people(48)
    chosen = atrophy_sensitivity.balanced_halves(scans, seed)
    ages = np.array([scan.row.age for scan in scans])
    men = np.array([scan.row.sex == "M" for scan in scans])
    assert chosen.sum() == 24
    assert abs(int(chosen[men].sum()) - int(men.sum()) // 2) <= 1
    assert abs(ages[chosen].mean() - ages[~chosen].mean()) < 2.0
    assert np.array_equal(chosen, atrophy_sensitivity.balanced_halves(scans, seed))


def test_everybody_is_in_one_class_only() -> None:
    def inputs(value: float) -> object:
        full = np.full((4, 2), value, dtype=np.float32)
        images = np.full((4, 2, 2, 2), value, dtype=np.float16)
        return atrophy_sensitivity.Inputs(
            images=images, masks=images > 0, values=full, inside=full > 0, features=full, measures=full
        )

    mixed = inputs(1.0).where(np.array([True, False, False, True]), inputs(0.0))
    assert mixed.features[:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert mixed.images[:, 0, 0, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert mixed.inside[:, 1].tolist() == [True, False, False, True]


def test_a_planted_difference_is_seen_and_its_absence_is_not() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((48, 60)).astype(np.float32)
    labels = [atrophy_sensitivity.CLASSES[n % 2] for n in range(48)]
    names = [f"sub-{n}" for n in range(48)]
    scans = [SimpleNamespace(row=SimpleNamespace(participant_id=name, age=None, sex=None)) for name in names]

    def auc_of(effect: float) -> float:
        values = noise + effect * (np.arange(48) % 2)[:, None].astype(np.float32)
        inputs = atrophy_sensitivity.Inputs(
            images=values,
            masks=values > 0,
            values=values,
            inside=np.ones_like(values, dtype=bool),
            features=values,
            measures=np.full((48, len(atrophy_sensitivity.MEASURES)), np.nan),
        )
        found = atrophy_sensitivity.cross_validated({"random": inputs}, labels, scans, 0, ["frozen"])
        results = atrophy_sensitivity.measured(found, names, "atrophy", 0.2, 0)
        assert {result.model for result in results} >= {"published", "stack", "volumes", "linear"}
        return next(result.auc.value for result in results if result.model == "published")

    assert auc_of(1.0) > 0.95
    assert auc_of(0.0) < 0.75


@pytest.mark.parametrize(("auc", "outcome"), [(0.92, "reached"), (0.89, "missed")])
def test_the_table_says_whether_the_goal_is_reached(auc: float, outcome: str) -> None:
    def result(model: str, value: float) -> atrophy_sensitivity.Result:
        estimate = Estimate(value=value, low=value - 0.1, high=1.0)
        return atrophy_sensitivity.Result(
            label="atrophy", level=0.2, seed=0, model=model, auc=estimate, balanced_accuracy=estimate
        )

    said = atrophy_sensitivity.verdict([result("published", auc), result("linear", 0.93)])
    assert f"published {auc:.3f}: {outcome}" in said
    assert f"{'kept' if auc > 0.91 else 'not kept'})" in said
