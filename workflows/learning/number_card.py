"""The card of a model of a number, filled from what was measured."""

from __future__ import annotations

from typing import Any, Final

from brainstage.models.metrics import Estimate
from brainstage.models.model_description import NumberDescription
from brainstage.models.model_store import NumberModel
from brainstage.models.number_metrics import NumberEvaluation
from brainstage.models.number_table import number_association_warnings
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_card import (
    balance_sentence,
    best_sentence,
    cell,
    harmonised_sentence,
    predictor_sentences,
    weights_warning,
)
from brainstage.workflows.learning.number_evaluation import NumberModelEvaluation
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.reporting.markdown import Markdown, markdown_environment

CLEARLY_BETTER_R2: Final = 0.05
"""By which a member has to lead the predictor before the card names it instead."""
MEASURE_WORDS: Final = (
    ("mae", "mean absolute error"),
    ("rmse", "root mean square error"),
    ("r2", "R2"),
    ("correlation", "correlation"),
    ("mean_error", "mean error, predicted minus true"),
    ("error_by_target", "change of the error with the true value"),
)
"""Measure to its words, in the order of the table."""


def render_number_card(
    model: NumberModel, result: NumberModelEvaluation, cohort: Cohort, options: TrainOptions
) -> str:
    """Return ``MODEL_CARD.md``.

    Parameters
    ----------
    options : TrainOptions
        As training was called.
    """
    description = model.description
    context: dict[str, Any] = {
        "model": description,
        "column": model.column,
        "options": options,
        "result": result,
        "scans": len(cohort.scans),
        "participants": len(set(cohort.participants)),
        "left_out": cohort.left_out,
        "weights_warning": Markdown(weights_warning(model.extractor.source, description.finetune)),
        "measures": MEASURE_WORDS,
        "predictor_sentences": predictor_sentences(description.predictor, description.members),
        "recommendation": number_recommendation(description, result),
        "best_sentence": best_sentence(
            {
                "the predictor": result.predictor.measures["r2"],
                **{f"{name} alone": found.measures["r2"] for name, found in result.members.items()},
            },
            "R2",
        ),
        "bias": bias_sentence(result.predictor, model.column),
        "associations": number_association_warnings(result.table, model.column),
        "harmonised": harmonised_sentence(description, cohort),
        "balance_sentence": balance_sentence(result.balance),
        "control_columns": result.control_columns,
        "draws": result.random_target_draws,
        "cell": cell,
        "percent": percent_cell,
    }
    return markdown_environment().get_template("number_card.md.j2").render(context)


def number_recommendation(description: NumberDescription, result: NumberModelEvaluation) -> str:
    """Say whether the model should be used: as it is, as one of its members, or not.

    Its own numbers decide: the interval of R2 against 0, then the R2 of the best member, which has to lead clearly, and
    with its whole interval, before it is named instead.
    """
    above, published = description.predictor.above_chance, result.predictor.measures["r2"].value
    members = {name: one.measures["r2"] for name, one in result.members.items() if one.above_chance}
    if not above and not members:
        return (
            "Do not use: not above chance. Neither the predictor nor any member is better out of fold than saying the "
            "mean to everybody."
        )
    best = max(members, key=lambda name: members[name].value, default=None)
    if best is not None:
        alone = members[best]
        leads = alone.value - published > CLEARLY_BETTER_R2 and alone.low > published
        if leads or not above:
            return (
                f"Use the member {best}: train again with --predictor {best}. Out of fold its R2 is {alone.value:.2f}, "
                f"and {published:.2f} that of the published values."
            )
    return "Use, for research, on scans like those of this cohort."


def bias_sentence(measured: NumberEvaluation, column: str) -> str:
    """Say how the error changes with the true value: predictions lie nearer to the mean than the truth.

    >>> slope = Estimate(value=-0.4, low=-0.5, high=-0.3)
    >>> bias_sentence(NumberEvaluation(measures={"error_by_target": slope}, scans=60), "age").partition(":")[0]
    'Predictions are drawn to the mean of the cohort'
    """
    slope = measured.measures["error_by_target"]
    if not slope.high < 0:
        return f"The error was not shown to change with the true {column} ({cell(slope)} for each unit)."
    sentence = (
        f"Predictions are drawn to the mean of the cohort: for each unit that the true {column} is higher, predicted "
        f"minus true is {-slope.value:.2f} lower ({cell(slope)}). Every honest prediction from noisy images does so; "
        "it is not corrected for."
    )
    if column != "age":
        return sentence
    return (
        f"{sentence} So the gap between predicted and known age is too high for the young and too low for the old by "
        "construction, and gaps must not be compared between people of different ages without taking age into account."
    )


def percent_cell(estimate: Estimate) -> str:
    """Return a fraction for a table, in per cent.

    >>> percent_cell(Estimate(value=0.9, low=0.8, high=0.95))
    '90 % (80 to 95 %)'
    """
    return f"{100 * estimate.value:.0f} % ({100 * estimate.low:.0f} to {100 * estimate.high:.0f} %)"
