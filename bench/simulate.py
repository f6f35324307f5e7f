"""How long simulating takes, and how much memory: ours, torch's unit-time simulator, and the tests' oracle.

    python bench/simulate.py

One thread unless said. torch's simulator runs on its own ScheduleDualPipeV table, with its sends and
receives; as it fails on fused pairs (KeyError), they are split into their two actions for it, and it counts
steps of one unit. The oracle is tests/oracle.py, slow and obvious. The slower ones are run once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from report import print_table
from timing import median, timed, torch_compute
from torch.distributed.pipelining import schedules

import dualpipe_rs as dp

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracle

COSTS = dp.Costs(1.0, 1.1, 0.9, overlap=2.4, p2p=0.1)
SIZES = [(8, 256), (16, 512), (32, 1024), (64, 2048)]
SLOW_UP_TO = 8  # ranks
SEMANTICS = ("eager", "rendezvous", "batched", "blocking")


def main() -> None:
    print("DualPipeV; medians of 9 (torch and oracle: one run), ms; slots a second of simulate alone")
    heads = ["ranks x microbatches", "slots", "generate + verify + simulate", "simulate alone"]
    print_table(
        [*heads, "million slots/s", "torch / alone", "oracle / alone"], [row(*size) for size in SIZES]
    )
    many()
    print("\nPeak memory and time a (stage, microbatch, F | I | W | B), each in a process of its own:")
    heads = ["schedule", "million actions", "ns an action, all", "bytes an action, all"]
    print_table(heads, [growth(*size) for size in GROWTH])
    explained()


def row(ranks: int, microbatches: int) -> list[str]:
    slots, whole, alone = in_a_process(OURS.format(ranks=ranks, microbatches=microbatches))
    others = ["-", "-"]
    if ranks <= SLOW_UP_TO:
        others = [f"{slow(ranks, microbatches) / alone:,.0f}" for slow in (by_torch, by_oracle)]
    cells = [f"{ranks} x {microbatches}", f"{slots:,.0f}", f"{1e3 * whole:.2f}", f"{1e3 * alone:.2f}"]
    return [*cells, f"{1e-6 * slots / alone:.0f}", *others]


# Without torch, which ours does not need.
OURS = """
import statistics, time, dualpipe_rs as dp
costs = dp.Costs(1.0, 1.1, 0.9, overlap=2.4, p2p=0.1)
def median(run):
    times = []
    for _ in range(9):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
schedule = dp.schedule("dualpipev", {ranks}, {microbatches})
slots = sum(len(schedule.rank(rank)) for rank in range({ranks}))
whole = median(lambda: dp.schedule("dualpipev", {ranks}, {microbatches}).simulate(costs))
print(slots, whole, median(lambda: schedule.simulate(costs)))
"""


def in_a_process(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def by_torch(ranks: int, microbatches: int) -> float:
    compute, to_rank = torch_compute(ranks, microbatches)
    apart = {rank: [a for pair in row for a in pair.sub_actions or (pair,)] for rank, row in compute.items()}
    program = schedules._add_send_recv(apart, to_rank, 2 * ranks)
    return timed(lambda: schedules._simulate_comms_compute(program, to_rank, 2 * ranks))


def by_oracle(ranks: int, microbatches: int) -> float:
    rows = oracle.order_of("dualpipev", ranks, microbatches)
    stages = 2 * ranks
    costs = {"F": [1.0] * stages, "I": [1.1] * stages, "W": [0.9] * stages, "pair": 2.4, "hop": 0.1}
    return timed(lambda: oracle.simulate(rows, "v", ranks, stages, microbatches, costs))


def many() -> None:
    print("\n10 000 jittered runs of 8 x 64, all cores (medians of 3), ms:")
    for name in ("1f1b", "zb-h1", "dualpipe", "dualpipev"):
        schedule = dp.schedule(name, 8, 64)
        jittered = median(lambda s=schedule: dp.jitter(s, COSTS, n=10_000), 3)
        print(f"  {name:15}{1e3 * jittered:8.0f}")


GROWTH = [
    ("dualpipev", 64, 400),
    ("dualpipev", 64, 4_000),
    ("dualpipev", 64, 40_000),
    ("zb-h1", 64, 520),
    ("zb-h1", 64, 5_200),
    ("zb-h1", 64, 52_000),
]
# Peak resident memory, before and after. (Not getrusage's: that begins with the parent's.)
ALONE = """
import re, time, dualpipe_rs as dp
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
dp.schedule("1f1b", 2, 2).simulate()
before, start = peak(), time.perf_counter()
schedule = dp.schedule({name!r}, {ranks}, {microbatches})
timeline = schedule.simulate()
seconds, after = time.perf_counter() - start, peak()
print(len(timeline.spans), seconds, 1024 * (after - before))
"""


def growth(name: str, ranks: int, microbatches: int) -> list[str]:
    code = ALONE.format(name=name, ranks=ranks, microbatches=microbatches)
    actions, seconds, size = in_a_process(code)
    cells = [f"{1e-6 * actions:.2f}", f"{1e9 * seconds / actions:.0f}", f"{size / actions:.0f}"]
    return [f"{name} {ranks} x {microbatches}", *cells]


def explained() -> None:
    schedule = dp.schedule("dualpipev", 64, 2048)
    print("\nDualPipeV 64 x 2048 (medians of 3), ms:")
    for p2p in SEMANTICS:
        if runs(schedule, p2p):
            simulated = median(lambda p2p=p2p: schedule.simulate(COSTS, p2p=p2p), 3)
            print(f"  simulate, {p2p:20}{1e3 * simulated:8.1f}")
    timeline = schedule.simulate(COSTS)
    asked: dict[str, Callable[[], object]] = {
        "critical_path()": timeline.critical_path,
        "slack": lambda: timeline.slack,
        "idle_by_cause": lambda: timeline.idle_by_cause,
        "sensitivity()": timeline.sensitivity,
    }
    for name, ask in asked.items():
        print(f"  {name:30}{1e3 * median(ask, 3):8.1f}")


def runs(schedule: dp.Schedule, p2p: str) -> bool:
    try:
        schedule.verify(p2p)
    except dp.ScheduleError:
        return False
    return True


if __name__ == "__main__":
    main()
