"""How a table is printed, and what is said of the machine it was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {_cpu()}; {versions}; intra-op threads: 1 a rank, in every row."


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n| --- |" + " ---: |" * (len(heads) - 1))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


class Others:
    """The processor time that was not ours while this object lived: a table made in company is worth less."""

    def __init__(self) -> None:
        self._start = self._now()

    def report(self) -> str:
        wall, machine, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        cores = (machine - own) / wall
        return f"Other processes of the machine kept {cores:.2f} of {os.cpu_count()} cores busy meanwhile."

    def _now(self) -> tuple[float, float, float]:
        """Seconds of the clock, of all cores not idle, and of this process and its ended children (Linux)."""
        user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
        machine = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return own.elapsed, machine, sum(own[:4])
