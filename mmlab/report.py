"""Notebook in, HTML report out: papermill runs it, nbconvert renders it, a normaliser takes out what varies by run.

    >>> from pathlib import Path
    >>> from mmlab.report import report
    >>> report(Path("notebooks/01_regression.ipynb"), overrides={"pages_to_scan": 500})  # doctest: +SKIP
    PosixPath('reports/01_regression.html')

The parameters are checked before anything runs: every name must be in the notebook's cell tagged ``parameters``, and
every name that is a field of :class:`mmlab.scenario.Scenario` must be a value that a scenario accepts.

The page is one file that loads nothing: style and images are inside, there is no script. The same notebook, parameters
and versions give the same bytes: the kernel runs with a fixed hash seed, time zone and locale and without the user's
matplotlib settings, and :func:`normalise` drops run times, papermill's and the kernel's metadata, random cell ids and
memory addresses.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import logging
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlab.errors import UserError, unknown
from mmlab.jupyter import environment, this_interpreter

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).parent / "templates"
PACKAGE = Path(__file__).parent

#: What the kernel's process gets, whatever the caller's environment says: nothing of it may show in the report.
PINNED = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MATPLOTLIBRC": os.devnull,
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "COLUMNS": "120",
}

#: Cells with one of these tags do not reach the page: widgets are dead in HTML, parameters are in its last section.
HIDDEN = {"remove_cell", "remove-cell", "parameters", "injected-parameters", "papermill-error-cell-tag"}


class ReportFailed(Exception):  # noqa: N818 (the report failed, not its maker)
    """A cell of the notebook raised: the report was written nevertheless, up to that cell and with the error.

    Attributes
    ----------
    path : Path
        The HTML file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{reason}. What ran until then is in {path}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: its default and the value that this report runs with."""

    name: str
    default: object
    value: object

    @property
    def changed(self) -> bool:
        return self.value != self.default


def report(
    notebook: Path,
    params_files: Sequence[Path] = (),
    overrides: Mapping[str, object] | None = None,
    out: Path | None = None,
    show_code: bool = False,
    progress: bool = True,
) -> Path:
    """Run a notebook with parameters and write the report.

    Parameters
    ----------
    notebook : Path
        The notebook. It is not changed.
    params_files : sequence of Path
        Flat YAML files ``name: value``, as ``papermill -f`` takes them; a later file wins.
    overrides : mapping
        Single values, which win over the files.
    out : Path, optional
        Default: ``reports/<notebook>[_<params>…].html``.
    show_code : bool
        Print the code cells, too.
    progress : bool
        A bar over the cells on stderr.

    Returns
    -------
    Path
        The file written. It appears in one piece or not at all.

    Raises
    ------
    UserError
        A file is missing or unreadable, a parameter unknown to the notebook, a value out of range. Nothing has run.
    ReportFailed
        A cell raised; the page exists and says where.
    """
    from nbconvert.exporters import HTMLExporter

    notebook, params_files = Path(notebook), [Path(file) for file in params_files]
    parameters = resolve_parameters(notebook, params_files, overrides or {})
    if out is None:
        out = Path("reports") / ("_".join([notebook.stem, *(file.stem for file in params_files)]) + ".html")
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder: name the file to write, such as {out / (notebook.stem + '.html')}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise UserError(f"{out.parent}: this folder cannot be made ({refused.strerror})") from refused
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent}: no permission to write there; name another file with -o")

    executed, error = run(notebook, {p.name: p.value for p in parameters if p.changed}, progress)
    normalise(executed)

    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])  # type: ignore[no-untyped-call]
    exporter.exclude_input = not show_code
    exporter.log.setLevel(logging.ERROR)
    about = {
        "title": title(executed, notebook.stem),
        "version": version("mmlab"),
        "versions": versions(),
        "parameters": parameters,
        "changed": ", ".join(f"{p.name}={p.value}" for p in parameters if p.changed),
        "error": error,
    }
    html, _ = exporter.from_notebook_node(executed, resources={"mmlab": about})
    write(out, with_contents(html))
    if error:
        raise ReportFailed(out, error)
    return out


def resolve_parameters(
    notebook: Path, params_files: Sequence[Path], overrides: Mapping[str, object]
) -> list[Parameter]:
    """The notebook's parameters in its own order, each with its default and the value to run with, all checked."""
    from mmlab.costs import cost_table
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
    import nbformat
    from papermill.translators import PythonTranslator

    try:
        cells = nbformat.read(notebook, as_version=4).cells  # type: ignore[no-untyped-call]
    except Exception as error:  # nbformat and json raise what they like for a file that is no notebook
        raise UserError(f"{notebook}: not a readable notebook ({type(error).__name__})") from error
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    found = PythonTranslator.inspect(tagged[0]) if tagged else []
    defaults: dict[str, object] = {}
    for parameter in found:
        try:
            defaults[parameter.name] = ast.literal_eval(parameter.default)
        except (ValueError, SyntaxError) as error:
            raise UserError(
                f"{notebook}: parameter {parameter.name} has no plain default: {parameter.default}"
            ) from error
    return defaults


def read_params(file: Path) -> dict[str, object]:
    """A flat params file: plain scalars only, as papermill can inject them."""
    from mmlab.scenario import read_yaml

    values = read_yaml(file)
    for name, value in values.items():
        if not isinstance(value, (str, int, float, bool)):
            raise UserError(
                f"{file}: {name}: a report takes plain values (number, text, true, false), not {type(value).__name__}; "
                "a scenario with processes or events is for `mmlab simulate`"
            )
    return values


