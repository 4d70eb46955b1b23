"""Cross-validation folds: stratified by class, by participant, alike in age and sex, the same for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.errors import UsageError

MIN_FOLDS: Final = 3
"""Two folds would leave a class of few participants without any for the inner validation."""
DEALS: Final = 100
"""Folds are dealt this often, and the deal whose folds are most alike in age and sex is kept. Of 60 participants in
five folds, the largest difference in mean age between a fold and the rest is 0.47 standard deviations when age is not
looked at, 0.25 after one deal, and 0.09 after 100 (medians); 10,000 participants are dealt 100 times in a second."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What folds are balanced for; None where it is unknown.

    Attributes
    ----------
    age : float or None
        Years; of several visits, their mean.
    sex : str or None
    """

    age: float | None = None
    sex: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoldBalance:
    """How alike the folds are, over participants whose age or sex is known; None where too few are.

    Attributes
    ----------
    age_difference : float or None
        The largest difference in mean age between a fold and the rest, in standard deviations of all ages.
    sex_spread : float or None
        The largest difference between two folds in the proportion of any one sex.
    """

    age_difference: float | None
    sex_spread: float | None

    @property
    def cost(self) -> float:
        """What the choice among deals makes small."""
        return (self.age_difference or 0.0) + (self.sex_spread or 0.0)


def participant_classes(labels: Sequence[str], participants: Sequence[str]) -> dict[str, str]:
    """Return one class for each participant: that of most of their scans, the earliest of equals.

    Only stratification uses it. A participant who converts keeps every scan's own label.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for label, participant in zip(labels, participants, strict=True):
        votes[participant][label] += 1
    return {participant: count.most_common(1)[0][0] for participant, count in votes.items()}


def people(
    participants: Sequence[str], ages: Sequence[float | None], sexes: Sequence[str | None]
) -> dict[str, Person]:
    """Gather what is known about each participant from their scans: the mean age, the first sex given."""
    known_ages: dict[str, list[float]] = defaultdict(list)
    first_sex: dict[str, str] = {}
    for participant, age, sex in zip(participants, ages, sexes, strict=True):
        if age is not None:
            known_ages[participant].append(age)
        if sex:
            first_sex.setdefault(participant, sex)
    return {
        name: Person(
            age=float(np.mean(known_ages[name])) if name in known_ages else None, sex=first_sex.get(name)
        )
        for name in participants
    }


def fold_of_scans(
    labels: Sequence[str],
    participants: Sequence[str],
    *,
    folds: int,
    seed: int,
    about: Mapping[str, Person] | None = None,
) -> NDArray[np.int64]:
    """Deal participants to folds, class by class.

    Within a class the participants are sorted by sex and age and dealt round in shuffled blocks, so that every fold
    gets one of each block; each class goes on where the one before ended, so that the folds differ by at most one
    participant in each class and in all. Of :data:`DEALS` such deals the one is kept whose folds are most alike
    (rerandomisation). Labels have a part in it only as strata, and no prediction has any.

    Parameters
    ----------
    labels, participants : sequence of str
        Of each scan.
    about : mapping, optional
        Participant to what is known about them. Whoever is unknown is dealt among others like them.

    Returns
    -------
    ndarray, (N,) int64
        The fold of each scan, 0 to ``folds - 1``. All scans of a participant have the same.

    Raises
    ------
    UsageError
        When there are fewer folds than :data:`MIN_FOLDS`, or a class has fewer participants than folds.

    References
    ----------
    Morgan and Rubin 2012, "Rerandomization to improve covariate balance in experiments", doi:10.1214/12-AOS1008.
    """
    require_folds(labels, participants, folds)
    class_of = participant_classes(labels, participants)
    known = {name: (about or {}).get(name, Person()) for name in class_of}
    generator = np.random.default_rng(seed)
    strata = _strata(class_of, known, generator)
    order = [name for stratum in strata for name in stratum]
    persons = [known[name] for name in order]
    dealt = [_deal(strata, folds, generator) for _ in range(DEALS if about else 1)]
    best = min(dealt, key=lambda deal: _balance(deal, persons).cost)
    fold_of = dict(zip(order, best, strict=True))
    return np.array([fold_of[participant] for participant in participants], dtype=np.int64)


def fold_balance(
    folds: NDArray[np.int64], participants: Sequence[str], about: Mapping[str, Person]
) -> FoldBalance:
    """Measure how alike folds are in age and sex, each participant counted once."""
    fold_of = dict(zip(participants, folds.tolist(), strict=True))
    return _balance(np.array(list(fold_of.values())), [about.get(name, Person()) for name in fold_of])


def inner_validation(labels: Sequence[str], participants: Sequence[str], *, seed: int) -> NDArray[np.bool_]:
    """Choose about a fifth of a training fold's participants, of every class, for early stopping.

    Returns
    -------
    ndarray, (N,) bool
        True for validation scans. Half the participants of the smallest class where it has fewer than five.
    """
    class_of = participant_classes(labels, participants)
    smallest = min(Counter(class_of.values()).values())
    generator = np.random.default_rng(seed)
    strata = _strata(class_of, {}, generator)
    inner = _deal(strata, max(2, min(5, smallest)), generator)
    order = [name for stratum in strata for name in stratum]
    held = {name for name, part in zip(order, inner, strict=True) if part == 0}
    return np.array([participant in held for participant in participants], dtype=np.bool_)


