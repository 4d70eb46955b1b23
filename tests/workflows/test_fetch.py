"""Weights are fetched once, checked, and never without a word about what is missing."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from brainstage.models.med3d import build_med3d
from brainstage.models.weights import load_weights
from brainstage.pipeline.errors import UsageError, WeightsError, WeightsMissingError
from brainstage.workflows.fetch import fetch, hub_file

NAME = "resnet_10_23dataset.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BRAINSTAGE_CACHE", str(folder))
    return folder


@pytest.fixture
def published(tmp_path):
    state = {f"module.{key}": value for key, value in build_med3d("resnet10").state_dict().items()}
    path = tmp_path / NAME
    torch.save({"state_dict": state}, path)
    return path.read_bytes()


def pretend_hub(monkeypatch, content: bytes, etag: str) -> None:
    def download(repository, name, local_dir):
        assert repository == "TencentMedicalNet/MedicalNet-Resnet10"
        path = f"{local_dir}/{name}"
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(content)
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: SimpleNamespace(etag=etag))


def test_download_is_checked_converted_and_loadable(cache, published, monkeypatch):
    said: list[str] = []
    pretend_hub(monkeypatch, published, hashlib.sha256(published).hexdigest())
    path = fetch("med3d-resnet10", say=said.append)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["source_sha256"] == record["source_sha256_published"]
    assert load_weights("med3d-resnet10").source.sha256 == record["sha256"]
    assert sorted(p.name for p in cache.iterdir()) == ["med3d-resnet10.json", "med3d-resnet10.safetensors"]
    assert "0 missing" in said[-1]
    fetch("med3d-resnet10", say=said.append)
    assert "already in" in said[-1]


def test_altered_download_is_refused(cache, published, monkeypatch):
    pretend_hub(monkeypatch, published, "0" * 64)
    with pytest.raises(WeightsError, match="the hub publishes 000000000000"):
        fetch("med3d-resnet10", say=lambda _: None)
    assert not list(cache.iterdir())


def test_file_put_into_the_cache_is_converted_offline(cache, published, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: pytest.fail("network"))
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    said: list[str] = []
    fetch("med3d-resnet10", say=said.append)
    assert "found in the cache folder" in said[0]
    assert load_weights("med3d-resnet10").source.pretrained


def test_unreachable_hub_says_which_file_to_put_where(cache, monkeypatch):
    def unreachable(url):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(WeightsMissingError, match=NAME) as caught:
        fetch("med3d-resnet10", say=lambda _: None)
    assert hub_file("med3d-resnet10").page in caught.value.message
    assert str(cache) in caught.value.message


def test_offline_mode_is_respected(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissingError, match="cannot be reached"):
        fetch("med3d-resnet10", say=lambda _: None)


def test_weights_of_another_depth_are_refused(cache, published, monkeypatch):
    cache.mkdir()
    (cache / "resnet_18_23dataset.pth").write_bytes(published)
    with pytest.raises(WeightsError, match="weights of a resnet10"):
        fetch("med3d-resnet18", say=lambda _: None)


def test_unknown_asset_lists_the_known():
    with pytest.raises(UsageError, match="med3d-resnet50"):
        fetch("med3d-resnet101", say=lambda _: None)
