"""The pages in a real browser: they fit, can be read, reached by keyboard, printed, and fetch nothing."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainstage.pipeline.review import read_decisions

SIZES = {"phone": (390, 844), "laptop": (1366, 900), "wide": (1920, 1080)}
PAGES = {
    "cohort": "cohort.html",
    "reported": "sub-01_ses-M12.html",
    "failed": "sub-02_ses-M00.html",
    "flagged": "sub-03_ses-M00.html",
    "withheld": "sub-04_ses-M00.html",
}
A4_PIXELS = 718
"""Width of A4 between margins of 1 cm, at the 96 pixels an inch that browsers print with."""

LEAST_CONTRAST = 4.5
"""Between text and its background, WCAG 2.1 level AA."""

CONTRASTS = """() => {
  const channels = (colour) => {
    const found = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1 };
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.alpha > 0.99) { return colour.rgb; }
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = Array.from(element.childNodes).filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join(" ");
    if (!own || !element.checkVisibility() || !element.getClientRects().length) { continue; }
    const [one, other] = [channels(getComputedStyle(element).color).rgb, ground(element)].map(light);
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), own.slice(0, 40)]);
  }
  return found;
}"""
CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex='0']"
STOPS = CONTROLS.replace("input", "input:not([type='radio']), input:checked")
"""Radio buttons of a group are one stop; arrows lead from one to the next."""

NAMES = """(selector) => Array.from(document.querySelectorAll(selector)).filter((e) => e.checkVisibility()).map((e) => {
  const by = (e.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
  const named = by.map((id) => document.getElementById(id).textContent).join(" ");
  const labels = Array.from(e.labels || []).map((label) => label.textContent).join(" ");
  return [e.outerHTML.slice(0, 80), (e.getAttribute("aria-label") || named || labels || e.textContent || "").trim()];
})"""
MARK = """(selector) => Array.from(document.querySelectorAll(selector)).filter((e) => e.checkVisibility())
  .map((e, n) => { e.dataset.number = n; return n; })"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window(open_page, screenshot, output, name, size):
    width, height = SIZES[size]
    page = open_page(output / PAGES[name], width=width, height=height)
    screenshot(page, f"{name}-{size}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_stands_out_from_its_background(open_page, screenshot, output, name, scheme):
    page = open_page(output / PAGES[name], color_scheme=scheme)
    screenshot(page, f"{name}-{scheme}")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 10
    assert [pair for pair in found if pair[0] < LEAST_CONTRAST] == []


def test_the_dark_scheme_is_dark(open_page, output):
    page = open_page(output / PAGES["reported"], color_scheme="dark")
    red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert red < 60


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_language_and_headings_in_order(open_page, output, name):
    page = open_page(output / PAGES[name])
    assert page.get_attribute("html", "lang") == "en"
    levels = page.evaluate(
        "Array.from(document.querySelectorAll('h1,h2,h3,h4,h5,h6')).map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_drawn_and_has_words(open_page, output, name):
    page = open_page(output / PAGES[name])
    pictures = page.evaluate(
        "Promise.all(Array.from(document.images).map((i) => { i.loading = 'eager'; return i.decode().then("
        "() => [i.alt, i.naturalWidth]); }))"
    )
    assert all(alt and width > 0 for alt, width in pictures)
    assert bool(pictures) == (name != "failed")
    drawn = page.evaluate(
        "Array.from(document.querySelectorAll('svg')).map((s) => [s.getAttribute('role'), "
        "s.getAttribute('aria-label') || s.getAttribute('aria-hidden')])"
    )
    assert all(role == "img" or words == "true" for role, words in drawn)
    assert all(words for _, words in drawn)


@pytest.mark.parametrize("name", PAGES)
def test_every_control_has_a_name_and_is_reached_by_tab(open_page, output, name):
    page = open_page(output / PAGES[name])
    assert [found for found, words in page.evaluate(NAMES, CONTROLS) if not words] == []
    wanted = set(page.evaluate(MARK, STOPS))
    reached = set()
    for _ in range(len(wanted) + 2):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.dataset.number")
        reached |= {int(number)} if number is not None else set()
    assert reached == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_all_that_matters_on_white(open_page, output, name, scheme):
    page = open_page(output / PAGES[name], width=A4_PIXELS, height=1123, color_scheme=scheme)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [pair for pair in page.evaluate(CONTRASTS) if pair[0] < LEAST_CONTRAST] == []
    hidden = page.evaluate(
        "Array.from(document.querySelectorAll('h1, h2, .verdict p, table tbody tr, figure img, footer p'))"
        ".filter((e) => !e.closest('.no-print') && !e.getClientRects().length).map((e) => e.outerHTML)"
    )
    assert hidden == []
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_report_links_to_its_sections_and_to_the_cohort(open_page, output):
    page = open_page(output / PAGES["reported"])
    for link in page.locator("nav.toc a").all():
        link.focus()
        page.keyboard.press("Enter")
        target = page.evaluate("document.querySelector(location.hash).getBoundingClientRect().top")
        assert -1 <= target < 900
    page.get_by_role("link", name="All scans of this run").click()
    assert page.url.endswith("cohort.html")


def test_volumes_stand_beside_their_outlines_and_those_of_the_atlas_are_folded(open_page, screenshot, output):
    page = open_page(output / PAGES["reported"])
    section = page.locator("section[aria-labelledby='volumes']")
    assert section.get_by_role("img", name="Enlarged slices of each hippocampus").is_visible()
    row = section.locator("tr", has=page.get_by_role("rowheader", name="hippocampus, left"))
    assert row.locator("td").all_inner_texts()[:3] == ["2.7 ml", "0.18 %", "0.2 to 0.29 %"]
    assert row.locator("td").last.inner_text() == "2 (< 1 to 5), below the expected range"
    bar, band, mark = (row.locator(name).bounding_box() for name in ("svg", ".usual", ".marker"))
    assert bar["x"] <= mark["x"] < band["x"], "the mark of the scan lies left of what is expected"
    assert band["x"] + band["width"] <= bar["x"] + bar["width"]
    regions = section.locator("details table")
    assert not regions.is_visible()
    section.locator("summary").focus()
    page.keyboard.press("Enter")
    assert regions.is_visible()
    assert regions.locator("tbody tr").count() == 30
    screenshot(page, "volumes")


def test_a_withheld_volume_stands_there_without_a_number(open_page, output):
    page = open_page(output / PAGES["flagged"])
    section = page.locator("section[aria-labelledby='volumes']")
    row = section.locator("tr", has=page.get_by_role("rowheader", name="hippocampus, left"))
    assert row.locator("td").all_inner_texts() == ["Withheld: the outline is uncertain"]
    assert row.locator("svg").count() == 0
    failed = open_page(output / PAGES["withheld"])
    assert "no volumes are shown" in failed.locator("section[aria-labelledby='volumes']").inner_text()


# The cohort page


def cells(page, column: int) -> list[str]:
    """Return what a column is sorted by, row after row."""
    return page.evaluate(
        "(n) => Array.from(document.querySelectorAll('#scans tbody tr')).filter((r) => !r.hidden).map((r) => "
        "{ const c = r.cells[n]; return c.hasAttribute('data-value') ? c.getAttribute('data-value') "
        ": c.textContent.trim(); })",
        column,
    )


def key_of(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return 0.0, value.lower()


def test_the_cohort_page_sorts_by_every_column(open_page, output):
    page = open_page(output / "cohort.html")
    columns = page.evaluate(
        "Array.from(document.querySelectorAll('#scans thead th')).map((h, n) => [n, !!h.querySelector('button')])"
    )
    sortable = [column for column, has_button in columns if has_button]
    assert len(sortable) >= 8
    for column in sortable:
        header = page.locator("#scans thead th").nth(column)
        before = sorted(cells(page, column))
        header.locator("button").focus()
        for direction in ("ascending", "descending"):
            page.keyboard.press("Enter")
            assert header.get_attribute("aria-sort") == direction
            found = cells(page, column)
            filled = [value for value in found if value]
            assert found == filled + [""] * (len(found) - len(filled)), "what is empty stands last"
            assert filled == sorted(filled, key=key_of, reverse=direction == "descending")
            assert sorted(found) == before


def test_the_cohort_page_filters_by_text_and_verdict(open_page, output):
    page = open_page(output / "cohort.html")
    total = page.locator("#scans tbody tr").count()
    page.locator("#filter-text").fill("sub-01")
    assert page.locator("#scans tbody tr:visible").count() == 2
    page.locator("#filter-text").fill("212 ml")
    assert page.locator("#scans tbody tr:visible").count() == 1
    page.locator("#filter-text").fill("")
    assert page.locator("#scans tbody tr:visible").count() == total
    page.locator("#filter-qc").select_option("warn")
    assert page.locator("#scans tbody tr:visible .chip.warn").count() == 1
    page.locator("#filter-qc").select_option("")
    page.locator("#filter-status").select_option("failed")
    assert page.locator("#scans tbody tr:visible").count() == 1
    assert page.locator("#shown").inner_text() == f"1 of {total} scans"


def measures(page, label: str) -> dict[str, str]:
    page.locator("#chosen").select_option(label=label)
    return dict(
        page.evaluate(
            "Array.from(document.querySelectorAll('#scans tbody tr')).map((r) => "
            "[r.dataset.key, r.querySelector('td.chosen').textContent])"
        )
    )


def test_any_measure_can_be_chosen_sorted_and_filtered_by(open_page, output):
    page = open_page(output / "cohort.html")
    with (output / "qc.csv").open(encoding="utf-8", newline="") as stream:
        volumes = {row["t1w_path"]: row["brain_volume_ml"] for row in csv.DictReader(stream)}
    shown = measures(page, "brain volume")
    paths = dict(
        page.evaluate(
            "Array.from(document.querySelectorAll('#scans tbody tr')).map((r) => [r.dataset.key, r.dataset.path])"
        )
    )
    assert {paths[key]: value and round(float(value), 3) for key, value in shown.items()} == {
        path: value and round(float(value), 3) for path, value in volumes.items()
    }
    page.locator("#sort-chosen").click()
    values = [float(value) for value in page.locator("td.chosen").all_text_contents() if value]
    assert values == sorted(values)
    page.locator("#filter-low").fill(str(values[2]))
    assert page.locator("#scans tbody tr:visible").count() == len(values) - 2
    page.locator("#filter-high").fill(str(values[3]))
    assert page.locator("#scans tbody tr:visible").count() == 2


def test_sites_and_classes_can_be_filtered_by(open_page, output):
    page = open_page(output / "cohort.html")
    page.locator("#filter-site").select_option("South")
    shown = page.locator("#scans tbody tr:visible")
    assert {row.get_attribute("data-site") for row in shown.all()} == {"South"}
    page.locator("#filter-site").select_option("")
    page.locator("#filter-class").select_option("AD")
    assert {row.get_attribute("data-class") for row in shown.all()} == {"AD"}


def test_what_a_set_leaves_possible_can_be_filtered_by_and_its_count_is_that_of_the_page(open_page, output):
    page = open_page(output / "cohort.html")
    choices = page.locator("#filter-verdict option").all_text_contents()
    assert choices == ["all", "one class", "undecided", "no class ruled out"]
    counted = page.locator(".counts div", has_text="Prediction sets").locator("li").all_text_contents()
    for verdict, words in zip(choices[1:], counted, strict=True):
        page.locator("#filter-verdict").select_option(verdict)
        shown = page.locator("#scans tbody tr:visible")
        assert words == f"{shown.count()} {verdict}"
        sizes = {len(row.locator(".c-set").text_content().split(", ")) for row in shown.all()}
        assert sizes == {choices.index(verdict)}


def test_a_decided_prediction_alone_is_green(open_page, output):
    page = open_page(output / "cohort.html")
    found = {
        (row.get_attribute("data-status"), row.get_attribute("data-verdict")): row.locator(
            ".c-status .chip"
        ).evaluate("chip => getComputedStyle(chip).color")
        for row in page.locator("#scans tbody tr").all()
    }
    green = page.locator(".chip.pass").first.evaluate("chip => getComputedStyle(chip).color")
    assert found["reported", "one class"] == green
    assert {key for key, colour in found.items() if colour == green} == {("reported", "one class")}


def test_a_distribution_leads_to_its_outliers(open_page, output):
    page = open_page(output / "cohort.html")
    page.locator("#filter-text").fill("sub-01")
    strip = page.locator(".strip", has_text="brain volume")
    highest = strip.locator("a.extremes").last
    key = highest.text_content()
    highest.focus()
    page.keyboard.press("Enter")
    current = page.locator("#scans tbody tr.current")
    assert current.get_attribute("data-key") == key
    assert current.is_visible(), "a filter that hid it was lifted"
    volumes = {k: float(v) for k, v in measures(page, "brain volume").items() if v}
    assert volumes[key] == max(volumes.values())
    box = strip.locator("svg").bounding_box()
    strip.locator("svg").click(position={"x": 3, "y": box["height"] / 2})
    assert current.get_attribute("data-key") == min(volumes, key=lambda k: volumes[k])


def test_pictures_only_keeps_every_scan_and_its_verdict(open_page, screenshot, output):
    page = open_page(output / "cohort.html")
    total = page.locator("#scans tbody tr:visible").count()
    page.get_by_role("button", name="Pictures only").click()
    screenshot(page, "cohort-pictures")
    assert page.locator("#scans tbody tr:visible").count() == total
    assert page.locator("#scans tbody th a:visible").count() == total
    assert page.locator("#scans tbody .chip:visible").count() >= total
    assert not page.locator("#scans thead").is_visible()


def test_scans_are_reviewed_by_keyboard_kept_and_exported(open_page, screenshot, output, tmp_path):
    page = open_page(output / "cohort.html", accept_downloads=True)
    page.get_by_role("button", name="Review scans").focus()
    page.keyboard.press("Enter")
    page.locator("#reviewer").fill("K. L.")
    page.locator("#review-who").focus()
    for key in ("p", "f"):
        page.keyboard.press(key)
    page.keyboard.press("n")
    page.keyboard.type("=cut\toff, p f u")
    page.keyboard.press("Enter")
    page.keyboard.press("u")
    page.keyboard.press("p")
    page.keyboard.press("b")
    page.keyboard.press("c")
    screenshot(page, "cohort-review")
    page.keyboard.press("Escape")
    assert not page.locator("#review").is_visible()
    page.reload()
    # The third scan has failed: without a picture there is nothing to decide about.
    assert page.locator("td.decision").all_text_contents()[:5] == ["pass", "fail", "", "unsure", ""]
    page.locator("#filter-review").select_option("none")
    assert page.locator("#scans tbody tr:visible").count() == 5
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "qc_decisions.tsv"
    download.value.save_as(tmp_path / "qc_decisions.tsv")
    found = read_decisions(tmp_path / "qc_decisions.tsv")
    rows = page.evaluate(
        "Array.from(document.querySelectorAll('#scans tbody tr')).map((r) => [r.dataset.path, r.dataset.sha256])"
    )
    expected = ((0, "pass", ""), (1, "fail", ""), (3, "unsure", "=cut off, p f u"))
    assert [(path, str(review.decision), review.note) for path, review in found.items()] == [
        (rows[number][0], decision, note) for number, decision, note in expected
    ]
    assert [review.sha256 for review in found.values()] == [rows[number][1] for number, *_ in expected]
    assert {review.preprocessing_id for review in found.values()} == {"p3f7a90c12b44aa0"}
    assert {review.reviewer for review in found.values()} == {"K. L."}
    age = [datetime.now(UTC) - datetime.fromisoformat(review.decided_at) for review in found.values()]
    assert all(abs(value) < timedelta(minutes=5) for value in age)


def test_a_review_that_the_browser_cannot_keep_is_said(open_page, output):
    page = open_page(
        output / "cohort.html",
        start="Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };",
    )
    page.get_by_role("button", name="Review scans").click()
    page.keyboard.press("p")
    assert "keeps nothing" in page.locator("#kept").inner_text()
    assert page.locator("td.decision").all_text_contents()[0] == "pass"


def test_every_scan_of_the_cohort_leads_to_its_report(open_page, output):
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        reports = [row["report"] for row in csv.DictReader(stream)]
    page = open_page(output / "cohort.html")
    links = page.locator("#scans tbody th a")
    assert [link.get_attribute("href") for link in links.all()] == reports
    links.last.click()
    assert page.locator("h1").inner_text() == Path(reports[-1]).stem


def test_the_pages_can_be_read_without_script(open_page, output):
    page = open_page(output / "cohort.html", java_script_enabled=False)
    assert page.locator("#scans tbody tr").count() == 8
    assert not page.locator("#controls").is_visible()
    page = open_page(output / PAGES["reported"], java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert not page.locator("#viewer-open").is_visible()


def band_of(page) -> np.ndarray:
    """Return the corner of the flicker that names the band to be seen."""
    png = page.locator(".flicker").screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)[4:24, 4:124]


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).mean() < 2)


def test_registration_flickers_between_brain_and_template_by_keyboard(open_page, output):
    page = open_page(output / PAGES["reported"])
    page.get_by_role("radio", name="registered", exact=True).focus()
    seen = [band_of(page)]
    for name in ("template", "before registration"):
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("radio", name=name, exact=True).is_checked()
        seen.append(band_of(page))
    assert not any(alike(one, other) for one, other in combinations(seen, 2))
    page.keyboard.press("ArrowRight")
    frames = []
    for _ in range(12):
        frames.append(band_of(page))
        page.wait_for_timeout(170)
    shown = [[alike(frame, band) for band in seen] for frame in frames]
    assert [any(times) for times in zip(*shown, strict=True)] == [True, True, False]


def test_nothing_flickers_for_those_who_want_less_motion(open_page, output):
    page = open_page(output / PAGES["reported"], reduced_motion="reduce")
    still = band_of(page)
    page.get_by_role("radio", name="registered and template in turns").check()
    for _ in range(6):
        page.wait_for_timeout(300)
        assert alike(band_of(page), still)


def test_all_bands_of_the_registration_are_printed(open_page, output):
    page = open_page(output / PAGES["reported"])
    shown = page.locator(".flicker").bounding_box()["height"]
    page.emulate_media(media="print")
    printed = page.locator(".flicker").bounding_box()["height"]
    picture = page.locator(".flicker img").bounding_box()["height"]
    assert printed == pytest.approx(picture, abs=1)
    assert printed > 2 * shown * page.locator(".flicker").bounding_box()["width"] / 1200


def test_rows_keep_their_height_while_pictures_are_unpacked(open_page, output):
    page = open_page(output / PAGES["cohort"])
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('#scans img')).map((e) => [e.width, e.height, e.naturalWidth || 240,"
        " e.naturalHeight])"
    )
    assert len(sizes) == 7
    assert all(height > 100 for _, height, _, _ in sizes)
    assert all(
        abs(height - width * natural / across) <= 1 for width, height, across, natural in sizes if natural
    )


@pytest.mark.parametrize("width", [720, 1366, 1920])
def test_every_cell_stands_under_its_heading(open_page, output, width):
    page = open_page(output / PAGES["cohort"], width=width)
    edges = page.evaluate(
        "Array.from(document.querySelectorAll('#scans tr')).map((row) => Array.from(row.cells)"
        ".filter((cell) => cell.checkVisibility()).map((cell) => [cell.getBoundingClientRect().left,"
        " cell.getBoundingClientRect().right].map(Math.round).join()))"
    )
    assert len(edges) == 9
    assert len(edges[0]) > 10
    assert all(row == edges[0] for row in edges)


def test_rows_that_are_laid_out_otherwise_are_still_a_table(open_page, output):
    page = open_page(output / PAGES["cohort"])
    table = page.get_by_role("table", name="", exact=False).first
    assert page.locator("#scans").get_by_role("row").count() == 9
    assert table.get_by_role("columnheader").count() > 10
    first = page.locator("#scans").get_by_role("row").nth(1)
    assert first.get_by_role("rowheader").text_content() == "sub-01"
    assert first.get_by_role("cell").count() == page.locator("#scans").get_by_role("columnheader").count() - 1
