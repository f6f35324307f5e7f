"""Parameters that are one in the model and stand in several stages, such as an embedding and the head.

When a model is cut they are marked by name, so that copies of the stages on other ranks are known to be
tied; a pipeline reads the marks (and its keyword ``tied``) and has their gradients summed (replicas.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dualpipe_rs.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from dualpipe_rs.replicas.copies import Place

# In a stage's __dict__, which copy.deepcopy and pickle keep: {name of the tie: name of the parameter}.
_MARK = "_dualpipe_rs_ties"


def mark(stages: Sequence[nn.Module]) -> list[list[tuple[int, str]]]:
    """Marks the parameters that stages share, and returns the places of each: (stage, name) in its module."""
    places: dict[int, list[tuple[int, str]]] = {}
    for stage, module in enumerate(stages):
        for name, parameter in module.named_parameters():
            places.setdefault(id(parameter), []).append((stage, name))
    shared = [found for found in places.values() if len(found) > 1]
    for found in shared:
        for stage, name in found:
            stages[stage].__dict__.setdefault(_MARK, {})[found[0][1]] = name
    return shared


def ties_of(stages: Mapping[int, nn.Module], tied: Any) -> dict[str, list[Place]]:
    """The ties of this rank's stages, by name: those that the user gives and those that are marked.

    Raises:
        UsageError: ``tied`` is no mapping from names to parameters of these stages.
    """
    places: dict[int, list[Place]] = {}
    for stage, module in sorted(stages.items()):
        for name, parameter in module.named_parameters():
            places.setdefault(id(parameter), []).append((stage, name))
    ties = {name: _given(name, parameter, places) for name, parameter in _checked(tied).items()}
    covered = {place for found in ties.values() for place in found}
    for stage, module in sorted(stages.items()):
        for tie, name in module.__dict__.get(_MARK, {}).items():
            if (stage, name) not in covered:
                ties.setdefault(tie, []).append((stage, name))
    return ties


def _checked(tied: Any) -> Mapping[str, Any]:
    if not isinstance(tied, Mapping) or not all(isinstance(name, str) for name in tied):
        raise UsageError(
            f"tied is {tied!r}; it maps the name of each tie to this rank's parameter, such as "
            "{'embedding': model.head.weight}"
        )
    return tied


def _given(tie: str, parameter: Any, places: Mapping[int, list[Place]]) -> list[Place]:
    """Where the parameters given for a tie stand."""
    several = parameter if isinstance(parameter, (list, tuple)) else [parameter]
    if not several or not all(id(one) in places for one in several):
        raise UsageError(
            f"what tied gives for {tie!r} is not a parameter of this rank's stages; give the nn.Parameter "
            "itself, as it stands in the stage (a rank that holds none of the tie leaves its name out)"
        )
    return sorted({place for one in several for place in places[id(one)]})
