"""What the readers make of altered input: a clean refusal or a right result, in bounded memory and time.

Run it::

    .venv/bin/python benchmarks/fuzz.py [--files 20000] [--inputs 20000] [--workers 2] [--seed 0]
    .venv/bin/python benchmarks/fuzz.py --replay "manifests 17" [--seed 0]

Header fields and single bytes of small heads are set to extremes and to noise, gzip streams are cut, altered, joined
and nested, plain files are cut and padded; a volume that comes out is held against what nibabel makes of the same
bytes. Tables, JSON, configurations, model directories and names are those of ``benchmarks/altered_inputs.py``. Every
input is read in a process that may take 2 GB, and is stopped after a while. What is found is printed with the words to
replay it. It writes its table to ``benchmarks/fuzz.md``.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import altered_inputs
import nibabel as nib
import numpy as np
from altered_inputs import Kind, Wrong

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import BrainstageError, ImageError
from brainstage.preprocessing.ingest import ingest

FOLDER = Path(__file__).parent
MEMORY_BYTES = 2 * 1024**3
SLOW_S = 5.0
HUNG_S = 120.0  # by the clock on the wall, for whoever shares the machine
SHARE = 500
HEADER = nib.Nifti1Header.template_dtype.fields
EXTREMES = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, 1e-6, 1e6, 1e30, 3e38, np.nan, np.inf, -np.inf)
COUNTS = (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 128, 256, 512, 1024, 1025, 2048, 32767)


class Hung(BaseException):
    """An input took too long; no ``except Exception`` on the way takes it for its own."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of one input.

    Attributes
    ----------
    kind : str
    number : int
        Kind, number and seed make the input again.
    result : str
        One of :data:`RESULTS`.
    seconds : float
        Of the processor.
    detail : str
    """

    kind: str
    number: int
    result: str
    seconds: float = 0.0
    detail: str = ""


def plain_head(rng: random.Random) -> bytes:
    """Return a small sound file, of a type and an orientation drawn at random."""
    matrix = np.diag([6.0, 6.0, 6.0, 1.0])
    matrix[:3, :3] = matrix[:3, rng.sample(range(3), 3)] * [rng.choice((-1, 1)) for _ in range(3)]
    matrix[:3, 3] = [rng.uniform(-90, 90) for _ in range(3)]
    kind = rng.choice((np.uint8, np.int16, np.uint16, np.float32, np.float64))
    data = np.random.default_rng(rng.randrange(2**32)).integers(0, 250, (16, 17, 18)).astype(kind)
    image = nib.Nifti1Image(data, matrix)
    image.set_sform(matrix, rng.choice((1, 2)))
    image.set_qform(matrix, rng.choice((0, 1)))
    return bytes(image.to_bytes())


def altered_header(whole: bytes, rng: random.Random) -> bytes:
    """Overwrite up to four fields."""
    out = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        dtype, offset = HEADER[rng.choice(list(HEADER))][:2]
        element = dtype.base
        place = offset + element.itemsize * rng.randrange(max(1, dtype.itemsize // element.itemsize))
        if element.kind == "f" and rng.random() < 0.6:
            value = np.array(rng.choice(EXTREMES), element).tobytes()
        elif element.kind in "iu" and rng.random() < 0.6:
            value = np.array(rng.choice(COUNTS)).astype(element).tobytes()
        else:
            value = rng.randbytes(element.itemsize)
        out[place : place + element.itemsize] = value
    return bytes(out)


def stray_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Overwrite bytes anywhere in the first kilobyte."""
    out = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(min(1024, len(out)))] = rng.randrange(256)
    return bytes(out)


def cut(whole: bytes, rng: random.Random) -> bytes:
    """Cut a file short, or lengthen it."""
    if rng.random() < 0.7:
        return whole[: rng.randrange(len(whole))]
    return whole + rng.randbytes(rng.choice((1, 100, 2_000_000)))


def damaged_stream(whole: bytes, rng: random.Random) -> bytes:
    """Alter a gzip stream."""
    packed = bytearray(gzip.compress(whole, rng.choice((1, 6, 9)), mtime=0))
    choice = rng.randrange(6)
    if choice == 0:
        return bytes(packed[: rng.randrange(len(packed))])
    if choice == 1:
        for _ in range(rng.randint(1, 4)):
            packed[rng.randrange(len(packed))] = rng.randrange(256)
        return bytes(packed)
    if choice == 2:  # several members, the second altered
        half = len(whole) // 2
        second = bytearray(gzip.compress(whole[half:], mtime=0))
        second[rng.randrange(len(second))] ^= 1 << rng.randrange(8)
        return gzip.compress(whole[:half], mtime=0) + bytes(second)
    if choice == 3:
        return gzip.compress(bytes(packed), mtime=0)
    if choice == 4:
        return bytes(packed) + rng.randbytes(rng.randint(1, 50))
    return gzip.compress(whole + bytes(rng.choice((1000, 3_000_000))), mtime=0)


