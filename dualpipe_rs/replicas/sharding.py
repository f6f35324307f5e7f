"""What shards parameters and cannot be trained right in a pipeline: refused when the pipeline is built.

``fully_shard`` and tensor-parallel layers need nothing here: they see to their gradients within the backward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dualpipe_rs.errors import UsageError


def check_sharding(stages: Mapping[int, nn.Module], data_parallel: Any) -> None:
    """Refuses stages that would come to wrong gradients.

    Args:
        stages: by stage index.
        data_parallel: the group over which gradients are averaged after a step, or ``None``.

    Raises:
        UsageError: a module is in a ``FullyShardedDataParallel``, or a parameter is sharded over processes
            of ``data_parallel``.
    """
    for stage, module in stages.items():
        _check_wrappers(stage, module)
        if data_parallel is not None:
            _check_parameters(stage, module, torch.distributed.get_process_group_ranks(data_parallel))


def _check_wrappers(stage: int, module: nn.Module) -> None:
    # Not imported: where nobody has, there is none.
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    for name, child in module.named_modules():
        if fsdp is not None and isinstance(child, fsdp):
            where = f"{name!r} within stage {stage}" if name else f"stage {stage}"
            raise UsageError(
                f"{where} is wrapped in FullyShardedDataParallel, which loses gradients where several "
                "microbatches are under way at once; shard it by torch.distributed.fsdp.fully_shard"
            )


def _check_parameters(stage: int, module: nn.Module, replicas: Iterable[int]) -> None:
    others = {*replicas} - {torch.distributed.get_rank()}
    for name, parameter in module.named_parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and others & {*mesh.mesh.flatten().tolist()}:
            raise UsageError(
                f"parameter {name!r} of stage {stage} is sharded over processes of the data-parallel group, "
                "so theirs are other parts of it, not copies; fully_shard averages gradients itself: leave "
                "data_parallel_group out"
            )
