"""DeepSeek's two examples, with other imports and devices: their own checks, at their own bounds."""

from __future__ import annotations

import socket

import deepseek_script
import processes
import pytest
import torch
import torch.multiprocessing as mp

assert processes.DEADLINE  # it has the forkserver load torch


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "ranks", "dtype", "length", "hidden", "method"),
    [
        # As the examples start their processes; those of a forkserver have torch loaded.
        ("dualpipe", 2, torch.float32, 64, 128, "spawn"),
        ("dualpipe", 4, torch.float32, 16, 32, "forkserver"),
        ("dualpipe", 4, torch.float64, 16, 32, "forkserver"),
        ("dualpipe", 6, torch.float32, 8, 16, "forkserver"),
        ("dualpipev", 1, torch.float32, 16, 32, "forkserver"),
        ("dualpipev", 2, torch.float32, 16, 32, "forkserver"),
        ("dualpipev", 3, torch.float64, 16, 32, "forkserver"),
        ("dualpipev", 4, torch.float32, 16, 32, "forkserver"),
    ],
)
def test_the_examples_run_as_they_are(name, ranks, dtype, length, hidden, method):
    arguments = (ranks, free_port(), length, hidden, dtype)
    mp.start_processes(
        getattr(deepseek_script, name), args=arguments, nprocs=ranks, daemon=True, start_method=method
    )
