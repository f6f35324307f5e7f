"""A picture as PNG or PDF: the shapes that Rust laid out, drawn by matplotlib (an optional extra)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from dualpipe_rs._core import Picture
from dualpipe_rs.drawing.options import Options
from dualpipe_rs.errors import UsageError
from dualpipe_rs.given import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels of a layout in an inch, and points in that inch.
_PIXELS, _POINTS = 100.0, 72.0
# More take minutes and gigabytes.
_MOST_DOTS = 2e8
# The face that comes with matplotlib is wider than those that the layout reckons with.
_FACE = 0.9


def figure(picture: Picture, options: Options) -> Figure:
    """A matplotlib Figure of the picture, apart from pyplot and its state.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PNG and PDF files need matplotlib: pip install 'dualpipe_rs[plot]' (SVG and HTML need nothing)",
            name="matplotlib",
        ) from error
    width, height, shapes = picture.shapes(options.fixed_theme, options.drawn)
    made = Figure(figsize=(width / _PIXELS, height / _PIXELS))
    axes = made.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _draw(axes, shapes)
    return made


def _draw(axes: Axes, shapes: list[Any]) -> None:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba

    rects = [shape for shape in shapes if shape[0] == "rect"]
    filled = [rect for rect in rects if rect[2] is not None]
    framed = [rect for rect in rects if rect[3] is not None]
    lines = [shape for shape in shapes if shape[0] == "line"]
    # In points, where the layout has pixels.
    points = _POINTS / _PIXELS
    colours = [to_rgba(rect[2], rect[5]) for rect in filled]
    # An outline of no width: neighbours must not show the paper between them.
    axes.add_collection(PolyCollection([_corners(r[1]) for r in filled], facecolors=colours, linewidths=0))
    axes.add_collection(
        LineCollection(
            [line[1] for line in lines],
            colors=[line[2] for line in lines],
            linewidths=[line[3] * points for line in lines],
        )
    )
    axes.add_collection(
        PolyCollection(
            [_corners(r[1]) for r in framed],
            facecolors="none",
            edgecolors=[r[3] for r in framed],
            linewidths=[r[4] * points for r in framed],
        )
    )
    places = {"start": "left", "middle": "center", "end": "right"}
    for _, (x, y), text, size, anchor, colour in (shape for shape in shapes if shape[0] == "text"):
        # A dollar sign is no formula here.
        axes.text(
            x,
            y,
            text,
            fontsize=size * points * _FACE,
            ha=places[anchor],
            va="baseline",
            color=colour,
            parse_math=False,
        )


def _corners(area: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    x, y, width, height = area
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def image(picture: Picture, options: Options, suffix: str, dpi: float) -> bytes:
    """The bytes of a file. ``dpi`` is of a PNG: dots to an inch of 100 pixels of the layout."""
    dpi = amount("dpi", dpi, "a number from 10 to 2400")
    if not 10 <= dpi <= 2400:
        raise UsageError(f"dpi is {dpi:g}; it is a number from 10 to 2400")
    made = figure(picture, options)
    width, height = (size * dpi for size in made.get_size_inches())
    if suffix == ".png" and width * height > _MOST_DOTS:
        raise UsageError(
            f"the picture would have {width:.0f} x {height:.0f} dots, more than {_MOST_DOTS:.0e}; "
            "give a smaller width or dpi, or write an .svg"
        )
    out = io.BytesIO()
    # No date in the file: the same picture gives the same bytes.
    metadata = {"CreationDate": None} if suffix == ".pdf" else {"Software": "dualpipe_rs"}
    made.savefig(out, format=suffix[1:], dpi=dpi, metadata=metadata)
    return out.getvalue()
