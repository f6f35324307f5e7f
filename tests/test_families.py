"""Every published family at every size up to 8 ranks and 32 microbatches: valid, as fast and as large as
published, cell for cell torch's own tables where torch has one; and what it says of sizes it cannot take.

Closed forms are tested with several costs, in the region in which they are true. What takes long is done for
a part of the sizes, and for all with LONG=1 in the environment.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import nearest_size, python, rows_of, shape_of
from families import FAMILIES, LONG, Case, cases, some
from oracle import simulate, violations

import dualpipe_rs as dp

# Forward, backward for input, backward for weights.
Cost = tuple[int, int, int]
COSTS: list[Cost] = [(f, i, w) for f in (1, 2, 3, 5) for i in (1, 2, 3, 4) for w in (1, 2, 3, 5)]
UNIT: Cost = (1, 1, 1)

every_family = pytest.mark.parametrize("family", FAMILIES)


def timeline(case: Case, cost: Iterable[float], **more: float) -> dp.Timeline:
    return case.make().simulate(dp.Costs(*cost, **more))


# ---- Valid -------------------------------------------------------------------------------------------------


def test_these_are_all() -> None:
    assert list(FAMILIES) == dp.schedule_names()


@every_family
def test_valid_at_every_size(family: str) -> None:
    """By the core at every size, by the oracle at a third."""
    for case in cases(family):
        schedule = case.make()
        assert (schedule.name, shape_of(schedule)) == (family, case.shape)
        assert schedule.verify() is None, case
    for case in some(cases(family), 1 / 3):
        assert violations(rows_of(case.make()), *case.shape) == set(), case


@every_family
def test_times_and_peaks_are_the_oracles(family: str) -> None:
    """So that the closed forms below, which ask the core, are tested against the definition too."""
    sizes = cases(family, *((8, 32) if LONG else (5, 12)))
    for number, case in enumerate(some(sizes, 1 / 4)):
        cost = COSTS[number % len(COSTS)]
        stages = case.shape.stages
        expected = simulate(
            rows_of(case.make()),
            *case.shape,
            {kind: [c] * stages for kind, c in zip("FIW", cost, strict=True)} | {"hop": number % 3},
        )
        found = timeline(case, cost, p2p=number % 3)
        assert (found.makespan, found.span) == (expected["makespan"], expected["span"]), case
        assert found.peak_activations.tolist() == expected["peak"], case


@every_family
def test_random_large_sizes(family: str) -> None:
    """Up to 64 ranks and 1024 microbatches; the core alone."""
    known, rng = FAMILIES[family], random.Random(family)
    legal = [(p, m) for p in range(1, 65) for m in range(1, 1025) if known.is_legal(p, m)]
    draws = [Case(family, *rng.choice(legal), rng.choice(known.values)) for _ in range(6 if LONG else 2)]
    for case in [*draws, Case(family, 64, 1024, known.values[-1])]:
        assert case.make().verify() is None, case


# ---- Closed forms of time ----------------------------------------------------------------------------------

# (family, where it is true, what is published), each of ranks, microbatches, option, f, i, w.
Form = tuple[str, Callable[..., bool], Callable[..., float]]


def always(p: int, m: int, v: int, f: int, i: int, w: int) -> bool:
    return True


MAKESPANS: list[Form] = [
    ("gpipe", always, lambda p, m, v, f, i, w: (m + p - 1) * (f + i + w)),
    ("1f1b", always, lambda p, m, v, f, i, w: (m + p - 1) * (f + i + w)),
    # A full rank's F is v of a stage's.
    (
        "interleaved",
        lambda p, m, v, f, i, w: m % p == 0,
        lambda p, m, v, f, i, w: m * v * (f + i + w) + (p - 1) * (f + i + w),
    ),
    (
        "zb-h1",
        lambda p, m, v, f, i, w: min(f, i) >= w and m >= p,
        lambda p, m, v, f, i, w: m * (f + i + w) + (p - 1) * (f + i - w),
    ),
    # 2wp stages in w waves; a bubble of 2(p-1)/w of a full rank's F, which is 2w of a stage's.
    (
        "hanayo",
        lambda p, m, v, f, i, w: m == p and i + w == 2 * f,
        lambda p, m, v, f, i, w: m * 2 * v * 3 * f + 2 * (p - 1) * 2 * f,
    ),
    ("chimera", lambda p, m, v, f, i, w: i + w == f, lambda p, m, v, f, i, w: (2 * m + p - 2) * f),
]
SPANS: list[Form] = [
    (
        "zb-h2",
        lambda p, m, v, f, i, w: f >= w and 2 * w <= f + i,
        lambda p, m, v, f, i, w: m * (f + i + w) + (p - 1) * (f + i - 2 * w),
    ),
    (
        "zb-v",
        lambda p, m, v, f, i, w: f == i == w and m >= 2 * p - 1,
        lambda p, m, v, f, i, w: 2 * m * (f + i + w),
    ),
]


def draws(family: str) -> list[tuple[Case, Cost]]:
    """Every size of a family, each with some of the costs."""
    both = [(case, cost) for case in cases(family) for cost in COSTS]
    return some(both, 1 / 4)


@pytest.mark.parametrize(
    ("form", "figure"), [(f, "makespan") for f in MAKESPANS] + [(f, "span") for f in SPANS]
)
def test_published_time(form: Form, figure: str) -> None:
    """Makespan or span, exactly, without hops."""
    family, is_true, published = form
    tried = 0
    for case, cost in draws(family):
        sizes = case.ranks, case.microbatches, case.value
        if is_true(*sizes, *cost):
            tried += 1
            assert getattr(timeline(case, cost), figure) == published(*sizes, *cost), (case, cost)
    assert tried > 5


def test_1f1b_with_hops() -> None:
    """A hop costs something every microbatch, not once; where p >= 2 divides m."""
    for case, (f, i, w) in draws("1f1b"):
        _, p, m, _ = case
        if p < 2 or m % p != 0:
            continue
        for hop in (0.5, 1, 2, 7):
            published = (m + p - 1) * (f + i + w) + hop * (2 * (p - 1) * (m // p + 1) - 2)
            assert timeline(case, (f, i, w), p2p=hop).makespan == published, (case, f, i, w, hop)


def test_zb_h1_with_hops() -> None:
    """Four hops a rank, where m > p, W <= min(F, I) and 2c <= W."""
    for case, (f, i, w) in draws("zb-h1"):
        _, p, m, _ = case
        for hop in (0.25, 0.5, 1, 1.5):
            if m > p and w <= min(f, i) and 2 * hop <= w:
                published = m * (f + i + w) + (p - 1) * (f + i - w + 4 * hop)
                assert timeline(case, (f, i, w), p2p=hop).makespan == published, (case, f, i, w, hop)


@pytest.mark.parametrize("family", ["dualpipe", "dualpipev"])
def test_dualpipe_bubble(family: str) -> None:
    """(PP/2 - 1)(FB + B - 3W) is the most idle rank's; with its corrections where I and F differ."""
    for case, (f, i, w) in [(case, cost) for case in cases(family) for cost in COSTS]:
        turns = case.ranks // 2 - 1 if family == "dualpipe" else case.ranks - 1
        if w > min(f, i):
            continue
        b = i + w
        for pair in (max(f, b), (max(f, b) + f + b) / 2, f + b):
            published = turns * (pair + b - 3 * w)
            published += turns * (f - i) if i < f else -min(turns * (i - f), f)
            assert timeline(case, (f, i, w), overlap=pair).idle.max() == published, (case, f, i, w, pair)


