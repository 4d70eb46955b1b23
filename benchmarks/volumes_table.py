"""The table of ``benchmarks/volumes.py`` from its rows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from labelled_heads import SIDES
from numpy.typing import NDArray
from outline_failures import outlines_table, shares

from brainstage.pipeline.records import VOLUMES

MANUAL: Final = "oasis_labelled"
OLD: Final = "elderly"
RESCANS: Final = (("sub-1003", "sub-1023"), ("sub-1004", "sub-1024"))
"""Of :data:`MANUAL`: the same person twice."""
ATROPOS: Final = ("Atropos, k-means", "Atropos, priors")
CROPS_DICE: Final = (0.90, 0.80)
"""To be reached, as all that follows: the mean, the lowest."""
MANUAL_DICE: Final = 0.84
RETEST_PCT: Final = 3.0
OLD_R: Final = (0.88, 0.98)
"""Hippocampi, ventricles."""
SEEN: Final[Mapping[float, tuple[float, float]]] = {0.10: (8.0, 12.0), 0.20: (17.0, 22.0)}
"""A loss, and between what it should be seen as, per cent."""
SEEN_SD: Final = 1.5
FASTER: Final = 10.0
SECONDS: Final = 2.0
WITHHELD: Final = (95.0, 3.0)
"""Of wrong outlines at least, of right ones at most, per cent."""
NAMES: Final[Mapping[str, str]] = {
    MANUAL: "OASIS, by hand, 1 mm, stripped",
    OLD: "68 to 87 years, MUSE, 2 mm",
    "adults_2mm": "24 to 47 years, MUSE, 2 mm",
}

FLUID: Final = "fluid"
"""The kind of loss that moves nothing."""

Rows = Sequence[Mapping[str, Any]]
Goal = tuple[str, str, str, bool]
"""What, how much of it, what was measured, and whether that is enough."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(rows: Rows, outlines: Rows, calibration: Rows) -> str:
    """Return everything as Markdown; parts that were not run are left out.

    Parameters
    ----------
    rows : sequence of mapping
        Of ``volumes.csv``.
    outlines, calibration : sequence of mapping
        Of ``volumes_outlines.csv`` and ``volumes_calibration.csv``.
    """
    parts: dict[str, Callable[[Rows], list[str]]] = {
        "crops": crops_section,
        "labelled": labelled_section,
        "losses": losses_section,
        "robustness": robustness_section,
        "tissues": tissues_section,
        "seconds": seconds_section,
    }
    lines = [
        "# Volumes",
        "",
        "Made by `benchmarks/volumes.py`, with the network and the bounds in the package. Every number is in",
        "`volumes.csv`, every outline in `volumes_outlines.csv`.",
        "",
        "| what | at least | measured | |",
        "|---|---|---|---|",
        *goals(rows, outlines),
    ]
    for part, section in parts.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            lines += ["", *section(own)]
    if outlines:
        lines += ["", *_outlines_section(outlines, calibration)]
    return "\n".join([*lines, ""])


def goals(rows: Rows, outlines: Rows) -> list[str]:
    """Return the lines of what is to be reached, as far as it was measured."""
    found = [
        *_goals_of_crops(rows),
        *_goals_of_labels(rows),
        *_goals_of_losses(rows),
        *_goals_of_tissues(rows),
        *_goals_of_seconds(rows),
        *_goals_of_outlines(outlines),
    ]
    return [
        f"| {what} | {wanted} | {measured} | {'reached' if reached else '**missed**'} |"
        for what, wanted, measured, reached in found
    ]


def _goals_of_crops(rows: Rows) -> Iterator[Goal]:
    dice = values(rows, part="crops", measure="dice")
    if dice.size:
        mean, lowest = float(dice.mean()), float(dice.min())
        yield "crops held out: Dice", f"{CROPS_DICE[0]:.2f}", f"{mean:.3f}", mean >= CROPS_DICE[0]
        yield "its lowest", f"{CROPS_DICE[1]:.2f}", f"{lowest:.3f}", lowest >= CROPS_DICE[1]


