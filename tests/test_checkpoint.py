"""Checkpoints: names, what is in them, and that a run goes on from one under any placement.

"As if never interrupted" is a relative difference of each step's loss of at most 1e-12.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpointing import (
    MICROBATCHES,
    PLACEMENTS,
    adamw,
    begin_pipe,
    build,
    loaded,
    make_pipe,
    plain,
    resume_pipe,
    resume_serially,
    saved,
    schedule_rate,
    sharded,
    train_pipe,
    train_serially,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import dualpipe_rs as dp

BEFORE, AFTER = range(5), range(5, 15)
EQUAL = 1e-12

run = functools.partial(dp.run_local, threads_per_rank=1)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-2, amsgrad=True)


def adagrad(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(module.parameters(), lr=1e-2)


def interrupted(make: Any) -> tuple[bytes, list[float]]:
    """A checkpoint of DualPipe on 4 ranks after 5 steps, and the losses of the next ten in the same run."""
    model = build()

    results = run(lambda group: begin_pipe(group, "dualpipe", model, BEFORE, AFTER, make), 4)
    assert len({tuple(losses) for _, losses in results}) == 1
    return results[0]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Serial runs on tensors this small are slower on several threads, far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run_of_adamw() -> tuple[bytes, list[float]]:
    return interrupted(adamw)


def assert_goes_on(losses: list[float], uninterrupted: list[float]) -> None:
    assert len(losses) == len(uninterrupted) == len(AFTER)
    assert losses == pytest.approx(uninterrupted, rel=EQUAL, abs=0)


# -- a run goes on --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "ranks"), [*PLACEMENTS, ("dualpipe", 4)])
def test_goes_on_under_another_placement(run_of_adamw, family, ranks):
    content, losses = run_of_adamw
    for _, found in run(lambda group: resume_pipe(group, family, content, AFTER), ranks):
        assert_goes_on(found, losses)


def test_goes_on_serially(run_of_adamw):
    content, losses = run_of_adamw
    assert_goes_on(resume_serially(content, AFTER), losses)


@pytest.mark.parametrize("make", [sgd, adam, adagrad])
def test_other_optimizers(make):
    content, losses = interrupted(make)
    assert_goes_on(resume_serially(content, AFTER, make), losses)
    for _, found in run(lambda group: resume_pipe(group, "dualpipev", content, AFTER, make), 2):
        assert_goes_on(found, losses)


@pytest.mark.parametrize(("family", "ranks"), PLACEMENTS)
def test_a_serial_run_goes_on_as_a_pipeline(family, ranks):
    model = build()
    optimizer = adamw(model)
    scheduler = schedule_rate(optimizer)
    train_serially(model, optimizer, scheduler, BEFORE)
    content = saved(
        {
            "model": model.state_dict(),
            "optimizer": get_optimizer_state_dict(model, optimizer),
            "scheduler": scheduler.state_dict(),
        }
    )
    losses = train_serially(model, optimizer, scheduler, AFTER)
    for _, found in run(lambda group: resume_pipe(group, family, content, AFTER), ranks):
        assert_goes_on(found, losses)


@pytest.mark.filterwarnings("ignore:one parameter is shared by stages")
@pytest.mark.parametrize("before", [plain, sharded])
@pytest.mark.parametrize("after", [plain, sharded])
@pytest.mark.parametrize(("family", "ranks"), [("dualpipe", 4), ("1f1b", 2), ("dualpipev", 2)])
def test_tied_parameters_and_zero1(family, ranks, before, after):
    """Tied on two ranks or one, states on all holders or on one: the file is that of the uncut model."""
    model = build(tied=True)

    content, losses = run(lambda group: begin_pipe(group, family, model, BEFORE, AFTER, before), ranks)[0]
    state = loaded(content)
    assert list(state["optimizer"]["state"]) == [name for name, _ in model.named_parameters()]
    assert {"0.weight", "8.weight"} <= state["model"].keys()
    assert_goes_on(resume_serially(content, AFTER, plain, tied=True), losses)
    for other, count in (("dualpipe", 2), ("interleaved", 2), ("dualpipev", 1)):
        found = run(lambda group, f=other: resume_pipe(group, f, content, AFTER, after, tied=True), count)
        assert_goes_on(found[0][1], losses)


def test_one_state_dict_loaded_by_all_ranks_is_shared_by_none(run_of_adamw):
    """Both ranks of a pair step in place: on one exp_avg of both they would step it twice."""
    content, _ = run_of_adamw
    state = loaded(content)

    def rank_main(group):
        pipe, _ = make_pipe(build(), "dualpipe", group)
        optimizer = adamw(pipe)
        pipe.load_state_dict(state["model"])
        pipe.load_optimizer_state_dict(optimizer, state["optimizer"])
        tensors = [t for s in optimizer.state.values() for t in s.values()]
        return {t.data_ptr() for t in [*tensors, *pipe.parameters()]}

    first, second = run(rank_main, 2)
    file = {t.data_ptr() for s in state["optimizer"]["state"].values() for t in s.values()}
    assert not first & second
    assert not file & (first | second)


# -- what is in it --------------------------------------------------------------------------------


def held_names(model: nn.Sequential, family: str, ranks: int) -> list[Any]:
    return run(lambda group: list(make_pipe(model, family, group)[0].state_dict()), ranks)


@pytest.mark.parametrize(("family", "ranks"), [*PLACEMENTS, ("dualpipe", 4)])
def test_state_dict_is_that_of_the_uncut_model(family, ranks):
    model = build()

    def rank_main(group):
        pipe, _ = make_pipe(model, family, group)
        return pipe.state_dict(), pipe.local_state_dict()

    together: dict[str, Any] = {}
    for full, local in run(rank_main, ranks):
        assert list(full) == list(model.state_dict())
        assert all(torch.equal(full[name], tensor) for name, tensor in model.state_dict().items())
        assert all(full[name].data_ptr() == tensor.data_ptr() for name, tensor in local.items())
        assert not any(tensor.requires_grad for tensor in full.values())
        together.update(local)
    assert set(together) == set(model.state_dict())
    assert "1.gain" in together
    assert "1.passing" not in together


def test_others_are_copies():
    model = build()

    def rank_main(group):
        pipe, _ = make_pipe(model, "1f1b", group)
        before = pipe.state_dict()
        first = {name: tensor.clone() for name, tensor in before.items()}
        own = set(pipe.local_state_dict())
        group.exchange(None)
        with torch.no_grad():
            for parameter in pipe.parameters():
                parameter.add_(1)
        group.exchange(None)
        changed = {name for name in before if not torch.equal(before[name], first[name])}
        return own - {name for name in own if "gain" in name}, changed

    for own, changed in run(rank_main, 2):
        assert own == changed


def test_keep_vars_destination_and_prefix():
    pipe, _ = make_pipe(build(), "dualpipev", _alone())
    destination = {"other": 1}
    given = pipe.state_dict(destination=destination, prefix="model.", keep_vars=True)
    assert given is destination
    assert given["model.0.weight"] is pipe.module[0][0].weight
    assert list(pipe.state_dict({}, "model.", True)) == list(given)[1:]
    outer = nn.ModuleDict({"pipe": pipe})
    assert list(outer.state_dict()) == [f"pipe.{name}" for name in pipe.state_dict()]
    assert next(iter(pipe.module.state_dict())) == "0.0.weight"


def _alone() -> Any:
    import dualpipe_rs._core as core

    return core.local_groups(1)[0]


@pytest.mark.parametrize(("family", "ranks"), [("dualpipe", 2), ("1f1b", 2), ("dualpipev", 1)])
def test_stages_with_equal_keys_are_numbered(family, ranks):
    torch.manual_seed(0)
    stages = [nn.Linear(4, 4), nn.Linear(4, 4)]
    whole = nn.Sequential(*copy.deepcopy(stages))

    def rank_main(group):
        schedule = dp.schedule(family, ranks, 4)
        held = [copy.deepcopy(stages[stage]) for stage in schedule.stages_of(group.rank())]
        pipe = dp.Pipeline(held, schedule, process_group=group)
        state = pipe.state_dict()
        with torch.no_grad():
            for parameter in pipe.parameters():
                parameter.zero_()
        pipe.load_state_dict(whole.state_dict())
        return state, pipe.state_dict(), state._metadata.keys()

    for before, after, modules in run(rank_main, ranks):
        assert list(before) == list(whole.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert all(torch.equal(after[name], tensor) for name, tensor in whole.state_dict().items())
        assert modules == whole.state_dict()._metadata.keys()


def norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
    )


def test_running_statistics_are_saved_and_loaded():
    def rank_main(group, state=None):
        stages = dp.partition(norms(), 2)
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        if state is None:
            pipe.step(torch.randn(8, 4), num_chunks=4, criterion=F.mse_loss, labels=torch.randn(8, 4))
        else:
            pipe.load_state_dict(state)
        return pipe.state_dict()

    first, _ = run(rank_main, 2)
    assert int(first["1.num_batches_tracked"]) == int(first["3.num_batches_tracked"]) == 4
    again, _ = run(lambda group: rank_main(group, loaded(saved(first))), 2)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert first._metadata == norms().state_dict()._metadata
    serial = norms()
    serial.load_state_dict(first)
    assert torch.equal(serial[3].running_var, first["3.running_var"])


class Counted(nn.Linear):
    """Has extra state."""

    count = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_extra_state():
    def rank_main(group, state=None):
        stages = dp.partition([Counted(4, 4), Counted(4, 4)], 2)
        for stage in stages:
            stage[0].count = 0 if state else 3
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        if state:
            pipe.load_state_dict(state)
        return pipe.state_dict(), pipe.module[0][0].count

    first, _ = run(rank_main, 2)[0]
    assert first["1._extra_state"] == {"count": 3}
    assert [count for _, count in run(lambda group: rank_main(group, first), 2)] == [3, 3]


def test_what_wrappers_add_to_names_is_left_out():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    # Built before the ranks, which share one generator.
    model, other = build(), build(seed=2)

    def rank_main(group):
        schedule = dp.schedule("1f1b", 2, MICROBATCHES)
        stages = dp.partition(copy.deepcopy(model), 2)
        stages[1] = torch.compile(stages[1], backend="eager")
        stages[0][2] = checkpoint_wrapper(stages[0][2])
        stages[0][1] = torch.compile(stages[0][1], backend="eager")
        pipe = dp.Pipeline([stages[group.rank()]], schedule, process_group=group)
        optimizer = adamw(pipe)
        names = list(pipe.state_dict())
        pipe.load_state_dict(other.state_dict())
        return names, pipe.state_dict(), pipe.optimizer_state_dict(optimizer)["param_groups"]

    groups = get_optimizer_state_dict(other, adamw(other))["param_groups"]
    for names, after, found in run(rank_main, 2):
        assert names == list(model.state_dict())
        assert all(torch.equal(after[name], tensor) for name, tensor in other.state_dict().items())
        assert [group["params"] for group in found] == [group["params"] for group in groups]


def test_a_tied_parameter_keeps_its_names_and_has_one_state():
    """Within a rank: the first and the last stage of a V are on rank 0."""

    def rank_main(group, state=None):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4) for _ in range(4)]
        layers[3].weight = layers[0].weight
        with pytest.warns(UserWarning, match="shared by stages"):
            stages = dp.partition(layers, 4, costs=[1] * 4)
        pipe = dp.DualPipeV([stages[group.rank()], stages[3 - group.rank()]], process_group=group)
        optimizer = torch.optim.Adam(pipe.parameters())
        if state is not None:
            pipe.load_optimizer_state_dict(optimizer, state)
            return optimizer.state[pipe.module[0].get_parameter(f"{group.rank()}.weight")]
        x = torch.ones(8, 4)
        pipe.step(x, num_chunks=4, criterion=F.mse_loss, labels=x)
        optimizer.step()
        return pipe.state_dict(), pipe.optimizer_state_dict(optimizer)

    model, optimizer = run(rank_main, 2)[0]
    assert torch.equal(model["0.weight"], model["3.weight"])
    assert "0.weight" in optimizer["state"]
    assert "3.weight" not in optimizer["state"]
    # As a tied serial model that lists the other name would have it.
    optimizer["state"]["3.weight"] = optimizer["state"].pop("0.weight")
    params = optimizer["param_groups"][0]["params"]
    params[params.index("0.weight")] = "3.weight"
    mine, _ = run(lambda group: rank_main(group, optimizer), 2)
    assert torch.equal(mine["exp_avg"], optimizer["state"]["3.weight"]["exp_avg"])


# -- the optimizer's state ------------------------------------------------------------------------


def test_optimizer_state_is_as_torch_gives_it_of_the_uncut_model():
    model = build()
    optimizer = adamw(model)
    train_serially(model, optimizer, schedule_rate(optimizer), BEFORE)
    expected = get_optimizer_state_dict(model, optimizer)

    start = build()

    def rank_main(group):
        pipe, schedule = make_pipe(start, "dualpipe", group)
        optimizer = adamw(pipe)
        train_pipe(pipe, schedule, optimizer, schedule_rate(optimizer), BEFORE)
        return pipe.optimizer_state_dict(optimizer)

    for found in run(rank_main, 4):
        assert found["param_groups"] == expected["param_groups"]
        assert found["state"].keys() == expected["state"].keys()
        for name, state in found["state"].items():
            assert state.keys() == expected["state"][name].keys()
            for key, value in state.items():
                torch.testing.assert_close(value, expected["state"][name][key], rtol=1e-9, atol=1e-14)


def test_each_of_a_pair_may_hold_one_of_its_two_stages():
    """As under ZeRO-1. The other split, and none, take the same state."""

    def rank_main(group, held, state=None):
        torch.manual_seed(0)
        stages = dp.partition([nn.Linear(4, 4), nn.Linear(4, 4)], 2)
        pipe = dp.DualPipe([stages[group.rank()], stages[1 - group.rank()]], process_group=group)
        parameters = [p for index in held for p in pipe.module[index].parameters()]
        optimizer = torch.optim.Adam(parameters)
        if state is not None:
            pipe.load_optimizer_state_dict(optimizer, state)
            return optimizer.state_dict()["state"]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, group.rank() + 1.0)
        optimizer.step()
        return pipe.optimizer_state_dict(optimizer)

    def averages(state):
        return {name: round(float(s["exp_avg"].mean()) * 10, 3) for name, s in state["state"].items()}

    own, other, both = [run(lambda g, h=h: rank_main(g, h), 2) for h in ([0], [1], [0, 1])]
    assert averages(own[0]) == averages(own[1]) == {"0.weight": 1, "0.bias": 1, "1.weight": 2, "1.bias": 2}
    assert averages(other[0]) == {"0.weight": 2, "0.bias": 2, "1.weight": 1, "1.bias": 1}
    # Where both have a state, that of the rank with the stage's number counts, on every rank.
    assert averages(both[0]) == averages(both[1]) == averages(own[0])
    for held in ([0], [1], [0, 1]):
        for rank, state in enumerate(run(lambda g, h=held: rank_main(g, h, own[0]), 2)):
            stages = [rank if index == 0 else 1 - rank for index in held]
            expected = [stage + 1 for stage in stages for _ in range(2)]
            assert [round(float(s["exp_avg"].mean()) * 10, 3) for s in state.values()] == expected


def test_before_the_first_step_frozen_and_never_used_parameters():
    def rank_main(group, state=None):
        stages = dp.partition([nn.Linear(4, 4), nn.Linear(4, 4)], 2)
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        pipe.module[0].get_parameter(f"{group.rank()}.bias").requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in pipe.parameters() if p.requires_grad])
        before = pipe.optimizer_state_dict(optimizer)
        pipe.load_optimizer_state_dict(optimizer, before)
        if group.rank() == 0:  # Only this rank's parameter has been used when it is saved.
            pipe.module[0][0].weight.grad = torch.ones(4, 4)
        optimizer.step()
        after = pipe.optimizer_state_dict(optimizer)
        pipe.load_optimizer_state_dict(optimizer, after)
        return before, after, len(optimizer.state)

    (before, after, first), (_, _, second) = run(rank_main, 2)
    assert before["state"] == {}
    assert before["param_groups"][0]["params"] == ["0.weight", "1.weight"]
    assert list(after["state"]) == ["0.weight"]
    assert (first, second) == (1, 0)


def test_empty_groups():
    """Where a rank has no parameter for a group it has the group's options all the same."""

    def rank_main(group):
        stages = dp.partition([nn.Linear(4, 4), nn.LayerNorm(4)], 2, costs=[1, 1])
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        matrices, rest = (
            [p for p in pipe.parameters() if p.ndim > 1],
            [p for p in pipe.parameters() if p.ndim < 2],
        )
        optimizer = torch.optim.SGD([{"params": matrices, "lr": 0.5}, {"params": rest, "lr": 0.25}])
        state = pipe.optimizer_state_dict(optimizer)
        for index, options in enumerate(state["param_groups"]):
            options["lr"] = index
        pipe.load_optimizer_state_dict(optimizer, state)
        return state["param_groups"], [options["lr"] for options in optimizer.param_groups]

    for found, rates in run(rank_main, 2):
        assert [options["params"] for options in found] == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
        assert rates == [0, 1]


