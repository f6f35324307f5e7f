"""What one rank computes in one step: the slots of its row, with torch's autograd.

The Rust interpreter calls the five methods in the order of the schedule and carries what they return
to the rank that needs it. This module knows nothing of ranks, sends or orders.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualpipe_rs.batch import Batch, Criterion, Values
from dualpipe_rs.declared import Declared
from dualpipe_rs.utils import run_backward
from dualpipe_rs.weight_grad import Store, set_current


@dataclass
class _Held:
    """What a forward leaves for its backward."""

    inputs: Values
    outputs: Values
    loss: Tensor | None


class Worker:
    """Computes the slots of one rank in one step.

    Args:
        modules: the rank's stages, by stage index.
        num_stages: of the whole model.
        batch: inputs of stage 0 and labels of the last stage, where this rank has them.
        criterion: ``criterion(*outputs, *labels)`` gives a microbatch's loss in the last stage.
        store: where the rank's weight gradients wait.
        split: the (stage, microbatch) whose backward will be an I and a W; of all others it is a B.
        training: whether backwards will follow; else forwards leave nothing behind.
        keep_outputs: keep what the last stage returns.
        loss_scale: what each loss is multiplied by before its backward.
        declared: what the user has said of the tensors between stages.
        around: a context to compute each slot in.
    """

    def __init__(
        self,
        modules: Mapping[int, nn.Module],
        num_stages: int,
        batch: Batch,
        criterion: Criterion | None,
        store: Store,
        *,
        split: Iterable[tuple[int, int]] = (),
        training: bool,
        keep_outputs: bool,
        loss_scale: float | Tensor = 1.0,
        declared: Declared | None = None,
        around: AbstractContextManager[None] | None = None,
    ) -> None:
        self.losses: dict[int, Tensor] = {}
        self.outputs: dict[int, Values] = {}
        self.signature = batch.signature
        #: Whether any slot was begun.
        self.has_begun = False
        self._modules = modules
        self._last = num_stages - 1
        self._batch = batch
        self._criterion = criterion
        self._store = store
        self._split = frozenset(split)
        self._training = training
        self._keep_outputs = keep_outputs
        self._loss_scale = loss_scale
        self._declared = declared or Declared()
        self._accepted = (
            {stage: accepted_keywords(module) for stage, module in modules.items()} if batch.keywords else {}
        )
        self._around = around or nullcontext()
        self._held: dict[tuple[int, int], _Held] = {}

    # -- the slots, as the interpreter calls them -------------------------------------------------

    def forward(self, stage: int, microbatch: int, value: Values | None) -> Values | None:
        """F: takes the outputs of the stage before and returns this stage's, detached."""
        with self._around:
            self._begin(stage, microbatch)
            inputs = self._inputs(stage, microbatch, value)
            keywords = self._keywords(stage, microbatch)
            outputs = _as_values(self._modules[stage](*_owned(inputs), **keywords), stage, microbatch)
            loss = None
            if (
                stage == self._last
                and self._criterion is not None
                and (self._training or not _is_empty(outputs))
            ):
                loss = self._criterion(*outputs, *self._batch.labels.get(microbatch, ()))
                self._check_loss(loss, "the criterion", microbatch)
            return self._hold(stage, microbatch, inputs, outputs, loss)

    def backward(self, stage: int, microbatch: int, grads: Values | None) -> Values | None:
        """B: takes the gradients of this stage's outputs and returns those of its inputs."""
        with self._around:
            self._begin(stage, microbatch)
            return self._backward(stage, microbatch, grads)

    def backward_input(self, stage: int, microbatch: int, grads: Values | None) -> Values | None:
        """I: like :meth:`backward`, with the weight gradients put off until W."""
        with self._around, self._store.deferring((stage, microbatch)):
            self._begin(stage, microbatch)
            return self._backward(stage, microbatch, grads)

    def backward_weight(self, stage: int, microbatch: int) -> None:
        """W: adds the weight gradients that I put off."""
        with self._around:
            self._store.run((stage, microbatch))

    def forward_backward(
        self,
        forward_stage: int,
        forward_microbatch: int,
        value: Values | None,
        backward_stage: int,
        backward_microbatch: int,
        grads: Values | None,
    ) -> tuple[Values | None, Values | None]:
        """A fused pair: the class's ``overlapped_forward_backward`` where it has one, else F, then B."""
        overlapped = _overlapped(self._modules[forward_stage], self._modules[backward_stage])
        if overlapped is None or self._batch.keywords:  # it takes no keyword arguments
            made = self.forward(forward_stage, forward_microbatch, value)
            return made, self.backward(backward_stage, backward_microbatch, grads)
        with self._around:
            self._begin(forward_stage, forward_microbatch)
            inputs = self._inputs(forward_stage, forward_microbatch, value)
            is_last = forward_stage == self._last
            held = self._held.pop((backward_stage, backward_microbatch))
            outputs1, grads1 = _with_gradients(held.outputs, grads)
            outputs0, loss0 = overlapped(
                self._modules[forward_stage],
                list(_owned(inputs)),
                self._criterion if is_last else None,
                list(self._batch.labels.get(forward_microbatch, ())) if is_last else [],
                self._modules[backward_stage],
                held.loss,
                outputs1,
                grads1,
            )
            values = _as_values(outputs0, forward_stage, forward_microbatch)
            if is_last and self._criterion is not None:
                self._check_loss(loss0, overlapped.__name__, forward_microbatch)
            made = self._hold(forward_stage, forward_microbatch, inputs, values, loss0)
            return made, _input_gradients(backward_stage, held.inputs)

    # -- what they share --------------------------------------------------------------------------

    def _begin(self, stage: int, microbatch: int) -> None:
        """Layers are cut in what leads to an I alone (also when checkpointing recomputes it)."""
        self.has_begun = True
        self._store.cuts_layers = (stage, microbatch) in self._split
        set_current(self._store)

    def _inputs(self, stage: int, microbatch: int, value: Values | None) -> Values:
        if stage == 0:
            return self._batch.inputs[microbatch]
        assert value is not None, "the interpreter hands every other stage its input"
        return value

    def _keywords(self, stage: int, microbatch: int) -> dict[str, Any]:
        """Of the keyword arguments, those that the stage takes."""
        given = self._batch.keywords.get(microbatch)
        if given is None:
            return {}
        accepted = self._accepted[stage]
        return {name: value for name, value in given.items() if accepted is None or name in accepted}

    def _hold(
        self, stage: int, microbatch: int, inputs: Values, outputs: Values, loss: Tensor | None
    ) -> Values | None:
        """Keeps what the backward needs; returns what the next stage takes, or ``None`` in the last."""
        self._store.check_closed()
        if self._training:
            # Where there is a loss the backward begins at it, and the outputs need not be kept.
            self._held[stage, microbatch] = _Held(inputs, outputs if loss is None else (), self._scaled(loss))
        if stage != self._last:
            self._declared.check(outputs, stage, microbatch)
            return tuple(_handed_over(t) for t in outputs)
        if loss is not None:
            self.losses[microbatch] = loss.detach()
        if self._keep_outputs:
            self.outputs[microbatch] = tuple(t if t is None else t.detach() for t in outputs)
        return None

    def _scaled(self, loss: Tensor | None) -> Tensor | None:
        if loss is None or (isinstance(self._loss_scale, float) and self._loss_scale == 1.0):
            return loss
        return loss * self._loss_scale

    def _check_loss(self, loss: Any, source: str, microbatch: int) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else None
            raise TypeError(
                f"{source} returned {shape or type(loss).__name__} for microbatch {microbatch}; a loss is a "
                "tensor with one element"
            )
        if self._training and not loss.requires_grad:
            raise TypeError(
                f"{source} returned a loss that needs no gradient for microbatch {microbatch}, so nothing "
                "would be trained; return it with its graph (no .item(), .detach() or no_grad()), or call "
                "step() under torch.no_grad() for inference"
            )

    def _backward(self, stage: int, microbatch: int, grads: Values | None) -> Values | None:
        held = self._held.pop((stage, microbatch))
        with _without_autocast():
            if held.loss is not None:
                run_backward((held.loss,), (None,))
            else:
                outputs, output_grads = _with_gradients(held.outputs, grads)
                if outputs:
                    run_backward(outputs, output_grads)
        self._store.check_closed()
        return _input_gradients(stage, held.inputs)


