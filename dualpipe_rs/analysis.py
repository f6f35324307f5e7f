"""What a published schedule idles, how many chunks are enough, and what it sends: ``dp.analysis``.

    import dualpipe_rs as dp

    dp.analysis.BubbleCalculator(num_ranks=8).dualpipe_bubble(num_chunks=20)["bubble_ratio"]

An interface under names that are known; every figure is read from the real schedule, simulated by
``Schedule.simulate``, and nothing is estimated. ``dp.formula`` has the papers' closed forms.
Devices are equal: times are those of one part in ``num_ranks`` of the model, and a schedule with k stages a
rank has stages of 1/k of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dualpipe_rs._core import Costs, Schedule, Timeline
from dualpipe_rs.errors import SizeError
from dualpipe_rs.given import amount, whole
from dualpipe_rs.strategies import (
    STRATEGIES,
    Strategy,
    Times,
    at_each_size,
    chunks_of,
    costs_of,
    figures,
    greatest_hop,
    simulated,
    strategy_name,
)

__all__ = ["BubbleCalculator", "CommunicationAnalyzer", "ScheduleAnalyzer", "Times"]


class BubbleCalculator:
    """How long a pipeline's ranks idle, under each strategy.

    Args:
        num_ranks: how many ranks.
        costs: what a rank's part of the model costs, as :class:`Costs`; or
        times: the same by the names that :class:`Times` has: ``forward_time`` (1), ``backward_time`` (2),
            ``weight_time``, ``overlap_time``, ``comm_time`` (0).

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(self, num_ranks: int, *, costs: Costs | None = None, **times: Any) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.costs = costs_of(costs, times)

    def bubble(self, strategy: str, num_chunks: int) -> dict[str, Any]:
        """The bubble of any published schedule, by its name.

        Returns:
            A dict of plain numbers, times in the unit of the times given:

            - ``"bubble_ratio"``: idle over all time, 1 - sum(busy) / (ranks x makespan).
            - ``"bubble_over_ideal"``: idle over busy time.
            - ``"makespan"``: of the step; ``"ideal"``: what it would take without a bubble, the mean busy
              time of a rank; ``"idle"``: the mean idle time of a rank, their difference.
            - ``"busy_by_rank"``, ``"idle_by_rank"``: lists.
            - ``"peak_activations"``: the most that a rank holds at once, in microbatches of its part of the
              model.
            - ``"strategy"``, ``"num_ranks"``, ``"num_chunks"``.

        Raises:
            SizeError: the schedule does not exist at these sizes; says which are nearest.
            UsageError: an argument is not what it should be.
        """
        return figures(simulated(strategy, self.num_ranks, num_chunks, self.costs))

    def dualpipe_bubble(self, num_chunks: int) -> dict[str, Any]:
        """DualPipe's (arXiv 2412.19437): an even number of ranks and of chunks, at least two a rank."""
        return self.bubble("dualpipe", num_chunks)

    def dualpipev_bubble(self, num_chunks: int) -> dict[str, Any]:
        """DualPipeV's (github.com/deepseek-ai/DualPipe): at least two chunks a rank."""
        return self.bubble("dualpipev", num_chunks)

    def gpipe_bubble(self, num_chunks: int) -> dict[str, Any]:
        """GPipe's (arXiv 1811.06965)."""
        return self.bubble("gpipe", num_chunks)

    def one_f_one_b_bubble(self, num_chunks: int) -> dict[str, Any]:
        """1F1B's (arXiv 1806.03377, 2104.04473): GPipe's, with less memory."""
        return self.bubble("1f1b", num_chunks)


