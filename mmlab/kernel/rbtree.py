"""Red-black trees as the kernel shapes them (lib/rbtree.c; ksm-merge U1).

A tree is a structured array `t` with the fields left, right, parent and red, and the index of its root. Every function
returns the root. The shape matters: which searches meet a dead node depends on it (ksm-merge D4).
"""

from mmlab.kernel.state import compiled

__all__ = ["rb_erase", "rb_insert", "rb_replace_node"]


@compiled
def _rotate(t, root, x, left):
    """Rotate x down to the left (or right): its other child takes its place."""
    p = t[x].parent
    if left:
        y = t[x].right
        inner = t[y].left
        t[x].right = inner
        t[y].left = x
    else:
        y = t[x].left
        inner = t[y].right
        t[x].left = inner
        t[y].right = x
    if inner >= 0:
        t[inner].parent = x
    t[x].parent = y
    t[y].parent = p
    if p < 0:
        return y
    if t[p].left == x:
        t[p].left = y
    else:
        t[p].right = y
    return root


@compiled
def rb_insert(t, root, n, parent, left):
    """Hang n below `parent` (-1: the tree is empty) and rebalance."""
    t[n].left = -1
    t[n].right = -1
    t[n].parent = parent
    if parent < 0:
        t[n].red = 0
        return n
    t[n].red = 1
    if left:
        t[parent].left = n
    else:
        t[parent].right = n
    while parent >= 0 and t[parent].red:
        grand = t[parent].parent
        on_left = t[grand].left == parent
        uncle = t[grand].right if on_left else t[grand].left
        if uncle >= 0 and t[uncle].red:
            t[parent].red = 0
            t[uncle].red = 0
            t[grand].red = 1
            n = grand
            parent = t[n].parent
            continue
        if n == (t[parent].right if on_left else t[parent].left):
            root = _rotate(t, root, parent, on_left)
            parent = n
        t[parent].red = 0
        t[grand].red = 1
        root = _rotate(t, root, grand, not on_left)
        break
    t[root].red = 0
    return root


@compiled
def rb_replace_node(t, root, old, new):
    """Put `new` where `old` is."""
    parent, left, right = t[old].parent, t[old].left, t[old].right
    t[new].parent = parent
    t[new].left = left
    t[new].right = right
    t[new].red = t[old].red
    if left >= 0:
        t[left].parent = new
    if right >= 0:
        t[right].parent = new
    if parent < 0:
        return new
    if t[parent].left == old:
        t[parent].left = new
    else:
        t[parent].right = new
    return root


@compiled
def rb_erase(t, root, n):
    """Take n out; a node with two children gives its place to its in-order successor."""
    if t[n].left >= 0 and t[n].right >= 0:
        successor = t[n].right
        while t[successor].left >= 0:
            successor = t[successor].left
        # the successor leaves its own place first, then takes over the place and colour of n
        hole_child = t[successor].right
        hole_parent = t[successor].parent
        black = not t[successor].red
        if hole_parent == n:
            hole_parent = successor
        else:
            t[hole_parent].left = hole_child
            if hole_child >= 0:
                t[hole_child].parent = hole_parent
            t[successor].right = t[n].right
            t[t[n].right].parent = successor
        t[successor].left = t[n].left
        t[t[n].left].parent = successor
        t[successor].red = t[n].red
        parent = t[n].parent
        t[successor].parent = parent
        if parent < 0:
            root = successor
        elif t[parent].left == n:
            t[parent].left = successor
        else:
            t[parent].right = successor
    else:
        hole_child = t[n].left if t[n].left >= 0 else t[n].right
        hole_parent = t[n].parent
        black = not t[n].red
        if hole_child >= 0:
            t[hole_child].parent = hole_parent
        if hole_parent < 0:
            root = hole_child
        elif t[hole_parent].left == n:
            t[hole_parent].left = hole_child
        else:
            t[hole_parent].right = hole_child
    if not black:
        return root
    x, parent = hole_child, hole_parent  # x lacks one black
    while parent >= 0 and (x < 0 or not t[x].red):
        on_left = t[parent].left == x
        sibling = t[parent].right if on_left else t[parent].left
        if t[sibling].red:
            t[sibling].red = 0
            t[parent].red = 1
            root = _rotate(t, root, parent, on_left)
            sibling = t[parent].right if on_left else t[parent].left
        near = t[sibling].left if on_left else t[sibling].right
        far = t[sibling].right if on_left else t[sibling].left
        if (near < 0 or not t[near].red) and (far < 0 or not t[far].red):
            t[sibling].red = 1
            x = parent
            parent = t[x].parent
            continue
        if far < 0 or not t[far].red:
            t[near].red = 0
            t[sibling].red = 1
            root = _rotate(t, root, sibling, not on_left)
            far = sibling
            sibling = near
        t[sibling].red = t[parent].red
        t[parent].red = 0
        t[far].red = 0
        root = _rotate(t, root, parent, on_left)
        x = root
        break
    if x >= 0:
        t[x].red = 0
    return root
