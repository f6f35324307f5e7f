"""Schedules side by side: the published figures on equal devices, every column counted again, and how a
comparison shows itself.
"""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pytest
from conftest import python, rows_of, shape_of
from oracle import dependencies, place
from oracle_costs import at

import dualpipe_rs as dp

NAMES = dp.schedule_names()
EQUAL_DEVICES = {  # p=8, m=32, F = I = W = 1, a pair 3: makespan, span
    "gpipe": (117, 117),
    "1f1b": (117, 117),
    "interleaved": (106.5, 106.5),
    "zb-h1": (103, 103),
    "zb-h2": (103, 96),
    "zb-v": (99.5, 96),
    "dualpipe": (102, 102),
    "dualpipev": (103, 103),
}
NUMBERS = ["makespan", "span", "bubble_ratio", "bubble_over_ideal", "peak_activations", "peak_bytes"]
NUMBERS += ["parameters", "parameter_bytes", "p2p_tensors", "p2p_bytes"]
TWICE = {"dualpipe", "chimera"}


def table() -> dp.Comparison:
    return dp.compare(list(EQUAL_DEVICES), 8, 32, dp.Costs(overlap=3.0))


# ---- The numbers -------------------------------------------------------------------------------------------


def test_published_makespans_on_equal_devices() -> None:
    assert {row["schedule"]: (row["makespan"], row["span"]) for row in table()} == EQUAL_DEVICES


def test_peaks_and_parameters_are_of_equal_parts_of_the_model() -> None:
    """A chunk of a V is half a part: 2p chunks are p microbatches of one part."""
    rows = {row["schedule"]: row for row in table()}
    peaks = {name: row["peak_activations"] for name, row in rows.items()}
    assert peaks["gpipe"] == 32
    assert peaks["1f1b"] == peaks["zb-h1"] == peaks["zb-v"] == 8
    assert peaks["interleaved"] == (2 * 7 + 8 + 1) / 2
    assert (peaks["zb-h2"], peaks["dualpipe"], peaks["dualpipev"]) == (15, 9, 8.5)
    assert {name: row["parameters"] for name, row in rows.items()} == {
        name: 2 if name in TWICE else 1 for name in rows
    }


def by_hand(name: str, options: dict[str, int], p: int, m: int, costs: dp.Costs) -> dict[str, Any]:
    """A row, from a simulation of costs that are cut by hand."""
    schedule = dp.schedule(name, p, m, **options)
    k = schedule.num_stages // p
    part = costs.cut(k)
    timeline = schedule.simulate(part)
    sent = tensors(schedule)
    held = [schedule.stages_of(rank) for rank in range(p)]
    sizes = [sum(at(part.parameter_bytes, stage) for stage in stages) for stages in held]
    return {
        "makespan": timeline.makespan,
        "span": timeline.span,
        "bubble_ratio": timeline.bubble_ratio,
        "bubble_over_ideal": timeline.idle.sum() / timeline.busy.sum(),
        "peak_activations": timeline.peak_activations.max() / k,
        "peak_bytes": timeline.peak_bytes().max(),
        "parameters": 2 if name in TWICE else 1,
        "parameter_bytes": max(sizes),
        "p2p_tensors": sum(sent.values()),
        "p2p_bytes": sum(n * at(costs.p2p_bytes, *edge) for edge, n in sent.items()),
    }


def tensors(schedule: dp.Schedule) -> dict[tuple[int, int], int]:
    """What each rank takes from each other, counted slot by slot."""
    shape = shape_of(schedule)
    rank_of, stands = place(*shape), {a for row in rows_of(schedule) for slot in row for a in slot}
    sent: dict[tuple[int, int], int] = {}
    for action in stands:
        for need in dependencies(action, shape.stages):
            maker = next((a for a in need if a in stands), None)
            edge = (rank_of(maker[0], maker[2]), rank_of(action[0], action[2])) if maker else (0, 0)
            if edge[0] != edge[1]:
                sent[edge] = sent.get(edge, 0) + 1
    return sent


CHOICES = [(name, {}) for name in NAMES] + [
    ("interleaved", {"stages_per_rank": 1}),
    ("interleaved", {"stages_per_rank": 4}),
    ("hanayo", {"waves": 2}),
    ("looped-bfs", {"stages_per_rank": 3}),
]
COSTS = [
    dp.Costs(),
    dp.Costs(2, 3, 1, overlap=5, p2p=0.25, activation_bytes=8, weight_grad_bytes=4, p2p_bytes=2),
    dp.Costs(
        [1, 2, 3, 4],
        [2, 1, 2, 1],
        backward=[4, 3, 4, 3],
        p2p=np.arange(16).reshape(4, 4) / 8,
        p2p_bytes=np.arange(16).reshape(4, 4),
        p2p_bandwidth=8,
        parameter_bytes=[96, 12, 24, 48],
        first_extra=(1, 0, 1),
        last_extra=(1, 2, 1),
        gradient_exchange=2,
        optimizer=[1, 2, 1, 2],
    ),
]


