"""A rank's place on a GPU: :class:`Place`. Who is where, and over what the ranks reach each other.

The work is the Rust core's; here the ranks agree before it, by way of their group.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dualpipe_rs._core import DeviceRank, DeviceShared, LocalGroup, Schedule, communicators, nccl_unique_id
from dualpipe_rs.errors import DeviceError, RankError, UsageError
from dualpipe_rs.groups import Group
from dualpipe_rs.identity import host

T = TypeVar("T")

#: How long to sleep between two looks at a communicator that is being started, in seconds.
_PAUSE = 2e-4


def device_index(device: Any) -> int | None:
    """The index of a GPU that was named as torch names it; ``None`` for the CPU.

    Raises:
        UsageError: it is neither.
    """
    words = f"device is {device!r}; give None or 'cpu', or a GPU as an index, 'cuda' or 'cuda:1'"
    if device is None:
        return None
    if hasattr(device, "__index__") and not isinstance(device, bool):
        if not 0 <= operator.index(device) < 1 << 16:
            raise UsageError(words)
        return operator.index(device)
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", str(device))
    if match is None:
        raise UsageError(words)
    return None if match[0] == "cpu" else int(match[1] or 0)


def stream_handle(stream: Any) -> int:
    """The handle of a stream: a number, torch's (``cuda_stream``), CuPy's (``ptr``), or one that answers to
    ``__cuda_stream__``.

    Raises:
        UsageError: it is none of these.
    """
    handle = stream
    if hasattr(stream, "__cuda_stream__"):
        handle = stream.__cuda_stream__()[1]
    elif hasattr(stream, "cuda_stream"):
        handle = stream.cuda_stream
    elif hasattr(stream, "ptr"):
        handle = stream.ptr
    if isinstance(handle, bool) or not isinstance(handle, int) or not 0 <= handle < 1 << 64:
        raise UsageError(
            f"stream is a {type(stream).__name__}; give the handle of a CUDA stream, or a stream of torch or "
            "CuPy"
        )
    return handle


def check_links(schedule: Schedule, p2p: str, sharing: str, max_ctas: Any, timeout: Any) -> None:
    """Refuses settings that no step could run with.

    Raises:
        UsageError: the communicators could deadlock under ``p2p``, or a number is none that it can be.
    """
    communicators(schedule, p2p, sharing)
    is_count = isinstance(max_ctas, int) and not isinstance(max_ctas, bool)
    if max_ctas is not None and not (is_count and 1 <= max_ctas <= 32):
        raise UsageError(f"max_ctas is {max_ctas!r}; it is a whole number from 1 to 32, or None")
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not (is_number and 0 < timeout < 1e9):
        raise UsageError(f"timeout is {timeout!r}; it is a positive number of seconds")


class Place:
    """Where a rank computes, opened by the first step and anew after a failure.

    Args:
        group: this rank's group; ``None`` where all ranks run on one thread.
        rank: this rank in the schedule.
        device: the index of its GPU.
        sharing: ``"edge"`` or ``"pair"``: which edges have a communicator in common.
        max_ctas: the most CTAs that NCCL may take for an operation.
        timeout: the longest wait for the device or another rank, in seconds.
    """

    def __init__(
        self,
        group: Group | None,
        rank: int,
        device: int,
        *,
        sharing: str,
        max_ctas: int | None,
        timeout: float,
    ) -> None:
        self._group = group
        self._rank = rank
        self._device = device
        self._sharing = sharing
        self._max_ctas = max_ctas
        self._timeout = timeout
        self._open: DeviceRank | None = None

    def open(self, schedule: Schedule, p2p: str) -> DeviceRank:
        """This rank's place, for a step. All ranks call it.

        Raises:
            RankError: on every rank: a rank has no GPU, or NCCL could not start.
            UsageError: several ranks are on one GPU, and others on another.
        """
        if self._open is None:
            self._open = self._opened(schedule, p2p)
        return self._open

    def abort(self) -> None:
        """Cuts off what waits for other ranks, after a failure: the next :meth:`open` starts anew."""
        place, self._open = self._open, None
        if place is not None:
            place.abort()

    def close(self) -> None:
        """Ends the communicators in peace. All ranks call it.

        Raises:
            RankError: on every rank: one could not end within the timeout.
        """
        place, self._open = self._open, None
        if place is not None and self._group is not None:
            self._each("ends its communicators", lambda: self._until(place.close, "ending communicators"))

    def _opened(self, schedule: Schedule, p2p: str) -> DeviceRank:
        if self._group is None:
            return DeviceRank(self._device, DeviceShared(self._device), self._timeout)
        pairs = communicators(schedule, p2p, self._sharing)
        threads = isinstance(self._group, LocalGroup)
        where = self._all("takes its place on a GPU", lambda: self._device if threads else self._gpu())
        same = threads and len(set(where)) == 1
        if not same and len(set(where)) < len(where):
            gpus = ", ".join(map(str, where))
            raise UsageError(
                f"the ranks are on GPUs {gpus}, and NCCL takes one rank a GPU; give each its own, or put all "
                "on one as threads of one process (run_local)"
            )
        shared = self._shared(same, threads)
        place = self._each("opens its GPU", lambda: DeviceRank(self._device, shared, self._timeout))
        if not same:
            ids = self._all("makes communicators", lambda: self._own_ids(pairs))
            merged = {pair: id for own in ids for pair, id in own.items()}
            self._each("starts its communicators", lambda: self._start(place, merged))
        return place

    def _gpu(self) -> str:
        """What tells this GPU from all others."""
        from dualpipe_rs import cuda

        devices = cuda.diagnose().devices
        if self._device >= len(devices):
            raise DeviceError(f"there is no GPU {self._device} here; see print(dp.cuda.diagnose())")
        return f"{devices[self._device].uuid} of host {host():.0f}"

    def _shared(self, same: bool, threads: bool) -> DeviceShared:
        """What ranks that are threads have in common; a process has its own."""
        if not threads:
            return DeviceShared(None)
        assert self._group is not None
        is_first = self._group.rank() == 0
        device = self._device if same else None
        shared = self._all("shares a board", lambda: DeviceShared(device) if is_first else None)[0]
        assert shared is not None, "the first member has made it"
        return shared

    def _own_ids(self, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        from dualpipe_rs import cuda

        cuda.look_in_packages()
        return {pair: nccl_unique_id() for pair in pairs if pair[0] == self._rank}

    def _start(self, place: DeviceRank, ids: dict[tuple[int, int], bytes]) -> None:
        place.start(self._rank, ids, self._sharing, self._max_ctas)
        self._until(place.poll, "starting communicators")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout
        while not done():
            if time.monotonic() > deadline:
                raise _Overdue(f"{what} took longer than {self._timeout:g} s: another rank may be lost")
            time.sleep(_PAUSE)

    def _each(self, purpose: str, do: Callable[[], T]) -> T:
        """What this rank makes; if one could not, all raise."""
        made: list[T] = []
        self._all(purpose, lambda: made.append(do()))
        return made[0]

    def _all(self, purpose: str, do: Callable[[], T]) -> list[T]:
        """What each rank makes; if one could not, all raise."""
        assert self._group is not None
        made: T | None = None
        failed: Exception | None = None
        try:
            made = do()
        except Exception as error:
            failed = error
        words = None if failed is None else str(failed)
        cards = self._group.exchange((self._rank, made, words, isinstance(failed, _Overdue)), purpose)
        # Who waited in vain did so for one that failed, if one did.
        wrong = sorted((overdue, rank, words) for rank, _, words, overdue in cards if words is not None)
        if wrong:
            _, rank, words = wrong[0]
            cause = failed if rank == self._rank else None
            raise RankError(f"rank {rank} {purpose}, and could not: {words}", rank, None, None) from cause
        return [made for _, made, _, _ in cards]


class _Overdue(DeviceError):
    """Something took longer than the timeout."""
