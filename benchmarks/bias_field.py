"""How well and how fast the bias field is removed, against converged N4 (ANTs at its defaults), with known truth.

Run it alone on the machine::

    .venv/bin/python benchmarks/bias_field.py BIDS_DIR [MORE_DIRS_OR_FILES ...] [--scans 6] [--threads 2]

Every head is multiplied by known smooth fields, and both methods correct it inside the same mask. White and grey
matter are chosen without either: from manual labels where ``derivatives/labels`` has them, otherwise from the
template's tissue maps, carried over by registering the head as it came, without any bias correction. A phantom
whose own field is known comes last. The tables are printed and written to ``benchmarks/bias_field.md``.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import BiasFieldConfig, Config
from brainstage.pipeline.engine import limit_threads
from brainstage.pipeline.records import CorrectedBrain, HeaderFindings, StrippedBrain

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Method = Literal["fast", "ants"]

CERTAIN: Final = 0.9
"""Tissue probability above which a voxel of the template counts as that tissue."""
FIELD_RANGE: Final = 0.35
"""2nd and 98th percentile of the logarithm of a known field inside the brain: 0.7 to 1.4, as at 3 T."""
SEED: Final = 20
COIL_RADIUS_MM: Final = 140.0
ELEMENT_RADIUS_MM: Final = 60.0
LABEL_TABLE: Final = "derivatives/labels/label_information.csv"
FIRST_CORTEX: Final = 100
"""Labels from here on are gyri; deep grey matter, whose intensity is its own, comes before."""
METHODS: Final[tuple[Method, Method]] = ("fast", "ants")
PHANTOM_SEEDS: Final = (1, 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A head, its mask, and which voxels are surely white and grey matter.

    Attributes
    ----------
    truth : ndarray or None
        Logarithm of the only field in it, where the head was made and not measured.
    """

    name: str
    stripped: StrippedBrain
    white: Mask
    grey: Mask
    truth: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What white and grey matter look like.

    Attributes
    ----------
    variation, robust : float
        Coefficient of variation of white matter; the same from the interquartile range and the median.
    contrast : float
        Median of grey over median of white matter.
    """

    variation: float
    robust: float
    contrast: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one method made of one head.

    Attributes
    ----------
    left : float
        SD inside the mask of what is left of the known field's logarithm; NaN without a known field.
    """

    quality: Quality
    left: float
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrected:
    """A corrected head, the logarithm of what it was divided by (NaN where there was nothing), and the time."""

    log_field: Array
    data: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One head under one field: before, and after each method."""

    head: str
    field: str
    put_in: float
    before: Quality
    fast: Outcome
    ants: Outcome


# -- known fields ------------------------------------------------------------------------------------------------


def known_fields(stripped: StrippedBrain) -> dict[str, Array]:
    """Return the logarithms of the known fields on the head's grid, by name."""
    points = positions(stripped)
    return {
        "polynomial": scaled(polynomial(points, np.random.default_rng(SEED)), stripped),
        "coil": scaled(coil_array(points, np.random.default_rng(SEED + 1)), stripped),
    }


def positions(stripped: StrippedBrain) -> Array:
    """Return RAS mm relative to the brain's centre, (3, I, J, K)."""
    matrix = stripped.head.voxel_to_ras
    centre = np.argwhere(stripped.brain_mask.data).mean(axis=0)
    offsets = np.indices(stripped.head.shape).astype(np.float64) - centre[:, None, None, None]
    return np.asarray(np.einsum("ab,bijk->aijk", matrix[:3, :3], offsets))


def polynomial(points: Array, rng: np.random.Generator) -> Array:
    """Return a random polynomial of third order over 100 mm, its terms the weaker the higher their order."""
    x, y, z = points / 100.0
    total = np.zeros(x.shape)
    for a, b, c in np.ndindex(4, 4, 4):
        if 1 <= a + b + c <= 3:
            total += rng.normal() / (a + b + c) * x**a * y**b * z**c
    return total


def coil_array(points: Array, rng: np.random.Generator) -> Array:
    """Return the log sensitivity of eight loops around the head with unequal gains, as a sum of squares."""
    squares = np.zeros(points.shape[1:])
    for angle in np.arange(8) * np.pi / 4 + rng.uniform(0, np.pi / 4):
        height = rng.uniform(-20, 40)
        loop = np.array([COIL_RADIUS_MM * np.cos(angle), COIL_RADIUS_MM * np.sin(angle), height])
        distance2 = ((points - loop[:, None, None, None]) ** 2).sum(axis=0)
        gain = rng.uniform(0.5, 1.5)
        squares += (gain / (distance2 + ELEMENT_RADIUS_MM**2) ** 1.5) ** 2
    return np.asarray(0.5 * np.log(squares))


def scaled(log_field: Array, stripped: StrippedBrain) -> Array:
    """Return a log field with mean 0 and the range :data:`FIELD_RANGE` inside the brain; level far outside it."""
    inside = log_field[stripped.brain_mask.data]
    low, high = np.percentile(inside, (2, 98))
    centred = (log_field - inside.mean()) * (2 * FIELD_RANGE / (high - low))
    return np.asarray(np.clip(centred, -3 * FIELD_RANGE, 3 * FIELD_RANGE))


