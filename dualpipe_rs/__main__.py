"""The command line: ``python -m dualpipe_rs demo``."""

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
    options = parser.parse_args(arguments)
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
