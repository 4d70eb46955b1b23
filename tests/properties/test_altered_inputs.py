"""Whatever a table, a JSON file, a model directory or a name holds: one sentence, or a right result."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load, save

from brainstage.models.model_description import read_description
from brainstage.models.model_store import load_model
from brainstage.pipeline.errors import ModelError
from brainstage.pipeline.files import sha256_of_bytes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
INPUTS = 25
FOLD = "fold-1.safetensors"


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory) -> ModuleType:
    """Return the benchmark, with what its inputs are made from in a folder of the tests."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("fuzz")))
    spec = importlib.util.spec_from_file_location("fuzz", BENCHMARKS / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, "fuzz", module)
    spec.loader.exec_module(module)
    yield module
    patch.undo()


@pytest.fixture
def model_dir(fuzz, tmp_path) -> Path:
    """Return a copy of a small model."""
    place = tmp_path / "model"
    place.mkdir()
    for path in fuzz.altered_inputs.trained().iterdir():
        os.link(path, place / path.name)
    return place


def described_anew(model_dir: Path, fuzz: ModuleType, **changes: object) -> None:
    """Alter the description of a model, and give it the id that belongs to it."""
    path = model_dir / "model.json"
    content = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_bytes(fuzz.altered_inputs.sealed(json.dumps(content).encode()))


@pytest.mark.parametrize(
    "kind",
    [
        *("tables of participants and visits", "manifests", "decisions", "JSON that people write"),
        *("configurations", "JSON that a run keeps", "model directories", "names"),
    ],
)
def test_no_altered_input_gets_past(fuzz, kind):
    found = [fuzz.judged(kind, number, 7) for number in range(INPUTS)]
    assert [one for one in found if one.result not in ("accepted", "refused")] == []


def test_what_is_wrong_is_told_from_what_is_refused(fuzz, monkeypatch):
    def kind(error: BaseException):
        def fail(*_: object) -> None:
            raise error

        return fail

    errors = {
        "refused": ModelError("the model cannot be used"),
        "refused without a reason": ModelError("no"),
        "CRASHED": RecursionError("x"),
        "WRONG": fuzz.Wrong("x"),
        "2 GB EXCEEDED": MemoryError(),
        "HUNG": fuzz.Hung(),
    }
    for result, error in errors.items():
        monkeypatch.setattr(fuzz, "KINDS", {"a kind": kind(error)})
        assert fuzz.judged("a kind", 0, 0).result == result
    found = [fuzz.Found(kind="a kind", number=3, result="CRASHED", seconds=1.5)]
    assert "| a kind | 1 | 0 | 0 | 0 | 1 | 1.50 |" in fuzz.table_of(found, 0)
    assert "is a defect" in fuzz.table_of(found, 0)


def test_an_input_that_takes_its_process_along_is_named_and_the_others_are_judged(
    fuzz, tmp_path, monkeypatch
):
    class Process:
        """Dies over the second input."""

        def __init__(self, args: tuple[str, range, int, Path], **_: object) -> None:
            self.kind, self.numbers, _seed, self.report = args
            self.exitcode = 0

        def start(self) -> None:
            lines = []
            for number in self.numbers:
                lines.append(str(number))
                if number == 1:
                    self.exitcode = -9
                    break
                lines.append(json.dumps({"kind": self.kind, "number": number, "result": "refused"}))
            self.report.write_text("\n".join(lines) + "\n")

        def join(self) -> None:
            pass

    monkeypatch.setattr(
        fuzz.multiprocessing,
        "get_context",
        lambda _: SimpleNamespace(Process=lambda **given: Process(**given)),
    )
    found = fuzz.share("names", range(4), 0, tmp_path)
    assert [(one.number, one.result) for one in found] == [
        (0, "refused"), (1, "DIED"), (2, "refused"), (3, "refused")
    ]  # fmt: skip


def test_inputs_are_shared_out_among_the_kinds(fuzz):
    counts = fuzz.counts_of(7, 9)
    assert list(counts) == list(fuzz.KINDS)
    assert list(counts.values()) == [2, 2, 1, 1, 1, 2, *[1] * 7]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"conformal": {"levels": {"CN": 0.5}, "scores": {"CN": []}}},
            "must name the classes CN, AD, each once",
        ),
        ({"training_scans": {"a" * 64: [2, 0]}}, "name fold 2, and there are 2 from 0 on"),
        ({"training_scans": {"a" * 64: [-1, 0]}}, "greater than or equal to 0"),
        ({"members": ["volumes", "linear"]}, "a temperature is needed for each of volumes, linear"),
        ({"volume_models": []}, "must be there where volumes is one of the members"),
        ({"schema_version": 1}, "models have one member alone: train it again"),
        ({"classes": ["CN", "CN"]}, "stands there twice"),
        ({"files": {"a\0b": "c"}}, "is not a file of the directory"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(fuzz, model_dir, changes, says):
    described_anew(model_dir, fuzz, **changes)
    with pytest.raises(ModelError, match=says):
        load_model(model_dir)


@pytest.mark.parametrize("name", ["model.json", FOLD])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_and_not_waited_for(model_dir, name, make):
    (model_dir / name).unlink()
    make(model_dir / name)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(model_dir)


def test_a_giant_of_nothing_is_refused_before_it_is_read(model_dir):
    for name in (FOLD, "model.json"):
        (model_dir / name).unlink()
        with (model_dir / name).open("wb") as stream:
            stream.truncate(2**40)
        if name == FOLD:
            with pytest.raises(ModelError, match="at most 536870912 are read"):
                load_model(model_dir)
    with pytest.raises(ModelError, match="at most 268435456 are read"):
        read_description(model_dir)


@pytest.mark.parametrize(
    "alter",
    [
        lambda arrays: arrays | {"novelty_variances": arrays["novelty_variances"] * np.nan},
        lambda arrays: arrays | {"head_weight": arrays["head_weight"] * np.inf},
        lambda arrays: arrays | {"novelty_residual_variance": np.zeros(0)},
        lambda arrays: arrays | {"head_weight": arrays["head_weight"][:, :3]},
        lambda arrays: arrays | {"head_bias": arrays["head_bias"][:1]},
        lambda arrays: arrays | {"trained.conv1.weight": np.zeros(3, dtype=np.float32)},
    ],
    ids=["nan", "infinite", "empty", "features", "classes", "network"],
)
def test_weights_that_answer_with_no_numbers_are_refused(fuzz, model_dir, alter):
    content = save(alter(load((model_dir / FOLD).read_bytes())))
    (model_dir / FOLD).unlink()
    (model_dir / FOLD).write_bytes(content)
    files = json.loads((model_dir / "model.json").read_text())["files"]
    described_anew(model_dir, fuzz, files=files | {FOLD: sha256_of_bytes(content)})
    with pytest.raises(ModelError, match="do not fit together"):
        load_model(model_dir)
