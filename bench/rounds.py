"""Rows that take turns, and what is said of their times; and what one step is bound by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from workload import MICROBATCHES, TOLERANCE, Row, Size

import dualpipe_rs as dp

Costs = tuple[float, float, float]  # one stage's forward, backward for input and for weights, in seconds


@dataclass(frozen=True)
class Times:
    seconds: dict[str, list[list[float]]]  # row -> round -> seconds of each step

    def quartiles(self, row: str) -> list[float]:
        return statistics.quantiles([t for turn in self.seconds[row] for t in turn], n=4)

    def ratio(self, row: str, over: str) -> float:
        """Median over the rounds of `row` / `over`: what slowed a whole round down cancels."""
        turns = zip(self.seconds[row], self.seconds[over], strict=True)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in turns)


def take_turns(rows: Sequence[Row], size: Size, rounds: int, steps: int) -> Times:
    """Each row proves its gradients, then has `steps` steps timed in each round."""
    for row in rows:
        check(row, size)
    seconds: dict[str, list[list[float]]] = {row.name: [] for row in rows}
    for number in range(rounds):
        # Every other round goes backwards, so that no row always follows the same one.
        for row in rows if number % 2 == 0 else reversed(rows):
            seconds[row.name].append(row.times(steps))
    return Times(seconds)


def check(row: Row, size: Size) -> None:
    distance, norm = row.squared_error()
    error = math.sqrt(distance / norm)
    if not error <= TOLERANCE:
        raise SystemExit(f"{row.name}, {size.name}: gradients are {error:.1e} off the serial ones; not timed")


def simulated(
    size: Size, costs: Costs, p2p: str = "eager", hop: float = 0.0, schedule: str = "dualpipev"
) -> dp.Timeline:
    """The schedule alone, with a core a rank: a fused pair takes as long as its parts, since one thread runs
    both, and a hand-over takes `hop` seconds and no rank's time."""
    forward, backward_input, backward_weight = costs
    priced = dp.Costs(
        forward=forward, backward_input=backward_input, backward_weight=backward_weight, overlap=None, p2p=hop
    )
    made = dp.schedule(schedule, num_ranks=size.ranks, num_microbatches=MICROBATCHES)
    return made.simulate(priced, p2p=p2p)
