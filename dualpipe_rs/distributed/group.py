"""The ranks of a pipeline as processes: :class:`DistributedGroup`, over any torch.distributed process group.

It has what a pipeline asks of a group, as ``LocalGroup`` has it: ``rank``, ``size``, ``step``, ``exchange``,
``refuse``. What is done together begins with a meeting, in which all find out whether all are at the same, so
that ranks that do different things are told, and none waits for what never comes. How tensors travel is
wire.py's.
"""

from __future__ import annotations

import pickle
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

import dualpipe_rs._core as _core
from dualpipe_rs._core import Callables, DeviceRank, Schedule, Timeline
from dualpipe_rs.distributed.board import Board, Fault, Place
from dualpipe_rs.distributed.diagnosis import diagnosed
from dualpipe_rs.distributed.gpu_wire import GpuWire
from dualpipe_rs.distributed.in_step import InStep
from dualpipe_rs.distributed.interrupts import Interrupts
from dualpipe_rs.distributed.joining import join, rounds_of
from dualpipe_rs.distributed.layouts import Table
from dualpipe_rs.distributed.lines import Lines, lay
from dualpipe_rs.distributed.links import Links
from dualpipe_rs.distributed.wire import Lost, Wire
from dualpipe_rs.errors import RankError, UsageError
from dualpipe_rs.identity import first_line, host, number_of
from dualpipe_rs.logs import log
from dualpipe_rs.process_groups import make_rounds

#: How long ranks are given to say where they are once one is lost, in seconds.
_GRACE = 2.0
#: How many numbers a card of a meeting holds besides what the meeting is about.
_CARD = 6
#: How long the words of a disagreement may be, in bytes.
_WORDS = 1024
#: How many kinds of inference steps are kept in mind.
_MOST_TABLES = 64


class RemoteError(Exception):
    """What another rank has raised, as its traceback in text; the cause of a RankError."""


