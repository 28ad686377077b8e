"""A notebook becomes an HTML report: papermill runs it, nbconvert renders it, and its data go beside the page.

    >>> from pathlib import Path
    >>> from mmlab.report.execute import Request, make
    >>> from mmlab.report.provenance import provenance
    >>> make(Request(Path("notebooks/01_regression.ipynb"), overrides={"pages_to_scan": 500}), provenance())
    ... # doctest: +SKIP
    ''

The parameters are checked before anything runs, as the notebook itself does (`mmlab.studies.parameters`): every name
must be in its cell tagged ``parameters`` or be a field of `mmlab.scenario.Scenario`, with a value that it accepts.

The same notebook, parameters, versions and file name give the same bytes, of the page and of all files beside it: the
kernel runs with a fixed hash seed, time zone and locale and without the user's matplotlib settings, and
`mmlab.report.page` drops run times, papermill's metadata and memory addresses. The notebook's working directory is the
caller's, as with papermill. If the environment variable ``MMLAB_EXECUTED`` names a folder, the executed notebooks are
kept there.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

import yaml

from mmlab.engine.costs import describe_accuracy
from mmlab.errors import UserError, located, unknown
from mmlab.params import locked, read_yaml, shipped_folder, write_atomically
from mmlab.report import page
from mmlab.report.provenance import digest, ingredients
from mmlab.scenario import Scenario
from mmlab.studies.parameters import check_names, scenario_from

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Request", "find_notebook", "make", "notebook_defaults", "notebooks", "read_given", "read_params"]

Progress = Callable[[float, float, str], object]
ELSEWHERE = "Name another place with -o."


@dataclass
class Request:
    """A report to be made: files and parameters are read and checked at once.

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

    Attributes
    ----------
    name : str
        The notebook's name, followed by those of the params files.
    page, data : Path
        The page's file, and the folder beside it.
    parameters, defaults : dict
        The notebook's parameters and other fields that were given: the values of this report, and those that they would
        have if only ``params`` had been given.
    changed : dict
        The parameters that do not have their defaults, as YAML.
    notebook_digest, inputs : str
        SHA-256 of the notebook, and of everything that the page depends on.

    Raises
    ------
    UserError
        A file is missing or unreadable, a parameter is unknown to the notebook, or a value is out of range.
    """

    notebook: Path
    params_files: Sequence[Path] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    out: Path = Path("reports")
    show_code: bool = False

    def __post_init__(self) -> None:
        self.name = "_".join([self.notebook.stem, *(file.stem for file in self.params_files)])
        self.page = self.out if self.out.suffix == ".html" else self.out / f"{self.name}.html"
        self.data = self.page.with_suffix(".data")
        own, given = notebook_defaults(self.notebook), read_given(self.notebook, self.params_files, self.overrides)
        start = {name: value for name, value in given.items() if name == "params"}
        scenario = scenario_from(own, given)
        self.parameters = in_full(own, given, scenario)
        self.defaults = in_full(self.parameters, own, scenario_from(own, start))
        self.changed = {name: as_yaml(value) for name, value in self.parameters.items() if value != self.defaults[name]}
        self.notebook_digest = sha256(self.notebook.read_bytes()).hexdigest()
        of = [self.notebook_digest, self.parameters, scenario.changed(), self.show_code, self.page.name, ingredients()]
        self.inputs = sha256(json.dumps(of).encode()).hexdigest()

    def is_made(self) -> bool:
        """Return whether the page and its tables exist and would be the same if they were made again."""
        about = page.read_about(self.page)
        if about.get("error") or not about.get("whole") or about["inputs"] != self.inputs:
            return False
        with suppress(OSError):
            return bool(about["data"] == digest({file: (self.data / file).read_bytes() for file in about["files"]}))
        return False

    def command(self) -> str:
        """Return the command that makes the same page, with nothing of this machine in it."""
        settings = [word for name, value in self.changed.items() for word in ("-p", f"{name}={value}")]
        code = ["--code"] if self.show_code else []
        return shlex.join(["mmlab", "report", self.notebook.name, *settings, *code, "-o", self.page.name])


def as_yaml(value: object) -> str:
    """Return a value as YAML on one line, quoted only where that changes its meaning."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(problem, parameter=str(error.filename or path), hint=ELSEWHERE) from error


@contextmanager
def claimed(requests: Sequence[Request]) -> Iterator[None]:
    """Make the folders of reports, and keep other processes from making the same ones meanwhile.

    Raises
    ------
    UserError
        A page cannot be written, or another process is making it.
    """
    with ExitStack() as stack:
        for request in requests:
            try:
                with _writing(request.page.parent):
                    request.data.mkdir(parents=True, exist_ok=True)
                    stack.callback(_remove_if_empty, request.data)
                    TemporaryFile(dir=request.page.parent).close()
                    stack.enter_context(locked(request.data, wait=False))
            except BlockingIOError:
                raise UserError("another process is making it", parameter=str(request.page), hint=ELSEWHERE) from None
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def make(request: Request, made_of: Mapping[str, Any], progress: Callable[[int, int], object], scratch: Path) -> str:
    """Run a notebook with parameters, write its report, and return what failed, empty if nothing did.

    A notebook that fails leaves its page up to the failing cell, with the error. This process should be one of
    `mmlab.report.processes`: its environment is changed.

    Parameters
    ----------
    made_of : mapping
        The software, as `mmlab.report.provenance.software` describes it, with its exactness.
    progress : callable
        Called with the cells done and all cells.
    scratch : Path
        The folder for temporary files.

    Raises
    ------
    UserError
        The report cannot be written.
    """
    with _writing(request.page), TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        executed, error = run(request, Path(folder), progress)
        page.arrange(executed)
        tables = page.number_tables(executed, Path(folder))
        about = {
            **page.summary(executed, request.notebook.stem),
            **made_of,
            "name": request.page.stem,
            "changed": ", ".join(map("=".join, request.changed.items())),
            "files": list(tables),
            "data": digest(tables),
            "error": error,
            "inputs": request.inputs,
        }
        trust = describe_accuracy(str(request.parameters.get("costs", Scenario.model_fields["costs"].default)))
        publish(request, tables, page.render(executed, about, request=request, yaml=as_yaml, trust=trust))
    return error


