"""What things cost: every keyword of `Costs` beside the slow oracle, alone by hand and all together at
random; what the class keeps of them; and values that are no costs.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
from conftest import numbered, read
from oracle_costs import SMALL, Keywords, Simulator, random_keywords, times

import dualpipe_rs as dp

BY_STAGE = ["forward", "backward_input", "backward_weight", "backward"]
BYTES = ["activation_bytes", "weight_grad_bytes", "parameter_bytes"]
SEQUENCES = [*BY_STAGE, "optimizer", *BYTES]
TABLES = ["overlap", "p2p", "p2p_bytes", "p2p_bandwidth"]
TRIPLES = ["first_extra", "last_extra"]
KEYWORDS = [*SEQUENCES, *TABLES, *TRIPLES, "gradient_exchange"]


def some_schedule(seed: int, rng: random.Random) -> dp.Schedule:
    return read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SMALL))


def lengths(schedule: dp.Schedule, **costs: Any) -> dict[str, float]:
    """How long each slot takes, by its text."""
    timeline = schedule.simulate(dp.Costs(**costs))
    took = {place: end - start for place, (start, end) in times(timeline).items()}
    return {word: took[r, i] for r in range(schedule.num_ranks) for i, word in enumerate(schedule.rank(r))}


# ---- Beside the oracle -------------------------------------------------------------------------------------


def check(schedule: dp.Schedule, costs: Keywords) -> None:
    """Every time and figure of a step."""
    run, timeline = Simulator(schedule).run(costs), schedule.simulate(dp.Costs(**costs))
    assert times(timeline) == {where: (run.start[where], run.end[where]) for where in run.start}
    assert (timeline.makespan, timeline.span) == (run.makespan, run.span)
    assert timeline.busy.tolist() == run.busy
    assert timeline.idle.tolist() == [run.makespan - busy for busy in run.busy]
    if timeline.closing is None:
        assert not costs.get("gradient_exchange")
        assert not np.any(costs.get("optimizer", 0))
    else:
        assert timeline.closing.tolist() == run.closing


def is_alone(schedule: dp.Schedule) -> bool:
    """One rank of a bidirectional placement is its own mirror."""
    return schedule.placement == "bidirectional" and schedule.num_ranks % 2 == 1


@pytest.mark.parametrize("seed", range(300))
def test_all_at_random(seed: int) -> None:
    rng = random.Random(seed)
    schedule = some_schedule(seed, rng)
    costs = random_keywords(rng, schedule, least=seed % 3)
    if is_alone(schedule):
        costs.pop("gradient_exchange", None)
    check(schedule, costs)


@pytest.mark.parametrize("name", [*SEQUENCES, *TABLES, *TRIPLES, "gradient_exchange"])
@pytest.mark.parametrize("seed", range(12))
def test_one_at_a_time(name: str, seed: int) -> None:
    """A keyword beside defaults: no other one hides it."""
    rng = random.Random(seed)
    schedule = dp.schedule("dualpipe", 4, 8) if seed % 3 == 0 else some_schedule(seed, rng)
    for _ in range(20):
        costs = random_keywords(rng, schedule)
        if name in costs and not is_alone(schedule):
            kept = {"p2p_bytes", "p2p_bandwidth"} if name.startswith("p2p_") else {name}
            check(schedule, {key: value for key, value in costs.items() if key in kept})
            return


@pytest.mark.parametrize("seed", range(40))
def test_inference(seed: int) -> None:
    """No backward, no gradients, no optimizer."""
    rng = random.Random(seed)
    schedule = some_schedule(seed, rng).forward_only()
    costs = random_keywords(rng, schedule)
    timeline = schedule.simulate(dp.Costs(**costs))
    assert timeline.closing is None
    run = Simulator(schedule).run(costs)
    assert times(timeline) == {where: (run.start[where], run.end[where]) for where in run.start}
    assert timeline.makespan == max(end for _, end in times(timeline).values())
    assert timeline.busy.tolist() == run.busy


# ---- By hand -----------------------------------------------------------------------------------------------


def test_a_pair_by_its_two_stages() -> None:
    """Rows are the forward's stage, columns the backward's; without a price of its own, F + B."""
    schedule = dp.schedule("dualpipe", 4, 8)
    table = [[10 * f + b for b in range(4)] for f in range(4)]
    took = lengths(schedule, overlap=table)
    pairs = [word for word in took if word.startswith("(")]
    assert {(int(word[1]), int(word.split(";")[1][0])) for word in pairs} == {(r, 3 - r) for r in range(4)}
    for word in pairs:
        assert took[word] == table[int(word[1])][int(word.split(";")[1][0])]
    alone = lengths(schedule, forward=[1, 2, 3, 4], backward=[10, 20, 30, 40])
    assert all(alone[w] == 1 + int(w[1]) + 10 + 10 * int(w.split(";")[1][0]) for w in pairs)


def test_extras_are_of_every_action_of_their_stage() -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    plain = lengths(schedule, overlap=5, backward=7)
    took = lengths(schedule, overlap=5, backward=7, first_extra=(1, 2, 4), last_extra=(8, 16, 32))
    beside = {("0", k): x for k, x in zip("FIWB", (1, 2, 4, 6), strict=True)}
    beside |= {("3", k): x for k, x in zip("FIWB", (8, 16, 32, 48), strict=True)}
    for word in took:
        parts = word.strip("()").split(";")
        assert took[word] - plain[word] == sum(beside.get((part[0], part[1]), 0) for part in parts), word


def test_one_stage_is_the_first_and_the_last() -> None:
    schedule = dp.Schedule.from_text(
        "# name=x placement=linear ranks=1 stages=1 microbatches=1\n0F0 0I0 0W0\n"
    )
    took = lengths(schedule, first_extra=(1, 2, 4), last_extra=(8, 16, 32))
    assert took == {"0F0": 1 + 9, "0I0": 1 + 18, "0W0": 1 + 36}


def test_hops_from_a_rank_to_another() -> None:
    """Rank 1's forward waits for 0 > 1, rank 0's backward for 1 > 0; bytes take their time beside."""
    schedule = dp.schedule("gpipe", 2, 1)
    spans = times(schedule.simulate(dp.Costs(p2p=[[100, 2], [4, 100]])))
    assert spans == {(0, 0): (0, 1), (1, 0): (3, 4), (1, 1): (4, 6), (0, 1): (10, 12)}
    costs = dp.Costs(p2p=1, p2p_bytes=[[9, 8], [4, 9]], p2p_bandwidth=[[1, 2], [8, 1]])
    assert times(schedule.simulate(costs))[1, 0] == (1 + 1 + 4, 7)
    assert times(schedule.simulate(costs))[0, 1] == (9 + 1.5, 12.5)


def test_bytes_take_no_time_without_a_bandwidth() -> None:
    schedule = dp.schedule("zb-v", 2, 4)
    for costs in (
        dp.Costs(p2p_bytes=1000),
        dp.Costs(p2p_bandwidth=2),
        dp.Costs(p2p_bytes=9, p2p_bandwidth=math.inf),
    ):
        assert schedule.simulate(costs).makespan == schedule.simulate().makespan


def test_the_end_of_a_step_by_hand() -> None:
    """Both mirrored ranks have ended, the exchange, each rank's own optimizer."""
    schedule = dp.Schedule.from_text(
        "# name=x placement=bidirectional ranks=2 stages=2 microbatches=2\n0F0 1F1 1B1 0B0\n0F1 1F0 1B0 0B1\n"
    )
    # Rank 0 does 0F0 in 0..1, 1F1 in 3..5; rank 1 0F1 in 0..1, 1F0 in 3..5; both end their 1B in 9, 0B in 13.
    costs = dp.Costs([1, 2], [1, 3], [1, 1], p2p=[[0, 2], [2, 0]], gradient_exchange=4, optimizer=[1, 8])
    timeline = schedule.simulate(costs)
    assert timeline.closing is not None
    assert timeline.closing.tolist() == [(13, 17, 18), (13, 17, 25)]
    assert (timeline.makespan, timeline.span) == (25, 25)
    assert timeline.busy.tolist() == [1 + 2 + 4 + 2 + 1, 1 + 2 + 4 + 2 + 8]
    assert timeline.idle.tolist() == [15, 8]
    assert schedule.simulate(costs.replace(gradient_exchange=0)).closing.tolist() == [
        (13, 13, 14),
        (13, 13, 21),
    ]


