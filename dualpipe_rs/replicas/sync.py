"""Parameters with several copies: made equal before training, their gradients summed after each step.

Copies are those of a stage on two ranks (DualPipe), of tied parameters, and of data-parallel replicas. A
stage's two ranks see a half each of the microbatches of one step, so their gradients are summed; replicas see
batches of their own, and theirs are averaged, as DistributedDataParallel does.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualpipe_rs.errors import UsageError
from dualpipe_rs.groups import Group
from dualpipe_rs.logs import log
from dualpipe_rs.replicas import zero
from dualpipe_rs.replicas.copies import Held, description, digest, local, shard
from dualpipe_rs.replicas.holders import Key
from dualpipe_rs.replicas.layout import Layout, Stages, Ties

_Tensors = dict[str, tuple[str, list[Tensor]]]  # by name: a label, and this rank's objects


class Replicas:
    """One rank's parameters, and their copies on other ranks. All its methods are collective.

    Args:
        group: the ranks of the pipeline.
        rank: this one in the schedule.
        stages: gives this rank's modules, by stage.
        ties: where this rank has tied parameters, by tie.
        data_parallel: the process group of the ranks that hold these stages in other pipelines, or ``None``.
    """

    def __init__(self, group: Group, rank: int, stages: Stages, ties: Ties, data_parallel: Any) -> None:
        self.group = group
        self._layout: Layout | None = None
        self._made_of = (rank, stages, ties, data_parallel)
        self._stages = stages
        self._equal = False
        self._sharing: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        # The gradients that the last synchronisation wrote. Weak: they are the parameters' to keep.
        self._sums: list[tuple[nn.Parameter, weakref.ref[Tensor]]] = []

    @property
    def layout(self) -> Layout:
        """Who holds what; worked out, and the copies seen to be of one kind, when first asked for."""
        if self._layout is None:
            layout = Layout(self.group, *self._made_of)
            if layout.shared:
                self._check_kinds(layout)
            self._layout = layout
        return self._layout

    def before_training(self) -> None:
        """Makes copies equal before the first step, and sees which synchronised gradients are still held."""
        if not self._equal:
            if self.layout.shared:
                self._make_equal()
            self._equal = True
        held = self._held_sums()
        if not any(bool(grad.any()) for grad in held):  # zeroed in place
            self._sums = []

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Puts into ``.grad`` the sum over a pipeline's copies, averaged over its data-parallel replicas."""
        if self._held_sums():
            raise UsageError(
                "sync_gradients() was called a second time on the same gradients, which would sum what is "
                "summed already; call it once, after the last accumulated step, then zero_grad()"
            )
        if not self.layout.shared:
            return
        trained = self._trained()
        flats = {
            key: {dtype: self._flat(held) for dtype, held in by_type.items()}
            for key, by_type in trained.items()
        }
        sums = self.layout.holders.sum(flats, "sums gradients")
        self._sums = []
        for key, by_type in trained.items():
            for dtype, held in by_type.items():
                self._take(sums[key][dtype], held)

    def assert_equal(self) -> None:
        """Raises :class:`UsageError` on all ranks if copies of a parameter differ in any bit."""
        if not self.layout.shared:
            return
        purpose = "compares the copies of its parameters"
        differing = self._differing(self._parameters(), purpose)
        messages = [
            f"{label} differs between ranks {first} and {second}; copies stay equal if every rank calls "
            "sync_gradients() before each step of its optimizer, and optimizers are alike"
            for label, first, second, _, _ in differing[:1]
        ]
        self._raise_together(messages, purpose)

    def anywhere(self, flag: bool, purpose: str) -> bool:
        """Whether it is true on any rank of this pipeline or its data-parallel replicas."""
        told = any(self.group.exchange(flag, purpose))
        if self.layout.replicas > 1:
            key = self.layout.stage_key
            told = any(self.layout.holders.gather({key: told}, purpose)[key])
        return told

    def zero1(self, optimizer_class: Any, param_groups: zero.ParamGroups | None, options: Any) -> Any:
        """An optimizer for this rank's share; see :mod:`dualpipe_rs.replicas.zero`."""
        optimizer = zero.make(self.layout, optimizer_class, param_groups, options)
        self._sharing.add(optimizer)
        return optimizer

    def stepped_with(self, optimizer: Any) -> list[nn.Parameter] | None:
        """All parameters of this rank if the optimizer is one of :meth:`zero1`'s, else ``None``."""
        if optimizer not in self._sharing:
            return None
        return [p for several in self.layout.held().values() for held in several for p in held.parameters]

    # -- gradients ------------------------------------------------------------------------------------

    def _trained(self) -> dict[Key, dict[torch.dtype, list[Held]]]:
        """What is to be summed: all that has a second copy anywhere, here or on another rank."""
        found: dict[Key, dict[torch.dtype, list[Held]]] = {}
        for key, several in self.layout.held().items():
            alone = len(self.layout.holders.ranks(key)) == 1
            for held in several:
                if held.trained and not (alone and len(held.parameters) == 1):
                    found.setdefault(key, {}).setdefault(held.parameters[0].dtype, []).append(held)
        return found

    def _flat(self, several: Sequence[Held]) -> Tensor:
        """All gradients in one tensor, zeros for missing ones, then for each a 1 if it is there, else a 0."""
        like = shard(several[0].parameters[0])
        sizes = [shard(held.parameters[0]).numel() for held in several]
        flat = torch.zeros(sum(sizes) + len(sizes), dtype=like.dtype, device=like.device)
        grads = [held.gradient() for held in several]
        for part, grad in zip(flat.split([*sizes, len(sizes)]), grads, strict=False):
            if grad is not None:
                part.copy_(grad.reshape(-1))
        # Before the sum, as DistributedDataParallel does: in half precision the sum itself might overflow.
        flat /= self.layout.replicas
        flat[sum(sizes) :] = torch.tensor([float(grad is not None) for grad in grads])
        return flat

    def _take(self, flat: Tensor, several: Sequence[Held]) -> None:
        """The reverse of :meth:`_flat`. A gradient that none of the holders has stays ``None``."""
        sizes = [shard(held.parameters[0]).numel() for held in several]
        *parts, there = flat.split([*sizes, len(sizes)])
        for held, part, present in zip(several, parts, (there != 0).tolist(), strict=True):
            for parameter in held.parameters if present else ():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                own = local(parameter.grad, held)
                own.copy_(part.view(own.shape))
                self._sums.append((parameter, weakref.ref(parameter.grad)))

    def _held_sums(self) -> list[Tensor]:
        return [p.grad for p, grad in self._sums if p.grad is not None and p.grad is grad()]

    # -- equal copies ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _make_equal(self) -> None:
        """Gives all holders the parameters and buffers of the first where they differ."""
        purpose = "makes the copies of its stages equal"
        tensors = self._parameters()
        for name, labelled in self._buffers().items():
            tensors[self.layout.stage_key][name] = labelled
        plan: dict[Key, list[tuple[int, list[Tensor]]]] = {key: [(0, [])] for key in tensors}
        for label, first, second, key, name in self._differing(tensors, purpose):
            log.warning(
                "%s does not start equal on ranks %d and %d: all its holders take that of rank %d",
                label,
                first,
                second,
                first,
            )
            plan[key][0][1].append(shard(tensors[key][name][1][0]))
        self.layout.holders.spread(plan, purpose)
        for by_name in tensors.values():
            for _, (first_copy, *others) in by_name.values():
                for other in others:
                    shard(other).copy_(shard(first_copy))

    def _parameters(self) -> dict[Key, _Tensors]:
        return {
            key: {held.name: (held.label, list(held.parameters)) for held in several}
            for key, several in self.layout.held().items()
        }

    def _buffers(self) -> _Tensors:
        return {
            f"buffer {stage}.{name}": (f"buffer {name!r} of stage {stage}", [buffer])
            for stage, module in sorted(self._stages().items())
            for name, buffer in module.named_buffers()
        }

    def _differing(self, tensors: dict[Key, _Tensors], purpose: str) -> list[tuple[str, int, int, Key, str]]:
        """What is not equal on its holders: its label, two ranks where it differs, key and name."""
        digests = {
            key: {name: {digest(t) for t in objects} for name, (_, objects) in by_name.items()}
            for key, by_name in tensors.items()
        }
        found = []
        for key, told in self.layout.holders.gather(digests, purpose).items():
            ranks = self.layout.holders.ranks(key)
            for name, (label, _) in tensors[key].items():
                of_first = told[0][name]
                other = next(
                    (i for i, its in enumerate(told) if its.get(name) != of_first or len(of_first) > 1), None
                )
                if other is not None:
                    found.append((label, ranks[0], ranks[other], key, name))
        return found

    def _check_kinds(self, layout: Layout) -> None:
        """Refuses copies that are not of one kind: other names, shapes, types or layouts."""
        purpose = "compares the kinds of its stages' copies"
        own = {
            key: {held.name: (held.label, description(held.parameters[0])) for held in several}
            for key, several in layout.held().items()
        }
        for name, (label, (buffer,)) in self._buffers().items():
            own[layout.stage_key][name] = (label, description(buffer))
        messages = []
        for key, told in layout.holders.gather(own, purpose).items():
            for holder, its in zip(layout.holders.ranks(key), told, strict=True):
                for name in [*told[0], *its]:
                    one, two = told[0].get(name), its.get(name)
                    if one is None or two is None or one[1] != two[1]:
                        label = (one or two or ("",))[0]
                        messages.append(
                            f"{label} is {_kind(one)} on rank {layout.holders.ranks(key)[0]} and "
                            f"{_kind(two)} on rank {holder}; the holders of a stage build it alike, with the "
                            "same parameters trained, tied and shared"
                        )
        self._raise_together(messages, purpose)

    def _raise_together(self, messages: Sequence[str], purpose: str) -> None:
        """Raises the first message of any rank on all of them, so that none goes on alone."""
        told = self.group.exchange(messages[0] if messages else None, purpose)
        first = next((message for message in told if message is not None), None)
        if first is not None:
            raise UsageError(first)


def _kind(told: tuple[str, tuple[Any, ...]] | None) -> str:
    if told is None:
        return "missing"
    shape, dtype, trained, *layout = told[1]
    text = f"of shape {shape} and type {dtype.removeprefix('torch.')}, {'' if trained else 'not '}trained"
    return text + (f", laid out as {layout}" if layout else "")
