"""The only NIfTI reader and writer.

ITK's readers accept a truncated or altered ``.nii.gz`` without a word, so every input is read here: header
first and bounded, then the whole stream to its checksum. ITK only ever sees our own arrays.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from brainstage.pipeline.errors import GeometryError, ImageError, IntensityError, SourceChangedError
from brainstage.pipeline.files import write_bytes
from brainstage.pipeline.source import HashingStream, opened_source
from brainstage.pipeline.volume import Affine, BrainMask, Volume

MAX_DATA_BYTES: Final = 1024**3
MAX_VOXELS: Final = 128 * 1024**2
"""A whole head at 0.4 mm has 100 million voxels; as float32 the limit is 0.5 GB."""
MAX_DIMENSION: Final = 1024
_SLACK_BYTES: Final = 1024**2
_HEADER_BYTES: Final = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_EXTENSION_FLAG_BYTES: Final = 4
_READ_VOXELS: Final = 256 * 1024
_UNIT_TO_MM: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_REAL_KINDS: Final = "iuf"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_GZIP_LEVEL: Final = 1
"""Level 1 writes a 6-million-voxel float32 volume in 0.3 s; level 6 takes 2 s and saves 5 %."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawNifti:
    """A NIfTI file as stored, read whole, with nothing believed yet.

    Attributes
    ----------
    data : ndarray, (I, J, K) float32
        Scaled intensities; may hold values that are not finite.
    sform, qform : ndarray (4, 4) or None
        Voxel index to RAS mm, None where the code is 0 or the matrix is not usable.
    sform_code, qform_code : int
    pixdim_mm : tuple of float
    fallback : ndarray, (4, 4)
        What is left when both codes are 0: nibabel's guess from the voxel sizes.
    warnings : tuple of str
    wraps_at : float or None
        How many values the stored integer type has, in units of `data`; None unless it is a signed one.
    """

    data: NDArray[np.float32]
    sform: Affine | None
    qform: Affine | None
    sform_code: int
    qform_code: int
    pixdim_mm: tuple[float, float, float]
    fallback: Affine
    warnings: tuple[str, ...]
    wraps_at: float | None = None


def read_raw(path: Path, *, sha256: str | None = None, root: Path | None = None) -> RawNifti:
    """Read a NIfTI-1 or NIfTI-2 single file, trusting nothing.

    Takes no more memory than the voxels need as float32, and a few megabytes.

    Parameters
    ----------
    path : Path
    sha256 : str, optional
        What the hash of the file was; other bytes are refused.
    root : Path, optional
        A dataset that links must not lead out of.

    Raises
    ------
    InputMissingError
        No such file.
    ImageError, GeometryError, IntensityError
        No regular file, too large, damaged, truncated, not NIfTI, or with a header that cannot be.
    SourceChangedError
        The file has another hash.
    """
    with opened_source(path, root) as file:
        return _read_opened(file, path.name, sha256)


def read_voxel_count(path: Path, *, root: Path | None = None) -> int | None:
    """Return how many voxels the header of a NIfTI file promises; None where it cannot be believed.

    Raises
    ------
    InputMissingError, ImageError
        The file cannot be opened.
    """
    with opened_source(path, root) as file:
        try:
            compressed = _is_compressed(file)
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb") if compressed else file)
            shape, _ = _checked_shape(_read_header(stream))
        except (*_DAMAGED, OSError, ImageError):
            return None
    return math.prod(shape)


def _read_opened(file: IO[bytes], name: str, sha256: str | None) -> RawNifti:
    try:
        compressed = _is_compressed(file)
        hashing = HashingStream(file)
        source = cast("IO[bytes]", hashing)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=source, mode="rb")) if compressed else source
        header = _read_header(stream)
        shape, warnings_shape = _checked_shape(header)
        offset, warnings_offset = _checked_offset(header)
        _skip(stream, offset - int(header["sizeof_hdr"]))
        dtype = _checked_dtype(header)
        data = _read_data(stream, dtype, shape, _scaling(header))
        found = hashing.sha256_to_the_end() if sha256 is not None else None
    except _DAMAGED as error:
        raise ImageError(
            "the gzip stream is truncated or damaged "
            f"({str(error) or type(error).__name__}): copy or download the file again"
        ) from error
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}") from error
    if found != sha256:
        raise SourceChangedError(
            f"{name} holds other bytes than when it was hashed: it was written to or replaced meanwhile; run the same "
            "command again"
        )
    sform, qform, fallback, pixdim_mm = _checked_geometry(header)
    return RawNifti(
        data=data,
        sform=sform,
        qform=qform,
        sform_code=int(header["sform_code"]),
        qform_code=int(header["qform_code"]),
        pixdim_mm=pixdim_mm,
        fallback=fallback,
        warnings=(*_extension_warnings(name, compressed), *warnings_shape, *warnings_offset),
        wraps_at=_span_of(dtype, header),
    )


