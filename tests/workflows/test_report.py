"""Pages: nothing leaves them, everything is escaped, and what is withheld is nowhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.config import Config
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    BrainVolumes,
    Completed,
    Covariates,
    Failure,
    HeaderFindings,
    Prediction,
    PredictionStatus,
    Provenance,
    QcReport,
    QcStatus,
    QcVerdict,
    ReferenceFinding,
    Review,
    ReviewDecision,
    T1wScan,
)
from brainstage.preprocessing.regions import RegionShare, RegionSum
from brainstage.workflows.evidence import Evidence
from brainstage.workflows.reporting.cohort_page import CohortScan, render_cohort, strips_of
from brainstage.workflows.reporting.contributions import contribution_rows
from brainstage.workflows.reporting.drawing import MAX_PNG_BYTES
from brainstage.workflows.reporting.image_quality import MOST_BACKGROUND_BYTES, MOST_BRAIN_BYTES
from brainstage.workflows.reporting.members_table import weights_sentence
from brainstage.workflows.reporting.methods import method_steps, render_methods
from brainstage.workflows.reporting.outlines import MOST_OUTLINES_BYTES
from brainstage.workflows.reporting.pages import RunInfo, percent, value_text
from brainstage.workflows.reporting.previews import MAX_PREVIEW_BYTES, template_previews
from brainstage.workflows.reporting.qc_table import (
    QcRow,
    Reason,
    bounds_text,
    gauge_of,
    measure_label,
    qc_reasons_of,
    qc_rows_of,
)
from brainstage.workflows.reporting.report import (
    FIGURE_TEXTS,
    OUTLINES_TEXT,
    ScanReport,
    figure_text,
    key_parameters,
    render_scan_report,
)
from brainstage.workflows.reporting.verdict import SET_VERDICTS, set_verdict, verdict_of
from brainstage.workflows.reporting.viewer import viewer_of
from brainstage.workflows.reporting.volumes_table import WITHHELD_BECAUSE, place_of, why_withheld
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
VOLUMES = dict.fromkeys(("native", "native_mask", "registered", "template", "template_edges"), b"volume")
HOSTILE = "<script>alert(1)</script>\"'&"
RUN = RunInfo(
    version="0.1.0",
    date="2025-01-31 12:00",
    options="run bids out --nprocs 2",
    preprocessing_id="3f7a90c12b44",
    seeds={"preprocessing": 0},
    tool_versions={"nibabel": "5.4.2"},
)
STATUS = PredictionStatus
SOUND = {"mask_template_dice": 0.95, "upright_margin": 0.3}


class Page(HTMLParser):
    """Collects what a test asks about a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.meta: dict[str, str] = {}
        self.closed = True
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.closed = False
        values = {name: value or "" for name, value in attrs}
        self.attributes += list(values.items())
        self.loads += [values[name] for name in ("src", "srcset", "poster", "data") if name in values]
        if tag == "a":
            self.links.append(values["href"])
        elif "href" in values:
            self.loads.append(values["href"])
        if tag == "meta" and "http-equiv" in values:
            self.meta[values["http-equiv"]] = values["content"]
        if tag == "img":
            assert values.get("alt"), "a picture without alternative text"

    def handle_data(self, data):
        if self.tags[-1:] != ["script"] or self.closed:
            self.words.append(data)

    def handle_endtag(self, tag):  # noqa: ARG002 - as the parser calls it
        self.closed = True

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def scan(subject: str = "01", **changes) -> T1wScan:
    values = {
        "entities": BidsEntities(subject=subject),
        "path": Path("/data/private/hospital/scan.nii.gz"),
        "t1w_path": f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz",
        "covariates": Covariates(age=71.0, sex="F", site="A"),
    }
    return T1wScan(**(values | changes))


def prediction(**changes) -> Prediction:
    values = {
        "probabilities": {"ClassOne": 0.1234, "ClassTwo": 0.6413, "ClassThree": 0.2353},
        "prediction_set": ("ClassTwo", "ClassThree"),
        "ood_score": 1.7771,
        "ood_threshold": 2.4,
        "tier": "review",
        "member_labels": {"volumes": "ClassTwo", "linear": "ClassThree", "network": "ClassOne"},
        "compared_members": ("volumes", "linear"),
        "model_id": "model-7",
    }
    return Prediction(**(values | changes))


def referenced() -> Prediction:
    """A prediction with measures above, within and out of reach of a class."""
    about = {"label": "ClassOne", "people": 34, "by": ("age", "sex")}
    found = {"expected": 1.0, "low": 0.5, "high": 2.0}
    return prediction(
        reference=(
            ReferenceFinding(measure="ventricle_share", value=3.21, percentile=99.7, **about, **found),
            ReferenceFinding(
                measure="hippocampus_left_pct_icv",
                value=0.8,
                percentile=31.4,
                percentile_low=22.3,
                percentile_high=41.9,
                **about,
                **found,
            ),
            ReferenceFinding(
                measure="hippocampus_right_pct_icv", value=1.0, reason="an age of 92 is outside", **about
            ),
        )
    )


def completed(status: QcStatus = QcStatus.PASS, reasons: tuple[str, ...] = (), **changes) -> Completed:
    values = {
        "scan": scan(),
        "qc": QcReport(
            measures={"brain_volume_ml": 1234.0, "template_correlation": 0.61, "cnr": 1.5},
            verdict=QcVerdict(status=status, reasons=reasons),
        ),
        "prediction": prediction(),
        "preprocessing_id": "x",
        "provenance": (
            Provenance(
                stage="ingest",
                version="1",
                parameters={
                    "weights": "0" * 64,
                    "file": "/home/someone/model.pt",
                    "nested": {"grid_mm": 4.0},
                },
                tool_versions={},
                input_sha256={},
                seconds=1.5,
                reused=True,
            ),
        ),
    }
    return Completed(**(values | changes))


def failure(**changes) -> Failure:
    values = {
        "scan": scan("04"),
        "stage": "brain_extraction",
        "error": "BrainExtractionError",
        "message": "brain mask holds 212 ml; expected 600 to 2300 ml",
    }
    return Failure(**(values | changes))


