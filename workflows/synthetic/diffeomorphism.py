"""Smooth invertible deformations: velocity fields, their exponentials, and volumes carried along a flow.

Points are arrays of shape (3, ...), RAS+ mm, of whichever space the field lives in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Points = NDArray[np.float64]
"""RAS+ mm, shape (3, ...)."""

SQUARINGS: Final = 6
"""A 64th of a flow moves a fraction of a millimetre, where one Euler step is accurate."""

FLOW_STEPS: Final = 8
"""Runge-Kutta steps along a flow; twice as many change a volume ratio of 4 by 0.1 %."""

SOURCE_SIGMA_MM: Final = 3.5
"""Blur of a region that swells: keeps the deformation smooth across its border."""

SINK_SIGMA_MM: Final = 14.0
"""Blur of the surroundings that give way; what lies three times as far stays where it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorField:
    """Vectors in mm on a regular lattice; beyond its border the border's value holds.

    Attributes
    ----------
    vectors_mm : ndarray, (3, I, J, K) float64
        A displacement, or a velocity per unit of flow time, at each node, along RAS+ axes.
    origin_mm : tuple of float
        Position of the first node.
    spacing_mm : float
        Distance between nodes.
    """

    vectors_mm: NDArray[np.float64]
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    def at(self, points_mm: Points) -> Points:
        """Return the vectors at `points_mm`, linearly interpolated, in the same shape."""
        indices = self.indices_of(points_mm)
        return np.stack([interpolate(component, indices) for component in self.vectors_mm])

    def indices_of(self, points_mm: Points) -> Points:
        """Return the fractional node indices of `points_mm`, in the same shape."""
        return (points_mm - column(self.origin_mm, points_mm.ndim)) / self.spacing_mm

    def with_vectors(self, vectors_mm: NDArray[np.float64]) -> VectorField:
        """Return a field with other vectors on the same lattice."""
        return VectorField(vectors_mm=vectors_mm, origin_mm=self.origin_mm, spacing_mm=self.spacing_mm)

    def divergence(self) -> NDArray[np.float64]:
        """Return the divergence at the nodes, (I, J, K), per unit of flow time."""
        parts = [np.gradient(v, self.spacing_mm, axis=axis) for axis, v in enumerate(self.vectors_mm)]
        return np.asarray(parts[0] + parts[1] + parts[2])

    def jacobian_determinants(self) -> NDArray[np.float64]:
        """Return det(I + grad u) at the nodes, (I, J, K): positive everywhere when ``x + u(x)`` is invertible."""
        gradients = [np.stack(np.gradient(v, self.spacing_mm), axis=-1) for v in self.vectors_mm]
        return np.asarray(np.linalg.det(np.stack(gradients, axis=-2) + np.eye(3)))


def exponential(velocity: VectorField) -> VectorField:
    """Return the displacement of the flow along a stationary velocity for unit time, by scaling and squaring.

    ``exponential(-v)`` inverts ``exponential(v)``.

    References
    ----------
    Arsigny 2006 (10.1007/11866565_113).
    """
    vectors = velocity.vectors_mm
    nodes = lattice(vectors.shape[1:], velocity.origin_mm, velocity.spacing_mm)
    displacement = velocity.with_vectors(vectors / 2**SQUARINGS)
    for _ in range(SQUARINGS):
        once = displacement.vectors_mm
        displacement = displacement.with_vectors(once + displacement.at(nodes + once))
    return displacement


def swelling_velocity(
    region: NDArray[np.bool_], origin_mm: tuple[float, float, float], spacing_mm: float, step: int
) -> VectorField:
    """Return a velocity that swells a region at unit rate at the expense of its surroundings.

    The divergence is prescribed: the region blurred by :data:`SOURCE_SIGMA_MM` less the same blurred by
    :data:`SINK_SIGMA_MM`. The velocity is the curl-free field that has it (Poisson's equation, by FFT).

    Parameters
    ----------
    region : ndarray, (I, J, K) bool
        Well inside its array: the solution is periodic.
    origin_mm, spacing_mm
        Position of the region's first voxel, and voxel size.
    step : int
        The field has a node at every `step`-th voxel.

    Returns
    -------
    VectorField
        mm per unit of flow time; the mean divergence inside the region is 1.
    """
    blurred = ndimage.gaussian_filter(region.astype(np.float64), SOURCE_SIGMA_MM / spacing_mm)
    source = blurred[::step, ::step, ::step]
    node_mm = step * spacing_mm
    density = source - ndimage.gaussian_filter(
        source, np.sqrt(SINK_SIGMA_MM**2 - SOURCE_SIGMA_MM**2) / node_mm
    )
    vectors = potential_flow(density, node_mm)
    velocity = VectorField(vectors_mm=vectors, origin_mm=origin_mm, spacing_mm=node_mm)
    inside = np.argwhere(region).T * spacing_mm + column(origin_mm, 2)
    return velocity.with_vectors(
        vectors / interpolate(velocity.divergence(), velocity.indices_of(inside)).mean()
    )


