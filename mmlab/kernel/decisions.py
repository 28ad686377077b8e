"""Decisions as events: what the kernel decides for a page, written into a log while somebody asks for it.

`emit` stands where something is decided. The log has length 0 when nobody asks, so that `emit` costs a test of a length
that is constant for the whole call. What a decision means, its kernel tracepoint and its rule is told by
`mmlab/results/decisions.yaml`.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numba import extending

from mmlab.kernel.jit import compiled, seldom
from mmlab.kernel.state import *

HELD = 1 << 16
"""ksmd hands back after a batch when the log holds more rows."""

Decision = IntEnum(
    "Decision",
    """
    VISIT_MERGED VISIT_FIRST VISIT_CHANGED VISIT_LEFT VISIT_ZERO VISIT_ZERO_ONLY VISIT_ZERO_STOP VISIT_OWN VISIT_STABLE
    VISIT_STABLE_FAILED VISIT_INSERTED VISIT_DEAD VISIT_SAME_PAGE VISIT_OTHER_NODE VISIT_PARTNER_LEFT VISIT_PAIR
    VISIT_PAIR_FAILED VISIT_SAME_FOLIO VISIT_BUG SKIP ITEM_FREED SEARCH_STABLE SEARCH_FULL SEARCH_UNSTABLE
    FAIL_LOCKED FAIL_SPLIT FAIL_GONE FAIL_NO_NODE FAIL_PINNED FAIL_DIFFERENT MERGE_ZERO MERGE_KSM MERGE_NEW
    ATTACH_SHARED ATTACH_SHARING LEAVE_SHARED LEAVE_SHARING REMOVE_RMAP_ITEM REMOVE_KSM_PAGE
    CHAIN_MADE DUP_ADDED DUP_REMOVED CHAIN_DISSOLVED CHAIN_GONE NODE_ASIDE DEAD_MADE
    START_SCAN STOP_SCAN ADVISOR ENTER EXIT
    SPLIT SPLIT_FAILED SPLIT_PMD REMAP KEEP QUEUE_NEW QUEUE_PARTIAL UNDERUSED USED
    UNSHARE_WRITE UNSHARE_BREAK ZERO_COPIED ZERO_GONE SCAN_PMD COLLAPSE ISOLATE SWAPIN
    """,
    start=0,
)


def log_rows(pages: int) -> int:
    """Return the length of a log that one batch or one call on a machine of so many pages cannot fill.

    Each page is the subject of fewer events than that. What is not used of the log takes no memory.
    """
    return 16 * pages + HELD + 4096


@compiled
def _append(m, what, mm, page, count, other_mm, other_page, value):
    """Append an event, or lengthen the last one if this is the same on the next page of the same process.

    Events about large folios and blocks stay apart.
    """
    s, stat = m.state[0], m.stat[0]
    n = s.logged
    if 0 < n <= len(m.log):
        e = m.log[n - 1]
        same = e.what == what and e.value == value and e.process == mm - 1 and e.page + e.count == page
        same = same and e.batch == stat.batch and e.rank == stat.rank and e.full_scan == stat.full_scans + 1
        if same and other_page < 0 and page >= 0 and (count == 1 or what == Decision.SKIP.value):
            e.count += count
            return
    s.logged = n + 1
    if n >= len(m.log):
        return  # noticed when the log is read
    e = m.log[n]
    e.time_ns, e.value, e.what, e.count = stat.time_ns, value, what, count
    e.batch, e.rank, e.full_scan = stat.batch, stat.rank, stat.full_scans + 1
    e.process, e.page, e.other_process, e.other_page = mm - 1, page, other_mm - 1, other_page


@compiled
def _page(m, v):
    """Return the number of a page in its process, -1 of none; only khugepaged looks at blocks that stand for others."""
    if v < 0:
        return np.int64(-1)
    order = m.state[0].hpage_order
    block = m.block[v >> order]
    left_out = block.ahead + (m.state[0].khugepaged_more if block.more > 0 else 0)
    return np.int64(v - m.mm[block.mm].base + (left_out << order))


@compiled
def _emit(m, what, v, count, other, value):
    order = m.state[0].hpage_order
    mm = m.block[v >> order].mm if v >= 0 else -1 - v
    other_mm = m.block[other >> order].mm if other >= 0 else 0
    _append(m, what, mm, _page(m, v), count, other_mm, _page(m, other), value)


@extending.intrinsic
def emit(_context: Any, m: Any, what: Any, v: Any, count: Any, other: Any, value: Any) -> Any:
    """Log a decision about `count` pages from v on (-1: about none; -1 - i: about process record i).

    `other` is a partner page or -1.
    """
    return seldom("log", _emit)


@compiled
def emit_folio(m, what, f, value):
    """Log a decision about a large folio, as pages of the oldest process that can map it, before mremap moved them."""
    if len(m.log) > 0:
        x = m.folio[f]
        _append(m, what, x.family, _page(m, m.mm[x.family].base + x.index), 1 << x.order, 0, -1, value)
