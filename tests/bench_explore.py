"""Speed of the explorer: 200 random settings of its sliders at 1 GiB, as a user would meet them.

    python tests/bench_explore.py [COUNT]

A simulation is one call of `simulate`, alone. An update is from the callback of a control, through the event loop, both
simulations in their threads and the drawing, to the new pictures and tables set on the widgets. Exit status 1 when a
95th percentile is above its limit.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import numpy as np

from mmlab import VARIANTS, Scenario, explore, simulate
from mmlab.explorer import Explorer
from mmlab.scenario import flat_fields
from mmlab.simulation import warm_up

COUNT, SEED = 200, 4
LIMITS = {"simulation": 100.0, "update": 300.0}
"""ms, of the 95th percentile."""


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
            sleep_millisecs=logarithmic(10, 200),
            use_zero_pages=int(rng.integers(2)),
            smart_scan=int(rng.integers(2)),
            shrink_underused=int(rng.integers(2)),
            max_ptes_none=int(rng.integers(512)),
            thp_coverage=round(float(rng.random()), 2),
            zero_fraction=round(float(rng.random()), 2),
            duplicate_fraction=round(float(rng.random()), 2),
            duplicate_groups=logarithmic(1, 100_000),
            layout=str(rng.choice(flat_fields()["layout"].choices)),
        )
        yield scenario, second


async def updates(explorer: Explorer, count: int) -> list[tuple[float, int]]:
    """ms from the callback to the new pictures, and their bytes, for each setting."""
    out = []
    for scenario, compare in settings(count):
        before, start = explorer.result, time.perf_counter()
        explorer.use(scenario, compare)
        while explorer.result is before:
            await asyncio.sleep(0.001)
        took = 1000 * (time.perf_counter() - start)
        assert explorer.scenario == scenario
        out.append((took, sum(len(image.value) for image in explorer.images.values())))
    explorer.latest.ask()
    return out


def measure(count: int = COUNT) -> dict[str, list[float]]:
    """What was measured, a number a setting: ms, and KiB of pictures."""
    warm_up()
    alone = []
    for scenario, compare in settings(count):
        for variant in (scenario.variant, compare):
            start = time.perf_counter()
            simulate(scenario, variant=variant)
            alone.append(1000 * (time.perf_counter() - start))
    explorer = explore(memory_mib=2)
    explorer.update()  # imports and fonts
    found = asyncio.run(updates(explorer, count))
    return {"simulation": alone, "update": [ms for ms, _ in found], "pictures": [size / 1024 for _, size in found]}


def main(count: int = COUNT) -> int:
    """Print the table; 0 if all is within the limits."""
    print(f"{f'explorer, {count} random settings, 1 GiB, 60 s':64}{'p50':>8}{'p95':>8}{'most':>8}{'limit':>8}")
    failed = False
    for name, values in measure(count).items():
        p50, p95, most = np.percentile(values, [50, 95, 100])
        limit = LIMITS.get(name)
        failed |= limit is not None and p95 > limit
        words = {"simulation": "one simulation (ms)", "update": "update: callback to drawn (ms)"}
        print(f"{words.get(name, 'its pictures (KiB)'):64}{p50:8.1f}{p95:8.1f}{most:8.1f}{limit or '':>8}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
