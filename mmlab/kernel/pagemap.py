"""The state of every page as /proc/PID/pagemap and /proc/kpageflags show it (trace-format.md)."""

from mmlab.kernel.jit import entry
from mmlab.kernel.state import *


@entry
def page_letters(m, first, letters):
    """Write the letter of each page from `first` on into `letters`, uint8 (mthp E17)."""
    for i in range(len(letters)):
        v = first + i
        letter = ord("N")
        if m.pte[v].kind == ANON:
            frame = m.page[v].frame
            if m.block[v >> m.state[0].hpage_order].pmd == PMD_HUGE:
                letter = ord("H")
            elif m.frame[frame].folio >= 0:
                letter = ord("h")
            else:
                letter = ord("K") if m.frame[frame].flags & KSM else ord("A")
        elif m.pte[v].kind == ZP_CLEAN or m.pte[v].kind == ZP_KSM:
            letter = ord("Z")
        elif m.pte[v].kind == HUGE_ZP:
            letter = ord("Y")
        elif m.pte[v].kind == SWAP:
            letter = ord("S")
        letters[i] = letter


@entry
def count_frames(m, seen):
    """Return the number of mapped frames, and of KSM pages among them. `seen` is a zero for each frame, uint8."""
    frames = ksm_frames = 0
    for v in range(len(m.page)):
        frame = m.page[v].frame
        if m.pte[v].kind == ANON and not seen[frame]:
            seen[frame] = 1
            frames += 1
            ksm_frames += m.frame[frame].flags & KSM
    return frames, ksm_frames