FILES: Final[Mapping[str, Callable[[bytes, random.Random], bytes]]] = {
    "header fields": altered_header,
    "header fields, packed": lambda whole, rng: gzip.compress(altered_header(whole, rng), 1, mtime=0),
    "stray bytes": stray_bytes,
    "cut or lengthened": cut,
    "gzip streams": damaged_stream,
}
PERMISSIVE = IngestConfig(
    on_conflict="sform", missing_orientation="assume", field_of_view_bounds_mm=(1.0, 1000.0)
)


def read_heads(alter: Callable[[bytes, random.Random], bytes], rng: random.Random, folder: Path) -> None:
    """Read an altered file by a strict and by a permissive policy; raise where both refuse it."""
    path = folder / rng.choice(("x.nii", "x.nii.gz"))
    path.write_bytes(alter(plain_head(rng), rng))
    refusals = []
    for config in (IngestConfig(), PERMISSIVE):
        try:
            head = ingest(path, config)
        except ImageError as error:
            refusals.append(error)
            continue
        wrong = difference(path, head)
        if wrong:
            raise Wrong(wrong)
    if len(refusals) == 2:
        raise refusals[1]


def difference(path: Path, ingested: object) -> str:
    """Hold a volume against nibabel's reading of the same bytes; empty when they agree or cannot be compared."""
    head, findings = ingested.head, ingested.findings  # type: ignore[attr-defined]
    if not np.isfinite(head.data).all():
        return "not finite"
    # Other values on purpose; and where no place of the voxels is given, nibabel reads the header as voxels.
    if {"sheared", "intensity_rescaled", "voxel_offset_missing"} & set(findings.warning_codes):
        return ""
    whole = path.read_bytes()
    # nibabel believes the name; our reader the content.
    place = path.with_name("y.nii")
    place.write_bytes(gzip.decompress(whole) if whole[:2] == b"\x1f\x8b" else whole)
    try:
        image = nib.load(place)
        values = np.asarray(image.dataobj, dtype=np.float32)
        matrix = {"sform": image.get_sform, "qform": image.get_qform}.get(
            findings.affine_source, lambda: None
        )()
    except Exception:  # noqa: BLE001 - nibabel gives up on fields that do not matter to the voxels
        return ""
    values = np.where(np.isfinite(values), values, 0).reshape(findings.shape)
    if "intensity_shifted" in findings.warning_codes:  # on purpose, by one number for all of the head
        values = values + (head.data.max() - values.max())
    if not np.array_equal(np.sort(values.ravel()), np.sort(head.data.ravel())):
        return "other values than nibabel reads"
    if matrix is None or int(image.header["xyzt_units"]) & 7 not in (0, 2):  # unknown, or millimetres
        return ""
    if corners(values, matrix) != corners(head.data, head.voxel_to_ras):
        return "a voxel lies elsewhere than nibabel puts it"
    return ""


def corners(data: np.ndarray, voxel_to_ras: np.ndarray) -> set[tuple[float, ...]]:
    """Return place in tenths of a millimetre and value of the eight corners."""
    found = set()
    for index in np.ndindex(2, 2, 2):
        voxel = [(n - 1) * end for n, end in zip(data.shape, index, strict=True)]
        place = voxel_to_ras @ [*voxel, 1]
        found.add((*np.round(place[:3], 1) + 0.0, float(data[tuple(voxel)])))
    return found


KINDS: Final[Mapping[str, Kind]] = {
    **{name: partial(read_heads, alter) for name, alter in FILES.items()},
    **altered_inputs.KINDS,
}
RESULTS: Final = (
    *("accepted", "refused", "refused without a reason", "CRASHED", "WRONG", "2 GB EXCEEDED", "HUNG", "DIED"),
    "TOO SLOW",
)


def judged(kind: str, number: int, seed: int) -> Found:
    """Make an input and read it; say what became of it."""
    rng = random.Random(f"{seed} {kind} {number}")  # noqa: S311 - no secret
    result, detail = "accepted", ""
    signal.signal(signal.SIGALRM, _hung)
    with tempfile.TemporaryDirectory(prefix="brainstage-fuzz-", ignore_cleanup_errors=True) as folder:
        started = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, HUNG_S)
        try:
            KINDS[kind](rng, Path(folder))
        except BrainstageError as error:
            result = "refused" if len(error.message) >= 15 else "refused without a reason"
            detail = error.message[:300]
        except Wrong as error:
            result, detail = "WRONG", str(error)
        except Hung:
            result, detail = "HUNG", _innermost()
        except MemoryError:
            result, detail = "2 GB EXCEEDED", _innermost()
        except Exception as error:  # noqa: BLE001 - what is looked for
            result, detail = "CRASHED", f"{type(error).__name__}: {str(error)[:300]} {_innermost()}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        seconds = time.process_time() - started
    if seconds > SLOW_S and result in ("accepted", "refused"):
        result = "TOO SLOW"
    return Found(kind=kind, number=number, result=result, seconds=seconds, detail=detail)


def _hung(*_: object) -> None:
    raise Hung


