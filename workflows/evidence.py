"""What explains a scan's prediction, as it is kept beside its volumes: maps, regions, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from brainstage.models.choices import Member
from brainstage.pipeline.derivatives import ScanFiles, sidecar_of
from brainstage.pipeline.files import read_json_or_empty, sha256_of_bytes, sha256_of_json
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.records import Prediction
from brainstage.pipeline.stage import marker_path, read_marker
from brainstage.preprocessing.regions import RegionShare, RegionSum


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """A kind of map.

    Attributes
    ----------
    title : str
        In reports.
    method : str
        Of ``brainstage explain``, which makes it.
    member : str
        Whose answer it is about.
    exact : bool
        It adds up to what the member adds, what speaks against the class included.
    """

    title: str
    method: str
    member: Member
    exact: bool = False


BRIGHTNESS: Final = "linearBrightness"
LOCAL_VOLUME: Final = "linearVolume"
MAPS: Final[Mapping[str, MapKind]] = MappingProxyType(
    {
        BRIGHTNESS: MapKind(title="Brightness", method="linear", member="linear", exact=True),
        LOCAL_VOLUME: MapKind(title="Local volume", method="linear", member="linear", exact=True),
        "gradcam": MapKind(title="Grad-CAM", method="gradcam", member="network"),
        "occlusion": MapKind(title="Occlusion", method="occlusion", member="network"),
    }
)
"""Name of a map, as in its file, to what it is; also the order in reports."""
VOLUMES_METHOD: Final = "volumes"
"""The method that needs no map: what each volume adds stands in the prediction."""
LOG_ODDS: Final = "log-odds"
"""Unit of what a linear member adds: to the logarithm of the published probability of the class, relative to the
geometric mean over the classes."""
TOP_REGIONS: Final = 5
COLOURED_FROM: Final = 0.3
"""Part of a map's maximum from which it is coloured: below, a coarse map covers everything a little."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The explanation of one prediction by one map.

    Attributes
    ----------
    method : str
        A key of `MAPS`.
    label : str
        The class whose logit is explained.
    model_id : str
    units : str
        Of the map.
    atlas : str
        Where the regions come from.
    regions : tuple of RegionShare
        The one with the highest mean first; empty when nothing in the brain speaks for the class, and for exact maps.
    share_outside_brain : float
        Of the positive part of the map, 0 to 1; of exact maps, of both signs.
    learnt : bool
        False when the network's filters are random and were never trained.
    template_sha256 : str
        Of the registered brain that was looked at.
    picture : bytes
        The map over the registered brain, PNG.
    weight : float or None
        Of the member in the published probabilities, 0 to 1; None where that is not known.
    sums : tuple of RegionSum
        Of exact maps: the region with most of either sign first.
    total : float or None
        Of exact maps: what the whole map adds, also outside the brain.
    """

    method: str
    label: str
    model_id: str
    units: str
    atlas: str
    share_outside_brain: float
    learnt: bool
    template_sha256: str
    regions: tuple[RegionShare, ...] = ()
    picture: bytes = b""
    weight: float | None = None
    sums: tuple[RegionSum, ...] = ()
    total: float | None = None

    @property
    def kind(self) -> MapKind:
        """What sort of map it is."""
        return MAPS[self.method]

    @property
    def title(self) -> str:
        """The map's name."""
        return self.kind.title

    @property
    def top_sums(self) -> tuple[RegionSum, ...]:
        """The regions where most of either sign is, of an exact map."""
        return self.sums[:TOP_REGIONS]

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
            "Method": self.kind.method,
            "Member": self.kind.member,
            "MemberWeight": self.weight,
            "Class": self.label,
            "ModelId": self.model_id,
            "Units": self.units,
            **({"NetworkLearnt": self.learnt} if self.kind.member == "network" else {}),
            "TemplateImageSha256": self.template_sha256,
            "ShareOutsideBrain": self.share_outside_brain,
            "Atlas": self.atlas,
            "Regions": [asdict(region) for region in (self.sums or self.regions)],
            **({} if self.total is None else {"Sum": self.total}),
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
    found = [_read(files, name) for name in MAPS if files.evidence_regions(name).is_file()]
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
    paths = [
        marker_path(files, explanation_stage(VOLUMES_METHOD)),
        files.volume_evidence,
    ]
    for name, kind in MAPS.items():
        maps = [files.evidence_map(name, native=native) for native in (True, False)]
        paths += [
            marker_path(files, explanation_stage(kind.method)),
            files.evidence_regions(name),
            files.figure(name),
            *maps,
            *map(sidecar_of, maps),
        ]
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
            "sums" if MAPS[method].exact else "regions": content["Regions"],
            "weight": content["MemberWeight"],
            "total": content.get("Sum"),
            "share_outside_brain": content["ShareOutsideBrain"],
            "learnt": content["NetworkLearnt"] if MAPS[method].member == "network" else True,
            "template_sha256": content["TemplateImageSha256"],
        }
        return replace(as_record(kept, Evidence), picture=files.figure(method).read_bytes())
    except (OSError, KeyError, ValueError):
        return None  # half of it is gone: as good as none
