"""Differences between kernel releases: the table, and the flags that compiled code asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.kernel import versions
from mmlab.kernel.state import machine

PACKAGE = Path(versions.__file__).parent.parent


@pytest.mark.parametrize(("kernel", "on"), [("6.1", 0), ("6.12", 0), ("6.12.117", 0), ("6.18", 1), ("6.18.44", 1)])
def test_flags_of_a_release(kernel: str, on: int) -> None:
    assert versions.flags(kernel) == dict.fromkeys(versions.DIFFERENCES, on)
    m = machine(8, 1, 2)
    for name, flag in versions.flags(kernel).items():
        m.state[0][name] = flag
    assert {m.state[0][name] for name in versions.DIFFERENCES} == {on}


def test_a_release_between() -> None:
    assert [name for name, flag in versions.flags("6.14").items() if flag] == [
        "wp_fault_allocates_thp",
        "dontneed_frees_page_table",
    ]


@pytest.mark.parametrize("row", versions.DIFFERENCES.values(), ids=versions.DIFFERENCES)
def test_rows_are_complete_and_asked(row: versions.Difference) -> None:
    assert row.change.endswith(".") and row.source
    assert re.fullmatch(r"(ksm-scan|ksm-merge|thp-split|khugepaged|mthp) [A-Z]\d+", row.rule)
    sources = [path.read_text() for path in sorted((PACKAGE / "kernel").glob("*.py")) if path.stem != "versions"]
    assert sum(f".{row.name}" in source for source in sources) >= 1


def test_a_release_is_compared_nowhere_else() -> None:
    for path in sorted([*PACKAGE.glob("kernel/*.py"), *PACKAGE.glob("engine/*.py")]):
        assert not re.search(r"\bkernel\W{1,3}(>=|<=?|==)\s*[\d(\"]", path.read_text()), path


@pytest.mark.parametrize("kernel", versions.RELEASES)
def test_known_releases_are_those_of_the_scenario(kernel: str) -> None:
    run = simulate(Scenario(kernel=kernel, memory_mib=2, horizon_seconds=0.1))
    assert run.machine.state[0]["collapse_needs_no_writable"] == versions.flags(kernel)["collapse_needs_no_writable"]


@pytest.mark.parametrize("kernel", ["6.0", "6.2", "6.19", "7.3", "6", "six"])
def test_other_releases_are_refused(kernel: str) -> None:
    with pytest.raises(UserError, match="kernel"):
        Scenario(kernel=kernel)
