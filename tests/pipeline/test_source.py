"""The file of a scan is what it was when the dataset was looked through, or it is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline import source
from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import ImageError, InputMissingError, SourceChangedError
from brainstage.pipeline.nifti import read_raw, read_voxel_count
from brainstage.pipeline.records import T1wScan
from brainstage.pipeline.source import (
    HashingStream,
    keep_sha256_of,
    known_sha256,
    opened_source,
    sha256_of_source,
)


@pytest.fixture
def scan(bids_tree: Callable[..., Path]) -> T1wScan:
    return read_dataset(bids_tree("sub-01/anat/sub-01_T1w.nii.gz")).scans[0]


@pytest.fixture
def files(scan: T1wScan, tmp_path: Path) -> ScanFiles:
    return ScanFiles(out_dir=tmp_path / "out", entities=scan.entities)


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded(files: ScanFiles) -> Path:
    return files.state / "source.json"


@given(content=st.binary(max_size=300), sizes=st.lists(st.integers(0, 90), max_size=5))
def test_the_hash_is_of_everything_that_was_read_and_of_the_rest(content: bytes, sizes: list[int]) -> None:
    stream = HashingStream(io.BytesIO(content))
    assert b"".join(stream.read(size) for size in sizes) == content[: sum(sizes)]
    assert stream.sha256_to_the_end() == hashlib.sha256(content).hexdigest()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.nii.gz")
    for read in (sha256_of_source, read_raw, read_voxel_count):
        with pytest.raises(ImageError, match=r"x\.nii\.gz is no regular file"):
            read(tmp_path / "x.nii.gz")


def test_a_file_of_terabytes_of_nothing_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.nii").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ImageError, match="at most 2147483648 are read"):
        sha256_of_source(tmp_path / "x.nii")


def test_a_file_that_becomes_a_link_out_after_the_dataset_was_read_is_not_followed(
    scan: T1wScan, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere.nii.gz"
    scan.path.rename(outside)
    scan.path.symlink_to(outside)
    for read in (sha256_of_source, read_raw, read_voxel_count):
        with pytest.raises(InputMissingError, match="leads out of the dataset"):
            read(scan.path, root=scan.root)


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(
    scan: T1wScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def swapped(path: Path, flags: int, *rest: object) -> int:
        descriptor = real(path, flags, *rest)
        if Path(path) == scan.path:
            content = scan.path.read_bytes()
            scan.path.rename(scan.path.with_suffix(".old"))
            scan.path.write_bytes(content)
        return descriptor

    monkeypatch.setattr(source.os, "open", swapped)
    with (
        pytest.raises(SourceChangedError, match="replaced while it was opened"),
        opened_source(scan.path, scan.root),
    ):
        pass


@pytest.mark.parametrize("compressed", [True, False])
def test_other_bytes_than_were_hashed_are_refused_when_they_are_read(
    tmp_path: Path, save_nifti: Callable[..., Path], compressed: bool
) -> None:
    name = "x.nii.gz" if compressed else "x.nii"
    path = save_nifti(tmp_path / name, np.ones((8, 8, 8), np.float32))
    before = hash_of(path)
    assert read_raw(path, sha256=before).data.shape == (8, 8, 8)
    save_nifti(path, np.full((8, 8, 8), 2, np.float32))
    with pytest.raises(SourceChangedError, match="other bytes than when it was hashed"):
        read_raw(path, sha256=before)


def test_what_stands_behind_the_voxels_is_hashed_too(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    path = save_nifti(tmp_path / "x.nii.gz", np.ones((8, 8, 8), np.float32))
    with path.open("ab") as stream:
        stream.write(gzip.compress(b"more"))
    read_raw(path, sha256=hash_of(path))


def test_a_hash_is_known_until_the_file_is_touched(scan: T1wScan, files: ScanFiles) -> None:
    assert known_sha256(scan, files) is None
    assert keep_sha256_of(scan, files) == hash_of(scan.path) == known_sha256(scan, files)
    status = scan.path.stat()
    content = bytearray(scan.path.read_bytes())
    content[-1] ^= 1
    scan.path.write_bytes(content)
    os.utime(scan.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scan.path.stat().st_mtime_ns == status.st_mtime_ns, "as copying programs keep it"
    assert known_sha256(scan, files) is None


def test_a_hash_is_of_one_dataset(scan: T1wScan, files: ScanFiles, tmp_path: Path) -> None:
    keep_sha256_of(scan, files)
    (tmp_path / "link").symlink_to(scan.root)
    other = replace(scan, path=tmp_path / "link" / scan.t1w_path)
    assert other.path.samefile(scan.path)
    assert known_sha256(other, files) is None


def test_another_machine_numbers_its_devices_otherwise(scan: T1wScan, files: ScanFiles) -> None:
    keep_sha256_of(scan, files)
    content = json.loads(recorded(files).read_text())
    for machine, known in ((content["machine"], False), ("another", True)):
        recorded(files).write_text(json.dumps(content | {"machine": machine, "device": -1}))
        assert (known_sha256(scan, files) is not None) is known


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sha256": "aa"}', '{"sha256": 5}'])
def test_a_damaged_record_is_no_hash(scan: T1wScan, files: ScanFiles, content: str) -> None:
    keep_sha256_of(scan, files)
    recorded(files).write_text(content)
    assert known_sha256(scan, files) is None


def test_a_file_that_is_written_to_while_it_is_hashed_has_no_hash(
    scan: T1wScan, files: ScanFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Appending(HashingStream):
        def sha256_to_the_end(self) -> str:
            with scan.path.open("ab") as stream:
                stream.write(b"x")
            return super().sha256_to_the_end()

    monkeypatch.setattr(source, "HashingStream", Appending)
    with pytest.raises(SourceChangedError, match="written to while it was read"):
        keep_sha256_of(scan, files)
    assert not recorded(files).exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i4", np.float32, ">f8", np.float64])
@pytest.mark.parametrize("compressed", [True, False])
def test_reading_takes_at_most_twice_the_voxels_as_float32(
    tmp_path: Path, save_nifti: Callable[..., Path], dtype: object, compressed: bool
) -> None:
    shape = (160, 160, 160)
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    path = save_nifti(
        tmp_path / ("x.nii.gz" if compressed else "x.nii"), data, fields={"scl_slope": 2.0, "scl_inter": 1.0}
    )
    tracemalloc.start()
    try:
        raw = read_raw(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(raw.data[::31, ::17, ::13], 1.0 + 2.0 * data[::31, ::17, ::13])
    assert peak < 2 * 4 * data.size, f"{peak / data.size:.1f} bytes a voxel"


def test_the_header_says_how_many_voxels_there_are(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    path = save_nifti(tmp_path / "x.nii.gz", np.ones((8, 9, 10), np.float32))
    assert read_voxel_count(path) == 720
    path.write_bytes(b"no image")
    assert read_voxel_count(path) is None
