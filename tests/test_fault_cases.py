"""Failures across processes that are not drawn but set: several at once, between steps, in the constructor,
by ranks that do different things, and what can be done after a loss.

Trials that are drawn: test_faults.py. The end of a process: test_exits.py.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import LONG
from faults import LONG_PATIENCE, PATIENCE, Fault, Seen, Spot, Training, meet_by_store, seen, spots
from processes import Died, Job
from test_faults import GRACE, TOLERANCE, check_gone
from training import Outcome, data_for, serial, stages_for

import dualpipe_rs as dp

Gradients = dict[int, dict[str, torch.Tensor | None]]
NO_FAULT = Fault("none", None)


def run(ranks: int, fn: Any, *arguments: Any, lost: tuple[int, ...] = (), store: str = "parent") -> list[Any]:
    """What fn returned, by rank; all but those lost must have left cleanly, and none be there."""
    others = sorted({*range(ranks)} - {*lost})
    with Job(ranks, fn, *arguments, store=store) as job:
        results = job.results(others)
        codes = job.leave(others)
    check_gone(job)
    assert [codes[rank] for rank in others] == [0] * len(others), (codes, results)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Died):
            raise result
    return [results[rank] for rank in others]


def check_serial(schedule: dp.Schedule, by_rank: list[Gradients]) -> None:
    held = {stage: grads for some in by_rank for stage, grads in some.items()}
    expected = serial(stages_for(schedule), data_for(schedule))
    outcome = Outcome(expected.losses, [held[stage] for stage in range(schedule.num_stages)])
    assert outcome.off_from(expected)[1] <= TOLERANCE


def middle(schedule: dp.Schedule, rank: int, kind: str) -> Spot:
    """An action of a kind in the midst of a rank's row."""
    fit = [spot for spot in spots(schedule) if spot.rank == rank and spot.of()[1] == kind]
    return fit[len(fit) // 2]


def fault_at(schedule: dp.Schedule, rank: int, what: str, kind: str = "F") -> Fault:
    return Fault(what, middle(schedule, rank, kind).action, is_armed=True)


# ---- A rank is killed ------------------------------------------------------------------------------------


def _killed(
    rank: int, schedule: dp.Schedule, victim: int, is_between: bool, has_store: bool
) -> tuple[Seen, Seen]:
    fault = Fault("kill", middle(schedule, victim, "F").action) if rank == victim else NO_FAULT
    dist.barrier()
    training = Training(rank, schedule, fault, timeout=LONG_PATIENCE)
    other = Training(rank, schedule, NO_FAULT, timeout=LONG_PATIENCE)
    other.good_step()
    training.good_step()
    fault.is_armed = True
    if is_between and rank == victim:
        fault.happen()
    first = seen(training.step)
    if has_store:  # a rank that ends would be seen by those that wait for it
        meet_by_store(rank, {*range(schedule.num_ranks)} - {victim})
    assert "start its processes anew" in seen(training.step).message
    return first, seen(other.step)


KILLED = list(itertools.product((0, 2), (False, True), ("rank 0", "parent", "file")))


@pytest.mark.parametrize(("victim", "is_between", "store"), KILLED if LONG else [*KILLED[::3], KILLED[7]])
def test_a_killed_rank(victim: int, is_between: bool, store: str) -> None:
    """Whoever's the store is. Another pipeline of the same processes sees it too."""
    schedule = dp.schedule("1f1b", 3, 6)
    has_store = (victim, store) != (0, "rank 0")
    for both in run(3, _killed, schedule, victim, is_between, has_store, lost=(victim,), store=store):
        for said in both:
            assert (said.name, said.rank) == ("RankError", victim), said
            assert f"rank {victim} does not answer" in said.message, said
            assert said.seconds < GRACE, said


def _build_anew(rank: int, schedule: dp.Schedule) -> Gradients:
    three = dp.schedule("1f1b", 3, 6)
    fault = fault_at(three, 2, "kill") if rank == 2 else NO_FAULT
    training = Training(rank, three, fault, timeout=LONG_PATIENCE)
    assert seen(training.step).rank == 2
    left = dist.new_group([0, 1], use_local_synchronization=True)
    return Training(rank, schedule, NO_FAULT, process_group=left).good_step()


def test_those_that_are_left_can_go_on() -> None:
    """As the message advises: a new process group, and a new pipeline."""
    schedule = dp.schedule("dualpipev", 2, 4)
    check_serial(schedule, run(3, _build_anew, schedule, lost=(2,)))


# ---- Several faults --------------------------------------------------------------------------------------


def _two_faults(rank: int, schedule: dp.Schedule, kinds: dict[int, str]) -> tuple[Seen, Gradients | Seen]:
    fault = fault_at(schedule, rank, kinds[rank]) if rank in kinds else NO_FAULT
    dist.barrier()
    training = Training(rank, schedule, fault, timeout=LONG_PATIENCE)
    first = seen(training.step)
    if "kill" in kinds.values():
        return first, seen(training.step)
    assert training.has_no_gradients()
    return first, training.good_step()


@pytest.mark.parametrize("other", ["exception", "ctrl-c"])
def test_two_ranks_fail_at_once(other: str) -> None:
    schedule = dp.schedule("zb-h1", 3, 6)
    kinds = {0: "exception", 2: other}
    results = run(3, _two_faults, schedule, kinds)
    for rank, (said, _) in enumerate(results):
        assert said.rank in kinds or (rank == 2 and said.name == "KeyboardInterrupt"), said
        assert said.seconds < GRACE, said
    assert results[1][0].name == "RankError"
    check_serial(schedule, [grads for _, grads in results])


@pytest.mark.parametrize("other", ["exception", "kill"])
def test_a_rank_is_killed_as_another_fails(other: str) -> None:
    schedule = dp.schedule("1f1b", 4, 8)
    kinds = {1: "kill", 3: other}
    lost = tuple(rank for rank, kind in kinds.items() if kind == "kill")
    for said, again in run(4, _two_faults, schedule, kinds, lost=lost):
        assert (said.name, again.name) == ("RankError", "RankError"), (said, again)
        assert said.rank in kinds, said
        assert again.rank in kinds, again
        assert said.seconds < GRACE, said


def test_ctrl_c_on_every_rank() -> None:
    schedule = dp.schedule("dualpipe", 2, 4)
    results = run(2, _two_faults, schedule, {0: "ctrl-c", 1: "ctrl-c"})
    assert {said.name for said, _ in results} <= {"KeyboardInterrupt", "RankError"}
    assert any(said.name == "KeyboardInterrupt" for said, _ in results)
    check_serial(schedule, [grads for _, grads in results])


def _ctrl_c_at_the_end(rank: int, schedule: dp.Schedule) -> tuple[list[Seen], list[Gradients]]:
    fault = Fault("ctrl-c", None)
    training = Training(rank, schedule, fault, timeout=LONG_PATIENCE)
    said, found = [], []
    for victim in range(schedule.num_ranks):
        fault.action = schedule.rank(victim)[-1].strip("()").split(";")[-1]
        fault.is_armed = rank == victim
        training.pipe.zero_grad()
        said.append(seen(training.step))
        assert training.has_no_gradients()
        found.append(training.good_step())
    return said, found


def test_ctrl_c_in_the_last_slot() -> None:
    """Of each rank in turn; it ends the step everywhere as long as others can be told."""
    schedule = dp.schedule("zb-h1", 3, 4)
    results = run(3, _ctrl_c_at_the_end, schedule)
    for victim in range(3):
        for rank, (said, _) in enumerate(results):
            expected = ("KeyboardInterrupt", None) if rank == victim else ("RankError", victim)
            assert (said[victim].name, said[victim].rank) == expected, said
        check_serial(schedule, [found[victim] for _, found in results])


# ---- Several pipelines -----------------------------------------------------------------------------------


def _two_pipelines(rank: int, schedule: dp.Schedule) -> list[Gradients]:
    fault = fault_at(schedule, 1, "exception", "B") if rank == 1 else NO_FAULT
    failing = Training(rank, schedule, fault, timeout=LONG_PATIENCE)
    other = Training(rank, schedule, NO_FAULT, timeout=LONG_PATIENCE)
    for _ in range(2):  # again, for a round of the board that is not the first
        fault.is_armed = True
        assert seen(failing.step).rank == 1
        found = [other.good_step(), failing.good_step()]
    return found


def test_another_pipeline_goes_on() -> None:
    schedule = dp.schedule("1f1b", 3, 4)
    results = run(3, _two_pipelines, schedule)
    for index in range(2):
        check_serial(schedule, [found[index] for found in results])


def _let_go(rank: int, schedule: dp.Schedule) -> list[str]:
    fault = fault_at(schedule, 1, "exception") if rank == 1 else NO_FAULT
    training = Training(rank, schedule, fault)
    assert seen(training.step).rank == 1
    assert any(thread.name.startswith("board") for thread in threading.enumerate())
    dist.barrier()
    del training
    gc.collect()
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]


