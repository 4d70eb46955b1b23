"""Where the network's weights come from, and whether all of them arrived."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from brainstage.models.choices import MED3D_ASSETS, Strides
from brainstage.models.med3d import build_med3d, infer_architecture, initialise_randomly
from brainstage.models.published import PINNED, Origin, identified, origin_in_words
from brainstage.pipeline.errors import WeightsError, WeightsMissingError
from brainstage.pipeline.files import read_json

RANDOM_ARCHITECTURE: Final = "resnet10"
"""What ``random`` builds: deeper stages add nothing to filters that were never trained."""

_NOT_IN_OLD_CHECKPOINTS: Final = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """How a checkpoint's keys and a network's keys met.

    Attributes
    ----------
    matched : int
        Keys of the network that the checkpoint filled.
    missing : tuple of str
        Keys of the network that the checkpoint lacks; only ``num_batches_tracked`` counters are tolerated.
    unexpected : tuple of str
        Keys of the checkpoint that the network has no place for, such as a segmentation head.
    """

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.matched} keys matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """What the weights are, for the model card and for every hash that depends on them.

    Attributes
    ----------
    kind : str
        ``med3d-resnet10`` and the like, by name or by the sha256 of the file; ``path`` or ``random``.
    architecture : str
        A key of :data:`~brainstage.models.med3d.ARCHITECTURES`.
    sha256 : str
        Of the file they were read from; of the values where there is no file.
    words : str
        One sentence for the model card.
    strides : str
        ``med3d`` or ``monai``: how the network is built.
    origin : str
        Whether more than its name is known of the file.
    """

    kind: str
    architecture: str
    sha256: str
    words: str
    strides: Strides = "med3d"
    origin: Origin = "unknown"

    @property
    def pretrained(self) -> bool | None:
        """Whether the weights were ever trained on anything; None where this program does not know."""
        if self.kind == "random":
            return False
        return True if self.origin == "published" else None


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A network with its weights, where they come from, and how the keys met (None for random weights)."""

    network: nn.Module
    source: WeightsSource
    report: CheckpointReport | None


