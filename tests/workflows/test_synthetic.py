"""Synthetic heads keep what they promise: their truth is true, and a recipe is all there is to a head."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.errors import UsageError
from brainstage.workflows.synthetic.anatomy import MODEL_ORIGIN_MM, MODEL_SHAPE, HeadAnatomy, Tissue
from brainstage.workflows.synthetic.diffeomorphism import column, interpolate, lattice
from brainstage.workflows.synthetic.heads import (
    FIELD_CENTRE_MM,
    HIPPOCAMPUS_SCALES,
    VENTRICLE_SCALES,
    Contrast,
    HeadRecipe,
    SyntheticHead,
    acquisition_grid,
    atrophy_pullback,
    draw_pose,
    individual_shape,
    make_head,
    paint,
)

COARSE = HeadRecipe(person_seed=7, scan_seed=70, spacing_mm=(3.0, 3.0, 3.0))
NOISELESS = replace(COARSE, noise_fraction=0.0)
TEMPORAL_BOX_MM = ((-48.0, 48.0), (-75.0, 45.0), (-40.0, 50.0))


def volume_change(anatomy: HeadAnatomy, region: np.ndarray, ventricles: float, hippocampi: float) -> float:
    """Count a region's voxels after atrophy, relative to before, on the 1 mm grid."""
    field = atrophy_pullback(anatomy, ventricles, hippocampi)
    low, high = np.array(TEMPORAL_BOX_MM).T
    points = lattice((high - low).astype(int), low, 1.0)
    indices = points + field.at(points) - column(MODEL_ORIGIN_MM, points.ndim)
    return float(interpolate(region.astype(np.float64), indices).sum() / region.sum())


def in_ras(head: SyntheticHead) -> tuple[np.ndarray, np.ndarray]:
    """Head and mask with axes turned to RAS, no resampling."""
    images = (
        nib.Nifti1Image(array, head.head.voxel_to_ras)
        for array in (head.head.data, head.brain_mask.data.astype(np.uint8))
    )
    volume, mask = (np.asarray(nib.as_closest_canonical(image).dataobj) for image in images)
    return volume, mask > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


class TestAnatomy:
    def test_ventricles_and_hippocampi_have_plausible_volumes(self, anatomy: HeadAnatomy) -> None:
        assert 10_000 < anatomy.ventricles.sum() < 20_000
        assert 5_000 < anatomy.hippocampi.sum() < 8_000
        assert anatomy.t1[anatomy.ventricles].mean() < 90

    def test_both_regions_are_symmetric_and_inside_the_brain(self, anatomy: HeadAnatomy) -> None:
        for region in (anatomy.ventricles, anatomy.hippocampi):
            assert (region == region[::-1]).all()
            assert anatomy.brain[region].all()

    def test_the_layers_follow_each_other_above_the_vertex(self, anatomy: HeadAnatomy) -> None:
        tissue = anatomy.tissues(csf_mm=3.0, skull_mm=6.0)
        i, j = (round(-origin) for origin in MODEL_ORIGIN_MM[:2])
        line = tissue[i, j, np.flatnonzero(anatomy.brain[i, j])[-1] + 1 :]
        order = [Tissue(code) for n, code in enumerate(line) if n == 0 or code != line[n - 1]]
        seen = list(dict.fromkeys(order))
        assert seen[0] is Tissue.CSF
        assert (
            seen.index(Tissue.BONE)
            < seen.index(Tissue.FAT)
            < seen.index(Tissue.SKIN)
            < seen.index(Tissue.AIR)
        )

    def test_the_head_has_a_neck_that_leaves_the_model_and_air_around(self, anatomy: HeadAnatomy) -> None:
        tissue = anatomy.tissues(csf_mm=3.0, skull_mm=6.0)
        assert (tissue[:, :, 0] != Tissue.AIR).mean() > 0.15
        assert (tissue[:, :, -1] == Tissue.AIR).all()
        assert (tissue[0] == Tissue.AIR).mean() > 0.9


