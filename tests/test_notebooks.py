"""Notebooks: their parameters are the scenario's, their outputs are stored, and running them gives the same again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from mmlab.report import notebook_defaults, resolve_parameters
from mmlab.scenario import flat_fields

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FLAT_PARAMS = [
    file
    for file in sorted((ROOT / "params").glob("*.yaml"))
    if not {"process_list", "events"} & set(yaml.safe_load(file.read_text()))
]

ACCEPT = "--ExecutePreprocessor.record_timing=False"

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def test_there_are_some() -> None:
    assert NOTEBOOKS
    assert FLAT_PARAMS


@each_notebook
def test_parameters_are_the_scenarios(notebook: Path) -> None:
    """Name, type, help and an allowed default, line by line; a name that is no scenario field needs its own help."""
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
            assert words == re.sub(r" *= *", ": ", fields[name].help) + unit, "papermill cannot read an = in a comment"
    assert len(notebook_defaults(notebook)) == len(lines), "papermill reads every line"
    resolve_parameters(notebook, [], {})


@each_notebook
@pytest.mark.parametrize("params", FLAT_PARAMS, ids=lambda path: path.stem)
def test_every_flat_params_file_fits(notebook: Path, params: Path) -> None:
    resolve_parameters(notebook, [params], {})


@each_notebook
def test_outputs_are_stored(notebook: Path) -> None:
    """nbval silently passes over a cell that has no execution count."""
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata, "no times of execution"
        for output in cell.outputs:
            assert output.output_type in ("display_data", "execute_result"), output
            if "image/png" in output.data:
                assert output.metadata["image/png"]["alt"]


@each_notebook
def test_running_gives_the_stored_outputs(notebook: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
        str(notebook),
    ]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    accept = f"jupyter nbconvert --to notebook --inplace --execute {ACCEPT} {notebook.relative_to(ROOT)}"
    assert done.returncode == 0, f"{done.stdout[-5000:]}{done.stderr[-2000:]}\nTo accept the new outputs: {accept}"
