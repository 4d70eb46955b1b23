r"""What quality control says of scans that were harmed on purpose, and of the same scans unharmed.

Run it alone on the machine; on one core a harmed whole head takes about five minutes::

    .venv/bin/python benchmarks/failures.py SCAN_OR_BIDS_DIR ... [--workers 2] [--kinds 2] [--harm-every 1] \
        [--age-every 1]

Every scan goes through the default chain as it is, aged at one of three strengths, in turn, under other harmless
variations, and under each class of failure: in as many kinds of the class as ``--kinds`` says for a whole head and one
for a stripped brain, in turn, so that all kinds come up over the scans. With ``--harm-every 3``, two of three scans are
only judged as they are and aged. It prints a table and writes it to ``benchmarks/failures.md``; the measures of every
case go to ``benchmarks/failures.csv``, from which ``benchmarks/quality_bounds.py`` derives the bounds. Without any
scan, the kept measures are judged again by the bounds in use.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config, QualityBounds
from brainstage.pipeline.engine import limit_threads
from brainstage.pipeline.errors import BrainstageError

AS_IT_IS = "as it is"
UNHARMED = "unharmed"
STRIPPED_NOW = "stripped input"
TOO_MUCH = "failed extraction, too much"
TOO_LITTLE = "failed extraction, too little"
MISPLACED = "failed registration"
MEANINGLESS = (
    "wrong contrast",
    "upside down or mirrored axis",
    "missing part",
    TOO_MUCH,
    TOO_LITTLE,
    MISPLACED,
    "no brain",
)
"""After these a prediction would mean nothing: they have to fail, not only to warn."""
VARIATIONS_FOR_A_KIND = 2
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan, and what is done to it."""

    scan: str
    path: Path
    failure: str
    kind: str


