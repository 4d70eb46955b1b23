"""How far every published number moves with the processor: the same scans under kernels of other machines.

Run it alone on the machine::

    .venv/bin/python benchmarks/processors.py SCAN_OR_BIDS_DIR ... [--most-of-a-directory 20] [--workers 2]

Each setting of :data:`SETTINGS` is a process of its own, with other kernels of linear algebra, of torch, of numpy and
of the C library, or with two threads. It takes every scan through the default chain, computes its features and local
volume, trains a model on those with a known sex, and predicts every scan with that model and with the one that the
first setting trained. The first setting is this machine as it is, with one thread, twice: what differs there is not
the processor. The table goes to ``benchmarks/processors.md``, every number to ``benchmarks/processors.csv``.

It ends with status 1 when a verdict changes between two settings.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from failures import scans_of
from numpy.typing import NDArray

from brainstage.pipeline.engine import THREAD_VARIABLES

FOLDER: Final = Path(__file__).parent
REFERENCE: Final = "this processor"
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    REFERENCE: {},
    "this processor, again": {},
    "OpenBLAS Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "OpenBLAS SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "OpenBLAS Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "all of an old one": {
        "OPENBLAS_CORETYPE": "Sandybridge",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX",
    },
    "two threads": {},
    "two threads, again": {},
}
"""Environment of each setting. numpy and the C library choose their kernels by the processor, too."""
THREADS: Final[Mapping[str, int]] = {"two threads": 2, "two threads, again": 2}
"""One everywhere else."""
LABEL: Final = "sex"
FOLDS: Final = 3
RESCANS: Final = (("sub-1003", "sub-1023"), ("sub-1004", "sub-1024"))
"""Of OASIS: the same person twice."""
MOST_OF_SD: Final = 0.1
MOST_OF_VENTRICLES: Final = 0.02
MOST_BETWEEN_SCANS: Final = 0.08
MOST_OF_PROBABILITY: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan of the benchmark; `label` is None where its sex is unknown."""

    name: str
    path: Path
    label: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What one setting made of all scans.

    Attributes
    ----------
    kernels : str
        That the libraries of the process say they run.
    verdicts : mapping
        Scan to the status and its reasons, or to the stage's error.
    measures : mapping
        Scan to the measures that are numbers.
    features, local_volumes : mapping
        Scan to its vectors.
    probabilities, own_probabilities : mapping
        Scan to what the model of the first setting says, and the one that was trained here.
    """

    kernels: str
    verdicts: Mapping[str, str]
    measures: Mapping[str, Mapping[str, float]]
    features: Mapping[str, NDArray[np.float32]]
    local_volumes: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, NDArray[np.float64]]
    own_probabilities: Mapping[str, NDArray[np.float64]]


def chosen_scans(places: Sequence[Path], most: int) -> list[Scan]:
    """Return the scans of the benchmark: of each directory the first ones, each with the sex in its table."""
    from brainstage.pipeline.bids import read_dataset

    chosen = []
    for place in places:
        sexes = {}
        if place.is_dir():
            sexes = {f"{place.name}/{s.key}": s.covariates.value("sex") for s in read_dataset(place).scans}
        found = [Scan(name=n, path=p, label=sexes.get(n)) for n, p in scans_of([place])]
        chosen += found[:most]
    return chosen


def outcome_here(scans: Sequence[Scan], model_dir: Path) -> Outcome:
    """Measure all scans in this process; train `model_dir` when it is not there yet."""
    from brainstage.models.features import FeatureExtractor
    from brainstage.models.kernels import kernels
    from brainstage.models.model_store import load_model, write_model
    from brainstage.models.weights import load_weights

    loaded = load_weights("random", seed=0)
    extractor = FeatureExtractor(loaded.network, loaded.source)
    taken = {scan.name: _taken(scan, extractor) for scan in scans}
    done = {name: one for name, one in taken.items() if "error" not in one}
    model = _trained([scan for scan in scans if scan.label and scan.name in done], done, extractor)
    if not (model_dir / "model.json").is_file():
        model_dir.mkdir(parents=True, exist_ok=True)
        write_model(model_dir, model)
    first = load_model(model_dir)
    return Outcome(
        kernels="; ".join(f"{name} {value}" for name, value in kernels().items()),
        verdicts={name: one.get("error") or one["verdict"] for name, one in taken.items()},
        measures={name: one["measures"] for name, one in done.items()},
        features={name: one["arrays"].features for name, one in done.items()},
        local_volumes={name: one["input"].local_volume for name, one in done.items()},
        probabilities={name: _predicted(first, name, one) for name, one in done.items()},
        own_probabilities={name: _predicted(model, name, one) for name, one in done.items()},
    )


def _taken(scan: Scan, extractor: Any) -> dict[str, Any]:  # noqa: ANN401 - imported late
    from brainstage.models.baseline import baseline_values
    from brainstage.pipeline.config import Config
    from brainstage.pipeline.errors import BrainstageError
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.network_grid import network_input
    from brainstage.preprocessing.quality import assess
    from brainstage.preprocessing.registration import register
    from brainstage.workflows.learning.features import TrainingArrays, mask_only

    config = Config()
    try:
        stripped = extract_brain(ingest(scan.path, config.ingest), config.brain_extraction)
        registered = register(
            normalise(correct_bias(stripped, config.bias_field), config.intensity), config.registration
        )
        report = assess(registered)
    except BrainstageError as error:
        return {"error": f"failed: {type(error).__name__}"}
    seen = network_input(registered.brain, registered.brain_mask, config.preprocessing.network_grid)
    values, inside = baseline_values(seen)
    numbers = {n: float(v) for n, v in report.measures.items() if isinstance(v, float | int)}
    numbers["brain mask, voxels"] = float(stripped.brain_mask.data.sum())
    print(f"{scan.name}: {report.verdict.status}", flush=True)
    return {
        "verdict": " ".join((str(report.verdict.status), *report.verdict.reasons)),
        "measures": numbers,
        "input": seen,
        "arrays": TrainingArrays(
            features=extractor.features(seen),
            mask_features=extractor.features(mask_only(seen)),
            values=values,
            inside=inside,
            input_key=scan.name,
        ),
    }


def _trained(scans: Sequence[Scan], done: Mapping[str, Any], extractor: Any) -> Any:  # noqa: ANN401 - imported late
    from brainstage.models.splits import fold_of_scans
    from brainstage.pipeline.config import Config
    from brainstage.pipeline.derivatives import ScanFiles
    from brainstage.pipeline.entities import BidsEntities
    from brainstage.pipeline.manifest import ManifestRow
    from brainstage.workflows.learning.fitting import fit
    from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan
    from brainstage.workflows.learning.training_options import TrainOptions
    from brainstage.workflows.stages import preprocessing_content, preprocessing_id

    content = preprocessing_content(Config())
    people = [scan.name.replace("/", "").replace("-", "").replace("_", "") for scan in scans]
    cohort = Cohort(
        classes=("F", "M"),
        scans=tuple(
            LabelledScan(
                row=ManifestRow(
                    participant_id=f"sub-{who}",
                    session_id="",
                    run_id="",
                    t1w_path=scan.name,
                    sha256=scan.name,
                ),
                files=ScanFiles(out_dir=Path(), entities=BidsEntities(subject=who), resolution="1"),
                label=str(scan.label),
            )
            for scan, who in zip(scans, people, strict=True)
        ),
        test_scans=(),
        left_out={},
        preprocessing_id=preprocessing_id(content),
        preprocessing_content=content,
    )
    folds = fold_of_scans(cohort.labels, cohort.participants, folds=FOLDS, seed=0, about=cohort.about)
    options = TrainOptions(label_column=LABEL, weights="random", folds=FOLDS)
    model, _, _ = fit(extractor, [done[scan.name]["arrays"] for scan in scans], cohort, folds, options)
    return model


def _predicted(model: Any, name: str, one: Mapping[str, Any]) -> NDArray[np.float64]:  # noqa: ANN401 - imported late
    prediction = model.predict(one["arrays"].features, one["input"], name, {})
    return np.array([*prediction.probabilities.values(), prediction.ood_score])


def outcome_under(setting: str, places: Sequence[Path], most: int, folder: Path) -> Outcome:
    """Measure all scans in a fresh process under a setting."""
    varied = {name for variables in SETTINGS.values() for name in variables}
    out = folder / f"{list(SETTINGS).index(setting)}.npz"
    if not out.is_file():
        # Read by the libraries when they are first imported.
        threads = dict.fromkeys(THREAD_VARIABLES, str(THREADS.get(setting, 1)))
        clean = {name: value for name, value in os.environ.items() if name not in varied}
        command = [sys.executable, __file__, *map(str, places), "--most-of-a-directory", str(most)]
        command += ["--measure", str(out), "--model", str(folder / "model")]
        with (folder / f"{out.stem}.log").open("w") as log:
            subprocess.run(
                command, check=True, env=clean | threads | SETTINGS[setting], stdout=log, stderr=log
            )
    print(f"{setting}: done", flush=True)
    with np.load(out, allow_pickle=True) as stored:  # written by ourselves, a moment ago
        return Outcome(**stored["outcome"].item())


def sd_over(scans: Iterable[str], outcome: Outcome, measure: str) -> float:
    """Return a measure's standard deviation over the scans, of which none was harmed."""
    values = [outcome.measures[s][measure] for s in scans if measure in outcome.measures[s]]
    return float(np.std(values)) if len(values) > 1 else 0.0


