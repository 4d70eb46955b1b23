"""Cross-validation folds by participant, stratified by class and alike in age and sex, or by site."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
MOST_GROUPS: Final = 10
"""Of a number, by which folds are stratified: deciles."""
MAX_SITE_FOLDS: Final = 10
"""More sites than this share folds: every fold is a training of all models, and the tenth of the scans that a fold of
ten leaves out costs a model little."""
LEAST_TO_LEARN_FROM: Final = 2
"""Participants of each class beside a site; one of them can then stop the training."""
_NAMES_LISTED: Final = 5


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
    return _fold_of_groups(labels, participants, folds=folds, seed=seed, about=about)


def _fold_of_groups(
    groups: Sequence[str],
    participants: Sequence[str],
    *,
    folds: int,
    seed: int,
    about: Mapping[str, Person] | None,
) -> NDArray[np.int64]:
    class_of = participant_classes(groups, participants)
    known = {name: (about or {}).get(name, Person()) for name in class_of}
    generator = np.random.default_rng(seed)
    strata = _strata(class_of, known, generator)
    order = [name for stratum in strata for name in stratum]
    persons = [known[name] for name in order]
    dealt = [_deal(strata, folds, generator) for _ in range(DEALS if about else 1)]
    best = min(dealt, key=lambda deal: _balance(deal, persons).cost)
    fold_of = dict(zip(order, best, strict=True))
    return np.array([fold_of[participant] for participant in participants], dtype=np.int64)


def fold_of_sites(
    sites: Sequence[str | None],
    labels: Sequence[str],
    participants: Sequence[str],
    *,
    every_class_elsewhere: bool = True,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Make each site a fold of its own, so that every scan is predicted by a model that knows nothing of its site.

    No site and no participant is on two sides: sites that share a participant are one fold. Where there are more than
    ``MAX_SITE_FOLDS``, whole sites are put together, the largest first, each where it makes the folds most alike in
    size and in classes. Nothing is drawn at random.

    Parameters
    ----------
    sites, labels, participants : sequence of str
        Of each scan. None or an empty site is refused.
    every_class_elsewhere : bool
        False where labels are groups of a number, which can be learnt without the whole of its range.

    Returns
    -------
    folds : ndarray, (N,) int64
        The fold of each scan.
    names : tuple of str
        Of the folds, such as ``site A`` and ``sites B, C``; sorted by their first site.

    Raises
    ------
    UsageError
        When a scan has no site, when there are fewer than ``MIN_FOLDS`` sites that share no participant, or when
        a site has all participants of a class but one, or all.
    """
    class_of = participant_classes(labels, participants)
    classes = sorted(set(class_of.values()))
    if every_class_elsewhere:
        _require_two_classes(classes)
    sites_of = _sites_of_participants(sites, participants)
    groups = _groups_of_sites(sites_of)
    group_of = {site: number for number, group in enumerate(groups) for site in group}
    people_in = np.zeros((len(groups), len(classes)))
    for name, visited in sites_of.items():
        people_in[group_of[min(visited)], classes.index(class_of[name])] += 1
    fold_of_group = _alike_folds(people_in)
    names = tuple(
        _fold_name(group for group, fold in zip(groups, fold_of_group, strict=True) if fold == number)
        for number in range(max(fold_of_group) + 1)
    )
    if every_class_elsewhere:
        _require_classes_elsewhere(people_in, fold_of_group, classes, names)
    folds = [fold_of_group[group_of[min(sites_of[participant])]] for participant in participants]
    return np.array(folds, dtype=np.int64), names


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


