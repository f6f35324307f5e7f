"""weight_grad: I and W together against the plain layer's backward, and what may get between the two."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dualpipe_rs.weight_grad import (
    Store,
    WeightGradStore,
    bind,
    current,
    set_current,
    split_weight_grad,
    unbind,
)

torch.set_num_threads(1)
F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's remarks on what the plain layers do as well


@pytest.fixture(autouse=True)
def _clean():
    torch.manual_seed(0)
    set_current(None)
    yield
    set_current(None)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int = 0  # for embeddings: the inputs are indices below this

    def module(self) -> nn.Module:
        module = self.make().to(F64)
        for name, p in module.named_parameters():  # norms start as ones and zeros
            if not name.startswith("padding"):
                nn.init.normal_(p)
        return module

    def input(self) -> Tensor:
        if self.rows:
            return torch.randint(self.rows, self.shape)
        return torch.randn(self.shape, dtype=F64, requires_grad=True)


class Strided(nn.Module):
    """Hands its layer a non-contiguous input and gets a non-contiguous gradient back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, -1)).transpose(0, -1)


def _bn(cls: type, eval_mode: bool = False, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = cls(4, **options)
        if module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
        return module.eval() if eval_mode else module

    return make


CASES = {
    "linear": Case(lambda: nn.Linear(5, 3), (4, 5)),
    "linear-no-bias": Case(lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    "linear-1d": Case(lambda: nn.Linear(5, 3), (5,)),
    "linear-4d": Case(lambda: nn.Linear(5, 3), (2, 3, 4, 5)),
    "linear-empty": Case(lambda: nn.Linear(5, 3), (0, 5)),
    "linear-empty-3d": Case(lambda: nn.Linear(5, 3), (2, 0, 5)),
    "linear-strided": Case(lambda: Strided(nn.Linear(5, 5)), (5, 3, 4)),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv1d-no-bias": Case(lambda: nn.Conv1d(4, 6, 3, bias=False, padding=1), (2, 4, 9)),
    "conv1d-unbatched": Case(lambda: nn.Conv1d(4, 6, 3, stride=2), (4, 9)),
    "conv1d-same": Case(lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 9)),
    "conv1d-same-odd": Case(lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "conv1d-valid": Case(lambda: nn.Conv1d(4, 6, 3, padding="valid"), (2, 4, 9)),
    "conv1d-circular": Case(lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9)),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), stride=(2, 1)), (2, 4, 7, 6)),
    "conv2d-groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 7, 6)),
    "conv2d-depthwise": Case(lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 6)),
    "conv2d-unbatched": Case(lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "conv2d-empty": Case(lambda: nn.Conv2d(4, 6, 3), (0, 4, 7, 6)),
    "conv2d-strided": Case(lambda: Strided(nn.Conv2d(4, 6, 3)), (6, 4, 7, 2)),
    "conv2d-reflect": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 6)),
    "conv3d": Case(lambda: nn.Conv3d(2, 4, 2, padding=1, groups=2), (2, 2, 3, 4, 3)),
    "conv3d-unbatched": Case(lambda: nn.Conv3d(2, 4, 2), (2, 3, 4, 3)),
    "transpose1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "transpose1d-unbatched": Case(lambda: nn.ConvTranspose1d(4, 6, 3), (4, 5)),
    "transpose2d": Case(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 4, 5)),
    "transpose2d-dilated": Case(lambda: nn.ConvTranspose2d(4, 6, 2, dilation=2, bias=False), (2, 4, 4, 5)),
    "transpose3d": Case(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 2, 3, 2)),
    "embedding": Case(lambda: nn.Embedding(7, 3), (2, 5), rows=7),
    "embedding-padding": Case(lambda: nn.Embedding(7, 3, padding_idx=2), (4, 5), rows=7),
    "embedding-by-freq": Case(lambda: nn.Embedding(7, 3, scale_grad_by_freq=True), (4, 5), rows=7),
    "embedding-empty": Case(lambda: nn.Embedding(7, 3), (0, 5), rows=7),
    "embedding-scalar": Case(lambda: nn.Embedding(7, 3), (), rows=7),
    "layer-norm": Case(lambda: nn.LayerNorm(6), (2, 3, 6)),
    "layer-norm-2d": Case(lambda: nn.LayerNorm((3, 6), eps=1e-3), (2, 3, 6)),
    "layer-norm-no-bias": Case(lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "layer-norm-1d": Case(lambda: nn.LayerNorm(6), (6,)),
    "layer-norm-plain": Case(lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "layer-norm-empty": Case(lambda: nn.LayerNorm(6), (0, 6)),
    "layer-norm-strided": Case(lambda: Strided(nn.LayerNorm(6)), (6, 3, 4)),
    "rms-norm": Case(lambda: nn.RMSNorm(6), (2, 3, 6)),
    "rms-norm-2d": Case(lambda: nn.RMSNorm((3, 6), eps=1e-3), (2, 3, 6)),
    "rms-norm-1d": Case(lambda: nn.RMSNorm(6), (6,)),
    "rms-norm-strided": Case(lambda: Strided(nn.RMSNorm(6)), (6, 3, 4)),
    "rms-norm-empty": Case(lambda: nn.RMSNorm(6), (0, 6)),
    "group-norm": Case(lambda: nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "group-norm-each": Case(lambda: nn.GroupNorm(6, 6), (2, 6, 3)),
    "group-norm-2d": Case(lambda: nn.GroupNorm(2, 6, eps=1e-3), (3, 6)),
    "group-norm-strided": Case(lambda: Strided(nn.GroupNorm(2, 6)), (5, 6, 4, 3)),
    "group-norm-empty": Case(lambda: nn.GroupNorm(2, 6), (0, 6, 4)),
    "batch-norm": Case(_bn(nn.BatchNorm1d), (6, 4)),
    "batch-norm-3d": Case(_bn(nn.BatchNorm1d), (6, 4, 3)),
    "batch-norm-empty": Case(_bn(nn.BatchNorm1d), (0, 4, 3)),
    "batch-norm-eval": Case(_bn(nn.BatchNorm2d, eval_mode=True), (3, 4, 5, 2)),
    "batch-norm-eval-single": Case(_bn(nn.BatchNorm1d, eval_mode=True), (1, 4)),
    "batch-norm-no-stats": Case(_bn(nn.BatchNorm2d, track_running_stats=False), (3, 4, 5, 2)),
    "batch-norm-no-stats-eval": Case(_bn(nn.BatchNorm2d, True, track_running_stats=False), (3, 4, 5, 2)),
    "batch-norm-cumulative": Case(_bn(nn.BatchNorm3d, momentum=None), (2, 4, 3, 2, 2)),
    "batch-norm-plain": Case(_bn(nn.BatchNorm1d, affine=False), (6, 4)),
    "batch-norm-strided": Case(lambda: Strided(_bn(nn.BatchNorm2d)()), (6, 4, 3, 2)),
}
# Calls that the plain layer does, whole: there is nothing to defer.
WHOLE = {
    "conv1d-same-odd",
    "conv1d-circular",
    "conv2d-reflect",
    "layer-norm-plain",
    "layer-norm-empty",
    "rms-norm-empty",
    "group-norm-empty",
    "batch-norm-empty",
    "batch-norm-eval-single",
    "batch-norm-plain",
}
each_case = pytest.mark.parametrize("name", CASES)


def assert_close(a: Tensor | None, b: Tensor | None, rtol: float = 1e-12) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert (a - b).norm().item() <= rtol * b.norm().item() + 1e-14


def assert_same_grads(a: nn.Module, b: nn.Module, rtol: float = 1e-12) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert_close(p.grad, q.grad, rtol)


def twins(make: nn.Module) -> tuple[nn.Module, nn.Module, Store]:
    """A plain module, its split and bound copy, and the store of the copy."""
    store, split = Store(), split_weight_grad(copy.deepcopy(make))
    bind(split, store)
    return make, split, store


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def untouched(module: nn.Module) -> bool:
    return all(p.grad is None for p in module.parameters())


def is_cut(out: Tensor) -> bool:
    return "CutLayerBackward" in _graph_names(out)


def _graph_names(out: Tensor) -> set[str]:
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(node.name())
            todo.extend(n for n, _ in node.next_functions)
    return names


# --- every layer against the plain one --------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("needs", [True, False], ids=["input-grad", "no-input-grad"])
@each_case
def test_i_then_w_equals_b(name: str, needs: bool, frozen: tuple[str, ...]) -> None:
    """Two microbatches, both I's before both W's: outputs, input gradients after I, parameters' after W."""
    module = CASES[name].module()
    for n, p in module.named_parameters():
        p.requires_grad_(n.rpartition(".")[2] not in frozen)
    plain, split, store = twins(module)
    trained = [p for p in split.parameters() if p.requires_grad]
    for key in range(2):
        x = CASES[name].input()
        x.requires_grad_(needs and x.is_floating_point())
        y = leaf(x)
        expected, out = plain(x), split(y)
        assert_close(out, expected)
        if not expected.requires_grad:
            return
        g = torch.randn_like(expected)
        expected.backward(g)
        with store.deferring(key):
            out.backward(g)
        assert_close(y.grad, x.grad)
        if name not in WHOLE and trained:
            assert is_cut(out)
            assert untouched(split)
    for key in range(2):
        store.run(key)
    assert_same_grads(split, plain)
    assert store.waiting == 0
    assert all(p.grad is None for p in split.parameters() if not p.requires_grad)
    for a, b in zip(split.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bound", [True, False])
@each_case
def test_whole_backward_where_nothing_is_deferred(name: str, bound: bool) -> None:
    plain, split, _ = twins(CASES[name].module())
    if not bound:
        unbind(split)
    x = CASES[name].input()
    y = leaf(x)
    expected, out = plain(x), split(y)
    if expected.requires_grad:
        g = torch.randn_like(expected)
        expected.backward(g)
        out.backward(g)
    assert bound or out.grad_fn is None or not is_cut(out)
    assert torch.equal(out, expected)
    assert_close(y.grad, x.grad)
    assert_same_grads(split, plain)


@pytest.mark.parametrize("enabled", [True, False])
@each_case
def test_double_backward(name: str, enabled: bool) -> None:
    """With create_graph=True nothing is deferred, and gradients of gradients are the plain layer's."""
    plain, split, store = twins(CASES[name].module())
    x = CASES[name].input()
    y, found = leaf(x), []
    for module, z in ((plain, x), (split, y)):
        out = module(z)
        if not out.requires_grad or name == "embedding-empty":  # which torch cannot differentiate twice
            return
        leaves = [t for t in (z, *module.parameters()) if t.requires_grad]
        store.enabled = enabled
        first = torch.autograd.grad((out**2).sum(), leaves, create_graph=True)
        store.enabled = False
        second = torch.autograd.grad(sum((t**2).sum() for t in first), leaves, allow_unused=True)
        found.append(first + second)
    for a, b in zip(found[1], found[0], strict=True):
        assert_close(a, b, 1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_i_then_w_equals_b_on_a_gpu(name: str) -> None:
    plain, split, store = twins(CASES[name].module().cuda())
    for key in range(2):
        x = CASES[name].input().detach().cuda()
        x.requires_grad_(x.is_floating_point())
        y = leaf(x)
        expected, out = plain(x), split(y)
        if not expected.requires_grad:
            return
        g = torch.randn_like(expected)
        expected.backward(g)
        with store.deferring(key):
            out.backward(g)
        assert_close(out, expected)
        assert_close(y.grad, x.grad, 1e-10)
        assert name in WHOLE or untouched(split)
    for key in range(2):
        store.run(key)
    assert_same_grads(split, plain, 1e-10)


@pytest.mark.parametrize("name", ["linear", "linear-4d", "conv1d", "conv2d", "transpose3d"])
def test_i_and_w_each_do_their_own_work_only(name: str) -> None:
    """Both cost the forward's multiplications: I computes no weight gradient, W no input gradient."""
    _, split, store = twins(CASES[name].module())
    flops = []
    with FlopCounterMode(display=False) as counter:
        out = split(CASES[name].input())
        flops.append(counter.get_total_flops())
        with store.deferring(0):
            out.sum().backward()
        flops.append(counter.get_total_flops() - sum(flops))
        store.run(0)
        flops.append(counter.get_total_flops() - sum(flops))
    assert flops[0] == flops[1] == flops[2] > 0


class Ops(TorchDispatchMode):
    """Records the aten ops called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))

    def masks(self, op: str) -> list[list[bool]]:
        return [args[-1] for name, args in self.calls if name == op]


def test_layer_norm_is_cut_by_output_masks() -> None:
    _, split, store = twins(nn.LayerNorm(6, dtype=F64))
    out = split(torch.randn(4, 6, dtype=F64, requires_grad=True))
    with Ops() as ops, store.deferring(0):
        out.sum().backward()
    with Ops() as late:
        store.run(0)
    assert ops.masks("native_layer_norm_backward") == [[True, False, False]]
    assert late.masks("native_layer_norm_backward") == [[False, True, True]]


@pytest.mark.parametrize("name", ["batch-norm", "group-norm"])
def test_w_of_norms_whose_i_has_the_sums_only_adds(name: str) -> None:
    _, split, store = twins(CASES[name].module())
    for needs in (True, False):
        out = split(CASES[name].input().requires_grad_(needs))
        with Ops() as first, store.deferring(0):
            out.sum().backward()
        with Ops() as later:
            store.run(0)
        assert any("norm" in op for op, _ in first.calls) is needs
        assert any("norm" in op for op, _ in later.calls) is not needs


def test_embedding_does_nothing_in_i() -> None:
    _, split, store = twins(nn.Embedding(7, 3, dtype=F64))
    out = split(torch.tensor([1, 2]))
    with Ops() as ops, store.deferring(0):
        out.backward(torch.ones_like(out))
    assert not [op for op, _ in ops.calls if op.startswith("embedding")]
    store.run(0)


# --- parameters in several places, or not ordinary --------------------------------------------------------


class Tied(nn.Module):
    """A weight in an embedding, a Linear and a raw functional call; one Linear called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, dtype=F64)
        self.twice = nn.Linear(5, 5, dtype=F64)
        self.head = nn.Linear(5, 7, dtype=F64)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.twice(self.twice(self.embedding(tokens)).tanh())
        return self.head(x) + F.linear(x.sin(), self.embedding.weight)


def test_shared_weights_and_a_module_used_twice() -> None:
    plain, split, store = twins(Tied())
    tokens, g = torch.randint(7, (4, 3)), torch.randn(4, 3, 7, dtype=F64)
    for key in range(2):
        plain(tokens).backward(g)
        out = split(tokens)
        with store.deferring(key):
            out.backward(g)
    for key in range(2):
        store.run(key)
    assert_same_grads(split, plain)


def test_a_dropped_w_makes_the_gradients_wrong() -> None:
    plain, split, store = twins(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64))
    for key in range(2):
        x = torch.randn(4, 5, dtype=F64)
        plain(x).sum().backward()
        out = split(x)
        with store.deferring(key):
            out.sum().backward()
    store.run(1)
    assert store.waiting == 1
    with pytest.raises(AssertionError):
        assert_same_grads(split, plain)
    store.run(0)
    assert_same_grads(split, plain)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_w_adds_to_a_sparse_gradient(kind: type) -> None:
    plain, split, store = twins(kind(*((5, 7) if kind is nn.Linear else (7, 5)), dtype=F64))
    x = torch.randint(7, (4,)) if isinstance(plain, nn.Embedding) else torch.randn(4, 5, dtype=F64)
    for module in (plain, split):
        F.embedding(torch.tensor([1, 1, 3]), module.weight, sparse=True).sum().backward()
    plain(x).sum().backward()
    out = split(x)
    with store.deferring(0):
        out.sum().backward()
    assert split.weight.grad.is_sparse
    store.run(0)
    assert_same_grads(split, plain)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_fire_with_the_whole_gradient(kind: str) -> None:
    plain, split, store = twins(nn.Linear(5, 3, dtype=F64))
    seen: dict[nn.Module, list[Tensor]] = {plain: [], split: []}
    for module in (plain, split):

        def hook(t: Tensor, seen: list[Tensor] = seen[module]) -> None:
            seen.append((t if t.grad is None else t.grad).clone())  # the gradient, or who has it

        getattr(module.weight, kind)(hook)
    x = torch.randn(4, 5, dtype=F64)
    plain(x).sum().backward()
    out = split(x)
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    assert len(seen[plain]) == len(seen[split]) == 1
    assert_close(seen[split][0], seen[plain][0])
    assert_same_grads(split, plain)


class Subclass(Tensor):
    pass


def _subclassed() -> nn.Module:
    module = nn.Linear(5, 5, dtype=F64)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Subclass))
    return module


