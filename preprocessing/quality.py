"""QC measures and the gate that a prediction has to pass.

Each measure has a row in :data:`MEASURES`: unit, direction, bounds, source, and what it means when it is out of
bounds. A measure that makes no sense on a scan (air around a stripped brain) is None, not wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from brainstage.pipeline.config import QualityBounds
from brainstage.pipeline.errors import ConfigError
from brainstage.pipeline.records import QcReport, QcStatus, QcVerdict, RegisteredBrain
from brainstage.preprocessing.measures import MeasureValue, measure

STAGE_VERSION: Final = "8"

CAUSE: Final = "wrong_contrast"
MISPLACED: Final = "mask_overlap"
CONSEQUENCES: Final[Mapping[str, frozenset[str]]] = {
    # They compare intensities with those of a T1w scan.
    CAUSE: frozenset(
        {
            "template_correlation",
            "axes_mislabelled",
            "cnr",
            "snr",
            "cjv",
            "mask_cuts_brain",
            "inu_range",
            "contrast_agent",
        }
    ),
    "contrast_agent": frozenset({"cnr", "cjv"}),
    "noise": frozenset({"cnr", "snr", "cjv"}),
}
"""Code to the codes that follow from it."""
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
    added : bool
        Not in the list that programs may rely on: its column stands behind those.
    on_demand : bool
        Measured only when the configuration asks for it.
    """

    name: str
    unit: str
    direction: Literal["higher", "lower", "range", "note"]
    explanation: str
    source: str
    reason: str = ""
    bounds: QualityBounds | None = None
    added: bool = False
    on_demand: bool = False


def _bounds(
    passing: tuple[float | None, float | None], tolerated: tuple[float | None, float | None] = (None, None)
) -> QualityBounds:
    return QualityBounds(passing=passing, tolerated=tolerated)


_OWN: Final = "this project; bounds from the scans in docs/concepts/quality-control.md"

