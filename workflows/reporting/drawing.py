"""A canvas of grey values with contours and small text, as PNG bytes; matplotlib without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

MAX_PNG_BYTES: Final = 290_000
COLOUR_COUNTS: Final = (128, 64, 32, 16, 8)
"""Palette sizes tried in turn until a picture is small enough; only pure noise needs the last ones."""

GREY_COUNTS: Final = (64, 48, 32, 24, 16, 8)
"""Grey values beside colours of lines, tried in turn likewise."""
_BLENDS: Final = (1 / 3, 2 / 3)
_BLENDED_GREYS: Final = 8
"""An edge of a line is a blend of its colour with whatever grey lies under it."""

TEXT_COLOUR: Final = "#d3dbe2"
TEXT_POINTS: Final = 7.5
DPI: Final = 100


@dataclass(frozen=True, kw_only=True)
class Note:
    """Text on the canvas, in pixels from its left upper corner."""

    text: str
    left: float
    top: float
    horizontal: str = "left"
    vertical: str = "top"
    points: float = TEXT_POINTS
    bold: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """The contour at one half of a canvas of values 0 ... 1."""

    canvas: NDArray[np.float32]
    colour: str
    width: float = 1.0


def drawn(
    picture: NDArray[np.float32],
    lines: Sequence[Line],
    notes: Sequence[Note],
    extra: Callable[[Axes], None] | None = None,
) -> Figure:
    """Return a figure of exactly the picture's size in pixels.

    Parameters
    ----------
    picture : ndarray, (H, W) or (H, W, 3)
        Grey values or colours, 0 ... 1.
    lines, notes
        Drawn over it.
    extra : callable, optional
        Draws whatever else; the axes count in pixels of the picture.
    """
    height, width = picture.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto")
    for line in lines:
        if line.canvas.min() < 0.5 < line.canvas.max():
            axes.contour(line.canvas, levels=[0.5], colors=[line.colour], linewidths=line.width)
    outline = [withStroke(linewidth=1.6, foreground="black")]
    for note in notes:
        axes.text(
            note.left, note.top, note.text, color=TEXT_COLOUR, fontsize=note.points,
            fontweight="bold" if note.bold else "normal", ha=note.horizontal, va=note.vertical, path_effects=outline,
        )  # fmt: skip
    if extra is not None:
        extra(axes)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return figure


def png_of(
    figure: Figure, *, colour_counts: Sequence[int] = COLOUR_COUNTS, max_bytes: int = MAX_PNG_BYTES
) -> bytes:
    """Return the figure as a palette PNG, with fewer colours where it would be larger than `max_bytes`.

    The bytes depend on nothing but the figure: no date, no software name.
    """
    image = _image_of(figure)
    palettes = (image.quantize(count, dither=Image.Dither.NONE) for count in colour_counts)
    return _first_that_fits(palettes, max_bytes)


def outlined_png_of(figure: Figure, colours: Sequence[str], *, max_bytes: int = MAX_PNG_BYTES) -> bytes:
    """Return a figure of greys and thin lines as a palette PNG whose lines keep their colours.

    A palette that is fitted to the pixels gives nearly all of itself to the greys, and what remains of a thin line is a
    shade of them. Here greys get fewer where the picture would be larger than `max_bytes`, and lines stay.
    """
    image = _image_of(figure)
    palettes = (
        image.quantize(palette=_line_palette(colours, count), dither=Image.Dither.NONE)
        for count in GREY_COUNTS
    )
    return _first_that_fits(palettes, max_bytes)


def coloured_png_of(figure: Figure, colours: NDArray[np.float32], *, max_bytes: int = MAX_PNG_BYTES) -> bytes:
    """Return a figure of greys and of few places in colours that mean a value, as a palette PNG that keeps them.

    Parameters
    ----------
    figure : Figure
    colours : ndarray, (N, 3) float32
        0 ... 1; with the greys at most 256.
    max_bytes : int
        Greys get fewer where the picture would be larger.
    """
    image = _image_of(figure)
    palettes = (
        image.quantize(palette=_palette(np.concatenate([_greys(count), colours])), dither=Image.Dither.NONE)
        for count in GREY_COUNTS
    )
    return _first_that_fits(palettes, max_bytes)


def _image_of(figure: Figure) -> Image.Image:
    agg = FigureCanvasAgg(figure)
    agg.draw()
    pixels: NDArray[Any] = np.asarray(agg.buffer_rgba())[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _first_that_fits(images: Iterable[Image.Image], max_bytes: int) -> bytes:
    """Return the first image that is small enough as PNG; the last one where none is."""
    content = b""
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=9)
        content = buffer.getvalue()
        if len(content) <= max_bytes:
            break
    return content


def _line_palette(colours: Sequence[str], grey_count: int) -> Image.Image:
    """Return a palette of greys, of the colours, and of their blends with greys."""
    pure = np.array([to_rgb(colour) for colour in colours])
    greys, under = _greys(grey_count), _greys(_BLENDED_GREYS)
    blends = [part * colour + (1 - part) * under for colour in pure for part in _BLENDS]
    return _palette(np.concatenate([greys, pure, *blends]))


def _greys(count: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, count)[:, None].repeat(3, 1)


def _palette(entries: NDArray[np.floating[Any]]) -> Image.Image:
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.round(255 * entries).astype(np.uint8).tobytes())
    return palette
