"""Carries packets between TUN devices, each a fixed time after it came: a delay line, no model of a network.

It knows no bandwidth, no loss and no order but that of arrival.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections import deque
from contextlib import suppress

PR_SET_TIMERSLACK = 29
DESTINATION = slice(16, 20)  # of a packet of IP version 4
LONGEST = 65536


def carry(devices: dict[bytes, int], seconds: float, until: int) -> None:
    """Returns when `until` can be read: its other end is closed."""
    _punctual()
    clock = time.monotonic
    line: deque[tuple[float, int, bytes]] = deque()  # the delay is one, so the first in is the first due
    waiting = [*devices.values(), until]
    while True:
        timeout = max(0.0, line[0][0] - clock()) if line else None
        ready, _, _ = select.select(waiting, [], [], timeout)
        if until in ready:
            return
        for device in ready:
            _read(device, devices, line, clock() + seconds)
        while line and line[0][0] <= clock():
            _, device, packet = line.popleft()
            with suppress(OSError):  # a packet that the device does not take is lost, as on any network
                os.write(device, packet)


def _read(device: int, devices: dict[bytes, int], line: deque[tuple[float, int, bytes]], due: float) -> None:
    """All packets that are there; those to nobody (IPv6's and others' greetings) are dropped."""
    while True:
        try:
            packet = os.read(device, LONGEST)
        except BlockingIOError:
            return
        target = devices.get(packet[DESTINATION])
        if target is not None and packet[0] >> 4 == 4:
            line.append((due, target, packet))


def _punctual() -> None:
    """Before all others when a packet is due: the ranks keep every core busy, and a network needs none."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