def report(outcome=None, status=STATUS.REPORTED, **changes) -> ScanReport:
    values = {
        "outcome": outcome or completed(),
        "prediction_status": status,
        "run": RUN,
        "figures": {"mask": PNG, "histogram": PNG, "montage": PNG},
        "findings": HeaderFindings(
            shape=(160, 192, 192),
            spacing_mm=(1.0, 1.33, 1.33),
            axcodes="RAS",
            affine_source="sform",
            warnings=("form_conflict: sform and qform differ by 3 mm",),
        ),
        "qc_rows": (
            QcRow(name="cnr", value=1.5, passing=(1.2, None), status=QcStatus.PASS, explanation="Contrast."),
        ),
        "methods": method_steps(Config(), RUN.tool_versions),
    }
    return ScanReport(**(values | changes))


def evidence(**changes) -> Evidence:
    values = {
        "method": "gradcam",
        "label": "ClassTwo",
        "model_id": "model-7",
        "units": "logit/ml",
        "atlas": "some atlas",
        "regions": tuple(
            RegionShare(
                name=f"region {n}", share=0.3 - 0.04 * n, times_brain_mean=3.0 - 0.4 * n, volume_ml=20.0 + n
            )
            for n in range(7)
        ),
        "share_outside_brain": 0.07,
        "learnt": True,
        "template_sha256": "0" * 64,
        "picture": PNG,
    }
    return Evidence(**(values | changes))


def cohort(*scans: CohortScan) -> str:
    return render_cohort(scans, RUN, directory="d1", explanations={"cnr": "Low contrast."})


def cohort_scan(outcome, status, **changes) -> CohortScan:
    return CohortScan(
        outcome=outcome,
        prediction_status=status,
        **({"report": f"{outcome.scan.key}.html", "thumbnail": PNG} | changes),
    )


ALL_PAGES = {
    "reported": lambda: render_scan_report(report()),
    "explained": lambda: render_scan_report(report(evidence=(evidence(), evidence(method="occlusion")))),
    "with exact evidence": lambda: render_scan_report(
        report(
            completed(prediction=contributing(), volumes=measured()),
            evidence=(exact_evidence(method="linearBrightness"), exact_evidence()),
        )
    ),
    "held against a class": lambda: render_scan_report(report(completed(prediction=referenced()))),
    "with measured volumes": lambda: render_scan_report(
        report(
            completed(volumes=measured(atlas_ml={"amygdala": 1.5})),
            figures={"volumes": PNG},
            norm_findings=(norm_finding("hippocampus_left_pct_icv"),),
        )
    ),
    "flagged": lambda: render_scan_report(report(status=STATUS.FLAGGED)),
    "with volumes": lambda: render_scan_report(report(volumes=VOLUMES)),
    "withheld": lambda: render_scan_report(report(completed(QcStatus.FAIL, ("cnr",)), STATUS.WITHHELD)),
    "no_model": lambda: render_scan_report(report(completed(prediction=None), STATUS.NO_MODEL)),
    "failed": lambda: render_scan_report(
        report(failure(), STATUS.FAILED, figures={}, findings=None, qc_rows=())
    ),
    "cohort": lambda: cohort(
        cohort_scan(completed(), STATUS.REPORTED), cohort_scan(failure(), STATUS.FAILED, thumbnail=None)
    ),
    "empty cohort": lambda: cohort(),
}


@pytest.mark.parametrize("name", ALL_PAGES)
def test_no_page_makes_a_request(name):
    text = ALL_PAGES[name]()
    page = Page(text)
    assert all(load.startswith("data:image/") for load in page.loads)
    assert all(re.fullmatch(r"#[\w-]+|[\w-]+\.html|https://doi\.org/10\.\S+", link) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert page.meta["Content-Security-Policy"].startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )
    assert not any(name.startswith("on") for name, _ in page.attributes)