def multiplied(stripped: StrippedBrain, log_field: Array) -> StrippedBrain:
    """Return the head under one more field."""
    return StrippedBrain(
        head=stripped.head.with_data(stripped.head.data * np.exp(log_field)),
        findings=stripped.findings,
        brain_mask=stripped.brain_mask,
        method=stripped.method,
        skull_stripped_input=stripped.skull_stripped_input,
    )


# -- heads -------------------------------------------------------------------------------------------------------


def cases_of(path: Path, scans: int, config: Config) -> Iterator[Case]:
    """Yield the heads of a BIDS directory, evenly spread over it, or the head in a file."""
    if path.is_file():
        yield case_of(path.name.partition(".")[0], path, None, config)
        return
    found = read_dataset(path).scans
    chosen = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(scans, len(found)))})
    for scan in (found[i] for i in chosen):
        subject = f"sub-{scan.entities.subject}"
        labels = path / f"derivatives/labels/{subject}/anat/{subject}_dseg.nii.gz"
        yield case_of(f"{path.name} {scan.key}", scan.path, labels if labels.is_file() else None, config)


def case_of(name: str, path: Path, labels: Path | None, config: Config) -> Case:
    """Read a head, find its brain and its tissues."""
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest

    stripped = extract_brain(ingest(path, config.ingest), config.brain_extraction)
    white, grey = (
        template_tissues(stripped, config) if labels is None else manual_tissues(stripped, labels, config)
    )
    return Case(name=name, stripped=stripped, white=white, grey=grey)


def template_tissues(stripped: StrippedBrain, config: Config) -> tuple[Mask, Mask]:
    """Return white matter, one voxel inside its border, and grey matter, both where the template is certain."""
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import register
    from brainstage.preprocessing.resampling import resampled
    from brainstage.preprocessing.template import load_template

    as_it_came = CorrectedBrain(
        head=stripped.head, brain_mask=stripped.brain_mask, stripped=stripped, field_range=1.0
    )
    registered = register(normalise(as_it_came, config.intensity), config.registration)
    template = load_template(1.0)
    white, grey = (
        resampled(
            template.t1w.with_data(map_), stripped.head.grid, np.asarray(registered.native_to_template)
        ).data
        for map_ in (template.white_matter, template.grey_matter)
    )
    inside = stripped.brain_mask.data
    return ndimage.binary_erosion(white > CERTAIN) & inside, (grey > CERTAIN) & inside


def manual_tissues(stripped: StrippedBrain, labels: Path, config: Config) -> tuple[Mask, Mask]:
    """Return cerebral white matter, one voxel inside its border, and the labelled cortex."""
    from brainstage.preprocessing.ingest import ingest

    root = labels.parents[4]
    table = list(csv.DictReader((root / LABEL_TABLE).open(encoding="utf-8")))
    white = [int(row["Label Number"]) for row in table if row["Label Name"].endswith("Cerebral White Matter")]
    cortex = [
        int(row["Label Number"])
        for row in table
        if row["Class"] == "GM" and int(row["Label Number"]) >= FIRST_CORTEX
    ]
    codes = np.rint(ingest(labels, config.ingest).head.data)
    inside = stripped.brain_mask.data
    return ndimage.binary_erosion(np.isin(codes, white)) & inside, np.isin(codes, cortex) & inside


def phantom(seed: int, config: Config) -> Case:
    """Return a synthetic head with the field it was made with, inside its true mask."""
    from brainstage.workflows.synthetic.heads import HeadRecipe, load_anatomy, make_head

    made = make_head(load_anatomy(), HeadRecipe(person_seed=seed, scan_seed=seed, spacing_mm=(1.2, 1.2, 1.2)))
    head = made.head
    stripped = StrippedBrain(
        head=head,
        findings=HeaderFindings(
            shape=head.shape, spacing_mm=head.spacing_mm, axcodes=head.axcodes, affine_source="sform"
        ),
        brain_mask=made.brain_mask,
        method="none",
        skull_stripped_input=False,
    )
    white, grey = template_tissues(stripped, config)
    return Case(name=f"phantom {seed}", stripped=stripped, white=white, grey=grey, truth=made.log_bias_field)


# -- measuring ---------------------------------------------------------------------------------------------------


def rows_of(case: Case) -> Iterator[Row]:
    """Yield a head as it came, then under each known field; a phantom only as it was made."""
    plain = {method: corrected_by(method, case.stripped) for method in METHODS}
    if case.truth is not None:
        yield row_of(case, "its own", case.stripped, case.truth, plain, {})
        return
    yield row_of(case, "none", case.stripped, None, plain, {})
    own = {method: corrected.log_field for method, corrected in plain.items()}
    for name, known in known_fields(case.stripped).items():
        stripped = multiplied(case.stripped, known)
        yield row_of(
            case, name, stripped, known, {method: corrected_by(method, stripped) for method in METHODS}, own
        )


