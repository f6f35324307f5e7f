"""What goes on around a step, with ranks as threads: copies, clipping, ZeRO-1, ties, scaled losses."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from around import Recipe, batches, criterion, off, piped_step, rank_run, serially, stages_of, state
from torch import nn

import dualpipe_rs as dp

EQUAL = 1e-12
ADAMW = (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
TIES = [
    ("dualpipe", 2, 4),
    ("dualpipe", 4, 8),
    ("dualpipev", 1, 2),
    ("dualpipev", 2, 5),
    ("1f1b", 2, 3),
    ("1f1b", 3, 4),
    ("interleaved", 2, 4),
    ("chimera", 4, 4),
]


def assert_equals_serial(schedule, stages, recipe, **options):
    found = dp.run_local(
        lambda group: rank_run(group, schedule, stages, recipe, **options),
        schedule.num_ranks,
        threads_per_rank=1,
    )
    expected = serially(schedule, stages, recipe)
    assert {name for run in found for name in run.parameters} == expected.parameters.keys()
    for run in found:
        assert off(run, expected) <= EQUAL
    return found


# -- gradients and the norm -----------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, (0.1, 2.0), (1e6, 2.0), (0.1, 1.0), (0.1, math.inf)])
@pytest.mark.parametrize(
    ("family", "ranks", "microbatches"), [("dualpipe", 2, 4), ("dualpipe", 4, 8), ("zb-v", 2, 4)]
)
def test_accumulated_clipped_gradients_equal_serial(family, ranks, microbatches, clip):
    schedule = dp.schedule(family, ranks, microbatches)
    recipe = Recipe(accumulate=3, clip=clip)
    found = assert_equals_serial(schedule, stages_of(schedule.num_stages), recipe)
    for run in found:
        assert run.norms == found[0].norms  # the same bits on every rank


def test_a_norm_that_is_not_finite():
    def rank_main(group):
        pipe = dp.Pipeline([nn.Linear(2, 2)], "1f1b")
        for p in pipe.parameters():
            p.grad = torch.full_like(p, math.inf if group.rank() == 1 else 1.0)
        with pytest.raises(RuntimeError, match=r"norm of order 2.0 of the gradients is inf"):
            pipe.clip_grad_norm_(1.0, error_if_nonfinite=True)
        assert pipe.clip_grad_norm_(1.0) == math.inf

    dp.run_local(rank_main, 2)


def test_without_gradients_the_norm_is_zero():
    assert dp.run_local(
        lambda group: float(dp.Pipeline([nn.Linear(2, 2)], "1f1b").clip_grad_norm_(1.0)), 2
    ) == [0, 0]


def test_a_gradient_that_is_missing_on_all_stays_none_and_on_one_counts_as_zero():
    def rank_main(group):
        pipe = dp.DualPipe([nn.Linear(2, 2), nn.Linear(2, 2)])
        at = dict(zip((group.rank(), 1 - group.rank()), pipe.module, strict=True))
        if group.rank() == 0:
            at[0].weight.grad = torch.ones(2, 2)
        else:
            at[0].bias.grad = torch.ones(2)
        pipe.sync_gradients()
        return [p.grad for stage in (0, 1) for p in at[stage].parameters()]

    for weight, bias, *others in dp.run_local(rank_main, 2):
        assert torch.equal(weight, torch.ones(2, 2))
        assert torch.equal(bias, torch.ones(2))
        assert others == [None, None]


def test_parameters_of_several_types():
    def rank_main(group):
        mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())
        pipe = dp.DualPipe([copy.deepcopy(mixed), copy.deepcopy(mixed)])
        for p in pipe.parameters():
            p.grad = torch.full_like(p, group.rank() + 1)
        pipe.sync_gradients()
        assert all(bool((p.grad == 3).all()) and p.grad.dtype == p.dtype for p in pipe.parameters())

    dp.run_local(rank_main, 2)


def test_a_parameter_shared_by_both_stages_of_a_rank_counts_once():
    def rank_main(group):
        shared = nn.Linear(4, 4)
        at = [nn.Sequential(shared, nn.Tanh()), nn.Sequential(nn.Tanh(), shared)]
        pipe = dp.DualPipe([at[group.rank()], at[1 - group.rank()]])
        for p in pipe.parameters():
            p.grad = torch.ones_like(p)
        pipe.sync_gradients()
        assert bool((shared.weight.grad == 2).all())
        return float(pipe.clip_grad_norm_(1e9))

    assert dp.run_local(rank_main, 2) == [pytest.approx(math.sqrt(20 * 4))] * 2


def test_sparse_gradients_are_refused():
    def rank_main(group):
        at = [nn.Embedding(4, 4, sparse=True), nn.Linear(4, 4)]
        pipe = dp.DualPipe([at[group.rank()], at[1 - group.rank()]])
        at[0](torch.tensor([1])).sum().backward()
        pipe.sync_gradients()

    with pytest.raises(dp.UsageError, match=r"gradient of parameter 'weight' of stage 0 is sparse"):
        dp.run_local(rank_main, 2)


# -- equal copies ---------------------------------------------------------------------------------


def test_copies_and_buffers_are_made_equal_to_those_of_the_lowest_rank(caplog):
    schedule = dp.schedule("dualpipe", 2, 4)

    def rank_main(group):
        torch.manual_seed(group.rank())
        at = {
            stage: nn.BatchNorm1d(4, track_running_stats=True) for stage in schedule.stages_of(group.rank())
        }
        for module in at.values():
            nn.init.constant_(module.weight, group.rank())
            nn.init.constant_(module.running_mean, group.rank())
            module.num_batches_tracked.fill_(7 + group.rank())
        pipe = dp.DualPipe(list(at.values()))
        pipe._replicas.before_training()
        pipe.assert_replicas_equal()
        return [at[stage].state_dict() for stage in (0, 1)]

    first, second = dp.run_local(rank_main, 2)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert int(one["num_batches_tracked"]) == 7
    assert "buffer 'running_mean' of stage 1 does not start equal on ranks 0 and 1" in caplog.text


def test_equal_copies_make_no_warning(caplog):
    schedule = dp.schedule("dualpipe", 2, 4)
    assert_equals_serial(schedule, stages_of(2), Recipe())
    assert caplog.text == ""


def test_a_copy_that_drifts_by_one_bit_is_named_on_every_rank():
    schedule = dp.schedule("dualpipe", 4, 8)
    stages = stages_of(4)

    def rank_main(group):
        pipe = dp.Pipeline([copy.deepcopy(stages[s]) for s in schedule.stages_of(group.rank())], schedule)
        pipe.assert_replicas_equal()
        if group.rank() == 2:
            with torch.no_grad():
                weight = pipe.module[1][0].weight
                weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0, dtype=weight.dtype))
        with pytest.raises(dp.UsageError, match=r"'3.weight' of stage 1 differs between ranks 1 and 2"):
            pipe.assert_replicas_equal()

    dp.run_local(rank_main, 4)


def test_copies_of_another_kind_are_refused_on_every_rank():
    def rank_main(group):
        at = [nn.Linear(2, 2, bias=group.rank() == 0), nn.Linear(2, 2)]
        pipe = dp.DualPipe([at[group.rank()], at[1 - group.rank()]])
        with pytest.raises(
            dp.UsageError, match=r"parameter 'bias' of stage 0 is .*trained on rank 0 and missing on"
        ):
            pipe.sync_gradients()

    dp.run_local(rank_main, 2)


# -- ZeRO-1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["AdamW", "SGD"])
@pytest.mark.parametrize(
    ("family", "ranks", "microbatches"), [("dualpipe", 2, 4), ("dualpipe", 4, 8), ("dualpipev", 2, 4)]
)
def test_zero1_equals_the_serial_optimizer(family, ranks, microbatches, optimizer):
    schedule = dp.schedule(family, ranks, microbatches)
    recipe = Recipe(steps=5, optimizer=optimizer, zero1=True, accumulate=2, clip=(0.5, 2.0))
    assert_equals_serial(schedule, stages_of(schedule.num_stages), recipe)


def test_zero1_with_ties_and_a_scheduler():
    schedule = dp.schedule("dualpipe", 4, 8)
    recipe = Recipe(
        steps=5,
        optimizer=ADAMW,
        zero1=True,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
    )
    assert_equals_serial(schedule, stages_of(4, tied=True), recipe)


def test_zero1_keeps_each_state_once():
    schedule = dp.schedule("dualpipe", 4, 8)
    stages = stages_of(4, tied=True)

    def rank_main(group):
        pipe = dp.Pipeline([copy.deepcopy(stages[s]) for s in schedule.stages_of(group.rank())], schedule)
        optimizer = pipe.zero1(torch.optim.AdamW, lr=0.1)
        piped_step(pipe, schedule, batches(schedule, 1)[0], criterion)
        pipe.sync_gradients()
        optimizer.step()
        kept = sum(state["exp_avg"].numel() for state in optimizer.state.values())
        optimizer.zero_grad()
        assert all(p.grad is None for p in pipe.parameters())
        return kept

    model = nn.ModuleList(stages)
    assert sum(dp.run_local(rank_main, 4)) == sum(p.numel() for p in model.parameters())


def test_zero1_takes_parameter_groups_and_ranks_that_own_nothing():
    def rank_main(group):
        module = nn.Linear(2, 2) if group.rank() == 0 else nn.Tanh()
        pipe = dp.Pipeline([module], "1f1b")
        seen = []

        def groups(named):
            seen.extend(name for name, _ in named)
            return [
                {"params": [p], "weight_decay": 0.0 if name.endswith("bias") else 0.1} for name, p in named
            ]

        optimizer = pipe.zero1(torch.optim.AdamW, param_groups=groups, lr=0.1)
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return seen, [group["weight_decay"] for group in optimizer.param_groups if group["params"]]

    assert dp.run_local(rank_main, 2) == [(["0.weight", "0.bias"], [0.1, 0.0]), ([], [])]


def test_zero1_refuses_what_is_no_optimizer_and_the_parameters_of_others():
    def rank_main(group):
        pipe = dp.DualPipe([nn.Linear(2, 2), nn.Linear(2, 2)])
        with pytest.raises(dp.UsageError, match=r"give a class such as torch\.optim\.AdamW"):
            pipe.zero1(torch.optim.lr_scheduler.StepLR)
        with pytest.raises(dp.UsageError, match="returned a parameter that another rank steps"):
            pipe.zero1(torch.optim.SGD, param_groups=lambda _: [{"params": pipe.parameters()}], lr=0.1)

    dp.run_local(rank_main, 2)


# -- tied parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "ranks", "microbatches"), TIES)
@pytest.mark.parametrize("zero1", [False, True], ids=["plain", "zero1"])
def test_parameters_tied_by_the_cut_equal_serial(family, ranks, microbatches, zero1):
    schedule = dp.schedule(family, ranks, microbatches)
    recipe = Recipe(steps=3, optimizer=SGD, accumulate=2, clip=(1.0, 2.0), zero1=zero1)
    assert_equals_serial(schedule, stages_of(schedule.num_stages, tied=True), recipe)


@pytest.mark.parametrize(("family", "ranks", "microbatches"), TIES)
def test_parameters_tied_by_keyword_equal_serial(family, ranks, microbatches):
    schedule = dp.schedule(family, ranks, microbatches)
    last = schedule.num_stages - 1
    stages = stages_of(schedule.num_stages, tied=True)
    for stage in stages:
        stage.__dict__.pop("_dualpipe_rs_ties", None)

    def tied(modules):
        found = [m[0].weight for s, m in modules.items() if s == 0]
        found += [m[-1].weight for s, m in modules.items() if s == last]
        return {"embedding": found} if found else {}

    recipe = Recipe(steps=2, optimizer=ADAMW, clip=(1.0, 2.0))
    assert_equals_serial(schedule, stages, recipe, tied=tied)


def test_ties_outlive_copies_and_pickles():
    first, last = pickle.loads(pickle.dumps(copy.deepcopy(stages_of(2, tied=True))))

    def rank_main(group):
        pipe = dp.Pipeline([copy.deepcopy((first, last)[group.rank()])], "1f1b")
        with torch.no_grad():
            (pipe.module[0][0] if group.rank() == 0 else pipe.module[0][-1]).weight += group.rank()
        pipe._replicas.before_training()
        pipe.assert_replicas_equal()

    dp.run_local(rank_main, 2)


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        (lambda module, rank: {"w": nn.Parameter(torch.ones(1))}, "not a parameter of this rank's stages"),
        (lambda module, rank: [module.weight], "it maps the name of each tie to this rank's parameter"),
        (lambda module, rank: {f"w{rank}": module.weight}, "tie 'w0' is of one parameter alone, on rank 0"),
        (
            lambda module, rank: {"w": [module.weight, module.bias][rank]},
            r"tied parameters are one parameter",
        ),
    ],
    ids=["foreign", "list", "alone", "shapes"],
)
def test_ties_that_cannot_be(tied, message):
    def rank_main(group):
        module = nn.Linear(2, 2)
        with pytest.raises(dp.UsageError, match=message):
            dp.Pipeline([module], "1f1b", tied=tied(module, group.rank())).sync_gradients()

    dp.run_local(rank_main, 2)


# -- scaled losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("zero1", [False, True], ids=["plain", "zero1"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(zero1):
    schedule = dp.schedule("dualpipe", 4, 8)
    stages = stages_of(4)
    data = batches(schedule, 3)

    def rank_main(group):
        modules = {s: copy.deepcopy(stages[s]) for s in schedule.stages_of(group.rank())}
        pipe = dp.Pipeline(list(modules.values()), schedule)
        optimizer = pipe.zero1(*SGD[:1], **SGD[1]) if zero1 else SGD[0](pipe.parameters(), **SGD[1])
        scaler = dp.GradScaler(pipe, device="cpu", init_scale=1024.0)
        scales, norms = [], []
        for index, batch in enumerate(data):
            before, _ = state(modules)
            optimizer.zero_grad()
            piped_step(pipe, schedule, batch, lambda out, y: scaler.scale(criterion(out, y)))
            pipe.sync_gradients()
            if index == 1 and group.rank() in (1, 2):  # stage 1 and its mirror alone
                modules[1][0].weight.grad[0, 0] = math.inf
            scaler.unscale_(optimizer)
            norms.append(pipe.clip_grad_norm_(1.0))
            # Also those that another rank steps are unscaled.
            assert index == 1 or all(p.grad.norm() <= 1 + EQUAL for p in pipe.parameters())
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            after, _ = state(modules)
            assert all(torch.equal(before[n], after[n]) for n in after) == (index == 1)
            pipe.assert_replicas_equal()
        return scales, norms, state(modules)[0]

    found = dp.run_local(rank_main, 4, threads_per_rank=1)
    model = copy.deepcopy(nn.ModuleList(stages))
    optimizer = SGD[0](model.parameters(), **SGD[1])
    for index in (0, 2):
        optimizer.zero_grad()
        for x, y in zip(data[index][0].split(2), data[index][1].split(2), strict=True):
            for stage in model:
                x = stage(x)
            criterion(x, y).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert all(abs(norms[index] - norm) <= EQUAL * norm for _, norms, _ in found)
    expected, _ = state(dict(enumerate(model)))
    for scales, _, parameters in found:
        assert scales == [1024.0, 512.0, 512.0]
        for name, value in parameters.items():
            assert (value - expected[name]).norm() <= EQUAL * expected[name].norm()


def test_a_rank_without_parameters_scales_too():
    def rank_main(group):
        module = nn.Linear(2, 2) if group.rank() == 0 else nn.Tanh()
        pipe = dp.Pipeline([module], "1f1b")
        optimizer = pipe.zero1(torch.optim.SGD, lr=0.1)
        scaler = dp.GradScaler(pipe, device="cpu", init_scale=4.0)
        for p in module.parameters():
            p.grad = torch.full_like(p, math.nan)
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale()

    assert dp.run_local(rank_main, 2) == [2.0, 2.0]


def test_a_scaler_that_is_switched_off_does_nothing():
    def rank_main(group):
        pipe = dp.Pipeline([nn.Linear(2, 2)], "1f1b")
        scaler = dp.GradScaler(pipe, device="cpu", enabled=False)
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale()

    assert dp.run_local(rank_main, 2) == [1.0, 1.0]


# -- wrappers of DistributedDataParallel ----------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """This process alone as torch.distributed's world."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_ddp_wrappers_are_taken_off(world):
    schedule = dp.schedule("dualpipev", 1, 4)
    recipe = Recipe(steps=2, optimizer=SGD, clip=(1.0, 2.0))
    wrapped = [nn.parallel.DistributedDataParallel(s) for s in stages_of(2)]
    found = dp.run_local(
        lambda group: rank_run(
            group, schedule, stages_of(2), recipe, wrap=nn.parallel.DistributedDataParallel
        ),
        1,
    )
    assert off(found[0], serially(schedule, stages_of(2), recipe)) <= EQUAL
    pipe = dp.DualPipeV(wrapped)
    assert [a is b.module for a, b in zip(pipe.module, wrapped, strict=True)] == [True, True]


