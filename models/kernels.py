"""Which kernels of linear algebra the libraries of this process run: they decide the last digits of every number."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")


def kernels() -> dict[str, str]:
    """Return what decides the order of additions in this process: processor, and kernels by library.

    Returns
    -------
    dict
        ``processor``; ``numpy`` and ``scipy`` (the OpenBLAS core that each of them runs, such as ``Haswell``);
        ``torch`` (its instruction set, such as ``AVX2``); ``threads`` of torch. A library whose kernels cannot be
        told is left out.
    """
    # Heavy. The libraries have to be loaded before threadpoolctl can see them.
    import scipy.linalg  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    found = {"processor": _processor()}
    for library in threadpool_info():
        owner = next((name for name in ("numpy", "scipy") if f"{name}.libs" in library["filepath"]), None)
        if owner and library.get("architecture"):
            found[owner] = f"OpenBLAS {library['version']} {library['architecture']}"
    found["torch"] = torch.backends.cpu.get_cpu_capability()
    found["threads"] = str(torch.get_num_threads())
    return found


def _processor() -> str:
    """Return the processor's name, or the architecture where the system gives none."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
