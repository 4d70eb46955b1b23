"""The documentation: every link leads somewhere, every name in it exists, and nothing that exists is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from brainstage.models.choices import MEMBERS
from brainstage.pipeline.config import Config, QualityBounds
from brainstage.pipeline.errors import ExitCode
from brainstage.pipeline.manifest import COLUMNS
from brainstage.pipeline.records import Prediction, PredictionStatus
from brainstage.preprocessing.quality import MEASURES, WARNING_CODES_THAT_WARN
from brainstage.workflows.arguments import build_parser
from brainstage.workflows.gate import FLAG_EXPLANATIONS, REVIEW_EXPLANATIONS
from brainstage.workflows.group import predictions_csv, qc_csv
from brainstage.workflows.normed_volumes import NORMS_REASONS
from brainstage.workflows.reporting.members_table import KNOWN_TO
from brainstage.workflows.reporting.verdict import set_headline
from brainstage.workflows.reporting.volumes_table import WITHHELD_BECAUSE
from brainstage.workflows.trajectories import trajectory_columns
from brainstage.workflows.volumes_table import volumes_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OF_ROOT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = sorted([*(ROOT / name for name in OF_ROOT), *DOCS.rglob("*.md")])
TEXTS = [*PAGES, ROOT / "CITATION.cff", ROOT / "NOTICE"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
MACHINE_PATH = re.compile(r"(?<![\w.:/*~-])/(?:home|Users|root|tmp|var|mnt|opt|usr|work|srv|data)/")
MAX_PICTURE_BYTES = 400_000

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield (page, content) of every fenced block of a language."""
    for page in PAGES:
        yield from ((name_of(page), body) for found, body in FENCE.findall(read(page)) if found == language)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, down to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables by what stands in backticks in the first cell; no name may stand twice."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        match = re.match(r"`([^`]+)`", cells[0].strip("| ")) if line.startswith("|") else None
        if match:
            assert match[1] not in found, f"{match[1]} stands twice"
            found[match[1]] = [cell.strip("| ") for cell in cells[1:]]
    return found


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}


# Links and pictures


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_lead_somewhere(page):
    for target in LINK.findall(prose(read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name_of(page)}: {target}"
        assert path.is_relative_to(ROOT)
        if anchor:
            headings = {slug(heading) for heading in re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)}
            assert anchor in headings, f"{name_of(page)}: {target}"


def test_every_page_is_reached_from_the_index():
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(read(index))}
    assert set(DOCS.rglob("*.md")) - linked - {index} == set()


def test_every_picture_is_used_and_small():
    used = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(read(page))
        if target.endswith(".png")
    }
    pictures = set((DOCS / "images").iterdir())
    assert pictures == used
    for picture in pictures:
        assert picture.stat().st_size < MAX_PICTURE_BYTES, picture.name


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_no_text_names_a_place_on_a_machine(text):
    assert MACHINE_PATH.search(read(text)) is None


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_lines_end_cleanly(text):
    content = read(text)
    assert content.endswith("\n")
    assert not re.search(r"[ \t]+$|\t", content, re.MULTILINE)


# Commands


def test_every_command_line_is_understood():
    found = 0
    for page, body in blocks("sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0].rpartition("/")[2] != "brainstage":
                continue
            found += 1
            # [participant|group] in a synopsis: one of them
            given = [word.strip("[]").split("|")[0] for word in words[1:]]
            try:
                build_parser().parse_args(given)
            except ValueError as error:
                pytest.fail(f"{page}: {line}: {error}")
    assert found > 10


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_in_sentences_exist(page):
    known = commands()
    every_option = set().union(*(options_of(parser) for parser in known.values())) | {"--help", "--version"}
    for code in INLINE.findall(prose(read(page))):
        words = code.split()
        if words[0] == "brainstage" and len(words) > 1 and words[1] not in ("COMMAND", "--version"):
            assert words[1] in known, code
            allowed = options_of(known[words[1]]) | {"--help"}
        else:
            allowed = every_option
        mentioned = {word for word in words if re.fullmatch(r"--[a-z][a-z_-]*", word)}
        assert {word.replace("_", "-") for word in mentioned} <= allowed, code


def test_the_page_of_all_commands_is_what_the_parser_says():
    spec = importlib.util.spec_from_file_location("generate_commands", DOCS / "generate_commands.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert read("docs/commands.md") == generator.commands_page(), "run make commands"


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_option_has_a_help_that_ends_with_its_default(command):
    for action in commands()[command]._actions:
        assert action.help, action.dest
        if action.dest not in ("help", "version") and action.default not in (None, False, []):
            assert action.help.endswith(f"default: {action.default}"), action.dest


def test_every_make_target_in_the_documentation_exists():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = {
        code.split()[1] for page in PAGES for code in INLINE.findall(read(page)) if code.startswith("make ")
    }
    for _, body in blocks("sh"):
        named |= set(re.findall(r"^make (\w+)", body, re.MULTILINE))
    assert named <= targets


# Configuration


def flat(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, default) of every key of a configuration model."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from flat(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info.get_default(call_default_factory=True)


def toml(value: object) -> str:
    return "{}" if value == {} else json.dumps(list(value) if isinstance(value, tuple) else value)


def test_every_key_of_the_configuration_is_documented_with_its_default():
    documented = rows(read("docs/how-to/configuration.md"))
    expected = dict(flat(Config)) | {f"quality.<measure>.{name}": ... for name in QualityBounds.model_fields}
    assert {key for key in documented if not key.startswith("--")} == set(expected)
    for key, default in expected.items():
        if default is not ...:
            written = documented[key][1].strip("`")
            assert json.loads(written) == json.loads(toml(default)), key


