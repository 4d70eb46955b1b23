"""How much fluid there is around the medial temporal lobes.

Shares, not volumes: in template space the head's size has gone. Nothing here segments a structure: the regions are
boxes, and what is fluid in them lies in the temporal horns, the choroid fissures and around the lobes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.regions import coarse_atlas

MORPHOMETRY_VERSION: Final = "2"
"""Raised when one of the measures becomes another: what is usual by one version is not by the next."""
MORPHOMETRY_MM: Final = 2.0

MEDIAL_TEMPORAL: Final = ("medial_temporal_fluid_left", "medial_temporal_fluid_right")
MORPHOMETRY: Final = ("ventricle_share", *MEDIAL_TEMPORAL)
"""The measures of fluid, by name; per cent. For the first see :mod:`brainstage.preprocessing.ventricles`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Regions:
    """Where to look, (I, J, K) bool on the template's grid of 2 mm."""

    left_medial_temporal: NDArray[np.bool_]
    right_medial_temporal: NDArray[np.bool_]


def medial_temporal_fluid(
    brain: NDArray[np.float32], brain_mask: BrainMask, grey_mean: float, white_mean: float
) -> dict[str, float | None]:
    """Return the share of fluid around the medial temporal lobes, in per cent.

    Fluid is as much darker than grey matter as that is darker than white matter; what lies between counts in part.

    Parameters
    ----------
    brain : ndarray, (I, J, K) float32
        Registered, bias-corrected, in the units of the two means, on the template's grid of 2 mm.
    brain_mask : BrainMask
        On the same grid.
    grey_mean, white_mean : float
        Intensities of grey and of white matter.

    Returns
    -------
    dict
        ``medial_temporal_fluid_left`` and ``medial_temporal_fluid_right``: fluid over what is in the mask there. None
        where grey and white matter have no contrast, or no brain is there.
    """
    mask = brain_mask.data
    if white_mean <= grey_mean or not mask.any():
        return dict.fromkeys(MEDIAL_TEMPORAL)
    fluid = np.where(mask, np.clip((grey_mean - brain) / (white_mean - grey_mean), 0.0, 1.0), 0.0)
    regions = _regions()
    return {
        "medial_temporal_fluid_left": _share(fluid, mask & regions.left_medial_temporal),
        "medial_temporal_fluid_right": _share(fluid, mask & regions.right_medial_temporal),
    }


@cache
def _regions() -> _Regions:
    atlas = coarse_atlas(MORPHOMETRY_MM)
    label_of = {name: label for label, name in atlas.names.items()}
    labels = atlas.labels.data

    def region(name: str) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = labels == label_of[name]
        return found

    return _Regions(
        left_medial_temporal=region("left medial temporal"),
        right_medial_temporal=region("right medial temporal"),
    )


def _share(fluid: NDArray[np.floating], inside: NDArray[np.bool_]) -> float | None:
    return float(f"{100.0 * fluid[inside].sum() / inside.sum():.4g}") if inside.any() else None
