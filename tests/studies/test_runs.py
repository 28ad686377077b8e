"""Studies of several runs: tables with errors, and lines of equal variants."""

from __future__ import annotations

import pandas as pd

from mmlab import Scenario, simulate
from mmlab.figures.notebook import tables_of
from mmlab.studies.measures import wasted
from mmlab.studies.runs import TIME, by_variant, group_equal, measured, over_time, timeline

SMALL = Scenario(memory_mib=4, zero_fraction=0.5, use_zero_pages=1, pages_to_scan=200, until_settled=True)
BOTH = ("mainline", "ksm-opt-out", "v1-mergeable")
COLUMNS = {"freed (MiB)": "freed_mib", "ksmd CPU (ms)": "ksmd_cpu_ms", "settled (s)": "settled_s"}


def test_a_row_a_run_and_a_column_a_measure() -> None:
    run = simulate(SMALL)
    study = measured(
        {("a", 1): run, ("b", 2): SMALL.replace(run=0, horizon_seconds=0.1)}, COLUMNS, "what", "n", title="T"
    )
    table = study.table()
    assert list(table.index.names) == ["what", "n"]
    assert table.loc[("a", 1)].to_dict() == {h: getattr(run.metrics, m) for h, m in COLUMNS.items()}
    assert pd.isna(table.loc[("b", 2), "settled (s)"])
    errors = pd.DataFrame(study.errors)
    assert list(errors) == ["ksmd CPU (ms)", "settled (s)"], "what is counted has none"
    assert errors.loc[("a", 1), "ksmd CPU (ms)"] == run.uncertainty["ksmd_cpu_ms"]
    assert study.title == "T"


def test_a_column_a_variant() -> None:
    cases = {n: {v: SMALL.replace(memory_mib=n, variant=v) for v in ("mainline", "legacy")} for n in (4, 2)}
    study = by_variant(cases, "zeropages_by_ksm", "memory (MiB)")
    assert study.table().to_dict("index") == {4: {"V0": 2.0, "V-1": 0.0}, 2: {"V0": 1.0, "V-1": 0.0}}
    assert list(study.table().index) == [4, 2], "in the order given"
    own = by_variant({"x": {"mine": SMALL}}, "ksmd_cpu_ms", "case")
    assert list(own.table()) == ["mine"]
    assert pd.DataFrame(own.errors).loc["x", "mine"] > 0


def test_equal_variants_share_a_line() -> None:
    runs = {v: simulate(SMALL, variant=v) for v in BOTH}
    table = over_time(runs, wasted, "zeroes (MiB)")
    assert list(table) == [TIME, "zeroes (MiB)", "variants"]
    assert list(table["variants"].unique()) == ["V0 mainline", "V2 V3 ksm-opt-out …"]
    assert group_equal({"a": [1, 2], "b": [1, 2], "c": [2, 1]}) == {"a …": ["a", "b"], "c": ["c"]}
    study = timeline({"one": runs, "two": {"mainline": runs["mainline"]}}, wasted, "zeroes (MiB)", until=1.0)
    figure = study.plot()
    assert figure is not None
    assert [ax.get_title("left") for ax in figure.axes] == ["one", "two"]
    assert figure.axes[0].get_xlim() == (0, 1.0)
    (drawn,) = tables_of(figure).values()
    assert len(drawn) == len(study.table()) == len(table) + len(runs["mainline"].rows)
