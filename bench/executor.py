"""What `dp.Executor` costs an action of a schedule, with functions that compute nothing.

    python bench/executor.py

Each function returns an array that was there before. The columns, which take turns:

- `loop`: the same calls of the same functions in a plain Python loop, without any executor.
- `loop, DLPack`: that, and what goes to another stage passes through `numpy.from_dlpack`.
- `no arrays`: the executor, all ranks on one thread, where the functions return `(None,)` in place of the
  array: it travels in the same way, and has nothing for DLPack.
- `one thread`: the executor with the arrays, all ranks on one thread.
- `run_local`: the same with a thread a rank.

So of an action in `one thread`, `loop` is the functions' own; what it takes beyond `no arrays` is the
hand-over by DLPack; the rest is the step's: the interpreter, calls from Rust, the measured timeline.
`cargo bench --bench interpreter` has the interpreter alone.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from report import Others, print_table
from timing import timed

import dualpipe_rs as dp

RANKS, MICROBATCHES = 8, 64
FAMILIES = ("1f1b", "dualpipe", "zb-v")
SEMANTICS = ("eager", "batched")
WARM_UP, REPEATS = 3, 31

ARRAY = np.zeros(4, dtype=np.float32)
NONE = (None,)

Call = tuple[Callable[..., Any], tuple[Any, ...], bool]  # function, arguments, whether its value goes on


def main() -> None:
    others = Others()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{RANKS} ranks x {MICROBATCHES} microbatches; medians of {REPEATS}, µs an action (and / loop):")
    heads = ["schedule", "p2p", "actions", "loop", "loop, DLPack", "no arrays", "one thread"]
    print_table([*heads, "run_local"], [row(name, p2p) for name in FAMILIES for p2p in SEMANTICS])
    print(others.report())


def row(name: str, p2p: str) -> list[str]:
    schedule = dp.schedule(name, RANKS, MICROBATCHES)
    bare, full = functions(NONE), functions(ARRAY)
    calls = calls_of(schedule, p2p, full)
    without, executor = dp.Executor(schedule, p2p=p2p, **bare), dp.Executor(schedule, p2p=p2p, **full)
    rows: list[Callable[[], float]] = [
        lambda: second(lambda: loop(calls)),
        lambda: second(lambda: loop_by_dlpack(calls)),
        lambda: second(without.step),
        lambda: second(executor.step),
        lambda: on_threads(schedule, p2p, full),
    ]
    rounds = [[run() for run in rows] for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    actions = len(executor.step().spans)
    return [name, p2p, f"{actions:,}", *cells(rounds, actions)]


def cells(rounds: Sequence[Sequence[float]], actions: int) -> list[str]:
    """The median of each row, and of its ratio to the first in a round, since the machine's speed wanders."""
    made = []
    for number, seconds in enumerate(zip(*rounds, strict=True)):
        ratio = statistics.median(turn[number] / turn[0] for turn in rounds)
        cell = f"{1e6 * statistics.median(seconds) / actions:.2f}"
        made.append(f"{cell} ({ratio:.0f})" if number else cell)
    return made


def functions(value: object) -> dict[str, Any]:
    """What an Executor takes. Pairs are left to forward and backward."""
    return {
        "forward": lambda stage, microbatch, given: value,
        "backward": lambda stage, microbatch, given: value,
        "backward_input": lambda stage, microbatch, given: value,
        "backward_weight": lambda stage, microbatch: None,
    }


def calls_of(schedule: dp.Schedule, p2p: str, made: dict[str, Any]) -> list[Call]:
    """The calls of one step in the order in which the executor makes them."""
    called: list[Call] = []

    def recorder(name: str) -> Callable[..., Any]:
        def record(stage: int, microbatch: int, *given: Any) -> Any:
            end = schedule.num_stages - 1 if name == "forward" else 0
            goes_on = name != "backward_weight" and stage != end
            called.append((made[name], (stage, microbatch, *given), goes_on))
            return made[name](stage, microbatch, *given)

        return record

    recorders: dict[str, Any] = {name: recorder(name) for name in made}
    dp.Executor(schedule, p2p=p2p, **recorders).step()
    return called


def loop(calls: Sequence[Call]) -> None:
    for function, arguments, _ in calls:
        function(*arguments)


def loop_by_dlpack(calls: Sequence[Call]) -> None:
    for function, arguments, goes_on in calls:
        value = function(*arguments)
        if goes_on:
            np.from_dlpack(value)


def on_threads(schedule: dp.Schedule, p2p: str, made: dict[str, Any]) -> float:
    """Seconds of a step, which begins and ends on all ranks together."""

    def on_rank(group: dp.LocalGroup) -> float:
        return second(dp.Executor(schedule, p2p=p2p, **made).step)

    return statistics.median(dp.run_local(on_rank, schedule.num_ranks))


def second(run: Callable[[], object]) -> float:
    """Seconds of the second of two runs: what ran before them has emptied the caches."""
    run()
    return timed(run)


if __name__ == "__main__":
    main()
