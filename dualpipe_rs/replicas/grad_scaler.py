"""torch's GradScaler with one answer on all ranks to whether gradients overflowed.

A rank that skipped its optimizer's step alone would leave stages of different steps in one model.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dualpipe_rs.errors import UsageError
from dualpipe_rs.pipeline import Pipeline


class GradScaler(torch.amp.GradScaler):
    """As ``torch.amp.GradScaler``, for the ranks of one pipeline (and its data-parallel replicas) together.

    Scale the loss in the criterion; the losses that ``step()`` returns are then scaled ones::

        scaler = dp.GradScaler(pipe, device="cuda")
        pipe.step(x, criterion=lambda out, y: scaler.scale(loss(out, y)), labels=y, num_chunks=8)
        pipe.sync_gradients()
        scaler.unscale_(optimizer)
        pipe.clip_grad_norm_(1.0)
        scaler.step(optimizer)
        scaler.update()

    All ranks call ``unscale_()`` (or ``step()`` at once) and ``update()``, each for its own optimizer, after
    ``sync_gradients()``.

    Args:
        pipe: the pipeline.
        device: the type of the device that its parameters are on, such as ``"cuda"`` or ``"cpu"``.
        options: ``torch.amp.GradScaler``'s own (``init_scale``, ``growth_interval``, ...), alike on
            all ranks.
    """

    def __init__(self, pipe: Pipeline, device: str = "cuda", **options: Any) -> None:
        if not isinstance(pipe, Pipeline):
            raise UsageError(f"pipe is of type {type(pipe).__name__}; give the pipeline that is trained")
        super().__init__(device, **options)
        self._replicas = pipe._replicas
        if self._enabled:
            # torch makes the scale when a loss is scaled; most ranks of a pipeline never see one.
            self._lazy_init_scale_growth_tracker(torch.device(device))

    def _unscale_grads_(
        self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool = True
    ) -> dict[torch.device, Tensor]:
        parameters = self._replicas.stepped_with(optimizer)
        if parameters is not None:
            # ZeRO-1: the gradients that others step are unscaled too, so that all of them are of one scale.
            optimizer = SimpleNamespace(param_groups=[{"params": parameters}])
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        own = any(bool(flag) for flag in found.values())
        anywhere = self._replicas.anywhere(own, "asks whether gradients overflowed")
        for flag in found.values():
            flag.fill_(float(anywhere))
        # A rank without gradients answers as well: torch takes no answer for a mistake.
        return found or {found_inf.device: found_inf.fill_(float(anywhere))}
