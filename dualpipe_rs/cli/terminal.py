"""What standard output can show: its width, whether in colour, whether beyond ASCII. It draws nothing."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

#: Where no terminal says how wide it is, as in a pipe.
COLUMNS_OF_A_PIPE = 120
MOST_COLUMNS = 10_000
_SIGNS = "▏▌│»«…"


@dataclass(frozen=True)
class Terminal:
    """Where the output goes."""

    width: int
    color: bool = False
    signs: bool = True
    """Whether the few signs beyond ASCII that pictures are made of can be shown."""

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.color else text

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.color else text

    def marked(self, text: str) -> str:
        """What to look at: in reverse, or between the marks that error messages have."""
        if self.color:
            return f"\x1b[7m{text}\x1b[0m"
        return f"»{text}«" if self.signs else f">{text}<"


def add_terminal(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--width", type=_columns, metavar="N", help="columns (default: the terminal's)")
    group.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="auto: where stdout is a terminal and NO_COLOR is not set (default)",
    )


def terminal(options: argparse.Namespace) -> Terminal:
    """The terminal that these options and this process's standard output make."""
    width = options.width or shutil.get_terminal_size((COLUMNS_OF_A_PIPE, 24)).columns
    return Terminal(width, _in_color(options.color, sys.stdout), encodes(sys.stdout, _SIGNS))


def encodes(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _in_color(choice: str, stream: TextIO | None) -> bool:
    if choice != "auto":
        return choice == "always"
    # https://no-color.org: set and not empty.
    is_terminal = stream is not None and stream.isatty()
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _columns(text: str) -> int:
    try:
        width = int(text)
    except ValueError:
        width = 0
    if not 1 <= width <= MOST_COLUMNS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of columns from 1 to {MOST_COLUMNS}")
    return width
