"""Some steps run, timed, and held against the simulation: :func:`profile_schedule`.

It measures whole steps of a pipeline; what single operations take is a profiler's business.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dualpipe_rs._core as _core
from dualpipe_rs._core import Costs, LocalGroup, Schedule, Timeline
from dualpipe_rs.batch import Criterion, Values, as_sequence, microbatches_at
from dualpipe_rs.errors import UsageError
from dualpipe_rs.local import run_local
from dualpipe_rs.partitioning import partition
from dualpipe_rs.pipeline import Pipeline
from dualpipe_rs.scheduler import DualPipeScheduler
from dualpipe_rs.utils import Tensors

#: Steps that are run first and not counted: in the first one memory is made, and shapes are found.
_WARM_UP = 2


@dataclass(frozen=True)
class _Measured:
    """What one rank brings back."""

    steps: list[tuple[float, Timeline]]
    samples: int
    order: Schedule
    p2p: str


def profile_schedule(
    scheduler: DualPipeScheduler | Schedule | str | None,
    model: Pipeline | nn.Sequential | nn.ModuleList | Sequence[nn.Module],
    inputs: Tensors,
    num_iterations: int = 10,
    *,
    criterion: Criterion | None = None,
    labels: Tensors = (),
    num_chunks: int = 0,
    num_ranks: int | None = None,
) -> dict[str, Any]:
    """Runs ``num_iterations`` training steps, changing no weight: what they took, beside what was predicted.

    With a :class:`Pipeline` as ``model`` (all its ranks call it) the steps run as that pipeline's, in threads
    or processes, on what each rank gives. With a model (an ``nn.Sequential``, or its layers) copies of its
    stages run on one thread a rank of this process, on a batch given whole.

    Args:
        scheduler: a :class:`DualPipeScheduler`, a Schedule, or the name of one; with a pipeline ``None``, or
            what that pipeline runs.
        model: what runs.
        inputs: the arguments of the first stage, as for :meth:`Pipeline.step`; for a model, of the whole
            batch.
        num_iterations: how many steps are counted, at least 1; two more run first.
        criterion: as for ``step()``; by default the mean square of all outputs, for want of anything better.
        labels: as for ``step()``; for a model, of the whole batch.
        num_chunks: how many microbatches; a given scheduler or Schedule has its own.
        num_ranks: for a model, how many ranks, where the schedule is a name.

    Returns:
        A dict, the same on every rank. Times are in seconds, and medians over the steps:

        - ``"step_time"``: of a whole step; ``"throughput"``: samples a second (a sample is one index of
          ``batch_dim``).
        - ``"measured"``: the :class:`Timeline` of the median step, and of it ``"makespan"`` and
          ``"bubble_ratio"``.
        - ``"costs"``: :class:`Costs` fitted to it; ``"predicted"``: the Timeline that they give in
          simulation, and of that ``"predicted_makespan"`` and ``"predicted_bubble_ratio"``.

    Raises:
        UsageError: an argument is not what it should be.
        RankError: a step failed.
    """
    if not isinstance(num_iterations, int) or isinstance(num_iterations, bool) or num_iterations < 1:
        raise UsageError(f"num_iterations is {num_iterations!r}; at least 1 step is counted")
    if isinstance(scheduler, DualPipeScheduler):
        scheduler = scheduler.order
    if isinstance(model, Pipeline):
        num_chunks = _own_chunks(model, scheduler, num_chunks)
        return _summary(_run(model, as_sequence(inputs), labels, num_iterations, criterion, num_chunks))
    schedule = _full_schedule(scheduler, num_ranks, num_chunks)
    stages = partition(model, schedule.num_stages)

    def rank_main(group: LocalGroup) -> dict[str, Any]:
        held = schedule.stages_of(group.rank())
        pipe = Pipeline([copy.deepcopy(stages[stage]) for stage in held], schedule, process_group=group)
        own = _part(schedule, group.rank(), 0, as_sequence(inputs))
        targets = _part(schedule, group.rank(), schedule.num_stages - 1, as_sequence(labels))
        return _summary(_run(pipe, own, targets, num_iterations, criterion, 0))

    summary: dict[str, Any] = run_local(rank_main, schedule.num_ranks)[0]
    return summary


def _own_chunks(pipe: Pipeline, scheduler: Schedule | str | None, num_chunks: int) -> int:
    """How many microbatches a pipeline's step has: what was said, or of a schedule that is its own."""
    if scheduler is None:
        return num_chunks
    if isinstance(scheduler, Schedule):
        microbatches = scheduler.num_microbatches
        if num_chunks in (0, microbatches) and pipe.schedule_for(microbatches) == scheduler:
            return microbatches
    raise UsageError("a pipeline runs its own schedule; give None as scheduler, or the model to cut")