def test_every_choice_of_the_configuration_is_documented():
    documented = rows(read("docs/how-to/configuration.md"))
    for section_name, section_info in Config.model_fields.items():
        model = section_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        for name, info in model.model_fields.items():
            choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)]
            written = re.findall(r'`"(\w+)"`', documented[f"{section_name}.{name}"][0])
            assert written == choices, f"{section_name}.{name}"


@pytest.mark.parametrize(("page", "body"), list(blocks("toml")))
def test_every_configuration_in_the_documentation_is_accepted(page, body):
    Config.model_validate(tomllib.loads(body))


# Quality control


def bounds_text(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    if low is None:
        return "any" if high is None else f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def test_every_measure_is_documented_with_its_bounds():
    documented = rows(section(read("docs/concepts/quality-control.md"), "## Bounds"))
    expected = {}
    for m in MEASURES:
        judged = ["-", "-", "-"]
        if m.bounds:
            judged = [bounds_text(m.bounds.passing), bounds_text(m.bounds.tolerated), f"`{m.reason}`"]
        expected[m.name] = [m.unit or "-", m.direction, *judged]
    assert documented == expected


def test_every_measure_is_explained_with_its_source():
    documented = rows(section(read("docs/concepts/quality-control.md"), "## What each measure is"))
    assert list(documented) == [m.name for m in MEASURES]
    for m in MEASURES:
        for publication in re.findall(r"[A-Z][a-z]+ \d{4}", m.source):
            assert f"[{publication}](https://doi.org/10." in documented[m.name][1], m.name


def test_every_reason_code_is_explained():
    text = section(read("docs/concepts/quality-control.md"), "## Reason codes")
    of_measures = {m.reason for m in MEASURES if m.bounds}
    of_headers = {f"header_{code}" for code in WARNING_CODES_THAT_WARN}
    assert set(rows(text)) == of_measures | of_headers | set(FLAG_EXPLANATIONS) | set(REVIEW_EXPLANATIONS)


def test_reasons_that_flag_a_prediction_are_told_from_notes_and_stand_on_its_page():
    text = section(read("docs/concepts/predictions.md"), "## Reasons")
    table = rows(text)
    notes = set(FLAG_EXPLANATIONS) - set(table)
    assert set(table) < set(FLAG_EXPLANATIONS)
    assert all(f"`{code}`" in text for code in notes)


def test_every_member_and_every_verdict_is_documented():
    page = read("docs/concepts/predictions.md")
    assert set(rows(section(page, "## Members"))) == set(MEMBERS) == set(KNOWN_TO)
    said = section(page, "## The verdict in a report")
    for in_set in (("A",), ("A", "B"), ("A", "B", "C"), ()):
        prediction = Prediction(
            probabilities={"A": 0.6, "B": 0.3, "C": 0.1}, prediction_set=in_set, ood_score=1.0,
            ood_threshold=2.0, tier="review", member_labels={}, model_id="m",
        )  # fmt: skip
        assert re.split(r"A", set_headline(prediction))[0] in said
        assert set_headline(replace(prediction, above_chance=False)) in said


def test_every_reason_for_withholding_a_volume_has_the_words_of_the_report():
    documented = rows(section(read("docs/how-to/read-a-report.md"), "## Volumes"))
    assert {code: cells[0] for code, cells in documented.items()} == dict(WITHHELD_BECAUSE)


def test_every_header_warning_is_explained():
    source = read("pipeline/nifti.py") + read("preprocessing/ingest.py")
    codes = set(re.findall(r'"([a-z]+(?:_[a-z]+)*): ', source))
    documented = rows(section(read("docs/concepts/quality-control.md"), "## Header warnings"))
    assert set(documented) == codes
    assert {code for code, cells in documented.items() if cells[-1] == "yes"} == set(WARNING_CODES_THAT_WARN)


# Tables, exit codes, statuses


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("## predictions.csv", predictions_csv([], None, ["<CLASS>"]).strip().split(",")),
        ("## qc.csv", qc_csv([]).strip().split(",")),
        ("## volumes.csv", list(volumes_table([], None).columns)),
        ("## trajectories.csv", list(trajectory_columns(["<CLASS>"], ["<volume>"]))),
        ("## data_manifest.csv", list(COLUMNS)),
    ],
)
def test_every_column_of_a_table_is_documented_in_its_order(heading, columns):
    assert list(rows(section(read("docs/outputs.md"), heading))) == columns


