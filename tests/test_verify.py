"""The verifier: each rule by hand, and its verdict on broken schedules beside the oracle's.

Where the two are meant to differ: the verifier looks for deadlock only where no other rule is broken, and
then names one shortest circle instead of all that stand still; a fused pair of one microbatch is always a bad
pair, since its backward can only come after its forward; where an action stands twice, or a B beside an I or
W, each takes another one of them as the first, so that "order" is compared where needs stand once.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from conftest import (
    GOLDEN,
    PLACEMENT,
    Shape,
    attempt,
    cell_of,
    copied,
    numbered,
    read,
    sizes_of,
    steady,
    text_of,
    word_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Action, Place, Rows, Slot, dependencies, order_of, parse, place, violations

import dualpipe_rs as dp


def violations_of(rows: Rows, shape: Shape) -> list[dp.Violation]:
    return violations_in(text_of(rows, shape))


def violations_in(text: str) -> list[dp.Violation]:
    schedule = dp.Schedule.from_text(text)
    try:
        schedule.verify()
    except dp.ScheduleError as error:
        return error.violations or [pytest.fail("an error without a violation")]
    return []


def action_of(word: str | None) -> Action:
    assert word is not None
    return parse(word)[0][0][0]


# ---- Each rule by hand -------------------------------------------------------------------------------------

HEADER = "# name=hand placement={} ranks={} stages={} microbatches={}\n"
LINEAR_1 = HEADER.format("linear", 1, 1, 2)
LINEAR_2 = HEADER.format("linear", 2, 2, 2)
V_2 = HEADER.format("v", 2, 4, 4)
WAVE_1 = HEADER.format("wave", 1, 2, 2)
DUAL_2 = HEADER.format("bidirectional", 2, 2, 4)
LOOPED_3 = HEADER.format("looped", 3, 6, 2)

# (what, text, [(kind, rank, slot, action, needs)])
BY_HAND: list[tuple[str, str, list[tuple[str, int, int | None, str, str | None]]]] = [
    ("nothing", LINEAR_2 + "0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1I1 1W1", []),
    ("no F", LINEAR_2 + "0F0 0F1 0B0 0B1\n1F0 1B0 1B1", [("missing", 1, None, "1F1", None)]),
    ("no B", LINEAR_2 + "0F0 0F1 0B0\n1F0 1B0 1F1 1B1", [("missing", 0, None, "0B1", None)]),
    ("no W", LINEAR_2 + "0F0 0F1 0I0 0B1\n1F0 1B0 1F1 1B1", [("missing", 0, None, "0W0", None)]),
    ("no I", LINEAR_2 + "0F0 0F1 0W0 0B1\n1F0 1B0 1F1 1B1", [("missing", 0, None, "0I0", None)]),
    (
        "neither F nor B",
        LINEAR_2 + "0F0 0F1 0B0 0B1\n1F0 1B0",
        [("missing", 1, None, "1F1", None), ("missing", 1, None, "1B1", None)],
    ),
    (
        "missing in the other direction",
        DUAL_2 + "0F0 1F2 0F1 1B2 1F3 0B0 1B3 0I1 0W1\n0F2 1F0 0F3 1B0 1F1 0B2 1B1 0I3",
        [("missing", 1, None, "0W3", None)],
    ),
    ("twice F", LINEAR_2 + "0F0 0F1 0F0 0B0 0B1\n1F0 1B0 1F1 1B1", [("duplicate", 0, 2, "0F0", None)]),
    (
        "three times W",
        LINEAR_1 + "0F0 0I0 0W0 0W0 0F1 0B1 0W0",
        [("duplicate", 0, 3, "0W0", None), ("duplicate", 0, 6, "0W0", None)],
    ),
    (
        "twice, once in a pair",
        LINEAR_1 + "0F0 0F1 0B1 (0F1;0B0)",
        [("duplicate", 0, 3, "0F1", None)],
    ),
    ("B beside I and W", LINEAR_1 + "0F0 0F1 0B0 0I0 0W0 0B1", [("mixed", 0, 2, "0B0", None)]),
    ("B beside I", LINEAR_1 + "0F0 0F1 0B0 0I0 0B1", [("mixed", 0, 2, "0B0", None)]),
    ("B beside W", LINEAR_1 + "0F0 0F1 0B0 0W0 0B1", [("mixed", 0, 2, "0B0", None)]),
    (
        "on another rank",
        LINEAR_2 + "0F0 0F1 0B0 1B1 0B1\n1F0 1B0 1F1",
        [("wrong_rank", 0, 3, "1B1", None)],
    ),
    (
        "on the rank of the other direction",
        DUAL_2 + "0F0 1F2 0F1 1B2 1F3 0B0 1B3 0I1 0W1 0W3\n0F2 1F0 0F3 1B0 1F1 0B2 1B1 0I3",
        [("wrong_rank", 0, 9, "0W3", None)],
    ),
    (
        "twice, once on another rank",
        LINEAR_2 + "0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1 0F0",
        [("wrong_rank", 1, 4, "0F0", None), ("duplicate", 1, 4, "0F0", None)],
    ),
    (
        "a pair of one microbatch",
        WAVE_1 + "0F0 0F1 1F0 (1F1;0B1) 1B1 1B0 0B0",
        [("pair", 0, 3, "0B1", "1F1"), ("order", 0, 3, "0B1", "1B1")],
    ),
    (
        "a pair of one stage and microbatch",
        LINEAR_1 + "0F0 0B0 (0F1;0B1)",
        [("pair", 0, 2, "0B1", "0F1"), ("order", 0, 2, "0B1", "0F1")],
    ),
    (
        "B before its F",
        LINEAR_2 + "0F0 0F1 0B0 0B1\n1F0 1B1 1F1 1B0",
        [("order", 1, 1, "1B1", "1F1")],
    ),
    ("W before its I", LINEAR_1 + "0F0 0F1 0W0 0I0 0B1", [("order", 0, 2, "0W0", "0I0")]),
    (
        "a stage's F before the one before it on the same rank",
        V_2 + "0F0 0F1 3F0 3I0 3W0 3F1 0F2 3B1 0F3 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3\n"
        "2F0 1F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1I2 2I3 1W2 1I3 2W3 1W3",
        [("order", 1, 0, "2F0", "1F0")],
    ),
    (
        "a B before the later stage's I on the same rank",
        WAVE_1 + "0F0 1F0 0B0 1I0 1W0 0F1 1F1 1B1 0B1",
        [("order", 0, 2, "0B0", "1I0")],
    ),
    (
        "both needs come later",
        WAVE_1 + "0B0 0F0 1F0 1B0 0F1 1F1 1B1 0B1",
        [("order", 0, 0, "0B0", "0F0"), ("order", 0, 0, "0B0", "1B0")],
    ),
    (
        "two ranks wait for each other",
        LINEAR_2 + "0F0 0B0 0F1 0B1\n1F0 1F1 1I0 1W0 1B1",
        [("deadlock", 0, 1, "0B0", "1I0"), ("deadlock", 1, 1, "1F1", "0F1")],
    ),
    (
        "a pair waits for both",
        HEADER.format("linear", 2, 2, 3) + "0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1F1 1F2 1B0 1B1 1B2",
        [("deadlock", 0, 2, "0B0", "1B0"), ("deadlock", 1, 2, "1F2", "0F2")],
    ),
    (
        "three ranks in a circle",
        LOOPED_3
        + "3F0 0F0 0F1 3F1 3B0 3B1 0B0 0B1\n1F1 1F0 4F0 4F1 4B0 4B1 1B0 1B1\n2F1 2F0 5F0 5F1 5B0 5B1 2B0 2B1",
        [
            ("deadlock", 0, 0, "3F0", "2F0"),
            ("deadlock", 2, 0, "2F1", "1F1"),
            ("deadlock", 1, 0, "1F1", "0F1"),
        ],
    ),
    (
        "the shorter of two circles",
        HEADER.format("looped", 3, 6, 3)
        + "0F1 (3F0;0B1) 0F0 0F2 3F1 3F2 3B0 3B1 3B2 0B0 0B2\n"
        + "1F2 1F0 1F1 4F0 4F1 4F2 4B0 4B1 4B2 1B0 1B1 1B2\n"
        + "2F2 2F0 2F1 5F0 5F1 5F2 5B0 5B1 5B2 2B0 2B1 2B2",
        [("deadlock", 0, 1, "0B1", "1B1"), ("deadlock", 1, 0, "1F2", "0F2")],
    ),
    (
        "deadlock is looked for only where nothing else is wrong",
        LINEAR_2 + "0F0 0B0 0F1\n1F0 1F1 1B0 1B1",
        [("missing", 0, None, "0B1", None)],
    ),
    (
        "several at once, by rank and slot, then what is missing",
        LINEAR_2 + "0F0 1F1 0F0 0B1 0F1\n1F0 1B0 1I0 1B1",
        [
            ("wrong_rank", 0, 1, "1F1", None),
            ("duplicate", 0, 2, "0F0", None),
            ("missing", 0, None, "0B0", None),
            ("mixed", 1, 1, "1B0", None),
            ("order", 0, 1, "1F1", "0F1"),
            ("order", 0, 3, "0B1", "0F1"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in BY_HAND], ids=[case[0] for case in BY_HAND]
)
def test_by_hand(text: str, expected: list[tuple[str, int, int | None, str, str | None]]) -> None:
    found = violations_in(text)
    assert [(v.kind, v.rank, v.slot, v.action, v.needs) for v in found] == expected
    for violation in found:
        assert str(violation) == violation.message
        where = f"rank {violation.rank}"
        where += "" if violation.slot is None else f", slot {violation.slot}"
        assert violation.message.startswith(f"{where}: ")
        assert violation.action in violation.message
        assert violation.needs is None or violation.needs in violation.message


def test_a_backward_in_a_forward_only_schedule() -> None:
    """Refused on reading or on verifying, but never dropped unsaid."""
    text = LINEAR_2.replace("\n", " forward_only=true\n") + "0F0 0F1 0B0\n1F0 1F1"
    schedule = attempt(text)
    if isinstance(schedule, str):
        assert schedule.startswith("line 2, column 9: ")
        return
    assert schedule.rank(0) == ["0F0", "0F1", "0B0"]
    with pytest.raises(dp.ScheduleError) as caught:
        schedule.verify()
    found = [(v.kind, v.rank, v.slot, v.action, v.needs) for v in caught.value.violations]
    assert found == [("forward_only", 0, 2, "0B0", None)]


def test_a_forward_only_schedule_needs_no_backward() -> None:
    text = LINEAR_2.replace("\n", " forward_only=true\n") + "{}\n1F0 1F1"
    assert violations_in(text.format("0F0 0F1")) == []
    (found,) = violations_in(text.format("0F0 0F0"))[1:]
    assert (found.kind, found.rank, found.slot, found.action) == ("missing", 0, None, "0F1")


# ---- What a person reads -----------------------------------------------------------------------------------


def message_in(text: str) -> str:
    with pytest.raises(dp.ScheduleError) as caught:
        dp.Schedule.from_text(text).verify()
    return str(caught.value)


def test_the_message_marks_the_cell() -> None:
    text = dp.schedule("dualpipe", 4, 8).to_text().replace("0F0 0F1 0F2 3F4", "3F4 0F1 0F2 0F0")
    message = message_in(text)
    assert message.startswith("dualpipe (4 ranks, 4 stages, 8 microbatches) breaks rules (")
    assert "\n    rank 0: »3F4« 0F1 0F2 0F0 3I4 3W4 …" in message


def test_the_message_cuts_long_rows() -> None:
    row = dp.schedule("gpipe", 1, 20).rank(0)
    row[20], row[21] = "0F0", "0B1"
    message = message_in(HEADER.format("linear", 1, 1, 20) + " ".join(row))
    assert "\n    rank 0: … 0F15 0F16 0F17 0F18 0F19 »0F0« 0B1 0B2 0B3 0B4 0B5 …" in message
    assert "hand (1 ranks, 1 stages, 20 microbatches) breaks rules (2 in all):" in message
    assert "\n  rank 0: 0B0 is missing" in message


def test_the_message_at_the_end_of_a_row() -> None:
    message = message_in(LINEAR_1 + "0F0 0B0 (0F1;0B1)")
    assert message.count("\n    rank 0: 0F0 0B0 »(0F1;0B1)«") == 2


def test_one_violation_is_a_rule() -> None:
    message = message_in(LINEAR_1 + "0F0 0B0 0F1 0I1")
    assert (
        message
        == "hand (1 ranks, 1 stages, 2 microbatches) breaks a rule (1 in all):\n  rank 0: 0W1 is missing"
    )


def test_the_message_shows_eight() -> None:
    message = message_in(HEADER.format("linear", 1, 1, 20) + "0F0 " * 20)
    assert "breaks rules (58 in all)" in message
    assert message.endswith("\n  and 50 more")
    assert message.count("»") == 8


def test_a_deadlock_says_who_waits_for_whom() -> None:
    message = message_in(LINEAR_2 + "0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1")
    assert (
        "rank 0, slot 1: deadlock, a circle of 2 ranks: 0B0 waits for 1B0, which rank 1 has after 1F1"
        in message
    )
    assert (
        "rank 1, slot 1: deadlock, a circle of 2 ranks: 1F1 waits for 0F1, which rank 0 has after 0B0"
        in message
    )
    assert "\n    rank 0: 0F0 »0B0« 0F1 0B1" in message
    assert "\n    rank 1: 1F0 »1F1« 1B0 1B1" in message


def test_a_flood_of_violations_is_counted() -> None:
    many = 20_000
    with pytest.raises(dp.ScheduleError) as caught:
        dp.Schedule.from_text(HEADER.format("linear", 1, 1, many) + "0F0 " * many).verify()
    assert len(caught.value.violations) == 10_000
    assert f"({3 * many - 2} in all)" in str(caught.value)
    assert len(str(caught.value)) < 3000


def ring(p: int) -> str:
    """Each rank waits for the one before it, and the first for the last: one circle of all ranks."""
    rows = []
    for a, b in ((r, r + p) for r in range(p)):
        forwards = f"{a}F1 {a}F0 {b}F0 {b}F1" if a else f"{b}F0 {a}F0 {a}F1 {b}F1"
        rows.append(f"{forwards} {b}B0 {b}B1 {a}B0 {a}B1")
    return HEADER.format("looped", p, 2 * p, 2) + "\n".join(rows)


def test_a_long_circle_is_found() -> None:
    found = violations_in(ring(50))
    assert [v.rank for v in found] == [0, *range(49, 0, -1)]
    assert {v.kind for v in found} == {"deadlock"}


def test_a_long_circle_is_not_told_at_length_again_and_again() -> None:
    """Or a text of a megabyte would be told in gigabytes."""
    lengths = [sum(len(v.message) for v in violations_in(ring(p))) for p in (200, 400)]
    assert lengths[1] < 3 * lengths[0]


def test_the_verdict_is_kept() -> None:
    schedule = dp.Schedule.from_text(LINEAR_1 + "0F0 0B0 0F1 0I1")
    verdicts = []
    for call in (schedule.verify, schedule.verify, schedule.simulate, schedule.lower):
        with pytest.raises(dp.ScheduleError) as caught:
            call()
        verdicts.append((str(caught.value), caught.value.violations))
    assert all(verdict == verdicts[0] for verdict in verdicts)


# ---- Beside the oracle -------------------------------------------------------------------------------------


def check(rows: Rows, shape: Shape) -> None:
    """The verifier and the oracle find the same in rows that `from_text` takes."""
    found = violations_of(rows, shape)
    expected = violations(rows, *shape) | pairs_of_one_microbatch(rows)
    others = {e for e in expected if e[0] != "deadlock"}
    if not others:
        check_circle(rows, shape, found, {(e[1], e[2]) for e in expected})
        return
    places = places_of(rows)
    check_counted(found, others, places)
    assert "deadlock" not in {v.kind for v in found}
    for kind in ("wrong_rank", "out_of_range", "forward_only", "pair"):
        located = {(kind, v.rank, v.slot, *subject_of(v)) for v in found if v.kind == kind}
        assert located == {e for e in others if e[0] == kind}
    check_order(found, others, places, shape)


def subject_of(violation: dp.Violation) -> tuple[Action, ...]:
    """The oracle's "pair" names no action."""
    return () if violation.kind == "pair" else (action_of(violation.action),)


