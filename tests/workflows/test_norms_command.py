"""From a healthy cohort to norms, and from norms to the tables and reports of another run."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from brainstage.models.norms_directory import read_norms
from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config, read_config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import ExitCode, InputMissingError, ModelError, OutputError, UsageError
from brainstage.pipeline.files import write_json
from brainstage.pipeline.records import VOLUMES, BrainVolumes
from brainstage.pipeline.stage import Stage
from brainstage.workflows import norms as module
from brainstage.workflows import run as run_module
from brainstage.workflows.cli import main
from brainstage.workflows.measured_volumes import VOLUMES_RECORD
from brainstage.workflows.norms import NormsOptions, make_norms
from brainstage.workflows.participant import ScanTask, process_scan
from brainstage.workflows.progress import Progress
from brainstage.workflows.reported import read_reported
from brainstage.workflows.run import RunOptions, run
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from stand_in import stand_in_stages

PEOPLE = 24


def volumes_of(key: str) -> dict[str, float | None]:
    """Return volumes that follow from a scan's name; the hippocampi of ``sub-99`` are small, those of 98 withheld."""
    rng = np.random.default_rng(list(key.encode()))
    found = {name: 100.0 * float(np.exp(0.05 * rng.standard_normal())) for name in VOLUMES}
    found |= {"intracranial": 1500.0, "hippocampus_left": 3.0 * found["hippocampus_left"] / 100}
    if "sub-99" in key:
        found["hippocampus_left"] = 2.65
    return dict.fromkeys(VOLUMES) if "sub-98" in key else dict(found)


def _save(state: Any, files: ScanFiles) -> Sequence[Path]:
    record = BrainVolumes(volumes_ml=volumes_of(state.key))
    return [write_json(files.state / VOLUMES_RECORD, asdict(record))]


def stages(config: Config) -> tuple[Stage, ...]:
    """Return stages of milliseconds, with volumes among them."""
    *before, _, figures = stand_in_stages(config)
    volumes = Stage(
        name="volumes",
        version="1",
        parameters={},
        reads=("quality",),
        run=lambda state: state,
        save=_save,
        load=lambda state, _: state,
    )
    return (*before, volumes, figures)


def context_of(out: Path, **known) -> RunContext:
    config = read_config(None, known.pop("overrides", {}))
    return RunContext(out_dir=out, config=config, chain=stages, umask=None, **known)


def prepare(bids: Path, out: Path, **known) -> None:
    """Bring every scan through its stages in this process; the rest of a run needs no workers then."""
    for scan in read_dataset(bids).scans:
        assert process_scan(ScanTask(scan=scan, context=context_of(out, **known))) is not None


def done(bids: Path, out: Path, **options) -> ExitCode:
    asked = {"overrides": {}, "processes": 1} | options
    return run(RunOptions(bids_dir=bids, out_dir=out, **asked), Progress(io.StringIO()), stages)


