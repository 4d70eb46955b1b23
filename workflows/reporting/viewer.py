"""The volume viewer of a scan's report: which volumes it shows over which, and the library that draws them.

The page holds NiiVue and the volumes as compressed text. Nothing is unpacked before the viewer is opened, and nothing
is requested: the page's policy allows no script but the two named by their hashes, and no connection at all.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from markupsafe import Markup

from brainstage.workflows.evidence import MAPS
from brainstage.workflows.reporting.pages import page_environment, script_hash

_LIBRARY: Final = ("templates", "vendor", "niivue.min.js")


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A volume drawn over another, where it is above 0.

    Attributes
    ----------
    volume : str
        Name of the preview; an overlay that a scan has no volume for is left out.
    title : str
        What the switch is called.
    colours : str
        A colour map: ``orange`` and ``sky`` of the pictures, ``plasma``, ``red`` and ``blue`` of maps of evidence,
        ``gray``.
    opacity : float
        0 to 1, to begin with.
    shown : bool
        Whether it is on to begin with.
    """

    volume: str
    title: str
    colours: str
    opacity: float
    shown: bool = True


@dataclass(frozen=True, kw_only=True)
class View:
    """A volume in grey, and what can be laid over it."""

    name: str
    title: str
    volume: str
    overlays: tuple[Overlay, ...] = ()


def evidence_volume(name: str, *, native: bool, against: bool = False) -> str:
    """Return the name of the volume of a map of evidence, or of what in it speaks against the class."""
    return f"evidence_{name}{'_against' if against else ''}{'_native' if native else ''}"


def _evidence_overlays(*, native: bool) -> tuple[Overlay, ...]:
    overlays = []
    for name, kind in MAPS.items():
        sides = (
            ((": for", "red", False), (": against", "blue", True)) if kind.exact else (("", "plasma", False),)
        )
        overlays += [
            Overlay(
                volume=evidence_volume(name, native=native, against=against),
                title=f"{kind.title}{words}",
                colours=colours,
                opacity=0.8 if kind.exact else 0.6,
                shown=False,
            )
            for words, colours, against in sides
        ]
    return tuple(overlays)


VIEWS: Final = (
    View(
        name="template",
        title="Template space",
        volume="registered",
        overlays=(
            # Opaque grey: switching it on and off flickers between brain and template, which shows the least shift.
            Overlay(volume="template", title="Template", colours="gray", opacity=1.0, shown=False),
            Overlay(volume="template_edges", title="Edges of the template", colours="sky", opacity=0.7),
            *_evidence_overlays(native=False),
        ),
    ),
    View(
        name="native",
        title="Native space",
        volume="native",
        overlays=(
            Overlay(volume="native_mask", title="Brain mask", colours="orange", opacity=0.25),
            *_evidence_overlays(native=True),
        ),
    ),
)
"""What the viewer offers, in this order. A further overlay is a line here and a volume of its name."""


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """What a page holds of the viewer.

    Attributes
    ----------
    views : tuple of dict
        :class:`View` as plain values.
    volumes : mapping
        Name of a volume to its gzipped NIfTI, base64.
    library : str
        NiiVue, gzip, base64.
    script : Markup
        What opens it.
    script_sources : str
        The hashes of both scripts, for the page's policy.
    """

    views: tuple[dict[str, Any], ...]
    volumes: Mapping[str, str]
    library: str
    script: Markup
    script_sources: str


def viewer_of(volumes: Mapping[str, bytes]) -> Viewer | None:
    """Return the viewer of a scan's volumes (name to gzipped NIfTI); None where there is none to show."""
    views = [
        asdict(view) | {"overlays": [asdict(o) for o in view.overlays if o.volume in volumes]}
        for view in VIEWS
        if view.volume in volumes
    ]
    if not views:
        return None
    needed = {view["volume"] for view in views} | {o["volume"] for view in views for o in view["overlays"]}
    script = page_environment().get_template("viewer.js.j2").render()
    library, library_hash = _library()
    return Viewer(
        views=tuple(views),
        volumes={name: _text(volumes[name]) for name in sorted(needed)},
        library=library,
        script=Markup(script),  # noqa: S704 - our own text
        script_sources=f"{script_hash(script)} {library_hash}",
    )


@cache
def _library() -> tuple[str, str]:
    """Return NiiVue as compressed text, and the hash of what it unpacks to."""
    source = files("brainstage.workflows").joinpath(*_LIBRARY).read_text(encoding="utf-8")
    return _text(gzip.compress(source.encode("utf-8"), 9, mtime=0)), script_hash(source)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
