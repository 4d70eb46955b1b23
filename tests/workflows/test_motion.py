"""Heads that moved during the scan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.workflows.synthetic.motion import (
    KINDS,
    ORDERS,
    Kind,
    Order,
    Sampling,
    acquisition_times,
    moved_rigidly,
    with_motion,
)

SPACING_MM = (2.0, 2.5, 3.0)


def blob(shape: tuple[int, int, int] = (48, 40, 36)) -> NDArray[np.float32]:
    """Return a smooth thing without symmetry, well inside its field of view."""
    rng = np.random.default_rng(3)
    lumps = ndimage.gaussian_filter(rng.normal(size=shape), 3.0)
    ball = sum(
        ((g - (n - 1) / 2) * s / 30.0) ** 2
        for g, n, s in zip(np.ogrid[tuple(slice(n) for n in shape)], shape, SPACING_MM, strict=True)
    )
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(
        np.where(ball < 1.0, 200.0 + 60.0 * lumps / lumps.std(), 0.0), 1.0
    ).astype(np.float32)
    return smooth


@pytest.mark.parametrize(("kind", "order"), list(itertools.product(KINDS, ORDERS)))
def test_a_head_that_hardly_moves_stays_and_one_that_moves_changes(kind: Kind, order: Order) -> None:
    head = blob()
    sampling = Sampling(axis=1, order=order, partial_fourier=0.75)
    still, moved = (
        with_motion(head, SPACING_MM, kind=kind, strength=s, sampling=sampling, rng=np.random.default_rng(1))
        for s in (1e-6, 6.0)
    )
    assert np.abs(still - np.abs(head)).max() < 1e-3 * head.max()
    assert np.abs(moved - head).mean() > 0.02 * head.mean()


def test_the_same_seed_moves_alike_and_another_does_not() -> None:
    def made(seed: int) -> NDArray[np.float32]:
        return with_motion(
            blob(),
            SPACING_MM,
            kind="few",
            strength=4.0,
            sampling=Sampling(axis=0),
            rng=np.random.default_rng(seed),
        )

    assert np.array_equal(made(1), made(1))
    assert not np.array_equal(made(1), made(2))


def test_a_rigid_move_is_that_of_an_interpolation_and_comes_back() -> None:
    head = blob()
    shift = (3.0, -4.0, 2.0)
    moved = moved_rigidly(head, SPACING_MM, (0.0, 0.0, 0.0), shift)
    expected = ndimage.shift(head, np.array(shift) / SPACING_MM, order=3)
    assert np.abs(moved - expected).max() < 0.02 * head.max()
    turned = moved_rigidly(head, SPACING_MM, (8.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert np.abs(turned - head).max() > 0.1 * head.max()
    back = moved_rigidly(turned, SPACING_MM, (-8.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert np.abs(back - head).max() < 0.02 * head.max()


def test_a_turn_goes_from_the_next_axis_to_the_one_after() -> None:
    head = np.zeros((21, 41, 41), dtype=np.float32)
    head[10, 30, 20] = 1.0
    turned = moved_rigidly(ndimage.gaussian_filter(head, 1.5), (1.0, 1.0, 1.0), (15.0, 0.0, 0.0), (0.0,) * 3)
    _, y, z = (int(index[0]) for index in np.where(turned == turned.max()))
    assert (y - 20, abs(z - 20)) == (10, 3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [16, 17])
def test_every_line_is_acquired_once(order: Order, length: int) -> None:
    times = acquisition_times((length, 14, 12), Sampling(axis=0, order=order))
    assert times.shape == ((length, 14, 1) if order == "elliptical" else (length, 1, 1))
    assert np.unique(times).size == times.size
    assert 0.0 < times.min() < times.max() < 1.0


def test_orders_are_what_they_are_called() -> None:
    def of(order: Order) -> NDArray[np.float64]:
        return np.fft.fftshift(acquisition_times((16, 16, 16), Sampling(axis=2, order=order)).ravel())

    assert (np.diff(of("linear")) > 0).all()
    assert of("centric").argmin() == 8
    assert max(of("interleaved")[::2]) < min(of("interleaved")[1::2])


def test_lines_that_are_not_acquired_move_with_their_mirrored_ones() -> None:
    times = acquisition_times((16, 16, 16), Sampling(axis=1, partial_fourier=0.75)).ravel()
    assert times[-5] == times[5]
    assert times[-3] != times[3]
    assert np.unique(times).size == 13
