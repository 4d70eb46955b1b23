"""Altered tables, JSON, configurations, model directories and names, and what the readers make of each.

``benchmarks/fuzz.py`` runs them. Every kind takes a random generator and an empty folder, writes an input there, and
reads it with the functions that the command line calls. It returns, or raises an error of the program's tree, where
all is well; :class:`Wrong` says what was lost in silence or believed although it was damaged.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from stand_in import stand_in_stages
from tables import ABSENT

from brainstage.models.baseline import BASELINE_VERSION, LinearBaseline, baseline_values
from brainstage.models.choices import MEMBERS
from brainstage.models.features import FeatureExtractor
from brainstage.models.heads import LinearHead
from brainstage.models.learners import FoldModel
from brainstage.models.model_description import (
    BackboneDescription,
    ConformalDescription,
    ModelDescription,
    PredictorDescription,
)
from brainstage.models.model_store import StoredModel, load_model, scan_inputs, write_model
from brainstage.models.novelty import NoveltyModel
from brainstage.models.pooling import feature_id
from brainstage.models.predictor import FoldPredictor
from brainstage.models.volume_model import MeasureScale, VolumeModel
from brainstage.models.weights import load_weights
from brainstage.pipeline.account import account_lines
from brainstage.pipeline.bids import Dataset, read_dataset, read_filter_file
from brainstage.pipeline.config import Config, NetworkGridConfig, read_config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import ENTITY_KEYS, BidsEntities
from brainstage.pipeline.errors import BrainstageError, ExitCode
from brainstage.pipeline.files import sha256_of_bytes, sha256_of_file, write_bytes, write_json, write_text
from brainstage.pipeline.manifest import apply_manifest, read_manifest, rows_of, write_manifest
from brainstage.pipeline.records import Completed, NetworkInput, Prediction, ReferenceFinding
from brainstage.pipeline.review import REVIEW_COLUMNS, read_decisions, reviewed
from brainstage.preprocessing.regions import RegionShare
from brainstage.workflows.cli import main
from brainstage.workflows.evidence import Evidence
from brainstage.workflows.learning.labelled_cohort import read_cohort
from brainstage.workflows.output_directory import scans_of
from brainstage.workflows.participant import ScanTask, finished_outcome
from brainstage.workflows.progress import Progress
from brainstage.workflows.run import RunOptions, _checked_model, run
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.stages import preprocessing_content, preprocessing_id
from brainstage.workflows.status import read_status, status_table

Kind = Callable[[random.Random, Path], None]

SCANS: Final = ("sub-01", "sub-02", "sub-03")
BROKEN: Final = "sub-03"
"""Whose file is gone since it was computed: there are results of it, and they must never be taken for good."""
FEATURES: Final = 8
SPARSE_BYTES: Final = 3 * 1024**3
"""More than a process may take."""


class Wrong(Exception):  # noqa: N818 - a verdict, not an error of this file
    """Something was lost in silence, or a damaged file was taken for a whole one."""


# --- how bytes, values and files are altered


ODD_BYTES: Final = (b"\0", b"\xe9", b"\xed\xa0\x80", b"\x1a", b"\r", b"\xe2\x80\xa8")


def altered_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Overwrite, cut, double, insert, or write in another encoding."""
    first, second = sorted(rng.randrange(len(whole) + 1) for _ in range(2))
    before, between, after = whole[:first], whole[first:second], whole[second:]
    return rng.choice(
        (
            lambda: b"",
            lambda: before,
            lambda: before + after,
            lambda: before + between + between + after,
            lambda: before + rng.randbytes(rng.choice((1, 3, 100))) + between + after,
            lambda: before + rng.choice(ODD_BYTES) + between + after,
            lambda: b"\xef\xbb\xbf" + whole,
            lambda: whole.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7"))),
            lambda: whole + whole,
            lambda: whole.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n"))),
            lambda: _with_single_bytes(whole, rng),
            lambda: _with_single_bytes(whole, rng),
        )
    )()


def _with_single_bytes(whole: bytes, rng: random.Random) -> bytes:
    out = bytearray(whole)
    for _ in range(rng.randint(1, 6)):
        out[rng.randrange(len(out))] = rng.choice((rng.randrange(256), *b'"\t,\n{}[]:0-'))
    return bytes(out)


