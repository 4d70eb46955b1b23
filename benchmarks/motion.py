"""How well motion is seen, by its kind, order of lines and strength; and what is usual of still heads.

Run it with the datasets whose still heads are the norm, and those that are only judged::

    .venv/bin/python benchmarks/motion.py --norms-from BIDS_DIR_OR_SCAN ... --judged BIDS_DIR_OR_SCAN ... \
        [--moved DATASET/SCAN ...] [--move-every 3] [--workers 2]

Every scan is measured as it is and under harmless changes, each third also aged, and after it moved with each of
:data:`STRENGTHS`: kind, order of lines, slow axis and partial Fourier are drawn. The synthetic heads of the
demonstration are a dataset of the norm, too. Each dataset is judged by norms that it is no part of, with the
bound in use. The norms, of scans as they are and changed, go to ``preprocessing/still_heads.json``, the table to
``benchmarks/motion.md``, every case to ``benchmarks/motion.csv``. Scans named by ``--moved`` did move and are no part
of the norms.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from failures import scans_of
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import Config
from brainstage.pipeline.engine import limit_threads
from brainstage.pipeline.records import StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.motion import StillHeads
from brainstage.preprocessing.quality import MEASURE_BY_NAME

FOLDER: Final = Path(__file__).parent
NORMS: Final = FOLDER.parent / "preprocessing" / "still_heads.json"
STRENGTHS: Final = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Largest excursion, mm and degrees."""
STILL: Final = "still"
CHANGED: Final = "still, "
"""Begins the kind of a scan that was changed without harm."""
NOISE: Final = 0.08
"""Share of white matter."""
BLUR_FWHM_MM: Final = 3.0
TILT_DEG: Final = 15.0
GRIDS_MM: Final = (1.4, 2.0)
LEAST_OF_A_PROTOCOL: Final = 10
SINGLE_FILES: Final = "single files"
SYNTHETIC: Final = "synthetic heads"

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A scan, still or moved, and the shifts between its bands.

    Attributes
    ----------
    scan, dataset : str
    kind : str
        :data:`STILL`, :data:`CHANGED` and how, or that of the motion.
    strength : float
    sampling : str
        Axis, order and share of the lines.
    change : float
        Root of the mean square of what motion changed inside the brain, over the brain's median, per cent.
    shifts : ndarray, (3, 7, 6), or None
        None where the voxels are too thick.
    entropy : float or None
        Of the gradients, likewise.
    """

    scan: str
    dataset: str
    kind: str
    strength: float
    sampling: str
    change: float
    shifts: Values | None
    entropy: float | None


def cases_of(scan: str, path: Path, position: int, move_every: int) -> list[Case]:
    """Return a scan as it is, changed and moved; the kind changes from strength to strength and scan to scan."""
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.motion import band_shifts, gradient_entropy
    from brainstage.workflows.synthetic.motion import KINDS, ORDERS, Sampling, with_motion

    limit_threads(1, asked_for=True)
    config = Config()
    stripped = extract_brain(ingest(path, config.ingest), config.brain_extraction)
    head, mask = stripped.head, stripped.brain_mask

    def measured(
        one: Volume, its_mask: BrainMask, kind: str, strength: float = 0.0, sampling: str = ""
    ) -> Case:
        change = np.square(one.data - head.data)[mask.data].mean() if strength else 0.0
        return Case(
            scan=scan,
            dataset=scan.partition("/")[0] if "/" in scan else SINGLE_FILES,
            kind=kind,
            strength=strength,
            sampling=sampling,
            change=100.0 * float(np.sqrt(change) / np.median(head.data[mask.data])),
            shifts=band_shifts(one, its_mask),
            entropy=gradient_entropy(one, its_mask),
        )

    cases = [measured(head, mask, STILL)]
    if cases[0].shifts is None:
        return cases
    moves = position % move_every == 0
    rng = np.random.default_rng(zlib.crc32(scan.encode()))
    for name, changed, its_mask in harmless(stripped, rng, aged=moves):
        cases.append(measured(changed, its_mask, CHANGED + name))
    for step, strength in enumerate(STRENGTHS if moves else ()):
        rng = np.random.default_rng(zlib.crc32(f"{scan} {strength}".encode()))
        kind = KINDS[(position // move_every + step) % len(KINDS)]
        sampling = Sampling(
            axis=int(rng.integers(0, 3)),
            order=ORDERS[int(rng.integers(0, len(ORDERS)))],
            partial_fourier=float(rng.choice([1.0, 1.0, 0.75])),
        )
        moved = with_motion(
            head.data, head.spacing_mm, kind=kind, strength=strength, sampling=sampling, rng=rng
        )
        if stripped.skull_stripped_input:
            moved = np.where(mask.data, moved, np.float32(0.0))
        share = f", {sampling.partial_fourier:.0%} of the lines" if sampling.partial_fourier < 1.0 else ""
        how = f"axis {sampling.axis}, {sampling.order}{share}"
        cases.append(measured(head.with_data(moved), mask, kind, strength, how))
    print(scan, flush=True)
    return cases


def synthetic_heads(folder: Path) -> list[tuple[str, Path]]:
    """Write the demonstration's cohort; return name and path of its scans without a defect."""
    from brainstage.workflows.synthetic.cohort import Defect, demo_cohort, write_demo_bids

    write_demo_bids(folder, print)
    sound = {folder / scan.t1w_path for scan in demo_cohort() if scan.participant.defect is Defect.NONE}
    return [(name, path) for name, path in scans_of([folder]) if path in sound]


