"""Splits of huge pages, the zeropage remap, the deferred split shrinker (mm/huge_memory.c; thp-split 3.2 to 3.6)."""

import numpy as np

from mmlab.kernel import rmap
from mmlab.kernel.decisions import Decision, emit, emit_folio
from mmlab.kernel.deferred_split import deferred_split_folio, folio_unqueue_deferred_split
from mmlab.kernel.folio import folio_batch_drain, folio_get, folio_put, put_frame, release_folio, vm_mm
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.list import list_move_tail
from mmlab.kernel.pgtable import set_pte
from mmlab.kernel.state import *
from mmlab.kernel.unstable_tree import unmap_pte
from mmlab.variants import remap_index


@compiled
def clear_huge_pmd(m, b):
    """Replace the huge PMD of block b by a page table, and count a PMD split; mapcounts are the caller's."""
    m.block[b].pmd = PMD_TABLE
    m.stat[0].huge_pmds -= 1
    m.stat[0].thp_split_pmd += 1
    emit(m, Decision.SPLIT_PMD, b << m.state[0].hpage_order, 1 << m.state[0].hpage_order, -1, 0)


@compiled
def _share_pmd_bits(m, first):
    """Give the entries that replace a huge PMD, from `first` on, its one dirty and its one accessed bit."""
    end = first + (1 << m.state[0].hpage_order)
    dirty, old = 0, OLD
    for v in range(first, end):
        dirty |= m.pte[v].bits & DIRTY
        old &= m.pte[v].bits
    for v in range(first, end):
        m.pte[v].bits = m.pte[v].bits & ~OLD | dirty | old
    if dirty:
        m.frame[m.page[first].frame].flags |= PG_DIRTY


@entry
def split_huge_pmd(m, b):
    """Map block b by page table entries (`__split_huge_pmd`, thp-split H6).

    No memory is freed and the folio stays large. A mapping of the huge zero folio becomes zeropage entries (ksm-merge
    F3).
    """
    n = 1 << m.state[0].hpage_order
    first = b * n
    if m.block[b].pmd == PMD_HUGE:
        f = m.frame[m.page[first].frame].folio
        head = m.folio[f].head
        for i in range(head, head + n):
            m.folio[f].nr_mapped += m.frame[i].mapcount == 0
            m.frame[i].mapcount += 1
        _share_pmd_bits(m, first)
        rmap.folio_add_large_mapcount(m, f, m.block[b].mm, n)
        rmap.folio_sub_large_mapcount(m, f, m.block[b].mm, 1)
        if not m.state[0].cut_thp_stays_mlocked:
            rmap.munlock_folio(m, first, f)
        m.folio[f].entire -= 1
        clear_huge_pmd(m, b)
    elif m.block[b].pmd == PMD_HUGE_ZP:
        for v in range(first, first + n):
            set_pte(m, v, ZP_CLEAN, 0, -1)
        m.block[b].pmd = PMD_TABLE
        m.stat[0].thp_split_pmd += 1
        emit(m, Decision.SPLIT_PMD, first, n, -1, 0)


# --- splitting a folio ----------------------------------------------------------------------------------------------


@compiled
def _unmap_folio(m, f):
    """Replace every entry that maps the folio by a migration entry, VMA by VMA (thp-split H8.1, Z4).

    A huge PMD goes in one step, other entries one by one. So a whole folio that is mapped by page table entries looks
    partially mapped on the way, and counts as such (`thp_deferred_split_page`, mthp E9). Return whether a VMA was
    VM_LOCKED.
    """
    n = 1 << m.folio[f].order
    head, index = m.folio[f].head, m.folio[f].index
    locked = False
    for i in range(len(m.vma)):
        at, first, end = rmap.vma_address(m, i, m.folio[f].family, index, n)
        if first >= end:
            continue
        b = first >> m.state[0].hpage_order
        huge = m.block[b].pmd == PMD_HUGE and m.page[first].frame == head
        if huge:
            _share_pmd_bits(m, first)
        for v in range(first, end):
            frame = head + v - at
            if m.pte[v].kind == ANON and m.page[v].frame == frame:
                locked |= (m.vma[i].vm & VM_LOCKED) != 0
                if huge:
                    continue
                if m.pte[v].bits & DIRTY:
                    m.frame[head].flags |= PG_DIRTY
                m.frame[frame].mapcount -= 1
                m.folio[f].mapcount -= 1
                if m.frame[frame].mapcount == 0:
                    m.folio[f].nr_mapped -= 1
                    if m.folio[f].nr_mapped > 0 and m.folio[f].entire == 0:
                        deferred_split_folio(m, f, True)
        if huge:
            clear_huge_pmd(m, b)
            rmap.folio_remove_rmap_pmd(m, first, f)
    return locked


