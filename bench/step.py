"""How long a training step takes: ours, the same compute without a pipeline, and torch's own DualPipeV.

    python bench/step.py [--quick] [--json FILE]

Prints one table. Rows take turns, so that noise of the machine hits all alike; every row has proved its
gradients equal to the serial ones before it is timed. It measures CPU execution, one intra-op thread a rank:
no GPU, no network.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from local_row import Local
from process_row import ProcessRow
from report import Others, machine
from rounds import Costs, Times, simulated, take_turns
from torch_row import torch_step
from workload import FULL, MICROBATCHES, TINY, Control, Row, Serial, Size, one_intra_op_thread, stage_costs

SIZES = (TINY, FULL)
STEPS_A_TURN = {"tiny": 15, "full": 2}


@dataclass(frozen=True)
class Measured:
    """All that one size gave."""

    size: Size
    times: Times
    costs: Costs
    bubble: float


def main() -> None:
    arguments = _arguments()
    rounds = 4 if arguments.quick else 15
    print(_head() + "\n")
    others = Others()
    with one_intra_op_thread():
        measured = [measure(size, rounds) for size in SIZES]
    print(table(measured) + "\n")
    print("Times: median and quartiles of all steps. Ratios: the median over rounds of the ratio in a round.")
    print(others.report())
    print("\n".join(bound(m) for m in measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(_record(measured), indent=1) + "\n")


def measure(size: Size, rounds: int) -> Measured:
    with ExitStack() as stack:
        torch = stack.enter_context(ProcessRow("torch", size, torch_step))
        rows: list[Row] = [Serial(size), Control(size), torch]
        for split in (True, False):
            rows += [Local(size, interleaved=i, split_weight_grad=split) for i in (False, True)]
        times = take_turns(rows, size, rounds, STEPS_A_TURN[size.name])
        costs = stage_costs(size, repeats=50 * rounds)
    return Measured(size, times, costs, simulated(size, costs).bubble_ratio)


def table(measured: list[Measured]) -> str:
    """Markdown, one line a row; for each size the median, the quartiles and two speed-ups."""
    heads = ["row"]
    for m in measured:
        heads += [f"{m.size.name}, ms", "quartiles", "serial / row", "torch / row"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in measured[0].times.seconds:
        lines.append([row] + [cell for m in measured for cell in _cells(m, row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(m: Measured, row: str) -> list[str]:
    low, median, high = (1e3 * t for t in m.times.quartiles(row))
    return [
        f"{median:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{m.times.ratio('serial', row):.2f}",
        f"{m.times.ratio('torch', row):.2f}",
    ]


def bound(m: Measured) -> str:
    """How far `local threads` is from its bound: the control has no bubble, and the schedule has one."""
    f, i, w = (1e3 * c for c in m.costs)
    limit = 1e3 * m.times.quartiles("control")[1] / (1 - m.bubble)
    distance = m.times.ratio("local threads", "control") * (1 - m.bubble) - 1
    return (
        f"{m.size.name}: a stage takes F {f:.3f}, I {i:.3f}, W {w:.3f} ms, so the schedule's bubble is "
        f"{m.bubble:.1%}; control + bubble = {limit:.1f} ms, and local threads is {distance:+.1%} from it "
        "(median over the rounds)."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 rounds in place of 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time, in seconds, to FILE")
    return parser.parse_args()


def _head() -> str:
    sizes = "; ".join(f"{s.name}: hidden {s.hidden}, {s.tokens} tokens, batch {s.batch}" for s in SIZES)
    return (
        f"{machine()}\n"
        f"DualPipeV, {TINY.ranks} ranks, {TINY.stages} stages, {MICROBATCHES} microbatches, fp32; "
        f"microbatch {sizes}."
    )


def _record(measured: list[Measured]) -> dict[str, object]:
    return {
        "machine": _head(),
        "seconds": {m.size.name: m.times.seconds for m in measured},
        "stage_costs": {m.size.name: m.costs for m in measured},
        "bubble_ratio": {m.size.name: m.bubble for m in measured},
    }


if __name__ == "__main__":
    main()
