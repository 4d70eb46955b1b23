"""``brainstage doctor``: what is installed, what is missing, what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil

from brainstage.models.choices import MED3D_ASSETS
from brainstage.models.published import Origin
from brainstage.pipeline.errors import BrainstageError, ExitCode
from brainstage.pipeline.versions import differing_versions

_ORIGINS: Final[Mapping[Origin, str]] = MappingProxyType(
    {"published": "the published file", "vouched": "vouched for by you", "unknown": "origin not verified"}
)


def examine(say: Callable[[str], None], model_dir: Path | None = None) -> ExitCode:
    """Check packages, template, networks and weights, one line each, and show the kernels of this machine.

    Parameters
    ----------
    say : callable
        Gets each line.
    model_dir : Path, optional
        A model whose kernels and versions of training are shown beside those here.

    Raises
    ------
    ModelError
        When `model_dir` is no usable model directory.

    Returns
    -------
    ExitCode
        ``DONE`` when ``brainstage run`` can work, ``INPUT_MISSING`` when something it needs is absent.
    """
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("template", _template),
        ("deepbet", _deepbet),
        ("ANTs", _ants),
        ("torch", _torch),
    )
    good = _packages(say)
    for name, check in checks:
        try:
            say(f"ok       {name}: {check()}")
        except (BrainstageError, ImportError, OSError) as error:
            good = False
            say(f"MISSING  {name}: {error}; run make setup")
    say(f"         {_weights()}")
    memory_gb = psutil.virtual_memory().available / 1024**3
    say(
        f"         {len(os.sched_getaffinity(0))} processors, {memory_gb:.0f} GB of memory free; a scan needs 3 GB"
    )
    if good:
        _say_kernels(say, model_dir)
        if model_dir is not None:
            _say_versions(say, model_dir)
    return ExitCode.DONE if good else ExitCode.INPUT_MISSING


def _say_kernels(say: Callable[[str], None], model_dir: Path | None) -> None:
    from brainstage.models.kernels import kernels
    from brainstage.models.model_description import read_description

    here = kernels()
    say(f"         kernels: {_listed(here)}")
    if model_dir is None:
        return
    trained = read_description(model_dir).kernels
    if not trained:
        say(f"         {model_dir.name} does not say which kernels it was trained under")
        return
    differing = [name for name in here.keys() | trained.keys() if here.get(name) != trained.get(name)]
    say(f"         {model_dir.name} was trained under: {_listed(trained)}")
    say(
        f"         these differ here: {', '.join(sorted(differing))}; numbers then agree to within the table of "
        "docs/concepts/processors.md, and nothing is refused"
        if differing
        else "         the same as here"
    )


def _say_versions(say: Callable[[str], None], model_dir: Path) -> None:
    from brainstage.models.model_description import read_description
    from brainstage.workflows.run_context import tool_versions

    differing = differing_versions(tool_versions(), [read_description(model_dir).versions])
    say(
        f"         {model_dir.name} was trained under other versions: {'; '.join(differing)}; numbers can differ from "
        "those of its training, and nothing is refused"
        if differing
        else f"         {model_dir.name} was trained under the versions that are here"
    )


def _listed(kernels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kernels.items())


def _packages(say: Callable[[str], None]) -> bool:
    good = True
    for requirement in requires("brainstage") or []:
        if "extra ==" in requirement:
            continue
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
        try:
            say(f"ok       {name} {version(name)}")
        except PackageNotFoundError:
            good = False
            say(f"MISSING  {requirement}: run make setup")
    return good


def _template() -> str:
    from brainstage.pipeline.derivatives import TEMPLATE_SPACE
    from brainstage.preprocessing.template import load_template, template_sha256

    return f"{TEMPLATE_SPACE} {load_template(1.0).t1w!r}, sha256 {template_sha256()[:12]}"


def _deepbet() -> str:
    from brainstage.preprocessing.brain_extraction import deepbet_sha256

    return f"weights {deepbet_sha256()}"


def _ants() -> str:
    from brainstage.preprocessing.ants_tools import ants_version

    return f"antspyx {ants_version()}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'no GPU, which is fine'}"


def _weights() -> str:
    from brainstage.models.weights import cache_directory, cached_record, recorded_origin

    there = [
        f"{name} ({_ORIGINS[recorded_origin(name, cached_record(name))]})"
        for name in MED3D_ASSETS
        if (cache_directory() / f"{name}.safetensors").is_file()
    ]
    if there:
        return f"pretrained weights: {', '.join(there)}"
    return "no pretrained weights yet: brainstage fetch med3d-resnet10 brings them; train --weights random needs none"
