"""The clock: ksmd's batches and the scenario's events in one order of simulated time.

`simulate` turns a scenario into a machine, drives it batch by batch and returns a `Run`. Simulated time is an integer
of ns; wall-clock never enters a result.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mmlab import workload
from mmlab.costs import cost_table
from mmlab.errors import UserError
from mmlab.events import OPS
from mmlab.kernel import ksm, memory
from mmlab.kernel.folio import lru_add_drain, mlock_drain
from mmlab.kernel.mmap import AddressSpaces
from mmlab.kernel.state import (
    ADVISOR_MODES,
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
from mmlab.run import Run, page_letters, physical_frames
from mmlab.scenario import EVENT_FIELDS, Event, Scenario
from mmlab.variants import Predicate, Variant, resolve

__all__ = ["SUPPORTED_OPS", "simulate", "warm_up"]

SECOND = 1_000_000_000
FOREVER = 1 << 62
SUPPORTED_OPS = frozenset(OPS)
"""Events that the model has; the trace format knows more."""
CHUNK = 4096
"""Batches that run in compiled code before Python looks again."""

Where = tuple[int, int]
Places = Literal["all", "end"] | Iterable[Where] | None


def simulate(
    scenario: Scenario,
    *,
    variant: str | Variant | Predicate | None = None,
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
    maps_at
        Where to keep page maps and counts of frames: after each of these (batch, rank) samples, after "all", at the
        "end", or nowhere.
    progress
        Called now and then with the share of the run that is done, 0 to 1.

    Raises
    ------
    UserError
        The variant, the cost set or an event's op is not known, or the workload does not fit into memory.

    Examples
    --------
    >>> from mmlab.scenario import Scenario
    >>> run = simulate(Scenario(memory_mib=2, zero_fraction=1.0, use_zero_pages=1, until_settled=True))
    >>> int(run.rows["frames"][-1]), int(run.rows["ksm_zero_pages"][-1])
    (0, 0)
    """
    return Simulation(scenario, resolve(scenario.variant if variant is None else variant), maps_at, progress).run()


def warm_up() -> None:
    """Compile all of the model, or load it from numba's cache on disk: one scenario with an event of every kind."""
    events: list[dict[str, object]] = [
        {"op": op, **{name: 1 for name in EVENT_FIELDS[op] if name not in ("process", "knob", "value")}}
        for op in sorted(SUPPORTED_OPS - {"set", "exit"})
    ]
    events += [{"op": "set", "knob": "max_page_sharing", "value": 4}, {"op": "set", "knob": "run", "value": 2}]
    events += [{"op": "exit", "process": 1}]
    simulate(
        Scenario(
            memory_mib=2,
            zero_fraction=0.5,
            horizon_seconds=1.0,
            events=tuple({"after": {"batch": 2}, **e} for e in events),  # type: ignore[arg-type]
        )
    )


# --- samples --------------------------------------------------------------------------------------------------------


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
        self.rows = [np.concatenate(self.rows)[keep]]
        self.ids = [np.concatenate(self.ids)[keep]]
        if self.mthp:
            self.mthp_rows = [np.concatenate(self.mthp_rows)[keep]]
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


# --- the run --------------------------------------------------------------------------------------------------------


