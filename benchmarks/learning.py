"""How long learning takes, and whether its promises hold.

Run it alone on the machine::

    .venv/bin/python benchmarks/learning.py [--parts forward training promises]

Forward passes of resnet10; training on 1,000 scans of cached features in five nested folds, all members and every
control; and on simulated cohorts of several sizes what the predictor and its members reach, the coverage and the size
of the prediction sets, out of fold and of scans that nobody has seen, the calibration, random labels, and whether
flagged predictions are wrong more often. Training is that of ``brainstage train``, called with arrays in memory. What
it finds goes to ``benchmarks/learning.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from brainstage.models.choices import MEMBERS
from brainstage.models.cross_validation import ControlRun
from brainstage.models.features import FeatureExtractor, pooled_features
from brainstage.models.learners import FrozenLearner
from brainstage.models.med3d import build_med3d, initialise_randomly
from brainstage.models.member_learners import LinearLearner, VolumesLearner
from brainstage.models.metrics import Estimate, evaluate
from brainstage.models.model_store import ScanInputs, StoredModel
from brainstage.models.norms import NORMED_MEASURES
from brainstage.models.splits import fold_of_scans
from brainstage.models.volume_model import ScanVolumes, scan_volumes
from brainstage.models.weights import load_weights
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.manifest import ManifestRow
from brainstage.pipeline.records import NetworkInput, Prediction
from brainstage.workflows.gate import prediction_flags
from brainstage.workflows.learning import fitting
from brainstage.workflows.learning.features import TrainingArrays
from brainstage.workflows.learning.fitting import fit
from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan
from brainstage.workflows.learning.model_evaluation import PREDICTOR, OutOfFold, out_of_fold_predictions
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.stages import preprocessing_content, preprocessing_id

FOLDER = Path(__file__).parent
FOLDS: Final = 5
GRIDS: Final = ((80, 96, 80), (96, 112, 96), (160, 192, 160))

FEATURES: Final = 5376
"""Of resnet10."""
VALUES: Final = 40 * 48 * 40 + 52 * 45 * 35
"""Of the linear member: blocks of the default grid, and local volume."""
FEW_FEATURES: Final = 600
FEW_VALUES: Final = 20_000
"""Of cohorts whose promises are looked at: the effect and the people count, and many cohorts are needed."""
LEAST_FRESH: Final = 200
"""Scans of the same kind that no fold has seen: as many as were learnt from, and at least so many."""

CLASSES: Final[Mapping[int, tuple[str, ...]]] = {2: ("CN", "AD"), 3: ("CN", "MCI", "AD")}
EFFECTS: Final[Mapping[int, Mapping[str, float]]] = {
    2: {"weak": 0.6, "middle": 1.0, "strong": 1.6},
    3: {"strong": 1.3},
}
"""Classes to the distances between neighbouring ones; strong gives two classes of 200 scans an AUC of about 0.9."""
COHORTS: Final[Mapping[int, int]] = {60: 4, 150: 2, 200: 3, 400: 1, 1000: 1}
"""Scans to the cohorts of this size for each effect; of small ones more, since each covers more or less."""
LARGE: Final = 1000
"""Scans of a cohort that takes so long that it is drawn with a strong effect alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulated:
    """Scans as the members of a model see them.

    Attributes
    ----------
    targets : ndarray, (N,) int64
    features, values : ndarray, (N, F) and (N, V) float32
    mask_features : ndarray, (N, F) float32
        Without any effect.
    ages : ndarray, (N,) float64
    sexes : tuple of str
    measures : tuple of mapping
        Per cent of the intracranial volume.
    """

    targets: NDArray[np.int64]
    features: NDArray[np.float32]
    mask_features: NDArray[np.float32]
    values: NDArray[np.float32]
    ages: NDArray[np.float64]
    sexes: tuple[str, ...]
    measures: tuple[Mapping[str, float], ...]

    @property
    def volumes(self) -> list[ScanVolumes]:
        """What the member on volumes is given of each."""
        return [
            scan_volumes(measures, float(age), sex)
            for measures, age, sex in zip(self.measures, self.ages, self.sexes, strict=True)
        ]

    def part(self, chosen: slice) -> Simulated:
        """Return some of the scans."""
        return Simulated(**{name: found[chosen] for name, found in vars(self).items()})


