"""``brainstage norms``: what is usual by age and sex, from a healthy cohort that was run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from brainstage.models.model_directory import replaced_directory
from brainstage.models.norms import (
    LEAST_PEOPLE,
    NORMED_MEASURES,
    ReferencePerson,
    fit_reference,
)
from brainstage.models.norms_directory import (
    NORMS_FILE,
    NormsDescription,
    Sex,
    require_replaceable_norms,
)
from brainstage.pipeline.config import Config
from brainstage.pipeline.errors import InputMissingError, UsageError
from brainstage.pipeline.files import read_json_or_empty, write_json, write_text
from brainstage.pipeline.manifest import ManifestRow
from brainstage.pipeline.records import (
    Completed,
    Covariates,
    Failure,
    QcStatus,
    Review,
    SubjectOutcome,
    T1wScan,
    VolumesStatus,
)
from brainstage.pipeline.review import read_decisions, review_remarks
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.learning.labelled_cohort import did_you_mean, files_of_row, read_finished_run
from brainstage.workflows.norms_card import NormsCohort, render_norms_card, sex_of_person
from brainstage.workflows.output_directory import dataset_of
from brainstage.workflows.participant import read_outcome
from brainstage.workflows.run_context import RunContext, tool_versions
from brainstage.workflows.trajectories import best_scan

CARD_FILE: Final = "NORMS_CARD.md"
LABEL_COLUMN: Final = "diagnosis"
OTHER_LABEL: Final = "not among the labels chosen"
TEST_SPLIT: Final = "in the test split"
NO_OUTPUT: Final = "not preprocessed"
FAILED: Final = "a stage failed"
OTHER_PREPROCESSING: Final = "preprocessed otherwise than most"
QC_FAILED: Final = "failed quality control, or by whoever looked"
NO_VOLUMES: Final = "volumes withheld or not measured"
NO_AGE: Final = "age unknown"
OTHER_SCAN: Final = "another scan of the person is better"


@dataclass(frozen=True, kw_only=True)
class NormsOptions:
    """The options of ``brainstage norms``.

    Attributes
    ----------
    label_column : str or None
        Column of the run's ``data_manifest.csv``; None for ``diagnosis`` where it is filled.
    labels : tuple of str
        Whose scans are taken; empty for all, where there is no more than one label.
    qc_decisions : Path or None
        What a person decided about scans.
    """

    label_column: str | None = None
    labels: tuple[str, ...] = ()
    qc_decisions: Path | None = None


def make_norms(
    out_dir: Path, norms_dir: Path, options: NormsOptions, say: Callable[[str], None]
) -> NormsDescription:
    """Fit norms of the volumes and write their directory, whole or not at all.

    Parameters
    ----------
    out_dir : Path
        The output directory of ``brainstage run`` on a healthy cohort.
    norms_dir : Path
        Absent, empty, or earlier norms, which are replaced.
    options : NormsOptions
    say : callable
        Gets one sentence for each finished step.

    Raises
    ------
    InputMissingError
        When the run is not there, or leaves too few people.
    UsageError
        For a column or a label that is not there, or several labels without a choice.
    OutputError
        When `norms_dir` holds something else, or cannot be written.
    """
    require_replaceable_norms(norms_dir)
    decisions = read_decisions(options.qc_decisions) if options.qc_decisions else {}
    rows, preprocessing = read_finished_run(out_dir)
    column, labels = _chosen_labels(rows, options)
    context = RunContext(out_dir=out_dir, config=Config())
    outcomes, left_out = _usable(rows, column, labels, context, decisions, str(preprocessing["id"]))
    chosen, others = _one_a_person(outcomes)
    left_out[OTHER_SCAN] = others
    people = [_person(outcome) for outcome in chosen]
    label = " or ".join(labels) or "healthy people"
    reference = fit_reference(
        label, people, tuple(NORMED_MEASURES.values()), measured_by=VOLUMES_VERSION, needs_age=True
    )
    if reference is None:
        raise InputMissingError(
            f"{len(people)} people of {out_dir.name} can be used, and norms need {LEAST_PEOPLE} of known age that "
            f"differ in age{_counted(left_out)}"
        )
    dataset = dataset_of(out_dir)
    norms = NormsDescription(
        dataset=str(dataset.description.get("Name") or "") if dataset else "",
        label_column=column if labels else None,
        labels=labels,
        people=len(people),
        sexes=_sexes(people),
        reference=reference,
        preprocessing_id=str(preprocessing["id"]),
        preprocessing_content=dict(preprocessing["content"]),
        versions=tool_versions(),
    )
    norms = norms.model_copy(update={"norms_id": norms.own_id})
    cohort = NormsCohort(
        people=tuple(people),
        scans=len(rows),
        left_out={reason: tuple(keys) for reason, keys in left_out.items() if keys},
        sites=Counter(outcome.scan.covariates.site or "not known" for outcome in chosen),
        voxels=Counter(_voxels(context, outcome) for outcome in chosen),
    )
    with replaced_directory(norms_dir, require_replaceable_norms) as folder:
        write_json(folder / NORMS_FILE, norms.model_dump(mode="json"))
        write_text(folder / CARD_FILE, render_norms_card(norms, cohort))
    for remark in review_remarks(outcomes):
        say(remark)
    for reason, keys in cohort.left_out.items():
        say(f"left out, {reason}: {len(keys)} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})")
    if not labels:
        say("no labels were chosen: everybody was taken for healthy")
    say(
        f"norms {norms.norms_id} of {len(people)} people written to {norms_dir}; read its {CARD_FILE}. Research use "
        "only, not a diagnosis."
    )
    return norms


def _chosen_labels(rows: Sequence[ManifestRow], options: NormsOptions) -> tuple[str, tuple[str, ...]]:
    """Return the label column, and the labels whose scans are taken; none for all scans.

    Raises
    ------
    UsageError
        A column or label that is not there; several labels, and nobody said which are healthy.
    """
    column = options.label_column or LABEL_COLUMN
    present = Counter(label for row in rows if (label := row.value(column)))
    if not present and (options.label_column or options.labels):
        filled = sorted({name for row in rows for name in row.extra if row.extra[name]} | _filled(rows))
        raise UsageError(
            f"--label-column {column!r} is empty or not there for every scan of data_manifest.csv."
            f"{did_you_mean(column, filled)} Filled are {', '.join(filled) or 'none'}"
        )
    unknown = [name for name in options.labels if name not in present]
    shown = ", ".join(f"{name} ({count})" for name, count in sorted(present.items()))
    if unknown:
        raise UsageError(
            f"--label: no scan has {column} {unknown[0]!r}.{did_you_mean(unknown[0], present)} Present are {shown}"
        )
    if len(present) > 1 and not options.labels:
        raise UsageError(
            f"the scans have several labels in the column {column!r}: {shown}. Norms are of healthy people: say who "
            "is, such as with --label CN, or name another column with --label-column"
        )
    return column, tuple(dict.fromkeys(options.labels))


def _filled(rows: Sequence[ManifestRow]) -> set[str]:
    return {name for name in ("sex", "site", "diagnosis") if any(row.value(name) for row in rows)}


def _usable(
    rows: Sequence[ManifestRow],
    column: str,
    labels: tuple[str, ...],
    context: RunContext,
    decisions: Mapping[str, Review],
    preprocessed: str,
) -> tuple[list[Completed], dict[str, list[str]]]:
    """Return the scans that norms may rest on, and reason to the names of the others."""
    usable: list[Completed] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        scan = _scan(row, context.out_dir, decisions)
        outcome: SubjectOutcome | None = None
        if labels and row.value(column) not in labels:
            reason = OTHER_LABEL
        elif row.split == "test":
            reason = TEST_SPLIT
        else:
            outcome = read_outcome(scan, context)
            reason = _objection(outcome, preprocessed)
        if isinstance(outcome, Completed) and not reason:
            usable.append(outcome)
        else:
            left_out[reason].append(scan.key)
    return usable, left_out


def _scan(row: ManifestRow, out_dir: Path, decisions: Mapping[str, Review]) -> T1wScan:
    files = files_of_row(row, out_dir, "1")
    return T1wScan(
        entities=files.entities,
        path=Path(row.t1w_path),
        t1w_path=row.t1w_path,
        covariates=Covariates(age=row.age, sex=row.sex, site=row.site, extra=row.extra),
        label=row.diagnosis,
        review=decisions.get(row.t1w_path),
    )


def _objection(outcome: SubjectOutcome | None, preprocessed: str) -> str:
    """Return why norms may not rest on a scan; empty where they may."""
    if outcome is None:
        return NO_OUTPUT
    if isinstance(outcome, Failure):
        return FAILED
    if outcome.preprocessing_id != preprocessed:
        return OTHER_PREPROCESSING
    if outcome.verdict.status is QcStatus.FAIL:
        return QC_FAILED
    if outcome.volumes is None or outcome.volumes.status is VolumesStatus.WITHHELD:
        return NO_VOLUMES
    return "" if outcome.scan.covariates.age is not None else NO_AGE


def _one_a_person(outcomes: Iterable[Completed]) -> tuple[list[Completed], list[str]]:
    """Return the best scan of each participant, with all volumes where one has them, and the names of the others."""
    scans: dict[str, list[Completed]] = defaultdict(list)
    for outcome in outcomes:
        scans[outcome.scan.entities.subject].append(outcome)
    chosen = []
    for of_person in scans.values():
        whole = [one for one in of_person if one.volumes and one.volumes.status is VolumesStatus.REPORTED]
        best = best_scan(whole or of_person)
        chosen.append(next(one for one in of_person if one is best))
    kept = {one.scan.key for one in chosen}
    return chosen, [
        one.scan.key for of_person in scans.values() for one in of_person if one.scan.key not in kept
    ]


def _person(outcome: Completed) -> ReferencePerson:
    measures = outcome.volumes.measures if outcome.volumes else {}
    return ReferencePerson(
        measures={name: value for name, value in measures.items() if value is not None},
        age=outcome.scan.covariates.age,
        sex=outcome.scan.covariates.sex,
    )


def _sexes(people: Iterable[ReferencePerson]) -> dict[Sex, int]:
    counts: dict[Sex, int] = {"F": 0, "M": 0, "unknown": 0}
    for person in people:
        counts[sex_of_person(person)] += 1
    return counts


def _voxels(context: RunContext, outcome: Completed) -> str:
    """Return the size of a scan's voxels in mm, as its header had it."""
    found = read_json_or_empty(context.files(outcome.scan).state / "header_findings.json").get("spacing_mm")
    if not isinstance(found, list) or not all(isinstance(value, int | float) for value in found):
        return "not known"
    return " x ".join(f"{round(value, 2):g}" for value in found)


def _counted(left_out: Mapping[str, Sequence[str]]) -> str:
    counts = "; ".join(f"{len(keys)} {reason}" for reason, keys in left_out.items() if keys)
    return f"; of the scans are left out: {counts}" if counts else ""
