"""How much known atrophy in real brains the classifiers see, by level of hippocampal loss.

Run ``brainstage run`` over a cohort of healthy brains first, then::

    .venv/bin/python benchmarks/atrophy_sensitivity.py RUN_DIR [--generator other] [--keep DIR]
        [--unseen OTHER_RUN_DIR ...]

Half of the participants, drawn by a seed and balanced for sex and age, get smaller hippocampi and the wider ventricles
that go with them; the other half are carried through the same resampling without any. Nobody is in both
classes. The members of a model and the predictor over them are then cross-validated by participant in nested folds,
with the program's own functions: same members, same choice, same calibration as ``brainstage train``. Every level is
repeated with other assignments of people to classes; all of them are reported. Two more labels go the same way: sex,
which is real, and random labels on the atrophied half, which must end at chance. Other people, of runs given by
``--unseen``, are predicted as they are and with atrophy by linear members that learnt from the cohort alone.

``--generator`` says how atrophy is made (``deformed_brains.py``): ``flow``, or ``other`` with the same amounts.

It prints a table and writes it to ``benchmarks/atrophy_sensitivity.md``, every single result to
``benchmarks/atrophy_sensitivity.csv``; of another generator, to files with its name in theirs. ``--keep`` names a
folder for what is made and measured of the deformed brains, outside the repository, where a later run finds it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from deformed_brains import GENERATORS, MEASURES, Deform, measures_in_words, measures_of, read_brain
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.models.augmentation import DEFAULT_RECIPES
from brainstage.models.baseline import baseline_values, fit_baseline
from brainstage.models.choices import HeadKind, Member
from brainstage.models.choices import Regime as TrainedPart
from brainstage.models.cross_validation import (
    Nested,
    cross_validate,
    cross_validate_predictor,
    member_probabilities,
)
from brainstage.models.features import FeatureExtractor, feature_channels
from brainstage.models.fine_tuning import TuneOptions
from brainstage.models.learners import FoldModel, FrozenLearner, Learner, TuningLearner
from brainstage.models.member_learners import LinearLearner, VolumesLearner
from brainstage.models.metrics import Estimate, auc, evaluate
from brainstage.models.splits import fold_of_scans, people, shuffled_labels
from brainstage.models.training import HeadOptions
from brainstage.models.volume_model import scan_volumes
from brainstage.models.weights import load_weights
from brainstage.pipeline.config import NetworkGridConfig
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, ScanFiles
from brainstage.pipeline.files import sha256_of_file, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.network_grid import network_grid, network_input
from brainstage.preprocessing.resampling import resampled_mask
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.learning.labelled_cohort import (
    Cohort,
    LabelledScan,
    files_of_row,
    read_cohort,
    read_finished_run,
)
from brainstage.workflows.synthetic.anatomy import MODEL_ORIGIN_MM, load_anatomy
from brainstage.workflows.synthetic.atrophy import draw_effect

FOLDER: Final = Path(__file__).parent
LEVELS: Final = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30)
WANTED_LEVEL: Final = 0.20
WANTED: Final[Mapping[float, float]] = {0.20: 0.91, 0.15: 0.85, 0.10: 0.66}
"""AUC of what is published."""
WANTED_LAG: Final = 0.02
"""By which the best member may lead what is published."""
PUBLISHED: Final = "published"
FOLDS: Final = 5
RANDOM_DRAWS: Final = 20
"""Permutations of the labels in all: the spread over few of them is as wide as what is looked for."""
CLASSES: Final = ("healthy", "atrophy")
REACH_VOXELS: Final = 5
"""Around a region of the template, 10 mm at the default grid: as far as its borders move, and people differ."""
STRUCTURES: Final[Mapping[str, tuple[str, bool]]] = {
    "hippocampi": ("hippocampus", True),
    "ventricles": ("ventricle", False),
}
"""Whose volumes atrophy changes: what the measures call them, and whether they are smaller in the ill."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What the models see of N scans.

    Attributes
    ----------
    images, masks : ndarray, (N, D, H, W) float16 and bool
        Network inputs, for regimes that train more than a head.
    values, inside : ndarray, (N, V) float32 and bool
        Of the baseline.
    features : ndarray, (N, F) float32
        Of the frozen network.
    measures : ndarray, (N, M) float64
        What the stage of volumes measures, as ``MEASURES``; NaN where it is withheld.
    """

    images: NDArray[np.float16]
    masks: NDArray[np.bool_]
    values: NDArray[np.float32]
    inside: NDArray[np.bool_]
    features: NDArray[np.float32]
    measures: NDArray[np.float64]

    @property
    def volumes(self) -> list[dict[str, float]]:
        """The measures of each scan by their names; one that is withheld is absent."""
        return [measures_in_words(row) for row in self.measures]

    def where(self, chosen: NDArray[np.bool_], other: Inputs) -> Inputs:
        """Return these inputs for the chosen scans and those of `other` for the rest."""

        def mixed(mine: NDArray, theirs: NDArray) -> NDArray:
            return np.where(chosen.reshape(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return Inputs(**{f.name: mixed(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A way to train the network."""

    head: HeadKind = "linear"
    part: TrainedPart = "frozen"


