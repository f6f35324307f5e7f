"""Parameters that several ranks hold (mirrors, replicas, ties), and what they ask of a step.

- layout.py: who holds copies of what; holders.py: how they reach each other.
- copies.py: a rank's parameters, each once, in an order that all holders share.
- sync.py: copies made equal before training, gradients summed after it.
- clipping.py: the norm over the whole model.
- zero.py: each optimizer state on one rank.
- grad_scaler.py: a scaler on which all ranks agree.
- ties.py, data_parallel.py: how a pipeline is told of ties and replicas.
- sharding.py: sharded stages that would train wrong, refused.
"""

from dualpipe_rs.replicas.sync import Replicas

__all__ = ["Replicas"]
