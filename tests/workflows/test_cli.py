"""The command line: for every mistake one clear sentence and the promised exit code, never a traceback."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from brainstage import __version__
from brainstage.models.kernels import kernels
from brainstage.pipeline.engine import THREAD_VARIABLES
from brainstage.pipeline.errors import StorageError
from brainstage.workflows.arguments import build_parser
from brainstage.workflows.cli import HANDLERS, main

ONE = "sub-01/anat/sub-01_T1w.nii.gz"
HEAVY = ("torch", "ants", "monai", "sklearn", "pandas", "matplotlib", "scipy", "nilearn", "SimpleITK", "dask")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Take back what a run sets for its workers."""
    for name in (*THREAD_VARIABLES, "TMPDIR"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)


@pytest.fixture
def refusal(capsys, tmp_path):
    """Return a caller of the command line that expects one sentence, and gives back (exit code, sentence)."""

    def call(*words) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("brainstage: ")
        assert str(tmp_path) not in lines[0], "a sentence names files, not places on this machine"
        return code, lines[0]

    return call


@pytest.fixture
def bids(bids_tree):
    """Return a BIDS directory of two scans that are far too small to be heads."""
    return bids_tree(ONE, "sub-02/ses-M00/anat/sub-02_ses-M00_T1w.nii.gz")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_a_missing_directory(refusal, tmp_path, out):
    assert refusal("run", tmp_path / "nowhere", out) == (
        66,
        "brainstage: BIDS directory nowhere does not exist; give the directory that holds sub-*/",
    )
    assert not out.exists()


def test_an_empty_directory(refusal, tmp_path, out):
    (tmp_path / "empty").mkdir()
    code, sentence = refusal("run", tmp_path / "empty", out)
    assert (code, "is not a BIDS dataset" in sentence) == (16, True)
    code, sentence = refusal("run", tmp_path / "empty", out, "--skip-bids-validation")
    assert (code, "holds no sub-* directory" in sentence) == (16, True)


def test_a_dataset_without_t1w(refusal, bids_tree, out):
    code, sentence = refusal("run", bids_tree("sub-01/anat/sub-01_T2w.nii.gz"), out)
    assert (code, "holds no *_T1w.nii" in sentence) == (66, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--participant-label", "09"],
            "no T1w scan of participant 09; participants with T1w scans are 01, 02",
        ),
        (["--participant-label", "01", "sub-09"], "participant 09"),
        (["--session-label", "M99"], "the filters select no T1w scan"),
        (["--participant-label", "01", "--session-label", "M00"], "the filters select no T1w scan"),
    ],
    ids=["participant", "one_of_two", "session", "combination"],
)
def test_filters_that_select_nothing(refusal, bids, out, words, says):
    code, sentence = refusal("run", bids, out, *words)
    assert code == 18
    assert says in sentence


