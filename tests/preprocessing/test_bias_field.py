"""The bias field that was put in is the one that is taken out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brainstage.pipeline.config import BiasFieldConfig
from brainstage.pipeline.errors import BiasFieldError
from brainstage.pipeline.records import CorrectedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.bias_field import correct_bias, evaluate_on_axes, fast_n4_field, sharpened

Make = Callable[..., CorrectedBrain]


def known_field(shape: tuple[int, int, int], strength: float = 0.25) -> np.ndarray:
    """A smooth multiplicative field without symmetry, about 0.6 to 1.6."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.exp(strength * (x - 0.7 * y + 0.8 * z * x + 0.6 * y**2))


Phantom = tuple[Volume, BrainMask, np.ndarray]


@pytest.fixture(scope="module")
def biased(phantom: Phantom) -> Phantom:
    brain, mask, _ = phantom
    field = known_field(brain.shape)
    return brain.with_data(brain.data * field), mask, field


def variation(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


def test_white_matter_becomes_as_even_as_before_the_field(biased: Phantom, phantom: Phantom) -> None:
    head, mask, _ = biased
    brain, _, white = phantom
    estimated = fast_n4_field(head, mask, BiasFieldConfig())
    before, after = variation(head.data[white]), variation(head.data[white] / estimated[white])
    assert before > 0.09
    assert after < 1.25 * variation(brain.data[white])


def test_the_field_is_found_up_to_a_factor(biased: Phantom) -> None:
    head, mask, field = biased
    estimated = np.log(fast_n4_field(head, mask, BiasFieldConfig())[mask.data])
    assert np.corrcoef(estimated, np.log(field[mask.data]))[0, 1] > 0.92


@pytest.mark.slow
def test_the_fast_field_evens_as_much_as_that_of_ants(biased: Phantom, phantom: Phantom) -> None:
    from brainstage.preprocessing.ants_tools import n4_field

    head, mask, _ = biased
    white = phantom[2]
    fast, ants = (
        variation(head.data[white] / found[white])
        for found in (fast_n4_field(head, mask, BiasFieldConfig()), n4_field(head, mask, seed=0))
    )
    assert fast < 1.05 * ants


def test_the_mean_brightness_is_kept(biased: Phantom, make_corrected: Make) -> None:
    head, mask, _ = biased
    corrected = correct_bias(make_corrected(head, mask).stripped, BiasFieldConfig())
    ratio = np.log(corrected.head.data[mask.data]) - np.log(head.data[mask.data])
    assert ratio.mean() == pytest.approx(0, abs=1e-3)
    assert corrected.field_range > 1.35


def test_none_leaves_every_voxel_as_it_was(biased: Phantom, make_corrected: Make) -> None:
    head, mask, _ = biased
    corrected = correct_bias(make_corrected(head, mask).stripped, BiasFieldConfig(method="none"))
    assert np.array_equal(corrected.head.data, head.data)
    assert corrected.field_range == 1.0


def test_an_even_image_gets_a_flat_field(phantom: Phantom, make_corrected: Make) -> None:
    brain, mask, _ = phantom
    assert correct_bias(make_corrected(brain, mask).stripped, BiasFieldConfig()).field_range < 1.15


def test_the_scanners_unit_does_not_matter(biased: Phantom) -> None:
    head, mask, _ = biased
    plain = fast_n4_field(head, mask, BiasFieldConfig())
    scaled = fast_n4_field(head.with_data(head.data * 37.0), mask, BiasFieldConfig())
    assert np.allclose(plain / scaled, np.median(plain / scaled), rtol=1e-2)


def test_too_few_voxels_are_refused_with_their_number(make_corrected: Make) -> None:
    head = Volume(data=np.ones((20, 20, 20), dtype=np.float32), voxel_to_ras=np.eye(4))
    mask = BrainMask(data=np.ones((20, 20, 20), dtype=bool), voxel_to_ras=np.eye(4))
    with pytest.raises(BiasFieldError, match="only 125 voxels of about 4 mm"):
        correct_bias(make_corrected(head, mask).stripped, BiasFieldConfig())


def test_sharpening_moves_values_towards_the_nearest_peak() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(5.0, 0.08, 4000), rng.normal(5.6, 0.08, 6000)])
    assert sharpened(values)[:4000].std() < 0.8 * values[:4000].std()


def test_sharpening_a_constant_changes_nothing() -> None:
    assert (sharpened(np.full(10, 3.0)) == 3.0).all()


def test_a_spline_of_equal_coefficients_is_constant() -> None:
    axes = [np.linspace(0, 1, n) for n in (7, 9, 11)]
    values = evaluate_on_axes(np.full((7, 7, 7), 2.5), axes)
    assert values.shape == (7, 9, 11)
    assert np.allclose(values, 2.5)


def test_the_axes_of_a_spline_are_not_mixed_up() -> None:
    coefficients = np.zeros((4, 4, 4))
    coefficients[3] = 1.0  # the last knot along the first axis
    values = evaluate_on_axes(coefficients, [np.linspace(0, 1, n) for n in (5, 6, 7)])
    assert (np.diff(values, axis=0) > 0).all()
    assert np.allclose(np.diff(values, axis=1), 0)
    assert np.allclose(np.diff(values, axis=2), 0)


def test_the_same_field_is_found_in_other_voxel_sizes_and_axes(biased: Phantom) -> None:
    head, mask, field = biased
    thin = Volume(
        data=np.repeat(head.data, 2, axis=2),
        voxel_to_ras=head.voxel_to_ras @ np.diag([1, 1, 0.5, 1]),
    )
    thin_mask = BrainMask(data=np.repeat(mask.data, 2, axis=2), voxel_to_ras=thin.voxel_to_ras)
    found = np.log(fast_n4_field(thin, thin_mask, BiasFieldConfig())[thin_mask.data])
    truth = np.log(np.repeat(field, 2, axis=2)[thin_mask.data])
    assert np.corrcoef(found, truth)[0, 1] > 0.92