def _as_values(returned: Any, stage: int, microbatch: int) -> Values:
    """A stage returns a tensor, or a list or tuple of tensors and ``None``, at least one of them a tensor."""
    values = (returned,) if isinstance(returned, Tensor) else returned
    fits = isinstance(values, (tuple, list)) and all(v is None or isinstance(v, Tensor) for v in values)
    if fits and any(v is not None for v in values):
        return tuple(values)
    kind = type(returned).__name__
    if isinstance(returned, (tuple, list)):
        kind += " of " + (", ".join(type(v).__name__ for v in returned) or "nothing")
    raise TypeError(
        f"stage {stage} returned {kind} for microbatch {microbatch}; a stage returns a tensor, or a tuple of "
        "tensors and None with at least one tensor"
    )


def _is_empty(outputs: Values) -> bool:
    """Whether a microbatch has no sample, as where a last batch is smaller than their number."""
    return all(t is None or not t.numel() for t in outputs)


def accepted_keywords(module: nn.Module) -> frozenset[str] | None:
    """The keyword arguments that a module's forward takes; None for any."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))


class _Own(torch.autograd.Function):
    """A tensor's memory without being the leaf, which a stage could not write to in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def _owned(inputs: Values) -> Values:
    """What a stage is called with: it may begin with an operation in place, as in the uncut model."""
    return tuple(t if t is None or not t.requires_grad else _Own.apply(t) for t in inputs)


def _handed_over(output: Tensor | None) -> Tensor | None:
    """The same memory without the graph behind it, ready to collect a gradient where there will be one."""
    return output if output is None else _here(output.detach()).requires_grad_(output.requires_grad)


def _here(tensor: Tensor) -> Tensor:
    """What tensor-parallel layers return may still be on its way from a collective: waits for it."""
    wait = None if type(tensor) is Tensor else getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


def _with_gradients(outputs: Values, grads: Values | None) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that have a gradient, and the gradients."""
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads or (), strict=False)
        if output is not None and grad is not None and output.requires_grad
    ]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def _input_gradients(stage: int, inputs: Values) -> Values | None:
    """What goes back to the stage before; the first stage's inputs are the user's own."""
    if stage == 0:
        return None
    return tuple(None if t is None or t.grad is None else _here(t.grad) for t in inputs)


def _overlapped(module0: nn.Module, module1: nn.Module) -> Callable[..., tuple[Any, Any]] | None:
    """The class's fused forward & backward, under its name or the one that DeepSeek's first release spelt."""
    if type(module0) is not type(module1):
        return None
    names: Sequence[str] = ("overlapped_forward_backward", "overlaped_forward_backward")
    return next((found for name in names if (found := getattr(type(module0), name, None))), None)


def _without_autocast() -> AbstractContextManager[Any]:
    """A backward runs in the types that its forward chose, also where autocast is on around ``step()``."""
    devices = autocast_devices()
    if not devices:
        return nullcontext()
    stack = ExitStack()
    for device in devices:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def autocast_devices() -> list[str]:
    """The device types for which autocast is on in this thread."""
    return [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
