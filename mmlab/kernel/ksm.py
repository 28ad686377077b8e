"""ksmd: scanning, merging, both trees (mm/ksm.c; ksm-scan.md, ksm-merge.md)."""

import numpy as np

from mmlab.kernel.folio import (
    folio_get,
    folio_put,
    lru_add_drain,
    mlock_drain,
    mlock_folio,
    put_frame,
)
from mmlab.kernel.huge_memory import split_huge_page
from mmlab.kernel.jit import compiled, entry, get_word, inlined, set_word, trailing_zeros
from mmlab.kernel.memory import break_ksm
from mmlab.kernel.rbtree import rb_erase, rb_insert, rb_replace_node
from mmlab.kernel.state import (
    ANON,
    CACHED_LEVELS,
    CALLER_KSM,
    CHAIN,
    CHECKSUM,
    DIRTY,
    DUP,
    END_OF_PASS,
    EXCLUSIVE,
    FIRST,
    ITEM,
    KSM,
    KSM_PAGE,
    LAST,
    MERGE,
    MERGE_ZERO,
    MIGRATED,
    NO_NODE,
    NODE,
    NR_KSMD_STEPS,
    PASS_OVER,
    PG_DIRTY,
    REFERENCED,
    REWRITTEN,
    SETTLED,
    SKIP,
    SPLIT_PAGE,
    STABLE,
    TREE_COLD,
    TREE_LEVEL,
    UNSTABLE,
    VISIT,
    VISIT_KSM,
    VISIT_THP,
    VM_LOCKED,
    VM_MERGEABLE,
    WAKE_UP,
    ZP_KSM,
    Machine,
    pte_t,
)
from mmlab.kernel.unstable_tree import (
    empty_unstable_trees,
    page_nid,
    unmap_pte,
    unstable_tree_erase,
    unstable_tree_search_insert,
)

__all__ = [
    "ksm_do_scan",
    "ksm_enter",
    "ksm_exit",
    "ksm_scan_thread",
    "remove_all_stable_nodes",
    "schedule_timeout",
    "unmerge_and_remove_all_rmap_items",
]

ZEROPAGE = -2  # in the place of a KSM page's frame: merge with the shared zeropage
NO_PAGE = -1  # … : become a KSM page without a node


# --- stable nodes ---------------------------------------------------------------------------------------------------


@compiled
def ksm_get_folio(m, node):
    """Whether the node's page is still there; a stale node is removed (ksm-merge T2)."""
    if m.state[0].stale_nodes == 0 or m.frame[m.node[node].frame].node == node:
        return True
    remove_node_from_stable_tree(m, node)
    return False


@compiled
def _erase(m, n):
    """A node or a chain leaves its stable tree."""
    nid = m.node[n].nid
    m.tree[nid].stable = rb_erase(m.node, m.tree[nid].stable, n)


@compiled
def _replace(m, old, new):
    """… or another one takes its place there."""
    nid = m.node[old].nid
    m.node[new].nid = nid
    m.tree[nid].stable = rb_replace_node(m.node, m.tree[nid].stable, old, new)


@compiled
def alloc_stable_node(m, key):
    s = m.state[0]
    node = s.free_node
    if node >= 0:
        s.free_node = m.node[node].first
    else:
        node = s.top_node
        s.top_node += 1
    m.node[node].key = key
    m.node[node].first = -1
    m.node[node].len = 0
    m.node[node].kind = NODE
    return node


@compiled
def free_stable_node(m, node):
    m.node[node].kind = NO_NODE
    m.node[node].first = m.state[0].free_node
    m.state[0].free_node = node


@compiled
def is_page_sharing_candidate(m, node, offset):
    """Has items and room for `offset` more beyond the next one (ksm-merge T3)."""
    return m.node[node].len > 0 and m.node[node].len + offset < m.state[0].max_page_sharing


@compiled
def _set_len(m, node, length):
    """A node's number of items; its chain counts the dups that have room."""
    had_room = is_page_sharing_candidate(m, node, 0)
    m.node[node].len = length
    if m.node[node].kind == DUP:
        chain = m.node[node].chain
        m.node[chain].len += int(is_page_sharing_candidate(m, node, 0)) - int(had_room)
        m.node[chain].quiet = 0


@compiled
def stable_node_chain_add_dup(m, dup, chain):
    """At the head of the chain (ksm-merge T5)."""
    first = m.node[chain].first
    m.node[dup].kind = DUP
    m.node[dup].chain = chain
    m.node[dup].prev = -1
    m.node[dup].next = first
    if first >= 0:
        m.node[first].prev = dup
    m.node[chain].first = dup
    m.node[chain].len += int(is_page_sharing_candidate(m, dup, 0))
    m.node[chain].quiet = 0


@compiled
def stable_node_dup_del(m, dup):
    chain = m.node[dup].chain
    before, after = m.node[dup].prev, m.node[dup].next
    if before >= 0:
        m.node[before].next = after
    else:
        m.node[chain].first = after
    if after >= 0:
        m.node[after].prev = before
    m.node[chain].len -= int(is_page_sharing_candidate(m, dup, 0))
    m.node[chain].quiet = 0