def test_names_that_an_optimizer_notes_are_its_own():
    """Those of an optimizer made of named_parameters() are the names within this rank's pipeline."""

    def rank_main(group):
        stages = dp.partition([nn.Linear(4, 4), nn.LayerNorm(4)], 2, costs=[1, 1])
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        optimizer = torch.optim.SGD(pipe.named_parameters(), lr=0.1)
        state = pipe.optimizer_state_dict(optimizer)
        pipe.load_optimizer_state_dict(optimizer, state)
        return state["param_groups"][0], optimizer.param_groups[0]["param_names"]

    for rank, (options, noted) in enumerate(run(rank_main, 2)):
        assert "param_names" not in options
        assert noted == [f"module.0.{rank}.weight", f"module.0.{rank}.bias"]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("0.weight"), r"stages of rank 0, and nothing was loaded: missing: 0\.weight$"),
        (lambda s: s.update(more=1), r"of no stage of this pipeline: more$"),
        (
            lambda s: s.update({"0.weight": torch.ones(3, 2)}),
            r"0\.weight has shape \(3, 2\) in the state_dict and \(11, 8\) in the model$",
        ),
        (lambda s: s.update({"0.weight": 3}), r"0\.weight is of type int, not a tensor$"),
    ],
)
def test_state_dicts_that_do_not_fit(change, says):
    pipe, _ = make_pipe(build(), "dualpipev", _alone())
    state = build(seed=1).state_dict()
    change(state)
    before = {name: tensor.clone() for name, tensor in pipe.state_dict().items()}
    with pytest.raises(RuntimeError, match=says) as caught:
        pipe.load_state_dict(state)
    assert isinstance(caught.value, dp.CheckpointError)
    assert isinstance(caught.value, dp.UsageError)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.state_dict().items())


