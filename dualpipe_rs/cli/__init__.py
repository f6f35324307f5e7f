"""The command line: ``python -m dualpipe_rs``, or ``dualpipe``; one module a command.

Here commands are found, run and printed, and whatever goes wrong becomes one sentence and an exit code. What
a command knows is in its own module; they share ``source`` (which schedule), ``pricing`` (its costs),
``terminal`` (what can be shown) and ``outcome`` (what is handed back). Only ``demo`` and ``doctor`` print by
themselves.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, TextIO

from dualpipe_rs.cli import compare, demo, doctor, export, show, simulate, verify
from dualpipe_rs.cli.outcome import Exit, Outcome
from dualpipe_rs.cli.parser import EXIT_CODES, Parser, program
from dualpipe_rs.cli.source import printable
from dualpipe_rs.errors import Error, ScheduleError

_COMMANDS = [show, simulate, compare, verify, export, demo, doctor]
_OVERVIEW = """\
examples:
  {prog} show dualpipe                        draw it: 8 ranks, 20 microbatches
  {prog} simulate zb-v -p 4 -m 8 --p2p-cost 0.2
  {prog} compare                              every family on the same devices
  {prog} verify mine.txt --p2p all            prove your own order, or see what is wrong
  {prog} export dualpipe -o dualpipe.svg      a picture, a trace, a text, torch's CSV

{prog} COMMAND --help has the options of each.

"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the process's exit code (``Exit``)."""
    try:
        outcome = _outcome(arguments)
        return _written(outcome.text, outcome.exit)
    except SystemExit as error:  # --help and --version, which argparse prints
        return _written("", _code(error))
    except BrokenPipeError:  # of a command that prints by itself, and had not come to its verdict
        _drop(sys.stdout)
        return Exit.BROKEN
    except KeyboardInterrupt:
        print("dualpipe_rs: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def _outcome(arguments: list[str] | None) -> Outcome:
    try:
        options = _parser().parse_args(arguments)
        run = getattr(options, "run", None)
        if run is None:
            return Outcome(_parser().format_help().rstrip("\n"))
        outcome: Outcome = run(options)
        return outcome
    except ScheduleError as error:
        return _failed(_in_short(error), Exit.BROKEN)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _failed(f"{where}{error.strerror or error}", Exit.USAGE)
    except ModuleNotFoundError as error:
        needs_torch = error.name == "torch"
        return _failed(f"{error}{': pip install dualpipe_rs[torch]' if needs_torch else ''}", Exit.USAGE)
    except MemoryError:
        return _failed("there is not enough memory for a schedule of this size", Exit.USAGE)
    except Error as error:
        return _failed(str(error), Exit.USAGE)


def _parser() -> Parser:
    prog = program()
    parser = Parser(
        prog=prog,
        description="Pipeline-parallel schedules: drawn, simulated, compared, verified, exported.",
        epilog=_OVERVIEW.format(prog=prog) + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in _COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than all the rest of parsing."""

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **rest)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("dualpipe_rs")
        except metadata.PackageNotFoundError:
            version = "(not installed, run from its folder)"
        print(f"dualpipe_rs {version}")
        parser.exit()


def _in_short(error: ScheduleError) -> str:
    """The first violation in full, and how to see the others."""
    if not error.violations:
        return str(error)
    more = len(error.violations) - 1
    rest = f"; {more} more" if more else ""
    return f"the schedule breaks a rule: {error.violations[0]}{rest} ({program()} verify lists all)"


def _failed(message: str, code: Exit) -> Outcome:
    line = printable(" ".join(message.split("\n")))
    print(f"dualpipe_rs: error: {line}", file=sys.stderr)
    return Outcome("", code)


def _written(text: str, code: int) -> int:
    """Writes all there is; a reader who has seen enough, as ``head`` has, changes nothing about the code."""
    if sys.stdout is None:  # It was closed before Python started.
        return code
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), end="\n" if text else "", flush=True)
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as error:
        _drop(sys.stdout)
        return _failed(f"standard output: {error.strerror}", Exit.USAGE).exit
    return code


def _drop(stream: TextIO) -> None:
    """Leads what is still buffered for a closed pipe away, so that the interpreter's end has no complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())


def _code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else Exit.FINE