@compiled
def remove_node_from_stable_tree(m, node):
    """The whole node goes: its items become "no tree" (ksm-merge T2)."""
    v = m.node[node].first
    if v >= 0:
        m.stat[0].pages_shared -= 1
        m.stat[0].pages_sharing -= m.node[node].len - 1
    while v >= 0:
        following = m.page[v].left
        m.pte[v].item &= ~STABLE
        m.mm[_mm(m, v)].merging_pages -= 1
        m.stat[0].proc_ksm_merging_pages -= 1 - m.mm[_mm(m, v)].exited
        v = following
    if m.node[node].kind == DUP:
        stable_node_dup_del(m, node)
        m.stat[0].stable_node_dups -= 1
    elif m.node[node].kind == NODE:
        _erase(m, node)
    frame = m.node[node].frame
    if m.frame[frame].node == node:
        m.frame[frame].node = -1
    else:
        m.state[0].stale_nodes -= 1
    free_stable_node(m, node)


@compiled
def _jiffies(m, ns):
    hz = m.state[0].hz
    return ns // 1_000_000_000 * hz + ns % 1_000_000_000 * hz // 1_000_000_000


@compiled
def stable_node_dup(m, chain, prune):
    """Choose a dup of the chain, dropping stale ones (ksm-merge T6); -1: the chain was empty and is gone.

    A chain in which the chosen dup is alone dissolves into it, even if that is full. A full walk (`prune`) is made
    when `stable_node_chains_prune_millisecs` have passed.
    """
    s = m.state[0]
    prune = prune and m.node[chain].prune_jiffies <= s.prune_before
    if prune:
        m.node[chain].prune_jiffies = s.jiffies
    found, dup = -1, m.node[chain].first
    if not prune and s.stale_nodes == 0 and m.node[chain].len == 0 and dup >= 0 and m.node[dup].next >= 0:
        return dup  # what the walk would come to: nothing to drop, no dup with room
    while dup >= 0:
        following = m.node[dup].next
        if ksm_get_folio(m, dup) and (
            found < 0
            or (
                is_page_sharing_candidate(m, dup, 0)
                and (not is_page_sharing_candidate(m, found, 0) or m.node[dup].len > m.node[found].len)
            )
        ):
            found = dup
            if not prune and is_page_sharing_candidate(m, found, 0):
                break
        dup = following
    if found < 0:
        _erase(m, chain)
        m.stat[0].stable_node_chains -= 1
        free_stable_node(m, chain)
    elif m.node[chain].first == found and m.node[found].next < 0:
        m.node[found].kind = NODE
        _replace(m, chain, found)
        m.stat[0].stable_node_chains -= 1
        m.stat[0].stable_node_dups -= 1
        free_stable_node(m, chain)
    else:
        if m.node[chain].first != found and is_page_sharing_candidate(m, found, 1):
            stable_node_dup_del(m, found)
            stable_node_chain_add_dup(m, found, chain)
        m.node[chain].quiet = not prune or m.node[chain].first == found  # a full walk prefers other dups
    return found


@compiled
def _stable_node_at(m, n, prune):
    """The live node or dup for tree slot n; -1: something stale was removed, so start again from the root."""
    if m.node[n].kind == CHAIN:
        return stable_node_dup(m, n, prune)
    return n if ksm_get_folio(m, n) else -1


@inlined
def _passes(m, n, key):
    """Whether a search goes by slot n, and changes nothing there: other content, no walk of a chain (ksm-merge T4)."""
    node = m.node[n]
    quiet = node.kind != CHAIN or (node.quiet and node.prune_jiffies > m.state[0].prune_before)
    return quiet and key != node.key and m.state[0].stale_nodes == 0


@compiled
def _link(m, node, nid, parent, left):
    m.node[node].kind = NODE
    m.node[node].nid = nid
    m.tree[nid].stable = rb_insert(m.node, m.tree[nid].stable, node, parent, left)


@compiled
def _add_dup(m, node, n):
    """Beside tree slot n, which becomes a chain if it is not one (ksm-merge T5)."""
    if m.node[n].kind != CHAIN:
        chain = alloc_stable_node(m, m.node[n].key)
        m.node[chain].kind = CHAIN
        m.node[chain].prune_jiffies = m.state[0].jiffies
        _replace(m, n, chain)
        m.stat[0].stable_node_chains += 1
        stable_node_chain_add_dup(m, n, chain)
        m.stat[0].stable_node_dups += 1
        n = chain
    m.node[node].nid = m.node[n].nid
    stable_node_chain_add_dup(m, node, n)
    m.stat[0].stable_node_dups += 1


@compiled
def _on_side_list(m, node, frame):
    """Whether the node is on the side list, where it goes if its page lives on another NUMA node now (ksm-merge M1)."""
    if m.node[node].kind != MIGRATED and page_nid(m, frame) != m.node[node].nid:
        _to_side_list(m, node)
    return m.node[node].kind == MIGRATED


