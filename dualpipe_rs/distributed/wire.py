"""One rank's ends of the channels in one step, as the Rust interpreter calls them (rust/python/remote.rs).

A receive whose layout is known is posted at once; one that is not waits for its header first. A send leaves
at once and is kept until it has arrived for certain. Members here are numbered as in the schedule.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualpipe_rs.batch import Values
from dualpipe_rs.distributed.in_step import InStep
from dualpipe_rs.distributed.layouts import HEADER, Layout, Table, decode, encode, fitted, layout_of
from dualpipe_rs.distributed.links import Links, Work
from dualpipe_rs.errors import Error


class Lost(Error):
    """A rank did not answer; ``rank`` is the one that was waited for, ``tensor`` what it was to send."""

    def __init__(self, rank: int, tensor: str) -> None:
        super().__init__(f"lost {tensor} of rank {rank}")
        self.rank, self.tensor = rank, tensor


@dataclass
class _Receive:
    """A tensor's way here: its header, if it needs one, then its parts."""

    header: tuple[Tensor, Work] | None = None
    layout: Layout | None = None
    parts: list[Tensor | None] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)


@dataclass
class _Send:
    """What is on its way from here, with the memory that must stay."""

    key: str
    tensors: list[Tensor] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)


class Wire(InStep):
    """The channels of one rank in one step.

    Args:
        rank: this rank in the schedule.
        members: the member of the group that each rank of the schedule is.
        links: the ways to the members.
        table: the layouts known from earlier steps of this kind.
        device: where the stages are.
        others_failed: whether another rank has failed.
        check_interrupts: raises what a pending Ctrl-C raises.
        failed: is told the error of this rank, or None if another's stopped it; answers whether the rest of
            the program is to be carried out without computing.
    """

    def __init__(
        self,
        rank: int,
        members: Sequence[int],
        links: Links,
        table: Table,
        device: torch.device,
        *,
        others_failed: Callable[[], bool],
        check_interrupts: Callable[[], None],
        failed: Callable[[BaseException | None], bool],
    ) -> None:
        super().__init__(rank, others_failed, check_interrupts)
        self.failed = failed
        #: The layouts that this step has shown.
        self.seen: dict[str, Layout] = {}
        self._members = members
        self._links = links
        self._table = table
        self._device = device
        self._receives: dict[str, _Receive] = {}
        self._unannounced: defaultdict[int, deque[str]] = defaultdict(deque)
        self._sends: defaultdict[int, deque[_Send]] = defaultdict(deque)
        self._arrived: defaultdict[int, int] = defaultdict(int)

    # -- what the interpreter calls ---------------------------------------------------------------

    def post(self, source: int, key: str) -> None:
        """Makes room for a tensor."""
        receive = self._receives[key] = _Receive()
        layout = self._table.get(key)
        if layout is not None:
            self._begin(source, receive, layout)
            return
        numbers = torch.empty(HEADER, dtype=torch.int64)
        receive.header = (numbers, self._links.receive_header(self._members[source], numbers))
        self._unannounced[source].append(key)

    def wait(self, source: int, key: str, delivered: int) -> Values | None:
        """A tensor that was posted, once it is here; None if there will be none."""
        if self._others_failed():
            return None
        value = self._take(source, key)
        self._let_go(source, delivered)
        self._check_interrupts()
        return value

    def discard(self, source: int, key: str) -> None:
        """Takes a tensor that was posted, if it was not taken, and drops it."""
        if key in self._receives:
            self._take(source, key)

    def send(self, to: int, key: str, value: Values | None) -> None:
        """Hands over a tensor, or with None something in its place, as the step has failed.

        Raises:
            UsageError: it is laid out otherwise than before, or cannot travel; something has been sent in its
            place.
        """
        known = self._table.get(key)
        try:
            if value is not None:
                value = self._prepared(value, key, known)
        except Error as error:
            self.failed(error)  # before others go on with what is sent in its place
            self.send(to, key, None)
            raise
        sending = _Send(key)
        self._sends[to].append(sending)
        if known is None:
            layout = None if value is None else layout_of(value, key)
            self._announce(to, sending, layout)
        elif value is None:
            value = tuple(None if part is None else part.zeros(self._device) for part in known)
        for tensor in value or ():
            if tensor is not None and tensor.numel():
                self._start(to, sending, _memory_of(tensor), self._links.send)

    def sent(self, to: int, key: str) -> None:
        """Goes on once a tensor handed over has left.

        One that needed a header is not waited for: its receiver makes room only once it waits itself, and two
        that wait for each other's would do so for ever.
        """
        if self._table.get(key) is None:
            return
        self._waits, self._since = (to, key), time.monotonic()
        for sending in self._sends[to]:
            if sending.key == key:
                self._await_all(to, key, sending.works)

    def finish(self) -> None:
        """Goes on once all that was sent has left."""
        for to, sends in self._sends.items():
            self._let_go(to, self._arrived[to] + len(sends))

    # -- sending ----------------------------------------------------------------------------------

    def _prepared(self, value: Values, key: str, known: Layout | None) -> Values:
        if known is not None:
            return fitted(value, key, known, self._device)
        self.seen[key] = layout_of(value, key)
        return value

    def _announce(self, to: int, sending: _Send, layout: Layout | None) -> None:
        numbers = encode(layout)
        first = torch.zeros(HEADER, dtype=torch.int64)
        first[: min(len(numbers), HEADER)] = torch.tensor(numbers[:HEADER])
        self._start(to, sending, first, self._links.send_header)
        if len(numbers) > HEADER:
            self._start(to, sending, torch.tensor(numbers[HEADER:]), self._links.send_rest)

    def _start(self, to: int, sending: _Send, tensor: Tensor, start: Callable[[int, Tensor], Work]) -> None:
        sending.tensors.append(tensor)
        sending.works.append(self._on_channel(to, sending.key, start, tensor))

    def _let_go(self, to: int, delivered: int) -> None:
        """Forgets the sends that have arrived, and with them their memory."""
        while self._arrived[to] < delivered and self._sends[to]:
            sending = self._sends[to].popleft()
            self._await_all(to, sending.key, sending.works)
            self._arrived[to] += 1

    # -- receiving --------------------------------------------------------------------------------

    def _begin(self, source: int, receive: _Receive, layout: Layout) -> None:
        """Makes room for the parts, and has them received."""
        receive.layout = layout
        receive.parts = [None if part is None else part.empty(self._device) for part in layout]
        for tensor in receive.parts:
            if tensor is not None and tensor.numel():
                receive.works.append(self._on_channel(source, "", self._links.receive, tensor))

    def _take(self, source: int, key: str) -> Values | None:
        self._waits, self._since = (source, key), time.monotonic()
        receive = self._receives[key]
        while receive.header is not None:
            self._read_header(source, self._unannounced[source][0])
        self._await_all(source, key, receive.works)
        del self._receives[key]
        self._waits, self._since = None, time.monotonic()
        if receive.layout is None:
            return None
        for tensor, part in zip(receive.parts, receive.layout, strict=True):
            if tensor is not None and part is not None and part.requires_grad:
                tensor.requires_grad_()
        return tuple(receive.parts)

    def _read_header(self, source: int, key: str) -> None:
        """Reads the next header of a channel: the parts of a channel are received in its order."""
        receive = self._receives[key]
        assert receive.header is not None
        numbers, work = receive.header
        self._await_all(source, key, [work])
        listed = numbers.tolist()
        if listed[0] > HEADER - 1:
            rest = torch.empty(listed[0] + 1 - HEADER, dtype=torch.int64)
            work = self._on_channel(source, key, self._links.receive_rest, rest)
            self._await_all(source, key, [work])
            listed += rest.tolist()
        self._unannounced[source].popleft()
        receive.header = None
        layout = decode(listed)
        if layout is not None:
            self.seen[key] = layout
            self._begin(source, receive, layout)

    # -- the links --------------------------------------------------------------------------------

    def _on_channel(self, rank: int, key: str, start: Callable[[int, Tensor], Work], tensor: Tensor) -> Work:
        try:
            return start(self._members[rank], tensor)
        except RuntimeError as error:
            raise Lost(rank, key or "a tensor") from error

    def _await_all(self, rank: int, key: str, works: list[Work]) -> None:
        while works:
            try:
                # A work that is completed must not be waited for a second time: gloo would wait for another.
                if not works[0].is_completed():
                    works[0].wait()
            except RuntimeError as error:
                raise Lost(rank, key) from error
            works.pop(0)


def _memory_of(tensor: Tensor) -> Tensor:
    """A tensor whose memory, read from one end to the other, is the value; the same one where it can be."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()
