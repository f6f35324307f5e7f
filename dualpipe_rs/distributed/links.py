"""Which process group carries a tensor between two members, and in which order.

The tensors of one directed edge travel in order. Gloo keeps a pair's two directions apart by itself. Others,
NCCL among them, put a pair's sends and receives on one queue, where a receive that is posted early holds up
the
send behind it, on both sides: there each directed edge gets a group of two ranks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from dualpipe_rs.distributed.lines import Lines

#: Tags of gloo, which keeps what has different tags apart.
_TENSORS, _HEADERS, _LONG_HEADERS, _NEVER_SENT = 1, 2, 3, 4


class Work(Protocol):
    """A transfer under way, as torch's ``Work``."""

    def wait(self) -> Any: ...
    def is_completed(self) -> bool: ...


class Links:
    """One member's ways to the others.

    Args:
        control: a gloo group of all members, for headers and for tensors in the CPU's memory.
        edges: for tensors elsewhere, by (from, to), members' numbers: a group of these two alone, in the
            order of their numbers.
        lines: for small tensors in the CPU's memory, to members on the same host.
    """

    def __init__(
        self, control: Any, edges: Mapping[tuple[int, int], Any], lines: Lines | None = None
    ) -> None:
        self._control = control
        self._edges = edges
        self._lines = lines or Lines({}, 0.0)
        self._me = control.rank()

    def send(self, to: int, tensor: Tensor) -> Work:
        """Starts to send; ``tensor`` is dense, and is kept unchanged until the work is done."""
        if (line := self._lines.to(to, tensor)) is not None:
            return line.send(tensor)
        if tensor.device.type == "cpu":
            return self._control.send([tensor], to, _TENSORS)
        return self._edges[self._me, to].send([_bytes(tensor)], int(to > self._me), 0)

    def receive(self, source: int, tensor: Tensor) -> Work:
        """Makes room: the next tensor from ``source`` goes to ``tensor``."""
        if (line := self._lines.to(source, tensor)) is not None:
            return line.receive(tensor)
        if tensor.device.type == "cpu":
            return self._control.recv([tensor], source, _TENSORS)
        edge = self._edges[source, self._me]
        return edge.recv([_bytes(tensor)], int(source > self._me), 0)

    def send_header(self, to: int, numbers: Tensor) -> Work:
        return self._control.send([numbers], to, _HEADERS)

    def receive_header(self, source: int, numbers: Tensor) -> Work:
        return self._control.recv([numbers], source, _HEADERS)

    def send_rest(self, to: int, numbers: Tensor) -> Work:
        """What of a header is too long for one message; apart, since headers are received ahead."""
        return self._control.send([numbers], to, _LONG_HEADERS)

    def receive_rest(self, source: int, numbers: Tensor) -> Work:
        return self._control.recv([numbers], source, _LONG_HEADERS)

    def cut(self) -> None:
        """Ends whatever this member waits for, with an error. The ways are of no use afterwards."""
        with suppress(RuntimeError):
            # A receive that times out closes all pairs of a gloo group: nothing else wakes those that wait.
            other = (self._me + 1) % self._control.size()
            self._control.recv([torch.zeros(1)], other, _NEVER_SENT).wait(timedelta(milliseconds=1))
        self._lines.cut()
        for edge in self._edges.values():
            with suppress(RuntimeError):
                edge.abort()


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, since not every backend knows every type."""
    return tensor.view(-1).view(torch.uint8)
