"""Which `pages_to_scan` a goal takes under each variant, and what that says about a host (notebook 03).

Each run is measured up to the moment that saves the goal's share of the ideal (`mmlab.studies.goals`). What a goal
takes hardly depends on the budget: V visits, C seconds of CPU time and F full scans. With P pages a batch and a sleep s
it is reached after about T = C + s · (V / P + F), so `extrapolate` answers for a host what `work` measures in less
memory.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from mmlab.figures import figures as plots
from mmlab.results.run import Run, simulate
from mmlab.results.trace import CLOCKS
from mmlab.studies import runs as studied
from mmlab.studies.goals import Goals, Reference
from mmlab.studies.measures import samples, standard_error, value
from mmlab.studies.pingpong import scan_seconds
from mmlab.studies.settings import LEVELS
from mmlab.studies.study import Answer
from mmlab.variants import VARIANTS, AnyVariant, Variant, resolve

PATIENCE = 4
"""Runs last this multiple of the goal's time, so that curves extend past it."""
LONG_RUN = 16
"""Full scans of the runs that tell variants apart: smart scan visits a unique page in 7 of them."""
BUDGET, TIME, CPU = "pages_to_scan (pages)", "reached after (s)", "ksmd CPU (%)"
SAVED, SHOWN = "saved (MiB)", "shown by KSM (MiB)"
WORK = ["visits", "CPU time (s)", "full scans"]
COLUMNS: dict[str, str] = studied.COLUMNS["goal"]
"""What is measured when the goal's share is reached; see `mmlab.studies.measures.value`."""

Point = Mapping[str, float]


def spared(variant: AnyVariant) -> Variant:
    """Return the variant with KSM's own splits not remapping, so that no node of the unstable tree dies by them."""
    own = resolve(variant)
    return replace(own, predicate=lambda split: split.caller != "ksm" and own.predicate(split))


class Guests:
    """The workload of goals that limit `saved` and `ksmd_cpu`, and ksmd's runs on it with other budgets.

    Runs last `PATIENCE` times as long as the goal, or the given time, s.
    """

    def __init__(self, goals: Goals, lasts: float = 0.0) -> None:
        goal, self.limits = goals.scenario, {limit.measure: limit.value for limit in goals.limits}
        busy, lasts = {*CLOCKS, "events"} & goal.changed().keys(), max(lasts, PATIENCE * goal.horizon_seconds)
        more = {"until_settled": not busy, "horizon_seconds": lasts, "sample_limit": 20_000}
        self.seconds, self.scenario = goal.horizon_seconds, goal.replace(run=1, ksm_start_seconds=0.0, **more)
        self.reference = replace(Reference.of(self.scenario), ideal=Reference.of(goal).ideal)
        small = [budget for budget in LEVELS["pages_to_scan"] if budget <= goal.total_pages]
        paced = [budget for budget in small if self._scan(budget) <= self.scenario.horizon_seconds]
        self.budgets, self.few = [*paced, goal.total_pages + 1], [*paced[::8], goal.total_pages + 1]
        self.at = cache(self._at)

    def _scan(self, budget: int) -> float:
        return scan_seconds(self.scenario.replace(pages_to_scan=budget))

    def _at(self, budget: int, variant: str | Variant, **changes: Any) -> Point:
        return self.measure(simulate(self.scenario.replace(pages_to_scan=budget, **changes), variant=variant))

    def groups(self) -> dict[str, list[str]]:
        """Return the variants that do the same in a run of `LONG_RUN` full scans, by the first of them."""
        fits = [budget for budget in self.budgets if LONG_RUN * self._scan(budget) <= self.scenario.horizon_seconds]
        patient = self.scenario.replace(pages_to_scan=min(fits, default=self.budgets[-1]), until_settled=False)
        runs = {name: simulate(patient, variant=name).rows for name in dict.fromkeys([patient.variant, *VARIANTS])}
        return {names[0]: names for names in studied.group_equal(runs).values()}

    def measure(self, run: Run) -> Point:
        """Measure a run up to the moment that reaches the goal's share, or to its end; ``se …`` are standard errors."""
        head, saved = self.reference.until(run, self.limits["saved"] / 100), self.reference.saved_mib(run)
        found: dict[str, Any] = {name: value(head or run, what) for name, what in COLUMNS.items()}
        found |= {f"se {name}": standard_error(head or run, COLUMNS[name]) for name in (TIME, CPU)}
        shown = samples(run, "pages_sharing ksm_zero_pages")[saved.argmax()]
        return found | {SAVED: saved.max(), SHOWN: shown} | ({} if head else {TIME: np.nan})

    def least(self, variant: str | Variant, **changes: Any) -> Point:
        """Measure the smallest budget that is in time, whatever its CPU time; the largest if none is."""
        place = bisect_left(self.budgets[:-1], True, key=lambda b: self.at(b, variant, **changes)[TIME] <= self.seconds)
        return self.at(self.budgets[place], variant, **changes)

    def most(self, variant: str | Variant) -> Point:
        """Measure the largest budget that keeps to the CPU limit, whatever its time; the smallest if none does."""
        over = bisect_left(self.budgets[1:], True, key=lambda b: self.at(b, variant)[CPU] > self.limits["ksmd_cpu"])
        return self.at(self.budgets[over], variant)

    def study(self, points: Mapping[str, Point], title: str) -> Answer:
        """Return points as a study, a row each; it finds which of them meet the goals."""
        data = pd.DataFrame.from_dict(points, "index")
        met = (data[TIME] <= self.seconds) & (data[CPU] <= self.limits["ksmd_cpu"])
        errors = data.filter(regex="^se ")
        data = data.drop(columns=[*errors, *WORK[:2]]).assign(**{"goal met": met})
        finding = f"Goal met by: {'; '.join(data.index[met]) or 'none'}"
        return Answer(data, finding, title=title, errors=errors.rename(columns=lambda name: name[3:]))

    def savings(self, variants: Iterable[str]) -> Answer:
        """Return what each variant saves at the budget that saves most, and what KSM's counters show of it."""
        best = {name: max((self.at(b, name) for b in self.few), key=lambda point: point[SAVED]) for name in variants}
        said = (f"{name} saves {point[SAVED]:,.1f}, KSM shows {point[SHOWN]:,.1f}" for name, point in best.items())
        ideal = f"Of {self.reference.ideal / 256:,.1f} MiB that can be saved"
        return self.study(best, "At the budget that saves most").found(f"{ideal}: {'; '.join(said)}")

    def curves(self, variants: Iterable[str]) -> Answer:
        """Draw how long the goal's share takes at each budget, and the CPU time of ksmd that it takes."""
        data = pd.DataFrame([{"variant": name, **self.at(budget, name)} for name in variants for budget in self.few])
        panels = plots.axes(2, width=11.5, height=4.8)
        plots.curves(data, BUDGET, TIME, "variant", {self.seconds: ""}, at=self.seconds, log=True, ax=panels[0])
        decades = [10**n for n in range(1, 7) if 10**n < self.budgets[-1]]
        panels[0].set_xticks(decades, map("{:,}".format, decades))
        plots.tradeoff(data, CPU, TIME, "variant", BUDGET, (self.limits["ksmd_cpu"], self.seconds), panels[1])
        plots.legend_below(panels)
        at = plots.crossings(data, BUDGET, TIME, self.seconds, "variant").itertuples(index=False)
        said = "; ".join(f"with about {pages:,.0f} pages a batch under {name}" for name, pages in at)
        return Answer(data, f"Reached in {self.seconds:g} s: {said or 'with no budget'}", panels)

    def answers(self, variants: Iterable[str]) -> Answer:
        """Return for each variant the smallest budget that is in time, and the largest within the CPU limit."""
        study = self.study({name: self.least(name) for name in variants}, "The smallest budget that is in time")
        most = [self.most(name)[BUDGET] for name in study.data.index]
        ends = zip(study.data.index, study.data[BUDGET], most, study.data["goal met"], strict=True)
        said = (f"{name} with {f'{a:,} to {b:,} pages a batch' if met else 'no budget'}" for name, a, b, met in ends)
        data = study.data.assign(**{"within the CPU limit up to": most})
        return study.found(f"Meets the goal: {'; '.join(said)}", data=data)

    def over_time(self, runs: Mapping[str, Run]) -> Answer:
        """Draw memory saved and pages_to_scan over time, until all runs that reach the goal's share have done so."""
        parts = []
        for who, run in runs.items():
            seconds, pages, saved = run.rows["time_ns"] / 1e9, run.rows["pages_to_scan"], self.reference.saved_mib(run)
            parts += [pd.DataFrame({"who": who, studied.TIME: seconds, SAVED: saved, BUDGET: pages})]
        table = pd.concat(parts)
        until = 1.25 * max(np.nan_to_num(self.measure(run)[TIME]) for run in runs.values())
        panels = plots.axes(2, width=11.5, height=4.4)
        goal = self.limits["saved"] / 100 * self.reference.ideal / 256
        plots.steps(table, studied.TIME, SAVED, "who", panels[0], until, marks={goal: ""})
        plots.steps(table, studied.TIME, BUDGET, "who", panels[1], until, log=True)
        plots.legend_below(panels)
        return Answer(table, figure=panels)


