"""mmlab fleet: hosts are drawn by their ranges, totals and errors are by the formulas, and small stands for large."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlab import Scenario, cli, simulate
from mmlab.engine.costs import STEPS
from mmlab.errors import UserError
from mmlab.params import params_files
from mmlab.studies.fleet import UNITS, Host, Plan, fleet, host_rows, shrunk
from mmlab.studies.goals import Reference

SMALL = {"memory_mib": 4, "zero_fraction": 0.5, "pages_to_scan": 500, "horizon_seconds": 3.0}
VARIED = {**SMALL, "zero_fraction": {"low": 0.2, "high": 0.8}, "key_order": "random"}
MIX = {
    "hosts": 1000,
    "samples": 4,
    "seed": 5,
    "variants": ["mainline", "ksm-opt-out"],
    "mix": [{"name": "a", "weight": 3, **VARIED}, {"name": "b", "thp_coverage": 0.0, **SMALL}],
}


def scenarios(plan: Plan) -> list[Scenario]:
    return [host.scenario for hosts in plan.sampled.values() for host in hosts]


def test_hosts_are_drawn_by_their_ranges() -> None:
    mix = {
        "name": "k",
        "memory_mib": {"low": 4, "high": 9},
        "zero_fraction": {"low": 0.2, "high": 0.4},
        "pages_to_scan": {"low": 10, "high": 10_000, "log": True},
        "layout": ["random", "bimodal"],
    }
    plan = Plan(hosts=1000, samples=40, mix=[mix])
    drawn = scenarios(plan)
    assert {s.memory_mib for s in drawn} == {4, 6, 8}
    zero = sorted(s.zero_fraction for s in drawn)
    assert 0.2 <= zero[0] < 0.205
    assert 0.395 < zero[-1] <= 0.4
    budgets = [s.pages_to_scan for s in drawn]
    assert 10 <= min(budgets) < 20
    assert 5000 < max(budgets) <= 10_000
    assert sum(b < 316 for b in budgets) == pytest.approx(20, abs=1), "equal chances of equal factors"
    assert sum(s.layout == "random" for s in drawn) == 20
    assert len({s.seed for s in drawn}) == 40
    assert scenarios(Plan(hosts=1000, samples=40, mix=[mix])) == drawn
    assert scenarios(Plan(hosts=1000, samples=40, seed=1, mix=[mix])) != drawn


def test_totals_errors_and_quantiles() -> None:
    """By hand, from runs of the hosts."""
    estimate = fleet(MIX)
    counts = {"a": 750.0, "b": 250.0}
    assert estimate.plan.of_kind() == counts
    saved: dict[tuple[str, str], list[float]] = {}
    for host in (host for hosts in estimate.plan.sampled.values() for host in hosts):
        off = int(Reference.of(host.scenario).rows["frames"][-1])
        for variant in MIX["variants"]:
            run = simulate(host.scenario, variant=variant)
            saved.setdefault((variant, host.name), []).append((off - int(run.rows["frames"][-1])) / 2**28)
    totals = estimate.totals().set_index(["variant", "measure"])
    for variant in MIX["variants"]:
        row = totals.loc[variant, "saved"]
        assert row["total"] == pytest.approx(sum(n * np.mean(saved[variant, kind]) for kind, n in counts.items()))
        parts = (n**2 * np.var(saved[variant, k], ddof=1) / 4 * (1 - 4 / n) for k, n in counts.items())
        assert row["error"] == pytest.approx(math.sqrt(sum(parts)))
        single = [1024 * v for kind in counts for v in saved[variant, kind]]
        assert min(single) <= row["p5"] <= row["median"] <= row["p95"] <= max(single)
    both = {kind: np.subtract(saved["ksm-opt-out", kind], saved["mainline", kind]) for kind in counts}
    gap = estimate.differences().set_index("measure").loc["saved"]
    assert gap["total"] == pytest.approx(sum(n * both[kind].mean() for kind, n in counts.items()))
    assert gap["error"] == pytest.approx(
        math.sqrt(sum(n**2 * both[k].var(ddof=1) / 4 * (1 - 4 / n) for k, n in counts.items()))
    )
    table = estimate.hosts
    assert table["stands_for"].sum() == pytest.approx(2 * 1000)
    assert set(UNITS.index) <= set(table)
    text = estimate.text()
    assert "1,000 hosts, 4 simulated of each kind, seed 5" in text
    assert "Differences from mainline" in text
    assert "times smaller" not in text


def test_all_hosts_of_a_kind_have_no_error() -> None:
    """A fleet of as many hosts as are simulated is known, but for what steps cost."""
    estimate = fleet({"hosts": 4, "samples": 4, "mix": [VARIED]})
    assert (estimate.totals()["error"] == 0).all()


def test_the_error_is_what_repeated_samples_scatter_by() -> None:
    def total(seed: int) -> tuple[float, float]:
        rows = fleet({"hosts": 10**6, "samples": 6, "seed": seed, "mix": [{**SMALL, "layout": "random"}]}).totals()
        row = rows.set_index("measure").loc["ksmd_cpu"]
        return float(row["total"]), float(row["error"])

    found = [total(seed) for seed in range(12)]
    scatter = np.std([total for total, _ in found], ddof=1)
    said = math.sqrt(np.mean([error**2 for _, error in found]))
    assert 0.4 * said < scatter < 2.2 * said


def test_jobs_do_not_matter() -> None:
    assert fleet(MIX, jobs=2).hosts.equals(fleet(MIX).hosts)


@pytest.mark.parametrize("name", ["use_zero_pages", "layout"])
def test_a_smaller_host_stands_for_a_larger(name: str) -> None:
    """512 MiB and a 16th of it: what is saved and lost within 10 %, ksmd's CPU within 15 %, at 30 % of a CPU."""
    changes: dict[str, Any] = {"use_zero_pages": {"use_zero_pages": 1}, "layout": {"layout": "random"}}[name]
    host = Scenario(
        **{
            "memory_mib": 256,
            "processes": 2,
            "zero_fraction": 0.4,
            "duplicate_fraction": 0.3,
            "duplicate_groups": 8000,
            "key_order": "random",
            "layout": "bimodal",
            "pages_to_scan": 2000,
            "migration_rate": 8.0,
            "horizon_seconds": 12.0,
            "sample_limit": 100,
            **changes,
        }
    )
    large = host_rows(Host("", host), ["v1-series"])[0]
    scenario, factor, batches = shrunk(host, 512, 32)
    assert factor == 16
    assert scenario.total_pages * 16 == host.total_pages
    assert batches == factor * scenario.pages_to_scan / host.pages_to_scan
    assert (scenario.migration_rate, scenario.duplicate_groups) == (0.5, 500)
    slower = scenario.khugepaged_scan_sleep_millisecs / scenario.khugepaged_pages_to_scan
    usual = host.khugepaged_scan_sleep_millisecs / host.khugepaged_pages_to_scan
    assert slower == pytest.approx(16 * usual, rel=0.01)
    small = host_rows(Host("", scenario, factor, batches), ["v1-series"])[0]
    assert large["ksmd_cpu"] > 0.2
    assert small["ksmd_cpu"] == pytest.approx(large["ksmd_cpu"], rel=0.15)
    for measure in ("memory", "saved", "thps_lost"):
        assert small[measure] == pytest.approx(large[measure], rel=0.1)


