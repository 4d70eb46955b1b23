"""Heads that moved during the scan: k-space put together from several poses, as a scanner would.

A scanner samples k-space line after line. Each line shows the head as it lay at that time, so a head that moves
leaves an image whose spatial frequencies lie apart: ringing, ghosts and blur, depending on the order of the lines.

References
----------
Shaw 2019 (10.1016/j.neuroimage.2020.117010): motion as composed k-space segments of moved images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Kind = Literal["few", "many", "lines"]
Order = Literal["linear", "centric", "interleaved", "elliptical"]

KINDS: Final[tuple[Kind, ...]] = ("few", "many", "lines")
ORDERS: Final[tuple[Order, ...]] = ("linear", "centric", "interleaved", "elliptical")
BLOCK_LINES: Final = 12
"""Lines acquired in one pose where the head shifts from block to block."""
STRETCHES: Final = 8
"""Of a head that wanders: it lies elsewhere in each."""

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a scanner walks through k-space.

    Attributes
    ----------
    axis : int
        Slow phase-encoding axis of the image: its lines are acquired one after the other.
    order : str
        ``linear`` from one end of k-space to the other, ``centric`` from its centre outwards, ``interleaved`` every
        other line first; ``elliptical`` from the centre outwards over both phase-encoding axes of a 3D scan.
    partial_fourier : float
        Share of the lines that is acquired, above 0.5; the others are taken from their mirrored ones.
    """

    axis: int
    order: Order = "linear"
    partial_fourier: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Poses:
    """Where a head lies during a scan.

    Attributes
    ----------
    until : ndarray, (P - 1,) float64
        When each pose but the last ends, as a share of the scan.
    rotations_deg, shifts_mm : ndarray, (P, 3) float64
        From the pose in which the centre of k-space is acquired.
    """

    until: NDArray[np.float64]
    rotations_deg: NDArray[np.float64]
    shifts_mm: NDArray[np.float64]


def with_motion(
    head: Image,
    spacing_mm: Sequence[float],
    *,
    kind: Kind,
    strength: float,
    sampling: Sampling,
    rng: np.random.Generator,
) -> Image:
    """Return the magnitude image of a head that moved while it was scanned.

    Parameters
    ----------
    head : ndarray, (I, J, K) float32
        Magnitude image of a still head.
    spacing_mm : sequence of 3 floats
    kind : str
        ``few``: one to three sudden moves; ``many``: a head that wanders and lies elsewhere in each of eight
        stretches; ``lines``: shifts along the slow axis between blocks of twelve lines, without turns.
    strength : float
        Largest excursion from the pose at the centre of k-space: mm and, but for ``lines``, degrees as well.
    sampling : Sampling
    rng : numpy.random.Generator
    """
    times = acquisition_times(head.shape, sampling)
    centre = float(times.flat[0])
    poses = drawn_poses(
        kind, strength, centre=centre, lines=head.shape[sampling.axis], axis=sampling.axis, rng=rng
    )
    pose_of_line = np.searchsorted(poses.until, times, side="right")
    axes = tuple(a for a in range(3) if times.shape[a] > 1)
    spectrum = np.zeros(head.shape, dtype=np.complex64)
    for pose in np.unique(pose_of_line):
        moved = moved_rigidly(head, spacing_mm, poses.rotations_deg[pose], poses.shifts_mm[pose])
        np.copyto(spectrum, fft.fftn(moved, axes=axes), where=pose_of_line == pose, casting="same_kind")
    magnitude: Image = np.abs(fft.ifftn(spectrum, axes=axes))
    return magnitude


def acquisition_times(shape: tuple[int, ...], sampling: Sampling) -> NDArray[np.float64]:
    """Return when each line of k-space is acquired, as a share of the scan from 0 to 1.

    Returns
    -------
    ndarray
        In the order of an unshifted transform; its shape is 1 along the axes that are read out at once.
    """
    axis = sampling.axis
    second = (axis + 1) % 3
    slow, other = (np.round(np.fft.fftfreq(shape[a]) * shape[a]).astype(int) for a in (axis, second))
    if sampling.order == "elliptical":
        apart = np.hypot(slow[:, np.newaxis] / shape[axis], other / shape[second])
        place = apart + 1e-6 * (slow[:, np.newaxis] < 0)
    else:
        place = _place_in_order(slow, sampling.order)[:, np.newaxis]
    missing = slow < -(sampling.partial_fourier - 0.5) * shape[axis]
    place = np.where(missing[:, np.newaxis], np.inf, place)
    rank = np.argsort(np.argsort(place, axis=None, kind="stable"), kind="stable").reshape(place.shape)
    times = (rank + 0.5) / np.isfinite(place).sum()
    # The image is real: a line that is not acquired is the conjugate of its mirrored one, and moves with it.
    mirrored = times[-np.arange(len(slow))][:, -np.arange(place.shape[1])]
    times = np.where(missing[:, np.newaxis], mirrored, times)
    if place.shape[1] == 1:
        return times.reshape([-1 if a == axis else 1 for a in range(3)])
    laid: NDArray[np.float64] = times if axis < second else times.T
    return laid.reshape([1 if a not in (axis, second) else shape[a] for a in range(3)])


