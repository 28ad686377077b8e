"""Faults, unmapping and fork, page by page (mm/memory.c; ksm-merge 2.11, thp-split 3.11)."""

import numpy as np

from mmlab.kernel import folio, rmap
from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.deferred_split import deferred_split_folio
from mmlab.kernel.huge_memory import split_huge_pmd
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.pgtable import set_pte
from mmlab.kernel.state import *
from mmlab.kernel.swap import swap_duplicate, swap_free
from mmlab.kernel.unstable_tree import set_content, unmap_pte

READS, WRITES = 1, 2

# --- mapping and unmapping one entry --------------------------------------------------------------------------------


@compiled
def pte_writable(m, v):
    """Return whether a write to v causes no fault (khugepaged K9)."""
    return m.pte[v].bits & (EXCLUSIVE | READ_ONLY) == EXCLUSIVE and m.pte[v].vm & VM_WRITE != 0


@compiled
def _alloc_page(m, v):
    """Allocate an order-0 page for v, on the NUMA node of its process."""
    f = folio.alloc_frame(m)
    m.frame[f].flags = m.mm[folio.vm_mm(m, v)].nid << NID_SHIFT
    return f


@compiled
def map_new_page(m, v, bits):
    """Map a new order-0 page at v, with the content that v has."""
    f = _alloc_page(m, v)
    m.frame[f].mapcount = 1
    set_pte(m, v, ANON, bits, f)
    b = v >> m.state[0].hpage_order
    if m.block[b].pmd == PMD_NONE:
        m.block[b].pmd = PMD_TABLE


@compiled
def map_folio(m, v, order, nid):
    """Map a new large folio from v on, writable and dirty, with the contents that its addresses have.

    A THP is mapped by a huge PMD and queued (thp-split H1, H3), a smaller folio by page table entries (mthp E4) and not
    queued (E5).
    """
    b = v >> m.state[0].hpage_order
    mm = m.block[b].mm
    n = 1 << order
    huge = order == m.state[0].hpage_order
    f = folio.alloc_folio(m, order, m.mm[mm].family, rmap.linear_page_index(m, v))
    head = m.folio[f].head
    for i in range(n):
        set_pte(m, v + i, ANON, DIRTY | EXCLUSIVE, head + i)
        m.frame[head + i].flags = nid << NID_SHIFT
        m.frame[head + i].mapcount = 0 if huge else 1
    rmap.folio_add_large_mapcount(m, f, mm, 1 if huge else n)
    if m.pte[v].vm & VM_LOCKED:
        m.folio[f].mlocks = 1
    if huge:
        m.folio[f].entire = 1
        m.block[b].pmd = PMD_HUGE
        m.stat[0].huge_pmds += 1
        deferred_split_folio(m, f, False)
    else:
        m.folio[f].nr_mapped = n
        m.block[b].pmd = PMD_TABLE


@compiled
def clear_swap_entry(m, v):
    """Clear the SWAP entry at v."""
    slot = -2 - m.page[v].frame
    unmap_pte(m, v, NONE, -1)
    swap_free(m, slot)


# --- faults ---------------------------------------------------------------------------------------------------------


@compiled
def wp_page_copy(m, v, bits):
    """Map a copy of the page at v in its place; the old page loses this mapping."""
    old = m.page[v].frame
    if m.frame[old].flags & KSM:
        emit(m, Decision.UNSHARE_WRITE if bits & DIRTY else Decision.UNSHARE_BREAK, v, 1, -1, 0)
        m.stat[0].cow_ksm += 1
    map_new_page(m, v, bits)
    rmap.folio_remove_rmap_ptes(m, v, old, 1)


@compiled
def do_swap_page(m, v, write):
    """Bring the page of the SWAP entry at v back (thp-split W3, W7).

    A page that other entries still need stays in the swap cache, not exclusive, and the next user finds it there. It
    depends on the release whether the page becomes exclusive when only the last one of several entries is left. A KSM
    page found there is mapped as it is, or copied if it has no stable node or KSM is unmerging
    (`ksm_might_need_to_copy`, ksm-merge F6).
    """
    slot = -2 - m.page[v].frame
    frame = m.swap[slot].cache
    bits = 0
    unshared = m.pte[v].bits & EXCLUSIVE or not m.state[0].swapin_keeps_shared
    if frame >= 0 and m.frame[frame].flags & KSM and (m.frame[frame].node < 0 or m.state[0].run == 2):
        m.stat[0].ksm_swpin_copy += 1
        frame = _alloc_page(m, v)
        bits = EXCLUSIVE
    elif frame >= 0:
        last = m.swap[slot].count == 1 and m.frame[frame].mapcount == 0
        if m.frame[frame].flags & KSM:
            bits = KSM_PAGE
        elif last and unshared and (write or m.pte[v].vm & VM_LOCKED):
            bits = EXCLUSIVE
    else:
        frame = _alloc_page(m, v)
        if not m.swap[slot].zero:
            m.stat[0].pswpin += 1
        if m.swap[slot].count == 1:
            bits = EXCLUSIVE if unshared else 0
        else:
            m.swap[slot].cache = frame
            m.frame[frame].folio = -2 - slot
    m.frame[frame].mapcount += 1
    set_pte(m, v, ANON, bits, frame)
    swap_free(m, slot)
    if bits & EXCLUSIVE or m.pte[v].vm & VM_LOCKED:
        folio.folio_free_swap(m, frame)


