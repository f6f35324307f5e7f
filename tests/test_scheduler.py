"""DualPipeScheduler: the real schedule's order, said so that a plain loop of two arms trains right."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import pytest
import torch
from families import FAMILIES, sized
from processes import run_processes
from two_armed import Loop, ProcessLoop, serial

import dualpipe_rs as dp

LETTERS = {"forward": "F", "backward": "B", "backward_input": "I", "backward_weight": "W"}
ONE_STAGE = ("dualpipe", "1f1b", "gpipe", "zb-h1", "zb-h2", "chimera")
SEVERAL = sorted(set(FAMILIES) - set(ONE_STAGE))


def small(family: str) -> dp.DualPipeScheduler:
    return dp.DualPipeScheduler(4, 8, family)


@pytest.mark.parametrize("sizes", [(2, 4), (4, 8), (4, 12), (8, 20)])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_plain_loop_trains_right(sizes: tuple[int, int], overlap: bool) -> None:
    loop = Loop(dp.DualPipeScheduler(*sizes), overlap).run()
    losses, _ = serial(loop.layers, loop.inputs, loop.targets)
    assert loop.off() <= 1e-12
    assert loop.losses == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("family", ONE_STAGE[1:])
def test_so_it_does_under_every_schedule_of_a_stage_a_rank(family: str) -> None:
    assert Loop(small(family)).run().off() <= 1e-12


def _train_a_rank(rank: int) -> dict[int, torch.Tensor]:
    return ProcessLoop(small("dualpipe")).rank_main(rank)


def test_so_it_does_where_each_rank_is_a_process() -> None:
    loop = ProcessLoop(small("dualpipe"))
    loop.add(run_processes(4, _train_a_rank, timeout=20.0))
    assert loop.off() <= 1e-12


@pytest.mark.parametrize("family", ONE_STAGE)
def test_each_rank_has_each_microbatch_once_in_the_order_of_the_schedule(family: str) -> None:
    scheduler = small(family)
    for rank in range(4):
        told = list(scheduler.schedule(rank))
        cells = [cell for cell in scheduler.order.rank(rank) if "W" not in cell]
        actions = re.findall(r"\d+([FBI])(\d+)", " ".join(cells))
        assert told == [("forward" if kind == "F" else "backward", int(m)) for kind, m in actions]
        each = [(op, m) for op in ("forward", "backward") for m in range(8)]
        assert sorted(told) == sorted(each)
        groups = list(scheduler.schedule_with_overlap(rank))
        assert list(chain.from_iterable(groups)) == told
        assert [len(group) for group in groups] == [1 + (";" in cell) for cell in cells]


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_the_rows_themselves(family: str) -> None:
    order = sized(family, 4, 8)
    scheduler = dp.DualPipeScheduler(order.num_ranks, order.num_microbatches, order)
    for rank in range(order.num_ranks):
        row = []
        for group in scheduler.slots(rank):
            words = [f"{stage}{LETTERS[op]}{microbatch}" for op, microbatch, stage in group]
            row.append(words[0] if len(words) == 1 else f"({';'.join(words)})")
        assert row == order.rank(rank)


@pytest.mark.parametrize("family", ONE_STAGE)
def test_where_a_microbatch_comes_from_and_goes_to(family: str) -> None:
    scheduler = small(family)
    for microbatch in range(8):
        path = [scheduler.order.rank_of(stage, microbatch) for stage in range(4)]
        assert [scheduler.stage(rank, microbatch) for rank in path] == [0, 1, 2, 3]
        assert [scheduler.previous_rank(rank, microbatch) for rank in path] == [None, *path[:-1]]
        assert [scheduler.next_rank(rank, microbatch) for rank in path] == [*path[1:], None]
        assert [scheduler.is_first_stage(rank, microbatch) for rank in path] == [True, False, False, False]
        assert [scheduler.is_last_stage(rank, microbatch) for rank in path] == [False, False, False, True]


def test_the_two_directions_of_dualpipe() -> None:
    scheduler = dp.DualPipeScheduler(num_stages=8, num_microbatches=20)
    assert scheduler.order == dp.schedule("dualpipe", 8, 20)
    assert (scheduler.num_ranks, scheduler.num_stages, scheduler.num_microbatches) == (8, 8, 20)
    assert [scheduler.stage(2, m) for m in (0, 9, 10, 19)] == [2, 2, 5, 5]
    assert scheduler.previous_rank(0, 0) is None
    assert scheduler.previous_rank(7, 10) is None
    assert next(scheduler.schedule(7)) == ("forward", 10)
    assert repr(scheduler) == "<DualPipeScheduler dualpipe: 8 ranks, 8 stages, 20 microbatches>"


@pytest.mark.parametrize("family", SEVERAL)
def test_several_stages_a_rank_are_refused_and_slots_named(family: str) -> None:
    scheduler = small(family)
    assert scheduler.num_stages == 8
    for call in (scheduler.schedule, scheduler.schedule_with_overlap):
        with pytest.raises(dp.UsageError, match=r"2 stages on each rank.*slots\(rank\)"):
            call(0)
    with pytest.raises(dp.UsageError, match=r"slots\(rank\)"):
        scheduler.stage(0, 0)
    assert next(scheduler.slots(0))[0].stage == 0


@pytest.mark.parametrize("rank", [4, -1, True, 1.0, "0", None, pytest.param(10**5000, id="long")])
def test_a_rank_that_is_none(rank: Any) -> None:
    scheduler = small("dualpipe")
    for call in (scheduler.schedule, scheduler.schedule_with_overlap, scheduler.slots):
        with pytest.raises(dp.UsageError, match=r"rank is .*from 0 to 3"):
            call(rank)
    with pytest.raises(dp.UsageError, match="rank is"):
        scheduler.stage(rank, 0)
    with pytest.raises(dp.UsageError, match=r"microbatch is .*from 0 to 7"):
        scheduler.next_rank(0, 8 if rank == 4 else rank)


@pytest.mark.parametrize("sizes", [(3, 8), (4, 7), (4, 6)])
def test_sizes_that_dualpipe_does_not_take(sizes: tuple[int, int]) -> None:
    with pytest.raises(dp.SizeError, match=r"even number of ranks.*nearest legal size"):
        dp.DualPipeScheduler(*sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 8), "num_stages is 0"),
        ((True, 8), "num_stages is True"),
        ((4, "8"), "num_microbatches is '8'"),
        ((4, float("nan")), "num_microbatches is nan"),
        ((4, 8, "nope"), "no schedule named"),
        ((4, 8, 3), "name of a schedule"),
        ((4, 8, dp.schedule("1f1b", 4, 9)), "4 ranks and 9 microbatches"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(dp.UsageError, match=words):
        dp.DualPipeScheduler(*arguments)
