"""From one kernel to another: every difference has a scene that shows it, and only what moves a scenario is named."""

from __future__ import annotations

from functools import cache

import pytest

from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.kernel.versions import DIFFERENCES, SERIES, differing, flags, release
from mmlab.params import find_params, params_files
from mmlab.results.trace import load
from mmlab.studies.upgrade import REMAP, TIMES, Upgrade, on_another_kernel, upgrade

SHOWN = {
    "smart_scan_exists": {"pages_skipped": (0, 9344)},
    "advisor_exists": {"pages_to_scan": (100, 30_000)},  # the least CPU time, 10 %, asks for more than the target
    "wp_fault_allocates_thp": {"anon_pages": (513, 1024), "thp_fault_alloc": (0, 1), "thp_split_pmd": (1, 0)},
    "dontneed_frees_page_table": {"huge_pmds": (1, 2), "thp_fault_alloc": (0, 1)},
    "lazyfree_goes_at_once": {"anon_pages": (768, 1024), "thp_deferred_split_page": (1, 0)},
    "lazyfree_runs_are_alike": {"anon_pages": (1024, 768), "thp_deferred_split_page": (0, 1)},
    "large_folio_reused": {"frames": (1088, 1024), "thp_deferred_split_page": (1, 0)},
    "shared_is_exact": {"thp_split_page": (1, 0)},
    "lazy_pmd_goes_whole": {"thp_split_pmd": (1, 0)},
    "cut_thp_stays_mlocked": {"thp_split_page": (2, 1)},
    "shrinker_skips_mlocked": {"thp_underused_split_page": (2, 1), "huge_pmds": (0, 1)},
    "collapse_goes_by_runs": {"thp_deferred_split_page": (1, 0)},
    "collapse_needs_no_writable": {"huge_pmds": (0, 2), "failed events": (1, 0)},
    "mremap_moves_several": {"anon_pages": (984, 994), "failed events": (1, 0)},
    "faults_take_sizes": {"anon_pages": (1, 16)},
    "scan_counts_entries": {"huge_pmds": (127, 128), "khugepaged_full_scans": (0, 11)},
    "collapse_skips_lazyfree": {"pages_collapsed": (2, 1)},
    "part_of_block_is_done": {"failed events": (1, 0)},
    "collapse_to_sizes": {"anon_pages": (514, 544), "pages_collapsed": (0, 2)},  # 512 + 2 pages, or 512 + 2 folios
    "queue_per_node": {"thp_underused_split_page": (1, 2)},
    "same_folio_is_old": {"kernel_bugs": (0, 1)},
    "forget_age": {"pages_sharing": (199, 149), "changed_checksums": (1000, 1050)},
}
"""For each difference what its scene, params/upgrade/NAME.yaml, ends with: without it, and with it."""
UNSEEN = {"swapin_keeps_shared", "scan_looks_up_each_page"}
"""Differences that move no counter: whether an entry is exclusive shows in the page table only, and how ksmd looks for
pages in the time that it takes."""


@cache
def scene(name: str) -> Upgrade:
    """The scene of a difference on its kernel, without and with it."""
    asked = load(find_params(f"upgrade/{name}"))
    after = next(series for series in SERIES if release(series) >= DIFFERENCES[name].since)
    return upgrade(asked, asked.kernel, after)


def test_every_difference_has_a_scene() -> None:
    assert set(params_files("upgrade")) == set(SHOWN) == set(DIFFERENCES) - UNSEEN


@pytest.mark.parametrize("name", SHOWN)
def test_a_scene_shows_its_difference(name: str) -> None:
    """It is made for the last kernel without the difference, and nothing else that the next one has changes it."""
    found = scene(name)
    assert not flags(found.before)[name] and flags(found.after)[name]
    moved = found.moved()
    assert {counter: moved[f"with {name}"].get(counter) for counter in SHOWN[name]} == SHOWN[name]
    assert [label for label, changes in moved.items() if changes] == [f"with {name}", found.after]
    assert moved[found.after] == moved[f"with {name}"]
    counters = found.counters()
    assert f"`{name}` (" in counters.finding and "1 of " in counters.finding
    assert list(counters.table().index) == list(found.runs)
    assert counters.table()["counters that differ"].tolist().count(0) == len(found.runs) - 2


