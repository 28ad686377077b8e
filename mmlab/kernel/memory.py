"""Faults, unmapping and fork, page by page (mm/memory.c; ksm-merge 2.11, thp-split 3.11)."""

import numpy as np

from mmlab.kernel.folio import (
    alloc_folio,
    alloc_frame,
    deferred_split_folio,
    folio_free_swap,
    folio_get,
    folio_pte_batch,
    folio_put,
    folio_remove_rmap_pmd,
    folio_remove_rmap_ptes,
    mlock_folio,
)
from mmlab.kernel.huge_memory import split_huge_pmd
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import (
    ANON,
    DIRTY,
    EXCLUSIVE,
    HUGE_ZP,
    KSM,
    KSM_PAGE,
    NID_SHIFT,
    NONE,
    OLD,
    PMD_HUGE,
    PMD_HUGE_ZP,
    PMD_NONE,
    PMD_TABLE,
    POISON,
    READ_ONLY,
    SWAP,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_PRESENT,
    VM_UFFD,
    VM_WRITE,
    ZP_CLEAN,
    ZP_KSM,
)
from mmlab.kernel.swap import swap_duplicate, swap_free
from mmlab.kernel.unstable_tree import set_content, unmap_pte

__all__ = [
    "break_ksm",
    "copy_page_range",
    "populate",
    "populate_vma_page_range",
    "read_pages",
    "unmerge_ksm_pages",
    "write_listed_pages",
    "write_pages",
    "zap_page_range",
]


@compiled
def pte_writable(m, v):
    """Whether a write to v causes no fault (khugepaged K9)."""
    return m.pte[v].bits & (EXCLUSIVE | READ_ONLY) == EXCLUSIVE and m.pte[v].vm & VM_WRITE != 0


@compiled
def _map_anon(m, v, frame, bits):
    m.pte[v].kind = ANON
    m.pte[v].bits = bits
    m.page[v].frame = frame
    m.occupied[v >> 6] |= np.uint64(1) << np.uint64(v & 63)


@compiled
def _alloc_page(m, v):
    """A new order-0 page for v, on the NUMA node of its process."""
    f = alloc_frame(m)
    m.frame[f].flags = m.mm[m.block[v >> m.state[0].hpage_order].mm].nid << NID_SHIFT
    return f


@compiled
def map_new_page(m, v, bits):
    """Map a new order-0 page at v; the page keeps the key that the address has."""
    f = _alloc_page(m, v)
    m.frame[f].mapcount = 1
    _map_anon(m, v, f, bits)
    b = v >> m.state[0].hpage_order
    if m.block[b].pmd == PMD_NONE:
        m.block[b].pmd = PMD_TABLE
    m.stat[0].anon_pages += 1


@compiled
def map_huge_page(m, b, index, nid):
    """A new huge page, filled by the keys that its addresses have, writable, dirty and queued (thp-split H1, H3)."""
    s = m.state[0]
    n = 1 << s.hpage_order
    mm = m.block[b].mm
    f = alloc_folio(m, s.hpage_order, m.mm[mm].family, index)
    m.folio[f].mapcount = 1
    m.folio[f].entire = 1
    for i in range(n):
        _map_anon(m, b * n + i, m.folio[f].head + i, DIRTY | EXCLUSIVE)
        m.frame[m.folio[f].head + i].flags = nid << NID_SHIFT
    m.block[b].pmd = PMD_HUGE
    m.stat[0].huge_pmds += 1
    m.stat[0].anon_pages += n
    deferred_split_folio(m, f, False)


@compiled
def _huge_page_allowed(m, b):
    """Whether a fault in block b is served by a huge page (thp-split H10).

    One VMA with MADV_HUGEPAGE over the whole block, and no page table there yet.
    """
    n = 1 << m.state[0].hpage_order
    if m.block[b].pmd != PMD_NONE or not m.pte[b * n].vm & VM_HUGEPAGE:
        return False
    base = m.mm[m.block[b].mm].base
    for i in range(len(m.vma)):
        if m.vma[i].base == base and m.vma[i].start <= b * n - base and (b + 1) * n - base <= m.vma[i].end:
            return True
    return False


@compiled
def _region_index(m, v):
    """Page number of v in its process's region."""
    return v - m.mm[m.block[v >> m.state[0].hpage_order].mm].base


@compiled
def unmap_zeropage(m, v):
    m.stat[0].zeropage_entries -= 1
    if m.pte[v].kind == ZP_KSM:
        m.stat[0].ksm_zero_pages -= 1
        m.mm[m.block[v >> m.state[0].hpage_order].mm].zero_pages -= 1


