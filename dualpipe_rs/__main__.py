"""The command line: ``python -m dualpipe_rs demo`` and ``python -m dualpipe_rs doctor``."""

from __future__ import annotations

import argparse
import sys

from dualpipe_rs._core import schedule_names
from dualpipe_rs.errors import Error


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the process's exit code: 0, 1 for a failed check, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m dualpipe_rs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train a small byte-level transformer under a schedule, and beside it serially",
        description="Trains a small byte-level transformer on text, all ranks as threads of this process, "
        "and the same model serially on the same batches; shows that losses and gradients are the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--schedule", default="dualpipe", choices=schedule_names())
    demo.add_argument("--ranks", type=int, default=4)
    demo.add_argument("--microbatches", type=int, default=8, help="over all directions")
    demo.add_argument("--steps", type=int, default=100)
    demo.add_argument("--text", metavar="FILE", help="train on this file, not on Python's standard library")
    demo.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    demo.add_argument("--interleaved", action="store_true", help="compute all ranks in turn on one thread")
    commands.add_parser(
        "doctor",
        help="show what is installed, what of CUDA is here, and what to do about what is not",
        description="Shows the versions of packages, the driver, devices and NCCL, and what to install. "
        "Exits with 1 only if what needs no GPU is broken.",
    )
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        from dualpipe_rs import doctor

        return doctor.run()
    try:
        from dualpipe_rs.demo import run

        return run(options)
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install 'dualpipe_rs[torch]'", file=sys.stderr)
        return 2
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
