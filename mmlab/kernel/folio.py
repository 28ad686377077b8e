"""Frames and folios: allocation, references, the swap cache, the CPU's batches (mm/page_alloc.c, mm/swap.c).

An anonymous folio's reference count is its mapcount plus its pins (thp-split H5). It is freed when both are 0.
"""

import numpy as np

from mmlab.kernel.deferred_split import folio_unqueue_deferred_split
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import *


@compiled
def vm_mm(m, v):
    """Return the process whose page v is (`vma->vm_mm`)."""
    return m.block[v >> m.state[0].hpage_order].mm


@compiled
def folio_head(m, frame):
    """Return the first frame of the folio that the frame belongs to (`compound_head`)."""
    f = m.frame[frame].folio
    return np.int64(m.folio[f].head if f >= 0 else frame)


@compiled
def folio_pins(m, frame):
    """Return the number of references on the folio that the frame belongs to, beyond those of its mappings."""
    f = m.frame[frame].folio
    return np.int64(m.folio[f].pins if f >= 0 else m.frame[frame].pins)


@compiled
def _clear_frame(m, frame, folio):
    x = m.frame[frame]
    x.folio, x.node = folio, -1
    x.mapcount = x.pins = x.flags = 0


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
    accessed (ksm-merge T2, C4). A page that is locked for good is lost (kernel-7 7.10)."""
    if m.frame[f].flags & LOCKED:
        return
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
    x.mapcount = x.entire = x.nr_mapped = x.pins = x.mlocks = 0
    x.owner = x.second = x.owner_maps = x.second_maps = 0
    x.prev = -1
    x.order = order
    x.partially_mapped = x.shared = 0
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


@entry
def folio_get(m, frame):
    """Take a reference on the folio that the frame belongs to, beyond those of its mappings (thp-split H5)."""
    f = m.frame[frame].folio
    if f >= 0:
        m.folio[f].pins += 1
    else:
        m.frame[frame].pins += 1


@entry
def folio_put(m, frame):
    """Drop a reference on the folio that the frame belongs to, and free the folio after the last one."""
    f = m.frame[frame].folio
    if f >= 0:
        m.folio[f].pins -= 1
        put_folio(m, f)
    else:
        m.frame[frame].pins -= 1
        put_frame(m, frame)


@compiled
def put_folio(m, f):
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


# --- the CPU's batches ----------------------------------------------------------------------------------------------


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
