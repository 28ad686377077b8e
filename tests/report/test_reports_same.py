"""All standard reports: the bytes that SHA256SUMS in reports/ lists, and the outputs that the notebooks have stored.

The notebooks run once, for their reports. nbval's own comparison holds the outputs of that run against the stored ones.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbval.plugin import IPyNbFile, coalesce_streams

from conftest import EXECUTED, ROOT, SHIPPED
from mmlab.report import index as reports
from mmlab.report.page import read_about

EXECUTE = (
    "PYTHONHASHSEED=0 jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False"
)
ACCEPT = "To accept: make reports, look at reports/index.html, and commit reports/ (index, SHA256SUMS)"


def sums(folder: Path) -> dict[str, str]:
    """Return the digest of each file; the first line tells the versions."""
    assert (folder / reports.SUMS).is_file(), f"{folder / reports.SUMS} is not there. {ACCEPT}"
    lines = (folder / reports.SUMS).read_text().splitlines()[1:]
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def made_with(folder: Path) -> dict[str, str]:
    with (folder / reports.SUMS).open() as file:
        return dict(json.loads(file.readline().removeprefix("# ")))


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def test_equal_bytes_in_another_environment(built: list[Path]) -> None:
    """… and in the usual one, of which git has the digests."""
    there, here = sums(built[0]), sums([*built, ROOT / "reports"][1])
    assert len(here) > 100
    changed = different(here, there)
    assert not changed, f"{len(changed)} files differ, such as {', '.join(changed[:5])}. {ACCEPT}"


def test_sums_are_true(built: list[Path]) -> None:
    """They list every file, and sha256sum agrees."""
    for folder in built:
        files = {
            f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file() and f.name != reports.SUMS
        }
        assert {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in files.items()} == sums(folder)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", reports.SUMS], cwd=built[0], check=True)


def test_every_number_is_beside_the_page(built: list[Path]) -> None:
    """Each figure and table of each page names its data, and each page has its headline."""
    requests = reports.standard(built[0])
    assert len(requests) >= 8
    recordings = len(list(SHIPPED.glob("*.json.gz")))
    for request in requests:
        page = BeautifulSoup(request.page.read_text(encoding="utf-8"), "html.parser")
        about = read_about(request.page)
        assert about["headline"], f"{request.page.name}: its notebook never calls plots.headline"
        assert about["exactness"].startswith(f"{recordings} of {recordings} recordings predicted exactly")
        for figure in page.select("main figure"):
            assert figure.select(".data a"), f"{request.page.name}: {figure.img['alt'][:60]}"  # type: ignore[index]
        for table in page.select("main .html"):
            after = table.find_next_sibling()
            assert after is not None
            assert after.select(".data > a, a"), f"{request.page.name}: {table['aria-label']}"
        links = {str(a["href"]) for a in page.select("main .data a")}
        assert links == {f"{request.data.name}/{name}" for name in about["files"]}
        assert all((request.page.parent / link).is_file() for link in links)


def test_nothing_of_the_machine_shows(built: list[Path]) -> None:
    for folder in built:
        for file in folder.rglob("*"):
            if file.suffix in (".html", ".csv"):
                text = file.read_text(encoding="utf-8")
                for place in (ROOT, Path.home(), folder, folder.parent):
                    assert f"{place}/" not in text, f"{file.name}: {place}"


def test_kept_index_is_as_listed() -> None:
    """The index in git belongs to the digests in git."""
    kept = (ROOT / "reports" / reports.INDEX).read_bytes()
    assert sums(ROOT / "reports")[reports.INDEX] == hashlib.sha256(kept).hexdigest(), ACCEPT


def test_equal_bytes_as_kept(built: list[Path]) -> None:
    folder = ROOT / "reports"
    kept, then, now = sums(folder), made_with(folder), made_with(built[0])
    if others := different(then, now):
        changes = ", ".join(f"{name} {then.get(name)}, here {now.get(name)}" for name in others)
        pytest.skip(f"reports/SHA256SUMS was made with {changes}")
    changed = different(kept, sums(built[-1]))
    assert not changed, f"{len(changed)} files differ, such as {', '.join(changed[:5])}. {ACCEPT}"


def difference(session: pytest.Session, stored: Path, executed: Path) -> str:
    """Return how the outputs of a run differ from a notebook's stored ones, by nbval's comparison; empty if not."""
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    for test, ran in zip(IPyNbFile.from_parent(session, path=stored).collect(), cells, strict=True):
        assert test.cell.source == ran.source
        assert test.cell.execution_count == ran.execution_count
        if test.options["check"] and not test.compare_outputs(
            coalesce_streams(ran.outputs), coalesce_streams(test.cell.outputs)
        ):
            return "\n".join([test.cell.source[:300], *map(str, test.comparison_traceback)])
    return ""


def test_nbval_tells_outputs_apart(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A stored output in which one digit is changed is a difference."""
    stored = ROOT / "notebooks" / "07_compare.ipynb"
    assert not difference(request.session, stored, stored)
    book = nbformat.read(stored, as_version=4)
    texts = (out.data for cell in book.cells[3:] for out in cell.get("outputs", ()) if "text/plain" in out.data)
    data = next(data for data in texts if "1" in data["text/plain"])
    data["text/plain"] = data["text/plain"].replace("1", "2", 1)
    nbformat.write(book, tmp_path / "other.ipynb")
    assert difference(request.session, stored, tmp_path / "other.ipynb")


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_running_gives_the_stored_outputs(built: list[Path], notebook: Path, request: pytest.FixtureRequest) -> None:
    """Every notebook is among the reports with its own parameters, and that run has the outputs stored in it."""
    of_it = (made for made in reports.standard(built[0]) if made.notebook == notebook)
    (own,) = (made for made in of_it if not made.changed)
    found = difference(request.session, notebook, built[0].parent / EXECUTED / f"{own.page.stem}.ipynb")
    assert not found, f"{found}\nTo accept the new outputs: {EXECUTE} {notebook.relative_to(ROOT)}"
