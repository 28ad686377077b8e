"""What is done to a workload before the verdict asks its questions. A scene is one function; its docstring says what.

A scene takes the base scenario (memory, knobs, rates) and returns the scenario that is run. Its name is the function's,
with dashes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mmlab.scenario import Scenario
from mmlab.studies import pingpong

__all__ = ["BASE", "DECIDED", "FIRST_SPLITS", "SCENES", "Scene", "described", "scan_seconds"]

Scene = Callable[[Scenario], Scenario]

BASE: dict[str, Any] = {
    "memory_mib": 32,
    "zero_fraction": 0.75,
    "use_zero_pages": 1,
    "pages_to_scan": 100,
    "sleep_millisecs": 100,
    "max_ptes_none": 255,
    "migration_rate": 2.0,
    "migration_huge_share": 0.0,
    "pressure_rate": 4.0,
    "swap_mib": 64,
}
"""The default base: 16 THPs, three quarters zero-filled, and a ksmd so slow that other things happen before it comes. A
full scan of 9 s stands for the minutes that it takes on a host."""
DECIDED: dict[str, Any] = {
    "run": 1,
    "ksm_start_seconds": 0.0,
    "migration_rate": 0.0,
    "pressure_rate": 0.0,
    "khugepaged": 0,
    "advisor_mode": "none",
    "policy": "none",
    "horizon_full_scans": 0,
    "horizon_batches": 0,
    "until_settled": False,
    "variant": "mainline",
    "name": "",
}
"""What every scene decides by itself; everything else is the base's."""
FIRST_SPLITS = ("migrate", "pageout", "cold", "free")
"""What splits a THP before the shrinker does: migration without a huge page; MADV_* of its last page."""
SECONDS_BEFORE = 0.5
"""When one-time events happen: before ksmd, khugepaged or the shrinker has done anything."""

SCENES: dict[str, Scene] = {}
S = TypeVar("S", bound=Callable[..., Scenario])


def scene(build: S) -> S:
    """Register a scene under the function's name."""
    SCENES[build.__name__.strip("_").replace("_", "-")] = build
    return build


def described(name: str) -> str:
    """Return what a scene does to the base, in one sentence without a full stop."""
    return " ".join(str(SCENES[name].__doc__).split())


