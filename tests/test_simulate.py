"""The simulator: every time beside the oracle's, the published figures, bounds that no order can beat, and
the costs that are none.

Costs are integers or eighths, of which sums of floats are exact; so times are compared for equality.
"""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
from conftest import Shape, legal_sizes, numbered, python, read, rows_of, shape_of, text_of
from oracle import Rows, place, simulate

import dualpipe_rs as dp

SIZES = legal_sizes(7, 20)


def run(family: str, p: int, m: int, **costs: Any) -> dp.Timeline:
    return dp.schedule(family, p, m).simulate(dp.Costs(**costs))


def uniform(f: float, i: float, w: float) -> dict[str, float]:
    return {"forward": f, "backward_input": i, "backward_weight": w}


# ---- Beside the oracle -------------------------------------------------------------------------------------


def random_costs(rng: random.Random, stages: int, least: int = 0) -> dict[str, Any]:
    """As the oracle takes them."""

    def each() -> list[float]:
        return [rng.randint(least, 40) / 8 for _ in range(stages)]

    return {
        "F": each(),
        "I": each(),
        "W": each(),
        "B": each() if rng.random() < 0.4 else None,
        "pair": rng.randint(least, 80) / 8 if rng.random() < 0.6 else None,
        "hop": rng.choice([0, 0, rng.randint(0, 24) / 8]),
    }


def as_costs(costs: dict[str, Any]) -> dp.Costs:
    return dp.Costs(
        forward=costs["F"],
        backward_input=costs["I"],
        backward_weight=costs["W"],
        backward=costs["B"],
        overlap=costs["pair"],
        p2p=costs["hop"],
    )


def check(schedule: dp.Schedule, costs: dict[str, Any]) -> None:
    """All that a timeline says, against the oracle and the bounds."""
    rows, shape = rows_of(schedule), shape_of(schedule)
    timeline, expected = schedule.simulate(as_costs(costs)), simulate(rows, *shape, costs)
    assert spans_of(timeline) == expected["spans"]
    assert timeline.makespan == expected["makespan"]
    assert timeline.span == expected["span"]
    assert timeline.busy.tolist() == expected["busy"]
    assert timeline.idle.tolist() == expected["idle"]
    assert timeline.bubble_ratio == pytest.approx(expected["bubble_ratio"], rel=1e-12, abs=1e-15)
    if min(min(costs[kind]) for kind in "FIW") > 0 and min(costs["B"] or [1]) > 0 and costs["pair"] != 0:
        assert timeline.peak_activations.tolist() == expected["peak"]
    check_bounds(rows, shape, expected["spans"], costs["hop"], timeline)


def spans_of(timeline: dp.Timeline) -> dict[tuple[int, int], tuple[float, float]]:
    spans: dict[tuple[int, int], tuple[float, float]] = {}
    for rank, slot, _, _, _, start, end in timeline.spans.tolist():
        assert spans.setdefault((rank, slot), (start, end)) == (start, end)
    return spans


def check_bounds(
    rows: Rows, shape: Shape, spans: dict[Any, tuple[float, float]], hop: float, timeline: dp.Timeline
) -> None:
    """No rank ends before its work, nor before a microbatch's way there and back; somewhere there is work."""
    assert timeline.makespan >= timeline.busy.max()
    assert timeline.makespan >= timeline.span
    rank_of = place(*shape)
    took = {
        action: spans[rank, index][1] - spans[rank, index][0]
        for rank, row in enumerate(rows)
        for index, slot in enumerate(row)
        for action in slot
    }
    stages = range(shape.stages)
    for m in range(shape.microbatches):
        hops = sum(rank_of(s, m) != rank_of(s + 1, m) for s in stages[:-1])
        backward = [took.get((s, "B", m), took.get((s, "I", m), 0)) for s in stages]
        way = sum(took[s, "F", m] + backward[s] for s in stages) + took.get((0, "W", m), 0) + 2 * hops * hop
        assert timeline.makespan >= way
    hops = sum(rank_of(s, m) != rank_of(s + 1, m) for s in stages[:-1] for m in range(shape.microbatches))
    assert timeline.makespan <= timeline.busy.sum() + 2 * hops * hop


