"""Notebook in, HTML report out: papermill runs it, nbconvert renders it, and its data go beside the page.

    >>> from pathlib import Path
    >>> from mmlab.report.execute import report
    >>> report(Path("notebooks/01_regression.ipynb"), overrides={"pages_to_scan": 500})  # doctest: +SKIP
    PosixPath('reports/01_regression.html')

The parameters are checked before anything runs: every name must be in the notebook's cell tagged ``parameters``, and
every name that is a field of :class:`mmlab.scenario.Scenario` must be a value that a scenario accepts.

The same notebook, parameters, versions and file name give the same bytes, of the page and of all files beside it: the
kernel runs with a fixed hash seed, time zone and locale and without the user's matplotlib settings, and
:func:`mmlab.report.page.normalise` drops run times, papermill's and the kernel's metadata, random cell ids and memory
addresses. The notebook's working directory is the caller's, as with papermill.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmlab.errors import UserError, unknown
from mmlab.params import read_yaml, shipped_folder, write_atomically
from mmlab.report import page
from mmlab.report.jupyter import environment, this_interpreter
from mmlab.report.provenance import Provenance, ingredients, provenance

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Parameter", "ReportFailed", "Request", "find_notebook", "report", "resolve_parameters"]

#: What the kernel's process gets, whatever the caller's environment says: nothing of it may show in the report.
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


class ReportFailed(Exception):  # noqa: N818 (the report failed, not its maker)
    """A cell of the notebook raised: the report was written nevertheless, up to that cell and with the error.

    Attributes
    ----------
    path : Path
        The HTML file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}. What ran until then is in {self.path}"


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: its default and the value that this report runs with."""

    name: str
    default: object
    value: object

    @property
    def changed(self) -> bool:
        return self.value != self.default


@dataclass(frozen=True)
class Request:
    """One report that is wanted.

    Parameters
    ----------
    notebook : Path
        The notebook. It is not changed.
    params_files : sequence of Path
        Flat YAML files ``name: value``, as ``papermill -f`` takes them; a later file wins.
    overrides : mapping
        Single values, which win over the files.
    out : Path, optional
        The page. Default: ``reports/<notebook>[_<params>…].html``. Its tables go into ``<out without .html>.data/``.
    show_code : bool
        Print the code cells, too.
    """

    notebook: Path
    params_files: Sequence[Path] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    out: Path | None = None
    show_code: bool = False

    @property
    def name(self) -> str:
        """Of the page where none is given: the notebook's, and those of the params files."""
        return "_".join([self.notebook.stem, *(file.stem for file in self.params_files)])

    @property
    def page(self) -> Path:
        return self.out or Path("reports") / f"{self.name}.html"

    def inside(self, folder: Path) -> Request:
        """The same report, written into a folder under its own name."""
        return replace(self, out=folder / f"{self.name}.html")

    @property
    def data(self) -> Path:
        """The folder beside the page."""
        return self.page.with_suffix(".data")

    @cached_property
    def parameters(self) -> list[Parameter]:
        """All of the notebook's, checked."""
        return resolve_parameters(self.notebook, self.params_files, self.overrides)

    @property
    def notebook_digest(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.notebook.read_bytes()).hexdigest()

    def check(self) -> str:
        """SHA-256 of all that the report depends on.

        Raises
        ------
        UserError
            A file is missing or unreadable, a parameter unknown to the notebook, a value out of range, or the page
            cannot be written where it is wanted.
        """
        parameters = [(p.name, p.value) for p in self.parameters]
        out = self.page
        if out.is_dir():
            raise UserError(f"{out} is a folder: name the file to write, such as {out / (self.name + '.html')}")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            raise UserError(f"{out.parent}: this folder cannot be made ({refused.strerror})") from refused
        if not os.access(out.parent, os.W_OK):
            raise UserError(f"{out.parent}: no permission to write there; name another file with -o")
        of = [self.notebook_digest, parameters, self.show_code, out.name, ingredients()]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def is_made(self) -> bool:
        """Page and tables are there and would come out the same if they were made again."""
        about = page.About.read(self.page)
        if about is None or about.error or about.inputs != self.check():
            return False
        return all((self.data / f"{name}.{kind}").is_file() for name in about.tables for kind in ("csv", "parquet"))

    def command(self) -> str:
        """The command that makes the same page, with nothing of this machine in it."""
        settings = [word for p in self.parameters if p.changed for word in ("-p", f"{p.name}={as_yaml(p.value)}")]
        code = ["--code"] if self.show_code else []
        return shlex.join(["mmlab", "report", self.notebook.name, *settings, *code, "-o", self.page.name])