STRANGE: Final = (
    *(None, True, False, 0, -1, 7, 2**63, 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *("", " ", "\0", "\ud800", "n/a", "sub-01", "../../outside", "/etc/hostname", "Infinity", "é", "e\u0301", "\u202e"),
    *("x" * 300, "9" * 5000, "<script>alert(1)</script>", "=1+1", "line\nbreak", "\ufeff", "|a|b|", "$HOME"),
    *([], {}, [[]], [None], [1, "a"], {"": ""}, {"a": {"b": [1]}}, ["x"] * 50),
)  # fmt: skip
ODD_KEYS: Final = ("later", "", "\0", "__class__", "self", "x" * 300)
TEXTUAL: Final = {
    "@deep lists@": "[" * 100_000 + "]" * 100_000,
    "@deep objects@": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@rather deep lists@": "[" * 700 + '"01"' + "]" * 700,
    "@long number@": "9" * 5000,
    "@huge number@": "1e999",
    "@leading zero@": "01",
    "@long text@": '"' + "x" * 1_000_000 + '"',
}
"""What Python's writer of JSON does not write, or only with patience."""


def altered_json(content: Any, rng: random.Random) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """Put strange values in, take keys away, add some, write some twice."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = _altered_value(content, rng)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 2)))
    for token, written in TEXTUAL.items():
        text = text.replace(f'"{token}"', written)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        key = rng.choice(list(content))
        text = "{" + json.dumps(key) + ": " + json.dumps(rng.choice(STRANGE)) + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _altered_value(content: Any, rng: random.Random) -> Any:  # noqa: ANN401
    if isinstance(content, dict | list) and content and rng.random() < 0.9:
        keys: Sequence[Any] = list(content) if isinstance(content, dict) else range(len(content))
        key = rng.choice(keys)
        choice = rng.random()
        if choice < 0.12:
            del content[key]
        elif choice < 0.2 and isinstance(content, dict):
            content[rng.choice(ODD_KEYS)] = copy.deepcopy(rng.choice(STRANGE))
        elif choice < 0.25 and isinstance(content, list):
            content.insert(rng.randrange(len(content) + 1), copy.deepcopy(rng.choice(STRANGE)))
        else:
            content[key] = _altered_value(content[key], rng)
        return content
    return copy.deepcopy(rng.choice((*STRANGE, *TEXTUAL)))


def put(path: Path, content: bytes, rng: random.Random) -> None:
    """Write a file, or once in a while something else in its place."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match rng.randrange(60):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.symlink_to("nowhere")
        case 4:
            path.symlink_to("/dev/zero")
        case 5:
            path.touch()
            os.truncate(path, SPARSE_BYTES)
        case 6:
            path.write_bytes(rng.randbytes(2000))
        case _:
            path.write_bytes(content)


def altered(content: Any, rng: random.Random) -> bytes:  # noqa: ANN401
    """Alter the values of some JSON, or its bytes."""
    if rng.random() < 0.75:
        return altered_json(content, rng)
    return altered_bytes(json.dumps(content, indent=2).encode(), rng)


# --- a finished run to begin with


@cache
def finished() -> Path:
    """Return a folder with a BIDS directory, its finished output, and a model; one scan broke after it was computed."""
    folder = Path(tempfile.gettempdir()) / "brainstage-finished"
    if folder.exists():
        return folder
    bids = folder / "bids"
    write_json(
        bids / "dataset_description.json", {"Name": "altered", "BIDSVersion": "1.10.0", "Authors": ["A"]}
    )
    (bids / "participants.tsv").write_text(
        "participant_id\tage\tsex\tdiagnosis\tMMSE\nsub-01\t70\tF\tCN\t29\nsub-02\t71.5\tM\tAD\t21\nsub-03\t65\tF\tCN\t\n"
    )
    write_json(
        bids / "participants.json",
        {"age": {"Units": "years"}, "sex": {"Levels": {"F": "female", "M": "male"}}},
    )
    for key in SCANS:
        (bids / key / "anat").mkdir(parents=True)
        (bids / key / "anat" / f"{key}_T1w.nii").write_text(key)
    options = options_for(folder, level=None, processes=1)
    run(options, Progress(io.StringIO()), stand_in_stages)
    broken = bids / BROKEN / "anat" / f"{BROKEN}_T1w.nii"
    broken.unlink()
    broken.symlink_to("nowhere")
    run(options, Progress(io.StringIO()), stand_in_stages)
    model = description()
    model = model.model_copy(update={"model_id": model.own_id})
    write_text(folder / "model" / "model.json", model.model_dump_json())
    said = replace(SAID, model_id=model.model_id)
    for key in SCANS:
        files = ScanFiles(out_dir=folder / "out", entities=BidsEntities(subject=key[-2:]))
        shown = replace(EVIDENCE, model_id=model.model_id, template_sha256=sha256_of_file(files.template_t1w))
        write_json(files.evidence_regions(shown.method), shown.table)
        write_bytes(files.figure(shown.method), b"a picture")
        state = files.state
        write_json(state / "header_findings.json", FINDINGS)
        write_json(state / "prediction_result.json", asdict(said))
        write_json(state / "running.json", {"stage": "registration", "key": "k", "started": 1.0})
        write_json(state / "deaths.json", {"stage": "registration", "key": "k", "count": 1, "hung": False})
        write_json(
            state / "lease.json", {"token": "t", "machine": "elsewhere", "pid": 1, "process_started": 1.0}
        )
    write_json(folder / "out" / ".brainstage" / "distributions.json", {"brain_volume_ml": DISTRIBUTION})
    return folder


FINDINGS: Final = {
    "shape": [176, 240, 256], "spacing_mm": [1.0, 1.0, 1.0], "axcodes": "RAS", "affine_source": "sform",
    "warnings": ["units_unknown: the unit is not given"],
}  # fmt: skip
DISTRIBUTION: Final = {
    "scans": 6, "lowest": 1.0, "lower_quartile": 2.0, "median": 3.0, "upper_quartile": 4.0, "highest": 5.0
}  # fmt: skip
SAID: Final = Prediction(
    probabilities={"CN": 0.75, "AD": 0.25},
    prediction_set=("CN",),
    ood_score=1.0,
    ood_threshold=2.0,
    tier="review",
    member_labels={"volumes": "CN", "linear": "CN", "network": "AD"},
    compared_members=("volumes", "linear"),
    model_id="",
    reference=(
        ReferenceFinding(
            measure="brain_volume_ml",
            value=1400.0,
            label="CN",
            people=9,
            by=("age",),
            expected=1300.0,
            low=1200.0,
            high=1500.0,
            percentile=70.0,
        ),
    ),
)
EVIDENCE: Final = Evidence(
    method="gradcam",
    label="CN",
    model_id="",
    units="logit",
    atlas="an atlas",
    regions=(RegionShare(name="hippocampus", share=0.2, times_brain_mean=1.5, volume_ml=8.0),),
    share_outside_brain=0.1,
    learnt=True,
    template_sha256="",
)


def options_for(folder: Path, **asked: Any) -> RunOptions:  # noqa: ANN401 - fields of the options
    """Return the options of a run over the tables of a finished directory."""
    given = {"bids_dir": folder / "bids", "out_dir": folder / "out", "overrides": {}, "level": "group"}
    return RunOptions(**(given | asked))


def begun(folder: Path) -> Path:
    """Copy the finished directory to a folder, where it can be altered."""
    shutil.copytree(finished(), folder, symlinks=True, dirs_exist_ok=True)
    return folder


def group_run(options: RunOptions) -> str:
    """Write the tables as ``brainstage run ... group`` does; every scan must have its row. Return what was said."""
    stream = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace"
    )  # as standard error is
    run(options, Progress(stream), stand_in_stages)
    stream.seek(0)
    said = stream.read()
    rows = {row["participant_id"]: row for row in records(options.out_dir / "predictions.csv")}
    for key in SCANS:
        if key not in rows and f"{key} has not been processed" not in said:
            raise Wrong(f"{key} has no row")
    if rows.get(BROKEN, {"prediction_status": "failed"})["prediction_status"] != "failed":
        raise Wrong(f"{BROKEN} failed, and its old results are taken for good")
    return said


