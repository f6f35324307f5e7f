"""The tensors that go from rank to rank, against the slow simulator: who made them, who took them, and when
they were there under every P2P semantics.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from conftest import numbered, read
from measured import timeline_of
from oracle_costs import (
    SEMANTICS,
    SMALL,
    Keywords,
    Run,
    Simulator,
    hop,
    needs_of,
    random_keywords,
    runs_under,
)

import dualpipe_rs as dp

FIELDS = ("source", "source_slot", "rank", "slot", "kind", "stage", "microbatch", "start", "end")


def expected(schedule: dp.Schedule, p2p: str, run: Run, costs: Keywords, simulator: Simulator) -> list[Any]:
    """By rank and slot, and of a pair by its actions."""
    left, found = simulator.departures(run), []
    for (rank, slot), needs in sorted(needs_of(schedule).items()):
        for maker, (stage, kind, microbatch) in needs:
            name = f"{stage}{'F' if kind == 'F' else 'B'}{microbatch}"
            leaves = max(run.sent[name], run.posted[name]) if p2p in ("batched", "blocking") else left[name]
            there = leaves + hop(costs, maker[0], rank)
            found.append((*maker, rank, slot, kind, stage, microbatch, run.end[maker], there))
    return found


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)
def test_who_made_it_who_took_it_and_when(p2p: str, depth: int | None) -> None:
    compared = 0
    for seed in range(60):
        rng = random.Random(seed)
        schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SMALL))
        if not runs_under(schedule, p2p, depth):
            continue
        costs = random_keywords(rng, schedule, least=rng.randint(0, 1))
        simulator = Simulator(schedule, p2p, depth)
        transfers = schedule.simulate(dp.Costs(**costs), p2p=p2p, depth=depth).transfers
        assert transfers.dtype.names == FIELDS
        assert transfers.tolist() == expected(schedule, p2p, simulator.run(costs), costs, simulator)
        compared += 1
    assert compared >= 10


def test_a_tensor_that_stays_on_its_rank_is_none() -> None:
    """Of DualPipeV's stages the two in the middle are on the last rank."""
    schedule = dp.schedule("dualpipev", 3, 6)
    transfers = schedule.simulate().transfers
    assert (transfers["source"] != transfers["rank"]).all()
    assert len(transfers) == 2 * 6 * (schedule.num_stages - 2)
    assert len(dp.schedule("1f1b", 1, 4).simulate().transfers) == 0
    assert len(schedule.forward_only().simulate().transfers) == 6 * (schedule.num_stages - 2)


def test_by_hand() -> None:
    """Rank 1 computes 1F0 from 1.5 to 3.5, and posts the next receive then: 0F1's tensor waits from 2."""
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=2\n0F0 0F1 0B0 0B1\n1F0 1F1 1B0 1B1\n"
    schedule = dp.Schedule.from_text(text)
    costs = dp.Costs(forward=[1, 2], p2p=0.5)
    forwards = schedule.simulate(costs, p2p="rendezvous", depth=1).transfers[2:]
    assert forwards.tolist() == [(0, 0, 1, 0, "F", 0, 0, 1.0, 1.5), (0, 1, 1, 1, "F", 0, 1, 2.0, 4.0)]
    assert schedule.simulate(costs).transfers["end"][3] == 2.5


@pytest.mark.parametrize("run", [("1f1b", 2, 4), ("dualpipe", 4, 8), ("dualpipev", 2, 7)])
def test_a_measured_timeline_knows_when_a_tensor_was_taken(run: tuple[str, int, int]) -> None:
    timeline = timeline_of(*run)
    transfers, spans = timeline.transfers, timeline.spans
    times = {(span["rank"], span["slot"]): (span["start"], span["end"]) for span in spans}
    made = [times[source, slot][1] for source, slot in transfers[["source", "source_slot"]].tolist()]
    taken = [times[rank, slot][0] for rank, slot in transfers[["rank", "slot"]].tolist()]
    assert np.array_equal(transfers["start"], made)
    assert np.array_equal(transfers["end"], np.maximum(made, taken))
    predicted = dp.schedule(*run).simulate().transfers
    assert transfers[list(FIELDS[:-2])].tolist() == predicted[list(FIELDS[:-2])].tolist()
