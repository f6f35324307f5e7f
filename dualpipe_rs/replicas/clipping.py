"""The norm of the whole model's gradient, each parameter counted once, and clipping by it.

It follows ``torch.nn.utils.clip_grad_norm_``. Counting both copies of each stage under DualPipe would give √2
too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dualpipe_rs.errors import UsageError
from dualpipe_rs.groups import Group
from dualpipe_rs.replicas.layout import Layout


@torch.no_grad()
def clip_grad_norm_(
    group: Group, layout: Layout, max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """See :meth:`dualpipe_rs.Pipeline.clip_grad_norm_`."""
    max_norm, norm_type = _number("max_norm", max_norm), _number("norm_type", norm_type)
    several = [held for of_key in layout.held().values() for held in of_key]
    counted = [held.parameters[0].grad for held in several if layout.owns(held)]
    norms = [_norm(grad, norm_type) for grad in counted if grad is not None]
    own = _together([norm.to(norms[0].device) for norm in norms], norm_type).item() if norms else None
    told = [norm for norm in group.exchange(own, "adds up the gradient's norm") if norm is not None]
    total = _together([torch.tensor(norm, dtype=torch.float64) for norm in told or [0.0]], norm_type)
    if error_if_nonfinite and not bool(torch.isfinite(total)):
        raise RuntimeError(
            f"the total norm of order {norm_type} of the gradients is {float(total)}, so they cannot be "
            "clipped; to scale them by it all the same, set error_if_nonfinite=False"
        )
    factor = min(1.0, max_norm / (float(total) + 1e-6)) if not total.isnan() else float("nan")
    grads = [p.grad for held in several for p in held.parameters if p.grad is not None]
    for grad in grads:
        grad.mul_(factor)
    return total.to(grads[0].device) if grads else total


def _norm(grad: Tensor, norm_type: float) -> Tensor:
    """One gradient's norm, of a DTensor over all its shards."""
    norm: Any = torch.linalg.vector_norm(grad, norm_type)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole.to(torch.float64)


def _together(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(list(norms)), norm_type)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; it is a number") from None