@compiled
def wp_page_copy(m, v, bits):
    """Give v a page of its own with the same content (`wp_page_copy`); the old one loses this mapping."""
    old = m.page[v].frame
    ksm = m.frame[old].flags & KSM
    if ksm:
        m.stat[0].cow_ksm += 1
        m.stat[0].ksm_entries -= 1
    map_new_page(m, v, bits)
    m.stat[0].anon_pages -= 1
    folio_remove_rmap_ptes(m, old, 1)


@compiled
def clear_swap_entry(m, v):
    """The entry at v refers to its swap slot no more."""
    slot = -2 - m.page[v].frame
    unmap_pte(m, v, NONE, -1)
    swap_free(m, slot)


@compiled
def do_swap_page(m, v, write):
    """Bring the page of a SWAP entry back (thp-split W3, W7).

    A page that other entries still need stays in the swap cache, not exclusive, and the next user finds it there. A KSM
    page found there is mapped as it is, or copied if it has no stable node or KSM is unmerging
    (`ksm_might_need_to_copy`, ksm-merge F6).
    """
    slot = -2 - m.page[v].frame
    frame = m.swap[slot].cache
    bits = 0
    if frame >= 0 and m.frame[frame].flags & KSM and (m.frame[frame].node < 0 or m.state[0].run == 2):
        m.stat[0].ksm_swpin_copy += 1
        frame = _alloc_page(m, v)
        bits = EXCLUSIVE
    elif frame >= 0:
        last = m.swap[slot].count == 1 and m.frame[frame].mapcount == 0
        if m.frame[frame].flags & KSM:
            bits = KSM_PAGE
            m.stat[0].ksm_entries += 1
        elif last and (write or m.pte[v].vm & VM_LOCKED):
            bits = EXCLUSIVE
    else:
        frame = _alloc_page(m, v)
        if not m.swap[slot].zero:
            m.stat[0].pswpin += 1
        if m.swap[slot].count == 1:
            bits = EXCLUSIVE
        else:
            m.swap[slot].cache = frame
            m.frame[frame].folio = -2 - slot
    m.frame[frame].mapcount += 1
    m.stat[0].anon_pages += 1
    _map_anon(m, v, frame, bits)
    swap_free(m, slot)
    if bits & EXCLUSIVE or m.pte[v].vm & VM_LOCKED:
        folio_free_swap(m, frame)


@compiled
def _huge_page_fault(m, b):
    """A zero-filled huge page for the whole block (`__do_huge_pmd_anonymous_page`, `do_huge_zero_wp_pmd`)."""
    n = 1 << m.state[0].hpage_order
    for i in range(b * n, (b + 1) * n):
        set_content(m, i, np.uint64(0))
    map_huge_page(m, b, _region_index(m, b * n), m.mm[m.block[b].mm].nid)
    m.stat[0].thp_fault_alloc += 1


@compiled
def _write_fault(m, v):
    """Make the page at v writable by its process alone; its content stays (ksm-merge F1, F2, F7).

    In place of a zeropage comes a small page, whatever was there before (thp-split Z5, mthp E3).
    """
    s = m.state[0]
    b = v >> s.hpage_order
    if m.pte[v].kind == POISON:
        return
    if m.pte[v].kind == NONE:
        if _huge_page_allowed(m, b):
            _huge_page_fault(m, b)
        else:
            set_content(m, v, np.uint64(0))
            map_new_page(m, v, DIRTY | EXCLUSIVE)
        return
    if m.pte[v].kind == HUGE_ZP:
        if s.kernel >= 618:  # seen on 6.18.44; 6.12 splits the PMD and then gives one small page (F3)
            _huge_page_fault(m, b)
            return
        split_huge_pmd(m, b)
    if m.pte[v].kind == ZP_CLEAN or m.pte[v].kind == ZP_KSM:
        unmap_zeropage(m, v)
        map_new_page(m, v, DIRTY | EXCLUSIVE)
        return
    if m.pte[v].kind == SWAP:
        do_swap_page(m, v, True)
    if m.pte[v].bits & EXCLUSIVE:
        m.pte[v].bits = DIRTY | EXCLUSIVE
        return
    frame = m.page[v].frame
    f = m.frame[frame].folio
    if m.block[b].pmd == PMD_HUGE:
        if m.folio[f].mapcount == 1:  # no other entry maps any page of the folio: reuse
            n = 1 << s.hpage_order
            for i in range(b * n, (b + 1) * n):
                m.pte[i].bits = DIRTY | EXCLUSIVE
            return
        split_huge_pmd(m, b)
    elif f < 0 and m.frame[frame].mapcount == 1 and not m.frame[frame].flags & KSM and folio_free_swap(m, frame):
        m.pte[v].bits = DIRTY | EXCLUSIVE
        return
    wp_page_copy(m, v, DIRTY | EXCLUSIVE)


