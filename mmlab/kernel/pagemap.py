"""The state of every page as /proc/PID/pagemap and /proc/kpageflags show it (trace-format.md)."""

import numpy as np

from mmlab.kernel.jit import entry
from mmlab.kernel.state import *

_LETTERS = np.frombuffer(b"NAZZYSN", np.uint8)
"""A letter for each kind of entry, NONE to POISON."""


@entry
def page_letters(m, first, letters):
    """Write the letter of each page from `first` on into `letters`, uint8 (mthp E17)."""
    for i in range(len(letters)):
        v = first + i
        letters[i] = _LETTERS[m.pte[v].kind]
        if m.pte[v].kind == ANON:
            if m.block[v >> m.state[0].hpage_order].pmd == PMD_HUGE:
                letters[i] = ord("H")
            elif m.frame[m.page[v].frame].folio >= 0:
                letters[i] = ord("h")
            elif m.frame[m.page[v].frame].flags & KSM:
                letters[i] = ord("K")


def count_frames(m: Machine) -> tuple[int, int]:
    """Return the number of mapped frames, and of KSM pages among them."""
    mapped = np.zeros(len(m.frame), np.bool_)
    mapped[m.page["frame"][m.pte["kind"] == ANON]] = True
    return int(mapped.sum()), int((m.frame["flags"][mapped] & KSM).sum())
