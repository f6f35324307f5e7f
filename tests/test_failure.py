"""What goes wrong is said, on every rank, and the next step is right.

Bad input is a UsageError before any work; a stage that fails makes every rank raise RankError. Nothing
here may hang: pytest's own timeout (pyproject.toml) is the deadline.
"""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import Outcome, criterion, data_for, gradients, serial, stages_for, step_arguments

import dualpipe_rs as dp


def linears(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(4, 4) for _ in range(count)]


def run_dualpipev(ranks: int = 2, *, modules=None, interleaved: bool = False, split: bool = True, **step):
    """One step of DualPipeV on linears with what a test changes; a value may be a function of the rank."""
    held = modules or (lambda rank: linears(2))
    given = {"num_chunks": 2 * ranks, "criterion": F.mse_loss, "labels": torch.ones(4 * ranks, 4)} | step
    inputs = given.pop("inputs", (torch.ones(4 * ranks, 4),))

    def rank_main(group):
        pipe = dp.DualPipeV(held(group.rank()), split_weight_grad=split)
        options = {k: v(group.rank()) if k == "for_rank" else v for k, v in given.items()}
        options |= options.pop("for_rank", {})
        return pipe.step(*inputs, **options)

    return dp.run_local(rank_main, ranks, interleaved=interleaved)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_chunks": 3}, "at least twice as many microbatches.*nearest legal size is 2 ranks and 4"),
        ({"num_chunks": 0}, "num_chunks.* was left out.*nearest legal size is 2 ranks and 4"),
        ({"num_chunks": -1}, "num_microbatches is -1"),
        ({"num_chunks": 5}, "size 8 along dimension 0, which does not divide into 5.*nearest.*is 10"),
        ({"labels": torch.ones(6, 4)}, "label 0 has size 6 .* does not divide into 4"),
        ({"labels": {"target": torch.ones(8, 4)}}, r"labels is of type dict; .*\(\*outputs, \*labels\)"),
        ({"labels": ()}, "no labels, and the criterion takes input, target"),
        ({"labels": None}, "no labels"),
        ({"labels": (None,)}, "no labels"),
        ({"labels": (), "criterion": nn.MSELoss()}, "no labels, and the criterion takes input, target"),
        ({"criterion": None}, "no criterion"),
        ({"inputs": ()}, "holds stage 0 and was given no inputs"),
        ({"inputs": (None,)}, "holds stage 0 and was given no inputs"),
        ({"inputs": (torch.tensor(1.0),)}, "has 0 dimensions"),
        ({"inputs": ([1, 2],)}, "argument 0 is of type list"),
        (
            {"modules": lambda rank: linears(3)},
            "was given 3 modules; .* holds stages [01], [23]: one module each",
        ),
        ({"modules": lambda rank: linears(1)[0]}, "was given 1 modules"),
        ({"modules": lambda rank: [nn.Linear(4, 4), "x"]}, "holds a str; each stage is a torch.nn.Module"),
        ({"modules": lambda rank: [nn.Linear(4, 4), None]}, "holds a NoneType; each stage is"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes, says):
    calls = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(dp.UsageError, match=f"(?s){says}"):
            run_dualpipev(**changes)
    finally:
        handle.remove()
    assert not calls


def test_odd_ranks_are_refused_at_construction():
    with pytest.raises(dp.UsageError, match=r"even number of ranks.*nearest legal size is 4 ranks"):
        dp.run_local(lambda group: dp.DualPipe(linears(2)), 3)


def test_a_module_on_two_ranks_is_refused():
    shared = linears(2)
    with pytest.raises(
        dp.UsageError, match=r"the module of stage . on rank . is the same object as the module"
    ):
        run_dualpipev(modules=lambda rank: shared)


def test_a_parameter_on_two_ranks_is_refused():
    shared = linears(1)[0]
    with pytest.raises(dp.UsageError, match=r"parameter '0.weight' of module of stage .* is the same object"):
        run_dualpipev(modules=lambda rank: [nn.Sequential(shared), nn.Linear(4, 4)])


def test_shared_layers_without_parameters_are_fine():
    gelu = nn.GELU()
    run_dualpipev(modules=lambda rank: [nn.Sequential(nn.Linear(4, 4), gelu) for _ in range(2)])


