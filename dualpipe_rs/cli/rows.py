"""A rank's row with one cell marked, as far as it fits."""

from __future__ import annotations

from dualpipe_rs.cli.terminal import Terminal
from dualpipe_rs.errors import Violation


def marked_row(row: list[str], violation: Violation, screen: Terminal) -> str:
    """The row of a violation; of a long one the part around the cell, or its start if the cell is nowhere."""
    label = f"  rank {violation.rank}: "
    more = "…" if screen.signs else "..."
    marked = violation.slot
    first, last = _around(row, marked or 0, screen.width - len(label) - 2 * (len(more) + 1) - 2)
    cells = [screen.marked(cell) if slot == marked else cell for slot, cell in enumerate(row)][first:last]
    before, after = [more] * (first > 0), [more] * (last < len(row))
    return label + " ".join([*before, *cells, *after])


def _around(row: list[str], slot: int, room: int) -> tuple[int, int]:
    """The cells about this one that fit into so many columns, as many before as behind where there are."""
    if not row:
        return 0, 0
    first, last = slot, slot + 1
    room -= len(row[slot])
    grows = True
    while grows:
        grows = False
        for at in (first - 1, last):
            if 0 <= at < len(row) and len(row[at]) < room:
                first, last = min(first, at), max(last, at + 1)
                room -= len(row[at]) + 1
                grows = True
    return first, last
