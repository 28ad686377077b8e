"""The stable tree: KSM pages by content, chains of equal ones, and their items (mm/ksm.c; ksm-merge 2.6)."""

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.folio import vm_mm
from mmlab.kernel.jit import compiled, entry, inlined
from mmlab.kernel.rbtree import rb_erase, rb_insert, rb_replace_node
from mmlab.kernel.state import *
from mmlab.kernel.unstable_tree import page_nid

# --- lists, of a node's items (t is m.page) or of a chain's dups (t is m.node): left is the next one ------------------


@compiled
def _hlist_add_head(m, t, n, owner):
    """Put n at the head of the list of `owner`."""
    first = m.node[owner].first
    t[n].left = first
    t[n].right = -1
    if first >= 0:
        t[first].right = n
    m.node[owner].first = n


@compiled
def hlist_del(m, t, n, owner):
    """Remove n from the list of `owner`."""
    before, after = t[n].right, t[n].left
    if before >= 0:
        t[before].left = after
    else:
        m.node[owner].first = after
    if after >= 0:
        t[after].right = before


# --- nodes ----------------------------------------------------------------------------------------------------------


@compiled
def ksm_get_folio(m, node):
    """Return whether the node's page is still there. A stale node is removed (ksm-merge T2)."""
    if m.state[0].stale_nodes == 0 or m.frame[m.node[node].frame].node == node:
        return True
    remove_node_from_stable_tree(m, node)
    return False


@compiled
def alloc_stable_node(m, key):
    """Allocate a stable node without items."""
    s = m.state[0]
    node = s.free_node
    if node >= 0:
        s.free_node = m.node[node].first
    else:
        node = s.top_node
        s.top_node += 1
    x = m.node[node]
    x.key, x.kind, x.first = key, NODE, -1
    x.len = x.dups = x.quiet = 0
    return node


@compiled
def free_stable_node(m, node):
    """Free the record of a stable node or a chain."""
    m.node[node].kind = NO_NODE
    m.node[node].first = m.state[0].free_node
    m.state[0].free_node = node


@compiled
def is_page_sharing_candidate(m, node, offset):
    """Return whether the node has items, and room for `offset` more beyond the next one (ksm-merge T3)."""
    return m.node[node].len > 0 and m.node[node].len + offset < m.state[0].max_page_sharing


@compiled
def set_rmap_hlist_len(m, node, length):
    """Set a node's number of items, of which one counts as shared, and keep its chain's number of dups with room."""
    had_room, before = is_page_sharing_candidate(m, node, 0), m.node[node].len
    shared = int(length > 0) - int(before > 0)
    m.stat[0].pages_shared += shared
    m.stat[0].pages_sharing += length - before - shared
    m.node[node].len = length
    if m.node[node].kind == DUP:
        chain = m.node[node].chain
        m.node[chain].len += int(is_page_sharing_candidate(m, node, 0)) - int(had_room)
        m.node[chain].quiet = 0


@compiled
def forget(m, v):
    """Forget an item's checksum, age and skips, in whose place it had its page's index while merged (ksm-scan S20)."""
    if m.state[0].forget_age:
        m.pte[v].item &= ~(CHECKSUM | REWRITTEN)
        m.pte[v].age = m.pte[v].skips = 0


@compiled
def detach(m, v):
    """Let an item belong to no stable node; the node's list is the caller's."""
    mm = vm_mm(m, v)
    m.pte[v].item &= ~STABLE
    forget(m, v)
    m.mm[mm].merging_pages -= 1
    m.stat[0].proc_ksm_merging_pages -= 1 - m.mm[mm].exited


@compiled
def remove_node_from_stable_tree(m, node):
    """Remove a node. Its items stay, in no tree (ksm-merge T2)."""
    v = m.node[node].first
    set_rmap_hlist_len(m, node, 0)
    while v >= 0:
        following = m.page[v].left
        emit(m, Decision.REMOVE_RMAP_ITEM if following >= 0 else Decision.LEAVE_SHARED, v, 1, -1, 0)
        detach(m, v)
        v = following
    emit(m, Decision.REMOVE_KSM_PAGE, -1, 1, -1, m.node[node].key)
    _unlink(m, node)
    frame = m.node[node].frame
    if m.frame[frame].node == node:
        m.frame[frame].node = -1
    else:
        m.state[0].stale_nodes -= 1
    free_stable_node(m, node)


@compiled
def remove_stable_node(m, node):
    """Remove a node unless its page is still mapped. Return whether it is gone."""
    if not ksm_get_folio(m, node):
        return True
    if m.frame[m.node[node].frame].mapcount > 0:
        return False
    remove_node_from_stable_tree(m, node)
    return True