@compiled
def _read_fault(m, v):
    """A read of an empty entry maps the shared or the huge zeropage (ksm-merge F3)."""
    if m.pte[v].kind == SWAP:
        do_swap_page(m, v, False)
    if m.pte[v].kind != NONE:
        m.pte[v].bits &= ~OLD
        return
    b = v >> m.state[0].hpage_order
    if m.mm[m.block[b].mm].forbids_zeropages:
        _write_fault(m, v)
        return
    n = 1 << m.state[0].hpage_order
    if _huge_page_allowed(m, b):
        for i in range(b * n, (b + 1) * n):
            m.pte[i].kind = HUGE_ZP
            set_content(m, i, np.uint64(0))
        m.block[b].pmd = PMD_HUGE_ZP
        return
    m.pte[v].kind = ZP_CLEAN
    set_content(m, v, np.uint64(0))
    m.page[v].frame = -1
    m.block[b].pmd = PMD_TABLE
    m.stat[0].zeropage_entries += 1


@entry
def write_pages(m, first, end, key, read_first):
    """Write each page of [first, end): its content becomes `key`, or is read and written back (read_first).

    False at the first page that is not in a writable VMA, or is poisoned."""
    for v in range(first, end):
        if not m.pte[v].vm & VM_WRITE or m.pte[v].kind == POISON:
            return False
        if read_first:
            _read_fault(m, v)
        _write_fault(m, v)
        if not read_first:
            set_content(m, v, key)
    return True


@entry
def write_listed_pages(m, n, key):
    """Write the first n pages of `Machine.listed`: page i gets the content key + i; others' VMAs are passed over."""
    for i in range(n):
        v = m.listed[i]
        if m.pte[v].vm & VM_WRITE and m.pte[v].kind != POISON:
            _write_fault(m, v)
            set_content(m, v, key + np.uint64(i))


@entry
def read_pages(m, first, end):
    """Read each page of [first, end); False at the first one without a VMA, or that is poisoned."""
    for v in range(first, end):
        if not m.pte[v].vm & VM_PRESENT or m.pte[v].kind == POISON:
            return False
        _read_fault(m, v)
    return True


@entry
def populate_vma_page_range(m, first, end):
    """Touch each page as mlock does (`populate_vma_page_range`): write where that is allowed, else read (F8)."""
    for v in range(first, end):
        if m.pte[v].vm & VM_WRITE:
            if m.pte[v].kind != ANON or not m.pte[v].bits & EXCLUSIVE or not m.pte[v].bits & DIRTY:
                _write_fault(m, v)
        else:
            _read_fault(m, v)


@entry
def zap_page_range(m, first, end, advised):
    """Unmap [first, end), which lies in one VMA (thp-split H11); `zap_pte_range`, `zap_huge_pmd`.

    The page table of a whole block stays (H10), but 6.18 frees it too where MADV_DONTNEED (`advised`) emptied it.
    """
    order = m.state[0].hpage_order
    n = 1 << order
    v = first
    while v < end:
        b = v >> order
        stop = min(end, (b + 1) * n)
        if m.block[b].pmd == PMD_NONE:
            v = stop
            continue
        if m.block[b].pmd != PMD_TABLE:
            if v == b * n and stop == v + n:
                if m.block[b].pmd == PMD_HUGE:
                    m.stat[0].anon_pages -= n
                    m.stat[0].huge_pmds -= 1
                    folio_remove_rmap_pmd(m, m.frame[m.page[v].frame].folio)
                for i in range(v, stop):
                    unmap_pte(m, i, NONE, -1)
                m.block[b].pmd = PMD_NONE
                v = stop
                continue
            split_huge_pmd(m, b)
        while v < stop:
            if m.pte[v].kind != ANON:
                if m.pte[v].kind == ZP_CLEAN or m.pte[v].kind == ZP_KSM:
                    unmap_zeropage(m, v)
                elif m.pte[v].kind == SWAP:
                    clear_swap_entry(m, v)
                m.pte[v].kind = NONE
                v += 1
                continue
            frame = m.page[v].frame
            run = 1
            if m.frame[frame].folio >= 0:
                run = folio_pte_batch(m, v, stop)
            elif m.frame[frame].flags & KSM:
                m.stat[0].ksm_entries -= 1
            for i in range(v, v + run):
                unmap_pte(m, i, NONE, -1)
            m.stat[0].anon_pages -= run
            folio_remove_rmap_ptes(m, frame, run)
            v += run
        if advised and m.state[0].kernel >= 618 and first <= b * n and stop == (b + 1) * n:  # seen on 6.18.44
            m.block[b].pmd = PMD_NONE


