"""Which published weights this version knows, by commit and sha256, and what may be said of a file by its sha256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Origin = Literal["published", "vouched", "random", "unknown"]
"""Known by its sha256, vouched for by the user, drawn by this program, or none of these."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A published file that cannot be mistaken for another.

    Attributes
    ----------
    sha256 : str
        Of the file as it was published.
    revision : str
        The commit of its repository on the hub to take it from.
    """

    sha256: str
    revision: str


# A sha256 stands here when two projects that have nothing to do with each other hold the file against it. All three:
# yasinzaii/medmetric. resnet10 and resnet18: KatherLab/MediSwarm. resnet50: a third, which took it from the authors'
# own archive. That of resnet34 was found in the first alone.
PINNED: Final[Mapping[str, Pin]] = MappingProxyType(
    {
        "med3d-resnet10": Pin(
            sha256="afa8055f3e47f4a18239495d92a7abc587902c69c31c743de2b2784653b72605",
            revision="2a0c8cd91b82beb69610b60cb76d9eb8cbf9eac7",
        ),
        "med3d-resnet18": Pin(
            sha256="61224f9317fcce873366deb3703183e92cc47325b726b69691b33536244e10f4",
            revision="758fe285bc8ab565eb4f9f965810f1d1a3f79491",
        ),
        "med3d-resnet50": Pin(
            sha256="ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e",
            revision="8d924de10880fc392b71cbf61804e880aeb74e53",
        ),
    }
)
"""Asset to pin. An asset that is missing here can be fetched, and its origin is then unknown."""


def identified(sha256: str, pinned: Mapping[str, Pin] = PINNED) -> str | None:
    """Return the asset whose published file has this sha256.

    >>> identified("afa8055f3e47f4a18239495d92a7abc587902c69c31c743de2b2784653b72605")
    'med3d-resnet10'
    """
    return next((asset for asset, pin in pinned.items() if pin.sha256 == sha256), None)


def origin_in_words(asset: str, origin: Origin, sha256: str) -> str:
    """Return what may be said of the weights that go by the name of an asset: one sentence for the model card.

    >>> origin_in_words("med3d-resnet34", "unknown", "00ff")
    'origin not verified: the file has sha256 00ff, and only its name says med3d-resnet34'
    """
    if origin == "published":
        return (
            f"Med3D {asset.removeprefix('med3d-')}, pretrained by segmentation on 23 data sets (arXiv 1904.00625); "
            "the published file, by its sha256"
        )
    if origin == "vouched":
        return (
            f"vouched for by the user as {asset}, not verified by this program: the file has sha256 {sha256}"
        )
    return f"origin not verified: the file has sha256 {sha256}, and only its name says {asset}"
