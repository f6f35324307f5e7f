"""The ranks of a pipeline as threads of this process: :func:`run_local`.

This is not a launcher of processes and does not talk over a network; it is what makes every schedule
runnable on a laptop. Torch is not imported here: its per-thread settings are handed on only where the
caller has it loaded already.
"""

from __future__ import annotations

import atexit
import contextvars
import ctypes
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from dualpipe_rs._core import LocalGroup, local_groups
from dualpipe_rs.errors import RankError, UsageError

T = TypeVar("T")

_thread = threading.local()

#: How long the process's end waits for ranks that are still at work, in seconds.
_FAREWELL = 10.0
#: How long a wait for them is at most, before Ctrl-C and the ranks themselves are looked after again.
_LOOK = 0.2


def current_group() -> LocalGroup | None:
    """The group of the :func:`run_local` that this thread is a rank of, or ``None``."""
    return getattr(_thread, "group", None)


def run_local(
    fn: Callable[[LocalGroup], T],
    num_ranks: int,
    *,
    interleaved: bool = False,
    threads_per_rank: int | None = None,
) -> list[T]:
    """Calls ``fn(group)`` once for each rank, on one thread a rank of this process.

    Args:
        fn: what each rank does. ``group.rank()`` and ``group.size()`` are as torch's groups have them,
            and ``group`` is good as ``process_group=``. Pipelines made inside find it by themselves.
        num_ranks: how many ranks.
        interleaved: compute the steps of all ranks in turn on one thread, each rank as far as it can
            go, always in the same order. On models so small that the interpreter is the bottleneck this is
            faster than threads. The result is the same.
        threads_per_rank: torch's intra-op threads in each rank. By default those that torch has here are
            shared out among the ranks that compute at once, at least one each; put back afterwards.

    Ranks share what belongs to the process, torch's random generator above all: build models and draw
    data before, or from a ``torch.Generator`` of each rank. Between steps the ranks run side by side,
    with ``interleaved=True`` too. ``torch.device`` contexts and saved-tensor hooks around the call do not
    reach the ranks; gradient mode and autocast do.

    Returns:
        The results of ``fn``, by rank.

    Raises:
        UsageError: an argument is not what it should be, or this was called inside a stage.
        Exception: what a rank raised, once all ranks have ended. Where a rank failed in a step, all
            raise :class:`~dualpipe_rs.RankError`, and the failing rank's is raised here.
        KeyboardInterrupt: all ranks are stopped at their next slot or meeting first. A rank that is at
            neither is waited for; a second Ctrl-C leaves it behind, to be stopped when the process ends.
    """
    _check_arguments(fn, interleaved, threads_per_rank)
    groups = local_groups(num_ranks, interleaved=interleaved)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException | None] = [None] * num_ranks
    owners = _Owners()
    with _intra_op_threads(threads_per_rank, 1 if interleaved else num_ranks) as set_threads:
        inherit = _inherited_settings()

        def rank_main(rank: int) -> None:
            group = groups[rank]
            _thread.group, _thread.owners = group, owners
            try:
                set_threads()
                with inherit():
                    results[rank] = fn(group)
                group.leave("has returned")
            except BaseException as error:
                errors[rank] = error
                group.leave(f"has raised {type(error).__name__}: {error}")
            finally:
                _thread.group = _thread.owners = None

        _run_threads(rank_main, groups)
    failure = _first_failure(errors)
    if failure is not None:
        raise failure
    return results


def claim_modules(group: LocalGroup, stages: dict[int, Any]) -> None:
    """Refuses modules and trainable parameters that another rank of the same :func:`run_local` holds.

    Two threads would add to one ``.grad`` at once, and the stage would be trained twice as fast as meant.

    Args:
        group: the rank's group.
        stages: its ``nn.Module`` objects, by stage.
    """
    owners: _Owners | None = getattr(_thread, "owners", None)
    if owners is None or current_group() is not group:
        return
    for stage, module in stages.items():
        what = f"the module of stage {stage} on rank {group.rank()}"
        owners.claim(module, group.rank(), what)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                owners.claim(parameter, group.rank(), f"parameter {name!r} of {what.removeprefix('the ')}")


