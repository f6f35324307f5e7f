"""Whose fault it was when a rank did not answer, in words.

Ranks that wait for each other are followed from the one that gave up to the one that waits for nobody: it is
in a slot, or outside of any step, or does not answer at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from dualpipe_rs.distributed.board import Fault, Place
from dualpipe_rs.errors import RankError


def diagnosed(fault: Fault, places: Mapping[int, Place], size: int, suspect: int | None = None) -> RankError:
    """The error for a lost rank.

    Args:
        fault: what the first that gave up has said; its rank is -1 if it waited for all.
        places: where each rank is that has answered, by its number in the schedule.
        size: how many ranks there are.
        suspect: the rank that must be it, if known otherwise.
    """
    culprit = _culprit(fault, places, size) if suspect is None else suspect
    place = places.get(culprit)
    message = f"{fault.message}: rank {culprit} {_told(place)}. Where all ranks are:"
    silent = "does not answer" if suspect is None else "cannot be asked"
    message += "".join(f"\n  rank {rank} {places.get(rank, silent)}" for rank in range(size))
    if place is None:
        awaited = [place.tensor for place in places.values() if place.waits_for == culprit]
        return RankError(message, culprit, None, awaited[0] if awaited else None)
    return RankError(message, culprit, place.slot, place.action)


def _culprit(fault: Fault, places: Mapping[int, Place], size: int) -> int:
    """The rank at the end of the chain of those who wait, from the one that was waited for."""
    rank, seen = fault.rank, {fault.reporter}
    if rank < 0:
        rank = _absent(fault.reporter, places, size)
    while rank in places and rank not in seen:
        seen.add(rank)
        waits_for = places[rank].waits_for
        if waits_for is None or waits_for in seen:
            break
        rank = waits_for
    return rank


def _absent(reporter: int, places: Mapping[int, Place], size: int) -> int:
    """Where all meet nobody in particular is waited for: a rank that is silent, or else at something else."""
    others = [rank for rank in range(size) if rank != reporter]
    here = places[reporter].doing if reporter in places else None
    silent = [rank for rank in others if rank not in places]
    elsewhere = [rank for rank in others if rank in places and places[rank].doing != here]
    return [*silent, *elsewhere, reporter][0]


def _told(place: Place | None) -> str:
    return "does not answer: its process has ended or hangs" if place is None else str(place)
