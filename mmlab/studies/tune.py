"""The cheapest setting that reaches goals (`mmlab tune`).

>>> scenario = Scenario(memory_mib=4, zero_fraction=0.5, horizon_seconds=5.0)
>>> found = tune(Goals.of(scenario, ["saved >= 90 %", "ksmd_cpu <= 5 %"], by=["fixed"]), runs=60)
>>> found.feasible, found.best.value("saved") >= 90
(True, True)

*Cheapest* is least ksmd CPU time over the whole of `within`, unless `Goals.minimise` names another measure. Each pace
(`mmlab.studies.settings.BY`) is searched by differential evolution over the levels of its knobs (scipy's: seeded, whole
numbers, constraints as a score, and no package beyond one that is needed anyway), and the best by steps to neighbours
that get smaller: the first finds the valley, the second its bottom. No setting is run twice, and the same seed
tries the same settings on any number of processes.

A setting that misses a limit is worse than any that misses none, and the more so the farther it is away: the root of
the sum of the squares of the shares of each limit by which it misses it. So without a setting that reaches all, the
search ends at the nearest.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmlab.engine.clock import simulate
from mmlab.engine.policies import Policy
from mmlab.errors import UserError
from mmlab.results.uncertainty import standard_errors
from mmlab.scenario import Scenario
from mmlab.studies.goals import MEASURES, NOT_MET, Goals, Limit, Reference
from mmlab.studies.settings import PACE, Setting, Space, spaces

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ConstraintReport", "Trial", "TuneResult", "exhaustive", "tune"]

RUNS = 240
"""Runs that a search may take unless told otherwise."""
POPULATION = 16
"""Members of a population; the first one is spread evenly over the levels."""
SHARES = {"evolve": 0.4, "polish": 0.8, "relax": 0.9}
"""Up to which share of the runs each stage may go; what a stage leaves, the next has."""
MISSED = 1e9
"""Score of a setting that misses a limit, and more: beyond any cost."""
SHORT = 7
"""Levels of all knobs that are not the pace, or nearly so: in the end all are tried."""
ROWS = 12
"""Most rows of the front that are printed."""

Measures = dict[str, float | None]
Score = Callable[["Trial"], float]


@dataclass(frozen=True)
class Trial:
    """A setting, and what its run came to.

    Attributes
    ----------
    setting
        What was set.
    measures
        All `mmlab.studies.goals.MEASURES`.
    errors
        {measure: standard error} of the CPU shares, that of `mmlab.engine.costs.standard_errors`.
    """

    setting: Setting
    measures: Measures
    errors: dict[str, float]

    def value(self, measure: str) -> float:
        value = self.measures[measure]
        return math.nan if value is None else float(value)

    def violation(self, limits: Iterable[Limit]) -> float:
        """How far it is from meeting the limits: root of the sum of squares of the shares that it misses them by."""
        return math.hypot(*(limit.violation(self.measures[limit.measure]) for limit in limits))


@dataclass(frozen=True)
class ConstraintReport:
    """What a limit costs.

    Attributes
    ----------
    limit
        The limit.
    value
        The best setting's measure.
    nearest
        The setting that is cheaper, meets the other limits and misses this one by least; in the infeasible case the one
        that meets the others and comes nearest to it. None: there is none, the limit does not bind.
    without
        The cheapest setting that meets the other limits; None: none does.
    """

    limit: Limit
    value: float
    nearest: Trial | None
    without: Trial | None


class _Trials:
    """Settings that were run, each once, in order."""

    def __init__(self, goals: Goals, runs: int, pool: Executor | None, progress: Callable[..., None] | None) -> None:
        self.goals, self.runs, self.pool, self.progress = goals, runs, pool, progress
        self.reference = Reference.of(goals.scenario)
        self.done: dict[Setting, Trial] = {}

    def run(self, settings: Iterable[Setting], until: int) -> list[Trial | None]:
        """The trial of each setting; None where it would be run after the `until`-th."""
        asked = list(settings)
        new = [setting for setting in dict.fromkeys(asked) if setting not in self.done]
        new = new[: max(0, until - len(self.done))]
        tasks = [(*setting.apply(self.goals.scenario), self.reference) for setting in new]
        for setting, found in zip(new, (self.pool.map if self.pool else map)(_measure, tasks), strict=True):
            self.done[setting] = Trial(setting, *found)
            if self.progress:
                self.progress(len(self.done), self.runs, str(setting))
        return [self.done.get(setting) for setting in asked]

    def best(self, score: Score) -> Trial:
        return min(self.done.values(), key=score)


def _measure(task: tuple[Scenario, Policy | None, Reference]) -> tuple[Measures, dict[str, float]]:
    scenario, policy, reference = task
    run = simulate(scenario, policy=policy)
    errors = standard_errors(run)
    seconds = max(1e-9, float(run.rows["time_ns"][-1]) / 1e9)
    shares = {
        "ksmd_cpu": errors.get("ksmd_cpu_percent", 0.0),
        "khugepaged_cpu": errors.get("khugepaged_cpu_ms", 0.0) / 10 / seconds,
    }
    return reference.measures(run), shares


def _score(minimise: str, limits: Sequence[Limit]) -> Score:
    """Cost where all limits are met, otherwise more than any cost, by the distance."""

    def score(trial: Trial) -> float:
        cost = trial.value(minimise)
        cost = min(NOT_MET, cost) if math.isfinite(cost) else NOT_MET
        missed = trial.violation(limits)
        return MISSED * (1 + missed) + cost if missed else cost

    return score


def _evolve(space: Space, trials: _Trials, score: Score, until: int, seed: int) -> None:
    """Differential evolution over the levels of a space, until so many runs are done or it has converged."""
    from scipy.optimize import differential_evolution
    from scipy.stats import qmc

    counts = np.array(list(space.axes.values()))

    def costs(function: object, vectors: Iterable[np.ndarray]) -> list[float]:  # noqa: ARG001
        settings = [space.at(np.clip(np.rint(vector), 0, counts - 1)) for vector in vectors]
        return [math.inf if trial is None else score(trial) for trial in trials.run(settings, until)]

    if space.size <= POPULATION:
        trials.run(space.grid(), until)
        return
    first = qmc.LatinHypercube(len(counts), rng=seed).random(POPULATION) * counts
    differential_evolution(
        lambda _: 0.0,  # all is evaluated by the map below
        [(0, max(1, count - 1)) for count in counts],
        init=np.minimum(np.floor(first), np.maximum(1, counts - 1)),
        integrality=np.ones(len(counts), bool),
        maxiter=200,
        mutation=(0.4, 0.9),
        recombination=0.8,
        polish=False,
        updating="deferred",
        workers=costs,
        callback=lambda intermediate_result: len(trials.done) >= until,  # noqa: ARG005
        rng=seed,
    )


def _polish(space: Space, trials: _Trials, score: Score, start: Trial, until: int) -> None:
    """Steps to better neighbours along one axis, or along one and the pace, halved when there is none."""
    last = np.array(list(space.axes.values())) - 1
    along = np.eye(len(last), dtype=int)
    pace = list(space.axes).index(PACE[space.by][0])
    at, best = np.array(space.index(start.setting)), start
    step = 4
    while step and len(trials.done) < until:
        reach = range(1, SHORT) if step == 1 else (step,)  # in the end all values of the others
        faster = [sign * step * along[pace] for sign in (1, -1)]
        others = [
            sign * by * along[i]
            for i in range(len(last))
            if i != pace
            for by in reach
            for sign in (1, -1)
            if 0 <= at[i] + sign * by <= max(last[i], step)
        ]
        for moves in (faster, others, [a + b for a in others for b in faster]):
            places = [np.clip(at + move, 0, last) for move in moves]
            settings = [space.at(place) for place in places]
            near = [(score(trial), i, trial) for i, trial in enumerate(trials.run(settings, until)) if trial]
            least, i, trial = min(near, default=(math.inf, 0, start))
            if least < score(best):
                at, best = places[i], trial
                break
        else:
            step //= 2


def tune(
    goals: Goals,
    *,
    runs: int = RUNS,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> TuneResult:
    """Find the cheapest setting that meets the goals, in at most `runs` runs.

    Parameters
    ----------
    goals
        The workload, its limits and what may be turned; see `Goals.of` and `Goals.load`.
    runs
        Most settings that are simulated.
    seed
        Of the search; the scenario's own seed is the scenario's.
    executor
        Runs settings at the same time; what is found does not depend on it.
    progress
        Called after each run with the runs done, the most there may be, and the setting.

    Raises
    ------
    UserError
        `runs` is too small, nothing may be turned, or there is nothing to save and `saved` has a limit.
    """
    searched = spaces(goals.scenario, goals.by, goals.levels)
    least = POPULATION * len(searched)
    if runs < 2 * least:
        raise UserError(f"runs = {runs}: it must be at least {2 * least}, two populations for each pace")
    trials = _Trials(goals, runs, executor, progress)
    if not trials.reference.possible and any(limit.measure == "saved" for limit in goals.limits):
        raise UserError("saved: the workload has no zero-filled and no equal mergeable pages: nothing can be saved")
    score = _score(goals.minimise, goals.limits)
    for i, space in enumerate(searched):
        left = int(SHARES["evolve"] * runs) - len(trials.done)
        _evolve(space, trials, score, len(trials.done) + left // (len(searched) - i), seed)

    def polish(aim: Score, until: int) -> None:
        for start in _leaders(trials, aim):
            space = next(space for space in searched if space.by == start.setting.by)
            _polish(space, trials, aim, start, len(trials.done) + math.ceil((until - len(trials.done)) / 2))

    polish(score, int(SHARES["polish"] * runs))
    feasible = trials.best(score).violation(goals.limits) == 0
    for i, limit in enumerate(goals.limits):
        others = [other for other in goals.limits if other is not limit]
        left = int(SHARES["relax"] * runs) - len(trials.done)
        aim = _score(goals.minimise, others) if feasible else _nearest(limit, others)
        polish(aim, len(trials.done) + left // (len(goals.limits) - i))
    polish(score, runs)
    return TuneResult(goals, trials.reference, tuple(trials.done.values()), seed)


def exhaustive(
    goals: Goals,
    settings: Iterable[Setting],
    *,
    executor: Executor | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> TuneResult:
    """Run all these settings (such as `Space.grid`) instead of searching: what `tune` is measured against."""
    asked = tuple(settings)
    trials = _Trials(goals, len(asked), executor, progress)
    trials.run(asked, len(asked))
    return TuneResult(goals, trials.reference, tuple(trials.done.values()))


def _leaders(trials: _Trials, score: Score) -> list[Trial]:
    """The best of each pace with each value of the switches, best first."""
    best: dict[tuple[object, ...], Trial] = {}
    for trial in sorted(trials.done.values(), key=score):
        values = dict(trial.setting.values)
        best.setdefault((trial.setting.by, values.get("use_zero_pages"), values.get("smart_scan")), trial)
    return list(best.values())


def _nearest(limit: Limit, others: Sequence[Limit]) -> Score:
    """Settings that meet the others, by how far they miss this one."""

    def score(trial: Trial) -> float:
        missed = trial.violation(others)
        return MISSED * (1 + missed) if missed else trial.violation([limit])

    return score


@dataclass(frozen=True)
class TuneResult:
    """What a search has found; see `text` for all of it in words.

    Attributes
    ----------
    goals, reference
        What was asked for, and the memory without KSM.
    trials
        Every setting that was run, in order.
    seed
        Of the search.
    """

    goals: Goals
    reference: Reference
    trials: tuple[Trial, ...]
    seed: int = 0

    @cached_property
    def best(self) -> Trial:
        """The cheapest setting that meets all limits; if none does, the nearest.

        Of equals the one that leaves most knobs as the kernel has them.
        """
        score = _score(self.goals.minimise, self.goals.limits)
        return min(self.trials, key=lambda trial: (score(trial), trial.setting.changed))

    @property
    def feasible(self) -> bool:
        """Whether it meets all limits."""
        return self.best.violation(self.goals.limits) == 0

    @property
    def cost(self) -> float:
        """What it costs: the measure `goals.minimise`."""
        return self.best.value(self.goals.minimise)

    def nearest_goals(self) -> tuple[Limit, ...]:
        """The limits, those that are missed loosened to what the best setting reaches."""
        return tuple(
            limit.relaxed(self.best.value(limit.measure)) if self.best.violation([limit]) else limit
            for limit in self.goals.limits
        )

    @cached_property
    def bindings(self) -> tuple[ConstraintReport, ...]:
        """What each limit costs."""
        out = []
        for limit in self.goals.limits:
            others = [other for other in self.goals.limits if other is not limit]
            allowed = [trial for trial in self.trials if not trial.violation(others)]
            free = min(allowed, key=_score(self.goals.minimise, ()), default=None)
            if self.feasible:
                near = [trial for trial in allowed if trial.value(self.goals.minimise) < self.cost]
            else:
                near = [trial for trial in allowed if math.isfinite(trial.value(limit.measure))]
            nearest = min(near, key=lambda trial, limit=limit: trial.violation([limit]), default=None)  # type: ignore[misc]
            out.append(ConstraintReport(limit, self.best.value(limit.measure), nearest, free))
        return tuple(out)

    @cached_property
    def axes(self) -> list[tuple[str, bool]]:
        """What the front trades: the cost, and each limited measure; whether more is better."""
        own = {limit.measure: limit.at_least for limit in self.goals.limits}
        return [
            (self.goals.minimise, False),
            *((name, more) for name, more in own.items() if name != self.goals.minimise),
        ]

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The Pareto front of what was tried, cheapest first: no other trial is as good in all and better in one."""
        trials = sorted(self.trials, key=lambda trial: trial.setting.changed)  # of equals the first stays
        points = np.array([[trial.value(name) * (-1 if more else 1) for name, more in self.axes] for trial in trials])
        points = np.where(np.isnan(points), np.inf, np.round(points, 9))
        _, first = np.unique(points, axis=0, return_index=True)
        out = [
            trials[i] for i in first if not ((points <= points[i]).all(axis=1) & (points < points[i]).any(axis=1)).any()
        ]
        return tuple(sorted(out, key=lambda trial: trial.value(self.goals.minimise)))

    def table(self, trials: Sequence[Trial] | None = None) -> pd.DataFrame:
        """A row a trial (default: the front): what the front trades, whether all limits are met, the pace, knobs."""
        import pandas as pd

        shown = self.front if trials is None else trials
        rows = [
            {name: trial.value(name) for name, _ in self.axes}
            | {"met": not trial.violation(self.goals.limits), "by": trial.setting.by}
            | dict(trial.setting.values)
            for trial in shown
        ]
        return pd.DataFrame(rows)

    def text(self) -> str:
        """The setting, its measures beside the limits, what binds, the front, and the commands."""
        goals, best = self.goals, self.best
        unit = MEASURES[goals.minimise][0]
        s = goals.scenario
        out = [
            f"{s.name or 'workload'}: {s.total_pages / 256:,.0f} MiB, variant {s.variant}, "
            f"within {s.horizon_seconds:,g} s; at most {self.reference.possible / 256:,.1f} MiB can be saved",
            f"{len(self.trials)} settings simulated, seed {self.seed}; cheapest is least {goals.minimise}",
            "",
        ]
        if self.feasible:
            out += [
                "cheapest setting that reaches the goals",
                f"  {best.setting}",
                f"  {goals.minimise} {_n(self.cost)} {unit}{self._doubt()}",
            ]
        else:
            near = " and ".join(str(limit) for limit in self.nearest_goals() if limit not in goals.limits)
            out += ["the goals can't be reached together; the nearest that can be:", f"  {near}", f"  {best.setting}"]
        width = max(len(str(limit)) for limit in goals.limits)
        out += ["", "limits"]
        for binding in self.bindings:
            value = f"{_n(binding.value)} {MEASURES[binding.limit.measure][0]}".rstrip()
            close = abs(binding.value - binding.limit.value) < best.errors.get(binding.limit.measure, 0.0)
            doubt = "; nearer to the limit than the costs of steps are certain" if close else ""
            out.append(f"  {binding.limit!s:{width}}  {value:>12}  {self._why(binding)}{doubt}")
        out += ["", f"Pareto front of what was tried: {len(self.front)} settings (* above)"]
        out += textwrap.indent(self._front_text(), "  ").splitlines()
        out += ["", "to set it", textwrap.indent(best.setting.commands(s), "  ")]
        return "\n".join(out)

    def _doubt(self) -> str:
        """The cost's standard error, where there is one."""
        error = self.best.errors.get(self.goals.minimise)
        return f" ± {_n(error)}, from what steps cost" if error else ""

    def _why(self, binding: ConstraintReport) -> str:
        """In words what a limit costs, or what would have to give."""
        limit, name = binding.limit, self.goals.minimise
        unit = MEASURES[limit.measure][0]
        near = binding.nearest
        if not self.feasible:
            state = "missed" if self.best.violation([limit]) else "met"
            if near is None:
                return f"{state}; whatever it is, the others can't be met"
            if near.violation([limit]):
                value = f"{_n(near.value(limit.measure))} {unit}".rstrip()
                return f"{state}; with the others as they are, it would have to be {value}"
            return f"{state}; the others can't be met with it"
        if binding.without is None or near is None:
            return "met; does not bind"
        first = f"met; binds: {name} {_n(near.value(name))} with {limit.relaxed(near.value(limit.measure))}"
        if binding.without == near:
            return first
        return f"{first}, {_n(binding.without.value(name))} without it"

    def _front_text(self) -> str:
        """Some rows of the front, the best and its neighbours among them."""
        front = list(self.front)
        if len(front) > ROWS:
            spread = np.linspace(0, len(front) - 1, ROWS).round().astype(int)
            front = [front[i] for i in spread]
        if self.best not in front:
            front = sorted([*front, self.best], key=lambda trial: trial.value(self.goals.minimise))
        names = [name for name, _ in self.axes]
        head = [*(f"{name} {MEASURES[name][0]}".strip() for name in names)]
        lines = ["  " + "  ".join(f"{text:>14}" for text in head) + "  setting"]
        for trial in front:
            mark = "*" if trial == self.best else " "
            cells = "  ".join(f"{_n(trial.value(name)):>14}" for name in names)
            lines.append(f"{mark} {cells}  {trial.setting}")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write the figure; the ending says in which format.

        Raises
        ------
        UserError
            There is no such format, or it can't be written there.
        """
        from matplotlib import pyplot

        figure = self.plot().figure
        try:
            figure.savefig(path, dpi=150, bbox_inches="tight")  # type: ignore[union-attr]
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: {error}") from None
        finally:
            pyplot.close("all")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Cost against the first other measure that has a limit: all trials, the front, the limits, what was found."""
        from mmlab.figures import figures as plots

        x, y = self.axes[0][0], self.axes[min(1, len(self.axes) - 1)][0]
        more = dict(self.axes)[y]
        ax = plots.axes()[0] if ax is None else ax
        at = np.array([(t.value(x), t.value(y), not t.violation(self.goals.limits)) for t in self.trials])
        for met, colour, label in ((0, "0.75", "misses a limit"), (1, "C0", "meets all limits")):
            chosen = at[at[:, 2] == met]
            ax.plot(chosen[:, 0], chosen[:, 1], "o", color=colour, markersize=4, label=f"{label} ({len(chosen)})")
        edge = _edge(at[np.isfinite(at[:, 1]), :2], more)
        ax.step(edge[:, 0], edge[:, 1], where="post", color="0.3", linewidth=1, label="best for the cost")
        for limit in self.goals.limits:
            line = {x: ax.axvline, y: ax.axhline}.get(limit.measure)
            if line:
                line(limit.value, color="C3", linestyle="--", linewidth=1, label=str(limit))
        ax.plot(
            self.cost, self.best.value(y), "*", color="C1", markersize=16, label="found" if self.feasible else "nearest"
        )
        ax.set_xscale("log" if (at[:, 0] > 0).all() else "linear")
        ax.set_xlabel(f"{x} ({MEASURES[x][0]})" if MEASURES[x][0] else x)
        ax.set_ylabel(f"{y} ({MEASURES[y][0]})" if MEASURES[y][0] else y)
        ax.legend(loc="best", fontsize="small")
        return ax


def _edge(points: np.ndarray, more: bool) -> np.ndarray:
    """The best second value up to each first one."""
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    best = (np.maximum if more else np.minimum).accumulate(ordered[:, 1])
    keep = [0, *(i for (_, a), (i, b) in pairwise(enumerate(best)) if a != b)]
    return np.column_stack([ordered[keep, 0], best[keep]])


def _n(value: float) -> str:
    """Four digits, as plain as they can be."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
