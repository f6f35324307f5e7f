"""A strategy's name, sizes and times, as ``dp.analysis`` and ``dp.simulator`` take them, made a Timeline.

All that these two say is read from such Timelines, so that they agree with ``Schedule.simulate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from dualpipe_rs import _core
from dualpipe_rs._core import Costs, Schedule, Timeline
from dualpipe_rs.comparison import peak_of, share_of
from dualpipe_rs.errors import SizeError, UsageError
from dualpipe_rs.given import MOST_TRIED, amount, shown, whole

#: The strategies that are compared where none are named.
STRATEGIES = ("dualpipe", "dualpipev", "1f1b", "gpipe")
_OTHER_NAMES = {"one-f-one-b": "1f1b"}


@dataclass(frozen=True)
class Times:
    """What the operations of one microbatch take on one rank, in any one unit.

    Attributes:
        forward_time: a forward.
        backward_time: a full backward, for the input and the weights.
        weight_time: the part of it that is for the weights (half of it, if left out).
        overlap_time: a fused forward and backward (one after the other, if left out).
        comm_time: a hop from rank to rank.
    """

    forward_time: float = 1.0
    backward_time: float = 2.0
    weight_time: float | None = None
    overlap_time: float | None = None
    comm_time: float = 0.0

    def costs(self) -> Costs:
        """The same as :class:`Costs`.

        Raises:
            UsageError: a time is no finite number of at least 0, or weights take more than the backward.
        """
        forward, backward, hop = (
            amount(name, getattr(self, name)) for name in ("forward_time", "backward_time", "comm_time")
        )
        weight = backward / 2 if self.weight_time is None else amount("weight_time", self.weight_time)
        if weight > backward:
            raise UsageError(
                f"weight_time is {weight:g}, more than the backward_time {backward:g} that it is a part of"
            )
        fused = None if self.overlap_time is None else amount("overlap_time", self.overlap_time)
        return Costs(
            forward=forward, backward_input=backward - weight, backward_weight=weight, overlap=fused, p2p=hop
        )


class Strategy(NamedTuple):
    """A published schedule at given sizes, simulated."""

    name: str
    schedule: Schedule
    costs: Costs
    timeline: Timeline


def costs_of(costs: Costs | None, times: dict[str, Any]) -> Costs:
    """The costs given, or those that times in words come to; never both.

    Raises:
        UsageError: a name that is no time's, a time that cannot be, or costs beside times.
    """
    if costs is not None and not isinstance(costs, Costs):
        raise UsageError(f"costs is of type {type(costs).__name__}; it is a dualpipe_rs.Costs")
    unknown = [name for name in times if name not in Times.__dataclass_fields__]
    if unknown:
        raise UsageError(
            f"there is no {unknown[0]}=; what can be given is costs, {', '.join(Times.__dataclass_fields__)}"
        )
    if costs is not None and times:
        raise UsageError(f"costs say what all takes, and {next(iter(times))} was given beside them")
    return costs if costs is not None else Times(**times).costs()


def strategy_name(name: Any) -> str:
    """The name as ``dp.schedule`` has it: ``"1F1B"``, ``"one_f_one_b"`` and ``"zb_h1"`` are understood.

    Raises:
        UsageError: there is none of this name; says which there are.
    """
    if not isinstance(name, str):
        raise UsageError(f"strategy is {shown(name)}; it is the name of a schedule, such as 'dualpipe'")
    plain = name.strip().lower().replace("_", "-")
    plain = _OTHER_NAMES.get(plain, plain)
    known = _core.schedule_names()
    if plain not in known:
        raise UsageError(f"there is no strategy named {shown(name)}; the names are {', '.join(known)}")
    return plain


def chunks_of(num_ranks: int, num_chunks: Any) -> int:
    """The count given, checked; where it is None two a rank, the fewest that DualPipe takes."""
    return 2 * num_ranks if num_chunks is None else whole("num_chunks", num_chunks)


def simulated(
    strategy: Any, num_ranks: int, num_chunks: Any, costs: Costs, overhead: float = 0.0
) -> Strategy:
    """A strategy on devices on which one part in ``num_ranks`` of the model has these costs.

    A schedule with k stages a rank gets stages of 1/k of them, as in ``dp.compare``; ``overhead`` is what
    each F, I and W of a stage takes beside that, however small the stage.

    Raises:
        SizeError: the schedule does not exist at these sizes.
        UsageError: an argument is not what it should be.
    """
    name = strategy_name(strategy)
    made = _core.schedule(name, num_ranks, whole("num_chunks", num_chunks))
    share = _with_overhead(share_of(made, costs), overhead)
    return Strategy(name, made, share, made.simulate(share))


def _with_overhead(costs: Costs, overhead: float) -> Costs:
    if not overhead:
        return costs
    times = {"forward": 1, "backward_input": 1, "backward_weight": 1, "backward": 2, "overlap": 3}
    values = {name: getattr(costs, name) for name in times}
    return costs.replace(
        **{name: _plus(value, times[name] * overhead) for name, value in values.items() if value is not None}
    )


def _plus(value: Any, more: float) -> Any:
    return [_plus(each, more) for each in value] if isinstance(value, list) else value + more


def figures(found: Strategy) -> dict[str, Any]:
    """What there is to say of a timeline in plain numbers: see ``ScheduleAnalyzer.analyze``."""
    timeline, ranks = found.timeline, found.schedule.num_ranks
    return {
        "strategy": found.name,
        "num_ranks": ranks,
        "num_chunks": found.schedule.num_microbatches,
        "makespan": timeline.makespan,
        "ideal": float(timeline.busy.sum()) / ranks,
        "idle": float(timeline.idle.sum()) / ranks,
        "bubble_ratio": timeline.bubble_ratio,
        "bubble_over_ideal": timeline.bubble_over_ideal,
        "busy_by_rank": timeline.busy.tolist(),
        "idle_by_rank": timeline.idle.tolist(),
        "peak_activations": peak_of(found.schedule, timeline),
    }


def at_each_size(
    strategy: Any, num_ranks: int, max_chunks: Any, costs_at: Callable[[int], Costs], overhead: float = 0.0
) -> Iterator[Strategy]:
    """The strategy at every count of chunks that it takes, from the fewest to ``max_chunks``.

    Raises:
        SizeError: it takes none of these.
    """
    default = min(8 * num_ranks, MOST_TRIED)
    most = default if max_chunks is None else whole("max_chunks", max_chunks, 1, MOST_TRIED)
    refusal: SizeError | None = None
    taken = False
    for chunks in range(1, most + 1):
        try:
            found = simulated(strategy, num_ranks, chunks, costs_at(chunks), overhead)
        except SizeError as error:
            refusal = error
            continue
        taken = True
        yield found
    if not taken and refusal is not None:
        raise refusal


def greatest_hop(found: Strategy, tolerance: float) -> float:
    """The longest hop at which the step takes at most ``1 + tolerance`` times as long as with none.

    Found by halving, to twelve digits or 1e-14 of the step: a makespan never falls as hops get longer.
    Infinite where nothing travels between ranks.
    """
    if not found.schedule.p2p_tensors().any():
        return float("inf")

    def makespan(hop: float) -> float:
        return found.schedule.simulate(found.costs.replace(p2p=hop, p2p_bytes=0.0)).makespan

    limit = makespan(0.0) * (1 + tolerance)
    low, high = 0.0, limit or 1.0
    coarse = 1e-14 * high  # finer than this a makespan does not tell hops apart
    while makespan(high) <= limit:
        low, high = high, 2 * high
    while high - low > max(coarse, 1e-12 * low) and (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if makespan(middle) <= limit else (low, middle)
    return low
