"""Atrophy in real brains is what it says, and nothing else tells the ill from the healthy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainstage.models.cross_validation import cross_validate
from brainstage.models.member_learners import LinearLearner
from brainstage.models.metrics import auc
from brainstage.models.splits import fold_of_scans
from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.synthetic.anatomy import MODEL_ORIGIN_MM, HeadAnatomy
from brainstage.workflows.synthetic.atrophy import (
    LARGEST_LEVEL,
    AtrophyEffect,
    AtrophyModel,
    atrophied,
    atrophy_model,
    atrophy_velocity,
    draw_effect,
)
from brainstage.workflows.synthetic.diffeomorphism import VectorField, exponential, volume_ratio

LEVELS = (0.0, 0.05, 0.2, 0.3)


@pytest.fixture(scope="module")
def model(anatomy: HeadAnatomy) -> AtrophyModel:
    return atrophy_model(anatomy)


@pytest.fixture(scope="module")
def template(anatomy: HeadAnatomy) -> tuple[Volume, BrainMask]:
    """Return the template's brain at 2 mm."""
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = MODEL_ORIGIN_MM
    data = np.where(anatomy.brain, anatomy.t1 / 100.0 - 1.5, 0.0)[::2, ::2, ::2]
    return (
        Volume(data=data.astype(np.float32), voxel_to_ras=matrix),
        BrainMask(data=anatomy.brain[::2, ::2, ::2], voxel_to_ras=matrix),
    )


def jacobians(displacement: VectorField, points_mm: np.ndarray, step_mm: float = 0.5) -> np.ndarray:
    """Determinants of ``x + u(x)`` at points, by central differences: independent of the divergence."""
    columns = []
    for axis in np.eye(3):
        ahead, behind = points_mm + step_mm * axis[:, None], points_mm - step_mm * axis[:, None]
        moved = ahead + displacement.at(ahead) - behind - displacement.at(behind)
        columns.append(moved / (2 * step_mm))
    return np.linalg.det(np.moveaxis(np.stack(columns, axis=1), -1, 0))


