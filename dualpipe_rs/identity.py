"""What is the same for the same thing in every process, in numbers; and what torch says, in a line."""

from __future__ import annotations

import hashlib
import re
import socket
from functools import cache
from pathlib import Path


def number_of(text: str) -> int:
    """A number that is the same for the same text in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


@cache
def host() -> float:
    """A number of this boot of this machine, on which all processes read one clock; exact as a float."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = boot.read_text() if boot.exists() else socket.gethostname()
    return float(number_of(name) >> 8)


def first_line(error: BaseException) -> str:
    """What an error of torch says, without the place in its sources."""
    lines = re.sub(r"^\[\S+:\d+\] ", "", str(error)).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