def _innermost() -> str:
    """Return the last lines of the program on the way to the error that is being handled."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "brainstage" in frame.filename or "benchmarks" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[:-4:-1])


def worker(kind: str, numbers: Sequence[int], seed: int, report: Path) -> None:
    """Judge a share of the inputs in a process that may take 2 GB more than it has when it begins.

    The number of each input is written before it is tried, so that it is known which of them took the process along.
    """
    limit = MEMORY_BYTES + address_space()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    with report.open("a", encoding="utf-8", buffering=1) as stream:
        for number in numbers:
            stream.write(f"{number}\n")
            # Of a library that never lets the interpreter run again, no signal handler makes an end.
            faulthandler.dump_traceback_later(2 * HUNG_S, exit=True)
            found = judged(kind, number, seed)
            faulthandler.cancel_dump_traceback_later()
            stream.write(json.dumps(asdict(found)) + "\n")


def address_space() -> int:
    """Return what this process has mapped already, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def share(kind: str, numbers: range, seed: int, folder: Path) -> list[Found]:
    """Judge some inputs in a process of their own, and in another one after each that it does not survive."""
    report = folder / f"report {kind} {numbers.start}"
    found: list[Found] = []
    while len(found) < len(numbers):
        report.unlink(missing_ok=True)
        left = numbers[len(found) :]
        process = multiprocessing.get_context("spawn").Process(target=worker, args=(kind, left, seed, report))
        process.start()
        process.join()
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        found += [Found(**json.loads(line)) for line in lines if line.startswith("{")]
        if process.exitcode:
            if not lines:
                raise RuntimeError(f"a process that reads {kind} does not even begin")
            found.append(
                Found(kind=kind, number=int(lines[-1]), result="DIED", detail=f"exit {process.exitcode}")
            )
    return found


def all_found(counts: Mapping[str, int], seed: int, workers: int) -> list[Found]:
    """Judge so many inputs of each kind."""
    with (
        tempfile.TemporaryDirectory(prefix="brainstage-fuzz-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(workers) as pool,
    ):
        tempfile.tempdir = os.environ["TMPDIR"] = folder  # all that the processes leave lies there, too
        altered_inputs.finished(), altered_inputs.trained()
        shares = [
            pool.submit(share, kind, range(start, min(start + SHARE, count)), seed, Path(folder))
            for kind, count in counts.items()
            for start in range(0, count, SHARE)
        ]
        return [one for some in shares for one in some.result()]


def counts_of(files: int, inputs: int) -> dict[str, int]:
    """Return how many inputs of each kind make so many files and other inputs.

    >>> list(counts_of(7, 0).values())[:5]
    [2, 2, 1, 1, 1]
    """
    counts = {}
    for total, kinds in ((files, list(FILES)), (inputs, list(altered_inputs.KINDS))):
        counts |= {kind: len(range(place, total, len(kinds))) for place, kind in enumerate(kinds)}
    return counts


def table_of(found: Sequence[Found], seed: int) -> str:
    """Return the counts as Markdown."""
    results = [name for name in RESULTS if name in RESULTS[:3] or any(one.result == name for one in found)]
    clean = not any(one.result not in RESULTS[:2] for one in found)
    limits = f"at most 2 GB a process, at most {HUNG_S:.0f} s an input"
    verdict = (
        "No traceback, no wrong result, nothing lost in silence, no death, no hang, none above 2 GB or slower than "
        f"{SLOW_S:.0f} s."
    )
    lines = [
        "# Altered input",
        "",
        f"Made by `benchmarks/fuzz.py`: {len(found)} inputs, seed {seed}, {limits}.",
        verdict if clean else "What is written in capitals is a defect.",
        "",
        "| what was altered | inputs | " + " | ".join(results) + " | longest, s |",
        "|---|---|" + "---|" * (len(results) + 1),
    ]
    for kind in (*KINDS, "**all**"):
        some = [one for one in found if kind in (one.kind, "**all**")]
        if some:
            counts = Counter(one.result for one in some)
            cells = " | ".join(str(counts[result]) for result in results)
            lines.append(f"| {kind} | {len(some)} | {cells} | {max(one.seconds for one in some):.2f} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20000, help="altered NIfTI files")
    parser.add_argument("--inputs", type=int, default=20000, help="altered tables, JSON, models and names")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--replay", metavar="'KIND NUMBER'", help="make one input again, and let its error through"
    )
    options = parser.parse_args(arguments)
    if options.replay:
        kind, _, number = options.replay.rpartition(" ")
        with tempfile.TemporaryDirectory(prefix="brainstage-fuzz-") as folder:
            KINDS[kind](random.Random(f"{options.seed} {kind} {number}"), Path(folder))  # noqa: S311 - no secret
        return
    found = all_found(counts_of(options.files, options.inputs), options.seed, options.workers)
    table = table_of(found, options.seed)
    print(table)
    for one in found:
        if one.result not in RESULTS[:2]:
            print(f'--seed {options.seed} --replay "{one.kind} {one.number}": {one.result}: {one.detail}')
    (FOLDER / "fuzz.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
