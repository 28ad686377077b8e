"""Red-black trees: their shape is that of the reference model's, node by node."""

from __future__ import annotations

import random
from typing import Any

import pytest

import reference
from mmlab.kernel.jit import entry
from mmlab.kernel.rbtree import rb_erase, rb_insert, rb_replace_node
from mmlab.kernel.state import machine

# As parts of a machine, whose type changes with any source file of the kernel: numba's cache on disk stays true.


@entry
def insert(m, root, n, parent, left):
    return rb_insert(m.node, root, n, parent, left)


@entry
def erase(m, root, n):
    return rb_erase(m.node, root, n)


@entry
def exchange(m, root, old, new):
    return rb_replace_node(m.node, root, old, new)


class Node:
    """One of the reference tree; `n` is its index in the array, `key` its place in the order."""

    def __init__(self, n: int, key: int) -> None:
        self.n, self.key = n, key
        self.left: Node | None = None
        self.right: Node | None = None
        self.up: Node | None = None
        self.red = False


class Pair:
    """The same tree twice: in the array and in the reference model."""

    def __init__(self, size: int) -> None:
        self.m = machine(2 * size, 1, 2)
        self.t = self.m.node
        self.t["left"] = self.t["right"] = self.t["parent"] = -7  # new nodes are not clean
        self.root = -1
        self.tree = reference.RbTree()

    def insert(self, n: int, key: int) -> None:
        parent, at, left = None, self.tree.root, False
        while at is not None:
            parent, left = at, key < at.key
            at = at.left if left else at.right
        self.tree.insert(Node(n, key), parent, left)
        self.root = insert(self.m, self.root, n, parent.n if parent else -1, left)

    def erase(self, node: Node) -> None:
        self.tree.erase(node)
        self.root = erase(self.m, self.root, node.n)

    def exchange(self, node: Node, n: int) -> None:
        self.tree.replace(node, Node(n, node.key))
        self.root = exchange(self.m, self.root, node.n, n)

    def nodes(self) -> list[Node]:
        top = self.tree.root
        return [top, *reference.subtree(top)] if top else []

    def check(self) -> None:
        """The array's tree is a red-black tree, and it has the reference's shape."""
        keys = {node.n: node.key for node in self.nodes()}
        order: list[int] = []

        def black_height(n: int, parent: int, red_parent: bool) -> int:
            if n < 0:
                return 1
            link = int(self.t["parent"][n])
            red = bool(link & 1)
            assert link >> 1 == parent
            assert not (red and red_parent), "a red node has a red child"
            left = black_height(int(self.t["left"][n]), n, red)
            order.append(keys[n])
            right = black_height(int(self.t["right"][n]), n, red)
            assert left == right, "black heights differ"
            return left + (not red)

        assert self.root < 0 or not self.t["parent"][self.root] & 1, "the root is red"
        black_height(self.root, -1, False)
        assert order == sorted(keys.values())

        def same(n: int, node: Node | None) -> None:
            assert n == (node.n if node else -1)
            if node:
                assert bool(self.t["parent"][n] & 1) == node.red
                same(int(self.t["left"][n]), node.left)
                same(int(self.t["right"][n]), node.right)

        same(self.root, self.tree.root)


@pytest.mark.parametrize("seed", range(6))
def test_rbtree_has_the_reference_shape(seed: int) -> None:
    rng, size = random.Random(seed), (3, 8, 20, 60, 60, 200)[seed]
    pair = Pair(size + 1)
    free = list(range(size))
    for _ in range(600):
        alive = pair.nodes()
        if free and (not alive or rng.random() < 0.55):
            pair.insert(free.pop(rng.randrange(len(free))), rng.getrandbits(60))
        elif rng.random() < 0.15:
            node, new = rng.choice(alive), size if size not in [a.n for a in alive] else free.pop() if free else -1
            if new >= 0:
                pair.exchange(node, new)
                free += [node.n] if node.n < size else []
        else:
            node = rng.choice(alive)
            pair.erase(node)
            free += [node.n] if node.n < size else []
        pair.check()
    for node in sorted(pair.nodes(), key=lambda node: node.key):  # from the left, as dead zero nodes go
        pair.erase(node)
        pair.check()
    assert pair.root == -1


@pytest.mark.parametrize("keys", [range(100), range(100, 0, -1), [k * 37 % 101 for k in range(100)]])
def test_rbtree_of_sorted_keys(keys: Any) -> None:
    pair = Pair(100)
    for n, key in enumerate(keys):
        pair.insert(n, key)
        pair.check()
