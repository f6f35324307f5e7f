"""A timeline in a terminal: one row a rank, an axis, and a legend.

Without colour the rows are ``Timeline.grid``'s, as ``print(timeline)`` has them; in colour the same columns
are painted, so that a pair is told from a single action however narrow it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dualpipe_rs._core import Timeline
from dualpipe_rs.cli.palette import RESET, Mark, paint
from dualpipe_rs.cli.terminal import MOST_COLUMNS, Terminal

#: The columns of the shortest slot where there is room: a letter, two digits, and one between slots.
CELL = 4
_WORDS = {"F": "forward", "I": "backward for input", "W": "backward for weights", "B": "full backward"}


@dataclass(frozen=True)
class Layout:
    """Where times stand in a line of ``Timeline.grid``: the same rounding, the same least width."""

    label: int
    columns: int
    per_time: float
    needed: int
    """Columns of the whole line that show every microbatch."""

    @staticmethod
    def of(timeline: Timeline, width: int) -> Layout:
        label = len(f"rank {timeline.num_ranks - 1}")
        columns = max(CELL, width - label - 3)
        durations = timeline.spans["end"] - timeline.spans["start"]
        lasting = durations[durations > 0]
        if not len(lasting) or timeline.makespan <= 0:
            return Layout(label, columns, 0.0, 0)
        shortest = float(lasting.min())
        needed = timeline.makespan / shortest * CELL
        per_time = min(CELL / shortest, columns / timeline.makespan)
        return Layout(label, columns, per_time, label + 3 + math.ceil(needed) if needed < 1e9 else 10**9)

    @property
    def is_cramped(self) -> bool:
        return self.needed > self.label + 3 + self.columns

    def columns_of(self, times: Any) -> Any:
        """The column of each time from the timeline's start on; times and columns are arrays."""
        return (times * self.per_time + 0.5).astype("int64").clip(0, self.columns)


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    marks: list[Mark]


def picture(timeline: Timeline, terminal: Terminal) -> str:
    """Rows, axis and legend, at most as wide as the terminal; a narrow one is told how wide is enough."""
    layout = Layout.of(timeline, terminal.width)
    rows = _painted(timeline, layout, terminal) if terminal.color else timeline.grid(terminal.width)
    parts = [rows, terminal.dim(_axis(timeline, layout)), "", _legend(timeline, layout, terminal)]
    if layout.is_cramped:
        parts.append(_cramped(layout, terminal))
    return "\n".join(parts)


def _painted(timeline: Timeline, layout: Layout, terminal: Terminal) -> str:
    blocks = _blocks(timeline, layout)
    bar = "│" if terminal.signs else "|"
    rows = []
    for rank in range(timeline.num_ranks):
        name = f"rank {rank}".rjust(layout.label)
        rows.append(f"{terminal.dim(f'{name} {bar}')}{_row(blocks.get(rank, []), terminal.signs)}")
    return "\n".join(rows)


def _row(blocks: list[_Block], signs: bool) -> str:
    painted, column = [], 0
    for block in blocks:
        gap = f"{RESET}{' ' * (block.start - column)}" if block.start > column else ""
        painted.append(gap + paint(block.marks, block.end - block.start, signs))
        column = block.end
    return "".join(painted) + RESET


def _blocks(timeline: Timeline, layout: Layout) -> dict[int, list[_Block]]:
    """By rank, the slots that are at least a column wide: no more than there are columns."""
    spans = timeline.spans
    own: dict[int, int] = {}
    for rank, stage in spans[spans["slot"] == 0][["rank", "stage"]].tolist():
        own.setdefault(rank, stage)
    begin = spans["start"].min() if len(spans) else 0.0
    start, end = layout.columns_of(spans["start"] - begin), layout.columns_of(spans["end"] - begin)
    seen = end > start
    rows = zip(spans[seen].tolist(), start[seen].tolist(), end[seen].tolist(), strict=True)
    blocks: dict[int, list[_Block]] = {}
    for (rank, _), same in groupby(rows, key=lambda row: row[0][:2]):
        slot = list(same)
        marks = [
            Mark(str(kind), microbatch, stage != own.get(rank))
            for (_, _, kind, stage, microbatch, *_), *_ in slot
        ]
        blocks.setdefault(rank, []).append(_Block(slot[0][1], slot[0][2], marks))
    return blocks


def _axis(timeline: Timeline, layout: Layout) -> str:
    """Round times under the rows, each beginning in its column."""
    if layout.per_time <= 0:
        return "nothing takes any time"
    step = _round_step(10 / layout.per_time)
    line = ""
    for tick in range(int(timeline.makespan / step) + 1):
        text = f"{tick * step:.6g}"
        column = int(tick * step * layout.per_time + 0.5)
        if column >= len(line) and column + len(text) <= layout.columns:
            line = line.ljust(column) + text
    return f"{'time'.rjust(layout.label)}  {line}"


def _round_step(least: float) -> float:
    """The least of 1, 2, 5, 10, ... (or 0.5, 0.2, ...) that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10, 20) if step * power >= least)


def _legend(timeline: Timeline, layout: Layout, terminal: Terminal) -> str:
    found = set(timeline.spans["kind"].tolist())
    items: list[tuple[str, str]] = []  # what is written, and that as painted
    for kind in (kind for kind in _WORDS if kind in found):
        text = f"{kind} {_WORDS[kind]}"
        sample = Mark(kind, 0, False).tone.paint(f" {kind} ") + RESET
        items.append((text, text) if not terminal.color else (f" {text} ", f"{sample} {_WORDS[kind]}"))
    if _has_pairs(timeline):
        text = "F:B a fused pair" + (", its F alone where narrow" if layout.is_cramped else "")
        sides = (Mark("F", 0, False).tone.paint(" F") + Mark("B", 0, False).tone.paint("B "), RESET)
        painted = f"{''.join(sides)} a fused pair"
        items.append((text, text) if not terminal.color else ("FBFB a fused pair", painted))
    if _has_other_stages(timeline):
        text = f"{'dark, ' if terminal.color else ''}small letters: the rank's other stages"
        items.append((text, text))
    return _wrapped(items, terminal.width)


def _wrapped(items: list[tuple[str, str]], width: int) -> str:
    lines: list[str] = []
    room = 0
    for text, painted in items:
        if room >= len(text) + 3:
            lines[-1] += f"   {painted}"
            room -= len(text) + 3
        else:
            lines.append(painted)
            room = width - len(text)
    return "\n".join(lines)


def _has_pairs(timeline: Timeline) -> bool:
    spans = timeline.spans
    same = (spans["rank"][1:] == spans["rank"][:-1]) & (spans["slot"][1:] == spans["slot"][:-1])
    return bool(same.any())


def _has_other_stages(timeline: Timeline) -> bool:
    return len(set(timeline.spans[["rank", "stage"]].tolist())) > timeline.num_ranks


def _cramped(layout: Layout, terminal: Terminal) -> str:
    if layout.needed > MOST_COLUMNS:
        return terminal.dim("no terminal is wide enough for every microbatch"[: terminal.width])
    enough = f"--width {layout.needed} shows every microbatch"
    how = f"{enough}: --color always | less -RS scrolls"
    return terminal.dim(how if len(how) <= terminal.width else enough[: terminal.width])