@pytest.mark.parametrize("name", ALL_PAGES)
def test_every_page_says_what_it_is_not_and_has_its_landmarks(name):
    page = Page(ALL_PAGES[name]())
    assert "For research; not a diagnosis." in page.text
    assert {"main", "header", "h1", "footer"} <= set(page.tags)
    assert page.tags.count("h1") == 1
    targets = {value for attribute, value in page.attributes if attribute == "id"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= targets
    assert {value for attribute, value in page.attributes if attribute == "aria-labelledby"} <= targets


@pytest.mark.parametrize("name", ALL_PAGES)
def test_no_page_holds_an_absolute_path(name):
    text = ALL_PAGES[name]()
    assert "/data/private" not in text
    assert "/home/" not in text


def test_a_scan_report_without_volumes_runs_no_script():
    assert "script" not in Page(render_scan_report(report())).tags


def test_a_report_with_volumes_allows_only_its_viewer():
    text = render_scan_report(report(volumes=VOLUMES))
    policy = Page(text).meta["Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    packed = re.search(r'id="viewer-library">(.*?)</script>', text).group(1)
    library = gzip.decompress(base64.b64decode(packed))
    hashes = [
        base64.b64encode(hashlib.sha256(source).digest()).decode() for source in (script.encode(), library)
    ]
    assert policy.endswith("; script-src " + " ".join(f"'sha256-{one}'" for one in hashes))
    assert not set(re.findall(r"<script([^>]*)>", text)) - {
        "",
        *(f' type="application/gzip+base64" id="viewer-volume-{name}"' for name in VOLUMES),
        ' type="application/gzip+base64" id="viewer-library"',
        ' type="application/json" id="viewer-content"',
    }


def test_the_viewer_offers_only_what_there_is():
    everything = viewer_of(VOLUMES)
    assert [view["name"] for view in everything.views] == ["template", "native"]
    assert set(everything.volumes) == set(VOLUMES)
    (alone,) = viewer_of({"native": b"x", "template": b"x"}).views
    assert (alone["volume"], alone["overlays"]) == ("native", [])
    assert viewer_of({"template": b"x"}) is None


def test_image_quality_comes_first_and_says_what_to_look_for():
    pictures = dict.fromkeys(("mask", "background", "image_quality"), PNG)
    text = render_scan_report(report(figures=pictures))
    titles = [FIGURE_TEXTS[name].title for name in ("image_quality", "background", "mask")]
    assert sorted(titles, key=text.index) == titles
    shown = text.partition('id="figures"')[2]
    for word in ("Ringing", "Motion", "Ghosts", "Wrap-around"):
        assert shown.count(f"{word}:") == (1 if word == "Ringing" else 2)
    assert "is not shown: " not in shown


@pytest.mark.parametrize(
    ("measures", "keep_face", "why"),
    [
        ({"skull_stripped_input": True, **SOUND}, False, "came without its skull"),
        ({"skull_stripped_input": False, **SOUND}, False, "set to one value before"),
        ({**SOUND, "mask_template_dice": 0.7}, False, "to tell where the face is"),
        ({**SOUND, "upright_margin": None}, False, "to tell where the face is"),
        ({**SOUND, "mask_template_dice": 0.7}, True, "set to one value before"),
    ],
)
def test_where_no_air_is_shown_the_caption_says_why(measures, keep_face, why):
    rows = tuple(
        QcRow(name=name, value=value, status=None, explanation="") for name, value in measures.items()
    )
    made = report(figures={"image_quality": PNG}, qc_rows=rows, keep_face=keep_face)
    assert why in figure_text("image_quality", made).caption
    assert why in render_scan_report(made)
    assert figure_text("mask", made) == FIGURE_TEXTS["mask"]


def test_the_largest_report_stays_below_four_and_a_half_megabytes():
    noise = np.random.default_rng(0).bytes(MAX_PREVIEW_BYTES)
    sizes = dict.fromkeys(FIGURE_TEXTS, MAX_PNG_BYTES)
    sizes |= {"volumes": MOST_OUTLINES_BYTES}
    sizes |= {"image_quality": MOST_BRAIN_BYTES, "background": MOST_BACKGROUND_BYTES}
    pictures = {name: PNG + noise[: size - len(PNG)] for name, size in sizes.items()}
    text = render_scan_report(
        report(
            completed(volumes=measured()),
            figures=pictures,
            volumes=dict.fromkeys(("native", "registered"), noise) | template_previews(),
        )
    )
    assert len(text.encode()) < 4_500_000


def test_the_vendored_viewer_is_the_recorded_one():
    folder = files("brainstage.workflows").joinpath("templates", "vendor")
    digest = hashlib.sha256(folder.joinpath("niivue.min.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("niivue.txt").read_text(encoding="utf-8")
    assert "Niivue" in folder.joinpath("niivue.LICENSES.txt").read_text(encoding="utf-8")


def test_the_cohort_page_allows_only_its_own_script():
    text = ALL_PAGES["cohort"]()
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in Page(text).meta["Content-Security-Policy"]
    assert text.count("<script") == 1


def hostile_scan(**changes) -> T1wScan:
    review = Review(
        decision=ReviewDecision.PASS,
        note=HOSTILE,
        preprocessing_id=HOSTILE,
        reviewer=HOSTILE,
        decided_at=HOSTILE,
    )
    entities = BidsEntities(subject=HOSTILE, session=HOSTILE, run=HOSTILE)
    covariates = Covariates(sex=HOSTILE, site=HOSTILE)
    return scan(
        entities=entities, t1w_path=HOSTILE, covariates=covariates, label=HOSTILE, review=review, **changes
    )


def hostile_pages() -> dict[str, str]:
    run = RunInfo(
        version=HOSTILE, date=HOSTILE, options=HOSTILE, preprocessing_id=HOSTILE, seeds={HOSTILE: 1},
        tool_versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    said = prediction(
        probabilities={HOSTILE: 1.0},
        prediction_set=(HOSTILE,),
        tier=HOSTILE,
        member_labels={HOSTILE: HOSTILE},
        compared_members=(HOSTILE,),
        model_id=HOSTILE,
    )
    entry = Provenance(
        stage=HOSTILE,
        version=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        tool_versions={},
        input_sha256={},
        seconds=1.0,
    )
    qc = QcReport(measures={"cnr": 1.0}, verdict=QcVerdict(status=QcStatus.WARN, reasons=(HOSTILE,)))
    done = completed(
        scan=hostile_scan(), prediction=said, provenance=(entry,), qc=qc, preprocessing_id=HOSTILE
    )
    broken = failure(scan=hostile_scan(), stage=HOSTILE, error=HOSTILE, message=HOSTILE)
    findings = HeaderFindings(
        shape=(1, 2, 3),
        spacing_mm=(1.0, 1.0, 1.0),
        axcodes=HOSTILE,
        affine_source=HOSTILE,
        warnings=(HOSTILE,),
    )
    row = QcRow(name=HOSTILE, value=HOSTILE, unit=HOSTILE, explanation=HOSTILE, source=HOSTILE)
    reasons = (Reason(code=HOSTILE, explanation=HOSTILE, summary=HOSTILE + "!"),)
    words = {
        "run": run,
        "findings": findings,
        "qc_rows": (row,),
        "qc_reasons": reasons,
        "prediction_reasons": reasons,
    }
    scans = [
        CohortScan(
            outcome=done,
            prediction_status=STATUS.FLAGGED,
            prediction_reasons=(HOSTILE,),
            report=HOSTILE,
            thumbnail=PNG,
        ),
        CohortScan(outcome=broken, prediction_status=STATUS.FAILED, report=HOSTILE),
    ]
    return {
        "flagged": render_scan_report(report(done, STATUS.FLAGGED, cohort_page=HOSTILE, **words)),
        "failed": render_scan_report(report(broken, STATUS.FAILED, remedy=HOSTILE, **words)),
        "cohort": render_cohort(
            scans, run, directory=HOSTILE, title=HOSTILE, explanations={HOSTILE: HOSTILE}
        ),
    }


def test_every_word_from_outside_is_escaped():
    for name, text in hostile_pages().items():
        assert "<script>alert" not in text, name
        page = Page(text)
        assert page.tags.count("script") == (1 if name == "cohort" else 0), name
        assert HOSTILE in page.text, name
        assert not any("alert" in attribute for attribute, _ in page.attributes), name


def test_a_withheld_prediction_is_nowhere_in_the_pages():
    outcome = completed(QcStatus.FAIL, ("template_correlation",))
    reasons = (Reason(code="template_correlation", explanation="Low.", status=QcStatus.FAIL),)
    flags = (Reason(code="members_disagree", explanation="A member says ClassThree."),)
    text = render_scan_report(
        report(outcome, STATUS.WITHHELD, qc_reasons=reasons, prediction_reasons=flags, evidence=(evidence(),))
    )
    page = cohort(cohort_scan(outcome, STATUS.WITHHELD, prediction_reasons=("members_disagree",)))
    for secret in (
        "Class",
        "0.64",
        "64 %",
        "12 %",
        "24 %",
        "0.12",
        "0.23",
        "1.777",
        "1.78",
        "model-7",
        "review ",
        "members_disagree",
        "ndecided",
    ):
        assert secret not in Page(text).text, secret
        assert secret not in Page(page).text, secret
    assert "bars" not in text.split("</style>")[1]
    assert "withheld by quality control" in text
    assert "template_correlation" in text


def test_evidence_is_told_by_its_five_strongest_regions_and_is_about_the_network():
    words = Page(render_scan_report(report(evidence=(evidence(),)))).text
    assert "Grad-CAM: what speaks for ClassTwo" in words
    assert "region 0 3.0 30 % 20 ml" in words
    assert "region 4" in words
    assert "region 5" not in words
    assert "7 % lies outside the brain" in words
    assert "By itself the network says ClassOne" in words
    assert "where the network looked, not where disease is" in words
    assert "random" not in words


def exact_evidence(**changes) -> Evidence:
    values = {
        "method": "linearVolume",
        "units": "log-odds/ml",
        "regions": (),
        "sums": tuple(
            RegionSum(name=f"region {n}", speaks_for=0.5 / (n + 1), speaks_against=-0.1, volume_ml=20.0 + n)
            for n in range(7)
        ),
        "total": 1.2345,
        "weight": 0.6,
    }
    return evidence(**(values | changes))


def contributing(**changes) -> Prediction:
    return prediction(
        volume_contributions={"hippocampi_pct_icv": 0.61, "ventricles_pct_icv": -0.2, "csf_pct_icv": 0.0},
        member_weights={"volumes": 0.3, "linear": 0.6, "network": 0.0},
        **changes,
    )


def test_an_exact_map_is_shown_with_what_each_region_adds_for_and_against():
    words = Page(render_scan_report(report(evidence=(exact_evidence(),)))).text
    assert "Linear member, local volume: what speaks for and against ClassTwo" in words
    assert "Together +1.234" in words or "Together +1.235" in words
    assert "region 0 +0.500 −0.100 +0.400 20 ml" in words
    assert "region 4" in words
    assert "region 5" not in words
    assert "where the network looked" not in words
    assert "has no part in the published" not in words


def test_a_map_of_a_member_without_weight_says_so():
    shown = report(evidence=(exact_evidence(weight=0.0), evidence(weight=0.0)))
    words = Page(render_scan_report(shown)).text
    assert "The linear member has no part in the published probabilities of this scan" in words
    assert "The network has no part in the published probabilities of this scan" in words


def test_what_volumes_add_is_drawn_to_either_side_beside_the_volumes_and_can_be_heard():
    shown = report(completed(prediction=contributing(), volumes=measured()))
    text = render_scan_report(shown)
    words = Page(text).text
    assert "Volumes: what each adds to ClassTwo" in words
    assert "together +0.410" in words
    rows = contribution_rows(contributing(), measured())
    assert [(row.side, row.added) for row in rows] == [
        ("for", "+0.610"),
        ("against", "−0.200"),
        ("", "0.000"),
    ]
    assert rows[0].start == 50.0
    assert rows[1].start + rows[1].width == 50.0
    assert rows[1].width / rows[0].width == pytest.approx(0.2 / 0.61)
    parts = [measured().volumes_ml[f"hippocampus_{side}"] for side in ("left", "right")]
    assert rows[0].of_scan == value_text(sum(parts), "ml")
    spoken = [value for name, value in Page(text).attributes if name == "aria-label"]
    assert "ventricles: −0.200, against ClassTwo" in spoken


def test_next_to_nothing_does_not_look_like_much():
    (row,) = contribution_rows(prediction(volume_contributions={"csf_pct_icv": 0.001}), measured())
    assert 0 < row.width < 1


def test_what_volumes_add_to_a_withheld_prediction_is_not_shown():
    outcome = completed(QcStatus.FAIL, ("cnr",), prediction=contributing(), volumes=measured())
    words = Page(render_scan_report(report(outcome, STATUS.WITHHELD))).text
    assert "what each adds" not in words
    assert "0.61" not in words


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"volumes": 0.0, "linear": 1.0}, "those of linear alone; volumes has no part in them."),
        (
            {"volumes": 0.3, "linear": 0.6, "network": 0.0},
            "weigh linear 0.60 and volumes 0.30 (on average over the folds; 1 is a member alone); network has no part",
        ),
        ({"linear": 1.0}, "are those of linear alone."),
    ],
)
def test_how_much_each_member_counts_is_said_in_a_sentence(weights, words):
    assert words in weights_sentence(prediction(member_weights=weights))


def test_of_a_training_scan_one_fold_answers_and_this_is_said():
    said = prediction(member_weights={"volumes": 0.5, "linear": 0.5}, seen_in_training=True)
    assert "in the fold that did not learn from this scan" in weights_sentence(said)
    assert weights_sentence(prediction()) == ""


def test_evidence_that_is_empty_or_of_an_unlearnt_network_says_so():
    shown = report(
        completed(),
        evidence=(evidence(regions=(), learnt=False, share_outside_brain=0.0),),
    )
    words = Page(render_scan_report(shown)).text
    assert "Nowhere in the brain does the map speak for ClassTwo" in words
    assert "random and were never trained" in words


def test_names_of_a_stranger_s_atlas_are_escaped():
    strange = evidence(
        atlas=HOSTILE,
        label=HOSTILE,
        regions=(RegionShare(name=HOSTILE, share=1.0, times_brain_mean=1.0, volume_ml=1.0),),
    )
    text = render_scan_report(report(evidence=(strange,)))
    assert "<script>alert" not in text
    assert not any("alert" in attribute for attribute, _ in Page(text).attributes)


def test_a_reported_prediction_is_told_in_words_and_bars():
    text = render_scan_report(report())
    words = Page(text).text
    assert "Undecided between ClassTwo and ClassThree" in words
    assert "probability of ClassTwo is 64 % (for review" in words
    assert "ClassThree 24 %; ClassOne 12 %." in words
    assert "for review, between 60 % and 85 %" in words
    assert "The 90 % prediction set holds ClassTwo and ClassThree" in words
    assert words.index("ClassOne 12 %") < words.index("ClassTwo 64 %", words.index("ClassOne 12 %"))
    assert text.count('class="top-class"') == 1
    assert 'width="64.13"' in text


SURE = {"A": 0.7, "B": 0.2, "C": 0.1}


@pytest.mark.parametrize(
    ("in_set", "changes", "headline", "tone", "sentence"),
    [
        pytest.param(("A",), {}, "Predicted A, 70 %", "good", "holds A alone.", id="one class"),
        pytest.param(
            ("A", "C"), {}, "Undecided between A and C", "plain", "holds A and C: none of them", id="two"
        ),
        pytest.param(
            ("B",), {}, "Undecided between A and B", "plain", "holds B alone and not A, though", id="another"
        ),
        pytest.param(
            ("B", "C"), {}, "Undecided between A, B and C", "plain", "B and C and not A", id="others"
        ),
        pytest.param(("A", "B", "C"), {}, "No class can be ruled out", "plain", "A, B and C: none", id="all"),
        pytest.param(
            (), {}, "Unlike the training scans of every class", "plain", "prediction set is empty", id="none"
        ),
        pytest.param(
            ("A",),
            {"above_chance": False},
            "No prediction can be made: the model is not above chance",
            "plain",
            "holds A alone.",
            id="at chance",
        ),
    ],
)
def test_a_verdict_follows_the_set_and_is_green_for_one_class_of_a_model_above_chance(
    in_set, changes, headline, tone, sentence
):
    said = prediction(probabilities=SURE, prediction_set=in_set, tier="review", set_level=0.8, **changes)
    verdict = verdict_of(completed(prediction=said), STATUS.REPORTED)
    assert (verdict.headline, verdict.tone) == (headline, tone)
    text = " ".join(verdict.sentences)
    assert sentence in text
    assert "The 80 % prediction set" in text  # the model's level
    assert "probability of A is 70 % (for review, between 60 % and 85 %); B 20 %; C 10 %." in text
    assert set_verdict(said) in SET_VERDICTS


@pytest.mark.parametrize(
    ("in_set", "above_chance", "headline", "note"),
    [
        (("A",), True, "Predicted A, 70 %, flagged", "weigh the points below"),
        (("A", "B"), True, "Undecided between A and B, flagged", "weigh the points below"),
        (("A", "B", "C"), True, "No class can be ruled out", "weigh the points below"),
        ((), True, "Unlike the training scans of every class", "weigh the points below"),
        (("A",), False, "No prediction can be made: the model is not above chance", "Do not use it."),
    ],
)
def test_a_flagged_prediction_is_amber_whatever_its_set_holds(in_set, above_chance, headline, note):
    said = prediction(probabilities=SURE, prediction_set=in_set, above_chance=above_chance)
    verdict = verdict_of(completed(QcStatus.WARN, ("cnr",), prediction=said), STATUS.FLAGGED)
    assert (verdict.headline, verdict.tone) == (headline, "warn")
    assert note in verdict.sentences[-1]


@pytest.mark.parametrize(
    ("status", "in_set", "green"),
    [
        (STATUS.REPORTED, ("ClassTwo",), True),
        (STATUS.REPORTED, ("ClassTwo", "ClassThree"), False),
        (STATUS.FLAGGED, ("ClassTwo",), False),
    ],
)
def test_the_word_of_the_status_is_green_for_a_decided_prediction_alone(status, in_set, green):
    outcome = completed(prediction=prediction(prediction_set=in_set))
    for text in (render_scan_report(report(outcome, status)), cohort(cohort_scan(outcome, status))):
        chips = [value for name, value in Page(text).attributes if name == "class" and "chip" in value]
        assert ("chip reported decided" in chips) is green
        assert f"chip {status}" in " ".join(chips)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "better than chance, linear says ClassThree. Out of fold, such predictions were not shown",
        ),
        ({"disagreement_flags": True}, "were wrong more often, so the prediction is flagged."),
        (
            {"compared_members": ("volumes",)},
            "linear says ClassThree and network says ClassOne: not better than chance, so",
        ),
        ({"member_labels": dict.fromkeys(("linear", "network"), "ClassTwo")}, "Every member says ClassTwo."),
        ({"member_labels": {"linear": "ClassTwo"}}, "The model has one member."),
    ],
)
def test_what_each_member_says_stands_in_a_table_with_what_it_means(changes, words):
    said = prediction(**changes)
    found = Page(render_scan_report(report(completed(prediction=said)))).text
    assert words in found
    for name, label in said.member_labels.items():
        able = "better than chance" if name in said.compared_members else "not better than chance"
        other = "" if label == "ClassTwo" else " (another class)"
        assert re.search(
            rf"{name} (the image|brightness|volumes)[^|]*? {label}{re.escape(other)} {able}", found
        )


