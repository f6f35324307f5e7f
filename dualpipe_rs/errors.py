"""The exceptions of dualpipe_rs: one base class, one subclass for each side that can be wrong.

The Rust core raises these same classes (rust/python/errors.rs imports them from here).
"""

from __future__ import annotations

from typing import NamedTuple


class Error(Exception):
    """Base class of everything that dualpipe_rs raises on its own account."""


class UsageError(Error, ValueError):
    """The caller broke a contract: an illegal size, a wrong argument, an unreadable text."""


class SizeError(UsageError):
    """A published schedule does not exist for these numbers of ranks and microbatches."""


class CheckpointError(UsageError, RuntimeError):
    """A checkpoint does not fit the model or the optimizer; also a ``RuntimeError``, as with torch."""


class Violation(NamedTuple):
    """One rule that a schedule breaks, and where.

    Attributes:
        kind: the rule, one word: ``"missing"``, ``"duplicate"``, ``"mixed"``, ``"wrong_rank"``,
            ``"out_of_range"``, ``"pair"``, ``"order"``, ``"forward_only"``, ``"memory"`` or ``"deadlock"``.
        rank: the rank in whose row it is.
        slot: the index in that row, or ``None`` for an action that stands nowhere.
        action: the action as text, such as ``"3F0"``.
        needs: what is missing or must come first, as text, or ``None``.
        message: all of it as a sentence.
    """

    kind: str
    rank: int
    slot: int | None
    action: str
    needs: str | None
    message: str

    def __str__(self) -> str:
        return self.message


class ScheduleError(Error, ValueError):
    """A schedule breaks a rule. ``violations`` lists every :class:`Violation` found."""

    def __init__(self, message: str, violations: list[Violation] | None = None) -> None:
        super().__init__(message)
        self.violations: list[Violation] = violations or []

    def __reduce__(self) -> tuple[type[ScheduleError], tuple[str, list[Violation]]]:
        return type(self), (str(self), self.violations)


class RankError(Error, RuntimeError):
    """A rank failed during a step; every rank of the group raises one.

    ``__cause__`` is the exception that the failing rank met, where it was an exception.

    Attributes:
        rank: the rank that failed.
        slot: the index in its row of the slot that it was in, or ``None`` outside any slot.
        action: that slot as text, such as ``"(0F7;7B3)"``, or ``None``. Of a rank that does not answer, what
            another waits for from it, such as ``"2B3"``: the gradient that its stage 2 hands back.
    """

    def __init__(self, message: str, rank: int, slot: int | None = None, action: str | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.slot = slot
        self.action = action

    def __reduce__(self) -> tuple[type[RankError], tuple[str, int, int | None, str | None]]:
        return type(self), (str(self), self.rank, self.slot, self.action)


class DeviceError(Error, RuntimeError):
    """CUDA's driver or NCCL is not usable, or refused a call; says which and why (``dp.cuda.diagnose()``)."""
