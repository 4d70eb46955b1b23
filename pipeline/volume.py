"""Arrays with a place in space, checked once at construction and frozen.

World coordinates are RAS+ millimetres: x grows to the person's right, y forward, z up.
``voxel_to_ras`` maps homogeneous voxel indices to them (the NIfTI and nibabel convention).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainstage.pipeline.errors import GeometryError, IntensityError

Affine = NDArray[np.float64]
"""A (4, 4) float64 matrix; which frame it maps to which stands in its name."""

ALIGNMENT_TOLERANCE_MM = 1e-3
"""Two grids count as one when no voxel centre lies further apart than this; headers hold float32."""


def frozen_array(data: ArrayLike, dtype: type) -> NDArray[Any]:
    """Return `data` as a read-only array of `dtype` that nobody else can change.

    Memory that is read-only already, such as that of another frozen array, is shared; any other is copied, in its
    order in memory.
    """
    array: NDArray[Any] = np.asarray(data, dtype=dtype)
    if not isinstance(data, np.ndarray) or (np.may_share_memory(array, data) and _can_change(array)):
        array = array.copy(order="K")
    array.flags.writeable = False
    return array


def _can_change(array: NDArray[Any]) -> bool:
    """Tell whether an array's memory can be written through it or through what it is a view of."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return owner is not None  # a file or a buffer, which something else may write


