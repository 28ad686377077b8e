"""A notebook becomes an HTML report: papermill runs it, nbconvert renders it, and its data go beside the page.

    >>> from mmlab.report.execute import make_all
    >>> from mmlab.report.request import Request, find_notebook
    >>> list(make_all([Request(find_notebook("01"), overrides={"pages_to_scan": 500})]))  # doctest: +SKIP
    ['']

One process is started with the environment that reports depend on. It loads the libraries and the compiled model, and
then forks itself for each report. That process runs papermill, and forks itself for the notebook's kernel. Where a
process cannot fork safely, new ones are started, and load anew. All of them ignore Ctrl-C and end when the caller does,
whatever it died of.

The same notebook, parameters, versions and file name give the same bytes, of the page and of all files beside it: the
processes have a fixed hash seed, time zone and locale and none of the user's matplotlib settings, and
`mmlab.report.page` drops run times, papermill's metadata and memory addresses. The notebook's working directory is the
caller's, as with papermill. If the environment variable ``MMLAB_EXECUTED`` names a folder, the executed notebooks are
kept there.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from mmlab.engine.costs import describe_accuracy
from mmlab.errors import UserError
from mmlab.params import check_folder, locked, write_atomically, writing
from mmlab.report import page
from mmlab.report.provenance import DEPENDS, digest, exactness, software
from mmlab.report.request import Request, as_yaml
from mmlab.scenario import Scenario
from mmlab.workers import Progress, end_with_parent

if TYPE_CHECKING:
    from nbformat import NotebookNode


SCRATCH = "mmlab-report-"
MEMORY = "The most likely reason is that memory ran out: --jobs 1 needs less."


def make_all(requests: Sequence[Request], jobs: int = 1, progress: Progress = None) -> Iterator[str]:
    """Make reports, `jobs` at a time, and yield for each, in order, what failed in its notebook, empty if nothing did.

    A notebook that fails leaves its page up to the failing cell, with the error.

    Parameters
    ----------
    progress : callable, optional
        Called with the reports done, all reports, and the next one's name.

    Raises
    ------
    UserError
        A report cannot be written, another process is making it, or a process was killed.
    """
    import numpy as np

    if not requests:
        return
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())  # type: ignore[call-overload, index]
    fixed = DEPENDS["environment"] | {"NPY_DISABLE_CPU_FEATURES": ",".join(features)}  # log and exp round differently
    context, failed = get_context("spawn"), dict[int, str]()
    ours, theirs = context.Pipe(duplex=False)
    with claimed(requests), scratch_folder() as scratch, ExitStack() as stack:
        made_of = software(requests[0].page.parent)
        server = context.Process(target=_serve, args=(theirs, requests, jobs, made_of, scratch))
        with patch.dict(os.environ, fixed):
            server.start()
        stack.callback(server.join)
        stack.callback(server.kill)  # and with it all that it started
        theirs.close()
        for number, request in enumerate(requests):
            if progress:
                progress(number, len(requests), request.name)
            while number not in failed:
                try:
                    which, what = ours.recv()
                except EOFError:
                    what = UserError("the process that made them was killed", parameter="reports", hint=MEMORY)
                if isinstance(what, UserError):
                    raise what
                failed[which] = what
            yield failed[number]
        if progress:
            progress(len(requests), len(requests), "")


@contextmanager
def claimed(requests: Sequence[Request]) -> Iterator[None]:
    """Make the folders of reports, and keep other processes from making the same ones meanwhile.

    Raises
    ------
    UserError
        A page cannot be written, or it is being made already.
    """
    with ExitStack() as stack:
        for request in requests:
            check_folder(request.page)
            request.data.mkdir(exist_ok=True)
            stack.callback(_remove_if_empty, request.data)
            try:
                stack.enter_context(locked(request.data, wait=False))
            except BlockingIOError:
                hint = "Name another place for it with -o."
                raise UserError("it is being made already", parameter=str(request.page), hint=hint) from None
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder, and remove those of processes that were killed: nobody holds their locks any more."""
    for left in Path(gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError), locked(left, wait=False):
            if any(left.iterdir()):  # an empty one may be about to be locked
                shutil.rmtree(left)
    with TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as name, locked(Path(name)):
        yield Path(name)


