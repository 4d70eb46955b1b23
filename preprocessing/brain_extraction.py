"""Which voxels are brain.

A scan that comes without its skull is recognised and left as it is; otherwise deepbet finds the brain
(Fisch 2024; weights in its wheel, MIT), its two networks loaded once per process. Where it finds none that is
plausible, the template does (:mod:`brainstage.preprocessing.template_extraction`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import BrainExtractionConfig
from brainstage.pipeline.errors import BrainExtractionError, InputMissingError, ToolNotFoundError
from brainstage.pipeline.files import sha256_of_file
from brainstage.pipeline.records import IngestedHead, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.intensity_range import border_value
from brainstage.preprocessing.orientation import (
    best_orientations,
    centre_mm,
    rotation_degrees_of,
    rotation_of,
)
from brainstage.preprocessing.registration import dice
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template_extraction import lowest_slice_of_head, template_brain_mask

STAGE_VERSION: Final = "3"
DEEPBET_THRESHOLD: Final = 0.5

TILT_GRID_MM: Final = 12.0
TILT_STEP_DEG: Final = 20.0
UPRIGHT_WITHIN_DEG: Final = 39.0
"""Nearer to upright than two steps of the lattice, deepbet's mask of a turned real head had Dice 0.98 and more."""
GOOD_FIT: Final = 0.94
"""On the coarse grid. Right masks of real heads in any pose reached 0.945 to 0.965, spoilt ones 0.80 to 0.93."""
MASKS_ALIKE: Final = 0.005
"""Of two masks that fit about equally, that of the upright head is believed."""
NODS_DEG: Final = (40.0, -40.0)
CONFIRMING_NOD_DEG: Final = 20.0
ANOTHER_LOOK_DEG: Final = 15.0
CONFIRMED_DICE: Final = 0.96
"""Two looks at a head from directions at least that far apart that give the same mask are believed, whatever the
fit: an old or ill brain fits the template less well than a young one, but the network finds it from any side."""
UPRIGHT_MM: Final = 1.3
UPRIGHT_FIELD_MM: Final = 240.0

STRIPPED_VOLUME_ML: Final = (600.0, 2200.0)
"""What is left when a skull is off. An adult's whole head, neck cut, fills 2.5 to 6 litres."""
FAINT: Final = 0.02
MIN_LARGEST_SHARE: Final = 0.90
"""A stripped brain is one piece; crumbs may be left."""


def extract_brain(ingested: IngestedHead, config: BrainExtractionConfig, seed: int = 0) -> StrippedBrain:
    """Find the brain of a head.

    Raises
    ------
    BrainExtractionError
        When nothing is found, or the mask's volume lies outside ``volume_bounds_ml``.
    """
    head = ingested.head
    foreground = stripped_foreground(head)
    if foreground is not None and config.method in ("auto", "none"):
        mask, method = _plausible(foreground, config), "none"
    elif config.method == "none":
        raise BrainExtractionError(
            "the scan does not look skull-stripped (no constant background around one brain-sized piece), "
            "but --skull-strip none was asked for; use auto"
        )
    else:
        mask, method = _extracted(head, config, seed)
    return StrippedBrain(
        head=head,
        findings=ingested.findings,
        brain_mask=mask,
        method=method,
        skull_stripped_input=foreground is not None,
    )


def _extracted(head: Volume, config: BrainExtractionConfig, seed: int) -> tuple[BrainMask, str]:
    """Return the mask of a whole head and which extractor made it."""
    if config.method == "ants":
        return _plausible(template_brain_mask(head, seed=seed), config), "ants"
    try:
        return _plausible(deepbet_mask(head), config), "deepbet"
    except BrainExtractionError as first:
        if config.method == "deepbet":
            raise
        try:
            return _plausible(template_brain_mask(head, seed=seed), config), "ants"
        except BrainExtractionError as second:
            raise BrainExtractionError(
                f"{first.message} The template was no help either: {second.message}"
            ) from second


def _plausible(mask: BrainMask, config: BrainExtractionConfig) -> BrainMask:
    low, high = config.volume_bounds_ml
    if not low <= mask.volume_ml <= high:
        raise BrainExtractionError(
            f"brain mask holds {mask.volume_ml:.0f} ml; expected {low:.0f} to {high:.0f} ml "
            "(brain_extraction.volume_bounds_ml). Is it a T1w scan of a whole head?"
        )
    return mask


