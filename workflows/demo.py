"""What ``brainstage demo`` runs: the whole program, on a synthetic cohort."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline.errors import ExitCode
from brainstage.workflows.synthetic.cohort import Defect, Say, demo_cohort, usable_processors, write_demo_bids

PRETRAINED: Final = "med3d-resnet10"
"""The weights the demonstration takes when they were fetched before."""


def run_demo(directory: Path, say: Say) -> int:
    """Write the cohort, preprocess it, train, predict, and say what came of it and where to look.

    Parameters
    ----------
    directory : Path
        Gets ``bids/``, ``derivatives/`` and ``model/``.
    say : callable
        Gets one line each.

    Returns
    -------
    int
        0 when every step worked and exactly the damaged file failed; 1 otherwise, after a line that says why.
    """
    from brainstage.workflows.cli import main

    started = time.monotonic()
    bids_dir, out_dir, model_dir = (directory / name for name in ("bids", "derivatives", "model"))
    write_demo_bids(bids_dir, say)
    run = ["run", str(bids_dir), str(out_dir), "--nprocs", str(usable_processors())]
    steps = (
        ("preprocessing every scan", run, ExitCode.SOME_SCAN_FAILED),
        (
            "training with cross-validation by participant",
            ["train", str(out_dir), str(model_dir), "--weights", _weights_choice(say)],
            ExitCode.DONE,
        ),
        ("predicting with the model", [*run, "--model", str(model_dir)], ExitCode.SOME_SCAN_FAILED),
    )
    for words, arguments, expected in steps:
        say(f"{words}: brainstage {' '.join(arguments)}")
        code = main(arguments)
        if code != expected:
            say(f"the demonstration stops: exit code {code} instead of {int(expected)}")
            return 1
    with (out_dir / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    surprise = unexpected_failures(rows)
    if surprise:
        say(f"the demonstration went wrong: {surprise}")
        return 1
    for line in closing_words(directory, model_dir, out_dir, rows):
        say(line)
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def unexpected_failures(rows: Sequence[Mapping[str, str]]) -> str:
    """Say in what the failed rows of ``predictions.csv`` differ from the damaged files; empty when in nothing."""
    failed = {row["t1w_path"] for row in rows if row["prediction_status"] == "failed"}
    damaged = {scan.t1w_path for scan in demo_cohort() if scan.defect is Defect.TRUNCATED}
    faults = []
    if failed - damaged:
        faults.append(f"these failed without being damaged: {', '.join(sorted(failed - damaged))}")
    if damaged - failed:
        faults.append(f"these are damaged, yet did not fail: {', '.join(sorted(damaged - failed))}")
    if len(rows) != len(demo_cohort()):
        faults.append(f"predictions.csv has {len(rows)} rows for {len(demo_cohort())} scans")
    return "; ".join(faults)


def closing_words(
    directory: Path, model_dir: Path, out_dir: Path, rows: Sequence[Mapping[str, str]]
) -> list[str]:
    """Return the lines that the demonstration ends with: predictions, held-out numbers, and where to look.

    Parameters
    ----------
    directory, model_dir, out_dir : Path
    rows : sequence of mapping
        Of ``predictions.csv``.
    """
    content: Mapping[str, Any] = json.loads(
        (model_dir / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    )
    return [
        f"predictions: {_counted(row['prediction_status'] for row in rows)}",
        f"prediction sets: {_counted(_set_words(row['prediction_set']) for row in rows if row['p_AD'])}",
        f"AUC of AD against CN on held-out participants: {auc_of_ad(rows):.2f} (chance is 0.50)",
        "balanced accuracy of the three classes on held-out participants (chance is 0.33):",
        f"  published        {held_out_words(content['cross_validation'])}",
        *(f"  {name:<15}  {held_out_words(found)}" for name, found in content["members"].items()),
        f"  random labels    {held_out_words(content['control_random_labels']['predictor'])}",
        "the cohort is synthetic: the numbers show that the program works, and nothing about disease",
        "each row of predictions.csv comes from the fold of the model that had not seen its scan",
        "look at:",
        *(f"  {words:<28} {place}" for words, place in _places(model_dir, out_dir)),
        f"remove {directory} when you have seen enough",
    ]


def auc_of_ad(rows: Sequence[Mapping[str, str]]) -> float:
    """Return how often a scan of AD is more like AD, by ``p_AD / (p_AD + p_CN)``, than a scan of CN.

    Parameters
    ----------
    rows : sequence of mapping
        Of ``predictions.csv``; those without probabilities do not count.
    """
    known = {
        name: [
            float(row["p_AD"]) / (float(row["p_AD"]) + float(row["p_CN"]))
            for row in rows
            if row["label"] == name and row["p_AD"]
        ]
        for name in ("AD", "CN")
    }
    pairs = [(ill > well) + 0.5 * (ill == well) for ill in known["AD"] for well in known["CN"]]
    return sum(pairs) / len(pairs)


def _places(model_dir: Path, out_dir: Path) -> list[tuple[str, Path]]:
    """Return what is worth looking at, in words, and where it is: one report of each kind."""
    cohort = demo_cohort()
    kinds = (
        (
            "AD, seen twice",
            next(scan for scan in cohort if scan.participant.diagnosis == "AD" and scan.months),
        ),
        ("CN", next(scan for scan in cohort if scan.participant.diagnosis == "CN")),
        ("damaged on purpose", next(scan for scan in cohort if scan.defect is Defect.TRUNCATED)),
        ("another contrast on purpose", next(s for s in cohort if s.defect is Defect.WRONG_CONTRAST)),
    )
    return [
        ("the cohort", out_dir / "cohort.html"),
        *((words, out_dir / f"{scan.entities.key}.html") for words, scan in kinds),
        ("every prediction", out_dir / "predictions.csv"),
        ("what the model is worth", model_dir / "MODEL_CARD.md"),
    ]


def _set_words(prediction_set: str) -> str:
    size = len([name for name in prediction_set.split(";") if name])
    return ("of no class", "of one class", "of two classes", "of all three")[size]


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{number} {word}" for word, number in Counter(words).most_common())


def held_out_words(evaluation: Mapping[str, Any]) -> str:
    """Return the balanced accuracy of one evaluation in ``metrics.json``, with its interval."""
    measure: Mapping[str, float | None] = evaluation["measures"]["balanced_accuracy"]
    value, low, high = (
        "undefined" if measure[name] is None else f"{measure[name]:.2f}" for name in ("value", "low", "high")
    )
    return f"{value} (95 % interval {low} to {high})"


def _weights_choice(say: Say) -> str:
    """Take the pretrained weights when they were fetched before, and say which it is."""
    from brainstage.models.weights import cache_directory

    if (cache_directory() / f"{PRETRAINED}.safetensors").is_file():
        say(f"using the weights {PRETRAINED} from {cache_directory()}")
        return PRETRAINED
    say(
        f"{PRETRAINED} was not fetched, so the network has random weights: it is not pretrained "
        f"(brainstage fetch {PRETRAINED} brings the weights)"
    )
    return "random"
