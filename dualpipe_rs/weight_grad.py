"""The cut of a backward B into I (the inputs' gradient, now) and W (the parameters' gradient, later).

Three parts: `Store` keeps one rank's waiting W's; `WeightGradStore` is the class that a user's own autograd
Functions talk to, after the interface of DeepSeek's DualPipe; `split_weight_grad` makes ordinary modules cut
themselves.

It is not a scheduler (when a W runs is the executor's affair) and it changes no numbers: after I and W,
`.grad` holds what a whole backward leaves there, up to the order of summation. What a W needs (its layer's
input, the gradient of its output) must stay as it is until that W has run; on a GPU, W belongs on I's stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["Store", "WeightGradStore", "bind", "current", "set_current", "split_weight_grad", "unbind"]

_aten = torch.ops.aten
_M = TypeVar("_M", bound=nn.Module)

# --- the stores -------------------------------------------------------------------------------------------

# Torch's own thread-local slot, not threading.local: the autograd engine hands it on to the threads it runs a
# backward on (one a device, more in deep re-entry), so that a Function finds the rank that called backward().
_SLOT = "dualpipe_rs.weight_grad.store"
_enabled: set[Store] = set()  # the stores of the process that defer right now
_thread = threading.local()  # .default: the store of a thread that belongs to no rank


class Store:
    """One rank's waiting W's: closures in lists, the lists in a FIFO queue or under a key.

    A store serves one thread at a time: its rank's, or an autograd thread on which that rank's backward runs.
    """

    def __init__(self) -> None:
        self._on = False
        self._open: deque[Callable[[], object]] = deque()  # what put() has collected since the last flush()
        self._queue: deque[deque[Callable[[], object]]] = deque()
        self._keyed: dict[Hashable, deque[Callable[[], object]]] = {}

    @property
    def enabled(self) -> bool:
        """Whether parameter gradients are deferred into this store now."""
        return self._on

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._on = bool(value)
        (_enabled.add if value else _enabled.discard)(self)

    @property
    def waiting(self) -> int:
        """How many flushed or keyed W's have not run; 0 is what the end of a step should find."""
        return len(self._queue) + len(self._keyed)

    def put(self, fn: Callable[[], object]) -> None:
        """Adds the closure `fn` to the open list."""
        self._open.append(fn)

    def flush(self) -> None:
        """Moves the open list, empty or not, to the end of the queue as one entry."""
        self._queue.append(self._open)
        self._open = deque()

    def pop(self) -> None:
        """Takes the oldest entry of the queue and runs its closures; RuntimeError where there is none."""
        if not self._queue:
            raise RuntimeError("pop() found no W in this rank's queue; flush() before each pop().")
        _run(self._queue.popleft())

    def run(self, key: Hashable) -> None:
        """Runs the closures collected under `key`; RuntimeError where none wait (any more)."""
        if key not in self._keyed:
            raise RuntimeError(
                f"No W waits under the key {key!r}: deferring(key) never collected it, or it ran already; "
                "run each key once, after its I."
            )
        _run(self._keyed.pop(key))

    def clear(self) -> None:
        """Drops all closures, in the open list, the queue and under keys, without running them."""
        self._open.clear()
        self._queue.clear()
        self._keyed.clear()

    @contextlib.contextmanager
    def deferring(self, key: Hashable = None) -> Iterator[None]:
        """Defers the backward run inside; its closures become one entry, under `key` or (None) in the queue.

        The store is the calling thread's current one meanwhile. After an exception the closures collected so
        far are dropped; in any case `enabled` is False then. RuntimeError where the store defers already or
        where a W still waits under `key`.
        """
        if self._on:
            raise RuntimeError("deferring() was entered while its store defers already; end that one first.")
        if key is not None and key in self._keyed:
            raise RuntimeError(f"A W still waits under the key {key!r}; run(key) before collecting another.")
        kept, self._open = self._open, deque()
        before = current()
        set_current(self)
        try:
            self.enabled = True
            yield
            if key is None:
                self._queue.append(self._open)
            else:
                self._keyed[key] = self._open
        finally:
            self.enabled = False
            self._open = kept
            set_current(before)

    @contextlib.contextmanager
    def current(self) -> Iterator[Store]:
        """Makes this the store that `WeightGradStore` stands for on the calling thread, inside the block."""
        before = current()
        set_current(self)
        try:
            yield self
        finally:
            set_current(before)


