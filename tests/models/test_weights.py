"""Checkpoints are taken whole or refused with the keys that do not fit."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from brainstage.models import weights
from brainstage.models.choices import MED3D_ASSETS
from brainstage.models.med3d import ARCHITECTURES, build_med3d
from brainstage.models.published import Pin
from brainstage.models.weights import cache_directory, load_weights, state_bytes
from brainstage.pipeline.errors import WeightsError, WeightsMissingError


def med3d_state(architecture: str = "resnet10") -> dict[str, torch.Tensor]:
    """Keys and shapes as MedicalNet publishes them: each key under ``module.``, no counters."""
    state = build_med3d(architecture).state_dict()
    return {f"module.{key}": value for key, value in state.items() if "num_batches" not in key}


def saved(tmp_path, state, name="resnet_10_23dataset.pth"):
    path = tmp_path / name
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("architecture", ["resnet10", "resnet50"])
def test_published_checkpoint_is_taken_whole(tmp_path, architecture):
    state = med3d_state(architecture)
    loaded = load_weights(str(saved(tmp_path, state)))
    assert loaded.source.architecture == architecture
    assert loaded.source.kind == "path"
    assert loaded.report is not None
    assert loaded.report.matched == len(state)
    assert all(key.endswith("num_batches_tracked") for key in loaded.report.missing)
    assert torch.equal(loaded.network.state_dict()["conv1.weight"], state["module.conv1.weight"])


def test_a_file_says_what_it_is_by_its_sha256_and_not_by_its_name(tmp_path, monkeypatch):
    path = saved(tmp_path, med3d_state())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    stranger = load_weights(str(path)).source
    assert (stranger.kind, stranger.origin, stranger.pretrained) == ("path", "unknown", None)
    assert sha256 in stranger.words
    assert "23 data sets" not in stranger.words
    monkeypatch.setattr(weights, "PINNED", {"med3d-resnet10": Pin(sha256=sha256, revision="0" * 40)})
    known = load_weights(str(path)).source
    assert (known.kind, known.origin, known.pretrained) == ("med3d-resnet10", "published", True)


def test_segmentation_head_is_counted_and_allowed(tmp_path):
    state = {**med3d_state(), "module.conv_seg.0.weight": torch.zeros(2)}
    report = load_weights(str(saved(tmp_path, state))).report
    assert report is not None
    assert report.unexpected == ("conv_seg.0.weight",)
    assert str(report).endswith("1 unexpected")


def test_missing_key_is_named(tmp_path):
    state = med3d_state()
    del state["module.layer2.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"lacks 1 of .* keys: layer2\.0\.conv1\.weight"):
        load_weights(str(saved(tmp_path, state)))


def test_mismatched_shape_is_named(tmp_path):
    state = {**med3d_state(), "module.conv1.weight": torch.zeros(64, 3, 7, 7, 7)}
    with pytest.raises(
        WeightsError, match=r"conv1\.weight is \(64, 3, 7, 7, 7\) instead of \(64, 1, 7, 7, 7\)"
    ):
        load_weights(str(saved(tmp_path, state)))


def test_safetensors_are_read_as_well(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(state_bytes(build_med3d("resnet10").state_dict()))
    assert load_weights(str(path)).source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
def test_damaged_file_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        load_weights(str(path))


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": print}}, path)
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        load_weights(str(path))


def test_absent_path_says_what_is_possible():
    with pytest.raises(WeightsMissingError, match=r"no weights at 'nowhere\.pth'.*med3d-resnet10"):
        load_weights("nowhere.pth")


def test_absent_asset_says_which_command(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINSTAGE_CACHE", str(tmp_path))
    with pytest.raises(WeightsMissingError, match="brainstage fetch med3d-resnet10"):
        load_weights("med3d-resnet10")


def test_altered_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINSTAGE_CACHE", str(tmp_path))
    content = state_bytes(build_med3d("resnet10").state_dict())
    record = {"sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "med3d-resnet10.json").write_text(json.dumps(record))
    path = tmp_path / "med3d-resnet10.safetensors"
    path.write_bytes(content)
    source = load_weights("med3d-resnet10").source
    assert source.kind == "med3d-resnet10"
    assert source.pretrained is None
    assert source.words.startswith("origin not verified")
    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="not what was fetched"):
        load_weights("med3d-resnet10")


def test_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("BRAINSTAGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "brainstage"
    monkeypatch.setenv("BRAINSTAGE_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_random_weights_are_said_to_be_random():
    source = load_weights("random", seed=7).source
    assert source.pretrained is False
    assert source.origin == "random"
    assert "seed 7" in source.words
    assert "not pretrained" in source.words
    assert source == load_weights("random", seed=7).source
    assert source.sha256 != load_weights("random", seed=8).source.sha256


def test_every_published_network_can_be_fetched_and_built():
    assert tuple(f"med3d-{name}" for name in ARCHITECTURES) == MED3D_ASSETS
