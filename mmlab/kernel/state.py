"""The machine: every table of the model, declared once.

A machine is a set of structured arrays that the compiled functions of this package read and write in place. Indices are
plain integers, and -1 means "none". A *page* is one virtual page of a process: its page table entry and its rmap_item,
of which an address has at most one. A *frame* is one 4 KiB page of memory. A *folio* record exists only for a folio of
more than one page. Nothing here knows files, figures or wall-clock time.

The modules of this package, and only they, import this one with `import *`.
"""

import re
from collections.abc import Callable
from typing import Annotated

import numpy as np
from numba import from_dtype, types

from mmlab.kernel.jit import Tables, TableType
from mmlab.kernel.versions import DIFFERENCES

_FIELDS = re.compile(r" *([a-z_, ]+): (u?int\d+)\b")


def _record(table: Callable[[], None]) -> np.dtype:
    """Return the type of a record whose fields a docstring lists, `name, name: type   meaning` a line."""
    rows = filter(None, map(_FIELDS.match, (table.__doc__ or "").splitlines()))
    return np.dtype([(name, row[2]) for row in rows for name in row[1].split(", ")], align=True)


# --- one virtual page -----------------------------------------------------------------------------------------------
# What a page table entry maps (README "Vocabulary"). ANON is any anonymous page, KSM pages included.
NONE, ANON, ZP_CLEAN, ZP_KSM, HUGE_ZP, SWAP, POISON = range(7)
# Bits of an ANON entry. An EXCLUSIVE one is writable in a writable VMA unless it is READ_ONLY, as break_ksm leaves it
# until the first write. OLD: not accessed since MADV_COLD.
DIRTY, EXCLUSIVE, KSM_PAGE, READ_ONLY, OLD = 1, 2, 4, 8, 16
# Flags of the page's VMA
VM_PRESENT, VM_MERGEABLE, VM_LOCKED, VM_HUGEPAGE, VM_WRITE, VM_UFFD, VM_NOHUGEPAGE = 1, 2, 4, 8, 16, 32, 64
# State of the page's rmap_item (ksm-scan S20), 0: there is none. REWRITTEN, beside CHECKSUM: written to since.
ITEM, CHECKSUM, UNSTABLE, STABLE, REWRITTEN = 1, 2, 4, 8, 16


@_record
def pte_t() -> None:
    """Describe what walks over all pages read: a page's entry, its VMA, and the small fields of its rmap_item.

    kind: uint8     what the entry maps, NONE to POISON
    bits: uint8     bits of an ANON entry
    vm: uint8       flags of the VMA
    item: uint8     state of the rmap_item
    age: uint8
    skips: uint8    remaining_skips
    seq: uint8      low 8 bits of full_scans when the item entered the unstable tree (ksm-scan S19)
    nid: uint8      NUMA node whose unstable tree holds the item
    """


@_record
def page_t() -> None:
    """Describe the large fields of a page and of its rmap_item.

    An UNSTABLE item uses left, right and parent as links of the tree (see rbtree); for a STABLE one, left and right
    are the next and the previous item of the node's list, and parent is the stable node.

    key: uint64     content: numeric order is memcmp order, 0 is the page of zeros (ksm-merge M13)
    frame: int32    frame that an ANON entry maps; -2 - slot of a SWAP entry; -1: none
    left, right, parent: int32
    """


# --- page tables: one record for a block of pages_per_thp virtual pages ---------------------------------------------
PMD_NONE, PMD_TABLE, PMD_HUGE, PMD_HUGE_ZP = range(4)


@_record
def block_t() -> None:
    """Describe one entry of a page middle directory.

    mm: int32       process
    pmd: uint8      what the entry is, PMD_NONE to PMD_HUGE_ZP
    more: int32     how many blocks after it, all of them holes, it stands for besides itself
    ahead: int32    how many blocks before it are left out so
    """


# --- physical memory ------------------------------------------------------------------------------------------------
KSM, MLOCKED, FREE, POISONED = 1, 2, 4, 8  # frame flags
# Flags of a folio, kept in its first frame: marked by MADV_FREE; dirty whatever its entries say
LAZY, PG_DIRTY = 16, 32
# Flags of a small page: locked, by a collapse or for good by a bug (kernel-7 7.10); in the CPU's batch instead of on an
# LRU list; accessed, whatever its entries say
LOCKED, NO_LRU, REFERENCED = 64, 128, 256
NID_SHIFT = 12
"""The bits from here on are the frame's NUMA node."""