def stripped_foreground(head: Volume) -> BrainMask | None:
    """Return the brain of a scan that came without its skull, None for a whole head.

    Such a scan has one value all around and one brain-sized piece inside.
    """
    background, constant = border_value(head.data)
    if not constant:
        return None
    contrast = np.abs(head.data - background)
    # Interpolation leaves a faint rim around a stripped brain; it is no part of it.
    inside = contrast > FAINT * np.percentile(contrast, 99)
    voxel_ml = head.grid.voxel_volume_mm3 / 1000.0
    if not STRIPPED_VOLUME_ML[0] * 0.5 <= inside.sum() * voxel_ml <= STRIPPED_VOLUME_ML[1]:
        return None
    labels, count = ndimage.label(inside)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < MIN_LARGEST_SHARE * inside.sum():
        return None
    brain: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == sizes.argmax())
    mask = BrainMask(data=brain, voxel_to_ras=head.voxel_to_ras)
    return mask if STRIPPED_VOLUME_ML[0] <= mask.volume_ml <= STRIPPED_VOLUME_ML[1] else None


def deepbet_mask(head: Volume) -> BrainMask:
    """Return deepbet's brain mask of a whole head, however it lies.

    The network knows heads that are about upright. A mask that does not fit the template in any orientation, or
    only in one far from upright, is looked for again in the head turned upright; the best fit is kept. The search
    ends with a good fit, or with two masks alike that were found from different directions.

    Raises
    ------
    BrainExtractionError
        When the network finds nothing.
    """
    best = _first_look(head)
    if best.fit >= GOOD_FIT and best.tilt_deg < UPRIGHT_WITHIN_DEG:
        return best.mask
    looks = [(np.eye(3), best)]
    nods, rolls, yaws = (
        [Rotation.from_euler(axis, angle, degrees=True).as_matrix() for angle in NODS_DEG] for axis in "xyz"
    )
    # Twice where the best mask so far says that up is: a spoilt mask points there only roughly. Then nodding; or
    # nodding first, where the mask holds half the head and points nowhere. Then the other axes.
    pointed: list[NDArray[np.float64] | None] = [None, None]
    turns = [*pointed, *nods] if best.mask.volume_ml <= STRIPPED_VOLUME_ML[1] else [*nods, *pointed]
    turns += [*rolls, None, *yaws, None]
    if best.tilt_deg < UPRIGHT_WITHIN_DEG:
        turns.insert(0, Rotation.from_euler("x", CONFIRMING_NOD_DEG, degrees=True).as_matrix())
    for fixed in turns:
        rotation = best.rotation if fixed is None else fixed
        try:
            turned = _turned_upright(head, best.mask, rotation)
            again = _judged_mask(resampled_mask(_network_mask(turned), head.grid), head)
        except BrainExtractionError:
            continue
        alike = [look for turn, look in looks if _confirms(rotation, again, turn, look)]
        if alike:
            return max(again, alike[0], key=lambda look: look.fit).mask
        looks.append((rotation, again))
        if again.fit > best.fit - MASKS_ALIKE:
            best = again
        if best.fit >= GOOD_FIT:
            break
    return best.mask


@dataclass(frozen=True, kw_only=True, eq=False)
class _JudgedMask:
    """A mask, how well what is under it fits the template, and how the head lies by it."""

    mask: BrainMask
    fit: float
    rotation: NDArray[np.float64]
    tilt_deg: float


def _first_look(head: Volume) -> _JudgedMask:
    """Return the mask of a head without turning it: of the whole image, or of what is left without neck and shoulders.

    The network looks for a head in the whole field of view, and shoulders lead it astray. It is asked again only where
    it found nothing of a brain's size.
    """
    low, high = STRIPPED_VOLUME_ML
    tall = lowest_slice_of_head(head) > 0
    try:
        whole = _judged_mask(_network_mask(head), head)
    except BrainExtractionError:
        if not tall:
            raise
        return _look_without_neck(head)
    if not tall or low <= whole.mask.volume_ml <= high:
        return whole
    try:
        return max(whole, _look_without_neck(head), key=lambda look: look.fit)
    except BrainExtractionError:
        return whole


