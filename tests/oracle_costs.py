"""The slow oracle of costs: what `Costs` says by its definitions, and a simulator for every P2P semantics.

Costs are the constructor's keywords in a dictionary. Programs are the core's (`Schedule.lower`): what stands
in them is tested elsewhere. Times are found by relaxation: from zero, they grow until nothing changes.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from conftest import rows_of, shape_of
from oracle import Action, Place, Slot, dependencies, place

import dualpipe_rs as dp

Keywords = dict[str, Any]
SEMANTICS: list[tuple[str, int | None]] = [
    ("eager", None),
    *(("rendezvous", depth) for depth in range(1, 6)),
    ("batched", None),
    ("blocking", None),
]
# Small sizes of every family, some of them twice.
SMALL = [(name, 2, 4) for name in dp.schedule_names()] + [
    ("gpipe", 3, 4),
    ("1f1b", 4, 5),
    ("zb-h1", 3, 5),
    ("zb-h2", 2, 5),
    ("zb-v", 3, 4),
    ("interleaved", 3, 3),
    ("dualpipe", 4, 8),
    ("dualpipev", 3, 6),
    ("chimera", 4, 4),
    ("hanayo", 3, 3),
]


# ---- Prices ------------------------------------------------------------------------------------------------


def at(value: Any, *indices: int) -> Any:
    """A number, or the one that a sequence or table has there."""
    for index in indices:
        value = value if np.ndim(value) == 0 else value[index]
    return value


def extras(costs: Keywords, stage: int, stages: int) -> list[float]:
    """(F, I, W) beside the rest."""
    total = [0.0, 0.0, 0.0]
    for here, name in ((0, "first_extra"), (stages - 1, "last_extra")):
        if stage == here:
            total = [a + b for a, b in zip(total, costs.get(name, (0, 0, 0)), strict=True)]
    return total


def price(costs: Keywords, slot: Slot, stages: int) -> float:
    if len(slot) == 2 and costs.get("overlap") is not None:
        (first, _, _), (second, _, _) = slot
        own = at(costs["overlap"], first, second)
        return own + extras(costs, first, stages)[0] + sum(extras(costs, second, stages)[1:])
    return sum(action_price(costs, action, stages) for action in slot)


def action_price(costs: Keywords, action: Action, stages: int) -> float:
    stage, kind, _ = action
    full = costs.get("backward")
    given = {"backward_input", "backward_weight"} & costs.keys()
    part = 1.0 if full is None or given else at(full, stage) / 2
    forward = at(costs.get("forward", 1.0), stage)
    backward_input, backward_weight = (
        at(costs.get(name, part), stage) for name in ("backward_input", "backward_weight")
    )
    full = backward_input + backward_weight if full is None else at(full, stage)
    f, i, w = extras(costs, stage, stages)
    return {"F": forward + f, "I": backward_input + i, "W": backward_weight + w, "B": full + i + w}[kind]


def hop(costs: Keywords, sender: int, receiver: int) -> float:
    way = at(costs.get("p2p", 0.0), sender, receiver)
    if costs.get("p2p_bandwidth") is not None:
        size = at(costs.get("p2p_bytes", 0.0), sender, receiver)
        way += size / at(costs["p2p_bandwidth"], sender, receiver)
    return way


# ---- Simulation --------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a step takes. Closing is (start, exchanged, end) by rank."""

    start: dict[Place, float] = field(default_factory=dict)
    end: dict[Place, float] = field(default_factory=dict)
    posted: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    closing: list[tuple[float, float, float]] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    makespan: float = 0.0
    span: float = 0.0


