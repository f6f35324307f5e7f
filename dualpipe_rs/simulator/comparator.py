"""Strategies at given sizes, best first: :class:`ScheduleComparator`. The figures are ``dp.compare``'s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dualpipe_rs._core import Costs
from dualpipe_rs.comparison import compare
from dualpipe_rs.given import whole
from dualpipe_rs.strategies import STRATEGIES, costs_of, strategy_name

#: The columns of the report: heading, name of the figure, how it is written.
_COLUMNS = (
    ("makespan", "makespan", "{:.6g}"),
    ("bubble", "bubble_ratio", "{:.2%}"),
    ("memory factor", "memory_factor", "{:g}x"),
    ("peak activations", "peak_activations", "{:.6g}"),
)


class ScheduleComparator:
    """Compares strategies for the same devices and the same model.

    Args:
        num_ranks: how many ranks.
        num_chunks: how many microbatches, over all directions.
        strategies: names of published schedules.
        costs: what a rank's part of the model costs, as :class:`Costs`; or
        times: the same by the names that ``Times`` has: ``forward_time`` (1), ``backward_time`` (2),
            ``weight_time``, ``overlap_time``, ``comm_time`` (0).

    Attributes:
        notes: of the strategies that were left out, why: by name, once they have been compared.

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(
        self,
        num_ranks: int,
        num_chunks: int,
        strategies: Iterable[str] = STRATEGIES,
        *,
        costs: Costs | None = None,
        **times: Any,
    ) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.num_chunks = whole("num_chunks", num_chunks)
        named = [strategies] if isinstance(strategies, str) else strategies
        self.strategies = list(dict.fromkeys(strategy_name(name) for name in named))
        self.costs = costs_of(costs, times)
        self.notes: dict[str, str] = {}

    def compare_strategies(self) -> dict[str, dict[str, Any]]:
        """The figures of each strategy, by its name, the shortest makespan first.

        A strategy that does not exist at these sizes is left out, and ``notes`` says why.

        Returns:
            For each a dict of plain numbers:

            - ``"makespan"``: of the step, in the unit of the times given; ``"bubble_ratio"``: idle over all
              time; ``"speedup"``: the longest makespan here over this one.
            - ``"memory_factor"``: copies of the model's weights (2 where it is bidirectional).
            - ``"peak_activations"``: the most that a rank holds at once, in microbatches of its part of the
              model.
            - ``"p2p_tensors"``: how many travel between ranks.
        """
        rows = list(compare(self.strategies, self.num_ranks, self.num_chunks, self.costs))
        self.notes = {row["schedule"]: row["note"] for row in rows if row["note"] is not None}
        found = sorted((row for row in rows if row["note"] is None), key=lambda row: row["makespan"])
        longest = found[-1]["makespan"] if found else 0.0
        return {row["schedule"]: _figures(row, longest) for row in found}

    def generate_report(self) -> str:
        """The same as text: a table, the shortest makespan first, and what was left out and why."""
        found = self.compare_strategies()
        table = [["strategy", *(heading for heading, _, _ in _COLUMNS)]]
        for name, numbers in found.items():
            table.append([name, *(written.format(numbers[figure]) for _, figure, written in _COLUMNS)])
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = [f"{self.num_ranks} ranks, {self.num_chunks} chunks, best first"]
        for name, *cells in table:
            padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([name.ljust(widths[0]), *padded]))
        lines += [f"left out: {name}: {note}" for name, note in self.notes.items()]
        return "\n".join(lines)


def _figures(row: dict[str, Any], longest: float) -> dict[str, Any]:
    makespan = row["makespan"]
    return {
        "makespan": makespan,
        "bubble_ratio": row["bubble_ratio"],
        "speedup": longest / makespan if makespan else 1.0,
        "memory_factor": row["parameters"],
        "peak_activations": row["peak_activations"],
        "p2p_tensors": row["p2p_tensors"],
    }
