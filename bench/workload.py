"""What every row of the benchmark computes, and the two rows that need no pipeline: `serial` and `control`.

A stage is two Linears h -> 4h -> h with GELU between them. One step takes the whole batch through forward,
loss and backward as 20 microbatches, and gradients add up. This is no training loop: between timed steps
nothing updates a weight or clears a gradient.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MICROBATCHES = 20
TOLERANCE = 1e-5  # of the relative gradient error, in fp32
WARM_UP = 1  # steps thrown away each time a row's turn comes: the rows before it have emptied the caches

Span = tuple[float, float]  # start and end in seconds; on Linux perf_counter reads one clock in all processes


@dataclass(frozen=True)
class Size:
    name: str
    hidden: int
    tokens: int
    batch: int  # sequences a microbatch
    ranks: int = 2

    @property
    def stages(self) -> int:
        return 2 * self.ranks

    def stages_of(self, rank: int) -> tuple[int, int]:
        """DualPipeV's."""
        return rank, self.stages - 1 - rank


TINY = Size("tiny", hidden=16, tokens=4, batch=1)
FULL = Size("full", hidden=256, tokens=128, batch=2)


class Row(Protocol):
    """One line of the table: it can prove its gradients, then be asked for step times as often as wanted."""

    name: str

    def squared_error(self) -> tuple[float, float]:
        """One step from zero gradients -> (squared distance from the serial ones, their squared norm)."""
        ...

    def times(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after the warm-up."""
        ...


@contextmanager
def one_intra_op_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_stages(size: Size) -> list[nn.Module]:
    """The same weights on every call, in every process."""
    torch.manual_seed(0)
    h = size.hidden
    return [nn.Sequential(nn.Linear(h, 4 * h), nn.GELU(), nn.Linear(4 * h, h)) for _ in range(size.stages)]


def build_batch(size: Size) -> tuple[Tensor, Tensor]:
    """The same inputs and labels on every call, each (20 * batch, tokens, hidden)."""
    generator = torch.Generator().manual_seed(1)
    shape = (MICROBATCHES * size.batch, size.tokens, size.hidden)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def serial_step(stages: Sequence[nn.Module], inputs: Tensor, labels: Tensor) -> None:
    for x, y in zip(inputs.chunk(MICROBATCHES), labels.chunk(MICROBATCHES), strict=True):
        for stage in stages:
            x = stage(x)
        F.mse_loss(x, y).backward()


def serial_gradients(size: Size) -> list[list[Tensor]]:
    """The reference, by stage and parameter, from a model of its own."""
    stages = build_stages(size)
    serial_step(stages, *build_batch(size))
    return [gradients(stage) for stage in stages]


def gradients(stage: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in stage.parameters()]


def clear_gradients(stages: Sequence[nn.Module]) -> None:
    for stage in stages:
        stage.zero_grad(set_to_none=True)


def squared_error(stages: Sequence[nn.Module], reference: Sequence[list[Tensor]]) -> tuple[float, float]:
    """(squared distance, squared norm of the reference) of these stages; the ranks' sum is the model's."""
    have = [g for stage in stages for g in gradients(stage)]
    want = [g for stage in reference for g in stage]
    pairs = list(zip(have, want, strict=True))
    distance = sum(float((g.double() - r.double()).square().sum()) for g, r in pairs)
    return distance, sum(float(r.double().square().sum()) for _, r in pairs)


def pipeline_times(spans: Sequence[Sequence[Span]]) -> list[float]:
    """Step times from each rank's spans.

    A step starts when rank 0 does, which holds the inputs: until then the others only wait, and would be
    charged for the end of the step before.
    """
    return [max(end for _, end in step) - step[0][0] for step in zip(*spans, strict=True)]


class Serial:
    """All of the compute on one thread, microbatch by microbatch."""

    name = "serial"

    def __init__(self, size: Size) -> None:
        self._reference = serial_gradients(size)
        self._stages = build_stages(size)
        self._batch = build_batch(size)

    def squared_error(self) -> tuple[float, float]:
        clear_gradients(self._stages)
        serial_step(self._stages, *self._batch)
        return squared_error(self._stages, self._reference)

    def times(self, steps: int) -> list[float]:
        return [self._timed_step() for _ in range(WARM_UP + steps)][WARM_UP:]

    def _timed_step(self) -> float:
        start = time.perf_counter()
        serial_step(self._stages, *self._batch)
        return time.perf_counter() - start


class Control:
    """Each rank's share of the compute on a thread a rank, with nothing to wait for: what the machine and the
    interpreter's lock allow a pipeline that has no bubble and no hand-overs.

    Every stage gets the inputs and output gradients of the serial run, so that its gradients can be checked.
    """

    name = "control"

    def __init__(self, size: Size) -> None:
        self._size = size
        self._reference = serial_gradients(size)
        self._stages = build_stages(size)
        self._labels = build_batch(size)[1].chunk(MICROBATCHES)
        self._inputs, self._output_gradients = _boundaries(size)

    def squared_error(self) -> tuple[float, float]:
        clear_gradients(self._stages)
        self._run(1)
        return squared_error(self._stages, self._reference)

    def times(self, steps: int) -> list[float]:
        return self._run(WARM_UP + steps)[WARM_UP:]

    def _run(self, steps: int) -> list[float]:
        starts: list[float] = []
        ranks = self._size.ranks
        barrier = threading.Barrier(ranks, action=lambda: starts.append(time.perf_counter()))
        with ThreadPoolExecutor(ranks) as pool:
            ends = list(pool.map(lambda rank: self._rank(rank, steps, barrier), range(ranks)))
        return [max(last) - start for start, last in zip(starts, zip(*ends, strict=True), strict=True)]

    def _rank(self, rank: int, steps: int, barrier: threading.Barrier) -> list[float]:
        torch.set_num_threads(1)
        ends = []
        for _ in range(steps):
            barrier.wait()
            for microbatch in range(MICROBATCHES):
                for stage in self._size.stages_of(rank):
                    self._forward_backward(stage, microbatch)
            ends.append(time.perf_counter())
        return ends

    def _forward_backward(self, stage: int, microbatch: int) -> None:
        x = self._inputs[microbatch][stage].detach().requires_grad_(stage > 0)
        output = self._stages[stage](x)
        if stage == self._size.stages - 1:
            F.mse_loss(output, self._labels[microbatch]).backward()
        else:
            output.backward(self._output_gradients[microbatch][stage])


def _boundaries(size: Size) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The serial run's inputs and output gradients, each [microbatch][stage]; the last stage has the loss in
    place of a gradient from outside."""
    stages = build_stages(size)
    inputs, output_gradients = [], []
    for x, y in zip(*(whole.chunk(MICROBATCHES) for whole in build_batch(size)), strict=True):
        cuts = [x]
        for stage in stages:
            cuts.append(stage(cuts[-1]))
            cuts[-1].retain_grad()
        F.mse_loss(cuts[-1], y).backward()
        inputs.append([cut.detach() for cut in cuts[:-1]])
        output_gradients.append([cut.grad for cut in cuts[1:-1] if cut.grad is not None])
    return inputs, output_gradients


def stage_costs(size: Size, repeats: int) -> tuple[float, float, float]:
    """Median seconds of one stage's forward, backward for input and backward for weights, on this thread.

    The last is what a full backward takes beyond the backward for input alone.
    """
    stage = build_stages(size)[1]
    x = build_batch(size)[0].chunk(MICROBATCHES)[0].requires_grad_()
    forward, for_input, full = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        output = stage(x)
        forward.append(time.perf_counter() - start)
        gradient = torch.ones_like(output)
        for_input.append(_seconds_of_input_gradient(output, x, gradient))
        start = time.perf_counter()
        output.backward(gradient)
        full.append(time.perf_counter() - start)
    f, i, b = (statistics.median(seconds) for seconds in (forward, for_input, full))
    return f, i, b - i


def _seconds_of_input_gradient(output: Tensor, x: Tensor, gradient: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(output, x, gradient, retain_graph=True)
    return time.perf_counter() - start
