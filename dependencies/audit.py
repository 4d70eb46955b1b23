"""Ask for known vulnerabilities of the locked versions, and hold the licences of what runs against a list.

    make audit

Vulnerabilities: ``pip-audit`` asks the advisory database of the Python package index about every version in the lock
files. Whether there is a database at all is tried first with a release that is known to be vulnerable: an index that
knows nothing of it has no advisories to offer, and its silence means nothing. Where the whole list was answered, a
CycloneDX bill of materials is left in ``build/sbom.cdx.json``.

Licences: what the installed packages of ``requirements.lock`` declare; every licence that one names must be in
``licences.toml``.

Exit codes: 0 all is well; 1 a vulnerability is known, or a licence is not on the list; 75 the licences are all right,
and no advisory database could be asked: nothing is known about vulnerabilities.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-cuda.lock")
SBOM = ROOT / "build" / "sbom.cdx.json"
KNOWN_TO_BE_VULNERABLE = "jinja2==2.10"
"""CVE-2019-10906, which every advisory database has."""

WELL, FOUND, NO_DATABASE = 0, 1, 75


def locked(text: str) -> Iterator[Requirement]:
    """Give the requirements of a lock file, without their hashes."""
    for line in text.splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            yield Requirement(line.removesuffix("\\"))


def pins(requirements: Sequence[Requirement]) -> str:
    """Return bare pins, whatever the platform: a library for Windows is asked about on Linux too."""
    return "".join(f"{one.name}{one.specifier}\n" for one in requirements)


def ask(text: str, form: str) -> str:
    """Return what pip-audit writes about pinned requirements; empty where no database answers."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "pins.txt", Path(folder) / "answer"
        asked.write_text(text, encoding="utf-8")
        command = [
            str(Path(sysconfig.get_path("scripts")) / "pip-audit"),
            "--requirement",
            str(asked),
            "--no-deps",
        ]
        command += ["--disable-pip", "--progress-spinner", "off", "--format", form, "--output", str(answer)]
        subprocess.run(command, check=False, capture_output=True)
        return answer.read_text(encoding="utf-8") if answer.is_file() else ""


def read_answer(answer: str) -> tuple[list[str], list[str]]:
    """Return the known vulnerabilities, and the packages that the database was silent about."""
    dependencies: list[dict[str, Any]] = json.loads(answer)["dependencies"] if answer else []
    silent = [one["name"] for one in dependencies if "skip_reason" in one]
    found = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, "
        f"mended in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in dependencies
        for vulnerability in one.get("vulns", ())
    ]
    return found, silent


def vulnerabilities(requirements: Sequence[Requirement]) -> int:
    """Say what is known about the locked versions, and return the exit code."""
    canary, _ = read_answer(ask(KNOWN_TO_BE_VULNERABLE, "json"))
    found, silent = read_answer(ask(pins(requirements), "json")) if canary else ([], [])
    if not canary or silent:
        of = f" about {', '.join(silent)}" if silent else ""
        print(
            f"vulnerabilities: NOT CHECKED: no advisory database answers{of}; run this where one can be reached"
        )
    for one in found:
        print(f"vulnerability: {one}")
    if found:
        return FOUND
    if not canary or silent:
        return NO_DATABASE
    SBOM.parent.mkdir(exist_ok=True)
    SBOM.write_text(ask(pins(requirements), "cyclonedx-json"), encoding="utf-8")
    print(f"vulnerabilities: none known in {len(requirements)} packages; {SBOM.relative_to(ROOT)} lists them")
    return WELL


def licences(metadata: Any, spellings: dict[str, str]) -> list[str]:  # noqa: ANN401 - a message or a dictionary
    """Return every licence that a package names: its SPDX expression, else its classifiers, else its free text."""
    declared = metadata.get("License-Expression")
    if declared is None:
        classifiers = [
            c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")
        ]
        declared = " AND ".join(spellings.get(c, c) for c in classifiers)
    if not declared:
        text = next(iter((metadata.get("License") or "").strip().splitlines()), "none declared")
        declared = spellings.get(text, text)
    return re.split(r" AND | OR ", declared.replace("(", "").replace(")", ""))


def check_licences(requirements: Sequence[Requirement], rules: dict[str, Any]) -> int:
    """List the licences of what is locked for this platform, and return the exit code."""
    strangers = []
    for one in requirements:
        if one.marker is None or one.marker.evaluate():
            named = licences(distribution(one.name).metadata, rules["spellings"])
            print(f"{one.name:26} {one.specifier!s:14} {', '.join(named)}")
            strangers += [f"{one.name}: {licence}" for licence in named if licence not in rules["allowed"]]
    for stranger in strangers:
        print(f"licence not on the list of dependencies/licences.toml: {stranger}")
    return FOUND if strangers else WELL


def main() -> int:
    """Check both, and return the worse."""
    locks = {name: list(locked((ROOT / name).read_text(encoding="utf-8"))) for name in LOCKS}
    rules = tomllib.loads(Path(__file__).with_name("licences.toml").read_text(encoding="utf-8"))
    of_licences = check_licences(locks["requirements.lock"], rules)
    of_vulnerabilities = vulnerabilities([one for requirements in locks.values() for one in requirements])
    return of_licences or of_vulnerabilities


if __name__ == "__main__":
    sys.exit(main())
