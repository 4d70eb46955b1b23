"""What sites do to a model, with and without a class that goes together with them.

Run it::

    .venv/bin/python benchmarks/sites.py [--cohorts 6] [--scans 300]

Simulated cohorts of several sites, two classes. Each site moves every feature of every member by a number of its own
(standard deviation 1 over features and sites, in units of the spread between people) and stretches it by 15 %. Without
an association each site has as many patients as controls; with one of 2:1 half of the sites have twice as many
patients, the others twice as many controls. Trained as ``brainstage train`` does, by participant and one site left out
at a time, as it is and with ``--harmonise site``. It writes its table to ``benchmarks/sites.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from learning import (
    CLASSES,
    FOLDS,
    CohortInMemory,
    Simulated,
    arrays_of,
    cohort_of,
    extractor,
    simulated,
)
from numpy.typing import NDArray

from brainstage.models.choices import FOLDS_BY, HARMONISE, FoldsBy, Harmonise
from brainstage.models.metrics import auc
from brainstage.models.splits import fold_of_scans, fold_of_sites
from brainstage.workflows.learning.fitting import fit
from brainstage.workflows.learning.training_options import TrainOptions

FOLDER: Final = Path(__file__).parent
SITES: Final = ("A", "B", "C", "D", "E", "F")
EFFECT: Final = 1.6
"""Distance of the classes; see ``learning.py``."""
LOCATION_SD: Final = 1.0
SCALE_SD: Final = 0.15
ASSOCIATIONS: Final[Mapping[str, float]] = {"none": 1.0, "2:1": 2.0}
"""Odds of a patient at half of the sites, and of a control at the others."""
WANTED_LOSS: Final = 0.03


@dataclass(frozen=True, kw_only=True)
class Reached:
    """AUC of the published probabilities out of fold: over all scans, and the mean within sites."""

    over_all: float
    within_sites: float


def at_sites(scans: Simulated, odds: float, seed: int) -> tuple[Simulated, list[str]]:
    """Give each scan a site, and what the site does to it."""
    generator = np.random.default_rng(seed)
    of_class = {0: np.ones(len(SITES)), 1: np.ones(len(SITES))}
    for place in range(len(SITES)):
        of_class[place % 2][place] = odds
    place = np.array(
        [generator.choice(len(SITES), p=of_class[t] / of_class[t].sum()) for t in scans.targets.tolist()]
    )

    def moved(values: NDArray[np.float32]) -> NDArray[np.float32]:
        spread = values.std(axis=0)
        shift = LOCATION_SD * generator.standard_normal((len(SITES), values.shape[1])) * spread
        stretch = np.exp(SCALE_SD * generator.standard_normal((len(SITES), values.shape[1])))
        centre = values.mean(axis=0)
        return (centre + (values - centre) * stretch[place] + shift[place]).astype(np.float32)

    names = list(scans.measures[0])
    logarithms = np.log([[one[name] for name in names] for one in scans.measures]).astype(np.float32)
    measures = tuple(
        {name: float(value) for name, value in zip(names, row, strict=True)}
        for row in np.exp(moved(logarithms))
    )
    changed = replace(scans, features=moved(scans.features), values=moved(scans.values), measures=measures)
    return changed, [SITES[p] for p in place]


def reached(scans: Simulated, sites: list[str], by: FoldsBy, harmonise: Harmonise, seed: int) -> Reached:
    """Train, and measure what is published out of fold."""
    cohort = cohort_with(scans, sites)
    folds = (
        fold_of_sites(sites, cohort.labels, cohort.participants)[0]
        if by == "site"
        else fold_of_scans(cohort.labels, cohort.participants, folds=FOLDS, seed=seed, about=cohort.about)
    )
    options = TrainOptions(weights="random", seed=seed, folds_by=by, harmonise=harmonise)
    _, found, _ = fit(extractor(), arrays_of(scans), cohort, folds, options)
    log_p = found.predicted.log_probabilities
    score, ill = log_p[:, 1] - log_p[:, 0], found.targets == 1

    def area(chosen: NDArray[np.bool_]) -> float:
        return float(auc(score[chosen], ill[chosen], np.ones((1, int(chosen.sum()))))[0])

    of_site = np.array(sites)
    return Reached(
        over_all=area(np.ones(len(ill), dtype=np.bool_)),
        within_sites=float(np.mean([area(of_site == site) for site in SITES])),
    )


def cohort_with(scans: Simulated, sites: list[str]) -> CohortInMemory:
    """Return the cohort of some scans, with their sites."""
    cohort = cohort_of(scans, CLASSES[2])
    placed = tuple(
        replace(scan, row=replace(scan.row, site=site))
        for scan, site in zip(cohort.scans, sites, strict=True)
    )
    return replace(cohort, scans=placed, columns=("age", "sex", "site"))


def all_reached(cohorts: int, count: int) -> Iterator[tuple[tuple[str, str, str], Reached]]:
    """Yield association, folds and harmonisation, and what was reached, for each cohort."""
    for seed in range(cohorts):
        scans = simulated(count, 2, EFFECT, seed)
        for association, odds in ASSOCIATIONS.items():
            changed, sites = at_sites(scans, odds, seed)
            for by, harmonise in product(FOLDS_BY, HARMONISE):
                key = association, by, harmonise
                yield key, reached(changed, sites, by, harmonise, seed)
        by_itself = reached(scans, sites, "participant", "none", seed)
        yield ("no site effect", "participant", "none"), by_itself


def table_of(found: Mapping[tuple[str, str, str], list[Reached]], count: int) -> str:
    """Return the report."""
    cohorts = len(next(iter(found.values())))
    lines = [
        "# Sites",
        "",
        (
            f"Made by `benchmarks/sites.py`: {cohorts} simulated cohorts of {count} scans of two classes at "
            f"{len(SITES)} sites. AUC of the published probabilities out of fold, mean over the cohorts, "
            "in brackets the lowest."
        ),
        "",
        "| site and class | folds by | harmonised | over all scans | within sites |",
        "|---|---|---|---|---|",
    ]
    means = {}
    for key, values in found.items():
        cells = []
        for name in ("over_all", "within_sites"):
            numbers = [getattr(one, name) for one in values]
            means[key, name] = float(np.mean(numbers))
            cells.append(f"{np.mean(numbers):.3f} ({min(numbers):.3f})")
        association = key[0] if key[0] in ("none", "no site effect") else f"association {key[0]}"
        lines.append(f"| {association} | {key[1]} | {key[2]} | {' | '.join(cells)} |")
    losses = {
        (harmonise, name): means[("none", "site", harmonise), name] - means[("2:1", "site", harmonise), name]
        for harmonise in HARMONISE
        for name in ("over_all", "within_sites")
    }
    outcome = "reached" if losses["site", "over_all"] <= WANTED_LOSS else "missed"
    lines += [
        "",
        (
            f"What an association of 2:1 costs where one site is left out: {losses['site', 'over_all']:.3f} over all "
            f"scans and {losses['site', 'within_sites']:.3f} within sites with harmonisation, "
            f"{losses['none', 'over_all']:.3f} and {losses['none', 'within_sites']:.3f} without. Wanted with it: at "
            f"most {WANTED_LOSS} over all: {outcome}."
        ),
        "",
        (
            "A site that was left out keeps its own location, whatever was harmonised in training: scans of several "
            "such sites lie apart by the site, which is why the AUC over all scans is below the one within sites."
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cohorts", type=int, default=6)
    parser.add_argument("--scans", type=int, default=300)
    options = parser.parse_args()
    found: dict[tuple[str, str, str], list[Reached]] = {}
    for key, one in all_reached(options.cohorts, options.scans):
        found.setdefault(key, []).append(one)
        print(*key, f"{one.over_all:.3f} {one.within_sites:.3f}", flush=True)
    text = table_of(found, options.scans)
    print(text)
    (FOLDER / "sites.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
