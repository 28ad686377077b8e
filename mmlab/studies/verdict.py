"""The mailing list's questions, asked of every variant: the matrix *question x variant*, a number a cell.

A `Scene` makes a scenario out of a base (its memory, its knobs, its rates); a `Question` runs a scene and measures one
number. `verdict` runs all of them under all variants:

>>> v = verdict(Scenario(**{**BASE, "memory_mib": 4}), ["legacy", "mainline"], ["c3"])
>>> v.cells["c3"]
{'legacy': 0.0, 'mainline': 3.0}
>>> print(v.text(legend=False))
question                V-1    V0
                        leg  main
----------------------------------
c3 … freed, KSM off       0-  3.0+

Beside each number stands what it is among those of its row: `+` the best (or near it), `-` the
worst, nothing in between, `=` all the same. Which end is good is the question's; the legend tells.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmlab.errors import UserError, unknown
from mmlab.results.uncertainty import error_of, one_digit
from mmlab.scenario import Scenario
from mmlab.studies import pingpong
from mmlab.variants import CALLERS, VARIANTS, Predicate, SplitContext, Variant, resolve

if TYPE_CHECKING:
    import pandas as pd

    from mmlab.results.run import Run

__all__ = [
    "BASE",
    "CODES",
    "FIRST_SPLITS",
    "QUESTIONS",
    "SCENES",
    "Question",
    "Scene",
    "Verdict",
    "group_equal",
    "over_time",
    "possible",
    "scene_runs",
    "truth_table",
    "verdict",
    "weights",
]

#: What the questions are asked of unless told otherwise: 16 THPs, three quarters zero-filled, and a ksmd so slow that
#: other things happen before it comes: a full scan of 9 s stands for the minutes that it takes on a host.
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

#: Variant → its number in the discussion, and the short name of its column.
CODES = {
    "legacy": ("V-1", "leg"),
    "mainline": ("V0", "main"),
    "rfc-underused-only": ("V1", "rfc"),
    "rfc-underused-strict": ("V1s", "rfcs"),
    "ksm-opt-out": ("V2", "opt"),
    "v1-mergeable": ("V3", "merg"),
    "v1-shrinker-gate": ("V4", "gate"),
    "v1-series": ("V5", "ser"),
    "skip-zeropage": ("V6", "skip"),
}
LABEL, CELL, WIDTH = 22, 6, 76
NEAR, SAME = 0.02, 0.05
"""Part of a row's range that still counts as its best or worst; rows that differ by less than 5 % are all the same."""
PAGES_PER_MIB = 256
SECONDS_BEFORE = 0.5
"""When one-time events happen: before ksmd, khugepaged or the shrinker has done anything."""

