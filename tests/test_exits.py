"""How the processes of a pipeline end, as whole programs: cleanly, in whatever order and way.

A part of all ways, and all of them with LONG=1.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from families import LONG, some

RANKS = 2
DEADLINE = 120.0
WAYS = list(
    itertools.product(
        ("tcp", "file"), ("return", "exception", "exit", "interrupt"), ("first", "last", "any"), (True, False)
    )
)
#: The exit code that each rank has, the last one after others.
CODES = {"return": [0, 0], "exception": [1, 1], "exit": [1, 3], "interrupt": [1, -2]}
#: What an end that is none of Python's own says.
CRASHES = ("Fatal Python error", "terminate called", "Segmentation fault", "Aborted", "core dumped")


def programs(store: str, arguments: Sequence[object]) -> list[tuple[int, str]]:
    """Exit code and standard error of each rank's program."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(
            [sys.executable, here / "exiting.py", str(rank), str(RANKS), store, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [program.communicate(timeout=DEADLINE)[1] for program in running]
    finally:
        for program in running:
            program.kill()
    return [(program.returncode, text) for program, text in zip(running, said, strict=True)]


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def check(way: tuple[str, str, str, bool], folder: Path) -> None:
    store, end, order, destroys = way
    ended = programs(free_port() if store == "tcp" else str(folder / "store"), (end, order, destroys))
    assert [code for code, _ in ended] == CODES[end], ended
    for _, text in ended:
        assert not any(crash in text for crash in CRASHES), ended
        assert "Exception ignored" not in text, ended
        if end == "return":
            assert "Traceback" not in text, ended
    if end in ("exit", "interrupt"):
        assert "RankError: rank 1, slot" in ended[0][1], ended


@pytest.mark.parametrize("way", some(WAYS, 1 / 12), ids=str)
def test_programs_end(way: tuple[str, str, str, bool], tmp_path: Path) -> None:
    check(way, tmp_path)


@pytest.mark.skipif(not LONG, reason="LONG=1")
@pytest.mark.parametrize("number", range(50))
def test_programs_end_always(number: int, tmp_path: Path) -> None:
    """The shortest job over and over: rank 0, whose the store is, ends whenever it does."""
    check(("tcp", "return", "any", number % 2 == 0), tmp_path)
