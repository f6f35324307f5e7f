"""Stages of torch under `dp.Executor`, on the CPU or on GPUs, and a serial model to compare with: no tests.

The functions are plain ones: a forward starts from a detached leaf and keeps its output, a backward is
``torch.autograd.backward`` of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import dualpipe_rs as dp

WIDTH, ROWS = 5, 3
EQUAL = 1e-12
#: Long enough for a machine that is busy; a hang is told of nonetheless.
TIMEOUT = 60.0


@contextmanager
def computing_on(device: str) -> Iterator[Any]:
    """A stream on a GPU, which torch uses inside; None on the CPU. Torch never ends its streams."""
    if device == "cpu":
        yield None
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream


class Stages:
    """All stages in double precision, of which a rank uses its own. A stage is ``tanh(x @ weight)``."""

    def __init__(self, schedule: dp.Schedule, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

        microbatches = range(schedule.num_microbatches)
        self.weights = [normal(WIDTH, WIDTH).requires_grad_() for _ in range(schedule.num_stages)]
        self.inputs = [normal(ROWS, WIDTH) for _ in microbatches]
        self.targets = [normal(ROWS, WIDTH) for _ in microbatches]
        self.last = schedule.num_stages - 1
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.late: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
        #: Where a forward raises.
        self.failing: tuple[int, int] | None = None

    def compute(self, stage: int, microbatch: int, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.weights[stage])
        return (y - self.targets[microbatch]).square().sum() if stage == self.last else y

    def forward(self, stage: int, microbatch: int, x: Tensor | None) -> Tensor:
        if (stage, microbatch) == self.failing:
            raise ValueError("a fault of the test's")
        x = (self.inputs[microbatch] if x is None else x).detach().requires_grad_()
        y = self.compute(stage, microbatch, x)
        self.kept[stage, microbatch] = x, y
        return y.detach()

    def backward(self, stage: int, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        x, y = self.kept.pop((stage, microbatch))
        torch.autograd.backward(y, gradient)
        return x.grad

    def backward_input(self, stage: int, microbatch: int, gradient: Tensor | None) -> Tensor:
        x, y = self.kept.pop((stage, microbatch))
        (made,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
        self.late[stage, microbatch] = y, gradient
        return made

    def backward_weight(self, stage: int, microbatch: int) -> None:
        y, gradient = self.late.pop((stage, microbatch))
        torch.autograd.backward(y, gradient, inputs=[self.weights[stage]])

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "forward": self.forward,
            "backward": self.backward,
            "backward_input": self.backward_input,
            "backward_weight": self.backward_weight,
        }

    def start_over(self) -> None:
        """Forgets what an earlier step, or a part of one, has left."""
        self.kept.clear()
        self.late.clear()
        self.failing = None
        for weight in self.weights:
            weight.grad = None

    def gradients(self) -> list[Tensor]:
        """By stage, on the host; zeros for a stage that is another rank's."""
        return [
            torch.zeros(WIDTH, WIDTH, dtype=torch.float64) if weight.grad is None else weight.grad.cpu()
            for weight in self.weights
        ]


def serial(schedule: dp.Schedule, steps: int = 1) -> list[Tensor]:
    """The gradients of an undivided model on the CPU."""
    own = Stages(schedule)
    for _ in range(steps):
        for microbatch, x in enumerate(own.inputs):
            for stage in range(schedule.num_stages):
                x = own.compute(stage, microbatch, x)
            x.backward()
    return own.gradients()


def added_up(ranks: Sequence[list[Tensor]]) -> list[Tensor]:
    """The sum over ranks, by stage."""
    return [torch.stack(parts).sum(0) for parts in zip(*ranks, strict=True)]


def assert_equal(made: list[Tensor], expected: list[Tensor]) -> None:
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (made, expected))
    assert (one - other).norm() <= EQUAL * other.norm()


def executor(schedule: dp.Schedule, stages: Stages, device: str, stream: Any, **options: Any) -> dp.Executor:
    place = {} if device == "cpu" else {"device": device, "stream": stream, "timeout": TIMEOUT}
    return dp.Executor(schedule, **{**stages.functions(), **place, **options})


def on_threads(schedule: dp.Schedule, devices: Sequence[str], steps: int = 2, **options: Any) -> list[Tensor]:
    """Gradients after some steps with a thread a rank, on a device each or all on one."""

    def rank_main(group: dp.LocalGroup) -> list[Tensor]:
        device = devices[group.rank()]
        with computing_on(device) as stream:
            stages = Stages(schedule, device)
            one = executor(schedule, stages, device, stream, **options)
            for _ in range(steps):
                assert one.step().makespan > 0
            assert not stages.kept
            assert not stages.late
            gradients = stages.gradients()
            one.close()
            return gradients

    return added_up(dp.run_local(rank_main, schedule.num_ranks))


def on_one_thread(schedule: dp.Schedule, device: str, steps: int = 2, **options: Any) -> list[Tensor]:
    """The same with all ranks in turn on this thread."""
    with computing_on(device) as stream:
        stages = Stages(schedule, device)
        one = executor(schedule, stages, device, stream, **options)
        for _ in range(steps):
            assert one.step().makespan > 0
        return stages.gradients()


