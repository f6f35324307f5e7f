"""Throws broken schedules at the readers and the verifier, for as long as it is told.

    python fuzz/fuzz.py [text|csv|verify ...] [--minutes 10] [--seed 0]

Every input must end in a schedule or in a dualpipe_rs.Error: anything else (a panic, another exception, more
than 20 seconds, more than 2 GiB) stops it, with the input kept in fuzz/corpus/, which each run tries first.
It is no proof and no part of `make test`; `make fuzz` runs it.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import dualpipe_rs as dp

CORPUS = Path(__file__).parent / "corpus"
BITS = [
    "F",
    "I",
    "W",
    "B",
    "(",
    ")",
    ";",
    ",",
    "0",
    "1",
    "9",
    "4294967296",
    "65536",
    " ",
    "\n",
    "#",
    "=",
    "-",
]
BITS += [
    "OVERLAP_F_B",
    "ranks=",
    "stages=",
    "microbatches=999999999",
    "forward_only=true",
    "\ufeff",
    "é",
    "\0",
]
SIZES = [(1, 2), (2, 4), (2, 6), (3, 6), (4, 8)]


def seeds(write: Callable[[dp.Schedule], str]) -> list[str]:
    """Every family at small sizes, as text."""
    found = []
    for name in dp.schedule_names():
        for size in SIZES:
            try:
                found.append(write(dp.schedule(name, *size)))
            except dp.UsageError:
                continue
    return found


def mutate(text: str, rng: random.Random) -> str:
    """One to five small changes: characters, words and rows dropped, doubled, exchanged or made up."""
    for _ in range(rng.randint(1, 5)):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        to = min(to, at + rng.choice([1, 4, 40]))
        change = rng.randrange(5)
        if change == 0:
            text = text[:at] + text[to:]
        elif change == 1:
            text = text[:to] + text[at:to] * rng.randint(1, 3) + text[to:]
        elif change == 2:
            text = text[:at] + rng.choice(BITS) + text[at:]
        else:
            separator = rng.choice([" ", "\n", ",", ";"])
            words = text.split(separator)
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            if change == 3:
                words[i], words[j] = words[j], words[i]
            else:
                words[i] = words[j]
            text = separator.join(words)
    return text


def read_text(text: str) -> None:
    schedule = dp.Schedule.from_text(text)
    assert dp.Schedule.from_text(schedule.to_text()) == schedule


def read_csv(text: str) -> None:
    schedule = dp.Schedule.from_torch_csv(text)
    again = dp.Schedule.from_torch_csv(schedule.to_torch_csv(), placement=schedule.placement)
    assert again == schedule


def verify(text: str) -> None:
    """What is verified can be lowered, simulated and drawn."""
    schedule = dp.Schedule.from_text(text)
    schedule.verify(max_activations=1 << 20)
    schedule.verify(p2p="rendezvous", depth=schedule.rendezvous_depth())
    schedule.verify(p2p="batched")
    str(schedule.simulate())
    schedule.verify(p2p="blocking")


TARGETS = {
    "text": (read_text, dp.Schedule.to_text),
    "csv": (read_csv, lambda s: "" if s.placement == "bidirectional" else s.to_torch_csv()),
    "verify": (verify, dp.Schedule.to_text),
}


def fuzz(name: str, minutes: float, seed: int) -> None:
    target, write = TARGETS[name]
    rng = random.Random(f"{name} {seed}")
    pool = seeds(write)
    kept = [path.read_text() for path in sorted(CORPUS.glob(f"{name}-*"))]
    end, runs, passed = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < end or kept:
        text = kept.pop() if kept else mutate(rng.choice(pool), rng)
        runs += 1
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            target(text)
            passed += 1
        except dp.Error:
            pass
        except BaseException:
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            (CORPUS / f"{name}-{digest}").write_text(text)
            raise
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {runs} inputs in {minutes:g} minutes, {passed} of them good; no panic, no hang")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="text, csv or verify; all where none is named"
    )
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    CORPUS.mkdir(exist_ok=True)
    for name in arguments.targets or TARGETS:
        fuzz(name, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    main()
