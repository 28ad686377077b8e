"""The unstable tree (mm/ksm.c; ksm-merge U1 to U4, D1 to D4): a red-black tree, and an index of its latest items.

A node is an address, looked up again by each search that comes by: if no page is mapped there any more the node is
dead. Which searches meet it is a matter of the tree's shape. Items that are inserted do not change that: they come to
lie in no dead node's subtree, as their own search would have met it; and what is rotated then are nodes on their way,
none of which is dead. So items are only indexed by content at first, and go into the tree, in order of insertion, when
an item is about to leave it or to lose its page (`unmap_pte`). A search descends what there is of the tree, then looks
into the index. Once an item's content has changed (`set_content`) the tree is no longer in order, and what rotations do
to it matters: there is no index then until the next full scan.

Measured: 262,144 unique pages in random order took 350 ns each in the tree, and 40 in the index.
"""

import numpy as np

from mmlab.kernel.jit import compiled, inlined
from mmlab.kernel.rbtree import rb_erase, rb_insert
from mmlab.kernel.state import (
    CACHED_LEVELS,
    CHECKSUM,
    NID_SHIFT,
    REWRITTEN,
    TREE_COLD,
    TREE_LEVEL,
    UNSTABLE,
    VM_MERGEABLE,
)

__all__ = [
    "empty_unstable_trees",
    "page_nid",
    "set_content",
    "unmap_pte",
    "unstable_tree_erase",
    "unstable_tree_search_insert",
]


@compiled
def page_nid(m, frame):
    """The NUMA node whose trees the page belongs into (ksm-merge T1)."""
    return np.int64(0) if m.state[0].merge_across_nodes else np.int64(m.frame[frame].flags) >> NID_SHIFT


@compiled
def empty_unstable_trees(m):
    """At the begin of a full scan (ksm-scan S10); of several NUMA nodes each has its tree, of one an index will do."""
    s = m.state[0]
    if s.index_first >= 0:
        for i in range(len(m.index)):
            m.index[i] = 0
    s.indexed = s.merge_across_nodes
    s.direct = 0
    s.index_first = s.index_last = -1
    for nid in range(len(m.tree)):
        m.tree[nid].unstable = -1
        m.tree[nid].nodes = 0
        m.tree[nid].depth = 0
        m.tree[nid].built = 0


# --- the index: chains of items whose contents hash alike, linked by `left`, and all of them in order by `right` ------


@inlined
def _bucket(m, key):
    """Contents that count up stay beside each other, in the cache; those that are multiples of a power of 2 spread."""
    return np.int64(key + (key >> np.uint64(m.state[0].index_bits))) & (len(m.index) - 1)


