"""What a user may do around odd steps: shapes that change, uneven batches, masks, declared shapes.

One job of processes makes many checks, as starting one takes as long as all of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from odd import WIDTH, Data, Odd, Outcome, Rank, data_of, on_ranks, rank_of, serially
from processes import run_processes
from torch import Tensor, nn

import dualpipe_rs as dp

EQUAL = 1e-12
SCHEDULES = [("dualpipe", 2, 4), ("dualpipev", 2, 5), ("zb-v", 2, 4), ("1f1b", 2, 3)]
WHERE = pytest.mark.parametrize("where", ["threads", "processes"])


def assert_right(rank: Rank, outcome: Outcome, data: Data, times: float = 1.0) -> None:
    """This rank's part of a step is ``times`` that of the serial one."""
    expected = serially(rank.name, rank.schedule.num_stages, data)
    for named in expected.gradients.values():
        for grad in named.values():
            if grad is not None:
                grad *= times
    expected.gradients = {stage: expected.gradients[stage] for stage in outcome.gradients}
    assert outcome.off(expected) <= EQUAL


# -- what changes from step to step ---------------------------------------------------------------


def _changed_shapes(group: Any) -> None:
    for sizes in SCHEDULES:
        schedule = dp.schedule(*sizes)
        rank = rank_of(group, "LengthsDiffer", schedule)
        short, long = (data_of(schedule.num_microbatches, size=size) for size in (2, 3))
        assert_right(rank, rank.train(short), short)
        for _ in range(2):
            if group is not None:  # Between threads nothing is made ahead.
                assert_right(rank, rank.train(long), long)
                continue
            with pytest.raises(dp.RankError, match=r"what stage \d hands on for microbatch \d is \(") as told:
                rank.train(long)
            assert "dynamic_shapes=True" in str(told.value)
            is_own = told.value.rank == rank.pipe.rank
            assert isinstance(told.value.__cause__, dp.UsageError) or not is_own
            assert "UsageError" in str(told.value)
        assert_right(rank, rank.train(short), short)
        changing = rank_of(group, "LengthsDiffer", schedule, dynamic_shapes=True)
        for data in (short, long, short):
            assert_right(changing, changing.train(data), data)


@WHERE
def test_shapes_that_change_between_steps(where):
    on_ranks(where, 2, _changed_shapes)


def _missing_gradients(group: Any) -> None:
    """Stages that make nothing of an output in some steps: its gradient is None in these."""
    schedule, data = dp.schedule("dualpipev", 2, 4), data_of(4)
    expected = {}
    for uses in (True, False):
        rank = rank_of(group, "Switched", schedule, switch=uses)
        expected[uses] = rank.train(data)
    for first in (True, False):
        rank = rank_of(group, "Switched", schedule, switch=first, dynamic_shapes=not first)
        for uses in (first, not first, first):
            rank.switch(uses)
            assert rank.train(data).off(expected[uses]) <= EQUAL
    if group is None:
        rank = rank_of(group, "Switched", schedule, switch=False)
        rank.train(data)
        rank.switch(True)
        with pytest.raises(
            dp.RankError, match=r"the gradient that stage 3 hands back .* dynamic_shapes=True"
        ):
            rank.train(data)


@WHERE
def test_a_gradient_that_is_missing_in_one_step(where):
    on_ranks(where, 2, _missing_gradients)


# -- a data set's last batch ----------------------------------------------------------------------


class Plain(Odd):
    """One tensor after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_layer(x)


class Masked(Odd):
    """Stages take keywords by name; the odd ones no mask."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.apply_layer(x if mask is None else x * mask) * scale


class Scaled(Odd):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.apply_layer(x) * scale