def test_a_host_is_simulated_at_its_own_costs() -> None:
    """With factor 1 the run is any other; with 8 each visit costs eight times as much, a full scan's end once."""
    scenario = Scenario(**SMALL, horizon_full_scans=2)
    assert Host("", scenario).simulate("mainline").rows.tobytes() == simulate(scenario).rows.tobytes()
    plain, scaled = Host("", scenario).simulate("mainline"), Host("", scenario, 8.0, 2.0).simulate("mainline")
    times = scaled.machine.costs / np.maximum(1, plain.machine.costs)
    steps = list(STEPS)
    assert times[steps.index("visit")] == pytest.approx(8, rel=0.01)
    assert times[steps.index("wake_up")] == pytest.approx(2, rel=0.01)
    assert times[steps.index("end_of_pass")] == 1
    assert times[steps.index("dup_walk")] == 64, "eight times as many walks of chains eight times as long"
    assert times[steps.index("tree_level")] == pytest.approx(8 * 13 / 10, rel=0.01), "2^10 pages stand for 2^13"


def test_sizes() -> None:
    plan = Plan(hosts=10, mix=[{**SMALL, "memory_gib": 0.25, "processes": 2}])
    ((host, *_),) = plan.sampled.values()
    assert (host.scenario.memory_mib, host.factor) == (128, 1)
    plan = Plan(hosts=10, simulate_mib=16, mix=[{**SMALL, "memory_gib": 0.25, "processes": 2}])
    ((host, *_),) = plan.sampled.values()
    assert (host.scenario.memory_mib, host.factor) == (8, 16)
    text = fleet(plan).text()
    assert re.search(r"kind 1 +10 +0.25 +0.01562 +3\n", text)
    assert "up to 16 times smaller" in text


