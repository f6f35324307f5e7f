"""Fused pairs from their components: every time beside the slow oracle's, DeepSeek's published profile, and
bounds that no order can beat. test_components_given.py has what is taken and refused.

Where times are compared for equality, they are whole numbers and slowdowns powers of two, of which sums of
floats are exact.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import components_oracle as oracle
import numpy as np
import pytest
from components_oracle import COMMUNICATION, COMPUTATION, KINDS, NAMES, PARTS, Stage

import dualpipe_rs as dp


def components(stage: Stage, **options: Any) -> dp.Components:
    times = {
        name: [[layer[f"{name} {kind}"] for layer in stage] for kind in kinds]
        for name, kinds in NAMES.items()
    }
    return dp.Components(**times, **options)


def random_stage(rng: random.Random, layers: int) -> Stage:
    most = rng.choice([3, 40])
    return [{part: rng.choice([0, rng.randint(0, most)]) for part in PARTS} for _ in range(layers)]


def random_orders(rng: random.Random) -> tuple[list[str], list[str]]:
    """Any that gets through is one order of all parts, each after what it waits for, dealt out to the two."""
    left, order = set(PARTS), []
    while left:
        order.append(rng.choice(sorted(part for part in left if oracle.may_run(part, set(order)))))
        left.remove(order[-1])
    return [p for p in order if p in COMMUNICATION], [p for p in order if p in COMPUTATION]


def random_pair(seed: int) -> tuple[Stage, Stage, list[str], list[str]]:
    rng = random.Random(seed)
    orders = (COMMUNICATION, COMPUTATION) if rng.random() < 0.3 else random_orders(rng)
    return random_stage(rng, rng.randint(1, 4)), random_stage(rng, rng.randint(1, 4)), *orders


def built(seed: int, slowdown: float = 1) -> tuple[dp.Components, dp.Components]:
    """The pair of this seed. The second stage has other options, which a pair does not look at."""
    up, down, communication, computation = random_pair(seed)
    forward = components(
        up,
        communication_order=communication,
        computation_order=computation,
        compute_slowdown=slowdown,
    )
    return forward, components(down, compute_slowdown=3)


# ---- Beside the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("slowdown", [1, 2])
@pytest.mark.parametrize("seed", range(200))
def test_beside_the_oracle(seed: int, slowdown: int) -> None:
    up, down, *orders = random_pair(seed)
    forward, backward = built(seed, slowdown)
    for what in KINDS:
        other, layers = (backward, down) if what == "pair" else (None, up)
        spans = oracle.lay(what, up, layers, *orders, slowdown=slowdown)
        assert forward.lay(what, other).tolist() == oracle.rows(spans, len(layers), *orders)
        assert forward.exposed(what, other) == oracle.exposed(spans)
        took = forward.pair(backward) if what == "pair" else getattr(forward, what)
        assert took == oracle.duration(spans)


@pytest.mark.parametrize("seed", range(100))
def test_any_slowdown_beside_the_oracle(seed: int) -> None:
    slowdown = 1 + random.Random(-seed).random() ** 2 * 5
    up, down, *orders = random_pair(seed)
    forward, backward = built(seed, slowdown)
    spans = oracle.lay("pair", up, down, *orders, slowdown=slowdown)
    ends = {
        (part, kind, layer): end for _, layer, part, kind, _, end in forward.lay("pair", backward).tolist()
    }
    for _, layer, part, kind, _, end in oracle.rows(spans, len(down), *orders):
        assert ends[part, kind, layer] == pytest.approx(float(end), rel=1e-12, abs=1e-12)
    assert forward.exposed("pair", backward) == pytest.approx(float(oracle.exposed(spans)), abs=1e-9)


def attempt(stage: Stage, communication: Sequence[str], computation: Sequence[str]) -> dp.Components | str:
    """The stage, or why it is refused."""
    try:
        return components(stage, communication_order=communication, computation_order=computation)
    except dp.UsageError as error:
        return str(error)


def test_every_order() -> None:
    """Taken where no parts wait in a circle. DeepSeek's is the best of those for its own profile."""
    pairs = {}
    for orders in itertools.product(
        itertools.permutations(COMMUNICATION), itertools.permutations(COMPUTATION)
    ):
        given = attempt(PUBLISHED, *orders)
        if oracle.circular(*map(list, orders)):
            assert isinstance(given, str)
            assert "wait for each other in a circle" in given
            continue
        assert isinstance(given, dp.Components), given
        assert (given.communication_order, given.computation_order) == tuple(map(list, orders))
        pairs[orders] = given.pair()
    assert len(pairs) == 109
    best, second = sorted(pairs, key=pairs.__getitem__)[:2]
    assert best == (tuple(COMMUNICATION), tuple(COMPUTATION))
    assert pairs[best] == 128119 < pairs[second]


# ---- DeepSeek's published profile --------------------------------------------------------------------------

COLUMNS = (
    "combine I, attention F, mlp I, dispatch F, dispatch I, mlp W, mlp F, attention I, attention W, combine F"
)
ROWS = [
    [4424, 4833, 5746, 6087, 7338, 5333, 4289, 9215, 2381, 7327],
    [5227, 4393, 5467, 5746, 7912, 5059, 4420, 9563, 2390, 8262],
    [6210, 4567, 5467, 7129, 7517, 5260, 5212, 9646, 2400, 9541],
    [7275, 4602, 4772, 7988, 7466, 4639, 4644, 9737, 2412, 9653],
]


