"""What a report is asked for: parameters are checked first; a write that fails leaves the old page."""

import ast
import errno
from pathlib import Path
from unittest.mock import patch

import nbformat
import papermill
import pytest

from mmlab.errors import UserError
from mmlab.params import find_params, shipped_folder, write_atomically
from mmlab.report import execute as reports
from mmlab.report.execute import make_all
from mmlab.report.provenance import exactness, source_digest, versions
from mmlab.report.request import Request, notebook_defaults, read_params
from mmlab.results import trace

PARAMETERS = """\
pages_to_scan: int = 1000  # pages a batch
zero_fraction: float = 0.5  # share of zero-filled pages
variant: str = "mainline"  # which kernel variant
memory_mib: int = 2  # memory of each process
who: str = "somebody"  # not a scenario's field
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


EXACTNESS = "3 of 3 recordings predicted exactly"


MADE_OF = {"version": "1", "source": source_digest(), "versions": versions(), "exactness": EXACTNESS}


def make(request: Request) -> str:
    """Make a report, and return what failed."""
    with patch("mmlab.report.execute.software", lambda _: MADE_OF):
        (error,) = make_all([request])
    return error


def test_exactness_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the traces that there are; one that is not predicted exactly shows."""
    shipped = sorted((Path(reports.__file__).parents[1] / "recordings").glob("*.json.gz"))
    recorded = trace.read(shipped[0])
    recorded["samples"][-1][recorded["fields"].index("pages_scanned")] += 1
    trace.write(tmp_path / "wrong.json.gz", recorded)
    (tmp_path / "right.json.gz").write_bytes(shipped[0].read_bytes())
    monkeypatch.setattr("mmlab.report.provenance.RECORDINGS", tmp_path)
    samples = len(recorded["samples"])
    words = f"1 of 2 recordings predicted exactly: {2 * samples - 1:,} of {2 * samples:,} samples, "
    assert exactness().startswith(words)


@pytest.mark.parametrize("source", sorted(shipped_folder("notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_parameters_are_read_as_papermill_reads_them(source: Path) -> None:
    theirs = papermill.inspect_notebook(str(source))
    assert list(theirs) == list(notebook_defaults(source))
    assert {name: ast.literal_eval(p["default"]) for name, p in theirs.items()} == notebook_defaults(source)


def test_fields_that_are_not_in_the_cell(tmp_path: Path) -> None:
    """Any field of the scenario can be given. `params` is where to start; what is given beside it wins."""
    source = notebook(tmp_path / "small.ipynb", "1")
    text = source.read_text().replace("who: str", r"params: str = \"all_zero\"\nwho: str").replace("= 0.5 ", "= None ")
    source.write_text(text)
    plain, other = Request(source), Request(source, overrides={"params": "regression_uzp1"})
    assert plain.parameters["zero_fraction"] == plain.defaults["zero_fraction"] == 1.0
    assert plain.changed == {}
    assert (other.parameters["zero_fraction"], other.changed) == (0.8984375, {"params": "regression_uzp1"})
    given = Request(source, overrides={"smart_scan": 0, "params": "regression_uzp1", "zero_fraction": 1.0})
    assert given.changed == {"zero_fraction": "1.0", "params": "regression_uzp1", "smart_scan": "0"}
    assert given.defaults["smart_scan"] == 1
    assert len({request.inputs for request in (plain, other, given)}) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        {"pages_to_scn": 1},
        {"pages_to_scan": -1},
        {"zero_fraction": 1.5},
        {"who": 3},
        {"variant": "mainlin"},
        {"memory_mib": 2**24},
    ],
    ids=str,
)
def test_bad_parameters(overrides: dict[str, object], tmp_path: Path) -> None:
    source = notebook(tmp_path / "small.ipynb", "1")
    with pytest.raises(UserError) as refused:
        make(Request(source, overrides=overrides, out=tmp_path / "x.html"))
    assert next(iter(overrides)) in str(refused.value)
    assert not (tmp_path / "x.html").exists()


def test_a_value_of_another_type() -> None:
    with pytest.raises(UserError) as refused:
        Request(shipped_folder("notebooks") / "07_compare.ipynb", overrides={"first": 5})
    found = refused.value
    assert (found.parameter, found.value, found.where) == ("first", 5, "-p")
    assert found.allowed.startswith("of type str")


@pytest.mark.parametrize(
    ("content", "parameter"),
    [
        ("pages_to_scan: [1", ""),
        ("pages_to_scan: {batch: 1}", "pages_to_scan"),
        ("seeed: 1", "parameter"),
        ("who: 3", "who"),
        ("- 1", ""),
    ],
)
def test_bad_params_file(content: str, parameter: str, tmp_path: Path) -> None:
    source = notebook(tmp_path / "small.ipynb", "1")
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError) as refused:
        Request(source, [tmp_path / "bad.yaml"])
    assert (refused.value.parameter, refused.value.where) == (parameter, str(tmp_path / "bad.yaml"))


def test_a_rich_file_is_for_simulate(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read_params(find_params("state_transitions"))
    assert "plain value" in refused.value.allowed
    assert "mmlab simulate" in refused.value.hint


def test_missing_and_broken_notebooks(tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    notebook(tmp_path / "computed.ipynb")
    computed = (tmp_path / "computed.ipynb").read_text().replace("= 1000", "= 10 * 100")
    (tmp_path / "computed.ipynb").write_text(computed)
    for name in ("missing", "broken", "computed"):
        with pytest.raises(UserError) as refused:
            Request(tmp_path / f"{name}.ipynb")
        assert refused.value.parameter == str(tmp_path / f"{name}.ipynb")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x.html", tmp_path / "file"):
        with pytest.raises(UserError, match="cannot be written"):
            make(Request(notebook(tmp_path / "small.ipynb", "1"), out=out))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while the tables are written: the page is the old one, and it does not count as made."""
    out = tmp_path / "out"
    request = Request(notebook(tmp_path / "small.ipynb", "1"), out=out)
    tables = {"01-a.csv": b"new", "02-b.csv": b"new"}
    (out / "small.data").mkdir(parents=True)
    for name in ("01-a.csv", "02-b.csv", "03-c.csv"):
        (out / "small.data" / name).write_text("old")
    (out / "small.html").write_text("old")

    def write(path: Path, content: bytes) -> None:
        if path.name == "02-b.csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(reports, "write_atomically", write)
        with pytest.raises(OSError, match="No space left"):
            reports.publish(request, tables, "new")
    assert (out / "small.html").read_text() == "old"
    assert not request.is_made()
    reports.publish(request, tables, "new")
    assert {file.name: file.read_bytes() for file in (out / "small.data").iterdir()} == tables
    assert (out / "small.html").read_text() == "new"
