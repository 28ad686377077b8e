"""What steps cost in a scenario (spec/costs.md)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmlab import Scenario, UserError, simulate
from mmlab.engine.costs import ADDED, STEPS, CostSet, cost_set
from mmlab.results.run import Run
from mmlab.results.uncertainty import cpu_errors
from mmlab.spec import rules

AT = {step: i for i, step in enumerate(STEPS)}
COSTS = cost_set("epyc-6.18")
BASE = Scenario(
    memory_mib=4,
    processes=2,
    thp_coverage=0.5,
    zero_fraction=0.3,
    duplicate_fraction=0.5,
    duplicate_groups=40,
    pages_to_scan=300,
    horizon_seconds=0.0,
    horizon_batches=30,
)
TIMES = ("time_ns", "ksmd_cpu_ns")


def cpu_ns(run: Run) -> int:
    return int(run.rows["ksmd_cpu_ns"][-1])


def counters(run: Run) -> list[bytes]:
    return [run.rows[name].tobytes() for name in run.rows.dtype.names or () if name not in TIMES]


def test_without_the_fields_nothing_changes() -> None:
    assert (COSTS.of(BASE).ns == COSTS.ns).all() and (COSTS.of(BASE).covariance == COSTS.covariance).all()
    assert simulate(BASE).rows.tobytes() == simulate(BASE, costs=COSTS).rows.tobytes()


def test_merges_of_pages_whose_owner_runs() -> None:
    plain = simulate(BASE)
    merges = int(plain.machine.steps[AT["merge"]])
    assert merges > 100
    for share in (0.25, 1.0):
        run = simulate(BASE.replace(owner_running_fraction=share))
        ns = round((1 - share) * COSTS.ns[AT["merge"]] + share * COSTS.ns[AT["merge_running_owner"]])
        assert cpu_ns(run) - cpu_ns(plain) == merges * (ns - COSTS.table[AT["merge"]])
        assert counters(run) == counters(plain)


def test_pages_that_the_zeropage_replaces_pay_as_much() -> None:
    scenario = BASE.replace(zero_fraction=1.0, use_zero_pages=1, thp_coverage=0.0)
    plain, run = simulate(scenario), simulate(scenario.replace(owner_running_fraction=1.0))
    more = round(COSTS.ns[AT["merge_zero"]] + COSTS.ns[AT["merge_running_owner"]] - COSTS.ns[AT["merge"]])
    merges = int(plain.machine.steps[AT["merge_zero"]])
    assert merges > 1000
    assert cpu_ns(run) - cpu_ns(plain) == merges * (more - COSTS.table[AT["merge_zero"]])


def test_bytes_that_comparisons_read() -> None:
    plain, run = simulate(BASE), simulate(BASE.replace(equal_bytes=1000))
    more = 0
    for step in ("tree_level", "stable_level"):
        levels, ns = int(plain.machine.steps[AT[step]]), COSTS.ns[AT[step]]
        assert levels > 100
        more += levels * (round(ns + COSTS.ns[AT["compare_kib"]] * 1000 / 1024) - round(ns))
    assert cpu_ns(run) - cpu_ns(plain) == more > 10_000
    assert counters(run) == counters(plain)


def test_a_slower_cpu() -> None:
    whole = replace(COSTS, ns=np.rint(COSTS.ns))
    plain, run = simulate(BASE), simulate(BASE, costs=whole.of(BASE.replace(cost_factor=3.0)))
    assert cpu_ns(run) == 3 * cpu_ns(plain)
    assert counters(run) == counters(plain)
    slow = BASE.replace(cost_factor=3.0)
    assert simulate(slow).metrics.ksmd_cpu_ms == pytest.approx(3 * plain.metrics.ksmd_cpu_ms, rel=1e-3)
    free = replace(COSTS, error=0.0)
    assert cpu_errors(simulate(BASE, costs=free.of(slow)))[0] == pytest.approx(
        cpu_errors(simulate(BASE, costs=free))[0], rel=1e-3
    )


def test_uncertainty_follows_the_share() -> None:
    """Where all merges pay an estimate, its standard error is in ksmd's CPU time."""
    exact = CostSet(COSTS.ns, covariance=np.diag([float(step == "merge_running_owner") * 5000**2 for step in STEPS]))
    none, every = (simulate(BASE, costs=exact.of(BASE.replace(owner_running_fraction=share))) for share in (0.0, 1.0))
    assert cpu_errors(none)[0] == 0
    assert cpu_errors(every)[0] == pytest.approx(5000 * every.machine.steps[AT["merge"]] / cpu_ns(every), rel=0.01)


def test_the_documented_file(tmp_path: Path) -> None:
    text = (Path(rules.__file__).parent / "costs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    path = tmp_path / "my-host.yaml"
    path.write_text(example, encoding="utf-8")
    costs = cost_set(str(path))
    assert costs.ns[AT["merge_running_owner"]] == 7400 and costs.error == 0.2
    assert cpu_ns(simulate(BASE.replace(costs=str(path)))) > cpu_ns(simulate(BASE))
    fewer = yaml.safe_load(example)
    for step in ADDED:
        del fewer["ns"][step]
    path.write_text(yaml.safe_dump(fewer), encoding="utf-8")
    costs = cost_set(str(path))
    assert {*ADDED} <= {*costs.estimated}
    assert [costs.ns[AT[step]] for step in ADDED] == list((ADDED | {"stable_level": 256}).values())
    del fewer["ns"]["merge"]
    path.write_text(yaml.safe_dump(fewer), encoding="utf-8")
    with pytest.raises(UserError, match="merge"):
        cost_set(str(path))


@pytest.mark.parametrize(
    ("name", "value"), [("cost_factor", 0), ("owner_running_fraction", 1.1), ("equal_bytes", 4096)]
)
def test_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        Scenario(**{name: value})
