"""The embedded template is what the documentation says it is."""

import numpy as np
import pytest

from brainstage.preprocessing.template import load_template, template_sha256


def test_the_template_stands_on_the_documented_grid() -> None:
    template = load_template(1.0)
    assert template.t1w.shape == (197, 233, 189)
    assert template.t1w.axcodes == "RAS"
    assert template.t1w.voxel_to_ras[:3, 3].tolist() == [-98, -134, -72]


def test_the_template_is_mirror_symmetric_hence_sym_in_its_name() -> None:
    data = load_template(1.0).t1w.data
    assert np.array_equal(data, data[::-1])


def test_the_template_comes_without_its_skull() -> None:
    assert 1700 < load_template(1.0).brain_mask.volume_ml < 2000


@pytest.mark.parametrize("resolution_mm", [1.5, 2.0])
def test_a_coarser_template_covers_the_same_field_and_volume(resolution_mm: float) -> None:
    fine, coarse = load_template(1.0), load_template(resolution_mm)
    assert coarse.t1w.spacing_mm == pytest.approx((resolution_mm,) * 3)
    assert coarse.brain_mask.volume_ml == pytest.approx(fine.brain_mask.volume_ml, rel=0.01)
    first_edge = coarse.t1w.voxel_to_ras @ [-0.5, -0.5, -0.5, 1]
    assert np.allclose(first_edge[:3], [-98.5, -134.5, -72.5])


def test_grey_and_white_matter_are_probabilities_on_the_same_grid() -> None:
    template = load_template(2.0)
    for tissue in (template.grey_matter, template.white_matter):
        assert tissue.shape == template.t1w.shape
        assert tissue.min() >= 0
        assert 0.95 < tissue.max() <= 1


def test_white_matter_is_the_brightest_tissue_of_a_t1w_template() -> None:
    template = load_template(2.0)
    white = np.median(template.t1w.data[template.white_matter > 0.9])
    assert white > 1.2 * np.median(template.t1w.data[template.grey_matter > 0.9])


def test_the_templates_hash_is_stable_within_a_process() -> None:
    assert template_sha256() == template_sha256()
    assert len(template_sha256()) == 64
