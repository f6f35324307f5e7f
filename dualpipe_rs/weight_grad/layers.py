"""How each sort of layer is computed, and each of its gradients apart from the others.

The gradients come from torch's own backward operators, asked for one part of their result; nothing here runs
a forward a second time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualpipe_rs.weight_grad.cut import Grads, Kind, add

_aten = torch.ops.aten


def _rows(t: Tensor) -> Tensor:
    """`t` as a matrix with all leading dimensions in its rows."""
    return t if t.dim() == 2 else t.flatten(0, -2) if t.dim() > 2 else t.unsqueeze(0)


def _linear_run(x: Tensor, w: Tensor, b: Tensor | None, opts: None, needs: Any) -> Any:
    return F.linear(x, w, b), (x if needs[1] else None, w if needs[0] else None)


def _linear_grads(g: Tensor, saved: Any, opts: None, mask: Any) -> Grads:
    x, w = saved
    gx = g.matmul(w if w.dtype is g.dtype else w.to(g.dtype)) if mask[0] else None
    gw = _rows(g).t().mm(_rows(x)) if mask[1] else None
    return gx, gw, _rows(g).sum(0) if mask[2] else None


def _linear_late(g: Tensor, saved: Any, w: Tensor, b: Tensor | None, mask: Any) -> None:
    rows, grad = _rows(g), w.grad
    if mask[1] and grad is not None and grad.dtype is g.dtype and grad.layout is torch.strided:
        grad.addmm_(rows.t(), _rows(saved[0]))  # no temporary of the weight's size
    elif mask[1]:
        add(w, rows.t().mm(_rows(saved[0])))
    if mask[2]:
        add(b, rows.sum(0))


def _conv_run(x: Tensor, w: Tensor, b: Tensor | None, opts: Any, needs: Any) -> Any:
    op, args, _ = opts
    return op(x, w, b, *args), (x, w)


def _conv_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> Grads:
    x, w = saved
    if w.dtype is not g.dtype:  # autocast; of the weight, W reads no more than the shape
        w = w.to(g.dtype) if mask[0] else torch.empty_like(w, dtype=g.dtype)
    single = x.dim() < w.dim()  # a sample without a batch dimension, which this op does not know
    if single:
        g, x = g.unsqueeze(0), x.unsqueeze(0)
    gx, gw, gb = _aten.convolution_backward(g, x, w, [g.shape[1]] if mask[2] else None, *opts[2], mask)
    return gx.squeeze(0) if single and mask[0] else gx, gw, gb


def _embedding_run(x: Tensor, w: Tensor, b: None, opts: Any, needs: Any) -> Any:
    _, padding, by_freq = opts
    return F.embedding(x, w, padding, scale_grad_by_freq=by_freq), (x,)


def _embedding_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> Grads:
    rows, padding, by_freq = opts
    gw = _aten.embedding_dense_backward(g, saved[0], rows, -1 if padding is None else padding, by_freq)
    return None, gw, None


def _layer_norm_run(x: Tensor, w: Tensor, b: Tensor | None, opts: Any, needs: Any) -> Any:
    out, *stats = torch.native_layer_norm(x, opts[0], w, b, opts[1])
    return out, (x, w, *stats)


def _layer_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> Grads:
    x, w, mean, rstd = saved
    like_b = w if mask[2] else None  # of the bias the op reads only the shape, which is the weight's
    return _aten.native_layer_norm_backward(g, x, opts[0], mean, rstd, w, like_b, mask)


def _rms_norm_run(x: Tensor, w: Tensor, b: None, opts: Any, needs: Any) -> Any:
    out, rstd = _aten._fused_rms_norm(x, opts[0], w, opts[1])
    return out, (x, w, rstd)


def _rms_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> Grads:
    """By formula, in the dtype the forward computed in: aten's _fused_rms_norm_backward has no CPU kernel."""
    x, w, rstd = saved
    g, y = g.to(rstd.dtype), x.to(rstd.dtype) * rstd
    gx = gw = None
    if mask[0]:
        gy = g * w
        mean = (gy * y).mean(tuple(range(-w.dim(), 0)), keepdim=True)
        gx = ((gy - y * mean) * rstd).to(x.dtype)
    if mask[1]:
        gw = (g * y).reshape(-1, *w.shape).sum(0)
    return gx, gw, None


def _group_norm_run(x: Tensor, w: Tensor, b: Tensor, opts: Any, needs: Any) -> Any:
    n, c = x.shape[:2]
    out, *stats = torch.native_group_norm(x, w, b, n, c, x.numel() // (n * c), *opts)
    return out, (x, w, *stats)


def _group_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> Grads:
    x, w, mean, rstd = saved
    n, c = x.shape[:2]
    size = (n, c, x.numel() // (n * c), opts[0])
    found: Grads = _aten.native_group_norm_backward(g.contiguous(), x, mean, rstd, w, *size, mask)
    return found


@dataclasses.dataclass
class BatchNormCall:
    running: tuple[Tensor | None, Tensor | None]
    training: bool  # by the batch's statistics, not the running ones
    factor: float
    eps: float
    kernel: int = 0  # which of its kernels the forward took: torch's own (0), cuDNN's, ...


def _batch_norm_run(x: Tensor, w: Tensor, b: Tensor, opts: BatchNormCall, needs: Any) -> Any:
    # The op under F.batch_norm: it tells which kernel it took, and the backward has to be of the same.
    out, *stats, opts.kernel = torch._batch_norm_impl_index(
        x, w, b, *opts.running, opts.training, opts.factor, opts.eps, torch.backends.cudnn.enabled
    )
    return out, (x, w, *((None, None) if opts.training else opts.running), *stats)


def _batch_norm_grads(g: Tensor, saved: Any, opts: BatchNormCall, mask: Any) -> Grads:
    x, w, *stats, reserve = saved
    if opts.kernel:  # cuDNN's backward may write to its reserve, and a second backward would read that
        reserve = reserve.clone()
    found: Grads = _aten._batch_norm_impl_index_backward(
        opts.kernel, x, g, w, *stats, opts.training, opts.eps, mask, reserve
    )
    return found


LINEAR = Kind(_linear_run, _linear_grads, _linear_late)
CONV = Kind(_conv_run, _conv_grads)
EMBEDDING = Kind(_embedding_run, _embedding_grads)
LAYER_NORM = Kind(_layer_norm_run, _layer_norm_grads)
RMS_NORM = Kind(_rms_norm_run, _rms_norm_grads, rerun=True)
GROUP_NORM = Kind(_group_norm_run, _group_norm_grads, rerun=True, joint=True)
BATCH_NORM = Kind(_batch_norm_run, _batch_norm_grads, joint=True)
