"""A variant of one's own beside the shipped ones."""

from __future__ import annotations

import pytest

from mmlab import Scenario
from mmlab.results import trace
from mmlab.studies.own import answers, beside, gains, named, ranking
from mmlab.studies.scenes import BASE
from mmlab.studies.verdict import Verdict, verdict, weights
from mmlab.variants import VARIANTS, SplitContext


def only_other(split: SplitContext) -> bool:
    return split.caller == "other"


def mainline(split: SplitContext) -> bool:
    return True


def test_a_name_that_ships_is_not_taken() -> None:
    assert (named(only_other).name, named(mainline).name) == ("only_other", "own mainline")


def test_answers_that_are_new_and_that_are_not() -> None:
    new = answers(named(only_other))
    assert new.finding.startswith("New: ")
    assert new.table().at["legacy", "other answers"] == 8, "caller other, whatever the flags"
    assert new.table().at["mainline", "the other remaps"] == 20
    assert answers(named(mainline)).finding == (
        "Not new: wherever it can be asked, `own mainline` answers as mainline and skip-zeropage"
    )


@pytest.fixture(scope="module")
def matrix() -> Verdict:
    base = Scenario(**{**BASE, "memory_mib": 4})
    return verdict(base, [named(only_other), *VARIANTS.values()], ["a1", "c1", "f1"])


def test_ranking_counts_marks(matrix: Verdict) -> None:
    found = ranking(matrix, "only_other", weights("a1=0", matrix.places.index))
    counts = found.table().loc["only_other"]
    assert counts["among the best"] == (matrix.marks["only_other"] == "+").sum()
    assert counts[["among the best", "in between", "among the worst"]].sum() == len(matrix.places)
    left = matrix.places["only_other"].drop("a1")
    assert counts["place, mean (%)"] == pytest.approx(100 * left.mean())


def test_gains_are_the_questions_in_which_one_is_better(matrix: Verdict) -> None:
    found = gains(matrix, "only_other", ["legacy", "mainline"])
    better, worse = matrix.better("only_other", "mainline"), matrix.better("mainline", "only_other")
    assert f"against mainline better in {len(better)}, worse in {len(worse)}" in found.finding
    assert {*better, *worse} <= set(found.table().index)


def test_beside_a_patched_kernel() -> None:
    """Recordings of a patched kernel are exact under its variant, and tell it from mainline."""
    found = beside(str(trace.find()[0].parent / "[cs]*v1-series-su1_uzp1*"), named(VARIANTS["v1-series"]))
    table = found.table()
    assert found.finding.startswith("Holds: samples of Linux 6.12")
    assert (table["exact under own v1-series"] == table["samples"]).all()
    assert (table["exact under mainline"] < table["samples"]).any()
    drawn = found.plot()
    assert drawn
    worst = (table["exact under own v1-series"] - table["exact under mainline"]).idxmax()
    assert drawn.get_suptitle() == worst
    assert "ksm_zero_pages" in [ax.get_title(loc="left") for ax in drawn.axes], "a counter that tells the two apart"
