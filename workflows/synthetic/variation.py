"""What differs between scans that are all right: quality control must not mind it.

The counterpart of :mod:`brainstage.workflows.synthetic.damage`.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.resampling import resampled
from brainstage.workflows.synthetic.ageing import MARKED, MILD, SEVERE, aged
from brainstage.workflows.synthetic.damage import Damage, Specimen, dilated, noisy


def unchanged(specimen: Specimen) -> Volume:
    """Return the head as it is."""
    return specimen.head


def at_spacing(specimen: Specimen, *, spacing_mm: float) -> Volume:
    """Return the head with cubic voxels of another size."""
    return resampled(specimen.head, specimen.head.grid.rescaled(spacing_mm))


def tilted(specimen: Specimen, *, degrees: float) -> Volume:
    """Return the head turned about an axis drawn at random; its voxels stay as they are."""
    axis = specimen.rng.normal(size=3)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(degrees * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    return Volume(data=specimen.head.data, voxel_to_ras=turn @ specimen.head.voxel_to_ras)


def shaded(specimen: Specimen) -> Volume:
    """Return the head under a coil that is twice as sensitive at one side as at the other."""
    head = specimen.head
    direction = specimen.rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    index = np.indices(head.shape, dtype=np.float32)
    position = sum(d * (i / (n - 1) - 0.5) for d, i, n in zip(direction, index, head.shape, strict=True))
    return head.with_data(head.data * np.exp(0.7 * position))


def brightest_clipped(specimen: Specimen) -> Volume:
    """Return the head as a converter to 8 bits leaves it: fat and vessels, the brightest half per cent, saturated."""
    head = specimen.head
    ceiling = np.quantile(head.data[head.data > 0], 0.995)
    return head.with_data(np.round(np.minimum(head.data, ceiling) * (255.0 / ceiling)))


def stripped(specimen: Specimen, *, margin_mm: float) -> Volume:
    """Return the brain alone, its mask grown or shrunk by a margin: the habits of other skull strippers."""
    mask = dilated(specimen.brain_mask, margin_mm)
    return specimen.head.with_data(np.where(mask.data, specimen.head.data, 0.0))


VARIATIONS: Final[dict[str, Damage]] = {
    "as it is": unchanged,
    "2 mm voxels": partial(at_spacing, spacing_mm=2.0),
    "tilted by 20 degrees": partial(tilted, degrees=20.0),
    "one-sided coil": shaded,
    "noise, SD 5 % of white matter": partial(noisy, share_of_white=0.05),
    "8 bits, brightest saturated": brightest_clipped,
}
"""Name to what makes it; ageing stands in :data:`AGEINGS`."""

AGEINGS: Final[dict[str, Damage]] = {
    "mildly aged": partial(aged, ageing=MILD),
    "markedly aged": partial(aged, ageing=MARKED),
    "severely aged": partial(aged, ageing=SEVERE),
}
"""For every cohort, in turn: quality control has to let old brains pass, of which cohorts of volunteers have few."""

STRIPPINGS: Final[dict[str, Damage]] = {
    "stripped": partial(stripped, margin_mm=0.0),
    "stripped closely": partial(stripped, margin_mm=-1.0),
    "stripped loosely": partial(stripped, margin_mm=1.5),
}
"""For whole heads."""
