"""``show``: what is painted where, and how wide."""

from __future__ import annotations

import os
import re

import pytest
from cli import ANSI, fine, process
from families import FAMILIES

import dualpipe_rs as dp

# ---- show --------------------------------------------------------------------------------------------------


def test_plain_rows_are_the_grid_and_figures_are_the_timelines():
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(overlap=2.4, p2p=0.1))
    out = fine("show", "dualpipe", "--overlap", "2.4", "--p2p-cost", "0.1", "--width", "120")
    assert timeline.grid(120) in out
    assert f"makespan {timeline.makespan:.6g}   bubble ratio {timeline.bubble_ratio:.2%}" in out
    assert f"peak activations {timeline.peak_activations.max()} a rank" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("color", ["always", "never"])
def test_no_line_is_wider_than_asked_for(family, color):
    for width in [20, 31, 60, 80, 121, 200]:
        out = fine("show", family, "-p", "4", "-m", "8", "--color", color, "--width", str(width))
        rows = [line for line in ANSI.sub("", out).splitlines() if line.startswith(("rank", "  time"))]
        assert len(rows) == 5
        assert all(len(line) <= width for line in rows), (width, rows)


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_lines_fit_from_the_legend_to_the_figures(width):
    for line in ANSI.sub(
        "", fine("show", "dualpipe", "--color", "always", "--width", str(width))
    ).splitlines():
        words = line.replace("small letters: the rank's other stages", "").strip()
        assert len(line) <= width or width < 60, words


TONES = {"F": 117, "f": 75, "I": 173, "i": 130, "W": 229, "w": 221, "B": 29, "b": 23}


@pytest.mark.parametrize("family", ["dualpipe", "zb-v", "interleaved"])
@pytest.mark.parametrize("width", [20, 60, 80, 200, 400])
def test_paint_lies_where_the_grid_has_slots(family, width):
    """The first column of each slot of the plain grid is of its kind's colour; bubbles are not painted."""
    arguments = ["show", family, "-p", "4", "-m", "8", "--width", str(width), "--color"]
    plain = [line for line in fine(*arguments, "never").splitlines() if line.startswith("rank")]
    painted = [line for line in fine(*arguments, "always").splitlines() if "rank" in line[:10]][:4]
    for row, line in zip(plain, painted, strict=True):
        columns = colors(line)
        assert len(columns) - len(row) in (0, 1)  # A block fills the column that the grid leaves free.
        for start in range(row.index("|") + 1, len(row)):
            if row[start] in TONES and row[start - 1] in "| -0123456789":
                assert columns[start] == TONES[row[start]], (row, start)
            if row[start - 1 : start + 1] == "  ":
                assert columns[start] is None, (row, start)


def colors(line: str) -> list[int | None]:
    """By column, the colour of its left half."""
    found: list[int | None] = []
    letters = ground = None
    for part in re.split(r"(\x1b\[[\d;]*m)", line):
        if tone := re.search(r"38;5;(\d+);48;5;(\d+)", part):
            letters, ground = int(tone[1]), int(tone[2])
        elif ANSI.fullmatch(part):
            letters = ground = None
        else:
            found += [letters if sign == "▌" else ground for sign in part]
    return found


def test_a_pair_is_in_both_colours_however_narrow():
    wide = fine("show", "dualpipev", "-p", "1", "-m", "2", "--width", "100", "--color", "always")
    row = next(line for line in wide.splitlines() if "rank 0" in line)
    # 0F0 1F0 0F1 1B0 (1F1;0B0) ...: four slots, then the pair, of 4, 4, 4, 8 and 12 columns.
    start = len("rank 0 |")
    assert colors(row)[start + 20 : start + 32] == [TONES["f"]] * 6 + [TONES["B"]] * 6
    narrow = fine("show", "dualpipe", "--width", "20", "--color", "always")
    assert re.search(r"38;5;(117|75);48;5;(29|23)m▌", narrow)


def test_a_narrow_terminal_is_told_what_would_be_enough():
    out = fine("show", "dualpipe", "--width", "80")
    enough = re.search(r"--width (\d+) shows every microbatch", out)
    assert enough
    row = fine("show", "dualpipe", "--width", enough[1]).splitlines()[2]
    assert re.findall(r"[FIWBfiwb]\d+", row) == shown_in_full(dp.schedule("dualpipe", 8, 20))
    painted = ANSI.sub("", fine("show", "dualpipe", "--width", enough[1], "--color", "always"))
    letters = re.findall(r"[FIWBfiwb]\d+", painted.splitlines()[2])
    assert letters == shown_in_full(dp.schedule("dualpipe", 8, 20))
    assert "shows every microbatch" not in fine("show", "dualpipe", "--width", enough[1])
    assert "shows every microbatch" in fine("show", "dualpipe", "--width", str(int(enough[1]) - 1))


def shown_in_full(schedule: dp.Schedule) -> list[str]:
    """Rank 0's actions as a grid names them."""
    own = schedule.stages_of(0)[0]
    found = re.findall(r"(\d+)([FIWB])(\d+)", " ".join(schedule.rank(0)))
    return [(kind if int(stage) == own else kind.lower()) + microbatch for stage, kind, microbatch in found]


def test_where_there_is_no_more_than_ascii(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(dp.schedule("1f1b", 2, 2).to_text().replace("1f1b", "größer"), encoding="utf-8")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for source in ("dualpipe", str(file)):
        done = process("show", source, "--color", "always", env=ascii_only)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
    assert "gr??er: linear" in done.stdout
