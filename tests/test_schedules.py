"""The published schedules, cell for cell: goldens, the oracle's orders, closed forms, symmetries; and every
size, name and type that is none.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    GOLDEN,
    PLACEMENT,
    attempt,
    cell_of,
    is_legal,
    legal_sizes,
    nearest_size,
    numbered,
    python,
    read,
    shape_of,
    sizes_of,
)
from oracle import order_of, parse, place

import dualpipe_rs as dp

SMALL = legal_sizes(12, 48)
LARGE = [("gpipe", 33, 70), ("1f1b", 64, 200), ("dualpipe", 32, 130), ("dualpipev", 25, 77)]
DUALPIPE = [(p, m) for family, p, m in SMALL if family == "dualpipe"]


def cells(family: str, p: int, m: int) -> list[list[str]]:
    schedule = dp.schedule(family, num_ranks=p, num_microbatches=m)
    return [schedule.rank(rank) for rank in range(p)]


# ---- What is right -----------------------------------------------------------------------------------------


def test_names() -> None:
    names = dp.schedule_names()
    assert set(PLACEMENT) <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_cell_for_cell(path: Path) -> None:
    family, p, m = sizes_of(path)
    schedule = dp.schedule(family, p, m)
    lines = path.read_text().splitlines()
    header, rows = schedule.to_text().split("\n", 1)
    stages = 2 * p if family == "dualpipev" else p
    assert (
        header == f"# name={family} placement={PLACEMENT[family]} ranks={p} stages={stages} microbatches={m}"
    )
    assert rows == path.read_text()
    for rank, line in enumerate(lines):
        assert schedule.rank(rank) == line.split(), f"rank {rank}"


@pytest.mark.parametrize("family", PLACEMENT)
def test_equals_the_oracle_at_every_size(family: str) -> None:
    for _, p, m in [size for size in SMALL + LARGE if size[0] == family]:
        expected = [[cell_of(slot) for slot in row] for row in order_of(family, p, m)]
        assert cells(family, p, m) == expected, (p, m)


def peak_by_formula(family: str, p: int, m: int) -> list[int]:
    peaks = {
        "gpipe": [m] * p,
        "1f1b": [min(p - r, m) for r in range(p)],
        "dualpipe": [p + 1] * p,
        "dualpipev": [2 * p + 1] * p,
    }
    return peaks[family]


@pytest.mark.parametrize("family", PLACEMENT)
def test_verifies_and_peaks_as_published_at_every_size(family: str) -> None:
    for _, p, m in [size for size in SMALL + LARGE if size[0] == family]:
        schedule = dp.schedule(family, p, m)
        assert schedule.verify() is None
        assert schedule.simulate().peak_activations.tolist() == peak_by_formula(family, p, m), (p, m)


def moved(row: list[str], by: dict[int, int], m: int) -> list[str]:
    """The row with the microbatches of each stage shifted, round and round."""
    shifted = [[(s, k, (i + by[s]) % m) for s, k, i in slot] for slot in parse(" ".join(row))[0]]
    return [cell_of(slot) for slot in shifted]


def test_dualpipe_is_its_own_mirror() -> None:
    for p, m in DUALPIPE:
        rows = cells("dualpipe", p, m)
        for r in range(p // 2):
            both = {r: m // 2, p - 1 - r: m // 2}
            assert rows[p - 1 - r] == moved(rows[r], both, m), (p, m, r)


def test_dualpipe_folds_into_dualpipev() -> None:
    """Rank r holds the same two stages; what comes back has the other half's numbers in DualPipe."""
    for p, m in DUALPIPE:
        whole, folded = cells("dualpipe", p, m), cells("dualpipev", p // 2, m // 2)
        for r in range(p // 2):
            assert whole[r] == moved(folded[r], {r: 0, p - 1 - r: m // 2}, m), (p, m, r)


@pytest.mark.parametrize(("family", "p", "m"), [("gpipe", 3, 5), ("dualpipe", 4, 10), ("dualpipev", 3, 7)])
def test_attributes(family: str, p: int, m: int) -> None:
    schedule = dp.schedule(family, num_ranks=p, num_microbatches=m)
    stages = 2 * p if family == "dualpipev" else p
    assert (schedule.name, schedule.num_ranks, schedule.num_microbatches) == (family, p, m)
    assert (schedule.num_stages, schedule.placement) == (stages, PLACEMENT[family])
    assert repr(schedule) == f"<Schedule {family} ({p} ranks, {stages} stages, {m} microbatches)>"
    assert str(schedule) == schedule.to_text()


# ---- Where stages live -------------------------------------------------------------------------------------


def test_stages_of_the_families() -> None:
    linear, dual, v = (
        dp.schedule(*size) for size in [("1f1b", 4, 4), ("dualpipe", 4, 8), ("dualpipev", 4, 8)]
    )
    for r in range(4):
        assert linear.stages_of(r) == [r]
        assert dual.stages_of(r) == [r, 3 - r]
        assert v.stages_of(r) == [r, 7 - r]


@pytest.mark.parametrize("seed", range(40))
def test_placement_equals_the_oracle(seed: int) -> None:
    rows, shape = numbered(seed)
    schedule, expected = read(rows, shape), place(*shape)
    assert shape_of(schedule) == shape
    held: list[set[int]] = [set() for _ in range(shape.ranks)]
    for stage in range(shape.stages):
        for microbatch in range(shape.microbatches):
            rank = schedule.rank_of(stage, microbatch)
            assert rank == expected(stage, microbatch)
            held[rank].add(stage)
    for rank in range(shape.ranks):
        stages = schedule.stages_of(rank)
        assert set(stages) == held[rank]
        assert stages[0] == rank
        if shape.placement != "bidirectional":
            assert stages == sorted(held[rank])


def test_no_rank_holds_a_stage_twice() -> None:
    """An odd number of ranks has a middle one, on which both directions' stages are the same."""
    text = "# name=x placement=bidirectional ranks={0} stages={0} microbatches=2\n"
    for p in (1, 3, 4):
        rows = [" ".join(f"{s}F0 {s}B0 {s}F1 {s}B1" for s in {r, p - 1 - r}) for r in range(p)]
        schedule = attempt(text.format(p) + "\n".join(rows))
        for rank in range(p) if isinstance(schedule, dp.Schedule) else ():
            assert len(set(schedule.stages_of(rank))) == len(schedule.stages_of(rank)), (p, rank)


def test_the_middle_one_of_an_odd_number_of_microbatches() -> None:
    """Refused, or of the first half."""
    rows = "0F0 0B0 0F1 0B1 1F2 1B2\n1F0 1B0 1F1 1B1 0F2 0B2\n"
    schedule = attempt(f"# name=x placement=bidirectional ranks=2 stages=2 microbatches=3\n{rows}")
    if not isinstance(schedule, str):
        assert schedule.verify() is None
        assert [schedule.rank_of(0, m) for m in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("rank", [-1, 4, 2**31, -(2**63), 2**63 - 1])
def test_ranks_out_of_range(rank: int) -> None:
    schedule = dp.schedule("dualpipe", 4, 8)
    for ask in (schedule.rank, schedule.stages_of, schedule.lower().rank):
        with pytest.raises(dp.UsageError, match=rf"rank {rank} is out of range: ranks are 0 to 3"):
            ask(rank)


@pytest.mark.parametrize(
    ("stage", "microbatch"), [(4, 0), (0, 8), (-1, 0), (0, -1), (2**40, 2**40), (65536, 0)]
)
def test_stage_or_microbatch_out_of_range(stage: int, microbatch: int) -> None:
    with pytest.raises(dp.UsageError, match=r"out of range: (stages are 0 to 3|microbatches are 0 to 7)"):
        dp.schedule("dualpipe", 4, 8).rank_of(stage, microbatch)


# ---- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PLACEMENT)
def test_an_illegal_size_names_a_legal_one(family: str) -> None:
    illegal = [(p, m) for p in range(13) for m in range(49) if not is_legal(family, p, m)]
    assert illegal
    for p, m in illegal:
        with pytest.raises(dp.UsageError) as caught:
            dp.schedule(family, p, m)
        assert isinstance(caught.value, dp.Error)
        assert isinstance(caught.value, ValueError)
        message = str(caught.value)
        assert message.startswith(f"{family} takes ")
        assert f"got {p} ranks and {m} microbatches" in message
        size = nearest_size(message)
        assert is_legal(family, *size)
        dp.schedule(family, *size).verify()


@pytest.mark.parametrize("family", PLACEMENT)
def test_the_size_named_is_near(family: str) -> None:
    """No legal size lies between what was asked for and what is named."""
    for p, m in [(p, m) for p in range(8) for m in range(20) if not is_legal(family, p, m)]:
        with pytest.raises(dp.UsageError) as caught:
            dp.schedule(family, p, m)
        near = nearest_size(str(caught.value))
        low_p, high_p = sorted((p, near[0]))
        low_m, high_m = sorted((m, near[1]))
        between = [(a, b) for a in range(low_p, high_p + 1) for b in range(low_m, high_m + 1)]
        assert [size for size in between if is_legal(family, *size)] == [near], (p, m)


HUGE = [
    ("dualpipe", 70001, 2),
    ("dualpipe", 2**63 - 1, 2),
    ("dualpipe", 2**63 - 2, 2),
    ("dualpipe", 2, 2**63 - 1),
    ("dualpipe", 0, 2**62),
    ("dualpipev", 40000, 1),
    ("dualpipev", 2**63 - 1, 1),
    ("gpipe", 65536, 1),
    ("gpipe", 65535, 683),
    ("gpipe", 1, 2**63 - 1),
    ("gpipe", 2**63 - 1, 0),
    ("1f1b", 2**63 - 1, 2**63 - 1),
]


@pytest.mark.parametrize(("family", "p", "m"), HUGE)
def test_huge_sizes_are_refused(family: str, p: int, m: int) -> None:
    with pytest.raises(dp.UsageError):
        dp.schedule(family, p, m)


def test_huge_sizes_take_no_memory() -> None:
    calls = "".join(f"try: dp.schedule{size}\nexcept dp.UsageError: refused += 1\n" for size in HUGE)
    answer = python(f"import dualpipe_rs as dp\nrefused = 0\n{calls}print(refused)", gibibytes=1)
    assert answer.stdout == f"{len(HUGE)}\n", answer.stderr


@pytest.mark.parametrize(("family", "p", "m"), HUGE)
def test_no_illegal_size_is_called_legal(family: str, p: int, m: int) -> None:
    with pytest.raises(dp.UsageError) as caught:
        dp.schedule(family, p, m)
    if "nearest legal size" in str(caught.value):
        dp.schedule(family, *nearest_size(str(caught.value)))


@pytest.mark.parametrize("family", PLACEMENT)
@pytest.mark.parametrize(("p", "m"), [(-1, 8), (4, -8), (-(2**63), 8), (4, -(2**63))])
def test_negative_sizes(family: str, p: int, m: int) -> None:
    argument = "num_ranks" if p < 0 else "num_microbatches"
    with pytest.raises(dp.UsageError, match=f"{argument} is {min(p, m)}"):
        dp.schedule(family, p, m)


@pytest.mark.parametrize(
    "wrong", [1.0, 2.5, "4", b"4", None, [4], 4j, 2**63, 2**200, -(2**200), object()], ids=repr
)
def test_wrong_types(wrong: Any) -> None:
    refused = (dp.Error, TypeError, OverflowError)
    schedule = dp.schedule("gpipe", 4, 8)
    for call in (
        lambda: dp.schedule("gpipe", wrong, 8),
        lambda: dp.schedule("gpipe", 4, wrong),
        lambda: schedule.rank(wrong),
        lambda: schedule.stages_of(wrong),
        lambda: schedule.rank_of(wrong, 0),
        lambda: schedule.rank_of(0, wrong),
        lambda: schedule.lower().rank(wrong),
    ):
        with pytest.raises(refused):
            call()


@pytest.mark.parametrize("name", ["", "DualPipe", "dualpipe ", "zzz", "dual\0pipe", "1F1B", "é" * 1000])
def test_unknown_names(name: str) -> None:
    with pytest.raises(dp.UsageError, match=f"the names are {', '.join(dp.schedule_names())}"):
        dp.schedule(name, 4, 8)


@pytest.mark.parametrize("name", [None, 1, b"gpipe", ["gpipe"]], ids=repr)
def test_names_of_other_types(name: Any) -> None:
    with pytest.raises((dp.Error, TypeError)):
        dp.schedule(name, 4, 8)


@pytest.mark.parametrize("family", PLACEMENT)
def test_unknown_options(family: str) -> None:
    with pytest.raises(dp.UsageError, match=rf'{family} takes no option "colour"'):
        dp.schedule(family, 4, 8, colour="red")


def test_missing_sizes() -> None:
    with pytest.raises(TypeError, match="num_microbatches"):
        dp.schedule("gpipe", 4)


@pytest.mark.parametrize("p2p", ["", "Eager", "eager ", "quick"])
def test_unknown_p2p(p2p: str) -> None:
    schedule = dp.schedule("gpipe", 2, 2)
    for call in (schedule.verify, schedule.lower, lambda p2p: schedule.simulate(p2p=p2p)):
        with pytest.raises(dp.UsageError, match="p2p"):
            call(p2p)


# ---- Schedules as values -----------------------------------------------------------------------------------


def duplicates(schedule: dp.Schedule) -> list[dp.Schedule]:
    pickles = [
        pickle.loads(pickle.dumps(schedule, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ]
    return [copy.copy(schedule), copy.deepcopy(schedule), *pickles]


@pytest.mark.parametrize("family", PLACEMENT)
def test_copies_are_equal(family: str) -> None:
    schedule = dp.schedule(family, 4, 8)
    for original in (schedule, schedule.forward_only()):
        for other in duplicates(original):
            assert other == original
            assert hash(other) == hash(original)
            assert other.to_text() == original.to_text()


def test_other_schedules_are_not_equal() -> None:
    several = [
        dp.schedule("gpipe", 2, 4),
        dp.schedule("1f1b", 2, 4),
        dp.schedule("gpipe", 2, 5),
        dp.schedule("gpipe", 3, 4),
        dp.schedule("dualpipe", 2, 4),
        dp.schedule("dualpipev", 2, 4),
        dp.schedule("gpipe", 2, 4).forward_only(),
        dp.Schedule.from_text(dp.schedule("gpipe", 2, 4).to_text().replace("name=gpipe", "name=other")),
    ]
    assert len(set(several)) == len(several)
    for i, one in enumerate(several):
        assert [one == other for other in several] == [i == j for j in range(len(several))]
    assert several[0] != "gpipe"
    assert several[0] is not None


def test_frozen() -> None:
    schedule = dp.schedule("gpipe", 2, 4)
    with pytest.raises(AttributeError):
        schedule.name = "other"
    with pytest.raises(TypeError):
        dp.Schedule()


def test_forward_only() -> None:
    for family, p, m in legal_sizes(5, 12):
        schedule = dp.schedule(family, p, m)
        inference = schedule.forward_only()
        assert inference.verify() is None
        assert inference.forward_only() == inference
        for rank in range(p):
            actions = [action for slot in parse(" ".join(schedule.rank(rank)))[0] for action in slot]
            assert inference.rank(rank) == [cell_of([action]) for action in actions if action[1] == "F"]
        assert repr(inference).endswith(f"{m} microbatches, forward only)>")


def test_threads_may_share_a_schedule() -> None:
    schedule = dp.schedule("dualpipe", 8, 40)

    def figures(_: int) -> tuple[float, str]:
        schedule.verify()
        return schedule.simulate().makespan, str(schedule.lower())

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(figures, range(32)))) == 1
