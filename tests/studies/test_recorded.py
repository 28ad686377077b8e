"""Recordings beside the model: wrong predictions are noticed, and counters are held against what is the case."""

from __future__ import annotations

import numpy as np
import pytest

from mmlab import simulate
from mmlab.results import trace
from mmlab.studies.recorded import LISTED, Recording, confirmed, meaning, recorded, samples

NAMES = (
    "base_mainline-su1_uzp1_zf90_thp50_pts500",
    "act-write_thp_legacy_uzp1",
    "base_ksm-opt-out_uzp1_zf100_thp100_pts2000",
)


@pytest.fixture(scope="module")
def found() -> list[Recording]:
    paths = {path.name.removesuffix(trace.ENDING): path for path in trace.find()}
    return [Recording(paths[name]) for name in NAMES if name in paths]


def test_facts(found: list[Recording]) -> None:
    facts = found[0].facts()
    assert (facts["group"], facts["kernel"], facts["variant"], facts["exact"]) == ("base", "6.12", "mainline", True)
    assert facts["samples"] == facts["samples exact"] == len(found[0].trace["samples"])


def test_a_wrong_prediction_matches_less(found: list[Recording]) -> None:
    base = found[0]
    assert base.matching() == base.found.samples
    assert base.matching("legacy") < base.found.samples
    changes = base.changes(["6.12", "6.18"])
    assert {"predicted as Linux 6.18", "one page with another content", "pages_to_scan plus one page"} <= set(changes)
    assert base.matching(**changes["pages_to_scan plus one page"]) < base.found.samples
    assert changes["use_zero_pages the other way"]["scenario"]["knobs"]["use_zero_pages"] == 0
    assert base.asked["knobs"]["use_zero_pages"] == 1, "the recording itself stays"


def test_decisions_are_confirmed_by_those_who_notice(found: list[Recording]) -> None:
    table = confirmed(found)
    seen = {(c.caller, answer) for c, row in table.iterrows() for answer, count in row.items() if count}
    assert ("ksm", "remaps") in seen, "mainline"
    assert ("ksm", "does not remap") in seen, "ksm-opt-out"
    assert (table.loc[[c for c in table.index if c.caller == "ksm" and not c.ksm_running]] == 0).all(axis=None)


def test_samples_stand_beside_the_kernels(found: list[Recording]) -> None:
    table = samples(found)
    of_kernel = table[table["of the kernel"] == "both"]
    assert len(of_kernel) == sum(one.found.samples for one in found)
    for ours, theirs in LISTED["inside"].values():
        a, b = of_kernel.eval(ours), of_kernel.eval(theirs)
        assert (a == b)[b.notna()].all()
    split = table.groupby("recording")["all_splits"].last()
    assert split[NAMES[0]] == found[0].run.rows["thp_split_page"][-1]


def test_what_counters_hide(found: list[Recording]) -> None:
    """Splits of mainline map the zeropage behind KSM's back."""
    table = meaning(samples(found)).table()
    assert len(table) == len(LISTED["counters"])
    row = table.loc["ksm_zero_pages"]
    last = found[0].run.rows[-1]
    assert row["recording"] == NAMES[0]
    assert row["there are"] - row["it says"] == np.max(
        found[0].run.rows["zeropage_entries"] - found[0].run.rows["ksm_zero_pages"]
    )
    assert last["zeropage_entries"] > 0


@pytest.mark.parametrize("wrong", [False, True])
def test_recordings(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong:
        predict = simulate
        monkeypatch.setattr(
            "mmlab.results.trace.simulate", lambda s, **more: predict(s.replace(pages_to_scan=9), **more)
        )
    study = recorded("base_mainline-su1_uzp1_zf90_thp50_pts500", {"rss_kb": "KiB"}, "a title")
    assert study.finding.startswith("Does not hold: " if wrong else "Holds: ")
    assert (" 18 of 18 samples in all counters, 6 of 6 page maps (a title)." in study.finding) == (not wrong)
    assert study.table()["rss_kb"].iloc[0] == 16384
