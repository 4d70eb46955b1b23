"""What quality control measures of a preprocessed scan.

What is good and what is not stands in :mod:`brainstage.preprocessing.quality`. Everything in template space is
taken at 2 mm, smoothed alike, whatever the output resolution, so that bounds mean one thing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.records import CorrectedBrain, RegisteredBrain, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.motion import band_misregistration, gradient_entropy
from brainstage.preprocessing.orientation import centre_mm, correlation_inside, rotation_degrees_of
from brainstage.preprocessing.regions import brain_without_ventricles
from brainstage.preprocessing.registration import dice, scale_of
from brainstage.preprocessing.resampling import SDS_IN_FWHM, interpolated, resampled, resampled_mask
from brainstage.preprocessing.second_opinion import mask_agreement
from brainstage.preprocessing.template import Template, load_template
from brainstage.preprocessing.ventricles import ventricle_share
from brainstage.preprocessing.white_matter_noise import white_matter_noise

MeasureValue = float | bool | str | None

MEASURED_AT_MM: Final = 2.0
COMPARED_FWHM_MM: Final = 4.0
"""Brain and template are smoothed alike before they are compared: anatomy counts, not voxel size or noise."""
TISSUE_PROBABILITY: Final = 0.9
MIXTURE_QUANTILES: Final = 4000
MIXTURE_TAIL_PERCENT: Final = 0.5
"""Left out at both ends: vessels and what stripping left of the skull."""
MIXTURE_START_PERCENTILES: Final = (8.0, 45.0, 85.0)
MIXTURE_GAIN: Final = 1e-3
"""Of the mean log-likelihood in a step, where the fit ends."""
MIXTURE_STEPS: Final = 60
MIXTURE_LEAST: Final = 1e-6
WELL_INSIDE_MM: Final = 8.0
"""Template voxels deeper under its surface are brain in every person, once the brain is registered."""
NO_SIGNAL: Final = (0.05, 0.15)
"""Of the brain's median: below the first nothing is there, above the second something is. The fluid of some
inversion-prepared scans lies between."""
LUMP_FWHM_MM: Final = 10.0
LUMP: Final = (0.4, 0.8)
"""Share without signal of so wide a surrounding, between which a place is the middle of a missing part. Dark fluid in
the widened sulci of an old brain lies in sheets."""
LUMP_EDGE_MM: Final = 6.0
"""So far around such a middle, what is dark belongs to it."""
RIM_MM: Final = 2.0
BRIGHT: Final = 1.5
"""Times white matter: vessels and dura that took up a contrast agent; hardly anything else in a brain is."""
NOISE_SDS: Final = 4.0
"""Or so many standard deviations of the noise above white matter, where that is more."""
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
    noise = white_matter_noise(corrected.head, registered.native_to_template)
    measures: dict[str, MeasureValue] = {
        "brain_volume_ml": _rounded(stripped.brain_mask.volume_ml),
        "mask_template_dice": _rounded(dice(brain_mask.data, template.brain_mask.data)),
        "template_correlation": _rounded(
            correlation_inside(smooth, _smoothed_template(), brain_without_ventricles(MEASURED_AT_MM))
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
        "missing_tissue_ml": _rounded(missing_tissue_ml(smooth, _fraction(registered.brain_mask, template))),
        "rim_to_grey": rim_to_grey(corrected, tissues),
        "clipped_share": _rounded(clipped_share(stripped)),
        "white_matter_noise": noise,
        "bright_share": bright_share(corrected, tissues, noise or 0.0),
        "band_misregistration": _or_none(band_misregistration(stripped.head, stripped.brain_mask)),
        "gradient_entropy": _or_none(gradient_entropy(stripped.head, stripped.brain_mask)),
        "ventricle_share": ventricle_share(corrected, registered.native_to_template),
    }
    if second_opinion:
        agreement = mask_agreement(stripped, seed=seed)
        measures["mask_agreement_dice"] = _or_none(agreement)
    return measures


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
        Difference of two Pearson correlations inside the template's brain but for its ventricles, on a grid of 8 mm.
    """
    target = load_template(TURNS_AT_MM)
    small = resampled(Volume(data=brain, voxel_to_ras=template.grid.voxel_to_ras), target.t1w.grid)
    as_it_lies, *turned = (
        _best_fit(small, target, Rotation.from_rotvec(half_turn, degrees=True))
        for half_turn in ((0, 0, 0), (180, 0, 0), (0, 180, 0), (0, 0, 180))
    )
    return as_it_lies - max(turned)


