"""The model directory: written whole, read with every weight checked, used for prediction.

::

    MODEL_DIR/
      model.json             everything but the weights, and the sha256 of each weights file
      backbone.safetensors   the network as it was before training, once for all folds
      fold-0.safetensors ... head, novelty model, and the layers that were trained, of each fold
      linear.safetensors     the linear model on voxels of each fold, and the mean of the scans it was fitted on
      harmonisation.safetensors  location and scale of the sites, of each fold and member, where they are taken out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from torch import nn

from brainstage.models.baseline import LinearBaseline, baseline_values
from brainstage.models.choices import Member
from brainstage.models.conformal import p_values, set_members
from brainstage.models.covariates import Row, text_of
from brainstage.models.features import FeatureExtractor
from brainstage.models.fine_tuning import tuned_extractor
from brainstage.models.harmonisation import Harmonisation, harmonisation_from_arrays
from brainstage.models.heads import LinearHead, head_arrays, head_from_arrays
from brainstage.models.kernels import kernels
from brainstage.models.learners import FoldModel
from brainstage.models.med3d import build_med3d
from brainstage.models.member_evidence import volume_contributions
from brainstage.models.model_description import (
    DESCRIPTION_FILE,
    CommonDescription,
    ModelDescription,
    NumberDescription,
    checked_content,
    read_description,
    require_same_preprocessing,
)
from brainstage.models.novelty import NoveltyModel
from brainstage.models.number_intervals import interval
from brainstage.models.predictor import mean_log_probabilities, mean_weights
from brainstage.models.volume_model import (
    ScanVolumes,
    VolumeModel,
    log_measures,
    scan_volumes,
    with_log_measures,
)
from brainstage.models.weights import WeightsSource, fill_network, state_bytes
from brainstage.pipeline.errors import InferenceError, InputMissingError, ModelError, WeightsError
from brainstage.pipeline.files import sha256_of_bytes, write_bytes, write_text
from brainstage.pipeline.records import NetworkInput, NumberPrediction, Prediction
from brainstage.pipeline.tables import number_or_none

BACKBONE_FILE: Final = "backbone.safetensors"
LINEAR_FILE: Final = "linear.safetensors"
HARMONISATION_FILE: Final = "harmonisation.safetensors"
_PACKAGES: Final = (
    *("brainstage", "torch", "monai", "scikit-learn", "numpy", "scipy"),
    *("antspyx", "SimpleITK", "nibabel", "nilearn", "deepbet"),
)
"""What a model records the versions of: all that takes part in a prediction, from the file on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanInputs:
    """What the members of a model are given of one scan.

    Attributes
    ----------
    features : ndarray, (F,) float32
        From ``StoredModel.features``, or the same cached.
    values : ndarray, (V,) float32
        From :func:`~brainstage.models.baseline.baseline_values`.
    volumes : ScanVolumes
    covariates : mapping
        Columns of the table that the model reads.
    network_input : NetworkInput
        For folds that have a network of their own.
    """

    features: NDArray[np.float32]
    values: NDArray[np.float32]
    volumes: ScanVolumes
    covariates: Row
    network_input: NetworkInput

    @property
    def site(self) -> str | None:
        """Where the scan was taken, as far as the model reads it."""
        return text_of(self.covariates, "site")


