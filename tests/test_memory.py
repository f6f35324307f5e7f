"""The bytes that a rank holds over time, added up again from the spans: activations, what waits for its W,
and tensors received.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import numbered, read
from oracle_costs import SEMANTICS, SMALL, Keywords, Run, Simulator, at, needs_of, random_keywords, runs_under

import dualpipe_rs as dp

KINDS = ["activation", "weight_grad", "received"]
Changes = list[dict[float, list[float]]]  # by rank: what is added at a time, of each kind


def random_bytes(rng: random.Random, schedule: dp.Schedule) -> Keywords:
    costs = random_keywords(rng, schedule, least=rng.randint(0, 1))
    ranks, stages = schedule.num_ranks, schedule.num_stages
    table = [[float(rng.randint(0, 9)) for _ in range(ranks)] for _ in range(ranks)]
    costs["p2p_bytes"] = rng.choice([3.0, table])
    for name in ("activation_bytes", "weight_grad_bytes"):
        costs[name] = rng.choice([2.0, [float(rng.randint(0, 9)) for _ in range(stages)]])
    return costs


# ---- The oracle --------------------------------------------------------------------------------------------


def changes(schedule: dp.Schedule, simulator: Simulator, run: Run, costs: Keywords) -> Changes:
    found: Changes = [defaultdict(lambda: [0.0, 0.0, 0.0]) for _ in range(schedule.num_ranks)]

    def hold(rank: int, kind: str, size: float, start: float, end: float) -> None:
        found[rank][start][KINDS.index(kind)] += size
        found[rank][end][KINDS.index(kind)] -= size

    where = {a: (r, i) for r, row in enumerate(simulator.rows) for i, slot in enumerate(row) for a in slot}
    for (stage, kind, microbatch), (rank, index) in where.items():
        if kind == "F":
            backward = [where.get((stage, k, microbatch)) for k in "IB"]
            last = next((b for b in backward if b is not None), (rank, index))
            size = at(costs["activation_bytes"], stage)
            hold(rank, "activation", size, run.start[rank, index], run.end[last])
        if kind == "W":
            begin = run.end[where[stage, "I", microbatch]]
            hold(rank, "weight_grad", at(costs["weight_grad_bytes"], stage), begin, run.end[rank, index])
    for (rank, index), needs in needs_of(schedule).items():
        for maker, (stage, kind, microbatch) in needs:
            name = f"{stage}{'F' if kind == 'F' else 'B'}{microbatch}"
            begin = run.end[maker] if simulator.p2p == "eager" else run.posted[name]
            size = at(costs["p2p_bytes"], maker[0], rank)
            hold(rank, "received", size, begin, run.end[rank, index])
    return found


def levels(found: dict[float, list[float]]) -> list[tuple[float, ...]]:
    """(time, activation, weight_grad, received) from each time on at which they change."""
    held, answer = np.zeros(3), []
    for time in sorted(found):
        if any(found[time]):
            held = held + np.array(found[time])
            answer.append((time, *held.tolist()))
    return answer


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)
def test_what_is_held_over_time(p2p: str, depth: int | None) -> None:
    compared = 0
    for seed in range(60):
        rng = random.Random(seed)
        schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SMALL))
        if not runs_under(schedule, p2p, depth):
            continue
        costs = random_bytes(rng, schedule)
        simulator = Simulator(schedule, p2p, depth)
        timeline = schedule.simulate(dp.Costs(**costs), p2p=p2p, depth=depth)
        found = changes(schedule, simulator, simulator.run(costs), costs)
        check(timeline, [levels(one) for one in found])
        compared += 1
    assert compared >= 10


def changed(memory: np.ndarray) -> list[tuple[float, ...]]:
    """The rows that differ from the one before; at first nothing is held."""
    rows = [(0.0, 0.0, 0.0, 0.0), *memory.tolist()]
    return [after for before, after in pairwise(rows) if after[1:] != before[1:]]


def check(timeline: dp.Timeline, expected: list[list[tuple[float, ...]]]) -> None:
    for rank, rows in enumerate(expected):
        memory = timeline.memory(rank)
        assert memory.dtype.names == ("time", *KINDS)
        assert np.all(np.diff(memory["time"]) > 0)
        assert changed(memory) == rows
        peak = max((sum(row[1:]) for row in rows), default=0.0)
        assert timeline.peak_bytes()[rank] == peak


@pytest.mark.parametrize("seed", range(20))
def test_inference_holds_an_activation_while_it_is_made(seed: int) -> None:
    rng = random.Random(seed)
    schedule = read(*numbered(seed)).forward_only()
    costs = random_bytes(rng, schedule)
    simulator = Simulator(schedule)
    found = changes(schedule, simulator, simulator.run(costs), costs)
    check(schedule.simulate(dp.Costs(**costs)), [levels(one) for one in found])


# ---- By hand, and arguments --------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Rank 1 of two: 0F0's output comes at 1 (+ a hop of 2), and is taken by 1F0."""
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=1\n0F0 0B0\n1F0 1I0 1W0\n"
    costs = dp.Costs(p2p=2, activation_bytes=[1, 10], weight_grad_bytes=100, p2p_bytes=1000)
    schedule = dp.Schedule.from_text(text)
    timeline = schedule.simulate(costs)
    assert changed(timeline.memory(1)) == [
        (1, 0, 0, 1000),
        (3, 10, 0, 1000),
        (4, 10, 0, 0),
        (5, 0, 100, 0),
        (6, 0, 0, 0),
    ]
    assert changed(timeline.memory(0)) == [(0, 1, 0, 0), (5, 1, 0, 1000), (9, 0, 0, 0)]
    assert timeline.peak_bytes().tolist() == [1001, 1010]
    posted_at_once = schedule.simulate(costs, p2p="rendezvous")
    assert posted_at_once.memory(1).tolist()[0] == (0, 0, 0, 1000)


