"""torch's `compute_only` CSV: written, read, refused with its place, and run by torch's own runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dualpipe_rs as dp

TEXT = "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,1B1,0I1,0W1\n"
HELD = [name for name in dp.schedule_names() if name not in ("dualpipe", "chimera")]


def size_of(name: str) -> tuple[int, int]:
    return (3, 6) if name != "zb-h2" else (3, 7)


@pytest.mark.parametrize("name", HELD)
def test_round_trip(name):
    schedule = dp.schedule(name, *size_of(name))
    given = {"name": name, "placement": schedule.placement}  # One wave is a V too.
    assert dp.Schedule.from_torch_csv(schedule.to_torch_csv(), **given) == schedule
    forward = schedule.forward_only()
    assert dp.Schedule.from_torch_csv(forward.to_torch_csv(), **given) == forward


def test_what_is_written():
    assert dp.schedule("dualpipev", 1, 2).to_torch_csv() == TEXT


def test_idle_cells_and_line_ends_of_torch():
    idle = TEXT.replace("1B1,", ",1B1 , ,").replace("\n", ",\r\n")
    assert dp.Schedule.from_torch_csv(idle) == dp.Schedule.from_torch_csv(TEXT)


@pytest.mark.parametrize("name", ["dualpipe", "chimera"])
def test_what_torch_cannot_hold(name):
    with pytest.raises(dp.UsageError, match="each of its stages lives on two ranks, and torch keeps one"):
        dp.schedule(name, 2, 4).to_torch_csv()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.replace("1B1", "0F0garbage"), "line 1, column 38: .*0F0garbage.* is not an action"),
        (TEXT.replace("1B1", "1F"), "line 1, column 38: .* is not an action"),
        (TEXT.replace("1B1", "1SEND_F1"), "line 1, column 38: .*is no compute action; .*compute_only"),
        (TEXT.replace("1B1", "65536B1"), "line 1, column 38: .* is not an action"),
        (TEXT.replace("OVERLAP_F_B", ""), "line 1, column 17: .* is not a pair such as .*OVERLAP_F_B"),
        (TEXT.replace("0B0)", "0F0)"), "line 1, column 17: .*does not fuse a forward"),
        (TEXT + "\n" + TEXT, "line 2, column 1: this row is empty"),
        ("", "holds no row"),
        ("0F0,0B0\n0F1,0B1\n", "no placement .*give placement="),
        ("0F999999999\n", "1000000000 microbatches take 1000000000 forwards"),
        ("0F99999999\n", "100000000 microbatches"),
        ("0F9999\n", "10000 microbatches take 10000 forwards, and there are 1 actions"),
    ],
)
def test_refusals(text, says):
    with pytest.raises(dp.UsageError, match=says):
        dp.Schedule.from_torch_csv(text)


def test_given_sizes():
    rows = "0F0,0B0\n1F0,1B0\n"
    assert dp.Schedule.from_torch_csv(rows).placement == "linear"
    assert dp.Schedule.from_torch_csv(rows, placement="looped").placement == "looped"
    incomplete = dp.Schedule.from_torch_csv("0F0,0B0,0F1,0B1\n1F0,1B0\n", num_microbatches=2)
    with pytest.raises(dp.ScheduleError, match="1F1 is missing"):
        incomplete.verify()
    wrong = dp.Schedule.from_torch_csv("0F0,1B0\n1F0,0B0\n", placement="linear")
    with pytest.raises(dp.ScheduleError) as caught:
        wrong.verify()
    assert {v.kind for v in caught.value.violations} >= {"wrong_rank"}
    with pytest.raises(dp.UsageError, match="out of range of 1 stages"):
        dp.Schedule.from_torch_csv("0F0,1B0\n", num_stages=1, placement="looped")
    with pytest.raises(dp.UsageError, match=r"there is no placement .zigzag."):
        dp.Schedule.from_torch_csv(rows, placement="zigzag")
    with pytest.raises(dp.UsageError, match="it is one word"):
        dp.Schedule.from_torch_csv(rows, name="two words")


def test_torch_trains_under_our_tables(tmp_path: Path):
    """_PipelineScheduleRuntime on two gloo processes gives the serial gradients, to fp64 rounding."""
    given = [
        ("dualpipev", 2, 6, {}),
        ("zb-v", 2, 5, {}),
        ("v-half", 2, 6, {}),
        ("v-min", 2, 6, {}),
        ("interleaved", 2, 4, {}),
        ("interleaved-zb", 2, 4, {}),
        ("looped-bfs", 2, 4, {"stages_per_rank": 3}),
        ("hanayo", 2, 4, {"waves": 2}),
        ("zb-h1", 2, 4, {}),
    ]
    tables = []
    for name, ranks, microbatches, options in given:
        tables.append(tmp_path / f"{name}.csv")
        tables[-1].write_text(dp.schedule(name, ranks, microbatches, **options).to_torch_csv())
    script = Path(__file__).parent / "torch_runtime.py"
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", tmp_path / "store", *tables],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-3000:]
            errors = dict(line.split() for line in out.splitlines())
            assert list(errors) == [name for name, *_ in given]
            assert max(map(float, errors.values())) <= 1e-12, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