@compiled
def _to_side_list(m, node):
    """The node's page lives on another NUMA node than the tree that the node is in (ksm-merge M1)."""
    if m.node[node].kind == DUP:
        stable_node_dup_del(m, node)
        m.stat[0].stable_node_dups -= 1
    else:
        _erase(m, node)
    m.node[node].kind = MIGRATED


@compiled
def _replace_migrated(m, n, dup, own):
    """A match whose page went to another NUMA node gives its place in slot n to the searching page's node, if any."""
    if m.node[n].kind == CHAIN:
        _to_side_list(m, dup)
        if own >= 0:
            _add_dup(m, own, n)
    elif own >= 0:
        _replace(m, dup, own)
        m.node[own].kind = NODE
        m.node[dup].kind = MIGRATED
    else:
        _to_side_list(m, dup)
    return m.node[own].frame if own >= 0 and is_page_sharing_candidate(m, own, 0) else -1


@compiled
def stable_tree_search(m, key, frame):
    """The KSM page that the page may merge with (ksm-merge T4); -1: none. Contents compare as keys do (M13).

    A KSM page with a node finds itself; one whose node is on the side list, because the page went to another NUMA node,
    looks for its place in that node's tree.
    """
    own = m.frame[frame].node
    if own >= 0 and m.node[own].kind != MIGRATED:
        return frame
    nid = page_nid(m, frame)
    n, parent, left = m.tree[nid].stable, -1, False
    while n >= 0:
        m.steps[TREE_LEVEL] += 1
        if not _passes(m, n, key):
            dup = _stable_node_at(m, n, True)
            if dup < 0:
                n, parent = m.tree[nid].stable, -1
                continue
            if m.node[dup].kind == NODE:
                n = dup  # a chain may have dissolved into it
        if key == m.node[n].key:
            if own >= 0 and m.frame[frame].mapcount > 1:
                _add_dup(m, own, n)
                return frame if is_page_sharing_candidate(m, own, 0) else -1
            if not is_page_sharing_candidate(m, dup, 0):
                return -1
            if page_nid(m, m.node[dup].frame) == m.node[dup].nid:
                return m.node[dup].frame
            return _replace_migrated(m, n, dup, own)
        parent = n
        left = key < m.node[n].key
        n = m.node[n].left if left else m.node[n].right
    if own < 0:
        return -1
    _link(m, own, nid, parent, left)
    return frame if is_page_sharing_candidate(m, own, 0) else -1


@compiled
def stable_tree_insert(m, key, frame):
    """A node for a new KSM page; beside equal content it becomes a dup of a chain (ksm-merge T5)."""
    nid = page_nid(m, frame)
    n, parent, left = m.tree[nid].stable, -1, False
    while n >= 0:
        m.steps[TREE_LEVEL] += 1
        dup = _stable_node_at(m, n, False)
        if dup < 0:
            n, parent = m.tree[nid].stable, -1
            continue
        if m.node[dup].kind == NODE:
            n = dup  # a chain may have dissolved into it
        if key == m.node[n].key:
            break
        parent = n
        left = key < m.node[n].key
        n = m.node[n].left if left else m.node[n].right
    node = alloc_stable_node(m, key)
    m.node[node].frame = frame
    m.frame[frame].node = node
    if n < 0:
        _link(m, node, nid, parent, left)
    else:
        _add_dup(m, node, n)
    return node


@compiled
def stable_tree_append(m, v, node):
    """Attach an item to its KSM page's node, at the head of the list (ksm-merge M9)."""
    first = m.node[node].first
    if first < 0:
        m.stat[0].pages_shared += 1
    else:
        m.stat[0].pages_sharing += 1
        m.page[first].right = v
    m.page[v].left = first
    m.page[v].right = -1
    m.page[v].parent = node
    m.pte[v].item |= STABLE
    m.node[node].first = v
    _set_len(m, node, m.node[node].len + 1)
    m.mm[_mm(m, v)].merging_pages += 1
    m.stat[0].proc_ksm_merging_pages += 1
    m.steps[MERGE] += 1


@compiled
def remove_stable_node(m, node):
    """Drop a node unless its page is still mapped: then False."""
    if not ksm_get_folio(m, node):
        return True
    if m.frame[m.node[node].frame].mapcount > 0:
        return False
    remove_node_from_stable_tree(m, node)
    return True


@entry
def remove_all_stable_nodes(m):
    """Drop stable nodes, from each tree's root on, up to one whose page is still mapped: then False (R2, R4)."""
    done = True
    for nid in range(len(m.tree)):
        while m.tree[nid].stable >= 0:
            n = m.tree[nid].stable
            if m.node[n].kind != CHAIN:
                if not remove_stable_node(m, n):
                    done = False
                    break
                continue
            while m.node[n].first >= 0 and remove_stable_node(m, m.node[n].first):
                pass
            if m.node[n].first >= 0:
                done = False
                break
            _erase(m, n)
            m.stat[0].stable_node_chains -= 1
            free_stable_node(m, n)
    for n in range(m.state[0].top_node):
        if m.node[n].kind == MIGRATED and not remove_stable_node(m, n):
            done = False
    return done


