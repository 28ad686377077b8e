"""Notebooks: their parameters are the scenario's, their outputs are stored, papermill and nbval run them as they are.

tests/report/test_reports_same.py holds the outputs of all notebooks, as they run for the reports, against the stored.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import install

from conftest import ROOT
from mmlab.errors import UserError
from mmlab.report.request import Request, notebook_defaults, read_params
from mmlab.scenario import flat_fields

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
INTERACTIVE = {"remove_cell", "nbval-ignore-output"}
"""Tags of a cell that nbval only runs; reports leave it out."""
SHOWS = re.compile(r"^\s*plots\.(show|table|say|headline)\(|^(summary|describe)\(", re.MULTILINE)
LINES = 1000
"""Most lines of code in all notebooks together."""
OWN = {"03_tuning", "05_own_variant"}
"""Notebooks with a function that the reader is invited to change: a policy, a predicate."""

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def is_flat(params: Path) -> bool:
    """Return whether a report takes the file: it has plain values only."""
    try:
        read_params(params)
    except UserError:
        return False
    return True


def clean_environment() -> dict[str, str]:
    """Return the environment of a user's shell, without the variables of the test run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return kept | {"PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


FLAT_PARAMS = [params for params in PARAMS if is_flat(params)]


def test_there_are_some() -> None:
    assert len(NOTEBOOKS) >= 3
    assert len(FLAT_PARAMS) >= 10
    assert len(FLAT_PARAMS) < len(PARAMS)


@each_notebook
def test_form(notebook: Path) -> None:
    """Title and question first, ids that stay, tags that reports and nbval know, a kernel that everybody has."""
    whole = nbformat.read(notebook, as_version=4)
    nbformat.validate(whole)
    assert nbformat.writes(whole) + "\n" == notebook.read_text(encoding="utf-8"), "as JupyterLab would save it"
    head = whole.cells[0]
    assert head.cell_type == "markdown"
    assert re.match(r"# .+\n", head.source)
    assert "**Question.**" in head.source
    ids = [cell.id for cell in whole.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"cell-\d\d|[a-z]+(-[a-z]+)*", name) for name in ids), "nothing random"
    assert set(whole.metadata) == {"kernelspec", "language_info", "title"}
    assert whole.metadata.kernelspec.name == "python3"
    for cell in whole.cells:
        assert tags(cell) <= {"parameters", "summary", "remove_cell", "nbval-ignore-output"}, "no cell is skipped"
    for cell in code_cells(notebook):
        assert not tags(cell) & INTERACTIVE or tags(cell) == INTERACTIVE, "not compared: not in a report either"


def lines_of(cell: nbformat.NotebookNode) -> int:
    return sum(map(bool, map(str.strip, cell.source.splitlines())))


def test_lines_of_code() -> None:
    """Blank lines do not count, comments do."""
    assert sum(lines_of(cell) for notebook in NOTEBOOKS for cell in code_cells(notebook)) <= LINES


@each_notebook
def test_reads_like_a_page(notebook: Path) -> None:
    """Few parameters, no long cell, and nothing defined in one but what the reader is invited to change."""
    assert len(notebook_defaults(notebook)) <= 14
    nodes = []
    for cell in code_cells(notebook):
        assert lines_of(cell) <= 16, cell.source
        nodes += [*ast.walk(ast.parse(cell.source))]
    defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == (notebook.stem in OWN)


@each_notebook
def test_parameters_are_the_scenarios(notebook: Path) -> None:
    """Each line has name, type, an allowed default and help; the scenario's, if it is a field of it."""
    fields = flat_fields()
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    for line in lines:
        match = re.fullmatch(r"(\w+): (\w+) = (\S+|'.*'|\".*\")  # (.+)", line)
        assert match, line
        name, kind, _, words = match.groups()
        if name in fields:
            unit = f" ({fields[name].unit})" if fields[name].unit else ""
            assert kind == fields[name].type.__name__
            meaning = re.sub(r" *= *", ": ", fields[name].help)  # papermill cannot read an = in a comment
            assert words == meaning + unit or meaning.startswith(words.removesuffix(unit)), words
    assert len(notebook_defaults(notebook)) == len(lines), "papermill reads every line"
    Request(notebook)


@each_notebook
def test_every_flat_params_file_fits(notebook: Path) -> None:
    """… a notebook that takes a scenario's parameters."""
    if not set(notebook_defaults(notebook)) & set(flat_fields()):
        pytest.skip("takes no scenario")
    for params in FLAT_PARAMS:
        Request(notebook, [params])


