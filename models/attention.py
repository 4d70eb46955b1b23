"""Training the channel attention of a head, from the linear head on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from brainstage.models.heads import LinearHead, attention_head, head_module, head_of
from brainstage.models.imbalance import resampled
from brainstage.models.splits import validation_part
from brainstage.models.training import HeadOptions, LogRow, class_weights, train_head

LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.05
EPOCHS: Final = 100
"""At most: the head is nearly right when the attention begins to learn."""


def train_attention_head(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    participants: Sequence[str],
    *,
    channel: NDArray[np.int64],
    classes: int,
    options: HeadOptions,
    fold: int = 0,
) -> tuple[LinearHead, list[LogRow]]:
    """Train a head with channel attention on one training fold.

    The linear head comes first, as :func:`~brainstage.models.training.train_head` fits it. The attention begins as
    nothing and is trained with the head for as many epochs as participants held back allow; when that is none, the
    result is the linear head's.

    Parameters
    ----------
    features : ndarray, (N, F) float32
    targets : ndarray, (N,) int64
    participants : sequence of str
    channel : ndarray, (F,) int64
        From :func:`~brainstage.models.features.feature_channels`.

    Returns
    -------
    AttentionHead
    list of LogRow
    """
    held = validation_part(targets, participants, seed=options.seed)
    inner = [name for name, out in zip(participants, held, strict=True) if not out]
    short = replace(options, epochs=min(options.epochs, EPOCHS))
    start, _ = train_head(features[~held], targets[~held], inner, classes=classes, options=options, fold=fold)
    validation = features[held], targets[held]
    _, searched = _descend(start, channel, features[~held], targets[~held], short, short.epochs, validation)
    losses = [np.inf if loss is None else loss for _, loss in searched]
    best = int(np.argmin(losses))
    linear, rows = train_head(features, targets, participants, classes=classes, options=options, fold=fold)
    head, fitted = _descend(linear, channel, features, targets, short, best, None)
    rows += [
        LogRow(fold=fold, phase=phase, epoch=epoch, training_loss=training, validation_loss=loss)
        for phase, steps in (("attention search", searched), ("attention final", fitted))
        for epoch, (training, loss) in enumerate(steps)
    ]
    return head, rows


def _descend(
    start: LinearHead,
    channel: NDArray[np.int64],
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    options: HeadOptions,
    epochs: int,
    validation: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
) -> tuple[LinearHead, list[tuple[float, float | None]]]:
    """Minimise the weighted cross-entropy with full-batch AdamW; row n holds the losses after n steps."""
    module = head_module(attention_head(start, channel, seed=options.seed))
    optimiser = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    balanced = torch.from_numpy(class_weights(targets, len(start.bias), options.imbalance))
    features, targets = resampled(features, targets, options.imbalance, seed=options.seed)
    importance = torch.from_numpy(class_weights(targets, len(start.bias), options.imbalance))
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(targets)
    steps: list[tuple[float, float | None]] = []
    best, since_best = np.inf, 0
    while True:
        optimiser.zero_grad()
        loss = cross_entropy(module(inputs), wanted, weight=importance)
        held_loss = None
        if validation is not None:
            with torch.no_grad():
                logits = module(torch.from_numpy(validation[0]))
            held_loss = cross_entropy(logits, torch.from_numpy(validation[1]), weight=balanced).item()
            since_best = 0 if held_loss < best else since_best + 1
            best = min(best, held_loss)
        steps.append((loss.item(), held_loss))
        if len(steps) > epochs or since_best >= options.patience:
            return head_of(module), steps
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
