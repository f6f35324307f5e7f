"""Ranks that fail, in processes: all others are told who and where, in time, and what can go on is right.

Trials are drawn by number (faults.py): two of each kind, fifty of each with LONG=1. Nothing here measures
speed: a deadline is far beyond what is needed, and no test sleeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import LONG
from faults import ALIVE, ENDED, KINDS, Report, Seen, Trial, run_trial, trial, trial_at
from processes import Job
from training import Outcome, data_for, serial, stages_for

TOLERANCE = 1e-12
#: What a noisy machine may take beyond the timeout, in seconds.
GRACE = 20.0
#: Jobs at a time: most of a trial is starting and waiting.
AT_ONCE = 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_fails(kind: str) -> None:
    check([trial(kind, number) for number in range(50 if LONG else 2)])


def test_those_that_wait_for_others_are_not_blamed() -> None:
    """Where three wait for each other in a row, or all wait together, for the one that is silent."""
    check(
        [
            trial_at("absent", "1f1b", 4, 4, 2, None, "parent"),
            trial_at("absent", "dualpipe", 4, 8, 1, None, "file"),
            trial_at("stall", "gpipe", 4, 4, 3, "3F0", "parent"),
            trial_at("stall", "gpipe", 4, 2, 1, "1B1", "file"),
            trial_at("stall", "zb-h1", 4, 4, 2, "2W3", "parent"),
            trial_at("stop", "gpipe", 4, 4, 0, "0F1", "rank 0"),
            trial_at("kill", "gpipe", 4, 4, 3, "3F0", "rank 0"),
        ]
    )


def check(trials: Iterable[Trial]) -> None:
    """Runs trials, some at a time, and raises for all that went wrong."""
    wrong = [f"{trial}: {said}" for trial, said in verdicts(trials) if said]
    assert not wrong, "\n\n".join(wrong)


def verdicts(trials: Iterable[Trial]) -> Iterator[tuple[Trial, str]]:
    """What is wrong with each trial, or nothing. From one thread: the starting of processes is not safe in
    several."""
    running: deque[tuple[Trial, Job]] = deque()
    try:
        for trial in trials:
            running.append((trial, Job(trial.ranks, run_trial, trial, store=trial.store)))
            if len(running) == AT_ONCE:
                yield verdict(*running.popleft())
        while running:
            yield verdict(*running.popleft())
    finally:
        for _, job in running:
            job.kill()


def verdict(trial: Trial, job: Job) -> tuple[Trial, str]:
    try:
        with job:
            check_trial(trial, job)
    except (AssertionError, TimeoutError) as error:
        return trial, str(error) or repr(error)
    return trial, ""


def check_trial(trial: Trial, job: Job) -> None:
    others = set(range(trial.ranks)) - trial.lost
    results = job.results(others)
    codes = job.leave(others)
    check_gone(job)
    assert [codes[rank] for rank in others] == [0] * len(others), codes
    if trial.kind in ENDED:
        assert codes[trial.rank] == -9, codes
    for rank in others:
        assert isinstance(results[rank], Report), results[rank]
        check_failed(trial, rank, results[rank].failed)
    if trial.kind in ALIVE:
        check_next_step(trial, results)
        return
    for rank in others:
        check_lost(trial, results[rank].again)


def check_gone(job: Job) -> None:
    """No process of the job is left."""
    for process in job.processes:
        assert process.exitcode is not None
        assert not Path(f"/proc/{process.pid}").exists()


def check_failed(trial: Trial, rank: int, failed: Seen) -> None:
    """One rank's exception says who failed, and where, in time."""
    assert failed.seconds < (GRACE if trial.kind in (*ALIVE, *ENDED) else trial.timeout + GRACE), failed
    if rank == trial.rank and trial.kind in ("ctrl-c", "before"):
        assert failed.name == {"ctrl-c": "KeyboardInterrupt", "before": "UsageError"}[trial.kind], failed
        return
    assert failed.name == "RankError", failed
    assert failed.rank == trial.rank, failed
    assert f"rank {trial.rank}" in failed.message, failed
    if trial.kind in ("exception", "backward", "criterion", "shape", "stall"):
        assert (failed.slot, failed.action) == (trial.slot, trial.cell), failed
        assert f"slot {trial.slot}, {trial.cell}" in failed.message, failed
    if trial.kind in ("exception", "backward", "criterion"):
        assert "Planned" in failed.message + failed.cause, failed
        assert "as planned" in failed.cause, failed
    if trial.kind in ENDED or trial.kind == "stop":
        assert f"rank {trial.rank} does not answer" in failed.message, failed
    if trial.kind == "absent":
        assert f"rank {trial.rank} is outside of any step" in failed.message, failed


def check_next_step(trial: Trial, results: list[Report]) -> None:
    """Nothing is left of the step that failed, and the next one's gradients are the serial ones."""
    schedule = trial.schedule
    held: dict[int, Any] = {}
    for rank, report in enumerate(results):
        assert report.is_clean, f"rank {rank} has gradients after the failure"
        held |= report.gradients
    expected = serial(stages_for(schedule), data_for(schedule))
    outcome = Outcome(expected.losses, [held[stage] for stage in range(schedule.num_stages)])
    assert outcome.off_from(expected)[1] <= TOLERANCE


def check_lost(trial: Trial, again: Seen) -> None:
    """The next step raises at once, and says what to do."""
    assert (again.name, again.rank) == ("RankError", trial.rank), again
    assert "start its processes anew" in again.message, again
    assert again.seconds < GRACE, again
