"""``brainstage doctor``: what is installed, what is missing, what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

import psutil

from brainstage.models.choices import MED3D_ASSETS
from brainstage.pipeline.errors import BrainstageError, ExitCode


def examine(say: Callable[[str], None]) -> ExitCode:
    """Check packages, template, networks and weights, one line each.

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
    return ExitCode.DONE if good else ExitCode.INPUT_MISSING


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
    import ants

    return f"antspyx {ants.__version__}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'no GPU, which is fine'}"


def _weights() -> str:
    from brainstage.models.weights import cache_directory

    there = [name for name in MED3D_ASSETS if (cache_directory() / f"{name}.safetensors").is_file()]
    if there:
        return f"pretrained weights: {', '.join(there)}"
    return "no pretrained weights yet: brainstage fetch med3d-resnet10 brings them; train --weights random needs none"
