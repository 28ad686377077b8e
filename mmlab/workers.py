"""Everything that runs side by side: worker processes of this machine, or the workers of a Dask cluster.

Both are a `concurrent.futures.Executor`. A function that runs in a worker must belong to a module; its argument and its
result are pickled. Like every program that starts processes with "spawn", a script that asks for workers must do so
below ``if __name__ == "__main__":``.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from mmlab.errors import UserError

ANSWER_S = 10
"""Seconds within which a Dask scheduler must answer and have a worker."""

Progress = Callable[[float, float, str], None] | None
"""What is told of long work: how much is done, of how much, and what; None: nobody listens."""
In = TypeVar("In")
Out = TypeVar("Out")


def each(function: Callable[[In], Out], items: Iterable[In], jobs: int = 1, progress: Progress = None) -> Iterator[Out]:
    """Yield the result for every item, in order: from `jobs` processes, or from this one if one is enough.

    `progress` is called with the items done, all items, and the name of the next one.

    Raises
    ------
    UserError
        A worker process was killed.
    """
    todo, tell = list(items), progress or (lambda *_: None)
    try:
        with ExitStack() as stack:
            alone = jobs == 1 or len(todo) < 2
            results = (map if alone else stack.enter_context(executor(min(jobs, len(todo)))).map)(function, todo)
            for done, item in enumerate(todo):
                tell(done, len(todo), str(getattr(item, "name", item)))
                yield next(results)
            tell(len(todo), len(todo), "")
    except BrokenExecutor:
        hint = "Use fewer jobs: the most likely reason is that memory ran out."
        raise UserError("a worker process was killed", parameter="jobs", value=jobs, hint=hint) from None


@contextmanager
def executor(jobs: int, scheduler: str | None = None) -> Iterator[Executor]:
    """Open `jobs` worker processes, or connect to the Dask scheduler at an address; on exit nothing goes on running.

    Raises
    ------
    UserError
        Dask is not installed, no scheduler answers at the address, or it has no workers.
    BrokenExecutor
        A worker died, or the cluster is lost. Its tasks can be submitted again to a new executor.
    """
    if scheduler:
        yield from _dask(scheduler)
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent)
    try:
        yield pool
    finally:
        for worker in [*(pool._processes or {}).values()]:
            worker.kill()  # whatever it is doing
        pool.shutdown(cancel_futures=True)


def size(pool: Executor) -> int:
    """Return how many tasks an executor runs at a time; that of a cluster changes, and may be 0."""
    found: Any = pool
    return sum(found._client.ncores().values()) if hasattr(pool, "_client") else found._max_workers


def end_with_parent() -> None:
    """Ignore SIGINT in this process (the parent handles it); exit when the parent ends, whatever it died of."""

    def wait(parent: Any) -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, args=(parent_process(),), daemon=True).start()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it freed, so that the next machine's arrays need no page faults.

    Otherwise glibc returns them to the system after each run, which costs a tenth of a short run's time, and more where
    several threads or processes do so at once. Arrays above 32 MiB are always returned.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def _dask(address: str) -> Iterator[Executor]:
    """Connect to a Dask scheduler; see `executor`."""
    refused = partial(UserError, parameter="scheduler", value=address)
    try:
        dask: Any = import_module("distributed")
        dask.comm.addressing.get_address_host_port(address)  # a Client takes half a minute for a malformed address
        client = dask.Client(address, timeout=ANSWER_S, set_as_default=False)
    except ImportError:
        raise refused("Dask is not installed", hint="Install it: pip install 'mmlab[cluster]'.") from None
    except (OSError, ValueError) as error:
        hint = "`dask scheduler` starts one and prints its address."
        raise refused(f"no Dask scheduler answers there ({error})", hint=hint) from None
    with ExitStack() as stack:
        stack.callback(client.close)
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except OSError:
            hint = f"Start some, with the same mmlab: `dask worker {address} --nthreads 1`."
            raise refused("the cluster has no workers", hint=hint) from None
        pool = client.get_executor(pure=False)
        stack.callback(pool.shutdown, wait=False)
        try:
            yield pool
        except (dask.scheduler.KilledWorker, CancelledError, OSError) as error:
            raise BrokenExecutor(str(error)) from error
