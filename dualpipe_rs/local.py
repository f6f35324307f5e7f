"""The ranks of a pipeline as threads of this process: :func:`run_local`.

This is not a launcher of processes and does not talk over a network; it is what makes every schedule
runnable on a laptop. Torch is not imported here: its per-thread settings are handed on only where the
caller has it loaded already.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from dualpipe_rs._core import LocalGroup, local_groups
from dualpipe_rs.errors import RankError, UsageError

T = TypeVar("T")

_thread = threading.local()


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
            go. On models so small that the interpreter is the bottleneck this is faster than threads,
            and it is deterministic. The result is the same.
        threads_per_rank: torch's intra-op threads in each rank. By default the cores are shared out among
            the ranks that compute at once, at least one each; it is put back afterwards.

    Returns:
        The results of ``fn``, by rank.

    Raises:
        Exception: what a rank raised, once all ranks have ended. Where a rank failed in a step, all
            raise :class:`~dualpipe_rs.RankError`, and the failing rank's is raised here.
    """
    groups = local_groups(num_ranks, interleaved=interleaved)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException | None] = [None] * num_ranks
    owners = _Owners()
    at_once = 1 if interleaved else num_ranks
    share = threads_per_rank or max(1, (os.cpu_count() or 1) // at_once)
    with _intra_op_threads(share) as set_threads:
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


def _run_threads(rank_main: Callable[[int], None], groups: list[LocalGroup]) -> None:
    """Starts a thread a rank and waits for all. On Ctrl-C the ranks stop at their next slot."""
    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(rank_main, rank), name=f"rank {rank}", daemon=True
        )
        for rank in range(len(groups))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:
        groups[0].interrupt(f"was interrupted ({type(error).__name__})")
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise


def _first_failure(errors: list[BaseException | None]) -> BaseException | None:
    """The error of the rank where the trouble began: others only report it."""
    began = [error for error in errors if error is not None and not isinstance(error, RankError)]
    told = [error for rank, error in enumerate(errors) if isinstance(error, RankError) and error.rank == rank]
    rest = [error for error in errors if error is not None]
    return next(iter([*began, *told, *rest]), None)


@contextmanager
def _intra_op_threads(count: int) -> Iterator[Callable[[], None]]:
    """Yields what sets torch's intra-op threads in a rank's thread; puts back the caller's at the end."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield lambda: None
        return
    before = torch.get_num_threads()
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