@each_notebook
def test_outputs_are_stored(notebook: Path) -> None:
    """nbval silently passes over a cell that has no execution count."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    compared = [cell for cell in cells if not tags(cell) & INTERACTIVE]
    about = [
        output.metadata.get("text/html", {}) for cell in compared for output in cell.outputs if "metadata" in output
    ]
    assert sum("headline" in kind for kind in about) == 1, "the number that the index of reports shows"
    for cell in cells:
        assert "execution" not in cell.metadata, "no times of execution"
    for cell in compared:
        assert cell.outputs or not SHOWS.search(cell.source), f"nothing stored: {cell.source[:200]}"
        for output in cell.outputs:
            assert output.output_type in ("display_data", "execute_result"), output
            assert "text/plain" in output.data, "what nbval compares"
            if "image/png" in output.data:
                assert output.metadata["image/png"]["alt"]


def test_plain_nbval() -> None:
    """`pytest --nbval` on one notebook: every code cell passes, none is skipped or expected to fail."""
    notebook = ROOT / "notebooks" / "07_compare.ipynb"
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(notebook)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-5000:]}{done.stderr[-2000:]}"
    summary = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(rf"=*\s*{len(code_cells(notebook))} passed in .*", summary), summary


# -- papermill, without our wrapper ---------------------------------------------------------------------------------


def papermill(notebook: Path, folder: Path, *options: str, fails: str = "") -> list[nbformat.NotebookNode]:
    """Run `papermill NOTEBOOK out.ipynb …` in a folder, and return the code cells; `fails` is what it says then."""
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "--no-progress-bar", *options]
    install(prefix=str(folder / "jupyter"))
    env = clean_environment() | {"JUPYTER_PATH": str(folder / "jupyter" / "share" / "jupyter")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode != 0) == bool(fails), done.stderr[-3000:]
    assert fails in done.stderr
    return code_cells(folder / "out.ipynb")


def shown(cells: list[nbformat.NotebookNode]) -> str:
    return "\n".join(output.data.get("text/plain", "") for cell in cells for output in cell.outputs)


def test_papermill_takes_a_params_file(tmp_path: Path) -> None:
    """… as it is, with its first line for editors and its comments; what is injected need not be run for that."""
    params = ROOT / "params" / "mthp_64k.yaml"
    cells = papermill(ROOT / "notebooks" / "01_regression.ipynb", tmp_path, "--prepare-only", "-f", str(params))
    (injected,) = [cell for cell in cells if "injected-parameters" in tags(cell)]
    for name, value in read_params(params).items():
        assert re.search(rf"^{name} = {value!r}$".replace("'", '"'), injected.source, re.MULTILINE)


SMALL = 'params: str = "all_zero"  # where to start\nwho: str = "me"  # a text\n'
READ = "import mmlab\nprint(mmlab.read_parameters(globals()).changed(), who)"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A notebook that reads its parameters, and a params file."""
    v4 = nbformat.v4
    tagged = v4.new_code_cell(SMALL, metadata={"tags": ["parameters"]})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    nbformat.write(v4.new_notebook(cells=[tagged, v4.new_code_cell(READ)], metadata=about), tmp_path / "small.ipynb")
    (tmp_path / "my.yaml").write_text("layout: random\nwho: nobody\n")
    return tmp_path / "small.ipynb"


def test_any_field_with_papermill(small: Path) -> None:
    *_, last = papermill(small, small.parent, *"-f my.yaml -p smart_scan 0 -p who you".split())
    assert "'smart_scan': 0" in last.outputs[0].text
    assert "'layout': 'random'" in last.outputs[0].text
    assert "'zero_fraction': 1.0" in last.outputs[0].text, "the file to start from"
    assert last.outputs[0].text.endswith("you\n")


def test_an_unknown_name_with_papermill(small: Path) -> None:
    """It is refused in the first cell after the parameters, with the nearest name."""
    words = "UserError: unknown parameter 'smart_scn': did you mean 'smart_scan'"
    *_, last = papermill(small, small.parent, "-p", "smart_scn", "0", fails=words)
    assert last.outputs[-1].output_type == "error"


def test_two_files_compared_with_papermill(tmp_path: Path) -> None:
    """One is a rich file, by its name; the other is the user's own, by a path relative to papermill's folder."""
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "params" / "state_transitions.yaml", tmp_path / "mine" / "own.yaml")
    options = ["-p", "first", "state_transitions", "-p", "second", "mine/own.yaml", "-p", "second_variant", "legacy"]
    cells = papermill(ROOT / "notebooks" / "07_compare.ipynb", tmp_path, *options)
    assert all(cell.execution_count for cell in cells)
    said = shown(cells)
    assert "They differ in `variant`." in said
    assert "② own, legacy" in said
    assert "6 MiB more are freed in ① state_transitions, v1-series than in the other (6 and 0 MiB)" in said


def test_a_file_compared_with_itself(tmp_path: Path) -> None:
    said = shown(
        papermill(ROOT / "notebooks" / "07_compare.ipynb", tmp_path, *"-p first mthp_64k -p second mthp_64k".split())
    )
    assert "They are the same." in said
    assert "① mthp_64k, mainline in nothing; ② mthp_64k, mainline in nothing." in said
