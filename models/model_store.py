"""The model directory: written whole, read with every weight checked, used for prediction.

::

    MODEL_DIR/
      model.json             everything but the weights, and the sha256 of each weights file
      backbone.safetensors   the network as it was before training, once for all folds
      fold-0.safetensors ... head, novelty model, and the layers that were trained, of each fold
      baseline.safetensors   the linear model on voxels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from torch import nn

from brainstage.models.baseline import LinearBaseline, baseline_values, mean_baseline
from brainstage.models.calibration import calibrated
from brainstage.models.conformal import set_members
from brainstage.models.covariates import Row
from brainstage.models.features import FeatureExtractor
from brainstage.models.fine_tuning import tuned_extractor
from brainstage.models.heads import LinearHead, head_arrays, head_from_arrays
from brainstage.models.kernels import kernels
from brainstage.models.learners import FoldModel
from brainstage.models.med3d import build_med3d
from brainstage.models.model_description import (
    DESCRIPTION_FILE,
    ModelDescription,
    checked_content,
    read_description,
    require_same_preprocessing,
)
from brainstage.models.novelty import NoveltyModel
from brainstage.models.weights import WeightsSource, fill_network, state_bytes
from brainstage.pipeline.errors import InferenceError, InputMissingError, ModelError, WeightsError
from brainstage.pipeline.files import sha256_of_bytes, write_bytes, write_text
from brainstage.pipeline.records import NetworkInput, Prediction

BACKBONE_FILE: Final = "backbone.safetensors"
BASELINE_FILE: Final = "baseline.safetensors"
_PACKAGES: Final = (
    *("brainstage", "torch", "monai", "scikit-learn", "numpy", "scipy"),
    *("antspyx", "SimpleITK", "nibabel", "nilearn", "deepbet"),
)
"""What a model records the versions of: all that takes part in a prediction, from the file on."""


class StoredModel:
    """A trained model, in memory or read from its directory. Load it once per process.

    Parameters
    ----------
    description : ModelDescription
        `model_id`, `versions`, `kernels` and `files` are filled in here.
    extractor : FeatureExtractor
        With the network as it was before training.
    models, novelty, baselines : sequence
        One for each fold.
    """

    def __init__(
        self,
        description: ModelDescription,
        extractor: FeatureExtractor,
        models: Sequence[FoldModel],
        novelty: Sequence[NoveltyModel],
        baselines: Sequence[LinearBaseline],
    ) -> None:
        self.extractor = extractor
        self.models = tuple(models)
        self.novelty = tuple(novelty)
        self.baselines = tuple(baselines)
        self._described = description
        self._extractors = tuple(tuned_extractor(extractor, model.state) for model in models)

    @property
    def heads(self) -> tuple[LinearHead, ...]:
        """Of the folds."""
        return tuple(model.head for model in self.models)

    @property
    def tuned(self) -> bool:
        """Whether any fold has a network of its own, and needs images."""
        return any(extractor is not self.extractor for extractor in self._extractors)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Of the folds; the same module for those whose network was not trained."""
        return tuple(extractor.network for extractor in self._extractors)

    @cached_property
    def weight_files(self) -> Mapping[str, bytes]:
        """The content of each weights file by name."""
        files = {BACKBONE_FILE: state_bytes(self.extractor.network.state_dict())}
        for fold, (model, novelty) in enumerate(zip(self.models, self.novelty, strict=True)):
            files[f"fold-{fold}.safetensors"] = save_arrays(_fold_arrays(model, novelty))
        files[BASELINE_FILE] = save_arrays(
            {
                "weight": np.stack([baseline.weight for baseline in self.baselines]),
                "bias": np.stack([baseline.bias for baseline in self.baselines]),
            }
        )
        return files

    @cached_property
    def description(self) -> ModelDescription:
        """What stands in ``model.json``."""
        if self._described.model_id:
            return self._described
        files = {name: sha256_of_bytes(content) for name, content in self.weight_files.items()}
        versions = {package: version(package) for package in _PACKAGES}
        found = {"files": files, "versions": versions, "kernels": kernels()}
        filled = self._described.model_copy(update=found)
        return filled.model_copy(update={"model_id": filled.own_id})

    @property
    def model_id(self) -> str:
        """Short hash of everything that changes a prediction."""
        return self.description.model_id

    @property
    def feature_id(self) -> str:
        """Hash of everything that changes a feature; cached features carry it."""
        return self.extractor.feature_id

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of every probability vector."""
        return self._described.classes

    @property
    def network_grid(self) -> dict[str, Any]:
        """The network grid's configuration, as plain values."""
        return dict(self._described.network_grid)

    @property
    def preprocessing_id(self) -> str:
        """Hash of the preprocessing that the training scans went through."""
        return self._described.preprocessing_id

    @property
    def preprocessing_content(self) -> dict[str, Any]:
        """What that hash was made from."""
        return dict(self._described.preprocessing_content)

    def require_preprocessing(self, other_id: str, other_content: Mapping[str, Any]) -> None:
        """Raise unless scans went through the model's own preprocessing.

        Raises
        ------
        ModelError
            With the values that differ.
        """
        require_same_preprocessing(self._described, other_id, other_content)

    def features(self, network_input: NetworkInput) -> NDArray[np.float32]:
        """Return the features (F,) float32 of one scan."""
        return self.extractor.features(network_input)

    def folds_for(self, source_sha256: str | None) -> tuple[int, ...]:
        """Return the folds that may judge a scan: all, or the one that did not learn from it.

        Parameters
        ----------
        source_sha256 : str or None
            Hash of the scan's file.
        """
        fold = self._described.fold_of_training_scan.get(source_sha256 or "")
        return tuple(range(len(self.models))) if fold is None else (fold,)

    def ensemble_logits(
        self,
        features: NDArray[np.float32],
        inputs: Sequence[NetworkInput] = (),
        folds: Sequence[int] | None = None,
    ) -> NDArray[np.float64]:
        """Return the mean over `folds`, or all, of the uncalibrated logits (N, C) of N scans.

        Parameters
        ----------
        features : ndarray, (N, F) float32
            From the network before training.
        inputs : sequence of NetworkInput
            Of the scans, for folds that have a network of their own.
        """
        logits = []
        for fold in range(len(self.models)) if folds is None else folds:
            extractor = self._extractors[fold]
            own = features if extractor is self.extractor else extractor.features_of(inputs)
            logits.append(self.models[fold].head.logits(own))
        return np.asarray(np.mean(logits, axis=0))

    def baseline_logits(
        self, values: NDArray[np.float32], folds: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return the logits (N, C) of the mean of the linear baselines of `folds`, or all, for values (N, V)."""
        chosen = range(len(self.baselines)) if folds is None else folds
        return mean_baseline([self.baselines[fold] for fold in chosen]).logits(values)

    def covariate_evidence(
        self, covariates: Sequence[Row] | None, scans: int, folds: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return what covariates add to the logits (N, C), the mean over `folds`; 0 for a model of images alone.

        Parameters
        ----------
        covariates : sequence of mapping or None
            Of each of N scans; None where nothing is known of any.
        """
        experts = self._described.covariate_experts
        rows = [{} for _ in range(scans)] if covariates is None else covariates
        chosen = [experts[fold] for fold in (range(len(experts)) if folds is None else folds) if experts]
        if not chosen:
            return np.zeros((scans, len(self.classes)))
        return np.asarray(np.mean([expert.evidence(rows) for expert in chosen], axis=0))

    def probabilities(
        self,
        features: NDArray[np.float32],
        inputs: Sequence[NetworkInput] = (),
        folds: Sequence[int] | None = None,
        covariates: Sequence[Row] | None = None,
    ) -> NDArray[np.float64]:
        """Return calibrated probabilities (N, C) of images and, where the model uses them, of covariates.

        Parameters
        ----------
        features, inputs, folds
            As for :meth:`ensemble_logits`.
        covariates : sequence of mapping, optional
            Of each scan.
        """
        logits = self.ensemble_logits(features, inputs, folds)
        evidence = self.covariate_evidence(covariates, len(features), folds)
        return calibrated(logits + evidence, self._described.temperature)

    def predict(
        self,
        features: NDArray[np.float32],
        network_input: NetworkInput,
        source_sha256: str | None = None,
        covariates: Row | None = None,
    ) -> Prediction:
        """Return what the model says about one scan.

        The folds answer together, except about a scan that the model was trained on: there the one fold answers
        that did not learn from it, so that no prediction is a memory.

        Parameters
        ----------
        features : ndarray, (F,) float32
            From :meth:`features`, or the same cached.
        network_input : NetworkInput
            For the baseline, and for folds that have a network of their own.
        source_sha256 : str, optional
            Hash of the scan's file.
        covariates : mapping, optional
            The scan's values of the columns that the model looks at besides the image, as text; others are ignored.

        Raises
        ------
        InferenceError
            When the features or the grid are not those of this model.
        """
        values, _ = baseline_values(network_input)
        expected = self.heads[0].mean.shape, self.baselines[0].weight.shape[1:]
        if (features.shape, values.shape) != expected:
            raise InferenceError(
                f"features {features.shape} and voxels {values.shape} do not fit the model's {expected[0]} and "
                f"{expected[1]}: the network grid or the weights are others"
            )
        folds = self.folds_for(source_sha256)
        known = covariates or {}
        probabilities = self.probabilities(features[None], [network_input], folds, [known])[0]
        members = set_members(probabilities, self._described.class_quantiles)
        baseline = self.baseline_logits(values[None], folds)[0]
        return Prediction(
            probabilities=dict(zip(self.classes, map(float, probabilities), strict=True)),
            prediction_set=tuple(name for name, member in zip(self.classes, members, strict=True) if member),
            ood_score=float(np.mean([self.novelty[fold].scores(features[None])[0] for fold in folds])),
            ood_threshold=self._described.novelty_threshold,
            tier=self._described.tiers.tier(float(probabilities.max())),
            baseline_label=self.classes[int(baseline.argmax())],
            model_id=self.model_id,
            set_level=self.description.conformal.level,
            seen_in_training=len(folds) < len(self.models),
            covariates_missing=any(expert.misses(known) for expert in self._described.covariate_experts),
        )


def write_model(folder: Path, model: StoredModel) -> None:
    """Write weights and ``model.json``, the latter last."""
    for name, content in model.weight_files.items():
        write_bytes(folder / name, content)
    write_text(folder / DESCRIPTION_FILE, model.description.model_dump_json(indent=2) + "\n")


def load_model(path: Path, device: str = "cpu") -> StoredModel:
    """Read a model directory and check every weights file against ``model.json``.

    Raises
    ------
    InputMissingError
        When there is no such directory.
    ModelError
        When it is no model directory, or its content was altered or is damaged.
    """
    if not path.is_dir():
        raise InputMissingError(f"there is no model directory {str(path)!r}; make one with brainstage train")
    description = read_description(path)
    contents = {name: checked_content(path, name, sha256) for name, sha256 in description.files.items()}
    try:
        network = build_med3d(description.backbone.architecture, description.backbone.strides)
        fill_network(network, load_tensors(contents[BACKBONE_FILE]), BACKBONE_FILE)
        folds = [load_arrays(contents[f"fold-{fold}.safetensors"]) for fold in range(description.folds)]
        stacked = load_arrays(contents[BASELINE_FILE])
        baselines = [
            LinearBaseline(weight=weight, bias=bias)
            for weight, bias in zip(stacked["weight"], stacked["bias"], strict=True)
        ]
        _require_finite(BACKBONE_FILE, {key: value.numpy() for key, value in network.state_dict().items()})
        _require_finite(BASELINE_FILE, stacked)
        for fold, arrays in enumerate(folds):
            _require_finite(f"fold-{fold}.safetensors", arrays)
        models, novelty = zip(*map(_fold_models, folds), strict=True)
        _require_lengths(description, [model.head for model in models], baselines)
        strange = {key for model in models for key in model.state} - set(network.state_dict())
        if strange:
            raise ModelError(f"{path.name}: a fold holds {min(strange)!r}, which the network has not")
        source = WeightsSource(**description.backbone.model_dump(exclude={"feature_id"}))
        extractor = FeatureExtractor(network, source, torch.device(device))
        model = StoredModel(description, extractor, models, novelty, baselines)
        _require_answers(model)
    except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError, WeightsError) as error:
        raise ModelError(
            f"{path.name}/{DESCRIPTION_FILE} and the weights beside it do not fit together: {error}"
        ) from error
    return model