def _best_fit(small: Volume, target: Template, turn: Rotation) -> float:
    """Return the best correlation of a turned brain over some pitches and shifts."""

    def fit(nod_deg: float, front_mm: float, up_mm: float) -> float:
        matrix = np.eye(4)
        matrix[:3, :3] = (turn * Rotation.from_euler("x", nod_deg, degrees=True)).as_matrix()
        matrix[:3, 3] = centre - matrix[:3, :3] @ centre + (0.0, front_mm, up_mm)
        moved = interpolated(small.data, small.voxel_to_ras, target.grid, matrix)
        return correlation_inside(moved, target.t1w.data, brain_without_ventricles(TURNS_AT_MM))

    centre = centre_mm(target.brain_mask)
    # All of them: the best shift at the best pitch would jump where two pitches fit alike.
    return max(fit(*tried) for tried in itertools.product(NODS_DEG, SHIFTS_MM, SHIFTS_MM))


def missing_tissue_ml(smooth: NDArray[np.float32], brain_fraction: NDArray[np.float32]) -> float:
    """Return how much of the template's inside holds no brain: outside the mask, or without signal.

    A voxel counts by how little of it is there, so that none of them flips. Without signal are only lumps away from
    the ventricles: in wide ventricles and sulci, the fluid of inversion-prepared scans is hardly brighter than nothing.

    Parameters
    ----------
    smooth : ndarray, (I, J, K) float32
        The brain at 2 mm, in its own units, smoothed.
    brain_fraction : ndarray, (I, J, K) float32
        Of each of these voxels that lies in the brain mask, 0 to 1.
    """
    deep, inside = _well_inside(), brain_fraction >= 0.5
    if not inside.any():
        return float(deep.sum()) * MEASURED_AT_MM**3 / 1000.0
    silent, sounding = NO_SIGNAL
    dark = np.clip((sounding - smooth / np.median(smooth[inside])) / (sounding - silent), 0.0, 1.0)
    share = ndimage.gaussian_filter(dark, LUMP_FWHM_MM / MEASURED_AT_MM / SDS_IN_FWHM)
    middle = np.clip((share - LUMP[0]) / (LUMP[1] - LUMP[0]), 0.0, 1.0)
    lump = ndimage.maximum_filter(middle, size=2 * int(LUMP_EDGE_MM / MEASURED_AT_MM) + 1)
    without_signal = np.where(brain_without_ventricles(MEASURED_AT_MM), np.minimum(dark, lump), 0.0)
    outside = 1.0 - np.clip(2.0 * brain_fraction - 0.5, 0.0, 1.0)
    missing = np.maximum(without_signal, outside)[deep]
    return float(missing.sum(dtype=np.float64)) * MEASURED_AT_MM**3 / 1000.0


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


