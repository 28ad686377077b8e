"""Page table entries, and how many of each kind there are (include/linux/pgtable.h)."""

import numpy as np

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import *


@compiled
def set_pte(m, v, kind, bits, frame):
    """Let v have another entry, and count entries by their kinds (`set_pte_at`)."""
    if m.pte[v].kind == ZP_KSM:
        emit(m, Decision.ZERO_GONE, v, 1, -1, 0)
    m.entries[m.pte[v].kind] -= 1
    m.entries[kind] += 1
    if (m.pte[v].bits ^ bits) & KSM_PAGE:
        m.stat[0].ksm_entries += 1 if bits & KSM_PAGE else -1
    if kind == ANON:
        m.occupied[v >> 6] |= np.uint64(1) << np.uint64(v & 63)
    m.pte[v].kind = kind
    m.pte[v].bits = bits
    m.page[v].frame = frame


@entry
def show_counters(m):
    """Complete the counters of a sample by what is not counted there."""
    m.stat[0].pages_to_scan = m.state[0].pages_to_scan
    m.stat[0].pages_skipped = m.steps[SKIP]
    m.stat[0].anon_pages = m.entries[ANON]
    m.stat[0].swap_entries = m.entries[SWAP]
    m.stat[0].ksm_zero_pages = m.entries[ZP_KSM]
    m.stat[0].zeropage_entries = m.entries[ZP_CLEAN] + m.entries[ZP_KSM]