def harmless(
    stripped: StrippedBrain, rng: np.random.Generator, *, aged: bool
) -> Iterator[tuple[str, Volume, BrainMask]]:
    """Yield a scan as it could have been without moving, `aged` too: name, head, mask."""
    from brainstage.preprocessing.resampling import resampled, resampled_mask
    from brainstage.workflows.synthetic.damage import Specimen, noisy
    from brainstage.workflows.synthetic.variation import AGEINGS

    head, mask = stripped.head, stripped.brain_mask
    spacing_mm = np.array(head.spacing_mm)
    specimen = Specimen(head=head, brain_mask=mask, rng=rng)
    yield "noise", noisy(specimen, share_of_white=NOISE), mask
    blurred = ndimage.gaussian_filter(head.data, BLUR_FWHM_MM / 2.355 / spacing_mm)
    yield "blurred", head.with_data(blurred), mask
    grid = head.grid.rescaled(GRIDS_MM[0] if spacing_mm.min() > sum(GRIDS_MM) / 2 else GRIDS_MM[1])
    yield "another grid", resampled(head, grid), resampled_mask(mask, grid)
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(TILT_DEG * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    matrix = np.diag(1.0 / spacing_mm) @ turn @ np.diag(spacing_mm)
    centre = (np.array(head.shape) - 1) / 2.0
    offset = centre - matrix @ centre
    turned = ndimage.affine_transform(head.data, matrix, offset, order=3)
    inside = ndimage.affine_transform(mask.data.astype(np.float32), matrix, offset, order=1)
    if aged:
        yield "markedly aged", AGEINGS["markedly aged"](specimen), mask
    yield "tilted", head.with_data(turned), BrainMask(data=inside > 0.5, voxel_to_ras=mask.voxel_to_ras)


def norms_without(cases: Sequence[Case], dataset: str, moved: Sequence[str]) -> StillHeads:
    """Return the norms of the still heads, as they are and changed, but for those of one dataset."""
    from brainstage.preprocessing.motion import still_heads_of

    others = [c for c in still_heads(cases, moved) if c.dataset != dataset]
    return still_heads_of([c.shifts for c in others if c.shifts is not None], [c.dataset for c in others])


def still_heads(cases: Sequence[Case], moved: Sequence[str]) -> list[Case]:
    """Return the heads that did not move and were measured, as they are and changed."""
    return [c for c in cases if c.kind.startswith(STILL) and c.scan not in moved and c.shifts is not None]


def table_of(rows: Sequence[dict[str, Any]], moved: Sequence[str], bound: float) -> str:
    """Return what was seen as Markdown."""
    still = [row for row in rows if row["kind"] == STILL and row["scan"] not in moved]
    simulated = [row for row in rows if not row["kind"].startswith(STILL)]
    changed = [row for row in rows if row["kind"].startswith(CHANGED) and row["scan"] not in moved]
    lines = [
        "# Motion",
        "",
        f"Made by `benchmarks/motion.py`: {len(still)} still scans and {len(simulated)} simulated motions in them.",
        f"`band_misregistration` is seen above {bound:g}, the bound in use. Each dataset was judged by norms of the",
        "others; the bound was set in sight of all.",
        "",
        "| still scans | scans | flagged | median | largest |",
        "|---|---|---|---|---|",
    ]
    for dataset in [*dict.fromkeys(row["dataset"] for row in still), "**all**"]:
        values = np.array([r["left_out"] for r in still if dataset in ("**all**", r["dataset"])])
        lines.append(
            f"| {dataset} | {values.size} | {int((values > bound).sum())} | {np.median(values):.2f} "
            f"| {values.max():.2f} |"
        )
    for kind in dict.fromkeys(row["kind"] for row in changed):
        values = np.array([row["left_out"] for row in changed if row["kind"] == kind])
        lines.append(
            f"| {kind.removeprefix(CHANGED)} | {values.size} | {int((values > bound).sum())} "
            f"| {np.median(values):.2f} | {values.max():.2f} |"
        )
    for scan in moved:
        found = [row for row in rows if row["scan"] == scan and row["kind"] == STILL]
        lines += [
            f"| {scan}, which moved | 1 | {int(r['left_out'] > bound)} | {r['left_out']:.2f} | |"
            for r in found
        ]
    lines += ["", "| motion, mm and degrees | cases | seen |", "|---|---|---|"]
    groups: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        *((f"{s:g}", lambda row, s=s: row["strength"] == s) for s in STRENGTHS),
        ("**3 and more**", lambda row: row["strength"] >= 3.0),
        ("**4 and more**", lambda row: row["strength"] >= 4.0),
    ]
    far = [row for row in simulated if row["strength"] >= 3.0]
    lines += [_line(name, [row for row in simulated if belongs(row)], bound) for name, belongs in groups]
    for title, key in (("3 and more, by kind", "kind"), ("by order", "order"), ("by dataset", "dataset")):
        lines += ["", f"| {title} | cases | seen |", "|---|---|---|"]
        for value in dict.fromkeys(row[key] for row in far):
            lines.append(_line(value, [row for row in far if row[key] == value], bound))
    lines += [
        "",
        "## Gradient entropy within a protocol",
        "",
        "Moves of 3 mm and degrees and more whose `gradient_entropy` is higher than that of all still scans of the",
        f"dataset as they are, where there are at least {LEAST_OF_A_PROTOCOL} of these. Below, the same of other",
        "changes: it ranks what is unlike the others, whatever made it so.",
        "",
        "| dataset | still scans | cases | higher | higher, or seen by `band_misregistration` |",
        "|---|---|---|---|---|",
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in still):
        usual = [row["entropy"] for row in still if row["dataset"] == dataset]
        if len(usual) < LEAST_OF_A_PROTOCOL:
            continue
        for name, cases in (
            ("moved", [row for row in far if row["dataset"] == dataset]),
            *(
                (
                    kind.removeprefix(CHANGED),
                    [r for r in changed if (r["dataset"], r["kind"]) == (dataset, kind)],
                )
                for kind in dict.fromkeys(row["kind"] for row in changed)
            ),
        ):
            higher = [row for row in cases if row["entropy"] > max(usual)]
            either = [row for row in cases if row["entropy"] > max(usual) or row["left_out"] > bound]
            lines.append(
                f"| {dataset}, {name} | {len(usual)} | {len(cases)} | {len(higher)} | {len(either)} |"
            )
    return "\n".join([*lines, ""])


