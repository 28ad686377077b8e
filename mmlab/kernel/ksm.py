"""ksmd: scanning, and merging one page (mm/ksm.c; ksm-scan.md, ksm-merge.md)."""

import numpy as np

from mmlab.kernel import rmap_item, stable_tree
from mmlab.kernel.advisor import advisor_start_scan, advisor_stop_scan
from mmlab.kernel.decisions import HELD, Decision, emit
from mmlab.kernel.folio import folio_batch_add, folio_get, folio_head, folio_put, lru_add_drain_all, put_frame, vm_mm
from mmlab.kernel.huge_memory import split_huge_page
from mmlab.kernel.jit import compiled, entry, inlined, trailing_zeros
from mmlab.kernel.list import list_add_tail, list_del
from mmlab.kernel.memory import break_ksm
from mmlab.kernel.pgtable import set_pte, show_counters
from mmlab.kernel.rmap import linear_page_index, vma_address
from mmlab.kernel.state import *
from mmlab.kernel.timer import cpu_ns, jiffies, schedule_timeout
from mmlab.kernel.unstable_tree import empty_unstable_trees, unmap_pte, unstable_tree_search_insert
from mmlab.variants import visit_index

# In place of a KSM page's frame: merge with the shared zeropage; become a KSM page without a node
ZEROPAGE, NO_PAGE = -2, -1
MERGES = -1  # in place of the reason why a merge fails


# --- merging one page -----------------------------------------------------------------------------------------------


@compiled
def write_protect_page(m, v, frame, kframe):
    """Make the entry read-only and clean unless somebody else holds a reference to the page (ksm-merge M7.5).

    Reverse mapping does not find the entry of a KSM page without a node, so this fails for ever there (M14). A KSM page
    whose node is on the side list may merge into another one with a node (2.12). Return why it fails, or MERGES.
    """
    if m.pte[v].kind != ANON or m.page[v].frame != frame:
        return Decision.FAIL_GONE  # a split has put the zeropage there
    if m.pte[v].bits & KSM_PAGE:
        node = m.frame[frame].node
        moved = node >= 0 and m.node[node].kind == MIGRATED and kframe >= 0 and m.frame[kframe].node >= 0
        return MERGES if moved else Decision.FAIL_NO_NODE
    if m.pte[v].bits & (DIRTY | EXCLUSIVE):
        if m.frame[frame].pins != 1:
            return Decision.FAIL_PINNED
        if m.pte[v].bits & DIRTY:
            m.frame[frame].flags |= PG_DIRTY
        m.pte[v].bits = 0
    return MERGES


@compiled
def replace_page(m, v, frame, kframe):
    """Let the entry map the KSM page or the zeropage instead (ksm-merge M8, M15). Only the zeropage lowers RSS (C5)."""
    locked = m.pte[v].vm & VM_LOCKED
    if kframe == ZEROPAGE:
        unmap_pte(m, v, ZP_KSM, -1)
        m.steps[MERGE_ZERO] += 1
    else:
        m.frame[kframe].mapcount += 1
        set_pte(m, v, ANON, KSM_PAGE, kframe)
        if locked:
            folio_batch_add(m, MLOCK, kframe)
    if locked:
        folio_batch_add(m, MLOCK, frame)
    m.frame[frame].mapcount -= 1
    put_frame(m, frame)


@compiled
def _become_ksm_page(m, v, frame):
    """Turn the page, and with it every entry that maps it, into a KSM page without a node (ksm-merge M7.6, M14)."""
    m.frame[frame].flags |= KSM | PG_DIRTY | REFERENCED
    m.stat[0].ksm_frames += 1
    m.stat[0].ksm_entries += m.frame[frame].mapcount
    m.pte[v].bits |= KSM_PAGE
    if m.frame[frame].mapcount == 1:
        return
    index = linear_page_index(m, v)
    for i in range(len(m.vma)):
        w, first, end = vma_address(m, i, m.mm[vm_mm(m, v)].family, index, 1)
        if first < end and m.pte[w].kind == ANON and m.page[w].frame == frame:
            m.pte[w].bits |= KSM_PAGE


