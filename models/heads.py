"""From a feature vector to logits: a linear map, or one whose channels weigh each other first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SQUEEZED: Final = 32
"""Units between what all channels show and how much each of them counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """A standardisation and a linear map, as fitted in one training fold.

    Attributes
    ----------
    mean, scale : ndarray, (F,) float32
        Of the training fold's features.
    weight : ndarray, (C, F) float32
    bias : ndarray, (C,) float32
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return uncalibrated logits.

        Parameters
        ----------
        features : ndarray, (N, F) float32

        Returns
        -------
        ndarray, (N, C) float64
        """
        standardised = (features - self.mean) / self.scale
        return np.asarray(standardised @ self.weight.T + self.bias, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionHead(LinearHead):
    """A linear head behind channel attention over the features of all stages together.

    What every channel of every stage shows on average decides how much each channel counts for this scan, between
    nothing and twice as much (squeeze and excitation; Hu et al. 2018, doi:10.1109/CVPR.2018.00745).

    Attributes
    ----------
    channel : ndarray, (F,) int64
        Which channel, of those of all stages, each feature belongs to.
    squeeze_weight, squeeze_bias : ndarray, (R, K) and (R,) float32
    excite_weight, excite_bias : ndarray, (K, R) and (K,) float32
    """

    channel: NDArray[np.int64]
    squeeze_weight: NDArray[np.float32]
    squeeze_bias: NDArray[np.float32]
    excite_weight: NDArray[np.float32]
    excite_bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return uncalibrated logits (N, C) float64 of features (N, F) float32."""
        with torch.inference_mode():
            return np.asarray(head_module(self)(torch.from_numpy(features)).numpy(), dtype=np.float64)


class HeadModule(nn.Module):
    """A head as a module that can be trained further and be part of a network.

    Parameters
    ----------
    features, classes : int
    channels : int
        Of all stages together, for the attention; 0 for a linear head.
    """

    mean: Tensor
    scale: Tensor
    channel: Tensor

    def __init__(self, features: int, classes: int, channels: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.channels = channels
        if channels:
            self.register_buffer("channel", torch.zeros(features, dtype=torch.int64))
            self.squeeze = nn.Linear(channels, SQUEEZED)
            self.excite = nn.Linear(SQUEEZED, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of features (B, F)."""
        standardised = (features - self.mean) / self.scale
        if self.channels:
            standardised = standardised * self.gates(standardised)[:, self.channel]
        return standardised @ self.weight.T + self.bias

    def gates(self, standardised: Tensor) -> Tensor:
        """Return how much each channel counts, (B, K), 0 to 2."""
        sums = standardised.new_zeros(len(standardised), self.channels)
        sums = sums.index_add(1, self.channel, standardised)
        counts = torch.bincount(self.channel, minlength=self.channels)
        return 2.0 * torch.sigmoid(self.excite(torch.relu(self.squeeze(sums / counts))))


def attention_head(linear: LinearHead, channel: NDArray[np.int64], *, seed: int) -> AttentionHead:
    """Return a linear head with an attention that does nothing yet: every channel counts once.

    Parameters
    ----------
    linear : LinearHead
    channel : ndarray, (F,) int64
    seed : int
        Of the random weights behind which the attention can grow.
    """
    channels = int(channel.max()) + 1
    spread = np.sqrt(2.0 / channels)
    drawn = np.random.default_rng(seed).normal(0.0, spread, (SQUEEZED, channels))
    return AttentionHead(
        mean=linear.mean,
        scale=linear.scale,
        weight=linear.weight,
        bias=linear.bias,
        channel=channel,
        squeeze_weight=drawn.astype(np.float32),
        squeeze_bias=np.zeros(SQUEEZED, dtype=np.float32),
        excite_weight=np.zeros((channels, SQUEEZED), dtype=np.float32),
        excite_bias=np.zeros(channels, dtype=np.float32),
    )


_PARTS: Final = {
    "squeeze.weight": "squeeze_weight",
    "squeeze.bias": "squeeze_bias",
    "excite.weight": "excite_weight",
    "excite.bias": "excite_bias",
}
"""Where a module's tensors stand in an :class:`AttentionHead`."""


def head_module(head: LinearHead) -> HeadModule:
    """Return a head of either kind as a module with the same values."""
    classes, features = head.weight.shape
    channels = len(head.excite_bias) if isinstance(head, AttentionHead) else 0
    module = HeadModule(features, classes, channels)
    arrays = head_arrays(head)
    module.load_state_dict(
        {name: torch.tensor(arrays[_PARTS.get(name, name)]) for name in module.state_dict()}
    )
    return module


def head_of(module: HeadModule) -> LinearHead:
    """Return the values of a module as a head of its kind."""
    arrays = {_PARTS.get(name, name): value.cpu().numpy() for name, value in module.state_dict().items()}
    return head_from_arrays(arrays)


def head_arrays(head: LinearHead) -> dict[str, NDArray[Any]]:
    """Return a head's arrays by name."""
    return {name: np.ascontiguousarray(array) for name, array in vars(head).items()}


def head_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> LinearHead:
    """Return the head that arrays of :func:`head_arrays` belong to.

    Raises
    ------
    TypeError
        When arrays are missing or superfluous.
    """
    return AttentionHead(**arrays) if "channel" in arrays else LinearHead(**arrays)
