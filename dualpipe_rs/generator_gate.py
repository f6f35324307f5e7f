"""Keeps recomputation and dropout of different ranks apart where the ranks are threads of one process.

Torch's CPU generator belongs to the process. Activation checkpointing notes its state before a block,
and sets it back for the recomputation, so that dropout draws the same masks again. Were another rank
to draw in between, the masks would differ and the gradients be wrong, with no error. So a computation
that notes or restores the generator's state runs alone: others that are under way end first, and new
ones wait. Where checkpointing is told ``preserve_rng_state=False`` (right for blocks that draw nothing)
nothing notes the state, and ranks run side by side.

Watched are ``torch.get_rng_state``, ``torch.set_rng_state`` and the same in ``torch.random``, through which
torch's own checkpointing and ``fork_rng`` go. The methods of ``torch.default_generator`` cannot be watched.

This is not a generator of its own, and it makes no run reproducible: which rank draws first is up to
the threads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
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
                self._changed.notify_all()
            else:
                self._sharing -= 1
                if self._claims:
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
_here = threading.local()  # .depth: how many computations this thread is in; a stage may hold a pipeline
_install_lock = threading.Lock()
_installed = 0
_NAMES = ("get_rng_state", "set_rng_state")
_HOMES = (torch, torch.random)
_plain = {(home, name): getattr(home, name) for home in _HOMES for name in _NAMES}


def is_computing() -> bool:
    """Whether the calling thread is inside a stage."""
    return getattr(_here, "depth", 0) > 0


def _claiming(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for a function of torch during steps: what notes the state means to restore it."""

    @functools.wraps(plain)
    def claim_first(*args: Any, **options: Any) -> Any:
        if is_computing():
            _gate.claim()
        return plain(*args, **options)

    return claim_first


@contextmanager
def watching() -> Iterator[None]:
    """Watches for computations that note the generator's state, on all threads, while any is in here."""
    global _installed
    with _install_lock:
        _installed += 1
        if _installed == 1:
            for home, name in _plain:
                _plain[home, name] = getattr(home, name)
                setattr(home, name, _claiming(_plain[home, name]))
    try:
        yield
    finally:
        with _install_lock:
            _installed -= 1
            if _installed == 0:
                for (home, name), plain in _plain.items():
                    setattr(home, name, plain)


class SharedGenerator:
    """``with`` this around each computation of a rank, inside :func:`watching`."""

    def __enter__(self) -> None:
        if not is_computing():
            _gate.enter()
        _here.depth = getattr(_here, "depth", 0) + 1

    def __exit__(self, *_: Any) -> None:
        _here.depth -= 1
        if not is_computing():
            _gate.leave()
