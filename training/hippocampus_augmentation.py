"""What happens to a crop before the hippocampus network sees it: the people, scanners and poses that no crop shows.

The hand-drawn crops are of people up to about 65 without dementia, at 1 mm and whole. Those this is for have shrunken
and tilted hippocampi beside wide temporal horns, low contrast, thick slices, no skull, or a contrast agent in their
vessels. Labels go through the same deformation as the image and stay soft at their edges, so that the sum of what
the network says is a volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from brainstage.preprocessing.hippocampi import FRAME_SHAPE, normalised

Array = NDArray[np.float32]

FLUID_PERCENTILE: Final = 4.0
HORN_DISTANCE_MM: Final = 2.5
"""Fluid nearer to the hippocampus than this is that of the temporal horn or of the fissure beside it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """A hand-drawn crop of 1 mm voxels, and what of it the recipes ask for again and again.

    Attributes
    ----------
    image, label : ndarray, (I, J, K) float32
    distance_mm : ndarray, (I, J, K) float32
        To the surface of the hippocampus, negative inside.
    axis : ndarray, (J, 2) float32
        Centre of the hippocampus in x and z in each coronal slice, voxels.
    horn_mm : ndarray, (I, J, K) float32
        Distance to the fluid beside the hippocampus.
    fluid, bright : float
        Intensities of fluid and of white matter.
    """

    image: Array
    label: Array
    distance_mm: Array
    axis: Array
    horn_mm: Array
    fluid: float
    bright: float


def crop_of(image: Array, label: NDArray[np.bool_]) -> Crop:
    """Measure a crop once.

    Parameters
    ----------
    image : ndarray, (I, J, K) float32
        1 mm voxels.
    label : ndarray, (I, J, K) bool
        The hippocampus.
    """
    outside = ndimage.distance_transform_edt(~label) - 0.5
    inside = ndimage.distance_transform_edt(label) - 0.5
    distance = np.where(label, -inside, outside).astype(np.float32)
    fluid, bright = np.percentile(image, [FLUID_PERCENTILE, 95.0])
    horn = (image < fluid + 0.25 * (bright - fluid)) & (distance > 0) & (distance < HORN_DISTANCE_MM)
    horn_mm = ndimage.distance_transform_edt(~horn) if horn.any() else np.full(image.shape, 99.0)
    return Crop(
        image=image.astype(np.float32),
        label=label.astype(np.float32),
        distance_mm=distance,
        axis=_axis(label),
        horn_mm=horn_mm.astype(np.float32),
        fluid=float(fluid),
        bright=float(bright),
    )


