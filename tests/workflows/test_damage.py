"""Harm done on purpose is the harm it says, and harmless variation is harmless."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.registration import dice
from brainstage.workflows.synthetic import damage, variation
from brainstage.workflows.synthetic.damage import DAMAGES, MISPLACEMENTS, TOO_LITTLE, TOO_MUCH, Specimen

KINDS = [(failure, kind) for failure, kinds in DAMAGES.items() for kind in kinds]


@cache
def head_and_mask() -> tuple[Volume, BrainMask]:
    """A ball of brain (fluid, grey, white from outside in) in a skull, with noise in the air; 3 mm voxels."""
    shape = (64, 72, 66)
    index = np.indices(shape)
    centre = np.array([32.0, 37.0, 36.0])[:, None, None, None]
    radius = np.sqrt(
        (((index - centre) / np.array([22.0, 26.0, 22.0])[:, None, None, None]) ** 2).sum(axis=0)
    )
    levels = [(1.25, 220.0), (1.18, 20.0), (1.0, 60.0), (0.93, 150.0), (0.7, 220.0), (0.2, 60.0)]
    signal = np.zeros(shape)
    for within, value in levels:
        signal[radius < within] = value
    rng = np.random.default_rng(5)
    noisy = np.hypot(signal + rng.normal(0, 3, shape), rng.normal(0, 3, shape))
    voxel_to_ras = np.diag([3.0, 3.0, 3.0, 1.0])
    return (
        Volume(data=noisy.astype(np.float32), voxel_to_ras=voxel_to_ras),
        BrainMask(data=radius < 1.0, voxel_to_ras=voxel_to_ras),
    )


def specimen(stripped: bool = False, seed: int = 0) -> Specimen:
    head, mask = head_and_mask()
    if stripped:
        head = head.with_data(np.where(mask.data, head.data, 0.0))
    return Specimen(head=head, brain_mask=mask, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("stripped", [False, True], ids=["whole", "stripped"])
@pytest.mark.parametrize(("failure", "kind"), KINDS)
def test_every_damage_changes_the_scan_and_only_by_its_seed(failure, kind, stripped) -> None:
    once, again = (DAMAGES[failure][kind](specimen(stripped)) for _ in range(2))
    before = specimen(stripped).head
    assert np.array_equal(once.data, again.data)
    assert np.isfinite(once.data).all()
    same = once.shape == before.shape and np.array_equal(once.data, before.data)
    assert not same or not np.allclose(once.voxel_to_ras, before.voxel_to_ras)


@pytest.mark.parametrize("kind", variation.VARIATIONS)
def test_a_variation_keeps_the_order_of_the_tissues(kind) -> None:
    varied = variation.VARIATIONS[kind](specimen())
    mask = head_and_mask()[1]
    if varied.shape != mask.data.shape:
        return
    values = varied.data
    index = np.argwhere(mask.data).mean(axis=0).round().astype(int)
    white = np.median(values[index[0] + 11 : index[0] + 14, index[1], index[2]])
    rim = np.median(values[index[0] + 21, index[1] - 2 : index[1] + 3, index[2]])
    assert white > rim


def test_an_inverted_contrast_turns_grey_brighter_than_white_and_leaves_the_air() -> None:
    before, after = specimen().head, DAMAGES["wrong contrast"]["T2-like"](specimen())
    assert after.data[32 + 12, 37, 36] < after.data[32 + 19, 37, 36]
    assert np.array_equal(before.data[:3], after.data[:3])


@pytest.mark.parametrize(("axis", "end"), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_field_of_view_cut_off_keeps_what_is_left_in_its_place(axis, end) -> None:
    before = specimen()
    after = damage.cut_off(before, axis=axis, end=end, share=0.25)
    offset = np.linalg.inv(before.head.voxel_to_ras) @ after.voxel_to_ras @ [0, 0, 0, 1]
    corner = offset[:3].round().astype(int)
    kept = tuple(slice(c, c + n) for c, n in zip(corner, after.shape, strict=True))
    assert np.array_equal(before.head.data[kept], after.data)
    extent = np.flatnonzero(before.brain_mask.data.any(axis=tuple(a for a in range(3) if a != axis)))
    lost = before.brain_mask.data.sum() - before.brain_mask.data[kept].sum()
    assert 0.1 < lost / before.brain_mask.data.sum() < 0.25
    assert after.shape[axis] < before.head.shape[axis] - 0.2 * (extent[-1] - extent[0])


def test_thick_slices_keep_the_centre_of_the_head_where_it_was() -> None:
    before = specimen().head
    after = damage.thick_slices(specimen(), axis=2, thickness_mm=6.0)

    def centre(volume: Volume) -> np.ndarray:
        index = np.argwhere(volume.data > 40)
        return (volume.voxel_to_ras @ np.append(index.mean(axis=0), 1.0))[:3]

    assert after.spacing_mm == pytest.approx((3.0, 3.0, 6.0))
    assert np.abs(centre(before) - centre(after)).max() < 0.5


def test_noise_and_motion_leave_a_blank_background_blank() -> None:
    for kind in ("heavy noise", "motion"):
        for harm in DAMAGES[kind].values():
            assert not harm(specimen(stripped=True)).data[~head_and_mask()[1].data].any()


def test_stronger_motion_changes_more() -> None:
    before = specimen().head.data
    mild, strong = (
        np.abs(damage.moved(specimen(), kind="few", strength=s).data - before).mean() for s in (1.0, 5.0)
    )
    assert strong > 1.5 * mild > 0


def test_masks_lose_and_gain_what_they_say() -> None:
    mask = head_and_mask()[1].data
    for name, harm in TOO_LITTLE.items():
        changed = harm(specimen()).data
        assert changed.sum() < 0.85 * mask.sum(), name
        assert not (changed & ~mask).any(), name
    for name, harm in TOO_MUCH.items():
        changed = harm(specimen()).data
        assert changed.sum() > 1.08 * mask.sum(), name
        assert not (mask & ~changed).any(), name


def test_margins_are_in_millimetres() -> None:
    _, mask = head_and_mask()
    assert dice(damage.dilated(damage.dilated(mask, 6.0), -6.0).data, mask.data) > 0.98
    extent = [np.ptp(np.argwhere(m.data), axis=0) for m in (mask, damage.dilated(mask, 6.0))]
    assert (extent[1] - extent[0]).tolist() == [4, 4, 4]


@pytest.mark.parametrize("kind", MISPLACEMENTS)
def test_misplacements_move_the_brain_far(kind) -> None:
    matrix = MISPLACEMENTS[kind]()
    corners = np.array([[60, 0, 0, 1], [-60, 0, 0, 1], [0, 60, 0, 1], [0, -90, 0, 1], [0, 0, 60, 1]]).T
    assert np.linalg.norm(((matrix - np.eye(4)) @ corners)[:3], axis=0).mean() > 7.0
