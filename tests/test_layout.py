"""The house: the order of its layers, its public face, and its size."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lines
import mmlab
from conftest import ROOT

LAYERS = """
    errors limits params spec workers
    variants policies kernel
    scenario schema
    engine results
    figures
    studies report host
    explorer
    cli
"""
"""The order of the house. A module imports from its own room, and from the rooms that stand before it."""
LEVEL = {room: level for level, room in enumerate(LAYERS.split())}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "mmlab").rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Yield each module of mmlab that a file imports: at its top, for types only, or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in named)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


ARROWS = {
    name: {to for to in imports(path) if to not in (name, "mmlab")} for name, path in MODULES.items() if name != "mmlab"
}


def test_every_module_is_in_a_layer() -> None:
    assert {room(name) for name in ARROWS} == LEVEL.keys()


def test_no_arrow_points_up() -> None:
    up = [
        f"{name} imports {to}"
        for name, targets in ARROWS.items()
        for to in sorted(targets)
        if room(name) != room(to) and LEVEL[room(to)] >= LEVEL[room(name)]
    ]
    assert not up


def test_no_circle() -> None:
    left = {name: set(targets) for name, targets in ARROWS.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "these import each other"


def test_only_the_version_comes_from_the_top() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "mmlab":
                taken = {alias.name for alias in node.names if f"mmlab.{alias.name}" not in MODULES}
                assert taken <= {"__version__"}, name


REACHED = {"the model": 6350, "the shell": 4979, "host": 2291}
"""Where the parts are on their way down to their budgets, which `make lines` prints: they may shrink, not grow."""


def test_budgets() -> None:
    found = lines.totals(lines.count())
    assert {part: size for part, size in found.items() if size > REACHED[part]} == {}


def test_how_lines_are_counted() -> None:
    source = '"""Text."""\n\n# why\ndef f(a, b):  # what\n    """More\n    text."""\n    return "".join([a,\n  b])\n'
    assert lines.code_lines(source) == 2, "def, and return on one line"


def test_public_names() -> None:
    assert {*mmlab.__all__} - {"__version__"} <= set(dir(mmlab))
    assert {"simulate", "Scenario", "Run", "Metrics", "UserError", "verdict", "rule", "tune"} <= set(mmlab.__all__)
    for name in mmlab.__all__:
        assert getattr(mmlab, name) is not None
    with pytest.raises(AttributeError):
        _ = mmlab.simulat


SCRIPT = """
import mmlab
from mmlab import Scenario, SplitContext, simulate

def never_in_mergeable_memory(split: SplitContext) -> bool:
    return not split.mergeable

run = simulate(Scenario(memory_mib=64), variant=never_in_mergeable_memory)
reveal_type(run)
reveal_type(mmlab.tune)
reveal_type(run.metrics)
reveal_type(mmlab.UserError("x").allowed)
simulate(Scenario(), progres=print)
mmlab.simulat
"""


def test_types_of_a_users_script(tmp_path: Path) -> None:
    """A type checker sees what the public names are, and a user's mistakes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--strict", "--no-error-summary", "--follow-imports=silent", "--config-file", ""]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert 'Revealed type is "mmlab.results.run.Run"' in said[0]
    assert "mmlab.studies.tune.TuneResult" in said[1]
    assert 'Revealed type is "mmlab.results.metrics.Metrics"' in said[2]
    assert 'Revealed type is "str"' in said[3].replace("builtins.", "")
    assert 'Unexpected keyword argument "progres"' in said[4]
    assert 'Module has no attribute "simulat"' in said[-1]
    assert all("note:" in line for line in said[5:-1]), done.stdout


def test_import_has_no_side_effects() -> None:
    """Importing everything changes neither environment, nor signal handlers, nor numba's compiler."""
    names = [name for name in MODULES if name != "mmlab"]
    code = (
        "import os, signal, importlib\n"
        "import numba.core.codegen as g, numba.core.cpu as c, numba.core.registry\n"
        "state = lambda: (dict(os.environ), [signal.getsignal(s) for s in (2, 15)], g.CPUCodeLibrary.finalize,"
        " c.CPUContext.get_executable, sorted(os.listdir('.')))\n"
        f"before = state(); [importlib.import_module(n) for n in {names!r}]; assert state() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FIRST_RESULT = "import mmlab; assert mmlab.simulate(mmlab.Scenario(memory_mib=2)).metrics.merge_rate >= 0"
HELP = "import contextlib, mmlab.cli\nwith contextlib.suppress(SystemExit): mmlab.cli.main(['report', '--help'])"
HEAVY = set(
    "IPython SALib dask distributed ipykernel ipywidgets jinja2 jupyterlab matplotlib nbconvert nbformat pandas "
    "papermill pyarrow scipy.optimize scipy.stats seaborn".split()
)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import mmlab", {*HEAVY, "numba", "numpy", "pydantic", "yaml"}),
        (HELP, {*HEAVY, "numba", "numpy", "pydantic"}),
        (FIRST_RESULT, HEAVY),
    ],
    ids=["import", "help", "first result"],
)
def test_what_is_not_loaded(code: str, absent: set[str]) -> None:
    """The first result of a process takes a second: what only notebooks and reports need is not loaded for it."""
    code += f"\nimport sys; sys.exit(str(sorted({absent!r} & {{*sys.modules}})).strip('[]'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
