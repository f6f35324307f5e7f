"""``visualize_schedule``: a schedule by its sizes, drawn in one call."""

from __future__ import annotations

from os import PathLike
from typing import Any

from dualpipe_rs._core import Costs, Schedule
from dualpipe_rs._core import schedule as make_schedule
from dualpipe_rs.drawing.view import View
from dualpipe_rs.errors import UsageError


def visualize_schedule(
    num_stages: int,
    num_microbatches: int,
    output_file: str | PathLike[str] | None = None,
    *,
    schedule: str | Schedule = "dualpipe",
    costs: Costs | None = None,
    **options: Any,
) -> View:
    """Draws a schedule, and writes the picture to a file.

    Args:
        num_stages: how many ranks the pipeline has (DualPipe has as many stages; each rank holds two).
        num_microbatches: over both directions.
        output_file: where to write it: ``.png`` and ``.pdf`` (which need matplotlib), ``.svg``, ``.html``,
            or a trace, ``.json`` or ``.pftrace``. None writes none.
        schedule: a family's name as ``dp.schedule`` takes it, or a Schedule of these sizes.
        costs: of one stage, in any unit; None for F = I = W = 1. (``dp.compare`` gives a schedule with two
            stages a rank stages of half of that, to be fair: ``costs.cut(2)``.)
        options: as :class:`View` has them; for PNG also ``dpi``.

    Returns:
        A :class:`View`: the picture, where it is the last value of a notebook's cell.

    Raises:
        UsageError: sizes that the family cannot take, an unknown suffix or option.
        OSError: the file cannot be written.
    """
    if isinstance(schedule, Schedule):
        made = schedule
        if (made.num_ranks, made.num_microbatches) != (num_stages, num_microbatches):
            raise UsageError(
                f"the schedule has {made.num_ranks} ranks and {made.num_microbatches} microbatches; "
                f"num_stages is {num_stages} and num_microbatches {num_microbatches}"
            )
    else:
        made = make_schedule(schedule, num_stages, num_microbatches)
    seen = made if costs is None else made.simulate(costs)
    dpi = {"dpi": options.pop("dpi")} if "dpi" in options else {}
    view = View(seen, **options)
    if output_file is not None:
        view.save(output_file, **dpi)
    return view