def _look_without_neck(head: Volume) -> _JudgedMask:
    box = (slice(None), slice(None), slice(lowest_slice_of_head(head), None))
    part = Volume(data=head.data[box], voxel_to_ras=head.grid.part(box).voxel_to_ras)
    data = np.zeros(head.shape, dtype=bool)
    data[box] = _network_mask(part).data
    return _judged_mask(BrainMask(data=data, voxel_to_ras=head.voxel_to_ras), head)


def _judged_mask(mask: BrainMask, head: Volume) -> _JudgedMask:
    brain = head.with_data(np.where(mask.data, np.maximum(head.data, 0.0), np.float32(0.0)))
    (orientation,) = best_orientations(brain, mask, grid_mm=TILT_GRID_MM, step_deg=TILT_STEP_DEG)
    return _JudgedMask(
        mask=mask,
        fit=orientation.fit,
        rotation=rotation_of(orientation.native_to_template),
        tilt_deg=rotation_degrees_of(orientation.native_to_template),
    )


def _confirms(
    turn: NDArray[np.float64], look: _JudgedMask, other_turn: NDArray[np.float64], other: _JudgedMask
) -> bool:
    """Tell whether two looks are from different directions and give the same mask."""
    apart_deg = np.degrees(Rotation.from_matrix(turn @ other_turn.T).magnitude())
    return bool(apart_deg >= ANOTHER_LOOK_DEG) and dice(look.mask.data, other.mask.data) >= CONFIRMED_DICE


def _turned_upright(head: Volume, mask: BrainMask, rotation: NDArray[np.float64]) -> Volume:
    """Resample a head to axes turned with it, 1.3 mm, centred on its brain.

    Its voxels keep their place in RAS mm; only the lattice is turned.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.T * UPRIGHT_MM
    count = round(UPRIGHT_FIELD_MM / UPRIGHT_MM)
    matrix[:3, 3] = centre_mm(mask) - matrix[:3, :3] @ np.full(3, (count - 1) / 2.0)
    return resampled(head, Grid(shape=(count, count, count), voxel_to_ras=matrix))


def _network_mask(head: Volume) -> BrainMask:
    network = _deepbet()
    try:
        probability = network.run_model(np.array(head.data, dtype=np.float32))
        found = probability > DEEPBET_THRESHOLD
        if not found.any():
            raise BrainExtractionError("deepbet found no brain. Is it a T1w scan of a whole head?")
        mask = network.postprocess(found)
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, BrainExtractionError):
            raise
        if _is_lack_of_memory(error):
            raise MemoryError(str(error)) from error  # says nothing about the scan
        raise BrainExtractionError("deepbet found no brain. Is it a T1w scan of a whole head?") from error
    return BrainMask(data=mask > 0, voxel_to_ras=head.voxel_to_ras)


def _is_lack_of_memory(error: Exception) -> bool:
    """Tell whether torch could not get memory, which it says with a RuntimeError as of anything else."""
    said = str(error).lower()
    return any(words in said for words in ("allocate memory", "not enough memory", "out of memory"))


@cache
def deepbet_sha256() -> str:
    """Return the hash over deepbet's two weight files, part of the ``preprocessing_id``."""
    try:
        return "+".join(sha256_of_file(path)[:16] for path in _deepbet_weights())
    except InputMissingError as error:
        raise ToolNotFoundError(
            "deepbet's weights are missing; install deepbet again (1.0.2 or newer)"
        ) from error


def _deepbet_weights() -> tuple[Path, ...]:
    # Found without importing the package, which brings in torch: a run with nothing to do needs only the hash.
    package = find_spec("deepbet")
    if package is None or package.origin is None:
        raise ToolNotFoundError("deepbet is not installed; run make setup")
    folder = Path(package.origin).parents[1] / "data" / "models"
    return tuple(folder / name for name in ("bbox_model.pt", "model.pt"))


@cache
def _deepbet() -> Any:  # noqa: ANN401 - the library has no types
    # Read by torch at its first large allocation: in huge pages deepbet takes four fifths of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch  # heavy
    from deepbet.bet import BrainExtraction

    network = BrainExtraction(no_gpu=True)
    # The small network that finds the head's box: the same answer in a third of the time. The large one gains nothing.
    network.bbox_model = torch.jit.optimize_for_inference(network.bbox_model.eval())
    return network