@compiled
def _prepare(m, v, frame, kframe, kkey):
    """Make a page ready for its merge: split its folio, write-protect it, compare. Return why that fails, or MERGES.

    A large folio of any order is split first, before contents are compared (mthp E12).
    """
    if m.frame[frame].flags & LOCKED:
        return Decision.FAIL_LOCKED
    if m.frame[frame].folio >= 0 and not split_huge_page(m, frame, CALLER_KSM):
        return Decision.FAIL_SPLIT
    fails = write_protect_page(m, v, frame, kframe)
    if fails == MERGES and kframe != NO_PAGE and m.page[v].key != kkey:
        return Decision.FAIL_DIFFERENT
    return fails


@compiled
def try_to_merge_one_page(m, v, frame, kframe, kkey):
    """Merge the page at v with a KSM page, with the zeropage, or with nothing yet (ksm-merge M7)."""
    if frame == kframe:
        return True
    fails = _prepare(m, v, frame, kframe, kkey)
    if fails != MERGES:
        emit(m, fails, v, 1, -1, 0)
    elif kframe == NO_PAGE:
        _become_ksm_page(m, v, frame)
    else:
        replace_page(m, v, frame, kframe)
    return fails == MERGES


@compiled
def try_to_merge_with_ksm_page(m, v, frame, kframe, kkey, other):
    """Merge as `try_to_merge_one_page` does; on success also remove the item from its tree (ksm-merge M10)."""
    merged = try_to_merge_one_page(m, v, frame, kframe, kkey)
    if merged:
        rmap_item.remove_rmap_item_from_tree(m, v)
    what = Decision.MERGE_NEW if kframe == NO_PAGE else Decision.MERGE_KSM
    emit(m, what, v, 1, other, 0 if merged else -EFAULT)
    return merged


@compiled
def try_to_merge_two_pages(m, v, frame, tree_v, tree_frame, key):
    """Turn the visited page into a KSM page and merge the tree's page into it (ksm-merge M5a, M5b).

    If the second step fails, the first is undone (`break_cow`). Return whether both succeeded.
    """
    if not try_to_merge_with_ksm_page(m, v, frame, NO_PAGE, key, tree_v):
        return False
    if try_to_merge_with_ksm_page(m, tree_v, tree_frame, frame, key, v):
        return True
    if m.pte[v].vm & VM_MERGEABLE:
        break_ksm(m, v)
    stable_tree.forget(m, v)
    return False


_visit_index = compiled(visit_index)


@compiled
def _visit(m, v, frame):
    """Return what the variant lets ksmd do with a page, MAY_MERGE to LEAVE (fix-variants 5.7)."""
    if not m.state[0].choosy:
        return MAY_MERGE
    folio, maps = m.frame[frame].folio, m.frame[frame].mapcount
    large = huge = partial = 0
    if folio >= 0:
        entire = m.folio[folio].entire
        large, huge, partial, maps = 1, int(entire > 0), m.folio[folio].partially_mapped, maps + entire
    zero, shared = int(m.page[v].key == 0), int(maps > 1)
    return np.int64(m.visits[_visit_index(zero, large, huge, partial, shared, m.state[0].use_zero_pages)])


@inlined
def _nothing_to_merge(m, v, frame):
    """Return how the visit ends, as most do: the page is merged already, or its checksum has changed; or SEARCH_STABLE.

    These are the first steps of the kernel's `cmp_and_merge_page` (ksm-merge M1, M2).
    """
    node = m.frame[frame].node
    if node >= 0:  # M1b; with trees for each NUMA node, `cmp_and_merge_page` looks closer
        merged = m.pte[v].item & STABLE and m.page[v].parent == node and m.state[0].merge_across_nodes
        return Decision.VISIT_MERGED if merged else Decision.SEARCH_STABLE
    if m.pte[v].item & (STABLE | UNSTABLE):  # M2
        rmap_item.remove_rmap_item_from_tree(m, v)
    item = m.pte[v].item
    if item & CHECKSUM and not (item & REWRITTEN and m.oldchecksum[v] != m.page[v].key):
        return Decision.SEARCH_STABLE
    m.pte[v].item = (item | CHECKSUM) & ~REWRITTEN
    m.stat[0].changed_checksums += 1
    return Decision.VISIT_CHANGED if item & CHECKSUM else Decision.VISIT_FIRST