def pairs_of_one_microbatch(rows: Rows) -> set[tuple[Any, ...]]:
    cells = [(rank, index, slot) for rank, row in enumerate(rows) for index, slot in enumerate(row)]
    return {("pair", r, i) for r, i, slot in cells if len(slot) == 2 and slot[0][2] == slot[1][2]}


def places_of(rows: Rows) -> dict[Action, list[Place]]:
    places: dict[Action, list[Place]] = defaultdict(list)
    for rank, row in enumerate(rows):
        for index, slot in enumerate(row):
            for action in slot:
                places[action].append((rank, index))
    return places


def check_counted(found: list[dp.Violation], expected: set[Any], places: dict[Action, list[Place]]) -> None:
    """Missing, duplicate and mixed: the oracle says which action, and the places follow."""
    missing = {("missing", *action_of(v.action)) for v in found if v.kind == "missing"}
    assert missing == {e for e in expected if e[0] == "missing"}
    again = sorted((v.rank, v.slot, action_of(v.action)) for v in found if v.kind == "duplicate")
    assert again == sorted((*where, action) for action, all_ in places.items() for where in all_[1:])
    mixed = {(v.rank, v.slot, action_of(v.action)) for v in found if v.kind == "mixed"}
    both = {(s, "B", m) for kind, s, m in (e for e in expected if e[0] == "mixed")}
    assert mixed == {(*places[action][0], action) for action in both}


