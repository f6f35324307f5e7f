"""One schedule under many costs, which may be columns of numpy arrays. Rust does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from dualpipe_rs import _core
from dualpipe_rs._core import Costs, Schedule
from dualpipe_rs.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The axes that a cost may have: none (a number), one (a sequence) or two (a table). A column has one more.
_MOST_AXES = {
    "overlap": 2,
    "p2p": 2,
    "p2p_bytes": 2,
    "p2p_bandwidth": 2,
    "gradient_exchange": 0,
    "first_extra": 1,
    "last_extra": 1,
}


def simulate_many(
    schedule: Schedule,
    costs: Iterable[Costs] | Mapping[str, Any],
    *,
    p2p: str = "eager",
    depth: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[np.void]:
    """Simulates a schedule under each of many costs, over all cores.

    Args:
        schedule: what to simulate; it is verified, and lowered for ``p2p``, once.
        costs: an iterable of ``Costs``; or columns by the names of their fields, in a pandas DataFrame or a
            mapping: numpy arrays (or sequences) whose first axis, of one length N in all of them, counts the
            simulations: ``{"overlap": np.linspace(2, 3, N), "forward": array of shape (N, stages), "p2p":
            0.1}``. A plain number holds for all of them; a sequence never does, as its first axis is N.
        p2p, depth: as ``Schedule.verify`` takes them.
        threads: how many to use; as many as there are cores, if left out.
        progress: ``progress(done, total)`` is called now and then, in this thread, and at the end.

    Returns:
        A structured array of ``makespan``, ``span`` (in the costs' unit) and ``bubble_ratio``, one row for
        each of the costs.

    Raises:
        ScheduleError: the schedule breaks a rule, or its ranks would wait for each other in a circle.
        UsageError: costs that are none or do not fit the schedule, or columns of several lengths.

    Ctrl-C stops it within a fraction of a second.
    """
    if isinstance(costs, Costs):
        raise UsageError("costs is one Costs; give several, or columns, or call schedule.simulate(costs)")
    listed = _rows(cast("Mapping[str, Any]", costs)) if hasattr(costs, "items") else list(costs)
    for index, one in enumerate(listed):
        if not isinstance(one, Costs):
            raise UsageError(f"costs[{index}] is of type {type(one).__name__}; each is a Costs")
    return _core.simulate_many(schedule, listed, p2p=p2p, depth=depth, threads=threads, progress=progress)


def _rows(columns: Mapping[str, Any]) -> list[Costs]:
    import numpy as np

    fixed: dict[str, Any] = {}
    moving: dict[str, Any] = {}
    for name, column in columns.items():
        if not hasattr(Costs, str(name)):
            raise UsageError(f"there is no cost {name!r}; the columns are named as the fields of Costs")
        if column is None or isinstance(column, (int, float)):
            fixed[name] = column
            continue
        try:
            array = np.asarray(column)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"{name} is no array: {error}") from error
        if array.ndim == 0:
            fixed[name] = column
        else:
            moving[name] = array
            if array.ndim > 1 + _MOST_AXES.get(name, 1):
                raise UsageError(f"{name} has {array.ndim} axes; its first one counts the simulations")
    lengths = {name: len(column) for name, column in moving.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"the columns have several lengths: {lengths}; each has one row for each simulation")
    if not lengths:
        raise UsageError("no column is an array; its first axis says how many simulations there are")
    count = next(iter(lengths.values()))
    return [_row(i, fixed | {name: column[i] for name, column in moving.items()}) for i in range(count)]


def _row(index: int, fields: dict[str, Any]) -> Costs:
    try:
        return Costs(**fields)
    except UsageError as error:
        raise UsageError(f"costs[{index}]: {error}") from None
