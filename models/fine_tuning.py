"""Training the network's own layers further, fold by fold: ``head+last`` and ``full``.

It begins where the frozen regime ends: the head that suits the untouched features. Only then are the last stage, or
all, moved, each the more slowly the nearer it is to the image (Kumar et al. 2022, arXiv 2202.10054, for the order;
Howard and Ruder 2018, doi:10.18653/v1/P18-1031, for the rates). Normalisation layers keep the statistics that they
came with: batches of a few volumes would give them none.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from brainstage.models.augmentation import Augmentation
from brainstage.models.choices import Regime
from brainstage.models.features import FeatureExtractor, pooled_features
from brainstage.models.heads import HeadModule, LinearHead, head_module, head_of
from brainstage.models.med3d import STAGES
from brainstage.models.splits import validation_part
from brainstage.models.training import LogRow, class_weights
from brainstage.pipeline.errors import InferenceError
from brainstage.pipeline.files import write_bytes

HEAD_RATE: Final = 1e-3
"""Learning rate of the head; each stage below it has :data:`RATE_DECAY` times that of the one above."""
RATE_DECAY: Final = 0.3
"""From a stage of the network to the one below it."""
WEIGHT_DECAY: Final = 0.01
BATCH: Final = 8
"""Scans of one step."""
MICRO_BATCH: Final = 2
"""Scans that are in memory at a time; their gradients are added up."""
CHECKPOINT_VERSION: Final = 1


class Images(Protocol):
    """Network inputs by index, (1, D, H, W); read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How the network is trained further.

    Attributes
    ----------
    regime : str
        ``head+last`` or ``full``.
    imbalance : str
        ``none``, ``weights``, ``oversample`` or ``undersample``.
    augment : tuple of str
        Recipes of :data:`~brainstage.models.augmentation.RECIPES`.
    epochs, patience : int
        At most, and without a better validation loss.
    seed : int
        Of the inner split, the order of the scans and the augmentation.
    """

    regime: Regime
    imbalance: str = "weights"
    augment: tuple[str, ...] = ()
    epochs: int = 30
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """A fold's network and head after tuning.

    Attributes
    ----------
    state : mapping
        The network's tensors that were trained, by key; empty when no epoch was better than the start.
    head : LinearHead
    """

    state: Mapping[str, Tensor]
    head: LinearHead


def trained_stages(regime: Regime) -> tuple[str, ...]:
    """Return the network's stages that a regime trains, shallow to deep."""
    return {"frozen": (), "head+last": STAGES[-1:], "full": STAGES}[regime]


def trained_keys(network: nn.Module, regime: Regime) -> tuple[str, ...]:
    """Return the keys of the parameters that a regime trains."""
    stages = trained_stages(regime)
    names = {*stages, "bn1"} if "conv1" in stages else set(stages)
    return tuple(name for name, _ in network.named_parameters() if name.partition(".")[0] in names)


def tuned_extractor(base: FeatureExtractor, state: Mapping[str, Tensor]) -> FeatureExtractor:
    """Return an extractor with some of the network's tensors replaced; the base itself when there are none."""
    if not state:
        return base
    network = copy.deepcopy(base.network)
    network.load_state_dict({**network.state_dict(), **state})
    return FeatureExtractor(network, base.source, base.device)


