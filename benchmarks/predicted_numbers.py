"""Whether models of a number keep their promises, on simulated cohorts.

Run it::

    .venv/bin/python benchmarks/predicted_numbers.py

Ages of cohorts of several sizes are predicted from features, voxels and volumes that follow a brain age, which
correlates with age at several strengths. Training is that of ``brainstage train --target age``, called with arrays in
memory. Measured are the error out of fold and on fresh scans, the coverage and the width of the 90 % intervals on both,
whether random targets end at chance, and what auto takes. What it finds goes to ``benchmarks/predicted_numbers.md``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from learning import CohortInMemory, extractor, no_image
from numpy.typing import NDArray

from brainstage.models.model_store import NumberModel, ScanInputs
from brainstage.models.number_metrics import NumberEvaluation, evaluate_numbers
from brainstage.models.splits import fold_of_numbers
from brainstage.models.volume_model import ScanVolumes, scan_volumes
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.manifest import ManifestRow
from brainstage.pipeline.records import NumberPrediction
from brainstage.workflows.learning.features import TrainingArrays
from brainstage.workflows.learning.labelled_cohort import LabelledScan
from brainstage.workflows.learning.model_evaluation import PREDICTOR
from brainstage.workflows.learning.number_evaluation import evaluate_intervals, out_of_fold_numbers
from brainstage.workflows.learning.number_fitting import NumbersOutOfFold, fit_numbers
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.stages import preprocessing_content, preprocessing_id

FOLDER = Path(__file__).parent
FOLDS: Final = 5
COHORTS: Final = {60: 4, 150: 2, 400: 1, 1000: 1}
"""Scans to repeats of each strength."""
STRENGTHS: Final = (0.0, 0.5, 0.9)
"""Correlations of the brain age, which is all that images know, with age; squared, the R2 that nothing can exceed."""
FRESH: Final = 300
FEATURES: Final = 600
VALUES: Final = 10_000
MEAN_AGE: Final = 65.0
SD_AGE: Final = 10.0
VOLUMES: Final = {
    "ventricle_left_pct_icv": (0.9, 0.35, 1.0),
    "ventricle_right_pct_icv": (0.85, 0.35, 1.0),
    "hippocampus_left_pct_icv": (0.23, 0.10, -0.6),
    "hippocampus_right_pct_icv": (0.24, 0.10, -0.6),
    "grey_matter_pct_icv": (44.0, 0.06, -0.8),
    "white_matter_pct_icv": (34.0, 0.06, 0.0),
    "csf_pct_icv": (20.0, 0.12, 0.8),
}
"""Volume to per cent of the head, SD of its logarithm, and its change by one SD of brain age, in such SD."""


@dataclass(frozen=True, kw_only=True)
class Aged:
    """Scans as the members of a model see them, and the ages of their people."""

    ages: NDArray[np.float64]
    features: NDArray[np.float32]
    mask_features: NDArray[np.float32]
    values: NDArray[np.float32]
    volumes: tuple[ScanVolumes, ...]

    def part(self, chosen: slice) -> Aged:
        """Return some of the scans."""
        return Aged(**{name: found[chosen] for name, found in vars(self).items()})


def simulated(count: int, strength: float, seed: int) -> Aged:
    """Draw people whose brains look as old as they are with some correlation."""
    generator = np.random.default_rng(seed)
    age = generator.standard_normal(count)
    brain = strength * age + np.sqrt(1 - strength**2) * generator.standard_normal(count)
    axes = generator.standard_normal((30, FEATURES)) / np.sqrt(np.arange(1, 31))[:, None]
    patterns = 0.5 * generator.standard_normal((10, VALUES)).astype(np.float32)

    def features(seen: float) -> NDArray[np.float32]:
        own = generator.standard_normal((count, 30))
        own[:, 3:9] += seen * brain[:, None]
        noise = generator.standard_normal((count, FEATURES), dtype=np.float32)
        return (own @ axes).astype(np.float32) + noise

    values = generator.standard_normal((count, 10)).astype(np.float32) @ patterns
    values += generator.standard_normal((count, VALUES), dtype=np.float32)
    values[:, : VALUES // 100] += 0.8 * brain[:, None].astype(np.float32)
    common = generator.standard_normal((count, 3))
    measures: list[dict[str, float | None]] = [{} for _ in range(count)]
    for name, (percent, spread, change) in VOLUMES.items():
        group = 0 if name.startswith("hippo") else 1 if name.startswith("ventricle") else 2
        deviation = 0.9 * common[:, group] + 0.44 * generator.standard_normal(count) + change * brain
        for one, value in zip(measures, percent * np.exp(spread * deviation), strict=True):
            one[name] = float(value)
    return Aged(
        ages=MEAN_AGE + SD_AGE * age,
        features=features(0.6),
        mask_features=features(0.0),
        values=values,
        volumes=tuple(scan_volumes(one, None, "FM"[n % 2]) for n, one in enumerate(measures)),
    )


def cohort_of(scans: Aged) -> CohortInMemory:
    """Return scans as a finished run gives them to a training."""
    content = preprocessing_content(Config())
    rows = [
        ManifestRow(
            participant_id=f"sub-{n:04d}", session_id="", run_id="",
            t1w_path=f"sub-{n:04d}/anat/sub-{n:04d}_T1w.nii", sha256=f"{n:064x}", age=float(age), sex="FM"[n % 2],
        )
        for n, age in enumerate(scans.ages)
    ]  # fmt: skip
    return CohortInMemory(
        classes=(),
        scans=tuple(
            LabelledScan(
                row=row,
                files=ScanFiles(out_dir=Path("nowhere"), entities=BidsEntities(subject=f"{n:04d}")),
                label=repr(row.age),
            )
            for n, row in enumerate(rows)
        ),
        test_scans=(),
        left_out={},
        preprocessing_id=preprocessing_id(content),
        preprocessing_content=content,
        columns=("sex",),
        measured=scans.volumes,
    )


def trained(scans: Aged, seed: int) -> tuple[NumberModel, NumbersOutOfFold]:
    """Train as ``brainstage train --target age`` does once everything is read."""
    cohort = cohort_of(scans)
    inside = np.ones(VALUES, dtype=np.bool_)
    arrays = [
        TrainingArrays(
            features=scans.features[n],
            mask_features=scans.mask_features[n],
            values=scans.values[n],
            inside=inside,
            input_key=str(n),
        )
        for n in range(len(scans.ages))
    ]
    folds = fold_of_numbers(scans.ages, cohort.participants, folds=FOLDS, seed=seed)
    options = TrainOptions(weights="random", folds=FOLDS, seed=seed, target="age")
    return fit_numbers(extractor(), arrays, cohort, folds, options)


def predicted(model: NumberModel, scans: Aged) -> list[NumberPrediction]:
    """Return what all folds together say about scans, as a run does."""
    return [
        model.predict(
            ScanInputs(
                features=scans.features[n],
                values=scans.values[n],
                volumes=volumes,
                covariates={},
                network_input=no_image(),
            )
        )
        for n, volumes in enumerate(scans.volumes)
    ]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What one training came to."""

    scans: int
    strength: float
    seconds: float
    out_of_fold: NumberEvaluation
    fresh: NumberEvaluation
    members: dict[str, float]
    covered: tuple[float, float]
    width: float
    random: NumberEvaluation
    chosen: Counter[str]