def _line(name: str, rows: Sequence[dict[str, Any]], bound: float) -> str:
    seen = sum(row["left_out"] > bound for row in rows)
    return f"| {name} | {len(rows)} | {100.0 * seen / max(len(rows), 1):.1f} % |"


def rows_of(cases: Sequence[Case], moved: Sequence[str], normed: Sequence[str]) -> list[dict[str, Any]]:
    """Return every case with its measure, by the norms of all and by those without its dataset."""
    from brainstage.preprocessing.motion import distance_from_still

    sources = [case for case in cases if case.scan in normed]
    everyone = norms_without(sources, "", moved)
    without = {case.dataset: norms_without(sources, case.dataset, moved) for case in cases}
    return [
        {
            "scan": case.scan,
            "dataset": case.dataset,
            "kind": case.kind,
            "strength": case.strength,
            "sampling": case.sampling,
            "order": case.sampling.partition(", ")[2].partition(",")[0],
            "change": round(case.change, 3),
            "entropy": None if case.entropy is None else round(case.entropy, 6),
            "in_use": round(distance_from_still(case.shifts, everyone), 4),
            "left_out": round(distance_from_still(case.shifts, without[case.dataset]), 4),
        }
        for case in cases
        if case.shifts is not None
    ]


def write_norms(cases: Sequence[Case], moved: Sequence[str]) -> None:
    """Write what is usual of still heads, with the number of heads of each dataset."""
    usual = norms_without(cases, "", moved)
    still = [case for case in still_heads(cases, moved) if case.kind == STILL]
    norms = {
        "made_by": "benchmarks/motion.py",
        "heads": {name: sum(c.dataset == name for c in still) for name in sorted({c.dataset for c in still})},
    } | {name: np.round(values, 4).tolist() for name, values in vars(usual).items()}
    NORMS.write_text(json.dumps(norms) + "\n", encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--norms-from", type=Path, nargs="+", required=True)
    parser.add_argument("--judged", type=Path, nargs="*", default=[])
    parser.add_argument("--moved", nargs="*", default=[])
    parser.add_argument("--move-every", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="brainstage-motion-") as folder:
        normed = [*scans_of(options.norms_from), *synthetic_heads(Path(folder) / SYNTHETIC)]
        scans = [*normed, *scans_of(options.judged)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            waiting = [
                pool.submit(cases_of, *scan, position, options.move_every)
                for position, scan in enumerate(scans)
            ]
            cases = [case for done in waiting for case in done.result()]
    names = [name for name, _ in normed]
    write_norms([case for case in cases if case.scan in names], options.moved)
    rows = rows_of(cases, options.moved, names)
    with (FOLDER / "motion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    bounds = MEASURE_BY_NAME["band_misregistration"].bounds
    if bounds is None or bounds.passing[1] is None:
        raise SystemExit("band_misregistration has no bound")
    table = table_of(rows, options.moved, bounds.passing[1])
    print(table)
    (FOLDER / "motion.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
