"""The running kernel beside the model: what is recorded, what takes its place, and what is found (notebook 11)."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import ROOT
from mmlab import Scenario, UserError
from mmlab.report.request import notebook_defaults
from mmlab.results import trace
from mmlab.results.run import simulate
from mmlab.studies.live import Found, exact, questions, recordings, regression
from mmlab.studies.parameters import scenario_from

NOTEBOOK = ROOT / "notebooks" / "11_live.ipynb"
SMALL = Scenario(memory_mib=4, zero_fraction=0.9, pages_to_scan=400, horizon_batches=9)


@pytest.fixture(scope="module")
def shipped() -> Found:
    return recordings(SMALL)[0]


def as_a_kernel(scenario: Scenario) -> trace.Trace:
    """Record a scenario on the model: ksmd's CPU time is a kernel's own."""
    one = trace.from_run(simulate(scenario.replace(kernel="6.18", sample_limit=10**8)))
    samples = [[*row, 10**6 * number] for number, row in enumerate(one["samples"])]
    return one | {"kernel": "6.18.44", "fields": [*one["fields"], "lab_ksmd_cpu_ns"], "samples": samples}


def test_what_ships_is_what_the_notebook_asks() -> None:
    """… unless its parameters are changed: both are the same scenario, on one kernel."""
    shipped, asked = recordings(SMALL)[0], questions(scenario_from(notebook_defaults(NOTEBOOK), {}))
    assert asked.keys() == shipped.keys()
    for at, scenario in asked.items():
        wanted = trace.from_run(simulate(scenario.replace(sample_limit=10**8)))["scenario"]
        recorded = shipped[at]["scenario"]
        for asks in (wanted, recorded):
            asks["events"] = [{n: v for n, v in e.items() if n not in ("result", "sample")} for e in asks["events"]]
            asks["knobs"].pop("sleep_millisecs", None)
        assert recorded == wanted | {"knobs": {name: wanted["knobs"][name] for name in recorded["knobs"]}}
        assert shipped[at]["kernel"] == "6.18.44"
        assert not shipped[at]["moved"], "recorded while nothing else ran"


def test_shipped_recordings_say_so(shipped: Found) -> None:
    assert recordings(SMALL)[1].startswith("**Shipped recordings**")

    def refused(_: Scenario) -> trace.Trace:
        raise UserError("recording needs root")

    found, words = recordings(SMALL, refused)
    assert found == shipped
    assert "this machine cannot record now: recording needs root." in words


def test_the_kernel_shows_both_regressions_and_neither(shipped: Found) -> None:
    found = exact(shipped)
    rows = found.table()
    assert (
        found.finding
        == "Linux 6.18.44, predicted exactly: 208 of 208 samples, in every counter, and 12 of 12 page maps"
    )
    assert (rows["samples"] == rows["samples exact"]).all()
    assert (rows["samples"] == rows["without locks"]).all(), "locked memory is as under legacy"
    over, shown = rows["most by a batch, over pages_to_scan"], rows["shown by KSM (MiB)"]
    assert over[1, "not locked"] > 8
    assert (over.drop((1, "not locked")) <= 1).all(), "the rate limit holds"
    assert (shown.xs("not locked", level=1) == 0).all()
    assert (shown.xs("locked", level=1) > 57).all()
    assert rows["freed (MiB)"][0, "not locked"] < 6, "the merge rate collapses …"
    cpu = rows["CPU (s)"][0]
    assert cpu["not locked"] > 0.75 * cpu["locked"], "… and ksmd is as busy"


@pytest.mark.parametrize("switch", [1, 0])
def test_points_lie_on_lines(switch: int, shipped: Found) -> None:
    found = regression(shipped, exact(shipped).data, switch)
    assert found.finding.startswith(f"use_zero_pages={switch}: not locked, KSM shows 0 of ")
    figure = found.plot()
    assert figure
    above, below = figure.axes[:2], figure.axes[2:]
    assert all((line.get_ydata() == 0).all() for ax in below for line in ax.lines)
    assert [line.get_label() for line in above[0].lines] == [
        "mmlab, mainline",
        "Linux 6.18.44, not locked",
        "mmlab, legacy",
        "Linux 6.18.44, locked",
    ]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in below] == [("batch", "diff. MiB")] * 2


def test_a_kernel_that_differs_is_told() -> None:
    """New recordings are those of the scenario that was asked; one counter that is off is named, and drawn."""
    asked: list[Scenario] = []

    def record(scenario: Scenario) -> Any:
        asked.append(scenario)
        return as_a_kernel(scenario)

    found, words = recordings(SMALL.replace(processes=2), record)
    assert words.startswith("**Recorded just now**")
    assert [len(scenario.events) for scenario in asked] == [2] * 4, "all memory of each process is locked, or none"
    assert exact(found).finding.startswith("Linux 6.18.44, predicted exactly: 48 of 48 samples")
    one = found[0, "locked"]
    one["samples"][-1][one["fields"].index("pages_sharing")] += 512
    off = exact(found)
    assert "47 of 48 samples" in off.finding
    assert "; batch 9.0: pages_sharing: recorded " in off.finding
    figure = regression(found, off.data, 0).plot()
    assert figure
    assert [max(abs(line.get_ydata())) for line in figure.axes[3].lines] == [0, 2]