_remap_index = compiled(remap_index)


@compiled
def _remap_folio(m, caller, family, head, index, n):
    """Restore the entries of a folio that was split: map its small pages, or the shared zeropage.

    `try_to_map_unused_to_zeropage`, b1f202060afe (thp-split Z1). A page restored in a VM_LOCKED VMA is mlocked, which
    keeps it in all VMAs restored later (Z4). It does not matter whether an entry was ever written, or who else maps the
    page (Z2). Each zeropage lowers RSS, and no counter of the kernel shows it (Z3). KSM's state and the knob that the
    variant asks for are read now (fix-variants 5.1).
    """
    s = m.state[0]
    for i in range(len(m.vma)):
        at, first, end = rmap.vma_address(m, i, family, index, n)
        locked = (m.vma[i].vm & VM_LOCKED) != 0
        mergeable = int((m.vma[i].vm & VM_MERGEABLE) != 0)
        allowed = m.remap[_remap_index(caller, mergeable, s.run & 1, s.shrink_underused & 1)] != 0
        remap = allowed and not locked and not m.mm[vm_mm(m, m.vma[i].base)].forbids_zeropages
        for v in range(first, end):
            frame = head + v - at
            if m.pte[v].kind != ANON or m.page[v].frame != frame:
                continue
            if remap and m.page[v].key == 0 and not m.frame[frame].flags & (MLOCKED | POISONED):
                unmap_pte(m, v, ZP_CLEAN, -1)
                m.steps[REMAP] += 1
                emit(m, Decision.REMAP, v, 1, -1, caller)
                if caller == CALLER_KSM:
                    m.stat[0].zeropages_by_ksm += 1
                elif caller == CALLER_OTHER:
                    m.stat[0].zeropages_by_other += 1
                else:
                    m.stat[0].zeropages_by_shrinker += 1
            else:
                m.frame[frame].mapcount += 1
                if locked:
                    m.frame[frame].flags |= MLOCKED
                if m.page[v].key == 0:
                    emit(m, Decision.KEEP, v, 1, -1, caller)


@compiled
def split_huge_page(m, frame, caller):
    """Split the large folio of `frame`, on which the caller holds one reference, to order 0 (thp-split H7, H8, H9).

    `split_huge_page_to_list_to_order`. Any further reference makes the split fail. Return whether it succeeded; the
    caller's reference is then on `frame` itself. Only the counters depend on the folio's order (mthp E7, E8, E10).
    """
    f = m.frame[frame].folio
    order = m.folio[f].order
    huge = order == m.state[0].hpage_order
    emit_folio(m, Decision.SPLIT if m.folio[f].pins == 1 else Decision.SPLIT_FAILED, f, caller)
    if m.folio[f].pins != 1:
        m.mthp[order].split_failed += 1
        m.stat[0].thp_split_page_failed += huge
        return False
    n = 1 << order
    head, index, family = m.folio[f].head, m.folio[f].index, m.folio[f].family
    if _unmap_folio(m, f):
        folio_batch_drain(m, MLOCK)
    release_folio(m, f)
    flags = m.frame[head].flags & (LAZY | PG_DIRTY | REFERENCED)
    for i in range(head, head + n):
        m.frame[i].folio = -1
        m.frame[i].mapcount = 0
        m.frame[i].flags = m.frame[i].flags & (POISONED | -1 << NID_SHIFT) | flags
    m.frame[frame].pins = 1
    _remap_folio(m, caller, family, head, index, n)
    for i in range(head, head + n):
        put_frame(m, i)
    m.mthp[order].split += 1
    m.steps[SPLIT] += 1
    m.steps[SPLIT_PAGE] += n
    m.stat[0].thp_split_page += huge
    return True