@cache
def extractor_of(weights: str) -> FeatureExtractor:
    """Return the network with a choice of weights."""
    loaded = load_weights(weights)
    return FeatureExtractor(loaded.network, loaded.source)


def network_learner(
    weights: str, inputs: Inputs, participants: Sequence[str], classes: int, seed: int, regime: Regime
) -> Learner[FoldModel]:
    """Return what learns of the network as ``brainstage train`` does with these options."""
    extractor = extractor_of(weights)
    frozen = FrozenLearner(
        features=inputs.features,
        participants=participants,
        classes=classes,
        options=HeadOptions(seed=seed),
        head=regime.head,
        channel=feature_channels(extractor.source.architecture),
    )
    if regime.part == "frozen":
        return frozen
    tuning = TuneOptions(regime=regime.part, augment=DEFAULT_RECIPES, epochs=TUNING_EPOCHS, patience=4)
    return TuningLearner(frozen=frozen, base=extractor, images=inputs.images[:, np.newaxis], options=tuning)


REGIMES: Final[Mapping[str, Regime]] = {
    "frozen": Regime(),
    "frozen, multiscale-attention": Regime(head="multiscale-attention"),
    "head+last": Regime(part="head+last"),
    "full": Regime(part="full"),
}
"""Ways to train a network; each is three more columns of every table. The last two take hours on a CPU."""
TUNING_EPOCHS: Final = 10
"""What a CPU allows."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cross-validation of one model.

    Attributes
    ----------
    label : str
        ``atrophy``, ``sex`` or ``random labels``.
    level : float
        Mean hippocampal loss of the atrophied.
    """

    label: str
    level: float
    seed: int
    model: str
    auc: Estimate
    balanced_accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """How far a known region gives atrophy away without any learning.

    Attributes
    ----------
    change_sd : float
        Mean change of the region's mean intensity, in SD between healthy people.
    auc : float
        Of "darker is ill", every atrophied against every healthy brain.
    """

    region: str
    level: float
    change_sd: float
    auc: float


