"""Every schedule with one thing wrong: for each family at two small sizes, every single change of a kind.

The core's verdict must be the oracle's. Where a change is refused, the core names the rule, the rank and the
slot that the oracle names. Changes that both call valid ("survivors": swaps of slots that do not need each
other) run to their end in the machine. A part of the changes in the normal run, all with LONG=1.

As in test_verify.py, where an action stands twice or a B beside an I or a W, "order" depends on which of them
is taken as the first, and is not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import machine
import pytest
from conftest import Shape, copied, rows_of, text_of
from families import FAMILIES, Case, cases, some
from oracle import Action, Rows, parse, place, violations

import dualpipe_rs as dp

PART = 0.4


class Mutant(NamedTuple):
    """What was changed, how, and the rows that came of it."""

    how: str
    what: str
    rows: Rows


def two_sizes(family: str) -> list[Case]:
    """The smallest of 2 ranks, and of 3 or 4, with several microbatches; with the largest option."""
    legal = [case for case in cases(family, 4, 8) if case.value == FAMILIES[family].values[-1]]
    small = next(case for case in legal if case.ranks == 2 and case.microbatches >= 2)
    large = next(case for case in legal if case.ranks >= 3 and case.microbatches >= 4)
    return [small, large]


# ---- Changes -----------------------------------------------------------------------------------------------


def mutants(rows: Rows, shape: Shape) -> Iterator[Mutant]:
    for rank, row in enumerate(rows):
        for index in range(len(row)):
            yield from cell_mutants(rows, shape, rank, index)
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                new = copied(rows)
                new[rank][i], new[rank][j] = new[rank][j], new[rank][i]
                yield Mutant("swap", f"rank {rank}, {i} and {j}", new)


def cell_mutants(rows: Rows, shape: Shape, rank: int, index: int) -> Iterator[Mutant]:
    """All that can be done to one cell."""
    what = f"rank {rank}, slot {index}"
    slot = rows[rank][index]

    def with_row(how: str, new_row: list[Any]) -> Mutant:
        new = copied(rows)
        new[rank] = new_row
        return Mutant(how, what, new)

    row = rows[rank]
    yield with_row("drop", row[:index] + row[index + 1 :])
    for at in {0, index + 1, len(row)}:
        yield with_row("duplicate", [*row[:at], list(slot), *row[at:]])
    for n, (stage, kind, microbatch) in enumerate(slot):
        for other in "FIWB".replace(kind, ""):
            yield with_row("retype", replaced(row, index, n, (stage, other, microbatch)))
        for other in range(shape.microbatches + 1):
            if other != microbatch:
                yield with_row("microbatch", replaced(row, index, n, (stage, kind, other)))
    for other_rank in range(shape.ranks):
        if other_rank != rank:
            new = copied(rows)
            new[other_rank].insert(index, new[rank].pop(index))
            yield Mutant("move", f"{what} to rank {other_rank}", new)


def replaced(row: list[Any], index: int, n: int, action: Action) -> list[Any]:
    slot = list(row[index])
    slot[n] = action
    return [*row[:index], slot, *row[index + 1 :]]


# ---- Verdicts ----------------------------------------------------------------------------------------------


def is_readable(rows: Rows, shape: Shape) -> bool:
    """A text has pairs of an F and a B, microbatches that there are, and as many slots as forwards."""
    slots = [slot for row in rows for slot in row]
    if any([kind for _, kind, _ in slot] != ["F", "B"] for slot in slots if len(slot) == 2):
        return False
    if any(microbatch >= shape.microbatches for slot in slots for _, _, microbatch in slot):
        return False
    return len(slots) >= shape.stages * shape.microbatches


def expected_of(rows: Rows, shape: Shape) -> set[tuple[Any, ...]]:
    """The oracle's violations, and pairs of one microbatch, which its "pair" leaves to its other rules."""
    found = violations(rows, *shape)
    for rank, row in enumerate(rows):
        for index, slot in enumerate(row):
            if len(slot) == 2 and slot[0][2] == slot[1][2]:
                found.add(("pair", rank, index))
    return found


def verdict(text: str) -> dp.Schedule | dp.ScheduleError | dp.UsageError:
    try:
        schedule = dp.Schedule.from_text(text)
        schedule.verify()
    except (dp.ScheduleError, dp.UsageError) as error:
        return error
    return schedule