def run(notebook: Path, parameters: Mapping[str, object], progress: bool) -> tuple[NotebookNode, str]:
    """The executed notebook, and what went wrong in it ("" if nothing did)."""
    import nbformat

    with (
        tempfile.TemporaryDirectory(prefix="mmlab-report-") as folder,
        quiet(),
        environment(JUPYTER_RUNTIME_DIR=str(Path(folder) / "runtime")),
        this_interpreter(
            Path(folder),
            PINNED | {"IPYTHONDIR": str(Path(folder) / "ipython")},
            "--HistoryManager.enabled=False",
        ) as kernel,
    ):
        from nbclient.exceptions import CellControlSignal, DeadKernelError
        from papermill import execute_notebook
        from papermill.exceptions import PapermillExecutionError

        result, error = Path(folder) / "out.ipynb", ""
        try:
            execute_notebook(
                str(notebook.resolve()),
                str(result),
                parameters=dict(parameters),
                kernel_name=kernel,
                language="python",
                cwd=str(notebook.resolve().parent),
                progress_bar={"desc": notebook.stem, "unit": "cell", "file": sys.stderr} if progress else False,
                record_timing=False,
                coalesce_streams=True,
            )
        except PapermillExecutionError as failure:
            error = f"Cell [{failure.exec_count}] of {notebook.name} failed with {failure.ename}: {failure.evalue}"
        except DeadKernelError:
            error = f"The kernel died while it ran {notebook.name} (out of memory?)"
        except CellControlSignal as failure:
            error = f"{notebook.name} stopped: {failure}"
        return nbformat.read(result, as_version=4), error  # type: ignore[no-untyped-call]


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


def normalise(notebook: NotebookNode) -> None:
    """Take out of an executed notebook what two equal runs may differ in, and the cells not meant for a page.

    Cells tagged ``summary`` (what the notebook concludes in the end) move to the top, below the first cell.
    """
    shown = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", ()))]
    summary = [cell for cell in shown if "summary" in cell.metadata.get("tags", ())]
    notebook.cells = shown[:1] + summary + [cell for cell in shown[1:] if cell not in summary]
    notebook.metadata = type(notebook.metadata)(
        {key: value for key, value in notebook.metadata.items() if key == "title"}
        | {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    uuids: dict[str, str] = {}
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k in ("tags", "alt")})
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = plain_text(output.text)
            elif output.output_type == "error":
                output.traceback = [plain_text(line) for line in output.traceback]
            else:
                for kind in list(output.data):
                    if kind.startswith(("application/vnd.jupyter.widget", "application/javascript")):
                        del output.data[kind]
                    elif kind == "text/html":
                        output.data[kind] = plain_html(output.data[kind], uuids)
                    elif kind == "text/plain":
                        output.data[kind] = plain_text(output.data[kind])


def plain_text(text: str) -> str:
    """Without memory addresses, numbered kernel folders and the folder this library happens to be in."""
    text = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    return text.replace(f"{PACKAGE.parent}{os.sep}", "").replace(sys.prefix, "<python>")


def plain_html(html: str, uuids: dict[str, str]) -> str:
    """With pandas' random Styler ids numbered in order of their appearance."""
    return re.sub(r"\bT_[0-9a-f]{5,32}(?=_|\b)", lambda m: uuids.setdefault(m[0], f"T_{len(uuids)}"), html)


def title(notebook: NotebookNode, fallback: str) -> str:
    """The notebook's own title: its metadata, or its first heading."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = (match[1] for text in texts for match in re.finditer(r"(?m)^# +(.+)$", text))
    return str(notebook.metadata.get("title") or re.sub(r"[*`]", "", next(headings, fallback)))


def with_contents(html: str) -> str:
    """Fill ``<nav id="contents">`` from the page's headings of the second and third level."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(html, "html.parser")
    nav = page.find(id="contents")
    assert nav is not None
    outer = page.new_tag("ol")
    last: Any = None
    inner: Any = None
    taken: set[str] = set()
    for heading in page.select(":is(main, footer) :is(h2, h3):not(.no-toc)"):
        words = heading.get_text().removesuffix("¶").strip()
        anchor = str(heading.get("id") or re.sub(r"\W+", "-", words).strip("-"))
        while anchor in taken:
            anchor += "-"
        taken.add(anchor)
        heading["id"] = anchor
        entry, link = page.new_tag("li"), page.new_tag("a", href=f"#{anchor}")
        link.string = words
        entry.append(link)
        if heading.name == "h2" or last is None:
            outer.append(entry)
            last, inner = entry, None
        else:
            if inner is None:
                inner = page.new_tag("ol")
                last.append(inner)
            inner.append(entry)
    nav.append(outer)
    return str(page)


def versions() -> dict[str, str]:
    """What the figures depend on: the library and its source's digest, the interpreter, what computes and draws."""
    names = ["numba", "numpy", "pandas", "matplotlib", "seaborn", "nbconvert"]
    return {
        "mmlab": version("mmlab"),
        "mmlab source, SHA-256": source_digest()[:16],
        "Python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def source_digest() -> str:
    """SHA-256 over the library's source files (name and bytes, in order of name)."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*")):
        if file.suffix in (".py", ".j2", ".css", ".json") and "__pycache__" not in file.parts:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def write(path: Path, text: str) -> None:
    """All of it or nothing: a temporary name in the same folder, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
