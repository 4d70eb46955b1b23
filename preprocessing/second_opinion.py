"""A second opinion on a brain mask: the extractor that did not make it makes one too, and the two are compared."""

from __future__ import annotations

from brainstage.pipeline.errors import BrainExtractionError
from brainstage.pipeline.records import StrippedBrain
from brainstage.preprocessing.brain_extraction import deepbet_mask
from brainstage.preprocessing.registration import dice
from brainstage.preprocessing.template_extraction import template_brain_mask


def mask_agreement(stripped: StrippedBrain, *, seed: int = 0) -> float | None:
    """Return the Dice overlap of a scan's brain mask with the one that the other extractor finds.

    Parameters
    ----------
    stripped : StrippedBrain
        With the mask of deepbet, or of the template.
    seed : int
        For ANTs' random sampling.

    Returns
    -------
    float or None
        0 to 1; 0 when the other extractor finds no brain; None for a scan that came stripped, where there is
        nothing to extract.
    """
    if stripped.method == "none":
        return None
    try:
        other = (
            deepbet_mask(stripped.head)
            if stripped.method == "ants"
            else template_brain_mask(stripped.head, seed=seed)
        )
    except BrainExtractionError:
        return 0.0
    return dice(stripped.brain_mask.data, other.data)