def check_order(
    found: list[dp.Violation], expected: set[Any], places: dict[Action, list[Place]], shape: Shape
) -> None:
    mixed = {(e[1], e[2]) for e in expected if e[0] == "mixed"}

    def clear(action: Action) -> bool:
        needs = dependencies(action, shape.stages)
        if any((stage, microbatch) in mixed for need in needs for stage, _, microbatch in need):
            return False
        return all(sum(len(places.get(a, [])) for a in need) <= 1 for need in needs)

    orders = [v for v in found if v.kind == "order"]
    located = {("order", v.rank, v.slot, action_of(v.action)) for v in orders if clear(action_of(v.action))}
    assert located == {e for e in expected if e[0] == "order" and clear(e[3])}
    for v in orders:
        need = action_of(v.needs)
        assert any(rank == v.rank and index >= v.slot for rank, index in places[need])
        needs = [n for need in dependencies(action_of(v.action), shape.stages) for n in need]
        assert need in needs or (need[1] == "B" and (need[0], "I", need[2]) in needs)


def check_circle(rows: Rows, shape: Shape, found: list[dp.Violation], stalled: set[Place]) -> None:
    """Each of the circle stands still before its slot and waits for what the next has there or later."""
    assert bool(found) == bool(stalled)
    if not found:
        return
    assert {v.kind for v in found} == {"deadlock"}
    assert {(v.rank, v.slot) for v in found} <= stalled
    assert len({v.rank for v in found}) == len(found)
    places, slots = places_of(rows), {v.rank: v.slot for v in found}
    for violation, following in pairwise([*found, found[0]]):
        action, need = action_of(violation.action), action_of(violation.needs)
        assert action in rows[violation.rank][violation.slot]
        assert any(need in needs for needs in dependencies(action, shape.stages))
        ((rank, index),) = places[need]
        assert rank == following.rank
        assert index >= slots[rank]
    assert len(found) == shortest_circle(rows, shape, dict(stalled), places)


