"""What the CUDA executor asks of a rank's group in a step: where it is, what will be sent, who has failed.

The tensors themselves go from GPU to GPU. What they look like is announced in the job's store, in the first
step of each kind alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from dualpipe_rs.distributed.in_step import InStep
from dualpipe_rs.distributed.wire import Lost

#: How long to sleep between two looks at the store, in seconds.
_PAUSE = 5e-4


class GpuWire(InStep):
    """The group's part in one step of a rank on a GPU.

    Args:
        rank: this rank in the schedule.
        store: the job's store, under a prefix of this group.
        step: a name of this step, the same on all ranks.
        others_failed: whether another rank has failed.
        check_interrupts: raises what a pending Ctrl-C raises.
        timeout: how long to wait for another rank, in seconds.
    """

    in_slot = "queues its work, or waits for its GPU"
    waiting = "waits to hear what {tensor} from rank {rank} will be"

    def __init__(
        self,
        rank: int,
        store: Any,
        step: str,
        *,
        others_failed: Callable[[], bool],
        check_interrupts: Callable[[], None],
        timeout: float,
    ) -> None:
        super().__init__(rank, others_failed, check_interrupts)
        self._store = store
        self._step = step
        self._timeout = timeout

    # -- what the executor calls ------------------------------------------------------------------

    def failed(self) -> bool:
        """Whether another rank has failed."""
        self._check_interrupts()
        return self._others_failed()

    def announce(self, to: int, key: str, numbers: list[int]) -> None:
        """Says what a tensor will look like. Each is taken by the one rank that receives it."""
        self._store.set(f"{self._step}/{key}", json.dumps(numbers))

    def announced(self, sender: int, key: str, wait: bool) -> list[int] | None:
        """What was announced; None where nothing was yet, or another rank has failed.

        Raises:
            Lost: nothing was within the timeout.
        """
        name = f"{self._step}/{key}"
        self._waits, self._since = (sender, key), time.monotonic()
        try:
            while not self._store.check([name]):
                if not wait or self.failed():
                    return None
                if time.monotonic() - self._since > self._timeout:
                    raise Lost(sender, key)
                time.sleep(_PAUSE)
            numbers: list[int] = json.loads(self._store.get(name))
            self._store.delete_key(name)
            return numbers
        finally:
            self._waits = None