def augmented(crop: Crop, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return an image, its label and what of them is known, (D, H, W) float32 each, in the network's frame.

    Parameters
    ----------
    crop : Crop
    rng : numpy.random.Generator
    """
    places = _posed(crop, rng)
    places = _contracted(crop, places, rng)
    image, label, known_edge, distance, horn = (
        _sampled(values, places, padding)
        for values, padding in (
            (crop.image, "border"),
            (crop.label, "zeros"),
            (np.ones_like(crop.image), "zeros"),
            (crop.distance_mm, "border"),
            (crop.horn_mm, "border"),
        )
    )
    known = known_edge > 0.5
    image = (image - crop.fluid) / max(crop.bright - crop.fluid, 1e-6)
    image, label = _widened_horn(image, label, horn, rng)
    image = _tissue_contrast(image, rng)
    image = _contrast_agent(image, distance, rng)
    image = _lesions(image, distance, rng)
    image = _coarse(image, rng)
    image = _bias_and_noise(image, rng)
    image, shown = _surroundings(image, known, distance, rng)
    image = normalised(image, shown)
    if rng.random() < 0.5:
        image = image * np.float32(np.exp(rng.uniform(-0.25, 0.25))) + np.float32(rng.uniform(-0.1, 0.1))
    return image.astype(np.float32), label.astype(np.float32), known.astype(np.float32)


def _axis(label: NDArray[np.bool_]) -> Array:
    """Return the smoothed centre of the label in each coronal slice; its nearest where there is none."""
    weights = label.sum(axis=(0, 2)).astype(np.float64)
    x, z = np.arange(label.shape[0]), np.arange(label.shape[2])
    with np.errstate(invalid="ignore"):
        centre_x = (label.sum(axis=2) * x[:, None]).sum(axis=0) / weights
        centre_z = (label.sum(axis=0) * z[None, :]).sum(axis=1) / weights
    present = np.flatnonzero(weights)
    slices = np.arange(label.shape[1])
    centres = np.stack([np.interp(slices, present, one[present]) for one in (centre_x, centre_z)], axis=1)
    smooth: Array = ndimage.gaussian_filter1d(centres, 3.0, axis=0, mode="nearest").astype(np.float32)
    return smooth


def _posed(crop: Crop, rng: np.random.Generator) -> Array:
    """Return where each voxel of the frame lies in the crop, (3, D, H, W): turned, scaled, moved and bent."""
    turn = rng.uniform(-0.45, 0.45, 3) * rng.random()
    size = np.exp(rng.uniform(-0.22, 0.22) * rng.random()) * np.exp(rng.uniform(-0.1, 0.1, 3) * rng.random())
    cx, cy, cz = np.cos(turn)
    sx, sy, sz = np.sin(turn)
    matrix = (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    ) @ np.diag(size)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in FRAME_SHAPE), indexing="ij"))
    centred = (
        grid - ((np.array(FRAME_SHAPE) - 1) / 2 + rng.uniform(-7, 7, 3) * rng.random())[:, None, None, None]
    )
    places = np.tensordot(matrix, centred, 1) + ((np.array(crop.image.shape) - 1) / 2)[:, None, None, None]
    if rng.random() < 0.6:
        places = places + rng.uniform(0.0, 2.0) * _smooth_noise((3, *FRAME_SHAPE), 10, rng)
    return places.astype(np.float32)


def _contracted(crop: Crop, places: Array, rng: np.random.Generator) -> Array:
    """Shrink or swell the hippocampus across its axis, and along it, within surroundings that follow ever less."""
    if rng.random() > 0.6:
        return places
    across, along = np.exp(rng.uniform(-0.28, 0.12)), np.exp(rng.uniform(-0.12, 0.05))
    fade_mm = rng.uniform(5.0, 12.0)
    y = np.clip(places[1], 0, crop.axis.shape[0] - 1)
    below = np.floor(y).astype(int)
    above = np.minimum(below + 1, crop.axis.shape[0] - 1)
    part = (y - below)[..., None]
    axis = (1 - part) * crop.axis[below] + part * crop.axis[above]
    distance = _sampled(crop.distance_mm, places, "border")
    fade = np.clip(1.0 - np.maximum(distance, 0.0) / fade_mm, 0.0, 1.0) ** 2
    if rng.random() < 0.5:  # head, body and tail are not lost alike
        middle, reach = rng.uniform(0, crop.axis.shape[0]), rng.uniform(8, 30)
        fade = fade * np.exp(-(((places[1] - middle) / reach) ** 2))
    centre_y = float((crop.label.sum(axis=(0, 2)) * np.arange(crop.label.shape[1])).sum() / crop.label.sum())
    moved = places.copy()
    moved[0] += (1 / across - 1) * fade * (places[0] - axis[..., 0])
    moved[2] += (1 / across - 1) * fade * (places[2] - axis[..., 1])
    moved[1] += (1 / along - 1) * fade * (places[1] - centre_y)
    return moved.astype(np.float32)


def _sampled(values: Array, places: Array, padding: str) -> Array:
    """Return values (I, J, K) at places (3, D, H, W), trilinear."""
    size = torch.tensor(values.shape, dtype=torch.float32).view(3, 1, 1, 1)
    relative = (2.0 * torch.from_numpy(places) + 1.0) / size - 1.0
    grid = relative.flip(0).permute(1, 2, 3, 0)[None]
    found: Array = functional.grid_sample(
        torch.from_numpy(values)[None, None], grid, padding_mode=padding, align_corners=False
    )[0, 0].numpy()
    return found


def _smooth_noise(shape: tuple[int, ...], spacing: int, rng: np.random.Generator) -> Array:
    """Return normal noise on a lattice of so many voxels, smoothly interpolated: (..., D, H, W)."""
    lattice = [max(2, round(n / spacing) + 1) for n in shape[-3:]]
    lead = int(np.prod(shape[:-3], dtype=int))
    coarse = torch.from_numpy(rng.standard_normal((1, lead, *lattice)).astype(np.float32))
    # In two steps with a mean between them, so that no edge of the lattice shows.
    half = [max(2, n // 4) for n in shape[-3:]]
    fine = functional.interpolate(coarse, size=half, mode="trilinear", align_corners=True)
    fine = functional.avg_pool3d(functional.pad(fine, (1,) * 6, mode="replicate"), 3, stride=1)
    found = functional.interpolate(fine, size=list(shape[-3:]), mode="trilinear", align_corners=True)
    return found.numpy().reshape(shape)


def _widened_horn(
    image: Array, label: Array, horn_mm: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Let the fluid beside the hippocampus take what is near it: tissue, and a part of the hippocampus itself."""
    if rng.random() > 0.3 or not (label > 0.5).any():
        return image, label
    # The horn lies above and to the side, mostly that away from the midplane.
    towards = np.array([rng.uniform(-1.0, 0.5), rng.uniform(-0.4, 0.4), rng.uniform(0.0, 1.0)])
    towards /= np.linalg.norm(towards)
    centre = np.argwhere(label > 0.5).mean(axis=0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"))
    there = np.clip(np.tensordot(towards, grid - centre[:, None, None, None], 1) / 5.0 + 0.3, -0.5, 1.0)
    reach = there * (rng.uniform(0.5, 4.5) + 0.8 * _smooth_noise(image.shape, 12, rng))
    # The hippocampus gives way less than the tissue on the other side of the horn.
    spared = reach - rng.uniform(0.5, 1.0) * reach * np.clip(label, 0.0, 1.0)
    fluid = 1.0 / (1.0 + np.exp(np.clip((horn_mm - spared) / 0.35, -30.0, 30.0)))
    level = rng.uniform(-0.15, 0.1)
    return (image * (1 - fluid) + level * fluid).astype(np.float32), (label * (1 - fluid)).astype(np.float32)


def _tissue_contrast(image: Array, rng: np.random.Generator) -> Array:
    """Bend the scale of intensities: fluid, grey and white matter of other sequences and ages."""
    if rng.random() < 0.6:
        knots = np.array([-0.3, 0.0, 0.35, 0.6, 0.8, 1.0, 1.5])
        values = knots + np.array([0, *rng.uniform(-0.12, 0.12, 5), 0]) * rng.random()
        image = np.interp(image, knots, np.maximum.accumulate(values)).astype(np.float32)
    if rng.random() < 0.3:  # grey and white matter nearly alike
        middle, strength = 0.75, rng.uniform(0.4, 1.0)
        image = np.where(image > 0.4, middle + strength * (image - middle), image).astype(np.float32)
    return image


def _contrast_agent(image: Array, distance_mm: Array, rng: np.random.Generator) -> Array:
    """Draw bright vessels and choroid plexus around the hippocampus."""
    if rng.random() > 0.15:
        return image
    noise = np.abs(_smooth_noise(image.shape, int(rng.integers(3, 7)), rng))
    vessels = (
        (noise < rng.uniform(0.03, 0.12)) & (_smooth_noise(image.shape, 12, rng) > 0.5) & (distance_mm > 0.5)
    )
    soft = ndimage.gaussian_filter(vessels.astype(np.float32), 0.6)
    return (image + rng.uniform(0.5, 2.0) * soft).astype(np.float32)


def _lesions(image: Array, distance_mm: Array, rng: np.random.Generator) -> Array:
    """Darken white matter in places, as small vessel disease does."""
    if rng.random() > 0.2:
        return image
    dark = np.clip(_smooth_noise(image.shape, 8, rng) - 0.8, 0.0, 1.0) * (distance_mm > 1.0)
    return (image - rng.uniform(0.1, 0.5) * dark * (image > 0.6)).astype(np.float32)


def _coarse(image: Array, rng: np.random.Generator) -> Array:
    """Blur, and average over larger voxels, also thick slices, that lie anywhere on the frame."""
    if rng.random() < 0.3:
        image = ndimage.gaussian_filter(image, rng.uniform(0.0, 0.9, 3))
    if rng.random() < 0.5:
        size_mm = np.full(3, rng.uniform(1.0, 2.2))
        if rng.random() < 0.4:
            size_mm = np.ones(3)
            size_mm[rng.integers(3)] = rng.uniform(1.5, 3.5)
        image = ndimage.gaussian_filter(image, 0.42 * np.sqrt(np.maximum(size_mm**2 - 1.0, 0.0)))
        counts = np.maximum((np.array(image.shape) / size_mm).astype(int), 4)
        start = rng.uniform(0, 1, 3)
        index = [s + np.arange(n) * m for s, n, m in zip(start, counts, size_mm, strict=True)]
        lattice = np.stack(np.meshgrid(*index, indexing="ij")).astype(np.float32)
        small = _sampled(image.astype(np.float32), lattice, "border")
        back = np.stack(
            np.meshgrid(
                *((np.arange(n) - s) / m for n, s, m in zip(image.shape, start, size_mm, strict=True)),
                indexing="ij",
            )
        ).astype(np.float32)
        image = _sampled(np.ascontiguousarray(small), back, "border")
    return image.astype(np.float32)


def _bias_and_noise(image: Array, rng: np.random.Generator) -> Array:
    if rng.random() < 0.5:
        image = image * np.exp(rng.uniform(0.0, 0.2) * _smooth_noise(image.shape, 30, rng))
    if rng.random() < 0.6:
        noise = rng.standard_normal(image.shape).astype(np.float32)
        if rng.random() < 0.5:  # of a scan whose voxels were larger, or that was interpolated
            noise = 1.6 * ndimage.gaussian_filter(noise, rng.uniform(0.3, 0.8))
        image = image + rng.uniform(0.0, 0.1) * noise
    return image.astype(np.float32)


def _surroundings(
    image: Array, known: NDArray[np.bool_], distance_mm: Array, rng: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the image with what a crop does not show, or stripping removed, filled; and which voxels show tissue."""
    shown = known.copy()
    choice = rng.random()
    background = np.float32(image[known].min())
    if choice < 0.35:
        image = np.where(known, image, background)
    elif choice < 0.5:
        image = np.where(known, image, image[known].mean() + 0.15 * _smooth_noise(image.shape, 6, rng))
    if rng.random() < 0.35:  # stripped: nothing beyond a rough surface at some distance from the hippocampus
        normal = rng.standard_normal(3)
        normal[2] -= 1.0  # mostly below
        normal /= np.linalg.norm(normal)
        grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in image.shape), indexing="ij"))
        height = np.tensordot(normal, grid, 1)
        of_hippocampus = height[distance_mm < 0]
        edge = (of_hippocampus.max() if of_hippocampus.size else 0.0) + rng.uniform(1.5, 12.0)
        removed = (height + 1.5 * _smooth_noise(image.shape, 8, rng) > edge) & (distance_mm > 0.8)
        image = np.where(removed, background, image)
        shown &= ~removed
    return image.astype(np.float32), shown
