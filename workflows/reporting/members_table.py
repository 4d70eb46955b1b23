"""What each member of the model says about a scan, as a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from brainstage.pipeline.records import Prediction

KNOWN_TO: Final[Mapping[str, str]] = MappingProxyType(
    {
        "network": "the image, through a 3D network",
        "linear": "brightness and local volume, voxel by voxel",
        "volumes": "volumes of structures, with age and sex where they are known",
    }
)
"""Member to what it knows of a scan."""


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """One member's own answer.

    Attributes
    ----------
    name : str
    knows : str
        What it is given of a scan.
    label : str
        The class that it says.
    above_chance : bool
        By itself and out of fold.
    counts : str
        How much it counts in the published probabilities; empty where that is not known.
    """

    name: str
    knows: str
    label: str
    above_chance: bool
    counts: str


def member_rows(prediction: Prediction) -> tuple[MemberRow, ...]:
    """Return the members' own answers, in the order of the model."""
    return tuple(
        MemberRow(
            name=name,
            knows=KNOWN_TO.get(name, ""),
            label=label,
            above_chance=name in prediction.compared_members,
            counts=f"{prediction.member_weights[name]:.2f}" if name in prediction.member_weights else "",
        )
        for name, label in prediction.member_labels.items()
    )


def members_sentence(prediction: Prediction) -> str:
    """Say whether the members agree with the published class, and what it means if they do not."""
    label = prediction.predicted_label
    others = [row for row in member_rows(prediction) if row.label != label]
    if not others:
        return (
            f"Every member says {label}."
            if len(prediction.member_labels) > 1
            else "The model has one member."
        )
    able = [row for row in others if row.above_chance]
    if not able:
        return (
            f"Published is {label}. {_said(others)}: not better than chance, so this says nothing against it."
        )
    meaning = (
        "Out of fold, such predictions were wrong more often, so the prediction is flagged."
        if prediction.disagreement_flags
        else "Out of fold, such predictions were not shown to be wrong more often, so this is a note and flags nothing."
    )
    return f"Published is {label}. Of the members that are better than chance, {_said(able)}. {meaning}"


def weights_sentence(prediction: Prediction) -> str:
    """Say how much each member counts in the published probabilities; empty where that is not known."""
    weights = prediction.member_weights
    counting = sorted((name for name in weights if weights[name]), key=lambda name: -weights[name])
    others = [name for name in weights if not weights[name]]
    if not counting:
        return ""
    folds = (
        "in the fold that did not learn from this scan"
        if prediction.seen_in_training
        else "on average over the folds"
    )
    if len(counting) == 1 and weights[counting[0]] > _WHOLE:
        text = f"The published probabilities are those of {counting[0]} alone"
    else:
        named = _and([f"{name} {weights[name]:.2f}" for name in counting])
        text = f"The published probabilities weigh {named} ({folds}; 1 is a member alone)"
    return (
        f"{text}; {_and(others)} {'has' if len(others) == 1 else 'have'} no part in them."
        if others
        else f"{text}."
    )


_WHOLE: Final = 0.995
"""From this weight on a member counts alone."""


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _said(rows: Sequence[MemberRow]) -> str:
    return " and ".join(f"{row.name} says {row.label}" for row in rows)
