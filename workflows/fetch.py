"""Pretrained weights, brought once and kept; nothing else in this program downloads."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from brainstage.models.choices import MED3D_ASSETS
from brainstage.pipeline.errors import UsageError, WeightsError, WeightsMissingError, output_error
from brainstage.pipeline.files import TEMPORARY_PREFIX, write_bytes, write_json

_MED3D: Final = "med3d-resnet"
_OWN_DISK: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.ENOTDIR}
)
"""Operating-system errors that are about the cache folder, not about the network."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file on the Hugging Face hub."""

    repository: str
    name: str

    @property
    def page(self) -> str:
        """Where a person downloads it."""
        return f"https://huggingface.co/{self.repository}/blob/main/{self.name}"


def hub_file(asset: str) -> HubFile:
    """Return where the weights of an asset are published (Chen, Ma and Zheng 2019, arXiv 1904.00625).

    Raises
    ------
    UsageError
        For a name that is no asset.

    Examples
    --------
    >>> hub_file("med3d-resnet10").name
    'resnet_10_23dataset.pth'
    """
    if asset not in MED3D_ASSETS:
        raise UsageError(f"unknown asset {asset!r}: known are {', '.join(MED3D_ASSETS)}")
    depth = asset.removeprefix(_MED3D)
    return HubFile(
        repository=f"TencentMedicalNet/MedicalNet-Resnet{depth}", name=f"resnet_{depth}_23dataset.pth"
    )


def fetch(asset: str, *, say: Callable[[str], None]) -> Path:
    """Bring pretrained weights into the cache as safetensors.

    A published file that already lies in the cache folder is converted without the network. The sha256 of the
    result is recorded beside it, and every later load is checked against that.

    Parameters
    ----------
    asset : str
        ``med3d-resnet10``, ``-resnet18``, ``-resnet34`` or ``-resnet50``.
    say : callable
        Gets one sentence for each thing that happened.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    UsageError
        For an unknown asset.
    WeightsMissingError
        When the hub cannot be reached; the message says which file to put where.
    WeightsError
        When what came is not what the hub publishes, or not this network.
    """
    from brainstage.models.weights import cache_directory, load_weights

    source, cache = hub_file(asset), cache_directory()
    target = cache / f"{asset}.safetensors"
    if target.is_file():
        try:
            load_weights(asset)
        except WeightsError as error:
            say(f"{asset}: {error.message}")
        else:
            say(f"{asset}: already in {cache}")
            return target
    dropped = cache / source.name
    if dropped.is_file():
        content, published = dropped.read_bytes(), None
        say(
            f"{asset}: converting {source.name}, found in the cache folder; no published checksum to hold it against"
        )
    else:
        content, published = _download(source, cache)
        say(f"{asset}: downloaded {source.name}, {len(content) / 1e6:.0f} MB, sha256 as published")
    report = _convert(asset, source, content, published, target)
    say(f"{asset}: {report}; kept as {target}")
    return target


def _convert(asset: str, source: HubFile, content: bytes, published: str | None, target: Path) -> str:
    """Check the checkpoint against the network and write it as safetensors, its record first."""
    from brainstage.models.med3d import build_med3d, infer_architecture
    from brainstage.models.weights import fill_network, read_checkpoint, state_bytes

    state = read_checkpoint(content, source.name)
    architecture = infer_architecture(state)
    if architecture != asset.removeprefix("med3d-"):
        raise WeightsError(f"{source.name} holds the weights of a {architecture}, not of {asset}")
    network = build_med3d(architecture)
    report = fill_network(network, state, source.name)
    converted = state_bytes(network.state_dict())
    record = {
        "sha256": hashlib.sha256(converted).hexdigest(),
        "source": source.page,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256_published": published,
    }
    write_json(target.with_suffix(".json"), record)
    write_bytes(target, converted)
    return str(report)


def _download(source: HubFile, cache: Path) -> tuple[bytes, str]:
    """Return the file's bytes and the sha256 that the hub publishes for it, which they have."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's own base class is that of whichever HTTP library it stands on: its connection errors derive from it.
    unreachable = (cast("type[Exception]", HfHubHTTPError.__mro__[1]), OSError)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        published = (get_hf_file_metadata(hf_hub_url(source.repository, source.name)).etag or "").strip('"')
        with tempfile.TemporaryDirectory(dir=cache, prefix=TEMPORARY_PREFIX) as folder:
            content = Path(hf_hub_download(source.repository, source.name, local_dir=folder)).read_bytes()
    except unreachable as error:
        if isinstance(error, OSError) and error.errno in _OWN_DISK:
            raise output_error(cache, error) from error
        raise WeightsMissingError(
            f"the Hugging Face hub cannot be reached ({type(error).__name__}): download {source.page} where there is "
            f"a network, put {source.name} into {cache}, and run the same command again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != published:
        raise WeightsError(
            f"{source.name} has sha256 {found[:12]}, the hub publishes {published[:12]}: fetch it again"
        )
    return content, published
