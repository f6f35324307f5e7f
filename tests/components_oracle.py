"""Fused pairs, slowly and another way than in Rust: over dictionaries, in fractions, without events.

A round computes the start and the end of every part from those of the round before; rounds repeat until
nothing changes. What ends early is right after few rounds, what waits for it after a few more.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

COMMUNICATION = ["combine I", "dispatch F", "dispatch I", "combine F"]
COMPUTATION = ["attention F", "mlp I", "mlp W", "mlp F", "attention I", "attention W"]
PARTS = COMMUNICATION + COMPUTATION
# The parts of a component.
NAMES = {"attention": "FIW", "dispatch": "FI", "mlp": "FIW", "combine": "FI"}
# Forwards go through a layer downwards in this list, backwards upwards.
WAY = ["attention", "dispatch", "mlp", "combine"]

KINDS = {"pair": "FIW", "forward": "F", "backward_input": "I", "backward_weight": "W", "backward": "IW"}

Stage = list[dict[str, Any]]  # by layer: part -> its time
Key = tuple[int, str]  # the how-manieth layer that its direction goes through, part
Spans = dict[Key, tuple[Fraction, Fraction]]


def waits_for(key: Key) -> Key:
    step, part = key
    component, kind = part.split()
    at = WAY.index(component)
    if kind == "W":
        return step, f"{component} I"
    if kind == "F":
        return (step, f"{WAY[at - 1]} F") if at > 0 else (step - 1, "combine F")
    return (step, f"{WAY[at + 1]} I") if at < 3 else (step - 1, "attention I")


def may_run(part: str, done: set[str]) -> bool:
    """Within a layer; what it waits for in another layer has run."""
    step, needed = waits_for((0, part))
    return step < 0 or needed in done


def circular(communication: list[str], computation: list[str]) -> bool:
    """Whether some part of a layer never gets its turn."""
    queues = [list(communication), list(computation)]
    done: set[str] = set()
    while any(queues):
        ready = [queue for queue in queues if queue and may_run(queue[0], done)]
        if not ready:
            return True
        done.update(queue.pop(0) for queue in ready)
    return False


def lay(
    what: str,
    forward: Stage,
    backward: Stage,
    communication: list[str] = COMMUNICATION,
    computation: list[str] = COMPUTATION,
    slowdown: float = 1,
) -> Spans:
    times: dict[Key, Fraction] = {}
    for kind in KINDS[what]:
        layers = forward if kind == "F" else backward[::-1]
        for step, layer in enumerate(layers):
            times.update({(step, part): Fraction(layer[part]) for part in PARTS if part[-1] == kind})
    steps = range(max(len(forward), len(backward)))
    streams = [
        [(n, part) for n in steps for part in order if (n, part) in times]
        for order in (communication, computation)
    ]
    spans: Spans = dict.fromkeys(times, (Fraction(0), Fraction(0)))
    while True:
        before = dict(spans)
        busy = merged([before[key] for key in streams[0]])
        for number, stream in enumerate(streams):
            free = Fraction(0)
            for key in stream:
                start = max(free, before.get(waits_for(key), (0, Fraction(0)))[1])
                alone = number == 0 or slowdown == 1
                free = start + times[key] if alone else slowed(start, times[key], busy, Fraction(slowdown))
                spans[key] = (start, free)
        if spans == before:
            return spans


def merged(spans: list[tuple[Fraction, Fraction]]) -> list[tuple[Fraction, Fraction]]:
    return sorted((start, end) for start, end in spans if end > start)


def slowed(
    start: Fraction, work: Fraction, busy: list[tuple[Fraction, Fraction]], slowdown: Fraction
) -> Fraction:
    """When this much work ends, of which a unit takes `slowdown` in the busy times and 1 between them."""
    now = start
    for since, until in busy:
        if until <= now:
            continue
        if now + work <= since:
            return now + work
        if since > now:
            work -= since - now
            now = since
        if now + work * slowdown <= until:
            return now + work * slowdown
        work -= (until - now) / slowdown
        now = until
    return now + work


def duration(spans: Spans) -> Fraction:
    return max((end for _, end in spans.values()), default=Fraction(0))


def exposed(spans: Spans) -> Fraction:
    """Looks at each piece of time in which nothing starts or ends."""
    edges = sorted({edge for span in spans.values() for edge in span})
    total = Fraction(0)
    for start, end in pairwise(edges):
        runs = {part.split()[0] for (_, part), span in spans.items() if span[0] <= start and end <= span[1]}
        if runs & {"dispatch", "combine"} and not runs & {"attention", "mlp"}:
            total += end - start
    return total


def rows(spans: Spans, backward_layers: int, communication: list[str], computation: list[str]) -> list[Any]:
    """As `Components.lay` gives them."""
    found = []
    for (step, part), (start, end) in spans.items():
        component, kind = part.split()
        own = part in computation
        stream = "computation" if own else "communication"
        place = (step, (computation if own else communication).index(part))
        layer = step if kind == "F" else backward_layers - 1 - step
        found.append(((start, not own, place), (stream, layer, component, kind, start, end)))
    return [row for _, row in sorted(found)]