VOLUMES_OF_HEALTHY: Final = {
    "grey_matter": (44.0, -0.002, 0.06, -0.3),
    "white_matter": (34.0, -0.001, 0.06, 0.0),
    "csf": (20.0, 0.006, 0.12, 0.2),
    "ventricle_left": (0.9, 0.025, 0.35, 0.35),
    "ventricle_right": (0.85, 0.025, 0.35, 0.35),
    "hippocampus_left": (0.23, -0.005, 0.10, -0.7),
    "hippocampus_right": (0.24, -0.005, 0.10, -0.7),
}
"""Volume to per cent of the head, change of its logarithm in a year, SD of that, and effect on it in such SD."""
SHARED_BY_SIDES: Final = 0.8
"""Correlation of all volumes of a person: what is large or wide is so on both sides."""


def simulated(
    count: int, classes: int, effect: float, seed: int, features: int = FEW_FEATURES, values: int = FEW_VALUES
) -> Simulated:
    """Draw scans whose classes differ for each member in another way, and in each by the severity of the person.

    Features share thirty axes, of which six carry the effect; one value in a hundred does, under the ten patterns in
    which all of them vary together; volumes are log-normal and follow age and sex. At `effect` 1 neighbouring classes
    lie apart by one SD of a hippocampus.
    """
    generator = np.random.default_rng(seed)
    targets = generator.permutation(np.arange(count) % classes).astype(np.int64)
    severity = effect * targets * generator.normal(1.0, 0.4, count)
    return Simulated(
        targets=targets,
        features=_features(severity, features, generator),
        mask_features=_features(0 * severity, features, generator),
        values=_values(severity, values, generator),
        **_people(severity, generator),
    )


