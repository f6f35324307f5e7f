"""Schedules side by side for the same devices, as a table for terminals, notebooks and data frames."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from dualpipe_rs._core import Costs, Schedule, Timeline, schedule
from dualpipe_rs.errors import ScheduleError, SizeError, UsageError

Row = dict[str, Any]
Choice = str | tuple[str, Mapping[str, int]] | Schedule

# The columns, and how a number in each is shown.
_COLUMNS = {
    "schedule": "",
    "makespan": ".6g",
    "span": ".6g",
    "bubble_ratio": ".2%",
    "bubble_over_ideal": ".2%",
    "peak_activations": ".6g",
    "peak_bytes": ".4g",
    "parameters": ".6g",
    "parameter_bytes": ".4g",
    "p2p_tensors": "d",
    "p2p_bytes": ".4g",
    "note": "",
}
_ONLY_IF_GIVEN = {
    "peak_bytes": ("activation_bytes", "weight_grad_bytes", "p2p_bytes"),
    "parameter_bytes": ("parameter_bytes",),
    "p2p_bytes": ("p2p_bytes",),
}


def compare(
    schedules: Iterable[Choice],
    num_ranks: int,
    num_microbatches: int,
    costs: Costs | None = None,
    *,
    p2p: str = "eager",
    depth: int | None = None,
) -> Comparison:
    """Simulates schedules for the same devices and the same model.

    Args:
        schedules: names as ``dp.schedule`` takes them, pairs of a name and its options, such as
            ``("interleaved", {"stages_per_rank": 4})``, or ``Schedule`` objects.
        num_ranks, num_microbatches: the sizes for all of them.
        costs: of a stage that is one part in ``num_ranks`` of the model (default: F = I = W = 1). A schedule
            with k stages a rank has stages of 1/k of that (:meth:`Costs.cut`), its fused pairs and bytes too;
            hops cost the same for all.
        p2p, depth: as ``Schedule.verify`` takes them.

    Returns:
        A :class:`Comparison`: a row for each schedule, in the order given. A schedule that does not exist at
        these sizes, or cannot run under ``p2p``, has a row whose ``note`` says why, and None for numbers.

    Raises:
        UsageError: an unknown name or option, costs that do not fit, or a Schedule of other sizes.
    """
    costs = costs if costs is not None else Costs()
    if not isinstance(costs, Costs):
        raise UsageError(f"costs is of type {type(costs).__name__}; it is a Costs")
    rows: list[Row] = []
    timelines: list[Timeline | None] = []
    for choice in [schedules] if isinstance(schedules, (str, Schedule)) else schedules:
        title = _title(choice)
        try:
            made = _made(choice, num_ranks, num_microbatches)
            share = share_of(made, costs)
            timeline = made.simulate(share, p2p=p2p, depth=depth)
        except (SizeError, ScheduleError) as error:
            # The first violation says where and why; the message begins with how many there are.
            first = error.violations[0] if isinstance(error, ScheduleError) else error
            rows.append(dict.fromkeys(_COLUMNS) | {"schedule": title, "note": str(first)})
            timelines.append(None)
        else:
            rows.append({"schedule": title, **_figures(made, timeline, share), "note": None})
            timelines.append(timeline)
    return Comparison(rows, timelines, costs)


def share_of(made: Schedule, costs: Costs) -> Costs:
    """What a stage costs, where these costs are those of one part in ``num_ranks`` of the model."""
    return costs.cut(made.num_stages // made.num_ranks)


def peak_of(made: Schedule, timeline: Timeline) -> float:
    """The most that a rank holds at once, in microbatches of one part in ``num_ranks`` of the model."""
    return float(timeline.peak_activations.max()) * made.num_ranks / made.num_stages


def _title(choice: Choice) -> str:
    if isinstance(choice, Schedule):
        return choice.name
    if isinstance(choice, str):
        return choice
    if isinstance(choice, tuple) and len(choice) == 2 and isinstance(choice[1], Mapping):
        options = ", ".join(f"{name}={value}" for name, value in choice[1].items())
        return f"{choice[0]} ({options})" if options else choice[0]
    raise UsageError(
        f"{choice!r} is no schedule; give a name, a pair of a name and its options, or a Schedule"
    )


def _made(choice: Choice, num_ranks: int, num_microbatches: int) -> Schedule:
    if isinstance(choice, tuple):
        return schedule(choice[0], num_ranks, num_microbatches, **choice[1])
    if isinstance(choice, str):
        return schedule(choice, num_ranks, num_microbatches)
    sizes = choice.num_ranks, choice.num_microbatches
    if sizes != (num_ranks, num_microbatches):
        raise UsageError(
            f"{choice.name} has {sizes[0]} ranks and {sizes[1]} microbatches, and {num_ranks} and "
            f"{num_microbatches} are compared"
        )
    return choice


def _figures(made: Schedule, timeline: Timeline, costs: Costs) -> Row:
    stages_a_rank = made.num_stages // made.num_ranks
    sent = made.p2p_tensors()
    held = [made.stages_of(rank) for rank in range(made.num_ranks)]
    by_stage = costs.parameter_bytes
    weights = by_stage if isinstance(by_stage, list) else [by_stage] * made.num_stages
    return {
        "makespan": timeline.makespan,
        "span": timeline.span,
        "bubble_ratio": timeline.bubble_ratio,
        "bubble_over_ideal": timeline.bubble_over_ideal,
        "peak_activations": peak_of(made, timeline),
        "peak_bytes": float(timeline.peak_bytes().max()),
        "parameters": max(len(stages) for stages in held) / stages_a_rank,
        "parameter_bytes": max(sum(weights[stage] for stage in stages) for stages in held),
        "p2p_tensors": int(sent.sum()),
        "p2p_bytes": float((sent * costs.p2p_bytes).sum()),
    }


class Comparison:
    """What :func:`compare` gives: a sequence of rows, each a dictionary, that shows itself as a table.

    - ``schedule``: the name, with the options given.
    - ``makespan``, ``span``: in the costs' unit.
    - ``bubble_ratio``: idle over all time, 1 - sum(busy) / (ranks x makespan).
    - ``bubble_over_ideal``: idle over busy time.
    - ``peak_activations``: the most that a rank holds at once, in microbatches of one part in ``num_ranks``
      of the model.
    - ``peak_bytes``: the most bytes of activations, of what waits for W and of tensors received.
    - ``parameters``: of the fullest rank, in parts of one in ``num_ranks`` of the model (2 in bidirectional
      placements).
    - ``parameter_bytes``: the same in bytes.
    - ``p2p_tensors``: how many travel between ranks in a step; ``p2p_bytes``: all their bytes.
    - ``note``: why a schedule has no numbers; None where it has.

    Columns in bytes are shown where the costs have such bytes. ``timelines`` has the Timeline of each row, or
    None; ``costs`` are those given.
    """

    def __init__(self, rows: list[Row], timelines: list[Timeline | None], costs: Costs) -> None:
        self.timelines = timelines
        self.costs = costs
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [dict(row) for row in self._rows[index]]
        return dict(self._rows[index])

    def __iter__(self) -> Iterator[Row]:
        return (dict(row) for row in self._rows)

    @property
    def columns(self) -> list[str]:
        """The names of the columns that say something."""
        nothing = Costs()

        def says(name: str) -> bool:
            if name == "note":
                return any(row["note"] for row in self._rows)
            needs = _ONLY_IF_GIVEN.get(name)
            return needs is None or any(getattr(self.costs, n) != getattr(nothing, n) for n in needs)

        return [name for name in _COLUMNS if says(name)]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; ModuleNotFoundError where pandas is not installed."""
        import pandas

        return pandas.DataFrame(list(self), columns=self.columns)

    def to_polars(self) -> Any:
        """A ``polars.DataFrame``; ModuleNotFoundError where polars is not installed."""
        import polars

        columns = self.columns
        return polars.DataFrame({name: [row[name] for row in self] for name in columns})

    def __repr__(self) -> str:
        """The table; notes stand below it."""
        columns = [name for name in self.columns if name != "note"]
        table = self._cells(columns)
        widths = [max(len(row[column]) for row in table) for column in range(len(columns))]

        def line(name: str, *numbers: str) -> str:
            cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
            return "  ".join([name.ljust(widths[0]), *cells]).rstrip()

        notes = [f"{row['schedule']}: {row['note']}" for row in self._rows if row["note"]]
        return "\n".join([*(line(*row) for row in table), *notes])

    def _repr_html_(self) -> str:
        head, *rows = self._cells(self.columns)

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"

    def _cells(self, columns: list[str]) -> list[list[str]]:
        """The table as text, its heads first."""

        def cell(row: Row, name: str) -> str:
            return "" if row[name] is None else format(row[name], _COLUMNS[name])

        return [columns, *([cell(row, name) for name in columns] for row in self._rows)]
