"""What tests/gpu/ runs on GPUs, on the CPU: the stages of tests/torch_stages.py under `dp.Executor`."""

from __future__ import annotations

import numpy as np
import pytest
import torch_stages as stages
from families import FAMILIES, sized
from torch_stages import assert_equal, carried, serial

import dualpipe_rs as dp


@pytest.mark.parametrize("p2p", ["eager", "batched"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_serial(family: str, p2p: str) -> None:
    schedule = sized(family, 2, 4)
    expected = serial(schedule, 2)
    assert_equal(stages.on_threads(schedule, ["cpu"] * schedule.num_ranks, p2p=p2p), expected)
    assert_equal(stages.on_one_thread(schedule, "cpu", p2p=p2p), expected)


def test_a_wrong_gradient_is_seen() -> None:
    schedule = sized("1f1b", 2, 4)
    made = serial(schedule)
    made[0][0, 0] *= 1 + 1e-9
    with pytest.raises(AssertionError):
        assert_equal(made, serial(schedule))


def test_after_a_failure_the_next_step_is_right() -> None:
    schedule = sized("1f1b", 3, 6)
    assert_equal(stages.fail_then_go_on(schedule, ["cpu"] * 3), serial(schedule))


@pytest.mark.parametrize("name", stages.TENSORS)
def test_tensors_arrive(name: str) -> None:
    tensor = stages.TENSORS[name]("cpu")
    if not stages.travels(tensor):
        pytest.skip("this torch does not hand it over")
    stages.assert_arrived(carried(lambda: tensor, ["cpu"] * 2), tensor)


def test_overlap_is_seen_in_a_timeline() -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    timeline = schedule.simulate(dp.Costs())
    assert stages.overlapping(timeline)
    stages.assert_in_order(timeline, schedule)
    alone = dp.Executor(schedule, forward=lambda *_: np.zeros(1), backward=lambda *_: np.zeros(1))
    timeline = alone.step()
    assert not stages.overlapping(timeline), "on one thread nothing overlaps"
    stages.assert_in_order(timeline, schedule)
    with pytest.raises(AssertionError):
        stages.assert_in_order(timeline, schedule, slack=-timeline.makespan)
