"""A brain's orientation is found by trying, coarsely but surely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brainstage.preprocessing.orientation import (
    best_orientations,
    centre_mm,
    centred_start,
    rotation_degrees_of,
    rotation_of,
)
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


def test_a_centred_start_lays_the_centres_on_each_other(posed: Posed, template: Template) -> None:
    _, mask, _ = posed((20, 0, 0), (50, -40, 30), 1.0)
    moved = centred_start(mask, template) @ np.append(centre_mm(mask), 1)
    assert np.allclose(moved[:3], centre_mm(template.brain_mask))
