"""Ordinary modules that cut themselves: `split_weight_grad`, and which store they defer into, `bind`.

A call that cannot be cut exactly is left to the module's own forward, so that the result is always right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from dualpipe_rs.weight_grad.cut import CutLayer, Kind
from dualpipe_rs.weight_grad.layers import (
    BATCH_NORM,
    CONV,
    EMBEDDING,
    GROUP_NORM,
    LAYER_NORM,
    LINEAR,
    RMS_NORM,
    BatchNormCall,
)
from dualpipe_rs.weight_grad.store import Store

_aten = torch.ops.aten
_M = TypeVar("_M", bound=nn.Module)

_BOUND = "_weight_grad_store"  # in a split module's __dict__ while it is bound: its store
_FOUND = "_weight_grad_modules"  # in the __dict__ of a module that was bound once: the split modules in it


def _plain_parameter(p: Any) -> bool:
    """Whether p is a leaf, strided and real: no subclass (DTensor), not computed (parametrization)."""
    return type(p) is nn.Parameter and p.is_leaf and p.layout is torch.strided and not p.is_complex()


def _plain_input(x: Any) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided and not x.is_nested


def _store(m: nn.Module, x: Any) -> Store | None:
    """The store to cut this call of m for; None where m's own forward, and autograd, must do it all.

    That is: m is unbound or has nothing to train, no I will follow, or a custom Function would not be the
    plain layer's equal: under torch.compile, tracing, functorch and forward-mode AD, and for unusual tensors.
    """
    if torch.compiler.is_compiling():
        return None
    store: Store | None = m.__dict__.get(_BOUND)
    if store is None or not store.cuts_layers or not torch.is_grad_enabled():
        return None
    w, b = m._parameters.get("weight"), m._parameters.get("bias")
    if not _plain_parameter(w) or not (b is None or _plain_parameter(b)):
        return None
    if not (w.requires_grad or (b is not None and b.requires_grad)):  # type: ignore[union-attr]
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    return store if _plain_input(x) and not torch.jit.is_tracing() else None


def _norm_store(m: nn.Module, x: Any) -> Store | None:
    """As `_store`; also None under autocast, where norms change dtypes, and for empty inputs."""
    store = _store(m, x)
    if store is None or x.numel() == 0 or torch.is_autocast_enabled(x.device.type):
        return None
    return store


def _split(kind: Kind, store: Store, m: nn.Module, x: Tensor, opts: Any = None) -> Any:
    return CutLayer.apply(x, m._parameters["weight"], m._parameters.get("bias"), kind, store, opts)


def _lowered(x: Tensor) -> Tensor:
    """`x` in autocast's dtype, so that what is kept for W is that copy, as in the plain layer."""
    if not torch._C._is_any_autocast_enabled():
        return x
    device = x.device.type
    if not torch.is_autocast_enabled(device) or not x.is_floating_point() or x.dtype is torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


def _linear_forward(m: nn.Linear, input: Any) -> Any:
    store = _store(m, input)
    if store is None:
        return type(m).forward(m, input)
    return _split(LINEAR, store, m, _lowered(input))


