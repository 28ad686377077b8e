"""The cheapest setting that meets goals (`mmlab tune`).

>>> from mmlab import Goals, Scenario
>>> scenario = Scenario(memory_mib=4, zero_fraction=0.5, horizon_seconds=5.0)
>>> goals = Goals(workload=scenario, goals=["saved >= 90 %", "ksmd_cpu <= 5 %"], by=["fixed"])
>>> found = tune(goals, runs=60)
>>> found.feasible, found.best.measures["saved"] >= 90
(True, True)

*Cheapest* means least CPU time of ksmd over the whole of `within`, unless `Goals.minimise` names another measure. Each
pace (`mmlab.studies.settings.BY`) is searched by differential evolution over the levels of its knobs, which finds the
valley. Then the search tries the neighbours of the best setting, two at a time, and goes on from the first that is
better; once all neighbours of the best are tried, those of the next best follow. Later, limits are left out one by one
to find what each of them costs. No setting is run twice, and the same seed tries the same settings on any number of
processes.

A setting that misses a limit ranks behind every setting that misses none, by its distance: the root of the sum of
squares of the shares by which it misses each limit. Where no setting meets all limits, the search ends at the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from textwrap import indent
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mmlab.errors import UserError
from mmlab.figures.notebook import remember
from mmlab.figures.theme import LOOK, axes
from mmlab.results.table import text_table
from mmlab.results.uncertainty import standard_errors
from mmlab.studies.fleet import SCALED, Host
from mmlab.studies.goals import MEASURES, NOT_MET, Goals, Limit, Reference, four_digits
from mmlab.studies.settings import Setting, spaces
from mmlab.workers import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


RUNS = 240
"""Default limit on the runs of a search."""
POPULATION, AT_ONCE = 16, 2
"""Members of a population; neighbours to try before the search goes on from the best again."""
EVOLVED, ALONE, TOGETHER, RELAXED = 0.35, 0.65, 0.75, 0.9
"""Shares of the runs after which each stage ends: evolution and neighbours of each pace, of all, without each limit."""
EVOLUTION: dict[str, Any] = {"maxiter": 200, "mutation": (0.4, 0.9), "recombination": 0.8, "polish": False}
"""Options of scipy's differential evolution."""
MISSED = 1e9
"""Score in the evolution of a setting that misses a limit: beyond any cost."""
ROWS = 12
"""Most rows of the front that are printed."""


@dataclass(frozen=True)
class Trial:
    """A setting with the measures of its run.

    Attributes
    ----------
    setting
        The setting.
    measures
        All `mmlab.studies.goals.MEASURES`; NaN where one has no value.
    errors
        {measure: standard error} of the measures that depend on what steps cost.
    """

    setting: Setting
    measures: dict[str, float]
    errors: dict[str, float]

    @classmethod
    def run(cls, goals: Goals, reference: Reference, setting: Setting) -> Trial:
        """Simulate a setting."""
        scenario, policy = setting.apply(goals.scenario)
        host = Host.of(scenario, goals.simulate_mib)
        run = host.simulate(policy=policy)
        errors, percent = standard_errors(run), 1e8 / max(1, int(run.rows["time_ns"][-1]))
        cpu = {"ksmd_cpu": errors.get("ksmd_cpu_percent", 0.0)}
        cpu["khugepaged_cpu"] = errors.get("khugepaged_cpu_ms", 0.0) * percent
        return cls(setting, host.true_size(reference.measures(run)), host.true_size(errors | cpu))

    def violation(self, limits: Iterable[Limit]) -> float:
        """Return the distance to the limits: the root of the sum of squares of the shares by which it misses each."""
        return math.hypot(*(limit.violation(self.measures[limit.measure]) for limit in limits))

    def rank(self, cost: str, limits: Iterable[Limit] = ()) -> tuple[float, float]:
        """Return a key that sorts trials by their distance to the limits, then by the measure `cost`."""
        return self.violation(limits), float(np.nan_to_num(self.measures[cost], nan=NOT_MET))


