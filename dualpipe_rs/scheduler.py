"""A schedule as a loop of one's own reads it: :class:`DualPipeScheduler`, one rank's operations in order.

It runs nothing and has no order of its own: all is read from a :class:`~dualpipe_rs.Schedule` (``.order``).
:class:`~dualpipe_rs.Pipeline` and :class:`~dualpipe_rs.Executor` run schedules without such a loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dualpipe_rs import _core
from dualpipe_rs._core import Schedule
from dualpipe_rs.errors import UsageError
from dualpipe_rs.given import shown, whole

#: The words for the letters of a schedule's cells.
OPERATIONS = {"F": "forward", "B": "backward", "I": "backward_input", "W": "backward_weight"}
#: What a two-armed loop is told: W is left out, and I is where it does all of the backward.
_TWO_ARMS = {"forward": "forward", "backward": "backward", "backward_input": "backward"}
_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")

Operation = tuple[str, int]


class Slot(NamedTuple):
    """One operation of :meth:`DualPipeScheduler.slots`.

    Attributes:
        op: ``"forward"``, ``"backward"`` (for the input and the weights), ``"backward_input"`` or
            ``"backward_weight"``.
        microbatch: of 0..num_microbatches.
        stage: of 0..num_stages.
    """

    op: str
    microbatch: int
    stage: int


class DualPipeScheduler:
    """What each rank of a pipeline does in which order, for a loop of one's own.

    A loop with two arms over :meth:`schedule` trains right: ``forward`` receives the activations from
    :meth:`previous_rank` (or takes the input where that is ``None``), computes, and sends on to
    :meth:`next_rank` (or takes the loss); ``backward`` the other way round, gradients of the input and of the
    weights at once. A receive may wait, a send must not: queues, or ``isend`` (with
    ``Schedule.verify(p2p="blocking")`` the core says why).

    Under a bidirectional schedule (DualPipe, Chimera) every rank holds two stages, and the microbatch tells
    which (:meth:`stage`): the first half of the microbatches goes up the ranks, the second half down. The
    gradients of a stage are then the sum over the two ranks that hold it.

    Args:
        num_stages: how many ranks the pipeline has, each with a stage (in both directions, where the schedule
            has two). A schedule with k stages a rank cuts the model into k times as many.
        num_microbatches: how many microbatches a step has, over both directions.
        schedule: the name of a published schedule, or a Schedule of these sizes.

    Attributes:
        order: the :class:`~dualpipe_rs.Schedule`, to verify, simulate or show.

    Raises:
        SizeError: the schedule does not exist at these sizes; says which are nearest.
        UsageError: an argument is not what it should be.
    """

    def __init__(self, num_stages: int, num_microbatches: int, schedule: str | Schedule = "dualpipe") -> None:
        ranks = whole("num_stages", num_stages)
        microbatches = whole("num_microbatches", num_microbatches)
        self.order = _order(schedule, ranks, microbatches)
        self._rows: dict[int, list[tuple[Slot, ...]]] = {}

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return self.order.num_ranks

    @property
    def num_stages(self) -> int:
        """How many stages the model is cut into: as many as ranks, or k times that."""
        return self.order.num_stages

    @property
    def num_microbatches(self) -> int:
        """How many microbatches a step has."""
        return self.order.num_microbatches

    def schedule(self, rank: int) -> Iterator[Operation]:
        """Yields ``(op, microbatch)`` in order: one ``"forward"`` and one ``"backward"`` for each microbatch.

        ``backward`` stands where the schedule has B, or I of a split backward; W is not yielded. A fused pair
        yields its forward, then its backward.

        Raises:
            UsageError: there is no such rank, or ranks hold several stages that a microbatch passes, so that
                a microbatch does not say what to compute (:meth:`slots` does).
        """
        return (operation for group in self.schedule_with_overlap(rank) for operation in group)

    def schedule_with_overlap(self, rank: int) -> Iterator[list[Operation]]:
        """Yields lists of what may overlap: the two of a fused pair, else one. See :meth:`schedule`.

        What a group needs is received before any of it, and what it makes is sent after all of it: the
        forward and the backward of a pair are of different microbatches and do not need each other.
        """
        self._refuse_several_stages("schedule")
        return (
            [(_TWO_ARMS[slot.op], slot.microbatch) for slot in group]
            for group in self._row(rank)
            if group[0].op in _TWO_ARMS
        )

    def slots(self, rank: int) -> Iterator[tuple[Slot, ...]]:
        """Yields all that the rank does, as the schedule has it: tuples of one :class:`Slot`, or of two that
        are fused (forward, backward). Good for every schedule, with as many stages a rank as it may hold.

        Raises:
            UsageError: there is no such rank.
        """
        return iter(self._row(rank))

    def stage(self, rank: int, microbatch: int) -> int:
        """The stage in which a rank computes a microbatch.

        Raises:
            UsageError: out of range, or ranks hold several stages that a microbatch passes.
        """
        self._refuse_several_stages("stage")
        microbatch = whole("microbatch", microbatch, 0, self.num_microbatches - 1)
        here = self.order.stages_of(whole("rank", rank, 0, self.num_ranks - 1))
        return next(stage for stage in here if self.order.rank_of(stage, microbatch) == rank)

    def previous_rank(self, rank: int, microbatch: int) -> int | None:
        """From where the activations of a microbatch come, and to where their gradient goes.

        ``None`` where the microbatch enters the pipeline: there it is the loop's own input.
        """
        stage = self.stage(rank, microbatch)
        return None if stage == 0 else self.order.rank_of(stage - 1, microbatch)

    def next_rank(self, rank: int, microbatch: int) -> int | None:
        """To where the activations of a microbatch go, and from where their gradient comes.

        ``None`` where the microbatch leaves the pipeline: there the loss is computed.
        """
        stage = self.stage(rank, microbatch)
        return None if stage == self.num_stages - 1 else self.order.rank_of(stage + 1, microbatch)

    def is_first_stage(self, rank: int, microbatch: int) -> bool:
        """Whether the microbatch enters the pipeline on this rank."""
        return self.previous_rank(rank, microbatch) is None

    def is_last_stage(self, rank: int, microbatch: int) -> bool:
        """Whether the microbatch leaves the pipeline on this rank."""
        return self.next_rank(rank, microbatch) is None

    def __repr__(self) -> str:
        sizes = f"{self.num_ranks} ranks, {self.num_stages} stages, {self.num_microbatches} microbatches"
        return f"<DualPipeScheduler {self.order.name}: {sizes}>"

    def _row(self, rank: int) -> list[tuple[Slot, ...]]:
        rank = whole("rank", rank, 0, self.num_ranks - 1)
        if rank not in self._rows:
            self._rows[rank] = [_slots_of(cell) for cell in self.order.rank(rank)]
        return self._rows[rank]

    def _refuse_several_stages(self, method: str) -> None:
        if self.num_stages > self.num_ranks:
            raise UsageError(
                f"under {self.order.name} a microbatch passes {self.num_stages // self.num_ranks} stages on "
                f"each rank, so that {method}() cannot tell them apart by (rank, microbatch); slots(rank) "
                "yields each operation with its stage"
            )


def _order(schedule: Any, ranks: int, microbatches: int) -> Schedule:
    if isinstance(schedule, str):
        return _core.schedule(schedule, ranks, microbatches)
    if not isinstance(schedule, Schedule):
        raise UsageError(
            f"schedule is {shown(schedule)}; it is the name of a schedule, or a dualpipe_rs.Schedule"
        )
    sizes = schedule.num_ranks, schedule.num_microbatches
    if sizes != (ranks, microbatches):
        raise UsageError(
            f"the schedule given has {sizes[0]} ranks and {sizes[1]} microbatches; num_stages is {ranks} and "
            f"num_microbatches {microbatches}"
        )
    return schedule


def _slots_of(cell: str) -> tuple[Slot, ...]:
    return tuple(
        Slot(OPERATIONS[kind], int(microbatch), int(stage))
        for stage, kind, microbatch in _ACTION.findall(cell)
    )
