"""Write the three lock files: what is installed, in which version, and the sha256 of every file it may come from.

    make lock                                          # the locked versions stay where pyproject.toml allows them
    python dependencies/lock.py --upgrade              # everything as new as pyproject.toml allows
    python dependencies/lock.py --upgrade-package rich

``uv`` resolves for every platform and for every Python from 3.11 on at once (differences stand as markers), and
takes the hashes from the package index. Wheels alone are taken: an installation runs no build script.

``requirements.lock`` is what the program needs to run, ``requirements-dev.lock`` what its development needs besides,
and ``requirements-cuda.lock`` the NVIDIA libraries that torch's CUDA wheel for Linux asks for, and its CPU wheel not.
The CPU wheels come from PyTorch's own index: ``requirements-cpu.lock`` is written by hand, and its hashes are taken
into ``requirements.lock``, which accepts both wheels.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = "3.11"
RUN, DEVELOP, CUDA = "requirements.lock", "requirements-dev.lock", "requirements-cuda.lock"
CPU = "requirements-cpu.lock"
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
PURPOSE = {
    RUN: "What brainstage needs to run.",
    DEVELOP: "What its development needs besides.",
    CUDA: "The NVIDIA libraries of torch's CUDA wheel for Linux; the CPU wheel needs none of them.",
}
HEADER = """\
# {purpose}
# Written by `make lock` (dependencies/lock.py), not by hand; docs/dependencies.md says how to install it.
# Resolved for Python {python} and later, for every platform.
--only-binary :all:
"""


def read(name: str) -> str:
    """Return a lock file; empty where it is not there yet."""
    return (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""


def resolve(options: Sequence[str], known: str) -> dict[str, str]:
    """Return what ``uv`` resolves, each package with its lines; versions that are in `known` stay where they can.

    Hashes in `known` would stay as well, so it must have none.
    """
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "resolved.txt"
        output.write_text(known, encoding="utf-8")
        command = [
            str(uv),
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--only-binary=:all:",
            "--generate-hashes",
        ]
        command += [
            f"--python-version={OLDEST_PYTHON}",
            "--no-header",
            f"--output-file={output}",
            "pyproject.toml",
        ]
        subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return packages(output.read_text(encoding="utf-8"))


def packages(lock: str) -> dict[str, str]:
    """Return the packages of a lock file, each with all of its lines."""
    found: dict[str, str] = {}
    for block in re.findall(r"^[A-Za-z0-9].*\n(?:^[ \t].*\n)*", lock, re.MULTILINE):
        name = re.split(r"[=\[ ]", block, maxsplit=1)[0]
        found[name] = found.get(name, "") + block  # one version here, another there, told apart by markers
    return found


def without_hashes(blocks: Mapping[str, str]) -> str:
    """Return bare pins."""
    lines = [line for block in blocks.values() for line in block.splitlines() if not line.startswith(" ")]
    return "".join(line.removesuffix(" \\") + "\n" for line in lines)


def with_cpu_wheels(block: str, cpu_block: str) -> str:
    """Return the lines of torch with the hashes of its CPU wheels, or say that these are of another version."""
    first, rest = block.split("\n", maxsplit=1)
    pin = first.removesuffix(" \\")
    if not cpu_block.startswith(f"{pin}+cpu "):
        sys.exit(
            f"{pin} is to be locked, but {CPU} has {cpu_block.split()[0]}: write the hashes of its CPU "
            "wheels for Linux there, from https://download.pytorch.org/whl/cpu/torch/, and run this again"
        )
    hashes = re.findall(r"--hash=sha256:[0-9a-f]+", cpu_block)
    return "\n".join([first, *(f"    {one} \\" for one in hashes), rest])


def split(everything: Mapping[str, str], to_run: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return which package stands in which file."""
    files: dict[str, dict[str, str]] = {RUN: {}, DEVELOP: {}, CUDA: {}}
    for name, block in sorted(everything.items()):
        files[CUDA if OF_CUDA.match(name) else RUN if name in to_run else DEVELOP][name] = block
    return files


def main() -> None:
    """Resolve everything together, and write the files."""
    existing = {name: block for lock in PURPOSE for name, block in packages(read(lock)).items()}
    everything = resolve(["--extra", "dev", *sys.argv[1:]], without_hashes(existing))
    to_run = resolve([], without_hashes(everything))
    everything["torch"] = with_cpu_wheels(everything["torch"], packages(read(CPU))["torch"])
    for name, blocks in split(everything, list(to_run)).items():
        header = HEADER.format(purpose=PURPOSE[name], python=OLDEST_PYTHON)
        (ROOT / name).write_text(header + "".join(blocks.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
