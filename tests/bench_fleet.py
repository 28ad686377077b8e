"""The cost of simulating a fleet: CPU time by pages and by hosts, fitted lines, the CPU time of 100,000 hosts; and the
error of a scaled simulation.

    python tests/bench_fleet.py [MIB]…      default: 64 256 1024 4096 16384 65536 (two minutes)

The first part simulates two full scans of 40 % zero-filled, 30 % duplicate and 30 % unique pages in random order, with
use_zero_pages=0 and smart scan off. The variant is ksm-opt-out, because on mainline a dead root ends all searches at
some sizes and not at others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

from bench_goals import Goal, told
from mmlab import Scenario, simulate
from mmlab.kernel.jit import warm_up
from mmlab.studies.fleet import Host, Plan, fleet, host_rows, shrunk

FLEET = 100_000
MIXED = Scenario(
    memory_mib=64,
    zero_fraction=0.4,
    duplicate_fraction=0.5,
    duplicate_groups=1000,
    key_order="random",
    layout="random",
    smart_scan=0,
    variant="ksm-opt-out",
    pages_to_scan=1000,
    horizon_full_scans=2,
    horizon_seconds=0.0,
    sample_limit=100,
)


def timed(scenario: Scenario) -> float:
    """Return the CPU time of a run in s, the best of three for short runs; other work disturbs it little."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        simulate(scenario)
        best = min(best, time.process_time() - start)
        if best > 5:
            break
    return best


def by_size(sizes: Sequence[int]) -> list[str]:
    """Return lines on the CPU time of one host by its memory, the fitted line, and the consequence for the fleet."""
    seconds = [timed(MIXED.replace(memory_mib=mib, duplicate_groups=1000 * mib // 64)) for mib in sizes]
    lines = ["| memory of a host, MiB | CPU s | µs a page | core-hours for 100,000 hosts |", "|---|---|---|---|"]
    lines += [
        f"| {mib:,} | {s:.3f} | {1e6 * s / (256 * mib):.2f} | {FLEET * s / 3600:,.1f} |"
        for mib, s in zip(sizes, seconds, strict=True)
    ]
    power, log_first = np.polyfit(np.log(np.array(sizes) / sizes[0]), np.log(seconds), 1)
    line = f"s = {np.exp(log_first):.3f} × (MiB / {sizes[0]})^{power:.2f}"
    large = 256 * 1024
    whole = np.exp(log_first) * (large / sizes[0]) ** power
    lines += [
        "",
        f"line through them (least squares of the logarithms): {line}.",
        f"By it one host of 256 GiB ({large / sizes[-1]:g} times the largest that was measured here) takes "
        f"{whole / 60:,.1f} minutes, and 100,000 of them, each by itself, {FLEET * whole / 3600:,.0f} "
        "core-hours.",
    ]
    return lines


def by_hosts(counts: Sequence[int] = (4, 8, 16, 32)) -> list[str]:
    """Return lines on the CPU time of the shipped fleet by the number of simulated hosts."""
    fleet(Plan.load("three_kinds", samples=2))
    lines = ["| hosts simulated | CPU s | s a host and variant | error of memory saved, TiB |", "|---|---|---|---|"]
    hosts, seconds = [], []
    for samples in counts:
        plan = Plan.load("three_kinds", samples=samples)
        start = time.process_time()
        estimate = fleet(plan)
        seconds.append(time.process_time() - start)
        hosts.append(samples * len(plan.mix))
        totals = estimate.totals()
        error = totals[(totals["measure"] == "saved") & (totals["variant"] == estimate.variants[0])]["error"].iloc[0]
        each = seconds[-1] / hosts[-1] / len(estimate.variants)
        lines.append(f"| {hosts[-1]} | {seconds[-1]:.1f} | {each:.3f} | {error:,.0f} |")
    slope, first = np.polyfit(hosts, seconds, 1)
    lines += [
        "",
        f"line: s = {first:.2f} + {slope:.4f} × hosts. All {FLEET:,} hosts at that size, none left "
        f"out: {slope * FLEET / 3600:,.1f} core-hours.",
    ]
    return lines


def by_shrinking(true_mib: int = 1024, sizes: Sequence[int] = (256, 64, 16)) -> list[str]:
    """Return lines on the results of a host that is simulated in less and less memory."""
    host = Scenario(
        memory_mib=true_mib,
        zero_fraction=0.4,
        duplicate_fraction=0.3,
        duplicate_groups=20_000,
        key_order="random",
        layout="bimodal",
        use_zero_pages=1,
        pages_to_scan=2000,
        horizon_seconds=15.0,
        sample_limit=100,
    )
    lines = ["| simulated in, MiB | saved, GiB | ksmd CPU, % | THPs lost |", "|---|---|---|---|"]
    for mib in (true_mib, *sizes):
        small = Host("", host) if mib == true_mib else Host("", *shrunk(host, true_mib, mib))
        row = host_rows(small, ["mainline"])[0]
        lines.append(
            f"| {mib:,} | {row['saved'] / 2**18:.3f} | {100 * row['ksmd_cpu']:.1f} | {row['thps_lost']:,.0f} |"
        )
    return lines


def main(sizes: Sequence[int] = ()) -> list[Goal]:
    """Print the tables; they have no limits."""
    warm_up()
    for part in (by_size(sizes or (64, 256, 1024, 4096, 16384, 65536)), by_hosts(), by_shrinking()):
        print("\n".join(part), end="\n\n", flush=True)
    return []


if __name__ == "__main__":
    sys.exit(told(main([int(size) for size in sys.argv[1:]])))
