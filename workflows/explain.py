"""``brainstage explain``: what each member of a model rests on in each scan of a finished run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from brainstage.models.choices import Member
from brainstage.models.covariates import text_of
from brainstage.models.explanation import EXPLANATION_VERSION, Method
from brainstage.models.features import choose_device
from brainstage.models.model_store import NumberModel, StoredModel, load_model
from brainstage.models.predictor import mean_weights
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, ScanFiles, sidecar_of
from brainstage.pipeline.entities import bare_label
from brainstage.pipeline.errors import (
    BrainstageError,
    ExitCode,
    InputMissingError,
    NothingSelectedError,
    OutputError,
    UsageError,
    attributed,
)
from brainstage.pipeline.files import (
    sha256_of_file,
    sha256_of_json,
    write_bytes,
    write_json,
)
from brainstage.pipeline.lease import held
from brainstage.pipeline.manifest import ManifestRow
from brainstage.pipeline.nifti import read_mask, read_volume, write_volume
from brainstage.pipeline.records import Prediction
from brainstage.pipeline.stage import (
    Marker,
    describe_outputs,
    marker_path,
    outputs_intact,
    read_marker,
    write_marker,
)
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.regions import Atlas, coarse_atlas, read_atlas, region_shares, region_sums
from brainstage.preprocessing.transforms import to_template_transform
from brainstage.workflows.evidence import (
    LOG_ODDS,
    MAPS,
    VOLUMES_METHOD,
    Evidence,
    explanation_stage,
    remove_evidence,
)
from brainstage.workflows.evidence_maps import (
    EvidenceMap,
    carried,
    linear_maps,
    native_transform,
    network_maps,
    share_outside,
    transform_file,
)
from brainstage.workflows.gate import decide
from brainstage.workflows.learning.features import network_input_key, read_network_input
from brainstage.workflows.learning.labelled_cohort import files_of_row, read_finished_run
from brainstage.workflows.output_directory import last_sha256, own_preprocessing_id
from brainstage.workflows.participant import lease_path
from brainstage.workflows.reported import read_reported, reported_outcome
from brainstage.workflows.reporting.figures import evidence_figure, signed_evidence_figure
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report

FIGURE_VERSION: Final = "2"
ExplainMethod = Literal["auto", "linear", "gradcam", "occlusion"]
EXPLAINS: Final[Mapping[Member, str]] = {"linear": "linear", "volumes": VOLUMES_METHOD, "network": "gradcam"}
"""Member to the method that explains it where nothing else is asked for."""
NO_PART: Final = (
    "This member has no part in the published probabilities: the map is about its own answer alone."
)
EXPLAINED: Final = "explained"
KEPT: Final = "explained already"
WITHHELD: Final = "not explained: the prediction is withheld by quality control"
NO_PREDICTION: Final = "not explained: the last run made no prediction of this model for it"
OTHERWISE: Final = "not explained: preprocessed otherwise than the model's scans"
BUSY: Final = "not explained: another run is at it"


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """The options of ``brainstage explain``.

    Attributes
    ----------
    method : str
        ``linear``, ``gradcam`` or ``occlusion``; or ``auto`` for what explains the members that have a weight.
    atlas : Path or None
        Labels in template space; None for the built-in regions.
    participants : tuple of str
        Labels, with or without ``sub-``; empty for all.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    """

    method: ExplainMethod = "auto"
    atlas: Path | None = None
    participants: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What all scans share."""

    model: StoredModel
    atlas: Atlas
    method: ExplainMethod
    context: RunContext


