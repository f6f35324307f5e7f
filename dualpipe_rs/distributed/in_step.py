"""A rank inside of a step: the slot that it is in, and what it waits for. Wires of both kinds build on it."""

from __future__ import annotations

import time
from collections.abc import Callable

from dualpipe_rs.distributed.board import Place


class InStep:
    """Where one rank is in one step.

    Args:
        rank: this rank in the schedule.
        others_failed: whether another rank has failed.
        check_interrupts: raises what a pending Ctrl-C raises.
    """

    #: What the rank is at in a slot; and what it says of a tensor that it waits for.
    in_slot = "computes"
    waiting = "waits for {tensor} from rank {rank}"

    def __init__(
        self, rank: int, others_failed: Callable[[], bool], check_interrupts: Callable[[], None]
    ) -> None:
        self._rank = rank
        self._others_failed = others_failed
        self._check_interrupts = check_interrupts
        # The slot it is or was in, and the (rank, tensor) it waits for.
        self._slot: tuple[int, str] | tuple[None, None] = (None, None)
        self._waits: tuple[int, str] | None = None
        self._since = time.monotonic()

    def place(self) -> Place:
        """What the rank is at; may be asked from another thread."""
        (index, action), waits, seconds = self._slot, self._waits, time.monotonic() - self._since
        if waits is not None:
            doing = self.waiting.format(rank=waits[0], tensor=waits[1])
            return Place(self._rank, doing, seconds, index, action, *waits)
        doing = "begins its step" if index is None else self.in_slot
        return Place(self._rank, doing, seconds, index, action)

    def enter(self, index: int, action: str) -> bool:
        """The rank comes to a slot; whether it is to go on."""
        self._slot, self._waits, self._since = (index, action), None, time.monotonic()
        self._check_interrupts()
        return not self._others_failed()

    def finish(self) -> None:
        """Goes on once all that was sent has left. Where the executor waits for that itself, there is no more
        to be done."""
