"""The last stage of a scan: a stored model looks at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from brainstage.pipeline.config import NetworkGridConfig, PredictionConfig
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import ModelError
from brainstage.pipeline.files import write_json
from brainstage.pipeline.kept import read_record
from brainstage.pipeline.records import (
    AssessedBrain,
    NumberPrediction,
    Prediction,
    ReferenceFinding,
    ScanPrediction,
)
from brainstage.pipeline.stage import Stage
from brainstage.pipeline.tables import number_or_none
from brainstage.preprocessing.volumes import VOLUMES_VERSION

if TYPE_CHECKING:
    from brainstage.models.model_store import AnyModel
    from brainstage.models.norms import ReferenceClass

STAGE_VERSION: Final = "3"


@cache
def model_of(model_dir: Path, model_id: str, device: str = "cpu") -> AnyModel:
    """Return the model of a directory; read once per process and `model_id`.

    Raises
    ------
    ModelError
        When another model lies there now: the worker of a cluster may live longer than a model.
    """
    # Heavy: torch.
    from brainstage.models.features import choose_device
    from brainstage.models.model_store import load_model

    model = load_model(model_dir, str(choose_device(device)))
    if model.model_id != model_id:
        raise ModelError(
            f"{model_dir.name} holds model {model.model_id} now, and {model_id} when the run began; run it again"
        )
    return model


def prediction_stage(
    model_dir: Path,
    model_id: str,
    tiers: PredictionConfig,
    files: ScanFiles,
    source_sha256: str,
    covariates: Mapping[str, str | None],
    *,
    reads_volumes: bool = False,
) -> Stage:
    """Return the stage that predicts.

    Parameters
    ----------
    model_dir : Path
    model_id : str
        The model's content hash: another model means another key.
    tiers : PredictionConfig
        Bounds of the tiers of confidence.
    files : ScanFiles
        Of the scan; its features are cached there.
    source_sha256 : str
        Hash of the scan's file; tells whether the model was trained on it.
    covariates : mapping
        The columns that the model reads besides the image, with the scan's values: another age means another key.
    reads_volumes : bool
        The model has a member on volumes, or a class of reference.
    """
    return Stage(
        name="prediction",
        version=STAGE_VERSION,
        parameters={
            "model_id": model_id,
            "tiers": tiers.model_dump(mode="json"),
            "source_sha256": source_sha256,
        }
        | ({"covariates": dict(covariates)} if covariates else {}),
        reads=("registration", "volumes") if reads_volumes else ("registration",),
        run=lambda assessed: _predicted(
            assessed, model_of(model_dir, model_id), tiers, files, source_sha256, covariates
        ),
        save=_save,
        load=lambda assessed, files: replace(assessed, prediction=read_prediction(files)),
    )


def tier_of(confidence: float, tiers: PredictionConfig) -> str:
    """Return the tier of a confidence.

    >>> tier_of(0.7, PredictionConfig())
    'review'
    """
    if confidence > tiers.high_confidence:
        return "high"
    return "review" if confidence >= tiers.review_confidence else "low"


def read_prediction(files: ScanFiles) -> ScanPrediction | None:
    """Return the prediction kept for a scan, None when there is none, or one that cannot be understood."""
    path = files.state / "prediction_result.json"
    return read_record(path, Prediction) or read_record(path, NumberPrediction)


def _predicted(
    assessed: AssessedBrain,
    model: AnyModel,
    tiers: PredictionConfig,
    files: ScanFiles,
    source_sha256: str,
    covariates: Mapping[str, str | None],
) -> AssessedBrain:
    # Heavy: torch.
    from brainstage.models.model_store import NumberModel, scan_inputs
    from brainstage.preprocessing.network_grid import network_input
    from brainstage.workflows.learning.features import cached_features, network_input_key

    registered = assessed.registered
    grid: dict[str, Any] = model.network_grid
    image = network_input(
        registered.brain,
        registered.brain_mask,
        NetworkGridConfig.model_validate(grid),
        registered.deformation.forward if registered.deformation else None,
    )
    features = cached_features(model.extractor, files, image, network_input_key(files, grid))
    volumes = assessed.volumes.measures if assessed.volumes else {}
    prediction = model.predict(scan_inputs(features, image, volumes, covariates), source_sha256)
    if isinstance(prediction, NumberPrediction) or isinstance(model, NumberModel):
        return replace(assessed, prediction=prediction)
    reference = reference_findings(model.description.reference, volumes, covariates)
    tier = tier_of(prediction.confidence, tiers)
    return replace(assessed, prediction=replace(prediction, tier=tier, reference=reference))


def reference_findings(
    reference: ReferenceClass | None,
    measures: Mapping[str, float | None],
    covariates: Mapping[str, str | None],
) -> tuple[ReferenceFinding, ...]:
    """Return how a scan's measures lie in the model's class of reference; nothing for a model without one.

    Parameters
    ----------
    reference : ReferenceClass or None
    measures : mapping
        Of the volumes; one that is withheld is compared with nothing.
    covariates : mapping
        With ``age`` and ``sex`` as text.
    """
    if reference is None:
        return ()
    from brainstage.models.norms import compare

    age = number_or_none(covariates.get("age"))
    return compare(reference, measures, age, covariates.get("sex"), VOLUMES_VERSION)


def _save(assessed: AssessedBrain, files: ScanFiles) -> Sequence[Path]:
    if assessed.prediction is None:
        return []
    return [write_json(files.state / "prediction_result.json", asdict(assessed.prediction))]
