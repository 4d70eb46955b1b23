"""What random SIGKILLs of workers and driver leave behind: nothing lost, nothing missing, nothing half-written.

Run it::

    .venv/bin/python benchmarks/kills.py [--runs 20] [--scans 12]

Every run goes through the whole of ``brainstage run`` with stand-in stages, in processes of its own; at random moments
a worker or the driver is killed, and a killed driver is started again. It prints a table and writes it to
``benchmarks/kills.md``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).resolve().parent
STAGES = ("ingest", "brain_extraction", "bias_field", "intensity", "registration", "quality", "figures")
DRIVER = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
sys.path.insert(0, {benchmarks!r})
from stand_in import stand_in_stages
from brainstage.pipeline.errors import BrainstageError
from brainstage.workflows.cli import terminate
from brainstage.workflows.progress import Progress
from brainstage.workflows.run import RunOptions, run
signal.signal(signal.SIGTERM, terminate)
options = json.loads(sys.argv[1])
paths = {{name: Path(options.pop(name)) for name in ("bids_dir", "out_dir")}}
try:
    code = run(RunOptions(overrides={{}}, **paths, **options), Progress(sys.stderr), stand_in_stages)
except BrainstageError as error:
    print(error.message, file=sys.stderr)
    code = error.exit_code
except KeyboardInterrupt as stop:
    code = {{"Terminated": 143}}.get(type(stop).__name__, 130)
sys.exit(int(code))
"""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A BIDS directory of tiny files, an output directory, and how a run over them is started."""

    bids: Path
    out: Path

    def start(
        self, *, orders: dict[str, Any] | None = None, out: Path | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """Start a run; orders as in ``benchmarks/stand_in.py``."""
        asked = {"bids_dir": str(self.bids), "out_dir": str(out or self.out), "processes": 2} | options
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(benchmarks=str(FOLDER)), json.dumps(asked)],
            env=os.environ
            | {
                "BRAINSTAGE_STAND_IN": json.dumps(orders or {}),
                "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **options: Any) -> tuple[int, str]:  # noqa: ANN401 - as for `start`
        """Run to the end; return exit code and what was said."""
        process = self.start(**options)
        try:
            said, _ = process.communicate(timeout=180)
        finally:
            process.kill()
        return process.returncode, said

    @property
    def keys(self) -> list[str]:
        """Names of the scans."""
        return sorted(folder.name for folder in self.bids.glob("sub-*"))

    def rows(self, out: Path | None = None) -> dict[str, dict[str, str]]:
        """Return predictions.csv by participant."""
        with ((out or self.out) / "predictions.csv").open(encoding="utf-8", newline="") as stream:
            return {row["participant_id"]: row for row in csv.DictReader(stream)}

    def computed(self) -> list[tuple[str, str]]:
        """Return (scan, stage) of everything that the logs of all runs say was computed."""
        lines = [
            json.loads(line)
            for log in sorted((self.out / "logs").glob("run-*.jsonl"))
            for line in log.read_text().splitlines()
        ]
        return [(x["scan"], x["stage"]) for x in lines if x["event"] == "stage" and not x["reused"]]

    def markers(self) -> int:
        """Return how many stages are marked as done."""
        return sum(
            (self.out / ".brainstage" / key / f"{name}.json").exists() for key in self.keys for name in STAGES
        )


def digests(out: Path) -> dict[str, str]:
    """Return the hash of every result: what does not say when or how long."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and (
            path.suffix in {".gz", ".csv", ".png"}
            or path.name.endswith(("_T1w.json", "_mask.json", "_desc-qc.json"))
        )
    }


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> object:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def make_cohort(folder: Path, scans: int) -> Cohort:
    """Write the BIDS directory of a cohort."""
    bids = folder / "bids"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "faults", "BIDSVersion": "1.10.0"}))
    for number in range(1, scans + 1):
        anat = bids / f"sub-{number:02d}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{number:02d}_T1w.nii").write_text(f"scan {number}")
    return Cohort(bids=bids, out=folder / "out")


def kill(process: psutil.Process) -> None:
    """Send SIGKILL; that it may be gone already is no fault."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """What became of one disturbed run."""

    workers_killed: int
    drivers_killed: int
    rows_missing: int
    not_done: int
    files_that_differ: int
    stages_computed: int
    stages_needed: int


def goes_on(process: subprocess.Popen[str], seconds: float) -> bool:
    """Let a run go on for so long; return whether it still does."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def disturbed(cohort: Cohort, reference: dict[str, str], rng: random.Random) -> Disturbed:
    """Run a cohort to its end through random kills.

    A kill strikes a random moment after a random number of stages are done: a fast machine is hit like a slow one. The
    first comes before half of them are, and with the pace of the stages half takes longer than the moment.
    """
    stages = len(cohort.keys) * len(STAGES)
    strikes = sorted([rng.randrange(stages // 2), *(rng.randrange(stages) for _ in range(rng.randint(1, 4)))])
    killed = {"worker": 0, "driver": 0}
    pace = {"pace": 0.1}
    process = cohort.start(orders=pace)
    for strike in strikes:
        workers: list[psutil.Process] = []
        while goes_on(process, 0.02) and not workers:
            workers = workers_of(process) if cohort.markers() >= strike else []
        if not goes_on(process, rng.uniform(0.0, 0.5)):
            break
        if rng.random() < 0.4:
            killed["driver"] += 1
            kill(psutil.Process(process.pid))
            process.communicate()
            process = cohort.start(orders=pace)
        else:
            killed["worker"] += 1
            kill(rng.choice(workers))
    while process.communicate() and process.returncode != 0:
        # A scan that two random kills hit in the same stage is set aside, as promised; asked again, it goes on.
        process = cohort.start(orders=pace, retry_failed=True)
    rows = cohort.rows()
    found = digests(cohort.out)
    return Disturbed(
        workers_killed=killed["worker"],
        drivers_killed=killed["driver"],
        rows_missing=len(set(cohort.keys) - set(rows)),
        not_done=sum(row["prediction_status"] == "failed" for row in rows.values()),
        files_that_differ=sum(
            reference.get(name) != found.get(name) for name in reference.keys() | found.keys()
        ),
        stages_computed=len(cohort.computed()),
        stages_needed=len(cohort.keys) * len(STAGES),
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    found = []
    with tempfile.TemporaryDirectory(prefix="brainstage-kills-") as folder:
        cohort = make_cohort(Path(folder), options.scans)
        code, said = cohort.run()
        if code:
            sys.exit(said)
        reference = digests(cohort.out)
        for number in range(options.runs):
            place = Cohort(bids=cohort.bids, out=Path(folder) / f"out-{number}")
            started = time.perf_counter()
            found.append(disturbed(place, reference, rng))
            print(
                f"{number + 1} of {options.runs}: {found[-1]}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    sums = {name: sum(getattr(one, name) for one in found) for name in vars(found[0])}
    lines = [
        "# Random kills",
        "",
        f"Made by `benchmarks/kills.py`: {options.runs} runs of {options.scans} scans, stand-in stages, 2 workers.",
        "",
        "| what | in all runs |",
        "|---|---|",
        f"| workers killed | {sums['workers_killed']} |",
        f"| drivers killed, and started again | {sums['drivers_killed']} |",
        f"| **rows missing** | {sums['rows_missing']} |",
        f"| **scans lost** | {sums['not_done']} |",
        f"| **results that differ from those of an undisturbed run** | {sums['files_that_differ']} |",
        f"| stages that finished runs computed, of {sums['stages_needed']} needed | {sums['stages_computed']} |",
        "",
    ]
    print("\n".join(lines))
    (FOLDER / "kills.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
