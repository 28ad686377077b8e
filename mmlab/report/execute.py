"""A notebook becomes an HTML report: papermill runs it, nbconvert renders it, and its data go beside the page.

    >>> from pathlib import Path
    >>> from mmlab.report.execute import Request, report
    >>> report(Request(Path("notebooks/01_regression.ipynb"), overrides={"pages_to_scan": 500}))  # doctest: +SKIP
    PosixPath('reports/01_regression.html')

The parameters are checked before anything runs: every name must be in the notebook's cell tagged ``parameters``, and
every name that is a field of `mmlab.scenario.Scenario` must have a value that a scenario accepts.

The same notebook, parameters, versions and file name give the same bytes, of the page and of all files beside it: the
kernel runs with a fixed hash seed, time zone and locale and without the user's matplotlib settings, and
`mmlab.report.page` drops run times, papermill's metadata and memory addresses. The notebook's working directory is the
caller's, as with papermill. If the environment variable ``MMLAB_EXECUTED`` names a folder, the executed notebooks are
kept there.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mmlab.errors import UserError, located, unknown
from mmlab.params import read_yaml, shipped_folder, write_atomically
from mmlab.report import page
from mmlab.report.jupyter import environment, this_interpreter
from mmlab.report.provenance import Provenance, digest, ingredients, provenance

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Parameter", "ReportFailed", "Request", "find_notebook", "make", "report", "resolve_parameters"]

Progress = Callable[[float, float, str], object]

PINNED = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",  # one kernel on every x86-64 processor: others round differently
    "MATPLOTLIBRC": os.devnull,
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "COLUMNS": "120",
}
"""Environment of the kernel's process; nothing of the caller's environment may show in the report."""
KERNEL_OPTIONS = ["--HistoryManager.enabled=False", "--InteractiveShellApp.ignore_cwd=True"]
"""The working directory is searched for modules by ``PYTHONPATH``, after this library, not before it."""
EXECUTED = "MMLAB_EXECUTED"


class ReportFailed(Exception):  # noqa: N818 (the report failed, not its maker)
    """A cell of the notebook raised: the report was written nevertheless, up to that cell and with the error."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: its default and the value that this report runs with."""

    name: str
    default: object
    value: object

    @property
    def changed(self) -> bool:
        """Whether the value is not the default."""
        return self.value != self.default


@dataclass(frozen=True)
class Request:
    """A report to be made.

    Parameters
    ----------
    notebook : Path
        The notebook. It is not changed.
    params_files : sequence of Path
        Flat YAML files ``name: value``, as ``papermill -f`` takes them; a later file wins.
    overrides : mapping
        Single values, which win over the files.
    out : Path
        The page (``….html``), or the folder for it. Its tables go into the folder ``<page without .html>.data``.
    show_code : bool
        Show the code cells, too.
    """

    notebook: Path
    params_files: Sequence[Path] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    out: Path = Path("reports")
    show_code: bool = False

    @property
    def name(self) -> str:
        """The notebook's name, followed by those of the params files."""
        return "_".join([self.notebook.stem, *(file.stem for file in self.params_files)])

    @property
    def page(self) -> Path:
        """The page's file."""
        return self.out if self.out.suffix == ".html" else self.out / f"{self.name}.html"

    @property
    def data(self) -> Path:
        """The folder beside the page."""
        return self.page.with_suffix(".data")

    @cached_property
    def parameters(self) -> list[Parameter]:
        """All parameters of the notebook, checked."""
        return resolve_parameters(self.notebook, self.params_files, self.overrides)

    @property
    def notebook_digest(self) -> str:
        """SHA-256 of the notebook."""
        return hashlib.sha256(self.notebook.read_bytes()).hexdigest()

    def check(self) -> str:
        """Return the SHA-256 of all that the report depends on.

        Raises
        ------
        UserError
            A file is missing or unreadable, a parameter is unknown to the notebook, a value is out of range, or the
            page cannot be written.
        """
        parameters = [(p.name, p.value) for p in self.parameters]
        with _writing(self.page.parent):
            self.page.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.page.parent).close()
        of = [self.notebook_digest, parameters, self.show_code, self.page.name, ingredients()]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def is_made(self) -> bool:
        """Return whether the page and its tables are there and would be the same if they were made again."""
        about = page.About.read(self.page)
        if about is None or about.error or about.inputs != self.check():
            return False
        with suppress(OSError):
            return digest({file: (self.data / file).read_bytes() for file in about.files}) == about.data
        return False

    def command(self) -> str:
        """Return the command that makes the same page, with nothing of this machine in it."""
        settings = [word for p in self.parameters if p.changed for word in ("-p", f"{p.name}={as_yaml(p.value)}")]
        code = ["--code"] if self.show_code else []
        return shlex.join(["mmlab", "report", self.notebook.name, *settings, *code, "-o", self.page.name])