def _computed() -> nn.Module:
    """A Parameter that has become an intermediate result."""
    module, source = nn.Linear(5, 5, dtype=F64), nn.Parameter(torch.randn(5, 5, dtype=F64))
    module.weight.requires_grad_(False).copy_(source.sin())
    module.register_parameter("source", source)
    return module


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(5, 5)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 5)).eval(),
    "old_weight_norm": lambda: torch.nn.utils.weight_norm(nn.Linear(5, 5)),
    "complex": lambda: nn.Linear(5, 5, dtype=torch.complex128),
    "subclass": _subclassed,
    "computed": _computed,
    "sparse": lambda: nn.Embedding(5, 5, sparse=True),
    "max_norm": lambda: nn.Embedding(5, 5, max_norm=1.0),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_parameters_are_left_to_autograd(name: str) -> None:
    make = UNUSUAL[name]
    torch.manual_seed(1)
    plain = make()
    torch.manual_seed(1)
    split, store = split_weight_grad(make()), Store()
    bind(split, store)
    x = torch.randn(4, 5, dtype=plain.weight.dtype)
    x = torch.randint(5, (4,)) if isinstance(plain, nn.Embedding) else x
    expected, out = plain(x), split(x)
    g = torch.randn_like(expected)
    expected.backward(g)
    with store.deferring(0):
        out.backward(g)
    store.run(0)
    assert not is_cut(out)
    for p, q in zip(split.parameters(), plain.parameters(), strict=True):
        if p.is_leaf:
            assert torch.equal(p.grad.to_dense(), q.grad.to_dense())
    assert torch.equal(out, expected)


