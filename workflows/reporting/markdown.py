"""Markdown with words from tables in it: they are read as words, whatever stands in them.

Every value that a template writes is escaped, unless a filter has made it code. What an escaped word looks like in the
source is of no account; shown by any program, it has its own letters, and forges no row, heading, link or element.
"""

from __future__ import annotations

import re
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;", "$": "&#36;"}
"""Not all programs know a backslash before these."""
_SPECIAL: Final = re.compile(
    r"[\\`*\[\]|]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is none
    r"|\A[-+=#]"
    r"|(?<=\A[0-9])[.)](?=\s|\Z)|(?<=\A[0-9][0-9])[.)](?=\s|\Z)"
)
_BREAKS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Markdown(str):
    """Text that is Markdown already, and is written as it is."""

    __slots__ = ()


def escaped(text: str) -> Markdown:
    r"""Return words as Markdown that shows them, on one line.

    >>> print(escaped("A | B\n# <b>_c_ d_e"))
    A \| B # &lt;b&gt;\_c\_ d_e
    """
    backslashed = _SPECIAL.sub(lambda found: "\\" + found[0], _on_one_line(text))
    return Markdown(re.sub("[&<>~$]", lambda found: _ENTITIES[found[0]], backslashed))


def code(text: str) -> Markdown:
    """Return words as a span of code, also within a table; a backtick becomes an apostrophe.

    >>> print(code("a_b `c`"))
    `a_b 'c'`
    """
    line = verbatim(text).replace("|", "\\|")
    return Markdown(f"`{line or ' '}`")


def verbatim(text: str) -> Markdown:
    """Return words as a line of a block of code; a backtick becomes an apostrophe."""
    return Markdown(_on_one_line(text).replace("`", "'"))


def _on_one_line(text: str) -> str:
    return _BREAKS.sub(" ", text)


def markdown_environment(*, trimmed: bool = False) -> Environment:
    """Return what fills Markdown templates: text is escaped, a name that is missing is an error.

    Parameters
    ----------
    trimmed : bool
        Lines of the template that only hold a statement leave none behind.
    """
    environment = Environment(
        loader=PackageLoader("brainstage.workflows"),
        autoescape=select_autoescape(),  # of HTML, which this is not
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=trimmed,
        lstrip_blocks=trimmed,
        finalize=_written,
    )
    environment.filters |= {"code": code, "verbatim": verbatim}
    return environment


def _written(value: object) -> object:
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markdown) else value