def explain(model_dir: Path, out_dir: Path, options: ExplainOptions, say: Callable[[str], None]) -> ExitCode:
    """Map what every prediction that may be shown rests on, and write the scans' reports again.

    Parameters
    ----------
    model_dir : Path
    out_dir : Path
        The output directory of ``brainstage run --model``.
    options : ExplainOptions
    say : callable
        Gets one sentence for each scan.

    Returns
    -------
    ExitCode
        ``DONE``, or ``SOME_SCAN_FAILED``; one bad scan does not stop the others.

    Raises
    ------
    BrainstageError
        For anything that concerns all scans: no model, no run, another preprocessing, an atlas that does not fit.
    """
    model = load_model(model_dir, str(choose_device(options.device)))
    if isinstance(model, NumberModel):
        raise UsageError(
            f"brainstage explain maps what speaks for a class, and {model_dir.name} predicts a number "
            f"({model.column}): its reports say what each member finds, and its card what the members are worth"
        )
    rows, preprocessing = read_finished_run(out_dir, model.description.preprocessing_id)
    model.require_preprocessing(str(preprocessing["id"]), preprocessing["content"])
    chosen = _selected(rows, options.participants)
    atlas = read_atlas(options.atlas) if options.atlas else coarse_atlas()
    task = _Task(
        model=model,
        atlas=atlas,
        method=options.method,
        context=RunContext(
            out_dir=out_dir,
            config=Config(),
            started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        ),
    )
    resolution = RESOLUTION_LABELS[preprocessing["content"]["registration"]["resolution_mm"]]
    told: Counter[str] = Counter()
    for row in chosen:
        files = files_of_row(row, out_dir, resolution)
        if own_preprocessing_id(files) not in (None, preprocessing["id"]):
            told[OTHERWISE] += 1
            say(f"{files.key}: {OTHERWISE}")
            continue
        started = time.perf_counter()
        try:
            with attributed(files.key, "explanation"):
                result, methods = _explained(task, row, files)
        except OutputError:
            raise
        except (BrainstageError, RuntimeError, MemoryError) as error:  # torch raises the second on a full GPU
            message = error.message if isinstance(error, BrainstageError) else str(error)
            say(f"{files.key}: failed: {message or type(error).__name__}")
            told["failed"] += 1
            continue
        told[result] += 1
        took = (
            f", by {' and '.join(methods)}, {time.perf_counter() - started:.1f} s"
            if result == EXPLAINED
            else ""
        )
        say(f"{files.key}: {result}{took}")
    if set(told) <= {NO_PREDICTION, OTHERWISE}:
        raise InputMissingError(
            f"no scan of {out_dir.name} has a prediction of model {model.model_id}: run 'brainstage run --model' with "
            "it first"
        )
    say(f"{len(chosen)} scans: " + "; ".join(f"{count} {word}" for word, count in told.most_common()))
    return ExitCode.SOME_SCAN_FAILED if told["failed"] else ExitCode.DONE


def _selected(rows: Sequence[ManifestRow], participants: Sequence[str]) -> list[ManifestRow]:
    wanted = {f"sub-{bare_label(label, 'sub')}" for label in participants}
    present = {row.participant_id for row in rows}
    if wanted - present:
        shown = ", ".join(sorted(present)[:8]) + (" ..." if len(present) > 8 else "")
        raise NothingSelectedError(
            f"the run has no scan of {', '.join(sorted(wanted - present))}; its participants are {shown or 'none'}"
        )
    return [row for row in rows if not wanted or row.participant_id in wanted]


def _explained(task: _Task, row: ManifestRow, files: ScanFiles) -> tuple[str, tuple[str, ...]]:
    """Explain a scan and write its report again; return what became of it, and by which methods."""
    with held(lease_path(files)) as lease:
        if lease is None:
            return BUSY, ()
        known = read_reported(files.entities, row.t1w_path, task.context)
        if known is None:
            return NO_PREDICTION, ()
        scan, context = known
        outcome = reported_outcome(scan, context) if context.model_id == task.model.model_id else None
        prediction = outcome.prediction if outcome else None
        if outcome is None or not isinstance(prediction, Prediction):
            return NO_PREDICTION, ()
        if not decide(outcome).shows_probabilities:
            remove_evidence(files)
            write_report(outcome, context, changed=False)
            return WITHHELD, ()
        folds = task.model.folds_for(last_sha256(files) or row.sha256)
        about = _About(
            files=files,
            prediction=prediction,
            folds=folds,
            weights=mean_weights([task.model.description.predictor.folds[fold] for fold in folds]),
            site=text_of({"site": scan.covariates.site}, "site"),
        )
        methods = _methods(task.method, about.weights)
        made = [method for method in methods if _made(task, about, method)]
        lease.require()
        write_report(outcome, context, changed=bool(made))
        return (EXPLAINED if made else KEPT), tuple(made)