def test_parametrizing_a_bound_module_is_noticed() -> None:
    _, split, store = twins(nn.Linear(5, 5, dtype=F64))
    parametrizations.weight_norm(split)
    out = split(torch.randn(4, 5, dtype=F64))
    with store.deferring(0):
        out.sum().backward()
    assert all(p.grad is not None for p in split.parameters())


def test_replaced_parameters_are_used() -> None:
    """functional_call swaps parameters for tensors and for other Parameters; neither is missed."""
    _, split, store = twins(nn.Linear(5, 5, dtype=F64))
    x = torch.randn(4, 5, dtype=F64)
    other = {n: torch.randn_like(p).requires_grad_() * 1 for n, p in split.named_parameters()}
    out = torch.func.functional_call(split, other, (x,))
    assert not is_cut(out)
    assert_close(out, F.linear(x, other["weight"], other["bias"]))
    params = {n: nn.Parameter(p.detach()) for n, p in other.items()}
    out = torch.func.functional_call(split, params, (x,))
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    assert untouched(split)
    assert_close(params["weight"].grad, x.sum(0).expand(5, 5))


def test_gradients_of_another_dtype_than_the_parameter() -> None:
    _, split, store = twins(nn.Linear(5, 3, dtype=torch.bfloat16))
    if not hasattr(split.weight, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    split.weight.grad_dtype = torch.float32
    for _ in range(2):
        out = split(torch.ones(4, 5, dtype=torch.bfloat16))
        with store.deferring(0):
            out.sum().backward()
        store.run(0)
    assert split.weight.grad.dtype is torch.float32
    assert torch.equal(split.weight.grad, torch.full((3, 5), 8.0))


def test_first_gradient_has_the_parameters_strides() -> None:
    linear = nn.Linear(5, 3, dtype=F64)
    linear.weight = nn.Parameter(torch.randn(5, 3, dtype=F64).t())
    plain, split, store = twins(linear)
    x = torch.randn(4, 5, dtype=F64)
    plain(x).sum().backward()
    out = split(x)
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    assert split.weight.grad.stride() == plain.weight.grad.stride() == (1, 3)
    assert_same_grads(split, plain)


def test_gradients_are_nobody_elses_memory() -> None:
    _, split, store = twins(nn.Linear(5, 3, dtype=F64))
    x, g = torch.randn(5, dtype=F64, requires_grad=True), torch.randn(3, dtype=F64)
    for _ in range(2):
        out = split(x)
        with store.deferring(0):
            out.backward(g)
        store.run(0)
    before = [p.grad.clone() for p in split.parameters()]
    g.zero_()
    x.detach().zero_()
    for p, b in zip(split.parameters(), before, strict=True):
        assert torch.equal(p.grad, b)


@pytest.mark.parametrize("what", ["input", "gradient"])
def test_changes_between_i_and_w_are_refused(what: str) -> None:
    _, split, store = twins(nn.Linear(5, 3, dtype=F64))
    x, g = torch.randn(4, 5, dtype=F64), torch.randn(4, 3, dtype=F64)
    out = split(x)
    with store.deferring(0):
        out.backward(g)
    (x if what == "input" else g).add_(1)
    with pytest.raises(RuntimeError, match="changed in place since I"):
        store.run(0)


# --- how the backward is asked for ------------------------------------------------------------------------


def test_autograd_grad_inside_a_deferred_backward() -> None:
    """What asks for the input's gradient only gets no W; what asks for a parameter's gets it in its hand."""
    _, split, store = twins(nn.Linear(5, 3, dtype=F64))
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    out = split(x).sum()
    expected = torch.ones(4, 3, dtype=F64).t() @ x.detach()
    with store.deferring(0):
        (gx,) = torch.autograd.grad(out, x, retain_graph=True)
        torch.autograd.backward(out, inputs=[x], retain_graph=True)
        gw, _ = torch.autograd.grad(out, (split.weight, x), retain_graph=True)
    store.run(0)
    assert_close(gx, x.grad)
    assert_close(gw, expected)
    assert untouched(split)
    with store.deferring(1):
        torch.autograd.backward(out, inputs=[split.weight])
    store.run(1)
    assert_close(split.weight.grad, expected)
    assert split.bias.grad is None


def test_create_graph_defers_nothing() -> None:
    plain, split, store = twins(nn.Linear(5, 3, dtype=F64))
    x = torch.randn(4, 5, dtype=F64)
    plain(x).square().sum().backward(create_graph=True)
    out = split(x).square().sum()
    with store.deferring(0):
        out.backward(create_graph=True)
    assert_same_grads(split, plain)
    assert split.weight.grad.requires_grad


class Rerun(torch.autograd.Function):
    """Forgets its graph and, in its backward, makes it anew and asks autograd.grad for all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, *params: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return module(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.module(x)
        gx, *rest = torch.autograd.grad(out, (x, *ctx.module.parameters()), g)
        return gx, None, *rest


def test_a_users_function_that_collects_parameter_gradients_itself() -> None:
    plain, split, store = twins(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5)).to(F64))
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    Rerun.apply(x, plain, *plain.parameters()).sum().backward()
    out = Rerun.apply(leaf(x), split, *split.parameters()).sum()
    with store.deferring(0):
        out.backward()
    store.run(0)
    assert_same_grads(split, plain)


def test_an_output_without_a_gradient() -> None:
    class Blind(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> None:
            return None

    _, split, store = twins(nn.Linear(5, 3, dtype=F64))
    out = Blind.apply(split(torch.randn(4, 5, dtype=F64)))
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    assert untouched(split)


def test_retained_graphs_defer_each_time() -> None:
    plain, split, store = twins(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).to(F64))
    x = torch.randn(4, 5, dtype=F64)
    a, b = (plain(x) ** 2).sum(), (split(x) ** 2).sum()
    for key in range(2):
        a.backward(retain_graph=True)
        with store.deferring(key):
            b.backward(retain_graph=True)
        store.run(key)
    assert_same_grads(split, plain)


# --- autocast ---------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.norms = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose1d(8, 8, 3)
        self.after = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.RMSNorm(8))
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norms(self.embedding(tokens)).transpose(1, 2)
        return self.head(self.after(self.up(self.conv(x)).transpose(1, 2)))


@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
@pytest.mark.parametrize("deferred", [True, False])
def test_autocast(inside: bool, deferred: bool) -> None:
    """bfloat16 on the CPU: the same dtypes and, but for the order of sums, the same numbers."""
    plain, split, store = twins(Mixed())
    tokens = torch.randint(7, (2, 5))
    for module in (plain, split):
        for key in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                out = module(tokens)
            assert out.dtype is torch.bfloat16
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                if module is split and deferred:
                    with store.deferring(key):
                        out.float().square().sum().backward()
                    store.run(key)
                else:
                    out.float().square().sum().backward()
    assert_same_grads(split, plain, 1e-2)
    assert all(p.grad.dtype is torch.float32 for p in split.parameters())


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv1d-unbatched", "transpose2d"])
def test_autocast_of_one_layer_is_exact(name: str) -> None:
    plain, split, store = twins(CASES[name].module().float())
    x = torch.randn(CASES[name].shape, requires_grad=True)
    y = leaf(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = plain(x), split(y)
    g = torch.randn_like(expected)
    expected.backward(g)
    with store.deferring(0):
        out.backward(g)
    store.run(0)
    assert torch.equal(out, expected)
    assert_close(y.grad, x.grad, 1e-6)
    assert_same_grads(split, plain, 1e-6)


def test_autocasts_cache_keeps_the_history_of_a_weight_used_twice() -> None:
    _, split, store = twins(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = split(x) + F.linear(x, split.weight)
    with store.deferring(0):
        out.sum().backward()
    assert split.weight.grad is not None  # the raw call's
    half = split.weight.grad.clone()
    store.run(0)
    assert_close(split.weight.grad, 2 * half, 1e-6)


def test_closures_run_without_grad_and_without_autocast() -> None:
    store, seen = Store(), []
    with store.deferring(0):
        store.put(lambda: seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))))
    with torch.autocast("cpu", torch.bfloat16):
        store.run(0)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(False, False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_norms(dtype: torch.dtype) -> None:
    make = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)).to(dtype)
    plain, split, store = twins(make)
    x = torch.randn(4, 8, dtype=dtype, requires_grad=True)
    y = leaf(x)
    expected, out = plain(x), split(y)
    assert torch.equal(out, expected)
    g = torch.randn_like(expected)
    expected.backward(g)
    with store.deferring(0):
        out.backward(g)
    store.run(0)
    eps = 4 * torch.finfo(dtype).eps
    assert_close(y.grad, x.grad, eps)
    assert_same_grads(split, plain, eps)


# --- checkpoints ------------------------------------------------------------------------------------------


class Counted(torch.autograd.Function):
    """Doubles its input and counts its calls."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Counted.calls += 1
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.drop = nn.Dropout(0.5)
        self.b = nn.Linear(5, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.b(self.drop(self.norm(Counted.apply(self.a(x)))))


class Checkpointed(nn.Module):
    """Two blocks, each under a checkpoint; nested puts a checkpoint around both."""

    def __init__(self, use_reentrant: bool, nested: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.use_reentrant, self.nested = use_reentrant, nested

    def inner(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.nested:
            return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)
        return self.inner(x)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant: bool, nested: bool) -> None:
    """The same gradients, dropout included, and no more forwards than a whole backward makes."""
    plain, split, store = twins(Checkpointed(use_reentrant, nested).to(F64))
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    y, counts = leaf(x), []
    for module, z in ((plain, x), (split, y)):
        torch.manual_seed(1)
        Counted.calls = 0
        for key in range(2):
            out = module(z).square().sum()
            if module is plain:
                out.backward()
                continue
            with store.deferring(key):
                out.backward()
        counts.append((Counted.calls, [block.calls for block in module.blocks]))
    assert untouched(split)
    for key in range(2):
        store.run(key)
    counts.append((Counted.calls, [block.calls for block in split.blocks]))
    assert counts[0] == counts[1] == counts[2]
    assert_close(y.grad, x.grad)
    assert_same_grads(split, plain)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_keeps_nothing_of_its_inside_until_i(use_reentrant: bool) -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            kept.append(weakref.ref(y))
            return y

    _, split, store = twins(nn.Sequential(Watch(), nn.Linear(5, 5), Watch(), nn.LayerNorm(5)))
    x = torch.randn(4, 5, requires_grad=True)
    out = checkpoint(split, x, use_reentrant=use_reentrant)
    assert [ref() for ref in kept] == [None, None]
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    del out
    gc.collect()
    assert not any(ref() is not None for ref in kept)


def test_the_store_is_captured_at_forward() -> None:
    """A backward after unbind() still belongs to the rank that ran the forward."""
    plain, split, store = twins(nn.Linear(5, 3, dtype=F64))
    x = torch.randn(4, 5, dtype=F64)
    plain(x).sum().backward()
    out = split(x).sum()
    unbind(split)
    with store.deferring(0):
        out.backward()
    assert untouched(split)
    store.run(0)
    assert_same_grads(split, plain)


# --- where a Function does not belong ---------------------------------------------------------------------


def test_functorch_and_forward_mode() -> None:
    plain, split, _ = twins(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)).to(F64))
    x = torch.randn(4, 5, dtype=F64)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).square().sum()

    assert_close(torch.func.grad(lambda x: loss(split, x))(x), torch.func.grad(lambda x: loss(plain, x))(x))
    assert_close(torch.vmap(split)(x), torch.vmap(plain)(x))
    a, b = (torch.func.jvp(m, (x,), (x,))[1] for m in (split, plain))
    assert_close(a, b)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        a, b = (torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (split, plain))
    assert_close(a, b)