def read_volume(path: Path) -> Volume:
    """Read one of our own volumes; float32, its sform believed."""
    raw = read_raw(path)
    return Volume(data=raw.data, voxel_to_ras=_own_affine(raw))


def read_mask(path: Path) -> BrainMask:
    """Read one of our own masks; anything above 0.5 is brain."""
    raw = read_raw(path)
    return BrainMask(data=raw.data > 0.5, voxel_to_ras=_own_affine(raw))


def write_volume(path: Path, volume: Volume) -> Path:
    """Write a volume as float32, sform = qform, both codes set, no free text; in one rename."""
    return _write(path, np.asarray(volume.data, dtype=np.float32), volume.voxel_to_ras)


def write_mask(path: Path, brain_mask: BrainMask) -> Path:
    """Write a mask as uint8 of 0 and 1, otherwise like :func:`write_volume`."""
    return _write(path, brain_mask.data.astype(np.uint8), brain_mask.voxel_to_ras)


def write_labels(path: Path, labels: Volume) -> Path:
    """Write whole numbers as int16, otherwise like :func:`write_volume`."""
    return _write(path, np.rint(labels.data).astype(np.int16), labels.voxel_to_ras)


def nifti_bytes(
    data: NDArray[Any], voxel_to_ras: Affine, *, in_template: bool, compression: int = _GZIP_LEVEL
) -> bytes:
    """Return an array as a gzipped NIfTI file: sform = qform, both codes set, no free text.

    The same voxels give the same bytes.
    """
    code = 4 if in_template else 1  # 4: MNI space, 1: scanner
    image = nib.Nifti1Image(data, voxel_to_ras)
    image.set_sform(voxel_to_ras, code=code)
    image.set_qform(voxel_to_ras, code=code)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=compression, mtime=0)


def _write(path: Path, data: NDArray[Any], voxel_to_ras: Affine) -> Path:
    return write_bytes(path, nifti_bytes(data, voxel_to_ras, in_template="_space-MNI" in path.name))


def _own_affine(raw: RawNifti) -> Affine:
    if raw.sform is None:
        raise GeometryError("the file has no sform; it was not written by this program")
    return raw.sform


def _is_compressed(file: IO[bytes]) -> bool:
    magic = file.read(len(_GZIP_MAGIC))
    file.seek(0)
    return magic == _GZIP_MAGIC


def _extension_warnings(name: str, compressed: bool) -> tuple[str, ...]:
    named_compressed = name.endswith(".gz")
    if compressed == named_compressed:
        return ()
    found, named = ("gzip", "uncompressed") if compressed else ("uncompressed", "gzip")
    return (f"extension_mismatch: the content is {found}, the name says {named}",)


def _read_header(stream: IO[bytes]) -> nib.Nifti1Header:
    block = stream.read(348)
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")} & set(_HEADER_BYTES)
    if len(block) < 348 or not sizes:
        hint = ""
        if block.lstrip()[:1] in (b"<", b"{") or b"annex" in block[:200]:
            hint = ": it looks like a web page or a git-annex pointer, so the download did not work"
        raise ImageError(f"this is no NIfTI file{hint}")
    size = sizes.pop()
    block += stream.read(size - 348)
    if len(block) < size:
        raise ImageError("the file ends within its header")
    header = _HEADER_BYTES[size](block, check=False)
    if bytes(header["magic"]).rstrip(b"\x00")[:3] not in (b"n+1", b"n+2"):
        raise ImageError(
            "this is no single-file NIfTI (magic n+1 or n+2); convert it, for example with dcm2niix"
        )
    return header


def _checked_shape(header: nib.Nifti1Header) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise GeometryError(f"the header gives {count} dimensions; a T1w scan has 3")
    dims = [int(n) for n in header["dim"][1 : count + 1]]
    if min(dims) < 1:
        raise GeometryError(f"the header gives dimensions {dims}; each must be at least 1")
    if max(dims) > MAX_DIMENSION or np.prod(np.array(dims, dtype=np.float64)) > MAX_VOXELS:
        raise GeometryError(
            f"the header gives dimensions {dims}; at most {MAX_DIMENSION} an axis and {MAX_VOXELS} voxels are read"
        )
    extra = dims[3:]
    if count < 3:
        raise GeometryError(f"the image has {count} dimensions; a T1w scan has 3")
    if any(n > 1 for n in extra):
        raise GeometryError(
            f"the image holds {int(np.prod(extra))} volumes; store the T1w scan as a single 3-D volume"
        )
    warnings = (f"extra_dimension: dimensions {dims} were read as {dims[:3]}",) if extra else ()
    return (dims[0], dims[1], dims[2]), warnings


def _checked_offset(header: nib.Nifti1Header) -> tuple[int, tuple[str, ...]]:
    """Return at which byte the voxels begin; some writers leave 0, which can only mean the first possible one."""
    first = int(header["sizeof_hdr"]) + _EXTENSION_FLAG_BYTES
    offset = float(header["vox_offset"])
    if offset == 0:
        return first, (
            f"voxel_offset_missing: the header does not say where voxels begin; byte {first} was taken",
        )
    if not np.isfinite(offset) or not first <= offset <= MAX_DATA_BYTES:
        raise ImageError(
            f"the header says that voxels begin at byte {offset:g}; the first possible one is {first}"
        )
    return int(offset), ()


