"""Many simulations at once: each as it is alone, whatever the threads; columns of arrays; random prices; and
progress, Ctrl-C and forks around them.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from conftest import numbered, python, read
from oracle_costs import SEMANTICS, SMALL, Keywords, Simulator, price, random_keywords, runs_under

import dualpipe_rs as dp

FIELDS = ["makespan", "span", "bubble_ratio"]
ONE_SLOT = "# name=x placement=linear ranks=1 stages=1 microbatches=1 forward_only=true\n0F0\n"


def some_schedule(seed: int, rng: random.Random) -> dp.Schedule:
    return read(*numbered(seed)) if seed % 2 else dp.schedule(*rng.choice(SMALL))


def alone(schedule: dp.Schedule, costs: list[dp.Costs], **options: Any) -> list[tuple[float, ...]]:
    timelines = [schedule.simulate(one, **options) for one in costs]
    return [(t.makespan, t.span, t.bubble_ratio) for t in timelines]


# ---- As one by one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)
def test_each_is_as_alone(p2p: str, depth: int | None) -> None:
    compared = 0
    for seed in range(40):
        rng = random.Random(seed)
        schedule = some_schedule(seed, rng)
        if not runs_under(schedule, p2p, depth):
            continue
        costs = [dp.Costs(**random_keywords(rng, schedule)) for _ in range(7)]
        many = dp.simulate_many(schedule, costs, p2p=p2p, depth=depth)
        assert many.dtype.names == tuple(FIELDS)
        assert many.tolist() == alone(schedule, costs, p2p=p2p, depth=depth)
        compared += 1
    assert compared >= 6


def test_the_same_bytes_with_any_number_of_threads() -> None:
    rng = random.Random(3)
    schedule = dp.schedule("dualpipe", 4, 8)
    costs = [dp.Costs(**random_keywords(rng, schedule)) for _ in range(301)]
    answers = {dp.simulate_many(schedule, costs, threads=n).tobytes() for n in (None, 1, 2, 3, 4, 7)}
    assert len(answers) == 1
    assert dp.simulate_many(schedule, costs[:0]).shape == (0,)
    assert dp.simulate_many(schedule, costs[:1]).tolist() == alone(schedule, costs[:1])
    assert dp.simulate_many(schedule, iter(costs)).tobytes() in answers


# ---- Columns -----------------------------------------------------------------------------------------------

COUNT = 5


def column(rng: random.Random, *shape: int) -> np.ndarray:
    return np.array([rng.randint(0, 40) / 8 for _ in range(math.prod(shape))]).reshape(shape)


def random_columns(rng: random.Random, schedule: dp.Schedule) -> Keywords:
    """Every keyword with every number of axes that it may have."""
    n, s, r = COUNT, schedule.num_stages, schedule.num_ranks
    shapes = {name: [(n,), (n, s)] for name in ("forward", "backward_input", "backward_weight", "backward")}
    shapes |= {"overlap": [(n,), (n, s, s)], "optimizer": [(n,), (n, r)], "gradient_exchange": [(n,)]}
    shapes |= {name: [(n,), (n, r, r)] for name in ("p2p", "p2p_bytes", "p2p_bandwidth")}
    shapes |= {name: [(n, 3)] for name in ("first_extra", "last_extra")}
    kept = {name: rng.choice(known) for name, known in shapes.items() if rng.random() < 0.7}
    columns: Keywords = {name: column(rng, *shape) for name, shape in kept.items()}
    if "p2p_bandwidth" in columns:
        columns["p2p_bandwidth"] = 2.0 ** np.round(columns["p2p_bandwidth"])
    return columns


@pytest.mark.parametrize("seed", range(60))
def test_columns_are_rows_of_costs(seed: int) -> None:
    rng = random.Random(seed)
    schedule = some_schedule(seed, rng)
    columns = {"forward": column(rng, COUNT), **random_columns(rng, schedule)}
    costs = [dp.Costs(**{name: values[i] for name, values in columns.items()}) for i in range(COUNT)]
    expected = alone(schedule, costs)
    assert dp.simulate_many(schedule, columns).tolist() == expected
    as_lists = {name: values.tolist() for name, values in columns.items()}
    assert dp.simulate_many(schedule, as_lists).tolist() == expected
    strided = {name: np.repeat(values, 2, axis=0)[::2] for name, values in columns.items()}
    assert dp.simulate_many(schedule, strided).tolist() == expected


def test_plain_numbers_hold_for_all() -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    overlap = np.linspace(2, 3, 5)
    many = dp.simulate_many(schedule, {"overlap": overlap, "forward": 2, "p2p": 0.5, "backward": None})
    assert many.tolist() == alone(schedule, [dp.Costs(2, overlap=x, p2p=0.5) for x in overlap])
    integers = dp.simulate_many(schedule, {"forward": np.arange(3, dtype=np.int32)})
    assert integers.tolist() == alone(schedule, [dp.Costs(f) for f in range(3)])
    assert len(dp.simulate_many(schedule, {"forward": np.zeros((0, 4)), "p2p": 1})) == 0


BAD_COLUMNS: list[Any] = [
    ({}, "column"),
    ({"forward": 1}, "column"),
    ({"forward": [1, 2], "p2p": [1, 2, 3]}, "forward.*p2p"),
    ({"forward": [1, -2]}, "forward"),
    ({"p2p": [1, math.nan]}, "p2p"),
    ({"optimizer": [math.inf, 1]}, "optimizer"),
    ({"forward": np.ones((2, 3))}, "forward"),
    ({"forward": np.ones((2, 2, 2))}, "forward"),
    ({"gradient_exchange": np.ones((2, 2))}, "gradient_exchange"),
    ({"overlap": np.ones((2, 2, 2, 2))}, "overlap"),
    ({"first_extra": np.ones((2, 2))}, "first_extra"),
    ({"forward": ["a", "b"]}, "forward"),
    ({"forward": "ab"}, "forward|column"),
]


@pytest.mark.parametrize(("columns", "words"), BAD_COLUMNS, ids=lambda value: str(value)[:40])
def test_columns_that_are_none(columns: Keywords, words: str) -> None:
    with pytest.raises(dp.UsageError, match=words):
        dp.simulate_many(dp.schedule("1f1b", 2, 4), columns)


def test_a_ragged_column() -> None:
    with pytest.raises(dp.UsageError, match="forward"):
        dp.simulate_many(dp.schedule("1f1b", 2, 4), {"forward": [[1, 2], [1]]})


# ---- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 9])
def test_one_bad_among_many(position: int) -> None:
    """Costs that do not fit, that no float holds, or that are none."""
    schedule = dp.schedule("1f1b", 2, 4)
    for bad, words in (
        (dp.Costs([1, 2, 3]), "forward has 3"),
        (dp.Costs(1e308), "float"),
        (7, rf"\[{position}\]"),
    ):
        costs: list[Any] = [dp.Costs() for _ in range(10)]
        costs[position] = bad
        with pytest.raises(dp.UsageError, match=words):
            dp.simulate_many(schedule, costs)
    assert len(dp.simulate_many(schedule, [dp.Costs()])) == 1


def test_schedules_and_semantics_that_are_none() -> None:
    broken = dp.Schedule.from_text("# name=x placement=linear ranks=1 stages=1 microbatches=1\n0F0 0F0\n")
    costs = [dp.Costs()] * 3
    with pytest.raises(dp.ScheduleError, match="missing"):
        dp.simulate_many(broken, costs)
    with pytest.raises(dp.ScheduleError, match="deadlock"):
        dp.simulate_many(dp.schedule("1f1b", 2, 4), costs, p2p="blocking")
    with pytest.raises(dp.UsageError, match="fast"):
        dp.simulate_many(dp.schedule("1f1b", 2, 4), costs, p2p="fast")
    for threads in (0, -1, 2**40):
        with pytest.raises(dp.UsageError, match="threads"):
            dp.simulate_many(dp.schedule("1f1b", 2, 4), costs, threads=threads)


# ---- Progress, Ctrl-C, forks -------------------------------------------------------------------------------

CALLS: dict[str, Callable[..., Any]] = {
    "simulate_many": lambda n, **options: dp.simulate_many(
        dp.schedule("zb-h1", 4, 16), [dp.Costs()] * n, **options
    ),
    "jitter": lambda n, **options: dp.jitter(dp.schedule("zb-h1", 4, 16), n=n, **options),
}
both = pytest.mark.parametrize("name", CALLS)


@both
@pytest.mark.parametrize("n", [0, 1, 5, 3000])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_progress_grows_to_the_end(name: str, n: int, threads: int | None) -> None:
    calls: list[tuple[int, int]] = []
    CALLS[name](n, threads=threads, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (n, n)
    assert {total for _, total in calls} == {n}
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@both
@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_progress_raises_comes_out(name: str, error: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        CALLS[name](100, progress=stop)
    assert caught.value is error
    assert len(CALLS[name](100)) == 100


@both
def test_progress_may_simulate_itself(name: str) -> None:
    """The lock of the interpreter is free, and no pool waits for itself."""
    inner: list[int] = []
    CALLS[name](50, threads=2, progress=lambda done, total: inner.append(len(CALLS[name](20, threads=2))))
    assert set(inner) == {20}


@both
def test_a_signal_in_progress(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](100, progress=lambda done, total: signal.raise_signal(signal.SIGINT))
    assert len(CALLS[name](100)) == 100


@contextmanager
def interrupted_while_computing() -> Iterator[None]:
    """Ctrl-C once this process has computed for a while: the alarm counts its own time."""
    before = signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@both
@pytest.mark.parametrize("threads", [None, 1])
def test_ctrl_c_stops_what_would_take_hours(name: str, threads: int | None) -> None:
    large, costs = dp.schedule("dualpipev", 64, 1024), [dp.Costs()] * 200_000
    calls: dict[str, Callable[[], Any]] = {
        "jitter": lambda: dp.jitter(large, n=2_000_000, threads=threads),
        "simulate_many": lambda: dp.simulate_many(large, costs, threads=threads),
    }
    with pytest.raises(KeyboardInterrupt), interrupted_while_computing():
        calls[name]()
    assert len(CALLS[name](100)) == 100


INTERRUPTED = """
import signal, dualpipe_rs as dp
timeline = dp.schedule("1f1b", 96, 1024).simulate()
signal.signal(signal.SIGVTALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
try: timeline.sensitivity(each=True)
except BaseException as error: print(type(error).__name__)
"""


def test_ctrl_c_before_the_first_array() -> None:
    assert python(INTERRUPTED).stdout == "KeyboardInterrupt\n"


def test_more_runs_than_memory_holds() -> None:
    code = """
import dualpipe_rs as dp
try: dp.jitter(dp.Schedule.from_text({0!r}), n=2**31)
except (dp.UsageError, MemoryError): print("refused")
"""
    assert python(code.format(ONE_SLOT), gibibytes=0.5).stdout == "refused\n"


def test_in_a_forked_process() -> None:
    """The parent has used its threads; the child has none of them."""
    code = """
import multiprocessing, sys
import dualpipe_rs as dp
schedule, costs = dp.schedule("1f1b", 4, 8), [dp.Costs(f) for f in range(100)]
def answer():
    return dp.simulate_many(schedule, costs, threads=2).tobytes() + dp.jitter(schedule, n=50).tobytes()
def child(queue):
    queue.put(answer())
expected = answer()
fork = multiprocessing.get_context("fork")
queue = fork.Queue()
process = fork.Process(target=child, args=(queue,))
process.start()
got = queue.get(timeout=60)
process.join()
print(got == expected == answer())
"""
    ran = python(code)
    assert ran.stdout == "True\n", ran.stderr


# ---- Jitter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p2p", "depth"), SEMANTICS)
def test_no_jitter_at_all(p2p: str, depth: int | None) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        schedule = some_schedule(seed, rng)
        if runs_under(schedule, p2p, depth):
            costs = dp.Costs(**random_keywords(rng, schedule))
            makespan = schedule.simulate(costs, p2p=p2p, depth=depth).makespan
            runs = dp.jitter(schedule, costs, sigma=0, n=3, p2p=p2p, depth=depth)
            assert runs.tolist() == [makespan] * 3


def test_equal_seeds_give_equal_numbers() -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    hundred = dp.jitter(schedule, n=100, seed=5)
    assert (hundred.shape, hundred.dtype) == ((100,), np.dtype("f8"))
    assert np.array_equal(dp.jitter(schedule, n=10, seed=5), hundred[:10])
    for threads in (1, 2, 3, 4):
        assert dp.jitter(schedule, n=100, seed=5, threads=threads).tobytes() == hundred.tobytes()
    assert len(set(hundred.tolist())) == 100
    assert not set(hundred.tolist()) & set(dp.jitter(schedule, n=100, seed=6).tolist())
    assert len(dp.jitter(schedule, n=0)) == 0
    assert dp.jitter(schedule, dp.Costs(), 0.1, 10, 5).tobytes() == hundred[:10].tobytes()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_factors_are_log_normal(sigma: float) -> None:
    """One slot: the mean, and the logarithm's mean, deviation and quantiles, within five standard errors."""
    n = 20_000
    factors = dp.jitter(dp.Schedule.from_text(ONE_SLOT), dp.Costs(2), sigma, n, seed=1) / 2
    assert factors.mean() == pytest.approx(1, abs=5 * sigma / math.sqrt(n))
    deviation = math.sqrt(math.log(1 + sigma**2))
    logs = (np.log(factors) + deviation**2 / 2) / deviation
    assert logs.mean() == pytest.approx(0, abs=5 / math.sqrt(n))
    assert logs.std() == pytest.approx(1, abs=5 / math.sqrt(2 * n))
    for z, part in ((-1.959964, 0.025), (-0.67449, 0.25), (0, 0.5), (0.67449, 0.75), (1.959964, 0.975)):
        assert np.mean(logs < z) == pytest.approx(part, abs=5 * math.sqrt(part * (1 - part) / n))


def test_each_slot_has_a_factor_of_its_own() -> None:
    """The variance of a sum of two is the sum of theirs, and one run knows nothing of the next."""
    text = "# name=x placement=linear ranks=1 stages=1 microbatches=2 forward_only=true\n0F0 0F1\n"
    n, sigma = 20_000, 0.25
    runs = dp.jitter(dp.Schedule.from_text(text), dp.Costs(1), sigma, n, seed=2)
    assert runs.var() == pytest.approx(2 * sigma**2, rel=0.06)
    assert abs(np.corrcoef(runs[1:], runs[:-1])[0, 1]) < 5 / math.sqrt(n)


def test_jitter_never_helps_on_average() -> None:
    schedule = dp.schedule("1f1b", 4, 8)
    assert dp.jitter(schedule, sigma=0.2, n=2000).mean() > schedule.simulate().makespan


@pytest.mark.parametrize("seed", range(30))
def test_a_slow_rank(seed: int) -> None:
    """All that it computes takes so many times as long; its hops do not."""
    rng = random.Random(seed)
    schedule = some_schedule(seed, rng)
    costs = random_keywords(rng, schedule)
    costs.pop("optimizer", None), costs.pop("gradient_exchange", None)
    simulator, slow = Simulator(schedule), rng.randrange(schedule.num_ranks)
    for slowdown in (0.5, 1.0, 3.0):
        row = simulator.rows[slow]
        longer = {(slow, i): (slowdown - 1) * price(costs, s, schedule.num_stages) for i, s in enumerate(row)}
        expected = simulator.run(costs, longer).makespan
        found = dp.jitter(schedule, dp.Costs(**costs), 0, 2, slow_rank=slow, slowdown=slowdown)
        assert found.tolist() == [expected] * 2


@pytest.mark.parametrize("family", ["gpipe", "1f1b", "zb-h1"])
def test_a_slow_rank_is_a_stage_of_twice_the_costs(family: str) -> None:
    """Where a rank is a stage, and with the same factors too."""
    schedule = dp.schedule(family, 4, 8)
    plain = dp.Costs([1, 2, 3, 4], [2, 3, 1, 2], [1, 1, 2, 2])
    slow = dp.Costs([1, 2, 6, 4], [2, 3, 2, 2], [1, 1, 4, 2])
    for sigma in (0, 0.4):
        found = dp.jitter(schedule, plain, sigma, 20, seed=9, slow_rank=2, slowdown=2)
        assert found == pytest.approx(dp.jitter(schedule, slow, sigma, 20, seed=9), rel=1e-12)


BAD_JITTER: list[Keywords] = [
    *({"sigma": sigma} for sigma in (-0.1, math.nan, math.inf)),
    *({"slow_rank": 0, "slowdown": x} for x in (-1, math.nan, math.inf)),
    *({"slow_rank": rank, "slowdown": 2} for rank in (-1, 4, 2**40)),
    {"slow_rank": 1},
    {"slowdown": 2},
    *({"n": n} for n in (-1, 2**60)),
    {"threads": 0},
    {"p2p": "fast"},
    {"costs": dp.Costs([1])},
]


@pytest.mark.parametrize("arguments", BAD_JITTER, ids=str)
def test_arguments_that_are_none(arguments: Keywords) -> None:
    with pytest.raises(dp.UsageError):
        dp.jitter(dp.schedule("1f1b", 4, 4), **{"n": 2, **arguments})


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_are_none(seed: int) -> None:
    with pytest.raises(dp.UsageError, match="seed"):
        dp.jitter(dp.schedule("1f1b", 2, 2), n=1, seed=seed)


def test_a_frame_of_columns() -> None:
    pandas = pytest.importorskip("pandas")
    schedule = dp.schedule("dualpipe", 4, 8)
    columns = {"overlap": [2.0, 2.5], "p2p": [0.1, 0.2]}
    found = dp.simulate_many(schedule, pandas.DataFrame(columns))
    assert found.tobytes() == dp.simulate_many(schedule, columns).tobytes()
