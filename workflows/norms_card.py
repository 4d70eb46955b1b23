"""The card of norms, filled from the people that they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from brainstage.models.norms import Norm, ReferenceClass, ReferencePerson, compare, held_out_share, male
from brainstage.models.norms_directory import NormsDescription, Sex
from brainstage.workflows.reporting.markdown import markdown_environment

FEW_IN_A_DECADE: Final = 10
FEW_PEOPLE: Final = 100
_MOST_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True)
class NormsCohort:
    """Whom norms rest on.

    Attributes
    ----------
    people : tuple of ReferencePerson
    scans : int
        Of the run.
    left_out : mapping
        Reason to the names of the scans.
    sites, voxels : mapping
        Site, and voxel size in mm, to how many people.
    """

    people: tuple[ReferencePerson, ...]
    scans: int
    left_out: Mapping[str, tuple[str, ...]]
    sites: Mapping[str, int]
    voxels: Mapping[str, int]

    @property
    def ages(self) -> list[float]:
        """Sorted, as far as they are known."""
        return sorted(person.age for person in self.people if person.age is not None)


@dataclass(frozen=True, kw_only=True)
class NormRow:
    """A norm in words: its form, what is usual at some ages, and how many who were held out lie in the interval."""

    norm: Norm
    form: str
    usual: tuple[str, ...]
    held_out: float


def sex_of_person(person: ReferencePerson) -> Sex:
    """Return ``F``, ``M`` or ``unknown``."""
    man = male(person.sex)
    return "unknown" if man is None else "M" if man else "F"


def render_norms_card(norms: NormsDescription, cohort: NormsCohort) -> str:
    """Return ``NORMS_CARD.md``.

    Parameters
    ----------
    norms : NormsDescription
    cohort : NormsCohort
    """
    decades = by_decade(cohort)
    ages = shown_ages(cohort)
    context: dict[str, Any] = {
        "norms": norms,
        "cohort": cohort,
        "decades": decades,
        "thin": [decade for decade, counts in decades.items() if sum(counts.values()) < FEW_IN_A_DECADE],
        "few": len(cohort.people) < FEW_PEOPLE,
        "sites": most_common(cohort.sites),
        "voxels": most_common(cohort.voxels),
        "ages": ages,
        "rows": [norm_row(norm, cohort, ages) for norm in norms.reference.norms],
    }
    return markdown_environment().get_template("norms_card.md.j2").render(context)


def by_decade(cohort: NormsCohort) -> dict[str, dict[Sex, int]]:
    """Return how many people of each sex there are in each decade of life, empty ones between them too."""
    starts = range(int(cohort.ages[0] // 10) * 10, int(cohort.ages[-1]) + 1, 10)
    counts: dict[str, dict[Sex, int]] = {f"{n} to {n + 9}": {"F": 0, "M": 0, "unknown": 0} for n in starts}
    for person in cohort.people:
        if person.age is not None:
            decade = int(person.age // 10) * 10
            counts[f"{decade} to {decade + 9}"][sex_of_person(person)] += 1
    return counts


def shown_ages(cohort: NormsCohort) -> tuple[int, ...]:
    """Return whole years near the youngest, in the middle and near the oldest."""
    low, high = cohort.ages[0], cohort.ages[-1]
    return tuple(dict.fromkeys(round(low + share * (high - low)) for share in (0.1, 0.5, 0.9)))


def norm_row(norm: Norm, cohort: NormsCohort, ages: tuple[int, ...]) -> NormRow:
    """Return the words for a norm."""
    form = "curved with age" if norm.knots else "a line with age"
    if norm.widening:
        form += ", spread changes with age"
    return NormRow(
        norm=norm,
        form=form,
        usual=tuple(_usual(norm, age) for age in ages),
        held_out=held_out_share(norm, cohort.people),
    )


def most_common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the most frequent of some words, the rest taken together."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_NAMED:])
    return [*ordered[:_MOST_NAMED], *([("others", rest)] if rest else [])]


def _usual(norm: Norm, age: float) -> str:
    sexes = ("F", "M") if "sex" in norm.by else (None,)
    ranges = []
    for sex in sexes:
        (found,) = compare(ReferenceClass(label="", norms=(norm,)), {norm.measure: 1.0}, age=age, sex=sex)
        if found.low is not None and found.high is not None:
            ranges.append(f"{f'{sex} ' if sex else ''}{found.low:.4g} to {found.high:.4g}")
    return "; ".join(ranges) or "not seen"
