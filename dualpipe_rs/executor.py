"""Runs a schedule with plain functions over arrays of any library: :class:`Executor`.

Torch is not needed. What a stage computes is the functions' business; which of them is called when, and what
travels where, is the schedule's. The one Rust interpreter keeps the order, as for the ``nn.Module`` wrappers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dualpipe_rs._core import Callables, DeviceRank, LocalGroup, Program, Schedule, Timeline, run_ranks
from dualpipe_rs.errors import UsageError
from dualpipe_rs.local import current_group
from dualpipe_rs.place import Place, check_links, device_index, stream_handle

#: An array that DLPack can hand over, a tuple of such and ``None``, or ``None``.
Value = Any
Forward = Callable[[int, int, Value], Value]
Backward = Callable[[int, int, Value], Value]
BackwardWeight = Callable[[int, int], object]
ForwardBackward = Callable[[int, int, Value, int, int, Value], tuple[Value, Value]]


class Executor:
    """Runs a schedule: calls plain functions in its order, and carries arrays between stages by DLPack.

    Made outside of :func:`~dualpipe_rs.run_local` it runs all ranks in turn on the calling thread. In a rank
    of ``run_local``, or with a ``group``, it runs one rank, and every rank makes one.

    Args:
        schedule: a :class:`~dualpipe_rs.Schedule`, or a Program of one (:meth:`Schedule.lower`), which says
            ``p2p``, too.
        forward: ``forward(stage, microbatch, input)`` returns the stage's output. ``input`` is ``None`` in
            stage 0, which has its own data; the last stage's output goes nowhere.
        backward: ``backward(stage, microbatch, gradient)`` adds to the weights' gradients and returns that of
            the stage's input. ``gradient`` is that of the stage's output; ``None`` in the last stage, which
            has its loss; what stage 0 returns goes nowhere. Where it is missing, ``backward_input`` and then
            ``backward_weight`` are called.
        backward_input: the part of ``backward`` that the stage before waits for (I in a schedule).
        backward_weight: ``backward_weight(stage, microbatch)``: the rest of it (W), later.
        forward_backward: ``forward_backward(stage, microbatch, input, stage, microbatch, gradient)`` returns
            output and gradient of a fused pair. Without it ``forward`` and ``backward`` are called.
        group: this rank's group of ``run_local``; by default the one that the calling thread is a rank of. On
            GPUs it may be a ``ProcessGroup`` of torch.distributed: its members are processes, a GPU each.
        rank: the rank of the schedule that this member takes; by default its own number.
        from_dlpack: makes of what has arrived an array, as ``torch.from_dlpack`` does; by default that of the
            library whose array was sent.
        p2p: who waits for whom between ranks, as for :meth:`Schedule.verify`; by default ``"eager"``.
        device: this rank's GPU: an index, ``"cuda"`` or ``"cuda:1"``. By default ``"cpu"``. Ranks on one GPU
            copy on streams of their own; ranks with a GPU each send by NCCL. The functions only queue work,
            and the thread waits for the GPU once, at the end of the step.
        stream: on a GPU, the stream on which the functions compute: a handle, or a stream of torch or CuPy.
            By default torch's current one at each step, where torch is loaded; else the legacy default one.
        communicators: with NCCL, ``"edge"`` has one for each directed edge between two ranks; ``"pair"`` one
            for both directions, under ``p2p="batched"`` alone.
        max_ctas: the most CTAs (each occupies an SM) that NCCL may take for a communicator.
        timeout: on a GPU, the longest wait for the device or another rank, in seconds.

    An output and a gradient are an array that has ``__dlpack__`` (NumPy, PyTorch, CuPy, JAX), a DLPack
    capsule, or a tuple or list of such and ``None``, of any type, shape and strides. It is handed over
    without a copy: a stage must not change what it has returned, nor (on the CPU, where it is the sender's
    memory) what it was given.

    Raises:
        UsageError: a function that the schedule needs is missing, or the schedule is not of the group's size.
        ScheduleError: the schedule breaks a rule, or cannot run under ``p2p``.
    """

    def __init__(
        self,
        schedule: Schedule | Program,
        *,
        forward: Forward,
        backward: Backward | None = None,
        backward_input: Backward | None = None,
        backward_weight: BackwardWeight | None = None,
        forward_backward: ForwardBackward | None = None,
        group: Any = None,
        rank: int | None = None,
        from_dlpack: Callable[[Any], Any] | None = None,
        p2p: str | None = None,
        device: Any = None,
        stream: Any = None,
        communicators: str = "edge",
        max_ctas: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        functions = {
            "forward": forward,
            "backward": backward,
            "backward_input": backward_input,
            "backward_weight": backward_weight,
            "forward_backward": forward_backward,
        }
        schedule, p2p = _order(schedule, p2p)
        _check(functions, from_dlpack)
        schedule.verify(p2p)
        index = device_index(device)
        check_links(schedule, p2p, communicators, max_ctas, timeout)
        self.schedule = schedule
        self.p2p = p2p
        self.group = _group(group, index, timeout)
        self.rank = _own_rank(schedule, self.group, rank)
        if self.rank is not None and not isinstance(self.group, LocalGroup):
            self.group.connect([], sys.modules["torch"].device("cpu"), self.rank)
        ranks = range(schedule.num_ranks) if self.rank is None else [self.rank]
        _check_needs(schedule, ranks, functions)
        self._callables = Callables(
            schedule.num_stages,
            forward,
            backward,
            backward_input,
            backward_weight,
            forward_backward,
            from_dlpack or _loaded_from_dlpack(index),
            index,
        )
        self._device = index
        self._stepping = threading.Lock()
        self._stream = None if stream is None else stream_handle(stream)
        self._place: Place | None = None
        if index is not None:
            self._place = Place(
                self.group,
                self.rank or 0,
                index,
                sharing=communicators,
                max_ctas=max_ctas,
                timeout=timeout,
            )

    def step(self) -> Timeline:
        """Runs every slot once.

        Returns:
            The measured :class:`~dualpipe_rs.Timeline` of all ranks, in seconds.

        Raises:
            RankError: on every rank: a rank failed. It names rank, slot and cause; the next step is right.
        """
        if not self._stepping.acquire(blocking=False):
            raise UsageError(
                "step() was called while a step of this executor runs, inside a stage or on another thread"
            )
        try:
            return self._step()
        finally:
            self._stepping.release()

    def _step(self) -> Timeline:
        if self._place is None:
            return self._run(None)
        self._callables.set_stream(self._current_stream())
        try:
            return self._run(self._place.open(self.schedule, self.p2p))
        except BaseException:
            # Of a step that failed nobody knows what is still under way.
            self._place.abort()
            raise

    def close(self) -> None:
        """Ends the communicators, on a GPU; all ranks call it. Without it they are cut off in the end."""
        if self._place is not None:
            self._place.close()

    def _run(self, place: DeviceRank | None) -> Timeline:
        if self.group is None or self.rank is None:
            return run_ranks(self.schedule, self._callables, self.p2p, place)
        if isinstance(self.group, LocalGroup):
            return self.group.step(self.schedule, self._callables, self.rank, "", self.p2p, place)
        on_gpu = self._callables, place
        timeline: Timeline = self.group.step(self.schedule, _Worker, self.rank, "", self.p2p, on_gpu)
        return timeline

    def _current_stream(self) -> int:
        if self._stream is not None:
            return self._stream
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return 0
        return stream_handle(torch.cuda.current_stream(self._device))


class _Worker:
    """What a group of processes asks of a worker whose slots the CUDA executor computes."""

    #: Its inputs are the same in every step.
    signature = 0


def _group(given: Any, device: int | None, timeout: float) -> Any:
    """The ranks: threads, or processes of torch.distributed; ``None`` where all run on this thread."""
    if given is None:
        return current_group()
    if isinstance(given, LocalGroup):
        own = current_group()
        if own is not None and given is not own:
            raise UsageError("group is another rank's; each rank of run_local gives its own, or none")
        return given
    distributed = sys.modules.get("torch.distributed")
    if device is not None and distributed is not None and distributed.is_initialized():
        from dualpipe_rs.distributed import DistributedGroup, process_group

        if (found := process_group(given)) is not None:
            return DistributedGroup(found, timeout=timeout)
    raise UsageError(
        f"group is a {type(given).__name__}; give the group of a rank of run_local, or none to run all ranks "
        "here; ranks on GPUs (device=...) may be processes, too: a ProcessGroup of torch.distributed"
    )


def _order(given: Any, p2p: str | None) -> tuple[Schedule, str]:
    """The schedule, and who waits for whom."""
    if isinstance(given, Schedule):
        return given, "eager" if p2p is None else p2p
    if not isinstance(given, Program):
        raise UsageError(
            f"schedule is a {type(given).__name__}; give a Schedule, such as "
            'dp.schedule("dualpipe", num_ranks=4, num_microbatches=8), or what its lower() returns'
        )
    if p2p not in (None, given.p2p):
        raise UsageError(f"p2p is {p2p!r}, and the program is lowered for {given.p2p!r}; leave p2p out")
    depth = given.schedule.lower(given.p2p).depth
    if given.depth != depth:
        raise UsageError(f"the program is lowered for depth={given.depth}; an Executor runs depth={depth}")
    return given.schedule, given.p2p


def _check(functions: Mapping[str, Any], from_dlpack: Any) -> None:
    given = {**functions, "from_dlpack": from_dlpack}
    for name, function in given.items():
        if function is None and name != "forward":
            continue
        if not callable(function):
            raise UsageError(f"{name} is a {type(function).__name__}; give a function")


def _own_rank(schedule: Schedule, group: Any, rank: Any) -> int | None:
    """The rank to run, or ``None`` for all of them."""
    if group is None:
        if rank is not None:
            raise UsageError("rank is given and there is no group: outside of run_local all ranks run here")
        return None
    if group.size() != schedule.num_ranks:
        raise UsageError(
            f"the schedule is for {schedule.num_ranks} ranks and the group has {group.size()}; they must be "
            "as many"
        )
    own = group.rank() if rank is None else rank
    if isinstance(own, bool) or not isinstance(own, int) or not 0 <= own < schedule.num_ranks:
        raise UsageError(f"rank is {own!r}; ranks are 0 to {schedule.num_ranks - 1}")
    return own


def _check_needs(schedule: Schedule, ranks: Sequence[int], functions: Mapping[str, Any]) -> None:
    """Names the functions that the schedule's rows call for and that are missing."""
    kinds = {kind for rank in ranks for slot in schedule.rank(rank) for kind in slot if kind in "IWB"}
    split = functions["backward_input"] is not None and functions["backward_weight"] is not None
    needs = {"I": "backward_input", "W": "backward_weight", "B": "backward"}
    missing = sorted(
        needs[kind] for kind in kinds if functions[needs[kind]] is None and not (kind == "B" and split)
    )
    pairs_whole = functions["forward_backward"] is not None and "B" in kinds
    if missing == ["backward"] and pairs_whole:
        alone = any("B" in slot and ";" not in slot for rank in ranks for slot in schedule.rank(rank))
        missing = missing if alone else []
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{schedule!r} calls for {' and '.join(missing)}, which {are} not given")


def _loaded_from_dlpack(device: int | None) -> Callable[[Any], Any] | None:
    """On a GPU, ``from_dlpack`` of a library that is loaded; else that of the sender's is taken."""
    if device is None:
        return None
    for name in ("torch", "cupy", "jax.dlpack"):
        if (library := sys.modules.get(name)) is not None:
            return getattr(library, "from_dlpack", None)
    return None
