"""Measures: numbers that are read from a run, by their names.

A measure is a function of this module, a part of what one returns (``pace.least``; ``loop.swing_mib`` is of
`mmlab.studies.pingpong.measure`), counters of pages whose sum at the end is meant, in MiB, a counter as it is
(``#thp_split_page``), or a metric of `mmlab.results.metrics`.

>>> from mmlab import Scenario, simulate
>>> run = simulate(Scenario(memory_mib=4, zero_fraction=0.5, use_zero_pages=1, horizon_full_scans=2))
>>> [value(run, what) for what in ("freed_mib", "freed_unseen", "zeropages_by_ksm", "#thp_split_page")]
[2.0, 2.0, 2.0, 2]
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from mmlab.results.metrics import METRICS, PAGES_PER_MIB, UNSURE
from mmlab.results.run import Run
from mmlab.results.uncertainty import error_of
from mmlab.studies import pingpong
from mmlab.studies.judge import given_back

Measure = Callable[[Run], float | None]
loop = pingpong.measure
BY_SPLITS = "zeropages_by_ksm zeropages_by_shrinker zeropages_by_other"


def value(run: Run, what: str | Measure) -> float | None:
    """Return a measure of a run; None if the thing never happens in it."""
    if callable(what):
        return what(run)
    name, _, part = what.partition(".")
    if name in globals():
        found = globals()[name](run)
        return found[part] if part else found  # type: ignore[no-any-return]
    counted = set(what.removeprefix("#").split()) <= set(run.rows.dtype.names or ())
    if counted and (what not in METRICS or METRICS[what].unit == "pages"):
        return last(run, what)
    return getattr(run.metrics, what)  # type: ignore[no-any-return]


def standard_error(run: Run, what: str | Measure) -> float:
    """Return the standard error of a measure that comes from the costs of ksmd's steps."""
    return run.uncertainty.get(str(what), 0.0) if what in UNSURE else error_of(run, partial(value, what=what))


def samples(run: Run, names: str) -> np.ndarray:
    """Return the sum of some counters of pages at each sample, MiB; of any counters as it is if a # stands first."""
    total: np.ndarray = np.sum([run.rows[name] for name in names.removeprefix("#").split()], axis=0)
    return total if names.startswith("#") else total / PAGES_PER_MIB


def last(run: Run, names: str, seconds: float = math.inf) -> float:
    """Return the sum of some counters at a simulated time, by default at the end; see `samples`."""
    row = np.searchsorted(run.rows["time_ns"], 1e9 * seconds, side="right") - 1
    found: float = samples(run, names)[row].item()
    return found


def since(run: Run, share: float) -> np.ndarray:
    """Return the samples after this share of the run's time."""
    rows: np.ndarray = run.rows[int(np.searchsorted(run.rows["time_ns"], share * run.rows["time_ns"][-1])) :]
    return rows


def wasted(run: Run) -> np.ndarray:
    """Return float64[samples]: zero-filled memory that is allocated, MiB: every frame beyond the used pages.

    Used pages in swap count among the latter. Exact while no two used pages are equal.
    """
    used = int((run.machine.page["key"] != 0).sum())
    in_swap = np.minimum(run.rows["swap_entries"], used)
    memory: np.ndarray = np.maximum(0, run.rows["frames"] + in_swap - used) / PAGES_PER_MIB
    return memory


def held(run: Run) -> float:
    """Return how much zero-filled memory stays allocated for how long, MiB·s."""
    return float((wasted(run)[:-1] * np.diff(run.rows["time_ns"])).sum()) / 1e9


def kept(run: Run) -> float:
    """Return the zero-filled memory that is allocated at the end, MiB."""
    return float(wasted(run)[-1])


def ended(run: Run) -> float:
    """Return how long the run lasts, s."""
    return float(run.rows["time_ns"][-1]) / 1e9


def ksmd_cpu(run: Run) -> float:
    """Return ksmd's CPU time, s."""
    return float(run.rows["ksmd_cpu_ns"][-1]) / 1e9


def gone_after(run: Run, share: float = 0.99) -> float | None:
    """Return when this share of the zero-filled memory has been given back, s; None if that never happens."""
    waste = wasted(run)
    done = np.flatnonzero(waste <= (1 - share) * waste[0])
    return float(run.rows["time_ns"][done[0]]) / 1e9 if len(done) and waste[0] else None


def given_back_after(run: Run) -> float | None:
    """Return when 99 % of what the run frees has been given back, s; None if it frees nothing."""
    row = given_back(run)
    return None if row is None else float(run.rows["time_ns"][row]) / 1e9


def gone_since_ksm(run: Run) -> float | None:
    """Return when 99 % of the zero-filled memory has been given back, s after KSM was enabled."""
    gone = gone_after(run)
    return None if gone is None else gone - run.scenario.ksm_start_seconds


def page_by_page(run: Run) -> float:
    """Return the zero-filled memory that ksmd gave back page by page, not by a split, MiB."""
    return max(0.0, float(wasted(run)[0]) - kept(run) - last(run, BY_SPLITS))


