"""Recipes that alter a training image as another scanner, pose or person might have; MONAI's, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainstage.pipeline.errors import UsageError

PROBABILITY: Final = 0.5
"""With which each recipe is applied to an image."""
TURN_RAD: Final = 0.09
SHIFT_VOXELS: Final = 2.0
STRETCH: Final = 0.05
"""Five degrees, two voxels, five per cent: what an affine registration leaves, not what a patient does."""
GHOST_STRENGTH: Final = (0.05, 0.3)
GHOST_COUNTS: Final = (2, 3, 4)
_LEFT_RIGHT_AXIS: Final = 0


def _pose() -> Any:  # noqa: ANN401 - MONAI ships no types
    from monai.transforms import RandAffine

    return RandAffine(
        prob=PROBABILITY,
        rotate_range=[TURN_RAD] * 3,
        translate_range=[SHIFT_VOXELS] * 3,
        scale_range=[STRETCH] * 3,
        mode="bilinear",
        padding_mode="border",
    )


def _left_right() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandFlip

    return RandFlip(prob=PROBABILITY, spatial_axis=_LEFT_RIGHT_AXIS)


def _flip() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandAxisFlip

    return RandAxisFlip(prob=PROBABILITY)


def _bias_field() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandBiasField

    return RandBiasField(prob=PROBABILITY, degree=3, coeff_range=(0.0, 0.1))


def _gamma() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandAdjustContrast

    return RandAdjustContrast(prob=PROBABILITY, gamma=(0.8, 1.25))


def _noise() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandGaussianNoise

    return RandGaussianNoise(prob=PROBABILITY, std=0.1)


def _low_resolution() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandSimulateLowResolution

    return RandSimulateLowResolution(prob=PROBABILITY, zoom_range=(0.5, 1.0))


def _ghosting() -> Any:  # noqa: ANN401 - likewise
    from monai.transforms import RandomizableTransform

    class RandGhosting(RandomizableTransform):  # type: ignore[misc]
        """Weaken every n-th line of k-space along an axis: n faint copies, shifted along it."""

        def __init__(self) -> None:
            super().__init__(prob=PROBABILITY)

        def __call__(self, image: Tensor) -> Tensor:
            self.randomize(None)
            if not self._do_transform:
                return image
            axis = int(self.R.randint(1, 4))
            every = int(self.R.choice(GHOST_COUNTS))
            strength = float(self.R.uniform(*GHOST_STRENGTH))
            return ghosted(image, axis, every, strength)

    return RandGhosting()


def ghosted(image: Tensor, axis: int, every: int, strength: float) -> Tensor:
    """Return an image with the ghosts of a motion as regular as breath.

    Parameters
    ----------
    image : Tensor, (1, D, H, W) float32
    axis : int
        1 to 3: along which phase was encoded.
    every : int
        Each so many lines of k-space are weakened; the centre of k-space, the mean, is kept.
    strength : float
        By which part.
    """
    spectrum = torch.fft.fft(image, dim=axis)
    factor = torch.ones(image.shape[axis])
    factor[every::every] -= strength
    shape = [1] * image.ndim
    shape[axis] = -1
    altered: Tensor = torch.fft.ifft(spectrum * factor.reshape(shape), dim=axis).real
    return altered.to(image.dtype)


RECIPES: Final[Mapping[str, Callable[[], Any]]] = MappingProxyType(
    {
        "pose": _pose,
        "flip": _flip,
        "left-right": _left_right,
        "bias-field": _bias_field,
        "gamma": _gamma,
        "noise": _noise,
        "ghosting": _ghosting,
        "low-resolution": _low_resolution,
    }
)
"""Name to what makes the transform. ``flip`` mirrors any axis, ``left-right`` only that one."""
DEFAULT_RECIPES: Final = ("pose", "left-right", "bias-field", "gamma", "noise")
"""What leaves a brain a plausible brain."""


class Augmentation:
    """Recipes one after the other, the same for the same seeds.

    Parameters
    ----------
    names : sequence of str
        Keys of :data:`RECIPES`; none leaves images as they are.

    Raises
    ------
    UsageError
        For a name that is unknown.
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in RECIPES:
                raise UsageError(f"--augment {name!r} is unknown: known are {', '.join(RECIPES)}")
        # In one order, whatever the order of the names.
        self._transforms = [make() for name, make in RECIPES.items() if name in names]

    def __call__(self, image: NDArray[np.float32], seeds: Sequence[int]) -> NDArray[np.float32]:
        """Return an altered image; a background of one value stays what it is.

        Parameters
        ----------
        image : ndarray, (1, D, H, W) float32
        seeds : sequence of int
            Such as the run's seed, the epoch and the scan's number.
        """
        if not self._transforms:
            return image
        altered = torch.from_numpy(np.ascontiguousarray(image))
        corner = float(image[0, 0, 0, 0])
        # The background goes with the brain where an image is turned or mirrored: it is altered beside it.
        inside = torch.from_numpy(image != corner).to(torch.float32)
        both = torch.cat([altered, inside])
        drawn = np.random.SeedSequence(list(seeds)).generate_state(len(self._transforms))
        for transform, seed in zip(self._transforms, drawn, strict=True):
            transform.set_random_state(seed=int(seed))
            both = _apply(transform, both)
        kept = both[1:] >= 0.5
        result = torch.where(kept, both[:1], torch.tensor(corner))
        return np.asarray(result.numpy(), dtype=np.float32)


def _apply(transform: Any, both: Tensor) -> Tensor:  # noqa: ANN401 - likewise
    """Alter image and mask alike where voxels move, the image alone where intensities change."""
    from monai.transforms import RandAffine, RandAxisFlip, RandFlip

    moves = isinstance(transform, RandAffine | RandAxisFlip | RandFlip)
    changed = torch.as_tensor(transform(both if moves else both[:1]))
    return changed if moves else torch.cat([changed, both[1:]])
