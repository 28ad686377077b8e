"""Collapse of small pages into a huge page, by khugepaged and by MADV_COLLAPSE (mm/khugepaged.c; khugepaged.md)."""

import numpy as np

from mmlab.kernel.folio import folio_batch_add, folio_batch_drain, lru_add_drain_all
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.memory import count_zeropage, do_swap_page, map_folio, pte_writable
from mmlab.kernel.rmap import folio_likely_mapped_shared, folio_remove_rmap_ptes
from mmlab.kernel.state import *
from mmlab.kernel.timer import khugepaged_cpu_ns
from mmlab.kernel.unstable_tree import set_content

__all__ = ["collapse_range", "khugepaged_do_scan", "khugepaged_full_scan"]

SCAN_SUCCEED, SCAN_FAIL, SCAN_PMD_MAPPED, SCAN_PMD_NONE = range(4)
SCAN_EXCEED_NONE_PTE, SCAN_EXCEED_SWAP_PTE, SCAN_EXCEED_SHARED_PTE = range(4, 7)
SCAN_PAGE_RO, SCAN_LACK_REFERENCED_PAGE, SCAN_PAGE_COUNT, SCAN_PAGE_LRU, SCAN_PAGE_LOCK = range(7, 12)
EBUSY, EAGAIN, EINVAL = 16, 11, 22


@compiled
def _is_shared(m, frame):
    f = m.frame[frame].folio
    return folio_likely_mapped_shared(m, f) if f >= 0 else m.frame[frame].mapcount > 1


@compiled
def _pinned(m, frame):
    f = m.frame[frame].folio
    return (m.folio[f].pins if f >= 0 else m.frame[frame].pins) > 0


@compiled
def _exceeded(m, reason):
    """Count the event of an exceeded limit, and return it (khugepaged K4)."""
    if reason == SCAN_EXCEED_NONE_PTE:
        m.stat[0].thp_scan_exceed_none_pte += 1
    elif reason == SCAN_EXCEED_SWAP_PTE:
        m.stat[0].thp_scan_exceed_swap_pte += 1
    else:
        m.stat[0].thp_scan_exceed_share_pte += 1
    return reason


