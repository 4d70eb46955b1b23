"""What learns in a training fold and judges the scans left out: a head alone, or network and head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from brainstage.models.attention import train_attention_head
from brainstage.models.choices import HeadKind
from brainstage.models.features import FeatureExtractor
from brainstage.models.fine_tuning import Images, TuneOptions, fine_tune, tuned_extractor
from brainstage.models.heads import LinearHead
from brainstage.models.splits import validation_part
from brainstage.models.training import HeadOptions, LogRow, train_head


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldModel:
    """What was learnt in one training fold.

    Attributes
    ----------
    head : LinearHead
        Of either kind.
    state : mapping
        Tensors of the network that the fold has of its own, by key; empty where the network is frozen.
    """

    head: LinearHead
    state: Mapping[str, Tensor] = field(default_factory=dict)


Model = TypeVar("Model")


class Learner(Protocol[Model]):
    """Learns from some of a cohort's scans and predicts others: classes (int64 targets) or a number (float64)."""

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[Any], *, fold: int, seed: int, name: str
    ) -> tuple[Model, list[LogRow]]:
        """Learn from the chosen scans, (N,) bool, with the targets (N,) of all; `name` tells one run from another."""
        ...

    def logits(self, model: Model, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans, or the number as (M, 1)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenLearner:
    """A head on features that are computed once.

    Attributes
    ----------
    features : ndarray, (N, F) float32
    participants : sequence of str
    classes : int
    options : HeadOptions
    head : str
        ``linear`` or ``multiscale-attention``.
    channel : ndarray, (F,) int64, optional
        Of each feature, for the attention.
    """

    features: NDArray[np.float32]
    participants: Sequence[str]
    classes: int
    options: HeadOptions
    head: HeadKind = "linear"
    channel: NDArray[np.int64] | None = None

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.int64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[FoldModel, list[LogRow]]:
        """Learn from the chosen scans."""
        del name  # fitted in seconds: there is nothing to keep under it
        names = np.asarray(self.participants)[chosen].tolist()
        features, options = self.features[chosen], replace(self.options, seed=seed)
        if self.head == "linear":
            head, rows = train_head(
                features, targets[chosen], names, classes=self.classes, options=options, fold=fold
            )
            return FoldModel(head=head), rows
        if self.channel is None:
            raise ValueError("an attention needs the channel of each feature")
        head, rows = train_attention_head(
            features,
            targets[chosen],
            names,
            channel=self.channel,
            classes=self.classes,
            options=options,
            fold=fold,
        )
        return FoldModel(head=head), rows

    def logits(self, model: FoldModel, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans."""
        return model.head.logits(self.features[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class TuningLearner:
    """Network and head, beginning with the head on frozen features.

    Attributes
    ----------
    frozen : FrozenLearner
    base : FeatureExtractor
        With the network that the frozen features come from.
    images : Images
        Of all N scans.
    options : TuneOptions
    checkpoints : Path or None
        Folder for the state after each epoch.
    log : callable
        Hears of each epoch: the run's name and the row.
    """

    frozen: FrozenLearner
    base: FeatureExtractor
    images: Images
    options: TuneOptions
    checkpoints: Path | None = None
    log: Callable[[str, LogRow], None] = lambda *_: None

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.int64], *, fold: int, seed: int, name: str
    ) -> tuple[FoldModel, list[LogRow]]:
        """Learn from the chosen scans."""
        names = np.asarray(self.frozen.participants)[chosen].tolist()
        where = np.flatnonzero(chosen)
        inner = chosen.copy()
        inner[where[validation_part(targets[chosen], names, seed=seed)]] = False
        start, _ = self.frozen.fit(inner, targets, fold=fold, seed=seed)
        whole, rows = self.frozen.fit(chosen, targets, fold=fold, seed=seed)
        tuned, tuning = fine_tune(
            self.base,
            (start.head, whole.head),
            _Chosen(self.images, where),
            targets[chosen],
            names,
            classes=self.frozen.classes,
            options=replace(self.options, seed=seed),
            fold=fold,
            checkpoint=self.checkpoints / f"{name}-fold-{fold}.pt" if self.checkpoints else None,
            log=lambda row: self.log(name, row),
        )
        return FoldModel(head=tuned.head, state=tuned.state), rows + tuning

    def logits(self, model: FoldModel, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans."""
        if not model.state:
            return self.frozen.logits(model, chosen)
        extractor = tuned_extractor(self.base, model.state)
        images = [np.asarray(self.images[int(scan)], dtype=np.float32) for scan in np.flatnonzero(chosen)]
        return model.head.logits(
            np.concatenate([extractor.features_of_images(image[None]) for image in images])
        )


class _Chosen:
    """Some of the images of a cohort."""

    def __init__(self, images: Images, where: NDArray[np.int64]) -> None:
        self._images, self._where = images, where

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return np.asarray(self._images[int(self._where[index])], dtype=np.float32)