@entry
def copy_page_range(m, src, dst, pages):
    """fork: the child's page tables at `dst` become a copy of the parent's at `src` (ksm-merge F4).

    Ordinary pages become shared and non-exclusive; KSM and zeropage entries keep their kind; rmap_items are not copied.
    """
    order = m.state[0].hpage_order
    n = 1 << order
    for i in range((pages + n - 1) // n):
        a, b = (src >> order) + i, (dst >> order) + i
        m.block[b].pmd = m.block[a].pmd
        if m.block[a].pmd == PMD_HUGE:
            f = m.frame[m.page[a * n].frame].folio
            m.folio[f].mapcount += 1
            m.folio[f].entire += 1
            m.stat[0].huge_pmds += 1
    for i in range(pages):
        v, w = src + i, dst + i
        m.page[w].key = m.page[v].key
        m.pte[w].vm = m.pte[v].vm & ~(VM_LOCKED | VM_UFFD)
        m.pte[w].kind = m.pte[v].kind
        m.pte[v].bits &= ~EXCLUSIVE
        if m.pte[v].kind == ANON:
            frame = m.page[v].frame
            _map_anon(m, w, frame, m.pte[v].bits | OLD)
            m.stat[0].anon_pages += 1
            if m.frame[frame].flags & KSM:
                m.stat[0].ksm_entries += 1
            if m.block[v >> order].pmd == PMD_TABLE:
                m.frame[frame].mapcount += 1
                if m.frame[frame].folio >= 0:
                    m.folio[m.frame[frame].folio].mapcount += 1
        elif m.pte[v].kind == ZP_CLEAN or m.pte[v].kind == ZP_KSM:
            m.stat[0].zeropage_entries += 1
            if m.pte[v].kind == ZP_KSM:
                m.stat[0].ksm_zero_pages += 1
                m.mm[m.block[w >> order].mm].zero_pages += 1
        elif m.pte[v].kind == SWAP:
            m.page[w].frame = m.page[v].frame
            swap_duplicate(m, -2 - m.page[v].frame)


@compiled
def break_ksm(m, v):
    """Unshare one address: a KSM page or a zeropage placed by ksmd becomes a page of its own (ksm-merge B1)."""
    if m.pte[v].kind == ZP_KSM:
        unmap_zeropage(m, v)
        map_new_page(m, v, EXCLUSIVE | READ_ONLY)
    elif m.pte[v].kind == ANON and m.frame[m.page[v].frame].flags & KSM:
        old = m.page[v].frame
        locked = m.pte[v].vm & VM_LOCKED
        if locked:
            folio_get(m, old)
        wp_page_copy(m, v, EXCLUSIVE | READ_ONLY)
        if locked:  # M15: the copy, then the old page
            mlock_folio(m, m.page[v].frame)
            mlock_folio(m, old)
            folio_put(m, old)


@entry
def unmerge_ksm_pages(m, first, end):
    for v in range(first, end):
        break_ksm(m, v)


@entry
def populate(m, mm, orders):
    """Map a process's whole region before the start, each page in a folio of the order given (mthp E18).

    Folios smaller than a THP are mapped by page table entries (E4) and not queued (E5).
    """
    order = m.state[0].hpage_order
    n = 1 << order
    base = m.mm[mm].base
    i = 0
    while i < m.mm[mm].pages:
        v = base + i
        b = v >> order
        if orders[i] == order:
            map_huge_page(m, b, i, m.mm[mm].nid)
            i += n
        elif orders[i] > 0:
            f = alloc_folio(m, orders[i], m.mm[mm].family, i)
            k = 1 << orders[i]
            for j in range(k):
                m.frame[m.folio[f].head + j].flags = m.mm[mm].nid << NID_SHIFT
                _map_anon(m, v + j, m.folio[f].head + j, DIRTY | EXCLUSIVE)
                m.frame[m.folio[f].head + j].mapcount = 1
            m.folio[f].mapcount = k
            m.folio[f].nr_mapped = k
            m.block[b].pmd = PMD_TABLE
            m.stat[0].anon_pages += k
            i += k
        else:
            map_new_page(m, v, DIRTY | EXCLUSIVE)
            i += 1