def test_compile_sees_the_plain_layers() -> None:
    plain, split, store = twins(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3)).to(F64))
    x = torch.randn(4, 5, dtype=F64)
    plain(x).sum().backward()
    out = torch.compile(split, backend="eager", fullgraph=True)(x)
    with store.deferring(0):
        out.sum().backward()
    store.run(0)
    assert not is_cut(out)
    assert_same_grads(split, plain)


def test_tracing_sees_the_plain_layers() -> None:
    _, split, _ = twins(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)).to(F64))
    x = torch.randn(4, 5, dtype=F64)
    assert "CutLayer" not in str(torch.jit.trace(split, x).inlined_graph)


def test_unusual_inputs() -> None:
    _, split, store = twins(nn.Linear(5, 3))
    nested = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)])
    out = split(nested)
    with store.deferring(0):
        sum(t.sum() for t in out.unbind()).backward()
    assert split.weight.grad is not None
    with torch.no_grad():
        assert not split(torch.randn(4, 5)).requires_grad


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("batch-norm", (1, 4)),
        ("batch-norm", (4,)),
        ("group-norm", (1, 5)),
        ("group-norm-each", (1, 6)),
        ("conv2d", (4,)),
        ("conv2d", (5, 7, 6)),
    ],
)
def test_errors_are_the_plain_layers(name: str, shape: tuple[int, ...]) -> None:
    plain, split, _ = twins(CASES[name].module())
    x, messages = torch.randn(shape, dtype=F64), []
    for module in (plain, split):
        with pytest.raises((RuntimeError, ValueError)) as error:
            module(x)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_output_size_of_a_transposed_convolution() -> None:
    plain, split, _ = twins(nn.ConvTranspose1d(4, 4, 3, stride=2, dtype=F64))
    x = torch.randn(2, 4, 5, dtype=F64)
    assert torch.equal(split(x, output_size=[12]), plain(x, output_size=[12]))
    assert torch.equal(split(input=x), plain(input=x))


