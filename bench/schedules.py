"""How long it takes to generate and verify a schedule: ours, torch's tables, and the tests' oracle.

    python bench/schedules.py

Ours is `dp.schedule(...)` and `.verify()`, on one thread, through Python. torch's is ScheduleDualPipeV's
order for every rank, its validation and its placing of sends and receives: what its constructor does,
without process groups. The oracle is tests/oracle.py, slow and obvious. The slower ones are run once, and
only up to the size where they take seconds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from timing import median, timed, torch_compute
from torch.distributed.pipelining import schedules

import dualpipe_rs as dp

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracle

SIZES = [(8, 256), (16, 512), (32, 1024), (64, 2048)]
SLOW_UP_TO = 16  # ranks


def main() -> None:
    print("DualPipeV, generate and verify, one thread; medians of 9 (torch and oracle: one run), ms")
    print("| ranks x microbatches | slots | ours | ns a slot | torch / ours | oracle / ours |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for ranks, microbatches in SIZES:
        slots = sum(len(dp.schedule("dualpipev", ranks, microbatches).rank(r)) for r in range(ranks))
        ours = median(lambda p=ranks, m=microbatches: dp.schedule("dualpipev", p, m).verify())
        others = ["-", "-"]
        if ranks <= SLOW_UP_TO:
            others = [f"{once(f, ranks, microbatches) / ours:,.0f}" for f in (by_torch, by_oracle)]
        cells = [f"{ranks} x {microbatches}", f"{slots:,}", f"{1e3 * ours:.2f}", f"{1e9 * ours / slots:.0f}"]
        print("| " + " | ".join(cells + others) + " |")
    print("\nEvery family at 64 x 1024, generate and verify, ms (medians of 3):")
    for name in dp.schedule_names():
        print(f"  {name:15}{1e3 * median(lambda n=name: dp.schedule(n, 64, 1024).verify(), 3):8.1f}")
    schedule = dp.schedule("dualpipev", 64, 2048)
    print("\nDualPipeV 64 x 2048, verified already; lowering and its proof, ms (medians of 3):")
    for p2p in ("eager", "rendezvous", "batched"):
        lowering = median(lambda p2p=p2p: schedule.lower(p2p), 3) if p2p != "eager" else once_eager()
        print(f"  {p2p:15}{1e3 * lowering:8.1f}")


def once(run: Callable[[int, int], object], ranks: int, microbatches: int) -> float:
    return timed(lambda: run(ranks, microbatches))


def once_eager() -> float:
    """A schedule keeps its eager Program, so each repeat takes another."""
    made = [dp.schedule("dualpipev", 64, 2048) for _ in range(3)]
    for schedule in made:
        schedule.verify()
    return statistics.median(timed(schedule.lower) for schedule in made)


def by_torch(ranks: int, microbatches: int) -> None:
    compute, to_rank = torch_compute(ranks, microbatches)
    schedules._add_send_recv(compute, to_rank, 2 * ranks)


def by_oracle(ranks: int, microbatches: int) -> None:
    rows = oracle.order_of("dualpipev", ranks, microbatches)
    assert not oracle.violations(rows, "v", ranks, 2 * ranks, microbatches)


if __name__ == "__main__":
    main()