class Simulator:
    """A schedule under P2P semantics, read once and run under many costs."""

    def __init__(self, schedule: dp.Schedule, p2p: str = "eager", depth: int | None = None) -> None:
        self.rows, self.shape, self.p2p = rows_of(schedule), shape_of(schedule), p2p
        program = schedule.lower(p2p, depth=depth)
        self.programs = [self._read(rank, program.rank(rank)) for rank in range(self.shape.ranks)]
        self.edges: dict[tuple[int, int], list[str]] = defaultdict(list)
        for rank, program_of_rank in enumerate(self.programs):
            for verb, tensor, peer in program_of_rank:
                if verb == "send":
                    self.edges[rank, peer].append(tensor)
        actions = [a for row in self.rows for slot in row for a in slot]
        self.forward_only = all(kind == "F" for _, kind, _ in actions)

    def _read(self, rank: int, words: list[str]) -> list[tuple[str, Any, Any]]:
        instructions: list[tuple[str, Any, Any]] = []
        slot = 0
        for word in words:
            if match := re.fullmatch(r"(post|wait|send) (\w+)[<>](\d+)", word):
                instructions.append((match[1], match[2], int(match[3])))
            elif word.startswith("{"):
                transfers = re.findall(r"(\w+)([<>])(\d+)", word)
                instructions.append(("commit", [(t, arrow, int(peer)) for t, arrow, peer in transfers], None))
            else:
                instructions.append(("slot", slot, None))
                slot += 1
        return instructions

    def run(self, costs: Keywords, longer: dict[Place, float] | None = None) -> Run:
        """The times under these costs, some slots taking longer than their price."""
        run, ranks, longer = Run(), range(self.shape.ranks), longer or {}
        hops = [[hop(costs, sender, receiver) for receiver in ranks] for sender in ranks]
        took = {
            (rank, index): price(costs, slot, self.shape.stages) + longer.get((rank, index), 0.0)
            for rank, row in enumerate(self.rows)
            for index, slot in enumerate(row)
        }
        while True:
            before = dict(run.sent), dict(run.posted)
            left = self.departures(run)
            for rank in ranks:
                self._carry_out(rank, run, left, hops, took)
            if before == (run.sent, run.posted):
                return self._finished(run, costs)

    def departures(self, run: Run) -> dict[str, float]:
        left: dict[str, float] = {}
        for tensors in self.edges.values():
            free = 0.0
            for tensor in tensors:
                if self.p2p == "rendezvous":
                    free = max(free, run.posted[tensor])
                    free = max(free, run.sent[tensor])
                    left[tensor] = free
                else:
                    left[tensor] = run.sent[tensor]
        return left

    def _carry_out(
        self, rank: int, run: Run, left: dict[str, float], hops: list[list[float]], took: dict[Place, float]
    ) -> None:
        now = 0.0
        for verb, what, peer in self.programs[rank]:
            if verb == "post":
                run.posted[what] = now
            elif verb == "wait":
                now = max(now, left[what] + hops[peer][rank])
            elif verb == "send":
                run.sent[what] = now
            elif verb == "commit":
                now = self._commit(rank, what, now, run, hops)
            else:
                run.start[rank, what] = now
                now += took[rank, what]
                run.end[rank, what] = now

    def _commit(
        self, rank: int, transfers: list[tuple[str, str, int]], now: float, run: Run, hops: list[list[float]]
    ) -> float:
        done = now
        for tensor, arrow, _ in transfers:
            (run.sent if arrow == ">" else run.posted)[tensor] = now
        for tensor, arrow, peer in transfers:
            way = hops[rank][peer] if arrow == ">" else hops[peer][rank]
            done = max(done, max(run.sent[tensor], run.posted[tensor]) + way)
        return done

    def _finished(self, run: Run, costs: Keywords) -> Run:
        p = self.shape.ranks
        last = [run.end.get((r, len(self.rows[r]) - 1), 0.0) for r in range(p)]
        exchange = costs.get("gradient_exchange", 0.0) if self.shape.placement == "bidirectional" else 0.0
        for r in range(p):
            exchanged = last[r]
            if exchange and not self.forward_only and p - 1 - r != r:
                exchanged = max(last[r], last[p - 1 - r]) + exchange
            optimizer = 0.0 if self.forward_only else at(costs.get("optimizer", 0.0), r)
            run.closing.append((last[r], exchanged, exchanged + optimizer))
            took = [run.end[r, i] - run.start[r, i] for i in range(len(self.rows[r]))]
            run.busy.append(sum(took) + optimizer)
        ends = [end for _, _, end in run.closing]
        run.makespan = max(ends) - min(run.start.values(), default=0.0)
        run.span = max(ends[r] - run.start.get((r, 0), 0.0) for r in range(p))
        return run


