"""overlap_comm_compute: what is posted inside has come and gone where the block ends."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import python
from processes import run_processes
from torch import Tensor, nn

import dualpipe_rs as dp

METHODS = ("send", "recv", "recv_anysource", "_end_coalescing")
LARGE = 1 << 18  # so many numbers are not on their way before somebody waits for them
LIMIT = 5.0  # seconds that a second wait of gloo's would last


def tensors(rank: int) -> tuple[Tensor, Tensor]:
    return torch.full((LARGE,), float(rank)), torch.full((LARGE,), -1.0)


def _post_singly(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        dist.isend(out, peer)
        dist.irecv(buffer, peer)
    return buffer


def _post_a_batch(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        ops = [dist.P2POp(dist.isend, out, peer), dist.P2POp(dist.irecv, buffer, peer)]
        dist.batch_isend_irecv(ops)
    return buffer


def _post_from_anybody(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        dist.isend(out, peer)
        dist.irecv(buffer)
    return buffer


def _post_to_a_group(rank: int, peer: int) -> Tensor:
    group = dist.new_group([0, 1])
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        dist.isend(out, peer, group=group)
        dist.irecv(buffer, peer, group=group)
    return buffer


def _wait_inside_and_after(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        sent, received = dist.isend(out, peer), dist.irecv(buffer, peer)
        received.wait()
        assert float(buffer[0]) == peer
    began = time.monotonic()
    for work in (sent, received):
        assert work.wait()
        assert work.is_completed()
    assert time.monotonic() - began < LIMIT
    return buffer


def _block(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    with dp.overlap_comm_compute():
        if rank:
            dist.send(out, peer)
            assert dist.recv(buffer) == peer
        else:
            assert dist.recv(buffer, peer) == peer
            dist.send(out, peer)
    return buffer


def _nest(rank: int, peer: int) -> Tensor:
    out, buffer = tensors(rank)
    inner = torch.full((4,), -1.0)
    with dp.overlap_comm_compute():
        dist.irecv(buffer, peer, tag=1)
        with dp.overlap_comm_compute():
            dist.irecv(inner, peer, tag=2)
            dist.isend(out[:4], peer, tag=2)
        assert inner.tolist() == [float(peer)] * 4  # though the outer block's receive has not come
        dist.isend(out, peer, tag=1)
    return buffer


def _use_it_around_a_function(rank: int, peer: int) -> Tensor:
    @dp.overlap_comm_compute()
    def exchange(out: Tensor, buffer: Tensor) -> Tensor:
        dist.isend(out, peer)
        dist.irecv(buffer, peer)
        return buffer

    return exchange(*tensors(rank))


WAYS = (
    *(_post_singly, _post_a_batch, _post_from_anybody, _post_to_a_group),
    *(_wait_inside_and_after, _block, _nest, _use_it_around_a_function),
)


def _fail(peer: int) -> None:
    with dp.overlap_comm_compute():
        dist.irecv(torch.zeros(4), peer, tag=77)
        raise KeyError("mine")


def _raise(rank: int, peer: int) -> float:
    """How long a block takes to raise whose receive nobody answers; the pair is good for more after it."""
    began = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        _fail(peer)
    took = time.monotonic() - began
    assert float(_post_singly(rank, peer).mean()) == peer
    return took


def _train() -> bool:
    """A whole step of a pipeline, whose own sends and receives are none of the block's."""
    torch.manual_seed(0)
    pipe = dp.DualPipe([nn.Linear(8, 8), nn.Linear(8, 8)])
    with dp.overlap_comm_compute():
        loss, _ = pipe.step(torch.ones(8, 8), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 8))
    return loss is not None


def _body(rank: int) -> dict[str, Any]:
    before = [getattr(dist.ProcessGroup, name) for name in METHODS]
    got = {way.__name__: way(rank, 1 - rank).unique().tolist() for way in WAYS}
    took, trained = _raise(rank, 1 - rank), _train()
    same = [getattr(dist.ProcessGroup, name) for name in METHODS] == before
    return {"got": got, "took": took, "trained": trained, "same": same}


def test_what_is_posted_has_come_where_the_block_ends() -> None:
    for rank, answer in enumerate(run_processes(2, _body, timeout=LIMIT)):
        assert answer["got"] == {way.__name__: [float(1 - rank)] for way in WAYS}
        assert answer["took"] < LIMIT
        assert answer["trained"]
        assert answer["same"], "the methods were not put back"


# ---- Without processes -------------------------------------------------------------------------------------


class Work:
    def __init__(self, waited: list[str], name: str, error: Exception | None = None) -> None:
        self.waited, self.name, self.error = waited, name, error

    def wait(self, *_: Any) -> bool:
        self.waited.append(self.name)
        if self.error is not None:
            raise self.error
        return True


class Group(dist.ProcessGroup):
    """A process group written in Python; like NCCL's, it has no work of what is in a batch but at its end."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(0, 1)
        self.waited: list[str] = []
        self.error = error

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Any:
        return Work(self.waited, f"send {tag}", self.error) if tag else None

    def _end_coalescing(self, device: Any) -> Any:
        return Work(self.waited, "batch")


def test_process_groups_written_in_python_and_batches() -> None:
    group = Group()
    with dp.overlap_comm_compute():
        group.send([], 0, 1)
        assert group.send([], 0, 0) is None
        group._end_coalescing("cpu")
        assert group.waited == []
    assert group.waited == ["send 1", "batch"]
    group.send([], 0, 2)
    assert group.waited == ["send 1", "batch"]


def test_a_block_waits_for_what_its_own_thread_posts() -> None:
    group, opened, posted = Group(), threading.Event(), threading.Event()

    def other() -> None:
        opened.wait(10)
        group.send([], 0, 2)
        posted.set()

    thread = threading.Thread(target=other)
    thread.start()
    with dp.overlap_comm_compute():
        group.send([], 0, 1)
        opened.set()
        assert posted.wait(10)
    thread.join()
    assert group.waited == ["send 1"]


def test_what_a_wait_raises_is_raised_and_all_is_put_back() -> None:
    before = [vars(dist.ProcessGroup)[name] for name in METHODS]
    group = Group(RuntimeError("the peer is gone"))

    def post() -> None:
        with dp.overlap_comm_compute():
            group.send([], 0, 1)

    with pytest.raises(RuntimeError, match="the peer is gone"):
        post()
    assert [vars(dist.ProcessGroup)[name] for name in METHODS] == before


def test_without_torch_the_block_does_nothing() -> None:
    code = """
import sys
sys.modules["torch"] = None
import dualpipe_rs as dp
with dp.overlap_comm_compute():
    print("in")
try:
    with dp.overlap_comm_compute():
        raise KeyError("mine")
except KeyError:
    print("passed")
"""
    answer = python(code)
    assert answer.stdout.split() == ["in", "passed"], answer.stderr
