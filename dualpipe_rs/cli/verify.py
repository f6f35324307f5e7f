"""``verify``: whether a schedule keeps every rule, and what it breaks, where."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from dualpipe_rs._core import Schedule
from dualpipe_rs.cli.figures import schedule_given, to_json
from dualpipe_rs.cli.outcome import Exit, Outcome
from dualpipe_rs.cli.parser import Commands, add_command
from dualpipe_rs.cli.pricing import P2P
from dualpipe_rs.cli.rows import marked_row
from dualpipe_rs.cli.source import add_source, counted, described, load, printable
from dualpipe_rs.cli.terminal import Terminal, add_terminal, terminal
from dualpipe_rs.errors import ScheduleError, Violation

EXAMPLES = """\
  {prog} mine.txt                       a schedule's text
  {prog} table.csv --p2p all            torch's compute_only CSV
  {prog} dualpipe -p 8 -m 20 --p2p rendezvous --depth 1
  {prog} mine.txt --max-activations 9   and holds no more than this
  generate | {prog} - --json            for scripts
"""
#: What ``all`` means. Blocking sends deadlock in most families, and are asked for by name.
_ALL = ["eager", "rendezvous", "batched"]
_PROVEN = {
    "eager": "no ranks wait for each other in a circle",
    "rendezvous": "receives posted in the sender's order, at most {depth} ahead an edge, never deadlock",
    "batched": "sends that wait for the next commit never deadlock",
    "blocking": "sends that wait for their receiver never deadlock",
}


@dataclass(frozen=True)
class Proof:
    """What was asked, and what breaks it; nothing does where the list is empty."""

    p2p: str
    violations: list[Violation]
    told: str
    """The count of all violations, in words: the list may be cut off."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        run,
        summary="prove that a schedule keeps every rule, or list what it breaks",
        description="Proves that every action stands once, where its stage lives, after all that it needs,\n"
        "and that no ranks wait for each other for ever; or lists every violation, with its row and place.",
        examples=EXAMPLES,
    )
    add_source(parser)
    group = parser.add_argument_group("what is to be proven")
    group.add_argument(
        "--p2p",
        choices=[*P2P, "all"],
        default="eager",
        help=f"how sends and receives meet (default: eager); all: {', '.join(_ALL)}",
    )
    group.add_argument("--depth", type=int, metavar="D", help="of rendezvous (default: 2)")
    group.add_argument("--max-activations", type=int, metavar="N", help="that a rank may hold at once")
    add_terminal(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(options: argparse.Namespace) -> Outcome:
    schedule = load(options).schedule
    proofs = proven(schedule, options)
    code = Exit.BROKEN if any(proof.violations for proof in proofs) else Exit.FINE
    if options.json:
        return Outcome(to_json(_given(schedule, proofs)), code)
    screen = terminal(options)
    lines = [screen.bold(described(schedule))]
    for proof in proofs:
        lines += _told(schedule, proof, options, screen)
    return Outcome("\n".join(lines), code)


def proven(schedule: Schedule, options: argparse.Namespace) -> list[Proof]:
    """The rules themselves, then each of the semantics asked for, which stand on them."""
    asked = _ALL if options.p2p == "all" else [options.p2p]
    rules = _proof(schedule, "eager", options)
    if rules.violations:
        return [rules]
    return [rules, *(_proof(schedule, p2p, options) for p2p in asked if p2p != "eager")]


def _proof(schedule: Schedule, p2p: str, options: argparse.Namespace) -> Proof:
    # A depth is refused with other semantics, unless all of them were asked for.
    depth = options.depth if p2p in ("rendezvous", options.p2p) else None
    try:
        schedule.verify(p2p=p2p, depth=depth, max_activations=options.max_activations)
    except ScheduleError as error:
        return Proof(p2p, error.violations, str(error).partition("\n")[0].rstrip(":"))
    return Proof(p2p, [], "")


def _told(schedule: Schedule, proof: Proof, options: argparse.Namespace, screen: Terminal) -> list[str]:
    if not proof.violations:
        return [f"OK  {line}" for line in _what_was_proven(schedule, proof, options)]
    where = "" if proof.p2p == "eager" else f" under {proof.p2p} sends and receives"
    head = screen.bold(f"FAILED{where}: {counted(len(proof.violations), 'violation')}")
    lines = [head if len(proof.violations) < 10_000 else screen.bold(printable(proof.told))]
    rows = {rank: schedule.rank(rank) for rank in {violation.rank for violation in proof.violations}}
    for violation in proof.violations:
        lines += ["", violation.message]
        lines.append(marked_row(rows[violation.rank], violation, screen))
    return lines


def _what_was_proven(schedule: Schedule, proof: Proof, options: argparse.Namespace) -> list[str]:
    depth = options.depth if options.depth is not None else 2
    line = f"{proof.p2p}: {_PROVEN[proof.p2p].format(depth=depth)}"
    if proof.p2p != "eager":
        return [line]
    slots = sum(len(schedule.rank(rank)) for rank in range(schedule.num_ranks))
    lines = [f"order: {slots} slots; every action once, where its stage lives, after all that it needs", line]
    if options.max_activations is not None:
        lines.append(f"memory: no rank holds more than {options.max_activations} activations at once")
    return lines


def _given(schedule: Schedule, proofs: list[Proof]) -> dict[str, Any]:
    found = [(proof.p2p, violation) for proof in proofs for violation in proof.violations]
    return {
        "schedule": schedule_given(schedule),
        "ok": not found,
        "proofs": [{"p2p": proof.p2p, "ok": not proof.violations} for proof in proofs],
        "violations": [{"p2p": p2p, **violation._asdict()} for p2p, violation in found],
    }
