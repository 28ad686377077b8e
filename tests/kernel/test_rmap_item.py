"""rmap_items: what ksmd remembers of an address."""

from __future__ import annotations

from typing import Any

import pytest

from mmlab import Scenario, simulate

FIELDS = {"kernel": "7.3", "horizon_seconds": 0, "pages_to_scan": 1000, "memory_mib": 2, "smart_scan": 0}


def sharing(on: int, *events: dict[str, Any], **fields: Any) -> list[int]:
    """The KSM pages saved after each full scan of 200 equal pages, with and without the row forget_age."""
    equal = {"pages": 200, "contents": [[7, 200, 0]]}
    asked = {"process_list": [equal], "horizon_batches": 12, "kernel_changes": {"forget_age": on}, **FIELDS, **fields}
    done = simulate(Scenario(events=events, **asked))
    rows = done.rows
    return [int(rows["pages_sharing"][rows["full_scans"] == n][-1]) for n in range(1, int(rows["full_scans"][-1]) + 1)]


@pytest.mark.parametrize(("on", "seen"), [(0, [0, 199, 199, 199, 199]), (1, [0, 199, 199, 189, 199])])
def test_forgets_when_it_leaves_the_stable_tree(on: int, seen: list[int]) -> None:
    """ksm-scan S20, ksm-merge M2: ten pages are rewritten with the content that they had."""
    rewrite = {"after": {"full_scan": 3}, "op": "write", "page": 0, "count": 10, "key": 7}
    assert sharing(on, rewrite)[:5] == seen


@pytest.mark.parametrize(("on", "passes"), [(0, 9), (1, 2)])
def test_is_not_skipped_while_attached(on: int, passes: int) -> None:
    """ksm-scan S25: pages are merged when they are old, and rewritten with the same content."""
    late = {"after": {"full_scan": 9}, "op": "write", "page": 0, "count": 200, "key": 7}
    apart = {"after": {"full_scan": 24}, "op": "write", "page": 0, "count": 10, "key": None}
    unique = {"pages": 200, "contents": [[100, 200, 1]]}
    seen = sharing(on, late, apart, process_list=[unique], smart_scan=1, horizon_batches=40)
    assert seen[23:26] == [199, 189, 199 if on else 189] and seen.index(199, 24) + 1 == 24 + passes


@pytest.mark.parametrize(("on", "merged"), [(0, 3), (1, 4)])
def test_forgets_a_merge_that_was_undone(on: int, merged: int) -> None:
    """ksm-merge M5b: of two small zero pages and one in a THP the small ones merge a pass later."""
    contents = [[0, 1, 0], [1000, 511, 1], [5000, 200, 1], [0, 1, 0], [6000, 311, 1], [0, 1, 0], [7000, 511, 1]]
    process = {"pages": 1536, "contents": contents, "thp": [[0, 512]]}
    seen = sharing(on, process_list=[process], pages_to_scan=3000)
    assert seen.index(1) + 1 == merged
