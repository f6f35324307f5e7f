"""dp.simulator: events are the timeline's spans, reports are sorted, searches find what there is."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from families import FAMILIES, sized

import dualpipe_rs as dp
from dualpipe_rs.simulator import ConfigOptimizer, PipelineEvent, ScheduleComparator, ScheduleSimulator

METHODS = {
    "dualpipe": "simulate_dualpipe",
    "dualpipev": "simulate_dualpipev",
    "gpipe": "simulate_gpipe",
    "1f1b": "simulate_1f1b",
}
KINDS = {"F": "forward", "B": "backward", "I": "backward", "W": "weight"}
NONE = float("nan")


def computed(events: list[PipelineEvent]) -> list[PipelineEvent]:
    return [event for event in events if event.kind != "communication"]


def sent(events: list[PipelineEvent]) -> list[PipelineEvent]:
    return [event for event in events if event.kind == "communication"]


@pytest.mark.parametrize("name", FAMILIES)
def test_events_are_the_spans(name: str) -> None:
    order = sized(name, 4, 8)
    simulator = ScheduleSimulator(order.num_ranks, order.num_microbatches, comm_time=0.5)
    step = simulator.simulate(name)
    k = order.num_stages // order.num_ranks
    timeline = order.simulate(dp.Costs(p2p=0.5).cut(k))
    spans = sorted(
        (rank, slot, f"{stage}{kind}{microbatch}", KINDS[kind], start, end)
        for rank, slot, kind, stage, microbatch, start, end in timeline.spans.tolist()
    )
    ours = sorted((e.rank, e.slot, e.action, e.kind, e.start, e.end) for e in computed(list(step)))
    assert ours == spans
    assert all(e.action == f"{e.stage}{re.sub('[0-9]', '', e.action)}{e.microbatch}" for e in step)
    assert (step.makespan, step.bubble_ratio) == (timeline.makespan, timeline.bubble_ratio)
    assert step.schedule == order


@pytest.mark.parametrize("name", FAMILIES)
def test_what_travels_is_an_event(name: str) -> None:
    """As many as travel, each as long as a hop, and none later than what is computed from it."""
    order = sized(name, 4, 8)
    step = ScheduleSimulator(order.num_ranks, order.num_microbatches, comm_time=0.5).simulate(name)
    counted = order.p2p_tensors() * 0
    done = {(e.action): e for e in computed(step.events)}
    for event in sent(step.events):
        assert event.to_rank is not None
        counted[event.rank, event.to_rank] += 1
        made = done[event.action]
        assert (event.start, event.rank, event.slot) == (made.end, made.rank, made.slot)
        assert event.duration == pytest.approx(0.5)
        kinds, stage = ("F", event.stage + 1) if "F" in event.action else ("BI", event.stage - 1)
        takers = [done[word] for kind in kinds if (word := f"{stage}{kind}{event.microbatch}") in done]
        assert [taker.rank for taker in takers] == [event.to_rank]
        assert takers[0].start >= event.end
    assert (counted == order.p2p_tensors()).all()


def test_hops_are_those_of_the_costs() -> None:
    latency = [[0.0, 0.25], [0.5, 0.0]]
    costs = dp.Costs(p2p=latency, p2p_bytes=100.0, p2p_bandwidth=[[1.0, 50.0], [200.0, 1.0]])
    step = ScheduleSimulator(2, 4, costs=costs).simulate_1f1b()
    durations = {(e.rank, e.to_rank): e.duration for e in sent(step.events)}
    assert durations == {(0, 1): pytest.approx(2.25), (1, 0): pytest.approx(1.0)}
    first = next(e for e in step if e.rank == 1 and e.kind == "forward")
    assert first.start == pytest.approx(1.0 + 2.25)  # so the simulator itself prices them alike


@pytest.mark.parametrize("name", METHODS)
def test_a_method_for_each_strategy_and_events_in_order(name: str) -> None:
    simulator = ScheduleSimulator(num_ranks=4, num_chunks=8)
    step = getattr(simulator, METHODS[name])()
    assert step.strategy == name
    assert list(step) == simulator.simulate(name).events
    assert len(step) == len(step.events)
    assert [(e.start, e.rank) for e in step] == sorted((e.start, e.rank) for e in step)
    assert step[0].start == 0
    assert step[:2] == step.events[:2]
    assert step.events_of(1) == [e for e in step if e.rank == 1]
    assert repr(step) == f"<SimulatedStep {name}: makespan {step.makespan:g}, {len(step)} events>"
    busy = [
        sum(e.duration for e in {(e.slot): e for e in computed(step.events_of(r))}.values()) for r in range(4)
    ]
    assert busy == pytest.approx(step.timeline.busy.tolist())


def test_an_event_is_a_dataclass() -> None:
    event = PipelineEvent("forward", 1, 1, 0, 1.0, 2.5, "1F0", 0)
    assert event.duration == 1.5
    assert dataclasses.asdict(event)["to_rank"] is None
    assert hash(event) == hash(dataclasses.replace(event))


# ---- ScheduleComparator ------------------------------------------------------------------------------------


def test_the_true_makespans_of_the_examples_in_circulation() -> None:
    found = ScheduleComparator(4, 8).compare_strategies()
    assert {name: row["makespan"] for name, row in found.items()} == {
        "dualpipe": 26.0,
        "dualpipev": 27.0,
        "1f1b": 33.0,
        "gpipe": 33.0,
    }
    assert [row["memory_factor"] for row in found.values()] == [2, 1, 1, 1]
    assert [row["peak_activations"] for row in found.values()] == [5, 4.5, 4, 8]
    assert [row["speedup"] for row in found.values()] == [33 / 26, 33 / 27, 1, 1]


@pytest.mark.parametrize("times", [{}, {"comm_time": 3.0}, {"weight_time": 0.0, "overlap_time": 2.0}])
def test_strategies_are_sorted_and_are_compares(times: dict[str, float]) -> None:
    names = [name for name in FAMILIES if name != "chimera"]
    comparator = ScheduleComparator(4, 8, strategies=names, **times)
    found = comparator.compare_strategies()
    makespans = [row["makespan"] for row in found.values()]
    assert makespans == sorted(makespans)
    assert len(found) == len(names)
    for row in dp.compare(names, 4, 8, comparator.costs):
        ours = found[row["schedule"]]
        assert ours["memory_factor"] == row["parameters"]
        for figure in ("makespan", "bubble_ratio", "peak_activations", "p2p_tensors"):
            assert ours[figure] == row[figure]


def test_what_there_is_not_at_these_sizes_is_left_out_and_said() -> None:
    comparator = ScheduleComparator(5, 8)
    assert list(comparator.compare_strategies()) == ["1f1b", "gpipe"]
    assert list(comparator.notes) == ["dualpipe", "dualpipev"]
    assert "even number of ranks" in comparator.notes["dualpipe"]
    report = comparator.generate_report()
    assert "left out: dualpipev: dualpipev takes at least" in report
    none = ScheduleComparator(5, 8, "dualpipe")
    assert none.compare_strategies() == {}
    assert none.generate_report().splitlines()[-1].startswith("left out: dualpipe")


def test_the_report_is_a_table_best_first() -> None:
    lines = ScheduleComparator(4, 8).generate_report().splitlines()
    assert lines[0] == "4 ranks, 8 chunks, best first"
    assert lines[1].split("  ")[0] == "strategy"
    assert [line.split()[:4] for line in lines[2:]] == [
        ["dualpipe", "26", "7.69%", "2x"],
        ["dualpipev", "27", "11.11%", "1x"],
        ["1f1b", "33", "27.27%", "1x"],
        ["gpipe", "33", "27.27%", "1x"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1


# ---- ConfigOptimizer ---------------------------------------------------------------------------------------


def makespan_of(name: str, chunks: int, overhead: float) -> float:
    """One of `chunks` parts of what 8 chunks of F = 1 and B = 2 are, by hand."""
    order = dp.schedule(name, 4, chunks)
    k = order.num_stages // 4
    part = 8 / chunks / k
    one = part + overhead
    return order.simulate(dp.Costs(one, one, one, p2p=0.25)).makespan


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("overhead", [0.0, 0.05])
def test_the_count_of_chunks_that_is_best(name: str, overhead: float) -> None:
    found = ConfigOptimizer(4, 8, comm_time=0.25).find_optimal_chunks(name, 24, overhead)
    legal = [m for m in range(1, 25) if FAMILIES[name].is_legal(4, m)]
    by_hand = {m: makespan_of(name, m, overhead) for m in legal}
    assert sorted(c["num_chunks"] for c in found["candidates"]) == legal
    assert {c["num_chunks"]: c["makespan"] for c in found["candidates"]} == pytest.approx(by_hand, rel=1e-12)
    assert found["makespan"] == min(c["makespan"] for c in found["candidates"])
    assert found["num_chunks"] == found["candidates"][0]["num_chunks"]
    assert found["strategy"] == name
    makespans = [c["makespan"] for c in found["candidates"]]
    assert makespans == sorted(makespans)


def test_a_fused_pair_takes_the_overhead_of_all_that_is_in_it() -> None:
    optimizer = ConfigOptimizer(4, 8, overlap_time=2.5)
    [sixteen] = [
        c for c in optimizer.find_optimal_chunks("dualpipe", 16, 0.25)["candidates"] if c["num_chunks"] == 16
    ]
    costs = dp.Costs(0.75, 0.75, 0.75, overlap=2.0)  # halves, and a quarter for each of F, I and W
    assert sixteen["makespan"] == dp.schedule("dualpipe", 4, 16).simulate(costs).makespan


def test_with_no_overhead_and_no_hops_the_most_chunks_are_best() -> None:
    assert ConfigOptimizer(4, 8).find_optimal_chunks("gpipe")["num_chunks"] == 32
    assert ConfigOptimizer(4, 8).find_optimal_chunks("gpipe", 3, overhead=100)["num_chunks"] == 1


def test_costs_of_every_kind_are_cut_into_chunks() -> None:
    costs = dp.Costs(
        forward=[1.0, 2.0], backward=3.0, overlap=[[3.0, 4.0]] * 2, last_extra=(1, 1, 1), p2p_bytes=8.0
    )
    found = ConfigOptimizer(2, 4, costs=costs.replace(p2p_bandwidth=16.0)).find_optimal_chunks("1f1b", 8, 0.5)
    cut = dp.Costs(
        forward=[1.0, 1.5],
        backward=2.5,
        overlap=[[3.0, 3.5]] * 2,
        last_extra=(0.5, 0.5, 0.5),
        p2p_bytes=4.0,
        p2p_bandwidth=16.0,
    )
    [eight] = [c for c in found["candidates"] if c["num_chunks"] == 8]
    assert eight["makespan"] == dp.schedule("1f1b", 2, 8).simulate(cut).makespan


def test_sensitivity_is_the_timelines() -> None:
    costs = dp.Costs(1.0, 1.0, 1.0, p2p=0.25)
    for name in ("dualpipe", "1f1b"):
        expected = dp.schedule(name, 4, 8).simulate(costs).sensitivity(2.0)
        assert ConfigOptimizer(4, 8, comm_time=0.25).sensitivity(name, percent=2.0) == expected


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.5])
def test_the_longest_hop_that_a_step_bears(name: str, tolerance: float) -> None:
    hop = ConfigOptimizer(4, 8, comm_time=9.0).communication_threshold(name, tolerance)
    order = dp.schedule(name, 4, 8)
    costs = dp.Costs().cut(order.num_stages // 4)
    limit = (1 + tolerance) * order.simulate(costs).makespan
    assert order.simulate(costs.replace(p2p=hop)).makespan <= limit
    assert order.simulate(costs.replace(p2p=hop * (1 + 1e-9))).makespan > limit
    if name == "gpipe":  # (m + p - 1)(F + B) + 2c(p - 1)
        assert hop == pytest.approx(33 * tolerance / 6, rel=1e-10)


def test_thresholds_at_the_ends() -> None:
    assert ConfigOptimizer(4).communication_threshold() == ConfigOptimizer(4, 8).communication_threshold()
    assert ConfigOptimizer(4, 8).communication_threshold("gpipe", 0) == 0.0
    assert ConfigOptimizer(1, 8).communication_threshold("gpipe") == float("inf")
    assert ConfigOptimizer(4, 8, forward_time=0, backward_time=0).communication_threshold() == 0.0


# ---- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, "4", 0, -3, 4.0, None, NONE, pytest.param(10**5000, id="long")])
def test_counts_that_are_none(value: Any) -> None:
    for made in (ScheduleSimulator, ScheduleComparator, ConfigOptimizer):
        for sizes in ((value, 8), (4, value if value is not None else 1.5)):
            with pytest.raises(dp.UsageError, match="it is a whole number"):
                made(*sizes)
    with pytest.raises(dp.UsageError, match="it is a whole number"):
        ScheduleSimulator(4, 8).simulate_gpipe().events_of(-1 if value == 0 else value)


def test_other_things_that_are_refused() -> None:
    for made in (ScheduleSimulator, ScheduleComparator, ConfigOptimizer):
        with pytest.raises(dp.UsageError, match="forward_time is nan"):
            made(4, 8, forward_time=NONE)
        with pytest.raises(dp.UsageError, match="there is no speed="):
            made(4, 8, speed=1)
    with pytest.raises(dp.SizeError, match="nearest legal size"):
        ScheduleSimulator(3, 8).simulate_dualpipe()
    with pytest.raises(dp.SizeError, match="nearest legal size"):
        ConfigOptimizer(4, 7).communication_threshold()
    with pytest.raises(dp.UsageError, match="no strategy named 'nope'"):
        ScheduleComparator(4, 8, ["nope"])
    for arguments in ({"overhead": -1.0}, {"overhead": NONE}, {"max_chunks": 0}, {"max_chunks": "9"}):
        with pytest.raises(dp.UsageError, match=next(iter(arguments))):
            ConfigOptimizer(4, 8).find_optimal_chunks("1f1b", **arguments)  # type: ignore[arg-type]
    with pytest.raises(dp.UsageError, match="tolerance is '1'"):
        ConfigOptimizer(4, 8).communication_threshold(tolerance="1")  # type: ignore[arg-type]
    with pytest.raises(dp.UsageError, match="percent is nan"):
        ConfigOptimizer(4, 8).sensitivity(percent=NONE)