def _serve(pipe: Connection, requests: Sequence[Request], jobs: int, made_of: dict[str, Any], scratch: Path) -> None:
    """Load everything, then make each report in a process of its own.

    Sent are a report's number, and what failed in its notebook or a `UserError`: few enough bytes that the processes
    cannot mix them.
    """
    from mmlab.kernel.jit import announced
    from mmlab.report.jupyter import FORK

    end_with_parent()
    logging.disable(logging.CRITICAL)  # of papermill, matplotlib and others: errors reach the user as one message
    with announced(partial(print, file=sys.stderr)):
        load()
    if "exactness" not in made_of:
        made_of["exactness"] = exactness()
    gc.freeze()  # the garbage collector would touch, and so copy, what the processes share
    waiting: deque[tuple[int, Request]] = deque(enumerate(requests))
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, request = waiting.popleft()
            process = FORK.Process(target=_make, args=(pipe, number, request, made_of, scratch))
            process.start()
            running[process.sentinel] = number, process
        for sentinel in wait(running):
            number, process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                pipe.send((number, UserError("its process was killed", parameter=requests[number].name, hint=MEMORY)))


def load() -> None:
    """Load all that notebooks and pages need, and the compiled model, which is compiled if need be."""
    from mmlab.kernel.jit import warm_up

    for name in DEPENDS["loaded"]:
        import_module(name)
    warm_up()


def _make(pipe: Connection, number: int, request: Request, made_of: Mapping[str, Any], scratch: Path) -> None:
    """Run a notebook with parameters, and write its report."""
    end_with_parent()
    try:
        with writing(scratch):
            folder = Path(mkdtemp(dir=scratch))
            executed, error = _run(request, folder)
            page.arrange(executed)
            tables = page.number_tables(executed, folder)
        about = {**page.summary(executed, request.notebook.stem), **made_of, "name": request.page.stem}
        about |= {"changed": ", ".join(map("=".join, request.changed.items())), "files": list(tables)}
        about |= {"data": digest(tables), "error": error, "inputs": request.inputs}
        trust = describe_accuracy(str(request.parameters.get("costs", Scenario.model_fields["costs"].default)))
        text = page.render(executed, about, request=request, yaml=as_yaml, trust=trust)
        with writing(request.page):
            publish(request, tables, text)
        pipe.send((number, error))
    except UserError as refused:
        pipe.send((number, refused))


def _run(request: Request, folder: Path) -> tuple[NotebookNode, str]:
    """Return the executed notebook, and what failed in it, empty if nothing did.

    The notebook's tables are saved in `folder`, as are temporary files.
    """
    import nbformat
    from nbclient.exceptions import CellControlSignal
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from mmlab.figures.notebook import TABLES
    from mmlab.report.jupyter import ForkedKernelManager

    os.environ |= {"JUPYTER_RUNTIME_DIR": str(folder), "IPYTHONDIR": str(folder / "ipython"), TABLES: str(folder)}
    executed, error = [nbformat.v4.new_notebook()], ""  # type: ignore[no-untyped-call]
    try:
        execute_notebook(
            request.notebook.resolve(),
            Path(os.environ.get("MMLAB_EXECUTED") or folder) / f"{request.page.stem}.ipynb",
            parameters={name: request.parameters[name] for name in request.changed},
            kernel_manager_class=ForkedKernelManager,
            config=Config(ConnectionFileMixin={"connection_file": str(folder / "connection.json")}),  # has a key
            on_notebook_start=lambda notebook: executed.append(notebook),  # it is run in place
            **DEPENDS["papermill"],
        )
    except PapermillExecutionError as stop:
        error = f"Cell [{stop.exec_count}] of {request.notebook.name} failed with {stop.ename}: {stop.evalue}"
    except (CellControlSignal, RuntimeError) as stop:  # such as DeadKernelError
        error = f"{request.notebook.name} stopped: {stop}"
    return executed[-1], error


def publish(request: Request, tables: Mapping[str, bytes], text: str) -> None:
    """Write the tables, then the page, each in one piece; then remove the tables of an earlier page."""
    with locked(request.page.parent):
        for name, content in tables.items():
            write_atomically(request.data / name, content)
        write_atomically(request.page, text.encode())
        for left in [*request.data.iterdir(), *request.page.parent.glob(f".{request.page.name}.*.tmp")]:
            if left.name not in tables and left.suffix in (".csv", ".parquet", ".tmp"):
                left.unlink()  # the latter is of a process that was killed
