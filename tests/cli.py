"""The command line as tests run it: in this process, as a process of its own, and on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

from families import cases

from dualpipe_rs.cli import main

ANSI = re.compile(r"\x1b\[[\d;]*m")
BROKEN = """# name=mine placement=linear ranks=2 stages=2 microbatches=2
0F0 0B0 0F1 0F0 0B1
1B0 1F0 1F1 0B1
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: str, stdin: bytes = b"") -> Done:
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Done(code, out.getvalue(), err.getvalue())


def fine(*arguments: str, stdin: bytes = b"") -> str:
    done = run(*arguments, stdin=stdin)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def refused(*arguments: str, stdin: bytes = b"", code: int = 2) -> str:
    """One sentence on standard error, nothing on standard output."""
    done = run(*arguments, stdin=stdin)
    assert (done.code, done.out) == (code, ""), done
    assert re.fullmatch(r"dualpipe_rs: error: [^\n]+\n", done.err), done.err
    return done.err


def smallest(family: str) -> list[str]:
    first = cases(family)[0]
    return ["-p", str(first.ranks), "-m", str(first.microbatches)]


def process(*arguments: str, **rest) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dualpipe_rs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **rest)


def strict(text: str):
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def on_a_terminal(arguments: list[str], settings: dict[str, str]) -> str:
    import pty

    ours, theirs = pty.openpty()
    bare = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "dualpipe_rs", *arguments]
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**bare, "TERM": "xterm", **settings})
    os.close(theirs)
    found = b""
    with contextlib.suppress(OSError):  # Linux tells the end of a pseudo-terminal so.
        while part := os.read(ours, 65536):
            found += part
    os.close(ours)
    assert child.wait(timeout=60) == 0
    return found.decode()