@pytest.mark.parametrize("store", ["parent", "rank 0", "file"])
def test_a_pipeline_that_is_let_go_leaves_no_thread(store: str) -> None:
    assert run(2, _let_go, dp.schedule("1f1b", 2, 4), store=store) == [[], []]


# ---- The constructor -------------------------------------------------------------------------------------


def _never_comes(rank: int, schedule: dp.Schedule) -> Seen:
    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["told 0", "told 2"])
        return Seen()
    said = seen(lambda: Training(rank, schedule, NO_FAULT, timeout=PATIENCE))
    store.set(f"told {rank}", "")
    return said


def test_a_rank_that_never_builds_its_pipeline() -> None:
    for said in run(3, _never_comes, dp.schedule("1f1b", 3, 6))[::2]:
        assert (said.name, said.rank) == ("RankError", 1), said
        assert "rank 1 did not come" in said.message, said
        assert PATIENCE <= said.seconds < PATIENCE + GRACE, said


def _killed_before(rank: int, schedule: dp.Schedule) -> Seen:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return seen(lambda: Training(rank, schedule, NO_FAULT, timeout=PATIENCE))


def test_a_rank_that_is_killed_before_it_builds_its_pipeline() -> None:
    for said in run(3, _killed_before, dp.schedule("1f1b", 3, 6), lost=(1,)):
        assert (said.name, said.rank) == ("RankError", 1), said
        assert "rank 1 did not come" in said.message, said


