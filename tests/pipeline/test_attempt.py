"""A note of what is begun, read by whoever outlives the process."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from brainstage.pipeline.attempt import (
    Deaths,
    begin_attempt,
    count_death,
    end_attempt,
    forget_deaths,
    read_attempt,
    read_deaths,
    time_limit,
)
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities

HANG = """
import sys, time
from pathlib import Path
from brainstage.pipeline.attempt import begin_attempt, time_limit
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
files = ScanFiles(out_dir=Path(sys.argv[1]), entities=BidsEntities(subject="01"))
begin_attempt(files, "registration", "abc")
with time_limit(files, 0.5):
    {}
"""


@pytest.fixture
def files(tmp_path):
    return ScanFiles(out_dir=tmp_path, entities=BidsEntities(subject="01"))


def test_what_is_begun_can_be_read_until_it_is_ended(files):
    before = time.time()
    begin_attempt(files, "registration", "abc")
    attempt = read_attempt(files)
    assert attempt is not None
    assert (attempt.stage, attempt.key) == ("registration", "abc")
    assert before <= attempt.started <= time.time()
    end_attempt(files)
    assert read_attempt(files) is None


def test_a_scan_that_was_not_begun_is_not_blamed_but_not_tried_for_ever(files):
    counted = [count_death(files) for _ in range(10)]
    assert {deaths.stage for deaths in counted} == {"start"}
    assert [deaths.too_many for deaths in counted] == [*[False] * 9, True]


def test_deaths_over_the_same_work_add_up(files):
    counts = []
    for key in ("abc", "abc", "other", "other"):
        begin_attempt(files, "registration", key)
        deaths = count_death(files)
        counts.append((deaths.count, deaths.too_many))
        assert read_attempt(files) is None, "a death is counted once"
    assert counts == [(1, False), (2, True), (1, False), (2, True)]
    assert read_deaths(files) == Deaths(stage="registration", key="other", count=2, hung=False)
    forget_deaths(files)
    assert read_deaths(files) is None


@pytest.mark.parametrize(
    "work",
    ["time.sleep(60)", "sum(range(10**12))", "int('9' * 4000) ** 400000"],
    ids=["sleep", "python", "one_call"],
)
def test_what_takes_too_long_ends_its_process_even_if_the_interpreter_is_stuck(files, work):
    done = subprocess.run(
        [sys.executable, "-c", HANG.format(work), str(files.out_dir)], timeout=50, check=False
    )
    assert done.returncode == 1
    deaths = count_death(files)
    assert deaths == Deaths(stage="registration", key="abc", count=1, hung=True)
    assert sorted(path.name for path in files.state.iterdir()) == ["deaths.json"]


def test_what_is_quick_enough_leaves_no_trace(files):
    begin_attempt(files, "registration")
    with time_limit(files, 60.0):
        pass
    with time_limit(files, None):
        pass
    end_attempt(files)
    assert list(files.state.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stage": 1}', '{"unknown": 1}'])
def test_a_note_that_cannot_be_understood_counts_as_none(files, text):
    files.state.mkdir(parents=True)
    for name in ("running.json", "deaths.json"):
        (files.state / name).write_text(text)
    assert read_attempt(files) is None
    assert read_deaths(files) is None
    assert count_death(files).count == 1


@pytest.mark.parametrize("name", ["running.json", "last_words.txt"])
def test_a_planted_link_is_replaced_and_not_written_through(files, tmp_path, name):
    precious = tmp_path / "thesis.txt"
    precious.write_text("two years")
    files.state.mkdir(parents=True, exist_ok=True)
    (files.state / name).symlink_to(precious)
    begin_attempt(files, "ingest")
    with time_limit(files, 60.0):
        pass
    assert precious.read_text() == "two years"
