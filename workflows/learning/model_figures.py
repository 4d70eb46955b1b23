"""Pictures of an evaluation: confusion matrix, ROC and precision-recall curves, calibration, predicted numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from brainstage.models.metrics import ECE_BINS, Evaluation

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's palette, told apart with every kind of colour vision."""
_SIZE_INCHES: Final = (4.6, 4.2)
_DPI: Final = 130


def confusion_figure(
    evaluation: Evaluation, classes: Sequence[str], title: str = "Cross-validated predictions"
) -> bytes:
    """Return a PNG of the confusion matrix: counts, shaded by the part of each true class."""
    counts = evaluation.confusion
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    shades = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            ink = "white" if parts[row, column] > 0.55 else "black"
            text = f"{counts[row, column]}\n{parts[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(shades, ax=axes, shrink=0.8, label="part of the true class")
    return _png(figure)


def roc_figure(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    evaluation: Evaluation,
    classes: Sequence[str],
) -> bytes:
    """Return a PNG of each class's ROC curve against the rest."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for index, name in _told_apart(targets, classes):
        false_rate, true_rate, _ = roc_curve(targets == index, probabilities[:, index])
        area = evaluation.measures[f"auc_{name}"]
        label = f"{name}: AUC {area.value:.2f} ({area.low:.2f} to {area.high:.2f})"
        axes.plot(false_rate, true_rate, color=COLOURS[index % len(COLOURS)], label=label)
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", title="One class against the rest", aspect="equal"
    )
    axes.legend(loc="lower right", fontsize="small")
    return _png(figure)


def precision_recall_figure(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    evaluation: Evaluation,
    classes: Sequence[str],
) -> bytes:
    """Return a PNG of each class's precision-recall curve; the dashed line is what scores without information give."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for index, name in _told_apart(targets, classes):
        precision, recall, _ = precision_recall_curve(targets == index, probabilities[:, index])
        area = evaluation.measures[f"average_precision_{name}"]
        label = f"{name}: AP {area.value:.2f} ({area.low:.2f} to {area.high:.2f})"
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(recall, precision, color=colour, label=label, drawstyle="steps-post")
        axes.axhline(float((targets == index).mean()), color=colour, linestyle="--", linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision", aspect="equal")
    axes.set_title("One class against the rest")
    axes.legend(loc="lower left", fontsize="small")
    return _png(figure)


def risk_coverage_figure(risk: Sequence[tuple[float, float]]) -> bytes:
    """Return a PNG of how often predictions are wrong among the surest fraction of the scans."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    coverage, wrong = zip(*risk, strict=True)
    axes.plot(coverage, wrong, color=COLOURS[0], marker="o")
    axes.set(
        xlim=(0, 1.02),
        ylim=(0, max(0.05, 1.1 * max(wrong))),
        xlabel="fraction of the scans, the surest first",
        ylabel="fraction of these predicted wrongly",
        title="Risk and coverage",
    )
    return _png(figure)


def numbers_figure(
    values: NDArray[np.float64],
    targets: NDArray[np.float64],
    intervals: NDArray[np.float64],
    column: str,
    title: str = "Cross-validated predictions",
) -> bytes:
    """Return a PNG of predicted against true numbers, with their intervals, (N, 2); equal ones lie on the line."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    ends = [float(min(values.min(), targets.min())), float(max(values.max(), targets.max()))]
    axes.plot(ends, ends, color="0.7", linestyle="--", linewidth=1)
    axes.vlines(targets, *intervals.T, color=COLOURS[5], linewidth=0.8, alpha=0.6)
    axes.scatter(targets, values, s=14, color=COLOURS[0])
    axes.set(xlabel=f"true {column}", ylabel=f"predicted {column}", title=title)
    return _png(figure)


def calibration_figure(
    before: NDArray[np.float64], after: NDArray[np.float64], targets: NDArray[np.int64]
) -> bytes:
    """Return a PNG of accuracy against confidence, without and with temperature scaling."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for probabilities, colour, label in (
        (before, COLOURS[1], "uncalibrated"),
        (after, COLOURS[0], "calibrated"),
    ):
        confidence = probabilities.max(axis=1)
        correct = probabilities.argmax(axis=1) == targets
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        filled = np.unique(bins)
        x = [float(confidence[bins == index].mean()) for index in filled]
        y = [float(correct[bins == index].mean()) for index in filled]
        sizes = [12 + 120 * float((bins == index).mean()) for index in filled]
        axes.plot(x, y, color=colour, linewidth=1)
        axes.scatter(x, y, s=sizes, color=colour, label=label)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title("Calibration (area: number of scans)")
    axes.legend(loc="upper left", fontsize="small")
    return _png(figure)


def _told_apart(targets: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[int, str]]:
    """Return number and name of the classes that have scans and are not all there is: only they have a curve."""
    return [(c, name) for c, name in enumerate(classes) if 0 < int((targets == c).sum()) < len(targets)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
