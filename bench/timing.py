"""What the benchmarks share: medians, and torch's own DualPipeV table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch.distributed.pipelining import schedules


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median(run: Callable[[], object], repeats: int = 9) -> float:
    return statistics.median(timed(run) for _ in range(repeats))


def torch_compute(ranks: int, microbatches: int) -> tuple[dict[int, list[Any]], Callable[[int], int]]:
    """ScheduleDualPipeV's order for every rank, validated, and its stage -> rank: what its constructor does,
    without process groups."""
    made = object.__new__(schedules.ScheduleDualPipeV)
    made.pp_group_size, made._n_microbatches, made.num_stages = ranks, microbatches, 2 * ranks
    made.n_local_stages, made._stages = 2, [SimpleNamespace()] * 2
    order = {rank: made._calculate_single_rank_operations(rank) for rank in range(ranks)}
    to_rank = schedules._validate_schedule(order, ranks, 2 * ranks, microbatches)
    compute = {rank: [action for action in row if action is not None] for rank, row in order.items()}
    return compute, lambda stage: to_rank[stage]
