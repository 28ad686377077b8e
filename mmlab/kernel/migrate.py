"""Migration and memory failure (mm/migrate.c, mm/memory-failure.c; thp-split 3.6, 3.7)."""

import numpy as np

from mmlab.kernel.folio import lru_add_drain_all
from mmlab.kernel.huge_memory import split_folio
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.list import list_move_tail
from mmlab.kernel.mlock import count_locked
from mmlab.kernel.state import *
from mmlab.kernel.unstable_tree import unmap_pte


@compiled
def _move(m, first, n, node):
    """Move n frames to a NUMA node; -1: within theirs."""
    m.stat[0].pgmigrate_success += n
    for i in range(first, first + n if node >= 0 else first):
        m.frame[i].flags = m.frame[i].flags & ((1 << NID_SHIFT) - 1) | node << NID_SHIFT


@entry
def migrate_pages(m, first, end, node, huge):
    """Migrate every folio that a page of [first, end) maps to a NUMA node; -1: within the node that it is on.

    Neither entries nor rmap_items change (thp-split G1). A partially mapped folio on the deferred split queue is split
    first, and so is a huge page if the destination has no free huge page (`huge` is 0). Then its small pages move, but
    not those that became the zeropage (G2). A folio with further references stays. A queued one is queued anew (Q2).
    """
    lru_add_drain_all(m)
    v, last = first, np.int64(-1)
    while v < end:
        frame = m.page[v].frame
        f = np.int64(m.frame[frame].folio)
        if m.pte[v].kind != ANON or (f >= 0 and f == last):
            v += 1
            continue
        if f >= 0:
            thp = m.folio[f].order == m.state[0].hpage_order
            if m.folio[f].partially_mapped or (thp and not huge):
                if split_folio(m, frame, CALLER_OTHER):
                    m.stat[0].thp_migration_split += thp
                    continue
            elif m.folio[f].pins == 0:
                _move(m, m.folio[f].head, 1 << m.folio[f].order, node)
                m.folio[f].mlocks = count_locked(m, v, True)
                if m.folio[f].prev >= 0:
                    list_move_tail(m.folio, f)
            last = f
        elif m.frame[frame].pins == 0 and not m.frame[frame].flags & LOCKED:
            _move(m, frame, 1, node)
        v += 1


@entry
def memory_failure(m, v):
    """Poison the page at v: split its folio without remapping this page, and unmap the page everywhere.

    The page is never freed. This follows the text of thp-split 3.6 and Z1 only: no recording shows it. Return 0 or an
    errno.
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
    return 0
