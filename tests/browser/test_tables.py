"""The tables of a run open in pandas and in R as what they are: rows, columns and types."""

from __future__ import annotations

import json
import shutil
import subprocess

import pandas as pd
import pytest

TABLES = ("predictions", "qc", "volumes", "trajectories")
TO_JSON = """
arguments <- commandArgs(trailingOnly = TRUE)
table <- read.csv(arguments[1], check.names = FALSE, na.strings = "")
cat(sprintf('{"rows": %d, "types": {', nrow(table)))
cat(paste(sprintf('"%s": "%s"', names(table), sapply(table, class)), collapse = ", "))
cat("}}")
"""
KINDS = {"integer": "number", "numeric": "number", "character": "text", "logical": "empty"}
"""R calls a column logical that has no value at all, and leaves the words true and false as text."""


def kind_in_pandas(column: pd.Series) -> str:
    if column.isna().all():
        return "empty"
    truth = pd.api.types.is_bool_dtype(column.dropna().infer_objects())
    return "number" if pd.api.types.is_numeric_dtype(column) and not truth else "text"


@pytest.fixture(params=TABLES)
def table(request, output):
    return output / f"{request.param}.csv"


def test_pandas_reads_numbers_as_numbers_and_every_column_is_described(table):
    frame = pd.read_csv(table)
    described = json.loads(table.with_suffix(".json").read_text())
    assert list(frame.columns) == list(described)
    assert len(frame) >= 2
    numbers = [
        name
        for name in frame
        if name.startswith("p_") or name.endswith("_ml") or name in ("confidence", "cnr", "age")
    ]
    assert numbers
    assert all(pd.api.types.is_numeric_dtype(frame[name]) for name in numbers)


def test_r_reads_the_same(table):
    program = shutil.which("Rscript")
    if program is None:
        pytest.skip("needs Rscript, which is not here; on Debian: apt-get install r-base-core")
    said = subprocess.run(
        [program, "-e", TO_JSON, str(table)], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stderr == ""
    found = json.loads(said.stdout)
    frame = pd.read_csv(table)
    assert found["rows"] == len(frame)
    assert {name: KINDS[kind] for name, kind in found["types"].items()} == {
        name: kind_in_pandas(frame[name]) for name in frame
    }
