"""The command line's demo, as a user runs it: exit codes, what it prints, and that it ends cleanly."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dualpipe_rs", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "3"),
        ("--steps", "2", "--interleaved", "--schedule", "dualpipev", "--ranks", "2", "--microbatches", "5"),
        ("--steps", "2", "--schedule", "1f1b", "--ranks", "3", "--dtype", "float32"),
    ],
)
def test_it_trains_as_serially(arguments):
    done = demo(*arguments)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss ([\d.e+-]+), gradients ([\d.e+-]+) of their norm", done.stdout)
    assert found
    rounding = 1e-5 if "float32" in arguments else 1e-12
    assert max(map(float, found.groups())) <= rounding
    assert "bubble measured by the clock" in done.stdout


def test_own_text(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(256)) * 2)
    done = demo("--steps", "1", "--text", str(text))
    assert done.returncode == 0, done.stderr
    assert "512 bytes of text" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ranks", "3"), "nearest legal size is 4 ranks and 8 microbatches"),
        (("--steps", "0"), "at least one step"),
        (("--text", "/no/such/file"), "No such file"),
        (("--text", __file__ + "x"), "No such file"),
        (("--schedule", "zigzag"), "invalid choice"),
    ],
)
def test_wrong_usage(arguments, says):
    done = demo(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
