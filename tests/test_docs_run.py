"""The code in the documentation does what it says: commands and Python are run, line by line, in a small cohort."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from brainstage.models.med3d import build_med3d, initialise_randomly
from brainstage.pipeline.nifti import write_volume
from brainstage.preprocessing.regions import coarse_atlas
from brainstage.preprocessing.template import load_template
from brainstage.workflows.cli import main

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (
    "README.md",
    "docs/get-started.md",
    "docs/how-to/use-another-atlas.md",
    "docs/concepts/coordinates.md",
    "docs/how-to/run-your-dataset.md",
    "docs/how-to/review-qc.md",
    "docs/how-to/train-on-your-cohort.md",
)
"""In an order in which none takes away what the next one needs: a new model ends the predictions of the old one."""
ONLY_PARSED = {
    "docs/concepts/norms.md": "needs fifteen healthy people; tests/workflows/test_norms_command.py runs the commands",
    "docs/concepts/sites.md": "needs three sites; tests/workflows/test_train_number.py trains by site",
    "docs/how-to/clusters.md": "needs a cluster",
    "docs/how-to/predict-a-number.md": "trains twice more; tests/workflows/test_train_number.py trains on ages",
    "docs/how-to/configuration.md": "preprocesses in another way, which takes minutes",
    "docs/how-to/offline-use.md": "trains once more, with the same weights from a file",
}
GIVEN = (
    "brainstage manifest BIDS_DIR -o data_manifest.csv",
    "brainstage run BIDS_DIR OUT_DIR",
    "brainstage run OTHER_BIDS_DIR OTHER_OUT_DIR",
    "brainstage fetch med3d-resnet10",
    "brainstage train OUT_DIR MODEL_DIR",
    "brainstage run BIDS_DIR OUT_DIR --model MODEL_DIR",
)
"""What the pages take as done, so that each test works alone."""


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Return (language, content) of the fenced blocks of a page."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def commands_of(page: str) -> list[str]:
    """Return the command lines of a page that are this program's."""
    lines = [line for language, body in blocks_of(page) if language == "sh" for line in body.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith("brainstage ")]


def write_cohort(bids: Path, diagnoses: Sequence[str], first_seed: int) -> None:
    """Write brains without their skull, which cost least: the template's, each with a texture of its own."""
    template = load_template(2.0)
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "small", "BIDSVersion": "1.10.0"}))
    table = ["participant_id\tage\tsex\tdiagnosis"]
    for number, diagnosis in enumerate(diagnoses, 1):
        noise = np.random.default_rng(first_seed + number).standard_normal(template.grid.shape)
        texture = gaussian_filter(noise, 2.0)
        values = template.t1w.data * (1 + 0.06 * texture / texture.std())
        data = np.where(template.brain_mask.data, 1000 * values / values.max(), 0).astype(np.int16)
        path = bids / f"sub-{number:02d}/ses-M00/anat/sub-{number:02d}_ses-M00_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data, template.t1w.voxel_to_ras), path)
        table.append(f"sub-{number:02d}\t{60 + number}\t{'FM'[number % 2]}\t{diagnosis}")
    (bids / "participants.tsv").write_text("\n".join(table) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Lay out what the documentation names: two cohorts, weights, an atlas, a filter, decisions."""
    place = tmp_path_factory.mktemp("docs")
    write_cohort(place / "BIDS_DIR", ["CN", "AD"] * 5, first_seed=0)
    write_cohort(place / "OTHER_BIDS_DIR", ["CN", "AD"], first_seed=100)
    network = build_med3d("resnet10")
    initialise_randomly(network, seed=0)
    (place / "cache").mkdir()
    weights = place / "cache" / "resnet_10_23dataset.pth"
    torch.save({"state_dict": network.state_dict()}, weights)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BRAINSTAGE_CACHE", str(weights.parent))
        # A stand-in under the published name would be refused.
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert main(["fetch", "med3d-resnet10", "--sha256", sha256]) == 0
    atlas = coarse_atlas()
    write_volume(place / "atlas.nii.gz", atlas.labels)
    names = [f"{index}\t{name}" for index, name in atlas.names.items()]
    (place / "atlas.tsv").write_text("\n".join(["index\tname", *names]) + "\n")
    (place / "filter.json").write_text(json.dumps({"t1w": {"session": "M00"}}))
    (place / "qc_decisions.tsv").write_text(
        "t1w_path\tdecision\nsub-01/ses-M00/anat/sub-01_ses-M00_T1w.nii.gz\tpass\n"
    )
    return place


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Remember what was run: the same line does the same thing on the next page."""
    return set()


@pytest.fixture
def run(folder, done, monkeypatch):
    """Return what runs a command line where the directories of the documentation lie."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BRAINSTAGE_CACHE", str(folder / "cache"))

    def run_(line: str) -> None:
        if line not in done:
            assert main(shlex.split(line)[1:]) == 0, line
            done.add(line)

    return run_


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_works(run, page):
    for line in (*GIVEN, *commands_of(page)):
        run(line)
    for language, body in blocks_of(page):
        if language == "python":
            exec(compile(body, page, "exec"), {})  # noqa: S102 - our own documentation


def test_every_page_with_code_is_run_or_known_not_to_be():
    pages = {
        path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    }
    with_code = {page for page in pages if commands_of(page) or "python" in dict(blocks_of(page))}
    assert with_code - set(PAGES) == set(ONLY_PARSED)


def test_make_says_what_there_is():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("\t")[0] for line in said.splitlines()} >= {"setup", "test", "demo", "docs"}
