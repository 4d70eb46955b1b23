"""Whether the outline of a hippocampus can be believed, by what the network says of it and by its shape.

One number, the doubt, joins what tells wrong outlines from right ones. Its weights and its bound were fitted by
``training/hippocampus_quality.py`` to outlines of known overlap with the truth (``benchmarks/volumes.md``): crops and
heads of adults, and what wrong boxes, motion, lesions and cut fields of view made of them. Whom it is for are the old:
the border of a small hippocampus is a larger share of it, so that uncertainty counts relative to size, size itself
counts nothing, and a length beyond ``LONG_ENOUGH_MM`` is no merit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np

from brainstage.preprocessing.hippocampi import Hippocampus

FITTED_FILE: Final = "hippocampus_quality.json"
LONG_ENOUGH_MM: Final = 36.0
MOST_AT_RIM: Final = 0.02
"""Share of the outline at the rim of its box."""
MOST_CUT: Final = 0.1
"""Share of the outline that borders on the end of the field of view, or on nothing."""
VOLUME_ML: Final = (0.4, 8.0)
"""Of anybody: 1 ml is that of the most shrunken, 6 ml that of the largest heads."""
_FLOOR: Final = 0.003
"""Of a share, before its logarithm: less is nothing."""


def objection(found: Hippocampus | None) -> str | None:
    """Return why a hippocampus is not to be believed, as a short code; None where it is.

    Parameters
    ----------
    found : Hippocampus or None

    Returns
    -------
    str or None
        ``absent``, ``rim``, ``cut``, ``implausible`` or ``unsure``.
    """
    if found is None:
        return "absent"
    measured = {name: value or 0.0 for name, value in found.quality.items()}
    reasons = {
        "rim": measured["rim_share"] > MOST_AT_RIM,
        "cut": measured["cut_share"] > MOST_CUT,
        "implausible": not VOLUME_ML[0] <= found.volume_ml <= VOLUME_ML[1],
        "unsure": doubt(measured, found.volume_ml) > _fitted()["bound"],
    }
    return next((code for code, holds in reasons.items() if holds), None)


def features(measured: Mapping[str, float], volume_ml: float) -> dict[str, float]:
    """Return what the doubt is made of, by name.

    Parameters
    ----------
    measured : mapping
        Of ``Hippocampus.quality``.
    volume_ml : float
    """
    length_mm = max(measured["length_mm"], 5.0)
    return {
        # The uncertain shell grows with the surface, its share with the inverse of the diameter.
        "uncertain": float(
            np.log(np.clip(measured["uncertain_share"], 0.05, 1.0) * np.cbrt(max(volume_ml, 0.05)))
        ),
        "disagreement": float(np.log(1.002 - min(measured["agreement"], 1.0))),
        "elsewhere": float(np.log(measured["other_pieces"] + _FLOOR)),
        "cut": float(np.log(measured["cut_share"] + _FLOOR)),
        "short": -float(np.log(min(length_mm, LONG_ENOUGH_MM))),
        "stout": float(np.log(max(measured["thickness_mm"], 2.0) / length_mm)),
        "uncertain_inside": float(np.log(1.001 - min(measured["certainty"], 1.0))),
    }


def doubt(measured: Mapping[str, float], volume_ml: float) -> float:
    """Return the logarithm of the odds that an outline is wrong, among those that it was fitted to.

    Parameters
    ----------
    measured : mapping
        Of ``Hippocampus.quality``.
    volume_ml : float
    """
    fitted = _fitted()
    return fitted["intercept"] + sum(
        fitted[name] * value for name, value in features(measured, volume_ml).items()
    )


@cache
def _fitted() -> dict[str, float]:
    found: dict[str, float] = json.loads(
        (files("brainstage.preprocessing") / FITTED_FILE).read_text(encoding="utf-8")
    )
    return found
