"""Holds network namespaces, one a rank, between which every packet travels for a given time.

    python bench/delayed_network.py RANKS SECONDS

Says on one line of JSON what it made, {"how": ..., "namespaces": [paths]}, or {"skipped": why}, and holds
it until its standard input ends. The namespaces have no names: they are gone with the processes that are
in them, however those end. It needs root. It is a program of its own, without torch, so that a small
process does the delaying.

Rank r is 10.99.0.(r + 1) on the interface `net0`. The delay is netem's where the kernel has it; elsewhere
each namespace has a TUN device, and this process carries the packets between them (relay.py). Bandwidth
is unlimited in both.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay import carry

INTERFACE = "net0"
MTU = 65000  # few packets a message, as few wake-ups
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000

# Per namespace, for links of some milliseconds that lose nothing: a message shall leave at once. Connections
# idle between the steps, which must not close their windows; the receive window must not have to grow first;
# and the system's congestion control may be one that paces.
TCP = {
    "tcp_slow_start_after_idle": "0",
    "tcp_no_metrics_save": "1",
    "tcp_rmem": "4096 4194304 33554432",
    "tcp_wmem": "4096 4194304 33554432",
    "tcp_congestion_control": "reno",  # every kernel has it
}


def address(rank: int) -> str:
    return f"10.99.0.{rank + 1}"


def path(namespace: int) -> str:
    """Of a namespace that this process holds open, for others to open."""
    return f"/proc/{os.getpid()}/fd/{namespace}"


def enter(namespace: int) -> None:
    """Puts the calling thread, and what it starts from now on, into the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(namespace)
        yield
    finally:
        enter(before)
        os.close(before)


def new_namespace() -> int:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made")
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(before)
    os.close(before)
    return namespace


def command(line: str) -> None:
    done = subprocess.run(line.split(), capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"`{line}`: {(done.stderr or done.stdout).strip()}")


def has_netem() -> bool:
    with inside(new_namespace()):
        try:
            command("tc qdisc add dev lo root netem delay 1ms")
        except OSError:
            return False
    return True


def configure(namespace: int, rank: int) -> None:
    """Addresses and settings, once the namespace has its interface."""
    with inside(namespace):
        command("ip link set lo up")
        command(f"ip address add {address(rank)}/24 dev {INTERFACE}")
        command(f"ip link set {INTERFACE} mtu {MTU} txqueuelen 10000 up")
        for name, value in TCP.items():
            Path("/proc/sys/net/ipv4", name).write_text(value)


def connect_by_netem(namespaces: list[int], seconds: float) -> None:
    """A bridge in a namespace of its own, an Ethernet pair to each rank, a delay on what each rank sends."""
    with inside(new_namespace()):
        command("ip link add name switch type bridge")
        command(f"ip link set switch mtu {MTU} up")
        for rank, namespace in enumerate(namespaces):
            command(f"ip link add name port{rank} type veth peer name {INTERFACE} netns {path(namespace)}")
            command(f"ip link set port{rank} mtu {MTU} master switch up")
    for rank, namespace in enumerate(namespaces):
        configure(namespace, rank)
        with inside(namespace):
            command(f"tc qdisc add dev {INTERFACE} root netem delay {1e6 * seconds:.0f}us limit 100000")


def tun(namespace: int) -> int:
    """A new TUN device of the namespace; packets of IP are read from and written to the descriptor."""
    with inside(namespace):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
    return device


def connect_by_tun(namespaces: list[int]) -> dict[bytes, int]:
    """The descriptor by address, in the four bytes in which a packet has it."""
    devices = {}
    for rank, namespace in enumerate(namespaces):
        devices[bytes(map(int, address(rank).split(".")))] = tun(namespace)
        configure(namespace, rank)
    return devices


def main() -> None:
    ranks, seconds = int(sys.argv[1]), float(sys.argv[2])
    try:
        namespaces = [new_namespace() for _ in range(ranks)]
        netem = has_netem()
        if netem:
            connect_by_netem(namespaces, seconds)
        else:
            devices = connect_by_tun(namespaces)
    except OSError as error:
        print(json.dumps({"skipped": str(error)}), flush=True)
        return
    how = "netem" if netem else "TUN devices and a relay in user space"
    print(json.dumps({"how": how, "namespaces": [path(n) for n in namespaces]}), flush=True)
    if netem:
        sys.stdin.read()
    else:
        carry(devices, seconds, until=sys.stdin.fileno())


if __name__ == "__main__":
    main()
