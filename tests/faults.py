"""Ranks that fail where a seed says, in processes, and what each of them then sees: no tests here.

A fault is met inside a stage's forward, backward or weight gradient, in the criterion, or beside the step;
nothing of the package is replaced. What is right is decided by test_faults.py.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from families import FAMILIES
from torch import Tensor, nn
from training import criterion, data_for, gradients, stages_for, step_arguments

import dualpipe_rs as dp

#: Faults after which every process is alive and the next step is to be right.
ALIVE = ("exception", "backward", "criterion", "shape", "before", "ctrl-c")
#: Faults that take a rank away: by its end, or for longer than anybody waits.
ENDED = ("kill",)
SILENT = ("stall", "stop", "absent")
KINDS = ALIVE + ENDED + SILENT

#: How long ranks wait for a silent one, in seconds; for others nobody is to wait, so that waiting shows.
PATIENCE, LONG_PATIENCE = 6.0, 60.0


class Planned(Exception):
    """The fault that a trial asks for."""


@dataclass(frozen=True)
class Trial:
    """One fault: what fails, on which rank, where in the schedule (None: beside the step), in which step."""

    seed: int
    kind: str
    family: str
    ranks: int
    microbatches: int
    rank: int
    slot: int | None
    cell: str | None  # the slot's text
    action: str | None  # the action in it at which the fault is
    step: int
    store: str

    @property
    def schedule(self) -> dp.Schedule:
        return dp.schedule(self.family, self.ranks, self.microbatches)

    @property
    def timeout(self) -> float:
        return PATIENCE if self.kind in SILENT else LONG_PATIENCE

    @property
    def lost(self) -> set[int]:
        """The ranks whose process does not come back."""
        return {self.rank} if self.kind in (*ENDED, "stall", "stop") else set()

    def stays(self, rank: int) -> bool:
        """Whether a rank that has raised stays until all have: its end would tell them, too.

        Where not, rank 0's end takes the store away, if that is its own.
        """
        if self.store == "rank 0" and 0 in self.lost:
            return False
        return self.seed % 2 == 1 or self.kind == "absent"

    def fault(self) -> Fault:
        return Fault(self.kind, self.action)


class Spot(NamedTuple):
    """A place in a schedule where a fault may be."""

    rank: int
    slot: int
    cell: str
    action: str

    def of(self) -> tuple[int, str, int]:
        kind = next(letter for letter in self.action if letter in "FBIW")
        stage, microbatch = self.action.split(kind)
        return int(stage), kind, int(microbatch)


def spots(schedule: dp.Schedule) -> list[Spot]:
    """Every action of every rank, those of a fused pair apart."""
    return [
        Spot(rank, slot, cell, action)
        for rank in range(schedule.num_ranks)
        for slot, cell in enumerate(schedule.rank(rank))
        for action in cell.strip("()").split(";")
    ]


def is_fit(kind: str, schedule: dp.Schedule, spot: Spot) -> bool:
    """Whether a fault of this kind can be at this spot."""
    stage, letter, microbatch = spot.of()
    last = schedule.num_stages - 1
    if kind == "exception":
        return letter == "F"
    if kind == "backward":
        return letter != "F"
    if kind == "criterion":
        return letter == "F" and stage == last
    if kind == "shape":  # seen where it travels to another rank
        return letter == "F" and stage != last and schedule.rank_of(stage + 1, microbatch) != spot.rank
    return True


def trial(kind: str, number: int) -> Trial:
    """The ``number``-th trial of a kind; always the same."""
    rng = random.Random(f"{kind} {number}")
    sizes = [
        (name, ranks, m)
        for name, family in FAMILIES.items()
        for ranks in (2, 3, 4)
        for m in range(2, 10)
        if family.is_legal(ranks, m)
    ]
    family = rng.choice(sorted(FAMILIES))  # each family as often, however many sizes it has
    family, ranks, microbatches = rng.choice([size for size in sizes if size[0] == family])
    schedule = dp.schedule(family, ranks, microbatches)
    rank = rng.choice(sorted({spot.rank for spot in spots(schedule) if is_fit(kind, schedule, spot)}))
    fit = [spot for spot in spots(schedule) if spot.rank == rank and is_fit(kind, schedule, spot)]
    spot: Any = rng.choice(fit)
    if kind in ("before", "absent"):
        spot = Spot(rank, None, None, None)  # type: ignore[arg-type]
    step = rng.choice((1, 2)) if kind == "shape" else rng.choice((0, 1, 2))
    store = rng.choice(("parent", "rank 0", "file"))
    return Trial(number, kind, family, ranks, microbatches, *spot, step, store)


def trial_at(
    kind: str, family: str, ranks: int, microbatches: int, rank: int, action: str | None, store: str
) -> Trial:
    """A trial that is not drawn: in the second step, and all stay until all have raised."""
    here = spots(dp.schedule(family, ranks, microbatches))
    found = [spot for spot in here if (spot.rank, spot.action) == (rank, action)]
    slot, cell = (found[0].slot, found[0].cell) if found else (None, None)
    return Trial(1, kind, family, ranks, microbatches, rank, slot, cell, action, 1, store)


# ---- Stages that fail ------------------------------------------------------------------------------------


@dataclass
class Fault:
    """What is done once an action is reached, if armed."""

    kind: str
    action: str | None
    is_armed: bool = False

    def is_at(self, stage: int, letter: str, microbatch: int) -> bool:
        return self.is_armed and self.action == f"{stage}{letter}{microbatch}"

    def meet(self, stage: int, letter: str, microbatch: int) -> None:
        if self.is_at(stage, letter, microbatch):
            self.happen()

    def happen(self) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.kind == "stall":
            time.sleep(1000)
        elif self.kind == "ctrl-c":
            os.kill(os.getpid(), signal.SIGINT)
        elif self.kind == "exit":
            raise SystemExit(0)
        elif self.kind in ("exception", "backward"):
            raise Planned("as planned")


class _Met(torch.autograd.Function):
    """Changes nothing; meets the fault in the backward, and in the weight gradient if that is apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meet: Callable[[str], None]) -> Tensor:
        ctx.meet = meet
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        meet = ctx.meet
        if dp.WeightGradStore.enabled:
            meet("I")
            dp.WeightGradStore.put(lambda: meet("W"))
        else:
            meet("B")
        return grad, None