def _builds_wrongly(rank: int, schedule: dp.Schedule) -> tuple[Seen, Gradients]:
    modules = [torch.nn.Linear(1, 1)] * (2 if rank == 1 else 1)
    said = seen(lambda: dp.Pipeline(modules, schedule, timeout=LONG_PATIENCE))
    return said, Training(rank, schedule, NO_FAULT).good_step()


def test_a_rank_with_bad_modules() -> None:
    """The others are told at once, and all may build it again."""
    schedule = dp.schedule("1f1b", 3, 6)
    results = run(3, _builds_wrongly, schedule)
    for rank, (said, _) in enumerate(results):
        assert said.name == ("UsageError" if rank == 1 else "RankError"), said
        assert "rank 1 was given 2 modules" in said.message.replace("UsageError: ", ""), said
        assert rank == 1 or said.rank == 1, said
        assert said.seconds < GRACE, said
    check_serial(schedule, [grads for _, grads in results])


def _with_options(rank: int, schedule: dp.Schedule, by_rank: list[dict[str, Any]]) -> tuple[Seen, Any]:
    made: list[Training] = []
    options = {"timeout": LONG_PATIENCE} | by_rank[rank]
    said = seen(lambda: made.append(Training(rank, schedule, NO_FAULT, **options)))
    return said, made[0].good_step() if made else None