def test_a_row_is_a_change() -> None:
    memory = dp.schedule("1f1b", 2, 4).simulate(dp.Costs(activation_bytes=1)).memory(0)
    assert changed(memory) == memory.tolist()


def test_bytes_of_other_costs() -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    costs = dp.Costs(activation_bytes=[1, 2, 3, 4], weight_grad_bytes=5, p2p_bytes=7)
    with_bytes, without = schedule.simulate(costs), schedule.simulate()
    assert not without.peak_bytes().any()
    assert changed(without.memory(0)) == []
    assert np.array_equal(without.peak_bytes(costs), with_bytes.peak_bytes())
    assert np.array_equal(without.memory(2, costs), with_bytes.memory(2))
    instead = with_bytes.memory(2, costs.replace(activation_bytes=0))
    assert not instead["activation"].any()
    assert instead["received"].max() == with_bytes.memory(2)["received"].max() > 0


@pytest.mark.parametrize("family", ["1f1b", "dualpipe", "zb-v"])
def test_activations_alone_are_those_of_peak_activations_at_least(family: str) -> None:
    """`peak_activations` counts until the last backward, so W too."""
    timeline = dp.schedule(family, 4, 8).simulate(dp.Costs(activation_bytes=1, weight_grad_bytes=1))
    assert timeline.peak_bytes().tolist() == timeline.peak_activations.tolist()


@pytest.mark.parametrize("rank", [-1, 4, 2**40])
def test_ranks_out_of_range(rank: int) -> None:
    with pytest.raises(dp.UsageError, match="rank"):
        dp.schedule("1f1b", 4, 4).simulate().memory(rank)


@pytest.mark.parametrize("costs", [1, "1", {"activation_bytes": 1}], ids=repr)
def test_costs_that_are_none(costs: Any) -> None:
    timeline = dp.schedule("1f1b", 2, 2).simulate()
    for call in (lambda: timeline.memory(0, costs), lambda: timeline.peak_bytes(costs)):
        with pytest.raises((TypeError, dp.UsageError)):
            call()