def test_reasons_of_the_prediction_stand_apart_from_those_of_quality_control():
    shown = report(
        completed(QcStatus.WARN, ("cnr",)),
        STATUS.FLAGGED,
        qc_reasons=(Reason(code="cnr", explanation="Low contrast."),),
        prediction_reasons=(
            Reason(code="out_of_distribution", explanation="Unlike the others."),
            Reason(code="seen_in_training", explanation="Learnt from.", status=None),
        ),
    )
    words = Page(render_scan_report(shown)).text
    assert (
        "Of quality control ! warn cnr Low contrast. Of the prediction flagged out_of_distribution" in words
    )
    assert "note seen_in_training" in words  # neither a pass nor a warning
    page = cohort(
        cohort_scan(completed(), STATUS.FLAGGED, prediction_reasons=("members_disagree",)),
        cohort_scan(
            completed(QcStatus.WARN, ("cnr",)), STATUS.FLAGGED, prediction_reasons=("members_disagree",)
        ),
    )
    words = Page(page).text
    assert "Reason codes of quality control cnr · 1 scan Low contrast." in words
    assert "Reason codes of predictions members_disagree · 2 scans" in words


def test_the_cohort_counts_and_filters_what_the_sets_leave_possible():
    sets = [
        ("ClassTwo",),
        ("ClassTwo",),
        ("ClassTwo", "ClassThree"),
        ("ClassOne", "ClassTwo", "ClassThree"),
        (),
    ]
    scans = [
        cohort_scan(
            completed(scan=scan(f"{n:02d}"), prediction=prediction(prediction_set=in_set)), STATUS.REPORTED
        )
        for n, in_set in enumerate(sets)
    ]
    withheld = cohort_scan(completed(QcStatus.FAIL, ("cnr",), scan=scan("09")), STATUS.WITHHELD)
    page = Page(cohort(*scans, withheld))
    assert (
        "Prediction sets 2 one class 1 undecided 1 no class ruled out 1 unlike every class Predicted class"
        in page.text
    )
    assert [value for name, value in page.attributes if name == "data-verdict"] == [
        "one class",
        "one class",
        "undecided",
        "no class ruled out",
        "unlike every class",
        "",
    ]
    assert ("data-field", "verdict") in page.attributes
    alike = Page(cohort(*scans[:2]))
    assert ("data-field", "verdict") not in alike.attributes  # nothing to choose from


