"""``python -m dualpipe_rs demo``: a small byte-level transformer trained under a schedule and serially.

All ranks are threads of this process. After each step rank 0 trains the same model serially on the same
batch and compares: what it shows at the end must be the rounding of the arithmetic. It is not a recipe
for training: the model is a toy, and the serial run beside it costs as much as the run itself.
"""

from __future__ import annotations

import argparse
import copy
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

import dualpipe_rs as dp
from dualpipe_rs.errors import UsageError
from dualpipe_rs.partitioning import partition
from dualpipe_rs.pipeline import Pipeline

WIDTH, HEADS, CONTEXT = 64, 4, 64
SEQUENCES = 2  # a microbatch
MOST_BYTES = 4_000_000
#: Per dtype, the greatest relative difference that rounding can explain over a run of this length.
TOLERANCE = {"float64": 1e-9, "float32": 1e-2}


class Embed(nn.Module):
    """Bytes, shape (sequences, context) -> vectors, shape (sequences, context, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.byte(tokens) + self.place(torch.arange(tokens.shape[1]))


class Block(nn.Module):
    """A pre-norm transformer block on vectors of shape (sequences, context, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def run(options: argparse.Namespace) -> int:
    """Trains, prints and compares; returns 0 if the two runs agree to rounding, else 1."""
    if options.steps < 1:
        raise UsageError(f"--steps is {options.steps}; train for at least one step")
    schedule = dp.schedule(options.schedule, options.ranks, options.microbatches)
    schedule.verify()
    text = _read(options.text)
    torch.manual_seed(0)
    layers = [
        Embed(),
        *(Block() for _ in range(schedule.num_stages)),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 256),
    ]
    model = nn.Sequential(*layers).to(getattr(torch, options.dtype))
    unit = schedule.simulate()
    print(
        f"{options.schedule}: {schedule.num_stages} stages on {schedule.num_ranks} ranks, verified. ", end=""
    )
    print("One row a rank, F I W B of each microbatch; small letters: the rank's second stage.")
    print(unit.grid(_columns()), "\n")
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(text)} bytes of text, {options.dtype}"
    )

    result = _train(schedule, model, text, options)
    _print_bubbles(schedule, unit, result.timeline)
    print(
        f"greatest difference from serial training over {options.steps} steps: loss {result.worst_loss:.1e}, "
        f"gradients {result.worst_gradient:.1e} of their norm"
    )
    return 0 if max(result.worst_loss, result.worst_gradient) <= TOLERANCE[options.dtype] else 1


@dataclass
class Result:
    """What rank 0 found."""

    worst_loss: float = 0.0
    worst_gradient: float = 0.0
    timeline: Any = None


def _train(schedule: dp.Schedule, model: nn.Sequential, text: Tensor, options: argparse.Namespace) -> Result:
    def rank_main(group: dp.LocalGroup) -> Result:
        stages = schedule.stages_of(group.rank())
        pieces = partition(copy.deepcopy(model), schedule.num_stages)
        pipe = Pipeline([pieces[stage] for stage in stages], schedule, process_group=group)
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
        reference = _Serial(model, schedule.num_microbatches) if group.rank() == 0 else None
        result = Result()
        batches = _batches(text, schedule.num_microbatches, options.steps)
        progress = tqdm(batches, total=options.steps, desc="training", disable=reference is None)
        for step, (tokens, targets) in enumerate(progress):
            loss, _ = pipe.step(
                _at(schedule, pipe.rank, 0, tokens),
                criterion=_criterion(schedule.num_microbatches),
                labels=_at(schedule, pipe.rank, schedule.num_stages - 1, targets),
            )
            pipe.sync_gradients()
            found = group.exchange((loss, {stage: _gradients(pieces[stage]) for stage in stages}))
            if reference is not None:
                _compare(reference, found, tokens, targets, result, f"step {step + 1:3}", progress)
            group.exchange(None)  # The gradients are read; the optimizer may go on.
            optimizer.step()
            optimizer.zero_grad()
        result.timeline = pipe.timeline
        return result

    return dp.run_local(rank_main, schedule.num_ranks, interleaved=options.interleaved)[0]


class _Serial:
    """The same model trained in one piece, microbatch after microbatch."""

    def __init__(self, model: nn.Sequential, microbatches: int) -> None:
        self.model = copy.deepcopy(model)
        self.microbatches = microbatches
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def gradients(self, tokens: Tensor, targets: Tensor) -> tuple[float, list[Tensor]]:
        self.optimizer.zero_grad()
        criterion = _criterion(self.microbatches)
        losses = []
        for x, y in zip(tokens.chunk(self.microbatches), targets.chunk(self.microbatches), strict=True):
            loss = criterion(self.model(x), y)
            loss.backward()
            losses.append(loss.item())
        return sum(losses), _gradients(self.model)


