"""The state between stages: frozen, keyword-only, one type per state of knowledge.

The chain is ``IngestedHead -> StrippedBrain -> CorrectedBrain -> NormalisedBrain -> RegisteredBrain ->
NetworkInput``; a stage that asks for one cannot be called with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import GeometryError, IntensityError
from brainstage.pipeline.volume import (
    Affine,
    BrainMask,
    DisplacementField,
    Volume,
    checked_affine,
    frozen_array,
    require_same_grid,
)


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """What is known about the person at this visit.

    Attributes
    ----------
    age : float or None
        Years.
    sex : str or None
        As written in the table; ``F`` and ``M`` are understood.
    site : str or None
        Scanner or centre.
    extra : mapping
        Every further column of the tables, as text.
    """

    age: float | None = None
    sex: str | None = None
    site: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def value(self, column: str) -> str | None:
        """Return a column by name as text, as a manifest writes it; None where it is empty or absent."""
        found = getattr(self, column) if column in ("age", "sex", "site") else self.extra.get(column)
        return None if found in (None, "") else f"{found:g}" if isinstance(found, float) else str(found)


class ReviewDecision(StrEnum):
    """What a person who looked at a scan says of it."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    UNSURE = "unsure"


@dataclass(frozen=True, kw_only=True)
class Review:
    """A person's decision about the picture of a scan.

    Attributes
    ----------
    decision : ReviewDecision
    note : str
        In the reviewer's words.
    sha256, preprocessing_id : str
        Of the scan's file, and of the chain that made the picture: what was looked at. Empty for any.
    reviewer : str
        Who decided; empty where that is not said.
    decided_at : str
        UTC, such as ``2025-01-31T12:00:00Z``; empty where that is not known.
    """

    decision: ReviewDecision
    note: str = ""
    sha256: str = ""
    preprocessing_id: str = ""
    reviewer: str = ""
    decided_at: str = ""

    @property
    def by(self) -> str:
        """Who decided and when, as far as that is known.

        >>> Review(decision=ReviewDecision.PASS, reviewer="KL", decided_at="2025-01-31T12:00:00Z").by
        'KL, 2025-01-31'
        """
        return ", ".join(filter(None, (self.reviewer, self.decided_at.partition("T")[0])))

    def objection(self, sha256: str, preprocessing_id: str) -> str | None:
        """Return why this decision is not about a picture, or None where it is.

        Parameters
        ----------
        sha256 : str
            Of the file that the picture was made from; empty where that is not known.
        preprocessing_id : str
            Of the chain that made it.
        """
        if self.sha256 and not sha256:
            return "its file is not known"
        if self.sha256 not in ("", sha256):
            return "another file"
        return None if self.preprocessing_id in ("", preprocessing_id) else "preprocessed otherwise"

    @property
    def code(self) -> str:
        """For ``qc_reasons``."""
        return f"reviewed_{self.decision}"

    @property
    def status(self) -> QcStatus:
        """What it says by itself; unsure is a warning."""
        return {
            ReviewDecision.PASS: QcStatus.PASS,
            ReviewDecision.FAIL: QcStatus.FAIL,
            ReviewDecision.UNSURE: QcStatus.WARN,
        }[self.decision]


@dataclass(frozen=True, kw_only=True)
class T1wScan:
    """One T1w file of a BIDS dataset.

    Attributes
    ----------
    entities : BidsEntities
    path : Path
        Where the file lies on this machine; never written to an output.
    t1w_path : str
        The same, relative to the BIDS directory, with forward slashes.
    covariates : Covariates
    label : str or None
        Diagnosis or whatever the label column holds.
    split : str
        ``train``, ``test`` or empty.
    fault : str or None
        Why the file cannot even be tried, such as a link that leads out of the dataset.
    review : Review or None
        What a person decided who looked at it; about the picture it is bound to, and no other.
    sha256 : str or None
        Of the file's bytes as they went into the keys of the stages; None where nobody has read them yet.
    """

    entities: BidsEntities
    path: Path
    t1w_path: str
    covariates: Covariates = Covariates()
    label: str | None = None
    split: str = ""
    fault: str | None = None
    review: Review | None = None
    sha256: str | None = None

    @property
    def key(self) -> str:
        """The scan's name, such as ``sub-01_ses-M12_run-1``."""
        return self.entities.key

    @property
    def root(self) -> Path:
        """The BIDS directory."""
        return self.path.parents[self.t1w_path.count("/")]


