"""The program: where its sends and receives are, channel by channel; and that it runs, in an interpreter of
its text that hands tensors over as the directed edges do.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import NamedTuple

import pytest
from conftest import PLACEMENT, legal_sizes, numbered, read, rows_of, shape_of, text_of
from oracle import Action, Slot, dependencies, parse, place

import dualpipe_rs as dp

DEPTH = 2


class Step(NamedTuple):
    """An instruction: post, wait or send of a tensor from or to a rank, or compute of a slot."""

    what: str
    slot: Slot
    other: int

    @property
    def tensor(self) -> Action:
        return self.slot[0]


def step_of(text: str) -> Step:
    if match := re.fullmatch(r"(post|wait) (\S+)<(\d+)", text):
        return Step(match[1], parse(match[2])[0][0], int(match[3]))
    if match := re.fullmatch(r"send (\S+)>(\d+)", text):
        return Step("send", parse(match[1])[0][0], int(match[2]))
    return Step("compute", parse(text)[0][0], -1)


def steps_of(schedule: dp.Schedule) -> list[list[Step]]:
    program = schedule.lower()
    assert program.num_ranks == schedule.num_ranks
    return [[step_of(text) for text in program.rank(rank)] for rank in range(program.num_ranks)]


def made_by(slot: Slot) -> list[Action]:
    """The tensors that a slot makes: a gradient is named as a B's."""
    return [(s, "F" if kind == "F" else "B", m) for s, kind, m in slot if kind != "W"]


def needed_by(slot: Slot, stages: int) -> list[Action]:
    """The tensors that a slot needs, from here or elsewhere."""
    return [made_by(need[:1])[0] for action in slot for need in dependencies(action, stages)]


def schedules() -> list[dp.Schedule]:
    """Every family at all small sizes and some larger ones, random orders, and each for inference."""
    sizes = [size for size in legal_sizes(5, 12) if sum(size[1:]) % 3 == 0]
    sizes += [("gpipe", 9, 5), ("1f1b", 16, 40), ("dualpipe", 12, 50), ("dualpipev", 11, 29)]
    all_ = [dp.schedule(*size) for size in sizes] + [read(*numbered(seed)) for seed in range(120)]
    return all_ + [schedule.forward_only() for schedule in all_[::3]]


ALL = schedules()


@pytest.fixture(params=range(4), ids=lambda part: f"part{part}")
def some(request: pytest.FixtureRequest) -> list[dp.Schedule]:
    return ALL[request.param :: 4]


# ---- What is in it -----------------------------------------------------------------------------------------


def test_computes_the_row_in_order(some: list[dp.Schedule]) -> None:
    for schedule in some:
        computed = [[step.slot for step in row if step.what == "compute"] for row in steps_of(schedule)]
        assert computed == rows_of(schedule)


def channels(rows: list[list[Step]], what: str) -> dict[tuple[int, int], list[Action]]:
    """By (sender, receiver): the tensors of all instructions of one kind, in order."""
    found: dict[tuple[int, int], list[Action]] = defaultdict(list)
    for rank, row in enumerate(rows):
        for step in row:
            if step.what == what:
                edge = (rank, step.other) if what == "send" else (step.other, rank)
                found[edge].append(step.tensor)
    return dict(found)


def traffic(schedule: dp.Schedule) -> dict[tuple[int, int], list[Action]]:
    """What must travel, in the order in which the sender makes it: whatever another rank needs."""
    shape, rows = shape_of(schedule), rows_of(schedule)
    rank_of = place(*shape)
    takers = {
        tensor: rank
        for rank, row in enumerate(rows)
        for slot in row
        for tensor in needed_by(slot, shape.stages)
        if rank_of(tensor[0], tensor[2]) != rank
    }
    found: dict[tuple[int, int], list[Action]] = defaultdict(list)
    for rank, row in enumerate(rows):
        for tensor in (tensor for slot in row for tensor in made_by(slot) if tensor in takers):
            found[rank, takers[tensor]].append(tensor)
    return dict(found)