@pytest.mark.parametrize(
    ("option", "text", "code", "says"),
    [
        ("--config", "[ingest]\non_conflct = 'sform'", 65, "did you mean 'on_conflict'?"),
        ("--config", "[ingest", 65, "file.txt is not valid TOML"),
        ("--config", None, 66, "configuration file.txt cannot be read"),
        ("--manifest", "a,b\n1,2\n", 65, "has no column participant_id, t1w_path"),
        ("--manifest", "participant_id,t1w_path\nsub-09,sub-09/anat/x.nii\n", 65, "first sub-09/anat/x.nii"),
        ("--manifest", None, 66, "manifest file.txt cannot be read"),
        ("--bids-filter-file", "{", 65, "file.txt is not valid JSON"),
        ("--bids-filter-file", '{"t1w": {"sesion": "1"}}', 65, "unknown entity 'sesion'"),
        ("--bids-filter-file", '{"t1w": {"run": "7"}}', 18, "the filters select no T1w scan"),
        ("--bids-filter-file", None, 66, "filter file file.txt cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(refusal, tmp_path, bids, out, option, text, code, says):
    path = tmp_path / "file.txt"
    if text is not None:
        path.write_text(text)
    found, sentence = refusal("run", bids, out, option, path)
    assert found == code
    assert says in sentence


def test_a_model_that_is_not_there(refusal, tmp_path, bids, out):
    code, sentence = refusal("run", bids, out, "--model", tmp_path / "model")
    assert (code, "model directory model does not exist" in sentence) == (66, True)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"classes": []}'], ids=["absent", "torn", "list", "incomplete"]
)
def test_a_model_that_cannot_be_read(refusal, tmp_path, bids, out, text):
    (tmp_path / "model").mkdir()
    if text is not None:
        (tmp_path / "model" / "model.json").write_text(text)
    code, sentence = refusal("run", bids, out, "--model", tmp_path / "model")
    assert code == 65
    assert "model.json" in sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "b", "o", "--nproc", "2"], "unrecognized arguments: --nproc 2 (did you mean --nprocs?)"),
        (["run", "b", "o", "--participant-lable=01"], "(did you mean --participant-label?)"),
        (["train", "o", "m", "--fold", "3"], "(did you mean --folds?)"),
        (["run", "b", "o", "--zzzz"], "unrecognized arguments: --zzzz; see brainstage --help"),
        (["run", "b"], "the following arguments are required: OUT_DIR"),
        (["run", "b", "o", "session"], "invalid choice: 'session'"),
        (["run", "b", "o", "--skull-strip", "bet"], "argument --skull-strip: invalid choice: 'bet'"),
        (["run", "b", "o", "--nprocs", "0"], "argument --nprocs: 0 is not a whole number of 1 or more"),
        (["run", "b", "o", "--nprocs", "two"], "argument --nprocs: two is not a whole number of 1 or more"),
        (["run", "b", "o", "--mem-gb", "-1"], "argument --mem-gb: -1 is not a number above 0"),
        (["run", "b", "o", "--mem-gb", "lots"], "argument --mem-gb: lots is not a number above 0"),
        (["fetch", "med3d"], "argument ASSET: invalid choice: 'med3d'"),
        (["rum"], "invalid choice: 'rum'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage(refusal, words, says):
    code, sentence = refusal(*words)
    assert code == 64
    assert says in sentence


def test_an_output_directory_that_cannot_be_made(refusal, tmp_path, bids):
    (tmp_path / "file").touch()
    code, sentence = refusal("run", bids, tmp_path / "file" / "out")
    assert (code, "cannot create out" in sentence) == (73, True)
    code, sentence = refusal("run", bids, tmp_path / "file")
    assert (code, "cannot create file" in sentence) == (73, True)
    code, sentence = refusal("run", bids, tmp_path / "out", "--work-dir", tmp_path / "file" / "work")
    assert (code, "cannot create work" in sentence) == (73, True)


def test_a_manifest_that_cannot_be_written(refusal, tmp_path, bids):
    (tmp_path / "file").touch()
    code, sentence = refusal("manifest", bids, "-o", tmp_path / "file" / "data_manifest.csv")
    assert (code, "cannot create data_manifest.csv" in sentence) == (73, True)


@pytest.mark.parametrize("name", ["bids", "bids/../bids", "link"])
def test_the_output_directory_must_not_be_the_input(refusal, tmp_path, bids, name):
    (tmp_path / "link").symlink_to(bids)
    code, sentence = refusal("run", bids, tmp_path / name)
    assert (code, "OUT_DIR must not be BIDS_DIR" in sentence) == (64, True)


def test_the_group_level_needs_a_participant_level_first(capsys, bids, out):
    assert main(["run", str(bids), str(out), "group"]) == 66
    err = capsys.readouterr().err
    assert "no scan has been processed in this output directory" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StorageError("cannot write x: full"), 74, "brainstage: cannot write x: full\n"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (ZeroDivisionError("x"), 70, "a defect of brainstage, please report it"),
    ],
    ids=["storage", "interrupt", "unforeseen"],
)
def test_what_ends_a_run_from_within(monkeypatch, capsys, bids, out, error, code, says):
    def fail(*_args):
        raise error

    monkeypatch.setattr("brainstage.workflows.run.run", fail)
    assert main(["run", str(bids), str(out)]) == code
    err = capsys.readouterr().err
    assert says in err
    assert ("Traceback" in err) is (code == 70)


