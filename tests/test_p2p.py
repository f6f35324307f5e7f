"""Who waits for whom between ranks: the core's verdicts beside brute force, and its programs in the machine.

The expected verdicts come from machine.py, which runs the rows alone. The words of every program that the
core gives out are interpreted there too, with the ranks taking turns by chance.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import machine
import pytest
from conftest import Shape, cell_of, copied, numbered, read, rows_of, shape_of, sizes_of
from families import FAMILIES, LONG, cases, some
from oracle import Action, Rows, parse, violations

import dualpipe_rs as dp

BATCHED = sorted((Path(__file__).parent / "golden").glob("*.batched.txt"))
SEMANTICS = ["eager", "rendezvous", "batched", "blocking"]
RANDOM = range(400 if LONG else 200)

every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def sample(family: str) -> list[dp.Schedule]:
    """Some small sizes, a larger one, and every third for inference."""
    small = some(cases(family, 5, 12), 1 / 12)
    schedules = [case.make() for case in [*small, cases(family, 6, 18)[-1]]]
    return schedules + [schedule.forward_only() for schedule in schedules[::3]]


def verdict(schedule: dp.Schedule, p2p: str, **more: Any) -> list[dp.Violation]:
    try:
        schedule.verify(p2p, **more)
    except dp.ScheduleError as error:
        return error.violations or [pytest.fail("an error without a violation")]
    return []


def shuffled(seed: int) -> tuple[Rows, Shape]:
    """A random schedule in which neighbours have changed places wherever the oracle allows it."""
    rng = random.Random(seed)
    rows, shape = numbered(seed)
    rows = copied(rows)
    for _ in range(20):
        row = rng.choice(rows)
        if len(row) < 2:
            continue
        i = rng.randrange(len(row) - 1)
        row[i], row[i + 1] = row[i + 1], row[i]
        if violations(rows, *shape):
            row[i], row[i + 1] = row[i + 1], row[i]
    return rows, shape


def check_program(schedule: dp.Schedule, p2p: str, seeds: int, depth: int | None = None) -> None:
    """The program computes every row in order and comes to its end, whoever goes first."""
    program = schedule.lower(p2p) if depth is None else schedule.lower(p2p, depth=depth)
    words = [program.rank(rank) for rank in range(program.num_ranks)]
    for seed in range(seeds):
        computed, stuck = machine.run(words, schedule.num_stages, depth=depth, seed=seed)
        assert stuck == [], (schedule, p2p, depth, seed)
        assert computed == rows_of(schedule)


def check_rendezvous(schedule: dp.Schedule, seeds: int = 2) -> None:
    """The least depth is brute force's; so is where it stops one below; programs keep to their depth."""
    rows, shape = rows_of(schedule), shape_of(schedule)
    least = machine.rendezvous_least_depth(rows, shape)
    assert schedule.rendezvous_depth() == least, schedule
    for depth in (least, least + 1, least + 50):
        assert verdict(schedule, "rendezvous", depth=depth) == []
        check_program(schedule, "rendezvous", seeds, depth)
    assert bool(verdict(schedule, "rendezvous")) == (least > 2)
    if least > 1:
        found = verdict(schedule, "rendezvous", depth=least - 1)
        assert {violation.kind for violation in found} == {"deadlock"}
        stuck = machine.rendezvous_stuck(rows, shape.stages, least - 1)
        assert {(v.rank, v.slot) for v in found} & {(one.rank, one.slot) for one in stuck}, schedule
        for violation in found:
            assert parse(violation.action)[0][0][0] in rows[violation.rank][violation.slot or 0]
        with pytest.raises(dp.ScheduleError):
            schedule.lower("rendezvous", depth=least - 1)


