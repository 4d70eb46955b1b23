"""A brain's orientation is found by trying, coarsely but surely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.orientation import (
    best_orientations,
    centre_mm,
    centred_start,
    correlation_inside,
    rotation_degrees_of,
    rotation_of,
)
from brainstage.preprocessing.resampling import resampled
from brainstage.preprocessing.template import Template

Posed = Callable[..., tuple]


@pytest.mark.parametrize("angles_deg", [(0, 0, 0), (-40, 0, 20), (0, 40, -40)])
def test_the_best_orientation_is_the_true_one_to_within_a_step(posed: Posed, angles_deg: tuple) -> None:
    brain, mask, native_to_template = posed(angles_deg, (30, -20, 10), 1.1)
    (found,) = best_orientations(brain, mask, grid_mm=12.0, step_deg=20.0)
    left_over = rotation_of(found.native_to_template) @ rotation_of(native_to_template).T
    off = np.eye(4)
    off[:3, :3] = left_over
    assert rotation_degrees_of(off) < 20
    assert found.fit > 0.94


def test_the_best_come_first(posed: Posed) -> None:
    brain, mask, _ = posed((0, 0, 0), (0, 0, 0), 1.0)
    fits = [o.fit for o in best_orientations(brain, mask, grid_mm=12.0, step_deg=30.0, count=5)]
    assert len(fits) == 5
    assert fits == sorted(fits, reverse=True)


def test_the_fit_is_a_correlation(posed: Posed, template: Template) -> None:
    brain, mask, _ = posed((0, 0, 0), (0, 0, 0), 1.0)
    (found,) = best_orientations(brain, mask, grid_mm=8.0, step_deg=30.0)
    target = resampled(template.t1w, template.grid.rescaled(8.0))
    # As best_orientations does it: every voxel of 2 mm at 8 mm, then moved.
    small = resampled(brain, brain.grid.rescaled(8.0))
    moved = resampled(small, target.grid, np.linalg.inv(found.native_to_template))
    everywhere = np.ones(target.shape, dtype=bool)
    assert found.fit == pytest.approx(correlation_inside(moved.data, target.data, everywhere), abs=1e-6)


def test_a_flat_brain_fits_nothing(template: Template) -> None:
    flat = template.t1w.with_data(np.zeros(template.t1w.shape))
    (found,) = best_orientations(flat, template.brain_mask, grid_mm=12.0, step_deg=60.0)
    assert found.fit == 0.0


def test_a_centred_start_lays_the_centres_on_each_other(posed: Posed, template: Template) -> None:
    _, mask, _ = posed((20, 0, 0), (50, -40, 30), 1.0)
    moved = centred_start(mask, template) @ np.append(centre_mm(mask), 1)
    assert np.allclose(moved[:3], centre_mm(template.brain_mask))


def test_the_centre_of_a_mask_is_the_mean_of_its_voxels() -> None:
    rng = np.random.default_rng(0)
    matrix = np.diag([1.0, 1.5, 2.0, 1.0])
    matrix[:3, 3] = (-40.0, 12.0, 5.0)
    data = rng.random((31, 40, 23)) > 0.7
    expected = matrix[:3, :3] @ np.argwhere(data).mean(axis=0) + matrix[:3, 3]
    assert centre_mm(BrainMask(data=data, voxel_to_ras=matrix)) == pytest.approx(expected, abs=1e-12)
