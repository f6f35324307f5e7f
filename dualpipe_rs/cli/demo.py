"""``demo`` as a command: its options. What it does is ``dualpipe_rs.demo``, which needs torch."""

from __future__ import annotations

import argparse

from dualpipe_rs._core import schedule_names
from dualpipe_rs.cli.outcome import Exit, Outcome
from dualpipe_rs.cli.parser import Commands, add_command

EXAMPLES = """\
  {prog}
  {prog} --schedule dualpipev --ranks 2 --steps 20
  {prog} --text README.md --dtype float32
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        summary="train a small byte-level transformer under a schedule, and beside it serially",
        description="Trains a small byte-level transformer on text, all ranks as threads of this process,\n"
        "and the same model serially on the same batches; shows that losses and gradients are the same.",
        examples=EXAMPLES,
        takes="[options]",
    )
    parser.add_argument(
        "--schedule", default="dualpipe", choices=schedule_names(), help="(default: %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument(
        "--microbatches", type=int, default=8, help="over all directions (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--text", metavar="FILE", help="train on this file, not on Python's standard library")
    parser.add_argument(
        "--dtype", default="float64", choices=["float64", "float32"], help="(default: %(default)s)"
    )
    parser.add_argument("--interleaved", action="store_true", help="compute all ranks in turn on one thread")


def run(options: argparse.Namespace) -> Outcome:
    """Trains, and prints as it goes: nothing is left to print."""
    from dualpipe_rs.demo import run as train

    return Outcome("", Exit(train(options)))
