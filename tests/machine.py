"""The slow and obvious machine: what the words of a Program do, and what a schedule's rows do by themselves.

`run` interprets the words of all ranks, one word of one rank at a time; which rank goes next is drawn. The
rest needs no Program: `rendezvous_stuck` and `blocking_stuck` run the rows under their semantics, and `held`
counts activations. Like the oracle, nothing here imports the package.

A tensor is (stage, "F" or "B", microbatch): what a forward gives to the next stage, or a gradient, named by a
B whether an I or a B made it. A directed edge (from, to) is a channel, on which tensors travel in the order
in which the sender's slots make them: of a pair, the F's first.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from oracle import Action, Rows, Slot, dependencies, parse

Edge = tuple[int, int]


class Wrong(AssertionError):
    """A program does what no program may do."""


class Stuck(NamedTuple):
    """A rank that cannot go on: how many slots it has computed, what it stands at, and whom it waits for."""

    rank: int
    slot: int
    at: str
    waits_for: frozenset[int]


# ---- Tensors -----------------------------------------------------------------------------------------------


def made_by(slot: Slot) -> list[Action]:
    """The tensors that a slot makes, whether or not anybody wants them."""
    return [(stage, "F" if kind == "F" else "B", mb) for stage, kind, mb in slot if kind != "W"]


def taken_by(action: Action, stages: int) -> Action | None:
    """The tensor of another stage that an action takes, from its own rank or another."""
    for need in dependencies(action, stages):
        stage, kind, microbatch = need[0]
        if stage != action[0]:
            return stage, "F" if kind == "F" else "B", microbatch
    return None


# ---- Words -------------------------------------------------------------------------------------------------


class Transfer(NamedTuple):
    """One side of a tensor's way: sign `>` sends it to the peer, `<` receives it from there."""

    tensor: Action
    sign: str
    peer: int


class Word(NamedTuple):
    what: str  # post, wait, send, commit or compute
    text: str
    transfers: list[Transfer]
    slot: Slot


def word(text: str) -> Word:
    """One word of a Program: `post 0F1<2`, `wait 0F1<2`, `send 0F1>3`, `{0F0>1,2F4<1}`, or a slot."""
    if text.startswith("{") and text.endswith("}"):
        return Word("commit", text, [_transfer(part) for part in text[1:-1].split(",")], [])
    if match := re.fullmatch(r"(post|wait|send) (\S+)", text):
        return Word(match[1], text, [_transfer(match[2])], [])
    return Word("compute", text, [], parse(text)[0][0])


def _transfer(text: str) -> Transfer:
    match = re.fullmatch(r"(\d+[FB]\d+)([<>])(\d+)", text)
    if match is None:
        raise Wrong(f"{text!r} is no transfer.")
    return Transfer(parse(match[1])[0][0][0], match[2], int(match[3]))


# ---- The machine -------------------------------------------------------------------------------------------


class Channel:
    """A directed edge: the n-th tensor sent meets the n-th tensor that is asked for (posted)."""

    def __init__(self) -> None:
        self.sent: list[Action] = []
        self.asked: list[Action] = []
        self.unused: set[Action] = set()  # asked for, and no completed slot has used it

    def check(self) -> None:
        for sent, asked in zip(self.sent, self.asked, strict=False):
            if sent != asked:
                raise Wrong(f"a channel is to bring {asked}, and {sent} was sent.")

    def is_met(self, tensor: Action) -> bool:
        """Have both sides of this tensor been started?"""
        return tensor in self.sent and tensor in self.asked


