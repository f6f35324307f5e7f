"""``save()`` and ``visualize_schedule()``: each suffix is a file of its kind, and what cannot be written is
told in a sentence."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import python
from pictures import cells_of, picture_of

import dualpipe_rs as dp

SUFFIXES = (".svg", ".html", ".png", ".pdf", ".json", ".pftrace")
HEADS = {
    ".svg": b"<svg ",
    ".html": b"<!DOCTYPE html>",
    ".png": b"\x89PNG\r\n",
    ".pdf": b"%PDF-",
    ".json": b"{",
}


@pytest.fixture(scope="module")
def timeline() -> dp.Timeline:
    return dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(overlap=2.4, p2p=0.1))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_suffix_says_which_file(suffix: str, timeline: dp.Timeline, tmp_path: Path) -> None:
    for name, seen in (("schedule", dp.schedule("dualpipe", 4, 8)), ("timeline", timeline)):
        for path in (tmp_path / f"{name}{suffix}", str(tmp_path / f"{name}-again{suffix.upper()}")):
            seen.save(path)
        first, again = (Path(p).read_bytes() for p in (tmp_path / f"{name}{suffix}", path))
        assert first.startswith(HEADS.get(suffix, b"\x0a"))
        assert first == again  # the same picture, the same bytes


def test_an_order_as_text(tmp_path: Path) -> None:
    schedule = dp.schedule("dualpipev", 2, 4)
    schedule.save(tmp_path / "x.txt")
    schedule.save(tmp_path / "x.csv")
    assert dp.Schedule.from_text((tmp_path / "x.txt").read_text()) == schedule
    assert (tmp_path / "x.csv").read_text() == schedule.to_torch_csv()


def test_a_png_has_the_colours_of_the_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    schedule = dp.schedule("dualpipe", 8, 20)
    schedule.save(tmp_path / "x.png", dpi=100)
    schedule.save(tmp_path / "x.svg", theme="light")
    svg = (tmp_path / "x.svg").read_text()
    colours = dict(re.findall(r"\.([FIWB]\d)\{fill:#(\w{6})\}", svg))
    pixels = (imread(tmp_path / "x.png")[..., :3] * 255).round().astype(int)
    for cell in cells_of(svg):
        # Near the lower left of the cell, away from its number and its border.
        x, y = round(cell.x + 3), round(cell.y + 21)
        rank_stages = schedule.stages_of(cell.rank)
        kind, stage, _ = cell.actions[0]
        expected = colours[f"{kind}{rank_stages.index(stage)}"]
        assert "".join(f"{part:02x}" for part in pixels[y, x]) == expected


def test_dots_and_widths(timeline: dp.Timeline, tmp_path: Path) -> None:
    sizes = []
    for dpi in (50, 200):
        timeline.save(tmp_path / "x.png", dpi=dpi, width=600)
        width, height = np.frombuffer((tmp_path / "x.png").read_bytes()[16:24], ">u4")
        assert width == 6 * dpi
        sizes.append(height / dpi)
    assert sizes[0] == pytest.approx(sizes[1], abs=0.02)
    with pytest.raises(dp.UsageError, match="dpi is '1e9'"):
        timeline.save(tmp_path / "x.png", dpi="1e9")


def test_a_page_holds_everything_and_loads_nothing(timeline: dp.Timeline, tmp_path: Path) -> None:
    timeline.save(tmp_path / "x.html", timeline)
    page = (tmp_path / "x.html").read_text()
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|\bfetch\(|import\(|url\(", page)
    panels = picture_of(page)["panels"]
    assert len(panels) == 2
    np.testing.assert_array_equal(np.sort(panels[0]["start"]), np.sort(_of_slots(timeline, "start")))


def _of_slots(timeline: dp.Timeline, field: str) -> np.ndarray:
    spans = timeline.spans
    first = np.r_[True, (spans["rank"][1:] != spans["rank"][:-1]) | (spans["slot"][1:] != spans["slot"][:-1])]
    return spans[field][first]


def test_a_page_of_many_slots_is_small(tmp_path: Path) -> None:
    dp.schedule("dualpipev", 64, 600).simulate(dp.Costs(p2p=0.1)).save(tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("suffix", [".gif", ".txt", "", ".svgz"])
def test_an_unknown_suffix_names_those_that_are_known(
    suffix: str, timeline: dp.Timeline, tmp_path: Path
) -> None:
    with pytest.raises(dp.UsageError, match=r"\.svg, \.html, \.png, \.pdf, \.json, \.pftrace"):
        timeline.save(tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(timeline: dp.Timeline, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        timeline.save(tmp_path / "missing" / "x.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(OSError, match=r"folder\.svg"):
        timeline.save(tmp_path / "folder.svg")
    with pytest.raises(dp.UsageError, match="path is of type BytesIO"):
        timeline.save(io.BytesIO())  # type: ignore[arg-type]


def test_options_of_another_file(timeline: dp.Timeline, tmp_path: Path) -> None:
    with pytest.raises(dp.UsageError, match="no option 'causes'"):
        timeline.save(tmp_path / "x.json", causes=True)
    with pytest.raises(dp.UsageError, match="holds one step, and 2"):
        timeline.save(tmp_path / "x.pftrace", timeline)
    with pytest.raises(dp.UsageError, match="no option 'unit'"):
        timeline.save(tmp_path / "x.svg", unit=1.0)


def test_without_matplotlib_the_rest_is_written(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["matplotlib"] = sys.modules["anywidget"] = None
import dualpipe_rs as dp
schedule = dp.schedule("dualpipe", 2, 4)
schedule.save({str(tmp_path / "x.svg")!r})
schedule.save({str(tmp_path / "x.html")!r})
for suffix in "png", "pdf":
    try:
        schedule.save({str(tmp_path)!r} + "/x." + suffix)
    except ModuleNotFoundError as error:
        assert "pip install 'dualpipe_rs[plot]'" in str(error), error
    else:
        raise AssertionError(suffix)
try:
    schedule.show().widget
except ModuleNotFoundError as error:
    assert "pip install 'dualpipe_rs[notebook]'" in str(error), error
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.html", "x.svg"]


def test_visualize_schedule(tmp_path: Path) -> None:
    view = dp.visualize_schedule(8, 20, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == view.svg() == dp.schedule("dualpipe", 8, 20).show().svg()
    costs = dp.Costs(forward=2.0)
    dp.visualize_schedule(
        num_stages=4, num_microbatches=8, output_file=str(tmp_path / "y.svg"), schedule="1f1b", costs=costs
    )
    ends = {cell.end for cell in cells_of((tmp_path / "y.svg").read_text())}
    assert max(ends) == dp.schedule("1f1b", 4, 8).simulate(costs).makespan
    pytest.importorskip("matplotlib")
    dp.visualize_schedule(4, 8, tmp_path / "z.png", dpi=50)
    assert (tmp_path / "z.png").read_bytes().startswith(HEADS[".png"])


def test_visualize_schedule_refuses(tmp_path: Path) -> None:
    with pytest.raises(dp.SizeError):
        dp.visualize_schedule(3, 8, tmp_path / "x.svg")
    with pytest.raises(dp.UsageError, match="4 ranks and 8 microbatches"):
        dp.visualize_schedule(2, 8, schedule=dp.schedule("1f1b", 4, 8))
    assert list(tmp_path.iterdir()) == []


def test_the_drawing_is_not_imported_with_the_package() -> None:
    code = "import sys, dualpipe_rs; sys.exit('dualpipe_rs.drawing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_picture_of_the_documentation_is_what_is_drawn() -> None:
    kept = Path(__file__).parent.parent / "docs" / "images" / "dualpipe.svg"
    assert kept.read_text() == dp.schedule("dualpipe", 8, 20).show().svg()


def test_a_view_writes_every_kind_of_file(timeline: dp.Timeline, tmp_path: Path) -> None:
    """A view's own options are those of pictures, and no hindrance to a trace or a text."""
    view = timeline.show(causes=True)
    view.save(tmp_path / "x.json", unit=1e-3)
    assert (tmp_path / "x.json").read_text() == timeline.to_chrome_json(unit=1e-3)
    dp.visualize_schedule(4, 8, tmp_path / "x.pftrace")
    dp.schedule("dualpipev", 4, 8).show().save(tmp_path / "x.csv")
    view.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == view.svg()


def test_a_picture_of_too_many_dots(timeline: dp.Timeline, tmp_path: Path) -> None:
    with pytest.raises(dp.UsageError, match="smaller width or dpi"):
        timeline.save(tmp_path / "x.png", width=20_000, dpi=2400)