@_record
def frame_t() -> None:
    """Describe 4 KiB of memory.

    mapcount: int32     page table entries that map it (the folio counts huge PMDs); of a free frame: the next one
    folio: int32        its large folio; -1: the page is order 0; -2 - slot: it is order 0 and in the swap cache
    node: int32         stable node of a KSM page, which may have none (ksm-merge M14)
    pins: uint16        references beyond the mappings, of an order-0 page
    flags: uint16
    """


@_record
def folio_t() -> None:
    """Describe a large folio.

    head: int32         its first frame; the others follow
    family: int32       processes that can map it: those forked from one another
    index: int32        page number of its first page in their region
    mapcount: int32     huge PMDs and page table entries together
    entire: int32       huge PMDs that map it
    nr_mapped: int32    its pages that at least one page table entry maps
    pins: int32         references beyond the mappings
    zeros: int32        pages that were zero-filled when the last mapping of a pinned folio went
    mlocks: int32       times that it was mlocked as a whole
    owner, second: int32             two processes that map it, as far as it knows them; 0: none
    owner_maps, second_maps: int32   part of mapcount that is theirs
    next, prev: int32   deferred split queue, whose head is record 0; prev is -1 for a folio that is not on it
    order: uint8
    partially_mapped: uint8
    shared: uint8       mapped by several processes, as far as it knows
    """


# --- KSM ------------------------------------------------------------------------------------------------------------
# Kinds of stable nodes. MIGRATED: on the side list (ksm-merge M1), that of record 0. NO_NODE: a free record.
NODE, CHAIN, DUP, MIGRATED, NO_NODE = range(5)


@_record
def node_t() -> None:
    """Describe a stable node or a chain.

    key: uint64             content
    prune_jiffies: int64    CHAIN: time of the last full walk
    left, right: int32      links in the stable tree (NODE, CHAIN); next and previous one (DUP, MIGRATED)
    kind: uint8             NODE to NO_NODE
    quiet: int32            CHAIN: dups that another search would walk and leave as they are; 0: it has to be made
    frame: int32            its KSM page, to which the node holds no reference (ksm-merge T1)
    parent: int32           link in the stable tree
    first: int32            first rmap_item (NODE, DUP, MIGRATED), first dup (CHAIN), next free node (NO_NODE)
    nid: int32              NUMA node of the tree that holds it
    len: int32              NODE, DUP: rmap_hlist_len; CHAIN: number of its dups that have room
    chain: int32            DUP: its chain
    dups: int32             CHAIN: number of its dups
    """


@_record
def swap_t() -> None:
    """Describe a slot of the swap area.

    count: int32    entries that refer to it
    cache: int32    its page in the swap cache; of a free slot: the next one
    zero: uint8     zero-filled, so never written or read (thp-split W4)
    """


@_record
def mm_t() -> None:
    """Describe a process.

    base: int32             its first page in `Machine.page`
    pages: int32
    family: int32           its oldest ancestor
    parent: int32           process that it was forked from; 0: none
    next, prev: int32       ksmd's list of processes, whose head is record 0
    registered: uint8       it is on that list
    exited: uint8
    rmap_items: int32
    merging_pages: int32
    mergeable: int32        pages in VMAs with VM_MERGEABLE
    khugepaged: uint8       khugepaged knows it (khugepaged K2)
    merge_any: uint8        prctl PR_SET_MEMORY_MERGE
    forbids_zeropages: uint8
    nid: uint8              NUMA node of its memory
    """


@_record
def tree_t() -> None:
    """Describe the trees of one NUMA node.

    stable, unstable: int32     roots
    nodes: int32                nodes of the unstable tree, those included that are only indexed
    depth: int32                bits of that number
    built: int32                depth when the tree was last built
    least, most: uint64         smallest and largest content that the unstable tree has seen
    """


@_record
def vma_t() -> None:
    """Describe a VMA. The table holds all of them in the order in which reverse mapping visits them (thp-split Z4).

    family: int32
    base: int32         first page of the process's region
    start, end: int32   pages of the region
    moved: int32        by how many pages mremap has moved it: pages keep the numbers by which their folios know them
    vm: uint8           flags
    """


