"""What a command hands back: its text and its exit code. It prints nothing itself; ``cli.main`` does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """The process's exit code, the same for every command."""

    FINE = 0
    BROKEN = 1
    """The schedule breaks a rule, or a check failed."""
    USAGE = 2
    """Wrong usage: an unknown name, a size that does not exist, an unreadable file, a bad cost."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


@dataclass(frozen=True)
class Outcome:
    """The whole of a command's standard output, and the code to exit with."""

    text: str
    exit: Exit = Exit.FINE
