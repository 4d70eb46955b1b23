"""A model that was written says what it said, and its bundle what its network says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from brainstage.models.baseline import BASELINE_VERSION, LinearBaseline, baseline_values
from brainstage.models.bundle import ensemble_classifier
from brainstage.models.choices import MEMBERS
from brainstage.models.conformal import class_scores, p_values, set_members
from brainstage.models.features import FeatureExtractor
from brainstage.models.heads import LinearHead
from brainstage.models.learners import FoldModel
from brainstage.models.model_description import (
    BackboneDescription,
    ConformalDescription,
    ModelDescription,
    PredictorDescription,
    read_description,
)
from brainstage.models.model_store import StoredModel, load_model, scan_inputs, write_model
from brainstage.models.novelty import fit_novelty
from brainstage.models.predictor import FoldPredictor, calibrated_log, mean_log_probabilities
from brainstage.models.volume_model import fit_volume_model, scan_volumes
from brainstage.models.weights import load_weights
from brainstage.pipeline.config import Config
from brainstage.pipeline.records import NetworkInput

CLASSES, FOLDS, SCANS = ("CN", "MCI", "AD"), 3, 60
SHAPE = (32, 32, 32)
GREY = "grey_matter_pct_icv"
TEMPERATURES = ({"volumes": 1.5, "linear": 3.0, "network": 2.0}, {"volumes": 0.7, "linear": 9.0, "network": 4.0},
                {"volumes": 1.0, "linear": 5.0, "network": 1.5})  # fmt: skip
NETWORK_ALONE = tuple(
    FoldPredictor(chosen="network", temperatures=temperatures, weights={"network": 1.0})
    for temperatures in TEMPERATURES
)
MIXED = (
    FoldPredictor(
        chosen="stack",
        temperatures=TEMPERATURES[0],
        weights={"volumes": 0.3, "linear": 0.3, "network": 0.4},
        temperature=0.8,
    ),
    FoldPredictor(chosen="volumes", temperatures=TEMPERATURES[1], weights={"volumes": 1.0}),
    FoldPredictor(chosen="stack", temperatures=TEMPERATURES[2], weights={"volumes": 0.2, "linear": 0.6}),
)


def network_input(seed):
    noise = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    return NetworkInput(
        image=noise[None],
        brain_mask=np.ones(SHAPE, dtype=bool),
        voxel_to_ras=np.eye(4),
        local_volume=noise[:8, :8, :8],
    )


@pytest.fixture(scope="module")
def extractor():
    loaded = load_weights("random")
    return FeatureExtractor(loaded.network, loaded.source, torch.device("cpu"))


@pytest.fixture(scope="module")
def scans(extractor):
    """Return what the members are given of four scans, the last without one of its volumes."""
    found = []
    for n in range(4):
        given = network_input(n)
        measures = {GREY: 0.2 + 0.02 * n if n < 3 else None}
        found.append(
            scan_inputs(extractor.features(given), given, measures, {"age": f"{60 + 5 * n}", "sex": "F"})
        )
    return found


@pytest.fixture(scope="module")
def make(extractor, scans):
    """Return a maker of models that differ in their predictors alone."""
    generator = np.random.default_rng(0)

    def drawn(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    size = len(scans[0].features)
    values, _ = baseline_values(network_input(0))
    models = [
        FoldModel(
            head=LinearHead(
                mean=drawn(size), scale=1 + drawn(size) ** 2, weight=drawn(3, size) / 9, bias=drawn(3)
            )
        )
        for _ in range(FOLDS)
    ]
    baselines = [
        LinearBaseline(weight=drawn(3, len(values)) / 9, bias=drawn(3), mean=drawn(len(values)))
        for _ in range(FOLDS)
    ]
    novelty = [fit_novelty(drawn(20, size)) for _ in range(FOLDS)]
    targets, folds, persons = np.arange(SCANS) % 3, np.arange(SCANS) // 3 % FOLDS, np.arange(SCANS) // 2
    people = [
        scan_volumes(
            {GREY: 0.24 - 0.02 * target + 0.01 * generator.standard_normal()}, 60.0 + n % 25, "FM"[n % 2]
        )
        for n, target in enumerate(targets)
    ]
    volumes = tuple(
        fit_volume_model(
            [one for one, own in zip(people, folds != fold, strict=True) if own],
            targets[folds != fold],
            classes=3,
            imbalance="weights",
        )
        for fold in range(FOLDS)
    )
    said = generator.dirichlet(np.ones(3), SCANS)
    source = extractor.source

    def made(predictors):
        description = ModelDescription(
            classes=CLASSES,
            label_column="diagnosis",
            backbone=BackboneDescription(
                kind=source.kind,
                architecture=source.architecture,
                strides=source.strides,
                sha256=source.sha256,
                words=source.words,
                origin=source.origin,
                feature_id=extractor.feature_id,
            ),
            folds=FOLDS,
            network_grid=Config().network_grid.model_dump(mode="json"),
            baseline_version=BASELINE_VERSION,
            preprocessing_id="p",
            preprocessing_content={},
            members=MEMBERS,
            predictor=PredictorDescription(choice="auto", folds=predictors, above_chance=True),
            conformal=ConformalDescription(
                levels={"CN": 0.9, "MCI": 0.8, "AD": 0.7},
                scores={
                    name: tuple(zip(one.score.tolist(), one.fold.tolist(), one.person.tolist(), strict=True))
                    for name, one in zip(CLASSES, class_scores(said, targets, folds, persons), strict=True)
                },
            ),
            novelty_threshold=2.0,
            seed=0,
            training_scans={f"{n:064x}": (int(folds[n]), int(persons[n])) for n in range(SCANS)},
            volume_models=volumes,
        )
        return StoredModel(description, extractor, models, novelty, baselines)

    return made


@pytest.mark.parametrize("predictors", [MIXED, NETWORK_ALONE], ids=["mixed", "network"])
def test_a_model_that_was_written_says_the_same(make, scans, tmp_path, predictors):
    model = make(predictors)
    write_model(tmp_path, model)
    again = load_model(tmp_path)
    assert again.description == model.description == read_description(tmp_path)
    assert again.model_id == model.model_id
    for scan in scans:
        for source in (None, f"{7:064x}", "unknown"):
            assert again.predict(scan, source) == model.predict(scan, source)


def test_another_predictor_is_another_model(make):
    assert make(MIXED).model_id != make(NETWORK_ALONE).model_id


def test_the_prediction_is_the_product_of_the_members_and_of_the_folds(make, scans):
    model = make(MIXED)
    for scan in scans:
        by_fold = []
        for fold, predictor in enumerate(MIXED):
            logits = {
                "volumes": model.description.volume_models[fold].logits([scan.volumes]),
                "linear": model.baselines[fold].logits(scan.values[None]),
                "network": model.models[fold].head.logits(scan.features[None]),
            }
            said = sum(
                weight * calibrated_log(logits[name], predictor.temperatures[name])
                for name, weight in predictor.weights.items()
            )
            by_fold.append(calibrated_log(said, predictor.temperature)[0])
        expected = np.exp(mean_log_probabilities(np.array(by_fold)))
        assert list(model.predict(scan).probabilities.values()) == pytest.approx(expected)
        p = p_values(np.exp(by_fold), model.description.scores)
        inside = set_members(p, [0.9, 0.8, 0.7])
        expected_set = tuple(name for name, own in zip(CLASSES, inside, strict=True) if own)
        assert model.predict(scan).prediction_set == expected_set


def test_of_a_training_scan_its_own_fold_speaks_and_its_person_is_compared_with_others(make, scans):
    model = make(MIXED)
    for n in (0, 4, 31):
        fold, person = model.description.training_scans[f"{n:064x}"]
        answers = model.answers(scans[0], f"{n:064x}")
        assert answers.folds == (fold,)
        assert np.array_equal(answers.published, model.answers(scans[0]).published[[fold]])
        said = model.predict(scans[0], f"{n:064x}")
        assert said.seen_in_training
        p = p_values(np.exp(answers.published), model.description.scores, without_person=person)
        inside = set_members(p, model.description.levels)
        assert said.prediction_set == tuple(name for name, own in zip(CLASSES, inside, strict=True) if own)
    assert not model.predict(scans[0], "unknown").seen_in_training
    assert model.predict(scans[0]).set_level == 0.7


def test_missing_volumes_are_said_where_the_prediction_rests_on_them(make, scans):
    mixed, alone = make(MIXED), make(NETWORK_ALONE)
    assert [mixed.predict(scan).volumes_missing for scan in scans] == [False, False, False, True]
    assert not any(alone.predict(scan).volumes_missing for scan in scans)


def test_the_bundle_is_the_member_network(make, scans):
    for predictors in (MIXED, NETWORK_ALONE):
        model = make(predictors)
        module = ensemble_classifier(model)
        for scan in scans:
            with torch.inference_mode():
                said = module(torch.from_numpy(scan.network_input.image[None].copy()))[0].numpy()
            member = model.answers(scan).member_probabilities["network"]
            assert said == pytest.approx(member, abs=1e-4)
            published = np.array(list(model.predict(scan).probabilities.values()))
            assert np.allclose(said, published, atol=1e-4) is (predictors is NETWORK_ALONE)


def test_member_labels_are_those_of_the_members_alone(make, scans):
    model = make(MIXED)
    for scan in scans:
        of_members = model.answers(scan).member_probabilities
        assert model.predict(scan).member_labels == {
            name: CLASSES[int(said.argmax())] for name, said in of_members.items()
        }
        assert set(of_members) == set(MEMBERS)


def test_uncalibrated_are_the_probabilities_without_any_temperature(make, scans):
    model = make(NETWORK_ALONE)
    for scan in scans:
        logits = np.array([model.network_logits(scan, fold)[0] for fold in range(FOLDS)])
        expected = np.exp(mean_log_probabilities(calibrated_log(logits, 1.0)))
        assert model.answers(scan).uncalibrated_probabilities == pytest.approx(expected)


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (
            lambda c: c | {"members": ["volumes", "network"]},
            "a temperature is needed for each of volumes, network",
        ),
        (lambda c: c | {"volume_models": []}, "volume_models must be there"),
        (lambda c: c | {"volume_models": c["volume_models"][:2]}, "2 volume_models, where there are 3 folds"),
        (
            lambda c: c | {"predictor": c["predictor"] | {"folds": c["predictor"]["folds"][:2]}},
            "predictor.folds has 2 entries for 3 folds",
        ),
        (
            lambda c: c | {"conformal": c["conformal"] | {"levels": {"CN": 0.9, "AD": 0.9}}},
            "must name the classes CN, MCI, AD",
        ),
        (lambda c: c | {"training_scans": {"a": [3, 0]}}, "name fold 3, and there are 3 from 0 on"),
        (
            lambda c: (
                c
                | {"conformal": c["conformal"] | {"scores": c["conformal"]["scores"] | {"AD": [[0.5, 4, 0]]}}}
            ),
            "name fold 4",
        ),
        (
            lambda c: (
                c
                | {"conformal": c["conformal"] | {"scores": c["conformal"]["scores"] | {"AD": [[1.5, 0, 0]]}}}
            ),
            "less than or equal to 1",
        ),
    ],
)
def test_a_description_of_members_that_contradicts_itself_is_refused(make, alter, says):
    content = make(MIXED).description.model_dump(mode="json")
    assert ModelDescription.model_validate(content) == make(MIXED).description
    with pytest.raises(ValidationError, match=says):
        ModelDescription.model_validate(alter(content))
