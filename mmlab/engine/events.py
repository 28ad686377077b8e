"""Events: what a scenario does to the machine from outside, one function an op (trace-format, Events)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.kernel import ksm, memory
from mmlab.kernel.advisor import set_advisor
from mmlab.kernel.huge_memory import deferred_split_scan, split_huge_pages
from mmlab.kernel.khugepaged import khugepaged_full_scan
from mmlab.kernel.migrate import memory_failure, migrate_pages
from mmlab.kernel.stable_tree import remove_all_stable_nodes
from mmlab.kernel.state import ADVISOR_MODES, CALLER_OTHER
from mmlab.scenario import (
    Event,
    Exit,
    Fork,
    Khugepaged,
    MemoryFailure,
    MergeAny,
    Migrate,
    Mprotect,
    RangeEvent,
    Read,
    Set,
    Shrink,
    Sleep,
    Split,
    SplitAll,
    Uffd,
    Write,
)
from mmlab.variants import resolve

if TYPE_CHECKING:
    from mmlab.engine.clock import Simulation

__all__ = ["OPS"]


def _write(s: Simulation, e: Write) -> int:
    first, end = s.pages(e)
    return 0 if memory.write_pages(s.m, first, end, np.uint64(e.key or 0), e.key is None) else errno.EFAULT


def _read(s: Simulation, e: Read) -> int:
    return 0 if memory.read_pages(s.m, *s.pages(e)) else errno.EFAULT


def _split(s: Simulation, e: Split) -> int:
    split_huge_pages(s.m, *s.pages(e), CALLER_OTHER, True)
    return 0


def _split_all(s: Simulation, _: SplitAll) -> int:
    split_huge_pages(s.m, 0, len(s.m.page), CALLER_OTHER, False)
    return 0


def _shrink(s: Simulation, e: Shrink) -> int:
    deferred_split_scan(s.m, e.count)
    return 0


def _khugepaged(s: Simulation, e: Khugepaged) -> int:
    for _ in range(e.full_scans):
        khugepaged_full_scan(s.m)
    return 0


def _compact(_s: Simulation, _e: Event) -> int:
    """Compaction moves small pages only; nothing that is counted changes (thp-split G1)."""
    return 0


def _migrate(s: Simulation, e: Migrate) -> int:
    migrate_pages(s.m, *s.pages(e), -1 if e.node is None else e.node, e.huge)
    return 0


def _memory_failure(s: Simulation, e: MemoryFailure) -> int:
    return int(memory_failure(s.m, int(s.m.mm[e.process + 1]["base"]) + e.page))


def _merge_any(s: Simulation, e: MergeAny) -> int:
    return s.spaces.merge_any(e.process, e.value)


def _uffd(s: Simulation, e: Uffd) -> int:
    return s.spaces.uffd(e.process, e.page, e.page + e.count, e.value)


def _sleep(s: Simulation, e: Sleep) -> int:
    s.sleep(e.millisecs)
    return 0


def _advice(name: str) -> Callable[[Simulation, RangeEvent], int]:
    def op(s: Simulation, e: RangeEvent) -> int:
        result: int = getattr(s.spaces, name)(e.process, e.page, e.page + e.count)
        return result

    return op


def _mprotect(s: Simulation, e: Mprotect) -> int:
    return s.spaces.mprotect(e.process, e.page, e.page + e.count, e.prot)


def _fork(s: Simulation, e: Fork) -> int:
    base = s.top_page
    s.top_page += s.aligned(int(s.m.mm[e.process + 1]["pages"]))
    return s.spaces.fork(e.process, base)


def _exit(s: Simulation, e: Exit) -> int:
    return s.spaces.exit(e.process)


def _set(s: Simulation, e: Set) -> int:
    """A write to a sysfs knob (ksm-scan S6, S29, ksm-merge 2.10)."""
    state, value = s.m.state[0], e.value
    if e.knob == "variant":
        s.use_variant(resolve(str(value)))
        return 0
    if e.knob == "advisor_mode":
        set_advisor(s.m, ADVISOR_MODES.index(str(value)))
        return 0
    assert isinstance(value, int)
    if (e.knob == "pages_to_scan" and state["advisor_mode"]) or (e.knob == "advisor_target_scan_time" and not value):
        return errno.EINVAL  # S29
    shared = s.m.stat[0]["pages_shared"] > 0
    exclusive = e.knob in ("max_page_sharing", "merge_across_nodes")
    if exclusive and value != state[e.knob] and (shared or not remove_all_stable_nodes(s.m)):
        return errno.EBUSY  # R4
    if e.knob == "run" and value != state["run"]:
        state["run"] = value
        if value == 2:  # R2
            ksm.unmerge_and_remove_all_rmap_items(s.m)
    if e.knob == "sleep_millisecs" and value != state[e.knob]:  # S3
        s.wake = s.now
    state[e.knob] = value
    return 0


OPS: dict[str, Callable[[Simulation, Any], int]] = {
    "write": _write,
    "read": _read,
    "split": _split,
    "split_all": _split_all,
    "shrink": _shrink,
    "khugepaged": _khugepaged,
    "compact": _compact,
    "migrate": _migrate,
    "memory_failure": _memory_failure,
    "merge_any": _merge_any,
    "uffd": _uffd,
    "sleep": _sleep,
    "mprotect": _mprotect,
    "fork": _fork,
    "exit": _exit,
    "set": _set,
    **{
        name: _advice(name)
        for name in (
            *(
                "dontneed",
                "free",
                "cold",
                "pageout",
                "collapse",
                "munmap",
                "mergeable",
                "unmergeable",
                "mlock",
                "munlock",
            ),
            *("hugepage", "nohugepage"),
        )
    },
}
"""Each returns 0 or the errno of the system call."""