# --- rmap_items -----------------------------------------------------------------------------------------------------


@compiled
def _mm(m, v):
    return m.block[v >> m.state[0].hpage_order].mm


@compiled
def remove_rmap_item_from_tree(m, v):
    """Out of whatever tree it is in (ksm-merge 2.9; ksm-scan S19, S22)."""
    item = m.pte[v].item
    if item & STABLE:
        node = m.page[v].parent
        if not ksm_get_folio(m, node):
            return
        before, after = m.page[v].right, m.page[v].left
        if before >= 0:
            m.page[before].left = after
        else:
            m.node[node].first = after
        if after >= 0:
            m.page[after].right = before
        if m.node[node].first >= 0:
            m.stat[0].pages_sharing -= 1
        else:
            m.stat[0].pages_shared -= 1
        _set_len(m, node, m.node[node].len - 1)
        m.mm[_mm(m, v)].merging_pages -= 1
        m.stat[0].proc_ksm_merging_pages -= 1 - m.mm[_mm(m, v)].exited
        m.pte[v].item &= ~STABLE
    elif item & UNSTABLE:
        if m.pte[v].seq == m.stat[0].full_scans & 255:  # of the current pass: really in the tree
            unstable_tree_erase(m, v)
        m.stat[0].pages_unshared -= 1
        m.pte[v].item &= ~UNSTABLE


@compiled
def _new_rmap_item(m, v):
    """An item as it starts, also where the address had one before (ksm-scan S20, S23)."""
    mm = _mm(m, v)
    m.pte[v].item = ITEM
    m.pte[v].age = 0
    m.pte[v].skips = 0
    m.mm[mm].rmap_items += 1
    m.stat[0].rmap_items += 1
    m.stat[0].proc_ksm_rmap_items += 1


@compiled
def free_rmap_item(m, v):
    mm = _mm(m, v)
    remove_rmap_item_from_tree(m, v)
    m.pte[v].item = 0
    m.mm[mm].rmap_items -= 1
    m.stat[0].rmap_items -= 1
    m.stat[0].proc_ksm_rmap_items -= 1 - m.mm[mm].exited


@compiled
def skip_age(age):
    """Passes to skip at this age (ksm-scan S25)."""
    if age <= 3:
        return 1
    if age <= 5:
        return 2
    if age <= 8:
        return 4
    return 8


@inlined
def should_skip_rmap_item(m, v):
    """Smart scan (ksm-scan S25). An item keeps its age as long as it lives (S28)."""
    if not m.state[0].smart_scan or m.pte[v].bits & KSM_PAGE:
        return False
    age = m.pte[v].age
    if age != 255:
        m.pte[v].age = age + 1
    if age < 3:
        return False
    if m.pte[v].skips == 0:
        m.pte[v].skips = skip_age(age)
        return False
    m.pte[v].skips -= 1
    if m.pte[v].item & (STABLE | UNSTABLE):
        remove_rmap_item_from_tree(m, v)
    return True


def _word(**values: int) -> np.uint64:
    """These fields of an entry, as `get_word` has them."""
    names = list(pte_t.names or ())
    return np.uint64(sum(value << 8 * names.index(name) for name, value in values.items()))


_AGE, _SKIPS = _word(age=1), _word(skips=1)
_ALL_AGES, _ALL_SKIPS = _word(age=255), _word(skips=255)
_TOLD = _word(kind=255, bits=KSM_PAGE, vm=VM_MERGEABLE, item=ITEM | STABLE | UNSTABLE)
_OUTSIDE = _word(kind=ANON, vm=VM_MERGEABLE, item=ITEM)


@inlined
def _skip_on(m, at, end):
    """Skip pages as `should_skip_rmap_item` does, up to one that is not skipped or is still in a tree.

    With smart scan that is what ksmd meets most, 8 times of 9: all fields of an entry are looked at at once.
    """
    while at < end:
        word = get_word(m.pte, at)
        age = word & _ALL_AGES
        if word & _TOLD != _OUTSIDE or age < _AGE * 3 or word & _ALL_SKIPS == 0:
            break
        set_word(m.pte, at, word - _SKIPS + (_AGE if age != _ALL_AGES else np.uint64(0)))
        at += 1
    return at


# --- merging one page -----------------------------------------------------------------------------------------------