def scan_seconds(s: Scenario) -> float:
    """Return about how long ksmd takes for a full scan of all pages, s: its sleeps, and 1 µs a page."""
    batches = -(-s.total_pages // max(1, s.pages_to_scan))
    ticks = -(-s.sleep_millisecs * s.hz // 1000) + 1
    return max(0.1, round(batches * ticks / s.hz + s.total_pages * 1e-6, 1))


def blocks(s: Scenario) -> int:
    """Return the number of 2 MiB blocks of all processes."""
    return s.total_pages // s.pages_per_thp


def calm(s: Scenario, scans: float, **changes: Any) -> Scenario:
    """Return the base with nothing going on but `changes`, for a number of ksmd's full scans."""
    return s.replace(**{**DECIDED, "horizon_seconds": round(scans * scan_seconds(s), 1), **changes})


def each_block(s: Scenario, *ops: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return one event a block, the operations in turn; an operation's `page` counts from the start of its block."""
    size = s.pages_per_thp
    places = [(i, block * size) for i, spec in enumerate(s.specs) for block in range(s.pages_of(spec) // size)]
    return tuple(
        {"after": {"seconds": SECONDS_BEFORE}, "process": process, **op, "page": first + op["page"]}
        for number, (process, first) in enumerate(places)
        for op in [ops[number % len(ops)]]
    )


def last_page(s: Scenario, op: str, **fields: Any) -> dict[str, Any]:
    """Return an operation on the last page of a block."""
    return {"op": op, "page": s.pages_per_thp - 1, "count": 1, **fields}


@scene
def migration(s: Scenario) -> Scenario:
    """KSM on; blocks migrate at migration_rate while ksmd scans (6 full scans)"""
    return calm(s, 6, migration_rate=s.migration_rate)


@scene
def first(s: Scenario, causes: Sequence[str] = FIRST_SPLITS) -> Scenario:
    """KSM off; each THP is split once by migration or by MADV_PAGEOUT, MADV_COLD or MADV_FREE of one page, then
    pressure and khugepaged go on"""
    whole = {"op": "migrate", "page": 0, "count": s.pages_per_thp, "huge": 0}
    events = each_block(s, *(whole if cause == "migrate" else last_page(s, cause) for cause in causes))
    until_empty = 2 * blocks(s) / s.pressure_rate if s.pressure_rate else 0.0
    horizon = 60.0 + 2 * pingpong.turn_seconds(s) + until_empty
    return calm(s, 1, run=0, khugepaged=1, pressure_rate=s.pressure_rate, horizon_seconds=horizon, events=events)


for cause in FIRST_SPLITS:
    SCENES[f"first-{cause}"] = functools.partial(first, causes=[cause])


@scene
def pressure(s: Scenario) -> Scenario:
    """KSM on; the shrinker is asked for pressure_rate folios a second (6 full scans)"""
    return calm(s, 6, pressure_rate=s.pressure_rate)


@scene
def pressure_off(s: Scenario) -> Scenario:
    """KSM off; the shrinker is asked for pressure_rate folios a second"""
    return calm(s, 6, pressure_rate=s.pressure_rate, run=0)


@scene
def partial(s: Scenario) -> Scenario:
    """KSM off; one page of each THP is unmapped, then pressure comes; max_ptes_none is 511, the default"""
    events = each_block(s, last_page(s, "dontneed"))
    return calm(s, 6, pressure_rate=s.pressure_rate, run=0, max_ptes_none=511, events=events)


@scene
def late(s: Scenario) -> Scenario:
    """blocks migrate at migration_rate; KSM is enabled at ksm_start_seconds, or after the time of a full scan"""
    start = s.ksm_start_seconds or scan_seconds(s)
    horizon = round(start + 6 * scan_seconds(s), 1)
    return calm(s, 6, ksm_start_seconds=start, horizon_seconds=horizon, migration_rate=s.migration_rate)


@scene
def mix(s: Scenario) -> Scenario:
    """KSM on; half of migration_rate, a sixteenth of pressure_rate, MADV_COLD of a part of every 4th THP"""
    events = each_block(s, last_page(s, "cold"), *[last_page(s, "read")] * 3)
    return calm(s, 6, migration_rate=s.migration_rate / 2, pressure_rate=s.pressure_rate / 16, events=events)


def alone(s: Scenario, **changes: Any) -> Scenario:
    """Return the base with KSM alone until it settles; there is time for one THP a full scan."""
    return calm(s, 16 + blocks(s), until_settled=True, **changes)


@scene
def uzp1(s: Scenario) -> Scenario:
    """KSM alone until settled, use_zero_pages=1"""
    return alone(s, use_zero_pages=1)


@scene
def uzp0(s: Scenario) -> Scenario:
    """KSM alone until settled, use_zero_pages=0"""
    return alone(s, use_zero_pages=0)


@scene
def sparse(s: Scenario) -> Scenario:
    """KSM alone until settled, use_zero_pages=1, two zero-filled pages in each THP"""
    return alone(s, use_zero_pages=1, zero_fraction=2 / s.pages_per_thp, layout="zero-first")


def both_daemons(s: Scenario, **changes: Any) -> Scenario:
    """Return the base with ksmd and khugepaged by their own clocks, for ten turns of the slower one."""
    horizon = round(max(600.0, 10 * pingpong.turn_seconds(s), 10 * scan_seconds(s)), 1)
    knobs = {"khugepaged": 1, "max_ptes_none": 511, "use_zero_pages": 1, **changes}
    return calm(s, 1, horizon_seconds=horizon, **knobs)


@scene
def pingpong_(s: Scenario) -> Scenario:
    """KSM and khugepaged by their own clocks, use_zero_pages=1, max_ptes_none=511"""
    return both_daemons(s)


@scene
def pingpong_none(s: Scenario) -> Scenario:
    """KSM and khugepaged by their own clocks, use_zero_pages=1, max_ptes_none=0"""
    return both_daemons(s, max_ptes_none=0)


@scene
def pingpong_uzp0(s: Scenario) -> Scenario:
    """KSM and khugepaged by their own clocks, use_zero_pages=0, max_ptes_none=511"""
    return both_daemons(s, use_zero_pages=0)


@scene
def swap(s: Scenario) -> Scenario:
    """all but the last page of each THP is paged out, before ksmd has merged anything"""
    op = {"op": "pageout", "page": 0, "count": s.pages_per_thp - 1}
    return calm(s, 0.9, swap_mib=max(s.swap_mib, s.total_pages // 128), events=each_block(s, op))


@scene
def mthp(s: Scenario) -> Scenario:
    """KSM alone, use_zero_pages=0, folios of folio_order (of order 4, if that is 9): 40 full scans"""
    return calm(s, 40, use_zero_pages=0, folio_order=s.folio_order if 1 < s.folio_order < 9 else 4)


@scene
def advisor(s: Scenario) -> Scenario:
    """the scan-time advisor chooses pages_to_scan: 30 s, at least 512 MiB, 20 ms, a target of 2 s at most"""
    return calm(
        s,
        1,
        advisor_mode="scan-time",
        sleep_millisecs=20,
        memory_mib=max(512, s.memory_mib),
        advisor_target_scan_time=min(2, s.advisor_target_scan_time),
        horizon_seconds=30.0,
    )


@scene
def numa(s: Scenario) -> Scenario:
    """two nodes, merge_across_nodes=0, two processes with equal pages"""
    groups = max(1, s.memory_mib * 4)  # 64 pages a content
    return calm(s, 12, nodes=2, merge_across_nodes=0, processes=2, duplicate_fraction=1.0, duplicate_groups=groups)


@scene
def poison(s: Scenario) -> Scenario:
    """one used page of each THP is poisoned, before ksmd has merged anything"""
    return calm(s, 0.9, events=each_block(s, {"op": "memory_failure", "page": s.pages_per_thp - 1}))


@scene
def switch_off(s: Scenario) -> Scenario:
    """KSM on; blocks migrate at migration_rate while ksmd scans (6 full scans), with shrink_underused=0"""
    return calm(s, 6, migration_rate=s.migration_rate, shrink_underused=0)
