"""Who is in each class: age, sex and site, and how far each of them goes together with the class.

What differs between the classes beside the disease can be learnt in its place, and cross-validation within the same
cohort does not notice it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from brainstage.models.covariates import text_of
from brainstage.models.splits import participant_classes, people

Variable = Literal["site", "age", "sex"]

NOTABLE_STRENGTH: Final = 0.1
"""What Cohen calls a small effect (1988, Statistical Power Analysis, ISBN 978-0-8058-0283-2); in a large cohort much
less than it is significant."""
NOTABLE_P: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The participants of one class.

    Attributes
    ----------
    name : str
    participants, scans : int
        A participant belongs to the class of most of their scans, and all their scans are counted with them.
    age_mean, age_sd : float or None
        Years, over participants whose age is known; None where there are too few.
    age_unknown : int
    sexes, sites : mapping
        Participants by sex and by site, where known, in the order of the names; every class has the same names.
    sex_unknown, site_unknown : int
    """

    name: str
    participants: int
    scans: int
    age_mean: float | None
    age_sd: float | None
    age_unknown: int
    sexes: Mapping[str, int]
    sex_unknown: int
    sites: Mapping[str, int]
    site_unknown: int


@dataclass(frozen=True, kw_only=True)
class Association:
    """How far a variable goes together with the class.

    Attributes
    ----------
    variable : {'site', 'age', 'sex'}
    participants : int
        Whose value is known.
    strength : float or None
        0 to 1: for site and sex Cramér's V without its bias, for age the correlation ratio of its ranks without its
        bias. None where fewer than two classes or two values are known.
    p : float or None
        For site and sex of the chi-squared test without a correction, for age of the Kruskal-Wallis test.
    """

    variable: Variable
    participants: int
    strength: float | None
    p: float | None

    @property
    def notable(self) -> bool:
        """Whether a model could make use of it, and it is more than chance."""
        return (
            self.strength is not None
            and self.p is not None
            and self.strength >= NOTABLE_STRENGTH
            and self.p < NOTABLE_P
        )


@dataclass(frozen=True, kw_only=True)
class CohortTable:
    """The classes in the order of their names, and the associations of site, age and sex with them."""

    classes: tuple[ClassRow, ...]
    associations: tuple[Association, ...]


def cohort_table(
    labels: Sequence[str],
    participants: Sequence[str],
    *,
    ages: Sequence[float | None],
    sexes: Sequence[str | None],
    sites: Sequence[str | None],
) -> CohortTable:
    """Count participants by class, and measure what goes together with it.

    Everybody is counted once: with the class and the site of most of their scans (of equals the first by name for the
    site), the mean age, and the first sex that is given.

    Parameters
    ----------
    labels, participants, ages, sexes, sites : sequence
        Of each scan; None where unknown.

    References
    ----------
    Bergsma 2013, doi:10.1016/j.jkss.2012.10.002 (the bias of Cramér's V); Kelley 1935, doi:10.1073/pnas.21.9.554 (that
    of the correlation ratio); Kruskal and Wallis 1952, doi:10.1080/01621459.1952.10483441.
    """
    class_of = participant_classes(labels, participants)
    names = sorted(class_of)
    classes = [class_of[name] for name in names]
    known = people(participants, ages, [text_of({"sex": sex}, "sex") for sex in sexes])
    site_of = _most_visited(sites, participants)
    of_age = [known[name].age for name in names]
    of_sex = [known[name].sex for name in names]
    of_site = [site_of.get(name) for name in names]
    scans = Counter(class_of[name] for name in participants)
    rows = tuple(
        _class_row(label, scans[label], classes, ages=of_age, sexes=of_sex, sites=of_site)
        for label in sorted(set(classes))
    )
    return CohortTable(
        classes=rows,
        associations=(
            _of_names("site", of_site, classes),
            _of_age(of_age, classes),
            _of_names("sex", of_sex, classes),
        ),
    )


