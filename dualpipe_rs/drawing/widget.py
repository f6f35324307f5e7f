"""The canvas in a notebook. Needs anywidget; nothing imports this before it is asked for."""

from __future__ import annotations

import anywidget
import traitlets

from dualpipe_rs._core import Picture
from dualpipe_rs.drawing.block import block
from dualpipe_rs.drawing.script import script


class TimelineWidget(anywidget.AnyWidget):
    """A timeline to zoom, to pan and to point at; made by :attr:`View.widget`.

    ``causes``, ``critical_path``, ``memory``, ``fit`` and ``theme`` may be set, or linked to other widgets.
    """

    _esm = script()
    _picture = traitlets.Bytes().tag(sync=True)
    causes = traitlets.Bool(False).tag(sync=True)
    critical_path = traitlets.Bool(False).tag(sync=True)
    memory = traitlets.Bool(True).tag(sync=True)
    fit = traitlets.Bool(False).tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], default_value="auto").tag(sync=True)

    def show_picture(self, picture: Picture) -> None:
        self._picture = block(picture)