def _require_answers(model: StoredModel) -> None:
    """Raise ``ValueError`` unless every fold answers, to features of nothing, with a finite number for each class."""
    features = np.zeros((1, len(model.heads[0].mean)), dtype=np.float32)
    values = np.zeros((1, model.baselines[0].weight.shape[-1]), dtype=np.float32)
    if len(model.baselines) != len(model.heads):
        raise ValueError(f"{len(model.baselines)} baselines for {len(model.heads)} folds")
    for fold, (head, novelty, baseline) in enumerate(
        zip(model.heads, model.novelty, model.baselines, strict=True)
    ):
        answers = head.logits(features), baseline.logits(values)
        score = novelty.scores(features)
        biases = head.bias.shape, baseline.bias.shape
        if {answer.shape[1:] for answer in answers} | set(biases) != {
            (len(model.classes),)
        } or score.shape != (1,):
            raise ValueError(f"fold {fold} does not answer for {len(model.classes)} classes")
        if not all(np.isfinite(answer).all() for answer in (*answers, score)):
            raise ValueError(f"fold {fold} holds numbers that are not finite")


def _require_finite(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{key} in {name} holds numbers that are not finite")


def _require_lengths(
    description: ModelDescription, heads: Sequence[LinearHead], baselines: Sequence[LinearBaseline]
) -> None:
    classes = len(description.classes)
    if len(baselines) != description.folds:
        raise ValueError(
            f"{BASELINE_FILE} holds {len(baselines)} baselines, and there are {description.folds} folds"
        )
    for what, found in (("head", heads), ("baseline", baselines)):
        told = {size for one in found for size in (len(one.weight), len(one.bias))}
        if told != {classes}:
            raise ValueError(f"a {what} tells {min(told - {classes})} classes apart, and there are {classes}")


_TRAINED: Final = "trained."
"""Before the key of a tensor of the network in a fold's file."""


def _fold_arrays(model: FoldModel, novelty: NoveltyModel) -> dict[str, NDArray[Any]]:
    """Name the arrays of a fold."""
    return {
        **{f"head_{name}": array for name, array in head_arrays(model.head).items()},
        **{f"{_TRAINED}{key}": value.contiguous().numpy() for key, value in model.state.items()},
        "novelty_mean": novelty.mean,
        "novelty_scale": novelty.scale,
        "novelty_axes": np.ascontiguousarray(novelty.axes),
        "novelty_variances": novelty.variances,
        "novelty_residual_variance": np.array([novelty.residual_variance], dtype=np.float64),
    }


def _fold_models(arrays: Mapping[str, NDArray[Any]]) -> tuple[FoldModel, NoveltyModel]:
    head = {name.removeprefix("head_"): array for name, array in arrays.items() if name.startswith("head_")}
    state = {
        name.removeprefix(_TRAINED): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(_TRAINED)
    }
    novelty = NoveltyModel(
        mean=arrays["novelty_mean"],
        scale=arrays["novelty_scale"],
        axes=arrays["novelty_axes"],
        variances=arrays["novelty_variances"],
        residual_variance=float(arrays["novelty_residual_variance"][0]),
    )
    return FoldModel(head=head_from_arrays(head), state=state), novelty
