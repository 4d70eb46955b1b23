"""The sanitiser: a file becomes a head in RAS, or a sentence that says why not.

One policy for every scan: the sform where its code is set, else the qform, else refuse. Where both are set and
disagree about sides or axes, refuse unless the configuration says which to believe. Values that are not finite,
shears, wrong units and needless dimensions are mended and reported, or refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import GeometryError, IntensityError
from brainstage.pipeline.nifti import MAX_VOXELS, RawNifti, read_raw
from brainstage.pipeline.records import HeaderFindings, IngestedHead
from brainstage.pipeline.volume import Affine, Grid, Volume, axcodes_of, spacing_of
from brainstage.preprocessing.intensity_range import nan_background, raised, unwrapped
from brainstage.preprocessing.resampling import resampled

STAGE_VERSION: Final = "3"

CONFLICT_TOLERANCE_MM: Final = 0.1
"""sform and qform that put no corner further apart count as one."""
SHEAR_TOLERANCE: Final = 1e-3
"""Cosine between two axes; ITK refuses directions that are not orthonormal."""
MAX_NONFINITE_FRACTION: Final = 0.01
MIN_NONZERO_FRACTION: Final = 0.02
"""A stripped brain in a generous field of view fills 5 % of it."""
MIN_VOXELS_PER_AXIS: Final = 16
EXPECTED_MAXIMUM: Final = (1.0, 1e6)
"""The 99.9th percentile of scanners' images; outside, intensities are rescaled so that float32 suffices."""
RESCALED_MAXIMUM: Final = 1000.0


def ingest(
    path: Path, config: IngestConfig, *, sha256: str | None = None, root: Path | None = None
) -> IngestedHead:
    """Read a T1w file whole and bring it to RAS.

    Parameters
    ----------
    path : Path
        A NIfTI file.
    config : IngestConfig
    sha256 : str, optional
        What the hash of the file was; other bytes are refused.
    root : Path, optional
        The file's dataset, which links must not lead out of.

    Returns
    -------
    IngestedHead
        Head of shape (I, J, K) float32, ``voxel_to_ras`` orthonormal up to voxel sizes, axes R, A, S to within
        45 degrees; findings describe the file as stored.

    Raises
    ------
    ImageError, GeometryError, IntensityError, SourceChangedError
    """
    raw = read_raw(path, sha256=sha256, root=root)
    warnings = list(raw.warnings)
    voxel_to_ras, source = _believed_affine(raw, config, warnings)
    _check_extent(raw.data.shape, voxel_to_ras, config)
    _note_pixdim(raw, voxel_to_ras, warnings)
    data = _checked_values(raw.data, raw.wraps_at, warnings)
    findings_shape, findings_axes = raw.data.shape, axcodes_of(voxel_to_ras)
    volume = _without_shear(Volume(data=data, voxel_to_ras=voxel_to_ras), warnings)
    return IngestedHead(
        head=to_ras(volume),
        findings=HeaderFindings(
            shape=findings_shape,
            spacing_mm=spacing_of(voxel_to_ras),
            axcodes=findings_axes,
            affine_source=source,
            warnings=tuple(warnings),
        ),
    )


def to_ras(volume: Volume) -> Volume:
    """Reorder and flip axes so that they run to the right, front and top; no voxel changes its place in RAS mm."""
    orientation = io_orientation(volume.voxel_to_ras)
    data = np.ascontiguousarray(apply_orientation(volume.data, orientation))
    matrix = volume.voxel_to_ras @ inv_ornt_aff(orientation, volume.shape)
    return Volume(data=data, voxel_to_ras=matrix)


