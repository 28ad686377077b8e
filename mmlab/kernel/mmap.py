"""Address spaces: VMAs, and the system calls that change them (mm/mmap.c, madvise.c, mlock.c, mprotect.c).

Plain Python: calls are rare, and the walks over pages that they need are the compiled functions of `memory`. A call
returns 0 or the errno that the system call would give.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mmlab.kernel.folio import mlock_drain
from mmlab.kernel.huge_memory import split_huge_pmd
from mmlab.kernel.khugepaged import collapse_range
from mmlab.kernel.ksm import ksm_enter, ksm_exit
from mmlab.kernel.madvise import COLD, FREE, PAGEOUT, madvise_folios
from mmlab.kernel.memory import copy_page_range, populate_vma_page_range, unmerge_ksm_pages, zap_page_range
from mmlab.kernel.state import (
    READ_ONLY,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MERGEABLE,
    VM_UFFD,
    VM_WRITE,
    Machine,
    vma_t,
)

__all__ = ["AddressSpaces", "Vma"]


@dataclass
class Vma:
    """One VMA: pages [start, end) of a region.

    `stamp` is when it was made or resized last: it orders reverse mapping among equal first pages (Z4). VMAs join only
    within one `anon_vma`: each VMA gets its own at its first write, and each VMA of a fork's child gets one.
    """

    start: int
    end: int
    vm: int
    anon_vma: int
    stamp: int


@dataclass
class AddressSpaces:
    """The VMAs of all processes of a machine, ascending within each; process i is record i + 1 of `Machine.mm`."""

    m: Machine
    vmas: list[list[Vma]] = field(default_factory=list)
    _stamp: int = 0
    _changed: set[int] = field(default_factory=set)
    """First and last pages of what the present call has changed."""

    # --- bookkeeping ------------------------------------------------------------------------------------------------

    def _next_stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    def add(self, vm: np.ndarray, born_huge: np.ndarray) -> None:
        """A new process whose pages have these VMA flags; those with MADV_HUGEPAGE and the others were VMAs of their
        own when it wrote to all of them."""
        cuts = [0, *(np.flatnonzero((np.diff(vm) != 0) | np.diff(born_huge)) + 1).tolist(), len(vm)]
        self.vmas.append([Vma(a, b, int(vm[a]), self._next_stamp(), self._next_stamp()) for a, b in pairwise(cuts)])

    def _base(self, process: int) -> int:
        return int(self.m.mm[process + 1]["base"])

    def publish(self) -> None:
        """Give the compiled code the table of all VMAs, in the order of reverse mapping (thp-split Z4)."""
        rows = [
            (int(self.m.mm[i + 1]["family"]), v.start, v.stamp, self._base(i), v.end, v.vm)
            for i, vmas in enumerate(self.vmas)
            for v in vmas
        ]
        rows.sort()
        table = np.array([(family, base, start, end, vm) for family, start, _, base, end, vm in rows], vma_t)
        self.m.vma = table
        for i, vmas in enumerate(self.vmas):
            self.m.mm[i + 1]["khugepaged"] |= any(v.vm & VM_HUGEPAGE for v in vmas)
            self.m.mm[i + 1]["mergeable"] = sum(v.end - v.start for v in vmas if v.vm & VM_MERGEABLE)

    def _in_range(self, process: int, start: int, end: int) -> Iterator[Vma]:
        return iter([v for v in self.vmas[process] if v.start < end and v.end > start])

    def _split(self, process: int, at: int) -> None:
        """Make a VMA border; a huge PMD that it cuts is split (thp-split H6)."""
        vmas = self.vmas[process]
        for i, v in enumerate(vmas):
            if v.start < at < v.end:
                vmas.insert(i + 1, Vma(at, v.end, v.vm, v.anon_vma, self._next_stamp()))
                v.end = at
                v.stamp = self._next_stamp()
                page = self._base(process) + at
                order = int(self.m.state[0]["hpage_order"])
                if page & ((1 << order) - 1):
                    split_huge_pmd(self.m, page >> order)
                return

    def _join(self, process: int) -> None:
        """Neighbours that a change has made equal are one VMA again (thp-split H10)."""
        joined: list[Vma] = []
        changed, self._changed = self._changed, set()
        for v in self.vmas[process]:
            equal = joined and (joined[-1].end, joined[-1].vm, joined[-1].anon_vma) == (v.start, v.vm, v.anon_vma)
            if equal and v.start in changed:
                joined[-1].end = v.end
                joined[-1].stamp = self._next_stamp()
            else:
                joined.append(v)
        self.vmas[process] = joined

    def _change(self, process: int, vma: Vma, start: int, end: int, vm: int) -> None:
        """Give the part of a VMA that lies in [start, end) other flags."""
        start, end = max(start, vma.start), min(end, vma.end)
        if vma.vm == vm:
            return
        vma_was = vma.vm
        self._split(process, start)
        self._split(process, end)
        for v in self._in_range(process, start, end):
            v.vm = vm
        self._changed |= {start, end}
        if vma_was & ~vm & VM_MERGEABLE:
            self.m.state[0]["unmerged"] = 1
        base = self._base(process)
        self.m.pte["vm"][base + start : base + end] = vm

    def _populate(self, process: int, start: int, end: int) -> None:
        """Touch each page (`__mm_populate`); faults ask the table of VMAs."""
        self.publish()
        base = self._base(process)
        populate_vma_page_range(self.m, base + start, base + end)

    def _walk(self, process: int, start: int, end: int, visit: Callable[[Vma, int, int], int], *, holes: bool) -> int:
        """Visit each VMA of [start, end); stops at the first error. `holes`: pass over them, ENOMEM at the end."""
        at, missing = start, False
        for v in self._in_range(process, start, end):
            if v.start > at:
                missing = True
                if not holes:
                    return errno.ENOMEM
            a, at = max(start, v.start), min(end, v.end)  # before the visit cuts the VMA
            if error := visit(v, a, at):
                return error
        return errno.ENOMEM if missing or at < end else 0

    # --- system calls -----------------------------------------------------------------------------------------------

    def _advise(self, process: int, start: int, end: int, change: Callable[[int], int]) -> int:
        def visit(v: Vma, a: int, b: int) -> int:
            self._change(process, v, a, b, change(v.vm))
            return 0

        error = self._walk(process, start, end, visit, holes=True)
        self._join(process)
        return error

    def mergeable(self, process: int, start: int, end: int) -> int:
        """MADV_MERGEABLE; an advice that changes a VMA registers the process (ksm-scan S12)."""

        def change(vm: int) -> int:
            if not vm & VM_MERGEABLE and not self.m.mm[process + 1]["registered"]:
                ksm_enter(self.m, process + 1)
            return vm | VM_MERGEABLE

        return self._advise(process, start, end, change)

    def unmergeable(self, process: int, start: int, end: int) -> int:
        """MADV_UNMERGEABLE (ksm-merge R3)."""

        def visit(v: Vma, a: int, b: int) -> int:
            if v.vm & VM_MERGEABLE:
                base = self._base(process)
                unmerge_ksm_pages(self.m, base + a, base + b)
                self._change(process, v, a, b, v.vm & ~VM_MERGEABLE)
            return 0

        error = self._walk(process, start, end, visit, holes=True)
        self._join(process)
        return error

    def merge_any(self, process: int, value: int) -> int:
        """prctl PR_SET_MEMORY_MERGE: every VMA becomes mergeable, or none is (ksm-scan S12, S17).

        VMAs that have become equal stay apart. The flag outlives the process's place in ksmd's list.
        """
        mm, base = self.m.mm[process + 1], self._base(process)
        if bool(value) == bool(mm["merge_any"]):
            return 0
        mm["merge_any"] = value
        if value and not mm["registered"]:
            ksm_enter(self.m, process + 1)
        for v in self.vmas[process]:
            if not value and v.vm & VM_MERGEABLE:
                unmerge_ksm_pages(self.m, base + v.start, base + v.end)
                self.m.state[0]["unmerged"] = 1
            v.vm = v.vm | VM_MERGEABLE if value else v.vm & ~VM_MERGEABLE
            self.m.pte["vm"][base + v.start : base + v.end] = v.vm
        return 0

    def uffd(self, process: int, start: int, end: int, value: int) -> int:
        """userfaultfd for write protection: registers the range, or unregisters it (khugepaged K4)."""
        return self._advise(process, start, end, lambda vm: vm | VM_UFFD if value else vm & ~VM_UFFD)

    def hugepage(self, process: int, start: int, end: int) -> int:
        """MADV_HUGEPAGE"""
        return self._advise(process, start, end, lambda vm: vm | VM_HUGEPAGE)

    def nohugepage(self, process: int, start: int, end: int) -> int:
        """MADV_NOHUGEPAGE"""
        return self._advise(process, start, end, lambda vm: vm & ~VM_HUGEPAGE)

    def dontneed(self, process: int, start: int, end: int) -> int:
        """MADV_DONTNEED: stops with EINVAL at the first VM_LOCKED VMA (ksm-merge F8)."""

        def visit(v: Vma, a: int, b: int) -> int:
            if v.vm & VM_LOCKED:
                return errno.EINVAL
            base = self._base(process)
            zap_page_range(self.m, base + a, base + b, True)
            return 0

        return self._walk(process, start, end, visit, holes=True)

    def _advise_folios(self, advice: int, process: int, start: int, end: int) -> int:
        """… stops with EINVAL at the first VM_LOCKED VMA (ksm-merge F8)."""
        base = self._base(process)

        def visit(v: Vma, a: int, b: int) -> int:
            if v.vm & VM_LOCKED:
                return errno.EINVAL
            mlock_drain(self.m)
            madvise_folios(self.m, advice, base + a, base + b)
            return 0

        return self._walk(process, start, end, visit, holes=True)

    def cold(self, process: int, start: int, end: int) -> int:
        """MADV_COLD (thp-split W5)"""
        return self._advise_folios(COLD, process, start, end)

    def pageout(self, process: int, start: int, end: int) -> int:
        """MADV_PAGEOUT (thp-split W1, W2)"""
        return self._advise_folios(PAGEOUT, process, start, end)

    def free(self, process: int, start: int, end: int) -> int:
        """MADV_FREE (thp-split W6)"""
        return self._advise_folios(FREE, process, start, end)

    def collapse(self, process: int, start: int, end: int) -> int:
        """MADV_COLLAPSE: VMA by VMA, up to one in which a range fails (khugepaged K11)."""
        base, size = self._base(process), 1 << int(self.m.state[0]["hpage_order"])

        def visit(v: Vma, a: int, b: int) -> int:
            if not v.vm & VM_HUGEPAGE or -(-v.start // size) * size + size > v.end or -(-a // size) > b // size:
                return errno.EINVAL
            return int(collapse_range(self.m, base + a, base + b))

        return self._walk(process, start, end, visit, holes=True)

    def munmap(self, process: int, start: int, end: int) -> int:
        """munmap: VMA by VMA (thp-split H11)."""
        self._split(process, start)
        self._split(process, end)
        base = self._base(process)
        for v in self._in_range(process, start, end):
            zap_page_range(self.m, base + v.start, base + v.end, False)
        self.vmas[process] = [v for v in self.vmas[process] if v.end <= start or v.start >= end]
        self.m.pte["vm"][base + start : base + end] = 0
        return 0

    def mprotect(self, process: int, start: int, end: int, prot: int) -> int:
        """mprotect with PROT_READ (1) or PROT_READ | PROT_WRITE (3)."""

        def visit(v: Vma, a: int, b: int) -> int:
            old, base = v.vm, self._base(process)
            if prot & 2 and not old & VM_WRITE:
                self.m.pte["bits"][base + a : base + b] &= ~READ_ONLY & 255  # exclusive pages are writable at once (K9)
            self._change(process, v, a, b, old | VM_WRITE if prot & 2 else old & ~VM_WRITE)
            if old & VM_LOCKED and not old & VM_WRITE and prot & 2:  # a locked VMA is copied at once, not at a fault
                self._join(process)
                self._populate(process, a, b)
            return 0

        error = self._walk(process, start, end, visit, holes=False)
        self._join(process)
        return error

    def mlock(self, process: int, start: int, end: int) -> int:
        """mlock: locks, then touches each page unless the range has a hole (ksm-merge F8)."""

        def visit(v: Vma, a: int, b: int) -> int:
            self._change(process, v, a, b, v.vm | VM_LOCKED)
            return 0

        error = self._walk(process, start, end, visit, holes=False)
        self._join(process)
        if not error:
            self._populate(process, start, end)
        return error

    def munlock(self, process: int, start: int, end: int) -> int:
        """munlock: the pages stay as they are."""

        def visit(v: Vma, a: int, b: int) -> int:
            self._change(process, v, a, b, v.vm & ~VM_LOCKED)
            return 0

        error = self._walk(process, start, end, visit, holes=False)
        self._join(process)
        return error

    def fork(self, parent: int, child_base: int) -> int:
        """fork: the child inherits all but VM_LOCKED and userfaultfd, and is registered if the parent is (F4, S12)."""
        m = self.m
        child = len(self.vmas)
        mm = m.mm[child + 1]
        mm["base"], mm["pages"] = child_base, m.mm[parent + 1]["pages"]
        mm["parent"] = parent + 1
        for name in ("family", "merge_any", "forbids_zeropages", "nid"):
            mm[name] = m.mm[parent + 1][name]
        order = int(m.state[0]["hpage_order"])
        blocks = slice(child_base >> order, (child_base + int(mm["pages"]) + (1 << order) - 1) >> order)
        m.block["mm"][blocks] = child + 1
        self.vmas.append(
            [
                Vma(v.start, v.end, v.vm & ~(VM_LOCKED | VM_UFFD), self._next_stamp(), self._next_stamp())
                for v in self.vmas[parent]
            ]
        )
        copy_page_range(m, self._base(parent), child_base, int(mm["pages"]))
        if m.mm[parent + 1]["registered"]:
            ksm_enter(m, child + 1)
        return 0

    def exit(self, process: int) -> int:
        """exit: memory goes at once, rmap_items when ksmd gets there (ksm-merge F5)."""
        m, base = self.m, self._base(process)
        for v in self.vmas[process]:
            zap_page_range(m, base + v.start, base + v.end, False)
        self.vmas[process] = []
        mm, stat = m.mm[process + 1], m.stat[0]
        m.pte["vm"][base : base + int(mm["pages"])] = 0
        mm["exited"] = 1
        stat["proc_ksm_rmap_items"] -= mm["rmap_items"]
        stat["proc_ksm_merging_pages"] -= mm["merging_pages"]
        ksm_exit(m, process + 1)
        return 0