def _features(
    severity: NDArray[np.float64], count: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    axes = generator.standard_normal((30, count)) / np.sqrt(np.arange(1, 31))[:, None]
    own = generator.standard_normal((len(severity), 30))
    own[:, 3:9] += 0.4 * severity[:, None]
    noise = generator.standard_normal((len(severity), count), dtype=np.float32)
    return (own @ axes).astype(np.float32) + noise


def _values(severity: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    patterns = 0.5 * generator.standard_normal((10, count)).astype(np.float32)
    own = generator.standard_normal((len(severity), 10)).astype(np.float32)
    found = own @ patterns + generator.standard_normal((len(severity), count), dtype=np.float32)
    seen = severity + generator.standard_normal(len(severity))
    found[:, : count // 100] += 0.8 * seen[:, None].astype(np.float32)
    return found


def _people(severity: NDArray[np.float64], generator: np.random.Generator) -> dict[str, Any]:
    count = len(severity)
    ages = generator.normal(70.0, 8.0, count)
    male = generator.random(count) < 0.5
    common = generator.standard_normal((count, 3))
    found: dict[str, NDArray[np.float64]] = {}
    for name, (percent, per_year, spread, part) in VOLUMES_OF_HEALTHY.items():
        group = 0 if name.startswith("hippo") else 1 if name.startswith("ventricle") else 2
        shared = np.sqrt(SHARED_BY_SIDES) * common[:, group]
        deviation = shared + np.sqrt(1 - SHARED_BY_SIDES) * generator.standard_normal(count)
        usual = per_year * (ages - 70.0) + 0.01 * male
        found[NORMED_MEASURES[name]] = percent * np.exp(usual + spread * (deviation + part * severity))
    return {
        "ages": ages,
        "sexes": tuple("M" if one else "F" for one in male),
        "measures": tuple({name: float(of[n]) for name, of in found.items()} for n in range(count)),
    }


@dataclass(frozen=True, kw_only=True)
class CohortInMemory(Cohort):
    """A cohort whose volumes lie in no file."""

    measured: tuple[ScanVolumes, ...]

    def volumes(self, *, test: bool = False) -> list[ScanVolumes]:
        """Return the volumes of the scans to learn from; there are no test scans."""
        del test
        return list(self.measured)


def cohort_of(scans: Simulated, classes: Sequence[str]) -> CohortInMemory:
    """Return scans as a finished run gives them to a training."""
    content = preprocessing_content(Config())
    rows = [
        ManifestRow(
            participant_id=f"sub-{n:04d}", session_id="", run_id="",
            t1w_path=f"sub-{n:04d}/anat/sub-{n:04d}_T1w.nii", sha256=f"{n:064x}",
            age=float(scans.ages[n]), sex=scans.sexes[n], diagnosis=classes[target],
        )
        for n, target in enumerate(scans.targets)
    ]  # fmt: skip
    return CohortInMemory(
        classes=tuple(classes),
        scans=tuple(
            LabelledScan(
                row=row,
                files=ScanFiles(out_dir=Path("nowhere"), entities=BidsEntities(subject=f"{n:04d}")),
                label=str(row.diagnosis),
            )
            for n, row in enumerate(rows)
        ),
        test_scans=(),
        left_out={},
        preprocessing_id=preprocessing_id(content),
        preprocessing_content=content,
        columns=("age", "sex"),
        measured=tuple(scans.volumes),
    )


def arrays_of(scans: Simulated) -> list[TrainingArrays]:
    """Return what a training has cached of each scan."""
    inside = np.ones(scans.values.shape[1], dtype=np.bool_)
    return [
        TrainingArrays(
            features=scans.features[n],
            mask_features=scans.mask_features[n],
            values=scans.values[n],
            inside=inside,
            input_key=str(n),
        )
        for n in range(len(scans.targets))
    ]


@cache
def extractor() -> FeatureExtractor:
    """Return a network with random weights; a frozen one has no part in what is measured here."""
    loaded = load_weights("random")
    return FeatureExtractor(loaded.network, loaded.source, torch.device("cpu"))


def trained(scans: Simulated, classes: Sequence[str], seed: int) -> tuple[StoredModel, OutOfFold, Cohort]:
    """Train as ``brainstage train`` does once everything is read."""
    cohort = cohort_of(scans, classes)
    folds = fold_of_scans(cohort.labels, cohort.participants, folds=FOLDS, seed=seed, about=cohort.about)
    options = TrainOptions(weights="random", folds=FOLDS, seed=seed)
    model, found, _ = fit(extractor(), arrays_of(scans), cohort, folds, options)
    return model, found, cohort


# --- (a) forward passes


def forward_lines() -> list[str]:
    """Time the network."""
    network = build_med3d("resnet10")
    initialise_randomly(network, 0)
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    lines = ["## resnet10, features of one image", "", "| voxels | seconds, best of 5 |", "|---|---|"]
    for shape in GRIDS:
        image = torch.randn(1, 1, *shape).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            taken = [seconds_of(lambda image=image: pooled_features(network, image)) for _ in range(6)]
        lines.append(f"| {' x '.join(map(str, shape))} | {min(taken[1:]):.2f} |")
    return [*lines, ""]


def seconds_of(step: Callable[[], object]) -> float:
    """Return how long something takes."""
    return clocks_of(step)[0]


def clocks_of(step: Callable[[], object]) -> tuple[float, float]:
    """Return how long something takes, and how long it keeps processors busy, which others on the machine lengthen."""
    started, busy = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started, time.process_time() - busy


# --- (b) training


def training_lines() -> list[str]:
    """Time the training on 1,000 scans, and one fit of each member in it."""
    classes = CLASSES[3]
    scans = simulated(1000, 3, 0.5, 0, FEATURES, VALUES)
    whole = clocks_of(lambda: trained(scans, classes, 0))
    participants = [f"sub-{n}" for n in range(1000)]
    learnt_from = np.arange(1000) % FOLDS != 0
    inside = np.ones(scans.values.shape, dtype=np.bool_)
    options = TrainOptions()
    learners = {
        "network": FrozenLearner(
            features=scans.features, participants=participants, classes=3, options=options.head_options
        ),
        "linear": LinearLearner(values=scans.values, inside=inside, classes=3, imbalance=options.imbalance),
        "volumes": VolumesLearner(scans=scans.volumes, classes=3, imbalance=options.imbalance),
    }
    once = {
        name: clocks_of(lambda one=one: one.fit(learnt_from, scans.targets, fold=0, seed=0))
        for name, one in learners.items()
    }
    return [
        "## Training on cached features",
        "",
        (
            f"1,000 scans, three classes, {FEATURES} features, {VALUES} values of the linear member, {FOLDS} nested "
            "folds: each member is fitted 15 times, 15 times again with permuted labels, and the network 5 times on "
            "brain masks."
        ),
        "",
        "| step | seconds | of processors |",
        "|---|---|---|",
        *(
            f"| one fit of the member `{name}` | {took:.2f} | {busy:.2f} |"
            for name, (took, busy) in once.items()
        ),
        f"| all members, the predictor, and every control; 120 are allowed | {whole[0]:.1f} | {whole[1]:.1f} |",
        "",
    ]


# --- (c) promises


@dataclass(frozen=True, kw_only=True, eq=False)
class Promises:
    """What was found on one cohort.

    Attributes
    ----------
    scans, classes : int
    effect : str
    accuracy, auc : mapping
        ``predictor`` and members to balanced accuracy and AUC, out of fold.
    auc_fresh : float
        Of the predictor, of scans that no fold has seen.
    covered, covered_fresh : ndarray, (C, 2) float64
        Scans of each class whose set holds it, and scans; out of fold, and of fresh scans through all folds.
    size, size_fresh : float
        Classes in a set.
    ece, ece_fresh : float
    random : mapping
        ``predictor`` and members to the balanced accuracy with the first draw of random labels.
    by_status : mapping
        ``reported`` and ``flagged`` to the scans that are predicted rightly, and scans; out of fold.
    chosen : tuple of str
        By each fold.
    """

    scans: int
    classes: int
    effect: str
    accuracy: Mapping[str, float]
    auc: Mapping[str, float]
    auc_fresh: float
    covered: NDArray[np.float64]
    covered_fresh: NDArray[np.float64]
    size: float
    size_fresh: float
    ece: float
    ece_fresh: float
    random: Mapping[str, Estimate]
    by_status: Mapping[str, tuple[int, int]]
    chosen: tuple[str, ...]


def promises_of(scans: int, classes: int, effect: str, seed: int) -> Promises:
    """Train on a simulated cohort, and measure it out of fold and on fresh scans."""
    names = CLASSES[classes]
    drawn = simulated(scans + max(LEAST_FRESH, scans), classes, EFFECTS[classes][effect], seed)
    model, found, cohort = trained(drawn.part(slice(0, scans)), names, seed)
    fresh = drawn.part(slice(scans, None))
    predictions = out_of_fold_predictions(found, cohort, model.description)
    fresh_predictions = predicted(model, fresh)
    own = {
        name: measures_of(one, found.targets, names)
        for name, one in ((PREDICTOR, found.probabilities), *found.member_probabilities.items())
    }
    probabilities = np.array([list(one.probabilities.values()) for one in fresh_predictions])
    other = measures_of(probabilities, fresh.targets, names)
    covered, size = sets_of(predictions, found.targets, names)
    covered_fresh, size_fresh = sets_of(fresh_predictions, fresh.targets, names)
    return Promises(
        scans=scans,
        classes=classes,
        effect=effect,
        accuracy={name: one["balanced_accuracy"].value for name, one in own.items()},
        auc={name: one["auc"].value for name, one in own.items()},
        auc_fresh=other["auc"].value,
        covered=covered,
        covered_fresh=covered_fresh,
        size=size,
        size_fresh=size_fresh,
        ece=own[PREDICTOR]["ece"].value,
        ece_fresh=other["ece"].value,
        random={name: first_draw(run, names) for name, run in found.random_labels.items()},
        by_status=by_status(predictions, found),
        chosen=tuple(fold.chosen for fold in found.predicted.predictors),
    )


def measures_of(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], names: Sequence[str]
) -> Mapping[str, Estimate]:
    """Return the measures of predictions, without intervals."""
    people = [str(n) for n in range(len(targets))]
    return evaluate(probabilities, targets, people, names, seed=0, samples=1).measures


@cache
def no_image() -> NetworkInput:
    """Return what stands for an image where features are given and the network is frozen."""
    nothing = np.zeros((2, 2, 2), dtype=np.float32)
    return NetworkInput(
        image=nothing[None], brain_mask=nothing == 0, voxel_to_ras=np.eye(4), local_volume=nothing
    )


def predicted(model: StoredModel, scans: Simulated) -> list[Prediction]:
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


def sets_of(
    predictions: Sequence[Prediction], targets: NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.float64], float]:
    """Return covered scans and scans of each class, (C, 2), and the mean size of a set."""
    sets = [one.prediction_set for one in predictions]
    hits = np.array([names[target] in one for one, target in zip(sets, targets, strict=True)])
    covered = np.array([[hits[targets == c].sum(), (targets == c).sum()] for c in range(len(names))])
    return covered.astype(np.float64), float(np.mean([len(one) for one in sets]))


def first_draw(run: ControlRun, names: Sequence[str]) -> Estimate:
    """Return the balanced accuracy of one permutation of the labels, with its interval."""
    count = len(run.targets) // run.draws
    said = run.probabilities[:count], run.targets[:count], run.participants[:count]
    return evaluate(*said, names, seed=0).measures["balanced_accuracy"]


def by_status(predictions: Sequence[Prediction], found: OutOfFold) -> dict[str, tuple[int, int]]:
    """Return how many are right of the predictions that the gate reports and flags, and how many there are."""
    right = found.probabilities.argmax(axis=1) == found.targets
    flagged = np.array([bool(prediction_flags(one)) for one in predictions])
    return {
        name: (int(right[own].sum()), int(own.sum()))
        for name, own in (("reported", ~flagged), ("flagged", flagged))
    }


def settings() -> Iterator[tuple[int, str, int, int]]:
    """Return classes, effect, scans and number of each cohort."""
    for classes, effects in EFFECTS.items():
        for effect, (scans, times) in product(effects, COHORTS.items()):
            if scans < LARGE or effect == "strong":
                yield from ((classes, effect, scans, seed) for seed in range(times))


def promise_lines() -> list[str]:
    """Simulate the cohorts, and say what was found on them."""
    found = []
    # there are many cohorts: one permutation of the labels for each says enough
    with patch.object(fitting, "RANDOM_LABELLED_SCANS", 1):
        for classes, effect, scans, seed in settings():
            started = time.perf_counter()
            found.append(promises_of(scans, classes, effect, 1000 * seed + scans))
            took = time.perf_counter() - started
            print(f"{classes} classes, {effect}, {scans} scans: {took:.1f} s", file=sys.stderr, flush=True)
    return [
        "## Promises on simulated cohorts",
        "",
        (
            f"{len(found)} cohorts, {FEW_FEATURES} features, {FEW_VALUES} values, volumes with age and sex, trained as "
            f"`brainstage train` does by default; and {LEAST_FRESH} or more further scans, predicted by all folds."
        ),
        "",
        *_number_lines(found),
        *_accuracy_lines(found),
        *_set_lines(found),
        *_random_lines(found),
        *_status_lines(found),
    ]


def _groups(found: Sequence[Promises], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Promises]]]:
    """Return the cohorts that have some attributes in common, in order."""
    groups: dict[tuple[Any, ...], list[Promises]] = {}
    for one in found:
        groups.setdefault(tuple(getattr(one, name) for name in names), []).append(one)
    yield from groups.items()


