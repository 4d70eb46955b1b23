"""A finished output directory with pictures that look real, and a browser that may fetch nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import write_bytes, write_json
from brainstage.pipeline.nifti import write_mask, write_volume
from brainstage.pipeline.records import (
    BrainVolumes,
    Completed,
    CorrectedBrain,
    Failure,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    Prediction,
    Provenance,
    QcReport,
    QcStatus,
    QcVerdict,
    ReferenceFinding,
    RegisteredBrain,
    StrippedBrain,
    SubjectOutcome,
    T1wScan,
)
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.quality import MEASURES
from brainstage.preprocessing.regions import RegionShare
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.volumes import LABEL_OF
from brainstage.workflows.evidence import Evidence
from brainstage.workflows.group import write_group
from brainstage.workflows.reporting.figures import evidence_figure, scan_figures
from brainstage.workflows.reporting.previews import scan_previews
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report

PLACES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
LOCAL = {"file", "data", "blob", "about"}
CLASSES = ("CN", "MCI", "AD")
TABLE = "participant_id\tage\tsex\tsite\tdiagnosis\n" + "".join(
    f"sub-{n:02d}\t{60 + 7 * n % 30}\t{'FM'[n % 2]}\t{'North' if n % 3 else 'South'}\t{CLASSES[n % 3]}\n"
    for n in range(1, 9)
)
MEASURED = {
    "template_correlation": 0.71,
    "mask_template_dice": 0.95,
    "affine_scale": 1.05,
    "cnr": 2.1,
    "snr": 14.0,
    "t1w_contrast": 1.4,
    "spacing_mm": 1.0,
    "brain_touches_border": False,
    "skull_stripped_input": False,
}


WITHHELD_NUMBER = 3
"""Of the scan whose left hippocampus is withheld."""

REASONS = {measure.name: measure.reason for measure in MEASURES}


@pytest.fixture(scope="session")
def browser():
    """Start Debian's chromium without a window, with WebGL2 in software."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dev extra")
    program = next((found for name in PLACES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs chromium, which is not here; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Return what opens a file in a fresh browser; at the end no error and no request may have happened."""
    contexts, problems = [], []

    def watched(route) -> None:
        if urlsplit(route.request.url).scheme in LOCAL:
            route.continue_()
        else:
            problems.append(f"request: {route.request.url}")
            route.abort()

    def open_(path: Path, *, width: int = 1366, height: int = 900, start: str = "", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.route("**/*", watched)
        page = context.new_page()
        if start:
            page.add_init_script(start)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on(
            "console",
            lambda said: problems.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("request", lambda made: problems.extend(_outside(made.url)))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def _outside(url: str) -> list[str]:
    return [] if urlsplit(url).scheme in LOCAL else [f"request: {url}"]


@pytest.fixture
def screenshot() -> Callable:
    """Return what writes a picture of a page where BRAINSTAGE_SCREENSHOTS names a folder for it."""
    folder = os.environ.get("BRAINSTAGE_SCREENSHOTS")

    def write(page, name: str, *, full_page: bool = True) -> None:
        if folder:
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=full_page)

    return write


def label_map(brain: RegisteredBrain) -> Volume:
    """Return balls where hippocampi and ventricles lie in the template."""
    head = brain.normalised.corrected.head
    at = head.grid.places_mm(np.argwhere(np.ones(head.shape, bool))).T.reshape(*head.shape, 3)
    labels = np.zeros(head.shape, np.float32)
    for structure, centre, radius in (("ventricle", (10, 0, 14), 9), ("hippocampus", (26, -20, -14), 10)):
        for side, sign in (("left", -1), ("right", 1)):
            away = np.linalg.norm(at - np.multiply(centre, (sign, 1, 1)), axis=-1)
            labels[away < radius] = LABEL_OF[f"{structure}_{side}"]
    return head.with_data(labels)


@pytest.fixture(scope="session")
def brain() -> RegisteredBrain:
    """Return the template as if it were a scan: rough edges, a bias field, scalp around it."""
    template = load_template(2.0)
    mask = template.brain_mask.data
    rng = np.random.default_rng(0)
    outside = ndimage.distance_transform_edt(~mask, sampling=2.0)
    scalp = np.where((outside > 6.0) & (outside < 12.0), 60.0, 0.0)
    field = np.linspace(0.85, 1.15, mask.shape[1], dtype=np.float32)[None, :, None]
    clean = np.where(mask, template.t1w.data, scalp) + rng.normal(0.0, 3.0, mask.shape)
    head = template.t1w.with_data((clean * field).astype(np.float32))
    findings = HeaderFindings(
        shape=(160, 192, 192), spacing_mm=(1.0, 1.0, 1.0), axcodes="LAS", affine_source="sform"
    )
    stripped = StrippedBrain(
        head=head,
        findings=findings,
        brain_mask=template.brain_mask,
        method="deepbet",
        skull_stripped_input=False,
    )
    corrected = CorrectedBrain(
        head=head.with_data(clean.astype(np.float32)),
        brain_mask=template.brain_mask,
        stripped=stripped,
        field_range=1.3,
    )
    own = head.with_data(np.where(mask, (clean - 150.0) / 40.0, 0.0).astype(np.float32))
    normalised = NormalisedBrain(
        brain=own,
        brain_mask=template.brain_mask,
        normalisation=Normalisation(method="zscore", centre=150.0, scale=40.0),
        corrected=corrected,
    )
    return RegisteredBrain(
        brain=own, brain_mask=template.brain_mask, native_to_template=np.eye(4), normalised=normalised
    )


def outcome_of(scan: T1wScan, number: int) -> SubjectOutcome:
    """Return the number-th outcome: one of every kind, with values that differ."""
    if number == 2:
        message = "brain mask holds 212 ml; expected 600 to 2300 ml (brain_extraction.volume_bounds_ml)"
        return Failure(scan=scan, stage="brain_extraction", error="BrainExtractionError", message=message)
    status, reasons = QcStatus.PASS, ()
    if number == 3:
        status, reasons = QcStatus.WARN, (REASONS["cnr"],)
    if number == 4:
        status, reasons = QcStatus.FAIL, (REASONS["template_correlation"], REASONS["mask_template_dice"])
    measures = {m.name: None for m in MEASURES} | MEASURED
    if number == 4:
        measures |= {"template_correlation": 0.31, "mask_template_dice": 0.72}
    measures |= {"brain_volume_ml": 1200.0 + 70.0 * (number * 5 % 8), "cnr": 1.0 + 0.1 * number}
    share = (0.55, 0.91, 0.7, 0.62, 0.8, 0.97, 0.5, 0.88)[number]
    predicted = CLASSES[number % 3]
    rest = [name for name in CLASSES if name != predicted]
    prediction = Prediction(
        probabilities={predicted: share, rest[0]: 0.6 * (1 - share), rest[1]: 0.4 * (1 - share)},
        prediction_set=(predicted,) if share > 0.8 else (predicted, rest[0]) if share > 0.5 else CLASSES,
        ood_score=1.0 + 0.2 * number,
        ood_threshold=3.0,
        tier="high" if share > 0.85 else "review" if share >= 0.6 else "low",
        member_labels={"volumes": rest[0], "linear": predicted, "network": rest[1]},
        compared_members=("volumes", "linear"),
        model_id="0f3a9c2b7d41",
        reference=(
            ReferenceFinding(
                measure="ventricle_share",
                value=3.1,
                label="CN",
                people=34,
                by=("age", "sex"),
                expected=1.4,
                low=0.7,
                high=2.8,
                percentile=98.4,
            ),
            ReferenceFinding(
                measure="hippocampus_left_pct_icv",
                value=0.193,
                label="CN",
                people=34,
                by=("age", "sex"),
                expected=0.24,
                low=0.2,
                high=0.29,
                percentile=1.6,
                percentile_low=0.4,
                percentile_high=5.2,
            ),
        ),
    )
    stages = ("ingest", "brain_extraction", "bias_field", "intensity", "registration", "quality", "figures")
    provenance = tuple(
        Provenance(
            stage=stage, version="2", parameters={"method": "auto", "tolerance": 1e-4, "seed": 0}, tool_versions={},
            input_sha256={}, seconds=1.25 * (n + 1), reused=n < 3,
        )
        for n, stage in enumerate(stages)
    )  # fmt: skip
    return Completed(
        scan=scan,
        qc=QcReport(measures=measures, verdict=QcVerdict(status=status, reasons=reasons)),
        prediction=prediction,
        preprocessing_id="p3f7a90c12b44aa0",
        provenance=provenance,
        source_sha256=f"{number:064x}",
        volumes=volumes_of(number),
    )


def volumes_of(number: int) -> BrainVolumes:
    """Return the volumes of the number-th scan; the left hippocampus of one of them is withheld."""
    sizes: dict[str, float | None] = {
        "intracranial": 1500.0,
        "grey_matter": 620.0,
        "white_matter": 480.0,
        "csf": 300.0 + number,
        "ventricle_left": 20.0 + number,
        "ventricle_right": 22.0,
        "hippocampus_left": 2.6 + 0.1 * number,
        "hippocampus_right": 3.1,
    }
    if number == WITHHELD_NUMBER:
        sizes["hippocampus_left"] = None
    return BrainVolumes(
        volumes_ml=sizes,
        reasons=("hippocampus_left:unsure",) if number == WITHHELD_NUMBER else (),
        atlas_ml={f"region {region}": 5.0 + region for region in range(30)},
    )


def explain(files: ScanFiles, outcome: Completed, brain: RegisteredBrain) -> None:
    """Write a map that speaks for the predicted class in the left half of the brain."""
    if outcome.prediction is None:
        return
    native_mask = brain.normalised.corrected.brain_mask
    for volume, mask, native in (
        (brain.brain, brain.brain_mask, False),
        (brain.normalised.brain, native_mask, True),
    ):
        speaks = np.where(mask.data, np.float32(1.0), np.float32(0.0))
        speaks[volume.shape[0] // 2 :] = 0.0
        write_volume(files.evidence_map("gradcam", native=native), volume.with_data(speaks))
        write_mask(files.native_mask if native else files.template_mask, mask)
    evidence = Evidence(
        method="gradcam",
        label=outcome.prediction.predicted_label,
        model_id=outcome.prediction.model_id,
        units="logit/ml",
        atlas="halves",
        regions=(RegionShare(name="left half", share=1.0, times_brain_mean=2.0, volume_ml=700.0),),
        share_outside_brain=0.0,
        learnt=True,
        template_sha256="0" * 64,
    )
    picture = evidence_figure(brain.brain, brain.brain_mask, brain.brain.with_data(speaks), evidence.units)
    write_json(files.evidence_regions("gradcam"), evidence.table)
    write_bytes(files.figure("gradcam"), picture)


@pytest.fixture(scope="session")
def output(tmp_path_factory, save_nifti, brain) -> Path:
    """Write the pages of eight scans of seven participants: every status, with pictures and volumes."""
    root = tmp_path_factory.mktemp("browser")
    bids, out = root / "bids", root / "out"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "toy", "BIDSVersion": "1.10.0"}))
    (bids / "participants.tsv").write_text(TABLE)
    names = [f"sub-{n:02d}/ses-M00/anat/sub-{n:02d}_ses-M00_T1w.nii.gz" for n in range(1, 8)]
    for name in [*names, "sub-01/ses-M12/anat/sub-01_ses-M12_T1w.nii.gz"]:
        save_nifti(bids / name, np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    context = RunContext(
        out_dir=out,
        config=Config(),
        model_id="0f3a9c2b7d41",
        started="2025-01-31 12:00 UTC",
        command="brainstage run --nprocs 2 --model model",
    )
    dataset = read_dataset(bids)
    outcomes = [outcome_of(scan, number) for number, scan in enumerate(dataset.scans)]
    labels, volumes = label_map(brain), scan_previews(brain)
    pictures = scan_figures(brain, labels=labels, volumes=volumes_of(0))
    withheld = scan_figures(brain, labels=labels, volumes=volumes_of(WITHHELD_NUMBER))["volumes"]
    findings = {
        "shape": [160, 192, 192], "spacing_mm": [1.0, 1.0, 1.0], "axcodes": "LAS", "affine_source": "sform",
        "warnings": ["form_conflict: sform and qform differ by 3 mm; the sform was taken"],
    }  # fmt: skip
    for number, outcome in enumerate(outcomes):
        files = context.files(outcome.scan)
        write_json(files.state / "header_findings.json", findings)
        if isinstance(outcome, Completed):
            for name, picture in pictures.items():
                of_scan = withheld if name == "volumes" and number == WITHHELD_NUMBER else picture
                write_bytes(files.figure(name), of_scan)
            for name, volume in volumes.items():
                write_bytes(files.preview(name), volume)
            explain(files, outcome, brain)
        write_report(outcome, context, changed=True)
    write_group(dataset, outcomes, context, CLASSES)
    return out
