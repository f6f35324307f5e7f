"""A simulated step as a list of events: :class:`ScheduleSimulator`.

Computation is the timeline's spans, communication its transfers, one event each. Gradients exchanged after
the last slot (``Costs(gradient_exchange=...)``) are none of the events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from dualpipe_rs._core import Costs, Schedule, Timeline
from dualpipe_rs.given import whole
from dualpipe_rs.strategies import Strategy, costs_of, simulated

_KINDS = {"F": "forward", "B": "backward", "I": "backward", "W": "weight"}
#: Who comes before whom among events of one start: what is computed, then what is sent.
_KIND_ORDER = {"forward": 0, "backward": 1, "weight": 2, "communication": 3}


@dataclass(frozen=True)
class PipelineEvent:
    """Something that lasts, in a step.

    Attributes:
        kind: ``"forward"``, ``"backward"`` (of a split backward the part for the input), ``"weight"`` (the
            part for the weights: a gradient, no update) or ``"communication"``.
        rank: where it happens; of a communication, who sends.
        stage, microbatch: what is computed, or what was computed that travels.
        start, end: in the unit of the times given.
        action: the schedule's word: ``"2F0"``, ``"2B0"`` (a full backward), ``"2I0"`` or ``"2W0"``; of a
            communication, the action whose result travels.
        slot: the index in the rank's row; of a communication, in the sender's. The two of a fused pair have
            one slot, one start and one end.
        to_rank: of a communication, who receives; else None.
    """

    kind: str
    rank: int
    stage: int
    microbatch: int
    start: float
    end: float
    action: str
    slot: int
    to_rank: int | None = None

    @property
    def duration(self) -> float:
        """How long it lasts."""
        return self.end - self.start


class SimulatedStep(Sequence[PipelineEvent]):
    """The events of a step, by start, then rank; and what the timeline says of them all.

    Attributes:
        strategy: the schedule's name.
        schedule: the :class:`~dualpipe_rs.Schedule`.
        timeline: the :class:`~dualpipe_rs.Timeline` of which the events are made.
        costs: the :class:`~dualpipe_rs.Costs` of a stage.
    """

    def __init__(self, found: Strategy) -> None:
        self.strategy = found.name
        self.schedule: Schedule = found.schedule
        self.timeline: Timeline = found.timeline
        self.costs: Costs = found.costs

    @cached_property
    def events(self) -> list[PipelineEvent]:
        """All of them."""
        both = [*_computed(self.timeline), *_sent(self.timeline)]
        return sorted(both, key=lambda e: (e.start, e.rank, e.slot, _KIND_ORDER[e.kind]))

    @property
    def makespan(self) -> float:
        """Last end less first start."""
        return self.timeline.makespan

    @property
    def bubble_ratio(self) -> float:
        """Idle over all time."""
        return self.timeline.bubble_ratio

    def events_of(self, rank: int) -> list[PipelineEvent]:
        """What one rank computes and sends. UsageError where there is no such rank."""
        rank = whole("rank", rank, 0, self.schedule.num_ranks - 1)
        return [event for event in self.events if event.rank == rank]

    def __len__(self) -> int:
        return len(self.events)

    @overload
    def __getitem__(self, index: int) -> PipelineEvent: ...

    @overload
    def __getitem__(self, index: slice) -> list[PipelineEvent]: ...

    def __getitem__(self, index: int | slice) -> PipelineEvent | list[PipelineEvent]:
        return self.events[index]

    def __repr__(self) -> str:
        return f"<SimulatedStep {self.strategy}: makespan {self.makespan:g}, {len(self)} events>"


class ScheduleSimulator:
    """Simulates one step of a strategy at given sizes.

    Args:
        num_ranks: how many ranks.
        num_chunks: how many microbatches, over all directions.
        costs: what a rank's part of the model costs, as :class:`Costs`; or
        times: the same by the names that ``Times`` has: ``forward_time`` (1), ``backward_time`` (2),
            ``weight_time``, ``overlap_time``, ``comm_time`` (0).

    Raises:
        UsageError: an argument is not what it should be.
    """

    def __init__(self, num_ranks: int, num_chunks: int, *, costs: Costs | None = None, **times: Any) -> None:
        self.num_ranks = whole("num_ranks", num_ranks)
        self.num_chunks = whole("num_chunks", num_chunks)
        self.costs = costs_of(costs, times)

    def simulate(self, strategy: str = "dualpipe") -> SimulatedStep:
        """A step of any published schedule, by its name.

        Raises:
            SizeError: the schedule does not exist at these sizes; says which are nearest.
            UsageError: there is none of this name.
        """
        return SimulatedStep(simulated(strategy, self.num_ranks, self.num_chunks, self.costs))

    def simulate_dualpipe(self) -> SimulatedStep:
        """DualPipe (arXiv 2412.19437)."""
        return self.simulate("dualpipe")

    def simulate_dualpipev(self) -> SimulatedStep:
        """DualPipeV (github.com/deepseek-ai/DualPipe)."""
        return self.simulate("dualpipev")

    def simulate_1f1b(self) -> SimulatedStep:
        """1F1B (arXiv 1806.03377, 2104.04473)."""
        return self.simulate("1f1b")

    def simulate_gpipe(self) -> SimulatedStep:
        """GPipe (arXiv 1811.06965)."""
        return self.simulate("gpipe")


def _computed(timeline: Timeline) -> Iterator[PipelineEvent]:
    for rank, slot, kind, stage, microbatch, start, end in timeline.spans.tolist():
        action = f"{stage}{kind}{microbatch}"
        yield PipelineEvent(_KINDS[kind], rank, stage, microbatch, start, end, action, slot)


def _sent(timeline: Timeline) -> Iterator[PipelineEvent]:
    for source, slot, to_rank, _, kind, stage, microbatch, start, end in timeline.transfers.tolist():
        action = f"{stage}{kind}{microbatch}"
        yield PipelineEvent("communication", source, stage, microbatch, start, end, action, slot, to_rank)