def validation_part(
    targets: NDArray[np.int64], participants: Sequence[str], *, seed: int
) -> NDArray[np.bool_]:
    """Return which scans of a training fold tell when to stop, (N,) bool; see :func:`inner_validation`."""
    return inner_validation([str(target) for target in targets], participants, seed=seed)


def shuffled_labels(labels: Sequence[str], participants: Sequence[str], *, seed: int) -> list[str]:
    """Permute labels between participants: the random-label control.

    Each true class gets every label in the proportion that it has among all, as far as whole people allow, so that
    nothing but leakage can be learnt. In a free permutation of few people labels agree with the true ones by more or
    less than chance, and a model that sees the classes well finds that out, whichever way it is.
    """
    generator = np.random.default_rng(seed)
    class_of = participant_classes(labels, participants)
    names = sorted(class_of)
    mixed = [names[index] for index in generator.permutation(len(names))]
    by_class = sorted(mixed, key=class_of.__getitem__)
    counts = sorted(Counter(class_of.values()).items())
    # Each label is spread evenly along the line of classes, from a start of its own.
    places = [
        ((nth + start) / count, label)
        for (label, count), start in zip(counts, generator.random(len(counts)), strict=True)
        for nth in range(count)
    ]
    drawn = {name: label for name, (_, label) in zip(by_class, sorted(places), strict=True)}
    return [drawn[participant] for participant in participants]


def require_folds(labels: Sequence[str], participants: Sequence[str], folds: int) -> None:
    """Raise unless every class has a participant for every fold.

    Raises
    ------
    UsageError
        With what to do.
    """
    if folds < MIN_FOLDS:
        raise UsageError(f"--folds {folds}: cross-validation here needs at least {MIN_FOLDS} folds")
    counts = Counter(participant_classes(labels, participants).values())
    if len(counts) < 2:
        raise UsageError(f"training needs at least two classes, got {', '.join(counts) or 'none'}")
    short = {name: count for name, count in sorted(counts.items()) if count < folds}
    if not short:
        return
    listed = ", ".join(f"{name!r} has {count}" for name, count in short.items())
    fewest = min(short.values())
    advice = f"use --folds {fewest}, or " if fewest >= MIN_FOLDS else ""
    raise UsageError(
        f"{folds} folds need {folds} participants of every class, but {listed}: {advice}"
        f"leave the class out with --classes, or add participants"
    )


def _strata(
    class_of: Mapping[str, str], about: Mapping[str, Person], generator: np.random.Generator
) -> list[list[str]]:
    """Return the participants of each class, those beside each other who are alike; equals in random order."""
    strata = []
    for label in sorted(set(class_of.values())):
        members = sorted(name for name in class_of if class_of[name] == label)
        shuffled = [members[index] for index in generator.permutation(len(members))]
        strata.append(sorted(shuffled, key=lambda name: _likeness(about.get(name, Person()))))
    return strata


def _likeness(person: Person) -> tuple[str, bool, float]:
    """Return a key that sorts people beside others like them; an unknown value makes a group of its own."""
    return person.sex or "", person.age is None, person.age or 0.0


def _deal(strata: Sequence[Sequence[str]], folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each participant in the order of the strata: round by round, each block shuffled."""
    dealt: list[NDArray[np.int64]] = []
    for members in strata:
        position = np.arange(len(members))
        shuffled = np.lexsort((generator.random(len(members)), position // folds))
        own = np.empty(len(members), dtype=np.int64)
        own[shuffled] = (sum(len(turn) for turn in dealt) + position) % folds
        dealt.append(own)
    return np.concatenate(dealt)


def _balance(folds: NDArray[np.int64], persons: Sequence[Person]) -> FoldBalance:
    ages = np.array([np.nan if one.age is None else one.age for one in persons], dtype=np.float64)
    sexes = np.array([one.sex or "" for one in persons])
    spreads = [_spread(sexes[sexes != ""] == sex, folds[sexes != ""]) for sex in set(sexes) - {""}]
    return FoldBalance(
        age_difference=_age_difference(ages[np.isfinite(ages)], folds[np.isfinite(ages)]),
        sex_spread=max((spread for spread in spreads if spread is not None), default=None),
    )


def _age_difference(ages: NDArray[np.float64], folds: NDArray[np.int64]) -> float | None:
    present = np.unique(folds)
    if len(present) < 2 or not ages.std():
        return None
    gaps = [abs(ages[folds == fold].mean() - ages[folds != fold].mean()) for fold in present]
    return float(max(gaps) / ages.std())


def _spread(members: NDArray[np.bool_], folds: NDArray[np.int64]) -> float | None:
    present = np.unique(folds)
    return float(np.ptp([members[folds == fold].mean() for fold in present])) if len(present) > 1 else None
