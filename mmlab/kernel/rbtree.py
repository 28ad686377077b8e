"""Red-black trees as the kernel shapes them (lib/rbtree.c; ksm-merge U1).

A tree is a structured array `t` with the fields left, right and parent, and the index of its root. As in the kernel,
parent also carries the colour: parent * 2 + red. Functions that change a tree return its root. The shape must be the
kernel's, because it decides which searches meet a dead node (ksm-merge D4).
"""

from mmlab.kernel.jit import compiled


@compiled
def _parent(t, n):
    return t[n].parent >> 1


@compiled
def _is_red(t, n):
    return n >= 0 and t[n].parent & 1


@compiled
def _set_parent(t, n, parent):
    t[n].parent = parent * 2 | t[n].parent & 1


@compiled
def _set_red(t, n, red):
    t[n].parent = t[n].parent & -2 | red


@compiled
def _replace_child(t, root, parent, old, new):
    """Let the link from `parent` to `old`, or the root if there is no parent, lead to `new`. Return the root."""
    if parent < 0:
        return new
    if t[parent].left == old:
        t[parent].left = new
    else:
        t[parent].right = new
    return root


@compiled
def _rotate(t, root, x, left):
    """Rotate x down to the left or right: its other child takes its place, and colours stay with their nodes."""
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
        _set_parent(t, inner, x)
    parent = _parent(t, x)
    _set_parent(t, x, y)
    _set_parent(t, y, parent)
    return _replace_child(t, root, parent, x, y)


@compiled
def rb_insert(t, root, n, parent, left):
    """Link n below `parent` (-1: the tree is empty) and rebalance (ksm-merge U1)."""
    t[n].left = -1
    t[n].right = -1
    t[n].parent = parent * 2 | 1
    if parent < 0:
        root = n
    elif left:
        t[parent].left = n
    else:
        t[parent].right = n
    while _is_red(t, parent):
        grand = _parent(t, parent)
        on_left = t[grand].left == parent
        uncle = t[grand].right if on_left else t[grand].left
        if _is_red(t, uncle):
            _set_red(t, parent, 0)
            _set_red(t, uncle, 0)
            _set_red(t, grand, 1)
            n = grand
            parent = _parent(t, n)
            continue
        if n == (t[parent].right if on_left else t[parent].left):
            root = _rotate(t, root, parent, on_left)
            parent = n
        _set_red(t, parent, 0)
        _set_red(t, grand, 1)
        root = _rotate(t, root, grand, not on_left)
        break
    _set_red(t, root, 0)
    return root


@compiled
def rb_replace_node(t, root, old, new):
    """Put `new` in the place of `old`, which leaves the tree."""
    t[new].left = t[old].left
    t[new].right = t[old].right
    t[new].parent = t[old].parent
    if t[new].left >= 0:
        _set_parent(t, t[new].left, new)
    if t[new].right >= 0:
        _set_parent(t, t[new].right, new)
    return _replace_child(t, root, _parent(t, new), old, new)


@compiled
def rb_erase(t, root, n):
    """Remove n. A node with two children gives its place and colour to its in-order successor (ksm-merge U1)."""
    heir = n
    if t[n].left >= 0 and t[n].right >= 0:
        heir = t[n].right
        while t[heir].left >= 0:
            heir = t[heir].left
    black = not _is_red(t, heir)
    x, parent = t[heir].left if t[heir].left >= 0 else t[heir].right, _parent(t, heir)  # x moves up
    root = _replace_child(t, root, parent, heir, x)
    if x >= 0:
        _set_parent(t, x, parent)
    while black and parent >= 0 and not _is_red(t, x):  # paths through x lack one black node
        on_left = t[parent].left == x
        sibling = t[parent].right if on_left else t[parent].left
        if _is_red(t, sibling):
            _set_red(t, sibling, 0)
            _set_red(t, parent, 1)
            root = _rotate(t, root, parent, on_left)
            sibling = t[parent].right if on_left else t[parent].left
        near = t[sibling].left if on_left else t[sibling].right
        far = t[sibling].right if on_left else t[sibling].left
        if not _is_red(t, near) and not _is_red(t, far):
            _set_red(t, sibling, 1)
            x = parent
            parent = _parent(t, x)
            continue
        if not _is_red(t, far):
            _set_red(t, near, 0)
            _set_red(t, sibling, 1)
            root = _rotate(t, root, sibling, not on_left)
            sibling, far = near, sibling
        _set_red(t, sibling, _is_red(t, parent))
        _set_red(t, parent, 0)
        _set_red(t, far, 0)
        root = _rotate(t, root, parent, on_left)
        x = root
        break
    if black and x >= 0:
        _set_red(t, x, 0)
    return root if heir == n else rb_replace_node(t, root, n, heir)
