"""Conservation laws: every counter of a run against a recount from the machine's arrays.

`check(run)` holds at the end of any run, in the middle of a pass too. It shares nothing with the model but the types of
the arrays: lists and trees are followed link by link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mmlab.kernel.state import (
    ANON,
    CHAIN,
    DUP,
    FREE,
    HUGE_ZP,
    ITEM,
    KSM,
    MIGRATED,
    NO_NODE,
    NODE,
    NONE,
    PMD_HUGE,
    PMD_HUGE_ZP,
    PMD_NONE,
    POISON,
    POISONED,
    STABLE,
    SWAP,
    UNSTABLE,
    VM_MERGEABLE,
    ZP_CLEAN,
    ZP_KSM,
    Machine,
)
from mmlab.results.run import Run
from mmlab.scenario import Set


def check(run: Run, pinned: Sequence[int] = ()) -> None:
    """All laws; `pinned` are the frames that processes hold, once for each pin."""
    m = run.machine
    live = _frames(m)
    held = np.bincount(np.array(pinned, int), minlength=len(live))
    _mappings(m, live, held * (m.frame["folio"] < 0))
    _folios(m, live, held)
    _stable_tree(m, live)
    _unstable_tree(m)
    _items(m)
    _address_spaces(m)
    _rows(run)


def _follow(first: int, links: np.ndarray) -> Iterator[int]:
    seen = 0
    while first >= 0:
        yield first
        seen += 1
        assert seen <= len(links), "a list that bites its tail"
        first = int(links[first])


def _listed(table: np.ndarray) -> list[int]:
    """The records on the list whose head is record 0; its links are right in both directions."""
    found = [0]
    while at := int(table[found[-1]]["next"]):
        assert table[at]["prev"] == found[-1] and at not in found
        found.append(at)
    assert table[0]["prev"] == found[-1]
    return found[1:]


def _equal(m: Machine, **counted: int) -> None:
    found = {name: int(m.stat[0][name]) for name in counted}
    assert found == {name: int(value) for name, value in counted.items()}


def _frames(m: Machine) -> np.ndarray:
    """bool[frame]: in use. Free ones are in one of two lists."""
    state, top = m.state[0], int(m.state[0]["top_frame"])
    free = (m.frame["flags"] & FREE) != 0
    listed = list(_follow(state["free_frame"], m.frame["mapcount"]))
    for head in _follow(state["free_run"], m.frame["mapcount"]):
        listed += range(head, head + (1 << int(state["hpage_order"])))
    assert sorted(listed) == np.flatnonzero(free).tolist()
    live = (np.arange(len(free)) < top) & ~free
    _equal(m, frames=live.sum(), ksm_frames=((m.frame["flags"] & KSM > 0) & live).sum())
    return live


def _mappings(m: Machine, live: np.ndarray, held: np.ndarray) -> None:
    """Mapped pages = private + KSM + zeropage entries + huge × pages per THP + PTE-mapped large folios."""
    order = int(m.state[0]["hpage_order"])
    kind, block = m.pte["kind"], np.arange(len(m.pte)) >> order
    anon, huge = kind == ANON, (m.block["pmd"] == PMD_HUGE)[block]
    frame = m.page["frame"]
    assert live[frame[anon]].all(), "an entry maps a free frame"
    assert anon[huge].all() and (kind[(m.block["pmd"] == PMD_HUGE_ZP)[block]] == HUGE_ZP).all()
    assert (kind[(m.block["pmd"] == PMD_NONE)[block]] == NONE).all()
    large, ksm = m.frame["folio"][frame] >= 0, m.frame["flags"][frame] & KSM > 0
    by_pte = anon & ~huge
    assert not (large & ksm & anon).any() and large[huge].all()
    private, merged, parts = (int((by_pte & what).sum()) for what in (~large & ~ksm, ksm, large))
    zeropages, merged_zero = ((kind == ZP_CLEAN) | (kind == ZP_KSM)).sum(), (kind == ZP_KSM).sum()
    huge_pmds = int((m.block["pmd"] == PMD_HUGE).sum())
    stat = m.stat[0]
    mapped = private + merged + parts + (huge_pmds << order) + zeropages
    assert mapped == (~np.isin(kind, (NONE, HUGE_ZP, SWAP, POISON))).sum()
    assert mapped == stat["anon_pages"] + stat["zeropage_entries"]
    _equal(
        m,
        anon_pages=anon.sum(),
        ksm_entries=merged,
        zeropage_entries=zeropages,
        ksm_zero_pages=merged_zero,
        huge_pmds=huge_pmds,
        swap_entries=(kind == SWAP).sum(),
    )

    mapcount = np.bincount(frame[by_pte], minlength=len(live))
    assert (m.frame["mapcount"] == mapcount)[live].all(), "mapcount of a frame"
    pins = held + np.bincount(m.fbatch[: m.fbatch_len[0]], minlength=len(live))
    pins += (m.frame["flags"] & POISONED > 0) & (mapcount == 0)  # kept for ever
    assert (m.frame["pins"] == pins)[live].all(), "somebody kept a reference"
    alone = live & (m.frame["folio"] < 0)
    cached = alone & (m.frame["folio"] < -1)  # in the swap cache, where a page may wait for the slot's other entries
    slots = m.swap[-2 - m.frame["folio"][cached]]
    assert (slots["cache"] == np.flatnonzero(cached)).all() and (slots["count"] > 0).all(), "swap cache"
    assert (mapcount + pins)[alone & ~cached].min(initial=1) > 0, "a frame leaked"


def _folios(m: Machine, live: np.ndarray, held: np.ndarray) -> None:
    order, stat = int(m.state[0]["hpage_order"]), m.stat[0]
    owner = m.frame["folio"]
    folios = np.unique(owner[live & (owner >= 0)]).tolist()
    free = len(list(_follow(m.state[0]["free_folio"], m.folio["next"])))
    assert len(folios) == m.state[0]["top_folio"] - 1 - free
    huge_blocks = np.flatnonzero(m.block["pmd"] == PMD_HUGE)
    heads = m.page["frame"][huge_blocks << order]
    by_order = dict.fromkeys(range(len(m.mthp)), (0, 0))
    for f in folios:
        folio, size = m.folio[f], 1 << int(m.folio[f]["order"])
        pages = slice(int(folio["head"]), int(folio["head"]) + size)
        assert live[pages].all() and (owner[pages] == f).all() and (live & (owner == f)).sum() == size
        mapcount = m.frame["mapcount"][pages]
        entire = int((heads == folio["head"]).sum())
        assert int(folio["entire"]) == entire
        assert int(folio["mapcount"]) == entire + mapcount.sum()
        assert folio["mapcount"] + folio["pins"] > 0, "a folio leaked"
        assert int(folio["nr_mapped"]) == (mapcount > 0).sum()
        assert int(folio["pins"]) == held[pages].sum()
        whole = entire or mapcount.all() or not mapcount.any()
        assert folio["partially_mapped"] or whole, "a page is mapped by nobody, without the mark"
        total, partial = by_order[int(folio["order"])]
        by_order[int(folio["order"])] = total + 1, partial + int(folio["partially_mapped"])
    for block in huge_blocks.tolist():  # a huge PMD maps one folio, page by page
        frames = m.page["frame"][block << order : (block + 1) << order]
        assert (np.diff(frames) == 1).all() and m.folio[owner[frames[0]]]["head"] == frames[0]
    found = {n: (int(r["nr_anon"]), int(r["nr_anon_partially_mapped"])) for n, r in enumerate(m.mthp)}
    assert found == by_order
    queue = _listed(m.folio)
    assert set(queue) == {f for f in folios if m.folio[f]["prev"] >= 0}
    assert {f for f in folios if m.folio[f]["partially_mapped"]} <= set(queue)
    assert stat["deferred_queue_len"] == len(queue)


def _in_order(tree: np.ndarray, root: int) -> list[int]:
    """The nodes of a red-black tree from left to right; its links and colours are right."""
    out: list[int] = []

    def walk(n: int, parent: int, red_parent: bool) -> int:
        if n < 0:
            return 0
        red = bool(tree["parent"][n] & 1)
        assert tree["parent"][n] >> 1 == parent and not (red and red_parent)
        left = walk(int(tree["left"][n]), n, red)
        out.append(n)
        assert left == walk(int(tree["right"][n]), n, red)
        return left + (not red)

    walk(int(root), -1, red_parent=True)
    return out


def _stable_tree(m: Machine, live: np.ndarray) -> None:
    """Nodes and chains of each NUMA node's tree, live and stale, and nodes on the side list; the items of each."""
    slots = []
    for nid, root in enumerate(m.tree["stable"]):
        tree = _in_order(m.node, root)
        keys = m.node["key"][tree]
        assert (keys[:-1] < keys[1:]).all(), "the stable tree is not in order"
        assert (m.node["nid"][tree] == nid).all()
        slots += tree
    chains = [n for n in slots if m.node[n]["kind"] == CHAIN]
    kinds = m.node["kind"][1 : m.state[0]["top_node"]]
    migrated = list(_follow(m.node[0]["first"], m.node["left"]))
    assert sorted(migrated) == [1 + n for n in np.flatnonzero(kinds == MIGRATED)]
    nodes = list(migrated)
    for n in slots:
        if n not in chains:
            assert m.node[n]["kind"] == NODE
            nodes.append(n)
            continue
        dups = list(_follow(m.node[n]["first"], m.node["left"]))
        assert [int(m.node[d]["right"]) for d in dups] == [-1, *dups][:-1]
        assert all(m.node[d]["kind"] == DUP and m.node[d]["chain"] == n for d in dups)
        assert all(m.node[d]["key"] == m.node[n]["key"] for d in dups)
        nodes += dups
    dups_total = len(nodes) + len(chains) - len(slots) - len(migrated)
    free = len(list(_follow(m.state[0]["free_node"], m.node["first"])))
    assert len(nodes) + len(chains) == len(kinds) - free == (kinds != NO_NODE).sum()
    lengths = []
    for n in nodes:
        items = list(_follow(m.node[n]["first"], m.page["left"]))
        assert len(items) == m.node[n]["len"]
        assert [int(m.page[v]["right"]) for v in items] == [-1, *items][:-1]
        assert all(m.pte[v]["item"] & STABLE and m.page[v]["parent"] == n for v in items)
        frame = int(m.node[n]["frame"])
        if m.frame[frame]["node"] == n:  # else it is stale
            assert live[frame] and m.frame[frame]["flags"] & KSM
        lengths.append(len(items))
    assert sum(lengths) == (m.pte["item"] & STABLE > 0).sum()
    with_node = live & (m.frame["node"] >= 0)
    assert set(m.frame["node"][with_node].tolist()) <= set(nodes)
    shared = sum(length > 0 for length in lengths)
    _equal(
        m,
        pages_shared=shared,
        pages_sharing=sum(lengths) - shared,
        stable_node_chains=len(chains),
        stable_node_dups=dups_total,
    )