# what a scene decides by itself; everything else is the base's
_CALM: dict[str, Any] = {
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


@dataclass(frozen=True)
class Scene:
    """What is done to the base's memory; `what` says it in one sentence."""

    name: str
    what: str
    build: Callable[[Scenario], Scenario]


@dataclass(frozen=True)
class Question:
    """One row of the matrix.

    Attributes
    ----------
    key, label
        Its name, and its words in the matrix (22 characters together).
    who
        Who asked; "text" stands for a rule that was only read, never seen on a kernel.
    ask
        What the number is.
    best
        Whether most or least of it is good.
    """

    key: str
    label: str
    who: str
    ask: str
    unit: str
    best: Literal["most", "least"]
    scene: str
    measure: Callable[[Run], float | None]
    from_text_only: bool = False


# -- scenes -----------------------------------------------------------------------------------------------------------


def scan_seconds(s: Scenario) -> float:
    """About how long ksmd takes for a full scan of all pages, s: its sleeps, and 1 µs a page."""
    batches = -(-s.total_pages // max(1, s.pages_to_scan))
    ticks = -(-s.sleep_millisecs * s.hz // 1000) + 1
    return max(0.1, round(batches * ticks / s.hz + s.total_pages * 1e-6, 1))


def blocks(s: Scenario) -> int:
    """2 MiB blocks of all processes."""
    return s.total_pages // s.pages_per_thp


def _calm(s: Scenario, scans: float, **changes: Any) -> Scenario:
    """The base with nothing going on but what the scene asks for, for so many full scans of ksmd."""
    return s.replace(**{**_CALM, "horizon_seconds": round(scans * scan_seconds(s), 1), **changes})


def _each_block(s: Scenario, ops: Sequence[Mapping[str, Any]], seconds: float = SECONDS_BEFORE) -> tuple[Any, ...]:
    """An event a block: the ops in turn; each op's page counts from the begin of its block."""
    size, events, number = s.pages_per_thp, [], 0
    for process, spec in enumerate(s.specs):
        for block in range(s.pages_of(spec) // size):
            op = dict(ops[number % len(ops)])
            op["page"] += block * size
            events.append({"after": {"seconds": seconds}, "process": process, **op})
            number += 1
    return tuple(events)


def _migration(s: Scenario) -> Scenario:
    return _calm(s, 6, migration_rate=s.migration_rate)


def _switch(s: Scenario) -> Scenario:
    return _calm(s, 6, migration_rate=s.migration_rate, shrink_underused=0)


FIRST_SPLITS = ("migrate", "pageout", "cold", "free")
"""What splits a THP before the shrinker does: migration without a huge page; MADV_* of its last page."""


def _first(s: Scenario, causes: Sequence[str] = FIRST_SPLITS) -> Scenario:
    size = s.pages_per_thp
    whole, part = {"page": 0, "count": size, "huge": 0}, {"page": size - 1, "count": 1}
    ops = [{"op": cause, **(whole if cause == "migrate" else part)} for cause in causes]
    horizon = 60.0 + 2 * pingpong.turn_seconds(s) + (2 * blocks(s) / s.pressure_rate if s.pressure_rate else 0.0)
    return _calm(
        s, 1, run=0, khugepaged=1, pressure_rate=s.pressure_rate, horizon_seconds=horizon, events=_each_block(s, ops)
    )


def _pressure(s: Scenario) -> Scenario:
    return _calm(s, 6, pressure_rate=s.pressure_rate)


def _pressure_off(s: Scenario) -> Scenario:
    return _calm(s, 6, pressure_rate=s.pressure_rate, run=0)


def _partial(s: Scenario) -> Scenario:
    op = {"op": "dontneed", "page": s.pages_per_thp - 1, "count": 1}
    return _calm(s, 6, pressure_rate=s.pressure_rate, run=0, max_ptes_none=511, events=_each_block(s, [op]))


def _late(s: Scenario) -> Scenario:
    start = s.ksm_start_seconds or scan_seconds(s)
    return _calm(
        s,
        6,
        ksm_start_seconds=start,
        horizon_seconds=round(start + 6 * scan_seconds(s), 1),
        migration_rate=s.migration_rate,
    )


def _mix(s: Scenario) -> Scenario:
    cold = {"op": "cold", "page": s.pages_per_thp - 1, "count": 1}
    nothing = {"op": "read", "page": s.pages_per_thp - 1, "count": 1}
    rates = {"migration_rate": s.migration_rate / 2, "pressure_rate": s.pressure_rate / 16}
    return _calm(s, 6, **rates, events=_each_block(s, [cold, nothing, nothing, nothing]))


def _alone(s: Scenario, use_zero_pages: int, **changes: Any) -> Scenario:
    scans = 16 + blocks(s)  # enough for one THP a full scan
    return _calm(s, scans, use_zero_pages=use_zero_pages, until_settled=True, **changes)


def _sparse(s: Scenario) -> Scenario:
    return _alone(s, 1, zero_fraction=2 / s.pages_per_thp, layout="zero-first")


def _pingpong(s: Scenario, **changes: Any) -> Scenario:
    horizon = round(max(600.0, 10 * pingpong.turn_seconds(s), 10 * scan_seconds(s)), 1)
    knobs = {"khugepaged": 1, "max_ptes_none": 511, "use_zero_pages": 1, **changes}
    return _calm(s, 1, horizon_seconds=horizon, **knobs)


def _swap(s: Scenario) -> Scenario:
    op = {"op": "pageout", "page": 0, "count": s.pages_per_thp - 1}
    mib = max(s.swap_mib, 2 * s.total_pages // PAGES_PER_MIB)
    return _calm(s, 0.9, swap_mib=mib, events=_each_block(s, [op]))


def _mthp(s: Scenario) -> Scenario:
    return _calm(s, 40, use_zero_pages=0, folio_order=s.folio_order if 1 < s.folio_order < 9 else 4)


def _advisor(s: Scenario) -> Scenario:
    target = min(2, s.advisor_target_scan_time)
    return _calm(
        s,
        1,
        advisor_mode="scan-time",
        sleep_millisecs=20,
        memory_mib=max(512, s.memory_mib),
        advisor_target_scan_time=target,
        horizon_seconds=30.0,
    )


def _numa(s: Scenario) -> Scenario:
    pages = s.memory_mib * PAGES_PER_MIB
    groups = max(1, pages // 64)
    return _calm(s, 12, nodes=2, merge_across_nodes=0, processes=2, duplicate_fraction=1.0, duplicate_groups=groups)


def _poison(s: Scenario) -> Scenario:
    op = {"op": "memory_failure", "page": s.pages_per_thp - 1}
    return _calm(s, 0.9, events=_each_block(s, [op]))


SCENES: dict[str, Scene] = {
    scene.name: scene
    for scene in (
        Scene("migration", "KSM on; blocks migrate at migration_rate while ksmd scans (6 full scans)", _migration),
        Scene(
            "first",
            "KSM off; each THP is split once by migration or by MADV_PAGEOUT, MADV_COLD or MADV_FREE of "
            "one page, then pressure and khugepaged go on",
            _first,
        ),
        *(Scene(f"first-{op}", f"as first, by {op} alone", partial(_first, causes=[op])) for op in FIRST_SPLITS),
        Scene("pressure", "KSM on; the shrinker is asked for pressure_rate folios a second (6 full scans)", _pressure),
        Scene("pressure-off", "the same with KSM off", _pressure_off),
        Scene(
            "partial",
            "KSM off; one page of each THP is unmapped, then pressure comes; max_ptes_none is 511, the default",
            _partial,
        ),
        Scene(
            "late",
            "blocks migrate at migration_rate; KSM is enabled at ksm_start_seconds, or after the time of a full scan",
            _late,
        ),
        Scene(
            "mix",
            "KSM on; half of migration_rate, a sixteenth of pressure_rate, MADV_COLD of a part of every 4th THP",
            _mix,
        ),
        Scene("uzp1", "KSM alone until settled, use_zero_pages=1", lambda s: _alone(s, 1)),
        Scene("uzp0", "KSM alone until settled, use_zero_pages=0", lambda s: _alone(s, 0)),
        Scene("sparse", "KSM alone until settled, use_zero_pages=1, two zero-filled pages in each THP", _sparse),
        Scene("pingpong", "KSM and khugepaged by their own clocks, use_zero_pages=1, max_ptes_none=511", _pingpong),
        Scene("pingpong-none", "the same with max_ptes_none=0", lambda s: _pingpong(s, max_ptes_none=0)),
        Scene("pingpong-uzp0", "as pingpong, with use_zero_pages=0", lambda s: _pingpong(s, use_zero_pages=0)),
        Scene("swap", "all but the last page of each THP is paged out, before ksmd has merged anything", _swap),
        Scene(
            "mthp",
            "KSM alone, use_zero_pages=0, folios of folio_order (of order 4, if that is 9): 40 full scans",
            _mthp,
        ),
        Scene(
            "advisor",
            "the scan-time advisor chooses pages_to_scan: 30 s, at least 512 MiB, 20 ms, a target of 2 s at most",
            _advisor,
        ),
        Scene("numa", "two nodes, merge_across_nodes=0, two processes with equal pages", _numa),
        Scene("poison", "one used page of each THP is poisoned, before ksmd has merged anything", _poison),
        Scene("switch-off", "as migration, with shrink_underused=0", _switch),
    )
}


# -- measures ---------------------------------------------------------------------------------------------------------


def last(run: Run, *names: str) -> float:
    """Sum of these counters at the end."""
    return float(sum(int(run.rows[name][-1]) for name in names))


def mib(run: Run, *names: str) -> float:
    """Sum of these counters of pages at the end, in MiB."""
    return last(run, *names) / PAGES_PER_MIB


def wasted(run: Run) -> np.ndarray:
    """Zero-filled memory that is allocated at each sample, pages: frames beyond the pages that hold something else.

    Pages in swap count among those. Exact while no two of them are equal.
    """
    used = int((run.machine.page["key"] != 0).sum())
    in_swap = np.minimum(run.rows["swap_entries"], used)
    pages: np.ndarray = np.maximum(0, run.rows["frames"] + in_swap - used)
    return pages


def held(run: Run) -> float:
    """Zero-filled memory that is allocated, over time: MiB·s from the start to the end of the run."""
    seconds = np.diff(run.rows["time_ns"]) / 1e9
    return float((wasted(run)[:-1] * seconds).sum()) / PAGES_PER_MIB


def gone_after(run: Run, share: float = 0.99) -> float | None:
    """When so large a share of the zero-filled memory has been given back, s; None: never in this run."""
    waste = wasted(run)
    done = np.flatnonzero(waste <= (1 - share) * waste[0])
    return float(run.rows["time_ns"][done[0]]) / 1e9 if len(done) and waste[0] else None


def freed(run: Run) -> float:
    """MiB freed from the start to the end."""
    return float(int(run.rows["frames"][0]) - int(run.rows["frames"][-1])) / PAGES_PER_MIB


def at(run: Run, seconds: float, *names: str) -> float:
    """Sum of these counters at that time, in MiB."""
    row = int(np.searchsorted(run.rows["time_ns"], round(seconds * 1e9), side="right")) - 1
    return float(sum(int(run.rows[name][row]) for name in names)) / PAGES_PER_MIB


def collapses(run: Run) -> float:
    """Ranges that khugepaged collapses by the hour, once the loop goes on."""
    return pingpong.measure(run).collapses_per_hour


def swing(run: Run) -> float:
    """Most minus least memory allocated after the first quarter of the run, MiB."""
    rows = run.rows
    frames = rows["frames"][int(np.searchsorted(rows["time_ns"], rows["time_ns"][-1] // 4)) :]
    return float(frames.max() - frames.min()) / PAGES_PER_MIB


def hunting(run: Run) -> float:
    """Largest over smallest pages_to_scan in the second half of the run."""
    rows = run.rows
    pages = rows["pages_to_scan"][int(np.searchsorted(rows["time_ns"], rows["time_ns"][-1] // 2)) :]
    return float(pages.max()) / max(1.0, float(pages.min()))


def _ratio(number: float, by: float) -> float | None:
    return number / by if by > 0 else None


def _start(run: Run) -> float:
    return run.scenario.ksm_start_seconds


BY_OTHERS = ("zeropages_by_shrinker", "zeropages_by_other")

QUESTIONS: dict[str, Question] = {
    q.key: q
    for q in (
        Question(
            "a1",
            "migration: freed",
            "N. Pache",
            "zero-filled memory that migration's splits give back at once",
            "MiB",
            "most",
            "migration",
            lambda r: mib(r, "zeropages_by_other"),
        ),
        Question(
            "a2",
            "… zeroes held",
            "N. Pache",
            "zero-filled memory kept, times how long, until ksmd has freed it",
            "MiB s",
            "least",
            "migration",
            held,
        ),
        Question(
            "b1",
            "split first: waste",
            "D. Hildenbrand",
            "zero-filled memory kept, times how long, until khugepaged and the shrinker have freed it",
            "MiB s",
            "least",
            "first",
            held,
        ),
        Question(
            "b2",
            "zeroes in swap",
            "N. Pache",
            "zero-filled memory that went into swap slots",
            "MiB",
            "least",
            "swap",
            lambda r: max(0.0, mib(r, "swap_entries") - _paged_out_used(r)),
        ),
        Question(
            "c1",
            "pressure: freed",
            "inferred",
            "zero-filled memory that the shrinker's splits give back at once",
            "MiB",
            "most",
            "pressure",
            lambda r: mib(r, "zeropages_by_shrinker"),
        ),
        Question(
            "c2",
            "… 99 % gone after",
            "inferred",
            "when 99 % of it is given back, by whomever",
            "s",
            "least",
            "pressure",
            gone_after,
        ),
        Question(
            "c3",
            "… freed, KSM off",
            "D. Hildenbrand",
            "as c1",
            "MiB",
            "most",
            "pressure-off",
            lambda r: mib(r, "zeropages_by_shrinker"),
        ),
        Question(
            "c4",
            "… partly unmapped",
            "inferred",
            "as c1",
            "MiB",
            "most",
            "partial",
            lambda r: mib(r, "zeropages_by_shrinker"),
        ),
        Question(
            "d1",
            "freed, before KSM",
            "D. Hildenbrand",
            "memory given back by migration's splits before KSM is enabled",
            "MiB",
            "most",
            "late",
            lambda r: at(r, _start(r), "zeropages_by_other"),
        ),
        Question(
            "d2",
            "… and since",
            "D. Hildenbrand",
            "… and after that",
            "MiB",
            "most",
            "late",
            lambda r: mib(r, "zeropages_by_other") - at(r, _start(r), "zeropages_by_other"),
        ),
        Question(
            "e1",
            "KSM splits remap",
            "L. Yang",
            "memory that KSM's own splits remap, outside of its budget",
            "MiB",
            "least",
            "mix",
            lambda r: mib(r, "zeropages_by_ksm"),
        ),
        Question(
            "e2",
            "other splits remap",
            "L. Yang",
            "memory that all other splits remap",
            "MiB",
            "most",
            "mix",
            lambda r: mib(r, *BY_OTHERS),
        ),
        Question(
            "f1",
            "batch over budget",
            "N. Pache",
            "most pages freed by a batch, over pages_to_scan",
            "times",
            "least",
            "uzp1",
            lambda r: r.metrics.most_freed_per_budget,
        ),
        Question(
            "f2",
            "in no KSM counter",
            "xu xin",
            "memory freed that KSM's counters don't show",
            "MiB",
            "least",
            "uzp1",
            lambda r: r.metrics.freed_unseen_pages / PAGES_PER_MIB,
        ),
        Question(
            "f3",
            "wasted visits",
            "xu xin",
            "visits whose search of the unstable tree ended on a dead node",
            "%",
            "least",
            "uzp1",
            lambda r: r.metrics.wasted_visits_share,
        ),
        Question(
            "f4",
            "uzp=0: 99 % gone",
            "N. Pache",
            "when 99 % of the zero-filled memory is given back",
            "s",
            "least",
            "uzp0",
            gone_after,
        ),
        Question(
            "f5",
            "uzp=0: CPU per MiB",
            "xu xin",
            "ksmd's CPU time per MiB given back",
            "ms/MiB",
            "least",
            "uzp0",
            lambda r: _ratio(r.metrics.ksmd_cpu_ms, freed(r)),
        ),
        Question(
            "g1",
            "THPs per MiB saved",
            "U. Arif",
            "THPs split for each MiB that KSM saves where little can be merged",
            "THPs",
            "least",
            "sparse",
            lambda r: _ratio(last(r, "thp_split_page"), freed(r)),
        ),
        Question(
            "h1",
            "ping-pong: splits",
            "inferred",
            "THPs split by ksmd and collapsed again, by the hour",
            "1/h",
            "least",
            "pingpong",
            collapses,
        ),
        Question(
            "h2",
            "… memory swing",
            "inferred",
            "most minus least memory allocated after the first quarter",
            "MiB",
            "least",
            "pingpong",
            swing,
        ),
        Question("h3", "… max_ptes_none=0", "OpenShift", "as h1", "1/h", "least", "pingpong-none", collapses),
        Question("h4", "… use_zero_pages=0", "inferred", "as h1", "1/h", "least", "pingpong-uzp0", collapses),
        Question(
            "i1",
            "advisor's hunting",
            "inferred",
            "largest over smallest pages_to_scan, second half of the run",
            "times",
            "least",
            "advisor",
            hunting,
        ),
        Question("i2", "mTHP: freed", "inferred", "memory given back", "MiB", "most", "mthp", freed),
        Question("i3", "NUMA: freed*", "text", "memory given back", "MiB", "most", "numa", freed, from_text_only=True),
        Question(
            "i4",
            "poison: freed*",
            "text",
            "zero-filled memory that the splits give back at once",
            "MiB",
            "most",
            "poison",
            lambda r: mib(r, "zeropages_by_other"),
            from_text_only=True,
        ),
        Question(
            "k1",
            "switched off, remap",
            "D. Hildenbrand",
            "memory remapped although shrink_underused=0",
            "MiB",
            "least",
            "switch-off",
            lambda r: mib(r, "zeropages_by_ksm", *BY_OTHERS),
        ),
    )
}


def _paged_out_used(run: Run) -> float:
    """MiB of the pages of scene *swap* that are not zero-filled: they had to go to swap."""
    size, out = run.scenario.pages_per_thp, 0
    for mm in run.machine.mm[1 : run.processes + 1]:
        keys = run.machine.page["key"][int(mm["base"]) : int(mm["base"]) + int(mm["pages"])]
        out += int((keys[: len(keys) // size * size].reshape(-1, size)[:, :-1] != 0).sum())
    return out / PAGES_PER_MIB


# -- the matrix -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The matrix: `cells[question][variant]`, None where the thing never happened in the run.

    `errors` has the cells' standard errors, as far as they come from what ksmd's steps cost.
    """

    scenario: Scenario
    variants: tuple[str, ...]
    questions: tuple[Question, ...]
    cells: dict[str, dict[str, float | None]]
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """A row a question (index: its key), a column a variant."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.cells, orient="index", columns=list(self.variants)).astype(float)

    def marks(self, key: str) -> dict[str, str]:
        """Variant → `+` among the best of this row, `-` among the worst, `=` all the same, or a blank."""
        question = next(q for q in self.questions if q.key == key)
        sign = 1 if question.best == "most" else -1
        row = self.cells[key]
        numbers = [sign * value for value in row.values() if value is not None]
        if not numbers:
            return dict.fromkeys(row, "=")
        low, high = min(numbers), max(numbers)
        never = None in row.values()  # what never happens is worst, whichever end is good
        if high - low <= SAME * max(abs(low), abs(high)) and not never:
            return dict.fromkeys(row, "=")
        room = NEAR * (high - low)

        def mark(value: float | None) -> str:
            if value is None:
                return "-"
            value *= sign
            return "+" if value >= high - room else "-" if value <= low + room and not never else " "

        return {variant: mark(value) for variant, value in row.items()}

    @property
    def places(self) -> pd.DataFrame:
        """Where each variant stands in the rows in which they differ: 1 the best of its row, 0 the worst, by value.

        What never happens is worse than the worst number, by the row's range or that number, whichever is more.
        """
        import pandas as pd

        table = self.table.loc[[q.key for q in self.questions if set(self.marks(q.key).values()) != {"="}]]
        best = {q.key: q.best for q in self.questions}
        for key, row in table.iterrows():
            values = row if best[str(key)] == "most" else -row
            low, high = values.min(), values.max()
            values = values.fillna(low - max(high - low, abs(low), 1.0) if low == low else 0.0)
            span = values.max() - values.min()
            table.loc[key] = (values - values.min()) / (span or 1.0)
        return table.astype(float) if len(table) else pd.DataFrame(columns=list(self.variants), dtype=float)

    def better(self, one: str, other: str) -> list[str]:
        """Keys of the questions in which one variant is better than another, by more than 2 % of the row's range."""
        places = self.places
        return [str(key) for key in places.index if places.at[key, one] > places.at[key, other] + NEAR]

    def pareto(self) -> dict[str, list[str]]:
        """Variant → those that dominate it: never worse, and better in something. An empty list: on the front."""
        wins = {(a, b): self.better(a, b) for a in self.variants for b in self.variants}
        return {b: [a for a in self.variants if wins[a, b] and not wins[b, a]] for b in self.variants}

    def cell(self, key: str, variant: str) -> str:
        """A cell's number in at most five characters."""
        return _short(self.cells[key][variant])

    def text(self, legend: bool = True) -> str:
        """The matrix as plain text of at most 76 columns (with nine variants), and what its rows mean."""
        codes = [CODES.get(name, ("", name[: CELL - 2])) for name in self.variants]
        heads = [
            label.ljust(LABEL) + "".join(f"{code[i]} ".rjust(CELL) for code in codes)
            for i, label in enumerate(("question", ""))
        ]
        lines = [head.rstrip() for head in heads] + ["-" * (LABEL + CELL * len(codes))]
        for q in self.questions:
            marks = self.marks(q.key)
            cells = "".join((self.cell(q.key, v) + marks[v]).rjust(CELL) for v in self.variants)
            lines.append((f"{q.key} {q.label}".ljust(LABEL) + cells).rstrip())
        return "\n".join([*lines, "", self.legend()] if legend else lines)

    def legend(self) -> str:
        """What was run, and what each row's number is."""
        lines = [_wrapped("", "+ best of the row, - worst, = all the same (within 5 %); inf: never within the run.")]
        if any(q.from_text_only for q in self.questions):
            lines.append(_wrapped("", "* from the text only: no recorded kernel has shown it."))
        s = self.scenario
        shown = {name: getattr(s, name) for name in BASE}
        for name in sorted(s.model_fields_set - set(BASE) - set(_CALM)):
            if getattr(s, name) != type(s).model_fields[name].default and not name.startswith("horizon_"):
                shown[name] = getattr(s, name)
        values = ", ".join(f"{name}={value}" for name, value in shown.items())
        lines.append(_wrapped("", f"Asked of: {values}. A full scan takes {scan_seconds(s):g} s."))
        lines.append("")
        rows = [
            _wrapped(q.key, f"{q.ask} ({q.unit}{self.sure(q)}, {q.best} is best; {q.who}). Scene {q.scene}.")
            for q in self.questions
        ]
        names = dict.fromkeys(q.scene for q in self.questions)
        scenes = [_wrapped(f"{name}:", SCENES[name].what + ".") for name in names]
        return "\n".join([*lines, *rows, "", *scenes])

    def sure(self, question: Question) -> str:
        """Behind a row's unit: the largest standard error of its numbers, if that is more than 0.01 % of its number."""
        cells, errors = self.cells[question.key], self.errors.get(question.key, {})
        error = max((e for variant, e in errors.items() if e > 1e-4 * abs(cells[variant] or 0.0)), default=0.0)
        return f" ± {one_digit(error)}" if error else ""

    def as_json(self) -> dict[str, Any]:
        """Plain data: scenario, variants, questions, and the cells and their errors unrounded."""
        questions = [
            {
                "key": q.key,
                "label": q.label,
                "who": q.who,
                "ask": q.ask,
                "unit": q.unit,
                "best": q.best,
                "scene": q.scene,
                "scene_is": SCENES[q.scene].what,
                "from_text_only": q.from_text_only,
                "cells": self.cells[q.key],
                "errors": self.errors.get(q.key, {}),
                "marks": self.marks(q.key),
            }
            for q in self.questions
        ]
        scenario = {name: getattr(self.scenario, name) for name in sorted(self.scenario.model_fields_set)}
        return {"scenario": scenario, "variants": list(self.variants), "questions": questions}


def verdict(
    base: Scenario | None = None,
    variants: Iterable[str | Variant | Predicate] = tuple(VARIANTS),
    questions: Iterable[str] = tuple(QUESTIONS),
    progress: Callable[[int, int, str], None] | None = None,
) -> Verdict:
    """Ask the questions of every variant.

    Parameters
    ----------
    base
        Memory, knobs and rates; what a scene needs otherwise it changes. Default: `BASE`.
    variants
        Names, or variants of your own (a `Variant`, or a predicate).
    questions
        Keys of `QUESTIONS`; the letter alone stands for all that begin with it.
    progress
        Called after each run with (runs done, runs in all, what was run).

    Raises
    ------
    UserError
        A question or a variant is not known, or the base has events or processes of its own.
    """
    from mmlab.engine.clock import simulate

    base = Scenario(**BASE) if base is None else base
    if base.events or base.process_list:
        raise UserError("process_list, events: a verdict makes its own events; give it plain values")
    asked = _asked(questions)
    chosen = {v.name: v for v in map(resolve, variants)}
    by_scene = {name: [q for q in asked if q.scene == name] for name in dict.fromkeys(q.scene for q in asked)}
    cells: dict[str, dict[str, float | None]] = {q.key: {} for q in asked}
    errors: dict[str, dict[str, float]] = {q.key: {} for q in asked}
    done = 0
    for name, rows in by_scene.items():
        scenario = SCENES[name].build(base)
        for variant in chosen.values():
            run = simulate(scenario, variant=variant)
            for q in rows:
                value = q.measure(run)
                cells[q.key][variant.name] = None if value is None else round(float(value), 9)
                errors[q.key][variant.name] = round(error_of(run, q.measure), 9)
            done += 1
            if progress:
                progress(done, len(by_scene) * len(chosen), f"{name}, {variant.name}")
    return Verdict(base, tuple(chosen), tuple(asked), cells, errors)


def scene_runs(
    name: str,
    base: Scenario,
    variants: Iterable[str | Variant | Predicate] = tuple(VARIANTS),
    **changes: Any,
) -> dict[str, Run]:
    """A scene under several variants, by their names; `changes` are made to the base first."""
    from mmlab.engine.clock import simulate

    scenario = SCENES[name].build(base.replace(**changes) if changes else base)
    return {v.name: simulate(scenario, variant=v) for v in map(resolve, variants)}


def possible(context: SplitContext) -> bool:
    """ksmd splits only while it runs: `run` changes between its batches (ksm-scan S6). All else can happen."""
    return context.ksm_running or context.caller != "ksm"


def truth_table(variants: Iterable[str | Variant | Predicate] = tuple(VARIANTS)) -> pd.DataFrame:
    """Every answer of some variants: a row each of the 32 contexts (index: them), a column a variant, booleans.

    Raises
    ------
    UserError
        A predicate raised, gave something else than true or false, or two answers to the same question.

    Examples
    --------
    >>> truth_table(["mainline", "ksm-opt-out"]).sum().to_dict()
    {'mainline': 32, 'ksm-opt-out': 24}
    """
    import pandas as pd

    contexts = [SplitContext(c, *flags) for c in CALLERS for flags in product((False, True), repeat=3)]
    columns = {v.name: [_answer(v, c) for c in contexts] for v in map(resolve, variants)}
    return pd.DataFrame(columns, index=pd.Index(contexts, dtype=object), dtype=bool)


def _answer(variant: Variant, context: SplitContext) -> bool:
    try:
        first, again = variant.predicate(context), variant.predicate(context)
    except Exception as error:
        raise UserError(
            f"variant {variant.name}: {type(error).__name__}: {error}, when asked about {context}. A "
            f"predicate may look at {', '.join(vars(context))} and shrinker"
        ) from error
    if not isinstance(first, (bool, int, np.bool_)) or first not in (0, 1):
        raise UserError(
            f"variant {variant.name}: the answer to {context} is {first!r}: return True (the zero-filled "
            "page becomes the shared zeropage) or False (it stays)"
        )
    if first != again:
        raise UserError(
            f"variant {variant.name}: two different answers to {context}: a predicate may depend on nothing else"
        )
    return bool(first)


def weights(text: str, questions: Iterable[str] = tuple(QUESTIONS)) -> dict[str, float]:
    """How much each question counts, from words such as ``"f=3, a1=0"``; what is not named counts 1.

    Raises
    ------
    UserError
        A question is not known, or a weight is no number of at least 0.

    Examples
    --------
    >>> weights("f=3, f2=0", ["a1", "f1", "f2"])
    {'a1': 1.0, 'f1': 3.0, 'f2': 0.0}
    """
    out = dict.fromkeys(questions, 1.0)
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, number = (word.strip() for word in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UserError(f"weights: {part!r}: write QUESTION=NUMBER, the number at least 0, such as f=3, a1=0")
        out |= {q.key: value for q in _asked([key]) if q.key in out}
    return out


def group_equal(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Variants whose values (numbers, tuples or arrays) are equal: label → their names, in the order given.

    >>> group_equal({"mainline": 1, "ksm-opt-out": 2, "skip-zeropage": 1})
    {'V0 V6 mainline …': ['mainline', 'skip-zeropage'], 'V2 ksm-opt-out': ['ksm-opt-out']}
    """
    groups: dict[bytes, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(np.asarray(value).tobytes(), []).append(name)
    return {
        " ".join([*(CODES.get(n, (n,))[0] for n in names), names[0] + (" …" if len(names) > 1 else "")]): names
        for names in groups.values()
    }


def over_time(runs: Mapping[str, Run], series: Callable[[Run], np.ndarray], what: str) -> pd.DataFrame:
    """A series over simulated time, a line for each group of variants that are alike in it (at 100 times of the run).

    Columns: time (s), `what`, variants.
    """
    import pandas as pd

    times = {name: run.rows["time_ns"] / 1e9 for name, run in runs.items()}
    values = {name: series(run) for name, run in runs.items()}
    grid = np.linspace(0, max(float(time[-1]) for time in times.values()), 101)[:-1]
    seen = {name: values[name][np.searchsorted(times[name], grid, side="right") - 1] for name in runs}
    return pd.concat(
        pd.DataFrame({"simulated time (s)": times[names[0]], what: values[names[0]], "variants": label})
        for label, names in group_equal(seen).items()
    )


def _asked(keys: Iterable[str]) -> list[Question]:
    wanted: dict[str, Question] = {}
    for key in keys:
        found = {k: q for k, q in QUESTIONS.items() if k == key or (len(key) == 1 and k.startswith(key))}
        if not found:
            raise unknown("question", key, QUESTIONS, f"There are {', '.join(QUESTIONS)}.")
        wanted |= found
    return [q for key, q in QUESTIONS.items() if key in wanted]


def _short(value: float | None) -> str:
    """A number of at most five characters."""
    if value is None:
        return "inf"
    if value == 0:
        return "0"
    if abs(value) < 0.095:
        return f"{value:.2f}"
    if abs(value) < 9.95:
        return f"{value:.1f}"
    return f"{value:.0f}" if abs(value) < 99_999.5 else f"{value / 1000:.0f}k"


def _wrapped(key: str, text: str) -> str:
    head = f"{key} " if key else ""
    return textwrap.fill(head + text, WIDTH, subsequent_indent="   " if key else "", break_on_hyphens=False)