def check(mutant: Mutant, shape: Shape) -> str:
    """Valid, refused or unreadable, as the oracle says."""
    answer = verdict(text_of(mutant.rows, shape))
    expected = expected_of(mutant.rows, shape)
    assert isinstance(answer, dp.Schedule) == (not expected), (mutant, answer, expected)
    if isinstance(answer, dp.Schedule):
        check_survivor(answer, mutant)
        return "valid"
    if isinstance(answer, dp.ScheduleError):
        check_named(answer.violations, expected, mutant, shape)
        return "refused"
    assert not is_readable(mutant.rows, shape), (mutant, answer)
    return "unreadable"


def check_named(
    found: list[dp.Violation], expected: set[tuple[Any, ...]], mutant: Mutant, shape: Shape
) -> None:
    """Every rule that the oracle finds broken is named at a rank and slot where it finds it so."""
    named = {(v.kind, v.rank, v.slot, v.action) for v in found}
    others = {one for one in expected if one[0] != "deadlock"}
    if not others:
        assert {v.kind for v in found} == {"deadlock"}
        assert {(v.rank, v.slot) for v in found} <= {(one[1], one[2]) for one in expected}, mutant
        return
    rules = {one[0] for one in others}
    ambiguous = {"order"} if rules & {"duplicate", "mixed"} else set()
    for kind in rules - ambiguous:
        allowed = {
            place_ for one in others if one[0] == kind for place_ in places_of(one, mutant.rows, shape)
        }
        there = {(rank, slot) for k, rank, slot, _ in named if k == kind}
        assert there & allowed, (kind, mutant, named, expected)
    assert {v.kind for v in found} - ambiguous == rules - ambiguous, (mutant, named, expected)


def places_of(one: tuple[Any, ...], rows: Rows, shape: Shape) -> set[tuple[int, int | None]]:
    """Where a violation of the oracle may be named."""
    kind = one[0]
    if kind == "missing":
        return {(place(*shape)(one[1], one[3]), None)}
    if kind in ("duplicate", "mixed"):
        subject = (one[1], one[-1])
        kinds = one[2] if kind == "duplicate" else "IWB"
        return {
            (rank, index)
            for rank, row in enumerate(rows)
            for index, slot in enumerate(row)
            if any((s, m) == subject and k in kinds for s, k, m in slot)
        }
    return {(one[1], one[2])}


def check_survivor(schedule: dp.Schedule, mutant: Mutant) -> None:
    """It runs: its program computes just these rows to their end."""
    program = schedule.lower()
    words = [program.rank(rank) for rank in range(program.num_ranks)]
    computed, stuck = machine.run(words, schedule.num_stages)
    assert stuck == []
    assert computed == mutant.rows


@cache
def outcomes(family: str) -> Counter[tuple[str, str]]:
    """How often each change had each outcome, every one of them checked."""
    counted: Counter[tuple[str, str]] = Counter()
    for case in two_sizes(family):
        rows = rows_of(case.make())
        for mutant in some(list(mutants(rows, case.shape)), PART):
            counted[mutant.how, check(mutant, case.shape)] += 1
    return counted


@pytest.mark.parametrize("family", FAMILIES)
def test_single_changes(family: str) -> None:
    """The verdict on each is the oracle's."""
    counted = outcomes(family)
    assert counted.total() > 100
    for how in ("drop", "duplicate", "retype", "move", "microbatch"):
        assert counted[how, "valid"] == 0, counted
        assert counted[how, "refused"] > 0, counted
    assert counted["swap", "refused"] > 0, counted


def test_survivors_are_swaps() -> None:
    """Some swaps hurt nobody, and are found valid; nothing else survives."""
    valid = {family: outcomes(family)["swap", "valid"] for family in FAMILIES}
    assert sum(valid.values()) > 50, valid


def test_the_oracle_takes_the_originals() -> None:
    for family in FAMILIES:
        for case in two_sizes(family):
            assert violations(rows_of(case.make()), *case.shape) == set()


def test_an_exchange_by_hand() -> None:
    """Two weight backwards of a rank change places: harmless. A weight backward and its input's: not."""
    shape = Shape("linear", 1, 1, 2)
    rows = parse("0F0 0F1 0I0 0I1 0W0 0W1")
    outcome = {mutant.what: check(mutant, shape) for mutant in mutants(rows, shape) if mutant.how == "swap"}
    assert outcome["rank 0, 4 and 5"] == "valid"
    assert outcome["rank 0, 2 and 4"] == "refused"