def test_a_failure_names_stage_and_message_and_what_to_do():
    words = Page(render_scan_report(report(failure(), STATUS.FAILED, remedy="Look at the scan."))).text
    assert "Failed while finding the brain (stage brain_extraction)" in words
    assert "Brain mask holds 212 ml; expected 600 to 2300 ml." in words
    assert "BrainExtractionError" in words
    assert "Look at the scan." in words
    assert "--retry-failed" in words


def test_a_failed_scan_stands_out_in_the_cohort():
    words = Page(ALL_PAGES["cohort"]()).text
    assert "1 scan failed" in words
    assert "brain mask holds 212 ml" in words


def test_quality_control_explains_every_reason():
    reasons = (
        Reason(code="cnr", explanation="Low with noise.", summary="CNR is 0.7, expected at least 1.2"),
        Reason(code="header_form_conflict", explanation="sform and qform differ"),
    )
    outcome = completed(QcStatus.WARN, ("cnr", "header_form_conflict"))
    words = Page(render_scan_report(report(outcome, STATUS.FLAGGED, qc_reasons=reasons))).text
    assert "Quality control warns: CNR is 0.7, expected at least 1.2; header_form_conflict." in words
    assert "Low with noise." in words
    assert "sform and qform differ" in words


def test_rows_and_reasons_come_from_the_table_of_measures():
    from brainstage.preprocessing.quality import MEASURES, judge

    measures = {measure.name: None for measure in MEASURES} | {
        "template_correlation": 0.01,
        "brain_volume_ml": 1300.0,
    }
    measures["header_warnings"] = "form_conflict"
    qc = QcReport(measures=measures, verdict=judge(measures, {}))
    findings = HeaderFindings(
        shape=(1, 1, 1),
        spacing_mm=(1, 1, 1),
        axcodes="RAS",
        affine_source="sform",
        warnings=("form_conflict: they differ",),
    )
    rows = {row.name: row for row in qc_rows_of(qc)}
    assert list(rows) == [measure.name for measure in MEASURES]
    assert rows["template_correlation"].status is QcStatus.FAIL
    assert rows["brain_volume_ml"].status is QcStatus.PASS
    assert rows["cnr"].status is None
    reasons = {reason.code: reason for reason in qc_reasons_of(qc, findings)}
    assert set(reasons) == set(qc.verdict.reasons)
    assert reasons["template_correlation"].status is QcStatus.FAIL
    assert "0.01, expected at least" in reasons["template_correlation"].summary
    assert reasons["header_form_conflict"].explanation == "they differ"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (failure(), STATUS.REPORTED),
        (completed(), STATUS.FAILED),
        (completed(prediction=None), STATUS.FLAGGED),
    ],
    ids=["failure reported", "completed failed", "flagged without prediction"],
)
def test_a_status_that_contradicts_the_outcome_is_refused(outcome, status):
    with pytest.raises(ValueError, match=status.value):
        report(outcome, status)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (QcRow(name="a", value=1.0, passing=(0.4, None)), "at least 0.4"),
        (QcRow(name="a", value=1.0, passing=(None, 3.0)), "at most 3"),
        (QcRow(name="a", value=1.0, passing=(900.0, 2050.0)), "900 to 2050"),
        (QcRow(name="a", value=False, passing=(None, 0.5)), "no"),
        (QcRow(name="a", value="x"), ""),
    ],
)
def test_bounds_in_words(row, words):
    assert bounds_text(row) == words