def test_not_strict_and_assign():
    pipe, _ = make_pipe(build(), "dualpipev", _alone())
    state = {"0.weight": torch.ones(11, 8).double(), "more": torch.ones(1)}
    result = pipe.load_state_dict(state, strict=False, assign=True)
    assert result.unexpected_keys == ["more"]
    assert result.missing_keys == list(build().state_dict())[1:]
    assert pipe.module[0][0].weight.data_ptr() == state["0.weight"].data_ptr()
    with pytest.raises(dp.UsageError, match="state_dict is of type list"):
        pipe.load_state_dict([])


def test_missing_concerns_own_stages_only():
    model = build()

    def rank_main(group):
        pipe, _ = make_pipe(model, "1f1b", group)
        pipe.load_state_dict(pipe.local_state_dict())
        state = model.state_dict()
        del state["0.weight"]
        return pipe.load_state_dict(state, strict=False).missing_keys

    assert run(rank_main, 2) == [["0.weight"], []]


def test_copies_with_other_keys_are_refused():
    def rank_main(group):
        stages = [nn.Linear(4, 4, bias=group.rank() == 0), nn.Linear(4, 4)]
        pipe = dp.DualPipe([stages[group.rank()], stages[1 - group.rank()]], process_group=group)
        with pytest.raises(
            dp.UsageError, match="stage 0 is on ranks 0 and 1, and its two copies differ in bias"
        ):
            pipe.state_dict()
        return True

    assert all(run(rank_main, 2))