@pytest.mark.parametrize(
    ("mapping", "says"), [([0, 0], "another rank"), ([0], "another rank"), ([0, 2], "another rank")]
)
def test_bad_rank_mapping(mapping, says):
    with pytest.raises(dp.UsageError, match=says):
        dp.run_local(lambda group: dp.DualPipeV(linears(2), 0, group, mapping), 2)


def test_rank_mappings_that_differ():
    def rank_main(group):
        mapping = [0, 1] if group.rank() == 0 else [1, 0]
        pipe = dp.DualPipeV(linears(2), 0, group, mapping)
        pipe.step(torch.ones(4, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(4, 4))

    with pytest.raises(dp.UsageError, match=r"taken by [02] members"):
        dp.run_local(rank_main, 2)


def test_bad_options():
    with pytest.raises(dp.UsageError, match="batch_dim is '0'"):
        dp.DualPipeV(linears(2), "0")
    with pytest.raises(dp.UsageError, match="split_weight_grad is 1"):
        dp.DualPipeV(linears(2), split_weight_grad=1)
    with pytest.raises(dp.UsageError, match=r"dualpipe needs more than this one rank; .*run_local"):
        dp.DualPipe(linears(2))
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; copy or save the stages"):
        copy.deepcopy(dp.DualPipeV(linears(2)))


def test_helpers_of_utils_check_their_arguments():
    with pytest.raises(dp.UsageError, match="cut into 0 microbatches"):
        dp.utils.scatter(torch.ones(2), 0, 0)
    assert dp.utils.cat_tensor([], 0) is None
    assert dp.utils.cat_tensor([torch.tensor(1.0), torch.tensor(2.0)], 0).tolist() == [1.0, 2.0]


def test_ranks_of_which_one_evaluates():
    def rank_main(group):
        pipe = dp.DualPipeV(linears(2)).eval()
        criterion, labels = (F.mse_loss, torch.ones(8, 4)) if group.rank() == 0 else (None, ())
        pipe.step(torch.ones(8, 4), num_chunks=4, criterion=criterion, labels=labels)

    with pytest.raises(dp.UsageError, match=r"give all of them the criterion, or .*no_grad"):
        dp.run_local(rank_main, 2)


def test_what_is_no_group_or_schedule():
    with pytest.raises(dp.UsageError, match="process_group is of type str"):
        dp.DualPipeV(linears(2), process_group="gloo")
    with pytest.raises(dp.UsageError, match="schedule is of type int"):
        dp.Pipeline(linears(2), 3)
    with pytest.raises(dp.UsageError, match=r"no schedule named .zigzag."):
        dp.Pipeline(linears(2), "zigzag")
    with pytest.raises(dp.UsageError, match="for 4 ranks and the group has 1"):
        dp.Pipeline(linears(2), dp.schedule("dualpipev", 4, 8))
    with pytest.raises(dp.UsageError, match="num_ranks is 0"):
        dp.run_local(lambda group: None, 0)
    broken = dp.Schedule.from_text(dp.schedule("dualpipev", 1, 2).to_text().replace(" 0W1", ""))
    with pytest.raises(dp.ScheduleError, match="0W1 is missing"):
        dp.Pipeline(linears(2), broken)


def test_ranks_that_run_different_steps():
    with pytest.raises(dp.UsageError, match=r"rank 0 .*8 microbatches.*rank 1 .*4 microbatches.*the same"):
        run_dualpipev(for_rank=lambda rank: {"num_chunks": 4 if rank else 8})


def test_a_rank_that_does_not_come():
    def rank_main(group):
        pipe = dp.DualPipeV(linears(2))
        if group.rank() == 1:
            return None
        return pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))

    with pytest.raises(
        dp.RankError, match="rank 1 has returned, and rank 0 asks who holds which parameters with it"
    ) as caught:
        dp.run_local(rank_main, 2)
    assert caught.value.rank == 1


def test_a_rank_that_raises_outside_a_step():
    def rank_main(group):
        pipe = dp.DualPipeV(linears(2))
        if group.rank() == 1:
            raise KeyError("lost")
        pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))

    with pytest.raises(KeyError, match="lost"):
        dp.run_local(rank_main, 2)


# -- failures in a step ---------------------------------------------------------------------------


