"""What is drawn is what the schedule and the timeline say: every cell of an SVG read back, by its colour,
its number and its place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import copied, numbered, read
from families import FAMILIES, cases, sized
from measured import timeline_of
from pictures import areas_of, cells_of, classes_of, parse_block, rows_of, texts_of

import dualpipe_rs as dp
from dualpipe_rs._core import Picture
from dualpipe_rs.drawing.block import block

GOLDEN = Path(__file__).parent / "golden"


def svg_of(*seen: dp.Schedule | dp.Timeline, **options: object) -> str:
    return dp.View(*seen, **options).svg()


def random_timeline(schedule: dp.Schedule, rng: random.Random, p2p: str = "eager") -> dp.Timeline:
    stages = schedule.num_stages
    by_stage = {
        name: [rng.uniform(0.5, 2.0) for _ in range(stages)]
        for name in ("forward", "backward_input", "backward_weight")
    }
    return schedule.simulate(dp.Costs(**by_stage, p2p=rng.choice([0.0, 0.3])), p2p=p2p)


# The published figures.


@pytest.mark.parametrize(("name", "ranks", "microbatches"), [("dualpipe", 8, 20), ("dualpipev", 4, 10)])
def test_the_published_figures_cell_for_cell(name: str, ranks: int, microbatches: int) -> None:
    schedule = dp.schedule(name, ranks, microbatches)
    drawn = rows_of(cells_of(svg_of(schedule)))
    published = (GOLDEN / f"{name}_{ranks}x{microbatches}.txt").read_text().splitlines()
    assert [[cell.text for cell in row] for row in drawn] == [row.split() for row in published]


def test_the_published_figure_has_every_cell_at_its_time() -> None:
    schedule = dp.schedule("dualpipe", 8, 20)
    rows = rows_of(cells_of(svg_of(schedule)))
    spans = schedule.simulate().spans
    # One scale for all: where a unit of time begins is linear in the time.
    left, right = rows[0][0], max((cell for row in rows for cell in row), key=lambda cell: cell.end)
    unit = (right.x - left.x) / right.start
    for row in rows:
        for cell in row:
            own = spans[(spans["rank"] == cell.rank) & (spans["slot"] == cell.slot)]
            assert (cell.start, cell.end) == (own["start"][0], own["end"][0])
            assert cell.x == pytest.approx(left.x + cell.start * unit, abs=0.02)
            assert cell.width == pytest.approx(
                (cell.end - cell.start) * unit, abs=1.05
            )  # a hair line between
    assert len({cell.y for row in rows for cell in row}) == 8


# Any schedule, any costs.


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_drawn_as_it_is(name: str) -> None:
    rng = random.Random(name)
    for case in cases(name, 5, 12)[-3:]:
        schedule = case.make()
        for timeline in (schedule.simulate(), random_timeline(schedule, rng)):
            cells = cells_of(svg_of(timeline, width=12000.0))
            assert [[c.text for c in row] for row in rows_of(cells)] == [
                schedule.rank(r) for r in range(case.ranks)
            ]
            starts = {(c.rank, c.slot): (c.start, c.end) for c in cells}
            for span in timeline.spans:
                assert starts[span["rank"], span["slot"]] == (span["start"], span["end"])


def test_two_timelines_share_one_axis() -> None:
    schedule = dp.schedule("1f1b", 4, 8)
    short, long = schedule.simulate(), schedule.simulate(dp.Costs(forward=3.0))
    cells = cells_of(svg_of(short, long))
    first, second = ([c for c in cells if c.panel == panel] for panel in (0, 1))
    right = [max(c.x + c.width for c in panel) for panel in (first, second)]
    left = min(c.x for c in first)
    share = (right[0] - left) / (right[1] - left)
    assert share == pytest.approx(short.makespan / long.makespan, rel=1e-3)
    assert max(c.y for c in first) < min(c.y for c in second)
    fit = cells_of(svg_of(short, long, fit=True))
    ends = [max(c.x + c.width for c in fit if c.panel == panel) for panel in (0, 1)]
    assert ends[0] == pytest.approx(ends[1], abs=0.6)


def test_what_was_waited_for_and_what_decides_are_drawn_on_demand() -> None:
    timeline = dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(p2p=0.25))
    plain, full = svg_of(timeline), svg_of(timeline, causes=True, critical_path=True, memory=True)
    extra = {"c-warm_up", "c-dependency", "c-hop", "critical", "l-held"}
    assert not extra & classes_of(plain)
    assert extra <= classes_of(full)
    assert "idle: dependency" in texts_of(full)
    assert "rank 0 holds at most 5 activations" in texts_of(full)
    idle = [c for c in cells_of(full) if "waited before" in c.words]
    by_cause = timeline.idle_by_cause
    assert any("dependency" in c.words for c in idle) == bool(by_cause["dependency"].sum() > 0)
    # Each wait that comes before a slot is told of at that slot.
    waits = timeline.waits
    told = {(int(w["rank"]), int(w["slot"])) for w in waits if w["cause"] != "cool_down"}
    assert {(c.rank, c.slot) for c in idle} == told


def test_memory_is_in_bytes_where_the_costs_have_bytes() -> None:
    timeline = dp.schedule("1f1b", 2, 4).simulate(dp.Costs(activation_bytes=3e6))
    assert "rank 0 holds at most 6 MB" in texts_of(svg_of(timeline, memory=True))


def test_many_slots_become_columns_of_their_mean_colour() -> None:
    svg = svg_of(dp.schedule("dualpipev", 16, 400).simulate())
    assert len(svg) < 300_000
    assert cells_of(svg) == []
    assert any(name.startswith("m-") for name in classes_of(svg))


def test_the_optimizer_and_a_theme() -> None:
    timeline = dp.schedule("dualpipe", 2, 4).simulate(dp.Costs(gradient_exchange=1.0, optimizer=4.0))
    assert "optimizer" in texts_of(svg_of(timeline))
    light, dark, auto = (svg_of(timeline, theme=theme) for theme in ("light", "dark", "auto"))
    assert "prefers-color-scheme" in auto
    assert "prefers-color-scheme" not in light + dark
    assert ".paper{fill:#ffffff}" in light
    assert ".paper{fill:#ffffff}" not in dark


@pytest.mark.parametrize("name", ["1f1b", "dualpipe", "zb-v"])
def test_the_critical_path_lies_below_its_cells(name: str) -> None:
    timeline = random_timeline(sized(name, 4, 8), random.Random(name))
    svg = svg_of(timeline, critical_path=True, width=2000.0)
    critical = {(span["rank"], span["slot"]) for span in timeline.critical_path()}
    lines = areas_of(svg, "critical")
    for cell in cells_of(svg):
        middle = cell.x + cell.width / 2
        below = [a for a in lines if a.x <= middle <= a.x + a.width and 15 < a.y - cell.y < 26]
        assert bool(below) == ((cell.rank, cell.slot) in critical), cell


def test_idle_time_is_shaded_by_its_cause() -> None:
    timeline = dp.schedule("zb-h1", 4, 8).simulate(dp.Costs(p2p=0.3, forward=1.3))
    svg = svg_of(timeline, causes=True, width=4000.0)
    cells = cells_of(svg)
    first, last = cells[0], max(cells, key=lambda cell: cell.end)
    unit = (last.x - first.x) / (last.start - first.start)
    for cause in np.unique(timeline.waits["cause"]):
        waits = timeline.waits[timeline.waits["cause"] == cause]
        drawn = sorted((area.x, area.width) for area in areas_of(svg, f"c-{cause}"))
        left = min(cell.x - cell.start * unit for cell in cells)
        expected = sorted((left + w["start"] * unit, (w["end"] - w["start"]) * unit) for w in waits)
        shown = [e for e in expected if e[1] >= 0.5]
        assert np.allclose(drawn, shown, atol=0.05), cause


# What is wrong is drawn, and marked.


def test_a_broken_schedule_is_drawn_with_its_cells_marked() -> None:
    text = dp.schedule("1f1b", 3, 4).to_text().splitlines()
    row = text[2].split()
    row[0], row[-1] = row[-1], row[0]
    text[2] = " ".join(row)
    schedule = dp.Schedule.from_text("\n".join(text))
    with pytest.raises(dp.ScheduleError) as caught:
        schedule.verify()
    svg = svg_of(schedule)
    assert [[c.text for c in r] for r in rows_of(cells_of(svg))] == [schedule.rank(r) for r in range(3)]
    assert "l-wrong" in classes_of(svg)
    marked = {
        (c.rank, c.slot) for c in cells_of(svg) if any(str(v) in c.words for v in caught.value.violations)
    }
    assert marked == {(v.rank, v.slot) for v in caught.value.violations if v.slot is not None}
    framed = [(area.x + 1, area.y + 1) for area in areas_of(svg, "l-wrong")]
    cells = [(c.x, c.y) for row in rows_of(cells_of(svg)) for c in row if (c.rank, c.slot) in marked]
    np.testing.assert_allclose(sorted(framed), sorted(cells), atol=0.02)
    assert "violat" in repr(dp.View(schedule)) or "rule" in repr(dp.View(schedule))


@pytest.mark.parametrize("seed", range(60))
def test_any_rows_can_be_drawn(seed: int) -> None:
    cached, shape = numbered(seed)
    rows = copied(cached)
    rng = random.Random(seed)
    for row in rows:
        rng.shuffle(row)
        del row[rng.randrange(len(row) + 1) :]
    try:
        schedule = read(rows, shape)
    except dp.Error:
        return  # refused as a text
    svg = svg_of(schedule, causes=True, critical_path=True, memory=True)
    ElementTree.fromstring(svg)
    parse_block(block(Picture([schedule])))


def test_a_missing_action_is_told_below() -> None:
    text = "# name=x placement=linear ranks=1 stages=1 microbatches=2\n0F0 0F1 0B0"
    svg = svg_of(dp.Schedule.from_text(text))
    assert any("0B1" in text or "microbatch 1" in text for text in texts_of(svg))


def test_a_step_that_takes_no_time_is_a_sensible_picture() -> None:
    nothing = dp.Costs(forward=0.0, backward_input=0.0, backward_weight=0.0)
    timeline = dp.schedule("dualpipe", 4, 8).simulate(nothing)
    for options in ({}, {"causes": True, "critical_path": True, "memory": True, "fit": True}):
        svg = svg_of(timeline, timeline, **options)
        assert "no slot takes any time" in texts_of(svg)
        assert "nan" not in svg.lower().replace("dominan", "")
        assert "inf" not in svg.lower()


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e290])
def test_any_unit_of_time(scale: float) -> None:
    costs = dp.Costs(forward=scale, backward_input=scale, backward_weight=scale)
    svg = svg_of(dp.schedule("zb-h1", 3, 5).simulate(costs), causes=True, critical_path=True)
    xs = [cell.x for row in rows_of(cells_of(svg)) for cell in row]
    expected = [c.x for row in rows_of(cells_of(svg_of(dp.schedule("zb-h1", 3, 5)))) for c in row]
    assert xs == pytest.approx(expected, abs=0.02)


def test_names_cannot_break_out() -> None:
    text = "# name=<script>&\"' placement=linear ranks=1 stages=1 microbatches=1\n0F0 0B0"
    try:
        schedule = dp.Schedule.from_text(text)
    except dp.Error:
        return
    ElementTree.fromstring(svg_of(schedule))
    assert "<script>&" not in dp.View(schedule).html().split("</title>")[0]


# What the canvas is handed.


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev", "interleaved", "zb-v", "hanayo"])
def test_the_canvas_is_handed_the_timeline(name: str) -> None:
    timeline = random_timeline(cases(name, 5, 12)[-1].make(), random.Random(3))
    picture = parse_block(block(Picture([timeline, timeline])))
    assert [panel["title"] for panel in picture["panels"]] == [picture["panels"][0]["title"]] * 2
    panel = picture["panels"][1]
    spans = timeline.spans
    firsts = panel["slot_firsts"]
    number = firsts[spans["rank"]] + spans["slot"]
    assert panel["length"] == timeline.makespan
    np.testing.assert_array_equal(panel["start"][number], spans["start"])
    np.testing.assert_array_equal(panel["end"][number], spans["end"])
    second = np.r_[False, (number[1:] == number[:-1])]
    for which, end in ((~second, ""), (second, "2")):
        own, at = spans[which], number[which]
        assert ["FIWB"[kind] for kind in panel[f"kind{end}"][at]] == own["kind"].tolist()
        np.testing.assert_array_equal(panel[f"stage{end}"][at], own["stage"])
        np.testing.assert_array_equal(panel[f"microbatch{end}"][at], own["microbatch"])
    assert (panel["kind2"] != 255).sum() == second.sum()
    critical = {(span["rank"], span["slot"]) for span in timeline.critical_path()}
    assert set(np.flatnonzero(panel["critical"])) == {firsts[rank] + slot for rank, slot in critical}
    transfers = timeline.transfers
    np.testing.assert_array_equal(panel["hop_to"], firsts[transfers["rank"]] + transfers["slot"])
    np.testing.assert_array_equal(panel["hop_from"], firsts[transfers["source"]] + transfers["source_slot"])
    np.testing.assert_array_equal(panel["hop_end"], transfers["end"])
    waits = timeline.waits
    np.testing.assert_array_equal(panel["wait_end"], waits["end"])
    causes = [picture["causes"][cause][0] for cause in panel["wait_cause"]]
    assert causes == waits["cause"].tolist()


def test_the_same_picture_is_the_same_bytes() -> None:
    make = lambda: dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(p2p=0.1))  # noqa: E731
    assert svg_of(make()) == svg_of(make())
    assert dp.View(make()).html() == dp.View(make()).html()


# In a notebook and in a terminal.


def test_a_notebook_gets_a_widget_a_picture_and_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    for seen in (schedule, schedule.simulate(), schedule.show(schedule.simulate())):
        made = seen._repr_mimebundle_()
        data = made[0] if isinstance(made, tuple) else made
        assert "application/vnd.jupyter.widget-view+json" in data
        assert data["image/svg+xml"].startswith("<svg")
        assert "rank 3" in data["text/plain"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert set(schedule._repr_mimebundle_()) == {"text/plain", "image/svg+xml"}
    json.dumps(schedule._repr_mimebundle_())


def test_a_slider_changes_the_picture_in_its_place() -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    view = schedule.show()
    before = parse_block(view.widget._picture)
    view.update(schedule.simulate(dp.Costs(forward=2.0)))
    after = parse_block(view.widget._picture)
    assert before["panels"][0]["length"] == 15.0
    assert after["panels"][0]["length"] == 20.0
    assert view.svg() == svg_of(schedule.simulate(dp.Costs(forward=2.0)), memory=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": True}, "no option 'colour'"),
        ({"causes": 1}, "causes is 1"),
        ({"theme": "sepia"}, "theme is 'sepia'"),
        ({"width": float("nan")}, "width is nan"),
        ({"width": 10}, "240 to 20000"),
        ({"width": "wide"}, "width is 'wide'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(dp.UsageError, match=words.replace("(", r"\(")):
        dp.schedule("1f1b", 2, 4).show(**options)


def test_nothing_to_see() -> None:
    with pytest.raises(dp.UsageError, match="nothing to see"):
        dp.View()
    with pytest.raises(dp.UsageError, match="of type str"):
        dp.View("1f1b")  # type: ignore[arg-type]


def test_an_update_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    view = dp.schedule("1f1b", 2, 4).show()
    before = view.svg()
    with pytest.raises(dp.UsageError):
        view.update(3)  # type: ignore[arg-type]
    view.save(tmp_path / "x.svg")
    assert view.svg() == before == (tmp_path / "x.svg").read_text()


def test_bytes_of_any_size_are_drawn() -> None:
    for held in (5e-324, 1e-300, 1e300):
        timeline = dp.schedule("1f1b", 2, 4).simulate(dp.Costs(activation_bytes=held))
        svg = svg_of(timeline, memory=True)
        assert "NaN" not in svg
        assert ",inf" not in svg
        assert ",-inf" not in svg


def test_timelines_that_count_alike_have_curves_of_one_scale() -> None:
    gpipe, other = dp.schedule("gpipe", 4, 16).simulate(), dp.schedule("1f1b", 4, 16).simulate()
    root = ElementTree.fromstring(svg_of(gpipe, other, memory=True))
    heights = []
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        if line.attrib["class"] == "l-held":
            ys = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
            heights.append(max(ys) - min(ys))
    assert heights[1] / heights[0] == pytest.approx(4 / 16, abs=0.01)


def test_a_measured_step_begins_at_nothing_and_is_in_seconds() -> None:
    timeline = timeline_of("dualpipev", 2, 7)
    spans = timeline.spans
    svg = svg_of(timeline, width=8000.0)
    first = spans["start"].min()
    drawn = {(c.rank, c.slot): (c.start, c.end) for c in cells_of(svg)}
    if drawn:
        assert drawn == {(s["rank"], s["slot"]): (s["start"] - first, s["end"] - first) for s in spans}
    panel = parse_block(block(Picture([timeline])))["panels"][0]
    assert panel["start"].min() == 0.0
    assert panel["end"].max() == timeline.makespan
    assert panel["unit"] == "s"
    assert any("s" in text and "measured makespan" in text for text in texts_of(svg))


def test_the_fullest_rank_is_in_front() -> None:
    """Its peak, by an order in which the others hold less."""
    timeline = dp.schedule("1f1b", 4, 8).simulate()
    assert timeline.peak_activations.tolist() == [4, 3, 2, 1]
    assert "rank 0 holds at most 4 activations" in texts_of(svg_of(timeline, memory=True))
    heavy = dp.schedule("1f1b", 4, 8).simulate(dp.Costs(activation_bytes=[1.0, 1.0, 1.0, 9e3]))
    assert "rank 3 holds at most 9 kB" in texts_of(svg_of(heavy, memory=True))
