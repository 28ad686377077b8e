"""Memory that is born or dies while a scenario runs is neither lost nor freed (`mmlab.results.baseline`)."""

from __future__ import annotations

from typing import Any

import pytest

import randomscenario
from mmlab import Scenario, simulate
from mmlab.results import baseline
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.trace import scenario_of
from mmlab.results.uncertainty import error_of, scale_costs

ZEROES = {"memory_mib": 8, "zero_fraction": 0.75, "use_zero_pages": 1, "pages_to_scan": 2000}


def test_guests_that_boot_are_no_loss() -> None:
    """The issue's example: 192 MiB are born, nothing can be merged."""
    run = simulate(Scenario(processes=4, boot_interval_seconds=5, memory_mib=64))
    m = run.metrics
    assert run.rows["frames"][-1] - run.rows["frames"][0] == 192 * PAGES_PER_MIB
    assert (m.freed_mib, m.freed_rate, m.freed_unseen_pages) == (0, 0, 0)


def event(op: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"op": op, "after": {"seconds": seconds}, **more}


@pytest.mark.parametrize(
    ("changes", "freed_mib"),
    [
        ({}, 18),
        ({"boot_interval_seconds": 5.0}, 18),
        ({"balloon_fraction": 0.5, "balloon_seconds": 30.0}, 9),
        ({"process_list": [{"exits_at_seconds": 40.0}, {}, {"boots_at_seconds": 2.5}]}, 12),
        ({"events": [event("exit", 40.0, process=1)]}, 12),
        ({"events": [event("munmap", 40.0, page=0, count=1024)]}, 15),
        ({"events": [event("fork", 40.0)]}, 18),
        ({"events": [event("write", 40.0, page=0, count=100, key=5)]}, 18 - 1 / 256),
    ],
)
def test_what_ksm_gives_back_whatever_else_happens(changes: dict[str, Any], freed_mib: float) -> None:
    """Three quarters of what is there at the end, whenever it came and whatever went (pages written become one)."""
    run = simulate(Scenario(**ZEROES, processes=3, horizon_seconds=60.0).replace(**changes))
    assert run.metrics.freed_mib == freed_mib


def test_only_births_after_the_first_full_scan_count_in_the_rate() -> None:
    late = Scenario(**ZEROES, processes=2, boot_interval_seconds=20.0, horizon_seconds=60.0)
    run = simulate(late)
    first = run.machine.passes[0]["time_ns"] / 1e9
    assert first < 20
    before = simulate(late.replace(processes=1)).metrics
    at_first = before.freed_mib - before.freed_rate * (before.settled_s - first)  # what full scan 1 has freed
    seconds = run.metrics.settled_s - first
    assert run.metrics.freed_rate == pytest.approx((run.metrics.freed_mib - at_first) / seconds, abs=1e-6)


def test_costs_do_not_move_births() -> None:
    """A copy of the run with other costs is measured by the same baseline."""
    run = simulate(Scenario(**ZEROES, processes=3, boot_interval_seconds=5.0, horizon_seconds=15.0))
    assert error_of(run, lambda run: run.metrics.freed_mib) == 0
    assert scale_costs(run).kept is run.kept and run.kept
    assert run.uncertainty.get("freed_rate", 0.0) <= 0.02 * abs(run.metrics.freed_rate)


def test_no_second_run_without_births(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is merged, split, remapped, collapsed and written to: none of it is born or dies."""
    plain = Scenario(**ZEROES, pressure_rate=8, migration_rate=4, khugepaged=1, hot_fraction=0.1, horizon_seconds=30.0)
    run = simulate(plain)
    monkeypatch.setattr(baseline, "Clock", None)
    assert run.metrics.freed_mib == (run.rows["frames"][0] - run.rows["frames"][-1]) / PAGES_PER_MIB > 0
    with pytest.raises(TypeError):
        _ = simulate(plain.replace(lifetime_seconds=10.0)).metrics.freed_mib


def test_whatever_happens_nothing_is_freed_while_ksmd_visits_nothing() -> None:
    """Random scenarios with every event, stepped by batches that visit nothing, where no split remaps: what changes
    is born, dies or is swapped, and the baseline has all of it."""
    moved = 0
    for seed in range(60):
        s = scenario_of(randomscenario.scenario(seed))
        events = tuple(e for e in s.events if e.op not in ("set", "khugepaged"))
        run = simulate(s.replace(pages_to_scan=0, khugepaged=0, variant="legacy", events=events))
        moved += int(run.rows["frames"][0] != run.rows["frames"][-1])
        assert run.metrics.freed_mib == 0, seed
    assert moved > 20
