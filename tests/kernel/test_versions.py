"""Differences between kernel releases: the table, and the flags that compiled code asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import SHIPPED
from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.kernel import versions
from mmlab.kernel.state import EXCLUSIVE, machine
from mmlab.results import trace as traces

PACKAGE = Path(versions.__file__).parent.parent


@pytest.mark.parametrize("kernel", versions.SERIES)
def test_flags_of_a_release(kernel: str) -> None:
    found = versions.flags(kernel)
    assert found.keys() == versions.DIFFERENCES.keys() and set(found.values()) <= {0, 1}
    m = machine(8, 1, 2)
    for name, flag in found.items():
        m.state[0][name] = flag
    assert {name: m.state[0][name] for name in versions.DIFFERENCES} == found
    assert simulate(Scenario(kernel=kernel, memory_mib=2, horizon_seconds=0.1)).scenario.kernel == kernel


def test_a_series_is_its_newest_known_release() -> None:
    assert versions.release("6.18") == versions.release("6.18.44") == (6, 18, 44)
    assert versions.release("7.3") == (7, 3, 4) and versions.release("6.14") == (6, 14)
    assert versions.RELEASES.keys() <= {*versions.SERIES}
    assert [*versions.RELEASES] == sorted(versions.RELEASES, key=versions.release)


def test_a_release_between() -> None:
    assert versions.differing("6.12.1", "6.14") == ["wp_fault_allocates_thp", "dontneed_frees_page_table"]
    assert versions.differing("6.18.15", "6.18.44") == ["lazyfree_runs_are_alike", "lazy_pmd_goes_whole"]
    assert versions.differing("6.1", "6.8") == ["smart_scan_exists", "advisor_exists", "faults_take_sizes"]
    assert versions.flags("6.8") == versions.flags("6.12") | {"scan_looks_up_each_page": 1}


def test_a_row_may_end() -> None:
    row = versions.Difference("x", "y", (6, 11), "", "", until=((6, 12, 117), (6, 18, 44), (7, 3)))
    on = [
        kernel
        for kernel in "6.8 6.11 6.12.1 6.12 6.13 6.18.15 6.18 6.18.50 6.19 7.2 7.3 7.3.1".split()
        if row.holds(versions.release(kernel))
    ]
    assert on == "6.11 6.12.1 6.13 6.18.15 6.19 7.2".split()


@pytest.mark.parametrize("row", versions.DIFFERENCES.values(), ids=versions.DIFFERENCES)
def test_rows_are_complete_and_asked(row: versions.Difference) -> None:
    assert row.change.endswith(".") and row.source
    assert re.fullmatch(r"(ksm-scan|ksm-merge|thp-split|khugepaged|mthp) [A-Z]\d+", row.rule)
    sources = [path.read_text() for path in sorted((PACKAGE / "kernel").glob("*.py")) if path.stem != "versions"]
    assert any(re.search(rf'\.{row.name}\b|\["{row.name}"\]', source) for source in sources)


def test_a_release_is_compared_nowhere_else() -> None:
    for path in sorted([*PACKAGE.glob("kernel/*.py"), *PACKAGE.glob("engine/*.py")]):
        assert not re.search(r"\bkernel\W{1,3}(>=|<=?|==)\s*[\d(\"]", path.read_text()), path


@pytest.mark.parametrize(
    ("kernel", "near"),
    [
        ("5.10", "6.1 and 6.12"),
        ("6.0", "6.1 and 6.12"),
        ("6.20", "6.19 and 7.0"),
        ("7.4", "7.2 and 7.3"),
        ("6.18.x", "6.18 and 6.19"),
        ("6", ""),
        ("six", ""),
    ],
)
def test_other_kernels_are_refused(kernel: str, near: str) -> None:
    with pytest.raises(UserError, match=f"nearest are {near}.*between them differs") as error:
        Scenario(kernel=kernel)
    assert (error.value.parameter, error.value.value) == ("kernel", kernel)


@pytest.mark.parametrize("name", versions.DISTRIBUTIONS)
def test_distributions_have_the_rules_of_a_series(name: str) -> None:
    series, why, source = versions.DISTRIBUTIONS[name]
    assert series in versions.SERIES and why.endswith(".") and "." in source
    assert versions.flags(name) == versions.flags(series) and versions.release(name) == versions.release(series)
    run = simulate(Scenario(kernel=name, memory_mib=2, horizon_seconds=0.1))
    assert run.scenario.kernel == name
    assert Scenario(kernel=str(traces.from_run(run)["kernel"]).rpartition(" ")[2]).kernel == name, "as a trace names it"


def test_a_distribution_that_is_not_known() -> None:
    with pytest.raises(UserError, match=r"nearest are .*rhel9.*between them differs") as error:
        Scenario(kernel="rhel8")
    assert "pve9" in error.value.allowed


def test_names_are_unambiguous() -> None:
    """Nothing but a name, a series or a stable release fits the pattern that the scenario's schema has, too."""
    for wrong in ("pve8.1", "pve", "xrhel9", "6.18.44x", "6.18.", ""):
        assert not re.fullmatch(versions.PATTERN, wrong), wrong


