"""The bias field: smooth, multiplicative, estimated by N4 and divided out.

``fast`` is N4 (Tustison 2010, 10.1109/TMI.2010.2046908): histogram sharpening (Sled 1998, 10.1109/42.668698) and
multilevel B-spline approximation (Lee 1997, 10.1109/2945.620490), on every n-th voxel of the mask's box. On that
lattice the spline is a product of three small matrices, so an iteration takes a millisecond. It differs from ANTs'
N4 in four things, each chosen by measurement (``benchmarks/bias_field.py``): the spline's domain is the mask's box,
bright voxels count more, steps are longer, and the finest level ends early. What is estimated are the spline's
coefficients, which are then evaluated on the full grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.config import BiasFieldConfig
from brainstage.pipeline.errors import BiasFieldError
from brainstage.pipeline.records import CorrectedBrain, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.ants_tools import n4_field

STAGE_VERSION: Final = "2"

HISTOGRAM_BINS: Final = 200
SHARPENING_FWHM: Final = 0.12
"""Assumed width of the field's log-intensity distribution. With the 0.15 of ANTs more of the contrast of grey and
white matter was taken for field."""
WIENER_NOISE: Final = 0.01
RELAXATION: Final = 2.0
"""A narrower distribution means shorter steps; twice as long they lead to the same field. At three times, heads
almost without noise, where nothing damps the steps, oscillated: white matter twice as uneven as before."""
FINE_MESH: Final = 8
FINE_ITERATIONS: Final = 8
"""Knots every 2 cm follow the folds as well as the field: with as many iterations as on the coarse meshes the
contrast of grey and white matter shrinks, and with none white matter stays less even."""
MOST_WEIGHT: Final = 2.0
"""Of a voxel brighter than the median, such as fat or a vessel."""
MIN_VOXELS: Final = 500
MOSTLY: Final = 0.5
FIELD_BOUNDS: Final = (0.05, 20.0)
"""Coils vary by a factor of two or three; a field beyond these bounds was not a field."""

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Array = TypeVar("Array", Float, Single)
"""Values in either precision."""


def correct_bias(stripped: StrippedBrain, config: BiasFieldConfig, seed: int = 0) -> CorrectedBrain:
    """Divide the head by its bias field, whose geometric mean inside the mask is 1.

    Raises
    ------
    BiasFieldError
        When there are too few voxels to estimate a field from, or it is not finite.
    """
    if config.method == "none":
        return CorrectedBrain(
            head=stripped.head, brain_mask=stripped.brain_mask, stripped=stripped, field_range=1.0
        )
    if config.method == "ants":
        field = n4_field(stripped.head, stripped.brain_mask, seed)
    else:
        field = fast_n4_field(stripped.head, stripped.brain_mask, config)
    inside = field[stripped.brain_mask.data]
    if not np.isfinite(inside).all() or inside.min() <= 0:
        raise BiasFieldError(
            "the estimated bias field is not positive everywhere; try --bias-field ants or none"
        )
    mean = np.exp(np.log(inside).mean(dtype=np.float64))
    low, high = np.clip(np.percentile(inside, (5, 95)) / mean, *FIELD_BOUNDS)
    np.clip(np.divide(field, np.float32(mean), out=field), *FIELD_BOUNDS, out=field)
    return CorrectedBrain(
        head=stripped.head.with_data(np.divide(stripped.head.data, field, out=field)),
        brain_mask=stripped.brain_mask,
        stripped=stripped,
        field_range=float(high / low),
    )


def fast_n4_field(head: Volume, brain_mask: BrainMask, config: BiasFieldConfig) -> Single:
    """Return the multiplicative field on the head's grid, (I, J, K) float32.

    Raises
    ------
    BiasFieldError
        When fewer than 500 voxels of the estimation grid lie inside the mask.
    """
    samples = _Samples.of(head, brain_mask, config.grid_mm)
    coefficients = estimate_log_field(samples, config)
    field = evaluate_on_axes(coefficients.astype(np.float32), samples.unit_axes(head.shape))
    return np.exp(field, out=field)


def estimate_log_field(samples: _Samples, config: BiasFieldConfig) -> Float:
    """Estimate the log bias field.

    Returns
    -------
    ndarray, (M, M, M)
        Cubic B-spline coefficients over the unit cube of the samples' domain, M = 2**(levels - 1) + 3.
    """
    field = np.zeros(len(samples.log_intensity))
    coefficients = np.zeros((4, 4, 4))
    for mesh in (2**level for level in range(config.levels)):
        if mesh > 1:
            coefficients = refined(coefficients)
        spline = _Approximation.of(samples, mesh)
        for _ in range(config.iterations if mesh < FINE_MESH else min(config.iterations, FINE_ITERATIONS)):
            residual = samples.log_intensity - field
            update = RELAXATION * spline.coefficients(residual - sharpened(residual, samples.weight))
            step = spline.at_samples(update)
            field += step
            coefficients += update
            if step.std() < config.tolerance:
                break
    return coefficients


def sharpened(values: Float, weight: Float | None = None) -> Float:
    """Return the expected true log intensity given the observed one: Wiener deconvolution of the histogram.

    Parameters
    ----------
    values : ndarray, (N,)
    weight : ndarray, (N,), optional
        How much each value counts in the histogram.
    """
    low, span = values.min(), np.ptp(values)
    if span <= 0:
        return values
    step = span / (HISTOGRAM_BINS - 1)
    position = (values - low) / step
    lower = np.minimum(position.astype(np.intp), HISTOGRAM_BINS - 2)
    fraction = position - lower
    counted = np.ones(len(values)) if weight is None else weight
    above = counted * fraction
    size = 2 ** int(np.ceil(np.log2(HISTOGRAM_BINS)) + 1)
    offset = (size - HISTOGRAM_BINS) // 2
    histogram = np.zeros(size)
    histogram[offset : offset + HISTOGRAM_BINS] = np.bincount(
        lower, counted - above, HISTOGRAM_BINS
    ) + np.bincount(lower + 1, above, HISTOGRAM_BINS)
    distance = np.minimum(np.arange(size), size - np.arange(size))
    width = SHARPENING_FWHM / step
    gaussian = np.fft.rfft(
        2 * np.sqrt(np.log(2) / np.pi) / width * np.exp(-(distance**2) * 4 * np.log(2) / width**2)
    )
    wiener = np.real(np.conj(gaussian) / (np.conj(gaussian) * gaussian + WIENER_NOISE))
    sharp = np.maximum(np.fft.irfft(np.fft.rfft(histogram) * wiener, size), 0)
    centres = low + (np.arange(size) - offset) * step
    numerator, denominator = (np.fft.irfft(np.fft.rfft(x) * gaussian, size) for x in (centres * sharp, sharp))
    expected = np.divide(numerator, denominator, out=np.zeros(size), where=np.abs(denominator) > 1e-9)
    table = expected[offset : offset + HISTOGRAM_BINS]
    result: Float = table[lower] + (table[lower + 1] - table[lower]) * fraction
    return result


def refined(coefficients: Float) -> Float:
    """Return the coefficients of the same cubic B-spline on a mesh twice as fine.

    Parameters
    ----------
    coefficients : ndarray, (m + 3, m + 3, m + 3)

    Returns
    -------
    ndarray, (2 m + 3, 2 m + 3, 2 m + 3)
    """
    mesh = coefficients.shape[0] - 3
    subdivision = np.zeros((2 * mesh + 3, mesh + 3))
    for old in range(mesh + 3):
        for new, share in zip(range(2 * old - 3, 2 * old + 2), (1, 4, 6, 4, 1), strict=True):
            if 0 <= new < 2 * mesh + 3:
                subdivision[new, old] = share / 8
    return _product(coefficients, (subdivision, subdivision, subdivision))


def evaluate_on_axes(coefficients: Array, axes: list[Float]) -> Array:
    """Evaluate a tensor-product cubic B-spline on the lattice that three axes span.

    Parameters
    ----------
    coefficients : ndarray, (M, M, M)
    axes : list of three ndarray
        Positions along each axis, in 0 to 1; beyond, the value at the edge is kept.

    Returns
    -------
    ndarray, (I, J, K)
        Of the coefficients' type.
    """
    first, second, third = (
        _basis(positions, coefficients.shape[0] - 3).astype(coefficients.dtype) for positions in axes
    )
    return _product(coefficients, (first, second, third))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Samples:
    """Voxels of the head that the field is estimated from, on a lattice over the mask's box.

    Attributes
    ----------
    log_intensity, weight : ndarray, (N,)
        Of the lattice points that are used, and how much each counts.
    position : ndarray, (N,)
        Where they lie on the lattice, as indices into its flattened array.
    axes : tuple of three ndarray
        Positions of the lattice points along each axis, in the unit cube of the spline's domain.
    low, extent : ndarray, (3,)
        The box of voxel indices that maps to the unit cube.
    """

    log_intensity: Float
    weight: Float
    position: NDArray[np.intp]
    axes: tuple[Float, Float, Float]
    low: Float
    extent: Float

    @classmethod
    def of(cls, head: Volume, brain_mask: BrainMask, grid_mm: float) -> Self:
        # Every n-th voxel as it is, not the mean of its surroundings: a mean over 4 mm mixes grey and white
        # matter, and what it blurs the spline then takes for field.
        strides = np.array([max(1, round(grid_mm / spacing)) for spacing in head.spacing_mm])
        sampled = tuple(slice(stride // 2, None, stride) for stride in strides.tolist())
        usable = brain_mask.data[sampled] & (head.data[sampled] > 0)
        count = int(usable.sum())
        dark = float((head.data[brain_mask.data] <= 0).mean()) if brain_mask.data.any() else 0.0
        if count < MIN_VOXELS and dark > MOSTLY:
            raise BiasFieldError(
                f"{dark:.0%} of the brain mask is not above 0, and no multiplicative field follows from that; "
                "add a constant to the scan, or use --bias-field none"
            )
        if count < MIN_VOXELS:
            raise BiasFieldError(
                f"only {count} voxels of about {grid_mm:g} mm lie inside the brain mask; "
                f"at least {MIN_VOXELS} are needed to estimate a bias field"
            )
        # The spline's domain is the box of the mask: everything it can bend serves the brain.
        corners = [np.flatnonzero(usable.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(first, last + 1) for first, last in corners)
        position = np.flatnonzero(usable[box])
        intensity = head.data[sampled][box].ravel()[position].astype(np.float64)
        first, second, third = (np.linspace(0.0, 1.0, last - first + 1) for first, last in corners)
        low, high = (strides * np.array(corners).T + strides // 2).astype(np.float64)
        return cls(
            log_intensity=np.log(intensity),
            # The logarithm of a dark voxel is the noisiest, and it is fluid: little is known from it.
            weight=np.minimum(intensity / np.median(intensity), MOST_WEIGHT),
            position=position,
            axes=(first, second, third),
            low=low,
            extent=np.maximum(high - low, 1.0),
        )

    def unit_axes(self, shape: tuple[int, int, int]) -> list[Float]:
        """Return the positions of all voxels along each axis, those outside the domain at its edge."""
        return [
            np.clip((np.arange(n) - low) / extent, 0.0, 1.0)
            for n, low, extent in zip(shape, self.low, self.extent, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Approximation:
    """Multilevel B-spline approximation (Lee 1997, eq. 5) with everything that does not change precomputed.

    Attributes
    ----------
    bases, cubed : tuple of three ndarray, (points, M)
        The spline's basis along each axis of the lattice, and its third power.
    per_sample : ndarray, (N,)
        Weight of each sample over the sum of its squared basis functions.
    per_knot : ndarray, (M, M, M)
        Sum of the squared basis functions over the samples.
    """

    samples: _Samples
    bases: tuple[Float, Float, Float]
    cubed: tuple[Float, Float, Float]
    per_sample: Float
    per_knot: Float

    @classmethod
    def of(cls, samples: _Samples, mesh: int) -> Self:
        first, second, third = (_basis(positions, mesh) for positions in samples.axes)
        i, j, k = (basis**2 for basis in (first, second, third))
        squares = np.einsum("i,j,k->ijk", i.sum(axis=1), j.sum(axis=1), k.sum(axis=1))
        per_knot = _product(_on_lattice(samples, samples.weight), (i.T, j.T, k.T))
        per_knot[per_knot <= 0] = 1.0
        return cls(
            samples=samples,
            bases=(first, second, third),
            cubed=(first.T**3, second.T**3, third.T**3),
            per_sample=samples.weight / squares.ravel()[samples.position],
            per_knot=per_knot,
        )

    def coefficients(self, values: Float) -> Float:
        """Return the coefficients that approximate values at the samples, (M, M, M)."""
        result: Float = _product(_on_lattice(self.samples, values * self.per_sample), self.cubed)
        return result / self.per_knot

    def at_samples(self, coefficients: Float) -> Float:
        """Return the spline's values at the samples, (N,)."""
        result: Float = _product(coefficients, self.bases).ravel()[self.samples.position]
        return result


