"""One autograd Function for all sorts of layers: its backward is I, and leaves W to a closure.

What a sort of layer computes is a `Kind`, and stands in `layers.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualpipe_rs.weight_grad.store import Store

# The gradients of the input, the weight and the bias; None where the mask (three bools) asks for none.
Grads = Sequence[Tensor | None]


class Kind(NamedTuple):
    """How one sort of layer is cut; `saved` is what `run` kept for the backward, the input first."""

    run: Callable[..., Any]  # (x, w, b, opts, needs) -> output, saved
    grads: Callable[..., Grads]  # (g, saved, opts, mask) -> gradients
    late: Callable[..., None] | None = None  # (g, saved, w, b, mask): W into .grad, if not simply by grads
    rerun: bool = False  # grads has no (full) derivative of its own, so a double backward goes by run
    joint: bool = False  # I needs the sums that the parameters' gradients are, so W only adds them to .grad


_Call = tuple[Kind, Store, Tensor, Any, Any]  # kind, store, weight, bias, opts of one call of a layer


def add(p: Tensor | None, grad: Tensor | None) -> None:
    """Adds `grad`, a tensor that nobody else holds, to `p.grad`, as autograd's own accumulation does."""
    if p is None or grad is None:
        return
    if p.grad is None:
        dtype = getattr(p, "grad_dtype", p.dtype) or grad.dtype
        if grad.dtype is not dtype or grad.stride() != p.stride():
            grad = torch.empty_like(p, dtype=dtype).copy_(grad)
        p.grad = grad
    elif p.grad.layout is torch.strided:
        p.grad.add_(grad)
    else:  # left by a sparse embedding that shares the parameter
        p.grad = grad + p.grad


def _asked(ctx: Any, i: int) -> bool | None:
    """Whether this backward wants input i's gradient for `.grad` (True), for autograd.grad's caller (None) or
    not at all (False). A Function's needs_input_grad only says that the input required one at forward."""
    node = ctx.next_functions[i][0]
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # the engine's answer for a leaf that is among autograd.grad's inputs
        return None


def _hooked(p: Any) -> bool:
    return p is not None and bool(p._backward_hooks or p._post_accumulate_grad_hooks)


class CutLayer(torch.autograd.Function):
    """A layer whose backward leaves the parameters' gradients to a closure while its store is enabled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Any, kind: Kind, store: Store, opts: Any) -> Any:
        out, saved = kind.run(x, w, b, opts, ctx.needs_input_grad)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        # The Parameters themselves: of saved ones a checkpoint gives back copies, whose .grad nobody reads.
        ctx.call = (kind, store, w, b, opts)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return None, None, None, None, None, None
        saved = ctx.saved_tensors  # once: reading a checkpointed layer's twice is an error
        kind, store, w, b, opts = call = ctx.call
        asked_w, asked_b = _asked(ctx, 1), b is not None and _asked(ctx, 2)
        mask = (ctx.needs_input_grad[0], asked_w is not False, asked_b is not False)
        graph = torch.is_grad_enabled()  # create_graph=True: gradients with a graph, so nothing is put off
        if not store.enabled or graph or asked_w is None or asked_b is None or _hooked(w) or _hooked(b):
            if graph and kind.rerun:
                return *_differentiable(call, g, saved, mask), None, None, None
            return *kind.grads(g, saved, opts, mask), None, None, None
        return _defer(call, g, saved, mask), None, None, None, None, None


def _differentiable(call: _Call, g: Tensor, saved: Any, mask: Any) -> Grads:
    """The gradients with a graph of their own, by the op's forward once more: for double backward only."""
    kind, _, _, b, opts = call
    inputs = (saved[0], saved[1], b)
    out, _ = kind.run(*inputs, opts, mask)
    wanted = [t for t, m in zip(inputs, mask, strict=True) if m]
    found = iter(torch.autograd.grad(out, wanted, g, create_graph=True))
    return [next(found) if m else None for m in mask]


def _defer(call: _Call, g: Tensor, saved: Any, mask: Any) -> Tensor | None:
    """I: returns the input's gradient, and puts W, where the mask asks for one, into the store."""
    kind, store, w, b, opts = call
    later = mask[1] or mask[2]
    if kind.joint and mask[0]:
        gx, gw, gb = kind.grads(g, saved, opts, mask)
        if later:
            store.put(functools.partial(add_sums, w, gw, b, gb))
        return gx
    if later:
        versions = (g._version, None if saved[0] is None else saved[0]._version)
        store.put(functools.partial(_weight_grads, call, g, saved, mask, versions))
    return kind.grads(g, saved, opts, (True, False, False))[0] if mask[0] else None


def add_sums(w: Tensor, gw: Tensor | None, b: Tensor | None, gb: Tensor | None) -> None:
    """W of a layer whose I had the sums."""
    add(w, gw)
    add(b, gb)


def _weight_grads(call: _Call, g: Tensor, saved: Any, mask: Any, versions: tuple[int, int | None]) -> None:
    """W of one call of a layer."""
    kind, _, w, b, opts = call
    if versions != (g._version, None if saved[0] is None else saved[0]._version):
        raise RuntimeError(
            f"W of a layer whose weight is {tuple(w.shape)} found its input, or its output's gradient, "
            "changed in place since I; leave both as they are until W ran."
        )
    if kind.late is not None:
        kind.late(g, saved, w, b, mask)
    else:
        _, gw, gb = kind.grads(g, saved, opts, (False, mask[1], mask[2]))
        add_sums(w, gw, b, gb)
