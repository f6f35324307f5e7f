"""The timeline as numpy sees it: the spans' layout and memory, and every figure recomputed from the spans;
and what importing the package loads.
"""

from __future__ import annotations

import gc
import json
import random
from typing import Any

import numpy as np
import pytest
from conftest import legal_sizes, numbered, python, read, rows_of

import dualpipe_rs as dp

FIELDS = {
    "rank": "u4",
    "slot": "u4",
    "kind": "U1",
    "stage": "u4",
    "microbatch": "u4",
    "start": "f8",
    "end": "f8",
}


def random_timeline(seed: int) -> tuple[dp.Schedule, dp.Timeline]:
    """Of a family or of a random order, at random costs by stage; every second with hops."""
    rng = random.Random(seed)
    published = dp.schedule(*rng.choice(legal_sizes(6, 16)))
    schedule = published if seed % 3 else read(*numbered(seed))
    each = [[rng.randint(1, 32) / 8 for _ in range(schedule.num_stages)] for _ in range(3)]
    overlap = rng.choice([None, rng.randint(1, 64) / 8])
    return schedule, schedule.simulate(dp.Costs(*each, overlap=overlap, p2p=seed % 2 * 0.75))


@pytest.fixture
def timeline() -> dp.Timeline:
    return dp.schedule("dualpipe", 4, 10).simulate()


# ---- The spans ---------------------------------------------------------------------------------------------


def test_fields(timeline: dp.Timeline) -> None:
    spans = timeline.spans
    assert spans.ndim == 1
    assert spans.dtype.names == tuple(FIELDS)
    for name, form in FIELDS.items():
        assert spans.dtype[name] == np.dtype(form), name
    assert spans["start"].flags.aligned
    assert spans["end"].flags.aligned


@pytest.mark.parametrize("seed", range(60))
def test_every_action_is_a_span(seed: int) -> None:
    """In the order of ranks and slots, a pair's forward before its backward."""
    schedule, timeline = random_timeline(seed)
    actions = [
        (rank, index, kind, stage, microbatch)
        for rank, row in enumerate(rows_of(schedule))
        for index, slot in enumerate(row)
        for stage, kind, microbatch in slot
    ]
    assert timeline.spans[["rank", "slot", "kind", "stage", "microbatch"]].tolist() == actions
    assert timeline.num_ranks == schedule.num_ranks


@pytest.mark.parametrize("seed", range(60))
def test_a_pair_is_two_rows_of_one_slot(seed: int) -> None:
    schedule, timeline = random_timeline(seed)
    spans = timeline.spans
    again = (spans["rank"][1:] == spans["rank"][:-1]) & (spans["slot"][1:] == spans["slot"][:-1])
    first, second = spans[:-1][again], spans[1:][again]
    pairs = sum(word.startswith("(") for r in range(schedule.num_ranks) for word in schedule.rank(r))
    assert len(first) == pairs
    assert set(first["kind"]) <= {"F"}
    assert set(second["kind"]) <= {"B"}
    assert np.array_equal(first["start"], second["start"])
    assert np.array_equal(first["end"], second["end"])


@pytest.mark.parametrize("seed", range(60))
def test_a_rank_does_one_slot_at_a_time(seed: int) -> None:
    _, timeline = random_timeline(seed)
    assert timeline.spans["start"].min() == 0
    for rank in range(timeline.num_ranks):
        row = slots(timeline.spans[timeline.spans["rank"] == rank])
        assert np.array_equal(row["slot"], np.arange(len(row)))
        assert np.all(row["end"] > row["start"])
        assert np.all(row["start"][1:] >= row["end"][:-1])


def test_without_a_copy(timeline: dp.Timeline) -> None:
    first, second = timeline.spans, timeline.spans
    assert first.base is timeline
    assert np.shares_memory(first, second)
    assert first.flags.c_contiguous
    assert not first.flags.owndata


def test_read_only(timeline: dp.Timeline) -> None:
    spans = timeline.spans
    assert not spans.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        spans["start"] = 0
    with pytest.raises(ValueError, match="read-only"):
        spans[0] = spans[1]
    with pytest.raises(ValueError, match="WRITEABLE"):
        spans.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        spans["end"][:] = 1


def test_the_spans_outlive_the_timeline() -> None:
    spans = dp.schedule("dualpipe", 8, 40).simulate().spans
    part = spans["end"][::7]
    before, before_part = spans.copy(), part.copy()
    gc.collect()
    others = [dp.schedule("gpipe", 8, 40).simulate(dp.Costs(9)).spans for _ in range(20)]
    assert np.array_equal(spans, before)
    del spans
    gc.collect()
    assert np.array_equal(part, before_part)
    assert len(others) == 20


def test_a_predicted_timeline_has_no_cpu_time(timeline: dp.Timeline) -> None:
    assert timeline.cpu_time is None


def test_frozen(timeline: dp.Timeline) -> None:
    with pytest.raises(AttributeError):
        timeline.makespan = 1
    with pytest.raises(TypeError):
        dp.Timeline()


# ---- The figures, recomputed -------------------------------------------------------------------------------


def slots(spans: np.ndarray) -> np.ndarray:
    """Each slot once."""
    _, index = np.unique(spans[["rank", "slot"]], return_index=True)
    return spans[index]


def held_at_most(row: np.ndarray) -> int:
    """How many (stage, microbatch) lie between the start of their F and the end of their last action."""
    begins, ends = [], []
    for stage, microbatch in {(s, m) for s, m in row[["stage", "microbatch"]].tolist()}:
        own = row[(row["stage"] == stage) & (row["microbatch"] == microbatch)]
        begins.append(own["start"].min())
        ends.append(own["end"].max())
    begin, end = np.array(begins), np.array(ends)
    return max(int(np.sum((begin <= t) & (t < end))) for t in begins)


