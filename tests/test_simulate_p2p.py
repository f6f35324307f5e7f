"""What P2P semantics cost: the simulator against a slow one, which repeats all until no time changes."""

from __future__ import annotations

import random
import re
from collections import defaultdict

import pytest
from conftest import numbered, read

import dualpipe_rs as dp

SEMANTICS = [("eager", None), ("rendezvous", 2), ("rendezvous", 5), ("batched", None), ("blocking", None)]
FAMILIES = [(name, 2, 4) for name in dp.schedule_names()] + [
    ("1f1b", 4, 7),
    ("zb-h1", 3, 5),
    ("zb-v", 3, 6),
    ("v-half", 4, 9),
    ("interleaved", 3, 6),
    ("dualpipe", 4, 10),
    ("dualpipev", 3, 8),
    ("chimera", 4, 8),
    ("hanayo", 3, 4),
]


def random_costs(rng: random.Random, stages: int) -> dp.Costs:
    """Whole numbers, so that sums are exact and equality is equality."""
    table = [[float(rng.randint(0, 9)) for _ in range(stages)] for _ in range(3)]
    return dp.Costs(*table, overlap=rng.choice([None, 5.0]), p2p=float(rng.choice([0, 1, 4])))


def price(word: str, costs: dp.Costs) -> float:
    actions = re.findall(r"(\d+)([FIWB])\d+", word)
    if len(actions) == 2 and costs.overlap is not None:
        return costs.overlap
    by_kind = {"F": costs.forward, "I": costs.backward_input, "W": costs.backward_weight}
    parts = {"B": "IW"}
    return sum(by_kind[k][int(stage)] for stage, kind in actions for k in parts.get(kind, kind))


def ends_of(schedule: dp.Schedule, p2p: str, depth: int | None, costs: dp.Costs) -> list[list[float]]:
    """The end of every slot by rank, by relaxation: from zero, times only grow until they hold."""
    program = schedule.lower(p2p, depth=depth)
    rows = [program.rank(rank) for rank in range(program.num_ranks)]
    sent: dict[str, float] = defaultdict(float)
    posted: dict[str, float] = defaultdict(float)
    edges: dict[tuple[int, str], list[str]] = defaultdict(list)
    for rank, row in enumerate(rows):
        for word in row:
            if match := re.fullmatch(r"send (\S+)>(\d+)", word):
                edges[rank, match[2]].append(match[1])
    while True:
        before = (dict(sent), dict(posted))
        left: dict[str, float] = {}
        for tensors in edges.values():
            free = 0.0
            for tensor in tensors:
                free = max(free, sent[tensor], posted[tensor]) if p2p == "rendezvous" else sent[tensor]
                left[tensor] = free
        ends = [carry_out(row, sent, posted, left, costs) for row in rows]
        if before == (sent, posted):
            return ends


def carry_out(row, sent, posted, left, costs) -> list[float]:
    now, ends = 0.0, []
    for word in row:
        if match := re.fullmatch(r"(post|wait) (\S+)<\d+", word):
            if match[1] == "post":
                posted[match[2]] = now
            else:
                now = max(now, left[match[2]] + costs.p2p)
        elif match := re.fullmatch(r"send (\S+)>\d+", word):
            sent[match[1]] = now
        elif word.startswith("{"):
            transfers = re.findall(r"(\w+)([<>])\d+", word)
            for tensor, arrow in transfers:
                (sent if arrow == ">" else posted)[tensor] = now
            now = max(max(sent[tensor], posted[tensor]) for tensor, _ in transfers) + costs.p2p
        else:
            now += price(word, costs)
            ends.append(now)
    return ends


def ends_by_rust(schedule: dp.Schedule, p2p: str, depth: int | None, costs: dp.Costs) -> list[list[float]]:
    spans = schedule.simulate(costs, p2p=p2p, depth=depth).spans
    ends: list[dict[int, float]] = [{} for _ in range(schedule.num_ranks)]
    for span in spans:
        ends[span["rank"]][int(span["slot"])] = float(span["end"])
    return [[by_slot[slot] for slot in sorted(by_slot)] for by_slot in ends]


def runs(schedule: dp.Schedule, p2p: str, depth: int | None) -> bool:
    try:
        schedule.verify(p2p, depth=depth)
    except dp.ScheduleError:
        return False
    return True


def schedules() -> list[dp.Schedule]:
    return [dp.schedule(*size) for size in FAMILIES] + [read(*numbered(seed)) for seed in range(60)]


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)
def test_equals_the_slow_one(p2p, depth):
    rng = random.Random(5)
    compared = 0
    for schedule in schedules():
        if runs(schedule, p2p, depth):
            costs = random_costs(rng, schedule.num_stages)
            assert ends_by_rust(schedule, p2p, depth, costs) == ends_of(schedule, p2p, depth, costs)
            compared += 1
    assert compared >= (60 if p2p != "blocking" else 20)


def test_deep_rendezvous_is_eager():
    rng = random.Random(6)
    for schedule in schedules():
        costs = random_costs(rng, schedule.num_stages)
        deep = schedule.simulate(costs, p2p="rendezvous", depth=1000)
        assert (deep.spans == schedule.simulate(costs).spans).all()


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS[1:])
def test_nothing_is_faster_than_eager(p2p, depth):
    rng = random.Random(7)
    for schedule in schedules():
        if runs(schedule, p2p, depth):
            costs = random_costs(rng, schedule.num_stages)
            assert (
                schedule.simulate(costs, p2p=p2p, depth=depth).makespan >= schedule.simulate(costs).makespan
            )


def test_deadlocks_are_refused():
    with pytest.raises(dp.ScheduleError, match="deadlock"):
        dp.schedule("1f1b", 2, 4).simulate(p2p="blocking")
    with pytest.raises(dp.UsageError, match=r"p2p=.fast. is not known"):
        dp.schedule("1f1b", 2, 4).simulate(p2p="fast")
