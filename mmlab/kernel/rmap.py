"""The reverse map: mappings of a folio, and their removal (mm/rmap.c; thp-split H4, H11)."""

from mmlab.kernel.deferred_split import deferred_split_folio
from mmlab.kernel.folio import put_folio, put_frame
from mmlab.kernel.jit import compiled
from mmlab.kernel.state import *

__all__ = ["folio_likely_mapped_shared", "folio_pte_batch", "folio_remove_rmap_pmd", "folio_remove_rmap_ptes"]


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
    put_folio(m, f)


@compiled
def folio_remove_rmap_pmd(m, f):
    """Remove the mapping by one huge PMD. A folio that stays mapped in part is marked and queued (thp-split Q1b)."""
    m.folio[f].mapcount -= 1
    m.folio[f].entire -= 1
    if m.folio[f].entire == 0 and 0 < m.folio[f].nr_mapped < (1 << m.folio[f].order):
        deferred_split_folio(m, f, True)
    put_folio(m, f)
