"""The result of a simulation: samples, page maps and metrics, each defined once.

Units: memory in MiB, time in seconds of simulated time, MB/s with 1 MB = 2^20 bytes as in the mailing-list thread's
arithmetic (60 MB/s = 15,360 pages/s).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.kernel import pagemap
from mmlab.kernel.state import (
    ANON,
    FIRST,
    LAST,
    MERGE,
    MERGE_ZERO,
    SETTLED,
    SPLIT_PAGE,
    Machine,
    mthp_t,
)
from mmlab.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Metrics", "Run"]

PAGE_KB = 4
PAGES_PER_MIB = 256
MTHP_SIZES = {order: f"mthp_{4 << order}kB" for order in range(2, 10)}


def page_letters(m: Machine, process: int) -> np.ndarray:
    """uint8[pages]: one letter of trace-format.md a page of the process."""
    mm = m.mm[process + 1]
    letters = np.empty(int(mm["pages"]), np.uint8)
    pagemap.page_letters(m, int(mm["base"]), letters)
    return letters


def physical_frames(m: Machine) -> tuple[int, int]:
    """Different frames that some entry maps, and how many of them are KSM pages."""
    frames, ksm_frames = pagemap.count_frames(m, np.zeros(len(m.frame), np.uint8))
    return int(frames), int(ksm_frames)


def _metric(unit: str, what: str) -> Any:
    return field(metadata={"unit": unit, "what": what})


@dataclass(frozen=True)
class Metrics:
    """What a run comes to. `Metrics.describe()` gives each one's unit and definition."""

    merge_rate: float | None = _metric(
        "MB/s", "growth of pages_sharing + ksm_zero_pages, from the end of full scan 1 until settled (or the end)"
    )
    freed_rate: float | None = _metric("MB/s", "frames freed, from the end of full scan 1 until settled (or the end)")
    freed_mib: float = _metric("MiB", "memory freed from the start to the end, in frames")
    freed_unseen_pages: int = _metric("pages", "frames freed that pages_sharing and ksm_zero_pages do not show")
    most_freed_by_batch: int = _metric("pages", "most frames that one batch freed")
    most_freed_per_budget: float = _metric("", "… over the largest pages_to_scan: above 1, the rate limit was bypassed")
    wasted_visits_share: float = _metric("%", "visits whose search of the unstable tree ended on a dead node")
    ksmd_cpu_ms: float = _metric("ms", "CPU time of ksmd")
    ksmd_cpu_percent: float = _metric("%", "CPU time of ksmd over simulated time")
    thps_left: int = _metric("THPs", "huge pages mapped by a huge PMD at the end")
    thps_split: int = _metric("THPs", "thp_split_page")
    failed_splits: int = _metric("", "thp_split_page_failed")
    zero_pages_left: int = _metric("pages", "zero-filled pages that still have frames at the end")
    full_scans: int = _metric("full scans", "completed until the end")
    settled_s: float | None = _metric(
        "s",
        "end of the first full scan in which smart scan skipped nothing, nothing was merged, split or freed and no "
        "checksum changed, with no later change; none: not settled",
    )
    settled_full_scans: int | None = _metric("full scans", "… and its number")
    thps_split_per_hour: float = _metric("THPs/h", "thp_split_page over simulated time")
    collapses_per_hour: float = _metric("THPs/h", "pages_collapsed over simulated time")
    pages_collapsed: int = _metric("THPs", "ranges that khugepaged collapsed")
    memory_swing_mib: float | None = _metric(
        "MiB", "most frames less fewest frames, from the end of full scan 1 to the end; none: no full scan"
    )
    khugepaged_cpu_ms: float = _metric("ms", "CPU time of khugepaged, by estimated costs")
    thps_lost_per_mib: float | None = _metric(
        "THPs/MiB", "thp_split_page over the MiB that pages_sharing and ksm_zero_pages show at the end; none: nothing"
    )
    zeropages_by_ksm: int = _metric("pages", "entries remapped to the zeropage by splits that ksmd asked for")
    zeropages_by_shrinker: int = _metric("pages", "… by splits of the deferred split queue's shrinker")
    zeropages_by_other: int = _metric("pages", "… by all other splits")
    swapped_out_mib: float = _metric("MiB", "pswpout: memory written to the swap area")

    @classmethod
    def describe(cls) -> dict[str, tuple[str, str]]:
        """{name: (unit, definition)}"""
        return {f.name: (f.metadata["unit"], f.metadata["what"]) for f in fields(cls)}