EAGAIN, EFAULT, EBUSY, EINVAL = 11, 14, 16, 22  # Linux's, wherever this runs
# What a variant lets ksmd do with a page (fix-variants 5.7), as `mmlab.variants.VISITS`
MAY_MERGE, ZEROPAGE_ONLY, LEAVE = range(3)
# Who splits a folio (fix-variants 5.1), as `mmlab.variants.CALLERS`
CALLER_KSM, CALLER_UNDERUSED, CALLER_PARTIALLY_MAPPED, CALLER_OTHER = range(4)

# --- knobs, cursor, counters ----------------------------------------------------------------------------------------
KNOBS = """
    run use_zero_pages pages_to_scan sleep_millisecs smart_scan max_page_sharing shrink_underused max_ptes_none
    stable_node_chains_prune_millisecs merge_across_nodes swap_mib advisor_mode advisor_max_cpu
    advisor_min_pages_to_scan advisor_max_pages_to_scan advisor_target_scan_time khugepaged khugepaged_pages_to_scan
    khugepaged_scan_sleep_millisecs max_ptes_swap max_ptes_shared
""".split()
"""What sysfs sets."""
ADVISOR_MODES = ("none", "scan-time")
"""Values of the knob advisor_mode, by their number in the state."""


@_record
def _variables_t() -> None:
    """Describe the global variables of the model.

    early_stop: int64                           the variant skip-zeropage
    choosy: int64                               the variant lets ksmd leave pages alone
    hz, hpage_order, nodes: int64               timer ticks a second; order of a THP; NUMA nodes
    cursor_mm, cursor: int64                    ksmd's cursor: process and page of its region
    found_vma: int64                            ksmd has visited a page of that process in this full scan
    unmerged: int64                             a VMA has ceased to be mergeable in this full scan
    stale_nodes: int64                          stable nodes whose page was freed
    indexed, direct: int64                      unstable tree: an index is allowed; items that go into the tree first
    index_first, index_last, index_bits: int64  unstable tree: items of the index; bits of its size
    top_frame, free_frame, free_run: int64      first frame never used; free frames; free huge pages
    top_folio, free_folio: int64                first record never used; free records
    top_node, free_node: int64
    top_slot, free_slot, swap_used: int64
    khugepaged_mm, khugepaged_address: int64    khugepaged's cursor
    khugepaged_more: int64                      blocks that it has scanned of those for which one at the cursor stands
    hugepages: int64                            orders of folios that are enabled, as bits
    bug_visit, bug_page: int64                  the first kernel bug: number of ksmd's visit, visited page
    logged: int64                               events in `Machine.log`
    jiffies: int64                              time of the current batch
    prune_before: int64                         chains last walked in full before this time are walked in full
    batch_cpu_ns: int64                         ksmd's CPU time when the batch started
    advisor_start_ns, advisor_cpu_ns: int64     time and CPU time when the full scan started
    ksmd_cpu_before_ns: int64                   ksmd's CPU time before the scenario
    advisor_scan_time, advisor_change: int64    history of the scan-time advisor
    """


state_t = np.dtype([(name, np.int64) for name in (*KNOBS, *DIFFERENCES, *(_variables_t.names or ()))])
"""Knobs, flags of the kernel version (`mmlab.kernel.versions`), and global variables."""


