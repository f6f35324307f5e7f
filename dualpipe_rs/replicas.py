"""Stages that live on two ranks, as in DualPipe: their copies compared, and their gradients summed.

This is not data parallelism: each copy sees its own half of the microbatches of one step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dualpipe_rs._core import LocalGroup
from dualpipe_rs.errors import UsageError


class Replicas:
    """One rank's stages and, on its partner, their copies.

    Args:
        group: the ranks.
        partner: the member of the group that holds the copies.
        is_first: of the two; both sum in the order first + second, so that the sums are equal bit for bit.
        stages: gives this rank's modules, by stage.
    """

    def __init__(
        self, group: LocalGroup, partner: int, is_first: bool, stages: Callable[[], Mapping[int, nn.Module]]
    ) -> None:
        self._group = group
        self._partner = partner
        self._is_first = is_first
        self._stages = stages
        self._compared = False
        # The sums that the last synchronisation put into .grad. Weak: they are the parameters' to keep.
        self._sums: list[tuple[nn.Parameter, weakref.ref[Tensor]]] = []

    def before_training(self) -> None:
        """Compares the copies before the first step, and sees which synchronised gradients are still held."""
        if not self._compared:
            self._compare()
            self._compared = True
        held = self._held_sums()
        if not any(bool(grad.any()) for grad in held):  # zeroed in place
            self._sums = []

    def sum_gradients(self) -> None:
        """Puts the sum of both copies' gradients into ``.grad``; a missing one counts as zero."""
        if self._held_sums():
            raise UsageError(
                "sync_gradients() was called a second time on the same gradients, which would sum what is "
                "summed already; call it once, after the last accumulated step, then zero_grad()"
            )
        parameters = {stage: list(module.parameters()) for stage, module in self._stages().items()}
        theirs = self._exchange("sums gradients", lambda p: p.grad)
        own = {stage: [p.grad for p in held] for stage, held in parameters.items()}
        first, second = (own, theirs) if self._is_first else (theirs, own)
        sums = {
            stage: [_sum(a, b) for a, b in zip(first[stage], second[stage], strict=True)]
            for stage in parameters
        }
        self._group.exchange(None, "sums gradients")  # Nobody reads the old gradients any more.
        self._sums = []
        for stage, held in parameters.items():
            for parameter, grad in zip(held, sums[stage], strict=True):
                parameter.grad = grad
                if grad is not None:
                    self._sums.append((parameter, weakref.ref(grad)))

    def _held_sums(self) -> list[Tensor]:
        return [p.grad for p, grad in self._sums if p.grad is not None and p.grad is grad()]

    def _exchange(self, purpose: str, of: Callable[[nn.Parameter], Any]) -> dict[int, list[Any]]:
        """The partner's answers for its copies' parameters, by stage."""
        own = {stage: [of(p) for p in module.parameters()] for stage, module in self._stages().items()}
        theirs: dict[int, list[Any]] = self._group.exchange(own, purpose)[self._partner]
        return theirs

    def _compare(self) -> None:
        theirs = self._exchange("compares the copies of its stages", lambda p: p.detach())
        for stage, module in self._stages().items():
            own = [p.detach() for p in module.parameters()]
            if len(own) != len(theirs[stage]) or not all(map(torch.equal, own, theirs[stage])):
                raise UsageError(
                    f"the two copies of stage {stage} do not start equal; build the model once, before "
                    "run_local (ranks share one random generator), and give each rank a copy.deepcopy of it"
                )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        given = b if a is None else a
        return given if given is None else given.clone()
    return a + b