@dataclass(frozen=True, kw_only=True)
class HeaderFindings:
    """What ingestion saw in the file, before anything was changed.

    Attributes
    ----------
    shape, spacing_mm, axcodes
        Of the file as stored.
    affine_source : str
        ``sform`` or ``qform``: the one that was believed.
    warnings : tuple of str
        Sentences for the report; each begins with a short code and a colon.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    axcodes: str
    affine_source: str
    warnings: tuple[str, ...] = ()

    @property
    def warning_codes(self) -> tuple[str, ...]:
        """The short codes of the warnings."""
        return tuple(text.partition(":")[0] for text in self.warnings)


@dataclass(frozen=True, kw_only=True, eq=False)
class IngestedHead:
    """A scan read whole, believed, and turned to RAS; still with its skull if it came with one."""

    head: Volume
    findings: HeaderFindings


@dataclass(frozen=True, kw_only=True, eq=False)
class StrippedBrain:
    """A head and which of its voxels are brain.

    Attributes
    ----------
    head : Volume
        As ingested, not masked.
    brain_mask : BrainMask
        On the head's grid.
    method : str
        ``deepbet``, ``ants`` or ``none``.
    skull_stripped_input : bool
        The scan came without its skull.
    """

    head: Volume
    findings: HeaderFindings
    brain_mask: BrainMask
    method: str
    skull_stripped_input: bool

    def __post_init__(self) -> None:
        require_same_grid(self.head, self.brain_mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrectedBrain:
    """A head without its bias field.

    Attributes
    ----------
    head : Volume
        Bias-corrected, native space, RAS, not masked.
    field_range : float
        Ratio of the 95th to the 5th percentile of the multiplicative field inside the mask; 1 is flat.
    """

    head: Volume
    brain_mask: BrainMask
    stripped: StrippedBrain
    field_range: float

    def __post_init__(self) -> None:
        require_same_grid(self.head, self.brain_mask)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """The linear map that was applied inside the mask: ``normalised = (intensity - centre) / scale``."""

    method: str
    centre: float
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalisedBrain:
    """A stripped, bias-corrected brain with comparable intensities; zero outside the mask, native space."""

    brain: Volume
    brain_mask: BrainMask
    normalisation: Normalisation
    corrected: CorrectedBrain


@dataclass(frozen=True, kw_only=True, eq=False)
class Deformation:
    """The two directions of a diffeomorphism on the template's side of the affine.

    Attributes
    ----------
    forward : DisplacementField
        On the template: added to a template point before the affine leads to native space.
    inverse : DisplacementField
        On the template: added to an affinely aligned native point.
    """

    forward: DisplacementField
    inverse: DisplacementField


@dataclass(frozen=True, kw_only=True, eq=False)
class RegisteredBrain:
    """A brain on the template's grid.

    Attributes
    ----------
    brain : Volume
        Normalised intensities in template space, zero outside the mask.
    brain_mask : BrainMask
        The native mask carried to template space.
    native_to_template : ndarray, (4, 4) float64
        The affine part: native RAS+ mm to template RAS+ mm.
    deformation : Deformation or None
        What SyN adds; None for an affine registration.
    """

    brain: Volume
    brain_mask: BrainMask
    native_to_template: Affine
    normalised: NormalisedBrain
    deformation: Deformation | None = None

    def __post_init__(self) -> None:
        require_same_grid(self.brain, self.brain_mask)
        object.__setattr__(self, "native_to_template", checked_affine(self.native_to_template))


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkInput:
    """What the network sees, and what its control and its baseline see besides.

    Attributes
    ----------
    image : ndarray, (1, D, H, W) float32
        One channel.
    brain_mask : ndarray, (D, H, W) bool
        The brain on the same grid, for the controls.
    voxel_to_ras : ndarray, (4, 4) float64
        Of the spatial axes, to template RAS+ mm.
    local_volume : ndarray, (I, J, K) float32
        Logarithm of local volume in the middle of the brain, on a grid of its own, for the baseline.
    """

    image: NDArray[np.float32]
    brain_mask: NDArray[np.bool_]
    voxel_to_ras: Affine
    local_volume: NDArray[np.float32]

    def __post_init__(self) -> None:
        image = frozen_array(self.image, np.float32)
        if image.ndim != 4 or image.shape[0] != 1 or image.shape[1:] != np.shape(self.brain_mask):
            raise GeometryError(
                f"a network input has shape (1, D, H, W) and a mask (D, H, W), got {image.shape} "
                f"and {np.shape(self.brain_mask)}"
            )
        local_volume = frozen_array(self.local_volume, np.float32)
        if not np.isfinite(image).all() or not np.isfinite(local_volume).all():
            raise IntensityError("the network input holds values that are not finite")
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "local_volume", local_volume)
        object.__setattr__(self, "brain_mask", frozen_array(self.brain_mask, np.bool_))
        object.__setattr__(self, "voxel_to_ras", checked_affine(self.voxel_to_ras))


class QcStatus(StrEnum):
    """The gate's verdict."""

    PASS = "pass"  # noqa: S105
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class QcVerdict:
    """Pass, warn or fail, and the short codes of the reasons."""

    status: QcStatus
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QcReport:
    """The measures of one scan, by name, and the verdict on them.

    Attributes
    ----------
    measures : mapping
        Name to value, as in section 7 of the contract; None where a measure makes no sense.
    """

    measures: Mapping[str, float | bool | str | None]
    verdict: QcVerdict