def cache_directory() -> Path:
    """Return where fetched weights are kept: ``$BRAINSTAGE_CACHE``, or ``brainstage`` in the user's cache."""
    if chosen := os.environ.get("BRAINSTAGE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "brainstage"


def load_weights(choice: str, *, seed: int = 0, strides: Strides = "med3d") -> LoadedWeights:
    """Build the network that `choice` names and fill it.

    Parameters
    ----------
    choice : str
        ``med3d-resnet10`` (or 18, 34, 50: from the cache, never from the network), ``random``, or the path of a
        ``.pth`` or ``.safetensors`` checkpoint with Med3D keys, whose architecture is read off the keys.
    seed : int
        For ``random``.
    strides : str
        ``med3d`` or ``monai``.

    Raises
    ------
    WeightsMissingError
        When the file is not there.
    WeightsError
        When it is altered, unreadable, of another network or incomplete.
    """
    if choice == "random":
        network = build_med3d(RANDOM_ARCHITECTURE, strides)
        initialise_randomly(network, seed)
        words = f"random He initialisation with seed {seed}: not pretrained"
        sha256 = state_sha256(network.state_dict())
        source = WeightsSource(
            kind=choice,
            architecture=RANDOM_ARCHITECTURE,
            sha256=sha256,
            words=words,
            strides=strides,
            origin="random",
        )
        return LoadedWeights(network=network, source=source, report=None)
    if choice in MED3D_ASSETS:
        content = _read_cached(choice)
        state, read_from = read_checkpoint(content, f"{choice}.safetensors"), choice
        kind, origin, words = choice, *_cached_origin(choice)
    else:
        path = Path(choice).expanduser()
        if not path.is_file():
            raise WeightsMissingError(
                f"no weights at {choice!r}: give a .pth or .safetensors file, 'random', or one of "
                f"{', '.join(MED3D_ASSETS)}"
            )
        content, read_from = path.read_bytes(), path.name
        state = read_checkpoint(content, read_from)
        kind, origin, words = _path_origin(content, read_from)
    return _filled(state, content, read_from, kind=kind, origin=origin, words=words, strides=strides)


def _filled(
    state: Mapping[str, Tensor],
    content: bytes,
    read_from: str,
    *,
    kind: str,
    origin: Origin,
    words: str,
    strides: Strides,
) -> LoadedWeights:
    architecture = infer_architecture(state)
    if kind in MED3D_ASSETS and architecture != kind.removeprefix("med3d-"):
        raise WeightsError(f"{read_from} holds the weights of a {architecture}")
    network = build_med3d(architecture, strides)
    report = fill_network(network, state, read_from)
    source = WeightsSource(
        kind=kind,
        architecture=architecture,
        sha256=hashlib.sha256(content).hexdigest(),
        words=words,
        strides=strides,
        origin=origin,
    )
    return LoadedWeights(network=network, source=source, report=report)


def cached_record(asset: str) -> dict[str, Any]:
    """Return what ``brainstage fetch`` recorded of the weights in the cache; empty where there is no record."""
    try:
        record = read_json(cache_directory() / f"{asset}.json")
    except (OSError, ValueError):
        return {}
    return dict(record) if isinstance(record, Mapping) else {}


def recorded_origin(asset: str, record: Mapping[str, Any]) -> Origin:
    """Return what is known of the file that the weights in the cache were made of.

    Its sha256 is held against the pin of this version, whatever the version that fetched it said.
    """
    pin = PINNED.get(asset)
    if pin is not None and record.get("source_sha256") == pin.sha256:
        return "published"
    return "vouched" if record.get("origin") == "vouched" else "unknown"


def _cached_origin(asset: str) -> tuple[Origin, str]:
    record = cached_record(asset)
    origin = recorded_origin(asset, record)
    sha256 = str(record.get("source_sha256") or record.get("sha256"))
    return origin, origin_in_words(asset, origin, sha256)


def _path_origin(content: bytes, name: str) -> tuple[str, Origin, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    asset = identified(sha256, PINNED)
    if asset is not None:
        return asset, "published", origin_in_words(asset, "published", sha256)
    words = (
        f"origin not verified: read from the file {name} with sha256 {sha256}; what they were trained on is not "
        "known to this program"
    )
    return "path", "unknown", words


def _read_cached(asset: str) -> bytes:
    path = cache_directory() / f"{asset}.safetensors"
    if not path.is_file():
        raise WeightsMissingError(
            f"the weights {asset} are not in the cache: run 'brainstage fetch {asset}' once, give the path of a "
            f"checkpoint with --weights, or choose --weights random (not pretrained)"
        )
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    recorded = cached_record(asset).get("sha256")
    if recorded != sha256:
        raise WeightsError(
            f"{path.name} in the cache is not what was fetched (sha256 {sha256[:12]}, recorded "
            f"{str(recorded)[:12]}): run 'brainstage fetch {asset}' again"
        )
    return content


def read_checkpoint(content: bytes, name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under bare keys: ``state_dict`` unwrapped, ``module.`` stripped.

    Parameters
    ----------
    content : bytes
        Of a safetensors file or of a ``torch.save`` file, which is read with ``weights_only=True``.
    name : str
        File name: its ending tells the two apart, and messages carry it.

    Raises
    ------
    WeightsError
        When the content is damaged, would run code, or holds no tensors.
    """
    try:
        loaded = load_safetensors(content) if name.endswith(".safetensors") else _unpickle(content)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[:1]
        raise WeightsError(
            f"{name} is no readable checkpoint: {''.join(reason) or type(error).__name__}"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{name} holds no state dict: a mapping of names to tensors is expected")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _unpickle(content: bytes) -> object:
    import io

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def fill_network(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> CheckpointReport:
    """Copy a checkpoint into the network, or refuse it whole.

    Raises
    ------
    WeightsError
        When a weight is missing or has another shape; the first few are named.
    """
    own = network.state_dict()
    missing = tuple(key for key in own if key not in state)
    wanting = [key for key in missing if not key.endswith(_NOT_IN_OLD_CHECKPOINTS)]
    if wanting:
        raise WeightsError(f"{origin} lacks {len(wanting)} of {len(own)} keys: {', '.join(wanting[:3])} ...")
    differing = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if differing:
        raise WeightsError(
            f"{origin} has {len(differing)} weights of another shape: {'; '.join(differing[:3])}"
        )
    unexpected = tuple(key for key in state if key not in own)
    network.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    network.eval()
    return CheckpointReport(matched=len(own) - len(missing), missing=missing, unexpected=unexpected)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the tensors' names, shapes and values."""
    return hashlib.sha256(state_bytes(state)).hexdigest()


def state_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; the same tensors give the same bytes."""
    return bytes(save_safetensors({key: state[key].detach().cpu().contiguous() for key in sorted(state)}))