@pytest.mark.parametrize("value", [-5.0, 0.0, 0.35, 0.5, 1e6])
def test_a_gauge_stays_on_its_scale(value):
    gauge = gauge_of(QcRow(name="a", value=value, passing=(0.4, None), tolerated=(0.3, None)))
    assert gauge is not None
    assert 0.0 <= gauge.marker <= 100.0
    for first, width in (gauge.passing, gauge.tolerated):
        assert first >= 0.0
        assert first + width <= 100.0 + 1e-9
    assert (gauge.marker >= gauge.passing[0]) == (value >= 0.4)


def test_a_measure_without_number_or_bounds_has_no_gauge():
    assert gauge_of(QcRow(name="a", value=None, passing=(0.4, None))) is None
    assert gauge_of(QcRow(name="a", value=True, passing=(None, 0.5))) is None
    assert gauge_of(QcRow(name="a", value=3.0)) is None


def test_parameters_are_short_and_without_folders():
    text = key_parameters(completed().provenance[0])
    assert text == "weights = 000000000000…; file = model.pt; nested.grid_mm = 4"


def test_certainty_is_never_rounded_up_to_certain():
    assert percent(0.9999) == "> 99 %"
    assert percent(1e-6) == "< 1 %"
    assert percent(1.0) == "100 %"
    assert value_text(float("1e-5")) == "1e-05"


def test_strips_hold_a_tick_for_every_scan_of_a_measure_that_varies():
    scans = [
        cohort_scan(
            completed(
                qc=QcReport(measures={"cnr": value, "snr": 3.0}, verdict=QcVerdict(status=QcStatus.PASS))
            ),
            STATUS.REPORTED,
        )
        for value in (1.0, 2.0, 4.0)
    ]
    (strip,) = strips_of(scans)
    assert (strip.label, strip.low, strip.median, strip.high) == ("CNR", 1.0, 2.0, 4.0)
    assert strip.paths["pass"].count("M") == 3


