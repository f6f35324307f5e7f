"""A rank's share of a step: its microbatches cut from the batch, checked before any work; and the results.

It knows which rank takes and gives what; it computes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dualpipe_rs._core import Schedule
from dualpipe_rs.errors import UsageError
from dualpipe_rs.identity import number_of
from dualpipe_rs.utils import Tensors, gather, scatter

#: What travels between stages: the outputs of a stage, or the gradients for its inputs.
Values = tuple[Tensor | None, ...]
Criterion = Callable[..., Tensor]


@dataclass
class Batch:
    """A rank's share of a step: microbatches by their index."""

    inputs: Mapping[int, Values] = field(default_factory=dict)
    labels: Mapping[int, Values] = field(default_factory=dict)
    #: Keyword arguments of the rank's stages.
    keywords: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    #: Where shapes may differ from step to step, a number that tells them; else 0.
    signature: int = 0


def share(
    schedule: Schedule,
    rank: int,
    inputs: Sequence[Tensor | None],
    labels: Tensors | None,
    criterion: Criterion | None,
    keywords: Mapping[str, Any],
    *,
    training: bool,
    dim: int,
) -> Batch:
    """What ``rank`` takes of the batch: inputs for stage 0 and labels for the last stage, where it has them.

    In training all parts are of one size; in inference the last batch of a data set need not divide.

    Raises:
        UsageError: inputs, labels or a criterion are missing, or a tensor cannot be cut along ``dim``.
    """
    entering = microbatches_at(schedule, 0, rank)
    leaving = microbatches_at(schedule, schedule.num_stages - 1, rank)
    batch = Batch()
    if entering:
        if all(x is None for x in inputs):
            raise UsageError(f"rank {rank} holds stage 0 and was given no inputs; call step(x, ...) there")
        batch.inputs = _cut(inputs, entering, dim, "argument", even=training)
    if leaving and criterion is None and training:
        raise UsageError(
            f"rank {rank} holds the last stage and was given no criterion; give step() a criterion to "
            "train, or call it under torch.no_grad() for inference"
        )
    if leaving and criterion is not None:
        targets = as_sequence(labels)
        _check_labels(criterion, targets, rank)
        batch.labels = _cut(targets, leaving, dim, "label", even=training)
    if keywords:
        batch.keywords = _keywords(keywords, schedule.num_microbatches, dim, even=training)
    if not training:
        batch.signature = _signature([*inputs, *keywords.values()])
    return batch


def gathered(
    losses: Mapping[int, Tensor], outputs: Mapping[int, Values], dim: int
) -> tuple[Tensor | None, Any]:
    """The losses stacked in the order of their microbatches, and the outputs joined along ``dim``."""
    loss = torch.stack([losses[m].reshape(()) for m in sorted(losses)]) if losses else None
    if not outputs:
        return loss, None
    joined = gather([outputs[m] for m in sorted(outputs)], dim)
    return loss, joined[0] if len(joined) == 1 else joined


def microbatches_at(schedule: Schedule, stage: int, rank: int) -> list[int]:
    """The microbatches that a rank computes a stage for."""
    return [m for m in range(schedule.num_microbatches) if schedule.rank_of(stage, m) == rank]


def _cut(
    batch: Sequence[Tensor | None], microbatches: list[int], dim: int, what: str, *, even: bool
) -> dict[int, Values]:
    parts = scatter(batch, len(microbatches), dim, what=what, even=even)
    return dict(zip(microbatches, parts, strict=True))


def _keywords(
    keywords: Mapping[str, Any], microbatches: int, dim: int, *, even: bool
) -> dict[int, dict[str, Any]]:
    """Tensors are cut; all else is the same for each microbatch."""
    parts = {
        name: [part for (part,) in scatter(value, microbatches, dim, what=f"{name}, argument", even=even)]
        if isinstance(value, Tensor) and value.dim()
        else [value] * microbatches
        for name, value in keywords.items()
    }
    return {m: {name: part[m] for name, part in parts.items()} for m in range(microbatches)}


def _signature(values: Sequence[Any]) -> int:
    """A number that tells the types and shapes of a batch, and what else may set shapes."""
    return number_of(repr([_what_sets_shapes(value) for value in values]))


def _what_sets_shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_what_sets_shapes(part) for part in value]
    return value if isinstance(value, (int, str)) else None  # a length, a switch, a mode


def as_sequence(labels: Any) -> tuple[Tensor | None, ...]:
    """A tensor, several or ``None`` as a tuple.

    Raises:
        UsageError: ``labels`` is none of these.
    """
    if labels is None:
        return ()
    if isinstance(labels, Tensor):
        return (labels,)
    if not isinstance(labels, (list, tuple)):
        raise UsageError(
            f"labels is of type {type(labels).__name__}; give a tensor, or a list or tuple of them: the "
            "criterion is called with (*outputs, *labels)"
        )
    return tuple(labels)


def _check_labels(criterion: Callable[..., Any], labels: Sequence[Tensor | None], rank: int) -> None:
    """Says that labels are missing where the criterion plainly asks for more than the outputs."""
    if any(label is not None for label in labels):
        return
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # A builtin that does not tell: what it needs shows when it is called.
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    if len(required) > 1:
        raise UsageError(
            f"rank {rank} holds the last stage and was given no labels, and the criterion takes "
            f"{', '.join(required)}; give labels=..., or a criterion of the outputs alone (one that takes "
            "*outputs, if there are several)"
        )