@pytest.mark.parametrize("costs", COSTS, ids=["plain", "numbers", "sequences"])
@pytest.mark.parametrize(("name", "options"), CHOICES, ids=str)
def test_every_column_counted_again(name: str, options: dict[str, int], costs: dp.Costs) -> None:
    row = dp.compare([(name, options)], 4, 8, costs)[0]
    expected = by_hand(name, options, 4, 8, costs)
    assert {column: row[column] for column in NUMBERS} == pytest.approx(expected, rel=1e-12)
    assert row["note"] is None


@pytest.mark.parametrize(("name", "options"), CHOICES, ids=str)
def test_tensors_between_ranks(name: str, options: dict[str, int]) -> None:
    for schedule in (dp.schedule(name, 4, 8, **options), dp.schedule(name, 4, 8, **options).forward_only()):
        sent = schedule.p2p_tensors()
        assert (sent.shape, sent.dtype) == ((4, 4), np.dtype("u4"))
        assert {edge: n for edge, n in np.ndenumerate(sent) if n} == tensors(schedule)


@pytest.mark.parametrize("p2p", ["rendezvous", "batched"])
def test_other_semantics(p2p: str) -> None:
    costs = dp.Costs(p2p=0.5)
    for row in dp.compare(NAMES, 4, 8, costs, p2p=p2p):
        schedule = dp.schedule(row["schedule"], 4, 8)
        part = costs.cut(schedule.num_stages // 4)
        assert row["makespan"] == schedule.simulate(part, p2p=p2p).makespan


# ---- Rows without numbers ----------------------------------------------------------------------------------


def test_sizes_that_a_family_cannot_take() -> None:
    found = dp.compare(["dualpipe", "1f1b", "chimera", "zb-h2", "dualpipev"], 5, 6)
    assert [row["schedule"] for row in found] == ["dualpipe", "1f1b", "chimera", "zb-h2", "dualpipev"]
    assert [row["makespan"] is None for row in found] == [True, False, True, True, True]
    for row in found:
        if row["makespan"] is None:
            assert {row[name] for name in NUMBERS} == {None}
            assert "nearest legal size" in row["note"]
    assert [timeline is None for timeline in found.timelines] == [True, False, True, True, True]


def test_a_schedule_that_cannot_run_has_no_numbers() -> None:
    blocking = dp.compare(["1f1b", "gpipe"], 4, 8, p2p="blocking")
    assert [row["makespan"] is None for row in blocking] == [True, False]
    assert blocking[0]["note"]
    shallow = dp.compare(["dualpipe", "1f1b"], 4, 8, p2p="rendezvous", depth=1)
    assert [row["makespan"] is None for row in shallow] == [True, False]


def test_the_note_says_why_it_cannot_run() -> None:
    assert "deadlock" in dp.compare(["1f1b"], 4, 8, p2p="blocking")[0]["note"]


# ---- What is compared --------------------------------------------------------------------------------------


def test_names_options_and_schedules() -> None:
    own = dp.Schedule.from_text(dp.schedule("zb-h1", 4, 8).to_text().replace("name=zb-h1", "name=mine"))
    found = dp.compare(["gpipe", ("hanayo", {"waves": 2}), own, ("1f1b", {})], 4, 8)
    titles = ["gpipe", "hanayo (waves=2)", "mine", "1f1b"]
    assert [row["schedule"] for row in found] == titles
    assert found[2]["makespan"] == dp.schedule("zb-h1", 4, 8).simulate().makespan
    assert [t and t.makespan for t in found.timelines] == [row["makespan"] for row in found]
    assert (len(found), found[-1]["schedule"], len(list(found))) == (4, "1f1b", 4)
    assert found.costs == dp.Costs()
    assert [row["schedule"] for row in dp.compare("gpipe", 4, 8)] == ["gpipe"]
    assert [row["schedule"] for row in dp.compare(own, 4, 8)] == ["mine"]
    assert [row["schedule"] for row in dp.compare(iter(["gpipe"]), 4, 8)] == ["gpipe"]
    assert len(dp.compare([], 4, 8)) == 0


def test_two_schedules_of_one_name() -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    found = dp.compare([schedule, schedule.forward_only()], 2, 4)
    assert len(found.timelines) == 2


def test_a_row_is_a_copy() -> None:
    found = dp.compare(["gpipe"], 2, 2)
    found[0]["makespan"] = 0
    next(iter(found))["span"] = 0
    assert (found[0]["makespan"], found[0]["span"]) == (9, 9)
    with pytest.raises(IndexError):
        found[1]


BAD: list[Any] = [
    ((["nothing"], 4, 8), "nothing"),
    (([("interleaved", {"waves": 2})], 4, 8), "waves"),
    (([("interleaved", {"stages_per_rank": 0})], 4, 8), "stages_per_rank"),
    (([3], 4, 8), "3 is no schedule"),
    (([None], 4, 8), "None is no schedule"),
    (([("1f1b",)], 4, 8), "is no schedule"),
    (([("1f1b", 2)], 4, 8), "is no schedule"),
    (([dp.schedule("gpipe", 4, 4)], 4, 8), "4 ranks and 4 microbatches"),
    (([dp.schedule("gpipe", 2, 8)], 4, 8), "2 ranks and 8 microbatches"),
    ((["gpipe"], 4, 8, dp.Costs([1, 2])), "forward has 2"),
    ((["gpipe"], -1, 8), "num_ranks"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_compared(arguments: Any, words: str) -> None:
    with pytest.raises(dp.UsageError, match=words):
        dp.compare(*arguments)
    with pytest.raises(dp.UsageError, match="fast"):
        dp.compare(["gpipe"], 4, 8, p2p="fast")


def test_costs_that_are_none() -> None:
    with pytest.raises((dp.UsageError, TypeError)):
        dp.compare(["gpipe"], 4, 8, 3)  # type: ignore[arg-type]


def test_a_table_cut_into_more_than_memory_holds() -> None:
    code = """
import dualpipe_rs as dp
try: dp.Costs(overlap=[[1, 2], [3, 4]]).cut(65535)
except (dp.UsageError, MemoryError): print("refused")
"""
    assert python(code, gibibytes=1).stdout == "refused\n"


# ---- How it shows itself -----------------------------------------------------------------------------------


def test_as_text() -> None:
    found = dp.compare(["gpipe", "dualpipe", "1f1b"], 3, 6)
    head, *lines = repr(found).splitlines()
    assert head.split() == [name for name in found.columns if name != "note"]
    assert [line.split()[0] for line in lines[:3]] == ["gpipe", "dualpipe", "1f1b"]
    assert lines[0].split()[1:4] == ["24", "24", "25.00%"]
    assert lines[1].strip() == "dualpipe"
    assert lines[3].startswith("dualpipe: dualpipe takes an even number")
    assert max(map(len, lines[:3])) <= len(head)
    assert str(found) == repr(found)


def test_columns_of_bytes_only_where_there_are_bytes() -> None:
    hidden = {"peak_bytes", "parameter_bytes", "p2p_bytes", "note"}
    assert not hidden & set(dp.compare(["gpipe"], 2, 2).columns)
    assert hidden & set(dp.compare(["gpipe"], 2, 2, dp.Costs(parameter_bytes=1)).columns) == {
        "parameter_bytes"
    }
    shown = set(dp.compare(["gpipe"], 2, 2, dp.Costs(p2p_bytes=1)).columns)
    assert hidden & shown == {"peak_bytes", "p2p_bytes"}
    assert "note" in dp.compare(["dualpipe"], 3, 6).columns


def test_as_html() -> None:
    name = "<b>&amp;\"x'</td>"
    text = f"# name={name} placement=linear ranks=1 stages=1 microbatches=1\n0F0 0B0\n"
    schedule = dp.Schedule.from_text(text)
    page = dp.compare([schedule], 1, 1)._repr_html_()
    assert html.escape(name) in page
    assert "<b>" not in page
    found = table()
    page = found._repr_html_()
    assert re.findall(r"<(?!/)(\w+)", page).count("tr") == 1 + len(found)
    assert re.findall(r"<th>(.*?)</th>", page) == found.columns
    for tag in ("table", "thead", "tbody", "tr", "td", "th"):
        assert page.count(f"<{tag}>") == page.count(f"</{tag}>") > 0


@pytest.mark.parametrize("names", [["gpipe", "1f1b"], ["dualpipe", "gpipe"], ["dualpipe"], []], ids=str)
def test_as_data_frames(names: list[str]) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    found = dp.compare(names, 3, 6, dp.Costs(p2p_bytes=1))
    frame, other = found.to_pandas(), found.to_polars()
    assert isinstance(frame, pandas.DataFrame)
    assert isinstance(other, polars.DataFrame)
    assert list(frame.columns) == found.columns
    assert frame["schedule"].tolist() == names
    if names:
        assert other.columns == found.columns
        assert other["schedule"].to_list() == names
        assert other.rows(named=True) == [{name: row[name] for name in found.columns} for row in found]
    if names == ["gpipe", "1f1b"]:
        assert frame["makespan"].tolist() == [row["makespan"] for row in found]
        assert frame["p2p_tensors"].dtype.kind == "i"


def test_an_empty_polars_frame_has_its_columns() -> None:
    pytest.importorskip("polars")
    found = dp.compare([], 2, 2)
    assert found.to_polars().columns == found.columns
