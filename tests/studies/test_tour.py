"""A full scan of small memory as a picture and in words."""

from __future__ import annotations

from mmlab import Scenario, simulate
from mmlab.studies.tour import full_scan

CONTENTS = [0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0]


def test_full_scan() -> None:
    """A row a batch and one before them; the first visit's split gives back six pages, and the table says by what."""
    process = {"pages": 16, "contents": [(key, 1, 0) for key in CONTENTS], "thp": [(0, 16)]}
    knobs = {"pages_to_scan": 1, "smart_scan": 0, "use_zero_pages": 1, "until_settled": True}
    scenario = Scenario(process_list=[process], pages_per_thp=8, **knobs)
    shown = full_scan(simulate(scenario, events=True, maps_at="all"), 2)
    expected = "6 visits, 12 of 16 pages of memory given back, at most 6 by a batch."
    assert shown.finding == f"mainline, use_zero_pages=1: {expected}"
    assert [page for _, page in shown.data.index] == [0, 3, 5, 8, 10, 13]
    assert "remaps 6 of its pages, zero-filled" in shown.data["what happened"].iloc[0]
    (ax,) = shown.plot().axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["before", *(str(18 + i) for i in range(6))]
    texts = [text.get_text() for text in ax.texts]
    assert texts[:16] == [*"000a0b0000a00c00"] and len(texts) == 7 * 16
    assert sum(text.get_weight() == "bold" for text in ax.texts) == 6