@compiled
def split_folio(m, frame, caller):
    """Split the large folio of `frame` while holding a reference on it. Return whether that succeeded."""
    folio_get(m, frame)
    split = split_huge_page(m, frame, caller)
    folio_put(m, frame)
    return split


@entry
def split_huge_pages(m, first, end, caller, stop):
    """Split each large folio that a page of [first, end) maps (debugfs `split_huge_pages`).

    With `stop`, as for one process, the first address without a VMA ends it (thp-split H13).
    """
    for v in range(first, end):
        if not m.pte[v].vm & VM_PRESENT:
            if stop:
                return
            continue
        frame = m.page[v].frame
        if m.pte[v].kind == ANON and m.frame[frame].folio >= 0:
            split_folio(m, frame, caller)


# --- the shrinker ---------------------------------------------------------------------------------------------------


@compiled
def folio_mapped_at(m, f, i):
    """Return a virtual page whose entry maps page i of the folio, or -1."""
    frame = m.folio[f].head + i
    for j in range(len(m.vma)):
        v, first, end = rmap.vma_address(m, j, m.folio[f].family, m.folio[f].index + i, 1)
        if first < end and m.pte[v].kind == ANON and m.page[v].frame == frame:
            return v
    return -1


@compiled
def thp_underused(m, f):
    """Return whether more than `max_ptes_none` pages are zero-filled, which is never so by default (thp-split Q4)."""
    zero, limit = 0, m.state[0].max_ptes_none
    n = 1 << m.folio[f].order
    if limit >= n - 1:
        return False
    if m.folio[f].mapcount == 0:
        return m.folio[f].zeros > limit
    for i in range(n):
        m.stat[0].zero_scans += 1
        v = folio_mapped_at(m, f, i)
        if m.frame[m.folio[f].head + i].flags & POISONED:
            return False
        if v >= 0 and m.page[v].key == 0:
            zero += 1
            if zero > limit:
                return True
        elif i + 1 - zero >= n - limit:
            return False
    return False


@compiled
def _judge(m, f):
    """Split a queued folio if it is partially mapped or underused (thp-split Q3).

    One that is not underused leaves the queue for good. A partially mapped one that cannot be split goes to the tail.
    """
    partial = m.folio[f].partially_mapped != 0
    mlocked = m.state[0].shrinker_skips_mlocked and m.folio[f].mlocks > 0
    underused = not partial and not mlocked and thp_underused(m, f)
    if not partial:
        emit_folio(m, Decision.UNDERUSED if underused else Decision.USED, f, 0)
    caller = CALLER_PARTIALLY_MAPPED if partial else CALLER_UNDERUSED
    split = (partial or underused) and split_folio(m, m.folio[f].head, caller)
    m.stat[0].thp_underused_split_page += split and not partial
    if not split and partial:
        list_move_tail(m.folio, f)
    elif not split:
        folio_unqueue_deferred_split(m, f)


@entry
def deferred_split_scan(m, nr_to_scan):
    """Shrink: judge the first `nr_to_scan` folios of the deferred split queue, or of each node's (thp-split Q3, H12).

    The one queue of this model keeps the order of each node's.
    """
    s = m.state[0]
    for nid in range(s.nodes if s.queue_per_node else 1):
        f, left = np.int64(m.folio[0].next), nr_to_scan
        for _ in range(m.stat[0].deferred_queue_len):
            if left == 0:
                break
            following = np.int64(m.folio[f].next)
            if not s.queue_per_node or m.frame[m.folio[f].head].flags >> NID_SHIFT == nid:
                _judge(m, f)
                left -= 1
            f = following