def check_blocking(schedule: dp.Schedule, seeds: int = 2) -> bool:
    """The verdict is brute force's, and the circle that it names is one: did it deadlock?"""
    rows, shape = rows_of(schedule), shape_of(schedule)
    found, stuck = verdict(schedule, "blocking"), machine.blocking_stuck(rows, shape)
    assert bool(found) == bool(stuck), schedule
    if not stuck:
        check_program(schedule, "blocking", seeds)
        return False
    assert {violation.kind for violation in found} == {"deadlock"}
    at = {one.rank: one for one in stuck}
    ranks = [violation.rank for violation in found]
    assert len(set(ranks)) == len(ranks)
    for violation, following in zip(found, [*ranks[1:], ranks[0]], strict=True):
        one = at[violation.rank]
        assert one.waits_for == {following}, (schedule, stuck, found)
        ends = one.slot == len(rows[one.rank])
        assert violation.slot in ((None, one.slot, one.slot - 1) if ends else (one.slot,)), (schedule, found)
    assert set(machine.circle(stuck)) <= set(at)
    with pytest.raises(dp.ScheduleError):
        schedule.lower("blocking")
    return True


# ---- The machine itself ------------------------------------------------------------------------------------


def test_the_machine_refuses() -> None:
    """What no program may do."""
    good = [["0F0", "send 0F0>1"], ["post 0F0<0", "wait 0F0<0", "1F0"]]
    assert machine.run(good, 2)[1] == []
    wrong = [
        ([["0F0", "send 0F0>1"], ["post 0F0<0", "1F0"]], "is not here"),
        ([["send 0F0>1", "0F0"], ["post 0F0<0", "wait 0F0<0", "1F0"]], "before it has made it"),
        ([["0F0", "send 0F0>1"], ["wait 0F0<0", "1F0"]], "has not posted"),
        ([["0F0", "send 0F0>1"], []], "left over"),
        ([["0F0", "{0F0>1}"], ["{0F0<0}"]], "left over"),
        ([["0F0", "send 0F0>1", "send 0F0>1"], ["post 0F0<0"]], "twice"),
        (
            [["0F0", "0F1", "{0F0>1}", "{0F1>1}"], ["post 0F1<0", "post 0F0<0", "wait 0F0<0", "1F0"]],
            "a channel is to bring",
        ),
    ]
    for rows, why in wrong:
        with pytest.raises(machine.Wrong, match=why):
            machine.run(rows, 2)
    deep = [["0F0", "0F1", "send 0F0>1", "send 0F1>1"], ["post 0F0<0", "post 0F1<0"]]
    with pytest.raises(machine.Wrong, match="2 receives posted"):
        machine.run(deep, 2, depth=1)


def test_the_machine_finds_circles() -> None:
    _, stuck = machine.run([["0F0", "{0F0>1}", "{0F1<1}"], ["0F1", "{0F1>0}", "{0F0<0}"]], 2)
    assert sorted(machine.circle(stuck)) == [0, 1]
    assert [(one.rank, one.slot, one.at) for one in stuck] == [(0, 1, "{0F0>1}"), (1, 1, "{0F1>0}")]
    together = [["0F0", "{0F0>1,0F1<1}", "1F1"], ["0F1", "{0F1>0,0F0<0}", "1F0"]]
    _, stuck = machine.run(together, 2)
    assert stuck == []


def test_brute_force_by_hand() -> None:
    """Four forwards taken from the last to the first; and two ranks that send before they receive."""
    rows = parse("0F0 0F1 0F2 0F3\n1F3 1F2 1F1 1F0")
    assert machine.rendezvous_least_depth(rows, Shape("linear", 2, 2, 4)) == 4
    rows = parse("0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1")
    assert machine.rendezvous_least_depth(rows, Shape("linear", 2, 2, 2)) == 1
    assert machine.blocking_deadlocks(rows, Shape("linear", 2, 2, 2))
    assert machine.held(rows[0]) == [1, 2, 2, 1]


# ---- Eager and rendezvous ----------------------------------------------------------------------------------


@every_family
def test_eager(family: str) -> None:
    for schedule in sample(family):
        assert verdict(schedule, "eager") == []
        check_program(schedule, "eager", 2)


@every_family
def test_rendezvous(family: str) -> None:
    for schedule in sample(family):
        check_rendezvous(schedule)


