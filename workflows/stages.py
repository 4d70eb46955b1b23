"""The stages of a scan, in order: what each computes, from what, and how its result is kept.

The mathematics is in :mod:`brainstage.preprocessing`; here it meets the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from brainstage.models import hippocampus_network
from brainstage.pipeline.config import Config, PreprocessingConfig
from brainstage.pipeline.derivatives import TEMPLATE_SPACE, ScanFiles, sidecar_of
from brainstage.pipeline.errors import ImageError
from brainstage.pipeline.files import read_json, sha256_of_json, write_bytes, write_json, write_text
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.nifti import read_mask, read_volume, write_labels, write_mask, write_volume
from brainstage.pipeline.records import (
    AssessedBrain,
    CorrectedBrain,
    Deformation,
    IngestedHead,
    Normalisation,
    NormalisedBrain,
    QcReport,
    QcStatus,
    RegisteredBrain,
    StrippedBrain,
    T1wScan,
)
from brainstage.pipeline.stage import Stage
from brainstage.preprocessing import (
    bias_field,
    brain_extraction,
    ingest,
    intensity,
    network_grid,
    quality,
    regions,
    registration,
    template,
    transforms,
    volumes,
)
from brainstage.workflows.measured_volumes import VOLUMES_RECORD, read_volumes

FIGURES_VERSION: Final = "5"
FIGURES: Final = (
    "image_quality", "background", "mask", "registration", "flicker", "bias_field", "histogram", "volumes", "montage",
)  # fmt: skip
PREVIEWS: Final = ("native", "native_mask", "registered")

_HEAD: Final = ("ingest",)
_NATIVE: Final = ("ingest", "brain_extraction", "bias_field", "intensity")
_ALL: Final = (*_NATIVE, "registration")


def preprocessing_content(config: Config) -> dict[str, Any]:
    """Return everything in the preprocessing that changes a voxel, but for the versions of tools, as plain values."""
    content: dict[str, Any] = config.preprocessing.model_dump(mode="json")
    content["seed"] = config.seed
    content["stage_versions"] = {
        "ingest": ingest.STAGE_VERSION,
        "brain_extraction": brain_extraction.STAGE_VERSION,
        "bias_field": bias_field.STAGE_VERSION,
        "intensity": intensity.STAGE_VERSION,
        "registration": registration.STAGE_VERSION,
        "network_grid": network_grid.STAGE_VERSION,
    }
    content["brain_extraction_weights"] = brain_extraction.deepbet_sha256()
    content["template"] = {"name": TEMPLATE_SPACE, "sha256": template.template_sha256()}
    return content


def preprocessing_id(content: Mapping[str, Any]) -> str:
    """Return ``p`` and 15 digits of the hash of :func:`preprocessing_content`: 12e45 would be read as a number."""
    return f"p{sha256_of_json(content)[:15]}"


def preprocessing_stages(config: Config) -> tuple[Stage, ...]:
    """Return the stages from a T1w file to a judged brain in template space, in order."""
    settings = config.preprocessing
    identifier = preprocessing_id(preprocessing_content(config))
    return (
        Stage(
            name="ingest",
            version=ingest.STAGE_VERSION,
            parameters=settings.ingest.model_dump(mode="json"),
            reads=(),
            run=lambda scan: _ingested(scan, settings),
            save=_save_ingested,
            load=lambda scan, _: _ingested(scan, settings),
        ),
        Stage(
            name="brain_extraction",
            version=brain_extraction.STAGE_VERSION,
            parameters=settings.brain_extraction.model_dump(mode="json")
            | {"weights": brain_extraction.deepbet_sha256(), "seed": config.seed},
            reads=_HEAD,
            run=lambda ingested: brain_extraction.extract_brain(
                ingested, settings.brain_extraction, config.seed
            ),
            save=_save_stripped,
            load=_load_stripped,
        ),
        Stage(
            name="bias_field",
            version=bias_field.STAGE_VERSION,
            parameters=settings.bias_field.model_dump(mode="json") | {"seed": config.seed},
            reads=("ingest", "brain_extraction"),
            run=lambda stripped: bias_field.correct_bias(stripped, settings.bias_field, config.seed),
            save=_save_corrected,
            load=_load_corrected,
        ),
        Stage(
            name="intensity",
            version=intensity.STAGE_VERSION,
            parameters=settings.intensity.model_dump(mode="json"),
            reads=("brain_extraction", "bias_field"),
            run=lambda corrected: intensity.normalise(corrected, settings.intensity),
            save=_save_normalised,
            load=_load_normalised,
        ),
        Stage(
            name="registration",
            version=registration.STAGE_VERSION,
            parameters=settings.registration.model_dump(mode="json")
            | {"seed": config.seed, "template": template.template_sha256()},
            reads=("brain_extraction", "bias_field", "intensity"),
            run=lambda normalised: registration.register(normalised, settings.registration, config.seed),
            save=partial(_save_registered, identifier=identifier),
            load=_load_registered,
        ),
        Stage(
            name="quality",
            version=quality.STAGE_VERSION,
            parameters={
                "bounds": {name: bounds.model_dump() for name, bounds in config.quality.items()},
                "second_opinion": config.second_opinion,
                "seed": config.seed,
            },
            reads=_ALL,
            run=lambda registered: _assessed(registered, config),
            save=_save_assessed,
            load=_load_assessed,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class AtlasFile:
    """An atlas of the user: where it lies, and what it holds.

    Attributes
    ----------
    path : Path
        As the workers see it; never written to an output.
    name, sha256 : str
        Of :class:`brainstage.preprocessing.regions.Atlas`.
    """

    path: Path
    name: str
    sha256: str


def scan_stages(config: Config, atlas: AtlasFile | None = None) -> tuple[Stage, ...]:
    """Return the stages of a scan up to the pictures of its report.

    Parameters
    ----------
    config : Config
    atlas : AtlasFile, optional
        Its regions are measured besides.
    """
    return (*preprocessing_stages(config), volumes_stage(atlas), figures_stage(config))


def volumes_stage(atlas: AtlasFile | None = None) -> Stage:
    """Return the stage that measures hippocampi, ventricles and tissues.

    Nothing that a model sees depends on it, so that it is no part of the ``preprocessing_id``.
    """
    return Stage(
        name="volumes",
        version=volumes.STAGE_VERSION,
        parameters={
            "weights": hippocampus_network.hippocampus_weights_sha256(),
            "template": template.template_sha256(),
            "atlas": atlas.sha256 if atlas else None,
        },
        reads=(*_ALL, "quality"),
        run=lambda assessed: _measured(assessed, atlas),
        save=_save_volumes,
        load=_load_volumes,
    )


def figures_stage(config: Config) -> Stage:
    """Return the stage that makes the pictures and the small volumes of the report."""
    return Stage(
        name="figures",
        version=FIGURES_VERSION,
        parameters=config.reports.model_dump(mode="json"),
        reads=(*_ALL, "volumes"),
        run=lambda assessed: assessed,
        save=partial(_save_figures, keep_face=config.reports.keep_face),
        load=lambda assessed, _: assessed,
    )


def read_qc(path: Path) -> QcReport:
    """Read a ``*_desc-qc.json``.

    Raises
    ------
    OSError, ValueError
        When it cannot be read or understood.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    verdict = {"status": content.pop("qc_status", None), "reasons": content.pop("qc_reasons", None)}
    return as_record({"measures": content, "verdict": verdict}, QcReport)


