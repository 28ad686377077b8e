"""What is done to a workload before the verdict asks its questions.

A scene takes the base scenario (memory, knobs, rates) and returns the scenario that is run. One that only sets some
values is an entry of `scenes.yaml`. Any other is a function of this module, with
dashes in its name; its docstring says what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmlab.params import find_params, read_yaml
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.studies import pingpong
from mmlab.variants import VARIANTS, Predicate, Variant, resolve

__all__ = ["BASE", "CODES", "DECIDED", "FIRST_SPLITS", "SCENES", "Scene", "described", "numbered", "scene_runs"]

Scene = Callable[[Scenario], Scenario]
AnyVariant = str | Variant | Predicate

LISTED = read_yaml(Path(__file__).with_suffix(".yaml"))
BASE: dict[str, Any] = read_yaml(find_params("other_splits"))
"""The default base: 16 THPs, three quarters zero-filled, and a ksmd so slow that other things happen before it comes. A
full scan of 9 s stands for the minutes that it takes on a host."""
DECIDED: dict[str, Any] = LISTED["decided"]
"""What every scene decides by itself; everything else is the base's."""
CODES: dict[str, list[str]] = LISTED["codes"]
"""The number of each variant in the discussion, and the short name of its column."""
FIRST_SPLITS = ("migrate", "pageout", "cold", "free")
"""What splits a THP before the shrinker does: migration without a huge page; MADV_* of its last page."""
SECONDS_BEFORE = 0.5
"""When one-time events happen: before ksmd, khugepaged or the shrinker has done anything."""

SCENES: dict[str, Scene] = {}


def scene(build: Scene) -> Scene:
    """Register a scene under the function's name."""
    SCENES[build.__name__.replace("_", "-")] = build
    return build


def described(name: str) -> str:
    """Return what a scene does to the base, in one sentence without a full stop."""
    return " ".join(str(SCENES[name].__doc__).split())


def calm(s: Scenario, lasts: float | str, **changes: Any) -> Scenario:
    """Return the base with nothing going on but `changes`.

    It lasts for a number of ksmd's full scans; until KSM alone has `settled`, which takes at most a full scan for each
    THP; or for `ten turns` of the slower one of ksmd and khugepaged.
    """
    scan, blocks = pingpong.scan_seconds(s), s.total_pages // s.pages_per_thp
    named = {"settled": (16 + blocks) * scan, "ten turns": max(600.0, 10 * pingpong.turn_seconds(s), 10 * scan)}
    seconds = named[lasts] if isinstance(lasts, str) else lasts * scan
    return s.replace(**{**DECIDED, "horizon_seconds": round(seconds, 1), **changes})


def each_block(s: Scenario, *ops: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return one event a 2 MiB block, the operations in turn; their `page` counts from the start of the block.

    Page -1 is the last page of the block.
    """
    size = s.pages_per_thp
    places = [(i, block * size) for i, spec in enumerate(s.specs) for block in range(s.pages_of(spec) // size)]
    return tuple(
        {"after": {"seconds": SECONDS_BEFORE}, "process": process, **op, "page": first + op["page"] % size}
        for number, (process, first) in enumerate(places)
        for op in [ops[number % len(ops)]]
    )


def listed(what: str, **fields: Any) -> Scene:
    """Return the scene of an entry of `scenes.yaml`, described by `what`."""

    def build(s: Scenario) -> Scenario:
        kept = {name: getattr(s, name) for name in fields.get("keep", ())}
        events = each_block(s, fields["each_block"]) if "each_block" in fields else ()
        return calm(s, fields["lasts"], **kept, **fields.get("set", {}), events=events)

    build.__doc__ = what
    return build


SCENES |= {name: listed(**entry) for name, entry in LISTED["scenes"].items()}


def first(s: Scenario, causes: Sequence[str] = FIRST_SPLITS) -> Scenario:
    """KSM off; each THP is split once by migration or by MADV_PAGEOUT, MADV_COLD or MADV_FREE of one page, then
    pressure and khugepaged go on"""
    whole = {"op": "migrate", "page": 0, "count": s.pages_per_thp, "huge": 0}
    events = each_block(s, *(whole if op == "migrate" else {"op": op, "page": -1, "count": 1} for op in causes))
    until_empty = 2 * (s.total_pages // s.pages_per_thp) / s.pressure_rate if s.pressure_rate else 0.0
    horizon = 60.0 + 2 * pingpong.turn_seconds(s) + until_empty
    return calm(s, 1, run=0, khugepaged=1, pressure_rate=s.pressure_rate, horizon_seconds=horizon, events=events)


SCENES |= {"first": first, **{f"first-{cause}": partial(first, causes=[cause]) for cause in FIRST_SPLITS}}


@scene
def late(s: Scenario) -> Scenario:
    """blocks migrate at migration_rate; KSM is enabled at ksm_start_seconds, or after the time of a full scan"""
    start = s.ksm_start_seconds or pingpong.scan_seconds(s)
    horizon = round(start + 6 * pingpong.scan_seconds(s), 1)
    return calm(s, 6, ksm_start_seconds=start, horizon_seconds=horizon, migration_rate=s.migration_rate)


@scene
def mix(s: Scenario) -> Scenario:
    """KSM on; half of migration_rate, a sixteenth of pressure_rate, MADV_COLD of a part of every 4th THP"""
    events = each_block(s, *({"op": op, "page": -1, "count": 1} for op in ("cold", "read", "read", "read")))
    return calm(s, 6, migration_rate=s.migration_rate / 2, pressure_rate=s.pressure_rate / 16, events=events)


@scene
def sparse(s: Scenario) -> Scenario:
    """KSM alone until settled, use_zero_pages=1, two zero-filled pages in each THP"""
    few = {"zero_fraction": 2 / s.pages_per_thp, "layout": "zero-first"}
    return calm(s, "settled", until_settled=True, use_zero_pages=1, **few)


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
    size, target = max(512, s.memory_mib), min(2, s.advisor_target_scan_time)
    knobs = {"advisor_mode": "scan-time", "advisor_target_scan_time": target, "sleep_millisecs": 20}
    return calm(s, 1, memory_mib=size, horizon_seconds=30.0, **knobs)


@scene
def numa(s: Scenario) -> Scenario:
    """two nodes, merge_across_nodes=0, two processes with equal pages"""
    groups = max(1, s.memory_mib * 4)  # 64 pages a content
    return calm(s, 12, nodes=2, merge_across_nodes=0, processes=2, duplicate_fraction=1.0, duplicate_groups=groups)


def numbered(variant: str) -> str:
    """Return a variant's number in the discussion and its name; the name alone of one that has no number."""
    return " ".join([*CODES.get(variant, [])[:1], variant])


def scene_runs(
    name: str, base: Scenario, variants: Iterable[AnyVariant] = tuple(VARIANTS), **changes: Any
) -> dict[str, Run]:
    """Return the runs of a scene under several variants, by their names; `changes` are made to the base first."""
    scenario = SCENES[name](base.replace(**changes))
    return {v.name: simulate(scenario, variant=v) for v in map(resolve, variants)}
