"""Fit what tells wrong outlines of hippocampi from right ones, and write it into the package.

    python training/hippocampus_quality.py

Reads ``benchmarks/volumes_calibration.csv`` (made by ``benchmarks/volumes.py --parts calibration``: other scans than
those that the benchmark judges) and writes ``preprocessing/hippocampus_quality.json``. The bound is that above which
the given share of right outlines lies, judged in scans that the fit left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainstage.pipeline.files import write_json
from brainstage.preprocessing.hippocampus_quality import FITTED_FILE, features

ROOT: Final = Path(__file__).parents[1]
CASES: Final = ROOT / "benchmarks" / "volumes_calibration.csv"
WRONG_DICE: Final = 0.6
WRONG_VOLUME: Final = 0.25
RIGHT_BELOW: Final = 0.05
"""As in ``benchmarks/outline_failures.py``: what lies between right and wrong is not fitted to."""
FOLDS: Final = 8


def main() -> None:
    """Fit, choose the bound, write, and print what was left out of the fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--right-withheld", type=float, default=0.03, help="share of right outlines above the bound"
    )
    options = parser.parse_args()
    with CASES.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["volume_ml"] and row["dice"]]
    described, wrong, scans = [], [], []
    for row in rows:
        dice, volume_ml = float(row["dice"]), float(row["volume_ml"])
        is_wrong = dice < WRONG_DICE or abs(volume_ml / float(row["undisturbed_ml"]) - 1.0) > WRONG_VOLUME
        if is_wrong or dice >= float(row["undisturbed_dice"]) - RIGHT_BELOW:
            measured = {
                name.removeprefix("quality_"): float(value or 0.0)
                for name, value in row.items()
                if name.startswith("quality_")
            }
            described.append(features(measured, volume_ml))
            wrong.append(is_wrong)
            scans.append(f"{row['dataset']}/{row['scan']}")
    names = list(described[0])
    values, truth = np.array([[one[name] for name in names] for one in described]), np.array(wrong)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    left_out = cross_val_predict(
        model, values, truth, groups=scans, cv=GroupKFold(FOLDS), method="decision_function"
    )
    bound = float(np.quantile(left_out[~truth], 1.0 - options.right_withheld))
    scale, fitted = model.fit(values, truth)[0], model[-1]
    weights = fitted.coef_[0] / scale.scale_
    content = dict(zip(names, weights.tolist(), strict=True)) | {
        "intercept": float(fitted.intercept_[0] - weights @ scale.mean_),
        "bound": bound,
    }
    write_json(
        ROOT / "preprocessing" / FITTED_FILE, {name: float(f"{value:.6g}") for name, value in content.items()}
    )
    print(json.dumps(content, indent=1))
    print(
        f"left out of the fit: {(left_out[truth] > bound).mean():.1%} of {truth.sum()} wrong outlines withheld, "
        f"{(left_out[~truth] > bound).mean():.1%} of {(~truth).sum()} right ones"
    )


if __name__ == "__main__":
    main()
