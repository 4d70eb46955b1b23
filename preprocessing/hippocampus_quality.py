"""Whether the outline of a hippocampus can be believed, by what the network says of it and by its shape.

The bounds were set on outlines of known overlap with the truth: crops, adults' heads and what was made of them by wrong
boxes, motion, lesions and cut fields of view (``benchmarks/volumes.md``). Whom they are for are the old: a small,
short, thin hippocampus beside a wide ventricle is no reason to withhold it.
"""

from __future__ import annotations

from typing import Final

from brainstage.preprocessing.hippocampi import Hippocampus

LEAST_AGREEMENT: Final = 0.85
"""Dice of what the network says from two places."""
LEAST_CERTAINTY: Final = 0.8
"""Mean probability inside the outline."""
MOST_AT_RIM: Final = 0.02
"""Share of the outline at the rim of its box."""
MOST_CUT: Final = 0.1
"""Share of the outline that borders on the end of the field of view, or on nothing."""
MOST_ELSEWHERE: Final = 0.15
"""Volume of other pieces over that of the largest."""
MOST_AWAY_MM: Final = 22.0
"""Of where the affine registration expects it, in template space."""
VOLUME_ML: Final = (0.5, 7.0)
LENGTH_MM: Final = (20.0, 60.0)


def objection(found: Hippocampus | None) -> str | None:
    """Return why a hippocampus is not to be believed, as a short code; None where it is.

    Parameters
    ----------
    found : Hippocampus or None

    Returns
    -------
    str or None
        ``absent``, ``rim``, ``cut``, ``pieces``, ``unsure`` or ``implausible``.
    """
    if found is None:
        return "absent"
    measured = found.quality
    agreement, certainty, rim, cut, elsewhere, away_mm, length_mm = (
        measured[name] or 0.0
        for name in (
            "agreement", "certainty", "rim_share", "cut_share", "other_pieces", "away_mm", "length_mm",
        )
    )  # fmt: skip
    reasons = {
        "rim": rim > MOST_AT_RIM,
        "cut": cut > MOST_CUT,
        "unsure": agreement < LEAST_AGREEMENT or certainty < LEAST_CERTAINTY,
        "pieces": elsewhere > MOST_ELSEWHERE,
        "implausible": away_mm > MOST_AWAY_MM
        or not LENGTH_MM[0] <= length_mm <= LENGTH_MM[1]
        or not VOLUME_ML[0] <= found.volume_ml <= VOLUME_ML[1],
    }
    return next((code for code, holds in reasons.items() if holds), None)