def fine_tune(
    base: FeatureExtractor,
    start: tuple[LinearHead, LinearHead],
    images: Images,
    targets: NDArray[np.int64],
    participants: Sequence[str],
    *,
    classes: int,
    options: TuneOptions,
    fold: int = 0,
    checkpoint: Path | None = None,
    log: Callable[[LogRow], None] = lambda _: None,
) -> tuple[Tuned, list[LogRow]]:
    """Train network and head on one training fold.

    Parameters
    ----------
    base : FeatureExtractor
    start : (LinearHead, LinearHead)
        Fitted on frozen features of the inner training part, see
        :func:`~brainstage.models.splits.validation_part`, and of the whole fold. The
        first is where training begins; the second is the answer when tuning does not help.
    images : Images
        Of the N scans of the fold.
    targets : ndarray, (N,) int64
    participants : sequence of str
    checkpoint : Path, optional
        File that keeps the state after each epoch; training that was cut short goes on from it and ends the same.
    log : callable
        Hears of each epoch.

    Returns
    -------
    Tuned
        Of the epoch with the smallest validation loss.
    list of LogRow
    """
    held = validation_part(targets, participants, seed=options.seed)
    run = _Run(base, start[0], images, classes=classes, options=options)
    balanced = torch.from_numpy(class_weights(targets[~held], classes, options.imbalance)).to(base.device)
    run.importance = {
        # What is drawn as often as the others needs no weight on top.
        "training": balanced if options.imbalance == "weights" else torch.ones_like(balanced),
        "validation": balanced,
    }
    training, validation = np.flatnonzero(~held), np.flatnonzero(held)
    rows: list[LogRow] = []
    if checkpoint is not None and (kept := _read(checkpoint)) is not None:
        rows = [LogRow(**row) for row in kept["rows"]]
        run.restore(kept)
    else:
        run.best_loss = run.validation_loss(validation, targets)
        rows.append(
            LogRow(fold=fold, phase="tune", epoch=0, training_loss=None, validation_loss=run.best_loss)
        )
        log(rows[-1])
    for epoch in range(len(rows), options.epochs + 1):
        if run.since_best >= options.patience:
            break
        trained = run.train_epoch(training, targets, epoch)
        loss = run.validation_loss(validation, targets)
        run.judge(loss)
        rows.append(LogRow(fold=fold, phase="tune", epoch=epoch, training_loss=trained, validation_loss=loss))
        log(rows[-1])
        if checkpoint is not None:
            _write(checkpoint, {**run.snapshot(), "rows": [vars(row) for row in rows]})
    if run.best is None:
        return Tuned(state={}, head=start[1]), rows
    run.head.load_state_dict(run.best["head"])
    return Tuned(state=run.best["network"], head=head_of(run.head)), rows