def test_two_tensors_of_one_name_are_refused():
    stage = nn.Sequential(nn.Linear(4, 4))
    stage.add_module("_orig_mod", nn.Sequential(nn.Linear(4, 4)))
    pipe = dp.Pipeline([stage], "1f1b", process_group=_alone())
    with pytest.raises(dp.UsageError, match=r"stage 0 holds two tensors that are both called '0\.bias'"):
        pipe.state_dict()


def test_a_rank_that_does_not_take_part_is_named():
    def rank_main(group):
        pipe, _ = make_pipe(build(), "1f1b", group)
        if group.rank() == 0:
            pipe.state_dict()

    with pytest.raises(dp.RankError, match="rank 1 has returned"):
        run(rank_main, 2)


def optimizers_of(make):
    def rank_main(group):
        stages = dp.partition([nn.Linear(4, 4), nn.Linear(4, 4)], 2)
        pipe = dp.Pipeline([stages[group.rank()]], "1f1b", process_group=group)
        return pipe.optimizer_state_dict(make(pipe, group.rank()))

    return run(rank_main, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda pipe, rank: torch.optim.Adam(pipe.parameters(), lr=0.1 * (1 + rank)),
            r"lr of the optimizer's parameter group 0 is 0\.1 on rank 0 and 0\.2 on rank 1",
        ),
        (
            lambda pipe, rank: torch.optim.Adam(pipe.parameters(), lr=torch.tensor(0.25 * (1 + rank))),
            r"lr of the optimizer's parameter group 0 is tensor\(0\.2500\) on rank 0",
        ),
        (
            lambda pipe, rank: [torch.optim.SGD, torch.optim.Adam][rank](pipe.parameters(), lr=0.1),
            r"amsgrad of the optimizer's parameter group 0 is none on rank 0 and False on rank 1",
        ),
        (
            lambda pipe, rank: torch.optim.SGD([{"params": [p]} for p in pipe.parameters()][rank:]),
            r"of rank 0 has 2 parameter groups and that of rank 1 has 1",
        ),
        (
            lambda pipe, rank: torch.optim.SGD([*pipe.parameters(), nn.Parameter(torch.ones(3))]),
            r"a parameter of shape \(3,\) that is in no stage",
        ),
    ],
)
def test_optimizers_that_are_not_one(make, says):
    with pytest.raises(dp.UsageError, match=says):
        optimizers_of(make)