def _believed_affine(raw: RawNifti, config: IngestConfig, warnings: list[str]) -> tuple[Affine, str]:
    sform, qform = raw.sform, raw.qform
    if sform is None and qform is None:
        if config.missing_orientation == "refuse":
            raise GeometryError(
                "neither sform nor qform is set (both codes 0 or unusable), so left and right are unknown; set them, "
                'or accept a guess with ingest.missing_orientation = "assume"'
            )
        codes = axcodes_of(raw.fallback)
        warnings.append(
            f"orientation_assumed: neither sform nor qform is set; the axes were assumed to be {codes}"
        )
        return raw.fallback, "assumed"
    if sform is None or qform is None:
        only, name = (qform, "qform") if sform is None else (sform, "sform")
        if only is None:
            raise GeometryError("no usable orientation")
        return only, name
    apart_mm = _corner_distance_mm(raw.data.shape, sform, qform)
    if apart_mm <= CONFLICT_TOLERANCE_MM:
        return sform, "sform"
    conflict = (
        f"sform ({axcodes_of(sform)}) and qform ({axcodes_of(qform)}) lie up to {apart_mm:.1f} mm apart"
    )
    if axcodes_of(sform) != axcodes_of(qform) and config.on_conflict == "refuse":
        raise GeometryError(
            f"{conflict}: they disagree about sides or axes; correct the header, or say which to believe with "
            'ingest.on_conflict = "sform" or "qform"'
        )
    believe_qform = config.on_conflict == "qform"
    warnings.append(f"form_conflict: {conflict}; the {'qform' if believe_qform else 'sform'} was believed")
    return (qform, "qform") if believe_qform else (sform, "sform")


def _corner_distance_mm(shape: tuple[int, ...], first: Affine, second: Affine) -> float:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def _check_extent(shape: tuple[int, ...], voxel_to_ras: Affine, config: IngestConfig) -> None:
    spacing = spacing_of(voxel_to_ras)
    low, high = config.spacing_bounds_mm
    if not all(low <= s <= high for s in spacing):
        raise GeometryError(
            f"voxels measure {_by(spacing, '.3g')} mm; expected {low:g} to {high:g} mm an axis "
            "(ingest.spacing_bounds_mm). Check the unit in the header (xyzt_units)"
        )
    if min(shape) < MIN_VOXELS_PER_AXIS:
        raise GeometryError(
            f"the image has {_by(shape, 'd')} voxels; at least {MIN_VOXELS_PER_AXIS} an axis are needed"
        )
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    low, high = config.field_of_view_bounds_mm
    if not all(low <= e <= high for e in extent):
        raise GeometryError(
            f"the field of view is {_by(extent, '.0f')} mm; expected {low:g} to {high:g} mm an axis "
            "(ingest.field_of_view_bounds_mm)"
        )


def _note_pixdim(raw: RawNifti, voxel_to_ras: Affine, warnings: list[str]) -> None:
    spacing = np.array(spacing_of(voxel_to_ras))
    if (np.abs(spacing - raw.pixdim_mm) > 0.01 * spacing).any():
        warnings.append(
            f"pixdim_mismatch: the header's voxel size {_by(raw.pixdim_mm, '.3g')} mm is not that of its orientation "
            f"matrix, {_by(tuple(spacing), '.3g')} mm; the matrix was believed"
        )


def _checked_values(
    data: NDArray[np.float32], wraps_at: float | None, warnings: list[str]
) -> NDArray[np.float32]:
    data, background = _finite_values(data, warnings)
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise IntensityError(f"every voxel holds {low:g}: the image is empty or constant")
    data = _positive(data, background, wraps_at, warnings)
    low = float(data.min())
    darkest = low if low > 0 else 0.0
    filled = np.count_nonzero(data != np.float32(darkest)) / data.size
    if filled < MIN_NONZERO_FRACTION:
        raise IntensityError(
            f"only {filled:.1%} of the voxels differ from the background; the image is almost empty"
        )
    if low < 0:
        negative = np.count_nonzero(data < 0) / data.size
        warnings.append(f"negative_values: {negative:.1%} of the voxels are negative, the lowest {low:g}")
    return _in_range(data, warnings)