@_record
def stat_t() -> None:
    """Describe the counters of a sample. Names that the kernel has are the kernel's.

    time_ns, ksmd_cpu_ns: int64
    batch, rank: int64                          number of the last batch; events and timers since
    full_scans, pages_scanned, pages_skipped, pages_shared, pages_sharing, pages_unshared, ksm_zero_pages: int64
    stable_node_chains, stable_node_dups: int64
    rmap_items: int64
    proc_ksm_rmap_items, proc_ksm_merging_pages: int64      of processes that have not exited
    anon_pages, huge_pmds, ksm_entries, swap_entries, zeropage_entries: int64
    frames, ksm_frames: int64                   frames in use; those that are KSM pages
    deferred_queue_len: int64
    thp_split_page, thp_split_page_failed, thp_split_pmd, thp_underused_split_page, thp_deferred_split_page: int64
    thp_fault_alloc, thp_collapse_alloc: int64
    ksm_swpin_copy, cow_ksm: int64
    pswpout, pswpin, thp_swpout_fallback: int64
    wasted_visits: int64                        searches of the unstable tree that a dead node ended
    changed_checksums: int64
    freed_by_batch: int64                       frames
    pages_to_scan: int64
    pages_collapsed, khugepaged_full_scans, khugepaged_cpu_ns: int64
    thp_scan_exceed_none_pte, thp_scan_exceed_swap_pte, thp_scan_exceed_share_pte: int64
    thp_migration_split, pgmigrate_success: int64
    zeropages_by_ksm, zeropages_by_shrinker, zeropages_by_other: int64      remapped by splits, by caller
    zero_scans: int64                           pages that the underused test looked at
    kernel_bugs: int64                          times that a bug of the kernel left a page locked (kernel-7 7.10)
    """


# Records of `Machine.passes`: the first, the last and the first settled full scan
FIRST, LAST, SETTLED = range(3)


@_record
def pass_t() -> None:
    """Describe the state at the end of a full scan. What has changed since then decides whether ksmd has settled.

    full_scan: int64    0: there was none yet
    time_ns, frames, ksm_pages, skipped: int64
    work: int64         merges, pages of folios that were split, and changed checksums, all counted together
    """


@_record
def event_t() -> None:
    """Describe a decision that was logged (see `decisions`).

    time_ns, value: int64
    batch, rank, full_scan: int32                       the sample that it leads to; the full scan under way, from 1
    process, page, count, other_process, other_page: int32      -1: none
    what: int32                                         its number in `Decision`
    """


@_record
def mthp_t() -> None:
    """Describe the kernel's statistics of one folio size.

    split, split_failed, split_deferred, nr_anon, nr_anon_partially_mapped, anon_fault_alloc, collapse_alloc: int64
    collapse_exceed_none_pte, collapse_exceed_swap_pte, collapse_exceed_shared_pte: int64
    """


# Steps that ksmd and khugepaged do, counted for their CPU time; `mmlab.engine.costs` has the cost of each
VISIT, VISIT_THP, VISIT_KSM, SKIP, PASS_OVER, TREE_LEVEL, TREE_COLD, DUP_WALK, MERGE, MERGE_ZERO = range(10)
SPLIT, SPLIT_PAGE, REMAP, END_OF_PASS, WAKE_UP, STABLE_LEVEL, KHUGEPAGED_PTE, KHUGEPAGED_COPY = range(10, 18)
NR_KSMD_STEPS, NR_STEPS = 16, 20  # the last two are parts of others

CACHED_LEVELS = 10
"""Upper levels of a tree, 2^10 nodes, that stay in the CPU's caches: deeper levels were measured to cost more."""

# A CPU's batches: of mlock work (ksm-merge M15), of pages on their way to an LRU list (khugepaged K8)
MLOCK, LRU = range(2)
PAGEVEC_SIZE = 31
"""Room of each batch."""

MAX_NODES = 8
"""NUMA nodes that a machine may have."""