def quantile_groups(values: NDArray[np.float64], participants: Sequence[str], *, folds: int) -> list[str]:
    """Return a group for each scan by where its participant lies among all: what folds of numbers are stratified by.

    There are at most :data:`MOST_GROUPS` groups, each with at least two participants for every fold, where there are
    so many. Participants with the same number are put in order by name.

    Parameters
    ----------
    values : ndarray, (N,) float64
        The target of each scan; of several scans of a participant their mean counts.
    participants : sequence of str
    folds : int
    """
    mean_of = participant_means(values, participants)
    order = sorted(mean_of, key=lambda name: (mean_of[name], name))
    groups = max(1, min(MOST_GROUPS, len(order) // (2 * folds)))
    group_of = {name: f"{place * groups // len(order):02d}" for place, name in enumerate(order)}
    return [group_of[name] for name in participants]


def participant_means(values: NDArray[np.float64], participants: Sequence[str]) -> dict[str, float]:
    """Return the mean over the scans of each participant."""
    found: dict[str, list[float]] = defaultdict(list)
    for value, name in zip(values.tolist(), participants, strict=True):
        found[name].append(value)
    return {name: float(np.mean(of_person)) for name, of_person in found.items()}


def fold_of_numbers(
    values: NDArray[np.float64],
    participants: Sequence[str],
    *,
    folds: int,
    seed: int,
    about: Mapping[str, Person] | None = None,
) -> NDArray[np.int64]:
    """Assign participants to folds that are alike in a number, as :func:`fold_of_scans` does for classes.

    Parameters
    ----------
    values : ndarray, (N,) float64
        Of each scan.
    participants : sequence of str
    about : mapping, optional

    Returns
    -------
    ndarray, (N,) int64

    Raises
    ------
    UsageError
        When there are too few folds, or too few participants for them.
    """
    require_folds_of_numbers(participants, folds)
    groups = quantile_groups(values, participants, folds=folds)
    return _fold_of_groups(groups, participants, folds=folds, seed=seed, about=about)


def shuffled_numbers(
    values: NDArray[np.float64], participants: Sequence[str], *, seed: int
) -> NDArray[np.float64]:
    """Permute a number between participants: the control of random targets, (N,) float64.

    All scans of a participant get the mean of another's, so that no difference between visits is left to learn. Of
    :data:`DEALS` permutations the one is taken that correlates least with the true numbers: by chance few people agree
    with them one way or the other, and a model that sees the number well finds that out.
    """
    mean_of = participant_means(values, participants)
    names = sorted(mean_of)
    true = np.array([mean_of[name] for name in names])
    generator = np.random.default_rng(seed)
    drawn = [true[generator.permutation(len(true))] for _ in range(DEALS)]
    deviation = true - true.mean()
    best = min(drawn, key=lambda one: abs(float(one @ deviation)))
    given = dict(zip(names, best.tolist(), strict=True))
    return np.array([given[name] for name in participants], dtype=np.float64)


def require_folds_of_numbers(participants: Sequence[str], folds: int) -> None:
    """Raise unless there are two participants for every fold.

    Raises
    ------
    UsageError
        With what to do.
    """
    _require_fold_count(folds)
    people_there = len(set(participants))
    if people_there < 2 * folds:
        fewer = people_there // 2
        advice = f"use --folds {fewer}, or " if fewer >= MIN_FOLDS else ""
        raise UsageError(
            f"{folds} folds need {2 * folds} participants with a number, and there are {people_there}: {advice}"
            "add participants"
        )


def require_folds(labels: Sequence[str], participants: Sequence[str], folds: int) -> None:
    """Raise unless every class has a participant for every fold.

    Raises
    ------
    UsageError
        With what to do.
    """
    _require_fold_count(folds)
    counts = Counter(participant_classes(labels, participants).values())
    _require_two_classes(counts)
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


def _require_fold_count(folds: int) -> None:
    if folds < MIN_FOLDS:
        raise UsageError(f"--folds {folds}: cross-validation here needs at least {MIN_FOLDS} folds")


def _require_two_classes(classes: Collection[str]) -> None:
    if len(classes) < 2:
        raise UsageError(f"training needs at least two classes, got {', '.join(classes) or 'none'}")


def _sites_of_participants(
    sites: Sequence[str | None], participants: Sequence[str]
) -> dict[str, frozenset[str]]:
    """Return the sites at which each participant was scanned, or raise where a scan has none."""
    without = [name for site, name in zip(sites, participants, strict=True) if not site]
    if without:
        raise UsageError(
            f"--folds-by site: {len(without)} of {len(sites)} scans have no site ({_listed(sorted(set(without)))}): "
            "fill the column 'site', leave these scans out, or use --folds-by participant"
        )
    visited: dict[str, set[str]] = defaultdict(set)
    for site, name in zip(sites, participants, strict=True):
        visited[name].add(site or "")
    return {name: frozenset(found) for name, found in visited.items()}


def _groups_of_sites(sites_of: Mapping[str, frozenset[str]]) -> list[tuple[str, ...]]:
    """Return the sites, those together that share a participant; sorted."""
    groups: set[frozenset[str]] = set()
    for visited in set(sites_of.values()):
        shared = {group for group in groups if group & visited}
        groups = (groups - shared) | {visited.union(*shared)}
    if len(groups) >= MIN_FOLDS:
        return sorted(tuple(sorted(group)) for group in groups)
    movers = sorted(name for name, visited in sites_of.items() if len(visited) > 1)
    every = sorted(frozenset().union(*groups))
    if len(every) < MIN_FOLDS:
        raise UsageError(
            f"--folds-by site needs at least {MIN_FOLDS} sites, got {len(every)} ({', '.join(every)}): "
            "use --folds-by participant"
        )
    raise UsageError(
        f"--folds-by site: {len(movers)} participants were scanned at several sites ({_listed(movers)}), and sites "
        f"that share a participant are tested together, so that {len(groups)} of at least {MIN_FOLDS} folds are left: "
        "leave out their scans at all sites but one, or use --folds-by participant"
    )


def _alike_folds(people_in: NDArray[np.float64]) -> list[int]:
    """Return the fold of each group of sites, from its participants of each class, (G, C).

    Alike are folds whose sums of squared parts are small, of each class and of all participants. Of the choices for one
    more group, that sum grows least where the fold has least of what the group has.
    """
    counts = np.column_stack([people_in, people_in.sum(axis=1)])
    parts = counts / counts.sum(axis=0)
    folds = min(MAX_SITE_FOLDS, len(parts))
    load = np.zeros((folds, parts.shape[1]))
    chosen = np.empty(len(parts), dtype=np.int64)
    for turn, group in enumerate(np.argsort(-counts[:, -1], kind="stable")):
        chosen[group] = turn if turn < folds else int(np.argmin(load @ parts[group]))
        load[chosen[group]] += parts[group]
    order = {fold: number for number, fold in enumerate(dict.fromkeys(chosen.tolist()))}
    return [order[fold] for fold in chosen.tolist()]


def _fold_name(groups: Iterable[Sequence[str]]) -> str:
    sites = sorted(site for group in groups for site in group)
    return f"{'site' if len(sites) == 1 else 'sites'} {', '.join(sites)}"


def _require_classes_elsewhere(
    people_in: NDArray[np.float64], fold_of_group: Sequence[int], classes: Sequence[str], names: Sequence[str]
) -> None:
    for fold, name in enumerate(names):
        tested = people_in[np.array(fold_of_group) == fold].sum(axis=0)
        for label, count, total in zip(classes, tested, people_in.sum(axis=0), strict=True):
            if total - count < LEAST_TO_LEARN_FROM:
                raise UsageError(
                    f"--folds-by site: {count:.0f} of {total:.0f} participants of the class {label!r} are at {name}, "
                    f"and a model tested there has to learn the class from at least {LEAST_TO_LEARN_FROM} others: "
                    "leave the class out with --classes, or use --folds-by participant"
                )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_LISTED
    return ", ".join(names[:_NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


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