@compiled
def _unlock_wrong_page(m, v, frame, head):
    """Lock the first page of the folio that the visit began with, split the visited page, and unlock that one.

    The folio is split already, so the split is refused, the first page stays locked for good, and the visited one is
    locked and freed so: "Bad page state" (ksm-merge M5d, kernel-7 7.10).
    """
    m.frame[head].flags |= LOCKED
    m.frame[frame].flags ^= LOCKED
    if m.stat[0].kernel_bugs == 0:
        m.state[0].bug_visit = m.stat[0].pages_scanned
        m.state[0].bug_page = v
    m.stat[0].kernel_bugs += 1


@compiled
def _merge_with_zeropage(m, v, frame, only):
    """Merge a zero-filled page with the shared zeropage (ksm-merge M3).

    Return how the visit ends, VISIT_ZERO to VISIT_ZERO_STOP, or MERGE_ZERO: it goes on.
    """
    merged = try_to_merge_one_page(m, v, frame, ZEROPAGE, np.uint64(0))
    emit(m, Decision.MERGE_ZERO, v, 1, -1, 0 if merged else -EFAULT)
    if merged:
        return Decision.VISIT_ZERO
    if only:
        return Decision.VISIT_ZERO_ONLY
    if m.state[0].early_stop and m.pte[v].kind != ANON:
        return Decision.VISIT_ZERO_STOP
    return Decision.MERGE_ZERO


@compiled
def _merge_with_stable(m, v, frame, kframe, key):
    """Merge a page with an equal KSM page (ksm-merge M4d). Return how the visit ends, and a page that maps that one."""
    other = np.int64(m.node[m.frame[kframe].node].first)
    emit(m, Decision.SEARCH_STABLE, v, 1, other, 0)
    if try_to_merge_with_ksm_page(m, v, frame, kframe, key, other):
        stable_tree.stable_tree_append(m, v, m.frame[kframe].node)
        return Decision.VISIT_STABLE, other
    return Decision.VISIT_STABLE_FAILED, other


@compiled
def _merge_with_unstable(m, v, frame, head, tree_v, key):
    """Merge a page with the equal one of the unstable tree (ksm-merge M5). Return how the visit ends.

    Two equal pages of one folio, whatever its order, are not merged: the folio is split (M5d, mthp E13). `head` is the
    first frame of the folio that the visit began with.
    """
    emit(m, Decision.SEARCH_UNSTABLE, v, 1, tree_v, 0)
    tree_frame = m.page[tree_v].frame
    if _visit(m, tree_v, tree_frame) != MAY_MERGE:
        return Decision.VISIT_PARTNER_LEFT
    folio_get(m, tree_frame)
    merged = try_to_merge_two_pages(m, v, frame, tree_v, tree_frame, key)
    large = m.frame[frame].folio >= 0
    same = folio_head(m, tree_frame) == head and (large or m.state[0].same_folio_is_old)
    folio_put(m, tree_frame)
    if merged:
        node = stable_tree.stable_tree_insert(m, key, frame)
        stable_tree.stable_tree_append(m, tree_v, node)
        stable_tree.stable_tree_append(m, v, node)
        return Decision.VISIT_PAIR
    if same and large:
        split_huge_page(m, frame, CALLER_KSM)  # M5d
        return Decision.VISIT_SAME_FOLIO
    if same and not m.frame[head].flags & LOCKED:
        _unlock_wrong_page(m, v, frame, head)
        return Decision.VISIT_BUG
    return Decision.VISIT_PAIR_FAILED


