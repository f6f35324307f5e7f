"""How long a training step takes on ranks in several processes: torch's own DualPipeV, and ours.

    python bench/processes.py [--quick] [--only TEXT] [--json FILE]

DualPipeV on gloo processes, one a rank, over this machine's loopback and between network namespaces with
a latency of 2 ms each way (root makes them; elsewhere those rows are left out, with the reason). Rows
take turns, so that noise of the machine hits all alike; every row has proved its gradients equal to the
serial ones before it is timed. Where there are more ranks than cores, ranks share them: read the ratios,
not the milliseconds. No GPU, no NCCL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from distributed_row import batched_step, eager_step, zero_bubble_batched_step, zero_bubble_eager_step
from network import Delayed, Loopback, Network, NoNetwork, ping_pong
from process_row import Make, ProcessRow
from report import Others, machine, print_table
from rounds import Costs, Times, simulated, take_turns
from torch_row import torch_step
from workload import FULL, MICROBATCHES, TINY, Size, one_intra_op_thread, stage_costs

RANKS = (2, 4)
LATENCY = 0.002  # seconds, one way
CASES = [*itertools.product((0.0,), (TINY, FULL), RANKS), *itertools.product((LATENCY,), (FULL,), RANKS)]
STEPS_A_TURN = {"tiny": 10, "full": 2}
MESSAGE_BYTES = 4 * FULL.batch * FULL.tokens * FULL.hidden
CORES = os.cpu_count() or 1

DUALPIPEV: dict[str, Make] = {"torch": torch_step, "eager": eager_step, "batched": batched_step}
# Where a hop takes time, also a schedule that needs what it receives sooner.
ZERO_BUBBLE: dict[str, Make] = {
    "zb-v eager": zero_bubble_eager_step,
    "zb-v batched": zero_bubble_batched_step,
}


@dataclass(frozen=True)
class Measured:
    """All that one size on one network gave."""

    network: str
    size: Size
    times: Times
    costs: Costs
    message: float  # seconds of a microbatch from rank to rank, through gloo

    @property
    def name(self) -> str:
        return case(self.network, self.size)


def main() -> None:
    arguments = _arguments()
    rounds = 4 if arguments.quick else 11
    print(_head(), flush=True)
    others = Others()
    with one_intra_op_thread():
        measured = list(measure_all(rounds, arguments.only))
    print()
    print_table(HEADS, [cells for m in measured for cells in lines(m)])
    print(
        "\nTimes: median and quartiles of all steps. Ratios: the median over rounds of the ratio in a round."
    )
    print(others.report() + "\n")
    print("\n".join(f"- {bound(m)}" for m in measured) + "\n")
    print("\n".join(f"- {aim}" for m in measured for aim in aims(m)))
    if arguments.json:
        arguments.json.write_text(json.dumps(_record(measured), indent=1) + "\n")


def measure_all(rounds: int, only: str) -> Iterator[Measured]:
    """Says on the way what each network is like, and which cannot be made."""
    for latency, size, ranks in CASES:
        network = Delayed(ranks, latency) if latency else Loopback(ranks)
        name = case(network.name, replace(size, ranks=ranks))
        if only not in name:
            continue
        try:
            with network:
                if isinstance(network, Delayed):
                    print(f"{name}: {describe(network)}", flush=True)
                yield measure(network, replace(size, ranks=ranks), rounds)
        except NoNetwork as reason:
            print(f"{name}: left out; {reason}", flush=True)


def case(network: str, size: Size) -> str:
    return f"{network}, {size.name}, {size.ranks} ranks"


def describe(network: Delayed) -> str:
    byte, message = (1e3 * t for t in ping_pong(network, MESSAGE_BYTES))
    return (
        f"namespaces, by {network.how}: over TCP a byte takes {byte:.2f} ms there "
        f"and back, a message of {MESSAGE_BYTES // 1024} KiB with a byte in return {message:.2f} ms"
    )


def measure(network: Network, size: Size, rounds: int) -> Measured:
    makes = DUALPIPEV if isinstance(network, Loopback) else DUALPIPEV | ZERO_BUBBLE
    with ExitStack() as stack:
        rows = [stack.enter_context(ProcessRow(name, size, make, network)) for name, make in makes.items()]
        times = take_turns(rows, size, rounds, STEPS_A_TURN[size.name])
        message = rows[0].message()
        costs = stage_costs(size, repeats=20 * rounds)
    return Measured(network.name, size, times, costs, message)


HEADS = ["network", "model", "ranks", "row", "ms", "quartiles", "torch / row", "batched / row"]


def lines(m: Measured) -> Iterator[list[str]]:
    shared = f" on {CORES} cores" if m.size.ranks > CORES else ""
    for row in m.times.seconds:
        low, median, high = (1e3 * t for t in m.times.quartiles(row))
        yield [
            m.network,
            m.size.name,
            f"{m.size.ranks}{shared}",
            row,
            f"{median:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{m.times.ratio('torch', row):.2f}",
            f"{m.times.ratio(batched(row), row):.2f}",
        ]


def batched(row: str) -> str:
    """The row of the same schedule under DeepSeek's commits."""
    return "zb-v batched" if row.startswith("zb-v") else "batched"


