"""partition(): the best cut, names kept, nothing touched, and errors that say what to do."""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dualpipe_rs import UsageError, partition


def identities(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Identity() for _ in range(count)))


def lengths(stages: Sequence[nn.Sequential]) -> list[int]:
    return [len(stage) for stage in stages]


def names(stages: Sequence[nn.Sequential]) -> list[list[str]]:
    return [list(stage._modules) for stage in stages]


def cut(costs: Sequence[float], num_stages: int) -> list[int]:
    return lengths(partition(identities(len(costs)), num_stages, costs=costs))


# ---- The cut ----------------------------------------------------------------------------------------------


def score(costs: Sequence[float], stage_lengths: Sequence[int]) -> tuple[Fraction, Fraction, int]:
    """What a cut is judged by, exactly: greatest cost, sum of squared costs, sum of squared lengths."""
    sums, start = [], 0
    for length in stage_lengths:
        sums.append(sum((Fraction(c) for c in costs[start : start + length]), Fraction(0)))
        start += length
    return max(sums), sum((s * s for s in sums), Fraction(0)), sum(n * n for n in stage_lengths)


def all_cuts(num_layers: int, num_stages: int) -> list[list[int]]:
    cuts = []
    for inner in itertools.combinations(range(1, num_layers), num_stages - 1):
        bounds = [0, *inner, num_layers]
        cuts.append([stop - start for start, stop in itertools.pairwise(bounds)])
    return cuts


small_or_any = st.one_of(
    st.integers(0, 4).map(float), st.floats(0, 1e6), st.sampled_from([0.1, 0.2, 0.3, 0.7, 1e-300, 1e300])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(small_or_any, min_size=1, max_size=8), st.data())
def test_no_cut_is_better(costs: list[float], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    chosen = cut(costs, num_stages)
    assert len(chosen) == num_stages
    assert sum(chosen) == len(costs)
    assert min(chosen) >= 1
    assert score(costs, chosen) == min(score(costs, other) for other in all_cuts(len(costs), num_stages))


@pytest.mark.parametrize(
    ("costs", "num_stages", "expected"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([1, 2, 3, 4, 5], 2, [3, 2]),
        ([9, 1, 1, 1], 2, [1, 3]),
        ([9, 1, 1, 1, 1], 3, [1, 2, 2]),  # the greatest cost is 9 either way: the rest is spread
        ([0, 0, 0, 0, 0, 0], 3, [2, 2, 2]),
        ([5], 1, [1]),
        ([0.1, 0.2, 0.3], 2, [2, 1]),  # 0.1 + 0.2 > 0.3 in floats, and still the best
    ],
)
def test_cuts_by_hand(costs: list[float], num_stages: int, expected: list[int]) -> None:
    assert cut(costs, num_stages) == expected


def test_the_same_answer_every_time() -> None:
    assert {tuple(cut([1] * 7, 3)) for _ in range(5)} == {tuple(cut([1] * 7, 3))}


def test_a_long_model_is_cut_at_once() -> None:
    costs = [float(i % 7 + 1) for i in range(400)]
    begin = time.perf_counter()
    stages = cut(costs, 16)
    assert time.perf_counter() - begin < 5
    assert score(costs, stages)[0] <= sum(costs) / 16 + 7


def test_costs_may_be_tensors_and_ints() -> None:
    assert lengths(partition(identities(3), 2, costs=torch.tensor([3.0, 1.0, 1.0]))) == [1, 2]
    assert cut([3, 1, 1], 2) == [1, 2]


def test_by_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24))
    assert lengths(partition(model, 2)) == [3, 1]


def test_layers_without_parameters_are_spread() -> None:
    assert lengths(partition(identities(6), 3)) == [2, 2, 2]
    mixed = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Linear(4, 4))
    assert lengths(partition(mixed, 2)) == [3, 3]


# ---- What the stages are -----------------------------------------------------------------------------------


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    )


def test_stages_one_after_the_other_are_the_whole() -> None:
    model = small_model()
    x = torch.randn(5, 4)
    expected = copy.deepcopy(model)(x)
    stages = partition(model, 3)
    for stage in stages:
        assert type(stage) is nn.Sequential
        x = stage(x)
    assert torch.equal(x, expected)


def test_names_and_state_dict_stay_global() -> None:
    model = small_model()
    stages = partition(model, 3, costs=[1, 1, 1, 1, 1, 1])
    assert names(stages) == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert list(stages[1].state_dict())[-2:] == ["3.weight", "3.bias"]
    together = [key for stage in stages for key in stage.state_dict()]
    assert together == list(model.state_dict())


