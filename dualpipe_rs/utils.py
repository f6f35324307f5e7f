"""The helpers of DeepSeek's ``dualpipe.utils``, under the names that scripts import.

They cut a batch into microbatches, put outputs together again and run a backward. The weight-gradient
store is :mod:`dualpipe_rs.weight_grad`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dualpipe_rs.errors import UsageError
from dualpipe_rs.weight_grad import WeightGradStore

__all__ = ["WeightGradStore", "cat_tensor", "chunk_tensor", "gather", "run_backward", "scatter"]

Tensors = Tensor | Sequence[Tensor | None]


def run_backward(tensors: Sequence[Tensor], grad_tensors: Sequence[Tensor | None]) -> None:
    """Adds to ``.grad`` of every leaf that ``tensors`` depend on, given the gradients of ``tensors``.

    Args:
        tensors: outputs of a forward.
        grad_tensors: their gradients, each of its output's shape; ``None`` for a scalar output.

    The engine itself, which checks shapes, and not ``torch.autograd.backward``, which would take as long
    again on a small stage.
    """
    grads = tuple(
        torch.ones_like(t) if g is None and t.numel() == 1 else g
        for t, g in zip(tensors, grad_tensors, strict=True)
    )
    torch.autograd.Variable._execution_engine.run_backward(
        tuple(tensors),
        grads,
        keep_graph=False,
        create_graph=False,
        allow_unreachable=True,
        accumulate_grad=True,
    )


def chunk_tensor(x: Tensor | None, chunks: int, dim: int) -> Sequence[Tensor | None]:
    """Cuts ``x`` into ``chunks`` views along ``dim``; ``None`` gives that many ``None``."""
    return [None] * chunks if x is None else x.tensor_split(chunks, dim=dim)


def cat_tensor(x: Sequence[Tensor | None], dim: int) -> Tensor | None:
    """Joins what :func:`chunk_tensor` cut; ``None`` where the parts are ``None``. Scalars are stacked."""
    parts = [part for part in x if part is not None]
    if not parts:
        return None
    if parts[0].dim() == 0:
        return torch.stack(parts)
    return parts[0] if len(x) == 1 else torch.cat(parts, dim=dim)


def scatter(
    inputs: Tensors, chunks: int, dim: int, *, what: str = "argument", even: bool = True
) -> list[tuple[Tensor | None, ...]]:
    """Cuts each tensor into ``chunks`` along ``dim``: a tuple of arguments for each microbatch.

    Args:
        what: what the error calls an input.
        even: refuse parts of different sizes; else the first ones are larger by one, and parts may be empty.

    Raises:
        UsageError: ``chunks`` is not positive, an input is no tensor or ``None``, or its size along
            ``dim`` is no multiple of ``chunks``, where they are to be even.
    """
    if chunks < 1:
        raise UsageError(f"a batch cannot be cut into {chunks} microbatches; it takes at least 1")
    batch = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for index, x in enumerate(batch):
        _check_divides(f"{what} {index}", x, chunks if even else 1, dim)
    if not batch:
        return [()] * chunks
    return list(zip(*(chunk_tensor(x, chunks, dim) for x in batch), strict=True))


def _check_divides(name: str, x: Any, chunks: int, dim: int) -> None:
    if x is None:
        return
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} is of type {type(x).__name__}; a batch is made of tensors and None")
    if not -x.dim() <= dim < x.dim():
        raise UsageError(f"{name} has {x.dim()} dimensions, so it cannot be cut along batch_dim={dim}")
    if x.shape[dim] % chunks or x.shape[dim] == 0:
        nearest = max(1, round(x.shape[dim] / chunks)) * chunks
        raise UsageError(
            f"{name} has size {x.shape[dim]} along dimension {dim}, which does not divide into "
            f"{chunks} microbatches of equal size; the nearest size that does is {nearest}"
        )


def gather(micro_outputs: Sequence[Tensors], dim: int) -> tuple[Tensor | None, ...]:
    """Joins the outputs of all microbatches along ``dim``: one tensor for each output of the model."""
    outputs = [(out,) if isinstance(out, Tensor) else tuple(out) for out in micro_outputs]
    return tuple(cat_tensor(parts, dim) for parts in zip(*outputs, strict=True))
