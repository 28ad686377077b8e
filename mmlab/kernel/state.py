"""The machine: every array of the model, declared once.

A machine is a set of structured arrays that the compiled functions of this package read and write in place. Indices are
plain integers and -1 means "none". A *page* is one virtual page of a process: its page table entry and, because there
is at most one for an address, ksmd's rmap_item for it. A *frame* is one 4 KiB page of memory; a *folio* record exists
only for folios of more than one page. Nothing here knows files, plots or wall-clock time.
"""

from typing import Annotated

import numpy as np
from numba import from_dtype, types

from mmlab.kernel.jit import Tables, TableType

__all__ = ["Machine", "machine"]

# --- one virtual page -----------------------------------------------------------------------------------------------
# What its entry maps (README "Vocabulary"). ANON is any anonymous page, KSM pages included.
NONE, ANON, ZP_CLEAN, ZP_KSM, HUGE_ZP, SWAP, POISON = range(7)
DIRTY, EXCLUSIVE, KSM_PAGE = 1, 2, 4  # bits of an ANON entry. EXCLUSIVE in a writable VMA is writable,
READ_ONLY, OLD = 8, 16  # unless READ_ONLY: given back by break_ksm, not written yet. OLD: not accessed since MADV_COLD
VM_PRESENT, VM_MERGEABLE, VM_LOCKED, VM_HUGEPAGE, VM_WRITE, VM_UFFD = 1, 2, 4, 8, 16, 32  # flags of the page's VMA
ITEM, CHECKSUM, UNSTABLE, STABLE = 1, 2, 4, 8  # state of its rmap_item (ksm-scan S20); 0: there is none
REWRITTEN = 16  # with CHECKSUM: the page was written to since

pte_t = np.dtype(  # what walks over all pages read: its entry, its VMA, and the small fields of its rmap_item
    [
        ("kind", np.uint8),
        ("bits", np.uint8),
        ("vm", np.uint8),
        ("item", np.uint8),
        ("age", np.uint8),
        ("skips", np.uint8),  # remaining_skips
        ("seq", np.uint8),  # low 8 bits of full_scans when the item entered the unstable tree (S19)
        ("nid", np.uint8),  # NUMA node of the unstable tree that the item is in
    ],
    align=True,
)
page_t = np.dtype(
    [
        ("key", np.uint64),  # content: numeric order is memcmp order, 0 is the page of zeros (ksm-merge M13)
        ("frame", np.int32),  # frame that an ANON entry maps; -2 - slot of a SWAP entry; -1: none
        ("left", np.int32),  # UNSTABLE: tree links (rbtree). STABLE: left and right are the next and the previous item
        ("right", np.int32),  #   of the node's list, and parent is the stable node itself
        ("parent", np.int32),
    ],
    align=True,
)

# --- page tables: one record for a block of pages_per_thp virtual pages ---------------------------------------------
PMD_NONE, PMD_TABLE, PMD_HUGE, PMD_HUGE_ZP = 0, 1, 2, 3
block_t = np.dtype([("mm", np.int32), ("pmd", np.uint8)], align=True)

# --- physical memory ------------------------------------------------------------------------------------------------
KSM, MLOCKED, FREE, POISONED = 1, 2, 4, 8  # frame flags
LOCKED, NO_LRU = 64, 128  # of a small page: locked by a collapse; in the CPU's batch, not on an LRU list
REFERENCED = 256  # of a small page: accessed, whatever its entries say
NID_SHIFT = 12  # the bits above: NUMA node
LAZY, PG_DIRTY = 16, 32  # … of its folio, kept in the first frame: by MADV_FREE; dirty whatever the entries say
frame_t = np.dtype(
    [
        ("mapcount", np.int32),  # page table entries that map it (huge PMDs are counted in the folio); next free frame
        ("folio", np.int32),  # its large folio; -1: the page is order 0, -2 - slot: … and in the swap cache
        ("node", np.int32),  # stable node of a KSM page; a KSM page may have none (ksm-merge M14)
        ("pins", np.uint16),  # references beyond the mappings, of an order-0 page
        ("flags", np.uint16),
    ],
    align=True,
)
folio_t = np.dtype(
    [
        ("head", np.int32),  # its first frame; the others follow
        ("family", np.int32),  # processes that can map it: those forked from one another
        ("index", np.int32),  # page number of its first page in their region
        ("mapcount", np.int32),  # huge PMDs and page table entries together
        ("entire", np.int32),  # huge PMDs that map it
        ("nr_mapped", np.int32),  # pages of it that at least one page table entry maps
        ("pins", np.int32),  # references beyond the mappings
        ("next", np.int32),  # deferred split queue; -1: not queued
        ("prev", np.int32),
        ("order", np.uint8),
        ("partially_mapped", np.uint8),
    ],
    align=True,
)