@pytest.mark.parametrize("option", [{"dynamic_shapes": True}, {"measure": False}])
def test_options_that_must_be_alike(option: dict[str, Any]) -> None:
    schedule = dp.schedule("1f1b", 3, 6)
    for said, _ in run(3, _with_options, schedule, [{}, option, {}]):
        assert said.name == "UsageError", said
        assert f"{next(iter(option))}=" in said.message, said
        assert "all ranks of a group must do the same" in said.message, said
        assert said.seconds < GRACE, said


def test_options_that_may_differ() -> None:
    schedule = dp.schedule("zb-h1", 3, 6)
    options = [{"timeout": 30.0}, {"split_weight_grad": False}, {"timeout": 90}]
    results = run(3, _with_options, schedule, options)
    assert [said.name for said, _ in results] == ["nothing"] * 3
    check_serial(schedule, [grads for _, grads in results])


def _comes_late(rank: int, schedule: dp.Schedule) -> tuple[Seen, Gradients]:
    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["told 0", "told 2"])
    said = seen(lambda: Training(rank, schedule, NO_FAULT, timeout=PATIENCE if rank != 1 else LONG_PATIENCE))
    store.set(f"told {rank}", "")
    return said, Training(rank, schedule, NO_FAULT).good_step()


def test_a_rank_that_comes_too_late_to_build() -> None:
    """It is told at once that the others have left, and all may build it again."""
    schedule = dp.schedule("1f1b", 3, 6)
    results = run(3, _comes_late, schedule)
    assert [said.name for said, _ in results] == ["RankError"] * 3
    assert results[1][0].seconds < GRACE, results[1][0]
    assert "ranks 0, 2 came, and waited in vain" in results[1][0].message, results[1][0]
    check_serial(schedule, [grads for _, grads in results])


# ---- Ranks that do different things ----------------------------------------------------------------------


def _gathers_alone(rank: int, schedule: dp.Schedule) -> tuple[Seen, Gradients]:
    training = Training(rank, schedule, NO_FAULT, timeout=LONG_PATIENCE)
    said = seen(lambda: training.step(gather_loss=rank == 0))
    assert training.has_no_gradients()
    return said, training.good_step()


def test_one_rank_gathers_losses() -> None:
    """Said before any work, on all."""
    schedule = dp.schedule("1f1b", 3, 6)
    results = run(3, _gathers_alone, schedule)
    for said, _ in results:
        assert said.name == "UsageError", said
        assert "gather_loss" in said.message, said
        assert said.seconds < GRACE, said
    check_serial(schedule, [grads for _, grads in results])


def _syncs_alone(rank: int, schedule: dp.Schedule) -> Seen:
    training = Training(rank, schedule, NO_FAULT, timeout=LONG_PATIENCE)
    training.step()
    said = seen(training.pipe.sync_gradients if rank == 0 else training.step)
    training.good_step()
    return said


def test_one_rank_is_at_something_else() -> None:
    for said in run(2, _syncs_alone, dp.schedule("dualpipe", 2, 4)):
        assert said.name == "UsageError", said
        assert "rank 0 sums gradients, and rank 1 begins a step" in said.message, said


def _accumulates(rank: int, schedule: dp.Schedule) -> Seen:
    fault = fault_at(schedule, 1, "exception", "B") if rank == 1 else NO_FAULT
    fault.is_armed = False
    training = Training(rank, schedule, fault, timeout=LONG_PATIENCE)
    training.good_step()
    fault.is_armed = True
    said = seen(training.step)
    assert not training.has_no_gradients()
    return said


def test_gradients_that_were_there_may_hold_a_part() -> None:
    for said in run(2, _accumulates, dp.schedule("1f1b", 2, 4)):
        assert (said.name, said.rank) == ("RankError", 1), said
        assert "may hold a part of it now: zero them" in said.message, said
