"""A model, its optimizer and a few steps of training, for the tests of checkpoints: no tests here."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualpipe_rs as dp

WIDTH, VOCABULARY, LENGTH, MICROBATCHES, SIZE = 8, 11, 5, 8, 2
#: Placements of the same model: family, ranks.
PLACEMENTS = [("dualpipev", 2), ("1f1b", 2), ("interleaved", 2), ("dualpipe", 2), ("zb-v", 1)]


class Block(nn.Module):
    """A residual block with a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("gain", torch.rand(WIDTH))
        self.register_buffer("passing", torch.ones(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)))) * self.gain * self.passing


def build(seed: int = 0, *, tied: bool = False) -> nn.Sequential:
    """A small model; with ``tied`` its last layer has the weight of its first."""
    torch.manual_seed(seed)
    blocks = (Block() for _ in range(6))
    embedding, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
    if tied:
        head.weight = embedding.weight
    return nn.Sequential(embedding, *blocks, nn.LayerNorm(WIDTH), head).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of a step, each of shape (sequences, length)."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (MICROBATCHES * SIZE, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def criterion(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / MICROBATCHES


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    """Two groups: matrices with weight decay, all else without and with a rate of its own."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 3e-3}]
    return torch.optim.AdamW(groups, lr=1e-2)


def plain(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def sharded(module: Any) -> torch.optim.Optimizer:
    """ZeRO-1 where there are several ranks to share among."""
    return module.zero1(torch.optim.AdamW, lr=1e-2) if isinstance(module, dp.Pipeline) else plain(module)


def make_pipe(
    model: nn.Sequential, family: str, group: Any, **options: Any
) -> tuple[dp.Pipeline, dp.Schedule]:
    schedule = dp.schedule(family, group.size(), MICROBATCHES)
    stages = dp.partition(copy.deepcopy(model), schedule.num_stages)
    held = [stages[stage] for stage in schedule.stages_of(group.rank())]
    return dp.Pipeline(held, schedule, process_group=group, **options), schedule


def at(schedule: dp.Schedule, rank: int, stage: int, whole: Tensor) -> Tensor | None:
    parts = whole.split(SIZE)
    here = [part for m, part in enumerate(parts) if schedule.rank_of(stage, m) == rank]
    return torch.cat(here) if here else None


def train_pipe(
    pipe: dp.Pipeline, schedule: dp.Schedule, optimizer: Any, scheduler: Any, steps: range
) -> list[float]:
    """Trains, and returns the loss of each step: the sum over all microbatches."""
    losses = []
    for step in steps:
        tokens, targets = batch(step)
        loss, _ = pipe.step(
            at(schedule, pipe.rank, 0, tokens),
            criterion=criterion,
            labels=at(schedule, pipe.rank, schedule.num_stages - 1, targets),
        )
        pipe.sync_gradients()
        shares = pipe.group.exchange(None if loss is None else loss.sum().item())
        losses.append(sum(share for share in shares if share is not None))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return losses


def train_serially(model: nn.Module, optimizer: Any, scheduler: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        parts = (part.split(SIZE) for part in batch(step))
        loss = 0.0
        for tokens, targets in zip(*parts, strict=True):
            part = criterion(model(tokens), targets)
            part.backward()
            loss += part.item()
        losses.append(loss)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return losses


def schedule_rate(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loaded(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def checkpoint_of(pipe: dp.Pipeline, optimizer: Any, scheduler: Any) -> bytes:
    return saved(
        {
            "model": pipe.state_dict(),
            "optimizer": pipe.optimizer_state_dict(optimizer),
            "scheduler": scheduler.state_dict(),
        }
    )


def begin_pipe(
    group: Any,
    family: str,
    model: nn.Sequential,
    before: range,
    after: range,
    make: Callable[[Any], Any],
    **options: Any,
) -> tuple[bytes, list[float]]:
    """A checkpoint after the first steps, and the losses of the others in the same run."""
    pipe, schedule = make_pipe(model, family, group, **options)
    optimizer = make(pipe)
    scheduler = schedule_rate(optimizer)
    train_pipe(pipe, schedule, optimizer, scheduler, before)
    content = checkpoint_of(pipe, optimizer, scheduler)
    return content, train_pipe(pipe, schedule, optimizer, scheduler, after)


def resume_pipe(
    group: Any,
    family: str,
    content: bytes,
    steps: range,
    make: Callable[[Any], Any] = adamw,
    *,
    tied: bool = False,
) -> tuple[bytes, list[float]]:
    """A model of other values, an optimizer without a state: both from the checkpoint.

    Returns a checkpoint after the steps, and their losses.
    """
    pipe, schedule = make_pipe(build(seed=1, tied=tied), family, group)
    optimizer = make(pipe)
    scheduler = schedule_rate(optimizer)
    state = loaded(content)
    pipe.load_state_dict(state["model"])
    pipe.load_optimizer_state_dict(optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    losses = train_pipe(pipe, schedule, optimizer, scheduler, steps)
    return checkpoint_of(pipe, optimizer, scheduler), losses


def resume_serially(
    content: bytes, steps: range, make: Callable[[Any], Any] = adamw, *, tied: bool = False
) -> list[float]:
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    model = build(seed=1, tied=tied)
    optimizer = make(model)
    scheduler = schedule_rate(optimizer)
    state = loaded(content)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return train_serially(model, optimizer, scheduler, steps)
