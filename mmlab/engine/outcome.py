"""The outcome of a simulation: what the clock hands up, and the recorder that collects it sample by sample."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mmlab.engine.costs import CostSet
from mmlab.engine.system import FOREVER, SECOND, System
from mmlab.kernel import pagemap
from mmlab.kernel.decisions import log_rows
from mmlab.kernel.pgtable import show_counters
from mmlab.kernel.state import FIRST, KNOBS, Machine, event_t
from mmlab.scenario import Scenario

Place = tuple[int, int]
"""A sample, by its batch and its rank among the samples of that batch."""
Places = Literal["all", "end"] | Iterable[Place] | None
knobs_t = np.dtype([(name, np.int64) for name in ("row", "time_ns", *KNOBS)])
"""Knobs, with the number of the first sample that has them, and its time."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything that one simulation leaves behind.

    Attributes
    ----------
    scenario, variant, costs
        What was run, the name of its variant, and what steps cost.
    machine
        The machine in its last state.
    rows
        Structured array, one row for each sample: before the start, after each batch and each event (thinned evenly
        beyond `scenario.sample_limit`).
    knobs
        knobs_t[changes]: the knobs at the start, and wherever one of them changed. pages_to_scan, which the advisor may
        change in between, is in `rows`, too.
    mthp
        mthp_t[sample, order], the statistics of folio sizes, where there are `orders`, a `folio_order` of 2 … 8 or
        `hugepages_enabled`.
    maps, frames
        {(batch, rank): letters of each process}, {(batch, rank): (mapped frames, KSM pages among them)}
    results, event_rows
        errno of each event, and the row after it; None where it never happened. An event with `every`: the last time.
    most_freed_by_batch
        Most frames that one batch freed.
    processes
        Number of processes, forked ones included.
    frames_range
        Fewest and most frames in use from the end of full scan 1 on.
    kept
        What was computed from it and is common to its copies with other costs.
    """

    scenario: Scenario
    variant: str
    costs: CostSet
    machine: Machine
    rows: np.ndarray
    knobs: np.ndarray
    mthp: np.ndarray | None
    maps: dict[Place, list[np.ndarray]]
    frames: dict[Place, tuple[int, int]]
    results: list[int | None]
    event_rows: list[int | None]
    most_freed_by_batch: int
    processes: int
    frames_range: tuple[int, int] | None = None
    kept: dict[str, Any] = field(default_factory=dict)


def page_letters(m: Machine, process: int) -> np.ndarray:
    """Return uint8[pages]: one letter of trace-format.md for each page of a process."""
    mm = m.mm[process + 1]
    letters = np.empty(int(mm["pages"]), np.uint8)
    pagemap.page_letters(m, int(mm["base"]), letters)
    order = int(m.state[0]["hpage_order"])
    more = m.block["more"][int(mm["base"]) >> order :][: -(-len(letters) >> order)]
    return np.repeat(letters, np.repeat(1 + more, 1 << order)[: len(letters)]) if more.any() else letters


class Recorder:
    """Collects samples, page maps and frame counts of a system.

    Beyond the scenario's `sample_limit` rows are thinned evenly. The first and the last one always stay, as does
    the last one up to each of the times `samples_at` (s). With `keep_log`, decisions are handed on before each sample.
    """

    log: Callable[[np.ndarray], object] | None = None

    def __init__(self, system: System, maps_at: Places, samples_at: Iterable[float] = ()) -> None:
        self.system, self.limit = system, system.scenario.sample_limit
        self.maps_at = maps_at if isinstance(maps_at, str) or maps_at is None else set(maps_at)
        asked = system.scenario
        small = (spec.orders or spec.folio_order in range(2, 9) for spec in asked.specs)
        self.mthp = bool(asked.hugepages_enabled) or any(small)
        self.maps: dict[Place, list[np.ndarray]] = {}
        self.frames: dict[Place, tuple[int, int]] = {}
        self.frames_range: tuple[int, int] | None = None
        self.total = self.most_freed = 0
        self._kept, self._stride = 0, 1
        self._parts: list[tuple[np.ndarray, ...]] = []
        """Numbers of samples, their rows and, if wanted, their counters of folio sizes."""
        self._times = np.unique([round(seconds * SECOND) for seconds in samples_at])
        self._asked: list[tuple[np.ndarray, ...]] = []
        self._last: tuple[np.ndarray, ...] = ()
        self._knobs: list[list[int]] = []

    def keep_log(self, log: Callable[[np.ndarray], object]) -> None:
        """Call `log` with the decisions, event_t[n], that lead to each sample from now on."""
        self.log, m = log, self.system.m
        m.log = np.zeros(log_rows(len(m.page)), event_t)

    def add(self, rows: np.ndarray, mthp: np.ndarray) -> None:
        """Record rows of counters, and those of folio sizes, in order; the system is in the state of the last one."""
        if self.log:
            m = self.system.m
            assert m.state[0]["logged"] <= len(m.log), "more decisions in one step than a log holds"
            self.log(m.log[: m.state[0]["logged"]])
            m.state[0]["logged"] = 0
        ids = np.arange(self.total, self.total + len(rows))
        knobs = self.system.m.state.view(np.int64)[: len(KNOBS)].tolist()
        if not self._knobs or knobs != self._knobs[-1][2:]:
            self._knobs.append([self.total, int(rows["time_ns"][0]), *knobs])
        if len(self._times):
            self._keep_asked(*((ids, rows, mthp) if self.mthp else (ids, rows)))
        self.total += len(rows)
        self.most_freed = max(self.most_freed, int(rows["freed_by_batch"].max()))
        first = -ids[0] % self._stride
        self._append(*(part[first :: self._stride].copy() for part in (ids, rows, mthp)))
        while self._kept > 2 * self.limit:
            self._stride *= 2
            self._thin(self._columns()[0] % self._stride == 0)
        first = self.system.m.passes[FIRST]
        frames = rows["frames"][rows["time_ns"] >= first["time_ns"]]
        if first["full_scan"] and len(frames):
            low, high = self.frames_range or (FOREVER, 0)
            self.frames_range = min(low, int(frames.min())), max(high, int(frames.max()))
        if self.maps_at == "all" or (isinstance(self.maps_at, set) and self._place() in self.maps_at):
            self._map()

    def add_now(self) -> None:
        """Record the system as it is."""
        m = self.system.m
        show_counters(m)
        m.stat[0]["time_ns"] = self.system.now
        self.add(m.stat.copy(), m.mthp[None].copy())

    def _append(self, ids: np.ndarray, rows: np.ndarray, mthp: np.ndarray) -> None:
        self._parts.append((ids, rows, mthp) if self.mthp else (ids, rows))
        self._kept += len(ids)

    def _keep_asked(self, *columns: np.ndarray) -> None:
        """Keep the last sample up to each time asked for, once there is a later one."""
        time = columns[1]["time_ns"]
        done = int(np.searchsorted(self._times, time[-1]))
        for n in np.unique(np.searchsorted(time, self._times[:done], "right")):
            self._asked.append(tuple(column[n - 1 : n].copy() for column in columns) if n else self._last)
        self._times, self._last = self._times[done:], tuple(column[-1:].copy() for column in columns)

    def _columns(self) -> list[np.ndarray]:
        return [_joined(arrays) for arrays in zip(*self._parts, strict=True)]

    def _thin(self, keep: np.ndarray) -> None:
        self._parts = [tuple(column[keep] for column in self._columns())]
        self._kept = len(self._parts[0][0])

    def _place(self) -> Place:
        stat = self.system.m.stat[0]
        return int(stat["batch"]), int(stat["rank"])

    def _map(self) -> None:
        m, processes = self.system.m, len(self.system.spaces.vmas)
        self.maps[self._place()] = [page_letters(m, i) for i in range(processes)]
        self.frames[self._place()] = pagemap.count_frames(m)

    def finish(self, variant: str, results: list[int | None], event_ids: list[int]) -> Outcome:
        """Thin to the limit and return the outcome.

        Parameters
        ----------
        variant
            Name of the variant that the run started with.
        results, event_ids
            Result of each event, and the number of its sample; None and -1 where it never happened.
        """
        m = self.system.m
        if self._columns()[0][-1] != self.total - 1:
            self._append(np.array([self.total - 1]), m.stat.copy(), m.mthp[None].copy())
        if self._kept > self.limit:
            keep = np.zeros(self._kept, bool)
            keep[np.linspace(0, self._kept - 1, self.limit).round().astype(int)] = True
            self._thin(keep)
        if self._asked:
            self._parts += self._asked
            self._thin(np.unique(self._columns()[0], return_index=True)[1])
        if self.maps_at == "end":
            self._map()
        ids, rows, *mthp = self._columns()
        knobs = np.array(self._knobs)
        knobs[:, 0] = np.searchsorted(ids, knobs[:, 0])
        return Outcome(
            scenario=self.system.scenario,
            variant=variant,
            costs=self.system.costs,
            machine=m,
            rows=rows,
            knobs=knobs.view(knobs_t)[:, 0],
            mthp=mthp[0] if mthp else None,
            maps=self.maps,
            frames=self.frames,
            results=results,
            event_rows=[int(np.searchsorted(ids, i)) if i >= 0 else None for i in event_ids],
            most_freed_by_batch=self.most_freed,
            processes=len(self.system.spaces.vmas),
            frames_range=self.frames_range,
        )


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate records of int64; numpy would promote the type of structured arrays for each one, 50 µs a sample."""
    return np.concatenate([array.view(np.int64) for array in arrays]).view(arrays[0].dtype)
