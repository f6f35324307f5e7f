"""Into how many chunks a batch is best cut, and what else matters: :class:`ConfigOptimizer`.

It tries and simulates; nothing is fitted or estimated. What fits into memory is not asked here.
"""

from __future__ import annotations

from typing import Any

from dualpipe_rs._core import Costs
from dualpipe_rs.given import amount, whole
from dualpipe_rs.strategies import (
    Strategy,
    at_each_size,
    chunks_of,
    costs_of,
    greatest_hop,
    simulated,
    strategy_name,
)

#: The costs that are a chunk's, and shrink with it.
_OF_A_CHUNK = (
    *("forward", "backward_input", "backward_weight", "backward", "overlap"),
    *("first_extra", "last_extra", "p2p_bytes"),
)


class ConfigOptimizer:
    """Looks for what makes a step of a given batch shortest.

    Args:
        num_ranks: how many ranks.
        num_chunks: the microbatches for which the times are given; together they are the batch. Two a rank by
            default.
        costs: what a rank's part of the model costs for one of them, as :class:`Costs`; or
        times: the same by the names that ``Times`` has: ``forward_time`` (1), ``backward_time`` (2),
            ``weight_time``, ``overlap_time``, ``comm_time`` (0).

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(
        self, num_ranks: int, num_chunks: int | None = None, *, costs: Costs | None = None, **times: Any
    ) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.num_chunks = chunks_of(self.num_ranks, num_chunks)
        self.costs = costs_of(costs, times)

    def find_optimal_chunks(
        self, strategy: str = "dualpipe", max_chunks: int | None = None, overhead: float = 0.0
    ) -> dict[str, Any]:
        """The count of chunks at which a step of the same batch is shortest; of equal ones the fewest.

        Cut into n chunks, each takes ``num_chunks / n`` of the times given (its bytes, too), and every F, I,
        W of a stage ``overhead`` more, a full backward twice that, a fused pair thrice; a hop's ``comm_time``
        stays. With neither overhead nor hops more chunks are better, up to the most that are tried.

        Args:
            strategy: its name.
            max_chunks: up to how many; 8 a rank by default.
            overhead: what each operation takes however small it is.

        Returns:
            ``"num_chunks"``, ``"makespan"``, ``"bubble_ratio"``, ``"strategy"``, and ``"candidates"``: the
            first three for every count tried, best first.

        Raises:
            SizeError: the schedule does not exist for any count up to there.
        """
        extra = amount("overhead", overhead)
        tried = at_each_size(strategy, self.num_ranks, max_chunks, self._cut_into, extra)
        candidates = sorted(map(_candidate, tried), key=lambda c: (c["makespan"], c["num_chunks"]))
        return {"strategy": strategy_name(strategy), **candidates[0], "candidates": candidates}

    def sensitivity(self, strategy: str = "dualpipe", percent: float = 1.0) -> dict[str, float]:
        """By how much the makespan grows where a cost alone grows by so many per cent.

        Returns:
            By the name of the cost, in the unit of the times: ``"forward"``, ``"backward_input"``,
            ``"backward_weight"``, ``"p2p"`` ...: ``Timeline.sensitivity``'s.

        Raises:
            SizeError: the schedule does not exist at these sizes.
        """
        grown = self._simulated(strategy).timeline.sensitivity(amount("percent", percent))
        return {name: float(more) for name, more in grown.items() if isinstance(more, (int, float))}

    def communication_threshold(self, strategy: str = "dualpipe", tolerance: float = 0.05) -> float:
        """The longest that a hop may take: with it the step is at most ``1 + tolerance`` times what it is
        without hops. Infinite where nothing travels between ranks.

        Raises:
            SizeError: the schedule does not exist at these sizes.
        """
        return greatest_hop(self._simulated(strategy), amount("tolerance", tolerance))

    def _simulated(self, strategy: str) -> Strategy:
        return simulated(strategy, self.num_ranks, self.num_chunks, self.costs)

    def _cut_into(self, chunks: int) -> Costs:
        """What one of so many chunks of the batch costs."""
        part = self.num_chunks / chunks
        values = {name: getattr(self.costs, name) for name in _OF_A_CHUNK}
        return self.costs.replace(
            **{name: _times(value, part) for name, value in values.items() if value is not None}
        )


def _times(value: Any, part: float) -> Any:
    return [_times(each, part) for each in value] if isinstance(value, (list, tuple)) else value * part


def _candidate(found: Strategy) -> dict[str, Any]:
    return {
        "num_chunks": found.schedule.num_microbatches,
        "makespan": found.timeline.makespan,
        "bubble_ratio": found.timeline.bubble_ratio,
    }