def _finite_values(
    data: NDArray[np.float32], warnings: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return the values with 0 for what is not finite, and where that is the background."""
    finite = np.isfinite(data)
    bad = data.size - int(np.count_nonzero(finite))
    background = nan_background(data) if bad > MAX_NONFINITE_FRACTION * data.size else None
    if background is not None:
        count = int(np.count_nonzero(background))
        warnings.append(
            f"nan_background: {count / data.size:.0%} of the voxels, around one piece, were NaN or infinite and were "
            "taken for background"
        )
        bad -= count
    if bad > MAX_NONFINITE_FRACTION * data.size:
        raise IntensityError(
            f"{bad} of {data.size} voxels are NaN or infinite; at most {MAX_NONFINITE_FRACTION:.0%} are tolerated, "
            "unless they are the background around one piece. Write 0 where there is no brain"
        )
    if bad:
        warnings.append(f"nonfinite_values: {bad} voxels were NaN or infinite and were set to 0")
    return (data if finite.all() else np.where(finite, data, np.float32(0.0))), background


def _positive(
    data: NDArray[np.float32],
    background: NDArray[np.bool_] | None,
    wraps_at: float | None,
    warnings: list[str],
) -> NDArray[np.float32]:
    """Return the intensities with a background of 0 and a head above it."""
    data, count = unwrapped(data, wraps_at)
    if count:
        warnings.append(
            f"intensity_wrapped: {count} voxels of the brightest tissue were stored in an integer too small for them "
            "and came out negative; they were restored"
        )
    low = float(data.min() if background is None else data[~background].min())
    data, by = raised(data, background)
    if by:
        warnings.append(
            f"intensity_shifted: intensities went down to {low:.4g}; the head was raised by {by:.4g} so that its "
            "background is 0. Ratios of intensities depend on that choice"
        )
    return data


def _in_range(data: NDArray[np.float32], warnings: list[str]) -> NDArray[np.float32]:
    top = float(np.percentile(data, 99.9))
    if top <= 0:
        raise IntensityError(
            f"99.9 % of the voxels are at most {top:g}; a T1w scan has a bright head on a dark ground"
        )
    if EXPECTED_MAXIMUM[0] <= top <= EXPECTED_MAXIMUM[1]:
        return data
    warnings.append(f"intensity_rescaled: intensities up to {top:.3g} were scaled to {RESCALED_MAXIMUM:g}")
    scaled: NDArray[np.float32] = np.clip(
        data.astype(np.float64) * (RESCALED_MAXIMUM / top), -1e6, 1e6
    ).astype(np.float32)
    return scaled


def _without_shear(volume: Volume, warnings: list[str]) -> Volume:
    """Resample a sheared volume to orthogonal axes; snap rounding errors of an unsheared one."""
    spacing = np.array(volume.spacing_mm)
    directions = volume.voxel_to_ras[:3, :3] / spacing
    cosines = np.abs(directions.T @ directions - np.eye(3))
    left, _, right = np.linalg.svd(directions)
    matrix = volume.voxel_to_ras.copy()
    matrix[:3, :3] = (left @ right) * spacing
    if cosines.max() <= SHEAR_TOLERANCE:
        return Volume(data=volume.data, voxel_to_ras=matrix)
    degrees = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
    straight = _enclosing(volume.grid, matrix)
    if np.prod(straight.shape, dtype=np.float64) > MAX_VOXELS:
        raise GeometryError(
            f"the axes are {degrees:.1f} degrees off a right angle; to straighten them takes "
            f"{_by(straight.shape, 'd')} voxels, at most {MAX_VOXELS} are made. Correct the header"
        )
    warnings.append(f"sheared: the axes are {degrees:.1f} degrees off a right angle; the image was resampled")
    return resampled(volume, straight)


def _enclosing(grid: Grid, matrix: Affine) -> Grid:
    """Return a grid with the axes of `matrix` that holds all corners of `grid`."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape], [1], indexing="ij")).reshape(4, -1)
    index = (np.linalg.inv(matrix) @ grid.voxel_to_ras @ corners)[:3]
    low, high = np.floor(index.min(axis=1) + 1e-3), np.ceil(index.max(axis=1) - 1e-3)
    moved = matrix.copy()
    moved[:3, 3] = matrix[:3, :3] @ low + matrix[:3, 3]
    i, j, k = (int(n) for n in high - low + 1)
    return Grid(shape=(i, j, k), voxel_to_ras=moved)


def _by(values: tuple[float, ...] | list[float], form: str) -> str:
    return " x ".join(format(value, form) for value in values)
