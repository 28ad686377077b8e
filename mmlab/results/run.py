"""Runs: `simulate` turns a scenario into a `Run`, the outcome of a simulation with its samples, maps and metrics."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmlab.engine.clock import Clock, Observer
from mmlab.engine.costs import CostSet
from mmlab.engine.outcome import Outcome, Places, page_letters
from mmlab.engine.system import SECOND
from mmlab.errors import KSM_COUNTERS, UserError
from mmlab.kernel.state import ADVISOR_MODES, KNOBS, mthp_t
from mmlab.kernel.versions import release
from mmlab.policies import PolicyLike
from mmlab.policies import resolve as resolve_policy
from mmlab.results.decisions import Events
from mmlab.results.metrics import METRICS, PAGES_PER_MIB, Metrics
from mmlab.results.table import number, text_table
from mmlab.results.uncertainty import standard_errors
from mmlab.results.why import History, history, not_merged
from mmlab.scenario import KSM_KNOBS, Scenario
from mmlab.variants import AnyVariant, resolve

if TYPE_CHECKING:
    import pandas as pd


PAGE_KB = 4
MTHP_SIZES = {order: f"mthp_{4 << order}kB" for order in range(2, 10)}
SINCE = {"general_profit": (6, 4), "ksm_zero_pages": (6, 6), "pages_scanned": (6, 6), "pages_skipped": (6, 7)}
SINCE |= {"smart_scan": (6, 7), "advisor": (6, 8)}
"""First release that has a file of /sys/kernel/mm/ksm, by the beginning of its name."""
SHOWN = dict.fromkeys("pages_shared pages_sharing pages_unshared pages_volatile ksm_zero_pages".split(), "pages")
SHOWN |= {"pages_scanned": "visits", "pages_skipped": "visits", "general_profit": "bytes", "stable_node_chains": ""}
SHOWN |= {"stable_node_dups": "", "AnonHugePages": "kB"}
"""Counters that an operator compares with a host, with their units."""
IN_MIB = {"pages": PAGES_PER_MIB, "bytes": 1 << 20, "kB": 1 << 10}
BESIDE = 6
"""Times whose counters stand beside each other."""


class Run(Outcome):
    """One simulated run: an `Outcome` with its samples as a table, its page maps and its metrics."""

    log: Events | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """Return every counter of every sample, under the kernel's names (trace-format.md; ksm-merge C1, C2, C3, C5).

        All are int64. Knobs (`mmlab.kernel.state.KNOBS`) are as they were at that sample, advisor_mode by its number in
        `ADVISOR_MODES`; run_ns is the time until then in which KSM ran (run = 1).
        """
        r, c = self.rows, {name: self.rows[name] for name in self.rows.dtype.names or ()}
        merged = r["pages_sharing"] + r["ksm_zero_pages"]
        volatile = r["rmap_items"] - r["pages_shared"] - r["pages_sharing"] - r["pages_unshared"]
        c["pages_volatile"] = np.maximum(0, volatile)
        c["general_profit"] = merged * 4096 - r["rmap_items"] * 64
        c["rss_kb"] = c["anonymous_kb"] = r["anon_pages"] * PAGE_KB
        c["anonhugepages_kb"] = r["huge_pmds"] * self.scenario.pages_per_thp * PAGE_KB
        c["ksm_kb"] = r["ksm_entries"] * PAGE_KB
        c["swap_kb"] = r["swap_entries"] * PAGE_KB
        c["proc_ksm_zero_pages"] = r["ksm_zero_pages"]
        merging = r["proc_ksm_merging_pages"] + r["ksm_zero_pages"]
        c["proc_ksm_process_profit"] = merging * 4096 - r["proc_ksm_rmap_items"] * 64
        at = np.searchsorted(self.knobs["row"], np.arange(len(r)), "right") - 1
        c |= {name: self.knobs[name][at] for name in KNOBS if name not in c}
        since = np.append(self.knobs["time_ns"], r["time_ns"][-1])
        ran = np.append(0, np.cumsum(np.diff(since) * (self.knobs["run"] == 1)))
        c["run_ns"] = np.interp(r["time_ns"], since, ran).round().astype(np.int64)
        if self.mthp is not None:
            for order, size in MTHP_SIZES.items():
                for name in mthp_t.names or ():
                    c[f"{size}_{name}"] = self.mthp[name][:, order]
        return c

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples as a table, a row for each.

        Columns
        -------
        time_s, time_ns, batch, rank
            Simulated time, number of the last batch, and of the events and daemons' actions since.
        full_scans … use_zero_pages
            Counters and knobs of /sys/kernel/mm/ksm, as they were then; advisor_mode as text.
        thp_…, pswpin, cow_ksm, …
            Counters of /proc/vmstat.
        …_kb, proc_…
            Memory and ksm_stat of all processes together.
        run_ns, ksmd_cpu_ns, khugepaged_cpu_ns
            How long KSM has run (run = 1), and CPU time.
        frames, ksm_frames, freed_by_batch, zeropages_by_…, wasted_visits, …
            What no kernel tells. `mmlab.kernel.state.stat_t` describes every counter; `mmlab.kernel.state.KNOBS` names
            every knob, khugepaged's included.
        """
        import pandas as pd

        table = pd.DataFrame(self.columns())
        table.insert(0, "time_s", table["time_ns"] / 1e9)
        return table.assign(advisor_mode=np.array(ADVISOR_MODES)[table["advisor_mode"]])

    def rows_at(self, times: Iterable[float]) -> np.ndarray:
        """Return int64[times]: the number of the last sample up to each time (s); see `simulate(samples_at=…)`."""
        return np.searchsorted(self.rows["time_ns"], [round(seconds * SECOND) for seconds in times], "right") - 1

    def sysfs(self, time_s: float | None = None) -> str:
        """Return what ``grep . /sys/kernel/mm/ksm/*`` prints at a time, or at the end; `mmlab host` reads it.

        The files are those of the scenario's kernel.
        """
        row, of = -1 if time_s is None else int(self.rows_at([time_s])[0]), release(self.scenario.kernel)
        values: dict[str, object] = {name: values[row] for name, values in self.columns().items()}
        mode = values["advisor_mode"]
        values["advisor_mode"] = " ".join(f"[{n}]" if i == mode else n for i, n in enumerate(ADVISOR_MODES))
        later = tuple(name for name, first in SINCE.items() if of < first)
        files = sorted(name for name in KSM_COUNTERS.union(KSM_KNOBS) if not name.startswith(later))
        return "\n".join(f"/sys/kernel/mm/ksm/{name}:{values[name]}" for name in files)

    def counters(self, times: Iterable[float] | None = None) -> str:
        """Return as text what one compares with a host: KSM's counters, the time of a full scan, and ksmd's CPU time.

        Both times leave out how long KSM was off (run other than 1).

        Parameters
        ----------
        times
            Simulated times (s), which stand beside each other. Default: the end, with memory in MiB, too.
        """
        seconds = [self.rows["time_ns"][-1] / 1e9] if times is None else list(times)
        c, rows = self.columns(), self.rows_at(seconds)
        c["AnonHugePages"] = c["anonhugepages_kb"]
        ended = np.append(0, np.flatnonzero(np.diff(c["full_scans"]) > 0) + 1)
        place = np.searchsorted(ended, rows, "right") - 1
        spent, scans = (np.diff(c[name][ended], prepend=0)[place] for name in ("run_ns", "full_scans"))
        ran = c["run_ns"][rows]
        scan_s = spent / 1e9 / np.where(scans > 0, scans, np.nan)
        cpu = 100 * c["ksmd_cpu_ns"][rows] / np.where(ran > 0, ran, np.nan)
        lines = [("simulated time", seconds, "s"), ("full_scans", c["full_scans"][rows], "")]
        lines += [("last full scan", scan_s, "s"), *((name, c[name][rows], unit) for name, unit in SHOWN.items())]
        lines += [("ksmd's CPU", cpu, "% of a CPU while run=1")]
        names, values, units = zip(*lines, strict=True)
        mib = [f"{value[0] / IN_MIB[unit]:,.2f} MiB" if unit in IN_MIB else "" for _, value, unit in lines]
        tables = []
        for i in range(0, len(seconds), BESIDE):
            beside = zip(*(value[i : i + BESIDE] for value in values), strict=True)
            tables.append(dict(enumerate([names, *beside, units, *[mib] * (times is None)])))
        return "\n\n".join(text_table(table, header=False) for table in tables)

    @cached_property
    def events(self) -> pd.DataFrame:
        """What happened to which page and by which rule; see `mmlab.results.decisions.frame`.

        Raises
        ------
        UserError
            The run did not keep them.
        """
        if self.log is None:
            raise UserError("this run kept no events", hint="simulate(…, events=True) does.")
        return self.log.table()

    def why(self, page: int, process: int = 0, since: float = 0.0) -> History:
        """Return what happened to a page, in sentences, each with its rule; see `mmlab.results.why.history`."""
        return history(self, self.events, page, process, since)

    def not_merged(self) -> pd.DataFrame:
        """Return why pages with duplicates are not merged; see `mmlab.results.why.not_merged`."""
        return not_merged(self, self.events)

    def page_map(self, process: int = 0) -> np.ndarray:
        """Return uint8[pages]: the letters of trace-format.md at the end of the run."""
        return page_letters(self.machine, process)

    @property
    def metrics(self) -> Metrics:
        """The metrics, each measured when it is first asked for; see `Metrics.describe`."""
        known = self.__dict__.setdefault("_measured", {})
        return Metrics(self, known)  # made anew: a run that holds one would be a cycle and keep its memory

    @cached_property
    def uncertainty(self) -> dict[str, float]:
        """Standard errors of those metrics that depend on what steps cost."""
        return standard_errors(self)

    @property
    def kernel_bug(self) -> str:
        """A line on the bug that this kernel would report, and in which visit of ksmd; "" if none (kernel-7 7.10)."""
        m, state = self.machine, self.machine.state[0]
        if not m.stat[0]["kernel_bugs"]:
            return ""
        v, batch = int(state["bug_page"]), self.rows["batch"][np.argmax(self.rows["kernel_bugs"] > 0)]
        mm = int(m.block["mm"][v >> int(state["hpage_order"])])
        place = f"batch {batch:,}, page {v - int(m.mm[mm]['base'])} of process {mm - 1}"
        return (
            f"Kernel {self.scenario.kernel} would report a bug here, 'Bad page state in process ksmd', in visit "
            f"{state['bug_visit']:,} of ksmd ({place}); the first page of its former huge page stays locked."
        )

    def summary(self) -> str:
        """Return `counters`, then the metrics, a line for each, with their standard errors.

        Rates per hour are left out of a run that is shorter than ten minutes.
        """
        errors, short = self.uncertainty, self.rows["time_ns"][-1] < 600e9
        shown = {name: metric for name, metric in METRICS.items() if not (short and metric.unit.endswith("/h"))}
        table = {
            "metric": shown,
            "value": [getattr(self.metrics, name) for name in shown],
            "error": [f"± {number(errors[name])}" if name in errors else "" for name in shown],
            "unit": [metric.unit for metric in shown.values()],
        }
        return f"{self.counters()}\n\n{text_table(table, header=False)}"


