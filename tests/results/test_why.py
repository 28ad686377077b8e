"""The history of a page in sentences, and the reasons why pages are not merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlab import Run, Scenario, UserError, cli, simulate
from mmlab.results.decisions import described
from mmlab.results.why import PageEvents
from mmlab.spec.rules import resolve

KEYS = [0, 0, 7, 0, 11, 0, 0, 12, 0, 7, 0, 0, 0, 13, 0, 0]


def run(keys: list[int] = KEYS, variant: str = "mainline", process: dict[str, Any] | None = None, **fields: Any) -> Run:
    """Two THPs of 8 pages, a page a visit."""
    contents = [[key, 1, 0] for key in keys]
    spec = {"pages": len(keys), "contents": contents, "thp": [[0, len(keys)]]} | (process or {})
    settings = {"pages_per_thp": 8, "pages_to_scan": 4, "until_settled": True} | fields
    return simulate(Scenario(processes=1, process_list=[spec], **settings), variant=variant, events=True)


def sentences(run: Run, page: int, **where: Any) -> list[str]:
    return [*run.why(page, **where).table["sentence"]]


def test_a_split_on_the_way_to_the_zeropage() -> None:
    """What issue 16 asks for: the visit, the split, what it remaps, and that the merge failed, each with its rule."""
    told = sentences(run(use_zero_pages=1), 0)
    assert told[0] == "visited for the first time; its checksum is noted (M2b)"
    steps = [re.findall(r"\((\w+)\)$", clause) for clause in told[1].split("; ")]
    rules = [rule for step in steps for rule in step]
    assert told[1].startswith("visited; ") and rules == ["H8", "H6", "Z1", "M11", "M3b", "D1", "U2"]
    assert "the split remaps 5 of its pages, zero-filled, to the shared zeropage, this page among them (Z1)" in told[1]


def test_anothers_visit() -> None:
    """A page whose folio another page's visit splits; it is not zero-filled, so it is not among those remapped."""
    mainline = run(use_zero_pages=1)
    told = sentences(mainline, 2)[1]
    assert told.startswith("visit of page 0; its large folio is split, 8 pages, asked for by ksmd (H8); ")
    assert "among them" not in told
    told = sentences(run(use_zero_pages=1, variant="ksm-opt-out"), 3)
    assert "the split keeps 5 of its pages, though zero-filled, this page among them (Z1)" in told[1]


def test_partners_are_told_of_each_other() -> None:
    merged = run(use_zero_pages=0)
    assert sentences(merged, 9)[-2].endswith("merged with page 2: both map a new KSM page (M5c)")
    assert sentences(merged, 2)[-2].startswith("visit of page 9; ")
    table = merged.why(0).table
    met = table[table["sentence"].str.contains("dead node, page 0")].iloc[0]
    assert met["sentence"] == "visit of another page; that page: its search ended at a dead node, page 0 (D2)"
    assert met["times"] == merged.rows["wasted_visits"][-1]


def test_repetition_is_one_sentence() -> None:
    settled = run(use_zero_pages=0, until_settled=False, horizon_full_scans=9, smart_scan=0, horizon_seconds=0.0)
    last = settled.why(2).table.iloc[-1]
    assert (last["sentence"], last["full_scan"], last["until"]) == ("visited; it is merged already (M1b)", 4, 9)
    assert "full scans 4 to 9, in batch 12, 6 times: visited; it is merged already (M1b)" in str(settled.why(2))


def test_since() -> None:
    mainline = run(use_zero_pages=1)
    assert sentences(mainline, 2, since=0.15) == sentences(mainline, 2)[3:]


def test_title_and_markdown() -> None:
    told = run(use_zero_pages=1).why(2)
    assert told.title == "page 2 of process 0 under mainline; at the end: a KSM page, 2 pages hold the same"
    assert told._repr_markdown_().splitlines()[2].startswith("- 0.000 s, full scan 1, in batch 1: visited for")


def test_every_page_of_every_kind_has_a_history() -> None:
    """With forks, writes, khugepaged, swapping and small folios: each sentence ends with a rule that exists."""
    events: list[dict[str, Any]] = [
        {"after": {"full_scan": 2}, "op": "fork", "process": 0},
        {"after": {"full_scan": 3}, "op": "write", "process": 1, "page": 0, "count": 12, "key": 7},
        {"after": {"full_scan": 4}, "op": "khugepaged", "full_scans": 2},
        {"after": {"full_scan": 5}, "op": "dontneed", "process": 0, "page": 8, "count": 8},
    ]
    busy = run(use_zero_pages=1, events=events, until_settled=False, horizon_full_scans=8, horizon_seconds=0.0)
    for process in (0, 1):
        for page in range(16):
            for sentence in sentences(busy, page, process=process):
                rules = re.findall(r"\(([A-Z]\d[^()]*|\d\.\d+)\)(?=; |$)", sentence)
                assert rules and all(map(resolve, rules)), sentence
    assert "of process 1" in " ".join(sentences(busy, 2)), "with several processes pages are named by both"
    assert any("UNSHARE" in name for name in described()["decisions"])


