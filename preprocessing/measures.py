"""What quality control measures of a preprocessed scan.

What is good and what is not stands in :mod:`brainstage.preprocessing.quality`. Everything in template space is
taken at 2 mm, smoothed alike, whatever the output resolution, so that bounds mean one thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.records import CorrectedBrain, RegisteredBrain, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.morphometry import MORPHOMETRY, morphometry
from brainstage.preprocessing.orientation import centre_mm, correlation_inside, rotation_degrees_of
from brainstage.preprocessing.registration import dice, scale_of
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.second_opinion import mask_agreement
from brainstage.preprocessing.template import Template, load_template

MeasureValue = float | bool | str | None

MEASURED_AT_MM: Final = 2.0
COMPARED_FWHM_MM: Final = 4.0
"""Brain and template are smoothed alike before they are compared: anatomy counts, not voxel size or noise."""
TISSUE_PROBABILITY: Final = 0.9
MIXTURE_SAMPLE: Final = 40_000
LEAST_VOXELS_OF_TISSUES: Final = 1000
WELL_INSIDE_MM: Final = 8.0
"""Template voxels deeper under its surface are brain in every person, once the brain is registered."""
NO_SIGNAL: Final = 0.1
"""Of the brain's median. The darkest fluid of inversion-prepared scans keeps 0.2 and more after smoothing."""
RIM_MM: Final = 2.0
TURNS_AT_MM: Final = 8.0
NODS_DEG: Final = (-24.0, -12.0, 0.0, 12.0, 24.0)
SHIFTS_MM: Final = (-8.0, 0.0, 8.0)


def measure(
    registered: RegisteredBrain, *, second_opinion: bool = False, seed: int = 0
) -> dict[str, MeasureValue]:
    """Return every measure, by name.

    Parameters
    ----------
    registered : RegisteredBrain
    second_opinion : bool
        Also find the brain with the other extractor and report how far the two agree, which takes seconds.
    seed : int
        For ANTs' random sampling, where there is a second opinion.
    """
    corrected = registered.normalised.corrected
    stripped = corrected.stripped
    template = load_template(MEASURED_AT_MM)
    brain = _own_units_at(registered, template)
    brain_mask = resampled_mask(registered.brain_mask, template.grid)
    smooth = _smoothed(brain)
    tissues = fit_tissues(corrected.head.data[corrected.brain_mask.data])
    air = None if stripped.skull_stripped_input else _air(stripped)
    measures: dict[str, MeasureValue] = {
        "brain_volume_ml": _rounded(stripped.brain_mask.volume_ml),
        "mask_template_dice": _rounded(dice(brain_mask.data, template.brain_mask.data)),
        "template_correlation": _rounded(
            correlation_inside(smooth, _smoothed_template(), template.brain_mask.data)
        ),
        "affine_scale": _rounded(scale_of(registered.native_to_template)),
        "affine_rotation_deg": _rounded(rotation_degrees_of(registered.native_to_template)),
        "brain_touches_border": None
        if stripped.skull_stripped_input
        else touches_border(stripped.brain_mask),
        "cnr": None if air is None else tissues.contrast_to_noise(float(air.std())),
        "snr": _ratio(tissues.white_mean, tissues.white_sd),
        "cjv": _ratio(tissues.white_sd + tissues.grey_sd, tissues.white_mean - tissues.grey_mean),
        "efc": None if stripped.skull_stripped_input else entropy_focus(stripped.head),
        "fber": _fber(stripped, air),
        "inu_range": _rounded(corrected.field_range),
        "t1w_contrast": _contrast(brain, brain_mask, template),
        "spacing_mm": _rounded(max(stripped.findings.spacing_mm)),
        "fov_mm": _rounded(
            min(n * s for n, s in zip(stripped.head.shape, stripped.head.spacing_mm, strict=True))
        ),
        "skull_stripped_input": stripped.skull_stripped_input,
        "header_warnings": ";".join(stripped.findings.warning_codes),
        "upright_margin": _rounded(upright_margin(brain, template)),
        "missing_tissue_ml": _rounded(missing_tissue_ml(smooth, brain_mask)),
        "rim_to_grey": rim_to_grey(corrected, tissues),
        "clipped_share": _rounded(clipped_share(stripped)),
        **_morphometry(brain, brain_mask),
    }
    if second_opinion:
        agreement = mask_agreement(stripped, seed=seed)
        measures["mask_agreement_dice"] = None if agreement is None else _rounded(agreement)
    return measures


def _morphometry(brain: NDArray[np.float32], brain_mask: BrainMask) -> dict[str, float | None]:
    """Return the shares of fluid, held against tissue of the same voxel size: mixed voxels count alike."""
    values = brain[brain_mask.data]
    if values.size < LEAST_VOXELS_OF_TISSUES:
        return dict.fromkeys(MORPHOMETRY)
    tissues = fit_tissues(values)
    return morphometry(brain, brain_mask, tissues.grey_mean, tissues.white_mean)


