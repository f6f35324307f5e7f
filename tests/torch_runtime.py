"""One rank of torch's pipeline runtime over gloo: trains under CSV tables, prints how far gradients are off.

    python torch_runtime.py RANK RANKS STORE_FILE TABLE...

Not a test; test_torch_csv.py starts one process a rank. Each TABLE is a CSV file; a line `name error` is
printed for each, the norm of the difference from the serial gradients over that of the gradients.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

import dualpipe_rs as dp

WIDTH = 4


def main() -> None:
    rank, ranks, store, *tables = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks))
    for table in map(Path, tables):
        print(table.stem, train(table, int(rank)), flush=True)
    dist.destroy_process_group()


def train(table: Path, rank: int) -> float:
    schedule = dp.Schedule.from_torch_csv(table.read_text())
    torch.manual_seed(0)
    model = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(schedule.num_stages)]
    x, y = torch.randn(2, 2 * schedule.num_microbatches, WIDTH, dtype=torch.double)
    reference = serial(copy.deepcopy(model), x, y, schedule.num_microbatches)

    held = schedule.stages_of(rank)
    stages = [PipelineStage(model[s], s, schedule.num_stages, torch.device("cpu")) for s in held]
    runtime = _PipelineScheduleRuntime(
        stages, schedule.num_microbatches, loss_fn=F.mse_loss, scale_grads=False
    )
    runtime._load_csv(str(table), format="compute_only")
    last = schedule.rank_of(schedule.num_stages - 1, 0) == rank
    runtime.step(*[x] if rank == 0 else [], target=y if last else None, return_outputs=False)

    pairs = [
        (p.grad, q.grad)
        for s in held
        for p, q in zip(model[s].parameters(), reference[s].parameters(), strict=True)
    ]
    off = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    return float(off / torch.cat([b.flatten() for _, b in pairs]).norm())


def serial(model: list[nn.Module], x: torch.Tensor, y: torch.Tensor, microbatches: int) -> list[nn.Module]:
    for inputs, targets in zip(x.chunk(microbatches), y.chunk(microbatches), strict=True):
        for stage in model:
            inputs = stage(inputs)
        F.mse_loss(inputs, targets).backward()
    return model


if __name__ == "__main__":
    main()
