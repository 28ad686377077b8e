"""The ping-pong between ksmd and khugepaged: what is measured, and that it ends where khugepaged.md says."""

import numpy as np
import pandas as pd
import pytest

from mmlab import Run, Scenario, simulate
from mmlab.figures.figures import blocks
from mmlab.studies import pingpong
from mmlab.studies.pingpong import block_maps, collapses, measure, turn_seconds, zero_pages_of_blocks

BOTH = Scenario(
    memory_mib=16,
    zero_fraction=0.75,
    use_zero_pages=1,
    pages_to_scan=200,
    khugepaged=1,
    khugepaged_pages_to_scan=1024,
    khugepaged_scan_sleep_millisecs=2000,
    horizon_seconds=45.0,
)
"""8 blocks with 384 zero-filled pages each, two of them looked at every 2 s."""


@pytest.fixture(scope="module")
def mapped() -> Run:
    return pingpong.mapped(simulate(BOTH))


def test_rates(mapped: Run) -> None:
    assert turn_seconds(BOTH) == 8
    loop = measure(mapped)
    assert loop.collapses_per_hour == pytest.approx(3600, rel=0.01), "two blocks every 2 s"
    assert loop.splits_per_hour == pytest.approx(3600, rel=0.01)
    assert loop.in_vain_per_hour == 0
    assert loop.swing_mib == 2 * 384 * 4 / 1024, "two blocks' zero-filled pages"
    assert 4 < loop.mean_mib < 4 + loop.swing_mib
    assert 0 < loop.thps < 2
    assert loop.khugepaged_cpu > 0


def test_without_khugepaged() -> None:
    loop = measure(simulate(BOTH.replace(khugepaged=0)))
    assert loop.collapses_per_hour == 0
    assert (loop.swing_mib, loop.mean_mib, loop.thps, loop.khugepaged_cpu) == (0, 4, 0, 0)


def test_every_collapse_is_on_the_maps(mapped: Run) -> None:
    found = collapses(mapped)
    assert len(found) == mapped.rows["pages_collapsed"][-1]
    assert set(found["block"]) == set(range(8))
    period = found.groupby("block")["time_s"].diff().dropna()
    assert period.median() == pytest.approx(turn_seconds(BOTH), rel=0.01)


def test_maps_of_two_processes() -> None:
    run = simulate(BOTH.replace(processes=2, memory_mib=4, horizon_seconds=3.0), maps_at="all")
    time, letters = block_maps(run)
    assert letters.shape == (len(time), 4, 512)
    assert (np.diff(time) >= 0).all()
    assert (letters[0] == ord("H")).all()


@pytest.mark.parametrize(("limit", "goes_on"), [(511, True), (384, True), (383, False), (0, False)])
def test_max_ptes_none(limit: int, goes_on: bool) -> None:
    """Zeropage entries count as empty (K4)."""
    loop = measure(simulate(BOTH.replace(max_ptes_none=limit)))
    assert (loop.collapses_per_hour > 0) == goes_on


@pytest.mark.parametrize(("variant", "goes_on"), [("mainline", True), ("ksm-opt-out", False)])
def test_zero_pages_that_are_merged_are_shared(variant: str, goes_on: bool) -> None:
    """use_zero_pages=0: KSM pages are more than max_ptes_shared; where splits remap, there are none."""
    loop = measure(simulate(BOTH.replace(use_zero_pages=0), variant=variant))
    assert (loop.collapses_per_hour > 0) == goes_on


def test_in_vain() -> None:
    """No more shared entries than the limit, but one KSM page twice in a range: a huge page is got for nothing (K8)."""
    few = BOTH.replace(use_zero_pages=0, zero_fraction=0.25)
    loop = measure(simulate(few, variant="ksm-opt-out"))
    assert loop.collapses_per_hour == 0
    assert loop.in_vain_per_hour > 0


def test_duplicates_need_the_other_limit() -> None:
    """Full blocks with duplicates come back whatever max_ptes_none says; with max_ptes_shared=0 nothing does."""
    image = BOTH.replace(layout="bimodal", zero_fraction=0.5, duplicate_fraction=0.3, duplicate_groups=200)
    ended = {
        (none, shared): not measure(
            simulate(image.replace(max_ptes_none=none, max_ptes_shared=shared))
        ).collapses_per_hour
        for none in (511, 0)
        for shared in (256, 0)
    }
    assert ended[0, 0]
    assert not ended[0, 256]
    assert not ended[511, 256]


@pytest.mark.parametrize("layout", ["zero-first", "interleaved", "random", "bimodal"])
def test_zero_pages_of_blocks(layout: str) -> None:
    counts = zero_pages_of_blocks(BOTH.replace(layout=layout, processes=2))
    assert len(counts) == 16
    assert counts.sum() == 2 * 3072
    assert (counts == 384).all() == (layout in ("zero-first", "interleaved"))


def test_for_turns() -> None:
    """khugepaged's first turn (8 s) is longer than four full scans of ksmd (2 s); then 2.5 turns, or less."""
    assert pingpong.for_turns(BOTH, 2).horizon_seconds == 28
    assert pingpong.for_turns(BOTH.replace(until_settled=True), 2).until_settled is False
    assert pingpong.for_turns(BOTH, 9).horizon_seconds == BOTH.horizon_seconds, "not longer"
    slow = BOTH.replace(pages_to_scan=10, horizon_seconds=900.0)
    assert pingpong.for_turns(slow, 2).horizon_seconds == pytest.approx(4 * pingpong.scan_seconds(slow) + 2.5 * 8)
    assert measure(simulate(pingpong.for_turns(BOTH, 1))).collapses_per_hour == pytest.approx(3600, rel=0.01)


def test_blocks(mapped: Run) -> None:
    assert pingpong.period(mapped) == pytest.approx(turn_seconds(BOTH), rel=0.01)
    assert pingpong.blocks_collapsed(mapped) == 8
    calm = pingpong.mapped(simulate(BOTH.replace(khugepaged=0)))
    assert (pingpong.period(calm), pingpong.blocks_collapsed(calm)) == (None, 0)
    ax = blocks(pingpong.block_maps(mapped))
    assert ax.get_ylabel() == "2 MiB block"


@pytest.mark.parametrize(("limit", "counts"), [(511, (0, 8)), (384, (0, 8)), (383, (8, 0)), (0, (8, 0))])
def test_prices_of_a_limit(limit: int, counts: tuple[int, int]) -> None:
    """Blocks with more zero-filled pages than max_ptes_none are underused, the others may be huge again; 511: all."""
    run = simulate(BOTH.replace(max_ptes_none=limit, horizon_seconds=0.1))
    assert (pingpong.underused(run), pingpong.huge_again(run)) == counts
    assert pingpong.huge_again(simulate(BOTH.replace(khugepaged=0, horizon_seconds=0.1))) == 0


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[0, 9], [0, 9]], "`max_ptes_none=0` alone"),
        ([[0, 0], [9, 9]], "`max_ptes_shared=0` alone"),
        ([[0, 9], [9, 9]], "`max_ptes_none=0` with `max_ptes_shared=0`"),
        ([[9, 9], [9, 9]], "none of these limits"),
        ([[0, 0], [0, 0]], "nothing, as nothing goes on"),
    ],
)
def test_what_ends_it(cells: list[list[int]], words: str) -> None:
    assert pingpong.enders(pd.DataFrame(cells, [0, 256], [0, 511])) == words