def test_ddp_within_a_stage_and_on_one_stage_alone_is_refused(world):
    ddp = nn.parallel.DistributedDataParallel
    linear = nn.Linear(2, 2)
    with pytest.raises(dp.UsageError, match=r"'0' within stage 1 is wrapped .* reduce in every backward"):
        dp.DualPipeV([linear, nn.Sequential(ddp(nn.Linear(2, 2)))])
    with pytest.raises(dp.UsageError, match=r"stages 0 and 1 are not wrapped .* same process group"):
        dp.DualPipeV([linear, ddp(nn.Linear(2, 2))])
    dp.DualPipeV([nn.Tanh(), ddp(nn.Linear(2, 2))])  # A stage without parameters cannot be wrapped.
    other = dist.new_group([0])
    with pytest.raises(dp.UsageError, match="another process group than that of the"):
        dp.DualPipeV([ddp(linear), ddp(nn.Linear(2, 2))], data_parallel_group=other)
    hooked = ddp(nn.Linear(2, 2))
    hooked.register_comm_hook(None, lambda state, bucket: None)
    with pytest.raises(dp.UsageError, match="around stage 0 has a communication hook"):
        dp.DualPipeV([hooked, nn.Tanh()])
    with pytest.raises(dp.UsageError, match="data_parallel_group is of type int"):
        dp.DualPipeV([nn.Tanh(), nn.Tanh()], data_parallel_group=3)
