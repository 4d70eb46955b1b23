"""How much fluid there is in the ventricles and around the medial temporal lobes: what atrophy changes first.

Shares, not volumes: in template space the head's size has gone. Nothing here segments a structure. The ventricles
are what is fluid and hangs together with the template's; the medial temporal regions are boxes, and what is fluid
in them lies in the temporal horns, the choroid fissures and around the lobes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.regions import coarse_atlas, ventricle_surroundings

MORPHOMETRY_MM: Final = 2.0
HALF_FLUID: Final = 0.5
VENTRICLE_GROWTH_MM: Final = 16.0
"""How far from the template's own ventricles fluid still belongs to a person's."""

MORPHOMETRY: Final = ("ventricle_share", "medial_temporal_fluid_left", "medial_temporal_fluid_right")
"""The measures, by name; per cent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Regions:
    """Where to look, (I, J, K) bool on the template's grid of 2 mm."""

    ventricles: NDArray[np.bool_]
    around_ventricles: NDArray[np.bool_]
    left_medial_temporal: NDArray[np.bool_]
    right_medial_temporal: NDArray[np.bool_]


def morphometry(
    brain: NDArray[np.float32], brain_mask: BrainMask, grey_mean: float, white_mean: float
) -> dict[str, float | None]:
    """Return the share of fluid in three places, in per cent.

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
        ``ventricle_share``: lateral ventricles over the brain mask; ``medial_temporal_fluid_left`` and
        ``medial_temporal_fluid_right``: fluid over what is in the mask there. None where grey and white matter
        have no contrast, or no brain is there.
    """
    mask = brain_mask.data
    regions = _regions()
    if white_mean <= grey_mean or not mask.any():
        return dict.fromkeys(MORPHOMETRY)
    fluid = np.where(mask, np.clip((grey_mean - brain) / (white_mean - grey_mean), 0.0, 1.0), 0.0)
    mostly_fluid = fluid > HALF_FLUID
    ventricles = ndimage.binary_dilation(
        regions.ventricles & mostly_fluid,
        iterations=round(VENTRICLE_GROWTH_MM / MORPHOMETRY_MM),
        mask=regions.around_ventricles & mostly_fluid,
    )
    return {
        "ventricle_share": _per_cent(fluid[ventricles].sum(), mask.sum()),
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
        ventricles=region("left lateral ventricle") | region("right lateral ventricle"),
        around_ventricles=ventricle_surroundings(MORPHOMETRY_MM),
        left_medial_temporal=region("left medial temporal"),
        right_medial_temporal=region("right medial temporal"),
    )


def _share(fluid: NDArray[np.floating], inside: NDArray[np.bool_]) -> float | None:
    return _per_cent(fluid[inside].sum(), inside.sum()) if inside.any() else None


def _per_cent(part: float, whole: float) -> float:
    return float(f"{100.0 * float(part) / float(whole):.4g}")
