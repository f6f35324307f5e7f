"""Process groups that only their members make, under names on which these agree.

``torch.distributed.new_group(use_local_synchronization=True)`` names a group by its ranks and by how many
groups the process has made before. Members that have made different numbers of groups, as the ends and the
middle of a pipeline may well have, would wait for each other under different names until the timeout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def made_so_far() -> int:
    """The number that torch puts into the name of this process's next group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0
    world: Any = getattr(dist.distributed_c10d, "_world", None)
    name: Any = getattr(dist.distributed_c10d, "_hash_ranks_to_str", None)
    counts = (getattr(world, "group_count", 0), len(getattr(world, "pg_names", ())))
    for count in counts if name else ():  # which of them it is differs between versions
        if name([0]) == hashlib.sha1(f"0_{count}".encode(), usedforsecurity=False).hexdigest():
            return count
    return 0


def catch_up(own_rank: int, agreed: int) -> None:
    """Makes groups of this process alone until it has made as many as any member."""
    for _ in range(agreed - made_so_far()):
        dist.new_group([own_rank], backend="gloo", use_local_synchronization=True)


def make_rounds(
    own_rank: int, rounds: Iterable[Iterable[Sequence[int]]], timeout: timedelta, backend: str
) -> list[Any]:
    """Makes one group a round, and keeps the count of groups the same on all who take part.

    Args:
        own_rank: this process's rank in the whole job.
        rounds: for each round the groups made in it, as ranks in the whole job, without a common member.
        timeout: the groups' own.
        backend: theirs, such as ``"cpu:gloo,cuda:nccl"``.

    Returns:
        This process's group of each round, ``None`` where it is in none.
    """
    made = []
    for groups in rounds:
        mine = next((list(ranks) for ranks in groups if own_rank in ranks), None)
        group = dist.new_group(
            mine or [own_rank], timeout=timeout, backend=backend, use_local_synchronization=True
        )
        made.append(group if mine else None)
    return made
