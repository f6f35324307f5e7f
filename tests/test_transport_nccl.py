"""`transport="nccl"` as far as it goes without a GPU: a pipeline's worker over DLPack, on the host, equal to
serial; and what is refused. On GPUs: tests/gpu/. The executor under it: tests/test_executor_gpu.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training import data_for, piped, serial, stages_for

import dualpipe_rs as dp
from dualpipe_rs.distributed.gpu_wire import GpuWire
from dualpipe_rs.distributed.wire import Lost
from dualpipe_rs.on_gpu import callables

EQUAL = 1e-12


class OnHost:
    """In the place of what runs a pipeline's steps on a GPU: the same worker, and memory of the host."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def step(self, schedule: dp.Schedule, worker: Any, rank: int, settings: str, p2p: str) -> Any:
        return self.group.step(schedule, callables(worker, schedule, None), rank, settings, p2p)


@pytest.mark.parametrize(
    ("family", "ranks", "microbatches"),
    [("dualpipe", 4, 10), ("dualpipev", 3, 6), ("1f1b", 3, 4), ("zb-v", 2, 5), ("hanayo", 2, 3)],
)
@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
def test_tensors_that_go_by_dlpack_train_as_others_do(
    family: str, ranks: int, microbatches: int, interleaved: bool
) -> None:
    schedule = dp.schedule(family, ranks, microbatches)
    stages, data = stages_for(schedule), data_for(schedule)

    def make(modules: list[Any]) -> dp.Pipeline:
        pipe = dp.Pipeline(modules, schedule)
        pipe._on_gpu = OnHost(pipe.group)
        return pipe

    loss, gradient = piped(schedule, stages, data, interleaved=interleaved, make=make).off_from(
        serial(stages, data)
    )
    assert loss <= EQUAL
    assert gradient <= EQUAL


def test_another_transport_is_refused_in_words() -> None:
    with pytest.raises(dp.UsageError, match="transport is 'gloo'; \"nccl\" runs on GPUs"):
        dp.DualPipeV([nn.Linear(2, 2), nn.Linear(2, 2)], transport="gloo")


def test_stages_on_the_host_are_refused_in_words() -> None:
    def rank_main(group: dp.LocalGroup) -> None:
        dp.Pipeline([nn.Linear(2, 2)], "1f1b", transport="nccl")

    with pytest.raises(dp.UsageError, match=r'transport="nccl" needs the stages on a GPU.*are on cpu'):
        dp.run_local(rank_main, 2)


def test_requires_grad_travels_beside_the_tensors() -> None:
    seen: list[Any] = []

    class Worker:
        def forward(self, stage: int, microbatch: int, value: Any) -> Any:
            if stage == 1:
                seen.append(value)
                return None
            strided = torch.zeros(4, 6)[:, ::2]
            return torch.ones(2, requires_grad=True), None, torch.ones(3), strided.requires_grad_()

        def backward(self, stage: int, microbatch: int, grads: Any) -> Any:
            return (torch.ones(1).expand(2), None, None, None)

        backward_input = backward_weight = forward_backward = backward

    schedule = dp.schedule("gpipe", 2, 1)
    dp._core.run_ranks(schedule, callables(Worker(), schedule, None))  # type: ignore[arg-type]
    ((first, second, third, fourth),) = seen
    assert first.requires_grad
    assert first.is_leaf
    assert second is None
    assert not third.requires_grad
    assert fourth.requires_grad
    assert fourth.is_contiguous()


# ---- What processes tell each other ------------------------------------------------------------------------


def wire(store: Any, rank: int, failed: list[bool]) -> GpuWire:
    return GpuWire(
        rank,
        store,
        "gpu/1",
        others_failed=lambda: bool(failed),
        check_interrupts=lambda: None,
        timeout=0.01,
    )


def test_what_is_announced_is_heard_once() -> None:
    store, failed = torch.distributed.HashStore(), list[bool]()
    one, two = wire(store, 0, failed), wire(store, 1, failed)
    assert two.announced(0, "0F1", False) is None
    one.announce(1, "0F1", [0, 5, -1])
    assert two.announced(0, "0F1", True) == [0, 5, -1]
    assert two.announced(0, "0F1", False) is None


def test_who_waits_to_hear_says_so_and_stops_once_another_has_failed() -> None:
    failed = list[bool]()
    places = []
    one = GpuWire(
        1,
        torch.distributed.HashStore(),
        "gpu/1",
        others_failed=lambda: bool(failed),
        check_interrupts=lambda: (places.append(str(one.place())), failed.append(True)),  # type: ignore
        timeout=60.0,
    )
    assert one.enter(3, "1F0") is True or failed
    failed.clear()
    assert one.announced(0, "0F1", True) is None
    assert "waits to hear what 0F1 from rank 0 will be (slot 3, 1F0)" in places[-1]


def test_a_rank_that_announces_nothing_is_given_up() -> None:
    with pytest.raises(Lost, match="lost 0F1 of rank 0") as caught:
        wire(torch.distributed.HashStore(), 1, []).announced(0, "0F1", True)
    assert (caught.value.rank, caught.value.tensor) == (0, "0F1")
