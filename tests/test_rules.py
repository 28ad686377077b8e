"""Rules that follow from others, shown where no other test shows them."""

from __future__ import annotations

from typing import Any

import pytest

# Two THPs of 8 pages, 6 of them zero-filled; ksmd's first full scan ends with batch 2, each further one takes two.


def two_thps(*events: dict[str, Any], **fields: Any) -> Any:
    import test_variants

    return test_variants.two_thps(*events, **fields)


def letters(run: Any) -> str:
    return str(run.page_map().tobytes().decode())


def part(op: str, **fields: Any) -> dict[str, Any]:
    return {"op": op, "page": 0, "count": 8} | fields


def knob(name: str, value: int | str) -> dict[str, Any]:
    return {"op": "set", "knob": name, "value": value}


def test_items_outlive() -> None:
    """ksm-scan S24: a split, a collapse, a migration, and swapping if the page is back before ksmd's next visit."""

    def ages(*events: dict[str, Any]) -> list[int]:
        unique = {"pages": 16, "contents": [[1, 16, 1]], "thp": [[0, 16]]}
        run = two_thps(*events, process_list=[unique], swap_mib=1, horizon_batches=6)
        assert run.results == [0] * len(events)
        return list(run.machine.pte["age"].tolist())

    assert ages() == [3] * 16
    assert ages(part("split"), part("collapse"), part("migrate"), part("split")) == [3] * 16
    out, back = part("pageout"), part("read")
    assert ages(out, back) == [3] * 16
    assert ages(out, back | {"after": {"batch": 4}}) == [1] * 8 + [4] * 8  # two short full scans without them


@pytest.mark.parametrize(("max_ptes_none", "split"), [(5, True), (6, False)])
def test_shrinker_and_khugepaged_agree(max_ptes_none: int, split: bool) -> None:
    """khugepaged P5: what one makes the other does not undo."""
    shrink, scan = {"op": "shrink", "count": 10}, {"op": "khugepaged", "full_scans": 1}
    fields = {"variant": "mainline", "max_ptes_none": max_ptes_none, "run": 0, "after": {"batch": 0}, "mergeable": []}
    shrunk = two_thps(shrink, scan, **fields)
    assert letters(shrunk) == ("ZZZZZZAA" if split else "HHHHHHHH") * 2
    collapsed = two_thps({"op": "split_all"}, scan, shrink, **fields)
    assert letters(collapsed) == ("ZZZZZZAA" if split else "HHHHHHHH") * 2


def test_collapse_of_zeropages_placed_by_ksmd() -> None:
    """khugepaged P6"""
    collapse = part("khugepaged", full_scans=1)
    del collapse["page"], collapse["count"]
    run = two_thps(collapse, variant="legacy", use_zero_pages=1, after={"batch": 3}, horizon_batches=3)
    before, after = run.rows[-2], run.rows[-1]
    assert (before["ksm_zero_pages"], after["ksm_zero_pages"]) == (12, 0)
    assert after["anon_pages"] - before["anon_pages"] == 12 and letters(run) == "H" * 16


@pytest.mark.parametrize(
    ("variant", "freed"),
    [("mainline", 12), ("ksm-opt-out", 12), ("v1-shrinker-gate", 0), ("v1-series", 0), ("legacy", 0)],
)
def test_the_knob_at_queueing_and_at_the_split(variant: str, freed: int) -> None:
    """fix-variants 5.5.3: THPs that were queued before `shrink_underused` was switched off are split all the same."""
    off = knob("shrink_underused", 0), knob("max_ptes_none", 0), {"op": "shrink", "count": 10}
    run = two_thps(*off, variant=variant, run=0, after={"batch": 0}, mergeable=[])
    assert run.rows["thp_underused_split_page"][-1] == 2
    assert 16 - run.rows["frames"][-1] == freed and letters(run) == ("ZZZZZZAA" if freed else "AAAAAAAA") * 2


@pytest.mark.parametrize("variant", ["legacy", "mainline", "rfc-underused-only", "v1-series"])
def test_nothing_is_underused_by_default(variant: str) -> None:
    """fix-variants 5.5.4"""
    run = two_thps({"op": "shrink", "count": 10}, variant=variant, run=0, after={"batch": 0}, mergeable=[])
    assert run.scenario.max_ptes_none == 511 and letters(run) == "H" * 16
    assert run.rows["thp_underused_split_page"][-1] == run.rows["deferred_queue_len"][-1] == 0
