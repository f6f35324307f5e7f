"""What a pipeline is built of, found and checked: its ranks, their numbering, the stages, the options.

It builds nothing that lasts, and meets no other rank but in making the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import dualpipe_rs._core as _core
from dualpipe_rs._core import LocalGroup, Schedule
from dualpipe_rs.errors import UsageError
from dualpipe_rs.local import current_group
from dualpipe_rs.worker import accepted_keywords

#: The longest timeout, in seconds: a year.
_LONGEST = 3.2e7


def check_options(batch_dim: Any, timeout: Any, **flags: Any) -> None:
    if not isinstance(batch_dim, int) or isinstance(batch_dim, bool):
        raise UsageError(f"batch_dim is {batch_dim!r}; it is the number of a dimension")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name} is {flag!r}; it is True or False")
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < _LONGEST:
        raise UsageError(f"timeout is {timeout!r}; it is a positive number of seconds, at most {_LONGEST:g}")


def check_transport(transport: Any) -> None:
    if transport not in (None, "nccl"):
        raise UsageError(
            f'transport is {transport!r}; "nccl" runs on GPUs by the CUDA executor, and without it tensors '
            "travel as the group has it"
        )


def group(given: Any, **options: Any) -> Any:
    """The ranks, as threads or as processes: what both have is rank, size, step, exchange, refuse."""
    distributed = torch.distributed
    initialised = distributed.is_available() and distributed.is_initialized()
    group = current_group() if given is None else given
    if group is None and initialised and distributed.get_world_size() > 1:
        group = distributed.group.WORLD
    if group is None:
        return _core.local_groups(1)[0]
    if isinstance(group, LocalGroup):
        return group
    if initialised:
        from dualpipe_rs.distributed import DistributedGroup, process_group

        if (found := process_group(group)) is not None:
            return DistributedGroup(found, **options) if found.size() > 1 else _core.local_groups(1)[0]
    raise UsageError(
        f"process_group is of type {type(group).__name__}; give a ProcessGroup of torch.distributed, once "
        "that is initialised, or the group that dualpipe_rs.run_local(fn, num_ranks) hands to fn"
    )


def edges(schedule: Schedule) -> list[tuple[int, int]]:
    """The pairs of ranks, (from, to), between which tensors travel."""
    return [(int(a), int(b)) for a, b in zip(*schedule.p2p_tensors().nonzero(), strict=True)]


def device_of(module: nn.Module) -> torch.device:
    """Where the stages are; modules without parameters and buffers are taken to be on the CPU."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def check_keywords(keywords: Mapping[str, Any], stages: nn.Module, rank: int) -> None:
    """Refuses keyword arguments that none of the rank's stages takes: most are misspelt."""
    if keywords:
        accepted = [accepted_keywords(stage) for stage in stages.children()]
        for name in keywords:
            if not any(names is None or name in names for names in accepted):
                raise UsageError(
                    f"step() was given {name}=..., which none of the stages of rank {rank} takes as a "
                    "keyword argument"
                )


def own_rank(group: Any, mapping: Sequence[int] | None) -> int:
    if mapping is None:
        return group.rank()
    if sorted(mapping) != list(range(group.size())):
        raise UsageError(
            f"rank_mapping={list(mapping)} does not give each of the {group.size()} members another rank; "
            f"it is an order of 0 to {group.size() - 1}"
        )
    return mapping[group.rank()]


def checked_modules(
    modules: Sequence[nn.Module], stages: list[int], schedule: Schedule, rank: int
) -> list[nn.Module]:
    several = isinstance(modules, (list, tuple, nn.Sequential, nn.ModuleList))
    given: list[Any] = list(modules) if several else [modules]
    wrong = [type(m).__name__ for m in given if not isinstance(m, nn.Module)]
    if wrong:
        raise UsageError(f"modules holds a {wrong[0]}; each stage is a torch.nn.Module")
    if len(given) != len(stages):
        raise UsageError(
            f"rank {rank} was given {len(given)} modules; under {schedule.name} on {schedule.num_ranks} "
            f"ranks it holds stages {', '.join(map(str, stages))}: one module each"
        )
    return given
