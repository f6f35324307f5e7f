"""Whose fault it was when a rank did not answer, in words.

Ranks that wait for each other are followed from the one that gave up to the one that waits for nobody: it is
in a slot, or outside of any step, or does not answer at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from dualpipe_rs.distributed.board import Fault, Place
from dualpipe_rs.errors import RankError


def diagnosed(fault: Fault, places: Mapping[int, Place], size: int) -> RankError:
    """The error for a lost rank.

    Args:
        fault: what the first that gave up has said.
        places: where each rank is that has answered, by its number in the schedule.
        size: how many ranks there are.
    """
    culprit = _culprit(fault, places, size)
    place = places.get(culprit)
    message = f"{fault.message}: rank {culprit} {_told(place)}. Where all ranks are:"
    message += "".join(f"\n  rank {rank} {_told(places.get(rank))}" for rank in range(size))
    if place is None:
        awaited = [place.tensor for place in places.values() if place.waits_for == culprit]
        return RankError(message, culprit, None, awaited[0] if awaited else None)
    return RankError(message, culprit, place.slot, place.action)


def _culprit(fault: Fault, places: Mapping[int, Place], size: int) -> int:
    """The rank at the end of the chain of those who wait, from the one that was waited for."""
    rank, seen = fault.rank, {fault.reporter}
    if rank < 0:
        return _absent(fault, places, size)
    while rank in places and rank not in seen:
        seen.add(rank)
        waits_for = places[rank].waits_for
        if waits_for is None or waits_for in seen:
            break
        rank = waits_for
    return rank


def _absent(fault: Fault, places: Mapping[int, Place], size: int) -> int:
    """Where all meet nobody in particular is waited for: a rank that is silent, or else at something else."""
    silent = [rank for rank in range(size) if rank not in places]
    met = places.get(fault.reporter)
    elsewhere = [rank for rank, place in sorted(places.items()) if met and place.doing != met.doing]
    return [*silent, *elsewhere, fault.reporter][0]


def _told(place: Place | None) -> str:
    return "does not answer: its process has ended or hangs" if place is None else str(place)