def scans_of(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return name and path of every scan, of BIDS directories and of single files."""
    found = []
    for place in places:
        if place.is_dir():
            found += [(f"{place.name}/{scan.key}", scan.path) for scan in read_dataset(place).scans]
        else:
            found.append((place.name.partition(".")[0], place))
    return found


def ages_of(places: Sequence[Path]) -> dict[str, str]:
    """Return the age of every scan, in years, for which a BIDS directory has one."""
    return {
        f"{place.name}/{scan.key}": scan.covariates.value("age") or ""
        for place in places
        if place.is_dir()
        for scan in read_dataset(place).scans
    }


def cases_of(
    scan: str, path: Path, position: int, kinds: int, *, harm_every: int, age_every: int
) -> Iterator[Case]:
    """Yield what is done to a scan: nothing, ageing, some variations, and `kinds` of every class of failure."""
    from brainstage.preprocessing.brain_extraction import stripped_foreground
    from brainstage.preprocessing.ingest import ingest
    from brainstage.workflows.synthetic import damage, variation

    yield Case(scan=scan, path=path, failure=UNHARMED, kind=AS_IT_IS)
    # Old brains are few in most cohorts, and have to pass in all: any three aged scans in a row have all strengths.
    strengths = list(variation.AGEINGS)
    if position % age_every == 0:
        strength = strengths[position // age_every % len(strengths)]
        yield Case(scan=scan, path=path, failure=UNHARMED, kind=strength)
    if position % harm_every:
        return
    turn = position // harm_every
    whole = stripped_foreground(ingest(path, Config().ingest).head) is None
    classes: dict[str, Sequence[str]] = {UNHARMED: [k for k in variation.VARIATIONS if k != AS_IT_IS]}
    classes |= {name: list(kinds_of) for name, kinds_of in damage.DAMAGES.items()}
    classes |= {TOO_LITTLE: list(damage.TOO_LITTLE), MISPLACED: list(damage.MISPLACEMENTS)}
    if whole:  # a stripped brain has nothing around it that a mask could take in
        classes |= {TOO_MUCH: list(damage.TOO_MUCH), STRIPPED_NOW: list(variation.STRIPPINGS)}
    for failure, names in classes.items():
        wanted = min(
            (kinds if whole else 1) * (VARIATIONS_FOR_A_KIND if failure == UNHARMED else 1), len(names)
        )
        for step in range(wanted):
            kind = names[(turn * wanted + step) % len(names)]
            yield Case(scan=scan, path=path, failure=failure, kind=kind)


def judged(case: Case) -> dict[str, Any]:
    """Run a case through the chain; return its verdict and its measures as one row."""
    from brainstage.preprocessing.quality import assess

    started = time.perf_counter()
    row: dict[str, Any] = {"scan": case.scan, "failure": case.failure, "kind": case.kind}
    try:
        report = assess(_registered(case))
        row |= {"verdict": str(report.verdict.status), "reasons": ";".join(report.verdict.reasons)}
        row |= report.measures
    except BrainstageError as error:
        # A stage that fails catches a scan too: it gets no prediction, and its row says why.
        row |= {"verdict": "failed", "reasons": type(error).__name__}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def _registered(case: Case) -> Any:  # noqa: ANN401 - imported late, like everything heavy here
    from brainstage.pipeline.nifti import write_volume
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import carry_to_template, register
    from brainstage.workflows.synthetic import damage, variation

    config = Config()
    harmless = variation.VARIATIONS | variation.AGEINGS | variation.STRIPPINGS
    harm = damage.DAMAGES.get(case.failure, {}) | harmless
    with tempfile.TemporaryDirectory(prefix="brainstage-") as folder:
        source = case.path
        if case.kind != AS_IT_IS and case.kind in harm:
            source = write_volume(Path(folder) / "harmed_T1w.nii.gz", harm[case.kind](_specimen(case)))
        stripped = extract_brain(ingest(source, config.ingest), config.brain_extraction)
    masks = damage.TOO_MUCH | damage.TOO_LITTLE
    if case.failure in (TOO_MUCH, TOO_LITTLE):
        stripped = replace(stripped, brain_mask=masks[case.kind](_specimen(case)))
    normalised = normalise(correct_bias(stripped, config.bias_field), config.intensity)
    registered = register(normalised, config.registration)
    if case.failure != MISPLACED:
        return registered
    wrong = damage.MISPLACEMENTS[case.kind]() @ registered.native_to_template
    return carry_to_template(normalised, wrong, None, config.registration.resolution_mm)


def _specimen(case: Case) -> Any:  # noqa: ANN401 - imported late
    from brainstage.workflows.synthetic.damage import Specimen

    stripped = _stripped(case.path)
    seed = zlib.crc32(f"{case.scan} {case.kind}".encode())
    return Specimen(head=stripped.head, brain_mask=stripped.brain_mask, rng=np.random.default_rng(seed))


@cache
def _stripped(path: Path) -> Any:  # noqa: ANN401 - imported late
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest

    config = Config()
    return extract_brain(ingest(path, config.ingest), config.brain_extraction)


def all_judged(cases: Sequence[Case], workers: int) -> Iterator[list[dict[str, Any]]]:
    """Judge all cases, scan by scan in separate processes; yield the rows so far whenever a scan is done."""
    by_scan: dict[str, list[Case]] = {}
    for case in cases:
        by_scan.setdefault(case.scan, []).append(case)
    rows: dict[str, list[dict[str, Any]]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        waiting = {pool.submit(_scan_judged, group): scan for scan, group in by_scan.items()}
        for done in as_completed(waiting):
            rows[waiting[done]] = done.result()
            print(f"{len(rows)} of {len(by_scan)}: {waiting[done]}", flush=True)
            yield [row for scan in by_scan if scan in rows for row in rows[scan]]


def _scan_judged(cases: Sequence[Case]) -> list[dict[str, Any]]:
    rows = [judged(case) for case in cases]
    _stripped.cache_clear()
    return rows


def _one_thread() -> None:
    limit_threads(1, asked_for=True)


def judged_again(row: Mapping[str, Any], overrides: Mapping[str, QualityBounds]) -> dict[str, Any]:
    """Return a kept case with its verdict by the bounds in use, or by others."""
    from brainstage.preprocessing.quality import MEASURE_BY_NAME, judge

    if row["verdict"] == "failed":
        return dict(row)
    measures = {name: _value(row.get(name, "")) for name in MEASURE_BY_NAME if name != "header_warnings"}
    verdict = judge(measures | {"header_warnings": row["header_warnings"]}, overrides)
    return dict(row) | {"verdict": str(verdict.status), "reasons": ";".join(verdict.reasons)}


def _value(text: str | bool) -> float | bool | None:
    if isinstance(text, bool) or text in ("True", "False"):
        return text in (True, "True")
    return float(text) if text else None


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read the kept cases; `skull_stripped_input` as bool, all else as text."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row | {"skull_stripped_input": row["skull_stripped_input"] == "True"} for row in rows]


def is_missed(row: dict[str, Any]) -> bool:
    """Tell whether a harmed scan passed."""
    return row["verdict"] == "pass"


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return detection and false alarms as Markdown."""
    harmed = [row for row in rows if row["failure"] not in (UNHARMED, STRIPPED_NOW)]
    scans, harmed_scans = (len({row["scan"] for row in some}) for some in (rows, harmed))
    lines = [
        "# Induced failures against verdicts",
        "",
        f"Made by `benchmarks/failures.py`: {scans} scans through the default chain, {harmed_scans} also harmed.",
        "*Failed* counts verdicts of `fail` and scans that a stage refused; *caught* counts warnings too. A mirrored",
        "left and right is not among the harms: the template is symmetric, and no image alone tells the sides apart.",
        "How far that can be believed, and in sight of which cases the bounds were set: [README](README.md).",
        "",
        "| failure | cases | caught | failed | has to fail | passed unseen |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        _failure_line(failure, [row for row in harmed if row["failure"] == failure])
        for failure in dict.fromkeys(row["failure"] for row in harmed)
    ]
    meaningless = [row for row in harmed if row["failure"] in MEANINGLESS]
    lines.append(_failure_line("**all**", harmed))
    lines.append(_failure_line("**all that have to fail**", meaningless))
    lines += ["", "| unharmed | scans | passed | warned | failed | reasons |", "|---|---|---|---|---|---|"]
    for failure in (UNHARMED, STRIPPED_NOW):
        unharmed = [row for row in rows if row["failure"] == failure]
        for kind in dict.fromkeys(row["kind"] for row in unharmed):
            cases = [row for row in unharmed if row["kind"] == kind]
            if failure == UNHARMED:
                for name, is_stripped in (("whole", False), ("stripped", True)):
                    share = [row for row in cases if bool(row.get("skull_stripped_input")) is is_stripped]
                    lines += [_unharmed_line(f"{name}, {kind}", share)] if share else []
            else:
                seen = sum(bool(row.get("skull_stripped_input")) for row in cases)
                lines.append(_unharmed_line(f"{kind} ({seen} of {len(cases)} recognised)", cases))
    return "\n".join([*lines, ""])


def _failure_line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    failed = sum(row["verdict"] in ("fail", "failed") for row in rows)
    missed = [row for row in rows if is_missed(row)]
    kinds = dict.fromkeys(row["kind"] for row in missed)
    unseen = "; ".join(f"{kind} ({sum(row['kind'] == kind for row in missed)})" for kind in kinds)
    has_to = "" if "**" in name else "yes" if name in MEANINGLESS else "no"
    return (
        f"| {name} | {len(rows)} | {_share(len(rows) - len(missed), len(rows))} | {_share(failed, len(rows))} "
        f"| {has_to} | {unseen if '**' not in name else len(missed)} |"
    )


def _unharmed_line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    by_verdict = {verdict: [r for r in rows if r["verdict"] == verdict] for verdict in ("pass", "warn")}
    failed = len(rows) - sum(len(found) for found in by_verdict.values())
    reasons = dict.fromkeys(code for row in rows for code in row["reasons"].split(";") if code)
    return (
        f"| {name} | {len(rows)} | {_share(len(by_verdict['pass']), len(rows))} | {len(by_verdict['warn'])} "
        f"| {failed} | {', '.join(reasons)} |"
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write every case with its measures."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("places", type=Path, nargs="*", metavar="SCAN_OR_BIDS_DIR")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", type=int, default=2, help="kinds of each class on a whole head")
    parser.add_argument("--harm-every", type=int, default=1, help="harm each n-th scan")
    parser.add_argument("--age-every", type=int, default=1, help="age each n-th scan")
    options = parser.parse_args()
    limit_threads(1, asked_for=True)
    cases: list[Case] = []
    for position, (scan, path) in enumerate(scans_of(options.places)):
        cases += cases_of(
            scan,
            path,
            position,
            options.kinds,
            harm_every=options.harm_every,
            age_every=options.age_every,
        )
    ages = ages_of(options.places)
    # After each scan: what an interrupted run has found is kept.
    for found in all_judged(cases, options.workers) if cases else ():
        write_csv([row | {"age": ages.get(row["scan"], "")} for row in found], FOLDER / "failures.csv")
    rows = [judged_again(row, {}) for row in read_csv(FOLDER / "failures.csv")]
    table = table_of(rows)
    print(table)
    (FOLDER / "failures.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
