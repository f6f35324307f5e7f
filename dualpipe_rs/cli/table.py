"""A table of text: names to the left, numbers to the right, as many columns as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_BETWEEN = 2


@dataclass(frozen=True)
class Column:
    """A heading and its cells, all of one length."""

    head: str
    cells: Sequence[str]
    to_the_left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, [self.head, *self.cells]))

    def lines(self) -> list[str]:
        align = str.ljust if self.to_the_left else str.rjust
        return [align(cell, self.width) for cell in [self.head, *self.cells]]


def table(columns: Sequence[Column], width: int) -> list[str]:
    """The heading's line and one a row; columns from the first one that would not fit on are left out."""
    shown: list[Column] = []
    used = -_BETWEEN
    for column in columns:
        used += _BETWEEN + column.width
        if used > width and shown:
            break
        shown.append(column)
    rows = zip(*(column.lines() for column in shown), strict=True)
    return [(" " * _BETWEEN).join(cells).rstrip() for cells in rows]