@pytest.mark.parametrize("page", [0, 700, 16_383])
def test_the_events_of_one_page_are_enough(page: int) -> None:
    fields: dict[str, Any] = {"memory_mib": 64, "zero_fraction": 0.5, "duplicate_fraction": 0.3, "pages_to_scan": 500}
    scenario = Scenario(**fields, horizon_full_scans=4, horizon_seconds=0.0)
    few = simulate(scenario, events=PageEvents(page))
    whole = simulate(scenario, events=True)
    assert str(few.why(page)) == str(whole.why(page)) and len(few.events) < len(whole.events) / 2


# --- why pages are not merged -----------------------------------------------------------------------------------------


def test_not_merged_counts_every_page_once() -> None:
    left = run(use_zero_pages=0, until_settled=False, horizon_batches=9, horizon_seconds=0.0)
    letters = left.page_map()
    duplicates = np.isin(KEYS, [0, 7]) & np.isin(letters, [*b"AHh"])
    table = left.not_merged()
    assert table["pages"].sum() == duplicates.sum() and [*table["reason"]] == ["search met a dead node"]
    example = table.iloc[0]
    assert sentences(left, int(example["page"]))[-1].endswith("(D2)")


def test_reasons() -> None:
    def reasons(**fields: Any) -> dict[str, int]:
        table = run(until_settled=False, horizon_seconds=0.0, **fields).not_merged()
        return dict(zip(table["reason"], table["pages"], strict=True))

    assert reasons(horizon_batches=1) == {"not visited by ksmd": 9, "first checksum": 4}
    first_only = {"mergeable": [[0, 8]]}
    assert reasons(horizon_full_scans=4, process=first_only)["its memory is not mergeable"] == 7
    rewritten = [{"after": {"full_scan": 4}, "op": "write", "process": 0, "page": 9, "count": 1, "key": 7}]
    told = reasons(horizon_full_scans=4, events=rewritten, use_zero_pages=1)
    assert told == {"an address gets its own copy of a KSM page: written to": 1}


def test_memory_without_duplicates() -> None:
    assert run([1, 2, 3, 4, 5, 6, 7, 8]).not_merged().empty


# --- mistakes, and the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"page": 16}, "page = 16 is not allowed: it must be 0 … 15 in process 0."),
        ({"page": 3, "process": 1}, "process = 1 is not allowed: it must be 0 … 0."),
        ({"page": 3, "since": -1.0}, "since = -1.0 is not allowed: it must be 0 … 0.240031 s, the end."),
        ({"page": 3, "since": 99.0}, "since = 99.0 is not allowed"),
        ({"page": 3, "since": 0.2}, "page = 3: nothing happened to it from 0.2 s on. The last event is at 0.12 s."),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        run(use_zero_pages=1).why(**asked)


def test_events_must_be_kept() -> None:
    with pytest.raises(UserError, match="kept no events"):
        simulate(Scenario(memory_mib=2)).why(0)


def test_nothing_ever_happened() -> None:
    with pytest.raises(UserError, match=r"It has no events; at the end: a small page, no other page holds the same\."):
        run([1, 2, 3, 4], process={"mergeable": [[0, 2]], "thp": []}).why(3)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--page", "123", "--from", "0.1s"], 0, "this page among them (Z1)"),
        (["--not-merged", "--set", "horizon_full_scans=2"], 0, "search met a dead node"),
        (["--not-merged", "--variant", "ksm-opt-out"], 0, "Every page with duplicates"),
        (["--page", "5000"], 2, "page = 5000 is not allowed: it must be 0 … 1023 in process 0."),
        ([], 2, "Ask for a --page, or for --not-merged."),
    ],
)
def test_command(args: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("memory_mib: 4\nzero_fraction: 0.5\npages_to_scan: 200\nhorizon_full_scans: 9\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["why", str(path), *args])
    out, err = capsys.readouterr()
    assert ended.value.code == status and said in " ".join((out if status == 0 else err).split())
    assert not (err if status == 0 else out)
