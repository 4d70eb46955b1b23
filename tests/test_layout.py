"""The house: what is installed is what is there, and nothing in it speaks of the machine it was made on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("models", "pipeline", "preprocessing", "workflows")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
NOT_OURS = {".git", ".venv", "_build", "build", "dist", "demo", "__pycache__"}
BINARY = {".png", ".gz", ".nii", ".npz", ".npy", ".safetensors", ".h5", ".pyc", ".ico", ".woff2", ".pdf"}
HOMES = r"(?<![\w./:-])/(?:home|Users|root|mnt|media)/(?!someone\b)\w"
"""A home or a mount; ``someone`` is nobody, an invented name for examples."""


def test_every_folder_with_code_is_a_layer():
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_OURS
    assert found == set(LAYERS)


def test_the_packages_are_the_folders():
    folders = {
        "brainstage." + ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == folders | {"brainstage"}


def test_every_package_is_mapped_to_its_folder():
    expected = {"brainstage": "src/brainstage"} | {f"brainstage.{layer}": layer for layer in LAYERS}
    assert SETUPTOOLS["package-dir"] == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_has_its_relative_link(layer):
    link = ROOT / "src" / "brainstage" / layer
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / layer
    assert link.resolve() == ROOT / layer


def test_nothing_else_stands_beside_the_links():
    names = {path.name for path in (ROOT / "src" / "brainstage").iterdir()} - NOT_OURS
    assert names == {"__init__.py", "py.typed", *LAYERS}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_refuses_its_bare_name(layer):
    done = subprocess.run([sys.executable, "-c", f"import {layer}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: import brainstage.{layer}, not {layer}" in done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_everything_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says nothing"
    assert [name for name in undocumented(tree) if name] == []


def undocumented(node: ast.AST) -> list[str]:
    """Return the public functions, classes and methods below a module or class that have no docstring."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and public(child, node):
            if not ast.get_docstring(child):
                found.append(child.name)
            if isinstance(child, ast.ClassDef):
                found += undocumented(child)
    return found


def public(child: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, parent: ast.AST) -> bool:
    # A method that a base class outside this project calls for is described there.
    inherited = isinstance(parent, ast.ClassDef) and child.name in {"error", "forward"}
    return not child.name.startswith("_") and not inherited


def text_files() -> list[Path]:
    """Return the project's own text files: all that version control knows or would take up."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        paths = [ROOT / name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix not in BINARY]


def test_no_text_names_a_place_on_a_machine():
    here = "|".join(re.escape(str(place)) for place in (ROOT, Path.home()) if len(place.parts) > 2)
    place = re.compile(f"{HOMES}|{here}" if here else HOMES)
    files = text_files()
    assert len(files) > 50
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if place.search(line)
    ]
    assert named == []


def test_the_search_for_places_finds_one():
    assert re.search(HOMES, "see " + "/ho" + "me/anna/data")
    assert not re.search(HOMES, "https://example.org/" + "home/page")
