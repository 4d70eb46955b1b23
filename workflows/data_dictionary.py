"""What the columns of each table mean, for programs: BIDS data dictionaries beside the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from brainstage.models.norms import NORMED_MEASURES
from brainstage.models.retest import Change
from brainstage.pipeline.records import VOLUMES, PredictionStatus, QcStatus, VolumesStatus
from brainstage.preprocessing.quality import MEASURES
from brainstage.workflows.gate import FLAG_EXPLANATIONS, REVIEW_EXPLANATIONS
from brainstage.workflows.measured_volumes import FAILED, NOT_MEASURED, QC_FAILED
from brainstage.workflows.normed_volumes import NORMS_REASONS
from brainstage.workflows.predicted_numbers import AGE, gap_column, number_columns
from brainstage.workflows.table_identity import NOT_ASSESSED
from brainstage.workflows.trajectories import IMPLAUSIBLE_REVERSAL, trajectory_columns

Dictionary = dict[str, dict[str, Any]]
"""Column to ``Description`` and, where they apply, ``Units``, ``Levels`` and ``Delimiter``."""

_STATUS_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        PredictionStatus.REPORTED: "quality control passed, nothing speaks against the prediction",
        PredictionStatus.FLAGGED: "quality control warned, or prediction_reasons says what speaks against it",
        PredictionStatus.WITHHELD: "quality control failed: nothing of the prediction is written",
        PredictionStatus.FAILED: "a stage failed; error says which and why",
        PredictionStatus.NO_MODEL: "the run had no model",
    }
)
_QC_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        QcStatus.PASS: "no measure is out of bounds",
        QcStatus.WARN: "a measure is out of bounds, but tolerated",
        QcStatus.FAIL: "a measure is far out of bounds",
        NOT_ASSESSED: "a stage failed before",
    }
)
_VOLUMES_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        VolumesStatus.REPORTED: "all are there",
        VolumesStatus.PARTIAL: "some are withheld; volumes_reasons says why",
        VolumesStatus.WITHHELD: "none is written",
        FAILED: "a stage failed",
    }
)
_VOLUMES_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        FAILED: "a stage failed",
        QC_FAILED: "quality control, or whoever looked, failed the scan",
        NOT_MEASURED: "an earlier version made this output, without volumes; run the participant level again",
    }
)
_CHANGE_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        Change.DECREASE: "smaller, by more than two measurements of one person differ in 95 of 100 cases",
        Change.INCREASE: "larger, by more than that",
        Change.WITHIN_ERROR: "two measurements of an unchanged brain may differ as much",
    }
)
_TIME_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "acq_time": "the dates in the sessions table, which may be shifted",
        "session_id": "sessions that are named after their dates",
        "age": "the ages at both; whole years are known to within a year",
        "unknown": "nothing is certain, so no change in a year is written",
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


def predictions_dictionary(classes: Sequence[str], number: str | None = None) -> Dictionary:
    """Return what the columns of ``predictions.csv`` mean.

    Parameters
    ----------
    classes : sequence of str
        The model's, in its order; empty without a model, and for a model of a number.
    number : str, optional
        The column that the model predicts.
    """
    return {
        **_copied(_IDENTITY),
        "prediction_status": _described("what became of the prediction", levels=_STATUS_LEVELS),
        **(_said_of_classes(classes) if number is None else _said_of_a_number(number)),
        "qc_status": _described("verdict of quality control, or of whoever looked", levels=_QC_LEVELS),
        "qc_reasons": _described(
            "why quality control warns or fails; the same as in qc.csv",
            levels=_quality_levels(),
            delimiter=";",
        ),
        "prediction_reasons": _described(
            "why the prediction is flagged, and what should be known about it",
            levels=FLAG_EXPLANATIONS,
            delimiter=";",
        ),
        "ood_score": _described(
            "novelty: root mean square Mahalanobis distance from the training scans; about 1 for scans like them"
        ),
        "ood_limit": _described("the score above which a scan is out of distribution for the model"),
        "member_labels": _described(
            "the class that each member of the model says, as member=class"
            if number is None
            else f"the {number} that each member of the model says, as member=value",
            delimiter=";",
        ),
        "label": _described("the scan's own label in the source dataset, where it has one"),
        "age": _described("age at the visit", units="years"),
        "sex": _described("sex, as in the source dataset"),
        "site": _described("scanner or centre, as in the source dataset"),
        "model_id": _described("hash of everything in the model that changes a prediction"),
        "preprocessing_id": _described(
            "hash of settings, stage versions, weights and template of the preprocessing; not of the versions of tools"
        ),
        "report": _described("the scan's report, relative to this file"),
        "error": _described("of a failed scan: the stage, a colon, and why"),
    }


def _said_of_classes(classes: Sequence[str]) -> Dictionary:
    return {
        "predicted_label": _described("the class with the largest probability"),
        **_probabilities(classes),
        "confidence": _described("the largest probability"),
        "tier": _described(
            "how sure the model may be; bounds as configured, these by default", levels=_TIER_LEVELS
        ),
        "prediction_set": _described(
            "the classes that cannot be excluded (class-conditional conformal prediction), at 90 % or at the level "
            "that the model's conformal.levels names",
            delimiter=";",
        ),
    }


def _said_of_a_number(number: str) -> Dictionary:
    units = "years" if number == AGE else ""
    known = {
        f"predicted_{number}": _described(f"the {number} that the model predicts", units=units),
        "interval_low": _described(
            f"lower end of the interval of the predicted {number}, at 90 % or at the level that the model's "
            "intervals.level names",
            units=units,
        ),
        "interval_high": _described("its upper end", units=units),
        gap_column(number): _described(
            "predicted minus known age; empty where that is not known. By construction too high for the young and too "
            "low for the old",
            units=units,
        ),
    }
    return {name: known[name] for name in number_columns(number)}


def qc_dictionary(columns: Sequence[str]) -> Dictionary:
    """Return what the columns of ``qc.csv`` mean, those that are there."""
    known = {
        **_copied(_IDENTITY),
        **{
            measure.name: _described(f"{measure.explanation} Source: {measure.source}.", units=measure.unit)
            for measure in MEASURES
        },
        "qc_status": _described("verdict of quality control, or of whoever looked", levels=_QC_LEVELS),
        "qc_reasons": _described("why", levels=_quality_levels(), delimiter=";"),
    }
    return {name: known[name] for name in columns}


def volumes_dictionary(columns: Sequence[str], region_of: Mapping[str, str]) -> Dictionary:
    """Return what the columns of ``volumes.csv`` mean, those that are there.

    Parameters
    ----------
    columns : sequence of str
    region_of : mapping
        Column to the region of the user's atlas.
    """
    known: Dictionary = {
        **_copied(_IDENTITY),
        **{f"{name}_ml": _described(_volume_text(name), units="ml") for name in VOLUMES},
        "hippocampus_asymmetry_pct": _described(
            "left less right hippocampus over their mean; above 0 the left one is larger", units="%"
        ),
        **{
            f"{name}_pct_icv": _described(f"{_volume_text(name)}, of the intracranial volume", units="%")
            for name in VOLUMES[1:]
        },
        "volumes_status": _described("what became of the volumes", levels=_VOLUMES_LEVELS),
        "volumes_reasons": _described(
            "why something is withheld: a code for all of the scan, or the volume, a colon, and a code",
            levels=_VOLUMES_REASONS,
            delimiter=";",
        ),
        **{
            column: _described(f"region {region} of the atlas", units="ml")
            for column, region in region_of.items()
        },
        **_percentiles(),
        "norms_reasons": _described(
            "why nothing is said of a volume that is there: a code for all of them, or the volume, a colon, and a code",
            levels=NORMS_REASONS,
            delimiter=";",
        ),
        "norms_id": _described("hash of everything in the norms that changes a percentile"),
    }
    return {name: known[name] for name in columns}


def trajectories_dictionary(classes: Sequence[str], number: str | None = None) -> Dictionary:
    """Return what the columns of ``trajectories.csv`` mean; parameters as of :func:`predictions_dictionary`."""
    changes = {
        f"change_of_p_{name}": _described(f"change of p_{name} since the previous session that has one")
        for name in classes
    }
    known = {
        **(_said_of_a_number(number) if number else {}),
        f"change_of_predicted_{number}": _described(
            f"change of predicted_{number} since the previous session that has one"
        ),
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
        "years_since_previous": _described(
            "time since the previous session; empty where it is not known", units="year"
        ),
        "time_from": _described("what the time is known from", levels=_TIME_LEVELS),
    }
    for name in VOLUMES:
        since = f"of {_volume_text(name)} since the last session that has it"
        known |= {
            f"{name}_change_pct": _described(f"change {since}", units="%"),
            f"{name}_change_pct_per_year": _described(
                f"change {since} in a year, compounding; empty where the time is not known", units="%"
            ),
            f"{name}_change_pct_per_year_low": _described(
                "lower end of the 95 % interval that the test-retest error allows", units="%"
            ),
            f"{name}_change_pct_per_year_high": _described("its upper end", units="%"),
            f"{name}_change": _described(
                "whether the change is larger than the test-retest error", levels=_CHANGE_LEVELS
            ),
        }
    return {name: known[name] for name in trajectory_columns(classes, number=number)}


def _volume_text(name: str) -> str:
    """Return a volume in words.

    >>> _volume_text("hippocampus_left"), _volume_text("csf")
    ('left hippocampus', 'cerebrospinal fluid')
    """
    *stem, side = name.split("_")
    if side in ("left", "right"):
        return " ".join((side, *stem))
    return {"csf": "cerebrospinal fluid", "intracranial": "intracranial volume"}.get(
        name, name.replace("_", " ")
    )


def _percentiles() -> Dictionary:
    known: Dictionary = {}
    for name, measure in NORMED_MEASURES.items():
        known |= {
            f"{name}_percentile": _described(
                f"how many of 100 people of the norms, of the same age and sex, have a smaller {measure}"
            ),
            f"{name}_percentile_low": _described(
                "lower end of its 95 % interval, for the norms rest on a sample of people"
            ),
            f"{name}_percentile_high": _described("its upper end"),
        }
    return known


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


def _quality_levels() -> dict[str, str]:
    return {
        measure.reason: measure.explanation for measure in MEASURES if measure.reason
    } | REVIEW_EXPLANATIONS


def _copied(content: Mapping[str, Mapping[str, str]]) -> Dictionary:
    return {name: dict(described) for name, described in content.items()}