class TestDeformation:
    @pytest.mark.parametrize("seed", range(5))
    def test_individual_shapes_are_invertible(self, seed: int) -> None:
        shape = individual_shape(seed)
        assert shape.jacobian_determinants().min() > 0.2
        assert np.linalg.norm(shape.vectors_mm, axis=0).mean() > 2.0

    @pytest.mark.parametrize("ventricles", VENTRICLE_SCALES)
    @pytest.mark.parametrize("hippocampi", HIPPOCAMPUS_SCALES)
    def test_atrophy_is_invertible_up_to_its_limits(
        self, anatomy: HeadAnatomy, ventricles: float, hippocampi: float
    ) -> None:
        assert atrophy_pullback(anatomy, ventricles, hippocampi).jacobian_determinants().min() > 0

    def test_no_atrophy_moves_nothing(self, anatomy: HeadAnatomy) -> None:
        assert not atrophy_pullback(anatomy, 1.0, 1.0).vectors_mm.any()

    @pytest.mark.parametrize("asked", [1.0, 1.5, 2.5, 3.5])
    def test_ventricles_grow_by_what_is_asked(self, anatomy: HeadAnatomy, asked: float) -> None:
        assert volume_change(anatomy, anatomy.ventricles, asked, 0.8) == pytest.approx(asked, rel=0.03)

    @pytest.mark.parametrize("asked", [1.1, 0.9, 0.75, 0.6])
    def test_hippocampi_shrink_by_what_is_asked(self, anatomy: HeadAnatomy, asked: float) -> None:
        assert volume_change(anatomy, anatomy.hippocampi, 2.0, asked) == pytest.approx(asked, rel=0.03)

    def test_the_brain_itself_keeps_its_volume(self, anatomy: HeadAnatomy) -> None:
        thin, wide = (make_head(anatomy, replace(COARSE, ventricle_scale=scale)) for scale in (1.0, 3.0))
        assert wide.brain_mask.volume_ml == pytest.approx(thin.brain_mask.volume_ml, rel=0.01)

    def test_the_measured_volumes_of_a_head_follow_the_recipe(self, anatomy: HeadAnatomy) -> None:
        fine = replace(COARSE, spacing_mm=(1.5, 1.5, 1.5))
        healthy = make_head(anatomy, fine)
        sick = make_head(anatomy, replace(fine, ventricle_scale=2.5, hippocampus_scale=0.7))
        assert sick.ventricle_ml / healthy.ventricle_ml == pytest.approx(2.5, rel=0.1)
        assert sick.hippocampus_ml / healthy.hippocampus_ml == pytest.approx(0.7, rel=0.1)


class TestPose:
    @pytest.mark.parametrize("seed", range(5))
    def test_pose_stays_within_its_limits(self, seed: int) -> None:
        matrix = draw_pose(replace(COARSE, person_seed=seed, scan_seed=seed + 50))
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
        rotation = matrix[:3, :3] / sizes
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert ((sizes > 0.87) & (sizes < 0.97)).all()
        assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) < np.sqrt(3) * COARSE.rotation_limit_deg
        centre = matrix[:3, :3] @ np.array(FIELD_CENTRE_MM) + matrix[:3, 3]
        assert np.abs(centre).max() <= COARSE.shift_limit_mm

    def test_the_brain_lies_where_the_pose_says(self, anatomy: HeadAnatomy) -> None:
        head = make_head(anatomy, COARSE)
        template_centre = np.argwhere(anatomy.brain).mean(axis=0) + MODEL_ORIGIN_MM
        wanted = head.template_to_native @ [*template_centre, 1]
        found = head.brain_mask.voxel_to_ras @ [*np.argwhere(head.brain_mask.data).mean(axis=0), 1]
        assert np.linalg.norm(wanted - found) < 6.0  # the individual shape may move it by a few mm

    def test_native_to_template_brings_the_brain_back(self, anatomy: HeadAnatomy) -> None:
        head = make_head(anatomy, COARSE)
        native = (
            head.brain_mask.voxel_to_ras
            @ np.c_[np.argwhere(head.brain_mask.data), np.ones(head.brain_mask.data.sum())].T
        )
        template = np.linalg.inv(head.template_to_native) @ native
        indices = template[:3] - column(MODEL_ORIGIN_MM, 2)
        assert interpolate(anatomy.brain.astype(np.uint8), indices, order=0).mean() > 0.93

    @pytest.mark.parametrize("axcodes", ["RAS", "LAS", "LPS", "PSR", "SAL"])
    def test_the_grid_has_the_orientation_and_field_of_view_asked_for(self, axcodes: str) -> None:
        recipe = replace(COARSE, axcodes=axcodes, spacing_mm=(2.0, 3.0, 4.0))
        grid = acquisition_grid(recipe)
        assert grid.axcodes == axcodes
        np.testing.assert_allclose(grid.spacing_mm, recipe.spacing_mm)
        middle = grid.voxel_to_ras @ [*((n - 1) / 2 for n in grid.shape), 1]
        np.testing.assert_allclose(middle[:3], 0, atol=1e-9)
        extent = np.abs(grid.voxel_to_ras[:3, :3]) @ grid.shape
        np.testing.assert_allclose(extent, recipe.fov_mm, atol=2.1)