class _Owners:
    """Which rank of a group holds which object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The object itself is kept, so that no other can come to have its id.
        self._owners: dict[int, tuple[Any, int, str]] = {}

    def claim(self, thing: Any, rank: int, what: str) -> None:
        with self._lock:
            _, owner, first = self._owners.setdefault(id(thing), (thing, rank, what))
        if owner != rank:
            raise UsageError(
                f"{what} is the same object as {first}; each rank of a process needs its own, such as a copy "
                "made by copy.deepcopy"
            )


def _check_arguments(fn: Any, interleaved: Any, threads_per_rank: Any) -> None:
    if not callable(fn):
        raise UsageError(f"fn is of type {type(fn).__name__}; give a function that takes the rank's group")
    if not isinstance(interleaved, bool):
        raise UsageError(f"interleaved is {interleaved!r}; it is True or False")
    whole = isinstance(threads_per_rank, int) and not isinstance(threads_per_rank, bool)
    if threads_per_rank is not None and not (whole and threads_per_rank > 0):
        raise UsageError(
            f"threads_per_rank is {threads_per_rank!r}; it is a whole number from 1, or None for a fair share"
        )
    gate = sys.modules.get("dualpipe_rs.generator_gate")
    if gate is not None and gate.is_computing():
        # Its ranks would wait for this stage to end, as a stage may compute alone (generator_gate.py).
        raise UsageError("run_local() was called inside a stage; call it outside of step()")


class _Ranks:
    """The threads of one :func:`run_local`, from their start to their end.

    Ctrl-C may come between any two instructions of the thread that waits for them, twice too. So a rank that
    ends says so in a list and only then rings a bell, and whoever waits looks at the list before each wait: a
    ring that Ctrl-C swallows is not missed. The bell is of C, as a lock of :mod:`threading` taken when Ctrl-C
    comes stays taken; and nobody waits by ``Thread.join``, which, interrupted, takes a running thread for an
    ended one.
    """

    def __init__(self, rank_main: Callable[[int], None], groups: list[LocalGroup]) -> None:
        self._group = groups[0]
        self._ended = [False] * len(groups)
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

        def run(rank: int) -> None:
            try:
                rank_main(rank)
            finally:
                self._ended[rank] = True
                self._bell.put(None)

        self._threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(run, rank), name=f"rank {rank}", daemon=True
            )
            for rank in range(len(groups))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Waits until all ranks that were started have ended."""
        while self._at_work():
            self._listen()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _at_work(self) -> list[threading.Thread]:
        threads = zip(self._threads, self._ended, strict=True)
        return [thread for thread, ended in threads if not ended and thread.ident is not None]

    def _listen(self) -> None:
        """Waits for the bell, but not for long.

        A SIGINT that comes just before a wait begins does not interrupt it, and none does where a library has
        waits restarted (polars does, when it is imported): Ctrl-C is then seen when a wait ends.
        """
        with suppress(queue.Empty):
            self._bell.get(timeout=_LOOK)

    def interrupt(self, reason: str) -> None:
        """Ends all ranks at their next slot or meeting."""
        self._group.interrupt(reason)

    def dismiss(self) -> None:
        """Ends all ranks because the process ends: threads of torch that outlive Python abort it."""
        self.interrupt("was stopped, as the process ends")
        deadline = time.monotonic() + _FAREWELL
        while (left := self._at_work()) and time.monotonic() < deadline:
            for thread in filter(threading.Thread.is_alive, left):
                # Again each time: code that drops exceptions, such as a destructor, may have dropped it.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                )
            self._listen()
        if not left:
            self.wait()


_running: weakref.WeakSet[_Ranks] = weakref.WeakSet()


@atexit.register
def _dismiss_all() -> None:
    for ranks in list(_running):
        ranks.dismiss()


def _run_threads(rank_main: Callable[[int], None], groups: list[LocalGroup]) -> None:
    """Runs a thread a rank and waits for all. On Ctrl-C the ranks stop at their next slot."""
    ranks = _Ranks(rank_main, groups)
    _running.add(ranks)
    try:
        ranks.start()
        ranks.wait()
    except BaseException as error:
        ranks.interrupt(f"was interrupted ({type(error).__name__})")
        ranks.wait()
        raise


def _first_failure(errors: list[BaseException | None]) -> BaseException | None:
    """The error of the rank where the trouble began: others only report it."""
    began = [error for error in errors if error is not None and not isinstance(error, RankError)]
    told = [error for rank, error in enumerate(errors) if isinstance(error, RankError) and error.rank == rank]
    rest = [error for error in errors if error is not None]
    return next(iter([*began, *told, *rest]), None)


@contextmanager
def _intra_op_threads(asked: int | None, at_once: int) -> Iterator[Callable[[], None]]:
    """Yields what sets torch's intra-op threads in a rank's thread; puts back the caller's at the end."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield lambda: None
        return
    before = torch.get_num_threads()
    count = asked or max(1, before // at_once)
    try:
        yield lambda: torch.set_num_threads(count)
    finally:
        torch.set_num_threads(before)


def _inherited_settings() -> Callable[[], ExitStack]:
    """Torch's gradient mode and autocast of the calling thread, to be entered in each rank's thread."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ExitStack
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = [
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]

    def enter() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.set_grad_enabled(gradients))
        if inference:
            stack.enter_context(torch.inference_mode())
        for device, dtype in casts:
            stack.enter_context(torch.autocast(device, dtype=dtype))
        return stack

    return enter
