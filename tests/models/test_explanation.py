"""A map of what a logit rests on adds up to the logit and lies where the cause lies, to the millimetre it can."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from brainstage.models.choices import STRIDES
from brainstage.models.explanation import METHODS, STEPS, explanation_of
from brainstage.models.features import FeatureExtractor, feature_channels
from brainstage.models.heads import LinearHead, attention_head
from brainstage.models.med3d import build_med3d, initialise_randomly
from brainstage.models.weights import WeightsSource
from brainstage.pipeline.errors import InferenceError
from brainstage.pipeline.records import NetworkInput

SPACING_MM = 3.0
CLASSES = ("CN", "AD")


def extractor(strides="med3d", seed=0) -> FeatureExtractor:
    network = build_med3d("resnet10", strides)
    initialise_randomly(network, seed)
    source = WeightsSource(kind="random", architecture="resnet10", sha256="0", words="", strides=strides)
    return FeatureExtractor(network, source)


def matrix() -> np.ndarray:
    placed = np.diag([SPACING_MM] * 3 + [1.0])
    placed[:3, 3] = (-90.0, -110.0, -70.0)
    return placed


def seen(*blobs, size=64, seed=3) -> NetworkInput:
    """Make a dim noisy ball with bright blobs of 4 voxels (SD 2) at voxel positions."""
    place = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    brain = ((place - (size - 1) / 2) ** 2).sum(axis=0) < (size / 2 - 2) ** 2
    image = 0.05 * np.random.default_rng(seed).standard_normal([size] * 3)
    for blob in blobs:
        apart = ((place - np.reshape(blob, (3, 1, 1, 1))) ** 2).sum(axis=0)
        image = image + 6.0 * np.exp(-apart / (2 * 2.0**2))
    data = np.where(brain, image, 0).astype(np.float32)
    return NetworkInput(
        image=data[None], brain_mask=brain, voxel_to_ras=matrix(), local_volume=np.zeros((2, 2, 2))
    )


def head(weight: np.ndarray, seed=0) -> LinearHead:
    """Make a head of two classes that reads `weight` for the second."""
    generator = np.random.default_rng(seed)
    return LinearHead(
        mean=generator.standard_normal(len(weight)).astype(np.float32),
        scale=np.ones(len(weight), dtype=np.float32),
        weight=np.stack([-weight, weight]).astype(np.float32),
        bias=np.array([0.3, -0.2], dtype=np.float32),
    )


def model_of(networks: list[FeatureExtractor], heads: list[LinearHead], strides="med3d", taken_out=None):
    """Return what an explanation needs of a stored model, with what is taken out of features of site A."""
    return SimpleNamespace(
        classes=CLASSES,
        networks=[one.network for one in networks],
        heads=heads,
        extractor=networks[0],
        description=SimpleNamespace(backbone=SimpleNamespace(strides=strides)),
        stretch_and_shift=lambda site, _: taken_out if site == "A" else None,
    )


def summed(maps) -> float:
    return float(sum(one.data.sum(dtype=np.float64) * one.grid.voxel_volume_mm3 / 1000 for one in maps))


def peak_mm(volume) -> np.ndarray:
    where = np.unravel_index(int(volume.data.argmax()), volume.shape)
    return (volume.voxel_to_ras @ np.append(where, 1.0))[:3]


def reads_blobs(one: FeatureExtractor, *blobs, size=64) -> LinearHead:
    """Make the head that reads what blobs alter in the features."""
    return head(one.features(seen(*blobs, size=size)) - one.features(seen(size=size)))


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("blob", [(20, 40, 30), (44, 27, 37), (33, 15, 47)])
def test_the_map_peaks_at_a_planted_blob(strides, blob):
    one = extractor(strides)
    given = seen(blob)
    maps = explanation_of(model_of([one], [reads_blobs(one, blob)], strides), given, "AD", [0], "gradcam")
    truth = (matrix() @ np.append(blob, 1.0))[:3]
    finest = min(maps, key=lambda volume: volume.spacing_mm[0])
    for volume in maps:
        assert np.abs(peak_mm(volume) - truth).max() <= volume.spacing_mm[0]
    assert finest.spacing_mm == pytest.approx([SPACING_MM * min(STEPS[strides].values())] * 3)


def test_the_centre_of_a_map_is_not_shifted():
    """Stretched over the image, as is common, maps would lie 3.5 voxels off; the mean over many blobs tells."""
    one = extractor()
    generator = np.random.default_rng(0)
    off = []
    for blob in generator.uniform(20, 44, (12, 3)):
        (volume,) = explanation_of(
            model_of([one], [reads_blobs(one, blob)]), seen(blob), "AD", [0], "gradcam"
        )
        weight = np.clip(volume.data, 0, None).astype(np.float64) ** 4
        places = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"))
        centre = (places * weight).sum(axis=(1, 2, 3)) / weight.sum() * 8.0
        off.append(centre - blob)
    assert np.abs(np.mean(off, axis=0)).max() < 1.5


@pytest.mark.parametrize("strides", STRIDES)
def test_the_map_adds_up_to_what_the_features_give_to_the_logit(strides):
    one = extractor(strides)
    given = seen((20, 40, 30))
    features = one.features(given)
    heads = [head(np.random.default_rng(n).standard_normal(len(features)), n) for n in range(3)]
    maps = explanation_of(model_of([one] * 3, heads, strides), given, "AD", [0, 2], "gradcam")
    logit = np.mean([heads[n].logits(features[None])[0, 1] for n in (0, 2)])
    without = np.mean([heads[n].logits(0 * features[None])[0, 1] for n in (0, 2)])
    assert summed(maps) == pytest.approx(logit - without, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_taken_out_of_the_features_of_a_site_is_taken_out_of_its_maps(method):
    one = extractor()
    given = seen((10, 20, 14), size=32)
    features = one.features(given)
    generator = np.random.default_rng(2)
    stretch = generator.uniform(0.5, 2.0, len(features)).astype(np.float32)
    shift = generator.standard_normal(len(features)).astype(np.float32)
    read = head(generator.standard_normal(len(features)))
    model = model_of([one], [read], taken_out=(stretch, shift))
    at_a = explanation_of(model, given, "AD", [0], method, "A")
    elsewhere = explanation_of(model, given, "AD", [0], method, "B")
    assert not np.allclose(at_a[0].data, elsewhere[0].data, atol=1e-3)
    if method == "gradcam":
        logit, without = (
            read.logits((part * stretch + shift)[None])[0, 1] for part in (features, 0 * features)
        )
        assert summed(at_a) == pytest.approx(logit - without, rel=1e-3)


def test_classes_that_are_read_alike_but_for_the_sign_have_opposite_maps():
    one = extractor()
    given = seen((20, 40, 30))
    model = model_of([one], [reads_blobs(one, (20, 40, 30))])
    (for_ad,) = explanation_of(model, given, "AD", [0], "gradcam")
    (for_cn,) = explanation_of(model, given, "CN", [0], "gradcam")
    assert np.allclose(for_ad.data, -for_cn.data, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_folds_with_networks_of_their_own_have_the_mean_of_their_maps(method):
    first, second = extractor(seed=0), extractor(seed=1)
    blob = (10, 20, 14)
    given = seen(blob, size=32)
    model = model_of([first, second], [reads_blobs(one, blob, size=32) for one in (first, second)])
    (both,) = explanation_of(model, given, "AD", [0, 1], method)
    alone = [explanation_of(model, given, "AD", [fold], method)[0].data for fold in (0, 1)]
    assert not np.allclose(alone[0], alone[1], atol=1e-3)
    assert np.allclose(both.data, np.mean(alone, axis=0), atol=1e-3)


def test_a_head_that_reads_one_place_ignores_the_same_thing_elsewhere():
    """Grad-CAM's average of a channel's gradient would colour both blobs."""
    one = extractor()
    here, there = (12, 32, 32), (52, 32, 32)
    features = one.features(seen(here, there)) - one.features(seen())
    cells = np.arange(len(features)) < 128 * 36
    # The pooled map of layer2 has 3 x 4 x 3 cells for each channel, the first axis slowest.
    left = cells & ((np.arange(len(features)) % 36) // 12 == 0)
    (volume,) = explanation_of(
        model_of([one], [head(np.where(left, features, 0))]), seen(here, there), "AD", [0], "gradcam"
    )
    middle = volume.shape[0] // 2
    assert volume.data[:middle].max() > 0
    assert np.abs(volume.data[middle:]).max() < 1e-3 * volume.data.max()


def test_an_attention_head_is_explained_too():
    one = extractor()
    linear = reads_blobs(one, (20, 40, 30))
    attention = attention_head(linear, feature_channels("resnet10"), seed=0)
    given = seen((20, 40, 30))
    (plain,) = explanation_of(model_of([one], [linear]), given, "AD", [0], "gradcam")
    (through,) = explanation_of(model_of([one], [attention]), given, "AD", [0], "gradcam")
    # An attention that was never trained lets everything through.
    assert np.allclose(plain.data, through.data, atol=1e-2 * np.abs(plain.data).max())


def test_covering_a_blob_lowers_the_class_that_it_speaks_for():
    one = extractor()
    blob = (10, 20, 14)
    model = model_of([one], [reads_blobs(one, blob, size=32)])
    (for_ad,) = explanation_of(model, seen(blob, size=32), "AD", [0], "occlusion")
    (for_cn,) = explanation_of(model, seen(blob, size=32), "CN", [0], "occlusion")
    truth = (matrix() @ np.append(blob, 1.0))[:3]
    assert np.abs(peak_mm(for_ad) - truth).max() <= 8 * SPACING_MM
    assert for_ad.data.max() > 0
    assert for_ad.data.max() > -5 * for_ad.data.min()
    assert np.allclose(for_ad.data, -for_cn.data, atol=1e-3)


def test_occlusion_says_nothing_beyond_the_box_of_the_brain():
    one = extractor()
    given = seen((10, 20, 14), size=32)
    (volume,) = explanation_of(
        model_of([one], [reads_blobs(one, (10, 20, 14), size=32)]), given, "AD", [0], "occlusion"
    )
    where = np.argwhere(given.brain_mask)
    assert volume.shape == tuple(where.max(axis=0) - where.min(axis=0) + 1)
    assert volume.voxel_to_ras[:3, 3] == pytest.approx((matrix() @ np.append(where.min(axis=0), 1))[:3])


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was(method):
    one = extractor()
    given = seen((10, 20, 14), size=32)
    before = one.features(given)
    explanation_of(model_of([one], [reads_blobs(one, (10, 20, 14), size=32)]), given, "AD", [0], method)
    assert not one.network.training
    assert np.array_equal(one.features(given), before)


def test_an_empty_brain_cannot_be_covered():
    one = extractor()
    empty = NetworkInput(
        image=np.zeros((1, 32, 32, 32), np.float32),
        brain_mask=np.zeros((32, 32, 32), bool),
        voxel_to_ras=matrix(),
        local_volume=np.zeros((2, 2, 2)),
    )
    model = model_of([one], [reads_blobs(one, (20, 40, 30))])
    with pytest.raises(InferenceError, match="brain mask is empty"):
        explanation_of(model, empty, "AD", [0], "occlusion")


def test_a_map_that_is_not_finite_is_refused():
    one = extractor()
    broken = reads_blobs(one, (20, 40, 30))
    broken = LinearHead(**{**vars(broken), "weight": broken.weight * np.float32(np.nan)})
    with pytest.raises(InferenceError, match="not finite"):
        explanation_of(model_of([one], [broken]), seen((20, 40, 30)), "AD", [0], "gradcam")
