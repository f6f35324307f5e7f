"""Models and a serial reference for the training tests: no tests here.

The stages hold embeddings, attention, convolutions, norms and plain layers, and pass on two tensors: the
activations and the (integer) number of the microbatch they belong to, which lets dropout masks be noted
by stage and microbatch and used again by the serial reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dualpipe_rs as dp

WIDTH, LENGTH, VOCABULARY = 8, 6, 11


class Masks(dict[tuple[int, int], Tensor]):
    """The mask that was drawn for each (stage, microbatch); copies of a stage note into the same."""

    def __deepcopy__(self, memo: Any) -> Masks:
        return self


class Stage(nn.Module):
    """Stage ``index`` of ``last + 1``: (tokens or activations, number) -> (activations, number)."""

    def __init__(self, index: int, last: int, masks: Masks | None = None, recompute: str = "no") -> None:
        super().__init__()
        self.index, self.masks, self.recompute = index, masks, recompute
        self.replay = False
        self.embedding = nn.Embedding(VOCABULARY, WIDTH) if index == 0 else None
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.group_norm = nn.GroupNorm(2, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))  # In no layer: takes its gradient in I.
        self.head = nn.Linear(WIDTH, VOCABULARY) if index == last else None
        self.double()

    def forward(self, x: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        if self.embedding is not None:
            x = self.embedding(x)
        if self.recompute == "no":
            x = self.block(x, number)
        elif self.recompute == "own":
            x = Recomputed.apply(x, number, self.block)
        else:
            x = checkpoint(self.block, x, number, use_reentrant=self.recompute == "reentrant")
        return (x if self.head is None else self.head(x)), number

    def block(self, x: Tensor, number: Tensor) -> Tensor:
        h = self.norm(x)
        h = x + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.group_norm(self.convolution(h.transpose(1, 2))).transpose(1, 2) * self.scale
        h = h + self.down(F.gelu(self.up(h)))
        return h if self.masks is None else h * self.mask(h, int(number[0]))

    def mask(self, h: Tensor, microbatch: int) -> Tensor:
        """Draws a dropout mask from torch's generator and notes it; drawn again, it must be the same."""
        assert self.masks is not None
        if self.replay:
            return self.masks[self.index, microbatch]
        drawn = F.dropout(torch.ones_like(h), 0.5)
        noted = self.masks.setdefault((self.index, microbatch), drawn)
        assert torch.equal(noted, drawn), f"stage {self.index}, microbatch {microbatch}: another mask"
        return drawn


def stages_for(schedule: dp.Schedule, **options: Any) -> list[Stage]:
    torch.manual_seed(7)
    return [Stage(index, schedule.num_stages - 1, **options) for index in range(schedule.num_stages)]