def work(goals: Goals, variants: Iterable[str]) -> pd.DataFrame:
    """Measure what the goal takes in three sizes of memory: an eighth and a half of the last one, and that.

    Returns
    -------
    DataFrame
        `COLUMNS` by memory of all guests (MiB) and variant; NaN where it does not reach the goal's share in each.
    """
    own, rows, budget = goals.scenario, {}, {}
    part = 8 if own.total_pages > 2**16 else 4  # of much memory nothing larger is simulated, of little twice as much
    least = own.memory_mib // part if own.memory_mib % (2 * part) == 0 else own.memory_mib
    for times in (8, 4, 1):
        contents = max(1, round(own.duplicate_groups * least * times / own.memory_mib))
        sized = {"memory_mib": least * times, "duplicate_groups": contents, "horizon_seconds": 4 * own.horizon_seconds}
        guests = Guests(Goals(workload=own.replace(**sized), goals=[*map(str, goals.limits)]))
        for name in variants:
            if times == 8:
                place = bisect_left(guests.few[:-1], True, key=lambda b: guests.at(b, name)[TIME] > 0)
                budget[name] = guests.few[place]
            rows[own.processes * least * times, name] = guests.at(-(-budget[name] * times // 8), name)
    table = pd.DataFrame.from_dict(rows, "index").rename_axis(["memory (MiB)", "variant"])
    table = table.sort_index(level=0, sort_remaining=False)
    return table.where(table[TIME].notna().groupby("variant").transform("all"))


def extrapolate(points: pd.DataFrame, memory: float) -> pd.DataFrame:
    """Return `WORK` in another size of memory, growing as it did between the two sizes of `points`."""
    (less, small), (more, large) = ((size, part.droplevel(0)[WORK]) for size, part in points.groupby(level=0))
    grown: pd.DataFrame = large * (large / small).fillna(1.0) ** (np.log(memory / more) / np.log(more / less))
    return grown
