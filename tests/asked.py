"""Asks about libraries in another process, since a library that is loaded stays: no tests here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import dualpipe_rs as dp

VARIABLE = "DUALPIPE_NCCL_LIBRARY"

# What diagnose() found, as one object.
DIAGNOSE = """
import json
import dualpipe_rs as dp

found = dp.cuda.diagnose()
part = lambda part: {name: getattr(part, name) for name in dir(part) if not name.startswith("_")}
print(json.dumps({
    "available": dp.cuda.is_available(),
    "driver": part(found.driver),
    "devices": [part(device) for device in found.devices],
    "nccl": part(found.nccl),
    "advice": found.advice,
    "text": str(found),
}))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which has to end within a minute."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    where: Mapping[str, str] = {**inherited, "PYTHONPATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=where)


def found(**environment: str) -> dict[str, Any]:
    answer = run(DIAGNOSE, **environment)
    assert answer.returncode == 0, answer.stderr
    assert "panicked" not in answer.stderr
    loaded: dict[str, Any] = json.loads(answer.stdout)
    return loaded


def tried(size: int, timeout: float = 20.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Starts and ends a communicator of rank 0, and prints what comes of it."""
    answer = run(
        f"""
import dualpipe_rs as dp
from dualpipe_rs import _core

dp.cuda.diagnose()
try:
    _core.nccl_try(bytes([7] * 128), {size}, 0, {timeout})
    print("started and ended")
except dp.DeviceError as error:
    print(error)
""",
        **environment,
    )
    assert answer.returncode == 0, answer.stderr
    return answer


def wheel(package: str, pattern: str) -> Path:
    """A library of one of NVIDIA's wheels, which torch's bring along."""
    folders = [Path(entry) / "nvidia" / package for entry in sys.path]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.rglob(pattern))]
    if not files:
        pytest.skip(f"no package with {pattern} is installed (a torch without CUDA brings none)")
    return files[0]


def skip_with_gpu() -> None:
    if dp.cuda.is_available():
        pytest.skip("this machine has a GPU")
