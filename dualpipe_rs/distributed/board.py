"""What the ranks of a group tell each other beside the tensors: the first failure, and where each rank is.

It hangs in the job's store. A rank that fails pins up its failure, if none hangs there yet, and rings at
every member; a thread of each member listens for its bell, so that ranks hear of a failure at once, in a slot
or in a wait, and answer where they are even if their main thread never comes back. While nothing fails, none
writes or reads: the listening thread sleeps in the store's own wait.

The store may be in the process that is lost. So nobody waits for it beyond a deadline, and once it has not
answered it is not asked again.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_FOREVER = timedelta(days=3650)
#: How often a store that cannot be listened at in a thread of its own is looked at, in seconds.
_LOOK = 0.2
#: How long the store is given for an answer, in seconds: one that is in a stopped process gives none.
_PATIENCE = 5.0
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

    @property
    def where(self) -> str:
        """The rank, and the slot if it is in one."""
        slot = "" if self.slot is None else f", slot {self.slot}, {self.action}"
        return f"rank {self.rank}{slot}"

    def __str__(self) -> str:
        slot = "" if self.slot is None else f" (slot {self.slot}, {self.action})"
        return f"{self.doing}{slot} for {self.seconds:.1f} s now"


class Board:
    """One member's view of the board.

    Args:
        store: the job's store under a prefix of this group.
        member, size: the member's number, and how many there are.
        where: what this member is at now.
        on_fatal: called when another has said that a rank is lost, in the listening thread.
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
            told = self._ask(lambda: self._pin_up(number, json.dumps(asdict(fault))))
            fault = Fault(**json.loads(told))
        except RuntimeError:
            # It is noted in `silence`; the others see for themselves that this rank does not go on.
            fault = self.fault or fault
        self._hear(number, fault, self._store)
        return fault

    def settled(self, rank: int) -> Fault:
        """All ranks know that a step has failed: returns why, and takes it down.

        Args:
            rank: one that is known to have failed, in case that the store cannot say more.
        """
        with self._lock:
            fault, number = self.fault, self._round
        if fault is None:
            try:
                fault = Fault(**json.loads(self._ask(lambda: self._store.get(f"fault/{number}"))))
            except RuntimeError as error:
                fault = Fault(rank, None, None, f"rank {rank} has failed, and could not say why: {error}")
        with self._lock:
            self._round += 1
            self.fault = None
        return fault

    def tell(self) -> None:
        """Says where this member is, for the failure of this round."""
        self._tell(self._store)

    def places(self, grace: float) -> dict[int, Place]:
        """Where each member is that answers within ``grace`` seconds, by member."""
        found: dict[int, Place] = {}
        with contextlib.suppress(RuntimeError):
            self._ask(lambda: self._look_for(found, grace))
        return found

    def read(self, members: Collection[int], *, holds_store: bool) -> None:
        """Says that this member knows all that it asked for; the store's holder first waits for the others.

        Args:
            members: those who are likely to ask, too.
            holds_store: whether the store ends with this process.
        """
        here = f"read/{self._round}"
        with contextlib.suppress(RuntimeError):
            self._ask(lambda: self._store.set(f"{here}/{self._member}", ""))
        if holds_store:
            keys = [f"{here}/{member}" for member in members]
            with contextlib.suppress(RuntimeError):
                self._ask(lambda: self._store.wait(keys, timedelta(seconds=_FAREWELL)))

    def close(self) -> None:
        """Ends the listening thread."""
        self._closing = True
        with contextlib.suppress(RuntimeError):
            self._ask(lambda: self._store.set(f"bell/{self._member}/{self._heard}", "closing"))
        self._listener.join(_FAREWELL)

    # -- the store --------------------------------------------------------------------------------

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """What a call of the store returns; RuntimeError if it cannot be reached, now or earlier."""
        if self.silence is not None:
            raise RuntimeError(self.silence)
        answers: list[Answer] = []
        failures: list[RuntimeError] = []

        def asks() -> None:
            try:
                answers.append(call())
            except RuntimeError as error:
                failures.append(error)

        thread = threading.Thread(target=asks, name="asks the store", daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        if not answers:
            why = str(failures[0]) if failures else f"no answer within {_PATIENCE:g} s"
            self.silence = f"the job's store cannot be reached ({why})"
            raise RuntimeError(self.silence)
        return answers[0]

    def _pin_up(self, number: int, text: str) -> str:
        text = self._store.compare_set(f"fault/{number}", "", text)
        for member in range(self._size):
            self._store.set(f"bell/{member}/{number}", "fault")
        return text

    def _tell(self, store: Any) -> None:
        def tells() -> None:
            store.set(f"place/{self._round}/{self._member}", json.dumps(asdict(self._where())))

        with contextlib.suppress(RuntimeError):
            self._ask(tells)

    def _look_for(self, found: dict[int, Place], grace: float) -> None:
        keys = {m: f"place/{self._round}/{m}" for m in range(self._size)}
        with contextlib.suppress(RuntimeError):  # not all answer
            self._store.wait(list(keys.values()), timedelta(seconds=grace))
        for member, key in keys.items():
            if self._store.check([key]):
                found[member] = Place(**json.loads(self._store.get(key)))

    # -- the listening thread ---------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            # A store's client serves one call at a time: one that waits holds up all others of the process.
            # To make one may take seconds, where names of hosts are looked up in vain; here nobody waits.
            can_wait = hasattr(self._store, "clone")
            ears = self._store.clone() if can_wait else self._store
            while not self._closing:
                self._wait_for_bell(ears, can_wait=can_wait)
                if self._closing:
                    return
                text = ears.get(f"fault/{self._heard}")
                self._hear(self._heard, Fault(**json.loads(text)), ears)
                self._heard += 1
        except RuntimeError as error:
            # Nobody is to be woken: the store may be that of a rank that has done its work, as the others
            # have or are about to. Whoever waits for a rank that is lost sees it from its connection.
            self.silence = self.silence or f"the job's store cannot be reached ({error})"

    def _wait_for_bell(self, ears: Any, *, can_wait: bool) -> None:
        key = f"bell/{self._member}/{self._heard}"
        if can_wait:
            ears.wait([key], _FOREVER)
            return
        while not self._closing and not ears.check([key]):
            time.sleep(_LOOK)

    def _hear(self, number: int, fault: Fault, store: Any) -> None:
        with self._lock:
            is_news = number == self._round and self.fault is None
            if is_news:
                self.fault = fault
        if is_news:
            self._tell(store)
            if fault.fatal:
                self._on_fatal()
