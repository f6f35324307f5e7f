"""What the parameters and buffers of a pipeline are called in a checkpoint: as in the uncut model.

The ranks agree on it by an exchange of keys, each time anew: a model may be changed between two checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from dualpipe_rs.errors import UsageError

if TYPE_CHECKING:
    from dualpipe_rs.groups import Group
    from dualpipe_rs.replicas import Replicas
    from dualpipe_rs.replicas.copies import Place

#: What torch.compile and activation checkpointing call the module that they wrap.
_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})


class Here(NamedTuple):
    """What this rank has of a pipeline: its number, its stages, where tied parameters stand, its copies."""

    group: Group
    rank: int
    modules: Mapping[int, nn.Module]
    ties: Mapping[str, Sequence[Place]]
    replicas: Replicas


@dataclass(frozen=True)
class Names:
    """The global names of a pipeline's parameters and persistent buffers; equal on all ranks.

    Attributes:
        stages: the names of each stage, in the module's own order.
        home: the rank whose copy of a stage counts. Of two it is the one with the number of the stage.
        numbered: stages have keys in common, so names begin with the stage, as in
            ``nn.Sequential(*stages)``. Otherwise the keys themselves are the names.
        tied: for each name of a parameter tied between stages, all of its names, by stage.
    """

    stages: dict[int, list[str]]
    home: dict[int, int]
    numbered: bool
    tied: dict[str, list[str]]

    def of(self, stage: int, key: str) -> str:
        """The global name of what the module of ``stage`` calls ``key``."""
        parts = [str(stage)] if self.numbered else []
        return ".".join(parts + [part for part in key.split(".") if part and part not in _WRAPPED])

    @property
    def all(self) -> list[str]:
        """Every name, by stage."""
        return list(chain.from_iterable(self.stages.values()))


def agree(here: Here) -> Names:
    """The names, from an exchange of all stages' keys; every rank of the group calls it.

    Raises:
        UsageError: on every rank: two copies of a stage have different keys, or one stage has two tensors
            of one name once the names of wrappers are left out.
    """
    bare = Names({}, {}, numbered=False, tied={})
    own = {
        stage: [bare.of(stage, key) for key in module.state_dict()] for stage, module in here.modules.items()
    }
    told = here.group.exchange((here.rank, own, dict(here.ties)), "names its parameters")
    keys: dict[int, list[str]] = {}
    home: dict[int, int] = {}
    for holder, held, _ in sorted(told, key=lambda member: member[0]):
        for stage, theirs in held.items():
            _check_copies(stage, keys.setdefault(stage, theirs), theirs, home.get(stage, holder), holder)
            if stage not in home or holder == stage:
                home[stage] = holder
    for stage, theirs in keys.items():
        _check_distinct(stage, theirs)
    together = list(chain.from_iterable(keys.values()))
    names = Names({}, home, numbered=len(set(together)) < len(together), tied={})
    for stage in sorted(keys):
        names.stages[stage] = [names.of(stage, key) for key in keys[stage]]
    names.tied.update(_tied(names, [ties for _, _, ties in told]))
    return names


def _tied(names: Names, told: Sequence[Mapping[str, Sequence[Place]]]) -> dict[str, list[str]]:
    places: dict[str, set[Place]] = {}
    for ties in told:
        for tie, found in ties.items():
            places.setdefault(tie, set()).update(found)
    tied: dict[str, list[str]] = {}
    for of_tie in places.values():
        several = [names.of(stage, key) for stage, key in sorted(of_tie)]
        tied.update(dict.fromkeys(several, several))
    return tied


def _check_copies(stage: int, first: list[str], second: list[str], holder: int, other: int) -> None:
    if first != second:
        differing = sorted(set(first) ^ set(second)) or ["their order"]
        raise UsageError(
            f"stage {stage} is on ranks {holder} and {other}, and its two copies differ in {differing[0]}; "
            "both must have the same parameters and buffers, in the same order"
        )


def _check_distinct(stage: int, keys: list[str]) -> None:
    if twice := [key for key in set(keys) if keys.count(key) > 1]:
        raise UsageError(
            f"stage {stage} holds two tensors that are both called {min(twice)!r} once the names of "
            "wrappers (torch.compile's, activation checkpointing's) are left out; rename one"
        )


def copied(value: Any) -> Any:
    """A copy on the CPU that shares nothing with ``value`` and is no larger than it, of tensors in it too."""
    if isinstance(value, Tensor):
        # A copy even of what is on the CPU: a view would be pickled with all of its storage, and a rank that
        # is a thread would see the next step.
        return value.detach().to("cpu", copy=True)
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return copy.deepcopy(value)
