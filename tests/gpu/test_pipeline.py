"""`DualPipe(..., transport="nccl")` on real GPUs equals serial: ranks as threads, on one GPU or one each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dualpipe_rs as dp

MICROBATCHES, ROWS, WIDTH = 8, 2, 16


def stages(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(count)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (MICROBATCHES * ROWS, WIDTH)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore


def serial(modules: list[nn.Module]) -> list[torch.Tensor]:
    modules = copy.deepcopy(modules)
    for x, y in zip(*(half.split(ROWS) for half in batch()), strict=True):
        for module in modules:
            x = module(x)
        nn.functional.mse_loss(x, y).backward()
    return [p.grad for module in modules for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["DualPipe", "DualPipeV"])
@pytest.mark.parametrize("each", [False, True], ids=["one GPU", "a GPU each"])
def test_a_pipeline_equals_serial(name: str, each: bool) -> None:
    ranks = 2
    if each and torch.cuda.device_count() < ranks:
        pytest.skip("fewer GPUs")
    schedule = dp.schedule(name.lower(), ranks, MICROBATCHES)
    whole = stages(schedule.num_stages)

    def rank_main(group: dp.LocalGroup) -> dict[int, list[torch.Tensor]]:
        device = torch.device("cuda", group.rank() if each else 0)
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            held = schedule.stages_of(group.rank())
            modules = [copy.deepcopy(whole[stage]).to(device) for stage in held]
            pipe = getattr(dp, name)(modules, transport="nccl")
            x, y = batch()
            x = own(schedule, group.rank(), x, device)
            y = own(schedule, ranks - 1 - group.rank() if name == "DualPipe" else group.rank(), y, device)
            for _ in range(2):  # in the second step all is known ahead
                pipe.zero_grad()
                pipe.step(x, num_chunks=MICROBATCHES, criterion=nn.functional.mse_loss, labels=y)
            pipe.sync_gradients()
            torch.cuda.current_stream().synchronize()
            return {
                stage: [p.grad.cpu() for p in module.parameters()]
                for stage, module in zip(held, modules, strict=True)
            }

    merged: dict[int, list[torch.Tensor]] = {}
    for grads in dp.run_local(rank_main, ranks):
        merged |= grads
    flat = torch.cat([g.flatten() for stage in sorted(merged) for g in merged[stage]])
    expected = torch.cat([g.flatten() for g in serial(whole)])
    assert (flat - expected).norm() <= 1e-12 * expected.norm()


def own(schedule: dp.Schedule, rank: int, half: torch.Tensor, device: Any) -> torch.Tensor | None:
    """The rows that a rank takes: DualPipe's inputs enter at both ends (and labels go to the other one)."""
    if schedule.name == "dualpipev":
        return half.to(device) if rank == 0 else None
    first, second = half.chunk(2)
    return (first if rank == 0 else second).to(device)
