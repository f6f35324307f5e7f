"""A plain stage, two steps of a pipeline of it, and the serial model to compare with: no tests here."""

from __future__ import annotations

from typing import Any

import torch
from around import part
from odd import data_of
from torch import Tensor, nn

import dualpipe_rs as dp

EQUAL = 1e-12


class Block(nn.Module):
    """Two layers."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8).double(), nn.Linear(8, 6).double()
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-0.5, 0.5, generator=generator)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x = torch.tanh(self.up(x if mask is None else x * mask))
        return self.down(x)


def summed(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() - target).square().sum()


def serial_gradients(count: int, microbatches: int, replicas: int = 1) -> list[Block]:
    """The stages after a step on the batches of all replicas, averaged over them."""
    stages = [Block(index) for index in range(count)]
    for replica in range(replicas):
        data = data_of(microbatches, seed=replica)
        for x, y in zip(data.x.split(2), data.target.split(2), strict=True):
            for stage in stages:
                x = stage(x)
            (summed(x, y) / replicas).backward()
    return stages


def two_steps(pipe: dp.Pipeline, schedule: dp.Schedule, seed: int = 0) -> None:
    """Two steps on one batch; the gradients are the second's."""
    data = data_of(schedule.num_microbatches, seed=seed)
    for _ in range(2):
        pipe.zero_grad()
        x = part(schedule, pipe.rank, 0, data.x)
        y = part(schedule, pipe.rank, schedule.num_stages - 1, data.target)
        pipe.step(x, criterion=summed, labels=y)
        pipe.sync_gradients()


def assert_trained(
    pipe: dp.Pipeline, schedule: dp.Schedule, modules: dict[int, Any], replicas: int = 1
) -> None:
    """Gradients and their norm are those of the serial model."""
    reference = serial_gradients(schedule.num_stages, schedule.num_microbatches, replicas)
    for stage, module in modules.items():
        for mine, theirs in zip(module.parameters(), reference[stage].parameters(), strict=True):
            grad = mine.grad.full_tensor() if hasattr(mine.grad, "full_tensor") else mine.grad
            assert (grad - theirs.grad).norm() <= EQUAL * theirs.grad.norm(), stage
    norm = torch.nn.utils.clip_grad_norm_([p for s in reference for p in s.parameters()], 1e9)
    assert abs(pipe.clip_grad_norm_(1e9) - norm) <= EQUAL * norm
    pipe.assert_replicas_equal()
