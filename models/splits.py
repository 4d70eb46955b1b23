"""Cross-validation folds: stratified by class, by participant, the same for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.errors import UsageError

MIN_FOLDS: Final = 3
"""Two folds would leave a class of few participants without any for the inner validation."""


def participant_classes(labels: Sequence[str], participants: Sequence[str]) -> dict[str, str]:
    """Return one class for each participant: that of most of their scans, the earliest of equals.

    Only stratification uses it. A participant who converts keeps every scan's own label.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for label, participant in zip(labels, participants, strict=True):
        votes[participant][label] += 1
    return {participant: count.most_common(1)[0][0] for participant, count in votes.items()}


def fold_of_scans(
    labels: Sequence[str], participants: Sequence[str], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Deal participants to folds, class by class.

    Within a class the participants are shuffled and dealt round; each class goes on where the one before ended,
    so that the folds differ by at most one participant in each class and in all.

    Returns
    -------
    ndarray, (N,) int64
        The fold of each scan, 0 to ``folds - 1``. All scans of a participant have the same.

    Raises
    ------
    UsageError
        When there are fewer folds than :data:`MIN_FOLDS`, or a class has fewer participants than folds.
    """
    class_of = participant_classes(labels, participants)
    _require_enough(class_of, folds)
    return _deal(class_of, participants, folds=folds, seed=seed)


def inner_validation(labels: Sequence[str], participants: Sequence[str], *, seed: int) -> NDArray[np.bool_]:
    """Choose about a fifth of a training fold's participants, of every class, for early stopping.

    Returns
    -------
    ndarray, (N,) bool
        True for validation scans. Half the participants of the smallest class where it has fewer than five.
    """
    class_of = participant_classes(labels, participants)
    smallest = min(Counter(class_of.values()).values())
    inner = _deal(class_of, participants, folds=max(2, min(5, smallest)), seed=seed)
    return np.asarray(inner == 0)


def shuffled_labels(labels: Sequence[str], participants: Sequence[str], *, seed: int) -> list[str]:
    """Permute labels between participants: the random-label control.

    Every scan of a participant gets the class of another participant, so that nothing but leakage can be learnt.
    """
    class_of = participant_classes(labels, participants)
    names = sorted(class_of)
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = {name: class_of[names[index]] for name, index in zip(names, order, strict=True)}
    return [drawn[participant] for participant in participants]


def _deal(
    class_of: dict[str, str], participants: Sequence[str], *, folds: int, seed: int
) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for name in sorted(set(class_of.values())):
        members = sorted(participant for participant, label in class_of.items() if label == name)
        start = len(fold_of)
        for position, index in enumerate(generator.permutation(len(members))):
            fold_of[members[index]] = (start + position) % folds
    return np.array([fold_of[participant] for participant in participants], dtype=np.int64)


def _require_enough(class_of: dict[str, str], folds: int) -> None:
    if folds < MIN_FOLDS:
        raise UsageError(f"--folds {folds}: cross-validation here needs at least {MIN_FOLDS} folds")
    counts = Counter(class_of.values())
    if len(counts) < 2:
        raise UsageError(f"training needs at least two classes, got {', '.join(counts) or 'none'}")
    short = {name: count for name, count in sorted(counts.items()) if count < folds}
    if not short:
        return
    listed = ", ".join(f"{name!r} has {count}" for name, count in short.items())
    fewest = min(short.values())
    advice = f"use --folds {fewest}, or " if fewest >= MIN_FOLDS else ""
    raise UsageError(
        f"{folds} folds need {folds} participants of every class, but {listed}: {advice}"
        f"leave the class out with --classes, or add participants"
    )
