"""The ``nn.Module`` wrappers: :class:`Pipeline` for any schedule, :class:`DualPipe`, :class:`DualPipeV`.

A wrapper cuts the batch, hands the slots to a :class:`~dualpipe_rs.worker.Worker` and the order to the
Rust interpreter, and gathers losses and outputs. It holds no schedule logic and sends nothing itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import dualpipe_rs._core as _core
from dualpipe_rs import generator_gate
from dualpipe_rs import weight_grad as wg
from dualpipe_rs._core import LocalGroup, Schedule, Timeline
from dualpipe_rs.errors import RankError, UsageError
from dualpipe_rs.local import claim_modules, current_group
from dualpipe_rs.utils import Tensors, gather, scatter
from dualpipe_rs.worker import Batch, Criterion, Values, Worker, autocast_devices


class Pipeline(nn.Module):
    """Runs a model cut into stages under a schedule. Each rank makes one, with the stages that it holds.

    Args:
        modules: this rank's stages, in the order of ``schedule.stages_of(rank)``.
        schedule: a :class:`~dualpipe_rs.Schedule`, or the name of a published one, which is then
            generated for the group's size and each step's ``num_chunks``.
        batch_dim: the dimension along which batches are cut into microbatches.
        process_group: a group of :func:`~dualpipe_rs.run_local`; by default the one that the calling
            thread is a rank of, and outside ``run_local`` a group of this one rank.
        rank_mapping: ``rank_mapping[i]`` is the rank in the schedule that member ``i`` of the group
            takes; by default its own number.
        split_weight_grad: make ordinary layers compute their weight gradients apart
            (:func:`~dualpipe_rs.split_weight_grad`), so that W does its work in W. With ``False`` they
            are computed in I; the result is the same.

    Attributes:
        module: the stages.
        rank, num_ranks: this rank in the schedule, and how many there are.
        timeline: the measured :class:`~dualpipe_rs.Timeline` of the last step, all ranks of it, in
            seconds; ``None`` before the first.

    Raises:
        UsageError: the schedule does not fit the group, the modules do not fit the schedule, or a
            module or trainable parameter belongs to another rank of this process already.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        schedule: Schedule | str,
        batch_dim: int = 0,
        process_group: LocalGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        split_weight_grad: bool = True,
    ) -> None:
        super().__init__()
        self.group = _group(process_group)
        self.num_ranks = self.group.size()
        self.rank = _own_rank(self.group, rank_mapping)
        self.batch_dim = batch_dim
        self.timeline: Timeline | None = None
        self._given = schedule
        self._schedules: dict[tuple[int, bool], Schedule] = {}
        self._rank_mapping = list(range(self.num_ranks) if rank_mapping is None else rank_mapping)
        self._store = wg.Store()

        probe = self._probe()
        self._stages = probe.stages_of(self.rank)
        self._bidirectional = probe.placement == "bidirectional"
        stages = _checked_modules(modules, self._stages, probe, self.rank)
        claim_modules(self.group, dict(zip(self._stages, stages, strict=True)))
        self.module = nn.ModuleList(stages)
        if split_weight_grad:
            wg.split_weight_grad(self.module)

    def step(
        self,
        *inputs: Tensor | None,
        num_chunks: int = 0,
        criterion: Criterion | None = None,
        labels: Tensors | None = (),
        return_outputs: bool = False,
    ) -> tuple[Tensor | None, Any]:
        """Trains on one batch: forward and backward of every microbatch, gradients summed into ``.grad``.

        Under ``torch.no_grad()``, or in ``eval()`` without a criterion, it is inference: forwards alone.

        Args:
            inputs: where stage 0 is (DualPipe: on the first and the last rank), the arguments of stage 0,
                tensors or ``None``, for the microbatches that enter there. Ignored elsewhere.
            num_chunks: how many microbatches, over all directions. Each tensor is cut into as many
                equal parts along ``batch_dim`` as microbatches enter there (DualPipe: half as many).
                With a :class:`~dualpipe_rs.Schedule` it may be left out.
            criterion: ``criterion(*outputs, *labels)`` gives the loss of a microbatch, a tensor with one
                element. Needed for training where the last stage is; may be given on every rank.
            labels: where the last stage is, a tensor or several, cut like inputs. In DualPipe the first
                rank ends what entered at the last one: it takes the labels of that one's inputs.
            return_outputs: return what the last stage returns, too.

        Returns:
            ``(loss, outputs)`` where the last stage is: the losses of the microbatches there, a tensor of
            shape ``(microbatches,)`` without a graph (``None`` without criterion), and the outputs of the
            last stage joined along ``batch_dim`` (``None`` unless asked for). ``(None, None)`` elsewhere.

        Raises:
            UsageError: before any work: an illegal number of microbatches, a batch that does not divide,
                no inputs, labels or criterion where they are needed.
            RankError: on every rank: a rank failed. The next step is right. Gradients are as before
                the step, or the message says that they are not.
        """
        training = torch.is_grad_enabled() and (self.training or criterion is not None)
        schedule = self._schedule(num_chunks, training)
        worker = Worker(
            dict(zip(self._stages, self.module, strict=True)),
            schedule.num_stages,
            self._share(schedule, inputs, labels, criterion, training),
            criterion,
            self._store,
            training=training,
            keep_outputs=return_outputs,
            around=generator_gate.SharedGenerator() if self._threaded() else None,
        )
        with self._running():
            self.timeline = self.group.step(schedule, worker, self.rank, self._settings())
        return _gathered(worker, return_outputs, self.batch_dim)

    def sync_gradients(self) -> None:
        """Sums the gradients of stages that live on two ranks (DualPipe), so that both copies have the sum.

        All ranks of the group call it, once, after the last accumulated step and before the optimizer's.
        A missing gradient counts as zero. Under other placements there is nothing to do.
        """
        if not self._bidirectional:
            return
        stages = zip(self._stages, self.module, strict=True)
        parameters = {stage: list(module.parameters()) for stage, module in stages}
        own = {stage: [p.grad for p in held] for stage, held in parameters.items()}
        by_member = self.group.exchange(own)
        partner = by_member[self._rank_mapping.index(self.num_ranks - 1 - self.rank)]
        first, second = (own, partner) if self.rank < self.num_ranks // 2 else (partner, own)
        sums = {
            stage: [_sum(a, b) for a, b in zip(first[stage], second[stage], strict=True)]
            for stage in parameters
        }
        self.group.exchange(None)  # Nobody reads the old gradients any more.
        for stage, held in parameters.items():
            for parameter, grad in zip(held, sums[stage], strict=True):
                parameter.grad = grad

    def extra_repr(self) -> str:
        """The schedule and the rank, for the module's repr."""
        return f"schedule={self._given!r}, rank={self.rank} of {self.num_ranks}, stages={self._stages}"

    # -- the schedule of a step -------------------------------------------------------------------

    def _probe(self) -> Schedule:
        """A schedule from which to read which stages this rank holds; verified if it was given."""
        if isinstance(self._given, str):
            return _core.schedule(self._given, self.num_ranks, 2 * self.num_ranks)
        if not isinstance(self._given, Schedule):
            raise UsageError(
                f"schedule is of type {type(self._given).__name__}; give a dualpipe_rs.Schedule, or the name "
                "of one"
            )
        if self._given.num_ranks != self.num_ranks:
            raise UsageError(
                f"the schedule is for {self._given.num_ranks} ranks and the group has {self.num_ranks}; "
                "they must be as many"
            )
        self._given.verify()
        return self._given

    def _schedule(self, num_chunks: int, training: bool) -> Schedule:
        key = (num_chunks, training)
        if key not in self._schedules:
            schedule = self._full_schedule(num_chunks)
            self._schedules[key] = schedule if training else schedule.forward_only()
        return self._schedules[key]

    def _full_schedule(self, num_chunks: int) -> Schedule:
        if isinstance(self._given, str):
            return _core.schedule(self._given, self.num_ranks, num_chunks)
        if num_chunks not in (0, self._given.num_microbatches):
            raise UsageError(
                f"num_chunks={num_chunks}, and the schedule has {self._given.num_microbatches} microbatches; "
                "leave num_chunks out, or give a schedule for it"
            )
        return self._given

    # -- this rank's share of the batch -----------------------------------------------------------

    def _share(
        self,
        schedule: Schedule,
        inputs: Sequence[Tensor | None],
        labels: Tensors | None,
        criterion: Criterion | None,
        training: bool,
    ) -> Batch:
        entering = self._microbatches(schedule, 0)
        leaving = self._microbatches(schedule, schedule.num_stages - 1)
        targets = () if labels is None else (labels,) if isinstance(labels, Tensor) else tuple(labels)
        batch = Batch()
        if entering:
            if all(x is None for x in inputs):
                raise UsageError(
                    f"rank {self.rank} holds stage 0 and was given no inputs; call step(x, ...) there"
                )
            batch.inputs = self._cut(inputs, entering)
        if leaving and criterion is None and training:
            raise UsageError(
                f"rank {self.rank} holds the last stage and was given no criterion; give step() a "
                "criterion to train, or call it under torch.no_grad() for inference"
            )
        if leaving and criterion is not None:
            _check_labels(criterion, targets, self.rank)
            batch.labels = self._cut(targets, leaving)
        return batch

    def _microbatches(self, schedule: Schedule, stage: int) -> list[int]:
        """The microbatches that this rank computes a stage for."""
        return [m for m in range(schedule.num_microbatches) if schedule.rank_of(stage, m) == self.rank]

    def _cut(self, batch: Sequence[Tensor | None], microbatches: list[int]) -> dict[int, Values]:
        return dict(zip(microbatches, scatter(batch, len(microbatches), self.batch_dim), strict=True))

    # -- around the run ---------------------------------------------------------------------------

    def _threaded(self) -> bool:
        return self.num_ranks > 1 and not self.group.interleaved

    def _settings(self) -> str:
        """What holds for the thread alone, where one thread computes for all ranks."""
        if not self.group.interleaved:
            return ""
        casts = [f"{device} {torch.get_autocast_dtype(device)}" for device in autocast_devices()]
        inference = ["inference mode"] if torch.is_inference_mode_enabled() else []
        return "".join(
            f", under {setting}" for setting in [*inference, *(f"autocast {cast}" for cast in casts)]
        )

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Binds the weight-gradient store for the step; after a failure leaves no trace of it."""
        without = [p for p in self.parameters() if p.grad is None]
        accumulating = any(p.grad is not None for p in self.parameters())
        before = wg.current()
        wg.bind(self.module, self._store)
        try:
            with generator_gate.watching() if self._threaded() else nullcontext():
                yield
        except BaseException as error:
            self._store.clear()
            for parameter in without:
                parameter.grad = None
            if accumulating and isinstance(error, RankError):
                advice = "gradients that were there before the step hold a part of it now: zero them"
                error.args = (f"{error.args[0]} ({advice})",)
            raise
        finally:
            wg.unbind(self.module)
            wg.set_current(before)


class DualPipe(Pipeline):
    """DeepSeek's DualPipe: two pipelines in opposite directions over the same ranks.

    Rank r holds stages r and p−1−r, so the modules of ranks r and p−1−r must start equal, and their
    gradients be summed after each step (:meth:`~Pipeline.sync_gradients`). ``step()`` takes an even
    ``num_chunks``, at least twice the ranks; half of it enters at each end. See :class:`Pipeline`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: LocalGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        split_weight_grad: bool = True,
    ) -> None:
        super().__init__(
            modules, "dualpipe", batch_dim, process_group, rank_mapping, split_weight_grad=split_weight_grad
        )


