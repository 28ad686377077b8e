"""Maps of a plane, differences from the first variant, and Sobol indices."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.studies.grid import Grid
from mmlab.studies.sensitivity import VARIED, maps, plane, sobol_indices

BASE = Scenario(memory_mib=4, zero_fraction=0.9, horizon_seconds=0.0, horizon_full_scans=3)
VARY = {"variant": ["mainline", "ksm-opt-out"], "thp_coverage": [0.0, 1.0], "pages_to_scan": [200, 1000]}


def test_a_plane_holds_the_metric_and_its_difference(tmp_path: Path) -> None:
    rows = plane(Grid(base=BASE.changed(), vary=VARY), "freed_rate", str(tmp_path))
    assert rows.index.names == ["variant", "thp_coverage", "pages_to_scan"]
    run = simulate(BASE.replace(thp_coverage=1.0, pages_to_scan=200), variant="ksm-opt-out")
    first = simulate(BASE.replace(thp_coverage=1.0, pages_to_scan=200))
    row = rows.loc["ksm-opt-out", 1.0, 200]
    assert row["freed_rate"] == run.metrics.freed_rate
    assert row["difference"] == row["freed_rate"] - first.metrics.freed_rate != 0
    assert (rows.loc["mainline", ["difference", "doubt"]] == 0).all(axis=None)
    gaps = maps(rows, "difference")
    assert gaps.table().index.tolist() == ["ksm-opt-out"]
    assert gaps.table()[["fields with more", "with less", "alike"]].sum(axis=1).item() == 4
    assert maps(rows, "freed_rate").table()["highest"].max() == rows["freed_rate"].max()
    assert gaps.finding.startswith("Largest difference of freed_rate from mainline: ")


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="freed_rate"):
        plane(Grid(base=BASE.changed(), vary=VARY), "freed_rte")


def test_the_knob_that_does_most_has_the_largest_index() -> None:
    found = sobol_indices(BASE, ["mainline"], 8)
    table = found.table()["mainline"]
    assert table.index.tolist() == [*VARIED["knobs"]]
    assert table["memory_left_share"].idxmax() in ("zero_fraction", "duplicate_fraction")
    assert (table >= 0).all(axis=None)
    assert found.finding.startswith("Depends most under mainline: freed_rate on ")
