"""Tiny steps of real stages, whose timelines tests look at: no tests here."""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F

import dualpipe_rs as dp

RUNS = [
    ("1f1b", 2, 4, True),
    ("1f1b", 3, 5, True),
    ("gpipe", 1, 3, True),
    ("zb-h1", 2, 5, True),
    ("zb-v", 2, 4, True),
    ("dualpipe", 4, 8, True),
    ("dualpipev", 2, 7, True),
    ("dualpipev", 3, 8, True),
    ("1f1b", 2, 4, False),
    ("dualpipev", 2, 5, False),
]


@cache
def timeline_of(family: str, num_ranks: int, num_microbatches: int, train: bool = True) -> dp.Timeline:
    """One step of plain linear stages; without gradients where `train` is False."""
    schedule = dp.schedule(family, num_ranks, num_microbatches)
    stages = [torch.nn.Linear(4, 4) for _ in range(schedule.num_stages)]
    batch = torch.ones(num_microbatches, 4)

    def part(rank: int, stage: int) -> torch.Tensor | None:
        here = [m for m in range(num_microbatches) if schedule.rank_of(stage, m) == rank]
        return batch[here] if here else None

    def rank_main(group: dp.LocalGroup) -> dp.Timeline:
        rank = group.rank()
        pipe = dp.Pipeline([copy.deepcopy(stages[stage]) for stage in schedule.stages_of(rank)], schedule)
        labels = (part(rank, schedule.num_stages - 1),)
        with torch.set_grad_enabled(train):
            pipe.step(part(rank, 0), num_chunks=num_microbatches, criterion=F.mse_loss, labels=labels)
        return pipe.timeline

    return dp.run_local(rank_main, num_ranks)[0]
