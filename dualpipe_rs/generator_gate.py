"""Keeps recomputation and dropout of different ranks apart where the ranks are threads of one process.

Torch's CPU generator belongs to the process. Activation checkpointing notes its state before a block,
and sets it back for the recomputation, so that dropout draws the same masks again. Were another rank
to draw in between, the masks would differ and the gradients be wrong, with no error. So a computation
that notes or restores the generator's state runs alone: others that are under way end first, and new
ones wait. Where checkpointing is told ``preserve_rng_state=False`` (right for blocks that draw nothing)
nothing notes the state, and ranks run side by side.

This is not a generator of its own, and it makes no run reproducible: which rank draws first is up to
the threads (``run_local(..., interleaved=True)`` is reproducible).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class GeneratorGate:
    """A readers-writer lock: computations share it, and one may claim it for itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._claims = 0
        self._owner: int | None = None

    def enter(self) -> None:
        """Begins a computation; waits while another has claimed the generator or is about to."""
        with self._changed:
            while self._owner is not None or self._claims:
                self._changed.wait()
            self._sharing += 1

    def leave(self) -> None:
        """Ends a computation, and with it its claim."""
        with self._changed:
            if self._owner == threading.get_ident():
                self._owner = None
            else:
                self._sharing -= 1
            self._changed.notify_all()

    def claim(self) -> None:
        """Goes on alone, until :meth:`leave`. Called inside a computation; again at no cost."""
        me = threading.get_ident()
        with self._changed:
            if self._owner == me:
                return
            self._sharing -= 1
            self._claims += 1
            while self._owner is not None or self._sharing:
                self._changed.wait()
            self._claims -= 1
            self._owner = me


_gate = GeneratorGate()
_inside = threading.local()
_install_lock = threading.Lock()
_installed = 0
_plain_get_rng_state = torch.get_rng_state


def _get_rng_state() -> torch.Tensor:
    """Stands in for ``torch.get_rng_state`` during steps: what asks for the state means to restore it."""
    if getattr(_inside, "computing", False):
        _gate.claim()
    return _plain_get_rng_state()


@contextmanager
def watching() -> Iterator[None]:
    """Watches for computations that note the generator's state, on all threads, while any is in here."""
    global _installed, _plain_get_rng_state
    with _install_lock:
        _installed += 1
        if _installed == 1:
            _plain_get_rng_state = torch.get_rng_state
            torch.get_rng_state = _get_rng_state
    try:
        yield
    finally:
        with _install_lock:
            _installed -= 1
            if _installed == 0:
                torch.get_rng_state = _plain_get_rng_state


class SharedGenerator:
    """``with`` this around each computation of a rank, inside :func:`watching`."""

    def __enter__(self) -> None:
        _gate.enter()
        _inside.computing = True

    def __exit__(self, *_: Any) -> None:
        _inside.computing = False
        _gate.leave()