def _unstable_tree(m: Machine) -> None:
    """In the middle of a pass it, or its index, holds the items that were inserted in this pass, each once."""
    unstable = m.pte["item"] & UNSTABLE > 0
    _equal(m, pages_unshared=unstable.sum())
    if not m.state[0]["cursor_mm"]:
        return
    inserted = unstable & (m.pte["seq"] == m.stat[0]["full_scans"] & 255)
    trees = [(nid, v) for nid, root in enumerate(m.tree["unstable"]) for v in _in_order(m.page, root)]
    latest = _linked(m, int(m.state[0]["index_first"]), "right")
    assert m.state[0]["indexed"] or not latest
    chains = [_linked(m, int(first) - 1, "left") for first in m.index]
    assert sorted(latest) == sorted(v for chain in chains for v in chain)
    if m.state[0]["indexed"]:
        keys = m.page["key"][inserted & (m.page["frame"] >= 0)]
        assert len(np.unique(keys)) == len(keys), "equal contents in the tree or its index"
        assert (m.page["frame"][latest] >= 0).all(), "a dead item in the index"
    trees += [(0, v) for v in latest]
    assert sorted(v for _, v in trees) == np.flatnonzero(inserted).tolist()
    assert all(m.pte[v]["nid"] == nid for nid, v in trees)
    assert m.tree["nodes"].tolist() == np.bincount([nid for nid, _ in trees], minlength=len(m.tree)).tolist()
    assert all(t["depth"] == int(t["nodes"]).bit_length() for t in m.tree)