# --- KSM ------------------------------------------------------------------------------------------------------------
NODE, CHAIN, DUP, MIGRATED, NO_NODE = range(5)  # MIGRATED: on the side list (ksm-merge M1); NO_NODE: a free record
node_t = np.dtype(
    [
        ("key", np.uint64),
        ("prune_jiffies", np.int64),  # CHAIN: time of the last full walk
        ("left", np.int32),  # stable tree (NODE, CHAIN)
        ("right", np.int32),
        ("kind", np.uint8),
        ("quiet", np.uint8),  # CHAIN: its dups are as the last search left them, and the next would leave them so too
        ("frame", np.int32),  # its KSM page; the node holds no reference (ksm-merge T1)
        ("parent", np.int32),
        ("first", np.int32),  # first rmap_item (NODE, DUP), first dup (CHAIN); next free node
        ("nid", np.int32),  # NUMA node of the tree that it is in
        ("len", np.int32),  # NODE, DUP: rmap_hlist_len; CHAIN: how many of its dups have room
        ("next", np.int32),  # DUP: the chain's other dups
        ("prev", np.int32),
        ("chain", np.int32),  # DUP: its chain
    ],
    align=True,
)
swap_t = np.dtype(  # a slot of the swap area
    [
        ("count", np.int32),  # entries that refer to it
        ("cache", np.int32),  # its page in the swap cache, -1: none; next free slot
        ("zero", np.uint8),  # zero-filled: never written, never read (thp-split W4)
    ],
    align=True,
)
mm_t = np.dtype(
    [
        ("base", np.int32),  # its first page in `page`
        ("pages", np.int32),
        ("family", np.int32),  # the oldest ancestor
        ("parent", np.int32),  # the process that it was forked from, 0: none
        ("next", np.int32),  # ksmd's list of mms; record 0 is the list's head
        ("prev", np.int32),
        ("registered", np.uint8),
        ("exited", np.uint8),
        ("rmap_items", np.int32),
        ("merging_pages", np.int32),
        ("zero_pages", np.int32),
        ("mergeable", np.int32),  # pages in VMAs with VM_MERGEABLE
        ("khugepaged", np.uint8),  # khugepaged knows it (khugepaged K2)
        ("merge_any", np.uint8),  # prctl PR_SET_MEMORY_MERGE
        ("forbids_zeropages", np.uint8),
        ("nid", np.uint8),  # NUMA node of its memory
    ],
    align=True,
)
tree_t = np.dtype(  # roots of a NUMA node's trees
    [
        ("stable", np.int32),
        ("unstable", np.int32),
        ("nodes", np.int32),  # of the unstable tree, those that are only indexed too
        ("depth", np.int32),  # bits of that number
        ("built", np.int32),  # … when the tree was last built
        ("least", np.uint64),  # contents that it has seen
        ("most", np.uint64),
    ],
    align=True,
)
vma_t = np.dtype(  # all VMAs in the order in which reverse mapping visits them (thp-split Z4)
    [("family", np.int32), ("base", np.int32), ("start", np.int32), ("end", np.int32), ("vm", np.uint8)], align=True
)

CALLER_KSM, CALLER_UNDERUSED, CALLER_PARTIALLY_MAPPED, CALLER_OTHER = range(4)
"""Who splits a folio (fix-variants 5.1)."""

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

state_t = np.dtype(
    [
        (name, np.int64)
        for name in [
            *KNOBS,
            *"""
            early_stop kernel hz hpage_order cursor_mm cursor found_vma unmerged stale_nodes
            indexed direct index_first index_last index_bits
            top_frame free_frame free_run top_folio free_folio top_node free_node top_slot free_slot swap_used
            queue_first queue_last mlock_len lru_len khugepaged_mm khugepaged_address
            jiffies prune_before batch_cpu_ns advisor_start_ns advisor_cpu_ns advisor_scan_time advisor_change
            """.split(),
        ]
    ]
)

stat_t = np.dtype(
    [
        (name, np.int64)
        for name in """
        time_ns ksmd_cpu_ns batch rank full_scans pages_scanned pages_skipped pages_shared pages_sharing
        pages_unshared ksm_zero_pages stable_node_chains stable_node_dups rmap_items proc_ksm_rmap_items
        proc_ksm_merging_pages anon_pages huge_pmds ksm_entries swap_entries zeropage_entries
        frames ksm_frames deferred_queue_len thp_split_page thp_split_page_failed thp_split_pmd
        thp_underused_split_page thp_deferred_split_page thp_fault_alloc thp_collapse_alloc ksm_swpin_copy cow_ksm
        pswpout pswpin thp_swpout_fallback wasted_visits changed_checksums freed_by_batch pages_to_scan
        pages_collapsed khugepaged_full_scans khugepaged_cpu_ns thp_scan_exceed_none_pte thp_scan_exceed_swap_pte
        thp_scan_exceed_share_pte thp_migration_split pgmigrate_success
        zeropages_by_ksm zeropages_by_shrinker zeropages_by_other zero_scans
        """.split()
    ]
)

# The state at the end of a full scan; what has changed since tells whether ksmd has settled
FIRST, LAST, SETTLED = range(3)
pass_t = np.dtype(
    [(name, np.int64) for name in "full_scan time_ns frames ksm_pages skipped merges splits checksums".split()]
)

mthp_t = np.dtype(  # one record an order: the kernel's statistics of that folio size
    [(name, np.int64) for name in ("split", "split_failed", "split_deferred", "nr_anon", "nr_anon_partially_mapped")]
)

