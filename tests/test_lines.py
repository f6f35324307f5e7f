"""Lines between processes of one host: order, full buffers, broken ends, strangers. No process is started."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from dualpipe_rs.distributed.lines import LIMIT, Lines, Transfer, lay


def pair(timeout: float = 60.0) -> tuple[Lines, Lines]:
    first, second = socket.socketpair(socket.AF_UNIX)
    return Lines({1: first}, timeout), Lines({0: second}, timeout)


def send(ends: Lines, member: int, tensor: Tensor) -> Transfer:
    line = ends.to(member, tensor)
    assert line is not None
    return line.send(tensor)


def receive(ends: Lines, member: int, tensor: Tensor) -> Transfer:
    line = ends.to(member, tensor)
    assert line is not None
    return line.receive(tensor)


def test_tensors_arrive_in_order_however_they_are_waited_for():
    ours, theirs = pair()
    given = [torch.arange(n, dtype=torch.bfloat16) for n in (1, 7, 300)] + [torch.tensor([True, False])]
    got = [torch.empty_like(t) for t in given]
    works = [receive(theirs, 0, t) for t in got]
    sends = [send(ours, 1, t) for t in given]
    works[2].wait()
    assert all(work.is_completed() for work in works[:3])
    works[3].wait()
    for work in sends:
        work.wait()
    assert all(map(torch.equal, got, given))


def test_what_does_not_fit_holds_nobody_and_leaves_later():
    ours, theirs = pair()
    given = [torch.full((LIMIT // 8,), float(n), dtype=torch.double) for n in range(200)]
    sends = [send(ours, 1, t) for t in given]  # far more than a socket holds
    assert not sends[-1].is_completed()
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(sends[-1].wait)
        for expected in given:
            got = torch.empty_like(expected)
            receive(theirs, 0, got).wait()
            assert torch.equal(got, expected)
        last.result()


def test_two_that_both_send_more_than_fits_before_they_receive():
    ends = pair()
    given = [torch.full((LIMIT // 8,), float(n), dtype=torch.double) for n in range(100)]

    def end(me: int) -> bool:
        sends = [send(ends[me], 1 - me, t) for t in given]
        got = [torch.empty_like(t) for t in given]
        for work in [receive(ends[me], 1 - me, t) for t in got]:
            work.wait()
        for work in sends:
            work.wait()
        return all(map(torch.equal, got, given))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(end, range(2))) == [True, True]


def test_an_end_that_is_gone_is_noticed_at_once():
    ours, theirs = pair()
    work = receive(ours, 1, torch.empty(4))
    theirs._lines[0].sock.close()  # as the end of its process does
    with pytest.raises(RuntimeError, match="its end of the line is closed"):
        work.wait()


def test_a_wait_ends_when_the_lines_are_cut_by_another_thread():
    ours, _ = pair()
    work = receive(ours, 1, torch.empty(4))
    threading.Timer(0.05, ours.cut).start()
    with pytest.raises(RuntimeError, match="its end of the line is closed"):
        work.wait()


def test_a_wait_in_vain_ends_with_the_timeout():
    ours, _ = pair(timeout=0.01)
    with pytest.raises(RuntimeError, match=r"nothing came within 0\.01 s"):
        receive(ours, 1, torch.empty(4)).wait()


def test_large_tensors_take_no_line():
    ours, _ = pair()
    assert ours.to(1, torch.empty(LIMIT + 1, dtype=torch.uint8)) is None
    assert ours.to(1, torch.empty(LIMIT, dtype=torch.uint8)) is not None
    assert ours.to(2, torch.empty(1)) is None


class Meeting:
    """Members as threads: all hand in an object, and get all."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._table: list = [None] * size

    def exchange(self, member: int, thing: object) -> list:
        self._table[member] = thing
        self._barrier.wait()
        told = list(self._table)
        self._barrier.wait()
        return told


def laid(hosts: list[float], tamper=lambda told: told) -> list[Lines]:
    """The lines between all members, each on a thread."""
    meeting = Meeting(len(hosts))

    def end(member: int) -> Lines:
        peers = [m for m in range(len(hosts)) if m != member]
        return lay(member, peers, hosts[member], lambda o: tamper(meeting.exchange(member, o)), 60.0)

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(end, range(len(hosts))))


def test_lines_are_laid_between_members_on_one_host_alone():
    ends = laid([1.0, 1.0, 2.0, 1.0])
    x = torch.arange(3.0)
    near = [[m for m in range(4) if end.to(m, x) is not None] for end in ends]
    assert near == [[1, 3], [0, 3], [], [0, 1]]
    got = torch.empty(3)
    work = receive(ends[3], 1, got)
    send(ends[1], 3, x)
    work.wait()
    assert torch.equal(got, x)


def test_where_a_member_is_out_of_reach_there_is_no_line():
    def elsewhere(told: list) -> list:
        """As in another network namespace: the names of others lead nowhere."""
        return [(t[0], b"\0nowhere/" + t[1][1:], t[2]) if isinstance(t, tuple) else t for t in told]

    ends = laid([1.0, 1.0], lambda told: told if told[0] == [] else elsewhere(told))
    assert [end.to(1 - m, torch.empty(1)) for m, end in enumerate(ends)] == [None, None]


def test_a_stranger_who_connects_first_is_turned_away():
    meeting, stranger = Meeting(2), socket.socket(socket.AF_UNIX)

    def exchange(member: int, thing: object) -> list:
        told = meeting.exchange(member, thing)
        if member == 0 and isinstance(told[0], tuple):
            stranger.connect(told[0][1])
            stranger.sendall(b"x" * 20)
        return told

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda m: lay(m, [1 - m], 1.0, lambda o: exchange(m, o), 60.0), range(2)))
    x, got = torch.arange(3.0), torch.empty(3)
    work = receive(ends[0], 1, got)
    send(ends[1], 0, x)
    work.wait()
    assert torch.equal(got, x)
    stranger.close()
