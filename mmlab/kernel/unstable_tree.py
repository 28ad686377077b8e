"""The unstable tree (mm/ksm.c; ksm-merge U1 to U4, D1 to D4): a red-black tree, and an index of its latest items.

A node is an address whose page each search looks up again. If no page is mapped there any more, the node is *dead*.
Whether a search hits a dead node depends only on the tree's shape, and insertions cannot change that: a new item never
lands below a dead node, since its own search would have ended there, and insertions rotate only nodes on the search
path, none of which is dead. So items are at first only indexed by content. They go into the tree, in order of
insertion, when an item is about to leave the tree or to lose its page (`unmap_pte`). A search descends the tree as far
as it was built, then looks into the index. Once an item's content has changed (`set_content`), the tree is no longer
ordered and rotations matter, so there is no index until the next full scan.

Measured: for 262,144 unique pages in random order, a search takes 350 ns in the tree and 40 ns in the index.
"""

import numpy as np

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.jit import compiled, inlined
from mmlab.kernel.pgtable import set_pte
from mmlab.kernel.rbtree import rb_erase, rb_insert
from mmlab.kernel.state import *


@compiled
def page_nid(m, frame):
    """Return the NUMA node whose trees the page belongs to (ksm-merge T1)."""
    return np.int64(0) if m.state[0].merge_across_nodes else np.int64(m.frame[frame].flags) >> NID_SHIFT


@compiled
def empty_unstable_trees(m):
    """Empty all unstable trees, as each full scan does when it starts (ksm-scan S10).

    With `merge_across_nodes` there is one tree, which may have an index.
    """
    s = m.state[0]
    if s.index_first >= 0:
        for i in range(len(m.index)):
            m.index[i] = 0
    s.indexed = s.merge_across_nodes
    s.direct = 0
    s.index_first = s.index_last = -1
    for nid in range(len(m.tree)):
        t = m.tree[nid]
        t.unstable = -1
        t.nodes = t.depth = t.built = 0


# --- the index: items of one bucket are linked by `left`, all items in order of insertion by `right` -----------------


@inlined
def _bucket(m, key):
    """Return the bucket of a content.

    Consecutive contents get neighbouring buckets, which share cache lines; multiples of a power of 2 are spread.
    """
    return np.int64(key + (key >> np.uint64(m.state[0].index_bits))) & (len(m.index) - 1)


@inlined
def _index_search_insert(m, v, key):
    """Return the item with this content, or insert v and return -1."""
    s = m.state[0]
    p = m.page
    i = _bucket(m, key)
    first = np.int64(m.index[i]) - 1
    n = first
    while n >= 0 and p[n].key != key:
        n = np.int64(p[n].left)
    if n < 0:
        p[v].left = first
        p[v].right = -1
        m.index[i] = v + 1
        if s.index_first < 0:
            s.index_first = v
        else:
            p[s.index_last].right = v
        s.index_last = v
    return n


@compiled
def _build_tree(m):
    """Move all indexed items into the tree.

    An item that is moved has cost twice. To bound that cost, as many items as the tree now holds go straight into it.
    """
    s = m.state[0]
    p = m.page
    v = np.int64(s.index_first)
    s.index_first = s.index_last = -1
    m.tree[0].built = m.tree[0].depth
    s.direct = m.tree[0].nodes
    while v >= 0:
        following = p[v].right
        m.index[_bucket(m, p[v].key)] = 0
        n, parent, left = np.int64(m.tree[0].unstable), np.int64(-1), False
        while n >= 0:
            parent = n
            left = p[v].key < p[n].key
            n = np.int64(p[n].left if left else p[n].right)
        m.tree[0].unstable = rb_insert(p, m.tree[0].unstable, v, parent, left)
        v = following


@inlined
def _shape_matters(m, v):
    """Return whether there is an index and, at v, an item of this full scan; if so, build the tree of all items."""
    s = m.state[0]
    matters = s.indexed and m.pte[v].item & UNSTABLE and m.pte[v].seq == m.stat[0].full_scans & 255
    if matters and s.index_first >= 0:
        _build_tree(m)
    return matters


@compiled
def unmap_pte(m, v, kind, frame):
    """Replace the entry of the page at v by one of `kind` without a page (`frame` < 0). An item there becomes dead."""
    _shape_matters(m, v)
    if m.pte[v].item & UNSTABLE and m.pte[v].seq == m.stat[0].full_scans & 255 and m.page[v].frame >= 0:
        emit(m, Decision.DEAD_MADE, v, 1, -1, 0)
    set_pte(m, v, kind, m.pte[v].bits & EXCLUSIVE, frame)


