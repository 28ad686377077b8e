"""What is measured of ksmd's own splits, and where a variant is ten times as fast as mainline."""

from __future__ import annotations

import numpy as np
import pytest

from mmlab import Scenario, simulate
from mmlab.studies.measures import value
from mmlab.studies.runs import factors, tenfold

OWN = Scenario(memory_mib=16, zero_fraction=460 / 512, pages_to_scan=1000, until_settled=True)


def test_factors_are_of_the_rates() -> None:
    cases = {"as it is": {}, "no THPs": {"thp_coverage": 0.0}, "nothing to merge": {"zero_fraction": 0.0}}
    table = factors(OWN, "ksm-opt-out", cases, "case").table()
    theirs, ours = (simulate(OWN, variant=v).metrics for v in ("ksm-opt-out", "mainline"))
    first = table.loc["as it is"]
    assert first["ksm-opt-out: frames (MiB/s)"] == theirs.freed_rate
    assert first["mainline: KSM's counters (MiB/s)"] == ours.merge_rate == 0
    assert first["factor in frames"] == pytest.approx(theirs.freed_rate / ours.freed_rate)
    assert first["factor in KSM's counters"] == np.inf, "mainline's splits remap everything: no counter moves"
    assert table.loc["no THPs", "factor in frames"] == pytest.approx(1.0)
    assert table.loc["nothing to merge"].isna().sum() == 2, "0 / 0"


def test_where_it_is_tenfold() -> None:
    """mainline splits one THP in a full scan: the more THPs, the larger the factor."""
    cases = {mib: {"memory_mib": mib} for mib in (8, 16, 32, 64, 128)}
    study = tenfold(OWN, "ksm-opt-out", "memory (MiB)", cases, {"budget": {}, "none": {"thp_coverage": 0.0}}, "frames")
    (at,) = study.table()["tenfold at"]
    below, above = (factors(OWN, "ksm-opt-out", {0: {"memory_mib": m}}, "").table().iat[0, 2] for m in (32, 128))
    assert below < 10 < above
    assert 32 < at < 128
    assert f"{at:,.3g} (budget)" in study.finding
    assert tenfold(OWN, "legacy", "memory (MiB)", {2: {"memory_mib": 2}, 4: {}}, {"a": {}}, "frames").finding.endswith(
        "nowhere."
    )


def test_at_once() -> None:
    """After the first full scan mainline frees all zero-filled pages of each THP at the first of them."""
    run = simulate(OWN.replace(use_zero_pages=1, pages_to_scan=2048), variant="mainline")
    start = run.rows[run.rows["full_scans"] >= 1][0]
    done = run.rows[run.rows["frames"] <= start["frames"] - 0.99 * 8 * 460][0]
    assert value(run, "later.start") == start["time_ns"] / 1e9
    assert value(run, "later.mib") == run.metrics.freed_mib == 8 * 460 * 4 / 1024
    assert value(run, "later.batches") == done["batch"] - start["batch"] <= 2
    assert value(run, "later.seconds") == (done["time_ns"] - start["time_ns"]) / 1e9
    whole, scans = run.samples["time_s"].iloc[-1] - start["time_ns"] / 1e9, run.metrics.full_scans - 1
    assert value(run, "later.scan_mean") == pytest.approx(whole / scans)
    assert value(run, "thps_per_scan") == 8 / scans
    spent = run.metrics.ksmd_cpu_ms
    assert (value(run, "cpu_per_visit") or 0) * run.rows["pages_scanned"][-1] / 1000 == pytest.approx(spent)
    nothing = simulate(OWN.replace(run=0, horizon_seconds=0.2))
    assert [value(nothing, what) for what in ("later.start", "later.mib", "later.batches", "later.seconds")] == [
        None,
        0,
        0,
        0,
    ]