@dataclass(frozen=True, kw_only=True, eq=False)
class HarmonisedPlaces:
    """What is taken out of some of a member's values.

    Attributes
    ----------
    harmonisation : Harmonisation
        Of U values.
    places : ndarray, (U,) int64
        Where they stand among all.
    """

    harmonisation: Harmonisation
    places: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What some folds say about one scan.

    Attributes
    ----------
    folds : tuple of int
        K of them.
    published, uncalibrated : ndarray, (K, C) float64
        Log-probabilities of the predictor, and without any temperature.
    members : mapping
        Member to its calibrated log-probabilities, (K, C).
    """

    folds: tuple[int, ...]
    published: NDArray[np.float64]
    uncalibrated: NDArray[np.float64]
    members: Mapping[Member, NDArray[np.float64]]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the predictor, all folds together, (C,)."""
        return np.exp(mean_log_probabilities(self.published))

    @property
    def uncalibrated_probabilities(self) -> NDArray[np.float64]:
        """The same without any temperature, (C,)."""
        return np.exp(mean_log_probabilities(self.uncalibrated))

    @property
    def member_probabilities(self) -> dict[Member, NDArray[np.float64]]:
        """Of each member, all folds together, (C,)."""
        return {name: np.exp(mean_log_probabilities(said)) for name, said in self.members.items()}


def scan_inputs(
    features: NDArray[np.float32],
    network_input: NetworkInput,
    measures: Mapping[str, float | None],
    covariates: Row,
) -> ScanInputs:
    """Return what the members are given of a scan.

    Parameters
    ----------
    features : ndarray, (F,) float32
    network_input : NetworkInput
    measures : mapping
        Of the volumes.
    covariates : mapping
        With ``age`` and ``sex`` as text, where they are known.
    """
    return ScanInputs(
        features=features,
        values=baseline_values(network_input)[0],
        volumes=scan_volumes(measures, number_or_none(covariates.get("age")), text_of(covariates, "sex")),
        covariates=covariates,
        network_input=network_input,
    )


Described = TypeVar("Described", bound=CommonDescription)


