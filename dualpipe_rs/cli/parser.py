"""What every command's parser has: examples and exit codes below its help; errors are UsageErrors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from dualpipe_rs.cli.outcome import Outcome
from dualpipe_rs.errors import UsageError

EXIT_CODES = """\
exit codes:
  0  fine
  1  the schedule breaks a rule, or a check failed
  2  wrong usage: an unknown name, a size that does not exist, an unreadable file, a bad cost
  130  interrupted
"""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises what is wrong, so that all errors are told in one way."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help says more")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def program() -> str:
    """How this process was started, as the examples are to be typed."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "dualpipe" if name.partition(".")[0] == "dualpipe" else "python -m dualpipe_rs"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], Outcome],
    *,
    summary: str,
    description: str,
    examples: str,
    takes: str = "[options] SCHEDULE|FILE",
) -> Parser:
    """A command's parser, to which the command adds its arguments."""
    shown = examples.format(prog=f"{program()} {name}")
    parser = commands.add_parser(
        name,
        help=summary,
        usage=f"{program()} {name} {takes}".rstrip(),
        description=description,
        epilog=f"examples:\n{shown}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser
