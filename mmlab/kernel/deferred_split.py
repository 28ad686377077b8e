"""The deferred split queue: folios that are partially mapped or may be underused (mm/huge_memory.c; thp-split 3.5)."""

from mmlab.kernel.decisions import Decision, emit_folio
from mmlab.kernel.jit import compiled
from mmlab.kernel.list import list_add_tail, list_del
from mmlab.kernel.state import *


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
        emit_folio(m, Decision.QUEUE_PARTIAL, f, 0)
        m.mthp[order].split_deferred += 1
        m.mthp[order].nr_anon_partially_mapped += 1
        m.stat[0].thp_deferred_split_page += order == s.hpage_order
    if m.folio[f].prev < 0:
        list_add_tail(m.folio, f, 0)
        m.stat[0].deferred_queue_len += 1
        if not partially_mapped:
            emit_folio(m, Decision.QUEUE_NEW, f, 0)


@compiled
def folio_unqueue_deferred_split(m, f):
    """Remove a folio that is freed, split or dropped from the queue, and clear its mark (thp-split H8.2)."""
    if m.folio[f].partially_mapped:
        m.folio[f].partially_mapped = 0
        m.mthp[m.folio[f].order].nr_anon_partially_mapped -= 1
    if m.folio[f].prev >= 0:
        list_del(m.folio, f)
        m.folio[f].prev = -1
        m.stat[0].deferred_queue_len -= 1
