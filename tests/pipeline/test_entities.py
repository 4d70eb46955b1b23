"""BIDS names: taken apart without judging, judged with every fault, put together in order."""

from __future__ import annotations

import pytest

from brainstage.pipeline.entities import (
    BidsEntities,
    bare_label,
    entities_of,
    format_entities,
    natural_order,
    parse_name,
    prefixed_label,
    validate_name,
)


@pytest.mark.parametrize(
    "name",
    [
        "T1.nii.gz",
        "sub-01_T1w.nii.gz.part",
        "sub-01_T1w.mgz",
        "sub-01_T1w",
        "sub-01__T1w.nii",
        "sub_T1w.nii",
        "sub-01_sub-02_T1w.nii.gz",
        "-01_T1w.nii.gz",
        "sub-01_T1w.NII.GZ",
        "sub-01\n_T1w.nii",
        "",
    ],
)
def test_what_is_no_bids_name_has_no_parts(name):
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("sub-_T1w.nii", "label '' of 'sub' is not letters and digits"),
        ("sub-0 1_T1w.nii", "is not letters and digits"),
        ("sub-é_T1w.nii", "is not letters and digits"),
        ("sub-01_ses-M-1_T1w.nii", "label 'M-1' of 'ses' is not letters and digits"),
        ("sub-٣_T1w.nii", "is not letters and digits"),
        ("sub-01_flip-1_T1w.nii", "entity 'flip' is not allowed"),
        ("sub-01_desc-preproc_T1w.nii", "entity 'desc' is not allowed"),
        ("ses-1_T1w.nii", "does not begin with sub-"),
        ("ses-1_sub-01_T1w.nii", "does not begin with sub-"),
        ("sub-01_run-1_acq-x_T1w.nii", "not in the order sub, ses"),
    ],
)
def test_a_fault_in_a_name_is_named(name, fault):
    assert any(fault in found for found in validate_name(parse_name(name)))


def test_all_faults_come_together():
    faults = validate_name(parse_name("run-1_acq-a+b_sub-01_flip-2_T1w.nii"))
    assert len(faults) == 4


@pytest.mark.parametrize(
    "name", ["sub-01_T1w.nii", "sub-CC0001_ses-20250131_acq-MPRAGE_ce-gd_rec-norm_run-007_T1w.nii.gz"]
)
def test_a_good_name_has_no_fault(name):
    assert validate_name(parse_name(name)) == []


def test_labels_are_kept_as_written():
    entities = entities_of(parse_name("sub-001_run-02_T1w.nii.gz"))
    assert entities == BidsEntities(subject="001", run="02")
    assert entities.key == "sub-001_run-02"


def test_entities_come_out_in_the_order_of_bids():
    entities = BidsEntities(run="1", subject="01", acquisition="x", session="M00")
    assert format_entities(entities, space="MNI", desc="brain") == (
        "sub-01_ses-M00_acq-x_run-1_space-MNI_desc-brain"
    )


def test_a_derived_entity_may_be_a_python_keyword_or_absent():
    assert format_entities(BidsEntities(subject="1"), from_="T1w", to=None) == "sub-1_from-T1w"


def test_scans_sort_by_participant_then_session_then_run():
    given = [
        BidsEntities(subject="02"),
        BidsEntities(subject="01", session="M12"),
        BidsEntities(subject="01", session="M00", run="2", acquisition="a"),
        BidsEntities(subject="01", session="M00", run="1", acquisition="b"),
        BidsEntities(subject="01"),
    ]
    keys = [entities.key for entities in sorted(given, key=lambda entities: entities.sort_key)]
    assert keys == [
        "sub-01",
        "sub-01_ses-M00_acq-b_run-1",
        "sub-01_ses-M00_acq-a_run-2",
        "sub-01_ses-M12",
        "sub-02",
    ]


@pytest.mark.parametrize(
    ("given", "bare", "prefixed"), [("01", "01", "sub-01"), ("sub-01", "01", "sub-01"), ("", "", "")]
)
def test_a_label_with_and_without_its_key_is_the_same(given, bare, prefixed):
    assert bare_label(given, "sub") == bare
    assert prefixed_label(given, "sub") == prefixed


def test_numbers_of_any_length_have_an_order():
    huge = "9" * 5000
    assert sorted([huge, f"1{huge}", "10", "9", "009"], key=natural_order) == [
        "9",
        "009",
        "10",
        huge,
        f"1{huge}",
    ]
