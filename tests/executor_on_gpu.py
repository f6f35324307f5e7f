"""What tests/test_executor_gpu.py runs in a process that sees the software device: one function a case."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import fake_gpu
import pytest
from fake_gpu import Array, Device, from_dlpack

import dualpipe_rs as dp
from dualpipe_rs import _core
from dualpipe_rs.place import Place


class Stages:
    """``y = 2 x + stage``, and backward ``3 g + 1``; what stage 0's backward makes is kept."""

    def __init__(self, schedule: dp.Schedule, device: Device) -> None:
        self.device = device
        self.last = schedule.num_stages - 1
        self.inputs = {m: device.of([m, 1.0, 2.0, 3.0]) for m in range(schedule.num_microbatches)}
        self.ends: dict[int, Array] = {}
        self.made: dict[int, Array] = {}
        self.failing: tuple[int, int] | None = None

    def forward(self, stage: int, microbatch: int, x: Array | None) -> Array:
        if (stage, microbatch) == self.failing:
            raise ValueError("a fault of the test's")
        y = self.device.axpb(2.0, self.inputs[microbatch] if x is None else x, float(stage), 1e-3)
        if stage == self.last:
            self.ends[microbatch] = y
        return y

    def backward(self, stage: int, microbatch: int, g: Array | None) -> Array:
        made = self.device.axpb(3.0, self.ends[microbatch] if g is None else g, 1.0, 1e-3)
        if stage == 0:
            self.made[microbatch] = made
        return made

    def functions(self) -> dict[str, Any]:
        return {
            "forward": self.forward,
            "backward": self.backward,
            "backward_input": self.backward,
            "backward_weight": lambda *_: None,
        }

    def callables(self) -> _core.Callables:
        """The same as an executor has them, for what runs below it."""
        device = self.device
        functions = [*self.functions().values(), None]
        made = _core.Callables(self.last + 1, *functions, from_dlpack(device), device.index)
        made.set_stream(device.stream)
        return made

    def read(self) -> dict[int, list[float]]:
        return {m: array.read() for m, array in self.made.items()}


def expected(schedule: dp.Schedule) -> dict[int, list[float]]:
    answers = {}
    for microbatch in range(schedule.num_microbatches):
        values = [microbatch, 1.0, 2.0, 3.0]
        for stage in range(schedule.num_stages):
            values = [2.0 * value + stage for value in values]
        for _ in range(schedule.num_stages):
            values = [3.0 * value + 1.0 for value in values]
        answers[microbatch] = values
    return answers


def executor(schedule: dp.Schedule, stages: Stages, **options: Any) -> dp.Executor:
    device = stages.device
    return dp.Executor(
        schedule,
        **stages.functions(),
        device=device.index,
        stream=device.stream,
        from_dlpack=from_dlpack(device),
        timeout=20.0,
        **options,
    )


def assert_clean() -> None:
    gc.collect()
    report = fake_gpu.report()
    assert report["race_count"] == 0, report["races"]
    assert report["violation_count"] == 0, report["violations"]
    assert not any(report["live"].values()), report["live"]


def run(family: str, ranks: int, devices: int, steps: int = 2, **options: Any) -> None:
    """Ranks as threads, on one device or with one each; every step is right, and nothing is left."""
    fake_gpu.reset(devices)
    schedule = dp.schedule(family, ranks, 2 * ranks)

    def rank_main(group: dp.LocalGroup) -> dict[int, list[float]]:
        device = Device(group.rank() if devices > 1 else 0)
        stages = Stages(schedule, device)
        one = executor(schedule, stages, **options)
        for _ in range(steps):
            waits = fake_gpu.report_waits()
            timeline = one.step()
            assert fake_gpu.report_waits() == waits or group.size() > 1
            assert timeline.makespan > 0
        answers = stages.read()
        one.close()
        stages.inputs.clear(), stages.ends.clear(), stages.made.clear()
        device.close()
        return answers

    merged: dict[int, list[float]] = {}
    for answers in dp.run_local(rank_main, ranks):
        merged |= answers
    assert merged == expected(schedule)
    assert_clean()