class DistributedGroup:
    """The ranks of a pipeline, one a process.

    All members build it together, and a pipeline has one of its own: it makes a gloo group of the same
    members, with the timeout below, so that a rank that is lost takes none of the job's own groups with it.

    Args:
        process_group: the members: a ProcessGroup that torch.distributed knows.
        timeout: how long to wait for a rank, in seconds.
        dynamic_shapes: announce every tensor in every step.
        measure: gather the times of every step.

    Attributes:
        process_group: the gloo group of the members, for small tensors in the CPU's memory.
        global_ranks: the job's number of each member.
        timeout: as a timedelta.

    Raises:
        RankError: not all members came within the timeout.
    """

    #: Each rank computes on its own.
    interleaved = False

    def __init__(
        self, process_group: Any, *, timeout: float, dynamic_shapes: bool = False, measure: bool = True
    ) -> None:
        given = process_group
        self.timeout = timedelta(seconds=timeout)
        self.global_ranks: list[int] = dist.get_process_group_ranks(given)
        self._given = given
        self._rank, self._size = given.rank(), given.size()
        self._dynamic = dynamic_shapes
        self._measure = measure
        self._numbering = {member: member for member in range(self._size)}  # the schedule's rank of each
        self._tables: dict[Any, Table] = {}
        self._lost: RankError | None = None
        self._in_step = False
        self._doing: tuple[str, float] = ("builds its pipeline", time.monotonic())
        self._wire: InStep | None = None
        self._steps_on_gpu = 0
        self._kind_on_gpu: Any = None
        self._interrupts = Interrupts()
        self.process_group, store, self._store_holder = join(
            given.group_name, self.global_ranks, self._rank, self.timeout
        )
        self._store = store
        self._links = Links(self.process_group, {})
        me = weakref.ref(self)  # the board's thread must not keep the group alive
        self._board = Board(
            store,
            self._rank,
            self._size,
            where=lambda: group._place() if (group := me()) else Place(-1, "has let go of its pipeline", 0.0),
            on_fatal=lambda: group._links.cut() if (group := me()) else None,
        )
        self._finalizer = weakref.finalize(self, self._board.close)

    def rank(self) -> int:
        """This member's number in the group."""
        return self._rank

    def size(self) -> int:
        """How many members the group has."""
        return self._size

    def backend_for(self, device: torch.device) -> str:
        """The backend that the job's group has for tensors on such a device, such as ``"nccl"``."""
        backends = dist.get_backend_config(self._given)
        named = dict(entry.split(":") for entry in str(backends).split(",") if ":" in entry)
        return named.get(device.type, str(dist.get_backend(self._given)))

    def connect(self, edges: Sequence[tuple[int, int]], device: torch.device, numbering: int) -> None:
        """Makes the ways for tensors, together with all members.

        Args:
            edges: (from, to), in the schedule's ranks, between which tensors travel by way of this group.
            device: where the stages of this rank are.
            numbering: this member's rank in the schedule.
        """
        backend = self.backend_for(device)
        on_accelerator = device.type != "cpu"
        if edges and on_accelerator and backend == "gloo":
            raise UsageError(
                f"the stages are on {device.type} and the process group's backend for it is gloo, which does "
                "not send tensors from there; initialise the group with a backend that does, such as "
                '"cpu:gloo,cuda:nccl"'
            )
        options = f"dynamic_shapes={self._dynamic}, measure={self._measure}"
        cards = self.meet(f"builds a pipeline with {options}", numbering, on_accelerator)
        self._number([card[0] for card in cards])
        self._device = device
        if len({card[1] for card in cards}) > 1:
            here = [member for member, card in enumerate(cards) if card[1]]
            raise UsageError(
                f"ranks {here} have their stages on an accelerator and the others on the CPU; all of a "
                "pipeline have them in one kind of place"
            )
        pairs = [(self._members[a], self._members[b]) for a, b in edges]
        groups = self._edge_groups(pairs, backend) if on_accelerator else {}
        peers = {b for a, b in pairs if a == self._rank} | {a for a, b in pairs if b == self._rank}
        self._links = Links(self.process_group, groups, self._laid(sorted(peers)))

    # -- together ---------------------------------------------------------------------------------

    def step(
        self,
        schedule: Schedule,
        worker: Any,
        rank: int,
        settings: str = "",
        p2p: str = "eager",
        on_gpu: tuple[Callables, DeviceRank] | None = None,
    ) -> Timeline | None:
        """Runs one step of ``schedule`` with all other members, as rank ``rank`` of the schedule.

        ``worker`` is as for ``LocalGroup.step``; its ``signature``, a number, tells the shapes of its inputs
        where they may differ from step to step. With ``on_gpu`` the CUDA executor runs it: the worker as
        ``Callables``, and this rank's open place. Returns the measured Timeline of all ranks, in seconds.

        Raises:
            RankError: on every member: a rank failed. The next step is right, unless a rank is lost.
            UsageError: the members do not do the same.
        """
        self._outside_steps("step()")
        if schedule.num_ranks != self._size:
            raise UsageError(
                f"the schedule is for {schedule.num_ranks} ranks and the group has {self._size}; they must "
                "be as many"
            )
        number = _core.fingerprint(schedule)
        purpose = f"begins a step of {repr(schedule)[10:-1]}, p2p={p2p}{settings}"
        cards = self.meet(purpose, rank, number >> 32, number & 0xFFFFFFFF, worker.signature)
        if len({tuple(card[1:3]) for card in cards}) > 1:
            raise UsageError(
                f"all ranks begin a step of {schedule!r}, and their orders differ; give all the same"
            )
        self._number([card[0] for card in cards])
        kind = (number, tuple(card[3] for card in cards))
        if on_gpu is not None:
            return self._step_on_gpu(schedule, on_gpu, rank, p2p, kind)
        table = self._table(kind)
        wire = Wire(
            rank,
            self._members,
            self._links,
            table,
            self._device,
            others_failed=lambda: self._board.fault is not None,
            check_interrupts=self._interrupts.check,
            failed=self._failed,
        )
        timeline = self._inside(wire, schedule, lambda: _core.run_rank(schedule, worker, wire, rank, p2p))
        table.learn(wire.seen)
        return timeline

    def _step_on_gpu(
        self,
        schedule: Schedule,
        on_gpu: tuple[Callables, DeviceRank],
        rank: int,
        p2p: str,
        kind: tuple[int, tuple[int, ...]],
    ) -> Timeline | None:
        functions, place = on_gpu
        if self._dynamic or kind != self._kind_on_gpu:
            self._kind_on_gpu = kind
            place.forget()
        self._steps_on_gpu += 1
        wire = GpuWire(
            rank,
            self._store,
            f"gpu/{self._steps_on_gpu}",
            others_failed=lambda: self._board.fault is not None,
            check_interrupts=self._interrupts.check,
            timeout=self.timeout.total_seconds(),
        )
        return self._inside(
            wire, schedule, lambda: _core.run_rank_on(schedule, functions, place, wire, rank, p2p)
        )

    def _inside(self, wire: InStep, schedule: Schedule, run: Callable[[], Any]) -> Timeline | None:
        self._wire = wire
        self._in_step = True
        try:
            with self._interrupts.kept():
                return self._run(schedule, wire, run)
        finally:
            self._in_step, self._wire = False, None
            self._doing = ("is outside of any step", time.monotonic())

    def exchange(self, object: Any, purpose: str = "exchanges objects") -> list[Any]:
        """Hands an object to all members and returns theirs, by member: copies, made by pickle.

        All members call it, outside of steps, with the same ``purpose``: what a rank is at, in words such as
        "sums gradients".

        Raises:
            RankError: a rank is lost. UsageError: one does something else.
        """
        self._outside_steps("a collective")
        data = bytearray(pickle.dumps(object))
        lengths = [card[0] for card in self.meet(purpose, len(data))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(data, dtype=torch.uint8)
        with self.at(purpose):
            rows = self._all_gather(padded)
        return [
            pickle.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)
        ]

    def refuse(self, rank: int, why: str) -> None:
        """Comes to the beginning of a step only to say, in words, why this rank cannot take part in it: all
        others that begin one raise RankError."""
        if self._in_step or self._lost is not None:
            return
        with suppress(RankError, UsageError):
            self._board.announce(
                Fault(rank, None, None, f"rank {rank}, before the step: {why}", reporter=rank)
            )
            self.meet("cannot begin its step", refuses=True)

    @contextmanager
    def at(self, purpose: str) -> Iterator[None]:
        """Around what members do together outside of steps: a rank that is lost meanwhile becomes a
        RankError.

        Args:
            purpose: what this rank is at, in words such as "sums gradients".
        """
        self._check_not_lost()
        self._doing = (purpose, time.monotonic())
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, RankError):
                raise
            self._give_up(error, None, purpose)
        finally:
            self._doing = ("is outside of any step", time.monotonic())

    def meet(self, purpose: str, *numbers: int, refuses: bool = False) -> list[list[int]]:
        """Comes together with all members for ``purpose``; returns each member's numbers, at most six.

        Args:
            refuses: come only to have all raise what was announced before.

        Raises:
            UsageError: members are at different things. RankError: one refused, or is lost.
        """
        card = torch.zeros(2 + _CARD, dtype=torch.int64)
        card[: 2 + len(numbers)] = torch.tensor([refuses, number_of(purpose), *numbers])
        with self.at(purpose):
            cards = [row.tolist() for row in self._all_gather(card)]
        if refused := [self._numbering[member] for member, card in enumerate(cards) if card[0]]:
            raise _raised(self._board.settled(refused[0]))
        if len({card[1] for card in cards}) > 1:
            self._disagree(purpose)
        return [card[2:] for card in cards]

    # -- a step, inside ---------------------------------------------------------------------------

    def _run(self, schedule: Schedule, wire: InStep, run: Callable[[], Any]) -> Timeline | None:
        zero = time.perf_counter()
        records, error = None, None
        try:
            records = run()
            wire.finish()
            self._interrupts.check()  # Ctrl-C in the last slot: now the others can still be told
        except Lost as lost:
            self._give_up(lost.__cause__ or lost, lost.rank, f"waits for {lost.tensor}")
        except BaseException as raised:
            error = raised
            self._failed(raised)
            with suppress(Lost):
                wire.finish()
        try:
            return self._end(schedule, records, zero, failed=error is not None)
        except RankError as told:
            # Ctrl-C and the like go through as they are; what fails after another has failed is its
            # consequence.
            if error is None or (isinstance(error, RankError) and told.rank != error.rank):
                raise
            raise error from error.__cause__

    def _end(self, schedule: Schedule, records: Any, zero: float, *, failed: bool) -> Timeline | None:
        """All have ended the step: learns whether one failed, and gathers the times."""
        lengths = _core.row_lengths(schedule) if self._measure else [0]
        own = torch.zeros(3 + 3 * max(lengths), dtype=torch.float64)
        stopped = failed or records is None
        own[:3] = torch.tensor([stopped, zero, host()], dtype=torch.float64)
        if self._measure and not stopped:
            own[3 : 3 + records.size] = torch.from_numpy(records).view(-1)
        self._wire = None  # its slots are behind it: it waits for everybody
        with self.at("ends its step"):
            rows = self._all_gather(own)
        if wrong := [rank for rank, member in enumerate(self._members) if rows[member][0]]:
            raise _raised(self._board.settled(wrong[0]))
        return self._timeline(schedule, rows, lengths) if self._measure else None

    def _timeline(self, schedule: Schedule, rows: list[Tensor], lengths: list[int]) -> Timeline:
        one_clock = all(row[2] == rows[0][2] for row in rows)
        times = []
        for rank, length in enumerate(lengths):
            row = rows[self._members[rank]]
            part = row[3 : 3 + 3 * length].view(length, 3).clone()
            # On one host clocks are one; between hosts a step begins where the meeting before it ended.
            part[:, :2] += row[1] - rows[0][1] if one_clock else 0.0
            times.append(part)
        return _core.measured_timeline(schedule, torch.cat(times).numpy())

    def _failed(self, error: BaseException | None) -> bool:
        """This rank's step has failed; whether its channels can be emptied."""
        if isinstance(error, Lost):
            return False
        if error is not None and self._board.fault is None:
            self._board.announce(self._fault(error))
        fault = self._board.fault
        return fault is None or not fault.fatal

    def _fault(self, error: BaseException) -> Fault:
        place = self._place()
        details = "".join(traceback.format_exception(error.__cause__ or error))
        if isinstance(error, RankError):
            fault = Fault(error.rank, error.slot, error.action, str(error), details, reporter=place.rank)
        else:
            message = f"{place.where}: {type(error).__name__}" + (f": {error}" if str(error) else "")
            fault = Fault(place.rank, place.slot, place.action, message, details, reporter=place.rank)
        log.error("%s", fault.message, extra={"rank": fault.rank, "slot": fault.slot})
        return fault

    # -- when a rank is lost ----------------------------------------------------------------------

    def _give_up(self, cause: BaseException, awaited: int | None, doing: str) -> NoReturn:
        """A rank is lost: tells all, finds out which, and raises."""
        place = self._place()
        what = f"{place.where}: {doing}" + ("" if awaited is None else f" of rank {awaited}")
        what += f", in vain ({first_line(cause)}; timeout {self.timeout.total_seconds():g} s)"
        fault = Fault(-1 if awaited is None else awaited, None, None, what, fatal=True, reporter=place.rank)
        is_first = self._board.fault is None
        fault = self._board.announce(fault)
        # Who heard of no fault while there was a store, and now finds none, has lost the one who held it.
        suspect = self._store_holder if is_first and self._board.silence is not None else None
        self._links.cut()
        places = {self._numbering[m]: place for m, place in self._board.places(_GRACE).items()}
        self._lost = self._diagnosed(fault, places, suspect) if fault.fatal else _raised(fault)
        asking = [m for m, rank in self._numbering.items() if rank in places and rank != self._lost.rank]
        self._board.read(asking, holds_store=self._store_holder == self._rank)
        log.error("%s", self._lost, extra={"rank": place.rank, "slot": place.slot})
        raise self._lost from cause

    def _diagnosed(self, fault: Fault, places: dict[int, Place], suspect: int | None) -> RankError:
        """The error; ``suspect`` is the member that must be lost, if known."""
        if self._board.silence is None:
            return diagnosed(fault, places, self._size)
        places = places or {self._numbering[self._rank]: self._place()}
        rank = None if suspect is None else self._numbering[suspect]
        why = self._board.silence + ("" if rank is None else f", which rank {rank} holds")
        return diagnosed(replace(fault, message=f"{fault.message}; {why}"), places, self._size, rank)

    def _check_not_lost(self) -> None:
        if self._lost is not None:
            raise RankError(
                f"the group cannot go on, as rank {self._lost.rank} was lost before; start its processes "
                "anew, or build a new process group of those that are left, and a new pipeline",
                *(self._lost.rank, self._lost.slot, self._lost.action),
            )

    def _place(self) -> Place:
        if self._wire is not None:
            return self._wire.place()
        doing, since = self._doing
        return Place(self._numbering[self._rank], doing, time.monotonic() - since)

    def _laid(self, peers: list[int]) -> Lines:
        """Lines to those of the neighbours that are on this host."""
        purpose = "lays lines to its neighbours"
        try:
            return lay(
                self._rank,
                peers,
                host(),
                lambda object: self.exchange(object, purpose),
                self.timeout.total_seconds(),
            )
        except OSError as error:
            self._give_up(error, None, purpose)

    def _edge_groups(self, edges: list[tuple[int, int]], backend: str) -> dict[tuple[int, int], Any]:
        """A group of two for each directed edge of this member."""
        rounds = rounds_of(edges)
        ranks = [[sorted((self.global_ranks[a], self.global_ranks[b])) for a, b in edges] for edges in rounds]
        with self.at("makes a group for each directed edge"):
            made = make_rounds(self.global_ranks[self._rank], ranks, self.timeout, backend)
        return {
            edge: group
            for edges_at_once, group in zip(rounds, made, strict=True)
            for edge in edges_at_once
            if self._rank in edge
        }

    # -- meetings ---------------------------------------------------------------------------------

    def _disagree(self, purpose: str) -> NoReturn:
        """Members have come for different things: all say what, and all raise."""
        text = purpose.encode()[:_WORDS]
        padded = torch.zeros(_WORDS, dtype=torch.uint8)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        with self.at(purpose):
            rows = self._all_gather(padded)
        words = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows]
        other = next(member for member, word in enumerate(words) if word != words[0])
        hint = ""
        if ("forward only" in words[0]) != ("forward only" in words[other]):
            hint = ": give all of them the criterion, or put all of them under torch.no_grad()"
        raise UsageError(
            f"rank 0 {words[0]}, and rank {other} {words[other]}; all ranks of a group must do the same{hint}"
        )

    def _all_gather(self, row: Tensor) -> list[Tensor]:
        """Every member's row, by member."""
        out = torch.empty(self._size * row.numel(), dtype=row.dtype)
        dist.all_gather_into_tensor(out, row, group=self.process_group)
        return list(out.view(self._size, -1))

    def _number(self, ranks: list[int]) -> None:
        """Notes which rank of the schedule each member takes."""
        for rank in range(self._size):
            if ranks.count(rank) != 1:
                raise UsageError(
                    f"rank {rank} of the schedule is taken by {ranks.count(rank)} members of the group; "
                    f"rank_mapping gives each of the {self._size} members another rank, and is the same on "
                    "all of them"
                )
        self._numbering = dict(enumerate(ranks))
        self._members = [ranks.index(rank) for rank in range(self._size)]

    def _table(self, key: Any) -> Table:
        if key not in self._tables and len(self._tables) >= _MOST_TABLES:
            self._tables.pop(next(iter(self._tables)))
        return self._tables.setdefault(key, Table(self._dynamic))

    def _outside_steps(self, what: str) -> None:
        if self._in_step:
            raise UsageError(
                f"{what} was called on rank {self._rank} inside a stage, where the other ranks cannot take "
                "part; call it between steps"
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a group, and a pipeline that belongs to one, cannot be copied or pickled; copy or save the "
            "stages (pipe.module, or its state_dict()) and make another pipeline of them"
        )

    def __repr__(self) -> str:
        return f"<DistributedGroup rank {self._rank} of {self._size}>"


def _raised(fault: Fault) -> RankError:
    error = RankError(fault.message, fault.rank, fault.slot, fault.action)
    if fault.details:
        error.__cause__ = RemoteError(f"\n\n{fault.details}")
    return error