def association_warnings(table: CohortTable) -> tuple[str, ...]:
    """Return a sentence for each of site, age and sex that goes together with the class.

    >>> rows = cohort_table(
    ...     ["AD"] * 8 + ["CN"] * 8,
    ...     [f"sub-{n:02d}" for n in range(16)],
    ...     ages=[None] * 16,
    ...     sexes=[None] * 16,
    ...     sites=["A"] * 7 + ["B"] * 8 + ["A"],
    ... )
    >>> for sentence in association_warnings(rows):
    ...     print(sentence)
    Site and class go together (Cramér's V 0.73, p = 0.0027): a model can learn the site instead of the disease.
    """
    return tuple(_warning(found) for found in table.associations if found.notable)


def _class_row(
    label: str,
    scans: int,
    classes: Sequence[str],
    *,
    ages: Sequence[float | None],
    sexes: Sequence[str | None],
    sites: Sequence[str | None],
) -> ClassRow:
    """Return the row of a class, from class, age, sex and site of every participant."""
    inside = [number for number, found in enumerate(classes) if found == label]
    years = [age for number in inside if (age := ages[number]) is not None]
    of_sex, of_site = (Counter(values[number] for number in inside) for values in (sexes, sites))
    return ClassRow(
        name=label,
        participants=len(inside),
        scans=scans,
        age_mean=float(np.mean(years)) if years else None,
        age_sd=float(np.std(years, ddof=1)) if len(years) > 1 else None,
        age_unknown=len(inside) - len(years),
        sexes={sex: of_sex[sex] for sex in sorted({sex for sex in sexes if sex})},
        sex_unknown=of_sex[None],
        sites={site: of_site[site] for site in sorted({site for site in sites if site})},
        site_unknown=of_site[None],
    )


def _warning(found: Association) -> str:
    measure = "correlation ratio" if found.variable == "age" else "Cramér's V"
    p = f"p = {found.p:.2g}" if (found.p or 0) >= 1e-4 else "p < 0.0001"
    return (
        f"{found.variable.capitalize()} and class go together ({measure} {found.strength:.2f}, {p}): "
        f"a model can learn the {found.variable} instead of the disease."
    )


def _most_visited(sites: Sequence[str | None], participants: Sequence[str]) -> dict[str, str]:
    visits: dict[str, Counter[str]] = defaultdict(Counter)
    for site, name in zip(sites, participants, strict=True):
        if site:
            visits[name][site] += 1
    return {name: min(count, key=lambda site: (-count[site], site)) for name, count in visits.items()}


def _of_names(variable: Variable, values: Sequence[str | None], classes: Sequence[str]) -> Association:
    """Return Cramér's V of two sets of names, corrected for its bias, and the p of the chi-squared test."""
    from scipy.stats import chi2_contingency  # heavy

    pairs = [(value, label) for value, label in zip(values, classes, strict=True) if value]
    counts = _crossed(pairs)
    if min(counts.shape) < 2:
        return Association(variable=variable, participants=len(pairs), strength=None, p=None)
    chi_squared, p, freedom, _ = chi2_contingency(counts, correction=False)
    others = len(pairs) - 1
    excess = max(0.0, chi_squared / len(pairs) - freedom / others)
    least = min(levels - (levels - 1) ** 2 / others for levels in counts.shape) - 1
    strength = min(1.0, float(np.sqrt(excess / least))) if least > 0 else None
    return Association(variable=variable, participants=len(pairs), strength=strength, p=float(p))


def _crossed(pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """Return how often each value occurs with each class, (values, classes)."""
    rows, columns = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    found = Counter(pairs)
    return np.array([[found[row, column] for column in columns] for row in rows], dtype=np.int64).reshape(
        len(rows), len(columns)
    )


def _of_age(ages: Sequence[float | None], classes: Sequence[str]) -> Association:
    """Return the correlation ratio of the ranks of age, corrected for its bias, and the p of Kruskal and Wallis."""
    from scipy.stats import kruskal  # heavy

    of_class: dict[str, list[float]] = defaultdict(list)
    for age, label in zip(ages, classes, strict=True):
        if age is not None:
            of_class[label].append(age)
    known = [age for group in of_class.values() for age in group]
    beyond = len(known) - len(of_class)
    if len(of_class) < 2 or len(set(known)) < 2 or beyond < 1:
        return Association(variable="age", participants=len(known), strength=None, p=None)
    h, p = kruskal(*of_class.values())
    ratio = max(0.0, (h - len(of_class) + 1) / beyond)
    return Association(variable="age", participants=len(known), strength=float(np.sqrt(ratio)), p=float(p))
