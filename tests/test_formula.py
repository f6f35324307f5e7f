"""Published closed forms against the simulator: exact in their regions, and off just outside.

Integer costs, so that exact means equal. The simulator itself is tested elsewhere, by an oracle.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, Case, cases, some

import dualpipe_rs as dp

Costs = dict[str, Any]
NAMES = ("forward", "backward_input", "backward_weight", "backward", "overlap", "p2p")
QUANTITIES = ("bubble", "makespan", "span", "peak_activations")
BY_SPAN = ("zb-h2", "zb-v")

every_family = pytest.mark.parametrize("family", FAMILIES)


def given(
    f: float, i: float, w: float, c: float = 0, b: float | None = None, fb: float | None = None
) -> Costs:
    return dict(zip(NAMES, (f, i, w, b, fb, c), strict=True))


def figure(case: Case, quantity: str, **costs: Any) -> dp.Figure:
    method = getattr(dp.formula(case.family), quantity)
    return method(case.ranks, case.microbatches, dp.Costs(**costs), **case.options)


def broken(found: dp.Figure) -> set[str]:
    """The conditions that `why` names."""
    if found.why is None:
        return set()
    match = re.fullmatch(r"not met: (.*) \(here p = .*\)", found.why)
    assert match, found.why
    return set(match[1].split("; "))


# ---- In the region -----------------------------------------------------------------------------------------

# Each of them in the region of most families; all regions are met by several.
INSIDE = [
    given(1, 1, 1),
    given(5, 5, 4),
    given(7, 3, 2),
    given(4, 6, 3),
    given(2, 3, 9),
    given(6, 6, 6, 3),
    given(5, 7, 4, 2),
    given(9, 5, 4, 1),
    given(3, 2, 1, 40),
    given(0, 0, 0, 1),
    given(5, 5, 3, 0, 8, 10),
    given(5, 6, 3, 7, 11, 12),
    given(6, 7, 4, 0, 7, 14),
    given(6, 5, 2, 0, 7, 20),
    given(5, 0, 0, 3, 5, 5),
]


@every_family
def test_exact_at_every_size(family: str) -> None:
    """Up to 8 ranks and 24 microbatches; every form in its region, and each met there by several costs."""
    formula = dp.formula(family)
    for quantity in formula.quantities:
        met = 0
        for costs in INSIDE:
            figures = [figure(case, quantity, **costs) for case in cases(family, 8, 24)]
            exact = [found for found in figures if found.exact]
            met += len(exact) >= len(figures) / 4
            for found in exact:
                assert found.off == found.relative_off == 0, found
        assert met >= 4, quantity


def random_costs(rng: random.Random) -> Costs:
    most = rng.choice((2, 6, 40))
    f, i, w = (rng.randint(0, most) for _ in range(3))
    hop = rng.choice((0, rng.randint(0, 3), rng.randint(0, most)))
    b = rng.choice((None, i + w + rng.randint(-2, 5), rng.randint(0, most)))
    fb = rng.choice((None, max(f, i + w) + rng.randint(-1, most)))
    return given(f, i, w, hop, None if b is None else max(0, b), None if fb is None else max(0, fb))


@every_family
def test_exact_at_random(family: str) -> None:
    """Larger sizes and any costs: what says that it is exact, is."""
    rng = random.Random(family)
    sizes = some(cases(family, 14, 60), 1 / 30)
    tried = 0
    for case in sizes:
        costs = random_costs(rng)
        for quantity in dp.formula(family).quantities:
            found = figure(case, quantity, **costs)
            assert found.exact == (found.why is None)
            assert found.off == found.simulated - found.value
            if found.exact:
                tried += 1
                assert found.off == 0, found
    assert tried > 5


@every_family
def test_simulated_is_what_the_schedule_gives(family: str) -> None:
    sizes = some(cases(family, 6, 16), 1 / 10)
    for case, costs in product(sizes, (given(5, 4, 3, 2, 8, 11), given(5, 5, 5))):
        timeline = case.make().simulate(dp.Costs(**costs))
        rows = [timeline.spans[timeline.spans["rank"] == rank] for rank in range(case.ranks)]
        own = [row["end"].max() - row["start"].min() for row in rows]
        expected = {
            "bubble": (np.array(own) - timeline.busy if family in BY_SPAN else timeline.idle).max(),
            "makespan": timeline.makespan,
            "span": timeline.span,
            "peak_activations": timeline.peak_activations.max(),
        }
        for quantity in dp.formula(family).quantities:
            found = figure(case, quantity, **costs)
            assert found.simulated == expected[quantity], found
            whole = found.simulated if quantity == "peak_activations" else timeline.makespan
            assert found.relative_off == found.off / whole


# ---- Its edge ----------------------------------------------------------------------------------------------

ALIKE = "stages cost the same, hops too, and nothing comes after the slots"


def conditions(found: dp.Figure) -> set[str]:
    return {text for text in found.region.split("; ") if not text.startswith(("these only", "all sizes"))}


@every_family
def test_every_condition_matters(family: str) -> None:
    """Where one condition alone does not hold, the formula is off somewhere: none is there in vain."""
    rng = random.Random(family)
    for quantity in dp.formula(family).quantities:
        some_case = cases(family, 4, 8)[0]
        left = conditions(figure(some_case, quantity, **given(1, 1, 1)))
        for _ in range(4000):
            if not left:
                break
            case = rng.choice(cached_cases(family))
            costs = random_costs(rng)
            if rng.random() < 0.1:
                costs["forward"] = [rng.randint(0, 9) for _ in range(case.shape.stages)]
            found = figure(case, quantity, **costs)
            if len(broken(found) & left) == len(broken(found)) == 1 and found.off != 0:
                left -= broken(found)
        assert not left, (quantity, left)


@cache
def cached_cases(family: str) -> list[Case]:
    return cases(family, 6, 14)


# Family, quantity, sizes and option; costs at the edge of the region, and past it; the condition.
EDGES = [
    ("interleaved", "makespan", 4, 8, 2, given(5, 3, 2, 5), given(5, 3, 2, 6), "c = 0, or p | m"),
    ("interleaved", "makespan", 4, 4, 3, given(7, 5, 4, 8), given(7, 5, 4, 9), "c = 0, or p | m"),
    ("interleaved", "makespan", 4, 8, 1, given(7, 3, 2, 6), given(7, 3, 2, 7), "c = 0, or p | m"),
    ("interleaved", "makespan", 4, 6, 2, given(7, 3, 2), given(7, 3, 2, 1), "c = 0, or p | m"),
    ("interleaved", "makespan", 6, 5, 2, given(5, 3, 2, 5), given(5, 3, 2, 9), "c = 0, or p | m"),
    ("zb-h1", "bubble", 4, 9, 1, given(5, 5, 4, 2), given(5, 5, 4, 3), "2c ≤ W"),
    ("zb-h1", "bubble", 4, 4, 1, given(5, 5, 4), given(5, 5, 4, 1), "m > p"),
    ("zb-h2", "span", 4, 9, 1, given(6, 7, 6), given(5, 7, 6), "W ≤ F"),
    ("zb-h2", "span", 4, 9, 1, given(6, 6, 6), given(6, 5, 6), "2W ≤ F + I + 2c"),
    ("zb-h2", "span", 4, 9, 1, given(6, 4, 6, 1), given(6, 3, 6, 1), "2W ≤ F + I + 2c"),
    ("zb-h2", "span", 4, 9, 1, given(6, 4, 3, 5), given(6, 4, 3, 6), "2c ≤ F + I"),
    ("zb-h2", "makespan", 4, 9, 1, given(6, 4, 3, 5), given(6, 4, 3, 6), "2c ≤ F + I"),
    ("zb-h2", "makespan", 4, 9, 1, given(5, 11, 5), given(5, 11, 6), "W ≤ F or I + c ≤ 2F"),
    ("zb-h2", "makespan", 4, 9, 1, given(5, 9, 8, 1), given(5, 9, 8, 2), "W ≤ F or I + c ≤ 2F"),
    ("zb-v", "span", 4, 9, 1, given(5, 5, 4), given(6, 5, 4), "F ≤ I"),
    ("zb-v", "bubble", 4, 9, 1, given(4, 6, 5), given(3, 6, 5), "2W ≤ F + I + 2c"),
    ("zb-v", "span", 4, 9, 1, given(5, 6, 4, 2), given(5, 6, 4, 3), "2c ≤ W"),
    ("zb-v", "makespan", 4, 9, 1, given(4, 6, 6), given(4, 6, 7), "W ≤ I"),
    ("zb-v", "makespan", 4, 9, 1, given(5, 6, 4, 2), given(5, 6, 4, 3), "2c ≤ W"),
    ("zb-v", "makespan", 4, 9, 1, given(6, 6, 1), given(7, 6, 1), "F ≤ I"),
    ("dualpipe", "bubble", 8, 20, 1, given(5, 5, 5), given(5, 5, 6), "W ≤ I"),
    ("dualpipe", "bubble", 8, 20, 1, given(9, 9, 6, 0, 6, 15), given(9, 9, 6, 0, 5, 15), "W ≤ B"),
    ("dualpipe", "bubble", 8, 20, 1, given(5, 5, 4, fb=9), given(5, 5, 4, fb=8), "max(F, B, I + W) ≤ FB"),
    ("dualpipe", "makespan", 8, 20, 1, given(5, 5, 4, fb=9), given(5, 5, 4, fb=8), "max(F, B, I + W) ≤ FB"),
    (
        "dualpipe",
        "makespan",
        10,
        48,
        1,
        given(18, 18, 18, 0, 26, 36),
        given(18, 18, 18, 0, 26, 33),
        "max(F, B, I + W) ≤ FB",
    ),
    ("dualpipe", "bubble", 8, 20, 1, given(4, 4, 1, 2, 5, 7), given(4, 4, 1, 2, 4, 7), "c = 0, or F ≤ I"),
    ("dualpipe", "bubble", 8, 20, 1, given(2, 2, 2, 2), given(3, 2, 2, 2), "c = 0, or F ≤ I"),
    ("dualpipev", "bubble", 5, 13, 1, given(5, 5, 5), given(5, 5, 6), "W ≤ I"),
    ("dualpipev", "bubble", 5, 13, 1, given(9, 9, 6, 0, 6, 15), given(9, 9, 6, 0, 5, 15), "W ≤ B"),
    ("dualpipev", "makespan", 5, 13, 1, given(5, 5, 4, fb=9), given(5, 5, 4, fb=8), "max(F, B, I + W) ≤ FB"),
    (
        "dualpipev",
        "makespan",
        5,
        24,
        1,
        given(18, 18, 18, 0, 26, 36),
        given(18, 18, 18, 0, 26, 33),
        "max(F, B, I + W) ≤ FB",
    ),
    ("dualpipev", "bubble", 5, 13, 1, given(4, 4, 1, 2, 5, 7), given(4, 4, 1, 2, 4, 7), "c = 0, or F ≤ I"),
    ("dualpipev", "bubble", 5, 13, 1, given(2, 2, 1, 1), given(3, 2, 1, 1), "c = 0, or F ≤ I"),
    ("chimera", "makespan", 6, 12, 1, given(5, 3, 2, 1), given(5, 3, 3, 1), "c = 0 or m = p or F = B"),
    ("hanayo", "makespan", 4, 6, 2, given(5, 3, 2), given(5, 3, 3), "m ≤ p or F = B"),
    ("hanayo", "makespan", 4, 4, 2, given(5, 3, 3), given(5, 3, 3, 1), "c = 0"),
]


@pytest.mark.parametrize(
    ("family", "quantity", "p", "m", "option", "inside", "outside", "condition"), EDGES, ids=str
)
def test_edges(
    family: str,
    quantity: str,
    p: int,
    m: int,
    option: int,
    inside: Costs,
    outside: Costs,
    condition: str,
) -> None:
    case = Case(family, p, m, option)
    at, past = figure(case, quantity, **inside), figure(case, quantity, **outside)
    assert at.exact
    assert at.off == 0
    assert [text.startswith(condition) for text in broken(past)] == [True]
    assert past.off != 0


@pytest.mark.parametrize(
    ("family", "least", "costs"),
    [("zb-h1", lambda p: p, given(5, 4, 3)), ("zb-v", lambda p: 2 * p - 1, given(5, 5, 5))],
)
def test_least_microbatches(family: str, least: Any, costs: Costs) -> None:
    for p in range(2, 9):
        at, below = (figure(Case(family, p, least(p) - less), "makespan", **costs) for less in (0, 1))
        assert at.exact
        assert at.off == 0
        assert len(broken(below)) == 1
    assert any(figure(Case(family, p, least(p) - 1), "makespan", **costs).off != 0 for p in range(2, 9))


def test_one_rank_never_waits() -> None:
    """Whatever it costs; and two of DualPipe and Chimera wait alike whatever it costs."""
    costs = given(9, 1, 5, 7, 2, 3)
    for family in FAMILIES:
        for case in cases(family, 2, 12):
            if case.ranks == 1 or family in ("dualpipe", "chimera"):
                for quantity in dp.formula(family).quantities:
                    found = figure(case, quantity, **costs)
                    assert found.exact, found
                    assert found.off == 0, found
                    assert quantity != "bubble" or case.ranks > 1 or found.value == 0


# ---- Published figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case("dualpipe", 8, 20), Case("dualpipev", 4, 10)])
@pytest.mark.parametrize(("pair", "makespan", "idle"), [(3, 66, 6), (2.4, 57.6, 4.2), (2, 52, 3)])
def test_dualpipe_of_8_and_20(case: Case, pair: float, makespan: float, idle: float) -> None:
    costs = given(1, 1, 1, fb=pair)
    for quantity, published in (("makespan", makespan), ("bubble", idle)):
        found = figure(case, quantity, **costs)
        assert found.exact
        assert float(found) == found.value == pytest.approx(published, rel=1e-12)
        assert found.off == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_deepseeks_bubble(seed: int) -> None:
    """(PP/2 − 1)(FB + B − 3W) where I = F; with its two corrections where W ≤ min(F, I) and FB ≤ F + B."""
    rng = random.Random(seed)
    p = 2 * rng.randint(1, 8)
    case, turns = (
        (Case("dualpipe", p, 2 * p + 4), p // 2 - 1) if seed % 2 else (Case("dualpipev", p, 3 * p), p - 1)
    )
    f, i = rng.randint(1, 30), rng.randint(1, 30)
    i = f if seed % 3 == 0 else i
    w = rng.randint(0, min(f, i))
    fb = rng.randint(max(f, i + w), f + i + w)
    correction = turns * (f - i) if i < f else -min(turns * (i - f), f)
    found = figure(case, "bubble", **given(f, i, w, fb=fb))
    assert found.exact
    assert found.value == turns * (fb + i + w - 3 * w) + correction
    assert found.off == 0


# Makespan of 8 equal devices and 32 microbatches, and the span where a form has it.
EQUAL_DEVICES = {
    "gpipe": (117, None),
    "1f1b": (117, None),
    "interleaved": (106.5, None),
    "zb-h1": (103, None),
    "zb-h2": (103, 96),
    "zb-v": (99.5, 96),
    "dualpipe": (102, None),
    "dualpipev": (103, None),
}


@pytest.mark.parametrize("family", EQUAL_DEVICES)
def test_equal_devices(family: str) -> None:
    formula, (makespan, span) = dp.formula(family), EQUAL_DEVICES[family]
    stage = 8 / dp.schedule(family, 8, 32).num_stages
    costs = dp.Costs(stage, stage, stage)
    assert formula.makespan(8, 32, costs).value == makespan
    if span is not None:
        assert formula.span(8, 32, costs).value == span


MEASURED = [
    ((8, 24, 18522, 18086, 9337, 601), (0.2431, 0.1585, 0.1083)),
    ((16, 48, 11347, 11248, 8132, 377), (0.2552, 0.1397, 0.0672)),
    ((32, 96, 10419, 10207, 7715, 408), (0.2646, 0.1421, 0.0641)),
]


@pytest.mark.parametrize(("row", "rates"), MEASURED)
def test_zero_bubble_paper(row: tuple[int, ...], rates: tuple[float, ...]) -> None:
    """Its bubble rates of 1F1B, ZB-H1 and, by span, ZB-H2; all three exact in closed form."""
    p, m, f, i, w, hop = row
    costs = dp.Costs(f, i, w, p2p=hop)
    found = [
        dp.formula("1f1b").makespan(p, m, costs),
        dp.formula("zb-h1").makespan(p, m, costs),
        dp.formula("zb-h2").span(p, m, costs),
    ]
    ideal = m * (f + i + w)
    assert [(time.exact, time.off) for time in found] == [(True, 0)] * 3
    assert [round((time.value - ideal) / time.value, 4) for time in found] == list(rates)
    if p == 8:
        assert [time.value for time in found] == [1456749, 1310405, 1236632]


def test_zero_bubble_paper_interleaved() -> None:
    p, m, f, i, w, hop = MEASURED[0][0]
    costs = dp.Costs(f / 3, i / 3, w / 3, p2p=hop)
    found = dp.formula("interleaved").makespan(p, m, costs, stages_per_rank=3)
    assert found.exact
    assert found.off == pytest.approx(0, abs=1e-6)
    assert round(1 - m * (f + i + w) / found.value, 4) == 0.1090


def test_chimera_at_equal_costs() -> None:
    for p, slots, idle in ((4, 10, 2), (8, 22, 6), (16, 46, 14)):
        costs = dp.Costs(backward=1)
        assert dp.formula("chimera").makespan(p, p, costs).value == slots
        assert dp.formula("chimera").bubble(p, p, costs).value == idle


@pytest.mark.parametrize("waves", [1, 2, 3, 4])
def test_hanayo_of_the_paper(waves: int) -> None:
    """2(p − 1)/W times a whole rank's F, which is 2W of a stage's."""
    for p in range(1, 13):
        found = dp.formula("hanayo").bubble(p, p, dp.Costs(), waves=waves)
        assert found.exact
        assert found.value == 2 * (p - 1) / waves * 2 * waves
        assert found.off == 0


def test_zb_v_without_bubble() -> None:
    assert dp.formula("zb-v").bubble(8, 15, dp.Costs(3, 3, 3)).value == 0


# ---- What a formula says -----------------------------------------------------------------------------------


@every_family
def test_a_formula_says_what_it_is(family: str) -> None:
    formula = dp.formula(family)
    assert formula.name == family
    assert set(formula.quantities) <= set(QUANTITIES)
    assert "arXiv" in formula.source or "github.com" in formula.source
    assert repr(formula) == f"<Formula {family}: {', '.join(formula.quantities)}; {formula.source}>"


def test_a_figure_says_what_it_is() -> None:
    exact = dp.formula("zb-v").bubble(2, 4)
    assert repr(exact) == "<Figure bubble of zb-v 2x4: 0, exact>"
    assert exact.quantity.startswith("bubble by span: ")
    assert exact.formula == "2(p − 1)(I − W) + (6p − 8)c"
    assert (
        exact.region == f"{ALIKE}; m ≥ 2p − 1; F ≤ I; W ≤ I; 2W ≤ F + I + 2c; 2c ≤ W; these only unless p = 1"
    )
    off = dp.formula("zb-v").makespan(2, 2, dp.Costs(p2p=1))
    assert (
        off.why
        == "not met: m ≥ 2p − 1; 2c ≤ W (here p = 2, m = 2, v = 2; F = 1, I = 1, W = 1, B = 2, FB = 3, c = 1)"
    )
    assert repr(off) == f"<Figure makespan of zb-v 2x2: {off.value:g}, {off.why}>"
    assert dp.formula("dualpipe").bubble(8, 20).quantity.startswith("bubble: the makespan less the busy time")
    assert dp.formula("gpipe").peak_activations(4, 8).region == "all sizes and costs"


def test_per_stage_costs() -> None:
    """Arrays of one value are that value; others are taken by their mean, and said not to be."""
    formula = dp.formula("dualpipe")
    plain, arrays = dp.Costs(0.1, 0.1, 0.1), dp.Costs([0.1] * 6, (0.1,) * 6, np.full(6, 0.1))
    assert formula.makespan(6, 12, arrays).exact
    assert formula.makespan(6, 12, arrays).value == formula.makespan(6, 12, plain).value
    uneven = formula.makespan(6, 12, dp.Costs([1, 2, 3, 4, 5, 6], 3.5, 3.5, backward=7))
    assert (uneven.exact, broken(uneven)) == (False, {ALIKE})
    assert uneven.value == formula.makespan(6, 12, dp.Costs(3.5, 3.5, 3.5)).value
    assert uneven.off > 0
    assert formula.peak_activations(6, 12, dp.Costs([1, 2, 3, 4, 5, 6])).exact


def test_rounding_at_the_edge() -> None:
    """A sum of costs that rounds up by a bit is not past an edge that it stands on."""
    more, less = 0.1 + 0.2, 0.3
    assert more > less
    on_edge = [
        (Case("dualpipe", 8, 20), dp.Costs(less, less, more, overlap=1.0)),
        (Case("dualpipev", 4, 10), dp.Costs(more, less, less, backward=less + less, p2p=0.1)),
        (Case("zb-v", 4, 10), dp.Costs(more, less, more)),
        (Case("hanayo", 4, 6), dp.Costs(more, backward=less)),
        (Case("chimera", 4, 8), dp.Costs(less, backward=more, p2p=1)),
    ]
    for case, costs in on_edge:
        found = dp.formula(case.family).makespan(case.ranks, case.microbatches, costs)
        assert found.exact, found
        assert abs(found.relative_off) < 1e-14


def test_options_left_out() -> None:
    interleaved, hanayo = dp.formula("interleaved"), dp.formula("hanayo")
    two, three = (interleaved.makespan(4, 8, stages_per_rank=v).value for v in (2, 3))
    assert interleaved.makespan(4, 8).value == two != three
    assert hanayo.makespan(4, 4).value == hanayo.makespan(4, 4, waves=1).value


# ---- What it refuses ---------------------------------------------------------------------------------------


def test_unknown_names() -> None:
    with pytest.raises(dp.UsageError, match='no schedule named "pipedream"; the names are gpipe'):
        dp.formula("pipedream")
    with pytest.raises(dp.UsageError, match="the names are"):
        dp.formula("x" * 10_000)
    for wrong in (None, 3, b"gpipe"):
        with pytest.raises(TypeError):
            dp.formula(wrong)  # type: ignore[arg-type]


@every_family
def test_quantities_without_a_form(family: str) -> None:
    formula = dp.formula(family)
    known = ", ".join(formula.quantities)
    for quantity in set(QUANTITIES) - set(formula.quantities):
        with pytest.raises(dp.UsageError, match=f"^{family} has no formula of {quantity}; it has {known}$"):
            getattr(formula, quantity)(4, 8)


@every_family
def test_illegal_sizes_are_refused_as_by_schedule(family: str) -> None:
    for sizes in [(0, 0), (0, 4), (3, 5), (4, 0), (5, 7), (2**31, 2**32), (2**63, 1), (-1, 4)]:
        refused = refusal(partial(dp.schedule, family), *sizes)
        if refused is not None:
            for quantity in dp.formula(family).quantities:
                assert refusal(getattr(dp.formula(family), quantity), *sizes) == refused


def refusal(call: Callable[..., object], *arguments: int) -> str | None:
    try:
        call(*arguments)
    except dp.UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("sizes", [(4.0, 8), ("4", 8), (True, 8), (4, None)], ids=str)
def test_sizes_that_are_no_numbers(sizes: Any) -> None:
    with pytest.raises(TypeError):
        dp.formula("gpipe").bubble(*sizes)


def test_options_and_costs() -> None:
    formula = dp.formula("interleaved")
    with pytest.raises(dp.UsageError, match='takes no option "waves"'):
        formula.bubble(4, 8, waves=2)
    with pytest.raises(dp.UsageError, match="stages_per_rank is 0"):
        formula.bubble(4, 8, stages_per_rank=0)
    with pytest.raises(dp.UsageError, match="forward has 3 entries and the schedule 8 stages"):
        formula.bubble(4, 8, dp.Costs([1, 1, 1]))
    others: list[Any] = [3, "1", {"forward": 1}]
    for wrong in others:
        with pytest.raises(TypeError):
            formula.bubble(4, 8, wrong)
    for costs in (dp.Costs(forward=1e308), dp.Costs(p2p=1.7e308)):
        with pytest.raises(dp.UsageError, match="more than a float can hold"):
            formula.makespan(4, 8, costs)


def test_nothing_takes_time() -> None:
    for family in FAMILIES:
        case = cases(family, 4, 8)[-1]
        for quantity in dp.formula(family).quantities:
            found = figure(case, quantity, **given(0, 0, 0))
            assert found.exact
            assert found.relative_off == 0
            assert not math.isnan(found.value)


def test_frozen() -> None:
    found = dp.formula("gpipe").bubble(4, 8)
    with pytest.raises(AttributeError):
        found.value = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        dp.Figure()
    with pytest.raises(TypeError):
        dp.Formula("gpipe")  # type: ignore[call-arg]


def test_hops_that_differ_and_what_comes_after() -> None:
    """They are in no form: the value is of the mean hop and of the slots alone, and not exact."""
    hops = [[0, 1, 3], [1, 0, 1], [1, 1, 0]]
    even = [[0, 1, 9], [1, 0, 1], [9, 1, 0]]  # from 0 to 2 nothing travels
    for name in ("1f1b", "zb-h1"):
        formula = dp.formula(name)
        uneven = formula.makespan(3, 6, dp.Costs(2, 2, 2, p2p=[[0, 1, 9], [2, 0, 1], [9, 1, 0]]))
        assert (uneven.exact, ALIKE in str(uneven.why)) == (False, True)
        assert formula.makespan(3, 6, dp.Costs(2, 2, 2, p2p=hops)).exact
        alike = formula.makespan(3, 6, dp.Costs(2, 2, 2, p2p=even))
        assert (alike.exact, alike.off) == (True, 0)
        late = formula.makespan(3, 6, dp.Costs(2, 2, 2, optimizer=5))
        assert (late.exact, late.off) == (False, 5)
    twins = dp.formula("dualpipe").makespan(4, 8, dp.Costs(gradient_exchange=2))
    assert (twins.exact, twins.off) == (False, 2)
