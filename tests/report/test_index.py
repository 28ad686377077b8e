"""Many reports: which are standard, what is made again, the index over them and the sums."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from conftest import ROOT
from mmlab import cli
from mmlab.errors import UserError
from mmlab.report import index as reports
from mmlab.report import provenance
from mmlab.report.execute import make_all
from mmlab.report.page import read_about
from mmlab.report.request import find_notebook

GOOD = """\
import pandas as pd
from mmlab.figures import figures as plots
line = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, float(pages_to_scan)], "which": "a"})
plots.headline(f"{pages_to_scan} pages", "a <batch>")
ax = plots.axes(height=9 if pages_to_scan == 7 else 4)[0]
plots.show(plots.steps(line, "x", "y", "which", ax), f"A step to {pages_to_scan}")
plots.show(plots.steps(line, "x", "y", "which"), "Another one")
"""


def notebook(path: Path, title: str, code: str) -> Path:
    v4 = nbformat.v4
    path.parent.mkdir(exist_ok=True)
    cells = [
        v4.new_markdown_cell(f"# {title}\n\n**Question.** What does `{title}`\ndo?\n\nMore of it."),
        v4.new_code_cell("pages_to_scan: int = 1  # pages a batch", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(code),
    ]
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with notebooks and params files of its own, and their standard reports."""
    home = tmp_path_factory.mktemp("made")
    notebook(home / "notebooks" / "good.ipynb", "Good", GOOD)
    notebook(home / "notebooks" / "bad.ipynb", "Bad", "1 / (pages_to_scan - 1)")
    (home / "notebooks" / reports.DECLARED).write_text("good: [few, many]\nbad: [own, few]\n")
    (home / "params").mkdir()
    (home / "params" / "few.yaml").write_text("pages_to_scan: 7\n")
    (home / "params" / "many.yaml").write_text("pages_to_scan: 5000\n")
    with pytest.MonkeyPatch.context() as patched:
        live_in(home, patched)
        requests = reports.standard()
        assert [bool(error) for error in make_all(requests)] == [True, False, False, False]
        reports.write_index(home / "reports", requests)
    return home


def live_in(home: Path, patched: pytest.MonkeyPatch) -> None:
    """Make mmlab find its notebooks and params files there. Exactness has its test in test_execute."""
    few = {
        "version": "1",
        "source": "f" * 64,
        "versions": provenance.versions(),
        "exactness": "2 of 3 recordings predicted exactly",
    }
    patched.setattr("mmlab.report.execute.software", lambda folder: few)
    for module in ("params", "report.index", "report.request"):
        patched.setattr(f"mmlab.{module}.shipped_folder", lambda name="params": home / name)
    patched.chdir(home)


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which a test may change."""
    home = tmp_path / "home"
    shutil.copytree(made, home)
    live_in(home, monkeypatch)
    return home


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *args])
    return int(ended.value.code or 0)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != reports.SUMS)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def listed(folder: Path) -> dict[str, str]:
    lines = (folder / reports.SUMS).read_text().splitlines()[1:]
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def test_standard_reports() -> None:
    """Every notebook is in, and every pair that is declared; all of them can be run."""
    standard = reports.standard(Path("here"))
    assert {r.notebook for r in standard} == set((ROOT / "notebooks").glob("*.ipynb"))
    names = [r.page.stem for r in standard]
    assert {"01_regression", "02_other_splits", "02_other_splits_migration_no_huge"} <= set(names)
    assert len(set(names)) == len(names)
    assert "01_regression_regression_uzp1" not in names, "it is not declared"
    assert {r.page.parent for r in standard} == {Path("here")}
    for request in standard:
        assert request.parameters


@pytest.mark.parametrize(
    ("declared", "parameter"),
    [
        ("gooood: [own]", "notebook"),
        ("good: [manny]", "params file"),
        ("good: few", "good"),
        ("good: []", "good"),
        ("good: [few", ""),
    ],
)
def test_mistakes_in_the_declaration(home: Path, declared: str, parameter: str) -> None:
    (home / "notebooks" / reports.DECLARED).write_text(declared)
    with pytest.raises(UserError) as refused:
        reports.standard()
    assert refused.value.parameter == parameter
    assert refused.value.where.endswith(reports.DECLARED)


def test_only_what_has_changed_is_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what has failed; and what is no longer wanted is in the index no more."""
    out = home / "reports"
    before = digests(out)
    assert listed(out) == before, "everything there is, and as it is"
    assert call("--all", "--jobs", "1") == 1, "what failed is tried again"
    said = capsys.readouterr()
    pages = ["reports/bad.html", "reports/index.html"]
    assert said.out.splitlines() == [pages[0], "3 of 4 were up to date", pages[1]]
    assert "Cell [2] of bad.ipynb failed with ZeroDivisionError" in said.err
    assert digests(out) == before

    (out / "mine.html").write_text("mine")
    notebook(home / "notebooks" / "good.ipynb", "Good", GOOD + "print('one more line')")
    (home / "notebooks" / reports.DECLARED).write_text("good: [many]\nbad: [few]\n")
    assert call("--all", "--jobs", "1") == 0
    assert capsys.readouterr().out.splitlines() == ["reports/good_many.html", "1 of 2 were up to date", pages[1]]
    assert "one more line" in (out / "good_many.html").read_text()
    assert (out / "mine.html").read_text() == "mine", "what is not ours stays"
    assert {name.partition(".")[0] for name in listed(out)} == {"index", "bad_few", "good_many"}