class Machine:
    """All ranks of a program with this many stages. depth: the most that may be posted and unused."""

    def __init__(self, rows: list[list[str]], stages: int, depth: int | None = None) -> None:
        self.rows = [[word(text) for text in row] for row in rows]
        self.stages = stages
        self.depth = depth
        self.at = [0] * len(rows)
        self.started = [False] * len(rows)  # has the commit at which the rank stands been started?
        self.done: list[set[Action]] = [set() for _ in rows]
        self.made: list[set[Action]] = [set() for _ in rows]
        self.here: list[set[Action]] = [set() for _ in rows]  # tensors from other ranks
        self.channels: dict[Edge, Channel] = defaultdict(Channel)
        self.computed: list[list[Slot]] = [[] for _ in rows]

    def step(self, rank: int) -> bool:
        """Does the rank's next word, or a part of it: did anything happen?"""
        if self.at[rank] == len(self.rows[rank]):
            return False
        before = self.started[rank]
        now = self.rows[rank][self.at[rank]]
        done = getattr(self, now.what)(rank, now)
        if done:
            self.at[rank] += 1
            self.started[rank] = False
        return done or self.started[rank] != before

    def channel(self, rank: int, transfer: Transfer) -> Channel:
        edge = (rank, transfer.peer) if transfer.sign == ">" else (transfer.peer, rank)
        return self.channels[edge]

    def start(self, rank: int, transfer: Transfer) -> None:
        """Gives a tensor to its channel, or asks its channel for it."""
        channel, tensor = self.channel(rank, transfer), transfer.tensor
        side = channel.sent if transfer.sign == ">" else channel.asked
        if tensor in side:
            raise Wrong(f"rank {rank} sends or receives {tensor} twice.")
        if transfer.sign == ">" and tensor not in self.made[rank]:
            raise Wrong(f"rank {rank} sends {tensor} before it has made it.")
        side.append(tensor)
        channel.check()
        if transfer.sign == "<":
            channel.unused.add(tensor)
            if self.depth is not None and len(channel.unused) > self.depth:
                raise Wrong(f"rank {rank} has {len(channel.unused)} receives posted from {transfer.peer}.")

    def post(self, rank: int, now: Word) -> bool:
        self.start(rank, now.transfers[0])
        return True

    def send(self, rank: int, now: Word) -> bool:
        self.start(rank, now.transfers[0])
        return True

    def wait(self, rank: int, now: Word) -> bool:
        (transfer,) = now.transfers
        channel = self.channel(rank, transfer)
        if transfer.tensor not in channel.asked:
            raise Wrong(f"rank {rank} waits for {transfer.tensor} and has not posted its receive.")
        if not channel.is_met(transfer.tensor):
            return False
        self.here[rank].add(transfer.tensor)
        return True

    def commit(self, rank: int, now: Word) -> bool:
        if not self.started[rank]:
            for transfer in now.transfers:
                self.start(rank, transfer)
            self.started[rank] = True
        if not all(self.channel(rank, transfer).is_met(transfer.tensor) for transfer in now.transfers):
            return False
        self.here[rank] |= {transfer.tensor for transfer in now.transfers if transfer.sign == "<"}
        return True

    def compute(self, rank: int, now: Word) -> bool:
        for action in now.slot:
            self.check_inputs(rank, action)
        self.done[rank] |= set(now.slot)
        self.made[rank] |= set(made_by(now.slot))
        self.computed[rank].append(now.slot)
        used = {taken_by(action, self.stages) for action in now.slot}
        for (_, to), channel in self.channels.items():
            if to == rank:
                channel.unused -= used
        return True

    def check_inputs(self, rank: int, action: Action) -> None:
        """What it needs of its own stage was done here; of another stage, was made here or received."""
        for need in dependencies(action, self.stages):
            if need[0][0] == action[0]:
                met = any(other in self.done[rank] for other in need)
            else:
                met = taken_by(action, self.stages) in self.made[rank] | self.here[rank]
            if not met:
                raise Wrong(f"rank {rank} computes {action}, and {need} is not here.")

    def stuck(self) -> list[Stuck]:
        found = []
        for rank, row in enumerate(self.rows):
            if self.at[rank] < len(row):
                now = row[self.at[rank]]
                waits = {t.peer for t in now.transfers if not self.channel(rank, t).is_met(t.tensor)}
                found.append(Stuck(rank, len(self.computed[rank]), now.text, frozenset(waits)))
        return found

    def check_nothing_is_left(self) -> None:
        for (sender, receiver), channel in self.channels.items():
            if channel.sent != channel.asked or channel.unused:
                raise Wrong(f"from {sender} to {receiver}: tensors are left over.")
            if not set(channel.asked) <= self.here[receiver]:
                raise Wrong(f"rank {receiver} never waited for a tensor from {sender}.")


def run(
    rows: list[list[str]], stages: int, *, depth: int | None = None, seed: int = 0
) -> tuple[list[list[Slot]], list[Stuck]]:
    """What each rank computed, in order, and the ranks that got stuck. Raises Wrong where a word is wrong."""
    machine, rng = Machine(rows, stages, depth), random.Random(seed)
    asleep: set[int] = set()
    while len(asleep) < len(rows):
        rank = rng.choice([rank for rank in range(len(rows)) if rank not in asleep])
        if machine.step(rank):
            asleep.clear()
        else:
            asleep.add(rank)
    stuck = machine.stuck()
    if not stuck:
        machine.check_nothing_is_left()
    return machine.computed, stuck


def circle(stuck: list[Stuck]) -> list[int]:
    """Ranks of which each waits for the next, and the last for the first. Raises Wrong if there are none."""
    waits_for = {one.rank: one.waits_for for one in stuck}
    path = [stuck[0].rank]
    while True:
        following = sorted(waits_for[path[-1]] & set(waits_for))
        if not following:
            raise Wrong(f"rank {path[-1]} waits for ranks that have ended: {stuck}.")
        if following[0] in path:
            return path[path.index(following[0]) :]
        path.append(following[0])


