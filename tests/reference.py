"""A slow, obvious model of KSM and transparent huge pages: the yardstick of the fast one.

Every physical page, page-table entry, area, rmap_item and tree node is an object of its own, and every rule is written
where it acts, under its name in the specification (``ksm-merge M5d``).  Nothing here is clever, and only the table of
releases is shared with the fast model: what both say is right for two independent reasons.

`predict` runs the scenario of a trace and returns a trace in the same format.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Iterator

import numpy

from mmlab.kernel.versions import flags

ESRCH, EAGAIN, ENOMEM, EFAULT, EBUSY, EINVAL, EHWPOISON = 3, 11, 12, 14, 16, 22, 133

# What an entry of a page table can hold beside a `Pte` and a `Slot` (README, "PTE states").
ZP_CLEAN, ZP_KSM, POISON = "ZP_CLEAN", "ZP_KSM", "POISON"
# What a block of a page directory can hold beside a huge-mapped `Folio` and None (thp-split H10).
TABLE, HUGE_ZP = "TABLE", "HUGE_ZP"
# The merge target of ksm-merge M3.
ZEROPAGE = "ZEROPAGE"
# Who asks for a split (fix-variants 5.1), and what becomes of a collapse, in the order of their numbers in decisions.
CALLERS = ("ksm", "underused", "partially_mapped", "other")
STATUS = (
    "nothing to collapse",
    "collapsed",
    "huge",
    "no page table",
    "large already",
    "too many none",
    "too many swap",
    "too many shared",
    "lazy",
    "not writable",
    "not referenced",
    "pinned",
    "not on LRU",
    "locked",
)


def status(result: str) -> int:
    return 0 if result == "poisoned" else STATUS.index(result)


BATCH = 31  # pages in a CPU's batch: of mlock work (ksm-merge M15), on their way to the LRU (khugepaged K10)
ITEM_BYTES, PAGE_BYTES = 64, 4096  # ksm-merge C2

FIELDS = """batch pages_scanned full_scans pages_shared pages_sharing pages_unshared pages_volatile pages_skipped
    ksm_zero_pages stable_node_chains stable_node_dups general_profit
    rss_kb anonymous_kb anonhugepages_kb ksm_kb swap_kb
    proc_ksm_rmap_items proc_ksm_zero_pages proc_ksm_merging_pages proc_ksm_process_profit thp_split_page
    thp_split_page_failed thp_split_pmd thp_underused_split_page thp_deferred_split_page thp_fault_alloc
    thp_collapse_alloc ksm_swpin_copy cow_ksm pswpout pswpin deferred_queue_len""".split()
MTHP_ORDERS = range(2, 10)
MTHP_NAMES = """split split_failed split_deferred nr_anon nr_anon_partially_mapped anon_fault_alloc collapse_alloc
    collapse_exceed_none_pte collapse_exceed_swap_pte collapse_exceed_shared_pte""".split()

KNOBS = {
    "use_zero_pages": 0,
    "pages_to_scan": 100,
    "smart_scan": 1,
    "max_page_sharing": 256,
    "shrink_underused": 1,
    "max_ptes_none": 511,
    "max_ptes_swap": 64,
    "max_ptes_shared": 256,
    "advisor_mode": "none",
    "advisor_max_cpu": 70,
    "advisor_min_pages_to_scan": 500,
    "advisor_max_pages_to_scan": 30000,
    "advisor_target_scan_time": 200,
    "khugepaged": 0,
    "khugepaged_pages_to_scan": 4096,
    "khugepaged_scan_sleep_millisecs": 10000,
    "stable_node_chains_prune_millisecs": 2000,
    "merge_across_nodes": 1,
    "swap_mib": 0,
    "sleep_millisecs": 0,
}


@dataclasses.dataclass(frozen=True)
class Remap:
    """What a variant is asked, for one mapping of a zero page, once the base condition C holds (fix-variants 5.1)."""

    caller: str  # "ksm", "underused", "partially_mapped" (both: the shrinker) or "other"
    merging: bool  # KSMON and M
    gate: bool  # shrink_underused


VARIANTS: dict[str, Callable[[Remap], bool]] = {
    "legacy": lambda _: False,
    "mainline": lambda _: True,
    "rfc-underused-only": lambda r: r.caller in ("underused", "partially_mapped"),
    "rfc-underused-strict": lambda r: r.caller == "underused",
    "ksm-opt-out": lambda r: r.caller != "ksm",
    "v1-mergeable": lambda r: not r.merging,
    "v1-shrinker-gate": lambda r: r.gate,
    "v1-series": lambda r: r.gate and not r.merging,
    "skip-zeropage": lambda _: True,
}
KSMD_VARIANTS = ("zero-only", "no-split")


# How an event picks units of its range, and what it does without (trace-format, Events).
STRIDE = {"every_nth": 1, "share": 1, "granularity": "4K"}


# ---------------------------------------------------------------------------------------------- red-black tree


class RbNode:
    """What a red-black tree needs to know of its members."""

    __slots__ = ("left", "red", "right", "up")

    def __init__(self) -> None:
        self.left = self.right = self.up = None
        self.red = False


class RbTree:
    """A textbook red-black tree, searched by its user (ksm-merge U1)."""

    def __init__(self) -> None:
        self.root = None

    def _put(self, old, new) -> None:
        """Hang `new` where `old` hangs."""
        if old.up is None:
            self.root = new
        elif old.up.left is old:
            old.up.left = new
        else:
            old.up.right = new
        if new is not None:
            new.up = old.up

    def _rotate(self, node, left: bool) -> None:
        """Rotate `node` down to the left (or to the right); its other child takes its place."""
        child = node.right if left else node.left
        self._put(node, child)
        inner = child.left if left else child.right
        if left:
            node.right, child.left = inner, node
        else:
            node.left, child.right = inner, node
        if inner is not None:
            inner.up = node
        node.up = child

    def insert(self, node, parent, left: bool) -> None:
        """Link `node` as the left (or right) child of `parent`, None for an empty tree, and rebalance."""
        node.left = node.right = None
        node.up, node.red = parent, True
        if parent is None:
            self.root = node
        elif left:
            parent.left = node
        else:
            parent.right = node
        while node.up is not None and node.up.red:
            parent, grand = node.up, node.up.up
            on_left = parent is grand.left
            uncle = grand.right if on_left else grand.left
            if uncle is not None and uncle.red:
                parent.red = uncle.red = False
                grand.red = True
                node = grand
                continue
            if node is (parent.right if on_left else parent.left):
                self._rotate(parent, left=on_left)
                node, parent = parent, node
            parent.red, grand.red = False, True
            self._rotate(grand, left=not on_left)
        self.root.red = False

    def erase(self, node) -> None:
        """Unlink `node`; one with two children is replaced by its in-order successor (ksm-merge U1)."""
        if node.left is None or node.right is None:
            child, parent, was_red = node.left or node.right, node.up, node.red
            self._put(node, child)
        else:
            heir = node.right
            while heir.left is not None:
                heir = heir.left
            child, was_red = heir.right, heir.red
            if heir is node.right:
                parent = heir
            else:
                parent = heir.up
                self._put(heir, child)
                heir.right = node.right
                heir.right.up = heir
            self._put(node, heir)
            heir.left = node.left
            heir.left.up = heir
            heir.red = node.red
        if not was_red:
            self._repair(child, parent)

    def _repair(self, node, parent) -> None:
        """The path through `node`, a child of `parent`, lacks one black node."""
        while parent is not None and (node is None or not node.red):
            on_left = parent.left is node
            sibling = parent.right if on_left else parent.left
            if sibling.red:
                sibling.red, parent.red = False, True
                self._rotate(parent, left=on_left)
                sibling = parent.right if on_left else parent.left
            near, far = (sibling.left, sibling.right) if on_left else (sibling.right, sibling.left)
            if not (near is not None and near.red) and not (far is not None and far.red):
                sibling.red = True
                node, parent = parent, parent.up
                continue
            if far is None or not far.red:
                near.red, sibling.red = False, True
                self._rotate(sibling, left=not on_left)
                sibling, far = near, sibling
            sibling.red, parent.red, far.red = parent.red, False, False
            self._rotate(parent, left=on_left)
            return
        if node is not None:
            node.red = False

    def replace(self, old, new) -> None:
        """Put `new` exactly where `old` is."""
        new.left, new.right, new.red = old.left, old.right, old.red
        self._put(old, new)
        for child in (new.left, new.right):
            if child is not None:
                child.up = new


def subtree(node) -> Iterator:
    """All nodes below `node`, without itself."""
    stack = [node.left, node.right]
    while stack:
        node = stack.pop()
        if node is not None:
            yield node
            stack += [node.left, node.right]


# ---------------------------------------------------------------------------------------------- memory


class Page:
    """One physical page: 4 KiB whose content is `key`, in memcmp order (trace-format, Keys)."""

    __slots__ = ("exclusive", "folio", "index", "key", "ksm", "locked", "maps", "nid", "node", "poisoned")

    def __init__(self, key: int, folio: Folio, index: int, nid: int) -> None:
        self.key, self.folio, self.index, self.nid = key, folio, index, nid
        self.poisoned = self.locked = False  # locked for good, by the bug of ksm-merge M5d
        self.exclusive = True  # ksm-merge F7
        self.ksm, self.node = False, None  # a KSM page, and its stable node (none: ksm-merge M14)
        self.maps: dict[tuple[Mm, int], Pte] = {}  # every page-table entry that maps it

    @property
    def mapped(self) -> bool:
        return bool(self.maps or self.folio.pmds)

    @property
    def alive(self) -> bool:
        """Not freed yet: mapped or pinned (ksm-merge T1)."""
        return bool(self.maps or self.folio.held or self.folio.pmds)


class Folio:
    """2**order pages allocated as one; `first` is the address of page 0 in every mm that has not moved it (H14)."""

    __slots__ = (
        "dirty",
        "family",
        "first",
        "lazy",
        "mlocks",
        "order",
        "owners",
        "pages",
        "partially_mapped",
        "pins",
        "pmds",
        "ptes",
        "referenced",
        "shared",
        "slot",
    )

    def __init__(self, order: int, first: int, nid: int, page: Page | None = None) -> None:
        self.order, self.first = order, first
        self.pages: list[Page] = [page] if page else [Page(0, self, n, nid) for n in range(1 << order)]
        self.pmds: dict[Mm, Pte] = {}  # the huge PMDs that map it
        self.ptes = 0  # entries that map a page of it
        self.pins = 0  # references beyond the mappings and the swap cache (thp-split H5)
        self.partially_mapped = False  # thp-split Q1
        self.dirty = False  # the page's own mark, beside those of its entries
        self.lazy = False  # given up by MADV_FREE (thp-split W6)
        self.referenced = False  # used, by another mark than those of its entries (khugepaged K4)
        self.slot: Slot | None = None  # its place in the swap cache (thp-split W7); small folios only
        # of a large folio: how often it was mlocked as a whole (Q3.2); what it knows of who maps it (W5, exact): up to
        # two processes with their number of entries, and the mark of having several owners
        self.mlocks = 0
        self.owners: dict[Mm, int] = {}
        self.shared = False

    def entries_came(self, mm: Mm, count: int) -> None:
        """thp-split W5, exact: a third process is not remembered."""
        self.family = mm.oldest
        if mm in self.owners:
            self.owners[mm] += count
        elif len(self.owners) < 2:
            self.owners[mm] = count
            self.shared |= len(self.owners) == 2 or self.mapcount != count

    def entries_went(self, mm: Mm, count: int, locked: bool) -> None:
        """thp-split W5, exact: asked anew only when a process goes; Q3.2: the first entry in a locked area ends it."""
        self.mlocks = max(0, self.mlocks - locked)
        if mm in self.owners:
            self.owners[mm] -= count
            if self.owners[mm] > 0:
                return
            del self.owners[mm]
        if self.mapcount in (self.owners.values() or [0]):
            self.shared = False

    @property
    def mapcount(self) -> int:
        return len(self.pmds) + self.ptes

    @property
    def held(self) -> bool:
        return bool(self.pins or self.slot)

    @property
    def mapped_once(self) -> bool:
        """By one huge PMD, or by just as many entries as it has pages (thp-split W5)."""
        return not self.ptes if len(self.pmds) == 1 else self.mapcount == len(self.pages)

    def likely_shared(self, exact: int) -> bool:
        """thp-split W5."""
        if self.mapcount <= 1:
            return False
        if self.order and exact:
            return self.shared
        return bool(not self.order or self.pmds or self.ptes > len(self.pages) or len(self.pages[0].maps) > 1)


class Pte:
    """A page-table entry that maps `page`, or a huge PMD that maps the folio of which `page` is the first.

    A writable entry always maps an exclusive page; an exclusive page may have an entry that is not (khugepaged K9).
    """

    __slots__ = ("dirty", "page", "writable", "young")

    def __init__(self, page: Page, dirty: bool, writable: bool, young: bool = True) -> None:
        self.page, self.dirty, self.writable, self.young = page, dirty, writable, young


class Slot:
    """A page on the swap device, held by `users` entries; `folio` is its copy in the swap cache (thp-split W7)."""

    __slots__ = ("folio", "key", "users", "zero")

    def __init__(self, key: int, zero: bool) -> None:
        self.key, self.zero = key, zero  # zero: only noted, not written (W4)
        self.users = 0
        self.folio: Folio | None = None


@dataclasses.dataclass(frozen=True)
class Vma:
    """An area of equal flags, pages [start, end)."""

    start: int
    end: int
    huge: bool | None  # MADV_HUGEPAGE, MADV_NOHUGEPAGE, or neither
    anon_vma: int  # areas join only within one of them (thp-split H10)
    stamp: int  # when it was made or resized last (thp-split Z4)
    mergeable: bool = False
    locked: bool = False
    uffd: bool = False
    writable: bool = True
    moved: int = 0  # by how many pages mremap has moved it (thp-split H14)

    def joins(self, other: Vma) -> bool:
        same = ("huge", "anon_vma", "mergeable", "locked", "uffd", "writable", "moved")
        return self.end == other.start and all(getattr(self, f) == getattr(other, f) for f in same)


class Mm:
    """The address space of a process: its areas, page directory and page tables."""

    def __init__(self, pages: int, pages_per_thp: int, nid: int) -> None:
        self.pages, self.pages_per_thp, self.nid = pages, pages_per_thp, nid
        self.merge_any = False  # PR_SET_MEMORY_MERGE (ksm-scan S12)
        self.forbids_zeropages = False  # a KVM guest on s390 (thp-split Z1.5)
        self.known_to_khugepaged = False  # khugepaged K2
        self.vmas: list[Vma] = []
        self.blocks: list = [None] * -(-pages // pages_per_thp)  # None, TABLE, HUGE_ZP or the Folio of a huge PMD
        self.ptes: dict[int, Pte | Slot | str] = {}
        self.dealt: list[int | None] = []  # contents that are still to be written, by address; None: none
        self.anon = self.huge = self.ksm_mapped = self.ksm_zero = self.swapped = 0  # in pages, huge in PMDs
        self.swapped_exclusive: set[int] = set()  # pages that were exclusive when they were swapped out (W7)
        self.parent: Mm | None = None
        self.number = 0
        self.exiting = False
        # What ksmd keeps of a registered mm (ksm-scan S21): items in one list, by address; the mm is its head.
        self.registered = False
        self.next: RmapItem | None = None
        self.rmap_items = self.merging = 0

    @property
    def oldest(self) -> Mm:
        """The first of the processes that were forked from one another."""
        return self.parent.oldest if self.parent else self

    def vma_at(self, address: int) -> Vma | None:
        for vma in self.vmas:
            if vma.start <= address < vma.end:
                return vma
        return None

    def page_at(self, address: int) -> Page | None:
        """The ordinary or KSM page mapped there; None for nothing and for either zeropage (ksm-scan S14)."""
        entry = self.ptes.get(address)
        if entry is None:
            block = self.blocks[address // self.pages_per_thp]
            return block.pages[address % self.pages_per_thp] if type(block) is Folio else None
        return entry.page if type(entry) is Pte else None

    def letter(self, address: int) -> str:
        """trace-format, Maps; mthp E17."""
        entry = self.ptes.get(address)
        if entry is None:
            block = self.blocks[address // self.pages_per_thp]
            return "H" if type(block) is Folio else "Y" if block is HUGE_ZP else "N"
        if type(entry) is not Pte:
            return "S" if type(entry) is Slot else "N" if entry is POISON else "Z"
        return "K" if entry.page.ksm else "h" if entry.page.folio.order else "A"


class Memory:
    """Address spaces, faults, areas and folio splits; everything below ksmd."""

    def __init__(self, variant: str, knobs: dict, pages_per_thp: int) -> None:
        self.variant, self.knobs, self.pages_per_thp = variant, knobs, pages_per_thp
        self.thp_order = pages_per_thp.bit_length() - 1
        self.has = flags("6.12")
        self.enabled = {self.thp_order}  # orders that faults and khugepaged may make (mthp E2)
        self.run = 0
        self.vm: collections.Counter[str] = collections.Counter()  # vmstat events
        self.mthp: collections.Counter[tuple[int, str]] = collections.Counter()  # per order (mthp E10)
        self.queue: dict[Folio, None] = {}  # the deferred split queue, in order (thp-split Q1)
        self.ksm_zero = 0
        self.stamps = 0
        self.mlock_batch: list[Page] = []
        self.lru_batch: list[Page] = []
        self.slots_used = 0  # of the swap device
        self.now = 0  # simulated time, ms
        self.mms: list[Mm] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.full_scans = 0
        self.place = 0, 0  # batch and rank of the next sample
        self.decisions: list[dict] = []  # in order; equal ones on neighbouring pages are one
        self.in_tree: dict[
            tuple[Mm, int], int
        ] = {}  # items in the unstable tree, and the full scan that put them there

    def pass_time(self, millisecs: int) -> None:
        self.now += millisecs

    @property
    def split_variant(self) -> str:
        """Who decides about remaps: the first name of two, mainline beside a variant of ksmd alone."""
        name = self.variant.partition("+")[0]
        return "mainline" if name in KSMD_VARIANTS else name

    # -- decisions --------------------------------------------------------------------------------------------

    def decide(
        self, what: str, mm: Mm | None = None, page: int = -1, count: int = 1, other=None, value: int = 0
    ) -> None:
        """Note a decision; `other` is the mm and the page of a partner, or an item."""
        if isinstance(other, RmapItem):
            other = other.mm, other.address
        partner = (other[0].number, other[1]) if other else (-1, -1)
        where = (*self.place, self.full_scans + 1, what, mm.number if mm else -1)
        new = {"where": where, "page": page, "count": count, "other": partner, "value": value}
        if self.decisions and page >= 0 and count == 1 and partner == (-1, -1):
            last = self.decisions[-1]
            if last["page"] + last["count"] == page and last | {"page": page, "count": count} == new:
                last["count"] += count
                return
        self.decisions.append(new)

    def decide_folio(self, what: str, folio: Folio, value: int = 0) -> None:
        self.decide(what, folio.family, folio.first, len(folio.pages), value=value)

    def lost(self, mm: Mm, addresses: list[int]) -> None:
        """Nothing is mapped here any more: an item of the current unstable tree becomes a dead node (ksm-merge D1)."""
        for address in addresses:
            if self.in_tree.get((mm, address)) == self.full_scans:
                self.decide("DEAD_MADE", mm, address)

    # -- references, mappings ---------------------------------------------------------------------------------

    def stamp(self) -> int:
        self.stamps += 1
        return self.stamps

    def new_folio(self, order: int, first: int, nid: int, page: Page | None = None) -> Folio:
        """A folio of new zero-filled pages on a NUMA node, or a small one around a `page` that was split off."""
        self.mthp[order, "nr_anon"] += 1
        return Folio(order, first, nid, page)

    def count(self, folio: Folio, name: str, vmstat: str = "") -> None:
        """mthp E10: every order counts in its own file, the THP order in vmstat too."""
        self.mthp[folio.order, name] += 1
        if vmstat and folio.order == self.thp_order:
            self.vm[vmstat] += 1

    def gone(self, folio: Folio) -> None:
        """The folio is freed, or was split into small pages."""
        self.mthp[folio.order, "nr_anon"] -= 1
        self.mthp[folio.order, "nr_anon_partially_mapped"] -= folio.partially_mapped
        self.queue.pop(folio, None)
        folio.partially_mapped = False

    def enqueue(self, folio: Folio) -> None:
        """thp-split Q1: at the tail; one that is queued keeps its place."""
        self.queue.setdefault(folio)

    def pin(self, page: Page) -> None:
        page.folio.pins += 1

    def unpin(self, page: Page) -> None:
        folio = page.folio
        folio.pins -= 1
        if not folio.mapcount and not folio.held:
            self.gone(folio)

    def map_pte(
        self, mm: Mm, address: int, page: Page, dirty: bool, writable: bool = False, young: bool = True
    ) -> None:
        mm.ptes[address] = page.maps[mm, address] = Pte(page, dirty, writable, young)
        page.folio.ptes += 1
        page.folio.entries_came(mm, 1)
        mm.anon += 1
        mm.ksm_mapped += page.ksm

    def unmap_ptes(self, mm: Mm, addresses: list[int]) -> None:
        """Take away the entries of one folio in one step (thp-split H11, mthp E6)."""
        folio, newly_unmapped = mm.ptes[addresses[0]].page.folio, False
        for address in addresses:
            page = mm.ptes.pop(address).page
            del page.maps[mm, address]
            mm.ksm_mapped -= page.ksm
            newly_unmapped |= not page.mapped
        folio.ptes -= len(addresses)
        folio.entries_went(mm, len(addresses), mm.vma_at(addresses[0]).locked)
        mm.anon -= len(addresses)
        self.after_unmap(folio, newly_unmapped)

    def unmap_pmd(self, mm: Mm, block: int) -> None:
        folio = mm.blocks[block]
        del folio.pmds[mm]
        folio.entries_went(mm, 1, mm.vma_at(block * self.pages_per_thp).locked)
        mm.blocks[block] = None
        mm.anon -= self.pages_per_thp
        mm.huge -= 1
        self.after_unmap(folio, any(not page.mapped for page in folio.pages))

    def after_unmap(self, folio: Folio, newly_unmapped: bool) -> None:
        if newly_unmapped and folio.mapcount:
            self.mark_partially_mapped(folio)
        if not folio.mapcount:
            if folio.slot and not folio.slot.users:
                self.leave_swap_cache(folio)
            if not folio.held:
                self.gone(folio)

    def mark_partially_mapped(self, folio: Folio) -> None:
        """thp-split Q1b: a page is mapped by nobody, another one still is.  Sticky, counted once; order >= 2."""
        if folio.order < 2 or folio.partially_mapped:
            return
        folio.partially_mapped = True
        self.decide_folio("QUEUE_PARTIAL", folio)
        self.count(folio, "nr_anon_partially_mapped")
        self.count(folio, "split_deferred", "thp_deferred_split_page")
        self.enqueue(folio)

    def split_pmd(self, mm: Mm, block: int) -> None:
        """thp-split H6: a huge PMD becomes entries that map the same pages, HUGE_ZP becomes zeropages (F3)."""
        folio, first = mm.blocks[block], block * self.pages_per_thp
        mm.blocks[block] = TABLE
        self.vm["thp_split_pmd"] += 1
        self.decide("SPLIT_PMD", mm, first, self.pages_per_thp)
        if folio is HUGE_ZP:
            mm.ptes.update(dict.fromkeys(range(first, first + self.pages_per_thp), ZP_CLEAN))
            return
        entry = folio.pmds[mm]
        folio.dirty |= entry.dirty
        mm.huge -= 1
        mm.anon -= self.pages_per_thp
        for page in folio.pages:
            self.map_pte(mm, first + page.index, page, entry.dirty, entry.writable, entry.young)
        del folio.pmds[mm]
        folio.entries_went(mm, 1, mm.vma_at(first).locked and not self.has["cut_thp_stays_mlocked"])

    # -- mlock batch (ksm-merge M15) --------------------------------------------------------------------------

    def add_to_mlock_batch(self, page: Page) -> None:
        self.pin(page)
        self.mlock_batch.append(page)
        if len(self.mlock_batch) == BATCH:
            self.drain_mlock_batch()

    def drain_mlock_batch(self) -> None:
        batch, self.mlock_batch = self.mlock_batch, []
        for page in batch:
            self.unpin(page)

    # -- LRU batch (khugepaged K8, K10) -----------------------------------------------------------------------

    def add_to_lru_batch(self, page: Page) -> None:
        """A page in the batch is not on the LRU and has one more reference."""
        self.pin(page)
        self.lru_batch.append(page)
        if len(self.lru_batch) == BATCH:
            self.drain_lru_batch()

    def drain_lru_batch(self) -> None:
        batch, self.lru_batch = self.lru_batch, []
        for page in batch:
            self.unpin(page)

    def drain_batches(self) -> None:
        self.drain_mlock_batch()
        self.drain_lru_batch()

    # -- folio split (thp-split 3.3, 3.4) ---------------------------------------------------------------------

    def split_folio(self, page: Page, caller: str) -> bool:
        """Split the folio of `page`, on which the caller holds a pin, to order 0 (thp-split H7, H8)."""
        folio = page.folio
        if folio.pins != 1 or not folio.mapcount:  # H7: refcount != mapcount + 1, or nobody maps it
            self.count(folio, "split_failed", "thp_split_page_failed")
            self.seen["refused split"] += 1
            self.decide_folio("SPLIT_FAILED", folio, CALLERS.index(caller))
            return False
        self.decide_folio("SPLIT", folio, CALLERS.index(caller))
        merging = bool(self.run & 1)  # KSMON
        areas = self.areas_of(folio)
        mapped = self.unmap_for_split(folio, areas)
        self.count(folio, "split", "thp_split_page")
        self.gone(folio)
        for part in folio.pages:
            part.folio = self.new_folio(0, folio.first + part.index, part.nid, part)
            part.folio.dirty, part.folio.lazy, part.folio.referenced = folio.dirty, folio.lazy, folio.referenced
            part.folio.pins = int(part is page)
            part.index = 0
        zeros: list[tuple[int, int, str]] = []  # by area, as they are told
        for part, number in zip(folio.pages, range(folio.first, folio.first + len(folio.pages)), strict=True):
            mlocked = False
            for n, (vma, mm) in enumerate(areas):
                address = number + vma.moved
                if not vma.start <= address < vma.end or (mm, address) not in mapped:
                    continue
                mm.anon -= 1
                asked = Remap(caller, merging and vma.mergeable, bool(self.knobs["shrink_underused"]))
                held = mlocked or vma.locked or part.poisoned or mm.forbids_zeropages
                remap = part.key == 0 and not held and VARIANTS[self.split_variant](asked)  # Z1, Z3
                if part.key == 0:
                    zeros.append((n, address, "REMAP" if remap else "KEEP"))
                if remap:
                    mm.ptes[address] = ZP_CLEAN
                else:
                    old = mapped[mm, address]
                    self.map_pte(mm, address, part, old.dirty, old.writable, old.young)
                    mlocked |= vma.locked  # Z4
            if not part.alive:
                self.gone(part.folio)
        for n, address, what in sorted(zeros):
            if what == "REMAP":
                self.lost(areas[n][1], [address])
            self.decide(what, areas[n][1], address, value=CALLERS.index(caller))
        if any(mm.vma_at(address).locked for mm, address in mapped):  # M15
            self.drain_mlock_batch()
        return True

    def split_pinned(self, page: Page, caller: str) -> bool:
        """Split for a caller whose only reference is its own."""
        self.pin(page)
        done = self.split_folio(page, caller)
        self.unpin(page)
        return done

    def areas_of(self, folio: Folio) -> list[tuple[Vma, Mm]]:
        """The areas that map a page of the folio, in the order of the reverse mapping (thp-split Z4)."""
        mms = dict.fromkeys([*folio.pmds, *(mm for page in folio.pages for mm, _ in page.maps)])
        end = folio.first + len(folio.pages)
        areas = [(v, mm) for mm in mms for v in mm.vmas if v.start - v.moved < end and v.end - v.moved > folio.first]
        return sorted(areas, key=lambda area: (area[0].start - area[0].moved, area[0].stamp))

    def unmap_for_split(self, folio: Folio, areas: list[tuple[Vma, Mm]]) -> dict[tuple[Mm, int], Pte]:
        """Turn every mapping into a migration entry (thp-split H8.1); returns what was there.

        A huge PMD goes in one step, entries go one by one, so the folio may look partially mapped on the way (mthp E9).
        """
        mapped: dict[tuple[Mm, int], Pte] = {}
        for vma, mm in areas:
            first = folio.first + vma.moved
            if mm in folio.pmds and vma.start <= first < vma.end and mm.blocks[first // self.pages_per_thp] is folio:
                self.vm["thp_split_pmd"] += 1
                self.decide("SPLIT_PMD", mm, first, self.pages_per_thp)
                mm.blocks[first // self.pages_per_thp] = TABLE
                entry = folio.pmds.pop(mm)
                folio.dirty |= entry.dirty
                mm.huge -= 1
                mapped |= {(mm, first + page.index): entry for page in folio.pages}
                if folio.mapcount and any(not page.mapped for page in folio.pages):
                    self.mark_partially_mapped(folio)
                continue
            for page in folio.pages:
                address = first + page.index
                if vma.start <= address < vma.end and (mm, address) in page.maps:
                    entry = mapped[mm, address] = page.maps.pop((mm, address))
                    folio.dirty |= entry.dirty
                    del mm.ptes[address]
                    folio.ptes -= 1
                    if folio.mapcount and not page.mapped:
                        self.mark_partially_mapped(folio)
        return mapped

    # -- faults (ksm-merge 2.11, thp-split H1, H10) -----------------------------------------------------------

    def huge_allowed(self, vma: Vma, block: int) -> bool:
        """thp-split H10: the block lies in one area with MADV_HUGEPAGE (that it has no page table is the caller's)."""
        first = block * self.pages_per_thp
        inside = vma.start <= first and first + self.pages_per_thp <= vma.end
        return self.thp_order in self.enabled and vma.huge and inside

    def read_fault(self, mm: Mm, vma: Vma, address: int) -> None:
        block = address // self.pages_per_thp
        if mm.forbids_zeropages and mm.blocks[block] in (None, TABLE) and address not in mm.ptes:
            self.write_fault(mm, vma, address)
        if mm.blocks[block] is None:
            mm.blocks[block] = HUGE_ZP if self.huge_allowed(vma, block) else TABLE
        what = mm.blocks[block]
        if type(what) is Folio:
            what.pmds[mm].young = True
        elif what is TABLE:
            entry = mm.ptes.setdefault(address, ZP_CLEAN)  # F3
            if type(entry) is Slot:
                self.swap_in(mm, vma, address, write=False)
            elif type(entry) is Pte:
                entry.young = True

    def write_fault(self, mm: Mm, vma: Vma, address: int) -> Page:
        """Make the page at `address` writable and return it."""
        block = address // self.pages_per_thp
        if mm.blocks[block] is None:
            if self.huge_allowed(vma, block):
                return self.new_thp(mm, block).pages[address % self.pages_per_thp]
            mm.blocks[block] = TABLE
        if mm.blocks[block] is HUGE_ZP and self.has["wp_fault_allocates_thp"]:  # F3
            return self.new_thp(mm, block).pages[address % self.pages_per_thp]
        folio = mm.blocks[block]
        if type(folio) is Folio:  # F7, huge PMD
            if folio.mapcount + folio.pins == 1:
                for page in folio.pages:
                    page.exclusive = True
            if folio.pages[0].exclusive:
                folio.pmds[mm].dirty = folio.pmds[mm].writable = folio.pmds[mm].young = True
                return folio.pages[address % self.pages_per_thp]
        if folio is not TABLE:
            self.split_pmd(mm, block)
        if type(mm.ptes.get(address)) is Slot:
            self.swap_in(mm, vma, address, write=True)
        entry = mm.ptes.get(address)
        if entry is None and (order := self.fault_order(mm, vma, address)):
            first = address >> order << order
            folio = self.new_folio(order, first - vma.moved, mm.nid)
            folio.mlocks += vma.locked  # thp-split Q3.2
            for page in folio.pages:
                self.map_pte(mm, first + page.index, page, dirty=True, writable=True)
            self.mthp[order, "anon_fault_alloc"] += 1
            self.seen["fault takes a size"] += 1
            return folio.pages[address - first]
        if type(entry) is not Pte:  # H1, F2, F3
            return self.new_small_page(mm, address, key=0)
        page = entry.page
        if page.ksm:  # F1
            self.decide("UNSHARE_WRITE", mm, address)
            self.vm["cow_ksm"] += 1
            return self.copy_page(mm, address)
        if not page.exclusive:  # F7
            swapped = page.folio.slot is not None and page.folio.slot.users > 0
            if page.folio.order:
                only = not page.folio.shared and not page.folio.pins and page.folio.mapcount > 1
                if not (self.has["large_folio_reused"] and only):
                    return self.copy_page(mm, address)
                self.seen["page of a large folio written in place"] += 1
            elif page.folio.mapcount + page.folio.pins != 1 or swapped or page.locked:
                return self.copy_page(mm, address)
            if page.folio.slot:
                self.leave_swap_cache(page.folio)
            page.exclusive = True
        entry.dirty = entry.writable = entry.young = True
        return page

    def fault_order(self, mm: Mm, vma: Vma, address: int) -> int:
        """mthp E2: the largest enabled order below a THP's whose range is empty and in the area; 0: a small page."""
        if not self.has["faults_take_sizes"] or not vma.huge or vma.uffd:
            return 0
        for order in sorted(self.enabled - {self.thp_order}, reverse=True):
            first = address >> order << order
            end = first + (1 << order)
            if vma.start <= first and end <= vma.end and not any(page in mm.ptes for page in range(first, end)):
                return order
        return 0

    def new_thp(self, mm: Mm, block: int) -> Folio:
        """thp-split H1."""
        first = block * self.pages_per_thp
        folio = self.new_folio(self.thp_order, first - mm.vma_at(first).moved, mm.nid)
        self.mthp[self.thp_order, "anon_fault_alloc"] += 1
        self.map_pmd(mm, block, folio, writable=True)
        self.vm["thp_fault_alloc"] += 1
        return folio

    def map_pmd(self, mm: Mm, block: int, folio: Folio, writable: bool) -> None:
        """Map a new THP; thp-split H3."""
        folio.pmds[mm] = Pte(folio.pages[0], dirty=True, writable=writable)
        folio.entries_came(mm, 1)
        folio.mlocks += mm.vma_at(block * self.pages_per_thp).locked
        mm.blocks[block] = folio
        mm.anon += self.pages_per_thp
        mm.huge += 1
        if self.knobs["shrink_underused"] and folio.order >= 2:
            self.decide_folio("QUEUE_NEW", folio)
            self.enqueue(folio)

    def new_small_page(self, mm: Mm, address: int, key: int, dirty: bool = True) -> Page:
        """A new private page where nothing or a zeropage is mapped (F2)."""
        self.clear_entry(mm, address)
        page = self.new_folio(0, address, mm.nid).pages[0]
        page.key = key
        self.map_pte(mm, address, page, dirty, writable=dirty)
        return page

    def copy_page(self, mm: Mm, address: int, dirty: bool = True) -> Page:
        """A private copy takes the place of the mapped page."""
        key = mm.ptes[address].page.key
        self.unmap_ptes(mm, [address])
        return self.new_small_page(mm, address, key, dirty)

    def break_ksm(self, mm: Mm, address: int) -> None:
        """ksm-merge B1: unshare a KSM page or a zeropage that ksmd placed; the new page is exclusive, not dirty."""
        entry = mm.ptes.get(address)
        if type(entry) is Pte and entry.page.ksm:
            old = entry.page
            self.pin(old)
            self.decide("UNSHARE_BREAK", mm, address)
            self.vm["cow_ksm"] += 1
            self.copy_page(mm, address, dirty=False)
            if mm.vma_at(address).locked:  # both pages go to the batch of mlock work (M15)
                self.add_to_mlock_batch(mm.page_at(address))
                self.add_to_mlock_batch(old)
            self.unpin(old)
        elif entry is ZP_KSM:
            self.new_small_page(mm, address, key=0, dirty=False)

    # -- swap (thp-split 3.10) --------------------------------------------------------------------------------

    def swap_in(self, mm: Mm, vma: Vma, address: int, write: bool) -> None:
        """W3, W7: a fault on a swapped entry; a `write` goes on as one to the page that is mapped now."""
        slot = mm.ptes[address]
        folio, cached, copied = slot.folio, True, False
        if folio is None:
            self.vm["pswpin"] += not slot.zero  # W4
            self.seen["swapped in"] += 1
            folio = self.new_folio(0, address, mm.nid)
            folio.pages[0].key = slot.key
            cached = slot.users > 1
            if cached:
                slot.folio, folio.slot = folio, slot
        elif folio.pages[0].ksm and (folio.pages[0].node is None or self.run == 2):  # F6
            self.vm["ksm_swpin_copy"] += 1
            folio, cached, copied = self.new_folio(0, address, mm.nid), False, True
            folio.pages[0].key = slot.key
        page = folio.pages[0]
        marked = address in mm.swapped_exclusive or not self.has["swapin_keeps_shared"]
        mm.swapped_exclusive.discard(address)
        slot.users -= 1
        mm.swapped -= 1
        self.release(slot)
        if cached and not slot.users:
            alone = not folio.mapcount and not folio.pins
            if self.is_locked(folio) or vma.locked or (write and not page.ksm and alone):
                self.leave_swap_cache(folio)
        if cached:
            page.exclusive = not page.ksm and folio.slot is None and not folio.mapcount and not folio.pins
        page.exclusive &= marked or copied  # W7
        self.map_pte(mm, address, page, dirty=False, writable=page.exclusive and vma.writable)

    def is_locked(self, folio: Folio) -> bool:
        """A VM_LOCKED area maps the small folio."""
        return any(mm.vma_at(address).locked for mm, address in folio.pages[0].maps)

    def leave_swap_cache(self, folio: Folio) -> None:
        slot, folio.slot = folio.slot, None
        slot.folio = None
        folio.dirty = True
        self.release(slot)

    def release(self, slot: Slot) -> None:
        self.slots_used -= not slot.users and slot.folio is None

    def drop_swap(self, mm: Mm, slot: Slot) -> None:
        """A swapped entry goes away."""
        mm.swapped -= 1
        slot.users -= 1
        self.release(slot)
        folio = slot.folio
        if not slot.users and folio is not None and not folio.mapcount:
            self.leave_swap_cache(folio)
            if not folio.held:
                self.gone(folio)

    # -- unmapping (thp-split H11) ----------------------------------------------------------------------------

    def zap(self, mm: Mm, start: int, end: int, dontneed: bool = False) -> None:
        """Unmap a range that lies in one area, by runs of consecutive entries of one folio.

        Since 6.14 MADV_DONTNEED of a whole block frees its page table too (H10).
        """
        address = start
        while address < end:
            block = address // self.pages_per_thp
            first, last = block * self.pages_per_thp, (block + 1) * self.pages_per_thp
            what = mm.blocks[block]
            if type(what) is Folio or what is HUGE_ZP:
                if address == first and last <= end:  # the PMD goes whole and leaves no page table (H10)
                    if what is HUGE_ZP:
                        mm.blocks[block] = None
                    else:
                        self.lost(mm, list(range(first, last)))
                        self.unmap_pmd(mm, block)
                else:
                    self.split_pmd(mm, block)
                    continue
            elif what is TABLE:
                self.zap_ptes(mm, address, min(last, end))
                if dontneed and self.has["dontneed_frees_page_table"] and address == first and last <= end:
                    mm.blocks[block] = None
            address = last

    def zap_ptes(self, mm: Mm, start: int, end: int) -> None:
        run: list[int] = []
        for address in range(start, end):
            entry = mm.ptes.get(address)
            if run and not (type(entry) is Pte and entry.page.folio is mm.ptes[run[0]].page.folio):
                self.lost(mm, run)
                self.unmap_ptes(mm, run)
                run = []
            if type(entry) is Pte:
                run.append(address)
            else:
                self.clear_entry(mm, address)
        if run:
            self.lost(mm, run)
            self.unmap_ptes(mm, run)

    def clear_entry(self, mm: Mm, address: int) -> None:
        """Take away an entry that maps no page."""
        entry = mm.ptes.pop(address, None)
        if entry is ZP_KSM:
            self.decide("ZERO_GONE", mm, address)
            mm.ksm_zero -= 1
            self.ksm_zero -= 1
        elif type(entry) is Slot:
            mm.swapped_exclusive.discard(address)
            self.drop_swap(mm, entry)

    # -- areas (thp-split H6, H10, Z4) ------------------------------------------------------------------------

    def set_vmas(self, mm: Mm, vmas: list[Vma]) -> None:
        """Install a new list of areas: new borders cut huge PMDs (H6), new or resized areas get a new stamp (Z4)."""
        before = {(vma.start, vma.end) for vma in mm.vmas}
        borders = {border for pair in before for border in pair}
        mm.vmas = [v if (v.start, v.end) in before else dataclasses.replace(v, stamp=self.stamp()) for v in vmas]
        for vma in vmas:
            for border in (vma.start, vma.end):
                if border not in borders and border % self.pages_per_thp:
                    block = border // self.pages_per_thp
                    if type(mm.blocks[block]) is Folio or mm.blocks[block] is HUGE_ZP:
                        self.split_pmd(mm, block)

    def parts(self, mm: Mm, start: int, end: int) -> Iterator[tuple[Vma | None, int, int]]:
        """The areas and holes of a range, as they are when their turn comes."""
        while start < end:
            vma = next((v for v in mm.vmas if v.end > start), None)
            if vma is None or vma.start > start:
                stop = end if vma is None else min(end, vma.start)
                yield None, start, stop
            else:
                stop = min(end, vma.end)
                yield vma, start, stop
            start = stop

    def change(self, mm: Mm, vma: Vma, start: int, end: int, **flags: bool) -> None:
        """Give [start, end) of an area other flags; equal neighbours join (H10).  No change, no effect."""
        if all(getattr(vma, name) == value for name, value in flags.items()):
            return
        changed = dataclasses.replace(vma, start=start, end=end, **flags)
        pieces = [dataclasses.replace(vma, end=start), changed, dataclasses.replace(vma, start=end)]
        joined: list[Vma] = []
        for piece in [p for old in mm.vmas for p in (pieces if old is vma else [old]) if p.start < p.end]:
            if joined and joined[-1].joins(piece) and changed.start <= piece.start <= changed.end:
                joined[-1] = dataclasses.replace(joined[-1], end=piece.end)
            else:
                joined.append(piece)
        self.set_vmas(mm, joined)

    def cut_out(self, mm: Mm, start: int, end: int) -> None:
        """munmap: first the areas are cut at the ends of the range, then they go one by one."""
        for border in (start, end):
            vma = mm.vma_at(border)
            if vma is not None and vma.start < border:
                n = mm.vmas.index(vma)
                halves = [dataclasses.replace(vma, end=border), dataclasses.replace(vma, start=border)]
                self.set_vmas(mm, mm.vmas[:n] + halves + mm.vmas[n + 1 :])
        for vma in [v for v in mm.vmas if start <= v.start and v.end <= end]:
            self.zap(mm, vma.start, vma.end)
        mm.vmas = [v for v in mm.vmas if not (start <= v.start and v.end <= end)]


# ---------------------------------------------------------------------------------------------- ksmd


class RmapItem(RbNode):
    """ksmd's record of one candidate (ksm-scan S20)."""

    __slots__ = ("address", "age", "checksum", "mm", "next", "nid", "node", "seq", "skips", "tree", "was_merged")

    def __init__(self, mm: Mm, address: int) -> None:
        super().__init__()
        self.mm, self.address = mm, address
        self.checksum: int | None = None  # the content is its own checksum; none was taken yet
        self.age = self.skips = 0
        self.tree = ""  # "", "unstable" (since pass `seq`, in the tree `nid`) or "stable" (attached to `node`)
        self.seq = self.nid = 0
        self.node: StableNode | None = None
        self.next: RmapItem | None = None
        self.was_merged = False  # it has left the stable tree


class StableNode(RbNode):
    """A KSM page and the rmap_items attached to it (ksm-merge T1).

    It is alone in the tree `nid`, or a dup of a chain there (T5), or on the migrated side list (M1a).
    """

    __slots__ = ("chain", "items", "key", "migrated", "nid", "page")

    def __init__(self, page: Page, nid: int) -> None:
        super().__init__()
        self.page, self.nid, self.key = page, nid, page.key
        self.migrated = False
        self.items: list[RmapItem] = []
        self.chain: Chain | None = None


class Chain(RbNode):
    """The head of a chain: it holds the tree slot of one content (ksm-merge T5)."""

    __slots__ = ("dups", "key", "nid", "pruned")

    def __init__(self, now: int, nid: int, key: int) -> None:
        super().__init__()
        self.nid, self.key = nid, key
        self.dups: list[StableNode] = []
        self.pruned = now  # ms, the last full walk (T6)


class Ksm(Memory):
    """ksmd and its control operations, on top of `Memory`."""

    def __init__(self, variant: str, knobs: dict, pages_per_thp: int) -> None:
        super().__init__(variant, knobs, pages_per_thp)
        self.slots: list[Mm] = []  # registered mms, in scanning order (ksm-scan S11, S12)
        self.cursor: Mm | None = None  # None: parked between passes (S9)
        self.address = -1  # where the cursor is; -1: at the very start of the mm
        self.last: Mm | RmapItem | None = None  # the last rmap_item visited, or the mm if none was
        # one tree a NUMA node, all in tree 0 with merge_across_nodes
        self.stable: dict[int, RbTree] = collections.defaultdict(RbTree)
        self.unstable: dict[int, RbTree] = collections.defaultdict(RbTree)
        self.migrated: list[StableNode] = []  # the side list of M1a
        self.pages_scanned = self.pages_skipped = 0
        self.pages_shared = self.pages_sharing = self.pages_unshared = 0
        self.rmap_items = self.chains = self.dups = 0
        self.dups_walked = 0  # a step that costs time (costs)
        self.scan_started = 0  # ms, S10.1
        self.advisor_time = self.advisor_change = 0  # the advisor's history (S31)

    # -- the scanning side (ksm-scan) -------------------------------------------------------------------------

    def batch(self) -> bool:
        """One wake-up of ksmd (S2, S7); True if it completed a full scan."""
        before = self.full_scans
        if self.run & 1 and self.slots:
            for _ in range(self.knobs["pages_to_scan"]):
                candidate = self.next_candidate()
                if candidate is None:
                    break
                item, page = candidate
                self.pin(page)
                self.visit(item, page)
                self.unpin(page)
                self.pages_scanned += 1
        self.pass_time(self.knobs["sleep_millisecs"])
        return self.full_scans != before

    def next_candidate(self) -> tuple[RmapItem, Page] | None:
        """scan_get_next_rmap_item: S9 to S18."""
        if self.cursor is None:
            self.scan_started = self.now  # S10.1
            self.decide("START_SCAN", value=self.rmap_items)
            self.drain_mlock_batch()  # S10.2
            if not self.knobs["merge_across_nodes"]:  # S10.3
                for node in self.migrated[:]:
                    self.node_page(node)
            self.unstable.clear()  # S10.4
            self.enter_mm(self.slots[0])
        while self.cursor is not None:
            mm = self.cursor
            if not mm.exiting:
                for vma in mm.vmas:
                    if not vma.mergeable or vma.end <= self.address:
                        continue
                    self.address = max(self.address, vma.start)
                    while self.address < vma.end:
                        page = mm.page_at(self.address)  # S14, S15
                        self.address += 1
                        if page is None:
                            continue
                        item = self.item_for(mm, self.address - 1)
                        self.last = item
                        if not self.smart_skip(item, page):
                            return item, page
            self.leave_mm(mm)
        if self.knobs["advisor_mode"] == "scan-time":
            self.advise_pages_to_scan()
        self.decide("STOP_SCAN", value=self.rmap_items)
        self.full_scans += 1  # S18
        return None

    def advise_pages_to_scan(self) -> None:
        """S31, for a ksmd that uses no CPU time."""
        pages, cpu = self.knobs["pages_to_scan"], 1
        seconds = max(1, (self.now - self.scan_started) // 1000)
        factor = max(1, self.knobs["advisor_target_scan_time"] * 100 // seconds)
        change = max(1, seconds * 100 // (self.advisor_time or seconds))
        change = (70 * self.advisor_change + 30 * change) // 100
        cost = max(1, pages // cpu)
        pages = min((pages * 100 // factor) * change // 100, cost * self.knobs["advisor_max_cpu"])
        self.knobs["pages_to_scan"] = min(max(pages, cost * 10), self.knobs["advisor_max_pages_to_scan"])
        self.advisor_change, self.advisor_time = change, seconds
        self.decide("ADVISOR", value=self.knobs["pages_to_scan"] | seconds << 26 | cpu << 44)

    def set_advisor(self, mode: str) -> None:
        """S29; the mode that is set already changes nothing."""
        if mode != self.knobs["advisor_mode"] and self.has["advisor_exists"]:
            self.knobs["advisor_mode"] = mode
            self.knobs["pages_to_scan"] = 100 if mode == "none" else self.knobs["advisor_min_pages_to_scan"]
            self.advisor_time = self.advisor_change = 0

    def enter_mm(self, mm: Mm) -> None:
        self.cursor, self.address, self.last = mm, -1, mm

    def leave_mm(self, mm: Mm) -> None:
        """S17."""
        if mm.exiting:
            self.address, self.last = -1, mm
        self.free_items(self.last)
        n = self.slots.index(mm) + 1
        after = self.slots[n] if n < len(self.slots) else None
        if self.address == -1:
            self.slots.remove(mm)
            mm.registered = False
        if after is None:
            self.cursor = None
        else:
            self.enter_mm(after)

    def item_for(self, mm: Mm, address: int) -> RmapItem:
        """Find or make the item; leftovers at lower addresses are freed (S21)."""
        last = self.last
        while last.next is not None and last.next.address <= address:
            if last.next.address == address:
                return last.next
            self.free_next_item(last)
        item = RmapItem(mm, address)
        item.next, last.next = last.next, item
        mm.rmap_items += 1
        self.rmap_items += 1
        return item

    def free_next_item(self, before: Mm | RmapItem) -> None:
        item = before.next
        before.next = item.next
        self.leave_tree(item)
        self.decide("ITEM_FREED", item.mm, item.address)
        item.mm.rmap_items -= 1
        self.rmap_items -= 1

    def free_items(self, after: Mm | RmapItem) -> None:
        while after.next is not None:
            self.free_next_item(after)

    def smart_skip(self, item: RmapItem, page: Page) -> bool:
        """S25."""
        attached = item.tree == "stable" and self.has["forget_age"]
        if not self.knobs["smart_scan"] or not self.has["smart_scan_exists"] or page.ksm or attached:
            return False
        age, item.age = item.age, min(item.age + 1, 255)
        if age < 3:
            return False
        if item.skips == 0:
            item.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        self.pages_skipped += 1
        item.skips -= 1
        self.leave_tree(item)
        self.decide("SKIP", item.mm, item.address)
        return True

    # -- one visited page (ksm-merge 2.1) ---------------------------------------------------------------------

    def visit(self, item: RmapItem, page: Page) -> None:
        outcome, other = self.outcome_of_visit(item, page)
        self.decide(f"VISIT_{outcome}", item.mm, item.address, other=other)

    def outcome_of_visit(self, item: RmapItem, page: Page) -> tuple[str, RmapItem | None]:
        """cmp_and_merge_page: how it ends, and the item of the page it ends at."""
        first = page.folio.pages[0]
        node = page.node if page.ksm else None
        if node is not None:  # M1
            if not node.migrated and self.nid(page) != node.nid:
                self.move_aside(node)
            if not node.migrated and item.tree == "stable" and item.node is node:
                return "MERGED", None
        else:  # M2 (M14: also a KSM page without a node)
            self.leave_tree(item)
            if item.checksum != page.key:
                first_time, item.checksum = item.checksum is None, page.key
                return "FIRST" if first_time else "CHANGED", None
            if self.leaves_alone(page):
                return "LEFT", None
            if self.variant.endswith("zero-only"):  # fix-variants 5.7
                if page.key:
                    return "LEFT", None
                merged = self.merge_with_zeropage(item, page)
                self.seen["zero-only merge"] += merged
                return "ZERO" if merged else "ZERO_ONLY", None
            if self.knobs["use_zero_pages"] and page.key == 0:  # M3
                if self.merge_with_zeropage(item, page):
                    return "ZERO", None
                if self.split_variant == "skip-zeropage" and item.mm.ptes.get(item.address) is ZP_CLEAN:
                    return "ZERO_STOP", None  # M3b, fix-variants 5.1
        found = self.stable_search(item, page)  # M4
        if found is page and item.tree == "stable" and item.node is node:
            return "OWN", None
        self.leave_tree(item)
        if found is not None:
            sharer = found.node.items[-1] if found.node.items else None
            self.decide("SEARCH_STABLE", item.mm, item.address, other=sharer)
            if not self.merge_with_ksm_page(item, page, found, sharer):
                return "STABLE_FAILED", sharer
            self.attach(item, found.node)
            return "STABLE", sharer
        match, failure = self.unstable_search_or_insert(item, page)  # M5
        if failure:
            return failure, match
        self.decide("SEARCH_UNSTABLE", item.mm, item.address, other=match)
        other = match.mm.page_at(match.address)
        if self.leaves_alone(other) or self.variant.endswith("zero-only"):
            return "PARTNER_LEFT", match
        self.pin(other)
        merged = self.merge_with_ksm_page(item, page, None, match)  # M5a
        if merged:
            merged = self.merge_with_ksm_page(match, other, page, item)  # M5b
            if not merged:
                self.break_cow(item)
                self.forget(item)
        same_folio = page.folio.order > 0 and page.folio is other.folio
        self.unpin(other)
        if merged:  # M5c
            node = self.stable_insert(page)
            self.attach(match, node)
            self.attach(item, node)
            return "PAIR", match
        if same_folio:  # M5d
            self.seen["same-THP split"] += 1
            self.split_folio(page, "ksm")
            return "SAME_FOLIO", match
        if other is first and self.has["same_folio_is_old"] and not first.locked:  # M5d: M3 has split it, a bug
            self.seen["kernel bug"] += 1
            first.locked, page.locked = True, not page.locked
            return "BUG", match
        return "PAIR_FAILED", match

    def merge_with_zeropage(self, item: RmapItem, page: Page) -> bool:
        """M3b."""
        merged = self.merge_one(item, page, ZEROPAGE)
        self.decide("MERGE_ZERO", item.mm, item.address, value=0 if merged else -EFAULT)
        return merged

    def merge_with_ksm_page(self, item: RmapItem, page: Page, target: Page | None, other: RmapItem | None) -> bool:
        """try_to_merge_with_ksm_page: M10; without a target the page becomes a KSM page."""
        merged = self.merge_one(item, page, target)
        if merged:
            self.leave_tree(item)
        what = "MERGE_KSM" if target else "MERGE_NEW"
        self.decide(what, item.mm, item.address, other=other, value=0 if merged else -EFAULT)
        return merged

    def leaves_alone(self, page: Page) -> bool:
        """fix-variants 5.7: a huge PMD maps the page's folio."""
        alone = self.variant.endswith("no-split") and bool(page.folio.pmds)
        self.seen["huge page left alone"] += alone
        return alone

    def merge_one(self, item: RmapItem, page: Page, target: Page | str | None) -> bool:
        """try_to_merge_one_page: M7, M8; the target is a KSM page, the zeropage or none."""
        mm, address = item.mm, item.address
        if page is target:
            return True
        if page.locked:
            return self.fail("LOCKED", item)
        if page.folio.order and not self.split_folio(page, "ksm"):
            return self.fail("SPLIT", item)
        if failure := self.write_protect(mm, address, page, target):
            return self.fail(failure, item)
        if target is None:
            page.ksm, page.node = True, None
            page.folio.dirty = page.folio.referenced = True
            for sharer, _ in page.maps:
                sharer.ksm_mapped += 1
            return True
        if page.key != (0 if target is ZEROPAGE else target.key):
            return self.fail("DIFFERENT", item)
        locked = mm.vma_at(address).locked
        self.pin(page)
        if target is ZEROPAGE:
            self.lost(mm, [address])
        self.unmap_ptes(mm, [address])
        if target is ZEROPAGE:
            mm.ptes[address] = ZP_KSM
            mm.ksm_zero += 1
            self.ksm_zero += 1
        else:
            self.map_pte(mm, address, target, dirty=False)
            if locked:
                self.add_to_mlock_batch(target)  # M15
        if locked:
            self.add_to_mlock_batch(page)
        self.unpin(page)
        return True

    def fail(self, why: str, item: RmapItem) -> bool:
        self.decide(f"FAIL_{why}", item.mm, item.address)
        return False

    def write_protect(self, mm: Mm, address: int, page: Page, target: Page | str | None) -> str:
        """M7.5: why it fails, or "".

        A KSM page can't be found by reverse mapping (M14), but on its new NUMA node it merges (2.12).
        """
        entry = mm.ptes.get(address)
        if type(entry) is not Pte or entry.page is not page:
            return "GONE"
        if page.ksm:
            migrated = page.node is not None and page.node.migrated
            if not (migrated and isinstance(target, Page) and target.node is not None):
                return "NO_NODE"
            self.seen["migrated KSM page merges"] += 1
        if entry.dirty or page.exclusive:
            if page.folio.pins != 1:
                return "PINNED"
            page.folio.dirty |= entry.dirty
            page.exclusive = entry.dirty = entry.writable = False
        return ""

    def break_cow(self, item: RmapItem) -> None:
        """B1 for one item, by ksmd itself."""
        self.break_ksm(item.mm, item.address)

    def forget(self, item: RmapItem) -> None:
        """S20: since 7.3 the page's index takes the place of the three."""
        item.was_merged = True
        if self.has["forget_age"]:
            item.checksum, item.age, item.skips = None, 0, 0

    def attach(self, item: RmapItem, node: StableNode) -> None:
        """stable_tree_append: M9; M10 for the item itself."""
        self.leave_tree(item)
        if node.items:
            self.pages_sharing += 1
        else:
            self.pages_shared += 1
        what = "ATTACH_SHARING" if node.items else "ATTACH_SHARED"
        self.decide(what, item.mm, item.address, other=node.items[-1] if node.items else None)
        self.seen["merged again after the stable tree"] += item.was_merged
        node.items.append(item)
        item.tree, item.node = "stable", node
        item.mm.merging += 1

    def leave_tree(self, item: RmapItem) -> None:
        """remove_rmap_item_from_tree: S22, T2, and the "down" column of 2.9."""
        if item.tree == "stable":
            if self.node_page(item.node) is not None:
                item.node.items.remove(item)
                if item.node.items:
                    self.pages_sharing -= 1
                else:
                    self.pages_shared -= 1
                left = item.node.items[-1] if item.node.items else None
                self.decide("LEAVE_SHARING" if left else "LEAVE_SHARED", item.mm, item.address, other=left)
                item.mm.merging -= 1
                self.forget(item)
        elif item.tree == "unstable":
            if item.seq == self.full_scans:
                if any(self.mergeable_page(below) is None for below in subtree(item)):
                    self.seen["erase above a dead node"] += 1
                self.unstable[item.nid].erase(item)
            self.pages_unshared -= 1
            self.in_tree.pop((item.mm, item.address), None)
        item.tree, item.node = "", None

    # -- stable tree (ksm-merge 2.6) --------------------------------------------------------------------------

    def node_page(self, node: StableNode) -> Page | None:
        """ksm_get_folio: T2; a stale node is removed by whoever looks at it."""
        if node.page.alive:
            return node.page
        self.remove_node(node)
        return None

    def remove_node(self, node: StableNode) -> None:
        if node.items:
            self.pages_shared -= 1
            self.pages_sharing -= len(node.items) - 1
        for item in reversed(node.items):  # the kernel's list has the latest first
            self.decide("LEAVE_SHARED" if item is node.items[0] else "REMOVE_RMAP_ITEM", item.mm, item.address)
            item.mm.merging -= 1
            item.tree = ""
            self.forget(item)
        node.items = []
        self.decide("REMOVE_KSM_PAGE", value=node.key)
        self.unlink(node)

    def unlink(self, node: StableNode) -> None:
        """Take a node out of its tree, its chain or the side list."""
        if node.migrated:
            self.migrated.remove(node)
            node.migrated = False
        elif node.chain is None:
            self.stable[node.nid].erase(node)
        else:
            node.chain.dups.remove(node)
            node.chain = None
            self.dups -= 1
            self.decide("DUP_REMOVED", value=node.key)

    def nid(self, page: Page) -> int:
        """The number of the trees that the page belongs to."""
        return 0 if self.knobs["merge_across_nodes"] else page.nid

    def move_aside(self, node: StableNode) -> None:
        """M1a: to the side list, until a search finds a place for it."""
        self.unlink(node)
        self.set_aside(node)

    def set_aside(self, node: StableNode) -> None:
        self.decide("NODE_ASIDE", value=node.key)
        node.migrated = True
        self.migrated.insert(0, node)
        self.seen["stable node moved aside"] += 1

    def has_room(self, node: StableNode, more: int = 0) -> bool:
        """T3."""
        return bool(node.items) and len(node.items) + more < self.knobs["max_page_sharing"]

    def stable_search(self, item: RmapItem, page: Page) -> Page | None:
        """T4."""
        migrated = page.node if page.ksm else None
        if migrated is not None and not migrated.migrated:
            return page
        tree = self.stable[self.nid(page)]
        while True:
            slot, parent, left, restart = tree.root, None, False, False
            while slot is not None:
                node = self.choose_dup(slot, search=True)
                if node is None:
                    restart = True
                    break
                slot = node.chain or node
                if page.key == node.page.key:
                    return self.equal_found(item, page, migrated, slot, node)
                parent, left = slot, page.key < node.page.key
                slot = slot.left if left else slot.right
            if not restart:
                break
            self.seen["restart after a stale node"] += 1
        if migrated is None:
            return None
        self.unlink(migrated)
        migrated.nid = self.nid(page)
        tree.insert(migrated, parent, left)
        self.seen["stable node linked in another tree"] += 1
        return page if self.has_room(migrated) else None

    def equal_found(
        self, item: RmapItem, page: Page, migrated: StableNode | None, slot: StableNode | Chain, node: StableNode
    ) -> Page | None:
        """T4, equal content; `migrated` is the page's own node on the side list, which may find its place here."""
        nid = self.nid(page)
        if migrated is not None and len(page.maps) > 1:  # 2.12: mapped once, it may merge
            self.unlink(migrated)
            migrated.nid = nid
            self.add_dup(slot, migrated)
            self.seen["stable node joins equal ones in another tree"] += 1
        else:
            if not self.has_room(node):
                self.decide("SEARCH_FULL", item.mm, item.address, other=node.items[-1] if node.items else None)
                return None
            if self.nid(node.page) == node.nid:
                self.seen["page with a node on the side list finds another"] += migrated is not None
                return node.page
            # the node in the tree has itself been migrated away: it goes, the page's own node takes its place
            if node.chain is None and migrated is not None:
                self.unlink(migrated)
                migrated.nid = nid
                self.stable[nid].replace(node, migrated)
            else:
                self.unlink(node)
                if migrated is not None:
                    self.unlink(migrated)
                    migrated.nid = nid
                    self.add_dup(slot, migrated)
            self.set_aside(node)
            self.seen["match that had itself migrated"] += 1
        return page if migrated is not None and self.has_room(migrated) else None

    def choose_dup(self, slot: StableNode | Chain, search: bool) -> StableNode | None:
        """T6: the node that speaks for a tree slot; None if the slot was stale and is gone."""
        if isinstance(slot, StableNode):
            return slot if self.node_page(slot) is not None else None
        walk_all = search and self.now >= slot.pruned + self.knobs["stable_node_chains_prune_millisecs"]
        if walk_all:
            slot.pruned = self.now
        best: StableNode | None = None
        for dup in list(slot.dups):
            self.dups_walked += 1
            if self.node_page(dup) is None:
                continue
            better = best is not None and self.has_room(dup)
            if better and self.has_room(best) and len(dup.items) <= len(best.items):
                better = False
            if best is None or better:
                best = dup
                if not walk_all and self.has_room(dup):
                    break
        if best is None:
            self.stable[slot.nid].erase(slot)
            self.chains -= 1
            self.decide("CHAIN_GONE", value=slot.key)
        elif len(slot.dups) == 1:  # in every walk, full or not
            self.seen["chain dissolved"] += 1
            self.stable[slot.nid].replace(slot, best)
            best.chain = None
            self.chains -= 1
            self.dups -= 1
            self.decide("CHAIN_DISSOLVED", value=slot.key)
        elif slot.dups[0] is not best and self.has_room(best, 1):
            self.seen["chain reordered"] += 1
            slot.dups.remove(best)
            slot.dups.insert(0, best)
        return best

    def stable_insert(self, page: Page) -> StableNode:
        """T5."""
        new = page.node = StableNode(page, self.nid(page))
        tree = self.stable[new.nid]
        while True:
            slot, parent, left, restart = tree.root, None, False, False
            while slot is not None:
                node = self.choose_dup(slot, search=False)
                if node is None:
                    restart = True
                    break
                slot = node.chain or node
                if page.key == node.page.key:
                    self.add_dup(slot, new)
                    return new
                parent, left = slot, page.key < node.page.key
                slot = slot.left if left else slot.right
            if not restart:
                tree.insert(new, parent, left)
                return new
            self.seen["restart after a stale node"] += 1

    def add_dup(self, slot: StableNode | Chain, new: StableNode) -> None:
        if isinstance(slot, StableNode):
            self.seen["chain made"] += 1
            chain, first = Chain(self.now, slot.nid, slot.key), slot
            self.decide("CHAIN_MADE", value=slot.key)
            self.stable[slot.nid].replace(first, chain)
            self.chains += 1
            self.dups += 1
            chain.dups.append(first)
            first.chain = chain
            slot = chain
        slot.dups.insert(0, new)
        new.chain = slot
        self.dups += 1
        self.decide("DUP_ADDED", value=slot.key)

    def remove_all_nodes(self) -> bool:
        """remove_all_stable_nodes (R2, R4); False if a node's page is still mapped."""
        done = True
        for _, tree in sorted(self.stable.items()):
            while tree.root is not None:
                slot = tree.root
                nodes = slot.dups[:] if isinstance(slot, Chain) else [slot]
                if not all(self.remove_unmapped(node) for node in nodes):
                    done = False
                    break
                if isinstance(slot, Chain):
                    tree.erase(slot)
                    self.chains -= 1
                    self.decide("CHAIN_GONE", value=slot.key)
        removed = [self.remove_unmapped(node) for node in self.migrated[:]]
        return done and all(removed)

    def remove_unmapped(self, node: StableNode) -> bool:
        if node.page.mapped:
            return False
        node.page.node = None
        self.remove_node(node)
        return True

    # -- unstable tree (ksm-merge 2.5, 2.7) -------------------------------------------------------------------

    def mergeable_page(self, item: RmapItem) -> Page | None:
        """get_mergeable_page: D1; None makes the node dead."""
        mm = item.mm
        if mm.exiting:
            return None
        vma = mm.vma_at(item.address)
        return mm.page_at(item.address) if vma is not None and vma.mergeable else None

    def unstable_search_or_insert(self, item: RmapItem, page: Page) -> tuple[RmapItem | None, str]:
        """U2: the item that the search ended at, and how the visit ends unless the two may merge."""
        nid, key = self.nid(page), page.key
        parent, left, node = None, False, self.unstable[nid].root
        while node is not None:
            other = self.mergeable_page(node)
            if other is None:  # D2
                leaf = node.left is None and node.right is None
                self.seen["dead root" if node.up is None else "dead leaf" if leaf else "dead inner node"] += 1
                return node, "DEAD"
            if other is page:
                return node, "SAME_PAGE"
            if key == other.key:
                return node, "" if self.nid(other) == nid else "OTHER_NODE"
            parent, left = node, key < other.key
            node = node.left if left else node.right
        self.unstable[nid].insert(item, parent, left)
        item.tree, item.seq, item.nid = "unstable", self.full_scans, nid
        self.in_tree[item.mm, item.address] = self.full_scans
        if self.mergeable_page(item) is None:  # M11: dead at birth
            self.decide("DEAD_MADE", item.mm, item.address)
        self.pages_unshared += 1
        return None, "INSERTED"

    # -- registering, fork, exit, run = 2 (ksm-scan S12, ksm-merge 2.10, 2.11) --------------------------------

    def register(self, mm: Mm) -> None:
        """__ksm_enter: S12."""
        at_tail = self.cursor is None or self.run == 2
        self.slots.insert(len(self.slots) if at_tail else self.slots.index(self.cursor), mm)
        mm.registered = True
        self.decide("ENTER", mm)

    def fork(self, parent: Mm) -> Mm:
        """F4."""
        child = Mm(parent.pages, parent.pages_per_thp, parent.nid)
        child.parent, child.merge_any = parent, parent.merge_any
        child.forbids_zeropages = parent.forbids_zeropages
        child.number = len(self.mms)
        child.dealt = [None] * parent.pages
        self.mms.append(child)
        self.seen["fork in mid-scan"] += self.cursor is not None
        if parent.registered:
            self.register(child)
        child.vmas = [
            dataclasses.replace(vma, locked=False, uffd=False, anon_vma=self.stamp(), stamp=self.stamp())
            for vma in parent.vmas
        ]
        for block, what in enumerate(parent.blocks):
            if type(what) is Folio and what.pins and what.pages[0].exclusive:
                self.split_pmd(parent, block)
            child.blocks[block] = what = parent.blocks[block]
            if type(what) is Folio:
                what.pmds[parent].writable = False
                what.pmds[child] = Pte(what.pages[0], what.pmds[parent].dirty, writable=False, young=False)
                what.entries_came(child, 1)
                child.huge += 1
                child.anon += self.pages_per_thp
                for page in what.pages:
                    page.exclusive = False
        for address, entry in sorted(parent.ptes.items(), key=lambda pair: pair[0]):
            if entry is ZP_KSM:
                self.decide("ZERO_COPIED", child, address)
            if type(entry) is Pte and entry.page.folio.pins and entry.page.exclusive:
                self.new_small_page(child, address, entry.page.key)
                self.seen["pinned page copied at fork"] += 1
            elif type(entry) is Pte:
                entry.page.exclusive = entry.writable = False
                self.map_pte(child, address, entry.page, entry.dirty, young=False)
            else:
                child.ptes[address] = entry
                if type(entry) is Slot:  # thp-split W7
                    entry.users += 1
                    child.swapped += 1
        parent.swapped_exclusive = set()
        child.ksm_zero = parent.ksm_zero
        self.ksm_zero += child.ksm_zero
        return child

    def exit(self, mm: Mm) -> None:
        """F5."""
        mm.exiting = True
        if mm.registered:
            self.decide("EXIT", mm)
        if mm.registered and self.cursor is not mm:
            self.slots.remove(mm)
            if mm.next is None:
                mm.registered = False
            else:
                self.slots.insert(0 if self.cursor is None else self.slots.index(self.cursor) + 1, mm)
        elif mm.registered:
            self.seen["exit at the cursor"] += 1
        for vma in mm.vmas:
            self.zap(mm, vma.start, vma.end)
        mm.vmas = []
        mm.blocks = [None] * len(mm.blocks)

    def unmerge(self, mm: Mm, start: int, end: int) -> None:
        for address in range(start, end):
            self.break_ksm(mm, address)

    def unmerge_all(self) -> None:
        """run = 2: R2."""
        for mm in self.slots[:]:
            for vma in mm.vmas:
                if vma.mergeable:
                    self.unmerge(mm, vma.start, vma.end)
            self.free_items(mm)
            if mm.exiting:
                self.slots.remove(mm)
                mm.registered = False
        self.remove_all_nodes()
        self.full_scans = 0
        self.cursor = None

    # -- what is seen -----------------------------------------------------------------------------------------

    def sample(self) -> dict[str, int]:
        """ksm-merge 2.9 and thp-split 3.8, as sysfs, smaps and ksm_stat show them."""
        living = [mm for mm in self.mms if not mm.exiting]
        names = ("anon", "huge", "ksm_mapped", "swapped", "ksm_zero")
        total = {name: sum(getattr(mm, name) for mm in living) for name in names}
        items, merging = sum(mm.rmap_items for mm in living), sum(mm.merging for mm in living)
        row = dict.fromkeys(FIELDS, 0)
        row |= self.vm
        tracked = self.pages_shared + self.pages_sharing + self.pages_unshared
        row |= {
            "pages_to_scan": self.knobs["pages_to_scan"],
            "pages_scanned": self.pages_scanned,
            "full_scans": self.full_scans,
            "pages_shared": self.pages_shared,
            "pages_sharing": self.pages_sharing,
            "pages_unshared": self.pages_unshared,
            "pages_volatile": max(0, self.rmap_items - tracked),  # C1
            "pages_skipped": self.pages_skipped,
            "ksm_zero_pages": self.ksm_zero,
            "stable_node_chains": self.chains,
            "stable_node_dups": self.dups,
            "general_profit": (self.pages_sharing + self.ksm_zero) * PAGE_BYTES - self.rmap_items * ITEM_BYTES,  # C2
            "rss_kb": total["anon"] * 4,
            "anonymous_kb": total["anon"] * 4,
            "anonhugepages_kb": total["huge"] * self.pages_per_thp * 4,
            "ksm_kb": total["ksm_mapped"] * 4,
            "swap_kb": total["swapped"] * 4,
            "proc_ksm_rmap_items": items,
            "proc_ksm_zero_pages": total["ksm_zero"],
            "proc_ksm_merging_pages": merging,
            "proc_ksm_process_profit": (merging + total["ksm_zero"]) * PAGE_BYTES - items * ITEM_BYTES,  # C3
            "deferred_queue_len": len(self.queue),
        }
        return row

    def page_map(self, mm: Mm) -> str:
        """trace-format, Maps: run-length coded letters."""
        letters = "".join(mm.letter(address) for address in range(mm.pages))
        return re.sub(r"(.)\1*", lambda m: m[1] + (str(len(m[0])) if len(m[0]) > 1 else ""), letters)

    def frames(self) -> tuple[int, int]:
        """Different physical pages that are mapped, and the KSM pages among them."""
        mapped = {id(e.page): e.page.ksm for mm in self.mms for e in mm.ptes.values() if type(e) is Pte}
        huge = {id(f): f for mm in self.mms for f in mm.blocks if type(f) is Folio}
        mapped |= {id(page): False for folio in huge.values() for page in folio.pages}
        return len(mapped), sum(mapped.values())


# ---------------------------------------------------------------------------------------------- reclaim, collapse


class Reclaim(Ksm):
    """Who gives memory back and who makes THPs: the shrinker, advice, swap-out, khugepaged."""

    def __init__(self, variant: str, knobs: dict, pages_per_thp: int) -> None:
        super().__init__(variant, knobs, pages_per_thp)
        # khugepaged's own clock and cursor (khugepaged K1, K2): process None is the end of the list
        self.khugepaged_due = knobs["khugepaged_scan_sleep_millisecs"]
        self.khugepaged_process: int | None = None
        self.khugepaged_address = 0

    # -- the shrinker of the deferred split queue (thp-split 3.5) ---------------------------------------------

    def shrink(self, count: int) -> None:
        """deferred_split_scan: Q3, H12; since 7.2 each node has a queue (Q1)."""
        if not self.has["queue_per_node"]:
            self.shrink_queue(list(self.queue)[:count])
            return
        for nid in sorted({mm.nid for mm in self.mms} | {folio.pages[0].nid for folio in self.queue}):
            self.shrink_queue([folio for folio in self.queue if folio.pages[0].nid == nid][:count])

    def shrink_queue(self, taken: list[Folio]) -> None:
        """Q3."""
        for folio in taken:
            del self.queue[folio]
        for folio in taken:
            underused = not folio.partially_mapped
            if underused and not self.underused(folio):
                self.seen["folio judged used"] += 1
                self.decide_folio("USED", folio)
                continue
            if underused:
                self.decide_folio("UNDERUSED", folio)
            if self.split_pinned(folio.pages[0], "underused" if underused else "partially_mapped"):
                self.vm["thp_underused_split_page"] += underused
                self.seen["underused split" if underused else "partially mapped split by the shrinker"] += 1
            elif folio.partially_mapped:
                self.queue[folio] = None

    def underused(self, folio: Folio) -> bool:
        """Q4; the default of max_ptes_none says never."""
        limit = self.knobs["max_ptes_none"]
        if limit >= self.pages_per_thp - 1:
            return False
        if self.has["shrinker_skips_mlocked"] and folio.mlocks:  # Q3.2
            self.seen["mlocked THP dropped by the shrinker"] += 1
            return False
        return not any(page.poisoned for page in folio.pages) and sum(page.key == 0 for page in folio.pages) > limit

    # -- MADV_COLD, MADV_FREE, MADV_PAGEOUT (thp-split W5) ----------------------------------------------------

    def advise(
        self,
        mm: Mm,
        start: int,
        end: int,
        whole: Callable[[Mm, Folio], None],
        swapped: Callable[[Mm, int], None] | None = None,
    ) -> int:
        """Walk a range (ksm-merge F8): `whole` is done to each folio in it, `swapped` to each swapped entry."""
        result = 0
        for vma, first, last in self.parts(mm, start, end):
            if vma is None:
                result = ENOMEM
            elif vma.locked:
                return EINVAL
            else:
                while first < last:
                    stop = min(last, (first // self.pages_per_thp + 1) * self.pages_per_thp)
                    self.advise_block(mm, first, stop, whole, swapped)
                    first = stop
        return result

    def advise_block(
        self,
        mm: Mm,
        address: int,
        end: int,
        whole: Callable[[Mm, Folio], None],
        swapped: Callable[[Mm, int], None] | None,
    ) -> None:
        """The part of a range that lies in one block and one area."""
        folio = mm.blocks[address // self.pages_per_thp]
        if type(folio) is Folio:
            if folio.likely_shared(self.has["shared_is_exact"]):
                return
            if end - address == self.pages_per_thp:
                whole(mm, folio)
                return
            if not self.split_pinned(folio.pages[0], "other"):
                return
        while address < end:
            entry = mm.ptes.get(address)
            if (type(entry) is Slot or entry is POISON) and swapped:
                swapped(mm, address)
            if type(entry) is not Pte:
                address += 1
                continue
            folio, run = entry.page.folio, self.run_length(mm, address, end)
            if run < len(folio.pages):
                shared = folio.likely_shared(self.has["shared_is_exact"])
                if shared or not self.split_pinned(entry.page, "other"):
                    address += run
                continue
            whole(mm, folio)
            address += run

    def run_length(self, mm: Mm, address: int, end: int) -> int:
        """How many entries from `address` on map consecutive pages of one folio."""
        page = mm.ptes[address].page
        rest = page.folio.pages[page.index : page.index + end - address]
        for n, other in enumerate(rest):
            if mm.page_at(address + n) is not other:
                return n
        return len(rest)

    def entries(self, mm: Mm, folio: Folio) -> list[Pte]:
        """What a process maps a folio with."""
        if mm in folio.pmds:
            return [folio.pmds[mm]]
        return [entry for page in folio.pages for (by, _), entry in page.maps.items() if by is mm]

    def deactivate(self, mm: Mm, folio: Folio) -> None:
        """MADV_COLD: not young any more (seen by khugepaged K4)."""
        if folio.mapped_once:
            folio.referenced = False
            for entry in self.entries(mm, folio):
                entry.young = False

    def make_lazy(self, mm: Mm, folio: Folio) -> None:
        """MADV_FREE: W6."""
        kept = not folio.mapped_once or (folio.slot and folio.slot.users) or folio.pages[0].locked
        if kept and (folio.dirty or folio.slot):
            return
        if folio.slot:
            self.leave_swap_cache(folio)
        folio.dirty = False
        for entry in self.entries(mm, folio):
            entry.young = entry.dirty = False
        if not (folio.mlocks if folio.order else self.is_locked(folio)):
            self.seen["shared page made lazy"] += not folio.mapped_once
            folio.lazy, folio.referenced = True, False

    def page_out(self, mm: Mm, folio: Folio) -> None:
        """MADV_PAGEOUT: W1, W2, W6."""
        if not folio.mapped_once or folio.pins:
            return
        folio.referenced = False
        if folio.pages[0].ksm and not self.reachable(folio.pages[0]):
            return
        if folio.pages[0].locked:
            return
        if folio.lazy:
            self.discard(mm, folio)
        elif folio.slot or self.slots_free(folio.order) >= len(folio.pages):
            self.swap_out(mm, folio)
        elif folio.order and self.split_pinned(folio.pages[0], "other"):  # thp-split 3.6
            for page in folio.pages:
                if page.maps:
                    self.page_out(mm, page.folio)

    def slots_free(self, order: int) -> int:
        """The first page of the device is its header."""
        if order and self.knobs["swap_mib"] * 256 < 2 << self.thp_order:
            return 0  # W8
        return max(0, self.knobs["swap_mib"] * 256 - 1) - self.slots_used

    def reachable(self, page: Page) -> bool:
        """F6: the reverse mapping of a KSM page looks where its items are, in their mms and those forked from them."""
        holders = {(item.mm, item.address) for item in (page.node.items if page.node else ())}
        for mm, address in page.maps:
            while mm is not None and (mm, address) not in holders:
                mm = mm.parent
            if mm is None:
                return False
        return True

    def discard(self, mm: Mm, folio: Folio) -> None:
        """W6: entries go run by run up to one with an entry that was written to; before 6.15 a run is one entry."""
        block = mm.blocks.index(folio) if mm in folio.pmds else -1
        if mm in folio.pmds and self.has["lazy_pmd_goes_whole"]:
            folio.dirty |= folio.pmds[mm].dirty
            folio.lazy = not folio.dirty
            if folio.lazy:
                self.lost(mm, list(self.addresses(block)))
                self.unmap_pmd(mm, block)
                self.seen["lazy huge PMD cleared"] += 1
            return
        if mm in folio.pmds:
            self.split_pmd(mm, block)
        addresses = [address for page in folio.pages for _, address in page.maps]
        runs = [addresses] if self.has["lazyfree_goes_at_once"] else [[address] for address in addresses]
        if self.has["lazyfree_goes_at_once"] and self.has["lazyfree_runs_are_alike"]:
            runs = [list(run) for _, run in itertools.groupby(addresses, key=lambda address: mm.ptes[address].writable)]
        for group in runs:
            folio.dirty |= any(mm.ptes[address].dirty for address in group)
            if folio.dirty:
                folio.lazy = False
                return
            self.lost(mm, group)
            self.unmap_ptes(mm, group)
            self.seen["lazy page discarded"] += len(group)

    def swap_out(self, mm: Mm, folio: Folio) -> None:
        """W2, W4, W7: a page that is still in the swap cache is not written again unless it was changed."""
        if mm in folio.pmds:
            self.split_pmd(mm, mm.blocks.index(folio))
        addresses = [address for page in folio.pages for _, address in page.maps]
        zero = all(page.key == 0 for page in folio.pages)
        slots = [folio.slot or Slot(page.key, zero) for page in folio.pages]
        self.slots_used += 0 if folio.slot else len(slots)
        if folio.slot is None or folio.dirty or mm.ptes[addresses[0]].dirty:
            self.seen["zero-filled page swapped" if zero else "page swapped out"] += len(slots)
            self.vm["pswpout"] += 0 if zero else len(slots)
        for slot in slots:
            slot.users += 1
        mm.swapped_exclusive |= {address for address in addresses if mm.ptes[address].page.exclusive}
        self.lost(mm, addresses)
        self.unmap_ptes(mm, addresses)
        mm.ptes |= zip(addresses, slots, strict=True)
        mm.swapped += len(slots)
        if folio.slot:
            folio.slot.folio = folio.slot = None
            self.gone(folio)

    # -- collapse (khugepaged) --------------------------------------------------------------------------------

    def collapse_area(self, mm: Mm, vma: Vma, start: int, end: int) -> int:
        """MADV_COLLAPSE of the part of a range that lies in one area: K7, K11."""
        size = self.pages_per_thp
        first, last = -(-start // size), end // size
        if vma.huge is False or vma.end // size <= -(-vma.start // size):
            return EINVAL
        if first > last:
            return 0 if self.has["part_of_block_is_done"] else EINVAL
        self.drain_batches()  # K8
        done, failure = 0, ""
        for block in range(first, last):
            result, _, _ = self.collapse_block(mm, vma, block, khugepaged=False)
            if result in ("collapsed", "huge"):
                done += 1
                continue
            failure = result
            if failure in ("no page table", "too many none", "poisoned"):
                break
        if done == last - first:
            return 0
        if failure == "too many none":
            return EBUSY
        return EAGAIN if failure in ("pinned", "not on LRU", "locked") else EINVAL

    def khugepaged_pass(self) -> None:
        """One full scan from the first process on: K3, K10."""
        self.drain_batches()
        self.khugepaged_process, self.khugepaged_address = None, 0
        for mm in self.mms:
            for vma in mm.vmas:
                size = self.pages_per_thp
                if vma.huge and self.collapse_orders(khugepaged=True):
                    for block in range(-(-vma.start // size), vma.end // size):
                        self.collapse_block(mm, vma, block, khugepaged=True)

    def pass_time(self, millisecs: int) -> None:
        """Time passes; khugepaged wakes up when it is due (K1)."""
        end = self.now + millisecs
        while self.knobs["khugepaged"] and self.khugepaged_due <= end:
            self.now = max(self.now, self.khugepaged_due)
            self.khugepaged_burst()
            self.khugepaged_due = self.now + max(1, self.knobs["khugepaged_scan_sleep_millisecs"])
        self.now = end

    def khugepaged_burst(self) -> None:
        """K1: until the budget is spent, or the end of the list is passed for the second time."""
        self.drain_batches()
        budget, ends = self.knobs["khugepaged_pages_to_scan"], 0
        while budget > 0:
            ends += self.khugepaged_process is None
            if ends == 2 or self.next_process(-1) is None or not self.collapse_orders(khugepaged=True):
                break
            budget -= self.khugepaged_part(budget)

    def next_process(self, after: int) -> int | None:
        """K2: a process is known once an area of it had MADV_HUGEPAGE."""
        known = (n for n, mm in enumerate(self.mms) if n > after and mm.known_to_khugepaged and not mm.exiting)
        return next(known, None)

    def khugepaged_part(self, budget: int) -> int:
        """Go on in one process, up to a range that could be collapsed, the budget or its end; returns the cost (K1)."""
        if self.khugepaged_process is None:
            self.khugepaged_process = self.next_process(-1)
        mm, size, cost = self.mms[self.khugepaged_process], self.pages_per_thp, 1
        for vma in mm.vmas:
            first, last = -(-vma.start // size) * size, vma.end // size * size
            if vma.end <= self.khugepaged_address:
                continue
            if not vma.huge or first >= last or self.khugepaged_address > last:
                cost += 1
                continue
            self.khugepaged_address = max(self.khugepaged_address, first)
            while self.khugepaged_address < last:
                _, looked, tried = self.collapse_block(mm, vma, self.khugepaged_address // size, khugepaged=True)
                self.khugepaged_address += size
                cost += looked if self.has["scan_counts_entries"] else size
                self.seen["budget ended within a range"] += cost > budget
                if tried or cost >= budget:
                    return cost
        self.khugepaged_process = self.next_process(self.khugepaged_process)
        self.khugepaged_address = 0
        return cost

    def collapse_orders(self, khugepaged: bool) -> set[int]:
        """mthp E2: khugepaged makes smaller sizes since 7.2, MADV_COLLAPSE only THPs, enabled or not (K7)."""
        if not khugepaged:
            return {self.thp_order}
        return self.enabled if self.has["collapse_to_sizes"] else self.enabled & {self.thp_order}

    def none_limit(self, order: int, khugepaged: bool) -> int:
        """K4: how many empty entries may be filled; below the THP's size max_ptes_none means all but one, or none."""
        if not khugepaged:
            return 1 << order
        if order == self.thp_order:
            return self.knobs["max_ptes_none"]
        return (1 << order) - 1 if self.knobs["max_ptes_none"] >= self.pages_per_thp - 1 else 0

    def exceeded(self, order: int, what: str) -> str:
        """K4: counted for the size."""
        self.mthp[order, f"collapse_exceed_{what}_pte"] += 1
        return f"too many {what}"

    def collapse_block(self, mm: Mm, vma: Vma, block: int, khugepaged: bool) -> tuple[str, int, bool]:
        """K4, then mthp E2: what became of it, how many entries were looked at, and whether they allowed a collapse."""
        result, looked, present, counts = self.scan_range(mm, vma, block, khugepaged)
        start, allowed = block * self.pages_per_thp, not result
        last = self.last_small(mm, range(start, start + looked))
        if allowed:
            result = self.collapse_ranges(mm, vma, block, khugepaged, counts["swapped"], present)
        value = status(result) | counts["referenced"] << 16 | counts["none"] << 32 | counts["swapped"] << 48
        self.decide("SCAN_PMD", mm, start, self.pages_per_thp, last, value)
        return result, looked, allowed

    def last_small(self, mm: Mm, addresses: range) -> tuple[Mm, int] | None:
        """The last page that is mapped there, if it is a small one."""
        last = next((address for address in reversed(addresses) if type(mm.ptes.get(address)) is Pte), None)
        return None if last is None or mm.ptes[last].page.folio.order else (mm, last)

    def collapse_ranges(self, mm: Mm, vma: Vma, block: int, khugepaged: bool, swapped: int, present: set[int]) -> str:
        """mthp E2."""
        orders, nid, start = self.collapse_orders(khugepaged), self.target_node(mm, block), block * self.pages_per_thp
        done, last = False, "nothing to collapse"
        at, order = start, self.thp_order
        while at < start + self.pages_per_thp:
            size = 1 << order
            found = sum(address in present for address in range(at, at + size))
            found += swapped if order == self.thp_order else 0
            passed = False
            if order in orders and found >= size - self.none_limit(order, khugepaged):
                last = self.collapse_range(mm, vma, at, order, khugepaged, nid, swapped)
                self.decide("COLLAPSE", mm, at, size, value=status(last))
                done |= last == "collapsed"
                if last == "poisoned":
                    break
                passed = last in ("collapsed", "large already")
            if not passed and any(smaller < order for smaller in orders):
                order -= 1
                continue
            at += size
            order = next(o for o in range(self.thp_order, -1, -1) if at % (1 << o) == 0)
        return "collapsed" if done else last

    def collapse_range(self, mm: Mm, vma: Vma, first: int, order: int, khugepaged: bool, nid: int, swapped: int) -> str:
        """K6 for 2**order pages from `first` on; returns what became of it."""
        self.mthp[order, "collapse_alloc"] += 1
        self.vm["thp_collapse_alloc"] += order == self.thp_order
        new = self.new_folio(order, first - vma.moved, nid)
        result = self.swap_in_range(mm, vma, first, order) if swapped else ""
        result = result or self.isolate_range(mm, vma, first, order, khugepaged)
        if result:
            self.seen["collapse failed at isolation"] += result != "large already"
            self.gone(new)
            return result
        self.copy_range(mm, vma, first, new)
        return "collapsed"

    def target_node(self, mm: Mm, block: int) -> int:
        """Where most of the pages are that are present before swapped ones are read in, else node 0."""
        entries = [mm.ptes.get(address) for address in self.addresses(block)]
        nids = [entry.page.nid for entry in entries if type(entry) is Pte]
        return min(nids, key=lambda nid: (-nids.count(nid), nid), default=0)

    def addresses(self, block: int) -> range:
        return range(block * self.pages_per_thp, (block + 1) * self.pages_per_thp)

    def scan_range(
        self, mm: Mm, vma: Vma, block: int, khugepaged: bool
    ) -> tuple[str, int, set[int], collections.Counter[str]]:
        """hpage_collapse_scan_pmd: K4, K7.

        Returns why the block can't be collapsed, "" if it can; how many entries were looked at; which are present; and
        how many are swapped, none, shared, referenced.
        """
        present: set[int] = set()
        n: collections.Counter[str] = collections.Counter()
        if mm.blocks[block] is not TABLE:
            return "no page table" if mm.blocks[block] is None else "huge", 1, present, n
        looked = 0
        writable = False
        limit = 0 if vma.uffd else self.none_limit(self.thp_order, khugepaged)
        if self.collapse_orders(khugepaged) != {self.thp_order}:
            limit = self.pages_per_thp
        for address in self.addresses(block):
            looked += 1
            entry = mm.ptes.get(address)
            if type(entry) is Slot or entry is POISON:
                n["swapped"] += 1
                if khugepaged and n["swapped"] > self.knobs["max_ptes_swap"]:
                    return self.exceeded(self.thp_order, "swap"), looked, present, n
                continue
            if type(entry) is not Pte:
                n["none"] += 1
                if n["none"] > limit:
                    return self.exceeded(self.thp_order, "none"), looked, present, n
                continue
            folio = entry.page.folio
            if khugepaged and self.has["collapse_skips_lazyfree"] and folio.lazy and not entry.dirty:
                self.seen["lazy page keeps khugepaged away"] += 1
                return "lazy", looked, present, n
            n["shared"] += folio.likely_shared(self.has["shared_is_exact"])
            if khugepaged and n["shared"] > self.knobs["max_ptes_shared"]:
                return self.exceeded(self.thp_order, "shared"), looked, present, n
            if entry.page in self.lru_batch:
                return "not on LRU", looked, present, n
            if entry.page.locked:
                return "locked", looked, present, n
            if folio.pins:
                return "pinned", looked, present, n
            present.add(address)
            writable |= entry.writable
            n["referenced"] += khugepaged and (entry.young or folio.referenced)
        if not writable and not self.has["collapse_needs_no_writable"]:
            return "not writable", looked, present, n
        if khugepaged and (not n["referenced"] or (n["swapped"] and n["referenced"] < self.pages_per_thp // 2)):
            return "not referenced", looked, present, n
        return "", looked, present, n

    def swap_in_range(self, mm: Mm, vma: Vma, first: int, order: int) -> str:
        """K10; a poisoned entry can't be read in, and nothing is for a smaller size than a THP (mthp E2)."""
        done, result = 0, ""
        for address in range(first, first + (1 << order)):
            entry = mm.ptes.get(address)
            if (type(entry) is Slot or entry is POISON) and order != self.thp_order:
                result = self.exceeded(order, "swap")
                break
            if entry is POISON:
                result = "poisoned"
                break
            if type(entry) is Slot:
                self.swap_in(mm, vma, address, write=False)
                self.drain_lru_batch()
                done += 1
        self.decide("SWAPIN", mm, first, 1 << order, value=done | status(result or "collapsed") << 32)
        return result

    def isolate_range(self, mm: Mm, vma: Vma, first: int, order: int, khugepaged: bool) -> str:
        """__collapse_huge_page_isolate: K8; returns why it failed."""
        isolated: list[Page] = []
        large: dict[Folio, None] = {}
        result, shared, none, referenced, writable = "", 0, 0, 0, False
        small = order != self.thp_order
        for address in range(first, first + (1 << order)):
            entry = mm.ptes.get(address)
            if type(entry) is not Pte:
                none += 1
                if none > (0 if vma.uffd else self.none_limit(order, khugepaged)):
                    result = self.exceeded(order, "none")
                    break
                continue
            folio = entry.page.folio
            shared += folio.likely_shared(self.has["shared_is_exact"])
            if khugepaged and shared > (0 if small else self.knobs["max_ptes_shared"]):
                result = self.exceeded(order, "shared")
            elif small and folio.order >= order:
                result = "large already"
            elif folio in large:
                referenced += khugepaged and (entry.young or folio.referenced)
                writable |= entry.writable
                continue
            elif entry.page in isolated:
                result = "locked"
            elif folio.pins:
                result = "pinned"
            if result:
                break
            referenced += khugepaged and (entry.young or folio.referenced)
            writable |= entry.writable
            if folio.order:
                large[folio] = None
            else:
                isolated.append(entry.page)
        if not result and not writable and not self.has["collapse_needs_no_writable"]:
            result = "not writable"
        if khugepaged and not result and not referenced:
            result = "not referenced"
        value = status(result or "collapsed") | none << 16 | referenced << 32
        self.decide("ISOLATE", mm, first, 1 << order, self.last_small(mm, range(first, address + 1)), value)
        if result:
            for page in reversed(isolated):  # K10
                self.add_to_lru_batch(page)
            if large:
                self.drain_lru_batch()
        return result

    def copy_range(self, mm: Mm, vma: Vma, first: int, new: Folio) -> None:
        """K6; mthp E2: a smaller folio is mapped by entries, and not queued (E5)."""
        run: list[int] = []  # entries of one folio, which go at once
        for address, page in enumerate(new.pages, start=first):
            entry = mm.ptes.get(address)
            together = self.has["collapse_goes_by_runs"] and type(entry) is Pte
            if run and not (together and entry.page.folio is mm.ptes[run[0]].page.folio):
                self.unmap_ptes(mm, run)
                run = []
            if type(entry) is not Pte:
                self.seen["ZP_KSM collapsed"] += entry is ZP_KSM
                self.clear_entry(mm, address)
                continue
            page.key = entry.page.key
            if entry.page.ksm:
                self.seen["KSM page collapsed"] += 1
            if not entry.page.folio.order:
                self.add_to_lru_batch(entry.page)
            if vma.locked:
                self.add_to_mlock_batch(entry.page)
            run.append(address)
        if run:
            self.unmap_ptes(mm, run)
        if new.order == self.thp_order:
            self.map_pmd(mm, first // self.pages_per_thp, new, vma.writable)
        else:
            for page in new.pages:
                self.map_pte(mm, first + page.index, page, dirty=True, writable=vma.writable)
            new.mlocks += vma.locked  # thp-split Q3.2
            self.seen[f"collapse to order {new.order if new.order < 4 else '4 or more'}"] += 1
        if vma.locked:
            self.drain_mlock_batch()
        else:
            self.drain_lru_batch()
        self.seen["collapse"] += 1


# ---------------------------------------------------------------------------------------------- events


class Machine(Reclaim):
    """A machine with the processes of a scenario, and the events of trace-format as methods `op_*`."""

    def __init__(self, trace: dict) -> None:
        scenario = trace["scenario"]
        super().__init__(trace["variant"], KNOBS | scenario["knobs"], scenario.get("pages_per_thp", 512))
        self.held: list[tuple[Mm, Page]] = []  # by op_pin
        self.has = flags(trace["kernel"], scenario.get("kernel_changes"))
        enabled = {"2048": "inherit"} | self.knobs.get("hugepages_enabled", {})
        sizes = [int(kb) for kb, value in enabled.items() if value != "never"]
        self.enabled = {min((kb // 4).bit_length() - 1, self.thp_order) for kb in sizes}
        for n, process in enumerate(scenario["processes"]):
            node = process.get("node")
            nid = n % scenario.get("nodes", 1) if node is None else node
            self.start(process, nid, late=bool(scenario["late"]))
        self.luck = numpy.random.default_rng((0, 8))  # of events with a share, in a trace: seed 0, stream 8
        self.note_huge_areas()
        self.decisions.clear()  # those from here on count
        self.vm.clear()
        for order, name in list(self.mthp):
            if not name.startswith("nr_"):
                del self.mthp[order, name]

    def start(self, process: dict, nid: int, late: bool) -> None:
        """A process whose region was advised, populated by writes, advised again (trace-format, processes).

        `orders` decide how it is populated, or else the enabled sizes do (mthp E2).
        """
        enabled = self.enabled
        if "orders" in process:
            self.enabled = {self.thp_order}
        mm = Mm(process["pages"], self.pages_per_thp, nid)
        mm.forbids_zeropages = bool(process.get("forbids_zeropages", 0))
        mm.number = len(self.mms)
        self.mms.append(mm)
        stamp = self.stamp()
        mm.vmas = [Vma(0, mm.pages, huge=False, anon_vma=stamp, stamp=stamp)]
        for first, count, step in process["contents"]:
            self.seen["hole"] += first == "hole"
            mm.dealt += [None if first == "hole" else first + n * step for n in range(count)]
        born = mm.dealt[: round(process.get("touched_fraction", 1) * mm.pages)]
        orders = process.get("orders")
        if orders is None:
            orders = [[first, count, self.thp_order] for first, count in process["thp"]]
        for first, count, order in orders:
            if order in (9, self.thp_order):
                self.madvise(mm, first, count, huge=True)
            elif order:
                for start in range(first, first + count, 1 << order):
                    if any(key is not None for key in born[start : start + (1 << order)]):
                        self.populate(mm, start, order)
        # every area gets its own anon_vma at its first write, so areas that differ then never join
        mm.vmas = [dataclasses.replace(vma, anon_vma=self.stamp()) for vma in mm.vmas]
        for address in range(round(process.get("touched_fraction", 1) * mm.pages)):
            self.touch(mm, address)
        self.enabled = enabled
        if process.get("nohugepage_after_populate"):
            self.madvise(mm, 0, mm.pages, huge=False)
        if not late:
            for first, count in process["mergeable"]:
                self.op_mergeable(mm, first, count)

    def touch(self, mm: Mm, address: int) -> None:
        """Write what is dealt to a page, if it can be written and was not yet; a hole has nothing."""
        vma, key, mm.dealt[address] = mm.vma_at(address), mm.dealt[address], None
        if key is not None and vma is not None and vma.writable and mm.ptes.get(address) is not POISON:
            self.write_fault(mm, vma, address).key = key

    def populate(self, mm: Mm, start: int, order: int) -> None:
        """mthp E2, E18: a folio of orders 2 to 8, every page mapped by an entry of its own."""
        folio = self.new_folio(order, start, mm.nid)
        mm.blocks[start // self.pages_per_thp] = TABLE
        for page in folio.pages:
            self.map_pte(mm, start + page.index, page, dirty=True, writable=True)

    def note_huge_areas(self) -> None:
        """khugepaged K2."""
        for mm in self.mms:
            mm.known_to_khugepaged |= any(vma.huge for vma in mm.vmas)

    def event(self, event: dict) -> int:
        """Do one event; returns its errno or 0."""
        operation = getattr(self, "op_" + event["op"])
        arguments = {k: v for k, v in event.items() if k not in ("after", "op", "process", "result", "sample")}
        if "mm" in inspect.signature(operation).parameters:
            process = event.get("process", 0)
            mm = self.mms[process] if process < len(self.mms) else None
            if mm is None or mm.exiting:
                return ESRCH
            arguments["mm"] = mm
        parts = self.parts_of_event(arguments)
        self.drain_batches()  # M15
        results = [operation(**(arguments | part)) or 0 for part in parts]
        result = next((result for result in results if result), 0)
        self.drain_batches()
        self.note_huge_areas()
        return result

    def parts_of_event(self, arguments: dict) -> list[dict]:
        """The range of an event as given, or the units of it that are meant (trace-format, Events); takes the stride
        out of the arguments."""
        nth, share, unit = (arguments.pop(name, default) for name, default in STRIDE.items())
        if nth == 1 and share == 1:
            return [{}]
        page, end = arguments["page"], arguments["page"] + arguments["count"]
        size = 1 if unit == "4K" else self.pages_per_thp
        self.seen["event with a stride"] += 1
        firsts = list(range(page, end, size * nth))
        if share < 1:
            firsts = sorted(self.luck.permutation(firsts).tolist()[: round(share * len(firsts))])
        parts = [{"page": first, "count": min(size, end - first)} for first in firsts]
        return [part | {"to": arguments["to"] + part["page"] - page} if "to" in arguments else part for part in parts]

    def op_write(self, mm: Mm, page: int, count: int, key: int | None) -> int:
        for address in range(page, page + count):
            vma = mm.vma_at(address)
            if vma is None or not vma.writable or mm.ptes.get(address) is POISON:
                return EFAULT
            if key is None:
                self.read_fault(mm, vma, address)
                self.write_fault(mm, vma, address)
            else:
                self.write_fault(mm, vma, address).key = key
        return 0

    def op_touch(self, mm: Mm, page: int, count: int) -> None:
        for address in range(page, page + count):
            if mm.dealt[address] is not None:
                self.seen["first touch"] += 1
                self.seen["first touch of a page that a folio brought"] += mm.page_at(address) is not None
            self.touch(mm, address)

    def op_read(self, mm: Mm, page: int, count: int) -> int:
        for address in range(page, page + count):
            vma = mm.vma_at(address)
            if vma is None or mm.ptes.get(address) is POISON:
                return EFAULT
            self.read_fault(mm, vma, address)
        return 0

    # madvise: holes are passed over and make the result ENOMEM (F8)

    def madvise(self, mm: Mm, page: int, count: int, **flags: bool) -> int:
        result = 0
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                result = ENOMEM
            else:
                self.change(mm, vma, start, end, **flags)
        return result

    def op_hugepage(self, mm: Mm, page: int, count: int) -> int:
        return self.madvise(mm, page, count, huge=True)

    def op_nohugepage(self, mm: Mm, page: int, count: int) -> int:
        return self.madvise(mm, page, count, huge=False)

    def op_mergeable(self, mm: Mm, page: int, count: int) -> int:
        changes = any(v is not None and not v.mergeable for v, _, _ in self.parts(mm, page, page + count))
        if changes and not mm.registered:  # S12
            self.register(mm)
        return self.madvise(mm, page, count, mergeable=True)

    def op_unmergeable(self, mm: Mm, page: int, count: int) -> int:
        """R3."""
        result = 0
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                result = ENOMEM
                continue
            if vma.mergeable:
                self.unmerge(mm, start, end)
            self.change(mm, vma, start, end, mergeable=False)
        return result

    def op_dontneed(self, mm: Mm, page: int, count: int) -> int:
        result = 0
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                result = ENOMEM
            elif vma.locked:
                return EINVAL
            else:
                self.zap(mm, start, end, dontneed=True)
        return result

    def op_cold(self, mm: Mm, page: int, count: int) -> int:
        return self.advise(mm, page, page + count, self.deactivate)

    def op_free(self, mm: Mm, page: int, count: int) -> int:
        return self.advise(mm, page, page + count, self.make_lazy, swapped=self.clear_entry)

    def op_pageout(self, mm: Mm, page: int, count: int) -> int:
        return self.advise(mm, page, page + count, self.page_out)

    def op_collapse(self, mm: Mm, page: int, count: int) -> int:
        """khugepaged K7, K11."""
        result = 0
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                result = ENOMEM
            elif error := self.collapse_area(mm, vma, start, end):
                return error
        return result

    def op_khugepaged(self, full_scans: int) -> None:
        for _ in range(full_scans):
            self.khugepaged_pass()

    def op_shrink(self, count: int) -> None:
        self.shrink(count)

    def op_compact(self) -> None:
        """Small pages move; a folio as large as a page block stays.  Nothing of it is seen (thp-split G1)."""

    def op_munmap(self, mm: Mm, page: int, count: int) -> None:
        self.cut_out(mm, page, page + count)

    def op_mmap(self, mm: Mm, page: int, count: int) -> None:
        """MAP_FIXED | MAP_POPULATE; S12: mergeable from the start under MERGE_ANY."""
        self.cut_out(mm, page, page + count)
        stamp = self.stamp()
        area = Vma(page, page + count, huge=None, mergeable=mm.merge_any, anon_vma=stamp, stamp=stamp)
        mm.vmas = sorted([*mm.vmas, area], key=lambda vma: vma.start)
        for address in range(page, page + count):
            self.write_fault(mm, area, address)

    def op_mremap(self, mm: Mm, page: int, count: int, to: int) -> int:
        """thp-split H14."""
        several, end = self.has["mremap_moves_several"], page + count
        if (several or mm.vma_at(page) is not None) and to < end and page < to + count:
            return EINVAL
        if mm.vma_at(page) is None:
            return EFAULT
        if not several:
            self.cut_out(mm, to, to + count)
        for vma, start, stop in self.parts(mm, page, end):
            if vma is not None:
                if (vma.uffd or not several) and (start, stop) != (page, end):
                    return EFAULT
                self.move(mm, start, stop - start, to + start - page)
        return 0

    def move(self, mm: Mm, page: int, count: int, to: int) -> None:
        self.cut_out(mm, to, to + count)
        area = mm.vma_at(page)
        if area.mergeable:
            self.unmerge(mm, page, page + count)
        size = self.pages_per_thp
        for block in range(-(-to // size), (to + count) // size):
            mm.blocks[block] = None
        for address in range(page, page + count):
            new = address + to - page
            block, there = address // size, new // size
            whole = (address % size, new % size) == (0, 0) and page + count - address >= size
            if whole and mm.blocks[block] is not TABLE:
                self.lost(mm, list(range(address, address + size)) if type(mm.blocks[block]) is Folio else [])
                mm.blocks[there], mm.blocks[block] = mm.blocks[block], None
            elif type(mm.blocks[block]) is Folio or mm.blocks[block] is HUGE_ZP:
                self.split_pmd(mm, block)
            if mm.blocks[block] is TABLE:
                mm.blocks[there] = TABLE
            if address in mm.ptes:
                self.seen["entry moved"] += 1
                self.lost(mm, [address] if type(mm.ptes[address]) is Pte else [])
                entry = mm.ptes[new] = mm.ptes.pop(address)
                if type(entry) is Pte:
                    entry.page.maps[mm, new] = entry.page.maps.pop((mm, address))
            if address in mm.swapped_exclusive:
                mm.swapped_exclusive.remove(address)
                mm.swapped_exclusive.add(new)
        moved = dataclasses.replace(
            area, start=to, end=to + count, uffd=False, stamp=self.stamp(), moved=area.moved + to - page
        )
        self.cut_out(mm, page, page + count)
        for other in [vma for vma in mm.vmas if vma.joins(moved) or moved.joins(vma)]:
            mm.vmas.remove(other)
            start, end = min(other.start, moved.start), max(other.end, moved.end)
            moved = dataclasses.replace(moved, start=start, end=end, stamp=self.stamp())
        mm.vmas = sorted([*mm.vmas, moved], key=lambda vma: vma.start)

    def op_pin(self, mm: Mm, page: int, count: int) -> int:
        """H5: each page is written to and held before the next one, or in the end none is held; those before the first
        whose entry is not writable are held as they are."""
        held: list[tuple[Mm, Page]] = []
        error, at_once = 0, True
        for address in range(page, page + count):
            block = mm.blocks[address // self.pages_per_thp]
            entry = block.pmds[mm] if type(block) is Folio else mm.ptes.get(address)
            at_once = at_once and type(entry) is Pte and entry.writable
            if at_once:
                mm.page_at(address).folio.referenced = True
            else:
                error = error or self.op_populate_write(mm, address, 1)
            if not error:
                self.pin(mm.page_at(address))
                held.append((mm, mm.page_at(address)))
        for _, one in held if error else ():
            self.unpin(one)
        self.held += [] if error else held
        return EFAULT if error else 0

    def op_unpin(self, mm: Mm) -> None:
        for owner, page in self.held:
            if owner is mm:
                self.unpin(page)
        self.held = [one for one in self.held if one[0] is not mm]

    # mlock, munlock and mprotect stop at the first hole

    def protect(self, mm: Mm, page: int, count: int, **flags: bool) -> int:
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                return ENOMEM
            self.change(mm, vma, start, end, **flags)
            if vma.locked != flags["locked"]:
                self.mark_mlocked(mm, start, end, flags["locked"])
        return 0

    def mark_mlocked(self, mm: Mm, start: int, end: int, locked: bool) -> None:
        """Q3.2: a large folio that lies in the range whole is mlocked; munlock of any part of one ends that."""
        while start < end:
            page, run = mm.page_at(start), 1
            if page is not None and page.folio.order:
                rest = page.folio.pages[page.index :]
                while run < min(len(rest), end - start) and mm.page_at(start + run) is rest[run]:
                    run += 1
                if not locked:
                    page.folio.mlocks = max(0, page.folio.mlocks - 1)
                elif run == len(page.folio.pages):
                    page.folio.mlocks += 1
            start += run

    def op_mlock(self, mm: Mm, page: int, count: int) -> int:
        """F8."""
        result = self.protect(mm, page, count, locked=True)
        if not result:
            for address in range(page, page + count):
                vma = mm.vma_at(address)
                if mm.ptes.get(address) is not POISON:
                    (self.fault_in if vma.writable else self.read_fault)(mm, vma, address)
        return result

    def fault_in(self, mm: Mm, vma: Vma, address: int) -> None:
        """F8: an entry that is writable stays as it is, and the page is marked instead."""
        entry = mm.ptes.get(address)
        if type(entry) is Pte and entry.writable:
            entry.page.folio.dirty = entry.page.folio.referenced = True
        else:
            self.write_fault(mm, vma, address)

    def op_populate_write(self, mm: Mm, page: int, count: int) -> int:
        """MADV_POPULATE_WRITE: as mlock (F8), up to the first page that can't be written."""
        for address in range(page, page + count):
            vma = mm.vma_at(address)
            if vma is None:
                return ENOMEM
            if not vma.writable:
                return EINVAL
            if mm.ptes.get(address) is POISON:
                return EHWPOISON
            self.fault_in(mm, vma, address)
        return 0

    def op_munlock(self, mm: Mm, page: int, count: int) -> int:
        return self.protect(mm, page, count, locked=False)

    def op_mprotect(self, mm: Mm, page: int, count: int, prot: int) -> int:
        """A locked area that becomes writable is written to at once, as by mlock (F8); seen on 6.18 too."""
        for vma, start, end in self.parts(mm, page, page + count):
            if vma is None:
                return ENOMEM
            touch = prot & 2 and vma.locked and not vma.writable
            if vma.writable != bool(prot & 2):
                self.change(mm, vma, start, end, writable=bool(prot & 2))
                self.set_writable(mm, start, end, bool(prot & 2))
            for address in range(start, end) if touch else ():
                if mm.ptes.get(address) is not POISON:
                    self.fault_in(mm, mm.vma_at(address), address)
        return 0

    def set_writable(self, mm: Mm, start: int, end: int, writable: bool) -> None:
        """khugepaged K9: exclusive pages become writable with their area, however they lost it."""
        for address in range(start, end):
            block = mm.blocks[address // self.pages_per_thp]
            entry = block.pmds[mm] if type(block) is Folio else mm.ptes.get(address)
            if type(entry) is Pte:
                entry.writable = writable and entry.page.exclusive

    # what moves pages, or takes them away

    def op_migrate(self, mm: Mm, page: int, count: int, node: int | None = None, huge: int = 1) -> None:
        """thp-split 3.6, 3.7: every folio that the range maps; those that can't move as they are, split first."""
        done: set[Folio] = set()
        for address in range(page, page + count):
            target = mm.page_at(address)
            if target is None or target.folio in done:
                continue
            folio = target.folio
            if folio.partially_mapped or (folio.order == self.thp_order and not huge):
                if not self.split_pinned(target, "other"):
                    done.add(folio)
                    continue
                target = mm.page_at(address)  # G2: a zeropage has nothing to migrate
                if target is None:
                    continue
                folio = target.folio
            done.add(folio)
            if not folio.pins and not target.locked:
                self.migrate_folio(folio, node)

    def migrate_folio(self, folio: Folio, node: int | None) -> None:
        """G1; Q2: a queued folio is queued anew."""
        for page in folio.pages if node is not None else ():
            page.nid = node
        heads = [mm.vma_at(mm.blocks.index(folio) * self.pages_per_thp) for mm in folio.pmds]
        folio.mlocks = sum(vma.locked for vma in heads)  # entries come back one by one
        if folio in self.queue:
            del self.queue[folio]
            self.enqueue(folio)

    def op_memory_failure(self, mm: Mm, page: int) -> int:
        """thp-split 3.6: the page is taken away from everybody; it stays allocated."""
        target = mm.page_at(page)
        if target is None:
            return EFAULT
        target.poisoned = True
        if target.folio.order and not self.split_pinned(target, "other"):
            return EBUSY
        self.pin(target)
        for sharer, address in sorted(target.maps, key=lambda at: (at[0].number, at[1])):
            self.lost(sharer, [address])
            self.unmap_ptes(sharer, [address])
            sharer.ptes[address] = POISON
        self.seen["page poisoned"] += 1
        return 0

    def op_merge_any(self, mm: Mm, value: int) -> None:
        """PR_SET_MEMORY_MERGE (S12, S17); the flags change in place: areas that become equal stay apart."""
        if mm.merge_any == bool(value):
            return
        mm.merge_any = bool(value)
        if value and not mm.registered:
            self.register(mm)
        for n, vma in enumerate(mm.vmas):
            if not value and vma.mergeable:
                self.unmerge(mm, vma.start, vma.end)
            mm.vmas[n] = dataclasses.replace(vma, mergeable=bool(value))

    def op_uffd(self, mm: Mm, page: int, count: int, value: int) -> int:
        """Registered for write protection, which is never asked for: only the flag of an area is seen (K4)."""
        self.madvise(mm, page, count, uffd=bool(value))
        return 0 if any(v is not None for v, _, _ in self.parts(mm, page, page + count)) else EINVAL

    def op_fork(self, mm: Mm) -> None:
        self.fork(mm)

    def op_exit(self, mm: Mm) -> None:
        self.exit(mm)
        self.op_unpin(mm)

    def op_split(self, mm: Mm, page: int, count: int) -> None:
        """debugfs split_huge_pages for a range; stops at the first address without an area (thp-split H13)."""
        for address in range(page, page + count):
            if mm.vma_at(address) is None:
                break
            target = mm.page_at(address)
            if target is not None and target.folio.order:
                self.split_pinned(target, "other")

    def op_split_all(self) -> None:
        for mm in self.mms:
            for address in range(mm.pages):
                target = mm.page_at(address)
                if target is not None and target.folio.order:
                    self.split_pinned(target, "other")

    def op_sleep(self, millisecs: int) -> None:
        self.pass_time(millisecs)

    def op_set(self, knob: str, value: int | str) -> int:
        if knob == "variant":
            self.variant = str(value)
        elif knob == "advisor_mode":
            self.set_advisor(str(value))
        elif knob == "pages_to_scan" and self.knobs["advisor_mode"] != "none":  # S29
            return EINVAL
        elif knob == "run":  # R1, R2
            if value != self.run and value == 2:
                self.run = 2
                self.unmerge_all()
            self.run = int(value)
        elif knob in ("max_page_sharing", "merge_across_nodes") and value != self.knobs[knob]:  # R4
            if knob == "max_page_sharing" and int(value) < 2:
                return EINVAL
            if self.pages_shared or not self.remove_all_nodes():
                return EBUSY
            self.knobs[knob] = int(value)
        else:
            if knob in ("khugepaged", "khugepaged_scan_sleep_millisecs"):
                self.khugepaged_due = self.now  # awake at once; it runs when time passes next
            self.knobs[knob] = int(value)
        return 0


OPERATIONS = {name.removeprefix("op_") for name in dir(Machine) if name.startswith("op_")}


def predict(trace: dict, *, every_map: bool = False) -> dict:
    """Run the scenario of `trace`; the result is a trace of the same format, with the occurrences `seen`.

    Of `trace` only the scenario, the variant, the kernel and the places of maps and frames are read.
    With `every_map` there are maps and frames after every sample.
    """
    machine = Machine(trace)
    unanswered = {"result": None, "sample": None}
    scenario = {**trace["scenario"], "events": [event | unanswered for event in trace["scenario"]["events"]]}
    sizes = any("orders" in process for process in scenario["processes"])
    sizes = sizes or bool(scenario["knobs"].get("hugepages_enabled"))
    advisor = ["pages_to_scan"] if any(knob.startswith("advisor") for knob in scenario["knobs"]) else []
    mthp = {f"mthp_{4 << order}kB_{n}": (order, n) for order in MTHP_ORDERS for n in MTHP_NAMES} if sizes else {}
    asked_maps = {(m["batch"], m["rank"]) for m in trace["maps"]}
    asked_frames = {(f["batch"], f["rank"]) for f in trace["frames"]}
    out = {
        "format": "kernel-trace-1",
        "name": trace.get("name", ""),
        "kernel": "mmlab reference",
        "variant": trace["variant"],
        "how": "predicted by the reference model",
        "scenario": scenario,
        "fields": [*FIELDS, *advisor, *mthp],
        "samples": [],
        "maps": [],
        "frames": [],
    }

    def sample(batch: int, rank: int) -> None:
        row = machine.sample() | {"batch": batch} | {field: machine.mthp[key] for field, key in mthp.items()}
        place = {"batch": batch, "rank": rank, "sample": len(out["samples"])}
        out["samples"].append([row[field] for field in out["fields"]])
        if every_map or (batch, rank) in asked_maps:
            out["maps"] += [place | {"process": n, "pages": machine.page_map(mm)} for n, mm in enumerate(machine.mms)]
        if every_map or (batch, rank) in asked_frames:
            frames, ksm_frames = machine.frames()
            out["frames"].append(place | {"frames": frames, "ksm_frames": ksm_frames})

    def events(batch: int, full_scan: int | None) -> None:
        due = [e for e in waiting if e["after"] in ({"batch": batch}, {"full_scan": full_scan})]
        for rank, event in enumerate(due, start=1):
            waiting.remove(event)  # once: after run = 2 the same full scan comes again
            machine.place = batch, rank
            event["result"] = machine.event(event)
            event["sample"] = len(out["samples"])
            sample(batch, rank)

    waiting = list(scenario["events"])
    sample(0, 0)
    events(0, None)
    machine.op_set("run", 1)
    for batch in range(1, scenario["batches"] + 1):
        machine.place = batch, 0
        completed = machine.batch()
        sample(batch, 0)
        events(batch, machine.full_scans if completed else None)
    out["seen"] = machine.seen
    out["decisions"] = machine.decisions
    out["steps"] = {"dup_walk": machine.dups_walked, "skip": machine.pages_skipped}
    return out
