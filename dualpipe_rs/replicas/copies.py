"""Which parameters this rank holds, each once and in an order that all holders of its copies share.

It talks to no other rank: who holds the copies is layout.py's, and how they are reached holders.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualpipe_rs.errors import UsageError

#: Where a parameter is: its stage, and its name in the stage's module.
Place = tuple[int, str]


@dataclass(frozen=True)
class Held:
    """One parameter of the model.

    Attributes:
        places: where this rank has it.
        parameters: this rank's objects for it; several where a tie's stages came with a copy each.
        tie: the name of the tie that it belongs to, or ``None``.
    """

    places: tuple[Place, ...]
    parameters: tuple[nn.Parameter, ...]
    tie: str | None = None

    @property
    def stage(self) -> int:
        """The first stage that has it."""
        return self.places[0][0]

    @property
    def label(self) -> str:
        """For messages."""
        stage, name = self.places[0]
        tie = "" if self.tie is None else f" (tie {self.tie!r})"
        return f"parameter {name!r} of stage {stage}{tie}"

    @property
    def name(self) -> str:
        """The same on all holders."""
        stage, name = self.places[0]
        return f"tie {self.tie}" if self.tie is not None else f"{stage}.{name}"

    @property
    def trained(self) -> bool:
        """Whether it can have a gradient."""
        return self.parameters[0].requires_grad

    def gradient(self) -> Tensor | None:
        """This rank's part of its gradient, or ``None``."""
        grads = [local(p.grad, self) for p in self.parameters if p.grad is not None]
        return grads[0] if len(grads) == 1 else sum(grads[1:], grads[0]) if grads else None


def held_by(stages: Mapping[int, nn.Module], ties: Mapping[str, Sequence[Place]]) -> list[Held]:
    """The parameters of these stages, by stage and name, then those of ties, by the ties' names."""
    tie_of = {
        id(stages[stage].get_parameter(name)): tie for tie, places in ties.items() for stage, name in places
    }
    found: dict[Any, list[tuple[Place, nn.Parameter]]] = {}
    for stage in sorted(stages):
        for name, parameter in stages[stage].named_parameters():
            found.setdefault(tie_of.get(id(parameter), id(parameter)), []).append(((stage, name), parameter))
    plain = [_held(uses) for key, uses in found.items() if not isinstance(key, str)]
    return plain + [_held(found[tie], tie) for tie in sorted(ties)]


def _held(uses: Sequence[tuple[Place, nn.Parameter]], tie: str | None = None) -> Held:
    objects = {id(parameter): parameter for _, parameter in uses}
    return Held(tuple(place for place, _ in uses), tuple(objects.values()), tie)


def local(tensor: Tensor, held: Held) -> Tensor:
    """What this process has of a tensor: of a DTensor its shard.

    Raises:
        UsageError: it is sparse, or a DTensor whose shards are yet to be summed.
    """
    if _is_distributed(tensor):
        placements = getattr(tensor, "placements", ())
        if any(placement.is_partial() for placement in placements):
            raise UsageError(
                f"the gradient of {held.label} is a DTensor that is yet to be summed ({placements}); "
                "redistribute it to shards or replicas first"
            )
        return shard(tensor)
    if tensor.layout != torch.strided:
        raise UsageError(
            f"the gradient of {held.label} is sparse, and copies on several ranks are summed densely; build "
            "the embedding with sparse=False"
        )
    return tensor


def description(tensor: Tensor) -> tuple[Any, ...]:
    """What must be equal for two copies to be of one kind: shape, type, training, and a DTensor's layout."""
    kind: tuple[Any, ...] = (tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
    if _is_distributed(tensor):
        layout: Any = tensor
        mesh = layout.device_mesh
        kind += (str(layout.placements), tuple(mesh.shape), tuple(mesh.get_coordinate() or ()))
    return kind


def digest(tensor: Tensor) -> bytes:
    """16 bytes that tell the tensor's bits on this process from any others."""
    bits: Any = as_bytes([shard(tensor)]).cpu().numpy()
    return hashlib.blake2b(bits, digest_size=16).digest()


def shard(tensor: Tensor) -> Tensor:
    """Its part in this process, in the same memory: of a DTensor the shard, else the tensor itself."""
    whole: Any = tensor.detach()
    part: Tensor = whole.to_local() if _is_distributed(tensor) else whole
    return part


def _is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told without importing torch.distributed.tensor, which takes long."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def as_bytes(tensors: Iterable[Tensor]) -> Tensor:
    """The tensors' bits in one new tensor of bytes, in the order of :func:`by_width`."""
    parts = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in by_width(tensors)]
    return torch.cat(parts)


def from_bytes(flat: Tensor, tensors: Iterable[Tensor]) -> None:
    """Puts what :func:`as_bytes` made of tensors like these into these."""
    start = 0
    for tensor in by_width(tensors):
        stop = start + tensor.numel() * tensor.element_size()
        tensor.detach().copy_(flat[start:stop].view(tensor.dtype).view(tensor.shape))
        start = stop


def by_width(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Wider elements first, so that each tensor begins at a multiple of its element's size."""
    return sorted(tensors, key=lambda t: -t.element_size())