def _coverages(found: Sequence[Promises], name: str) -> NDArray[np.float64]:
    """Return the coverage (C,) of each class, over all scans of some cohorts of as many classes."""
    covered, scans = np.sum([getattr(one, name) for one in found], axis=0).T
    return np.asarray(covered / scans)


def _range(found: Sequence[Promises], name: str) -> str:
    """Say between which numbers the coverage lies, of each class of all cohorts of a size."""
    parts = [_coverages(group, name) for _, group in _groups(found, "classes", "scans")]
    return f"{100 * np.concatenate(parts).min():.1f} to {100 * np.concatenate(parts).max():.1f} %"


def _mean(found: Sequence[Promises], value: Callable[[Promises], float]) -> float:
    return float(np.mean([value(one) for one in found]))


def _number_lines(found: Sequence[Promises]) -> list[str]:
    """Return the table of what was to be reached and what was."""
    small = [one for one in found if one.scans < 150]
    larger = [one for one in found if one.scans >= 150]
    at_200 = [one for one in found if (one.scans, one.classes, one.effect) == (200, 2, "strong")]
    random = [one.random[PREDICTOR].low <= 1 / one.classes for one in found]
    told = [one for one in found if one.scans >= 200 and all(count for _, count in one.by_status.values())]
    right = [one for one in told if _accuracy(one, "flagged") < _accuracy(one, "reported")]
    return [
        "| what | to reach | found |",
        "|---|---|---|",
        f"| coverage of each class at each size, out of fold | 87 to 93 % | {_range(found, 'covered')} |",
        f"| of fresh scans, 150 scans and more | 87 to 93 % | {_range(larger, 'covered_fresh')} |",
        f"| of fresh scans, fewer | 87 to 93 % | {_range(small, 'covered_fresh')} |",
        (
            f"| classes in a set, two classes, 200 scans, AUC {_mean(at_200, lambda one: one.auc[PREDICTOR]):.2f} | "
            f"1.35 | {_mean(at_200, lambda one: one.size):.2f} out of fold, "
            f"{_mean(at_200, lambda one: one.size_fresh):.2f} fresh |"
        ),
        f"| random labels: predictor at chance | all | {sum(random)} of {len(random)} |",
        (
            f"| flagged wrong more often than reported, 200 scans and more | all | {len(right)} of {len(told)} cohorts "
            "that have both |"
        ),
        "",
    ]


