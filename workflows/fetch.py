"""Pretrained weights, brought once and kept; nothing else in this program downloads."""

from __future__ import annotations

import errno
import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from brainstage.models.choices import MED3D_ASSETS
from brainstage.models.published import PINNED, Origin
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
    revision: str = "main"

    @property
    def page(self) -> str:
        """Where a person downloads it."""
        return f"https://huggingface.co/{self.repository}/blob/{self.revision}/{self.name}"


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
    depth, pin = asset.removeprefix(_MED3D), PINNED.get(asset)
    return HubFile(
        repository=f"TencentMedicalNet/MedicalNet-Resnet{depth}",
        name=f"resnet_{depth}_23dataset.pth",
        revision=pin.revision if pin else "main",
    )


def fetch(asset: str, *, say: Callable[[str], None], sha256: str | None = None) -> Path:
    """Bring pretrained weights into the cache as safetensors.

    A published file that already lies in the cache folder is converted without the network. Either way its sha256 is
    held against `sha256`, or without one against the pin of this version; where there is neither, the weights are
    kept as of unknown origin. The sha256 of the result is recorded beside it, and every later load is checked against
    that.

    Parameters
    ----------
    asset : str
        ``med3d-resnet10``, ``-resnet18``, ``-resnet34`` or ``-resnet50``.
    say : callable
        Gets one sentence for each thing that happened.
    sha256 : str, optional
        The user vouches for the file with this sha256, and for no other.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    UsageError
        For an unknown asset, or a `sha256` that is none.
    WeightsMissingError
        When the hub cannot be reached; the message says which file to put where.
    WeightsError
        When what came is not the file that is wanted, or not this network.
    """
    from brainstage.models.weights import cache_directory

    source, cache = hub_file(asset), cache_directory()
    if sha256 is not None:
        sha256 = sha256.lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UsageError(
                f"--sha256 {sha256!r} is no sha256: 64 digits from 0 to 9 and a to f are expected"
            )
    target = cache / f"{asset}.safetensors"
    if target.is_file() and _is_settled(asset, sha256, target, say):
        return target
    dropped = cache / source.name
    if dropped.is_file():
        content, published = dropped.read_bytes(), None
        say(f"{asset}: converting {source.name}, found in the cache folder")
    else:
        content, published = _download(source, cache)
        say(f"{asset}: downloaded {source.name}, {len(content) / 1e6:.0f} MB, whole")
    origin = _origin(asset, source, hashlib.sha256(content).hexdigest(), sha256, say)
    report = _convert(asset, source, content, published, origin, target)
    say(f"{asset}: {report}; kept as {target}")
    return target


def _is_settled(asset: str, sha256: str | None, target: Path, say: Callable[[str], None]) -> bool:
    """Say whether the weights in the cache are what is wanted; a user who vouches for their file is recorded."""
    from brainstage.models.weights import cached_record, load_weights, recorded_origin

    try:
        words = load_weights(asset).source.words
    except WeightsError as error:
        say(f"{asset}: {error.message}")
        return False
    record = cached_record(asset)
    origin, pin = recorded_origin(asset, record), PINNED.get(asset)
    if sha256 is not None and sha256 != record.get("source_sha256"):
        say(f"{asset}: the weights in {target.parent} are of a file with another sha256, and are replaced")
        return False
    if sha256 is not None and origin == "unknown":
        write_json(target.with_suffix(".json"), {**record, "origin": "vouched"})
        words = load_weights(asset).source.words
    elif origin == "unknown" and pin is not None:
        say(f"{asset}: the weights in {target.parent} are not those of the published file, and are replaced")
        return False
    say(f"{asset}: already in {target.parent}: {words}")
    return True


def _origin(
    asset: str, source: HubFile, found: str, sha256: str | None, say: Callable[[str], None]
) -> Origin:
    """Return what is known of the file by its sha256, or refuse it where another one is wanted."""
    pin = PINNED.get(asset)
    if sha256 is not None and found != sha256:
        raise WeightsError(f"{source.name} has sha256 {found}, and --sha256 wants {sha256}: nothing was kept")
    if pin is not None and found == pin.sha256:
        say(f"{asset}: the published file, by its sha256")
        return "published"
    if sha256 is not None:
        say(f"{asset}: vouched for by you, as the file with sha256 {found}")
        return "vouched"
    if pin is not None:
        raise WeightsError(
            f"{source.name} has sha256 {found}, the published file {pin.sha256}: it is another file, and nothing was "
            f"kept; remove it, or vouch for it with 'brainstage fetch {asset} --sha256 {found}'"
        )
    say(
        f"{asset}: ORIGIN NOT VERIFIED: this version knows no sha256 of {source.name}; this one has {found}, and you "
        f"can vouch for it with 'brainstage fetch {asset} --sha256 {found}'"
    )
    return "unknown"


def _convert(
    asset: str, source: HubFile, content: bytes, published: str | None, origin: Origin, target: Path
) -> str:
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
        "origin": origin,
        "source": source.page,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256_published": published,
    }
    write_json(target.with_suffix(".json"), record)
    write_bytes(target, converted)
    return str(report)


def _download(source: HubFile, cache: Path) -> tuple[bytes, str]:
    """Return the file's bytes and the sha256 that the hub says it has: all of them arrived, whatever they are."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's own base class is that of whichever HTTP library it stands on: its connection errors derive from it.
    unreachable = (cast("type[Exception]", HfHubHTTPError.__mro__[1]), OSError)
    repository, name, revision = source.repository, source.name, source.revision
    try:
        cache.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repository, name, revision=revision)
        published = (get_hf_file_metadata(url).etag or "").strip('"')
        with tempfile.TemporaryDirectory(dir=cache, prefix=TEMPORARY_PREFIX) as folder:
            path = hf_hub_download(repository, name, revision=revision, local_dir=folder)
            content = Path(path).read_bytes()
    except unreachable as error:
        if isinstance(error, OSError) and error.errno in _OWN_DISK:
            raise output_error(cache, error) from error
        raise WeightsMissingError(
            f"the Hugging Face hub cannot be reached or lacks the file ({type(error).__name__}): download "
            f"{source.page} where there is a network, put {source.name} into {cache}, and run the same command again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != published:
        raise WeightsError(
            f"{source.name} has sha256 {found[:12]}, the hub publishes {published[:12]}: fetch it again"
        )
    return content, published