def published() -> Stage:
    """A row is a fused layer: it holds the backward of the layer counted from the last."""
    stage: Stage = [{} for _ in ROWS]
    for layer, row in enumerate(ROWS):
        for part, time in zip(COLUMNS.split(", "), row, strict=True):
            stage[layer if part[-1] == "F" else 3 - layer][part] = time
    return stage


PUBLISHED = published()


def busy(rows: np.ndarray, stream: str) -> float:
    own = rows[rows["stream"] == stream]
    return float((own["end"] - own["start"]).sum())


def test_deepseeks_profile() -> None:
    stage = components(PUBLISHED)
    assert stage.pair() == 128119
    assert abs(stage.pair() - 129012) < 0.02 * 129012
    assert busy(stage.lay(), "computation") == 126447
    assert busy(stage.lay(), "communication") == 115102
    assert stage.exposed() == 128119 - 126447
    # Published for one after the other: the sum of all parts.
    assert stage.forward + stage.backward_input + stage.backward_weight == 241549
    assert (stage.forward, stage.backward) == (98693, 115394)


# ---- By hand -----------------------------------------------------------------------------------------------


def ones(**options: Any) -> dp.Components:
    return dp.Components((1, 1, 1), (1, 1), (1, 1, 1), (1, 1), **options)


def test_one_layer_by_hand() -> None:
    assert ones().lay().tolist() == [
        ("computation", 0, "attention", "F", 0, 1),
        ("communication", 0, "combine", "I", 0, 1),
        ("computation", 0, "mlp", "I", 1, 2),
        ("communication", 0, "dispatch", "F", 1, 2),
        ("computation", 0, "mlp", "W", 2, 3),
        ("communication", 0, "dispatch", "I", 2, 3),
        ("computation", 0, "mlp", "F", 3, 4),
        ("computation", 0, "attention", "I", 4, 5),
        ("communication", 0, "combine", "F", 4, 5),
        ("computation", 0, "attention", "W", 5, 6),
    ]
    assert (ones().pair(), ones().exposed()) == (6, 0)
    assert (ones().forward, ones().exposed("forward")) == (4, 2)
    assert (ones().backward, ones().exposed("backward")) == (5, 1)
    assert (ones().backward_input, ones().backward_weight) == (4, 2)
    assert [row[:4] for row in ones().lay("backward_weight").tolist()] == [
        ("computation", 0, "mlp", "W"),
        ("computation", 0, "attention", "W"),
    ]


def test_slowed_by_hand() -> None:
    """3 beside a communication of 2 and a slowdown of 4: a half is done in it, the rest at full speed."""
    stage = dp.Components((3, 0, 0), (0, 0), (0, 0, 0), (0, 2), compute_slowdown=4)
    assert (stage.pair(), stage.forward) == (4.5, 3)
    # 3 ends within a communication of 20, and nothing else slows it.
    stage = dp.Components((3, 0, 0), (0, 0), (0, 0, 0), (0, 20), compute_slowdown=4)
    assert stage.lay()[0].tolist() == ("computation", 0, "attention", "F", 0, 12)


def test_layers_without_a_partner() -> None:
    """Three layers up and one down: two of the three run by themselves, after the fused one."""
    one, three = ones(), ones(layers=3)
    rows = three.lay("pair", one).tolist()
    assert [(row[1], row[3]) for row in rows[10:]] == [(1, "F")] * 4 + [(2, "F")] * 4
    assert three.pair(one) == 6 + 8  # attention F of layer 1 follows attention W
    assert [row[1] for row in one.lay("pair", three).tolist() if row[2:4] == ("combine", "I")] == [2, 1, 0]


# ---- Bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_bounds(seed: int) -> None:
    up, down, *_ = random_pair(seed)
    chains = [
        sum(layer[part] for layer in up for part in PARTS if part[-1] == "F"),
        sum(layer[part] for layer in down for part in PARTS if part[-1] == "I"),
    ]
    everything = chains[0] + sum(layer[part] for layer in down for part in PARTS if part[-1] != "F")
    before = 0.0
    for slowdown in [1, 1.25, 2, 10, 1e6]:
        forward, backward = built(seed, slowdown)
        pair, rows = forward.pair(backward), forward.lay("pair", backward)
        assert pair >= max(chains) * (1 - 1e-12)
        assert pair >= max(busy(rows, "computation"), busy(rows, "communication")) * (1 - 1e-12)
        assert pair <= everything * (1 + 1e-12)
        assert pair >= before * (1 - 1e-12)
        before = pair


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_exposed_where_nothing_is_sent(seed: int) -> None:
    up = random_stage(random.Random(seed), 3)
    for layer in up:
        layer.update(dict.fromkeys(COMMUNICATION, 0))
    stage = components(up, compute_slowdown=7)
    assert [stage.exposed(what) for what in KINDS] == [0] * 5
    assert stage.pair() == sum(layer[part] for layer in up for part in COMPUTATION)


def test_nothing_takes_time() -> None:
    nothing = dp.Components((0, 0, 0), (0, 0), (0, 0, 0), (0, 0), layers=2, compute_slowdown=2)
    assert (nothing.pair(), nothing.backward, nothing.exposed()) == (0, 0, 0)
    assert len(nothing.lay()) == 20