def test_the_rank_in_the_middle_exchanges_with_none() -> None:
    text = "# name=x placement=bidirectional ranks=1 stages=1 microbatches=2\n0F0 0B0 0F1 0B1\n"
    assert dp.Schedule.from_text(text).simulate(dp.Costs(gradient_exchange=5)).makespan == 6


@pytest.mark.parametrize("family", ["1f1b", "zb-v", "interleaved", "hanayo"])
def test_only_bidirectional_placements_exchange_gradients(family: str) -> None:
    schedule = dp.schedule(family, 2, 4)
    timeline = schedule.simulate(dp.Costs(gradient_exchange=100))
    assert (timeline.closing, timeline.makespan) == (None, schedule.simulate().makespan)


def test_a_profile_of_f_and_b_alone() -> None:
    """I and W are halves of B, where neither is given; else each is 1 by itself."""
    both = dp.Costs(10, backward=20)
    assert (both.backward_input, both.backward_weight) == (10, 10)
    listed = dp.Costs([1, 2], backward=[4, 6])
    assert (listed.backward_input, listed.backward_weight) == ([2, 3], [2, 3])
    one = dp.Costs(10, 15, backward=20)
    assert (one.backward_input, one.backward_weight) == (15, 1)
    ranking = [row["makespan"] for row in dp.compare(["1f1b", "zb-h1", "dualpipe"], 8, 32, both)]
    assert ranking == [
        row["makespan"] for row in dp.compare(["1f1b", "zb-h1", "dualpipe"], 8, 32, dp.Costs(10, 10, 10))
    ]


