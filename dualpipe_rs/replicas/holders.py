"""How the ranks that hold copies of the same parameters reach each other, as threads or as processes.

Copies with the same holders are named by a key: the members of the pipeline's group that hold them,
ascending. Where pipelines are data-parallel replicas of each other, the holders in all of them count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dualpipe_rs.groups import Group, ProcessesGroup
from dualpipe_rs.process_groups import make_rounds
from dualpipe_rs.replicas.copies import as_bytes, from_bytes

T = TypeVar("T")
Key = tuple[int, ...]
Flats = Mapping[Key, Mapping[torch.dtype, Tensor]]
#: By key: which holder (its index) gives which tensors; at the others they are overwritten.
Plan = Mapping[Key, Sequence[tuple[int, Sequence[Tensor]]]]


class Holders(Protocol):
    """All methods are collective: every member calls them in one order, with the keys that it belongs to."""

    def ranks(self, key: Key) -> tuple[int, ...]:
        """The holders, ascending: members of a local group, or ranks of the whole job."""

    def index(self, key: Key) -> int:
        """Which of the holders this one is."""

    def gather(self, objects: Mapping[Key, T], purpose: str) -> dict[Key, list[T]]:
        """The objects of all holders, by holder."""

    def sum(self, flats: Flats, purpose: str) -> Flats:
        """The sums over all holders, bit for bit the same on each. The given tensors are used up."""

    def spread(self, plan: Plan, purpose: str) -> None:
        """Each source's tensors into those of the other holders."""


class LocalHolders:
    """Holders that are threads of one process."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def ranks(self, key: Key) -> tuple[int, ...]:
        """See :class:`Holders`."""
        return key

    def index(self, key: Key) -> int:
        """See :class:`Holders`."""
        return key.index(self._group.rank())

    def gather(self, objects: Mapping[Key, T], purpose: str) -> dict[Key, list[T]]:
        """See :class:`Holders`."""
        told = self._group.exchange(dict(objects), purpose)
        return {key: [told[member][key] for member in key] for key in objects}

    def sum(self, flats: Flats, purpose: str) -> Flats:
        """See :class:`Holders`. Others may still read what was exchanged: it is never written to."""
        told = self.gather(flats, purpose)
        return {
            key: {dtype: _total([of[dtype] for of in told[key]], flat.device) for dtype, flat in own.items()}
            for key, own in flats.items()
        }

    def spread(self, plan: Plan, purpose: str) -> None:
        """See :class:`Holders`."""
        given = {
            key: {source: as_bytes(ts) for source, ts in parts if ts and source == self.index(key)}
            for key, parts in plan.items()
        }
        told = self.gather(given, purpose)
        for key, parts in plan.items():
            for source, tensors in parts:
                if tensors and source != self.index(key):
                    from_bytes(told[key][source][source].to(tensors[0].device), tensors)


class ProcessHolders:
    """Holders that are processes: a process group a key, made once.

    Args:
        group: the pipeline's.
        holders: the holders' ranks in the whole job, by key, of all keys.
        rounds: the keys with several holders in the order in which their groups are made; those of one round
            have no member in common.
        devices: the device types of this rank's parameters.
    """

    def __init__(
        self,
        group: ProcessesGroup,
        holders: Mapping[Key, tuple[int, ...]],
        rounds: Sequence[Sequence[Key]],
        devices: Iterable[str],
    ) -> None:
        self._group = group
        self._ranks = dict(holders)
        self._own = group.global_ranks[group.rank()]
        more = (f"{d}:{group.backend_for(torch.device(d))}" for d in devices if d != "cpu")
        backend = ",".join(["cpu:gloo", *more])
        with group.at("makes a group of the ranks that hold the same parameters"):
            made = make_rounds(
                self._own, [[holders[key] for key in keys] for keys in rounds], group.timeout, backend
            )
        self._groups: dict[Key, Any] = {}
        for keys, process_group in zip(rounds, made, strict=True):
            for key in keys:
                if self._own in holders[key]:
                    self._groups[key] = process_group

    def ranks(self, key: Key) -> tuple[int, ...]:
        """See :class:`Holders`."""
        return self._ranks[key]

    def index(self, key: Key) -> int:
        """See :class:`Holders`."""
        return self._ranks[key].index(self._own)

    def gather(self, objects: Mapping[Key, T], purpose: str) -> dict[Key, list[T]]:
        """See :class:`Holders`."""
        found: dict[Key, list[Any]] = {key: [None] * len(self._ranks[key]) for key in objects}
        for key, told in self._at(found):
            with self._group.at(purpose):
                dist.all_gather_object(told, objects[key], group=self._groups[key])
        for key in found.keys() - self._groups.keys():
            found[key] = [objects[key]]
        return found

    def sum(self, flats: Flats, purpose: str) -> Flats:
        """See :class:`Holders`."""
        self._group.meet(purpose)  # a rank that is at something else may be none of the holders
        for key, by_type in self._at(flats):
            for flat in by_type.values():
                with self._group.at(purpose):
                    dist.all_reduce(flat, group=self._groups[key])
        return flats

    def spread(self, plan: Plan, purpose: str) -> None:
        """See :class:`Holders`."""
        for key, parts in self._at(plan):
            for source, tensors in parts:
                if tensors:
                    self._broadcast(key, source, tensors, purpose)

    def _broadcast(self, key: Key, source: int, tensors: Sequence[Tensor], purpose: str) -> None:
        flat = as_bytes(tensors)
        with self._group.at(purpose):
            dist.broadcast(flat, self._ranks[key][source], group=self._groups[key])
        if source != self.index(key):
            from_bytes(flat, tensors)

    def _at(self, by_key: Mapping[Key, T]) -> Iterable[tuple[Key, T]]:
        """In the order in which the groups were made, which is the same on all ranks."""
        return [(key, by_key[key]) for key in self._groups if key in by_key]


def _total(flats: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum, always in the same order."""
    total = flats[0].to(device, copy=True)
    for flat in flats[1:]:
        total += flat.to(device)
    return total