def _accuracy_lines(found: Sequence[Promises]) -> list[str]:
    lines = [
        "### Predictor and members",
        "",
        (
            "| classes | effect | scans | balanced accuracy | AUC | fresh | volumes | linear | network | ECE | fresh | "
            "classes in a set | fresh | chosen by folds |"
        ),
        "|" + 14 * "---|",
    ]
    for (classes, effect, scans), group in _groups(found, "classes", "effect", "scans"):
        chosen = [name for one in group for name in one.chosen]
        counts = ", ".join(f"{name} {chosen.count(name)}" for name in (*MEMBERS, "stack") if name in chosen)
        members = " | ".join(f"{_mean(group, lambda one, name=name: one.auc[name]):.2f}" for name in MEMBERS)
        lines.append(
            f"| {classes} | {effect} | {scans} | {_mean(group, lambda one: one.accuracy[PREDICTOR]):.2f} | "
            f"{_mean(group, lambda one: one.auc[PREDICTOR]):.2f} | {_mean(group, lambda one: one.auc_fresh):.2f} | "
            f"{members} | {_mean(group, lambda one: one.ece):.3f} | {_mean(group, lambda one: one.ece_fresh):.3f} | "
            f"{_mean(group, lambda one: one.size):.2f} | {_mean(group, lambda one: one.size_fresh):.2f} | {counts} |"
        )
    return [*lines, ""]