def _full_schedule(scheduler: Schedule | str | None, num_ranks: int | None, num_chunks: int) -> Schedule:
    if isinstance(scheduler, Schedule):
        return scheduler
    if isinstance(scheduler, str) and num_ranks:
        return _core.schedule(scheduler, num_ranks, num_chunks)
    raise UsageError(
        f"scheduler is {scheduler!r}; to profile a model give a DualPipeScheduler, a Schedule, or the "
        "name of one with num_ranks and num_chunks"
    )


def _part(schedule: Schedule, rank: int, stage: int, batch: Sequence[Tensor | None]) -> Values:
    """Of a whole batch, the rows of the microbatches that pass a stage on a rank."""
    here = microbatches_at(schedule, stage, rank)
    if not here:
        return ()
    cut = [[None] if t is None else t.chunk(schedule.num_microbatches) for t in batch]
    for t, parts in zip(batch, cut, strict=True):
        if t is not None and len(parts) != schedule.num_microbatches:
            raise UsageError(
                f"a batch of {t.shape[0]} samples cannot be cut into {schedule.num_microbatches} "
                f"microbatches; give a multiple of {schedule.num_microbatches}"
            )
    return tuple(None if parts[0] is None else torch.cat([parts[m] for m in here]) for parts in cut)


def _run(
    pipe: Pipeline,
    inputs: Sequence[Tensor | None],
    labels: Tensors,
    iterations: int,
    criterion: Criterion | None,
    num_chunks: int,
) -> _Measured:
    steps = []
    grads = [(p, p.grad) for p in pipe.parameters()]
    try:
        for index in range(_WARM_UP + iterations):
            for parameter, _ in grads:
                parameter.grad = None
            start = time.perf_counter()
            pipe.step(*inputs, num_chunks=num_chunks, criterion=criterion or _mean_square, labels=labels)
            seconds = time.perf_counter() - start
            if pipe.timeline is None:
                raise UsageError("the pipeline was made with measure=False; make it with measure=True")
            if index >= _WARM_UP:
                steps.append((seconds, pipe.timeline))
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
    told = pipe.group.exchange((_seconds_of(steps), _samples(inputs, pipe.batch_dim)), "profiles a schedule")
    # A step takes as long as its slowest rank.
    slowest = [max(times) for times in zip(*(times for times, _ in told), strict=True)]
    steps = [(seconds, timeline) for seconds, (_, timeline) in zip(slowest, steps, strict=True)]
    return _Measured(steps, sum(samples for _, samples in told), pipe.schedule_for(num_chunks), pipe.p2p)


def _seconds_of(steps: Sequence[tuple[float, Timeline]]) -> list[float]:
    """How long each step took here."""
    return [seconds for seconds, _ in steps]


def _mean_square(*outputs: Tensor | None) -> Tensor:
    """The stand-in for a criterion: the mean square of what can have a gradient."""
    given = [t for t in outputs if t is not None and t.is_floating_point()]
    return torch.stack([t.square().mean() for t in given]).sum()


def _samples(inputs: Sequence[Tensor | None], dim: int) -> int:
    return next((t.shape[dim] for t in inputs if t is not None), 0)


def _summary(run: _Measured) -> dict[str, Any]:
    step_time = statistics.median(_seconds_of(run.steps))
    timeline = sorted((t for _, t in run.steps), key=lambda t: t.makespan)[len(run.steps) // 2]
    costs = Costs.from_timeline(timeline)
    predicted = run.order.simulate(costs, p2p=run.p2p)
    return {
        "step_time": step_time,
        "throughput": run.samples / step_time,
        "makespan": timeline.makespan,
        "bubble_ratio": timeline.bubble_ratio,
        "measured": timeline,
        "costs": costs,
        "predicted": predicted,
        "predicted_makespan": predicted.makespan,
        "predicted_bubble_ratio": predicted.bubble_ratio,
    }
