"""khugepaged and MADV_COLLAPSE: what newer kernels changed, and collapses to sizes below that of a THP."""

from __future__ import annotations

from typing import Any

import pytest

from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.results.run import Run


def run(*events: dict[str, Any], pages: int = 1536, thp: bool = False, **fields: Any) -> Run:
    """Run events on one process of unique pages, all before ksmd starts; each must succeed."""
    process = {"pages": pages, "contents": [[1, pages, 1]], "thp": [[0, pages]] if thp else [], "mergeable": []}
    done = [{"after": {"batch": 0}} | event for event in events]
    defaults = {"kernel": "7.3", "stepped": True, "run": 0, "horizon_batches": 1, "horizon_seconds": 0}
    result = simulate(Scenario(**{**defaults, "process_list": [process], "events": done, **fields}))
    assert result.results == [0] * len(done)
    return result


def part(op: str, page: int, end: int, **fields: Any) -> dict[str, Any]:
    return {"op": op, "page": page, "count": end - page} | fields


HOLES = [part("dontneed", page, page + 9) for page in range(513, 1024, 10)]
HOLES = [hole | {"count": min(hole["count"], 1024 - hole["page"])} for hole in HOLES]
BLOCKS = (*HOLES, part("dontneed", 1064, 1224), part("dontneed", 1225, 1536), part("hugepage", 0, 1536))
"""512 pages; every 10th page; pages 0 to 39 and 200."""
SCAN = {"op": "khugepaged", "full_scans": 1}


@pytest.mark.parametrize(
    ("enabled", "max_ptes_none", "folios", "rss_kb", "collapsed"),
    [
        ({64: "always", 2048: "never"}, 511, {64: 68}, 4352, 3),
        ({64: "always", 2048: "never"}, 100, {64: 34}, 2420, 2),
        ({64: "always", 2048: "never"}, 0, {64: 34}, 2420, 2),
        ({16: "inherit", 64: "madvise", 2048: "never"}, 100, {64: 34, 16: 2}, 2420, 2),
        ({64: "always"}, 511, {2048: 3}, 6144, 3),
        ({64: "always"}, 100, {2048: 1, 64: 2}, 2420, 2),
    ],
)
def test_collapse_to_sizes(
    enabled: dict[int, str], max_ptes_none: int, folios: dict[int, int], rss_kb: int, collapsed: int
) -> None:
    """mthp E2, as measured on 7.3.4."""
    done = run(*BLOCKS, SCAN, hugepages_enabled=enabled, max_ptes_none=max_ptes_none)
    columns = done.columns()
    after = done.event_rows[-1]
    assert after is not None and columns["rss_kb"][after - 1] == 2420 and columns["rss_kb"][after] == rss_kb
    born = {kb: columns[f"mthp_{kb}kB_nr_anon"][-1] for kb in (16, 32, 64, 128, 256, 512, 1024, 2048)}
    assert {kb: n for kb, n in born.items() if n} == folios
    assert columns["pages_collapsed"][-1] == collapsed and not columns["thp_scan_exceed_none_pte"][-1]
    assert columns["deferred_queue_len"][-1] == folios.get(2048, 0)  # E5


@pytest.mark.parametrize("on", [0, 1])
def test_only_newer_kernels_collapse_to_sizes(on: int) -> None:
    """mthp E2: the row collapse_to_sizes, and the folio that each pass allocates in vain."""
    fields = {"hugepages_enabled": {64: "always", 2048: "never"}, "kernel_changes": {"collapse_to_sizes": on}}
    done = run(*BLOCKS, SCAN, SCAN, SCAN, **fields)
    assert done.columns()["mthp_64kB_nr_anon"][-1] == 68 * on
    assert done.columns()["mthp_64kB_collapse_alloc"][done.event_rows[-3:]].tolist() == [68 * on, 136 * on, 204 * on]
    assert done.columns()["khugepaged_full_scans"][-1] == 3 * on  # without a size for it khugepaged does not run


def test_no_shared_and_no_swapped_page_below_a_thp() -> None:
    """mthp E2, khugepaged K4: the counters of each size."""
    enabled = {16: "always", 64: "always", 2048: "never"}
    events = part("hugepage", 0, 512), part("pageout", 4, 5), {"op": "fork"}, part("write", 64, 512, key=None), SCAN
    columns = run(*events, pages=512, swap_mib=8, hugepages_enabled=enabled).columns()
    # of the parent pages 64 to 511 are its own; 0 to 63 are shared with the child, except page 4, which is swapped out
    assert columns["mthp_64kB_nr_anon"][-1] == 28
    found = {
        kb: [columns[f"mthp_{kb}kB_collapse_exceed_{what}_pte"][-1] for what in ("none", "swap", "shared")]
        for kb in (16, 64)
    }
    assert found == {64: [0, 1, 3], 16: [0, 1, 15]}
    armed = (*BLOCKS, part("uffd", 0, 1536, value=1), SCAN)
    columns = run(*armed, hugepages_enabled={64: "always", 2048: "never"}).columns()
    assert columns["mthp_64kB_nr_anon"][-1] == 34 and columns["mthp_64kB_collapse_exceed_none_pte"][-1] == 34


