"""What a timeline says about why it takes that long: idle time by cause, the critical path, slack,
sensitivity and memory, each computed again from the spans or from a slow simulation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import numbered, read
from oracle_costs import (
    SEMANTICS,
    SMALL,
    Keywords,
    Simulator,
    at,
    hop,
    needs_of,
    price,
    random_keywords,
    runs_under,
    times,
)

import dualpipe_rs as dp

CAUSES = ["warm_up", "dependency", "hop", "partner", "overhead", "exchange", "cool_down"]
SEEDS = range(60)


class Case:
    """A schedule under costs and P2P semantics, its prediction, and the slow one's."""

    def __init__(self, seed: int, p2p: str, depth: int | None, schedule: dp.Schedule) -> None:
        rng = random.Random(seed)
        self.schedule, self.p2p, self.depth = schedule, p2p, depth
        self.costs: Keywords = random_keywords(rng, schedule, least=seed % 2)
        if schedule.num_ranks % 2:
            self.costs.pop("gradient_exchange", None)
        self.costs["p2p_bytes"] = [
            [float(rng.randint(1, 9)) for _ in range(schedule.num_ranks)] for _ in range(schedule.num_ranks)
        ]
        self.costs["activation_bytes"] = [float(rng.randint(0, 9)) for _ in range(schedule.num_stages)]
        self.costs["weight_grad_bytes"] = [float(rng.randint(0, 9)) for _ in range(schedule.num_stages)]
        self.timeline = schedule.simulate(dp.Costs(**self.costs), p2p=p2p, depth=depth)
        self.simulator = Simulator(schedule, p2p, depth)
        self.run = self.simulator.run(self.costs)
        self.rows, self.ranks = self.simulator.rows, schedule.num_ranks

    def hop(self, sender: int, receiver: int) -> float:
        return hop(self.costs, sender, receiver)

    def gaps(self, rank: int) -> Iterator[tuple[int, float, float]]:
        """(slot that comes after, start, end) of all time in which the rank does nothing."""
        now = self.start
        for index in range(len(self.rows[rank])):
            start, end = self.spans[rank, index]
            yield index, now, start
            now = end
        closed, exchanged, end = self.run.closing[rank]
        yield len(self.rows[rank]), max(now, closed), exchanged
        yield len(self.rows[rank]), end, self.start + self.run.makespan

    @cached_property
    def spans(self) -> dict[tuple[int, int], tuple[float, float]]:
        return times(self.timeline)

    @cached_property
    def start(self) -> float:
        return min(start for start, _ in self.spans.values())


@cache
def case(seed: int, p2p: str, depth: int | None) -> Case | None:
    rng = random.Random(1000 + seed)
    schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SMALL))
    return Case(seed, p2p, depth, schedule) if runs_under(schedule, p2p, depth) else None


def cases(p2p: str, depth: int | None, part: int = 1) -> list[Case]:
    found = [known for seed in SEEDS[::part] if (known := case(seed, p2p, depth))]
    assert len(found) >= (len(SEEDS) // part) // (6 if p2p == "blocking" else 3)
    return found


semantics = pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)


# ---- Idle time by cause ------------------------------------------------------------------------------------


def expected_waits(known: Case) -> list[tuple[Any, ...]]:
    """(rank, slot, cause, start, end) from the definitions."""
    needs, waits = needs_of(known.schedule), []
    for rank, row in enumerate(known.rows):
        gaps = list(known.gaps(rank))
        for slot, start, end in gaps[:-2]:
            waits += list(parts_of_a_gap(known, rank, slot, start, end, needs[rank, slot])) if slot else []
            waits += [(rank, slot, "warm_up", start, end)] if slot == 0 else []
        waits += [
            (rank, len(row), cause, *gap[1:]) for cause, gap in zip(CAUSES[-2:], gaps[-2:], strict=True)
        ]
    return [wait for wait in waits if wait[-1] > wait[-2]]


def parts_of_a_gap(
    known: Case, rank: int, slot: int, start: float, end: float, needs: list[Any]
) -> Iterator[tuple[Any, ...]]:
    made = max([start, *(known.spans[where][1] for where, _ in needs)])
    come = max([start, *(known.spans[where][1] + known.hop(where[0], rank) for where, _ in needs)])
    made, come = min(made, end), min(come, end)
    yield rank, slot, "dependency", start, made
    yield rank, slot, "hop", made, max(made, come)
    yield rank, slot, "partner", max(made, come), end


@semantics
def test_waits_are_the_gaps_with_their_causes(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth):
        waits = known.timeline.waits[["rank", "slot", "cause", "start", "end"]].tolist()
        assert waits == expected_waits(known)