SHOWN = {
    "smart_scan_exists": "test_versions.py::test_kernels_before_smart_scan_and_the_advisor",
    "advisor_exists": "test_versions.py::test_kernels_before_smart_scan_and_the_advisor",
    "wp_fault_allocates_thp": "k70-hzp-write",
    "dontneed_frees_page_table": "k618-live-dontneed-page-table",
    "lazyfree_goes_at_once": "k73-live-swap-free-cold",
    "lazyfree_runs_are_alike": "live618-lazy-runs",
    "large_folio_reused": "lazy-reuse-pte",
    "shared_is_exact": "k618-shared-exact",
    "lazy_pmd_goes_whole": "k618-live-swap-free-cold",
    "cut_thp_stays_mlocked": "k618-mlock-shrink",
    "shrinker_skips_mlocked": "k618-mlock-shrink",
    "collapse_goes_by_runs": "live618-collapse-runs",
    "collapse_needs_no_writable": "live618-swap-khugepaged",
    "mremap_moves_several": "live618-mremap-several",
    "faults_take_sizes": "test_khugepaged.py::test_fault_takes_the_largest_size_that_fits",
    "scan_counts_entries": "test_khugepaged.py::test_huge_memory_is_nearly_free_to_scan",
    "collapse_skips_lazyfree": "test_khugepaged.py::test_lazy_pages_keep_khugepaged_away",
    "part_of_block_is_done": "k73-collapse-parts",
    "collapse_to_sizes": "test_khugepaged.py::test_only_newer_kernels_collapse_to_sizes",
    "queue_per_node": "test_huge_memory.py::test_each_node_has_a_queue",
    "same_folio_is_old": "k73-stale-folio",
    "scan_looks_up_each_page": "test_ksm.py::test_holes_cost_time_only",
    "swapin_keeps_shared": "test_versions.py::test_swap_in_of_a_page_that_was_shared",
    "forget_age": "k73-cow-same-ss1",
}
"""What shows each row: a recording or, if it is known from the text only, a test that switches it."""


def answers(recorded: traces.Trace, row: str, on: int) -> tuple[object, ...]:
    predicted = traces.predict(recorded, overrides={"kernel_changes": {row: on}})
    return predicted["samples"], predicted["maps"], [event["result"] for event in predicted["scenario"]["events"]]


@pytest.mark.parametrize("row", versions.DIFFERENCES.values(), ids=versions.DIFFERENCES)
def test_a_row_is_shown(row: versions.Difference) -> None:
    """The recording is predicted otherwise when the row is switched."""
    file, _, test = SHOWN[row.name].partition("::")
    if test:
        assert f"def {test}(" in (Path(__file__).parent / file).read_text()
    else:
        assert not row.from_text_only
        recorded = traces.read(SHIPPED / f"{file}.json.gz")
        assert answers(recorded, row.name, 0) != answers(recorded, row.name, 1)


def test_one_row_is_switched() -> None:
    scenario = Scenario(kernel="6.12", kernel_changes={"wp_fault_allocates_thp": 1}, memory_mib=2, horizon_seconds=0.1)
    state = simulate(scenario).machine.state[0]
    on = [name for name in versions.DIFFERENCES if state[name]]
    assert on == ["smart_scan_exists", "advisor_exists", "wp_fault_allocates_thp", "faults_take_sizes"]
    with pytest.raises(UserError, match=r"Did you mean .*advisor_exists") as error:
        scenario.replace(kernel_changes={"advisor_exits": 1})
    assert error.value.parameter == "kernel_changes" and "collapse_needs_no_writable" in error.value.allowed


def test_kernels_before_smart_scan_and_the_advisor() -> None:
    """ksm-scan S25 and S29 on the kernels that have neither."""
    fields = {"memory_mib": 2, "horizon_full_scans": 9, "horizon_seconds": 0, "advisor_mode": "scan-time"}
    old, new = (simulate(Scenario(kernel=kernel, **fields)).rows[-1] for kernel in ("6.1", "6.12"))
    assert old["pages_skipped"] == 0 < new["pages_skipped"]
    assert old["pages_to_scan"] == 100 < 500 <= new["pages_to_scan"]


@pytest.mark.parametrize(("kernel", "exclusive"), [("7.2", True), ("7.3", False)])
def test_swap_in_of_a_page_that_was_shared(kernel: str, exclusive: bool) -> None:
    """thp-split W7: the page comes back to the last process that uses it; a write makes it exclusive at the latest."""
    page = {"page": 0, "count": 1, "process": 0}
    events = [{"op": "fork"}, {"op": "exit", "process": 1}, {"op": "pageout", **page}, {"op": "read", **page}]
    fields = {"process_list": [{"pages": 8, "contents": [[1, 8, 1]]}], "pages_per_thp": 8, "swap_mib": 1, "run": 0}
    for more, expected in ([], exclusive), ([{"op": "write", "key": 7, **page}], True):
        happens = [{"after": {"batch": 0}, **event} for event in events + more]
        run = simulate(Scenario(kernel=kernel, events=happens, horizon_batches=1, **fields))
        assert run.results == [0] * len(happens) and run.rows["pswpin"][-1] == 1
        assert bool(run.machine.pte["bits"][0] & EXCLUSIVE) == expected
