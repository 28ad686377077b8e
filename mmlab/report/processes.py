"""The processes in which reports are made, so that nothing of the caller's shows, and nothing is loaded twice.

One process is started with the environment that reports depend on. It loads the libraries and the compiled model, and
then forks itself for each report. That process runs papermill, and forks itself once more, before anything of the
report is in it: for the notebook's kernel. Where a process cannot fork safely, new ones are started, and load anew.

All of them ignore Ctrl-C and end when the caller does, whatever it died of.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mmlab.errors import UserError
from mmlab.kernel.jit import announced, warm_up
from mmlab.params import locked
from mmlab.report.execute import Progress, Request, claimed, make
from mmlab.report.jupyter import FORK
from mmlab.report.provenance import DEPENDS, exactness, software
from mmlab.workers import end_with_parent

__all__ = ["make_all"]

SCRATCH = "mmlab-report-"
MEMORY = "The most likely reason is that memory ran out: --jobs 1 needs less."


def make_all(
    requests: Sequence[Request],
    jobs: int = 1,
    progress: Progress | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Make reports, `jobs` at a time, and yield for each, in order, what failed in its notebook, empty if nothing did.

    Parameters
    ----------
    progress : callable, optional
        Called with the cells done, all cells, and a report's name; with several reports, with the reports done.
    made_of : mapping, optional
        The software, instead of `mmlab.report.provenance.provenance`.

    Raises
    ------
    UserError
        A report cannot be written, another process is making it, or a process was killed.
    """
    if not requests:
        return
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    made_of = made_of or software(requests[0].page.parent)
    with ExitStack() as stack:
        stack.enter_context(claimed(requests))
        scratch = stack.enter_context(scratch_folder())
        server = context.Process(target=_serve, args=(theirs, requests, jobs, made_of, scratch))
        with _environment():
            server.start()
        stack.callback(server.join)
        stack.callback(server.kill)  # and with it all that it started
        theirs.close()
        found: dict[int, str] = {}
        for number, request in enumerate(requests):
            if progress and len(requests) > 1:
                progress(number, len(requests), request.name)
            while number not in found:
                which, what = _received(ours)
                if isinstance(what, str):
                    found[which] = what
                elif progress and len(requests) == 1:
                    done, cells = what
                    progress(done, cells, request.name)
            yield found[number]
        if progress:
            progress(len(requests), len(requests), "")


def _received(pipe: Connection) -> tuple[int, Any]:
    """Return a message of the other processes: a report's number, and its cells done and all, or what failed."""
    try:
        number, what = pipe.recv()
    except EOFError:
        raise UserError("the process that made them was killed", parameter="reports", hint=MEMORY) from None
    if isinstance(what, UserError):
        raise what
    return number, what


@contextmanager
def _environment() -> Iterator[None]:
    """Have the environment that reports depend on, for a process to inherit."""
    import numpy as np

    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())  # type: ignore[call-overload, index]
    fixed = DEPENDS["environment"] | {"NPY_DISABLE_CPU_FEATURES": ",".join(features)}  # log and exp round differently
    before = {name: os.environ.get(name) for name in fixed}
    os.environ.update(fixed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Connection, requests: Sequence[Request], jobs: int, made_of: dict[str, Any], scratch: Path) -> None:
    """Load everything, then make all reports, each in a process of its own, and tell the caller about them."""
    end_with_parent()
    logging.disable(logging.CRITICAL)  # of papermill, matplotlib and others: errors reach the user as one message
    for name in DEPENDS["loaded"]:
        import_module(name)
    with announced(partial(print, file=sys.stderr)):
        warm_up()
    if "exactness" not in made_of:
        made_of["exactness"] = exactness()
    gc.freeze()  # the garbage collector would touch, and so copy, what the processes share
    lock, waiting = FORK.Lock(), deque(enumerate(requests))
    running: dict[Any, tuple[partial[None], Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, request = waiting.popleft()
            tell = partial(_tell, pipe, lock, number)
            process = FORK.Process(target=_make, args=(tell, request, made_of, scratch))
            process.start()
            running[process.sentinel] = tell, process
        for sentinel in wait(running):
            tell, process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                tell(UserError("the process that made it was killed", parameter="report", hint=MEMORY))


def _make(tell: Callable[[Any], None], request: Request, made_of: Mapping[str, Any], scratch: Path) -> None:
    end_with_parent()
    try:
        tell(make(request, made_of, lambda *cells: tell(cells), scratch))
    except UserError as error:
        tell(error)


def _tell(pipe: Connection, lock: Any, number: int, what: object) -> None:
    with lock:
        pipe.send((number, what))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder, and remove those of processes that were killed: nobody holds their locks any more."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError), locked(left, wait=False):
            if any(left.iterdir()):  # an empty one may be about to be locked
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as name, locked(Path(name)):
        yield Path(name)
