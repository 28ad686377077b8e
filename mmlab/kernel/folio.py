"""Frames and folios: allocation, references, mapcounts, the deferred split queue, the CPU's batches.

An anonymous folio's reference count is its mapcount plus its pins (thp-split H5). It is freed when both are 0.
"""

from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import *

__all__ = ["alloc_folio", "alloc_frame", "folio_get", "folio_put", "free_folio", "put_frame", "release_folio", "vm_mm"]


@compiled
def vm_mm(m, v):
    """Return the process whose page v is (`vma->vm_mm`)."""
    return m.block[v >> m.state[0].hpage_order].mm


@compiled
def _clear_frame(m, frame, folio):
    m.frame[frame].mapcount = 0
    m.frame[frame].folio = folio
    m.frame[frame].node = -1
    m.frame[frame].pins = 0
    m.frame[frame].flags = 0


@compiled
def alloc_frame(m):
    """Allocate an order-0 page that nothing maps or references yet."""
    s = m.state[0]
    f = s.free_frame
    if f >= 0:
        s.free_frame = m.frame[f].mapcount
    elif s.top_frame < len(m.frame):
        f = s.top_frame
        s.top_frame += 1
    else:  # break up a free huge page
        f = s.free_run
        s.free_run = m.frame[f].mapcount
        for i in range(f + 1, f + (1 << s.hpage_order)):
            m.frame[i].mapcount = s.free_frame
            s.free_frame = i
    _clear_frame(m, f, -1)
    m.stat[0].frames += 1
    return f


@compiled
def _free_frame(m, f):
    """Free an order-0 page. A KSM page leaves a stale node behind, whose counters stay as they are until the node is
    accessed (ksm-merge T2, C4)."""
    if m.frame[f].flags & KSM:
        m.stat[0].ksm_frames -= 1
    if m.frame[f].node >= 0:
        m.frame[f].node = -1
        m.state[0].stale_nodes += 1
    m.frame[f].flags = FREE
    m.frame[f].mapcount = m.state[0].free_frame
    m.state[0].free_frame = f
    m.stat[0].frames -= 1


@compiled
def alloc_folio(m, order, family, index):
    """Allocate a large folio of 2^order pages that nothing maps yet; `index` is its first page's number in the region.

    The state of a folio (thp-split H4) follows from its mapcounts and `partially_mapped`.
    """
    s = m.state[0]
    n = 1 << order
    if order == s.hpage_order and s.free_run >= 0:
        head = s.free_run
        s.free_run = m.frame[head].mapcount
    else:
        head = s.top_frame
        s.top_frame += n
    f = s.free_folio
    if f >= 0:
        s.free_folio = m.folio[f].next
    else:
        f = s.top_folio
        s.top_folio += 1
    for i in range(head, head + n):
        _clear_frame(m, i, f)
    x = m.folio[f]
    x.head = head
    x.family = family
    x.index = index
    x.mapcount = 0
    x.entire = 0
    x.nr_mapped = 0
    x.pins = 0
    x.next = -1
    x.prev = -1
    x.order = order
    x.partially_mapped = 0
    m.stat[0].frames += n
    m.mthp[order].nr_anon += 1
    return f


@compiled
def release_folio(m, f):
    """Free the record of a large folio that is being freed or was split, but not its frames."""
    folio_unqueue_deferred_split(m, f)
    m.mthp[m.folio[f].order].nr_anon -= 1
    m.folio[f].next = m.state[0].free_folio
    m.state[0].free_folio = f


@compiled
def free_folio(m, f):
    """Free a large folio. A huge page's frames stay together, to be allocated as a huge page again."""
    s = m.state[0]
    head = m.folio[f].head
    order = m.folio[f].order
    n = 1 << order
    release_folio(m, f)
    if order == s.hpage_order:
        for i in range(head, head + n):
            m.frame[i].flags = FREE
        m.frame[head].mapcount = s.free_run
        s.free_run = head
        m.stat[0].frames -= n
    else:
        for i in range(head, head + n):
            _free_frame(m, i)


