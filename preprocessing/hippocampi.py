"""Where the hippocampi of a head are and how large, in native space, and whether the outline can be believed.

Small boxes are cut around where the affine registration expects them, turned like the template but not scaled, and a
network says of each voxel how probably it is hippocampus. It knows left hippocampi: boxes of the right side are
mirrored. The box then moves to what was found, and the network sees it again, twice, from two places a few voxels
apart. The volume is the sum of the probabilities: a voxel that is half hippocampus counts as half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import Affine, Grid, Volume, inverse_of
from brainstage.preprocessing.resampling import (
    box_holding,
    corners_around,
    interpolated,
    placed,
    resampled,
)

FRAME_SHAPE: Final = (40, 56, 40)
"""Voxels of what the network sees: left to right, back to front, bottom to top."""
FRAME_MM: Final = 1.0
APART: Final = 4
"""Voxels between the two places along each axis: half a step of the network's coarsest level."""
BOX_SHAPE: Final = (44, 60, 44)
"""That holds the frame in both places."""
CENTRES_MM: Final[Mapping[str, tuple[float, float, float]]] = {
    "left": (-27.0, -22.0, -14.0),
    "right": (27.0, -22.0, -14.0),
}
"""Of the hippocampi in the template."""
MOVES: Final = 2
NEAR_MM: Final = 1.5
"""The box is not moved where the hippocampus found lies no farther from its centre than this."""
AROUND_VOXELS: Final = 2
"""What lies within so many voxels of the largest piece belongs to it: its soft edge."""

Segment = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised frames around left hippocampi (N, D, H, W) to probabilities (N, D, H, W)."""
_FIRST: Final = tuple(slice(0, n) for n in FRAME_SHAPE)
_SECOND: Final = tuple(slice(APART, n + APART) for n in FRAME_SHAPE)
_MIDDLE: Final = tuple(slice(APART // 2, n + APART // 2) for n in FRAME_SHAPE)
_CENTRE: Final = (np.array(FRAME_SHAPE) - 1) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Hippocampus:
    """One hippocampus as it was found.

    Attributes
    ----------
    probability : Volume
        0 to 1 in a box of 1 mm voxels around it, native space; 0 outside the largest piece.
    volume_ml : float
        Sum of the probabilities.
    quality : mapping
        What :mod:`brainstage.preprocessing.hippocampus_quality` judges it by; None where it makes no sense.
    """

    probability: Volume
    volume_ml: float
    quality: Mapping[str, float | None]

    def inside(self, grid: Grid) -> NDArray[np.bool_]:
        """Return which voxels of a native grid are mostly hippocampus, (I, J, K)."""
        inside: NDArray[np.bool_] = placed(self.probability, grid) >= 0.5
        return inside


def normalised(box: NDArray[np.float32], shown: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a box on the network's scale: darkest 0 and brightest 1 of what shows tissue, clipped softly beyond.

    Parameters
    ----------
    box : ndarray, (D, H, W) float32
    shown : ndarray, (D, H, W) bool
        Voxels within the field of view that stripping did not empty.
    """
    values = box[shown] if shown.any() else box
    low, high = np.percentile(values, (1.0, 99.0))
    scaled: NDArray[np.float32] = np.clip((box - low) / (high - low + 1e-6), -0.3, 2.0).astype(np.float32)
    return scaled


def find_hippocampi(
    head: Volume, native_to_template: Affine, segment: Segment
) -> dict[str, Hippocampus | None]:
    """Return the hippocampi by side, ``left`` and ``right``; None where the network finds none.

    Parameters
    ----------
    head : Volume
        Native space, bias-corrected; whole or stripped.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm, affine.
    segment : callable
        The network: :func:`brainstage.models.hippocampus_network.hippocampus_segmenter`.
    """
    turn, background = _turn_of(native_to_template), head.data.min()
    to_native = inverse_of(native_to_template)
    expected = {side: to_native[:3, :3] @ np.array(at) + to_native[:3, 3] for side, at in CENTRES_MM.items()}
    centres = dict(expected)
    moving = list(CENTRES_MM)
    for _ in range(MOVES):
        if not moving:
            break
        boxes = [_box(head, _grid(turn, centres[side], side), background)[0][_MIDDLE] for side in moving]
        for side, probability in zip(tuple(moving), segment(np.stack(boxes)), strict=True):
            piece = _largest(probability)
            off = np.zeros(3) if piece is None else np.array(ndimage.center_of_mass(piece)) - _CENTRE
            if np.linalg.norm(off) * FRAME_MM <= NEAR_MM:
                moving.remove(side)
            else:
                centres[side] = centres[side] + _axes(turn, side) @ off * FRAME_MM
    grids = {side: _grid(turn, centre, side) for side, centre in centres.items()}
    cut = {side: _box(head, grid, background) for side, grid in grids.items()}
    both = opinions(segment, np.stack([box for box, _ in cut.values()]))
    return {
        side: _hippocampus(
            both[:, n],
            cut[side],
            grids[side],
            native_to_template[:3, :3] @ (centres[side] - expected[side]),
        )
        for n, side in enumerate(cut)
    }


