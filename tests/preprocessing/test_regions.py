"""Regions: the built-in ones lie where anatomy says, and an atlas of the user is taken only where it fits."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.pipeline.errors import ImageError, InputMissingError
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.regions import coarse_atlas, read_atlas, region_shares, region_sums
from brainstage.preprocessing.template import load_template

POINTS = {
    "medial temporal": [
        (-27, -20, -16),  # hippocampus
        (-24, -38, -1),  # its tail
        (-23, -4, -19),  # amygdala
        (-22, -12, -30),  # entorhinal cortex
        (-24, -30, -18),  # parahippocampal gyrus
    ],
    "lateral temporal": [(-58, -20, 4), (-58, -40, -4), (-52, -30, -24), (-40, 14, -30), (-40, -50, -18)],
    "frontal": [(-40, -14, 52), (-20, 30, 48), (-50, 20, 14), (-26, 34, -14), (-5, 32, 16), (-6, 0, 62)],
    "parietal": [(-48, -24, 48), (-24, -60, 58), (-46, -62, 34), (-6, -60, 40), (-56, -34, 32)],
    "occipital": [(-8, -82, 6), (-6, -82, 24), (-12, -70, -4), (-20, -98, -4), (-36, -82, 12)],
    "insula and deep grey": [(-37, 4, 0), (-11, -18, 8), (-12, 14, 8), (-26, 6, 0)],
    "cerebellum": [(-40, -66, -32), (-24, -60, -52), (-20, -64, -24)],
    "lateral ventricle": [(-9, 20, 6), (-10, -6, 20), (-24, -44, 10)],
}
VOLUMES_ML = {
    "brain stem": (20, 55),
    "cerebellum": (60, 110),
    "lateral ventricle": (8, 30),
    "medial temporal": (15, 40),
    "insula and deep grey": (35, 80),
    "lateral temporal": (80, 150),
    "occipital": (50, 120),
    "parietal": (120, 240),
    "frontal": (220, 380),
}


def name_at(point) -> str:
    atlas = coarse_atlas()
    index = np.rint(np.linalg.inv(atlas.labels.voxel_to_ras) @ [*point, 1])[:3].astype(int)
    return atlas.names.get(int(atlas.labels.data[tuple(index)]), "")


@pytest.mark.parametrize(("region", "point"), [(name, p) for name, places in POINTS.items() for p in places])
def test_known_points_lie_in_their_regions_on_both_sides(region, point):
    assert name_at(point) == f"left {region}"
    assert name_at((-point[0], *point[1:])) == f"right {region}"


@pytest.mark.parametrize("point", [(-4, -26, -34), (5, -26, -14), (2, -40, -54)])
def test_the_brain_stem_has_no_sides(point):
    assert name_at(point) == "brain stem"


def test_regions_partition_the_brain():
    atlas = coarse_atlas()
    assert np.array_equal(atlas.labels.data > 0, load_template(1.0).brain_mask.data)
    assert set(np.unique(atlas.labels.data)) - {0} == set(atlas.names)


def test_left_mirrors_right_off_the_midplane():
    atlas = coarse_atlas()
    labels = atlas.labels.data.astype(int)
    x = atlas.labels.voxel_to_ras[0, 0] * np.arange(labels.shape[0]) + atlas.labels.voxel_to_ras[0, 3]
    assert np.array_equal(x, -x[::-1])
    mirrored = {
        label: next(
            other
            for other, name in atlas.names.items()
            if name
            == atlas.names[label].replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        )
        for label in atlas.names
    } | {0: 0}
    swapped = np.vectorize(mirrored.get)(labels[::-1])
    both = load_template(1.0).brain_mask.data
    off = (x != 0)[:, None, None] & both & both[::-1]
    assert (swapped == labels)[off].mean() > 0.999


@pytest.mark.parametrize("name", VOLUMES_ML)
def test_sizes_are_those_of_a_brain(name):
    atlas = coarse_atlas()
    low, high = VOLUMES_ML[name]
    found = [
        label
        for label, full in atlas.names.items()
        if full.removeprefix("left ").removeprefix("right ") == name
    ]
    assert found
    for label in found:
        assert low <= (atlas.labels.data == label).sum() / 1000 <= high


@pytest.mark.parametrize("resolution_mm", [1.5, 2.0])
def test_regions_are_the_same_on_coarser_grids(resolution_mm):
    template = load_template(resolution_mm)
    coarse, fine = coarse_atlas().on(template.grid), coarse_atlas().labels.data
    for label in coarse_atlas().names:
        volume = (coarse == label).sum() * resolution_mm**3
        assert volume == pytest.approx((fine == label).sum(), rel=0.06)


# How a map is spread


def even_map(value=1.0) -> tuple[Volume, np.ndarray]:
    template = load_template(2.0)
    return template.t1w.with_data(np.full(template.grid.shape, value, np.float32)), template.brain_mask.data


def test_an_even_map_prefers_no_region():
    evidence, brain = even_map(0.3)
    shares = region_shares(evidence, brain, coarse_atlas())
    assert [one.times_brain_mean for one in shares] == pytest.approx([1.0] * len(shares))
    assert sum(one.share for one in shares) == pytest.approx(1.0, abs=1e-2)


def test_what_lies_in_one_region_is_found_there():
    evidence, brain = even_map(0.0)
    labels = coarse_atlas().on(evidence.grid)
    wanted = next(label for label, name in coarse_atlas().names.items() if name == "right medial temporal")
    data = np.where(labels == wanted, 2.0, 0.0).astype(np.float32)
    first, *others = region_shares(evidence.with_data(data), brain, coarse_atlas())
    assert first.name == "right medial temporal"
    assert first.share == pytest.approx(1.0)
    assert {one.share for one in others} == {0.0}


@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.01, 1000), seed=st.integers(0, 1000))
def test_shares_do_not_depend_on_the_scale_of_a_map(factor, seed):
    evidence, brain = even_map()
    data = np.random.default_rng(seed).standard_normal(evidence.shape).astype(np.float32)
    first = region_shares(evidence.with_data(data), brain, coarse_atlas())
    second = region_shares(evidence.with_data(data * np.float32(factor)), brain, coarse_atlas())
    assert [one.name for one in first] == [one.name for one in second]
    assert [one.share for one in first] == pytest.approx([one.share for one in second], rel=1e-4)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_sums_for_and_against_are_the_integral_of_a_map(seed, factor):
    template = load_template(2.0)
    density = np.random.default_rng(seed).standard_normal(template.grid.shape)
    volume = template.t1w.with_data(factor * density)
    brain = template.brain_mask.data
    sums = region_sums(volume, brain, coarse_atlas(2.0))
    voxel_ml = 0.008
    for part, name in ((np.maximum, "speaks_for"), (np.minimum, "speaks_against")):
        found = sum(getattr(one, name) for one in sums)
        assert found == pytest.approx(part(volume.data[brain], 0).sum(dtype=np.float64) * voxel_ml, rel=1e-4)
    assert [one.size for one in sums] == sorted((one.size for one in sums), reverse=True)
    turned = region_sums(volume.with_data(-volume.data), brain, coarse_atlas(2.0))
    assert {one.name: one.total for one in turned} == pytest.approx({one.name: -one.total for one in sums})


def test_regions_without_a_value_are_no_sums():
    template = load_template(2.0)
    atlas = coarse_atlas()
    labels = atlas.on(template.grid)
    (key,) = (key for key, name in atlas.names.items() if name == "left cerebellum")
    volume = template.t1w.with_data(np.where(labels == key, -0.5, 0.0))
    (only,) = region_sums(volume, template.brain_mask.data, atlas)
    assert (only.name, only.speaks_for) == ("left cerebellum", 0.0)
    assert only.total == pytest.approx(-0.5 * only.volume_ml)


def test_a_map_without_anything_positive_has_no_regions():
    evidence, brain = even_map(-1.0)
    assert region_shares(evidence, brain, coarse_atlas()) == ()


# An atlas of the user


def write_atlas(folder, labels, matrix, rows=((1, "this"), (2, "that")), header="index\tname"):
    path = folder / "mine.nii.gz"
    nib.save(nib.Nifti1Image(labels, matrix), path)
    if rows is not None:
        lines = [header, *(f"{index}\t{name}" for index, name in rows)]
        (folder / "mine.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def halves() -> tuple[np.ndarray, np.ndarray]:
    """Label the left half of a 3 mm grid around the brain 1 and the right half 2, with x running to the left."""
    matrix = np.diag([-3.0, 3.0, 3.0, 1.0])
    matrix[:3, 3] = (72, -108, -60)
    labels = np.ones((49, 61, 45), dtype=np.int16)
    labels[:24] = 2
    return labels, matrix


def test_an_atlas_on_any_grid_names_the_right_side(tmp_path):
    atlas = read_atlas(write_atlas(tmp_path, *halves()))
    evidence, brain = even_map(0.0)
    x = evidence.voxel_to_ras[0, 0] * np.arange(evidence.shape[0]) + evidence.voxel_to_ras[0, 3]
    data = np.broadcast_to((x > 20)[:, None, None], evidence.shape).astype(np.float32)
    first, _ = region_shares(evidence.with_data(data), brain, atlas)
    assert (atlas.name, first.name) == ("mine", "that")
    assert first.share > 0.99


def test_an_atlas_of_a_small_structure_is_taken(tmp_path):
    labels, matrix = halves()
    index = np.rint(np.linalg.inv(matrix) @ [-27, -20, -16, 1])[:3].astype(int)
    small = np.zeros_like(labels)
    small[tuple(index)] = 1
    assert read_atlas(write_atlas(tmp_path, small, matrix)).names == {1: "this", 2: "that"}


def test_an_atlas_elsewhere_is_refused(tmp_path):
    labels, matrix = halves()
    matrix[:3, 3] += (0, 0, 150)
    with pytest.raises(ImageError, match="lie in the template's brain"):
        read_atlas(write_atlas(tmp_path, labels, matrix))


def test_an_atlas_without_names_is_refused(tmp_path):
    with pytest.raises(InputMissingError, match=r"mine\.tsv"):
        read_atlas(write_atlas(tmp_path, *halves(), rows=None))


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        (((1, "this"),), "label\tregion", "index"),
        ((("one", "this"),), "index\tname", "whole number"),
        (((7, "absent"),), "index\tname", "none of the labels"),
        (((0, "background"),), "index\tname", "names no region"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, rows, header, says):
    with pytest.raises(ImageError, match=says):
        read_atlas(write_atlas(tmp_path, *halves(), rows=rows, header=header))


def test_a_probability_map_is_no_atlas(tmp_path):
    labels, matrix = halves()
    with pytest.raises(ImageError, match="whole numbers"):
        read_atlas(write_atlas(tmp_path, labels * np.float32(0.3), matrix))


def test_another_table_is_another_atlas(tmp_path):
    first = read_atlas(write_atlas(tmp_path, *halves()))
    second = read_atlas(write_atlas(tmp_path, *halves(), rows=((1, "other"), (2, "that"))))
    assert first.sha256 != second.sha256