def shortest_circle(rows: Rows, shape: Shape, at: dict[int, int], places: dict[Action, list[Place]]) -> int:
    """Of the ranks that stand still, each pointing to those that have what its slot lacks."""
    points: dict[int, set[int]] = {}
    for rank, index in at.items():
        needs = [n for action in rows[rank][index] for n in dependencies(action, shape.stages)]
        where = [places[a][0] for need in needs for a in need if a in places]
        points[rank] = {r for r, i in where if r in at and i >= at[r]}
    for length in range(1, len(at) + 1):
        for start in at:
            reached = {start}
            for _ in range(length):
                reached = {to for rank in reached for to in points[rank]}
            if start in reached:
                return length
    raise AssertionError("a stand-still without a circle")


# ---- Breaking schedules ------------------------------------------------------------------------------------

Change = tuple[str, int, int, int]
CHANGES = ["drop", "duplicate", "retype", "swap", "neighbours", "move", "split", "join", "renumber"]


def change(rows: Rows, shape: Shape, how: str, a: int, b: int, c: int) -> None:
    """One thing changed somewhere. a chooses the rank, b the slot, c the rest."""
    row = rows[a % len(rows)]
    i = b % len(row)
    slot = row[i]
    if how == "drop" and len(row) > 1:
        del row[i]
    elif how == "duplicate":
        other = rows[c % len(rows)]
        other.insert(c % (len(other) + 1), [slot[c % len(slot)]])
    elif how == "retype":
        stage, kind, microbatch = slot[0]
        row[i] = [(stage, "FIWB".replace(kind, "")[c % 3], microbatch), *slot[1:]]
    elif how == "swap":
        j = c % len(row)
        row[i], row[j] = row[j], row[i]
    elif how == "neighbours":
        j = (i + 1) % len(row)
        row[i], row[j] = row[j], row[i]
    elif how == "move" and len(row) > 1:
        del row[i]
        other = rows[c % len(rows)]
        other.insert(c % (len(other) + 1), slot)
    elif how == "split":
        row[i : i + 1] = [[action] for action in slot]
    elif how == "join":
        _join(row, i)
    elif how == "renumber":
        stage, kind, microbatch = slot[-1]
        row[i] = [*slot[:-1], (c % shape.stages, kind, (microbatch + c) % shape.microbatches)]


