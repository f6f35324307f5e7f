"""dp.analysis: its figures are the simulator's, to the last bit, and the papers' where these have forms."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import python
from families import FAMILIES, sized

import dualpipe_rs as dp
from dualpipe_rs.analysis import BubbleCalculator, CommunicationAnalyzer, ScheduleAnalyzer

METHODS = {
    "dualpipe": "dualpipe_bubble",
    "dualpipev": "dualpipev_bubble",
    "gpipe": "gpipe_bubble",
    "1f1b": "one_f_one_b_bubble",
}
TIMES = {
    "forward_time": 1.5,
    "backward_time": 2.75,
    "weight_time": 1.0,
    "overlap_time": 3.5,
    "comm_time": 0.125,
}
SIZES = [(2, 4), (4, 8), (8, 20), (6, 30)]


def reference(name: str, ranks: int, chunks: int) -> dp.Timeline:
    """The same by hand, from `Schedule.simulate` and the times above."""
    made = dp.schedule(name, ranks, chunks)
    k = made.num_stages // ranks
    costs = dp.Costs(
        forward=1.5 / k, backward_input=1.75 / k, backward_weight=1.0 / k, overlap=3.5 / k, p2p=0.125
    )
    return made.simulate(costs)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_bubbles_are_the_simulators(name: str, sizes: tuple[int, int]) -> None:
    ranks, chunks = sizes
    found = getattr(BubbleCalculator(ranks, **TIMES), METHODS[name])(chunks)
    timeline = reference(name, ranks, chunks)
    assert found["makespan"] == timeline.makespan
    assert found["bubble_ratio"] == timeline.bubble_ratio
    assert found["bubble_over_ideal"] == timeline.bubble_over_ideal
    assert found["busy_by_rank"] == timeline.busy.tolist()
    assert found["idle_by_rank"] == timeline.idle.tolist()
    assert found["ideal"] == pytest.approx(timeline.busy.mean(), rel=1e-15)
    assert found["ideal"] + found["idle"] == pytest.approx(timeline.makespan, rel=1e-15)
    assert (found["strategy"], found["num_ranks"], found["num_chunks"]) == (name, ranks, chunks)
    assert json.loads(json.dumps(found)) == found  # plain numbers, no numpy


@pytest.mark.parametrize("p", range(1, 9))
@pytest.mark.parametrize("m", [1, 4, 16, 37])
def test_the_published_bubbles_of_gpipe_and_1f1b(p: int, m: int) -> None:
    calculator = BubbleCalculator(num_ranks=p)
    for found in (calculator.gpipe_bubble(m), calculator.one_f_one_b_bubble(num_chunks=m)):
        assert found["makespan"] == 3 * (m + p - 1)
        assert found["bubble_ratio"] == pytest.approx((p - 1) / (m + p - 1), rel=1e-14)
        assert found["bubble_over_ideal"] == pytest.approx((p - 1) / m, rel=1e-14)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (8, 20), (16, 40)])
@pytest.mark.parametrize("fused", [3.0, 2.5, 2.0])
def test_deepseeks_bubble_of_dualpipe(p: int, m: int, fused: float) -> None:
    """(p/2 - 1)(FB + B - 3W) idles the most idle rank, at F = I = W = 1; DualPipeV: p - 1."""
    calculator = BubbleCalculator(p, overlap_time=fused)
    assert max(calculator.dualpipe_bubble(m)["idle_by_rank"]) == (p / 2 - 1) * (fused + 2 - 3)
    assert max(calculator.dualpipev_bubble(m)["idle_by_rank"]) == (p - 1) * (fused + 2 - 3) / 2


@pytest.mark.parametrize("name", FAMILIES)
def test_any_schedule_by_its_name(name: str) -> None:
    order = sized(name, 4, 8)
    ranks, chunks = order.num_ranks, order.num_microbatches
    for spelt in (name, name.upper(), name.replace("-", "_")):
        found = BubbleCalculator(ranks, **TIMES).bubble(spelt, chunks)
        assert found["makespan"] == reference(name, ranks, chunks).makespan
    [row] = dp.compare([name], ranks, chunks)
    assert BubbleCalculator(ranks).bubble(name, chunks)["peak_activations"] == row["peak_activations"]


def test_costs_may_be_given_instead_of_times() -> None:
    costs = dp.Costs(forward=1.0, backward_input=2.0, backward_weight=0.5, p2p=0.25)
    given = BubbleCalculator(4, costs=costs).gpipe_bubble(8)
    assert given == BubbleCalculator(4, backward_time=2.5, weight_time=0.5, comm_time=0.25).gpipe_bubble(8)


def test_they_need_no_torch_and_are_imported_when_they_are_asked_for() -> None:
    code = """