def records(path: Path) -> list[dict[str, str]]:
    """Return the rows of one of our tables."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --- tables


CELLS: Final = (
    *("sub-01", "01", "sub-02", "02", "1", "sub-", "SUB-01", "sub-01 ", "M00", "ses-1", "F", "female", "x", "CN", "AD"),
    *("70", "71,5", "89+", "071Y", "-1", "1e5", "1e400", "0x10", "1_000", "٣", "NaN", "inf", "9" * 5000),
    *("1" * 60_000 + "!", "\U0001f9e0", "\u202egnp", "pass", "fail", "unsure"),
    *('"', '""', '"CN"', "'", "'=x", "=1+1", "@x", "-", "n/a", "", " ", "\ufeff", "é", "e\u0301", "\u2028"),
    *("\x0b", "\x85", "<b>", "a;b", "a,b", "#", "None", "x" * 300, "x" * 140_000),
)  # fmt: skip


def altered_table(rows: list[list[str]], separator: str, rng: random.Random) -> bytes:
    """Alter cells, rows and columns of a table, or its bytes."""
    rows = [list(cells) for cells in rows]
    for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
        line = rng.randrange(len(rows))
        match rng.randrange(8):
            case 0:
                rows.insert(line, [rng.choice(CELLS) for _ in rows[0]])
            case 1:
                rows.insert(line, list(rows[line]))
            case 2 if len(rows) > 2:
                rows.pop(line)
            case 3:
                rows[line].insert(rng.randrange(len(rows[line]) + 1), rng.choice(CELLS))
            case 4 if len(rows[line]) > 1:
                rows[line].pop(rng.randrange(len(rows[line])))
            case 5:
                rng.shuffle(rows)
            case _:
                if rows[line]:
                    rows[line][rng.randrange(len(rows[line]))] = rng.choice(CELLS)
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    whole = (end.join(separator.join(cells) for cells in rows) + end).encode("utf-8", "surrogatepass")
    return altered_bytes(whole, rng) if rng.random() < 0.25 and whole.strip() else whole


def _text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _bare(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1].replace('""', '"').strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _unknown(cell: str) -> bool:
    return cell.casefold() in {text.casefold() for text in ABSENT} or cell in ("?", "--", "N/A", "null")


def _lines(path: Path) -> list[list[str]]:
    """Return the cells of every line that has any, by a reader of a few lines."""
    lines = [[_bare(cell) for cell in line.split("\t")] for line in re.split(r"\r\n|\r|\n", _text_of(path))]
    return [cells for cells in lines if any(cells)]


def participants_tables(rng: random.Random, folder: Path) -> None:
    """``participants.tsv``, ``sub-*_sessions.tsv`` and the JSON beside them, through dataset and manifest."""
    bids = folder / "bids"
    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.8.0"}')
    visits = rng.random() < 0.4
    for label in ("01", "02", "03"):
        for session in ("1", "2") if visits else ("",):
            place = bids / f"sub-{label}" / (f"ses-{session}" if session else "") / "anat"
            place.mkdir(parents=True)
            (place / f"sub-{label}{f'_ses-{session}' if session else ''}_T1w.nii").write_text(label + session)
    people = [["participant_id", "age", "sex", "site", "diagnosis", "MMSE"], ["sub-01", "70", "F", "A", "CN", "29"],
              ["sub-02", "71", "M", "B", "AD", "20"], ["sub-03", "89+", "F", "A", "MCI", "n/a"]]  # fmt: skip
    put(bids / "participants.tsv", altered_table(people, "\t", rng), rng)
    if rng.random() < 0.3:
        sidecar = {
            "age": {"Units": "months"},
            "sex": {"Levels": {"1": "male", "2": {"Description": "female"}}},
        }
        put(bids / "participants.json", altered(sidecar, rng), rng)
    if visits and rng.random() < 0.7:
        table = [["session_id", "age", "diagnosis"], ["ses-1", "70", "CN"], ["ses-2", "71.5", "MCI"]]
        put(bids / "sub-01" / "sub-01_sessions.tsv", altered_table(table, "\t", rng), rng)
    dataset = read_dataset(bids)
    _require_every_participant(dataset, bids / "participants.tsv")
    said = account_lines(dataset.account, dataset.scans)
    if not all(said):
        raise Wrong("a line of the account is empty")
    _require_manifest_of(dataset, folder / "data_manifest.csv")


def _require_every_participant(dataset: Dataset, table: Path) -> None:
    """Hold what was read against the lines of the table."""
    if not table.is_file():
        if table.exists() and not any("participants.tsv" in line for line in dataset.account.remarks):
            raise Wrong("participants.tsv is no file, and nobody was told")
        return
    lines = _lines(table)
    if not lines:
        raise Wrong("an empty table was accepted")
    header = [re.sub(r"[\s_]+", "_", name.strip()).casefold() for name in lines[0]]
    column = header.index("participant_id")
    said = {cells[column].removeprefix("sub-") for cells in lines[1:]}
    lost = said - set(dataset.account.in_tables)
    if lost:
        raise Wrong(f"participants {sorted(lost)[:3]} are in the table and in no account")
    if header.count("diagnosis") == 1 and "session_id" not in header and not any(dataset.account.remarks):
        label = {cells[column].removeprefix("sub-"): cells[header.index("diagnosis")] for cells in lines[1:]}
        for scan in dataset.scans:
            wanted = label.get(scan.entities.subject, "")
            if scan.entities.session is None and (scan.label or "") != ("" if _unknown(wanted) else wanted):
                raise Wrong(f"the label {wanted!r} became {scan.label!r}")


def _require_manifest_of(dataset: Dataset, path: Path) -> None:
    """Write the manifest of a dataset and read it back: nothing may change on the way."""
    written = rows_of(dataset, {})
    write_manifest(path, written)
    read = read_manifest(path)
    if [asdict(row) | {"given": 0} for row in read] != [asdict(row) | {"given": 0} for row in written]:
        different = [pair for pair in zip(written, read, strict=False) if pair[0] != pair[1]]
        raise Wrong(f"the manifest reads back otherwise: {str(different[:1])[:300]}")


def manifests(rng: random.Random, folder: Path) -> None:
    """``data_manifest.csv``, read and laid over its dataset; every row must be there, or named."""
    dataset = read_dataset(finished() / "bids")
    path = folder / "data_manifest.csv"
    write_manifest(path, rows_of(dataset, {"sub-01": "a" * 64}))
    rows = list(csv.reader(io.StringIO(path.read_text())))
    put(path, altered_table(rows, ",", rng), rng)
    read = read_manifest(path)
    expected = [
        cells for cells in csv.reader(io.StringIO(_text_of(path), newline="")) if any(map(str.strip, cells))
    ]
    if len(read) != max(0, len(expected) - 1):
        raise Wrong(f"{len(expected) - 1} rows in the file, {len(read)} read")
    chosen, _ = apply_manifest(dataset, read)
    if len(chosen.scans) != len(read):
        raise Wrong(f"{len(read)} rows, {len(chosen.scans)} scans")


def decisions(rng: random.Random, folder: Path) -> None:
    """``qc_decisions.tsv``; every decision must be there, or named."""
    path = folder / "qc_decisions.tsv"
    dataset = read_dataset(finished() / "bids")
    words = ("pass", "fail", "unsure")
    rows = [list(REVIEW_COLUMNS), *(
        [scan.key, "", "", scan.t1w_path, *(word if name == "decision" else "" for name in REVIEW_COLUMNS[4:])]
        for scan, word in zip(dataset.scans, words, strict=True)
    )]  # fmt: skip
    put(path, altered_table(rows, "\t", rng), rng)
    read = read_decisions(path)
    lines = _lines(path)
    column = [re.sub(r"[\s_]+", "_", name.strip()).casefold() for name in lines[0]].index("decision")
    made = [cells for cells in lines[1:] if len(cells) > column and not _unknown(cells[column])]
    if len(made) != len(read):
        raise Wrong(f"{len(made)} decisions in the file, {len(read)} read")
    reviewed(dataset.scans, read)


# --- JSON and TOML that people write


def given_json(rng: random.Random, folder: Path) -> None:
    """``dataset_description.json``, sidecars of tables, and filter files, through a run over the tables."""
    begun(folder)
    bids, asked = folder / "bids", {}
    match rng.randrange(3):
        case 0:
            path = bids / "dataset_description.json"
            put(path, altered(json.loads(path.read_bytes()), rng), rng)
            asked["validate"] = rng.random() < 0.7
        case 1:
            path = bids / "participants.json"
            put(path, altered(json.loads(path.read_bytes()), rng), rng)
        case _:
            asked["filter_file"] = folder / "filter.json"
            wanted = {
                rng.choice(list(ENTITY_KEYS)): rng.choice((None, "01", ["01", None], "Query.NONE", 1))
                for _ in "ab"
            }
            put(asked["filter_file"], altered({"t1w": wanted, "bold": {"task": "rest"}}, rng), rng)
            read_filter_file(asked["filter_file"])
    group_run(options_for(folder, accept_dataset=True, **asked))


TOML: Final = """label_column = "diagnosis"
seed = 3
second_opinion = false
[ingest]
on_conflict = "sform"
spacing_bounds_mm = [0.2, 6.0]
[bias_field]
tolerance = 1e-4
levels = 4
[network_grid]
shape = [80, 96, 80]
[quality.cjv]
passing = [-inf, 1.4]
tolerated = [-inf, 2.0]
[prediction]
high_confidence = 0.85
[reports]
keep_face = false
"""
TOML_VALUES: Final = (
    *("nan", "inf", "-inf", "1e400", "-1", "0", "+1", "1_000", "9" * 5000, "0x" + "f" * 300, "true", "[]", "{}"),
    *('""', '"x"', '"\\u0000"', '"\\uD800"', "\'\'\'\n\'\'\'", '"' + "x" * 100_000 + '"', "1979-05-27", "9999-99-99"),
    *("[nan, nan]", "[2.0, 1.0]", "[1, 2, 3, 4]", "[32, 32, 1024]", "[" + "[1], " * 300 + "]", "{a = {b = 1}}"),
    *("[[" * 50_000, "[" * 300 + "]" * 300, "{" + "a = {" * 400 + "}" * 401),
)  # fmt: skip


def configurations(rng: random.Random, folder: Path) -> None:
    """Alter a configuration; it goes through a run over the tables."""
    begun(folder)
    lines = TOML.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        name, equals, _ = lines[place].partition(" = ")
        match rng.randrange(6):
            case 0:
                lines.insert(place, lines[place])
            case 1:
                lines.pop(place)
            case 2:
                lines.insert(
                    place, f"{rng.choice(('unheard_of', 'a.' * 2000 + 'a', 'quality.x.passing', 'é'))} = 1"
                )
            case _ if equals:
                lines[place] = f"{name} = {rng.choice(TOML_VALUES)}"
            case _:
                lines[place] = (
                    f"[{rng.choice(('quality', 'ingest', 'nobody', 'a.' * 2000 + 'b', 'quality.snr'))}]"
                )
    whole = "\n".join(lines).encode() + b"\n"
    path = folder / "brainstage.toml"
    put(path, altered_bytes(whole, rng) if rng.random() < 0.2 else whole, rng)
    read_config(path, {"registration": {"resolution_mm": 1.0}})
    group_run(options_for(folder, config_file=path))


# --- what a run keeps for itself


PREDICTORS_OF_FOLDS: Final = (
    FoldPredictor(
        chosen="stack",
        temperatures=dict.fromkeys(MEMBERS, 1.5),
        weights={"volumes": 0.25, "linear": 0.25, "network": 0.5},
    ),
    FoldPredictor(chosen="network", temperatures=dict.fromkeys(MEMBERS, 0.5), weights={"network": 1.0}),
)
VOLUME_MODELS: Final = 2 * (
    VolumeModel(
        scales=(
            MeasureScale(
                measure="hippocampi_pct_icv",
                mean=-1.4,
                per_year=-0.005,
                male_minus_female=0.01,
                age=70.0,
                male=0.5,
                scale=0.12,
            ),
        ),
        weight=((0.5,), (-0.5,)),
        bias=(0.1, -0.1),
    ),
)


def description(**fields: Any) -> ModelDescription:  # noqa: ANN401
    """Return the description of a model; `fields` stand in place of what it has."""
    content = preprocessing_content(Config())
    backbone = BackboneDescription(
        kind="random", architecture="resnet10", sha256="c" * 64, words="not pretrained",
        feature_id=feature_id("c" * 64, "resnet10", "med3d"),
    )  # fmt: skip
    given = {
        "classes": ("CN", "AD"),
        "label_column": "diagnosis",
        "backbone": backbone,
        "folds": 2,
        "network_grid": Config().network_grid.model_dump(mode="json"),
        "baseline_version": BASELINE_VERSION,
        "preprocessing_id": preprocessing_id(content),
        "preprocessing_content": content,
        "members": MEMBERS,
        "predictor": PredictorDescription(
            choice="auto",
            folds=PREDICTORS_OF_FOLDS,
            above_chance=True,
            compared_members=("volumes", "linear"),
        ),
        "conformal": ConformalDescription(
            levels={"CN": 0.6, "AD": 0.5},
            scores={"CN": ((0.2, 0, 0), (0.4, 1, 1), (0.6, 0, 2)), "AD": ((0.3, 1, 3), (0.7, 0, 4))},
        ),
        "novelty_threshold": 2.0,
        "seed": 0,
        "training_scans": {"a" * 64: (0, 0), "b" * 64: (1, 3)},
        "volume_models": VOLUME_MODELS,
    }
    return ModelDescription(**(given | fields))


@cache
def _undisturbed() -> Mapping[str, Completed | None]:
    folder = Path(tempfile.mkdtemp(prefix="brainstage-undisturbed-"))
    return {task.scan.key: _done(task) for task in _tasks(begun(folder))}


def _tasks(folder: Path) -> list[ScanTask]:
    options = options_for(folder)
    context = RunContext(out_dir=options.out_dir, config=Config(), chain=stand_in_stages)
    return [ScanTask(scan=scan, context=context) for scan in read_dataset(folder / "bids").scans]


def _done(task: ScanTask) -> Completed | None:
    outcome = finished_outcome(task)
    return replace(outcome, scan=task.scan, provenance=()) if isinstance(outcome, Completed) else None


def kept_json(rng: random.Random, folder: Path) -> None:
    """One of the JSON files of an output directory, through all that reads them."""
    undisturbed = _undisturbed()
    begun(folder)
    found = sorted(path for path in (folder / "out").rglob("*.json") if path.is_file())
    path = rng.choice(found)
    status = path.stat()
    content = altered(json.loads(path.read_bytes()), rng)
    put(path, content, rng)
    unseen = rng.random() < 0.3 and path.is_file() and not path.is_symlink()
    if unseen:  # as by a disk that forgets a bit: the time of the file does not tell
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for lease in (folder / "out" / ".brainstage").glob("*/lease.json"):
        os.utime(lease, (1, 1), follow_symlinks=False)
    status_table(read_status(folder / "out"))
    scans_of(folder / "out")
    for task in _tasks(folder):
        done = _done(task)
        before = undisturbed[task.scan.key]
        if done is not None and not unseen and repr(done.qc) != repr(before.qc if before else None):
            raise Wrong(f"{task.scan.key} is taken for finished, with other measures")
    _group_and_training(folder)


def _group_and_training(folder: Path) -> None:
    group_run(options_for(folder, model_dir=folder / "model"))
    for column in ("diagnosis", "MMSE"):
        try:
            cohort = read_cohort(folder / "out", column, None)
        except BrainstageError:
            continue
        if any(scan.files.key == BROKEN for scan in cohort.scans):
            raise Wrong(f"{BROKEN} failed, and is learnt from")


# --- model directories


@cache
def trained() -> Path:
    """Return a model directory with random weights."""
    folder = Path(tempfile.gettempdir()) / "brainstage-model"
    if folder.exists():
        return folder
    weights = load_weights("random")
    extractor = FeatureExtractor(weights.network, weights.source, torch.device("cpu"))
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    ones = np.ones(FEATURES, dtype=np.float32)
    heads = [
        LinearHead(mean=0 * ones, scale=ones, weight=drawn(2, FEATURES), bias=drawn(2)) for _ in range(2)
    ]
    novelty = NoveltyModel(
        mean=0 * ones, scale=ones, axes=drawn(2, FEATURES), variances=ones[:2], residual_variance=1.0
    )
    values, _ = baseline_values(looked_at())
    baselines = [
        LinearBaseline(weight=drawn(2, len(values)), bias=drawn(2), mean=drawn(len(values))) for _ in range(2)
    ]
    source = weights.source
    backbone = BackboneDescription(
        kind=source.kind, architecture=source.architecture, strides=source.strides, sha256=source.sha256,
        words=source.words, feature_id=extractor.feature_id,
    )  # fmt: skip
    models = [FoldModel(head=head) for head in heads]
    write_model(
        folder, StoredModel(description(backbone=backbone), extractor, models, [novelty, novelty], baselines)
    )
    return folder


@cache
def looked_at() -> NetworkInput:
    """Return a network input of noise."""
    shape = NetworkGridConfig().shape
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return NetworkInput(
        image=noise[None],
        brain_mask=noise > 0,
        voxel_to_ras=np.eye(4),
        local_volume=np.zeros((8, 8, 8), np.float32),
    )


def models(rng: random.Random, folder: Path) -> None:
    """Alter description or weights of a model, also with a hash that agrees again; it goes up to a prediction."""
    place = folder / "model"
    place.mkdir()
    for path in trained().iterdir():
        os.link(path, place / path.name)
    described = json.loads((place / "model.json").read_bytes())
    if rng.random() < 0.6:
        whole = altered(described, rng)
        put(place / "model.json", sealed(whole) if rng.random() < 0.7 else whole, rng)
    else:
        # The network's own weights are large and seldom altered: they are the same for every model.
        name = rng.choice([*(sorted(described["files"])[1:] * 4), min(described["files"])])
        whole = altered_weights((place / name).read_bytes(), rng)
        put(place / name, whole, rng)
        if rng.random() < 0.7:
            described["files"][name] = sha256_of_bytes(whole)
            (place / "model.json").unlink()
            (place / "model.json").write_bytes(sealed(json.dumps(described).encode()))
    _checked_model(place, Config())
    model = load_model(place)
    measures = {"hippocampus_left_pct_icv": 0.11, "hippocampus_right_pct_icv": 0.12}
    scan = scan_inputs(np.ones(FEATURES, dtype=np.float32), looked_at(), measures, {"age": "71", "sex": "F"})
    for source in (None, "a" * 64, "b" * 64):
        said = model.predict(scan, source)
        numbers = [*said.probabilities.values(), said.ood_score, said.ood_threshold, said.set_level]
        if not np.isfinite(numbers).all() or set(said.probabilities) != set(model.classes):
            raise Wrong(f"a damaged model said {said}"[:400])


def sealed(whole: bytes) -> bytes:
    """Return a description with the model_id that belongs to it, as somebody would who means to alter it."""
    try:
        model = ModelDescription.model_validate_json(whole)
        return model.model_copy(update={"model_id": model.own_id}).model_dump_json().encode()
    except ValueError:
        return whole


def altered_weights(whole: bytes, rng: random.Random) -> bytes:
    """Alter the head of a safetensors file, its values, or its bytes."""
    length = int.from_bytes(whole[:8], "little")
    head, values = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    choice = rng.random()
    if choice < 0.4:
        text = altered_json(head, rng)
        return len(text).to_bytes(8, "little") + text + values
    if choice < 0.6:
        array = bytearray(values)
        for _ in range(rng.randint(1, 4)):
            place = 4 * rng.randrange(max(1, len(array) // 4))
            strange = np.float32(rng.choice((np.nan, np.inf, -np.inf, 0.0, 1e30, -1.0)))
            array[place : place + 4] = strange.tobytes()
        return whole[: 8 + length] + bytes(array)[: len(values)]
    if choice < 0.7:
        return rng.choice((0, 1, 2**40, 2**64 - 1, length + 1, length - 1)).to_bytes(8, "little") + whole[8:]
    if choice < 0.85:
        return whole[: rng.randrange(len(whole))]
    return whole + rng.randbytes(rng.choice((1, 1000)))


# --- names


PARTS: Final = (
    *("01", "1", "001", "A1", "x" * 200, "x" * 226, "x" * 240, "0" * 100, "9" * 240, "é", "e\u0301", "\u0661", "ⅷ"),
    *("ﬁ", "İ", "ß", "\u200b", "\U0001f9e0", "\u202egnp", "\udcff", "a\udce9b", "\x01", "a b", "a\nb", "a\tb"),
    *("-x", "--help", "", ".", "..", "a.b", "a'b", 'a"b', "a\\b", "a;b", "$(x)", "%s", "{0}", "<b>x", "=1+1", "*"),
    *("01_run-1", "01_run-01", "01_acq-x", "01_ses-1", "01_T1w", "01_desc-brain", "01-02", "01_run-1_run-2"),
    *("01_flip-1", "CON", "?", "[01]"),
)  # fmt: skip


def names(rng: random.Random, folder: Path) -> None:
    """Names of folders, files, participants and directories, through manifest, account and a run over the tables."""
    begun(folder)
    bids = folder / "bids"
    for _ in range(rng.randint(1, 6)):
        _odd_file(bids, rng)
    renamed = _renamed(bids, rng)
    dataset = read_dataset(renamed)
    _require_every_file(dataset, renamed)
    labels = tuple(
        rng.choice((*PARTS, "sub-01", "01", "x" * 300)) for _ in range(rng.choice((0, 0, 0, 1, 2)))
    )
    sessions = tuple(rng.choice(PARTS) for _ in range(rng.choice((0, 0, 0, 1))))
    _manifest_command(renamed, folder / rng.choice(("m.csv", "-m.csv", "m\udcff.csv", "m" * 300, "a\nb.csv")))
    try:
        group_run(
            options_for(folder, bids_dir=renamed, accept_dataset=True, participants=labels, sessions=sessions)
        )
    finally:
        status_table(read_status(folder / "out"))


def _odd_file(bids: Path, rng: random.Random) -> None:
    """Make a file with odd parts in its name and in those of the folders around it; some cannot be."""
    label = rng.choice(PARTS)
    person = rng.choice(("sub-", "sub-", "sub-", "sub", "Sub-", "-sub-", "")) + label
    session = rng.choice(("", "", f"ses-{rng.choice(PARTS)}"))
    middle = rng.choice(
        (person, person, f"{person}_{session}", rng.choice(PARTS), unicodedata.normalize("NFD", person))
    )
    suffix = rng.choice(("T1w", "T1w", "T1w", "t1w", "T1", "UNIT1", rng.choice(PARTS)))
    extension = rng.choice((".nii", ".nii.gz", ".nii", ".NII", ".nii.gz.gz", ".mgz", ""))
    place = bids / person / session / rng.choice(("anat", "anat", "anat", "Anat", rng.choice(PARTS)))
    try:
        place.mkdir(parents=True, exist_ok=True)
        if place.resolve().is_relative_to(bids.resolve()):
            (place / f"{middle}_{suffix}{extension}").write_text("odd")
    except (OSError, ValueError):
        return


def _renamed(bids: Path, rng: random.Random) -> Path:
    """Give the dataset's own folder an odd name, once in a while."""
    if rng.random() < 0.6:
        return bids
    name = rng.choice(PARTS)
    if "/" in name or name in ("", ".", "..") or len(os.fsencode(name)) > 255:
        return bids
    return bids.rename(bids.with_name(name))