def _join(row: list[Slot], i: int) -> None:
    """Fuses a slot with the next one."""
    both = [action for slot in row[i : i + 2] for action in slot]
    if len(both) == 2 and len(row) > 1:
        row[i : i + 2] = [sorted(both, key=lambda action: "FIWB".index(action[1]))]


def is_readable(rows: Rows, shape: Shape) -> bool:
    """Text has no other pairs than of an F and a B, and `from_text` wants as many actions as forwards."""
    slots = [slot for row in rows for slot in row]
    pairs = [[kind for _, kind, _ in slot] for slot in slots if len(slot) == 2]
    return all(pair == ["F", "B"] for pair in pairs) and len(slots) >= shape.stages * shape.microbatches


def golden_rows() -> list[tuple[Rows, Shape]]:
    goldens = []
    for path in GOLDEN:
        family, p, m = sizes_of(path)
        stages = 2 * p if family == "dualpipev" else p
        goldens.append((order_of(family, p, m), Shape(PLACEMENT[family], p, stages, m)))
    return goldens


changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.integers(0, 99), st.integers(0, 999), st.integers(0, 999)),
    min_size=1,
    max_size=3,
)


@settings(steady, max_examples=600)
@given(source=st.sampled_from(golden_rows()), changes=changes)
def test_changed_goldens(source: tuple[Rows, Shape], changes: list[Change]) -> None:
    check_changed(*source, changes)


