"""The advices that act on folios: MADV_COLD, MADV_PAGEOUT, MADV_FREE (mm/madvise.c; thp-split W1, W5, W6)."""

from mmlab.kernel.folio import folio_batch_drain, folio_free_swap
from mmlab.kernel.huge_memory import split_folio
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.memory import clear_swap_entry
from mmlab.kernel.mlock import count_locked
from mmlab.kernel.pgtable import set_pte
from mmlab.kernel.rmap import folio_maybe_mapped_shared, folio_pte_batch
from mmlab.kernel.state import *
from mmlab.kernel.swap import shrink_folio

MADV_COLD, MADV_PAGEOUT, MADV_FREE = range(3)


@compiled
def _advise_folio(m, advice, v, n):
    """Apply an advice to the folio whose n pages are mapped from v on.

    MADV_FREE makes these entries clean, and the folio lazy unless it is mlocked (thp-split W6).
    """
    head = m.page[v].frame
    if advice == MADV_PAGEOUT:
        m.frame[head].flags &= ~REFERENCED
        shrink_folio(m, v)
        return
    for w in range(v, v + n):
        m.pte[w].bits |= OLD
        if advice == MADV_FREE:
            m.pte[w].bits &= ~DIRTY
    if advice == MADV_FREE:
        m.frame[head].flags &= ~PG_DIRTY
        f = m.frame[head].folio
        if (m.folio[f].mlocks if f >= 0 else count_locked(m, v, False)) > 0:
            return
        m.frame[head].flags |= LAZY
    m.frame[head].flags &= ~REFERENCED


@entry
def madvise_folios(m, advice, first, end):
    """Apply MADV_COLD, MADV_PAGEOUT or MADV_FREE to [first, end), which lies in one VMA (thp-split W5).

    `madvise_cold_or_pageout_pte_range`, `madvise_free_pte_range`. A large folio wholly inside is treated as a whole.
    One that reaches out of the range, or is not mapped as a whole, is split, and its pages are treated one by one. One
    that is shared is passed over, as are zeropages and pages that several entries map (W1): by MADV_FREE only those
    that are dirty, whatever their entries say, or in the swap cache, to whose slot no other entry may refer (W6).
    """
    folio_batch_drain(m, MLOCK)
    order = m.state[0].hpage_order
    v = first
    while v < end:
        b = v >> order
        stop = min(end, (b + 1) << order)
        if m.block[b].pmd == PMD_HUGE:
            whole = stop - v == 1 << order
            shared = folio_maybe_mapped_shared(m, m.frame[m.page[v].frame].folio)
            if whole and not shared:
                _advise_folio(m, advice, v, 1 << order)
            if whole or shared or not split_folio(m, m.page[v].frame, CALLER_OTHER):
                v = stop
                continue
        if m.block[b].pmd != PMD_TABLE:
            v = stop
            continue
        while v < stop:
            if m.pte[v].kind != ANON:
                if m.pte[v].kind == SWAP and advice == MADV_FREE:
                    clear_swap_entry(m, v)
                elif m.pte[v].kind == POISON and advice == MADV_FREE:
                    set_pte(m, v, NONE, 0, -1)
                v += 1
                continue
            frame = m.page[v].frame
            f = m.frame[frame].folio
            clean = advice == MADV_FREE and f >= -1 and not m.frame[frame].flags & PG_DIRTY
            if f < 0:
                alone = m.frame[frame].mapcount == 1
                if advice == MADV_FREE:
                    alone = alone and not m.frame[frame].flags & LOCKED and folio_free_swap(m, frame)
                if clean or alone:
                    _advise_folio(m, advice, v, 1)
                v += 1
                continue
            n = folio_pte_batch(m, v, stop)
            if n == 1 << m.folio[f].order:
                if clean or m.folio[f].mapcount == n:
                    _advise_folio(m, advice, v, n)
            elif not folio_maybe_mapped_shared(m, f) and split_folio(m, frame, CALLER_OTHER):
                continue
            v += n
