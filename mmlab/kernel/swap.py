"""Swap slots, and the reclaim of folios by MADV_PAGEOUT (mm/swapfile.c, mm/vmscan.c; thp-split 3.10).

A SWAP entry has -2 - slot in place of its frame, a small page in the swap cache has it in place of its folio. The swap
cache's reference is the slot's `cache`, not a pin (thp-split H5).
"""

from mmlab.kernel.folio import free_folio, free_slot, put_frame, vm_mm
from mmlab.kernel.huge_memory import clear_huge_pmd, split_folio, split_huge_pmd
from mmlab.kernel.jit import compiled
from mmlab.kernel.rmap import folio_remove_rmap_pmd, folio_remove_rmap_ptes
from mmlab.kernel.state import *
from mmlab.kernel.unstable_tree import unmap_pte


@compiled
def _free_slots(m):
    """Return the number of free slots. The first page of a swap area is its header."""
    return max(0, m.state[0].swap_mib * 256 - 1) - m.state[0].swap_used


@compiled
def _alloc_slot(m):
    """Allocate a slot that no entry refers to yet."""
    s = m.state[0]
    slot = s.free_slot
    if slot >= 0:
        s.free_slot = m.swap[slot].cache
    else:
        slot = s.top_slot
        s.top_slot += 1
    m.swap[slot].count = 0
    m.swap[slot].cache = -1
    s.swap_used += 1
    return slot


@compiled
def swap_duplicate(m, slot):
    """Count one more entry that refers to the slot, as fork does too (thp-split W7)."""
    m.swap[slot].count += 1


@compiled
def swap_free(m, slot):
    """Count one entry less that refers to the slot, and free the slot after the last one.

    A page in the swap cache keeps its slot as long as it is mapped (thp-split W7).
    """
    m.swap[slot].count -= 1
    if m.swap[slot].count > 0:
        return
    frame = m.swap[slot].cache
    if frame < 0:
        free_slot(m, slot)
    else:
        put_frame(m, frame)


@compiled
def _swap_out(m, v, slot):
    """Replace the entry at v by one that refers to the slot (`try_to_unmap_one`)."""
    unmap_pte(m, v, SWAP, -2 - slot)
    swap_duplicate(m, slot)


@compiled
def _found_by_rmap(m, v, frame):
    """Return whether reverse mapping finds this entry of a KSM page (`rmap_walk_ksm`, ksm-merge M14).

    It does if the page's node has an item at this address, of this process or of an ancestor.
    """
    node = m.frame[frame].node
    if node < 0:
        return False
    index = v - m.mm[vm_mm(m, v)].base
    w = m.node[node].first
    while w >= 0:
        owner = vm_mm(m, w)
        mm = vm_mm(m, v) if w - m.mm[owner].base == index else 0
        while mm > 0:
            if mm == owner:
                return True
            mm = m.mm[mm].parent
        w = m.page[w].left
    return False


@compiled
def _shrink_page(m, v):
    """Reclaim the small page at v, which nothing else maps (`shrink_folio_list`; thp-split W4, W6; ksm-merge F6).

    A lazy page is discarded, or is no longer lazy if it is dirty. A zero-filled page is not written.
    """
    frame = m.page[v].frame
    ksm = m.frame[frame].flags & KSM
    if m.frame[frame].pins > 0 or m.frame[frame].flags & LOCKED or (ksm and not _found_by_rmap(m, v, frame)):
        return
    if m.frame[frame].flags & LAZY:
        if m.pte[v].bits & DIRTY or m.frame[frame].flags & PG_DIRTY:
            m.frame[frame].flags = m.frame[frame].flags & ~LAZY | PG_DIRTY
            return
        unmap_pte(m, v, NONE, -1)
        folio_remove_rmap_ptes(m, v, frame, 1)
        return
    slot = -2 - m.frame[frame].folio
    cached = slot >= 0  # still in the swap cache
    write = not cached or (m.pte[v].bits & DIRTY) != 0 or (m.frame[frame].flags & PG_DIRTY) != 0
    if not cached:
        if _free_slots(m) < 1:
            return
        slot = _alloc_slot(m)
    if write:
        m.swap[slot].zero = m.page[v].key == 0
        if not m.swap[slot].zero:
            m.stat[0].pswpout += 1
    _swap_out(m, v, slot)
    m.swap[slot].cache = -1
    m.frame[frame].folio = -1
    folio_remove_rmap_ptes(m, v, frame, 1)


@compiled
def _discard_folio(m, f, v):
    """Discard a lazy large folio that is mapped from v on, or let it be lazy no longer if it is dirty (thp-split W6).

    The entries go run by run, up to the first run with a dirty one. It depends on the release how long a run is, and
    whether a huge PMD is split before.
    """
    frame, end, b = m.folio[f].head, v + (1 << m.folio[f].order), v >> m.state[0].hpage_order
    whole = m.state[0].lazy_pmd_goes_whole and m.block[b].pmd == PMD_HUGE
    if not whole:
        split_huge_pmd(m, b)
    while v < end:
        run, dirty = 1, m.pte[v].bits & DIRTY | m.frame[m.folio[f].head].flags & PG_DIRTY
        while v + run < end and (whole or m.state[0].lazyfree_goes_at_once):
            if m.state[0].lazyfree_runs_are_alike and (m.pte[v + run].bits ^ m.pte[v].bits) & EXCLUSIVE:
                break  # only one of the two is writable
            dirty |= m.pte[v + run].bits & DIRTY
            run += 1
        if dirty:
            m.frame[m.folio[f].head].flags = m.frame[m.folio[f].head].flags & ~LAZY | PG_DIRTY
            return
        for w in range(v, v + run):
            unmap_pte(m, w, NONE, -1)
        if whole:
            m.block[b].pmd = PMD_NONE
            m.stat[0].huge_pmds -= 1
            folio_remove_rmap_pmd(m, v, f)
        else:
            folio_remove_rmap_ptes(m, v, frame, run)
        v, frame = v + run, frame + run


@compiled
def shrink_folio(m, v):
    """Reclaim the folio that is mapped wholly, from v on, and by nothing else.

    A large folio is swapped out whole (thp-split W2). Without a contiguous run of slots it is split, and its pages are
    swapped out one by one (thp-split 3.6); those that became the zeropage are gone by then (G3). In an area that has
    room for large folios (thp-split W8), slots are contiguous as long as enough of them are free: fragmentation is not
    modelled.
    """
    f = m.frame[m.page[v].frame].folio
    if f < 0:
        _shrink_page(m, v)
        return
    if m.folio[f].pins > 0:
        return
    head, n, b = m.folio[f].head, 1 << m.folio[f].order, v >> m.state[0].hpage_order
    if m.frame[head].flags & LAZY:
        _discard_folio(m, f, v)
        return
    if _free_slots(m) < n or m.state[0].swap_mib * 256 < 2 << m.state[0].hpage_order:
        if split_folio(m, head, CALLER_OTHER):
            if n == 1 << m.state[0].hpage_order:
                m.stat[0].thp_swpout_fallback += 1
            for w in range(v, v + n):
                if m.pte[w].kind == ANON:
                    _shrink_page(m, w)
        return
    if m.block[b].pmd == PMD_HUGE:
        clear_huge_pmd(m, b)
    zero = True
    for w in range(v, v + n):
        zero = zero and m.page[w].key == 0
    for w in range(v, v + n):
        slot = _alloc_slot(m)
        m.swap[slot].zero = zero
        _swap_out(m, w, slot)
    if not zero:
        m.stat[0].pswpout += n
    free_folio(m, f)