def test_each_channel_carries_what_it_must_in_the_senders_order(some: list[dp.Schedule]) -> None:
    for schedule in some:
        rows, expected = steps_of(schedule), traffic(schedule)
        assert channels(rows, "send") == expected
        assert channels(rows, "post") == expected
        waited = channels(rows, "wait")
        assert {edge: sorted(tensors) for edge, tensors in waited.items()} == {
            edge: sorted(tensors) for edge, tensors in expected.items()
        }


def test_a_send_leaves_as_soon_as_its_tensor_is_made(some: list[dp.Schedule]) -> None:
    """Right after the compute that made it."""
    for schedule in some:
        for row in steps_of(schedule):
            made: list[Action] = []
            for step in row:
                if step.what == "compute":
                    made = made_by(step.slot)
                elif step.what == "send":
                    assert step.tensor in made
                else:
                    made = []


def test_compute_waits_for_what_it_needs_and_no_more(some: list[dp.Schedule]) -> None:
    """Every wait comes right before the compute that uses it, after its post."""
    for schedule in some:
        shape = shape_of(schedule)
        rank_of = place(*shape)
        for rank, row in enumerate(steps_of(schedule)):
            posted: set[tuple[Action, int]] = set()
            waited: list[Action] = []
            for step in row:
                if step.what == "post":
                    posted.add((step.tensor, step.other))
                elif step.what == "wait":
                    assert (step.tensor, step.other) in posted
                    waited.append(step.tensor)
                elif step.what == "compute":
                    away = [t for t in needed_by(step.slot, shape.stages) if rank_of(t[0], t[2]) != rank]
                    assert sorted(waited) == sorted(away)
                    waited = []
                else:
                    assert not waited
            assert not waited


def test_receives_are_posted_early_but_not_all_at_once(some: list[dp.Schedule]) -> None:
    """Two ahead of what has been used when a slot begins to wait, and further only for what it waits for."""
    for schedule in some:
        for row in steps_of(schedule):
            for sender in {step.other for step in row if step.what == "post"}:
                check_window(row, sender)


def check_window(row: list[Step], sender: int) -> None:
    order = [step.tensor for step in row if step.what == "post" and step.other == sender]
    posted = used = used_before = deepest = 0
    for step in row:
        if step.what == "compute":
            assert posted >= min(len(order), used_before + DEPTH)
            assert posted <= max(used_before + DEPTH, deepest)
            used_before = used
        elif step.other == sender and step.what == "post":
            posted += 1
        elif step.other == sender and step.what == "wait":
            deepest = max(deepest, order.index(step.tensor) + 1)
            used += 1
    assert posted == used == len(order)


def test_the_first_receives_are_posted_before_anything_else(some: list[dp.Schedule]) -> None:
    for schedule in some:
        edges = traffic(schedule)
        for rank, row in enumerate(steps_of(schedule)):
            first = next(i for i, step in enumerate(row) if step.what != "post")
            posted = [(step.other, step.tensor) for step in row[:first]]
            for (sender, receiver), tensors in edges.items():
                if receiver == rank:
                    expected = [(sender, tensor) for tensor in tensors[:DEPTH]]
                    assert [post for post in posted if post[0] == sender][:DEPTH] == expected


# ---- That it runs ------------------------------------------------------------------------------------------


