"""The model card, filled from what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from brainstage.models.choices import Regime
from brainstage.models.metrics import Estimate
from brainstage.models.model_store import StoredModel
from brainstage.models.norms import Norm, ReferenceClass, compare
from brainstage.models.splits import FoldBalance, participant_classes
from brainstage.models.weights import WeightsSource
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_evaluation import ModelEvaluation
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.reporting.markdown import markdown_environment

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
        "weights_warning": weights_warning(model.extractor.source, description.finetune),
        "measures": [name for name in result.network.measures if name != "ece"],
        "chance_sentence": chance_sentence(result.network.measures["balanced_accuracy"], len(model.classes)),
        "best_sentences": best_sentences(result),
        "always_in_set": [
            name for name, quantile in description.conformal.quantiles.items() if quantile is None
        ],
        "balance_sentence": balance_sentence(result.balance),
        "control_columns": result.control_columns,
        "draws": result.random_label_draws,
        "baseline_draws": result.baseline_random_label_draws,
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


def best_sentences(result: ModelEvaluation) -> str:
    """Say which of network, baseline and both together does best, and whether the cohort can tell them apart."""
    return " ".join(
        best_sentence(
            {
                "the network": result.network.measures[measure],
                "the linear baseline": result.baseline.measures[measure],
                "both together": result.combined.measures[measure],
            },
            words,
        )
        for measure, words in (("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"))
    )


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
