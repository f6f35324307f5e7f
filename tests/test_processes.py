"""Ranks in several processes over gloo: every family trains as serially, and infers as serially.

One job of processes serves many cases, as starting one takes as long as running dozens.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from processes import run_processes
from training import (
    Outcome,
    criterion,
    data_for,
    gradients,
    losses_in_order,
    serial,
    stages_for,
    step_arguments,
)

import dualpipe_rs as dp

TOLERANCE = 1e-12


def train(rank: int, schedule: dp.Schedule, **options: Any) -> tuple[Any, dict[int, Any], dp.Timeline]:
    """One rank's part of a step: its losses, its gradients by stage, and the timeline."""
    held = schedule.stages_of(rank)
    stages = stages_for(schedule)
    pipe = dp.Pipeline([copy.deepcopy(stages[stage]) for stage in held], schedule, **options)
    for _ in range(2):  # The first step announces what travels, the second has room made ahead.
        pipe.zero_grad()
        inputs, labels = step_arguments(schedule, data_for(schedule), rank)
        loss, _ = pipe.step(*inputs, criterion=criterion, labels=labels)
    pipe.sync_gradients()
    assert pipe.timeline is not None
    return loss, dict(zip(held, gradients(list(pipe.module)), strict=True)), pipe.timeline


def families(ranks: int) -> list[dp.Schedule]:
    """Every family that takes these ranks, of the fewest microbatches that show its steady state."""
    made = []
    for name in dp.schedule_names():
        for microbatches in (2 * ranks, 2 * ranks + 2, 3 * ranks):
            try:
                made.append(dp.schedule(name, ranks, microbatches))
                break
            except dp.SizeError:
                continue
    return made


def _train_all(rank: int, ranks: int, p2p: str) -> list[Any]:
    results = []
    for schedule in families(ranks):
        loss, grads, timeline = train(rank, schedule, p2p=p2p)
        slots = [span["slot"] for span in timeline.spans if span["rank"] == rank]
        assert len(set(slots)) == len(schedule.rank(rank))
        results.append((loss, grads))
    return results


@pytest.mark.parametrize(
    ("ranks", "p2p"), [(2, "eager"), (3, "eager"), (4, "eager"), (2, "batched"), (4, "batched")]
)
def test_every_family_trains_as_serially(ranks, p2p):
    by_rank = run_processes(ranks, _train_all, ranks, p2p)
    assert len(families(ranks)) > 8
    for index, schedule in enumerate(families(ranks)):
        losses = losses_in_order(schedule, [results[index][0] for results in by_rank])
        held = {stage: grads for results in by_rank for stage, grads in results[index][1].items()}
        outcome = Outcome(losses, [held[stage] for stage in range(schedule.num_stages)])
        loss_off, off = outcome.off_from(serial(stages_for(schedule), data_for(schedule)))
        assert off <= TOLERANCE, (schedule, off)
        assert loss_off <= TOLERANCE, (schedule, loss_off)


def _infer_all(rank: int, ranks: int) -> list[Any]:
    results = []
    for schedule in families(ranks):
        stages = stages_for(schedule)
        pipe = dp.Pipeline([stages[stage] for stage in schedule.stages_of(rank)], schedule)
        data = data_for(schedule)
        inputs, _ = step_arguments(schedule, data, rank)
        with torch.no_grad():
            _, outputs = pipe.step(*inputs, return_outputs=True)
            whole = (data.tokens, data.numbers)
            for stage in stages:
                whole = stage(*whole)
        expected = data.at(schedule, rank, schedule.num_stages - 1, whole[0])
        if expected is None:
            assert outputs is None
        else:
            results.append(float((outputs[0] - expected).abs().max()))
    return results


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_family_infers_as_serially(ranks):
    differences = [off for results in run_processes(ranks, _infer_all, ranks) for off in results]
    assert len(differences) >= len(families(ranks))
    assert max(differences) <= TOLERANCE