_FLUID: Final = "this project; checked against manual labels in docs/concepts/quality-control.md"

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
        bounds=_bounds((0.91, None), (0.88, None)),
        explanation="Overlap of the registered brain mask with the template's. Low when the mask has lost or gained "
        "parts, or the registration failed.",
        source=_OWN,
    ),
    Measure(
        name="template_correlation",
        unit="",
        direction="higher",
        reason="template_correlation",
        bounds=_bounds((0.565, None), (0.48, None)),
        explanation="Correlation with the template inside its brain but for the ventricles, at 2 mm, both smoothed to "
        "4 mm. Low when the registration failed, the contrast is not T1w, or noise and motion hide the anatomy.",
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
        explanation="Contrast between white and grey matter over the spread of both and of the air. It falls with "
        "age, and its bound lies below that; low with noise or a weak contrast. None without air around the head.",
        source=f"Magnotta 2006, 10.1007/s10278-006-0264-x, as in {MRIQC}",
    ),
    Measure(
        name="snr",
        unit="",
        direction="higher",
        reason="snr",
        bounds=_bounds((5.0, None), (3.0, None)),
        explanation="Mean over standard deviation of white matter. It falls with age and with lesions, and its bound "
        "lies below that; low with much noise or a strong residual bias field.",
        source=MRIQC,
    ),
    Measure(
        name="cjv",
        unit="",
        direction="lower",
        reason="cjv",
        bounds=_bounds((None, 1.4), (None, 3.0)),
        explanation="Joint variation of grey and white matter over their contrast. It rises with age, and its bound "
        "lies above that; high where the two can hardly be distinguished.",
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
        bounds=_bounds((1.06, 2.5), (1.02, 4.0)),
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
    Measure(
        name="upright_margin",
        unit="",
        direction="higher",
        reason="axes_mislabelled",
        added=True,
        bounds=_bounds((0.16, None), (0.155, None)),
        explanation="By how much the brain fits the template better as it lies than turned by half a circle about any "
        "axis. Low when the header reverses an axis: the head is upside down, back to front, or mirrored; also where "
        "it is so unlike the template that no way of lying fits.",
        source=_OWN,
    ),
    Measure(
        name="missing_tissue_ml",
        unit="ml",
        direction="lower",
        reason="missing_tissue",
        added=True,
        bounds=_bounds((None, 8.0), (None, 20.0)),
        explanation="Volume inside the template, at least 8 mm under its surface, where the scan has no brain mask or "
        "no signal; dark fluid in ventricles and sulci is not counted. High when part of the brain lies outside the "
        "field of view, dropped out, or was cut away, or the registration failed.",
        source=_OWN,
    ),
    Measure(
        name="rim_to_grey",
        unit="",
        direction="lower",
        reason="mask_cuts_brain",
        added=True,
        bounds=_bounds((None, 0.79), (None, 0.82)),
        explanation="Median of the mask's outermost 2 mm over the mean of grey matter. A whole brain ends in "
        "fluid; high when the mask was cut into the cortex.",
        source=_OWN,
    ),
    Measure(
        name="clipped_share",
        unit="",
        direction="lower",
        reason="clipped_intensities",
        added=True,
        bounds=_bounds((None, 0.03), (None, 0.30)),
        explanation="Share of the brain's voxels that hold the highest intensity inside the brain: intensities were "
        "cut off at a ceiling, and the contrast above it is lost.",
        source=_OWN,
    ),
    Measure(
        name="white_matter_noise",
        unit="%",
        direction="lower",
        reason="noise",
        added=True,
        bounds=_bounds((None, 15.0), (None, 40.0)),
        explanation="Noise of single voxels in deep white matter, over its intensity; from the differences between "
        "neighbours, so that neither age nor lesions nor contrast count.",
        source=_OWN,
    ),
    Measure(
        name="bright_share",
        unit="%",
        direction="lower",
        reason="contrast_agent",
        added=True,
        bounds=_bounds((None, 0.4)),
        explanation="Share of the brain's voxels at least 1.5 times as bright as white matter. High when vessels and "
        "dura are: a contrast agent was given. Also where a mask takes in fat.",
        source=_OWN,
    ),
    Measure(
        name="band_misregistration",
        unit="",
        direction="lower",
        reason="motion",
        added=True,
        bounds=_bounds((None, 1.4)),
        explanation="How far the spatial frequencies of the brain lie apart along one axis, over what is usual of "
        "still heads. High when the head moved during the scan: each band of frequencies is acquired at its own time. "
        "It says that the head moved, not how bad the scan is. None where voxels are thicker than 2.6 mm.",
        source=_OWN,
    ),
    Measure(
        name="gradient_entropy",
        unit="",
        direction="note",
        added=True,
        explanation="Entropy of the gradients inside the brain, 1 where they are the same everywhere. Among scans of "
        "one protocol the highest are those with ringing, ghosts or noise; it differs between protocols and rises with "
        "age, and is never judged.",
        source="Loktyushin 2013",
    ),
    Measure(
        name="ventricle_share",
        unit="%",
        direction="note",
        added=True,
        explanation="Lateral ventricles with their temporal horns over the brain mask, in native space: fluid by how "
        "little tissue lies between it and the template's ventricles. It rises with age and with atrophy; it is "
        "reported, and never judged.",
        source=_FLUID,
    ),
    Measure(
        name="mask_agreement_dice",
        unit="",
        direction="higher",
        reason="mask_disagreement",
        added=True,
        bounds=_bounds((0.90, None), (0.80, None)),
        on_demand=True,
        explanation="Overlap of the brain mask with the one that the other extractor finds. Low when one of them is "
        "wrong. Measured when the configuration asks for a second opinion.",
        source=_OWN,
    ),
)
"""In the order of the tables."""

MEASURE_BY_NAME: Final = {measure.name: measure for measure in MEASURES}


def assess(
    registered: RegisteredBrain,
    overrides: Mapping[str, QualityBounds] | None = None,
    *,
    second_opinion: bool = False,
    seed: int = 0,
) -> QcReport:
    """Measure a preprocessed scan and judge it.

    Parameters
    ----------
    registered : RegisteredBrain
    overrides : mapping, optional
        Bounds by measure, in place of the built-in ones.
    second_opinion, seed
        As of :func:`brainstage.preprocessing.measures.measure`.
    """
    measures = measure(registered, second_opinion=second_opinion, seed=seed)
    return QcReport(measures=measures, verdict=judge(measures, overrides or {}))


def judge(measures: Mapping[str, MeasureValue], overrides: Mapping[str, QualityBounds]) -> QcVerdict:
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
    if CAUSE in fails and MISPLACED not in fails:
        # What follows from the contrast says nothing more; of a brain beside the template the contrast says nothing.
        fails, warns = (
            [code for code in codes if code not in CONSEQUENCES[CAUSE]] for codes in (fails, warns)
        )
    for cause in set(warns) & set(CONSEQUENCES):
        warns = [code for code in warns if code not in CONSEQUENCES[cause]]
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


def _within(value: float, interval: tuple[float | None, float | None]) -> bool:
    low, high = interval
    return (low is None or value >= low) and (high is None or value <= high)
