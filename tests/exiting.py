"""A rank as a whole Python program, which trains one step and ends as told: no tests here.

``python exiting.py RANK RANKS STORE END ORDER DESTROYS``: STORE is a port (rank 0 holds it), or a path. END
is ``return``, ``exception`` (uncaught, after the step), ``exit`` (``sys.exit(3)`` in a stage of the last
rank) or ``interrupt`` (Ctrl-C there). ORDER says who ends last: ``first`` rank or ``last`` rank, or ``any``.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from faults import Fault, Spot, Training, spots

import dualpipe_rs as dp


class Exiting(Fault):
    def happen(self) -> None:
        if self.kind == "exit":
            sys.exit(3)
        super().happen()


def main(rank: int, ranks: int, where: str, end: str, order: str, destroys: bool) -> None:
    torch.set_num_threads(1)
    if where.isdigit():
        store = dist.TCPStore("127.0.0.1", int(where), is_master=rank == 0, wait_for_workers=False)
    else:
        store = dist.FileStore(where, ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    schedule = dp.schedule("1f1b", ranks, 2 * ranks)
    spot: Spot = [spot for spot in spots(schedule) if spot.rank == ranks - 1][ranks]
    fault = Exiting({"interrupt": "ctrl-c"}.get(end, end), spot.action, is_armed=rank == ranks - 1)
    training = Training(rank, schedule, fault)
    training.step()
    last = {"first": 0, "last": ranks - 1}.get(order)
    if rank == last:  # The others' connections to the store end with them.
        store.wait([f"left {other}" for other in range(ranks) if other != rank])
    elif last is not None:
        store.set(f"left {rank}", "")
        store.get(
            f"left {rank}"
        )  # a set is not waited for, and rank 0 may have the store: it must have got there
    if end == "exception":
        raise ValueError("as planned")
    if destroys:
        dist.destroy_process_group()


if __name__ == "__main__":
    _, rank, ranks, where, end, order, destroys = sys.argv
    main(int(rank), int(ranks), where, end, order, destroys == "True")
