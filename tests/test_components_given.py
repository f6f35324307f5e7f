"""What `Components` takes, what it refuses and in which words, and what it says of itself."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from components_oracle import COMMUNICATION, COMPUTATION, NAMES
from conftest import python

import dualpipe_rs as dp


def ones(**options: Any) -> dp.Components:
    return dp.Components((1, 1, 1), (1, 1), (1, 1, 1), (1, 1), **options)


# ---- What is refused ---------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"attention": (1, 2, 3), "dispatch": (1, 2), "mlp": (1, 2, 3), "combine": (1, 2)}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("time", [-1, -1e-300, math.nan, math.inf, -math.inf], ids=str)
def test_times_out_of_range(name: str, time: float) -> None:
    for place, kind in enumerate(NAMES[name]):
        for bad, layer in ((time, 0), ([1, time], 1)):
            times = list(GOOD[name])
            times[place] = bad
            with pytest.raises(
                dp.UsageError, match=rf"^{name} {kind} of layer {layer} is .*; a time is a finite"
            ):
                dp.Components(**{**GOOD, name: times})


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "times",
    [
        *[
            1,
            None,
            "123",
            b"12",
            (),
            (1,),
            (1, 2, 3, 4),
            {1: 2, 3: 4},
            (1, "2", 3),
            ("1", 2),
            (1, None, [1]),
            len,
        ],
        *[
            ((1, 2), (1, [2])),
            itertools.count(),
            (1, range(10**15), 1),
            (range(10**15), 1),
            np.ones((2, 2, 2)),
        ],
        *[10**400, (1, 10**400), (1, np.broadcast_to(1.0, 10**15), 1), (np.broadcast_to(1.0, 10**15), 1)],
    ],
    ids=lambda times: type(times).__name__,
)
def test_times_of_other_types(name: str, times: Any) -> None:
    kinds = ", ".join(NAMES[name])
    with pytest.raises(
        dp.UsageError, match=rf"(?s)^{name} is .*; it is \({kinds}\), each a number, or a sequence"
    ):
        dp.Components(**{**GOOD, name: times})


def test_lengths_that_differ() -> None:
    with pytest.raises(
        dp.UsageError, match=r"^mlp W has 3 entries, but dispatch F has 2; give one number, or"
    ):
        dp.Components((1, 2, 3), ([1, 2], 1), (1, 2, [1, 2, 3]), (1, 2))
    with pytest.raises(dp.UsageError, match=r"^attention I has 2 entries, but layers is 3"):
        dp.Components((1, [2, 2], 3), (1, 2), (1, 2, 3), (1, 2), layers=3)


@pytest.mark.parametrize("layers", [0, 65537, 2**32, -1, 2**70])
def test_layers_out_of_range(layers: int) -> None:
    with pytest.raises(dp.UsageError, match=r"^layers is "):
        dp.Components(**GOOD, layers=layers)
    with pytest.raises(dp.UsageError, match=r"entries, but layers is|^layers is"):
        dp.Components(**{**GOOD, "combine": ([1, 2], 1)}, layers=layers)


@pytest.mark.parametrize("layers", ["2", 1.5, True, [1]])
def test_layers_of_other_types(layers: Any) -> None:
    with pytest.raises(TypeError):
        dp.Components(**GOOD, layers=layers)


def test_no_layers() -> None:
    with pytest.raises(dp.UsageError, match=r"^layers is 0; a stage has from 1"):
        dp.Components(([], [], []), ([], []), ([], [], []), ([], []))


@pytest.mark.parametrize("slowdown", [0.99, 0, -1, math.nan, math.inf, 1e7, "2", [2], 10**400])
def test_slowdowns_out_of_range(slowdown: Any) -> None:
    with pytest.raises(dp.UsageError, match=r"^compute_slowdown is .*; it is a number"):
        dp.Components(**GOOD, compute_slowdown=slowdown)


@pytest.mark.parametrize(
    ("name", "order", "words"),
    [
        ("communication_order", COMMUNICATION[:3], 'lacks "combine F"; it has each of these once'),
        ("communication_order", [], 'lacks "dispatch F", "dispatch I", "combine F", "combine I"'),
        ("communication_order", [*COMMUNICATION, "combine I"], "holds combine I twice"),
        ("communication_order", ["combine W", *COMMUNICATION], 'holds "combine W", which is no part'),
        ("communication_order", ["Combine I"], 'holds "Combine I", which is no part'),
        (
            "communication_order",
            ["mlp F", *COMMUNICATION],
            "holds mlp F, which runs on the computation stream",
        ),
        ("computation_order", COMPUTATION[1:], 'lacks "attention F"'),
        (
            "computation_order",
            ["dispatch I"] * 10**6,
            "holds dispatch I, which runs on the communication stream",
        ),
        ("computation_order", ["mlp I"] * 10**6, "holds mlp I twice"),
        ("computation_order", np.broadcast_to("mlp I", 10**15), "holds mlp I twice"),
        ("computation_order", "attention F", "is 'attention F'; it is a sequence of words"),
        ("computation_order", [1, 2], r"is \[1, 2\]; it is a sequence of words"),
        ("computation_order", itertools.repeat("mlp I"), r"is repeat\('mlp I'\); it is a sequence of words"),
        ("computation_order", 5, "is 5; it is a sequence of words"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_orders_that_are_none(name: str, order: Any, words: str) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} {words}"):
        dp.Components(**GOOD, **{name: order})


def test_orders_that_wait_in_a_circle() -> None:
    with pytest.raises(dp.UsageError) as refused:
        dp.Components(**GOOD, computation_order=["mlp F", *(part for part in COMPUTATION if part != "mlp F")])
    assert str(refused.value) == (
        "communication_order and computation_order make parts wait for each other in a circle: "
        "mlp F waits for dispatch F, whose result it takes; dispatch F waits for attention F, whose result "
        "it takes; attention F waits for mlp F, which stands before it on its stream; move one of them"
    )
    # Across both streams: each order alone would do.
    with pytest.raises(dp.UsageError, match=r"attention I.*dispatch I.*combine F.*mlp F"):
        dp.Components(
            **GOOD,
            communication_order=["combine I", "dispatch F", "combine F", "dispatch I"],
            computation_order=["attention F", "mlp I", "mlp W", "attention I", "mlp F", "attention W"],
        )


def test_times_beyond_floats() -> None:
    with pytest.raises(dp.UsageError, match=r"^times add up to more than 1e300; give them in a larger unit"):
        dp.Components((1e308, 1e308, 1), (1, 1), (1, 1, 1), (1, 1))
    stage = dp.Components((1e299, 1e299, 1e299), (1e299, 1), (1, 1, 1), (1, 1e299), compute_slowdown=1e6)
    assert math.isfinite(stage.pair())
    tiny = dp.Components((5e-324,) * 3, (5e-324,) * 2, (5e-324,) * 3, (5e-324,) * 2, compute_slowdown=1e6)
    assert 0 < tiny.pair() <= 10 * 5e-324 * 1e6


def test_words_for_what_is_laid_out() -> None:
    for call in (ones().lay, ones().exposed):
        with pytest.raises(
            dp.UsageError, match=r'^what="pairs" is not known; it is one of pair, forward, backward_'
        ):
            call("pairs")
        with pytest.raises(dp.UsageError, match=r'^other belongs to what="pair", not to "backward"'):
            call("backward", ones())
    with pytest.raises(TypeError):
        ones().pair(3)


def test_many_layers() -> None:
    stage = ones(layers=65536)
    assert (stage.forward, stage.pair()) == (4 * 65536, stage.lay()["end"].max())


# ---- What they are -----------------------------------------------------------------------------------------


def test_components_say_what_they_are() -> None:
    stage = dp.Components(
        np.array([1, 2, 3]),
        ([1, 2], np.array([0.5, 0.25])),
        np.array([[1, 1], [2, 2], [3, 4]]),
        (1.5, 2),
        computation_order=("mlp I", "attention F", "mlp F", "mlp W", "attention I", "attention W"),
        compute_slowdown=1.25,
    )
    assert (stage.layers, stage.compute_slowdown) == (2, 1.25)
    assert (stage.attention, stage.dispatch) == ((1, 2, 3), ([1, 2], [0.5, 0.25]))
    assert (stage.mlp, stage.combine) == ((1, 2, [3, 4]), (1.5, 2))
    assert stage.communication_order == COMMUNICATION
    assert stage.computation_order[0] == "mlp I"
    assert eval(repr(stage), {"Components": dp.Components}) == stage
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(stage, protocol)) == stage
    assert copy.deepcopy(stage) == stage
    with pytest.raises(AttributeError):
        stage.layers = 3  # type: ignore[misc]


def test_equal_components() -> None:
    assert ones(layers=2) == dp.Components(([1, 1], 1, 1), (1, 1), (1, 1, 1), (1, 1))
    others = [
        ones(layers=2),
        ones(compute_slowdown=2),
        dp.Components((1, 1, 1), (1, 1), (1, 1, 2), (1, 1)),
        ones(communication_order=["dispatch F", "combine I", "dispatch I", "combine F"]),
        ones(computation_order=["mlp I", "attention F", "mlp W", "mlp F", "attention I", "attention W"]),
    ]
    assert all(ones() != other for other in others)
    assert ones() == ones(communication_order=COMMUNICATION, computation_order=COMPUTATION)


def test_rows_are_a_structured_array() -> None:
    rows = ones().lay()
    assert rows.dtype.names == ("stream", "layer", "component", "kind", "start", "end")
    assert [rows.dtype[name].str[1:] for name in rows.dtype.names] == ["U13", "u4", "U9", "U1", "f8", "f8"]
    assert rows.tobytes() == ones().lay().tobytes()


def test_no_numpy_before_it_is_needed() -> None:
    code = "import sys, dualpipe_rs as dp\ndp.Components((1, 1, 1), (1, 1), (1, 1, 1), (1, 1)).pair()\n"
    assert python(code + "print('numpy' in sys.modules)").stdout == "False\n"
