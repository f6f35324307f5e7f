"""Parameters, persistent buffers and extra state of a whole pipeline, gathered and loaded.

It is not about files, and not about optimizers (optimizer.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parameter import is_lazy

from dualpipe_rs.checkpoint.names import Here, Names, agree, copied
from dualpipe_rs.errors import CheckpointError, UsageError

State = dict[str, Any]


def full_state(here: Here, destination: State | None, prefix: str, keep_vars: bool) -> State:
    """:meth:`dualpipe_rs.Pipeline.state_dict`."""
    names = agree(here)
    own = {stage: module.state_dict(keep_vars=keep_vars) for stage, module in here.modules.items()}
    mine = [stage for stage in own if names.home[stage] == here.rank]
    sent = {stage: (copied(dict(own[stage])), _metadata(own[stage])) for stage in mine}
    whole: dict[int, tuple[State, State]] = {}
    for shares in here.group.exchange(sent, "gathers its parameters"):
        whole.update(shares)
    whole.update({stage: (state, _metadata(state)) for stage, state in own.items()})
    return _named(names, whole, destination, prefix)


def local_state(here: Here, keep_vars: bool) -> State:
    """:meth:`dualpipe_rs.Pipeline.local_state_dict`."""
    own = {stage: module.state_dict(keep_vars=keep_vars) for stage, module in here.modules.items()}
    by_stage = {stage: (state, _metadata(state)) for stage, state in own.items()}
    return _named(agree(here), by_stage, None, "")


def load_state(here: Here, state: Any, strict: bool, assign: bool) -> _IncompatibleKeys:
    """:meth:`dualpipe_rs.Pipeline.load_state_dict`."""
    names = agree(here)  # Before any check: the other ranks wait for this one.
    if not isinstance(state, Mapping):
        raise UsageError(f"state_dict is of type {type(state).__name__}; give a dict of tensors by name")
    own = {
        names.of(stage, key): value
        for stage, module in here.modules.items()
        for key, value in module.state_dict(keep_vars=True).items()
    }
    missing = [name for name in own if name not in state]
    known = set(names.all)
    unexpected = [name for name in state if name not in known]
    wrong = [
        text for name, value in own.items() if name in state and (text := _misfit(name, value, state[name]))
    ]
    if strict:
        wrong += _listed("missing", missing) + _listed("of no stage of this pipeline", unexpected)
    if wrong:
        raise CheckpointError(
            f"the state_dict does not fit the stages of rank {here.rank}, and nothing was loaded: "
            + "; ".join(wrong)
        )
    for stage, module in here.modules.items():
        module.load_state_dict(_local(names, stage, module, state), strict=False, assign=assign)
    return _IncompatibleKeys(missing, unexpected)


def _metadata(state: State) -> State:
    """What nn.Module notes beside a state dict: the version of each submodule's format."""
    return dict(getattr(state, "_metadata", {}))


def _named(
    names: Names, by_stage: Mapping[int, tuple[State, State]], destination: State | None, prefix: str
) -> State:
    """The states and metadata of stages in one dict under global names."""
    if destination is None:
        destination = OrderedDict()
        destination._metadata = OrderedDict()  # type: ignore[attr-defined]
    metadata = getattr(destination, "_metadata", {})
    metadata[prefix[:-1]] = {"version": nn.Module._version}
    for stage in sorted(by_stage):
        state, notes = by_stage[stage]
        destination.update({prefix + names.of(stage, key): value for key, value in state.items()})
        metadata.update({(prefix + names.of(stage, path)).removesuffix("."): n for path, n in notes.items()})
    return destination


def _local(names: Names, stage: int, module: nn.Module, state: Mapping[str, Any]) -> State:
    """What ``state`` has for a stage, under the module's own keys."""
    keys = module.state_dict()
    own: State = OrderedDict((key, state[n]) for key in keys if (n := names.of(stage, key)) in state)
    noted = getattr(state, "_metadata", {})
    own._metadata = {  # type: ignore[attr-defined]
        path: noted[n] for path in _metadata(keys) if (n := names.of(stage, path)) in noted
    }
    return own


def _misfit(name: str, own: Any, given: Any) -> str | None:
    """What is wrong with the tensor given for ``own``, if anything is; extra state may be anything."""
    if not isinstance(own, Tensor):
        return None
    if not isinstance(given, Tensor):
        return f"{name} is of type {type(given).__name__}, not a tensor"
    if is_lazy(own) or is_lazy(given) or own.shape == given.shape:
        return None
    return f"{name} has shape {_shape(given)} in the state_dict and {_shape(own)} in the model"


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(map(str, names))}"] if names else []
