"""Doubly linked lists (include/linux/list.h), by the fields next and prev of a table whose record 0 is the head."""

from mmlab.kernel.jit import compiled


@compiled
def list_add_tail(linked, n, head):
    """Insert n before `head`, which need not be record 0."""
    before = linked[head].prev
    linked[n].prev = before
    linked[n].next = head
    linked[before].next = n
    linked[head].prev = n


@compiled
def list_del(linked, n):
    """Remove n from its list; its own links stay."""
    before, after = linked[n].prev, linked[n].next
    linked[before].next = after
    linked[after].prev = before


@compiled
def list_move_tail(linked, n):
    """Move n to the end of its list."""
    list_del(linked, n)
    list_add_tail(linked, n, 0)