def rows(out: Path, name: str = "volumes.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def t1w(subject: str, session: str = "") -> str:
    folder = f"sub-{subject}/ses-{session}" if session else f"sub-{subject}"
    return f"{folder}/anat/{folder.replace('/', '_')}_T1w.nii.gz"


def table(labels: str = "CN", extra: str = "") -> str:
    lines = [
        f"{n:02d}\t{55 + n}\t{'FM'[n % 2]}\t{labels.split()[n % len(labels.split())]}\t{'AB'[n % 2]}"
        for n in range(PEOPLE)
    ]
    return "participant_id\tage\tsex\tdiagnosis\tsite\n" + "\n".join(lines) + "\n" + extra


def tree(root: Path, names: Sequence[str], participants: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4)), root / name)
    (root / "dataset_description.json").write_text('{"Name": "toy", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text(participants)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Run 24 healthy people of 55 to 78, one of them three times, one more whose volumes are withheld."""
    folder = tmp_path_factory.mktemp("cohort")
    names = [t1w(f"{n:02d}") for n in range(1, PEOPLE)] + [t1w("00", f"M{n}0") for n in range(3)]
    bids = tree(folder / "bids", [*names, t1w("98")], table(extra="98\t60\tF\tCN\tA\n"))
    prepare(bids, folder / "healthy")
    assert done(bids, folder / "healthy") is ExitCode.DONE
    return folder / "healthy"


@pytest.fixture
def healthy(finished, tmp_path) -> Path:
    """Copy the run, for a test to alter."""
    return Path(shutil.copytree(finished, tmp_path / "healthy"))


@pytest.fixture(scope="module")
def norms_dir(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("norms") / "norms"
    make_norms(finished, folder, NormsOptions(), lambda _: None)
    return folder


@pytest.fixture
def others(tmp_path) -> Path:
    """Three further people: one with a small hippocampus, one too old, one of unknown age."""
    people = "participant_id\tage\tsex\n99\t66\tF\n97\t91\tM\n96\tn/a\tM\n"
    return tree(tmp_path / "others", [t1w("97"), t1w("99"), t1w("96")], people)


@pytest.fixture
def reported(monkeypatch) -> dict[str, list[Any]]:
    """Collect what each report is made of, by scan."""
    import brainstage.workflows.scan_report as reports

    found: dict[str, list[Any]] = {}
    render = reports.render_scan_report

    def keep(report):
        found.setdefault(report.outcome.scan.key, []).append(report)
        return render(report)

    monkeypatch.setattr(reports, "render_scan_report", keep)
    return found


@pytest.fixture
def out(others, tmp_path, reported) -> Path:
    """Preprocess the three, without norms."""
    prepare(others, tmp_path / "out")
    return tmp_path / "out"


def test_norms_rest_on_one_scan_of_each_person_and_say_who_was_left_out(healthy, tmp_path) -> None:
    said: list[str] = []
    norms = make_norms(healthy, tmp_path / "norms", NormsOptions(), said.append)
    assert read_norms(tmp_path / "norms") == norms
    assert (norms.people, norms.sexes) == (PEOPLE, {"F": 12, "M": 12, "unknown": 0})
    assert {norm.people for norm in norms.reference.norms} == {PEOPLE}
    assert {norm.ages for norm in norms.reference.norms} == {(55.0, 78.0)}
    assert len(norms.reference.norms) == len(VOLUMES)
    assert "left out, volumes withheld or not measured: 1 (sub-98)" in said
    assert any(line.startswith("left out, another scan of the person is better: 2") for line in said)
    assert any("everybody was taken for healthy" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "norms").iterdir()) == ["NORMS_CARD.md", "norms.json"]


def test_the_card_says_who_they_are_and_for_whom_they_do_not_hold(norms_dir) -> None:
    card = (norms_dir / "NORMS_CARD.md").read_text()
    assert "| 50 to 59 | 3 | 2 | 0 |" in card
    assert "| 60 to 69 | 5 | 5 | 0 |" in card
    assert "Fewer than ten people: 50 to 59, 70 to 79." in card
    assert "| A | 12 |" in card
    assert "Research use only, not a diagnosis" in card
    assert "24 people are few" in card
    assert card.count("a line with age") == len(VOLUMES)
    assert "volumes withheld or not measured: 1 scan(s)" in card


def test_of_a_mixed_cohort_the_healthy_are_to_be_named(healthy, tmp_path) -> None:
    manifest = healthy / "data_manifest.csv"
    lines = manifest.read_text().splitlines()
    patients = [
        line.replace(",CN,", ",AD,") if line.startswith(("sub-03", "sub-04")) else line for line in lines
    ]
    manifest.write_text("\n".join(patients) + "\n")
    with pytest.raises(UsageError, match=r"AD \(2\), CN \(25\).*--label CN") as refused:
        make_norms(healthy, tmp_path / "norms", NormsOptions(), lambda _: None)
    assert refused.value.exit_code is ExitCode.WRONG_USAGE
    assert not (tmp_path / "norms").exists()
    said: list[str] = []
    norms = make_norms(healthy, tmp_path / "norms", NormsOptions(labels=("CN",)), said.append)
    assert (norms.people, norms.labels, norms.label_column) == (PEOPLE - 2, ("CN",), "diagnosis")
    assert norms.reference.label == "CN"
    assert any("not among the labels chosen: 2 (sub-03, sub-04)" in line for line in said)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": ("cn",)}, r"no scan has diagnosis 'cn'. Did you mean 'CN'"),
        ({"label_column": "diagnose"}, r"'diagnose' is empty or not there.*Did you mean 'diagnosis'"),
    ],
)
def test_a_label_or_column_that_is_not_there_is_refused_with_those_that_are(
    healthy, tmp_path, options, says
) -> None:
    with pytest.raises(UsageError, match=says):
        make_norms(healthy, tmp_path / "norms", NormsOptions(**options), lambda _: None)