def _goals_of_labels(rows: Rows) -> Iterator[Goal]:
    labelled = [row for row in rows if row["part"] == "labelled"]
    by_hand = values(labelled, dataset=MANUAL, case="hippocampus", measure="dice")
    if by_hand.size:
        mean = float(by_hand.mean())
        yield "OASIS, by hand: Dice", f"{MANUAL_DICE:.2f}", f"{mean:.3f}", mean >= MANUAL_DICE
        apart = np.concatenate([retest_pct(rows, f"hippocampus_{side}_ml") for side in SIDES]).mean()
        what = "two scans of one person: hippocampi differ by"
        yield what, f"at most {RETEST_PCT:g} %", f"{apart:.1f} %", bool(apart <= RETEST_PCT)
    old = [row for row in labelled if row["dataset"] == OLD]
    if old:
        r = correlation(*pair(old, case="hippocampus"))
        yield "68 to 87 years: r of hippocampi", f"{OLD_R[0]:.2f}", f"{r:.3f}", r >= OLD_R[0]
        both = [one.reshape(-1, len(SIDES)).sum(axis=1) for one in pair(old, case="ventricle")]
        r = correlation(*both)
        yield "its r of ventricles", f"{OLD_R[1]:.2f}", f"{r:.3f}", r >= OLD_R[1]
        withheld = values(old, case="hippocampus", measure="withheld")
        there = len(withheld) - int(withheld.sum())
        yield "its hippocampi found", "all", f"{there} of {len(withheld)}", there == len(withheld)


def _goals_of_losses(rows: Rows) -> Iterator[Goal]:
    for strength, (low, high) in SEEN.items():
        for case in cases(rows, "losses"):
            what, against = case, "true_loss"
            if case.startswith(FLUID):  # outside of the outline it cannot be seen
                what, against = f"{case}, of the outline", "outline_loss"
            seen = seen_losses(rows, case, strength, against=against)
            if seen.size > 1:
                mean, sd = float(seen.mean()), float(seen.std(ddof=1))
                yield (
                    f"a loss of {100 * strength:.0f} % ({what}), seen as",
                    f"{low:.0f} to {high:.0f} %, SD under {SEEN_SD:g}",
                    f"{mean:.1f} % (SD {sd:.1f})",
                    low <= mean <= high and sd < SEEN_SD,
                )


def _goals_of_tissues(rows: Rows) -> Iterator[Goal]:
    own = [row for row in rows if row["part"] == "tissues"]
    if not own:
        return
    for tissue in ("grey matter", "white matter"):
        ours, *theirs = (
            values(own, measure="dice", side=tissue, case=case).mean() for case in ("ours", *ATROPOS)
        )
        wanted = f"that of Atropos, {max(theirs):.3f}"
        yield f"{tissue}, OASIS: Dice", wanted, f"{ours:.3f}", bool(ours >= max(theirs))
    ours, *theirs = (values(own, measure="seconds", case=case).mean() for case in ("ours", *ATROPOS))
    faster = min(theirs) / ours
    yield "tissues: times faster than Atropos", f"{FASTER:g}", f"{faster:.0f}", bool(faster >= FASTER)


def _goals_of_seconds(rows: Rows) -> Iterator[Goal]:
    everything = values(rows, part="seconds", case="everything")
    if everything.size:
        slowest = float(everything.max())
        what = "seconds of everything, two threads, 1 mm"
        yield what, f"at most {SECONDS:.1f}", f"{slowest:.1f}", slowest <= SECONDS


def _goals_of_outlines(outlines: Rows) -> Iterator[Goal]:
    if outlines:
        wrong, right = shares(outlines)
        yield "wrong outlines withheld", f"{WITHHELD[0]:g} %", f"{wrong:.1f} %", wrong >= WITHHELD[0]
        yield "right outlines withheld", f"at most {WITHHELD[1]:g} %", f"{right:.1f} %", right <= WITHHELD[1]


def values(rows: Rows, **wanted: str) -> NDArray[np.float64]:
    """Return the values of the rows with these columns, in their order; NaN where there is none."""
    return np.array(
        [
            float(row["value"]) if row["value"] not in ("", None) else np.nan
            for row in rows
            if all(row[column] == value for column, value in wanted.items())
        ]
    )