def as_yaml(value: object) -> str:
    """Return a value as YAML on one line, quoted only where that changes its meaning."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(problem, parameter=str(error.filename or path), hint="Name another place with -o.") from error


def report(request: Request, progress: Progress | None = None) -> Path:
    """Run a notebook with parameters, write the report, and return the page.

    Parameters
    ----------
    progress : callable, optional
        Called with the cells done, all cells, and the report's name.

    Raises
    ------
    UserError
        As `Request.check`; nothing has run.
    ReportFailed
        A cell raised; the page exists and tells which.
    """
    request.check()
    if error := make(request, provenance(), progress):
        raise ReportFailed(f"{error}. {request.page} has the results up to there")
    return request.page


def make(request: Request, made_of: Provenance, progress: Progress | None = None, scratch: Path | None = None) -> str:
    """Make one report, with temporary files in a folder within `scratch`, and return what failed, empty if nothing."""
    from mmlab.engine.costs import describe_accuracy
    from mmlab.scenario import Scenario

    inputs, values = request.check(), {p.name: str(p.value) for p in request.parameters}
    trust = describe_accuracy(values.get("costs", Scenario.model_fields["costs"].default))
    with (
        _writing(request.page),
        tempfile.TemporaryDirectory(prefix="mmlab-report-", dir=scratch, ignore_cleanup_errors=True) as folder,
    ):
        executed, error = run(request, Path(folder), progress)
        page.arrange(executed)
        names = page.number_tables(executed)
        saved = [(f"{new}.{kind}", f"{old}.{kind}") for new, old in names.items() for kind in ("csv", "parquet")]
        tables = {new: (Path(folder) / old).read_bytes() for new, old in saved}
        about = page.About(
            **page.summary(executed, request.notebook.stem),
            changed=", ".join(f"{p.name}={as_yaml(p.value)}" for p in request.parameters if p.changed),
            tables=list(names),
            data=digest(tables),
            error=error,
            inputs=inputs,
            version=made_of.version,
            exactness=made_of.exactness,
        )
        text = page.render(executed, about, request=request, made_of=made_of, yaml=as_yaml, trust=trust)
        publish(request, tables, text)
    return error


def publish(request: Request, tables: Mapping[str, bytes], text: str) -> None:
    """Write the tables, then the page, each in one piece; then remove the tables of an earlier page."""
    with alone(request.page.parent):
        for name, content in tables.items():
            write_atomically(request.data / name, content)
        write_atomically(request.page, text.encode())
        for left in request.data.glob("[0-9][0-9]*-*.*"):
            if left.name not in tables and left.suffix in (".csv", ".parquet"):
                left.unlink()
        with suppress(OSError):  # it has files, or does not exist
            request.data.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes reports into the folder; where the file system has no locks, do not wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def find_notebook(name: str | Path) -> Path:
    """Return a notebook by its path, or one that ships with mmlab by its name, with or without folder and ending.

    Raises
    ------
    UserError
        There is neither.

    Examples
    --------
    >>> find_notebook("01_regression").name
    '01_regression.ipynb'
    """
    path = Path(name)
    shipped = {file.stem: file for file in sorted(shipped_folder("notebooks").glob("*.ipynb"))}
    if path.is_file():
        return path
    if path.parent.name in ("", "notebooks") and path.name.removesuffix(".ipynb") in shipped:
        return shipped[path.name.removesuffix(".ipynb")]
    raise unknown("notebook", str(name), shipped, "Name a file, or one of the notebooks that ship with mmlab.")


def resolve_parameters(
    notebook: Path, params_files: Sequence[Path], overrides: Mapping[str, object]
) -> list[Parameter]:
    """Return the notebook's parameters in its own order, each with its default and the value to run with, all checked.

    Raises
    ------
    UserError
        A name is unknown to the notebook, or a value is not allowed.
    """
    from mmlab.engine.costs import cost_set
    from mmlab.scenario import Scenario
    from mmlab.variants import resolve

    defaults = notebook_defaults(notebook)
    values = dict(defaults)
    for where, given in [*((str(file), read_params(file)) for file in params_files), ("-p", overrides)]:
        with located(where):
            for name, value in given.items():
                if name not in defaults:
                    raise unknown("parameter", name, defaults, f"See the cell tagged parameters of {notebook.name}.")
                values[name] = value if name in Scenario.model_fields else _checked(name, value, defaults[name])

    of_scenario = {name: value for name, value in values.items() if name in Scenario.model_fields}
    if of_scenario:
        scenario = Scenario(**of_scenario)
        scenario.check_memory()
        resolve(scenario.variant)
        cost_set(scenario.costs)
        values |= {name: getattr(scenario, name) for name in of_scenario}
    return [Parameter(name, default, values[name]) for name, default in defaults.items()]


def _checked(name: str, value: object, default: object) -> object:
    """Return the value of a parameter that is no scenario's, in the type of its default."""
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        allowed = f"of type {type(default).__name__}, such as {default!r}"
        raise UserError(parameter=name, value=value, allowed=allowed)
    return value