def _read_data(
    stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int, int], scaling: _Scaling | None
) -> NDArray[np.float32]:
    """Read the voxels piece by piece into float32, then on to the end so that the stream's checksum is verified."""
    count = math.prod(shape)
    if count * dtype.itemsize > MAX_DATA_BYTES:
        raise ImageError(
            f"the header promises {count * dtype.itemsize} bytes of voxels; at most {MAX_DATA_BYTES} are read"
        )
    values = np.empty(count, dtype=np.float32)
    done, left = 0, b""
    with np.errstate(over="ignore", invalid="ignore"):
        while done < count:
            chunk = stream.read(min(_READ_VOXELS, count - done) * dtype.itemsize - len(left))
            if not chunk:
                raise ImageError(
                    f"the file is truncated: {count * dtype.itemsize} bytes of voxels were promised, "
                    f"{done * dtype.itemsize + len(left)} are there. Copy or download it again"
                )
            content = left + chunk if left else chunk
            whole = len(content) // dtype.itemsize
            stored = np.frombuffer(content, dtype=dtype, count=whole)
            values[done : done + whole] = stored if scaling is None else scaling.applied(stored)
            left = content[whole * dtype.itemsize :]
            done += whole
    _read_to_the_end(stream)
    values.flags.writeable = False  # so that nobody copies it for fear of the reader
    return values.reshape(shape, order="F")


def _read_to_the_end(stream: IO[bytes]) -> None:
    surplus = 0
    while chunk := stream.read(_SLACK_BYTES):
        surplus += len(chunk)
        if surplus > _SLACK_BYTES:
            raise ImageError(
                "the file holds far more data than its header says; it is damaged or no T1w scan"
            )


def _skip(stream: IO[bytes], count: int) -> None:
    """Read past what stands between header and voxels, and keep none of it."""
    while count > 0:
        chunk = stream.read(min(_SLACK_BYTES, count))
        if not chunk:
            raise ImageError("the file is truncated: it ends before its voxels. Copy or download it again")
        count -= len(chunk)


def _checked_dtype(header: nib.Nifti1Header) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise ImageError(f"the header gives an unknown data type, code {int(header['datatype'])}") from error
    if dtype.kind not in _REAL_KINDS or dtype.itemsize > 8 or dtype.fields is not None:
        raise ImageError(f"voxels of type {dtype} cannot be a T1w scan; expected integers or real numbers")
    return dtype


@dataclass(frozen=True, kw_only=True)
class _Scaling:
    """How stored values become intensities."""

    slope: float
    intercept: float

    def applied(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        scaled = stored.astype(np.float64)
        scaled *= self.slope
        scaled += self.intercept
        return scaled


def _scaling(header: nib.Nifti1Header) -> _Scaling | None:
    """Return the scaling that a header asks for; None where it leaves the values as they are stored."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return None
    if not np.isfinite(intercept):
        raise IntensityError(f"the header scales intensities by {slope} and adds {intercept}")
    return None if (slope, intercept) == (1, 0) else _Scaling(slope=slope, intercept=intercept)


def _span_of(dtype: np.dtype[Any], header: nib.Nifti1Header) -> float | None:
    if dtype.kind != "i":
        return None
    slope = abs(float(header["scl_slope"]))
    return float(2 ** (8 * dtype.itemsize)) * (slope if np.isfinite(slope) and slope > 0 else 1.0)


def _checked_geometry(
    header: nib.Nifti1Header,
) -> tuple[Affine | None, Affine | None, Affine, tuple[float, float, float]]:
    unit = int(header["xyzt_units"]) & 0x07
    if unit not in _UNIT_TO_MM:
        raise GeometryError(f"the header gives an unknown unit of length, code {unit}")
    to_mm = np.diag([_UNIT_TO_MM[unit]] * 3 + [1.0])
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64) * _UNIT_TO_MM[unit]
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        raise GeometryError(f"the header gives voxel sizes {pixdim.tolist()} mm; each must be above 0")
    sizes = (abs(float(pixdim[0])), abs(float(pixdim[1])), abs(float(pixdim[2])))
    sform = _usable(to_mm @ header.get_sform()) if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        # The handedness is -1 or 1; the standard reads anything else, mostly 0, as 1.
        header["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0
        try:
            qform = _usable(to_mm @ header.get_qform())
        except (ValueError, HeaderDataError):
            qform = None
    return sform, qform, to_mm @ header.get_base_affine(), sizes


def _usable(matrix: NDArray[np.float64]) -> Affine | None:
    if not np.isfinite(matrix).all():
        return None
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # Relative to the voxel: a wrong unit is for the caller to name.
    good = (lengths > 0).all() and abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-6
    return matrix if good else None
