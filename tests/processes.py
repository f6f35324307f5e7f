"""Ranks as processes, for tests: no tests here.

``Job`` starts one process a rank from a server that has torch loaded, so that a start takes milliseconds; the
job's store is this process's, as torchrun's is its agent's, unless another is asked for. Whatever happens,
``Job`` ends with all of them gone.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.functional", "dualpipe_rs.pipeline"])

#: How long a process may take at all, in seconds: none does unless something hangs.
DEADLINE = 120.0


class Died(Exception):
    """A process ended without an answer; its exit code."""


class Job:
    """``fn(rank, *arguments)`` in each of ``ranks`` processes, with torch.distributed initialised over gloo.

    ``results()`` waits for all and gives, by rank, what fn returned, or the exception that it raised, or a
    :class:`Died`. ``store`` says whose the job's store is: ``"parent"``'s, as under torchrun, ``"rank 0"``'s,
    as where processes are started by hand, or a ``"file"``.
    """

    def __init__(
        self,
        ranks: int,
        fn: Callable[..., Any],
        *arguments: Any,
        timeout: float = 60.0,
        store: str = "parent",
    ) -> None:
        self.processes: list[Any] = []
        atexit.register(self.kill)
        self._folder = tempfile.mkdtemp() if store == "file" else None
        where: int | str = 0
        if store == "parent":
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            where = self._store.port
        elif self._folder is not None:
            where = str(Path(self._folder) / "store")
        self._answers = []
        for rank in range(ranks):
            ours, theirs = _context.Pipe()
            given = (rank, ranks, where, timeout, theirs, fn, arguments)
            process = _context.Process(target=_main, args=given, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._answers.append(ours)
            if where == 0:
                where = pickle.loads(ours.recv_bytes())

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends all processes that are left, stopped ones too."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.kill)

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def results(self, of: Collection[int] | None = None) -> list[Any]:
        """By rank; of these ranks alone if they are given, and None for the others."""
        deadline = time.monotonic() + DEADLINE
        results: list[Any] = [None] * len(self.processes)
        waiting: dict[Any, int] = {
            pipe: rank for rank, pipe in enumerate(self._answers) if of is None or rank in of
        }
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise TimeoutError(f"ranks {sorted(waiting.values())} hang; the others: {results}")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    results[rank] = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    self.processes[rank].join(max(0.0, deadline - time.monotonic()))
                    results[rank] = Died(self.processes[rank].exitcode)
        return results

    def leave(self, of: Collection[int] | None = None) -> list[int | None]:
        """Waits for the processes' own end (of these ranks, if they are given), then ends all.

        Returns their exit codes, by rank, None for one that did not end.
        """
        deadline = time.monotonic() + DEADLINE
        for rank, process in enumerate(self.processes):
            if of is None or rank in of:
                process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes


def run_processes(ranks: int, fn: Callable[..., Any], *arguments: Any, timeout: float = 60.0) -> list[Any]:
    """The results of ``fn(rank, *arguments)``, by rank; raises what a rank raised."""
    with Job(ranks, fn, *arguments, timeout=timeout) as job:
        results = job.results()
        codes = job.leave()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert codes == [0] * ranks, codes
    return results


def _main(
    rank: int,
    ranks: int,
    where: int | str,
    timeout: float,
    answer: Connection,
    fn: Callable[..., Any],
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    store = _store(ranks, where, timeout, answer)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
    )
    try:
        answer.send_bytes(pickle.dumps(fn(rank, *arguments)))
    except BaseException as error:
        error.args = (f"{error}\n\nin rank {rank}:\n{traceback.format_exc()}", *error.args[1:])
        answer.send_bytes(pickle.dumps(error))
    answer.close()
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


def _store(ranks: int, where: int | str, timeout: float, answer: Connection) -> Any:
    """The file or the server there is, or with port 0 a new server, of which the parent is told."""
    if isinstance(where, str):
        return dist.FileStore(where, ranks)
    limit = timedelta(seconds=timeout)
    store = dist.TCPStore("127.0.0.1", where, is_master=where == 0, wait_for_workers=False, timeout=limit)
    if where == 0:
        answer.send_bytes(pickle.dumps(store.port))
    return store
