"""What every page shares: the template environment, pictures as text, numbers as words."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

NOT_APPLICABLE: Final = "n/a"
_PNG_MAGIC: Final = b"\x89PNG"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known about a run.

    Attributes
    ----------
    version : str
        Of brainstage.
    date : str
        When the page was made, as it is to be shown.
    options : str
        The command line without paths.
    preprocessing_id : str
    seeds : mapping
        What is seeded to its seed.
    tool_versions : mapping
        Package to version.
    """

    version: str
    date: str
    options: str = ""
    preprocessing_id: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    tool_versions: Mapping[str, str] = field(default_factory=dict)


@cache
def page_environment() -> Environment:
    """Return the templates: everything is escaped, an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("brainstage.workflows", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "value_text": value_text,
        "percent": percent,
        "signed": signed,
    }
    return environment


def data_uri(picture: bytes) -> str:
    """Return a PNG or JPEG as text that needs no request."""
    kind = "png" if picture.startswith(_PNG_MAGIC) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, from its header; (0, 0) for anything else.

    >>> png_size(b"nothing")
    (0, 0)
    """
    if not png.startswith(b"\x89PNG") or len(png) < 24:
        return 0, 0
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def value_text(value: float | bool | str | None, unit: str = "") -> str:
    """Return a measure as it is read; codes joined by semicolons are set apart.

    >>> value_text(1423.6412, "ml"), value_text(True), value_text(None), value_text(0.51234)
    ('1424 ml', 'yes', 'n/a', '0.512')
    """
    if value is None or value == "":
        return NOT_APPLICABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.replace(";", ", ")
    text = f"{value:.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{text} {unit}".strip()


def percent(probability: float) -> str:
    """Return a probability in per cent; what is not certain is not shown as 0 or 100.

    >>> percent(0.824), percent(0.9996), percent(0.0001)
    ('82 %', '> 99 %', '< 1 %')
    """
    if 0.0 < probability < 0.005:
        return "< 1 %"
    if 0.995 <= probability < 1.0:
        return "> 99 %"
    return f"{100.0 * probability:.0f} %"


def signed(amount: float) -> str:
    """Return a number with its sign and three decimals.

    >>> signed(0.3141), signed(-1.2), signed(0.0001)
    ('+0.314', '−1.200', '0.000')
    """
    text = f"{abs(amount):.3f}"
    return f"{'+' if amount > 0 else '−'}{text}" if float(text) else text


def script_hash(script: str) -> str:
    """Return the source expression that lets a content security policy run exactly this inline script."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
