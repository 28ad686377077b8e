"""Runs: `simulate` turns a scenario into a `Run`, the outcome of a simulation with its samples, maps and metrics."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmlab.engine.clock import Clock, Observer
from mmlab.engine.costs import CostSet
from mmlab.engine.outcome import Outcome, Places, page_letters
from mmlab.engine.system import SECOND
from mmlab.kernel.state import mthp_t
from mmlab.policies import PolicyLike
from mmlab.policies import resolve as resolve_policy
from mmlab.results.metrics import METRICS, Metrics, Value
from mmlab.results.table import number, text_table
from mmlab.results.uncertainty import standard_errors
from mmlab.scenario import Scenario
from mmlab.variants import AnyVariant, resolve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Interrupted", "Run", "defer_ctrl_c", "simulate"]

PAGE_KB = 4
MTHP_SIZES = {order: f"mthp_{4 << order}kB" for order in range(2, 10)}


class Run(Outcome):
    """One simulated run: an `Outcome` with its samples as a table, its page maps and its metrics."""

    def columns(self) -> dict[str, np.ndarray]:
        """Return every counter of every sample, int64, under the kernel's names (trace-format.md; ksm-merge C1, C2, C3,
        C5)."""
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
        """Return uint8[pages]: the letters of trace-format.md at the end of the run."""
        return page_letters(self.machine, process)

    @cached_property
    def _measured(self) -> dict[str, Value]:
        return {}

    @property
    def metrics(self) -> Metrics:
        """The metrics, each measured when it is first asked for; see `Metrics.describe`."""
        return Metrics(self, self._measured)  # made anew: a run that holds one would be a cycle and keep its memory

    @cached_property
    def uncertainty(self) -> dict[str, float]:
        """Standard errors of those metrics that depend on what steps cost."""
        return standard_errors(self)

    @property
    def kernel_bug(self) -> str:
        """A line on the bug that this kernel would report, and in which visit of ksmd; "" if none (kernel-7 7.10)."""
        state = self.machine.state[0]
        if not self.machine.stat[0]["kernel_bugs"]:
            return ""
        v, visit = int(state["bug_page"]), int(state["bug_visit"])
        mm = int(self.machine.block["mm"][v >> int(state["hpage_order"])])
        page = f"page {v - int(self.machine.mm[mm]['base'])} of process {mm - 1}"
        batch = self.rows["batch"][np.flatnonzero(self.rows["kernel_bugs"])[0]]
        return (
            f"Kernel {self.scenario.kernel} would report a bug here, 'Bad page state in process ksmd', in visit "
            f"{visit:,} of ksmd (batch {batch:,}, {page}); the first page of its former huge page stays locked."
        )

    def summary(self) -> str:
        """Return the metrics as a text table, a line for each, with their standard errors."""
        errors = self.uncertainty
        table = {
            "metric": METRICS,
            "value": [getattr(self.metrics, name) for name in METRICS],
            "error": [f"± {number(errors[name])}" if name in errors else "" for name in METRICS],
            "unit": [metric.unit for metric in METRICS.values()],
        }
        return text_table(table, header=False)


def simulate(
    scenario: Scenario,
    *,
    variant: AnyVariant | None = None,
    policy: PolicyLike | None = None,
    costs: CostSet | None = None,
    observe: Observer | None = None,
    maps_at: Places = None,
    progress: Callable[[float], None] | None = None,
    interrupted: Callable[[], bool] | None = None,
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
    progress
        Called now and then with the share of the run that is done, 0 to 1.
    interrupted
        Asked now and then whether to stop; see `defer_ctrl_c`.

    Raises
    ------
    UserError
        The variant, the policy or the cost set is not known, an event names a process that was not born yet, or the
        run would never end.
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
    clock = Clock(scenario, chosen, tuner, costs, maps_at, observe)
    outcome, stopped = clock.run(progress, interrupted)
    run = Run(**vars(outcome))
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

    A second Ctrl-C raises KeyboardInterrupt at once. Outside of the main thread, or where the program has a handler of
    its own, nothing is changed.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    pressed = False

    def handler(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
