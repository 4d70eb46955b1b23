"""How well brains come together on the template, and how alike two scans of one person come out.

Run it alone on the machine::

    .venv/bin/python benchmarks/accuracy.py OASIS_DIR [--threads 2] [--keep DIR]

``OASIS_DIR`` is a BIDS directory of stripped brains with manual region labels in ``derivatives/labels``, made for
the OASIS-1 brains of the MICCAI 2012 challenge. Every brain goes through the stages once; the same bias-corrected
brain is then registered by our two methods and by the two ANTs calls they are held against, at 1 mm. Labels are
carried to the template with nearest neighbour. The result is printed and written to ``benchmarks/accuracy.md``.

With two threads the references take about 3 minutes a brain. ``--keep`` names a folder for their results, where a
later run finds them again, so that a change to our side is measured in a few minutes.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config, RegistrationConfig
from brainstage.pipeline.engine import limit_threads

METHODS: Final[Mapping[str, tuple[str, float]]] = {
    "affine": ("antsRegistrationSyNQuick[a]", 0.003),
    "syn": ("antsRegistrationSyNQuick[s]", 0.005),
}
"""Ours, the ANTs call it is held against, and how much lower its overlap may be."""
WANTED_SPEED: Final = 4.0
"""How many times faster than its reference ``syn`` has to be."""

Labels = NDArray[np.int16]
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """Labels on the template at 1 mm, and what the registration cost: wall-clock and processor seconds."""

    labels: Labels
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A brain ready to be registered, its manual labels on its own grid, and its subject."""

    subject: str
    normalised: Any
    labels: Any


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what `work` gives, and how many wall-clock and processor seconds it took."""
    started, started_cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - started_cpu


def prepared(oasis_dir: Path, config: Config) -> list[Case]:
    """Take every brain through the stages before registration."""
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise

    cases = []
    for scan in read_dataset(oasis_dir).scans:
        stripped = extract_brain(ingest(scan.path, config.ingest), config.brain_extraction)
        (labels,) = (oasis_dir / "derivatives" / "labels").glob(f"{scan.key}/anat/*_dseg.nii.gz")
        cases.append(
            Case(
                subject=scan.entities.subject,
                normalised=normalise(correct_bias(stripped, config.bias_field), config.intensity),
                labels=ingest(labels, config.ingest).head,
            )
        )
    return cases


def ours(case: Case, method: Literal["affine", "syn"]) -> tuple[Any, Carried]:
    """Register with our method; return the registered brain and the labels carried along."""
    from brainstage.preprocessing.registration import register
    from brainstage.preprocessing.transforms import apply_transform, to_template_transform

    registered, seconds, cpu_seconds = timed(
        lambda: register(case.normalised, RegistrationConfig(method=method))
    )
    transform = to_template_transform(registered.native_to_template, registered.deformation)
    moved = apply_transform(case.labels, registered.brain.grid, transform, "nearest")
    labels = moved.data.astype(np.int16)
    return registered, Carried(labels=labels, seconds=seconds, cpu_seconds=cpu_seconds)


def theirs(case: Case, call: str, keep: Path | None) -> Carried:
    """Register with ANTs at 1 mm, or take what an earlier run kept."""
    kept = keep / f"sub-{case.subject}_{call.translate({91: '-', 93: None})}.npz" if keep else None
    if kept is not None and kept.is_file():
        with np.load(kept) as held:
            return Carried(
                labels=held["labels"], seconds=float(held["seconds"]), cpu_seconds=float(held["cpu_seconds"])
            )
    carried = registered_by_ants(case, call)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, **vars(carried))
    return carried


def registered_by_ants(case: Case, call: str) -> Carried:
    """Register the bias-corrected brain with ``ants.registration`` and carry its labels."""
    import ants

    from brainstage.preprocessing.ants_tools import to_ants
    from brainstage.preprocessing.template import load_template

    corrected = case.normalised.corrected
    inside = np.where(corrected.brain_mask.data, np.maximum(corrected.head.data, 0.0), 0.0)
    fixed, moving = to_ants(load_template(1.0).t1w), to_ants(corrected.head.with_data(inside))
    result, seconds, cpu_seconds = timed(
        lambda: ants.registration(fixed=fixed, moving=moving, type_of_transform=call)
    )
    moved = ants.apply_transforms(
        fixed, to_ants(case.labels), result["fwdtransforms"], interpolator="nearestNeighbor"
    )
    labels = moved.numpy().astype(np.int16)
    return Carried(labels=labels, seconds=seconds, cpu_seconds=cpu_seconds)


def mean_dice(first: Labels, second: Labels) -> float:
    """Return the Dice overlap averaged over the regions that either of two label maps has; 0 is no region."""
    regions = int(max(first.max(), second.max())) + 1
    both = np.bincount(first[first == second], minlength=regions)[1:]
    total = (np.bincount(first.ravel(), minlength=regions) + np.bincount(second.ravel(), minlength=regions))[
        1:
    ]
    return float(np.mean(2.0 * both[total > 0] / total[total > 0]))


def people_of(oasis_dir: Path) -> dict[str, str]:
    """Return subject to person: a second scan's ``retest_of`` names the subject of the first."""
    with (oasis_dir / "participants.tsv").open(encoding="utf-8", newline="") as table:
        rows = [(row["participant_id"], row["retest_of"]) for row in csv.DictReader(table, delimiter="\t")]
    return {
        scan.removeprefix("sub-"): (scan if first == "n/a" else first).removeprefix("sub-")
        for scan, first in rows
    }