@semantics
def test_idle_by_cause_adds_up_to_idle(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth):
        by_cause, waits = known.timeline.idle_by_cause, known.timeline.waits
        assert list(by_cause) == CAUSES
        assert np.array_equal(sum(by_cause.values()), known.timeline.idle)
        for cause, idle in by_cause.items():
            own = waits[waits["cause"] == cause]
            took = own["end"] - own["start"]
            assert idle.tolist() == [took[own["rank"] == rank].sum() for rank in range(known.ranks)]


@semantics
def test_a_wait_names_what_it_waited_for(p2p: str, depth: int | None) -> None:
    """The action of the need that was made last, or that came last; no kind for other causes."""
    for known in cases(p2p, depth):
        needs, ends = needs_of(known.schedule), known.spans
        for rank, slot, cause, kind, stage, microbatch, _, end in known.timeline.waits.tolist():
            if cause not in ("dependency", "hop"):
                assert kind == ""
                continue
            ways = {
                (a[1], a[0], a[2]): ends[where][1] + (known.hop(where[0], rank) if cause == "hop" else 0)
                for where, a in needs[rank, slot]
            }
            ways |= {("B", s, m): time for (k, s, m), time in ways.items() if k == "I"}
            assert ways[kind, stage, microbatch] >= end
            assert ways[kind, stage, microbatch] == max(ways.values())


def test_nothing_is_owed_to_partners_under_eager_nor_to_hops_that_take_no_time() -> None:
    assert all(not known.timeline.idle_by_cause["partner"].any() for known in cases("eager", None))
    for p2p, depth in SEMANTICS:
        for known in cases(p2p, depth, part=4):
            timeline = known.schedule.simulate(
                dp.Costs([1.0] * known.schedule.num_stages), p2p=p2p, depth=depth
            )
            assert not timeline.idle_by_cause["hop"].any()
            assert not timeline.idle_by_cause["overhead"].any()


def test_ratios() -> None:
    for known in cases("batched", None):
        t = known.timeline
        assert t.bubble_over_ideal == pytest.approx(t.idle.sum() / max(t.busy.sum(), 1e-300), rel=1e-12)
        ratio = 1 - t.busy.sum() / (known.ranks * t.span)
        assert t.span_bubble_ratio == pytest.approx(ratio, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (4, 8), (8, 32)])
def test_megatrons_fraction(p: int, m: int) -> None:
    assert dp.schedule("1f1b", p, m).simulate().bubble_over_ideal == pytest.approx((p - 1) / m, rel=1e-12)


# ---- The critical path -------------------------------------------------------------------------------------


def rows_in(spans: np.ndarray) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in spans.tolist()}


@semantics
def test_a_critical_path_leads_from_the_first_start_to_the_last_end(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth):
        path, spans = known.timeline.critical_path(), known.timeline.spans
        assert path.dtype == spans.dtype
        assert rows_in(path) <= rows_in(spans)
        assert path["start"][0] == spans["start"].min()
        places = list(dict.fromkeys(zip(path["rank"].tolist(), path["slot"].tolist(), strict=True)))
        last = known.run.closing[places[-1][0]]
        mirror = known.run.closing[known.ranks - 1 - places[-1][0]]
        ends = [last, mirror] if known.costs.get("gradient_exchange") else [last]
        assert known.run.makespan + known.start in [end for _, _, end in ends]
        assert places[-1][1] == len(known.rows[places[-1][0]]) - 1
        for before, after in pairwise(places):
            assert known.spans[before][1] <= known.spans[after][0]


def test_each_slot_of_a_critical_path_follows_from_the_one_before() -> None:
    for known in cases("eager", None):
        needs, spans = needs_of(known.schedule), known.spans
        path = known.timeline.critical_path()
        places = list(dict.fromkeys(zip(path["rank"].tolist(), path["slot"].tolist(), strict=True)))
        for before, after in pairwise(places):
            start, end = spans[after][0], spans[before][1]
            if before[0] == after[0]:
                assert (before[1] + 1, end) == (after[1], start)
            else:
                assert before in [where for where, _ in needs[after]]
                assert end + known.hop(before[0], after[0]) == start


@semantics
def test_a_critical_path_has_no_slack(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth):
        spans = known.timeline.spans.tolist()
        slack = dict(zip(map(tuple, spans), known.timeline.slack.tolist(), strict=True))
        assert {slack[row] for row in rows_in(known.timeline.critical_path())} == {0.0}


# ---- Slack -------------------------------------------------------------------------------------------------


@semantics
def test_slack_is_what_a_slot_may_take_longer(p2p: str, depth: int | None) -> None:
    """So much longer, and the step ends as before; an eighth more, and it ends later."""
    for known in cases(p2p, depth, part=4):
        spans = known.timeline.spans[["rank", "slot"]].tolist()
        for place, slack in dict(zip(spans, known.timeline.slack.tolist(), strict=True)).items():
            assert known.simulator.run(known.costs, {place: slack}).makespan == known.run.makespan
            later = known.simulator.run(known.costs, {place: slack + 0.125}).makespan
            assert later == known.run.makespan + 0.125


