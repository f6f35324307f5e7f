"""The rows that are ours over torch.distributed, on one gloo process a rank: sends that leave at once
(`eager`), or DeepSeek's commits (`batched`) through the same interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from process_row import Share
from workload import MICROBATCHES

import dualpipe_rs as dp


def eager_step(share: Share) -> Callable[[], object]:
    return _step(share, "dualpipev", "eager")


def batched_step(share: Share) -> Callable[[], object]:
    return _step(share, "dualpipev", "batched")


def zero_bubble_eager_step(share: Share) -> Callable[[], object]:
    return _step(share, "zb-v", "eager")  # its stages lie as DualPipeV's


def zero_bubble_batched_step(share: Share) -> Callable[[], object]:
    return _step(share, "zb-v", "batched")


def _step(share: Share, schedule: str, p2p: str) -> Callable[[], object]:
    pipe = dp.Pipeline(share.modules, schedule, p2p=p2p)
    inputs = share.inputs if share.first else None
    labels = (share.labels,) if share.first else ()
    return lambda: pipe.step(inputs, num_chunks=MICROBATCHES, criterion=F.mse_loss, labels=labels)