def zeroes_in_swap(run: Run) -> float:
    """Return the zero-filled memory in swap slots, MiB: what is there beyond the used pages that had to go out."""
    size, used = run.scenario.pages_per_thp, 0
    for mm in run.machine.mm[1 : run.processes + 1]:
        keys = run.machine.page["key"][int(mm["base"]) : int(mm["base"]) + int(mm["pages"])]
        used += int((keys[: len(keys) // size * size].reshape(-1, size)[:, :-1] != 0).sum())
    return max(0.0, last(run, "swap_entries") - used / PAGES_PER_MIB)


def remapped_before_ksm(run: Run) -> float:
    """Return the memory that other splits than ksmd's have remapped when KSM is enabled, MiB."""
    return last(run, "zeropages_by_other", run.scenario.ksm_start_seconds)


def remapped_since_ksm(run: Run) -> float:
    """Return the memory that other splits than ksmd's have remapped since KSM was enabled, MiB."""
    return last(run, "zeropages_by_other") - remapped_before_ksm(run)


def split_by_others(run: Run) -> int:
    """Return the THPs that migration has split, or an event at the start."""
    return int(last(run, "#thp_migration_split")) + int(last(run, "#thp_split_page", 0.5))


def split_by_ksmd(run: Run) -> int:
    """Return the THPs that ksmd has split: those that neither the shrinker nor others have."""
    return int(last(run, "#thp_split_page")) - int(last(run, "#thp_underused_split_page")) - split_by_others(run)


def freed_unseen(run: Run) -> float:
    """Return the memory freed that no counter of KSM shows, MiB."""
    return float(run.metrics.freed_unseen_pages) / PAGES_PER_MIB


def cpu_per_mib(run: Run) -> float | None:
    """Return ksmd's CPU time for each MiB freed, ms."""
    return float(run.metrics.ksmd_cpu_ms) / run.metrics.freed_mib if run.metrics.freed_mib > 0 else None


def thps_per_mib(run: Run) -> float | None:
    """Return how many THPs were split for each MiB freed."""
    return run.metrics.thps_split / float(run.metrics.freed_mib) if run.metrics.freed_mib > 0 else None


def host(run: Run) -> dict[str, float | None]:
    """Measure a host that is simulated smaller, at its own size.

    Memory saved, and the part of it that no counter of KSM shows, MiB; THPs lost; time until 99 % is saved, and mean
    time of a full scan, min.
    """
    times = {"done": given_back_after(run), "scan": later(run)["scan_mean"]}
    sizes = {"saved": run.metrics.freed_mib, "unseen": freed_unseen(run), "thps": run.metrics.thps_split}
    found = {name: round(size * run.scenario.host_scale) for name, size in sizes.items()}
    return found | {name: None if time is None else time / 60 for name, time in times.items()}


def swing(run: Run) -> float:
    """Return most minus least memory allocated after the first quarter of the run, MiB."""
    return float(np.ptp(since(run, 0.25)["frames"])) / PAGES_PER_MIB


def pace(run: Run) -> dict[str, float]:
    """Measure `pages_to_scan` in the second half of the run.

    Its least and most, one divided by the other, its changes a second, and how busy ksmd is, % of one CPU.
    """
    rows = since(run, 0.5)
    pages, ns = rows["pages_to_scan"], max(1, int(np.ptp(rows["time_ns"])))
    least, most = int(pages.min()), int(pages.max())
    changes, spent = np.count_nonzero(np.diff(pages)), float(np.ptp(rows["ksmd_cpu_ns"]))
    found = {"least": least, "most": most, "hunting": most / max(1, least)}
    return found | {"changes": 1e9 * changes / ns, "busy": 100 * spent / ns}


def cpu_per_page(run: Run) -> float | None:
    """Return ksmd's CPU time for each page freed, µs."""
    spent = cpu_per_mib(run)
    return None if spent is None else 1000 * spent / PAGES_PER_MIB


def slots_unwritten(run: Run) -> float:
    """Return the memory in swap slots for which nothing was written, MiB: zero-filled pages."""
    return max(0.0, last(run, "swap_entries") - last(run, "pswpout"))


def later(run: Run) -> dict[str, float | None]:
    """Measure what comes after the first full scan: its end, s (None: there is none), and the most that is freed, MiB.

    Then the batches and the time, s, until 99 % of that is freed, and the mean time of a full scan, s.
    """
    rows = run.rows[np.searchsorted(run.rows["full_scans"], min(1, run.rows["full_scans"][-1])) :]
    time, freed = rows["time_ns"] - rows["time_ns"][0], rows["frames"][0] - rows["frames"]
    done, scans = int(np.argmax(freed >= 0.99 * freed.max())), int(run.metrics.full_scans)
    start, batches = float(rows["time_ns"][0]) / 1e9 if scans else None, int(rows["batch"][done] - rows["batch"][0])
    found = {"start": start, "mib": float(freed.max()) / PAGES_PER_MIB, "batches": batches}
    return found | {"seconds": float(time[done]) / 1e9, "scan_mean": float(time[-1]) / 1e9 / max(1, scans - 1)}


def cpu_per_visit(run: Run) -> float:
    """Return ksmd's mean CPU time for a visit, µs."""
    return 1e3 * float(run.metrics.ksmd_cpu_ms) / max(1, int(run.rows["pages_scanned"][-1]))


def thps_per_scan(run: Run) -> float:
    """Return how many THPs were split in a full scan after the first, on the average."""
    return float(run.metrics.thps_split) / max(1, int(run.metrics.full_scans) - 1)
