"""What a second worker brings.

Run it alone on the machine::

    .venv/bin/python benchmarks/workers.py BIDS_DIR [--scans 8]

The same scans go through the whole of ``brainstage run`` with one worker and with two, one thread each, and with one
worker of two threads, each time into an empty directory. It prints a table and writes it to ``benchmarks/workers.md``.
"""

from __future__ import annotations

import argparse
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
    options = parser.parse_args()
    labels = list(dict.fromkeys(scan.entities.subject for scan in read_dataset(options.bids_dir).scans))
    labels = labels[: options.scans]
    rows = []
    for workers, threads in ((1, 1), (2, 1), (1, 2)):
        with tempfile.TemporaryDirectory(prefix="brainstage-workers-") as folder:
            started = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "brainstage.workflows.cli", "run"),
                    *(str(options.bids_dir), f"{folder}/out", "--participant-label", *labels),
                    *("--nprocs", str(workers), "--omp-nthreads", str(threads)),
                ],
                check=True,
            )
            rows.append((workers, threads, time.perf_counter() - started))
    alone = rows[0][2]
    lines = [
        "# A second worker",
        "",
        f"Made by `benchmarks/workers.py`: {len(labels)} scans of {options.bids_dir.name}, from start to tables.",
        "",
        "| `--nprocs` | `--omp-nthreads` | seconds | times as fast as one worker of one thread |",
        "|---|---|---|---|",
        *(f"| {workers} | {threads} | {took:.1f} | {alone / took:.2f} |" for workers, threads, took in rows),
        "",
    ]
    print("\n".join(lines))
    (FOLDER / "workers.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