def opinions(segment: Segment, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the network says from each of the two places, (2, N, D, H, W), like the boxes.

    At the rim of a box, which only one of the two sees, that one stands for both.

    Parameters
    ----------
    segment : callable
    boxes : ndarray, (N, D, H, W) float32
        Normalised, of :data:`BOX_SHAPE`.
    """
    said = segment(np.concatenate([boxes[:, *_FIRST], boxes[:, *_SECOND]]))
    both = np.full((2, *boxes.shape), np.nan, dtype=np.float32)
    both[0][:, *_FIRST] = said[: len(boxes)]
    both[1][:, *_SECOND] = said[len(boxes) :]
    filled: NDArray[np.float32] = np.where(np.isnan(both), both[::-1], both)
    return np.nan_to_num(filled)  # corners that neither sees


def _turn_of(native_to_template: Affine) -> NDArray[np.float64]:
    """Return the rotation whose columns are the template's axes in native space, (3, 3)."""
    u, _, v = np.linalg.svd(inverse_of(native_to_template)[:3, :3])
    turn: NDArray[np.float64] = u @ v
    return turn


def _axes(turn: NDArray[np.float64], side: str) -> NDArray[np.float64]:
    """Return the directions of a box's axes in native space, (3, 3): mirrored on the right."""
    axes: NDArray[np.float64] = turn @ np.diag([-1.0 if side == "right" else 1.0, 1.0, 1.0])
    return axes


def _grid(turn: NDArray[np.float64], centre_mm: NDArray[np.float64], side: str) -> Grid:
    matrix = np.eye(4)
    matrix[:3, :3] = _axes(turn, side) * FRAME_MM
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ ((np.array(BOX_SHAPE) - 1) / 2)
    return Grid(shape=BOX_SHAPE, voxel_to_ras=matrix)


def _box(head: Volume, grid: Grid, background: np.float32) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the normalised values of a box, and which of its voxels show something."""
    part = _part(head, grid)
    if part is None:
        return np.zeros(grid.shape, dtype=np.float32), np.zeros(grid.shape, dtype=bool)
    values = resampled(part, grid).data
    seen = (part.data != background).astype(np.float32)
    shown = interpolated(seen, part.voxel_to_ras, grid, None) > 0.5
    return normalised(values, shown), shown


def _part(head: Volume, grid: Grid) -> Volume | None:
    """Return the voxels of a head that a box needs; None where it lies outside."""
    to_index = inverse_of(head.voxel_to_ras) @ grid.voxel_to_ras
    box = box_holding(corners_around(grid.shape), to_index, head.shape, margin=1)
    if box is None or min(head.data[box].shape) < 2:
        return None
    return Volume(data=head.data[box], voxel_to_ras=head.grid.part(box).voxel_to_ras)


def _largest(probability: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    pieces, count = ndimage.label(probability > 0.5)
    if not count:
        return None
    largest: NDArray[np.bool_] = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return largest


def _hippocampus(
    both: NDArray[np.float32],
    box: tuple[NDArray[np.float32], NDArray[np.bool_]],
    grid: Grid,
    away_mm: NDArray[np.float64],
) -> Hippocampus | None:
    mean = both.mean(axis=0)
    piece = _largest(mean)
    if piece is None:
        return None
    around = ndimage.binary_dilation(piece, iterations=AROUND_VOXELS)
    soft = np.where(around, mean, 0.0).astype(np.float32)
    image, shown = box
    return Hippocampus(
        probability=Volume(data=soft, voxel_to_ras=grid.voxel_to_ras),
        volume_ml=float(soft.sum(dtype=np.float64)) * grid.voxel_volume_mm3 / 1000.0,
        quality=_quality(both, piece, image, shown, away_mm),
    )


def _quality(
    both: NDArray[np.float32],
    piece: NDArray[np.bool_],
    image: NDArray[np.float32],
    shown: NDArray[np.bool_],
    away_mm: NDArray[np.float64],
) -> dict[str, float | None]:
    mean = both.mean(axis=0)
    rim = np.ones_like(piece)
    rim[1:-1, 1:-1, 1:-1] = False
    inside = mean > 0.5
    ring = ndimage.binary_dilation(piece, iterations=2) & ~ndimage.binary_dilation(piece) & shown
    core = ndimage.binary_erosion(piece)
    spread = np.cov(np.argwhere(piece).T) * FRAME_MM**2 if piece.sum() > 3 else np.zeros((3, 3))
    axes_mm = 4.0 * np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 0.0))
    first, second = both > 0.5
    return {
        "certainty": float(mean[piece].mean()),
        "uncertain_share": float((mean * (1.0 - mean)).sum() / mean.sum()),
        "agreement": float(2 * (first & second).sum() / (first.sum() + second.sum())),
        "rim_share": float((piece & rim).sum() / piece.sum()),
        "cut_share": float((piece & ndimage.binary_dilation(~shown)).sum() / piece.sum()),
        "other_pieces": float((inside & ~piece).sum() / piece.sum()),
        "away_mm": float(np.linalg.norm(away_mm)),
        "length_mm": float(axes_mm[2]),
        "thickness_mm": float(axes_mm[0]),
        "inside_sd": float(image[core].std()) if core.any() else None,
        "contrast": float(np.abs(image[ring] - image[core].mean()).mean())
        if core.any() and ring.any()
        else None,
    }