@compiled
def set_content(m, v, key):
    """Change the content at v: the page is written to, or a zero-filled one will be mapped."""
    if _shape_matters(m, v):
        m.state[0].indexed = 0
    if m.pte[v].item & (CHECKSUM | REWRITTEN) == CHECKSUM:
        m.oldchecksum[v] = m.page[v].key
        m.pte[v].item |= REWRITTEN
    m.page[v].key = key


# --- searches ---------------------------------------------------------------------------------------------------------


@inlined
def _count(m, nid, key):
    """Record for `_levels` that a content enters the tree."""
    t = m.tree[nid]
    t.least = min(t.least, key) if t.nodes else key
    t.most = max(t.most, key) if t.nodes else key
    t.nodes += 1
    t.depth += t.nodes >> t.depth != 0


@inlined
def _levels(m, nid, key):
    """Return the number of nodes that an unsuccessful search visits, whether the tree was built or not.

    With b the bits of the number of nodes, that is b on average for random contents. Along the tree's edge, where
    ascending contents are inserted, it is nearly twice that, 2b - 3.5. Both hold within 2 % from 512 to 262,144 nodes.
    """
    t = m.tree[nid]
    inside = t.least <= key <= t.most
    return np.int64(t.depth) if inside or t.depth < 4 else 2 * np.int64(t.depth) - 3


@inlined
def unstable_tree_search_insert(m, v, frame, key):
    """Search the item of a page with the same content, and insert v if there is none (ksm-merge U2).

    Return SEARCH_UNSTABLE and that item, or how the visit ends, VISIT_INSERTED to VISIT_OTHER_NODE, and the item where.
    A dead node ends the search (D1, D2) and stays in place until the trees are emptied (D3). The search compares
    current contents, by their keys (U3, M13), and splits no folio for that (U4). An inserted item records the number of
    the full scan (ksm-scan S19).
    """
    p = m.page
    s = m.state[0]
    nid = page_nid(m, frame)
    unmerged = s.unmerged
    if unmerged or not s.merge_across_nodes:
        s.indexed = 0
    indexed = s.indexed and s.direct == 0 and p[v].frame >= 0  # not if its own split has put the zeropage there
    if not indexed and s.index_first >= 0:
        _build_tree(m)
    levels, ends = _levels(m, nid, key), Decision.VISIT_INSERTED
    n, parent, left, met = np.int64(m.tree[nid].unstable), np.int64(-1), False, np.int64(0)
    while n >= 0:
        met += 1
        if p[n].frame < 0 or (unmerged and not m.pte[n].vm & VM_MERGEABLE):
            m.stat[0].wasted_visits += 1
            levels = met + m.tree[nid].depth - m.tree[nid].built  # indexed items would lie above it
            ends = Decision.VISIT_DEAD
            break
        if p[n].frame == frame:
            ends = Decision.VISIT_SAME_PAGE
            break
        parent = n
        if key < p[n].key:
            left = True
            n = np.int64(p[n].left)
        elif key > p[n].key:
            left = False
            n = np.int64(p[n].right)
        else:
            ends = Decision.SEARCH_UNSTABLE
            if not s.merge_across_nodes and page_nid(m, p[n].frame) != nid:
                ends = Decision.VISIT_OTHER_NODE  # the item's page has moved
            break
    if n < 0 and indexed:
        n = _index_search_insert(m, v, key)
        if n >= 0:
            ends = Decision.VISIT_SAME_PAGE if p[n].frame == frame else Decision.SEARCH_UNSTABLE
    elif n < 0:
        m.tree[nid].unstable = rb_insert(p, m.tree[nid].unstable, v, parent, left)
    m.steps[TREE_LEVEL] += levels
    if CACHED_LEVELS < levels <= m.tree[nid].depth:  # the path along the edge is always the same, so it stays cached
        m.steps[TREE_COLD] += levels - CACHED_LEVELS
    if n < 0:
        m.pte[v].item |= UNSTABLE
        m.pte[v].seq = m.stat[0].full_scans & 255
        m.pte[v].nid = nid
        m.stat[0].pages_unshared += 1
        _count(m, nid, key)
        if not indexed:
            m.tree[nid].built = m.tree[nid].depth
            s.direct = max(0, s.direct - 1)
            if p[v].frame < 0:
                emit(m, Decision.DEAD_MADE, v, 1, -1, 0)
    return ends, n


@compiled
def unstable_tree_erase(m, v):
    """Remove an item that the current full scan has inserted."""
    if m.state[0].index_first >= 0:
        _build_tree(m)
    nid = np.int64(m.pte[v].nid)
    m.tree[nid].unstable = rb_erase(m.page, m.tree[nid].unstable, v)
    t = m.tree[nid]
    t.nodes -= 1
    t.depth -= t.nodes >> (t.depth - 1) == 0
    t.built = t.depth