def test_random_schedules() -> None:
    """Random orders, and others reached from them: under every semantics."""
    deadlocks = 0
    for seed in RANDOM:
        for rows, shape in (numbered(seed), shuffled(seed)):
            schedule = read(rows, shape)
            check_program(schedule, "eager", 2)
            check_rendezvous(schedule)
            deadlocks += check_blocking(schedule)
            assert verdict(schedule, "batched") == []
            check_program(schedule, "batched", 3)
    assert 20 < deadlocks < 2 * len(RANDOM) - 20


def test_dualpipe_needs_two() -> None:
    """At every size: one receive ahead is a deadlock, two are not."""
    for case in cases("dualpipe"):
        schedule = case.make()
        assert {v.kind for v in verdict(schedule, "rendezvous", depth=1)} == {"deadlock"}, case
        assert verdict(schedule, "rendezvous", depth=2) == []
        assert verdict(schedule, "rendezvous") == []
        assert schedule.rendezvous_depth() == 2
        rows = rows_of(schedule)
        assert machine.rendezvous_stuck(rows, case.ranks, 1)
        assert machine.rendezvous_stuck(rows, case.ranks, 2) == []


# ---- Batched -----------------------------------------------------------------------------------------------


@every_family
def test_batched(family: str) -> None:
    """No order is refused, and every program runs to its end."""
    for schedule in sample(family):
        assert verdict(schedule, "batched") == []
        check_program(schedule, "batched", 4)


@every_family
def test_batched_is_never_refused(family: str) -> None:
    for case in cases(family):
        assert verdict(case.make(), "batched") == [], case


@pytest.mark.parametrize("path", BATCHED, ids=lambda path: path.stem)
def test_batched_golden(path: Path) -> None:
    """DeepSeek's commit points, cell for cell."""
    family, p, m = sizes_of(path.with_name(path.name.replace(".batched", "")))
    program = dp.schedule(family, p, m).lower("batched")
    expected = [line.split() for line in path.read_text().splitlines()]
    assert len(expected) == p == program.num_ranks
    for rank, row in enumerate(expected):
        assert program.rank(rank) == row, f"rank {rank}"


def test_there_are_batched_goldens() -> None:
    assert len(BATCHED) == 5


# ---- Blocking ----------------------------------------------------------------------------------------------


@every_family
def test_blocking(family: str) -> None:
    for schedule in sample(family):
        check_blocking(schedule)


@every_family
def test_blocking_verdict_at_more_sizes(family: str) -> None:
    for case in some(cases(family), 1 / 4):
        schedule = case.make()
        expected = machine.blocking_deadlocks(rows_of(schedule), case.shape)
        assert bool(verdict(schedule, "blocking")) == expected, case


def test_1f1b_deadlocks_when_sends_block() -> None:
    """From two ranks and two microbatches on."""
    for case in cases("1f1b"):
        found = verdict(case.make(), "blocking")
        assert bool(found) == (case.ranks >= 2 and case.microbatches >= 2), case


def test_gpipe_does_not() -> None:
    for case in cases("gpipe"):
        assert verdict(case.make(), "blocking") == [], case


# ---- Memory ------------------------------------------------------------------------------------------------


