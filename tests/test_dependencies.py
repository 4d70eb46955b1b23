"""What is installed is locked with its hash, its licences are on the list, and silence of a database is no verdict."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN, DEVELOP, CUDA, CPU = (f"requirements{kind}.lock" for kind in ("", "-dev", "-cuda", "-cpu"))
RULES = tomllib.loads((ROOT / "dependencies" / "licences.toml").read_text(encoding="utf-8"))
TORCH = "torch==1.0 \\\n    --hash=sha256:00\n    # via monai\n"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "dependencies" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock, audit = script("lock"), script("audit")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def locked(name: str) -> dict[str, Requirement]:
    return {one.name.lower().replace("_", "-"): one for one in audit.locked(text(name))}


@pytest.mark.parametrize("name", [RUN, DEVELOP, CUDA, CPU])
def test_every_locked_version_has_hashes_and_wheels_alone_are_taken(name):
    lines = [line for line in text(name).splitlines() if not line.lstrip().startswith("#")]
    assert lines[0] == "--only-binary :all:"
    blocks = re.findall(
        r"^\S+==\S+(?: ; .+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text(name), re.MULTILINE
    )
    assert len(blocks) == len(list(audit.locked(text(name)))) > 0
    assert sum(len(block.splitlines()) for block in blocks) == len(lines) - 1
    assert all(len(set(block.splitlines())) == len(block.splitlines()) for block in blocks)


def test_no_lock_file_names_an_index():
    for name in (RUN, DEVELOP, CUDA, CPU):
        assert not re.search(r"-index|--find-links|://(?!download\.pytorch\.org/whl/cpu/)", text(name))


def test_a_package_is_locked_once():
    names = [name for lock_file in (RUN, DEVELOP, CUDA) for name in locked(lock_file)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        (RUN, PROJECT["project"]["dependencies"]),
        (RUN, PROJECT["build-system"]["requires"]),
        (DEVELOP, PROJECT["project"]["optional-dependencies"]["dev"]),
    ],
    ids=["run", "build", "develop"],
)
def test_what_the_project_asks_for_is_locked_where_it_belongs(name, requirements):
    versions = {key: next(iter(one.specifier)).version for key, one in locked(name).items()}
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(versions[requirement.name.lower().replace("_", "-")])


def test_both_wheels_of_torch_are_accepted():
    torch, cpu = lock.packages(text(RUN))["torch"], lock.packages(text(CPU))["torch"]
    assert cpu.startswith(torch.split(" ")[0] + "+cpu ")
    assert set(re.findall(r"sha256:\w+", cpu)) < set(re.findall(r"sha256:\w+", torch))


def test_an_installation_takes_what_is_locked_and_nothing_else():
    recipe = text("Makefile").partition("$(STAMP): ")[2].partition("\n\n")[0]
    installs = [line for line in recipe.splitlines() if "install" in line.lower() or "LOCKED" in line]
    assert len(installs) == 4
    assert all("$(LOCKED) -r" in line or "--no-build-isolation --no-deps" in line for line in installs)
    assert re.search(r"^LOCKED := .* --require-hashes --no-deps$", text("Makefile"), re.MULTILINE)


def test_packages_of_a_lock_file_are_read_with_all_their_lines():
    assert lock.packages(
        f"# torch\n--only-binary :all:\n{TORCH}b==2 ; os_name == 'nt' \\\n    --hash=sha256:1\n"
    ) == {
        "torch": TORCH,
        "b": "b==2 ; os_name == 'nt' \\\n    --hash=sha256:1\n",
    }


def test_a_package_with_two_versions_keeps_both():
    both = {"a": "a==1 ; x \\\n    --hash=sha256:1\na==2 ; y \\\n    --hash=sha256:2\n"}
    assert lock.packages(both["a"]) == both
    assert lock.without_hashes(both) == "a==1 ; x\na==2 ; y\n"


def test_hashes_of_the_cpu_wheels_join_those_of_the_index():
    joined = lock.with_cpu_wheels(TORCH, "torch==1.0+cpu \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n")
    assert joined == (
        "torch==1.0 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22 \\\n    --hash=sha256:00\n    # via monai\n"
    )


def test_another_torch_is_not_locked_before_its_cpu_wheels_are_known():
    with pytest.raises(
        SystemExit, match=r"torch==1\.0 is to be locked, but requirements-cpu\.lock has torch==0\.9\+cpu"
    ):
        lock.with_cpu_wheels(TORCH, "torch==0.9+cpu \\\n    --hash=sha256:11\n")


def test_each_package_goes_where_it_is_needed():
    everything = {"numpy": "n", "nvidia-cublas": "c", "triton": "t", "ruff": "r"}
    files = lock.split(everything, ["numpy", "nvidia-cublas", "triton"])
    assert files == {RUN: {"numpy": "n"}, DEVELOP: {"ruff": "r"}, CUDA: {"nvidia-cublas": "c", "triton": "t"}}


def test_every_licence_of_what_runs_is_on_the_list(capsys):
    assert audit.check_licences(list(audit.locked(text(RUN))), RULES) == audit.WELL
    assert re.search(r"^numpy +==\S+ +BSD$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("missing", ["MIT", "LGPL-3.0-or-later", "Apache-2.0 WITH LLVM-exception"])
def test_a_licence_that_is_not_on_the_list_is_found(missing, capsys):
    rules = {**RULES, "allowed": [one for one in RULES["allowed"] if one != missing]}
    assert audit.check_licences(list(audit.locked(text(RUN))), rules) == audit.FOUND
    assert f": {missing}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([("License-Expression", "(MIT OR GPL-3.0-only) AND X")], ["MIT", "GPL-3.0-only", "X"]),
        ([("Classifier", "License :: OSI Approved :: MIT License"), ("License", "whatever")], ["MIT"]),
        ([("License", "Apache 2.0\nand a long text")], ["Apache-2.0"]),
        ([("License", "  ")], ["none declared"]),
        ([], ["none declared"]),
    ],
    ids=["expression", "classifier", "free-text", "blank", "nothing"],
)
def test_a_licence_is_read_wherever_it_is_declared(fields, named):
    metadata = Message()
    for key, value in fields:
        metadata[key] = value
    assert audit.licences(metadata, RULES["spellings"]) == named


def answers(monkeypatch, tmp_path, **by_package):
    """Let the database know of vulnerabilities of some packages, be silent on those with None, and fine with others."""
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "SBOM", tmp_path / "build" / "sbom.cdx.json")

    def ask(pins: str, form: str) -> str:
        if form == "cyclonedx-json":
            return '{"bomFormat": "CycloneDX"}'
        entries = []
        for one in map(Requirement, pins.splitlines()):
            ids = by_package.get(one.name, ())
            entry = {"name": one.name, "version": "1"}
            vulns = [{"id": name, "fix_versions": ["2"]} for name in ids or ()]
            entries.append(
                {**entry, "skip_reason": "not found"} if ids is None else {**entry, "vulns": vulns}
            )
        return json.dumps({"dependencies": entries})

    monkeypatch.setattr(audit, "ask", ask)
    return audit.vulnerabilities([Requirement("a==1"), Requirement("b==1")])


def test_nothing_is_known_against_the_locked_versions(monkeypatch, tmp_path, capsys):
    assert answers(monkeypatch, tmp_path, jinja2=["CVE-1"]) == 0
    assert "none known in 2 packages" in capsys.readouterr().out
    assert json.loads((tmp_path / "build" / "sbom.cdx.json").read_text()) == {"bomFormat": "CycloneDX"}


def test_a_known_vulnerability_is_named_with_the_version_that_mends_it(monkeypatch, tmp_path, capsys):
    assert answers(monkeypatch, tmp_path, jinja2=["CVE-1"], b=["CVE-2"]) == 1
    assert capsys.readouterr().out == "vulnerability: b 1: CVE-2, mended in 2\n"


@pytest.mark.parametrize(
    "silence", [{}, {"jinja2": None}, {"jinja2": ["CVE-1"], "b": None}], ids=["all", "it", "one"]
)
def test_a_database_that_knows_nothing_is_no_verdict(silence, monkeypatch, tmp_path, capsys):
    assert answers(monkeypatch, tmp_path, **silence) == 75
    assert capsys.readouterr().out.startswith("vulnerabilities: NOT CHECKED: no advisory database answers")
    assert not (tmp_path / "build").exists()


def test_no_answer_at_all_is_no_verdict(monkeypatch, capsys):
    monkeypatch.setattr(audit, "ask", lambda _pins, _form: "")
    assert audit.vulnerabilities([Requirement("a==1")]) == 75
    assert "NOT CHECKED" in capsys.readouterr().out