def mixed(**changes: object) -> dict[str, Any]:
    return {"hosts": 9, "mix": [{**SMALL, **changes}]}


@pytest.mark.parametrize(
    ("values", "where", "parameter", "value"),
    [
        ({"hosts": 1}, "", "mix", None),
        ({"hosts": 1, "mix": []}, "", "mix", []),
        ({"hosts": 1, "mix": ["bimodal"]}, "", "mix 0", "bimodal"),
        ({"mix": [SMALL]}, "", "hosts", None),
        ({**mixed(), "hosts": 0}, "", "hosts", 0),
        ({**mixed(), "samples": 1}, "", "samples", 1),
        ({**mixed(), "variants": ["nobody"]}, "", "variant", "nobody"),
        ({**mixed(), "sample": 3}, "", "key", "sample"),
        (mixed(weight=0), "mix kind 1", "weight", 0),
        (mixed(memory_gib="large"), "mix kind 1", "memory_gib int", "large"),
        (mixed(pages=3), "mix kind 1: base", "key", "pages"),
        (mixed(params="bimodall"), "mix bimodall", "params file", "bimodall"),
        ({"hosts": 9, "mix": [SMALL, {**SMALL, "name": "kind 1"}]}, "", "mix", "kind 1"),
        (mixed(seed={"low": 3}), "mix kind 1: vary: seed", "high", None),
        (
            mixed(hot_period_seconds={"low": 0, "high": 3, "log": True}),
            "mix kind 1: vary: hot_period_seconds",
            "low",
            0,
        ),
        (mixed(zero_fraction={"low": 0.5, "high": 1.5}), "mix kind 1: vary", "zero_fraction", 1.5),
        (mixed(horizon_seconds=0.0, until_settled=True), "mix kind 1", "horizon_seconds", 0),
        ({"simulate_mib": 2, **mixed(advisor_mode="scan-time")}, "mix kind 1", "simulate_mib", 2),
        ({"simulate_mib": 2, **mixed(processes=3)}, "mix kind 1", "simulate_mib", 2),
    ],
)
def test_mistakes(values: dict[str, Any], where: str, parameter: str, value: object) -> None:
    with pytest.raises(UserError) as found:
        fleet(values)
    error = found.value
    assert (error.where, error.parameter, error.value) == (where, parameter, value)


@pytest.mark.parametrize("name", sorted(params_files("fleets")))
def test_shipped_fleets(name: str) -> None:
    plan = Plan.load(name)
    assert plan.hosts == 100_000
    assert [len(hosts) for hosts in plan.sampled.values()] == [plan.samples] * len(plan.mix)
    head = params_files("fleets")[name].read_text(encoding="utf-8")
    assert re.match(r"# .+[.?]\n#\n", head)
    assert "\n# Watch: " in head
    assert f"`fleets/{name}.yaml`" in (params_files("fleets")[name].parents[1] / "README.md").read_text(
        encoding="utf-8"
    )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, table = tmp_path / "f.yaml", tmp_path / "t.csv"
    (tmp_path / "w.yaml").write_text("memory_mib: 4\nzero_fraction: 0.5\nhorizon_seconds: 2.0\n")
    file.write_text("hosts: 50\nmix:\n  - {params: w.yaml, zero_fraction: {low: 0.1, high: 0.9}}\n")

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        return (int(ended.value.code or 0), *capsys.readouterr())

    status, out, err = call("fleet", file, "--samples", 3, "--variant", "v1-series", "--table", table)
    assert (status, err) == (0, "")
    assert "50 hosts, 3 simulated of each kind" in out
    assert len(table.read_text().splitlines()) == 1 + 3
    status, _, err = call("fleet", "three_kind")
    assert status == 2
    assert "three_kinds" in err
