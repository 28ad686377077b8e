"""All standard reports, twice: the same bytes, and those that SHA256SUMS in reports/ lists."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from conftest import ROOT
from mmlab.report import index as reports
from mmlab.report.page import About

ACCEPT = "To accept: make reports, look at reports/index.html, and commit reports/ (index, thumbnails, SHA256SUMS)"


def sums(folder: Path) -> dict[str, str]:
    """{file: digest}; on the first line stands what they were made with."""
    assert (folder / reports.SUMS).is_file(), f"{folder / reports.SUMS} is not there. {ACCEPT}"
    lines = (folder / reports.SUMS).read_text().splitlines()[1:]
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def made_with(folder: Path) -> dict[str, str]:
    with (folder / reports.SUMS).open() as file:
        return dict(json.loads(file.readline().removeprefix("# ")))


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def test_equal_bytes_in_another_environment(built: list[Path]) -> None:
    """As in the usual one, be it here or where the sums of git were made."""
    there, here = sums(built[0]), sums([*built, ROOT / "reports"][1])
    assert len(here) > 100
    changed = different(here, there)
    assert not changed, f"{len(changed)} files differ, such as {', '.join(changed[:5])}. {ACCEPT}"


def test_sums_are_true(built: list[Path]) -> None:
    """Of every file there is, and sha256sum agrees."""
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
    for request in requests:
        page = BeautifulSoup(request.page.read_text(encoding="utf-8"), "html.parser")
        about = About.read(request.page)
        assert about is not None
        assert about.headline, f"{request.page.name}: its notebook calls plots.headline nowhere"
        for figure in page.select("main figure"):
            assert figure.select(".data a"), f"{request.page.name}: {figure.img['alt'][:60]}"  # type: ignore[index]
        for table in page.select("main .html"):
            after = table.find_next_sibling()
            assert after is not None
            assert after.select(".data > a, a"), f"{request.page.name}: {table['aria-label']}"
        links = {str(a["href"]) for a in page.select("main .data a")}
        assert links == {f"{request.data.name}/{name}.{kind}" for name in about.tables for kind in ("csv", "parquet")}
        assert all((request.page.parent / link).is_file() for link in links)


def test_nothing_of_the_machine_shows(built: list[Path]) -> None:
    for folder in built:
        for file in folder.rglob("*"):
            if file.suffix in (".html", ".csv"):
                text = file.read_text(encoding="utf-8")
                for place in (ROOT, Path.home(), folder, folder.parent):
                    assert f"{place}/" not in text, f"{file.name}: {place}"


def test_kept_index_is_as_listed() -> None:
    """What git keeps of the reports belongs together."""
    folder = ROOT / "reports"
    kept = {name: digest for name, digest in sums(folder).items() if name.startswith(("index", "thumbnails/"))}
    assert kept == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in kept}, ACCEPT


def test_equal_bytes_as_kept(built: list[Path]) -> None:
    folder = ROOT / "reports"
    kept, then, now = sums(folder), made_with(folder), made_with(built[0])
    if others := different(then, now):
        changes = ", ".join(f"{name} {then.get(name)}, here {now.get(name)}" for name in others)
        pytest.skip(f"reports/SHA256SUMS was made with {changes}")
    changed = different(kept, sums(built[-1]))
    assert not changed, f"{len(changed)} files differ, such as {', '.join(changed[:5])}. {ACCEPT}"
