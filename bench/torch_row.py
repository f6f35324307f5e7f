"""The row `torch`: torch.distributed.pipelining's ScheduleDualPipeV on one gloo process a rank.

The processes live as long as the row and sleep between its turns. It is no benchmark of gloo: tensors travel
as torch's schedule sends them by default.
"""

from __future__ import annotations

import multiprocessing as mp
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV
from workload import (
    MICROBATCHES,
    RANKS,
    STAGES,
    WARM_UP,
    Size,
    Span,
    build_batch,
    build_stages,
    clear_gradients,
    pipeline_times,
    serial_gradients,
    squared_error,
    stages_of,
)

TIMEOUT = 180.0  # seconds for one answer, the import of torch in a new process included


class Torch:
    """A context manager: the processes are gone when it is left, however that happens."""

    name = "torch"

    def __init__(self, size: Size) -> None:
        self._size = size
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Torch:
        # The parent holds the store, so the port is one the system gave and nobody can take it in between.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = mp.get_context("spawn")
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self._store.port, self._size, theirs), daemon=True
            )
            process.start()
            theirs.close()  # so that the end of the child is the end of the pipe
            self._processes.append(process)
            self._pipes.append(ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # a child that waits for a request takes this as its end
        deadline = time.monotonic() + (5.0 if error is None else 0.0)
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def squared_error(self) -> tuple[float, float]:
        by_rank = self._ask("check")
        return sum(distance for distance, _ in by_rank), sum(norm for _, norm in by_rank)

    def times(self, steps: int) -> list[float]:
        return pipeline_times(self._ask(WARM_UP + steps))[WARM_UP:]

    def _ask(self, request: str | int) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(request)
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + TIMEOUT
        while len(answers) < RANKS:
            waiting = [rank for rank in range(RANKS) if rank not in answers]
            # All at once, so that a rank that dies is heard at once while the others wait for it.
            ready = wait([self._pipes[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"torch's ranks gave no answer to {request!r} in {TIMEOUT:.0f} s")
            answers |= {r: _receive(r, self._pipes[r]) for r in waiting if self._pipes[r] in ready}
        return [answers[rank] for rank in range(RANKS)]


def _receive(rank: int, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"torch's rank {rank} died without a word") from None
    if isinstance(answer, str):
        raise RuntimeError(f"torch's rank {rank} failed:\n{answer}")
    return answer


class _Rank:
    """What a process holds."""

    def __init__(self, rank: int, size: Size) -> None:
        own = stages_of(rank)
        stages = build_stages(size)
        self._modules = [stages[s] for s in own]
        self._reference = [serial_gradients(size)[s] for s in own]
        self._inputs, self._labels = build_batch(size)
        self._first = rank == 0
        device = torch.device("cpu")
        self._schedule = ScheduleDualPipeV(
            [PipelineStage(m, s, STAGES, device) for m, s in zip(self._modules, own, strict=True)],
            n_microbatches=MICROBATCHES,
            loss_fn=F.mse_loss,
            scale_grads=False,  # the sum over microbatches, as in every other row
        )

    def check(self) -> tuple[float, float]:
        self._step()  # the first one also infers shapes
        clear_gradients(self._modules)
        self._step()
        return squared_error(self._modules, self._reference)

    def spans(self, steps: int) -> list[Span]:
        return [self._step() for _ in range(steps)]

    def _step(self) -> Span:
        start = time.perf_counter()
        if self._first:
            self._schedule.step(self._inputs, target=self._labels, return_outputs=False)
        else:
            self._schedule.step(return_outputs=False)
        return start, time.perf_counter()


def _serve(rank: int, port: int, size: Size, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        timeout = timedelta(seconds=TIMEOUT)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timeout)
        state = _Rank(rank, size)
        while True:
            request = pipe.recv()
            pipe.send(state.check() if request == "check" else state.spans(request))
    except EOFError:
        dist.destroy_process_group()
    except Exception:
        pipe.send(traceback.format_exc())
