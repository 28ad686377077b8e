"""Collapse of small pages into a huge page, by khugepaged and by MADV_COLLAPSE (mm/khugepaged.c; khugepaged.md)."""

import numpy as np

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.folio import folio_batch_add, folio_batch_drain, folio_head, folio_pins, lru_add_drain_all
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.memory import do_swap_page, map_folio, pte_writable
from mmlab.kernel.pgtable import set_pte
from mmlab.kernel.rmap import folio_maybe_mapped_shared, folio_pte_batch, folio_remove_rmap_ptes
from mmlab.kernel.state import *
from mmlab.kernel.timer import cpu_ns
from mmlab.kernel.unstable_tree import set_content

SCAN_FAIL, SCAN_SUCCEED, SCAN_PMD_MAPPED, SCAN_PMD_NONE, SCAN_PTE_MAPPED_HUGEPAGE = range(5)
SCAN_EXCEED_NONE_PTE, SCAN_EXCEED_SWAP_PTE, SCAN_EXCEED_SHARED_PTE, SCAN_PAGE_LAZYFREE = range(5, 9)
SCAN_PAGE_RO, SCAN_LACK_REFERENCED_PAGE, SCAN_PAGE_COUNT, SCAN_PAGE_LRU, SCAN_PAGE_LOCK = range(9, 14)


@compiled
def _exceeded(m, reason, order):
    """Count an exceeded limit for the size and, if it is that of a THP, in vmstat too; return it (khugepaged K4)."""
    huge = order == m.state[0].hpage_order
    if reason == SCAN_EXCEED_NONE_PTE:
        m.stat[0].thp_scan_exceed_none_pte += huge
        m.mthp[order].collapse_exceed_none_pte += 1
    elif reason == SCAN_EXCEED_SWAP_PTE:
        m.stat[0].thp_scan_exceed_swap_pte += huge
        m.mthp[order].collapse_exceed_swap_pte += 1
    else:
        m.stat[0].thp_scan_exceed_share_pte += huge
        m.mthp[order].collapse_exceed_shared_pte += 1
    return reason


@compiled
def _orders(m, khugepaged):
    """Return the orders to which a range may be collapsed, as bits (mthp E2).

    MADV_COLLAPSE makes THPs only, whatever sysfs says (khugepaged K7); so does khugepaged, depending on the release.
    """
    s = m.state[0]
    if not khugepaged:
        return np.int64(1) << s.hpage_order
    return s.hugepages & ((1 << s.hpage_order + 1) - 1 if s.collapse_to_sizes else 1 << s.hpage_order)


@compiled
def _max_ptes_none(m, order, khugepaged):
    """Return how many empty entries a collapse may fill; below the size of a THP all but one, or none (K4)."""
    s = m.state[0]
    if not khugepaged:
        return np.int64(1) << order
    if order == s.hpage_order:
        return s.max_ptes_none
    return (1 << order) - 1 if s.max_ptes_none >= (1 << s.hpage_order) - 1 else 0