class Failing(nn.Module):
    """A stage of training.py's models that meets a fault."""

    def __init__(self, stage: nn.Module, index: int, fault: Fault) -> None:
        super().__init__()
        self.stage, self.index, self.fault = stage, index, fault

    def forward(self, x: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        microbatch = int(number[0])
        self.fault.meet(self.index, "F", microbatch)
        out, number = self.stage(x, number)
        if self.fault.kind == "shape" and self.fault.is_at(self.index, "F", microbatch):
            return torch.cat([out, out]), torch.cat([number, number])
        return _Met.apply(out, lambda kind: self.fault.meet(self.index, kind, microbatch)), number


class Training:
    """One rank's pipeline over stages that meet ``fault``, and its batch."""

    def __init__(self, rank: int, schedule: dp.Schedule, fault: Fault, **options: Any) -> None:
        self.schedule, self.fault = schedule, fault
        self.held = schedule.stages_of(rank)
        stages = stages_for(schedule)
        modules = [Failing(copy.deepcopy(stages[stage]), stage, fault) for stage in self.held]
        self.pipe = dp.Pipeline(modules, schedule, **options)
        self.inputs, self.labels = step_arguments(schedule, data_for(schedule), rank)

    def criterion(self, logits: Tensor, number: Tensor, targets: Tensor) -> Tensor:
        last, microbatch = self.schedule.num_stages - 1, int(number[0])
        if self.fault.kind == "criterion" and self.fault.is_at(last, "F", microbatch):
            raise Planned("as planned")
        return criterion(logits, number, targets)

    def step(self, **keywords: Any) -> Tensor | None:
        loss, _ = self.pipe.step(*self.inputs, criterion=self.criterion, labels=self.labels, **keywords)
        return loss

    def good_step(self) -> dict[int, dict[str, Tensor | None]]:
        """Gradients by stage of a step without a fault."""
        self.fault.is_armed = False
        self.pipe.zero_grad()
        self.step()
        self.pipe.sync_gradients()
        modules: list[Any] = list(self.pipe.module)
        return dict(zip(self.held, gradients([module.stage for module in modules]), strict=True))

    def has_no_gradients(self) -> bool:
        return all(p.grad is None for p in self.pipe.parameters())


# ---- What a rank sees ------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What was raised, by name, and after how long; ``"nothing"`` if nothing was."""

    name: str = "nothing"
    message: str = ""
    seconds: float = 0.0
    rank: int | None = None
    slot: int | None = None
    action: str | None = None
    cause: str = ""


@dataclass
class Report:
    """What one rank saw of a trial."""

    failed: Seen
    again: Seen = field(default_factory=Seen)
    is_clean: bool = True
    gradients: dict[int, dict[str, Tensor | None]] = field(default_factory=dict)


def seen(fn: Callable[[], object]) -> Seen:
    """Calls ``fn`` and tells what it raised."""
    began = time.monotonic()
    try:
        fn()
    except BaseException as error:
        seconds = time.monotonic() - began
        where = (getattr(error, name, None) for name in ("rank", "slot", "action"))
        return Seen(type(error).__name__, str(error), seconds, *where, cause=str(error.__cause__))
    return Seen(seconds=time.monotonic() - began)


def run_trial(rank: int, trial: Trial) -> Report:
    """One rank of a trial: good steps, the step that fails, and one more."""
    fault = trial.fault() if rank == trial.rank else Fault("none", None)
    # What the first step of a process takes longer for is done before the timeout may be a short one.
    Training(rank, trial.schedule, Fault("none", None), timeout=LONG_PATIENCE).good_step()
    dist.barrier()
    training = Training(rank, trial.schedule, fault, timeout=trial.timeout)
    for _ in range(trial.step):
        training.good_step()
    training.pipe.zero_grad()
    fault.is_armed = True
    report = Report(seen(lambda: _failing_step(training, rank, trial)))
    if trial.kind in ALIVE:
        report.is_clean = training.has_no_gradients()
        report.gradients = training.good_step()
        return report
    report.again = seen(training.step)
    if trial.stays(rank):
        meet_by_store(rank, {*range(trial.ranks)} - trial.lost)
    return report


def meet_by_store(rank: int, those: set[int]) -> None:
    """Waits until all of those have come here. Rank 0, whose the store may be, leaves last."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"told {rank}", "")
    store.wait([f"told {other}" for other in those])
    store.set(f"read {rank}", "")
    if rank == 0:
        store.wait([f"read {other}" for other in those])


def _failing_step(training: Training, rank: int, trial: Trial) -> None:
    if rank == trial.rank and trial.kind == "before":
        training.step(num_chunks=trial.microbatches + 1)
    elif rank == trial.rank and trial.kind == "absent":
        # It comes once all others have given up.
        others = [f"told {other}" for other in range(trial.ranks) if other != rank]
        dist.distributed_c10d._get_default_store().wait(others)
        training.step()
    else:
        training.step()
