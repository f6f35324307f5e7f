"""Why each directed edge gets a process group of its own where a pair's transfers are on one queue.

The real wire and links run real schedules over a fake transport (one_queue.py), tensors without contents.
With a group for each directed edge every schedule runs; with one for each pair, receives that are posted
early hold up the sends behind them, and all ranks wait for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_queue import Control, Network, Pair
from torch import Tensor

import dualpipe_rs as dp
from dualpipe_rs import _core
from dualpipe_rs.building import edges
from dualpipe_rs.distributed.joining import rounds_of
from dualpipe_rs.distributed.layouts import Table
from dualpipe_rs.distributed.links import Links
from dualpipe_rs.distributed.wire import Lost, Wire

ELSEWHERE = torch.device("meta")
SIZES = [
    ("dualpipe", 2, 4),
    ("dualpipe", 4, 10),
    ("dualpipev", 2, 4),
    ("dualpipev", 3, 8),
    ("dualpipev", 4, 8),
    ("1f1b", 2, 4),
    ("1f1b", 3, 6),
    ("1f1b", 4, 8),
    ("zb-v", 2, 4),
    ("zb-v", 3, 6),
    ("zb-v", 4, 8),
    ("interleaved", 2, 4),
    ("chimera", 4, 4),
]
Grouping = Callable[[int, int], tuple[int, int]]


def an_edge(a: int, b: int) -> tuple[int, int]:
    return a, b


def a_pair(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def tensor(stage: int, microbatch: int, kind: int) -> tuple[Tensor]:
    """One whose size tells what it is."""
    return (torch.empty(2 * (64 * stage + microbatch) + kind + 1, dtype=torch.uint8, device=ELSEWHERE),)


class Numbers:
    """A worker that computes nothing and sees that it is handed what it asks for."""

    def __init__(self, num_stages: int) -> None:
        self._last = num_stages - 1

    def forward(self, stage: int, microbatch: int, value: Any) -> Any:
        assert stage == 0 or value[0].shape == tensor(stage - 1, microbatch, 0)[0].shape
        return tensor(stage, microbatch, 0) if stage < self._last else None

    def backward(self, stage: int, microbatch: int, grads: Any) -> Any:
        assert stage == self._last or grads[0].shape == tensor(stage + 1, microbatch, 1)[0].shape
        return tensor(stage, microbatch, 1) if stage else None

    backward_input = backward

    def backward_weight(self, stage: int, microbatch: int) -> None:
        pass

    def forward_backward(self, stage0: int, m0: int, value: Any, stage1: int, m1: int, grads: Any) -> Any:
        return self.forward(stage0, m0, value), self.backward(stage1, m1, grads)


def run(schedule: dp.Schedule, grouping: Grouping, tables: list[Table], p2p: str = "eager") -> bool:
    """One step of all ranks; whether it came to its end."""
    network = Network(schedule.num_ranks)
    errors: list[BaseException | None] = [None] * schedule.num_ranks

    def rank_main(rank: int) -> None:
        try:
            _run_rank(schedule, grouping, tables[rank], p2p, network, rank)
        except BaseException as error:
            errors[rank] = error
        finally:
            network.leave()

    threads = [threading.Thread(target=rank_main, args=(r,), daemon=True) for r in range(schedule.num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    wrong = [error for error in errors if error is not None and not isinstance(error, Lost)]
    if wrong:
        raise wrong[0]
    assert network.is_stuck == any(errors)
    return not network.is_stuck


def _run_rank(
    schedule: dp.Schedule, grouping: Grouping, table: Table, p2p: str, network: Network, rank: int
) -> None:
    ways = {
        edge: Pair(network, grouping(*edge), int(rank == max(edge)))
        for edge in edges(schedule)
        if rank in edge
    }
    wire = Wire(
        rank,
        range(schedule.num_ranks),
        Links(Control(network, rank), ways),
        table,
        ELSEWHERE,
        others_failed=lambda: network.is_stuck,
        check_interrupts=lambda: None,
        failed=lambda error: False,
    )
    _core.run_rank(schedule, Numbers(schedule.num_stages), wire, rank, p2p)
    wire.finish()
    table.learn(wire.seen)


def learned(schedule: dp.Schedule) -> list[Table]:
    """What ranks know after a first step, which announces each tensor."""
    tables = [Table(False) for _ in range(schedule.num_ranks)]
    assert run(schedule, an_edge, tables)
    return tables


@pytest.mark.parametrize("p2p", ["eager", "rendezvous", "batched"])
@pytest.mark.parametrize(("family", "ranks", "microbatches"), SIZES)
def test_a_group_for_each_edge_is_enough(family, ranks, microbatches, p2p):
    schedule = dp.schedule(family, ranks, microbatches)
    tables = [Table(False) for _ in range(ranks)]
    for _ in range(2):  # announced, then made room for
        assert run(schedule, an_edge, tables, p2p)
    assert run(schedule, an_edge, [Table(True) for _ in range(ranks)], p2p)


@pytest.mark.parametrize(("family", "ranks", "microbatches"), SIZES)
def test_a_group_for_each_pair_is_not(family, ranks, microbatches):
    schedule = dp.schedule(family, ranks, microbatches)
    assert not run(schedule, a_pair, learned(schedule))


@pytest.mark.parametrize("family", ["gpipe", "1f1b"])
def test_a_group_for_each_pair_would_do_where_tensors_go_one_way(family):
    """So the fake does not hold up what need not be."""
    schedule = dp.schedule(family, 3, 6).forward_only()
    assert run(schedule, a_pair, learned(schedule))


@pytest.mark.parametrize(("family", "ranks", "microbatches"), SIZES)
def test_groups_are_made_in_rounds_in_which_each_rank_makes_one(family, ranks, microbatches):
    pairs = edges(dp.schedule(family, ranks, microbatches))
    rounds = rounds_of(pairs)
    assert sorted(edge for made in rounds for edge in made) == sorted(pairs)
    for made in rounds:
        members = [rank for edge in made for rank in edge]
        assert len(members) == len({*members})
