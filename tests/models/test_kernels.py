"""A process says which kernels it runs, and they follow the environment of the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from brainstage.models.kernels import kernels


def test_the_libraries_that_decide_the_last_digits_are_named() -> None:
    found = kernels()
    assert {"processor", "torch", "threads"} <= found.keys()
    assert all(found.values())


@pytest.mark.parametrize(
    ("variable", "value", "library"),
    [("OPENBLAS_CORETYPE", "Haswell", "numpy"), ("ATEN_CPU_CAPABILITY", "default", "torch")],
)
def test_another_kernel_is_seen(variable: str, value: str, library: str) -> None:
    if library not in kernels():
        pytest.skip(f"{library} does not say which kernels it runs here")
    code = f"from brainstage.models.kernels import kernels; print(kernels()[{library!r}])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert value.lower() in run.stdout.lower()