def test_chimera_is_idle_alike_on_every_rank() -> None:
    """p - 2 slots at F = B, however many units are concatenated."""
    for case in cases("chimera"):
        assert timeline(case, (2, 1, 1)).idle.tolist() == [2 * (case.ranks - 2)] * case.ranks, case


@pytest.mark.parametrize("waves", [1, 2, 3, 4])
def test_hanayo_bubble_up_to_12_ranks(waves: int) -> None:
    """2(p - 1)/W times a rank's full F where m = p and B = 2F."""
    for p in range(1, 13):
        idle = timeline(Case("hanayo", p, p, waves), UNIT).idle.tolist()
        assert idle == [2 * (p - 1) / waves * 2 * waves] * p, p


# ---- Peaks -------------------------------------------------------------------------------------------------


def test_peak_of_interleaved_on_rank_0() -> None:
    for case in cases("interleaved"):
        _, p, m, v = case
        if m % p == 0:
            published = min(2 * (p - 1) + (v - 1) * p + 1, m * v)
            assert timeline(case, UNIT).peak_activations[0] == published, case


EXACT_PEAKS: dict[str, Callable[[int, int], list[int]]] = {
    "gpipe": lambda p, m: [m] * p,
    "1f1b": lambda p, m: [min(p - rank, m) for rank in range(p)],
    "zb-h2": lambda p, m: [2 * p - 1] * p,
    "dualpipe": lambda p, m: [p + 1] * p,
    "dualpipev": lambda p, m: [2 * p + 1] * p,
}


