"""Pictures of schedules and timelines: in a notebook, and as files.

:class:`View` is what ``show()`` gives; ``files.py`` is what ``save()`` writes. What there is to see, and
where it goes, is made in Rust (``rust/picture/``); ``canvas/`` is that of notebooks and pages,
``widget.py`` carries it into a notebook, ``page.py`` into a page of its own, ``figure.py`` draws the same
shapes with matplotlib.
"""

from __future__ import annotations

from dualpipe_rs.drawing.files import save
from dualpipe_rs.drawing.view import View
from dualpipe_rs.drawing.visualize import visualize_schedule

__all__ = ["View", "save", "visualize_schedule"]