def checked_affine(voxel_to_ras: ArrayLike) -> Affine:
    """Return `voxel_to_ras` as a read-only (4, 4) float64 matrix, or say what is wrong with it.

    Raises
    ------
    GeometryError
        For another shape, values that are not finite, a last row other than 0 0 0 1, or a singular matrix.
    """
    matrix = np.array(voxel_to_ras, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise GeometryError(f"voxel_to_ras must be 4x4, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise GeometryError("voxel_to_ras holds values that are not finite")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise GeometryError(f"the last row of voxel_to_ras must be 0 0 0 1, got {matrix[3].tolist()}")
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise GeometryError("voxel_to_ras is singular: one axis has no extent")
    matrix.flags.writeable = False
    return matrix


def inverse_of(matrix: Affine) -> Affine:
    """Return the inverse of an affine, (4, 4) float64."""
    inverse: Affine = np.linalg.inv(matrix).astype(np.float64)
    return inverse


def spacing_of(voxel_to_ras: Affine) -> tuple[float, float, float]:
    """Return the distance in mm between neighbouring voxels along each axis."""
    x, y, z = np.linalg.norm(voxel_to_ras[:3, :3], axis=0)
    return float(x), float(y), float(z)


def axcodes_of(voxel_to_ras: Affine) -> str:
    """Return the axis directions as letters.

    >>> axcodes_of(checked_affine(np.diag([-1.0, 1.0, 2.0, 1.0])))
    'LAS'
    """
    return "".join(str(code) for code in nib.aff2axcodes(voxel_to_ras))


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A voxel lattice without values.

    Attributes
    ----------
    shape : tuple of int
        (I, J, K), voxels.
    voxel_to_ras : ndarray, (4, 4) float64
        Voxel index to RAS+ mm.
    """

    shape: tuple[int, int, int]
    voxel_to_ras: Affine

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise GeometryError(f"a grid has axes of at least one voxel, got {self.shape}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "voxel_to_ras", checked_affine(self.voxel_to_ras))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis, mm."""
        return spacing_of(self.voxel_to_ras)

    @property
    def axcodes(self) -> str:
        """Axis directions, such as ``RAS``."""
        return axcodes_of(self.voxel_to_ras)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, mm³."""
        return float(abs(np.linalg.det(self.voxel_to_ras[:3, :3])))

    def matches(self, other: Grid) -> bool:
        """Tell whether both grids hold the same voxel centres, to within a micrometre."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
        apart_mm = (self.voxel_to_ras - other.voxel_to_ras) @ homogeneous
        return bool(np.abs(apart_mm).max() < ALIGNMENT_TOLERANCE_MM)

    def places_mm(self, indices: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the RAS mm, (3, N), of voxel indices, (N, 3)."""
        places: NDArray[np.float64] = self.voxel_to_ras[:3, :3] @ indices.T + self.voxel_to_ras[:3, 3:]
        return places

    def part(self, box: tuple[slice, slice, slice]) -> Grid:
        """Return the grid of a box of voxels; each of them keeps its place in space."""
        starts, stops, _ = zip(
            *(side.indices(n) for side, n in zip(box, self.shape, strict=True)), strict=True
        )
        first = np.eye(4)
        first[:3, 3] = starts
        i, j, k = np.subtract(stops, starts)
        return Grid(shape=(int(i), int(j), int(k)), voxel_to_ras=self.voxel_to_ras @ first)

    def rescaled(self, spacing_mm: float) -> Grid:
        """Return a grid over the same field of view, from outer edge to outer edge, with cubic voxels.

        Parameters
        ----------
        spacing_mm : float
            Wanted voxel size; the field of view is rounded up to whole voxels.
        """
        old = np.array(self.spacing_mm)
        shape = np.maximum(1, np.ceil(np.array(self.shape) * old / spacing_mm - 1e-6)).astype(int)
        directions = self.voxel_to_ras[:3, :3] / old
        first_centre_voxels = -0.5 + 0.5 * spacing_mm / old
        matrix = np.eye(4)
        matrix[:3, :3] = directions * spacing_mm
        matrix[:3, 3] = self.voxel_to_ras[:3, :3] @ first_centre_voxels + self.voxel_to_ras[:3, 3]
        return Grid(shape=(int(shape[0]), int(shape[1]), int(shape[2])), voxel_to_ras=matrix)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Volume:
    """A scalar image in space.

    Attributes
    ----------
    data : ndarray, (I, J, K) float32, read-only
        Intensities, all finite.
    voxel_to_ras : ndarray, (4, 4) float64, read-only
        Voxel index to RAS+ mm.

    Raises
    ------
    GeometryError
        When the array has not three axes, or the matrix is not usable.
    IntensityError
        When a voxel is not finite.
    """

    data: NDArray[np.float32]
    voxel_to_ras: Affine

    def __post_init__(self) -> None:
        data = frozen_array(self.data, np.float32)
        if data.ndim != 3:
            raise GeometryError(f"a volume has three axes, got shape {data.shape}")
        if not np.isfinite(data).all():
            raise IntensityError(f"{int((~np.isfinite(data)).sum())} voxels are not finite")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "voxel_to_ras", checked_affine(self.voxel_to_ras))

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.shape)
        spacing = " x ".join(f"{s:.2g}" for s in sorted(set(np.round(self.spacing_mm, 3))))
        return f"<{shape} float32, {spacing} mm, {self.axcodes}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        i, j, k = self.data.shape
        return i, j, k

    @property
    def grid(self) -> Grid:
        """The lattice the values stand on."""
        return Grid(shape=self.shape, voxel_to_ras=self.voxel_to_ras)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis, mm."""
        return spacing_of(self.voxel_to_ras)

    @property
    def axcodes(self) -> str:
        """Axis directions, such as ``RAS``."""
        return axcodes_of(self.voxel_to_ras)

    def with_data(self, data: ArrayLike) -> Self:
        """Return a volume with other values on the same grid."""
        array = np.asarray(data, dtype=np.float32)
        if array.shape != self.shape:
            raise GeometryError(f"expected values of shape {self.shape}, got {array.shape}")
        return type(self)(data=array, voxel_to_ras=self.voxel_to_ras)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BrainMask:
    """Which voxels are brain.

    Attributes
    ----------
    data : ndarray, (I, J, K) bool, read-only
    voxel_to_ras : ndarray, (4, 4) float64, read-only
        Voxel index to RAS+ mm.
    """

    data: NDArray[np.bool_]
    voxel_to_ras: Affine

    def __post_init__(self) -> None:
        data = frozen_array(self.data, np.bool_)
        if data.ndim != 3:
            raise GeometryError(f"a brain mask has three axes, got shape {data.shape}")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "voxel_to_ras", checked_affine(self.voxel_to_ras))

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.data.shape)
        return f"<{shape} mask, {self.volume_ml:.0f} ml, {axcodes_of(self.voxel_to_ras)}>"

    @property
    def grid(self) -> Grid:
        """The lattice the mask stands on."""
        i, j, k = self.data.shape
        return Grid(shape=(i, j, k), voxel_to_ras=self.voxel_to_ras)

    @property
    def volume_ml(self) -> float:
        """Volume of the mask, millilitres."""
        return float(self.data.sum()) * self.grid.voxel_volume_mm3 / 1000.0


def require_same_grid(volume: Volume, brain_mask: BrainMask) -> None:
    """Raise :class:`GeometryError` unless the mask stands on the volume's grid."""
    if not volume.grid.matches(brain_mask.grid):
        raise GeometryError(f"the brain mask {brain_mask!r} does not stand on the grid of {volume!r}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DisplacementField:
    """A smooth deformation: where each point of a space comes from.

    Attributes
    ----------
    data : ndarray, (I, J, K, 3) float32, read-only
        Displacement of each voxel centre, RAS+ mm.
    voxel_to_ras : ndarray, (4, 4) float64, read-only
        Voxel index to RAS+ mm.
    """

    data: NDArray[np.float32]
    voxel_to_ras: Affine

    def __post_init__(self) -> None:
        data = frozen_array(self.data, np.float32)
        if data.ndim != 4 or data.shape[-1] != 3 or not np.isfinite(data).all():
            raise GeometryError(
                f"a displacement field has finite values of shape (I, J, K, 3), got {data.shape}"
            )
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "voxel_to_ras", checked_affine(self.voxel_to_ras))
