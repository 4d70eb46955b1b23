"""The volume viewer in a real browser: it draws, obeys the keyboard, fetches nothing, and says where it cannot."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from brainstage.workflows.cli import main

REPORT = "sub-01_ses-M12.html"
NO_WEBGL2 = """
  const get = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
    return kind === "webgl2" ? null : get.call(this, kind, ...more);
  };
"""


def opened(open_page, path, **options):
    """Open a report and its viewer, by keyboard."""
    from playwright.sync_api import expect

    page = open_page(path, **options)
    page.locator("#viewer-open").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-place")).to_have_text(re.compile("^Crosshair at x"))
    expect(page.locator("#viewer-says")).to_be_empty()
    return page


def drawn(page) -> np.ndarray:
    """Return the colours of the canvas, (H, W, 3)."""
    page.wait_for_timeout(200)  # a frame or two
    png = page.locator("#viewer-canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(picture: np.ndarray) -> np.ndarray:
    """Return how much more blue than red each pixel is where it has a colour."""
    return (picture[..., 2] - picture[..., 0])[np.ptp(picture, axis=2) > 25]


@pytest.mark.parametrize("width", [390, 1366])
def test_the_viewer_draws_the_brain(open_page, screenshot, output, width):
    page = opened(open_page, output / REPORT, width=width)
    screenshot(page, f"viewer-{width}", full_page=False)
    grey = drawn(page).mean(axis=2).round()
    assert len(np.unique(grey)) > 50
    assert 0.15 < (grey > 30).mean() < 0.9
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_is_unpacked_before_the_viewer_is_opened(open_page, output):
    page = open_page(output / REPORT)
    assert page.evaluate("typeof window.niivue") == "undefined"
    assert not page.locator("#viewer-canvas").is_visible()


def test_overlays_are_switched_by_keyboard(open_page, output):
    page = opened(open_page, output / REPORT)
    edges = page.get_by_label("Edges of the template", exact=True)
    assert edges.is_checked()
    blue = (coloured(drawn(page)) > 0).sum()
    assert blue > 500
    edges.focus()
    page.keyboard.press("Space")
    assert coloured(drawn(page)).size < blue / 20
    plain = drawn(page)
    page.get_by_label("Template", exact=True).focus()
    page.keyboard.press("Space")
    assert (np.abs(drawn(page) - plain).max(axis=2) > 10).mean() > 0.05


@pytest.mark.parametrize("space", ["Template space", "Native space"])
def test_what_a_prediction_rests_on_is_laid_over_the_brain_at_its_place(open_page, output, space):
    page = opened(open_page, output / REPORT)
    page.get_by_role("radio", name=space).check()
    page.wait_for_timeout(1000)
    for other in ("Edges of the template", "Brain mask"):
        if page.get_by_label(other, exact=True).count():
            page.get_by_label(other, exact=True).uncheck()
    assert coloured(drawn(page)).size < 50
    page.get_by_label("Grad-CAM", exact=True).check()
    page.locator("#viewer-slices").select_option("axial")
    places = np.nonzero(np.ptp(drawn(page), axis=2) > 25)[1]
    # the person's left is on the left
    assert places.size > 1000
    assert (places < drawn(page).shape[1] / 2).mean() > 0.95


def test_the_opacity_of_an_overlay_follows_its_slider(open_page, output):
    page = opened(open_page, output / REPORT)
    strong = coloured(drawn(page)).size
    page.get_by_label("Opacity of edges of the template").focus()
    page.keyboard.press("Home")
    assert coloured(drawn(page)).size < strong / 2


def test_native_space_shows_the_scan_with_its_mask(open_page, screenshot, output):
    page = opened(open_page, output / REPORT)
    page.get_by_role("radio", name="Template space").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_label("Brain mask", exact=True).wait_for()
    assert (coloured(drawn(page)) < 0).mean() > 0.95, "orange, not blue"
    screenshot(page, "viewer-native", full_page=False)
    assert page.get_by_label("Edges of the template", exact=True).count() == 0


def test_the_crosshair_moves_by_keyboard(open_page, output):
    page = opened(open_page, output / REPORT)
    place = page.locator("#viewer-place")
    before, picture = place.inner_text(), drawn(page)
    page.locator("#viewer-canvas").focus()
    for _ in range(6):
        page.keyboard.press("PageUp")
    moved = drawn(page)
    numbers = [re.findall(r"[xyz] (−?\d+)", text) for text in (before, place.inner_text())]
    assert numbers[0][:2] == numbers[1][:2]
    assert numbers[0][2] != numbers[1][2]
    assert (np.abs(moved - picture).max(axis=2) > 30).mean() > 0.01


def test_every_control_of_the_open_viewer_has_a_name(open_page, output):
    page = opened(open_page, output / REPORT)
    panel = page.locator("#viewer-panel")
    for role, count in {"radio": 2, "checkbox": 3, "slider": 3, "combobox": 1, "application": 1}.items():
        assert panel.get_by_role(role, name=re.compile(r"\w")).count() == count, role


def test_a_browser_without_webgl2_is_told_so(open_page, output):
    page = open_page(output / REPORT, start=NO_WEBGL2)
    assert "no WebGL2" in page.locator("#viewer-says").inner_text()
    assert not page.locator("#viewer-open").is_visible()


def test_a_failed_scan_has_no_viewer(open_page, output):
    page = open_page(output / "sub-02_ses-M00.html")
    assert page.locator("#viewer-open").count() == 0


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_real_run_opens_in_the_browser(open_page, screenshot, shared_data, tmp_path):
    out = tmp_path / "out"
    heads = ("--participant-label", "01", "02", "--nprocs", "1", "--resolution", "2")
    assert main(["run", str(shared_data / "ds000011"), str(out), *heads]) == 0
    for name in ("sub-01.html", "sub-02.html"):
        assert (out / name).stat().st_size < 4_000_000
    page = opened(open_page, out / "sub-01.html")
    assert len(np.unique(drawn(page).mean(axis=2).round())) > 50
    screenshot(page, "real-report")
    page = open_page(out / "cohort.html")
    screenshot(page, "real-cohort")
    page.locator("#scans tbody th a").first.click()
    assert page.locator("h1").inner_text() == "sub-01"