def test_rules_between_two_kernels() -> None:
    found = scene("forget_age")
    rules = found.rules()
    assert list(rules.table().index) == differing("7.2", "7.3") == [label[5:] for label in list(found.runs)[1:-1]]
    assert rules.finding == f"{len(found.runs) - 2} rules differ between 7.2 and 7.3."
    assert rules.table().loc["forget_age", "since"] == "7.3"
    marked = rules.table()["what changes"].str.endswith("(From the text only.)")
    assert marked.to_dict() == {name: DIFFERENCES[name].from_text_only for name in marked.index}


def test_nothing_moves_where_no_rule_is_met() -> None:
    found = upgrade(Scenario(memory_mib=4, zero_fraction=0.5, horizon_seconds=2.0), "6.12", "7.3")
    assert not any(found.moved().values())
    words = f"None of {len(found.runs) - 2} differences moves a counter here: 6.12 and 7.3 do the same."
    assert found.counters().finding == words
    assert list(found.ends) == ["① 6.12", "② 7.3"]


def test_differences_on_the_way_count() -> None:
    """After one more full scan the rewritten pages are merged again: the end is the same, the way is not."""
    asked = load(find_params("upgrade/forget_age")).replace(horizon_full_scans=7)
    moved = upgrade(asked, "7.2", "7.3").moved()["7.3"]
    assert moved["pages_sharing"] == (199, 199) and not set(moved) & set(TIMES)


def test_before_6_12_nothing_was_remapped() -> None:
    asked = Scenario(memory_mib=4, zero_fraction=0.5, use_zero_pages=1, pages_to_scan=1000, horizon_seconds=2.0)
    found = upgrade(asked, "pve8", "pve9")
    assert found.runs["pve8"].variant == "legacy" and found.runs["pve9"].variant == "mainline"
    moved = found.moved()
    assert moved[f"with {REMAP}"]["ksm_zero_pages"] == (512, 0) == moved["pve9"]["ksm_zero_pages"]
    assert "splits remap zero-filled pages since 6.12" in found.rules().finding
    assert "pve8 has the rules of 6.8; pve9 has the rules of 6.14" in found.rules().finding
    assert f"1 of {len(found.runs) - 2} differences moves counters here: `{REMAP}`" in found.counters().finding
    own = upgrade(asked.replace(variant="v1-series"), "6.8", "6.12")
    assert {run.variant for run in own.runs.values()} == {"v1-series"}


def test_what_the_scenario_switches_itself_stays() -> None:
    asked = load(find_params("upgrade/forget_age")).replace(kernel_changes={"forget_age": 1})
    found = upgrade(asked, "7.2", "7.3")
    assert "with forget_age" not in found.runs and not found.moved()["7.3"]


def test_paces() -> None:
    paces = scene("scan_counts_entries").paces()
    assert list(paces.table().index) == ["① 7.0", "② 7.1"]
    assert paces.table()["khugepaged's full scans"].tolist() == [0, 11]
    assert "khugepaged makes 0 → 11 full scans and collapses 0 → 30 blocks an hour" in paces.finding
    assert paces.finding.endswith("time to settle: never on both.")


def test_the_host_of_the_notebook_meets_several() -> None:
    found = upgrade(load(find_params("kernel_upgrade")), "6.12", "7.3")
    several = ["wp_fault_allocates_thp", "large_folio_reused", "scan_counts_entries", "forget_age"]
    assert [label for label, changes in found.moved().items() if changes] == [f"with {name}" for name in several] + [
        "7.3"
    ]
    assert f"4 of {len(found.runs) - 2} differences move counters here: `{several[0]}` (" in found.counters().finding


def test_kernels_as_numbers() -> None:
    assert list(upgrade(Scenario(memory_mib=2), 7.2, 7.3).ends) == ["① 7.2", "② 7.3"]


def test_unknown_kernels() -> None:
    with pytest.raises(UserError, match="nearest"):
        upgrade(Scenario(memory_mib=2), "6.12", "7.9")


def test_runs_on_another_kernel() -> None:
    """One run that the newer kernel leaves alone, and one that it changes."""
    asked = load(find_params("upgrade/forget_age"))
    runs = {"as it is": simulate(asked), "calm": simulate(Scenario(memory_mib=4, horizon_full_scans=3))}
    found = on_another_kernel(runs, "7.3")
    assert found.table()["counters that differ"].astype(bool).tolist() == [True, False]
    assert found.finding == (
        "On Linux 7.3, 1 of 2 runs do the same in every counter; the others differ, most often in `pages_sharing`."
    )