@pytest.mark.parametrize("family", EXACT_PEAKS)
def test_peaks_of_every_rank(family: str) -> None:
    for case in cases(family):
        published = EXACT_PEAKS[family](case.ranks, case.microbatches)
        for cost in (UNIT, (2, 3, 1)):
            assert timeline(case, cost).peak_activations.tolist() == published, (case, cost)


HIGHEST_PEAKS: dict[str, Callable[[int], int]] = {
    "zb-h1": lambda p: p,
    "zb-v": lambda p: 2 * p,
    "v-half": lambda p: p + 2 if p % 2 == 0 else p + 1,
    "v-min": lambda p: 2 * ((p + 4) // 3),
}


@pytest.mark.parametrize("family", HIGHEST_PEAKS)
def test_peaks_are_at_most(family: str) -> None:
    """At every size, and reached wherever 2p microbatches fill the pipeline."""
    for case in cases(family):
        published = HIGHEST_PEAKS[family](case.ranks)
        highest = timeline(case, UNIT).peak_activations.max()
        assert highest <= published, case
        if case.microbatches >= 2 * case.ranks:
            assert highest == published, case


# ---- Published figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case("dualpipe", 8, 20), Case("dualpipev", 4, 10)])
@pytest.mark.parametrize(("pair", "makespan", "idle"), [(3, 66, 6), (2.4, 57.6, 4.2), (2, 52, 3)])
def test_dualpipe_of_8_and_20(case: Case, pair: float, makespan: float, idle: float) -> None:
    found = timeline(case, UNIT, overlap=pair)
    assert found.makespan == pytest.approx(makespan, abs=1e-9)
    assert found.idle.max() == pytest.approx(idle, abs=1e-9)
    if pair == 3:
        assert found.idle.tolist() == [6] * case.ranks


# Makespan and span of 8 equal devices and 32 microbatches, and the highest peak where one is published.
EQUAL_DEVICES = {
    "gpipe": (117, 117),
    "1f1b": (117, 117),
    "interleaved": (106.5, 106.5),
    "zb-h1": (103, 103),
    "zb-h2": (103, 96),
    "zb-v": (99.5, 96),
    "dualpipe": (102, 102),
    "dualpipev": (103, 103),
}


def equal_devices(family: str) -> dp.Timeline:
    """Stage costs are halved where a rank holds two stages, DualPipe's two copies being whole ones."""
    schedule = dp.schedule(family, 8, 32)
    stage = 8 / schedule.num_stages
    return schedule.simulate(dp.Costs(stage, stage, stage, overlap=3 * stage))


@pytest.mark.parametrize("family", EQUAL_DEVICES)
def test_equal_devices(family: str) -> None:
    found = equal_devices(family)
    assert (found.makespan, found.span) == EQUAL_DEVICES[family]


@pytest.mark.parametrize(("family", "span", "peak"), [("v-half", 104.5, 10), ("v-min", 109, 8)])
def test_v_memory_on_equal_devices(family: str, span: float, peak: int) -> None:
    """What published tools reach, or better."""
    found = equal_devices(family)
    assert found.span <= span
    assert found.peak_activations.max() <= peak


@pytest.mark.parametrize(("family", "rate"), [("v-half", 0.0994), ("v-min", 0.2374)])
def test_v_memory_with_measured_costs(family: str, rate: float) -> None:
    """(span - ideal) / span at p = 4, m = 12, or better."""
    span = dp.schedule(family, 4, 12).simulate(dp.Costs(1049, 1122, 903, p2p=79)).span
    ideal = 12 * 2 * (1049 + 1122 + 903)
    assert (span - ideal) / span <= rate


# p, m, F, I, W, hop in µs -> bubble rates of 1F1B, ZB-H1, and ZB-H2 by its span.
MEASURED = [
    ((8, 24, 18522, 18086, 9337, 601), (0.2431, 0.1585, 0.1083)),
    ((16, 48, 11347, 11248, 8132, 377), (0.2552, 0.1397, 0.0672)),
    ((32, 96, 10419, 10207, 7715, 408), (0.2646, 0.1421, 0.0641)),
]


@pytest.mark.parametrize(("row", "rates"), MEASURED)
def test_zero_bubble_paper(row: tuple[int, ...], rates: tuple[float, ...]) -> None:
    p, m, *cost, hop = row
    ideal = m * sum(cost)
    runs = [timeline(Case(family, p, m), cost, p2p=hop) for family in ("1f1b", "zb-h1", "zb-h2")]
    times = [runs[0].makespan, runs[1].makespan, runs[2].span]
    assert [round((time - ideal) / time, 4) for time in times] == list(rates)


def test_zero_bubble_paper_to_the_microsecond() -> None:
    p, m, *cost, hop = MEASURED[0][0]
    runs = [timeline(Case(family, p, m), cost, p2p=hop) for family in ("1f1b", "zb-h1", "zb-h2")]
    assert [runs[0].makespan, runs[1].makespan, runs[2].span] == [1456749, 1310405, 1236632]


def test_zero_bubble_paper_interleaved() -> None:
    """Its own column under-counts one dependency; three stages a rank of a third each."""
    p, m, *cost, hop = MEASURED[0][0]
    time = timeline(Case("interleaved", p, m, 3), [c / 3 for c in cost], p2p=hop).makespan
    assert round((time - m * sum(cost)) / time, 4) == 0.1090


def test_zb_v_with_unequal_costs() -> None:
    cost = (14407, 14380, 9676)
    found = timeline(Case("zb-v", 16, 48), cost, p2p=1610)
    ideal = 48 * 2 * sum(cost)
    rates = [round((time - ideal) / time, 4) for time in (found.span, found.makespan)]
    assert rates == [0.0712, 0.0829]


# ---- Sizes and options that are none -----------------------------------------------------------------------


@every_family
def test_an_illegal_size_names_a_legal_one(family: str) -> None:
    known = FAMILIES[family]
    illegal = [(p, m) for p in range(11) for m in range(34) if not known.is_legal(p, m)]
    for p, m in illegal:
        for value in known.values:
            case = Case(family, p, m, value)
            with pytest.raises(dp.UsageError) as caught:
                case.make()
            assert f"{family} takes " in str(caught.value), case
            assert f"got {p} ranks and {m} microbatches" in str(caught.value), case
            near = nearest_size(str(caught.value))
            assert known.is_legal(*near), case
            assert case._replace(ranks=near[0], microbatches=near[1]).make().verify() is None


@every_family
def test_options(family: str) -> None:
    """The one it has takes whole numbers from 1; 0, negative, absurd and unknown ones are refused by name."""
    option = FAMILIES[family].option
    unknown = {"stages_per_rank", "waves", "colour"} - {option}
    for name in unknown:
        with pytest.raises(dp.UsageError, match=rf'{family} takes no option "{name}"'):
            dp.schedule(family, 4, 8, **{name: 2})
    if option is None:
        return
    for value in (0, -1, 2**40, 2**62):
        with pytest.raises(dp.UsageError):
            dp.schedule(family, 4, 8, **{option: value})
    for wrong in ("2", 2.5, None, [2]):
        with pytest.raises((dp.UsageError, TypeError)):
            dp.schedule(family, 4, 8, **{option: wrong})


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("interleaved", "stages_per_rank", 2),
        ("interleaved-zb", "stages_per_rank", 2),
        ("looped-bfs", "stages_per_rank", 2),
        ("hanayo", "waves", 1),
    ],
)
def test_options_left_out(family: str, option: str, value: int) -> None:
    assert dp.schedule(family, 4, 8) == dp.schedule(family, 4, 8, **{option: value})