def _linked(m: Machine, v: int, link: str) -> list[int]:
    """The items from v on along a link of theirs."""
    out = []
    while v >= 0:
        out.append(v)
        v = int(m.page[v][link])
    return out


def _items(m: Machine) -> None:
    """rmap_items and what each process has of them."""
    item = m.pte["item"]
    exists = item & ITEM > 0
    assert exists[item > 0].all()
    assert not (item & STABLE > 0)[item & UNSTABLE > 0].any()
    mapped = np.unpackbits(m.occupied.view(np.uint8), bitorder="little")[: len(item)] > 0
    assert mapped[exists | (m.pte["kind"] == ANON)].all(), "ksmd would not see a page"
    for mm in m.mm[1:]:
        own = slice(int(mm["base"]), int(mm["base"] + mm["pages"]))
        assert mm["rmap_items"] == exists[own].sum()
        assert mm["merging_pages"] == (item[own] & STABLE > 0).sum()
        assert not exists[own].any() or mm["registered"]
    alive = m.mm[1:][m.mm["exited"][1:] == 0]
    _equal(
        m,
        rmap_items=exists.sum(),
        proc_ksm_rmap_items=alive["rmap_items"].sum(),
        proc_ksm_merging_pages=alive["merging_pages"].sum(),
    )