def one_device() -> None:
    for family in ("1f1b", "dualpipe", "dualpipev", "zb-h1"):
        run(family, 4, 1)
    run("dualpipe", 4, 1, p2p="batched")


def a_device_each() -> None:
    for family in ("1f1b", "dualpipe", "dualpipev", "zb-h1"):
        run(family, 4, 4)
    run("dualpipe", 4, 4, p2p="batched", communicators="pair", max_ctas=4)


class DictControl:
    """What processes tell each other by their store, here by a dict."""

    def __init__(self, notes: dict[tuple[int, str], list[int]], rank: int) -> None:
        self.notes, self.rank, self.entered = notes, rank, 0

    def enter(self, index: int, action: str) -> bool:
        self.entered += 1
        return True

    def failed(self) -> bool:
        return False

    def announce(self, to: int, key: str, numbers: list[int]) -> None:
        self.notes[to, key] = numbers

    def announced(self, sender: int, key: str, wait: bool) -> list[int] | None:
        while (self.rank, key) not in self.notes:
            if not wait:
                return None
            time.sleep(1e-4)
        return self.notes.pop((self.rank, key))


def a_control_of_python() -> None:
    """As ranks in several processes run it: each by itself, with a control of Python's."""
    ranks = 4
    fake_gpu.reset(ranks)
    schedule = dp.schedule("dualpipe", ranks, 8)
    pairs = _core.communicators(schedule, "eager", "edge")
    ids = {pair: _core.nccl_unique_id() for pair in pairs}
    notes: dict[tuple[int, str], list[int]] = {}

    def rank_main(group: dp.LocalGroup) -> dict[int, list[float]]:
        rank = group.rank()
        device = Device(rank)
        stages = Stages(schedule, device)
        functions = stages.callables()
        place = _core.DeviceRank(rank, _core.DeviceShared(None), 20.0)
        place.start(rank, ids, "edge", None)
        while not place.poll():
            time.sleep(1e-4)
        for step in range(3):
            if step == 2:
                place.forget()
            control = DictControl(notes, rank)
            records = _core.run_rank_on(schedule, functions, place, control, rank, "eager")
            assert records is not None
            assert records.shape == (len(schedule.rank(rank)), 3)
            assert control.entered == len(schedule.rank(rank))
            group.exchange(None)
        assert not notes
        while not place.close():
            time.sleep(1e-4)
        answers = stages.read()
        del functions, place
        stages.inputs.clear(), stages.ends.clear(), stages.made.clear()
        device.close()
        return answers

    merged: dict[int, list[float]] = {}
    for answers in dp.run_local(rank_main, ranks):
        merged |= answers
    assert merged == expected(schedule)
    assert_clean()


