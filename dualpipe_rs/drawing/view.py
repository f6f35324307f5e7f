"""What ``show()`` gives: something to look at, in whichever place it is shown.

In a notebook with anywidget it is a canvas to zoom and to point at; without it, and where no widget can run,
an SVG; in a terminal, a grid of text.
"""

from __future__ import annotations

import importlib.util
from os import PathLike
from typing import TYPE_CHECKING, Any

from dualpipe_rs._core import Picture, Schedule, Timeline
from dualpipe_rs.drawing.options import Options
from dualpipe_rs.errors import UsageError

if TYPE_CHECKING:
    from dualpipe_rs.drawing.widget import TimelineWidget

# A grid of text of about this many columns.
_COLUMNS = 120


class View:
    """Schedules and timelines, one above the other on one axis of time, as the last value of a notebook's
    cell.

    A Schedule is drawn with unit costs (F = I = W = 1); one that breaks rules as its rows stand, with the
    cells marked. Of a fused pair the two actions stand side by side in one border, as in the published
    figures (arXiv 2412.19437, figure 5), though both run all the time.

    Args:
        seen: Schedules and Timelines, the first on top. Of what is measured, times are in seconds, of what is
            predicted in the unit of its costs; give ``fit=True`` to compare where these differ.
        options: ``causes`` (idle time shaded by what was waited for), ``critical_path``, ``memory`` (a curve
            of what the ranks hold), ``fit`` (each as wide as its own makespan), all booleans; ``theme``
            ("auto", "light" or "dark"); ``width`` (pixels, of static pictures).

    Raises:
        UsageError: nothing to see, or an option that does not exist.
    """

    def __init__(self, *seen: Schedule | Timeline, **options: Any) -> None:
        self._options = Options.of(options)
        self._widget: TimelineWidget | None = None
        self.update(*seen)

    def update(self, *seen: Schedule | Timeline) -> None:
        """Shows other schedules or timelines in the same place: what a slider calls."""
        if not seen:
            raise UsageError("there is nothing to see; give at least one Schedule or Timeline")
        self._picture = Picture(seen)
        self._seen = seen
        if self._widget is not None:
            self._widget.show_picture(self._picture)

    @property
    def widget(self) -> TimelineWidget:
        """The canvas as a widget of Jupyter's, to be laid out beside others. ModuleNotFoundError where
        anywidget is not installed."""
        if self._widget is None:
            try:
                from dualpipe_rs.drawing.widget import TimelineWidget
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "a picture to zoom in a notebook needs anywidget: pip install 'dualpipe_rs[notebook]'",
                    name=error.name,
                ) from error
            self._widget = TimelineWidget(**self._options.turnable)
            self._widget.show_picture(self._picture)
        return self._widget

    def svg(self) -> str:
        """The picture as SVG; in its theme's colours, or with "auto" in those of whoever looks at it."""
        return self._picture.svg(self._options.theme, self._options.drawn)

    def html(self) -> str:
        """A page that holds everything and loads nothing."""
        from dualpipe_rs.drawing.page import page

        return page(self._picture, self._options)

    def save(self, path: str | PathLike[str], **options: Any) -> None:
        """Writes a file, as :meth:`Timeline.save` does, with these options in place of the view's."""
        from dualpipe_rs.drawing.files import write

        write(self._seen, path, options, {**self._options.turnable, "width": self._options.width})

    def __repr__(self) -> str:
        return self._picture.text(_COLUMNS)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        static = {"text/plain": repr(self), "image/svg+xml": self.svg()}
        if importlib.util.find_spec("anywidget") is None:
            return static
        made = self.widget._repr_mimebundle_()
        if made is None:
            return static
        data, metadata = made if isinstance(made, tuple) else (made, {})
        return {**data, **static}, metadata
