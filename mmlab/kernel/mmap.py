"""Address spaces: VMAs, and the system calls that change them (mm/mmap.c, madvise.c, mlock.c, mprotect.c).

Plain Python: calls are rare, and the walks over pages that they need are compiled functions of other modules. A call
takes pages [start, end) of a process's region, and returns 0 or the errno that the system call would give.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partialmethod
from itertools import count, pairwise
from operator import attrgetter

import numpy as np

from mmlab.kernel import memory
from mmlab.kernel.folio import folio_put, lru_add_drain_all
from mmlab.kernel.huge_memory import split_huge_pmd
from mmlab.kernel.khugepaged import collapse_range
from mmlab.kernel.ksm import ksm_enter, ksm_exit
from mmlab.kernel.madvise import MADV_COLD, MADV_FREE, MADV_PAGEOUT, madvise_folios
from mmlab.kernel.mlock import mlock_vma_pages_range
from mmlab.kernel.state import *

EHWPOISON = 133
"""Linux's number; `errno` of Python 3.11 has no name for it."""


def equal_runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (start, end, value) of each run of equal neighbours."""
    cuts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return [(start, end, int(values[start])) for start, end in pairwise(cuts) if end > start]


@dataclass
class Vma:
    """One VMA: pages [start, end) of a region.

    `stamp` is the time at which it was made or resized last; it orders reverse mapping among VMAs with the same first
    page (thp-split Z4). VMAs join only within one `anon_vma`: a VMA gets its own at its first write, and each VMA of a
    child gets one at fork. `moved` is by how many pages mremap has moved it (thp-split H14).
    """

    start: int
    end: int
    vm: int
    anon_vma: int
    stamp: int
    moved: int = 0


@dataclass
class AddressSpaces:
    """The VMAs of all processes of a machine, ascending within each; process i is record i + 1 of `Machine.mm`."""

    m: Machine
    vmas: list[list[Vma]] = field(default_factory=list)
    pins: list[tuple[int, int]] = field(default_factory=list)
    """Pinned pages: process and frame, once for each pin."""
    _stamps: Iterator[int] = field(default_factory=lambda: count(1))
    _changed: set[int] = field(default_factory=set)
    """First and last pages that the present call has changed."""

    # --- bookkeeping ------------------------------------------------------------------------------------------------

    def populated(self, process: int, vm: np.ndarray, born_huge: np.ndarray) -> None:
        """Give a process its first VMAs, after it has written to all of its pages.

        Parameters
        ----------
        vm
            uint8[pages]: VMA flags.
        born_huge
            bool[pages]: whether MADV_HUGEPAGE held at the write; where that changes, a VMA ends.
        """
        areas = equal_runs(vm + 256 * born_huge)
        self.vmas[process] = [Vma(a, b, int(vm[a]), next(self._stamps), next(self._stamps)) for a, b, _ in areas]

    def base(self, process: int) -> int:
        """Return the first page of a process's region in `Machine.page`."""
        return int(self.m.mm[process + 1]["base"])

    def places(self, process: int, *pages: int) -> list[int]:
        """Return pages of a process as indices of `Machine.page`."""
        return [self.base(process) + page for page in pages]

    def publish(self) -> None:
        """Give the compiled code the tables of all VMAs."""
        mm, owned = self.m.mm, [(i, v) for i, vmas in enumerate(self.vmas) for v in vmas]
        rows = [(mm[i + 1]["family"], mm[i + 1]["base"], v.start, v.end, v.moved, v.vm) for i, v in owned]
        area = self.m.area = np.array(rows, vma_t)
        stamps = np.array([v.stamp for _, v in owned])
        self.m.vma = area[np.lexsort((stamps, area["start"] - area["moved"], area["family"]))]
        for i, vmas in enumerate(self.vmas):
            self.m.mm[i + 1]["khugepaged"] |= any(v.vm & VM_HUGEPAGE for v in vmas)
            self.m.mm[i + 1]["mergeable"] = sum(v.end - v.start for v in vmas if v.vm & VM_MERGEABLE)

    def _in_range(self, process: int, start: int, end: int) -> list[Vma]:
        return [v for v in self.vmas[process] if v.start < end and v.end > start]

    def _cut(self, process: int, start: int, end: int) -> list[Vma]:
        """Make both pages VMA borders and return the VMAs between. A huge PMD that is cut is split (thp-split H6)."""
        vmas, order = self.vmas[process], int(self.m.state[0]["hpage_order"])
        for at in (start, end):
            for i, v in [(i, v) for i, v in enumerate(vmas) if v.start < at < v.end]:
                vmas.insert(i + 1, replace(v, start=at, stamp=next(self._stamps)))
                v.end, v.stamp = at, next(self._stamps)
                page = self.base(process) + at
                if page & ((1 << order) - 1):
                    split_huge_pmd(self.m, page >> order)
        return self._in_range(process, start, end)

    def _insert(self, process: int, vma: Vma) -> None:
        """Add a VMA where there is none."""
        self.vmas[process].append(vma)
        self.vmas[process].sort(key=attrgetter("start"))
        self.m.pte["vm"][slice(*self.places(process, vma.start, vma.end))] = vma.vm

    def _join(self, process: int) -> None:
        """Join neighbours that the present call has made equal (thp-split H10)."""
        joined: list[Vma] = []
        for v in self.vmas[process]:
            last = joined[-1] if joined else v
            equal = (last.end, last.vm, last.anon_vma, last.moved) == (v.start, v.vm, v.anon_vma, v.moved)
            if equal and v.start in self._changed:
                last.end, last.stamp = v.end, next(self._stamps)
            else:
                joined.append(v)
        self.vmas[process] = joined
        self._changed = set()

    def _change(self, process: int, vma: Vma, start: int, end: int, vm: int) -> int:
        """Give pages [start, end) of a VMA other flags, and do what follows from each flag. Return 0."""
        if (was := vma.vm) == vm:
            return 0
        pages, becomes_writable = self.places(process, start, end), vm & ~was & VM_WRITE
        if not vm & VM_MERGEABLE:
            self._unmerge(process, vma, start, end)
        elif not was & VM_MERGEABLE and not self.m.mm[process + 1]["registered"]:
            ksm_enter(self.m, process + 1)
        if becomes_writable:  # exclusive pages are writable at once (khugepaged K9)
            self.m.pte["bits"][slice(*pages)] &= ~READ_ONLY & 255
        for v in self._cut(process, start, end):
            v.vm = vm
        self._changed |= {start, end}
        if (was ^ vm) & VM_LOCKED:
            mlock_vma_pages_range(self.m, *pages, bool(vm & VM_LOCKED))
        self.m.pte["vm"][slice(*pages)] = vm
        if becomes_writable and was & VM_LOCKED:  # a locked VMA is copied at once, not at a fault
            self._join(process)
            self._populate(process, start, end)
        return 0

    def _unmerge(self, process: int, vma: Vma, start: int, end: int) -> None:
        """Unshare what is merged in pages [start, end) of a VMA, which ceases to be mergeable."""
        if vma.vm & VM_MERGEABLE:
            memory.unmerge_ksm_pages(self.m, *self.places(process, start, end))
            self.m.state[0]["unmerged"] = 1

    def _populate(self, process: int, start: int, end: int) -> None:
        """Touch each page (`__mm_populate`), for which faults need the table of VMAs."""
        self.publish()
        memory.populate_vma_page_range(self.m, *self.places(process, start, end), False)

    def _walk(
        self, process: int, start: int, end: int, visit: Callable[[Vma, int, int], int], *, holes: bool = True
    ) -> int:
        """Visit each VMA of [start, end) with the pages of it that lie there, up to the first error.

        A hole gives ENOMEM: at the end if `holes` are passed over, else at once.
        """
        at, missing, error = start, False, 0
        for v in self._in_range(process, start, end):
            missing |= v.start > at
            if missing and not holes:
                break
            a, at = max(start, v.start), min(end, v.end)  # before the visit cuts the VMA
            if error := visit(v, a, at):
                break
        self._join(process)
        return error or (errno.ENOMEM if missing or at < end else 0)

    def _set(self, process: int, start: int, end: int, on: int = 0, off: int = 0, *, holes: bool = True) -> int:
        """Set and clear flags of the VMAs of [start, end)."""
        return self._walk(
            process, start, end, lambda v, a, b: self._change(process, v, a, b, v.vm & ~off | on), holes=holes
        )

    def _unlocked(self, process: int, start: int, end: int, act: Callable[[Machine, int, int], object]) -> int:
        """Act on the pages of each VMA of [start, end), up to the first VM_LOCKED one: EINVAL (ksm-merge F8)."""

        def visit(v: Vma, a: int, b: int) -> int:
            if v.vm & VM_LOCKED:
                return errno.EINVAL
            act(self.m, *self.places(process, a, b))
            return 0

        return self._walk(process, start, end, visit)

    # --- system calls -----------------------------------------------------------------------------------------------

    mergeable = partialmethod(_set, on=VM_MERGEABLE)
    """MADV_MERGEABLE: an advice that changes a VMA registers the process (ksm-scan S12)."""
    unmergeable = partialmethod(_set, off=VM_MERGEABLE)
    """MADV_UNMERGEABLE: unshare what is merged, then clear the flag (ksm-merge R3)."""

    def merge_any(self, process: int, value: int) -> int:
        """prctl PR_SET_MEMORY_MERGE: make every VMA mergeable, or none (ksm-scan S12, S17).

        VMAs that become equal stay apart. The flag stays when the process leaves ksmd's list.
        """
        mm = self.m.mm[process + 1]
        if bool(value) == bool(mm["merge_any"]):
            return 0
        mm["merge_any"] = value
        if value and not mm["registered"]:
            ksm_enter(self.m, process + 1)
        for v in self.vmas[process]:
            if not value:
                self._unmerge(process, v, v.start, v.end)
            v.vm = v.vm | VM_MERGEABLE if value else v.vm & ~VM_MERGEABLE
            self.m.pte["vm"][slice(*self.places(process, v.start, v.end))] = v.vm
        return 0

    def uffd(self, process: int, start: int, end: int, value: int) -> int:
        """userfaultfd: register the range for write protection, or unregister it; it may have holes (khugepaged K4)."""
        self._set(process, start, end, VM_UFFD if value else 0, VM_UFFD)
        return 0 if self._in_range(process, start, end) else errno.EINVAL

    hugepage = partialmethod(_set, on=VM_HUGEPAGE, off=VM_NOHUGEPAGE)
    """MADV_HUGEPAGE"""
    nohugepage = partialmethod(_set, on=VM_NOHUGEPAGE, off=VM_HUGEPAGE)
    """MADV_NOHUGEPAGE"""

    dontneed = partialmethod(_unlocked, act=lambda m, a, b: memory.zap_page_range(m, a, b, True))
    """MADV_DONTNEED: unmap, up to the first VM_LOCKED VMA (ksm-merge F8)."""
    cold = partialmethod(_unlocked, act=lambda m, a, b: madvise_folios(m, MADV_COLD, a, b))
    """MADV_COLD (thp-split W5)"""
    pageout = partialmethod(_unlocked, act=lambda m, a, b: madvise_folios(m, MADV_PAGEOUT, a, b))
    """MADV_PAGEOUT (thp-split W1, W2)"""
    free = partialmethod(_unlocked, act=lambda m, a, b: madvise_folios(m, MADV_FREE, a, b))
    """MADV_FREE (thp-split W6)"""

    def collapse(self, process: int, start: int, end: int) -> int:
        """MADV_COLLAPSE: VMA by VMA, up to one in which a block fails (khugepaged K11)."""
        size = 1 << int(self.m.state[0]["hpage_order"])

        def visit(v: Vma, a: int, b: int) -> int:
            if v.vm & VM_NOHUGEPAGE or -(-v.start // size) * size + size > v.end:
                return errno.EINVAL
            if -(-a // size) > b // size:
                return 0 if self.m.state[0]["part_of_block_is_done"] else errno.EINVAL
            return int(collapse_range(self.m, *self.places(process, a, b)))

        return self._walk(process, start, end, visit)

    def munmap(self, process: int, start: int, end: int) -> int:
        """munmap: VMA by VMA (thp-split H11)."""
        for v in self._cut(process, start, end):
            memory.zap_page_range(self.m, *self.places(process, v.start, v.end), False)
        self.vmas[process] = [v for v in self.vmas[process] if v.end <= start or v.start >= end]
        self.m.pte["vm"][slice(*self.places(process, start, end))] = 0
        return 0

    def mmap(self, process: int, start: int, end: int) -> int:
        """mmap with MAP_FIXED and MAP_POPULATE; with MERGE_ANY the new VMA is mergeable (ksm-scan S12).

        It has neither advice about huge pages (khugepaged K11).
        """
        self.munmap(process, start, end)
        self.m.state[0]["unmerged"] = 1  # rmap_items may be left of what was here
        vm = VM_PRESENT | VM_WRITE | (VM_MERGEABLE if self.m.mm[process + 1]["merge_any"] else 0)
        self._insert(process, Vma(start, end, vm, next(self._stamps), next(self._stamps)))
        self._populate(process, start, end)
        return 0

    def mremap(self, process: int, start: int, end: int, to: int) -> int:
        """mremap with MREMAP_FIXED: move the VMAs to where they replace what is there (thp-split H14).

        Releases differ in whether it moves a part of one VMA only, or several, with the holes between them left alone.
        """
        several = bool(self.m.state[0]["mremap_moves_several"])
        mapped = bool(self._in_range(process, start, start + 1))
        if (several or mapped) and to < end and start < to + end - start:
            return errno.EINVAL
        if not mapped:
            return errno.EFAULT
        if not several:
            self.munmap(process, to, to + end - start)
        at = start
        while at < end and (vmas := self._in_range(process, at, end)):
            first, last, alone = max(at, vmas[0].start), min(end, vmas[0].end), not several or vmas[0].vm & VM_UFFD
            if alone and (first, last) != (start, end):
                return errno.EFAULT
            self._move(process, first, last, to + first - start)
            at = last
        return 0

    def _move(self, process: int, start: int, end: int, to: int) -> None:
        """Move a part of a VMA; what is merged in it is unshared first."""
        self.munmap(process, to, to + end - start)
        vma, (old, new) = self._in_range(process, start, end)[0], self.places(process, start, to)
        self._unmerge(process, vma, start, end)
        order = int(self.m.state[0]["hpage_order"])
        self.m.block["pmd"][-(-new >> order) : new + end - start >> order] = PMD_NONE
        memory.move_page_tables(self.m, old, new, end - start)
        stamp, moved = next(self._stamps), vma.moved + to - start
        there = replace(vma, start=to, end=to + end - start, vm=vma.vm & ~VM_UFFD, stamp=stamp, moved=moved)
        self.munmap(process, start, end)
        self._insert(process, there)
        self._changed = {there.start, there.end}
        self._join(process)

    def populate_write(self, process: int, start: int, end: int, hold: bool = False) -> int:
        """MADV_POPULATE_WRITE: touch each page as mlock does, up to the first that cannot be written (ksm-merge F8).

        With `hold` each page is pinned at once.
        """
        first, end = self.places(process, start, end)
        pte = self.m.pte[first:end]
        causes = [pte["vm"] & VM_PRESENT == 0, pte["vm"] & VM_WRITE == 0, pte["kind"] == POISON]
        errors = np.select(causes, [errno.ENOMEM, errno.EINVAL, EHWPOISON])
        reached = int(np.argmax(np.append(errors, 1) != 0))
        memory.populate_vma_page_range(self.m, first, first + reached, hold)
        self.pins += [(process, frame) for frame in self.m.page["frame"][first : first + reached].tolist() if hold]
        return int(np.append(errors, 0)[reached])

    def pin(self, process: int, start: int, end: int) -> int:
        """pin_user_pages: touch and hold page by page, or none if one is not writable (thp-split H5)."""
        before, self.pins = self.pins, []
        if error := self.populate_write(process, start, end, hold=True):
            self.unpin(process)
        self.pins = before + self.pins
        return errno.EFAULT if error else 0

    def unpin(self, process: int) -> int:
        """Let go of all pages that a process has pinned."""
        for frame in [frame for owner, frame in self.pins if owner == process]:
            folio_put(self.m, frame)
        self.pins = [pin for pin in self.pins if pin[0] != process]
        return 0

    def mprotect(self, process: int, start: int, end: int, prot: int) -> int:
        """mprotect with PROT_READ (1) or PROT_READ | PROT_WRITE (3)."""
        return self._set(process, start, end, VM_WRITE if prot & 2 else 0, VM_WRITE, holes=False)

    def mlock(self, process: int, start: int, end: int) -> int:
        """mlock: lock, then touch each page unless the range has a hole (ksm-merge F8)."""
        if not (error := self._set(process, start, end, on=VM_LOCKED, holes=False)):
            self._populate(process, start, end)
        return error

    munlock = partialmethod(_set, off=VM_LOCKED, holes=False)
    """munlock: the pages stay as they are."""

    def fork(self, parent: int, child_base: int) -> int:
        """fork: the child inherits all flags but VM_LOCKED and userfaultfd's, and is registered if the parent is.

        ksm-merge F4, ksm-scan S12
        """
        m, child = self.m, len(self.vmas)
        mm, order = m.mm[child + 1], int(m.state[0]["hpage_order"])
        mm["base"], mm["parent"] = child_base, parent + 1
        for name in ("pages", "family", "merge_any", "forbids_zeropages", "nid"):
            mm[name] = m.mm[parent + 1][name]
        blocks = slice(child_base >> order, (child_base + int(mm["pages"]) + (1 << order) - 1) >> order)
        m.block["mm"][blocks] = child + 1
        for name in ("more", "ahead"):
            m.block[name][blocks] = m.block[name][self.base(parent) >> order :][: blocks.stop - blocks.start]
        vmas, off, stamps = self.vmas[parent], VM_LOCKED | VM_UFFD, self._stamps
        self.vmas.append([replace(v, vm=v.vm & ~off, anon_vma=next(stamps), stamp=next(stamps)) for v in vmas])
        lru_add_drain_all(m)  # pins are those of I/O then
        if m.mm[parent + 1]["registered"]:
            ksm_enter(m, child + 1)
        memory.copy_page_range(m, self.base(parent), child_base, int(mm["pages"]))
        return 0

    def exit(self, process: int) -> int:
        """exit: memory is freed at once, rmap_items when ksmd gets there (ksm-merge F5)."""
        m, mm, stat = self.m, self.m.mm[process + 1], self.m.stat[0]
        ksm_exit(m, process + 1)
        self.munmap(process, 0, int(mm["pages"]))
        self.unpin(process)
        mm["exited"] = 1
        stat["proc_ksm_rmap_items"] -= mm["rmap_items"]
        stat["proc_ksm_merging_pages"] -= mm["merging_pages"]
        return 0
