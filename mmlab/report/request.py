"""What a report is made of: a notebook and its parameters, which are checked before anything runs.

The parameters are checked as the notebook itself does (`mmlab.studies.parameters`): every name must be in its cell
tagged ``parameters`` or be a field of `mmlab.scenario.Scenario`, with a value that it accepts.
"""

import ast
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import yaml

from mmlab.errors import UserError, located, unknown
from mmlab.params import find_params, read_yaml, shipped_folder
from mmlab.report import page
from mmlab.report.provenance import digest, ingredients
from mmlab.studies.parameters import check_names, scenario_from


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
        A file is missing or unreadable, a name is unknown to the notebook and to the scenario, or a value is of another
        type than its default or out of range.
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
        own = notebook_defaults(self.notebook)
        given: dict[str, object] = {}
        for where, values in [*((str(file), read_params(file)) for file in self.params_files), ("-p", self.overrides)]:
            with located(where):
                check_names(own, values)
            given |= values
        scenario = scenario_from(own, given)
        start = scenario_from(own, {name: value for name, value in given.items() if name == "params"})
        self.parameters = {name: dict(scenario).get(name, value) for name, value in {**own, **given}.items()}
        self.defaults = {name: dict(start).get(name, own.get(name)) for name in self.parameters}
        self.changed = {name: as_yaml(value) for name, value in self.parameters.items() if value != self.defaults[name]}
        self.notebook_digest = sha256(self.notebook.read_bytes()).hexdigest()
        dumps = (find_params(str(self.parameters[name]), "dumps") for name in self.parameters.keys() & {"dump"})
        of = [self.notebook_digest, self.parameters, scenario.changed(), self.show_code, self.page.name, ingredients()]
        of += [dump.read_bytes().hex() for dump in dumps]
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


def notebooks() -> dict[str, Path]:
    """Return the notebooks that ship with mmlab by their names, sorted."""
    return {file.stem: file for file in sorted(shipped_folder("notebooks").glob("*.ipynb"))}


def find_notebook(name: str | Path) -> Path:
    """Return a notebook by its path, or one that ships with mmlab by its number or name, with or without ending.

    Raises
    ------
    UserError
        There is neither, or it is the number of several.

    Examples
    --------
    >>> find_notebook("01_regression").name, find_notebook("07").name
    ('01_regression.ipynb', '07_compare.ipynb')
    """
    path, shipped = Path(name), notebooks()
    if path.is_file():
        return path
    stem = path.name.removesuffix(".ipynb") if path.parent.name in ("", "notebooks") else ""
    named = [file for known, file in shipped.items() if stem in (known, known.partition("_")[0])]
    if len(named) == 1:
        return named[0]
    if names := [file.stem for file in named]:
        raise UserError(f"{stem} is the number of {' and '.join(names)}", hint=f"Type `mmlab report {names[-1]}`.")
    raise unknown("notebook", str(name), shipped, "Name a file, or one of the notebooks that ship with mmlab.")


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