def test_layers_are_not_copied() -> None:
    model = small_model()
    stages = partition(model, 2)
    assert [layer for stage in stages for layer in stage] == list(model)
    assert list(model._modules) == ["0", "1", "2", "3", "4", "5"]


def test_own_names_are_kept() -> None:
    model = nn.Sequential(OrderedDict(embed=nn.Linear(2, 2), block=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    assert names(partition(model, 3)) == [["embed"], ["block"], ["head"]]


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList])
def test_lists_of_layers(kind: Any) -> None:
    stages = partition(kind([nn.Linear(2, 2) for _ in range(4)]), 2)
    assert names(stages) == [["0", "1"], ["2", "3"]]


def test_a_layer_that_stands_twice_runs_twice() -> None:
    double = nn.Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    (stage,) = partition(nn.Sequential(double, double), 1)
    assert stage(torch.ones(1, 1)).item() == 4.0


def test_modes_stay() -> None:
    model = small_model().eval()
    model[2].train()
    stages = partition(model, 3, costs=[1, 1, 1, 1, 1, 1])
    assert [layer.training for layer in model] == [False, False, True, False, False, False]
    assert [stage.training for stage in stages] == [False, True, False]


# ---- Measured ----------------------------------------------------------------------------------------------


class Sleep(nn.Module):
    """Takes a known time forward and does nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


class SleepBackward(Sleep):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SlowBackward.apply(x, self.seconds)


def test_the_time_of_forward_counts() -> None:
    model = nn.Sequential(Sleep(0.03), Sleep(0), Sleep(0), Sleep(0.03), Sleep(0))
    assert lengths(partition(model, 2, sample=torch.ones(1))) in ([1, 4], [2, 3], [3, 2])
    model = nn.Sequential(Sleep(0.04), Sleep(0.02), Sleep(0.02))
    assert lengths(partition(model, 2, sample=torch.ones(1))) == [1, 2]


def test_the_time_of_backward_counts() -> None:
    """Of the first layer too only if the sample asks for a gradient: a pipeline owes nobody that one."""
    model = nn.Sequential(Sleep(0), SleepBackward(0.02), SleepBackward(0.02), SleepBackward(0.04))
    assert lengths(partition(model, 2, sample=torch.ones(1))) == [3, 1]


class Spy(nn.Module):
    """Has everything that timing might leave traces in, and writes to all of it."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.linear.weight.grad is None:
            self.linear.weight.grad = torch.ones_like(self.linear.weight)  # as deferred weight gradients are
        return self.drop(self.norm(self.frozen(self.linear(x)))).relu_()