class Machine(Tables):
    """All state of one simulated machine. The types of this module describe the records of its tables."""

    pte: Annotated[np.ndarray, pte_t]
    """virtual pages of all processes; each process's region is aligned to a THP"""
    page: Annotated[np.ndarray, page_t]
    """the large fields of the same pages"""
    oldchecksum: Annotated[np.ndarray, np.dtype(np.uint64)]
    """content of each REWRITTEN page at its last checksum; other pages still have it"""
    occupied: Annotated[np.ndarray, np.dtype(np.uint64)]
    """one bit a page: it may map an anonymous page or have an rmap_item; ksmd's walk clears it later"""
    block: Annotated[np.ndarray, block_t]
    """one record for each pages_per_thp pages"""
    frame: Annotated[np.ndarray, frame_t]
    """physical memory"""
    folio: Annotated[np.ndarray, folio_t]
    """large folios"""
    node: Annotated[np.ndarray, node_t]
    """stable nodes and chains"""
    swap: Annotated[np.ndarray, swap_t]
    """slots of the swap area"""
    mm: Annotated[np.ndarray, mm_t]
    """processes: process i is record i + 1, record 0 is the head of ksmd's list"""
    vma: Annotated[np.ndarray, vma_t]
    """VMAs of all processes, in the order of reverse mapping"""
    area: Annotated[np.ndarray, vma_t]
    """the same in the order of addresses"""
    tree: Annotated[np.ndarray, tree_t, MAX_NODES]
    """one record a NUMA node; only the first is used unless merge_across_nodes is 0"""
    index: Annotated[np.ndarray, np.dtype(np.int32)]
    """hash table by content of the unstable tree's items that are not in the tree yet: page + 1, 0 for none"""
    state: Annotated[np.ndarray, state_t, 1]
    """one record: knobs, flags of the kernel version, global variables"""
    stat: Annotated[np.ndarray, stat_t, 1]
    """one record: the current counters"""
    mthp: Annotated[np.ndarray, mthp_t, 10]
    """one record for each order"""
    passes: Annotated[np.ndarray, pass_t, 3]
    """the FIRST, the LAST and the first SETTLED full scan"""
    entries: Annotated[np.ndarray, np.dtype(np.int64), 7]
    """number of entries of each kind, NONE to POISON, relative to the start"""
    steps: Annotated[np.ndarray, np.dtype(np.int64), NR_STEPS]
    """how often each step was done"""
    costs: Annotated[np.ndarray, np.dtype(np.int64), NR_STEPS]
    """cost of each step, ns"""
    remap: Annotated[np.ndarray, np.dtype(np.uint8), 32]
    """the variant's truth table, at `variants.remap_index`"""
    visits: Annotated[np.ndarray, np.dtype(np.uint8), 64]
    """what ksmd does with a page, MAY_MERGE to LEAVE, at `variants.visit_index`"""
    fbatch: Annotated[np.ndarray, np.dtype(np.int32), 2 * PAGEVEC_SIZE]
    """frames in the CPU's batches, MLOCK and LRU"""
    fbatch_len: Annotated[np.ndarray, np.dtype(np.int64), 2]
    """how many frames are in each"""
    present: Annotated[np.ndarray, np.dtype(np.uint8), 512]
    """which pages of the block that khugepaged has scanned are present"""
    listed: Annotated[np.ndarray, np.dtype(np.int32)]
    """pages that `memory.write_listed_pages` writes"""
    log: Annotated[np.ndarray, event_t]
    """events since the last sample; of length 0 unless they are asked for"""


Tables.parameters.update(
    key=[types.uint64],
    kkey=[types.uint64],
    t=[TableType(from_dtype(page_t)), TableType(from_dtype(node_t))],
    linked=[TableType(from_dtype(mm_t)), TableType(from_dtype(folio_t))],
    orders=[types.Array(types.uint8, 1, "C", readonly=True)],
    touched=[types.Array(types.boolean, 1, "C", readonly=True)],
    keys=[types.uint64[::1]],
    letters=[types.uint8[::1]],
    rows=[from_dtype(stat_t)[::1]],
    mthp_rows=[from_dtype(mthp_t)[:, ::1]],
)
"""Parameters of compiled functions that are neither the machine, `m`, nor an int64."""


def machine(pages: int, mms: int, hpage_order: int) -> Machine:
    """Return an empty machine with room for `pages` virtual pages in `mms` processes.

    Tables of frames, folios and nodes are larger than the start needs. Memory that is not used is not touched.
    """
    m = Machine(
        pte=pages,
        page=pages,
        oldchecksum=pages,
        occupied=(pages + 63) // 64,
        block=pages >> hpage_order,
        frame=2 * pages + (1 << hpage_order),
        folio=pages // 2 + 16,
        node=pages // 2 + 16,
        swap=pages,
        mm=1 + mms,
        index=1 << max(1, (pages - 1).bit_length()),
    )
    s = m.state[0]
    s["hpage_order"] = hpage_order
    s["index_bits"] = len(m.index).bit_length() - 1
    m.tree["stable"] = m.tree["unstable"] = m.node["first"][:1] = -1
    for name in ("frame", "run", "folio", "node", "slot"):
        s[f"free_{name}"] = -1
    s["index_first"] = s["index_last"] = -1
    s["top_folio"] = s["top_node"] = 1  # record 0 is the head of the deferred split queue, and of the migrated nodes
    return m