def upright_margin(brain: NDArray[np.float32], template: Template) -> float:
    """Return how much better a brain fits the template as it lies than turned by 180 degrees.

    A head whose header reverses an axis lies turned by half a circle, but for left and right, which look alike.
    The affine then fits it as well as it can, and its correlation is that of a poor scan; turned back, it fits
    better or nearly as well. Each way of lying may nod and shift a little before it is compared.

    Parameters
    ----------
    brain : ndarray, (I, J, K) float32
        On the template's grid, 0 outside the mask.
    template : Template

    Returns
    -------
    float
        Difference of two Pearson correlations inside the template's mask, on a grid of 8 mm.
    """
    target = load_template(TURNS_AT_MM)
    small = resampled(Volume(data=brain, voxel_to_ras=template.grid.voxel_to_ras), target.t1w.grid)
    as_it_lies, *turned = (
        _best_fit(small, target, Rotation.from_rotvec(half_turn, degrees=True))
        for half_turn in ((0, 0, 0), (180, 0, 0), (0, 180, 0), (0, 0, 180))
    )
    return as_it_lies - max(turned)


def _best_fit(small: Volume, target: Template, turn: Rotation) -> float:
    """Return the best correlation of a turned brain that may nod and then shift."""

    def fit(nod_deg: float, shift_mm: tuple[float, float, float]) -> float:
        matrix = np.eye(4)
        matrix[:3, :3] = (turn * Rotation.from_euler("x", nod_deg, degrees=True)).as_matrix()
        matrix[:3, 3] = centre - matrix[:3, :3] @ centre + shift_mm
        moved = resampled(small, target.grid, matrix).data
        return correlation_inside(moved, target.t1w.data, target.brain_mask.data)

    centre = centre_mm(target.brain_mask)
    nod_deg = max(NODS_DEG, key=lambda angle: fit(angle, (0.0, 0.0, 0.0)))
    return max(fit(nod_deg, (0.0, front, up)) for front in SHIFTS_MM for up in SHIFTS_MM)


def missing_tissue_ml(smooth: NDArray[np.float32], brain_mask: BrainMask) -> float:
    """Return how much of the template's inside holds no brain: outside the mask, or without signal.

    Parameters
    ----------
    smooth : ndarray, (I, J, K) float32
        The brain at 2 mm, in its own units, smoothed.
    brain_mask : BrainMask
        On the same grid.
    """
    if not brain_mask.data.any():
        return float(_well_inside().sum()) * MEASURED_AT_MM**3 / 1000.0
    silent = smooth < NO_SIGNAL * np.median(smooth[brain_mask.data])
    missing = _well_inside() & (silent | ~brain_mask.data)
    return float(missing.sum()) * MEASURED_AT_MM**3 / 1000.0


def rim_to_grey(corrected: CorrectedBrain, tissues: Tissues) -> float | None:
    """Return the median of the mask's outermost 2 mm over the mean of grey matter.

    A whole brain ends in fluid, and its rim is darker than tissue. A mask that was cut into the cortex ends in it.
    """
    mask, head = corrected.brain_mask, corrected.head
    box = ndimage.find_objects(mask.data.astype(np.uint8))[0]
    eroded = ndimage.binary_erosion(mask.data[box], _ball(mask.grid.spacing_mm, RIM_MM))
    return _ratio(float(np.median(head.data[box][mask.data[box] & ~eroded])), tissues.grey_mean)


def clipped_share(stripped: StrippedBrain) -> float:
    """Return the share of the brain's voxels that hold the scan's highest intensity inside the brain.

    One voxel or a few in an unharmed scan; many where intensities were cut off at a ceiling.
    """
    values = stripped.head.data[stripped.brain_mask.data]
    return float((values >= values.max()).mean())


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Mean and spread of the two brightest classes of a brain, in the image's units; white matter in a T1w."""

    grey_mean: float
    grey_sd: float
    white_mean: float
    white_sd: float

    def contrast_to_noise(self, air_sd: float) -> float | None:
        """Return the contrast over the joint spread of white matter, grey matter and air."""
        spread = float(np.sqrt(self.white_sd**2 + self.grey_sd**2 + air_sd**2))
        return _ratio(self.white_mean - self.grey_mean, spread)


