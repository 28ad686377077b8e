"""What a page costs: the model beside ksmd and the plain-Python reference, and from 1 GiB up to 1 TiB.

    python tests/bench_scale.py [GIB [FIGURE.png]]     sizes up to GIB, as memory allows (default 1024: five minutes)

Times are CPU time of one core. Exit status 1 when a limit is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench_goals import Goal, told
from mmlab import Scenario, simulate
from mmlab.engine import workload
from mmlab.engine.clock import Clock
from mmlab.errors import UserError
from mmlab.figures import figures as plots
from mmlab.host import calibrate
from mmlab.kernel.jit import warm_up
from mmlab.params import find_params
from mmlab.variants import resolve

ROUNDS = 15
RECORDED = Path(__file__).with_name("calibration-6.18.json.gz")
UNIQUE: dict[str, Any] = {
    "thp_coverage": 0.0,
    "key_order": "random",
    "smart_scan": 0,
    "pages_to_scan": 4096,
    "horizon_seconds": 0.0,
}
"""Unique small pages. The first full scan only takes checksums, the second searches and inserts."""
PASSES = ("checksum pass", "tree pass")
KSMD_1_GIB = {"checksum pass": 700.0, "tree pass": 5800.0}
"""ns a visit that ksmd took at 1 GiB, at the least: 0.7 to 0.9 and 5.8 to 7.0 µs (Linux 6.18, 2-core AMD EPYC)."""
FASTER = {"checksum pass": (100, 100), "tree pass": (20, 25)}
"""How many times less than ksmd, and than the reference model."""
SIZES_GIB = (1, 4, 16, 64, 256, 1024)
LIMITS = {64: 30.0, 1024: 900.0}
"""Seconds that a size may take."""
BYTES_A_PAGE, GROWTH = 56.0, 4.0
"""Of 1 TiB: memory, and time a page against that at 1 GiB."""


def by_model(mib: int) -> list[float]:
    """ns a visit in each of the passes: the best of some rounds, less a run in which nothing is visited."""

    def seconds(**end: int) -> float:
        scenario, best = Scenario(memory_mib=mib, **{**UNIQUE, **end}), np.inf
        for _ in range(ROUNDS):
            ready = Clock(scenario, resolve("mainline"))
            start = time.process_time()
            ready.run()
            best = min(best, time.process_time() - start)
        return best

    nothing, first, both = seconds(pages_to_scan=0, horizon_batches=1), *(seconds(horizon_full_scans=n) for n in (1, 2))
    return [(first - nothing) / mib / 256 * 1e9, (both - first) / mib / 256 * 1e9]


def trace_of(scenario: Scenario, batches: int) -> dict[str, Any]:
    """The question of a kernel trace, as the reference model takes it: so many batches of the scenario."""
    (image,) = workload.build(scenario)
    runs: list[list[int]] = []
    for key in image.keys.tolist():
        if runs and key == runs[-1][0] + runs[-1][1] * runs[-1][2]:
            runs[-1][1] += 1
        else:
            runs.append([key, 1, int(key != 0)])
    knobs = ("use_zero_pages", "pages_to_scan", "smart_scan", "max_page_sharing", "shrink_underused", "max_ptes_none")
    pages = len(image.keys)
    return {
        "format": "kernel-trace-1",
        "name": "bench",
        "kernel": "6.12.117",
        "variant": scenario.variant,
        "scenario": {
            "knobs": {name: getattr(scenario, name) for name in knobs}
            | {"stable_node_chains_prune_millisecs": 4294967, "merge_across_nodes": 1, "swap_mib": 0},
            "processes": [
                {
                    "pages": pages,
                    "contents": runs,
                    "thp": [[0, pages]] if image.huge.any() else [],
                    "mergeable": [[0, pages]],
                }
            ],
            "late": 0,
            "events": [],
            "batches": batches,
        },
        "fields": [],
        "samples": [],
        "maps": [],
        "frames": [],
    }


def by_reference(mib: int) -> list[float]:
    """The same of the plain-Python reference model, which is not part of the library."""
    import reference

    def seconds(batches: int) -> float:
        asked, best = trace_of(Scenario(memory_mib=mib, horizon_batches=1, **UNIQUE), batches), np.inf
        for _ in range(5 if mib < 1024 else 1):
            start = time.process_time()
            reference.predict(asked)
            best = min(best, time.process_time() - start)
        return best

    a_pass = mib * 256 // UNIQUE["pages_to_scan"] + 1  # the last one only ends it
    laid_out, first, both = (seconds(number * a_pass) for number in range(3))
    return [(first - laid_out) / mib / 256 * 1e9, (both - first) / mib / 256 * 1e9]


def by_ksmd() -> list[float]:
    """The same of ksmd itself at 64 MiB: the recorded batches of unique small pages."""
    (samples,) = [rows for scenario, rows in calibrate.read(RECORDED) if scenario.name == "unique-small"]
    ends = [[row for row in samples if row["full_scans"] == number][-1] for number in (0, 1)]
    starts = [samples[0], next(row for row in samples if row["full_scans"] == 1)]
    return [
        (end["ksmd_cpu_ns"] - start["ksmd_cpu_ns"]) / (end["pages_scanned"] - start["pages_scanned"])
        for start, end in zip(starts, ends, strict=True)
    ]


def against_ksmd() -> list[Goal]:
    """Print the table of visits."""
    words = "mmlab", "ksmd", "times", "limit", "Python", "times", "limit"
    print(f"{'unique small pages, ns a visit':40}" + "".join(f"{word:>8}" for word in words))
    goals = []
    ksmd = {64: by_ksmd(), 1024: list(KSMD_1_GIB.values())}
    for mib, kernel in ksmd.items():
        model, plain = by_model(mib), by_reference(mib)
        for i, name in enumerate(PASSES):
            times, to_plain, (least, least_plain) = kernel[i] / model[i], plain[i] / model[i], FASTER[name]
            goals += [
                Goal(f"a visit, {mib:,} MiB, {name}: times less than ksmd's", times, least, least=True),
                Goal("… than the reference model's", to_plain, least_plain, least=True),
            ]
            beside = f"{kernel[i]:8,.0f}{times:8.0f}{least:8}{plain[i]:8,.0f}{to_plain:8.0f}{least_plain:8}"
            print(f"{f'{mib:,} MiB, {name}':40}{model[i]:8.1f}{beside}")
    return goals


def peak_bytes() -> int:
    """Most memory that this process has had, but for what it was born with."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def one_size(gib: int) -> None:
    """In a process of its own: prints seconds, and bytes and seconds a page, as JSON."""
    warm_up()
    scenario = Scenario.load(find_params("mixed_guests"), memory_mib=1024 * gib)
    before, start = peak_bytes(), time.process_time()
    run = simulate(scenario)
    seconds = time.process_time() - start
    bytes_a_page = (peak_bytes() - before) / scenario.total_pages
    print(json.dumps([seconds, bytes_a_page, seconds / scenario.total_pages * 1e9, int(run.rows["full_scans"][-1])]))