@compiled
def write_protect_page(m, v, frame, kframe):
    """Make the entry read-only and clean, if nobody else holds a reference to the page (ksm-merge M7.5)."""
    if m.pte[v].kind != ANON or m.page[v].frame != frame:
        return False  # a split has put the zeropage there
    if m.pte[v].bits & KSM_PAGE:  # reverse mapping does not find it (M14); one from the side list may merge (2.12)
        node = m.frame[frame].node
        return node >= 0 and m.node[node].kind == MIGRATED and kframe >= 0 and m.frame[kframe].node >= 0
    if m.pte[v].bits & (DIRTY | EXCLUSIVE):
        if m.frame[frame].pins != 1:
            return False
        if m.pte[v].bits & DIRTY:
            m.frame[frame].flags |= PG_DIRTY
        m.pte[v].bits = 0
    return True


@compiled
def replace_page(m, v, frame, kframe):
    """The entry maps the KSM page or the zeropage instead (ksm-merge M8, M15); only the latter lowers RSS (C5)."""
    locked = m.pte[v].vm & VM_LOCKED
    if kframe == ZEROPAGE:
        unmap_pte(m, v, ZP_KSM, -1)
        m.pte[v].bits = 0
        m.mm[_mm(m, v)].zero_pages += 1
        m.stat[0].ksm_zero_pages += 1
        m.stat[0].zeropage_entries += 1
        m.stat[0].anon_pages -= 1
        m.steps[MERGE_ZERO] += 1
    else:
        m.frame[kframe].mapcount += 1
        m.page[v].frame = kframe
        m.pte[v].bits = KSM_PAGE
        if not m.frame[frame].flags & KSM:  # a KSM page merges into another only on its new NUMA node (2.12)
            m.stat[0].ksm_entries += 1
        if locked:
            mlock_folio(m, kframe)
    if locked:
        mlock_folio(m, frame)
    m.frame[frame].mapcount -= 1
    put_frame(m, frame)


@compiled
def _become_ksm_page(m, v, frame):
    """The page, and with it every entry that maps it, is KSM's from now on, without a node yet (M7.6, M14)."""
    m.frame[frame].flags |= KSM | PG_DIRTY | REFERENCED
    m.stat[0].ksm_frames += 1
    m.stat[0].ksm_entries += m.frame[frame].mapcount
    m.pte[v].bits |= KSM_PAGE
    if m.frame[frame].mapcount == 1:
        return
    mm = _mm(m, v)
    for other in range(1, len(m.mm)):
        if m.mm[other].family == m.mm[mm].family:
            w = v - m.mm[mm].base + m.mm[other].base
            if m.pte[w].kind == ANON and m.page[w].frame == frame:
                m.pte[w].bits |= KSM_PAGE


@compiled
def try_to_merge_one_page(m, v, frame, kframe, kkey):
    """Merge the page at v with a KSM page, the zeropage or none (ksm-merge M7).

    A large folio of any order is split first, before anything is compared (mthp E12).
    """
    if frame == kframe:
        return True
    if m.frame[frame].folio >= 0 and not split_huge_page(m, frame, CALLER_KSM):
        return False
    if not write_protect_page(m, v, frame, kframe):
        return False
    if kframe == NO_PAGE:
        _become_ksm_page(m, v, frame)
        return True
    if m.page[v].key != kkey:
        return False
    replace_page(m, v, frame, kframe)
    return True


@compiled
def try_to_merge_with_ksm_page(m, v, frame, kframe, kkey):
    """… and take the item out of its tree if that worked (ksm-merge M10)."""
    if not try_to_merge_one_page(m, v, frame, kframe, kkey):
        return False
    remove_rmap_item_from_tree(m, v)
    return True


@compiled
def try_to_merge_two_pages(m, v, frame, tree_v, tree_frame, key):
    """M5a, M5b: the visited page becomes a KSM page, the tree's page is merged into it; else the first is undone."""
    if not try_to_merge_with_ksm_page(m, v, frame, NO_PAGE, key):
        return False
    if try_to_merge_with_ksm_page(m, tree_v, tree_frame, frame, key):
        return True
    if m.pte[v].vm & VM_MERGEABLE:
        break_ksm(m, v)  # break_cow
    return False


@inlined
def _nothing_to_merge(m, v, frame):
    """How most visits end: at a page that is merged already, or whose checksum has changed (ksm-merge M1, M2)."""
    node = m.frame[frame].node
    if node >= 0:  # M1
        aside = not m.state[0].merge_across_nodes and _on_side_list(m, node, frame)
        return m.pte[v].item & STABLE and m.page[v].parent == node and not aside
    if m.pte[v].item & (STABLE | UNSTABLE):  # M2
        remove_rmap_item_from_tree(m, v)
    item = m.pte[v].item
    if item & CHECKSUM and not (item & REWRITTEN and m.oldchecksum[v] != m.page[v].key):
        return False
    m.pte[v].item = (item | CHECKSUM) & ~REWRITTEN
    m.stat[0].changed_checksums += 1
    return True