@entry
def remove_all_stable_nodes(m):
    """Remove the stable nodes, in each tree from the root on, up to one whose page is still mapped (ksm-merge R2, R4).

    Return whether all of them are gone.
    """
    done = True
    for nid in range(len(m.tree)):
        while m.tree[nid].stable >= 0:
            n = m.tree[nid].stable
            if m.node[n].kind == CHAIN:
                while m.node[n].first >= 0 and remove_stable_node(m, m.node[n].first):
                    pass
                if m.node[n].first < 0:
                    _free_chain(m, n)
                    continue
            elif remove_stable_node(m, n):
                continue
            done = False
            break
    following = m.node[0].first
    while following >= 0:
        following, n = m.node[following].left, following
        done = remove_stable_node(m, n) and done
    return done


# --- tree slots and chains ------------------------------------------------------------------------------------------


@compiled
def _link(m, node, nid, parent, left):
    m.node[node].kind = NODE
    m.node[node].nid = nid
    m.tree[nid].stable = rb_insert(m.node, m.tree[nid].stable, node, parent, left)


@compiled
def _erase(m, n):
    """Remove a node or a chain from its tree."""
    nid = m.node[n].nid
    m.tree[nid].stable = rb_erase(m.node, m.tree[nid].stable, n)


@compiled
def _replace(m, old, new, kind):
    """Put `new`, as a node of that kind, in the tree slot of `old`."""
    nid = m.node[old].nid
    m.node[new].nid, m.node[new].kind = nid, kind
    m.tree[nid].stable = rb_replace_node(m.node, m.tree[nid].stable, old, new)


@compiled
def _unlink(m, node):
    """Remove a node from its chain, its tree or the side list."""
    if m.node[node].kind == DUP:
        stable_node_dup_del(m, node)
        m.stat[0].stable_node_dups -= 1
        emit(m, Decision.DUP_REMOVED, -1, 1, -1, m.node[node].key)
    elif m.node[node].kind == MIGRATED:
        hlist_del(m, m.node, node, 0)
    else:
        _erase(m, node)


@compiled
def stable_node_chain_add_dup(m, dup, chain):
    """Put a dup at the head of a chain (ksm-merge T5)."""
    m.node[dup].kind = DUP
    m.node[dup].chain = chain
    _hlist_add_head(m, m.node, dup, chain)
    m.node[chain].dups += 1
    m.node[chain].len += int(is_page_sharing_candidate(m, dup, 0))
    m.node[chain].quiet = 0


@compiled
def stable_node_dup_del(m, dup):
    """Remove a dup from its chain."""
    chain = m.node[dup].chain
    hlist_del(m, m.node, dup, chain)
    m.node[chain].dups -= 1
    m.node[chain].len -= int(is_page_sharing_candidate(m, dup, 0))
    m.node[chain].quiet = 0


@compiled
def _free_chain(m, chain):
    """Free a chain without dups and its tree slot."""
    _erase(m, chain)
    m.stat[0].stable_node_chains -= 1
    emit(m, Decision.CHAIN_GONE, -1, 1, -1, m.node[chain].key)
    free_stable_node(m, chain)


@compiled
def stable_node_dup(m, chain, prune):
    """Choose a dup of the chain and remove stale ones (ksm-merge T6). Return -1 if the chain was empty and is gone.

    A node that is no chain stands for itself.
    If the chosen dup is the only one, the chain dissolves into it, even if the dup is full. With `prune`, the walk is a
    full one once `stable_node_chains_prune_millisecs` have passed since the last.
    """
    s = m.state[0]
    if m.node[chain].kind != CHAIN:
        return chain if ksm_get_folio(m, chain) else -1
    prune = prune and m.node[chain].prune_jiffies <= s.prune_before
    if prune:
        m.node[chain].prune_jiffies = s.jiffies
    found, dup, dups, walked = -1, m.node[chain].first, m.node[chain].dups, 0
    if not prune and s.stale_nodes == 0 and m.node[chain].len == 0 and dups > 1:
        m.steps[DUP_WALK] += dups
        return dup  # the result of the walk, when there is nothing to remove and no dup with room
    while dup >= 0:
        walked += 1
        following = m.node[dup].left
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
    m.steps[DUP_WALK] += walked
    if found < 0:
        _free_chain(m, chain)
    elif m.node[chain].first == found and m.node[found].left < 0:
        _replace(m, chain, found, NODE)
        m.stat[0].stable_node_chains -= 1
        m.stat[0].stable_node_dups -= 1
        emit(m, Decision.CHAIN_DISSOLVED, -1, 1, -1, m.node[found].key)
        free_stable_node(m, chain)
    else:
        if m.node[chain].first != found and is_page_sharing_candidate(m, found, 1):
            stable_node_dup_del(m, found)
            stable_node_chain_add_dup(m, found, chain)
        first = m.node[chain].first == found
        again = 1 if first and m.node[chain].len > 0 else walked - (dups - m.node[chain].dups)
        m.node[chain].quiet = 0 if prune and not first else again  # a full walk prefers other dups
    return found


