"""rmap_items: what ksmd remembers of an address, and smart scan, which skips old ones (mm/ksm.c; ksm-scan 1.4, 1.5)."""

import numpy as np

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.folio import vm_mm
from mmlab.kernel.jit import compiled, inlined, words
from mmlab.kernel.stable_tree import detach, hlist_del, ksm_get_folio, set_rmap_hlist_len
from mmlab.kernel.state import *
from mmlab.kernel.unstable_tree import unstable_tree_erase


@compiled
def alloc_rmap_item(m, v):
    """Create an item for an address, with age 0 and no checksum, whatever it had before (ksm-scan S20, S23)."""
    m.pte[v].item = ITEM
    m.pte[v].age = m.pte[v].skips = 0
    m.mm[vm_mm(m, v)].rmap_items += 1
    m.stat[0].rmap_items += 1
    m.stat[0].proc_ksm_rmap_items += 1


@compiled
def remove_rmap_item_from_tree(m, v):
    """Remove an item from the tree that it is in, if any (ksm-merge 2.9; ksm-scan S19, S22)."""
    item = m.pte[v].item
    if item & STABLE:
        node = m.page[v].parent
        if not ksm_get_folio(m, node):
            return
        hlist_del(m, m.page, v, node)
        first = m.node[node].first
        emit(m, Decision.LEAVE_SHARED if first < 0 else Decision.LEAVE_SHARING, v, 1, first, 0)
        set_rmap_hlist_len(m, node, m.node[node].len - 1)
        detach(m, v)
    elif item & UNSTABLE:
        if m.pte[v].seq == m.stat[0].full_scans & 255:  # inserted by this full scan, so really in the tree
            unstable_tree_erase(m, v)
        m.stat[0].pages_unshared -= 1
        m.pte[v].item &= ~UNSTABLE


@compiled
def free_rmap_item(m, v):
    """Free an item (ksm-scan S21)."""
    mm = vm_mm(m, v)
    remove_rmap_item_from_tree(m, v)
    emit(m, Decision.ITEM_FREED, v, 1, -1, 0)
    m.pte[v].item = 0
    m.mm[mm].rmap_items -= 1
    m.stat[0].rmap_items -= 1
    m.stat[0].proc_ksm_rmap_items -= 1 - m.mm[mm].exited


# --- smart scan -----------------------------------------------------------------------------------------------------


@compiled
def skip_age(age):
    """Return the number of full scans to skip at an age: 1, doubled above 3, above 5 and above 8 (ksm-scan S25)."""
    return 1 << (age > 3) + (age > 5) + (age > 8)


@inlined
def should_skip_rmap_item(m, v):
    """Return whether smart scan skips the page (ksm-scan S25).

    An item keeps its age as long as it exists or, depending on the release, until it leaves the stable tree (S28).
    """
    if not (m.state[0].smart_scan and m.state[0].smart_scan_exists) or m.pte[v].bits & KSM_PAGE:
        return False
    if m.pte[v].item & STABLE and m.state[0].forget_age:
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
    """Return fields of a `pte_t` as `words` reads them."""
    names = list(pte_t.names or ())
    return np.uint64(sum(value << 8 * names.index(name) for name, value in values.items()))


_AGE, _SKIPS = _word(age=1), _word(skips=1)
_ALL_AGES, _ALL_SKIPS = _word(age=255), _word(skips=255)
_LOOKED_AT = _word(kind=255, bits=KSM_PAGE, vm=VM_MERGEABLE, item=ITEM | STABLE | UNSTABLE)
_SKIPPABLE = _word(kind=ANON, vm=VM_MERGEABLE, item=ITEM)


@inlined
def skip_on(m, at, end):
    """Skip pages as `should_skip_rmap_item` does, and return the first that is not skipped or still in a tree.

    With smart scan most pages are skipped, 8 of 9 in the long run, so all fields of an entry are tested at once.
    """
    while at < end:
        word = words(m.pte)[at]
        age = word & _ALL_AGES
        if word & _LOOKED_AT != _SKIPPABLE or age < _AGE * 3 or word & _ALL_SKIPS == 0:
            break
        words(m.pte)[at] = word - _SKIPS + (_AGE if age != _ALL_AGES else np.uint64(0))
        at += 1
    return at
