"""Lines: stream sockets between members on one host, for small tensors.

Gloo takes three messages over TCP and two threads for each tensor, which for a small one costs many times
what moving it does. A line is a Unix socket: one call to send and one to receive, no thread, and the end of a
process is noticed at once. Between hosts, and for large tensors, there are no lines; where one cannot be laid
(another network namespace, another system than Linux) gloo serves.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

#: The largest tensor that goes over a line, in bytes: what is larger, gloo's threads move beside the compute.
LIMIT = 1 << 15
#: How long a wait is at most before interrupts are looked after, in seconds.
_LOOK = 0.2


class Transfer:
    """A tensor on its way out or in; torch's ``Work``."""

    def __init__(self, line: Line, data: memoryview) -> None:
        self._line = line
        #: What has not left, or not come, yet.
        self.rest = data

    def is_completed(self) -> bool:
        return not self.rest

    def wait(self) -> None:
        self._line.until(self.is_completed)


class Line:
    """A socket to another member. Neither posting nor sending waits: what does not fit leaves later."""

    def __init__(self, sock: socket.socket, lines: Lines) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._lines = lines
        self._out: deque[Transfer] = deque()
        self._in: deque[Transfer] = deque()

    def send(self, tensor: Tensor) -> Transfer:
        sending = Transfer(self, _memory(tensor))
        self._out.append(sending)
        self.push()
        return sending

    def receive(self, tensor: Tensor) -> Transfer:
        receiving = Transfer(self, _memory(tensor))
        self._in.append(receiving)
        return receiving

    @property
    def is_full(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._out)

    def push(self) -> None:
        """Sends what fits."""
        with contextlib.suppress(BlockingIOError):
            while self._out:
                first = self._out[0]
                first.rest = first.rest[self.sock.send(first.rest) :]
                if not first.rest:
                    self._out.popleft()

    def pull(self) -> None:
        """Takes what has come, in the order in which room was made."""
        with contextlib.suppress(BlockingIOError):
            while self._in:
                first = self._in[0]
                count = self.sock.recv_into(first.rest)
                if not count:
                    raise ConnectionResetError("its end of the line is closed")
                first.rest = first.rest[count:]
                if not first.rest:
                    self._in.popleft()

    def until(self, is_done: Callable[[], bool]) -> None:
        """Sends and receives until something is done.

        Raises:
            RuntimeError: nothing came within the timeout, or the other end is closed.
        """
        try:
            self.pull()
            deadline = time.monotonic() + self._lines.timeout
            while not is_done():
                self._lines.sleep(self, deadline)
                self.pull()
        except OSError as error:
            raise RuntimeError(f"on the line to its process: {error}") from error


class Lines:
    """One member's lines.

    Args:
        sockets: connected, by member.
        timeout: how long to wait for a tensor, in seconds.
    """

    def __init__(self, sockets: Mapping[int, socket.socket], timeout: float) -> None:
        self.timeout = timeout
        self._lines = {member: Line(sock, self) for member, sock in sockets.items()}

    def to(self, member: int, tensor: Tensor) -> Line | None:
        """The line that a tensor takes, at both of its ends; None where it takes none."""
        if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > LIMIT:
            return None
        return self._lines.get(member)

    def sleep(self, awaited: Line, deadline: float) -> None:
        """Waits until something may have come on a line; sends meanwhile what could not leave before."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing came within {self.timeout:g} s")
        poll = select.poll()
        poll.register(awaited.sock, select.POLLIN | (select.POLLOUT if awaited.is_full else 0))
        full = [line for line in self._lines.values() if line.is_full]
        for line in full:
            if line is not awaited:
                poll.register(line.sock, select.POLLOUT)
        poll.poll(1e3 * min(left, _LOOK))
        for line in full:
            line.push()

    def cut(self) -> None:
        """Ends all waits, here and at the other ends, with an error."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.sock.shutdown(socket.SHUT_RDWR)


def lay(
    member: int, peers: Iterable[int], host: float, exchange: Callable[[Any], list[Any]], timeout: float
) -> Lines:
    """Lays the lines between members on one host, together with all of them.

    Args:
        peers: the members with whom this one has an edge.
        host: a number of this host.
        exchange: hands an object to all members and gives theirs, by member.
        timeout: how long to wait for a member, in seconds.

    Raises:
        OSError: a member did not come to its end of a line.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX)) if _can_listen() else None
        name, secret = b"\0dualpipe_rs/" + secrets.token_hex(8).encode(), secrets.token_bytes(16)
        if listener is not None:
            listener.bind(name)
            listener.listen()
        told = exchange((host, name, secret) if listener is not None else None)
        near = [peer for peer in peers if told[peer] is not None and told[peer][0] == host]
        laid: dict[int, socket.socket] = {}
        for peer in near if listener is not None else []:
            if peer < member:
                laid |= _connected(member, peer, told[peer])
        connected = exchange([*laid])
        for _ in [peer for peer in near if peer > member and member in connected[peer]]:
            assert listener is not None
            laid |= _accepted(listener, told, timeout)
        return Lines(laid, timeout)


def _can_listen() -> bool:
    return sys.platform == "linux"  # names without a file, which end with their socket


def _connected(member: int, peer: int, told: tuple[float, bytes, bytes]) -> dict[int, socket.socket]:
    """The line to a member that listens; none where it is out of reach."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(told[1])
        sock.sendall(told[2] + member.to_bytes(4, "big"))
    except OSError:
        sock.close()
        return {}
    return {peer: sock}


def _accepted(listener: socket.socket, told: list[Any], timeout: float) -> dict[int, socket.socket]:
    """The line of the next member that connects; others, who do not know the secret, are turned away."""
    listener.settimeout(timeout)
    secret = next(mine[2] for mine in told if mine is not None and mine[1] == listener.getsockname())
    while True:
        sock, _ = listener.accept()
        sock.settimeout(timeout)
        greeting = sock.recv(20, socket.MSG_WAITALL)
        if hmac.compare_digest(greeting[:16], secret):
            return {int.from_bytes(greeting[16:], "big"): sock}
        sock.close()


def _memory(tensor: Tensor) -> memoryview:
    """A dense tensor's memory as bytes."""
    return tensor.view(-1).view(torch.uint8).numpy().data
