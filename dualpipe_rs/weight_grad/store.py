"""Where weight gradients wait: a `Store` for each rank, and `WeightGradStore` for the calling one's."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator

import torch

# Torch's own thread-local slot, not threading.local: the autograd engine hands it on to the threads it runs a
# backward on (one a device, more in deep re-entry), so that a Function finds the rank that called backward().
_SLOT = "dualpipe_rs.weight_grad.store"
_HANDED_ON = hasattr(torch._C, "_remove_obj_from_tls")  # older torch cannot clear the slot again
_enabled: set[Store] = set()  # the stores of the process that defer right now
_thread = (
    threading.local()
)  # .default: the store of a thread that belongs to no rank; .current: on older torch


class Store:
    """One rank's waiting W's: closures in lists, the lists in a FIFO queue or under a key.

    A store serves one thread at a time: its rank's, or an autograd thread on which that rank's backward runs.
    """

    def __init__(self) -> None:
        #: Whether the layers bound to this store are cut in the forwards that run now.
        self.cuts_layers = True
        self._on = False
        self._open: deque[Callable[[], object]] = deque()  # what put() has collected since the last flush()
        self._queue: deque[deque[Callable[[], object]]] = deque()
        self._keyed: dict[Hashable, deque[Callable[[], object]]] = {}

    @property
    def enabled(self) -> bool:
        """Whether parameter gradients are deferred into this store now."""
        return self._on

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._on = bool(value)
        (_enabled.add if value else _enabled.discard)(self)

    @property
    def waiting(self) -> int:
        """How many flushed or keyed W's have not run; 0 is what the end of a step should find."""
        return len(self._queue) + len(self._keyed)

    def check_closed(self) -> None:
        """RuntimeError where closures were put while the store defers nothing, as nobody would run them."""
        if self._open and not self._on:
            raise RuntimeError(
                f"WeightGradStore.put() was called {len(self._open)} times outside of an I, and nothing "
                "would run those weight gradients; call put() where WeightGradStore.enabled, and compute "
                "them at once where it is not."
            )

    def put(self, fn: Callable[[], object]) -> None:
        """Adds the closure `fn` to the open list."""
        self._open.append(fn)

    def flush(self) -> None:
        """Moves the open list, empty or not, to the end of the queue as one entry."""
        self._queue.append(self._open)
        self._open = deque()

    def pop(self) -> None:
        """Takes the oldest entry of the queue and runs its closures; RuntimeError where there is none."""
        if not self._queue:
            raise RuntimeError("pop() found no W in this rank's queue; flush() before each pop().")
        _run(self._queue.popleft())

    def run(self, key: Hashable) -> None:
        """Runs the closures collected under `key`; RuntimeError where none wait (any more)."""
        if key not in self._keyed:
            raise RuntimeError(
                f"No W waits under the key {key!r}: deferring(key) never collected it, or it ran already; "
                "run each key once, after its I."
            )
        _run(self._keyed.pop(key))

    def clear(self) -> None:
        """Drops all closures, in the open list, the queue and under keys, without running them."""
        self._open.clear()
        self._queue.clear()
        self._keyed.clear()

    @contextlib.contextmanager
    def deferring(self, key: Hashable = None) -> Iterator[None]:
        """Defers the backward run inside; its closures become one entry, under `key` or (None) in the queue.

        The store is the calling thread's current one meanwhile. After an exception the closures collected so
        far are dropped; in any case `enabled` is False then. RuntimeError where the store defers already or
        where a W still waits under `key`.
        """
        if self._on:
            raise RuntimeError("deferring() was entered while its store defers already; end that one first.")
        if key is not None and key in self._keyed:
            raise RuntimeError(f"A W still waits under the key {key!r}; run(key) before collecting another.")
        kept, self._open = self._open, deque()
        before = current()
        set_current(self)
        try:
            self.enabled = True
            yield
            if key is None:
                self._queue.append(self._open)
            else:
                self._keyed[key] = self._open
        finally:
            self.enabled = False
            self._open = kept
            set_current(before)

    @contextlib.contextmanager
    def current(self) -> Iterator[Store]:
        """Makes this the store that `WeightGradStore` stands for on the calling thread, inside the block."""
        before = current()
        set_current(self)
        try:
            yield self
        finally:
            set_current(before)


def _run(fns: deque[Callable[[], object]]) -> None:
    """Runs closures in the order they were put, without autograd and autocast, letting go of each."""
    with torch.no_grad(), torch._C._DisableAutocast():
        while fns:
            fns.popleft()()


def current() -> Store | None:
    """The store set for the calling thread (for autograd's: the one that called backward), or None."""
    if not _HANDED_ON:
        return getattr(_thread, "current", None)
    return torch._C._get_obj_in_tls(_SLOT) if torch._C._is_key_in_tls(_SLOT) else None


def set_current(store: Store | None) -> None:
    """Makes `store` the one that `WeightGradStore` stands for on the calling thread; None for no store.

    A thread must end without one: at its end the slot would let go of the store, and while the interpreter
    shuts down that aborts the process.
    """
    if not _HANDED_ON:
        _thread.current = store
    elif store is not None:
        torch._C._stash_obj_in_tls(_SLOT, store)
    elif torch._C._is_key_in_tls(_SLOT):
        torch._C._remove_obj_from_tls(_SLOT)


def _default() -> Store:
    """The calling thread's own store, for code that runs in no rank."""
    if not hasattr(_thread, "default"):
        _thread.default = Store()
    store: Store = _thread.default
    return store


def _here() -> Store:
    """What `WeightGradStore` stands for: the current store, else the one enabled, else the thread's own."""
    store = current()
    if store is None:
        deferring = list(_enabled)
        store = deferring[0] if len(deferring) == 1 else _default()
    return store


class _PerRank(type):
    """Gives `WeightGradStore` a class-level `enabled` that is a different variable on each rank."""

    @property
    def enabled(cls) -> bool:
        return _here().enabled

    @enabled.setter
    def enabled(cls, value: bool) -> None:
        (current() or _default()).enabled = value


class WeightGradStore(metaclass=_PerRank):
    """The store of the calling rank, at class level, with the interface of DeepSeek's class of this name.

    For the backward of a user's own autograd Function:
    `if WeightGradStore.enabled: WeightGradStore.put(grad_weight_fn)`, `else: grad_weight_fn()`.
    Outside a pipeline each thread has a store of its own.
    """

    @staticmethod
    def put(fn: Callable[[], object]) -> None:
        """Adds the closure `fn`, which adds to the parameters' `.grad`, to the open list."""
        _here().put(fn)

    @staticmethod
    def flush() -> None:
        """Ends the open list, which becomes the newest entry of the queue."""
        _here().flush()

    @staticmethod
    def pop() -> None:
        """Takes the oldest entry of the queue and runs its closures; RuntimeError where there is none."""
        _here().pop()

    @staticmethod
    def clear() -> None:
        """Drops all closures without running them."""
        _here().clear()
