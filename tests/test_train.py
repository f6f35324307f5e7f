"""Training under every schedule equals training serially: losses, and gradients to fp64 rounding.

"Equal" is |difference| / |gradient| over the whole model of at most 1e-12.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import Masks, Outcome, criterion, data_for, gradients, piped, serial, stages_for, step_arguments

import dualpipe_rs as dp
from dualpipe_rs.generator_gate import GeneratorGate
from dualpipe_rs.weight_grad.cut import CutLayer
from dualpipe_rs.worker import Worker

EQUAL = 1e-12
SIZES = [
    ("dualpipe", 2, 4),
    ("dualpipe", 2, 6),
    ("dualpipe", 4, 8),
    ("dualpipe", 4, 10),
    ("dualpipev", 1, 2),
    ("dualpipev", 1, 5),
    ("dualpipev", 2, 5),
    ("dualpipev", 3, 6),
    ("1f1b", 1, 1),
    ("1f1b", 3, 4),
    ("gpipe", 2, 3),
    ("interleaved", 2, 4),
    ("interleaved-zb", 3, 3),
    ("looped-bfs", 2, 3),
    ("zb-h1", 3, 4),
    ("zb-h2", 2, 4),
    ("zb-v", 2, 5),
    ("v-half", 2, 6),
    ("v-min", 3, 5),
    ("chimera", 2, 4),
    ("chimera", 4, 4),
    ("hanayo", 2, 3),
]


def assert_equal(outcome: Outcome, reference: Outcome) -> None:
    loss, gradient = outcome.off_from(reference)
    assert loss <= EQUAL
    assert gradient <= EQUAL


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize(("family", "ranks", "microbatches"), SIZES)
def test_equals_serial(family, ranks, microbatches, split, interleaved):
    schedule = dp.schedule(family, ranks, microbatches)
    stages, data = stages_for(schedule), data_for(schedule)
    outcome = piped(schedule, stages, data, interleaved=interleaved, split_weight_grad=split)
    assert_equal(outcome, serial(stages, data))


@pytest.mark.parametrize("recompute", ["reentrant", "non-reentrant", "own"])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize(("family", "ranks", "microbatches"), [("dualpipe", 4, 8), ("dualpipev", 2, 6)])
def test_dropout_under_checkpointing(family, ranks, microbatches, split, recompute):
    schedule = dp.schedule(family, ranks, microbatches)
    stages, data = stages_for(schedule, masks=Masks(), recompute=recompute), data_for(schedule)
    outcome = piped(schedule, stages, data, split_weight_grad=split)
    assert_equal(outcome, serial(stages, data))


def test_dropout_without_checkpointing():
    schedule = dp.schedule("dualpipe", 4, 8)
    stages, data = stages_for(schedule, masks=Masks()), data_for(schedule)
    assert_equal(piped(schedule, stages, data), serial(stages, data))


def test_checkpointing_runs_alone(monkeypatch):
    """Without the gate masks go wrong: the recomputation draws other ones, and Stage.mask notices."""
    claims = []
    claim = GeneratorGate.claim
    monkeypatch.setattr(GeneratorGate, "claim", lambda gate: (claims.append(1), claim(gate))[1])
    schedule = dp.schedule("dualpipev", 2, 4)
    stages, data = stages_for(schedule, masks=Masks(), recompute="non-reentrant"), data_for(schedule)
    piped(schedule, stages, data)
    # One block a forward; asked again at its recomputation.
    assert len(claims) >= 2 * schedule.num_stages * schedule.num_microbatches
    before = torch.get_rng_state
    assert before.__module__ == "torch.random"


@pytest.mark.parametrize("name", ["DualPipe", "DualPipeV"])
def test_wrappers_by_name(name):
    schedule = dp.schedule(name.lower(), 2, 6)
    stages, data = stages_for(schedule), data_for(schedule)
    outcome = piped(schedule, stages, data, make=lambda modules: getattr(dp, name)(modules))
    assert_equal(outcome, serial(stages, data))


def test_schedule_from_text_and_rank_mapping():
    schedule = dp.Schedule.from_text(dp.schedule("dualpipev", 3, 6).to_text())
    stages, data = stages_for(schedule), data_for(schedule)
    mapping = [2, 0, 1]

    def rank_main(group):
        rank = mapping[group.rank()]
        modules = [copy.deepcopy(stages[stage]) for stage in schedule.stages_of(rank)]
        pipe = dp.Pipeline(modules, schedule, 0, group, mapping)
        assert pipe.rank == rank
        inputs, labels = step_arguments(schedule, data, rank)
        loss, _ = pipe.step(*inputs, criterion=criterion, labels=labels)
        return loss, dict(zip(schedule.stages_of(rank), gradients(modules), strict=True))

    results = dp.run_local(rank_main, 3)
    by_stage = {stage: grads for _, held in results for stage, grads in held.items()}
    losses = next(loss for loss, _ in results if loss is not None)
    assert_equal(Outcome(losses, [by_stage[s] for s in range(6)]), serial(stages, data))


def test_two_runs_at_once_draw_right_masks():
    """One interleaved, one with a rank of its own: neither may draw while the other restores the state."""
    schedules = [dp.schedule("dualpipev", 2, 6), dp.schedule("dualpipev", 1, 6)]
    given = [(s, stages_for(s, masks=Masks(), recompute="non-reentrant"), data_for(s)) for s in schedules]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(piped, *given[0], interleaved=True),
            pool.submit(piped, *given[1]),
        ]
        outcomes = [run.result() for run in runs]
    for outcome, (_, stages, data) in zip(outcomes, given, strict=True):
        assert_equal(outcome, serial(stages, data))


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
def test_stages_that_begin_in_place(split):
    """As a cut between a norm and its ReLU(inplace=True) makes them."""

    class InPlace(nn.Sequential):
        def forward(self, x, number):
            return super().forward(x), number

    schedule = dp.schedule("dualpipev", 2, 4)
    torch.manual_seed(1)
    stages = [InPlace(nn.ReLU(inplace=True), nn.Linear(8, 8).double()) for _ in range(3)]
    stages.append(InPlace(nn.ReLU(inplace=True), nn.Linear(8, 11).double()))
    stages[0], data = InPlace(nn.Embedding(11, 8).double()), data_for(schedule)
    assert_equal(piped(schedule, stages, data, split_weight_grad=split), plain_serial(stages, data))


def plain_serial(stages, data) -> Outcome:
    stages = copy.deepcopy(stages)
    losses = []
    for tokens, number, targets in zip(
        *(b.split(data.size) for b in (data.tokens, data.numbers, data.targets)), strict=True
    ):
        values = (tokens, number)
        for stage in stages:
            values = stage(*values)
        losses.append(criterion(*values, targets))
        losses[-1].backward()
    return Outcome(torch.stack(losses).detach(), gradients(stages))


def test_outputs_without_dimensions():
    pipe = dp.DualPipeV([nn.Linear(2, 2), Total()])
    loss, outputs = pipe.step(
        torch.ones(4, 2), num_chunks=4, criterion=lambda total: total, return_outputs=True
    )
    assert torch.equal(loss, outputs)


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


def test_frozen_layers_may_be_of_several_ranks():
    frozen = nn.Linear(4, 4).requires_grad_(False)

    def rank_main(group):
        pipe = dp.DualPipeV([nn.Sequential(nn.Linear(4, 4), frozen) for _ in range(2)])
        pipe.step(torch.ones(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.ones(8, 4))

    dp.run_local(rank_main, 2)


def test_layers_are_cut_only_where_an_input_backward_follows(monkeypatch):
    """Where the schedule has a B the plain layer is faster, and it is what runs."""
    cut = []
    apply = CutLayer.apply
    monkeypatch.setattr(CutLayer, "apply", lambda *args: (cut.append(1), apply(*args))[1])
    schedule = dp.schedule("dualpipev", 2, 6)
    split = [schedule.split_backwards(rank) for rank in range(2)]
    for rank, found in enumerate(split):
        assert [f"{stage}I{m}" for stage, m in found] == [w for w in schedule.rank(rank) if "I" in w]

    def rank_main(group):
        pipe = dp.DualPipeV([nn.Linear(4, 4), nn.Linear(4, 4)])
        pipe.step(torch.ones(6, 4), num_chunks=6, criterion=F.mse_loss, labels=torch.ones(6, 4))

    dp.run_local(rank_main, 2, interleaved=True)
    assert len(cut) == sum(map(len, split)) > 0


# -- stages on two ranks --------------------------------------------------------------------------


def with_dualpipe(body):
    """Calls body(pipe, step) on two ranks with equal copies."""
    torch.manual_seed(0)
    stages = [nn.Linear(4, 4) for _ in range(2)]

    def rank_main(group):
        mine = [copy.deepcopy(stages[s]) for s in (group.rank(), 1 - group.rank())]
        pipe = dp.DualPipe(mine)
        half = torch.ones(4, 4)
        return body(
            pipe, lambda: pipe.step(half, num_chunks=4, criterion=F.mse_loss, labels=half), group.rank()
        )

    return dp.run_local(rank_main, 2)


def grads_of(pipe, rank):
    """By stage."""
    return [[p.grad.clone() for p in module.parameters()] for module in pipe.module][:: -1 if rank else 1]


def test_a_second_sync_of_the_same_gradients_is_refused():
    def body(pipe, step, rank):
        step()
        pipe.sync_gradients()
        with pytest.raises(dp.UsageError, match="a second time on the same gradients"):
            pipe.sync_gradients()
        step()  # Accumulates into what is summed.
        with pytest.raises(dp.UsageError, match="a second time on the same gradients"):
            pipe.sync_gradients()

    with_dualpipe(body)


@pytest.mark.parametrize("to_none", [True, False])
def test_sync_after_zero_grad(to_none):
    def body(pipe, step, rank):
        found = []
        for _ in range(3):
            step()
            pipe.sync_gradients()
            found.append(grads_of(pipe, rank))
            pipe.zero_grad(set_to_none=to_none)
        return found

    steps = [grads for found in with_dualpipe(body) for grads in found]
    assert len(steps) == 6
    for grads in steps:
        for stage, expected in zip(grads, steps[0], strict=True):
            assert all(map(torch.equal, stage, expected))


def test_copies_that_do_not_start_equal_are_made_equal(caplog):
    def body(pipe, step, rank):
        if rank:
            nn.init.zeros_(pipe.module[0].bias)
        step()
        pipe.assert_replicas_equal()
        return [p.detach().clone() for module in pipe.module for p in module.parameters()]

    first, second = with_dualpipe(body)
    assert all(map(torch.equal, first, [*second[2:], *second[:2]]))
    assert "parameter 'bias' of stage 1 does not start equal on ranks 0 and 1" in caplog.text


# -- the test itself: what it must notice ---------------------------------------------------------


def test_a_dropped_w_is_noticed(monkeypatch):
    schedule = dp.schedule("dualpipev", 2, 4)
    stages, data = stages_for(schedule), data_for(schedule)
    weight = Worker.backward_weight

    def lossy(worker, stage, microbatch):
        if (stage, microbatch) != (0, 3):
            weight(worker, stage, microbatch)

    monkeypatch.setattr(Worker, "backward_weight", lossy)
    _, gradient = piped(schedule, stages, data).off_from(serial(stages, data))
    assert gradient > 1e-3


def test_exchanged_microbatches_are_noticed(monkeypatch):
    schedule = dp.schedule("dualpipe", 2, 4)
    stages, data = stages_for(schedule), data_for(schedule)
    forward = Worker.forward

    def exchanged(worker, stage, microbatch, value):
        if stage == 0 and microbatch in (0, 1):
            worker._batch.inputs = {**worker._batch.inputs, microbatch: worker._batch.inputs[1 - microbatch]}
        return forward(worker, stage, microbatch, value)

    monkeypatch.setattr(Worker, "forward", exchanged)
    loss, gradient = piped(schedule, stages, data).off_from(serial(stages, data))
    assert loss > 1e-3
    assert gradient > 1e-3


# -- the ways to call step() ----------------------------------------------------------------------


class Linear2(nn.Module):
    """A stage whose class has DeepSeek's fused forward & backward, under either spelling."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(self.linear(x))


