"""Laws of the smooth deformations, on small lattices."""

from __future__ import annotations

import numpy as np
import pytest

from brainstage.workflows.synthetic.diffeomorphism import (
    VectorField,
    exponential,
    lattice,
    refine,
    swelling_velocity,
    volume_ratio,
)

ORIGIN_MM = (-40.0, -44.0, -36.0)


@pytest.fixture
def ball() -> np.ndarray:
    """Return a ball of 8 mm radius around (0, 0, 0), in 1 mm voxels."""
    return (lattice((81, 89, 73), ORIGIN_MM, 1.0) ** 2).sum(axis=0) <= 64.0


@pytest.fixture
def swelling(ball: np.ndarray) -> VectorField:
    return swelling_velocity(ball, ORIGIN_MM, 1.0, 2)


def points_of(region: np.ndarray) -> np.ndarray:
    return np.argwhere(region).T + np.array(ORIGIN_MM)[:, np.newaxis]


def test_a_linear_field_is_interpolated_exactly() -> None:
    nodes = lattice((5, 6, 7), (1.0, 2.0, 3.0), 4.0)
    field = VectorField(vectors_mm=2 * nodes, origin_mm=(1.0, 2.0, 3.0), spacing_mm=4.0)
    points = np.array([[2.5, 11.0], [7.0, 3.3], [20.1, 9.9]])
    np.testing.assert_allclose(field.at(points), 2 * points)


def test_the_jacobian_of_a_dilation_is_its_volume_factor() -> None:
    nodes = lattice((5, 5, 5), (0.0, 0.0, 0.0), 3.0)
    field = VectorField(vectors_mm=0.1 * nodes, origin_mm=(0.0, 0.0, 0.0), spacing_mm=3.0)
    np.testing.assert_allclose(field.jacobian_determinants(), 1.1**3)
    np.testing.assert_allclose(field.divergence(), 0.3)


def test_the_flow_backwards_undoes_the_flow_forwards(swelling: VectorField) -> None:
    forwards = exponential(swelling)
    backwards = exponential(swelling.with_vectors(-swelling.vectors_mm))
    start = lattice((9, 9, 9), (-16.0, -16.0, -16.0), 4.0)
    there = start + forwards.at(start)
    assert np.abs(there - start).max() > 1.5
    assert np.abs(there + backwards.at(there) - start).max() < 0.15


@pytest.mark.parametrize("rate", [-0.7, 0.5, 1.0])
def test_the_volume_along_the_flow_is_the_volume_of_the_moved_region(
    ball: np.ndarray, swelling: VectorField, rate: float
) -> None:
    predicted = volume_ratio(swelling.with_vectors(rate * swelling.vectors_mm), points_of(ball))
    forwards = exponential(swelling.with_vectors(rate * swelling.vectors_mm))
    radius_mm = np.linalg.norm(np.array([8.0, 0, 0]) + forwards.at(np.array([[8.0], [0.0], [0.0]]))[:, 0])
    assert predicted == pytest.approx((radius_mm / 8.0) ** 3, rel=0.05)
    assert (predicted > 1) == (rate > 0)


def test_far_from_the_region_nothing_moves(swelling: VectorField) -> None:
    border = np.abs(swelling.vectors_mm[:, [0, -1]]).max()
    assert border < 0.02 * np.abs(swelling.vectors_mm).max()


def test_refining_is_linear_interpolation_and_cuts_to_the_shape() -> None:
    coarse = lattice((4, 3, 5), (0.0, 10.0, -3.0), 2.0)
    fine = refine(coarse, (6, 5, 8))
    np.testing.assert_allclose(fine, lattice((6, 5, 8), (0.0, 10.0, -3.0), 1.0))
