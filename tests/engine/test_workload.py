"""Page contents, folio sizes and advice, held against their descriptions counted page by page."""

from __future__ import annotations

import math
import time
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab import scenario as scenario_module
from mmlab.engine.workload import FIRST_KEY, Image, build, places
from mmlab.errors import UserError
from mmlab.scenario import THP_ORDER, Scenario

LAYOUTS = ("zero-first", "zero-last", "interleaved", "random", "bimodal")


def one(**fields: Any) -> Image:
    (image,) = build(Scenario(**fields))
    return image


@given(st.sampled_from(LAYOUTS), st.integers(1, 16), st.fractions(0, 1, max_denominator=1024), st.integers(0, 3))
def test_share_of_zero_pages(layout: str, blocks: int, share: Fraction, seed: int) -> None:
    image = one(memory_mib=2 * blocks, layout=layout, zero_fraction=float(share), seed=seed)
    assert (image.keys == 0).sum() == round(float(share) * blocks * 512)
    assert np.unique(image.keys[image.keys > 0]).size == (image.keys > 0).sum()


@pytest.mark.parametrize(
    ("layout", "by_block"),
    [
        ("spread", [192] * 8),
        ("clustered", [384] * 4 + [0] * 4),
        ("blocks", [384, 0] * 4),
    ],
)
def test_where_duplicates_lie(layout: str, by_block: list[int]) -> None:
    """Of 384 non-zero pages in each block half are duplicates."""
    image = one(
        memory_mib=16, zero_fraction=0.25, duplicate_fraction=0.5, duplicate_groups=100, duplicate_layout=layout
    )
    shared = (image.keys > FIRST_KEY) & (image.keys <= FIRST_KEY + 100)
    assert shared.reshape(-1, 512).sum(axis=1).tolist() == by_block
    assert set(Counter(image.keys[shared].tolist()).values()) <= {15, 16}


def test_skewed_duplicates() -> None:
    """Content n has a share in proportion to 1 / n: 600, 300 and 200 of 1,100."""
    image = one(
        memory_mib=44, zero_fraction=1 - 1100 / 11264, duplicate_fraction=1, duplicate_groups=3, duplicate_skew=1
    )
    assert [count for _, count in sorted(Counter(image.keys[image.keys > 0].tolist()).items())] == [600, 300, 200]


def test_images_share_nothing_but_zero_pages() -> None:
    shared = {"zero_fraction": 0.5, "duplicate_fraction": 0.5, "duplicate_groups": 9}
    first, *others = build(Scenario(memory_mib=4, processes=4, images=2, **shared))
    assert [np.intersect1d(first.keys, other.keys).size for other in others] == [1, 10, 1]


def test_a_count_stands_for_as_many_processes() -> None:
    few = Scenario(process_list=[{"memory_mib": 4, "count": 3}, {"memory_mib": 8}])
    assert few == Scenario(process_list=[{"memory_mib": 4}] * 3 + [{"memory_mib": 8}])
    with pytest.raises(UserError) as caught:
        Scenario(process_list=[{"memory_mib": 4}, {"memory_mib": 4, "count": 0}])
    assert (caught.value.where, caught.value.parameter, caught.value.value) == ("process_list 1", "count", 0)


@pytest.mark.parametrize("layout", ["zero-first", "zero-last", "interleaved"])
def test_layout_within_each_block(layout: str) -> None:
    blocks = (one(memory_mib=8, layout=layout, zero_fraction=460 / 512).keys == 0).reshape(-1, 512)
    assert (blocks.sum(axis=1) == 460).all()
    for block in blocks:
        where = np.flatnonzero(block)
        if layout == "zero-first":
            assert where[-1] == 459
        elif layout == "zero-last":
            assert where[0] == 52
        else:
            assert np.diff(np.flatnonzero(~block)).min() >= 9  # 512 / 52, rounded down


def test_bimodal_is_as_measured() -> None:
    """1,331 nearly empty THPs hold 99.91 % of the zero pages, 400 nearly full ones next to none, 21 lie in between."""
    used = 512 - (one(memory_mib=2 * 1752, zero_fraction=0.7597, layout="bimodal").keys == 0).reshape(-1, 512).sum(1)
    empty, full = used <= 50, used >= 460
    assert abs(int(empty.sum()) - 1331) <= 2
    assert abs(int(full.sum()) - 400) <= 22
    assert (512 - used)[empty].sum() / (512 - used).sum() == pytest.approx(0.9991, abs=2e-4)


