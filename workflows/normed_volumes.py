"""Where the volumes of a scan lie among the people of norms, or why nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from brainstage.models.norms import LEAST_OF_A_SEX, NORMED_MEASURES, Norm, compare, male
from brainstage.models.norms_directory import NORMS_FILE, NormsDescription
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.files import read_regular, write_json
from brainstage.pipeline.records import Covariates, ReferenceFinding, SubjectOutcome
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.measured_volumes import shown_volumes
from brainstage.workflows.output_directory import known_preprocessings
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.stages import preprocessing_content

NORMS_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "age_unknown": "the age of the person at the scan is not known",
        "age_outside": "the age lies outside the ages that the norms have seen",
        "sex_unknown": "the sex of the person is not known",
        "sex_not_seen": "the norms have seen too few people of this sex",
        "no_norm": "too few people of the norms have this volume",
        "preprocessed_otherwise": "the scan was preprocessed otherwise than those of the norms",
    }
)
"""Code to why nothing is said about a volume that is there."""


@dataclass(frozen=True, kw_only=True)
class NormedVolume:
    """One volume of a scan, compared with norms.

    Attributes
    ----------
    volume : str
        A name of ``VOLUMES``.
    finding : ReferenceFinding
        Without a percentile where nothing is said; its reason is then in words.
    code : str
        A key of ``NORMS_REASONS``; empty where something is said.
    """

    volume: str
    finding: ReferenceFinding
    code: str = ""


def normed_volumes(outcome: SubjectOutcome, context: RunContext) -> tuple[NormedVolume, ...]:
    """Compare the volumes of a scan with the norms of a run; nothing where there are no norms, or no volumes to show.

    Parameters
    ----------
    outcome : SubjectOutcome
    context : RunContext
        Of the run that the scan went through.
    """
    norms = context.norms
    if norms is None:
        return ()
    measures = shown_volumes(outcome).measures
    alike = _measured_alike(outcome, norms, context)
    return tuple(
        _normed(volume, measure, value, norms, outcome.scan.covariates, alike=alike)
        for volume, measure in NORMED_MEASURES.items()
        if (value := measures.get(measure)) is not None and value > 0
    )


def reasons_of(normed: tuple[NormedVolume, ...]) -> tuple[str, ...]:
    """Return the codes of what is not said: alone where it is so for all volumes, else each with the volume.

    >>> from dataclasses import replace
    >>> about = ReferenceFinding(measure="", value=1, label="", people=1, by=())
    >>> one, other = (NormedVolume(volume=name, finding=about, code="no_norm") for name in ("csf", "grey_matter"))
    >>> reasons_of((one, other)), reasons_of((one, replace(other, code="")))
    (('no_norm',), ('csf:no_norm',))
    """
    codes = {one.code for one in normed}
    if len(codes) == 1:
        return tuple(codes - {""})
    return tuple(f"{one.volume}:{one.code}" for one in normed if one.code)


def _normed(
    volume: str, measure: str, value: float, norms: NormsDescription, person: Covariates, *, alike: bool
) -> NormedVolume:
    norm = next((norm for norm in norms.reference.norms if norm.measure == measure), None)
    code = _objection(norm, norms, person) if alike else "preprocessed_otherwise"
    if code:
        finding = ReferenceFinding(
            measure=measure,
            value=value,
            label=norms.reference.label,
            people=norm.people if norm else 0,
            by=norm.by if norm else (),
            reason=NORMS_REASONS[code],
        )
        return NormedVolume(volume=volume, finding=finding, code=code)
    (finding,) = compare(norms.reference, {measure: value}, person.age, person.sex, VOLUMES_VERSION)
    return NormedVolume(volume=volume, finding=finding)


def _objection(norm: Norm | None, norms: NormsDescription, person: Covariates) -> str:
    """Return the code of why a norm says nothing about a person; empty where it does."""
    if norm is None or norm.ages is None:
        return "no_norm"
    if person.age is None:
        return "age_unknown"
    if not norm.ages[0] <= person.age <= norm.ages[1]:
        return "age_outside"
    sex = male(person.sex)
    known = {name: count for name, count in norms.sexes.items() if name != "unknown" and count}
    if not known:
        return ""  # where the norms know nobody's sex, they hold for anybody
    if sex is None:
        return "sex_unknown"
    if known.get("M" if sex else "F", 0) < LEAST_OF_A_SEX:
        return "sex_not_seen"
    return ""


def _measured_alike(outcome: SubjectOutcome, norms: NormsDescription, context: RunContext) -> bool:
    """Tell whether a scan went through what those of the norms went through; some may be of an earlier run."""
    if outcome.preprocessing_id == context.preprocessing_id:
        content = preprocessing_content(context.config)
    else:
        content = known_preprocessings(context.out_dir).get(outcome.preprocessing_id, {})
    return norms.reference.measured_by == VOLUMES_VERSION and norms.measured_alike(content)


def kept_norms(out_dir: Path) -> NormsDescription | None:
    """Return the norms that the tables of an output directory were last written with; None where there were none."""
    try:
        return NormsDescription.model_validate_json(read_regular(out_dir / STATE_FOLDER / NORMS_FILE))
    except (OSError, ValueError):
        return None


def keep_norms(out_dir: Path, norms: NormsDescription | None) -> None:
    """Keep the norms of the tables, so that a report that is written again later has them."""
    path = out_dir / STATE_FOLDER / NORMS_FILE
    if norms is None:
        path.unlink(missing_ok=True)
    elif kept_norms(out_dir) != norms:
        write_json(path, norms.model_dump(mode="json"))