class DualPipeV(Pipeline):
    """DeepSeek's DualPipeV: DualPipe folded into a V, each weight held once.

    Rank r holds stages r and 2p−1−r; inputs and labels are rank 0's. ``step()`` takes at least twice as many
    ``num_chunks`` as ranks. See :class:`Pipeline`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: LocalGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        split_weight_grad: bool = True,
    ) -> None:
        super().__init__(
            modules, "dualpipev", batch_dim, process_group, rank_mapping, split_weight_grad=split_weight_grad
        )


def _group(given: Any) -> LocalGroup:
    group = given or current_group() or _core.local_groups(1)[0]
    if isinstance(group, LocalGroup):
        return group
    raise UsageError(
        f"process_group is of type {type(group).__name__}; give the group that "
        "dualpipe_rs.run_local(fn, num_ranks) hands to fn"
    )


def _own_rank(group: LocalGroup, mapping: Sequence[int] | None) -> int:
    if mapping is None:
        return group.rank()
    if sorted(mapping) != list(range(group.size())):
        raise UsageError(
            f"rank_mapping={list(mapping)} does not give each of the {group.size()} members another rank; "
            f"it is an order of 0 to {group.size() - 1}"
        )
    return mapping[group.rank()]


def _checked_modules(
    modules: Sequence[nn.Module], stages: list[int], schedule: Schedule, rank: int
) -> list[nn.Module]:
    several = isinstance(modules, (list, tuple, nn.Sequential, nn.ModuleList))
    given: list[Any] = list(modules) if several else [modules]
    wrong = next((m for m in given if not isinstance(m, nn.Module)), None)
    if wrong is not None:
        raise UsageError(f"modules holds a {type(wrong).__name__}; each stage is a torch.nn.Module")
    if len(given) != len(stages):
        raise UsageError(
            f"rank {rank} was given {len(given)} modules; under {schedule.name} on {schedule.num_ranks} "
            f"ranks it holds stages {', '.join(map(str, stages))}: one module each"
        )
    return given


def _check_labels(criterion: Callable[..., Any], labels: Sequence[Tensor | None], rank: int) -> None:
    """Says that labels are missing where the criterion plainly asks for more than the outputs."""
    if any(label is not None for label in labels):
        return
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # A builtin that does not tell: what it needs shows when it is called.
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    if len(required) > 1:
        raise UsageError(
            f"rank {rank} holds the last stage and was given no labels, and the criterion takes "
            f"{', '.join(required)}; give labels=..., or a criterion of the outputs alone (one that takes "
            "*outputs, if there are several)"
        )


def _gathered(worker: Worker, return_outputs: bool, dim: int) -> tuple[Tensor | None, Any]:
    losses = [worker.losses[m].reshape(()) for m in sorted(worker.losses)]
    loss = torch.stack(losses) if losses else None
    if not (return_outputs and worker.outputs):
        return loss, None
    outputs = gather([worker.outputs[m] for m in sorted(worker.outputs)], dim)
    return loss, outputs[0] if len(outputs) == 1 else outputs


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        given = b if a is None else a
        return given if given is None else given.clone()
    return a + b
