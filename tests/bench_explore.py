"""Speed of the explorer: 200 random settings of its sliders at 1 GiB, as a user would meet them.

    python tests/bench_explore.py [COUNT]

A simulation is one call of `simulate`, alone. An update is from the callback of a control, through the event loop, both
simulations in their threads and the description of all figures, to the message that the browser draws. Exit status 1
when a 95th percentile is above its limit.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import numpy as np
from ipywidgets.widgets.widget import _remove_buffers

from bench_goals import Goal, told
from mmlab import VARIANTS, Scenario, explore, simulate
from mmlab.explorer.explorer import Explorer
from mmlab.kernel.jit import warm_up
from mmlab.scenario import flat_fields

COUNT, SEED = 200, 4
SIMULATION, UPDATE = "one simulation, alone (ms)", "update, from callback to drawn (ms)"
LIMITS = {SIMULATION: 100.0, UPDATE: 200.0}
"""Of the 95th percentile."""


def settings(count: int = COUNT) -> Iterator[tuple[Scenario, str]]:
    """Scenarios with random values of all controls of the issue, and the variant to compare with."""
    rng = np.random.default_rng(SEED)

    def logarithmic(low: float, high: float) -> int:
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))

    for _ in range(count):
        first, second = rng.choice(list(VARIANTS), 2, replace=False).tolist()
        scenario = Scenario(
            variant=first,
            memory_mib=1024,
            horizon_seconds=60.0,
            pages_to_scan=logarithmic(100, 5000),
            sleep_millisecs=int(rng.integers(10, 201)),
            use_zero_pages=int(rng.integers(2)),
            smart_scan=int(rng.integers(2)),
            shrink_underused=int(rng.integers(2)),
            max_ptes_none=int(rng.integers(512)),
            thp_coverage=round(float(rng.random()), 2),
            zero_fraction=round(float(rng.random()), 2),
            duplicate_fraction=round(float(rng.random()), 2),
            layout=str(rng.choice(flat_fields()["layout"].choices)),
        )
        yield scenario, second


async def updates(explorer: Explorer, count: int) -> list[dict[str, float]]:
    """Each setting's times and the size of its pictures."""
    out = []
    for scenario, compare in settings(count):
        before, start = explorer.shown, time.perf_counter()
        explorer.use(scenario, compare)
        while explorer.shown is before:
            await asyncio.sleep(0.001)
        took = time.perf_counter() - start
        assert explorer.scenario == scenario
        simulated, computed = explorer.seconds
        size = sum(map(len, _remove_buffers(explorer.get_state("shown"))[2]))
        out.append(
            {
                "both simulations, in two threads (ms)": 1000 * simulated,
                "figures and tables (ms)": 1000 * (computed - simulated),
                UPDATE: 1000 * took,
                "numbers and page maps for the browser (KiB)": size / 1024,
            }
        )
    return out


def measure(count: int = COUNT) -> dict[str, np.ndarray]:
    """What was measured, by name and unit: a number a simulation or a setting."""
    warm_up()
    alone = []
    for scenario, compare in settings(count):
        for variant in (scenario.variant, compare):
            start = time.perf_counter()
            simulate(scenario, variant=variant)
            alone.append(1000 * (time.perf_counter() - start))
    explorer = explore(memory_mib=2)
    explorer.update()  # imports
    found = asyncio.run(updates(explorer, count))
    return {SIMULATION: np.array(alone)} | {name: np.array([each[name] for each in found]) for name in found[0]}


def main(count: int = COUNT) -> list[Goal]:
    """Print the table."""
    print(f"{f'explorer, {count} random settings, 1 GiB, 60 s':64}{'p50':>8}{'p95':>8}{'max':>8}{'p95 limit':>11}")
    goals = []
    for name, values in measure(count).items():
        p50, p95, most = np.percentile(values, [50, 95, 100])
        limit = LIMITS.get(name)
        if limit is not None:
            goals.append(Goal(f"explorer: {name}, p95", p95, limit))
        print(f"{name:64}{p50:8.1f}{p95:8.1f}{most:8.1f}{limit or '':>11}")
    return goals


if __name__ == "__main__":
    sys.exit(told(main(*map(int, sys.argv[1:2]))))
