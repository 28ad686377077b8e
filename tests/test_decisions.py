"""Decisions as events: equal in both models, enough to recompute the counters, and kept as one asks.

By hand, other recordings than the shipped ones: ``python tests/test_decisions.py FOLDER…``, and the event streams of N
random scenarios: ``python tests/test_decisions.py N``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import randomscenario
import reference
from mmlab import Run, Scenario, UserError, simulate
from mmlab.kernel.decisions import Decision
from mmlab.results import trace
from mmlab.results.decisions import Events, described, fields
from mmlab.spec.rules import resolve

SCENARIOS = 25
RECORDINGS = trace.find()


def test_every_decision_is_described() -> None:
    """In the order of their numbers, each with a rule that exists and a sentence that can be told."""
    said = described()
    assert list(said["decisions"]) == [decision.name for decision in Decision]
    assert {row["event"] for row in said["decisions"].values()} == said["events"].keys()
    general = {"page", "count", "other", "process", "other_process", "full_scan"}
    for name, row in said["decisions"].items():
        assert resolve(row["rule"]), name
        assert {*re.findall(r"{(\w+)}", row["text"])} <= general | said["events"][row["event"]].get("fields", {}).keys()


# --- the two models ---------------------------------------------------------------------------------------------------


def check_models(seed: int) -> None:
    """Hold the events of both models against each other on one scenario."""
    asked = randomscenario.scenario(seed)
    rows = trace.rerun(asked, events=True)[0].log.rows()
    names = ("batch", "rank", "full_scan", "what", "process", "page", "count", "other_process", "other_page", "value")
    fast = list(zip(*(rows[name].tolist() for name in names), strict=True))
    slow = [
        (*d["where"][:3], Decision[d["where"][3]], d["where"][4], d["page"], d["count"], *d["other"], d["value"])
        for d in reference.predict(asked)["decisions"]
    ]
    differ = next((pair for pair in zip(fast, slow, strict=False) if pair[0] != pair[1]), None)
    assert differ is None and len(fast) == len(slow), f"seed {seed}: {differ}"


@pytest.mark.parametrize("seed", range(SCENARIOS))
def test_the_fast_model_decides_as_the_reference(seed: int) -> None:
    check_models(seed)


# --- counters from events ---------------------------------------------------------------------------------------------

PAGES = {
    "pages_scanned": {decision.name: 1 for decision in Decision if decision <= Decision.VISIT_BUG},
    "pages_skipped": {"SKIP": 1},
    "pages_shared": {"ATTACH_SHARED": 1, "LEAVE_SHARED": -1},
    "pages_sharing": {"ATTACH_SHARING": 1, "LEAVE_SHARING": -1, "REMOVE_RMAP_ITEM": -1},
    "ksm_zero_pages": {"VISIT_ZERO": 1, "ZERO_COPIED": 1, "ZERO_GONE": -1},
    "stable_node_chains": {"CHAIN_MADE": 1, "CHAIN_DISSOLVED": -1, "CHAIN_GONE": -1},
    "stable_node_dups": {"CHAIN_MADE": 1, "DUP_ADDED": 1, "DUP_REMOVED": -1, "CHAIN_DISSOLVED": -1},
    "cow_ksm": {"UNSHARE_WRITE": 1, "UNSHARE_BREAK": 1},
    "zeropages_by_ksm": {"REMAP": 1},
}
"""What each page of a decision adds to a counter; of the zeropages that splits map, to all three of their counters."""
ONCE = {
    "thp_split_page": "SPLIT",
    "thp_split_page_failed": "SPLIT_FAILED",
    "thp_split_pmd": "SPLIT_PMD",
    "thp_deferred_split_page": "QUEUE_PARTIAL",
    "thp_collapse_alloc": "COLLAPSE",
}
"""Decisions about a whole THP."""


def check_counters(path: Path) -> None:
    """Recompute the counters of every sample of a recording from the events alone."""
    run, predicted = trace.rerun(trace.read(path), events=True)
    rows, samples = run.log.rows(), {name: run.rows[name] for name in run.rows.dtype.names or ()}
    samples["zeropages_by_ksm"] = sum(samples[f"zeropages_by_{who}"] for who in ("ksm", "shrinker", "other"))
    first = np.searchsorted(_place(rows), _place(run.rows), side="right")

    def check(name: str, adds: np.ndarray) -> None:
        total = np.concatenate([[0], np.cumsum(adds)])[first]
        assert (total == samples[name] - samples[name][0]).all(), f"{path.name}: {name}"

    for name, told in PAGES.items():
        weights = np.array([told.get(decision.name, 0) for decision in Decision])
        check(name, weights[rows["what"]] * rows["count"])
    for name, what in ONCE.items():
        check(name, (rows["what"] == Decision[what]) & (rows["count"] == run.scenario.pages_per_thp))
    recorded = trace.compare(trace.read(path), predicted)
    assert recorded.exact, recorded


def _place(rows: np.ndarray) -> np.ndarray:
    return rows["batch"].astype(np.int64) << 32 | rows["rank"]


def test_counters_follow_from_events() -> None:
    for path in RECORDINGS:
        check_counters(path)


# --- what is kept -----------------------------------------------------------------------------------------------------


def regression(**how: Any) -> Run:
    fields: dict[str, Any] = {"memory_mib": 4, "zero_fraction": 0.5, "pages_to_scan": 100, "horizon_full_scans": 3}
    return simulate(Scenario(**fields, horizon_seconds=0.0), **how)


def test_table() -> None:
    events = regression(events=True).events
    split = fields(events, "split").iloc[0]
    assert (split["page"], split["count"], split["caller"], split["rule"]) == (0, 512, "ksmd", "thp-split H7")
    remaps = events[(events["event"] == "remap") & (events["page"] <= 100)]
    assert {*remaps["rule"]} == {"thp-split Z1"}
    first = events[events["event"] == "visit"].iloc[0]
    assert first["outcome"] == "first checksum" and first["full_scan"] == first["batch"] == 1


def test_events_change_nothing() -> None:
    assert (regression(events=True).rows == regression().rows).all()
    with pytest.raises(UserError, match="kept no events"):
        _ = regression().events


def test_filters_and_file(tmp_path: Path) -> None:
    whole = regression(events=True).events
    wanted = Events(["visit", "split"], process=0, pages=(600, 700), seconds=(0.1, 9), file=tmp_path / "events.parquet")
    kept = regression(events=wanted).events
    theirs = whole["event"].isin(["visit", "split"]) & (whole["page"] <= 700) & (whole["page"] + whole["count"] > 600)
    theirs &= (whole["time_s"] >= 0.1) & (whole["process"] == 0)
    pd.testing.assert_frame_equal(kept, whole[theirs].reset_index(drop=True), check_categorical=False)
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_a_long_run_goes_to_the_file_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlab.results.decisions.HELD", 100)
    events = Events(file=tmp_path / "events.parquet")
    table = regression(events=events).events
    assert not len(events.rows()), "memory is bounded"
    pd.testing.assert_frame_equal(table, regression(events=True).events, check_categorical=False)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"kinds": ["visits"]}, "did you mean 'visit'"),
        ({"seconds": (-1.0, 2.0)}, "seconds = (-1.0, 2.0) is not allowed: it must be from 0 on"),
        ({"pages": (7, 3)}, "pages = (7, 3) is not allowed"),
        ({"process": 3}, "events: nothing matches. What happened: visit, "),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        regression(events=Events(**asked, file=tmp_path / "events.parquet"))
    assert not [*tmp_path.iterdir()]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument.isdigit():
            for seed in range(int(argument)):
                check_models(seed)
        else:
            for path in trace.find(argument):
                check_counters(path)
        print(f"{argument}: equal")