@settings(steady, max_examples=1200)
@given(seed=st.integers(0, 199), changes=changes)
def test_changed_random_schedules(seed: int, changes: list[Change]) -> None:
    check_changed(*numbered(seed), changes)


@settings(steady, max_examples=300)
@given(seed=st.integers(0, 199), changes=changes)
def test_changed_forward_only_schedules(seed: int, changes: list[Change]) -> None:
    rows, shape = numbered(seed)
    rows = [[[action] for slot in row for action in slot if action[1] == "F"] for row in rows]
    for one in changes:
        change(rows, shape, *one)
    if not is_readable(rows, shape):
        return
    found = violations_in(text_of(rows, shape, forward_only=True))
    expected = violations(rows, *shape, forward_only=True)
    backwards = {
        ("forward_only", v.rank, v.slot, action_of(v.action)) for v in found if v.kind == "forward_only"
    }
    assert backwards == {e for e in expected if e[0] == "forward_only"}
    missing = {("missing", *action_of(v.action)) for v in found if v.kind == "missing"}
    assert missing == {e for e in expected if e[0] == "missing"}
    assert bool(found) == bool(expected)


def check_changed(rows: Rows, shape: Shape, changes: list[Change]) -> None:
    rows = copied(rows)
    for one in changes:
        change(rows, shape, *one)
    if is_readable(rows, shape):
        check(rows, shape)
    else:
        with pytest.raises(dp.UsageError, match=r"^line \d+, column \d+: "):
            read(rows, shape)