def summed(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def plain_pipe(group: Any, schedule: dp.Schedule, make: Any = Plain, **options: Any) -> dp.Pipeline:
    rank = torch.distributed.get_rank() if group is None else group.rank()
    options.setdefault("timeout", 30.0)
    return dp.Pipeline([make(s) for s in schedule.stages_of(rank)], schedule, process_group=group, **options)


def ends_of(schedule: dp.Schedule) -> tuple[list[int], list[int]]:
    """The ranks where microbatches enter and leave, in the order of the microbatches."""
    stages = (0, schedule.num_stages - 1)
    first, last = (
        list(dict.fromkeys(schedule.rank_of(s, m) for m in range(schedule.num_microbatches))) for s in stages
    )
    return first, last


def _uneven(group: Any) -> None:
    for sizes in (("dualpipe", 2, 4), ("dualpipev", 2, 4), ("1f1b", 2, 6)):
        schedule = dp.schedule(*sizes)
        pipe = plain_pipe(group, schedule)
        enter, leave = ends_of(schedule)
        for rows in (8, 7, 3, 1, 8):
            batches = [data_of(rows, seed, size=1).x for seed, _ in enumerate(enter)]
            x = batches[enter.index(pipe.rank)] if pipe.rank in enter else None
            y = batches[leave.index(pipe.rank)] if pipe.rank in leave else None
            with torch.no_grad():
                losses, outputs = pipe.step(
                    x, criterion=summed, labels=y, return_outputs=True, num_chunks=sizes[2]
                )
                if y is None:
                    assert (losses, outputs) == (None, None)
                    continue
                expected = y
                for stage in range(schedule.num_stages):
                    expected = Plain(stage)(expected)
            assert outputs.shape == expected.shape
            assert float((outputs - expected).abs().max()) <= EQUAL
            assert losses.shape == (min(sizes[2] // len(leave), rows),)
            assert float((losses.sum() - summed(expected, y)).abs()) <= EQUAL


@WHERE
def test_an_uneven_last_batch_in_inference(where):
    on_ranks(where, 2, _uneven)


# -- keyword arguments ----------------------------------------------------------------------------


def _masks(group: Any, ranks: int) -> None:
    for family in ("dualpipe", "dualpipev", "zb-v", "1f1b", "interleaved", "chimera"):
        schedule = dp.schedule(family, ranks, 2 * ranks)
        pipe = plain_pipe(group, schedule, lambda stage: (Scaled if stage % 2 else Masked)(stage))
        data = data_of(2 * ranks)
        masks = (data_of(2 * ranks, seed=9).x > 0).double()
        keywords = {"scale": 0.5}
        if any(stage % 2 == 0 for stage in schedule.stages_of(pipe.rank)):
            keywords["mask"] = masks  # of all microbatches, also where half of them enter
        at = {stage: [m for m in range(2 * ranks) if schedule.rank_of(stage, m) == pipe.rank]
              for stage in (0, schedule.num_stages - 1)}  # fmt: skip
        x, y = (
            torch.cat([batch.split(2)[m] for m in found]) if found else None
            for batch, found in zip((data.x, data.target), at.values(), strict=True)
        )
        losses, _ = pipe.step(
            x, criterion=summed, labels=y, num_chunks=2 * ranks, gather_loss=True, **keywords
        )
        pipe.sync_gradients()
        expected, stages = _serially_masked(schedule.num_stages, data, masks)
        assert float((losses - expected).abs().max()) <= EQUAL
        for stage, module in zip(schedule.stages_of(pipe.rank), pipe.module, strict=True):
            for mine, theirs in zip(module.parameters(), stages[stage].parameters(), strict=True):
                assert (mine.grad - theirs.grad).norm() <= EQUAL * theirs.grad.norm()
        misspelt = {"masks": masks} if pipe.rank == ranks - 1 else {}
        with pytest.raises((dp.UsageError, dp.RankError), match=r"was given masks=\.\.\., which none of the"):
            pipe.step(x, criterion=summed, labels=y, num_chunks=2 * ranks, **misspelt)
        pipe.step(x, criterion=summed, labels=y, num_chunks=2 * ranks)


def _serially_masked(count: int, data: Data, masks: Tensor) -> tuple[Tensor, list[nn.Module]]:
    stages = [(Scaled if stage % 2 else Masked)(stage) for stage in range(count)]
    losses = []
    for x, mask, y in zip(data.x.split(2), masks.split(2), data.target.split(2), strict=True):
        for index, stage in enumerate(stages):
            x = stage(x, scale=0.5) if index % 2 else stage(x, mask=mask, scale=0.5)
        losses.append(summed(x, y))
        losses[-1].backward()
    return torch.stack(losses).detach(), stages


@pytest.mark.parametrize("ranks", [2, 4])
@WHERE
def test_masks_by_microbatch_under_every_placement(where, ranks):
    on_ranks(where, ranks, _masks, ranks)


class Long(Odd):
    """Repeats its rows as often as a keyword says."""

    def forward(self, x: Tensor, *, times: int = 1) -> Tensor:
        return self.apply_layer(x).repeat(times if self.index == 0 else 1, 1)


def _lengths_by_keyword(group: Any) -> None:
    schedule = dp.schedule("1f1b", 2, 3)
    pipe = plain_pipe(group, schedule, Long)
    x = data_of(3).x
    for times in (1, 3, 2):
        with torch.no_grad():
            _, outputs = pipe.step(x, return_outputs=True, times=times)
        assert outputs is None or len(outputs) == times * len(x)


@WHERE
def test_a_keyword_that_is_no_tensor_may_set_the_shapes_of_inference(where):
    on_ranks(where, 2, _lengths_by_keyword)


# -- DeepSeek's declarations, scaled losses -------------------------------------------------------


def _declared(group: Any) -> None:
    schedule = dp.schedule("1f1b", 2, 3)
    try:
        small, large = data_of(3), data_of(3, size=4)
        ranks = [rank_of(group, "Switched", schedule)]  # declared after it is built
        meet(ranks[0])
        dp.set_p2p_tensor_shapes([(2, WIDTH), (2,), (2, WIDTH)])
        meet(ranks[0])
        assert_right(ranks[0], ranks[0].train(small), small)
        meet(ranks[0])
        dp.set_p2p_tensor_shapes([(4, WIDTH), (4,), (4, WIDTH)])
        meet(ranks[0])
        ranks.append(rank_of(group, "Switched", schedule))  # and before
        assert_right(ranks[1], ranks[1].train(large), large)
        dp.set_p2p_tensor_shapes(None)
        dp.set_p2p_tensor_dtype(torch.float32)
        meet(ranks[0])
        typed = rank_of(group, "Switched", schedule, dynamic_shapes=True)
        meet(ranks[0])
        dp.set_p2p_tensor_dtype(None)
        meet(ranks[0])
        for rank, data, wrong in (
            (ranks[0], small, large),
            (ranks[1], large, small),
            (ranks[0], small, large),
        ):
            assert_right(rank, rank.train(data), data)
            with pytest.raises(
                dp.RankError, match=r"stage 0 returned for microbatch 0 the shapes \[\("
            ) as told:
                rank.train(wrong)
            assert "set_p2p_tensor_shapes() had declared" in str(told.value)
        with pytest.raises(dp.RankError, match=r"set_p2p_tensor_dtype\(\) had declared torch.float32"):
            typed.train(small)
    finally:
        dp.set_p2p_tensor_shapes(None)
        dp.set_p2p_tensor_dtype(None)


def meet(rank: Rank) -> None:
    """The declaration is the process's: ranks that are threads must not change it while others build."""
    rank.pipe.group.exchange(None)


@WHERE
def test_declared_shapes_and_types_hold_by_pipeline(where):
    on_ranks(where, 2, _declared)


def _scaled(group: Any) -> None:
    schedule, data = dp.schedule("dualpipe", 2, 4), data_of(4)
    rank = rank_of(group, "Unused", schedule)
    for scale in (0.25, torch.tensor(3.0, dtype=torch.float64), torch.tensor([2.0])):
        assert_right(rank, rank.train(data, loss_scale=scale), data, float(scale))


@WHERE
def test_scaled_losses(where):
    on_ranks(where, 2, _scaled)


# -- what cannot travel ---------------------------------------------------------------------------


class Sparse(Odd):
    def forward(self, x: Tensor) -> Tensor:
        return self.apply_layer(x).to_sparse() if self.index == 0 else x.to_dense()


class Distributed(Odd):
    def forward(self, x: Any) -> Any:
        from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

        if self.index == 0:
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            return DTensor.from_local(self.apply_layer(x), mesh, [Replicate()], run_check=False)
        return x


def _cannot_travel(rank: int) -> None:
    schedule, data = dp.schedule("1f1b", 2, 3), data_of(3)
    for make, kind in ((Sparse, r"Tensor \(torch.sparse_coo\)"), (Distributed, "DTensor")):
        pipe = plain_pipe(None, schedule, make)
        for mode in (torch.enable_grad, torch.no_grad):
            with (
                mode(),
                pytest.raises(dp.RankError, match=f"stage 0 hands on for microbatch 0 holds a {kind}"),
            ):
                pipe.step(data.x, criterion=lambda x: x.sum())
    rank_data = rank_of(None, "Unused", schedule)
    assert_right(rank_data, rank_data.train(data), data)


def test_sparse_tensors_and_dtensors_are_refused_in_words():
    run_processes(2, _cannot_travel)
