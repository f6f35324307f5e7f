"""Times the layers of a model on a sample, for :func:`dualpipe_rs.partition`, and leaves no trace of it.

It is not a profiler: one number a layer, forward and backward together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dualpipe_rs.errors import UsageError

Layers = list[tuple[str, nn.Module]]

WARM_UP_RUNS = 2
TIMED_RUNS = 5


def measured_costs(layers: Layers, sample: Any) -> list[float]:
    """Each layer's forward + backward in seconds, the sample running through all of them in turn."""
    devices = _devices_of(layers, sample)
    value, measured = sample, []
    with _same_random_numbers_after(devices), torch.inference_mode(False), torch.enable_grad():
        for index, (name, layer) in enumerate(layers):
            try:
                with _unchanged_after(layer):
                    seconds, value = _measure(layer, value, index > 0, devices)
            except Exception as error:
                raise UsageError(
                    f"layer {name!r} ({type(layer).__name__}) could not be timed on the sample: "
                    f"{str(error).rstrip('. ')}. "
                    "Give a sample that the whole model takes, or give costs."
                ) from error
            measured.append(seconds)
    return measured


def _measure(layer: nn.Module, value: Any, inside: bool, devices: list[torch.device]) -> tuple[float, Any]:
    """The median time of a few runs, and the layer's output."""
    times = []
    for _ in range(WARM_UP_RUNS + TIMED_RUNS):
        seconds, output = _time_once(layer, value, inside, devices)
        times.append(seconds)
    return sorted(times[WARM_UP_RUNS:])[TIMED_RUNS // 2], output


def _time_once(layer: nn.Module, value: Any, inside: bool, devices: list[torch.device]) -> tuple[float, Any]:
    """One forward and backward. Inside the pipeline a layer owes a gradient to the one before it."""
    wanted: list[torch.Tensor] = [p for p in layer.parameters() if p.requires_grad]

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        leaf = tensor.detach().clone()
        if tensor.requires_grad or (inside and (leaf.is_floating_point() or leaf.is_complex())):
            wanted.append(leaf.requires_grad_())
        return leaf.clone()  # not the leaf itself: a layer may work in place

    argument = _map_tensors(value, fresh)
    begin = _now(devices)
    output = layer(argument)
    forward = _now(devices) - begin

    outputs: list[torch.Tensor] = []
    _map_tensors(output, outputs.append)
    outputs = [t for t in outputs if t.requires_grad]
    gradients = [torch.ones_like(t) for t in outputs]
    backward = 0.0
    if outputs and wanted:
        begin = _now(devices)
        # Not backward(): that writes .grad and runs the hooks of whoever waits for it.
        torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
        backward = _now(devices) - begin
    return forward + backward, _map_tensors(output, lambda t: t.detach())


def _devices_of(layers: Layers, sample: Any) -> list[torch.device]:
    """The devices with a queue and a random generator of their own, in a fixed order."""
    tensors: list[torch.Tensor] = []
    for _, layer in layers:
        tensors.extend(layer.parameters())
    _map_tensors(sample, tensors.append)
    return sorted({t.device for t in tensors if t.device.type not in ("cpu", "meta")}, key=str)


def _ask(device: torch.device, function: str, *args: Any) -> Any:
    """Call a function of torch.cuda, torch.xpu, ... for the device."""
    # torch.mps knows one device and takes none.
    of_device = () if device.type == "mps" else (device,)
    return getattr(getattr(torch, device.type), function)(*args, *of_device)


def _now(devices: list[torch.device]) -> float:
    """The time in seconds when all work given to the devices so far is done."""
    for device in devices:
        _ask(device, "synchronize")
    return time.perf_counter()


def _map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The value with every tensor in it (in tuples, lists and dictionaries) replaced by function(tensor)."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(v, function) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map_tensors(v, function) for v in value)
    if isinstance(value, dict):
        return {key: _map_tensors(v, function) for key, v in value.items()}
    return value


@contextmanager
def _same_random_numbers_after(devices: list[torch.device]) -> Iterator[None]:
    """The generators of torch, of the CPU and of the devices, are afterwards as they were."""
    cpu = torch.get_rng_state()
    states = [(device, _ask(device, "get_rng_state")) for device in devices]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        for device, state in states:
            _ask(device, "set_rng_state", state)


@contextmanager
def _unchanged_after(layer: nn.Module) -> Iterator[None]:
    """The layer works on copies of its buffers and on empty gradients, and has its own back afterwards."""
    gradients = [(parameter, parameter.grad) for parameter in layer.parameters()]
    buffers = [
        (owner, name, buffer)
        for owner in layer.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}  # one copy of a buffer with two owners
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        for owner, name, buffer in buffers:
            owner._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer
