"""``brainstage status``: which stage each scan of an output directory has reached."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.errors import InputMissingError
from brainstage.pipeline.files import read_json_or_empty
from brainstage.pipeline.lease import is_held
from brainstage.workflows.output_directory import planned_scans
from brainstage.workflows.progress import STAGE_ORDER

DONE: Final = "done"
RUNNING: Final = "running"
FAILED: Final = "FAILED"
OPEN: Final = "-"


@dataclass(frozen=True, kw_only=True)
class ScanStatus:
    """How far a scan is.

    Attributes
    ----------
    scan : str
    stages : mapping
        Stage to ``done``, ``running``, ``FAILED`` or ``-``, in the order of the chain.
    """

    scan: str
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One word for the whole scan."""
        states = set(self.stages.values())
        for word in (RUNNING, FAILED):
            if word in states:
                return word.lower()
        before_prediction = {state for stage, state in self.stages.items() if stage != STAGE_ORDER[-1]}
        if before_prediction == {DONE}:
            return DONE
        return "begun" if DONE in states else "not begun"


def read_status(out_dir: Path) -> list[ScanStatus]:
    """Read how far every scan of an output directory is, from the names of the files that stages leave.

    Whether the outputs are still what the markers say is for the next run to find out.

    Raises
    ------
    InputMissingError
        When the directory is none that ``brainstage run`` wrote.
    """
    state = out_dir / STATE_FOLDER
    if not state.is_dir():
        raise InputMissingError(
            f"{out_dir.name or out_dir} is no output directory of brainstage run (it has no {STATE_FOLDER}/)"
        )
    begun = {path.name for path in state.glob("sub-*") if path.is_dir()}
    return [_scan_status(state / key) for key in sorted(begun.union(planned_scans(out_dir)))]


def status_table(statuses: list[ScanStatus]) -> str:
    """Return the grid of scans and stages as text, with a line of sums below."""
    width = max([len(status.scan) for status in statuses], default=0)
    heads = [name.replace("_", " ") for name in STAGE_ORDER]
    lines = ["  ".join([" " * width, *heads])]
    lines += [
        "  ".join(
            [status.scan.ljust(width)]
            + [status.stages[name].ljust(len(head)) for name, head in zip(STAGE_ORDER, heads, strict=True)]
        ).rstrip()
        for status in statuses
    ]
    sums = Counter(status.summary for status in statuses)
    lines.append(f"{len(statuses)} scans: " + ", ".join(f"{n} {word}" for word, n in sums.most_common()))
    return "\n".join(lines)


def _scan_status(folder: Path) -> ScanStatus:
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:  # not begun, or of a name that no folder can have
        names = set()
    stages = {name: DONE if f"{name}.json" in names else OPEN for name in STAGE_ORDER}
    if "failure.json" in names:
        _mark(stages, str(read_json_or_empty(folder / "failure.json").get("stage")), FAILED)
    if "lease.json" in names and is_held(folder / "lease.json"):
        _mark(stages, str(read_json_or_empty(folder / "running.json").get("stage")), RUNNING)
    return ScanStatus(scan=folder.name, stages=stages)


def _mark(stages: dict[str, str], stage: str, state: str) -> None:
    """Mark a stage, and what comes after it as open: it was made from something else."""
    reached = False
    for name in stages:
        if name == stage:
            stages[name], reached = state, True
        elif reached:
            stages[name] = OPEN