def a_process_group_of_one() -> None:
    """A step on a GPU by way of torch.distributed, as far as one process goes: it sends to nobody."""
    import torch
    import torch.distributed as dist

    from dualpipe_rs.distributed import DistributedGroup

    fake_gpu.reset(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = DistributedGroup(dist.group.WORLD, timeout=20.0)
    group.connect([], torch.device("cpu"), 0)
    schedule = dp.schedule("dualpipev", 1, 4)
    device = Device(0)
    stages = Stages(schedule, device)
    functions = stages.callables()
    place = Place(group, 0, 0, sharing="edge", max_ctas=None, timeout=20.0).open(schedule, "eager")
    for _ in range(2):
        timeline = group.step(schedule, Signed(), 0, "", "eager", (functions, place))
        assert timeline is not None
        assert timeline.makespan > 0
    assert stages.read() == expected(schedule)
    stages.failing = (1, 2)
    with pytest.raises(dp.RankError, match=r"rank 0, slot .*1F2.*: ValueError: a fault"):
        group.step(schedule, Signed(), 0, "", "eager", (functions, place))
    stages.failing = None
    group.step(schedule, Signed(), 0, "", "eager", (functions, place))
    assert stages.read() == expected(schedule)
    one = executor(schedule, stages, group=dist.group.WORLD)
    for _ in range(2):
        assert one.step().makespan > 0
    assert stages.read() == expected(schedule)
    one.close()
    dist.destroy_process_group()


class Signed:
    """What a group asks of a worker whose slots the executor computes."""

    signature = 0


def one_thread() -> None:
    fake_gpu.reset(1)
    schedule = dp.schedule("dualpipev", 3, 6)
    device = Device(0)
    stages = Stages(schedule, device)
    one = executor(schedule, stages)
    one.step()
    before = fake_gpu.report()["host_waits"]
    one.step()
    assert fake_gpu.report()["host_waits"] == before
    assert stages.read() == expected(schedule)
    stages.inputs.clear(), stages.ends.clear(), stages.made.clear()
    del one
    device.close()
    assert_clean()


def failure_on_one_device() -> None:
    for kind in ("exception", "driver", "hang"):
        fail(1, kind)


def failure_with_a_device_each() -> None:
    for kind in ("exception", "driver", "hang"):
        fail(3, kind)


def fail(devices: int, kind: str) -> None:
    """A rank's own exception, a refusal of the driver's, a hang: all raise, and the next step is right."""
    fake_gpu.reset(devices)
    schedule = dp.schedule("1f1b", 3, 6)

    def rank_main(group: dp.LocalGroup) -> tuple[str, dict[int, list[float]]]:
        device = Device(group.rank() if devices > 1 else 0)
        stages = Stages(schedule, device)
        one = dp.Executor(
            schedule,
            **stages.functions(),
            device=device.index,
            stream=device.stream,
            from_dlpack=from_dlpack(device),
            timeout=3.0,
        )
        one.step()
        if group.rank() == 1:
            if kind == "exception":
                stages.failing = (1, 3)
            elif kind == "driver":
                fake_gpu.fault("cuStreamWaitEvent", 9, 700)
            else:
                fake_gpu.hang("recv" if devices > 1 else "copy", 5)
        group.exchange(None)
        begin = time.monotonic()
        with pytest.raises((dp.Error, TimeoutError, ValueError)) as caught:
            one.step()
        told = str(caught.value)
        del caught
        assert time.monotonic() - begin < 60
        if kind == "hang" and devices == 1:
            fake_gpu.release()
        stages.failing = None
        one.step()
        answers = stages.read()
        one.close()
        stages.inputs.clear(), stages.ends.clear(), stages.made.clear()
        device.close()
        return told, answers

    ranks = dp.run_local(rank_main, 3)
    print(devices, kind, {told for told, _ in ranks})
    merged = {m: values for _, answers in ranks for m, values in answers.items()}
    assert merged == expected(schedule)


def refusals() -> None:
    """What cannot be handed over, or opened, is told of in words, on every rank."""
    fake_gpu.reset(2)
    schedule = dp.schedule("gpipe", 2, 2)
    words = []
    for devices in ([0, 7], [0, 1, 1]):

        def rank_main(group: dp.LocalGroup, devices: list[int] = devices) -> str:
            one = dp.Executor(
                dp.schedule("gpipe", group.size(), 3),
                forward=lambda *_: None,
                backward=lambda *_: None,
                device=devices[group.rank()],
            )
            try:
                one.step()
            except dp.Error as error:
                return str(error)
            return ""

        words += dp.run_local(rank_main, len(devices))
    assert all(words), words
    assert all(
        "rank 1 opens its GPU, and could not" in told and "INVALID_DEVICE" in told for told in words[:2]
    )
    assert "NCCL takes one rank a GPU" in words[2], words
    device = Device(0)
    stages = Stages(schedule, device)
    strided = {**stages.functions(), "forward": lambda *_: Elsewhere(device)}
    one = dp.Executor(schedule, **strided, device=0, stream=device.stream)
    with pytest.raises(dp.RankError, match="is on cuda:1; the executor works on cuda:0"):
        one.step()


class Elsewhere:
    def __init__(self, device: Device) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("it is not asked for")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
