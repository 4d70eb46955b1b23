"""What ``--deterministic`` promises and costs: two runs with it, compared byte by byte, and one without.

Run it alone on the machine::

    .venv/bin/python benchmarks/determinism.py BIDS_DIR [--scans 2] [--threads 2]

Every run is a fresh ``brainstage run`` of one process over the same scans. It prints a table and writes it to
``benchmarks/determinism.md``; it ends with status 1 when two deterministic runs differ.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from brainstage.pipeline.bids import read_dataset

COMPARED: Final = ("*.nii.gz", "*.h5", "*desc-qc.json")
"""Volumes, transforms and quality measures; reports and logs name the time of the run."""


def run(bids_dir: Path, out_dir: Path, participants: list[str], options: list[str]) -> float:
    """Run the participant level in a fresh process; return its seconds."""
    command = [
        sys.executable,
        "-m",
        "brainstage.workflows.cli",
        "run",
        str(bids_dir),
        str(out_dir),
        "participant",
    ]
    command += ["--participant-label", *participants, "--nprocs", "1", *options]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def hashes_under(out_dir: Path) -> dict[str, str]:
    """Return relative path to sha256 of every file that a deterministic run promises."""
    paths = sorted({path for pattern in COMPARED for path in out_dir.rglob(pattern)})
    return {str(path.relative_to(out_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Return the names whose bytes are not the same, or that only one run wrote."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the runs without --deterministic")
    options = parser.parse_args()
    subjects = list(dict.fromkeys(scan.entities.subject for scan in read_dataset(options.bids_dir).scans))
    chosen = subjects[: options.scans]
    plain = ["--omp-nthreads", str(options.threads)]
    runs = {
        "--deterministic": ["--deterministic"],
        "--deterministic, again": ["--deterministic"],
        f"{options.threads} thread(s)": plain,
        f"{options.threads} thread(s), again": plain,
    }
    seconds, hashes = {}, {}
    with tempfile.TemporaryDirectory(prefix="brainstage-determinism-") as folder:
        for number, (name, extra) in enumerate(runs.items()):
            out_dir = Path(folder) / str(number)
            seconds[name] = run(options.bids_dir, out_dir, chosen, extra)
            hashes[name] = hashes_under(out_dir)
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
    names = list(runs)
    apart = [differing(hashes[names[0]], hashes[names[1]]), differing(hashes[names[2]], hashes[names[3]])]
    lines = [
        "# Determinism",
        "",
        (
            f"Fresh runs over {len(chosen)} scan(s), one process, loading the libraries included; volumes, transforms "
            "and quality measures compared byte by byte. Made by `benchmarks/determinism.py`."
        ),
        "",
        "| run | seconds | files | that differ from the run before |",
        "|---" * 4 + "|",
    ]
    for number, name in enumerate(names):
        found = str(len(apart[number // 2])) if number % 2 else ""
        lines.append(f"| {name} | {seconds[name]:.1f} | {len(hashes[name])} | {found} |")
    table = "\n".join([*lines, ""])
    print(table)
    for name in apart[0]:
        print(f"differs: {name}")
    (Path(__file__).parent / "determinism.md").write_text(table, encoding="utf-8")
    return int(bool(apart[0]))


if __name__ == "__main__":
    raise SystemExit(main())