def fused(cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1):
    cls.calls += 1
    outputs0 = module0(*inputs0)
    loss0 = criterion0(outputs0, *labels0) if criterion0 is not None else None
    if loss1 is not None:
        assert not outputs1
        loss1.backward()
    else:
        dp.utils.run_backward(outputs1, output_grads1)
    return outputs0, loss0


@pytest.mark.parametrize("spelling", ["overlapped_forward_backward", "overlaped_forward_backward"])
def test_overlapped_forward_backward(spelling):
    cls = type("Fused", (Linear2,), {"calls": 0, spelling: classmethod(fused)})
    torch.manual_seed(0)
    modules = [cls() for _ in range(4)]
    plain = [copy.deepcopy(m) for m in modules]
    x, y = torch.randn(2, 12, 4, dtype=torch.float64)
    schedule = dp.schedule("dualpipev", 2, 6)

    def rank_main(group):
        pipe = dp.DualPipeV([modules[stage] for stage in schedule.stages_of(group.rank())])
        given = {"labels": y} if group.rank() == 0 else {}
        return pipe.step(x, num_chunks=6, criterion=nn.functional.mse_loss if given else None, **given)

    losses = dp.run_local(rank_main, 2)[0][0]
    serial_losses = []
    for xs, ys in zip(x.chunk(6), y.chunk(6), strict=True):
        for module in plain:
            xs = module(xs)
        serial_losses.append(nn.functional.mse_loss(xs, ys))
        serial_losses[-1].backward()
    pairs = sum(slot.startswith("(") for rank in range(2) for slot in schedule.rank(rank))
    assert cls.calls == pairs > 0
    assert torch.equal(losses, torch.stack(serial_losses).detach())
    for module, reference in zip(modules, plain, strict=True):
        assert torch.allclose(module.linear.weight.grad, reference.linear.weight.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("how", "with_criterion"),
    # eval() with a criterion trains, as in DeepSeek's package.
    [("no_grad", True), ("no_grad", False), ("inference_mode", True), ("eval", False)],
)
def test_inference(how, with_criterion):
    schedule = dp.schedule("dualpipe", 4, 8)
    stages, data = stages_for(schedule), data_for(schedule)
    reference = []
    with torch.no_grad():
        for tokens, number in zip(data.tokens.split(2), data.numbers.split(2), strict=True):
            values = (tokens, number)
            for stage in stages:
                values = stage(*values)
            reference.append(values[0])

    def rank_main(group):
        modules = [copy.deepcopy(stages[s]) for s in schedule.stages_of(group.rank())]
        pipe = dp.DualPipe(modules)
        inputs, labels = step_arguments(schedule, data, group.rank())
        options = {"criterion": criterion, "labels": labels} if with_criterion else {}
        mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "eval": torch.enable_grad}
        pipe.train(how != "eval")
        with mode[how]():
            result = pipe.step(*inputs, num_chunks=8, return_outputs=True, **options)
        assert all(p.grad is None for p in pipe.parameters())
        assert set(pipe.timeline.spans["kind"]) == {"F"}
        return result

    results = dp.run_local(rank_main, 4)
    # The first half of the microbatches leaves at the last rank, the second half at the first.
    for rank, expected in ((3, reference[:4]), (0, reference[4:])):
        loss, outputs = results[rank]
        assert torch.equal(outputs[0], torch.cat(expected))
        assert (loss is not None and loss.shape == (4,)) if with_criterion else loss is None
    assert results[1] == results[2] == (None, None)


