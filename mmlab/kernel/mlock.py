"""The mark of mlock (mm/mlock.c): what the shrinker, MADV_FREE and migration ask (thp-split Q3, W6)."""

from mmlab.kernel.folio import vm_mm
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.rmap import folio_pte_batch, linear_page_index, munlock_folio, vma_address
from mmlab.kernel.state import *


@entry
def mlock_vma_pages_range(m, first, end, lock):
    """Mark each large folio that [first, end) maps whole or, at munlock, take back a mark of each that it maps."""
    v = first
    while v < end:
        n = 1
        f = m.frame[m.page[v].frame].folio if m.pte[v].kind == ANON else -1
        if f >= 0:
            n = folio_pte_batch(m, v, end)
            if not lock:
                munlock_folio(m, v, f)
            elif n == 1 << m.folio[f].order:
                m.folio[f].mlocks += 1
        v += n


@compiled
def count_locked(m, v, huge):
    """Return how many entries in VM_LOCKED VMAs map the page at v; with `huge`, how many huge PMDs do."""
    index, n = linear_page_index(m, v), 0
    for i in range(len(m.vma)):
        w, first, end = vma_address(m, i, m.mm[vm_mm(m, v)].family, index, 1)
        if first < end and m.vma[i].vm & VM_LOCKED:
            mapped = m.pte[w].kind == ANON and m.page[w].frame == m.page[v].frame
            n += mapped and (not huge or m.block[w >> m.state[0].hpage_order].pmd == PMD_HUGE)
    return n
