"""Checkpoints where each rank is a process: from four to two to none, as if never interrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpointing import (
    adamw,
    begin_pipe,
    build,
    loaded,
    make_pipe,
    plain,
    resume_pipe,
    resume_serially,
    sharded,
)
from processes import Job

BEFORE, MIDDLE, AFTER = range(3), range(3, 6), range(6, 9)
EQUAL = 1e-12


def begin(rank: int, make: Any, tied: bool) -> tuple[bytes, list[float]]:
    both = range(MIDDLE.start, AFTER.stop)
    return begin_pipe(dist.group.WORLD, "dualpipe", build(tied=tied), BEFORE, both, make)


def resume(rank: int, family: str, content: bytes, make: Any, tied: bool) -> tuple[bytes, list[float]]:
    return resume_pipe(dist.group.WORLD, family, content, MIDDLE, make, tied=tied)


def results_of(*job: Any) -> list[Any]:
    with Job(*job) as started:
        results = started.results()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.filterwarnings("ignore:one parameter is shared by stages")
@pytest.mark.parametrize(
    ("make", "serially", "tied"), [(adamw, adamw, False), (sharded, plain, True)], ids=["adamw", "zero1-tied"]
)
def test_from_four_processes_to_two_to_one(make, serially, tied):
    content, expected = results_of(4, begin, make, tied)[0]
    assert resume_serially(content, MIDDLE, serially, tied=tied) == pytest.approx(
        expected[: len(MIDDLE)], rel=EQUAL, abs=0
    )
    results = results_of(2, resume, "dualpipev", content, make, tied)
    assert results[0][1] == results[1][1] == pytest.approx(expected[: len(MIDDLE)], rel=EQUAL, abs=0)
    first, second = (loaded(content) for content, _ in results)
    assert list(first["model"]) == list(second["model"]) == list(build(tied=tied).state_dict())
    losses = resume_serially(results[0][0], AFTER, serially, tied=tied)
    assert losses == pytest.approx(expected[len(MIDDLE) :], rel=EQUAL, abs=0)


def two_pipelines(rank: int) -> tuple[bytes, list[float], set[str]]:
    """Two DualPipes, 0-1 and 2-3, data-parallel replicas on the same data; no rank has more than a part."""
    pipelines = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    held: set[str] = set()

    def make(pipe: Any) -> Any:
        optimizer = sharded(pipe)
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        held.update(name for name, p in pipe.local_state_dict(keep_vars=True).items() if id(p) in stepped)
        return optimizer

    both = range(MIDDLE.start, AFTER.stop)
    options = {"data_parallel_group": replicas[rank % 2]}
    group = pipelines[rank // 2]
    return *begin_pipe(group, "dualpipe", build(), BEFORE, both, make, **options), held


def test_state_that_data_parallel_replicas_share_among_them():
    results = results_of(4, two_pipelines)
    names = {name for name, _ in build().named_parameters()}
    shares = [held for _, _, held in results]
    assert set().union(*shares) == names
    assert sum(map(len, shares)) == len(names)
    for content, losses, _ in results:
        state = loaded(content)["optimizer"]
        assert state["state"].keys() == set(state["param_groups"][0]["params"]) == names
        assert losses == pytest.approx(results[0][1], rel=EQUAL, abs=0)
    going_on = range(MIDDLE.start, AFTER.stop)
    assert resume_serially(results[3][0], going_on, plain) == pytest.approx(results[0][1], rel=EQUAL, abs=0)


def save_shares(rank: int, family: str, folder: str) -> None:
    pipe, _ = make_pipe(build(), family, dist.group.WORLD)
    dcp.save(pipe.local_state_dict(), checkpoint_id=folder)


def load_shares(rank: int, family: str, folder: str) -> dict[str, Any]:
    pipe, _ = make_pipe(build(seed=1), family, dist.group.WORLD)
    dcp.load(pipe.local_state_dict(), checkpoint_id=folder)  # In place: into the parameters themselves.
    return {name: tensor.clone() for name, tensor in pipe.local_state_dict().items()}


@pytest.mark.parametrize(("before", "after"), [("1f1b", "dualpipe"), ("dualpipe", "dualpipev")])
def test_shares_go_through_torch_distributed_checkpoint(before, after, tmp_path):
    results_of(2, save_shares, before, str(tmp_path))
    found = {
        name: t for share in results_of(2, load_shares, after, str(tmp_path)) for name, t in share.items()
    }
    expected = build().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
