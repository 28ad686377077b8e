"""Workers for sweeps: processes of this machine, or a Dask cluster. Both are executors of `concurrent.futures`.

What is run in a worker must be a function of a module, and what goes in and out must be picklable.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, Protocol, TypeVar

from mmlab.errors import UserError

__all__ = ["Cluster", "Crew", "Processes"]

DEATHS = 3
"""Processes that a task may take along before it counts as failed."""
PATIENCE = 60
"""How long to wait for a worker where all have died, s."""

In = TypeVar("In")
Out = TypeVar("Out")


class Crew(Protocol):
    """Workers, as many as there are; one that dies is replaced, and its task's future raises one of `died`."""

    died: tuple[type[BaseException], ...]
    tries: int
    """How often a task may end like that before it counts as failed."""

    def workers(self) -> int:
        """How many there are."""
        ...

    def room(self) -> int:
        """How many more tasks they would take now."""
        ...

    def submit(self, function: Callable[[In], Out], task: In) -> Future[Out]:
        """Take a task."""
        ...

    def done(self, future: Future[Any]) -> None:
        """A future is finished; whoever waited for it says so."""
        ...

    def close(self) -> None:
        """Let the workers go, whatever they do."""
        ...


class Processes:
    """Processes of this machine. Each is an executor of its own: one that dies takes nothing along but its own task."""

    died: tuple[type[BaseException], ...] = (BrokenExecutor,)
    tries = DEATHS

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.busy: dict[Future[Any], ProcessPoolExecutor] = {}
        self.idle = [_process() for _ in range(jobs)]
        self.ready = self.idle[0].submit(_get_ready, True)
        for other in self.idle[1:]:
            other.submit(_get_ready, False)

    def workers(self) -> int:
        return self.jobs

    def room(self) -> int:
        """Waits until the first process has the model compiled.

        Raises
        ------
        UserError
            Processes do not live long enough for that.
        """
        for _ in range(DEATHS):
            try:
                self.ready.result()
            except BrokenExecutor:
                self.idle[0] = _process()
                self.ready = self.idle[0].submit(_get_ready, True)
            else:
                return len(self.idle)
        raise UserError(
            "worker processes end as soon as they begin; above is why. In a script of yours, what calls "
            'sweep() must be below `if __name__ == "__main__":`'
        )

    def submit(self, function: Callable[[In], Out], task: In) -> Future[Out]:
        process = self.idle.pop()
        try:
            future = process.submit(function, task)
        except BrokenExecutor:  # it died while it was idle
            process = _process()
            future = process.submit(function, task)
        self.busy[future] = process
        return future

    def done(self, future: Future[Any]) -> None:
        process = self.busy.pop(future)
        self.idle.append(_process() if isinstance(future.exception(), BrokenExecutor) else process)

    def close(self) -> None:
        executors = [*self.idle, *self.busy.values()]
        for executor in executors:  # killed also where they are idle: their own end would take them half a second
            for process in list((executor._processes or {}).values()):  # kill_workers() comes with Python 3.14
                process.kill()
        for executor in executors:
            executor.shutdown(cancel_futures=True)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Ctrl-C is the parent's affair, and a worker whose parent was killed ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _get_ready(first: bool) -> None:
    """Load the model; the first of the workers compiles it for all, if need be."""
    from mmlab.engine.clock import simulate
    from mmlab.kernel.jit import announced
    from mmlab.scenario import Scenario

    if first:
        with announced(lambda text: print(text, file=sys.stderr)):
            simulate(Scenario(memory_mib=2, horizon_full_scans=2))


class Cluster:
    """The workers of a Dask cluster, which runs the tasks of those that die again, three times unless told otherwise.

    Raises
    ------
    UserError
        There is no Dask here, nothing answers at the address, or it has no workers.
    """

    tries = 2  # a task is also blamed for another's deeds: of the same worker

    def __init__(self, address: str) -> None:
        try:
            import distributed
            from distributed.comm.addressing import get_address_host_port
            from distributed.scheduler import KilledWorker
        except ImportError:
            raise UserError("--scheduler needs Dask: pip install 'mmlab[cluster]'") from None
        try:
            get_address_host_port(address)  # a Client of a wrong address takes half a minute to go
            client: Any = distributed.Client  # not typed
            self.client = client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--scheduler {address}: no Dask scheduler answers there ({error}). `dask scheduler` "
                "starts one and prints its address"
            ) from None
        self.address, self.seen = address, time.monotonic()
        self.died: tuple[type[BaseException], ...] = (KilledWorker,)
        self.executor = self.client.get_executor(pure=False)
        self.busy: set[Future[Any]] = set()
        if not self.client.ncores():
            self.close()
            raise UserError(
                f"--scheduler {address}: this cluster has no workers: start some, with the same mmlab: "
                f"dask worker {address} --nthreads 1"
            )

    def workers(self) -> int:
        """At least one: where all have died, tasks wait for the next.

        Raises
        ------
        UserError
            The scheduler is lost, or there has been no worker for a while.
        """
        try:
            cores: int = sum(self.client.ncores().values())
        except OSError as error:
            raise self.lost(f"the Dask scheduler at {self.address} is lost ({error})") from None
        self.seen = time.monotonic() if cores else self.seen
        if time.monotonic() - self.seen > PATIENCE:
            raise self.lost(f"the Dask scheduler at {self.address} has had no workers for {PATIENCE} s")
        return max(1, cores)

    @staticmethod
    def lost(what: str) -> UserError:
        return UserError(f"{what}: what was finished is kept, and the same sweep goes on once they are back")

    def room(self) -> int:
        """Two tasks a worker, so that none waits for the next one."""
        return 2 * self.workers() - len(self.busy)

    def submit(self, function: Callable[[In], Out], task: In) -> Future[Out]:
        future: Future[Out] = self.executor.submit(function, task)
        self.busy.add(future)
        return future

    def done(self, future: Future[Any]) -> None:
        self.busy.remove(future)
        if future.cancelled():
            raise self.lost(f"the Dask scheduler at {self.address} is lost")

    def close(self) -> None:
        self.executor.shutdown(wait=False)
        self.client.close()
