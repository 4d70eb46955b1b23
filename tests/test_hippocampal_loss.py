"""Known losses of the volumes benchmark: what is said to be lost is what is lost, and nothing else changes."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import Volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from hippocampal_loss import FADE_MM, KINDS, Structure, with_loss

SPACINGS = {"1 mm": (1.0, 1.0, 1.0), "2 mm": (2.0, 2.0, 2.0), "not cubic": (1.0, 1.33, 1.33)}
AROUND, INSIDE, FLUID = 100.0, 70.0, 20.0
SEMI_AXES_MM = (5.5, 19.0, 4.5)


@cache
def phantom(spacing: tuple[float, float, float], mirrored: bool = False) -> tuple[Volume, np.ndarray]:
    """An ellipsoid, tilted as a hippocampus is, in uniform surroundings; each voxel by what of it lies inside."""
    extent = np.array([60.0, 80.0, 60.0])
    shape = np.ceil(extent / spacing).astype(int)
    factor = 4
    axes = [((np.arange(n * factor) + 0.5) / factor - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
    if mirrored:
        axes[0] = axes[0][::-1]
    turn = Rotation.from_euler("xz", (30.0, 12.0), degrees=True).as_matrix()
    x = np.einsum("ij,jklm->iklm", turn.T, np.stack(np.meshgrid(*axes, indexing="ij")))
    radius = np.sqrt(sum((x[a] / SEMI_AXES_MM[a]) ** 2 for a in range(3)))
    inside = (radius < 1.0).reshape(*np.ravel([(n, factor) for n in shape])).mean(axis=(1, 3, 5))
    head = Volume(data=AROUND + (INSIDE - AROUND) * inside, voxel_to_ras=np.diag([*spacing, 1.0]))
    return head, inside > 0.5


def lost(spacing, kind, loss, *, mirrored=False):
    head, label = phantom(spacing, mirrored)
    found = with_loss(Structure(head, label), head, loss, kind, outwards=-1 if mirrored else 1, fluid=FLUID)
    return head, label, found


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("kind", ["thinner", "smaller"])
@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2, 0.3])
def test_a_contraction_loses_what_it_says(spacing, kind, loss) -> None:
    head, _, found = lost(spacing, kind, loss)
    before, after = ((AROUND - image.data.astype(np.float64)).sum() for image in (head, found.head))
    assert found.loss == pytest.approx(loss, abs=0.002)
    assert 1.0 - after / before == pytest.approx(found.loss, abs=0.016)


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2, 0.3])
def test_fluid_takes_what_it_says(spacing, loss) -> None:
    head, label, found = lost(spacing, "fluid", loss)
    change = (head.data.astype(np.float64) - found.head.data).sum() / (INSIDE - FLUID)
    assert found.loss == pytest.approx(loss, abs=0.001)
    assert change / label.sum() == pytest.approx(found.loss, abs=0.003)
    assert found.filled.sum() == pytest.approx(change, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_farther_away_stays_as_it_is(kind) -> None:
    head, label, found = lost(SPACINGS["1 mm"], kind, 0.3)
    away = ndimage.distance_transform_edt(~label) > FADE_MM
    assert np.array_equal(found.head.data[away], head.data[away])
    assert not np.array_equal(found.head.data, head.data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_nothing_changes_nothing(kind) -> None:
    head, _, found = lost(SPACINGS["1 mm"], kind, 0.0)
    assert found.loss == 0.0
    assert np.array_equal(found.head.data, head.data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_head_loses_the_mirror_image(kind) -> None:
    right, left = (lost(SPACINGS["2 mm"], kind, 0.2, mirrored=mirrored)[2].head for mirrored in (False, True))
    assert np.abs(right.data - left.data[::-1]).max() < 0.05 * (AROUND - FLUID)


def test_a_smaller_hippocampus_is_shorter_and_a_thinner_one_is_not() -> None:
    lengths = {}
    for kind in ("thinner", "smaller"):
        head, _, found = lost(SPACINGS["1 mm"], kind, 0.3)
        extents = [
            np.ptp(np.argwhere(image.data < 0.5 * (AROUND + INSIDE))[:, 1]) for image in (head, found.head)
        ]
        lengths[kind] = extents[1] / extents[0]
    assert lengths["smaller"] < 0.93
    assert lengths["thinner"] > lengths["smaller"] + 0.02


def test_fluid_comes_from_the_side_of_the_horn() -> None:
    _, _, found = lost(SPACINGS["1 mm"], "fluid", 0.1)
    structure = Structure(*phantom(SPACINGS["1 mm"]))
    places = np.argwhere(found.filled > 0.0).T * structure.spacing_mm[:, None]
    beside = places - structure.line.nearest(places)
    weights = found.filled[found.filled > 0.0]
    towards_x, _, towards_z = beside @ weights / weights.sum()
    assert towards_x > 1.0
    assert towards_z > 1.0


def test_an_impossible_loss_is_refused() -> None:
    head, label = phantom(SPACINGS["2 mm"])
    with pytest.raises(ValueError, match=r"between 0 and 0.5, not 0.9"):
        with_loss(Structure(head, label), head, 0.9, "fluid", outwards=1, fluid=FLUID)
    with pytest.raises(ValueError, match="0 voxels"):
        Structure(head, np.zeros_like(label))