def _set_lines(found: Sequence[Promises]) -> list[str]:
    lines = [
        "### Coverage of each class by sets for 90 %, all effects together",
        "",
        "| classes | scans | cohorts | out of fold | fresh, all folds |",
        "|---|---|---|---|---|",
    ]
    for (classes, scans), group in _groups(found, "classes", "scans"):
        out_of_fold, fresh = (
            ", ".join(f"{100 * value:.1f} %" for value in _coverages(group, name))
            for name in ("covered", "covered_fresh")
        )
        lines.append(f"| {classes} | {scans} | {len(group)} | {out_of_fold} | {fresh} |")
    return [*lines, ""]


def _random_lines(found: Sequence[Promises]) -> list[str]:
    lines = [
        "### Random labels, one draw for each cohort",
        "",
        (
            "Balanced accuracy over the draws, and the draws whose 95 % interval lies above chance; of draws that are "
            "at chance one in forty does so by luck."
        ),
        "",
        "| classes | model | mean | above chance | below chance |",
        "|---|---|---|---|---|",
    ]
    for (classes,), group in _groups(found, "classes"):
        for name in (PREDICTOR, *MEMBERS):
            draws = [one.random[name] for one in group]
            above = sum(draw.low > 1 / classes for draw in draws)
            below = sum(draw.high < 1 / classes for draw in draws)
            mean = np.mean([draw.value for draw in draws])
            lines.append(
                f"| {classes} | {name} | {mean:.3f} | {above} of {len(draws)} | {below} of {len(draws)} |"
            )
    return [*lines, ""]


