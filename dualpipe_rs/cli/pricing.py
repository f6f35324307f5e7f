"""The options that price a timeline: what actions and hops cost, and how sends and receives meet."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from dualpipe_rs._core import Costs, Schedule, Timeline

P2P = ["eager", "rendezvous", "batched", "blocking"]


@dataclass(frozen=True)
class Pricing:
    """Costs and P2P semantics, as ``Schedule.simulate`` takes them."""

    costs: Costs
    p2p: str
    depth: int | None

    def simulate(self, schedule: Schedule) -> Timeline:
        return schedule.simulate(self.costs, p2p=self.p2p, depth=self.depth)


@dataclass(frozen=True)
class _Cost:
    """An option, and the keyword of ``Costs`` that it gives."""

    option: str
    keyword: str
    metavar: str
    help: str


# One place for all of them, in the order of --help.
_COSTS = [
    _Cost("--forward", "forward", "F[,F...]", "of F (default: 1)"),
    _Cost("--backward-input", "backward_input", "I[,I...]", "of I, the backward for the input (default: 1)"),
    _Cost("--backward-weight", "backward_weight", "W[,W...]", "of W, the backward for weights (default: 1)"),
    _Cost("--backward", "backward", "B[,B...]", "of B, the full backward (default: I + W)"),
    _Cost("--overlap", "overlap", "FB", "of a fused pair of F and B (default: F + B)"),
    _Cost("--p2p-cost", "p2p", "C", "of a hop from one rank to another (default: 0)"),
    _Cost(
        "--gradient-exchange",
        "gradient_exchange",
        "C",
        "between ranks that hold the same stages (default: 0)",
    ),
    _Cost("--optimizer", "optimizer", "C[,C...]", "at the very end, one or one a rank (default: 0)"),
]


def add_pricing(parser: argparse.ArgumentParser, note: str = "one number, or one a stage: 1,1,1,1.5") -> None:
    group = parser.add_argument_group("costs", f"In any unit of time; {note}.")
    for cost in _COSTS:
        numbers = _numbers if "," in cost.metavar else _number
        group.add_argument(
            cost.option, type=numbers, dest=f"cost_{cost.keyword}", metavar=cost.metavar, help=cost.help
        )
    meeting = parser.add_argument_group("sends and receives")
    meeting.add_argument("--p2p", choices=P2P, default="eager", help="how they meet (default: eager)")
    meeting.add_argument("--depth", type=int, metavar="D", help="of --p2p rendezvous (default: 2)")


def pricing(options: argparse.Namespace) -> Pricing:
    """What the options of ``add_pricing`` say; UsageError, which names it, for a cost that is none."""
    given = {cost.keyword: getattr(options, f"cost_{cost.keyword}") for cost in _COSTS}
    costs = Costs(**{keyword: value for keyword, value in given.items() if value is not None})
    return Pricing(costs, options.p2p, options.depth)


def costs_given(costs: Costs) -> dict[str, Any]:
    """The costs by keyword, for JSON."""
    return {cost.keyword: getattr(costs, cost.keyword) for cost in _COSTS}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _numbers(text: str) -> float | list[float]:
    numbers = [_number(word) for word in text.split(",")]
    return numbers if len(numbers) > 1 else numbers[0]