def table_of(outcomes: Mapping[str, Outcome], bounded: Sequence[str]) -> tuple[str, bool]:
    """Return the result as Markdown, and whether no verdict changes."""
    reference = outcomes[REFERENCE]
    others = {name: one for name, one in outcomes.items() if name != REFERENCE}
    scans = list(reference.measures)
    changed = sorted(
        f"| {name} | {scan} | {reference.verdicts[scan]} | {one.verdicts[scan]} |"
        for name, one in others.items()
        for scan in reference.verdicts
        if one.verdicts[scan] != reference.verdicts[scan]
    )
    lines = [
        "# Processors",
        "",
        (
            f"{len(reference.verdicts)} scans under {len(outcomes)} settings, each a process of its own; the default "
            "chain, features of a random resnet10, one training and its predictions. Made by "
            "`benchmarks/processors.py`; every number is in `processors.csv`. All differences are from the first "
            "setting, one thread and the kernels that this processor chooses."
        ),
        "",
        "| setting | kernels | verdicts that change |",
        "|---|---|---|",
    ]
    for name, one in outcomes.items():
        count = sum(line.startswith(f"| {name} |") for line in changed)
        lines.append(f"| {name} | {one.kernels} | {'' if name == REFERENCE else count} |")
    if changed:
        lines += ["", "| setting | scan | first setting | here |", "|---|---|---|---|", *changed]
    lines += ["", "## Measures", "", *_measure_lines(reference, others, scans, bounded)]
    lines += ["", "## Ventricles", "", *_ventricle_lines(outcomes, scans)]
    lines += ["", "## Local volume, features, probabilities", "", *_vector_lines(reference, others, scans)]
    return "\n".join([*lines, ""]), not changed


