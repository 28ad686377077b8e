"""A report: parameters are checked first, the page stands alone, its data are beside it, the same input gives the same
bytes."""

import ast
import itertools
import re
import shlex
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from bs4 import BeautifulSoup

from mmlab.errors import UserError
from mmlab.params import shipped_folder
from mmlab.report import execute as reports
from mmlab.report.execute import ReportFailed, Request, notebook_defaults, report, resolve_parameters
from mmlab.report.page import About
from mmlab.report.provenance import exactness, source_digest
from mmlab.results import trace

PARAMETERS = """\
pages_to_scan: int = 1000  # pages a batch
zero_fraction: float = 0.5  # share of zero-filled pages
variant: str = "mainline"  # which kernel variant
memory_mib: int = 2  # memory of each process
who: str = "somebody"  # not a scenario's field
"""
IMAGE = """\
import matplotlib.pyplot as plt
import pandas as pd
from mmlab.figures import figures as plots
line = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0], "which": "a"})
plots.show(plots.steps(line, "x", "y", "which"), "A line that \\"rises\\" & ends", "A caption")
plots.table(line, "Its points")
plots.headline("2 MiB", "at <most>")
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
        "import numpy\nprint('features:', numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))",
        "from pathlib import Path\nprint(sorted(p.name for p in Path().glob('*.yaml')))\nimport beside",
    )
    (folder / "beside.py").write_text("print('a module of the caller')\n")
    (folder / "p.yaml").write_text("pages_to_scan: 500\nwho: file\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return report(source, [folder / "p.yaml"], {"who": "me"}, out=folder / "deep" / "a.html", progress=False)


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
    about = About.read(page)
    assert about is not None
    assert about.title == "A small notebook"
    assert about.changed == "pages_to_scan=500, who=me"
    assert about.headline == ("2 MiB", "at <most>")
    assert about.tables == ("01-steps", "02-its-points")
    assert about.exactness == exactness()
    source, params = page.parent.parent / "small.ipynb", page.parent.parent / "p.yaml"
    same = Request(source, [params], {"who": "me"}, page)
    assert same.is_made()
    assert not Request(source, [params], {"who": "you"}, page).is_made()
    assert not Request(source, [params], {"who": "me"}, page, show_code=True).is_made()
    assert not Request(source, [params], {"who": "me"}, page.with_name("b.html")).is_made()
    table = page.with_suffix(".data") / "02-its-points.csv"
    content = table.read_bytes()
    table.unlink()
    assert not same.is_made(), "a table is gone"
    table.write_bytes(content)
    (page.with_name("plain.html")).write_text("<html></html>")
    assert About.read(page.with_name("plain.html")) is None
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
    assert sections["Exactness"].startswith(f"{exactness()}.")


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


def test_exactness_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the traces that there are; one that is not predicted exactly shows."""
    shipped = sorted((Path(reports.__file__).parents[1] / "recordings").glob("*.json.gz"))
    found = exactness()
    assert (found.traces, found.traces_exact) == (len(shipped), len(shipped))
    assert min(found.samples, found.maps, found.frames) > len(shipped)
    recorded = trace.read(shipped[0])
    recorded["samples"][-1][recorded["fields"].index("pages_scanned")] += 1
    trace.write(tmp_path / "wrong.json.gz", recorded)
    (tmp_path / "right.json.gz").write_bytes(shipped[0].read_bytes())
    monkeypatch.setattr("mmlab.report.provenance.RECORDINGS", tmp_path)
    samples = len(recorded["samples"])
    two = exactness.__wrapped__()
    assert (two.traces, two.traces_exact, two.samples, two.samples_exact) == (2, 1, 2 * samples, 2 * samples - 1)


@pytest.mark.parametrize("source", sorted(shipped_folder("notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_parameters_are_read_as_papermill_reads_them(source: Path) -> None:
    theirs = papermill.inspect_notebook(str(source))
    assert list(theirs) == list(notebook_defaults(source))
    assert {name: ast.literal_eval(p["default"]) for name, p in theirs.items()} == notebook_defaults(source)


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
    (tmp_path / "elsewhere").mkdir()
    for file in ("beside.py", "p.yaml"):
        (tmp_path / "elsewhere" / file).write_bytes((page.parent.parent / file).read_bytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = report(source, [], {"pages_to_scan": 500, "who": "me"}, out=tmp_path / "a.html", progress=False)
    assert other.read_bytes() == page.read_bytes()
    for file in page.with_suffix(".data").iterdir():
        assert (other.with_suffix(".data") / file.name).read_bytes() == file.read_bytes()


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
