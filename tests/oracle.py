"""The slow and obvious oracle: what a schedule means, in dictionaries and plain loops.

It is what the Rust core is tested against, so it shares nothing with it: it never imports the package, and
where a shorter or faster way exists, the way that reads like the definition was taken. It is not part of the
package and not meant for sizes beyond tests (everything here is quadratic or so).

Words. An action is (stage, kind, microbatch), its kind one of F (forward), I (backward for input), W
(backward for weights) and B (full backward, I then W). A slot is a list of one action, or of two: a fused
pair. A row is a rank's list of slots, in the order in which the rank runs them. Rows are all ranks' rows.

Times may be ints, floats or Fractions; with ints and Fractions every time in the answer is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Action = tuple[int, str, int]
Slot = list[Action]
Rows = list[list[Slot]]
Place = tuple[int, int]  # rank, index of the slot in the rank's row

BACKWARD = ("I", "W", "B")


# ---- Text --------------------------------------------------------------------------------------------------


def parse(rows: str) -> Rows:
    """Rows from text: a rank a line, slots between spaces, a slot `2F0` or `(0F7;7B3)`.

    An empty line is a rank that does nothing. Raises ValueError where a slot is written in another way.
    """
    return [[_parse_slot(word) for word in line.split()] for line in rows.splitlines()]


def _parse_slot(word: str) -> Slot:
    if word.startswith("(") and word.endswith(")"):
        actions = word[1:-1].split(";")
        if len(actions) != 2:
            raise ValueError(f"slot {word!r} is in parentheses, so it must hold two actions parted by ';'.")
        return [_parse_action(action) for action in actions]
    return [_parse_action(word)]


def _parse_action(word: str) -> Action:
    match = re.fullmatch(r"([0-9]+)([FIWB])([0-9]+)", word)
    if match is None:
        raise ValueError(f"{word!r} is not an action: write stage, one of F I W B, microbatch, such as 2F0.")
    return int(match[1]), match[2], int(match[3])


# ---- Where a stage lives, and what an action waits for -----------------------------------------------------


def place(
    placement: str, num_ranks: int, num_stages: int, num_microbatches: int
) -> Callable[[int, int], int]:
    """A function (stage, microbatch) -> rank. Raises ValueError for sizes which the placement cannot have."""
    p = num_ranks

    def linear(stage: int, microbatch: int) -> int:
        return stage

    def looped(stage: int, microbatch: int) -> int:
        return stage % p

    def v(stage: int, microbatch: int) -> int:
        return stage if stage < p else 2 * p - 1 - stage

    def wave(stage: int, microbatch: int) -> int:
        sweep, step = stage // p, stage % p
        return step if sweep % 2 == 0 else p - 1 - step

    def bidirectional(stage: int, microbatch: int) -> int:
        return stage if microbatch < num_microbatches // 2 else p - 1 - stage

    multiple = num_stages > 0 and num_stages % p == 0
    known: dict[str, tuple[Callable[[int, int], int], bool, str]] = {
        "linear": (linear, num_stages == p, "as many stages as ranks"),
        "looped": (looped, multiple, "a multiple of the number of ranks as its number of stages"),
        "v": (v, num_stages == 2 * p, "two stages a rank"),
        "wave": (wave, multiple, "a multiple of the number of ranks as its number of stages"),
        "bidirectional": (
            bidirectional,
            num_stages == p and num_microbatches % 2 == 0,
            "as many stages as ranks and an even number of microbatches",
        ),
    }
    if placement not in known:
        raise ValueError(f"there is no placement {placement!r}; there are {', '.join(known)}.")
    rank_of, possible, wanted = known[placement]
    if not possible:
        raise ValueError(
            f"placement {placement!r} needs {wanted}; "
            f"got {p} ranks, {num_stages} stages, {num_microbatches} microbatches."
        )
    return rank_of


def dependencies(action: Action, num_stages: int) -> list[list[Action]]:
    """What must have ended before the action starts: a list of needs, each met by any one action in it."""
    stage, kind, microbatch = action
    if kind == "F":
        return [[(stage - 1, "F", microbatch)]] if stage > 0 else []
    if kind == "W":
        return [[(stage, "I", microbatch)]]
    needs: list[list[Action]] = [[(stage, "F", microbatch)]]
    if stage < num_stages - 1:
        needs.append([(stage + 1, "I", microbatch), (stage + 1, "B", microbatch)])
    return needs


# ---- Violations --------------------------------------------------------------------------------------------


def violations(
    rows: Rows, placement: str, p: int, S: int, M: int, *, forward_only: bool = False
) -> set[tuple[Any, ...]]:
    """Everything wrong with the rows of p ranks, S stages and M microbatches; an empty set if nothing is.

    The kinds, and what a tuple of each holds (slot is an index in the rank's row):

    - ("missing", stage, kind, microbatch): an action that stands nowhere. A backward altogether absent is one
      missing B; where only I or only W stands, the other is missing.
    - ("duplicate", stage, kind, microbatch): an action that stands more than once, on whatever ranks.
    - ("mixed", stage, microbatch): a B beside an I or a W of the same stage and microbatch.
    - ("out_of_range", rank, slot, action): no such stage or no such microbatch.
    - ("wrong_rank", rank, slot, action): the placement puts it on another rank (not said where out of range).
    - ("pair", rank, slot): several actions that are not an F, then a B, of different (stage, microbatch).
    - ("forward_only", rank, slot, action): a backward action where forward_only is set; only F's are needed.
    - ("order", rank, slot, action): a need of the action stands in its own row only, in no earlier slot.
    - ("deadlock", rank, slot): the run stops with this rank before this slot. Needs that stand nowhere and
      needs already named under "order" are taken as met here: a deadlock is ranks that wait for each other.

    Raises ValueError where the arguments fit no schedule: not p rows, an empty slot, an unknown kind of
    action, or sizes which the placement cannot have.
    """
    _check_shape(rows, p)
    rank_of = place(placement, p, S, M)
    places = _places(rows)
    found: set[tuple[Any, ...]] = set()
    found |= _missing(places, S, M, forward_only)
    found |= {("duplicate", *action) for action, where in places.items() if len(where) > 1}
    found |= _mixed(places)
    found |= _misplaced(places, rank_of, S, M)
    found |= _bad_pairs(rows)
    if forward_only:
        found |= {
            ("forward_only", rank, slot, action)
            for action, where in places.items()
            for rank, slot in where
            if action[1] in BACKWARD
        }
    found |= _out_of_order(places, S)
    found |= _deadlock(rows, places, S)
    return found


def _check_shape(rows: Rows, num_ranks: int) -> None:
    if len(rows) != num_ranks:
        raise ValueError(f"{num_ranks} ranks need {num_ranks} rows, and there are {len(rows)}.")
    for rank, row in enumerate(rows):
        for index, slot in enumerate(row):
            if not slot or any(kind not in ("F", *BACKWARD) for _, kind, _ in slot):
                raise ValueError(f"slot {index} of rank {rank} holds {slot}: write actions F, I, W or B.")


def _places(rows: Rows) -> dict[Action, list[Place]]:
    places: dict[Action, list[Place]] = {}
    for rank, row in enumerate(rows):
        for index, slot in enumerate(row):
            for action in slot:
                places.setdefault(action, []).append((rank, index))
    return places


def _missing(
    places: dict[Action, list[Place]], num_stages: int, num_microbatches: int, forward_only: bool
) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for s in range(num_stages):
        for m in range(num_microbatches):
            if (s, "F", m) not in places:
                found.add(("missing", s, "F", m))
            if forward_only or (s, "B", m) in places:
                continue
            absent = [kind for kind in ("I", "W") if (s, kind, m) not in places]
            if absent == ["I", "W"]:
                absent = ["B"]
            found |= {("missing", s, kind, m) for kind in absent}
    return found


def _mixed(places: dict[Action, list[Place]]) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for stage, kind, microbatch in places:
        if kind in ("I", "W") and (stage, "B", microbatch) in places:
            found.add(("mixed", stage, microbatch))
    return found


def _misplaced(
    places: dict[Action, list[Place]],
    rank_of: Callable[[int, int], int],
    num_stages: int,
    num_microbatches: int,
) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for action, where in places.items():
        stage, _, microbatch = action
        in_range = 0 <= stage < num_stages and 0 <= microbatch < num_microbatches
        for rank, index in where:
            if not in_range:
                found.add(("out_of_range", rank, index, action))
            elif rank_of(stage, microbatch) != rank:
                found.add(("wrong_rank", rank, index, action))
    return found


def _bad_pairs(rows: Rows) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for rank, row in enumerate(rows):
        for index, slot in enumerate(row):
            if len(slot) == 1:
                continue
            kinds = [kind for _, kind, _ in slot]
            subjects = {(stage, microbatch) for stage, _, microbatch in slot}
            if kinds != ["F", "B"] or len(subjects) != 2:
                found.add(("pair", rank, index))
    return found


def _is_out_of_order(where_needed: list[Place], rank: int, index: int) -> bool:
    """Does a need stand in this row alone, and nowhere before this slot?"""
    return bool(where_needed) and all(r == rank and i >= index for r, i in where_needed)


def _where(need: list[Action], places: dict[Action, list[Place]]) -> list[Place]:
    return [where for action in need for where in places.get(action, [])]


def _out_of_order(places: dict[Action, list[Place]], num_stages: int) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for action, where in places.items():
        for rank, index in where:
            for need in dependencies(action, num_stages):
                if _is_out_of_order(_where(need, places), rank, index):
                    found.add(("order", rank, index, action))
    return found


def _deadlock(rows: Rows, places: dict[Action, list[Place]], num_stages: int) -> set[tuple[Any, ...]]:
    done: set[Action] = set()
    position = [0] * len(rows)

    def may_start(action: Action, rank: int) -> bool:
        for need in dependencies(action, num_stages):
            where = _where(need, places)
            if not where or _is_out_of_order(where, rank, position[rank]):
                continue  # named already, as missing or as out of order
            if not any(other in done for other in need):
                return False
        return True

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            if position[rank] == len(row):
                continue
            slot = row[position[rank]]
            if all(may_start(action, rank) for action in slot):
                done.update(slot)
                position[rank] += 1
                moved = True
    return {("deadlock", rank, position[rank]) for rank, row in enumerate(rows) if position[rank] < len(row)}


# ---- Simulation --------------------------------------------------------------------------------------------


def simulate(
    rows: Rows,
    placement: str,
    p: int,
    S: int,
    M: int,
    costs: Mapping[str, Any],
    *,
    forward_only: bool = False,
) -> dict[str, Any]:
    """When everything runs if every slot starts as early as it may; sends are eager and hold nobody.

    costs: F, I, W (a duration by stage), B (the same, or None: I + W), pair (the duration of a fused pair, or
    None: F + B of its two stages), hop (from the end on one rank until another rank has the value). B, pair
    and hop may be left out (None, None, 0).

    Gives spans {(rank, slot): (start, end)}; makespan (last end - first start over all ranks); span (the
    longest single rank's own last end - first start); busy, idle and peak, each a list by rank; and
    bubble_ratio = 1 - sum(busy) / (p * makespan), 0 where nothing takes time. Busy counts slots, so a pair
    counts once. Peak is the most (stage, microbatch) the rank holds at one time.

    Raises ValueError where the rows have a violation, or a cost does not have one value a stage.
    """
    wrong = violations(rows, placement, p, S, M, forward_only=forward_only)
    if wrong:
        raise ValueError(f"these rows cannot be simulated: {sorted(wrong, key=str)}.")
    duration = _durations(costs, S)
    spans = _run(rows, S, duration, costs.get("hop", 0))

    begins = [min((spans[r, i][0] for i in range(len(rows[r]))), default=0) for r in range(p)]
    ends = [max((spans[r, i][1] for i in range(len(rows[r]))), default=0) for r in range(p)]
    working = [r for r in range(p) if rows[r]]
    makespan = max((ends[r] for r in working), default=0) - min((begins[r] for r in working), default=0)
    busy = [sum(duration(slot) for slot in row) for row in rows]
    return {
        "spans": spans,
        "makespan": makespan,
        "span": max((ends[r] - begins[r] for r in working), default=0),
        "busy": busy,
        "idle": [makespan - b for b in busy],
        "bubble_ratio": 1 - sum(busy) / (p * makespan) if makespan > 0 else 0.0,
        "peak": [_peak(row, [spans[r, i] for i in range(len(row))]) for r, row in enumerate(rows)],
    }


def _durations(costs: Mapping[str, Any], num_stages: int) -> Callable[[Slot], Any]:
    """A function slot -> how long it lasts."""
    by_kind = {kind: list(costs[kind]) for kind in ("F", "I", "W")}
    if costs.get("B") is not None:
        by_kind["B"] = list(costs["B"])
    for kind, values in by_kind.items():
        if len(values) != num_stages:
            raise ValueError(f"cost {kind} has {len(values)} values, and there are {num_stages} stages.")
    if "B" not in by_kind:
        by_kind["B"] = [i + w for i, w in zip(by_kind["I"], by_kind["W"], strict=True)]

    def duration(slot: Slot) -> Any:
        if len(slot) == 2 and costs.get("pair") is not None:
            return costs["pair"]
        return sum(by_kind[kind][stage] for stage, kind, _ in slot)

    return duration


def _run(
    rows: Rows, num_stages: int, duration: Callable[[Slot], Any], hop: Any
) -> dict[Place, tuple[Any, Any]]:
    """Take any rank whose next slot has everything, until done. Which rank is taken first changes no time."""
    ended: dict[Action, tuple[Any, int]] = {}  # when, and on which rank
    position = [0] * len(rows)
    free: list[Any] = [0] * len(rows)
    spans: dict[Place, tuple[Any, Any]] = {}
    while any(position[rank] < len(row) for rank, row in enumerate(rows)):
        for rank, row in enumerate(rows):
            if position[rank] == len(row):
                continue
            slot = row[position[rank]]
            arrivals = _arrivals(slot, rank, num_stages, ended, hop)
            if arrivals is None:
                continue
            start = max([free[rank], *arrivals])
            end = start + duration(slot)
            spans[rank, position[rank]] = (start, end)
            for action in slot:
                ended[action] = (end, rank)
            free[rank] = end
            position[rank] += 1
    return spans


def _arrivals(
    slot: Slot, rank: int, num_stages: int, ended: dict[Action, tuple[Any, int]], hop: Any
) -> list[Any] | None:
    """When each need of the slot is on the rank; None if one of them has not been made yet."""
    arrivals = []
    for action in slot:
        for need in dependencies(action, num_stages):
            made = [ended[other] for other in need if other in ended]
            if not made:
                return None
            end, maker = made[0]
            arrivals.append(end if maker == rank else end + hop)
    return arrivals


def _peak(row: list[Slot], spans: list[tuple[Any, Any]]) -> int:
    """The most (stage, microbatch) held at once, from the start of F to the end of the last backward action.

    Held means start <= t < end, so that at an instant where one ends and another starts only the new one
    counts. Where there is no backward (forward only) a microbatch is held until its F ends.
    """
    start: dict[tuple[int, int], Any] = {}
    end: dict[tuple[int, int], Any] = {}
    for slot, (begin, finish) in zip(row, spans, strict=True):
        for stage, kind, microbatch in slot:
            if kind == "F":
                start[stage, microbatch] = begin
            end[stage, microbatch] = max(finish, end.get((stage, microbatch), finish))
    most = 0
    for t in start.values():
        most = max(most, sum(1 for held in start if start[held] <= t < end[held]))
    return most


# ---- Orders ------------------------------------------------------------------------------------------------


def order_of(family: str, p: int, m: int) -> Rows:
    """The rows of a family for p ranks and m microbatches.

    Families, and the placement of each: gpipe and 1f1b (linear), dualpipe (bidirectional), dualpipev (v).
    Raises ValueError for another family, or sizes which the family cannot take.
    """
    orders = {"gpipe": _gpipe, "1f1b": _one_f_one_b, "dualpipe": _dualpipe, "dualpipev": _dualpipev}
    if family not in orders:
        raise ValueError(f"there is no order of family {family!r} here; there are {', '.join(orders)}.")
    if p < 1 or m < 1:
        raise ValueError(f"{family} needs at least one rank and one microbatch; got {p} and {m}.")
    return orders[family](p, m)


def _gpipe(p: int, m: int) -> Rows:
    return [[[(r, "F", j)] for j in range(m)] + [[(r, "B", j)] for j in range(m)] for r in range(p)]


def _one_f_one_b(p: int, m: int) -> Rows:
    rows: Rows = []
    for r in range(p):
        w = min(p - 1 - r, m)
        row: list[Slot] = []
        for j in range(w):
            row.append([(r, "F", j)])
        for j in range(m - w):
            row.append([(r, "F", w + j)])
            row.append([(r, "B", j)])
        for j in range(m - w, m):
            row.append([(r, "B", j)])
        rows.append(row)
    return rows


def _dualpipe(p: int, m: int) -> Rows:
    if p % 2 != 0 or m % 2 != 0 or m < 2 * p:
        raise ValueError(f"dualpipe needs p even, m even and m >= 2p; got p = {p}, m = {m}.")
    half = m // 2
    rows: Rows = []
    for r in range(p):
        h = min(r, p - 1 - r)
        # What enters near this rank is its own direction: the first half of the microbatches on the first
        # half of the ranks, the second half on the others.
        own_first, other_first = (0, half) if r < p // 2 else (half, 0)
        rows.append(_dual_row(h, p // 2, half - p + h + 1, (h, own_first), (p - 1 - h, other_first)))
    return rows


def _dualpipev(p: int, m: int) -> Rows:
    if m < 2 * p:
        raise ValueError(f"dualpipev needs m >= 2p; got p = {p}, m = {m}.")
    return [_dual_row(r, p, m - 2 * p + r + 1, (r, 0), (2 * p - 1 - r, 0)) for r in range(p)]


def _dual_row(h: int, H: int, main: int, own: tuple[int, int], other: tuple[int, int]) -> list[Slot]:
    """The eight steps on the rank that is h away from its end, the middle being H - 1 away.

    main: rounds of step 4. own and other: (stage, first microbatch) of direction 0 and of direction 1.
    """
    stages = [own[0], other[0]]
    next_forward = [own[1], other[1]]
    next_backward = [own[1], other[1]]
    weights: list[Action] = []  # W's that wait, first in, first out
    row: list[Slot] = []

    def forward(direction: int) -> Action:
        microbatch = next_forward[direction]
        next_forward[direction] += 1
        return stages[direction], "F", microbatch

    def backward(direction: int) -> Action:
        microbatch = next_backward[direction]
        next_backward[direction] += 1
        return stages[direction], "B", microbatch

    def backward_input(direction: int) -> Action:
        stage, _, microbatch = backward(direction)
        weights.append((stage, "W", microbatch))
        return stage, "I", microbatch

    # Step 1: F0
    for _ in range(2 * (H - h - 1)):
        row.append([forward(0)])
    # Step 2: F0 F1
    for _ in range(h + 1):
        row.append([forward(0)])
        row.append([forward(1)])
    # Step 3: I1 W1 F1
    for _ in range(H - h - 1):
        row.append([backward_input(1)])
        row.append([weights.pop(0)])
        row.append([forward(1)])
    # Step 4: F0&B1 F1&B0; in the middle the very first F0 and B1 are not fused
    for i in range(main):
        if i == 0 and h == H - 1:
            row.append([forward(0)])
            row.append([backward(1)])
        else:
            row.append([forward(0), backward(1)])
        row.append([forward(1), backward(0)])
    # Step 5: B1 F1&B0
    for _ in range(H - h - 1):
        row.append([backward(1)])
        row.append([forward(1), backward(0)])
    # Step 6: B1 B0, from the switch on only their I
    step_6 = backward
    for i in range(h + 1):
        if i == (h + 1) // 2 and h % 2 == 1:
            step_6 = backward_input
        row.append([step_6(1)])
        if i == (h + 1) // 2 and h % 2 == 0:
            step_6 = backward_input
        row.append([step_6(0)])
    # Step 7: W I0
    for _ in range(H - h - 1):
        row.append([weights.pop(0)])
        row.append([backward_input(0)])
    # Step 8: W
    for _ in range(h + 1):
        row.append([weights.pop(0)])
    return row
