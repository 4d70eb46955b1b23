"""Decisions on the cohort page are about a picture: kept, shown, exported and read back as such."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    Completed,
    Failure,
    PredictionStatus,
    QcReport,
    QcStatus,
    QcVerdict,
    Review,
    ReviewDecision,
    T1wScan,
)
from brainstage.pipeline.review import read_decisions
from brainstage.workflows.reporting.cohort_page import CohortScan, render_cohort
from brainstage.workflows.reporting.pages import RunInfo

HERE = "p0123456789ab"
NAMES = ("01", "02", "03")
EARLIER, LATER = "2025-01-31T12:00:00Z", "2125-01-31T12:00:00Z"
TEXTS = (
    'a "quoted" word', '"ringing', '"ringing"', "'tis", "'=1+1", "''", "=cmd()", "@x", "+1", "-1",
    "\u00e4 \u2028 \U0001f9e0", "tab\there, line\r\nthere, nothing\x00there", " blanks ", "#", "n/a", "\\n \\t",
    "</script><b>", "{{ x }}",
)  # fmt: skip


def path_of(name: str) -> str:
    return f"sub-{name}/anat/sub-{name}_T1w.nii.gz"


def page_of(
    path: Path,
    *,
    directory: str = "one",
    sha256: Mapping[str, str] | None = None,
    preprocessing_id: str = HERE,
    reviews: Mapping[str, Review] | None = None,
    failed: str = "",
) -> Path:
    """Write the page of three scans; file and review of each may be others."""
    scans = []
    for name in NAMES:
        scan = T1wScan(
            entities=BidsEntities(subject=name),
            path=Path("x"),
            t1w_path=path_of(name),
            review=(reviews or {}).get(name),
        )
        verdict = QcVerdict(status=QcStatus.FAIL, reasons=("cnr",))
        done = Completed(
            scan=scan,
            qc=QcReport(measures={"cnr": 0.1}, verdict=verdict),
            prediction=None,
            preprocessing_id=preprocessing_id,
            source_sha256=(sha256 or {}).get(name, name * 32),
        )
        broken = Failure(scan=scan, stage="ingest", error="ImageError", message="truncated")
        scans.append(
            CohortScan(
                outcome=broken if name == failed else done, prediction_status=PredictionStatus.NO_MODEL
            )
        )
    text = render_cohort(scans, RunInfo(version="1", date="2025-01-31"), directory=directory)
    path.write_text(text, encoding="utf-8")
    return path


def shown(page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator("td.decision").all_text_contents()]


def reviewed(page, *keys: str) -> None:
    page.get_by_role("button", name="Review scans").click()
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Escape")


def exported(page, folder: Path) -> dict[str, Review]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(folder / "qc_decisions.tsv")
    return read_decisions(folder / "qc_decisions.tsv")


def test_a_page_of_the_same_names_in_another_directory_shows_nothing_of_the_first(open_page, tmp_path):
    page = open_page(page_of(tmp_path / "one.html"))
    reviewed(page, "p", "f", "f")
    page.goto(page_of(tmp_path / "two.html", directory="two").as_uri())
    assert shown(page) == ["", "", ""]
    page.goto((tmp_path / "one.html").as_uri())
    assert shown(page) == ["pass", "fail", "fail"]


@pytest.mark.parametrize(
    "changed", [{"sha256": {"01": "f" * 64}}, {"preprocessing_id": "pffffffffffff"}], ids=["file", "chain"]
)
def test_a_decision_about_an_earlier_picture_is_shown_as_such_and_stays_about_that_one(
    open_page, tmp_path, changed
):
    page = open_page(page_of(tmp_path / "page.html"), accept_downloads=True)
    reviewed(page, "p")
    page.goto(page_of(tmp_path / "page.html", **changed).as_uri())
    assert shown(page)[0].startswith("about another picture: pass (")
    page.locator("#filter-review").select_option("outdated")
    assert page.locator("#scans tbody tr:visible").count() == 1
    before = exported(page, tmp_path)[path_of("01")]
    assert (before.decision, before.sha256, before.preprocessing_id) == ("pass", "01" * 32, HERE)
    reviewed(page, "f")
    after = exported(page, tmp_path)[path_of("01")]
    assert after.decision == "fail"
    assert (after.sha256 == before.sha256) is ("sha256" not in changed)
    page.goto(page_of(tmp_path / "page.html", reviews={"01": before}, **changed).as_uri())
    assert shown(page)[0] == "fail"


def test_a_decision_of_the_table_about_another_picture_is_not_shown_as_one_about_this(open_page, tmp_path):
    old = Review(
        decision=ReviewDecision.PASS, sha256="e" * 64, reviewer="KL", decided_at=EARLIER, note="fine"
    )
    path = page_of(tmp_path / "page.html", reviews={"02": old})
    page = open_page(path, accept_downloads=True)
    assert shown(page) == ["", "about another picture: pass (KL, 2025-01-31), fine", ""]
    assert page.locator("#scans tbody tr").nth(1).get_attribute("data-qc") == "fail"
    assert exported(page, tmp_path) == {path_of("02"): old}
    page = open_page(path, java_script_enabled=False)
    assert shown(page) == ["", "", ""]


@pytest.mark.parametrize(
    ("decided_at", "expected"),
    [
        (LATER, "fail this browser kept: pass ("),
        ("", "fail this browser kept: pass ("),
        (EARLIER, "pass the table of this run says: fail"),
    ],
    ids=["table is later", "table has no time", "browser is later"],
)
def test_where_browser_and_table_differ_the_later_stands_and_both_are_shown(
    open_page, tmp_path, decided_at, expected
):
    page = open_page(page_of(tmp_path / "page.html"), accept_downloads=True)
    reviewed(page, "p")
    given = Review(decision=ReviewDecision.FAIL, decided_at=decided_at)
    page.goto(page_of(tmp_path / "page.html", reviews={"01": given}).as_uri())
    assert shown(page)[0].startswith(expected)
    # Whoever has seen both and decides, decides, whatever the clock of the other machine said.
    page.get_by_role("button", name="Review scans").click()
    page.keyboard.press("b")
    page.locator("#review-back").click()
    page.locator("#review-back").click()
    page.keyboard.press("u")
    page.keyboard.press("Escape")
    page.reload()
    assert shown(page)[0] == "unsure"
    assert exported(page, tmp_path)[path_of("01")].decision == "unsure"


def test_a_decision_that_was_exported_and_given_back_is_no_conflict(open_page, tmp_path):
    page = open_page(page_of(tmp_path / "page.html"), accept_downloads=True)
    reviewed(page, "p", "f", "u")
    found = exported(page, tmp_path)
    given = {name: found[path_of(name)] for name in NAMES}
    page.goto(page_of(tmp_path / "page.html", reviews=given).as_uri())
    assert shown(page) == ["pass", "fail", "unsure"]
    assert exported(page, tmp_path) == found


def test_a_decision_by_hand_stays_without_a_picture(open_page, tmp_path):
    by_hand = Review(decision=ReviewDecision.FAIL)
    page = open_page(page_of(tmp_path / "page.html", reviews={"03": by_hand}), accept_downloads=True)
    assert exported(page, tmp_path) == {path_of("03"): by_hand}


def test_a_scan_without_a_picture_is_not_decided_about(open_page, tmp_path):
    page = open_page(page_of(tmp_path / "page.html", failed="02"), accept_downloads=True)
    reviewed(page, "p", "p", "p")
    assert shown(page) == ["pass", "", "pass"]
    assert set(exported(page, tmp_path)) == {path_of("01"), path_of("03")}


def test_two_tabs_lose_nothing_of_each_other(open_page, tmp_path):
    page = open_page(page_of(tmp_path / "page.html"))
    other = page.context.new_page()
    other.goto(page.url)
    reviewed(page, "p")
    reviewed(other, " ", "f")
    page.reload()
    assert shown(page) == ["pass", "fail", ""]


@pytest.mark.parametrize("column", ["note", "reviewer"])
def test_whatever_is_typed_comes_back_from_the_file(open_page, tmp_path, column):
    path = page_of(tmp_path / "page.html")
    for text in TEXTS:
        # A page each: chromium asks before one page may save more than ten files.
        page = open_page(path, accept_downloads=True)
        page.get_by_role("button", name="Review scans").click()
        typed = page.locator("#review-note" if column == "note" else "#reviewer").evaluate(
            "(input, text) => { input.value = text; input.dispatchEvent(new Event('input')); return input.value; }",
            text,
        )
        page.locator("#review-who").focus()
        page.keyboard.press("p")
        page.locator("#review-back").click()
        review = exported(page, tmp_path)[path_of("01")]
        assert getattr(review, column) == " ".join(typed.replace("\x00", " ").split())
        assert review.decision == "pass"