def fit_tissues(values: NDArray[np.float32]) -> Tissues:
    """Fit three Gaussians (fluid, grey, white) to the intensities of a brain.

    Parameters
    ----------
    values : ndarray, (N,)
        Bias-corrected intensities inside the mask.
    """
    from sklearn.mixture import GaussianMixture  # heavy

    low, high = np.percentile(values, (0.5, 99.5))
    kept = values[(values >= low) & (values <= high)]
    sample = kept[:: max(1, kept.size // MIXTURE_SAMPLE)].astype(np.float64).reshape(-1, 1)
    scale = float(sample.std()) or 1.0
    start = np.percentile(sample, (8, 45, 85)).reshape(-1, 1) / scale
    mixture = GaussianMixture(3, means_init=start, random_state=0, max_iter=60, tol=1e-3).fit(sample / scale)
    order = np.argsort(mixture.means_.ravel())
    means = mixture.means_.ravel()[order] * scale
    sds = np.sqrt(mixture.covariances_.ravel()[order]) * scale
    return Tissues(
        grey_mean=float(means[1]), grey_sd=float(sds[1]), white_mean=float(means[2]), white_sd=float(sds[2])
    )


def touches_border(brain_mask: BrainMask, share: float = 0.02) -> bool:
    """Tell whether more than `share` of the mask's surface lies in the outermost voxels."""
    mask = brain_mask.data
    outermost = sum(int(np.take(mask, index, axis=axis).sum()) for axis in range(3) for index in (0, -1))
    surface = int((mask & ~ndimage.binary_erosion(mask, border_value=1)).sum()) + outermost
    return bool(surface) and outermost > share * surface


def entropy_focus(head: Volume) -> float | None:
    """Return the entropy focus criterion of a head, 0 to 1."""
    values = np.maximum(head.data, 0.0).astype(np.float64).ravel()
    total = float(np.sqrt(np.square(values).sum()))
    if total == 0:
        return None
    share = values[values > 0] / total
    largest = np.sqrt(values.size) * np.log(np.sqrt(values.size))
    return _rounded(float(-(share * np.log(share)).sum() / largest))


def _own_units_at(registered: RegisteredBrain, template: Template) -> NDArray[np.float32]:
    """Return the registered brain in the image's own units, 0 outside the mask, on the template's grid."""
    normalisation = registered.normalised.normalisation
    own = registered.brain.data * np.float32(normalisation.scale) + np.float32(normalisation.centre)
    inside = np.where(registered.brain_mask.data, np.maximum(own, 0.0), np.float32(0.0))
    return resampled(registered.brain.with_data(inside), template.grid).data


def _ball(spacing_mm: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    """Return a ball as a structuring element of at least one voxel's reach."""
    radius_mm = max(radius_mm, min(spacing_mm)) + 1e-3
    reach = [int(radius_mm / s) for s in spacing_mm]
    grids = np.ogrid[tuple(slice(-n, n + 1) for n in reach)]
    apart = sum((g * s) ** 2 for g, s in zip(grids, spacing_mm, strict=True))
    return np.asarray(apart <= radius_mm**2)


@cache
def _smoothed_template() -> NDArray[np.float32]:
    return _smoothed(load_template(MEASURED_AT_MM).t1w.data)


@cache
def _well_inside() -> NDArray[np.bool_]:
    mask = load_template(MEASURED_AT_MM).brain_mask.data
    deep: NDArray[np.bool_] = ndimage.distance_transform_edt(mask) * MEASURED_AT_MM > WELL_INSIDE_MM
    return deep


def _smoothed(data: NDArray[np.float32]) -> NDArray[np.float32]:
    sigma = COMPARED_FWHM_MM / MEASURED_AT_MM / (2.0 * np.sqrt(2.0 * np.log(2.0)))
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(data, sigma)
    return smooth


def _contrast(brain: NDArray[np.float32], brain_mask: BrainMask, template: Template) -> float | None:
    """Return the median of white over that of grey matter, where the template is sure of both."""
    inside = ndimage.binary_erosion(brain_mask.data)
    white = brain[inside & (template.white_matter > TISSUE_PROBABILITY)]
    grey = brain[inside & (template.grey_matter > TISSUE_PROBABILITY)]
    if not white.size or not grey.size:
        return None
    return _ratio(float(np.median(white)), float(np.median(grey)))


def _air(stripped: StrippedBrain) -> NDArray[np.float64] | None:
    """Return intensities of the air well away from the brain; None where it was set to one value."""
    head = stripped.head
    spacing = np.array(head.spacing_mm)
    corner = tuple(max(2, round(float(15.0 / s))) for s in spacing)
    blocks = [
        head.data[_end(corner[0], i), _end(corner[1], j), _end(corner[2], k)].ravel()
        for i in (0, 1)
        for j in (0, 1)
        for k in (0, 1)
    ]
    # The quietest corner: others may hold a shoulder or a ghost.
    quietest = min(blocks, key=lambda block: float(np.percentile(block, 95)))
    return None if quietest.std() == 0 else quietest.astype(np.float64)


def _end(length: int, last: int) -> slice:
    return slice(-length, None) if last else slice(0, length)


def _fber(stripped: StrippedBrain, air: NDArray[np.float64] | None) -> float | None:
    if air is None:
        return None
    brain = stripped.head.data[stripped.brain_mask.data].astype(np.float64)
    return _ratio(float(np.median(np.square(brain))), float(np.median(np.square(air))))


def _ratio(numerator: float, denominator: float) -> float | None:
    return _rounded(numerator / denominator) if denominator > 0 else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
