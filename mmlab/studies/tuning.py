"""Which `pages_to_scan` a goal needs: so much of what can be saved, within so long, at no more than so much of a CPU.

>>> tuning = Tuning(Scenario(memory_mib=8, zero_fraction=0.5), Goal(share=0.9, seconds=5, cpu_percent=20))
>>> round(tuning.possible_mib, 2), tuning.least("ksm-opt-out").pages_to_scan
(4.0, 18)

Saved is what memory takes less than it would with KSM off on a kernel whose splits remap nothing, in frames, at the
same moment of the same scenario; KSM's counters don't show all of it. Possible is the most that any variant saves in
16 full scans.

What a goal takes in visits, CPU time and full scans hardly depends on `pages_to_scan`: see `Work`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmlab.engine.policies import View
from mmlab.errors import UserError
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.run import Run, simulate
from mmlab.results.uncertainty import cpu_errors, error_at, scale_costs
from mmlab.scenario import Scenario
from mmlab.studies.scenes import scan_seconds
from mmlab.studies.verdict import group_equal
from mmlab.variants import VARIANTS, Predicate, Variant, resolve

__all__ = ["Goal", "Point", "Tuning", "Work", "commands"]

AnyVariant = str | Variant | Predicate

LONG_RUN = 16
"""Full scans that a long run has time for; with smart scan a page that nothing equals is visited in 7 of them."""
PATIENCE = 4
"""A run is given so many times as long as the goal allows, so that a curve goes on beyond it."""


@dataclass(frozen=True)
class Goal:
    """`share` of what can be saved, within `seconds` of simulated time, with ksmd at most `cpu_percent` of a CPU."""

    share: float
    seconds: float
    cpu_percent: float

    def __post_init__(self) -> None:
        for name, high, unit in (("share", 1.0, ""), ("seconds", 1e6, " s"), ("cpu_percent", 100.0, " %")):
            value = getattr(self, name)
            if not 0 < value <= high:
                raise UserError(f"{name} = {value!r} is out of range: it must be above 0 and at most {high:g}{unit}.")


@dataclass(frozen=True)
class Point:
    """A run with one `pages_to_scan`, up to the moment in which it reached the goal's share (or to its end).

    Attributes
    ----------
    pages_to_scan
        The budget.
    reached
        Whether it ever saved the goal's share.
    seconds, cpu_s
        Simulated time and ksmd's CPU time until then, s.
    visits, wasted, full_scans, batches
        Pages visited, visits that ended on a dead node, full scans completed, batches, until then.
    saved_mib, shown_mib, thps_split
        The most memory saved at any time of the run, MiB; what KSM's counters showed then; THPs split until then.
    seconds_error, cpu_error, cpu_percent_error
        Standard errors of seconds, cpu_s and cpu_percent that come from what ksmd's steps cost (`mmlab.engine.costs`).
    """

    pages_to_scan: int
    reached: bool
    seconds: float
    cpu_s: float
    visits: int
    wasted: int
    full_scans: int
    batches: int
    saved_mib: float
    shown_mib: float
    thps_split: int
    seconds_error: float = 0.0
    cpu_error: float = 0.0
    cpu_percent_error: float = 0.0

    @property
    def cpu_percent(self) -> float:
        """ksmd's CPU time over simulated time."""
        return 100 * self.cpu_s / self.seconds if self.seconds else 0.0