@dataclass(frozen=True, kw_only=True)
class VolumeChange:
    """How far the measured volume of a structure gives atrophy away without any learning.

    Attributes
    ----------
    structure : str
        Of ``STRUCTURES``; left and right together, per cent of the intracranial volume.
    change : float
        Mean over people, per cent of what is measured without atrophy.
    auc : float
        Of every atrophied against every healthy brain, by this volume alone.
    withheld : int
        Brains of which it is not measured, atrophied or not; not among the others.
    """

    structure: str
    level: float
    change: float
    auc: float
    withheld: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Deformed:
    """What is made and measured of N deformed brains.

    Attributes
    ----------
    images, masks : ndarray, (N, D, H, W) float16 and bool
    local_volumes : ndarray, (N, I, J, K) float32
    matrix : ndarray, (4, 4)
        ``voxel_to_ras`` of the network inputs.
    measures : ndarray, (N, M) float64
        As of :class:`Inputs`.
    """

    images: NDArray[np.float16]
    masks: NDArray[np.bool_]
    local_volumes: NDArray[np.float32]
    matrix: NDArray[np.float64]
    measures: NDArray[np.float64]

    def network_inputs(self) -> list[NetworkInput]:
        """Return the network input of each brain."""
        return [
            NetworkInput(
                image=image[np.newaxis].astype(np.float32),
                brain_mask=mask,
                voxel_to_ras=self.matrix,
                local_volume=volume,
            )
            for image, mask, volume in zip(self.images, self.masks, self.local_volumes, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """What a baseline that learnt from the cohort says about another one.

    Attributes
    ----------
    run : str
        Name of the other run's directory.
    scans : int
        Each is judged twice: as it is, and with atrophy.
    auc : float
    """

    run: str
    scans: int
    seed: int
    auc: float


def regions_of(cohort: Cohort) -> dict[str, NDArray[np.bool_]]:
    """Return the regions that atrophy changes and what lies around them, on the network's grid."""
    anatomy, matrix = load_anatomy(), np.eye(4)
    matrix[:3, 3] = MODEL_ORIGIN_MM
    grid = network_grid(NetworkGridConfig.model_validate(cohort.network_grid))
    return {
        name: ndimage.binary_dilation(
            resampled_mask(BrainMask(data=region, voxel_to_ras=matrix), grid).data, iterations=REACH_VOXELS
        )
        for name, region in (("ventricles", anatomy.ventricles), ("hippocampi", anatomy.hippocampi))
    }


def visibilities(
    healthy: Inputs, ill: Inputs, level: float, regions: Mapping[str, NDArray[np.bool_]]
) -> list[Visibility]:
    """Return what the mean intensity of each region says about atrophy."""
    found = []
    for name, region in regions.items():
        before, after = (of.images[:, region].astype(np.float64).mean(axis=1) for of in (healthy, ill))
        scores, positive = -np.r_[before, after], np.r_[np.zeros(len(before)), np.ones(len(after))] > 0
        found.append(
            Visibility(
                region=name,
                level=level,
                change_sd=float((after - before).mean() / before.std()),
                auc=float(auc(scores, positive, np.ones((1, len(scores))))[0]),
            )
        )
    return found


def volume_changes(healthy: Inputs, ill: Inputs, level: float) -> list[VolumeChange]:
    """Return what the measured volume of each structure says about atrophy."""
    found = []
    for structure, (name, shrinks) in STRUCTURES.items():
        columns = [MEASURES.index(f"{name}_{side}_pct_icv") for side in ("left", "right")]
        before, after = (of.measures[:, columns].sum(axis=1) for of in (healthy, ill))
        known = ~np.isnan(before + after)
        before, after = before[known], after[known]
        scores = np.r_[before, after] * (-1.0 if shrinks else 1.0)
        positive = np.r_[np.zeros(len(before)), np.ones(len(after))] > 0
        found.append(
            VolumeChange(
                structure=structure,
                level=level,
                change=100.0 * float((after / before - 1.0).mean()),
                auc=float(auc(scores, positive, np.ones((1, len(scores))))[0]),
                withheld=int((~known).sum()),
            )
        )
    return found


def deformed(
    scans: Sequence[ScanFiles], level: float, deform: Deform, grid: NetworkGridConfig, first_seed: int = 0
) -> Deformed:
    """Deform all scans at one level, and make and measure what the models see of them."""
    inputs, measures = [], []
    for seed, files in enumerate(scans, start=first_seed):
        brain = deform(read_brain(files), level, seed)
        inputs.append(network_input(brain.image, brain.mask, grid))
        measures.append(measures_of(brain))
    return Deformed(
        images=np.stack([one.image[0] for one in inputs]).astype(np.float16),
        masks=np.stack([one.brain_mask for one in inputs]),
        local_volumes=np.stack([one.local_volume for one in inputs]),
        matrix=inputs[0].voxel_to_ras,
        measures=np.stack(measures),
    )


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What makes the inputs of a cohort at any level, and keeps them.

    Attributes
    ----------
    cohort : Cohort
    generator : str
        Of ``GENERATORS``.
    keep : Path or None
        Folder of what is kept; None keeps nothing.
    """

    cohort: Cohort
    generator: str = "flow"
    keep: Path | None = None

    @cached_property
    def deform(self) -> Deform:
        """The deformation; made when it is first needed, which takes seconds."""
        return GENERATORS[self.generator]()

    @property
    def grid(self) -> NetworkGridConfig:
        """The network's grid."""
        return NetworkGridConfig.model_validate(self.cohort.network_grid)

    @cached_property
    def sources(self) -> list[str]:
        """What kept results are bound to: the scans as they were deformed, and the version of their volumes."""
        return [VOLUMES_VERSION, *(sha256_of_file(scan.files.template_t1w) for scan in self.cohort.scans)]

    def deformed(self, level: float) -> Deformed:
        """Return what the models see of the cohort at one level."""

        def make() -> Mapping[str, NDArray]:
            return vars(deformed([scan.files for scan in self.cohort.scans], level, self.deform, self.grid))

        return Deformed(**self._kept(level_name(level), make))

    def inputs(self, level: float, weights: Sequence[str]) -> dict[str, Inputs]:
        """Return the same for the models, by the choice of weights."""
        seen = self.deformed(level)
        inputs = seen.network_inputs()
        values, inside = _baseline_inputs(inputs)
        found = {}
        for choice in weights:
            extractor = extractor_of(choice)
            kept = self._kept(
                f"{level_name(level)}-{extractor.feature_id}", partial(_features, extractor, inputs)
            )
            found[choice] = Inputs(
                images=seen.images,
                masks=seen.masks,
                values=values,
                inside=inside,
                features=kept["features"],
                measures=seen.measures,
            )
        return found

    def _kept(self, name: str, make: Callable[[], Mapping[str, NDArray]]) -> Mapping[str, NDArray]:
        """Return the arrays that were kept of the same scans, or make and keep them."""
        if self.keep is None:
            return make()
        path = self.keep / f"{self.generator}-{name}.npz"
        if path.is_file():
            with np.load(path) as held:
                if held["sources"].tolist() == self.sources:
                    return {key: held[key] for key in held.files if key != "sources"}
        made = make()
        self.keep.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, sources=self.sources, **made)
        unfinished.replace(path)
        return made


def _features(extractor: FeatureExtractor, inputs: Sequence[NetworkInput]) -> dict[str, NDArray[np.float32]]:
    return {"features": np.stack([extractor.features(one) for one in inputs])}


def level_name(level: float) -> str:
    """Return a level as file names have it.

    >>> level_name(0.05)
    '5'
    """
    return f"{100 * level:g}"


def balanced_halves(scans: Sequence[LabelledScan], seed: int) -> NDArray[np.bool_]:
    """Choose half of the participants: neighbours in age of the same sex are parted by a coin.

    Returns
    -------
    ndarray, (N,) bool
    """
    order = sorted(
        range(len(scans)), key=lambda i: (scans[i].row.sex or "", scans[i].row.age or 0.0, scans[i].files.key)
    )
    first = np.random.default_rng(seed).random((len(order) + 1) // 2) < 0.5
    chosen = np.zeros(len(scans), dtype=np.bool_)
    for position, index in enumerate(order):
        chosen[index] = first[position // 2] == (position % 2 == 0)
    return chosen


def cross_validated(
    by_weights: Mapping[str, Inputs],
    labels: Sequence[str],
    scans: Sequence[LabelledScan],
    seed: int,
    regimes: Sequence[str],
    *,
    by_sex: bool = True,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Cross-validate every model on one labelling; probabilities (N, C) out of fold, and targets.

    Parameters
    ----------
    by_sex : bool
        Whether volumes are compared by sex; not where sex is the label.
    """
    classes = sorted(set(labels), reverse=True)
    targets = np.array([classes.index(label) for label in labels], dtype=np.int64)
    participants = [scan.row.participant_id for scan in scans]
    about = people(participants, [scan.row.age for scan in scans], [scan.row.sex for scan in scans])
    folds = fold_of_scans(labels, participants, folds=FOLDS, seed=seed, about=about)
    nested_of = partial(
        cross_validate, targets=targets, folds=folds, classes=len(classes), seed=seed, pairs=True
    )
    first = next(iter(by_weights.values()))
    given = [
        scan_volumes(measures, scan.row.age, scan.row.sex if by_sex else None)
        for measures, scan in zip(first.volumes, scans, strict=True)
    ]
    count = len(classes)
    simple: dict[Member, Nested[Any]] = {
        "volumes": nested_of(VolumesLearner(scans=given, classes=count, imbalance="weights")),
        "linear": nested_of(
            LinearLearner(values=first.values, inside=first.inside, classes=count, imbalance="weights")
        ),
    }
    found: dict[str, NDArray[np.float64]] = {}
    for weights, regime in product(by_weights, regimes):
        network = network_learner(weights, by_weights[weights], participants, count, seed, REGIMES[regime])
        nested = {**simple, "network": nested_of(network)}
        which = "" if len(by_weights) * len(regimes) == 1 else f", network with {weights} weights, {regime}"
        persons = np.arange(len(targets))
        for choice, words in (("auto", PUBLISHED), ("stack", "stack")):
            predicted = cross_validate_predictor(nested, targets, folds, persons, choice)
            found[words + which] = np.exp(predicted.log_probabilities)
        for member, said_by in member_probabilities(nested, predicted.predictors).items():
            name = f"{member}, {weights} weights, {regime}" if member == "network" else member
            found.setdefault(name, said_by)
    return {name: (probabilities, targets) for name, probabilities in found.items()}


def measured(
    found: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]],
    participants: Sequence[str],
    label: str,
    level: float,
    seed: int,
) -> list[Result]:
    """Return the measures of every model, with bootstrap intervals over participants."""
    results = []
    for name, (probabilities, targets) in found.items():
        measures = evaluate(probabilities, targets, participants, CLASSES, seed=seed).measures
        results.append(
            Result(
                label=label,
                level=level,
                seed=seed,
                model=name,
                auc=measures["auc"],
                balanced_accuracy=measures["balanced_accuracy"],
            )
        )
    return results


def all_results(
    maker: Maker,
    weights: Sequence[str],
    regimes: Sequence[str],
    levels: Sequence[float],
    seeds: int,
) -> tuple[list[Result], list[Visibility], list[VolumeChange]]:
    """Return every cross-validation that the tables are made of, and what single regions and volumes show."""
    cohort = maker.cohort
    names, regions = cohort.participants, regions_of(cohort)
    healthy = maker.inputs(0.0, weights)
    results: list[Result] = []
    seen: list[Visibility] = []
    changes: list[VolumeChange] = []
    for seed in range(seeds):
        results += measured(
            cross_validated(healthy, cohort.labels, cohort.scans, seed, regimes, by_sex=False),
            names,
            "sex",
            0.0,
            seed,
        )
    for level in sorted({*levels, WANTED_LEVEL}):
        ill = healthy if level == 0.0 else maker.inputs(level, weights)
        seen += visibilities(healthy[weights[0]], ill[weights[0]], level, regions)
        changes += volume_changes(healthy[weights[0]], ill[weights[0]], level)
        for seed in range(seeds):
            chosen = balanced_halves(cohort.scans, seed)
            mixed = {choice: ill[choice].where(chosen, healthy[choice]) for choice in weights}
            labels = [CLASSES[int(c)] for c in chosen]
            found = cross_validated(mixed, labels, cohort.scans, seed, regimes)
            results += measured(found, names, "atrophy", level, seed)
            print(f"level {level:.0%}, seed {seed}: {said(results[-len(found) :])}", flush=True)
            if level == WANTED_LEVEL:
                results += random_labels(
                    mixed, labels, cohort.scans, seed, max(1, RANDOM_DRAWS // seeds), regimes
                )
    return results, seen, changes


def random_labels(
    mixed: Mapping[str, Inputs],
    labels: Sequence[str],
    scans: Sequence[LabelledScan],
    seed: int,
    draws: int,
    regimes: Sequence[str],
) -> list[Result]:
    """Return what the models make of labels that were permuted between participants, all draws judged together."""
    names = [scan.row.participant_id for scan in scans]
    runs = []
    for draw in range(draws):
        drawn = shuffled_labels(labels, names, seed=1000 * (seed + 1) + draw)
        runs.append(cross_validated(mixed, drawn, scans, 1000 * (seed + 1) + draw, regimes))
    together = {
        model: tuple(np.concatenate(parts) for parts in zip(*(run[model] for run in runs), strict=True))
        for model in runs[0]
    }
    return measured(together, list(names) * draws, "random labels", WANTED_LEVEL, seed)


def unseen_results(maker: Maker, run_dirs: Sequence[Path], seeds: int) -> list[Unseen]:
    """Return how well baselines that learnt from the cohort at the wanted level tell atrophy in other people."""
    cohort = maker.cohort
    healthy, ill = (_baseline_inputs(maker.deformed(level).network_inputs()) for level in (0.0, WANTED_LEVEL))
    resolution = RESOLUTION_LABELS[cohort.preprocessing_content["registration"]["resolution_mm"]]
    others: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for run_dir in run_dirs:
        rows, _ = read_finished_run(run_dir)
        scans = [
            files for row in rows if (files := files_of_row(row, run_dir, resolution)).template_t1w.is_file()
        ]
        first_seed = len(cohort.scans) + sum(len(before) for before, _ in others.values())
        before, after = (
            _baseline_inputs(deformed(scans, level, maker.deform, maker.grid, first_seed).network_inputs())[0]
            for level in (0.0, WANTED_LEVEL)
        )
        others[run_dir.name] = before, after
    if len(others) > 1:
        before, after = (np.concatenate(part) for part in zip(*others.values(), strict=True))
        others["all of them"] = before, after
    found = []
    for seed in range(seeds):
        chosen = balanced_halves(cohort.scans, seed)
        values, inside = (np.where(chosen[:, None], *part) for part in zip(ill, healthy, strict=True))
        fitted = fit_baseline(
            values, inside, chosen.astype(np.int64), classes=len(CLASSES), imbalance="weights"
        )
        for run, (before, after) in others.items():
            logits = fitted.logits(np.concatenate([before, after]))
            positive = np.arange(len(logits)) >= len(before)
            score = float(auc(logits[:, 1] - logits[:, 0], positive, np.ones((1, len(logits))))[0])
            found.append(Unseen(run=run, scans=len(before), seed=seed, auc=score))
    return found


def _baseline_inputs(inputs: Sequence[NetworkInput]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    values, inside = zip(*map(baseline_values, inputs), strict=True)
    return np.stack(values), np.stack(inside)


def unseen_table(found: Sequence[Unseen]) -> list[str]:
    """Return what the baselines say about other people; nothing where there are none."""
    if not found:
        return []
    lines = [
        "## Other people",
        "",
        (
            f"Brains of other runs, each as it is and with {WANTED_LEVEL:.0%} loss, predicted by linear members that "
            "learnt from all of the cohort above and from nobody else: AUC, mean over the assignments, in brackets the "
            "lowest and the highest. Scanners, protocols and ages differ."
        ),
        "",
        "| run | scans | linear member |",
        "|---|---|---|",
    ]
    for run in dict.fromkeys(one.run for one in found):
        of = [one for one in found if one.run == run]
        values = [one.auc for one in of]
        lines.append(
            f"| {run} | {of[0].scans} | **{np.mean(values):.2f}** ({min(values):.2f} to {max(values):.2f}) |"
        )
    return [*lines, ""]


def said(results: Sequence[Result]) -> str:
    """Return the AUC of each model in one line."""
    return ", ".join(f"{r.model} {r.auc.value:.2f}" for r in results)


def table_of(
    results: Sequence[Result],
    seen: Sequence[Visibility],
    changes: Sequence[VolumeChange],
    unseen: Sequence[Unseen],
    maker: Maker,
) -> str:
    """Return the results as Markdown: mean over the assignments, and in brackets their range."""
    seeds = len({r.seed for r in results})
    lines = [
        "# Sensitivity to atrophy",
        "",
        (
            f"Known atrophy in {len(maker.cohort.scans)} real brains of adults, made by "
            f"`benchmarks/atrophy_sensitivity.py` with the generator `{maker.generator}`. "
            f"AUC of {FOLDS}-fold cross-validation by participant: mean over {seeds} assignments of people to classes, "
            "in brackets the lowest and the highest; then the 95 % bootstrap interval over participants, its "
            "bounds averaged over the assignments."
        ),
        "",
    ]
    lines += [*level_table(results), "", *control_table(results), "", verdict(results), ""]
    return "\n".join([*lines, *unseen_table(unseen), *visibility_table(seen), "", *volume_table(changes), ""])


def level_table(results: Sequence[Result]) -> list[str]:
    """Return one row for each level of hippocampal loss."""
    of = [r for r in results if r.label == "atrophy"]
    models = list(dict.fromkeys(r.model for r in of))
    lines = [
        "| hippocampal loss | ventricles | " + " | ".join(models) + " |",
        "|---|---|" + "---|" * len(models),
    ]
    for level in sorted({r.level for r in of}):
        growth = draw_growth(level)
        cells = [cell([r for r in of if r.level == level and r.model == model]) for model in models]
        lines.append(f"| {level:.0%} | +{growth:.0%} | " + " | ".join(cells) + " |")
    return lines


def visibility_table(seen: Sequence[Visibility]) -> list[str]:
    """Return what the mean intensity of each region shows, level by level."""
    regions = list(dict.fromkeys(one.region for one in seen))
    lines = [
        "## What there is to see",
        "",
        (
            "Nothing learnt: the mean intensity of a region of the template and of 10 mm around it. Its change by "
            'atrophy, in SD between the same people without, and the AUC of "darker is ill", every atrophied '
            "brain against every healthy one."
        ),
        "",
        "| hippocampal loss | " + " | ".join(regions) + " |",
        "|---|" + "---|" * len(regions),
    ]
    for level in sorted({one.level for one in seen if one.level > 0}):
        row = {one.region: one for one in seen if one.level == level}
        cells = [f"{row[r].change_sd:+.2f} SD, AUC {row[r].auc:.2f}" for r in regions]
        lines.append(f"| {level:.0%} | " + " | ".join(cells) + " |")
    return lines


def volume_table(changes: Sequence[VolumeChange]) -> list[str]:
    """Return what the measured volumes of hippocampi and ventricles show, level by level."""
    lines = [
        (
            "The volumes that the program's own stage measures of the deformed brains, left and right together, per "
            'cent of the intracranial volume: their mean change, and the AUC of "smaller is ill" for hippocampi and of '
            '"larger is ill" for ventricles.'
        ),
        "",
        "| hippocampal loss | " + " | ".join(STRUCTURES) + " |",
        "|---|" + "---|" * len(STRUCTURES),
    ]
    for level in sorted({one.level for one in changes if one.level > 0}):
        row = {one.structure: one for one in changes if one.level == level}
        cells = [
            f"{row[s].change:+.1f} %, AUC {row[s].auc:.2f}, {row[s].withheld} withheld" for s in STRUCTURES
        ]
        lines.append(f"| {level:.0%} | " + " | ".join(cells) + " |")
    return lines


def draw_growth(level: float) -> float:
    """Return by how much the ventricles grow on average at a level, over 1000 people."""
    return float(np.mean([draw_effect(level, seed).ventricles for seed in range(1000)])) - 1.0


def control_table(results: Sequence[Result]) -> list[str]:
    """Return the same for sex and for random labels."""
    models = list(dict.fromkeys(r.model for r in results))
    lines = ["| label | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for label, words in (
        ("sex", "sex, a real label"),
        (
            "random labels",
            f"random labels at {WANTED_LEVEL:.0%} loss, {RANDOM_DRAWS} permutations over the assignments",
        ),
    ):
        cells = [cell([r for r in results if r.label == label and r.model == model]) for model in models]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return lines


def cell(results: Sequence[Result]) -> str:
    """Return mean, range and mean interval of the AUC."""
    values = [r.auc.value for r in results]
    low, high = (np.mean([getattr(r.auc, side) for r in results]) for side in ("low", "high"))
    return f"**{np.mean(values):.2f}** ({min(values):.2f} to {max(values):.2f}); {low:.2f} to {high:.2f}"


def verdict(results: Sequence[Result]) -> str:
    """Say what of the wanted is reached by what is published."""
    lines = []
    for level, wanted in WANTED.items():
        at = [r for r in results if r.label == "atrophy" and r.level == level]
        means = {
            model: float(np.mean([r.auc.value for r in at if r.model == model]))
            for model in dict.fromkeys(r.model for r in at)
        }
        published = [mean for model, mean in means.items() if model.startswith(PUBLISHED)]
        members = [mean for model, mean in means.items() if not model.startswith((PUBLISHED, "stack"))]
        if not published:
            continue
        reached = "reached" if max(published) >= wanted else "missed"
        lag = max(members) - max(published)
        kept = "kept" if lag <= WANTED_LAG else "not kept"
        lines.append(
            f"- at {level:.0%} loss, wanted {wanted:.2f}, published {max(published):.3f}: {reached}; the best member "
            f"has {max(members):.3f} (at most {WANTED_LAG:.2f} above: {kept})"
        )
    return "\n".join(["AUC of what is published, mean over the assignments:", "", *lines])


def records_of(results: Sequence[Result]) -> list[dict[str, object]]:
    """Return the results as rows of the CSV."""
    return [
        {"label": r.label, "level": r.level, "seed": r.seed, "model": r.model}
        | {
            f"{measure}{side}": round(getattr(getattr(r, measure), attribute), 4)
            for measure in ("auc", "balanced_accuracy")
            for side, attribute in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        for r in results
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--weights", nargs="+", default=["random"], help="as --weights of brainstage train")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=["frozen"])
    parser.add_argument("--levels", nargs="+", type=float, default=list(LEVELS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--generator", choices=GENERATORS, default="flow", help="how atrophy is made")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for what is made of the deformed brains, outside the repository; of one version of the "
        "deformation",
    )
    parser.add_argument(
        "--unseen", nargs="*", type=Path, default=[], help="runs of other people, to be judged besides"
    )
    options = parser.parse_args()
    maker = Maker(
        cohort=read_cohort(options.run_dir, "sex", None), generator=options.generator, keep=options.keep
    )
    results, seen, changes = all_results(
        maker, options.weights, options.regimes, options.levels, options.seeds
    )
    unseen = unseen_results(maker, options.unseen, options.seeds) if options.unseen else []
    records = records_of(results)
    text = table_of(results, seen, changes, unseen, maker)
    print(text)
    name = "atrophy_sensitivity" if maker.generator == "flow" else f"atrophy_sensitivity_{maker.generator}"
    write_text(FOLDER / f"{name}.csv", csv_text(tuple(records[0]), records))
    write_text(FOLDER / f"{name}.md", text)


if __name__ == "__main__":
    main()