@compiled
def cmp_and_merge_page(m, v, frame):
    """What ksmd does with a visited page beyond `_nothing_to_merge` (ksm-merge M3, M4, M5).

    `frame` carries the scan's reference. Two equal pages of one folio, whatever its order, make it split instead (M5d,
    mthp E13).
    """
    key = m.page[v].key
    if m.frame[frame].node < 0 and key == 0 and m.state[0].use_zero_pages:  # M3
        if try_to_merge_one_page(m, v, frame, ZEROPAGE, key):
            return
        if m.state[0].early_stop and m.pte[v].kind != ANON:
            return  # the variant skip-zeropage
    above = m.steps[TREE_LEVEL] + CACHED_LEVELS
    kframe = stable_tree_search(m, key, frame)  # M4
    m.steps[TREE_COLD] += max(0, m.steps[TREE_LEVEL] - above)
    if kframe == frame and m.pte[v].item & STABLE and m.page[v].parent == m.frame[frame].node:
        return
    remove_rmap_item_from_tree(m, v)
    if kframe >= 0:
        if try_to_merge_with_ksm_page(m, v, frame, kframe, key):
            stable_tree_append(m, v, m.frame[kframe].node)
        return
    tree_v = unstable_tree_search_insert(m, v, frame, key)  # M5
    if tree_v < 0:
        return
    tree_frame = m.page[tree_v].frame
    folio_get(m, tree_frame)
    merged = try_to_merge_two_pages(m, v, frame, tree_v, tree_frame, key)
    same = m.frame[frame].folio >= 0 and m.frame[frame].folio == m.frame[tree_frame].folio
    folio_put(m, tree_frame)
    if merged:
        node = stable_tree_insert(m, key, frame)
        stable_tree_append(m, tree_v, node)
        stable_tree_append(m, v, node)
    elif same:
        split_huge_page(m, frame, CALLER_KSM)  # M5d


# --- advisor --------------------------------------------------------------------------------------------------------


@compiled
def _now_ns(m):
    """Simulated time in the middle of a batch."""
    return m.stat[0].time_ns + ksmd_cpu_ns(m) - m.state[0].batch_cpu_ns


def set_advisor(m: Machine, mode: int) -> None:
    """A write to advisor_mode: a change begins anew, from the default or the advisor's pages_to_scan (ksm-scan S29)."""
    s = m.state[0]
    if mode == s["advisor_mode"]:
        return
    s["advisor_mode"] = mode
    s["pages_to_scan"] = s["advisor_min_pages_to_scan"] if mode else 100
    for name in ("advisor_scan_time", "advisor_change", "advisor_cpu_ns", "advisor_start_ns"):
        s[name] = 0