def _compare(
    reference: _Serial,
    found: list[Any],
    tokens: Tensor,
    targets: Tensor,
    result: Result,
    label: str,
    progress: Any,
) -> None:
    """Trains the serial model on the same batch and notes the greatest differences."""
    loss = sum(float(losses.sum()) for losses, _ in found if losses is not None)
    by_stage = {stage: grads for _, held in found for stage, grads in held.items()}
    piped = [grad for stage in sorted(by_stage) for grad in by_stage[stage]]
    serial_loss, serial = reference.gradients(tokens, targets)
    off = torch.cat([(a - b).flatten() for a, b in zip(piped, serial, strict=True)]).norm()
    norm = torch.cat([b.flatten() for b in serial]).norm()
    result.worst_gradient = max(result.worst_gradient, float(off / norm))
    result.worst_loss = max(result.worst_loss, abs(loss - serial_loss))
    reference.optimizer.step()
    progress.set_postfix_str(f"loss {loss:.4f}, serial {serial_loss:.4f}")
    if progress.n % 10 == 0:
        progress.write(f"{label}   loss {loss:.12f}   serial {serial_loss:.12f}")


def _gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def _criterion(microbatches: int) -> Any:
    """The mean over the batch, since the losses of the microbatches are summed."""
    return lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()) / microbatches


def _at(schedule: dp.Schedule, rank: int, stage: int, batch: Tensor) -> Tensor | None:
    """The part of the batch whose microbatches pass ``stage`` on ``rank``."""
    parts = batch.chunk(schedule.num_microbatches)
    here = [part for m, part in enumerate(parts) if schedule.rank_of(stage, m) == rank]
    return torch.cat(here) if here else None


def _batches(text: Tensor, microbatches: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes and the bytes that follow them, each of shape (sequences, context); the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (microbatches * SEQUENCES,), generator=generator)
        windows = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
        yield windows[:, :-1], windows[:, 1:]


def _read(path: str | None) -> Tensor:
    """A file's bytes, or those of the standard library's modules, in the order of their names."""
    if path is not None:
        content = Path(path).read_bytes()
    else:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        content = b"".join(file.read_bytes() for file in files)
    content = content[:MOST_BYTES]
    if len(content) <= CONTEXT + 1:
        raise UsageError(f"the text has {len(content)} bytes; training takes more than {CONTEXT + 1}")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 140


def _print_bubbles(schedule: dp.Schedule, unit: dp.Timeline, measured: dp.Timeline) -> None:
    fitted = schedule.simulate(_measured_costs(measured, schedule.num_stages))
    lines = [
        ("predicted at unit costs", unit, "F = I = W = 1, a pair 3, hops 0"),
        ("predicted at measured costs", fitted, "CPU time of the last step, a core a rank"),
        ("measured by the clock", measured, "the last step"),
    ]
    print()
    for how, timeline, note in lines:
        print(f"bubble {how:28}{timeline.bubble_ratio:6.1%}  {note}")
    cores, ranks = os.cpu_count() or 1, schedule.num_ranks
    if ranks > cores:
        used = _cpu_time(measured)[_opens_slot(measured.spans)].sum() / (measured.makespan * cores)
        print(
            f"  {ranks} ranks share {cores} cores here: a rank's clock runs on while it waits for a core, so"
        )
        print(
            f"  the last two figures do not compare. In that step the cores computed {used:.0%} of the time."
        )


def _cpu_time(timeline: dp.Timeline) -> np.ndarray:
    assert timeline.cpu_time is not None, "a measured timeline has CPU times"
    return timeline.cpu_time


def _opens_slot(spans: np.ndarray) -> np.ndarray:
    """Marks the first span of each slot: a pair is two."""
    same = (spans["rank"][1:] == spans["rank"][:-1]) & (spans["slot"][1:] == spans["slot"][:-1])
    return np.concatenate([[True], ~same])


def _measured_costs(timeline: dp.Timeline, stages: int) -> dp.Costs:
    """The mean CPU time of each kind by stage, and of a pair."""
    spans, cpu, first = timeline.spans, _cpu_time(timeline), _opens_slot(timeline.spans)
    paired = np.concatenate([~first[1:], [False]]) & first
    lone = first & ~paired

    def mean(kind: str, stage: int) -> float:
        of = cpu[lone & (spans["kind"] == kind) & (spans["stage"] == stage)]
        return float(of.mean()) if len(of) else 0.0  # A price that this schedule never asks for.

    forward, inputs, weight, full = ([mean(kind, stage) for stage in range(stages)] for kind in "FIWB")
    overlap = float(cpu[paired].mean()) if paired.any() else None
    return dp.Costs(forward, inputs, weight, backward=full, overlap=overlap)
