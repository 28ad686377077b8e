"""Swap slots, and reclaim of the folios that an advice names (mm/swapfile.c, mm/vmscan.c; thp-split 3.10).

A SWAP entry has -2 - slot in place of its frame; a small page in the swap cache has -2 - slot in place of its folio.
The swap cache's reference is the `cache` of the slot, not a pin (thp-split H5).
"""

from mmlab.kernel.folio import folio_remove_rmap_ptes, free_folio, free_slot, put_frame
from mmlab.kernel.huge_memory import split_folio, split_huge_pmd
from mmlab.kernel.jit import compiled
from mmlab.kernel.state import (
    ANON,
    CALLER_OTHER,
    DIRTY,
    EXCLUSIVE,
    KSM,
    LAZY,
    NONE,
    PG_DIRTY,
    PMD_HUGE,
    PMD_TABLE,
    SWAP,
)
from mmlab.kernel.unstable_tree import unmap_pte

__all__ = ["shrink_folio", "swap_duplicate", "swap_free"]


@compiled
def _free_slots(m):
    """Slots that are left; the first page of a swap area is its header."""
    size = m.state[0].swap_mib * 256
    return size - 1 - m.state[0].swap_used if size > 0 else 0


@compiled
def _alloc_slot(m):
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
    """One more entry refers to the slot, also by fork (thp-split W7)."""
    m.swap[slot].count += 1
    m.stat[0].swap_entries += 1


@compiled
def swap_free(m, slot):
    """One entry less. After the last one the page stays in the swap cache as long as it is mapped (W7)."""
    m.stat[0].swap_entries -= 1
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
    """The entry at v refers to the slot from now on (`try_to_unmap_one`)."""
    unmap_pte(m, v, SWAP, -2 - slot)
    m.pte[v].bits &= EXCLUSIVE
    m.stat[0].anon_pages -= 1
    swap_duplicate(m, slot)


@compiled
def _found_by_rmap(m, v, frame):
    """Whether reverse mapping finds this entry of a KSM page: by an item of the page's node at this address in this
    process or in an ancestor (`rmap_walk_ksm`, ksm-merge M14)."""
    node = m.frame[frame].node
    if node < 0:
        return False
    order = m.state[0].hpage_order
    index = v - m.mm[m.block[v >> order].mm].base
    w = m.node[node].first
    while w >= 0:
        owner = m.block[w >> order].mm
        mm = m.block[v >> order].mm if w - m.mm[owner].base == index else 0
        while mm > 0:
            if mm == owner:
                return True
            mm = m.mm[mm].parent
        w = m.page[w].left
    return False


@compiled
def _shrink_page(m, v):
    """Reclaim the small page at v, which nothing else maps (`shrink_folio_list`; thp-split W4, W6; ksm-merge F6)."""
    frame = m.page[v].frame
    ksm = m.frame[frame].flags & KSM
    if m.frame[frame].pins > 0 or (ksm and not _found_by_rmap(m, v, frame)):
        return
    if m.frame[frame].flags & LAZY:  # W6
        if m.pte[v].bits & DIRTY or m.frame[frame].flags & PG_DIRTY:
            m.frame[frame].flags = m.frame[frame].flags & ~LAZY | PG_DIRTY
            return
        unmap_pte(m, v, NONE, -1)
        m.stat[0].anon_pages -= 1
        m.stat[0].ksm_entries -= ksm
        folio_remove_rmap_ptes(m, frame, 1)
        return
    slot = -2 - m.frame[frame].folio
    write = True
    if slot >= 0:  # still in the swap cache
        write = (m.pte[v].bits & DIRTY) != 0 or (m.frame[frame].flags & PG_DIRTY) != 0
    else:
        if _free_slots(m) < 1:
            return
        slot = _alloc_slot(m)
    if write:
        m.swap[slot].zero = m.page[v].key == 0
        if not m.swap[slot].zero:  # W4
            m.stat[0].pswpout += 1
    m.stat[0].ksm_entries -= ksm
    _swap_out(m, v, slot)
    m.swap[slot].cache = -1
    m.frame[frame].folio = -1
    folio_remove_rmap_ptes(m, frame, 1)


@compiled
def _discard_folio(m, f, v):
    """A lazy large folio mapped from v on goes, unless it was written to (W6).

    6.12 takes the entries away one by one, up to one that is dirty, so that the folio looks partially mapped; 6.18 all
    or none at once (seen live).
    """
    head, n = m.folio[f].head, 1 << m.folio[f].order
    clean = 0
    while clean < n and not m.pte[v + clean].bits & DIRTY and not m.frame[head].flags & PG_DIRTY:
        clean += 1
    if clean < n:
        m.frame[head].flags = m.frame[head].flags & ~LAZY | PG_DIRTY
        if m.state[0].kernel >= 618:
            clean = 0
    for w in range(v, v + clean):
        unmap_pte(m, w, NONE, -1)
    m.stat[0].anon_pages -= clean
    if m.state[0].kernel < 618:
        for i in range(clean):
            folio_remove_rmap_ptes(m, head + i, 1)
    elif clean > 0:
        folio_remove_rmap_ptes(m, head, clean)


@compiled
def shrink_folio(m, v):
    """Reclaim the folio whose first page v maps; it is wholly mapped from there on, by nothing else.

    A huge page goes out whole (W2), or without a contiguous run of slots it is split first and goes page by page
    (thp-split 3.6); pages that became the zeropage are gone by then (G3). Slots are contiguous as long as enough of
    them are free: fragmentation is not modelled.
    """
    f = m.frame[m.page[v].frame].folio
    if f < 0:
        _shrink_page(m, v)
        return
    if m.folio[f].pins > 0:
        return
    head, n = m.folio[f].head, 1 << m.folio[f].order
    b = v >> m.state[0].hpage_order
    if m.frame[head].flags & LAZY:
        split_huge_pmd(m, b)
        _discard_folio(m, f, v)
        return
    if _free_slots(m) < n:
        if split_folio(m, head, CALLER_OTHER):
            if n == 1 << m.state[0].hpage_order:
                m.stat[0].thp_swpout_fallback += 1
            for w in range(v, v + n):
                if m.pte[w].kind == ANON:
                    _shrink_page(m, w)
        return
    if m.block[b].pmd == PMD_HUGE:
        m.block[b].pmd = PMD_TABLE
        m.stat[0].huge_pmds -= 1
        m.stat[0].thp_split_pmd += 1
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