def bound(m: Measured) -> str:
    """What a step cannot be faster than, from parts measured alone, on a machine with nothing else to do."""
    compute = 2 * MICROBATCHES * sum(m.costs)
    together = compute * m.size.ranks / min(CORES, m.size.ranks)
    bubble = simulated(m.size, m.costs).bubble_ratio
    eager, batched = (simulated(m.size, m.costs, p2p, m.message).makespan for p2p in ("eager", "batched"))
    number = messages(m.size)
    return (
        f"{m.name}: a rank's F + I + W take {_ms(compute)}, those of all ranks on {CORES} cores at least "
        f"{_ms(together)}; the schedule's bubble is {bubble:.1%}; the busiest rank sends and receives "
        f"{number} messages a step, each {_ms(m.message)} from rank to rank, one after another "
        f"{_ms(number * m.message)}. "
        f"Simulated with that hop and a core a rank: eager {_ms(eager)}, batched {_ms(batched)}; "
        f"measured: eager {_ms(m.times.quartiles('eager')[1])}."
    )


def messages(size: Size) -> int:
    """What the busiest rank sends and receives: a forward and a backward of each microbatch at each cut."""
    home = {stage: rank for rank in range(size.ranks) for stage in size.stages_of(rank)}
    cuts = [{home[s], home[s + 1]} for s in range(size.stages - 1) if home[s] != home[s + 1]]
    return 2 * MICROBATCHES * max(sum(rank in cut for cut in cuts) for rank in range(size.ranks))


def aims(m: Measured) -> Iterator[str]:
    over_torch = m.times.ratio("eager", "torch")
    if m.size.name == "tiny":
        yield _aim(m, f"eager takes {over_torch:.2f} of torch's time (aim: at most 0.5)", over_torch <= 0.5)
    else:
        yield _aim(m, f"eager takes {over_torch:.2f} of torch's time (aim: at most 1)", over_torch <= 1)
    for row in () if m.network == Loopback.name else ("eager", "zb-v eager"):
        faster = m.times.ratio(batched(row), row)
        expected = expected_gain(m, "zb-v" if row.startswith("zb-v") else "dualpipev")
        says = f"{row} is {faster:.2f} times as fast as batched"
        says += f" (simulated with a core a rank: {expected:.2f}; aim: 1.3)"
        yield _aim(m, says, faster >= 1.3)


def expected_gain(m: Measured, schedule: str) -> float:
    """How many times as fast eager is as batched, simulated with a core a rank."""
    eager, batched = (
        simulated(m.size, m.costs, p2p, m.message, schedule).makespan for p2p in ("eager", "batched")
    )
    return batched / eager


def _aim(m: Measured, says: str, met: bool) -> str:
    return f"{m.name}: {says}: {'met' if met else 'not met'}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 0.01 else f"{1e3 * seconds:.0f} ms"


def _head() -> str:
    sizes = "; ".join(
        f"{s.name}: hidden {s.hidden}, {s.tokens} tokens, batch {s.batch}" for s in (TINY, FULL)
    )
    return (
        f"{machine()}\n"
        f"DualPipeV, 2 stages a rank, {MICROBATCHES} microbatches, fp32, gloo; microbatch {sizes}."
        + "".join(f" {n} ranks share {CORES} cores." for n in RANKS if n > CORES)
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 rounds in place of 11")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in them: 'tiny, 2 ranks'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time, in seconds, to FILE")
    return parser.parse_args()


def _record(measured: Sequence[Measured]) -> dict[str, object]:
    return {
        "machine": _head(),
        "seconds": {m.name: m.times.seconds for m in measured},
        "stage_costs": {m.name: m.costs for m in measured},
        "message": {m.name: m.message for m in measured},
    }


if __name__ == "__main__":
    main()
