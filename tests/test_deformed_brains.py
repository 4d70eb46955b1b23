"""The second way to make atrophy for the benchmark, and brains that are measured as if they had been scanned so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.records import Normalisation
from brainstage.pipeline.volume import BrainMask, Volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import deformed_brains
from deformed_brains import Brain, narrowing, widening
from hippocampal_loss import FADE_MM

SHAPE = (70, 90, 70)
MATRIX = np.eye(4)
MATRIX[:3, 3] = (-35.0, -50.0, -30.0)


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    (a, b, c), (x, y, z) = centre, radii
    return ((i - a) / x) ** 2 + ((j - b) / y) ** 2 + ((k - c) / z) ** 2 < 1.0


VENTRICLES = ellipsoid((27, 45, 45), (5, 25, 8)) | ellipsoid((43, 45, 45), (5, 25, 8))
HIPPOCAMPI = ellipsoid((15, 45, 25), (5, 15, 5)) | ellipsoid((55, 45, 25), (5, 15, 5))
BRAIN = ellipsoid((35, 45, 35), (32, 42, 32))


def brain() -> Brain:
    image = Volume(data=np.where(BRAIN, -1.0 + VENTRICLES, 0.0), voxel_to_ras=MATRIX)
    to_template = np.diag([1.1, 1.05, 1.2, 1.0])
    return Brain(
        key="sub-01",
        image=image,
        mask=BrainMask(data=BRAIN, voxel_to_ras=MATRIX),
        native_to_template=to_template,
        normalisation=Normalisation(method="zscore", centre=300.0, scale=100.0),
    )


@pytest.mark.parametrize("growth", [0.9, 1.0, 1.3, 2.0, 3.0])
def test_ventricles_grow_as_much_as_is_asked_and_what_is_spared_stays(growth: float) -> None:
    backwards = widening(VENTRICLES, HIPPOCAMPI, MATRIX, growth)
    places = np.indices(SHAPE).reshape(3, -1) + MATRIX[:3, 3:]
    moved = backwards.at(places)
    sources = (places + moved - MATRIX[:3, 3:]).reshape(3, *SHAPE)
    found = ndimage.map_coordinates(VENTRICLES.astype(np.float64), sources, order=1).sum() / VENTRICLES.sum()
    assert found == pytest.approx(growth, rel=0.03)
    assert backwards.jacobian_determinants().min() > 0.0
    assert np.abs(moved[:, HIPPOCAMPI.ravel()]).max() < 0.05
    far = ndimage.distance_transform_edt(~VENTRICLES) > 20.0
    assert np.abs(moved[:, far.ravel()]).max() < 0.05
    assert (np.abs(moved).max() > 0.3) == (growth != 1.0)


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_hippocampi_lose_as_much_as_is_asked_and_what_lies_away_from_them_stays(loss: float) -> None:
    moved = narrowing(sides(), {"left": loss, "right": 0.0}, brain().image.grid)
    sources = np.indices(SHAPE) + moved
    left = sides()["left"].astype(np.float64)
    found = ndimage.map_coordinates(left, sources.reshape(3, -1), order=1).sum() / left.sum()
    assert found == pytest.approx(1.0 - loss, abs=0.02)
    assert np.abs(moved[:, ndimage.distance_transform_edt(left < 1) > FADE_MM]).max() < 0.01
    assert (np.abs(moved).max() > 0.1) == (loss > 0.0)


def test_only_upright_cubic_grids_are_widened() -> None:
    with pytest.raises(ValueError, match="upright"):
        widening(VENTRICLES, HIPPOCAMPI, np.diag([1.0, 1.0, 2.0, 1.0]), 1.5)


def test_a_brain_is_measured_in_the_size_of_the_person_and_in_the_intensities_of_the_scan() -> None:
    one = brain()
    corrected = one.registered().normalised.corrected
    assert corrected.brain_mask.volume_ml == pytest.approx(one.mask.volume_ml / (1.1 * 1.05 * 1.2))
    assert set(np.unique(corrected.head.data)) == {0.0, 200.0, 300.0}
    again = one.with_head(one.head, one.mask)
    assert np.allclose(again.image.data, one.image.data, atol=1e-5)


def stage(monkeypatch: pytest.MonkeyPatch, hippocampi: dict) -> None:
    found = {side: None if inside is None else Outline(inside) for side, inside in hippocampi.items()}
    monkeypatch.setattr(deformed_brains, "find_hippocampi", lambda *_: found)
    monkeypatch.setattr(deformed_brains, "hippocampus_segmenter", lambda: None)
    monkeypatch.setattr(deformed_brains, "lateral_ventricles", lambda *_: Ventricles())


class Outline:
    def __init__(self, inside: np.ndarray) -> None:
        self._inside = inside

    def inside(self, _) -> np.ndarray:
        return self._inside


class Ventricles:
    def on(self, _) -> np.ndarray:
        return VENTRICLES.astype(np.int8)


def sides() -> dict[str, np.ndarray]:
    left = np.zeros(SHAPE, dtype=bool)
    left[:35] = True
    return {"left": HIPPOCAMPI & left, "right": HIPPOCAMPI & ~left}


def test_the_other_deformation_changes_the_ill_as_drawn_and_nobody_else(monkeypatch) -> None:
    stage(monkeypatch, sides())
    one = brain()
    marked = np.where(BRAIN, 100.0, 0.0) + 100.0 * VENTRICLES + 100.0 * HIPPOCAMPI
    one = one.with_head(one.head.with_data(marked), one.mask)

    def content(level: float) -> tuple[float, float]:
        head = deformed_brains.other()(one, level, 3).head.data
        below = np.indices(SHAPE)[2] < 35
        inner = ndimage.binary_erosion(BRAIN, iterations=4)
        excess = (head - 100.0) * inner
        return float(excess[~below].sum()), float(excess[below].sum())

    before, after = content(0.0), content(0.2)
    effect = deformed_brains.draw_effect(0.2, 3)
    assert after[0] / before[0] == pytest.approx(effect.ventricles, rel=0.05)
    assert after[1] / before[1] == pytest.approx(1.0 - effect.hippocampal_loss, abs=0.03)
    assert before[0] == pytest.approx(100.0 * VENTRICLES.sum(), rel=0.03)


def test_a_brain_without_a_hippocampus_is_named(monkeypatch) -> None:
    stage(monkeypatch, {"left": sides()["left"], "right": None})
    with pytest.raises(ValueError, match="sub-01"):
        deformed_brains.other()(brain(), 0.2, 0)


def test_measures_that_are_withheld_are_absent() -> None:
    values = np.arange(1.0, 1.0 + len(deformed_brains.MEASURES))
    values[2] = np.nan
    found = deformed_brains.measures_in_words(values)
    assert found["intracranial_ml"] == 1.0
    assert set(deformed_brains.MEASURES) - set(found) == {deformed_brains.MEASURES[2]}
