"""What a pipeline's parts ask of the group of ranks that it runs on.

Two kinds of group answer to it: ranks that are threads of one process, and ranks that are processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol


class Group(Protocol):
    """The ranks of one pipeline."""

    def rank(self) -> int:
        """This member's number."""

    def size(self) -> int:
        """How many members there are."""

    def exchange(self, object: Any, purpose: str = "exchanges objects") -> list[Any]:
        """Hands an object to all members and returns theirs, by member. All members call it."""


class ProcessesGroup(Group, Protocol):
    """The ranks of one pipeline where each is a process of torch.distributed."""

    @property
    def global_ranks(self) -> Sequence[int]:
        """The rank in the whole job, by member."""

    @property
    def timeout(self) -> timedelta:
        """How long a collective may wait."""

    def meet(self, purpose: str, *numbers: int) -> list[list[int]]:
        """Comes together with all members, which must have come for the same purpose; their numbers."""

    def at(self, what: str) -> AbstractContextManager[Any]:
        """To be around each collective: what fails in it raises as a failure of this rank's at ``what``."""

    def backend_for(self, device: Any) -> str:
        """The name of the backend that carries tensors of this device type, such as ``"nccl"``."""
