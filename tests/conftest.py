"""What the tests of the core share: sizes, rows as text, random schedules that are valid by construction.

Rows here are the oracle's: a rank's list of slots, a slot a list of one or two (stage, kind, microbatch).
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from oracle import Action, Rows, Slot, dependencies, parse, place

import dualpipe_rs as dp

GOLDEN = sorted(
    path for path in (Path(__file__).parent / "golden").glob("*.txt") if ".batched" not in path.name
)
PLACEMENT = {"gpipe": "linear", "1f1b": "linear", "dualpipe": "bidirectional", "dualpipev": "v"}
PLACEMENTS = ["linear", "looped", "v", "wave", "bidirectional"]

# A shell without job control has what it runs in the background ignore Ctrl-C, and Python leaves it at that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and none refused for the time it took.
steady = settings(deadline=None, derandomize=True)


class Shape(NamedTuple):
    """The arguments that the oracle takes after the rows."""

    placement: str
    ranks: int
    stages: int
    microbatches: int


def sizes_of(path: Path) -> tuple[str, int, int]:
    """dualpipe_8x20.txt -> ("dualpipe", 8, 20)."""
    family, sizes = path.stem.split("_")
    ranks, microbatches = sizes.split("x")
    return family, int(ranks), int(microbatches)


def is_legal(family: str, p: int, m: int) -> bool:
    if family == "dualpipe":
        return p > 0 and p % 2 == 0 and m % 2 == 0 and m >= 2 * p
    return p > 0 and m > 0 and (family != "dualpipev" or m >= 2 * p)


def legal_sizes(most_ranks: int, most_microbatches: int) -> list[tuple[str, int, int]]:
    """Every (family, ranks, microbatches) up to these."""
    ranks, microbatches = range(1, most_ranks + 1), range(1, most_microbatches + 1)
    return [(f, p, m) for f in PLACEMENT for p in ranks for m in microbatches if is_legal(f, p, m)]


def shape_of(schedule: dp.Schedule) -> Shape:
    return Shape(schedule.placement, schedule.num_ranks, schedule.num_stages, schedule.num_microbatches)


# ---- Text --------------------------------------------------------------------------------------------------


def word_of(action: Action) -> str:
    stage, kind, microbatch = action
    return f"{stage}{kind}{microbatch}"


def cell_of(slot: Slot) -> str:
    words = [word_of(action) for action in slot]
    return words[0] if len(words) == 1 else f"({';'.join(words)})"


def text_of(rows: Rows, shape: Shape, *, name: str = "test", forward_only: bool = False) -> str:
    """What `from_text` reads."""
    header = f"# name={name} placement={shape.placement} ranks={shape.ranks} stages={shape.stages}"
    header += f" microbatches={shape.microbatches}" + (" forward_only=true" if forward_only else "")
    return "\n".join([header, *(" ".join(map(cell_of, row)) for row in rows)]) + "\n"


def read(rows: Rows, shape: Shape) -> dp.Schedule:
    return dp.Schedule.from_text(text_of(rows, shape))


def attempt(text: str) -> dp.Schedule | str:
    """What a text holds, or why it is refused."""
    try:
        return dp.Schedule.from_text(text)
    except dp.UsageError as error:
        return str(error)


def rows_of(schedule: dp.Schedule) -> Rows:
    return parse("\n".join(" ".join(schedule.rank(rank)) for rank in range(schedule.num_ranks)))


# ---- Random schedules --------------------------------------------------------------------------------------


def random_shape(rng: random.Random) -> Shape:
    placement = rng.choice(PLACEMENTS)
    p, m, turns = rng.randint(1, 4), rng.randint(1, 5), rng.randint(1, 3)
    stages = {"looped": turns * p, "v": 2 * p, "wave": 2 * turns * p}.get(placement, p)
    return Shape(placement, p, stages, 2 * m if placement == "bidirectional" else m)


def random_rows(rng: random.Random, shape: Shape) -> Rows:
    """A random order in which nothing waits for what comes later, dealt out to the ranks.

    Each backward is split or not at random, and an F and a B of two microbatches that may start now on one
    rank are sometimes fused.
    """
    rank_of = place(*shape)
    left = _random_work(rng, shape)
    rows: Rows = [[] for _ in range(shape.ranks)]
    done: set[Action] = set()
    while left:
        ready = [action for action in left if _may_start(action, shape.stages, done)]
        slot = _random_slot(rng, ready, rank_of)
        rows[rank_of(slot[0][0], slot[0][2])].append(slot)
        done.update(slot)
        left = [action for action in left if action not in done]
    return rows


def random_schedule(rng: random.Random) -> tuple[Rows, Shape]:
    shape = random_shape(rng)
    return random_rows(rng, shape), shape


@cache
def numbered(seed: int) -> tuple[Rows, Shape]:
    """A random schedule, made once for all tests: not to be changed."""
    return random_schedule(random.Random(seed))


def copied(rows: Rows) -> Rows:
    return [[list(slot) for slot in row] for row in rows]


def _random_work(rng: random.Random, shape: Shape) -> list[Action]:
    work: list[Action] = []
    for stage in range(shape.stages):
        for microbatch in range(shape.microbatches):
            kinds = rng.choice(["FB", "FIW"])
            work += [(stage, kind, microbatch) for kind in kinds]
    return work


def _may_start(action: Action, stages: int, done: set[Action]) -> bool:
    return all(any(other in done for other in need) for need in dependencies(action, stages))


def _random_slot(rng: random.Random, ready: list[Action], rank_of) -> Slot:
    stage, kind, microbatch = first = rng.choice(ready)
    rank = rank_of(stage, microbatch)
    partners = [
        other
        for other in ready
        if other[1] == "B" and other[2] != microbatch and rank_of(other[0], other[2]) == rank
    ]
    if kind == "F" and partners and rng.random() < 0.7:
        return [first, rng.choice(partners)]
    return [first]


# ---- A process of its own ----------------------------------------------------------------------------------


def python(code: str, *, gibibytes: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, with at most so much address space."""
    if gibibytes is not None:
        size = int(gibibytes * 2**30)
        code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({size}, {size}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def nearest_size(message: str) -> tuple[int, int]:
    """The legal size that an error names."""
    match = re.search(r"nearest legal size is (\d+) ranks and (\d+) microbatches", message)
    assert match is not None, message
    return int(match[1]), int(match[2])
