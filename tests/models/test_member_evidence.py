"""What the linear members add is exact: it sums to what is published, to the float, in every fold and at every site."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from brainstage.models.baseline import (
    LinearBaseline,
    baseline_values,
    block_matrix,
    block_shape,
    fit_baseline,
    in_places,
)
from brainstage.models.harmonisation import Harmonisation
from brainstage.models.member_evidence import linear_contributions, member_factors, volume_contributions
from brainstage.models.model_store import HarmonisedPlaces, StoredModel
from brainstage.models.predictor import FoldPredictor, mean_log_probabilities, mean_weights
from brainstage.models.volume_model import MEASURES, SUMMED, MeasureScale, VolumeModel, scan_volumes
from brainstage.pipeline.records import NetworkInput

LABELS = ("CN", "MCI", "AD")
VALUES = 40


def predictor(generator, classes, weights) -> FoldPredictor:
    temperatures = dict(zip(("volumes", "linear", "network"), generator.uniform(0.5, 3.0, 3), strict=True))
    return FoldPredictor(
        chosen="stack" if len(weights) > 1 else next(iter(weights)),
        temperatures=temperatures,
        weights=weights,
        temperature=generator.uniform(0.5, 2.0),
    )


def volume_model(generator, classes) -> VolumeModel:
    return VolumeModel(
        scales=tuple(
            MeasureScale(
                measure=name, mean=0.1, per_year=-0.01, male_minus_female=0.02, age=70, male=0.5, scale=0.2
            )
            for name in MEASURES
        ),
        weight=tuple(map(tuple, generator.standard_normal((classes, len(MEASURES))))),
        bias=tuple(generator.standard_normal(classes)),
    )


def model_of(classes: int, weights: dict[str, float], *, folds: int = 3, sites: tuple[str, ...] = ()):
    """Return what evidence needs of a stored model, with its own way of giving values to members."""
    generator = np.random.default_rng(7)
    f32 = np.float32

    def harmonised(size: int) -> HarmonisedPlaces:
        return HarmonisedPlaces(
            harmonisation=Harmonisation(
                sites=sites,
                centre=generator.standard_normal(size).astype(f32),
                location=generator.standard_normal((len(sites), size)).astype(f32),
                scale=generator.uniform(0.5, 2.0, (len(sites), size)).astype(f32),
            ),
            places=np.arange(size),
        )

    model = SimpleNamespace(
        classes=LABELS[:classes],
        baselines=[
            LinearBaseline(
                weight=generator.standard_normal((classes, VALUES)).astype(f32),
                bias=generator.standard_normal(classes).astype(f32),
                mean=generator.standard_normal(VALUES).astype(f32),
            )
            for _ in range(folds)
        ],
        description=SimpleNamespace(
            predictor=SimpleNamespace(folds=[predictor(generator, classes, weights) for _ in range(folds)])
        ),
        harmonisations=[
            {"linear": harmonised(VALUES), "volumes": harmonised(len(MEASURES))} for _ in range(folds)
        ]
        if sites
        else [],
        volume_models=[volume_model(generator, classes) for _ in range(folds)],
    )
    model._harmonised = lambda *given: StoredModel._harmonised(model, *given)
    model.linear_values = lambda *given: StoredModel.linear_values(model, *given)
    model.volumes_of = lambda *given: StoredModel.volumes_of(model, *given)
    model.volume_model = lambda fold: model.volume_models[fold]
    return model


def scan_of(site=None, **measures):
    given = dict.fromkeys((part for parts in SUMMED.values() for part in parts), 1.2) | measures
    return SimpleNamespace(volumes=scan_volumes(given, 75.0, "F"), site=site)


def centred(log_probabilities, output):
    return log_probabilities[output] - log_probabilities.mean()


def published(model, folds, values, scan):
    """Return what the predictor publishes of linear member and volumes: log-probabilities (C,)."""
    said = []
    for fold in folds:
        given = model.linear_values(values, scan.site, fold)
        logits = {
            "linear": model.baselines[fold].logits(given[None]),
            "volumes": model.volume_model(fold).logits([model.volumes_of(scan, fold)]),
            "network": np.zeros((1, len(model.classes))),
        }
        said.append(model.description.predictor.folds[fold].log_probabilities(logits))
    return mean_log_probabilities(np.concatenate(said))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("site", [None, "A", "elsewhere"])
@pytest.mark.parametrize("folds", [(0, 1, 2), (1,)])
def test_what_linear_and_volumes_add_is_all_that_they_change_in_what_is_published(classes, site, folds):
    """Another scan of the same site differs in what is published by what its contributions differ."""
    weights = {"linear": 0.5, "volumes": 0.3, "network": 0.1}
    model = model_of(classes, weights, sites=("A", "B"))
    generator = np.random.default_rng(3)
    first, second = generator.standard_normal((2, VALUES)).astype(np.float32)
    small = scan_of(site, hippocampus_left_pct_icv=0.7, ventricle_left_pct_icv=2.0)
    usual = scan_of(site)
    for output, label in enumerate(model.classes):
        change = centred(published(model, folds, first, small), output)
        change -= centred(published(model, folds, second, usual), output)
        added = [
            linear_contributions(model, values, site, label, folds).sum()
            + sum(volume_contributions(model, scan, label, folds).values())
            for values, scan in ((first, small), (second, usual))
        ]
        assert added[0] - added[1] == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_contributions_sum_to_the_logit_less_that_of_the_mean_scan(classes):
    model = model_of(classes, {"linear": 1.0})
    values = np.random.default_rng(5).standard_normal(VALUES).astype(np.float32)
    for output in range(classes):
        for baseline in model.baselines:
            said, usual = (
                centred(baseline.logits(given[None])[0], output) for given in (values, baseline.mean)
            )
            assert baseline.contributions(values, output).sum() == pytest.approx(said - usual, abs=1e-5)


def test_over_the_classes_contributions_cancel():
    model = model_of(3, {"linear": 0.6, "volumes": 0.4})
    values = np.random.default_rng(5).standard_normal(VALUES).astype(np.float32)
    parts = [linear_contributions(model, values, None, label, (0, 1, 2)) for label in model.classes]
    assert np.allclose(np.sum(parts, axis=0), 0, atol=1e-9)
    bars = [volume_contributions(model, scan_of(), label, (0, 1, 2)) for label in model.classes]
    assert all(sum(one[name] for one in bars) == pytest.approx(0, abs=1e-9) for name in MEASURES)


def test_a_change_of_one_value_changes_its_contribution_only():
    model = model_of(2, {"linear": 1.0}, sites=("A",))
    values = np.random.default_rng(5).standard_normal(VALUES).astype(np.float32)
    other = values.copy()
    other[11] += 1
    before, after = (linear_contributions(model, given, "A", "MCI", (0, 2)) for given in (values, other))
    assert np.flatnonzero(before != after).tolist() == [11]


def test_a_site_that_is_known_changes_the_contributions():
    model = model_of(2, {"linear": 0.5, "volumes": 0.5}, sites=("A",))
    values = np.random.default_rng(5).standard_normal(VALUES).astype(np.float32)
    at_a, elsewhere = (linear_contributions(model, values, site, "CN", (0,)) for site in ("A", "B"))
    assert not np.allclose(at_a, elsewhere, atol=1e-3)
    assert volume_contributions(model, scan_of("A"), "CN", (0,)) != volume_contributions(
        model, scan_of("B"), "CN", (0,)
    )


def test_volumes_that_are_not_known_or_have_no_weight_are_left_out():
    model = model_of(2, {"volumes": 1.0})
    found = volume_contributions(model, scan_of(hippocampus_left_pct_icv=None), "CN", (0, 1))
    assert set(found) == set(MEASURES) - {"hippocampi_pct_icv"}
    assert volume_contributions(model_of(2, {"linear": 1.0}), scan_of(), "CN", (0, 1)) == {}


def test_a_member_without_weight_is_measured_in_its_own_probabilities():
    folds = model_of(2, {"linear": 1.0}).description.predictor.folds
    assert member_factors(folds, "network") == tuple(1 / one.temperatures["network"] for one in folds)
    assert member_factors(folds, "linear") == tuple(
        1 / (one.temperatures["linear"] * one.temperature) for one in folds
    )
    assert mean_weights(folds) == {"volumes": 0.0, "linear": 1.0, "network": 0.0}


def test_a_fold_in_which_the_member_has_no_weight_adds_nothing():
    generator = np.random.default_rng(0)
    folds = [predictor(generator, 2, {"linear": 1.0}), predictor(generator, 2, {"volumes": 1.0})]
    assert member_factors(folds, "linear")[1] == 0
    assert mean_weights(folds) == {"volumes": 0.5, "linear": 0.5, "network": 0.0}


def test_what_is_fitted_knows_the_mean_of_its_scans():
    generator = np.random.default_rng(1)
    values = generator.standard_normal((30, 12)).astype(np.float32)
    inside = np.ones_like(values, dtype=bool)
    inside[:, 3] = False
    targets = (np.arange(30) % 2).astype(np.int64)
    fitted = fit_baseline(values, inside, targets, classes=2, imbalance="none")
    used = fitted.weight.any(axis=0)
    assert not used[3]
    assert fitted.mean[3] == 0
    assert np.allclose(fitted.mean[used], values[:, used].mean(axis=0), atol=1e-6)
    assert fitted.contributions(values.mean(axis=0), 1) == pytest.approx(np.zeros(12), abs=1e-6)


@pytest.mark.parametrize("shape", [(6, 8, 4), (5, 7, 3)])
def test_values_go_back_to_the_places_that_they_come_from(shape):
    """A single lit voxel lies in the block that holds its value."""
    image = np.zeros(shape, dtype=np.float32)
    image[4, 2, 1] = 1.0
    local_volume = np.zeros((2, 3, 4), dtype=np.float32)
    local_volume[1, 2, 3] = 5.0
    placed = np.diag([2.0, 2.0, 2.0, 1.0])
    placed[:3, 3] = (-10, -20, -30)
    given = NetworkInput(
        image=image[None], brain_mask=np.ones(shape, bool), voxel_to_ras=placed, local_volume=local_volume
    )
    blocks, middle = in_places(baseline_values(given)[0].astype(np.float64), given)
    assert blocks.shape == block_shape(shape)
    assert np.array_equal(middle, local_volume)
    (block,) = np.argwhere(blocks)
    centre = (block_matrix(placed) @ [*block, 1])[:3]
    truth = (placed @ [4, 2, 1, 1])[:3]
    assert np.abs(centre - truth).max() == pytest.approx(1.0)  # of a block of 4 mm, from edge to centre 2