class Failing(nn.Module):
    """A stage that fails in its n-th forward or backward, once."""

    def __init__(self, stage: nn.Module, where: str, n: int, error: BaseException) -> None:
        super().__init__()
        self.stage, self.where, self.left, self.error = stage, where, n, error

    def forward(self, *values):
        outputs = self.stage(*values)
        if self.where == "forward":
            self.tick()
        else:
            outputs[0].register_hook(lambda grad: self.tick())
        return outputs

    def tick(self):
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("failing_stage", "n"), [(0, 1), (1, 3), (2, 4), (3, 2), (0, 4)])
def test_a_stage_that_raises(where, failing_stage, n, interleaved):
    schedule = dp.schedule("dualpipev", 2, 4)
    stages, data = stages_for(schedule), data_for(schedule)
    failing_rank = schedule.rank_of(failing_stage, 0)

    def rank_main(group):
        held = schedule.stages_of(group.rank())
        modules = [copy.deepcopy(stages[s]) for s in held]
        if failing_stage in held:
            at = held.index(failing_stage)
            modules[at] = Failing(modules[at], where, n, ZeroDivisionError("boom"))
        pipe = dp.DualPipeV(modules)
        inputs, labels = step_arguments(schedule, data, group.rank())

        def step():
            return pipe.step(*inputs, num_chunks=4, criterion=criterion, labels=labels)[0]

        with pytest.raises(dp.RankError) as caught:
            step()
        assert all(p.grad is None for p in pipe.parameters())
        loss = step()
        plain = [m.stage if isinstance(m, Failing) else m for m in modules]
        return caught.value, loss, dict(zip(held, gradients(plain), strict=True))

    results = dp.run_local(rank_main, 2, interleaved=interleaved)
    for error, _, _ in results:
        assert error.rank == failing_rank
        assert schedule.rank(failing_rank)[error.slot] == error.action
        assert f"{failing_stage}" in error.action
        assert str(error).startswith(
            f"rank {failing_rank}, slot {error.slot}, {error.action}: ZeroDivisionError: boom"
        )
        assert isinstance(error.__cause__, ZeroDivisionError)
    by_stage = {stage: grads for _, _, held in results for stage, grads in held.items()}
    loss = next(loss for _, loss, _ in results if loss is not None)
    off = Outcome(loss, [by_stage[s] for s in range(4)]).off_from(serial(stages, data))
    assert max(off) <= 1e-12


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returned NoneType"),
        ("text", "returned str"),
        ((), "returned tuple of nothing"),
        ((None,), "returned tuple of NoneType"),
        ((torch.ones(1), 3), "returned tuple of Tensor, int"),
    ],
)
def test_a_stage_that_returns_no_tensor(returned, says, interleaved):
    class Odd(nn.Module):
        def forward(self, x):
            return returned

    def modules(rank):
        return [nn.Linear(4, 4), Odd()] if rank else linears(2)

    with pytest.raises(
        dp.RankError, match=f"rank 1, slot .*stage 2 {says} for microbatch 0; a stage returns"
    ):
        run_dualpipev(modules=modules, interleaved=interleaved)


def test_a_criterion_that_returns_no_scalar():
    with pytest.raises(dp.RankError, match=r"criterion returned a tensor of shape \(2, 4\) for microbatch 0"):
        run_dualpipev(criterion=lambda output, target: output - target)


def test_a_loss_that_needs_no_gradient():
    with pytest.raises(dp.RankError, match=r"loss that needs no gradient for microbatch 0.*no_grad"):
        run_dualpipev(criterion=lambda output, target: F.mse_loss(output, target).detach())


def test_a_fused_pair_that_makes_no_loss():
    class Fused(nn.Linear):
        @classmethod
        def overlapped_forward_backward(
            cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, grads1
        ):
            outputs = module0(*inputs0)
            if loss1 is not None:
                loss1.backward()
            else:
                dp.utils.run_backward(outputs1, grads1)
            return outputs, None

    with pytest.raises(
        dp.RankError, match=r"overlapped_forward_backward returned NoneType for microbatch \d; a loss is"
    ):
        run_dualpipev(modules=lambda rank: [Fused(4, 4), Fused(4, 4)], num_chunks=8)


