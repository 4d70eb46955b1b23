"""Where the bounds of quality control come from: derived from unharmed scans, held against harmed ones.

Run ``benchmarks/failures.py`` first, then::

    .venv/bin/python benchmarks/quality_bounds.py

The rule: of all unharmed cases, take the median of a measure and its worst percentile. The measure passes up to half
of the distance between the two beyond the worst percentile, and is tolerated for as much again. The bounds
in use stand beside: stricter where a harm would pass, more generous where few scans speak. Measures that are missing
here have bounds that follow from what they mean.

The table stands beside it as ``benchmarks/quality_bounds.md``. It also answers whether bounds carry over to scans
that they were not derived from: derived on all datasets but one, they judge the one that was left out. And it shows
whom the bounds cost what: how each measure goes with age, and how many scans of each age pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from failures import AS_IT_IS, judged_again, read_csv

from brainstage.pipeline.config import QualityBounds
from brainstage.preprocessing.quality import MEASURE_BY_NAME

FOLDER: Final = Path(__file__).parent
UNHARMED: Final = ("unharmed", "stripped input")
WORST_PERCENTILE: Final = 1.0
STEP: Final = 0.5
LOWER_IS_WORSE: Final = (
    "mask_template_dice",
    "template_correlation",
    "upright_margin",
    "cnr",
    "snr",
)
HIGHER_IS_WORSE: Final = (
    "missing_tissue_ml",
    "rim_to_grey",
    "clipped_share",
    "cjv",
    "white_matter_noise",
    "band_misregistration",
)
OLD_FROM: Final = 65.0
AGES: Final = ((0.0, 40.0), (40.0, OLD_FROM), (OLD_FROM, 80.0), (80.0, 130.0))
MOST_OF_R: Final = 0.3

Row = Mapping[str, Any]


def derived(rows: Sequence[Row]) -> dict[str, QualityBounds]:
    """Return the bounds that follow from the unharmed among `rows`, by measure."""
    unharmed = [row for row in rows if row["failure"] in UNHARMED]
    bounds = {}
    for name in (*LOWER_IS_WORSE, *HIGHER_IS_WORSE):
        if not any(row.get(name) for row in unharmed):
            continue
        median, worst = median_and_worst(unharmed, name)
        step = STEP * (worst - median)
        passing, tolerated = worst + step, worst + 2.0 * step
        down = name in LOWER_IS_WORSE
        bounds[name] = QualityBounds(
            passing=(passing, None) if down else (None, passing),
            tolerated=(tolerated, None) if down else (None, tolerated),
        )
    return bounds


def median_and_worst(unharmed: Sequence[Row], name: str) -> tuple[float, float]:
    """Return the median of a measure over unharmed cases, and its worst percentile."""
    values = np.array([float(row[name]) for row in unharmed if row.get(name)])
    at = WORST_PERCENTILE if name in LOWER_IS_WORSE else 100.0 - WORST_PERCENTILE
    return float(np.median(values)), float(np.percentile(values, at))


def dataset_of(row: Row) -> str:
    """Return the dataset of a case; single files count as one."""
    return row["scan"].partition("/")[0] if "/" in row["scan"] else "single files"


def table_of(rows: Sequence[Row]) -> str:
    """Return the derivation as Markdown."""
    bounds = derived(rows)
    unharmed = [row for row in rows if row["failure"] in UNHARMED]
    lines = [
        "# Bounds of quality control",
        "",
        f"Made by `benchmarks/quality_bounds.py` from {len(unharmed)} unharmed and {len(rows) - len(unharmed)} harmed",
        "cases of `failures.csv`. Passing: half of the distance between the median and the worst percentile of the",
        "unharmed cases, beyond that percentile; tolerated: as much again. Those in use were set by hand,",
        "in sight of both.",
        "",
        "| measure | unharmed: median | worst 1 % | derived: passes | tolerated | in use: passes | tolerated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in bounds.items():
        median, worst = median_and_worst(unharmed, name)
        used = MEASURE_BY_NAME[name].bounds
        lines.append(
            f"| `{name}` | {median:.3g} | {worst:.3g} | {_text(found.passing)} | {_text(found.tolerated)} "
            f"| {_text(used.passing) if used else '-'} | {_text(used.tolerated) if used else '-'} |"
        )
    lines += [
        "",
        "## Do they carry over?",
        "",
        "Bounds derived on all datasets but one, applied to the one left out. Bounds that are not derived stay in use.",
        "",
        "| left out | unharmed cases | passed | failed | harmed cases | caught | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(dataset_of(row) for row in rows):
        others = derived([row for row in rows if dataset_of(row) != name])
        lines.append(_outcome(name, [row for row in rows if dataset_of(row) == name], others))
    lines.append(_outcome("none, derived on all", rows, bounds))
    lines.append(_outcome("none, as in use", rows, {}))
    return "\n".join([*lines, *age_table(rows), ""])


def age_table(rows: Sequence[Row]) -> list[str]:
    """Return how the measures of scans as they are go with age, and how many scans of each age pass."""
    known = [row for row in rows if row["kind"] == AS_IT_IS and row.get("age")]
    ages = np.array([float(row["age"]) for row in known])
    lines = [
        "",
        "## Whom the bounds cost what",
        "",
        f"{len(known)} scans as they are, of people of {ages.min():g} to {ages.max():g}. A measure that goes with age",
        f"(r beyond {MOST_OF_R:g}) needs a bound beyond what age does: the room is the distance from the worst value",
        f"of people of {OLD_FROM:g} and more to the bound, over the standard deviation among them. Age and scanner are",
        "not apart here: nearly all of the old come from one dataset.",
        "",
        f"| measure | r with age | worst from {OLD_FROM:g} years on | passes | room, SD |",
        "|---|---|---|---|---|",
    ]
    for spec in MEASURE_BY_NAME.values():
        pairs = [
            (float(r["age"]), number) for r in known if (number := _number(r.get(spec.name))) is not None
        ]
        if spec.bounds is None or len(pairs) < 10:
            continue
        age, value = np.array(pairs).T
        old = value[age >= OLD_FROM]
        r = float(np.corrcoef(age, value)[0, 1]) if value.std() > 0.0 else 0.0
        low, high = spec.bounds.passing
        rooms = [old.min() - low] if low is not None else []
        rooms += [high - old.max()] if high is not None else []
        worst = old.min() if low is not None and rooms[0] == min(rooms) else old.max()
        spread = float(old.std())
        room = f"{min(rooms) / spread:.1f}" if spread > 0.0 else "-"
        lines.append(f"| `{spec.name}` | {r:+.2f} | {worst:.3g} | {_text(spec.bounds.passing)} | {room} |")
    lines += ["", "| age | scans | passed | warned | failed | reasons |", "|---|---|---|---|---|---|"]
    for low, high in AGES:
        again = [judged_again(row, {}) for row in known if low <= float(row["age"]) < high]
        verdicts = [row["verdict"] for row in again]
        reasons = dict.fromkeys(code for row in again for code in row["reasons"].split(";") if code)
        span = (
            f"under {high:g}"
            if low == 0.0
            else f"{low:g} and more"
            if high > 120.0
            else f"{low:g} to {high:g}"
        )
        lines.append(
            f"| {span} | {len(again)} | {_share(verdicts, 'pass')} | {_share(verdicts, 'warn')} "
            f"| {_share(verdicts, 'fail', 'failed')} | {', '.join(reasons)} |"
        )
    return lines


def _number(text: str | None) -> float | None:
    if text in ("True", "False"):
        return float(text == "True")
    return float(text) if text else None


def _outcome(name: str, rows: Sequence[Row], overrides: Mapping[str, QualityBounds]) -> str:
    again = [judged_again(row, overrides) for row in rows]
    unharmed = [row["verdict"] for row in again if row["failure"] in UNHARMED]
    harmed = [row["verdict"] for row in again if row["failure"] not in UNHARMED]
    failed = ("fail", "failed")
    return (
        f"| {name} | {len(unharmed)} | {_share(unharmed, 'pass')} | {_share(unharmed, *failed)} "
        f"| {len(harmed)} | {_share(harmed, 'warn', *failed)} | {_share(harmed, *failed)} |"
    )


def _share(verdicts: Sequence[str], *wanted: str) -> str:
    return f"{100 * sum(v in wanted for v in verdicts) / max(len(verdicts), 1):.1f} %"


def _text(interval: tuple[float | None, float | None]) -> str:
    low, high = interval
    if low is not None and high is not None:
        return f"{low:.3g} to {high:.3g}"
    return f"from {low:.3g}" if low is not None else f"to {high:.3g}" if high is not None else "any"


def main() -> None:
    """Derive the bounds."""
    table = table_of(read_csv(FOLDER / "failures.csv"))
    print(table)
    (FOLDER / "quality_bounds.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