@compiled
def cmp_and_merge_page(m, v, frame):
    """Merge a visited page if it can be, or insert it in the unstable tree, after `_nothing_to_merge` said no.

    First comes the zeropage, then the stable tree, then the unstable tree (ksm-merge M3, M4, M5). `frame` carries the
    scan's reference. A variant of ksmd may leave the page, or the equal one that was found, alone (fix-variants 5.7).
    Return how the visit ends, and the page that it ends at or -1.
    """
    key = m.page[v].key
    head, node = folio_head(m, frame), m.frame[frame].node
    aside = node >= 0 and not m.state[0].merge_across_nodes and stable_tree.node_is_aside(m, node, frame)  # M1a
    if node >= 0 and not aside and m.pte[v].item & STABLE and m.page[v].parent == node:  # M1b
        return Decision.VISIT_MERGED, np.int64(-1)
    if node < 0:
        may = _visit(m, v, frame)
        if may == LEAVE or (may == ZEROPAGE_ONLY and key != 0):
            return Decision.VISIT_LEFT, np.int64(-1)
        if key == 0 and (m.state[0].use_zero_pages or may == ZEROPAGE_ONLY):
            ends = _merge_with_zeropage(m, v, frame, may == ZEROPAGE_ONLY)
            if ends != Decision.MERGE_ZERO:
                return ends, np.int64(-1)
    above = m.steps[STABLE_LEVEL] + CACHED_LEVELS
    kframe = stable_tree.stable_tree_search(m, v, key, frame)  # M4
    m.steps[TREE_COLD] += max(0, m.steps[STABLE_LEVEL] - above)
    if kframe == frame and m.pte[v].item & STABLE and m.page[v].parent == m.frame[frame].node:
        return Decision.VISIT_OWN, np.int64(-1)
    rmap_item.remove_rmap_item_from_tree(m, v)
    if kframe >= 0:
        return _merge_with_stable(m, v, frame, kframe, key)
    ends, at = unstable_tree_search_insert(m, v, frame, key)
    if ends == Decision.SEARCH_UNSTABLE:
        ends = _merge_with_unstable(m, v, frame, head, at, key)
    return ends, at


# --- scanning -------------------------------------------------------------------------------------------------------


@entry
def ksm_enter(m, mm):
    """Register a process just before the cursor's, so that the current full scan does not visit it (ksm-scan S12)."""
    at = 0 if m.state[0].run == 2 else m.state[0].cursor_mm
    list_add_tail(m.mm, mm, at)
    m.mm[mm].registered = 1
    emit(m, Decision.ENTER, -1 - mm, 1, -1, 0)


@compiled
def _drop_mm(m, mm):
    """Remove a process from ksmd's list."""
    list_del(m.mm, mm)
    m.mm[mm].registered = 0


@entry
def ksm_exit(m, mm):
    """Handle the exit of a process before its pages are unmapped (`__ksm_exit`, ksm-merge F5).

    One that has items waits behind the cursor's process for ksmd to free them.
    """
    cursor = m.state[0].cursor_mm
    if m.mm[mm].registered:
        emit(m, Decision.EXIT, -1 - mm, 1, -1, 0)
    if not m.mm[mm].registered or mm == cursor:
        return
    if m.mm[mm].rmap_items == 0:
        _drop_mm(m, mm)
    else:
        list_del(m.mm, mm)
        list_add_tail(m.mm, mm, m.mm[cursor].next)


@compiled
def _next_occupied(m, v, end):
    """Return the first page of [v, end) that maps an anonymous page or has an rmap_item, or `end`."""
    while v < end:
        word = m.occupied[v >> 6] >> np.uint64(v & 63)
        if word == 0:
            v = (v >> 6) + 1 << 6
            continue
        v += trailing_zeros(word)
        if v >= end:
            break
        if m.pte[v].kind == ANON or m.pte[v].item:
            return v
        m.occupied[v >> 6] &= ~(np.uint64(1) << np.uint64(v & 63))
        v += 1
    return end


@compiled
def _entries(m, v, end):
    """Return how many entries the search for a candidate looks at in [v, end), where there is none (ksm-scan S14).

    A walk needs one step for 2 MiB without a page table, and for 1 GiB of them.
    """
    order = m.state[0].hpage_order
    entries = np.int64(0)
    while v < end:
        b = v >> order
        stop = min(end, (b + 1) << order)
        more = m.block[b].more
        one_by_one = m.block[b].pmd == PMD_TABLE or m.state[0].scan_looks_up_each_page
        entries += (stop - v) * (1 + more) if one_by_one else 1 + more // 512 + more % 512
        v = stop
    return entries


@compiled
def _start_full_scan(m):
    """Drain the CPU's batches, empty the unstable trees, and move the cursor to the first process (ksm-scan S10)."""
    s = m.state[0]
    advisor_start_scan(m)
    emit(m, Decision.START_SCAN, -1, 1, -1, m.stat[0].rmap_items)
    lru_add_drain_all(m)
    empty_unstable_trees(m)
    if not s.merge_across_nodes:  # S10.3
        following = m.node[0].first
        while following >= 0:
            following, node = m.node[following].left, following
            stable_tree.ksm_get_folio(m, node)
    s.unmerged = 0
    s.cursor_mm = m.mm[0].next
    s.cursor = s.found_vma = 0


