"""What the columns of each table mean, for programs: BIDS data dictionaries beside the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from brainstage.pipeline.records import PredictionStatus, QcStatus
from brainstage.preprocessing.quality import MEASURES
from brainstage.workflows.gate import FLAG_EXPLANATIONS, REVIEW_EXPLANATIONS
from brainstage.workflows.trajectories import IMPLAUSIBLE_REVERSAL, trajectory_columns

Dictionary = dict[str, dict[str, Any]]
"""Column to ``Description`` and, where they apply, ``Units``, ``Levels`` and ``Delimiter``."""

_STATUS_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        PredictionStatus.REPORTED: "quality control passed, nothing speaks against the prediction",
        PredictionStatus.FLAGGED: "quality control warned, the scan is novel, or network and baseline disagree",
        PredictionStatus.WITHHELD: "quality control failed: nothing of the prediction is written",
        PredictionStatus.FAILED: "a stage failed; error says which and why",
        PredictionStatus.NO_MODEL: "the run had no model",
    }
)
_QC_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        QcStatus.PASS: "no measure is out of bounds",
        QcStatus.WARN: "a measure is out of bounds, but tolerated",
        QcStatus.FAIL: "a measure is far out of bounds, or a stage failed",
    }
)
_TIER_LEVELS: Final = MappingProxyType(
    {"high": "confidence above 0.85", "review": "from 0.60 to 0.85", "low": "below 0.60"}
)
_IDENTITY: Final = MappingProxyType(
    {
        "participant_id": {"Description": "participant, as in the source dataset"},
        "session_id": {"Description": "session; empty without sessions"},
        "run_id": {"Description": "run; empty where there is only one"},
        "t1w_path": {"Description": "the scan's file, relative to the source dataset"},
    }
)


def predictions_dictionary(classes: Sequence[str]) -> Dictionary:
    """Return what the columns of ``predictions.csv`` mean."""
    return {
        **_copied(_IDENTITY),
        "prediction_status": _described("what became of the prediction", levels=_STATUS_LEVELS),
        "predicted_label": _described("the class with the largest probability"),
        **_probabilities(classes),
        "confidence": _described("the largest probability"),
        "tier": _described(
            "how sure the model may be; bounds as configured, these by default", levels=_TIER_LEVELS
        ),
        "prediction_set": _described(
            "the classes that cannot be excluded at 90 % (class-conditional conformal prediction)",
            delimiter=";",
        ),
        "qc_status": _described("verdict of quality control, or of whoever looked", levels=_QC_LEVELS),
        "qc_reasons": _described(
            "why quality control warns or fails, and what speaks against the prediction",
            levels=_reason_levels(),
            delimiter=";",
        ),
        "ood_score": _described(
            "novelty: root mean square Mahalanobis distance from the training scans; about 1 for scans like them"
        ),
        "baseline_label": _described("what the linear baseline on voxels says"),
        "model_id": _described("hash of everything in the model that changes a prediction"),
        "preprocessing_id": _described(
            "hash of settings, stage versions, weights and template of the preprocessing; not of the versions of tools"
        ),
        "report": _described("the scan's report, relative to this file"),
        "error": _described("of a failed scan: the stage, a colon, and why"),
    }


def qc_dictionary(columns: Sequence[str]) -> Dictionary:
    """Return what the columns of ``qc.csv`` mean, those that are there."""
    known = {
        **_copied(_IDENTITY),
        **{
            measure.name: _described(f"{measure.explanation} Source: {measure.source}.", units=measure.unit)
            for measure in MEASURES
        },
        "qc_status": _described("verdict of quality control, or of whoever looked", levels=_QC_LEVELS),
        "qc_reasons": _described("why", levels=_reason_levels(), delimiter=";"),
    }
    return {name: known[name] for name in columns}


def trajectories_dictionary(classes: Sequence[str]) -> Dictionary:
    """Return what the columns of ``trajectories.csv`` mean."""
    changes = {
        f"change_of_p_{name}": _described(f"change of p_{name} since the previous session that has one")
        for name in classes
    }
    known = {
        **{name: dict(content) for name, content in _IDENTITY.items() if name != "run_id"},
        "age": _described("at the session", units="year"),
        "prediction_status": _described("what became of the prediction", levels=_STATUS_LEVELS),
        "predicted_label": _described("the class with the largest probability"),
        **_probabilities(classes),
        "confidence": _described("the largest probability"),
        **changes,
        "flag": _described(
            "what cannot be",
            levels={
                IMPLAUSIBLE_REVERSAL: "a sure prediction lies a step back from an earlier sure one, and their "
                "prediction sets have no class in common"
            },
        ),
    }
    return {name: known[name] for name in trajectory_columns(classes)}


def _described(
    text: str, *, units: str = "", levels: Mapping[str, str] | None = None, delimiter: str = ""
) -> dict[str, Any]:
    content: dict[str, Any] = {"Description": text}
    if units:
        content["Units"] = units
    if levels:
        content["Levels"] = {str(name): meaning for name, meaning in levels.items()}
    if delimiter:
        content["Delimiter"] = delimiter
    return content


def _probabilities(classes: Sequence[str]) -> Dictionary:
    return {f"p_{name}": _described(f"calibrated probability of {name}") for name in classes}


def _reason_levels() -> dict[str, str]:
    measured = {measure.reason: measure.explanation for measure in MEASURES if measure.reason}
    return measured | FLAG_EXPLANATIONS | REVIEW_EXPLANATIONS


def _copied(content: Mapping[str, Mapping[str, str]]) -> Dictionary:
    return {name: dict(described) for name, described in content.items()}
