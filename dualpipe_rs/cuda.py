"""What of CUDA is on this machine: a driver, devices, NCCL. Imports no torch, and needs no GPU.

    import dualpipe_rs as dp

    dp.cuda.is_available()  # never raises
    print(dp.cuda.diagnose())  # what was found, what was not and why, and what to install

Nothing of CUDA is linked: the driver is looked for by the system's loader, and NCCL where
``DUALPIPE_NCCL_LIBRARY`` says (a file or a folder); without that as a copy that this process has loaded
(torch's), in the folders of installed packages, and by the system's loader.
"""

from __future__ import annotations

import os
import sys

from dualpipe_rs._core import (
    Device,
    Diagnosis,
    Driver,
    Nccl,
    cuda_diagnosis,
    cuda_is_available,
    nccl_look_in,
)

__all__ = ["Device", "Diagnosis", "Driver", "Nccl", "diagnose", "is_available"]


def is_available() -> bool:
    """Whether there is a driver that works, and a device. Never raises.

    Asks the driver, so a process that is forked after this cannot use CUDA; a spawned one can.
    """
    return cuda_is_available()


def diagnose() -> Diagnosis:
    """Looks for everything that a GPU needs; ``print`` the answer to read it. Never raises.

    Returns:
        A :class:`Diagnosis` with ``driver``, ``devices``, ``nccl`` and ``advice``: sentences that say what to
        install or to look at.
    """
    look_in_packages()
    return cuda_diagnosis()


def look_in_packages() -> None:
    """Tells the core in which folders of ``sys.path`` a package has brought NCCL."""
    entries = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    folders = [os.path.join(entry, "nvidia", "nccl", "lib") for entry in dict.fromkeys(entries)]
    nccl_look_in([folder for folder in folders if os.path.isdir(folder)])  # False, too, for what is no path


look_in_packages()