def test_a_weight_gradient_put_outside_of_i_is_not_lost_in_silence():
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            dp.WeightGradStore.put(lambda: None)  # without asking whether it is enabled
            return g * 2

    class Tail(nn.Linear):
        def forward(self, x):
            return Careless.apply(super().forward(x))

    with pytest.raises(dp.RankError, match=r"put\(\) was called 1 times outside of an I"):
        run_dualpipev(modules=lambda rank: [Tail(4, 4), Tail(4, 4)])


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
def test_a_collective_inside_a_stage(interleaved):
    class Calling(nn.Linear):
        call = None

        def forward(self, x):
            self.call()
            return super().forward(x)

    def rank_main(group):
        modules = [Calling(4, 4), nn.Linear(4, 4)]
        pipe = dp.DualPipeV(modules)
        step = {"num_chunks": 4, "criterion": F.mse_loss, "labels": torch.ones(8, 4)}
        for call, says in [
            (lambda: group.exchange(None), "a collective was called on rank . inside a stage"),
            (lambda: pipe.step(torch.ones(8, 4), **step), r"step\(\) was called on rank . inside a stage"),
            (lambda: dp.run_local(print, 2), r"run_local\(\) was called inside a stage"),
        ]:
            modules[0].call = call
            with pytest.raises(dp.RankError, match=says):
                pipe.step(torch.ones(8, 4), **step)
        modules[0].call = lambda: None
        pipe.step(torch.ones(8, 4), **step)

    dp.run_local(rank_main, 2, interleaved=interleaved)


def test_a_pipeline_of_its_own_inside_a_stage():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = (dp.DualPipeV(linears(2), process_group=alone()),)  # Not a submodule.

        def forward(self, x):
            (pipe,) = self.held
            with torch.no_grad():
                _, outputs = pipe.step(x.repeat(2, 1), num_chunks=2, return_outputs=True)
            return x + outputs[: len(x)]

    run_dualpipev(modules=lambda rank: [nn.Sequential(nn.Linear(4, 4), Nested()) for _ in range(2)])


def alone() -> dp.LocalGroup:
    """A group of one rank."""
    return dp._core.local_groups(1)[0]


def test_a_pipeline_outlives_its_run_local_in_words():
    pipes = dp.run_local(lambda group: dp.DualPipeV(linears(2)), 2)

    def rank_main(group):
        step = {"num_chunks": 4, "criterion": F.mse_loss, "labels": torch.ones(8, 4)}
        return pipes[group.rank()].step(torch.ones(8, 4), **step)

    with pytest.raises(dp.RankError, match="works inside the run_local that it was made in"):
        dp.run_local(rank_main, 2)


def test_a_failed_step_leaves_nothing_behind():
    """The error, its traceback, the models and the batch are freed once the caller lets go of them."""
    traces = []

    def rank_main(group):
        modules = [nn.Linear(4, 4), Failing(nn.Linear(4, 4), "forward", 1, ZeroDivisionError("boom"))]
        pipe = dp.DualPipeV(modules, split_weight_grad=False)
        batch = torch.ones(8, 4)
        traces.extend([weakref.ref(modules[0]), weakref.ref(batch)])
        with pytest.raises(dp.RankError, match="boom"):
            pipe.step(batch, num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))

    dp.run_local(rank_main, 2)
    gc.collect()
    assert [trace() for trace in traces] == [None] * 4


def test_gradients_that_were_there_are_told_of():
    def rank_main(group):
        modules = [nn.Linear(4, 4), Failing(nn.Linear(4, 4), "forward", 99, ZeroDivisionError("boom"))]
        pipe = dp.DualPipeV(modules)
        step = {"num_chunks": 4, "criterion": F.mse_loss, "labels": torch.ones(8, 4)}
        pipe.step(torch.ones(8, 4), **step)
        modules[1].left = 2
        with pytest.raises(dp.RankError, match=r"boom.*may hold a part of it now: zero them"):
            pipe.step(torch.ones(8, 4), **step)

    dp.run_local(rank_main, 2)


def test_nothing_is_left_enabled_or_bound_after_an_exception():
    schedule = dp.schedule("dualpipev", 1, 4)

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ZeroDivisionError("in the backward")

    class Tail(nn.Module):
        def forward(self, x):
            return NoBackward.apply(x)

    linear = nn.Linear(4, 4)
    pipe = dp.Pipeline([linear, nn.Sequential(nn.Linear(4, 4), Tail())], schedule)
    with pytest.raises(dp.RankError, match="in the backward"):
        pipe.step(torch.ones(8, 4), criterion=F.mse_loss, labels=torch.ones(8, 4))
    assert not dp.WeightGradStore.enabled
    linear(torch.ones(2, 4)).sum().backward()
    assert linear.weight.grad is not None
