"""A timeline's figures as plain numbers: what JSON holds and tables show. NaN and infinity become None."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from dualpipe_rs._core import Figure, Schedule, Timeline, formula
from dualpipe_rs.cli.pricing import Pricing, costs_given
from dualpipe_rs.cli.source import Source
from dualpipe_rs.errors import UsageError


@dataclass(frozen=True)
class Path:
    """A critical path in short."""

    slots: list[str]
    time_by_kind: dict[str, float]
    """What its slots take: F, I, W, B, and F:B for pairs."""
    between: float
    """What lies between its slots: hops, and waits for somebody."""


def schedule_given(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "placement": schedule.placement,
        "num_ranks": schedule.num_ranks,
        "num_stages": schedule.num_stages,
        "num_microbatches": schedule.num_microbatches,
    }


def figures(schedule: Schedule, timeline: Timeline, prices: Pricing, found: Figure | None) -> dict[str, Any]:
    """All of a timeline, as ``simulate --json`` writes it."""
    path = timeline.critical_path()
    return {
        "schedule": schedule_given(schedule),
        "costs": costs_given(prices.costs),
        "p2p": prices.p2p,
        "depth": prices.depth,
        "makespan": timeline.makespan,
        "span": timeline.span,
        "bubble_ratio": timeline.bubble_ratio,
        "bubble_over_ideal": timeline.bubble_over_ideal,
        "span_bubble_ratio": timeline.span_bubble_ratio,
        "busy": timeline.busy.tolist(),
        "idle": timeline.idle.tolist(),
        "peak_activations": timeline.peak_activations.tolist(),
        "idle_by_cause": {cause: idle.tolist() for cause, idle in timeline.idle_by_cause.items()},
        "formula": None if found is None else _formula_given(found),
        "critical_path": [dict(zip(path.dtype.names or (), row, strict=True)) for row in path.tolist()],
    }


def makespan_formula(source: Source, prices: Pricing) -> Figure | None:
    """The published makespan; None where there is none for this schedule, or not for these semantics."""
    if source.family is None or prices.p2p != "eager":
        return None
    sizes = source.schedule.num_ranks, source.schedule.num_microbatches
    try:
        return formula(source.family.name).makespan(*sizes, prices.costs, **source.family.options)
    except UsageError:
        return None


def path_in_short(schedule: Schedule, timeline: Timeline) -> Path:
    """Its slots in order, each once."""
    lengths = {(row[0], row[1]): row[6] - row[5] for row in timeline.critical_path().tolist()}
    rows = {rank: schedule.rank(rank) for rank in {rank for rank, _ in lengths}}
    slots = [rows[rank][slot] for rank, slot in lengths]
    by_kind: dict[str, float] = {}
    for word, length in zip(slots, lengths.values(), strict=True):
        kind = ":".join(sign for sign in word if sign in "FIWB")
        by_kind[kind] = by_kind.get(kind, 0.0) + length
    return Path(slots, by_kind, timeline.makespan - sum(lengths.values()))


def to_json(value: Any) -> str:
    """One document, strictly JSON: numbers as they are, to the last bit."""
    return json.dumps(finite(value), indent=2, ensure_ascii=True, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _formula_given(found: Figure) -> dict[str, Any]:
    return {
        "quantity": found.quantity,
        "value": found.value,
        "exact": found.exact,
        "formula": found.formula,
        "region": found.region,
        "why": found.why,
    }