def test_errors_say_where() -> None:
    for costs, words in (
        ({"overlap": [[1, 1], [1, math.nan]]}, r"^overlap is NaN at \[1\]\[1\];"),
        ({"forward": [1, -2]}, r"^forward is -2\.0 in entry 1;"),
    ):
        with pytest.raises(dp.UsageError, match=words):
            dp.Costs(**costs)
    with pytest.raises(dp.UsageError, match=r"^costs\[1\]: overlap is NaN;"):
        dp.simulate_many(dp.schedule("1f1b", 2, 4), {"overlap": [2, math.nan]})


# ---- What the class keeps ----------------------------------------------------------------------------------


def full(rng: random.Random) -> Keywords:
    """Every keyword, for 4 stages on 4 ranks."""
    costs: Keywords = {}
    schedule = dp.schedule("dualpipe", 4, 8)
    while set(KEYWORDS) - set(BYTES) > set(costs):
        costs |= random_keywords(rng, schedule)
    return costs | {name: [float(rng.randint(0, 9)) for _ in range(4)] for name in BYTES}


@pytest.mark.parametrize("seed", range(20))
def test_values_come_back(seed: int) -> None:
    keywords = full(random.Random(seed))
    assert set(keywords) == set(KEYWORDS)
    costs = dp.Costs(**keywords)
    for name, value in keywords.items():
        assert getattr(costs, name) == value, name
    copies = [dp.Costs(**keywords), costs.replace(), copy.copy(costs), copy.deepcopy(costs)]
    copies += [pickle.loads(pickle.dumps(costs, protocol)) for protocol in range(2, 6)]
    copies += [eval(repr(costs), {"Costs": dp.Costs})]
    for other in copies:
        assert other == costs
        assert repr(other) == repr(costs)


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_value_counts_in_equality_and_is_replaced(name: str) -> None:
    costs = dp.Costs()
    value: Any = (1.0, 0.0, 2.0) if name in TRIPLES else 2.5
    other = costs.replace(**{name: value})
    assert getattr(other, name) == value
    assert other != costs
    assert getattr(costs, name) != value
    assert f"{name}=" in repr(other)
    assert pickle.loads(pickle.dumps(other)) == other
    default = inspect.signature(dp.Costs).parameters[name].default
    assert default is None
    assert other.replace(**{name: None}) == costs


def test_replace_takes_the_constructors_keywords_alone() -> None:
    costs = dp.Costs()
    with pytest.raises(TypeError, match="forwards"):
        costs.replace(forwards=1)
    with pytest.raises(TypeError):
        costs.replace(1)  # type: ignore[call-arg]
    with pytest.raises(dp.UsageError, match="p2p"):
        costs.replace(p2p=-1)
    assert costs == dp.Costs()


