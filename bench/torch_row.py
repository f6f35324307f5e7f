"""The row `torch`: torch.distributed.pipelining's ScheduleDualPipeV on one gloo process a rank.

It is no benchmark of gloo: tensors travel as torch's schedule sends them by default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from process_row import Share
from workload import MICROBATCHES


def torch_step(share: Share) -> Callable[[], object]:
    # Here, since every process of the other rows imports this file, too, and this takes seconds.
    from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV

    device = torch.device("cpu")
    schedule = ScheduleDualPipeV(
        [
            PipelineStage(module, stage, share.size.stages, device)
            for module, stage in zip(share.modules, share.stages, strict=True)
        ],
        n_microbatches=MICROBATCHES,
        loss_fn=F.mse_loss,
        scale_grads=False,  # the sum over microbatches, as in every other row
    )
    if share.first:
        return lambda: schedule.step(share.inputs, target=share.labels, return_outputs=False)
    return lambda: schedule.step(return_outputs=False)
