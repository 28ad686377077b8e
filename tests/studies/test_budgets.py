"""Budgets: the smallest that is in time, runs up to the goal, and the way from small memory to a host."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmlab import Goals, Scenario, simulate
from mmlab.studies.budgets import BUDGET, TIME, WORK, Guests, extrapolate, spared, work
from mmlab.variants import VARIANTS, SplitContext

SMALL = Scenario(memory_mib=8, zero_fraction=0.5, layout="bimodal", sleep_millisecs=20, variant="ksm-opt-out")


def goals(**changes: object) -> Goals:
    return Goals(workload=SMALL.replace(**changes), goals=["saved >= 90 %", "ksmd_cpu <= 20 %"], within=4.0)


@pytest.fixture(scope="module")
def guests() -> Guests:
    return Guests(goals())


def test_a_point_is_a_run_up_to_the_goal(guests: Guests) -> None:
    point = guests.at(500, "ksm-opt-out")
    run = simulate(guests.scenario.replace(pages_to_scan=500), variant="ksm-opt-out")
    saved = guests.reference.saved_mib(run)
    row = int(np.argmax(saved >= 0.9 * guests.reference.ideal / 256))
    assert point[TIME] == run.rows["time_ns"][row] / 1e9
    assert point["visits"] == run.rows["pages_scanned"][row]
    assert point["saved (MiB)"] == saved.max()
    assert np.isnan(guests.at(1, "mainline")[TIME]), "not reached"


def test_the_smallest_budget_in_time_and_the_largest_within_the_cpu_limit(guests: Guests) -> None:
    least, most = guests.least("ksm-opt-out"), guests.most("ksm-opt-out")
    before = guests.budgets[guests.budgets.index(least[BUDGET]) - 1]
    after = guests.budgets[guests.budgets.index(most[BUDGET]) + 1]
    assert least[TIME] <= 4 < guests.at(before, "ksm-opt-out")[TIME]
    assert most["ksmd CPU (%)"] <= 20 < guests.at(after, "ksm-opt-out")["ksmd CPU (%)"]
    answers = guests.answers(["ksm-opt-out"])
    assert answers.finding.startswith(f"Meets the goal: ksm-opt-out with {least[BUDGET]:,} to ")
    assert answers.table()["goal met"].tolist() == [True]


def test_groups_hold_every_variant_once(guests: Guests) -> None:
    groups = guests.groups()
    assert sorted(name for names in groups.values() for name in names) == sorted(VARIANTS)
    assert next(iter(groups)) == "ksm-opt-out", "the workload's variant goes first"
    assert "mainline" in groups


def test_studies_of_all_groups(guests: Guests) -> None:
    for study in (guests.savings(["ksm-opt-out", "mainline"]), guests.curves(["ksm-opt-out", "mainline"])):
        assert "ksm-opt-out" in study.finding
    savings = guests.savings(["mainline"]).table()
    assert savings["saved (MiB)"].item() > savings["shown by KSM (MiB)"].item()
    runs = {"once": simulate(guests.scenario.replace(pages_to_scan=500))}
    assert set(guests.over_time(runs).table()["who"].dropna()) == {"once"}


def test_spared_changes_the_splits_of_ksm_alone() -> None:
    ksm, other = (SplitContext(caller, True, True, True) for caller in ("ksm", "other"))
    assert (spared("mainline").predicate(ksm), spared("mainline").predicate(other)) == (False, True)


def test_extrapolation_is_exact_for_powers_and_measured_sizes() -> None:
    sizes = [(size, "a") for size in (8, 64)]
    table = pd.DataFrame([(8.0, 64.0, 1.0), (64.0, 4096.0, 1.0)], pd.MultiIndex.from_tuples(sizes), WORK)
    assert extrapolate(table, 512).loc["a"].tolist() == pytest.approx([512, 512**2, 1])
    assert extrapolate(table, 64).loc["a"].tolist() == pytest.approx([64, 4096, 1])


def test_work_in_three_sizes() -> None:
    table = work(goals(memory_mib=8), ["ksm-opt-out"])
    assert table.index.unique("memory (MiB)").tolist() == [2, 8, 16]
    assert table["visits"].is_monotonic_increasing
    assert table[TIME].notna().all()
