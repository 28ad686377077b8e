"""The ping-pong between ksmd and khugepaged: ksmd splits, khugepaged collapses again (khugepaged.md, P1 … P7).

khugepaged's turn is the time in which it looks at every block once. A run is measured after its first turn, when every
block that will come back has had its chance:

>>> from mmlab.results.run import simulate
>>> s = Scenario(memory_mib=8, zero_fraction=0.5, use_zero_pages=1, pages_to_scan=500, khugepaged=1, horizon_seconds=60)
>>> turn_seconds(s)
10.0
>>> loop = measure(simulate(s)).to_dict()
>>> round(loop["collapses_per_hour"], -1), loop["swing_mib"]
(1440.0, 4.0)
"""

import numpy as np
import pandas as pd

from mmlab.engine import workload
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario


def turn_seconds(s: Scenario) -> float:
    """Return how long khugepaged takes to look at all blocks once, s: its sleeps (K1)."""
    return s.khugepaged_scan_sleep_millisecs / 1000 * -(-s.total_pages // s.khugepaged_pages_to_scan)


def scan_seconds(s: Scenario) -> float:
    """Return about how long ksmd takes for a full scan of all pages, s: its sleeps, and 1 µs a page."""
    batches = -(-s.total_pages // max(1, s.pages_to_scan))
    ticks = -(-s.sleep_millisecs * s.hz // 1000) + 1
    return max(0.1, round(batches * ticks / s.hz + s.total_pages * 1e-6, 1))


def measure(run: Run) -> pd.Series:
    """Measure what ksmd and khugepaged do to each other, in whole turns of khugepaged.

    What comes before khugepaged's second turn and ksmd's fifth full scan is left out, or a short run's first half.

    Returns
    -------
    Series
        ``collapses_per_hour``, ``in_vain_per_hour``: blocks that khugepaged collapsed, and huge pages that it allocated
        for a collapse that failed (K8). ``splits_per_hour``: THPs split, whoever did it. ``swing_mib``, ``mean_mib``:
        most less fewest frames, and frames on the average over time, MiB. ``thps``: huge pages on the average over
        time. ``ksmd_cpu``, ``khugepaged_cpu``: CPU time, seconds an hour; khugepaged's by estimated costs.
    """
    rows, turn = run.rows, turn_seconds(run.scenario)
    settled = min(max(turn, 4 * scan_seconds(run.scenario)) * 1e9, int(rows["time_ns"][-1]) / 2)
    start = int(np.searchsorted(rows["time_ns"], settled))
    bursts = start + np.flatnonzero(np.diff(rows["khugepaged_cpu_ns"][start:]) > 0) + 1
    a_turn = max(1, round(1000 * turn / max(1, run.scenario.khugepaged_scan_sleep_millisecs)))
    whole = (len(bursts) - 1) // a_turn * a_turn
    rows = rows[bursts[0] : bursts[whole] + 1] if whole > 0 else rows[start:]
    times = np.diff(rows["time_ns"])
    seconds = max(float(times.sum()) / 1e9, 1e-9)
    counted = "thp_collapse_alloc pages_collapsed thp_split_page ksmd_cpu_ns khugepaged_cpu_ns".split()
    tried, done, split, ksmd, khugepaged = (3600 * float(np.ptp(rows[name][[0, -1]])) / seconds for name in counted)
    frames, thps = (
        float((rows[name][:-1] * times).sum() / max(times.sum(), 1)) if len(times) else float(rows[name][-1])
        for name in ("frames", "huge_pmds")
    )
    found = {"collapses_per_hour": done, "in_vain_per_hour": tried - done, "splits_per_hour": split}
    found |= {"swing_mib": float(np.ptp(rows["frames"])) / PAGES_PER_MIB, "mean_mib": frames / PAGES_PER_MIB}
    return pd.Series(found | {"thps": thps, "ksmd_cpu": ksmd / 1e9, "khugepaged_cpu": khugepaged / 1e9})


def for_turns(s: Scenario, turns: float) -> Scenario:
    """Return a scenario that lasts for this many turns of khugepaged after what `measure` leaves out, not longer."""
    turn = max(turn_seconds(s), s.khugepaged_scan_sleep_millisecs / 1000, 1.0)
    seconds = round(max(4 * scan_seconds(s), turn_seconds(s)) + (turns + 0.5) * turn, 1)
    ends = {"horizon_full_scans": 0, "horizon_batches": 0, "until_settled": False}
    return s.replace(horizon_seconds=min(seconds, s.horizon_seconds or seconds), **ends)


def mapped(run: Run) -> Run:
    """Simulate a run's scenario again with page maps at 150 even times, and around bursts of collapses."""
    rows = run.rows
    even = np.searchsorted(rows["time_ns"], np.linspace(0, rows["time_ns"][-1], 150))
    bursts = np.flatnonzero(np.diff(rows["pages_collapsed"]) > 0)
    chosen = rows[np.unique(np.concatenate([even, bursts, bursts + 1]))]
    return simulate(run.scenario, maps_at=set(zip(chosen["batch"].tolist(), chosen["rank"].tolist(), strict=True)))


def block_maps(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the page maps, all processes one after the other: times, s, and letters[time, block, page]."""
    size = run.scenario.pages_per_thp
    places = zip(run.rows["batch"].tolist(), run.rows["rank"].tolist(), strict=True)
    time = dict(zip(places, run.rows["time_ns"] / 1e9, strict=True))
    taken = [where for where in sorted(run.maps) if where in time]
    blocks = [np.concatenate([part[: len(part) // size * size] for part in run.maps[where]]) for where in taken]
    return np.array([time[where] for where in taken]), np.stack(blocks).reshape(len(taken), -1, size)


def collapses(run: Run) -> pd.DataFrame:
    """Return each block that became huge from one page map to the next: columns time_s, block."""
    time, letters = block_maps(run)
    huge = (letters == ord("H")).all(axis=2)
    when, block = np.nonzero(huge[1:] & ~huge[:-1])
    return pd.DataFrame({"time_s": time[when + 1], "block": block})


def zero_pages_of_blocks(s: Scenario) -> np.ndarray:
    """Return how many pages of each 2 MiB block are zero-filled at the start, over all processes."""
    size = s.pages_per_thp
    counts = [(i.keys[: len(i.keys) // size * size] == 0).reshape(-1, size).sum(1) for i in workload.build(s)]
    return np.concatenate(counts)


def period(run: Run) -> float | None:
    """Return the median time between two collapses of the same block, s; None if no block was collapsed twice."""
    again = collapses(run).groupby("block")["time_s"].diff().dropna()
    return float(again.median()) if len(again) else None


def blocks_collapsed(run: Run) -> int:
    """Return how many blocks were collapsed at least once."""
    return int(collapses(run)["block"].nunique())


def underused(run: Run) -> int:
    """Return the blocks that have so many zero-filled pages at the start that they count as underused."""
    limit = run.scenario.max_ptes_none
    return int((zero_pages_of_blocks(run.scenario) > limit).sum()) if limit < run.scenario.pages_per_thp - 1 else 0


def huge_again(run: Run) -> int:
    """Return the blocks that khugepaged may make huge again, as far as their zero-filled pages allow it."""
    few = zero_pages_of_blocks(run.scenario) <= run.scenario.max_ptes_none
    return int(few.sum()) if run.scenario.khugepaged else 0


def enders(cells: pd.DataFrame) -> str:
    """Return which limits end the loop, in words: alone, together, or none.

    Parameters
    ----------
    cells
        Collapses an hour, a row a `max_ptes_shared`, a column a `max_ptes_none`.

    >>> enders(pd.DataFrame({0: [0, 0], 511: [0, 9]}, [0, 256]))
    '`max_ptes_none=0` alone or `max_ptes_shared=0` alone'
    """
    ends = cells == 0
    alone = {"max_ptes_none": ends.columns[ends.all()], "max_ptes_shared": ends.index[ends.all(axis=1)]}
    words = [f"`{knob}={limits.max()}` alone" for knob, limits in alone.items() if len(limits)]
    pairs = [(none, shared) for shared in ends.index for none in ends if ends.at[shared, none]]
    words = words or [f"`max_ptes_none={none}` with `max_ptes_shared={shared}`" for none, shared in pairs[-1:]]
    return "nothing, as nothing goes on" if ends.all(axis=None) else " or ".join(words) or "none of these limits"