def test_too_few_people_are_refused_with_what_became_of_the_others(healthy, tmp_path) -> None:
    manifest = healthy / "data_manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:12]) + "\n")
    with pytest.raises(
        InputMissingError, match=r"9 people of healthy can be used, and norms need 15.*2 another scan"
    ):
        make_norms(healthy, tmp_path / "norms", NormsOptions(), lambda _: None)


def test_a_person_who_looked_stands_over_quality_control(healthy, tmp_path) -> None:
    decisions = tmp_path / "qc_decisions.tsv"
    decisions.write_text(f"t1w_path\tdecision\n{t1w('05')}\tfail\n{t1w('00', 'M00')}\tfail\n")
    said: list[str] = []
    norms = make_norms(healthy, tmp_path / "norms", NormsOptions(qc_decisions=decisions), said.append)
    assert norms.people == PEOPLE - 1, "another scan of sub-00 takes the place of the one that was failed"
    assert any("failed quality control, or by whoever looked: 2" in line for line in said)


def test_the_test_split_is_left_out(healthy, tmp_path) -> None:
    manifest = healthy / "data_manifest.csv"
    header, *lines = manifest.read_text().splitlines()
    place = header.split(",").index("split")
    cells = [line.split(",") for line in lines]
    for one in cells:
        one[place] = "test" if one[0] == "sub-07" else ""
    manifest.write_text("\n".join([header, *(",".join(one) for one in cells)]) + "\n")
    assert make_norms(healthy, tmp_path / "norms", NormsOptions(), lambda _: None).people == PEOPLE - 1