# --- the modules' other life ------------------------------------------------------------------------------


def _saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _saved_and_loaded]
)
def test_copies_are_split_modules_of_their_own(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    plain, split, store = twins(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)).to(F64))
    unbind(split)
    twin = duplicate(split)
    assert not any(isinstance(v, Store) for m in twin.modules() for v in m.__dict__.values())
    x = torch.randn(4, 5, dtype=F64)
    with torch.no_grad():
        for p in split.parameters():
            p.zero_()
    bind(twin, store)
    plain(x).sum().backward()
    out = twin(x)
    assert_close(out, plain(x))
    with store.deferring(0):
        out.sum().backward()
    assert untouched(twin)
    store.run(0)
    assert_same_grads(twin, plain)
    assert untouched(split)


def test_only_ordinary_layers_are_split_and_only_once() -> None:
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    own, ordinary = nn.Linear(5, 5), nn.Linear(5, 5)
    own.forward = lambda x: x  # type: ignore[method-assign]
    module = nn.Sequential(Odd(5, 5), own, ordinary, nn.Tanh())
    keys = list(module.state_dict())
    assert split_weight_grad(module) is module
    first = ordinary.forward
    split_weight_grad(module)
    assert ordinary.forward is first
    assert "forward" not in module[0].__dict__
    assert own(3) == 3
    assert list(module.state_dict()) == keys


