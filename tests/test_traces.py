"""Trace files say what the timeline says: every slot once, every tensor between ranks once, what a rank
holds, and nothing that hides something else.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, Case, cases
from measured import timeline_of
from oracle_costs import random_keywords, runs_under
from traces import Slice, Trace, traced

import dualpipe_rs as dp
from dualpipe_rs import _core

FORMS = ["chrome", "perfetto"]
CATEGORIES = {"F": "forward", "I": "backward_input", "W": "backward_weight", "B": "backward"}
CLOSING = ["gradient_exchange", "optimizer"]
Levels = list[tuple[int, float]]  # from a time on
every_form = pytest.mark.parametrize("form", FORMS)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_semantics = pytest.mark.parametrize("p2p", ["eager", "rendezvous", "batched", "blocking"])


def timelines(family: str, p2p: str) -> list[dp.Timeline]:
    """Some sizes under random costs; in some slots and hops may take no time, some have no bytes."""
    rng = random.Random(family + p2p)
    sizes: list[Case] = cases(family, 4, 8)
    found: list[dp.Timeline] = []
    for case in [*rng.sample(sizes, min(len(sizes), 6)), sizes[-1]]:
        schedule = case.make()
        if not runs_under(schedule, p2p, None):
            continue
        costs = random_keywords(rng, schedule, least=len(found) % 2)
        if len(found) % 3:
            costs |= {"activation_bytes": rng.randint(1, 9), "weight_grad_bytes": rng.randint(0, 9)}
            costs["p2p_bytes"] = rng.randint(0, 9)
        found.append(schedule.simulate(dp.Costs(**costs), p2p=p2p))
        if len(found) == 3:
            break
    return found


def in_nanoseconds(time: float, unit: float = 1e-6) -> int:
    """Half a nanosecond away from zero."""
    return math.floor(time * (unit * 1e9) + 0.5)


# ---- What is expected --------------------------------------------------------------------------------------


def slots_of(timeline: dp.Timeline, unit: float = 1e-6) -> list[tuple[Any, ...]]:
    """(rank, lane, start, end, name, category, args) of each slot."""
    waits = waits_of(timeline, unit)
    found = []
    for (rank, slot), spans in groupby(timeline.spans.tolist(), key=lambda span: span[:2]):
        actions = [span[2:] for span in spans]
        kind, stage, microbatch, start, end = actions[0]
        args = {"rank": rank, "slot": slot, "stage": stage, "microbatch": microbatch}
        args["action"] = ";".join(f"{a[1]}{a[0]}{a[2]}" for a in actions)
        if len(actions) == 2:
            args["action"] = f"({args['action']})"
            args |= {"backward_stage": actions[1][1], "backward_microbatch": actions[1][2]}
        name = " & ".join(f"{a[0]} {a[2]}" for a in actions)
        category = CATEGORIES[kind] if len(actions) == 1 else "pair"
        times = in_nanoseconds(start, unit), in_nanoseconds(end, unit)
        found.append((rank, "compute", *times, name, category, args | waits.get((rank, slot), {})))
    return found


def waits_of(timeline: dp.Timeline, unit: float) -> dict[tuple[int, int], dict[str, Any]]:
    told: dict[tuple[int, int], dict[str, Any]] = {}
    for rank, slot, cause, kind, stage, microbatch, start, end in timeline.waits.tolist():
        length = in_nanoseconds(end, unit) - in_nanoseconds(start, unit)
        args = {f"{cause}_us": length / 1000}
        if kind:
            args[{"dependency": "dependency_on", "hop": "hop_of"}[cause]] = f"{stage}{kind}{microbatch}"
        told[rank, slot] = told.get((rank, slot), {}) | args
    return told


def transfers_of(timeline: dp.Timeline, unit: float = 1e-6) -> list[tuple[Any, ...]]:
    """(rank, start, end, name, category, args) of each tensor on its way: its lane is not known."""
    found = []
    for source, source_slot, rank, slot, kind, stage, microbatch, start, end in timeline.transfers.tolist():
        args = {"rank": rank, "slot": slot, "source": source, "source_slot": source_slot}
        args |= {"action": f"{stage}{kind}{microbatch}", "stage": stage, "microbatch": microbatch}
        times = in_nanoseconds(start, unit), in_nanoseconds(end, unit)
        found.append((rank, *times, f"{kind} {microbatch} from rank {source}", "transfer", args))
    return found


def levels_of(times: np.ndarray, values: np.ndarray, unit: float) -> Levels:
    """Of what changes within a nanosecond, the last."""
    return list(
        {in_nanoseconds(time, unit): value for time, value in zip(times, values, strict=True)}.items()
    )


def counters_of(timeline: dp.Timeline, form: str, unit: float) -> dict[tuple[int, str], Levels]:
    memory = [timeline.memory(rank) for rank in range(timeline.num_ranks)]
    parts = [name for name in memory[0].dtype.names[1:] if any(held[name].any() for held in memory)]
    found = {}
    for rank, held in enumerate(memory):
        for name in parts if form == "chrome" or len(parts) > 1 else []:
            found[rank, f"bytes held: {name}"] = levels_of(held["time"], held[name], unit)
        if form == "perfetto":
            total = held["activation"] + held["weight_grad"] + held["received"]
            found[rank, "bytes held"] = levels_of(held["time"], total, unit)
    return found


def sorted_slices(slices: list[Any]) -> list[Any]:
    return sorted(slices, key=lambda one: json.dumps(one, sort_keys=True))


# ---- Every family ------------------------------------------------------------------------------------------


@every_semantics
@every_family
def test_a_trace_is_the_timeline(family: str, p2p: str) -> None:
    for timeline in timelines(family, p2p):
        for form in FORMS:
            check(timeline, traced(timeline, form), form)


def check(timeline: dp.Timeline, trace: Trace, form: str, unit: float = 1e-6) -> None:
    slots = [one for one in trace.slices if one.category not in ("transfer", *CLOSING)]
    under_way = [one for one in trace.slices if one.category == "transfer"]
    assert sorted_slices(slots) == sorted_slices(slots_of(timeline, unit))
    without_lane = [(one.rank, *one[2:]) for one in under_way]
    assert sorted_slices(without_lane) == sorted_slices(transfers_of(timeline, unit))
    check_flows(timeline, trace)
    check_lanes(timeline, trace)
    check_closing(timeline, trace, unit)
    if not timeline.is_measured and timeline.peak_bytes().any():
        expected = {name: levels for name, levels in counters_of(timeline, form, unit).items() if levels}
        assert trace.counters == expected
    else:
        check_activations(timeline, trace, unit)


def check_flows(timeline: dp.Timeline, trace: Trace) -> None:
    """One for each tensor, from the slot that made it to the slot that took it."""
    flows = Counter((*source.slot, *taker.slot) for source, taker in trace.flows)
    names = ["source", "source_slot", "rank", "slot"]
    assert flows == Counter(timeline.transfers[names].tolist())
    assert all(one.lane == "compute" for flow in trace.flows for one in flow)


def check_lanes(timeline: dp.Timeline, trace: Trace) -> None:
    """Nothing overlaps, and there are no more lanes than are needed for that."""
    assert list(trace.lanes) == list(range(timeline.num_ranks))
    for rank, lanes in trace.lanes.items():
        assert lanes[:2] == ["compute", "communication"]
        assert lanes[2:] == [f"communication {number}" for number in range(2, len(lanes))]
        for lane in lanes:
            here = sorted(
                (one.start, one.end) for one in trace.slices if (one.rank, one.lane) == (rank, lane)
            )
            assert all(before[1] <= after[0] for before, after in pairwise(here))
            if lane != "compute":
                assert len({start for start, _ in here}) == len(here)
        under_way = [one for one in trace.slices if one.rank == rank and one.category == "transfer"]
        assert len(lanes) - 1 == max(1, most_at_once(under_way))


def most_at_once(slices: list[Slice]) -> int:
    """What takes no time counts for a nanosecond."""
    times = [(one.start, max(one.end, one.start + 1)) for one in slices]
    return max((sum(start <= time < end for start, end in times) for time, _ in times), default=0)


def check_closing(timeline: dp.Timeline, trace: Trace, unit: float) -> None:
    found = {(one.rank, one.category): one for one in trace.slices if one.category in CLOSING}
    expected = {}
    for rank, (start, exchanged, end) in enumerate(
        [] if timeline.closing is None else timeline.closing.tolist()
    ):
        times = [in_nanoseconds(time, unit) for time in (start, exchanged, end)]
        expected |= {(rank, name): step for name, step in zip(CLOSING, pairwise(times), strict=True)}
    expected = {key: (start, end) for key, (start, end) in expected.items() if end > start}
    assert {key: (one.start, one.end) for key, one in found.items()} == expected
    lanes = {"gradient_exchange": "communication", "optimizer": "compute"}
    assert all(one.lane == lanes[category] for (_, category), one in found.items())


def check_activations(timeline: dp.Timeline, trace: Trace, unit: float) -> None:
    """From the start of F to the end of the last backward; to the end of F where there is no backward."""
    last = "WB" if {"W", "B"} & set(timeline.spans["kind"]) else "F"
    for rank in range(timeline.num_ranks):
        changes: Counter[float] = Counter()
        for _, _, kind, _, _, start, end in timeline.spans[timeline.spans["rank"] == rank].tolist():
            changes[start] += kind == "F"
            changes[end] -= kind in last
        times = np.array(sorted(changes))
        expected = levels_of(times, np.cumsum([changes[time] for time in times]), unit)
        [levels] = [levels for (r, name), levels in trace.counters.items() if r == rank] or [[]]
        assert steps(levels) == steps(expected)
    assert {name for _, name in trace.counters} <= {"activations held", "activations held: total"}


def steps(levels: Levels) -> Levels:
    """Without those that are as the one before; at first nothing is held."""
    return [after for before, after in pairwise([(0, 0.0), *levels]) if after[1] != before[1]]


@pytest.mark.parametrize(
    "run", [("1f1b", 3, 5), ("dualpipe", 4, 8), ("dualpipev", 2, 7), ("1f1b", 2, 4, False)]
)
@every_form
def test_a_measured_timeline_is_in_seconds(form: str, run: tuple[Any, ...]) -> None:
    timeline = timeline_of(*run)
    check(timeline, traced(timeline, form), form, unit=1.0)


# ---- By hand -----------------------------------------------------------------------------------------------

TWO = "# name=x placement=linear ranks=2 stages=2 microbatches=1\n0F0 0B0\n1F0 1I0 1W0\n"


def test_the_text_of_a_small_one() -> None:
    costs = dp.Costs(p2p=0.25, activation_bytes=3)
    lines = dp.Schedule.from_text(TWO).simulate(costs).to_chrome_json().splitlines()
    assert lines[0] == '{"displayTimeUnit":"ns","traceEvents":['
    assert '{"ph":"M","pid":2,"tid":0,"name":"process_name","args":{"name":"rank 1"}},' in lines
    assert '{"ph":"M","pid":2,"tid":4,"name":"thread_name","args":{"name":"communication"}},' in lines
    assert (
        '{"ph":"X","pid":2,"tid":3,"ts":1.25,"dur":1,"name":"F 0","cat":"forward",'
        '"cname":"thread_state_runnable","args":{"rank":1,"slot":0,"action":"1F0","stage":1,"microbatch":0,"warm_up_us":1.25}},'
    ) in lines
    assert (
        '{"ph":"X","pid":1,"tid":3,"ts":3.5,"dur":2,"name":"B 0","cat":"backward",'
        '"cname":"thread_state_unknown","args":{"rank":0,"slot":1,"action":"0B0","stage":0,"microbatch":0,'
        '"dependency_us":2.25,"dependency_on":"1I0","hop_us":0.25,"hop_of":"1I0"}},'
    ) in lines
    assert (
        '{"ph":"X","pid":2,"tid":4,"ts":1,"dur":0.25,"name":"F 0 from rank 0","cat":"transfer",'
        '"cname":"grey","args":{"rank":1,"slot":0,"source":0,"source_slot":0,"action":"0F0","stage":0,"microbatch":0}},'
    ) in lines
    flow = '"id":2,{}"name":"tensor","cat":"transfer"}},'
    assert '{"ph":"s","pid":1,"tid":3,"ts":0.999,' + flow.format("") in lines
    assert '{"ph":"f","pid":2,"tid":3,"ts":1.25,' + flow.format('"bp":"e",') in lines
    assert '{"ph":"C","pid":1,"tid":0,"ts":0,"name":"bytes held","args":{"activation":3}},' in lines


@every_form
def test_what_is_under_way_at_once_has_lanes_of_its_own(form: str) -> None:
    """Three tensors made at 1, 2 and 3 are each on their way for 1.5."""
    timeline = dp.schedule("gpipe", 2, 3).simulate(dp.Costs(p2p=1.5))
    under_way = [one for one in traced(timeline, form).slices if one.category == "transfer" and one.rank == 1]
    lanes = [(one.start, one.lane) for one in sorted(under_way, key=lambda one: one.start)]
    assert lanes == [(1000, "communication"), (2000, "communication 2"), (3000, "communication")]


@every_form
def test_ranks_are_in_their_order(form: str) -> None:
    trace = traced(dp.schedule("1f1b", 12, 2).simulate(), form)
    assert list(trace.lanes) == list(range(12))


# ---- Units, bounds and bytes -------------------------------------------------------------------------------


@every_form
def test_a_unit_is_so_many_seconds(form: str) -> None:
    timeline = dp.schedule("dualpipev", 2, 4).simulate(dp.Costs(forward=0.3, p2p=0.1))
    usual = traced(timeline, form)
    assert traced(timeline, form, unit=1e-6) == usual
    check(timeline, traced(timeline, form, unit=2.5e-3), form, unit=2.5e-3)
    check(timeline, traced(timeline, form, unit=2e-10), form, unit=2e-10)  # Much happens within a nanosecond.
    with_bytes = dp.schedule("zb-v", 2, 4).simulate(dp.Costs(activation_bytes=3, p2p_bytes=1, p2p=0.1))
    check(with_bytes, traced(with_bytes, form, unit=2e-10), form, unit=2e-10)
    measured = timeline_of("1f1b", 2, 4)
    assert traced(measured, form, unit=1.0) == traced(measured, form)
    [last] = {max(one.end for one in usual.slices)}
    assert last == in_nanoseconds(timeline.makespan)


WRITERS = [dp.Timeline.to_chrome_json, dp.Timeline.to_perfetto]


@pytest.mark.parametrize("unit", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", WRITERS)
def test_units_that_are_none(write: Any, unit: float) -> None:
    with pytest.raises(dp.UsageError, match="it is how many seconds one unit of the timeline's time is"):
        write(dp.schedule("1f1b", 2, 4).simulate(), unit=unit)


@pytest.mark.parametrize("write", WRITERS)
def test_times_that_do_not_fit(write: Any) -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    for timeline, unit in [
        (schedule.simulate(dp.Costs(forward=1e300)), 1e-6),
        (schedule.simulate(), 1e300),
        (schedule.simulate(), 1e9),
    ]:
        with pytest.raises(dp.UsageError, match="holds nanoseconds from 0 to 2⁶³"):
            write(timeline, unit=unit)
    write(schedule.simulate(), unit=1e8)
    write(schedule.simulate(), unit=5e-324)


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("write", WRITERS)
def test_times_that_are_none(write: Any, time: float) -> None:
    schedule = dp.schedule("1f1b", 1, 2)
    records = np.arange(12.0).reshape(4, 3)
    records[2, 1] = time
    with pytest.raises(dp.UsageError, match="the timeline has the time"):
        write(_core.measured_timeline(schedule, records))


@every_form
def test_a_timeline_of_no_length(form: str) -> None:
    costs = dp.Costs(forward=0, backward_input=0, backward_weight=0)
    timeline = dp.schedule("dualpipe", 4, 8).simulate(costs)
    check(timeline, traced(timeline, form), form)


@every_form
def test_inference(form: str) -> None:
    timeline = dp.schedule("dualpipev", 3, 6).forward_only().simulate(dp.Costs(activation_bytes=2, p2p=0.5))
    check(timeline, traced(timeline, form), form)


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_again(write: Any) -> None:
    def timeline() -> dp.Timeline:
        costs = dp.Costs(overlap=2.4, p2p=0.3, activation_bytes=1)
        return dp.schedule("dualpipe", 4, 8).simulate(costs, p2p="rendezvous")

    assert write(timeline()) == write(timeline())


def test_perfetto_files_are_the_smaller_ones() -> None:
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(p2p=0.3))
    assert 2 * len(timeline.to_perfetto()) < len(timeline.to_chrome_json())
