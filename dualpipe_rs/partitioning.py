"""Cuts a model that is a plain sequence of layers into pipeline stages of even cost.

It is a balancer, not a tracer: it needs the layers in the order in which they run, each taking what the one
before it returns, and never looks into a forward(). It moves and copies nothing: the stages hold the very
layers it got. torch is imported when partition() is called, so importing this module costs nothing.
"""

from __future__ import annotations

import math
import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from dualpipe_rs.errors import UsageError
from dualpipe_rs.replicas.ties import mark

if TYPE_CHECKING:
    from torch import nn

    Layers = list[tuple[str, nn.Module]]

__all__ = ["partition"]


def partition(
    module: nn.Sequential | nn.ModuleList | Sequence[nn.Module],
    num_stages: int,
    *,
    costs: Iterable[float] | None = None,
    sample: Any = None,
) -> list[nn.Sequential]:
    """Cut a sequence of layers into contiguous stages whose greatest cost is the least possible.

    The answer is exact. Among cuts with the same greatest cost it takes the most even one (least sum of
    squared stage costs, then of squared stage lengths), and among those always the same one.

    What a layer costs:

    - ``costs``: what you say.
    - ``sample``: its measured forward + backward time. Times vary, so two calls may cut differently: where
      every rank of a job cuts for itself and must cut alike, give ``costs``.
    - neither: the number of its parameters, plus one. The one is for layers without parameters: they weigh
      next to nothing, but a run of them is still spread.

    Args:
        module: an ``nn.Sequential``, or the layers in running order (a list, a tuple, an ``nn.ModuleList``).
        num_stages: how many stages, at least 1 and at most the number of layers; no stage is empty. DualPipe
            needs one stage a rank, DualPipeV two.
        costs: one finite, non-negative number a layer, in any unit.
        sample: what you would call ``module`` with: a tensor, or a tuple if the first layer takes a tuple as
            its one argument (as in ``nn.Sequential``, one object is handed from layer to layer). Each layer
            runs a few times, in the train or eval mode in which it is. Gradients, buffers such as BatchNorm's
            running statistics, and torch's random generators are as before afterwards. State that a layer
            keeps elsewhere is not restored.

    Returns:
        ``num_stages`` ``nn.Sequential``. They hold the given layers themselves under their names in
        ``module`` (of a list: "0", "1", ...), so ``state_dict`` keys are those of the whole model, such as
        ``"3.weight"``.

    Raises:
        UsageError: an argument is not as described above, or a layer fails on ``sample``.

    Warns:
        UserWarning: a parameter is shared by layers of different stages. The stages are marked, so that a
            pipeline ties their copies by itself.
    """
    layers = _layers_of(module)
    _check_num_stages(num_stages, len(layers))
    if costs is not None and sample is not None:
        raise UsageError(
            "partition() got both costs and sample: give costs, or a sample to measure them with."
        )
    if costs is not None:
        weights = _checked_costs(costs, layers)
    elif sample is not None:
        from dualpipe_rs.layer_costs import measured_costs

        weights = measured_costs(layers, sample)
    else:
        weights = [1.0 + sum(p.numel() for p in layer.parameters()) for _, layer in layers]
    bounds = _cut(_as_integers(weights), num_stages)
    parts = [layers[start:stop] for start, stop in pairwise(bounds)]
    stages = [_sequential(part) for part in parts]
    _tie_shared_parameters(stages)
    return stages


# ---- The arguments -----------------------------------------------------------------------------------------


def _layers_of(module: Any) -> Layers:
    """The layers with their names, in running order."""
    from torch import nn

    if isinstance(module, nn.Sequential):
        _check_plain(module)
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        # Not named_children(): that names a layer which stands twice only once.
        layers: list[tuple[str, Any]] = list(module._modules.items())
    elif isinstance(module, (list, tuple)):
        layers = [(str(i), layer) for i, layer in enumerate(module)]
    elif isinstance(module, nn.Module):
        name = type(module).__name__
        raise UsageError(
            f"partition() cuts an nn.Sequential or a list of layers, and got a {name}: the order in which "
            f"{name}.forward() runs its children cannot be known from outside. Give the layers in that "
            "order, each taking what the one before it returns, as in "
            "partition([model.embed, *model.blocks, model.head], ...)."
        )
    else:
        raise UsageError(
            "partition() cuts an nn.Sequential or a list of layers (nn.Module), and got "
            f"an object of type {type(module).__name__}."
        )
    for name, layer in layers:
        if not isinstance(layer, nn.Module):
            raise UsageError(f"layer {name!r} is a {type(layer).__name__}: every layer must be an nn.Module.")
        _check_has_shapes(name, layer)
    return layers


def _check_plain(module: nn.Sequential) -> None:
    """A Sequential that does more than run its layers would lose that in the cut."""
    from torch import nn

    name = type(module).__name__
    extra = None
    if type(module).forward is not nn.Sequential.forward:
        extra = "a forward() of its own"
    elif module._parameters or module._buffers:
        extra = f"parameters or buffers of its own ({', '.join([*module._parameters, *module._buffers])})"
    elif module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        extra = "hooks of its own"
    if extra is not None:
        raise UsageError(
            f"partition() got a {name} with {extra}, which no stage would keep: move it into a layer, "
            "or give the list of layers, partition(list(module), ...), if the stages can do without it."
        )