def pairs_of(people: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of scans of one person, and those of different people."""
    pairs = list(itertools.combinations(sorted(people), 2))
    same = [(a, b) for a, b in pairs if people[a] == people[b]]
    return same, [pair for pair in pairs if pair not in same]


def icc_2_1(ratings: Values) -> float:
    """Return the intraclass correlation ICC(2,1): two-way random effects, absolute agreement, one rating.

    Shrout & Fleiss 1979, 10.1037/0033-2909.86.2.420.

    Parameters
    ----------
    ratings : ndarray, (targets, raters)
    """
    targets, raters = ratings.shape
    grand = ratings.mean()
    by_target, by_rater = ratings.mean(axis=1, keepdims=True), ratings.mean(axis=0, keepdims=True)
    between_targets = raters * ((by_target - grand) ** 2).sum() / (targets - 1)
    between_raters = targets * ((by_rater - grand) ** 2).sum() / (raters - 1)
    rest = ((ratings - by_target - by_rater + grand) ** 2).sum() / ((targets - 1) * (raters - 1))
    disagreement = raters * (between_raters - rest) / targets
    return float((between_targets - rest) / (between_targets + (raters - 1) * rest + disagreement))


def regional_means(image: NDArray[np.float32], atlas: Labels, regions: NDArray[np.int64]) -> Values:
    """Return the mean of an image in each region of an atlas."""
    sums = np.bincount(atlas.ravel(), weights=image.ravel(), minlength=int(regions.max()) + 1)
    return np.asarray(sums[regions] / np.bincount(atlas.ravel())[regions], dtype=np.float64)


def native_volumes_ml(registered: Any, atlas: Any, regions: NDArray[np.int64]) -> Values:  # noqa: ANN401
    """Return the volume of each region after the atlas went to native space through the inverse transform."""
    from brainstage.preprocessing.transforms import apply_transform, to_native_transform

    grid = registered.normalised.brain.grid
    transform = to_native_transform(registered.native_to_template, registered.deformation)
    labels = apply_transform(atlas, grid, transform, "nearest").data.astype(np.int16)
    counts = np.bincount(labels.ravel(), minlength=int(regions.max()) + 1)
    return np.asarray(counts[regions] * grid.voxel_volume_mm3 / 1000.0, dtype=np.float64)


def retest_rows(
    people: Mapping[str, str], registered: Mapping[str, Any], labels: Mapping[str, Labels]
) -> list[tuple[str, Values, Values]]:
    """Compare scans of one person with scans of different people, all registered with ``syn``.

    The atlas comes from people who were scanned once: the regions on which their carried labels agree. So no scan
    is measured with its own labels.

    Parameters
    ----------
    people : mapping
        Subject to person.
    registered : mapping
        Subject to registered brain.
    labels : mapping
        Subject to its manual labels on the template.

    Returns
    -------
    list of (str, ndarray, ndarray)
        What is compared, its values for pairs of one person, and for pairs of different people.
    """
    from brainstage.preprocessing.registration import scale_of

    scans = Counter(people.values())
    twice = {subject: person for subject, person in people.items() if scans[person] == 2}
    once = sorted(set(people) - set(twice))
    maps = [labels[subject] for subject in once]
    atlas = np.where(np.all([other == maps[0] for other in maps], axis=0), maps[0], 0).astype(np.int16)
    regions = np.flatnonzero(np.bincount(atlas.ravel()))[1:]
    atlas_volume = registered[once[0]].brain.with_data(atlas)
    intensity = {s: regional_means(b.brain.data, atlas, regions) for s, b in registered.items()}
    # A region that vanishes counts as a cubic millimetre.
    volume = {s: np.log(native_volumes_ml(b, atlas_volume, regions) + 1e-3) for s, b in registered.items()}
    brains = {subject: registered[subject] for subject in twice}

    def differences(values: Mapping[str, Values]) -> dict[str, Values]:
        typical = np.mean([values[subject] for subject in once], axis=0)
        return {subject: value - typical for subject, value in values.items()}

    def agreement(values: Mapping[str, Values]) -> Callable[[str, str], float]:
        return lambda a, b: icc_2_1(np.column_stack([values[a], values[b]]))

    def correlation(a: str, b: str) -> float:
        inside = brains[a].brain_mask.data & brains[b].brain_mask.data
        return float(np.corrcoef(brains[a].brain.data[inside], brains[b].brain.data[inside])[0, 1])

    def percent(value: Callable[[Any], float]) -> Callable[[str, str], float]:
        return lambda a, b: 100.0 * abs(np.log(value(brains[a]) / value(brains[b])))

    measures: dict[str, Callable[[str, str], float]] = {
        "ICC(2,1) over regions, mean intensity": agreement(intensity),
        "the same, as difference from the other people's mean": agreement(differences(intensity)),
        "ICC(2,1) over regions, log volume in native space": agreement(volume),
        "so for the log volume, as difference from the other people's mean": agreement(differences(volume)),
        "correlation of the registered volumes inside both masks": correlation,
        "mask volume, difference in %": percent(lambda b: b.normalised.brain_mask.volume_ml),
        "affine scale, difference in %": percent(lambda b: scale_of(b.native_to_template)),
    }
    same, different = pairs_of(twice)
    return [
        (name, np.array([of(*p) for p in same]), np.array([of(*p) for p in different]))
        for name, of in measures.items()
    ]


def overlap_table(
    people: Mapping[str, str], results: Mapping[str, Mapping[str, Carried]], threads: int
) -> str:
    """Return the overlaps and the times as Markdown; `results` maps method to subject to what came of it."""
    _, different = pairs_of(people)
    overlaps = {
        method: float(np.mean([mean_dice(by[a].labels, by[b].labels) for a, b in different]))
        for method, by in results.items()
    }
    what = (
        f"{len(people)} stripped, bias-corrected OASIS-1 brains with manual labels, carried to the template at "
        f"1 mm. Overlap: mean Dice over the regions that either brain has, over the {len(different)} pairs of "
        f"different people. Seconds: mean over the brains, {threads} thread(s); processor seconds are those of all "
        f"threads together and depend less on what else the machine does. Made by `benchmarks/accuracy.py`."
    )
    lines = [
        "# Accuracy of the registration",
        "",
        what,
        "",
        "| registration | overlap | seconds | processor seconds |",
        "|---|---|---|---|",
    ]
    for method, by in results.items():
        wall, cpu = mean_cost(by)
        lines.append(f"| `{method}` | {overlaps[method]:.4f} | {wall:.1f} | {cpu:.1f} |")
    lines += [
        "",
        "| | difference in overlap | allowed | times faster | times less processor time | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for method, (reference, allowed) in METHODS.items():
        (wall, cpu), (their_wall, their_cpu) = mean_cost(results[method]), mean_cost(results[reference])
        wanted = f"{WANTED_SPEED:g}" if method == "syn" else ""
        lines.append(
            f"| `{method}` against `{reference}` | {overlaps[method] - overlaps[reference]:+.4f} | {-allowed:+.3f} | "
            f"{their_wall / wall:.1f} | {their_cpu / cpu:.1f} | {wanted} |"
        )
    return "\n".join([*lines, ""])


def mean_cost(carried: Mapping[str, Carried]) -> tuple[float, float]:
    """Return mean wall-clock and processor seconds."""
    wall, cpu = np.mean([(c.seconds, c.cpu_seconds) for c in carried.values()], axis=0)
    return float(wall), float(cpu)


def retest_table(rows: list[tuple[str, Values, Values]]) -> str:
    """Return the comparison of scans of one person as Markdown."""
    what = (
        "Registered with `syn`. Only two people were scanned twice: this shows whether scans of one person come out "
        "more alike than scans of two, and is no estimate for a population. The atlas is made of the labels on "
        "which the brains of the other people agree. An ICC over regions is high for any two brains, since grey "
        "matter is darker than white in all of them and the cerebellum larger than the pallidum; as differences "
        "from the mean of the other people in each region, the values are what sets these two apart. "
        "Mean, and in brackets the range over the pairs."
    )
    lines = [
        "## Two scans of one person",
        "",
        what,
        "",
        "| | same person | different people |",
        "|---|---|---|",
    ]
    for name, same, different in rows:
        cells = [f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})" for v in (same, different)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("oasis_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, help="folder for the references' results, outside the repository"
    )
    options = parser.parse_args()
    limit_threads(options.threads, asked_for=True)
    cases = prepared(options.oasis_dir, Config())
    people = people_of(options.oasis_dir)
    ours(cases[0], "affine")  # loads template and libraries
    results: dict[str, dict[str, Carried]] = {
        m: {} for pair in METHODS.items() for m in (pair[0], pair[1][0])
    }
    registered = {}
    for case in cases:
        _, results["affine"][case.subject] = ours(case, "affine")
        registered[case.subject], results["syn"][case.subject] = ours(case, "syn")
        for call, _ in METHODS.values():
            results[call][case.subject] = theirs(case, call, options.keep)
    rows = retest_rows(people, registered, {s: c.labels for s, c in results["syn"].items()})
    text = overlap_table(people, results, options.threads) + "\n" + retest_table(rows)
    print(text)
    (Path(__file__).parent / "accuracy.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
