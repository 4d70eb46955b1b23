"""What the engine, the markers, the tables and the cohort page cost at thousands of scans.

Run it alone on the machine::

    .venv/bin/python benchmarks/scale.py [--scans 10000] [--workers 2]

Makes a BIDS directory of that many tiny files, runs it through the whole of ``brainstage run`` with stand-in stages of
a few milliseconds, then runs it again with nothing to do, and asks for its status. It prints a table and writes it to
``benchmarks/scale.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from stand_in import stand_in_stages

from brainstage.workflows.progress import Progress
from brainstage.workflows.run import RunOptions, run
from brainstage.workflows.status import read_status, status_table

FOLDER = Path(__file__).parent


def make_dataset(root: Path, scans: int) -> None:
    """Write a BIDS directory of files of a few bytes."""
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "scale", "BIDSVersion": "1.10.0"}))
    lines = ["participant_id\tage\tsex\tdiagnosis"]
    for number in range(scans):
        subject = f"sub-{number:06d}"
        folder = root / subject / "anat"
        folder.mkdir(parents=True)
        (folder / f"{subject}_T1w.nii").write_text(subject)
        lines.append(f"{subject}\t{60 + number % 30}\t{'FM'[number % 2]}\t{('CN', 'MCI', 'AD')[number % 3]}")
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


class MemoryWatch:
    """Peak resident memory of this process and of its children, sampled."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.workers: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(2.0):
            try:
                self.driver.append(me.memory_info().rss / 1024**2)
                self.workers.append(
                    max((child.memory_info().rss for child in me.children(recursive=True)), default=0)
                    / 1024**2
                )
            except psutil.Error:
                continue


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def course(samples: list[float]) -> str:
    """Return memory at the beginning, middle and end, and the peak, in MB."""
    if not samples:
        return "no sample"
    picked = [samples[0], samples[len(samples) // 2], samples[-1]]
    return " / ".join(f"{value:.0f}" for value in picked) + f", peak {max(samples):.0f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scans", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="brainstage-scale-") as folder:
        bids, out = Path(folder) / "bids", Path(folder) / "out"
        make_dataset(bids, options.scans)
        asked = RunOptions(bids_dir=bids, out_dir=out, overrides={}, processes=options.workers)
        with MemoryWatch() as memory:
            first = timed(lambda: run(asked, Progress(io.StringIO()), stand_in_stages))
        rows.append(("first run", f"{first:.0f} s"))
        rows.append(("**overhead a scan** (8 stages, report, row)", f"{1000 * first / options.scans:.1f} ms"))
        rows.append(("memory of the driver, begin / middle / end, MB", course(memory.driver)))
        rows.append(("memory of the largest worker, MB", course(memory.workers)))
        again = timed(lambda: run(asked, Progress(io.StringIO()), stand_in_stages))
        rows.append(("**second run, nothing to do**", f"{again:.1f} s"))
        rows.append(("`brainstage status`", f"{timed(lambda: status_table(read_status(out))):.2f} s"))
        rows.append(("`cohort.html`", f"{(out / 'cohort.html').stat().st_size / 1024**2:.1f} MB"))
        files = sum(len(names) for _, _, names in os.walk(out))
        rows.append(("files written", f"{files}"))
    lines = [
        "# Scale: what surrounds the stages",
        "",
        f"Made by `benchmarks/scale.py`: {options.scans} scans, stand-in stages, {options.workers} workers.",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    print("\n".join(lines))
    (FOLDER / "scale.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