VOLUMES: Final = (
    "intracranial", "grey_matter", "white_matter", "csf", "ventricle_left", "ventricle_right",
    "hippocampus_left", "hippocampus_right",
)  # fmt: skip
"""What is measured in millilitres, in the order of the tables."""


class VolumesStatus(StrEnum):
    """What became of the volumes of a scan."""

    REPORTED = "reported"
    PARTIAL = "partial"
    WITHHELD = "withheld"


@dataclass(frozen=True, kw_only=True)
class BrainVolumes:
    """The volumes of one scan, in native space; what its own quality does not bear out is left out.

    Attributes
    ----------
    volumes_ml : mapping
        A name of :data:`VOLUMES` to millilitres; None where it is withheld.
    reasons : tuple of str
        Why something is withheld: the name of the volume, a colon, and a short code, such as
        ``hippocampus_left:unsure``.
    quality : mapping
        What the outlines were judged by, such as ``hippocampus_left_certainty``; None where it makes no sense.
    atlas_ml : mapping
        Region of the user's atlas to millilitres.
    """

    volumes_ml: Mapping[str, float | None]
    reasons: tuple[str, ...] = ()
    quality: Mapping[str, float | None] = field(default_factory=dict)
    atlas_ml: Mapping[str, float] = field(default_factory=dict)

    @property
    def status(self) -> VolumesStatus:
        """Reported where all are there, withheld where none is."""
        found = [self.volumes_ml.get(name) is not None for name in VOLUMES]
        if all(found):
            return VolumesStatus.REPORTED
        return VolumesStatus.PARTIAL if any(found) else VolumesStatus.WITHHELD

    @property
    def measures(self) -> dict[str, float | None]:
        """Every number of the tables by its column: millilitres, per cent of the intracranial volume, asymmetry."""
        intracranial = self.volumes_ml.get("intracranial")
        left, right = (self.volumes_ml.get(f"hippocampus_{side}") for side in ("left", "right"))
        in_ml = {f"{name}_ml": self.volumes_ml.get(name) for name in VOLUMES}
        of_head = {
            f"{name}_pct_icv": 100.0 * ml / intracranial if ml is not None and intracranial else None
            for name in VOLUMES[1:]
            for ml in (self.volumes_ml.get(name),)
        }
        asymmetry = 200.0 * (left - right) / (left + right) if left and right else None
        return {**in_ml, "hippocampus_asymmetry_pct": asymmetry, **of_head}


@dataclass(frozen=True, kw_only=True, eq=False)
class AssessedBrain:
    """A registered brain with quality control's verdict and, where there is a model, its prediction.

    Attributes
    ----------
    registered : RegisteredBrain
    qc : QcReport
    volumes : BrainVolumes or None
        None before they are measured.
    labels : Volume or None
        Hippocampi, ventricles and tissues as labels, native space; None where quality control failed.
    prediction : Prediction, NumberPrediction or None
        None without a model.
    """

    registered: RegisteredBrain
    qc: QcReport
    volumes: BrainVolumes | None = None
    labels: Volume | None = None
    prediction: ScanPrediction | None = None