class TestOrientation:
    @pytest.mark.parametrize("axcodes", ["LAS", "LPS", "PSR"])
    def test_a_head_is_the_same_head_however_it_is_stored(self, anatomy: HeadAnatomy, axcodes: str) -> None:
        reference, reference_mask = in_ras(make_head(anatomy, NOISELESS))
        volume, mask = in_ras(make_head(anatomy, replace(NOISELESS, axcodes=axcodes)))
        assert volume.shape == reference.shape
        assert dice(mask, reference_mask) > 0.995
        assert np.abs(volume - reference).mean() < 0.01 * reference[reference_mask].mean()

    def test_an_oblique_head_lies_at_the_same_place(self, anatomy: HeadAnatomy) -> None:
        straight = make_head(anatomy, NOISELESS)
        oblique = make_head(anatomy, replace(NOISELESS, tilt_deg=12.0))
        to_oblique = np.linalg.inv(oblique.head.voxel_to_ras) @ straight.head.voxel_to_ras
        resampled = ndimage.affine_transform(
            oblique.head.data, to_oblique, output_shape=straight.head.shape, order=1
        )
        inside = straight.brain_mask.data
        assert np.corrcoef(resampled[inside], straight.head.data[inside])[0, 1] > 0.93
        centres = [
            head.head.voxel_to_ras @ [*np.argwhere(head.brain_mask.data).mean(axis=0), 1]
            for head in (straight, oblique)
        ]
        np.testing.assert_allclose(*centres, atol=0.3)

    def test_the_bias_field_belongs_to_the_scanner(self, anatomy: HeadAnatomy) -> None:
        fields = [
            make_head(anatomy, replace(NOISELESS, axcodes=axcodes)).log_bias_field
            for axcodes in ("RAS", "LPS")
        ]
        np.testing.assert_allclose(fields[0], fields[1][::-1, ::-1], atol=2e-3)


class TestScanner:
    def test_the_same_recipe_gives_the_same_voxels(self, anatomy: HeadAnatomy) -> None:
        first, second = make_head(anatomy, COARSE), make_head(anatomy, COARSE)
        assert first.head.data.tobytes() == second.head.data.tobytes()

    def test_another_scan_of_a_person_keeps_the_brain_and_changes_the_pose(
        self, anatomy: HeadAnatomy
    ) -> None:
        first, second = (make_head(anatomy, replace(COARSE, scan_seed=seed)) for seed in (1, 2))
        assert first.brain_mask.volume_ml == pytest.approx(second.brain_mask.volume_ml, rel=0.005)
        assert np.abs(first.template_to_native - second.template_to_native).max() > 0.5

    def test_another_person_has_another_brain(self, anatomy: HeadAnatomy) -> None:
        first, second = (make_head(anatomy, replace(COARSE, person_seed=seed)) for seed in (1, 2))
        assert dice(first.brain_mask.data, second.brain_mask.data) < 0.97

    def test_values_are_whole_numbers_within_int16(self, anatomy: HeadAnatomy) -> None:
        data = make_head(anatomy, COARSE).head.data
        assert (data == np.rint(data)).all()
        assert data.min() >= 0
        assert data.max() <= np.iinfo(np.int16).max

    def test_the_log_bias_field_is_what_multiplies_the_signal(self, anatomy: HeadAnatomy) -> None:
        flat, biased = (make_head(anatomy, replace(NOISELESS, bias_sd=sd)) for sd in (1e-9, 0.2))
        bright = flat.head.data > 500
        ratio = np.log(biased.head.data[bright] / flat.head.data[bright])
        np.testing.assert_allclose(ratio, biased.log_bias_field[bright], atol=0.005)
        assert biased.log_bias_field.std() == pytest.approx(0.2, rel=0.5)

    def test_noise_in_the_air_is_as_strong_as_asked(self, anatomy: HeadAnatomy) -> None:
        head = make_head(anatomy, replace(COARSE, noise_fraction=0.03))
        corner = head.head.data[:6, -6:, -6:]
        white = np.percentile(head.head.data[head.brain_mask.data], 90)
        assert corner.std() / white == pytest.approx(0.03 * 0.655, rel=0.3)  # Rayleigh: SD is 0.655 sigma

    @pytest.mark.parametrize("contrast", Contrast)
    def test_the_order_of_the_tissues_tells_the_contrasts_apart(
        self, anatomy: HeadAnatomy, contrast: Contrast
    ) -> None:
        signal = paint(anatomy, replace(COARSE, contrast=contrast))
        grey, white = signal[anatomy.gm > 230].mean(), signal[anatomy.wm > 230].mean()
        fluid = signal[anatomy.ventricles].mean()
        assert signal.shape == MODEL_SHAPE
        assert (fluid < grey < white) if contrast is Contrast.T1W else (white < grey < fluid)

    def test_the_whole_brain_is_in_view(self, anatomy: HeadAnatomy) -> None:
        for seed in range(3):
            mask = make_head(anatomy, replace(COARSE, person_seed=seed, scan_seed=seed)).brain_mask.data
            assert not any(np.take(mask, (0, -1), axis=axis).any() for axis in range(3))


class TestRecipe:
    def test_a_scale_out_of_reach_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"ventricle_scale must lie in 0\.7\.\.4, got 9"):
            replace(COARSE, ventricle_scale=9.0)

    @pytest.mark.parametrize("axcodes", ["RAR", "XYZ", "RA"])
    def test_axes_that_are_no_orientation_are_refused(self, axcodes: str) -> None:
        with pytest.raises(UsageError, match="axcodes must name"):
            replace(COARSE, axcodes=axcodes)
