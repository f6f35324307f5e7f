"""Pipelines in a job of two dimensions: DistributedDataParallel, fully_shard, tensor-parallel layers.

Each trains as one serial model does, on all the replicas' batches, or is refused when it is built.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import Block, assert_trained, two_steps
from processes import run_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dualpipe_rs as dp


def _ddp(mesh: Any, stage: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(Block(stage), process_group=mesh.get_group("other"))


def _fsdp(mesh: Any, stage: int, **options: Any) -> nn.Module:
    module = Block(stage)
    fully_shard(module.up, mesh=mesh["other"], **options)  # one within the other, as is usual
    return fully_shard(module, mesh=mesh["other"], **options)


def _tensor_parallel(mesh: Any, stage: int) -> nn.Module:
    return parallelize_module(
        Block(stage), mesh["other"], {"up": ColwiseParallel(), "down": RowwiseParallel()}
    )


def _two_dimensions(number: int, kind: str) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "other"))
    make = {
        "ddp": _ddp,
        "fsdp": _fsdp,
        "fsdp that keeps": partial(_fsdp, reshard_after_forward=False),
        "tensor parallel": _tensor_parallel,
    }[kind]
    replicas = 1 if kind == "tensor parallel" else 2
    for sizes in (("dualpipe", 2, 4), ("zb-v", 2, 4), ("1f1b", 2, 3)):
        schedule = dp.schedule(*sizes)
        rank = mesh.get_local_rank("pp")
        modules = {stage: make(mesh, stage) for stage in schedule.stages_of(rank)}
        pipe = dp.Pipeline(list(modules.values()), schedule, process_group=mesh["pp"], timeout=30.0)
        two_steps(pipe, schedule, mesh.get_local_rank("other") if replicas > 1 else 0)
        assert_trained(pipe, schedule, modules, replicas)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp that keeps", "tensor parallel"])
def test_two_by_two(kind):
    run_processes(4, _two_dimensions, kind)


def _refused(number: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "other"))
    schedule = dp.schedule("1f1b", 2, 3)
    stage, group = mesh.get_local_rank("pp"), mesh.get_group("other")
    build = partial(dp.Pipeline, schedule=schedule, process_group=mesh["pp"], timeout=30.0)
    old = partial(FullyShardedDataParallel, process_group=group, device_id=torch.device("cpu"))
    with pytest.raises(dp.UsageError, match=rf"stage {stage} is wrapped in FullyShardedDataParallel, which"):
        build([old(Block(stage))])
    nested = Block(stage)
    nested.up = old(nested.up)
    with pytest.raises(dp.UsageError, match=rf"'up' within stage {stage} is wrapped in FullySharded"):
        build([nested])
    with pytest.raises(dp.UsageError, match=r"parameter 'up.weight' of stage \d is sharded over processes"):
        build([_fsdp(mesh, stage)], data_parallel_group=group)
    module = _tensor_parallel(mesh, stage)
    pipe = build([module], data_parallel_group=dist.new_subgroups(1)[0])
    two_steps(pipe, schedule)
    assert_trained(pipe, schedule, {stage: module})


def test_what_shards_parameters_and_would_train_wrong_is_refused():
    run_processes(4, _refused)
