"""`dp.Executor` on real GPUs: torch's tensors under every family, equal to a serial model on the CPU.

The code that these tests share is run on the CPU by tests/test_torch_stages.py. What a GPU's timing can hide
is looked for on the software device: tests/test_executor_gpu.py and rust/fakecuda/tests/executor/.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_stages as stages
from families import FAMILIES, sized
from torch_stages import assert_arrived, assert_equal, carried, serial

import dualpipe_rs as dp
from dualpipe_rs import _core

#: What a kernel of the overlap test spins for: some milliseconds on any GPU.
CYCLES = 20_000_000


def all_on_one(ranks: int) -> list[str]:
    return ["cuda:0"] * ranks


def one_each(ranks: int) -> list[str]:
    """A GPU for each rank; skips where there are fewer."""
    if torch.cuda.device_count() < ranks:
        pytest.skip("fewer GPUs")
    return [f"cuda:{rank}" for rank in range(ranks)]


# ---- What is here ------------------------------------------------------------------------------------------


def test_the_diagnosis_finds_driver_device_and_nccl() -> None:
    found = dp.cuda.diagnose()
    assert found.driver.reason is None
    assert found.driver.version is not None
    assert len(found.devices) == torch.cuda.device_count()
    for device in found.devices:
        assert device.name == torch.cuda.get_device_name(device.index)
        assert device.compute_capability == torch.cuda.get_device_capability(device.index)
        assert device.memory_pools
    assert found.nccl.reason is None
    assert found.nccl.version is not None
    assert found.nccl.version >= (2, 14, 0)


def test_nccl_starts_and_ends_a_communicator() -> None:
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda:0")  # makes the device's context the current one
    _core.nccl_try(_core.nccl_unique_id(), 1, 0, stages.TIMEOUT)


# ---- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p2p", ["eager", "batched"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_serial_with_all_ranks_on_one_gpu(family: str, ranks: int, p2p: str) -> None:
    schedule = sized(family, ranks, 2 * ranks)
    made = stages.on_threads(schedule, all_on_one(schedule.num_ranks), p2p=p2p)
    assert_equal(made, serial(schedule, 2))


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_serial_with_all_ranks_on_one_thread(family: str, ranks: int) -> None:
    schedule = sized(family, ranks, 2 * ranks)
    assert_equal(stages.on_one_thread(schedule, "cuda:0"), serial(schedule, 2))


def test_the_default_stream_serves_too() -> None:
    """Neither ``stream`` nor torch's stream context is given: the functions compute on the legacy stream."""
    schedule = sized("1f1b", 2, 4)
    own = stages.Stages(schedule, "cuda:0")
    dp.Executor(schedule, **own.functions(), device=0, timeout=stages.TIMEOUT).step()
    assert_equal(own.gradients(), serial(schedule))


@pytest.mark.parametrize(
    "options",
    [
        {"p2p": "eager"},
        {"p2p": "rendezvous"},
        {"p2p": "batched"},
        {"p2p": "batched", "communicators": "pair"},
        {"p2p": "eager", "max_ctas": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_serial_over_nccl(family: str, ranks: int, options: dict[str, Any]) -> None:
    schedule = sized(family, ranks, 2 * ranks)
    made = stages.on_threads(schedule, one_each(schedule.num_ranks), **options)
    assert_equal(made, serial(schedule, 2))


# ---- Failures ----------------------------------------------------------------------------------------------


def test_after_a_failure_on_one_gpu_the_next_step_is_right() -> None:
    schedule = sized("1f1b", 3, 6)
    assert_equal(stages.fail_then_go_on(schedule, all_on_one(3)), serial(schedule))


def test_after_a_failure_over_nccl_the_next_step_is_right() -> None:
    schedule = sized("1f1b", 2, 4)
    assert_equal(stages.fail_then_go_on(schedule, one_each(2)), serial(schedule))


def test_a_tensor_with_gaps_is_refused_in_words() -> None:
    gaps = torch.arange(24.0, device="cuda:0")[::3]
    with pytest.raises(dp.RankError, match="do not lie side by side"):
        carried(lambda: gaps, all_on_one(2))


def test_a_tensor_of_the_cpu_is_refused_in_words() -> None:
    with pytest.raises(dp.RankError, match="is on cpu; the executor works on cuda:0"):
        carried(lambda: torch.zeros(1), all_on_one(2))


# ---- What travels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", stages.TENSORS)
@pytest.mark.parametrize("over", ["one GPU", "NCCL"])
def test_tensors_arrive(name: str, over: str) -> None:
    devices = all_on_one(2) if over == "one GPU" else one_each(2)
    tensor = stages.TENSORS[name](devices[0])
    if not stages.travels(tensor):
        pytest.skip("this torch does not hand it over")
    torch.cuda.synchronize()  # it was made on another stream than the one that hands it over
    assert_arrived(carried(lambda: tensor, devices), tensor)


def test_a_tuple_arrives_as_such() -> None:
    values = (torch.ones(2, device="cuda:0"), None, torch.arange(3, device="cuda:0"))
    torch.cuda.synchronize()
    first, second, third = carried(lambda: values, all_on_one(2))
    assert first.tolist() == [1.0, 1.0]
    assert second is None
    assert third.tolist() == [0, 1, 2]


def test_large_tensors_arrive_whole() -> None:
    """64 MiB of numbers each of which says where it is."""
    devices = all_on_one(2) if torch.cuda.device_count() < 2 else one_each(2)
    tensor = torch.arange(2**23, device=devices[0])
    torch.cuda.synchronize()
    assert_arrived(carried(lambda: tensor, devices), tensor)


# ---- Overlap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["one GPU", "NCCL"])
def test_ranks_compute_at_the_same_time_and_in_order(over: str) -> None:
    """The kernels are far longer than a launch: spans of two ranks overlap, and each follows its input.

    Where `CUDA_DEVICE_MAX_CONNECTIONS` is 1, streams of one GPU may wait for each other.
    """
    devices = all_on_one(2) if over == "one GPU" else one_each(2)
    schedule = dp.schedule("1f1b", 2, 6)

    def rank_main(group: dp.LocalGroup) -> dp.Timeline:
        device = devices[group.rank()]

        def work(*_: Any) -> Any:
            torch.cuda._sleep(CYCLES)
            return torch.zeros(4, device=device)

        with stages.computing_on(device) as stream:
            one = dp.Executor(
                schedule, forward=work, backward=work, device=device, stream=stream, timeout=stages.TIMEOUT
            )
            one.step()  # loads the kernels
            timeline = one.step()
            one.close()
        return timeline

    timeline = dp.run_local(rank_main, 2)[0]
    lengths = timeline.spans["end"] - timeline.spans["start"]
    assert stages.overlapping(timeline)
    assert timeline.makespan < lengths.sum()
    # Each rank counts from its own beginning of the step; they differ by far less than a kernel.
    stages.assert_in_order(timeline, schedule, slack=lengths.min() / 2)
