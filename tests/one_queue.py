"""A fake transport that puts what two ranks send each other in a group on one queue a rank: no tests here.

So does a NCCL communicator on its stream: a transfer is done only when it is at the head of both its ranks'
queues at once. Ranks are threads. It knows no time: ranks are stuck when each waits for what cannot come.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Stuck(RuntimeError):
    """All ranks wait for each other."""


@dataclass
class Transfer:
    """One end of a transfer; torch's ``Work``."""

    network: Network
    is_send: bool
    tensor: Tensor
    done: bool = False

    def is_completed(self) -> bool:
        return self.done

    def wait(self) -> None:
        self.network.wait(self)


class Network:
    """What the ranks of a job share."""

    def __init__(self, ranks: int) -> None:
        self.changed = threading.Condition()
        self.is_stuck = False
        self._working = ranks
        self._waiting: dict[int, Transfer] = {}
        self._queues: defaultdict[Any, deque[Transfer]] = defaultdict(deque)

    def start(self, own: Any, other: Any, transfer: Transfer) -> Transfer:
        """Puts a transfer on this rank's queue ``own``, whose other end is ``other``."""
        with self.changed:
            mine, theirs = self._queues[own], self._queues[other]
            mine.append(transfer)
            while mine and theirs and mine[0].is_send != theirs[0].is_send:
                ends = mine.popleft(), theirs.popleft()
                sent, received = sorted(ends, key=lambda end: not end.is_send)
                assert sent.tensor.shape == received.tensor.shape, "tensors of an edge overtook each other"
                if received.tensor.device.type == "cpu":
                    received.tensor.copy_(sent.tensor)
                sent.done = received.done = True
            self.changed.notify_all()
        return transfer

    def wait(self, transfer: Transfer) -> None:
        me = threading.get_ident()
        with self.changed:
            self._waiting[me] = transfer
            self._look()
            self.changed.wait_for(lambda: transfer.done or self.is_stuck)
            del self._waiting[me]
            if not transfer.done:
                raise Stuck("all ranks wait")

    def leave(self) -> None:
        """A rank has ended."""
        with self.changed:
            self._working -= 1
            self._look()

    def _look(self) -> None:
        hopeless = [transfer for transfer in self._waiting.values() if not transfer.done]
        if self._working and len(hopeless) == self._working:
            self.is_stuck = True
            self.changed.notify_all()


class Pair:
    """A process group of two ranks, ``low`` and ``high``, as one of them sees it."""

    def __init__(self, network: Network, name: Any, me: int) -> None:
        self._network = network
        self._name = name
        self._own, self._other = (name, me), (name, 1 - me)

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Transfer:
        assert (self._name, to) == self._other
        return self._network.start(self._own, self._other, Transfer(self._network, True, tensors[0]))

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Transfer:
        assert (self._name, source) == self._other
        return self._network.start(self._own, self._other, Transfer(self._network, False, tensors[0]))


class Control:
    """A group of all ranks that keeps directions and tags apart and holds up no sender, as gloo does."""

    def __init__(self, network: Network, me: int) -> None:
        self._network = network
        self._me = me

    def rank(self) -> int:
        return self._me

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Transfer:
        way = (self._me, to, tag)
        sent = self._network.start(
            (*way, "out"), (*way, "in"), Transfer(self._network, True, tensors[0].clone())
        )
        return Transfer(self._network, True, sent.tensor, done=True)

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Transfer:
        way = (source, self._me, tag)
        return self._network.start((*way, "in"), (*way, "out"), Transfer(self._network, False, tensors[0]))