def promise_of(scans: int, strength: float, seed: int) -> Promise:
    """Train on some simulated scans, and predict others."""
    everyone = simulated(scans + FRESH, strength, seed)
    learnt, fresh = everyone.part(slice(scans)), everyone.part(slice(scans, None))
    began = time.perf_counter()
    model, found = trained(learnt, seed)
    seconds = time.perf_counter() - began
    names = [str(n) for n in range(scans)]
    said = predicted(model, fresh)
    control = found.random_targets[PREDICTOR]
    own = evaluate_intervals(out_of_fold_numbers(found, model.description), found.targets)
    others = evaluate_intervals(said, fresh.ages)
    return Promise(
        scans=scans,
        strength=strength,
        seconds=seconds,
        out_of_fold=evaluate_numbers(found.values, found.targets, names, expected=found.expected, seed=0),
        fresh=evaluate_numbers(
            np.array([one.value for one in said]), fresh.ages, [str(n) for n in range(FRESH)], seed=0
        ),
        members={
            str(name): evaluate_numbers(values, found.targets, names, expected=found.expected, seed=0)
            .measures["r2"]
            .value
            for name, values in found.members.items()
        },
        covered=(own.coverage.value, others.coverage.value),
        width=others.mean_width,
        random=evaluate_numbers(
            control.values, control.targets, control.participants, expected=control.expected, seed=0
        ),
        chosen=Counter(fold.chosen for fold in found.predicted.predictors),
    )