@compiled
def _walk(m, first, order, khugepaged, isolate):
    """Walk the entries of a range from page `first` on, up to the first that forbids a collapse (khugepaged K4).

    The scan of a block tests whether a page is on an LRU list, and notes which pages are present. With `isolate`, for
    a range that is being collapsed, small pages are locked instead (`__collapse_huge_page_isolate`); a KSM page met a
    second time is locked already (K8). KSM pages are judged like all others (K5). The limits hold for khugepaged only,
    and only it counts referenced entries (K7). Return the result, the numbers of swapped, empty and referenced entries,
    the page where the walk ended, and the last one that it looked at, -1 of none or if that is part of a large folio.
    """
    s = m.state[0]
    n = np.int64(1) << order
    huge = order == s.hpage_order
    most_none = _max_ptes_none(m, order, khugepaged)
    if not isolate and _orders(m, khugepaged) != 1 << order:
        most_none = n  # judged for each size later
    elif m.pte[first].vm & VM_UFFD:
        most_none = 0
    none = shared = unmapped = referenced = np.int64(0)
    writable = False
    v, last, result = first, np.int64(-1), np.int64(SCAN_SUCCEED)
    while v < first + n:
        kind = m.pte[v].kind
        if not isolate:
            m.steps[KHUGEPAGED_PTE] += 1
            m.present[v - first] = kind == ANON
        if kind in (SWAP, POISON):
            unmapped += 1
            if khugepaged and unmapped > s.max_ptes_swap:
                result = _exceeded(m, SCAN_EXCEED_SWAP_PTE, order)
                break
        elif kind != ANON:
            none += 1
            if none > most_none:
                result = _exceeded(m, SCAN_EXCEED_NONE_PTE, order)
                break
        else:
            frame = m.page[v].frame
            f = m.frame[frame].folio
            last = v if f < 0 else -1
            flags = m.frame[folio_head(m, frame)].flags
            lazy = flags & LAZY and not m.pte[v].bits & DIRTY  # to be discarded, and not written since (thp-split W6)
            if khugepaged and s.collapse_skips_lazyfree and lazy:
                result = SCAN_PAGE_LAZYFREE
                break
            shared += folio_maybe_mapped_shared(m, f) if f >= 0 else m.frame[frame].mapcount > 1
            if khugepaged and shared > (s.max_ptes_shared if huge else 0):
                result = _exceeded(m, SCAN_EXCEED_SHARED_PTE, order)
            elif not huge and f >= 0 and m.folio[f].order >= order:
                result = SCAN_PTE_MAPPED_HUGEPAGE
            elif not isolate and m.frame[frame].flags & NO_LRU:
                result = SCAN_PAGE_LRU
            elif m.frame[frame].flags & LOCKED:
                result = SCAN_PAGE_LOCK
            elif folio_pins(m, frame) > 0:
                result = SCAN_PAGE_COUNT
            if result != SCAN_SUCCEED:
                break
            if isolate and f < 0:
                m.frame[frame].flags |= LOCKED
            writable = writable or pte_writable(m, v)
            if khugepaged:
                referenced += not m.pte[v].bits & OLD or flags & REFERENCED != 0
        v += 1
    if result == SCAN_SUCCEED and not writable and not s.collapse_needs_no_writable:
        result = SCAN_PAGE_RO
    lacking = khugepaged and (referenced == 0 or (unmapped > 0 and referenced < n // 2))
    if result == SCAN_SUCCEED and lacking:
        result = SCAN_LACK_REFERENCED_PAGE
    return result, unmapped, none, referenced, v, last


@compiled
def hpage_collapse_scan_pmd(m, b, khugepaged):
    """Scan block b, and collapse what its entries allow (khugepaged K4).

    Return the result, what the scan costs (K1), and whether the entries allowed a collapse.
    """
    s = m.state[0]
    n = np.int64(1) << s.hpage_order
    unmapped = none = referenced = np.int64(0)
    result, end, last = np.int64(SCAN_PMD_NONE if m.block[b].pmd == PMD_NONE else SCAN_PMD_MAPPED), b * n, np.int64(-1)
    if m.block[b].pmd == PMD_TABLE:
        result, unmapped, none, referenced, end, last = _walk(m, b * n, s.hpage_order, khugepaged, False)
    allowed = result == SCAN_SUCCEED
    if allowed:
        result = _collapse_ranges(m, b, khugepaged, unmapped)
    emit(m, Decision.SCAN_PMD, b * n, n, last, result | referenced << 16 | none << 32 | unmapped << 48)
    return result, min(end + 1 - b * n, n) if s.scan_counts_entries else n, allowed


@compiled
def _isolate(m, first, order, khugepaged):
    """Lock and isolate the pages of a range in address order (`__collapse_huge_page_isolate`; khugepaged K8).

    After a failure they return through the CPU's LRU batch, last first.
    """
    result, _, none, referenced, end, last = _walk(m, first, order, khugepaged, True)
    emit(m, Decision.ISOLATE, first, 1 << order, last, result | none << 16 | referenced << 32)
    large = False
    for v in range(end - 1, first - 1, -1):
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
def _collapse_ranges(m, b, khugepaged, unmapped):
    """Collapse the ranges of block b that have enough pages, the largest allowed size first (`mthp_collapse`, mthp E2).

    After a success, or at a folio of at least that size, the next range begins; after another failure a smaller size is
    tried at the same place. The pages are those of the scan. Only a THP may have swapped entries.
    """
    s = m.state[0]
    top, orders = s.hpage_order, _orders(m, khugepaged)
    nid = _target_node(m, b)
    last, collapsed = np.int64(SCAN_FAIL), False
    at, order = np.int64(0), np.int64(top)
    while at < 1 << top:
        n = np.int64(1) << order
        present = np.int64(unmapped if order == top else 0)
        for i in range(at, at + n):
            present += m.present[i]
        done = False
        if orders >> order & 1 and present >= n - _max_ptes_none(m, order, khugepaged):
            last = collapse_huge_page(m, (b << top) + at, order, khugepaged, unmapped, nid)
            emit(m, Decision.COLLAPSE, (b << top) + at, n, -1, last)
            collapsed = collapsed or last == SCAN_SUCCEED
            if last == SCAN_FAIL:
                break
            done = last in (SCAN_SUCCEED, SCAN_PTE_MAPPED_HUGEPAGE)
        if not done and orders & (n - 1):
            order -= 1
            continue
        at += n
        while order < top and not at >> order & 1:
            order += 1
    return np.int64(SCAN_SUCCEED) if collapsed else last


@compiled
def collapse_huge_page(m, first, order, khugepaged, unmapped, nid):
    """Replace the entries from page `first` on by one folio with the same content (khugepaged K6, K10).

    Apart from faults, this is the only birth of a large folio (thp-split H2, mthp E2). It is allocated before anything
    can fail.
    """
    end = first + (1 << order)
    huge = order == m.state[0].hpage_order
    m.mthp[order].collapse_alloc += 1
    m.stat[0].thp_collapse_alloc += huge
    swapped_in, result = 0, np.int64(SCAN_SUCCEED)
    for v in range(first, end if unmapped > 0 else first):
        if m.pte[v].kind == POISON or (m.pte[v].kind == SWAP and not huge):
            result = np.int64(SCAN_FAIL) if huge else _exceeded(m, SCAN_EXCEED_SWAP_PTE, order)
            break
        if m.pte[v].kind == SWAP:
            do_swap_page(m, v, False)
            swapped_in += 1
    if unmapped > 0:
        emit(m, Decision.SWAPIN, first, 1 << order, -1, swapped_in | result << 32)
    if result == SCAN_SUCCEED:
        if swapped_in > 0:
            folio_batch_drain(m, LRU)
        result = _isolate(m, first, order, khugepaged)
    if result != SCAN_SUCCEED:
        return result
    m.steps[KHUGEPAGED_COPY] += end - first
    v = first
    while v < end:
        run = 1
        if m.pte[v].kind == ANON:
            frame = m.page[v].frame
            if m.frame[frame].folio < 0:
                folio_batch_add(m, LRU, frame)
            elif m.state[0].collapse_goes_by_runs:
                run = folio_pte_batch(m, v, end)
            folio_remove_rmap_ptes(m, v, frame, run)
        else:
            set_pte(m, v, NONE, 0, -1)
            set_content(m, v, np.uint64(0))
        v += run
    map_folio(m, first, order, nid)
    if not m.pte[first].vm & VM_LOCKED:
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
        result, _, _ = hpage_collapse_scan_pmd(m, b, False)
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
    """Return the next process after `mm` that khugepaged knows, or 0, as always when no size is enabled for it."""
    if _orders(m, True) == 0:
        return 0
    for other in range(mm + 1, len(m.mm)):
        if m.mm[other].khugepaged and not m.mm[other].exited:
            return other
    return 0


@compiled
def khugepaged_scan_mm_slot(m, pages):
    """Scan one process from the cursor on, up to a tried collapse, the budget or its end (khugepaged K1).

    Return the cost: a process, and an area passed over, cost 1. Processes take turns (K2). Blocks lie wholly in an area
    with MADV_HUGEPAGE (K3).
    """
    s = m.state[0]
    n = 1 << s.hpage_order
    if s.khugepaged_mm == 0:
        s.khugepaged_mm = _next_mm(m, 0)
        s.khugepaged_address = s.khugepaged_more = 0
    mm = s.khugepaged_mm
    base = m.mm[mm].base
    progress = 1
    for i in range(0 if m.mm[mm].exited else len(m.area)):
        if m.area[i].base != base or m.area[i].end <= s.khugepaged_address:
            continue
        start, end = (m.area[i].start + n - 1) // n * n, m.area[i].end // n * n
        if not m.area[i].vm & VM_HUGEPAGE or start >= end or s.khugepaged_address > end:
            progress += 1
            continue
        s.khugepaged_address = max(s.khugepaged_address, start)
        while s.khugepaged_address < end:
            result, cost, tried = hpage_collapse_scan_pmd(m, (base + s.khugepaged_address) // n, True)
            m.stat[0].pages_collapsed += result == SCAN_SUCCEED
            s.khugepaged_more += 1
            if s.khugepaged_more > m.block[(base + s.khugepaged_address) // n].more:
                s.khugepaged_address += n
                s.khugepaged_more = 0
            progress += cost
            if tried or progress >= pages:
                return progress
    s.khugepaged_mm = _next_mm(m, mm)
    s.khugepaged_address = s.khugepaged_more = 0
    if s.khugepaged_mm == 0:
        m.stat[0].khugepaged_full_scans += 1
    return progress


@entry
def khugepaged_do_scan(m):
    """Run one burst of khugepaged (khugepaged K1). Return its CPU time, ns."""
    cpu = cpu_ns(m, NR_KSMD_STEPS, NR_STEPS)
    lru_add_drain_all(m)
    pages = m.state[0].khugepaged_pages_to_scan
    progress = passed_head = 0
    while progress < pages:
        if m.state[0].khugepaged_mm == 0:
            passed_head += 1
        if passed_head == 2 or _next_mm(m, 0) == 0:
            break
        progress += khugepaged_scan_mm_slot(m, pages - progress)
    cpu = cpu_ns(m, NR_KSMD_STEPS, NR_STEPS) - cpu
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