@pytest.mark.parametrize("seed", range(90))
def test_figures(seed: int) -> None:
    _, timeline = random_timeline(seed)
    spans = timeline.spans
    rows = [spans[spans["rank"] == rank] for rank in range(timeline.num_ranks)]
    busy = np.array([np.sum(slots(row)["end"] - slots(row)["start"]) for row in rows])
    makespan = spans["end"].max() - spans["start"].min()
    assert timeline.makespan == makespan
    assert timeline.span == max(row["end"].max() - row["start"].min() for row in rows)
    assert np.array_equal(timeline.busy, busy)
    assert np.array_equal(timeline.idle, makespan - busy)
    assert timeline.bubble_ratio == pytest.approx(
        1 - busy.sum() / (len(rows) * makespan), rel=1e-12, abs=1e-15
    )
    assert timeline.peak_activations.tolist() == [held_at_most(row) for row in rows]


def test_types_of_figures(timeline: dp.Timeline) -> None:
    for figure in (timeline.makespan, timeline.span, timeline.bubble_ratio):
        assert type(figure) is float
    for figure, form in ((timeline.busy, "f8"), (timeline.idle, "f8"), (timeline.peak_activations, "i8")):
        assert (figure.dtype, figure.shape) == (np.dtype(form), (4,))
    assert repr(timeline) == "<Timeline 4 ranks, makespan 32, bubble_ratio 0.0625>"


def test_a_rank_that_starts_late() -> None:
    """The span is the longest single rank's own; here neither rank's is the makespan."""
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=1 forward_only=true\n0F0\n1F0\n"
    timeline = dp.Schedule.from_text(text).simulate(dp.Costs([2, 3], p2p=10))
    assert (timeline.makespan, timeline.span) == (15, 3)
    assert timeline.bubble_ratio == pytest.approx(1 - 5 / 30, rel=1e-12)


# ---- As text -----------------------------------------------------------------------------------------------


def test_grid() -> None:
    """Capitals are the stage that a rank began with; one column is free before the next cell."""
    simple, dual = dp.schedule("1f1b", 2, 2).simulate(), dp.schedule("dualpipe", 2, 4).simulate()
    assert simple.grid().split("\n") == [
        "rank 0 |F0- F1-         B0-----     B1-----",
        "rank 1 |    F0- B0----- F1- B1-----",
    ]
    assert dual.grid().split("\n") == [
        "rank 0 |F0- f2- F1- b2----- f3:B0------ b3----- I1- W1-",
        "rank 1 |F2- f0- F3- b0----- f1:B2------ b1----- I3- W3-",
    ]
    assert dual.grid(40).split("\n") == [
        "rank 0 |F0 f F1 b2-- f3:B0-- b3-- I W1",
        "rank 1 |F2 f F3 b0-- f1:B2-- b1-- I W3",
    ]
    assert str(dual) == dual.grid() == dual.grid(width=120)


def test_a_grid_of_nothing() -> None:
    assert dp.schedule("gpipe", 2, 2).simulate(dp.Costs(0, 0, 0)).grid().count("rank") == 2


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("width", [0, 1, 10, 40, 120, 1000])
def test_a_grid_has_a_line_a_rank_of_about_that_width(seed: int, width: int) -> None:
    _, timeline = random_timeline(seed)
    lines = timeline.grid(width).split("\n")
    assert len(lines) == timeline.num_ranks
    assert max(map(len, lines)) <= max(width, len("rank 0 |") + 4) + 1


@pytest.mark.parametrize("width", [10**10, 10**13, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_huge_width_is_no_crash(width: int) -> None:
    """Either an error, or no wider than there is to draw."""
    code = f"""
import dualpipe_rs as dp
try: print(len(dp.schedule("gpipe", 2, 2).simulate().grid({width})) < 1000)
except (dp.Error, OverflowError): print(True)
"""
    answer = python(code, gibibytes=1)
    assert answer.stdout == "True\n", answer.stderr


@pytest.mark.parametrize("width", [-1, 1.5, "80", None, 2**64], ids=repr)
def test_widths_that_are_none(width: Any) -> None:
    with pytest.raises((dp.Error, TypeError, OverflowError)):
        dp.schedule("gpipe", 2, 2).simulate().grid(width)


# ---- The package -------------------------------------------------------------------------------------------


def test_importing_loads_neither_torch_nor_numpy() -> None:
    code = """
import json, sys
import dualpipe_rs as dp
dp.schedule("dualpipe", 4, 8).verify()
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"torch", "numpy", "tqdm", "matplotlib"})))
"""
    answer = python(code)
    assert json.loads(answer.stdout) == [], answer.stderr


def test_every_public_name_is_there() -> None:
    assert dir(dp) == sorted(dp.__all__)
    assert len(set(dp.__all__)) == len(dp.__all__)
    pytest.importorskip("torch")
    for name in dp.__all__:
        assert getattr(dp, name) is getattr(dp, name), name


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dp.nothing  # noqa: B018


def test_what_is_public_says_what_it_is() -> None:
    pytest.importorskip("torch")
    for name in dp.__all__:
        assert getattr(dp, name).__doc__, name
    for public in (dp.Schedule, dp.Costs, dp.Timeline, dp.Program):
        undocumented = [n for n in dir(public) if not n.startswith("_") and not getattr(public, n).__doc__]
        assert undocumented == []


def test_exceptions_have_one_base() -> None:
    for error in (dp.UsageError, dp.ScheduleError, dp.RankError):
        assert issubclass(error, dp.Error)
    assert issubclass(dp.UsageError, ValueError)
    assert issubclass(dp.ScheduleError, ValueError)
    assert issubclass(dp.Error, Exception)