def bright_share(corrected: CorrectedBrain, tissues: Tissues, noise_percent: float) -> float | None:
    """Return the share of the brain's voxels that are much brighter than white matter, per cent.

    Parameters
    ----------
    corrected : CorrectedBrain
    tissues : Tissues
    noise_percent : float
        Of white matter, per cent of its intensity: noise alone makes no voxel bright.
    """
    bright = max(BRIGHT, 1.0 + NOISE_SDS * noise_percent / 100.0) * tissues.white_mean
    values = corrected.head.data[corrected.brain_mask.data]
    return _rounded(100.0 * float((values > bright).mean()))


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

    Expectation maximisation on quantiles, ended early: the fit with the highest likelihood gives one class to the
    rim of the fluid and joins grey and white matter. Neither a voxel more or less nor the last digit of an intensity
    makes it jump: quantiles move as little as they do, and the end lies between two steps.

    Parameters
    ----------
    values : ndarray, (N,)
        Bias-corrected intensities inside the mask.
    """
    tail = MIXTURE_TAIL_PERCENT / 100.0
    steps = (np.arange(MIXTURE_QUANTILES) + 0.5) / MIXTURE_QUANTILES
    sample = np.quantile(values, tail + (1.0 - 2.0 * tail) * steps).astype(np.float64)
    scale = float(sample.std()) or 1.0
    classes = _fitted_mixture(sample / scale)
    _, grey, white = np.argsort(classes.mean)
    return Tissues(
        grey_mean=float(classes.mean[grey] * scale),
        grey_sd=float(classes.sd[grey] * scale),
        white_mean=float(classes.mean[white] * scale),
        white_sd=float(classes.sd[white] * scale),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Classes:
    """Share, mean and variance of three Gaussians, each (3,) float64."""

    share: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def sd(self) -> NDArray[np.float64]:
        deviations: NDArray[np.float64] = np.sqrt(self.variance)
        return deviations

    def density(self, sample: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return share times density of each class, (N, 3)."""
        apart = (sample[:, np.newaxis] - self.mean) ** 2 / self.variance
        density: NDArray[np.float64] = (
            self.share * np.exp(-0.5 * apart) / np.sqrt(2.0 * np.pi * self.variance)
        )
        return density

    def towards(self, other: _Classes, part: float) -> _Classes:
        """Return what lies between these and others: 0 these, 1 the others."""

        def between(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
            return (1.0 - part) * mine + part * theirs

        return _Classes(
            share=between(self.share, other.share),
            mean=between(self.mean, other.mean),
            variance=between(self.variance, other.variance),
        )


def _fitted_mixture(sample: NDArray[np.float64]) -> _Classes:
    """Return the classes where a step gains as much mean log-likelihood as :data:`MIXTURE_GAIN`."""
    start = np.percentile(sample, MIXTURE_START_PERCENTILES)
    nearest = np.abs(sample[:, np.newaxis] - start).argmin(axis=1)
    classes = _maximised(sample, np.eye(3)[nearest])
    likelihood = -np.inf
    gain = np.inf
    for _ in range(MIXTURE_STEPS):
        density = np.maximum(classes.density(sample), np.finfo(np.float64).tiny)
        total = density.sum(axis=1)
        before, likelihood = likelihood, float(np.log(total).mean())
        last_gain, gain = gain, max(likelihood - before, MIXTURE_LEAST)
        following = _maximised(sample, density / total[:, np.newaxis])
        if gain <= MIXTURE_GAIN:
            part = np.log(last_gain / MIXTURE_GAIN) / np.log(last_gain / gain) if last_gain < np.inf else 1.0
            return classes.towards(following, float(part))
        classes = following
    return classes


def _maximised(sample: NDArray[np.float64], belongs: NDArray[np.float64]) -> _Classes:
    """Return the classes that fit best to what belongs to them, (N, 3); one that has nothing stands at the mean."""
    count = belongs.sum(axis=0) + MIXTURE_LEAST
    mean = (sample @ belongs + MIXTURE_LEAST * sample.mean()) / count
    variance = np.square(sample[:, np.newaxis] - mean)
    return _Classes(
        share=count / len(sample),
        mean=mean,
        variance=(variance * belongs).sum(axis=0) / count + MIXTURE_LEAST,
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


def _fraction(brain_mask: BrainMask, template: Template) -> NDArray[np.float32]:
    """Return how much of each voxel of the template lies in a mask."""
    mask = Volume(data=brain_mask.data.astype(np.float32), voxel_to_ras=brain_mask.voxel_to_ras)
    return resampled(mask, template.grid).data


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
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(
        data, COMPARED_FWHM_MM / MEASURED_AT_MM / SDS_IN_FWHM
    )
    return smooth


def _contrast(brain: NDArray[np.float32], brain_mask: BrainMask, template: Template) -> float | None:
    """Return the median of white over that of grey matter, where the template is sure of both.

    Away from the ventricles: where they are wide, fluid lies at a third of the template's white matter.
    """
    inside = ndimage.binary_erosion(brain_mask.data) & brain_without_ventricles(MEASURED_AT_MM)
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


def _or_none(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
