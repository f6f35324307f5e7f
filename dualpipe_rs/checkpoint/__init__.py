"""Checkpoints of a pipeline: the model and the optimizer under the names of the uncut model.

names.py says what a parameter is called, model.py gathers and loads parameters and buffers, optimizer.py
the state of optimizers. Nothing here reads or writes files: that is ``torch.save``'s, ``torch.load``'s or
``torch.distributed.checkpoint``'s work.
"""

from dualpipe_rs.checkpoint.model import full_state, load_state, local_state
from dualpipe_rs.checkpoint.names import Here
from dualpipe_rs.checkpoint.optimizer import full_optimizer_state, load_optimizer_state

__all__ = ["Here", "full_optimizer_state", "full_state", "load_optimizer_state", "load_state", "local_state"]
