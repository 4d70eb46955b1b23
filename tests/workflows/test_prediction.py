"""What is kept of a prediction, and which model may make one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import IntensityError, ModelError
from brainstage.pipeline.files import write_json
from brainstage.pipeline.records import Prediction
from brainstage.workflows import prediction as module
from brainstage.workflows.prediction import model_of, read_prediction

SAID = Prediction(
    probabilities={"CN": 0.75, "AD": 0.25},
    prediction_set=("CN",),
    ood_score=1.0,
    ood_threshold=2.0,
    tier="review",
    member_labels={"network": "AD", "linear": "CN"},
    model_id="m1",
    set_level=0.8,
    compared_members=("linear",),
    disagreement_flags=True,
    above_chance=False,
    volumes_missing=True,
)


@pytest.fixture
def files(tmp_path) -> ScanFiles:
    return ScanFiles(out_dir=tmp_path, entities=BidsEntities(subject="01"))


def test_a_prediction_is_read_back_as_it_was(files):
    write_json(files.state / "prediction_result.json", asdict(SAID))
    assert read_prediction(files) == SAID


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"unheard_of": 1},
        {**asdict(SAID), "later": 1},
        {**asdict(SAID), "prediction_set": 3},
        {**asdict(SAID), "member_labels": None},
        {**asdict(SAID), "compared_members": "linear"},
        {name: value for name, value in asdict(SAID).items() if name != "member_labels"},
        {**asdict(SAID), "tier": None},
        {**asdict(SAID), "ood_score": "1"},
        {**asdict(SAID), "reference": [{"measure": 1}]},
        {**asdict(SAID), "probabilities": {}},
        {**asdict(SAID), "probabilities": {"CN": 0.75, "AD": 0.75}},
    ],
)
def test_what_another_version_kept_counts_as_none(files, content):
    write_json(files.state / "prediction_result.json", content)
    assert read_prediction(files) is None


def test_a_list_counts_as_none(files):
    files.state.mkdir(parents=True)
    (files.state / "prediction_result.json").write_text("[1]")
    assert read_prediction(files) is None


def test_a_model_that_was_replaced_meanwhile_predicts_nothing_under_the_old_name(tmp_path, monkeypatch):
    import brainstage.models.model_store as store

    monkeypatch.setattr(store, "load_model", lambda *_: SimpleNamespace(model_id="m2"))
    module.model_of.cache_clear()
    assert model_of(tmp_path, "m2").model_id == "m2"
    with pytest.raises(ModelError, match="holds model m2 now, and m1 when the run began"):
        model_of(tmp_path, "m1")
    module.model_of.cache_clear()


def test_a_novelty_that_is_no_number_is_no_prediction(files):
    with pytest.raises(IntensityError, match="novelty score is nan"):
        replace(SAID, ood_score=float("nan"))
    files.state.mkdir(parents=True)
    (files.state / "prediction_result.json").write_text(
        json.dumps({**asdict(SAID), "ood_score": float("nan")})
    )
    assert read_prediction(files) is None
