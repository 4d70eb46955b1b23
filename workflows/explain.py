"""``brainstage explain``: where a model found what it says about each scan of a finished run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from brainstage.models.explanation import EXPLANATION_VERSION, UNITS, Method, explanation_of
from brainstage.models.features import choose_device
from brainstage.models.model_store import StoredModel, load_model
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, ScanFiles, sidecar_of
from brainstage.pipeline.entities import bare_label
from brainstage.pipeline.errors import (
    BrainstageError,
    ExitCode,
    InputMissingError,
    NothingSelectedError,
    OutputError,
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
from brainstage.pipeline.volume import Grid, Volume
from brainstage.preprocessing.regions import Atlas, coarse_atlas, read_atlas, region_shares
from brainstage.preprocessing.transforms import (
    apply_transform,
    read_affine,
    read_transform,
    to_native_transform,
    to_template_transform,
)
from brainstage.workflows.evidence import Evidence, explanation_stage, remove_evidence
from brainstage.workflows.gate import decide
from brainstage.workflows.learning.features import network_input_key, read_network_input
from brainstage.workflows.learning.labelled_cohort import files_of_row, read_finished_run
from brainstage.workflows.output_directory import last_sha256, own_preprocessing_id
from brainstage.workflows.participant import lease_path
from brainstage.workflows.reported import read_reported, reported_outcome
from brainstage.workflows.reporting.figures import evidence_figure
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report

FIGURE_VERSION: Final = "1"
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
        ``gradcam`` or ``occlusion``.
    atlas : Path or None
        Labels in template space; None for the built-in regions.
    participants : tuple of str
        Labels, with or without ``sub-``; empty for all.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    """

    method: Method = "gradcam"
    atlas: Path | None = None
    participants: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What all scans share."""

    model: StoredModel
    atlas: Atlas
    method: Method
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
                result = _explained(task, row, files)
        except OutputError:
            raise
        except (BrainstageError, RuntimeError, MemoryError) as error:  # torch raises the second on a full GPU
            message = error.message if isinstance(error, BrainstageError) else str(error)
            say(f"{files.key}: failed: {message or type(error).__name__}")
            told["failed"] += 1
            continue
        told[result] += 1
        took = f", {time.perf_counter() - started:.1f} s" if result == EXPLAINED else ""
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


def _explained(task: _Task, row: ManifestRow, files: ScanFiles) -> str:
    """Explain a scan and write its report again; return what became of it."""
    with held(lease_path(files)) as lease:
        if lease is None:
            return BUSY
        known = read_reported(files.entities, row.t1w_path, task.context)
        if known is None:
            return NO_PREDICTION
        scan, context = known
        outcome = reported_outcome(scan, context) if context.model_id == task.model.model_id else None
        prediction = outcome.prediction if outcome else None
        if outcome is None or prediction is None:
            return NO_PREDICTION
        if not decide(outcome).shows_probabilities:
            remove_evidence(files)
            write_report(outcome, context, changed=False)
            return WITHHELD
        marker = _marker(task, row, files, prediction)
        earlier = read_marker(files, marker.stage)
        if earlier and earlier.key == marker.key and outputs_intact(earlier, files):
            write_report(outcome, context, changed=False)
            return KEPT
        _write(task, files, prediction, marker)
        lease.require()
        write_report(outcome, context, changed=True)
        return EXPLAINED


def _marker(task: _Task, row: ManifestRow, files: ScanFiles, prediction: Prediction) -> Marker:
    """Return the marker of an explanation that is still to be made: its key holds all that changes it."""
    source = last_sha256(files) or row.sha256
    parameters: dict[str, Any] = {
        "model_id": task.model.model_id,
        "method": task.method,
        "class": prediction.predicted_label,
        "folds": list(task.model.folds_for(source)),
        "atlas": task.atlas.name,
    }
    inputs = {
        "network_input": network_input_key(files, task.model.network_grid),
        "native_mask": sha256_of_file(files.native_mask),
        "transform": sha256_of_file(_transform_file(files)),
        "atlas": task.atlas.sha256,
    }
    version = f"{EXPLANATION_VERSION}.{FIGURE_VERSION}"
    return Marker(
        stage=explanation_stage(task.method),
        key=sha256_of_json({"version": version, "parameters": parameters, "inputs": inputs}),
        version=version,
        parameters=parameters,
        inputs=inputs,
        outputs=(),
    )


def _write(task: _Task, files: ScanFiles, prediction: Prediction, marker: Marker) -> None:
    """Compute the maps and write everything that is kept of an explanation, its marker last."""
    started = time.perf_counter()
    model, method, label = task.model, task.method, prediction.predicted_label
    network_input = read_network_input(files, model.network_grid)
    parts = explanation_of(model, network_input, label, marker.parameters["folds"], method)
    brain, brain_mask = read_volume(files.template_t1w), read_mask(files.template_mask)
    native_mask = read_mask(files.native_mask)
    everywhere = carried(parts, brain.grid, to_template_transform(np.eye(4)), method)
    native = carried(parts, native_mask.grid, native_transform(files), method)
    inside = everywhere.with_data(np.where(brain_mask.data, everywhere.data, np.float32(0.0)))
    evidence = Evidence(
        method=method,
        label=label,
        model_id=model.model_id,
        units=UNITS[method],
        atlas=task.atlas.name,
        regions=region_shares(inside, brain_mask.data, task.atlas),
        share_outside_brain=_share_outside(everywhere, inside),
        learnt=model.description.backbone.kind != "random" or model.tuned,
        template_sha256=sha256_of_file(files.template_t1w),
        picture=evidence_figure(brain, brain_mask, inside, UNITS[method]),
    )
    marker_path(files, marker.stage).unlink(missing_ok=True)
    sidecar = {
        "Description": f"Where the network found what speaks for {label}; 0 outside the brain mask. For research, "
        "not for diagnosis.",
        "Method": method,
        "Class": label,
        "ModelId": model.model_id,
        "Folds": marker.parameters["folds"],
        "Units": UNITS[method],
    }
    written = []
    for volume in (inside, native.with_data(np.where(native_mask.data, native.data, np.float32(0.0)))):
        path = write_volume(files.evidence_map(method, native=volume is not inside), volume)
        written += [path, write_json(sidecar_of(path), sidecar)]
    written.append(write_json(files.evidence_regions(method), evidence.table))
    written.append(write_bytes(files.figure(method), evidence.picture))
    seconds = time.perf_counter() - started
    write_marker(files, replace(marker, outputs=describe_outputs(written, files), seconds=seconds))


def carried(parts: Sequence[Volume], grid: Grid, transform: sitk.Transform, method: Method) -> Volume:
    """Return the sum of maps on another grid; what speaks against the class is dropped from Grad-CAM.

    Parameters
    ----------
    parts : sequence of Volume
        In template space, from :func:`~brainstage.models.explanation.explanation_of`.
    grid : Grid
    transform : SimpleITK.Transform
        Leads points of the grid to points of template space.
    method : str
    """
    total = np.sum([apply_transform(_with_rim(part), grid, transform).data for part in parts], axis=0)
    return Volume(
        data=np.maximum(total, 0.0) if method == "gradcam" else total, voxel_to_ras=grid.voxel_to_ras
    )


def _with_rim(part: Volume) -> Volume:
    """Repeat the outermost voxels: the image goes on for half a map voxel and more beyond their centres."""
    matrix = np.array(part.voxel_to_ras)
    matrix[:3, 3] -= matrix[:3, :3].sum(axis=1)
    return Volume(data=np.pad(part.data, 1, mode="edge"), voxel_to_ras=matrix)


def native_transform(files: ScanFiles) -> sitk.Transform:
    """Return the transform that carries template images to a scan's native space, after either registration."""
    if files.template_to_native.is_file():
        return read_transform(files.template_to_native)
    return to_native_transform(read_affine(files.native_to_template))


def _transform_file(files: ScanFiles) -> Path:
    return files.template_to_native if files.template_to_native.is_file() else files.native_to_template


def _share_outside(everywhere: Volume, inside: Volume) -> float:
    """Return the part of the positive map that lies outside the brain, on a grid that may end there."""
    total = float(np.maximum(everywhere.data, 0.0).sum(dtype=np.float64))
    kept = float(np.maximum(inside.data, 0.0).sum(dtype=np.float64))
    return 1.0 - kept / total if total > 0 else 0.0