@pytest.mark.parametrize("seed", range(250))
def test_families(seed: int) -> None:
    rng = random.Random(seed)
    family, p, m = rng.choice(SIZES)
    schedule = dp.schedule(family, p, m)
    check(schedule, random_costs(rng, schedule.num_stages, least=seed % 3))


@pytest.mark.parametrize("seed", range(250))
def test_random_orders(seed: int) -> None:
    rng = random.Random(seed)
    rows, shape = numbered(seed)
    check(read(rows, shape), random_costs(rng, shape.stages, least=seed % 3))


@pytest.mark.parametrize("seed", range(40))
def test_costs_that_are_not_dyadic(seed: int) -> None:
    rng = random.Random(seed)
    rows, shape = numbered(seed)
    costs = {kind: [rng.uniform(0, 3) for _ in range(shape.stages)] for kind in "FIW"}
    costs |= {"pair": rng.uniform(0, 5), "hop": rng.uniform(0, 2), "B": None}
    timeline, expected = read(rows, shape).simulate(as_costs(costs)), simulate(rows, *shape, costs)
    assert timeline.makespan == pytest.approx(expected["makespan"], rel=1e-12)
    for where, times in spans_of(timeline).items():
        assert times == pytest.approx(expected["spans"][where], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_forward_only(seed: int) -> None:
    rng = random.Random(seed)
    rows, shape = numbered(seed)
    forwards: Rows = [[[a] for slot in row for a in slot if a[1] == "F"] for row in rows]
    costs = random_costs(rng, shape.stages, least=1)
    timeline = read(rows, shape).forward_only().simulate(as_costs(costs))
    expected = simulate(forwards, *shape, costs, forward_only=True)
    assert spans_of(timeline) == expected["spans"]
    assert timeline.peak_activations.tolist() == expected["peak"] == [1] * shape.ranks


def test_the_same_spans_again() -> None:
    costs = random_costs(random.Random(1), 8)
    for schedule in (dp.schedule("dualpipe", 8, 20), dp.schedule("dualpipev", 4, 11)):
        first, again = schedule.simulate(as_costs(costs)), schedule.simulate(as_costs(costs))
        fresh = pickle.loads(pickle.dumps(schedule)).simulate(as_costs(costs))
        assert np.array_equal(first.spans, again.spans)
        assert np.array_equal(first.spans, fresh.spans)


def test_the_same_bytes_again() -> None:
    """The padding within a record too."""
    schedule = dp.schedule("dualpipe", 8, 20)
    assert len({schedule.simulate().spans.tobytes() for _ in range(50)}) == 1


def test_scalars_are_arrays_of_one_value() -> None:
    schedule = dp.schedule("dualpipev", 3, 7)
    scalar = schedule.simulate(dp.Costs(2.0, 1.5, 0.5, backward=1.75))
    arrays = schedule.simulate(dp.Costs([2.0] * 6, (1.5,) * 6, np.full(6, 0.5), backward=np.full(6, 1.75)))
    assert np.array_equal(scalar.spans, arrays.spans)


def test_defaults() -> None:
    """Every action one unit, B = I + W, a pair F + B, no hop."""
    schedule = dp.schedule("dualpipe", 4, 10)
    given = dp.Costs(forward=1, backward_input=1, backward_weight=1, backward=2, overlap=3, p2p=0)
    assert np.array_equal(schedule.simulate().spans, schedule.simulate(given).spans)
    assert np.array_equal(schedule.simulate(dp.Costs()).spans, schedule.simulate(given).spans)


# ---- Small cases by hand -----------------------------------------------------------------------------------


def simulated(rows: str, placement: str, p: int, stages: int, m: int, **costs: Any) -> dp.Timeline:
    header = f"# name=hand placement={placement} ranks={p} stages={stages} microbatches={m}\n"
    return dp.Schedule.from_text(header + rows).simulate(dp.Costs(**costs))


def test_by_hand() -> None:
    """Two ranks, one microbatch, costs by stage, a hop of 10."""
    costs = {"forward": [1, 2], "backward_input": [3, 4], "backward_weight": [5, 6], "p2p": 10}
    t = simulated("0F0 0I0 0W0\n1F0 1B0", "linear", 2, 2, 1, **costs)
    assert spans_of(t) == {
        (0, 0): (0, 1),
        (1, 0): (11, 13),
        (1, 1): (13, 23),
        (0, 1): (33, 36),
        (0, 2): (36, 41),
    }
    assert (t.makespan, t.span) == (41, 41)
    assert (t.busy.tolist(), t.idle.tolist()) == ([9, 12], [32, 29])
    assert t.bubble_ratio == pytest.approx(1 - 21 / 82, rel=1e-12)


def test_a_hop_to_itself_is_none() -> None:
    """At the fold of a V both stages are on one rank."""
    t = simulated("0F0 1F0 1B0 0B0", "v", 1, 2, 1, p2p=100)
    assert t.makespan == 6


def test_a_w_waits_for_no_hop() -> None:
    t = simulated("0F0 0I0 0W0\n1F0 1I0 1W0", "linear", 2, 2, 1, p2p=10)
    assert spans_of(t)[1, 2] == (13, 14)
    assert spans_of(t)[0, 1] == (23, 24)


def test_a_gradient_leaves_after_i() -> None:
    """The stage before does not wait for the W."""
    split = simulated("0F0 0B0\n1F0 1I0 1W0", "linear", 2, 2, 1, backward_weight=5)
    whole = simulated("0F0 0B0\n1F0 1B0", "linear", 2, 2, 1, backward_weight=5)
    assert (spans_of(split)[0, 1], spans_of(whole)[0, 1]) == ((3, 9), (8, 14))


def test_both_actions_of_a_pair_end_together() -> None:
    """Rank 1's forward waits for the whole pair on rank 0, not for the forward in it."""
    t = simulated("0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1B0 1F1 1B1 1F2 1B2", "linear", 2, 2, 3, overlap=5)
    assert spans_of(t)[0, 2] == (4, 9)
    assert spans_of(t)[1, 4] == (9, 10)


def test_a_pair_without_a_price_of_its_own_costs_both() -> None:
    """The forward of its stage and the backward of the other's."""
    costs = {"forward": [1, 2], "backward_input": [4, 8], "backward_weight": [16, 32]}
    rows = "0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0B1"
    assert spans_of(simulated(rows, "v", 1, 2, 2, **costs))[0, 4] == (44, 66)
    assert spans_of(simulated(rows, "v", 1, 2, 2, backward=[7, 9], **costs))[0, 4] == (13, 22)


@pytest.mark.parametrize(
    ("row", "peak"),
    [
        ("0F0 0I0 0W0 0F1 0B1", 1),
        ("0F0 0I0 0F1 0I1 0W0 0W1", 2),
        ("0F0 0I0 0F1 0W0 0I1 0W1", 2),
        ("0F0 (0F1;0B0) 0B1", 2),
        ("0F0 0F1 0B0 0B1", 2),
    ],
)
def test_a_microbatch_is_held_until_its_last_backward(row: str, peak: int) -> None:
    assert simulated(row, "linear", 1, 1, 2).peak_activations.tolist() == [peak]


def test_what_is_held_is_counted_by_stage_and_microbatch() -> None:
    assert simulated("0F0 1F0 1I0 1W0 0B0", "v", 1, 2, 1).peak_activations.tolist() == [2]


def test_nothing_takes_time() -> None:
    t = run("1f1b", 2, 2, **uniform(0, 0, 0))
    assert (t.makespan, t.bubble_ratio, t.idle.tolist()) == (0, 0, [0, 0])


# ---- Published figures and formulas ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpipe", "1f1b"])
def test_gpipe_and_1f1b(family: str) -> None:
    for _, p, m in [size for size in legal_sizes(12, 48) if size[0] == family]:
        t = run(family, p, m, **uniform(5, 4, 3))
        assert t.makespan == (m + p - 1) * 12
        assert t.busy.tolist() == [m * 12] * p
        assert t.idle.tolist() == [(p - 1) * 12] * p
        assert t.bubble_ratio == pytest.approx((p - 1) / (m + p - 1), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("hop", [0, 1, 7, 100])
def test_1f1b_with_hops(hop: int) -> None:
    """Where p divides m: a cost a microbatch, not once."""
    for p in range(2, 11):
        for m in range(p, 6 * p, p):
            t = run("1f1b", p, m, **uniform(5, 4, 3), p2p=hop)
            assert t.makespan == (m + p - 1) * 12 + hop * (2 * (p - 1) * (m // p + 1) - 2), (p, m)


@pytest.mark.parametrize(
    ("p", "m", "f", "i", "w", "hop", "rate"),
    [
        (8, 24, 18522, 18086, 9337, 601, 0.2431),
        (16, 48, 11347, 11248, 8132, 377, 0.2552),
        (32, 96, 10419, 10207, 7715, 408, 0.2646),
    ],
)
def test_zero_bubble_papers_column_of_1f1b(
    p: int, m: int, f: int, i: int, w: int, hop: int, rate: float
) -> None:
    makespan = run("1f1b", p, m, **uniform(f, i, w), p2p=hop).makespan
    assert round(1 - m * (f + i + w) / makespan, 4) == rate
    if p == 8:
        assert makespan == 1456749


@pytest.mark.parametrize(("family", "p", "m"), [("dualpipe", 8, 20), ("dualpipev", 4, 10)])
def test_dualpipe_of_the_papers_picture(family: str, p: int, m: int) -> None:
    plain = run(family, p, m, overlap=3)
    assert (plain.makespan, plain.span, plain.idle.tolist()) == (66, 66, [6] * p)
    assert run(family, p, m, overlap=2.4).makespan == pytest.approx(57.6, rel=1e-12)
    overlapped = run(family, p, m, overlap=2)
    assert (overlapped.makespan, overlapped.idle.max()) == (52, 3)


@pytest.mark.parametrize(
    ("family", "cost", "pair", "makespan"),
    [("gpipe", 1, None, 117), ("1f1b", 1, None, 117), ("dualpipe", 1, 3, 102), ("dualpipev", 0.5, 1.5, 103)],
)
def test_8_ranks_32_microbatches_on_equal_devices(
    family: str, cost: float, pair: float | None, makespan: float
) -> None:
    assert run(family, 8, 32, **uniform(cost, cost, cost), overlap=pair).makespan == makespan


def test_outer_ranks_idle_less_where_a_pair_overlaps() -> None:
    assert run("dualpipe", 8, 20, overlap=2).idle.tolist() == [1, 2, 3, 3, 3, 3, 2, 1]


@pytest.mark.parametrize("seed", range(200))
def test_deepseeks_bubble_in_its_region(seed: int) -> None:
    """The most idle rank's idle time where W <= min(F, I) and max(F, B) <= FB <= F + B.

    I = F is DeepSeek's own case; elsewhere a term corrects it.
    """
    rng = random.Random(seed)
    if seed % 2 == 0:
        family, p = "dualpipe", 2 * rng.randint(1, 6)
        m, n = 2 * rng.randint(p, p + 6), p // 2 - 1
    else:
        family, p = "dualpipev", rng.randint(1, 6)
        m, n = rng.randint(2 * p, 2 * p + 7), p - 1
    f = rng.randint(1, 30)
    i = f if seed % 3 == 0 else rng.randint(1, 30)
    w = rng.randint(0, min(f, i))
    b = i + w
    fb = rng.randint(max(f, b), f + b)
    bubble = n * (fb + b - 3 * w)
    if i < f:
        bubble += n * (f - i)
    if i > f:
        bubble -= min(n * (i - f), f)
    assert run(family, p, m, **uniform(f, i, w), overlap=fb).idle.max() == bubble, (family, p, m, f, i, w, fb)


@pytest.mark.parametrize("seed", range(40))
def test_dualpipe_takes_the_time_of_its_half(seed: int) -> None:
    """Where no hop costs: DualPipe(p, m) and DualPipeV(p/2, m/2) have the same times rank by rank."""
    rng = random.Random(seed)
    half, m = rng.randint(1, 6), rng.randint(0, 8)
    m += 2 * half
    costs = dp.Costs(*(rng.randint(1, 20) for _ in range(3)), overlap=rng.randint(1, 40))
    whole = dp.schedule("dualpipe", 2 * half, 2 * m).simulate(costs)
    folded = dp.schedule("dualpipev", half, m).simulate(costs)
    assert whole.makespan == folded.makespan
    assert whole.busy.tolist() == [*folded.busy.tolist(), *folded.busy.tolist()[::-1]]


# ---- Costs -------------------------------------------------------------------------------------------------

PER_STAGE = ["forward", "backward_input", "backward_weight", "backward"]


def kind_of(value: Any) -> str:
    return type(value).__name__


NUMBERS = [-1, -1e-300, math.nan, math.inf, -math.inf, 10**400]


@pytest.mark.parametrize("name", [*PER_STAGE, "overlap", "p2p"])
@pytest.mark.parametrize("cost", NUMBERS, ids=lambda cost: str(cost)[:8])
def test_costs_out_of_range(name: str, cost: float) -> None:
    with pytest.raises((dp.UsageError, OverflowError), match=rf"{name} is|too large"):
        dp.Costs(**{name: cost})


@pytest.mark.parametrize("name", PER_STAGE)
@pytest.mark.parametrize("cost", NUMBERS[:-1], ids=str)
def test_costs_by_stage_out_of_range(name: str, cost: float) -> None:
    for costs in ([1, cost, 1], (cost,), np.array([1, cost])):
        with pytest.raises(dp.UsageError, match=rf"^{name} is .*; a cost is a finite number"):
            dp.Costs(**{name: costs})


@pytest.mark.parametrize("name", PER_STAGE)
@pytest.mark.parametrize(
    "cost",
    ["1", "12", "", [[1]], [1, "2"], [None], [1, [2]], object(), 1j, np.ones((2, 2)), len],
    ids=kind_of,
)
def test_costs_of_other_types(name: str, cost: Any) -> None:
    with pytest.raises(dp.UsageError, match=rf"(?s)^{name} is .*; a cost is a number, or a sequence"):
        dp.Costs(**{name: cost})


@pytest.mark.parametrize("name", ["overlap", "p2p"])
@pytest.mark.parametrize("cost", ["1", [1], [], 1j, object(), np.ones(2)], ids=kind_of)
def test_single_costs_of_other_types(name: str, cost: Any) -> None:
    with pytest.raises(dp.UsageError, match=name):
        dp.Costs(**{name: cost})


@pytest.mark.parametrize("name", PER_STAGE)
@pytest.mark.parametrize("entries", [0, 1, 3, 5, 8])
def test_costs_of_another_length(name: str, entries: int) -> None:
    costs = dp.Costs(**{name: [1.0] * entries})
    with pytest.raises(dp.UsageError, match=rf"^{name} has {entries} entries and the schedule 4 stages"):
        dp.schedule("dualpipe", 4, 8).simulate(costs)


def test_costs_without_an_end_are_refused() -> None:
    """An iterator is no sequence of one number a stage."""
    code = "import itertools, dualpipe_rs as dp\ntry: dp.Costs(itertools.count())\n"
    code += "except dp.UsageError: print('refused')"
    assert python(code, gibibytes=0.25).stdout == "refused\n"


def test_times_beyond_floats_are_refused() -> None:
    """Costs that are finite one by one, but not in sum."""
    with pytest.raises(dp.UsageError):
        run("gpipe", 2, 2, forward=1e308)


def test_costs_take_no_other_names() -> None:
    with pytest.raises(TypeError, match="forwards"):
        dp.Costs(forwards=1)
    with pytest.raises(TypeError):
        dp.Costs(1, 1, 1, 2)


def test_costs_say_what_they_are() -> None:
    costs = dp.Costs(1.5, [1, 2], np.array([0.25, 0.5]), backward=(3, 4), overlap=2.5, p2p=0.125)
    assert (costs.forward, costs.backward_input, costs.backward_weight) == (1.5, [1, 2], [0.25, 0.5])
    assert (costs.backward, costs.overlap, costs.p2p) == ([3, 4], 2.5, 0.125)
    assert eval(repr(costs), {"Costs": dp.Costs}) == costs
    assert dp.Costs() == dp.Costs(forward=1, p2p=0)
    assert dp.Costs() != costs
    with pytest.raises(AttributeError):
        costs.p2p = 1


@pytest.mark.parametrize("costs", [3, "1", {"forward": 1}, [1, 1, 1]], ids=repr)
def test_simulate_takes_costs(costs: Any) -> None:
    with pytest.raises((TypeError, dp.Error)):
        dp.schedule("gpipe", 2, 2).simulate(costs)


def test_an_invalid_schedule_is_not_simulated() -> None:
    shape = Shape("linear", 2, 2, 1)
    with pytest.raises(dp.ScheduleError, match="0B0 is missing"):
        dp.Schedule.from_text(text_of([[[(0, "F", 0)]], [[(1, "F", 0)], [(1, "B", 0)]]], shape)).simulate()