class FoldEnsemble(Generic[Described]):
    """What a trained model of either kind consists of, in memory or read from its directory.

    Parameters
    ----------
    description : ModelDescription or NumberDescription
        `model_id`, `versions`, `kernels` and `files` are filled in here.
    extractor : FeatureExtractor
        With the network as it was before training.
    models, novelty, baselines : sequence
        One for each fold.
    harmonisations : sequence of mapping
        For each fold, member to what is taken out of its values; empty without harmonisation.
    """

    def __init__(
        self,
        description: Described,
        extractor: FeatureExtractor,
        models: Sequence[FoldModel],
        novelty: Sequence[NoveltyModel],
        baselines: Sequence[LinearBaseline],
        harmonisations: Sequence[Mapping[Member, HarmonisedPlaces]] = (),
    ) -> None:
        self.harmonisations = tuple(harmonisations)
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
        files[LINEAR_FILE] = save_arrays(
            {
                "weight": np.stack([baseline.weight for baseline in self.baselines]),
                "bias": np.stack([baseline.bias for baseline in self.baselines]),
                "mean": np.stack([baseline.mean for baseline in self.baselines]),
            }
        )
        if self.harmonisations:
            files[HARMONISATION_FILE] = save_arrays(
                {
                    f"{fold}.{member}.{name}": np.ascontiguousarray(array)
                    for fold, of_members in enumerate(self.harmonisations)
                    for member, known in of_members.items()
                    for name, array in (*known.harmonisation.arrays().items(), ("places", known.places))
                }
            )
        return files

    @cached_property
    def description(self) -> Described:
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
    def outputs(self) -> int:
        """How many numbers each member answers with."""
        return self._described.outputs

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
        found = self._described.training_scans.get(source_sha256 or "")
        return tuple(range(len(self.models))) if found is None else found[:1]

    def network_logits(self, scan: ScanInputs, fold: int) -> NDArray[np.float64]:
        """Return the uncalibrated logits (1, C) of a fold's network."""
        extractor = self._extractors[fold]
        features = self._harmonised("network", fold, scan.features[None], scan.site)
        if extractor is not self.extractor:
            features = extractor.features_of([scan.network_input])
        return self.models[fold].head.logits(features)

    def member_logits(self, scan: ScanInputs, fold: int) -> dict[Member, NDArray[np.float64]]:
        """Return what each member of a fold says about a scan: uncalibrated logits (1, C)."""
        found: dict[Member, NDArray[np.float64]] = {}
        for member in self._described.members:
            if member == "network":
                found[member] = self.network_logits(scan, fold)
            elif member == "linear":
                values = self.linear_values(scan.values, scan.site, fold)
                found[member] = self.baselines[fold].logits(values[None])
            else:
                found[member] = self.volume_model(fold).logits([self.volumes_of(scan, fold)])
        return found

    def volume_model(self, fold: int) -> VolumeModel:
        """Return the member on volumes of a fold."""
        return self._described.volume_models[fold]

    def linear_values(self, values: NDArray[np.float32], site: str | None, fold: int) -> NDArray[np.float32]:
        """Return values (V,) as the linear member of a fold is given them, without their site where it is taken out."""
        return np.asarray(self._harmonised("linear", fold, values[None], site)[0])

    def stretch_and_shift(
        self, site: str | None, fold: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return what takes the site out of the features of a fold's network, (F,) each; None where nothing does."""
        if not self.harmonisations or self._extractors[fold] is not self.extractor:
            return None
        known = self.harmonisations[fold]["network"]
        stretch = np.ones_like(self.heads[fold].mean)
        shift = np.zeros_like(stretch)
        stretch[known.places], shift[known.places] = known.harmonisation.stretch_and_shift(site)
        return stretch, shift

    def volumes_of(self, scan: ScanInputs, fold: int) -> ScanVolumes:
        """Return a scan's volumes as the member of a fold is given them, without their site where it is taken out."""
        if not self.harmonisations:
            return scan.volumes
        given = self._harmonised("volumes", fold, log_measures([scan.volumes]), scan.site)
        return with_log_measures([scan.volumes], given)[0]

    def _harmonised(
        self, member: Member, fold: int, values: NDArray[np.float32], site: str | None
    ) -> NDArray[np.float32]:
        if not self.harmonisations:
            return values
        known = self.harmonisations[fold][member]
        changed = values.copy()
        changed[:, known.places] = known.harmonisation.apply(values[:, known.places], [site])
        return changed

    def site_unknown(self, site: str | None, folds: Sequence[int]) -> bool:
        """Tell whether a scan's site is one that no fold has taken out of its values."""
        return bool(self.harmonisations) and not any(
            known.harmonisation.knows(site) for fold in folds for known in self.harmonisations[fold].values()
        )

    def _novelty(self, scan: ScanInputs, folds: Sequence[int]) -> float:
        """Return how unlike the training scans a scan is, on average over some folds."""
        return float(np.mean([self.novelty[fold].scores(scan.features[None])[0] for fold in folds]))

    def _person(self, source_sha256: str | None) -> int | None:
        found = self._described.training_scans.get(source_sha256 or "")
        return None if found is None else found[1]

    def _volumes_missing(self, scan: ScanInputs) -> bool:
        """Tell whether a volume that what is published depends on is not known."""
        if "volumes" not in self._described.weighted_members:
            return False
        needed = {scale.measure for model in self._described.volume_models for scale in model.scales}
        return any(scan.volumes.measures.get(name) is None for name in needed)

    def _require_fitting(self, scan: ScanInputs) -> None:
        expected = self.heads[0].mean.shape, self.baselines[0].weight.shape[1:]
        if (scan.features.shape, scan.values.shape) != expected:
            raise InferenceError(
                f"features {scan.features.shape} and voxels {scan.values.shape} do not fit the model's {expected[0]} "
                f"and {expected[1]}: the network grid or the weights are others"
            )


class StoredModel(FoldEnsemble[ModelDescription]):
    """A trained model of classes. Load it once per process; the parameters are those of :class:`FoldEnsemble`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of every probability vector."""
        return self._described.classes

    def covariate_evidence(self, covariates: Row, fold: int) -> NDArray[np.float64] | None:
        """Return what covariates add (1, C) in a fold; None for a model that uses none."""
        experts = self._described.covariate_experts
        return experts[fold].evidence([covariates]) if experts else None

    def predict(self, scan: ScanInputs, source_sha256: str | None = None) -> Prediction:
        """Return what the model says about one scan.

        The folds answer together, except about a scan that the model was trained on: there the one fold answers
        that did not learn from it, so that no prediction is a memory.

        Parameters
        ----------
        scan : ScanInputs
        source_sha256 : str, optional
            Hash of the scan's file.

        Raises
        ------
        InferenceError
            When the features or the grid are not those of this model.
        """
        return self.prediction_of(self.answers(scan, source_sha256), scan, source_sha256)

    def answers(self, scan: ScanInputs, source_sha256: str | None = None) -> Answers:
        """Return what each fold that may predict a scan says of it; see :meth:`predict`."""
        self._require_fitting(scan)
        published, uncalibrated, members = [], [], []
        for fold in self.folds_for(source_sha256):
            predictor = self._described.predictor.folds[fold]
            logits = self.member_logits(scan, fold)
            evidence = self.covariate_evidence(scan.covariates, fold)
            published.append(predictor.log_probabilities(logits, evidence))
            uncalibrated.append(predictor.uncalibrated.log_probabilities(logits, evidence))
            members.append(predictor.member_log_probabilities(logits))
        return Answers(
            folds=self.folds_for(source_sha256),
            published=np.concatenate(published),
            uncalibrated=np.concatenate(uncalibrated),
            members={name: np.concatenate([of[name] for of in members]) for name in self._described.members},
        )

    def prediction_of(
        self, answers: Answers, scan: ScanInputs, source_sha256: str | None = None
    ) -> Prediction:
        """Return the prediction that the folds' answers give together."""
        description, folds = self._described, answers.folds
        probabilities = answers.probabilities
        p = p_values(
            np.exp(answers.published), description.scores, without_person=self._person(source_sha256)
        )
        in_set = set_members(p, description.levels)
        predicted = self.classes[int(probabilities.argmax())]
        return Prediction(
            probabilities=dict(zip(self.classes, map(float, probabilities), strict=True)),
            prediction_set=tuple(name for name, inside in zip(self.classes, in_set, strict=True) if inside),
            ood_score=self._novelty(scan, folds),
            ood_threshold=description.novelty_threshold,
            tier=description.tiers.tier(float(probabilities.max())),
            member_labels={
                name: self.classes[int(said.argmax())] for name, said in answers.member_probabilities.items()
            },
            member_weights={
                str(name): weight
                for name, weight in mean_weights(
                    [description.predictor.folds[fold] for fold in folds]
                ).items()
            },
            volume_contributions=volume_contributions(self, scan, predicted, folds),
            compared_members=description.predictor.compared_members,
            disagreement_flags=description.predictor.disagreement_flags,
            above_chance=description.predictor.above_chance,
            model_id=self.model_id,
            set_level=description.conformal.level,
            seen_in_training=len(folds) < len(self.models),
            covariates_missing=description.misses_covariates(scan.covariates),
            volumes_missing=self._volumes_missing(scan),
            site_unknown=self.site_unknown(scan.site, folds),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberAnswers:
    """What some folds say about one scan.

    Attributes
    ----------
    folds : tuple of int
        K of them.
    published : ndarray, (K,) float64
    members : mapping
        Member to its recalibrated values, (K,).
    """

    folds: tuple[int, ...]
    published: NDArray[np.float64]
    members: Mapping[Member, NDArray[np.float64]]

    @property
    def value(self) -> float:
        """All folds together: their mean."""
        return float(self.published.mean())

    @property
    def member_values(self) -> dict[Member, float]:
        """Of each member, all folds together."""
        return {name: float(said.mean()) for name, said in self.members.items()}


class NumberModel(FoldEnsemble[NumberDescription]):
    """A trained model of a number. Load it once per process; the parameters are those of :class:`FoldEnsemble`."""

    @property
    def column(self) -> str:
        """What is predicted: a column of the table of scans."""
        return self._described.label_column

    def predict(self, scan: ScanInputs, source_sha256: str | None = None) -> NumberPrediction:
        """Return what the model says about one scan; a training scan is predicted by the fold that did not see it.

        Parameters
        ----------
        scan : ScanInputs
        source_sha256 : str, optional
            Hash of the scan's file.

        Raises
        ------
        InferenceError
            When the features or the grid are not those of this model.
        """
        return self.prediction_of(self.answers(scan, source_sha256), scan, source_sha256)

    def answers(self, scan: ScanInputs, source_sha256: str | None = None) -> NumberAnswers:
        """Return what each fold that may predict a scan says of it; see :meth:`predict`."""
        self._require_fitting(scan)
        described, folds = self._described, self.folds_for(source_sha256)
        published, members = [], []
        for fold in folds:
            predictor = described.predictor.folds[fold]
            said = {name: found[:, 0] for name, found in self.member_logits(scan, fold).items()}
            columns = described.covariate_models
            known = columns[fold].values([scan.covariates]) if columns else None
            published.append(predictor.values(said, known))
            members.append(predictor.member_values(said))
        return NumberAnswers(
            folds=folds,
            published=np.concatenate(published),
            members={name: np.concatenate([of[name] for of in members]) for name in described.members},
        )

    def prediction_of(
        self, answers: NumberAnswers, scan: ScanInputs, source_sha256: str | None = None
    ) -> NumberPrediction:
        """Return the prediction that the folds' answers give together."""
        description, folds = self._described, answers.folds
        level = description.intervals.level
        person = self._person(source_sha256)
        low, high = interval(answers.published, description.residuals, level, without_person=person)
        return NumberPrediction(
            column=self.column,
            value=answers.value,
            interval_low=low,
            interval_high=high,
            level=level,
            ood_score=self._novelty(scan, folds),
            ood_threshold=description.novelty_threshold,
            member_values={str(name): value for name, value in answers.member_values.items()},
            model_id=self.model_id,
            seen_in_training=len(folds) < len(self.models),
            covariates_missing=description.misses_covariates(scan.covariates),
            volumes_missing=self._volumes_missing(scan),
            site_unknown=self.site_unknown(scan.site, folds),
            above_chance=description.predictor.above_chance,
        )


AnyModel = StoredModel | NumberModel


def write_model(folder: Path, model: AnyModel) -> None:
    """Write weights and ``model.json``, the latter last."""
    for name, content in model.weight_files.items():
        write_bytes(folder / name, content)
    write_text(folder / DESCRIPTION_FILE, model.description.model_dump_json(indent=2) + "\n")


def load_model(path: Path, device: str = "cpu") -> AnyModel:
    """Read a model directory of either kind and check every weights file against ``model.json``.

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
        stacked = load_arrays(contents[LINEAR_FILE])
        baselines = [
            LinearBaseline(weight=weight, bias=bias, mean=mean)
            for weight, bias, mean in zip(stacked["weight"], stacked["bias"], stacked["mean"], strict=True)
        ]
        _require_finite(BACKBONE_FILE, {key: value.numpy() for key, value in network.state_dict().items()})
        _require_finite(LINEAR_FILE, stacked)
        for fold, arrays in enumerate(folds):
            _require_finite(f"fold-{fold}.safetensors", arrays)
        models, novelty = zip(*map(_fold_models, folds), strict=True)
        _require_lengths(description, [model.head for model in models], baselines)
        strange = {key for model in models for key in model.state} - set(network.state_dict())
        if strange:
            raise ModelError(f"{path.name}: a fold holds {min(strange)!r}, which the network has not")
        source = WeightsSource(**description.backbone.model_dump(exclude={"feature_id"}))
        extractor = FeatureExtractor(network, source, torch.device(device))
        harmonisations = _harmonisations(description, contents)
        parts = extractor, models, novelty, baselines, harmonisations
        model: AnyModel
        if isinstance(description, NumberDescription):
            model = NumberModel(description, *parts)
        else:
            model = StoredModel(description, *parts)
        _require_answers(model)
    except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError, WeightsError) as error:
        raise ModelError(
            f"{path.name}/{DESCRIPTION_FILE} and the weights beside it do not fit together: {error}"
        ) from error
    return model


def _require_answers(model: AnyModel) -> None:
    """Raise ``ValueError`` unless every fold answers, to features of nothing, with a finite number for each output."""
    features = np.zeros((1, len(model.heads[0].mean)), dtype=np.float32)
    values = np.zeros((1, model.baselines[0].weight.shape[-1]), dtype=np.float32)
    if len(model.baselines) != len(model.heads):
        raise ValueError(f"{len(model.baselines)} linear models for {len(model.heads)} folds")
    for fold, (head, novelty, baseline) in enumerate(
        zip(model.heads, model.novelty, model.baselines, strict=True)
    ):
        answers = head.logits(features), baseline.logits(values)
        score = novelty.scores(features)
        biases = head.bias.shape, baseline.bias.shape
        if {answer.shape[1:] for answer in answers} | set(biases) != {(model.outputs,)} or score.shape != (
            1,
        ):
            raise ValueError(f"fold {fold} does not answer with {model.outputs} numbers")
        if not all(np.isfinite(answer).all() for answer in (*answers, score)):
            raise ValueError(f"fold {fold} holds numbers that are not finite")


def _require_finite(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{key} in {name} holds numbers that are not finite")


def _require_lengths(
    description: CommonDescription, heads: Sequence[LinearHead], baselines: Sequence[LinearBaseline]
) -> None:
    outputs = description.outputs
    if any(one.mean.shape != one.weight.shape[1:] for one in baselines):
        raise ValueError(f"the means in {LINEAR_FILE} are not of the values that it has weights for")
    if len(baselines) != description.folds:
        raise ValueError(
            f"{LINEAR_FILE} holds {len(baselines)} models, and there are {description.folds} folds"
        )
    for what, found in (("head", heads), ("linear model", baselines)):
        told = {size for one in found for size in (len(one.weight), len(one.bias))}
        wrong = min(told - {outputs}, default=outputs)
        if wrong != outputs and outputs == 1:
            raise ValueError(f"a {what} answers with {wrong} numbers, and the model predicts one")
        if wrong != outputs:
            raise ValueError(f"a {what} tells {wrong} classes apart, and there are {outputs}")


def _harmonisations(
    description: CommonDescription, contents: Mapping[str, bytes]
) -> list[dict[Member, HarmonisedPlaces]]:
    """Return what is taken out of each member's values, for each fold; nothing without harmonisation."""
    if not description.harmonised_sites:
        return []
    arrays = load_arrays(contents[HARMONISATION_FILE])
    _require_finite(HARMONISATION_FILE, arrays)
    found: list[dict[Member, HarmonisedPlaces]] = []
    for fold, of_members in enumerate(description.harmonised_sites):
        if set(of_members) != set(description.members):
            raise ValueError(f"harmonised_sites of fold {fold} does not name the members")
        found.append({})
        for member, sites in of_members.items():
            prefix = f"{fold}.{member}."
            own = {name.removeprefix(prefix): one for name, one in arrays.items() if name.startswith(prefix)}
            places = own.pop("places").astype(np.int64)
            harmonisation = harmonisation_from_arrays(sites, own)
            if harmonisation.centre.shape != places.shape or (places < 0).any():
                raise ValueError(f"{HARMONISATION_FILE} names places that do not fit its values")
            found[-1][member] = HarmonisedPlaces(harmonisation=harmonisation, places=places)
    return found


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
