"""``with overlap_comm_compute():`` sends and receives posted inside are waited for where the block ends.

It posts nothing and knows no schedule. It stands between torch.distributed and its process groups: all that
``isend``, ``irecv``, ``send``, ``recv``, ``P2POp`` and ``batch_isend_irecv`` do is done by methods of
``ProcessGroup``, and these note what they start, on the threads that are in a block. A ``TorchDispatchMode``
would see the same operations, but also every operation of the computation: small steps took twice as long
under one, and torch does not compile under it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: The methods by which all P2P begins. A batch of NCCL's is one piece of work that exists at its end alone.
_METHODS = ("send", "recv", "recv_anysource", "_end_coalescing")

_lock = threading.Lock()
_open_blocks = 0
#: What was put in the place of what: (class, name, the original, the stand-in).
_replaced: list[tuple[type, str, Any, Any]] = []


class _Blocks(threading.local):
    """What the blocks of this thread have to wait for, the innermost last."""

    def __init__(self) -> None:
        self.pending: list[list[_Once]] = []


_blocks = _Blocks()


class _Once:
    """A ``Work`` that may be waited for twice, by the block and by who posted it.

    gloo's may not: its second wait lasts until the timeout.
    """

    def __init__(self, work: Any) -> None:
        self._work = work
        self._waited = False
        self._answer: Any = None

    def wait(self, *arguments: Any, **keywords: Any) -> Any:
        """As ``Work.wait``; what that answered once it answers again."""
        if not self._waited:
            self._answer = self._work.wait(*arguments, **keywords)
            self._waited = True
        return self._answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


@contextmanager
def overlap_comm_compute() -> Iterator[None]:
    """Starts sends and receives posted inside at once, and waits for them at the end of the block.

        with dp.overlap_comm_compute():
            dist.isend(output, next_rank)
            dist.irecv(buffer, previous_rank)
            compute()  # what is sent and received meanwhile must not be touched
        # here the output has left and the buffer is filled

    For ``torch.distributed``'s point-to-point operations on any process group, posted by this thread:
    ``isend``, ``irecv``, ``batch_isend_irecv``, and ``send`` and ``recv``, which wait by themselves. What
    they return may be waited for earlier, and again. Blocks may be nested: each waits for its own. On a GPU
    to wait means that the current stream does, as with ``Work.wait()``.

    Where the block raises, nothing is waited for, and the exception passes. Without torch there is no such
    operation, and the block does nothing.

    Raises:
        RuntimeError: what a wait for a send or a receive raises.
    """
    if not _enter():
        yield
        return
    pending: list[_Once] = []
    _blocks.pending.append(pending)
    try:
        yield
    finally:
        _blocks.pending.pop()
        _leave()
    for work in pending:
        work.wait()


def _enter() -> bool:
    """Has the methods note what they start; False where there is no torch.distributed in this process."""
    global _open_blocks
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available():
        return False
    with _lock:
        _open_blocks += 1
        if _open_blocks == 1:
            for cls in _with_subclasses(distributed.ProcessGroup):
                _replace_methods(cls)
    return True


def _leave() -> None:
    """Puts the methods back when no thread is in a block."""
    global _open_blocks
    with _lock:
        _open_blocks -= 1
        if _open_blocks:
            return
        for cls, name, original, stand_in in _replaced:
            if vars(cls).get(name) is stand_in:  # Else somebody has put something around it meanwhile.
                setattr(cls, name, original)
        _replaced.clear()


def _replace_methods(cls: type) -> None:
    for name in _METHODS:
        original = vars(cls).get(name)
        if original is not None:
            stand_in = _noting(original)
            setattr(cls, name, stand_in)
            _replaced.append((cls, name, original, stand_in))


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose work is noted where this thread is in a block."""

    @functools.wraps(method)
    def started(*arguments: Any, **keywords: Any) -> Any:
        work = method(*arguments, **keywords)
        # Within a batch of NCCL's there is no work yet; a method that calls another's has the other's.
        if work is None or isinstance(work, _Once) or not _blocks.pending:
            return work
        once = _Once(work)
        _blocks.pending[-1].append(once)
        return once

    return started


def _with_subclasses(cls: type) -> Iterator[type]:
    """Process groups written in Python have methods of their own."""
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)