@dataclass(frozen=True, kw_only=True, eq=False)
class _About:
    """What is explained of one scan.

    Attributes
    ----------
    folds : tuple of int
        Those that answered.
    weights : mapping
        Member to its mean weight over them.
    site : str or None
        Where the scan was taken.
    """

    files: ScanFiles
    prediction: Prediction
    folds: tuple[int, ...]
    weights: Mapping[Member, float]
    site: str | None


def _methods(asked: ExplainMethod, weights: Mapping[Member, float]) -> tuple[str, ...]:
    """Return what explains the published probabilities, or what was asked for."""
    if asked != "auto":
        return (asked,)
    return tuple(method for member, method in EXPLAINS.items() if weights.get(member))


def _made(task: _Task, about: _About, method: str) -> bool:
    """Make an explanation, unless the same one is there already."""
    marker = _marker(task, about, method)
    earlier = read_marker(about.files, marker.stage)
    if earlier and earlier.key == marker.key and outputs_intact(earlier, about.files):
        return False
    started = time.perf_counter()
    marker_path(about.files, marker.stage).unlink(missing_ok=True)
    if method == VOLUMES_METHOD:
        written = [write_json(about.files.volume_evidence, _volume_evidence(task, about))]
    else:
        written = _write_maps(task, about, method)
    seconds = time.perf_counter() - started
    write_marker(
        about.files, replace(marker, outputs=describe_outputs(written, about.files), seconds=seconds)
    )
    return True


def _marker(task: _Task, about: _About, method: str) -> Marker:
    """Return the marker of an explanation that is still to be made: its key holds all that changes it."""
    files = about.files
    parameters: dict[str, Any] = {
        "model_id": task.model.model_id,
        "method": method,
        "class": about.prediction.predicted_label,
        "folds": list(about.folds),
    }
    inputs: dict[str, str] = {}
    if method == VOLUMES_METHOD:
        inputs["contributions"] = sha256_of_json(about.prediction.volume_contributions)
    else:
        parameters["atlas"] = task.atlas.name
        inputs = {
            "network_input": network_input_key(files, task.model.network_grid),
            "native_mask": sha256_of_file(files.native_mask),
            "transform": sha256_of_file(transform_file(files)),
            "atlas": task.atlas.sha256,
        }
    if task.model.harmonisations:
        parameters["site"] = about.site
    version = f"{EXPLANATION_VERSION}.{FIGURE_VERSION}"
    return Marker(
        stage=explanation_stage(method),
        key=sha256_of_json({"version": version, "parameters": parameters, "inputs": inputs}),
        version=version,
        parameters=parameters,
        inputs=inputs,
        outputs=(),
    )


def _volume_evidence(task: _Task, about: _About) -> dict[str, Any]:
    """Return what is kept of the volumes' part in a prediction."""
    added, label = about.prediction.volume_contributions, about.prediction.predicted_label
    return {
        "Description": f"What each volume adds to {label}, compared with what is usual at this age and sex in the "
        "training scans; above 0 for it, below 0 against it. For research, not for diagnosis.",
        "Method": VOLUMES_METHOD,
        "Member": "volumes",
        "MemberWeight": about.weights["volumes"],
        "Class": label,
        "ModelId": task.model.model_id,
        "Folds": list(about.folds),
        "Units": LOG_ODDS,
        "UnitsDescription": _units_in_words(label, has_part=True),
        "Contributions": added,
        "Sum": sum(added.values()),
    }


