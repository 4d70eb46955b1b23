"""QC measures and the gate that a prediction has to pass.

Each measure has a row in :data:`MEASURES`: unit, direction, bounds, source, and what it means when it is out of
bounds. A measure that makes no sense on a scan (air around a stripped brain) is None, not wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.config import QualityBounds
from brainstage.pipeline.errors import ConfigError
from brainstage.pipeline.records import QcReport, QcStatus, QcVerdict, RegisteredBrain, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.orientation import correlation_inside, rotation_degrees_of
from brainstage.preprocessing.registration import dice, scale_of
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import Template, load_template

STAGE_VERSION: Final = "1"

JUDGED_AT_MM: Final = 2.0
"""Template-space measures are taken at 2 mm, whatever the output resolution, so that bounds mean one thing."""
TISSUE_PROBABILITY: Final = 0.9
MIXTURE_SAMPLE: Final = 40_000
WARNING_CODES_THAT_WARN: Final = ("form_conflict", "orientation_assumed", "sheared", "nonfinite_values")
MRIQC: Final = "MRIQC (Esteban 2017, 10.1371/journal.pone.0184661)"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What one QC measure is.

    Attributes
    ----------
    name, unit : str
    direction : str
        ``higher`` or ``lower`` is better, ``range`` when both ends are suspicious, ``note`` when it is only told.
    bounds : QualityBounds or None
        None for a measure that is reported without a verdict.
    reason : str
        Short code in ``qc_reasons``.
    explanation : str
        What it is, and what a value out of bounds means, for the report.
    source : str
        Where the definition and the bounds come from.
    """

    name: str
    unit: str
    direction: Literal["higher", "lower", "range", "note"]
    explanation: str
    source: str
    reason: str = ""
    bounds: QualityBounds | None = None


def _bounds(
    passing: tuple[float | None, float | None], tolerated: tuple[float | None, float | None] = (None, None)
) -> QualityBounds:
    return QualityBounds(passing=passing, tolerated=tolerated)


_OWN: Final = "this project; bounds from the scans in docs/concepts/quality-control.md"

MEASURES: Final[tuple[Measure, ...]] = (
    Measure(
        name="brain_volume_ml",
        unit="ml",
        direction="range",
        reason="brain_volume",
        bounds=_bounds((900.0, 2050.0), (700.0, 2250.0)),
        explanation="Volume of the brain mask with the fluid inside it. Far from an adult's, the mask is wrong, part "
        "of the brain is missing, or the scan is a child's.",
        source="adult intracranial volume, 1000 to 2000 ml (Buckner 2004, 10.1016/j.neuroimage.2004.06.018)",
    ),
    Measure(
        name="mask_template_dice",
        unit="",
        direction="higher",
        reason="mask_overlap",
        bounds=_bounds((0.92, None), (0.88, None)),
        explanation="Overlap of the registered brain mask with the template's. Low when the mask has lost or gained "
        "parts, or the registration failed.",
        source=_OWN,
    ),
    Measure(
        name="template_correlation",
        unit="",
        direction="higher",
        reason="template_correlation",
        bounds=_bounds((0.40, None), (0.30, None)),
        explanation="Correlation with the template inside its brain, at 2 mm. Low when the registration failed, the "
        "head is upside down, the contrast is not T1w, or noise and motion hide the anatomy.",
        source=_OWN,
    ),
    Measure(
        name="affine_scale",
        unit="",
        direction="range",
        reason="affine_scale",
        bounds=_bounds((0.92, 1.32), (0.85, 1.42)),
        explanation="Cube root of the affine's determinant: above 1 the brain is smaller than the template.",
        source=_OWN,
    ),
    Measure(
        name="affine_rotation_deg",
        unit="degrees",
        direction="lower",
        reason="affine_rotation",
        bounds=_bounds((None, 50.0), (None, 75.0)),
        explanation="Angle by which the head had to be turned. A large one means a tilted head, or axes that the "
        "header mislabels.",
        source=_OWN,
    ),
    Measure(
        name="brain_touches_border",
        unit="",
        direction="lower",
        reason="brain_touches_border",
        bounds=_bounds((None, 0.5)),
        explanation="Whether more than a sliver of the brain mask reaches the edge of a whole head's field of view: "
        "part of the brain may lie outside.",
        source=_OWN,
    ),
    Measure(
        name="cnr",
        unit="",
        direction="higher",
        reason="cnr",
        bounds=_bounds((0.9, None)),
        explanation="Contrast between white and grey matter over the spread of both and of the air. Low with noise, "
        "motion, or a weak contrast. None without air around the head.",
        source=f"Magnotta 2006, 10.1007/s10278-006-0264-x, as in {MRIQC}",
    ),
    Measure(
        name="snr",
        unit="",
        direction="higher",
        reason="snr",
        bounds=_bounds((5.0, None), (2.5, None)),
        explanation="Mean over standard deviation of white matter. Low with noise or a strong residual bias field.",
        source=MRIQC,
    ),
    Measure(
        name="cjv",
        unit="",
        direction="lower",
        reason="cjv",
        bounds=_bounds((None, 1.45), (None, 3.0)),
        explanation="Joint variation of grey and white matter over their contrast. High with noise, motion, or a bias "
        "field that is left.",
        source=f"Ganzetti 2016, 10.3389/fninf.2016.00010, as in {MRIQC}",
    ),
    Measure(
        name="efc",
        unit="",
        direction="lower",
        explanation="Entropy of the intensities of the whole head, 1 when energy is spread evenly; ghosting and motion "
        "raise it. None on a stripped scan.",
        source=f"Atkinson 1997, 10.1109/42.650886, as in {MRIQC}",
    ),
    Measure(
        name="fber",
        unit="",
        direction="higher",
        explanation="Energy of the head over that of the air around it. None where the air was removed.",
        source=f"QAP (Shehzad 2015, 10.3389/conf.fnins.2015.91.00047), as in {MRIQC}",
    ),
    Measure(
        name="inu_range",
        unit="",
        direction="lower",
        reason="inu_range",
        bounds=_bounds((None, 4.5), (None, 12.0)),
        explanation="Ratio of the strongest to the weakest bias field inside the brain (95th to 5th percentile). Above "
        "the bound the coil's falloff, or its correction, is unusual.",
        source=_OWN,
    ),
    Measure(
        name="t1w_contrast",
        unit="",
        direction="range",
        reason="wrong_contrast",
        bounds=_bounds((1.05, 2.5), (1.0, 4.0)),
        explanation="Median of white matter over median of grey matter, where the template expects them. White matter "
        "is the brighter one in T1w only; below 1 the scan is a T2w, a FLAIR or something else.",
        source=_OWN,
    ),
    Measure(
        name="spacing_mm",
        unit="mm",
        direction="lower",
        reason="thick_slices",
        bounds=_bounds((None, 3.0), (None, 6.0)),
        explanation="Largest voxel size. Thicker than 3 mm, small structures such as the hippocampus are not resolved.",
        source="T1w protocols for morphometry, 0.7 to 1.5 mm (ADNI; Jack 2008, 10.1002/jmri.21049)",
    ),
    Measure(
        name="fov_mm",
        unit="mm",
        direction="note",
        explanation="Smallest extent of the field of view.",
        source="header",
    ),
    Measure(
        name="skull_stripped_input",
        unit="",
        direction="note",
        explanation="Whether the scan came without its skull and was left as it is.",
        source="this project",
    ),
    Measure(
        name="header_warnings",
        unit="",
        direction="note",
        reason="header",
        explanation="What was mended or is suspicious in the file's header, as short codes.",
        source="this project",
    ),
)