@compiled
def _folio_allowed(m, v, order):
    """Return whether a folio of an order may serve a fault at v (thp-split H10, mthp E2).

    It may if its size is enabled, and one VMA with MADV_HUGEPAGE covers all of its pages, none of which is mapped. A
    huge page needs a block without a page table. A VMA armed by userfaultfd has each of its pages by itself.
    """
    s = m.state[0]
    first, end = v >> order << order, (v >> order) + 1 << order
    if not s.hugepages >> order & 1 or not m.pte[v].vm & VM_HUGEPAGE:
        return False
    if order == s.hpage_order:
        if m.block[v >> order].pmd != PMD_NONE:
            return False
    elif not s.faults_take_sizes or m.pte[v].vm & VM_UFFD:
        return False
    else:
        for i in range(first, end):
            if m.pte[i].kind != NONE:
                return False
    base = m.mm[folio.vm_mm(m, v)].base
    for i in range(len(m.vma)):
        if m.vma[i].base == base and m.vma[i].start <= first - base and end - base <= m.vma[i].end:
            return True
    return False


@compiled
def _folio_fault(m, v, order):
    """Map a zero-filled large folio around v (`alloc_anon_folio`, `__do_huge_pmd_anonymous_page`)."""
    first = v >> order << order
    for i in range(first, first + (1 << order)):
        set_content(m, i, np.uint64(0))
    map_folio(m, first, order, m.mm[folio.vm_mm(m, v)].nid)
    m.mthp[order].anon_fault_alloc += 1
    m.stat[0].thp_fault_alloc += order == m.state[0].hpage_order


@compiled
def _write_fault(m, v):
    """Make the page at v writable by its process alone; its content stays (ksm-merge F1, F2, F7).

    A small page replaces a zeropage, whatever was there before (thp-split Z5, mthp E3). It depends on the release what
    replaces the huge zeropage (ksm-merge F3), and whether a page of a large folio that others have ceased to map is
    copied (F7).
    """
    s = m.state[0]
    b = v >> s.hpage_order
    if m.pte[v].kind == POISON:
        return
    if m.pte[v].kind == NONE:
        order = np.int64(s.hpage_order)
        while order > 1 and not _folio_allowed(m, v, order):
            order -= 1
        if order > 1:
            _folio_fault(m, v, order)
        else:
            set_content(m, v, np.uint64(0))
            map_new_page(m, v, DIRTY | EXCLUSIVE)
        return
    if m.pte[v].kind == HUGE_ZP:
        if s.wp_fault_allocates_thp:
            _folio_fault(m, v, s.hpage_order)
            return
        split_huge_pmd(m, b)
    if m.pte[v].kind == ZP_CLEAN or m.pte[v].kind == ZP_KSM:
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
        if m.folio[f].mapcount == 1:  # no other entry maps any page of the folio: reuse it
            for i in range(b << s.hpage_order, (b + 1) << s.hpage_order):
                m.pte[i].bits = DIRTY | EXCLUSIVE
            return
        split_huge_pmd(m, b)
    if f >= 0:
        alone = s.large_folio_reused and m.folio[f].mapcount > 1 and not m.folio[f].shared and m.folio[f].pins == 0
    else:
        unshared = m.frame[frame].mapcount == 1 and not m.frame[frame].flags & (KSM | LOCKED)
        alone = unshared and folio.folio_free_swap(m, frame)
    if alone:
        m.pte[v].bits = DIRTY | EXCLUSIVE
        return
    wp_page_copy(m, v, DIRTY | EXCLUSIVE)


@compiled
def _read_fault(m, v):
    """Read the page at v. An empty entry becomes one of the shared or the huge zeropage (ksm-merge F3)."""
    if m.pte[v].kind == SWAP:
        do_swap_page(m, v, False)
    if m.pte[v].kind != NONE:
        m.pte[v].bits &= ~OLD
        return
    order = m.state[0].hpage_order
    b = v >> order
    if m.mm[m.block[b].mm].forbids_zeropages:
        _write_fault(m, v)
        return
    if _folio_allowed(m, v, order):
        for i in range(b << order, (b + 1) << order):
            set_pte(m, i, HUGE_ZP, 0, -1)
            set_content(m, i, np.uint64(0))
        m.block[b].pmd = PMD_HUGE_ZP
        return
    set_pte(m, v, ZP_CLEAN, 0, -1)
    set_content(m, v, np.uint64(0))
    m.block[b].pmd = PMD_TABLE


