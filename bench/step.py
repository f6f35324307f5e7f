"""How long a training step takes: ours, the same compute without a pipeline, and torch's own DualPipeV.

    python bench/step.py [--quick] [--json FILE]

Prints one table. Rows take turns, so that noise of the machine hits all alike; every row has proved its
gradients equal to the serial ones before it is timed. It measures CPU execution, one intra-op thread a rank:
no GPU, no network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from local_row import Local, predicted_bubble
from torch_row import Torch
from workload import (
    MICROBATCHES,
    RANKS,
    STAGES,
    TOLERANCE,
    Control,
    Row,
    Serial,
    Size,
    one_intra_op_thread,
    stage_costs,
)

TINY = Size("tiny", hidden=16, tokens=4, batch=1)
FULL = Size("full", hidden=256, tokens=128, batch=2)
SIZES = (TINY, FULL)
STEPS_A_TURN = {"tiny": 15, "full": 2}
Times = dict[str, list[list[float]]]  # row -> round -> seconds of each step


@dataclass(frozen=True)
class Measured:
    """All that one size gave."""

    size: Size
    times: Times
    costs: tuple[float, float, float]  # one stage's forward, backward for input and for weights, in seconds
    bubble: float

    def quartiles(self, row: str) -> list[float]:
        return statistics.quantiles([t for turn in self.times[row] for t in turn], n=4)

    def ratio(self, row: str, over: str) -> float:
        """Median over the rounds of `row` / `over`: what slowed a whole round down cancels."""
        turns = zip(self.times[row], self.times[over], strict=True)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in turns)


def main() -> None:
    arguments = _arguments()
    rounds = 4 if arguments.quick else 15
    print(_machine() + "\n")
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
        rows: list[Row] = [Serial(size), Control(size), stack.enter_context(Torch(size))]
        for split in (True, False):
            rows += [Local(size, interleaved=i, split_weight_grad=split) for i in (False, True)]
        for row in rows:
            check(row, size)
        times: Times = {row.name: [] for row in rows}
        for number in range(rounds):
            # Every other round goes backwards, so that no row always follows the same one.
            for row in rows if number % 2 == 0 else reversed(rows):
                times[row.name].append(row.times(STEPS_A_TURN[size.name]))
        costs = stage_costs(size, repeats=50 * rounds)
    return Measured(size, times, costs, predicted_bubble(*costs))


def check(row: Row, size: Size) -> None:
    distance, norm = row.squared_error()
    error = math.sqrt(distance / norm)
    if not error <= TOLERANCE:
        raise SystemExit(f"{row.name}, {size.name}: gradients are {error:.1e} off the serial ones; not timed")


def table(measured: list[Measured]) -> str:
    """Markdown, one line a row; for each size the median, the quartiles and two speed-ups."""
    heads = ["row"]
    for m in measured:
        heads += [f"{m.size.name}, ms", "quartiles", "serial / row", "torch / row"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in measured[0].times:
        lines.append([row] + [cell for m in measured for cell in _cells(m, row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(m: Measured, row: str) -> list[str]:
    low, median, high = (1e3 * t for t in m.quartiles(row))
    return [
        f"{median:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{m.ratio('serial', row):.2f}",
        f"{m.ratio('torch', row):.2f}",
    ]


def bound(m: Measured) -> str:
    """How far `local threads` is from its bound: the control has no bubble, and the schedule has one."""
    f, i, w = (1e3 * c for c in m.costs)
    limit = 1e3 * m.quartiles("control")[1] / (1 - m.bubble)
    distance = m.ratio("local threads", "control") * (1 - m.bubble) - 1
    return (
        f"{m.size.name}: a stage takes F {f:.3f}, I {i:.3f}, W {w:.3f} ms, so the schedule's bubble is "
        f"{m.bubble:.1%}; control + bubble = {limit:.1f} ms, and local threads is {distance:+.1%} from it "
        "(median over the rounds)."
    )


class Others:
    """The processor time that was not ours while this object lived: a table made in company is worth less."""

    def __init__(self) -> None:
        self._start = self._now()

    def report(self) -> str:
        wall, machine, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        cores = (machine - own) / wall
        return f"Other processes of the machine kept {cores:.2f} of {os.cpu_count()} cores busy meanwhile."

    def _now(self) -> tuple[float, float, float]:
        """Seconds of the clock, of all cores not idle, and of this process and its ended children (Linux)."""
        user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
        machine = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return own.elapsed, machine, sum(own[:4])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 rounds in place of 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time, in seconds, to FILE")
    return parser.parse_args()


def _machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    sizes = "; ".join(f"{s.name}: hidden {s.hidden}, {s.tokens} tokens, batch {s.batch}" for s in SIZES)
    return (
        f"{os.cpu_count()} cores, {_cpu()}; {versions}; intra-op threads: 1 a rank, in every row.\n"
        f"DualPipeV, {RANKS} ranks, {STAGES} stages, {MICROBATCHES} microbatches, fp32; microbatch {sizes}."
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _record(measured: list[Measured]) -> dict[str, object]:
    return {
        "machine": _machine(),
        "seconds": {m.size.name: m.times for m in measured},
        "stage_costs": {m.size.name: m.costs for m in measured},
        "bubble_ratio": {m.size.name: m.bubble for m in measured},
    }


if __name__ == "__main__":
    main()