def test_nothing_but_norms_is_replaced(healthy, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not a norms directory"):
        make_norms(healthy, tmp_path / "thesis", NormsOptions(), lambda _: None)


def test_a_run_with_norms_says_where_its_volumes_lie_and_computes_nothing_anew(
    norms_dir, others, out
) -> None:
    assert done(others, out) is ExitCode.DONE
    assert not [name for name in rows(out)[0] if "percentile" in name or name.startswith("norms")]
    before = {
        path: path.stat().st_mtime_ns
        for path in (out / ".brainstage").glob("sub-*/*")
        if "report" not in path.name
    }
    assert done(others, out, norms_dir=norms_dir) is ExitCode.DONE
    assert {path: path.stat().st_mtime_ns for path in before} == before
    unknown, old, small = rows(out)
    assert (unknown["norms_reasons"], old["norms_reasons"], small["norms_reasons"]) == (
        "age_unknown", "age_outside", "",
    )  # fmt: skip
    low, found, high = (float(small[f"hippocampus_left_percentile{end}"]) for end in ("_low", "", "_high"))
    assert low < found < high
    assert found < 6
    assert 1 < high < 30
    assert small["norms_id"] == read_norms(norms_dir).norms_id
    assert "hippocampus_left_percentile_low" in json.loads((out / "volumes.json").read_text())
    assert small["norms_id"] in (out / "methods.md").read_text()
    assert done(others, out) is ExitCode.DONE
    assert not [name for name in rows(out)[0] if "percentile" in name or name.startswith("norms")]
    assert small["norms_id"] not in (out / "methods.md").read_text()


def test_reports_are_written_anew_where_the_norms_change_and_only_there(
    norms_dir, others, out, reported
) -> None:
    for options in (
        {},
        {"norms_dir": norms_dir},
        {"norms_dir": norms_dir},
        {"level": "group", "norms_dir": norms_dir},
    ):
        done(others, out, **options)
    first, second = reported["sub-99"]
    assert first.norm_findings == ()
    (small,) = (one for one in second.norm_findings if one.measure == "hippocampus_left_pct_icv")
    assert small.percentile_low < small.percentile < small.percentile_high
    assert small.people == PEOPLE
    assert reported["sub-97"][1].norm_findings[0].reason.startswith("the age lies outside")


def test_the_group_level_alone_brings_norms_into_tables_and_reports_and_takes_them_out(
    norms_dir, others, out, reported
) -> None:
    done(others, out, level="group", norms_dir=norms_dir)
    assert rows(out)[2]["hippocampus_left_percentile"]
    assert reported["sub-99"][-1].norm_findings
    done(others, out, level="group")
    assert "norms_id" not in rows(out)[0]
    assert reported["sub-99"][-1].norm_findings == ()
    assert not (out / ".brainstage" / "norms.json").exists()


def test_scans_of_earlier_runs_are_compared_with_the_norms_of_the_last(
    norms_dir, others, out, reported
) -> None:
    done(others, out, participants=("99",))
    done(others, out, participants=("97",), norms_dir=norms_dir)
    assert rows(out)[2]["hippocampus_left_percentile"]
    assert reported["sub-99"][-1].norm_findings


def test_a_report_that_is_written_again_later_keeps_its_norms(norms_dir, others, out, reported) -> None:
    done(others, out, norms_dir=norms_dir)
    before = reported["sub-99"][-1]
    known = read_reported(before.outcome.scan.entities, t1w("99"), RunContext(out_dir=out, config=Config()))
    assert known is not None
    assert known[1].norms == read_norms(norms_dir)
    write_report(before.outcome, known[1], changed=True)
    assert reported["sub-99"][-1].norm_findings == before.norm_findings


def test_reports_only_takes_norms_too(norms_dir, others, out, reported) -> None:
    prepare(others, out, reports_only=True, norms=read_norms(norms_dir))
    assert reported["sub-99"][-1].norm_findings


def test_norms_of_another_version_or_preprocessing_are_refused_before_any_scan(
    norms_dir, others, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"brain_extraction\.method is .ants. here"):
        done(others, out, norms_dir=norms_dir, overrides={"brain_extraction": {"method": "ants"}})
    monkeypatch.setattr(run_module, "VOLUMES_VERSION", "later")
    with pytest.raises(ModelError, match="measures version later: run the healthy cohort again") as refused:
        done(others, out, norms_dir=norms_dir)
    assert refused.value.exit_code is ExitCode.BAD_DATA_FILE
    assert not out.exists()


def test_a_coarser_template_grid_changes_no_volume_and_is_no_reason_to_refuse(
    norms_dir, others, tmp_path
) -> None:
    overrides = {"registration": {"resolution_mm": 2.0}}
    prepare(others, tmp_path / "coarse", overrides=overrides)
    assert done(others, tmp_path / "coarse", norms_dir=norms_dir, overrides=overrides) is ExitCode.DONE
    assert rows(tmp_path / "coarse")[2]["hippocampus_left_percentile"]


def test_norms_travel_to_other_processes(norms_dir, tmp_path) -> None:
    context = RunContext(out_dir=tmp_path, config=Config(), norms=read_norms(norms_dir))
    assert pickle.loads(pickle.dumps(context)).norms == context.norms  # noqa: S301 - our own


def test_the_command_line_makes_norms_and_names_what_is_missing(healthy, others, tmp_path, capsys) -> None:
    assert main(["norms", str(healthy), str(tmp_path / "norms")]) == 0
    assert "Research use only" in capsys.readouterr().out
    assert main(["norms", str(healthy), str(tmp_path / "norms"), "--label", "HC"]) == 64
    assert "Present are CN (27)" in capsys.readouterr().err
    assert main(["norms", str(tmp_path / "none"), str(tmp_path / "new")]) == 66
    missing = ["run", str(others), str(tmp_path / "out"), "--norms", str(tmp_path / "new")]
    assert main(missing) == 66
    assert "brainstage norms" in capsys.readouterr().err


def test_only_what_decides_is_kept_of_the_people(norms_dir) -> None:
    text = (norms_dir / "norms.json").read_text() + (norms_dir / "NORMS_CARD.md").read_text()
    assert "sub-" not in text
    assert module.CARD_FILE in {path.name for path in norms_dir.iterdir()}