def mixed_precision(device: torch.device) -> torch.dtype:
    """Return the type in which a network is trained on a GPU: bfloat16 where the card has units for it.

    Cards before Ampere only emulate bfloat16, slowly and not for every layer; float16 they can.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


class _Run:
    """A network, its head and its optimiser while they are trained."""

    importance: dict[str, Tensor]

    def __init__(
        self, base: FeatureExtractor, head: LinearHead, images: Images, *, classes: int, options: TuneOptions
    ) -> None:
        self.options, self.images, self.classes, self.device = options, images, classes, base.device
        self.network = copy.deepcopy(base.network)
        self.head: HeadModule = head_module(head).to(self.device)
        self.keys = trained_keys(self.network, options.regime)
        for name, parameter in self.network.named_parameters():
            # Gradients come in the usual order of memory, which inference does not use.
            parameter.data = parameter.data.contiguous()
            parameter.requires_grad_(name in self.keys)
        groups = self._groups()
        self.rates = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
        self.augmentation = Augmentation(options.augment)
        self.precision = mixed_precision(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.best: dict[str, dict[str, Tensor]] | None = None
        self.best_loss, self.since_best = math.inf, 0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameters by stage, deep to shallow, each with its own learning rate."""
        by_name = dict(self.network.named_parameters())
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": HEAD_RATE}]
        for depth, stage in enumerate(reversed(trained_stages(self.options.regime)), start=1):
            # The first normalisation goes with the first convolution.
            names = (stage, "bn1") if stage == "conv1" else (stage,)
            chosen = [by_name[key] for key in self.keys if key.partition(".")[0] in names]
            groups.append({"params": chosen, "lr": HEAD_RATE * RATE_DECAY**depth})
        return groups

    def train_epoch(self, scans: NDArray[np.int64], targets: NDArray[np.int64], epoch: int) -> float:
        """Go once through the scans; return the mean loss."""
        order = _order(scans, targets, self.options, epoch)
        steps = math.ceil(len(order) / BATCH)
        total = 0.0
        for step in range(steps):
            self._schedule((epoch - 1 + step / steps) / self.options.epochs)
            batch = order[step * BATCH : (step + 1) * BATCH]
            self.optimiser.zero_grad()
            for first in range(0, len(batch), MICRO_BATCH):
                micro = batch[first : first + MICRO_BATCH]
                altered = [
                    self.augmentation(_image(self.images, scan), (self.options.seed, epoch, int(scan)))
                    for scan in micro
                ]
                loss = self._loss(altered, targets[micro], "training") * len(micro) / len(batch)
                if not torch.isfinite(loss):
                    raise InferenceError(
                        f"the loss became {loss.item()} in epoch {epoch}: the weights or the images do not suit "
                        "training; choose --finetune frozen"
                    )
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.item() * len(batch)
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return total / len(order)

    def validation_loss(self, scans: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
        """Return the mean loss over scans as they are."""
        total = 0.0
        with torch.inference_mode():
            for first in range(0, len(scans), MICRO_BATCH):
                micro = scans[first : first + MICRO_BATCH]
                loss = self._loss([_image(self.images, scan) for scan in micro], targets[micro], "validation")
                total += loss.item() * len(micro)
        return total / len(scans)

    def judge(self, loss: float) -> None:
        """Keep the state when its loss is the smallest so far."""
        if loss < self.best_loss:
            self.best_loss, self.since_best = loss, 0
            state = self.network.state_dict()
            self.best = {
                "network": {key: state[key].cpu().clone() for key in self.keys},
                "head": {key: value.cpu().clone() for key, value in self.head.state_dict().items()},
            }
        else:
            self.since_best += 1

    def snapshot(self) -> dict[str, Any]:
        """Return all that is needed to go on."""
        state = self.network.state_dict()
        return {
            "network": {key: state[key] for key in self.keys},
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_loss": self.best_loss,
            "since_best": self.since_best,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go back to a snapshot."""
        self.network.load_state_dict({**self.network.state_dict(), **kept["network"]})
        self.head.load_state_dict(kept["head"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scaler.load_state_dict(kept["scaler"])
        self.best, self.best_loss, self.since_best = kept["best"], kept["best_loss"], kept["since_best"]

    def _loss(self, images: list[NDArray[np.float32]], targets: NDArray[np.int64], part: str) -> Tensor:
        batch = torch.from_numpy(np.stack(images)).to(self.device)
        wanted = torch.from_numpy(targets).to(self.device)
        # On a CPU without units for it, half precision takes 300 times as long.
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.device.type == "cuda"):
            features = pooled_features(self.network, batch)
        logits = self.head(features.float())
        # A mean weighted by class would count a scan differently in each batch.
        losses = cross_entropy(logits, wanted, reduction="none") * self.importance[part][wanted]
        return losses.mean()

    def _schedule(self, part: float) -> None:
        """Lower all learning rates along half a cosine."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * part))


def _image(images: Images, scan: np.integer[Any] | int) -> NDArray[np.float32]:
    return np.asarray(images[int(scan)], dtype=np.float32)


def _order(
    scans: NDArray[np.int64], targets: NDArray[np.int64], options: TuneOptions, epoch: int
) -> NDArray[np.int64]:
    """Return the scans of an epoch in random order; with sampling, as many of each class."""
    generator = np.random.default_rng((options.seed, epoch))
    if options.imbalance not in ("oversample", "undersample"):
        return generator.permutation(scans)
    by_class = [scans[targets[scans] == c] for c in np.unique(targets[scans])]
    sizes = [len(members) for members in by_class]
    count = max(sizes) if options.imbalance == "oversample" else min(sizes)
    # Everyone as often as the others of the class, and the rest by lot.
    drawn = [
        np.concatenate(
            [*[members] * (count // len(members)), generator.permutation(members)[: count % len(members)]]
        )
        for members in by_class
    ]
    return generator.permutation(np.concatenate(drawn))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({**content, "version": CHECKPOINT_VERSION}, buffer)
    write_bytes(path, buffer.getvalue())


def _read(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint; None where there is none, or a damaged one, which is no loss but of time."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    fits = isinstance(content, dict) and content.get("version") == CHECKPOINT_VERSION
    return content if fits else None