@compiled
def _walk(m, b, khugepaged, isolate):
    """Walk the entries of block b up to the first that forbids a collapse (khugepaged K4).

    The scan tests whether a page is on an LRU list and not pinned. With `isolate`, small pages are locked instead
    (`__collapse_huge_page_isolate`); a KSM page met a second time is locked already (K8). KSM pages are judged like all
    others (K5). The limits hold for khugepaged only (K7). Return the result, the number of swapped entries, and the
    page at which the walk ended.
    """
    s = m.state[0]
    n = 1 << s.hpage_order
    none = shared = unmapped = referenced = 0
    writable = False
    v = b * n
    while v < b * n + n:
        if not isolate:
            m.steps[KHUGEPAGED_PTE] += 1
        kind = m.pte[v].kind
        if kind in (SWAP, POISON):
            unmapped += 1
            if khugepaged and unmapped > s.max_ptes_swap:
                return _exceeded(m, SCAN_EXCEED_SWAP_PTE), unmapped, v
        elif kind != ANON:
            none += 1
            if m.pte[v].vm & VM_UFFD or (khugepaged and none > s.max_ptes_none):
                return _exceeded(m, SCAN_EXCEED_NONE_PTE), unmapped, v
        else:
            frame = m.page[v].frame
            if _is_shared(m, frame):
                shared += 1
                if khugepaged and shared > s.max_ptes_shared:
                    return _exceeded(m, SCAN_EXCEED_SHARED_PTE), unmapped, v
            if isolate:
                if m.frame[frame].folio < 0:
                    if m.frame[frame].flags & LOCKED:
                        return SCAN_PAGE_LOCK, unmapped, v
                    m.frame[frame].flags |= LOCKED
            elif m.frame[frame].flags & NO_LRU:
                return SCAN_PAGE_LRU, unmapped, v
            elif _pinned(m, frame):
                return SCAN_PAGE_COUNT, unmapped, v
            writable = writable or pte_writable(m, v)
            if not m.pte[v].bits & OLD or m.frame[frame].flags & REFERENCED:
                referenced += 1
        v += 1
    if not writable and not s.collapse_needs_no_writable:
        return SCAN_PAGE_RO, unmapped, v
    if khugepaged and (referenced == 0 or (unmapped > 0 and referenced < n // 2)):
        return SCAN_LACK_REFERENCED_PAGE, unmapped, v
    return SCAN_SUCCEED, unmapped, v


@compiled
def hpage_collapse_scan_pmd(m, b, khugepaged):
    """Scan block b, and collapse it unless an entry forbids that (khugepaged K4)."""
    if m.block[b].pmd == PMD_NONE:
        return SCAN_PMD_NONE
    if m.block[b].pmd != PMD_TABLE:
        return SCAN_PMD_MAPPED
    result, unmapped, _ = _walk(m, b, khugepaged, False)
    return collapse_huge_page(m, b, khugepaged, unmapped) if result == SCAN_SUCCEED else result


@compiled
def _isolate(m, b, khugepaged):
    """Lock and isolate the pages of block b in address order (`__collapse_huge_page_isolate`; khugepaged K8).

    After a failure they return through the CPU's LRU batch, last first.
    """
    result, _, end = _walk(m, b, khugepaged, True)
    large = False
    for v in range(end - 1, (b << m.state[0].hpage_order) - 1, -1):
        if m.pte[v].kind == ANON:
            frame = m.page[v].frame
            m.frame[frame].flags &= ~LOCKED
            large = large or m.frame[frame].folio >= 0
            if result != SCAN_SUCCEED and m.frame[frame].folio < 0:
                folio_batch_add(m, LRU, frame)
    if result != SCAN_SUCCEED and large:
        folio_batch_drain(m, LRU)
    return result


@compiled
def _target_node(m, b):
    """Return the NUMA node with most of the block's pages, the first among equals.

    `hpage_collapse_find_target_node`
    """
    n = 1 << m.state[0].hpage_order
    best = most = 0
    for nid in range(len(m.tree)):
        pages = 0
        for v in range(b * n, b * n + n):
            if m.pte[v].kind == ANON and m.frame[m.page[v].frame].flags >> NID_SHIFT == nid:
                pages += 1
        if pages > most:
            best, most = nid, pages
    return best


@compiled
def collapse_huge_page(m, b, khugepaged, unmapped):
    """Replace the entries of block b by one huge page with the same content (khugepaged K6, K10).

    Apart from faults, this is the only birth of a THP (thp-split H2).
    """
    n = 1 << m.state[0].hpage_order
    nid = _target_node(m, b)
    m.stat[0].thp_collapse_alloc += 1
    if unmapped > 0:
        for v in range(b * n, b * n + n):
            if m.pte[v].kind == POISON:
                return SCAN_FAIL
            if m.pte[v].kind == SWAP:
                do_swap_page(m, v, False)
        folio_batch_drain(m, LRU)
    result = _isolate(m, b, khugepaged)
    if result != SCAN_SUCCEED:
        return result
    for v in range(b * n, b * n + n):
        m.steps[KHUGEPAGED_COPY] += 1
        if m.pte[v].kind == ANON:
            frame = m.page[v].frame
            if m.frame[frame].flags & KSM:
                m.stat[0].ksm_entries -= 1
            if m.frame[frame].folio < 0:
                folio_batch_add(m, LRU, frame)
            m.pte[v].kind = NONE
            m.stat[0].anon_pages -= 1
            folio_remove_rmap_ptes(m, frame, 1)
        else:
            if m.pte[v].kind != NONE:
                count_zeropage(m, v, -1)
            set_content(m, v, np.uint64(0))
    map_folio(m, b * n, m.state[0].hpage_order, nid)
    if not m.pte[b * n].vm & VM_LOCKED:
        folio_batch_drain(m, LRU)  # a large folio empties the batch that it is put into
    return SCAN_SUCCEED


# --- MADV_COLLAPSE --------------------------------------------------------------------------------------------------


@entry
def collapse_range(m, first, end):
    """Collapse the whole blocks of [first, end), which lies in one VMA: MADV_COLLAPSE (khugepaged K7, K8, K11).

    `madvise_collapse`. After a block that fails the others are still tried, unless it has no page table, is armed by
    userfaultfd or has a poisoned page. Return 0 or the errno.
    """
    order = m.state[0].hpage_order
    lru_add_drain_all(m)
    start, stop = (first + (1 << order) - 1) >> order, end >> order
    done = 0
    error = np.int64(EINVAL)
    for b in range(start, stop):
        result = hpage_collapse_scan_pmd(m, b, False)
        if result in (SCAN_SUCCEED, SCAN_PMD_MAPPED):
            done += 1
        elif result in (SCAN_EXCEED_NONE_PTE, SCAN_PMD_NONE, SCAN_FAIL):
            error = EBUSY if result == SCAN_EXCEED_NONE_PTE else EINVAL
            break
        elif result in (SCAN_PAGE_LRU, SCAN_PAGE_COUNT, SCAN_PAGE_LOCK):
            error = EAGAIN
        else:
            error = EINVAL
    return 0 if done == stop - start else error


# --- khugepaged -----------------------------------------------------------------------------------------------------


@compiled
def _next_mm(m, mm):
    """Return the next process after `mm` that khugepaged knows, or 0."""
    for other in range(mm + 1, len(m.mm)):
        if m.mm[other].khugepaged and not m.mm[other].exited:
            return other
    return 0


@compiled
def khugepaged_scan_mm_slot(m, pages):
    """Scan one process from the cursor on, up to a tried collapse, the budget or its end (khugepaged K1).

    Return the cost: a block costs its pages; a process, and an area passed over, cost 1. Processes take turns (K2).
    Blocks lie wholly in an area with MADV_HUGEPAGE (K3).
    """
    s = m.state[0]
    n = 1 << s.hpage_order
    if s.khugepaged_mm == 0:
        s.khugepaged_mm = _next_mm(m, 0)
        s.khugepaged_address = 0
    mm = s.khugepaged_mm
    base = m.mm[mm].base
    progress = 1
    for i in range(0 if m.mm[mm].exited else len(m.vma)):
        if m.vma[i].base != base or m.vma[i].end <= s.khugepaged_address:
            continue
        start, end = (m.vma[i].start + n - 1) // n * n, m.vma[i].end // n * n
        if not m.vma[i].vm & VM_HUGEPAGE or s.khugepaged_address > end:
            progress += 1
            continue
        s.khugepaged_address = max(s.khugepaged_address, start)
        while s.khugepaged_address < end:
            tried = m.stat[0].thp_collapse_alloc
            result = hpage_collapse_scan_pmd(m, (base + s.khugepaged_address) // n, True)
            if result == SCAN_SUCCEED:
                m.stat[0].pages_collapsed += 1
            s.khugepaged_address += n
            progress += n
            if m.stat[0].thp_collapse_alloc != tried or progress >= pages:
                return progress
    s.khugepaged_mm = _next_mm(m, mm)
    s.khugepaged_address = 0
    if s.khugepaged_mm == 0:
        m.stat[0].khugepaged_full_scans += 1
    return progress


@entry
def khugepaged_do_scan(m):
    """Run one burst of khugepaged (khugepaged K1). Return its CPU time, ns."""
    cpu = khugepaged_cpu_ns(m)
    lru_add_drain_all(m)
    pages = m.state[0].khugepaged_pages_to_scan
    progress = passed_head = 0
    while progress < pages:
        if m.state[0].khugepaged_mm == 0:
            passed_head += 1
        if passed_head == 2 or _next_mm(m, 0) == 0:
            break
        progress += khugepaged_scan_mm_slot(m, pages - progress)
    cpu = khugepaged_cpu_ns(m) - cpu
    m.stat[0].khugepaged_cpu_ns += cpu
    return cpu


@entry
def khugepaged_full_scan(m):
    """Run one full scan without a pause, from the first process on (khugepaged K10)."""
    lru_add_drain_all(m)
    m.state[0].khugepaged_mm = 0
    if _next_mm(m, 0) != 0:
        scans = m.stat[0].khugepaged_full_scans
        while m.stat[0].khugepaged_full_scans == scans:
            khugepaged_scan_mm_slot(m, 1 << 62)