def potential_flow(density: NDArray[np.float64], spacing_mm: float) -> NDArray[np.float64]:
    """Return the curl-free field with a given divergence, by Poisson's equation and FFT.

    Parameters
    ----------
    density : ndarray, (I, J, K)
        The divergence at the nodes of a lattice; its mean is taken off, for what flows out has to flow in somewhere.
    spacing_mm : float
        Between nodes.

    Returns
    -------
    ndarray, (3, I, J, K) float64
        Periodic: what has a divergence should lie well inside.
    """
    rates = [2 * np.pi * np.fft.fftfreq(n, spacing_mm) for n in density.shape]
    frequencies = np.stack(np.meshgrid(*rates, indexing="ij"))
    squared = (frequencies**2).sum(axis=0)
    squared[0, 0, 0] = 1.0
    potential = -np.fft.fftn(density - density.mean()) / squared
    return np.stack([np.fft.ifftn(1j * f * potential).real for f in frequencies])


def volume_ratio(velocity: VectorField, points_mm: Points) -> float:
    """Return by how much a region's volume changes when it is carried along a flow for unit time.

    ``d log det J / dt`` is the divergence along each path; paths by the classical Runge-Kutta method.

    Parameters
    ----------
    velocity : VectorField
    points_mm : ndarray, (3, N)
        Points that fill the region evenly.
    """
    divergence = velocity.divergence()
    step = 1.0 / FLOW_STEPS
    position, log_jacobian = points_mm, np.zeros(points_mm.shape[1])
    for _ in range(FLOW_STEPS):
        k1 = velocity.at(position)
        middle = position + step / 2 * k1
        k2 = velocity.at(middle)
        k3 = velocity.at(position + step / 2 * k2)
        k4 = velocity.at(position + step * k3)
        log_jacobian = log_jacobian + step * interpolate(divergence, velocity.indices_of(middle))
        position = position + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return float(np.exp(log_jacobian).mean())


def interpolate(values: NDArray[Any], indices: NDArray[np.float64], order: int = 1) -> NDArray[Any]:
    """Interpolate at fractional voxel indices, (3, ...); beyond the border the border's value holds."""
    return np.asarray(ndimage.map_coordinates(values, indices, order=order, mode="nearest", prefilter=False))


def lattice(shape: Sequence[int], origin_mm: Sequence[float], spacing_mm: float) -> Points:
    """Return the positions of a regular lattice's nodes, (3, I, J, K) float64."""
    axes = [origin + spacing_mm * np.arange(n) for n, origin in zip(shape, origin_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def column(values: Sequence[float] | NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """Return three values as an array that broadcasts against (3, ...) of `ndim` axes.

    >>> column((1.0, 2.0, 3.0), 2).shape
    (3, 1)
    """
    return np.asarray(values, dtype=np.float64).reshape(3, *[1] * (ndim - 1))


def refine(coarse: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Bring (C, ...) values that stand at every second voxel to every voxel, linearly, and cut to `shape`.

    >>> refine(np.array([[[[0.0, 2.0]]]]), (1, 1, 3)).ravel().tolist()
    [0.0, 1.0, 2.0]
    """
    fine = coarse
    for axis, wanted in enumerate(shape, start=1):
        before = np.moveaxis(fine, axis, 0)
        after = np.empty((2 * len(before) - 1, *before.shape[1:]))
        after[::2] = before
        after[1::2] = 0.5 * (before[:-1] + before[1:])
        fine = np.moveaxis(after[:wanted], 0, axis)
    return np.ascontiguousarray(fine)
