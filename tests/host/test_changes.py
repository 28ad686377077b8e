"""What would change on a host: its memory in THPs with both layouts, and the page that a dump becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from conftest import ROOT
from mmlab.errors import UserError
from mmlab.host import changes
from mmlab.host.dump import Dump, parse, read, reproduce
from mmlab.params import find_params
from mmlab.report.execute import make_all
from mmlab.report.request import Request, find_notebook

DATA = Path(__file__).with_name("data")
NODE = find_params("node", "dumps")
NOTEBOOK = find_notebook("10_host")
SMALL = "pages_shared:40\npages_sharing:360\npages_unshared:500\npages_volatile:100\npages_to_scan:10\n"


def test_the_dump_that_ships() -> None:
    assert read([NODE])[0].values == read([DATA / "node.txt"])[0].values


def test_the_memory_is_the_dumps() -> None:
    """Scaled or not, as much is saved as in the dump, and a full scan takes as long."""
    (dump,) = read([NODE])
    for layout in changes.LAYOUTS:
        host = changes.memory(dump, layout)
        assert host.factor == pytest.approx(8192 / 64, rel=0.01)
        run = host.simulate("ksm-opt-out")
        assert changes.saved_mib(run)[-1] == pytest.approx(dump.saved_mib, rel=0.01)
        assert changes.measured({1: run}, "host paces", "host").data.iloc[0, 1] * 60 == pytest.approx(
            dump.scan_seconds, rel=0.25
        )
    assert changes.memory(dump, "spread", use_zero_pages=1, pages_to_scan=1000).scenario.use_zero_pages == 1


def test_two_ends_of_the_thps() -> None:
    """Those that the dump's words name: duplicates side by side, or in every THP."""
    (dump,) = read([DATA / "desktop.txt"])
    price = changes.bargain({where: changes.memory(dump, where).simulate("mainline") for where in changes.LAYOUTS})
    few, all_of_them = price.table()["THPs lost"]
    assert few < 100
    assert all_of_them == pytest.approx(dump.pages / 512, rel=0.01)
    assert (
        price.finding
        == "THPs lost for each MiB saved: 0.66 if duplicates lie side by side, 7 if duplicates lie spread."
    )


def test_what_the_memory_is() -> None:
    (dump,) = parse(SMALL + "ksm_zero_pages:24\nuse_zero_pages:1\nstable_node_dups:0\nstable_node_chains:0")
    found = changes.composition(reproduce(dump))
    assert found.finding.startswith(
        "Saved: 2 of 4 MiB, at least 0 MiB of that by zero-filled pages. The simulation is ex"
    )
    assert found.plot()


def test_a_dump_as_text_is_read_as_the_same(tmp_path: Path) -> None:
    for name in ("node.txt", "desktop.txt", "prompts.md", "virsh.txt", "exporter.txt"):
        found = read([DATA / name])
        assert parse("\n".join(dump.text() for dump in found)) == found
    (dump,) = parse(SMALL + "advisor_mode:none [scan-time]\nMemTotal: 4096 kB\n")
    assert dump.values["advisor_mode"] == "scan-time"
    assert parse(dump.text()) == [dump]
    assert isinstance(dump, Dump)


# -- the page --------------------------------------------------------------------------------------------------------


def test_a_missing_dump_is_one_message() -> None:
    with pytest.raises(UserError, match=r"unknown dump 'nowhere\.txt'") as found:
        Request(NOTEBOOK, overrides={"dump": "nowhere.txt"})
    assert "Name a file" in found.value.hint
    assert "nod" in str(Request(NOTEBOOK).parameters["dump"])


def test_a_page_depends_on_the_dump(tmp_path: Path) -> None:
    file = tmp_path / "dump.txt"
    made = []
    for text in (SMALL, SMALL.replace("360", "361"), SMALL):
        file.write_text(text)
        made.append(Request(NOTEBOOK, overrides={"dump": str(file)}).inputs)
    assert made[0] == made[2] != made[1]


def test_a_page_of_ones_own_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a relative path; the page has all that is needed to make it again, and the answer first."""
    monkeypatch.chdir(tmp_path)
    Path("my dump.txt").write_text(f"Is that normal?\n```\nroot@pve1:~# date\n{SMALL}MemTotal: 8192 kB\n```\n")
    request = Request(
        NOTEBOOK, overrides={"dump": "my dump.txt", "simulate_mib": 2, "hours": 0.1}, out=tmp_path / "out"
    )
    assert list(make_all([request])) == [""]
    page = BeautifulSoup(request.page.read_text(encoding="utf-8"), "html.parser")
    said = page.get_text(" ", strip=True)
    assert "1,000 pages are scanned (4 MiB); KSM saves 1 MiB" in said
    (again,) = [block.text for block in page.find_all("pre") if "/sys/kernel/mm/ksm/pages_shared:40" in block.text]
    assert parse(again) == parse(SMALL + "MemTotal: 8192 kB") or parse(again)[0].host == "pve1"
    assert all(figure.img["alt"] for figure in page.select("main figure"))  # type: ignore[index]
    assert str(tmp_path) not in request.page.read_text(encoding="utf-8")
    assert (ROOT / "notebooks" / "10_host.ipynb").is_file()