def test_coverage_is_the_first_blocks() -> None:
    for share in (0.0, 0.29, 0.5, 0.999, 1.0):
        image = one(memory_mib=200, thp_coverage=share)
        thps = math.floor(Fraction(str(share)) * 100)
        assert (image.order == THP_ORDER).sum() == thps * 512
        assert (image.order[: thps * 512] == THP_ORDER).all()
        assert (image.huge == (image.order == THP_ORDER)).all()
        assert image.mergeable.all()


def test_duplicates_are_dealt_round_robin_and_spread_evenly() -> None:
    image = one(memory_mib=4, zero_fraction=0.5, duplicate_fraction=0.25, duplicate_groups=5)
    groups = image.keys[(image.keys > 0) & (image.keys <= FIRST_KEY + 5)] - FIRST_KEY
    assert groups.size == 128
    assert groups.tolist() == [1 + i % 5 for i in range(128)]
    for block in image.keys.reshape(-1, 512):
        assert ((block > 0) & (block <= FIRST_KEY + 5)).sum() == 64


def test_processes_share_groups_and_nothing_else() -> None:
    a, b = build(Scenario(memory_mib=4, processes=2, zero_fraction=0.3, duplicate_fraction=0.2, duplicate_groups=7))
    assert len(set(a.keys.tolist()) & set(b.keys.tolist())) == 1 + 7
    assert np.array_equal(a.keys == 0, b.keys == 0)


def test_key_order() -> None:
    ascending = one(memory_mib=4).keys
    assert (np.diff(ascending.astype(np.int64)) == 1).all()
    a, b = build(Scenario(memory_mib=4, processes=2, key_order="random", seed=1))
    both = np.concatenate([a.keys, b.keys])
    assert np.array_equal(np.sort(both), np.arange(2048, dtype=np.uint64) + np.uint64(ascending[0]))
    assert (np.diff(a.keys.astype(np.int64)) < 0).any()
    assert not np.array_equal(
        both, np.concatenate([i.keys for i in build(Scenario(memory_mib=4, processes=2, key_order="random", seed=2))])
    )


def test_stray_zero_pages_come_first_in_small_pages() -> None:
    image = one(memory_mib=4, zero_fraction=1.0, stray_zero_pages=3)
    assert image.keys.size == 3 * 512
    assert np.flatnonzero(image.keys[:512] == 0).tolist() == [0, 1, 2]
    assert not image.order[:512].any()
    assert (image.order[512:] == THP_ORDER).all()


def test_same_seed_same_image() -> None:
    for layout in ("random", "bimodal"):
        a, b, c = (one(memory_mib=8, zero_fraction=0.4, layout=layout, seed=s).keys for s in (5, 5, 6))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


runs = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(-(2**60), 2**60)).filter(
        lambda r: 0 <= r[0] + (r[1] - 1) * r[2] < 2**64
    ),
    min_size=1,
    max_size=8,
)


@given(runs)
def test_runs_of_keys(contents: list[tuple[int, int, int]]) -> None:
    expected = [first + i * step for first, count, step in contents for i in range(count)]
    image = one(process_list=[{"pages": len(expected), "contents": contents}], pages_per_thp=8)
    assert image.keys.tolist() == expected
    assert image.mergeable.all()
    assert not image.huge.any()


def test_ranges_of_advice() -> None:
    spec = {"pages": 32, "contents": [[1, 32, 1]], "thp": [[4, 20]], "mergeable": [[2, 3], [8, 1]]}
    image = one(process_list=[spec], pages_per_thp=8)
    assert np.flatnonzero(image.huge).tolist() == list(range(4, 24))
    assert np.flatnonzero(image.order).tolist() == list(range(8, 24)), "a THP needs its whole aligned range"
    assert np.flatnonzero(image.mergeable).tolist() == [2, 3, 4, 8]
    late = one(process_list=[spec | {"nohugepage_after_populate": True}], pages_per_thp=8, late=True)
    assert not late.mergeable.any()
    assert not late.huge.any()
    assert np.array_equal(late.order, image.order)