def read_figures(files: ScanFiles) -> dict[str, bytes]:
    """Return the pictures of a scan by name; those that are there."""
    paths = {name: files.figure(name) for name in FIGURES}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def read_previews(files: ScanFiles) -> dict[str, bytes]:
    """Return the volumes of a scan for the viewer of its report, by name; those that are there."""
    paths = {name: files.preview(name) for name in PREVIEWS}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def _save_ingested(ingested: IngestedHead, files: ScanFiles) -> Sequence[Path]:
    # The head itself is read again from its source when it is needed: that takes 0.2 s and no space.
    findings = ingested.findings
    content = {
        "shape": list(findings.shape),
        "spacing_mm": list(findings.spacing_mm),
        "axcodes": findings.axcodes,
        "affine_source": findings.affine_source,
        "warnings": list(findings.warnings),
        "ras_voxel_to_ras": ingested.head.voxel_to_ras.tolist(),
    }
    return [write_json(files.state / "header_findings.json", content)]


def _ingested(scan: T1wScan, settings: PreprocessingConfig) -> IngestedHead:
    return ingest.ingest(scan.path, settings.ingest, sha256=scan.sha256, root=scan.root)


def _save_stripped(stripped: StrippedBrain, files: ScanFiles) -> Sequence[Path]:
    sidecar = {
        "Type": "Brain",
        "RawSources": [],
        "Description": "Brain mask, native space, RAS",
        "BrainExtractionMethod": stripped.method,
        "SkullStrippedInput": stripped.skull_stripped_input,
        "BrainVolume_ml": round(stripped.brain_mask.volume_ml, 3),
    }
    mask = write_mask(files.native_mask, stripped.brain_mask)
    return [mask, write_json(sidecar_of(mask), sidecar)]


