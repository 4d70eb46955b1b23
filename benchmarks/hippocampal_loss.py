"""Known losses of a labelled hippocampus in a real head: the truth for what a measure of volume makes of them.

Nothing here is shared with what trains the network or makes synthetic heads. The truth is not what was asked for but
what came of it: the label goes the same way as the image, on a grid several times finer than the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import Volume

Kind = Literal["thinner", "smaller", "fluid"]
KINDS: Final[tuple[Kind, ...]] = ("thinner", "smaller", "fluid")
"""``thinner``: tissue moves towards the hippocampus' curved centre line, and what lies around is stretched;
``smaller``: towards its centre, so that it gets shorter as well; ``fluid``: nothing moves, and what is lost becomes
fluid, first where the temporal horn and the choroid fissure lie."""

FADE_MM: Final = 12.0
"""From the surface of the hippocampus to where nothing moves any more."""
AROUND_MM: Final = 16.0
FINE_MM: Final = 0.5
SOFTNESS_MM: Final = 0.8
"""SD by which the staircase of a label's voxels is smoothed before it is looked at in between them."""
END_MM: Final = 5.0
"""The centre line ends so far before the ends of the hippocampus: about its radius."""
STEPS: Final = 3
CORRECTIONS: Final = 2
"""Of the strength of the flow, which end within a tenth of a point of the loss that is asked for."""
CONTRACTED_FROM_MM: Final = 2.5
"""Outside the label: the contracted hippocampus does not reach farther."""
SPARED: Final = 0.1
"""How fast fluid takes the side that faces the white matter below, against the one that faces the horn."""
HORN: Final = (1.0, 0.0, 1.0)
"""Where the horn lies, seen from the hippocampus: outwards, forwards, up."""

