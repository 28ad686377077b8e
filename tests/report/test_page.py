"""A report's page: it stands alone, its data are beside it, it says how it was made; the same input, the same bytes."""

import itertools
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from test_request import EXACTNESS, make, notebook

from mmlab.report.page import read_about
from mmlab.report.provenance import source_digest
from mmlab.report.request import Request

IMAGE = """\
import matplotlib.pyplot as plt
import pandas as pd
from mmlab.figures import figures as plots
line = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0], "which": "a"})
plots.show(plots.steps(line, "x", "y", "which"), "A line that \\"rises\\" & ends", "A caption")
plots.table(line, "Its points")
plots.headline("2 MiB", "at <most>")
"""


def made(request: Request) -> Path:
    """Make a report that succeeds, and return its page."""
    assert not make(request)
    return request.page


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
        "import numpy\nprint('features:', numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))",
        "from pathlib import Path\nprint(sorted(p.name for p in Path().glob('*.yaml')))\nimport beside",
    )
    (folder / "beside.py").write_text("print('a module of the caller')\n")
    (folder / "p.yaml").write_text("pages_to_scan: 500\nwho: file\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return made(Request(source, [folder / "p.yaml"], {"who": "me"}, out=folder / "deep" / "a.html"))


def test_runs_with_the_parameters(page: Path) -> None:
    text = page.read_text()
    assert "pages_to_scan is 500 for me" in text
    assert "['p.yaml']" in text, "the notebook's working directory is the caller's"
    assert "a module of the caller" in text
    assert "features: []" in text, "numpy computes as on any processor"
    assert str(page.parent.parent) not in text, "nothing of the file's place may show"
    assert sorted(page.parent.iterdir()) == [page.with_suffix(".data"), page], "no temporary file is left"


def test_data_are_beside_the_page(page: Path) -> None:
    soup = BeautifulSoup(page.read_text(), "html.parser")
    links = [str(a["href"]) for a in soup.select(".data a")]
    assert links == [f"a.data/{name}.{kind}" for name in ("01-steps", "02-its-points") for kind in ("csv", "parquet")]
    assert soup.figcaption is not None
    assert [a["href"] for a in soup.figcaption.find_all("a")] == links[:2]
    for csv, parquet in zip(links[::2], links[1::2], strict=True):
        line = pd.read_csv(page.parent / csv)
        assert line.to_dict("list") == {"x": [0.0, 1.0], "y": [1.0, 2.0], "which": ["a", "a"]}
        assert pd.read_parquet(page.parent / parquet).to_dict("list") == line.to_dict("list")


def test_headline(page: Path) -> None:
    headline = BeautifulSoup(page.read_text(), "html.parser").select_one(".headline")
    assert headline is not None
    assert headline.text == "2 MiB at <most>"


def test_page_says_what_it_is(page: Path) -> None:
    about = read_about(page)
    assert about["title"] == "A small notebook"
    assert about["changed"] == "pages_to_scan=500, who=me"
    assert about["headline"] == ["2 MiB", "at <most>"]
    assert about["files"] == ["01-steps.csv", "01-steps.parquet", "02-its-points.csv", "02-its-points.parquet"]
    assert about["exactness"] == EXACTNESS
    source, params = page.parent.parent / "small.ipynb", page.parent.parent / "p.yaml"
    same = Request(source, [params], {"who": "me"}, page)
    assert same.is_made()
    assert not Request(source, [params], {"who": "you"}, page).is_made()
    assert not Request(source, [params], {"who": "me"}, page, show_code=True).is_made()
    assert not Request(source, [params], {"who": "me"}, page.with_name("b.html")).is_made()
    table = page.with_suffix(".data") / "02-its-points.csv"
    content = table.read_bytes()
    table.write_bytes(content[:-1])
    assert not same.is_made(), "a table is cut off"
    table.unlink()
    assert not same.is_made(), "a table is gone"
    table.write_bytes(content)
    text = page.read_text()
    page.write_text(text.replace("2 MiB", "3 MiB"))
    assert not same.is_made(), "the page is another one"
    page.write_text(text)
    assert same.is_made()
    (page.with_name("plain.html")).write_text("<html></html>")
    assert read_about(page.with_name("plain.html")) == {}
    page.with_name("plain.html").unlink()


def test_loads_nothing_from_anywhere(page: Path) -> None:
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert not soup.find_all(["script", "link", "iframe", "object", "embed"])
    for tag in soup.find_all(src=True):
        assert tag["src"].startswith("data:"), tag["src"][:60]
    for style in soup.find_all("style"):
        assert not re.search(r"@import|url\((?!data:)", style.text)
    links = {a["href"] for a in soup.find_all("a") if not a["href"].startswith(("#", "a.data/"))}
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
    assert soup.figcaption.text.startswith("A caption Data: 01-steps.csv")
    contents = soup.find("nav")
    assert contents is not None
    assert [a.text for a in contents.find_all("a")] == ["First part", "Detail", "How this report was made"]
    for link in contents.find_all("a"):
        assert soup.find(id=str(link["href"])[1:])


def test_says_how_it_was_made(page: Path) -> None:
    footer = BeautifulSoup(page.read_text(), "html.parser").footer
    assert footer is not None
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in footer.find_all("tr")]
    assert ["pages_to_scan", "500", "1000"] in rows
    assert ["who", "me", "somebody"] in rows
    assert {"mmlab", "Python", "numba", "numpy"} <= {row[0] for row in rows}
    sections = {dt.text: dt.find_next("dd").text for dt in footer.find_all("dt")}  # type: ignore[union-attr]
    assert sections["SHA-256 of mmlab's source files"] == source_digest()
    assert sections["SHA-256 of small.ipynb"] == Request(page.parent.parent / "small.ipynb").notebook_digest
    assert sections["Exactness"].startswith(f"{EXACTNESS}.")


