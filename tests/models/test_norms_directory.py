"""A norms directory that was altered, is of something else, or of volumes measured otherwise is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainstage.models.model_directory import replaced_directory
from brainstage.models.norms import Norm, ReferenceClass
from brainstage.models.norms_directory import (
    NORMS_FILE,
    NormsDescription,
    read_norms,
    require_measured_alike,
    require_replaceable_norms,
)
from brainstage.pipeline.errors import ExitCode, InputMissingError, ModelError, OutputError

CONTENT = {
    "brain_extraction": {"method": "auto"},
    "registration": {"method": "affine", "resolution_mm": 1.0},
    "network_grid": {"spacing_mm": 2.0},
    "stage_versions": {"bias_field": "3", "network_grid": "2"},
}


def made(**altered) -> NormsDescription:
    norm = Norm(
        measure="hippocampus_left_pct_icv",
        by=("age",),
        people=40,
        coefficients=(-1.5, -0.005),
        spread=((0.1, 0.0), (0.0, 0.001)),
        residual_sd=0.1,
        ages=(50.0, 90.0),
    )
    known = {
        "people": 40,
        "sexes": {"F": 20, "M": 20, "unknown": 0},
        "reference": ReferenceClass(label="CN", norms=(norm,), measured_by="1"),
        "preprocessing_id": "p1",
        "preprocessing_content": CONTENT,
    }
    norms = NormsDescription(**known | altered)
    return norms.model_copy(update={"norms_id": norms.own_id})


def written(folder: Path, norms: NormsDescription) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / NORMS_FILE).write_text(norms.model_dump_json())
    return folder


def test_norms_are_read_as_they_were_written(tmp_path) -> None:
    norms = made(dataset="healthy", labels=("CN",), label_column="diagnosis", versions={"numpy": "2.0"})
    assert read_norms(written(tmp_path / "norms", norms)) == norms


def test_the_id_is_of_what_changes_a_percentile_and_not_of_versions() -> None:
    assert made().norms_id == made(versions={"numpy": "2.1"}).norms_id
    assert made().norms_id != made(sexes={"F": 30, "M": 10, "unknown": 0}).norms_id
    assert made().norms_id[0] == "n"


def test_what_is_not_there_is_missing_and_what_is_no_norms_directory_is_a_bad_file(tmp_path) -> None:
    with pytest.raises(InputMissingError, match="make one with brainstage norms") as missing:
        read_norms(tmp_path / "none")
    assert missing.value.exit_code is ExitCode.INPUT_MISSING
    with pytest.raises(ModelError, match="is no norms directory") as bad:
        read_norms(tmp_path)
    assert bad.value.exit_code is ExitCode.BAD_DATA_FILE


def altered_text(text: str) -> list[str]:
    content = json.loads(text)
    norm = content["reference"]["norms"][0]
    return [
        "{",
        "[]",
        "NaN",
        json.dumps(content | {"later": 1}),
        json.dumps(content | {"people": 41}),
        json.dumps(content | {"schema_version": 2}),
        json.dumps(content | {"reference": content["reference"] | {"norms": []}}),
        json.dumps(content | {"reference": content["reference"] | {"norms": [norm, norm]}}),
        json.dumps(content | {"reference": content["reference"] | {"norms": [norm | {"residual_sd": 0.2}]}}),
        text.replace("-0.005", "1e999"),
    ]


@pytest.mark.parametrize("number", range(10))
def test_a_file_that_was_altered_is_refused(tmp_path, number) -> None:
    norms = made()
    written(tmp_path, norms)
    (tmp_path / NORMS_FILE).write_text(altered_text(norms.model_dump_json())[number])
    with pytest.raises(ModelError, match=r"is not usable|was altered"):
        read_norms(tmp_path)


def test_norms_of_another_version_of_the_volumes_are_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="measures version 2: run the healthy cohort again") as error:
        require_measured_alike(made(), "2", CONTENT)
    assert error.value.exit_code is ExitCode.BAD_DATA_FILE


def test_norms_of_another_preprocessing_are_refused_with_what_differs() -> None:
    here = CONTENT | {"brain_extraction": {"method": "ants"}}
    with pytest.raises(ModelError, match=r'brain_extraction.method is "ants" here and "auto" in the norms'):
        require_measured_alike(made(), "1", here)


@pytest.mark.parametrize(
    "harmless",
    [
        {"network_grid": {"spacing_mm": 1.5}},
        {"registration": {"method": "affine", "resolution_mm": 2.0}},
        {"stage_versions": {"bias_field": "3", "network_grid": "9"}},
    ],
)
def test_what_changes_no_volume_is_no_reason_to_refuse(harmless) -> None:
    require_measured_alike(made(), "1", CONTENT | harmless)
    assert made().measured_alike(CONTENT | harmless)


def test_only_norms_are_replaced(tmp_path) -> None:
    folder = written(tmp_path / "norms", made())
    with replaced_directory(folder, require_replaceable_norms) as filling:
        written(filling, made(dataset="other"))
    assert read_norms(folder).dataset == "other"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name, why in (("thesis", "not empty and not a norms directory"), ("file", "is a file")):
        with pytest.raises(OutputError, match=why):
            require_replaceable_norms(tmp_path / name)
    require_replaceable_norms(tmp_path / "new")


def test_half_written_norms_leave_the_earlier_ones(tmp_path) -> None:
    folder = written(tmp_path / "norms", made())
    with pytest.raises(RuntimeError), replaced_directory(folder, require_replaceable_norms):
        raise RuntimeError("the power went")
    assert read_norms(folder) == made()
    assert [path.name for path in tmp_path.iterdir()] == ["norms"]