class Simulation:
    def __init__(
        self, scenario: Scenario, variant: Variant, maps_at: Places, progress: Callable[[float], None] | None
    ) -> None:
        self._refuse_endless(scenario)
        for e in scenario.events:
            if e.op not in SUPPORTED_OPS:
                raise UserError(
                    f"{scenario.name or 'scenario'}: op {e.op!r} is not modelled yet; "
                    f"the model has {', '.join(sorted(SUPPORTED_OPS))}."
                )
        self.scenario, self.variant, self.progress = scenario, variant, progress
        self.maps_at = maps_at if isinstance(maps_at, str) or maps_at is None else set(maps_at)
        self.maps: dict[Where, list[np.ndarray]] = {}
        self.frames: dict[Where, tuple[int, int]] = {}
        self.now = self.wake = 0
        self.horizon = round(scenario.horizon_seconds * SECOND) or FOREVER
        self.most_freed = 0
        self.pending = list(enumerate(scenario.events))
        self.results: list[int | None] = [None] * len(scenario.events)
        self.event_ids = [-1] * len(scenario.events)
        images = workload.build(scenario)
        self.samples = _Samples(scenario.sample_limit, any(p.orders for p in scenario.process_list))
        self._rows = np.zeros(CHUNK, stat_t)
        self._mthp_rows = np.zeros((CHUNK if self.samples.mthp else 0, 10), mthp_t)
        self.order = scenario.pages_per_thp.bit_length() - 1
        self.spaces = AddressSpaces(self._machine(images))
        self.use_variant(variant)
        for i, image in enumerate(images):
            self._populate(i, image)
        self.spaces.publish()

    @staticmethod
    def _refuse_endless(scenario: Scenario) -> None:
        """A run whose end would never come is a mistake in its parameters."""
        no_time = not scenario.sleep_millisecs and not cost_table(scenario.costs).any()
        scans = scenario.horizon_full_scans or scenario.until_settled
        set_later = any(e.knob == "pages_to_scan" for e in scenario.events)
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

    def pages(self, e: Event) -> tuple[int, int]:
        """The event's range as indices of `Machine.page`."""
        assert e.page is not None and e.count is not None
        base = int(self.m.mm[e.process + 1]["base"])
        return base + e.page, base + e.page + e.count

    def _machine(self, images: list[workload.Image]) -> Machine:
        forks = sum(e.op == "fork" for e in self.scenario.events)
        sizes = [self.aligned(len(image.keys)) for image in images]
        m = machine(sum(sizes) + forks * max(sizes), len(images) + forks, self.order)
        m.costs[:] = cost_table(self.scenario.costs)
        state = m.state[0]
        for name in KNOBS:
            value = getattr(self.scenario, name)
            state[name] = value if isinstance(value, int) else ADVISOR_MODES.index(value)
        state["hz"] = self.scenario.hz
        major, minor = self.scenario.kernel.split(".")[:2]
        state["kernel"] = 100 * int(major) + int(minor)
        self.top_page = 0
        return m

    def _populate(self, process: int, image: workload.Image) -> None:
        m, base, pages = self.m, self.top_page, len(image.keys)
        self.top_page += self.aligned(pages)
        mm = m.mm[process + 1]
        mm["base"], mm["pages"], mm["family"] = base, pages, process + 1
        m.block["mm"][base >> self.order : self.top_page >> self.order] = process + 1
        m.page["key"][base : base + pages] = image.keys
        m.pte["vm"][base : base + pages] = flags = np.where(image.huge, VM_HUGEPAGE, 0) | VM_PRESENT | VM_WRITE
        memory.populate(m, process + 1, np.minimum(image.order, self.order))
        self.spaces.add(flags)
        edges = np.flatnonzero(np.diff(image.mergeable, prepend=False, append=False)).tolist()
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            self.spaces.mergeable(process, start, end)
        m.stat[0]["thp_split_pmd"] = 0  # a VMA border may cut a huge PMD; events count from here

    def use_variant(self, variant: Variant) -> None:
        self.m.remap[:] = variant.table()
        self.m.state[0]["early_stop"] = variant.early_stop

    def _reserve(self, pages: int) -> None:
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
        self.samples.add(self.m.stat.copy(), self.m.mthp[None].copy())
        self._place()

    # --- time -------------------------------------------------------------------------------------------------------

    def _due(self, e: Event) -> bool:
        stat, after = self.m.stat[0], e.after
        if after.batch is not None:
            return bool(stat["batch"] >= after.batch)
        if after.full_scan is not None:
            return bool(stat["full_scans"] >= after.full_scan)
        return self.now >= self._event_ns(e)

    @staticmethod
    def _event_ns(e: Event) -> int:
        return FOREVER if e.after.seconds is None else round(e.after.seconds * SECOND)

    def _events(self) -> None:
        """Do what is due: in order of time what is tied to seconds, then in list order."""
        stat = self.m.stat[0]
        for i, e in sorted((p for p in self.pending if self._due(p[1])), key=lambda p: self._event_ns(p[1])):
            self.pending.remove((i, e))
            self._reserve(2 * (e.count or 0) + int(stat["ksm_entries"] + stat["ksm_zero_pages"]) + (2 << self.order))
            if e.process >= len(self.spaces.vmas):
                raise UserError(
                    f"events {i}: op {e.op} of process {e.process}: only processes 0 to {len(self.spaces.vmas) - 1} "
                    "have been born by then; processes are numbered in order of birth"
                )
            stat["freed_by_batch"] = 0
            gone = "process" in EVENT_FIELDS[e.op] and self.m.mm[e.process + 1]["exited"]
            self.results[i] = errno.ESRCH if gone else OPS[e.op](self, e)
            mlock_drain(self.m)
            lru_add_drain(self.m)
            self.spaces.publish()
            stat = self.m.stat[0]
            stat["rank"] += 1
            self.event_ids[i] = self.samples.total
            self._sample()

    @property
    def full_scans(self) -> int:
        """Full scans completed since the start; the kernel's counter begins anew with run=2."""
        return int(self.m.passes[LAST]["full_scan"])

    def _batches(self, until_ns: int, most: int, full_scans: int) -> int:
        """Let ksmd run, at most so many batches or full scans."""
        m, stat = self.m, self.m.stat[0]
        self._reserve(ksm.batch_room(m))
        rank, stat["rank"] = int(stat["rank"]), 0
        if self.maps_at is not None and self.maps_at != "end":
            most = 1
        rows = self._rows[: min(most, CHUNK)]
        target = int(stat["full_scans"]) + full_scans
        wake = max(self.wake, self.now)  # S4: from an untimed sleep it wakes at once
        done, self.wake, freed = ksm.ksm_scan_thread(
            m, wake, len(rows), until_ns, target, self.scenario.until_settled, rows, self._mthp_rows
        )
        if done:
            self.now = int(stat["time_ns"])
            self.most_freed = max(self.most_freed, freed)
            self.samples.add(rows[:done], self._mthp_rows[:done])
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
        waiting = [e for _, e in self.pending]
        until = min([self.horizon, *map(self._event_ns, waiting)])
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
        self._events()
        if s.stepped:
            self.m.state[0]["run"] = 1
        while not self._ended() and self._advance():
            self._events()
            if self.progress:
                self.progress(min(1.0, self._share()))
        if self.now > int(self.m.stat[0]["time_ns"]):  # time passed with nothing to do
            self._sample()
        self.samples.finish(self.m.stat, self.m.mthp)
        if self.maps_at == "end":
            self._map((int(self.m.stat[0]["batch"]), int(self.m.stat[0]["rank"])))
        ids = np.concatenate(self.samples.ids)
        return Run(
            scenario=s,
            variant=self.variant.name,
            machine=self.m,
            rows=np.concatenate(self.samples.rows),
            mthp=np.concatenate(self.samples.mthp_rows) if self.samples.mthp else None,
            maps=self.maps,
            frames=self.frames,
            results=self.results,
            event_rows=[int(np.searchsorted(ids, i)) if i >= 0 else None for i in self.event_ids],
            most_freed_by_batch=self.most_freed,
            processes=len(self.spaces.vmas),
        )