def _load_stripped(ingested: IngestedHead, files: ScanFiles) -> StrippedBrain:
    sidecar = read_json(sidecar_of(files.native_mask))
    return StrippedBrain(
        head=ingested.head,
        findings=ingested.findings,
        brain_mask=read_mask(files.native_mask),
        method=sidecar["BrainExtractionMethod"],
        skull_stripped_input=sidecar["SkullStrippedInput"],
    )


def _save_corrected(corrected: CorrectedBrain, files: ScanFiles) -> Sequence[Path]:
    sidecar = {
        "SkullStripped": corrected.stripped.skull_stripped_input,
        "Description": "Bias-corrected head, native space, RAS",
        "BiasFieldRange": corrected.field_range,
    }
    volume = write_volume(files.native_t1w, corrected.head)
    return [volume, write_json(sidecar_of(volume), sidecar)]


def _load_corrected(stripped: StrippedBrain, files: ScanFiles) -> CorrectedBrain:
    return CorrectedBrain(
        head=read_volume(files.native_t1w),
        brain_mask=stripped.brain_mask,
        stripped=stripped,
        field_range=read_json(sidecar_of(files.native_t1w))["BiasFieldRange"],
    )


def _save_normalised(normalised: NormalisedBrain, files: ScanFiles) -> Sequence[Path]:
    # Two numbers; the normalised volume follows from them and from what is on disk already.
    return [write_json(files.state / "normalisation.json", vars(normalised.normalisation))]


def _load_normalised(corrected: CorrectedBrain, files: ScanFiles) -> NormalisedBrain:
    fitted = Normalisation(**read_json(files.state / "normalisation.json"))
    return intensity.apply_normalisation(corrected, fitted)


def _save_registered(registered: RegisteredBrain, files: ScanFiles, *, identifier: str) -> Sequence[Path]:
    sidecar = {
        "SkullStripped": True,
        "SpatialReference": {"Template": TEMPLATE_SPACE, "Resolution_mm": registered.brain.spacing_mm[0]},
        "Description": "Skull-stripped, bias-corrected, intensity-normalised brain in template space",
        "IntensityNormalisation": vars(registered.normalised.normalisation),
        "NativeToTemplate_ras_mm": registered.native_to_template.tolist(),
        "PreprocessingId": identifier,
    }
    volume = write_volume(files.template_t1w, registered.brain)
    written = [
        volume,
        write_json(sidecar_of(volume), sidecar),
        write_mask(files.template_mask, registered.brain_mask),
        transforms.write_transform(
            files.native_to_template,
            transforms.to_template_transform(registered.native_to_template, registered.deformation),
        ),
    ]
    if registered.deformation is not None:
        inverse = transforms.to_native_transform(registered.native_to_template, registered.deformation)
        written.append(transforms.write_transform(files.template_to_native, inverse))
    return written


