"""What two runs differ in: parameters in words, metrics with their difference, and who is better where it is clear."""

from __future__ import annotations

import re
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT
from mmlab import Scenario, simulate
from mmlab.results.metrics import METRICS, Metrics
from mmlab.studies import compare as differences

SMALL = Scenario(memory_mib=8, zero_fraction=0.75, pages_to_scan=100, horizon_seconds=10.0)


def runs_of(first: Scenario, second: Scenario) -> Any:
    """Stand-ins for two runs, which have not run."""
    return {"①": SimpleNamespace(scenario=first), "②": SimpleNamespace(scenario=second)}


def test_parameters_in_words() -> None:
    rich = Scenario.load(ROOT / "params" / "state_transitions.yaml")
    table = differences.changed(runs_of(SMALL, rich)).table()
    assert "name" not in table.index
    assert list(table.loc["sleep_millisecs"]) == ["ms", "20", "1000"]
    assert list(table.loc["horizon_seconds"]) == ["s", "10", "20"]
    assert list(table.loc["process_list"]) == ["", "none", "1 process"]
    assert table.loc["events", "①"] == "none"
    assert table.loc["events", "②"].startswith("4 × split, 2 × set run, 2 × unmergeable, mlock, munlock, ")
    for name in table.index:
        assert getattr(SMALL, name) != getattr(rich, name)
    assert differences.changed(runs_of(SMALL, SMALL.replace(name="other"))).table().empty


def test_the_same_task() -> None:
    assert differences.same_task(SMALL, SMALL.replace(variant="legacy", use_zero_pages=1, sample_limit=100, name="x"))
    for change in ({"memory_mib": 10}, {"seed": 1}, {"horizon_seconds": 11.0}, {"zero_fraction": 0.5}):
        assert not differences.same_task(SMALL, SMALL.replace(**change))


def test_metrics_and_who_is_better() -> None:
    one, other = SMALL.replace(use_zero_pages=1), SMALL.replace(use_zero_pages=1, variant="ksm-opt-out")
    runs = {"A": simulate(one), "B": simulate(other)}
    table = differences.metrics(runs)
    a, b = (run.metrics for run in runs.values())
    assert a.most_freed_per_budget > 1 >= b.most_freed_per_budget > 0
    for name, row in table.iterrows():
        assert row["unit"] == Metrics.describe()[name][0]
        for label, metrics in (("A", a), ("B", b)):
            value = getattr(metrics, name)
            assert row[label] == pytest.approx(nan if value is None else value, nan_ok=True)
        assert row["difference"] == pytest.approx(row["B"] - row["A"], nan_ok=True)
    left_out = set(Metrics.describe()) - set(table.index)
    assert left_out
    assert not any(getattr(metrics, name) for name in left_out for metrics in (a, b))
    assert table.loc["most_freed_per_budget", "better"] == "B"
    assert table.loc["freed_mib", "better"] == "equal"
    assert table.loc["merge_rate", "better"] == "", "a matter of what one wants"
    assert set(table["better"][[name for name in table.index if not METRICS[name].better]]) == {""}


def test_amounts_are_judged_only_for_the_same_task() -> None:
    one, other = simulate(SMALL), simulate(SMALL.replace(memory_mib=16))
    table = differences.metrics({"A": one, "B": other})
    assert table.loc["freed_mib", "difference"] != 0
    assert table.loc["freed_mib", "better"] == ""
    assert table.loc["ksmd_cpu_percent", "better"] != ""


def test_a_budget_that_is_kept_is_not_kept_better() -> None:
    runs = {"A": simulate(SMALL, variant="ksm-opt-out"), "B": simulate(SMALL.replace(run=0))}
    table = differences.metrics(runs)
    assert 0 < table.loc["most_freed_per_budget", "A"] <= 1
    assert table.loc["most_freed_per_budget", "B"] == 0
    assert table.loc["most_freed_per_budget", "better"] == "equal"


def test_studies_of_two_runs() -> None:
    one, other = SMALL.replace(use_zero_pages=1), SMALL.replace(use_zero_pages=1, variant="ksm-opt-out")
    runs = {"① a, mainline": simulate(one), "② b, ksm-opt-out": simulate(other)}
    a, b = (run.metrics for run in runs.values())
    changed = differences.changed(runs)
    assert changed.finding == "They differ in `variant`."
    assert changed.title == f"1 of {len(Scenario.model_fields)} parameters differ"
    assert "not judged" in differences.changed({"x": runs["① a, mainline"], "y": simulate(one.replace(seed=1))}).finding
    memory, freed = differences.memory(runs), f"{a.freed_mib:,.4g} ①, {b.freed_mib:,.4g} ②"
    assert memory.finding == f"In the end: given back (MiB): {freed}; THPs left: 0 ①, 0 ②."
    assert memory.plot() is not None
    assert differences.batches(runs).finding.startswith("Does not hold: a batch frees at most `pages_to_scan` pages (")
    assert differences.batches({"b": runs["② b, ksm-opt-out"]}).finding.startswith("Holds: ")
    assert differences.counters(runs).finding.startswith("Does not hold: KSM counts what is freed (")
    assert differences.counters({"b": runs["② b, ksm-opt-out"]}).finding.startswith("Holds: ")


def test_metrics_as_two_tables() -> None:
    one, other = SMALL.replace(use_zero_pages=1), SMALL.replace(use_zero_pages=1, variant="ksm-opt-out")
    runs = {"A": simulate(one), "B": simulate(other)}
    counts, amounts = (differences.judged(runs, whole=whole) for whole in (True, False))
    assert sorted([*counts.table().index, *amounts.table().index]) == sorted(differences.metrics(runs).index)
    assert "full_scans" in counts.table().index
    better = {label: re.search(rf"{label} in ([^.;]*)", amounts.finding)[1] for label in runs}  # type: ignore[index]
    wins = amounts.table()["better"]
    assert {label: names.split(", ") for label, names in better.items()} == {n: [*wins.index[wins == n]] for n in runs}
    assert "most_freed_per_budget" in better["B"]
    errors = amounts.errors.loc["ksmd_cpu_ms"]  # type: ignore[union-attr]
    assert errors["A"] == runs["A"].uncertainty["ksmd_cpu_ms"]
    assert errors["difference"] == pytest.approx((errors["A"] ** 2 + errors["B"] ** 2) ** 0.5)
