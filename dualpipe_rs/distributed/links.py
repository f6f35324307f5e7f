"""Which process group carries a tensor between two members, and in which order.

The tensors of one directed edge travel in order. Gloo keeps a pair's two directions apart by itself. Others,
NCCL among them, put a pair's sends and receives on one queue, where a receive that is posted early holds up
the
send behind it, on both sides: there each directed edge gets a group of two ranks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

#: Tags of gloo, which keeps what has different tags apart.
_TENSORS, _HEADERS, _LONG_HEADERS = 1, 2, 3


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
    """

    def __init__(self, control: Any, edges: Mapping[tuple[int, int], Any]) -> None:
        self._control = control
        self._edges = edges
        self._me = control.rank()

    def send(self, to: int, tensor: Tensor) -> Work:
        """Starts to send; ``tensor`` is dense, and is kept unchanged until the work is done."""
        if tensor.device.type == "cpu":
            return self._control.send([tensor], to, _TENSORS)
        return self._edges[self._me, to].send([_bytes(tensor)], int(to > self._me), 0)

    def receive(self, source: int, tensor: Tensor) -> Work:
        """Makes room: the next tensor from ``source`` goes to ``tensor``."""
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


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, since not every backend knows every type."""
    return tensor.view(-1).view(torch.uint8)