@compiled
def _add_dup(m, node, n):
    """Put a node beside tree slot n, which becomes a chain if it is not one (ksm-merge T5)."""
    if m.node[n].kind != CHAIN:
        chain = alloc_stable_node(m, m.node[n].key)
        m.node[chain].prune_jiffies = m.state[0].jiffies
        _replace(m, n, chain, CHAIN)
        m.stat[0].stable_node_chains += 1
        stable_node_chain_add_dup(m, n, chain)
        m.stat[0].stable_node_dups += 1
        emit(m, Decision.CHAIN_MADE, -1, 1, -1, m.node[n].key)
        n = chain
    m.node[node].nid = m.node[n].nid
    stable_node_chain_add_dup(m, node, n)
    m.stat[0].stable_node_dups += 1
    emit(m, Decision.DUP_ADDED, -1, 1, -1, m.node[n].key)


# --- NUMA nodes -----------------------------------------------------------------------------------------------------


@compiled
def node_is_aside(m, node, frame):
    """Return whether the node is on the side list of migrated nodes (ksm-merge M1).

    It goes there when its page is found on another NUMA node than the tree that holds it.
    """
    if m.node[node].kind != MIGRATED and page_nid(m, frame) != m.node[node].nid:
        _unlink(m, node)
        _put_aside(m, node)
    return m.node[node].kind == MIGRATED


@compiled
def _put_aside(m, node):
    """Put a node at the head of the side list of migrated nodes (ksm-merge M1)."""
    emit(m, Decision.NODE_ASIDE, -1, 1, -1, m.node[node].key)
    m.node[node].kind = MIGRATED
    _hlist_add_head(m, m.node, node, 0)


@compiled
def _replace_migrated(m, n, dup, own):
    """Put a match in slot n, whose page has migrated to another NUMA node, aside; `own`, if any, takes its place.

    Return the KSM page to merge with, as `stable_tree_search` does. `own` is the searching page's node.
    """
    if own >= 0:
        _unlink(m, own)
    if own >= 0 and m.node[n].kind == NODE:
        _replace(m, dup, own, NODE)
    else:
        _unlink(m, dup)
        if own >= 0:
            _add_dup(m, own, n)
    _put_aside(m, dup)
    return m.node[own].frame if own >= 0 and is_page_sharing_candidate(m, own, 0) else -1


# --- searches -------------------------------------------------------------------------------------------------------


@inlined
def _passes(m, n, key):
    """Return whether a search goes past slot n and changes nothing there: other content, no need to walk a chain."""
    node = m.node[n]
    quiet = node.kind != CHAIN or (node.quiet > 0 and node.prune_jiffies > m.state[0].prune_before)
    passes = quiet and key != node.key and m.state[0].stale_nodes == 0
    if passes and node.kind == CHAIN:
        m.steps[DUP_WALK] += node.quiet  # the kernel walks them each time
    return passes


@inlined
def _descend(m, nid, key, prune):
    """Descend a tree to a content, and start again from the root after a stale node (ksm-merge T4).

    Return the slot and its dup (-1: not found), and the parent and side where a new node would be linked.
    """
    n, dup, parent, left = m.tree[nid].stable, -1, -1, False
    while n >= 0:
        m.steps[STABLE_LEVEL] += 1
        if not _passes(m, n, key):
            dup = stable_node_dup(m, n, prune)
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
    return n, dup, parent, left


@compiled
def stable_tree_search(m, v, key, frame):
    """Return the KSM page that a page may merge with, or -1 (ksm-merge T4). Contents compare as their keys do (M13).

    A KSM page with a node finds itself. One whose node is on the side list, because the page has migrated, looks for
    the node's place in the tree of its NUMA node.
    """
    own = m.frame[frame].node
    if own >= 0 and m.node[own].kind != MIGRATED:
        return frame
    nid = page_nid(m, frame)
    n, dup, parent, left = _descend(m, nid, key, True)
    if n >= 0 and (own < 0 or m.frame[frame].mapcount <= 1):
        if not is_page_sharing_candidate(m, dup, 0):
            emit(m, Decision.SEARCH_FULL, v, 1, m.node[dup].first, 0)
            return -1
        if page_nid(m, m.node[dup].frame) == m.node[dup].nid:
            return m.node[dup].frame
        return _replace_migrated(m, n, dup, own)
    if own < 0:
        return -1
    _unlink(m, own)
    if n >= 0:
        _add_dup(m, own, n)
    else:
        _link(m, own, nid, parent, left)
    return frame if is_page_sharing_candidate(m, own, 0) else -1


@compiled
def stable_tree_insert(m, key, frame):
    """Insert and return a node for a new KSM page. Beside equal content it becomes a dup of a chain (ksm-merge T5)."""
    nid = page_nid(m, frame)
    n, _, parent, left = _descend(m, nid, key, False)
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
    emit(m, Decision.ATTACH_SHARED if first < 0 else Decision.ATTACH_SHARING, v, 1, first, 0)
    _hlist_add_head(m, m.page, v, node)
    m.page[v].parent = node
    m.pte[v].item |= STABLE
    set_rmap_hlist_len(m, node, m.node[node].len + 1)
    m.mm[vm_mm(m, v)].merging_pages += 1
    m.stat[0].proc_ksm_merging_pages += 1
    m.steps[MERGE] += 1