def test_bind_finds_what_was_split_later() -> None:
    module, store = nn.Sequential(nn.Linear(5, 5)), Store()
    bind(split_weight_grad(module), store)
    unbind(module)
    module.append(nn.Linear(5, 5))
    bind(split_weight_grad(module), store)
    out = module(torch.randn(4, 5))
    with store.deferring(0):
        out.sum().backward()
    assert untouched(module)


def test_a_module_belongs_to_one_rank() -> None:
    module, store = split_weight_grad(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))), Store()
    bind(module[1], store)
    bind(module[1], store)
    with pytest.raises(RuntimeError, match="bound to another rank's store"):
        bind(module, Store())
    assert not is_cut(module[0](torch.randn(4, 5)))
    unbind(module)
    bind(module, Store())


def test_a_split_module_is_freed() -> None:
    module = split_weight_grad(nn.Linear(5, 5))
    bind(module, Store())
    unbind(module)
    ref = weakref.ref(module)
    del module
    gc.collect()
    assert ref() is None


# --- the store --------------------------------------------------------------------------------------------


def test_the_queue_is_first_in_first_out() -> None:
    store, seen = Store(), []
    for i in range(3):
        store.put(lambda i=i: seen.append((i, "a")))
        store.put(lambda i=i: seen.append((i, "b")))
        store.flush()
    assert store.waiting == 3
    for i in range(3):
        store.pop()
        assert seen == [(j, c) for j in range(i + 1) for c in "ab"]
    with pytest.raises(RuntimeError, match=r"flush\(\) before each pop\(\)"):
        store.pop()
    store.flush()
    store.pop()  # an empty entry is an entry