# ---- torch's own tables ------------------------------------------------------------------------------------


def torch_rows(kind: str, p: int, m: int, chunks: int) -> list[list[str]]:
    """The table that torch's class computes, less its empty cells; on an object without stages or groups."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    if not hasattr(schedules, kind):
        pytest.skip(f"this torch has no {kind}")
    made: Any = object.__new__(getattr(schedules, kind))
    made.pp_group_size, made._n_microbatches = p, m
    made.n_local_stages, made._stages = chunks, [SimpleNamespace()] * chunks
    made.num_stages = made._num_stages = p * chunks
    made.number_of_rounds = max(1, m // p)
    made.microbatches_per_round = m // made.number_of_rounds
    made.pipeline_order = {rank: made._calculate_single_rank_operations(rank) for rank in range(p)}
    if hasattr(made, "_add_bubbles_to_actions"):
        made.pipeline_order = made._add_bubbles_to_actions(p * chunks)
    return [
        [torch_cell(action) for action in made.pipeline_order[rank] if action is not None]
        for rank in range(p)
    ]


def torch_cell(action: Any) -> str:
    return f"({';'.join(map(str, action.sub_actions))})" if action.sub_actions else str(action)


TORCH = {
    "interleaved": "ScheduleInterleaved1F1B",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "looped-bfs": "ScheduleLoopedBFS",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}


@pytest.mark.parametrize("family", TORCH)
def test_equals_torchs_table(family: str) -> None:
    """Cell for cell, at a third of all sizes."""
    for case in some(cases(family), 1 / 3):
        chunks = case.shape.stages // case.ranks
        expected = torch_rows(TORCH[family], case.ranks, case.microbatches, chunks)
        schedule = case.make()
        assert [schedule.rank(rank) for rank in range(case.ranks)] == expected, case


def test_one_rank_is_never_idle() -> None:
    """Whatever the family: there is nobody to wait for."""
    for family, known in FAMILIES.items():
        for m in (m for m in range(1, 9) if known.is_legal(1, m)):
            found = timeline(Case(family, 1, m, known.values[-1]), UNIT)
            assert math.isclose(found.makespan, found.busy.sum()), (family, m)


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    done = python(
        """
