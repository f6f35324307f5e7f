"""``show``: a schedule as it runs, in the terminal."""

from __future__ import annotations

import argparse

from dualpipe_rs.cli.outcome import Outcome
from dualpipe_rs.cli.parser import Commands, add_command
from dualpipe_rs.cli.picture import picture
from dualpipe_rs.cli.pricing import add_pricing, pricing
from dualpipe_rs.cli.source import add_source, described, load
from dualpipe_rs.cli.terminal import add_terminal, terminal

EXAMPLES = """\
  {prog} dualpipe                          8 ranks, 20 microbatches
  {prog} zb-v -p 4 -m 8 --p2p-cost 0.25    hops that take a quarter of a forward
  {prog} interleaved:stages_per_rank=4     a family's own option
  {prog} mine.txt                          your own order, as Schedule.to_text() writes it
  {prog} dualpipe --width 250 --color always | less -RS
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "show",
        run,
        summary="draw a schedule in the terminal",
        description="Draws a schedule as it runs under the given costs: one row a rank, time to the right.",
        examples=EXAMPLES,
    )
    add_source(parser)
    add_pricing(parser)
    add_terminal(parser)


def run(options: argparse.Namespace) -> Outcome:
    prices = pricing(options)
    schedule = load(options).schedule
    timeline = prices.simulate(schedule)
    screen = terminal(options)
    peaks = timeline.peak_activations
    least, most = int(peaks.min()), int(peaks.max())
    numbers = [
        f"makespan {timeline.makespan:.6g}",
        f"bubble ratio {timeline.bubble_ratio:.2%}",
        f"peak activations {most if least == most else f'{least} to {most}'} a rank",
    ]
    head = screen.bold(described(schedule))
    return Outcome(f"{head}\n\n{picture(timeline, screen)}\n{screen.bold('   '.join(numbers))}")