Points = NDArray[np.float64]
"""Places in mm along the axes of a box, (3, N)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lost:
    """A head with a smaller hippocampus.

    Attributes
    ----------
    head : Volume
    loss : float
        Share of the hippocampus' volume that is gone; measured.
    filled : ndarray, (I, J, K) float64
        Share of each voxel of the structure's box that became fluid.
    """

    head: Volume
    loss: float
    filled: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CentreLine:
    """A cubic curve along the longest axis of a structure.

    Attributes
    ----------
    middle, axis : ndarray, (3,)
    bend : ndarray, (4, 3)
        Coefficients of the offset from the straight axis, the highest power first.
    ends : tuple of float
        Where along the axis it ends, mm from the middle.
    """

    middle: NDArray[np.float64]
    axis: NDArray[np.float64]
    bend: NDArray[np.float64]
    ends: tuple[float, float]

    def nearest(self, points: Points) -> Points:
        """Return the point of the line beside each of `points`."""
        along = np.clip(self.axis @ (points - self.middle[:, None]), *self.ends)
        offset = np.stack([np.polyval(self.bend[:, a], along) for a in range(3)])
        found: Points = self.middle[:, None] + self.axis[:, None] * along + offset
        return found


class Structure:
    """A hippocampus in a box of a head's voxels.

    Parameters
    ----------
    head : Volume
    label : ndarray, (I, J, K) bool
        On the head's grid.
    """

    def __init__(self, head: Volume, label: NDArray[np.bool_]) -> None:
        if label.shape != head.shape or not label.any():
            raise ValueError(
                f"a label of shape {label.shape} with {label.sum()} voxels does not fit {head!r}"
            )
        self.spacing_mm = np.array(head.spacing_mm)
        self.box = _box(label, np.ceil(AROUND_MM / self.spacing_mm).astype(int))
        self.image = head.data[self.box].astype(np.float64)
        self.label = label[self.box]
        self._soft = ndimage.gaussian_filter(self.label.astype(np.float64), SOFTNESS_MM / self.spacing_mm)
        self.outside_mm = ndimage.distance_transform_edt(~self.label, sampling=self.spacing_mm)

    @cached_property
    def factors(self) -> tuple[int, int, int]:
        """Fine points in a voxel, along each axis."""
        i, j, k = np.maximum(1, np.ceil(self.spacing_mm / FINE_MM - 1e-6)).astype(int)
        return int(i), int(j), int(k)

    @cached_property
    def tight(self) -> tuple[slice, slice, slice]:
        """The voxels of the box that hold fine points."""
        return _box(self.label, np.ceil((CONTRACTED_FROM_MM + 0.5) / self.spacing_mm).astype(int))

    @cached_property
    def fine_mm(self) -> Points:
        """Places of the fine points, those of a voxel together in blocks of the grid."""
        axes = [
            (np.arange((s.stop - s.start) * f) + 0.5) / f - 0.5 + s.start
            for s, f in zip(self.tight, self.factors, strict=True)
        ]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
        places: Points = grid * self.spacing_mm[:, None]
        return places

    @cached_property
    def level(self) -> float:
        """The value of the smoothed label at its surface: inside it lies the volume of the label."""
        values = np.sort(self.soft_at(self.fine_mm))[::-1]
        return float(values[int(self.label.sum()) * int(np.prod(self.factors))])

    @cached_property
    def fine_inside(self) -> NDArray[np.bool_]:
        """Which fine points lie in the hippocampus."""
        inside: NDArray[np.bool_] = self.soft_at(self.fine_mm) > self.level
        return inside

    @cached_property
    def line(self) -> CentreLine:
        """The centre line."""
        points = self.fine_mm[:, self.fine_inside]
        middle = points.mean(axis=1)
        _, vectors = np.linalg.eigh(np.cov(points))
        axis = vectors[:, -1]
        along = axis @ (points - middle[:, None])
        rest = points - middle[:, None] - axis[:, None] * along
        bend = np.polynomial.polynomial.polyfit(along / 10.0, rest.T, 3)[::-1]
        bend = bend / 10.0 ** np.arange(3, -1, -1)[:, None]
        ends = (float(along.min()) + END_MM, float(along.max()) - END_MM)
        return CentreLine(middle=middle, axis=axis, bend=bend, ends=ends if ends[0] < ends[1] else (0.0, 0.0))

    @cached_property
    def centre(self) -> CentreLine:
        """The centre, as a line without length."""
        return CentreLine(
            middle=self.line.middle, axis=self.line.axis, bend=np.zeros((4, 3)), ends=(0.0, 0.0)
        )

    def soft_at(self, points: Points) -> NDArray[np.float64]:
        """Return the smoothed label at places, trilinear."""
        return self._at(self._soft, points)

    def fade_at(self, points: Points) -> NDArray[np.float64]:
        """Return how far places move with the hippocampus: 1 in it, 0 from :data:`FADE_MM` on."""
        away = np.clip(self._at(self.outside_mm, points) / FADE_MM, 0.0, 1.0)
        faded: NDArray[np.float64] = 0.5 * (1.0 + np.cos(np.pi * away))
        return faded

    def voxels_mm(self, chosen: NDArray[np.bool_]) -> Points:
        """Return the places of voxels of the box."""
        places: Points = np.argwhere(chosen).T * self.spacing_mm[:, None]
        return places

    def image_at(self, points: Points) -> NDArray[np.float64]:
        """Return the image at places, by cubic splines: lines, or splines cut off where they overshoot, lose volume.

        At 2 mm, of a contraction by a fifth lines make one by a sixth.
        """
        return np.maximum(self._at(self.image, points, order=3), 0.0)

    def _at(self, values: NDArray[np.float64], points: Points, order: int = 1) -> NDArray[np.float64]:
        index = points / self.spacing_mm[:, None]
        found: NDArray[np.float64] = ndimage.map_coordinates(values, index, order=order, mode="nearest")
        return found


def with_loss(
    structure: Structure, head: Volume, loss: float, kind: Kind, *, outwards: int, fluid: float
) -> Lost:
    """Return a head whose hippocampus has lost a share of its volume.

    Parameters
    ----------
    structure : Structure
        Of the hippocampus, in this head or in one that differs from it elsewhere.
    head : Volume
    loss : float
        Wanted, 0 to 0.5.
    kind : str
        One of :data:`KINDS`.
    outwards : int
        The way to the person's side along the first axis: -1 for a left hippocampus of an RAS head, 1 for a right one.
    fluid : float
        Intensity of fluid; for ``fluid``.
    """
    if not 0.0 <= loss <= 0.5:
        raise ValueError(f"a loss lies between 0 and 0.5, not {loss}")
    filled = np.zeros_like(structure.image)
    if kind == "fluid":
        filled, found = _filled(structure, loss, outwards)
        core = ndimage.binary_erosion(structure.label)
        change = filled * (fluid - np.median(structure.image[core if core.any() else structure.label]))
    else:
        change, found = _contracted(
            structure, loss, structure.line if kind == "thinner" else structure.centre
        )
    data = head.data.copy()
    data[structure.box] += change.astype(np.float32)
    return Lost(head=head.with_data(data), loss=found, filled=filled)


def _contracted(structure: Structure, loss: float, line: CentreLine) -> tuple[NDArray[np.float64], float]:
    """Return what a flow towards a line changes in the image of the box, and how much of the label it takes away."""
    near = structure.fine_mm[:, _near(structure)]
    whole = structure.fine_inside.sum()

    def left(rate: float) -> float:
        inside = structure.soft_at(_traced_back(structure, near, rate, line)) > structure.level
        return float(inside.sum()) / float(whole)

    if loss == 0.0:
        return np.zeros_like(structure.image), 0.0
    rate = -0.5 * float(np.log(1.0 - loss))
    for _ in range(CORRECTIONS):
        rate *= float(np.log(1.0 - loss) / np.log(left(rate)))
    moving = structure.outside_mm < FADE_MM
    change = np.zeros_like(structure.image)
    sources = _traced_back(structure, structure.voxels_mm(moving), rate, line)
    change[moving] = structure.image_at(sources) - structure.image[moving]
    return change, 1.0 - left(rate)


def _traced_back(structure: Structure, points: Points, rate: float, line: CentreLine) -> Points:
    """Return where what is at places now came from: the flow backwards, by the midpoint rule."""

    def velocity(at: Points) -> Points:
        return (at - line.nearest(at)) * structure.fade_at(at)

    step = rate / STEPS
    for _ in range(STEPS):
        points = points + step * velocity(points + 0.5 * step * velocity(points))
    return points


def _near(structure: Structure) -> NDArray[np.bool_]:
    away = structure._at(structure.outside_mm, structure.fine_mm)  # noqa: SLF001 - of this module
    near: NDArray[np.bool_] = away <= CONTRACTED_FROM_MM
    return near


def _filled(structure: Structure, loss: float, outwards: int) -> tuple[NDArray[np.float64], float]:
    """Return the share of each voxel of the box that becomes fluid, and how much of the label that is."""
    shape = [(s.stop - s.start) * f for s, f in zip(structure.tight, structure.factors, strict=True)]
    inside = structure.fine_inside.reshape(shape)
    fine_spacing = structure.spacing_mm / structure.factors
    depth = ndimage.distance_transform_edt(inside, sampling=fine_spacing).ravel()
    radius = structure.fine_mm - structure.line.nearest(structure.fine_mm)
    horn = np.array(HORN) * (outwards, 1, 1)
    facing = (horn @ radius) / (np.linalg.norm(horn) * np.linalg.norm(radius, axis=0) + 1e-6)
    speed = SPARED + (1.0 - SPARED) * 0.5 * (1.0 + facing)
    arrival = np.where(structure.fine_inside, depth / speed, np.inf)
    count = round(loss * int(structure.fine_inside.sum()))
    gone = np.zeros(arrival.shape, dtype=bool)
    gone[np.argsort(arrival, kind="stable")[:count]] = True
    filled = np.zeros_like(structure.image)
    filled[structure.tight] = _block_means(gone.reshape(shape).astype(np.float64), structure.factors)
    return filled, count / int(structure.fine_inside.sum())


def _block_means(values: NDArray[np.float64], factors: Sequence[int]) -> NDArray[np.float64]:
    i, j, k = factors
    a, b, c = values.shape
    means: NDArray[np.float64] = values.reshape(a // i, i, b // j, j, c // k, k).mean(axis=(1, 3, 5))
    return means


def _box(label: NDArray[np.bool_], margin: NDArray[np.integer]) -> tuple[slice, slice, slice]:
    where = np.argwhere(label)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + 1 + margin, label.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k