def _place_in_order(line: NDArray[np.intp], order: Order) -> NDArray[np.float64]:
    """Return what sorts the lines, each given by its signed number, into the order of their acquisition."""
    place = line.astype(np.float64)
    if order == "centric":
        place = np.abs(place) + 0.25 * (place < 0)
    if order == "interleaved":
        place += len(line) * (place % 2)
    return place


def drawn_poses(
    kind: Kind, strength: float, *, centre: float, lines: int, axis: int, rng: np.random.Generator
) -> Poses:
    """Draw the poses of a head during a scan; parameters as of :func:`with_motion`.

    `centre` is when the centre of k-space is acquired, `lines` the number of lines along the slow axis.
    """
    if kind == "lines":
        until = np.arange(BLOCK_LINES, lines, BLOCK_LINES) / lines
        shifts = np.zeros((len(until) + 1, 3))
        shifts[:, axis] = rng.uniform(-strength, strength, len(shifts))
        shifts -= shifts[np.searchsorted(until, centre, side="right")]
        return Poses(
            until=until,
            rotations_deg=np.zeros_like(shifts),
            shifts_mm=np.clip(shifts, -strength, strength),
        )
    if kind == "few":
        until = np.sort(rng.uniform(0.15, 0.85, int(rng.integers(1, 4))))
    else:
        until = (np.arange(1, STRETCHES) + rng.uniform(-0.3, 0.3, STRETCHES - 1)) / STRETCHES
    now = np.searchsorted(until, centre, side="right")
    return Poses(
        until=until,
        rotations_deg=_excursions(kind, len(until) + 1, now, strength, rng),
        shifts_mm=_excursions(kind, len(until) + 1, now, strength, rng),
    )


def _excursions(
    kind: Kind, poses: int, now: np.intp, strength: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return a walk of (poses, 3) that is 0 at pose `now` and goes `strength` far from there."""
    steps = rng.normal(size=(poses, 3))
    walk = np.cumsum(steps, axis=0) if kind == "few" else steps + 0.5 * np.cumsum(steps, axis=0)
    walk = walk - walk[now]
    return np.asarray(walk * strength / np.linalg.norm(walk, axis=1).max())


def moved_rigidly(
    image: Image, spacing_mm: Sequence[float], rotation_deg: Sequence[float], shift_mm: Sequence[float]
) -> Image:
    """Return an image turned about its centre and shifted, without the blur of an interpolation.

    Each turn is three shears, each shear shifts lines by the Fourier theorem (Unser 1995, 10.1109/83.465102).

    Parameters
    ----------
    image : ndarray, (I, J, K) float32
    spacing_mm : sequence of 3 floats
    rotation_deg, shift_mm : sequence of 3 floats
        About and along the axes of the image; under 20 degrees.
    """
    left = [float(shift) for shift in shift_mm]
    for turned, degrees in enumerate(rotation_deg):
        if degrees == 0.0:
            continue
        i, j = (a for a in range(3) if a != turned)
        half, full = -np.tan(np.deg2rad(degrees) / 2.0), np.sin(np.deg2rad(degrees))
        image = _sheared(image, i, j, spacing_mm, half, left[i])
        image = _sheared(image, j, i, spacing_mm, full, left[j])
        image = _sheared(image, i, j, spacing_mm, half, 0.0)
        left[i] = left[j] = 0.0
    for i in range(3):
        if left[i]:
            image = _sheared(image, i, (i + 1) % 3, spacing_mm, 0.0, left[i])
    return image


def _sheared(
    image: Image, axis: int, along: int, spacing_mm: Sequence[float], slope: float, shift_mm: float
) -> Image:
    """Shift each line of an axis by `slope` times its place along another, and by `shift_mm`."""
    length, other = image.shape[axis], image.shape[along]
    place_mm = (np.arange(other) - (other - 1) / 2.0) * spacing_mm[along]
    voxels = (slope * place_mm + shift_mm) / spacing_mm[axis]
    phase = np.exp(-2j * np.pi * np.outer(np.arange(length // 2 + 1) / length, voxels)).astype(np.complex64)
    shape = [1, 1, 1]
    shape[axis], shape[along] = phase.shape
    turned = (phase if axis < along else phase.T).reshape(shape)
    sheared: Image = fft.irfft(fft.rfft(image, axis=axis) * turned, n=length, axis=axis)
    return sheared