def _require_every_file(dataset: Dataset, root: Path) -> None:
    """Hold the scans and what was set aside against what lies in the folders."""
    there = {
        path.relative_to(root).as_posix()
        for pattern in ("sub-*/anat/*_T1w.nii*", "sub-*/ses-*/anat/*_T1w.nii*")
        for path in root.glob(pattern)
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")
    }
    accounted = [scan.t1w_path for scan in dataset.scans] + [path for path, _ in dataset.account.set_aside]
    if len(accounted) != len(set(accounted)) or set(accounted) != there:
        raise Wrong(f"files and account differ: {sorted(there.symmetric_difference(accounted))[:3]}")


def _manifest_command(bids: Path, output: Path) -> None:
    """Run ``brainstage manifest`` as from a shell."""
    out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", mode) for mode in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(error):
        code = main(["manifest", str(bids), "--output", str(output)])
    error.seek(0)
    if code == ExitCode.DEFECT:
        raise AssertionError(error.read()[-400:])
    if code == ExitCode.DONE:
        read_manifest(output)


KINDS: Final[Mapping[str, Kind]] = {
    "tables of participants and visits": participants_tables,
    "manifests": manifests,
    "decisions": decisions,
    "JSON that people write": given_json,
    "configurations": configurations,
    "JSON that a run keeps": kept_json,
    "model directories": models,
    "names": names,
}