def simulate(
    scenario: Scenario,
    *,
    variant: AnyVariant | None = None,
    policy: PolicyLike | None = None,
    costs: CostSet | None = None,
    observe: Observer | None = None,
    maps_at: Places = None,
    samples_at: Iterable[float] = (),
    progress: Callable[[float], None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    events: bool | Events = False,
) -> Run:
    """Run a scenario to its horizon.

    Parameters
    ----------
    scenario
        What happens.
    variant
        A variant instead of the scenario's: a name, a `Variant`, or a function or class of your own; see
        `mmlab.variants`.
    policy
        Who turns knobs meanwhile, instead of the scenario's: a name, or a function; see `mmlab.policies`.
    costs
        What steps cost, instead of what the scenario says of that.
    observe
        Called with the `System` after every sample: at the start, after each batch, each event and each action of a
        daemon. It must not change the system. ksmd then runs batch by batch, which is slower.
    maps_at
        Where to keep page maps and counts of frames: after each of these (batch, rank) samples, after "all", at the
        "end", or nowhere.
    samples_at
        Times (s) at which the state is kept however long the run is; see `Run.rows_at`.
    progress
        Called now and then with the share of the run that is done, 0 to 1.
    interrupted
        Asked now and then whether to stop; see `defer_ctrl_c`.
    events
        Keep every decision for `Run.events`, or those that an `Events` wants, or write them to its file.

    Raises
    ------
    UserError
        The variant, the policy or the cost set is not known, an event names a process that was not born yet, the
        run would never end, or no decision matches `events`.
    Interrupted
        `interrupted` said so; the attribute ``run`` is the run up to then.

    Examples
    --------
    >>> from mmlab.scenario import Scenario
    >>> run = simulate(Scenario(memory_mib=2, zero_fraction=1.0, use_zero_pages=1, until_settled=True))
    >>> int(run.rows["frames"][-1]), int(run.rows["ksm_zero_pages"][-1])
    (0, 0)
    """
    chosen = resolve(scenario.variant if variant is None else variant)
    tuner = resolve_policy(scenario.policy if policy is None else policy)
    log = Events() if events is True else events or None
    clock = Clock(scenario, chosen, tuner, costs, maps_at, observe, samples_at)
    if log:
        clock.recorder.keep_log(log)
    with log or nullcontext():
        outcome, stopped = clock.run(progress, interrupted)
    run = Run(**vars(outcome))
    run.__dict__["log"] = log
    if stopped:
        raise Interrupted(run)
    return run


class Interrupted(KeyboardInterrupt):
    """A run that was stopped early; nothing of it is lost.

    Attributes
    ----------
    run : Run
        Everything up to the batch or event at which it was stopped.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        super().__init__(f"stopped after {run.rows['time_ns'][-1] / SECOND:,.3f} s of simulated time; .run has them")


@contextmanager
def defer_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C: yield a function that tells whether it was pressed, for `simulate(interrupted=…)`.

    A second Ctrl-C raises KeyboardInterrupt at once. Where the program has a handler of its own, or ignores Ctrl-C,
    nothing is changed.
    """
    pressed: list[int] = []
    if (before := signal.getsignal(signal.SIGINT)) is signal.default_int_handler:

        def handler(number: int, _: object) -> None:
            signal.signal(signal.SIGINT, before)
            pressed.append(number)

        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