_CONVS = (None, F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _padding(m: Any) -> tuple[int, ...] | None:
    """The zero padding on either side of each dimension; None for other modes and where the sides differ."""
    if m.padding_mode != "zeros":
        return None
    if not isinstance(m.padding, str):
        return tuple(m.padding)
    both = [d * (k - 1) if m.padding == "same" else 0 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
    return None if any(p % 2 for p in both) else tuple(p // 2 for p in both)


def _conv_forward(m: Any, input: Any) -> Any:
    store, dims = _store(m, input), len(m.kernel_size)
    padding = None if store is None else _padding(m)
    if store is None or padding is None or input.dim() not in (dims + 1, dims + 2):
        return type(m).forward(m, input)
    opts = (
        _CONVS[dims],
        (m.stride, padding, m.dilation, m.groups),
        (m.stride, padding, m.dilation, False, (0,) * dims, m.groups),
    )
    return _split(CONV, store, m, _lowered(input), opts)


def _conv_transpose_forward(m: Any, input: Any, output_size: Any = None) -> Any:
    store, dims = _store(m, input), len(m.kernel_size)
    if store is None or output_size is not None or input.dim() not in (dims + 1, dims + 2):
        return type(m).forward(m, input, output_size)
    opts = (
        _TRANSPOSED[dims],
        (m.stride, m.padding, m.output_padding, m.groups, m.dilation),
        (m.stride, m.padding, m.dilation, True, m.output_padding, m.groups),
    )
    return _split(CONV, store, m, _lowered(input), opts)


def _embedding_forward(m: nn.Embedding, input: Any) -> Any:
    store = _store(m, input)
    if store is None or m.sparse or m.max_norm is not None:
        return type(m).forward(m, input)
    return _split(EMBEDDING, store, m, input, (m.weight.shape[0], m.padding_idx, m.scale_grad_by_freq))


def _layer_norm_forward(m: nn.LayerNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    if store is None:
        return type(m).forward(m, input)
    return _split(LAYER_NORM, store, m, input, (m.normalized_shape, m.eps))


def _rms_norm_forward(m: nn.RMSNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    # With mixed dtypes the plain op takes another path than the one used here, which an older torch lacks.
    if store is None or input.dtype is not m.weight.dtype or not hasattr(_aten, "_fused_rms_norm"):
        return type(m).forward(m, input)
    return _split(RMS_NORM, store, m, input, (m.normalized_shape, m.eps))


def _group_norm_forward(m: nn.GroupNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    # The plain layer's checks, and their messages, are its own affair.
    if store is None or input.dim() < 2 or input.shape[1] != m.num_channels or input.numel() <= m.num_groups:
        return type(m).forward(m, input)
    return _split(GROUP_NORM, store, m, input.contiguous(), (m.num_groups, m.eps))


def _dense(x: Tensor) -> Tensor:
    """`x`, copied where its memory is in neither of the orders that cuDNN takes; CPU kernels take any."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if x.is_cpu or (last is not None and x.is_contiguous(memory_format=last)):
        return x
    return x.contiguous()


def _batch_norm_forward(m: Any, input: Any) -> Any:
    store = _norm_store(m, input)
    # One value a channel is an error in training, and the plain layer's to raise.
    if store is None or input.dim() < 2 or input.numel() == input.shape[1]:
        return type(m).forward(m, input)
    m._check_input_dim(input)
    factor = 0.0 if m.momentum is None else m.momentum
    if m.training and m.track_running_stats and m.num_batches_tracked is not None:
        m.num_batches_tracked.add_(1)
        if m.momentum is None:  # a cumulative average
            factor = 1.0 / float(m.num_batches_tracked)
    running = (m.running_mean, m.running_var) if m.track_running_stats or not m.training else (None, None)
    by_batch = m.training or (m.running_mean is None and m.running_var is None)
    return _split(BATCH_NORM, store, m, _dense(input), BatchNormCall(running, by_batch, factor, m.eps))


_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: _linear_forward,
    nn.Embedding: _embedding_forward,
    nn.LayerNorm: _layer_norm_forward,
    nn.RMSNorm: _rms_norm_forward,
    nn.GroupNorm: _group_norm_forward,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_forward),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose_forward),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm_forward),
}
_OURS = frozenset(_FORWARDS.values())


def split_weight_grad(module: _M) -> _M:
    """Makes I and W separable, in place, in the ordinary layers in `module` (itself included); returns it.

    Ordinary is what is exactly an nn.Linear, Embedding, LayerNorm, RMSNorm, GroupNorm, Conv, ConvTranspose or
    BatchNorm (1d to 3d) without a `forward` of its own on the instance; the rest is left alone. Such a layer
    gets an instance `forward`, which deepcopy and pickle carry along (a copy.copy would call the original).
    Outside `bind` it runs the class's own forward. Inside, W is put off while the bound store is `enabled`
    and computed in the backward otherwise.

    All gradients are computed in the backward, as in the plain layer, where a call cannot be cut exactly (see
    `_store`; sparse and max_norm embeddings, padding modes other than zeros, norms under autocast), where a
    parameter has tensor hooks, and with create_graph=True. Hooks on a parameter's AccumulateGrad node, like
    DistributedDataParallel's, cannot be seen and do not run at W. Call it again after adding submodules.
    """
    for m in module.modules():
        m.__dict__.pop(_FOUND, None)
        forward = _FORWARDS.get(type(m))
        if forward is not None and "forward" not in m.__dict__:
            m.__dict__["forward"] = functools.partial(forward, m)
    return module


def _found(module: nn.Module) -> list[nn.Module]:
    """The split modules in `module`, looked up once."""
    found: list[nn.Module] | None = module.__dict__.get(_FOUND)
    if found is None:
        found = [m for m in module.modules() if getattr(m.__dict__.get("forward"), "func", None) in _OURS]
        module.__dict__[_FOUND] = found
    return found


def bind(module: nn.Module, store: Store) -> None:
    """Makes the forwards of the split layers in `module` belong to `store`: they defer while it is enabled.

    Layers with nothing to train may be of several ranks and are left alone. RuntimeError, with nothing bound,
    where another is bound to another store: a module belongs to one rank.
    """
    trained = [
        m for m in _found(module) if any(p is not None and p.requires_grad for p in m._parameters.values())
    ]
    for m in trained:
        if m.__dict__.get(_BOUND, store) is not store:
            raise RuntimeError(f"A {type(m).__name__} is bound to another rank's store; unbind() it there.")
    for m in trained:
        m.__dict__[_BOUND] = store


def unbind(module: nn.Module) -> None:
    """Ends `bind`: the layers in `module` are plain again; backwards of earlier forwards keep their store."""
    for m in _found(module):
        m.__dict__.pop(_BOUND, None)