class PredictionStatus(StrEnum):
    """What became of a scan's prediction."""

    REPORTED = "reported"
    FLAGGED = "flagged"
    WITHHELD = "withheld"
    FAILED = "failed"
    NO_MODEL = "no_model"


@dataclass(frozen=True, kw_only=True)
class ReferenceFinding:
    """A measure of one scan, compared with a class of a model's training cohort, or with the people of norms.

    Attributes
    ----------
    measure : str
    value : float
        Of the scan.
    label : str
        The class.
    people : int
        Of the class that it is compared with.
    by : tuple of str
        ``age`` and ``sex``, as far as the comparison takes them into account.
    expected, low, high : float or None
        What is expected, and where 95 of 100 further people of the class would lie; None where nothing is compared.
    percentile : float or None
        Of the class below the scan, 0 to 100.
    percentile_low, percentile_high : float or None
        The 95 % interval of the percentile, for the class was known by a sample only.
    reason : str
        Why nothing is compared.
    """

    measure: str
    value: float
    label: str
    people: int
    by: tuple[str, ...]
    expected: float | None = None
    low: float | None = None
    high: float | None = None
    percentile: float | None = None
    percentile_low: float | None = None
    percentile_high: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one scan, before quality control has its word.

    Attributes
    ----------
    probabilities : dict
        Class to calibrated probability; the values sum to 1.
    prediction_set : tuple of str
        The conformal set.
    set_level : float
        With which probability such sets hold the true class.
    ood_score : float
        Novelty; above `ood_threshold` the scan is unlike the training scans.
    tier : str
        ``high``, ``review`` or ``low``.
    member_labels : dict
        Member of the model to the class that it says.
    model_id : str
    seen_in_training : bool
        The model was trained on this scan; what is said here comes from the fold that did not see it.
    covariates_missing : bool
        The model uses covariates, and not all of this scan's are known.
    volumes_missing : bool
        The probabilities depend on volumes, and not all of this scan's are known.
    site_unknown : bool
        The model takes the location and scale of sites out, and does not know this scan's.
    member_weights : dict
        Member to how much it counts in the published probabilities, 0 to 1: its mean weight over the folds that answer.
    volume_contributions : dict
        Measure to what it adds to the logarithm of the published probability of the predicted class, relative to the
        geometric mean over the classes; only where the member on volumes counts.
    compared_members : tuple of str
        Members that are better than chance out of fold, whose disagreement means something.
    disagreement_flags : bool
        Out of fold, their disagreement went with more errors.
    above_chance : bool
        The model is better than chance out of fold.
    reference : tuple of ReferenceFinding
        Measures of the scan against the model's class of reference; no part of what it says.
    """

    probabilities: dict[str, float]
    prediction_set: tuple[str, ...]
    ood_score: float
    ood_threshold: float
    tier: str
    member_labels: dict[str, str]
    model_id: str
    set_level: float = 0.9
    seen_in_training: bool = False
    covariates_missing: bool = False
    volumes_missing: bool = False
    site_unknown: bool = False
    member_weights: dict[str, float] = field(default_factory=dict)
    volume_contributions: dict[str, float] = field(default_factory=dict)
    compared_members: tuple[str, ...] = ()
    disagreement_flags: bool = False
    above_chance: bool = True
    reference: tuple[ReferenceFinding, ...] = ()

    def __post_init__(self) -> None:
        values = np.array(list(self.probabilities.values()))
        if not np.isfinite(values).all() or abs(values.sum() - 1.0) > 1e-4 or values.min() < 0:
            raise IntensityError(f"probabilities must lie in 0..1 and sum to 1, got {self.probabilities}")
        if not np.isfinite(self.ood_score):  # it would lie above no threshold
            raise IntensityError(f"the novelty score is {self.ood_score}, which is no number to compare")

    @property
    def predicted_label(self) -> str:
        """The class with the largest probability; the first of equals."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return max(self.probabilities.values())

    @property
    def members_disagree(self) -> bool:
        """Whether a member that is better than chance says another class than the model."""
        return any(self.member_labels.get(name) != self.predicted_label for name in self.compared_members)