def runs_under(schedule: dp.Schedule, p2p: str, depth: int | None) -> bool:
    try:
        schedule.verify(p2p, depth=depth)
    except dp.ScheduleError:
        return False
    return True


def times(timeline: dp.Timeline) -> dict[Place, tuple[float, float]]:
    return {(rank, slot): (start, end) for rank, slot, _, _, _, start, end in timeline.spans.tolist()}


# ---- What comes from other ranks ---------------------------------------------------------------------------


def needs_of(schedule: dp.Schedule) -> dict[Place, list[tuple[Place, Action]]]:
    """What each slot takes from other ranks: the place of the slot that makes it, and the action there."""
    rows, shape = rows_of(schedule), shape_of(schedule)
    rank_of = place(*shape)
    where = {a: (r, i) for r, row in enumerate(rows) for i, slot in enumerate(row) for a in slot}
    needs: dict[Place, list[tuple[Place, Action]]] = {}
    for r, row in enumerate(rows):
        for i, slot in enumerate(row):
            made = [a for action in slot for need in dependencies(action, shape.stages) for a in need]
            needs[r, i] = [(where[a], a) for a in made if a in where and rank_of(a[0], a[2]) != r]
    return needs


# ---- Random costs ------------------------------------------------------------------------------------------


def eighths(rng: random.Random, least: int = 0, most: int = 40) -> float:
    return rng.randint(least, most) / 8


def maybe(rng: random.Random, *choices: Any) -> Any:
    """One of these values, made only if chosen."""
    return rng.choice(choices)()


def random_keywords(rng: random.Random, schedule: dp.Schedule, least: int = 0) -> Keywords:
    """Every keyword that takes time, each a number, a sequence, a table, or left out."""
    stages, ranks = schedule.num_stages, schedule.num_ranks

    def number() -> float:
        return eighths(rng, least)

    def sequence() -> list[float]:
        return [number() for _ in range(stages)]

    def table(rows: int = ranks) -> list[list[float]]:
        return [[number() for _ in range(rows)] for _ in range(rows)]

    def bandwidth() -> float:
        return 2.0 ** rng.randint(-2, 3)

    def nothing() -> None:
        return None

    costs = {name: maybe(rng, number, sequence) for name in ("forward", "backward_input", "backward_weight")}
    costs["backward"] = maybe(rng, nothing, nothing, number, sequence)
    costs["overlap"] = maybe(rng, nothing, number, lambda: table(stages), lambda: table(stages))
    costs["p2p"] = maybe(rng, lambda: 0.0, number, table, table)
    costs["p2p_bytes"] = maybe(rng, lambda: 0.0, number, table)
    bandwidths = [[bandwidth() for _ in range(ranks)] for _ in range(ranks)]
    costs["p2p_bandwidth"] = maybe(rng, nothing, bandwidth, lambda: bandwidths)
    for name in ("first_extra", "last_extra"):
        costs[name] = maybe(rng, lambda: (0.0, 0.0, 0.0), lambda: (number(), number(), number()))
    if schedule.placement == "bidirectional":
        costs["gradient_exchange"] = maybe(rng, lambda: 0.0, number)
    costs["optimizer"] = maybe(rng, lambda: 0.0, number, lambda: [number() for _ in range(ranks)])
    return {name: value for name, value in costs.items() if value is not None}