class Tuning:
    """A scenario whose `pages_to_scan` is looked for.

    ksmd runs from the start and nobody else turns its knobs; all else is the scenario's. Runs are kept: asking again
    costs nothing.

    Parameters
    ----------
    scenario
        Memory, knobs and what goes on beside ksmd. Its horizon says how long a long run lasts (0: 120 s).
    goal
        What is to be reached.
    variants
        Kernels to choose from.

    Attributes
    ----------
    long
        What a long run came to: variant → point.
    possible_mib
        The most that any of the variants saves in it, MiB.
    groups
        Variants that come out equal in every counter of the long run: label → names.
    budgets
        Three values of `pages_to_scan` to a decade, up to all pages in one batch.
    """

    def __init__(self, scenario: Scenario, goal: Goal, variants: Iterable[str] = tuple(VARIANTS)) -> None:
        alone = not any(
            getattr(scenario, name)
            for name in "khugepaged pressure_rate migration_rate hot_fraction warm_fraction boot_interval_seconds "
            "balloon_fraction lifetime_seconds events".split()
        )
        self.goal = goal
        self.scenario = scenario.replace(
            run=1,
            ksm_start_seconds=0.0,
            advisor_mode="none",
            policy="none",
            until_settled=alone,
            horizon_seconds=PATIENCE * goal.seconds,
            horizon_full_scans=0,
            horizon_batches=0,
        )
        self.possible_mib = 0.0
        self._policy = None if alone else (self._enough, goal.seconds / 50)
        self._points: dict[tuple[Any, ...], Point] = {}
        self._off: dict[float, Run] = {}
        seconds, pages = scenario.horizon_seconds or 120.0, self.scenario.total_pages
        paced = LONG_RUN * self._scan_seconds(pages) / seconds
        patient = self.scenario.replace(
            horizon_seconds=seconds, pages_to_scan=max(1, math.ceil(pages * min(1.0, paced)))
        )
        runs = {name: simulate(patient, variant=name) for name in variants}
        self.possible_mib = max(float(self.saved(run).max()) for run in runs.values())
        self.long = {name: self.measure(run) for name, run in runs.items()}
        self.groups = group_equal({name: run.rows for name, run in runs.items()})
        ladder = [round(10 ** (i / 3), 1 - i // 3) for i in range(33)]
        patience = self.scenario.horizon_seconds
        self.budgets = [int(b) for b in ladder if b <= pages and self._scan_seconds(int(b)) <= patience] + [pages + 1]

    def _scan_seconds(self, pages_to_scan: int) -> float:
        return scan_seconds(self.scenario.replace(pages_to_scan=pages_to_scan))

    @property
    def goal_mib(self) -> float:
        """Memory that the goal wants saved, MiB."""
        return self.goal.share * self.possible_mib

    def _frames_without_ksm(self, horizon: float, time_ns: np.ndarray) -> np.ndarray:
        if horizon not in self._off:
            self._off[horizon] = simulate(self.scenario.replace(run=0, horizon_seconds=horizon), variant="legacy")
        off = self._off[horizon].rows
        frames: np.ndarray = off["frames"][np.searchsorted(off["time_ns"], time_ns, side="right") - 1]
        return frames

    def saved(self, run: Run) -> np.ndarray:
        """MiB saved at each sample of a run of this memory."""
        off = self._frames_without_ksm(run.scenario.horizon_seconds, run.rows["time_ns"])
        mib: np.ndarray = (off - run.rows["frames"]) / PAGES_PER_MIB
        return mib

    def _enough(self, view: View) -> dict[str, int]:
        """A policy that stops ksmd once the goal's share is saved: what comes later is not looked at."""
        off = self._frames_without_ksm(self.scenario.horizon_seconds, np.array([view.counters["time_ns"]]))[0]
        return {"run": 0} if (off - view.counters["frames"]) / PAGES_PER_MIB >= self.goal_mib else {}

    def measure(self, run: Run) -> Point:
        """What a run of this memory came to."""
        saved = self.saved(run)
        there = np.flatnonzero((saved >= self.goal_mib) & (self.possible_mib > 0))
        at = int(there[0]) if len(there) else -1
        row, most = run.rows[at], run.rows[saved.argmax()]
        others = [scale_costs(run, errors).rows[at] for errors in (1, -1)]
        return Point(
            pages_to_scan=run.scenario.pages_to_scan,
            reached=len(there) > 0,
            seconds=float(row["time_ns"]) / 1e9,
            cpu_s=float(row["ksmd_cpu_ns"]) / 1e9,
            visits=int(row["pages_scanned"]),
            wasted=int(row["wasted_visits"]),
            full_scans=int(row["full_scans"]),
            batches=int(row["batch"]),
            saved_mib=float(saved.max()),
            shown_mib=float(most["pages_sharing"] + most["ksm_zero_pages"]) / PAGES_PER_MIB,
            thps_split=int(most["thp_split_page"]),
            seconds_error=error_at(run, at),
            cpu_error=cpu_errors(run)[0] * float(row["ksmd_cpu_ns"]) / 1e9,
            cpu_percent_error=max(abs(_percent(other) - _percent(row)) for other in others),
        )

    def at(self, pages_to_scan: int, variant: AnyVariant, **changes: Any) -> Point:
        """What this budget comes to; `changes` are made to the scenario."""
        key = self._key(pages_to_scan, variant, changes)
        if key not in self._points:
            scenario = self.scenario.replace(**changes, pages_to_scan=pages_to_scan)
            self._points[key] = self.measure(simulate(scenario, variant=variant, policy=self._policy))
        return self._points[key]

    @staticmethod
    def _key(pages_to_scan: int, variant: AnyVariant, changes: Mapping[str, Any]) -> tuple[Any, ...]:
        return pages_to_scan, resolve(variant), *sorted(changes.items())

    def in_time(self, point: Point) -> bool:
        return point.reached and point.seconds <= self.goal.seconds

    def met(self, point: Point | None) -> bool:
        """Whether that is the goal, CPU and all."""
        return point is not None and self.in_time(point) and point.cpu_percent <= self.goal.cpu_percent

    def least(self, variant: AnyVariant, **changes: Any) -> Point | None:
        """The smallest budget (in two digits) that is in time, whatever its CPU time; None: none is."""
        return self._first(lambda budget: self.in_time(self.at(budget, variant, **changes)), variant, changes)

    def most(self, variant: AnyVariant, **changes: Any) -> Point | None:
        """The largest budget (in two digits) that keeps to the goal's CPU share, whatever its time; None: none does."""
        limit = self.goal.cpu_percent
        over = self._first(lambda budget: self.at(budget, variant, **changes).cpu_percent > limit, variant, changes)
        if over is None:
            return self.at(self.budgets[-1], variant, **changes)
        below = [b for b in _two_digits(1, over.pages_to_scan) if b < over.pages_to_scan]
        return self.at(below[-1], variant, **changes) if below else None

    def _first(self, holds: Callable[[int], bool], variant: AnyVariant, changes: Mapping[str, Any]) -> Point | None:
        """The first budget for which that holds, if it holds for all larger ones, too.

        Where it does not hold for all pages in one batch, no new budget is tried.
        """
        rungs = self.budgets
        if not holds(rungs[-1]):
            rungs = [budget for budget in rungs if self._key(budget, variant, changes) in self._points]
        rung = next((i for i, budget in enumerate(rungs) if holds(budget)), None)
        if rung is None:
            return None
        between = list(_two_digits(rungs[rung - 1] + 1 if rung else 1, rungs[rung]))
        return self.at(between[bisect_left(between[:-1], True, key=holds)], variant, **changes)


def _percent(row: np.void) -> float:
    """ksmd's CPU time over simulated time, %."""
    return 100 * float(row["ksmd_cpu_ns"]) / max(1, int(row["time_ns"]))


def _two_digits(low: int, high: int) -> Iterable[int]:
    """Numbers of at most two digits and zeroes from low to high, and high itself."""
    number = low
    while number < high:
        unit = 10 ** max(0, len(str(number)) - 2)
        number = -(-number // unit) * unit
        if number < high:
            yield number
        number += 1
    yield high


@dataclass(frozen=True)
class Work:
    """What a goal takes whatever the budget: with P pages a batch it is reached after ``seconds(P)``.

    Each full scan ends with a batch that is not full, so there are at most visits / P + full scans
    batches, and each is followed by a sleep. Of those seconds ksmd is on the CPU for `cpu_s`.

    >>> work = Work(visits=1e6, cpu_s=1.0, full_scans=2, sleep_s=0.02)
    >>> round(work.seconds(1000), 2), round(work.budget(21.04))
    (21.04, 1000)
    """

    visits: float
    cpu_s: float
    full_scans: float
    sleep_s: float

    @classmethod
    def of(cls, point: Point) -> Work:
        """From a run that reached the goal."""
        sleep = (point.seconds - point.cpu_s) / max(1, point.batches)
        return cls(point.visits, point.cpu_s, point.full_scans, sleep)

    def grown(self, times: float, smaller: Work, ratio: float) -> Work:
        """For `times` the memory, if each part goes on growing as it does from memory that is `ratio` times smaller.

        >>> half = Work(visits=1e6, cpu_s=1.0, full_scans=2, sleep_s=0.02)
        >>> Work(visits=2e6, cpu_s=4.0, full_scans=2, sleep_s=0.02).grown(4, half, 2)
        Work(visits=8000000.0, cpu_s=64.0, full_scans=2.0, sleep_s=0.02)
        """
        power = math.log(times) / math.log(ratio)

        def part(name: str) -> float:
            mine, its = getattr(self, name), getattr(smaller, name)
            return float(mine * (mine / its) ** power if mine and its else mine)

        return Work(part("visits"), part("cpu_s"), part("full_scans"), self.sleep_s)

    def seconds(self, pages_to_scan: float) -> float:
        """When the goal is reached, s."""
        return self.cpu_s + self.sleep_s * (self.visits / pages_to_scan + self.full_scans)

    def budget(self, seconds: float) -> float:
        """`pages_to_scan` that reaches the goal after so many seconds; infinite: none does."""
        room = seconds - self.cpu_s - self.sleep_s * self.full_scans
        return max(1.0, self.visits * self.sleep_s / room) if room > 0 else math.inf

    def soonest(self, cpu_percent: float) -> float:
        """When the goal is reached at the earliest if ksmd takes no more than that share of a CPU, s; infinite: never.

        Without sleeps ksmd takes all of a CPU, whatever its budget.
        """
        if not self.sleep_s and self.cpu_s and cpu_percent < 100:
            return math.inf
        return max(100 * self.cpu_s / cpu_percent, self.seconds(math.inf))


def commands(scenario: Scenario, pages_to_scan: int) -> str:
    """The shell commands that set ksmd to that, in an order that works: a change of the advisor's mode resets
    pages_to_scan (ksm-scan S29)."""
    values: dict[str, object] = {
        "advisor_mode": "none",
        "use_zero_pages": scenario.use_zero_pages,
        "smart_scan": scenario.smart_scan,
        "sleep_millisecs": scenario.sleep_millisecs,
        "pages_to_scan": pages_to_scan,
        "run": 1,
    }
    if scenario.kernel.split(".")[1] == "1":  # neither has come yet: 6.7, 6.8
        del values["advisor_mode"], values["smart_scan"]
    return "\n".join(f"echo {value} > /sys/kernel/mm/ksm/{knob}" for knob, value in values.items())
