"""The ``nn.Module`` wrappers: :class:`Pipeline` for any schedule, :class:`DualPipe`, :class:`DualPipeV`.

A wrapper has the batch cut (batch.py), hands the slots to a :class:`~dualpipe_rs.worker.Worker` and the
order to the Rust interpreter by way of its group (threads: ``LocalGroup``, processes: distributed/), and
gathers losses and outputs. It holds no schedule logic and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.optim import Optimizer

import dualpipe_rs._core as _core
from dualpipe_rs import checkpoint, generator_gate
from dualpipe_rs import weight_grad as wg
from dualpipe_rs._core import LocalGroup, Schedule, Timeline
from dualpipe_rs.batch import Criterion, gathered, share
from dualpipe_rs.building import (
    check_keywords,
    check_options,
    check_transport,
    checked_modules,
    device_of,
    edges,
    group,
    own_rank,
)
from dualpipe_rs.declared import Declared, declared
from dualpipe_rs.errors import RankError, UsageError
from dualpipe_rs.local import claim_modules, current_group
from dualpipe_rs.logs import log_step
from dualpipe_rs.on_gpu import GpuSteps
from dualpipe_rs.replicas import Replicas, clipping, zero
from dualpipe_rs.replicas.data_parallel import unwrapped
from dualpipe_rs.replicas.sharding import check_sharding
from dualpipe_rs.replicas.ties import ties_of
from dualpipe_rs.utils import Tensors
from dualpipe_rs.worker import Worker, autocast_devices

#: What ``tied`` takes: each tie's name, and this rank's parameter, or several where its stages have copies.
Tied = Mapping[str, nn.Parameter | Sequence[nn.Parameter]]
_NO_TIES: Tied = MappingProxyType({})


class Pipeline(nn.Module):
    """Runs a model cut into stages under a schedule. Each rank makes one, with the stages that it holds.

    Args:
        modules: this rank's stages, in the order of ``schedule.stages_of(rank)``.
        schedule: a :class:`~dualpipe_rs.Schedule`, or the name of a published one, which is then
            generated for the group's size and each step's ``num_chunks``.
        batch_dim: the dimension along which batches are cut into microbatches.
        process_group: the ranks: a ``ProcessGroup`` of torch.distributed (or a ``DeviceMesh`` of one
            dimension), or a group of :func:`~dualpipe_rs.run_local`. By default the one that the calling
            thread is a rank of; else, where torch.distributed is initialised, all its processes; else this
            one rank.
        rank_mapping: ``rank_mapping[i]`` is the rank in the schedule that member ``i`` of the group
            takes; by default its own number.
        split_weight_grad: make ordinary layers compute their weight gradients apart
            (:func:`~dualpipe_rs.split_weight_grad`), so that W does its work in W. With ``False`` they
            are computed in I; the result is the same.
        timeout: how long to wait for another process, in seconds. A rank that does not answer for so long
            makes all others raise. Between threads of one process nothing is waited for in vain.
        p2p: who waits for whom between ranks, as for :meth:`Schedule.verify`: ``"eager"``, or for comparison
            ``"batched"``, as DeepSeek's package runs it, ``"rendezvous"`` or ``"blocking"``.
        dynamic_shapes: let shapes and types between stages change from step to step. Without it those of the
            first training step hold, so that room for a tensor is made before it is sent, and a change
            raises; inference may change with its inputs. It matters between processes alone.
        measure: keep the times of each step in ``timeline``.
        data_parallel_group: the process group of the ranks that hold the same stages in other pipelines,
            which train on other data. Stages that come in a ``DistributedDataParallel`` are taken out of it,
            and its group is used. :meth:`sync_gradients` averages over it.
        transport: ``"nccl"`` runs the steps of stages on GPUs by the CUDA executor: communication on streams
            of its own, ordered by events. By default tensors travel as the group has it: handed over between
            threads, and between processes by torch.distributed.
        tied: parameters that are one in the model and stand in several stages: a name for each such
            parameter, the same on all ranks, and this rank's object (or objects, where its stages have a
            copy each). Ranks that hold none leave it out. Those that :func:`~dualpipe_rs.partition` found
            shared are tied without it.

    Attributes:
        module: the stages.
        rank, num_ranks: this rank in the schedule, and how many there are.
        p2p: who waits for whom, as given.
        timeline: the measured :class:`~dualpipe_rs.Timeline` of the last step, all ranks of it, in
            seconds; ``None`` before the first, and with ``measure=False``. On a GPU these are the times of
            the host, which runs ahead; with ``transport="nccl"`` those of the device.

    Raises:
        UsageError: the schedule does not fit the group, the modules do not fit the schedule, or a
            module or trainable parameter belongs to another rank of this process already.
        RankError: another process did not come to build its part within the timeout, or cannot.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        schedule: Schedule | str,
        batch_dim: int = 0,
        process_group: Any = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        split_weight_grad: bool = True,
        timeout: float = 60.0,
        p2p: str = "eager",
        dynamic_shapes: bool = False,
        measure: bool = True,
        data_parallel_group: Any = None,
        tied: Tied = _NO_TIES,
        transport: str | None = None,
    ) -> None:
        super().__init__()
        check_options(
            batch_dim,
            timeout,
            split_weight_grad=split_weight_grad,
            dynamic_shapes=dynamic_shapes,
            measure=measure,
        )
        check_transport(transport)
        self.group = group(process_group, timeout=timeout, dynamic_shapes=dynamic_shapes, measure=measure)
        self.num_ranks = self.group.size()
        self.rank = self.group.rank()
        self.batch_dim = batch_dim
        self.timeline: Timeline | None = None
        self._given = schedule
        self.p2p = p2p
        self._measure = measure
        self._declared = declared()
        self._schedules: dict[tuple[int, bool], Schedule] = {}
        self._store = wg.Store()
        with self._or_refuse():
            self.rank = own_rank(self.group, rank_mapping)
            self._build(modules, data_parallel_group, tied, transport)
            self._on_gpu = (
                GpuSteps(self.group, self.rank, device_of(self.module), timeout) if transport else None
            )
            if split_weight_grad:
                wg.split_weight_grad(self.module)

    def _build(
        self,
        modules: Sequence[nn.Module],
        data_parallel_group: Any,
        tied: Tied,
        transport: str | None,
    ) -> None:
        probe = self._probe()
        if self.p2p != "eager":
            probe.verify(self.p2p)
        self._stages = probe.stages_of(self.rank)
        given = checked_modules(modules, self._stages, probe, self.rank)
        bare, replicas = unwrapped(given, self._stages, data_parallel_group)
        self.module = nn.ModuleList(bare)
        check_sharding(self._by_stage(), replicas)
        if isinstance(self.group, LocalGroup):
            claim_modules(self.group, self._by_stage())
        else:
            ways = [] if transport else edges(probe)
            self.group.connect(ways, device_of(self.module), self.rank)
        self._ties = ties_of(self._by_stage(), tied)
        self._replicas = Replicas(self.group, self.rank, self._by_stage, self._ties, replicas)

    def step(
        self,
        *inputs: Tensor | None,
        num_chunks: int = 0,
        criterion: Criterion | None = None,
        labels: Tensors | None = (),
        return_outputs: bool = False,
        loss_scale: float | Tensor = 1.0,
        gather_loss: bool = False,
        **keywords: Any,
    ) -> tuple[Tensor | None, Any]:
        """Trains on one batch: forward and backward of every microbatch, gradients summed into ``.grad``.

        Under ``torch.no_grad()``, or in ``eval()`` without a criterion, it is inference: forwards alone.

        Args:
            inputs: where stage 0 is (DualPipe: on the first and the last rank), the arguments of stage 0,
                tensors or ``None``, for the microbatches that enter there. Ignored elsewhere.
            num_chunks: how many microbatches, over all directions. Each tensor is cut into as many
                equal parts along ``batch_dim`` as microbatches enter there (DualPipe: half as many).
                With a :class:`~dualpipe_rs.Schedule` it may be left out. In inference the parts may differ by
                one sample, and some be empty: a data set's last batch need not divide.
            criterion: ``criterion(*outputs, *labels)`` gives the loss of a microbatch, a tensor with one
                element. Needed for training where the last stage is; may be given on every rank.
            labels: where the last stage is, a tensor or several, cut like inputs. In DualPipe the first
                rank ends what entered at the last one: it takes the labels of that one's inputs.
            return_outputs: return what the last stage returns, too.
            loss_scale: what each loss is multiplied by before its backward, such as ``1 / num_chunks`` for
                gradients of the mean. The losses returned are not scaled.
            gather_loss: return the losses of all microbatches, in their order, on every rank. All ranks say
                so.
            keywords: further arguments of the stages, such as masks: tensors, cut along ``batch_dim`` into
                all ``num_chunks`` microbatches, and anything else, which is the same for all of them. Each
                rank is given those that its stages take; a stage gets those that its ``forward`` names.

        Returns:
            ``(loss, outputs)`` where the last stage is: the losses of the microbatches there, a tensor of
            shape ``(microbatches,)`` without a graph (``None`` without criterion; a microbatch without
            samples has none), and the outputs of the last stage joined along ``batch_dim`` (``None`` unless
            asked for). ``(None, None)`` elsewhere.

        Raises:
            UsageError: before any work: an illegal number of microbatches, a batch that does not divide,
                no inputs, labels or criterion where they are needed.
            RankError: on every rank: a rank failed. The next step is right, unless a process is lost: then
                the next step raises at once. Gradients are as before the step, or the message says that they
                are not.
        """
        training = torch.is_grad_enabled() and (self.training or criterion is not None)
        with self._or_refuse():
            schedule = self._schedule(num_chunks, training)
            batch = share(
                schedule,
                self.rank,
                inputs,
                labels,
                criterion,
                keywords,
                training=training,
                dim=self.batch_dim,
            )
            check_keywords(keywords, self.module, self.rank)
            worker = Worker(
                self._by_stage(),
                schedule.num_stages,
                batch,
                criterion,
                self._store,
                split=schedule.split_backwards(self.rank),
                training=training,
                keep_outputs=return_outputs,
                loss_scale=loss_scale,
                declared=self._settled_declaration(),
                around=generator_gate.SharedGenerator(),
            )
        if training:
            self._replicas.before_training()
        settings = self._settings() + (", gather_loss=True" if gather_loss else "")
        with self._running(worker):
            run = self.group.step if self._on_gpu is None else self._on_gpu.step
            timeline = run(schedule, worker, self.rank, settings, self.p2p)
        self.timeline = timeline if self._measure else None
        if self.timeline is not None:
            log_step(self.timeline, self.rank)
        losses = worker.losses
        if gather_loss:
            everywhere = self.group.exchange(losses, "gathers the losses")
            losses = {m: loss for some in everywhere for m, loss in some.items()}
        return gathered(losses, worker.outputs, self.batch_dim)

    def sync_gradients(self) -> None:
        """Makes the gradients of all copies of a parameter equal: one flat sum a type over their holders.

        Copies of a stage on two ranks (DualPipe) saw a half each of the microbatches, and those of tied
        parameters a use each: they are summed. Data-parallel replicas are averaged, as
        ``DistributedDataParallel`` does. A missing gradient counts as zero, and stays ``None`` where all
        are. Without any copies there is nothing to do.

        All ranks call it, once, after the last accumulated step and before the optimizer's.

        Raises:
            UsageError: it was called on these gradients before, a gradient is sparse, or the holders' copies
                are not of one kind.
        """
        self._replicas.sum_gradients()

    def assert_replicas_equal(self) -> None:
        """Compares all copies of each parameter, bit for bit (not of buffers). All ranks call it.

        Raises:
            UsageError: on every rank: a copy differs. The message names stage, parameter and two ranks.
        """
        self._replicas.assert_equal()

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Scales the gradients so that their norm over the whole model is at most ``max_norm``, in place.

        As ``torch.nn.utils.clip_grad_norm_`` on the uncut model: each stage, shared parameter and tie counts
        once. All ranks call it, after :meth:`sync_gradients`.

        Args:
            max_norm: the greatest norm allowed.
            norm_type: its order, such as 2 or ``math.inf``.
            error_if_nonfinite: raise if the norm is infinite or not a number.

        Returns:
            The norm before clipping, a float64 tensor of shape (), the same on every rank.

        Raises:
            RuntimeError: on every rank: the norm is not finite and ``error_if_nonfinite`` is set.
        """
        return clipping.clip_grad_norm_(
            self.group, self._replicas.layout, max_norm, norm_type, error_if_nonfinite
        )

    def zero1(
        self,
        optimizer_class: type[torch.optim.Optimizer],
        *,
        param_groups: zero.ParamGroups | None = None,
        **options: Any,
    ) -> torch.optim.Optimizer:
        """An optimizer of which each state is kept on one rank alone (ZeRO-1). All ranks call it.

        Each parameter is stepped by one of its holders: under DualPipe a rank steps one of its two stages and
        its mirror the other; between data-parallel replicas parameters are shared out by size. After each
        ``optimizer.step()``, which all ranks call, the holder sends the others the result. The gradients of
        all copies must be equal: :meth:`sync_gradients` first. ``optimizer.zero_grad()`` clears all
        gradients of this rank; schedulers of the learning rate work as with any optimizer.

        Args:
            optimizer_class: such as ``torch.optim.AdamW``; of the kind that steps each parameter alone.
            param_groups: takes a list of (name, parameter), this rank's share under names such as
                ``"3.weight"`` (stage 3), and returns parameter groups of it. By default all are one group.
            options: the optimizer's own, such as ``lr``.

        Raises:
            UsageError: ``optimizer_class`` is no optimizer's, or a group holds what another rank steps.
        """
        return self._replicas.zero1(optimizer_class, param_groups, options)

    def schedule_for(self, num_chunks: int = 0) -> Schedule:
        """The order of a training step of so many microbatches, to be shown or simulated.

        Raises:
            UsageError: the pipeline's schedule does not exist for them.
        """
        if isinstance(self._given, str):
            try:
                return _core.schedule(self._given, self.num_ranks, num_chunks)
            except UsageError as error:
                left_out = (
                    "" if num_chunks else "num_chunks, the number of microbatches, was left out or is 0: "
                )
                raise UsageError(f"{left_out}{error}") from None
        if num_chunks not in (0, self._given.num_microbatches):
            raise UsageError(
                f"num_chunks={num_chunks}, and the schedule has {self._given.num_microbatches} microbatches; "
                "leave num_chunks out, or give a schedule for it"
            )
        return self._given

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """Parameters, persistent buffers and extra state of the whole model. All ranks of the group call it.

        Names are those of the uncut model: the keys of the stages where no two stages have one in common,
        as after :func:`~dualpipe_rs.partition`, else those of ``nn.Sequential(*stages)``, such as
        ``"3.weight"``. What ``torch.compile`` and activation checkpointing add to names is left out.

        Args:
            *args: ``destination``, ``prefix`` and ``keep_vars`` by position, as ``nn.Module`` takes them.
            destination: a dict to add to, instead of a new one.
            prefix: put before each name.
            keep_vars: give this rank's own as parameters, not detached.

        Returns:
            A dict by name on every rank, by stage and then in the module's own order. This rank's own
            tensors are not copies; those of other ranks are, on the CPU (ranks that are threads of
            one process share them).

        Raises:
            UsageError: the two copies of a stage have different keys.
        """
        given = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False))
        options = {"destination": destination, "prefix": prefix, "keep_vars": keep_vars, **given}
        return checkpoint.full_state(self._here(), **options)

    def local_state_dict(self, keep_vars: bool = False) -> dict[str, Any]:
        """This rank's share of :meth:`state_dict`, not copied. All ranks of the group call it: names travel.

        It is what ``torch.distributed.checkpoint`` saves and loads in place, without a rank that has it all.
        """
        return checkpoint.local_state(self._here(), keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Takes this rank's stages from a dict by global names. All ranks of the group call it: names travel.

        Args:
            state_dict: of :meth:`state_dict` under any placement, of the uncut model, or of
                :meth:`local_state_dict` under the same placement.
            strict: refuse a dict that lacks something of this rank's, or holds what no stage has.
            assign: take over the given tensors, as ``nn.Module.load_state_dict`` does, instead of copying
                from them. Ranks that are threads need a dict each then.

        Returns:
            ``missing_keys``, of this rank, and ``unexpected_keys``, that no stage of the pipeline has.

        Raises:
            CheckpointError: (a ``RuntimeError``) names are missing or unknown while ``strict``, or shapes
                differ. Nothing was loaded on this rank.
        """
        return checkpoint.load_state(self._here(), state_dict, strict, assign)

    def optimizer_state_dict(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states of all ranks' optimizers as one, by name. All ranks of the group call it.

        The ranks' parameter groups are merged by position. A rank may hold any of its parameters, but needs
        every group, an empty one if need be.

        Args:
            optimizer: this rank's, over parameters of its stages.

        Returns:
            On every rank ``{"state": {name: {...}}, "param_groups": [{..., "params": [name, ...]}]}``, as
            ``torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`` of the uncut model gives it.
            Tensors of this rank's own optimizer are not copies; others are, on the CPU.

        Raises:
            UsageError: options of a group differ between ranks, or a parameter is of no stage here.
        """
        return checkpoint.full_optimizer_state(self._here(), optimizer)

    def load_optimizer_state_dict(self, optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
        """Takes what this rank's optimizer holds. All ranks of the group call it: names travel.

        Options such as ``lr`` come from the groups, as with ``optimizer.load_state_dict``. A parameter that
        had no state yet when it was saved has none afterwards.

        Args:
            optimizer: this rank's, with as many parameter groups as the saved one.
            state_dict: of :meth:`optimizer_state_dict`, under any placement and split over ranks, or of
                torch's ``get_optimizer_state_dict`` of the uncut model. It is copied.

        Raises:
            CheckpointError: (a ``RuntimeError``) a parameter is in another group or none, or the groups or
                names are not this pipeline's. Nothing was loaded on this rank.
        """
        checkpoint.load_optimizer_state(self._here(), optimizer, state_dict)

    def extra_repr(self) -> str:
        """The schedule and the rank, for the module's repr."""
        return f"schedule={self._given!r}, rank={self.rank} of {self.num_ranks}, stages={self._stages}"

    # -- the schedule of a step -------------------------------------------------------------------

    def _probe(self) -> Schedule:
        """A schedule from which to read which stages this rank holds; verified if it was given."""
        if isinstance(self._given, str):
            return self._named_probe(self._given)
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

    def _named_probe(self, name: str) -> Schedule:
        try:
            return _core.schedule(name, self.num_ranks, 2 * self.num_ranks)
        except UsageError as error:
            if self.num_ranks == 1 and current_group() is None and name in _core.schedule_names():
                raise UsageError(
                    f"{name} needs more than this one rank; make the pipeline inside "
                    "dualpipe_rs.run_local(fn, num_ranks), which calls fn once for each rank, or under "
                    "torchrun after torch.distributed.init_process_group()"
                ) from error
            raise

    def _schedule(self, num_chunks: int, training: bool) -> Schedule:
        key = (num_chunks, training)
        if key not in self._schedules:
            schedule = self.schedule_for(num_chunks)
            self._schedules[key] = schedule if training else schedule.forward_only()
        return self._schedules[key]

    def _here(self) -> checkpoint.Here:
        return checkpoint.Here(self.group, self.rank, self._by_stage(), self._ties, self._replicas)

    # -- around the run ---------------------------------------------------------------------------

    def _by_stage(self) -> dict[int, nn.Module]:
        return dict(zip(self._stages, self.module, strict=True))

    @contextmanager
    def _or_refuse(self) -> Iterator[None]:
        """Around what a rank does before it meets the others: they are told if it cannot come."""
        try:
            yield
        except Exception as error:
            # A rank that has been told of another's trouble has nothing to tell.
            if not isinstance(error, RankError):
                self.group.refuse(self.rank, f"{type(error).__name__}: {error}")
            raise

    def _settled_declaration(self) -> Declared:
        """What was declared before this pipeline was made, or else before its first step."""
        if self._declared == Declared() and self.timeline is None:
            self._declared = declared()
        return self._declared

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
    def _running(self, worker: Worker) -> Iterator[None]:
        """Binds the weight-gradient store for the step; after a failure leaves no trace of it."""
        without = [p for p in self.parameters() if p.grad is None]
        accumulating = any(p.grad is not None for p in self.parameters())
        before = wg.current()
        wg.bind(self.module, self._store)
        try:
            with generator_gate.watching():
                yield
        except BaseException as error:
            self._store.clear()
            for parameter in without:
                parameter.grad = None
            if accumulating and worker.has_begun and isinstance(error, RankError):
                advice = "gradients that were there before the step may hold a part of it now: zero them"
                error.args = (f"{error.args[0]} ({advice})",)
            raise
        finally:
            wg.unbind(self.module)
            wg.set_current(before)


class DualPipe(Pipeline):
    """DeepSeek's DualPipe: two pipelines in opposite directions over the same ranks.

    Rank r holds stages r and p−1−r, so the modules of ranks r and p−1−r are made equal at the start, and
    their gradients must be summed after each step (:meth:`~Pipeline.sync_gradients`). ``step()`` takes an
    even ``num_chunks``, at least twice the ranks; half of it enters at each end. See :class:`Pipeline`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: Any = None,
        rank_mapping: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(modules, "dualpipe", batch_dim, process_group, rank_mapping, **options)


class DualPipeV(Pipeline):
    """DeepSeek's DualPipeV: DualPipe folded into a V, each weight held once.

    Rank r holds stages r and 2p−1−r; inputs and labels are rank 0's. ``step()`` takes at least twice as many
    ``num_chunks`` as ranks. See :class:`Pipeline`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: Any = None,
        rank_mapping: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(modules, "dualpipev", batch_dim, process_group, rank_mapping, **options)