def _run(fns: deque[Callable[[], object]]) -> None:
    """Runs closures in the order they were put, without autograd and autocast, letting go of each."""
    with torch.no_grad(), torch._C._DisableAutocast():
        while fns:
            fns.popleft()()


def current() -> Store | None:
    """The store set for the calling thread (for autograd's: the one that called backward), or None."""
    return torch._C._get_obj_in_tls(_SLOT) if torch._C._is_key_in_tls(_SLOT) else None


def set_current(store: Store | None) -> None:
    """Makes `store` the one that `WeightGradStore` stands for on the calling thread; None for no store."""
    torch._C._stash_obj_in_tls(_SLOT, store)


def _default() -> Store:
    """The calling thread's own store, for code that runs in no rank."""
    if not hasattr(_thread, "default"):
        _thread.default = Store()
    store: Store = _thread.default
    return store


def _here() -> Store:
    """What `WeightGradStore` stands for: the current store, else the one enabled, else the thread's own."""
    store = current()
    if store is None:
        deferring = list(_enabled)
        store = deferring[0] if len(deferring) == 1 else _default()
    return store


class _PerRank(type):
    """Gives `WeightGradStore` a class-level `enabled` that is a different variable on each rank."""

    @property
    def enabled(cls) -> bool:
        return _here().enabled

    @enabled.setter
    def enabled(cls, value: bool) -> None:
        store = current()
        if store is None:  # a plain script: from here on this thread has a store of its own
            set_current(store := _default())
        store.enabled = value


class WeightGradStore(metaclass=_PerRank):
    """The store of the calling rank, at class level, with the interface of DeepSeek's class of this name.

    For the backward of a user's own autograd Function:
    `if WeightGradStore.enabled: WeightGradStore.put(grad_weight_fn)`, `else: grad_weight_fn()`.
    Outside a pipeline each thread has a store of its own.
    """

    @staticmethod
    def put(fn: Callable[[], object]) -> None:
        """See `Store.put`."""
        _here().put(fn)

    @staticmethod
    def flush() -> None:
        """See `Store.flush`."""
        _here().flush()

    @staticmethod
    def pop() -> None:
        """See `Store.pop`."""
        _here().pop()

    @staticmethod
    def clear() -> None:
        """See `Store.clear`."""
        _here().clear()


# --- the cut itself ---------------------------------------------------------------------------------------

# The gradients of the input, the weight and the bias; None where the mask (three bools) asks for none.
_Grads = Sequence[Tensor | None]


class _Kind(NamedTuple):
    """How one sort of layer is cut; `saved` is what `run` kept for the backward, the input first."""

    run: Callable[..., Any]  # (x, w, b, opts, needs) -> output, saved
    grads: Callable[..., _Grads]  # (g, saved, opts, mask) -> gradients
    late: Callable[..., None] | None = None  # (g, saved, w, b, mask): W into .grad, if not simply by grads
    rerun: bool = False  # grads has no (full) derivative of its own, so a double backward goes by run
    joint: bool = False  # I needs the sums that the parameters' gradients are, so W only adds them to .grad


_Call = tuple[_Kind, Store, Tensor, Any, Any]  # kind, store, weight, bias, opts of one call of a layer


def _add(p: Tensor | None, grad: Tensor | None) -> None:
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


