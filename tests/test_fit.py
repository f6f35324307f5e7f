"""From a measured step back to costs, and what is known of a measured timeline; and ranks that share cores.

What was measured is never compared with a number, only with means over its own spans.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from conftest import numbered, read, rows_of
from oracle_costs import Keywords, eighths, needs_of, price, random_keywords, times

import dualpipe_rs as dp

pytest.importorskip("torch")
from measured import RUNS, timeline_of

runs = pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
trained = pytest.mark.parametrize(
    "run", [run for run in RUNS if run[-1]], ids=lambda run: "-".join(map(str, run))
)
close = {"rel": 1e-9, "abs": 1e-15}


# ---- Costs from a measured step ----------------------------------------------------------------------------


class Means:
    """The means of a timeline: of lone slots by (kind, stage), of pairs by their stages, of hops."""

    def __init__(self, timeline: dp.Timeline, cpu_time: bool = False) -> None:
        took = timeline.cpu_time if cpu_time else timeline.spans["end"] - timeline.spans["start"]
        slots: dict[tuple[int, int], list[tuple[str, int, float]]] = defaultdict(list)
        for span, time in zip(timeline.spans.tolist(), took.tolist(), strict=True):
            slots[span[0], span[1]].append((span[2], span[3], time))
        self.lone: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.pairs: dict[tuple[int, int], list[float]] = defaultdict(list)
        for actions in slots.values():
            if len(actions) == 1:
                self.lone[actions[0][:2]].append(actions[0][2])
            else:
                self.pairs[actions[0][1], actions[1][1]].append(actions[0][2])
        waits = timeline.waits
        idle = waits["end"] - waits["start"]
        hops = idle[waits["cause"] == "hop"]
        self.overhead = 0.0 if cpu_time else idle[waits["cause"] == "overhead"].sum() / len(slots)
        self.hop = 0.0 if cpu_time or len(hops) == 0 else float(hops.mean())

    def of(self, kind: str, stage: int) -> float | None:
        lone = self.lone[kind, stage]
        return float(np.mean(lone)) + self.overhead if lone else None


def each(value: Any, stages: int) -> list[float]:
    return list(value) if isinstance(value, list) else [value] * stages


@runs
@pytest.mark.parametrize("cpu_time", [False, True])
def test_costs_are_means_of_what_was_measured(run: Any, cpu_time: bool) -> None:
    timeline = timeline_of(*run)
    costs, means = dp.Costs.from_timeline(timeline, cpu_time=cpu_time), Means(timeline, cpu_time)
    stages = dp.schedule(*run[:3]).num_stages
    fitted = {"F": costs.forward, "I": costs.backward_input, "W": costs.backward_weight, "B": costs.backward}
    for kind, values in fitted.items():
        for stage, value in enumerate(each(values, stages)):
            expected = means.of(kind, stage)
            assert expected is None or value == pytest.approx(expected, **close), (kind, stage)
    for (forward, backward), took in means.pairs.items():
        value = costs.overlap[forward][backward]  # type: ignore[index]
        assert value == pytest.approx(np.mean(took) + means.overhead, **close)
    assert costs.p2p == pytest.approx(means.hop, **close)


@trained
def test_halves_of_a_backward_that_was_never_split(run: Any) -> None:
    """By their share in other stages, or one half each."""
    timeline = timeline_of(*run)
    costs, means = dp.Costs.from_timeline(timeline), Means(timeline)
    stages = dp.schedule(*run[:3]).num_stages
    backwards = [each(x, stages) for x in (costs.backward_input, costs.backward_weight, costs.backward)]
    kinds = {kind for kind, _ in means.lone}
    for stage, (i, w, b) in enumerate(zip(*backwards, strict=True)):
        assert min(i, w, b) > 0
        if "I" not in kinds:
            assert i == pytest.approx(w, rel=1e-9)
            assert i + w == pytest.approx(b + means.overhead, **close)
        if not means.lone["B", stage] and means.lone["I", stage]:
            assert b == pytest.approx(i + w - means.overhead, **close)


@pytest.mark.parametrize("run", [run for run in RUNS if not run[-1]], ids=str)
def test_a_backward_that_never_ran(run: Any) -> None:
    for cpu_time in (False, True):
        costs = dp.Costs.from_timeline(timeline_of(*run), cpu_time=cpu_time)
        assert costs.forward == costs.backward_input == costs.backward_weight
        assert dp.schedule(*run[:3]).simulate(costs).makespan > 0


@runs
def test_fitted_costs_fit_their_schedule(run: Any) -> None:
    schedule = dp.schedule(*run[:3])
    for cpu_time in (False, True):
        costs = dp.Costs.from_timeline(timeline_of(*run), cpu_time=cpu_time)
        assert schedule.simulate(costs, cores=1).makespan > 0
        assert not np.any(costs.optimizer)
        assert (costs.gradient_exchange, costs.first_extra, costs.last_extra) == (0, (0, 0, 0), (0, 0, 0))
        assert eval(repr(costs), {"Costs": dp.Costs}) == costs


def test_a_prediction_is_not_fitted() -> None:
    with pytest.raises(dp.UsageError, match="predicted"):
        dp.Costs.from_timeline(dp.schedule("1f1b", 2, 2).simulate())
    with pytest.raises(TypeError):
        dp.Costs.from_timeline(1)  # type: ignore[arg-type]


# ---- What a measured timeline says -------------------------------------------------------------------------


@runs
def test_waits_of_a_measured_step_add_up(run: Any) -> None:
    timeline = timeline_of(*run)
    waits = timeline.waits
    assert timeline.is_measured
    assert np.all(waits["end"] > waits["start"])
    assert set(waits["cause"].tolist()) <= {"warm_up", "dependency", "hop", "overhead", "cool_down"}
    assert sum(timeline.idle_by_cause.values()) == pytest.approx(timeline.idle, abs=1e-9)
    idle = waits["end"] - waits["start"]
    by_rank = [idle[waits["rank"] == rank].sum() for rank in range(timeline.num_ranks)]
    assert by_rank == pytest.approx(timeline.idle.tolist(), abs=1e-9)
    assert timeline.closing is None


@trained
def test_causes_of_a_measured_step(run: Any) -> None:
    """A dependency lasts until the last maker had ended, a hop until the slot starts."""
    schedule, timeline = dp.schedule(*run[:3]), timeline_of(*run)
    needs, spans = needs_of(schedule), times(timeline)
    for rank, slot, cause, kind, _, _, start, end in timeline.waits.tolist():
        if cause not in ("dependency", "hop", "overhead"):
            continue
        made = max((spans[where][1] for where, _ in needs[rank, slot]), default=-1.0)
        assert end == (min(made, spans[rank, slot][0]) if cause == "dependency" else spans[rank, slot][0])
        assert start >= spans[rank, slot - 1][1]
        assert (kind == "") == (cause == "overhead")
        if cause == "hop":
            assert start == max(made, spans[rank, slot - 1][1])
        if cause == "overhead":
            assert made <= start


@trained
def test_critical_path_of_a_measured_step(run: Any) -> None:
    """It begins with a first slot that waits for no other rank; that rank may have begun late."""
    timeline = timeline_of(*run)
    path, spans = timeline.critical_path(), timeline.spans
    assert len(path) > 0
    assert path["slot"][0] == 0
    assert needs_of(dp.schedule(*run[:3]))[int(path["rank"][0]), 0] == []
    assert path["end"][-1] == spans["end"].max()
    assert np.all(np.diff(path["start"]) >= 0)
    assert np.all((timeline.slack >= 0) & (timeline.slack <= timeline.makespan))
    slack = dict(zip(map(tuple, spans.tolist()), timeline.slack.tolist(), strict=True))
    assert [slack[row] for row in path.tolist()] == pytest.approx([0] * len(path), abs=1e-12)


@runs
def test_what_a_measured_timeline_does_not_know(run: Any) -> None:
    timeline = timeline_of(*run)
    with pytest.raises(dp.UsageError, match="from_timeline"):
        timeline.sensitivity()
    for call in (lambda: timeline.memory(0), timeline.peak_bytes):
        with pytest.raises(dp.UsageError, match="costs="):
            call()
    counts = timeline.peak_bytes(dp.Costs(activation_bytes=1, weight_grad_bytes=1))
    assert np.all(counts >= 1)
    assert np.all(counts <= timeline.peak_activations)


# ---- Ranks that share cores --------------------------------------------------------------------------------


def shared(schedule: dp.Schedule, costs: Keywords, cores: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Slots that run at one time share the cores equally; hops take their time whoever computes."""
    rows, needs = rows_of(schedule), needs_of(schedule)
    at, running, started, done = [0] * len(rows), {}, {}, {}
    now = 0.0

    def comes(rank: int) -> float | None:
        """When the next slot of the rank may start, if that is known."""
        makers = [where for where, _ in needs[rank, at[rank]]]
        if any(where not in done for where in makers):
            return None
        return max([0.0, *(done[where][1] + costs["p2p"] for where in makers)])

    while any(index < len(row) for index, row in zip(at, rows, strict=True)):
        waiting = [r for r, row in enumerate(rows) if r not in running and at[r] < len(row)]
        coming = {r: come for r in waiting if (come := comes(r)) is not None}
        for rank in [r for r, come in coming.items() if come <= now]:
            running[rank] = price(costs, rows[rank][at[rank]], schedule.num_stages)
            started[rank] = now
            del coming[rank]
        speed = min(1.0, cores / len(running)) if running else 1.0
        step = min([*(left / speed for left in running.values()), *(c - now for c in coming.values())])
        finished = [r for r, left in running.items() if left / speed <= step * (1 + 1e-12)]
        later = min([now + step, *coming.values()]) if not finished else now + step
        running = {r: left - step * speed for r, left in running.items()}
        now = later
        for rank in finished:
            del running[rank]
            done[rank, at[rank]] = (started[rank], now)
            at[rank] += 1
    return done