@entry
def access_pages(m, first, end, access, key):
    """Read each page of [first, end), write `key` to it, or write back what is read: READS, WRITES, or both bits.

    Return 0, or EFAULT at the first page that is poisoned, in no VMA, or not in a writable one.
    """
    for v in range(first, end):
        if not m.pte[v].vm & (VM_WRITE if access & WRITES else VM_PRESENT) or m.pte[v].kind == POISON:
            return EFAULT
        if access & READS:
            _read_fault(m, v)
        if access & WRITES:
            _write_fault(m, v)
        if access == WRITES:
            set_content(m, v, key)
    return 0


@entry
def write_listed_pages(m, keys):
    """Write each of the contents to a page of `Machine.listed`; pages that cannot be written are left."""
    for i in range(len(keys)):
        v = m.listed[i]
        if m.pte[v].vm & VM_WRITE and m.pte[v].kind != POISON:
            _write_fault(m, v)
            set_content(m, v, keys[i])


@entry
def populate_vma_page_range(m, first, end, hold):
    """Touch each page of [first, end) as mlock does: write where the VMA is writable, else read (ksm-merge F8).

    An entry that is writable already causes no fault: it stays as it is, and the page is marked instead; but a huge PMD
    becomes dirty and is not old any more. With `hold` each page is referenced before the next one is touched, and no
    page is touched before the first whose entry is not writable (thp-split H5).
    """
    order, at_once = m.state[0].hpage_order, hold
    for v in range(first, end):
        writable = m.pte[v].kind == ANON and pte_writable(m, v)
        at_once = at_once and writable
        if at_once:
            m.frame[folio.folio_head(m, m.page[v].frame)].flags |= REFERENCED
        elif not m.pte[v].vm & VM_WRITE:
            _read_fault(m, v)
        elif writable and m.block[v >> order].pmd == PMD_TABLE:
            m.frame[folio.folio_head(m, m.page[v].frame)].flags |= PG_DIRTY | REFERENCED
        elif m.pte[v].kind != ANON or m.pte[v].bits & (EXCLUSIVE | DIRTY | OLD) != EXCLUSIVE | DIRTY:
            _write_fault(m, v)
        if hold:
            folio.folio_get(m, m.page[v].frame)


# --- ranges ---------------------------------------------------------------------------------------------------------


