"""The state of the ranks' optimizers as one, in the format of ``torch.distributed.checkpoint.state_dict``.

Each rank has an optimizer of its own over its own parameters; together they are the optimizer of the uncut
model. How the parameters are shared out is no part of the format, so it may change between two runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dualpipe_rs.checkpoint.names import Here, Names, agree, copied
from dualpipe_rs.errors import CheckpointError, UsageError

Group = dict[str, Any]
#: A rank, the groups of its optimizer with names for parameters, and the names that have a state there.
Share = tuple[int, list[Group], list[str]]


def full_optimizer_state(here: Here, optimizer: Optimizer) -> dict[str, Any]:
    """:meth:`dualpipe_rs.Pipeline.optimizer_state_dict`."""
    names = agree(here)
    groups, states = _joined(here, *_named(optimizer, _names_of(names, here.modules)))
    shares: list[Share] = sorted(
        here.group.exchange((here.rank, copied(groups), list(states)), "compares its optimizer's groups"),
        key=lambda share: share[0],
    )
    _check_equal_options(shares)
    merged = _merged_groups(shares, names.all)
    holder = _holders(shares, names)
    sent = {name: copied(state) for name, state in states.items() if holder[name] == here.rank}
    whole: dict[str, Any] = {}
    for theirs in here.group.exchange(sent, "gathers its optimizer's state"):
        whole.update(theirs)
    whole.update({name: states[name] for name in sent})
    return {"state": {name: whole[name] for name in names.all if name in whole}, "param_groups": merged}


def load_optimizer_state(here: Here, optimizer: Optimizer, state: Any) -> None:
    """:meth:`dualpipe_rs.Pipeline.load_optimizer_state_dict`."""
    names = agree(here)  # Before any check: the other ranks wait for this one.
    _check_format(state)
    _check_known(state["param_groups"], names)
    aliases = _names_of(names, here.modules)
    given = state["param_groups"]
    if len(given) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the optimizer state has {len(given)} parameter groups and the optimizer of rank {here.rank} "
            f"has {len(optimizer.param_groups)}; both need as many, in the same order (an empty one is fine)"
        )
    packed: dict[str, Any] = {"state": {}, "param_groups": []}
    count = 0
    for index, (own, saved) in enumerate(zip(optimizer.param_groups, given, strict=True)):
        listed = set(saved["params"])
        numbers = range(count, count + len(own["params"]))
        count = numbers.stop
        for number, parameter in zip(numbers, own["params"], strict=True):
            name = _listed_name(_aliases(parameter, aliases), listed, index, given)
            if name in state["state"]:
                # A copy: load_state_dict() takes over tensors as they are, and the same ones may be
                # loaded by the rank with the other copy of the stage, in this very process.
                packed["state"][number] = copied(state["state"][name])
        options = {key: value for key, value in saved.items() if key not in ("params", "param_names")}
        packed["param_groups"].append({**copied(options), "params": list(numbers)})
    optimizer.load_state_dict(packed)


# -- an optimizer's parameters by name ------------------------------------------------------------


def _names_of(names: Names, modules: Mapping[int, nn.Module]) -> dict[Tensor, list[str]]:
    """The names of this rank's parameters. A tied one has several, the first of all stages first."""
    found: dict[Tensor, list[str]] = {}
    for stage in sorted(modules):
        for key, tensor in modules[stage].state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                name = names.of(stage, key)
                found.setdefault(tensor, []).extend(names.tied.get(name, [name]))
    return found


def _aliases(parameter: Tensor, aliases: Mapping[Tensor, list[str]]) -> list[str]:
    if parameter not in aliases:
        raise UsageError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is in no stage of this "
            "rank; make the optimizer from the pipeline's own parameters"
        )
    return aliases[parameter]


def _named(optimizer: Optimizer, aliases: Mapping[Tensor, list[str]]) -> tuple[list[Group], dict[str, Any]]:
    """The optimizer's groups with names for parameters, and its states by name."""
    packed = optimizer.state_dict()
    by_number: dict[int, str] = {}
    groups = []
    for own, saved in zip(optimizer.param_groups, packed["param_groups"], strict=True):
        found = [_aliases(parameter, aliases)[0] for parameter in own["params"]]
        by_number.update(zip(saved["params"], found, strict=True))
        # param_names are this rank's own, of the cut model.
        groups.append({**{k: v for k, v in saved.items() if k != "param_names"}, "params": found})
    return groups, {by_number[number]: state for number, state in packed["state"].items()}


