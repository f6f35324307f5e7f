"""Costs.from_components: stages known by their components, priced by stage and stage pair."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest

import dualpipe_rs as dp

LIGHT = dp.Components((1, 2, 1), (2, 3), (3, 2, 4), (1, 1), layers=2)
HEAVY = dp.Components((4, 9, 2), (6, 7), (4, 5, 5), (8, 5), layers=3)
STAGES = [LIGHT, HEAVY, HEAVY, LIGHT]


def test_by_stage_and_stage_pair() -> None:
    costs = dp.Costs.from_components(STAGES)
    for kind in ("forward", "backward_input", "backward_weight", "backward"):
        assert getattr(costs, kind) == [getattr(stage, kind) for stage in STAGES]
    assert costs.overlap == [[forward.pair(backward) for backward in STAGES] for forward in STAGES]
    assert LIGHT.pair(HEAVY) != HEAVY.pair(LIGHT)
    assert costs == dp.Costs.from_components(tuple(STAGES)) == pickle.loads(pickle.dumps(costs))


def test_one_for_all_stages() -> None:
    costs = dp.Costs.from_components(HEAVY)
    assert (costs.forward, costs.backward_input) == (HEAVY.forward, HEAVY.backward_input)
    assert (costs.backward_weight, costs.backward) == (HEAVY.backward_weight, HEAVY.backward)
    assert costs.overlap == HEAVY.pair()
    schedule = dp.schedule("dualpipe", 4, 8)
    same = dp.Costs.from_components([HEAVY] * 4)
    assert np.array_equal(schedule.simulate(costs).spans, schedule.simulate(same).spans)


def test_pairs_are_priced_as_the_schedule_fuses_them() -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    spans = schedule.simulate(dp.Costs.from_components(STAGES)).spans
    fused = [(a, b) for a, b in itertools.pairwise(spans) if list(a)[:2] == list(b)[:2]]
    assert fused
    for forward, backward in fused:
        lasts = STAGES[forward["stage"]].pair(STAGES[backward["stage"]])
        assert forward["end"] - forward["start"] == pytest.approx(lasts, rel=1e-12)


def test_all_else_by_keyword() -> None:
    costs = dp.Costs.from_components(STAGES, p2p=0.5, activation_bytes=[1, 2, 2, 1])
    assert (costs.p2p, costs.activation_bytes) == (0.5, [1, 2, 2, 1])
    assert dp.Costs.from_components(LIGHT, overlap=None).overlap is None
    with pytest.raises(dp.UsageError, match=r"^p2p is -1"):
        dp.Costs.from_components(LIGHT, p2p=-1)
    with pytest.raises(TypeError, match="hop"):
        dp.Costs.from_components(LIGHT, hop=1)


@pytest.mark.parametrize("stages", [3, None, "attention", [], [LIGHT, 3], [[LIGHT]], {0: LIGHT}])
def test_what_is_no_components(stages: Any) -> None:
    with pytest.raises(dp.UsageError, match=r"^stages is "):
        dp.Costs.from_components(stages)
