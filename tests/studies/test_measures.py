"""Measures by their names, and that each is what its rows and counters say."""

from __future__ import annotations

import pytest

from mmlab import Run, Scenario, simulate
from mmlab.studies import measures
from mmlab.studies.measures import standard_error, value
from mmlab.studies.pingpong import measure
from mmlab.studies.scenes import BASE, SCENES

SMALL = Scenario(**{**BASE, "memory_mib": 8, "zero_fraction": 0.75})  # 4 THPs
ZEROES = 6.0
"""MiB of zero-filled pages."""


@pytest.fixture(scope="module")
def alone() -> Run:
    return simulate(SCENES["uzp1"](SMALL), variant="mainline")


def test_kinds_of_names(alone: Run) -> None:
    assert value(alone, "zeropages_by_ksm") == ZEROES, "counters of pages: MiB"
    assert value(alone, "zeropages_by_ksm zeropages_by_other") == ZEROES
    assert value(alone, "#thp_split_page") == 4, "a counter as it is"
    assert value(alone, "full_scans") == alone.metrics.full_scans, "a metric, although a counter has this name"
    assert value(alone, "most_freed_by_batch") == alone.metrics.most_freed_by_batch, "no counter has this name"
    assert value(alone, "loop.mean_mib") == measure(alone).mean_mib
    assert value(alone, lambda run: run.processes) == 1
    with pytest.raises(AttributeError, match="no metric 'freed_mb'"):
        value(alone, "freed_mb")


def test_standard_errors(alone: Run) -> None:
    assert standard_error(alone, "zeropages_by_ksm") == 0
    assert standard_error(alone, "ksmd_cpu_ms") == alone.uncertainty["ksmd_cpu_ms"] > 0
    assert standard_error(alone, "cpu_per_mib") > 0
    assert standard_error(alone, lambda _: None) == 0


def test_who_gave_back(alone: Run) -> None:
    """By ksmd's splits on mainline; page by page where these do not remap."""
    assert (value(alone, "kept"), value(alone, "page_by_page"), value(alone, "freed_unseen")) == (0, 0, ZEROES)
    other = simulate(SCENES["uzp1"](SMALL), variant="ksm-opt-out")
    assert (value(other, "kept"), value(other, "page_by_page"), value(other, "freed_unseen")) == (0, ZEROES, 0)
    gone = value(other, "gone_after")
    assert gone is not None
    assert 0.5 * ZEROES * gone < (value(other, "held") or 0) < ZEROES * gone
    assert value(other, "thps_per_mib") == pytest.approx(4 / ZEROES)


def test_who_splits() -> None:
    run = simulate(SCENES["mix"](SMALL), variant="mainline")
    parts = [value(run, what) for what in ("split_by_ksmd", "#thp_underused_split_page", "split_by_others")]
    assert sum(int(part or 0) for part in parts) == value(run, "#thp_split_page") == 4
    assert (value(run, "split_by_others") or 0) >= 1, "MADV_COLD of a part of one of the four"


def test_pace() -> None:
    """The advisor's pace in the second half; without it there is none to change."""
    steady = simulate(SMALL.replace(horizon_seconds=2.0))
    found = [value(steady, what) for what in ("pace.least", "pace.most", "pace.hunting", "pace.changes")]
    assert found == [100, 100, 1, 0]
    half = steady.samples[steady.samples["time_s"] >= steady.samples["time_s"].iloc[-1] / 2]
    spent = half["ksmd_cpu_ns"].iloc[-1] - half["ksmd_cpu_ns"].iloc[0]
    assert value(steady, "pace.busy") == pytest.approx(spent / 1e7 / (half["time_s"].iloc[-1] - half["time_s"].iloc[0]))
    hunted = simulate(SCENES["advisor"](SMALL).replace(memory_mib=64, horizon_seconds=12.0))
    low, high = value(hunted, "pace.least"), value(hunted, "pace.most")
    assert value(hunted, "pace.hunting") == pytest.approx((high or 0) / (low or 1))
    changes = (hunted.samples["pages_to_scan"].diff().abs() > 0)[hunted.samples["time_s"] > 6].sum()
    assert (value(hunted, "pace.changes") or 0) * 6 == pytest.approx(changes, abs=1)


def test_swing_leaves_out_the_first_quarter(alone: Run) -> None:
    late = measures.since(alone, 0.25)
    assert late["time_ns"][0] >= alone.rows["time_ns"][-1] // 4
    assert value(alone, "swing") == (late["frames"].max() - late["frames"].min()) / 256
