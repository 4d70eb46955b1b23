"""The pages as HTML (``make docs``): the documentation, and a reference made of the docstrings.

The source is the whole repository, not this folder, so that a link leads where it leads on GitHub.
"""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

from sphinx.application import Sphinx

import brainstage

INDEX = "docs/README"
REFERENCE = "docs/reference"
"""Written at every build, from the docstrings; not kept."""

project = "brainstage"
author = project_copyright = "The brainstage developers"
version = release = brainstage.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = INDEX
include_patterns = ["*.md", "docs/**", "benchmarks/*.md", "training/*.md"]
exclude_patterns = ["docs/_build", ".*", "demo", "src", "tests"]
highlight_language = "none"
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
add_module_names = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# A name of this project that a docstring refers to has to be there; what is private or of others has no page here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(?!brainstage\.).*|.*\._\w+"),
    ("py:obj", r"typing\..*"),
    ("py:(class|obj)", r"brainstage\.models\.\w+\.(Model|Described)"),  # type variables, which have no entry
]

html_theme = "alabaster"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "description": "For research; never a diagnosis.",
    "fixed_sidebar": True,
    "font_family": "system-ui, sans-serif",
    "page_width": "1100px",
    "show_powered_by": False,
}


def setup(app: Sphinx) -> None:
    """Write the reference, make the contents of the index, and add an entrance beside the folders."""
    app.connect("builder-inited", _write_reference)
    app.connect("autodoc-process-docstring", _adapt_docstring, priority=400)  # before napoleon reads it
    app.connect("source-read", _with_contents)
    app.connect("build-finished", _write_entrance)


def _write_reference(app: Sphinx) -> None:
    """Write one page for each package and module; what it holds comes from the docstrings."""
    folder = Path(app.srcdir, REFERENCE)
    folder.mkdir(exist_ok=True)
    names = [
        "brainstage",
        *(found.name for found in pkgutil.walk_packages(brainstage.__path__, "brainstage.")),
    ]
    for name in names:
        below = [other for other in names if other.rpartition(".")[0] == name]
        contents = "\n".join(f"   {other.rpartition('.')[2]} <{other}>" for other in below)
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n\n.. toctree::\n   :titlesonly:\n\n{contents}\n"
        page = folder / f"{name}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in folder.glob("*.rst"):
        if page.stem not in names:
            page.unlink()


def _adapt_docstring(
    _app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Write numpydoc's ``mean, scale : ndarray`` as two fields, and keep a constant's colon from making a type."""
    if what in ("data", "attribute", "property"):
        lines[:0] = ["..", ""]
        return
    combined = re.compile(r"^(\w+(?:, \w+)+)((?: : .*)?(?:\n +.*)*)$", re.MULTILINE)
    text = combined.sub(lambda m: "\n".join(name + m[2] for name in m[1].split(", ")), "\n".join(lines))
    lines[:] = text.split("\n")


def _with_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    """Append to the index what stands in its lists, as the contents of the site, caption by caption."""
    if page == INDEX:
        for caption, entries in re.findall(r"^\*\*(.+)\*\*\n\n((?:- .+\n)+)", source[0], re.MULTILINE):
            pages = re.findall(r"\]\((\S+)\.md\)", entries)
            if caption == "Reference":
                pages.append("Modules <reference/brainstage>")
            source[0] += _contents(caption, pages)
        source[0] += _contents(
            "Project", ["README <../README>", "../CHANGELOG", "../CONTRIBUTING", "../SECURITY"]
        )
    elif page == "benchmarks/README":
        source[0] += _contents("Benchmarks", ["*", "../training/*"])


def _contents(caption: str, pages: list[str]) -> str:
    return "\n".join(
        ["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""]
    )


def _write_entrance(app: Sphinx, _error: Exception | None) -> None:
    page = (
        f'<!doctype html><meta http-equiv="refresh" content="0; url={INDEX}.html"><title>{project}</title>\n'
    )
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