@dataclass(frozen=True, kw_only=True)
class NumberPrediction:
    """What a model of a number says about one scan, before quality control has its word.

    Attributes
    ----------
    column : str
        What is predicted: a column of the table of scans, such as ``age``.
    value : float
        In the unit of that column.
    interval_low, interval_high : float
        Around it.
    level : float
        With which probability such intervals hold the true value.
    ood_score : float
        Novelty; above `ood_threshold` the scan is unlike the training scans.
    member_values : dict
        Member of the model to the value that it says.
    model_id : str
    seen_in_training, covariates_missing, volumes_missing, site_unknown : bool
        As of a :class:`Prediction`.
    above_chance : bool
        Out of fold the model is better than saying the mean to everybody.
    """

    column: str
    value: float
    interval_low: float
    interval_high: float
    level: float
    ood_score: float
    ood_threshold: float
    member_values: dict[str, float]
    model_id: str
    seen_in_training: bool = False
    covariates_missing: bool = False
    volumes_missing: bool = False
    site_unknown: bool = False
    above_chance: bool = True

    def __post_init__(self) -> None:
        if not np.isfinite([self.value, self.interval_low, self.interval_high, self.ood_score]).all():
            raise IntensityError(
                f"a predicted number, its interval and the novelty score must be finite, got {self.value}, "
                f"{self.interval_low} to {self.interval_high}, and {self.ood_score}"
            )

    def gap(self, known: float | None) -> float | None:
        """Return how far the prediction lies above what is known; None where that is not known."""
        return None if known is None else self.value - known


ScanPrediction = Prediction | NumberPrediction
"""A class, or a number."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How one stage came to its result."""

    stage: str
    version: str
    parameters: Mapping[str, Any]
    tool_versions: Mapping[str, str]
    input_sha256: Mapping[str, str]
    seconds: float
    attempt: int = 1
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A scan whose stages all ran.

    Attributes
    ----------
    qc : QcReport
    prediction : Prediction, NumberPrediction or None
        None without a model.
    preprocessing_id : str
    provenance : tuple of Provenance
        In the order of the stages.
    source_sha256 : str
        Of the file that the picture was made from; empty where that is not known.
    volumes : BrainVolumes or None
        None where they were not measured, as in an output directory of an earlier version.
    """

    scan: T1wScan
    qc: QcReport
    prediction: ScanPrediction | None
    preprocessing_id: str
    provenance: tuple[Provenance, ...] = ()
    source_sha256: str = ""
    volumes: BrainVolumes | None = None

    @property
    def review(self) -> Review | None:
        """What a person decided about this picture; None where nobody did, or about another picture of the scan."""
        return None if self.review_objection else self.scan.review

    @property
    def review_objection(self) -> str | None:
        """Why the decision that there is does not count: it is about another picture. None where it does."""
        review = self.scan.review
        return review.objection(self.source_sha256, self.preprocessing_id) if review else None

    @property
    def verdict(self) -> QcVerdict:
        """Quality control's verdict, or that of whoever looked at the scan.

        A person's pass or fail stands; unsure turns a pass into a warning. What was measured stays among the reasons.
        """
        measured, review = self.qc.verdict, self.review
        if review is None:
            return measured
        unsure_of_a_failure = review.status is QcStatus.WARN and measured.status is QcStatus.FAIL
        status = QcStatus.FAIL if unsure_of_a_failure else review.status
        return QcVerdict(status=status, reasons=(*measured.reasons, review.code))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scan that a stage could not handle.

    Attributes
    ----------
    stage : str
        The stage that failed.
    error : str
        Name of the error class.
    message : str
        One sentence without absolute paths.
    defect : bool
        The error was not foreseen: a defect of the program, its traceback is in the log.
    remembered : bool
        It is the failure of an earlier run, of the same stage with the same key: nothing is left to compute.
    """

    scan: T1wScan
    stage: str
    error: str
    message: str
    defect: bool = False
    remembered: bool = field(default=False, compare=False)
    preprocessing_id: str = ""
    provenance: tuple[Provenance, ...] = field(default=())


SubjectOutcome = Completed | Failure
