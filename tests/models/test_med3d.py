"""The network is Med3D's: its features equal those of a second implementation, written here from the description."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet10
from torch import Tensor
from torch.nn.functional import batch_norm, conv3d, max_pool3d, relu

from brainstage.models.med3d import (
    ARCHITECTURES,
    STAGES,
    build_med3d,
    infer_architecture,
    initialise_randomly,
    stage_maps,
)
from brainstage.pipeline.errors import WeightsError

State = dict[str, Tensor]


def normalised(state: State, name: str, x: Tensor) -> Tensor:
    return batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
    )


def shortcut(state: State, name: str, x: Tensor, channels: int, stride: int) -> Tensor:
    """Shortcut B where the weights hold one, otherwise A: sub-sampling and zero channels."""
    if f"{name}.downsample.0.weight" in state:
        return normalised(
            state, f"{name}.downsample.1", conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride)
        )
    x = x[..., ::stride, ::stride, ::stride]
    return torch.cat([x, x.new_zeros(x.shape[0], channels - x.shape[1], *x.shape[2:])], dim=1)


def residual(state: State, name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
    def three(number: int, y: Tensor, stride: int) -> Tensor:
        weight = state[f"{name}.conv{number}.weight"]
        return normalised(
            state, f"{name}.bn{number}", conv3d(y, weight, stride=stride, padding=dilation, dilation=dilation)
        )

    def one(number: int, y: Tensor) -> Tensor:
        return normalised(state, f"{name}.bn{number}", conv3d(y, state[f"{name}.conv{number}.weight"]))

    if f"{name}.conv3.weight" in state:
        y = one(3, relu(three(2, relu(one(1, x)), stride)))
    else:
        y = three(2, relu(three(1, x, stride)), 1)
    changes = stride != 1 or y.shape[1] != x.shape[1]
    return relu(y + (shortcut(state, name, x, y.shape[1], stride) if changes else x))


def medicalnet_maps(state: State, image: Tensor) -> dict[str, Tensor]:
    """MedicalNet's forward pass: strides 2, 1, 2, 1, 1; dilation 2 and 4 in the last two layers."""
    x = relu(normalised(state, "bn1", conv3d(image, state["conv1.weight"], stride=2, padding=3)))
    maps = {"conv1": x}
    x = max_pool3d(x, kernel_size=3, stride=2, padding=1)
    for layer, stride, dilation in (("layer1", 1, 1), ("layer2", 2, 1), ("layer3", 1, 2), ("layer4", 1, 4)):
        blocks = sorted({int(key.split(".")[1]) for key in state if key.startswith(f"{layer}.")})
        for block in blocks:
            x = residual(state, f"{layer}.{block}", x, stride if block == 0 else 1, dilation)
        maps[layer] = x
    return maps


def lively_network(architecture: str) -> torch.nn.Module:
    """Random weights, and normalisation statistics that are not the identity."""
    network = build_med3d(architecture)
    initialise_randomly(network, seed=3)
    generator = torch.Generator().manual_seed(4)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (part.bias.data, part.running_mean):
                tensor.uniform_(-0.2, 0.2, generator=generator)
    return network


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_features_equal_medicalnets(architecture):
    network = lively_network(architecture)
    image = torch.randn(1, 1, 32, 40, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        maps, expected = stage_maps(network, image), medicalnet_maps(network.state_dict(), image)
    assert tuple(maps) == STAGES
    for stage in STAGES:
        scale = expected[stage].abs().max()
        assert (maps[stage] - expected[stage]).abs().max() <= 1e-6 * scale, stage


def test_maps_shrink_to_an_eighth_and_no_further():
    with torch.no_grad():
        maps = stage_maps(build_med3d("resnet10"), torch.zeros(1, 1, 32, 48, 32))
    assert {stage: tuple(found.shape[2:]) for stage, found in maps.items()} == {
        "conv1": (16, 24, 16),
        "layer1": (8, 12, 8),
        "layer2": (4, 6, 4),
        "layer3": (4, 6, 4),
        "layer4": (4, 6, 4),
    }


def test_monais_strides_give_monais_features():
    network = lively_network("resnet10")
    built = build_med3d("resnet10", "monai")
    built.load_state_dict(network.state_dict())
    theirs = resnet10(n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False).eval()
    theirs.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 32, 40, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        maps = stage_maps(built, image)
        assert torch.allclose(maps["layer4"].mean(dim=(2, 3, 4)), theirs(image), atol=1e-5)
        assert not torch.allclose(maps["layer4"].mean(), stage_maps(network, image)["layer4"].mean())
    assert tuple(maps["layer4"].shape[2:]) == (2, 3, 2)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        network = build_med3d("resnet10")
        initialise_randomly(network, seed)
        states.append(network.state_dict()["layer4.0.conv2.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architecture_is_read_off_the_keys(architecture):
    assert infer_architecture(build_med3d(architecture).state_dict()) == architecture


def test_keys_of_another_network_are_refused():
    with pytest.raises(WeightsError, match="no Med3D network"):
        infer_architecture({"fc.weight": torch.zeros(1)})