@dataclass(frozen=True)
class Run:
    """One simulated run.

    Attributes
    ----------
    scenario, variant
        What was run.
    machine
        The machine as it was at the end.
    rows
        Structured array, a row a sample: before the start, after each batch and each event (thinned evenly beyond
        `scenario.sample_limit`).
    mthp
        mthp_t[sample, order], the statistics of folio sizes, where there are `orders` or a `folio_order` of 2 … 8.
    maps, frames
        {(batch, rank): letters of each process}, {(batch, rank): (mapped frames, KSM pages among them)}
    results, event_rows
        errno of each event, and the row after it; None where it never happened. Of an event with `every` the last time.
    most_freed_by_batch, frames_range
        Most frames that one batch freed; fewest and most frames in use from the end of full scan 1 on.
    """

    scenario: Scenario
    variant: str
    machine: Machine
    rows: np.ndarray
    mthp: np.ndarray | None
    maps: dict[tuple[int, int], list[np.ndarray]]
    frames: dict[tuple[int, int], tuple[int, int]]
    results: list[int | None]
    event_rows: list[int | None]
    most_freed_by_batch: int
    processes: int
    frames_range: tuple[int, int] | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """Every counter of every sample, int64, with the kernel's names (trace-format.md; ksm-merge C1, C2, C3, C5)."""
        r, c = self.rows, {name: self.rows[name] for name in self.rows.dtype.names or ()}
        merged = r["pages_sharing"] + r["ksm_zero_pages"]
        c["pages_volatile"] = np.maximum(
            0, r["rmap_items"] - r["pages_shared"] - r["pages_sharing"] - r["pages_unshared"]
        )
        c["general_profit"] = merged * 4096 - r["rmap_items"] * 64
        c["rss_kb"] = c["anonymous_kb"] = r["anon_pages"] * PAGE_KB
        c["anonhugepages_kb"] = r["huge_pmds"] * self.scenario.pages_per_thp * PAGE_KB
        c["ksm_kb"] = r["ksm_entries"] * PAGE_KB
        c["swap_kb"] = r["swap_entries"] * PAGE_KB
        c["proc_ksm_zero_pages"] = r["ksm_zero_pages"]
        c["proc_ksm_process_profit"] = (r["proc_ksm_merging_pages"] + r["ksm_zero_pages"]) * 4096 - r[
            "proc_ksm_rmap_items"
        ] * 64
        if self.mthp is not None:
            for order, size in MTHP_SIZES.items():
                for name in mthp_t.names or ():
                    c[f"{size}_{name}"] = self.mthp[name][:, order]
        return c

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples as a table; `time_s` is simulated time in seconds."""
        import pandas as pd

        table = pd.DataFrame(self.columns())
        table.insert(0, "time_s", table["time_ns"] / 1e9)
        return table

    def page_map(self, process: int = 0) -> np.ndarray:
        """uint8[pages]: the letters of trace-format.md at the end of the run."""
        return page_letters(self.machine, process)

    @cached_property
    def metrics(self) -> Metrics:
        """What the run comes to; see `Metrics.describe`."""
        first, last = self.rows[0], self.rows[-1]
        start, end, settled = (self.machine.passes[i] for i in (FIRST, LAST, SETTLED))
        ksm_pages = int(last["pages_sharing"] + last["ksm_zero_pages"])
        steps = self.machine.steps
        if (end["frames"], end["ksm_pages"], end["merges"], end["splits"], end["checksums"]) != (
            last["frames"],
            ksm_pages,
            steps[MERGE] + steps[MERGE_ZERO],
            steps[SPLIT_PAGE],
            last["changed_checksums"],
        ):
            settled = np.zeros_like(settled)  # something has changed since the last full scan
        until = (
            (settled["time_ns"], settled["ksm_pages"], settled["frames"])
            if settled["full_scan"]
            else (last["time_ns"], ksm_pages, last["frames"])
        )
        seconds = float(until[0] - start["time_ns"]) / 1e9
        rates = seconds > 0 and start["full_scan"] > 0
        merged, freed = int(until[1] - start["ksm_pages"]), int(start["frames"] - until[2])
        merge_rate, freed_rate = (n / PAGES_PER_MIB / seconds if rates else None for n in (merged, freed))
        freed = int(first["frames"] - last["frames"])
        seen = ksm_pages - int(first["pages_sharing"] + first["ksm_zero_pages"])
        budget = int(self.rows["pages_to_scan"].max())
        hours = max(1, int(last["time_ns"])) / 3.6e12
        low, high = self.frames_range or (0, 0)
        return Metrics(
            merge_rate=merge_rate,
            freed_rate=freed_rate,
            freed_mib=freed / PAGES_PER_MIB,
            freed_unseen_pages=max(0, freed - seen),
            most_freed_by_batch=self.most_freed_by_batch,
            most_freed_per_budget=self.most_freed_by_batch / budget if budget else 0.0,
            wasted_visits_share=100 * float(last["wasted_visits"]) / max(1, int(last["pages_scanned"])),
            ksmd_cpu_ms=float(last["ksmd_cpu_ns"]) / 1e6,
            ksmd_cpu_percent=100 * float(last["ksmd_cpu_ns"]) / max(1, int(last["time_ns"])),
            thps_left=int(last["huge_pmds"]),
            thps_split=int(last["thp_split_page"]),
            failed_splits=int(last["thp_split_page_failed"]),
            zero_pages_left=self.zero_pages_left,
            full_scans=int(end["full_scan"]),
            settled_s=float(settled["time_ns"]) / 1e9 if settled["full_scan"] else None,
            settled_full_scans=int(settled["full_scan"]) or None,
            thps_split_per_hour=int(last["thp_split_page"]) / hours,
            collapses_per_hour=int(last["pages_collapsed"]) / hours,
            pages_collapsed=int(last["pages_collapsed"]),
            memory_swing_mib=(high - low) / PAGES_PER_MIB if self.frames_range else None,
            khugepaged_cpu_ms=float(last["khugepaged_cpu_ns"]) / 1e6,
            thps_lost_per_mib=int(last["thp_split_page"]) * PAGES_PER_MIB / ksm_pages if ksm_pages else None,
            zeropages_by_ksm=int(last["zeropages_by_ksm"]),
            zeropages_by_shrinker=int(last["zeropages_by_shrinker"]),
            zeropages_by_other=int(last["zeropages_by_other"]),
            swapped_out_mib=int(last["pswpout"]) / PAGES_PER_MIB,
        )

    @cached_property
    def zero_pages_left(self) -> int:
        """See `Metrics`."""
        m = self.machine
        zero = np.zeros(len(m.frame), bool)
        zero[m.page["frame"][(m.pte["kind"] == ANON) & (m.page["key"] == 0)]] = True
        return int(zero.sum())

    @cached_property
    def uncertainty(self) -> dict[str, float]:
        """Standard errors of the metrics that come from the costs of steps."""
        from mmlab.results.uncertainty import standard_errors

        return standard_errors(self)

    def summary(self) -> str:
        """The metrics as a text table, a line each, with their standard errors."""
        lines = []
        for name, (unit, _) in Metrics.describe().items():
            value = getattr(self.metrics, name)
            text = "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
            sure = f" ± {self.uncertainty[name]:,.2f}" if name in self.uncertainty else ""
            lines.append(f"{name:24}{text:>16}{sure} {unit}".rstrip())
        return "\n".join(lines)
