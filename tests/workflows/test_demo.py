"""The demonstration's cohort is what the manifest at the root says, and its run judges itself."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from brainstage.models.conformal import LEVEL, attainable_level
from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.errors import ImageError, OutputError
from brainstage.pipeline.files import sha256_of_bytes, write_bytes
from brainstage.pipeline.manifest import read_manifest, rows_of
from brainstage.pipeline.nifti import read_raw
from brainstage.workflows import demo
from brainstage.workflows.synthetic import cohort as demo_cohort
from brainstage.workflows.synthetic.anatomy import HeadAnatomy
from brainstage.workflows.synthetic.cohort import Defect, DemoScan, nifti_bytes, scan_bytes, write_demo_bids
from brainstage.workflows.synthetic.heads import make_head

ROOT_MANIFEST = Path(__file__).parents[2] / "data_manifest.csv"
COHORT = demo_cohort.demo_cohort()
DAMAGED = next(scan for scan in COHORT if scan.defect is Defect.TRUNCATED)


def scan_named(key: str) -> DemoScan:
    return next(scan for scan in COHORT if scan.entities.key == key)


class TestCohort:
    def test_classes_sites_sexes_and_ages_are_balanced(self) -> None:
        people = demo_cohort.PARTICIPANTS
        assert Counter(p.diagnosis for p in people) == {"CN": 12, "MCI": 12, "AD": 12}
        assert len({(p.diagnosis, p.site, p.sex) for p in people}) == 12
        assert set(Counter((p.diagnosis, p.site, p.sex) for p in people).values()) == {3}
        means = [np.mean([p.age for p in people if p.diagnosis == name]) for name in ("CN", "MCI", "AD")]
        assert np.ptp(means) < 0.5
        assert all(60 <= scan.age <= 89 for scan in COHORT)

    def test_some_came_twice_one_file_is_damaged_one_has_the_wrong_contrast(self) -> None:
        assert Counter(scan.months for scan in COHORT) == {0: 36, 12: 3}
        assert Counter(scan.defect for scan in COHORT) == {
            Defect.NONE: 37,
            Defect.TRUNCATED: 1,
            Defect.WRONG_CONTRAST: 1,
        }

    @pytest.mark.parametrize("diagnosis", ["CN", "MCI", "AD"])
    def test_each_class_has_scans_enough_for_sets_at_the_full_level(self, diagnosis: str) -> None:
        persons = [
            int(scan.participant.label)
            for scan in COHORT
            if scan.participant.diagnosis == diagnosis and scan.defect is Defect.NONE
        ]
        assert attainable_level(np.array(persons)) == LEVEL

    def test_disease_widens_ventricles_and_shrinks_hippocampi_with_overlap(self) -> None:
        def scales(diagnosis: str) -> np.ndarray:
            people = [p for p in demo_cohort.PARTICIPANTS if p.diagnosis == diagnosis]
            return np.array([(p.ventricle_scale, p.hippocampus_scale) for p in people])

        for milder, worse in (("CN", "MCI"), ("MCI", "AD")):
            assert scales(milder)[:, 0].mean() < scales(worse)[:, 0].mean()
            assert scales(milder)[:, 1].mean() > scales(worse)[:, 1].mean()
            beyond_wide = (scales(milder)[:, 0] > scales(worse)[:, 0].min()).sum()
            beyond_small = (scales(milder)[:, 1] < scales(worse)[:, 1].max()).sum()
            assert min(beyond_wide, beyond_small) >= 2

    def test_a_year_later_the_person_is_the_same_and_the_atrophy_greater(self) -> None:
        first, later = scan_named("sub-03_ses-M00").recipe, scan_named("sub-03_ses-M12").recipe
        assert first.person_seed == later.person_seed
        assert first.scan_seed != later.scan_seed
        assert first.ventricle_scale < later.ventricle_scale
        assert first.hippocampus_scale > later.hippocampus_scale

    def test_every_scan_is_another_head(self) -> None:
        assert len({scan.fingerprint for scan in COHORT}) == len(COHORT)


class TestManifest:
    def test_the_manifest_at_the_root_is_this_cohort(self) -> None:
        rows = read_manifest(ROOT_MANIFEST)
        assert [replace(row, sha256=None) for row in rows] == [
            replace(scan.manifest_row(""), sha256=None) for scan in COHORT
        ]
        assert len({row.sha256 for row in rows}) == len(rows)

    def test_the_manifest_at_the_root_has_the_columns_of_the_contract(self) -> None:
        header = ROOT_MANIFEST.read_text(encoding="utf-8").splitlines()[0]
        assert header == "participant_id,session_id,run_id,t1w_path,sha256,age,sex,site,diagnosis,split"

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param("sub-01_ses-M00", id="site-A"),
            pytest.param("sub-04_ses-M12", id="site-B-follow-up"),
            pytest.param(DAMAGED.entities.key, id="damaged"),
            pytest.param("sub-24_ses-M00", id="wrong-contrast"),
        ],
    )
    def test_heads_made_again_have_the_sha256_of_the_manifest(self, anatomy: HeadAnatomy, key: str) -> None:
        expected = {row.t1w_path: row.sha256 for row in read_manifest(ROOT_MANIFEST)}
        scan = scan_named(key)
        assert sha256_of_bytes(scan_bytes(anatomy, scan)) == expected[scan.t1w_path]


@pytest.fixture(scope="module")
def coarse_files(anatomy: HeadAnatomy) -> dict[str, bytes]:
    """Make four scans in 8 mm voxels; scan key to content."""
    files = {}
    for key in ("sub-03_ses-M00", "sub-03_ses-M12", "sub-13_ses-M00", DAMAGED.entities.key):
        scan = scan_named(key)
        files[key] = nifti_bytes(make_head(anatomy, replace(scan.recipe, spacing_mm=(8.0, 8.0, 8.0))))
    files[DAMAGED.entities.key] = files[DAMAGED.entities.key][:5000]
    return files


@pytest.fixture
def small_cohort(
    monkeypatch: pytest.MonkeyPatch, anatomy: HeadAnatomy, coarse_files: dict[str, bytes]
) -> list[str]:
    """Let the cohort be the four coarse scans; the list notes which of them were made."""
    made: list[str] = []

    def coarse_bytes(_anatomy: HeadAnatomy, scan: DemoScan) -> bytes:
        made.append(scan.entities.key)
        return coarse_files[scan.entities.key]

    monkeypatch.setattr(demo_cohort, "demo_cohort", lambda: tuple(scan_named(key) for key in coarse_files))
    monkeypatch.setattr(demo_cohort, "scan_bytes", coarse_bytes)
    monkeypatch.setattr(demo_cohort, "load_anatomy", lambda: anatomy)
    monkeypatch.setattr(demo_cohort, "WRITERS", 1)
    return made


def ignore(_line: str) -> None:
    """Take a line and do nothing."""


@pytest.mark.usefixtures("small_cohort")
class TestBids:
    def test_the_dataset_reads_back_as_the_rows_that_were_returned(self, tmp_path: Path) -> None:
        rows = write_demo_bids(tmp_path / "bids", ignore)
        dataset = read_dataset(tmp_path / "bids")
        sha256 = {scan.key: row.sha256 or "" for scan, row in zip(dataset.scans, rows, strict=True)}
        assert rows_of(dataset, sha256) == rows
        assert not dataset.account.set_aside

    def test_headers_agree_with_themselves_and_carry_no_text(self, tmp_path: Path) -> None:
        write_demo_bids(tmp_path, ignore)
        header = nib.load(tmp_path / scan_named("sub-13_ses-M00").t1w_path).header
        np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
        assert header.get_data_dtype() == np.int16
        assert not header["descrip"].item()

    def test_the_damaged_file_raises(self, tmp_path: Path) -> None:
        write_demo_bids(tmp_path, ignore)
        with pytest.raises(OSError, match="Expected"):
            nib.load(tmp_path / DAMAGED.t1w_path).get_fdata()
        with pytest.raises(ImageError, match="truncated"):
            read_raw(tmp_path / DAMAGED.t1w_path)

    def test_a_second_time_nothing_is_made(self, tmp_path: Path, small_cohort: list[str]) -> None:
        first = write_demo_bids(tmp_path, ignore)
        small_cohort.clear()
        assert write_demo_bids(tmp_path, ignore) == first
        assert small_cohort == []

    def test_only_an_altered_file_is_made_again(self, tmp_path: Path, small_cohort: list[str]) -> None:
        first = write_demo_bids(tmp_path, ignore)
        small_cohort.clear()
        write_bytes(tmp_path / scan_named("sub-13_ses-M00").t1w_path, b"altered")
        assert write_demo_bids(tmp_path, ignore) == first
        assert small_cohort == ["sub-13_ses-M00"]

    def test_another_dataset_is_never_written_over(self, tmp_path: Path) -> None:
        description = tmp_path / "dataset_description.json"
        description.write_text('{"Name": "my study", "BIDSVersion": "1.10.0"}', encoding="utf-8")
        with pytest.raises(OutputError, match="no earlier demonstration"):
            write_demo_bids(tmp_path, ignore)
        assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]


SAID = {"CN": ("CN", 0.7, 0.1), "MCI": ("CN;MCI;AD", 0.3, 0.3), "AD": ("MCI;AD", 0.2, 0.5)}
"""Prediction set, p_CN and p_AD."""


class FakeProgram:
    """Stands in for the command line: notes the commands, writes what they would, answers with exit codes."""

    def __init__(self, codes: tuple[int, ...], failed: tuple[str, ...]) -> None:
        self.codes = list(codes)
        self.failed = failed
        self.commands: list[list[str]] = []

    def main(self, arguments: list[str]) -> int:
        self.commands.append(arguments)
        if arguments[0] == "run":
            self._predict(Path(arguments[2]))
        else:
            folder = Path(arguments[2]) / "evaluation"
            folder.mkdir(parents=True)
            measure = {"value": 0.75, "low": 0.5, "high": None}
            found = {"measures": {"balanced_accuracy": measure}}
            content = {
                "cross_validation": found,
                "members": {"linear": found},
                "control_random_labels": {"predictor": found},
            }
            (folder / "metrics.json").write_text(json.dumps(content))
        return self.codes.pop(0)

    def _predict(self, out_dir: Path) -> None:
        out_dir.mkdir(exist_ok=True)
        with (out_dir / "predictions.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["t1w_path", "prediction_status", "prediction_set", "label", "p_CN", "p_AD"])
            for scan in COHORT:
                if scan.entities.key in self.failed:
                    writer.writerow([scan.t1w_path, "failed", "", scan.participant.diagnosis, "", ""])
                else:
                    said = ["reported", *SAID[scan.participant.diagnosis]]
                    writer.writerow([scan.t1w_path, *said[:2], scan.participant.diagnosis, *said[2:]])


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the demonstration over a stand-in program; returns exit code, lines and the program."""

    def run(codes: tuple[int, ...] = (1, 0, 1), failed: tuple[str, ...] = (DAMAGED.entities.key,)):
        program = FakeProgram(codes, failed)
        module = ModuleType("brainstage.workflows.cli")
        module.main = program.main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "brainstage.workflows.cli", module)
        monkeypatch.setattr(demo, "write_demo_bids", lambda _directory, _say: [])
        lines: list[str] = []
        return demo.run_demo(tmp_path, lines.append), lines, program

    monkeypatch.setenv("BRAINSTAGE_CACHE", str(tmp_path / "cache"))
    return run


