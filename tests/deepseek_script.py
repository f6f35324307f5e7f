"""Scripts as users of DeepSeek's package write them after its two examples: no tests here.

The calls, their order and their names are the examples'; only the imports and the devices are other ones.
Run by torch.multiprocessing, one process a rank, which finds the others through the environment.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dualpipe_rs import DualPipe, DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes
from dualpipe_rs.utils import WeightGradStore, run_backward

MICROBATCHES, ROWS = 20, 3


class LinearFunc(torch.autograd.Function):
    """A linear layer whose weight gradient may wait."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)

        def weight_gradient() -> None:
            weight.grad += grad.flatten(0, -2).T @ x.flatten(0, -2)

        if WeightGradStore.enabled:
            WeightGradStore.put(weight_gradient)
        else:
            weight_gradient()
        return grad @ weight, None


class MyLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return LinearFunc.apply(x, self.weight)


class PipelineStage(nn.Module):
    """Two layers, and a forward of one stage together with a backward of another."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1 = MyLinear(hidden, 4 * hidden, bias=False)
        self.linear2 = MyLinear(4 * hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.gelu(self.linear1(x)))

    @classmethod
    def overlapped_forward_backward(
        cls: Any,
        module0: Any,
        inputs0: Any,
        criterion0: Any,
        labels0: Any,
        module1: Any,
        loss1: Any,
        outputs1: Any,
        output_grads1: Any,
    ) -> Any:
        outputs0 = module0(*inputs0)
        outputs0 = [outputs0] if isinstance(outputs0, torch.Tensor) else outputs0
        loss0 = None if criterion0 is None else criterion0(*outputs0, *labels0)
        if loss1 is None:
            run_backward(outputs1, output_grads1)
        else:
            loss1.backward()
            loss1.detach_()
        return outputs0, loss0


def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target).clone()


def reference_step(
    x: torch.Tensor, labels: torch.Tensor, model: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    losses, outputs = [], []
    for one, label in zip(x.chunk(MICROBATCHES), labels.chunk(MICROBATCHES), strict=True):
        output = model(one)
        loss = criterion(output, label)
        loss.backward()
        losses.append(loss.detach())
        outputs.append(output.detach())
    return torch.stack(losses), torch.cat(outputs)


def cal_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.double(), y.double()
    return 1 - 2 * float((x * y).sum()) / float((x * x + y * y).sum())


def start(rank: int, ranks: int, port: int, dtype: torch.dtype) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", str(port)
    dist.init_process_group(backend="gloo", init_method="env://", world_size=ranks, rank=rank)
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.set_default_device("cpu")
    torch.manual_seed(233)


def copied(given: nn.Sequential, hidden: int) -> nn.Sequential:
    made = nn.Sequential(*(PipelineStage(hidden) for _ in given))
    for mine, theirs in zip(made, given, strict=True):
        mine.load_state_dict(theirs.state_dict())
    return made


def dualpipe(rank: int, ranks: int, port: int, length: int, hidden: int, dtype: torch.dtype) -> None:
    """The example of DualPipe: half of the batch enters at either end."""
    is_first, is_last = rank == 0, rank == ranks - 1
    start(rank, ranks, port, dtype)
    set_p2p_tensor_shapes([(ROWS, length, hidden)])
    set_p2p_tensor_dtype(dtype)

    full_modules = nn.Sequential(*(PipelineStage(hidden) for _ in range(ranks)))
    full_x = torch.randn(MICROBATCHES * ROWS, length, hidden)
    full_l = torch.randn(MICROBATCHES * ROWS, length, hidden)
    loss_ref, output_ref = reference_step(full_x, full_l, full_modules)

    local_full_modules = nn.Sequential(full_modules[rank], full_modules[ranks - 1 - rank])
    local_modules = copied(local_full_modules, hidden)
    dualpipe_model = DualPipe(local_modules)

    x = labels = expected_loss = expected_output = None
    if is_first or is_last:
        enters, leaves = (0, 1) if is_first else (1, 0)
        x, labels = full_x.chunk(2)[enters], full_l.chunk(2)[leaves]
        expected_loss, expected_output = loss_ref.chunk(2)[leaves], output_ref.chunk(2)[leaves]

    loss, outputs = dualpipe_model.step(
        x, num_chunks=MICROBATCHES, criterion=criterion, labels=(labels,), return_outputs=False
    )
    check(loss, expected_loss)
    assert outputs is None

    pairs = list(zip(local_modules[0].parameters(), local_modules[1].parameters(), strict=True))
    for p0, p1 in pairs:
        all0, all1 = torch.empty(ranks, *p0.shape), torch.empty(ranks, *p1.shape)
        # One after the other along the first dimension, as gloo takes them; NCCL takes them stacked, too.
        dist.all_gather_into_tensor(all0.flatten(0, 1), p0.grad)
        dist.all_gather_into_tensor(all1.flatten(0, 1), p1.grad)
        p0.grad += all1[ranks - 1 - rank]
        p1.grad += all0[ranks - 1 - rank]
    check_gradients(local_modules, local_full_modules)
    dualpipe_model.zero_grad()

    with torch.no_grad():
        loss, outputs = dualpipe_model.step(
            x, num_chunks=MICROBATCHES, criterion=criterion, labels=(labels,), return_outputs=True
        )
    check(loss, expected_loss)
    check(outputs, expected_output)


def dualpipev(rank: int, ranks: int, port: int, length: int, hidden: int, dtype: torch.dtype) -> None:
    """The example of DualPipeV: all enters and leaves at the first rank."""
    is_first = rank == 0
    start(rank, ranks, port, dtype)
    set_p2p_tensor_shapes([(ROWS, length, hidden)])
    set_p2p_tensor_dtype(dtype)

    full_modules = nn.Sequential(*(PipelineStage(hidden) for _ in range(2 * ranks)))
    full_x = torch.randn(MICROBATCHES * ROWS, length, hidden)
    full_l = torch.randn(MICROBATCHES * ROWS, length, hidden)
    loss_ref, output_ref = reference_step(full_x, full_l, full_modules)

    local_full_modules = nn.Sequential(full_modules[rank], full_modules[2 * ranks - 1 - rank])
    local_modules = copied(local_full_modules, hidden)
    dualpipev_model = DualPipeV(local_modules)

    x, labels = (full_x, full_l) if is_first else (None, None)
    loss, outputs = dualpipev_model.step(
        x, num_chunks=MICROBATCHES, criterion=criterion, labels=(labels,), return_outputs=False
    )
    check(loss, loss_ref if is_first else None)
    assert outputs is None
    check_gradients(local_modules, local_full_modules)
    dualpipev_model.zero_grad()

    with torch.no_grad():
        loss, outputs = dualpipev_model.step(
            x, num_chunks=MICROBATCHES, criterion=criterion, labels=(labels,), return_outputs=True
        )
    check(loss, loss_ref if is_first else None)
    check(outputs, output_ref if is_first else None)


def check(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert (found is None) == (expected is None)
    assert found is None or torch.equal(found, expected)


def check_gradients(modules: nn.Module, reference: nn.Module) -> None:
    for (name, p), p_ref in zip(modules.named_parameters(), reference.parameters(), strict=True):
        assert cal_diff(p.grad, p_ref.grad) < 1e-13, name
