"""ZeRO-1 over the holders of each parameter: one of them has its optimizer state and sends on the update.

Gradients and parameters stay whole on every holder; nothing here shards them (that would be ZeRO-2 and -3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dualpipe_rs.errors import UsageError
from dualpipe_rs.replicas.copies import Held, shard
from dualpipe_rs.replicas.holders import Key
from dualpipe_rs.replicas.layout import Layout

#: Takes this rank's share as (name, parameter) and returns parameter groups of it, as optimizers take them.
ParamGroups = Callable[[list[tuple[str, nn.Parameter]]], Iterable[dict[str, Any]]]

Shares = dict[Key, list[list[Held]]]  # by holder: what it steps


def make(layout: Layout, optimizer_class: Any, param_groups: ParamGroups | None, options: Any) -> Any:
    """See :meth:`dualpipe_rs.Pipeline.zero1`."""
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise UsageError(f"optimizer_class is {optimizer_class!r}; give a class such as torch.optim.AdamW")
    own = [
        (f"{held.places[0][0]}.{held.places[0][1]}", held.parameters[0])
        for key, by_holder in shares(layout).items()
        for held in by_holder[layout.holders.index(key)]
    ]
    groups: list[dict[str, Any]] = [{"params": [parameter for _, parameter in own]}]
    if param_groups is not None:
        groups = _checked(param_groups(own), own)
    optimizer = optimizer_class(groups, **options)
    optimizer.register_step_post_hook(lambda *_: hand_out(layout))
    optimizer.__dict__["zero_grad"] = MethodType(_zero_grad_of(layout), optimizer)
    return optimizer


def shares(layout: Layout) -> Shares:
    """Which holder steps which parameters: the same answer on all of them."""
    found: Shares = {}
    for key, several in layout.held().items():
        trained = [held for held in several if held.trained]
        count = len(layout.holders.ranks(key))
        if layout.replicas == 1:
            found[key] = [[h for h in trained if layout.owner(h) == key[i]] for i in range(count)]
        else:
            found[key] = _by_size(trained, count)
    return found


def _by_size(several: Sequence[Held], count: int) -> list[list[Held]]:
    """The largest first, each to the holder with the least so far."""
    parts: list[list[Held]] = [[] for _ in range(count)]
    sizes = [0] * count
    for held in sorted(several, key=lambda h: -h.parameters[0].numel()):
        least = sizes.index(min(sizes))
        parts[least].append(held)
        sizes[least] += held.parameters[0].numel()
    return parts


@torch.no_grad()
def hand_out(layout: Layout) -> None:
    """Sends what each holder has stepped to the others, and to this rank's further copies. Collective."""
    found = shares(layout)
    if layout.shared:
        plan = {
            key: [(i, [shard(h.parameters[0]) for h in part]) for i, part in enumerate(by_holder)]
            for key, by_holder in found.items()
            if len(by_holder) > 1
        }
        layout.holders.spread(plan, "hands out the parameters that its optimizer stepped")
    for by_holder in found.values():
        for held in (held for part in by_holder for held in part):
            for other in held.parameters[1:]:
                shard(other).copy_(shard(held.parameters[0]))


def _zero_grad_of(layout: Layout) -> Callable[..., None]:
    """The optimizer knows its share alone; the other gradients would pile up from step to step."""

    def zero_grad(optimizer: Optimizer, set_to_none: bool = True) -> None:
        """Clears the gradients of all this rank's parameters, also of those that other ranks step."""
        type(optimizer).zero_grad(optimizer, set_to_none)
        for several in layout.held().values():
            for parameter in (parameter for held in several for parameter in held.parameters):
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.detach_().zero_()

    return zero_grad


def _checked(groups: Iterable[Any], own: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Groups of this rank's share alone, at least one: torch refuses none, and a rank may own nothing."""
    share = {id(parameter) for _, parameter in own}
    checked = []
    for group in groups:
        if not isinstance(group, dict) or "params" not in group:
            raise UsageError("param_groups returns dictionaries with 'params', as torch.optim takes them")
        params = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        if any(id(parameter) not in share for parameter in params):
            raise UsageError(
                "param_groups returned a parameter that another rank steps; it makes groups of the "
                "parameters that it is given"
            )
        checked.append({**group, "params": params})
    return checked or [{"params": []}]
