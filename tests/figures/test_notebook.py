"""What a notebook shows: tables and words keep their plain form, and every figure's data are saved for a report."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from mmlab import Run, Scenario, simulate
from mmlab.figures import figures as plots
from mmlab.figures import notebook as display
from mmlab.figures import theme

LETTERS = np.frombuffer(b"HHHHZZAN", np.uint8)
LINES = pd.DataFrame({"x (s)": [0.0, 1.0, 2.0], "y (MiB)": [1.0, 2.0, 3.0], "which": ["a", "a", "b"]})


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(Scenario(memory_mib=2, horizon_batches=20))


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[dict[str, str], dict[str, object]]]]:
    """What was displayed: data and metadata."""
    outputs: list[tuple[dict[str, str], dict[str, object]]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, metadata=None, raw=True: outputs.append((data, metadata))
    )
    yield outputs
    plt.close("all")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(display.TABLES, str(tmp_path))
    return tmp_path


def read(folder: Path, name: str) -> pd.DataFrame:
    """A saved table; its two files say the same."""
    parquet = pd.read_parquet(folder / f"{name}.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), parquet, check_dtype=False)
    return parquet


def test_every_figure_function_remembers_its_table() -> None:
    """Each function of plots that returns Axes calls remember, or only combines others that do."""
    defined = [node for node in ast.parse(inspect.getsource(plots)).body if isinstance(node, ast.FunctionDef)]
    figures = {f.name: f for f in defined if f.returns and ast.unparse(f.returns) in ("Axes", "list[Axes]")}
    calls = {
        name: {ast.unparse(node.func) for node in ast.walk(f) if isinstance(node, ast.Call)}
        for name, f in figures.items()
    }
    assert len(figures) >= 12
    forgot = {name for name in figures if not calls[name] & {"remember", "_against_kernel", *figures}}
    assert forgot == {"side_by_side"}, "it draws nothing of its own; another one must end with remember()"


def test_tables_of_figures(run: Run) -> None:
    """What is remembered is what was drawn."""
    runs = {"mainline": run}
    for name, ax in {
        "memory": plots.memory(run),
        "counters": plots.counters(runs),
        "curves": plots.curves(LINES, "x (s)", "y (MiB)", "which"),
        "steps": plots.steps(LINES, "x (s)", "y (MiB)", "which"),
        "bars": plots.bars(pd.DataFrame({"seen": [1.0], "freed": [2.0]}, index=["mainline"]), "rate (MiB/s)"),
        "page_map": plots.page_map(LETTERS, 8),
    }.items():
        assert list(display.tables_of(plots.figure_of(ax))) == [name]
    (memory,) = display.tables_of(plots.figure_of(plots.memory(run))).values()
    assert list(memory) == ["time_s", *theme.KINDS]
    assert len(memory) == len(run.samples)
    (pages,) = display.tables_of(plots.figure_of(plots.page_map(LETTERS, 8))).values()
    assert pages.to_numpy().tolist() == [
        ["A", "small page", 1],
        ["H", "THP", 4],
        ["N", "not present", 1],
        ["Z", "shared zeropage", 2],
    ]


def test_panels_of_one_kind_are_one_table(run: Run) -> None:
    panels = plots.side_by_side(plots.memory, {"mainline": run, "again": run})
    (memory,) = display.tables_of(plots.figure_of(panels)).values()
    assert memory["panel"].value_counts().to_dict() == {"mainline": len(run.samples), "again": len(run.samples)}
    two = plots.axes(2)
    plots.memory(run, two[0])
    plots.page_map(LETTERS, 8, two[1])
    assert list(display.tables_of(plots.figure_of(two))) == ["memory", "page_map"], "of two kinds: two tables"


def test_show_saves_the_table(run: Run, folder: Path, shown: list) -> None:
    plots.show(plots.memory(run), "Alt")
    plots.show(plots.steps(LINES, "x (s)", "y (MiB)", "which"), "Alt", "Caption")
    names = [metadata["image/png"]["tables"] for _, metadata in shown]
    assert names == [["01-memory"], ["02-steps"]]
    assert sorted(f.name for f in folder.iterdir()) == [f"{n}.{e}" for [n] in names for e in ("csv", "parquet")]
    assert read(folder, "02-steps").equals(LINES)
    assert (folder / "02-steps.csv").read_bytes() == b"x (s),y (MiB),which\n0.0,1.0,a\n1.0,2.0,a\n2.0,3.0,b\n"


def test_table_saves_what_it_shows_unrounded(folder: Path, shown: list) -> None:
    mixed = pd.DataFrame({"s": [1.23456789, np.nan], "a\nb": [5, "none"]}, index=pd.Index(["V0", "V1"], name="variant"))
    plots.table(mixed, "Rates: mean from the end of the first full scan until settled")
    (_, metadata), name = shown[0], "01-rates-mean-from-the-end-of-the-first"
    assert metadata["text/html"]["tables"] == [name]
    saved = read(folder, name)
    assert saved.to_dict("list") == {
        "variant": ["V0", "V1"],
        "s": [1.23456789, pytest.approx(np.nan, nan_ok=True)],
        "a b": ["5", "none"],
    }


def test_table_shows_and_saves_errors(folder: Path, shown: list) -> None:
    rates = pd.DataFrame({"rate": [5.123, 0.0, np.nan], "MiB": [1.0, 2.0, 3.0]}, index=["V0", "V1", "V2"])
    plots.table(rates, "Rates", errors=pd.DataFrame({"rate": [0.021, 0.0, np.nan]}, index=rates.index))
    data, _ = shown[0]
    assert re.findall("<td>(.*?)</td>", data["text/html"]) == ["5.12\xa0±\xa00.02", "1.0", "0.0", "2.0", "–", "3.0"]
    assert list(read(folder, "01-rates")) == ["name", "rate", "se rate", "MiB"]


def test_names_of_columns_differ(folder: Path, shown: list) -> None:
    twice = pd.DataFrame([[1, 2, 3]], columns=["…", "…", "x"], index=pd.Index([7], name="x"))
    plots.table(twice)
    assert list(read(folder, "01-table")) == ["x", "…", "… #2", "x #2"]


def test_nothing_is_saved_without_a_folder(
    run: Run, tmp_path: Path, shown: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(display.TABLES, raising=False)
    monkeypatch.chdir(tmp_path)
    plots.show(plots.memory(run), "Alt")
    plots.table(LINES, "Lines")
    assert not any("tables" in about for _, metadata in shown for about in metadata.values())
    assert not list(tmp_path.iterdir())


def test_headline(shown: list) -> None:
    plots.headline("27 batches", "free 920 MiB <at once>")
    data, metadata = shown[0]
    assert metadata == {"text/html": {"headline": {"value": "27 batches", "words": "free 920 MiB <at once>"}}}
    assert data["text/plain"] == "27 batches free 920 MiB <at once>"
    assert "27 batches</strong> free 920 MiB &lt;at once&gt;" in data["text/html"]