@pytest.mark.parametrize(("on", "folios"), [(0, {}), (1, {16: 1, 64: 1})])
def test_fault_takes_the_largest_size_that_fits(on: int, folios: dict[int, int]) -> None:
    """mthp E2: the example there, and the row faults_take_sizes."""
    events = part("dontneed", 0, 2), part("dontneed", 3, 512), part("hugepage", 0, 512)
    writes = [part("write", page, page + 1, key=7) for page in (5, 1, 20)]
    fields = {"hugepages_enabled": {16: "always", 64: "always"}, "kernel_changes": {"faults_take_sizes": on}}
    done = run(*events, *writes, pages=512, **fields)
    columns = done.columns()
    assert {kb: 1 for kb in (16, 64) if columns[f"mthp_{kb}kB_anon_fault_alloc"][-1]} == folios
    expected = "NAANhhhhNNNNNNNNhhhhhhhhhhhhhhhhN" if on else "NAANNANNNNNNNNNNNNNNANNNNNNNNNNNN"
    assert done.page_map()[:33].tobytes().decode() == expected


def test_a_process_starts_with_enabled_sizes() -> None:
    """mthp E2: memory is populated by faults."""
    for kernel, sizes in (("7.3", 1), ("6.1", 0)):
        fields = {"hugepages_enabled": {32: "always", 2048: "never"}, "kernel": kernel}
        columns = run(pages=100, thp=True, **fields).columns()
        assert columns["mthp_32kB_nr_anon"][0] == 12 * sizes and columns["anonhugepages_kb"][0] == 0


@pytest.mark.parametrize("on", [0, 1])
def test_huge_memory_is_nearly_free_to_scan(on: int) -> None:
    """khugepaged K1, the row scan_counts_entries: with 600 pages to scan and 24 huge ranges every wake-up is a scan."""
    knob = {"op": "set", "knob": "khugepaged", "value": 1}, {"op": "sleep", "millisecs": 100}
    fields = {"khugepaged": 1, "khugepaged_scan_sleep_millisecs": 10**9, "khugepaged_pages_to_scan": 600}
    changes = {"kernel_changes": {"scan_counts_entries": on}}
    done = run(*knob * 12, pages=24 * 512, thp=True, **fields, **changes)
    assert done.rows["khugepaged_full_scans"][-1] == (12 if on else 0)


@pytest.mark.parametrize("on", [0, 1])
def test_lazy_pages_keep_khugepaged_away(on: int) -> None:
    """khugepaged K4, the row collapse_skips_lazyfree; MADV_COLLAPSE does not mind."""
    lazy = part("hugepage", 0, 512), part("free", 9, 10)
    changes = {"pages": 512, "kernel_changes": {"collapse_skips_lazyfree": on}}
    assert run(*lazy, SCAN, **changes).rows["huge_pmds"][-1] == 1 - on
    assert run(*lazy, part("write", 9, 10, key=3), SCAN, **changes).rows["huge_pmds"][-1] == 1
    assert run(*lazy, part("collapse", 0, 512), **changes).rows["huge_pmds"][-1] == 1


@pytest.mark.parametrize("on", [0, 1])
def test_collapse_of_a_part_of_a_block(on: int) -> None:
    """khugepaged K11, the row part_of_block_is_done."""
    process = {"pages": 512, "contents": [[1, 512, 1]], "thp": [[0, 512]], "mergeable": []}
    event = part("collapse", 3, 9, after={"batch": 0})
    fields = {"kernel": "7.3", "run": 0, "horizon_batches": 1, "stepped": True}
    changes = {"kernel_changes": {"part_of_block_is_done": on}}
    done = simulate(Scenario(process_list=[process], events=[event], **fields, **changes))
    assert done.results == [0 if on else 22]


def test_a_size_without_a_folio() -> None:
    with pytest.raises(UserError, match="nearest: 32 and 64") as error:
        Scenario(hugepages_enabled={48: "always"})
    assert (error.value.parameter, error.value.value) == ("hugepages_enabled", 48)
    assert "16, 32, 64, 128, 256, 512, 1024, 2048" in error.value.allowed
    with pytest.raises(UserError, match="hugepages_enabled"):
        Scenario(hugepages_enabled={64: "sometimes"})
    with pytest.raises(UserError, match=r"one of 16, 32, 2048"):
        Scenario(hugepages_enabled={64: "always"}, pages_per_thp=8, memory_mib=2)