def _check_has_shapes(name: str, layer: nn.Module) -> None:
    from torch.nn.parameter import is_lazy

    if any(is_lazy(tensor) for tensor in [*layer.parameters(), *layer.buffers()]):
        raise UsageError(
            f"layer {name!r} ({type(layer).__name__}) has parameters without a shape yet: "
            "run the model once on an example input, then cut it."
        )


def _check_num_stages(num_stages: int, num_layers: int) -> None:
    try:
        operator.index(num_stages)
    except TypeError:
        raise UsageError(f"num_stages must be an integer, and is {num_stages!r}.") from None
    if num_stages < 1:
        raise UsageError(f"num_stages must be at least 1, and is {num_stages}.")
    if num_layers < num_stages:
        raise UsageError(
            f"{num_layers} layers cannot fill {num_stages} stages: every stage needs a layer. "
            "Ask for fewer stages, or give the model as more, smaller layers."
        )


def _checked_costs(costs: Iterable[float], layers: Layers) -> list[float]:
    try:
        given = list(costs)
    except TypeError:
        raise UsageError(f"costs must be a sequence with one number a layer, and is {costs!r}.") from None
    if len(given) != len(layers):
        raise UsageError(
            f"costs has {len(given)} numbers, and there are {len(layers)} layers: give one a layer."
        )
    checked = []
    for (name, _), cost in zip(layers, given, strict=True):
        try:
            # A string is refused although float() would read it: it is a dictionary's keys, not costs.
            value = math.nan if isinstance(cost, (str, bytes)) else float(cost)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value) or value < 0:
            raise UsageError(
                f"the cost of layer {name!r} is {cost!r}: it must be a finite number, 0 or more."
            )
        checked.append(value)
    return checked


# ---- The cut -----------------------------------------------------------------------------------------------


def _as_integers(values: Sequence[float]) -> list[int]:
    """The values times a common power of two: sums of floats are rounded, and equal ones would differ."""
    ratios = [value.as_integer_ratio() for value in values]
    common = max(denominator for _, denominator in ratios)
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def _cut(costs: list[int], num_stages: int) -> list[int]:
    """Where each stage starts, and the end: num_stages + 1 rising indices, the best cut of all."""
    sums = [0, *accumulate(costs)]
    greatest = _least_greatest(sums, num_stages)
    return _most_even(sums, num_stages, greatest)


def _least_greatest(sums: list[int], num_stages: int) -> int:
    """The least cost that no stage need exceed, by bisection: for a given limit filling greedily is best."""
    low = max(b - a for a, b in pairwise(sums))
    high = sums[-1]
    while low < high:
        limit = (low + high) // 2
        if _stages_needed(sums, limit) <= num_stages:
            high = limit
        else:
            low = limit + 1
    return low


def _stages_needed(sums: list[int], limit: int) -> int:
    """How few stages will do. Fewer than asked for is fine: a stage can be cut further at no cost."""
    stages, start = 0, 0
    while start < len(sums) - 1:
        start = bisect_right(sums, sums[start] + limit) - 1
        stages += 1
    return stages


def _most_even(sums: list[int], num_stages: int, greatest: int) -> list[int]:
    """The cut with the least sum of squares among those in which no stage exceeds the greatest cost.

    best[stop] is the least (sum of squared costs, sum of squared lengths) of the stages so far when they hold
    the first ``stop`` layers, and start_of says where the last of them starts; of equals the earliest stays.
    """
    num_layers = len(sums) - 1
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    starts: list[dict[int, int]] = []
    for stage in range(num_stages):
        reached: dict[int, tuple[int, int]] = {}
        start_of: dict[int, int] = {}
        last_stop = num_layers - (num_stages - 1 - stage)  # leave a layer for each stage to come
        for start, (squares, lengths) in best.items():
            for stop in range(start + 1, last_stop + 1):
                cost = sums[stop] - sums[start]
                if cost > greatest:
                    break
                score = (squares + cost * cost, lengths + (stop - start) ** 2)
                if stop not in reached or score < reached[stop]:
                    reached[stop], start_of[stop] = score, start
        best = reached
        starts.append(start_of)
    bounds = [num_layers]
    for start_of in reversed(starts):
        bounds.append(start_of[bounds[-1]])
    return bounds[::-1]


# ---- The stages --------------------------------------------------------------------------------------------


def _sequential(part: Layers) -> nn.Sequential:
    from collections import OrderedDict

    from torch import nn

    stage = nn.Sequential(OrderedDict(part))
    stage.training = any(layer.training for _, layer in part)  # the flag alone: the layers keep theirs
    return stage


def _tie_shared_parameters(stages: list[nn.Sequential]) -> None:
    for places in mark(stages):
        first, *others = (f"{name!r} of stage {stage}" for stage, name in places)
        warnings.warn(
            f"one parameter is shared by stages: it is {first}, and {' and '.join(others)}. A pipeline of "
            "these stages ties their copies; call its sync_gradients() before every optimizer step, which "
            "sums their gradients, or choose costs that put these layers into one stage.",
            UserWarning,
            stacklevel=3,
        )