def test_orders() -> None:
    image = one(process_list=[{"memory_mib": 4, "orders": [[0, 512, 4], [512, 512, 9]]}])
    assert Counter(image.order.tolist()) == {4: 512, 9: 512}


def test_folio_order() -> None:
    """The covered blocks are folios of that order; below a THP's they have no MADV_HUGEPAGE."""
    image = one(memory_mib=8, thp_coverage=0.5, folio_order=4)
    assert image.order.tolist() == [4] * 1024 + [0] * 1024
    assert not image.huge.any()
    a, b = build(Scenario(folio_order=0, process_list=[{"memory_mib": 2}, {"memory_mib": 2, "folio_order": 9}]))
    assert (a.order.max(), b.order.min()) == (0, THP_ORDER)
    assert b.huge.all()


def test_mixed_list_of_processes() -> None:
    a, b = build(Scenario(process_list=[{"memory_mib": 2}, {"pages": 4, "contents": [[0, 2, 0], [9, 2, 1]]}]))
    assert a.keys.min() > FIRST_KEY
    assert b.keys.tolist() == [0, 0, 9, 10]


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_module, "free_memory", lambda: 2**23)
    with pytest.raises(UserError, match="GiB"):
        build(Scenario(memory_mib=4096))


def test_a_gigabyte_takes_no_time() -> None:
    build(Scenario(memory_mib=2))
    start = time.perf_counter()
    build(Scenario(zero_fraction=0.9, duplicate_fraction=0.5, layout="bimodal", key_order="random"))
    assert time.perf_counter() - start < 0.5  # some 10 ms; generous, for a busy machine


# --- holes, and memory that is touched later ------------------------------------------------------------------------


def test_a_terabyte_with_one_page_needs_memory_for_two_blocks() -> None:
    tebibyte = 2**28
    contents = [["hole", tebibyte - 600, 0], [7, 1, 0], ["hole", 599, 0]]
    asked = Scenario(process_list=[{"pages": tebibyte, "contents": contents}])
    asked.check_memory()
    (image,) = build(asked)
    assert asked.gaps == (((0, tebibyte // 512 - 2),),)
    assert len(image.keys) == 3 * 512 and np.flatnonzero(image.touched).tolist() == [3 * 512 - 600]
    assert image.keys.sum() == 7 and places(tebibyte - 600, image.gaps, 512) == 3 * 512 - 600


@pytest.mark.parametrize("page", [0, 512, 1024, 4000])
def test_where_an_event_comes_the_memory_is_there(page: int) -> None:
    """It lies in the hole of 8 blocks after the first one, or in none."""
    event = {"after": {"batch": 1}, "op": "read", "page": page, "count": 1}
    process = {"pages": 9 * 512, "contents": [[7, 512, 1], ["hole", 8 * 512, 0]]}
    asked = Scenario(process_list=[process], events=[event])
    assert asked.gaps == ((((1, 9),) if page < 512 else ()),)


def test_what_is_never_touched_has_no_share_in_the_fractions() -> None:
    """A quarter of 64 blocks: their pages are those of a process of that size, but for keys of their own."""
    fields = {"zero_fraction": 0.3, "duplicate_fraction": 0.5, "duplicate_groups": 7, "layout": "random"}
    part, small = one(memory_mib=128, touched_fraction=0.25, **fields), one(memory_mib=32, **fields)
    assert part.gaps == ((16, 64),) and len(part.keys) == 17 * 512
    assert (part.keys[: 16 * 512] == small.keys).all() and part.touched.sum() == 16 * 512 == part.dealt.sum()
    assert part.huge.all()


def test_what_grows_is_dealt_from_the_start() -> None:
    fields: dict[str, Any] = {"memory_mib": 128, "zero_fraction": 0.3, "layout": "random"}
    image, whole = one(**fields, touched_fraction=0.3, growth_seconds=5), one(**fields)
    assert (image.keys == whole.keys).all() and not image.gaps
    assert np.flatnonzero(image.touched).tolist() == list(range(round(0.3 * 128 * 256)))