def test_a_parameter_in_two_groups_is_refused():
    def rank_main(group):
        stages = dp.partition([nn.Linear(4, 4), nn.Linear(4, 4)], 2)
        pipe = dp.DualPipe([stages[group.rank()], stages[1 - group.rank()]], process_group=group)
        first, second = ([*module.parameters()] for module in pipe.module)
        pipe.optimizer_state_dict(torch.optim.SGD([{"params": first}, {"params": second}]))

    with pytest.raises(dp.UsageError, match=r"1\.weight is in the optimizer's parameter group 0 on rank 1"):
        run(rank_main, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("state"), "no dict with 'state' and 'param_groups'"),
        (
            lambda s: s["param_groups"].append(s["param_groups"][0]),
            "has 3 parameter groups .* of rank 0 has 2",
        ),
        (
            lambda s: s["param_groups"].reverse(),
            r"0\.weight is in .* group 0, and in group 1 of the optimizer",
        ),
        (lambda s: s["param_groups"][0]["params"].remove("2.up.weight"), r"2\.up\.weight .* in none of the"),
        (lambda s: s["param_groups"][0]["params"].append("more"), "of no stage of this pipeline: more"),
        (
            lambda s: s["param_groups"][0].update(params=[0, 1]),
            "by numbers such as 0, .*get_optimizer_state_dict",
        ),
    ],
)
def test_optimizer_states_that_do_not_fit(change, says):
    pipe, _ = make_pipe(build(), "dualpipev", _alone())
    optimizer = adamw(pipe)
    state = pipe.optimizer_state_dict(optimizer)
    change(state)
    with pytest.raises(dp.CheckpointError, match=says):
        pipe.load_optimizer_state_dict(optimizer, state)