def test_costs_are_frozen_and_have_no_hash() -> None:
    costs = dp.Costs()
    for name in KEYWORDS:
        with pytest.raises(AttributeError):
            setattr(costs, name, 1)
    with pytest.raises(TypeError):
        hash(costs)
    assert costs != 1
    assert costs != "Costs()"


def test_what_a_getter_gives_is_a_copy() -> None:
    costs = dp.Costs([1, 2], overlap=[[1, 2], [3, 4]])
    costs.forward.append(3)  # type: ignore[union-attr]
    costs.overlap[0][0] = 9  # type: ignore[index]
    assert costs == dp.Costs([1, 2], overlap=[[1, 2], [3, 4]])


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_cut(parts: int, seed: int) -> None:
    """A stage becomes parts equal ones: what is by stage is divided, what is not stays."""
    keywords = {
        **full(random.Random(seed)),
        "overlap": [[float(8 * i + j) for j in range(4)] for i in range(4)],
    }
    costs, cut = dp.Costs(**keywords), dp.Costs(**keywords).cut(parts)

    def spread(values: Any) -> Any:
        if np.ndim(values) == 0:
            return values / parts
        return [spread(value) for value in values for _ in range(parts)]

    for name in [*BY_STAGE, *BYTES, "overlap"]:
        assert np.array(getattr(cut, name)) == pytest.approx(np.array(spread(getattr(costs, name)))), name
    for name in (*TABLES[1:], *TRIPLES, "gradient_exchange", "optimizer"):
        assert getattr(cut, name) == getattr(costs, name), name


def test_cut_of_what_is_left_out() -> None:
    cut = dp.Costs().cut(2)
    assert cut == dp.Costs(0.5, 0.5, 0.5)
    assert (cut.backward, cut.overlap) == (None, None)
    with pytest.raises(dp.UsageError, match="part"):
        dp.Costs().cut(0)
    for parts in (-1, 1.5, "2", None):
        with pytest.raises((dp.UsageError, TypeError, OverflowError)):
            dp.Costs().cut(parts)  # type: ignore[arg-type]


# ---- What is no cost ---------------------------------------------------------------------------------------


def never() -> Any:
    return itertools.repeat(1)


NUMBERS = [math.nan, -math.inf, -1, -5e-324, np.float64(-2), np.int64(-1)]
TYPES = [
    "1",
    "12",
    b"12",
    {},
    {0: 1},
    {"a": 1},
    1j,
    object(),
    len,
    [None],
    [1, "2"],
    [[1, 2], 3],
    np.ones((2, 2, 2)),
]


OUT_OF_RANGE = [(name, value) for name in KEYWORDS for value in NUMBERS]
OUT_OF_RANGE += [(name, math.inf) for name in KEYWORDS if name != "p2p_bandwidth"]  # there it is no limit


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=lambda part: str(part)[:20])
def test_numbers_out_of_range(name: str, value: Any) -> None:
    wraps: list[Any] = [[value, 1.0, 1.0]] if name in TRIPLES else [value]
    if name in SEQUENCES:
        wraps += [[1, value], (value,), np.array([1, value])]
    if name in TABLES:
        wraps += [[[1, 1], [value, 1]], ((value,),), np.array([[1, 1], [1, value]])]
    for wrapped in wraps:
        with pytest.raises(dp.UsageError, match=f"^{name} is "):
            dp.Costs(**{name: wrapped})


@pytest.mark.parametrize("name", KEYWORDS)
def test_an_integer_beyond_floats(name: str) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} is "):
        dp.Costs(**{name: [10**400] * 3 if name in TRIPLES else 10**400})


@pytest.mark.parametrize("bandwidth", [0, -0.0, [[1, 0], [1, 1]], np.zeros((2, 2))], ids=repr)
def test_a_bandwidth_of_nothing(bandwidth: Any) -> None:
    with pytest.raises(dp.UsageError, match=r"^p2p_bandwidth is -?0\.0; it is more than 0"):
        dp.Costs(p2p_bandwidth=bandwidth)


@pytest.mark.parametrize("name", KEYWORDS)
@pytest.mark.parametrize(
    "value", [*TYPES, never()], ids=lambda value: f"{type(value).__name__} {str(value)[:9]}"
)
def test_other_types(name: str, value: Any) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} is "):
        dp.Costs(**{name: value})


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "table", [[], [1, 2], [[]], [[], []], [[1, 2]], [[1], [1, 2]], [[1, 2], [3]], [[[1]]]], ids=repr
)
def test_tables_that_are_not_square(name: str, table: Any) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} is "):
        dp.Costs(**{name: table})


