"""Migration and memory failure: pages that move, or go bad (mm/migrate.c, mm/memory-failure.c; thp-split 3.6, 3.7)."""

from mmlab.kernel.folio import folio_is_queued, list_move_tail, lru_add_drain, mlock_drain
from mmlab.kernel.huge_memory import split_folio
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import ANON, CALLER_OTHER, KSM, NID_SHIFT, POISON, POISONED
from mmlab.kernel.unstable_tree import unmap_pte

__all__ = ["memory_failure", "migrate_pages"]

EBUSY, EFAULT = 16, 14


@compiled
def _move(m, first, n, node):
    """n frames are on this NUMA node from now on; -1: they moved within theirs."""
    m.stat[0].pgmigrate_success += n
    for i in range(first, first + n if node >= 0 else first):
        m.frame[i].flags = m.frame[i].flags & ((1 << NID_SHIFT) - 1) | node << NID_SHIFT


@entry
def migrate_pages(m, first, end, node, huge):
    """Migrate every folio that a page of [first, end) maps to a NUMA node, -1: to the node where it is (thp-split G1).

    Neither entries nor rmap_items change. A huge page for which none can be had at the destination (`huge` is 0), and
    a partially mapped folio on the deferred split queue, is split first; its small pages are moved, those that became
    the zeropage are not (G2). A folio with further references stays. One that is queued is queued anew (Q2).
    """
    mlock_drain(m)
    lru_add_drain(m)
    v = first
    while v < end:
        if m.pte[v].kind != ANON:
            v += 1
            continue
        frame = m.page[v].frame
        f = m.frame[frame].folio
        if f >= 0:
            thp = m.folio[f].order == m.state[0].hpage_order
            if m.folio[f].partially_mapped or (thp and not huge):
                if split_folio(m, frame, CALLER_OTHER):
                    m.stat[0].thp_migration_split += thp
                    continue
            elif m.folio[f].pins == 0:
                _move(m, m.folio[f].head, 1 << m.folio[f].order, node)
                if folio_is_queued(m, f):
                    list_move_tail(m, f)  # its new place is a new folio, queued anew (Q2)
        elif m.frame[frame].pins == 0:
            _move(m, frame, 1, node)
        v += 1
        while v < end and f >= 0 and m.pte[v].kind == ANON and m.frame[m.page[v].frame].folio == f:
            v += 1


@entry
def memory_failure(m, v):
    """The page at v is poisoned: its folio is split, without this page being remapped, and no entry maps it any more.

    From the text only (thp-split 3.6, Z1): no trace shows it. The page is never freed. Returns 0 or an errno.
    """
    if m.pte[v].kind != ANON:
        return EFAULT
    frame = m.page[v].frame
    m.frame[frame].flags |= POISONED
    if m.frame[frame].folio >= 0 and not split_folio(m, frame, CALLER_OTHER):
        return EBUSY
    m.frame[frame].pins += 1
    for w in range(len(m.page)):
        if m.pte[w].kind == ANON and m.page[w].frame == frame:
            unmap_pte(m, w, POISON, -1)
            m.frame[frame].mapcount -= 1
            m.stat[0].anon_pages -= 1
            if m.frame[frame].flags & KSM:
                m.stat[0].ksm_entries -= 1
    return 0