def test_run_local_hands_on_no_grad_and_autocast():
    def rank_main(group):
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert dp.run_local(rank_main, 2) == [(False, True)] * 2
    assert dp.run_local(rank_main, 2) == [(True, False)] * 2


def test_gradients_accumulate_over_steps_and_one_rank_needs_no_run_local():
    schedule = dp.schedule("dualpipev", 1, 4)
    stages, data = stages_for(schedule), data_for(schedule)
    pipe = dp.DualPipeV(copy.deepcopy(stages))
    for _ in range(2):
        loss, outputs = pipe.step(
            data.tokens, data.numbers, num_chunks=4, criterion=criterion, labels=data.targets
        )
    assert outputs is None
    reference = serial(stages, data)
    doubled = [
        {name: g if g is None else 2 * g for name, g in stage.items()} for stage in reference.gradients
    ]
    outcome = Outcome(loss, gradients(list(pipe.module)))
    assert_equal(outcome, Outcome(reference.losses, doubled))
    spans = pipe.timeline.spans
    assert [f"{s['stage']}{s['kind']}{s['microbatch']}" for s in spans[:3]] == ["0F0", "1F0", "0F1"]
    assert (pipe.timeline.cpu_time >= 0).all()


def test_two_pipelines_side_by_side():
    first, second = dp.schedule("dualpipev", 2, 4), dp.schedule("1f1b", 2, 3)
    model = {schedule: stages_for(schedule) for schedule in (first, second)}

    def rank_main(group):
        pipes = []
        for schedule in (first, second):
            modules = [copy.deepcopy(model[schedule][s]) for s in schedule.stages_of(group.rank())]
            pipes.append((schedule, dp.Pipeline(modules, schedule), data_for(schedule)))
        losses = []
        for _ in range(2):
            for schedule, pipe, data in pipes:
                inputs, labels = step_arguments(schedule, data, group.rank())
                losses.append(pipe.step(*inputs, criterion=criterion, labels=labels)[0])
        return losses

    results = dp.run_local(rank_main, 2)
    for index, schedule in enumerate((first, second, first, second)):
        reference = serial(model[schedule], data_for(schedule)).losses
        found = next(losses[index] for losses in results if losses[index] is not None)
        assert torch.allclose(found, reference, rtol=EQUAL, atol=0)