def _address_spaces(m: Machine) -> None:
    """The table of VMAs says what the pages say; ksmd's list holds exactly the registered processes."""
    vm = np.zeros(len(m.pte), np.uint8)
    for v in m.vma:
        pages = slice(int(v["base"] + v["start"]), int(v["base"] + v["end"]))
        assert not vm[pages].any() and v["start"] < v["end"], "VMAs overlap"
        vm[pages] = v["vm"]
    assert (vm == m.pte["vm"]).all()
    assert (m.pte["kind"][vm == 0] == NONE).all(), "something is mapped outside of all VMAs"
    mms = _listed(m.mm)
    assert sorted(mms) == np.flatnonzero(m.mm["registered"]).tolist()
    assert m.state[0]["cursor_mm"] in (0, *mms)
    for mm in m.mm[1:]:
        own = slice(int(mm["base"]), int(mm["base"] + mm["pages"]))
        assert mm["mergeable"] == (vm[own] & VM_MERGEABLE > 0).sum()


COUNT_UP = """
    time_ns ksmd_cpu_ns batch pages_scanned pages_skipped thp_split_page thp_split_page_failed thp_split_pmd
    thp_underused_split_page thp_deferred_split_page thp_fault_alloc cow_ksm wasted_visits changed_checksums
""".split()


def _rows(run: Run) -> None:
    rows, scenario, first = run.rows, run.scenario, run.rows[0]
    assert rows[-1] == run.machine.stat[0]
    for name in rows.dtype.names or ():
        assert (rows[name] >= 0).all() or name == "freed_by_batch", name
    for name in COUNT_UP:
        assert (np.diff(rows[name]) >= 0).all(), f"{name} falls"
    budgets = [e.value for e in scenario.events if isinstance(e, Set) and e.sets("pages_to_scan")]
    budget = max([scenario.pages_to_scan, *budgets, rows["pages_to_scan"].max()])
    batches = np.diff(rows["batch"])
    assert (np.diff(rows["pages_scanned"]) <= budget * batches).all()
    assert (np.diff(rows["full_scans"]) <= batches).all(), "two full scans in one batch"
    assert (rows["wasted_visits"] + rows["changed_checksums"] <= rows["pages_scanned"]).all()
    assert (rows["ksmd_cpu_ns"] <= rows["time_ns"]).all()
    assert (rows["ksm_entries"] + rows["huge_pmds"] * scenario.pages_per_thp <= rows["anon_pages"]).all()
    assert (rows["ksm_frames"] <= rows["frames"]).all()
    if not scenario.swap_mib and not any(e.op == "memory_failure" for e in scenario.events):
        # elsewhere a KSM page may be kept by the swap cache, or for ever
        assert (rows["ksm_frames"] <= rows["ksm_entries"]).all()
    if len(rows) < scenario.sample_limit:  # no row is missing
        assert (rows["freed_by_batch"][1:] == -np.diff(rows["frames"]))[batches == 1].all()
    others = "events hot_fraction warm_fraction khugepaged balloon_fraction boot_interval_seconds lifetime_seconds"
    others += " growth_seconds"
    if not scenario.process_list and not any(getattr(scenario, name) for name in others.split()):
        # ksmd maps and unmaps nothing: it only replaces
        assert (rows["anon_pages"] + rows["zeropage_entries"] == first["anon_pages"] + first["zeropage_entries"]).all()
        assert (rows["frames"] == rows["anon_pages"] - rows["ksm_entries"] + rows["ksm_frames"]).all()
    table, m = run.samples.iloc[-1], run.machine
    items, stable = (m.pte["item"] & ITEM > 0).sum(), (m.pte["item"] & STABLE > 0).sum()
    unshared, zero = (m.pte["item"] & UNSTABLE > 0).sum(), (m.pte["kind"] == ZP_KSM).sum()
    saved = stable - table["pages_shared"] + zero
    assert table["general_profit"] == 4096 * saved - 64 * items
    assert table["pages_volatile"] == items - stable - unshared
    assert table["rss_kb"] == 4 * (m.pte["kind"] == ANON).sum()