import sys
sys.modules["torch"] = None
import dualpipe_rs as dp
loaded = {"dualpipe_rs.analysis", "dualpipe_rs.simulator", "numpy"} & set(sys.modules)
assert not loaded, loaded
print(dp.analysis.BubbleCalculator(4).gpipe_bubble(8)["makespan"])
print(dp.simulator.ScheduleComparator(4, 8).generate_report().splitlines()[0])
"""
    answer = python(code)
    assert answer.stdout == "33.0\n4 ranks, 8 chunks, best first\n", answer.stderr


# ---- ScheduleAnalyzer --------------------------------------------------------------------------------------


def test_an_analyzer_has_the_timeline_itself() -> None:
    analyzer = ScheduleAnalyzer(4, 8, **TIMES)
    for name in METHODS:
        timeline = reference(name, 4, 8)
        assert analyzer.schedule(name) == dp.schedule(name, 4, 8)
        assert np.array_equal(analyzer.timeline(name).spans, timeline.spans)
        assert analyzer.bubble_ratio(name) == timeline.bubble_ratio
        causes = analyzer.analyze(name).pop("idle_by_cause")
        assert causes == {cause: idle.tolist() for cause, idle in timeline.idle_by_cause.items()}
        assert analyzer.analyze(name)["makespan"] == timeline.makespan


def test_two_chunks_a_rank_by_default() -> None:
    assert ScheduleAnalyzer(6).analyze() == ScheduleAnalyzer(6, 12).analyze()


def test_ratios_are_sorted_and_leave_out_what_there_is_not() -> None:
    ratios = ScheduleAnalyzer(4, 8).bubble_ratios()
    assert list(ratios) == ["dualpipe", "dualpipev", "1f1b", "gpipe"]
    assert list(ratios.values()) == sorted(ratios.values())
    assert ratios["dualpipe"] == reference_at_one("dualpipe", 4, 8).bubble_ratio
    assert list(ScheduleAnalyzer(5, 8).bubble_ratios()) == ["1f1b", "gpipe"]
    assert list(ScheduleAnalyzer(4, 8).bubble_ratios("zb_h1")) == ["zb-h1"]


def reference_at_one(name: str, ranks: int, chunks: int) -> dp.Timeline:
    return dp.schedule(name, ranks, chunks).simulate(dp.Costs())


def test_the_fewest_chunks_that_are_enough() -> None:
    analyzer = ScheduleAnalyzer(4, 8)
    assert analyzer.find_optimal_chunks("gpipe", 0.1) == 27  # 3 / (m + 3) <= 0.1
    assert analyzer.find_optimal_chunks("1f1b", target_bubble_ratio=0.25) == 9
    assert analyzer.find_optimal_chunks("gpipe", 0.1, max_chunks=26) is None
    least = analyzer.find_optimal_chunks("dualpipe", 0.07)
    assert least == 10
    assert reference_at_one("dualpipe", 4, 10).bubble_ratio <= 0.07
    assert reference_at_one("dualpipe", 4, 8).bubble_ratio > 0.07
    with pytest.raises(dp.SizeError, match="at least twice the ranks"):
        analyzer.find_optimal_chunks("dualpipe", max_chunks=7)


# ---- CommunicationAnalyzer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_what_travels_is_counted(name: str) -> None:
    found = CommunicationAnalyzer(4, 8, tensor_bytes=1000).analyze(name)
    order = dp.schedule(name, 4, 8)
    edges: dict[tuple[int, int], int] = {}
    for microbatch in range(8):
        path = [order.rank_of(stage, microbatch) for stage in range(order.num_stages)]
        for a, b in pairwise(path):
            for edge in ((a, b), (b, a)) if a != b else ():
                edges[edge] = edges.get(edge, 0) + 1
    operations, volume = found["operations"], found["volume"]
    assert operations["by_edge"] == edges
    assert operations["total"] == sum(edges.values())
    assert operations["sent_by_rank"] == [sum(n for (a, _), n in edges.items() if a == r) for r in range(4)]
    assert operations["received_by_rank"] == [
        sum(n for (_, b), n in edges.items() if b == r) for r in range(4)
    ]
    assert volume["total"] == 1000 * operations["total"]
    assert volume["by_edge"] == {edge: 1000 * count for edge, count in edges.items()}
    assert volume["sent_by_rank"] == [1000 * count for count in operations["sent_by_rank"]]
    average = 1000 * max(edges.values()) / reference_by_rank(order).makespan
    assert found["bandwidth"]["average"] == average


def reference_by_rank(order: dp.Schedule) -> dp.Timeline:
    return order.simulate(dp.Costs().cut(order.num_stages // order.num_ranks))


@pytest.mark.parametrize("name", METHODS)
def test_with_the_bandwidth_needed_the_step_is_just_as_long_as_it_may_be(name: str) -> None:
    needed = CommunicationAnalyzer(4, 8, 1000).required_bandwidth(name, tolerance=0.05)
    order = dp.schedule(name, 4, 8)
    costs = dp.Costs().cut(order.num_stages // order.num_ranks)
    limit = 1.05 * order.simulate(costs).makespan
    exact = order.simulate(costs.replace(p2p_bytes=1000.0, p2p_bandwidth=needed["needed"])).makespan
    assert exact == pytest.approx(limit, rel=1e-9)
    assert needed["longest_hop"] == pytest.approx(1000 / needed["needed"])
    slower = costs.replace(p2p_bytes=1000.0, p2p_bandwidth=0.999 * needed["needed"])
    assert order.simulate(slower).makespan > limit


def test_bandwidths_at_the_ends() -> None:
    assert CommunicationAnalyzer(4, 8).required_bandwidth()["needed"] == 0.0  # nothing to carry
    alone = CommunicationAnalyzer(1, 8, 10).required_bandwidth("gpipe")
    assert (alone["average"], alone["needed"], alone["longest_hop"]) == (0.0, 0.0, float("inf"))
    none_allowed = CommunicationAnalyzer(4, 8, 10).required_bandwidth("gpipe", tolerance=0)
    assert none_allowed["needed"] == float("inf")


# ---- What is refused ---------------------------------------------------------------------------------------

NONE = float("nan")


@pytest.mark.parametrize("value", [True, "4", 0, -3, 4.0, None, NONE, [4], pytest.param(10**5000, id="long")])
def test_counts_that_are_none(value: Any) -> None:
    calculator = BubbleCalculator(4)
    with pytest.raises(dp.UsageError, match="it is a whole number"):
        BubbleCalculator(value).gpipe_bubble(8)
    for name in METHODS.values():
        with pytest.raises(dp.UsageError, match="it is a whole number"):
            getattr(calculator, name)(value)
    for made in (ScheduleAnalyzer, CommunicationAnalyzer):
        with pytest.raises(dp.UsageError, match="it is a whole number"):
            made(value, 8)
        if value is not None:  # which is two a rank
            with pytest.raises(dp.UsageError, match="it is a whole number"):
                made(4, value)


@pytest.mark.parametrize("value", [True, "1", -1, None, NONE, float("inf"), [1.0], 10**400])
@pytest.mark.parametrize("name", ["forward_time", "backward_time", "comm_time"])
def test_times_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(dp.UsageError, match=f"{name} is .*; it is a finite number that is not negative"):
        BubbleCalculator(4, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backward_time": 1, "weight_time": 2}, "weight_time is 2, more than the backward_time 1"),
        ({"foward_time": 1}, "there is no foward_time=; what can be given is costs, forward_time"),
        ({"costs": 3}, "costs is of type int"),
        ({"costs": dp.Costs(), "comm_time": 1.0}, "comm_time was given beside them"),
    ],
)
def test_times_that_do_not_go_together(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(dp.UsageError, match=words):
        ScheduleAnalyzer(4, 8, **arguments)


def test_sizes_and_names_that_there_are_not() -> None:
    calculator = BubbleCalculator(4)
    for chunks in (6, 9):
        with pytest.raises(dp.SizeError, match="nearest legal size"):
            calculator.dualpipe_bubble(chunks)
    with pytest.raises(dp.SizeError, match="even number of ranks"):
        BubbleCalculator(3).dualpipe_bubble(8)
    with pytest.raises(dp.UsageError, match="no strategy named 'nope'; the names are"):
        calculator.bubble("nope", 8)
    with pytest.raises(dp.UsageError, match="the name of a schedule"):
        calculator.bubble(3, 8)  # type: ignore[arg-type]
    with pytest.raises(dp.UsageError, match=r"max_chunks is .* from 1 to 4096"):
        ScheduleAnalyzer(4, 8).find_optimal_chunks(max_chunks=10**9)
    with pytest.raises(dp.UsageError, match="target_bubble_ratio is nan"):
        ScheduleAnalyzer(4, 8).find_optimal_chunks(target_bubble_ratio=NONE)
    with pytest.raises(dp.UsageError, match="tensor_bytes is -1"):
        CommunicationAnalyzer(4, 8, -1)