def test_index(made: Path) -> None:
    out = made / "reports"
    page = BeautifulSoup((out / reports.INDEX).read_text(), "html.parser")
    assert not page.find_all(["script", "link"])
    assert [(h.name, h.text) for h in page.find_all(["h1", "h2", "h3"])] == [
        ("h1", "Reports of mmlab"),
        ("h2", "Bad"),
        ("h3", "With its own parameters"),
        ("h3", "With few"),
        ("h2", "Good"),
        ("h3", "With few"),
        ("h3", "With many"),
    ]
    assert "What does Good do?" in page.text
    assert "More of it" not in page.text
    failed, _, few, many = page.select(".cards > li")
    assert "Failed: Cell [2] of bad.ipynb failed with ZeroDivisionError" in failed.text
    headline = few.select_one(".headline")
    assert headline is not None
    assert headline.text == "7 pages a <batch>"
    assert "pages_to_scan=7" in few.text
    assert "good_many.data: 2 tables" in many.text
    for target in (str(found["href"]) for found in page.find_all("a")):
        assert page.find(id=target[1:]) if target[0] == "#" else (out / target).exists(), target
    assert "2 of 3 recordings predicted exactly" in page.text, "as the pages say"


def test_same_bytes_on_several_processes(home: Path) -> None:
    requests = [replace(request, out=home / "again") for request in reports.standard()[2:]]
    seen: list[tuple[float, float, str]] = []
    assert list(make_all(requests, 2, lambda *step: seen.append(step))) == ["", ""]
    assert seen == [(0, 2, "good_few"), (1, 2, "good_many"), (2, 2, "")]
    for request in requests:  # the other processes know nothing of the folders put in here: the digest differs
        pages = [home / out / request.page.name for out in ("reports", "again")]
        assert len({page.read_text().partition("</head>")[2] for page in pages}) == 1
        data = [{f.name: f.read_bytes() for f in page.with_suffix(".data").iterdir()} for page in pages]
        assert data[0] == data[1]


def test_each_params_file_a_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("good", "-f", "few", "-f", "params/many.yaml", "--each", "-o", "own", "--jobs", "1") == 0
    assert capsys.readouterr().out.split() == ["own/good_few.html", "own/good_many.html", "own/index.html"]
    before = (home / "reports" / reports.INDEX).stat().st_mtime_ns
    assert call("notebooks/good.ipynb", "-f", "few", "-f", "many", "-p", "pages_to_scan=3", "--jobs", "1") == 0
    assert capsys.readouterr().out.split() == ["reports/good_few_many.html"]
    about = read_about(home / "reports" / "good_few_many.html")
    assert about["headline"] == ["3 pages", "a <batch>"]
    assert (home / "reports" / reports.INDEX).stat().st_mtime_ns == before, "one page leaves the index alone"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--all"]),
        (["goood"], ["goood", "did you mean 'good'"]),
        (["elsewhere/good.ipynb"], ["elsewhere/good.ipynb"]),
        (["good", "-f", "fwe"], ["fwe", "did you mean 'few'"]),
        (["good", "--each"], ["--each", "-f FILE"]),
        (["good", "bad", "-o", "x.html"], ["2 reports"]),
        (["good", "notebooks/good.ipynb"], ["good.html"]),
        (["--all", "good"], ["--all"]),
        (["--all", "-f", "few"], ["--all"]),
        (["--all", "-o", "x.html"], ["--all"]),
        (["good", "-p", "pages_to_scan"], ["NAME=VALUE"]),
        (["good", "-p", "pages_to_scan=-1"], ["pages_to_scan = -1", "at least 0"]),
        (["good", "-o", "notebooks/good.ipynb"], ["notebooks/good.ipynb"]),
        (["good", "--jobs", "0"], ["--jobs"]),
    ],
    ids=lambda x: " ".join(x) if x and " " not in x[0] else "",
)
def test_mistakes(home: Path, args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(home)
    assert call(*args) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert digests(home) == before


def test_notebooks_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no clone, the README's paths mean what was installed."""
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "notebooks" / "01_regression.ipynb"
    for name in ("01_regression", "01_regression.ipynb", "notebooks/01_regression.ipynb"):
        assert find_notebook(name) == shipped
    (tmp_path / "01_regression.ipynb").write_text("{}")
    assert find_notebook("01_regression.ipynb") == Path("01_regression.ipynb"), "a file here comes first"
