"""What people put around and into a pipeline, across processes: each trains as one serial model does.

Compiled and checkpointed stages, autocast with a scaler, schedulers, ZeRO-1, clipping, ties, accumulation.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from around import Recipe, off, part, rank_run, serially, stages_of
from blocks import Block, assert_trained, summed, two_steps
from odd import data_of
from processes import run_processes
from torch import Tensor, nn
from training import (
    Masks,
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

EQUAL = 1e-12
ADAMW = (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
SCALED = torch.optim.SGD
one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10)


# -- optimizers, schedulers, ties, accumulation ---------------------------------------------------

RECIPES = {
    "zero1": Recipe(steps=5, optimizer=ADAMW, zero1=True, scheduler=one_cycle),
    "accumulated": Recipe(steps=2, optimizer=SGD, accumulate=3, clip=(0.5, 2.0)),
    "tied": Recipe(steps=3, optimizer=SGD, accumulate=2, clip=(1.0, 2.0)),
    "tied zero1": Recipe(steps=3, optimizer=ADAMW, zero1=True, clip=(1.0, 2.0)),
}
SIZES = {
    2: [("dualpipe", 2, 4), ("dualpipev", 2, 5), ("1f1b", 2, 3)],
    4: [("dualpipe", 4, 8), ("dualpipev", 4, 8), ("1f1b", 4, 5)],
}


def recipes_for(ranks: int) -> dict[str, Recipe]:
    return {name: recipe for name, recipe in RECIPES.items() if ranks < 4 or "zero1" in name}


def _recipes(number: int, ranks: int) -> list[Any]:
    found = []
    for sizes in SIZES[ranks]:
        schedule = dp.schedule(*sizes)
        for name, recipe in recipes_for(ranks).items():
            stages = stages_of(schedule.num_stages, tied="tied" in name)
            found.append(rank_run(dist.group.WORLD, schedule, stages, recipe, timeout=30.0))
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_optimizer_steps_equal_serial(ranks):
    by_rank = run_processes(ranks, _recipes, ranks)
    index = 0
    for sizes in SIZES[ranks]:
        schedule = dp.schedule(*sizes)
        for name, recipe in recipes_for(ranks).items():
            expected = serially(schedule, stages_of(schedule.num_stages, tied="tied" in name), recipe)
            for runs in by_rank:
                assert off(runs[index], expected) <= EQUAL, (sizes, name)
            index += 1


# -- what stages are made of ----------------------------------------------------------------------


def _compiled(number: int) -> None:
    for sizes in SIZES[2]:
        schedule = dp.schedule(*sizes)
        for backend in ("aot_eager",) if sizes[0] == "dualpipe" else ("eager",):
            modules = {s: torch.compile(Block(s), backend=backend) for s in schedule.stages_of(number)}
            pipe = dp.Pipeline(list(modules.values()), schedule, timeout=60.0)
            two_steps(pipe, schedule)
            assert_trained(pipe, schedule, modules)
            inner = {s: Block(s) for s in schedule.stages_of(number)}
            for module in inner.values():
                module.compile(backend=backend)
            pipe = dp.Pipeline(list(inner.values()), schedule, timeout=60.0)
            two_steps(pipe, schedule)
            assert_trained(pipe, schedule, inner)
            mask = torch.ones(sizes[2] * 2, 6, dtype=torch.float64)
            data = data_of(sizes[2], seed=0)
            x, y = (
                part(schedule, number, s, t) for s, t in ((0, data.x), (schedule.num_stages - 1, data.target))
            )
            pipe.zero_grad()
            pipe.step(x, criterion=summed, labels=y, mask=mask)
            pipe.sync_gradients()
            assert_trained(pipe, schedule, inner)


def test_compiled_stages():
    run_processes(2, _compiled)


def _checkpointed(rank: int) -> list[Any]:
    found = []
    for sizes in SIZES[2]:
        schedule = dp.schedule(*sizes)
        for recompute in ("reentrant", "non-reentrant", "own"):
            masks = Masks()
            stages = stages_for(schedule, masks=masks, recompute=recompute)
            torch.manual_seed(100 + rank)
            held = schedule.stages_of(rank)
            pipe = dp.Pipeline([copy.deepcopy(stages[s]) for s in held], schedule, timeout=30.0)
            inputs, labels = step_arguments(schedule, data_for(schedule), rank)
            loss, _ = pipe.step(*inputs, criterion=criterion, labels=labels)
            pipe.sync_gradients()
            found.append((loss, dict(zip(held, gradients(list(pipe.module)), strict=True)), dict(masks)))
    return found


def test_checkpointing_with_dropout():
    by_rank = run_processes(2, _checkpointed)
    for index in range(9):
        schedule = dp.schedule(*SIZES[2][index // 3])
        masks = Masks()
        for found in by_rank:
            masks.update(found[index][2])
        assert len(masks) == schedule.num_stages * schedule.num_microbatches
        held = {stage: grads for found in by_rank for stage, grads in found[index][1].items()}
        losses = losses_in_order(schedule, [found[index][0] for found in by_rank])
        outcome = Outcome(losses, [held[stage] for stage in range(schedule.num_stages)])
        assert max(outcome.off_from(serial(stages_for(schedule, masks=masks), data_for(schedule)))) <= EQUAL


def _scaled(rank: int, dtype: torch.dtype, zero1: bool) -> list[tuple[list[float], dict[int, list[Tensor]]]]:
    found = []
    for sizes in SIZES[2]:
        schedule = dp.schedule(*sizes)
        modules = {s: Block(s).float() for s in schedule.stages_of(rank)}
        pipe = dp.Pipeline(list(modules.values()), schedule, timeout=30.0)
        optimizer = pipe.zero1(SCALED, lr=0.01) if zero1 else SCALED(pipe.parameters(), lr=0.01)
        scaler = dp.GradScaler(pipe, "cpu", init_scale=2.0**60, growth_interval=2)
        scales = [_scaled_step(pipe, schedule, dtype, optimizer, scaler, turn) for turn in range(4)]
        found.append((scales, {s: [p.detach() for p in m.parameters()] for s, m in modules.items()}))
    return found


def _scaled_step(
    pipe: dp.Pipeline, schedule: dp.Schedule, dtype: torch.dtype, optimizer: Any, scaler: Any, turn: int
) -> float:
    """One step of the optimizer, the first with an overflow; the scale after it."""
    data = data_of(schedule.num_microbatches, seed=turn)
    x = part(schedule, pipe.rank, 0, data.x.float())
    y = part(schedule, pipe.rank, schedule.num_stages - 1, data.target)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        pipe.step(
            x,
            criterion=lambda out, y: scaler.scale(summed(out, y).float()) if turn else _overflowing(out, y),
            labels=y,
        )
    pipe.sync_gradients()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update(8.0 if turn == 0 else None)
    pipe.assert_replicas_equal()
    return scaler.get_scale()


def _overflowing(output: Tensor, target: Tensor) -> Tensor:
    return summed(output, target).float() * float("inf")


def _serially_scaled(schedule: dp.Schedule, dtype: torch.dtype) -> list[list[Tensor]]:
    model = nn.ModuleList([Block(s).float() for s in range(schedule.num_stages)])
    optimizer = SCALED(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    for turn in range(1, 4):
        data = data_of(schedule.num_microbatches, seed=turn)
        optimizer.zero_grad()
        for x, y in zip(data.x.float().split(2), data.target.split(2), strict=True):
            with torch.autocast("cpu", dtype=dtype):
                for stage in model:
                    x = stage(x)
                loss = scaler.scale(summed(x, y).float())
            loss.backward()
        scaler.step(optimizer)
        scaler.update()
    return [[p.detach() for p in stage.parameters()] for stage in model]


@pytest.mark.parametrize(("dtype", "zero1"), [(torch.bfloat16, True), (torch.float16, False)], ids=str)
def test_autocast_with_a_scaler(dtype, zero1):
    by_rank = run_processes(2, _scaled, dtype, zero1)
    for index, sizes in enumerate(SIZES[2]):
        expected = _serially_scaled(dp.schedule(*sizes), dtype)
        for found in by_rank:
            scales, parameters = found[index]
            assert scales == [8.0, 8.0, 16.0, 16.0]  # an overflow, and two steps to grow
            for stage, tensors in parameters.items():
                for mine, theirs in zip(tensors, expected[stage], strict=True):
                    assert (mine - theirs).norm() <= 1e-4 * theirs.norm()
