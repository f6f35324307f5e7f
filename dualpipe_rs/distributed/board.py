"""What the ranks of a group tell each other beside the tensors: the first failure, and where each rank is.

It hangs in the job's store. A rank that fails pins up its failure, if none hangs there yet, and rings at
every member; a thread of each member listens for its bell, so that ranks hear of a failure at once, in a slot
or in a wait, and answer where they are even if their main thread never comes back. While nothing fails,
nothing is
written or read: the listening thread sleeps in the store's own wait.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

_FOREVER = timedelta(days=3650)
#: How often a store that cannot be listened at in a thread of its own is looked at, in seconds.
_LOOK = 0.2
#: How long the end of the process waits for the listener.
_FAREWELL = 2.0


@dataclass(frozen=True)
class Fault:
    """Where and why a step failed.

    Attributes:
        rank: of the schedule: the rank that failed or, where ``fatal``, that was waited for.
        slot, action: where it was, if known.
        message: what it raised, as a sentence.
        details: the traceback, as text.
        fatal: whether a rank is lost, so that the group cannot go on.
        reporter: the rank that says so.
    """

    rank: int
    slot: int | None
    action: str | None
    message: str
    details: str = ""
    fatal: bool = False
    reporter: int = -1


@dataclass(frozen=True)
class Place:
    """What a rank is at.

    Attributes:
        rank: of the schedule.
        doing: in words, such as "computes" or "waits for 1F2 from rank 1".
        seconds: for how long.
        slot, action: the slot that it is in, or was in last in this step.
        waits_for, tensor: the rank that it waits for, and what it waits for.
    """

    rank: int
    doing: str
    seconds: float
    slot: int | None = None
    action: str | None = None
    waits_for: int | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        slot = "" if self.slot is None else f" (slot {self.slot}, {self.action})"
        return f"{self.doing}{slot} for {self.seconds:.1f} s now"


class Board:
    """One member's view of the board.

    Args:
        store: the job's store under a prefix of this group.
        member, size: the member's number, and how many there are.
        where: what this member is at now.
        on_fatal: called in the listening thread when a rank is lost.
    """

    def __init__(
        self,
        store: Any,
        member: int,
        size: int,
        where: Callable[[], Place],
        on_fatal: Callable[[], None],
    ) -> None:
        self._store = store
        self._member = member
        self._size = size
        self._where = where
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._round = 0  # how many failures have been dealt with
        self._heard = 0  # the round whose bell is listened for
        self._closing = False
        #: The failure of this round, once it is known here.
        self.fault: Fault | None = None
        #: Why the store cannot be reached any more, if so.
        self.silence: str | None = None
        self._listener = threading.Thread(target=self._listen, name=f"board of {member}", daemon=True)
        self._listener.start()

    def announce(self, fault: Fault) -> Fault:
        """Pins up a failure and rings; returns the one that hangs there, which may be an earlier one."""
        number = self._round
        try:
            text = self._store.compare_set(f"fault/{number}", "", json.dumps(asdict(fault)))
            fault = Fault(**json.loads(text))
            for member in range(self._size):
                self._store.set(f"bell/{member}/{number}", "fault")
        except RuntimeError as error:
            self.silence = str(error)
        self._hear(number, fault)
        return fault

    def settled(self) -> Fault:
        """All ranks know that a step has failed: returns why, and takes it down."""
        with self._lock:
            fault, number = self.fault, self._round
        if fault is None:
            fault = Fault(**json.loads(self._store.get(f"fault/{number}")))
        with self._lock:
            self._round += 1
            self.fault = None
        return fault

    def tell(self) -> None:
        """Says where this member is, for the failure of this round."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"place/{self._round}/{self._member}", json.dumps(asdict(self._where())))

    def places(self, grace: float) -> dict[int, Place]:
        """Where each member is that answers within ``grace`` seconds, by member."""
        keys = {m: f"place/{self._round}/{m}" for m in range(self._size)}
        with contextlib.suppress(RuntimeError):
            self._store.wait(list(keys.values()), timedelta(seconds=grace))
        found = {}
        with contextlib.suppress(RuntimeError):
            for member, key in keys.items():
                if self._store.check([key]):
                    found[member] = Place(**json.loads(self._store.get(key)))
        return found

    def close(self) -> None:
        """Ends the listening thread."""
        self._closing = True
        with contextlib.suppress(RuntimeError):
            self._store.set(f"bell/{self._member}/{self._heard}", "closing")
        self._listener.join(_FAREWELL)

    # -- the listening thread ---------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            # A store's client serves one call at a time: a wait on it would hold up everyone else's.
            ears = self._store.clone() if hasattr(self._store, "clone") else None
            while not self._closing:
                self._wait_for_bell(ears or self._store, is_own=ears is not None)
                if self._closing:
                    return
                text = (ears or self._store).get(f"fault/{self._heard}")
                self._hear(self._heard, Fault(**json.loads(text)))
                self._heard += 1
        except RuntimeError as error:
            if not self._closing:
                self.silence = str(error)
                self._on_fatal()

    def _wait_for_bell(self, ears: Any, *, is_own: bool) -> None:
        key = f"bell/{self._member}/{self._heard}"
        if is_own:
            ears.wait([key], _FOREVER)
            return
        while not self._closing and not ears.check([key]):
            time.sleep(_LOOK)

    def _hear(self, number: int, fault: Fault) -> None:
        with self._lock:
            is_news = number == self._round and self.fault is None
            if is_news:
                self.fault = fault
        if is_news:
            self.tell()
            if fault.fatal:
                self._on_fatal()
