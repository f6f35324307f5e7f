"""Process groups that only their members make, under names on which these agree.

``torch.distributed.new_group(use_local_synchronization=True)`` names a group by its ranks and by how many
groups the process has made before. Members that have made different numbers of groups, as the ends and the
middle of a pipeline may well have, would wait for each other under different names until the timeout.
And it counts these groups for the names of the job's next ones, too: after a pipeline of some of the job's
processes, all of which then make a group or a mesh, these would hang. So groups made here have a count apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

#: Where the count apart begins: no job makes so many groups.
_FAR = 1 << 40
_count_apart = _FAR


@contextmanager
def _counted_apart() -> Iterator[None]:
    """Around all that is done here with torch's count of groups; torch's own is as before afterwards."""
    global _count_apart
    world: Any = getattr(dist.distributed_c10d, "_world", None)
    before = getattr(world, "group_count", None)
    if before is None:
        yield
        return
    world.group_count = _count_apart
    try:
        yield
    finally:
        _count_apart = world.group_count
        world.group_count = before


def made_so_far() -> int:
    """A number that torch puts into the name of the next group that this process makes here."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0
    with _counted_apart():
        return _next_number()


def _next_number() -> int:
    world: Any = getattr(dist.distributed_c10d, "_world", None)
    name: Any = getattr(dist.distributed_c10d, "_hash_ranks_to_str", None)
    counts = (getattr(world, "group_count", 0), len(getattr(world, "pg_names", ())))
    for count in counts if name else ():  # which of them it is differs between versions
        if name([0]) == hashlib.sha1(f"0_{count}".encode(), usedforsecurity=False).hexdigest():
            return count
    return 0


def catch_up(own_rank: int, agreed: int) -> None:
    """Makes groups of this process alone until it has made as many as any member."""
    with _counted_apart():
        for _ in range(agreed - _next_number()):
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
        with _counted_apart():
            group = dist.new_group(
                mine or [own_rank], timeout=timeout, backend=backend, use_local_synchronization=True
            )
        made.append(group if mine else None)
    return made
