"""What explains a scan's prediction, as it is kept beside its volumes: maps, regions, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from brainstage.pipeline.derivatives import ScanFiles, sidecar_of
from brainstage.pipeline.files import read_json_or_empty, sha256_of_bytes, sha256_of_json
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.records import Prediction
from brainstage.pipeline.stage import marker_path, read_marker
from brainstage.preprocessing.regions import RegionShare

METHOD_TITLES: Final[Mapping[str, str]] = MappingProxyType({"gradcam": "Grad-CAM", "occlusion": "Occlusion"})
"""Method to its name in reports; also the order there."""
TOP_REGIONS: Final = 5
COLOURED_FROM: Final = 0.3
"""Part of a map's maximum from which it is coloured: below, a coarse map covers everything a little."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The explanation of one prediction by one method.

    Attributes
    ----------
    method : str
        A key of :data:`METHOD_TITLES`.
    label : str
        The class whose logit is explained.
    model_id : str
    units : str
        Of the map.
    atlas : str
        Where the regions come from.
    regions : tuple of RegionShare
        The one with the highest mean first; empty when nothing in the brain speaks for the class.
    share_outside_brain : float
        Of the positive part of the map, 0 to 1.
    learnt : bool
        False when the network's filters are random and were never trained.
    template_sha256 : str
        Of the registered brain that was looked at.
    picture : bytes
        The map over the registered brain, PNG.
    """

    method: str
    label: str
    model_id: str
    units: str
    atlas: str
    regions: tuple[RegionShare, ...]
    share_outside_brain: float
    learnt: bool
    template_sha256: str
    picture: bytes = b""

    @property
    def title(self) -> str:
        """The method's name."""
        return METHOD_TITLES[self.method]

    @property
    def top_regions(self) -> tuple[RegionShare, ...]:
        """The strongest regions."""
        return self.regions[:TOP_REGIONS]

    @property
    def key(self) -> str:
        """Hash of everything that a report shows of it."""
        return sha256_of_json(self.table | {"picture": sha256_of_bytes(self.picture)})

    @property
    def table(self) -> dict[str, Any]:
        """What stands in ``*_regions.json``."""
        return {
            "Method": self.method,
            "Class": self.label,
            "ModelId": self.model_id,
            "Units": self.units,
            "NetworkLearnt": self.learnt,
            "TemplateImageSha256": self.template_sha256,
            "ShareOutsideBrain": self.share_outside_brain,
            "Atlas": self.atlas,
            "Regions": [asdict(region) for region in self.regions],
        }


def explanation_stage(method: str) -> str:
    """Return the name of the marker of an explanation."""
    return f"explanation_{method}"


def read_evidence(files: ScanFiles, prediction: Prediction | None) -> tuple[Evidence, ...]:
    """Return what explains a prediction: of the same model, the same class and the same registered brain.

    Parameters
    ----------
    files : ScanFiles
    prediction : Prediction or None
        None gives nothing.
    """
    if prediction is None:
        return ()
    found = [_read(files, method) for method in METHOD_TITLES if files.evidence_regions(method).is_file()]
    registration = read_marker(files, "registration")
    current = registration.sha256_by_path.get(files.relative(files.template_t1w)) if registration else None
    return tuple(
        one
        for one in found
        if one is not None
        and (one.model_id, one.label) == (prediction.model_id, prediction.predicted_label)
        and current in (None, one.template_sha256)
    )


def remove_evidence(files: ScanFiles) -> None:
    """Remove every explanation of a scan: it names a class, and its prediction is withheld or gone."""
    for method in METHOD_TITLES:
        maps = [files.evidence_map(method, native=native) for native in (True, False)]
        paths = (
            marker_path(files, explanation_stage(method)),
            files.evidence_regions(method),
            files.figure(method),
            *maps,
            *map(sidecar_of, maps),
        )
        for path in paths:
            path.unlink(missing_ok=True)


def _read(files: ScanFiles, method: str) -> Evidence | None:
    content = read_json_or_empty(files.evidence_regions(method))
    try:
        kept = {
            "method": method,
            "label": content["Class"],
            "model_id": content["ModelId"],
            "units": content["Units"],
            "atlas": content["Atlas"],
            "regions": content["Regions"],
            "share_outside_brain": content["ShareOutsideBrain"],
            "learnt": content["NetworkLearnt"],
            "template_sha256": content["TemplateImageSha256"],
        }
        return replace(as_record(kept, Evidence), picture=files.figure(method).read_bytes())
    except (OSError, KeyError, ValueError):
        return None  # half of it is gone: as good as none