def sizes(largest: int, figure: str = "") -> list[Goal]:
    """Print the table of sizes, and draw it if asked to."""
    print(f"{'mixed_guests, 2 full scans':40}{'s':>8}{'limit':>8}{'ns a page':>11}{'bytes a page':>14}{'GiB':>8}")
    goals, found = [], []
    for gib in SIZES_GIB:
        if gib > largest:
            break
        try:
            Scenario.load(find_params("mixed_guests"), memory_mib=1024 * gib).check_memory()
        except UserError as error:
            print(f"{gib:,} GiB: not run. {error}")
            break
        command = [sys.executable, __file__, "--one", str(gib)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, bytes_a_page, ns, full_scans = json.loads(out)
        assert full_scans == 2
        found.append((gib, seconds, ns, bytes_a_page))
        if gib in LIMITS:
            goals.append(Goal(f"two full scans of {gib:,} GiB, s", seconds, LIMITS[gib]))
        if gib == SIZES_GIB[-1]:
            goals += [
                Goal("… memory, bytes a page", bytes_a_page, BYTES_A_PAGE),
                Goal("… time a page over that at 1 GiB", ns / found[0][2], GROWTH),
            ]
        limit, memory = LIMITS.get(gib, ""), bytes_a_page * gib / 4096
        print(f"{f'{gib:,} GiB':40}{seconds:8.1f}{limit:>8}{ns:11.0f}{bytes_a_page:14.1f}{memory:8.2f}", flush=True)
    if figure:
        draw(pd.DataFrame(found, columns=["GiB", "s", "ns a page", "bytes a page"]), figure)
    return goals


def draw(table: pd.DataFrame, path: str) -> None:
    """CPU time of a run, time a page and memory a page over the simulated memory."""
    panels = plots.axes(3, width=10.5, height=3.2)
    for panel, name, label in zip(
        panels, table.columns[1:], ("CPU time of the run (s)", *table.columns[2:]), strict=True
    ):
        panel.plot(table["GiB"], table[name], marker="o", color="#0173B2")
        panel.set(xscale="log", xlabel="simulated memory (GiB)", ylabel=label, xticks=table["GiB"])
        panel.set_xticks([], minor=True)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        for gib, value in zip(table["GiB"], table[name], strict=True):
            panel.annotate(f"{value:,.3g}", (gib, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    panels[0].set(yscale="log", ylim=(table["s"].min() / 2, table["s"].max() * 3))
    for panel in panels[1:]:
        panel.set(ylim=(0, 1.15 * panel.get_ylim()[1]))
    plots.figure_of(panels).savefig(path, dpi=130)


def main(largest: int = SIZES_GIB[-1], figure: str = "") -> list[Goal]:
    """Print both tables."""
    warm_up()
    return [*against_ksmd(), *sizes(largest, figure)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one_size(int(sys.argv[2]))
    else:
        sys.exit(told(main(*map(int, sys.argv[1:2]), *sys.argv[2:3])))
