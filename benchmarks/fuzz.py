"""What the sanitiser makes of altered files: a clean refusal or a right volume, in bounded memory and time.

Run it::

    .venv/bin/python benchmarks/fuzz.py [--files 20000] [--workers 2]

Header fields and single bytes of small heads are set to extremes and to noise, gzip streams are cut, altered, joined
and nested, plain files are cut and padded. Every file is read in a process that may take 2 GB. A volume that comes
out is held against what nibabel makes of the same bytes. It prints a table and writes it to ``benchmarks/fuzz.md``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import multiprocessing
import random
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import ImageError
from brainstage.preprocessing.ingest import ingest

FOLDER = Path(__file__).parent
MEMORY_BYTES = 2 * 1024**3
SLOW_S = 5.0
HEADER = nib.Nifti1Header.template_dtype.fields
EXTREMES = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, 1e-6, 1e6, 1e30, 3e38, np.nan, np.inf, -np.inf)
COUNTS = (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 128, 256, 512, 1024, 1025, 2048, 32767)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of one file."""

    kind: str
    result: str
    seconds: float
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


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "header fields": altered_header,
    "header fields, packed": lambda whole, rng: gzip.compress(altered_header(whole, rng), 1, mtime=0),
    "stray bytes": stray_bytes,
    "cut or lengthened": cut,
    "gzip streams": damaged_stream,
}
PERMISSIVE = IngestConfig(
    on_conflict="sform", missing_orientation="assume", field_of_view_bounds_mm=(1.0, 1000.0)
)


def judged(kind: str, whole: bytes, path: Path) -> Found:
    """Read a file by both policies; say what came out."""
    path.write_bytes(whole)
    started = time.perf_counter()
    result, detail = "refused", ""
    for config in (IngestConfig(), PERMISSIVE):
        try:
            head = ingest(path, config)
        except ImageError as error:
            if len(error.message) < 15:
                return Found(kind=kind, result="refused without a reason", seconds=0.0, detail=error.message)
            continue
        except Exception as error:  # noqa: BLE001 - what is looked for
            return Found(kind=kind, result="CRASHED", seconds=0.0, detail=f"{type(error).__name__}: {error}")
        result = "accepted"
        wrong = difference(path, head)
        if wrong:
            result, detail = "WRONG VOLUME", wrong
            break
    seconds = time.perf_counter() - started
    return Found(kind=kind, result="TOO SLOW" if seconds > SLOW_S else result, seconds=seconds, detail=detail)


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


def worker(job: tuple[int, int]) -> list[Found]:
    """Judge a share of the files, in a process that may take 2 GB."""
    seed, count = job
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + address_space(), MEMORY_BYTES + address_space()))
    warnings.simplefilter("ignore")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    rng = random.Random(seed)  # noqa: S311 - no secret
    found = []
    with tempfile.TemporaryDirectory(prefix="brainstage-fuzz-") as folder:
        for number in range(count):
            kind = list(KINDS)[number % len(KINDS)]
            whole = KINDS[kind](plain_head(rng), rng)
            path = Path(folder) / rng.choice(("x.nii", "x.nii.gz"))
            found.append(judged(kind, whole, path))
    return found


def address_space() -> int:
    """Return what this process has mapped already, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    share = 500
    jobs = [
        (options.seed + n, min(share, options.files - n * share)) for n in range(-(-options.files // share))
    ]
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        found = [one for some in pool.imap(worker, jobs) for one in some]
    table = io.StringIO()
    results = ("accepted", "refused", "refused without a reason", "CRASHED", "WRONG VOLUME", "TOO SLOW")
    table.write("# Altered files\n\n")
    table.write(
        f"Made by `benchmarks/fuzz.py`: {len(found)} files, seed {options.seed}, at most 2 GB a process.\n\n"
    )
    table.write("| what was altered | files | " + " | ".join(results) + " | longest, s |\n")
    table.write("|---|---|" + "---|" * (len(results) + 1) + "\n")
    for kind in (*KINDS, "**all**"):
        some = [one for one in found if kind in (one.kind, "**all**")]
        counts = Counter(one.result for one in some)
        longest = max(one.seconds for one in some)
        cells = " | ".join(str(counts[result]) for result in results)
        table.write(f"| {kind} | {len(some)} | {cells} | {longest:.2f} |\n")
    print(table.getvalue())
    for one in found:
        if one.result not in ("accepted", "refused"):
            print(one)
    (FOLDER / "fuzz.md").write_text(table.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