def tune(
    goals: Goals, *, runs: int = RUNS, seed: int = 0, executor: Executor | None = None, progress: Progress = None
) -> TuneResult:
    """Find the cheapest setting that meets the goals, in at most `runs` runs.

    Parameters
    ----------
    goals
        The workload, its limits and the knobs to choose from.
    runs
        Limit on the settings that are simulated.
    seed
        Seed of the search; the scenario has its own.
    executor
        Runs settings side by side (`mmlab.workers.executor`); the result does not depend on it.
    progress
        Called after each run with the runs done, their limit, and the setting.

    Raises
    ------
    UserError
        `runs` is too small, nothing may be changed, or `saved` has a limit and there is nothing to save.
    """
    host = Host.of(goals.scenario, goals.simulate_mib)
    paces = [by for by in goals.by if by != "advisor" or host.factor == 1]  # its target depends on the true size
    searched = spaces(goals.scenario, paces, goals.levels)
    least = 2 * POPULATION * len(searched)
    if runs < least:
        raise UserError(parameter="runs", value=runs, allowed=f"at least {least}: {2 * POPULATION} for each pace")
    reference, limits = Reference.of(host.scenario), goals.limits
    if not reference.ideal and any(limit.measure == "saved" for limit in limits):
        hint = "No mergeable pages of the workload are zero-filled or equal."
        raise UserError("nothing can be saved", parameter="saved", hint=hint)
    trials: dict[Setting, Trial] = {}
    rng, simulated = np.random.default_rng(seed), partial(Trial.run, goals, reference)

    def run(settings: Iterable[Setting], until: int) -> None:
        """Simulate settings that are new, until there are `until` trials."""
        new = [setting for setting in dict.fromkeys(settings) if setting not in trials][: until - len(trials)]
        for trial in (executor.map if executor else map)(simulated, new):
            trials[trial.setting] = trial
            if progress:
                progress(len(trials), runs, str(trial.setting))

    def climb(paces: Collection[str], limits: Sequence[Limit], share: float) -> None:
        """Try neighbours of the best trial, then of the next best, until this share of the runs is done."""
        until, new = int(share * runs), [*trials]
        while new and len(trials) < until:
            own = (trial for trial in reversed(trials.values()) if trial.setting.by in paces)
            best = sorted({trial.rank(goals.minimise, limits): trial.setting for trial in own}.items())
            around = ([n for n in s.neighbours(searched[s.by]) if n not in trials] for _, s in best)
            new = next(filter(None, around), [])
            rng.shuffle(new)  # type: ignore[arg-type]
            run(new[:AT_ONCE], until)

    def evolve(by: str, until: int) -> None:
        """Search the levels of a pace by differential evolution until there are `until` trials or it converges."""
        from scipy.optimize import differential_evolution

        def scores(places: np.ndarray) -> list[float]:
            settings = [Setting.at(by, levels, column) for column in places.T]
            run(settings, until)
            ranks = [trials[s].rank(goals.minimise, limits) if s in trials else (math.inf, 0.0) for s in settings]
            return [cost + (MISSED * (1 + missed) if missed else 0.0) for missed, cost in ranks]

        levels = searched[by]
        counts = [len(values) for values in levels.values()]
        spread = np.array([rng.permutation(POPULATION) * count // POPULATION for count in counts], float)
        more: dict[str, Any] = {"init": spread.T, "updating": "deferred", "vectorized": True, "rng": rng, **EVOLUTION}
        done, whole = (lambda intermediate_result: len(trials) >= until), np.ones(len(counts), bool)  # noqa: ARG005
        differential_evolution(scores, [(0, n - 1) for n in counts], integrality=whole, callback=done, **more)

    for i, by in enumerate(searched):
        done = len(trials)
        evolve(by, int(done + (EVOLVED * runs - done) / (len(searched) - i)))
    for i, by in enumerate(searched, 1):
        climb([by], limits, EVOLVED + (ALONE - EVOLVED) * i / len(searched))
    climb(searched, limits, TOGETHER)
    for i, limit in enumerate(limits, 1):
        climb(searched, limit.others(limits), TOGETHER + (RELAXED - TOGETHER) * i / len(limits))
    climb(searched, limits, 1.0)
    return TuneResult(goals, reference, tuple(trials.values()), seed)


@dataclass(frozen=True)
class TuneResult:
    """The result of a search; `text` prints it.

    Attributes
    ----------
    goals, reference
        The goals, and the memory without KSM.
    trials
        Every setting that was run, in order.
    seed
        Seed of the search.
    """

    goals: Goals
    reference: Reference
    trials: tuple[Trial, ...]
    seed: int = 0

    @cached_property
    def best(self) -> Trial:
        """The cheapest setting that meets all limits, or the nearest; of equals the one that changes fewest knobs."""
        goals = self.goals
        return min(self.trials, key=lambda trial: (trial.rank(goals.minimise, goals.limits), trial.setting.changed))

    @property
    def feasible(self) -> bool:
        """Whether the best setting meets all limits."""
        return self.best.violation(self.goals.limits) == 0

    @property
    def cost(self) -> float:
        """The best setting's measure `goals.minimise`."""
        return self.best.measures[self.goals.minimise]

    def nearest_goals(self) -> list[Limit]:
        """Return the limits that the best setting misses, loosened to what it reaches."""
        missed = (limit for limit in self.goals.limits if self.best.violation([limit]))
        return [replace(limit, value=self.best.measures[limit.measure]) for limit in missed]

    @cached_property
    def bindings(self) -> pd.DataFrame:
        """The price of each limit: what the best setting reached, and what loosening the limit alone would bring.

        The last three columns are the limited measure and the cost of the nearest setting that is cheaper (any, if the
        goals cannot be met) and meets the other limits, then the least cost of all such settings. They are NaN where
        there is none: the limit does not bind.
        """
        rows, cost, best = [], self.goals.minimise, self.best
        nothing = replace(best, measures=dict.fromkeys(MEASURES, math.nan))
        cheaper = [trial for trial in self.trials if not self.feasible or trial.rank(cost) < best.rank(cost)]
        for limit in self.goals.limits:
            name, others = limit.measure, limit.others(self.goals.limits)
            near = [trial for trial in cheaper if not trial.violation(others)] or [nothing]
            nearest = min(near, key=lambda trial: trial.rank(cost, [limit])).measures
            reached = best.measures[name], best.errors.get(name) or math.nan, "no" if best.violation([limit]) else "yes"
            cheapest = min(near, key=lambda trial: trial.rank(cost)).measures[cost]
            rows.append((limit, *reached, nearest[name], nearest[cost], cheapest))
        names = ["limit", "reached", "±", "met", "if loosened to", f"{cost} then", "without it"]
        return pd.DataFrame(rows, columns=names)

    @cached_property
    def axes(self) -> dict[str, bool]:
        """What the front trades: the cost, then each limited measure; whether more is better."""
        cost = self.goals.minimise
        return {cost: False} | {limit.measure: limit.at_least for limit in self.goals.limits if limit.measure != cost}

    @cached_property
    def tried(self) -> pd.DataFrame:
        """A row for each trial: the axes, whether it meets all limits, who sets the pace, the knobs, the setting."""
        settings = [trial.setting for trial in self.trials]
        table = pd.DataFrame([trial.measures for trial in self.trials])[[*self.axes]]
        table["met"] = [not trial.violation(self.goals.limits) for trial in self.trials]
        table["by"] = [setting.by for setting in settings]
        return table.join(pd.DataFrame([dict(setting.values) for setting in settings])).assign(setting=settings)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The Pareto front of `tried`, cheapest first: no other row is as good in all axes and better in one."""
        points = self.tried[[*self.axes]].round(9) * [-1 if more else 1 for more in self.axes.values()]
        few_changes = self.tried["setting"].map(lambda setting: setting.changed).sort_values(kind="stable")
        points = points.loc[few_changes.index].fillna(math.inf).drop_duplicates().sort_values([*self.axes])
        unbeaten = [(points <= point).all(axis=1).sum() == 1 for point in points.to_numpy()]
        return self.tried.loc[points.index[unbeaten]]

    def text(self) -> str:
        """Return the setting, the price of each limit, the front, and the commands, as text."""
        best, s, cost, front = self.best, self.goals.scenario, self.goals.minimise, self.front
        factor = Host.of(s, self.goals.simulate_mib).factor
        near = " and ".join(map(str, self.nearest_goals()))
        head = f"the goals can't be reached together; the nearest that can be: {near}"
        spread = np.linspace(0, len(front) - 1, min(ROWS, len(front))).round().astype(int)
        shown = self.tried.loc[[*{*front.index[spread], self.trials.index(best)}], [*self.axes, "setting"]]
        shown = shown.sort_values(cost).rename(columns=_with_unit)
        shown.insert(0, "", np.where(shown["setting"] == best.setting, "*", ""))
        error = f" ± {four_digits(best.errors[cost])}" if best.errors.get(cost) else ""
        smaller = "\n" + SCALED.format(factor) if factor > 1 else ""
        return f"""\
{s.name or "workload"}: {s.total_pages / 256:,.0f} MiB, variant {s.variant}, within {s.horizon_seconds:,g} s; \
ideal saving {factor * self.reference.ideal / 256:,.1f} MiB{smaller}
{len(self.trials)} settings simulated, seed {self.seed}; cheapest means least {cost}

{"cheapest setting that reaches the goals" if self.feasible else head}
  {best.setting}
  {_with_unit(cost)}: {four_digits(self.cost)}{error}

limits, and what loosening one would bring
{text_table(self.bindings.map(four_digits), indent=2)}

Pareto front: {len(front)} settings, of which {len(spread)} are below (* above)
{text_table(shown.map(four_digits), indent=2)}

to set it
{indent(best.setting.commands(s), "  ")}"""

    def plot(self) -> Axes:
        """Draw the cost against the first other limited measure: all trials, the best for each cost, the limits."""
        (ax,), (x, y) = axes(), (list(self.axes) * 2)[:2]
        table = self.tried.sort_values(x)
        for met, kind, color, marker in ((True, "meets all limits", "C0", "o"), (False, "misses a limit", "C1", "X")):
            points = table[table["met"] == met]
            ax.scatter(points[x], points[y], label=kind, color=color, marker=marker, edgecolor="white")
        edge = table[y].cummax() if self.axes[y] else table[y].cummin()
        ax.step(table[x], edge, where="post", color="black", linewidth=1, label="best for the cost")
        for limit in (limit for limit in self.goals.limits if limit.measure in (x, y)):
            line = ax.axvline if limit.measure == x else ax.axhline
            line(limit.value, label=str(limit), **LOOK["budget"])
        found = "found" if self.feasible else "nearest"
        ax.plot(self.cost, self.best.measures[y], "*", color="C2", markersize=16, label=found)
        ax.set(xscale="log" if (table[x] > 0).all() else "linear", xlabel=_with_unit(x), ylabel=_with_unit(y))
        ax.legend()
        return remember(ax, table, "tune")


def _with_unit(name: str) -> str:
    """Return a measure's name with its unit."""
    return f"{name} ({MEASURES[name][0]})".removesuffix(" ()") if name in MEASURES else name
