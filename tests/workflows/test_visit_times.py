"""Time between visits counts only where it is certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstage.models.retest import Years
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import Covariates, T1wScan
from brainstage.workflows.visit_times import time_between


def visit(session="M00", age=None, acq_time=None) -> T1wScan:
    entities = BidsEntities(subject="01", session=session)
    extra = {"acq_time": acq_time} if acq_time is not None else {}
    return T1wScan(
        entities=entities, path=Path("x"), t1w_path="x", covariates=Covariates(age=age, extra=extra)
    )


@pytest.mark.parametrize(
    ("earlier", "later", "years", "source"),
    [
        pytest.param({}, {"session": "M12"}, None, "unknown", id="months of a plan are no dates"),
        pytest.param({"age": 70.5}, {"age": 70.5}, None, "unknown", id="the same age"),
        pytest.param({"age": 70.0}, {"age": 71.0}, None, "unknown", id="whole years, one apart"),
        pytest.param({"age": 71.5}, {"age": 70.5}, None, "unknown", id="younger later"),
        pytest.param({"age": 70.5}, {}, None, "unknown", id="one age"),
        pytest.param({"age": 70.0}, {"age": 73.0}, (3.0, 2.0, 4.0), "age", id="whole years"),
        pytest.param({"age": 70.5}, {"age": 72.0}, (1.5, 0.5, 2.5), "age", id="one of them whole"),
        pytest.param({"age": 70.5}, {"age": 72.1}, (1.6, 1.5, 1.7), "age", id="tenths"),
        pytest.param({"age": 70.25}, {"age": 71.27}, (1.02, 1.01, 1.03), "age", id="hundredths"),
        pytest.param(
            {"acq_time": "1919-03-01T09:00:00"}, {"acq_time": "1921-02-28T21:00:00"}, (730.5 / 365.25,) * 3,
            "acq_time", id="shifted dates",
        ),
        pytest.param(
            {"acq_time": "2019-03-01", "age": 70.0}, {"acq_time": "2019-08-31", "age": 70.0},
            (183 / 365.25,) * 3, "acq_time", id="dates before ages",
        ),
        pytest.param({"acq_time": "2019-03-01"}, {"acq_time": "2019-03-01"}, None, "unknown", id="same day"),
        pytest.param({"acq_time": "spring"}, {"acq_time": "2019-03-01"}, None, "unknown", id="no date"),
        pytest.param(
            {"session": "20190301"}, {"session": "20210301"}, (731 / 365.25,) * 3, "session_id", id="labels"
        ),
        pytest.param({"session": "00000001"}, {"session": "00000002"}, None, "unknown", id="numbers"),
        pytest.param({"session": "20210301"}, {"session": "20190301"}, None, "unknown", id="backwards"),
    ],
)  # fmt: skip
def test_the_time_between_two_visits(earlier, later, years, source) -> None:
    found = time_between(visit(**earlier), visit(**later))
    assert found.source == source
    if years is None:
        assert found.years is None
    else:
        assert isinstance(found.years, Years)
        assert (found.years.best, found.years.least, found.years.most) == pytest.approx(years)
