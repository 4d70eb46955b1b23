"""One self-contained page per scan: the verdict in words, pictures, measures, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

from brainstage.pipeline.config import PredictionConfig
from brainstage.pipeline.records import (
    BrainVolumes,
    Failure,
    HeaderFindings,
    Prediction,
    PredictionStatus,
    Provenance,
    QcStatus,
    ReferenceFinding,
    SubjectOutcome,
)
from brainstage.workflows.evidence import BRIGHTNESS, COLOURED_FROM, LOCAL_VOLUME, Evidence
from brainstage.workflows.reporting.contributions import contribution_rows
from brainstage.workflows.reporting.distribution import Distribution
from brainstage.workflows.reporting.face import face_is_located
from brainstage.workflows.reporting.flicker import BANDS
from brainstage.workflows.reporting.members_table import member_rows, members_sentence, weights_sentence
from brainstage.workflows.reporting.methods import MethodStep, references_of
from brainstage.workflows.reporting.number_verdict import NumberShown, number_shown
from brainstage.workflows.reporting.pages import (
    RunInfo,
    page_environment,
    percent,
    png_size,
    signed,
    value_text,
)
from brainstage.workflows.reporting.qc_table import Gauge, QcRow, Reason, bounds_text, gauge_of
from brainstage.workflows.reporting.verdict import is_decided, shown_number, shown_prediction, verdict_of
from brainstage.workflows.reporting.viewer import viewer_of
from brainstage.workflows.reporting.volumes_table import (
    PeopleCompared,
    asymmetry_text,
    region_rows,
    volume_rows,
)


@dataclass(frozen=True, kw_only=True)
class FigureText:
    """Title, caption that says what to look for, and alternative text of a figure."""

    title: str
    caption: str
    alt: str


FIGURE_TEXTS: Final[Mapping[str, FigureText]] = {
    "image_quality": FigureText(
        title="Image quality: the brain",
        caption="The brain enlarged, every voxel as it is, with the contrast of its tissues; the bias field is taken "
        "out. Borders between grey and white matter should be crisp, white matter even. Ringing: fine bright and dark "
        "lines beside each other along an edge, often below the skull. Motion: such lines through much of the brain, "
        "smeared or doubled borders, grey and white matter that run into each other. Ghosts: a faint copy of an edge, "
        "an eye or a vessel, shifted in one direction. Wrap-around: a curved band across the brain that belongs to "
        "the other side of the head. Noise is grain without direction. Quality control by numbers can pass a scan that "
        "moved, so look here first. The person's left is on the left; numbers are voxel indices of the RAS volume.",
        alt="Enlarged axial, coronal and sagittal slices of the brain.",
    ),
    "background": FigureText(
        title="Image quality: the air around the head",
        caption="The whole head as it was read, made so bright that the head turns white and the noise of the air is "
        "seen. Clean air is even grain with no shape in it, perhaps brighter towards one side. Motion: ripples or "
        "streaks that spread from the head in one direction. Ghosts: a faint copy of the head's outline beside it; a "
        "weak band level with the eyes or the neck comes from moving eyes or flowing blood, and is common. "
        "Wrap-around: a piece of the head at the border of the picture opposite to where it belongs. Stripes or a "
        "lattice all over: interference. The place of the face is left out (blue), by the position of the brain, and "
        "the brain drawn over it, unless --keep-face was given.",
        alt="Slices of the whole head with the noise of the air around it made visible; the face is left out.",
    ),
    "mask": FigureText(
        title="Brain mask",
        caption="The outline (orange) of the mask on the scan as it was read. It should follow the brain's surface: "
        "look for cortex outside it, above all at the temporal poles, the vertex and the cerebellum, and for eyes, "
        "dura or neck inside it. Tissue further from the mask is left out, so that no face is shown, unless "
        "--keep-face was given. The person's left is on the left; numbers are voxel indices of the RAS volume.",
        alt="Axial, coronal and sagittal slices of the native scan with the outline of the brain mask.",
    ),
    "registration": FigureText(
        title="Registration to the template",
        caption="The registered brain under the outline (orange) and the white-matter border (blue) of "
        "the MNI152NLin2009aSym template. Outline, ventricles and the deep grey matter should agree; an affine "
        "registration cannot match single gyri. Numbers are template coordinates in mm.",
        alt="Axial, coronal and sagittal slices of the registered brain with the edges of the template.",
    ),
    "flicker": FigureText(
        title="Registration, before and after",
        caption="The same slices of the registered brain, of the template, and of the brain before registration, as "
        "its header turns it and moved so that the centres agree. Change between two of them: what jumps is not "
        "aligned. After registration outline, ventricles and midline should stay where they are.",
        alt="Slices of the registered brain, of the template, and of the brain before registration.",
    ),
    "bias_field": FigureText(
        title="Bias field",
        caption="The brain before and after correction, and the field that was divided out, relative to its median. "
        "White matter should have one shade after correction; the field should be smooth and show no anatomy.",
        alt="Slices of the brain before and after bias field correction, and the estimated field in colour.",
    ),
    "histogram": FigureText(
        title="Intensities inside the mask",
        caption="Left, before and after bias correction; right, after normalisation. Grey and white matter should "
        "form two peaks that are sharper after correction. One peak alone points to a wrong contrast, strong noise or "
        "motion.",
        alt="Histograms of the intensities inside the brain mask before and after correction, and normalised.",
    ),
}
"""Figure to its words; also the order on the page."""

OUTLINES_TEXT: Final = FigureText(
    title="Outlines",
    caption="The outlines that the volumes were counted in, on the bias-corrected scan: left orange, right blue, the "
    "border of white matter pink. Above, each hippocampus enlarged, in coronal slices through its head, body and tail "
    "and in two sagittal ones; below, the whole brain. The outline of a hippocampus should hold its grey matter and "
    "end at the fluid of the temporal horn (dark) and at white matter (bright); in front, the amygdala lies close and "
    "is no part of it. That of a ventricle should hold all of its fluid. A volume is worth no more than its outline. "
    "The person's left is on the left; numbers are voxel indices of the RAS volume.",
    alt="Enlarged slices of each hippocampus, and slices of the brain with its ventricles and white matter, outlined.",
)

_NO_BACKGROUND: Final = "The air around the head, in which ghosts and wrap-around show best, is not shown: "
_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_MAX_PARAMETER_CHARACTERS: Final = 48
_HASH_CHARACTERS: Final = 12


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """Everything a scan's page is made of. Nothing in it is an absolute path.

    Attributes
    ----------
    outcome : Completed or Failure
    prediction_status : PredictionStatus
        ``failed`` for a failure and only then.
    figures : mapping
        Name to PNG, as :func:`brainstage.workflows.reporting.figures.scan_figures` returns them; may be empty.
    volumes : mapping
        Name to gzipped NIfTI, what the viewer shows; may be empty.
    keep_face : bool
        Whether the volumes hold the whole head.
    findings : HeaderFindings or None
    qc_rows : tuple of QcRow
    distributions : mapping
        Measure to how it is spread over the scans of the output directory.
    qc_reasons : tuple of Reason
        Why quality control warns or fails.
    prediction_reasons : tuple of Reason
        Why a prediction is flagged besides quality control, and notes about it.
    remedy : str
        What to do about a failure, beyond its message.
    methods : tuple of MethodStep
    tiers : PredictionConfig
    evidence : tuple of Evidence
        What explains the prediction; shown only with it.
    norm_findings : tuple of ReferenceFinding
        Volumes compared with the people of norms; shown only with the volumes.
    cohort_page : str
        Relative name of the cohort page; empty for none.
    """

    outcome: SubjectOutcome
    prediction_status: PredictionStatus
    run: RunInfo
    figures: Mapping[str, bytes] = field(default_factory=dict)
    volumes: Mapping[str, bytes] = field(default_factory=dict)
    keep_face: bool = False
    findings: HeaderFindings | None = None
    qc_rows: tuple[QcRow, ...] = ()
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    qc_reasons: tuple[Reason, ...] = ()
    prediction_reasons: tuple[Reason, ...] = ()
    remedy: str = ""
    methods: tuple[MethodStep, ...] = ()
    tiers: PredictionConfig = field(default_factory=PredictionConfig)
    evidence: tuple[Evidence, ...] = ()
    norm_findings: tuple[ReferenceFinding, ...] = ()
    cohort_page: str = "cohort.html"

    def __post_init__(self) -> None:
        failed = isinstance(self.outcome, Failure)
        if failed != (self.prediction_status is PredictionStatus.FAILED):
            raise ValueError(
                f"a {type(self.outcome).__name__} cannot have the status {self.prediction_status}"
            )
        spoken = self.prediction_status in (PredictionStatus.REPORTED, PredictionStatus.FLAGGED)
        if spoken and (isinstance(self.outcome, Failure) or self.outcome.prediction is None):
            raise ValueError(f"the status {self.prediction_status} needs a prediction")

    @property
    def shown_prediction(self) -> Prediction | None:
        """The prediction of a class where it may be seen: None when withheld, failed or without a model."""
        return shown_prediction(self.outcome, self.prediction_status)

    @property
    def shown_number(self) -> NumberShown | None:
        """What may be seen of the prediction of a number."""
        found = shown_number(self.outcome, self.prediction_status)
        return number_shown(found, self.outcome.scan) if found else None

    @property
    def shown_volumes(self) -> BrainVolumes | None:
        """The volumes where they may be seen: None where quality control failed, or nothing was measured."""
        if isinstance(self.outcome, Failure) or self.outcome.verdict.status is QcStatus.FAIL:
            return None
        return self.outcome.volumes

    @property
    def compared(self) -> tuple[PeopleCompared, ...]:
        """Whom the measures of the scan are compared with, as far as that may be seen."""
        prediction = self.shown_prediction
        groups = (
            PeopleCompared(findings=self.norm_findings if self.shown_volumes else (), origin="the norms"),
            PeopleCompared(
                findings=prediction.reference if prediction else (), origin="the model's training cohort"
            ),
        )
        return tuple(group for group in groups if group.findings)


def render_scan_report(report: ScanReport) -> str:
    """Return the page of one scan: one HTML file that needs no other and no network.

    It is readable without its scripts, which only open the volume viewer.
    """
    outcome, prediction = report.outcome, report.shown_prediction
    viewer = viewer_of(report.volumes)
    figures = [
        (name, figure_text(name, report), report.figures[name])
        for name in FIGURE_TEXTS
        if name in report.figures
    ]
    return page_environment().get_template("scan.html.j2").render(
        report=report,
        policy=f"{_POLICY}; script-src {viewer.script_sources}" if viewer else _POLICY,
        viewer=viewer,
        run=report.run,
        scan=outcome.scan,
        failure=outcome if isinstance(outcome, Failure) else None,
        qc=None if isinstance(outcome, Failure) else outcome.verdict,
        prediction=prediction,
        number=report.shown_number,
        decided=prediction is not None and is_decided(prediction),
        members=member_rows(prediction) if prediction else (),
        members_sentence=members_sentence(prediction) if prediction else "",
        weights_sentence=weights_sentence(prediction) if prediction else "",
        contributions=contribution_rows(prediction, report.shown_volumes),
        contributed=signed(sum(prediction.volume_contributions.values())) if prediction else "",
        evidence=[(one, evidence_text(one)) for one in report.evidence] if prediction else [],
        volumes=report.shown_volumes,
        volume_rows=volume_rows(report.shown_volumes, report.compared),
        asymmetry=asymmetry_text(report.shown_volumes) if report.shown_volumes else "",
        regions=region_rows(report.shown_volumes) if report.shown_volumes else (),
        outlines=report.figures.get("volumes"),
        outlines_text=OUTLINES_TEXT,
        verdict=verdict_of(
            outcome,
            report.prediction_status,
            reasons=report.qc_reasons,
            remedy=report.remedy,
            tiers=report.tiers,
        ),
        figures=figures,
        bands=_bands(report.figures.get("flicker", b"")),
        qc_rows=[_measured(row, report.distributions.get(row.name)) for row in report.qc_rows],
        cohort_scans=max((one.scans for one in report.distributions.values()), default=0),
        provenance=[(entry, key_parameters(entry)) for entry in outcome.provenance],
        total_seconds=sum(entry.seconds for entry in outcome.provenance),
        references=references_of(report.methods),
    )  # fmt: skip


def figure_text(name: str, report: ScanReport) -> FigureText:
    """Return the words around a figure; that of the brain says why the air around the head is not shown."""
    text = FIGURE_TEXTS[name]
    if name != "image_quality" or "background" in report.figures:
        return text
    return replace(text, caption=f"{text.caption} {_NO_BACKGROUND}{_why_no_background(report)}.")


def _why_no_background(report: ScanReport) -> str:
    measures = {row.name: row.value for row in report.qc_rows}
    if measures.get("skull_stripped_input"):
        return "the scan came without its skull, and the air went with it"
    if not report.keep_face and not face_is_located(measures):
        return (
            "brain and template do not agree well enough to tell where the face is, which must not be shown"
        )
    return "it was set to one value before the scan came here, or the field of view ends at the head"


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A measure as the table shows it: against its bounds, and against the cohort where that is known."""

    row: QcRow
    bounds: str
    gauge: Gauge | None
    place: str
    spoken: str