def fail_then_go_on(schedule: dp.Schedule, devices: Sequence[str]) -> list[Tensor]:
    """A forward raises in the second step: all ranks raise. The gradients of the third, which is right."""

    def rank_main(group: dp.LocalGroup) -> tuple[str, list[Tensor]]:
        device = devices[group.rank()]
        with computing_on(device) as stream:
            stages = Stages(schedule, device)
            one = executor(schedule, stages, device, stream)
            one.step()
            stages.failing = (1, 1)
            words = ""
            try:
                one.step()
            except dp.RankError as error:
                words = str(error)
            if device != "cpu":
                torch.cuda.synchronize(device)  # before anything of the step that failed is let go of
            stages.start_over()
            one.step()
            gradients = stages.gradients()
            one.close()
            return words, gradients

    ranks = dp.run_local(rank_main, schedule.num_ranks)
    place = schedule.rank_of(1, 1)
    for words, _ in ranks:
        assert f"rank {place}, slot" in words
        assert "1F1: ValueError: a fault of the test's" in words
    return added_up([gradients for _, gradients in ranks])


def carried(sent: Callable[[], Any], devices: Sequence[str], **options: Any) -> Any:
    """What stage 1 is given of what stage 0 makes, two ranks on two threads."""
    schedule = dp.schedule("gpipe", 2, 1)

    def rank_main(group: dp.LocalGroup) -> Any:
        device = devices[group.rank()]
        arrived: list[Any] = []

        def forward(stage: int, microbatch: int, x: Any) -> Any:
            if stage == 0:
                return sent()
            arrived.append(x)
            return None

        def backward(stage: int, microbatch: int, gradient: Any) -> Tensor:
            return torch.zeros(1, device=device)

        with computing_on(device) as stream:
            place = {} if device == "cpu" else {"device": device, "stream": stream, "timeout": TIMEOUT}
            one = dp.Executor(schedule, forward=forward, backward=backward, **{**place, **options})
            one.step()
            one.close()
        return arrived[0] if arrived else None

    return dp.run_local(rank_main, 2)[1]


#: Tensors of types and strides that are to arrive as they are, made on a device.
TENSORS: dict[str, Callable[[str], Tensor]] = {
    "bf16": lambda device: torch.arange(6, device=device).reshape(2, 3).to(torch.bfloat16),
    "fp8 e4m3": lambda device: torch.arange(8.0, device=device).to(torch.float8_e4m3fn),
    "fp8 e5m2": lambda device: torch.arange(8.0, device=device).to(torch.float8_e5m2),
    "transposed": lambda device: torch.arange(6.0, device=device).reshape(2, 3).T,
    "permuted": lambda device: torch.arange(24.0, device=device).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": lambda device: torch.rand(2, 3, 4, 5, device=device).to(
        memory_format=torch.channels_last
    ),
    "no elements": lambda device: torch.zeros(0, 3, device=device),
    "no dimensions": lambda device: torch.tensor(3.5, device=device),
    "bool": lambda device: torch.tensor([True, False], device=device),
    "complex": lambda device: torch.tensor([1 + 2j, 3], device=device),
    "int64": lambda device: torch.arange(5, device=device),
}


def travels(tensor: Tensor) -> bool:
    """Whether this torch hands such a tensor over: not every one does fp8."""
    try:
        tensor.__dlpack__()
    except BufferError:
        return False
    return True


def assert_arrived(arrived: Any, sent: Tensor) -> None:
    assert type(arrived) is Tensor
    assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape)
    if sent.numel():
        assert arrived.stride() == sent.stride()
    if sent.dtype.itemsize == 1:  # fp8, which has no comparison of its own everywhere
        arrived, sent = arrived.view(torch.uint8), sent.view(torch.uint8)
    assert torch.equal(arrived.cpu(), sent.cpu())


def overlapping(timeline: dp.Timeline) -> list[tuple[Any, Any]]:
    """The pairs of spans of two ranks that are under way at the same time."""
    spans = list(timeline.spans)
    return [
        (one, other)
        for index, one in enumerate(spans)
        for other in spans[index + 1 :]
        if one["rank"] != other["rank"] and one["start"] < other["end"] and other["start"] < one["end"]
    ]


def assert_in_order(timeline: dp.Timeline, schedule: dp.Schedule, slack: float = 0.0) -> None:
    """No F or B begins, but for the slack, before the one that its input comes from has ended."""
    times = {
        (str(span["kind"]), int(span["stage"]), int(span["microbatch"])): (span["start"], span["end"])
        for span in timeline.spans
    }
    for microbatch in range(schedule.num_microbatches):
        for stage in range(schedule.num_stages - 1):
            for kind, first, then in (("F", stage, stage + 1), ("B", stage + 1, stage)):
                start, end = times[kind, then, microbatch][0], times[kind, first, microbatch][1]
                assert start >= end - slack, f"{then}{kind}{microbatch}: {start} before {end}"
