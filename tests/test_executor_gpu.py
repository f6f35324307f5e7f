"""`dp.Executor` on GPUs, from Python, on the software device: rust/fakecuda. What the Rust core does there is
tested more closely in rust/fakecuda/tests/executor/.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fake_gpu
import pytest

CASES = Path(__file__).parent / "executor_on_gpu.py"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return fake_gpu.environment(tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize(
    "case",
    [
        "one_device",
        "a_device_each",
        "a_control_of_python",
        "a_process_group_of_one",
        "one_thread",
        "failure_on_one_device",
        "failure_with_a_device_each",
        "refusals",
    ],
)
def test_on_the_software_device(case: str, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, str(CASES), case], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-8000:]