def _measure_lines(
    reference: Outcome, others: Mapping[str, Outcome], scans: Sequence[str], bounded: Sequence[str]
) -> list[str]:
    names = list(dict.fromkeys(name for scan in scans for name in reference.measures[scan]))
    lines = [
        f"Goal: a measure with a bound moves by at most {MOST_OF_SD:g} of its SD over these unharmed scans.",
        "",
        "| measure | bound | SD | largest change | in SD | where | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        moves = [
            (abs(one.measures[scan].get(name, np.nan) - reference.measures[scan][name]), scan, setting)
            for setting, one in others.items()
            for scan in scans
            if name in reference.measures[scan] and scan in one.measures
        ]
        largest, scan, setting = max(moves, key=lambda move: np.inf if np.isnan(move[0]) else move[0])
        sd = sd_over(scans, reference, name)
        relative = largest / sd if sd else 0.0 if largest == 0 else np.inf
        goal = "" if name not in bounded else "yes" if relative <= MOST_OF_SD else "**no**"
        where = f"{scan}, {setting}" if largest else ""
        lines.append(
            f"| `{name}` | {'yes' if name in bounded else ''} | {sd:.3g} | {largest:.2g} | {relative:.3f} "
            f"| {where} | {goal} |"
        )
    return lines


def _ventricle_lines(outcomes: Mapping[str, Outcome], scans: Sequence[str]) -> list[str]:
    reference = outcomes[REFERENCE]
    pairs = [
        (first, second)
        for first in scans
        for second in scans
        if any(first.endswith(a) and second.endswith(b) for a, b in RESCANS)
    ]
    lines = [
        (
            f"Goals: `ventricle_share` moves by at most {MOST_OF_VENTRICLES:.0%} between settings, and by at most "
            f"{MOST_BETWEEN_SCANS:.0%} between two scans of one person under every setting."
        ),
        "",
        "| setting | largest change | scan | " + " | ".join(" and ".join(pair) for pair in pairs) + " |",
        "|---" * (3 + len(pairs)) + "|",
    ]
    for setting, one in outcomes.items():
        share = {s: one.measures[s]["ventricle_share"] for s in scans if "ventricle_share" in one.measures[s]}
        change, scan = max(
            (abs(v / reference.measures[s]["ventricle_share"] - 1), s) for s, v in share.items()
        )
        apart = [f"{abs(share[a] - share[b]) / ((share[a] + share[b]) / 2):.1%}" for a, b in pairs]
        lines.append(f"| {setting} | {change:.2%} | {scan if change else ''} | {' | '.join(apart)} |")
    return lines