def few_costs(rng: random.Random, schedule: dp.Schedule) -> Keywords:
    costs = random_keywords(rng, schedule, least=1)
    for name in ("gradient_exchange", "optimizer", "p2p_bytes", "p2p_bandwidth"):
        costs.pop(name, None)
    return costs | {"p2p": rng.choice([0.0, eighths(rng)])}


@pytest.mark.parametrize("seed", range(120))
def test_shared_cores_beside_a_slow_simulation(seed: int) -> None:
    rng = random.Random(seed)
    schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SIZES))
    costs, cores = few_costs(rng, schedule), rng.randint(1, 4)
    found = times(schedule.simulate(dp.Costs(**costs), cores=cores))
    expected = shared(schedule, costs, cores)
    assert found.keys() == expected.keys()
    for place, when in expected.items():
        assert found[place] == pytest.approx(when, rel=1e-9, abs=1e-9)


SIZES = [("1f1b", 4, 5), ("zb-v", 3, 4), ("dualpipe", 4, 8), ("dualpipev", 3, 6), ("hanayo", 2, 4)]


@pytest.mark.parametrize("seed", range(40))
def test_as_many_cores_as_ranks_are_enough(seed: int) -> None:
    rng = random.Random(seed)
    schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SIZES))
    costs = dp.Costs(**few_costs(rng, schedule))
    plain = schedule.simulate(costs)
    for cores in (schedule.num_ranks, schedule.num_ranks + 3, 2**31):
        timeline = schedule.simulate(costs, cores=cores)
        assert timeline.spans["start"] == pytest.approx(plain.spans["start"], rel=1e-12, abs=1e-12)
        assert timeline.spans["end"] == pytest.approx(plain.spans["end"], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_no_more_is_computed_than_the_cores_can(seed: int) -> None:
    rng = random.Random(seed)
    schedule = read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SIZES))
    costs = few_costs(rng, schedule)
    work = sum(price(costs, slot, schedule.num_stages) for row in rows_of(schedule) for slot in row)
    plain = schedule.simulate(dp.Costs(**costs)).makespan
    for cores in range(1, schedule.num_ranks + 1):
        makespan = schedule.simulate(dp.Costs(**costs), cores=cores).makespan
        assert makespan >= max(work / cores, plain) * (1 - 1e-12)
        assert makespan <= (work + plain) * (1 + 1e-12)