def test_its_command_makes_the_same(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names the command that makes it again, whatever the values are."""
    command = BeautifulSoup(page.read_text(), "html.parser").select_one(".command")
    assert command is not None
    assert command.text == "mmlab report small.ipynb -p pages_to_scan=500 -p who=me -o a.html"
    odd = {"who": "3", "zero_fraction": 0.25, "variant": "legacy"}
    request = Request(page.parent.parent / "small.ipynb", overrides=odd, out=page, show_code=True)
    words = shlex.split(request.command())
    settings = [word.partition("=") for flag, word in itertools.pairwise(words) if flag == "-p"]
    assert {name: yaml.safe_load(value) for name, _, value in settings} == odd
    assert "--code" in words


def test_code_is_shown_only_on_demand(page: Path, tmp_path: Path) -> None:
    assert "import pandas" not in page.read_text()
    source = notebook(tmp_path / "code.ipynb", "import string")
    assert "string" in made(Request(source, out=tmp_path / "code.html", show_code=True)).read_text()


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
    (tmp_path / "elsewhere").mkdir()
    for file in ("beside.py", "p.yaml"):
        (tmp_path / "elsewhere" / file).write_bytes((page.parent.parent / file).read_bytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = made(Request(source, [], {"pages_to_scan": 500, "who": "me"}, out=tmp_path / "a.html"))
    assert other.read_bytes() == page.read_bytes()
    for file in page.with_suffix(".data").iterdir():
        assert (other.with_suffix(".data") / file.name).read_bytes() == file.read_bytes()


def test_failing_notebook_leaves_a_page_with_the_error(tmp_path: Path) -> None:
    source = notebook(tmp_path / "bad.ipynb", "print('so far so good')", "1 / 0", "print('never reached')")
    failed = make(Request(source, out=tmp_path / "bad.html"))
    assert failed == "Cell [3] of bad.ipynb failed with ZeroDivisionError: division by zero"
    text = (tmp_path / "bad.html").read_text()
    assert "This report is incomplete" in text
    assert "ZeroDivisionError" in text
    assert "so far so good" in text
    assert "never reached" not in text
