"""The system: a machine in use, with its address spaces, knobs, variant and time.

Events, daemons and policies act on a `System`; the clock (`mmlab.engine.clock`) decides when they do.
"""

import errno
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import numpy as np

from mmlab.engine import workload
from mmlab.engine.costs import CostSet
from mmlab.kernel import ksm, memory
from mmlab.kernel import state as kernel
from mmlab.kernel.advisor import set_advisor
from mmlab.kernel.mmap import AddressSpaces, equal_runs
from mmlab.kernel.stable_tree import remove_all_stable_nodes
from mmlab.kernel.versions import flags
from mmlab.scenario import THP_ORDER, Scenario
from mmlab.variants import Variant, resolve

SECOND = 1_000_000_000
FOREVER = 1 << 62
NOT_TOUCHED, GIVEN_BACK = 1, 2


class Timer:
    """The clock of a daemon, which acts at `next_ns`: FOREVER if never again."""

    def __init__(self, daemon: Iterator[int]) -> None:
        self.daemon = daemon
        self.act()

    def act(self) -> None:
        """Let the daemon act, up to its next time."""
        self.next_ns = next(self.daemon, FOREVER)


class System:
    """A machine with the memory of a scenario, populated and advised, at time 0.

    Attributes
    ----------
    scenario : Scenario
        The scenario that the system was made from.
    costs : CostSet
        What the steps of ksmd and khugepaged cost.
    m : Machine
        All arrays of the model.
    spaces : AddressSpaces
        VMAs, and the system calls that change them.
    order : int
        Order of a THP.
    images : list of Image
        Memory of each process at its start.
    unborn : set of int
        Processes that have not booted yet.
    now, wake : int
        Simulated time, and the time at which ksmd's sleep ends, ns.
    timers : dict
        Daemons by name; of those due at the same time the first acts first.
    away : ndarray
        uint8[pages]: whether a guest does not use a page: NOT_TOUCHED, GIVEN_BACK by a balloon, or 0.
    rng : Generator
        Draws the pages and blocks of events with a `share`.
    """

    def __init__(self, scenario: Scenario, variant: Variant, costs: CostSet) -> None:
        self.scenario, self.costs = scenario, costs
        self.now = self.wake = 0
        self.rng = np.random.default_rng((scenario.seed, 8))  # the stream after those of `mmlab.engine.daemons`
        self.timers: dict[str, Timer] = {}
        self.unborn: set[int] = set()
        self.order = scenario.pages_per_thp.bit_length() - 1
        self.images = workload.build(scenario)
        self._top_page = 0
        self.m = self._machine()
        self.spaces = AddressSpaces(self.m)
        self.away = np.zeros(len(self.m.page), np.uint8)
        self.use_variant(variant)
        for process in range(len(self.images)):
            self._lay_out(process)
            if scenario.boots_at(process):
                self.unborn.add(process)
            else:
                self._populate(process)
        self.m.stat[0]["thp_split_pmd"] = 0  # a VMA border may cut a huge PMD; events count from here
        self.spaces.publish()

    def _machine(self) -> kernel.Machine:
        forks = sum(event.op == "fork" for event in self.scenario.events)
        sizes = [self._aligned(len(image.keys)) for image in self.images]
        m = kernel.machine(sum(sizes) + forks * max(sizes), len(sizes) + forks, self.order)
        m.costs[:] = self.costs.table
        state = m.state[0]
        state["ksmd_cpu_before_ns"] = round(self.scenario.ksmd_cpu_before_seconds * SECOND)
        values = {name: getattr(self.scenario, name) for name in (*kernel.KNOBS, "hz", "nodes")}
        for name, value in (values | flags(self.scenario.kernel, self.scenario.kernel_changes)).items():
            state[name] = value if isinstance(value, int) else 0
        state["hugepages"] = sum(1 << min(order, self.order) for order in self.scenario.enabled_orders)
        set_advisor(m, kernel.ADVISOR_MODES.index(self.scenario.advisor_mode))
        if self.scenario.ksm_start_seconds:
            state["run"] = 0
        return m

    # --- processes --------------------------------------------------------------------------------------------------

    def _aligned(self, pages: int) -> int:
        return -(-pages >> self.order << self.order)

    def _take_region(self, pages: int) -> int:
        """Return the first page of a new region, which starts and ends at a THP border."""
        base = self._top_page
        self._top_page += self._aligned(pages)
        return base

    def _lay_out(self, process: int) -> None:
        """Give a process its address space, still empty."""
        m, spec, pages = self.m, self.scenario.specs[process], len(self.images[process].keys)
        mm = m.mm[process + 1]
        base = self._take_region(pages)
        mm["base"], mm["pages"], mm["family"] = base, pages, process + 1
        mm["forbids_zeropages"] = spec.forbids_zeropages
        mm["nid"] = process % self.scenario.nodes if spec.node is None else spec.node
        m.block["mm"][base >> self.order : self._top_page >> self.order] = process + 1
        for first, end in self.images[process].gaps:
            at = base + self.place(process, first << self.order) >> self.order
            m.block["more"][at] = end - first - 1
            m.block["ahead"][at + 1 : self._top_page >> self.order] += end - first - 1
        self.away[base : base + pages][self.images[process].dealt & ~self.images[process].touched] = NOT_TOUCHED
        self.spaces.vmas.append([])

    def _populate(self, process: int) -> None:
        m, image = self.m, self.images[process]
        base, pages = int(m.mm[process + 1]["base"]), len(image.keys)
        if not (self.scenario.hot_fraction or self.scenario.warm_fraction or self.away[base : base + pages].any()):
            self.images[process] = replace(workload.NOTHING, gaps=image.gaps)  # the rest is a quarter of all memory
        m.page["key"][base : base + pages] = image.keys
        flags = np.where(image.huge, kernel.VM_HUGEPAGE, kernel.VM_NOHUGEPAGE).astype(np.uint8)
        flags |= np.uint8(kernel.VM_PRESENT | kernel.VM_WRITE)
        m.pte["vm"][base : base + pages] = flags
        image = replace(image, keys=workload.NOTHING.keys, huge=workload.NOTHING.huge, dealt=workload.NOTHING.dealt)
        orders = image.order if self.order >= THP_ORDER else np.minimum(image.order, self.order)
        memory.populate(m, process + 1, orders, image.touched)
        self.spaces.populated(process, flags, image.born_huge)
        own = self.scenario.specs[process].merge_any
        if self.scenario.merge_any if own is None else own:
            self.spaces.merge_any(process, 1)
            return
        for start, end, mergeable in equal_runs(image.mergeable):
            if mergeable:
                self.spaces.mergeable(process, start, end)

    def boot(self, process: int) -> None:
        """Start a guest while the scenario runs: its huge pages then count as faults."""
        stat = self.m.stat[0]
        self.reserve(len(self.images[process].keys) + (2 << self.order))
        self.unborn.remove(process)
        before = int(stat["huge_pmds"] + stat["thp_split_pmd"])
        self._populate(process)
        stat["thp_fault_alloc"] += stat["huge_pmds"] + stat["thp_split_pmd"] - before

    def place(self, process: int, page: int) -> int:
        """Return where a page of a process is within its region, which has only one block for each gap."""
        return int(workload.places(page, self.images[process].gaps, 1 << self.order))

    def write(self, pages: np.ndarray, keys: np.ndarray) -> None:
        """Write contents to pages (indices of `Machine.page`); those that cannot be written are left out."""
        empty = np.isin(self.m.block["pmd"], (kernel.PMD_NONE, kernel.PMD_HUGE_ZP)).sum()  # each may get a huge page
        smaller = int((self.m.pte["kind"] == kernel.NONE).sum()) if len(self.scenario.enabled_orders) > 1 else 0
        self.reserve(len(pages) + (min(len(pages), int(empty)) + 2 << self.order) + smaller)
        self.m.listed = pages.astype(np.int32)
        memory.write_listed_pages(self.m, keys)

    def touch(self, process: int, first: int, end: int) -> None:
        """Write what is dealt to them to those of pages [first, end) of a process that are not touched yet."""
        base, image = self.spaces.base(process), self.images[process]
        pages = first + np.flatnonzero(self.away[base + first : base + end] == NOT_TOUCHED)
        self.away[base + pages] = 0
        self.write(base + pages, image.keys[pages])

    def fork(self, parent: int) -> int:
        """Fork a process into a region of its own; return 0."""
        self.images.append(self.images[parent])
        return self.spaces.fork(parent, self._take_region(int(self.m.mm[parent + 1]["pages"])))

    def alive(self, process: int) -> bool:
        """Return whether a process has booted and not exited."""
        return process not in self.unborn and not self.m.mm[process + 1]["exited"]

    # --- knobs ------------------------------------------------------------------------------------------------------

    def use_variant(self, variant: Variant) -> None:
        """Let a fix variant decide about remaps from now on."""
        self.m.remap[:] = variant.table()
        self.m.visits[:] = variant.visit_table()
        self.m.state[0]["early_stop"], self.m.state[0]["choosy"] = variant.early_stop, self.m.visits.any()

    def set_knob(self, knob: str, value: int | str) -> int:
        """Write to sysfs; return 0 or the errno of the write (ksm-scan S6, S29, ksm-merge 2.10)."""
        state = self.m.state[0]
        if knob == "variant":
            self.use_variant(resolve(str(value)))
            return 0
        if knob == "advisor_mode":
            set_advisor(self.m, kernel.ADVISOR_MODES.index(str(value)))
            return 0
        if (knob == "pages_to_scan" and state["advisor_mode"]) or (knob == "advisor_target_scan_time" and not value):
            return errno.EINVAL  # S29
        changed = bool(value != state[knob])
        exclusive = changed and knob in ("max_page_sharing", "merge_across_nodes")
        if exclusive and (self.m.stat[0]["pages_shared"] > 0 or not remove_all_stable_nodes(self.m)):
            return errno.EBUSY  # R4
        state[knob] = value
        if knob == "run" and changed and value == 2:  # R2
            ksm.unmerge_and_remove_all_rmap_items(self.m)
        if knob == "sleep_millisecs" and changed:  # S3
            self.wake = self.now
        if knob in ("khugepaged", "khugepaged_scan_sleep_millisecs"):  # K1: it wakes at once
            self.timers["khugepaged"].next_ns = self.now if state["khugepaged"] else FOREVER
        return 0

    # --- room and time ----------------------------------------------------------------------------------------------

    def reserve(self, pages: int) -> None:
        """Grow the arrays so that this number of frames, and what goes with them, can be allocated."""
        m = self.m
        for name in ("frame", "folio", "node"):
            array = getattr(m, name)
            if len(array) - int(m.state[0][f"top_{name}"]) < pages:
                setattr(m, name, np.concatenate([array, np.zeros(len(array) + pages, array.dtype)]))

    def sleep(self, millisecs: int) -> None:
        """Let time pass, in which timers act but ksmd does not run."""
        end = self.now + millisecs * 1_000_000
        while (timer := self.next_timer()) and timer.next_ns <= end:
            self.now = self.m.stat[0]["time_ns"] = max(self.now, timer.next_ns)
            timer.act()
        self.now = end
        self.wake = max(self.wake, self.now)

    def next_timer(self) -> Timer | None:
        """Return the timer that acts next, if there is one."""
        return min(self.timers.values(), key=attrgetter("next_ns"), default=None)
