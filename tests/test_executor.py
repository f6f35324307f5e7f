"""`dp.Executor`: plain functions over NumPy (and other) arrays under every schedule, equal to serial; what
DLPack can hand over, and what it cannot.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, sized
from numpy.typing import NDArray

import dualpipe_rs as dp

Array = NDArray[np.float64]
WIDTH, ROWS = 3, 2


class Mlp:
    """A stage is ``tanh(x @ weight)``, by hand; the loss is half the squared distance to a target.

    It notes each call, keeps what a backward needs, and adds up the weights' gradients.
    """

    def __init__(self, stages: int, microbatches: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.weights = random.normal(size=(stages, WIDTH, WIDTH))
        self.inputs = random.normal(size=(microbatches, ROWS, WIDTH))
        self.targets = random.normal(size=(microbatches, ROWS, WIDTH))
        self.last = stages - 1
        self.grads = np.zeros_like(self.weights)
        self.kept: dict[tuple[int, int], tuple[Array, Array]] = {}
        self.late: dict[tuple[int, int], tuple[Array, Array]] = {}
        self.losses: dict[int, float] = {}
        self.calls: Counter[str] = Counter()

    def forward(self, stage: int, microbatch: int, x: Array | None) -> Array:
        self.calls["F"] += 1
        x = self.inputs[microbatch] if x is None else x
        y = np.tanh(x @ self.weights[stage])
        self.kept[stage, microbatch] = x, y
        if stage == self.last:
            self.losses[microbatch] = 0.5 * float(((y - self.targets[microbatch]) ** 2).sum())
        return y

    def backward_input(self, stage: int, microbatch: int, grad: Array | None) -> Array:
        self.calls["I"] += 1
        x, y = self.kept.pop((stage, microbatch))
        grad = y - self.targets[microbatch] if grad is None else grad
        inner = grad * (1 - y * y)
        self.late[stage, microbatch] = x, inner
        return inner @ self.weights[stage].T

    def backward_weight(self, stage: int, microbatch: int) -> None:
        self.calls["W"] += 1
        x, inner = self.late.pop((stage, microbatch))
        self.grads[stage] += x.T @ inner

    def backward(self, stage: int, microbatch: int, grad: Array | None) -> Array:
        self.calls["B"] += 1
        made = self.backward_input(stage, microbatch, grad)
        self.backward_weight(stage, microbatch)
        return made

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "forward": self.forward,
            "backward": self.backward,
            "backward_input": self.backward_input,
            "backward_weight": self.backward_weight,
        }

    def serially(self) -> Mlp:
        for microbatch in range(len(self.inputs)):
            x: Any = None
            for stage in range(self.last + 1):
                x = self.forward(stage, microbatch, x)
            grad: Any = None
            for stage in reversed(range(self.last + 1)):
                grad = self.backward(stage, microbatch, grad)
        return self


def assert_equal(one: Mlp, other: Mlp) -> None:
    difference = np.linalg.norm(one.grads - other.grads)
    assert difference <= 1e-12 * np.linalg.norm(other.grads)
    assert one.losses == pytest.approx(other.losses, rel=1e-12)
    assert not one.kept
    assert not one.late


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_serial_with_all_ranks_on_one_thread(family: str, ranks: int) -> None:
    schedule = sized(family, ranks, 3 * ranks)
    serial = Mlp(schedule.num_stages, schedule.num_microbatches).serially()
    for p2p in ("eager", "batched", "rendezvous"):
        mlp = Mlp(schedule.num_stages, schedule.num_microbatches)
        timeline = dp.Executor(schedule, **mlp.functions(), p2p=p2p).step()
        assert_equal(mlp, serial)
        assert timeline.makespan > 0
        assert mlp.calls["F"] == schedule.num_stages * schedule.num_microbatches


@pytest.mark.parametrize("family", ["1f1b", "dualpipe", "dualpipev", "zb-h1", "hanayo"])
def test_ranks_on_threads_equal_serial_step_after_step(family: str) -> None:
    schedule = sized(family, 4, 12)
    serial = Mlp(schedule.num_stages, schedule.num_microbatches).serially().serially()

    def rank_main(group: dp.LocalGroup) -> Mlp:
        mlp = Mlp(schedule.num_stages, schedule.num_microbatches)
        executor = dp.Executor(schedule, **mlp.functions())
        executor.step()
        timeline = executor.step()
        assert timeline.makespan > 0
        return mlp

    ranks = dp.run_local(rank_main, schedule.num_ranks)
    whole = ranks[0]
    for other in ranks[1:]:
        whole.grads += other.grads
        whole.losses |= other.losses
    assert_equal(whole, serial)


def test_the_members_of_a_group_may_take_other_ranks() -> None:
    schedule = dp.schedule("1f1b", 3, 4)
    serial = Mlp(3, 4).serially()

    def rank_main(group: dp.LocalGroup) -> Array:
        mlp = Mlp(3, 4)
        dp.Executor(schedule, **mlp.functions(), group=group, rank=2 - group.rank()).step()
        return mlp.grads

    assert np.allclose(sum(dp.run_local(rank_main, 3)), serial.grads, rtol=1e-12, atol=0)


def test_a_pair_is_one_call_where_there_is_a_function_for_it() -> None:
    schedule = dp.schedule("dualpipe", 2, 8)
    pairs = sum(";" in slot for rank in range(2) for slot in schedule.rank(rank))
    mlp = Mlp(2, 8)
    seen = []

    def forward_backward(f: int, m: int, x: Any, b: int, n: int, grad: Any) -> tuple[Any, Any]:
        seen.append((f, m, b, n))
        return mlp.forward(f, m, x), mlp.backward(b, n, grad)

    dp.Executor(schedule, **mlp.functions(), forward_backward=forward_backward).step()
    assert len(seen) == pairs > 0
    assert_equal(mlp, Mlp(2, 8).serially())


def test_halves_serve_for_a_whole_backward() -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    mlp = Mlp(2, 4)
    functions = mlp.functions()
    del functions["backward"]
    dp.Executor(schedule, **functions).step()
    assert mlp.calls["B"] == 0
    assert_equal(mlp, Mlp(2, 4).serially())


@pytest.mark.parametrize("p2p", ["eager", "batched", "rendezvous", "blocking"])
def test_a_program_says_who_waits_for_whom(p2p: str) -> None:
    schedule = dp.schedule("gpipe", 2, 4)
    program = schedule.lower(p2p)
    assert (program.schedule, program.p2p) == (schedule, p2p)
    mlp = Mlp(2, 4)
    executor = dp.Executor(program, **mlp.functions())
    executor.step()
    assert executor.p2p == p2p
    assert_equal(mlp, Mlp(2, 4).serially())


def test_a_program_and_another_p2p_are_refused() -> None:
    program = dp.schedule("1f1b", 2, 4).lower("batched")
    with pytest.raises(dp.UsageError, match="lowered for 'batched'"):
        dp.Executor(program, **Mlp(2, 4).functions(), p2p="eager")
    deep = dp.schedule("1f1b", 2, 4).lower("rendezvous", depth=3)
    with pytest.raises(dp.UsageError, match="depth=3"):
        dp.Executor(deep, **Mlp(2, 4).functions())


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, numpy as np, dualpipe_rs as dp\n"
        "s = dp.schedule('gpipe', 2, 2)\n"
        "one = lambda stage, microbatch, x: np.ones(2) if x is None else x + 1\n"
        "dp.Executor(s, forward=one, backward=one).step()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# ---- What travels ------------------------------------------------------------------------------------------


def carried(sent: Callable[[], Any], **options: Any) -> Any:
    """What stage 1 is given of what stage 0 makes."""
    arrived = []

    def forward(stage: int, microbatch: int, x: Any) -> Any:
        if stage == 0:
            return sent()
        arrived.append(x)
        return None

    def backward(stage: int, microbatch: int, grad: Any) -> Any:
        return np.zeros(1)

    dp.Executor(dp.schedule("gpipe", 2, 1), forward=forward, backward=backward, **options).step()
    return arrived[0]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24.0)[::3],
        np.arange(24.0)[::-1],
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.float64(3.5) * np.ones(()),
        np.zeros((0, 3)),
        np.zeros((2, 0, 3), dtype=np.float32),
        np.arange(5, dtype=np.int8),
        np.array([True, False]),
        np.array([1 + 2j, 3]),
        np.arange(4, dtype=np.float16),
        np.arange(4, dtype=np.uint64),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}{array.strides}",
)
def test_an_array_arrives_as_it_is(array: Any) -> None:
    writable = array.flags.writeable
    if not writable:
        array = np.array(array, copy=True)
    arrived = carried(lambda: array)
    assert type(arrived) is np.ndarray
    assert arrived.dtype == array.dtype
    assert arrived.shape == array.shape
    assert array.size == 0 or arrived.strides == array.strides
    assert np.array_equal(arrived, array)
    assert array.size == 0 or np.shares_memory(arrived, array)


def test_a_read_only_array_arrives_read_only() -> None:
    array = np.arange(3.0)
    array.flags.writeable = False
    try:
        array.__dlpack__(max_version=(1, 0))
    except (BufferError, TypeError):
        pytest.skip("this NumPy hands over no read-only array")
    arrived = carried(lambda: array)
    assert not arrived.flags.writeable
    assert np.array_equal(arrived, array)


def test_tuples_arrive_as_tuples() -> None:
    one, two, three = carried(lambda: (np.ones(1), None, np.ones((2, 2), dtype=np.int32)))
    assert one.tolist() == [1.0]
    assert two is None
    assert three.dtype == np.int32
    assert carried(lambda: ()) == ()


def test_a_lone_array_and_one_in_a_tuple_differ() -> None:
    assert isinstance(carried(lambda: np.ones(1)), np.ndarray)
    assert isinstance(carried(lambda: [np.ones(1)]), tuple)


def test_what_arrives_can_be_taken_twice_and_keeps_the_memory() -> None:
    array = np.arange(3.0)
    handed_on: Any = carried(lambda: array, from_dlpack=lambda taken: taken)
    assert handed_on.shape == [3]
    assert "float64[3] on cpu" in repr(handed_on)
    first, second = np.from_dlpack(handed_on), np.from_dlpack(handed_on)
    del handed_on
    gc.collect()
    assert np.shares_memory(first, second)
    assert first.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_capsules_of_both_kinds_are_taken(version: Any) -> None:
    array = np.arange(3.0)
    keyword = {} if version is None else {"max_version": version}
    try:
        capsule = array.__dlpack__(**keyword)
    except TypeError:
        pytest.skip("this NumPy makes no versioned capsules")
    arrived = carried(lambda: capsule, from_dlpack=np.from_dlpack)
    assert np.shares_memory(arrived, array)


def test_memory_is_let_go_of() -> None:
    class Counted(np.ndarray[Any, Any]):
        pass

    alive = []

    def sent() -> Any:
        array = np.zeros(8).view(Counted)
        alive.append(weakref.ref(array))
        return array

    carried(sent)
    gc.collect()
    assert [ref() for ref in alive] == [None]


# ---- What is refused ---------------------------------------------------------------------------------------


def refused(sent: Callable[[], Any], **options: Any) -> str:
    with pytest.raises(dp.RankError) as caught:
        carried(sent, **options)
    assert (caught.value.rank, caught.value.action) == (0, "0F0")
    assert isinstance(caught.value.__cause__, dp.UsageError)
    return str(caught.value)


def test_what_is_no_array_is_refused_in_words() -> None:
    message = refused(lambda: 3.0)
    assert "the output of stage 0 for microbatch 0 is a float" in message
    assert "NumPy" in message


def test_nothing_where_the_next_stage_waits_is_refused() -> None:
    with pytest.raises(dp.RankError, match=r"rank 0, slot 0, 0F0: .*None"):
        carried(lambda: None)


def test_what_dlpack_cannot_hand_over_is_refused_in_words() -> None:
    assert "cannot be handed over by DLPack" in refused(lambda: np.array(["a", "b"]))


def test_a_used_capsule_is_refused() -> None:
    capsule = np.arange(3.0).__dlpack__()
    np.from_dlpack(Holder(capsule))
    assert "DLPack" in refused(lambda: capsule)


class Holder:
    """A producer of one capsule."""

    def __init__(self, capsule: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.capsule, self.device = capsule, device

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_an_interrupt_in_a_producer_goes_through() -> None:
    class Interrupted(Holder):
        def __dlpack__(self, **_: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried(lambda: Interrupted(None))


def test_a_producer_of_the_first_protocol_is_taken() -> None:
    array = np.arange(3.0)

    class Old:
        def __dlpack__(self, stream: Any = None) -> Any:
            return array.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 3)

    arrived = carried(Old, from_dlpack=np.from_dlpack)
    assert np.shares_memory(arrived, array)


def test_a_step_within_a_step_is_refused() -> None:
    def forward(stage: int, microbatch: int, x: Any) -> Any:
        executor.step()

    executor = dp.Executor(dp.schedule("gpipe", 2, 2), forward=forward, backward=lambda *_: None)
    with pytest.raises(dp.RankError, match="while a step of this executor runs"):
        executor.step()


def test_the_group_of_another_rank_is_refused() -> None:
    groups: list[Any] = [None, None]

    def rank_main(group: dp.LocalGroup) -> None:
        groups[group.rank()] = group
        group.exchange(None)
        functions = Mlp(2, 4).functions()
        with pytest.raises(dp.UsageError, match="group is another rank's"):
            dp.Executor(dp.schedule("1f1b", 2, 4), **functions, group=groups[1 - group.rank()])

    dp.run_local(rank_main, 2)


def test_a_model_that_holds_its_executor_is_collected() -> None:
    class Model:
        def __init__(self) -> None:
            self.executor = dp.Executor(dp.schedule("gpipe", 2, 2), forward=self.one, backward=self.one)

        def one(self, *_: Any) -> Any:
            return np.ones(2)

    model = Model()
    model.executor.step()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_an_array_on_another_device_is_refused_in_words() -> None:
    message = refused(lambda: Holder(None, (2, 1)))
    assert "is on cuda:1; the executor works on cpu" in message


def test_a_producer_that_raises_is_told_of() -> None:
    class Broken(Holder):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("out of luck")

    assert "out of luck" in refused(lambda: Broken(None))
    assert "DLPack" in refused(lambda: Holder("no capsule"))


def test_after_a_failure_the_next_step_is_right() -> None:
    schedule = dp.schedule("1f1b", 2, 4)
    mlp = Mlp(2, 4)
    broken = [True]

    def forward(stage: int, microbatch: int, x: Any) -> Any:
        if broken and (stage, microbatch) == (1, 2):
            raise ValueError("a fault of the test's")
        return mlp.forward(stage, microbatch, x)

    executor = dp.Executor(schedule, **{**mlp.functions(), "forward": forward})
    with pytest.raises(
        dp.RankError, match=r"rank 1, slot .*, 1F2: ValueError: a fault of the test's"
    ) as caught:
        executor.step()
    assert isinstance(caught.value.__cause__, ValueError)
    broken.clear()
    mlp.__init__(2, 4)  # type: ignore[misc]
    executor.step()
    assert_equal(mlp, Mlp(2, 4).serially())


def test_ctrl_c_goes_through() -> None:
    def forward(stage: int, microbatch: int, x: Any) -> Any:
        raise KeyboardInterrupt

    executor = dp.Executor(dp.schedule("gpipe", 2, 2), forward=forward, backward=lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        executor.step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "1f1b"}, "schedule is a str"),
        ({"forward": None}, "forward is a NoneType; give a function"),
        ({"backward": 3}, "backward is a int; give a function"),
        ({"backward": None}, "calls for backward, which is not given"),
        ({"from_dlpack": 3}, "from_dlpack is a int; give a function"),
        ({"group": 3}, "group is a int"),
        ({"group": 3, "device": 0}, "a ProcessGroup of torch.distributed"),
        ({"rank": 0}, "there is no group"),
        ({"p2p": "soon"}, "p2p"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": -1}, "device is -1"),
        ({"device": 0, "stream": "s"}, "stream is a str"),
        ({"device": 0, "communicators": "one"}, "communicators="),
        ({"device": 0, "communicators": "pair"}, "could deadlock"),
        ({"device": 0, "max_ctas": 0}, "max_ctas is 0"),
        ({"device": 0, "timeout": 0}, "timeout is 0"),
        ({"device": 1 << 40}, "device is 1099511627776"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"communicators": "one"}, "communicators="),
    ],
)
def test_wrong_arguments_are_told_of_in_words(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "schedule": dp.schedule("1f1b", 2, 4),
        "forward": lambda *_: None,
        "backward": lambda *_: None,
        **change,
    }
    with pytest.raises(dp.UsageError, match=words):
        dp.Executor(given.pop("schedule"), **given)


def test_the_halves_that_a_schedule_needs_are_named() -> None:
    with pytest.raises(
        dp.UsageError, match="calls for backward_input and backward_weight, which are not given"
    ):
        dp.Executor(dp.schedule("zb-h1", 2, 4), forward=lambda *_: None, backward=lambda *_: None)


def test_a_group_of_another_size_is_refused() -> None:
    def rank_main(group: dp.LocalGroup) -> None:
        dp.Executor(dp.schedule("gpipe", 3, 3), forward=lambda *_: None, backward=lambda *_: None)

    with pytest.raises(dp.UsageError, match="for 3 ranks and the group has 2"):
        dp.run_local(rank_main, 2)


# ---- PyTorch -----------------------------------------------------------------------------------------------


def test_tensors_of_torch_arrive_as_such() -> None:
    torch = pytest.importorskip("torch")
    names = ["float32", "bfloat16", "float16", "int64", "bool", "complex64"]
    for name in names:
        tensor = torch.arange(6).reshape(2, 3).T.to(getattr(torch, name))
        arrived = carried(lambda tensor=tensor: tensor)
        assert type(arrived) is torch.Tensor
        assert arrived.dtype == tensor.dtype
        assert arrived.stride() == tensor.stride()
        assert arrived.data_ptr() == tensor.data_ptr()
        assert torch.equal(arrived, tensor)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_arrives_or_is_refused_in_words(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(4.0).to(getattr(torch, name))
    try:
        tensor.__dlpack__()
    except BufferError:
        assert "cannot be handed over by DLPack" in refused(lambda: tensor)
        return
    arrived = carried(lambda: tensor)
    assert arrived.dtype == tensor.dtype
    assert torch.equal(arrived.float(), tensor.float())


def test_tensors_that_require_grad_are_refused_in_words() -> None:
    torch = pytest.importorskip("torch")
    assert "hand over .detach() of it" in refused(lambda: torch.ones(2, requires_grad=True))


def test_sparse_and_meta_tensors_are_refused() -> None:
    torch = pytest.importorskip("torch")
    refused(lambda: torch.ones(2, 2).to_sparse())
    refused(lambda: torch.ones(2, device="meta"))
