"""The script of the canvas: the files of ``canvas/``, joined to one module, as notebooks and pages take
it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# In the order in which they need each other.
_PARTS = ("picture", "cells", "plot", "pointer", "view")


@cache
def script() -> str:
    """A module of JavaScript without imports; its default export is what anywidget asks for."""
    folder = Path(__file__).with_name("canvas")
    return "\n".join((folder / f"{part}.js").read_text(encoding="utf-8") for part in _PARTS)
