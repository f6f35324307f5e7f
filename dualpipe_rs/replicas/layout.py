"""Who holds copies of this rank's parameters: its mirror under DualPipe, replicas, and holders of ties.

All ranks work it out together, once, from what each of them holds. It moves no parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch.distributed as dist
from torch import nn

from dualpipe_rs._core import LocalGroup
from dualpipe_rs.errors import UsageError
from dualpipe_rs.groups import Group
from dualpipe_rs.process_groups import catch_up, made_so_far
from dualpipe_rs.replicas.copies import Held, Place, held_by
from dualpipe_rs.replicas.holders import Holders, Key, LocalHolders, ProcessHolders

Stages = Callable[[], Mapping[int, nn.Module]]
Ties = Mapping[str, Sequence[Place]]


@dataclass(frozen=True)
class _Told:
    """What a member tells the others."""

    rank: int  # in the schedule
    stages: tuple[int, ...]
    ties: Mapping[str, tuple[tuple[Any, ...], int]]  # shape and type, and in how many places
    replicas: tuple[int, ...] | None  # global ranks of its data-parallel group
    groups_made: int


class Layout:
    """The holders of each parameter of this rank. Made by all ranks together.

    Attributes:
        holders: how they are reached.
        replicas: how many pipelines are data-parallel replicas of each other, this one among them.
        shared: whether anything anywhere in the pipeline has more than one copy.
    """

    def __init__(self, group: Group, rank: int, stages: Stages, ties: Ties, data_parallel: Any) -> None:
        self._member = group.rank()
        self._stages = stages
        self._ties = ties
        told: list[_Told] = group.exchange(
            _told(rank, stages(), ties, data_parallel), "asks who holds which parameters"
        )
        self._ranks = [member.rank for member in told]
        _check_ties(told)
        _check_replicas(told)
        self._mirrors = [_mirrors(told, member) for member in range(len(told))]
        self._tie_keys = {
            tie: tuple(member for member, other in enumerate(told) if tie in other.ties)
            for tie in sorted({tie for member in told for tie in member.ties})
        }
        self.replicas = len(told[0].replicas or (0,))
        keys = {*self._mirrors, *self._tie_keys.values()}
        copied = any(places > 1 for member in told for _, places in member.ties.values())
        self.shared = self.replicas > 1 or copied or any(len(key) > 1 for key in keys)
        self.holders = self._reached(group, told, data_parallel)

    def held(self) -> dict[Key, list[Held]]:
        """This rank's parameters by their holders, in an order that all of these share."""
        by_key: dict[Key, list[Held]] = {self._mirrors[self._member]: []}
        for held in held_by(self._stages(), self._ties):
            by_key.setdefault(self.key_of(held), []).append(held)
        return by_key

    def key_of(self, held: Held) -> Key:
        """The members of the pipeline that hold it."""
        return self._mirrors[self._member] if held.tie is None else self._tie_keys[held.tie]

    @property
    def stage_key(self) -> Key:
        """The members of the pipeline that hold the same stages as this one."""
        return self._mirrors[self._member]

    def owns(self, held: Held) -> bool:
        """Whether this is the rank to count it for its pipeline: of mirrors the one of the stage's number."""
        return self.owner(held) == self._member

    def owner(self, held: Held) -> int:
        """The member for which :meth:`owns` is true."""
        key = self.key_of(held)
        numbered = [member for member in key if held.tie is None and self._ranks[member] == held.stage]
        return (numbered or key)[0]

    def _reached(self, group: Group, told: Sequence[_Told], data_parallel: Any) -> Holders:
        if isinstance(group, LocalGroup):
            if self.replicas > 1:
                raise UsageError(
                    f"a data-parallel group of {self.replicas} processes was given to a pipeline whose ranks "
                    "are threads of one process; run the pipeline's ranks as processes, too"
                )
            return LocalHolders(group)
        return self._reached_by_processes(group, told, data_parallel)

    def _reached_by_processes(self, group: Any, told: Sequence[_Told], data_parallel: Any) -> Holders:
        ranks = [member.replicas or (group.global_ranks[number],) for number, member in enumerate(told)]
        keys = [sorted({*self._mirrors}), *([key] for key in dict.fromkeys(self._tie_keys.values()))]
        rounds = [keys[0], *(key for key in keys[1:] if key[0] not in keys[0])]
        holders = {key: tuple(sorted(chain(*(ranks[member] for member in key)))) for key in chain(*rounds)}
        agreed = max(member.groups_made for member in told)
        if self.replicas > 1:
            agreed = _agreed(group, sorted(holders.items()), agreed, data_parallel)
        catch_up(group.global_ranks[self._member], agreed)
        several = [key for key in rounds if any(len(holders[one]) > 1 for one in key)]
        devices = sorted({p.device.type for module in self._stages().values() for p in module.parameters()})
        return ProcessHolders(group, holders, several, devices)


def _told(rank: int, stages: Mapping[int, nn.Module], ties: Ties, data_parallel: Any) -> _Told:
    shapes = {}
    for tie, places in ties.items():
        first = stages[places[0][0]].get_parameter(places[0][1])
        shapes[tie] = ((tuple(first.shape), str(first.dtype)), len(places))
    replicas = None if data_parallel is None else tuple(dist.get_process_group_ranks(data_parallel))
    return _Told(rank, tuple(sorted(stages)), shapes, replicas, made_so_far())


def _mirrors(told: Sequence[_Told], member: int) -> Key:
    return tuple(other for other, its in enumerate(told) if its.stages == told[member].stages)


def _check_ties(told: Sequence[_Told]) -> None:
    for tie in sorted({tie for member in told for tie in member.ties}):
        holders = [(member.rank, *member.ties[tie]) for member in told if tie in member.ties]
        if sum(places for _, _, places in holders) < 2:
            raise UsageError(
                f"tie {tie!r} is of one parameter alone, on rank {holders[0][0]}; every rank that holds a "
                "parameter of the tie gives it under the same name"
            )
        for rank, kind, _ in holders:
            if kind != holders[0][1]:
                raise UsageError(
                    f"tie {tie!r} is of shape and type {holders[0][1]} on rank {holders[0][0]} and {kind} on "
                    f"rank {rank}; tied parameters are one parameter, with one shape and type"
                )


def _check_replicas(told: Sequence[_Told]) -> None:
    counts = [len(member.replicas or (0,)) for member in told]
    if len(set(counts)) > 1:
        raise UsageError(
            f"the data-parallel groups of this pipeline's ranks are of {counts} processes; they must be as "
            "many on each rank, one from each pipeline"
        )


def _agreed(group: Any, holders: Any, groups_made: int, data_parallel: Any) -> int:
    """Sees that all replicas find the same holders, as their groups need; returns the most groups made."""
    told: list[Any] = [None] * dist.get_world_size(data_parallel)
    with group.at("compares who holds what with the other pipelines"):
        dist.all_gather_object(told, (holders, groups_made), group=data_parallel)
    if any(other != told[0][0] for other, _ in told):
        raise UsageError(
            "the data-parallel replicas of this pipeline do not find the same holders for their stages; the "
            "ranks of a data-parallel group hold the same stages, one in each pipeline, under the same "
            "schedule and with the same ties"
        )
    return max(made for _, made in told)
