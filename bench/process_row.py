"""A row whose ranks are processes: any schedule that torch.distributed's default group can carry.

The processes live as long as the row and sleep between its turns. What a rank runs is the caller's: a
function at module level, pickled by its name, that gets a Share and returns a step.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from network import Loopback, Network, Place
from torch import Tensor, nn
from workload import (
    WARM_UP,
    Size,
    Span,
    build_batch,
    build_stages,
    clear_gradients,
    pipeline_times,
    serial_gradients,
    squared_error,
)

TIMEOUT = 180.0  # seconds for one answer, the import of torch in a new process included
PINGS = 30


@dataclass(frozen=True)
class Share:
    """What a rank has to build its step from."""

    size: Size
    rank: int
    modules: list[nn.Module]
    inputs: Tensor
    labels: Tensor

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def stages(self) -> tuple[int, int]:
        return self.size.stages_of(self.rank)


Make = Callable[[Share], Callable[[], object]]


class ProcessRow:
    """A context manager: the processes are gone when it is left, however that happens."""

    def __init__(self, name: str, size: Size, make: Make, network: Network | None = None) -> None:
        self.name = name
        self._size = size
        self._make = make
        self._places = (network or Loopback(size.ranks)).places
        self._pipes: list[Connection] = []

    def __enter__(self) -> ProcessRow:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def squared_error(self) -> tuple[float, float]:
        by_rank = self._ask("check")
        return sum(distance for distance, _ in by_rank), sum(norm for _, norm in by_rank)

    def times(self, steps: int) -> list[float]:
        return pipeline_times(self._ask(WARM_UP + steps))[WARM_UP:]

    def message(self) -> float:
        """Median seconds of a message with one microbatch from a rank to the next, over the default group."""
        return self._ask("message")[0]

    def _start(self, stack: ExitStack) -> None:
        # The parent holds the store, so the port is one the system gave and nobody can take it in between.
        host = self._places[0].address
        self._store = self._places[0].call(
            lambda: dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        )
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else c10d misses host names in namespaces
        context = mp.get_context("spawn")
        processes: list[BaseProcess] = []
        stack.push(lambda _kind, error, _trace: _end(processes, self._pipes, hurry=error is not None))
        for rank in range(self._size.ranks):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(
                target=_serve,
                args=(rank, (host, self._store.port), self._places[rank], self._size, self._make, theirs),
                daemon=True,
            )
            process.start()
            processes.append(process)
            theirs.close()  # so that the end of the child is the end of the pipe

    def _ask(self, request: str | int) -> list[Any]:
        for pipe in self._pipes:
            with suppress(OSError):  # of a rank that died: the answer that does not come says it
                pipe.send(request)
        ranks = range(self._size.ranks)
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + TIMEOUT
        while len(answers) < len(ranks):
            waiting = [rank for rank in ranks if rank not in answers]
            # All at once, so that a rank that dies is heard at once while the others wait for it.
            ready = wait([self._pipes[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{self.name}: ranks {waiting} gave no answer in {TIMEOUT:.0f} s")
            answers |= {r: self._receive(r) for r in waiting if self._pipes[r] in ready}
        return [answers[rank] for rank in ranks]

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._pipes[rank].recv()
        except (EOFError, OSError):
            raise RuntimeError(f"{self.name}: rank {rank} died without a word") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: rank {rank} failed:\n{answer}")
        return answer


def _end(processes: list[BaseProcess], pipes: list[Connection], *, hurry: bool) -> None:
    for pipe in pipes:
        pipe.close()  # a child that waits for a request takes this as its end
    deadline = time.monotonic() + (0.0 if hurry else 5.0)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


class _Rank:
    """What a process holds."""

    def __init__(self, rank: int, size: Size, make: Make) -> None:
        stages, reference = build_stages(size), serial_gradients(size)
        share = Share(size, rank, [stages[s] for s in size.stages_of(rank)], *build_batch(size))
        self._modules = share.modules
        self._reference = [reference[s] for s in share.stages]
        self._microbatch = share.inputs[: size.batch].clone()
        self._rank = rank
        self._step = make(share)

    def answer(self, request: str | int) -> object:
        if isinstance(request, int):
            return [self._span() for _ in range(request)]
        return self.check() if request == "check" else self.message()

    def check(self) -> tuple[float, float]:
        self._step()  # the first one may also infer shapes
        clear_gradients(self._modules)
        self._step()
        return squared_error(self._modules, self._reference)

    def message(self) -> float:
        """Half of the way there and back between ranks 0 and 1; the others' answer is 0."""
        return statistics.median(self._round_trip() for _ in range(PINGS)) / 2 if self._rank < 2 else 0.0

    def _round_trip(self) -> float:
        start, other = time.perf_counter(), 1 - self._rank
        for sender in (0, 1):
            (dist.send if sender == self._rank else dist.recv)(self._microbatch, other)
        return time.perf_counter() - start

    def _span(self) -> Span:
        start = time.perf_counter()
        self._step()
        return start, time.perf_counter()


def _serve(rank: int, store: tuple[str, int], place: Place, size: Size, make: Make, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        place.enter()
        os.environ["GLOO_SOCKET_IFNAME"] = place.interface
        _join(rank, store, size.ranks)
        state = _Rank(rank, size, make)
        while True:
            pipe.send(state.answer(pipe.recv()))
    except (EOFError, BrokenPipeError):
        dist.destroy_process_group()
    except Exception:
        pipe.send(traceback.format_exc())


def _end_with_parent() -> None:
    """Also where a rank waits for another: a parent that was killed has ended nobody."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _join(rank: int, address: tuple[str, int], ranks: int) -> None:
    timeout = timedelta(seconds=TIMEOUT)
    store = dist.TCPStore(*address, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