def test_slack_of_a_pair_stands_in_both_rows() -> None:
    timeline = dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(overlap=2))
    spans, slack = timeline.spans, timeline.slack
    pairs = np.flatnonzero(
        (spans["rank"][1:] == spans["rank"][:-1]) & (spans["slot"][1:] == spans["slot"][:-1])
    )
    assert len(pairs) > 0
    assert np.array_equal(slack[pairs], slack[pairs + 1])
    assert (slack.shape, slack.dtype) == (spans.shape, np.dtype("f8"))


# ---- Sensitivity -------------------------------------------------------------------------------------------


def grown(value: Any, by: float, only: int | None = None) -> Any:
    """A cost, or one entry of it, that much larger."""
    if isinstance(value, float):
        return value * by
    if only is None:
        return [grown(entry, by) for entry in value]
    return [entry * by if index == only else entry for index, entry in enumerate(value)]


@semantics
@pytest.mark.parametrize("percent", [100.0, 12.5, -50.0])
def test_sensitivity_is_a_simulation_with_more(p2p: str, depth: int | None, percent: float) -> None:
    for known in cases(p2p, depth, part=5):
        costs = dp.Costs(**known.costs)
        found = known.timeline.sensitivity(percent)
        assert {"forward", "backward_input", "backward_weight", "p2p"} <= set(found)
        assert ("backward" in found, "overlap" in found) == (
            "backward" in known.costs,
            "overlap" in known.costs,
        )
        for name, growth in found.items():
            more = costs.replace(**{name: grown(getattr(costs, name), 1 + percent / 100)})
            makespan = known.schedule.simulate(more, p2p=p2p, depth=depth).makespan
            assert growth == makespan - known.timeline.makespan, name


@semantics
def test_sensitivity_stage_by_stage(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth, part=5):
        costs = dp.Costs(**known.costs)
        for name, growth in known.timeline.sensitivity(100, each=True).items():
            if np.ndim(growth) == 0:
                assert name not in ("forward", "backward_input", "backward_weight", "backward", "optimizer")
                continue
            if np.ndim(growth) == 2:
                check_cells(known, costs, name, growth, p2p, depth)
                continue
            count = known.ranks if name == "optimizer" else known.schedule.num_stages
            entries = [at(getattr(costs, name), index) for index in range(count)]
            assert np.shape(growth) == (count,)
            for index in range(count):
                more = costs.replace(**{name: grown(entries, 2.0, index)})
                makespan = known.schedule.simulate(more, p2p=p2p, depth=depth).makespan
                assert growth[index] == makespan - known.timeline.makespan, (name, index)


def check_cells(known, costs: dp.Costs, name: str, growth: Any, p2p: str, depth: int | None) -> None:
    """Some cells of a table, each grown alone."""
    table = np.array(getattr(costs, name))
    assert growth.shape == table.shape
    for row, column in list(np.ndindex(table.shape))[:: max(1, table.size // 6)]:
        more = table.copy()
        more[row, column] *= 2
        makespan = known.schedule.simulate(costs.replace(**{name: more}), p2p=p2p, depth=depth).makespan
        assert growth[row, column] == makespan - known.timeline.makespan, (name, row, column)


def test_sensitivity_by_default_is_of_one_percent() -> None:
    timeline = dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(overlap=2.5, p2p=0.5))
    assert timeline.sensitivity() == timeline.sensitivity(1) == timeline.sensitivity(percent=1.0)
    assert not any(timeline.sensitivity(0).values())
    for percent in (float("nan"), float("inf"), -100.5):
        with pytest.raises(dp.UsageError, match="percent"):
            timeline.sensitivity(percent)


def test_sensitivity_knows_of_shared_cores() -> None:
    schedule, costs = dp.schedule("1f1b", 4, 4), dp.Costs([1, 2, 3, 4])
    found = schedule.simulate(costs, cores=2).sensitivity(100)
    more = schedule.simulate(costs.replace(backward_input=2.0), cores=2).makespan
    assert found["backward_input"] == pytest.approx(more - schedule.simulate(costs, cores=2).makespan)


# ---- The oracle itself -------------------------------------------------------------------------------------


@semantics
def test_the_slow_simulation_gives_these_times(p2p: str, depth: int | None) -> None:
    for known in cases(p2p, depth):
        assert known.spans == {
            where: (known.run.start[where], known.run.end[where]) for where in known.run.start
        }
        assert known.timeline.makespan == known.run.makespan
        stages = known.schedule.num_stages
        for rank, row in enumerate(known.rows):
            for index, slot in enumerate(row):
                start, end = known.spans[rank, index]
                assert end - start == price(known.costs, slot, stages)
