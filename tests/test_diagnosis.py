"""Whose fault it was that ranks waited in vain: who is named, from where each rank says it is."""

from __future__ import annotations

import pytest

from dualpipe_rs.distributed.board import Fault, Place
from dualpipe_rs.distributed.diagnosis import diagnosed

MEETS = "begins a step of 1f1b"


def fault(rank: int) -> Fault:
    return Fault(rank, None, None, "rank 1: in vain", fatal=True, reporter=1)


@pytest.mark.parametrize(
    ("away", "named"),
    [({}, 0), ({0: "is outside of any step"}, 0), ({0: MEETS, 2: "computes"}, 2), ({0: MEETS, 2: MEETS}, 1)],
    ids=["silent", "elsewhere", "in a slot", "all there"],
)
def test_who_did_not_come_to_a_meeting_is_named(away, named):
    places = {rank: Place(rank, doing, 1.0) for rank, doing in {1: MEETS, **away}.items()}
    if 0 in away:
        places.setdefault(2, Place(2, MEETS, 1.0))
    error = diagnosed(fault(-1), places, 3)
    assert error.rank == named
    assert f"in vain: rank {named} " in str(error)


def test_ranks_that_wait_are_followed_to_the_one_that_does_not():
    places = {
        1: Place(1, "waits for 0F0 from rank 0", 1.0, waits_for=0),
        0: Place(0, "waits for 2B0 from rank 2", 1.0, waits_for=2),
        2: Place(2, "computes", 9.0, slot=3, action="2F1"),
    }
    error = diagnosed(fault(0), places, 3)
    assert (error.rank, error.slot, error.action) == (2, 3, "2F1")