def pair(rows: Rows, **wanted: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return volumes as found and as labelled; what was not found leaves NaN in the first."""
    return values(rows, measure="found_ml", **wanted), values(rows, measure="true_ml", **wanted)


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Pearson's r over what both have."""
    both = np.isfinite(first) & np.isfinite(second)
    return float(np.corrcoef(first[both], second[both])[0, 1])


def cases(rows: Rows, part: str) -> list[str]:
    """Return the cases of a part, in their order."""
    return list(dict.fromkeys(row["case"] for row in rows if row["part"] == part))


def seen_losses(
    rows: Rows, case: str, strength: float, dataset: str | None = None, *, against: str = "true_loss"
) -> NDArray[np.float64]:
    """Return the losses that were seen, per cent, a value a person: the mean of the hippocampi that lost.

    Parameters
    ----------
    rows : sequence of mapping
    case : str
    strength : float
        The loss that was asked for.
    dataset : str, optional
        The only one.
    against : str
        What was truly lost, which seldom is just what was asked for: ``true_loss``, of the label, or
        ``outline_loss``, of the undisturbed outline. What is seen is set in proportion.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if row["part"] == "losses" and row["case"] == case and float(row["strength"]) == strength:
            key = (row["dataset"], row["scan"], row["side"])
            found.setdefault(key, {})[row["measure"]] = float(row["value"] or "nan")
    by_person: dict[tuple[str, str], list[float]] = {}
    for (its_dataset, scan, _), one in found.items():
        if against in one and dataset in (None, its_dataset):
            seen = 100.0 * strength * one["found_loss"] / one[against]
            by_person.setdefault((its_dataset, scan), []).append(seen)
    seen_by_person = np.array([np.mean(sides) for sides in by_person.values()])
    return seen_by_person[np.isfinite(seen_by_person)]


def retest_pct(rows: Rows, measure: str) -> NDArray[np.float64]:
    """Return by how much two scans of one person differ, per cent of their mean; a value a pair."""
    own = [row for row in rows if row["part"] == "labelled" and row["dataset"] == MANUAL]
    apart = []
    for first, second in RESCANS:
        a, b = (values(own, scan=scan, measure=measure) for scan in (first, second))
        if a.size and b.size:
            apart.append(200.0 * abs(a[0] - b[0]) / (a[0] + b[0]))
    return np.array(apart)


def crops_section(rows: Rows) -> list[str]:
    """Return what is said of the held-out crops."""
    dice = values(rows, measure="dice")
    found, true = pair(rows)
    error, r = 100.0 * (found / true - 1.0), correlation(found, true)
    return [
        "## Hand-drawn crops that no training saw",
        "",
        "| crops | Dice, mean (SD) | lowest | volume, mean (SD) difference, % | r of the volumes |",
        "|---|---|---|---|---|",
        f"| {len(dice)} | {_mean_sd(dice, 3)} | {dice.min():.3f} | {_mean_sd(error, 1, sign='+')} | {r:.3f} |",
    ]


def labelled_section(rows: Rows) -> list[str]:
    """Return what is said of the heads with labels."""
    lines = [
        "## Against labels",
        "",
        "Labels of OASIS were drawn by hand, the others are those of a multi-atlas segmentation, MUSE, which has its",
        "own errors. Whole brains: MUSE's labels together against the brain mask, which holds the fluid around the",
        "brain as well.",
        "",
        "| heads | structure | found | Dice, mean (lowest) | volume, mean (SD) difference, % | r |",
        "|---|---|---|---|---|---|",
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        name = NAMES.get(dataset, dataset)
        for structure in ("hippocampus", "ventricle"):
            for title, side in (
                (f"{structure}, both sides", {}),
                *((f"{s} {structure}", {"side": s}) for s in SIDES),
            ):
                found, true = pair(own, case=structure, **side)
                dice = values(own, case=structure, measure="dice", **side)
                overlap = f"{dice.mean():.3f} ({dice.min():.3f})" if dice.size else ""
                error = 100.0 * (found / true - 1.0)
                there = int(np.isfinite(found).sum())
                if structure == "hippocampus":
                    there -= int(values(own, case=structure, measure="withheld", **side).sum())
                lines.append(
                    f"| {name} | {title} | {there} of {len(true)} | {overlap} | {_mean_sd(error, 1, sign='+')} | "
                    f"{correlation(found, true):.3f} |"
                )
        if dataset != MANUAL:
            found, true = values(own, measure="intracranial_ml"), values(own, measure="intracranial_true_ml")
            error = 100.0 * (found / true - 1.0)
            lines.append(
                f"| {name} | whole brain | {len(found)} of {len(true)} | | {_mean_sd(error, 1, sign='+')} | "
                f"{correlation(found, true):.3f} |"
            )
    lines += [
        "",
        "Two scans of one person, two people of OASIS: difference in per cent of the mean.",
        "",
        "| volume | first | second | mean |",
        "|---|---|---|---|",
    ]
    for volume in VOLUMES:
        apart = retest_pct(rows, f"{volume}_ml")
        if apart.size:
            shown = " | ".join(f"{one:.1f}" for one in apart)
            lines.append(f"| {volume.replace('_', ' ')} | {shown} | {apart.mean():.1f} |")
    return lines


def losses_section(rows: Rows) -> list[str]:
    """Return what is said of known losses."""
    strengths = sorted({float(row["strength"]) for row in rows})
    lines = [
        "## Known losses of a hippocampus",
        "",
        "What is seen of a loss that `hippocampal_loss.py` made in the labelled hippocampus of a bias-corrected head,",
        "per cent, mean (SD) over people. *Thinner*: tissue flows towards its curved centre line, fading over 12 mm",
        "around it; *smaller*: towards its centre; *fluid*: what is lost becomes fluid and nothing moves. The truth is",
        "the label's volume after the same change. The network and whoever drew the labels do not agree where a",
        "hippocampus ends, and what becomes fluid outside of its outline it cannot miss: *of the outline* sets what is",
        "seen against what its own undisturbed outline lost. The last column: by how much the other hippocampus seemed",
        "to lose when one lost, at most.",
        "",
        "| loss | heads | " + " | ".join(f"{100 * s:.0f} %" for s in strengths) + " | other side |",
        "|---|---|" + "---|" * (len(strengths) + 1),
    ]
    for case in cases(rows, "losses"):
        for dataset in (None, *dict.fromkeys(row["dataset"] for row in rows)):
            own = [row for row in rows if row["case"] == case and dataset in (None, row["dataset"])]
            spared = np.abs(values(own, measure="spared_loss"))
            other = f"{np.nanmax(spared):.1f}" if np.isfinite(spared).any() else ""
            heads = "all" if dataset is None else NAMES.get(dataset, dataset)
            for against in ("true_loss", "outline_loss"):
                if values(own, measure=against).size:
                    name = case if against == "true_loss" else f"{case}, of the outline"
                    seen = (seen_losses(rows, case, s, dataset, against=against) for s in strengths)
                    lines.append(
                        f"| {name} | {heads} | {' | '.join(_mean_sd(s, 1) for s in seen)} | {other} |"
                    )
    return lines


def robustness_section(rows: Rows) -> list[str]:
    """Return what is said of the same heads under changes that leave the brain as it is."""
    groups = {
        "hippocampi": ("hippocampus_left", "hippocampus_right"),
        "ventricles": ("ventricle_left", "ventricle_right"),
        "grey matter": ("grey_matter",),
        "white matter": ("white_matter",),
        "fluid": ("csf",),
        "intracranial": ("intracranial",),
    }
    usual = _by_volume([row for row in rows if row["case"] == "as it is"])
    scans = len({(row["dataset"], row["scan"]) for row in rows})
    lines = [
        "## The same heads, changed",
        "",
        f"{scans} heads of four datasets, whole and stripped, through the whole chain as they are and changed: mean of",
        "the absolute difference from the head as it is, per cent, and in brackets its mean with sign. Hippocampi that",
        "were withheld are counted and left out.",
        "",
        "| change | | heads | " + " | ".join(groups) + " | withheld |",
        "|---|---|---|" + "---|" * (len(groups) + 1),
    ]
    for case, strength in dict.fromkeys((row["case"], row["strength"]) for row in rows):
        if case == "as it is":
            continue
        own = [row for row in rows if (row["case"], row["strength"]) == (case, strength)]
        changed = _by_volume(own)
        shown = []
        for names in groups.values():
            apart = [
                100.0 * (value / usual[key] - 1.0)
                for key, value in changed.items()
                if key[2] in names and key in usual
            ]
            finite = np.array(apart)[np.isfinite(apart)]
            shown.append(f"{np.abs(finite).mean():.1f} ({finite.mean():+.1f})" if finite.size else "")
        withheld = sum(
            not np.isfinite(value)
            for key, value in changed.items()
            if key[2] in groups["hippocampi"] and np.isfinite(usual[key])
        )
        heads = len({(row["dataset"], row["scan"]) for row in own})
        lines.append(f"| {case} | {strength} | {heads} | {' | '.join(shown)} | {withheld} |")
    return lines


def _by_volume(rows: Rows) -> dict[tuple[str, str, str], float]:
    return {
        (row["dataset"], row["scan"], row["measure"].removesuffix("_ml")): float(row["value"] or "nan")
        for row in rows
    }


def tissues_section(rows: Rows) -> list[str]:
    """Return what is said of the tissues beside Atropos."""
    lines = [
        "## Tissues beside Atropos",
        "",
        "Mean Dice with the manual labels of OASIS, grouped, on the same bias-corrected head and mask; the labels say",
        "nothing of the fluid around the brain, so that fluid is judged fairly only *where something is labelled*.",
        "Atropos as `ants.atropos` runs it by itself, and with the template's tissues as priors (weight 0.25).",
        "Seconds: mean, two threads.",
        "",
        "| | grey matter | white matter | fluid | where labelled: grey matter | white matter | fluid | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases(rows, "tissues"):
        shown = [
            f"{values(rows, case=case, measure=measure, side=tissue).mean():.3f}"
            for measure in ("dice", "dice_labelled")
            for tissue in ("grey matter", "white matter", "fluid")
        ]
        seconds = values(rows, case=case, measure="seconds").mean()
        lines.append(f"| {case} | {' | '.join(shown)} | {seconds:.2f} |")
    return lines


def seconds_section(rows: Rows) -> list[str]:
    """Return what is said of the time."""
    scans = list(dict.fromkeys(f"{row['dataset']}/{row['scan']}" for row in rows))
    lines = [
        "## Seconds",
        "",
        "Heads in voxels of 1 mm, two threads, everything loaded.",
        "",
        "| | " + " | ".join(scans) + " |",
        "|---|" + "---|" * len(scans),
    ]
    for case in cases(rows, "seconds"):
        shown = " | ".join(f"{one:.2f}" for one in values(rows, case=case))
        lines.append(f"| {case} | {shown} |")
    return lines


def _outlines_section(rows: Rows, calibration: Rows) -> list[str]:
    scans = len({(row["dataset"], row["scan"]) for row in rows})
    lines = [
        "## Wrong outlines",
        "",
        f"{scans} heads with labels, undisturbed, harmed and disturbed without harm; none had a part in setting the",
        "bounds. An outline is wrong where its Dice with the label is below 0.6 or its volume is more than 25 % off",
        "that of the undisturbed head; right where its Dice is at most 0.05 below that of the undisturbed head.",
        "",
        *outlines_table(rows),
    ]
    if calibration:
        scans = len({(row["dataset"], row["scan"]) for row in calibration})
        lines += [
            "",
            f"The same of the {scans} heads and crops of the training that the bounds were set by, those without",
            "labels against their own undisturbed outline:",
            "",
            *outlines_table(calibration),
        ]
    return lines


def _mean_sd(found: NDArray[np.float64], digits: int, *, sign: str = "") -> str:
    found = found[np.isfinite(found)]
    if not found.size:
        return ""
    sd = found.std(ddof=1) if len(found) > 1 else 0.0
    return f"{found.mean():{sign}.{digits}f} ({sd:.{digits}f})"