def _joined(here: Here, groups: list[Group], states: dict[str, Any]) -> tuple[list[Group], dict[str, Any]]:
    """Groups and states with those that data-parallel replicas of this rank keep in its place (ZeRO-1)."""
    layout = here.replicas.layout
    if layout.replicas == 1:
        return groups, states
    key, purpose = layout.stage_key, "joins the optimizers' state of data-parallel replicas"
    told = layout.holders.gather({key: (copied(groups), list(states))}, purpose)[key]
    _check_equal_options(
        [(rank, *share) for rank, share in zip(layout.holders.ranks(key), told, strict=True)]
    )
    everywhere = set(states).intersection(*(held for _, held in told))
    lent = {name: copied(state) for name, state in states.items() if name not in everywhere}
    joined: dict[str, Any] = {}
    for theirs in layout.holders.gather({key: lent}, purpose)[key]:
        joined.update(theirs)
    for index, group in enumerate(groups):
        params = [name for theirs, _ in told for name in theirs[index]["params"]]
        group["params"] = list(dict.fromkeys([*group["params"], *params]))
    return groups, {**joined, **states}


# -- the ranks' groups as one ---------------------------------------------------------------------


def _check_equal_options(shares: list[Share]) -> None:
    first_rank, first, _ = shares[0]
    for rank, groups, _ in shares[1:]:
        if len(groups) != len(first):
            raise UsageError(
                f"the optimizer of rank {first_rank} has {len(first)} parameter groups and that of rank "
                f"{rank} has {len(groups)}; all ranks need as many, in the same order (an empty one is fine)"
            )
        for index, (a, b) in enumerate(zip(first, groups, strict=True)):
            for option in sorted((a.keys() | b.keys()) - {"params"}):
                _check_equal(index, option, (first_rank, a), (rank, b))


def _check_equal(index: int, option: str, one: tuple[int, Group], other: tuple[int, Group]) -> None:
    (rank, a), (other_rank, b) = one, other
    if option in a and option in b and _same(a[option], b[option]):
        return
    texts = [f"{group[option]!r}" if option in group else "none" for group in (a, b)]
    raise UsageError(
        f"{option} of the optimizer's parameter group {index} is {texts[0]} on rank {rank} and {texts[1]} on "
        f"rank {other_rank}; the ranks' optimizers are saved as one, so their options must be equal"
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _merged_groups(shares: list[Share], order: list[str]) -> list[Group]:
    place = {name: number for number, name in enumerate(order)}
    group_of: dict[str, int] = {}
    for rank, groups, _ in shares:
        for index, group in enumerate(groups):
            for name in group["params"]:
                if group_of.setdefault(name, index) != index:
                    raise UsageError(
                        f"{name} is in the optimizer's parameter group {index} on rank {rank} and in group "
                        f"{group_of[name]} on another; both copies of a stage need the same groups"
                    )
    return [
        {**group, "params": sorted((n for n, i in group_of.items() if i == index), key=place.__getitem__)}
        for index, group in enumerate(shares[0][1])
    ]


def _holders(shares: list[Share], names: Names) -> dict[str, int]:
    """The rank whose state of a parameter counts: its stage's home, or the one rank that has a state."""
    home = {name: names.home[stage] for stage, held in names.stages.items() for name in held}
    holder: dict[str, int] = {}
    for rank, _, states in shares:
        for name in states:
            if name not in holder or rank == home[name]:
                holder[name] = rank
    return holder


# -- what is loaded -------------------------------------------------------------------------------


def _check_format(state: Any) -> None:
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise CheckpointError(
            "the optimizer state is no dict with 'state' and 'param_groups'; give what "
            "optimizer_state_dict() or torch.distributed.checkpoint.state_dict.get_optimizer_state_dict() "
            "returned"
        )
    named = [*state["state"], *(name for group in state["param_groups"] for name in group["params"])]
    if numbers := [name for name in named if not isinstance(name, str)]:
        raise CheckpointError(
            f"the optimizer state knows parameters by numbers such as {numbers[0]!r}, which say nothing once "
            "the model is cut; save a serial run's with "
            "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(model, optimizer)"
        )


def _check_known(groups: list[Group], names: Names) -> None:
    known = set(names.all)
    if strange := [name for group in groups for name in group["params"] if name not in known]:
        raise CheckpointError(
            f"the optimizer state has parameters of no stage of this pipeline: {', '.join(strange)}"
        )


def _listed_name(aliases: list[str], listed: set[str], index: int, groups: list[Group]) -> str:
    for name in aliases:
        if name in listed:
            return name
    elsewhere = [i for i, group in enumerate(groups) if aliases[0] in group["params"]]
    where = f"in group {elsewhere[0]}" if elsewhere else "in none"
    raise CheckpointError(
        f"{aliases[0]} is in the optimizer's parameter group {index}, and {where} of the optimizer state; "
        "build the groups as they were when it was saved"
    )