class ScheduleAnalyzer:
    """Timelines, bubbles and the fewest chunks that are enough, of strategies at given sizes.

    Args:
        num_ranks: how many ranks.
        num_chunks: how many microbatches, over all directions; two a rank by default.
        costs, times: as :class:`BubbleCalculator` takes them.

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(
        self, num_ranks: int, num_chunks: int | None = None, *, costs: Costs | None = None, **times: Any
    ) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.num_chunks = chunks_of(self.num_ranks, num_chunks)
        self.costs = costs_of(costs, times)

    def schedule(self, strategy: str = "dualpipe") -> Schedule:
        """The :class:`~dualpipe_rs.Schedule`. SizeError where there is none of these sizes."""
        return self._simulated(strategy).schedule

    def timeline(self, strategy: str = "dualpipe") -> Timeline:
        """The simulated :class:`~dualpipe_rs.Timeline`. SizeError where there is none of these sizes."""
        return self._simulated(strategy).timeline

    def analyze(self, strategy: str = "dualpipe") -> dict[str, Any]:
        """What :meth:`BubbleCalculator.bubble` gives, and why ranks idle.

        ``"idle_by_cause"`` has the causes of ``Timeline.idle_by_cause``, each with a list by rank.
        """
        found = self._simulated(strategy)
        causes = found.timeline.idle_by_cause.items()
        return figures(found) | {"idle_by_cause": {str(cause): idle.tolist() for cause, idle in causes}}

    def bubble_ratio(self, strategy: str = "dualpipe") -> float:
        """Idle over all time."""
        return self._simulated(strategy).timeline.bubble_ratio

    def bubble_ratios(self, strategies: Iterable[str] = STRATEGIES) -> dict[str, float]:
        """The bubble ratio of each strategy that these sizes allow, by name, the smallest first."""
        ratios: dict[str, float] = {}
        for strategy in [strategies] if isinstance(strategies, str) else strategies:
            try:
                ratios[strategy_name(strategy)] = self.bubble_ratio(strategy)
            except SizeError:
                continue
        return dict(sorted(ratios.items(), key=lambda item: item[1]))

    def find_optimal_chunks(
        self,
        strategy: str = "dualpipe",
        target_bubble_ratio: float = 0.1,
        max_chunks: int | None = None,
    ) -> int | None:
        """The fewest chunks at which the bubble ratio is at most ``target_bubble_ratio``.

        Each chunk takes the same time however many there are; for a batch that is cut into more and more
        parts see ``dp.simulator.ConfigOptimizer``.

        Args:
            strategy: its name.
            target_bubble_ratio: of 0..1.
            max_chunks: where to give up; 8 a rank by default.

        Returns:
            The count, or None where not even ``max_chunks`` are enough.

        Raises:
            SizeError: the schedule does not exist for any count up to there.
        """
        target = amount("target_bubble_ratio", target_bubble_ratio, "a number from 0 to 1")
        sizes = at_each_size(strategy, self.num_ranks, max_chunks, lambda _: self.costs)
        enough = (f.schedule.num_microbatches for f in sizes if f.timeline.bubble_ratio <= target)
        return next(enough, None)

    def _simulated(self, strategy: str) -> Strategy:
        return simulated(strategy, self.num_ranks, self.num_chunks, self.costs)


class CommunicationAnalyzer:
    """What travels between ranks in a step: how many tensors, how many bytes, and how fast a link must be.

    Args:
        num_ranks: how many ranks.
        num_chunks: how many microbatches, over all directions.
        tensor_bytes: the size of what a stage hands on for one microbatch (batch x sequence x hidden x bytes
            a number); a gradient is as large.
        costs, times: as :class:`BubbleCalculator` takes them. For bandwidths in bytes a second the times must
            be seconds.

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(
        self,
        num_ranks: int,
        num_chunks: int,
        tensor_bytes: float = 0.0,
        *,
        costs: Costs | None = None,
        **times: Any,
    ) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.num_chunks = whole("num_chunks", num_chunks)
        self.tensor_bytes = amount("tensor_bytes", tensor_bytes, "a number of bytes")
        self.costs = costs_of(costs, times)

    def p2p_operations(self, strategy: str = "dualpipe") -> dict[str, Any]:
        """The tensors that travel from rank to rank in a step, activations and gradients.

        Returns:
            ``"total"``; ``"by_edge"``: a count for each (from rank, to rank); ``"sent_by_rank"`` and
            ``"received_by_rank"``: lists. Each tensor is one send and one receive.
        """
        tensors = self._simulated(strategy).schedule.p2p_tensors()
        edges = zip(*(index.tolist() for index in tensors.nonzero()), strict=True)
        return {
            "total": int(tensors.sum()),
            "by_edge": {(source, to): int(tensors[source, to]) for source, to in edges},
            "sent_by_rank": tensors.sum(axis=1).tolist(),
            "received_by_rank": tensors.sum(axis=0).tolist(),
        }

    def communication_volume(self, strategy: str = "dualpipe") -> dict[str, Any]:
        """The bytes of these tensors, under the names of :meth:`p2p_operations`."""
        counts, size = self.p2p_operations(strategy), self.tensor_bytes
        return {
            "total": counts["total"] * size,
            "by_edge": {edge: count * size for edge, count in counts["by_edge"].items()},
            "sent_by_rank": [count * size for count in counts["sent_by_rank"]],
            "received_by_rank": [count * size for count in counts["received_by_rank"]],
        }

    def required_bandwidth(self, strategy: str = "dualpipe", tolerance: float = 0.05) -> dict[str, float]:
        """How fast a link must be.

        Args:
            strategy: its name.
            tolerance: by which part of it a step may get longer on account of its sends and receives.

        Returns:
            - ``"average"``: the bytes of the busiest edge over the makespan: with less it cannot keep up.
            - ``"needed"``: the least bandwidth at which the step takes at most ``1 + tolerance`` times as
              long as if nothing took time to travel; infinite where any hop is too long.
            - ``"longest_hop"``: the time that a tensor may then take.
        """
        found = self._simulated(strategy)
        hop = greatest_hop(found, amount("tolerance", tolerance))
        busiest = float(found.schedule.p2p_tensors().max()) * self.tensor_bytes
        return {
            "average": _rate(busiest, found.timeline.makespan),
            "needed": _rate(self.tensor_bytes, hop),
            "longest_hop": hop,
        }

    def analyze(self, strategy: str = "dualpipe", tolerance: float = 0.05) -> dict[str, Any]:
        """All three: ``"operations"``, ``"volume"`` and ``"bandwidth"``."""
        return {
            "operations": self.p2p_operations(strategy),
            "volume": self.communication_volume(strategy),
            "bandwidth": self.required_bandwidth(strategy, tolerance),
        }

    def _simulated(self, strategy: str) -> Strategy:
        return simulated(strategy, self.num_ranks, self.num_chunks, self.costs)


def _rate(size: float, time: float) -> float:
    """Bytes over time; nothing needs no bandwidth, and what may take no time needs an infinite one."""
    if size == 0:
        return 0.0
    return size / time if time else float("inf")