class TestRun:
    def test_it_runs_trains_and_predicts_and_says_where_to_look(self, run_with, tmp_path: Path) -> None:
        code, lines, program = run_with()
        assert code == 0
        assert [command[0] for command in program.commands] == ["run", "train", "run"]
        assert program.commands[2][-2:] == ["--model", str(tmp_path / "model")]
        said = "\n".join(lines)
        for wanted in (
            "predictions: 38 reported, 1 failed",
            "prediction sets: 13 of one class, 13 of two classes, 12 of all three",
            "AUC of AD against CN on held-out participants: 1.00",
            "sub-03_ses-M12.html",
            "0.75 (95 % interval 0.50 to undefined)",
            "synthetic",
            "cohort.html",
            "predictions.csv",
            "MODEL_CARD.md",
        ):
            assert wanted in said

    def test_the_auc_counts_pairs_of_scans_with_probabilities(self) -> None:
        said = [("AD", 0.6, 0.2), ("AD", 0.3, 0.3), ("CN", 0.2, 0.7), ("CN", 0.4, 0.4), ("MCI", 0.9, 0.1)]
        rows = [{"label": label, "p_AD": str(ad), "p_CN": str(cn)} for label, ad, cn in said]
        withheld = {"label": "CN", "p_AD": "", "p_CN": ""}
        assert demo.auc_of_ad([*rows, withheld]) == pytest.approx(3.5 / 4)

    def test_without_fetched_weights_it_takes_random_ones_and_says_so(self, run_with) -> None:
        _, lines, program = run_with()
        assert program.commands[1][-2:] == ["--weights", "random"]
        assert any("not pretrained" in line for line in lines)

    def test_fetched_weights_are_used(self, run_with, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "med3d-resnet10.safetensors").touch()
        _, _, program = run_with()
        assert program.commands[1][-2:] == ["--weights", "med3d-resnet10"]

    @pytest.mark.parametrize(
        ("codes", "said"),
        [
            pytest.param((0, 0, 1), "exit code 0 instead of 1", id="the-damaged-file-passed"),
            pytest.param((1, 65, 1), "exit code 65 instead of 0", id="training-failed"),
        ],
    )
    def test_another_exit_code_stops_it(self, run_with, codes: tuple[int, ...], said: str) -> None:
        code, lines, _ = run_with(codes)
        assert code == 1
        assert said in lines[-1]

    def test_a_failure_that_was_not_expected_makes_it_fail(self, run_with) -> None:
        code, lines, _ = run_with(failed=(DAMAGED.entities.key, "sub-01_ses-M00"))
        assert code == 1
        assert "failed without being damaged: sub-01/ses-M00" in lines[-1]