@entry
def advised_pages(pages, scan_ms, cpu_ms, target, max_cpu, max_pages, last_seconds, last_change):
    """The advisor's arithmetic (ksm-scan S31, S32): the new pages_to_scan, the scan's seconds and the smoothed
    change, of which the last two are the history of the next call (0, 0: none). Fixed are the least CPU time, 10 %, and
    the weight of the newest change, 30 % (S30)."""
    seconds = max(1, scan_ms // 1000)
    cpu_percent = max(1, cpu_ms * 100 // (seconds * 1000))
    factor = max(1, target * 100 // seconds)
    change = max(1, seconds * 100 // (last_seconds if last_seconds > 0 else seconds))
    change = (70 * last_change + 30 * change) // 100
    per_percent = max(1, pages // cpu_percent)
    wanted = pages * 100 // factor * change // 100
    return min(max(min(wanted, per_percent * max_cpu), per_percent * 10), max_pages), seconds, change


@compiled
def scan_time_advisor(m):
    """A new pages_to_scan at the end of a full scan, so that one takes the target time (ksm-scan S31)."""
    s = m.state[0]
    cpu_ns = ksmd_cpu_ns(m)
    s.pages_to_scan, s.advisor_scan_time, s.advisor_change = advised_pages(
        s.pages_to_scan,
        (_now_ns(m) - s.advisor_start_ns) // 1_000_000,
        (cpu_ns - s.advisor_cpu_ns) // 1_000_000,
        s.advisor_target_scan_time,
        s.advisor_max_cpu,
        s.advisor_max_pages_to_scan,
        s.advisor_scan_time,
        s.advisor_change,
    )
    s.advisor_cpu_ns = cpu_ns


# --- scanning -------------------------------------------------------------------------------------------------------


@entry
def ksm_enter(m, mm):
    """Register a process: before the cursor's, so it is not visited in the current pass (ksm-scan S12)."""
    at = 0 if m.state[0].run == 2 else m.state[0].cursor_mm
    before = m.mm[at].prev
    m.mm[mm].next = at
    m.mm[mm].prev = before
    m.mm[before].next = mm
    m.mm[at].prev = mm
    m.mm[mm].registered = 1


@compiled
def _list_del(m, mm):
    m.mm[m.mm[mm].prev].next = m.mm[mm].next
    m.mm[m.mm[mm].next].prev = m.mm[mm].prev


@compiled
def _drop_mm(m, mm):
    _list_del(m, mm)
    m.mm[mm].registered = 0


@entry
def ksm_exit(m, mm):
    """exit of a registered process (ksm-merge F5); its pages are unmapped already."""
    cursor = m.state[0].cursor_mm
    if not m.mm[mm].registered or mm == cursor:
        return
    if m.mm[mm].rmap_items == 0:
        _drop_mm(m, mm)
        return
    _list_del(m, mm)
    after = m.mm[cursor].next
    m.mm[mm].prev = cursor
    m.mm[mm].next = after
    m.mm[after].prev = mm
    m.mm[cursor].next = mm


@compiled
def _next_occupied(m, v, end):
    """The first page of [v, end) that maps an anonymous page or has an rmap_item; `end` if there is none."""
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
def _begin_full_scan(m):
    """Empty unstable trees, batches drained, the cursor at the first process (ksm-scan S10)."""
    s = m.state[0]
    if s.advisor_mode:
        s.advisor_start_ns = _now_ns(m)
    mlock_drain(m)
    lru_add_drain(m)
    empty_unstable_trees(m)
    if not s.merge_across_nodes:  # S10.3
        for n in range(s.top_node):
            if m.node[n].kind == MIGRATED:
                ksm_get_folio(m, n)
    s.unmerged = 0
    s.cursor_mm = m.mm[0].next
    s.cursor = 0
    s.found_vma = 0


@inlined
def scan_pages(m, mm, budget):
    """Visit pages of a process from the cursor on, up to one at which there is more to do than `_nothing_to_merge`:
    what is left of the budget, and that page or -1 (ksm-scan S9, S16, S18).

    Candidates are anonymous pages of mergeable VMAs, whatever folio they are in (S13, S14, mthp E11). Other addresses
    are passed over; items left over there are freed (S21, mthp E16). Here and there ksmd spends most of its time, so
    what is counted is in local variables.
    """
    s = m.state[0]
    base = m.mm[mm].base
    if m.mm[mm].exited:
        s.cursor = 0
        s.found_vma = 0
    at, end = base + s.cursor, base + m.mm[mm].pages
    found, before = np.int64(-1), budget
    passed_over = skipped = thp = merged = np.int64(0)
    while at < end:
        v = at
        if m.pte[v].kind != ANON:
            v = _next_occupied(m, at, end)
            if m.pte[at].vm & VM_MERGEABLE:
                passed_over += v - at
            if v == end:
                at = end
                break
        at = v + 1
        if m.pte[v].vm & VM_MERGEABLE and m.pte[v].kind == ANON:
            if not m.pte[v].item:
                _new_rmap_item(m, v)
            if should_skip_rmap_item(m, v):
                at = _skip_on(m, at, end)
                skipped += at - v
                continue
            frame = m.page[v].frame
            if m.pte[v].bits & KSM_PAGE:
                merged += 1
            elif m.frame[frame].folio >= 0:
                thp += 1
            budget -= 1
            if not _nothing_to_merge(m, v, frame):
                found = v
                break
            if budget == 0:
                break
        elif m.pte[v].item:
            free_rmap_item(m, v)
    visits = before - budget
    s.cursor = at - base
    s.found_vma |= visits > 0
    m.stat[0].pages_scanned += visits
    m.stat[0].pages_skipped += skipped
    m.steps[PASS_OVER] += passed_over
    m.steps[VISIT_KSM] += merged
    m.steps[VISIT_THP] += thp
    m.steps[VISIT] += visits - merged - thp
    return budget, found


@compiled
def ksm_do_scan(m):
    """One batch (ksm-scan S7) of `pages_to_scan` visits, as it is at the beginning (S5), or to the end of a full scan.

    Processes come in list order and addresses ascending (S11); one without a mergeable VMA is dropped (S17). A visit
    holds a reference on the whole folio (S15).
    """
    s = m.state[0]
    m.steps[WAKE_UP] += 1
    budget = s.pages_to_scan
    if budget == 0 or m.mm[0].next == 0:
        return
    if s.cursor_mm == 0:
        _begin_full_scan(m)
    while budget > 0:
        mm = s.cursor_mm
        budget, v = scan_pages(m, mm, budget)
        if v >= 0:
            frame = m.page[v].frame
            folio_get(m, frame)
            cmp_and_merge_page(m, v, frame)
            folio_put(m, frame)
        elif budget > 0:
            if not s.found_vma and not m.mm[mm].mergeable:  # S17
                _drop_mm(m, mm)
            s.cursor_mm = m.mm[mm].next
            s.cursor = 0
            s.found_vma = 0
            if s.cursor_mm == 0:
                break
    else:
        return
    m.steps[END_OF_PASS] += 1
    if s.advisor_mode:
        scan_time_advisor(m)
    m.stat[0].full_scans += 1


@entry
def unmerge_and_remove_all_rmap_items(m):
    """run=2 (ksm-merge R2)."""
    s = m.state[0]
    mm = m.mm[0].next
    while mm != 0:
        following = m.mm[mm].next
        for v in range(m.mm[mm].base, m.mm[mm].base + m.mm[mm].pages):
            if m.pte[v].vm & VM_MERGEABLE:
                break_ksm(m, v)
        for v in range(m.mm[mm].base, m.mm[mm].base + m.mm[mm].pages):
            if m.pte[v].item:
                free_rmap_item(m, v)
        if m.mm[mm].exited:
            _drop_mm(m, mm)
        mm = following
    remove_all_stable_nodes(m)
    s.cursor_mm = 0
    m.stat[0].full_scans = 0


@compiled
def _pass_ended(m):
    """Note the state at the end of a full scan: settled if, since the one before, smart scan skipped nothing, nothing
    was merged, split or freed, and no checksum changed."""
    stat = m.stat[0]
    last, settled = m.passes[LAST], m.passes[SETTLED]
    merges = m.steps[MERGE] + m.steps[MERGE_ZERO]
    splits = m.steps[SPLIT_PAGE]
    quiet = (
        last.full_scan > 0
        and last.frames == stat.frames
        and last.merges == merges
        and last.splits == splits
        and last.checksums == stat.changed_checksums
    )
    skipped = stat.pages_skipped != last.skipped
    last.full_scan += 1
    last.time_ns = stat.time_ns
    last.frames = stat.frames
    last.ksm_pages = stat.pages_sharing + stat.ksm_zero_pages
    last.skipped = stat.pages_skipped
    last.merges = merges
    last.splits = splits
    last.checksums = stat.changed_checksums
    if last.full_scan == 1:
        m.passes[FIRST] = last
    if not quiet:
        settled.full_scan = 0
    elif not skipped and settled.full_scan == 0:
        m.passes[SETTLED] = last


@entry
def ksm_scan_thread(m, wake_ns, batches, until_ns, full_scans, until_settled, rows, mthp_rows):
    """ksmd's loop (ksm-scan S1): batches and sleeps until something else is due, which is never inside a batch (S6).

    Stops after `batches`, when the next batch would begin at or after `until_ns`, when the counter `full_scans` or
    `until_settled` is reached, when ksmd is not runnable (S2), or when free frames or nodes might not last for another
    batch; trees, cursor and items stay as they are (ksm-merge R1). A row of counters is written after each batch.
    Returns the number of batches, the time at which the next one begins (ns), and the most frames that one batch freed.
    """
    s = m.state[0]
    stat = m.stat[0]
    done = 0
    most_freed = 0
    while done < batches and wake_ns < until_ns and s.run & 1 and m.mm[0].next != 0:
        room = batch_room(m)
        if len(m.frame) - s.top_frame < room or len(m.node) - s.top_node < room:
            break
        stat.time_ns = wake_ns
        s.jiffies = _jiffies(m, wake_ns)
        s.prune_before = s.jiffies - (s.stable_node_chains_prune_millisecs * s.hz + 999) // 1000
        frames, passes = stat.frames, stat.full_scans
        cpu = ksmd_cpu_ns(m)
        s.batch_cpu_ns = cpu
        ksm_do_scan(m)
        cpu = ksmd_cpu_ns(m) - cpu
        stat.time_ns += cpu
        stat.ksmd_cpu_ns += cpu
        stat.batch += 1
        stat.freed_by_batch = frames - stat.frames
        most_freed = max(most_freed, frames - stat.frames)
        stat.pages_to_scan = s.pages_to_scan
        rows[done] = stat
        if len(mthp_rows) > 0:
            for order in range(len(m.mthp)):
                mthp_rows[done, order] = m.mthp[order]
        done += 1
        wake_ns = ksmd_wakes_at(m, stat.time_ns)
        if stat.full_scans != passes:
            _pass_ended(m)
            if stat.full_scans >= full_scans or (until_settled and m.passes[SETTLED].full_scan > 0):
                break
    return done, wake_ns, most_freed


@entry
def batch_room(m):
    """Most frames or nodes that one batch may allocate: one private copy, or one node and one chain, a visit."""
    return 2 * min(m.state[0].pages_to_scan, len(m.page)) + 2


@compiled
def ksmd_cpu_ns(m):
    """CPU time of all that ksmd has done so far, ns."""
    m.steps[SKIP] = m.stat[0].pages_skipped
    total = 0
    for i in range(NR_KSMD_STEPS):
        total += m.steps[i] * m.costs[i]
    return total


@entry
def schedule_timeout(m, now_ns, millisecs):
    """End of a sleep that begins now: at the timer tick after `millisecs` rounded up to ticks (ksm-scan S3)."""
    s = m.state[0]
    tick = _jiffies(m, now_ns) + (millisecs * s.hz + 999) // 1000 + 1
    return tick // s.hz * 1_000_000_000 + tick % s.hz * 1_000_000_000 // s.hz


@entry
def ksmd_wakes_at(m, now_ns):
    """End of ksmd's sleep that begins now; with `sleep_millisecs` 0 it does not sleep."""
    sleep = m.state[0].sleep_millisecs
    return schedule_timeout(m, now_ns, sleep) if sleep > 0 else now_ns
