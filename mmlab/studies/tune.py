"""The cheapest setting that meets goals (`mmlab tune`).

>>> from mmlab import Goals, Scenario
>>> scenario = Scenario(memory_mib=4, zero_fraction=0.5, horizon_seconds=5.0)
>>> found = tune(Goals.of(scenario, ["saved >= 90 %", "ksmd_cpu <= 5 %"], by=["fixed"]), runs=60)
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
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmlab.errors import UserError
from mmlab.figures import figures as plots
from mmlab.results.run import simulate
from mmlab.results.uncertainty import standard_errors
from mmlab.studies.goals import MEASURES, NOT_MET, Goals, Limit, Reference
from mmlab.studies.settings import Setting, Space, spaces

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ConstraintReport", "Trial", "TuneResult", "tune"]

RUNS = 240
"""Default limit on the runs of a search."""
POPULATION, AT_ONCE = 16, 2
"""Members of a population; neighbours to try before the search goes on from the best again."""
EVOLVED, ALONE, TOGETHER, RELAXED = 0.35, 0.65, 0.75, 0.9
"""Shares of the runs after which each stage ends: evolution and neighbours of each pace, of all, without each limit."""
MISSED = 1e9
"""Score in the evolution of a setting that misses a limit: beyond any cost."""
ROWS = 12
"""Most rows of the front that are printed."""

Progress = Callable[[float, float, str], None]
Run = Callable[[Iterable[Setting], int], None]
Score = Callable[["Trial"], tuple[float, float]]


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
        run = simulate(scenario, policy=policy)
        measures, errors = reference.measures(run), standard_errors(run)
        relative = errors.get("khugepaged_cpu_ms", 0.0) / (measures["khugepaged_cpu_ms"] or 1.0)
        errors |= {
            "ksmd_cpu": errors.get("ksmd_cpu_percent", 0.0),
            "khugepaged_cpu": relative * measures["khugepaged_cpu"],
        }
        return cls(setting, measures, errors)

    def violation(self, limits: Iterable[Limit]) -> float:
        """Return the distance to the limits: the root of the sum of squares of the shares by which it misses each."""
        return math.hypot(*(limit.violation(self.measures[limit.measure]) for limit in limits))


@dataclass(frozen=True)
class ConstraintReport:
    """The price of a limit.

    Attributes
    ----------
    limit, value
        The limit, and the best setting's measure.
    nearest
        The setting that is cheaper, meets the other limits and misses this one by least; if the goals cannot be met,
        the one that meets the others and comes nearest to it. None: there is none, and the limit does not bind.
    without
        The cheapest setting that meets the other limits; None: none does.
    """

    limit: Limit
    value: float
    nearest: Trial | None
    without: Trial | None


def _score(minimise: str, limits: Sequence[Limit], trial: Trial) -> tuple[float, float]:
    """Return a key that sorts trials by their distance to the limits, then by cost."""
    return trial.violation(limits), float(np.nan_to_num(trial.measures[minimise], nan=NOT_MET))


def _evolve(
    space: Space, trials: dict[Setting, Trial], run: Run, score: Score, until: int, rng: np.random.Generator
) -> None:
    """Search a space by differential evolution until `until` settings are done or it converges."""
    from scipy.optimize import differential_evolution

    def costs(_: object, vectors: Iterable[np.ndarray]) -> list[float]:
        settings = [space.at(vector) for vector in vectors]
        run(settings, until)
        scores = [score(trials[setting]) if setting in trials else (math.inf, 0.0) for setting in settings]
        return [cost + (MISSED * (1 + missed) if missed else 0.0) for missed, cost in scores]

    counts = [len(levels) for levels in space.levels.values()]
    spread = np.array([rng.permutation(POPULATION) * count // POPULATION for count in counts], float)
    differential_evolution(
        lambda _: 0.0,  # costs evaluates whole generations instead
        [(0, max(1, count - 1)) for count in counts],
        init=spread.T,
        integrality=np.ones(len(counts), bool),
        maxiter=200,
        mutation=(0.4, 0.9),
        recombination=0.8,
        polish=False,
        updating="deferred",
        workers=costs,
        callback=lambda intermediate_result: len(trials) >= until,  # noqa: ARG005
        rng=rng,
    )


def tune(
    goals: Goals,
    *,
    runs: int = RUNS,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Find the cheapest setting that meets the goals, in at most `runs` runs.

    Parameters
    ----------
    goals
        The workload, its limits and the knobs to choose from; see `Goals.of` and `Goals.load`.
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
    searched = {space.by: space for space in spaces(goals.scenario, goals.by, goals.levels)}
    least = 2 * POPULATION * len(searched)
    if runs < least:
        raise UserError(parameter="runs", value=runs, allowed=f"at least {least}: {2 * POPULATION} for each pace")
    reference, rng = Reference.of(goals.scenario), np.random.default_rng(seed)
    if not reference.ideal and any(limit.measure == "saved" for limit in goals.limits):
        hint = "No mergeable pages of the workload are zero-filled or equal."
        raise UserError("nothing can be saved", parameter="saved", hint=hint)
    trials: dict[Setting, Trial] = {}

    def run(settings: Iterable[Setting], until: int) -> None:
        new = [setting for setting in dict.fromkeys(settings) if setting not in trials][: until - len(trials)]
        for trial in (executor.map if executor else map)(partial(Trial.run, goals, reference), new):
            trials[trial.setting] = trial
            if progress:
                progress(len(trials), runs, str(trial.setting))

    aim = partial(_score, goals.minimise, goals.limits)
    for i, space in enumerate(searched.values()):
        share = (EVOLVED * runs - len(trials)) / (len(searched) - i)
        _evolve(space, trials, run, aim, int(len(trials) + share), rng)
    stages: list[tuple[Score, tuple[str, ...], float]] = [
        (aim, (pace,), EVOLVED + (ALONE - EVOLVED) * (i + 1) / len(searched)) for i, pace in enumerate(searched)
    ]
    stages.append((aim, tuple(searched), TOGETHER))
    for i, limit in enumerate(goals.limits):
        others = [other for other in goals.limits if other is not limit]
        until = TOGETHER + (RELAXED - TOGETHER) * (i + 1) / len(goals.limits)
        stages.append((partial(_score, goals.minimise, others), tuple(searched), until))
    stages.append((aim, tuple(searched), 1.0))
    for score, paces, share in stages:
        new: list[Setting] = [*trials]
        while new and len(trials) < int(share * runs):
            ranked = {score(trial): trial for trial in reversed(trials.values()) if trial.setting.by in paces}
            for _, trial in sorted(ranked.items()):
                near = searched[trial.setting.by].neighbours(trial.setting)
                new = [setting for setting in near if setting not in trials]
                if new:
                    break
            rng.shuffle(new)  # type: ignore[arg-type]
            run(new[:AT_ONCE], int(share * runs))
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
        score = partial(_score, self.goals.minimise, self.goals.limits)
        return min(self.trials, key=lambda trial: (score(trial), trial.setting.changed))

    @property
    def feasible(self) -> bool:
        """Whether the best setting meets all limits."""
        return self.best.violation(self.goals.limits) == 0

    @property
    def cost(self) -> float:
        """The best setting's measure `goals.minimise`."""
        return self.best.measures[self.goals.minimise]

    def nearest_goals(self) -> tuple[Limit, ...]:
        """Return the limits, those that are missed loosened to what the best setting reaches."""
        measures = self.best.measures
        return tuple(
            replace(limit, value=measures[limit.measure]) if limit.violation(measures[limit.measure]) else limit
            for limit in self.goals.limits
        )

    @cached_property
    def bindings(self) -> tuple[ConstraintReport, ...]:
        """The price of each limit."""
        out, cost = [], partial(_score, self.goals.minimise)
        for limit in self.goals.limits:
            allowed = [t for t in self.trials if not t.violation(set(self.goals.limits) - {limit})]
            near = [t for t in allowed if not self.feasible or cost([], t) < cost([], self.best)]
            nearest = min(near, key=partial(cost, [limit]), default=None)
            without = min(allowed, key=partial(cost, []), default=None)
            out.append(ConstraintReport(limit, self.best.measures[limit.measure], nearest, without))
        return tuple(out)

    @cached_property
    def axes(self) -> dict[str, bool]:
        """What the front trades: the cost, then each limited measure; whether more is better."""
        own = {limit.measure: limit.at_least for limit in self.goals.limits if limit.measure != self.goals.minimise}
        return {self.goals.minimise: False, **own}

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The Pareto front of the trials, cheapest first: no other trial is as good in all axes and better in one."""
        trials = sorted(self.trials, key=lambda trial: trial.setting.changed)  # of equals the first stays
        points = np.array(
            [[t.measures[name] * (-1 if more else 1) for name, more in self.axes.items()] for t in trials]
        )
        points, first = np.unique(np.nan_to_num(points.round(9), nan=np.inf), axis=0, return_index=True)
        beaten = [((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points]
        return tuple(trials[i] for i, worse in zip(first, beaten, strict=True) if not worse)

    def table(self, trials: Sequence[Trial] | None = None) -> pd.DataFrame:
        """Return a row for each trial (default: the front): axes, whether all limits are met, the pace, the knobs."""
        import pandas as pd

        rows = [
            {name: trial.measures[name] for name in self.axes}
            | {"met": not trial.violation(self.goals.limits), "by": trial.setting.by, **dict(trial.setting.values)}
            for trial in (self.front if trials is None else trials)
        ]
        return pd.DataFrame(rows)

    def text(self) -> str:
        """Return the setting, the price of each limit, the front, and the commands, as text."""
        goals, best, s, name = self.goals, self.best, self.goals.scenario, self.goals.minimise
        head = "cheapest setting that reaches the goals"
        if not self.feasible:
            near = " and ".join(str(limit) for limit in self.nearest_goals() if limit not in goals.limits)
            head = f"the goals can't be reached together; the nearest that can be: {near}"
        limits = [
            {
                "limit": one.limit,
                "reached": _number(one.limit.measure, one.value, best.errors.get(one.limit.measure)),
                "met": "no" if one.limit.violation(one.value) else "yes",
                "if loosened to": one.nearest and _number(one.limit.measure, one.nearest.measures[one.limit.measure]),
                f"{name} then": one.nearest and _number(name, one.nearest.measures[name]),
                "without it": one.nearest and one.without and _number(name, one.without.measures[name]),
            }
            for one in self.bindings
        ]
        spread = np.linspace(0, len(self.front) - 1, min(ROWS, len(self.front))).round().astype(int)
        shown = {trial.setting: trial for trial in (*(self.front[i] for i in spread), best)}.values()
        front = [
            {"": "*" if trial == best else ""}
            | {axis: _number(axis, trial.measures[axis]) for axis in self.axes}
            | {"setting": trial.setting}
            for trial in sorted(shown, key=lambda trial: trial.measures[name])
        ]
        return "\n".join(
            [
                f"{s.name or 'workload'}: {s.total_pages / 256:,.0f} MiB, variant {s.variant}, "
                f"within {s.horizon_seconds:,g} s; ideal saving {self.reference.ideal / 256:,.1f} MiB",
                f"{len(self.trials)} settings simulated, seed {self.seed}; cheapest means least {name}",
                *("", head, f"  {best.setting}", f"  {name} {_number(name, self.cost, best.errors.get(name))}"),
                *("", "limits, and what loosening one would bring", _table(limits)),
                *("", f"Pareto front: {len(self.front)} settings (* above)", _table(front)),
                *("", "to set it", textwrap.indent(best.setting.commands(s), "  ")),
            ]
        )

    def save(self, path: Path) -> None:
        """Write the figure in the format of the file's ending.

        Raises
        ------
        UserError
            The format is unknown, or the file cannot be written.
        """
        from matplotlib import pyplot

        try:
            self.plot()
            pyplot.savefig(path, dpi=150, bbox_inches="tight")
        except (ValueError, OSError) as error:
            raise UserError(str(error), parameter="figure", value=str(path)) from None
        finally:
            pyplot.close()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the cost against the first other limited measure: all trials, the best for each cost, the limits."""
        ax = plots.axes()[0] if ax is None else ax
        table = self.table(self.trials).sort_values(self.goals.minimise)
        x, y = (list(self.axes) * 2)[:2]
        for met, colour, label in ((False, "0.75", "misses a limit"), (True, "C0", "meets all limits")):
            some = table[table["met"] == met]
            ax.plot(some[x], some[y], "o", color=colour, markersize=4, label=f"{label} ({len(some)})")
        edge = table[y].cummax() if self.axes[y] else table[y].cummin()
        ax.step(table[x], edge, where="post", color="0.3", linewidth=1, label="best for the cost")
        for limit in self.goals.limits:
            if limit.measure in (x, y):
                line = ax.axvline if limit.measure == x else ax.axhline
                line(limit.value, color="C3", linestyle="--", linewidth=1, label=str(limit))
        found = "found" if self.feasible else "nearest"
        ax.plot(self.cost, self.best.measures[y], "*", color="C1", markersize=16, label=found)
        ax.set_xscale("log" if (table[x] > 0).all() else "linear")
        ax.set(xlabel=f"{x} ({MEASURES[x][0]})", ylabel=f"{y} ({MEASURES[y][0]})")
        ax.legend(loc="best", fontsize="small")
        return ax


def _number(measure: str, value: float, error: float | None = None) -> str:
    """Return a measure in four digits with its standard error, if it has one, and its unit."""
    texts = [f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}" for x in (value, error or math.nan) if math.isfinite(x)]
    return f"{' ± '.join(texts) or '–'} {MEASURES[measure][0]}".rstrip()


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as an indented text table whose first and last columns are left-aligned."""
    import pandas as pd

    frame = pd.DataFrame(rows).fillna("–").astype(str)
    for name in frame.columns[[0, -1]]:
        frame[name] = frame[name].str.ljust(frame[name].str.len().max())
    lines = frame.to_string(index=False, justify="left").splitlines()
    return "\n".join(f"  {line}".rstrip() for line in lines)