@pytest.mark.parametrize("name", TRIPLES)
@pytest.mark.parametrize("triple", [1, [], [1], [1, 2], [1, 2, 3, 4], [[1, 2, 3]], (1, 2, "3")], ids=repr)
def test_triples_that_are_none(name: str, triple: Any) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} is "):
        dp.Costs(**{name: triple})


@pytest.mark.parametrize("name", [*SEQUENCES, *TRIPLES])
def test_a_set_has_no_order(name: str) -> None:
    with pytest.raises(dp.UsageError, match=f"^{name} is "):
        dp.Costs(**{name: {3.0, 1.0, 2.0}})


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("entries", [0, 1, 3, 5])
def test_sequences_of_another_length(name: str, entries: int) -> None:
    costs = dp.Costs(**{name: [1.0] * entries})
    with pytest.raises(dp.UsageError, match=f"^{name} has {entries} entr"):
        dp.schedule("dualpipe", 4, 8).simulate(costs).peak_bytes()
    with pytest.raises(dp.UsageError, match=f"^{name} has {entries} entr"):
        dp.compare(["dualpipe"], 4, 8, costs)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("entries", [1, 3, 5])
def test_tables_of_another_size(name: str, entries: int) -> None:
    costs = dp.Costs(**{name: np.ones((entries, entries))})
    with pytest.raises(dp.UsageError, match=f"^{name} "):
        dp.schedule("dualpipe", 4, 8).simulate(costs)


def test_stages_and_ranks_are_not_confused() -> None:
    """Two stages a rank: a pair's table is by stage, a hop's by rank, an optimizer's by rank."""
    schedule = dp.schedule("dualpipev", 2, 4)
    schedule.simulate(dp.Costs([1] * 4, overlap=np.ones((4, 4)), p2p=np.ones((2, 2)), optimizer=[1, 2]))
    for wrong in ({"overlap": np.ones((2, 2))}, {"p2p": np.ones((4, 4))}, {"optimizer": [1] * 4}):
        with pytest.raises(dp.UsageError, match=next(iter(wrong))):
            schedule.simulate(dp.Costs(**wrong))


HUGE: list[Keywords] = [
    {"forward": 1e308},
    {"backward": 1.7e308},
    {"backward_input": 1e308, "backward_weight": 1e308},
    {"overlap": 1e308},
    {"p2p": 1.7e308},
    {"p2p_bytes": 1e300, "p2p_bandwidth": 1e-300},
    {"first_extra": (1e308, 0, 0)},
    {"last_extra": (0, 1.7e308, 1.7e308)},
    {"gradient_exchange": 1.7e308, "optimizer": 1.7e308},
    {"optimizer": 1.7e308},
]


@pytest.mark.parametrize("p2p", ["eager", "rendezvous", "batched"])
@pytest.mark.parametrize("costs", HUGE, ids=lambda costs: "+".join(costs))
def test_sums_that_no_float_holds(costs: Keywords, p2p: str) -> None:
    """Refused, or every figure finite: no infinity and no NaN comes out."""
    schedule = dp.schedule("dualpipe", 4, 8)
    try:
        timeline = schedule.simulate(dp.Costs(**costs), p2p=p2p)
    except dp.UsageError:
        return
    figures = [timeline.makespan, timeline.span, *timeline.busy, *timeline.idle]
    assert np.isfinite(figures).all()
    assert np.isfinite(timeline.spans["end"]).all()


@pytest.mark.parametrize("figure", ["bubble_ratio", "span_bubble_ratio"])
def test_ratios_of_sums_that_no_float_holds(figure: str) -> None:
    timeline = dp.schedule("dualpipe", 4, 8).simulate(dp.Costs(optimizer=1.7e308))
    assert 0 <= getattr(timeline, figure) <= 1


def test_bytes_that_no_float_holds() -> None:
    with pytest.raises(dp.UsageError):
        dp.schedule("gpipe", 2, 8).simulate(dp.Costs(activation_bytes=1e308)).peak_bytes()


def test_no_limit_is_shown_as_python() -> None:
    costs = dp.Costs(p2p_bandwidth=math.inf)
    assert eval(repr(costs), {"Costs": dp.Costs}) == costs
