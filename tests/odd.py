"""Stages that hand over odd tensors, and running them serially and in a pipeline: no tests here.

Each stage has an fp64 layer, whose gradients are compared, and takes what the one before it returned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from processes import run_processes
from torch import Tensor, nn

import dualpipe_rs as dp

WIDTH, SIZE = 6, 2


class Odd(nn.Module):
    """Stage ``index``; the first gets (x, number), ``number`` saying of each row its microbatch."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        # Ranks that are threads share torch's own generator.
        generator = torch.Generator().manual_seed(11 + index)
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-0.5, 0.5, generator=generator)

    def apply_layer(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class ManyTypes(Odd):
    """Every kind of type beside fp64; some collect gradients, some cannot."""

    def forward(self, x, number, half=None, brain=None, wide=None, *rest):
        if self.index:
            ids, short, byte, flags = rest
            x = x + half.double() + brain.double() + wide.real - wide.imag
            x = x * (1 + ids + short.long() + byte.long()).double().unsqueeze(1) * flags
        x = self.apply_layer(x)
        given = (number, number.int(), number.to(torch.uint8), x > 0)
        return x, number, x.half(), x.bfloat16(), torch.complex(x, 2 * x), *given


class NoneInPlaces(Odd):
    """None first, last or in between, by stage and microbatch."""

    def forward(self, *values):
        x, number = (v for v in values if v is not None)
        x = self.apply_layer(x)
        odd = (self.index + int(number[0])) % 3
        return [(None, x, number, None), (x, None, None, number), (None, x, None, number)][odd]


class OddShapes(Odd):
    """Without dimensions, empty, with gaps, transposed, expanded."""

    def forward(self, x, number, scalar=None, empty=None, gaps=None, turned=None, expanded=None):
        if self.index:
            assert empty.shape == (0, 3, WIDTH)
            assert expanded.shape == (4, *x.shape)
            x = x + scalar + empty.sum() + turned.T + expanded.mean(0)
            x = torch.cat([x[:, ::2] * gaps, x[:, 1::2]], 1)
        x = self.apply_layer(x)
        empty = x.new_zeros(0, 3, 1) * x.sum()
        wide = x.repeat(1, 2)[:, WIDTH // 2 :][:, ::3]
        assert not wide.is_contiguous()
        expanded = x.mean().expand(4, *x.shape)
        return x, number, x.mean(), empty.expand(0, 3, WIDTH), wide[:, :3], x.T, expanded


class TooManyForAHeader(Odd):
    """Thirteen tensors of four dimensions, one at a time with and without gradient."""

    def forward(self, number, *parts):
        x = torch.cat([p.double().flatten(1) for p in parts], 1)[:, :WIDTH] if self.index else parts[0]
        x = self.apply_layer(x)
        parts = [x[:, i % WIDTH].view(-1, 1, 1, 1) for i in range(12)]
        return number, *(p if i % 3 else p.detach() for i, p in enumerate(parts))


class LazySigns(Odd):
    """Views that are to be conjugated or negated when they are read."""

    def forward(self, x, number, conjugate=None, negative=None):
        if self.index:
            x = x + conjugate.imag + 2 * negative
        z = torch.complex(self.apply_layer(x), 3 * x).conj()
        assert z.is_conj()
        assert z.imag.is_neg()
        return z.real.contiguous(), number, z, z.imag


class LengthsDiffer(Odd):
    """Rows are repeated, more by each stage and microbatch."""

    def forward(self, x, number):
        x = self.apply_layer(x)
        return torch.cat([x, *(x[:1] * k for k in range(1 + int(number[0]) % 3))]), number


class Unused(Odd):
    """What the next stage makes nothing of: always, and for odd microbatches alone."""

    def forward(self, x, number, never=None, sometimes=None):
        x = self.apply_layer(x)
        if self.index and int(number[0]) % 2:
            x = x * sometimes
        return x, number, 2 * x, x + 1


class Switched(Odd):
    """Whether it makes something of what it is given last is switched from step to step."""

    uses = True

    def forward(self, x, number, sometimes=None):
        x = self.apply_layer(x)
        if self.index and self.uses:
            x = x * sometimes
        return x, number, x + 1


class PartlyFrozen(Odd):
    """The first stages and one in between are not trained; the one in between passes gradients on."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.layer.requires_grad_(index not in (0, 2))

    def forward(self, x, number):
        return self.apply_layer(x), number


class Twice(Odd):
    """One tensor handed over under two numbers, and inputs handed on as they are."""

    def forward(self, x, number, again=None, first=None):
        x = self.apply_layer(x if again is None else x * again)
        return x, number, x, x if first is None else first


MODELS: dict[str, type[Odd]] = {
    cls.__name__: cls
    for cls in (
        *(ManyTypes, NoneInPlaces, OddShapes, TooManyForAHeader, LazySigns),
        *(LengthsDiffer, Unused, Switched, PartlyFrozen, Twice),
    )
}


def criterion(*values: Any) -> Tensor:
    """The last value is a microbatch's target."""
    *outputs, target = values
    floating = [v.double() for v in outputs if v is not None and v.is_floating_point() and v.requires_grad]
    return sum((v.square().sum() for v in floating), target.sum()) / 7


def stages_of(name: str, count: int) -> list[Odd]:
    return [MODELS[name](index) for index in range(count)]


@dataclass
class Data:
    """A whole batch, in the order of its microbatches."""

    x: Tensor
    number: Tensor
    target: Tensor
    size: int

    @property
    def rows(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return list(zip(*(t.split(self.size) for t in (self.x, self.number, self.target)), strict=True))


def data_of(microbatches: int, seed: int = 2, size: int = SIZE) -> Data:
    generator = torch.Generator().manual_seed(seed)
    rows = microbatches * size
    x, target = (torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return Data(x, torch.arange(microbatches).repeat_interleave(size), target, size)


def first_arguments(name: str, x: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    return (number, x) if name == "TooManyForAHeader" else (x, number)


@dataclass
class Outcome:
    """Losses in order, gradients by stage and name, and what inference returns by microbatch."""

    losses: Tensor
    gradients: dict[int, dict[str, Tensor | None]]

    def off(self, expected: Outcome) -> float:
        """The greatest relative difference, of losses and of all gradients together."""
        theirs = {(s, n): g for s, named in expected.gradients.items() for n, g in named.items()}
        mine = {(s, n): g for s, named in self.gradients.items() for n, g in named.items()}
        assert mine.keys() == theirs.keys()
        assert [k for k, g in mine.items() if g is None] == [k for k, g in theirs.items() if g is None]
        keys = [key for key, g in theirs.items() if g is not None]
        apart = torch.stack([(mine[k] - theirs[k]).norm() for k in keys]).norm()
        norm = torch.stack([theirs[k].norm() for k in keys]).norm()
        losses = (self.losses - expected.losses).abs().max() / expected.losses.abs().max()
        return max(float(apart / norm), float(losses))


def gradients(modules: dict[int, nn.Module]) -> dict[int, dict[str, Tensor | None]]:
    return {
        stage: {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
        for stage, module in modules.items()
    }


def serially(name: str, count: int, data: Data) -> Outcome:
    stages = stages_of(name, count)
    losses = []
    for x, number, target in data.rows:
        values: Any = first_arguments(name, x, number)
        for stage in stages:
            values = stage(*values)
        losses.append(criterion(*values, target))
        losses[-1].backward()
    return Outcome(torch.stack(losses).detach(), gradients(dict(enumerate(stages))))


def inferred(rank: Rank, data: Data) -> float | None:
    """The greatest difference of what inference returns on a rank from what serial forwards return."""
    inputs, _ = rank.arguments(data)
    with torch.no_grad():
        _, found = rank.pipe.step(*inputs, num_chunks=rank.schedule.num_microbatches, return_outputs=True)
        expected = []
        for m, (x, number, _) in enumerate(data.rows):
            values: Any = first_arguments(rank.name, x, number)
            for stage in stages_of(rank.name, rank.schedule.num_stages):
                values = stage(*values)
            if rank.schedule.rank_of(rank.schedule.num_stages - 1, m) == rank.pipe.rank:
                expected.append(values)
    assert (found is None) == (not expected)
    if found is None:
        return None
    pairs = list(zip(found, dp.utils.gather(expected, 0), strict=True))
    for mine, theirs in pairs:
        assert theirs is None or (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    return max(float((a.cfloat() - b.cfloat()).abs().max()) for a, b in pairs if b is not None and b.numel())


def on_ranks(where: str, ranks: int, fn: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``fn(group, *arguments)`` on each rank, threads or processes, where the group is None; by rank."""
    if where == "threads":
        return dp.run_local(lambda group: fn(group, *arguments), ranks, threads_per_rank=1)
    return run_processes(ranks, _without_group, fn, *arguments)


def _without_group(rank: int, fn: Callable[..., Any], *arguments: Any) -> Any:
    return fn(None, *arguments)


@dataclass
class Rank:
    """One rank's pipeline of a model."""

    name: str
    schedule: dp.Schedule
    pipe: dp.Pipeline
    modules: dict[int, Odd]

    def switch(self, uses: bool) -> None:
        for module in self.modules.values():
            module.uses = uses

    def arguments(self, data: Data) -> tuple[tuple[Tensor, Tensor] | tuple[()], Tensor | None]:
        """What enters at this rank, and the targets of what leaves."""
        rows, of = data.rows, self.schedule.rank_of
        enters = [r for m, r in enumerate(rows) if of(0, m) == self.pipe.rank]
        leaves = [r for m, r in enumerate(rows) if of(self.schedule.num_stages - 1, m) == self.pipe.rank]
        inputs = ()
        if enters:
            inputs = first_arguments(
                self.name, torch.cat([r[0] for r in enters]), torch.cat([r[1] for r in enters])
            )
        return inputs, torch.cat([r[2] for r in leaves]) if leaves else None

    def step(self, data: Data, loss: Any = criterion, **options: Any) -> Any:
        inputs, target = self.arguments(data)
        return self.pipe.step(
            *inputs,
            criterion=loss,
            labels=target,
            gather_loss=True,
            num_chunks=self.schedule.num_microbatches,
            **options,
        )

    def train(self, data: Data, **options: Any) -> Outcome:
        self.pipe.zero_grad()
        losses, _ = self.step(data, **options)
        self.pipe.sync_gradients()
        return Outcome(losses, gradients(self.modules))


def rank_of(group: Any, name: str, schedule: dp.Schedule, switch: bool = True, **options: Any) -> Rank:
    """One rank of ``group``; of all processes where it is None."""
    stages = stages_of(name, schedule.num_stages)
    rank = options.pop("rank", None)
    if rank is None:
        rank = group.rank() if group is not None else torch.distributed.get_rank()
    modules = {stage: copy.deepcopy(stages[stage]) for stage in schedule.stages_of(rank)}
    options = {"timeout": 30.0, **options}
    pipe = dp.Pipeline(list(modules.values()), schedule, process_group=group, **options)
    made = Rank(name, schedule, pipe, modules)
    made.switch(switch)
    return made


def together(outcomes: list[Outcome]) -> Outcome:
    """All ranks' outcomes as one; copies of a stage have been made equal."""
    held = {stage: named for outcome in outcomes for stage, named in outcome.gradients.items()}
    return Outcome(outcomes[0].losses, dict(sorted(held.items())))
