"""The model card, filled from what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from brainstage.models.choices import Member, Regime
from brainstage.models.cohort_table import ClassRow, association_warnings
from brainstage.models.conformal import LEVEL
from brainstage.models.metrics import Estimate, Evaluation
from brainstage.models.model_description import (
    CommonDescription,
    ConformalDescription,
    ModelDescription,
    NumberPredictorDescription,
    PredictorDescription,
)
from brainstage.models.model_store import StoredModel
from brainstage.models.norms import Norm, ReferenceClass, compare
from brainstage.models.splits import FoldBalance, participant_classes
from brainstage.models.weights import WeightsSource
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_evaluation import ModelEvaluation
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.reporting.markdown import Markdown, markdown_environment

CLEARLY_BETTER_AUC: Final = 0.05
"""By which a member has to lead the predictor before the card names it instead."""
_USE: Final = "Use, for research, on scans like those of this cohort."
TRAINED_PARTS: Final[Mapping[Regime, str]] = MappingProxyType(
    {
        "frozen": "frozen",
        "head+last": "its last stage trained further in each fold",
        "full": "trained further as a whole in each fold",
    }
)
"""Regime to what the card says about the network."""


def render_card(model: StoredModel, result: ModelEvaluation, cohort: Cohort, options: TrainOptions) -> str:
    """Return ``MODEL_CARD.md``.

    Parameters
    ----------
    options : TrainOptions
        As training was called.
    """
    description = model.description
    participants_of = Counter(participant_classes(cohort.labels, cohort.participants).values())
    context: dict[str, Any] = {
        "model": description,
        "options": options,
        "result": result,
        "scans": len(cohort.scans),
        "participants": len(set(cohort.participants)),
        "participants_of": participants_of,
        "left_out": cohort.left_out,
        "weights_warning": Markdown(weights_warning(model.extractor.source, description.finetune)),
        "measures": [name for name in result.predictor.measures if name != "ece"],
        "chance_sentence": chance_sentence(
            result.predictor.measures["balanced_accuracy"], len(model.classes)
        ),
        "predictor_sentences": predictor_sentences(description.predictor, description.members),
        "recommendation": recommendation(description, result),
        "best_sentences": best_sentences(result),
        "levels": level_sentence(description.conformal),
        "confusion": confusion_rows(result.predictor, model.classes),
        "people": [people_row(row) for row in sorted(result.table.classes, key=_place_in(model.classes))],
        "associations": association_warnings(result.table),
        "harmonised": harmonised_sentence(description, cohort),
        "balance_sentence": balance_sentence(result.balance),
        "control_columns": result.control_columns,
        "draws": result.random_label_draws,
        "trained_part": TRAINED_PARTS[description.finetune],
        "cell": cell,
        "reference": reference_rows(description.reference),
    }
    return markdown_environment().get_template("model_card.md.j2").render(context)


def reference_rows(reference: ReferenceClass | None) -> list[tuple[Norm, str]]:
    """Return the richest norm of each measure and, in words, what is usual for somebody in the middle."""
    rows: dict[str, tuple[Norm, str]] = {}
    for norm in reference.norms if reference else ():
        age = None if norm.ages is None else round(sum(norm.ages) / 2)
        sex = "F" if "sex" in norm.by else None
        (found,) = compare(ReferenceClass(label="", norms=(norm,)), {norm.measure: 1.0}, age=age, sex=sex)
        whom = ", ".join(
            filter(None, (f"at {age} years" if age is not None else "", "female" if sex else ""))
        )
        unit, digits = ("ml", 4) if norm.measure.endswith("_ml") else ("%", 2)
        usual = f"{found.low:.{digits}g} to {found.high:.{digits}g} {unit}" + (f" ({whom})" if whom else "")
        rows.setdefault(norm.measure, (norm, usual))
    return list(rows.values())


def cell(estimate: Estimate) -> str:
    """Return an estimate for a table.

    >>> cell(Estimate(value=0.5, low=0.4, high=0.61))
    '0.50 (0.40 to 0.61)'
    """
    if estimate.value != estimate.value:
        return "not defined"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def weights_warning(source: WeightsSource, finetune: Regime) -> str:
    """Say in words what is to be kept in mind about weights that are random or of unknown origin; nothing of others.

    >>> source = WeightsSource(kind="path", architecture="resnet10", sha256="0", words="")
    >>> weights_warning(source, "frozen").partition(" Their")[0]
    '**The origin of the weights is not verified.**'
    """
    if source.pretrained is False:
        begun = (
            "The network is a fixed random filter bank, and only the head was trained."
            if finetune == "frozen"
            else "The network began as a random filter bank."
        )
        advice = "Use pretrained weights for anything but trying the program out."
        return f"**The weights are random: not pretrained.** {begun} {advice}"
    if source.origin == "unknown":
        return (
            "**The origin of the weights is not verified.** Their sha256 is none that this program knows: what they "
            "were trained on, and whether participants of this cohort were among it, is not known."
        )
    return ""


def balance_sentence(balance: FoldBalance) -> str:
    """Say in words how alike the folds are in age and sex.

    >>> balance_sentence(FoldBalance(age_difference=0.1, sex_spread=None)).partition(": ")[2]
    'the mean age of a fold is at most 0.10 standard deviations from that of the rest; sex is not known.'
    """
    if balance.age_difference is None and balance.sex_spread is None:
        return "Age and sex are not known, so the folds could not be balanced for them."
    age, sex = "age is not known", "sex is not known"
    if balance.age_difference is not None:
        deviations = f"{balance.age_difference:.2f} standard deviations"
        age = f"the mean age of a fold is at most {deviations} from that of the rest"
    if balance.sex_spread is not None:
        points = f"{100 * balance.sex_spread:.0f} percentage points"
        sex = f"the proportion of a sex differs by at most {points} between two folds"
    return f"Folds were balanced for age and sex as far as they are known: {age}; {sex}."


def chance_sentence(balanced_accuracy: Estimate, classes: int) -> str:
    """Say in words whether the interval of the balanced accuracy lies above chance."""
    if balanced_accuracy.low > 1 / classes:
        return "The interval lies above chance."
    return (
        "The interval does not lie above chance: there is no evidence that the model tells the classes apart."
    )


def people_row(row: ClassRow) -> tuple[str, int, int, str, str, str]:
    """Return a class with its participants, scans, ages, sexes and sites, for a table."""

    def counted(counts: Mapping[str, int], unknown: int) -> str:
        known = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return ", ".join(filter(None, (known, f"{unknown} not known" if unknown else "")))

    age = "not known" if row.age_mean is None else f"{row.age_mean:.1f}"
    age += "" if row.age_sd is None else f" (SD {row.age_sd:.1f})"
    return (
        row.name,
        row.participants,
        row.scans,
        age,
        counted(row.sexes, row.sex_unknown),
        counted(row.sites, row.site_unknown),
    )


def harmonised_sentence(description: CommonDescription, cohort: Cohort) -> str:
    """Say which sites are harmonised, and which have too few scans for it; empty without harmonisation."""
    if not description.harmonised_sites:
        return ""
    known = {site for fold in description.harmonised_sites for sites in fold.values() for site in sites}
    others = sorted({scan.row.site or "not known" for scan in cohort.scans} - known)
    without = (
        f" Too few scans to be compared by: {', '.join(others)}; these are left as they are."
        if others
        else ""
    )
    return (
        f"Location and scale of the values are harmonised between sites, within each training fold: "
        f"{', '.join(sorted(known)) or 'none'}.{without} A scan of a site that is not known to the model is left as it "
        "is, and its prediction flagged (`site_unknown`)."
    )


def _place_in(classes: Sequence[str]) -> Callable[[ClassRow], int]:
    return lambda row: classes.index(row.name)


def best_sentences(result: ModelEvaluation) -> str:
    """Say whether the predictor or a member does best, and whether the cohort can tell them apart."""
    return " ".join(
        best_sentence(
            {
                "the predictor": result.predictor.measures[measure],
                **{f"{name} alone": found.measures[measure] for name, found in result.members.items()},
            },
            words,
        )
        for measure, words in (("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"))
    )


def predictor_sentences(
    predictor: PredictorDescription | NumberPredictorDescription, members: Sequence[Member]
) -> list[str]:
    """Say whose probabilities, or values, are published, and which members add nothing to them."""
    of_classes = isinstance(predictor, PredictorDescription)
    one, several = ("probability", "probabilities") if of_classes else ("value", "values")
    folds = len(predictor.folds)
    chosen = Counter(fold.chosen for fold in predictor.folds)
    named = ", ".join(
        f"{name} in {'all' if count == folds else f'{count} of'} {folds} folds"
        for name, count in chosen.most_common()
    )
    how = (
        "each fold takes the stack, unless its own training scans show a member to be better; the scans that it leaves "
        "out have no part in it"
        if predictor.choice == "auto"
        else f"as asked for with --predictor {predictor.choice}"
    )
    weights = {name: sum(fold.weights.get(name, 0.0) for fold in predictor.folds) / folds for name in members}
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
    found = [
        f"The published {several} are those of {named} ({how}).",
        f"Weights of the members, mean of the folds: {listed}.",
    ]
    unused = [name for name, weight in weights.items() if not weight]
    if "network" in unused:
        why = (
            "its training scans did not show that it adds anything to the simpler members"
            if predictor.choice in ("auto", "stack")
            else f"--predictor {predictor.choice} was asked for"
        )
        found.append(f"The network has no weight: {why}. No published {one} rests on it.")
    return found


def recommendation(description: ModelDescription, result: ModelEvaluation) -> str:
    """Say whether the model should be used: as it is, as one of its members, or not.

    Its own numbers decide: the interval of the balanced accuracy against chance, then the AUC of the best member, which
    has to lead clearly, and with its whole interval, before it is named instead.
    """
    predictor, published = description.predictor, result.predictor.measures["auc"].value
    members = {name: result.members[name].measures["auc"] for name in predictor.compared_members}
    if not predictor.above_chance and not members:
        return "Do not use: not above chance. Neither the predictor nor any member tells the classes apart out of fold."
    best = max(members, key=lambda name: members[name].value, default=None)
    if best is None:
        return _USE
    alone = members[best]
    leads = alone.value - published > CLEARLY_BETTER_AUC and alone.low > published
    if leads or not predictor.above_chance:
        return (
            f"Use the member {best}: train again with --predictor {best}. Out of fold its AUC is {alone.value:.2f}, "
            f"and {published:.2f} that of the published probabilities."
        )
    return _USE


def level_sentence(conformal: ConformalDescription) -> str:
    """Say at which level the prediction sets are, and for which class too few scans forced a lower one.

    >>> scores = {"AD": ((0.5, 0, 0),) * 6, "CN": ((0.5, 0, 0),) * 20}
    >>> level_sentence(ConformalDescription(levels={"AD": 0.8, "CN": 0.9}, scores=scores))
    '80 % for AD (6 scans), 90 % for CN'
    """
    levels = conformal.levels
    if set(levels.values()) == {LEVEL}:
        return f"{LEVEL:.0%}".replace("%", " %")
    return ", ".join(
        f"{round(100 * level)} % for {name}"
        + (f" ({len(conformal.scores[name])} scans)" if level < LEVEL else "")
        for name, level in levels.items()
    )


def confusion_rows(evaluation: Evaluation, classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return each true class with the counts of the predicted ones."""
    return [(name, [int(n) for n in row]) for name, row in zip(classes, evaluation.confusion, strict=True)]


def best_sentence(estimates: Mapping[str, Estimate], words: str) -> str:
    """Say whose estimate is the highest, and whose intervals overlap with its own.

    >>> low, high = Estimate(value=0.6, low=0.5, high=0.7), Estimate(value=0.9, low=0.8, high=1.0)
    >>> best_sentence({"a": low, "b": high}, "AUC")
    'The highest AUC is that of b, 0.90; its interval lies apart from that of a.'
    """
    defined = {name: e for name, e in estimates.items() if not math.isnan(e.value)}
    if not defined:
        return f"No {words} is defined."
    best = max(defined, key=lambda name: defined[name].value)
    others = [name for name in defined if name != best]
    overlapping = [name for name in others if defined[name].high >= defined[best].low]
    tied = [name for name in others if defined[name].value == defined[best].value]
    shared = f", shared with that of {_listed(tied)}" if tied else ""
    head = f"The highest {words} is that of {best}, {defined[best].value:.2f}{shared}"
    if not overlapping:
        return f"{head}; its interval lies apart from that of {_listed(others)}."
    return f"{head}; its interval overlaps that of {_listed(overlapping)}: not told apart by this cohort."


def _listed(names: Sequence[str]) -> str:
    return " and that of ".join(names)
