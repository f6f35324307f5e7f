"""``export``: a schedule as a file, whose suffix says which kind."""

from __future__ import annotations

import argparse

from dualpipe_rs.cli.outcome import Outcome
from dualpipe_rs.cli.parser import Commands, add_command
from dualpipe_rs.cli.pricing import add_pricing, pricing
from dualpipe_rs.cli.source import STDIN, add_source, described, load, path_of, printable
from dualpipe_rs.errors import UsageError

EXAMPLES = """\
  {prog} dualpipe -o dualpipe.svg                 a picture: .svg .png .pdf .html
  {prog} zb-v -o zb-v.pftrace --p2p-cost 0.2      a trace for ui.perfetto.dev: .pftrace .json
  {prog} dualpipev -p 4 -m 8 -o table.csv         torch's compute_only CSV
  {prog} table.csv -o mine.txt                    a text to edit, and to give to verify
  {prog} 1f1b -o - | head -3                      the text on standard output
"""
#: What the order alone makes; everything else is made of the timeline.
_TEXT, _CSV = ".txt", ".csv"
_DRAWN = [".svg", ".html", ".png", ".pdf", ".json", ".pftrace"]


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        run,
        summary="write a schedule as a text, torch's CSV, a picture or a trace",
        description="Verifies and simulates a schedule, and writes the kind of file that the suffix says.",
        examples=EXAMPLES,
        takes="[options] SCHEDULE|FILE -o OUT",
    )
    add_source(parser)
    add_pricing(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=f"a file that ends in {_TEXT}, {_CSV}, {', '.join(_DRAWN)}; - is the text, on standard output",
    )


def run(options: argparse.Namespace) -> Outcome:
    prices = pricing(options)
    schedule = load(options).schedule
    if options.output == STDIN:
        schedule.verify()
        return Outcome(schedule.to_text().rstrip("\n"))
    path = path_of(options.output)
    kind = path.suffix.lower()
    if kind not in (_TEXT, _CSV, *_DRAWN):
        raise UsageError(f"{options.output!r} ends in none of {_TEXT}, {_CSV}, {', '.join(_DRAWN)}")
    # The order alone makes a text; a picture or a trace is of its timeline.
    timeline = prices.simulate(schedule)
    (schedule if kind in (_TEXT, _CSV) else timeline).save(path)
    return Outcome(f"wrote {printable(str(path))}: {described(schedule)}")