@inlined
def scan_pages(m, mm, budget):
    """Visit pages of a process from the cursor on, up to one that needs more than `_nothing_to_merge`.

    Return the rest of the budget, and that page or -1 (`scan_get_next_rmap_item`; ksm-scan S9, S16, S18). Candidates
    are anonymous pages of mergeable VMAs, whatever folio they are in (S13, S14, mthp E11). The scan passes over other
    addresses and frees the items left there (S21, mthp E16). ksmd spends most of its time in this loop, so it counts in
    local variables.
    """
    s = m.state[0]
    base = m.mm[mm].base
    if m.mm[mm].exited:
        s.cursor = s.found_vma = 0
    at, end = base + s.cursor, base + m.mm[mm].pages
    found, before = np.int64(-1), budget
    passed_over = skipped = thp = merged = np.int64(0)
    while at < end:
        v = at
        if m.pte[v].kind != ANON:
            v = _next_occupied(m, at, end)
            if m.pte[at].vm & VM_MERGEABLE:
                passed_over += _entries(m, at, v)
            if v == end:
                at = end
                break
        at = v + 1
        if m.pte[v].vm & VM_MERGEABLE and m.pte[v].kind == ANON:
            if not m.pte[v].item:
                rmap_item.alloc_rmap_item(m, v)
            if rmap_item.should_skip_rmap_item(m, v):
                at = rmap_item.skip_on(m, at, end)
                skipped += at - v
                emit(m, Decision.SKIP, v, at - v, -1, 0)
                continue
            frame = m.page[v].frame
            if m.pte[v].bits & KSM_PAGE:
                merged += 1
            elif m.frame[frame].folio >= 0:
                thp += 1
            budget -= 1
            ends = _nothing_to_merge(m, v, frame)
            if ends == Decision.SEARCH_STABLE:
                found = v
                break
            emit(m, ends, v, 1, -1, 0)
            if budget == 0:
                break
        elif m.pte[v].item:
            rmap_item.free_rmap_item(m, v)
    visits = before - budget
    s.cursor = at - base
    s.found_vma |= visits > 0
    m.stat[0].pages_scanned += visits
    m.steps[SKIP] += skipped
    m.steps[PASS_OVER] += passed_over
    m.steps[VISIT_KSM] += merged
    m.steps[VISIT_THP] += thp
    m.steps[VISIT] += visits - merged - thp
    return budget, found


@compiled
def ksm_do_scan(m):
    """Run one batch: `pages_to_scan` visits, or fewer if a full scan ends (ksm-scan S7).

    `pages_to_scan` is read once, at the start (S5). Processes come in list order, and their addresses ascend (S11). A
    process without a mergeable VMA is dropped (S17). A visit holds a reference on the whole folio (S15).
    """
    s = m.state[0]
    m.steps[WAKE_UP] += 1
    budget = s.pages_to_scan
    if budget == 0 or m.mm[0].next == 0:
        return
    if s.cursor_mm == 0:
        _start_full_scan(m)
    while budget > 0:
        mm = s.cursor_mm
        budget, v = scan_pages(m, mm, budget)
        if v >= 0:
            frame = m.page[v].frame
            folio_get(m, frame)
            ends, other = cmp_and_merge_page(m, v, frame)
            folio_put(m, frame)
            emit(m, ends, v, 1, other, 0)
        elif budget > 0:
            if not s.found_vma and not m.mm[mm].mergeable:  # S17
                _drop_mm(m, mm)
            s.cursor_mm = m.mm[mm].next
            s.cursor = s.found_vma = 0
            if s.cursor_mm == 0:
                break
    else:
        return
    m.steps[END_OF_PASS] += 1
    advisor_stop_scan(m)
    emit(m, Decision.STOP_SCAN, -1, 1, -1, m.stat[0].rmap_items)
    m.stat[0].full_scans += 1


@entry
def unmerge_and_remove_all_rmap_items(m):
    """Unshare every page and free all items and stable nodes: `run` is set to 2 (ksm-merge R2)."""
    s = m.state[0]
    mm = m.mm[0].next
    while mm != 0:
        following = m.mm[mm].next
        for v in range(m.mm[mm].base, m.mm[mm].base + m.mm[mm].pages):
            if m.pte[v].vm & VM_MERGEABLE:
                break_ksm(m, v)
        for v in range(m.mm[mm].base, m.mm[mm].base + m.mm[mm].pages):
            if m.pte[v].item:
                rmap_item.free_rmap_item(m, v)
        if m.mm[mm].exited:
            _drop_mm(m, mm)
        mm = following
    stable_tree.remove_all_stable_nodes(m)
    s.cursor_mm = 0
    m.stat[0].full_scans = 0


