"""Where the ranks of a benchmark meet: this machine's loopback, or namespaces with a latency between them."""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from delayed_network import INTERFACE, address, enter

T = TypeVar("T")
DEADLINE = 30.0  # seconds to make the namespaces, and for one try of the network


class NoNetwork(Exception):
    """It cannot be made here; says why."""


@dataclass(frozen=True)
class Place:
    """Where a rank lives."""

    address: str
    interface: str
    namespace: str | None = None  # a path to it

    def enter(self) -> None:
        """For the calling thread, and the threads and processes that it starts from now on."""
        if self.namespace is not None:
            namespace = os.open(self.namespace, os.O_RDONLY)
            enter(namespace)
            os.close(namespace)

    def call(self, function: Callable[[], T]) -> T:
        """`function()` there, this thread staying where it is. What it starts stays there, too."""

        def run() -> T:
            self.enter()
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()


class Network(Protocol):
    name: str
    places: list[Place]


class Loopback:
    name = "loopback"

    def __init__(self, ranks: int) -> None:
        self.places = [Place("127.0.0.1", "lo")] * ranks

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Delayed:
    """A context manager: the namespaces are gone when it is left and their ranks have ended."""

    def __init__(self, ranks: int, seconds: float) -> None:
        self.name = f"{1e3 * seconds:g} ms"
        self.how = ""
        self.places: list[Place] = []
        self._arguments = [str(ranks), str(seconds)]

    def __enter__(self) -> Delayed:
        """Raises NoNetwork."""
        program = Path(__file__).with_name("delayed_network.py")
        # A session of its own: Ctrl-C reaches the ranks first, and this ends when its standard input does.
        self._holder = subprocess.Popen(
            [sys.executable, str(program), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            answer = self._answer()
        except BaseException:
            self._end()
            raise
        self.how = answer["how"]
        self.places = [Place(address(r), INTERFACE, path) for r, path in enumerate(answer["namespaces"])]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _answer(self) -> dict[str, Any]:
        assert self._holder.stdout is not None
        ready, _, _ = select.select([self._holder.stdout], [], [], DEADLINE)
        line = self._holder.stdout.readline() if ready else b""
        answer = json.loads(line) if line else {"skipped": "no answer from bench/delayed_network.py"}
        if "skipped" in answer:
            raise NoNetwork(answer["skipped"])
        return answer

    def _end(self) -> None:
        self._holder.kill()  # it has nothing to put in order: the system takes back devices and namespaces
        self._holder.communicate()


def ping_pong(network: Network, size: int, repeats: int = 50) -> tuple[float, float]:
    """Median seconds there and back over TCP from rank 0 to rank 1, of one byte, and of `size` bytes that one
    byte answers."""
    here, there = network.places[:2]
    listener = there.call(lambda: socket.create_server((there.address, 0)))
    connection = here.call(lambda: socket.create_connection(listener.getsockname(), DEADLINE))
    with listener, connection:
        answering = threading.Thread(target=_answer_all, args=(listener, size, repeats), daemon=True)
        answering.start()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = [_round_trips(connection, length, repeats) for length in (1, size)]
        answering.join(DEADLINE)
    return times[0], times[1]


def _round_trips(connection: socket.socket, length: int, repeats: int) -> float:
    message, times = bytes(length), []
    for _ in range(repeats):
        start = time.perf_counter()
        connection.sendall(message)
        connection.recv(1)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _answer_all(listener: socket.socket, size: int, repeats: int) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(DEADLINE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for length in (1, size):
            buffer = bytearray(length)
            for _ in range(repeats):
                got = 0
                while got < length:
                    got += connection.recv_into(memoryview(buffer)[got:])
                connection.sendall(b"x")
