"""A pipeline's steps on GPUs by the CUDA executor (``transport="nccl"``): a worker's slots over DLPack.

The worker is the same as on the host; what is here hands its tensors to the Rust core and says on which
stream they are computed. Where the ranks are, place.py agrees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualpipe_rs._core import Callables, DeviceRank, LocalGroup, Schedule, Timeline
from dualpipe_rs.batch import Values
from dualpipe_rs.errors import UsageError
from dualpipe_rs.place import Place
from dualpipe_rs.worker import Worker


class GpuSteps:
    """Runs a rank's steps on its GPU.

    Args:
        group: the group of the pipeline.
        rank: this rank in the schedule.
        device: where its stages are.
        timeout: the longest wait for the device or another rank, in seconds.

    Raises:
        UsageError: the stages are not on a GPU.
    """

    def __init__(self, group: Any, rank: int, device: torch.device, timeout: float) -> None:
        if device.type != "cuda":
            raise UsageError(
                f'transport="nccl" needs the stages on a GPU, and those of rank {rank} are on {device}; move '
                'them with .to("cuda") before the pipeline is built, or leave transport out'
            )
        self._group = group
        self._device = torch.cuda.current_device() if device.index is None else device.index
        self._place = Place(group, rank, self._device, sharing="edge", max_ctas=None, timeout=timeout)

    def step(self, schedule: Schedule, worker: Worker, rank: int, settings: str, p2p: str) -> Timeline | None:
        """One step of all ranks, as the group's own ``step`` has it."""
        functions = callables(worker, schedule, self._device)
        functions.set_stream(torch.cuda.current_stream(self._device).cuda_stream)
        try:
            place: DeviceRank = self._place.open(schedule, p2p)
            settings += ', transport="nccl"'
            if isinstance(self._group, LocalGroup):
                place.forget()  # Between threads it costs nothing to say what comes, and inputs may differ.
                return self._group.step(schedule, functions, rank, settings, p2p, place)
            return self._group.step(schedule, worker, rank, settings, p2p, (functions, place))
        except BaseException:
            # Of a step that failed nobody knows what is still under way.
            self._place.abort()
            raise


def callables(worker: Worker, schedule: Schedule, device: int | None) -> Callables:
    """A worker as functions whose tensors travel by DLPack. Whether they require grad travels beside them."""
    over = _Contiguous(worker)
    return Callables(
        schedule.num_stages,
        over.forward,
        over.backward,
        over.backward_input,
        worker.backward_weight,
        over.forward_backward,
        torch.from_dlpack,
        device,
        grad=True,
    )


class _Contiguous:
    """A worker whose tensors lie as they are sent: without gaps. An expanded gradient, say, does not."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def forward(self, stage: int, microbatch: int, value: Values | None) -> Values | None:
        return _contiguous(self._worker.forward(stage, microbatch, value))

    def backward(self, stage: int, microbatch: int, grads: Values | None) -> Values | None:
        return _contiguous(self._worker.backward(stage, microbatch, grads))

    def backward_input(self, stage: int, microbatch: int, grads: Values | None) -> Values | None:
        return _contiguous(self._worker.backward_input(stage, microbatch, grads))

    def forward_backward(self, *arguments: Any) -> tuple[Values | None, Values | None]:
        output, gradient = self._worker.forward_backward(*arguments)
        return _contiguous(output), _contiguous(gradient)


def _contiguous(values: Values | None) -> Values | None:
    return None if values is None else tuple(_one(t) for t in values)


def _one(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.is_contiguous():
        return tensor
    return tensor.detach().contiguous().requires_grad_(tensor.requires_grad)