import dualpipe_rs as dp
for name in dp.schedule_names():
    for size in [(2**31, 4), (4, 2**31), (10**6, 10**6), (20000, 40000), (2, 10**9)]:
        try:
            raise SystemExit(f"{dp.schedule(name, *size)}")
        except dp.UsageError as error:
            assert "at most 65535 stages" in str(error) or "more than 134217728 actions" in str(error), error
""",
        gibibytes=1,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("family", "p", "m", "nearest"),
    [
        ("interleaved", 3, 7, 8),
        ("interleaved", 4, 9, 10),
        ("interleaved-zb", 4, 13, 12),
        ("chimera", 4, 5, 4),
        ("chimera", 12, 38, 36),
        ("chimera", 4, 1, 4),
    ],
)
def test_the_nearest_legal_size_is_the_nearest(family: str, p: int, m: int, nearest: int) -> None:
    with pytest.raises(dp.UsageError, match=f"nearest legal size is {p} ranks and {nearest} microbatches"):
        dp.schedule(family, p, m)


def test_where_published_programs_are_broken() -> None:
    """Chimera's authors' generator drops microbatches at 8 x 32; torch's 1F1B table never holds microbatch 0
    on the last rank."""
    chimera = dp.schedule("chimera", 8, 32)
    for rank in range(8):
        cells = chimera.rank(rank)
        assert sorted(cells) == sorted(
            f"{stage}{kind}{microbatch}"
            for stage in chimera.stages_of(rank)
            for kind in "FB"
            for microbatch in range(32)
            if chimera.rank_of(stage, microbatch) == rank
        )
    for p in range(1, 9):
        assert dp.schedule("1f1b", p, 8).rank(p - 1)[:2] == [f"{p - 1}F0", f"{p - 1}B0"]