def row_of(
    case: Case,
    name: str,
    stripped: StrippedBrain,
    known: Array | None,
    corrected: Mapping[Method, Corrected],
    own: Mapping[Method, Array],
) -> Row:
    """Measure what both methods made of a head; `own` is what each finds without the known field."""
    fast, ants = (outcome_of(case, corrected[method], known, own.get(method)) for method in METHODS)
    return Row(
        head=case.name,
        field=name,
        put_in=math.nan if known is None else float(known[stripped.brain_mask.data].std()),
        before=quality_of(stripped.head.data, case),
        fast=fast,
        ants=ants,
    )


def outcome_of(case: Case, corrected: Corrected, known: Array | None, own: Array | None) -> Outcome:
    """Measure what one method made of a head."""
    left = math.nan
    if known is not None:
        rest = corrected.log_field - known - (0.0 if own is None else own)
        left = float(np.nanstd(rest[case.stripped.brain_mask.data]))
    return Outcome(quality=quality_of(corrected.data, case), left=left, seconds=corrected.seconds)


def corrected_by(method: Method, stripped: StrippedBrain) -> Corrected:
    """Run the stage."""
    from brainstage.preprocessing.bias_field import correct_bias

    config = BiasFieldConfig(method=method)
    started = time.perf_counter()
    data = correct_bias(stripped, config).head.data
    seconds = time.perf_counter() - started
    with np.errstate(divide="ignore", invalid="ignore"):
        log_field = np.log(stripped.head.data.astype(np.float64) / data)
    return Corrected(
        log_field=np.where(np.isfinite(log_field), log_field, np.nan), data=data, seconds=seconds
    )


def quality_of(data: NDArray[np.float32], case: Case) -> Quality:
    """Measure white and grey matter."""
    white, grey = data[case.white].astype(np.float64), data[case.grey].astype(np.float64)
    low, median, high = np.percentile(white, (25, 50, 75))
    return Quality(
        variation=float(white.std() / white.mean()),
        robust=float((high - low) / 1.349 / median),
        contrast=float(np.median(grey) / median),
    )


# -- telling -----------------------------------------------------------------------------------------------------

HEADINGS: Final = (
    "head",
    "field",
    "CV before",
    "fast",
    "ANTs",
    "robust CV before",
    "fast",
    "ANTs",
    "GM/WM before",
    "fast",
    "ANTs",
    "known field",
    "left by fast",
    "by ANTs",
    "s fast",
    "s ANTs",
    "ratio",
)


def values_of(row: Row) -> list[float]:
    """Return the numbers of a row, in the order of the headings; the ratio of the times is left out."""
    qualities = (row.before, row.fast.quality, row.ants.quality)
    return [
        *(quality.variation for quality in qualities),
        *(quality.robust for quality in qualities),
        *(quality.contrast for quality in qualities),
        row.put_in,
        row.fast.left,
        row.ants.left,
        row.fast.seconds,
        row.ants.seconds,
    ]


def line_of(names: Sequence[str], values: Sequence[float]) -> str:
    """Return a row of the table."""
    texts = ["" if math.isnan(value) else f"{value:.4f}" for value in values[:-2]]
    texts += [f"{value:.2f}" for value in values[-2:]] + [f"{values[-1] / values[-2]:.1f}"]
    return "| " + " | ".join([*names, *texts]) + " |"


def table_of(rows: Sequence[Row], threads: int) -> str:
    """Return the result as Markdown."""
    means = np.array([values_of(row) for row in rows])
    lines = [
        "# What is left of the bias field, and how long it takes",
        "",
        f"`fast` against N4 of ANTs at its defaults, {threads} thread(s). Made by `benchmarks/bias_field.py`, whose",
        "first lines say how. CV: coefficient of variation of white matter, plain and from the interquartile range.",
        "GM/WM: ratio of the medians. Known field: SD of its logarithm inside the mask, and what is left of it.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---" * len(HEADINGS) + "|",
        *(line_of((row.head, row.field), values_of(row)) for row in rows),
        line_of(("**mean**", ""), [float(np.nanmean(column)) for column in means.T]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", type=Path, nargs="+", metavar="BIDS_DIR_OR_FILE")
    parser.add_argument("--scans", type=int, default=6, help="of each directory, at most")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    limit_threads(options.threads, asked_for=True)
    config = Config()
    cases = chain(
        chain.from_iterable(cases_of(path, options.scans, config) for path in options.paths),
        (phantom(seed, config) for seed in PHANTOM_SEEDS),
    )
    rows: list[Row] = []
    for case in cases:
        for row in rows_of(case):
            rows.append(row)
            print(line_of((row.head, row.field), values_of(row)), flush=True)
        # After every head: what an interrupted run has measured is kept.
        table = table_of(rows, options.threads)
        (Path(__file__).parent / "bias_field.md").write_text(table, encoding="utf-8")
    print(table_of(rows, options.threads))


if __name__ == "__main__":
    main()