def promises() -> Iterator[Promise]:
    """Give what each training came to."""
    for scans, repeats in COHORTS.items():
        for strength in STRENGTHS:
            for repeat in range(repeats):
                yield promise_of(scans, strength, seed=1000 * repeat + scans)


def lines_of(found: Sequence[Promise]) -> list[str]:
    """Return the tables."""
    about = (
        f"Made by `benchmarks/predicted_numbers.py`: ages of mean {MEAN_AGE:g} and SD {SD_AGE:g} years, predicted from "
        "images that know a brain age alone, which correlates with age as the second column says; squared, that is the "
        f"R2 that nothing can exceed. Means over repeats; each training is tried on {FRESH} fresh scans."
    )
    columns = (
        *("scans", "correlation", "trainings", "R2, out of fold", "R2, fresh"),
        *("mean absolute error, fresh, years", "R2 of volumes, linear, network"),
        *("chosen by auto, of all folds", "seconds"),
    )
    lines = ["# Predicted numbers: promises of a model of age", "", about, "", *_head(columns)]
    for scans in COHORTS:
        for strength in STRENGTHS:
            some = [one for one in found if (one.scans, one.strength) == (scans, strength)]
            members = ", ".join(
                f"{np.mean([one.members[name] for one in some]):.2f}"
                for name in ("volumes", "linear", "network")
            )
            chosen = sum((one.chosen for one in some), Counter[str]())
            lines.append(
                f"| {scans} | {strength:g} | {len(some)} | {_mean(some, 'out_of_fold', 'r2'):.2f} | "
                f"{_mean(some, 'fresh', 'r2'):.2f} | {_mean(some, 'fresh', 'mae'):.1f} | {members} | "
                f"{', '.join(f'{name} {count}' for name, count in chosen.most_common())} | "
                f"{np.mean([one.seconds for one in some]):.1f} |"
            )
    lines += ["", "## Coverage of the 90 % intervals", ""]
    lines += _head(
        (
            "scans",
            "out of fold",
            "fresh scans",
            "lowest and highest of a training",
            "width, years, by correlation",
        )
    )
    for scans in COHORTS:
        some = [one for one in found if one.scans == scans]
        own, fresh = np.array([one.covered for one in some]).T
        widths = [np.mean([one.width for one in some if one.strength == strength]) for strength in STRENGTHS]
        lines.append(
            f"| {scans} | {100 * own.mean():.1f} % | {100 * fresh.mean():.1f} % | {100 * fresh.min():.0f} to "
            f"{100 * fresh.max():.0f} % | {', '.join(f'{width:.0f}' for width in widths)} |"
        )
    at_chance = sum(one.random.measures["r2"].low <= 0 for one in found)
    worst = max(found, key=lambda one: one.random.measures["r2"].low)
    random = (
        f"At chance, their interval of R2 not above 0, in {at_chance} of {len(found)} trainings; the nearest to it: "
        f"{worst.random.measures['r2']}."
    )
    above = {
        strength: (
            sum(one.out_of_fold.above_chance for one in found if one.strength == strength),
            sum(one.strength == strength for one in found),
        )
        for strength in STRENGTHS
    }
    called = "; ".join(
        f"{count} of {total} where the correlation is {one:g}" for one, (count, total) in above.items()
    )
    return [
        *lines,
        *("", "## Random targets", "", random),
        *("", "## Called above chance", "", f"{called}."),
    ]


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _mean(found: Sequence[Promise], which: str, measure: str) -> float:
    return float(np.mean([getattr(one, which).measures[measure].value for one in found]))


def main() -> None:
    """Run the benchmark."""
    text = "\n".join(lines_of(list(promises())))
    print(text)
    (FOLDER / "predicted_numbers.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