def _on_lattice(samples: _Samples, values: Float) -> Float:
    i, j, k = (len(positions) for positions in samples.axes)
    lattice = np.zeros(i * j * k)
    lattice[samples.position] = values
    return lattice.reshape(i, j, k)


def _product(values: Array, matrices: tuple[Array, Array, Array]) -> Array:
    """Multiply an array with a matrix along each of its three axes.

    The axes come in the order that keeps what lies between small: those that shrink it from the last to the first.
    """
    first, second, third = matrices
    result: Array
    if first.shape[0] < first.shape[1]:
        result = np.tensordot(first, np.matmul(second, np.matmul(values, third.T)), axes=(1, 0))
    else:
        result = np.matmul(np.matmul(second, np.tensordot(first, values, axes=(1, 0))), third.T)
    return result


def _basis(positions: Float, mesh: int) -> Float:
    """Return the (P, mesh + 3) matrix of the cubic B-spline along one axis."""
    scaled = np.clip(positions * mesh, 0.0, mesh - 1e-6)
    cell = np.floor(scaled).astype(np.intp)
    x = scaled - cell
    weights = [(1 - x) ** 3, 3 * x**3 - 6 * x**2 + 4, -3 * x**3 + 3 * x**2 + 3 * x + 1, x**3]
    basis = np.zeros((len(positions), mesh + 3))
    np.put_along_axis(basis, cell[:, None] + np.arange(4), np.stack(weights, axis=-1) / 6, axis=1)
    return basis
