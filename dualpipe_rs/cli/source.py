"""SCHEDULE|FILE: the schedule that a command is about, by its name, from a text or from torch's CSV.

Everything that can be wrong with it is a UsageError that names it; whether it keeps the rules is
not asked here.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dualpipe_rs._core import Schedule, schedule, schedule_names
from dualpipe_rs.errors import SizeError, UsageError

RANKS, MICROBATCHES = 8, 20
STDIN = "-"
#: The greatest schedule that the core takes is smaller as text; an endless file is not read to its end.
MOST_BYTES = 1 << 30
_RULE = f"default: {MICROBATCHES}, or 2P where the family has none of {MICROBATCHES}"
_PLACEMENTS = ["linear", "looped", "v", "wave", "bidirectional"]


@dataclass(frozen=True)
class Family:
    """A family's name and its own options, such as ``interleaved`` with ``stages_per_rank=4``."""

    name: str
    options: dict[str, int]

    def make(self, ranks: int | None, microbatches: int | None) -> Schedule:
        """The order of this size; sizes that are not given are those that ``add_sizes`` promises."""
        ranks = RANKS if ranks is None else ranks
        if microbatches is not None:
            return self._of(ranks, microbatches)
        try:
            return self._of(ranks, MICROBATCHES)
        except SizeError:
            return self._of(ranks, 2 * ranks)

    def _of(self, ranks: int, microbatches: int) -> Schedule:
        try:
            return schedule(self.name, ranks, microbatches, **self.options)
        except (TypeError, OverflowError) as error:
            raise UsageError(f"{self.name}: {error}") from None


@dataclass(frozen=True)
class Source:
    """A schedule, and the family whose published order it is, if it is one."""

    schedule: Schedule
    family: Family | None


def add_source(parser: argparse.ArgumentParser, *, what: str = "source") -> None:
    """SCHEDULE|FILE, its sizes, and how a file is read."""
    parser.add_argument(
        what,
        metavar="SCHEDULE|FILE",
        help=f"a family's name ({', '.join(schedule_names())}), a schedule's text, torch's compute_only CSV "
        "(.csv), or - for standard input",
    )
    group = add_sizes(parser)
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=N",
        help="a family's own, such as stages_per_rank=4; interleaved:stages_per_rank=4 says the same",
    )
    group.add_argument("--forward-only", action="store_true", help="the forwards alone, for inference")
    add_csv(parser)


def add_sizes(parser: argparse.ArgumentParser, rule: str = _RULE) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("schedule")
    group.add_argument(
        "-p", "--ranks", type=int, metavar="P", help=f"ranks of the pipeline (default: {RANKS})"
    )
    group.add_argument(
        "-m",
        "--microbatches",
        type=int,
        metavar="M",
        help=f"microbatches over all directions ({rule})",
    )
    return group


def add_csv(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("torch's CSV")
    group.add_argument("--csv", action="store_true", help="read CSV, whatever the file's name")
    group.add_argument("--placement", choices=_PLACEMENTS, help="where it does not follow from the table")
    group.add_argument("--num-stages", type=int, metavar="N", help="where the table is incomplete")
    group.add_argument("--num-microbatches", type=int, metavar="N", help="where the table is incomplete")


def load(options: argparse.Namespace) -> Source:
    """The schedule that the arguments of ``add_source`` name."""
    found = find(options.source, options)
    if isinstance(found, Family):
        family = Family(found.name, {**found.options, **_own_options(options.option)})
        made = family.make(options.ranks, options.microbatches)
    else:
        _refuse_sizes(options)
        family, made = None, found
    if options.forward_only:
        return Source(made.forward_only(), None)
    return Source(made, family)


def find(word: str, options: argparse.Namespace) -> Family | Schedule:
    """What the word names: a family, with the options behind its colon, or what a file holds."""
    name, colon, rest = word.partition(":")
    if name in schedule_names():
        return Family(name, _own_options(rest.split(",")) if colon else {})
    if word == STDIN or os.path.lexists(path_of(word)) or _looks_like_a_file(word):
        return _read(word, options)
    raise UsageError(_no_such(word))


def described(made: Schedule) -> str:
    """One line: what it is, and its sizes."""
    sizes = [(made.num_ranks, "rank"), (made.num_stages, "stage"), (made.num_microbatches, "microbatch")]
    return f"{printable(made.name)}: {made.placement}, {', '.join(counted(n, word) for n, word in sizes)}"


def counted(number: int, word: str) -> str:
    plural = "es" if word.endswith("h") else "s"
    return f"{number} {word}{plural if number != 1 else ''}"


def printable(text: str) -> str:
    """A text of a file's without what would steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _own_options(words: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name] = int(number)
        except ValueError:
            raise UsageError(f"{word!r} is not an option such as stages_per_rank=4") from None
        if not name.isidentifier() or name in ("name", "num_ranks", "num_microbatches"):
            raise UsageError(f"{word!r} is not an option of a family; sizes are --ranks and --microbatches")
    return found


def _refuse_sizes(options: argparse.Namespace) -> None:
    given = {
        "--ranks": options.ranks is not None,
        "--microbatches": options.microbatches is not None,
        "--option": bool(options.option),
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} belongs to a family; {options.source} says itself what it holds")


def path_of(word: str) -> Path:
    if "\0" in word:
        raise UsageError(f"{word!r} is no file's name")
    return Path(word)


def _looks_like_a_file(word: str) -> bool:
    return "/" in word or os.sep in word or Path(word).suffix.lower() in (".txt", ".csv")


def _no_such(word: str) -> str:
    close = difflib.get_close_matches(word.lower(), schedule_names(), n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}?" if close else f"the names are {', '.join(schedule_names())}"
    return f"there is no schedule and no file named {word!r}; {guess}"


def _read(word: str, options: argparse.Namespace) -> Schedule:
    name = "standard input" if word == STDIN else word
    text = _text_of(word, name)
    is_csv = options.csv or Path(word).suffix.lower() == ".csv"
    try:
        if not is_csv:
            return Schedule.from_text(text)
        return Schedule.from_torch_csv(
            text,
            name="torch" if word == STDIN else Path(word).stem or "torch",
            placement=options.placement,
            num_stages=options.num_stages,
            num_microbatches=options.num_microbatches,
        )
    except (UsageError, TypeError, OverflowError, UnicodeError) as error:
        raise UsageError(f"{name}: {error}") from None


def _text_of(word: str, name: str) -> str:
    try:
        if word == STDIN:
            content = b"" if sys.stdin is None else sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(word, "rb") as file:
                content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"{name} is no schedule: it has more than {MOST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")  # Some editors begin a file with a mark.
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is no text: its byte {error.start} is not UTF-8") from None
