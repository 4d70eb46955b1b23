"""How a cohort page of thousands of scans with real pictures opens, scrolls, sorts and filters in a browser.

Run ``brainstage run`` over whole heads first, then::

    .venv/bin/python benchmarks/cohort_page.py RUN_DIR [--scans 2000]

The scans of the run are repeated under other names, their measures spread at random, until there are enough; their
pictures are those of the run. It needs chromium, prints a table and writes it to ``benchmarks/cohort_page.md``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import entities_of, parse_name
from brainstage.pipeline.records import Completed
from brainstage.workflows.gate import decide
from brainstage.workflows.learning.labelled_cohort import read_finished_run
from brainstage.workflows.reported import read_reported, reported_outcome
from brainstage.workflows.reporting.cohort_page import CohortScan, render_cohort
from brainstage.workflows.run_context import RunContext, run_info

FOLDER = Path(__file__).parent
SPREAD = 0.1
SCROLL_SECONDS = 5.0
SPEEDS = {"at 4,000 pixels a second": 4000, "through all of it in 5 s": 1e9}
"""What a fast turn of a wheel gives, and a pull at the bar."""

FRAMES = """async ([seconds, speed]) => {
  const times = [], height = Math.min(document.documentElement.scrollHeight - innerHeight, seconds * speed);
  const started = performance.now();
  let now = started;
  while (now - started < 1000 * seconds) {
    window.scrollTo(0, height * (now - started) / (1000 * seconds));
    now = await new Promise(requestAnimationFrame);
    times.push(now);
  }
  return times.slice(1).map((time, index) => time - times[index]);
}"""


def scans_of(run_dir: Path, count: int) -> list[CohortScan]:
    """Return as many scans as wanted, made of those of a run."""
    rng = np.random.default_rng(0)
    context = RunContext(out_dir=run_dir, config=Config())
    known = list(_completed(run_dir, context))
    if not known:
        raise SystemExit(f"{run_dir} holds no completed scan")
    scans = []
    for number, (outcome, picture) in enumerate(islice(cycle(known), count)):
        subject = f"{number:05d}"
        measures = {
            name: value * float(rng.normal(1.0, SPREAD)) if isinstance(value, float) else value
            for name, value in outcome.qc.measures.items()
        }
        scan = replace(
            outcome.scan,
            entities=replace(outcome.scan.entities, subject=subject),
            t1w_path=f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz",
        )
        copy = replace(outcome, scan=scan, qc=replace(outcome.qc, measures=measures))
        status = decide(copy).status
        scans.append(
            CohortScan(outcome=copy, prediction_status=status, report=f"{scan.key}.html", thumbnail=picture)
        )
    return scans


def _completed(run_dir: Path, context: RunContext) -> Iterator[tuple[Completed, bytes]]:
    rows, _ = read_finished_run(run_dir)
    for row in rows:
        parsed = parse_name(Path(row.t1w_path).name)
        if parsed is None:
            continue
        files = ScanFiles(out_dir=run_dir, entities=entities_of(parsed))
        reported = read_reported(files.entities, row.t1w_path, context)
        outcome = reported_outcome(*reported) if reported else None
        if outcome is not None and files.figure("montage").is_file():
            yield outcome, files.figure("montage").read_bytes()


def measured(page: Page, path: Path) -> list[tuple[str, str]]:
    """Return what the page does in a browser."""
    search = page.locator("#filter-text")
    rows = [("until it can be used", _seconds(page, lambda: page.goto(path.as_uri())))]
    rows += _scrolled(page, "table")
    rows.append(("sort by a measure", _seconds(page, page.locator("#sort-chosen").click)))
    rows.append(("filter by a word", _seconds(page, lambda: search.fill("00123"))))
    rows.append(("show all again", _seconds(page, lambda: search.fill(""))))
    rows.append(("from table to pictures", _seconds(page, page.locator("#as-grid").click)))
    rows += _scrolled(page, "pictures")
    return rows


def _seconds(page: Page, act: Callable[[], object]) -> str:
    """Return how long something takes until it is drawn."""
    started = time.perf_counter()
    act()
    page.evaluate("new Promise(requestAnimationFrame)")
    return f"{time.perf_counter() - started:.1f} s"


def _scrolled(page: Page, what: str) -> Iterator[tuple[str, str]]:
    for words, speed in SPEEDS.items():
        gaps = np.array(page.evaluate(FRAMES, [SCROLL_SECONDS, speed]))
        pace = f"{len(gaps) / SCROLL_SECONDS:.0f} frames a second"
        spread = f"99 of 100 within {np.percentile(gaps, 99):.0f} ms, the longest {gaps.max():.0f} ms"
        yield f"scrolling the {what} {words}", f"{pace}, {spread}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--scans", type=int, default=2000)
    options = parser.parse_args()
    program = shutil.which("chromium")
    scans = scans_of(options.run_dir, options.scans)
    started = time.perf_counter()
    text = render_cohort(
        scans, run_info(RunContext(out_dir=options.run_dir, config=Config())), directory="benchmark"
    )
    rows = [("rendered in", f"{time.perf_counter() - started:.1f} s")]
    pictures = np.array([len(scan.thumbnail or b"") for scan in scans])
    sizes = f"pictures of {pictures.min() / 1024:.1f} to {pictures.max() / 1024:.1f} kB"
    rows.append(("size", f"{len(text.encode()) / 1024**2:.1f} MB, {sizes}"))
    with tempfile.TemporaryDirectory(prefix="brainstage-page-") as folder, sync_playwright() as driver:
        path = Path(folder) / "cohort.html"
        path.write_text(text, encoding="utf-8")
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1366, "height": 900})
        page.set_default_timeout(120_000)
        rows += measured(page, path)
        browser.close()
    made_of = f"{options.scans} scans with the pictures of {options.run_dir.name}"
    lines = [
        "# The cohort page of thousands",
        "",
        f"Made by `benchmarks/cohort_page.py`: {made_of}, in chromium without a window, drawn by the processor.",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    print("\n".join(lines))
    (FOLDER / "cohort_page.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