def notebook_defaults(notebook: Path) -> dict[str, object]:
    """Return name and default of each line ``name: type = value  # help`` of the cell tagged ``parameters``.

    Raises
    ------
    UserError
        The file is missing or no notebook, or a default is not a plain value.
    """
    found: dict[str, object] = {}
    try:  # plain JSON: nbformat takes seconds to load
        cells = json.loads(notebook.read_bytes())["cells"]
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        for line in ast.parse("".join(tagged[:1])).body:
            if isinstance(line, ast.AnnAssign | ast.Assign) and line.value:
                target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
                found[ast.unparse(target)] = ast.literal_eval(line.value)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, SyntaxError) as error:
        problem = f"its parameters cannot be read: {getattr(error, 'strerror', '') or error}"
        raise UserError(problem, parameter=str(notebook)) from error
    return found


def read_params(file: Path) -> dict[str, object]:
    """Read a flat params file: plain values only, as papermill can inject them.

    Raises
    ------
    UserError
        The file cannot be read, or a value is not plain.
    """
    with located(file):
        values = read_yaml(file)
        for name, value in values.items():
            if not isinstance(value, (str, int, float, bool)):
                allowed = "a plain value (number, text, true, false)"
                hint = "A scenario with processes or events is for `mmlab simulate`."
                raise UserError(parameter=name, value=value, allowed=allowed, hint=hint)
    return values


def run(request: Request, folder: Path, progress: Progress | None) -> tuple[NotebookNode, str]:
    """Return the executed notebook, and what failed in it, empty if nothing did.

    Its kernel has the caller's working directory, but nothing of the caller's environment that could show. The
    notebook's tables are saved in `folder`, as are temporary files.
    """
    import nbformat
    import numpy as np
    from nbclient.exceptions import CellControlSignal
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from mmlab.figures.notebook import TABLES

    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())  # type: ignore[call-overload, index]
    simplest = {"NPY_DISABLE_CPU_FEATURES": ",".join(found)} if found else {}  # log and exp round differently
    env = PINNED | simplest | {"IPYTHONDIR": str(folder / "ipython"), TABLES: str(folder)}
    search = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())])
    result = Path(os.environ.get(EXECUTED) or folder) / f"{request.page.stem}.ipynb"
    cells, error = len(json.loads(request.notebook.read_bytes())["cells"]), ""
    with ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)  # of papermill and its helpers: errors reach the user as one message
        stack.enter_context(environment(JUPYTER_RUNTIME_DIR=str(folder / "runtime"), PYTHONPATH=search))
        try:
            execute_notebook(
                str(request.notebook.resolve()),
                str(result),
                parameters={p.name: p.value for p in request.parameters if p.changed},
                kernel_name=stack.enter_context(this_interpreter(folder, env, *KERNEL_OPTIONS)),
                language="python",
                config=Config(ConnectionFileMixin={"connection_file": str(folder / "connection.json")}),  # has a key
                progress_bar=False,
                record_timing=False,
                coalesce_streams=True,
                start_timeout=300,  # on a busy machine, also for outputs that arrive late
                iopub_timeout=300,
                on_cell_executed=lambda cell_index, **_: progress and progress(cell_index + 1, cells, request.name),
            )
        except PapermillExecutionError as stop:
            error = f"Cell [{stop.exec_count}] of {request.notebook.name} failed with {stop.ename}: {stop.evalue}"
        except (CellControlSignal, RuntimeError) as stop:  # such as DeadKernelError
            error = f"{request.notebook.name} stopped: {stop}"
    if not result.exists():
        return nbformat.v4.new_notebook(), error  # type: ignore[no-untyped-call]
    return nbformat.read(result, as_version=4), error  # type: ignore[no-untyped-call]