def publish(request: Request, tables: Mapping[str, bytes], text: str) -> None:
    """Write the tables, then the page, each in one piece; then remove the tables of an earlier page."""
    with locked(request.page.parent):
        for left in (file for folder in (request.page.parent, request.data) for file in folder.glob(".*.*.tmp")):
            left.unlink()  # of a process that was killed
        for name, content in tables.items():
            write_atomically(request.data / name, content)
        write_atomically(request.page, text.encode())
        for left in request.data.glob("[0-9][0-9]*-*.*"):
            if left.name not in tables and left.suffix in (".csv", ".parquet"):
                left.unlink()


def notebooks() -> dict[str, Path]:
    """Return the notebooks that ship with mmlab by their names, sorted."""
    return {file.stem: file for file in sorted(shipped_folder("notebooks").glob("*.ipynb"))}


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
    path, shipped = Path(name), notebooks()
    if path.is_file():
        return path
    if path.parent.name in ("", "notebooks") and path.name.removesuffix(".ipynb") in shipped:
        return shipped[path.name.removesuffix(".ipynb")]
    raise unknown("notebook", str(name), shipped, "Name a file, or one of the notebooks that ship with mmlab.")


def read_given(notebook: Path, params_files: Sequence[Path], overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the values given to a notebook by files and by ``-p``, the latter last; names and types are checked.

    Raises
    ------
    UserError
        A name is unknown to the notebook and to the scenario, or a value is of another type than its default.
    """
    own = notebook_defaults(notebook)
    given: dict[str, object] = {}
    for where, values in [*((str(file), read_params(file)) for file in params_files), ("-p", overrides)]:
        with located(where):
            check_names(own, values)
        given |= values
    return given


def in_full(own: Mapping[str, object], given: Mapping[str, object], scenario: Scenario) -> dict[str, object]:
    """Return the value of each parameter of a notebook and of each field that was given, as the scenario has it."""
    return {
        name: getattr(scenario, name) if name in Scenario.model_fields else value
        for name, value in {**own, **given}.items()
    }


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
            match line:
                case ast.AnnAssign(ast.Name(name), value=ast.expr() as value) | ast.Assign([ast.Name(name)], value):
                    found[name] = ast.literal_eval(value)
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
    values = read_yaml(file)
    for name, value in values.items():
        if not isinstance(value, (str, int, float, bool)):
            allowed = "a plain value (number, text, true, false)"
            hint = "A scenario with processes or events is for `mmlab simulate`."
            raise UserError(parameter=name, value=value, allowed=allowed, hint=hint, where=str(file))
    return values


def run(request: Request, folder: Path, progress: Callable[[int, int], object]) -> tuple[NotebookNode, str]:
    """Return the executed notebook, and what failed in it, empty if nothing did.

    Its kernel has the caller's working directory. The notebook's tables are saved in `folder`, as are temporary files.
    """
    import nbformat
    from nbclient.exceptions import CellControlSignal
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from mmlab.figures.notebook import TABLES
    from mmlab.report.jupyter import ForkedKernelManager

    os.environ |= {"JUPYTER_RUNTIME_DIR": str(folder), "IPYTHONDIR": str(folder / "ipython"), TABLES: str(folder)}
    result = Path(os.environ.get("MMLAB_EXECUTED") or folder) / f"{request.page.stem}.ipynb"
    cells, error = len(json.loads(request.notebook.read_bytes())["cells"]), ""
    try:
        execute_notebook(
            str(request.notebook.resolve()),
            str(result),
            parameters={name: request.parameters[name] for name in request.changed},
            kernel_name="python3",
            kernel_manager_class=ForkedKernelManager,
            language="python",
            config=Config(ConnectionFileMixin={"connection_file": str(folder / "connection.json")}),  # has a key
            progress_bar=False,
            record_timing=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",
            start_timeout=300,  # on a busy machine, also for outputs that arrive late
            iopub_timeout=300,
            on_cell_executed=lambda cell_index, **_: progress(cell_index + 1, cells),
        )
    except PapermillExecutionError as stop:
        error = f"Cell [{stop.exec_count}] of {request.notebook.name} failed with {stop.ename}: {stop.evalue}"
    except (CellControlSignal, RuntimeError) as stop:  # such as DeadKernelError
        error = f"{request.notebook.name} stopped: {stop}"
    return nbformat.read(result, as_version=4), error  # type: ignore[no-untyped-call]