def _accuracy(one: Promises, status: str) -> float:
    right, scans = one.by_status[status]
    return right / scans


def _status_lines(found: Sequence[Promises]) -> list[str]:
    lines = [
        "### Flagged and reported predictions, out of fold, cohorts of 200 scans and more",
        "",
        "| classes | effect | scans | flagged | accuracy of flagged | of reported | flagged wrong more often |",
        "|---|---|---|---|---|---|---|",
    ]
    for (classes, effect, scans), group in _groups(found, "classes", "effect", "scans"):
        if scans < 200:
            continue
        told = [one for one in group if all(count for _, count in one.by_status.values())]
        rates = []
        for status in ("flagged", "reported"):
            right, count = np.sum([one.by_status[status] for one in group], axis=0)
            rates.append(f"{right / count:.2f}" if count else "none")
        flagged = sum(one.by_status["flagged"][1] for one in group) / (scans * len(group))
        worse = sum(_accuracy(one, "flagged") < _accuracy(one, "reported") for one in told)
        lines.append(
            f"| {classes} | {effect} | {scans} | {100 * flagged:.0f} % | {rates[0]} | {rates[1]} | "
            f"{worse} of {len(told)} |"
        )
    return [*lines, ""]


MADE: Final[Mapping[str, Callable[[], list[str]]]] = {
    "forward": forward_lines,
    "training": training_lines,
    "promises": promise_lines,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=tuple(MADE), default=tuple(MADE))
    parts = parser.parse_args().parts
    lines = [
        "# Learning: time and promises",
        "",
        f"Made by `benchmarks/learning.py` with {torch.get_num_threads()} threads on {os.cpu_count()} processors.",
        "",
    ]
    for part in parts:
        lines += MADE[part]()
    # a machine that others use makes seconds long
    lines += [f"The load of the machine was {os.getloadavg()[2]:.0f} in the last quarter of an hour.", ""]
    print("\n".join(lines))
    if set(parts) == set(MADE):
        (FOLDER / "learning.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
