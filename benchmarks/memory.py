"""How much memory a worker takes, at its peak.

Run it with::

    .venv/bin/python benchmarks/memory.py SCAN [--threads 1]

SCAN is a T1w file of a whole head. It goes through everything that a worker of ``brainstage run`` does, quality
control, figures and report included, three times over, for a worker keeps memory for its next scan: on a lattice of
1 mm and of 0.7 mm, affine and with SyN, each in a fresh process. It prints a table and writes it to
``benchmarks/memory.md``; it ends with status 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import IngestConfig, read_config
from brainstage.pipeline.engine import MEMORY_VARIABLES, limit_threads
from brainstage.pipeline.records import Completed
from brainstage.pipeline.volume import Grid

BOUNDS_GB: Final = {1.0: 2.5, 0.7: 5.0, 0.45: 6.0}
"""Voxel size in mm to what a worker may take."""
FIELDS_MM: Final = {1.0: (176.0, 256.0, 256.0), 0.7: (180.0, 240.0, 240.0), 0.45: (180.0, 240.0, 240.0)}
"""Usual fields of view: 176 x 256 x 256, 257 x 343 x 343 and 400 x 533 x 533 voxels."""
REGISTRATIONS: Final = ("affine", "syn")
REPEATS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one worker took."""

    spacing_mm: float
    shape: tuple[int, ...]
    registration: str
    peak_gb: float
    seconds: float


def measured(scan: Path, spacing_mm: float, registration: str, threads: int) -> Peak:
    """Run one scan in a fresh process and return its peak."""
    with tempfile.TemporaryDirectory(prefix="brainstage-memory-") as folder:
        shape = _write_dataset(Path(folder) / "bids", scan, spacing_mm)
        answer = subprocess.run(
            [sys.executable, __file__, "--worker", folder, registration, str(threads)],
            stdout=subprocess.PIPE,
            env=os.environ | MEMORY_VARIABLES,
            check=True,
        )
    result = json.loads(answer.stdout.splitlines()[-1])
    return Peak(spacing_mm=spacing_mm, shape=shape, registration=registration, **result)


def work(folder: Path, registration: str, threads: int) -> dict[str, float]:
    """Do what a worker does with the one scan of a dataset, repeatedly; return its peak and a scan's seconds."""
    limit_threads(threads, asked_for=True)
    from brainstage.workflows.participant import ScanTask, process_scan
    from brainstage.workflows.run_context import RunContext

    (scan,) = read_dataset(folder / "bids").scans
    config = read_config(None, {"registration": {"method": registration}})
    started = time.perf_counter()
    for number in range(REPEATS):
        context = RunContext(out_dir=folder / f"out{number}", config=config)
        outcome = process_scan(ScanTask(scan=scan, context=context))
        if not isinstance(outcome, Completed):
            raise SystemExit(f"the scan failed in {outcome.stage}: {outcome.message}")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"peak_gb": peak_gb, "seconds": (time.perf_counter() - started) / REPEATS}


def table_of(peaks: list[Peak], threads: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Memory of a worker",
        "",
        (
            f"Largest resident set of a worker that brings one whole head from its file to its report {REPEATS} times, "
            f"{threads} thread(s). Made by `benchmarks/memory.py`."
        ),
        "",
        "| voxels, mm | lattice | registration | peak, GB | bound, GB | seconds a scan, libraries loaded among them |",
        "|---" * 6 + "|",
    ]
    for peak in peaks:
        cells = [f"{peak.spacing_mm:g}", " x ".join(map(str, peak.shape)), peak.registration]
        cells += [f"{peak.peak_gb:.2f}", f"{BOUNDS_GB[peak.spacing_mm]:g}", f"{peak.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run the benchmark."""
    if sys.argv[1:2] == ["--worker"]:
        folder, registration, threads = sys.argv[2:]
        print(json.dumps(work(Path(folder), registration, int(threads))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    limit_threads(options.threads, asked_for=True)
    peaks = []
    for registration in REGISTRATIONS:
        for spacing_mm in BOUNDS_GB:
            peaks.append(measured(options.scan, spacing_mm, registration, options.threads))
            print(asdict(peaks[-1]), flush=True)
    table = table_of(peaks, options.threads)
    print(table)
    (Path(__file__).parent / "memory.md").write_text(table, encoding="utf-8")
    return int(any(peak.peak_gb > BOUNDS_GB[peak.spacing_mm] for peak in peaks))


def _write_dataset(root: Path, scan: Path, spacing_mm: float) -> tuple[int, int, int]:
    """Write a dataset of that one head on another lattice, int16 as scanners do; return the lattice's shape."""
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.resampling import resampled

    head = ingest(scan, IngestConfig()).head
    i, j, k = (round(extent / spacing_mm) for extent in FIELDS_MM[spacing_mm])
    middle_mm = (head.voxel_to_ras @ np.append((np.array(head.shape) - 1) / 2.0, 1.0))[:3]
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = middle_mm - spacing_mm * (np.array([i, j, k]) - 1) / 2.0
    values = resampled(head, Grid(shape=(i, j, k), voxel_to_ras=matrix)).data
    noise = np.random.default_rng(0).normal(0.0, 0.005 * float(values.max()), values.shape)
    anatomy = root / "sub-01" / "anat"
    anatomy.mkdir(parents=True)
    image = nib.Nifti1Image(np.abs(values + noise).astype(np.int16), matrix)
    image.set_qform(matrix, code=1)
    nib.save(image, anatomy / "sub-01_T1w.nii.gz")
    description = {"Name": "one head", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    return i, j, k


if __name__ == "__main__":
    raise SystemExit(main())
