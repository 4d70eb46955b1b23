"""A picture is recognised under another name, whatever was done to the file; two people are not taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, rotate, shift, zoom

from brainstage.models.duplicates import NearDuplicate, near_duplicates, same_person

SHAPE = (30, 34, 30)


def mask():
    i, j, k = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in SHAPE), indexing="ij")
    return i**2 + j**2 + k**2 < 1


def brains(count, seed=0):
    """What all brains share, and as much again that is each one's own: they correlate at one half."""
    generator = np.random.default_rng(seed)
    fields = [gaussian_filter(generator.standard_normal(SHAPE), 1.5) for _ in range(count + 1)]
    return [np.where(mask(), 50 * (fields[0] + own), 0).astype(np.float32) for own in fields[1:]]


def compared(volumes, names=None):
    inside = [mask().ravel()] * len(volumes)
    names = [f"sub-{n}" for n in range(len(volumes))] if names is None else names
    return near_duplicates([v.astype(np.float32).ravel() for v in volumes], inside, SHAPE, names)


def resampled(volume):
    """Return a volume through another voxel size and back."""
    coarse = zoom(volume, 0.85, order=1)
    return zoom(coarse, np.array(SHAPE) / coarse.shape, order=1)


COPIES = {
    "re-saved": lambda v: np.round(v, 2),
    "scaled": lambda v: 0.37 * v + 12,
    "mirrored": lambda v: v[::-1],
    "noisy": lambda v: v + np.random.default_rng(5).normal(0, 0.25 * v[mask()].std(), SHAPE),
    "moved by a third of a voxel": lambda v: shift(v, (0.3, -0.3, 0.3), order=1),
    "turned": lambda v: rotate(v, 2, axes=(1, 2), reshape=False, order=1),
    "resampled": resampled,
}


@pytest.mark.parametrize("altered", list(COPIES.values()), ids=list(COPIES))
def test_a_copy_is_found_and_nobody_else(altered):
    volumes = brains(12)
    found = compared([*volumes, altered(volumes[3])])
    assert [(pair.first, pair.second) for pair in found] == [(3, 12)]
    assert found[0].mirrored == (altered is COPIES["mirrored"])


def test_different_people_are_no_pair():
    assert compared(brains(40)) == ()


def test_visits_of_one_participant_are_no_pair():
    volumes = brains(8)
    names = [f"sub-{n}" for n in range(8)]
    assert compared([*volumes, volumes[3]], [*names, "sub-3"]) == ()


def test_brains_of_one_template_are_told_apart():
    """Nine tenths in common, so that every two correlate highly; what is left of each is its own."""
    shared, *own = brains(21)
    volumes = [shared + 0.3 * one for one in own]
    assert np.corrcoef(volumes[0][mask()], volumes[1][mask()])[0, 1] > 0.9
    assert compared(volumes) == ()
    found = compared([*volumes, 2 * volumes[7]])
    assert [(pair.first, pair.second) for pair in found] == [(7, 20)]


def test_scans_that_differ_from_the_rest_in_the_same_way_are_told_apart():
    """Another contrast: the same sign of difference from the average, yet two people."""
    volumes = brains(20)
    volumes[4:6] = [-volumes[4], -volumes[5]]
    assert compared(volumes) == ()


def test_more_scans_than_are_compared_at_a_time():
    generator = np.random.default_rng(0)
    shape = (4, 5, 4)
    rows = [generator.standard_normal(80).astype(np.float32) for _ in range(1200)]
    rows[1100] = rows[20] * 2
    rows[900] = rows[700].reshape(shape)[::-1].ravel()
    inside = [np.ones(80, dtype=bool)] * len(rows)
    found = near_duplicates(rows, inside, shape, [str(n) for n in range(len(rows))])
    assert [(p.first, p.second, p.mirrored) for p in found] == [(20, 1100, False), (700, 900, True)]


def test_blank_scans_and_no_common_brain_do_no_harm():
    volumes = brains(4)
    assert compared([*volumes, np.zeros(SHAPE)]) == ()
    nothing = [np.zeros(volumes[0].size, dtype=bool)] * 4
    assert near_duplicates([v.ravel() for v in volumes], nothing, SHAPE, list("abcd")) == ()


def test_people_are_joined_through_others():
    def pair(first, second):
        return NearDuplicate(first=first, second=second, correlation=1, beyond_average=1, mirrored=False)

    stands_for = same_person(["e", "d", "c", "b", "a", "c"], [pair(0, 1), pair(2, 3), pair(1, 5)])
    assert stands_for == {"e": "b", "d": "b", "c": "b", "b": "b", "a": "a"}
