"""The uncertainty of a run's figures, and cost sets and observers that are handed to `simulate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmlab.engine.costs import CostSet, cost_set
from mmlab.engine.system import System
from mmlab.results.metrics import UNSURE
from mmlab.results.run import Run, simulate
from mmlab.results.uncertainty import cpu_errors, error_of, scale_costs
from mmlab.scenario import Scenario


@pytest.mark.parametrize(
    "setting",
    [
        {"horizon_seconds": 5.0, "pages_to_scan": 9000, "hz": 1000},
        {"horizon_full_scans": 6, "pages_to_scan": 9000, "hz": 1000},
        {"until_settled": True, "pages_to_scan": 9000, "hz": 1000},
        {"until_settled": True, "pages_to_scan": 9000, "sleep_millisecs": 0},
        {"horizon_seconds": 5.0, "use_zero_pages": 1, "pages_to_scan": 4000, "hz": 1000},
        {"horizon_seconds": 60.0, "pages_to_scan": 1000},  # most batches end before the next tick
        {"horizon_seconds": 20.0, "pages_to_scan": 5000},
        {"until_settled": True, "pages_to_scan": 3000, "variant": "ksm-opt-out"},
    ],
)
def test_standard_errors_are_what_dearer_steps_do(setting: dict[str, Any]) -> None:
    """Each metric moves by its standard error when all steps cost one relative standard error more, or less."""
    base = {
        "memory_mib": 128,
        "zero_fraction": 0.5,
        "duplicate_fraction": 0.5,
        "duplicate_groups": 500,
        "smart_scan": 0,
        "horizon_seconds": 0.0,
    }
    more = 0.08

    def at(times: float) -> Run:
        costs = CostSet(times * cost_set("epyc-6.18").ns, error=more)
        return simulate(Scenario(**{**base, **setting}), costs=costs)

    run, others = at(1.0), [at(1 + more), at(1 - more)]
    assert cpu_errors(run) == (pytest.approx(more), 0.0)
    assert {"ksmd_cpu_ms"} <= set(run.uncertainty) <= set(UNSURE)
    for name in UNSURE:
        value = getattr(run.metrics, name) or 0.0
        moved = max(abs((getattr(other.metrics, name) or 0.0) - value) for other in others)
        assert run.uncertainty.get(name, 0.0) == pytest.approx(moved, rel=0.3, abs=0.01 * value), name


def test_error_of_any_measure() -> None:
    """What is measured in the run with dearer steps is what its own formula says; the run itself stays as it is."""
    memory = {"memory_mib": 64, "zero_fraction": 0.5, "duplicate_fraction": 0.5, "duplicate_groups": 500}
    run = simulate(Scenario(**memory, pages_to_scan=500, horizon_seconds=0.0, until_settled=True))
    before = run.rows.tobytes(), run.machine.passes.tobytes()
    for name in ("settled_s", "merge_rate", "freed_rate", "ksmd_cpu_ms"):
        error = error_of(run, lambda run, name=name: getattr(run.metrics, name))
        assert error == pytest.approx(run.uncertainty[name], rel=0.05), name
    later = scale_costs(run)
    assert later.metrics.freed_mib == run.metrics.freed_mib
    assert later.page_map().tobytes() == run.page_map().tobytes()
    assert (later.rows["time_ns"] >= run.rows["time_ns"]).all()
    assert error_of(run, lambda run: None) == 0.0
    assert before == (run.rows.tobytes(), run.machine.passes.tobytes())


def test_no_uncertainty_without_costs() -> None:
    run = simulate(Scenario(memory_mib=4, costs="free", horizon_seconds=2.0))
    assert run.uncertainty == {}
    assert error_of(run, lambda run: float(run.rows["time_ns"][-1])) == 0.0
    assert "±" not in run.summary()


def test_summary_says_how_sure_it_is() -> None:
    run = simulate(Scenario(memory_mib=4, horizon_seconds=2.0))
    line = next(line for line in run.summary().splitlines() if line.startswith("ksmd_cpu_ms"))
    assert line.split() == [
        "ksmd_cpu_ms",
        f"{run.metrics.ksmd_cpu_ms:.2f}",
        "±",
        f"{run.uncertainty['ksmd_cpu_ms']:.2f}",
        "ms",
    ]


def test_a_cost_set_that_is_handed_in_takes_the_place_of_the_scenarios() -> None:
    asked = Scenario(memory_mib=4, horizon_full_scans=3)
    twice = CostSet(2.0 * cost_set("epyc-6.18").table)
    plain, dear = simulate(asked), simulate(asked, costs=twice)
    assert (dear.costs.ns == twice.ns).all() and (plain.costs.ns == cost_set(asked.costs).ns).all()
    assert dear.rows["ksmd_cpu_ns"][-1] == 2 * plain.rows["ksmd_cpu_ns"][-1]
    assert (dear.rows["pages_scanned"] == plain.rows["pages_scanned"]).all()


def test_an_observer_sees_every_sample_and_changes_nothing() -> None:
    events = [{"after": {"batch": 3}, "op": "write", "page": 5, "count": 9, "key": 77}]
    asked = Scenario(memory_mib=4, horizon_batches=40, khugepaged=1, events=events)  # type: ignore[arg-type]
    seen: list[np.ndarray] = []

    def observe(system: System) -> None:
        seen.append(system.m.stat.copy())

    run = simulate(asked, observe=observe)
    assert (np.concatenate(seen) == run.rows).all()
    assert run.rows.tobytes() == simulate(asked).rows.tobytes()
