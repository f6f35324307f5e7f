"""A loop of two arms over a DualPipeScheduler, as a user writes one: no tests here.

Ranks are threads; what travels lies in a queue of its own, so that a receive waits and a send does not.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from queue import Queue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import dualpipe_rs as dp

WIDTH, ROWS = 6, 2
PATIENCE = 20.0  # seconds until a receive that nobody answers fails


def layers_for(stages: int) -> list[nn.Module]:
    torch.manual_seed(5)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(stages)]


def batch_for(microbatches: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shape = (microbatches, ROWS, WIDTH)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def serial(layers: list[nn.Module], inputs: Tensor, targets: Tensor) -> tuple[list[float], list[Tensor]]:
    """The losses, and the gradient of each stage as one vector."""
    layers = copy.deepcopy(layers)
    losses = []
    for x, target in zip(inputs, targets, strict=True):
        for layer in layers:
            x = layer(x)
        loss = (x - target).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, [gradient_of(layer) for layer in layers]


def gradient_of(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


class Loop:
    """A step: ``run`` has all ranks of it on threads, ``rank_main`` is one of them."""

    def __init__(self, scheduler: dp.DualPipeScheduler, overlap: bool = False) -> None:
        self.scheduler, self.overlap = scheduler, overlap
        self.layers = layers_for(scheduler.num_stages)
        self.inputs, self.targets = batch_for(scheduler.num_microbatches)
        self.wires: dict[Any, Queue[Tensor]] = defaultdict(Queue)
        self.losses = [float("nan")] * scheduler.num_microbatches
        self.gradients = [torch.zeros(1, dtype=torch.float64)] * scheduler.num_stages

    def run(self) -> Loop:
        """All ranks; afterwards there are the losses, and each stage's gradient."""
        ranks = self.scheduler.num_ranks
        self.add(dp.run_local(lambda group: self.rank_main(group.rank()), ranks, threads_per_rank=1))
        return self

    def add(self, by_rank: list[dict[int, Tensor]]) -> None:
        """Sums the gradients over the ranks that hold a stage."""
        for held in by_rank:
            for stage, gradient in held.items():
                self.gradients[stage] = self.gradients[stage] + gradient

    def off(self) -> float:
        """By what part of it the gradient of the model differs from that of a serial run."""
        _, gradients = serial(self.layers, self.inputs, self.targets)
        ours, theirs = torch.cat(self.gradients), torch.cat(gradients)
        return float((ours - theirs).norm() / theirs.norm())

    def rank_main(self, rank: int) -> dict[int, Tensor]:
        stages = {s: copy.deepcopy(self.layers[s]) for s in self.scheduler.order.stages_of(rank)}
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for op, microbatch in self.operations(rank):
            if op == "forward":
                self.forward(rank, microbatch, stages, kept)
            else:
                self.backward(rank, microbatch, kept)
        assert not kept
        return {stage: gradient_of(module) for stage, module in stages.items()}

    def operations(self, rank: int) -> Iterable[tuple[str, int]]:
        if self.overlap:
            return (op for group in self.scheduler.schedule_with_overlap(rank) for op in group)
        return self.scheduler.schedule(rank)

    def forward(self, rank: int, microbatch: int, stages: dict[int, nn.Module], kept: dict[int, Any]) -> None:
        came_from = self.scheduler.previous_rank(rank, microbatch)
        x = self.inputs[microbatch] if came_from is None else self.receive(rank, "activation", microbatch)
        x = x.detach().requires_grad_()
        y = stages[self.scheduler.stage(rank, microbatch)](x)
        goes_to = self.scheduler.next_rank(rank, microbatch)
        if goes_to is None:
            y = (y - self.targets[microbatch]).square().sum()
            self.losses[microbatch] = float(y.detach())
        else:
            self.send(goes_to, "activation", microbatch, y)
        kept[microbatch] = (x, y)

    def backward(self, rank: int, microbatch: int, kept: dict[int, Any]) -> None:
        x, y = kept.pop(microbatch)
        is_last = self.scheduler.is_last_stage(rank, microbatch)
        y.backward(None if is_last else self.receive(rank, "gradient", microbatch))
        goes_to = self.scheduler.previous_rank(rank, microbatch)
        if goes_to is not None:
            self.send(goes_to, "gradient", microbatch, x.grad)

    def send(self, to: int, what: str, microbatch: int, tensor: Tensor) -> None:
        self.wires[to, what, microbatch].put(tensor.detach())

    def receive(self, rank: int, what: str, microbatch: int) -> Tensor:
        return self.wires[rank, what, microbatch].get(timeout=PATIENCE)


class ProcessLoop(Loop):
    """The same where each rank is a process: a tag names what travels, and no send is waited for at once."""

    def send(self, to: int, what: str, microbatch: int, tensor: Tensor) -> None:
        tensor = tensor.detach().contiguous()
        self.sent.append((dist.isend(tensor, to, tag=self.tag(what, microbatch)), tensor))

    def receive(self, rank: int, what: str, microbatch: int) -> Tensor:
        buffer = torch.empty(ROWS, WIDTH, dtype=torch.float64)
        dist.recv(buffer, tag=self.tag(what, microbatch), src=self.source(rank, what, microbatch))
        return buffer

    def rank_main(self, rank: int) -> dict[int, Tensor]:
        self.sent: list[Any] = []
        held = super().rank_main(rank)
        for work, _ in self.sent:
            work.wait()
        return held

    def source(self, rank: int, what: str, microbatch: int) -> int | None:
        ask = self.scheduler.previous_rank if what == "activation" else self.scheduler.next_rank
        return ask(rank, microbatch)

    @staticmethod
    def tag(what: str, microbatch: int) -> int:
        return 2 * microbatch + (what == "gradient")
