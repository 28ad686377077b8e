"""The clock: ksmd's batches, the scenario's events and timers in one order of simulated time.

`simulate` turns a scenario into a machine, drives it batch by batch and returns a `Run`. Simulated time is an integer
of ns; wall-clock never enters a result.
"""

from __future__ import annotations

import errno
import heapq
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from mmlab.engine import daemons as activity
from mmlab.engine import policies, workload
from mmlab.engine.costs import cost_table
from mmlab.engine.daemons import FOREVER, SECOND, Timer
from mmlab.engine.events import OPS
from mmlab.errors import UserError
from mmlab.kernel import ksm, memory
from mmlab.kernel.advisor import set_advisor
from mmlab.kernel.folio import lru_add_drain, mlock_drain
from mmlab.kernel.mmap import AddressSpaces
from mmlab.kernel.state import (
    ADVISOR_MODES,
    FIRST,
    KNOBS,
    LAST,
    SETTLED,
    VM_HUGEPAGE,
    VM_PRESENT,
    VM_WRITE,
    Machine,
    folio_t,
    frame_t,
    machine,
    mthp_t,
    node_t,
    stat_t,
)
from mmlab.kernel.versions import set_flags
from mmlab.results.run import Run, page_letters, physical_frames
from mmlab.scenario import THP_ORDER, After, Event, ProcessEvent, RangeEvent, Scenario, Set
from mmlab.variants import Predicate, Variant, resolve

__all__ = ["Interrupted", "simulate"]

CHUNK = 4096
"""Most batches that run in compiled code before Python looks again."""
CHUNK_PAGES = 1 << 19
"""Most pages that they visit: less than a second, so that progress and Ctrl-C need not wait long."""

Where = tuple[int, int]
Places = Literal["all", "end"] | Iterable[Where] | None


