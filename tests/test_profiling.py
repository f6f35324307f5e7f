"""profile_schedule: steps measured and predicted, with no trace on the model or the pipeline; and the log."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from processes import run_processes
from torch import nn

import dualpipe_rs as dp

KEYS = {
    *("step_time", "throughput", "makespan", "bubble_ratio", "measured"),
    *("costs", "predicted", "predicted_makespan", "predicted_bubble_ratio"),
}


def model(layers: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def check(found: dict, order: dp.Schedule, samples: int) -> None:
    assert found.keys() == KEYS
    assert found["measured"].is_measured
    assert not found["predicted"].is_measured
    assert len(found["measured"].spans) == len(found["predicted"].spans)
    assert found["throughput"] == pytest.approx(samples / found["step_time"])
    assert found["makespan"] == found["measured"].makespan <= 2 * found["step_time"]
    assert found["predicted_makespan"] == order.simulate(found["costs"]).makespan
    assert 0 <= found["predicted_bubble_ratio"] < 1


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev", "1f1b", "interleaved"])
def test_a_model_on_threads(name):
    layers, x = model(), torch.randn(16, 8)
    before = copy.deepcopy(layers.state_dict())
    found = dp.profile_schedule(name, layers, x, 3, criterion=F.mse_loss, labels=x, num_ranks=2, num_chunks=8)
    check(found, dp.schedule(name, 2, 8), 16)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layers.state_dict().values(), strict=True))
    assert all(p.grad is None for p in layers.parameters())


def test_a_given_schedule_and_no_criterion():
    order = dp.schedule("zb-h1", 2, 4)
    check(dp.profile_schedule(order, model(), torch.randn(8, 8), num_iterations=1), order, 8)


def test_a_scheduler_is_good_for_a_model_and_for_a_pipeline_that_runs_it():
    scheduler = dp.DualPipeScheduler(2, 8, "1f1b")
    check(dp.profile_schedule(scheduler, model(), torch.randn(16, 8), 1), scheduler.order, 16)
    v = dp.DualPipeScheduler(1, 2, "dualpipev")
    pipe = dp.DualPipeV([nn.Linear(8, 8), nn.Linear(8, 8)])
    check(dp.profile_schedule(v, pipe, torch.randn(4, 8), 1), v.order, 4)
    with pytest.raises(dp.UsageError, match="runs its own schedule"):
        dp.profile_schedule(dp.DualPipeScheduler(1, 2, "gpipe"), pipe, torch.randn(4, 8), 1)
    with pytest.raises(dp.UsageError, match="runs its own schedule"):
        dp.profile_schedule(v, pipe, torch.randn(4, 8), 1, num_chunks=4)


def _on_a_process(rank: int) -> dict:
    torch.manual_seed(0)
    pipe = dp.DualPipe([nn.Linear(8, 8), nn.Linear(8, 8)])
    for parameter in pipe.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = dp.profile_schedule(None, pipe, torch.randn(8, 8), 3, num_chunks=4)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in pipe.parameters())
    check(found, pipe.schedule_for(4), 16)
    return {key: found[key] for key in ("step_time", "bubble_ratio", "throughput")}


def test_a_pipeline_across_processes_tells_all_ranks_the_same():
    first, second = run_processes(2, _on_a_process)
    assert first == second


def test_the_log_tells_each_slot(caplog):
    pipe = dp.DualPipeV([nn.Linear(8, 8), nn.Linear(8, 8)])
    step = {"num_chunks": 2, "criterion": F.mse_loss, "labels": torch.ones(4, 8)}
    pipe.step(torch.ones(4, 8), **step)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "dualpipe_rs"):
        pipe.step(torch.ones(4, 8), **step)
    slots = [record for record in caplog.records if record.slot is not None]
    actions = sum(len(slot.split(";")) for slot in pipe.schedule_for(2).rank(0))
    assert len(slots) == actions
    assert {record.rank for record in caplog.records} == {0}
    assert slots[0].getMessage().startswith("rank 0, slot 0, 0F0: ")


def test_what_is_refused():
    with pytest.raises(dp.UsageError, match="at least 1 step"):
        dp.profile_schedule("1f1b", model(), torch.randn(4, 8), 0)
    with pytest.raises(dp.UsageError, match="with num_ranks and num_chunks"):
        dp.profile_schedule("1f1b", model(), torch.randn(4, 8))
    with pytest.raises(dp.UsageError, match="give None as scheduler"):
        dp.profile_schedule("1f1b", dp.DualPipeV([nn.Linear(8, 8), nn.Linear(8, 8)]), torch.randn(4, 8))
    unmeasured = dp.DualPipeV([nn.Linear(8, 8), nn.Linear(8, 8)], measure=False)
    with pytest.raises(dp.UsageError, match="measure=False"):
        dp.profile_schedule(None, unmeasured, torch.randn(4, 8), 1, num_chunks=2)


def test_a_batch_that_cannot_be_cut():
    with pytest.raises(dp.UsageError, match="7 samples cannot be cut into 8 microbatches"):
        dp.profile_schedule(dp.DualPipeScheduler(4, 8), model(), torch.randn(7, 8), 1)
