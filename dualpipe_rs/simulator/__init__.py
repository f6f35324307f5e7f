"""Events of simulated steps, strategies side by side, and which sizes suit a batch: ``dp.simulator``.

    import dualpipe_rs as dp

    step = dp.simulator.ScheduleSimulator(num_ranks=4, num_chunks=8).simulate_dualpipe()
    print(step.makespan, step[0])
    print(dp.simulator.ScheduleComparator(num_ranks=4, num_chunks=8).generate_report())

An interface under names that are known. It has no simulator of its own: all is read from the real schedule
as ``Schedule.simulate`` has it, under eager sends. Devices are equal: times are those of one part in
``num_ranks`` of the model, and a schedule with k stages a rank has stages of 1/k of it.
"""

from __future__ import annotations

from dualpipe_rs.simulator.comparator import ScheduleComparator
from dualpipe_rs.simulator.events import PipelineEvent, ScheduleSimulator, SimulatedStep
from dualpipe_rs.simulator.optimizer import ConfigOptimizer
from dualpipe_rs.strategies import Times

__all__ = [
    "ConfigOptimizer",
    "PipelineEvent",
    "ScheduleComparator",
    "ScheduleSimulator",
    "SimulatedStep",
    "Times",
]