def simulate(
    scenario: Scenario,
    *,
    variant: str | Variant | Predicate | None = None,
    policy: policies.PolicyLike | None = None,
    maps_at: Places = None,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Run a scenario to its horizon.

    Parameters
    ----------
    scenario
        What happens.
    variant
        A fix variant instead of the scenario's: a name, a `Variant`, or a predicate of your own.
    policy
        Who turns knobs meanwhile, instead of the scenario's: a name, or a function; see `mmlab.engine.policies`.
    maps_at
        Where to keep page maps and counts of frames: after each of these (batch, rank) samples, after "all", at the
        "end", or nowhere.
    progress
        Called now and then with the share of the run that is done, 0 to 1.

    Raises
    ------
    UserError
        The variant, the policy or the cost set is not known, an event names a process that was not born yet, or the
        run would never end.
    Interrupted
        Ctrl-C: its attribute ``run`` is what there is up to then.

    Examples
    --------
    >>> from mmlab.scenario import Scenario
    >>> run = simulate(Scenario(memory_mib=2, zero_fraction=1.0, use_zero_pages=1, until_settled=True))
    >>> int(run.rows["frames"][-1]), int(run.rows["ksm_zero_pages"][-1])
    (0, 0)
    """
    chosen = resolve(scenario.variant if variant is None else variant)
    tuner = policies.resolve(scenario.policy if policy is None else policy)
    return Simulation(scenario, chosen, tuner, maps_at, progress).run()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; nothing of it is lost.

    Attributes
    ----------
    run : Run
        All up to the batch or event at which it was stopped.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        super().__init__(f"stopped after {run.rows['time_ns'][-1] / SECOND:,.3f} s of simulated time; .run has them")


@contextmanager
def _noticed_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only answers the question that this yields: the machine stays whole. A second one interrupts."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    hit = False

    def handler(*_: object) -> None:
        nonlocal hit
        if hit:
            raise KeyboardInterrupt
        hit = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: hit
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- samples --------------------------------------------------------------------------------------------------------


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """np.concatenate of records of int64: of structured arrays it would promote the type for each, 50 µs a sample."""
    return np.concatenate([a.view(np.int64) for a in arrays]).view(arrays[0].dtype)


@dataclass
class _Samples:
    """Rows of counters, a row a sample; beyond `limit` they are thinned evenly, the first and the last always stay."""

    limit: int
    mthp: bool
    rows: list[np.ndarray] = field(default_factory=list)
    mthp_rows: list[np.ndarray] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    total: int = 0
    kept: int = 0
    stride: int = 1

    def add(self, rows: np.ndarray, mthp_rows: np.ndarray) -> None:
        ids = np.arange(self.total, self.total + len(rows))
        self.total += len(rows)
        keep = ids % self.stride == 0
        self.rows.append(rows[keep])
        self.ids.append(ids[keep])
        if self.mthp:
            self.mthp_rows.append(mthp_rows[keep])
        self.kept += len(self.ids[-1])
        while self.kept > 2 * self.limit:
            self.stride *= 2
            self._thin(np.concatenate(self.ids) % self.stride == 0)

    def _thin(self, keep: np.ndarray) -> None:
        self.rows = [_joined(self.rows)[keep]]
        self.ids = [np.concatenate(self.ids)[keep]]
        if self.mthp:
            self.mthp_rows = [_joined(self.mthp_rows)[keep]]
        self.kept = int(keep.sum())

    def finish(self, last: np.ndarray, last_mthp: np.ndarray) -> None:
        """Thin to the limit; the last sample is always kept."""
        if np.concatenate(self.ids)[-1] != self.total - 1:
            self.rows.append(last.copy())
            self.ids.append(np.array([self.total - 1]))
            self.mthp_rows.append(last_mthp[None].copy())
            self.kept += 1
        if self.kept > self.limit:
            keep = np.zeros(self.kept, bool)
            keep[np.linspace(0, self.kept - 1, self.limit).round().astype(int)] = True
            self._thin(keep)


def _next_ns(timer: Timer) -> int:
    return timer.next_ns


# --- the run --------------------------------------------------------------------------------------------------------


class Simulation:
    def __init__(
        self,
        scenario: Scenario,
        variant: Variant,
        policy: policies.Policy | None,
        maps_at: Places,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._refuse_endless(scenario, policy)
        self.scenario, self.variant, self.progress = scenario, variant, progress
        self.maps_at = maps_at if isinstance(maps_at, str) or maps_at is None else set(maps_at)
        self.maps: dict[Where, list[np.ndarray]] = {}
        self.frames: dict[Where, tuple[int, int]] = {}
        self.now = self.wake = 0
        self.horizon = round(scenario.horizon_seconds * SECOND) or FOREVER
        self.most_freed = 0
        self.frames_range: tuple[int, int] | None = None
        times = [(e.after.seconds, i) for i, e in enumerate(scenario.events)]
        self.timed = sorted((round(seconds * SECOND), i) for seconds, i in times if seconds is not None)
        """Events tied to seconds: when each happens next, and its number."""
        self.pending = [i for seconds, i in times if seconds is None]
        """The other events that have not happened yet."""
        self.results: list[int | None] = [None] * len(scenario.events)
        self.event_ids = [-1] * len(scenario.events)
        self.specs = scenario.specs
        self.images = workload.build(scenario)
        mthp = any(p.orders or p.folio_order in range(2, 9) for p in self.specs)
        self.samples = _Samples(scenario.sample_limit, mthp)
        self._rows = np.zeros(CHUNK, stat_t)
        self._mthp_rows = np.zeros((CHUNK if self.samples.mthp else 0, 10), mthp_t)
        self.order = scenario.pages_per_thp.bit_length() - 1
        self.spaces = AddressSpaces(self._machine())
        self.given_back = np.zeros(len(self.m.page), bool)
        """Pages that a balloon took from their guest."""
        self.use_variant(variant)
        self.unborn: set[int] = set()
        for i in range(len(self.images)):
            self._lay_out(i)
            if scenario.boots_at(i):
                self.unborn.add(i)
            else:
                self._populate(i)
        self.m.stat[0]["thp_split_pmd"] = 0  # a VMA border may cut a huge PMD; events count from here
        self.spaces.publish()
        self.khugepaged = activity.khugepaged(self)
        self.timers: list[Timer] = activity.timers(self)
        if policy is not None:
            self.timers.append(policies.timer(self, policy))

    @staticmethod
    def _refuse_endless(scenario: Scenario, policy: policies.Policy | None) -> None:
        """A run whose end would never come is a mistake in its parameters."""
        if policy is not None and not policy.times and not scenario.horizon_seconds:
            raise UserError(f"horizon_seconds = 0 with policy {policy.name}: the run might never end: set it to more.")
        no_time = not scenario.sleep_millisecs and not cost_table(scenario.costs).any()
        scans = scenario.horizon_full_scans or scenario.until_settled
        set_later = scenario.sets("pages_to_scan")
        if no_time and not scenario.horizon_batches and not (scans and scenario.pages_to_scan):
            raise UserError(
                f"costs: {scenario.costs!r} with sleep_millisecs = 0: time would stand still. Choose another cost set, "
                "sleep_millisecs of at least 1, or end the run by horizon_batches."
            )
        if not (scenario.pages_to_scan or set_later or scenario.horizon_seconds or scenario.horizon_batches):
            raise UserError(
                "pages_to_scan: 0 means that no full scan ever ends, nor would the run: set it to at least 1, or end "
                "the run by horizon_seconds or horizon_batches."
            )

    @property
    def m(self) -> Machine:
        return self.spaces.m

    def aligned(self, pages: int) -> int:
        return (pages + (1 << self.order) - 1) >> self.order << self.order

    def pages(self, e: RangeEvent) -> tuple[int, int]:
        """The event's range as indices of `Machine.page`."""
        base = int(self.m.mm[e.process + 1]["base"])
        return base + e.page, base + e.page + e.count

    def _machine(self) -> Machine:
        forks = sum(e.op == "fork" for e in self.scenario.events)
        sizes = [self.aligned(len(image.keys)) for image in self.images]
        m = machine(sum(sizes) + forks * max(sizes), len(sizes) + forks, self.order)
        m.costs[:] = cost_table(self.scenario.costs)
        state = m.state[0]
        for name in KNOBS:
            value = getattr(self.scenario, name)
            state[name] = value if isinstance(value, int) else 0
        set_advisor(m, ADVISOR_MODES.index(self.scenario.advisor_mode))
        if self.scenario.ksm_start_seconds:
            state["run"] = 0
        state["hz"] = self.scenario.hz
        set_flags(state, self.scenario.kernel)
        self.top_page = 0
        return m

    def _lay_out(self, process: int) -> None:
        """Give a process its address space, empty as yet."""
        m, base, pages = self.m, self.top_page, len(self.images[process].keys)
        self.top_page += self.aligned(pages)
        mm = m.mm[process + 1]
        mm["base"], mm["pages"], mm["family"] = base, pages, process + 1
        spec = self.specs[process]
        mm["forbids_zeropages"] = spec.forbids_zeropages
        mm["nid"] = process % self.scenario.nodes if spec.node is None else spec.node
        m.block["mm"][base >> self.order : self.top_page >> self.order] = process + 1
        self.spaces.vmas.append([])

    def _populate(self, process: int) -> None:
        m, image = self.m, self.images[process]
        base, pages = int(m.mm[process + 1]["base"]), len(image.keys)
        if not (self.scenario.hot_fraction or self.scenario.warm_fraction):
            self.images[process] = workload.NOTHING  # nobody asks for it again, and it is a quarter of all memory
        m.page["key"][base : base + pages] = image.keys
        flags = np.where(image.huge, np.uint8(VM_HUGEPAGE | VM_PRESENT | VM_WRITE), np.uint8(VM_PRESENT | VM_WRITE))
        m.pte["vm"][base : base + pages] = flags
        image = replace(image, keys=workload.NOTHING.keys, huge=workload.NOTHING.huge)
        orders = image.order if self.order >= THP_ORDER else np.minimum(image.order, self.order)
        memory.populate(m, process + 1, orders)
        self.spaces.add(flags, image.born_huge)
        self.spaces.vmas[process] = self.spaces.vmas.pop()
        own = self.specs[process].merge_any
        if self.scenario.merge_any if own is None else own:
            self.spaces.merge_any(process, 1)
            return
        edges = np.flatnonzero(np.diff(image.mergeable, prepend=False, append=False)).tolist()
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            self.spaces.mergeable(process, start, end)

    def boot(self, process: int) -> int:
        """A guest starts while the scenario runs: its huge pages count as faults then."""
        stat = self.m.stat[0]
        self.reserve(len(self.images[process].keys) + (2 << self.order))
        self.unborn.remove(process)
        before = int(stat["huge_pmds"] + stat["thp_split_pmd"])
        self._populate(process)
        stat["thp_fault_alloc"] += stat["huge_pmds"] + stat["thp_split_pmd"] - before
        return 0

    def set_knob(self, knob: str, value: int | str) -> int:
        """A write to sysfs; 0 or errno. khugepaged wakes at once when it or its sleep is set."""
        event = Set(after=After(seconds=self.now / SECOND), op="set", knob=knob, value=value)
        result = OPS["set"](self, event)
        if knob in ("khugepaged", "khugepaged_scan_sleep_millisecs"):
            self.khugepaged.next_ns = self.now if self.m.state[0]["khugepaged"] else FOREVER
        return result

    def use_variant(self, variant: Variant) -> None:
        self.m.remap[:] = variant.table()
        self.m.state[0]["early_stop"] = variant.early_stop

    def reserve(self, pages: int) -> None:
        """Make sure that so many frames, and what goes with them, can be allocated."""
        m = self.m
        for name, dtype, top in (
            ("frame", frame_t, "top_frame"),
            ("folio", folio_t, "top_folio"),
            ("node", node_t, "top_node"),
        ):
            array = getattr(m, name)
            if len(array) - int(m.state[0][top]) < pages:
                more = np.zeros(len(array) + pages, dtype)
                setattr(m, name, np.concatenate([array, more]))

    # --- samples ----------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        where = int(self.m.stat[0]["batch"]), int(self.m.stat[0]["rank"])
        if self.maps_at == "all" or (isinstance(self.maps_at, set) and where in self.maps_at):
            self._map(where)

    def _map(self, where: Where) -> None:
        self.maps[where] = [page_letters(self.m, i) for i in range(len(self.spaces.vmas))]
        self.frames[where] = physical_frames(self.m)

    def _sample(self) -> None:
        self.m.stat[0]["time_ns"] = self.now
        self.m.stat[0]["pages_to_scan"] = self.m.state[0]["pages_to_scan"]
        self.samples.add(self.m.stat.copy(), self.m.mthp[None].copy())
        self._measure(self.m.stat)
        self._place()

    def _measure(self, rows: np.ndarray) -> None:
        """Keep the least and the most frames after the first full scan, of all rows, also of those thinned out."""
        first = self.m.passes[FIRST]
        if first["full_scan"]:
            frames = rows["frames"][rows["time_ns"] >= first["time_ns"]]
            low, high = self.frames_range or (FOREVER, 0)
            if len(frames):
                self.frames_range = min(low, int(frames.min())), max(high, int(frames.max()))

    # --- time -------------------------------------------------------------------------------------------------------

    def _due(self, e: Event) -> bool:
        stat, after = self.m.stat[0], e.after
        if after.batch is not None:
            return bool(stat["batch"] >= after.batch)
        return bool(stat["full_scans"] >= (after.full_scan or 0))

    def _happen(self) -> None:
        """Do what is due: in order of time what has a time, at the same time events before timers; then in list order
        the events after this batch or full scan."""
        due = [i for i in self.pending if self._due(self.scenario.events[i])]
        while True:
            event_ns = self.timed[0][0] if self.timed else FOREVER
            timer = min(self.timers, key=_next_ns, default=None)
            if event_ns <= self.now and (timer is None or event_ns <= timer.next_ns):
                _, i = heapq.heappop(self.timed)
                if every := self.scenario.events[i].after.every:
                    heapq.heappush(self.timed, (event_ns + round(every * SECOND), i))
                self._event(i)
            elif timer is not None and timer.next_ns <= self.now and not self.scenario.stepped:
                self.m.stat[0]["freed_by_batch"] = 0
                timer.next_ns = timer.act()
                self._happened()
            elif due:
                i = due.pop(0)
                self.pending.remove(i)
                self._event(i)
            else:
                return

    def sleep(self, millisecs: int) -> None:
        """Time passes, in which ksmd does not run but timers act; all of it ends with one sample."""
        end = self.now + millisecs * 1_000_000
        while timer := min((t for t in self.timers if t.next_ns <= end), key=_next_ns, default=None):
            self.now = max(self.now, timer.next_ns)
            timer.next_ns = timer.act()
        self.now = end
        self.wake = max(self.wake, self.now)

    def _event(self, i: int) -> None:
        stat, e = self.m.stat[0], self.scenario.events[i]
        touched = len(self.m.page) if e.op == "khugepaged" else getattr(e, "count", 0)
        self.reserve(2 * touched + int(stat["ksm_entries"] + stat["ksm_zero_pages"]) + (2 << self.order))
        if isinstance(e, ProcessEvent) and e.process >= len(self.spaces.vmas):
            raise UserError(
                f"events {i}: op {e.op} of process {e.process}: only processes 0 to {len(self.spaces.vmas) - 1} "
                "have been born by then; processes are numbered in order of birth"
            )
        stat["freed_by_batch"] = 0
        if isinstance(e, ProcessEvent) and (self.m.mm[e.process + 1]["exited"] or e.process in self.unborn):
            self.results[i] = errno.ESRCH
        elif isinstance(e, Set):
            self.results[i] = self.set_knob(e.knob, e.value)
        else:
            self.results[i] = OPS[e.op](self, e)
        mlock_drain(self.m)
        lru_add_drain(self.m)
        self.spaces.publish()
        self.event_ids[i] = self.samples.total
        self._happened()

    def _happened(self) -> None:
        self.m.stat[0]["rank"] += 1
        self._sample()

    @property
    def full_scans(self) -> int:
        """Full scans completed since the start; the kernel's counter begins anew with run=2."""
        return int(self.m.passes[LAST]["full_scan"])

    def _batches(self, until_ns: int, most: int, full_scans: int) -> int:
        """Let ksmd run, at most so many batches or full scans; from an untimed sleep it wakes at once (ksm-scan S4)."""
        m, stat = self.m, self.m.stat[0]
        self.reserve(ksm.batch_room(m))
        rank, stat["rank"] = int(stat["rank"]), 0
        if self.maps_at == "all":
            most = 1
        elif isinstance(self.maps_at, set):
            batch = int(stat["batch"])
            most = min([most, *(b - batch for b, _ in self.maps_at if b > batch)])
        rows = self._rows[: min(most, CHUNK, 1 + CHUNK_PAGES // max(1, int(m.state[0]["pages_to_scan"])))]
        target = int(stat["full_scans"]) + full_scans
        wake = max(self.wake, self.now)  # S4: from an untimed sleep it wakes at once
        done, self.wake, freed = ksm.ksm_scan_thread(
            m, wake, len(rows), until_ns, target, self.scenario.until_settled, rows, self._mthp_rows
        )
        if done:
            self.now = int(stat["time_ns"])
            self.most_freed = max(self.most_freed, freed)
            self.samples.add(rows[:done], self._mthp_rows[:done])
            self._measure(rows[:done])
            self._place()
        else:
            stat["rank"] = rank
        return int(done)

    def _idle_batch(self) -> None:
        """A step of a recorder that steps a ksmd with nothing to do."""
        stat = self.m.stat[0]
        stat["rank"] = 0
        stat["batch"] += 1
        stat["freed_by_batch"] = 0
        self.wake = ksm.ksmd_wakes_at(self.m, self.now)
        self.now = self.wake
        self._sample()

    def _share(self) -> float:
        s, stat = self.scenario, self.m.stat[0]
        return max(
            self.now / SECOND / s.horizon_seconds if s.horizon_seconds else 0.0,
            float(stat["batch"]) / s.horizon_batches if s.horizon_batches else 0.0,
            self.full_scans / s.horizon_full_scans if s.horizon_full_scans else 0.0,
        )

    def _ended(self) -> bool:
        s = self.scenario
        return bool(
            (s.horizon_seconds and self.now >= self.horizon)
            or (s.horizon_batches and self.m.stat[0]["batch"] >= s.horizon_batches)
            or (s.horizon_full_scans and self.full_scans >= s.horizon_full_scans)
            or (s.until_settled and self.m.passes[SETTLED]["full_scan"] > 0)
        )

    def _advance(self) -> bool:
        """Let ksmd run until something else is due, or time pass if it does not; False if nothing can ever happen."""
        s, batch = self.scenario, int(self.m.stat[0]["batch"])
        waiting = [self.scenario.events[i] for i in self.pending]
        clocks = [timer.next_ns for timer in self.timers if not s.stepped]  # in a trace they act during a sleep event
        until = min([self.horizon, *clocks, self.timed[0][0] if self.timed else FOREVER])
        batches = [e.after.batch for e in waiting if e.after.batch is not None]
        most = min([max(b, batch + 1) for b in batches] + [s.horizon_batches or FOREVER]) - batch
        full_scans = s.horizon_full_scans - self.full_scans if s.horizon_full_scans else FOREVER
        if any(e.after.full_scan is not None for e in waiting):
            full_scans = 1
        if self._batches(until, most, full_scans):
            return True
        if s.stepped and self.wake < until:
            self._idle_batch()
            return True
        if until < FOREVER:
            self.now = max(self.now, until)
        return until < FOREVER

    def run(self) -> Run:
        s = self.scenario
        self._sample()
        self._happen()
        if s.stepped:
            self.m.state[0]["run"] = 1
        with _noticed_ctrl_c() as interrupted:
            while not interrupted() and not self._ended() and self._advance():
                self._happen()
                if self.progress:
                    self.progress(min(1.0, self._share()))
        if self.now > int(self.m.stat[0]["time_ns"]):  # time passed with nothing to do
            self._sample()
        self.samples.finish(self.m.stat, self.m.mthp)
        if self.maps_at == "end":
            self._map((int(self.m.stat[0]["batch"]), int(self.m.stat[0]["rank"])))
        self.timers.clear()  # they refer to this object: a cycle would keep the machine's memory
        del self.khugepaged
        ids = np.concatenate(self.samples.ids)
        run = Run(
            scenario=s,
            variant=self.variant.name,
            machine=self.m,
            rows=_joined(self.samples.rows),
            mthp=_joined(self.samples.mthp_rows) if self.samples.mthp else None,
            maps=self.maps,
            frames=self.frames,
            results=self.results,
            event_rows=[int(np.searchsorted(ids, i)) if i >= 0 else None for i in self.event_ids],
            most_freed_by_batch=self.most_freed,
            processes=len(self.spaces.vmas),
            frames_range=self.frames_range,
        )
        if interrupted():
            raise Interrupted(run)
        return run