def test_a_column_that_no_scan_fills_is_left_out():
    words = Page(cohort(cohort_scan(completed(prediction=None), STATUS.NO_MODEL))).text
    assert "Session" not in words
    assert "Confidence" not in words


CONFIGURATIONS = {
    "defaults": (
        {},
        ["deepbet 1.0.2", "grid of 4 mm", "standard deviation 1", "affine transform estimated"],
        ["SyN"],
    ),
    "ants": (
        {"bias_field": {"method": "ants"}, "registration": {"method": "syn"}},
        ["N4 as ANTs", "SyN"],
        ["grid of 4 mm"],
    ),
    "none": (
        {"bias_field": {"method": "none"}, "brain_extraction": {"method": "none"}},
        ["No bias field correction", "came without their skull"],
        ["2046908", "deepbet{"],
    ),
    "whitestripe": ({"intensity": {"method": "whitestripe"}}, ["10.1016/j.nicl.2014.08.008"], []),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_methods_say_what_the_configuration_does(name):
    sections, present, absent = CONFIGURATIONS[name]
    text = render_methods(
        Config.model_validate(sections),
        {"deepbet": "1.0.2", "brainstage": "0.1.0"},
        "3f7a",
        n_scans=6,
        n_failed=1,
    )
    for words in present:
        assert words in text
    for words in absent:
        assert words not in text
    assert "6 T1-weighted scans were processed with brainstage 0.1.0; 1 could not" in text
    assert "For research; not a diagnosis." in text
    assert "&#" not in text
    cited = set(re.findall(r"doi:(10\.[^\s,)]+)", text))
    assert cited == set(re.findall(r"https://doi\.org/(\S+)", text))


def test_methods_mention_a_model_only_where_there_was_one():
    without, with_model = (
        render_methods(Config(), {}, "x", n_scans=1, model_id=model) for model in (None, "m-1")
    )
    assert "Prediction." not in without
    assert "model m-1" in with_model
    assert "80 x 96 x 80 voxels of 2 mm" in with_model


SIZES_ML = {
    "intracranial": 1500.0,
    "grey_matter": 620.0,
    "white_matter": 480.0,
    "csf": 300.0,
    "ventricle_left": 21.0,
    "ventricle_right": 24.0,
    "hippocampus_left": 2.9,
    "hippocampus_right": 3.1,
}


def measured(**changes) -> BrainVolumes:
    return BrainVolumes(**({"volumes_ml": SIZES_ML} | changes))


def norm_finding(measure: str, **changes) -> ReferenceFinding:
    values = {
        "value": 0.1933,
        "label": "healthy",
        "people": 412,
        "by": ("age", "sex"),
        "expected": 0.24,
        "low": 0.2,
        "high": 0.29,
        "percentile": 1.6,
        "percentile_low": 0.4,
        "percentile_high": 3.8,
    }
    return ReferenceFinding(measure=measure, **(values | changes))


def volumes_section(made: ScanReport) -> str:
    """Return the words of the section of the volumes; empty without one."""
    _, _, rest = render_scan_report(made).partition('<section aria-labelledby="volumes">')
    return Page(rest.partition("</section>")[0]).text


def test_volumes_are_told_in_millilitres_and_as_part_of_the_head():
    made = report(completed(volumes=measured(), prediction=None), STATUS.NO_MODEL)
    words = volumes_section(made)
    assert "intracranial volume 1500 ml" in words
    assert "hippocampus, left 2.9 ml 0.193 %" in words
    assert "lateral ventricle, right 24 ml 1.6 %" in words
    assert "cerebrospinal fluid 300 ml 20 %" in words
    assert "The left hippocampus is smaller than the right by 6.7 % of the mean of both." in words
    assert "No norms were given" in words
    assert "automatic method" in words
    assert "Percentile" not in words
    assert "#volumes" in Page(render_scan_report(made)).links


def test_a_withheld_volume_says_why_in_words_and_has_no_number():
    sizes = SIZES_ML | {"hippocampus_left": None, "csf": None}
    found = measured(volumes_ml=sizes, reasons=("hippocampus_left:unsure", "hippocampus_left:odd_code"))
    finding = norm_finding("hippocampus_left_pct_icv")
    words = volumes_section(report(completed(volumes=found), norm_findings=(finding,)))
    assert "hippocampus, left Withheld: the outline is uncertain; odd_code hippocampus, right" in words
    assert "cerebrospinal fluid Withheld: no reason was given" in words
    assert "The left hippocampus is" not in words
    assert "0.193" not in words


@pytest.mark.parametrize("code", WITHHELD_BECAUSE)
def test_every_reason_for_withholding_has_words_of_its_own(code):
    found = BrainVolumes(volumes_ml={}, reasons=(f"hippocampus_right:{code}", "hippocampus_left:other"))
    words = why_withheld(found, "hippocampus_right")
    assert words == WITHHELD_BECAUSE[code]
    assert words.count(" ") >= 2


def test_volumes_stand_among_the_people_of_the_norms():
    findings = (
        norm_finding("hippocampus_left_pct_icv"),
        norm_finding("ventricle_left_ml", value=21.0, low=8.0, high=30.0, expected=15.0, percentile=81.2),
        norm_finding("grey_matter_ml", value=620.0, percentile=None, reason="an age of 92 is outside"),
    )
    made = report(completed(volumes=measured(), prediction=None), STATUS.NO_MODEL, norm_findings=findings)
    words = volumes_section(made)
    assert "412 people of the norms (healthy), at the same age and sex" in words
    assert "0.2 to 0.29 % 2 (< 1 to 4), below the expected range" in words
    assert "8 to 30 ml 81 (< 1 to 4), within the expected range" in words
    assert "an age of 92 is outside" in words
    assert "A percentile is not a diagnosis" in words
    text = render_scan_report(made)
    assert text.count('class="usual"') == 2
    assert 'aria-label="hippocampus, left (% of intracranial volume) 0.193 %, expected 0.2 to 0.29 %' in text


def test_measures_stand_against_the_class_of_reference_where_the_prediction_is_shown():
    text = Page(ALL_PAGES["held against a class"]()).text
    assert "34 people of the model's training cohort (ClassOne), at the same age and sex" in text
    assert "ventricle share 3.21 %" in text
    assert "> 99, above the expected range" in text
    assert "31 (22 to 42), within the expected range" in text
    assert "an age of 92 is outside" in text
    withheld = completed(QcStatus.FAIL, ("cnr",), prediction=referenced())
    assert "ClassOne" not in Page(render_scan_report(report(withheld, STATUS.WITHHELD))).text


def test_norms_and_class_of_reference_stand_side_by_side_and_are_named():
    finding = norm_finding("hippocampus_left_pct_icv", percentile=2.6)
    made = report(completed(volumes=measured(), prediction=referenced()), norm_findings=(finding,))
    words = volumes_section(made)
    assert "people of the norms (healthy), at the same age and sex, and with 34 people" in words
    assert "healthy: 3 (< 1 to 4), below the expected range ClassOne: 31 (22 to 42), within" in words
    assert words.count("hippocampus, left") == 1
    assert "ventricle share 3.21 %" in words


@pytest.mark.parametrize("by_eye", [False, True])
def test_no_volume_is_shown_where_quality_control_or_a_person_failed_the_scan(by_eye):
    decision = Review(decision=ReviewDecision.FAIL) if by_eye else None
    outcome = completed(
        QcStatus.PASS if by_eye else QcStatus.FAIL, volumes=measured(), scan=scan(review=decision)
    )
    made = report(
        outcome,
        STATUS.WITHHELD,
        norm_findings=(norm_finding("hippocampus_left_pct_icv"),),
        figures={"volumes": PNG},
    )
    words = volumes_section(made)
    assert "Quality control failed, so no volumes are shown" in words
    assert not re.search(r"\d (ml|%)", words)
    assert "<img" not in render_scan_report(made)


def test_the_outlines_stand_with_the_volumes_and_not_among_the_figures():
    made = report(completed(volumes=measured()), figures={"volumes": PNG, "mask": PNG})
    text = render_scan_report(made)
    section = text.partition('aria-labelledby="volumes"')[2].partition("</section>")[0]
    assert OUTLINES_TEXT.title in section
    assert section.count("<img") == 1
    assert text.count("<img") == 2
    assert "<img" not in render_scan_report(report(completed(), figures={"volumes": PNG}))


def test_a_report_without_volumes_has_no_section_of_them():
    assert volumes_section(report(completed())) == ""


def test_regions_of_the_user_s_atlas_are_folded_and_escaped():
    found = measured(atlas_ml={HOSTILE: 15.0, "thalamus, left": 7.5})
    text = render_scan_report(report(completed(volumes=found)))
    folded = text.partition("<details")[2].partition("</details>")[0]
    assert "<script>alert" not in text
    assert not any("alert" in attribute for attribute, _ in Page(text).attributes)
    assert f"{HOSTILE} 15 ml 1 %" in Page(folded).text
    assert "thalamus, left 7.5 ml 0.5 %" in Page(folded).text


def test_a_report_is_written_again_when_its_volumes_changed(tmp_path):
    context = RunContext(out_dir=tmp_path, config=Config())
    outcome = completed(volumes=measured(), prediction=None)
    path = context.files(outcome.scan).report
    write_report(outcome, context, changed=False)
    assert "2.9 ml" in path.read_text(encoding="utf-8")
    path.write_text("as it was", encoding="utf-8")
    write_report(outcome, context, changed=False)
    assert path.read_text(encoding="utf-8") == "as it was"
    smaller = SIZES_ML | {"hippocampus_left": 2.7}
    write_report(replace(outcome, volumes=measured(volumes_ml=smaller)), context, changed=False)
    assert "2.7 ml" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [0.01, 0.2, 0.24, 0.29, 5.0])