@pytest.mark.parametrize("interleaved", [False, True], ids=["threads", "interleaved"])
def test_autocast_around_the_step(interleaved):
    """Forwards are cast, backwards run in the types of their forwards, as in a serial run."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    plain = [copy.deepcopy(m) for m in modules]
    x, y = torch.randn(2, 12, 8)

    def loss_of(output, target):
        return nn.functional.mse_loss(output.float(), target)

    def rank_main(group):
        held = [modules[group.rank()], modules[3 - group.rank()]]
        pipe = dp.DualPipeV(held)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pipe.step(x, num_chunks=6, criterion=loss_of, labels=y)

    dp.run_local(rank_main, 2, interleaved=interleaved)
    for xs, ys in zip(x.chunk(6), y.chunk(6), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for module in plain:
                xs = module(xs)
            loss = loss_of(xs, ys)
        loss.backward()
    for module, reference in zip(modules, plain, strict=True):
        assert torch.equal(module[0].weight.grad, reference[0].weight.grad)


def test_ranks_interleaved_under_different_settings_are_refused():
    def rank_main(group):
        pipe = dp.DualPipeV([nn.Linear(4, 4), nn.Linear(4, 4)])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=group.rank() == 1):
            pipe.step(
                torch.ones(8, 4), num_chunks=4, criterion=nn.functional.mse_loss, labels=torch.ones(8, 4)
            )

    with pytest.raises(dp.UsageError, match=r"under autocast cpu torch.bfloat16; all ranks .* the same"):
        dp.run_local(rank_main, 2, interleaved=True)


def test_a_rank_ends_with_no_store_on_its_thread():
    """A store left in the thread's slot would abort the process if it ended at that moment."""

    def rank_main(group):
        pipe = dp.DualPipeV([nn.Linear(4, 4), nn.Linear(4, 4)])
        pipe.step(torch.ones(8, 4), num_chunks=4, criterion=nn.functional.mse_loss, labels=torch.ones(8, 4))
        return torch._C._is_key_in_tls("dualpipe_rs.weight_grad.store")

    assert dp.run_local(rank_main, 2) == [False, False]
