"""The simulator beside the slow ones on random schedules, costs and P2P semantics: a thousand cases, and ten
thousand where the environment has LONG=1. And what no schedule can beat.

Costs are eighths, and bandwidths powers of two, so that sums of floats are exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from conftest import numbered, read, rows_of, shape_of
from families import FAMILIES, LONG, Case, cases
from oracle import place, simulate
from oracle_costs import (
    SEMANTICS,
    Keywords,
    Run,
    Simulator,
    eighths,
    hop,
    price,
    random_keywords,
    runs_under,
    times,
)

import dualpipe_rs as dp

EACH = 500 if LONG else 50  # cases a test
BLOCKS = range(20)


@cache
def sizes() -> dict[str, list[Case]]:
    return {family: cases(family, 5, 10) for family in FAMILIES}


def random_schedule(rng: random.Random) -> dp.Schedule:
    """A family's at a random size, or an order of its own; seldom without its backwards."""
    if rng.random() < 0.4:
        schedule = read(*numbered(rng.randrange(100_000 if LONG else 400)))
    else:
        schedule = rng.choice(sizes()[rng.choice(list(FAMILIES))]).make()
    return schedule.forward_only() if rng.random() < 0.1 else schedule


class Trial(NamedTuple):
    schedule: dp.Schedule
    costs: Keywords
    p2p: str
    depth: int | None


def trials(block: int, semantics: list[tuple[str, int | None]]) -> Iterator[Trial]:
    """So many cases that run; where one deadlocks under its semantics, another is drawn."""
    rng = random.Random(1_000_000 + block)
    made = 0
    while made < EACH:
        schedule = random_schedule(rng)
        p2p, depth = rng.choice(semantics)
        costs = random_keywords(rng, schedule, least=rng.randint(0, 2))
        if schedule.placement == "bidirectional" and schedule.num_ranks % 2:
            costs.pop("gradient_exchange", None)
        if runs_under(schedule, p2p, depth):
            made += 1
            yield Trial(schedule, costs, p2p, depth)


# ---- Agreement ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS[:16])
def test_every_semantics_beside_the_relaxation(block: int) -> None:
    for schedule, costs, p2p, depth in trials(block, SEMANTICS):
        run = Simulator(schedule, p2p, depth).run(costs)
        timeline = schedule.simulate(dp.Costs(**costs), p2p=p2p, depth=depth)
        where = (schedule.to_text(), costs, p2p, depth)
        assert times(timeline) == {at: (run.start[at], run.end[at]) for at in run.start}, where
        assert (timeline.makespan, timeline.span, timeline.busy.tolist()) == (
            run.makespan,
            run.span,
            run.busy,
        )
        check_bounds(schedule, costs, run, timeline)


def as_in_the_oracle(rng: random.Random, stages: int) -> dict[str, Any]:
    """One hop for all, one price for every pair: what tests/oracle.py knows."""
    costs: dict[str, Any] = {kind: [eighths(rng) for _ in range(stages)] for kind in "FIW"}
    costs["B"] = rng.choice([None, [eighths(rng) for _ in range(stages)]])
    return costs | {"pair": rng.choice([None, eighths(rng)]), "hop": rng.choice([0, eighths(rng)])}


@pytest.mark.parametrize("block", BLOCKS[16:])
def test_eager_beside_the_first_oracle(block: int) -> None:
    """An oracle that reads dependencies, not programs."""
    rng = random.Random(block)
    for schedule, *_ in trials(block, SEMANTICS[:1]):
        costs = as_in_the_oracle(rng, schedule.num_stages)
        rows, shape = rows_of(schedule), shape_of(schedule)
        inference = all(a[1] == "F" for row in rows for slot in row for a in slot)
        expected = simulate(rows, *shape, costs, forward_only=inference)
        given = dp.Costs(
            costs["F"], costs["I"], costs["W"], backward=costs["B"], overlap=costs["pair"], p2p=costs["hop"]
        )
        timeline = schedule.simulate(given)
        assert times(timeline) == expected["spans"], (schedule.to_text(), costs)
        assert (timeline.makespan, timeline.span) == (expected["makespan"], expected["span"])
        assert (timeline.busy.tolist(), timeline.idle.tolist()) == (expected["busy"], expected["idle"])


# ---- What no schedule can beat -----------------------------------------------------------------------------


def check_bounds(schedule: dp.Schedule, costs: Keywords, run: Run, timeline: dp.Timeline) -> None:
    """No step ends before any rank's work, nor before any microbatch's way there and back."""
    assert timeline.makespan >= timeline.span
    assert timeline.makespan >= timeline.busy.max()
    rows, shape = rows_of(schedule), shape_of(schedule)
    took = {action: price(costs, slot, shape.stages) for row in rows for slot in row for action in slot}
    rank_of = place(*shape)
    for m in range(shape.microbatches):
        ranks = [rank_of(stage, m) for stage in range(shape.stages)]
        assert timeline.makespan >= way(costs, took, ranks, m)


def way(costs: Keywords, took: dict[Any, float], ranks: list[int], m: int) -> float:
    """All that a microbatch passes one after the other: its F's, then its I's or B's, and the hops."""
    total = 0.0
    for stage, rank in enumerate(ranks):
        total += took[stage, "F", m]
        total += took.get((stage, "I", m), took.get((stage, "B", m), 0.0))
        if stage and ranks[stage - 1] != rank:
            total += hop(costs, ranks[stage - 1], rank)
            backward = (stage, "I", m) in took or (stage, "B", m) in took
            total += hop(costs, rank, ranks[stage - 1]) if backward else 0.0
    return total + took.get((0, "W", m), 0.0)


@pytest.mark.parametrize("block", range(4))
def test_more_cost_or_stricter_semantics_never_end_earlier(block: int) -> None:
    """Every slot is a maximum of sums: each price only ever delays."""
    for schedule, costs, p2p, depth in trials(100 + block, SEMANTICS):
        plain = dp.Costs(**costs)
        makespan = schedule.simulate(plain, p2p=p2p, depth=depth).makespan
        assert makespan >= schedule.simulate(plain).makespan
        more = plain.replace(first_extra=(100, 1, 1), last_extra=(1, 100, 1))
        assert schedule.simulate(more, p2p=p2p, depth=depth).makespan >= makespan
        if p2p == "rendezvous":
            deeper = schedule.simulate(plain, p2p=p2p, depth=(depth or 2) + 1).makespan
            assert deeper <= makespan
