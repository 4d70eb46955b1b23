"""How long learning takes, and whether its promises hold.

Run it alone on the machine::

    .venv/bin/python benchmarks/learning.py

Forward passes of resnet10; training on 1,000 scans of cached features in five folds, with every control; and on
simulated cohorts of several sizes the coverage of the conformal sets of each class, the calibration before and after,
and the random labels. It prints a table and writes it to ``benchmarks/learning.md``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from brainstage.models.calibration import calibrated, cross_calibrated
from brainstage.models.conformal import cross_fitted_members
from brainstage.models.cross_validation import (
    cross_validate_baseline,
    cross_validate_heads,
    cross_validate_novelty,
    judge_of,
    random_label_control,
)
from brainstage.models.features import pooled_features
from brainstage.models.learners import FrozenLearner
from brainstage.models.med3d import build_med3d, initialise_randomly
from brainstage.models.metrics import evaluate
from brainstage.models.splits import fold_of_scans
from brainstage.models.training import HeadOptions

FOLDER = Path(__file__).parent
CLASSES: Final = ("CN", "MCI", "AD")
FEATURES: Final = 5376
VALUES: Final = 40 * 48 * 40 + 52 * 45 * 35
"""Of the baseline: blocks of the default grid, and local volume."""
GRIDS: Final = ((80, 96, 80), (96, 112, 96), (160, 192, 160))
COHORTS: Final = (60, 150, 400, 1000)
SEEDS: Final = range(5)
FOLDS: Final = 5


def main() -> None:
    """Run the benchmark."""
    lines = [
        "# Learning: time and promises",
        "",
        f"Made by `benchmarks/learning.py` with {torch.get_num_threads()} threads.",
        "",
        *_forward_lines(),
        *_training_lines(),
        *_promise_lines(),
    ]
    print("\n".join(lines))
    (FOLDER / "learning.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _forward_lines() -> list[str]:
    network = build_med3d("resnet10")
    initialise_randomly(network, 0)
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    lines = ["## resnet10, features of one image", "", "| voxels | seconds, best of 5 |", "|---|---|"]
    for shape in GRIDS:
        image = torch.randn(1, 1, *shape).contiguous(memory_format=torch.channels_last_3d)
        taken = []
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                pooled_features(network, image)
                taken.append(time.perf_counter() - started)
        lines.append(f"| {' x '.join(map(str, shape))} | {min(taken[1:]):.2f} |")
    return [*lines, ""]


def _cohort(scans: int, seed: int, effect: float = 0.25) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Correlated noise with a weak shift that grows with the class: about as hard as CN, MCI and AD."""
    generator = np.random.default_rng(seed)
    axes = generator.standard_normal((30, FEATURES)) / np.sqrt(np.arange(1, 31))[:, None]
    targets = generator.permutation(np.arange(scans) % len(CLASSES))
    own = generator.standard_normal((scans, 30))
    own[:, 3:9] += 2.0 * effect * targets[:, None]
    values = own @ axes + generator.standard_normal((scans, FEATURES))
    return values.astype(np.float32), targets.astype(np.int64)


def _training_lines() -> list[str]:
    features, targets = _cohort(1000, 0)
    participants = [f"sub-{n}" for n in range(len(targets))]
    labels = [CLASSES[target] for target in targets]
    folds = fold_of_scans(labels, participants, folds=FOLDS, seed=0)
    options = HeadOptions()
    values = np.random.default_rng(1).standard_normal((1000, VALUES), dtype=np.float32)
    values[:, :500] += 0.3 * targets[:, None]
    inside = np.ones(values.shape, dtype=bool)
    count = len(CLASSES)
    learner = FrozenLearner(features=features, participants=participants, classes=count, options=options)
    steps = {
        "heads": lambda: cross_validate_heads(
            features, targets, participants, folds, classes=count, options=options
        ),
        "control: brain mask": lambda: cross_validate_heads(
            features, targets, participants, folds, classes=count, options=options
        ),
        "baseline on voxels": lambda: cross_validate_baseline(
            values, inside, targets, folds, classes=count, imbalance="weights"
        ),
        "novelty": lambda: cross_validate_novelty(features, folds),
        "control: random labels, 5 draws": lambda: random_label_control(
            judge_of(learner, count), labels, participants, CLASSES, folds=FOLDS, seed=0
        ),
        "control: random labels, baseline, 1 draw": lambda: random_label_control(
            lambda wanted, parts, seed, _: cross_validate_baseline(
                values, inside, wanted, parts, classes=count, imbalance="weights", seed=seed
            )[0],
            labels,
            participants,
            CLASSES,
            folds=FOLDS,
            seed=0,
            draws=1,
        ),
    }
    taken = {}
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        taken[name] = time.perf_counter() - started
    return [
        "## Training on cached features",
        "",
        f"1,000 scans, {FEATURES} features, {VALUES} values of the baseline, {FOLDS} folds.",
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in taken.items()),
        f"| together | {sum(taken.values()):.1f} |",
        "",
    ]


def _promise_lines() -> list[str]:
    lines = [
        "## Promises on simulated cohorts",
        "",
        f"Three classes as far apart as CN, MCI and AD, {len(SEEDS)} cohorts of each size, everything out of fold.",
        "",
        (
            "| scans | balanced accuracy | coverage of each class at 90 % | classes in a set | ECE before | after | "
            "random labels |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for scans in COHORTS:
        found = [_promises(scans, seed) for seed in SEEDS]
        accuracy, coverage, size, before, after, random = (
            np.array(column) for column in zip(*found, strict=True)
        )
        per_class = ", ".join(f"{100 * value:.0f} %" for value in coverage.mean(axis=0))
        lines.append(
            f"| {scans} | {accuracy.mean():.2f} | {per_class} | {size.mean():.1f} | {before.mean():.3f} | "
            f"{after.mean():.3f} | {random.mean():.2f} ({random.min():.2f} to {random.max():.2f}) |"
        )
    return lines


def _promises(scans: int, seed: int) -> tuple[float, NDArray[np.float64], float, float, float, float]:
    features, targets = _cohort(scans, seed)
    participants = [f"sub-{n}" for n in range(scans)]
    labels = [CLASSES[target] for target in targets]
    folds = fold_of_scans(labels, participants, folds=FOLDS, seed=seed)
    options = HeadOptions(seed=seed)
    count = len(CLASSES)
    run = cross_validate_heads(features, targets, participants, folds, classes=count, options=options)
    probabilities = cross_calibrated(run.logits, targets, folds)
    members = cross_fitted_members(probabilities, targets, folds)
    covered = members[np.arange(scans), targets]
    learner = FrozenLearner(features=features, participants=participants, classes=count, options=options)
    random = random_label_control(
        judge_of(learner, count), labels, participants, CLASSES, folds=FOLDS, seed=seed, draws=1
    )

    def measured(values: NDArray[np.float64], wanted: NDArray[np.int64], name: str) -> float:
        return evaluate(values, wanted, participants, CLASSES, seed=0, samples=1).measures[name].value

    return (
        measured(probabilities, targets, "balanced_accuracy"),
        np.array([covered[targets == c].mean() for c in range(count)]),
        float(members.sum(axis=1).mean()),
        measured(calibrated(run.logits, 1.0), targets, "ece"),
        measured(probabilities, targets, "ece"),
        measured(calibrated(random.logits, 1.0), random.targets, "balanced_accuracy"),
    )


if __name__ == "__main__":
    main()