MEASURE_BY_NAME: Final = {measure.name: measure for measure in MEASURES}


def assess(registered: RegisteredBrain, overrides: Mapping[str, QualityBounds] | None = None) -> QcReport:
    """Measure a preprocessed scan and judge it.

    Parameters
    ----------
    registered : RegisteredBrain
    overrides : mapping, optional
        Bounds by measure, in place of the built-in ones.
    """
    measures = measure(registered)
    return QcReport(measures=measures, verdict=judge(measures, overrides or {}))


def measure(registered: RegisteredBrain) -> dict[str, float | bool | str | None]:
    """Return every measure of section 7 of the contract, by name."""
    corrected = registered.normalised.corrected
    stripped = corrected.stripped
    template = load_template(JUDGED_AT_MM)
    brain = _own_units_at(registered, template)
    brain_mask = resampled_mask(registered.brain_mask, template.grid)
    tissues = fit_tissues(corrected.head.data[corrected.brain_mask.data])
    air = None if stripped.skull_stripped_input else _air(stripped)
    return {
        "brain_volume_ml": _rounded(stripped.brain_mask.volume_ml),
        "mask_template_dice": _rounded(dice(brain_mask.data, template.brain_mask.data)),
        "template_correlation": _rounded(
            correlation_inside(brain, template.t1w.data, template.brain_mask.data)
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
    }


def judge(
    measures: Mapping[str, float | bool | str | None], overrides: Mapping[str, QualityBounds]
) -> QcVerdict:
    """Hold measures against their bounds; a measure that is None has no say."""
    fails, warns = [], []
    for spec in MEASURES:
        bounds = overrides.get(spec.name, spec.bounds)
        value = measures.get(spec.name)
        if bounds is None or value is None or isinstance(value, str):
            continue
        status = status_of(float(value), bounds)
        if status is QcStatus.FAIL:
            fails.append(spec.reason or spec.name)
        elif status is QcStatus.WARN:
            warns.append(spec.reason or spec.name)
    codes = str(measures.get("header_warnings") or "").split(";")
    warns += [f"header_{code}" for code in codes if code in WARNING_CODES_THAT_WARN]
    status = QcStatus.FAIL if fails else QcStatus.WARN if warns else QcStatus.PASS
    return QcVerdict(status=status, reasons=(*fails, *warns))


def require_known_measures(bounds: Mapping[str, QualityBounds]) -> None:
    """Raise :class:`ConfigError` for bounds of a measure that does not exist."""
    for name in bounds:
        if name not in MEASURE_BY_NAME:
            close = difflib.get_close_matches(name, MEASURE_BY_NAME, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(MEASURE_BY_NAME)}"
            raise ConfigError(f"quality.{name}: there is no such measure; {hint}")


def status_of(value: float, bounds: QualityBounds) -> QcStatus:
    """Hold one value against its bounds.

    >>> status_of(2.5, QualityBounds(passing=(3.0, None), tolerated=(2.0, None))).value
    'warn'
    """
    if _within(value, bounds.passing):
        return QcStatus.PASS
    return QcStatus.WARN if _within(value, bounds.tolerated) else QcStatus.FAIL


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


def _within(value: float, interval: tuple[float | None, float | None]) -> bool:
    low, high = interval
    return (low is None or value >= low) and (high is None or value <= high)


def _own_units_at(registered: RegisteredBrain, template: Template) -> NDArray[np.float32]:
    """Return the registered brain in the image's own units, 0 outside the mask, on the template's grid."""
    normalisation = registered.normalised.normalisation
    own = registered.brain.data * np.float32(normalisation.scale) + np.float32(normalisation.centre)
    inside = np.where(registered.brain_mask.data, np.maximum(own, 0.0), np.float32(0.0))
    return resampled(registered.brain.with_data(inside), template.grid).data


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
