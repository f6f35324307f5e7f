"""`run_local`: threads that end whatever happens, and settings that are as the caller left them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dualpipe_rs as dp


def rank_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rank ")]


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
@pytest.mark.parametrize("where", ["a stage", "between steps", "a wait"])
def test_ctrl_c_ends_every_rank(where, interleaved):
    """A real SIGINT, while the main thread waits for the ranks."""
    ended = []
    began = threading.Event()

    class Interrupting(nn.Module):
        def forward(self, x):
            if where == "a stage" and not began.is_set():
                interrupt()
            return x

    def interrupt():
        began.set()
        os.kill(os.getpid(), signal.SIGINT)

    def rank_main(group):
        pipe = dp.DualPipeV([Interrupting(), nn.Linear(4, 4)])
        try:
            if group.rank() == 1 and where == "a wait":
                interrupt()  # Rank 0 is at its first meeting, or will be soon.
            while True:
                pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))
                if where == "between steps" and not began.is_set():
                    interrupt()
        except dp.RankError as error:
            ended.append(str(error))

    with pytest.raises(KeyboardInterrupt):
        dp.run_local(rank_main, 2, interleaved=interleaved)
    assert len(ended) == 2
    assert all("interrupted (KeyboardInterrupt)" in text for text in ended)
    assert not rank_threads()


def test_ctrl_c_where_a_library_has_sigint_interrupt_no_wait():
    """As polars does, when it is imported."""
    began, ended = threading.Event(), []

    def rank_main(group):
        pipe = dp.DualPipeV([nn.Linear(4, 4), nn.Linear(4, 4)])
        try:
            while True:
                pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))
                if group.rank() == 0 and not began.is_set():
                    began.set()
                    os.kill(os.getpid(), signal.SIGINT)
        except dp.RankError:
            ended.append(group.rank())

    signal.siginterrupt(signal.SIGINT, False)
    try:
        with pytest.raises(KeyboardInterrupt):
            dp.run_local(rank_main, 2)
    finally:
        signal.siginterrupt(signal.SIGINT, True)
    assert sorted(ended) == [0, 1]


def test_ctrl_c_waits_for_ranks_that_are_in_their_own_loops():
    """None is taken for ended while it runs: an interrupted Thread.join would."""
    began, interrupted, ended = threading.Barrier(2), threading.Event(), []

    def rank_main(group):
        began.wait()
        if group.rank() == 0:
            os.kill(os.getpid(), signal.SIGINT)
            interrupted.set()
        interrupted.wait()
        for _ in range(200_000):
            pass
        ended.append(group.rank())

    with pytest.raises(KeyboardInterrupt):
        dp.run_local(rank_main, 2)
    assert sorted(ended) == [0, 1]
    assert not rank_threads()


@pytest.mark.parametrize("work", ["while True: pass", "while True: step()"])
def test_a_second_ctrl_c_and_the_end_of_the_process(work):
    """The ranks are stopped before Python goes: the process ends as after any Ctrl-C, not by an abort."""
    code = textwrap.dedent(f"""
        import os, signal, threading
        import torch, torch.nn.functional as F
        import dualpipe_rs as dp
        from dualpipe_rs import local

        began, told = threading.Barrier(3), threading.Event()
        interrupt = local._Ranks.interrupt
        local._Ranks.interrupt = lambda ranks, reason: (interrupt(ranks, reason), told.set())

        def rank_main(group):
            pipe = dp.DualPipeV([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
            def step():
                try:
                    pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))
                except dp.RankError:
                    pass
            step()
            began.wait()
            {work}

        def press_twice():
            began.wait()
            os.kill(os.getpid(), signal.SIGINT)
            told.wait()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press_twice).start()
        dp.run_local(rank_main, 2)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, -signal.SIGINT), done.stderr
    assert "KeyboardInterrupt" in done.stderr
    assert "terminate called" not in done.stderr


def test_a_run_on_a_daemon_thread_when_the_process_ends():
    code = textwrap.dedent("""
        import threading
        import torch, torch.nn.functional as F
        import dualpipe_rs as dp

        began = threading.Event()

        def rank_main(group):
            pipe = dp.DualPipeV([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
            while True:
                pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))
                began.set()

        threading.Thread(target=dp.run_local, args=(rank_main, 2), daemon=True).start()
        began.wait()
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fn": 3}, "fn is of type int"),
        ({"interleaved": "yes"}, "interleaved is 'yes'"),
        ({"threads_per_rank": 0}, "threads_per_rank is 0"),
        ({"threads_per_rank": True}, "threads_per_rank is True"),
        ({"threads_per_rank": 1.5}, "threads_per_rank is 1.5"),
        ({"num_ranks": -1}, "num_ranks is -1"),
    ],
)
def test_bad_arguments(options, says):
    given = {"fn": lambda group: None, "num_ranks": 2} | options
    with pytest.raises(dp.UsageError, match=says):
        dp.run_local(**given)


@pytest.mark.parametrize(("before", "ranks", "each"), [(4, 2, 2), (3, 2, 1), (1, 2, 1), (4, 1, 4)])
def test_intra_op_threads_are_shared_out_and_put_back(before, ranks, each):
    kept = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        assert dp.run_local(lambda group: torch.get_num_threads(), ranks) == [each] * ranks
        assert torch.get_num_threads() == before
        assert dp.run_local(lambda group: torch.get_num_threads(), ranks, threads_per_rank=3) == [3] * ranks
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(kept)
