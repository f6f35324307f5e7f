"""Runs a function in several processes that torch.distributed connects over gloo: no tests here."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist

#: How long all of it may take, in seconds: starting four interpreters with torch takes most of it.
DEADLINE = 120.0


def run_processes(body: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Calls ``body(rank, *arguments)`` in ``count`` processes; returns the results by rank.

    All processes have ended when it returns or raises. ``body`` is a function of a module's top level.
    """
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_main, args=(body, rank, count, folder, answers, arguments), daemon=True)
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            return _collected(answers, processes)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _main(body: Callable[..., Any], rank: int, count: int, folder: str, answers: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=40),
        )
        # By value: what a queue shares of tensors would end with this process.
        answers.put((rank, pickle.dumps(body(rank, *arguments)), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))


def _collected(answers: Any, processes: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    end = time.monotonic() + DEADLINE
    while len(results) < len(processes):
        try:
            rank, result, error = answers.get(timeout=0.5)
        except Empty:
            assert time.monotonic() < end, f"processes {sorted(results)} alone answered in {DEADLINE} s"
            dead = [r for r, process in enumerate(processes) if process.exitcode not in (None, 0)]
            assert not dead, f"processes {dead} ended without an answer"
            continue
        assert error is None, f"rank {rank}:\n{error}"
        results[rank] = pickle.loads(result)
    return [results[rank] for rank in range(len(processes))]


class Members:
    """The least that a pipeline's parts ask of a group of processes: an exchange and no diagnosis."""

    interleaved = False

    def __init__(self, global_ranks: list[int]) -> None:
        self.global_ranks = global_ranks
        self.timeout = timedelta(seconds=40)
        self._group = dist.new_group(global_ranks, backend="gloo", use_local_synchronization=True)

    def rank(self) -> int:
        return self.global_ranks.index(dist.get_rank())

    def size(self) -> int:
        return len(self.global_ranks)

    def exchange(self, object: Any, purpose: str = "") -> list[Any]:
        told: list[Any] = [None] * self.size()
        dist.all_gather_object(told, object, group=self._group)
        return told

    def meet(self, purpose: str, *numbers: int) -> list[list[int]]:
        return self.exchange(list(numbers), purpose)

    def at(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()

    def backend_for(self, device: Any) -> str:
        return "gloo"
