"""``doctor`` as a command. What it does is ``dualpipe_rs.doctor``."""

from __future__ import annotations

import argparse

from dualpipe_rs.cli.outcome import Exit, Outcome
from dualpipe_rs.cli.parser import Commands, add_command


def add(commands: Commands) -> None:
    add_command(
        commands,
        "doctor",
        run,
        summary="show what is installed, what of CUDA is here, and what to do about what is not",
        description="Shows the versions of packages, the driver, devices and NCCL, and what to install.\n"
        "Exits with 1 only if what needs no GPU is broken.",
        examples="  {prog}\n",
        takes="",
    )


def run(_: argparse.Namespace) -> Outcome:
    """Prints as it looks: nothing is left to print."""
    from dualpipe_rs import doctor

    return Outcome("", Exit(doctor.run()))
