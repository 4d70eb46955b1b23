"""Names on disk are those of the contract, and nothing in them describes this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainstage import __version__
from brainstage.pipeline.derivatives import ScanFiles, sidecar_of, write_dataset_description
from brainstage.pipeline.entities import BidsEntities

PLAIN = ScanFiles(out_dir=Path("out"), entities=BidsEntities(subject="01"))
FULL = ScanFiles(
    out_dir=Path("out"), entities=BidsEntities(subject="01", session="M00", run="1"), resolution="1p5"
)


@pytest.mark.parametrize(
    ("name", "plain", "full"),
    [
        (
            "native_t1w",
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_desc-preproc_T1w.nii.gz",
        ),
        (
            "native_mask",
            "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_desc-brain_mask.nii.gz",
        ),
        (
            "template_t1w",
            "sub-01/anat/sub-01_space-MNI152NLin2009aSym_res-1_desc-preproc_T1w.nii.gz",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_space-MNI152NLin2009aSym_res-1p5_desc-preproc_T1w.nii.gz",
        ),
        (
            "template_mask",
            "sub-01/anat/sub-01_space-MNI152NLin2009aSym_res-1_desc-brain_mask.nii.gz",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_space-MNI152NLin2009aSym_res-1p5_desc-brain_mask.nii.gz",
        ),
        (
            "native_to_template",
            "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
        ),
        (
            "template_to_native",
            "sub-01/anat/sub-01_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5",
        ),
        (
            "qc_json",
            "sub-01/anat/sub-01_desc-qc.json",
            "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_desc-qc.json",
        ),
        ("report", "sub-01.html", "sub-01_ses-M00_run-1.html"),
        ("state", ".brainstage/sub-01", ".brainstage/sub-01_ses-M00_run-1"),
        ("figures", "sub-01/figures", "sub-01/figures"),
    ],
)
def test_a_file_has_the_name_of_the_contract(name, plain, full):
    assert PLAIN.relative(getattr(PLAIN, name)) == plain
    assert FULL.relative(getattr(FULL, name)) == full


def test_sessions_share_a_folder_of_figures_but_no_figure():
    other = ScanFiles(out_dir=Path("out"), entities=BidsEntities(subject="01", session="M12"))
    assert other.figures == FULL.figures
    assert other.figure("bias_field") != FULL.figure("bias_field")
    assert "desc-biasfield" in FULL.figure("bias_field").name
    assert FULL.preview("native_mask").name.endswith("_desc-nativemask_T1w.nii.gz")


@pytest.mark.parametrize("name", ["x_T1w.nii", "x_T1w.nii.gz"])
def test_a_sidecar_stands_beside_its_image(name):
    assert sidecar_of(Path("a") / name) == Path("a/x_T1w.json")


def described(out_dir: Path, bids_dir: Path, source: dict) -> dict:
    for folder in (out_dir, bids_dir):
        folder.mkdir(parents=True, exist_ok=True)
    write_dataset_description(out_dir, bids_dir, source)
    return json.loads((out_dir / "dataset_description.json").read_text())


def test_the_output_describes_itself_as_a_derivative(tmp_path):
    content = described(
        tmp_path / "out",
        tmp_path / "bids",
        {"Name": "Toy", "DatasetDOI": "doi:10.1/x", "Authors": ["A Person"]},
    )
    assert (content["DatasetType"], content["BIDSVersion"]) == ("derivative", "1.10.0")
    assert content["GeneratedBy"][0]["Name"] == "brainstage"
    assert content["GeneratedBy"][0]["Version"] == __version__
    assert content["SourceDatasets"] == [{"DOI": "doi:10.1/x"}]
    assert content["DatasetLinks"] == {"raw": "../bids"}
    assert "Toy" in content["Name"]
    assert "A Person" not in json.dumps(content)


def test_what_bids_does_not_know_is_named_in_bidsignore(tmp_path):
    described(tmp_path / "out", tmp_path / "bids", {})
    ignored = (tmp_path / "out" / ".bidsignore").read_text().splitlines()
    assert {".brainstage/", "logs/", "*.html", "**/figures/"} <= set(ignored)


def test_a_far_away_source_is_not_linked(tmp_path):
    content = described(tmp_path / "a/b/c/d/out", tmp_path / "bids", {})
    assert content["DatasetLinks"] == {}
    assert str(tmp_path) not in json.dumps(content)
