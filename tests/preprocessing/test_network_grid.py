"""What the network sees is the whole brain, where it says, on the background it was told."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from pydantic import ValidationError

from brainstage.pipeline.config import NetworkGridConfig
from brainstage.pipeline.records import NetworkInput
from brainstage.preprocessing.network_grid import network_grid, network_input
from brainstage.preprocessing.template import Template, load_template


def made(template: Template, background: Literal["zero", "noise", "minimum"] = "zero") -> NetworkInput:
    normal = np.where(template.brain_mask.data, template.t1w.data / 100 - 2, 0)
    return network_input(
        template.t1w.with_data(normal), template.brain_mask, NetworkGridConfig(background=background)
    )


def test_the_default_grid_holds_the_whole_template_brain(template: Template) -> None:
    result = made(template)
    assert result.image.shape == (1, 80, 96, 80)
    inside_ml = result.brain_mask.sum() * 8 / 1000
    assert inside_ml == pytest.approx(template.brain_mask.volume_ml, rel=0.01)


def test_the_grid_lies_where_its_matrix_says(template: Template) -> None:
    result = made(template)
    sampled = np.indices((3, 3, 3)).reshape(3, -1).T * 15 + 25
    ras = (result.voxel_to_ras @ np.c_[sampled, np.ones(len(sampled))].T)[:3]
    fine = load_template(1.0)
    index = np.round((np.linalg.inv(fine.t1w.voxel_to_ras) @ np.vstack([ras, np.ones(ras.shape[1])]))[:3])
    expected = fine.t1w.data[tuple(index.astype(int))] / 100 - 2
    found = result.image[0][tuple(sampled.T)]
    brain = result.brain_mask[tuple(sampled.T)]
    assert np.corrcoef(found[brain], expected[brain])[0, 1] > 0.9


@pytest.mark.parametrize("background", ["zero", "noise", "minimum"])
def test_the_background_is_what_was_asked_for(
    template: Template, background: Literal["zero", "noise", "minimum"]
) -> None:
    result = made(template, background)
    outside = result.image[0][~result.brain_mask]
    if background == "noise":
        assert outside.mean() == pytest.approx(0, abs=0.02)
        assert outside.std() == pytest.approx(1, abs=0.02)
    else:
        expected = 0.0 if background == "zero" else result.image[0][result.brain_mask].min()
        assert (outside == expected).all()


def test_intensities_are_kept_or_standardised_over_the_brain_that_the_network_sees(
    template: Template,
) -> None:
    brain, mask = (
        template.t1w.with_data(template.t1w.data / 7 + 3 * template.brain_mask.data),
        template.brain_mask,
    )
    kept = network_input(brain, mask, NetworkGridConfig())
    standard = network_input(brain, mask, NetworkGridConfig(normalisation="zscore", background="minimum"))
    inside = standard.image[0][standard.brain_mask]
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(inside, kept.image[0][kept.brain_mask])[0, 1] > 0.9999
    assert (standard.image[0][~standard.brain_mask] == inside.min()).all()
    assert standard.image.dtype == np.float32


def test_noise_is_the_same_for_every_scan(template: Template) -> None:
    assert np.array_equal(made(template, "noise").image, made(template, "noise").image)


def test_the_grid_is_centred_left_to_right() -> None:
    grid = network_grid(NetworkGridConfig())
    first, last = (grid.voxel_to_ras @ [i, 0, 0, 1] for i in (0, grid.shape[0] - 1))
    assert first[0] == pytest.approx(-last[0])


def test_a_shape_that_the_network_cannot_halve_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 8"):
        NetworkGridConfig(shape=(81, 96, 80))
