"""How well a step is predicted from the one before it: costs fitted to a measured timeline are simulated, and
held against the next measured one.

    python bench/prediction.py

The local executor on threads, a stage of the full model of bench/step.py, one intra-op thread a rank. Where
there are more ranks than cores, slots are fitted by wall time (which has the sharing of the cores in it, so
that it predicts this schedule alone), and by thread CPU time, then simulated with a limit on the cores.
"""

from __future__ import annotations

import itertools
import os
import statistics

import torch
import torch.nn.functional as F
from report import print_table
from torch import nn
from workload import FULL, MICROBATCHES, build_stages

import dualpipe_rs as dp

WARM_UP, STEPS = 2, 12
FAMILIES = ("1f1b", "zb-h1", "dualpipe", "dualpipev")


def main() -> None:
    cores = os.cpu_count() or 1
    print(
        f"{cores} cores; {STEPS} steps each; a step against the prediction from the step before it, makespans"
    )
    heads = ["schedule", "ranks", "fitted by", "measured, ms", "from step to step"]
    heads += ["predicted / measured - 1, median", "least to greatest"]
    table = []
    for ranks, name in itertools.product((2, 4), FAMILIES):
        schedule = dp.schedule(name, ranks, MICROBATCHES)
        measured = run(schedule)
        for limit in (None, cores) if ranks > cores else (None,):
            table.append(row(schedule, measured, limit))
    print_table(heads, table)


def row(schedule: dp.Schedule, measured: list[dp.Timeline], limit: int | None) -> list[str]:
    shares = limit is not None

    def predicted(timeline: dp.Timeline) -> float:
        costs = dp.Costs.from_timeline(timeline, cpu_time=shares)
        return schedule.simulate(costs, cores=limit).makespan

    pairs = list(itertools.pairwise(measured))
    errors = [predicted(one) / two.makespan - 1 for one, two in pairs]
    wander = statistics.median(abs(two.makespan / one.makespan - 1) for one, two in pairs)
    return [
        schedule.name,
        str(schedule.num_ranks),
        f"CPU time, {limit} cores" if shares else "wall time",
        f"{1e3 * statistics.median(timeline.makespan for timeline in measured):.0f}",
        f"{wander:.1%}",
        f"{statistics.median(errors):+.1%}",
        f"{min(errors):+.1%} to {max(errors):+.1%}",
    ]


def run(schedule: dp.Schedule) -> list[dp.Timeline]:
    """The measured timelines of all steps but the first ones."""
    shape = (MICROBATCHES * FULL.batch, FULL.tokens, FULL.hidden)
    x, y = torch.randn(shape), torch.randn(shape)
    stages = [[stage() for _ in schedule.stages_of(rank)] for rank in range(schedule.num_ranks)]
    for rank, mine in enumerate(stages):
        for number, module in zip(schedule.stages_of(rank), mine, strict=True):
            torch.manual_seed(number)
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.05)

    def on_rank(group: dp.LocalGroup) -> list[dp.Timeline]:
        rank = group.rank()
        pipe = dp.Pipeline(stages[rank], schedule, process_group=group)
        inputs = share(schedule, rank, 0, x)
        labels = share(schedule, rank, schedule.num_stages - 1, y)
        timelines = []
        for _ in range(WARM_UP + STEPS):
            pipe.zero_grad(set_to_none=True)
            pipe.step(*inputs, num_chunks=MICROBATCHES, criterion=F.mse_loss, labels=labels)
            timelines.append(pipe.timeline)
        return timelines[WARM_UP:]

    return dp.run_local(on_rank, schedule.num_ranks, threads_per_rank=1)[0]


def stage() -> nn.Module:
    return build_stages(FULL)[0]


def share(schedule: dp.Schedule, rank: int, stage: int, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The part of the batch of the microbatches that pass a stage on this rank."""
    pieces = batch.chunk(MICROBATCHES)
    mine = [piece for m, piece in enumerate(pieces) if schedule.rank_of(stage, m) == rank]
    return (torch.cat(mine),) if mine else ()


if __name__ == "__main__":
    main()
