"""Weights are fetched once, checked, and never without a word about what is missing."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from brainstage.models import weights
from brainstage.models.choices import MED3D_ASSETS
from brainstage.models.med3d import build_med3d
from brainstage.models.published import PINNED, Pin, identified
from brainstage.models.weights import load_weights
from brainstage.pipeline.errors import UsageError, WeightsError, WeightsMissingError
from brainstage.workflows import fetch as fetching
from brainstage.workflows.cli import main
from brainstage.workflows.doctor import _weights as weights_of_doctor
from brainstage.workflows.fetch import fetch, hub_file

NAME = "resnet_10_23dataset.pth"
REVISION = "c0ffee" * 6 + "c0ff"


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


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pin(monkeypatch, digest: str | None) -> None:
    """Let this version know med3d-resnet10 by a sha256, or not at all."""
    pinned = {} if digest is None else {"med3d-resnet10": Pin(sha256=digest, revision=REVISION)}
    monkeypatch.setattr(weights, "PINNED", pinned)
    monkeypatch.setattr(fetching, "PINNED", pinned)


@pytest.fixture
def known(published, monkeypatch):
    """Let this version know the file that is published."""
    pin(monkeypatch, sha256(published))


def pretend_hub(monkeypatch, content: bytes, etag: str, revision: str = REVISION) -> None:
    def download(repository, name, revision, local_dir):
        assert repository == "TencentMedicalNet/MedicalNet-Resnet10"
        assert revision == asked
        path = f"{local_dir}/{name}"
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(content)
        return path

    def metadata(url):
        assert f"/resolve/{asked}/" in url
        return SimpleNamespace(etag=etag)

    asked = revision
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)


def test_download_is_checked_converted_and_loadable(cache, published, known, monkeypatch):
    said: list[str] = []
    pretend_hub(monkeypatch, published, sha256(published))
    path = fetch("med3d-resnet10", say=said.append)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["source_sha256"] == record["source_sha256_published"]
    source = load_weights("med3d-resnet10").source
    assert source.sha256 == record["sha256"]
    assert source.pretrained
    assert source.words.startswith("Med3D resnet10, pretrained by segmentation on 23 data sets")
    assert REVISION in record["source"]
    assert sorted(p.name for p in cache.iterdir()) == ["med3d-resnet10.json", "med3d-resnet10.safetensors"]
    assert "0 missing" in said[-1]
    fetch("med3d-resnet10", say=said.append)
    assert "already in" in said[-1]


def test_altered_download_is_refused(cache, published, known, monkeypatch):
    pretend_hub(monkeypatch, published, "0" * 64)
    with pytest.raises(WeightsError, match="the hub publishes 000000000000"):
        fetch("med3d-resnet10", say=lambda _: None)
    assert not list(cache.iterdir())


def test_file_put_into_the_cache_is_converted_offline(cache, published, known, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: pytest.fail("network"))
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    said: list[str] = []
    fetch("med3d-resnet10", say=said.append)
    assert "found in the cache folder" in said[0]
    assert load_weights("med3d-resnet10").source.origin == "published"


def test_another_file_under_the_published_name_is_refused_with_the_way_out(cache, published, monkeypatch):
    pin(monkeypatch, "1" * 64)
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    with pytest.raises(WeightsError, match="it is another file") as caught:
        fetch("med3d-resnet10", say=lambda _: None)
    assert f"brainstage fetch med3d-resnet10 --sha256 {sha256(published)}" in caught.value.message
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_the_hub_does_not_vouch_for_itself(cache, published, monkeypatch):
    pin(monkeypatch, "1" * 64)
    pretend_hub(monkeypatch, published, sha256(published))
    with pytest.raises(WeightsError, match="it is another file"):
        fetch("med3d-resnet10", say=lambda _: None)
    assert not list(cache.iterdir())


def test_a_file_that_no_pin_knows_is_of_unknown_origin_wherever_it_is_named(cache, published, monkeypatch):
    pin(monkeypatch, None)
    said: list[str] = []
    pretend_hub(monkeypatch, published, sha256(published), revision="main")
    path = fetch("med3d-resnet10", say=said.append)
    assert any("ORIGIN NOT VERIFIED" in line and sha256(published) in line for line in said)
    assert json.loads(path.with_suffix(".json").read_text())["origin"] == "unknown"
    source = load_weights("med3d-resnet10").source
    assert source.pretrained is None
    assert source.words.startswith(f"origin not verified: the file has sha256 {sha256(published)}")
    assert "23 data sets" not in source.words
    assert weights_of_doctor().endswith("med3d-resnet10 (origin not verified)")
    fetch("med3d-resnet10", say=said.append)
    assert "already in" in said[-1]
    assert "origin not verified" in said[-1]


@pytest.mark.parametrize("known_by", [None, "1" * 64], ids=["no-pin", "another-pin"])
def test_a_user_vouches_for_one_file(cache, published, known_by, monkeypatch):
    pin(monkeypatch, known_by)
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    with pytest.raises(WeightsError, match="nothing was kept"):
        fetch("med3d-resnet10", say=lambda _: None, sha256="2" * 64)
    path = fetch("med3d-resnet10", say=lambda _: None, sha256=sha256(published).upper())
    assert json.loads(path.with_suffix(".json").read_text())["origin"] == "vouched"
    source = load_weights("med3d-resnet10").source
    assert (source.origin, source.pretrained) == ("vouched", None)
    assert source.words.startswith("vouched for by the user as med3d-resnet10")


def test_a_user_vouches_for_what_is_in_the_cache_without_the_network(cache, published, monkeypatch):
    pin(monkeypatch, None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: pytest.fail("network"))
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    fetch("med3d-resnet10", say=lambda _: None)
    (cache / NAME).unlink()
    fetch("med3d-resnet10", say=lambda _: None, sha256=sha256(published))
    assert load_weights("med3d-resnet10").source.origin == "vouched"


def test_unverified_weights_of_an_earlier_version_are_replaced_by_the_published_ones(
    cache, published, monkeypatch
):
    said: list[str] = []
    pin(monkeypatch, None)
    cache.mkdir()
    other = {key: value + 1 for key, value in build_med3d("resnet10").state_dict().items()}
    torch.save({"state_dict": other}, cache / NAME)
    fetch("med3d-resnet10", say=lambda _: None)
    (cache / NAME).write_bytes(published)
    pin(monkeypatch, sha256(published))
    assert load_weights("med3d-resnet10").source.origin == "unknown"
    fetch("med3d-resnet10", say=said.append)
    assert "are replaced" in said[0]
    assert load_weights("med3d-resnet10").source.origin == "published"


def test_weights_that_an_earlier_version_fetched_are_known_by_their_sha256(
    cache, published, known, monkeypatch
):
    cache.mkdir()
    (cache / NAME).write_bytes(published)
    path = fetch("med3d-resnet10", say=lambda _: None).with_suffix(".json")
    record = json.loads(path.read_text())
    del record["origin"]
    path.write_text(json.dumps(record))
    assert load_weights("med3d-resnet10").source.origin == "published"


@pytest.mark.parametrize(
    "wrong",
    [["med3d-resnet10", "--sha256", "abc"], ["med3d-resnet10", "med3d-resnet18", "--sha256", "1" * 64]],
    ids=["no-sha256", "two-assets"],
)
def test_a_sha256_that_is_none_or_of_two_files_is_wrong_usage(cache, wrong, capsys):
    assert main(["fetch", *wrong]) == 64
    assert "--sha256" in capsys.readouterr().err


def test_pins_are_whole_and_of_known_assets():
    assert set(PINNED) <= set(MED3D_ASSETS)
    for asset, one in PINNED.items():
        assert len(bytes.fromhex(one.sha256)) == 32
        assert len(bytes.fromhex(one.revision)) == 20
        assert identified(one.sha256) == asset
        assert one.revision in hub_file(asset).page
    assert "/blob/main/" in hub_file("med3d-resnet34").page


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
    pin(monkeypatch, None)
    cache.mkdir()
    (cache / "resnet_18_23dataset.pth").write_bytes(published)
    with pytest.raises(WeightsError, match="weights of a resnet10"):
        fetch("med3d-resnet18", say=lambda _: None)


def test_unknown_asset_lists_the_known():
    with pytest.raises(UsageError, match="med3d-resnet50"):
        fetch("med3d-resnet101", say=lambda _: None)