class _Split(torch.autograd.Function):
    """A layer whose backward leaves the parameters' gradients to a closure while its store is enabled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Any, kind: _Kind, store: Store, opts: Any) -> Any:
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


def _differentiable(call: _Call, g: Tensor, saved: Any, mask: Any) -> _Grads:
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
    if kind.joint:
        gx, gw, gb = kind.grads(g, saved, opts, mask)
        if later:
            store.put(functools.partial(_add_sums, w, gw, b, gb))
        return gx
    if later:
        versions = (g._version, None if saved[0] is None else saved[0]._version)
        store.put(functools.partial(_weight_grads, call, g, saved, mask, versions))
    return kind.grads(g, saved, opts, (True, False, False))[0] if mask[0] else None


def _add_sums(w: Tensor, gw: Tensor | None, b: Tensor | None, gb: Tensor | None) -> None:
    """W of a layer whose I had the sums."""
    _add(w, gw)
    _add(b, gb)


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
        _add_sums(w, gw, b, gb)


def _rows(t: Tensor) -> Tensor:
    """`t` as a matrix with all leading dimensions in its rows."""
    return t if t.dim() == 2 else t.flatten(0, -2) if t.dim() > 2 else t.unsqueeze(0)


def _linear_run(x: Tensor, w: Tensor, b: Tensor | None, opts: None, needs: Any) -> Any:
    return F.linear(x, w, b), (x if needs[1] else None, w if needs[0] else None)


def _linear_grads(g: Tensor, saved: Any, opts: None, mask: Any) -> _Grads:
    x, w = saved
    gx = g.matmul(w if w.dtype is g.dtype else w.to(g.dtype)) if mask[0] else None
    gw = _rows(g).t().mm(_rows(x)) if mask[1] else None
    return gx, gw, _rows(g).sum(0) if mask[2] else None


def _linear_late(g: Tensor, saved: Any, w: Tensor, b: Tensor | None, mask: Any) -> None:
    rows, grad = _rows(g), w.grad
    if mask[1] and grad is not None and grad.dtype is g.dtype and grad.layout is torch.strided:
        grad.addmm_(rows.t(), _rows(saved[0]))  # no temporary of the weight's size
    elif mask[1]:
        _add(w, rows.t().mm(_rows(saved[0])))
    if mask[2]:
        _add(b, rows.sum(0))


def _conv_run(x: Tensor, w: Tensor, b: Tensor | None, opts: Any, needs: Any) -> Any:
    op, args, _ = opts
    return op(x, w, b, *args), (x, w)


def _conv_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> _Grads:
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


def _embedding_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> _Grads:
    rows, padding, by_freq = opts
    gw = _aten.embedding_dense_backward(g, saved[0], rows, -1 if padding is None else padding, by_freq)
    return None, gw, None


def _layer_norm_run(x: Tensor, w: Tensor, b: Tensor | None, opts: Any, needs: Any) -> Any:
    out, *stats = torch.native_layer_norm(x, opts[0], w, b, opts[1])
    return out, (x, w, *stats)


def _layer_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> _Grads:
    x, w, mean, rstd = saved
    like_b = w if mask[2] else None  # of the bias the op reads only the shape, which is the weight's
    return _aten.native_layer_norm_backward(g, x, opts[0], mean, rstd, w, like_b, mask)


def _rms_norm_run(x: Tensor, w: Tensor, b: None, opts: Any, needs: Any) -> Any:
    out, rstd = _aten._fused_rms_norm(x, opts[0], w, opts[1])
    return out, (x, w, rstd)


def _rms_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> _Grads:
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


def _group_norm_grads(g: Tensor, saved: Any, opts: Any, mask: Any) -> _Grads:
    x, w, mean, rstd = saved
    n, c = x.shape[:2]
    size = (n, c, x.numel() // (n * c), opts[0])
    found: _Grads = _aten.native_group_norm_backward(g.contiguous(), x, mean, rstd, w, *size, mask)
    return found


@dataclasses.dataclass
class _BatchNorm:
    running: tuple[Tensor | None, Tensor | None]
    training: bool  # by the batch's statistics, not the running ones
    factor: float
    eps: float
    kernel: int = 0  # which of its kernels the forward took: torch's own (0), cuDNN's, ...


def _batch_norm_run(x: Tensor, w: Tensor, b: Tensor, opts: _BatchNorm, needs: Any) -> Any:
    # The op under F.batch_norm: it tells which kernel it took, and the backward has to be of the same.
    out, *stats, opts.kernel = torch._batch_norm_impl_index(
        x, w, b, *opts.running, opts.training, opts.factor, opts.eps, torch.backends.cudnn.enabled
    )
    return out, (x, w, *((None, None) if opts.training else opts.running), *stats)


def _batch_norm_grads(g: Tensor, saved: Any, opts: _BatchNorm, mask: Any) -> _Grads:
    x, w, *stats, reserve = saved
    if opts.kernel:  # cuDNN's backward may write to its reserve, and a second backward would read that
        reserve = reserve.clone()
    found: _Grads = _aten._batch_norm_impl_index_backward(
        opts.kernel, x, g, w, *stats, opts.training, opts.eps, mask, reserve
    )
    return found


_LINEAR = _Kind(_linear_run, _linear_grads, _linear_late)
_CONV = _Kind(_conv_run, _conv_grads)
_EMBEDDING = _Kind(_embedding_run, _embedding_grads)
_LAYER_NORM = _Kind(_layer_norm_run, _layer_norm_grads)
_RMS_NORM = _Kind(_rms_norm_run, _rms_norm_grads, rerun=True)
_GROUP_NORM = _Kind(_group_norm_run, _group_norm_grads, rerun=True, joint=True)
_BATCH_NORM = _Kind(_batch_norm_run, _batch_norm_grads, joint=True)

# --- the modules ------------------------------------------------------------------------------------------

_BOUND = "_weight_grad_store"  # in a split module's __dict__ while it is bound: its store
_FOUND = "_weight_grad_modules"  # in the __dict__ of a module that was bound once: the split modules in it


def _plain_parameter(p: Any) -> bool:
    """Whether p is a leaf, strided and real: no subclass (DTensor), not computed (parametrization)."""
    return type(p) is nn.Parameter and p.is_leaf and p.layout is torch.strided and not p.is_complex()


def _plain_input(x: Any) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided and not x.is_nested


def _store(m: nn.Module, x: Any) -> Store | None:
    """The store to cut this call of m for; None where m's own forward, and autograd, must do it all.

    That is: m is unbound or has nothing to train, or a custom Function would not be the plain layer's equal,
    as under torch.compile, tracing, functorch and forward-mode AD, and for unusual tensors.
    """
    if torch.compiler.is_compiling():
        return None
    store: Store | None = m.__dict__.get(_BOUND)
    if store is None or not torch.is_grad_enabled():
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


def _split(kind: _Kind, store: Store, m: nn.Module, x: Tensor, opts: Any = None) -> Any:
    return _Split.apply(x, m._parameters["weight"], m._parameters.get("bias"), kind, store, opts)


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
    return _split(_LINEAR, store, m, _lowered(input))


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
    return _split(_CONV, store, m, _lowered(input), opts)


def _conv_transpose_forward(m: Any, input: Any, output_size: Any = None) -> Any:
    store, dims = _store(m, input), len(m.kernel_size)
    if store is None or output_size is not None or input.dim() not in (dims + 1, dims + 2):
        return type(m).forward(m, input, output_size)
    opts = (
        _TRANSPOSED[dims],
        (m.stride, m.padding, m.output_padding, m.groups, m.dilation),
        (m.stride, m.padding, m.dilation, True, m.output_padding, m.groups),
    )
    return _split(_CONV, store, m, _lowered(input), opts)


def _embedding_forward(m: nn.Embedding, input: Any) -> Any:
    store = _store(m, input)
    if store is None or m.sparse or m.max_norm is not None:
        return type(m).forward(m, input)
    return _split(_EMBEDDING, store, m, input, (m.weight.shape[0], m.padding_idx, m.scale_grad_by_freq))


def _layer_norm_forward(m: nn.LayerNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    if store is None:
        return type(m).forward(m, input)
    return _split(_LAYER_NORM, store, m, input, (m.normalized_shape, m.eps))


def _rms_norm_forward(m: nn.RMSNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    # With mixed dtypes the plain op takes another path, and torch before 2.8 or so lacks the one used here.
    if store is None or input.dtype is not m.weight.dtype or not hasattr(_aten, "_fused_rms_norm"):
        return type(m).forward(m, input)
    return _split(_RMS_NORM, store, m, input, (m.normalized_shape, m.eps))


def _group_norm_forward(m: nn.GroupNorm, input: Any) -> Any:
    store = _norm_store(m, input)
    # The plain layer's checks, and their messages, are its own affair.
    if store is None or input.dim() < 2 or input.shape[1] != m.num_channels or input.numel() <= m.num_groups:
        return type(m).forward(m, input)
    return _split(_GROUP_NORM, store, m, input.contiguous(), (m.num_groups, m.eps))


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
    return _split(_BATCH_NORM, store, m, _dense(input), _BatchNorm(running, by_batch, factor, m.eps))


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

    RuntimeError, with nothing bound, where one is bound to another store: a module belongs to one rank.
    """
    for m in _found(module):
        if m.__dict__.get(_BOUND, store) is not store:
            raise RuntimeError(f"A {type(m).__name__} is bound to another rank's store; unbind() it there.")
    for m in _found(module):
        m.__dict__[_BOUND] = store


def unbind(module: nn.Module) -> None:
    """Ends `bind`: the layers in `module` are plain again; backwards of earlier forwards keep their store."""
    for m in _found(module):
        m.__dict__.pop(_BOUND, None)
