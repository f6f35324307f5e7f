"""These tests need a GPU that torch can use; elsewhere all are skipped. `make gpu-test` runs them alone."""

from __future__ import annotations

import pytest

import dualpipe_rs as dp


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    torch = pytest.importorskip("torch")
    if not (torch.cuda.is_available() and dp.cuda.is_available()):
        pytest.skip("no GPU")
