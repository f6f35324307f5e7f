"""``compare``: schedules side by side on the same devices, the best first."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dualpipe_rs._core import Schedule, schedule_names
from dualpipe_rs.cli.figures import to_json
from dualpipe_rs.cli.outcome import Outcome
from dualpipe_rs.cli.parser import Commands, add_command
from dualpipe_rs.cli.pricing import Pricing, add_pricing, costs_given, pricing
from dualpipe_rs.cli.source import MICROBATCHES, RANKS, add_csv, add_sizes, counted, find, printable
from dualpipe_rs.cli.table import Column, table
from dualpipe_rs.cli.terminal import Terminal, add_terminal, terminal
from dualpipe_rs.comparison import Choice, Row, compare
from dualpipe_rs.errors import UsageError

EXAMPLES = """\
  {prog}                                           every family, 8 ranks, 20 microbatches
  {prog} -p 16 -m 64 --p2p-cost 0.2 --overlap 2.4
  {prog} 1f1b zb-v dualpipe --sort peak_activations
  {prog} dualpipe interleaved:stages_per_rank=4 mine.txt
  {prog} --json | jq -r '.rows[0].schedule'
"""


@dataclass(frozen=True)
class _Shown:
    """A column of the table: which figure, under which heading, in which form."""

    key: str
    head: str
    form: str


_SHOWN = [
    _Shown("makespan", "makespan", ".6g"),
    _Shown("bubble_ratio", "bubble", ".2%"),
    _Shown("peak_activations", "activations", ".4g"),
    _Shown("parameters", "parameters", ".4g"),
    _Shown("p2p_tensors", "tensors", "d"),
    _Shown("span", "span", ".6g"),
    _Shown("bubble_over_ideal", "over ideal", ".2%"),
]
_UNITS = "activations and parameters: the fullest rank's, in microbatches and in weights of 1/P of the model"
SORTS = [shown.key for shown in _SHOWN]


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        run,
        summary="schedules side by side on the same devices, best first",
        description="Simulates schedules on the same devices with the same model: the costs are those of a\n"
        "stage that is one part in P of the model; with k stages a rank each of them costs 1/k of that.",
        examples=EXAMPLES,
        takes="[options] [SCHEDULE|FILE ...]",
    )
    parser.add_argument(
        "schedules",
        nargs="*",
        metavar="SCHEDULE|FILE",
        help=f"families ({', '.join(schedule_names())}), with options as in interleaved:stages_per_rank=4, "
        "or files (default: every family that exists at this size)",
    )
    add_sizes(parser, rule=f"default: {MICROBATCHES}")
    add_csv(parser)
    add_pricing(parser, "one number, or one a rank's part of the model: 1,1,1,1.5")
    parser.add_argument("--sort", choices=SORTS, default="makespan", help="least first (default: makespan)")
    add_terminal(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document, numbers to the last bit")


def run(options: argparse.Namespace) -> Outcome:
    prices = pricing(options)
    choices = [_choice(word, options) for word in options.schedules or schedule_names()]
    ranks, microbatches = _sizes(choices, options)
    rows = [_row(choice, ranks, microbatches, prices) for choice in _watched(choices)]
    if all(row["note"] for row in rows):
        raise UsageError(f"there is nothing to compare; {rows[0]['schedule']}: {rows[0]['note']}")
    rows.sort(key=lambda row: (row[options.sort] is None, row[options.sort] or 0.0))
    if options.json:
        given = {
            "num_ranks": ranks,
            "num_microbatches": microbatches,
            "p2p": prices.p2p,
            "depth": prices.depth,
        }
        return Outcome(
            to_json({**given, "costs": costs_given(prices.costs), "sort": options.sort, "rows": rows})
        )
    screen = terminal(options)
    sizes = f"{counted(ranks, 'rank')}, {counted(microbatches, 'microbatch')}"
    head = screen.bold(f"{sizes}, least {_head_of(options.sort)} first")
    return Outcome("\n".join([head, "", *_table(rows, screen)]))


def _choice(word: str, options: argparse.Namespace) -> Choice:
    found = find(word, options)
    if not isinstance(found, Schedule):
        return found.name, found.options
    found.verify()  # A file that breaks a rule is an error, not a row without numbers.
    return found


def _sizes(choices: list[Choice], options: argparse.Namespace) -> tuple[int, int]:
    """Those given, else those of the first file, else the defaults."""
    read = next((choice for choice in choices if isinstance(choice, Schedule)), None)
    ranks, microbatches = options.ranks, options.microbatches
    if ranks is None:
        ranks = RANKS if read is None else read.num_ranks
    if microbatches is None:
        microbatches = MICROBATCHES if read is None else read.num_microbatches
    return ranks, microbatches


def _watched(choices: list[Choice]) -> Iterable[Choice]:
    """With a progress bar on standard error, if that is a terminal and it takes longer than a moment."""
    if len(choices) < 2 or not sys.stderr.isatty():
        return choices
    from tqdm.auto import tqdm

    bar: Iterable[Choice] = tqdm(choices, desc="comparing", delay=1.0, leave=False, file=sys.stderr)
    return bar


def _row(choice: Choice, ranks: int, microbatches: int, prices: Pricing) -> Row:
    return compare([choice], ranks, microbatches, prices.costs, p2p=prices.p2p, depth=prices.depth)[0]


def _table(rows: list[Row], screen: Terminal) -> list[str]:
    """The rows with numbers; below them, what has none and why."""
    counted_rows = [row for row in rows if row["note"] is None]
    names = Column("schedule", [printable(row["schedule"]) for row in counted_rows], to_the_left=True)
    columns = [Column(shown.head, [_cell(row, shown) for row in counted_rows]) for shown in _SHOWN]
    head, *lines = table([names, *columns], screen.width)
    notes = [printable(f"{row['schedule']}: {row['note']}") for row in rows if row["note"]]
    wrapped = [screen.dim(line) for note in notes for line in textwrap.wrap(note, screen.width)]
    units = textwrap.wrap(_UNITS, screen.width)
    return [screen.bold(head), *lines, "", *map(screen.dim, units), *([""] if notes else []), *wrapped]


def _cell(row: dict[str, Any], shown: _Shown) -> str:
    return format(row[shown.key], shown.form)


def _head_of(key: str) -> str:
    return next(shown.head for shown in _SHOWN if shown.key == key)
