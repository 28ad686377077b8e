"""Speed of a sweep: 10,000 scenarios of 64 MiB, three full scans each, against a plain loop over some of them.

    python tests/bench_sweep.py            10,000 scenarios
    python tests/bench_sweep.py 1000       1,000 of them; the start of the processes weighs more then

Parallel efficiency is the time of the sweep on one process, divided by the time on all cores and by their number. Both
are means of runs that take turns, because the speed of a shared machine changes. Overhead is the time of all processes
less the CPU time of the simulations and their metrics, per scenario. Exit status 1: a limit is not kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from statistics import fmean

from bench_goals import Goal, told
from mmlab import Scenario, simulate
from mmlab.kernel.jit import warm_up
from mmlab.limits import cpus
from mmlab.studies.grid import Grid
from mmlab.studies.sweep import Summary, plan, read_sweep, sweep

MINUTES, EFFICIENCY, OVERHEAD_MS = 10.0, 0.9, 3.0
"""Limits for 10,000 scenarios on 2 cores."""
BLOCKS, BLOCK = 10, 40
ROUNDS = 2
"""Sweeps on one process; on all cores there is one more."""


def grid(count: int) -> Grid:
    """Return a grid of `count` scenarios (a multiple of 200) of the mixed guests' memory."""
    return Grid(
        base={"params": "mixed_guests", "memory_mib": 64, "horizon_full_scans": 3},
        vary={
            "variant": ["mainline", "legacy", "v1-series", "ksm-opt-out"],
            "use_zero_pages": [0, 1],
            "pages_to_scan": {"low": 100, "high": 10_000, "count": 25, "log": True},
            "thp_coverage": {"low": 0, "high": 1, "count": max(2, count // 200)},
        },
    )


def loop(count: int) -> float:
    """Return the seconds per scenario of a plain loop in the sweep's order, over blocks from all parts of the grid."""
    with tempfile.TemporaryDirectory() as folder:
        items = plan(grid(count), folder).items
    starts = [i * (len(items) - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
    begin = time.perf_counter()
    for start in starts:
        for item in items[start : start + BLOCK]:
            run = simulate(Scenario(**item.values))
            run.metrics, run.uncertainty  # noqa: B018
    return (time.perf_counter() - begin) / (BLOCKS * BLOCK)


def timed(count: int, jobs: int) -> tuple[Summary, float]:
    """Sweep into a new folder and check the rows; also return the seconds of the same sweep when all rows are there."""
    with tempfile.TemporaryDirectory() as folder:
        found = sweep(grid(count), folder, jobs=jobs)
        rows = read_sweep(folder)
        again = sweep(grid(count), folder, jobs=jobs)
    assert (len(rows), found.ran, rows["error"].count(), again.ran) == (found.scenarios, found.scenarios, 0, 0)
    return found, again.seconds


def main(count: int = 10_000) -> list[Goal]:
    """Print the table; the limits hold for 10,000 scenarios."""
    warm_up()
    loop(200)  # load what is loaded at the first use
    jobs = cpus()
    found, again = zip(*(timed(count, jobs if i % 2 == 0 else 1) for i in range(2 * ROUNDS + 1)), strict=True)
    plain = loop(count)
    on_all, on_one = found[::2], found[1::2]
    seconds, alone = (fmean(each.seconds for each in some) for some in (on_all, on_one))
    simulated = fmean(each.simulated_s for each in on_all)
    efficiency, overhead = alone / (jobs * seconds), (jobs * seconds - simulated) / count * 1e3
    limits = count >= 10_000
    print(f"{'sweep of 64 MiB scenarios, 3 full scans each':64}{'':>10}{'limit':>10}")
    for name, value, limit in (
        (f"{count:,} scenarios on {jobs} processes, minutes", seconds / 60, MINUTES),
        ("… on one process", alone / 60, None),
        ("parallel efficiency", efficiency, EFFICIENCY),
        ("overhead a scenario, ms", overhead, OVERHEAD_MS),
        ("a scenario with its metrics in a plain loop, ms", plain * 1e3, None),
        (f"… in one of {jobs} processes, CPU time, ms", simulated / count * 1e3, None),
        ("the same sweep again, where nothing is to be run, s", min(again), None),
    ):
        print(f"{name:64}{value:10.2f}{limit if limit and limits else '':>10}")
    goals = [
        Goal(f"sweep of {count:,} scenarios of 64 MiB, minutes", seconds / 60, MINUTES),
        Goal("… parallel efficiency", efficiency, EFFICIENCY, least=True),
        Goal("… overhead a scenario, ms", overhead, OVERHEAD_MS),
    ]
    return goals if limits else []


if __name__ == "__main__":
    sys.exit(told(main(*map(int, sys.argv[1:]))))
