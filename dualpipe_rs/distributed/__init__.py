"""Ranks in several processes: how a step runs over a torch.distributed process group.

- group.py: :class:`DistributedGroup`, what a pipeline asks of its ranks: a step, an exchange, a failure told.
- joining.py: how its members come together when a pipeline is built.
- wire.py: one rank's channels in one step, as the Rust interpreter calls them.
- gpu_wire.py: the group's part in a step that the CUDA executor runs.
- in_step.py: where a rank is in its step, which both of these tell.
- layouts.py: what a stage hands over, in numbers: headers in the first step, then a fixed table.
- links.py: what carries a tensor, and in which order; lines.py: Unix sockets for small ones within a host.
- board.py: the first failure of a step, told to all, and where each rank is; over the job's store.
- diagnosis.py: whose fault it was when a rank did not answer, in words.
- interrupts.py: Ctrl-C in a step.

Starting processes, finding each other and moving bytes between hosts is torch.distributed's.
"""

from dualpipe_rs.distributed.group import DistributedGroup
from dualpipe_rs.distributed.joining import process_group

__all__ = ["DistributedGroup", "process_group"]
