"""Events: what a scenario does to the machine from outside, one function an operation (trace-format, Events).

`happen` carries out one event. What an operation does is a function here, registered for the operation's class; without
one, the method of `System`, or else of `mmlab.kernel.mmap.AddressSpaces`, with the operation's name is called on the
event's process, its range of pages and its other fields, in this order.
"""

import errno
from functools import singledispatch

import numpy as np

import mmlab.scenario as ops
from mmlab.engine.system import System
from mmlab.errors import UserError
from mmlab.kernel import memory
from mmlab.kernel.folio import lru_add_drain_all
from mmlab.kernel.huge_memory import deferred_split_scan, split_huge_pages
from mmlab.kernel.khugepaged import khugepaged_full_scan
from mmlab.kernel.migrate import memory_failure, migrate_pages
from mmlab.kernel.state import CALLER_OTHER


def happen(system: System, event: ops.Event) -> int:
    """Carry out an event; return 0 or the errno of the system call.

    Raises
    ------
    UserError
        The process is a fork's child that was not born yet.
    """
    m, stat, alive = system.m, system.m.stat[0], True
    if isinstance(event, ops.ProcessEvent):
        born = len(system.spaces.vmas)
        if event.process >= born:
            problem, allowed = f"op {event.op} comes before this process is born", f"0 … {born - 1} by then"
            hint = "Processes are numbered in order of birth."
            raise UserError(problem, parameter="process", value=event.process, allowed=allowed, hint=hint)
        alive = system.alive(event.process)
    touched = len(m.page) if isinstance(event, ops.Khugepaged) else getattr(event, "count", 0)
    touched = 2 * touched + len(system.spaces.pins)
    system.reserve(touched + int(stat["ksm_entries"] + stat["ksm_zero_pages"]) + (2 << system.order))
    stat["freed_by_batch"] = 0
    lru_add_drain_all(m)
    results = [act(event, system, *pages) for pages in _ranges(event, system)] if alive else [errno.ESRCH]
    lru_add_drain_all(m)
    system.spaces.publish()
    return next(filter(None, results), 0)


def _ranges(e: ops.Event, s: System) -> list[tuple[int, ...]]:
    """Return the ranges of pages, first and end, to which an event happens; one without pages happens once to ()."""
    if not isinstance(e, ops.RangeEvent):
        return [()]
    first, end = s.place(e.process, e.page), s.place(e.process, e.page + e.count)
    if e.every_nth == 1 and e.share == 1:
        return [(first, end)]
    size = 1 if e.granularity == "4K" else 1 << s.order
    starts = np.arange(first, end, size * e.every_nth)
    if e.share < 1:
        starts = np.sort(s.rng.permutation(starts)[: round(e.share * len(starts))])
    return [(start, min(start + size, end)) for start in starts.tolist()]


@singledispatch
def act(e: ops.Event, s: System, *pages: int) -> int | None:
    """Do what an event of this class does, to pages [first, end) of its process if it is about a range.

    Return the errno of the system call; 0 or None: it succeeds.
    """
    others = (getattr(e, name) for name in type(e).model_fields if name not in ops.RangeEvent.model_fields)
    process = (e.process,) if isinstance(e, ops.ProcessEvent) else ()
    result: int | None = getattr(s if hasattr(s, e.op) else s.spaces, e.op)(*process, *pages, *others)
    return result


@act.register
def _write(e: ops.Write, s: System, first: int, end: int) -> int:
    access = memory.WRITES if e.key is not None else memory.READS | memory.WRITES
    return int(memory.access_pages(s.m, *s.spaces.places(e.process, first, end), access, np.uint64(e.key or 0)))


@act.register
def _read(e: ops.Read, s: System, first: int, end: int) -> int:
    return int(memory.access_pages(s.m, *s.spaces.places(e.process, first, end), memory.READS, np.uint64(0)))


@act.register
def _mremap(e: ops.Mremap, s: System, first: int, end: int) -> int:
    return s.spaces.mremap(e.process, first, end, s.place(e.process, e.to) + first - s.place(e.process, e.page))


@act.register
def _split(e: ops.Split, s: System, first: int, end: int) -> None:
    split_huge_pages(s.m, *s.spaces.places(e.process, first, end), CALLER_OTHER, True)


@act.register
def _split_all(_: ops.SplitAll, s: System) -> None:
    split_huge_pages(s.m, 0, len(s.m.page), CALLER_OTHER, False)


@act.register
def _shrink(e: ops.Shrink, s: System) -> None:
    deferred_split_scan(s.m, e.count)


@act.register
def _khugepaged(e: ops.Khugepaged, s: System) -> None:
    for _ in range(e.full_scans):
        khugepaged_full_scan(s.m)


@act.register
def _compact(_e: ops.Compact, _s: System) -> None:
    """Do nothing: compaction moves small pages only, and nothing that is counted changes (thp-split G1)."""


@act.register
def _migrate(e: ops.Migrate, s: System, first: int, end: int) -> None:
    migrate_pages(s.m, *s.spaces.places(e.process, first, end), -1 if e.node is None else e.node, e.huge)


@act.register
def _poison(e: ops.MemoryFailure, s: System) -> int:
    return int(memory_failure(s.m, *s.spaces.places(e.process, s.place(e.process, e.page))))


@act.register
def _set(e: ops.Set, s: System) -> int:
    return s.set_knob(e.knob, e.value)