def fingerprint(model: nn.Module) -> list[Any]:
    grads = [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
    tensors = [(key, id(t), t.tolist()) for key, t in [*model.named_parameters(), *model.named_buffers()]]
    modes = [m.training for m in model.modules()]
    return [grads, tensors, modes, torch.get_rng_state().tolist(), torch.is_grad_enabled()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_measuring_leaves_no_trace(training: bool, with_gradients: bool) -> None:
    model = nn.Sequential(Spy(), Spy(), nn.ReLU(inplace=True)).train(training)
    if with_gradients:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
    x = torch.randn(6, 4)
    before, x_before = fingerprint(model), x.clone()
    partition(model, 2, sample=x)
    assert fingerprint(model) == before
    assert torch.equal(x, x_before)
    assert x.grad is None
    assert not x.requires_grad


def test_a_failing_layer_is_named_and_leaves_no_trace() -> None:
    model = nn.Sequential(Spy(), nn.Linear(3, 3))
    x = torch.randn(6, 4)
    before = fingerprint(model)
    with pytest.raises(UsageError, match=r"layer '1' \(Linear\) could not be timed") as caught:
        partition(model, 2, sample=x)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert fingerprint(model) == before


def test_hooks_of_gradients_do_not_fire() -> None:
    """An optimizer that steps in such a hook would change the weights."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fired: list[Any] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    partition(model, 2, sample=torch.ones(1, 2))
    assert fired == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_measured_the_same_without_gradients_around(mode: Any) -> None:
    model = nn.Sequential(Sleep(0), SleepBackward(0.02), SleepBackward(0.02), SleepBackward(0.04))
    with mode():
        assert lengths(partition(model, 2, sample=torch.ones(1))) == [3, 1]


def test_integer_samples_and_frozen_layers() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    assert sum(lengths(partition(model, 2, sample=torch.tensor([[1, 2]])))) == 3


Pair = namedtuple("Pair", ["left", "right"])


class Swap(nn.Module):
    def forward(self, pair: Any) -> Any:
        return type(pair)(*[pair[1], pair[0] * 2]) if isinstance(pair, Pair) else (pair[1], pair[0] * 2)


@pytest.mark.parametrize("kind", [lambda a, b: (a, b), Pair], ids=["tuple", "namedtuple"])
def test_a_tuple_is_one_argument_as_in_a_sequential(kind: Any) -> None:
    model = nn.Sequential(Swap(), Swap(), Swap())
    sample = kind(torch.ones(2), torch.ones(2))
    model(sample)
    assert sum(lengths(partition(model, 2, sample=sample))) == 3


def test_dictionaries_and_lists_pass_through() -> None:
    class Rename(nn.Module):
        def forward(self, given: dict[str, Any]) -> dict[str, Any]:
            return {"x": given["x"] * 2, "rest": [given["x"], 7]}

    assert len(partition(nn.Sequential(Rename(), Rename()), 2, sample={"x": torch.ones(2)})) == 2


def test_a_shared_buffer_stays_shared_while_measured() -> None:
    class Writer(nn.Module):
        seen: torch.Tensor

        def __init__(self, buffer: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("seen", buffer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return x

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            buffer = torch.zeros(())
            self.a, self.b = Writer(buffer), Writer(buffer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(x))
            assert self.a.seen is self.b.seen
            return x

    both = Both()
    partition([both, nn.Identity()], 2, sample=torch.ones(1))
    assert both.a.seen.item() == 0


# ---- Errors and warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_stages", "message"),
    [
        (0, "at least 1"),
        (-2, "at least 1"),
        (4, "3 layers cannot fill 4 stages"),
        (1.5, "an integer"),
        ("2", "an integer"),
    ],
)
def test_wrong_number_of_stages(num_stages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partition(identities(3), num_stages)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([1, 2], "2 numbers, and there are 3 layers"),
        ([1, math.nan, 1], "layer '1' is nan"),
        ([1, 1, math.inf], "layer '2' is inf"),
        ([-1, 1, 1], "layer '0' is -1"),
        ([1, None, 1], "layer '1' is None"),
        ([1, 10**400, 1], "layer '1'"),
        ({"0": 1, "1": 1, "2": 1}, "layer '0' is '0'"),
        (3, "a sequence"),
    ],
)
def test_wrong_costs(costs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partition(identities(3), 2, costs=costs)


def test_costs_and_sample() -> None:
    with pytest.raises(UsageError, match="both costs and sample"):
        partition(identities(2), 2, costs=[1, 1], sample=torch.ones(1))


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)


class OwnForward(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def with_parameter() -> nn.Sequential:
    model = identities(2)
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return model


def with_hook() -> nn.Sequential:
    model = identities(2)
    model.register_forward_hook(lambda module, args, output: output + 1)
    return model


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Custom(), r"got a Custom: .*partition\(\[model\.embed"),
        (OwnForward(nn.Identity(), nn.Identity()), r"OwnForward with a forward\(\) of its own"),
        (with_parameter(), r"parameters or buffers of its own \(scale\)"),
        (with_hook(), "hooks of its own"),
        ([nn.Identity(), torch.relu], "layer '1' is a builtin_function_or_method"),
        (7, "type int"),
        (
            nn.Sequential(nn.LazyLinear(2), nn.Identity()),
            r"layer '0' \(LazyLinear\) has parameters without a shape",
        ),
        ([], "0 layers cannot fill 2 stages"),
    ],
    ids=["module", "forward", "parameter", "hook", "function", "number", "lazy", "empty"],
)
def test_what_cannot_be_cut(module: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partition(module, 2)


def test_a_usage_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        partition(identities(1), 0)


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    return model


def test_a_parameter_of_two_stages_warns() -> None:
    with pytest.warns(
        UserWarning, match=r"'0.weight' of stage 0, and '2.weight' of stage 1.*sync_gradients"
    ) as caught:
        stages = partition(tied(), 2, costs=[1, 1, 1])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert stages[0][0].weight is stages[1][-1].weight


def test_a_parameter_of_one_stage_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(tied(), 1)