def test_two_ranks_on_one_core() -> None:
    """1F0 of 3 runs beside 0F1 of 1, both at half speed, then alone."""
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=2 forward_only=true\n0F0 0F1\n1F0 1F1\n"
    schedule = dp.Schedule.from_text(text)
    timeline = schedule.simulate(dp.Costs([1, 3]), cores=1)
    assert times(timeline) == {(0, 0): (0, 1), (0, 1): (1, 3), (1, 0): (1, 5), (1, 1): (5, 8)}
    with_hop = schedule.simulate(dp.Costs([1, 3], p2p=0.5), cores=1)
    assert times(with_hop) == {(0, 0): (0, 1), (0, 1): (1, 2.5), (1, 0): (1.5, 5), (1, 1): (5, 8)}
    assert with_hop.makespan == 8


def test_cores_that_are_none() -> None:
    schedule = dp.schedule("1f1b", 2, 2)
    for cores in (0, -1, 2**70):
        with pytest.raises(dp.UsageError, match="cores"):
            schedule.simulate(cores=cores)
    for other in (1.5, "2"):
        with pytest.raises((TypeError, dp.UsageError)):
            schedule.simulate(cores=other)  # type: ignore[arg-type]
    for p2p in ("rendezvous", "batched", "blocking"):
        with pytest.raises(dp.UsageError, match="cores"):
            dp.schedule("gpipe", 2, 2).simulate(cores=2, p2p=p2p)