@inlined
def _index_search_insert(m, v, key):
    """The item with this content, or -1: v was inserted."""
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
    """Put what is indexed into the tree; several NUMA nodes have a tree each, and no index.

    It took both an index and a tree. So that this does not go on and on, as many items again go straight into the tree.
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
    """Whether there is an index, and at v an item of this full scan, which is in the tree afterwards."""
    s = m.state[0]
    matters = s.indexed and m.pte[v].item & UNSTABLE and m.pte[v].seq == m.stat[0].full_scans & 255
    if matters and s.index_first >= 0:
        _build_tree(m)
    return matters


@compiled
def unmap_pte(m, v, kind, frame):
    """The entry of an anonymous page at v becomes one of `kind` without a page (`frame` < 0): an item there is dead."""
    _shape_matters(m, v)
    m.pte[v].kind = kind
    m.page[v].frame = frame


@compiled
def set_content(m, v, key):
    """What is at v is written to, or a fresh page, all zeroes, will be there."""
    if _shape_matters(m, v):
        m.state[0].indexed = 0
    if m.pte[v].item & (CHECKSUM | REWRITTEN) == CHECKSUM:
        m.oldchecksum[v] = m.page[v].key
        m.pte[v].item |= REWRITTEN
    m.page[v].key = key


# --- searches ---------------------------------------------------------------------------------------------------------


@inlined
def _count(m, nid, key):
    """A content enters the tree: what `_levels` has to know of it."""
    t = m.tree[nid]
    t.least = min(t.least, key) if t.nodes else key
    t.most = max(t.most, key) if t.nodes else key
    t.nodes += 1
    t.depth += t.nodes >> t.depth != 0


@inlined
def _levels(m, nid, key):
    """Nodes on the way of a search that none ends: what they cost does not depend on whether the tree was built.

    Mean of random contents: the bits of the number of nodes. Along its edge, where contents in ascending order go in,
    a tree is nearly twice as deep, 2 bits - 3.5; both hold within 2 % from 512 to 262,144 nodes.
    """
    t = m.tree[nid]
    inside = t.least <= key <= t.most
    return np.int64(t.depth) if inside or t.depth < 4 else 2 * np.int64(t.depth) - 3


@inlined
def unstable_tree_search_insert(m, v, frame, key):
    """The item whose page has the same content, or insert this one (ksm-merge U2). -1: inserted or given up.

    A dead node ends the search (D1, D2) and stays where it is until the trees are emptied (D3). Contents are compared
    as they are now, by their keys (U3, M13), and no folio is split for that (U4). The item notes the number of the full
    scan (S19).
    """
    p = m.page
    s = m.state[0]
    nid = page_nid(m, frame)
    unmerged = s.unmerged
    if unmerged or not s.merge_across_nodes:
        s.indexed = 0
    indexed = s.indexed and s.direct == 0 and p[v].frame >= 0  # its own split may have put the zeropage there
    if not indexed and s.index_first >= 0:
        _build_tree(m)
    levels, inserted = _levels(m, nid, key), True
    n, parent, left, met = np.int64(m.tree[nid].unstable), np.int64(-1), False, np.int64(0)
    while n >= 0:
        met += 1
        if p[n].frame < 0 or (unmerged and not m.pte[n].vm & VM_MERGEABLE):
            m.stat[0].wasted_visits += 1
            levels = met + m.tree[nid].depth - m.tree[nid].built  # what is indexed would lie above it
            inserted, n = False, np.int64(-1)
            break
        if p[n].frame == frame:
            inserted, n = False, np.int64(-1)
            break
        parent = n
        if key < p[n].key:
            left = True
            n = np.int64(p[n].left)
        elif key > p[n].key:
            left = False
            n = np.int64(p[n].right)
        else:
            inserted = False
            if not s.merge_across_nodes and page_nid(m, p[n].frame) != nid:
                n = np.int64(-1)  # the tree's page went to another NUMA node
            break
    if inserted and indexed:
        n = _index_search_insert(m, v, key)
        inserted = n < 0
        if n >= 0 and p[n].frame == frame:
            n = np.int64(-1)
    elif inserted:
        m.tree[nid].unstable = rb_insert(p, m.tree[nid].unstable, v, parent, left)
    m.steps[TREE_LEVEL] += levels
    if CACHED_LEVELS < levels <= m.tree[nid].depth:  # along the edge the way is always the same, and stays cached
        m.steps[TREE_COLD] += levels - CACHED_LEVELS
    if inserted:
        m.pte[v].item |= UNSTABLE
        m.pte[v].seq = m.stat[0].full_scans & 255
        m.pte[v].nid = nid
        m.stat[0].pages_unshared += 1
        _count(m, nid, key)
        if not indexed:
            m.tree[nid].built = m.tree[nid].depth
            s.direct = max(0, s.direct - 1)
    return n


@compiled
def unstable_tree_erase(m, v):
    """Take out an item of the current full scan."""
    if m.state[0].index_first >= 0:
        _build_tree(m)
    nid = np.int64(m.pte[v].nid)
    m.tree[nid].unstable = rb_erase(m.page, m.tree[nid].unstable, v)
    t = m.tree[nid]
    t.nodes -= 1
    t.depth -= t.nodes >> (t.depth - 1) == 0
    t.built = t.depth