class Machine:
    """All ranks of a program; a channel a directed edge, in which tensors lie in the order of their sends."""

    def __init__(self, schedule: dp.Schedule) -> None:
        self.stages = schedule.num_stages
        self.rows = steps_of(schedule)
        self.at = [0] * len(self.rows)
        self.here: list[set[Action]] = [set() for _ in self.rows]
        self.sent: dict[tuple[int, int], list[Action]] = defaultdict(list)
        self.posted: dict[tuple[int, int], list[Action]] = defaultdict(list)

    def step(self, rank: int) -> bool:
        """Does the rank's next instruction, if it may."""
        if self.at[rank] == len(self.rows[rank]):
            return False
        step = self.rows[rank][self.at[rank]]
        done = getattr(self, step.what)(rank, step)
        self.at[rank] += done
        return done

    def post(self, rank: int, step: Step) -> bool:
        self.posted[step.other, rank].append(step.tensor)
        return True

    def wait(self, rank: int, step: Step) -> bool:
        """The n-th post of a channel is filled by the n-th send, whatever both are called."""
        edge = step.other, rank
        place = self.posted[edge].index(step.tensor)
        if place >= len(self.sent[edge]):
            return False
        assert self.sent[edge][place] == step.tensor
        self.here[rank].add(step.tensor)
        return True

    def compute(self, rank: int, step: Step) -> bool:
        assert set(needed_by(step.slot, self.stages)) <= self.here[rank]
        self.here[rank].update(made_by(step.slot))
        return True

    def send(self, rank: int, step: Step) -> bool:
        assert step.tensor in self.here[rank]
        self.sent[rank, step.other].append(step.tensor)
        return True

    def finished(self) -> bool:
        return all(at == len(row) for at, row in zip(self.at, self.rows, strict=True))


def test_every_rank_runs_to_the_end(some: list[dp.Schedule]) -> None:
    """Rank by rank, one instruction at a time."""
    for schedule in some:
        machine = Machine(schedule)
        while sum(machine.step(rank) for rank in range(schedule.num_ranks)):
            pass
        assert machine.finished()


def test_every_rank_runs_to_the_end_in_any_order(some: list[dp.Schedule]) -> None:
    """One rank as far as it goes, then another: which, is up to chance."""
    rng = random.Random(0)
    for schedule in some:
        machine = Machine(schedule)
        moved = True
        while moved:
            moved = False
            for rank in rng.sample(range(schedule.num_ranks), schedule.num_ranks):
                while machine.step(rank):
                    moved = True
        assert machine.finished()


# ---- As an object ------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=2\n"
    text += "0F0 0F1 0I0 0W0 0B1\n1F0 1I0 1W0 1F1 1B1\n"
    program = dp.Schedule.from_text(text).lower()
    first = "post 1B0<1, post 1B1<1, 0F0, send 0F0>1, 0F1, send 0F1>1, wait 1B0<1, 0I0, 0W0, wait 1B1<1, 0B1"
    second = "post 0F0<0, post 0F1<0, wait 0F0<0, 1F0, 1I0, send 1B0>0, 1W0, wait 0F1<0, 1F1, 1B1, send 1B1>0"
    assert [", ".join(program.rank(rank)) for rank in (0, 1)] == [first, second]
    assert str(program) == f"rank 0: {first}\nrank 1: {second}\n"


def test_one_rank_sends_nothing() -> None:
    for family in ("gpipe", "1f1b", "dualpipev"):
        schedule = dp.schedule(family, 1, 4)
        assert schedule.lower().rank(0) == schedule.rank(0)


def test_a_tensor_deep_in_a_channel_is_posted_for() -> None:
    """Rank 1 takes the last of four first: all four are posted before it waits."""
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=4\n"
    text += "0F0 0F1 0F2 0F3 0B3 0B2 0B1 0B0\n1F3 1B3 1F2 1B2 1F1 1B1 1F0 1B0\n"
    row = dp.Schedule.from_text(text).lower().rank(1)
    assert row[:6] == ["post 0F0<0", "post 0F1<0", "post 0F2<0", "post 0F3<0", "wait 0F3<0", "1F3"]
    assert [text for text in row if text.startswith("post")] == row[:4]


@pytest.mark.parametrize("family", PLACEMENT)
def test_the_same_again(family: str) -> None:
    schedule = dp.schedule(family, 4, 8)
    again = dp.Schedule.from_text(text_of(rows_of(schedule), shape_of(schedule), name="other"))
    assert str(schedule.lower()) == str(schedule.lower("eager")) == str(again.lower())


def test_an_invalid_schedule_is_not_lowered() -> None:
    text = dp.schedule("gpipe", 2, 2).to_text().replace("1F0 1F1", "1F0 1F0")
    with pytest.raises(dp.ScheduleError, match="1F1 is missing"):
        dp.Schedule.from_text(text).lower()


def test_frozen() -> None:
    with pytest.raises(TypeError):
        dp.Program()
