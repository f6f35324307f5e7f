"""Models, and training them over several steps serially and in a pipeline: no tests here.

Everything is in fp64, so that what should be equal is equal to rounding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualpipe_rs as dp

WIDTH, VOCABULARY, SIZE = 6, 9, 2


def stages_of(num_stages: int, *, tied: bool = False, seed: int = 5) -> list[nn.Module]:
    """An embedding, a layer and an activation a stage, and a head, tied to the embedding if asked for."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Embedding(VOCABULARY, WIDTH)]
    for _ in range(num_stages):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    layers.append(head)
    if tied:
        head.weight = layers[0].weight
    costs = [0, *(1 for _ in layers[1:-1]), 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return list(dp.partition(nn.Sequential(*layers).double(), num_stages, costs=costs))


def criterion(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


def batches(schedule: dp.Schedule, count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shape = (schedule.num_microbatches * SIZE,)
    return [
        (
            torch.randint(VOCABULARY, shape, generator=generator),
            torch.randint(VOCABULARY, shape, generator=generator),
        )
        for _ in range(count)
    ]


def part(schedule: dp.Schedule, rank: int, stage: int, batch: Tensor) -> Tensor | None:
    """The rows of the microbatches that pass ``stage`` on ``rank``."""
    here = [x for m, x in enumerate(batch.split(SIZE)) if schedule.rank_of(stage, m) == rank]
    return torch.cat(here) if here else None


def piped_step(pipe: dp.Pipeline, schedule: dp.Schedule, batch: tuple[Tensor, Tensor], loss: Any) -> Any:
    x = part(schedule, pipe.rank, 0, batch[0])
    y = part(schedule, pipe.rank, schedule.num_stages - 1, batch[1])
    return pipe.step(x, num_chunks=schedule.num_microbatches, criterion=loss, labels=(y,))


@dataclass
class Run:
    """What training left: parameters and gradients by stage and name, and the norms on the way."""

    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    norms: list[Tensor] = field(default_factory=list)


def state(modules: dict[int, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    named = {
        f"{stage}.{name}": p
        for stage, module in modules.items()
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    return (
        {name: p.detach().clone() for name, p in named.items()},
        {name: p.grad if p.grad is None else p.grad.clone() for name, p in named.items()},
    )


@dataclass
class Recipe:
    """How to train.

    Attributes:
        optimizer: the class and its options; ``zero1`` has it made by ``pipe.zero1``.
        accumulate: how many steps' gradients are one optimizer step's.
        clip: the greatest norm and its order.
        scheduler: makes a scheduler of the learning rate for an optimizer.
    """

    steps: int = 1
    optimizer: tuple[Any, dict[str, Any]] | None = None
    zero1: bool = False
    accumulate: int = 1
    clip: tuple[float, float] | None = None
    scheduler: Callable[[Any], Any] | None = None
    check_equal: bool = True

    def run(
        self, parameters: list[Any], step: Callable[[int], None], pipe: dp.Pipeline | None
    ) -> list[Tensor]:
        """Trains; returns the norms."""
        optimizer = None
        if self.optimizer is not None:
            cls, options = self.optimizer
            shared = pipe is not None and self.zero1
            optimizer = pipe.zero1(cls, **options) if shared else cls(parameters, **options)
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        norms = []
        for index in range(self.steps):
            if optimizer is not None:
                optimizer.zero_grad()
            for turn in range(self.accumulate):
                step(index * self.accumulate + turn)
            if pipe is not None:
                pipe.sync_gradients()
            if self.clip is not None:
                clip = torch.nn.utils.clip_grad_norm_
                norms.append(
                    clip(parameters, *self.clip) if pipe is None else pipe.clip_grad_norm_(*self.clip)
                )
            if optimizer is not None:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if pipe is not None and self.check_equal:
                pipe.assert_replicas_equal()
        return norms


def serially(schedule: dp.Schedule, stages: list[nn.Module], recipe: Recipe, replicas: int = 1) -> Run:
    """On one whole model, over the batches of all replicas, averaged."""
    model = copy.deepcopy(nn.ModuleList(stages))
    data = [batches(schedule, recipe.steps * recipe.accumulate, seed=1 + r) for r in range(replicas)]

    def step(index: int) -> None:
        for of_replica in data:
            x, y = of_replica[index]
            for xs, ys in zip(x.split(SIZE), y.split(SIZE), strict=True):
                value = xs
                for stage in model:
                    value = stage(value)
                (criterion(value, ys) / replicas).backward()

    norms = recipe.run(list(model.parameters()), step, None)
    return Run(*state(dict(enumerate(model))), norms)


def rank_run(
    group: Any,
    schedule: dp.Schedule,
    stages: list[nn.Module],
    recipe: Recipe,
    *,
    replica: int = 0,
    **options: Any,
) -> Run:
    """One rank of a pipeline, with copies of its stages."""
    held = schedule.stages_of(group.rank())
    wrap = options.pop("wrap", lambda module: module)
    tied = options.pop("tied", None)
    modules = {stage: copy.deepcopy(stages[stage]) for stage in held}
    if tied is not None:
        options["tied"] = tied(modules)
    pipe = dp.Pipeline(
        [wrap(module) for module in modules.values()], schedule, process_group=group, **options
    )
    data = batches(schedule, recipe.steps * recipe.accumulate, seed=1 + replica)
    norms = recipe.run(
        list(pipe.parameters()), lambda index: piped_step(pipe, schedule, data[index], criterion), pipe
    )
    return Run(*state(modules), norms)


def off(found: Run, expected: Run) -> float:
    """The greatest relative difference of parameters, gradients and norms."""
    worst = 0.0
    for name, value in found.parameters.items():
        worst = max(
            worst, float((value - expected.parameters[name]).norm() / expected.parameters[name].norm())
        )
    for name, grad in found.gradients.items():
        reference = expected.gradients[name]
        assert (grad is None) == (reference is None), name
        if grad is not None and reference is not None:
            worst = max(worst, float((grad - reference).norm() / reference.norm()))
    for norm, reference in zip(found.norms, expected.norms, strict=True):
        worst = max(worst, float(abs(norm - reference) / reference))
    return worst