@entry
def zap_page_range(m, first, end, advised):
    """Unmap [first, end), which lies in one VMA (`zap_pte_range`, `zap_huge_pmd`; thp-split H11).

    The page table of a whole block stays, unless MADV_DONTNEED (`advised`) emptied it and the release frees it (H10).
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
                    m.stat[0].huge_pmds -= 1
                    rmap.folio_remove_rmap_pmd(m, v, m.frame[m.page[v].frame].folio)
                for i in range(v, stop):
                    unmap_pte(m, i, NONE, -1)
                m.block[b].pmd = PMD_NONE
                v = stop
                continue
            split_huge_pmd(m, b)
        while v < stop:
            if m.pte[v].kind != ANON:
                if m.pte[v].kind == SWAP:
                    clear_swap_entry(m, v)
                else:
                    set_pte(m, v, NONE, 0, -1)
                v += 1
                continue
            frame = m.page[v].frame
            run = 1
            if m.frame[frame].folio >= 0:
                run = rmap.folio_pte_batch(m, v, stop)
            for i in range(v, v + run):
                unmap_pte(m, i, NONE, -1)
            rmap.folio_remove_rmap_ptes(m, v, frame, run)
            v += run
        if advised and m.state[0].dontneed_frees_page_table and first <= b * n and stop == (b + 1) * n:
            m.block[b].pmd = PMD_NONE


@compiled
def _copied_at_fork(m, v):
    """Return whether a child gets a copy of the page at v: it is exclusive, and its folio pinned (ksm-merge F4)."""
    return m.pte[v].bits & EXCLUSIVE and folio.folio_pins(m, m.page[v].frame) > 0


@entry
def copy_page_range(m, src, dst, pages):
    """Copy the parent's page tables at `src` to the child's at `dst`, as fork does (ksm-merge F4).

    Ordinary pages become shared and non-exclusive, except that the child gets copies of those of a pinned folio, of
    which a huge PMD is split. KSM and zeropage entries keep their kind. The child gets no rmap_items.
    """
    order = m.state[0].hpage_order
    n = 1 << order
    for i in range((pages + n - 1) // n):
        a, b = (src >> order) + i, (dst >> order) + i
        if m.block[a].pmd == PMD_HUGE and _copied_at_fork(m, a * n):
            split_huge_pmd(m, a)
        m.block[b].pmd = m.block[a].pmd
        if m.block[a].pmd == PMD_HUGE:
            f = m.frame[m.page[a * n].frame].folio
            rmap.folio_add_large_mapcount(m, f, m.block[b].mm, 1)
            m.folio[f].entire += 1
            m.stat[0].huge_pmds += 1
    for i in range(pages):
        v, w = src + i, dst + i
        m.page[w].key = m.page[v].key
        m.pte[w].vm = m.pte[v].vm & ~(VM_LOCKED | VM_UFFD)
        if m.pte[v].kind == ANON and _copied_at_fork(m, v):
            map_new_page(m, w, DIRTY | EXCLUSIVE)
            continue
        m.pte[v].bits &= ~EXCLUSIVE
        frame = m.page[v].frame
        set_pte(m, w, m.pte[v].kind, m.pte[v].bits | OLD if m.pte[v].kind == ANON else 0, frame)
        if m.pte[v].kind == ANON and m.block[v >> order].pmd == PMD_TABLE:
            m.frame[frame].mapcount += 1
            if m.frame[frame].folio >= 0:
                rmap.folio_add_large_mapcount(m, m.frame[frame].folio, folio.vm_mm(m, w), 1)
        elif m.pte[v].kind == ZP_KSM:
            emit(m, Decision.ZERO_COPIED, w, 1, -1, 0)
        elif m.pte[v].kind == SWAP:
            swap_duplicate(m, -2 - frame)


@entry
def move_page_tables(m, old, new, pages):
    """Move the entries of a range, as mremap does (thp-split H14).

    A huge PMD moves as it is if it comes to a border of a block again, else it is split.
    """
    order = m.state[0].hpage_order
    n = np.int64(1) << order
    i = np.int64(0)
    while i < pages:
        v, w = old + i, new + i
        b, c = v >> order, w >> order
        run = min(n - (v & n - 1), n - (w & n - 1), pages - i)
        if run < n:
            split_huge_pmd(m, b)
        elif m.block[b].pmd != PMD_TABLE:
            m.block[c].pmd, m.block[b].pmd = m.block[b].pmd, PMD_NONE
        if m.block[b].pmd == PMD_TABLE:
            m.block[c].pmd = PMD_TABLE
        for v in range(old + i, old + i + run):
            w = v + new - old
            set_content(m, w, m.page[v].key)
            set_pte(m, w, m.pte[v].kind, m.pte[v].bits, m.page[v].frame)
            unmap_pte(m, v, NONE, -1)
        i += run


@compiled
def break_ksm(m, v):
    """Unshare one address: a page of its own replaces a KSM page or a zeropage placed by ksmd (ksm-merge B1).

    In a VM_LOCKED VMA the copy, then the old page, go into the batch of mlock work (M15).
    """
    if m.pte[v].kind == ZP_KSM:
        map_new_page(m, v, EXCLUSIVE | READ_ONLY)
    elif m.pte[v].kind == ANON and m.frame[m.page[v].frame].flags & KSM:
        old = m.page[v].frame
        folio.folio_get(m, old)
        wp_page_copy(m, v, EXCLUSIVE | READ_ONLY)
        if m.pte[v].vm & VM_LOCKED:
            folio.folio_batch_add(m, MLOCK, m.page[v].frame)
            folio.folio_batch_add(m, MLOCK, old)
        folio.folio_put(m, old)


@entry
def unmerge_ksm_pages(m, first, end):
    """Unshare each page of [first, end) (ksm-merge R3)."""
    for v in range(first, end):
        break_ksm(m, v)


@entry
def populate(m, mm, orders, touched):
    """Map the touched pages of a process's region before the start, each in a folio of its order (mthp E18).

    The other pages of these folios are zero-filled.

    Parameters
    ----------
    orders
        uint8[pages]: the order of the folio of each page.
    touched
        bool[pages]
    """
    base = m.mm[mm].base
    i = 0
    while i < m.mm[mm].pages:
        n = 1 << orders[i]
        found = False
        for k in range(i, i + n):
            found |= touched[k]
            if not touched[k]:
                m.page[base + k].key = np.uint64(0)
                m.page[base + k].frame = -1
        if found and n > 1:
            map_folio(m, base + i, orders[i], m.mm[mm].nid)
        elif found:
            map_new_page(m, base + i, DIRTY | EXCLUSIVE)
        i += n
