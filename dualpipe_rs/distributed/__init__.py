"""Ranks in several processes: how a step runs over a torch.distributed process group.

- group.py: :class:`DistributedGroup`, what a pipeline asks of its ranks: a step, an exchange, a failure told.
- wire.py: one rank's channels in one step, as the Rust interpreter calls them.
- layouts.py: what a stage hands over, in numbers: headers in the first step, then a fixed table.
- links.py: which process group carries a tensor, and in which order.
- board.py: the first failure of a step, told to all, and where each rank is; over the job's store.
- diagnosis.py: whose fault it was when a rank did not answer, in words.

Starting processes, finding each other and moving bytes is torch.distributed's; nothing here opens a socket.
"""

from dualpipe_rs.distributed.group import DistributedGroup, process_group

__all__ = ["DistributedGroup", "process_group"]
