"""Which other processes train the same stages on other data: a group given, or that of a DDP wrapper.

DistributedDataParallel cannot reduce by itself here: it does so within a backward, and a step has many, whose
weight gradients come outside autograd. So its wrapper is taken off, and its group is reduced over after the
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dualpipe_rs.errors import UsageError


def unwrapped(modules: Sequence[nn.Module], stages: Sequence[int], given: Any) -> tuple[list[nn.Module], Any]:
    """The stages without DDP wrappers, and the data-parallel process group: given, a wrapper's, or ``None``.

    Raises:
        UsageError: stages have different groups, some have a wrapper and others none, or a wrapper stands
            within a stage or has a communication hook.
    """
    if given is not None and not isinstance(given, torch.distributed.ProcessGroup):
        raise UsageError(
            f"data_parallel_group is of type {type(given).__name__}; give the torch.distributed.ProcessGroup "
            "of the ranks that hold the same stages in other pipelines"
        )
    bare = [_inner(module, stage) for module, stage in zip(modules, stages, strict=True)]
    groups = {
        stage: getattr(module, "process_group", None)
        for module, inner, stage in zip(modules, bare, stages, strict=True)
        if module is not inner or any(p.requires_grad for p in module.parameters())
    }
    if not any(module is not inner for module, inner in zip(modules, bare, strict=True)):
        return bare, given
    first_stage, first = next(iter(groups.items()))
    for stage, group in groups.items():
        if group is not first:
            raise UsageError(
                f"stages {first_stage} and {stage} are not wrapped in DistributedDataParallel over the same "
                "process group; wrap all stages of a rank that have parameters, over one group, or none"
            )
    if given is not None and given is not first:
        raise UsageError(
            "data_parallel_group is another process group than that of the DistributedDataParallel wrappers; "
            "give one of the two"
        )
    return bare, first


def _inner(module: nn.Module, stage: int) -> nn.Module:
    ddp = torch.nn.parallel.DistributedDataParallel
    inner: Any = module
    if isinstance(module, ddp):
        if getattr(module, "_comm_hooks", None):
            raise UsageError(
                f"the DistributedDataParallel around stage {stage} has a communication hook, which a "
                "pipeline would not call: it sums gradients after the step; wrap the stage without one"
            )
        inner = module.module
    nested = [name for name, child in inner.named_modules() if isinstance(child, ddp)]
    if nested:
        raise UsageError(
            f"{nested[0] or 'the module'!r} within stage {stage} is wrapped in DistributedDataParallel, "
            "which would reduce in every backward; wrap the whole stage, or give data_parallel_group"
        )
    return inner
