"""Stages that hand over odd tensors train and infer as serially, between threads and between processes."""

from __future__ import annotations

from typing import Any

import pytest
from families import LONG
from odd import MODELS, Outcome, data_of, inferred, on_ranks, rank_of, serially, together

import dualpipe_rs as dp
from dualpipe_rs.distributed import lines

EQUAL = 1e-12
SCHEDULES = {
    2: [("dualpipe", 2, 4), ("zb-v", 2, 4), ("1f1b", 2, 3)],
    3: [("zb-h1", 3, 4), ("interleaved", 3, 3)],
    4: [("dualpipe", 4, 8), ("dualpipev", 4, 8)],
}
GPIPE = [("gpipe", 3, 4)]  # the only one that sends may hold up


def sizes_for(ranks: int, options: dict[str, Any]) -> list[tuple[str, int, int]]:
    if options.get("p2p") == "blocking":
        return GPIPE
    return SCHEDULES[ranks][: 2 if options else None]


def _run_all(
    group: Any, ranks: int, way: str, options: dict[str, Any]
) -> list[tuple[list[Outcome], float | None]]:
    if way == "gloo":
        lines.LIMIT = -1  # No tensor is small enough for a line between processes of one host.
    results = []
    for name in MODELS:
        for sizes in sizes_for(ranks, options):
            rank = rank_of(group, name, dp.schedule(*sizes), **options)
            data = data_of(rank.schedule.num_microbatches)
            # The first step announces what travels, the second has room made ahead.
            results.append(([rank.train(data) for _ in range(2)], inferred(rank, data)))
    return results


#: What only make test-long runs.
MORE = [
    ("processes", 2, "gloo", {"p2p": "rendezvous", "dynamic_shapes": True}),
    ("processes", 3, "lines", {"p2p": "blocking", "split_weight_grad": False}),
]


@pytest.mark.parametrize(
    ("where", "ranks", "way", "options"),
    [
        *(("threads", ranks, "", {}) for ranks in SCHEDULES),
        *(("processes", ranks, "lines", {}) for ranks in SCHEDULES if LONG or ranks != 3),
        ("processes", 2, "gloo", {"p2p": "batched", "measure": False}),
        *(MORE if LONG else []),
    ],
    ids=str,
)
def test_odd_tensors_train_and_infer_as_serially(where, ranks, way, options):
    by_rank = on_ranks(where, ranks, _run_all, ranks, way, options)
    cases = [(name, sizes) for name in MODELS for sizes in sizes_for(ranks, options)]
    for index, (name, sizes) in enumerate(cases):
        schedule = dp.schedule(*sizes)
        expected = serially(name, schedule.num_stages, data_of(schedule.num_microbatches))
        results = [found[index] for found in by_rank]
        for step in range(2):
            off = together([outcomes[step] for outcomes, _ in results]).off(expected)
            assert off <= EQUAL, (name, sizes, step)
        differences = [off for _, off in results if off is not None]
        assert len(differences) in (1, 2)
        assert max(differences) == 0.0, (name, sizes)
