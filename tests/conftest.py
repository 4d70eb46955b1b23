"""What all tests share: phantoms, NIfTI files, BIDS trees, and the folder of real scans."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

from brainstage.pipeline.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (24, 28, 26)
SPACING_MM = (4.0, 3.5, 3.6)

settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.register_profile("exploring", deadline=None, max_examples=1000)
settings.load_profile("reproducible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first: what is broken shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def _rotation(axis: int, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [n for n in range(3) if n != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


DIRECTIONS = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": _rotation(0, 14.0) @ _rotation(1, -9.0) @ _rotation(2, 21.0),
    "AIL": np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
}
"""Name to the unit vectors of the voxel axes in RAS, as columns."""


def centred_affine(directions: np.ndarray, shape=SHAPE, spacing_mm=SPACING_MM) -> np.ndarray:
    """Return a voxel_to_ras whose field of view is centred near, not at, the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.array(spacing_mm)
    matrix[:3, 3] = np.array([3.0, -7.0, 5.0]) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return matrix


def positions_mm(shape: tuple[int, ...], voxel_to_ras: np.ndarray) -> np.ndarray:
    """Return the RAS mm position of every voxel, (I, J, K, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return index @ voxel_to_ras[:3, :3].T + voxel_to_ras[:3, 3]


def intensity_at(ras_mm: np.ndarray) -> np.ndarray:
    """Return a head without any symmetry: a tilted ramp inside an ellipsoid, 0 outside."""
    inside = (((ras_mm - [3.0, -7.0, 5.0]) / [38.0, 43.0, 40.0]) ** 2).sum(axis=-1) < 1.0
    ramp = 300.0 + ras_mm @ np.array([2.0, 1.1, 0.7])
    return np.where(inside, ramp, 0.0).astype(np.float32)


@pytest.fixture(autouse=True)
def _own_umask():
    """Take back the umask that a command sets."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(params=["RAS", "LAS", "LPS", "oblique"])
def orientation(request: pytest.FixtureRequest) -> str:
    """Run a spatial test over the four orientations."""
    return request.param


@pytest.fixture(scope="session")
def make_phantom() -> Callable[..., Volume]:
    """Return a maker of small asymmetric heads; the value of a voxel follows from its place in RAS mm."""

    def make(orientation: str = "RAS", shape=SHAPE, spacing_mm=SPACING_MM) -> Volume:
        matrix = centred_affine(DIRECTIONS[orientation], shape, spacing_mm)
        return Volume(data=intensity_at(positions_mm(shape, matrix)), voxel_to_ras=matrix)

    return make


@pytest.fixture
def phantom(make_phantom, orientation) -> Volume:
    """Return the small head, once in each orientation."""
    return make_phantom(orientation)


@pytest.fixture(scope="session")
def save_nifti() -> Callable[..., Path]:
    """Return a writer that is not the program's own: nibabel, with any header field set afterwards."""

    def save(
        path: Path,
        data: np.ndarray,
        voxel_to_ras: np.ndarray | None = None,
        *,
        sform: tuple[np.ndarray | None, int] | None = None,
        qform: tuple[np.ndarray | None, int] | None = None,
        image_class: type = nib.Nifti1Image,
        fields: Mapping[str, Any] | None = None,
    ) -> Path:
        image = image_class(data, centred_affine(np.eye(3)) if voxel_to_ras is None else voxel_to_ras)
        image.set_sform(*(sform or (image.affine, 1)))
        image.set_qform(*(qform or (image.affine, 1)))
        for name, value in (fields or {}).items():
            image.header[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return save


@pytest.fixture
def bids_tree(tmp_path: Path, save_nifti) -> Callable[..., Path]:
    """Return a maker of BIDS directories: relative names of tiny scans, tables, a description."""

    def make(
        *names: str,
        tables: Mapping[str, str] | None = None,
        description: Mapping[str, Any] | None = None,
        folder: str = "bids",
    ) -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        content = {"Name": "toy", "BIDSVersion": "1.10.0"} if description is None else description
        (root / "dataset_description.json").write_text(json.dumps(content))
        for name in names:
            save_nifti(root / name, np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
        for name, text in (tables or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real scans, beside the repository; skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, the folder of real scans, which is not here")
    return folder
