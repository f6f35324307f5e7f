"""``python -m dualpipe_rs doctor``: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata

import dualpipe_rs as dp


def run() -> int:
    """Prints the report; returns 1 only if what needs no GPU is broken, else 0."""
    print(f"{'system':9}{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    print(f"{'package':9}dualpipe_rs {_version('dualpipe_rs')}")
    numpy = _imported("numpy")
    torch = _imported("torch")  # before the diagnosis: a training run has torch's NCCL loaded, too
    print(f"{'package':9}{numpy or 'numpy is missing: pip install numpy'}")
    print(f"{'package':9}{torch or 'torch is missing, to train: pip install dualpipe_rs[torch]'}")
    print(dp.cuda.diagnose())
    trouble = _trouble()
    if trouble is not None:
        print(f"error: {trouble}", file=sys.stderr)
    return 0 if trouble is None else 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed, run from its folder)"


def _imported(package: str) -> str | None:
    """Name and version; why it does not import, if it is there and broken; None if it is not there."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        return None if error.name == package else f"{package} does not import: {error}"
    except Exception as error:  # a broken package can raise anything
        return f"{package} does not import: {type(error).__name__}: {error}"
    return f"{package} {getattr(module, '__version__', _version(package))}"


def _trouble() -> str | None:
    """Generates, verifies and simulates a small schedule: all that needs no GPU, and no torch."""
    try:
        schedule = dp.schedule("dualpipe", 2, 4)
        schedule.verify()
        len(schedule.simulate(dp.Costs()).spans)
    except Exception as error:  # whatever it is, it is what is to be reported
        return f"a schedule of 2 ranks cannot be simulated here: {type(error).__name__}: {error}"
    return None