# ---- Rows alone --------------------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """Where tensors go: the taker of each, and each channel's tensors in the sender's order."""

    taker: dict[Action, int]
    order: dict[Edge, list[Action]]
    edge: dict[Action, Edge]


def traffic(rows: Rows, stages: int) -> Traffic:
    taker = {
        tensor: rank
        for rank, row in enumerate(rows)
        for slot in row
        for tensor in (taken_by(action, stages) for action in slot)
        if tensor is not None
    }
    order: dict[Edge, list[Action]] = defaultdict(list)
    edge: dict[Action, Edge] = {}
    for rank, row in enumerate(rows):
        for tensor in (tensor for slot in row for tensor in made_by(slot)):
            if tensor in taker and taker[tensor] != rank:
                edge[tensor] = rank, taker[tensor]
                order[edge[tensor]].append(tensor)
    return Traffic(taker, order, edge)


def rendezvous_stuck(rows: Rows, stages: int, depth: int) -> list[Stuck]:
    """The ranks that cannot go on if at most so many receives are posted and unused on each channel."""
    way = traffic(rows, stages)
    at = [0] * len(rows)
    done: set[Action] = set()  # by a slot that has ended, on any rank
    made: set[Action] = set()
    used: set[Action] = set()

    def is_here(tensor: Action) -> bool:
        """Is it made, and if it travels: is its receive among those posted, and is all before it sent?"""
        if tensor not in way.edge:
            return tensor in made
        order = way.order[way.edge[tensor]]
        posted: list[Action] = []
        for other in order:
            if sum(1 for p in posted if p not in used) == depth:
                break
            posted.append(other)
        before = order[: order.index(tensor) + 1]
        return tensor in posted and all(other in made for other in before)

    def lacking(action: Action) -> bool:
        tensor = taken_by(action, stages)
        if tensor is not None and not is_here(tensor):
            return True
        own = [need for need in dependencies(action, stages) if need[0][0] == action[0]]
        return not all(any(other in done for other in need) for need in own)

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row) and not any(map(lacking, row[at[rank]])):
                slot = row[at[rank]]
                done |= set(slot)
                made |= set(made_by(slot))
                used |= {tensor for action in slot if (tensor := taken_by(action, stages)) is not None}
                at[rank] += 1
                moved = True
    return [
        Stuck(rank, at[rank], str(row[at[rank]]), frozenset())
        for rank, row in enumerate(rows)
        if at[rank] < len(row)
    ]


def rendezvous_least_depth(rows: Rows, shape: Any) -> int:
    """The least depth at which every rank comes to its end."""
    depth = 1
    while rendezvous_stuck(rows, shape.stages, depth):
        depth += 1
    return depth


def blocking_stuck(rows: Rows, shape: Any) -> list[Stuck]:
    """The ranks that cannot go on if a send holds its rank until the receiver asks for that tensor.

    Each rank is a script of meetings; two ranks that stand at the same meeting both go on.
    """
    way = traffic(rows, shape.stages)
    computed = [0] * len(rows)

    def script(rank: int) -> Iterator[tuple[Edge, Action]]:
        asked: dict[Edge, int] = defaultdict(int)
        for slot in rows[rank]:
            for action in slot:
                tensor = taken_by(action, shape.stages)
                edge = way.edge.get(tensor) if tensor is not None else None
                if edge is None:
                    continue
                while asked[edge] <= way.order[edge].index(tensor):
                    asked[edge] += 1
                    yield edge, way.order[edge][asked[edge] - 1]
            computed[rank] += 1
            for tensor in made_by(slot):
                if tensor in way.edge:
                    yield way.edge[tensor], tensor

    scripts = [script(rank) for rank in range(len(rows))]
    at = [next(one, None) for one in scripts]
    moved = True
    while moved:
        moved = False
        for meeting in [meeting for meeting in at if meeting is not None]:
            (sender, receiver), _ = meeting
            if at[sender] == at[receiver] == meeting:
                at[sender], at[receiver] = next(scripts[sender], None), next(scripts[receiver], None)
                moved = True
    return [
        Stuck(rank, computed[rank], str(meeting), frozenset({*meeting[0]} - {rank}))
        for rank, meeting in enumerate(at)
        if meeting is not None
    ]


def blocking_deadlocks(rows: Rows, shape: Any) -> bool:
    return bool(blocking_stuck(rows, shape))


def held(row: list[Slot]) -> list[int]:
    """How many (stage, microbatch) a rank holds during each of its slots, its own new ones included.

    One is held from its F's slot until the end of the last slot of its backward; one without a backward until
    its F's slot ends.
    """
    last = {(stage, mb): i for i, slot in enumerate(row) for stage, _, mb in slot}
    first = {(stage, mb): i for i, slot in enumerate(row) for stage, kind, mb in slot if kind == "F"}
    return [sum(1 for key in first if first[key] <= i <= last[key]) for i in range(len(row))]
