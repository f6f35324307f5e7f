"""The rows that are ours: DualPipeV over the ranks of one process, on threads or interleaved, with the weight
gradient split off or left in the backward.
"""

from __future__ import annotations

import time

import torch.nn.functional as F
from workload import (
    MICROBATCHES,
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

import dualpipe_rs as dp


class Local:
    def __init__(self, size: Size, *, interleaved: bool, split_weight_grad: bool) -> None:
        mode = "local interleaved" if interleaved else "local threads"
        self.name = mode if split_weight_grad else f"{mode}, no split"
        self._interleaved = interleaved
        self._split = split_weight_grad
        self._size = size
        self._reference = serial_gradients(size)
        self._stages = build_stages(size)
        self._inputs, self._labels = build_batch(size)

    def squared_error(self) -> tuple[float, float]:
        clear_gradients(self._stages)
        self._run(1)
        return squared_error(self._stages, self._reference)

    def times(self, steps: int) -> list[float]:
        return pipeline_times(self._run(WARM_UP + steps))[WARM_UP:]

    def _run(self, steps: int) -> list[list[Span]]:
        def on_rank(group: dp.LocalGroup) -> list[Span]:
            first = group.rank() == 0
            pipe = dp.DualPipeV(
                [self._stages[s] for s in self._size.stages_of(group.rank())],
                process_group=group,
                split_weight_grad=self._split,
            )
            return [self._step(pipe, first) for _ in range(steps)]

        return dp.run_local(on_rank, self._size.ranks, interleaved=self._interleaved, threads_per_rank=1)

    def _step(self, pipe: dp.DualPipeV, first: bool) -> Span:
        start = time.perf_counter()
        pipe.step(
            self._inputs if first else None,
            num_chunks=MICROBATCHES,
            criterion=F.mse_loss,
            labels=(self._labels,) if first else (),
        )
        return start, time.perf_counter()
