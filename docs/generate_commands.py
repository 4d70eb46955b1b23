"""Write ``commands.md`` from the parser of the command line: ``make commands``. A test holds the two together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from brainstage.workflows.arguments import build_parser

PAGE = Path(__file__).with_name("commands.md")
INTRODUCTION = (
    "Written by `make commands` from what `brainstage COMMAND --help` says. Options are taken with hyphens or "
    "underscores (`--participant_label`). `brainstage --version` prints the version. [Exit codes](exit-codes.md) say "
    "how a command ended."
)
SEE = {
    "run": "[Run your dataset](how-to/run-your-dataset.md)",
    "train": "[Train on your cohort](how-to/train-on-your-cohort.md)",
    "evaluate": "[Evaluate on another cohort](how-to/train-on-your-cohort.md#evaluate-on-another-cohort)",
    "explain": "[What such a map can say](concepts/predictions.md#evidence)",
    "norms": "[Norms](concepts/norms.md)",
    "--norms": "[norms](concepts/norms.md)",
    "manifest": "[Choose scans](how-to/run-your-dataset.md#choose-scans)",
    "fetch": "[Without a network](how-to/offline-use.md#pretrained-weights)",
    "demo": "[Get started](get-started.md#the-demonstration)",
    "--qc-decisions": "[review quality control](how-to/review-qc.md)",
    "--config": "[every key](how-to/configuration.md)",
    "--engine": "[clusters](how-to/clusters.md)",
    "--atlas": "[use another atlas](how-to/use-another-atlas.md)",
    "--finetune": "[what is trained](how-to/train-on-your-cohort.md#train-the-network-not-only-the-head)",
    "--imbalance": "[what each does](how-to/train-on-your-cohort.md#classes-of-different-size)",
    "--reference-class": "[class of reference](concepts/predictions.md#measures-against-a-class-of-reference)",
    "--covariates": "[covariates](how-to/train-on-your-cohort.md#covariates)",
}
"""Where a command or an option is explained: the one thing that a help text cannot say."""
CODE = re.compile(
    r"\{.*\}"  # JSON
    r"|(?<![\w-])--[a-z][a-z-]*(?:=\S+\b| (?:dask|slurm)\b)?"
    r"|\bbrainstage (?:run|train|norms)\b(?: --model| --manifest| --norms)?"
    r"|\b[\w.]+\.(?:csv|tsv|json|nii\.gz)\b"
    r"|\b(?:sub|ses)-(?!\w)"
)


def commands_page() -> str:
    """Return the page of all commands, as Markdown."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    sections = [_section(name, parser) for name, parser in commands.choices.items()]
    return "\n".join(["# Commands", "", INTRODUCTION, "", "For research; never a diagnosis.", "", *sections])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    positional = [action for action in parser._actions if not action.option_strings]
    synopsis = " ".join([parser.prog, *(_synopsis(action) for action in positional)])
    see = f" {SEE[name]}." if name in SEE else ""
    lines = [f"## {parser.prog}", "", "```", synopsis, "```", "", _marked(parser.description or "") + see, ""]
    for group in parser._action_groups:
        rows = list(_rows(group))
        if rows:
            titled = group.title not in ("positional arguments", "options")
            lines += [f"**{str(group.title).capitalize()}**", ""] * titled
            optional = any(action.option_strings for action in group._group_actions)
            lines += [
                f"| {'option' if optional else 'argument'} | default | meaning |",
                "|---|---|---|",
                *rows,
                "",
            ]
    return "\n".join(lines)


def _rows(group: argparse._ArgumentGroup) -> Iterator[str]:
    for action in group._group_actions:
        if not isinstance(action, argparse._HelpAction):
            meaning, default = _explained(action)
            see = [SEE[name] for name in action.option_strings if name in SEE]
            yield f"| {_name(action)} | {default} | {'; '.join([_marked(meaning), *see])} |"


def _synopsis(action: argparse.Action) -> str:
    name = str(action.metavar) if action.metavar else "|".join(action.choices or ())
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _name(action: argparse.Action) -> str:
    """Return the first cell: the names, and what follows them."""
    if not action.option_strings:
        return f"`{_synopsis(action)}`".replace("|", "\\|")
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    values = "{" + ",".join(action.choices) + "}" if action.choices else str(action.metavar or "")
    return f"{names} {values}{' ...' if action.nargs in ('+', '*') else ''}".strip()


def _explained(action: argparse.Action) -> tuple[str, str]:
    """Return what a help text says, without the default at its end, and that default."""
    text = str(action.help)
    meaning, told, default = text.rpartition("default: ")
    if told:
        literal = default == str(action.default) or default in (action.choices or ())
        return meaning.rstrip("; "), f"`{default}`" if literal else default
    if not action.option_strings or isinstance(action, argparse._VersionAction):
        return text, ""
    return text, "off" if action.nargs == 0 else "none"


def _marked(text: str) -> str:
    """Return a text with its options and file names marked as code."""
    return CODE.sub(lambda found: f"`{found[0]}`", text)


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
