"""Features of a scan, computed once and kept beside its stage markers; training and prediction share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from brainstage.models.baseline import BASELINE_VERSION, baseline_values
from brainstage.models.features import FeatureExtractor
from brainstage.models.fine_tuning import Images
from brainstage.pipeline.config import NetworkGridConfig
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import TEMPORARY_PREFIX, sha256_of_file, sha256_of_json, write_bytes
from brainstage.pipeline.nifti import read_mask, read_volume
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import DisplacementField
from brainstage.preprocessing.network_grid import STAGE_VERSION as GRID_VERSION
from brainstage.preprocessing.network_grid import network_input
from brainstage.preprocessing.transforms import read_field


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingArrays:
    """What training needs of one scan.

    Attributes
    ----------
    features : ndarray, (F,) float32
    mask_features : ndarray, (F,) float32
        Of the binary brain mask through the same network: the control.
    values : ndarray, (V,) float32
        What the baseline sees: blocks of the network's image, then local volume.
    inside : ndarray, (V,) bool
        Which of them belong to the brain.
    input_key : str
        From :func:`network_input_key`.
    """

    features: NDArray[np.float32]
    mask_features: NDArray[np.float32]
    values: NDArray[np.float32]
    inside: NDArray[np.bool_]
    input_key: str


def network_input_key(files: ScanFiles, network_grid: Mapping[str, Any]) -> str:
    """Return a hash that names a scan's network input without computing it.

    Parameters
    ----------
    files : ScanFiles
        The template image and mask are read as bytes.
    network_grid : mapping
        The network grid's configuration, as plain values.
    """
    content = {
        "image": sha256_of_file(files.template_t1w),
        "mask": sha256_of_file(files.template_mask),
        "network_grid": dict(network_grid),
        "version": GRID_VERSION,
    }
    return sha256_of_json(content)


def read_network_input(files: ScanFiles, network_grid: Mapping[str, Any]) -> NetworkInput:
    """Return the network input of a finished scan, from its template image, mask and transform."""
    config = NetworkGridConfig.model_validate(dict(network_grid))
    return network_input(
        read_volume(files.template_t1w),
        read_mask(files.template_mask),
        config,
        deformation_of(files),
    )


def deformation_of(files: ScanFiles) -> DisplacementField | None:
    """Return what a scan's registration did beyond an affine; only ``syn`` does, and writes the inverse direction."""
    return read_field(files.native_to_template) if files.template_to_native.is_file() else None


def cached_features(
    extractor: FeatureExtractor, files: ScanFiles, network_input: NetworkInput, input_key: str
) -> NDArray[np.float32]:
    """Return a scan's features, from its state folder when they are of the same input and the same network.

    Parameters
    ----------
    extractor : FeatureExtractor
        Or anything else with ``feature_id`` and ``features``, such as a stored model.
    network_input : NetworkInput
        Used only when nothing valid is cached.
    input_key : str
        From :func:`network_input_key`.

    Returns
    -------
    ndarray, (F,) float32
    """
    path = _features_path(extractor, files)
    return _cached(path, input_key, lambda: {"features": extractor.features(network_input)})["features"]


def keep_features(
    extractor: FeatureExtractor, scans: Sequence[ScanFiles], network_grid: Mapping[str, Any]
) -> None:
    """Compute the features of several scans in one pass, and keep them where :func:`cached_features` looks."""
    inputs = [read_network_input(files, network_grid) for files in scans]
    for files, features in zip(scans, extractor.features_of(inputs), strict=True):
        path = _features_path(extractor, files)
        key = network_input_key(files, network_grid)
        write_bytes(path, save_arrays({"features": features}, metadata={"input": key}))


def training_arrays(
    extractor: FeatureExtractor, files: ScanFiles, network_grid: Mapping[str, Any]
) -> TrainingArrays:
    """Return what training needs of one scan; the images are read only when something is not cached.

    Raises
    ------
    InputMissingError
        When the scan's template image or mask is absent.
    """
    key = network_input_key(files, network_grid)
    seen: list[NetworkInput] = []

    def once() -> NetworkInput:
        if not seen:
            seen.append(read_network_input(files, network_grid))
        return seen[0]

    def controls() -> dict[str, NDArray[Any]]:
        values, inside = baseline_values(once())
        return {
            "mask_features": extractor.features(mask_only(once())),
            "values": values.astype(np.float16),
            "inside": inside,
        }

    features = _cached(
        _features_path(extractor, files),
        key,
        lambda: {"features": extractor.features(once())},
    )
    kept = _cached(
        files.state / f"controls-{extractor.feature_id}-{BASELINE_VERSION}.safetensors", key, controls
    )
    return TrainingArrays(
        features=features["features"],
        mask_features=kept["mask_features"],
        values=kept["values"].astype(np.float32),
        inside=kept["inside"].astype(bool),
        input_key=key,
    )


@contextmanager
def network_images(
    scans: Sequence[ScanFiles], network_grid: Mapping[str, Any]
) -> Iterator[tuple[Images, Images]]:
    """Give the network inputs of many scans and their masks, from files of the scratch space.

    Yields
    ------
    images : (N, 1, D, H, W) float16
        Half a volume's size in memory, and no more of them there than are looked at.
    masks : (N, 1, D, H, W) uint8
    """
    shape = (len(scans), 1, *network_grid["shape"])
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        images = np.memmap(Path(folder) / "images", dtype=np.float16, mode="w+", shape=shape)
        masks = np.memmap(Path(folder) / "masks", dtype=np.uint8, mode="w+", shape=shape)
        for index, files in enumerate(scans):
            read = read_network_input(files, network_grid)
            images[index], masks[index, 0] = read.image, read.brain_mask
        yield images, masks


def _features_path(extractor: FeatureExtractor, files: ScanFiles) -> Path:
    return files.state / f"features-{extractor.feature_id}.safetensors"


def mask_only(network_input: NetworkInput) -> NetworkInput:
    """Return the binary brain mask as an image: all that is left when a brain has no inside."""
    return NetworkInput(
        image=network_input.brain_mask[np.newaxis].astype(np.float32),
        brain_mask=network_input.brain_mask,
        voxel_to_ras=network_input.voxel_to_ras,
        local_volume=np.zeros_like(network_input.local_volume),
    )


def _cached(path: Path, key: str, compute: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Read arrays whose file carries `key`; anything else, damaged files included, is computed and written anew."""
    try:
        with safe_open(path, framework="numpy") as stored:
            if (stored.metadata() or {}).get("input") == key:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        pass  # absent or cut short: computed anew below
    arrays = compute()
    write_bytes(path, save_arrays(arrays, metadata={"input": key}))
    return arrays