def as_yaml(value: object) -> str:
    """On one line, and without quotes where it means the same."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


def report(
    notebook: Path,
    params_files: Sequence[Path] = (),
    overrides: Mapping[str, object] | None = None,
    out: Path | None = None,
    show_code: bool = False,
    progress: bool = True,
) -> Path:
    """Run a notebook with parameters and write the report; the parameters are those of :class:`Request`.

    Parameters
    ----------
    progress : bool
        A bar over the cells on stderr.

    Returns
    -------
    Path
        The page. It appears in one piece or not at all.

    Raises
    ------
    UserError
        As :meth:`Request.check`; nothing has run.
    ReportFailed
        A cell raised; the page exists and says where.
    """
    files = [Path(file) for file in params_files]
    request = Request(Path(notebook), files, overrides or {}, Path(out) if out else None, show_code)
    request.check()
    return make(request, provenance(), {"desc": request.name} if progress else None)


def make(request: Request, made_of: Provenance, bar: Mapping[str, Any] | None = None) -> Path:
    """Make one report. ``bar``: what tqdm is to know of a bar over the cells; None: no bar."""
    from mmlab.engine.costs import describe_accuracy
    from mmlab.scenario import Scenario

    inputs, parameters = request.check(), request.parameters
    default_costs = Scenario.model_fields["costs"].default
    with tempfile.TemporaryDirectory(prefix="mmlab-report-") as folder:
        saved = Path(folder) / "tables"
        saved.mkdir()
        values = {p.name: p.value for p in parameters if p.changed}
        executed, error = run(request.notebook, values, Path(folder), saved, bar)
        page.normalise(executed)
        tables = page.number_tables(executed)
        about = page.About(
            notebook=request.notebook.stem,
            title=page.title(executed, request.notebook.stem),
            question=page.question(executed),
            variant=next((str(p.value) for p in parameters if p.name == "variant"), ""),
            changed=", ".join(f"{p.name}={as_yaml(p.value)}" for p in parameters if p.changed),
            headline=page.headline(executed),
            tables=tuple(tables),
            error=error,
            inputs=inputs,
            version=made_of.version,
            exactness=made_of.exactness,
        )
        text = page.render(
            executed,
            about,
            request.show_code,
            data=request.data.name,
            yaml=as_yaml,
            parameters=parameters,
            provenance=made_of,
            command=request.command(),
            digest=request.notebook_digest,
            trust=describe_accuracy(next((str(p.value) for p in parameters if p.name == "costs"), default_costs)),
        )
        write_tables(request.data, saved, tables)
    write_atomically(request.page, text.encode())
    if error:
        raise ReportFailed(request.page, error)
    return request.page


def find_notebook(name: str | Path) -> Path:
    """A notebook by its path, or one that ships with mmlab by its name, with or without folder and ending.

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
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(shipped_folder("notebooks").glob("*.ipynb"))}
    stem = path.name.removesuffix(".ipynb")
    if stem in shipped and path.parent.name in ("", "notebooks"):
        return shipped[stem]
    hint = "Name a file, or one of the notebooks that ship with mmlab."
    raise UserError(f"{name}: no such notebook: {unknown('notebook', stem, shipped, hint)}")


def resolve_parameters(
    notebook: Path, params_files: Sequence[Path], overrides: Mapping[str, object]
) -> list[Parameter]:
    """The notebook's parameters in its own order, each with its default and the value to run with, all checked."""
    from mmlab.engine.costs import cost_table
    from mmlab.scenario import Scenario
    from mmlab.variants import resolve

    defaults = notebook_defaults(notebook)
    given: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, values in [*((str(file), read_params(file)) for file in params_files), ("-p", overrides)]:
        for name, value in values.items():
            if name not in defaults:
                known = "" if defaults else ": it has no cell tagged parameters"
                raise UserError(f"{source}: {unknown('parameter', name, defaults, f'({notebook.name}{known})')}")
            given[name], origin[name] = value, source

    values = {**defaults, **given}
    of_scenario = {name: value for name, value in values.items() if name in Scenario.model_fields}
    if of_scenario:
        scenario = Scenario(**of_scenario)
        scenario.check_memory()
        resolve(scenario.variant)
        cost_table(scenario.costs)
        values |= {name: getattr(scenario, name) for name in of_scenario}
    for name in set(given) - set(of_scenario):
        expected, value = type(defaults[name]), values[name]
        if expected is float and type(value) is int:
            value = values[name] = float(value)
        if expected is not type(None) and type(value) is not expected:
            wanted = f"{notebook.name} expects {expected.__name__}, such as {defaults[name]!r}"
            raise UserError(f"{origin[name]}: {name} = {value!r}: {wanted}")
    return [Parameter(name, default, values[name]) for name, default in defaults.items()]