# What ksmd and khugepaged do, counted for their CPU time; mmlab.engine.costs says what each costs
(
    VISIT,
    VISIT_THP,
    VISIT_KSM,
    SKIP,
    PASS_OVER,
    TREE_LEVEL,
    TREE_COLD,
    MERGE,
    MERGE_ZERO,
    SPLIT,
    SPLIT_PAGE,
    REMAP,
    END_OF_PASS,
    WAKE_UP,
    KHUGEPAGED_PTE,
    KHUGEPAGED_COPY,
) = range(16)
NR_KSMD_STEPS, NR_STEPS = 14, 16

CACHED_LEVELS = 10
"""Upper levels of a tree, 2^10 nodes, that stay in the CPU's caches: measured, a level cost more in larger trees."""

PAGEVEC_SIZE = 31
"""Entries of a CPU's batches: of mlock work (ksm-merge M15), of pages on their way to an LRU list (khugepaged K8)."""


MAX_NODES = 8
"""NUMA nodes that a machine may have."""


class Machine(Tables):
    """All state of one simulated machine; see the types of this module."""

    pte: Annotated[np.ndarray, pte_t]
    """virtual pages of all processes, each process's region aligned to a THP"""
    page: Annotated[np.ndarray, page_t]
    """… the same pages"""
    oldchecksum: Annotated[np.ndarray, np.dtype(np.uint64)]
    """… the content at the last checksum of a page that is REWRITTEN; others have it still"""
    occupied: Annotated[np.ndarray, np.dtype(np.uint64)]
    """… a bit each: may map a page or have an rmap_item; ksmd's walk clears it late"""
    block: Annotated[np.ndarray, block_t]
    """… / pages per THP"""
    frame: Annotated[np.ndarray, frame_t]
    folio: Annotated[np.ndarray, folio_t]
    node: Annotated[np.ndarray, node_t]
    swap: Annotated[np.ndarray, swap_t]
    mm: Annotated[np.ndarray, mm_t]
    """process i is record i + 1"""
    vma: Annotated[np.ndarray, vma_t]
    tree: Annotated[np.ndarray, tree_t]
    """one record a NUMA node; only the first unless merge_across_nodes is 0"""
    index: Annotated[np.ndarray, np.dtype(np.int32)]
    """hash table by content of the unstable tree's items that the tree was not built of yet: page + 1"""
    state: Annotated[np.ndarray, state_t]
    """one record"""
    stat: Annotated[np.ndarray, stat_t]
    """one record: the counters of now"""
    mthp: Annotated[np.ndarray, mthp_t]
    """one record an order"""
    passes: Annotated[np.ndarray, pass_t]
    """FIRST, LAST and SETTLED; full_scan is 0 where there was none yet"""
    steps: Annotated[np.ndarray, np.dtype(np.int64)]
    """how often ksmd has done each step"""
    costs: Annotated[np.ndarray, np.dtype(np.int64)]
    """ns a step"""
    remap: Annotated[np.ndarray, np.dtype(np.uint8)]
    """the variant: caller * 8 + mergeable * 4 + KSM running * 2 + shrink_underused"""
    mlock: Annotated[np.ndarray, np.dtype(np.int32)]
    """frames in the CPU's batch of mlock work"""
    lru: Annotated[np.ndarray, np.dtype(np.int32)]
    """frames in the CPU's batch of pages on their way to an LRU list"""
    listed: Annotated[np.ndarray, np.dtype(np.int32)]
    """pages that `memory.write_listed_pages` writes"""


Tables.parameters.update(
    key=[types.uint64],
    kkey=[types.uint64],
    t=[TableType(from_dtype(page_t)), TableType(from_dtype(node_t))],
    orders=[types.Array(types.uint8, 1, "C", readonly=True)],
    letters=[types.uint8[::1]],
    seen=[types.uint8[::1]],
    rows=[from_dtype(stat_t)[::1]],
    mthp_rows=[from_dtype(mthp_t)[:, ::1]],
)
"""Parameters of compiled functions that are neither the machine, `m`, nor an int64."""


def machine(pages: int, mms: int, hpage_order: int) -> Machine:
    """An empty machine with room for `pages` virtual pages in `mms` processes.

    Frames, folios and nodes get room beyond what is mapped at first; memory that is not used is not touched.
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
        tree=MAX_NODES,
        index=1 << max(1, (pages - 1).bit_length()),
        state=1,
        stat=1,
        mthp=10,
        passes=3,
        steps=NR_STEPS,
        costs=NR_STEPS,
        remap=32,
        mlock=PAGEVEC_SIZE,
        lru=PAGEVEC_SIZE,
    )
    s = m.state[0]
    s["hpage_order"] = hpage_order
    s["index_bits"] = len(m.index).bit_length() - 1
    m.tree["stable"] = m.tree["unstable"] = -1
    for name in ("index_first", "index_last", "free_frame", "free_run", "free_folio", "free_node", "free_slot"):
        s[name] = -1
    s["queue_first"] = s["queue_last"] = -1
    return m
