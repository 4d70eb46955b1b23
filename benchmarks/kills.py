"""What random signals to workers and drivers of two machines leave behind: nothing lost, nothing foreign touched.

Run it::

    .venv/bin/python benchmarks/kills.py [--runs 20] [--scans 12]

In every run two machines, which are simulated by ``benchmarks/stand_in.py``, share one output directory. Each goes
through the whole of ``brainstage run`` with stand-in stages, in processes of its own. Their clocks are 25 hours apart,
and on one of them a fifth of all reads of leases fails. At random moments SIGTERM or SIGKILL strikes a worker or the
driver of either; a driver that ended is started again. It prints a table and writes it to ``benchmarks/kills.md``.
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
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import psutil

from brainstage.workflows.progress import STAGE_ORDER

FOLDER = Path(__file__).resolve().parent
PATHS = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
STAGES: Final = STAGE_ORDER[:-1]
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
            env=os.environ | {"BRAINSTAGE_STAND_IN": json.dumps(orders or {}), "PYTHONPATH": PATHS},
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


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal; that the process may be gone already is no fault."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


HOSTS: Final = ({"host": "one"}, {"host": "another", "ahead_s": 25 * 3600.0, "unreadable": 0.2})
"""Orders for the stand-in stages."""
FOREIGN: Final = (
    ".tmp-my-thesis/chapter.txt",
    ".tmp-notes",
    ".tmp-0123abcd-notes.txt",  # named like our own unfinished files, and young
    ".brainstage/.tmp-notes/a.txt",
    ".brainstage/mine.txt",
    ".brainstage/sub-01/mine.txt",
    ".brainstage/sub-02/.tmp-mine",
    "sub-01/anat/notes.txt",
    "sub-03/mine.nii",
    "logs/mine.txt",
)
"""Files of the user in the output directory."""
DAY_S: Final = 25 * 3600.0
TERMINATED: Final = 143
FORESEEN: Final = (0, 1, 75)
"""Exit codes: all is done, scans failed, and workers were lost."""


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """What became of one disturbed run; everything but the first six and the last two should be 0.

    Attributes
    ----------
    workers_terminated, workers_killed, drivers_terminated, drivers_killed : int
    reads_failed : int
        Of leases.
    unfinished_swept : int
        Leases and unfinished files that the kills had left, a day later.
    rows_missing, not_done, files_that_differ : int
        Scans without a row, scans that failed, results that are not those of an undisturbed run.
    foreign_touched : int
        Files of the user that are gone or altered.
    not_terminated : int
        Drivers that did not answer SIGTERM with 143, their tables written and their leases given back.
    unforeseen : int
        Runs that ended with another exit code than 0, 1 for failed scans, and 75 for workers that were lost.
    done_by_two : int
        Times that two processes were at one scan.
    left_over : int
        Leases, notes and unfinished files of ours after the last run.
    stages_computed, stages_needed : int
    """

    workers_terminated: int
    workers_killed: int
    drivers_terminated: int
    drivers_killed: int
    reads_failed: int
    unfinished_swept: int
    rows_missing: int
    not_done: int
    files_that_differ: int
    foreign_touched: int
    not_terminated: int
    unforeseen: int
    done_by_two: int
    left_over: int
    stages_computed: int
    stages_needed: int

    @property
    def faults(self) -> dict[str, int]:
        """What should be 0, by name."""
        names = [field.name for field in fields(self)]
        first, last = names.index("rows_missing"), names.index("left_over")
        return {name: getattr(self, name) for name in names[first : last + 1]}


def goes_on(process: subprocess.Popen[str], seconds: float) -> bool:
    """Let a run go on for so long; return whether it still does."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def disturbed(cohort: Cohort, reference: dict[str, str], rng: random.Random) -> Disturbed:
    """Let two machines run a cohort to its end through random signals, and look at what they leave.

    A signal strikes a random moment after a random number of stages are done: a fast machine is hit like a slow one.
    The first comes before half of them are, and with the pace of the stages half takes longer than the moment.
    """
    foreign = _with_foreign_files(cohort.out)
    trace = cohort.out.with_suffix(".trace")
    trace.touch()
    orders = [{**host, "pace": 0.1, "trace": str(trace)} for host in HOSTS]
    runs = [cohort.start(orders=one, processes=1) for one in orders]
    sent: Counter[tuple[str, int]] = Counter()
    not_terminated = unforeseen = 0
    stages = len(cohort.keys) * len(STAGES)
    strikes = [rng.randrange(stages // 2), *(rng.randrange(stages) for _ in range(rng.randint(2, 5)))]
    for strike in sorted(strikes):
        while cohort.markers() < strike and sum(goes_on(run, 0.02) for run in runs):
            pass
        time.sleep(rng.uniform(0.0, 0.5))
        alive = [place for place, run in enumerate(runs) if run.poll() is None]
        if not alive:
            break
        place, number = rng.choice(alive), rng.choice((signal.SIGTERM, signal.SIGKILL))
        workers = workers_of(runs[place])
        if workers and rng.random() < 0.5:
            sent["worker", number] += 1
            kill(rng.choice(workers), number)
        else:
            if number == signal.SIGTERM:  # before it has begun, it ends like any other program
                wait_until(lambda run=runs[place]: _log_of(run) or not goes_on(run, 0.02))
            sent["driver", number] += 1
            not_terminated += not _ended(cohort, runs[place], orders[place]["host"], number)
            runs[place] = cohort.start(orders=orders[place], processes=1)
    for place, run in enumerate(runs):
        said, _ = run.communicate()
        while run.returncode != 0:
            # A scan that two kills hit in the same stage is set aside, as promised; asked again, it goes on.
            unforeseen += run.returncode not in FORESEEN
            print(said if run.returncode not in FORESEEN else "", end="", flush=True)
            run = cohort.start(orders=orders[place], processes=1, retry_failed=True)
            said, _ = run.communicate()
    unfinished = _age_what_is_left(cohort.out)
    code, said = cohort.run(orders=orders[0])
    if code:
        raise AssertionError(said)
    rows, found = cohort.rows(), digests(cohort.out)
    events = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    return Disturbed(
        workers_terminated=sent["worker", signal.SIGTERM],
        workers_killed=sent["worker", signal.SIGKILL],
        drivers_terminated=sent["driver", signal.SIGTERM],
        drivers_killed=sent["driver", signal.SIGKILL],
        reads_failed=sum("unreadable" in event for event in events),
        unfinished_swept=unfinished,
        rows_missing=len(set(cohort.keys) - set(rows)),
        not_done=sum(row["prediction_status"] == "failed" for row in rows.values()),
        files_that_differ=sum(
            reference.get(name) != found.get(name) for name in reference.keys() | found.keys()
        ),
        foreign_touched=sum(
            not path.is_file() or path.read_bytes() != content for path, content in foreign.items()
        ),
        not_terminated=not_terminated,
        unforeseen=unforeseen,
        done_by_two=done_by_two(events),
        left_over=_told("left over", _left_over(cohort.out) - foreign.keys()),
        stages_computed=sum("begun" in event for event in events),
        stages_needed=stages,
    )


def done_by_two(events: Sequence[Mapping[str, Any]]) -> int:
    """Count how often a process was at a scan between two moments at which another one was.

    >>> event = lambda pid, at: {"scan": "sub-01", "host": "one", "pid": pid, "at": at}
    >>> done_by_two([event(1, 0.0), event(1, 1.0), event(2, 2.0)])
    0
    >>> done_by_two([event(1, 0.0), event(2, 1.0), event(1, 2.0)])
    1
    """
    seen: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if "scan" in event:
            seen[event["scan"]][event["host"], event["pid"]].append(event["at"])
    return sum(
        min(times) < max(others) and min(others) < max(times)
        for at_scan in seen.values()
        for times, others in combinations(at_scan.values(), 2)
    )


def _with_foreign_files(out: Path) -> dict[Path, bytes]:
    found = {out / name: f"{name} is mine\n".encode() for name in FOREIGN}
    for path, content in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return found


def _ended(cohort: Cohort, process: subprocess.Popen[str], host: str, number: int) -> bool:
    """End a driver by a signal; tell whether it did what it should before."""
    finished = _finished_by(process)
    kill(psutil.Process(process.pid), number)
    process.communicate()
    if number == signal.SIGKILL:
        return True
    told = {key.partition("_")[0] for key in finished}
    unsaid = told - set(cohort.rows() if finished else ())
    held = _held_by(cohort.out, host)
    # It may have come to its end, and done all the same, before the signal came.
    if process.returncode in (0, TERMINATED) and not unsaid and not held:
        return True
    print(f"SIGTERM: exit code {process.returncode}, without row {unsaid}, not given back {held}", flush=True)
    return False


def _finished_by(process: subprocess.Popen[str]) -> set[str]:
    """Return the scans that a driver has finished, by the log that it is writing."""
    log = _log_of(process)
    lines = log.read_text("utf-8").splitlines() if log else []
    return {event["scan"] for event in map(json.loads, lines) if event["event"] == "scan"}


def _log_of(process: subprocess.Popen[str]) -> Path | None:
    """Return the log that a driver is writing; None before it has begun, and when it is gone."""
    try:
        opened = [Path(file.path) for file in psutil.Process(process.pid).open_files()]
    except psutil.Error:
        return None
    return next((path for path in opened if path.suffix == ".jsonl"), None)


def _held_by(out: Path, host: str) -> list[Path]:
    leases = {path: path.read_text(encoding="utf-8") for path in out.rglob("*lease.json")}
    return [path for path, text in leases.items() if f'"machine": "{host}"' in text]


def _age_what_is_left(out: Path) -> int:
    """Make leases and unfinished files that kills have left as old as they are after a day; return how many."""
    found = [
        path
        for folder in (out, out / ".brainstage")
        for path in folder.glob(".tmp-*")
        if not any(path.relative_to(out).as_posix() in name for name in FOREIGN)
    ]
    found += out.rglob("*lease.json")
    for path in found:
        moment = path.stat().st_mtime - DAY_S
        os.utime(path, (moment, moment))
    return len(found)


def _left_over(out: Path) -> set[Path]:
    return {
        path
        for path in out.rglob("*")
        if path.is_file()
        and (
            any(part.startswith(".tmp-") for part in path.relative_to(out).parts)
            or path.name.endswith("lease.json")
            or path.name in ("running.json", "deaths.json", "last_words.txt")
        )
    }


def _told(what: str, paths: Collection[Path]) -> int:
    for path in sorted(paths):
        print(f"{what}: {path.name} of {path.parent.name}", flush=True)
    return len(paths)


def table_of(found: Sequence[Disturbed], scans: int, seed: int) -> str:
    """Return the sums over all runs as Markdown."""
    sums = {field.name: sum(getattr(one, field.name) for one in found) for field in fields(Disturbed)}
    said = (
        ("workers that got SIGTERM", "workers_terminated"),
        ("workers that got SIGKILL", "workers_killed"),
        ("drivers that got SIGTERM, and were started again", "drivers_terminated"),
        ("drivers that got SIGKILL, and were started again", "drivers_killed"),
        ("reads of leases that failed with EIO or ESTALE", "reads_failed"),
        (
            "leases and unfinished files that kills had left, swept by the next run after a day",
            "unfinished_swept",
        ),
        ("**rows missing**", "rows_missing"),
        ("**scans lost**", "not_done"),
        ("**results that differ from those of an undisturbed run**", "files_that_differ"),
        (f"**files of the user touched, of {len(FOREIGN) * len(found)}**", "foreign_touched"),
        ("**SIGTERM without exit code 143, tables written and leases given back**", "not_terminated"),
        ("**runs that ended with an exit code that is not foreseen**", "unforeseen"),
        ("**times that two processes were at one scan**", "done_by_two"),
        ("**leases, notes and unfinished files left over**", "left_over"),
        (f"stages computed, of {sums['stages_needed']} needed", "stages_computed"),
    )
    made = (
        f"Made by `benchmarks/kills.py`: {len(found)} runs of {scans} scans, seed {seed}, stand-in stages. Two "
        "machines, simulated, with clocks 25 hours apart share each output directory; on one of them a fifth of all "
        "reads of leases fails."
    )
    lines = [
        "# Random kills",
        "",
        made,
        "",
        "| what | in all runs |",
        "|---|---|",
        *(f"| {what} | {sums[name]} |" for what, name in said),
    ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
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
            found.append(disturbed(place, reference, random.Random(f"{options.seed} {number}")))  # noqa: S311
            print(
                f"{number + 1} of {options.runs}: {found[-1]}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    table = table_of(found, options.scans, options.seed)
    print(table)
    (FOLDER / "kills.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