def _load_registered(normalised: NormalisedBrain, files: ScanFiles) -> RegisteredBrain:
    return RegisteredBrain(
        brain=read_volume(files.template_t1w),
        brain_mask=read_mask(files.template_mask),
        native_to_template=read_json(sidecar_of(files.template_t1w))["NativeToTemplate_ras_mm"],
        normalised=normalised,
        deformation=_deformation_in(files),
    )


def _deformation_in(files: ScanFiles) -> Deformation | None:
    if not files.template_to_native.is_file():
        return None
    forward, inverse = (
        transforms.read_field(path) for path in (files.native_to_template, files.template_to_native)
    )
    return Deformation(forward=forward, inverse=inverse) if forward and inverse else None


def _assessed(registered: RegisteredBrain, config: Config) -> AssessedBrain:
    qc = quality.assess(registered, config.quality, second_opinion=config.second_opinion, seed=config.seed)
    return AssessedBrain(registered=registered, qc=qc)


def _save_assessed(assessed: AssessedBrain, files: ScanFiles) -> Sequence[Path]:
    verdict = assessed.qc.verdict
    content = dict(assessed.qc.measures) | {
        "qc_status": str(verdict.status),
        "qc_reasons": list(verdict.reasons),
    }
    return [write_json(files.qc_json, content)]


def _load_assessed(registered: RegisteredBrain, files: ScanFiles) -> AssessedBrain:
    return AssessedBrain(registered=registered, qc=read_qc(files.qc_json))


def _measured(assessed: AssessedBrain, atlas: AtlasFile | None) -> AssessedBrain:
    found, labels = volumes.measure_volumes(
        assessed.registered, hippocampus_network.hippocampus_segmenter(), _atlas_of(atlas) if atlas else None
    )
    # A person may still pass the scan: its numbers are kept. A picture of labels that are wrong helps nobody.
    failed = assessed.qc.verdict.status is QcStatus.FAIL
    return replace(assessed, volumes=found, labels=None if failed else labels)


@cache
def _atlas_of(atlas: AtlasFile) -> regions.Atlas:
    """Return a user's atlas; read once per process.

    Raises
    ------
    ImageError
        When the file is another than when the run began.
    """
    found = regions.read_atlas(atlas.path)
    if found.sha256 != atlas.sha256:
        raise ImageError(f"{atlas.name} was altered since the run began; run it again")
    return found


def _save_volumes(assessed: AssessedBrain, files: ScanFiles) -> Sequence[Path]:
    written = [write_json(files.state / VOLUMES_RECORD, asdict(assessed.volumes))] if assessed.volumes else []
    if assessed.labels is None:
        return written
    names = "".join(f"{index}\t{name}\n" for index, name in volumes.LABEL_NAMES.items())
    sidecar = {
        "Description": "Tissues, lateral ventricles and hippocampi, native space, RAS",
        "Manual": False,
        "HippocampusNetwork_sha256": hippocampus_network.hippocampus_weights_sha256(),
    }
    return [
        *written,
        write_labels(files.labels, assessed.labels),
        write_text(files.label_names, f"index\tname\n{names}"),
        write_json(sidecar_of(files.labels), sidecar),
    ]


def _load_volumes(assessed: AssessedBrain, files: ScanFiles) -> AssessedBrain:
    labels = read_volume(files.labels) if files.labels.is_file() else None
    return replace(assessed, volumes=read_volumes(files), labels=labels)


def _save_figures(assessed: AssessedBrain, files: ScanFiles, *, keep_face: bool) -> Sequence[Path]:
    from brainstage.workflows.reporting.face import face_is_located
    from brainstage.workflows.reporting.figures import scan_figures  # heavy: matplotlib
    from brainstage.workflows.reporting.previews import scan_previews

    located = face_is_located(assessed.qc.measures)
    pictures = scan_figures(
        assessed.registered,
        keep_face=keep_face,
        face_located=located,
        labels=assessed.labels,
        volumes=assessed.volumes,
    )
    volumes = scan_previews(assessed.registered, keep_face=keep_face)
    written = [write_bytes(files.figure(name), picture) for name, picture in pictures.items()]
    return [*written, *(write_bytes(files.preview(name), volume) for name, volume in volumes.items())]