def test_a_sentence_about_a_scan_names_it(monkeypatch, capsys, bids, out):
    def fail(*_args):
        error = StorageError("full")
        error.scan = "sub-01"
        raise error

    monkeypatch.setattr("brainstage.workflows.run.run", fail)
    assert main(["run", str(bids), str(out)]) == 74
    assert capsys.readouterr().err == "brainstage: sub-01: full\n"


def test_underscores_in_options_are_hyphens(bids, out, refusal):
    hyphens = refusal("run", bids, out, "--participant-label", "09", "--session-label=M_1")
    assert refusal("run", bids, out, "--participant_label", "09", "--session_label=M_1") == hyphens
    assert hyphens[0] == 18


def test_the_command_line_says_what_is_written_in_its_help(capsys):
    for command in ("run", "train", "manifest", "fetch", "demo", "doctor"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: brainstage {command}")
        assert "18 the filters select nothing" in text


def test_the_doctor_shows_the_kernels_here_and_those_of_a_model(capsys, tmp_path, monkeypatch):
    assert main(["doctor"]) == 0
    assert "kernels: processor" in capsys.readouterr().out
    assert main(["doctor", "--model", str(tmp_path)]) == 65
    assert "no model directory" in capsys.readouterr().err
    trained = SimpleNamespace(
        kernels=kernels() | {"numpy": "OpenBLAS 0.3.1 Prescott"},
        versions={"antspyx": "0.6.0", "numpy": version("numpy")},
    )
    monkeypatch.setattr("brainstage.models.model_description.read_description", lambda _: trained)
    assert main(["doctor", "--model", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "trained under: processor" in said
    assert "these differ here: numpy;" in said
    assert f"trained under other versions: antspyx 0.6.0 there, {version('antspyx')} here; numbers" in said
    trained.versions.pop("antspyx")
    assert main(["doctor", "--model", str(tmp_path)]) == 0
    assert "was trained under the versions that are here" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version"], ["run", "--version"]], ids=["program", "command"])
def test_the_version_is_told(capsys, words):
    assert main(words) == 0
    assert capsys.readouterr().out == f"brainstage {__version__}\n"


def test_every_command_is_done_by_something():
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(HANDLERS)


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "code",
    ["import brainstage", "from brainstage.workflows.cli import main; main(['run', '--help'])"],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    done = fresh(f"{code}\nimport sys\nsys.stderr.write(','.join(n for n in {HEAVY} if n in sys.modules))")
    assert done.stderr == ""


def test_help_answers_at_once():
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        fresh("from brainstage.workflows.cli import main; main(['--help'])")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


@pytest.fixture
def finished(bids, out, capsys):
    """Run both scans, which are no heads; return the output directory."""
    assert main(["run", str(bids), str(out), "--nprocs", "1"]) == 1
    capsys.readouterr()
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_of_failed_scans_has_rows_reports_and_exit_code_1(finished):
    found = table(finished / "predictions.csv")
    assert [row["participant_id"] for row in found] == ["sub-01", "sub-02"]
    assert all(row["prediction_status"] == "failed" for row in found)
    assert all(row["error"].startswith("ingest: the image has 2 x 2 x 2 voxels") for row in found)
    assert all((finished / row["report"]).is_file() for row in found)
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == [".brainstage", "logs"]
    for path in finished.rglob("*"):
        if path.is_file():
            assert str(finished.parent) not in path.read_text(encoding="utf-8"), path.name


def test_a_second_run_computes_nothing_and_says_the_same(finished, bids, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.glob("sub-*.html")}
    first = (finished / "predictions.csv").read_bytes()
    assert main(["run", str(bids), str(finished)]) == 1
    assert "to compute" not in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in finished.glob("sub-*.html")} == before
    assert (finished / "predictions.csv").read_bytes() == first
    assert main(["run", str(bids), str(finished), "--retry-failed"]) == 1
    assert "2 of 2 scans to compute" in capsys.readouterr().err


def test_a_run_of_one_participant_keeps_the_rows_of_the_others(finished, bids):
    assert main(["run", str(bids), str(finished), "--participant-label", "sub-01"]) == 1
    assert [row["participant_id"] for row in table(finished / "predictions.csv")] == ["sub-01", "sub-02"]


def test_the_participant_level_writes_no_table(bids, out):
    assert main(["run", str(bids), str(out), "participant", "--nprocs", "1"]) == 1
    assert not (out / "predictions.csv").exists()
    assert (out / "sub-01.html").is_file()
    assert main(["run", str(bids), str(out), "group"]) == 1
    assert len(table(out / "predictions.csv")) == 2


def test_a_run_can_end_at_the_first_failure(bids, out, capsys):
    assert main(["run", str(bids), str(out), "--stop-on-first-crash", "--nprocs", "1"]) == 1
    assert "stopped at the first failure: sub-01" in capsys.readouterr().err
    assert [row["participant_id"] for row in table(out / "predictions.csv")] == ["sub-01"]


def test_an_altered_file_is_a_failed_row(bids, out, tmp_path):
    manifest = tmp_path / "data_manifest.csv"
    assert main(["manifest", str(bids), "-o", str(manifest)]) == 0
    assert [len(row["sha256"]) for row in table(manifest)] == [64, 64]
    with (bids / ONE).open("ab") as stream:
        stream.write(b"x")
    assert main(["run", str(bids), str(out), "--manifest", str(manifest), "--nprocs", "1"]) == 1
    first, second = table(out / "predictions.csv")
    assert "it was altered or replaced since the manifest was made" in first["error"]
    assert "2 x 2 x 2 voxels" in second["error"]


def test_a_broken_link_is_a_failed_row_and_a_misnamed_file_a_note(bids, out, capsys):
    (bids / ONE).unlink()
    (bids / ONE).symlink_to("../../.git/annex/objects/x")
    (bids / "sub-01/anat/head_T1w.nii").touch()
    assert main(["run", str(bids), str(out), "--nprocs", "1"]) == 1
    assert "git-annex" in table(out / "predictions.csv")[0]["error"]
    assert "set aside: sub-01/anat/head_T1w.nii: the name is not a BIDS name" in capsys.readouterr().err


def test_what_a_killed_run_left_behind_is_swept(finished, bids):
    state = finished / ".brainstage"
    of_nobody, of_a_scan = state / ".tmp-aaaaaaaa-x.json", state / "sub-01" / ".tmp-bbbbbbbb-x"
    of_nobody.touch()
    os.utime(of_nobody, (1, 1))
    of_a_scan.mkdir()
    (of_a_scan / "half.nii.gz").touch()
    (state / "sub-01" / "failure.json").unlink()
    assert main(["run", str(bids), str(finished)]) == 1
    assert not of_nobody.exists()
    assert not of_a_scan.exists()


def test_a_log_has_one_line_for_each_scan(finished):
    [log] = (finished / "logs").glob("run-*.jsonl")
    account, *lines = (json.loads(line) for line in log.read_text().splitlines())
    assert account["event"] == "account"
    assert account["lines"][:2] == [
        "participants: 2 in folders, 0 in tables, 0 in both",
        "T1w scans: 2 found",
    ]
    assert [(line["scan"], line["status"]) for line in lines] == [
        ("sub-01", "failed"),
        ("sub-02_ses-M00", "failed"),
    ]


def test_a_place_whose_name_is_no_text_is_written_and_said(bids, tmp_path):
    output = tmp_path / os.fsdecode(b"m\xff.csv")
    command = [sys.executable, "-c", "from brainstage.workflows.cli import main; raise SystemExit(main())"]
    said = subprocess.run(
        [*command, "manifest", bids, "-o", output],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert rb"m\udcff.csv: 2 scans" in said.stdout
    assert output.is_file()