def notebook_defaults(notebook: Path) -> dict[str, object]:
    """Name and default of each line ``name: type = value  # help`` of the cell tagged ``parameters``."""
    if not notebook.is_file():
        raise UserError(f"{notebook}: no such notebook")
    try:  # plain JSON: nbformat takes seconds to load
        cells = json.loads(notebook.read_bytes())["cells"]
        tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        lines = ast.parse("".join(tagged[0])).body if tagged else []
    except (ValueError, TypeError, LookupError, AttributeError, SyntaxError) as error:
        raise UserError(f"{notebook}: not a readable notebook ({type(error).__name__})") from error
    defaults: dict[str, object] = {}
    for line in lines:
        if isinstance(line, ast.AnnAssign | ast.Assign):
            name, value = ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0]), line.value
            try:
                defaults[name] = ast.literal_eval(value or "")
            except (ValueError, SyntaxError) as error:
                raise UserError(f"{notebook}: parameter {name} has no plain default: {ast.unparse(line)}") from error
    return defaults


def read_params(file: Path) -> dict[str, object]:
    """A flat params file: plain scalars only, as papermill can inject them."""

    values = read_yaml(file)
    for name, value in values.items():
        if not isinstance(value, (str, int, float, bool)):
            raise UserError(
                f"{file}: {name}: a report takes plain values (number, text, true, false), not {type(value).__name__}; "
                "a scenario with processes or events is for `mmlab simulate`"
            )
    return values


def run(
    notebook: Path, parameters: Mapping[str, object], folder: Path, tables: Path, bar: Mapping[str, Any] | None
) -> tuple[NotebookNode, str]:
    """The executed notebook, and what went wrong in it ("" if nothing did).

    Its kernel has nothing of the caller's but the working directory, which is also searched for modules, after this
    library. ``folder`` is for scratch; the notebook's tables are saved in ``tables``.
    """
    import nbformat

    from mmlab.figures.notebook import TABLES

    env = PINNED | any_processor() | {"IPYTHONDIR": str(folder / "ipython"), TABLES: str(tables)}
    options = [
        "--HistoryManager.enabled=False",
        "--InteractiveShellApp.ignore_cwd=True",  # PYTHONPATH has it, but not in front of this library
    ]
    search = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())])
    with (
        quiet(),
        environment(JUPYTER_RUNTIME_DIR=str(folder / "runtime"), PYTHONPATH=search),
        this_interpreter(folder, env, *options) as kernel,
    ):
        from nbclient.exceptions import CellControlSignal, DeadKernelError
        from papermill import execute_notebook
        from papermill.exceptions import PapermillExecutionError

        result, error = folder / "out.ipynb", ""
        try:
            execute_notebook(
                str(notebook.resolve()),
                str(result),
                parameters=dict(parameters),
                kernel_name=kernel,
                language="python",
                progress_bar={"unit": "cell", "file": sys.stderr, **bar} if bar is not None else False,
                record_timing=False,
                coalesce_streams=True,
                start_timeout=300,  # on a busy machine all is slow: outputs that come late are waited for, too
                iopub_timeout=300,
            )
        except PapermillExecutionError as failure:
            error = f"Cell [{failure.exec_count}] of {notebook.name} failed with {failure.ename}: {failure.evalue}"
        except DeadKernelError:
            error = f"The kernel died while it ran {notebook.name} (out of memory?)"
        except CellControlSignal as failure:
            error = f"{notebook.name} stopped: {failure}"
        except RuntimeError as failure:
            error = f"No kernel for {notebook.name}: {failure}"
        if not result.exists():
            return nbformat.v4.new_notebook(), error  # type: ignore[no-untyped-call]
        return nbformat.read(result, as_version=4), error  # type: ignore[no-untyped-call]


def any_processor() -> dict[str, str]:
    """Environment in which numpy computes as on the simplest processor it supports: log and exp round differently."""
    import numpy as np

    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())  # type: ignore[call-overload, index]
    return {"NPY_DISABLE_CPU_FEATURES": ",".join(found)} if found else {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """papermill's and its helpers' log lines are not for the user: errors reach them as one message."""
    loggers = [logging.getLogger(name) for name in ("papermill", "traitlets", "nbclient", "blib2to3", "black")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_tables(folder: Path, saved: Path, names: Mapping[str, str]) -> None:
    """Put the saved tables, by their new names, into ``folder`` in the place of those it has; none: no folder."""
    for left in [*folder.glob("[0-9][0-9]*-*.csv"), *folder.glob("[0-9][0-9]*-*.parquet")]:
        left.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    for name, old in names.items():
        folder.mkdir(exist_ok=True)
        for kind in ("csv", "parquet"):
            shutil.copyfile(saved / f"{old}.{kind}", folder / f"{name}.{kind}")
