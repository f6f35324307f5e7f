"""How the members of a group come together when a pipeline is built.

They find the process group that is meant, make a gloo group of their own, and agree on a part of the store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from dualpipe_rs.errors import RankError, UsageError
from dualpipe_rs.identity import first_line
from dualpipe_rs.process_groups import catch_up, made_so_far, make_rounds

_joined: Counter[str] = Counter()  # how often this process has joined over each process group


class Joined(NamedTuple):
    """What the members have in common.

    Attributes:
        group: a gloo group of them.
        store: their part of the job's store.
        store_holder: the member in whose process the job's store is, if it is in one of theirs.
    """

    group: Any
    store: Any
    store_holder: int | None


def process_group(given: Any) -> Any | None:
    """The ProcessGroup that is meant by ``given``, also by a DeviceMesh of one dimension; None if it is
    neither.

    Raises:
        UsageError: the mesh has several dimensions, or this process is no member.
    """
    if isinstance(given, dist.device_mesh.DeviceMesh):
        if given.ndim != 1:
            raise UsageError(
                f"process_group is a DeviceMesh of {given.ndim} dimensions; give one of them, such "
                "as mesh['pp']"
            )
        given = given.get_group()
    if given is dist.GroupMember.NON_GROUP_MEMBER:
        raise UsageError("this process is no member of the process_group; only members build the pipeline")
    return given if isinstance(given, dist.ProcessGroup) else None


def join(name: str, global_ranks: Sequence[int], member: int, timeout: timedelta) -> Joined:
    """Joins the members, once all have come.

    Args:
        name: of the process group that they are.
        global_ranks: the job's number of each member.
        member: this one.
        timeout: how long to wait for the others, and for each other later.

    Raises:
        RankError: not all came within the timeout.
    """
    base = dist.distributed_c10d._get_default_store()
    store = dist.PrefixStore(f"dualpipe_rs/{name}/{_joined[name]}", base)
    _joined[name] += 1
    here = [f"here/{other}" for other in range(len(global_ranks))]
    left: list[int] = []
    store.set(here[member], json.dumps([made_so_far(), _holds(base)]))
    try:
        store.wait(here, timeout)
        cards = [json.loads(store.get(key)) for key in here]
        left = [other for other in range(len(here)) if store.check([f"left/{other}"])]
        if left:
            raise RuntimeError(f"{_ranks(left)} came, and waited in vain")
        catch_up(global_ranks[member], max(made for made, _ in cards))
        (group,) = make_rounds(global_ranks[member], [[global_ranks]], timeout, "gloo")
    except RuntimeError as error:
        with suppress(RuntimeError):  # one that comes later must not wait for this one
            store.set(f"left/{member}", "")
        missing = [other for other in range(len(here)) if not _is_here(store, other)]
        raise RankError(
            f"rank {member} builds a pipeline, and within {timeout.total_seconds():g} s "
            f"{_ranks(missing) + ' did not come' if missing else 'did not get it'}; all members of the "
            f"process group build it, in the same order ({first_line(error)})",
            (missing or left or [member])[0],
        ) from error
    return Joined(group, store, next((other for other, (_, holds) in enumerate(cards) if holds), None))


def rounds_of(edges: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The edges in as many rounds as it takes for none to share a member with another of its round."""
    rounds: list[list[tuple[int, int]]] = []
    for edge in sorted(edges):
        free = (made for made in rounds if not {*edge} & {member for other in made for member in other})
        found = next(free, None)
        if found is None:
            rounds.append([edge])
        else:
            found.append(edge)
    return rounds


def _holds(store: Any) -> bool:
    """Whether the job's store is in this process. Torch tells it in words alone."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return "server=TCPServer" in repr(store)


def _is_here(store: Any, member: int) -> bool:
    with suppress(RuntimeError):
        return bool(store.check([f"here/{member}"]))
    return False


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