@pytest.mark.parametrize("level", LEVELS)
def test_the_integral_of_the_jacobian_is_the_loss(model: AtrophyModel, level: float) -> None:
    effect = draw_effect(level, seed=3)
    forwards = exponential(atrophy_velocity(model, effect, seed=3))
    ventricles, left, right = (jacobians(forwards, points).mean() for points in model.points_mm)
    assert 1 - (left + right) / 2 == pytest.approx(effect.hippocampal_loss, abs=0.01)
    assert left == pytest.approx(effect.left_hippocampus, abs=0.01)
    assert right == pytest.approx(effect.right_hippocampus, abs=0.01)
    assert ventricles == pytest.approx(effect.ventricles, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_strongest_effect_is_invertible_and_undone_by_the_flow_backwards(
    model: AtrophyModel, seed: int
) -> None:
    strongest = AtrophyEffect(ventricles=3.6, left_hippocampus=0.5, right_hippocampus=0.66)
    velocity = atrophy_velocity(model, strongest, seed)
    forwards, backwards = exponential(velocity), exponential(velocity.with_vectors(-velocity.vectors_mm))
    assert forwards.jacobian_determinants().min() > 0
    assert backwards.jacobian_determinants().min() > 0
    start = np.concatenate(model.points_mm, axis=1)[:, ::20]
    there = start + forwards.at(start)
    assert np.abs(there - start).max() > 2.0
    assert np.abs(there + backwards.at(there) - start).max() < 0.8
    assert np.abs(there + backwards.at(there) - start).mean() < 0.1


def test_nothing_moves_far_away_and_the_mask_keeps_its_volume(
    model: AtrophyModel, template: tuple[Volume, BrainMask]
) -> None:
    velocity = atrophy_velocity(model, draw_effect(0.2, seed=1), seed=1)
    rim = np.abs(np.stack([velocity.vectors_mm[:, 0], velocity.vectors_mm[:, -1]])).max()
    assert rim < 0.001
    _, mask = atrophied(*template, velocity)
    assert mask.volume_ml == pytest.approx(template[1].volume_ml, rel=0.005)


def test_fluid_takes_the_place_of_what_the_ventricles_displace(
    model: AtrophyModel, template: tuple[Volume, BrainMask]
) -> None:
    """Dark voxels deep in the brain increase as the ventricles do."""
    brain, mask = template
    deep = ndimage.distance_transform_edt(mask.data, 2.0) > 14

    def fluid(volume: Volume) -> int:
        return int((deep & (volume.data < -0.5)).sum())

    still, _ = atrophied(brain, mask, atrophy_velocity(model, draw_effect(0.0, seed=2), seed=2))
    effect = draw_effect(0.2, seed=2)
    ill, _ = atrophied(brain, mask, atrophy_velocity(model, effect, seed=2))
    assert 1.1 < fluid(ill) / fluid(still) < effect.ventricles


def test_without_atrophy_the_brain_is_bent_all_the_same_and_keeps_the_three_volumes(
    model: AtrophyModel,
) -> None:
    none = draw_effect(0.0, seed=5)
    assert none == AtrophyEffect(ventricles=1.0, left_hippocampus=1.0, right_hippocampus=1.0)
    velocity = atrophy_velocity(model, none, seed=5)
    assert np.abs(velocity.vectors_mm).max() > 0.5
    for points in model.points_mm:
        assert volume_ratio(velocity, points) == pytest.approx(1.0, abs=0.002)


def test_effects_are_of_the_level_on_average_and_no_stamp() -> None:
    losses = np.array([draw_effect(0.2, seed).hippocampal_loss for seed in range(400)])
    leaning = [
        draw_effect(0.2, s).left_hippocampus - draw_effect(0.2, s).right_hippocampus for s in range(400)
    ]
    assert losses.mean() == pytest.approx(0.2, abs=0.005)
    assert losses.std() == pytest.approx(0.04, rel=0.2)
    assert abs(np.mean(leaning)) < 0.005 < np.std(leaning)


def test_the_same_seed_gives_the_same_flow_and_another_level_the_same_wobble(model: AtrophyModel) -> None:
    first, again = (atrophy_velocity(model, draw_effect(0.2, 4), 4) for _ in range(2))
    other = atrophy_velocity(model, draw_effect(0.2, 4), 5)
    assert np.array_equal(first.vectors_mm, again.vectors_mm)
    assert not np.allclose(first.vectors_mm, other.vectors_mm)


@pytest.mark.parametrize("level", [-0.1, LARGEST_LEVEL + 0.01])
def test_levels_that_no_flow_reaches_are_refused(level: float) -> None:
    with pytest.raises(UsageError, match="are allowed"):
        draw_effect(level, seed=0)


def test_interpolation_gives_nothing_away(model: AtrophyModel, template: tuple[Volume, BrainMask]) -> None:
    """Level 0 beside a level too small to see: were one of them merely resampled otherwise, the baseline would know.

    The same brain with fresh noise, so that nothing but the treatment can tell the groups apart.
    """
    whole, _ = template
    box, corner = (slice(28, 73), slice(38, 92), slice(48, 92)), (28, 38, 48)
    matrix = whole.voxel_to_ras.copy()
    matrix[:3, 3] += 2.0 * np.array(corner)
    brain = Volume(data=whole.data[box], voxel_to_ras=matrix)
    mask = BrainMask(data=np.ones(brain.shape, dtype=bool), voxel_to_ras=matrix)
    noise = np.random.default_rng(0)
    treated = []
    for seed in range(24):
        level = 0.0 if seed % 2 else 0.002
        noisy = brain.with_data(brain.data + 0.1 * noise.standard_normal(brain.shape))
        treated.append(
            atrophied(noisy, mask, atrophy_velocity(model, draw_effect(level, seed), seed))[0].data
        )
    voxels = np.stack(treated)
    spread = np.stack([np.abs(ndimage.laplace(one)).ravel() for one in voxels]).astype(np.float32)
    targets = np.arange(24, dtype=np.int64) % 2
    names = [f"sub-{n}" for n in range(24)]
    folds = fold_of_scans([str(t) for t in targets], names, folds=4, seed=0)
    for values in (voxels.reshape(24, -1), spread):
        learner = LinearLearner(
            values=values, inside=np.ones_like(values, dtype=bool), classes=2, imbalance="none"
        )
        logits = cross_validate(learner, targets, folds, classes=2, seed=0).logits
        found = auc(logits[:, 1] - logits[:, 0], targets == 1, np.ones((1, 24)))[0]
        assert found < 0.8