@compiled
def _record_full_scan(m):
    """Record the state at the end of a full scan, and whether ksmd has settled.

    It has if, since the full scan before, smart scan skipped nothing, no page was merged, split or freed, and no
    checksum changed.
    """
    stat = m.stat[0]
    last, settled = m.passes[LAST], m.passes[SETTLED]
    work = m.steps[MERGE] + m.steps[MERGE_ZERO] + m.steps[SPLIT_PAGE] + stat.changed_checksums
    quiet = last.full_scan > 0 and last.frames == stat.frames and last.work == work
    skipped = stat.pages_skipped != last.skipped
    last.full_scan += 1
    last.time_ns = stat.time_ns
    last.frames = stat.frames
    last.ksm_pages = stat.pages_sharing + stat.ksm_zero_pages
    last.skipped = stat.pages_skipped
    last.work = work
    if last.full_scan == 1:
        m.passes[FIRST] = last
    if not quiet:
        settled.full_scan = 0
    elif not skipped and settled.full_scan == 0:
        m.passes[SETTLED] = last


@entry
def ksm_scan_thread(m, wake_ns, batches, until_ns, full_scans, until_settled, rows, mthp_rows):
    """Run ksmd's loop of batches and sleeps until something else is due, never within a batch (ksm-scan S1, S6).

    The loop also ends when ksmd is not runnable (S2), and when free frames or nodes might not last for another batch.
    Trees, cursor and items stay as they are (ksm-merge R1).

    Parameters
    ----------
    wake_ns
        Time at which the first batch starts.
    batches, until_ns, full_scans, until_settled
        Limits: number of batches, time before which the last one starts, value of the counter, ksmd has settled.
    rows, mthp_rows
        Counters after each batch: stat_t[batches]; mthp_t[batches, orders], or of length 0 if they are not wanted.

    Returns
    -------
    tuple
        Number of batches, time at which the next one starts (ns).
    """
    s = m.state[0]
    stat = m.stat[0]
    done = 0
    while done < batches and wake_ns < until_ns and s.run & 1 and m.mm[0].next != 0:
        room = batch_room(m)
        if len(m.frame) - s.top_frame < room or len(m.node) - s.top_node < room or s.logged > HELD:
            break
        stat.time_ns = wake_ns
        stat.batch += 1
        s.jiffies = jiffies(m, wake_ns)
        s.prune_before = s.jiffies - (s.stable_node_chains_prune_millisecs * s.hz + 999) // 1000
        frames, passes = stat.frames, stat.full_scans
        cpu = cpu_ns(m, 0, NR_KSMD_STEPS)
        s.batch_cpu_ns = cpu
        ksm_do_scan(m)
        cpu = cpu_ns(m, 0, NR_KSMD_STEPS) - cpu
        stat.time_ns += cpu
        stat.ksmd_cpu_ns += cpu
        stat.freed_by_batch = frames - stat.frames
        show_counters(m)
        rows[done] = stat
        if len(mthp_rows) > 0:
            for order in range(len(m.mthp)):
                mthp_rows[done, order] = m.mthp[order]
        done += 1
        wake_ns = ksmd_wakes_at(m, stat.time_ns)
        if stat.full_scans != passes:
            _record_full_scan(m)
            if stat.full_scans >= full_scans or (until_settled and m.passes[SETTLED].full_scan > 0):
                break
    return done, wake_ns


@entry
def batch_room(m):
    """Return the most frames or nodes that a batch may allocate: a private copy, or a node and a chain, per visit."""
    return 2 * min(m.state[0].pages_to_scan, len(m.page)) + 2


@entry
def ksmd_wakes_at(m, now_ns):
    """Return the end of ksmd's sleep that starts now, ns. With `sleep_millisecs` 0 it does not sleep."""
    sleep = m.state[0].sleep_millisecs
    return schedule_timeout(m, now_ns, sleep) if sleep > 0 else now_ns
