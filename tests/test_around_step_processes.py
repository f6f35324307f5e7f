"""Copies on ranks that are processes: pairs, data-parallel replicas, ties, ZeRO-1 between them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from spawned import Members, run_processes
from torch import nn

import dualpipe_rs as dp
from dualpipe_rs.replicas import Replicas
from dualpipe_rs.replicas.clipping import clip_grad_norm_
from dualpipe_rs.replicas.ties import ties_of


def stage(index, seed):
    torch.manual_seed(10 * seed + index)
    return nn.Sequential(nn.Linear(3, 3 + index), nn.BatchNorm1d(3 + index)).double()


def gradient(rank, stage, index, like):
    """What a rank's microbatches would have given; one parameter of stage 1 has none on global rank 0."""
    if (rank, stage, index) == (0, 1, 3):
        return None
    generator = torch.Generator().manual_seed(100 * rank + 10 * stage + index)
    return torch.rand(like.shape, generator=generator, dtype=like.dtype)


def two_by_two(rank):
    """Two DualPipes of two ranks, 0-1 and 2-3, which are replicas of each other. Returns what was found."""
    pipelines = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group = Members([0, 1] if rank < 2 else [2, 3])
    if rank == 3:  # This process has made more groups than the others.
        dist.new_group([3], backend="gloo", use_local_synchronization=True)
    member = group.rank()
    stages = {index: stage(index, seed=rank) for index in (member, 1 - member)}
    replicas = Replicas(group, member, lambda: stages, {}, pipelines[member])
    replicas.before_training()
    replicas.assert_equal()
    found = {"start": {index: copy.deepcopy(module.state_dict()) for index, module in stages.items()}}
    for index, module in stages.items():
        for number, p in enumerate(module.parameters()):
            p.grad = gradient(rank, index, number, p)
    replicas.sum_gradients()
    found["grads"] = {i: [p.grad.clone() for p in module.parameters()] for i, module in stages.items()}
    found["norm"] = clip_grad_norm_(group, replicas.layout, 1e9, 2.0, False)
    optimizer = replicas.zero1(torch.optim.AdamW, None, {"lr": 0.1})
    optimizer.step()
    replicas.assert_equal()
    found["kept"] = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    found["end"] = {i: [p.detach().clone() for p in module.parameters()] for i, module in stages.items()}
    found["anywhere"] = replicas.anywhere(rank == 3, "asks"), replicas.anywhere(False, "asks")
    if rank == 2:
        with torch.no_grad():
            stages[1][0].bias[0] += 1e-15
    with pytest.raises(dp.UsageError, match=r"parameter '0.bias' of stage 1 differs between ranks 0 and 2"):
        replicas.assert_equal()
    return found


def test_two_replicas_of_a_dualpipe_of_two_ranks():
    ranks = run_processes(two_by_two, 4)
    for found in ranks:
        assert found["anywhere"] == (True, False)
        assert torch.equal(found["norm"], ranks[0]["norm"])
    squares = 0.0
    for index in (0, 1):
        start = [found["start"][index] for found in ranks]
        expected = stage(index, seed=0).state_dict()
        for state in start:
            assert all(torch.equal(state[name], expected[name]) for name in expected)
        model = stage(index, seed=0)
        for number, p in enumerate(model.parameters()):
            parts = [gradient(rank, index, number, p) for rank in range(4)]
            p.grad = sum(part for part in parts if part is not None) / 2  # a pair's sum, a replicas' mean
            squares += float(p.grad.square().sum())
            for found in ranks:
                assert torch.allclose(found["grads"][index][number], p.grad, rtol=1e-15, atol=1e-15)
                assert torch.equal(found["grads"][index][number], ranks[0]["grads"][index][number])
        torch.optim.AdamW(model.parameters(), lr=0.1).step()
        for number, p in enumerate(model.parameters()):
            for found in ranks:
                assert torch.allclose(found["end"][index][number], p, rtol=1e-12, atol=1e-15)
                assert torch.equal(found["end"][index][number], ranks[0]["end"][index][number])
    assert float(ranks[0]["norm"]) == pytest.approx(squares**0.5, rel=1e-12)
    sizes = [sum(p.numel() for p in stage(index, 0).parameters()) for index in (0, 1)]
    kept = [found["kept"] for found in ranks]
    assert sum(kept) == sum(sizes)  # each state once
    assert max(kept) - min(kept) <= 12


def tied_between_some(rank):
    """A linear pipeline of four processes; one tie of ranks 0 and 3, one of 1 and 3."""
    group = Members([0, 1, 2, 3])
    module = nn.ParameterDict({name: torch.full((2,), float(rank)) for name in ("a", "b", "own")})
    names = {0: ["a"], 1: ["b"], 2: [], 3: ["a", "b"]}[rank]
    ties = ties_of({rank: module}, {name: module[name] for name in names})
    replicas = Replicas(group, rank, lambda: {rank: module}, ties, None)
    replicas.before_training()
    for p in module.values():
        p.grad = torch.full((2,), float(rank + 1))
    replicas.sum_gradients()
    norm = float(clip_grad_norm_(group, replicas.layout, 1e9, 1.0, False))
    values = {name: (float(p[0]), float(p.grad[0])) for name, p in module.items()}
    optimizer = replicas.zero1(torch.optim.SGD, None, {"lr": 1.0})
    optimizer.step()
    replicas.assert_equal()
    return values, norm, {name: float(p[0]) for name, p in module.items()}


def test_ties_between_some_of_four_processes():
    (first, norm, end0), (second, *_), (third, *_), (fourth, _, end3) = run_processes(tied_between_some, 4)
    assert first == {"a": (0.0, 1.0 + 4.0), "b": (0.0, 1.0), "own": (0.0, 1.0)}
    assert second == {"a": (1.0, 2.0), "b": (1.0, 2.0 + 4.0), "own": (1.0, 2.0)}
    assert third == {"a": (2.0, 3.0), "b": (2.0, 3.0), "own": (2.0, 3.0)}
    assert fourth == {"a": (0.0, 5.0), "b": (1.0, 6.0), "own": (3.0, 4.0)}
    assert norm == pytest.approx(2 * (5 + 6 + 1 + 1 + 2 + 2 + 3 + 3 + 3 + 4))
    assert (end0["a"], end3["a"], end3["b"]) == (-5.0, -5.0, -5.0)


def unlike_replicas(rank):
    """Pipelines 0-1 and 2-3 whose data-parallel groups cross: stage 0 of one with stage 1 of the other."""
    crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    group = Members([0, 1] if rank < 2 else [2, 3])
    stages = {group.rank(): stage(group.rank(), seed=rank)}
    replicas = Replicas(group, group.rank(), lambda: stages, {}, crossed[0 if rank in (0, 3) else 1])
    with pytest.raises(dp.UsageError, match="do not find the same holders for their stages"):
        replicas.sum_gradients()


def test_data_parallel_groups_that_do_not_fit_are_refused():
    run_processes(unlike_replicas, 4)