@compiled
def folio_get(m, frame):
    """Take a reference on the folio that the frame belongs to, beyond those of its mappings (thp-split H5)."""
    f = m.frame[frame].folio
    if f >= 0:
        m.folio[f].pins += 1
    else:
        m.frame[frame].pins += 1


@compiled
def folio_put(m, frame):
    """Drop a reference on the folio that the frame belongs to, and free the folio after the last one."""
    f = m.frame[frame].folio
    if f >= 0:
        m.folio[f].pins -= 1
        _put_folio(m, f)
    else:
        m.frame[frame].pins -= 1
        put_frame(m, frame)


@compiled
def _put_folio(m, f):
    """Free a large folio if nothing maps or references it any more."""
    if m.folio[f].mapcount == 0 and m.folio[f].pins == 0:
        free_folio(m, f)


@compiled
def put_frame(m, frame):
    """Free an order-0 page if nothing maps or references it and no swap entry needs it in the swap cache."""
    if m.frame[frame].mapcount > 0 or m.frame[frame].pins > 0:
        return
    if m.frame[frame].folio == -1 or folio_free_swap(m, frame):
        _free_frame(m, frame)


# --- swap cache -----------------------------------------------------------------------------------------------------
__all__ += ["folio_free_swap", "free_slot"]


@compiled
def free_slot(m, slot):
    """Free a slot of the swap area."""
    s = m.state[0]
    m.swap[slot].cache = s.free_slot
    s.free_slot = slot
    s.swap_used -= 1


@compiled
def folio_free_swap(m, frame):
    """Remove an order-0 page from the swap cache unless an entry refers to its slot. Return whether it is out."""
    slot = -2 - m.frame[frame].folio
    if slot < 0:
        return True
    if m.swap[slot].count > 0:
        return False
    m.frame[frame].folio = -1
    m.frame[frame].flags |= PG_DIRTY
    free_slot(m, slot)
    return True


# --- reverse map ----------------------------------------------------------------------------------------------------
__all__ += ["folio_likely_mapped_shared", "folio_pte_batch", "folio_remove_rmap_pmd", "folio_remove_rmap_ptes"]


@compiled
def folio_pte_batch(m, v, end):
    """Return the number of entries from v on, before `end`, that map consecutive pages of one large folio."""
    frame = m.page[v].frame
    n = 1
    while (
        v + n < end
        and m.pte[v + n].kind == ANON
        and m.page[v + n].frame == frame + n
        and m.frame[frame + n].folio == m.frame[frame].folio
    ):
        n += 1
    return n


@compiled
def folio_likely_mapped_shared(m, f):
    """Return the kernel's guess at whether a large folio has several owners (thp-split W5)."""
    mapcount = m.folio[f].mapcount
    if mapcount <= 1:
        return False
    return m.folio[f].entire > 0 or mapcount > 1 << m.folio[f].order or m.frame[m.folio[f].head].mapcount > 1


@compiled
def folio_remove_rmap_ptes(m, frame, n):
    """Remove the mappings of n consecutive pages of one folio, from `frame` on, in one step (thp-split H11).

    A folio that stays mapped in part is marked and queued (Q1b, mthp E6).
    """
    f = m.frame[frame].folio
    if f < 0:
        m.frame[frame].mapcount -= 1
        put_frame(m, frame)
        return
    unmapped = 0
    for i in range(frame, frame + n):
        m.frame[i].mapcount -= 1
        if m.frame[i].mapcount == 0:
            unmapped += 1
    m.folio[f].mapcount -= n
    m.folio[f].nr_mapped -= unmapped
    if unmapped > 0 and m.folio[f].entire == 0 and m.folio[f].nr_mapped > 0:
        deferred_split_folio(m, f, True)
    _put_folio(m, f)


@compiled
def folio_remove_rmap_pmd(m, f):
    """Remove the mapping by one huge PMD. A folio that stays mapped in part is marked and queued (thp-split Q1b)."""
    m.folio[f].mapcount -= 1
    m.folio[f].entire -= 1
    if m.folio[f].entire == 0 and 0 < m.folio[f].nr_mapped < (1 << m.folio[f].order):
        deferred_split_folio(m, f, True)
    _put_folio(m, f)