@pytest.mark.parametrize("page", ["README.md", "docs/exit-codes.md"])
def test_every_exit_code_is_documented(page):
    found = re.findall(r"^\| (\d+) \|", read(page), re.MULTILINE)
    assert found == [str(int(code)) for code in sorted(ExitCode)]


def test_exit_codes_have_their_names():
    found = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", read("docs/exit-codes.md"), re.MULTILINE))
    assert found == {str(int(code)): code.name for code in ExitCode}


def test_every_reason_of_norms_to_say_nothing_is_documented():
    text = section(read("docs/concepts/norms.md"), "## Where nothing is said")
    assert set(rows(text)) == set(NORMS_REASONS)


def test_every_prediction_status_is_documented():
    text = section(read("docs/concepts/predictions.md"), "## Status")
    assert set(rows(text)) == {str(status) for status in PredictionStatus}


# Layout, dependencies, citation, changelog, examples


def modules(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize(
    ("heading", "folder"),
    [
        ("## pipeline: what every stage shares", "pipeline"),
        ("## preprocessing: from a file to a brain in template space", "preprocessing"),
        ("## models: tensors and networks", "models"),
    ],
)
def test_every_module_of_a_layer_has_its_line(heading, folder):
    assert set(rows(section(read("docs/layout.md"), heading))) == modules(ROOT / folder)


def test_every_module_of_workflows_has_its_line():
    top, *parts = re.split(
        r"^\*\*`(\w+)/`\*\*", section(read("docs/layout.md"), "## workflows: assembly"), flags=re.MULTILINE
    )
    assert set(rows(top)) == modules(ROOT / "workflows")
    documented = dict(zip(parts[::2], parts[1::2], strict=True))
    folders = {path.parent.name for path in (ROOT / "workflows").glob("*/__init__.py")}
    assert set(documented) == folders
    for name, text in documented.items():
        assert set(rows(text)) == modules(ROOT / "workflows" / name), name


@pytest.mark.parametrize(
    ("heading", "requirements"),
    [
        ("## To run", PYPROJECT["project"]["dependencies"]),
        ("## To develop", PYPROJECT["project"]["optional-dependencies"]["dev"]),
    ],
)
def test_every_dependency_has_its_reason_and_licence(heading, requirements):
    documented = rows(section(read("docs/dependencies.md"), heading))
    assert list(documented) == [re.split(r"[<>=~!\[; ]", requirement)[0] for requirement in requirements]
    assert all(len(cells) == 2 and all(cells) for cells in documented.values())


def test_the_locked_torch_of_the_readme_is_the_one_of_the_lock_file():
    locked = re.search(r"^torch==(\S+) ", read("requirements.lock"), re.MULTILINE)
    assert locked is not None
    assert set(re.findall(r"torch(?:==| is locked to )([\d.]+\d)", read("README.md"))) == {locked[1]}


def test_the_citation_is_of_this_version_and_has_what_the_format_demands():
    keys = dict(re.findall(r'^([a-z-]+): *"?(.*?)"?$', read("CITATION.cff"), re.MULTILINE))
    assert keys["version"] == PYPROJECT["project"]["version"]
    assert keys["cff-version"] == "1.2.0"
    # A citation has one licence, that of the code; the weights in the package have another.
    assert keys["license"] == PYPROJECT["project"]["license"].partition(" AND ")[0]
    assert {"message", "title", "authors"} <= set(keys)


def test_the_changelog_has_this_version_and_explains_changes_to_output_values():
    text = read("CHANGELOG.md")
    assert f"## [{PYPROJECT['project']['version']}]" in text
    before, _, versions = text.partition("\n## ")
    assert "**Changes to output values.**" in before
    assert "### Changes to output values" in versions


def test_the_notice_carries_the_terms_of_the_template():
    assert "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre" in read("NOTICE")
    assert "NOTICE" in PYPROJECT["project"]["license-files"]
