"""`mmlab tune` against an exhaustive grid: the shipped goals, what each found, and in how many runs.

    python tests/bench_tune.py [GOALS]…      what `make bench` runs (some minutes, on all cores)

The grid has all combinations of `GRID`, an operator's round numbers; the search may take a tenth of its runs. Exit
status 1 when a search needs more, or what it finds costs over 2 % more than the best of the grid.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import product

from bench_goals import Goal, told
from mmlab.kernel.jit import warm_up
from mmlab.limits import cpus
from mmlab.params import params_files
from mmlab.studies.goals import Goals, Reference
from mmlab.studies.settings import Levels, Setting, spaces
from mmlab.studies.tune import RUNS, Trial, TuneResult, tune
from mmlab.workers import executor

TENTH, WITHIN = 0.1, 0.02
SEEDS = (0, 1, 2)
GRID: dict[str, Sequence[int]] = {
    "pages_to_scan": [
        int(f"{digits}{'0' * zeroes}")
        for zeroes in range(4)
        for digits in (10, 12, 15, 18, 22, 27, 33, 39, 47, 56, 68, 82)
    ],
    "advisor_target_scan_time": (1, 5, 20, 100),
    "advisor_max_cpu": (10, 30, 70),
    "advisor_min_pages_to_scan": (10, 50, 200, 1000),
    "advisor_max_pages_to_scan": (30_000,),
}
"""Levels of the grid where they are not those of the search; with max_ptes_none among the knobs also `THINNER` ones."""
THINNER: dict[str, Sequence[int]] = {
    "pages_to_scan": [10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000],
    "sleep_millisecs": (20, 50, 100, 200, 500, 1000),
    "advisor_target_scan_time": (5, 50),
    "advisor_min_pages_to_scan": (10, 50, 200),
    "advisor_max_cpu": (30,),
}


def grid(goals: Goals) -> Iterator[Setting]:
    """Yield the settings of the exhaustive grid."""
    for by, levels in spaces(goals.scenario, goals.by, goals.levels).items():
        chosen = GRID | (THINNER if "max_ptes_none" in levels else {})
        own = {knob: levels for knob, levels in chosen.items() if knob not in goals.levels}
        yield from settings_of(by, levels, **own)


def settings_of(by: str, levels: Levels, **others: Sequence[int]) -> Iterator[Setting]:
    """Yield every setting of a pace, with other levels for the knobs that are named."""
    tried = {knob: others.get(knob, own) for knob, own in levels.items()}
    made = (Setting.of(by, dict(zip(tried, values, strict=True))) for values in product(*tried.values()))
    yield from dict.fromkeys(made)


def exhaustive(goals: Goals, settings: Sequence[Setting], executor: Executor | None = None) -> TuneResult:
    """Run all settings instead of searching."""
    reference = Reference.of(goals.scenario)
    task = partial(Trial.run, goals, reference)
    trials = executor.map(task, settings, chunksize=8) if executor else map(task, settings)
    return TuneResult(goals, reference, tuple(trials))


@dataclass(frozen=True)
class Comparison:
    """The best of a grid, and what the search found in at most a tenth of its runs."""

    grid: TuneResult
    found: TuneResult

    @property
    def excess(self) -> float:
        """Cost of what was found over that of the grid's best, less 1."""
        return self.found.cost / self.grid.cost - 1

    @property
    def share(self) -> float:
        return len(self.found.trials) / len(self.grid.trials)

    @property
    def good(self) -> bool:
        return self.found.feasible and self.grid.feasible and self.excess <= WITHIN and self.share <= TENTH


def compare(
    goals: Goals,
    settings: Sequence[Setting],
    seed: int,
    pool: Executor | None = None,
    whole: TuneResult | None = None,
) -> Comparison:
    """Search with a tenth of the grid's runs (at most what the command line would take)."""
    whole = whole or exhaustive(goals, settings, pool)
    found = tune(goals, runs=min(RUNS, int(TENTH * len(settings))), seed=seed, executor=pool)
    return Comparison(whole, found)


def table(names: Sequence[str]) -> tuple[list[str], list[Comparison]]:
    """Lines of a Markdown table, and what they are of."""
    lines = [
        "| goals | grid: settings, s | its least ksmd CPU, % | search: runs, s | ksmd CPU, % | against the grid |",
        "|---|---|---|---|---|---|",
    ]
    all_made = []
    with executor(cpus()) as pool:
        for name in names:
            goals = Goals.load(name)
            settings = list(grid(goals))
            start = time.perf_counter()
            whole = exhaustive(goals, settings, pool)
            grid_s = time.perf_counter() - start
            for seed in SEEDS:
                start = time.perf_counter()
                made = compare(goals, settings, seed, pool, whole)
                all_made.append(made)
                lines.append(
                    f"| {name}, seed {seed} | {len(settings):,}, {grid_s:.0f} s | {made.grid.cost:.4f} | "
                    f"{len(made.found.trials)}, {time.perf_counter() - start:.1f} s | {made.found.cost:.4f} | "
                    f"{100 * made.excess:+.1f} %{'' if made.good else ' **missed**'} |"
                )
                print(lines[-1], made.grid.best.setting, "->", made.found.best.setting, file=sys.stderr, flush=True)
    return lines, all_made


def main(names: Sequence[str] = ()) -> list[Goal]:
    warm_up()
    lines, made = table(names or list(params_files("goals")))
    print("\n".join(lines))
    return [
        Goal(
            "tune: goals that the grid or the search does not reach",
            sum(not (one.found.feasible and one.grid.feasible) for one in made),
            0,
        ),
        Goal("… cost over the grid's least, at worst, %", max(100 * one.excess for one in made), 100 * WITHIN),
        Goal("… its runs over the grid's, at most, %", max(100 * one.share for one in made), 100 * TENTH),
    ]


if __name__ == "__main__":
    sys.exit(told(main(sys.argv[1:])))