@pytest.mark.parametrize("seed", range(200))
def test_random_orders_are_valid_or_deadlocked(seed: int) -> None:
    """Rows shuffled as far as each row's own needs allow: nothing but deadlock can be wrong."""
    rng = random.Random(seed)
    rows, shape = numbered(seed)
    rows = [reordered(rng, row, shape) for row in rows]
    assert {e[0] for e in violations(rows, *shape)} <= {"deadlock"}
    check(rows, shape)


def reordered(rng: random.Random, row: list[Slot], shape: Shape) -> list[Slot]:
    """The row in another order in which what a slot needs on its own rank stands before it."""
    makes = {action: i for i, slot in enumerate(row) for action in slot}
    needs = [
        {
            makes[a]
            for action in slot
            for need in dependencies(action, shape.stages)
            for a in need
            if a in makes
        }
        for slot in row
    ]
    left, out = list(range(len(row))), []
    while left:
        i = rng.choice([i for i in left if not needs[i] & set(left)])
        left.remove(i)
        out.append(row[i])
    return out


def test_the_oracle_and_the_verifier_take_every_random_schedule() -> None:
    for seed in range(200):
        rows, shape = numbered(seed)
        assert read(rows, shape).verify() is None, text_of(rows, shape)
        assert violations(rows, *shape) == set()


def test_every_single_drop_is_missed() -> None:
    """DualPipe of 4 ranks: each cell in turn."""
    schedule = dp.schedule("dualpipe", 4, 8)
    shape, rank_of = Shape("bidirectional", 4, 4, 8), place("bidirectional", 4, 4, 8)
    original = order_of("dualpipe", 4, 8)
    for rank, row in enumerate(original):
        for index, slot in enumerate(row):
            rows = copied(original)
            del rows[rank][index]
            found = violations_of(rows, shape)
            assert [(v.kind, v.rank, v.slot, v.action) for v in found] == [
                ("missing", rank_of(action[0], action[2]), None, word_of(action)) for action in sorted(slot)
            ], cell_of(slot)
    assert schedule.verify() is None