def _vector_lines(reference: Outcome, others: Mapping[str, Outcome], scans: Sequence[str]) -> list[str]:
    lines = [
        (
            "Largest change over scans. Local volume: of its logarithm, the mean over voxels and the largest. "
            "Features: length of the difference over the length of the vector. Probabilities of the model that the "
            f"first setting trained (goal: {MOST_OF_PROBABILITY:g}), its score of novelty, and probabilities of the "
            "model trained under each setting."
        ),
        "",
        "| setting | local volume, mean | largest | features | probabilities | novelty | of its own model |",
        "|---" * 7 + "|",
    ]
    for setting, one in others.items():
        volumes = [np.abs(one.local_volumes[s] - reference.local_volumes[s]) for s in scans]
        features = [
            np.linalg.norm(one.features[s] - reference.features[s]) / np.linalg.norm(reference.features[s])
            for s in scans
        ]
        moved = np.array([np.abs(one.probabilities[s] - reference.probabilities[s]) for s in scans])
        own = np.array([np.abs(one.own_probabilities[s] - reference.own_probabilities[s]) for s in scans])
        lines.append(
            f"| {setting} | {max(v.mean() for v in volumes):.2g} | {max(v.max() for v in volumes):.2g} "
            f"| {max(features):.2g} | {moved[:, :-1].max():.2g} | {moved[:, -1].max():.2g} | {own[:, :-1].max():.2g} |"
        )
    return lines


def write_csv(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Write every measure, probability and verdict, one row for each setting and scan."""
    names = list(
        dict.fromkeys(n for one in outcomes.values() for found in one.measures.values() for n in found)
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["setting", "scan", "verdict", *names, "p_F", "p_M"])
        for setting, one in outcomes.items():
            for scan, verdict in one.verdicts.items():
                measures = one.measures.get(scan, {})
                said = [f"{p:.6f}" for p in one.probabilities.get(scan, [])[:-1]]
                rows.writerow([setting, scan, verdict, *(measures.get(n, "") for n in names), *said])


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("places", type=Path, nargs="+")
    parser.add_argument("--most-of-a-directory", type=int, default=20)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--workers", type=int, default=2, help="settings with one thread at a time")
    parser.add_argument(
        "--keep", type=Path, help="folder outside the repository; finished settings are read from it"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        scans = chosen_scans(options.places, options.most_of_a_directory)
        found = outcome_here(scans, options.model)
        np.savez(options.measure, outcome=np.array(vars(found), dtype=object))
        return 0
    from brainstage.preprocessing.quality import MEASURES

    with tempfile.TemporaryDirectory(prefix="brainstage-processors-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def under(setting: str) -> Outcome:
            return outcome_under(setting, options.places, options.most_of_a_directory, folder)

        outcomes = {REFERENCE: under(REFERENCE)}  # first: it trains the model of all
        others = [name for name in options.settings if name != REFERENCE and name not in THREADS]
        with ThreadPoolExecutor(options.workers) as pool:
            outcomes |= zip(others, pool.map(under, others), strict=True)
        outcomes |= {name: under(name) for name in THREADS if name in options.settings}
    table, same = table_of(outcomes, [measure.name for measure in MEASURES if measure.bounds])
    print(table)
    (FOLDER / "processors.md").write_text(table, encoding="utf-8")
    write_csv(outcomes, FOLDER / "processors.csv")
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
