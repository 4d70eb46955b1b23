"""Words in Markdown are words: whatever stands in a table is shown, and forges nothing."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from brainstage.pipeline.config import Config
from brainstage.workflows.reporting.markdown import code, escaped, markdown_environment, verbatim
from brainstage.workflows.reporting.methods import render_methods

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SHAPES = "\\`*_{}[]()<>#+-.!|~$&=:\n\r\t \u2028'\"/19ab"
TEXTS = st.text(st.sampled_from(SHAPES) | st.characters(exclude_categories=["Cs"]), max_size=30)
FORGED = "AD | 99 | 99 |\n| **Balanced accuracy 1.00** <img src=x onerror=alert(1)> `x` [a](http://b) | # $x$"


def words(text: str) -> str:
    """Return what is shown of a text: one line, blanks as Markdown and HTML show them."""
    return " ".join(re.sub("[\x00-\x20\x7f-\x9f\u2028\u2029]+", " ", text).split(" ")).strip()


def shown(token: Token) -> str:
    assert {child.type for child in token.children or ()} <= {"text", "text_special"}, token.content
    return words("".join(child.content for child in token.children or ()))


@given(text=TEXTS)
@example(FORGED)
@example("https://evil.org <a@b.c>")
@example("12. __a__b_ _c")
def test_whatever_it_is_a_cell_holds_it_as_text(text):
    tokens = PARSER.parse(f"| a | b |\n|---|---|\n| x{escaped(text)} | {escaped(text)} |\n")
    assert Counter(token.type for token in tokens)["tr_open"] == 2
    cells = [shown(token) for token in tokens if token.type == "inline"]
    assert cells == ["a", "b", words(f"x{text}"), words(text)]


@given(text=TEXTS.filter(lambda text: words(text) and not text[0].isspace()))
@example(FORGED)
@example("# a")
@example("1) a")
@example("---")
@example("===")
def test_at_the_beginning_of_a_line_it_is_a_paragraph(text):
    tokens = PARSER.parse(f"before\n{escaped(text)} after\n")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    kinds = {child.type for child in tokens[1].children or ()}
    assert kinds <= {"text", "text_special", "softbreak"}


@given(text=TEXTS)
@example(FORGED)
def test_code_in_a_cell_is_code_and_one_cell(text):
    tokens = PARSER.parse(f"| a | b |\n|---|---|\n| {code(text)} | end |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert [child.type for child in cells[2].children or ()] == ["code_inline"]


@given(text=TEXTS)
def test_a_line_of_a_block_of_code_does_not_end_it(text):
    tokens = PARSER.parse(f"```\n{verbatim(text)}\n```\n\nafter\n")
    assert tokens[0].type == "fence"
    assert tokens[-2].content == "after"


def test_every_value_of_a_template_is_escaped_unless_it_is_code():
    template = markdown_environment().from_string(
        "{{ one }}{{ ', ' if one }}{{ [one, one] | join('; ') }} {{ one | code }} {{ 3 }} {{ two }}"
    )
    assert template.render(one="a|b", two=0.5) == r"a\|b, a\|b; a\|b `a\|b` 3 0.5"


@pytest.mark.parametrize("text", [FORGED, "```\n# forged"])
def test_methods_show_what_tables_say_as_text(text):
    written = render_methods(
        Config(),
        {"brainstage": text},
        text,
        n_scans=2,
        account=[text],
        otherwise={text: (1, [(text, text, text)])},
    )
    tokens = PARSER.parse(written)
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["Methods", "Participants and scans", "References", "Software versions"]
    assert "<img" not in PARSER.render(written)
    assert sum(token.type == "tr_open" for token in tokens) == 2
