"""Ctrl-C in a step: kept until the rank can stop without leaving its channels in disorder.

A second Ctrl-C goes through at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C was pressed in :meth:`kept`."""

    def __init__(self) -> None:
        self._pressed: FrameType | None = None
        self._is_pending = False

    def check(self) -> None:
        """Does what the Ctrl-C that was kept would have done: in general, raises KeyboardInterrupt."""
        if self._is_pending:
            self._is_pending = False
            self._handler(signal.SIGINT, self._pressed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the first Ctrl-C until :meth:`check`, in the main thread; other threads get none."""
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            yield
            return
        self._handler = handler

        def keep(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, handler)
            self._is_pending, self._pressed = True, frame

        signal.signal(signal.SIGINT, keep)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
        self.check()
