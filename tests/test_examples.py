"""examples/train.py as a user runs it: under torchrun, then on from its checkpoint in one process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEADLINE = 200.0


def run(*command: str) -> str:
    """What it logs; when it ends, well or not, nothing that it started is left."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output
    return output


def losses(output: str) -> dict[tuple[int, str], float]:
    """By step and kind."""
    found = re.findall(r"rank 0: step (\d+) (loss|validation loss) ([\d.]+)", output)
    return {(int(step), kind): float(loss) for step, kind, loss in found}


def test_a_run_of_two_processes_goes_on_in_one(tmp_path):
    script = [str(ROOT / "examples" / "train.py"), "--steps", "6", "--every", "3", "--out", str(tmp_path)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole = losses(run(*torchrun, *script, "--schedule", "dualpipe"))
    assert len(whole) == 6 + 2
    assert whole[6, "validation loss"] < whole[1, "loss"]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-000003.pt", "step-000006.pt"]
    rest = losses(run(*script, "--schedule", "1f1b", "--resume", str(tmp_path / "step-000003.pt")))
    assert rest.keys() == {key for key in whole if key[0] > 3}
    # In fp32, and as the log rounds them.
    assert list(rest.values()) == pytest.approx([whole[key] for key in rest], rel=2e-5)
