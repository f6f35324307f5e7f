"""All published families as the tests know them: where their stages live, which sizes and options they take.

Written from the published definitions, not from the core. Some tests go through a fixed part of the sizes,
and through all of them where the environment has LONG=1.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from conftest import Shape, nearest_size

import dualpipe_rs as dp

LONG = os.environ.get("LONG") == "1"
Item = TypeVar("Item")


class Family(NamedTuple):
    placement: str
    is_legal: Callable[[int, int], bool]  # ranks, microbatches
    stages_per_rank: int = 1
    option: str | None = None  # one that multiplies stages_per_rank
    values: tuple[int, ...] = (1,)


def any_size(p: int, m: int) -> bool:
    return p > 0 and m > 0


def whole_rounds(p: int, m: int) -> bool:
    """torch's rule: microbatches divide into max(1, m // p) rounds."""
    return any_size(p, m) and m % max(1, m // p) == 0


def fills_zb_h2(p: int, m: int) -> bool:
    return p > 0 and m >= 2 * p - 1


def fills_dualpipe(p: int, m: int) -> bool:
    return p > 0 and p % 2 == 0 and m % 2 == 0 and m >= 2 * p


def fills_dualpipev(p: int, m: int) -> bool:
    return p > 0 and m >= 2 * p


def whole_units(p: int, m: int) -> bool:
    return any_size(p, m) and p % 2 == 0 and m % p == 0


CHUNKS = ("stages_per_rank", (1, 2, 3))
FAMILIES: dict[str, Family] = {
    "gpipe": Family("linear", any_size),
    "1f1b": Family("linear", any_size),
    "interleaved": Family("looped", whole_rounds, 1, *CHUNKS),
    "interleaved-zb": Family("looped", whole_rounds, 1, *CHUNKS),
    "looped-bfs": Family("looped", any_size, 1, *CHUNKS),
    "zb-h1": Family("linear", any_size),
    "zb-h2": Family("linear", fills_zb_h2),
    "zb-v": Family("v", any_size, 2),
    "v-half": Family("v", any_size, 2),
    "v-min": Family("v", any_size, 2),
    "dualpipe": Family("bidirectional", fills_dualpipe),
    "dualpipev": Family("v", fills_dualpipev, 2),
    "chimera": Family("bidirectional", whole_units),
    "hanayo": Family("wave", any_size, 2, "waves", (1, 2)),
}


class Case(NamedTuple):
    """A family, its sizes, and the value of its option (1 where it has none)."""

    family: str
    ranks: int
    microbatches: int
    value: int = 1

    @property
    def options(self) -> dict[str, int]:
        option = FAMILIES[self.family].option
        return {} if option is None else {option: self.value}

    @property
    def shape(self) -> Shape:
        family = FAMILIES[self.family]
        stages = family.stages_per_rank * self.value * self.ranks
        return Shape(family.placement, self.ranks, stages, self.microbatches)

    def make(self) -> dp.Schedule:
        return dp.schedule(self.family, self.ranks, self.microbatches, **self.options)


def cases(family: str, most_ranks: int = 8, most_microbatches: int = 32) -> list[Case]:
    """Every legal size and option of a family up to these."""
    known = FAMILIES[family]
    return [
        Case(family, p, m, value)
        for value in known.values
        for p in range(1, most_ranks + 1)
        for m in range(1, most_microbatches + 1)
        if known.is_legal(p, m)
    ]


def some(items: Sequence[Item], part: float) -> list[Item]:
    """About this part of the items, always the same; all of them where LONG=1."""
    if LONG:
        return list(items)
    return random.Random(0).sample(items, max(1, round(len(items) * part)))


def sized(family: str, ranks: int, microbatches: int) -> dp.Schedule:
    """A family's order of this size, or of the nearest that it has."""
    try:
        return dp.schedule(family, ranks, microbatches)
    except dp.SizeError as error:
        return dp.schedule(family, *nearest_size(str(error)))