def _measured(row: QcRow, cohort: Distribution | None) -> MeasuredRow:
    """Return the row of one measure."""
    number = row.value if isinstance(row.value, int | float) and not isinstance(row.value, bool) else None
    bounds = bounds_text(row)
    spoken = f"{row.label} {value_text(row.value, row.unit)}" + (f", expected {bounds}" if bounds else "")
    place = ""
    if number is not None and cohort is not None:
        place = cohort.place(number)
        spoken += f"; in this cohort {cohort.lowest:.4g} to {cohort.highest:.4g}, median {cohort.median:.4g}"
    return MeasuredRow(row=row, bounds=bounds, gauge=gauge_of(row, cohort), place=place, spoken=spoken)


def _bands(png: bytes) -> str:
    """Return width over height of one band of the flicker, as CSS writes it."""
    width, height = png_size(png)
    return f"{width} / {height / len(BANDS):g}"


_EXACT_WHAT: Final[Mapping[str, str]] = {
    BRIGHTNESS: "What the brightness of each place adds through the linear member, beyond what the mean of its "
    "training scans adds.",
    LOCAL_VOLUME: "What the size of each place in the middle of the brain adds through the linear member, beyond what "
    "the mean of its training scans adds. The colours are those of brightness, to be compared.",
}


def evidence_text(evidence: Evidence) -> FigureText:
    """Return the words around the map of one method: what it shows, and what it cannot say."""
    label = evidence.label
    if evidence.kind.exact:
        return FigureText(
            title=f"Linear member, {evidence.title.lower()}: what speaks for and against {label}",
            caption=f"{_EXACT_WHAT[evidence.method]} Red speaks for {label}, blue against it; what has no colour has "
            f"no part in the answer. Together {signed(evidence.total or 0.0)}. The slices are those with most of "
            "either colour; numbers are template coordinates in mm.",
            alt=f"Slices of the registered brain, red where the scan speaks for {label}, blue where against it.",
        )
    what = {
        "gradcam": f"How much each place of the registered brain adds to the logit of {label}, as coarse as the "
        "network's own maps; what speaks against the class is left out.",
        "occlusion": f"By how much the logit of {label} falls when a box around each place is given the brain's mean "
        "intensity: colour where the network would be less sure without what it sees there.",
    }[evidence.method]
    drawn = (
        f"Coloured from {percent(COLOURED_FROM)} of the map's maximum on. The slices are those with most colour; "
        "numbers are template coordinates in mm."
    )
    return FigureText(
        title=f"Network, {evidence.title}: what speaks for {label}",
        caption=f"{what} {drawn}",
        alt="Slices of the registered brain, coloured where the network found what speaks for the class.",
    )


def key_parameters(entry: Provenance) -> str:
    """Return a stage's parameters on one line; long values and hashes are shortened, paths lose their folders."""
    return "; ".join(f"{name} = {_parameter_text(value)}" for name, value in _flat(entry.parameters))


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in parameters.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def _parameter_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_parameter_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if text.startswith("/"):
        text = PurePosixPath(text).name
    elif PureWindowsPath(text).is_absolute():
        text = PureWindowsPath(text).name
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:_HASH_CHARACTERS]}…"
    return text if len(text) <= _MAX_PARAMETER_CHARACTERS else f"{text[:_MAX_PARAMETER_CHARACTERS]}…"