def _units_in_words(label: str, *, has_part: bool) -> str:
    whose = "the published probability" if has_part else "this member's own calibrated probability"
    return f"added to the natural logarithm of {whose} of {label}, relative to the geometric mean over the classes"


def _write_maps(task: _Task, about: _About, method: str) -> list[Path]:
    """Compute the maps of a method and write everything that is kept of them; return the files."""
    model, files, label = task.model, about.files, about.prediction.predicted_label
    network_input = read_network_input(files, model.network_grid)
    if method == "linear":
        maps = linear_maps(model, network_input, label, about.folds, about.site)
    else:
        by_network: Method = "occlusion" if method == "occlusion" else "gradcam"
        maps = network_maps(model, network_input, label, about.folds, by_network, about.site)
    brain, brain_mask = read_volume(files.template_t1w), read_mask(files.template_mask)
    native_mask = read_mask(files.native_mask)
    to_native = native_transform(files)
    everywhere = [carried(one.parts, brain.grid, to_template_transform(np.eye(4)), one.name) for one in maps]
    inside = [one.with_data(np.where(brain_mask.data, one.data, np.float32(0.0))) for one in everywhere]
    highest = max(float(np.abs(one.data).max(initial=0.0)) for one in inside)
    written: list[Path] = []
    for one, whole, shown in zip(maps, everywhere, inside, strict=True):
        exact = MAPS[one.name].exact
        evidence = Evidence(
            method=one.name,
            label=label,
            model_id=model.model_id,
            units=one.units,
            atlas=task.atlas.name,
            regions=() if exact else region_shares(shown, brain_mask.data, task.atlas),
            sums=region_sums(shown, brain_mask.data, task.atlas) if exact else (),
            total=one.total,
            weight=about.weights[MAPS[one.name].member],
            share_outside_brain=share_outside(whole, shown, one.name),
            learnt=method == "linear" or model.description.backbone.kind != "random" or model.tuned,
            template_sha256=sha256_of_file(files.template_t1w),
            picture=signed_evidence_figure(brain, brain_mask, shown, one.units, highest)
            if exact
            else evidence_figure(brain, brain_mask, shown, one.units),
        )
        native = carried(one.parts, native_mask.grid, to_native, one.name)
        native = native.with_data(np.where(native_mask.data, native.data, np.float32(0.0)))
        written += _write_map(task, about, one, evidence, shown, native)
    return written


def _write_map(
    task: _Task, about: _About, one: EvidenceMap, evidence: Evidence, template: Volume, native: Volume
) -> list[Path]:
    files, exact = about.files, MAPS[one.name].exact
    words = [one.description(evidence.label), *(() if evidence.weight else (NO_PART,))]
    sidecar = {
        "Description": f"{' '.join(words)} 0 outside the brain mask. For research, not for diagnosis.",
        "Method": evidence.kind.method,
        "Member": evidence.kind.member,
        "MemberWeight": evidence.weight,
        "Class": evidence.label,
        "ModelId": task.model.model_id,
        "Folds": list(about.folds),
        "Units": one.units,
    }
    if exact:
        sidecar["UnitsDescription"] = (
            f"{_units_in_words(evidence.label, has_part=bool(evidence.weight))}, by each ml of template space"
        )
        sidecar["Sum"] = one.total
    written = []
    for volume, is_native in ((template, False), (native, True)):
        path = write_volume(files.evidence_map(one.name, native=is_native), volume)
        written += [path, write_json(sidecar_of(path), sidecar)]
    written.append(write_json(files.evidence_regions(one.name), evidence.table))
    written.append(write_bytes(files.figure(one.name), evidence.picture))
    return written
