"""What a second worker brings.

Run it alone on the machine::

    .venv/bin/python benchmarks/workers.py BIDS_DIR [--scans 8] [--repeats 3]

The same scans go through the whole of ``brainstage run`` with one worker and with two, one thread each, and with one
worker of two threads, each time into an empty directory, in turns. It prints a table of medians and writes it to
``benchmarks/workers.md``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brainstage.pipeline.bids import read_dataset

FOLDER = Path(__file__).parent


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    labels = list(dict.fromkeys(scan.entities.subject for scan in read_dataset(options.bids_dir).scans))
    labels = labels[: options.scans]
    seconds: dict[tuple[int, int], list[float]] = {(1, 1): [], (2, 1): [], (1, 2): []}
    for _ in range(options.repeats):
        for (workers, threads), taken in seconds.items():
            taken.append(_timed(options.bids_dir, labels, workers, threads))
    alone = seconds[1, 1]
    lines = [
        "# A second worker",
        "",
        (
            f"Made by `benchmarks/workers.py`: {len(labels)} scans of {options.bids_dir.name}, from start to tables, "
            f"{options.repeats} times in turns; medians, and the speed-up of each turn."
        ),
        "",
        "| `--nprocs` | `--omp-nthreads` | seconds | times as fast as one worker of one thread | in each turn |",
        "|---|---|---|---|---|",
    ]
    for (workers, threads), taken in seconds.items():
        gains = [one / other for one, other in zip(alone, taken, strict=True)]
        lines.append(
            f"| {workers} | {threads} | {statistics.median(taken):.1f} | {statistics.median(gains):.2f} | "
            f"{', '.join(f'{gain:.2f}' for gain in gains)} |"
        )
    lines.append("")
    print("\n".join(lines))
    (FOLDER / "workers.md").write_text("\n".join(lines), encoding="utf-8")


def _timed(bids_dir: Path, labels: list[str], workers: int, threads: int) -> float:
    with tempfile.TemporaryDirectory(prefix="brainstage-workers-") as folder:
        started = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "brainstage.workflows.cli", "run"),
                *(str(bids_dir), f"{folder}/out", "--participant-label", *labels),
                *("--nprocs", str(workers), "--omp-nthreads", str(threads)),
            ],
            check=True,
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
