"""The reverse map: mappings of a folio, and their removal (mm/rmap.c; thp-split H4, H11)."""

from mmlab.kernel.deferred_split import deferred_split_folio
from mmlab.kernel.folio import put_folio, put_frame, vm_mm
from mmlab.kernel.jit import compiled
from mmlab.kernel.state import *


@compiled
def vma_address(m, i, family, index, n):
    """Return where VMA i maps page `index` of its family's folios, and the bounds of what it maps of the n from there.

    The bounds are equal or in reverse if it maps none of them.
    """
    base = m.vma[i].base
    at = base + m.vma[i].moved + index
    if m.vma[i].family != family:
        return at, at, at
    return at, max(base + m.vma[i].start, at), min(base + m.vma[i].end, at + n)


@compiled
def linear_page_index(m, v):
    """Return the number by which folios know the page at v: its number in the region, but for what mremap moved."""
    base = m.mm[vm_mm(m, v)].base
    for i in range(len(m.vma)):
        if m.vma[i].base == base and m.vma[i].start <= v - base < m.vma[i].end:
            return v - base - m.vma[i].moved
    return v - base


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
def _swap_owners(m, f):
    x = m.folio[f]
    x.owner, x.second = x.second, x.owner
    x.owner_maps, x.second_maps = x.second_maps, x.owner_maps


@compiled
def folio_add_large_mapcount(m, f, mm, n):
    """Count n more entries of a process that map the folio, which knows two of its owners (thp-split W5).

    It is shared once a second one maps it.
    """
    x = m.folio[f]
    x.mapcount += n
    if x.owner != mm and (x.second == mm or (x.second == 0 and x.owner != 0)):
        _swap_owners(m, f)
    if x.owner in (mm, 0):
        x.shared |= x.owner == 0 and x.mapcount != n
        x.owner = mm
        x.owner_maps += n


@compiled
def folio_sub_large_mapcount(m, f, mm, n):
    """Count n entries of a process less. A folio of which one known owner has all entries is shared no longer.

    That is asked when an owner maps it no more; so a folio that more than two processes have mapped may stay shared.
    """
    x = m.folio[f]
    x.mapcount -= n
    if x.second == mm:
        _swap_owners(m, f)
    if x.owner == mm:
        x.owner_maps -= n
        if x.owner_maps > 0:
            return
        x.owner = x.owner_maps = 0
    if x.mapcount in (x.owner_maps, x.second_maps):
        x.shared = 0


@compiled
def munlock_folio(m, v, f):
    """Take back one mlock of a large folio, of which an entry in a VM_LOCKED VMA goes (thp-split Q3.2)."""
    if m.pte[v].vm & VM_LOCKED and m.folio[f].mlocks > 0:
        m.folio[f].mlocks -= 1


@compiled
def folio_maybe_mapped_shared(m, f):
    """Return whether a large folio has several owners, which old releases only guess (thp-split W5)."""
    mapcount = m.folio[f].mapcount
    if mapcount <= 1:
        return False
    if m.state[0].shared_is_exact:
        return m.folio[f].shared != 0
    return m.folio[f].entire > 0 or mapcount > 1 << m.folio[f].order or m.frame[m.folio[f].head].mapcount > 1


@compiled
def _finish_removal(m, v, f, partial):
    """Mark and queue a folio that is still mapped, but some of its pages by nobody any more (thp-split Q1b).

    Free one that nothing maps or references any more; one that is pinned keeps its contents. The shrinker asks for them
    only where all mappings went in one step, which then began at v (thp-split Q4).
    """
    if partial and m.folio[f].entire == 0 and m.folio[f].nr_mapped > 0:
        deferred_split_folio(m, f, True)
    munlock_folio(m, v, f)
    if m.folio[f].mapcount == 0 and m.folio[f].pins > 0 and not m.folio[f].partially_mapped:
        m.folio[f].zeros = 0
        for w in range(v, v + (1 << m.folio[f].order)):
            m.folio[f].zeros += m.page[w].key == 0
    put_folio(m, f)


@compiled
def folio_remove_rmap_ptes(m, v, frame, n):
    """Remove the mappings of n consecutive pages of one folio, at v and `frame` on, in one step (thp-split H11).

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
        unmapped += m.frame[i].mapcount == 0
    folio_sub_large_mapcount(m, f, vm_mm(m, v), n)
    m.folio[f].nr_mapped -= unmapped
    _finish_removal(m, v, f, unmapped > 0)


@compiled
def folio_remove_rmap_pmd(m, v, f):
    """Remove the mapping by the huge PMD at v. A folio still mapped in part is marked and queued (thp-split Q1b)."""
    folio_sub_large_mapcount(m, f, vm_mm(m, v), 1)
    m.folio[f].entire -= 1
    _finish_removal(m, v, f, m.folio[f].nr_mapped < 1 << m.folio[f].order)