def test_keys_run_once_in_any_order() -> None:
    store, seen = Store(), []
    for key in ((0, 1), (0, 2)):
        with store.deferring(key):
            store.put(lambda key=key: seen.append(key))
    with store.deferring():
        store.put(lambda: seen.append("queue"))
    with pytest.raises(RuntimeError, match=r"still waits under the key \(0, 1\)"):
        store.deferring((0, 1)).__enter__()
    for key in ((0, 2), (0, 1)):
        store.run(key)
        with pytest.raises(RuntimeError, match=r"run each key once"):
            store.run(key)
    store.pop()
    assert seen == [(0, 2), (0, 1), "queue"]
    with pytest.raises(RuntimeError, match="No W waits under the key 'unknown'"):
        store.run("unknown")


def test_an_exception_ends_deferring_and_drops_its_closures() -> None:
    store, seen = Store(), []
    store.put(lambda: seen.append("before"))

    def fail() -> None:
        with store.deferring(0):
            store.put(lambda: seen.append("half"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not store.enabled
    assert current() is None
    assert store.waiting == 0
    store.flush()
    store.pop()
    assert seen == ["before"]


def test_deferring_does_not_nest() -> None:
    store = Store()
    with store.deferring(0):
        with pytest.raises(RuntimeError, match="defers already"):
            store.deferring(1).__enter__()
        assert store.enabled
    assert not store.enabled


def test_clear_drops_everything() -> None:
    store = Store()
    for key in (None, 0):
        with store.deferring(key):
            store.put(lambda: pytest.fail("ran"))
    store.put(lambda: pytest.fail("ran"))
    store.clear()
    assert store.waiting == 0
    store.flush()
    store.pop()


def test_running_lets_go_of_each_closure_in_turn() -> None:
    store, kept = Store(), [torch.zeros(1), torch.zeros(1)]
    refs = [weakref.ref(t) for t in kept]
    alive: list[list[bool]] = []

    def look(t: Tensor) -> None:
        alive.append([ref() is not None for ref in refs])

    with store.deferring(0):
        while kept:
            store.put(functools.partial(look, kept.pop(0)))
    store.run(0)
    assert alive == [[True, True], [False, True]]


# --- WeightGradStore --------------------------------------------------------------------------------------


class UserLinear(torch.autograd.Function):
    """As user code writes it for DeepSeek's package."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.w = w
        return F.linear(x, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, _ = ctx.saved_tensors

        def grad_weight_fn() -> None:
            grad = g.t() @ x
            ctx.w.grad = grad if ctx.w.grad is None else ctx.w.grad + grad

        if WeightGradStore.enabled:
            WeightGradStore.put(grad_weight_fn)
        else:
            grad_weight_fn()
        return g @ ctx.w, None


def user_layer() -> tuple[nn.Parameter, Tensor, Tensor]:
    w, x = nn.Parameter(torch.randn(3, 5, dtype=F64)), torch.randn(4, 5, dtype=F64)
    return w, UserLinear.apply(x, w).sum(), torch.ones(4, 3, dtype=F64).t() @ x


def test_a_plain_script_as_for_deepseeks_package() -> None:
    assert not WeightGradStore.enabled
    w, out, expected = user_layer()
    WeightGradStore.enabled = True
    out.backward()
    WeightGradStore.enabled = False
    WeightGradStore.flush()
    assert w.grad is None
    WeightGradStore.pop()
    assert_close(w.grad, expected)
    WeightGradStore.put(lambda: pytest.fail("ran"))
    WeightGradStore.clear()
    with pytest.raises(RuntimeError):
        WeightGradStore.pop()
    w, out, expected = user_layer()
    out.backward()
    assert_close(w.grad, expected)


def test_user_functions_defer_into_the_current_ranks_store() -> None:
    store, other = Store(), Store()
    w, out, expected = user_layer()
    with other.current():
        assert current() is other
        with store.deferring((0, 0)):
            assert WeightGradStore.enabled
            out.backward()
        assert current() is other
        assert not WeightGradStore.enabled
    assert current() is None
    assert w.grad is None
    store.run((0, 0))
    assert_close(w.grad, expected)


def test_a_thread_without_a_rank_sees_the_one_enabled_store() -> None:
    a, b = Store(), Store()
    seen = []

    def look() -> None:
        seen.append(WeightGradStore.enabled)
        WeightGradStore.put(lambda: seen.append("ran"))

    def in_a_thread() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    in_a_thread()  # none is enabled: the thread's own
    a.enabled = True
    in_a_thread()
    b.enabled = True
    in_a_thread()  # two are: the thread's own again
    a.enabled = b.enabled = False
    assert seen == [False, True, False]
    for store, ran in ((a, ["ran"]), (b, [])):
        seen.clear()
        store.flush()
        store.pop()
        assert seen == ran


class Deep(torch.autograd.Function):
    """Nests backwards `depth` deep, so that the engine moves to a thread of its own; then calls fn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int, fn: Callable[[], None]) -> Tensor:
        ctx.call = depth, fn
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        depth, fn = ctx.call
        if depth == 0:
            fn()
        else:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                Deep.apply(x, depth - 1, fn).backward()
        return g, None, None


def test_autograd_threads_belong_to_the_rank_that_called_backward() -> None:
    store, other, seen = Store(), Store(), []

    def look() -> None:
        seen.append((threading.get_ident() != caller, current() is store, WeightGradStore.enabled))

    caller = threading.get_ident()
    other.enabled = True
    out = Deep.apply(torch.ones(1, requires_grad=True), 80, look)
    with store.deferring(0):
        out.backward()
    other.enabled = False
    assert seen == [(True, True, True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_user_functions_defer_from_a_gpus_autograd_thread() -> None:
    store, other = Store(), Store()
    other.enabled = True
    w, x = nn.Parameter(torch.randn(3, 5, device="cuda")), torch.randn(4, 5, device="cuda")
    out = UserLinear.apply(x, w).sum()
    with store.deferring(0):
        out.backward()
    other.enabled = False
    assert w.grad is None
    store.run(0)
    assert w.grad is not None


def test_threads_do_not_mix() -> None:
    """Two ranks as threads, both deferring at once, half split module and half user Function."""
    barrier, results = threading.Barrier(2, timeout=60), {}

    def rank(r: int) -> None:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(r)
        plain, split, store = twins(nn.Linear(5, 5, dtype=F64))
        w = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=F64))
        set_current(store)
        for step in range(20):
            x = torch.randn(4, 5, generator=generator, dtype=F64)
            F.linear(plain(x), w.detach()).sum().backward()
            out = UserLinear.apply(split(x), w).sum()
            barrier.wait()
            with store.deferring(step):
                barrier.wait()
                out.backward()
                barrier.wait()
            late = untouched(split) if step == 0 else True
            barrier.wait()
            store.run(step)
        assert_same_grads(split, plain)
        results[r] = late and w.grad is not None and store.waiting == 0

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: True, 1: True}