# --- deferred split queue -------------------------------------------------------------------------------------------
__all__ += ["deferred_split_folio", "folio_is_queued", "folio_unqueue_deferred_split", "list_move_tail"]


@compiled
def folio_is_queued(m, f):
    """Return whether the folio is on the deferred split queue."""
    return m.folio[f].prev >= 0 or m.state[0].queue_first == f


@compiled
def deferred_split_folio(m, f, partially_mapped):
    """Queue a folio, and mark it if one of its pages is no longer mapped by anybody (thp-split Q1).

    `shrink_underused` only keeps new folios off the queue (Q5). Each folio size has its own counters, and vmstat counts
    THPs too (mthp E10).
    """
    s = m.state[0]
    order = m.folio[f].order
    if order <= 1 or (not partially_mapped and not s.shrink_underused):
        return
    if partially_mapped and not m.folio[f].partially_mapped:
        m.folio[f].partially_mapped = 1
        m.mthp[order].split_deferred += 1
        m.mthp[order].nr_anon_partially_mapped += 1
        if order == s.hpage_order:
            m.stat[0].thp_deferred_split_page += 1
    if not folio_is_queued(m, f):
        _list_add_tail(m, f)
        m.stat[0].deferred_queue_len += 1


@compiled
def _list_del(m, f):
    s = m.state[0]
    before, after = m.folio[f].prev, m.folio[f].next
    if before >= 0:
        m.folio[before].next = after
    else:
        s.queue_first = after
    if after >= 0:
        m.folio[after].prev = before
    else:
        s.queue_last = before


@compiled
def _list_add_tail(m, f):
    s = m.state[0]
    m.folio[f].prev = s.queue_last
    m.folio[f].next = -1
    if s.queue_last >= 0:
        m.folio[s.queue_last].next = f
    else:
        s.queue_first = f
    s.queue_last = f


@compiled
def list_move_tail(m, f):
    """Move a queued folio to the end of the queue."""
    _list_del(m, f)
    _list_add_tail(m, f)


@compiled
def folio_unqueue_deferred_split(m, f):
    """Remove a folio that is freed, split or dropped from the queue, and clear its mark (thp-split H8.2)."""
    if m.folio[f].partially_mapped:
        m.folio[f].partially_mapped = 0
        m.mthp[m.folio[f].order].nr_anon_partially_mapped -= 1
    if folio_is_queued(m, f):
        _list_del(m, f)
        m.folio[f].prev = -1
        m.folio[f].next = -1
        m.stat[0].deferred_queue_len -= 1


# --- the CPU's batches ----------------------------------------------------------------------------------------------
__all__ += ["folio_batch_add", "folio_batch_drain", "lru_add_drain_all"]


@compiled
def folio_batch_add(m, batch, frame):
    """Put an order-0 page into a batch of the CPU, which holds a reference on the page; a full batch is drained.

    The batches are MLOCK, of mlock work (ksm-merge M15), and LRU, of pages on their way to an LRU list (khugepaged K8).
    """
    m.frame[frame].pins += 1
    if batch == LRU:
        m.frame[frame].flags |= NO_LRU
    n = m.fbatch_len[batch]
    m.fbatch[batch * PAGEVEC_SIZE + n] = frame
    m.fbatch_len[batch] = n + 1
    if n + 1 == PAGEVEC_SIZE:
        folio_batch_drain(m, batch)


@compiled
def folio_batch_drain(m, batch):
    """Empty a batch of the CPU (ksm-merge M15, khugepaged K8)."""
    for i in range(batch * PAGEVEC_SIZE, batch * PAGEVEC_SIZE + m.fbatch_len[batch]):
        if batch == LRU:
            m.frame[m.fbatch[i]].flags &= ~NO_LRU
        folio_put(m, m.fbatch[i])
    m.fbatch_len[batch] = 0


@entry
def lru_add_drain_all(m):
    """Empty all batches of the CPU: that of mlock work first."""
    folio_batch_drain(m, MLOCK)
    folio_batch_drain(m, LRU)
