"""The table of volumes: a row for every scan, nothing that is withheld, percentiles only of whom the norms know."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.models.norms import NORMED_MEASURES, ReferencePerson, fit_reference
from brainstage.models.norms_directory import NormsDescription
from brainstage.pipeline.config import Config
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    VOLUMES,
    BrainVolumes,
    Completed,
    Covariates,
    Failure,
    QcReport,
    QcStatus,
    QcVerdict,
    Review,
    ReviewDecision,
    SubjectOutcome,
    T1wScan,
)
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.data_dictionary import volumes_dictionary
from brainstage.workflows.normed_volumes import normed_volumes
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.stages import preprocessing_content
from brainstage.workflows.volumes_table import MEASURES, PERCENTILES, atlas_columns, volumes_table

CONFIG = Config()
ML = dict(zip(VOLUMES, (1500.0, 600.0, 500.0, 250.0, 15.0, 14.0, 3.0, 3.2), strict=True))
IDENTITY = ["participant_id", "session_id", "run_id", "t1w_path"]


def norms(*, sexes="FM", ages=(50, 89), label="CN", **altered) -> NormsDescription:
    """Return norms of 80 people whose volumes spread by a hundredth around those of a scan."""
    people = [
        ReferencePerson(
            measures={
                name: value * (1 + 0.01 * ((7 * n) % 11 - 5) / 5)
                for name, value in BrainVolumes(volumes_ml=ML).measures.items()
                if value is not None and value > 0
            },
            age=ages[0] + n % (ages[1] - ages[0] + 1),
            sex=sexes[n // 2 % len(sexes)],
        )
        for n in range(80)
    ]
    reference = fit_reference(
        label, people, tuple(NORMED_MEASURES.values()), measured_by=VOLUMES_VERSION, needs_age=True
    )
    assert reference is not None
    counts = {name: sum(person.sex == name for person in people) for name in "FM"}
    known = {
        "people": 80,
        "sexes": {**counts, "unknown": 80 - sum(counts.values())},
        "reference": reference,
        "preprocessing_id": "p",
        "preprocessing_content": preprocessing_content(CONFIG),
    }
    made = NormsDescription(**known | altered)
    return made.model_copy(update={"norms_id": made.own_id})


@pytest.fixture
def context(tmp_path) -> RunContext:
    return RunContext(out_dir=tmp_path, config=CONFIG, norms=norms())


def scan(subject: str = "01", age: float | None = 70.0, sex: str | None = "F", **known) -> T1wScan:
    entities = BidsEntities(subject=subject)
    return T1wScan(
        entities=entities,
        path=Path("x"),
        t1w_path=f"{entities.key}_T1w.nii",
        covariates=Covariates(age=age, sex=sex),
        **known,
    )


def measured(status=QcStatus.PASS, *, about: T1wScan | None = None, ml=ML, **volumes) -> Completed:
    return Completed(
        scan=about or scan(),
        qc=QcReport(measures={}, verdict=QcVerdict(status=status)),
        prediction=None,
        preprocessing_id=RunContext(out_dir=Path(), config=CONFIG).preprocessing_id,
        volumes=BrainVolumes(volumes_ml=ml, **volumes),
    )


def rows(outcomes: list[SubjectOutcome], context: RunContext | None = None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(volumes_table(outcomes, context).text, newline="")))


def test_the_columns_are_those_of_the_contract() -> None:
    (row,) = rows([measured()])
    assert list(row) == [
        *IDENTITY,
        *(f"{name}_ml" for name in VOLUMES),
        "hippocampus_asymmetry_pct",
        *(f"{name}_pct_icv" for name in VOLUMES[1:]),
        "volumes_status",
        "volumes_reasons",
    ]
    assert (row["intracranial_ml"], row["hippocampus_left_ml"]) == ("1500", "3")
    assert (row["hippocampus_left_pct_icv"], row["hippocampus_asymmetry_pct"]) == ("0.2", "-6.45161")
    assert (row["volumes_status"], row["volumes_reasons"]) == ("reported", "")


def test_what_its_own_quality_does_not_bear_out_is_left_out_with_the_reason() -> None:
    found = measured(ml=ML | {"hippocampus_left": None}, reasons=("hippocampus_left:unsure",))
    (row,) = rows([found])
    assert (row["hippocampus_left_ml"], row["hippocampus_left_pct_icv"], row["hippocampus_asymmetry_pct"]) == (
        "", "", "",
    )  # fmt: skip
    assert row["hippocampus_right_ml"] == "3.2"
    assert (row["volumes_status"], row["volumes_reasons"]) == ("partial", "hippocampus_left:unsure")


FAILED = Failure(scan=scan(), stage="ingest", error="E", message="torn")
REVIEWED = Review(decision=ReviewDecision.FAIL)
RESCUED = Review(decision=ReviewDecision.PASS)


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        pytest.param(measured(QcStatus.FAIL, atlas_ml={"a": 1.0}), "withheld", "qc_failed", id="quality"),
        pytest.param(measured(about=scan(review=REVIEWED)), "withheld", "qc_failed", id="a person"),
        pytest.param(replace(measured(), volumes=None), "withheld", "not_measured", id="earlier version"),
        pytest.param(FAILED, "failed", "failed", id="failed"),
        pytest.param(
            measured(ml=dict.fromkeys(VOLUMES), reasons=("intracranial:implausible",)),
            "withheld",
            "intracranial:implausible",
            id="all of them",
        ),
    ],
)
def test_nothing_is_written_of_a_scan_that_failed_or_is_withheld(outcome, status, reason, context) -> None:
    (row,) = rows([outcome], context)
    assert (row["volumes_status"], row["volumes_reasons"]) == (status, reason)
    assert {row[name] for name in (*MEASURES, *PERCENTILES)} == {""}
    assert {text for name, text in row.items() if name.startswith("atlas_")} <= {""}
    assert row["norms_reasons"] == ""


def test_a_scan_that_a_person_passed_has_its_volumes() -> None:
    (row,) = rows([measured(QcStatus.FAIL, about=scan(review=RESCUED))])
    assert (row["volumes_status"], row["hippocampus_left_ml"]) == ("reported", "3")


def test_regions_of_an_atlas_are_columns_of_their_own_empty_where_a_scan_has_them_not() -> None:
    one, other = measured(atlas_ml={"Left Hippocampus": 3.3, "hippocampus left": 1.0}), measured(atlas_ml={})
    first, second = rows([one, other])
    assert list(first)[-2:] == ["atlas_left_hippocampus_ml", "atlas_hippocampus_left_ml"]
    assert (first["atlas_left_hippocampus_ml"], second["atlas_left_hippocampus_ml"]) == ("3.3", "")
    assert first["hippocampus_left_ml"] == "3", "the network's own stays its own"


@given(st.lists(st.text(max_size=8)))
def test_no_two_columns_of_an_atlas_are_equal_in_any_spelling(regions) -> None:
    columns = atlas_columns(regions)
    assert list(columns) == list(dict.fromkeys(regions))
    assert len({column.casefold() for column in columns.values()}) == len(columns)
    assert all(column.startswith("atlas_") and column.endswith("_ml") for column in columns.values())
    assert not set(columns.values()) & {*MEASURES, *PERCENTILES, *IDENTITY}


def test_names_that_already_end_in_a_number_are_told_apart_too() -> None:
    assert list(atlas_columns(["a", "a 2", "A", "!?"]).values()) == [
        "atlas_a_ml",
        "atlas_a_2_ml",
        "atlas_a_3_ml",
        "atlas_region_ml",
    ]


def test_with_norms_every_volume_has_its_percentile_and_interval(context) -> None:
    (row,) = rows([measured()], context)
    assert row["norms_id"] == context.norms_id
    assert row["norms_reasons"] == ""
    for name in VOLUMES:
        low, found, high = (
            float(row[f"{name}_{what}"]) for what in ("percentile_low", "percentile", "percentile_high")
        )
        assert 0 <= low < found < high <= 100
        assert found == pytest.approx(50, abs=12)


def test_a_smaller_hippocampus_has_a_lower_percentile_and_the_others_stay(context) -> None:
    whole, shrunk = rows([measured(), measured(ml=ML | {"hippocampus_left": 2.97})], context)
    assert float(shrunk["hippocampus_left_percentile"]) < float(whole["hippocampus_left_percentile"]) - 20
    assert shrunk["hippocampus_right_percentile"] == whole["hippocampus_right_percentile"]


def test_a_withheld_volume_is_compared_with_nothing(context) -> None:
    (row,) = rows([measured(ml=ML | {"ventricle_left": None}, reasons=("ventricle_left:absent",))], context)
    assert row["ventricle_left_percentile"] == ""
    assert row["ventricle_right_percentile"] != ""
    assert row["norms_reasons"] == ""


@pytest.mark.parametrize(
    ("person", "against", "code"),
    [
        pytest.param({"age": None}, {}, "age_unknown", id="age unknown"),
        pytest.param({"age": 45.0}, {}, "age_outside", id="too young"),
        pytest.param({"age": 94.0}, {}, "age_outside", id="too old"),
        pytest.param({"sex": None}, {}, "sex_unknown", id="sex unknown"),
        pytest.param({"sex": "other"}, {}, "sex_unknown", id="another sex"),
        pytest.param({"sex": "M"}, {"sexes": "F"}, "sex_not_seen", id="a man among women"),
        pytest.param({"sex": None}, {"sexes": "F"}, "sex_unknown", id="anybody among women"),
        pytest.param({"sex": "F"}, {"sexes": "F"}, "", id="a woman among women"),
        pytest.param({"sex": "M"}, {"sexes": "x"}, "", id="where no sex is known"),
        pytest.param({"sex": None}, {"sexes": "x"}, "", id="and none is known here"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(person, against, code, context) -> None:
    asked = replace(context, norms=norms(**against))
    outcome = measured(about=scan(**person))
    (row,) = rows([outcome], asked)
    assert row["norms_reasons"] == code
    assert ({row[name] for name in PERCENTILES} == {""}) is bool(code)
    assert all((one.finding.percentile is None) is bool(code) for one in normed_volumes(outcome, asked))
    assert all(bool(one.finding.reason) is bool(code) for one in normed_volumes(outcome, asked))


def test_a_volume_that_the_norms_have_not_is_named(context) -> None:
    known = norms()
    fewer = [norm for norm in known.reference.norms if norm.measure != "csf_pct_icv"]
    asked = replace(
        context, norms=norms(reference=known.reference.model_copy(update={"norms": tuple(fewer)}))
    )
    (row,) = rows([measured()], asked)
    assert row["norms_reasons"] == "csf:no_norm"
    assert row["csf_percentile"] == ""
    assert row["grey_matter_percentile"] != ""


def test_a_scan_of_an_earlier_run_that_was_preprocessed_otherwise_is_compared_with_nothing(context) -> None:
    (row,) = rows([replace(measured(), preprocessing_id="p-of-then")], context)
    assert row["norms_reasons"] == "preprocessed_otherwise"
    assert {row[name] for name in PERCENTILES} == {""}


def test_the_dictionary_has_every_column_and_no_other(context) -> None:
    table = volumes_table([measured(atlas_ml={"Left Hippocampus": 3.3}), FAILED], context)
    dictionary = volumes_dictionary(table.columns, table.region_of)
    assert tuple(dictionary) == table.columns
    assert "Left Hippocampus" in dictionary["atlas_left_hippocampus_ml"]["Description"]
    assert dictionary["hippocampus_left_pct_icv"]["Units"] == "%"
    assert "left hippocampus" in dictionary["hippocampus_left_ml"]["Description"]