def test_the_bar_of_a_measure_holds_the_range_and_the_scan(value):
    bar = place_of(norm_finding("hippocampus_left_pct_icv", value=value)).bar
    assert bar is not None
    assert 0.0 < bar.first < bar.expected < bar.first + bar.width < 100.0
    assert 0.0 < bar.marker < 100.0
    assert (bar.marker >= bar.first - 1e-9) == (value >= 0.2)
    assert (bar.marker <= bar.first + bar.width + 1e-9) == (value <= 0.29)


def test_hippocampi_and_ventricles_stand_in_the_cohort_unless_the_scan_failed():
    found = [
        cohort_scan(
            completed(
                status,
                scan=scan(subject),
                volumes=measured(volumes_ml=SIZES_ML | {"hippocampus_left": ml}),
            ),
            prediction_status,
        )
        for subject, ml, status, prediction_status in (
            ("01", 2.9, QcStatus.PASS, STATUS.REPORTED),
            ("02", 3.0, QcStatus.PASS, STATUS.REPORTED),
            ("03", 1.0, QcStatus.FAIL, STATUS.WITHHELD),
        )
    ]
    strips = {strip.label: strip for strip in strips_of(found)}
    strip = strips["hippocampus, left (% of intracranial volume)"]
    assert (strip.lowest, strip.highest) == ("sub-01", "sub-02")
    assert strip.low == pytest.approx(100 * 2.9 / 1500)
    assert set(strips) == {"hippocampus, left (% of intracranial volume)", "hippocampus asymmetry"}
    assert "lateral ventricle, left (% of intracranial volume)" in cohort(*found)
    assert found[2].measure("hippocampus_left_pct_icv") is None


@pytest.mark.parametrize(
    ("measure", "label"),
    [
        ("hippocampus_left_pct_icv", "hippocampus, left (% of intracranial volume)"),
        ("ventricle_right_ml", "lateral ventricle, right"),
        ("intracranial_ml", "intracranial volume"),
        ("csf_pct_icv", "cerebrospinal fluid (% of intracranial volume)"),
        ("hippocampus_asymmetry_pct", "hippocampus asymmetry"),
        ("grey_matter", "grey matter"),
        ("ventricle_share", "ventricle share"),
        ("left", "left"),
    ],
)
def test_measures_have_names_for_people(measure, label):
    assert measure_label(measure) == label
