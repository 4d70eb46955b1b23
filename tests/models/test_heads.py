"""A head gives the same logits wherever it lives, and an attention that was never trained does nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainstage.models.attention import train_attention_head
from brainstage.models.features import feature_channels, pooled_features
from brainstage.models.heads import (
    AttentionHead,
    LinearHead,
    attention_head,
    head_arrays,
    head_from_arrays,
    head_module,
    head_of,
)
from brainstage.models.med3d import ARCHITECTURES, build_med3d
from brainstage.models.training import HeadOptions

CHANNEL = np.repeat(np.arange(10), 4)


def linear_head(seed=0, features=40, classes=3):
    generator = np.random.default_rng(seed)
    return LinearHead(
        mean=generator.standard_normal(features).astype(np.float32),
        scale=generator.uniform(0.5, 2, features).astype(np.float32),
        weight=generator.standard_normal((classes, features)).astype(np.float32),
        bias=generator.standard_normal(classes).astype(np.float32),
    )


def trained_attention(seed=0):
    """An attention head whose gates are not all one."""
    head = attention_head(linear_head(seed), CHANNEL, seed=seed)
    excite = np.random.default_rng(seed + 1).standard_normal(head.excite_weight.shape).astype(np.float32)
    return AttentionHead(**{**vars(head), "excite_weight": excite})


def values(scans=7, features=40):
    return np.random.default_rng(5).standard_normal((scans, features)).astype(np.float32)


def test_attention_begins_as_the_linear_head():
    linear = linear_head()
    assert np.allclose(
        attention_head(linear, CHANNEL, seed=3).logits(values()), linear.logits(values()), atol=1e-5
    )


def test_attention_weighs_whole_channels():
    head, features = trained_attention(), values(1)
    module = head_module(head)
    standardised = torch.from_numpy((features - head.mean) / head.scale)
    gates = module.gates(standardised)[0].detach().numpy()
    assert gates.shape == (10,)
    assert np.ptp(gates) > 0.1
    assert ((gates >= 0) & (gates <= 2)).all()
    expected = (standardised.numpy() * np.repeat(gates, 4)) @ head.weight.T + head.bias
    assert np.allclose(head.logits(features), expected, atol=1e-4)


@pytest.mark.parametrize("head", [linear_head(), trained_attention()], ids=["linear", "attention"])
def test_arrays_and_modules_hold_the_whole_head(head):
    for other in (head_from_arrays(head_arrays(head)), head_of(head_module(head))):
        assert type(other) is type(head)
        assert np.array_equal(other.logits(values()), head.logits(values()))


def test_missing_arrays_are_refused():
    arrays = head_arrays(trained_attention())
    del arrays["excite_bias"]
    with pytest.raises(TypeError, match="excite_bias"):
        head_from_arrays(arrays)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_are_those_of_the_features(architecture):
    features = pooled_features(build_med3d(architecture), torch.rand(1, 1, 32, 32, 32))
    channel = feature_channels(architecture)
    assert channel.shape == features.shape[1:]
    assert (np.diff(channel) >= 0).all()
    assert set(np.diff(channel)) <= {0, 1}


def gated_cohort(scans=240, seed=0):
    """A class that a linear map cannot see: the sign of one channel counts only where another says so."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((scans, 40)).astype(np.float32)
    switch = generator.integers(0, 2, scans)
    features[:, :4] += 4.0 * switch[:, None]
    targets = (features[:, 8:12].mean(axis=1) > 0) & (switch == 1)
    return features, targets.astype(np.int64), [f"sub-{n}" for n in range(scans)]


def test_attention_learns_and_logs_what_it_did():
    features, targets, participants = gated_cohort()
    head, rows = train_attention_head(
        features, targets, participants, channel=CHANNEL, classes=2, options=HeadOptions()
    )
    phases = [row.phase for row in rows]
    assert list(dict.fromkeys(phases)) == [
        "search",
        "final",
        "attention search",
        "attention final",
    ]
    searched = [row.validation_loss for row in rows if row.phase == "attention search"]
    steps = phases.count("attention final") - 1
    assert steps == int(np.argmin(searched)) > 0
    assert np.abs(head.excite_weight).max() > 0
    fresh, wanted, _ = gated_cohort(seed=1)
    linear = LinearHead(mean=head.mean, scale=head.scale, weight=head.weight, bias=head.bias)
    right = (head.logits(fresh).argmax(axis=1) == wanted).mean()
    assert right > max(0.75, (linear.logits(fresh).argmax(axis=1) == wanted).mean() - 0.02)
