"""Pipeline-parallel schedules as data: generated, verified, simulated and executed.

    import dualpipe_rs as dp

    schedule = dp.schedule("dualpipe", num_ranks=8, num_microbatches=20)
    schedule.verify()
    timeline = schedule.simulate(dp.Costs(overlap=2.4))
    print(timeline.makespan, timeline.bubble_ratio)

What needs torch is imported when it is first asked for, so that ``import dualpipe_rs`` loads neither
torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dualpipe_rs._core import (
    Components,
    Costs,
    Figure,
    Formula,
    LocalGroup,
    Program,
    Schedule,
    Timeline,
    formula,
    jitter,
    schedule,
    schedule_names,
)
from dualpipe_rs.comparison import Comparison, compare
from dualpipe_rs.errors import (
    CheckpointError,
    DeviceError,
    Error,
    RankError,
    ScheduleError,
    SizeError,
    UsageError,
    Violation,
)
from dualpipe_rs.executor import Executor
from dualpipe_rs.local import run_local
from dualpipe_rs.many import simulate_many

if TYPE_CHECKING:
    __version__: str
    from dualpipe_rs import analysis, cuda, simulator, utils
    from dualpipe_rs.declared import set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from dualpipe_rs.drawing import View, visualize_schedule
    from dualpipe_rs.p2p_overlap import overlap_comm_compute
    from dualpipe_rs.partitioning import partition
    from dualpipe_rs.pipeline import DualPipe, DualPipeV, Pipeline
    from dualpipe_rs.profiling import profile_schedule
    from dualpipe_rs.replicas.grad_scaler import GradScaler
    from dualpipe_rs.scheduler import DualPipeScheduler
    from dualpipe_rs.weight_grad import WeightGradStore, split_weight_grad

# Where the names live that need torch, or that few need.
_LAZY = {
    "DualPipe": "pipeline",
    "DualPipeScheduler": "scheduler",
    "DualPipeV": "pipeline",
    "GradScaler": "replicas.grad_scaler",
    "Pipeline": "pipeline",
    "View": "drawing",
    "WeightGradStore": "weight_grad",
    "overlap_comm_compute": "p2p_overlap",
    "partition": "partitioning",
    "profile_schedule": "profiling",
    "set_p2p_tensor_dtype": "declared",
    "set_p2p_tensor_shapes": "declared",
    "split_weight_grad": "weight_grad",
    "visualize_schedule": "drawing",
}
# Modules of their own, imported when they are asked for.
_MODULES = ("analysis", "cuda", "simulator", "utils")

__all__ = [
    "CheckpointError",
    "Comparison",
    "Components",
    "Costs",
    "DeviceError",
    "DualPipe",
    "DualPipeScheduler",
    "DualPipeV",
    "Error",
    "Executor",
    "Figure",
    "Formula",
    "GradScaler",
    "LocalGroup",
    "Pipeline",
    "Program",
    "RankError",
    "Schedule",
    "ScheduleError",
    "SizeError",
    "Timeline",
    "UsageError",
    "View",
    "Violation",
    "WeightGradStore",
    "analysis",
    "compare",
    "cuda",
    "formula",
    "jitter",
    "overlap_comm_compute",
    "partition",
    "profile_schedule",
    "run_local",
    "schedule",
    "schedule_names",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
    "simulate_many",
    "simulator",
    "split_weight_grad",
    "utils",
    "visualize_schedule",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("dualpipe_rs")
    if name in _MODULES:
        return importlib.import_module(f"dualpipe_rs.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'dualpipe_rs' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"dualpipe_rs.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ModuleNotFoundError(
                f"dualpipe_rs.{name} needs PyTorch: pip install 'dualpipe_rs[torch]'", name="torch"
            ) from error
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
