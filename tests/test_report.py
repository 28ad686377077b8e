"""Reports: parameters are checked first, the page stands alone, and the same input gives the same bytes."""

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from mmlab.errors import UserError
from mmlab.report import ReportFailed, report, resolve_parameters

PARAMETERS = """\
pages_to_scan: int = 1000  # pages a batch
zero_fraction: float = 0.5  # share of zero-filled pages
variant: str = "mainline"  # which kernel variant
memory_mib: int = 2  # memory of each process
who: str = "somebody"  # not a scenario's field
"""
IMAGE = """\
import matplotlib.pyplot as plt
from mmlab import plots
ax = plots.axes()[0]
ax.plot([1, 2])
plots.show(ax, "A line that \\"rises\\" & ends", "A caption")
"""


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with a title, a parameters cell, and the given code cells."""
    v4 = nbformat.v4
    head = v4.new_markdown_cell(
        "# A *small* notebook\n\n## First part\n\nSee [this](https://example.org/).\n\n### Detail"
    )
    tagged = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(v4.new_notebook(cells=[head, tagged, *map(v4.new_code_cell, cells)]), path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    source = notebook(
        folder / "small.ipynb",
        "print('pages_to_scan is', pages_to_scan, 'for', who)",
        IMAGE,
        "import pandas as pd\npd.DataFrame({'a': [1]}).style",
        "object()",
        "import sys\nprint('to stderr', file=sys.stderr)",
    )
    (folder / "p.yaml").write_text("pages_to_scan: 500\nwho: file\n")
    return report(source, [folder / "p.yaml"], {"who": "me"}, out=folder / "deep" / "a.html", progress=False)


def test_runs_with_the_parameters(page: Path) -> None:
    text = page.read_text()
    assert "pages_to_scan is 500 for me" in text
    assert "small.ipynb" not in text, "nothing of the file's place may show"
    assert str(page.parent.parent) not in text
    assert list(page.parent.iterdir()) == [page], "no temporary file is left"


def test_loads_nothing_from_anywhere(page: Path) -> None:
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert not soup.find_all(["script", "link", "iframe", "object", "embed"])
    for tag in soup.find_all(src=True):
        assert tag["src"].startswith("data:"), tag["src"][:60]
    for style in soup.find_all("style"):
        assert not re.search(r"@import|url\((?!data:)", style.text)
    links = {a["href"] for a in soup.find_all("a") if not a["href"].startswith("#")}
    assert links == {"https://example.org/"}, "a plain link is no load"


def test_is_accessible(page: Path) -> None:
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.html is not None
    assert soup.html["lang"] == "en"
    assert soup.title is not None
    assert soup.title.text == "A small notebook (pages_to_scan=500, who=me)"
    assert all(soup.find(tag) for tag in ("nav", "main", "footer"))
    assert [image["alt"] for image in soup.find_all("img")] == ['A line that "rises" & ends']
    assert soup.figcaption is not None
    assert soup.figcaption.text == "A caption"
    contents = soup.find("nav")
    assert contents is not None
    assert [a.text for a in contents.find_all("a")] == ["First part", "Detail"]
    for link in contents.find_all("a"):
        assert soup.find(id=str(link["href"])[1:])


def test_says_how_it_was_made(page: Path) -> None:
    footer = BeautifulSoup(page.read_text(), "html.parser").footer
    assert footer is not None
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in footer.find_all("tr")]
    assert ["pages_to_scan", "500", "1000"] in rows
    assert ["who", "me", "somebody"] in rows
    assert {"mmlab", "Python", "numba", "numpy", "mmlab source, SHA-256"} <= {row[0] for row in rows}


def test_code_is_shown_only_on_demand(page: Path, tmp_path: Path) -> None:
    assert "import pandas" not in page.read_text()
    source = notebook(tmp_path / "code.ipynb", "import string")
    assert "string" in report(source, out=tmp_path / "code.html", show_code=True, progress=False).read_text()


def test_same_bytes_again(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another folder, time zone, locale and hash seed, and with another matplotlib configuration."""
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\n")
    for name, value in {
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "MATPLOTLIBRC": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    source = page.parent.parent / "small.ipynb"
    other = report(source, [], {"pages_to_scan": 500, "who": "me"}, out=tmp_path / "b.html", progress=False)
    assert other.read_bytes() == page.read_bytes()


def test_failing_notebook_leaves_a_page_with_the_error(tmp_path: Path) -> None:
    source = notebook(tmp_path / "bad.ipynb", "print('so far so good')", "1 / 0", "print('never reached')")
    with pytest.raises(ReportFailed, match="ZeroDivisionError: division by zero") as failed:
        report(source, out=tmp_path / "bad.html", progress=False)
    text = failed.value.path.read_text()
    assert failed.value.path == tmp_path / "bad.html"
    assert "This report is incomplete" in text
    assert "ZeroDivisionError" in text
    assert "so far so good" in text
    assert "never reached" not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pages_to_scn": 1}, r'unknown parameter "pages_to_scn": did you mean "pages_to_scan"'),
        ({"pages_to_scan": -1}, r"pages_to_scan = -1 is out of range"),
        ({"zero_fraction": 1.5}, r"zero_fraction = 1.5 is out of range"),
        ({"who": 3}, r"who = 3: small.ipynb expects str"),
        ({"variant": "mainlin"}, r"variant: 'mainlin' is not known; did you mean 'mainline'"),
        ({"memory_mib": 2**24}, r"memory_mib: .* but only .* GiB are free here"),
    ],
)
def test_bad_parameters(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    source = notebook(tmp_path / "small.ipynb", "1")
    with pytest.raises(UserError, match=message):
        report(source, overrides=overrides, out=tmp_path / "x.html", progress=False)
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pages_to_scan: [1", "not YAML"),
        ("pages_to_scan: {batch: 1}", "plain values"),
        ("seeed: 1", r'unknown parameter "seeed"'),
        ("- 1", "a parameter"),
    ],
)
def test_bad_params_file(content: str, message: str, tmp_path: Path) -> None:
    source = notebook(tmp_path / "small.ipynb", "1")
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        resolve_parameters(source, [tmp_path / "bad.yaml"], {})
    assert "bad.yaml" in str(refused.value)


def test_missing_and_broken_notebooks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such notebook"):
        resolve_parameters(tmp_path / "none.ipynb", [], {})
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(UserError, match="not a readable notebook"):
        resolve_parameters(tmp_path / "broken.ipynb", [], {})


def test_no_folder_as_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        report(notebook(tmp_path / "small.ipynb", "1"), out=tmp_path, progress=False)