class Recomputed(torch.autograd.Function):
    """Checkpointing of one's own, which notes the generator's state through `torch.random`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: Tensor, block: Callable[..., Tensor]) -> Tensor:
        ctx.state, ctx.block = torch.random.get_rng_state(), block
        ctx.save_for_backward(x, number)
        with torch.no_grad():
            return block(x, number)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        x, number = ctx.saved_tensors
        before = torch.random.get_rng_state()
        torch.random.set_rng_state(ctx.state)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.block(x, number)
        torch.random.set_rng_state(before)
        torch.autograd.backward(out, grad)
        return x.grad, None, None


@dataclass
class Data:
    """A batch whose microbatches are ``size`` sequences each, in order."""

    tokens: Tensor
    numbers: Tensor
    targets: Tensor
    size: int

    def at(self, schedule: dp.Schedule, rank: int, stage: int, batch: Tensor) -> Tensor | None:
        """The rows of the microbatches that pass ``stage`` on ``rank``."""
        parts = batch.split(self.size)
        here = [part for m, part in enumerate(parts) if schedule.rank_of(stage, m) == rank]
        return torch.cat(here) if here else None


def data_for(schedule: dp.Schedule, size: int = 2) -> Data:
    generator = torch.Generator().manual_seed(3)
    shape = (schedule.num_microbatches * size, LENGTH)
    return Data(
        torch.randint(VOCABULARY, shape, generator=generator),
        torch.arange(schedule.num_microbatches).repeat_interleave(size),
        torch.randint(VOCABULARY, shape, generator=generator),
        size,
    )


def criterion(logits: Tensor, number: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass
class Outcome:
    """Losses by microbatch, and gradients by stage and name; None for a parameter without one."""

    losses: Tensor
    gradients: list[dict[str, Tensor | None]]

    def off_from(self, other: Outcome) -> tuple[float, float]:
        """The greatest difference of a loss, and that of all gradients over their norm."""
        pairs = [
            (torch.zeros_like(theirs) if mine is None else mine, theirs)
            for own, others in zip(self.gradients, other.gradients, strict=True)
            for mine, theirs in ((own[name], others[name]) for name in others)
            if theirs is not None
        ]
        off = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
        norm = torch.cat([b.flatten() for _, b in pairs]).norm()
        return float((self.losses - other.losses).abs().max()), float(off / norm)


def gradients(modules: list[Any]) -> list[dict[str, Tensor | None]]:
    return [{name: p.grad for name, p in module.named_parameters()} for module in modules]


def serial(stages: list[Stage], data: Data) -> Outcome:
    """The same microbatches, one after the other, through copies of the stages that replay noted masks."""
    stages = copy.deepcopy(stages)
    for stage in stages:
        stage.replay, stage.recompute = True, "no"
    losses = []
    batches = (batch.split(data.size) for batch in (data.tokens, data.numbers, data.targets))
    for tokens, number, targets in zip(*batches, strict=True):
        values = (tokens, number)
        for stage in stages:
            values = stage(*values)
        loss = criterion(*values, targets)
        loss.backward()
        losses.append(loss.detach())
    return Outcome(torch.stack(losses), gradients(stages))


def piped(
    schedule: dp.Schedule,
    stages: list[Stage],
    data: Data,
    *,
    interleaved: bool = False,
    make: Callable[..., dp.Pipeline] | None = None,
    **options: Any,
) -> Outcome:
    """One step under ``schedule``, each rank with copies of its stages."""

    def rank_main(group: dp.LocalGroup) -> tuple[Tensor | None, dict[int, dict[str, Tensor | None]]]:
        held = schedule.stages_of(group.rank())
        modules = [copy.deepcopy(stages[stage]) for stage in held]
        pipe = make(modules) if make else dp.Pipeline(modules, schedule, **options)
        inputs, labels = step_arguments(schedule, data, pipe.rank)
        loss, _ = pipe.step(*inputs, num_chunks=schedule.num_microbatches, criterion=criterion, labels=labels)
        pipe.sync_gradients()
        return loss, dict(zip(held, gradients(modules), strict=True))

    results = dp.run_local(rank_main, schedule.num_ranks, interleaved=interleaved, threads_per_rank=1)
    by_stage = {stage: grads for _, held in results for stage, grads in held.items()}
    return Outcome(
        losses_in_order(schedule, [loss for loss, _ in results]),
        [by_stage[stage] for stage in range(schedule.num_stages)],
    )


def step_arguments(
    schedule: dp.Schedule, data: Data, rank: int
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Inputs where stage 0 is, labels where the last stage is, None elsewhere."""
    last = schedule.num_stages - 1
    inputs = (data.at(schedule, rank, 0, data.tokens), data.at(schedule, rank, 0, data.numbers))
    return inputs, (data.at(schedule, rank, last, data.targets),)


def losses_in_order(schedule: dp.Schedule, by_rank: list[Tensor | None]) -> Tensor:
    """The losses of all microbatches, from the ranks where they left the pipeline."""
    losses: list[Tensor] = [torch.tensor(torch.nan)] * schedule.num_microbatches
    left = [iter(()) if loss is None else iter(loss) for loss in by_rank]
    for m in range(schedule.num_microbatches):
        losses[m] = next(left[schedule.rank_of(schedule.num_stages - 1, m)])
    return torch.stack(losses)
