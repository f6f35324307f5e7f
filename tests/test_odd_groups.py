"""Pipelines over process groups that are not the whole job, and several over one: each trains as serially."""

from __future__ import annotations

import torch.distributed as dist
from odd import Rank, data_of, rank_of, serially
from processes import run_processes
from torch.distributed.device_mesh import init_device_mesh

import dualpipe_rs as dp

EQUAL = 1e-12
SCHEDULES = [("dualpipe", 2, 4), ("zb-v", 2, 4), ("1f1b", 2, 3)]


def train_once(rank: Rank, seed: int = 2) -> None:
    data = data_of(rank.schedule.num_microbatches, seed)
    found, expected = rank.train(data), serially(rank.name, rank.schedule.num_stages, data)
    expected.gradients = {stage: expected.gradients[stage] for stage in found.gradients}
    assert found.off(expected) <= EQUAL


def _part_of_the_job(number: int) -> None:
    """Ranks 1 and 3 of 4 alone; then both rows of a mesh at once; then all, in reverse."""
    odd = dist.new_group([1, 3])
    if number in (1, 3):
        for sizes in SCHEDULES:
            rank = rank_of(odd, "OddShapes", dp.schedule(*sizes))
            for _ in range(2):
                train_once(rank)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    for sizes in SCHEDULES:
        for given in (mesh["pp"], mesh.get_group("pp")):
            rank = rank_of(
                given, "ManyTypes", dp.schedule(*sizes), rank=mesh.get_local_rank("pp"), p2p="batched"
            )
            train_once(rank, seed=mesh.get_local_rank("dp"))
    for sizes in (("dualpipe", 4, 8), ("dualpipev", 4, 8), ("zb-h1", 4, 5)):
        mapping = [3, 2, 1, 0]
        rank = rank_of(
            None, "Unused", dp.schedule(*sizes), rank=mapping[number], rank_mapping=mapping, p2p="rendezvous"
        )
        assert rank.pipe.rank == mapping[number]
        train_once(rank)


def test_subgroups_meshes_and_mappings():
    run_processes(4, _part_of_the_job, timeout=30.0)


def _side_by_side(number: int) -> None:
    """Pipelines over one process group, used in turn, some of them the other way round."""
    ranks = [rank_of(None, "LengthsDiffer", dp.schedule(*sizes)) for sizes in SCHEDULES]
    ranks += [
        rank_of(None, "Twice", dp.schedule(*sizes), rank=1 - number, rank_mapping=[1, 0], measure=False)
        for sizes in SCHEDULES
    ]
    for turn in range(3):
        for rank in ranks[:: -1 if turn % 2 else 1]:
            train_once(rank, seed=turn)
    assert [rank.pipe.timeline is None for rank in ranks] == [False] * 3 + [True] * 3


def test_pipelines_over_one_process_group_in_turn():
    run_processes(2, _side_by_side)