def check_memory(schedule: dp.Schedule) -> None:
    """The peak is enough under every semantics that runs; one less is refused where it first is not."""
    peaks = schedule.simulate().peak_activations.tolist()
    most = max(peaks)
    held = [machine.held(row) for row in rows_of(schedule)]
    assert [max(row, default=0) for row in held] == peaks
    for p2p in SEMANTICS:
        kinds = {v.kind for v in verdict(schedule, p2p, max_activations=most)}
        assert kinds == {v.kind for v in verdict(schedule, p2p)}
    for limit in {most - 1, most // 2, 0} - {most}:
        found = verdict(schedule, "eager", max_activations=limit)
        assert {v.kind for v in found} == {"memory"}
        over = {(r, i) for r, row in enumerate(held) for i, count in enumerate(row) if count > limit}
        first = {(r, min(i for other, i in over if other == r)) for r, _ in over}
        named = {(v.rank, v.slot) for v in found}
        assert named <= over, (schedule, limit)
        assert first <= named, (schedule, limit)
        for v in found:
            assert v.action in [f"{s}{k}{m}" for s, k, m in forwards_in(schedule, v)]
            assert str(limit) in v.message


def forwards_in(schedule: dp.Schedule, violation: dp.Violation) -> list[Action]:
    """What the slot adds to what is held."""
    assert violation.slot is not None
    return [action for action in rows_of(schedule)[violation.rank][violation.slot] if action[1] == "F"]


@every_family
def test_memory(family: str) -> None:
    for schedule in sample(family):
        if not repr(schedule).endswith("forward only)>"):
            check_memory(schedule)


def test_memory_for_inference() -> None:
    """A microbatch is held while its F runs, as the simulated peak says."""
    for family in FAMILIES:
        for case in cases(family, 4, 8):
            check_memory(case.make().forward_only())


def test_memory_of_random_schedules() -> None:
    for seed in RANDOM:
        check_memory(read(*numbered(seed)))


def test_memory_and_deadlock_are_both_refused() -> None:
    schedule = dp.schedule("1f1b", 3, 4)
    kinds = {v.kind for v in verdict(schedule, "blocking", max_activations=2)}
    assert kinds
    assert kinds <= {"memory", "deadlock"}


# ---- Wrong arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p2p", ["", "Eager", "eager ", "quick", "rendez-vous", "é" * 100])
def test_unknown_p2p(p2p: str) -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    for call in (schedule.verify, schedule.lower):
        with pytest.raises(dp.UsageError) as caught:
            call(p2p)
        for name in SEMANTICS:
            assert name in str(caught.value)


@pytest.mark.parametrize("depth", [0, -1, -(2**63)])
def test_depths_that_are_none(depth: int) -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    for call in (schedule.verify, schedule.lower):
        with pytest.raises(dp.UsageError, match=rf"depth is {depth}\b"):
            call("rendezvous", depth=depth)


@pytest.mark.parametrize("p2p", ["eager", "batched", "blocking"])
def test_depth_without_rendezvous(p2p: str) -> None:
    schedule = dp.schedule("gpipe", 2, 4)
    for call in (schedule.verify, schedule.lower):
        with pytest.raises(dp.UsageError, match=r"depth belongs to .*rendezvous"):
            call(p2p, depth=2)


@pytest.mark.parametrize("limit", [-1, -(2**40), -(2**63)])
def test_negative_max_activations(limit: int) -> None:
    with pytest.raises(dp.UsageError, match=f"max_activations is {limit}"):
        dp.schedule("gpipe", 2, 4).verify(max_activations=limit)


@pytest.mark.parametrize("wrong", ["2", 1.5, [1], 2**200, object()], ids=repr)
def test_numbers_of_other_types(wrong: Any) -> None:
    schedule = dp.schedule("gpipe", 2, 4)
    for arguments in ({"p2p": "rendezvous", "depth": wrong}, {"max_activations": wrong}):
        with pytest.raises((dp.UsageError, TypeError, OverflowError)):
            schedule.verify(**arguments)
    with pytest.raises((dp.UsageError, TypeError, OverflowError)):
        schedule.lower("rendezvous", depth=wrong)


def test_large_depths_and_limits() -> None:
    """They are no wish for memory."""
    schedule = dp.schedule("dualpipe", 4, 8)
    assert verdict(schedule, "rendezvous", depth=2**31) == []
    assert verdict(schedule, "eager", max_activations=2**31) == []


def test_an_invalid_schedule_is_refused_first() -> None:
    text = dp.schedule("gpipe", 2, 2).to_text().replace("1F0 1F1", "1F0 1F0")
    broken = dp.Schedule.from_text(text)
    for p2p in SEMANTICS:
        assert "missing" in {v.kind for v in verdict(broken, p2p)}
    with pytest.raises(dp.ScheduleError, match="1F1 is missing"):
        broken.rendezvous_depth()


def test_cells_of_programs_are_those_of_rows() -> None:
    """The compute words stand as in the schedule, whatever stands between."""
    schedule = dp.schedule("dualpipev", 3, 7)
    for p2p in ("eager", "rendezvous", "batched"):
        program = schedule.lower(p2p)
        for rank in range(3):
            computed = [w for w in map(machine.word, program.rank(rank)) if w.what == "compute"]
            assert [cell_of(w.slot) for w in computed] == schedule.rank(rank)
