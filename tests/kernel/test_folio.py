"""Frames and folios: allocation, references, mapcounts, and what a split leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmlab.kernel.folio import alloc_folio, alloc_frame, folio_get, folio_put, put_frame
from mmlab.kernel.huge_memory import split_huge_page
from mmlab.kernel.jit import entry
from mmlab.kernel.state import CALLER_OTHER, FREE, Machine, machine
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario


@entry
def take(m):
    """A new order-0 page, mapped once."""
    f = alloc_frame(m)
    m.frame[f].mapcount = 1
    return f


@entry
def give(m, f):
    m.frame[f].mapcount -= 1
    put_frame(m, f)


@entry
def take_folio(m, order):
    f = alloc_folio(m, order, 1, 0)
    m.folio[f].pins = 1
    return f


@entry
def get(m, frame):
    folio_get(m, frame)


@entry
def put(m, frame):
    folio_put(m, frame)


@entry
def split(m, frame, caller):
    return split_huge_page(m, frame, caller)


def used(m: Machine) -> int:
    return int((m.frame["flags"][: m.state[0]["top_frame"]] & FREE == 0).sum())


def test_frames_are_counted_and_used_again() -> None:
    m = machine(32, 1, 2)
    frames = [take(m) for _ in range(10)]
    assert len(set(frames)) == 10 and m.stat[0]["frames"] == used(m) == 10
    for f in frames[::2]:
        give(m, f)
    assert m.stat[0]["frames"] == used(m) == 5
    again = {take(m) for _ in range(5)}
    assert again == set(frames[::2]) and m.state[0]["top_frame"] == 10


def test_a_reference_keeps_a_frame() -> None:
    m = machine(32, 1, 2)
    f = take(m)
    get(m, f)
    give(m, f)
    assert m.stat[0]["frames"] == 1
    put(m, f)
    assert m.stat[0]["frames"] == 0


def test_huge_pages_are_used_again_and_broken_up_last() -> None:
    m = machine(8, 1, 2)  # 20 frames
    first = take_folio(m, 2)
    head = int(m.folio[first]["head"])
    assert m.stat[0]["frames"] == used(m) == 4 and m.mthp[2]["nr_anon"] == 1
    put(m, head)
    assert m.stat[0]["frames"] == used(m) == 0 and m.mthp[2]["nr_anon"] == 0
    again = take_folio(m, 2)
    assert (again, int(m.folio[again]["head"])) == (first, head)
    put(m, head)
    rest = {take(m) for _ in range(16)}  # all frames that were never used
    assert not rest & set(range(head, head + 4))
    assert {take(m) for _ in range(4)} == set(range(head, head + 4))  # the free huge page, in parts
    assert m.stat[0]["frames"] == used(m) == 20


def test_small_folio_is_freed_page_by_page() -> None:
    m = machine(32, 1, 4)
    head = int(m.folio[take_folio(m, 2)]["head"])
    put(m, head)
    assert m.stat[0]["frames"] == 0 and {take(m) for _ in range(4)} == set(range(head, head + 4))


def events(*given: dict[str, Any], **fields: Any) -> Run:
    """Two THPs of 8 pages of zeroes; ksmd does not run."""
    process = {"pages": 16, "contents": [[0, 16, 0]], "thp": [[0, 16]], "mergeable": []}
    setting = {"process_list": [process], "pages_per_thp": 8, "run": 0, "variant": "legacy", "horizon_seconds": 1.0}
    at = {"after": {"batch": 0}}
    return simulate(Scenario(**{**setting, **fields}, events=[at | e for e in given]))  # type: ignore[arg-type]


def test_partial_unmap_keeps_the_folio() -> None:
    run = events({"op": "dontneed", "page": 1, "count": 3})
    m, folio, stat = run.machine, run.machine.folio[1], run.machine.stat[0]
    assert (stat["frames"], stat["anon_pages"], stat["huge_pmds"]) == (16, 13, 1)
    assert (folio["mapcount"], folio["entire"], folio["nr_mapped"], folio["partially_mapped"]) == (5, 0, 5, 1)
    assert m.frame["mapcount"][:8].tolist() == [1, 0, 0, 0, 1, 1, 1, 1]
    assert stat["thp_split_pmd"] == stat["thp_deferred_split_page"] == 1
    assert stat["deferred_queue_len"] == 2  # the other one is there since its birth


def test_partial_unmap_then_the_rest() -> None:
    run = events({"op": "dontneed", "page": 1, "count": 3}, {"op": "dontneed", "page": 0, "count": 8})
    stat = run.machine.stat[0]
    assert (stat["frames"], stat["anon_pages"], stat["deferred_queue_len"], run.machine.mthp[3]["nr_anon"]) == (
        8,
        8,
        1,
        1,
    )
    assert run.machine.mthp[3]["nr_anon_partially_mapped"] == 0


def test_fork_maps_the_folio_twice() -> None:
    cut = {"op": "dontneed", "process": 1, "page": 0, "count": 4}
    run = events({"op": "fork"}, cut)
    folio, stat = run.machine.folio[1], run.machine.stat[0]
    assert (folio["entire"], folio["mapcount"], folio["nr_mapped"]) == (1, 5, 4)
    assert not folio["partially_mapped"] and stat["thp_deferred_split_page"] == 0  # the parent maps all of it
    assert (stat["frames"], stat["anon_pages"], stat["huge_pmds"]) == (16, 28, 3)
    run = events({"op": "fork"}, cut, {"op": "exit"})
    folio, stat = run.machine.folio[1], run.machine.stat[0]
    assert (folio["entire"], folio["mapcount"], folio["nr_mapped"], folio["partially_mapped"]) == (0, 4, 4, 1)
    assert (stat["frames"], stat["anon_pages"], stat["huge_pmds"]) == (16, 12, 1)
    run = events({"op": "fork"}, cut, {"op": "exit"}, {"op": "exit", "process": 1})
    assert (run.machine.stat[0]["frames"], run.machine.stat[0]["deferred_queue_len"]) == (0, 0)


def test_a_further_reference_makes_the_split_fail() -> None:
    m = events().machine
    get(m, 2)
    get(m, 3)
    assert not split(m, 2, CALLER_OTHER)
    assert (m.stat[0]["thp_split_page"], m.stat[0]["thp_split_page_failed"], m.mthp[3]["split_failed"]) == (0, 1, 1)
    assert (m.stat[0]["huge_pmds"], m.stat[0]["thp_split_pmd"], m.folio[1]["pins"]) == (2, 0, 2)
    put(m, 3)
    assert split(m, 2, CALLER_OTHER)
    put(m, 2)  # a frame of its own now
    assert (m.stat[0]["thp_split_page"], m.stat[0]["huge_pmds"], m.stat[0]["deferred_queue_len"]) == (1, 1, 1)
    assert m.frame["mapcount"][:8].tolist() == [1] * 8 and m.frame["pins"][:8].max() == 0
    assert np.all(m.frame["folio"][:8] == -1)


def test_split_frees_what_nobody_maps() -> None:
    """Pages that were unmapped before go at once, the others stay (thp-split H8.5)."""
    run = events({"op": "dontneed", "page": 1, "count": 3}, {"op": "split", "page": 0, "count": 8})
    stat = run.machine.stat[0]
    assert (stat["frames"], stat["anon_pages"], stat["thp_split_page"], stat["deferred_queue_len"]) == (13, 13, 1, 1)
