"""How uncertain a run's times, rates and CPU figures are, because the costs of steps are only known with an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmlab.engine.costs import STEPS, cost_set

if TYPE_CHECKING:
    from mmlab.results.run import Run

__all__ = ["UNSURE", "cpu_errors", "delay", "error_at", "error_of", "one_digit", "scale_costs", "standard_errors"]

UNSURE = (
    "merge_rate",
    "freed_rate",
    "ksmd_cpu_ms",
    "ksmd_cpu_percent",
    "settled_s",
    "thps_split_per_hour",
    "collapses_per_hour",
    "khugepaged_cpu_ms",
)
"""Metrics that depend on what steps cost, in the order of `mmlab.results.run.Metrics`: those of `standard_errors`."""


def cpu_errors(run: Run) -> tuple[float, float]:
    """Relative standard errors of ksmd's and of khugepaged's CPU time in a run that come from the costs of its steps.

    Of measured steps it is at least the error with which the cost set predicts scenarios that were not measured.

    >>> from mmlab import Scenario, simulate
    >>> cpu_errors(simulate(Scenario(memory_mib=2, costs="free")))
    (0.0, 0.0)
    """
    costs, steps = cost_set(run.scenario.costs), run.machine.steps.astype(np.float64)
    out = []
    by_khugepaged = np.array([step.startswith("khugepaged") for step in STEPS])
    for counts in (steps * ~by_khugepaged, steps * by_khugepaged):
        total = float(counts @ costs.ns)
        own = math.sqrt(max(0.0, float(counts @ costs.covariance @ counts))) / total if total else 0.0
        out.append(max(own, costs.error) if total else 0.0)
    return out[0], out[1]


def delay(run: Run, errors: float = 1.0) -> np.ndarray:
    """float64[samples]: how much later, in ns, each sample would be if every step cost so many relative standard errors
    more.

    ksmd sleeps until a tick (ksm-scan S3): a batch that takes longer delays the next one by whole ticks, mostly none.
    Exact for the batches of a run that nothing else disturbs; where samples were thinned, for batches of their mean.
    """
    rows, more = run.rows, errors * cpu_errors(run)[0]
    count = np.maximum(1, np.diff(rows["batch"], prepend=0))
    each = np.diff(rows["ksmd_cpu_ns"], prepend=0) / count
    delay = own = more * each
    if run.scenario.sleep_millisecs:
        tick = 1e9 / run.scenario.hz
        phase = np.where(count == 1, _begun(rows) % tick, 0.0)
        delay = tick * (np.floor((phase + each + own) / tick) - np.floor((phase + each) / tick))
    late = np.cumsum(count * delay) - count * delay + own
    in_order: np.ndarray = np.maximum.accumulate(rows["time_ns"] + late) - rows["time_ns"]
    return in_order


def scale_costs(run: Run, errors: float = 1.0) -> Run:
    """The run as it would be if every step cost so many relative standard errors more; see `delay`.

    All happens in the same order. What is tied to the clock (events, pressure) goes along, so where that sets the pace
    the difference overstates the error.
    """
    rows, passes, machine = run.rows.copy(), run.machine.passes.copy(), copy(run.machine)
    by_ksmd, by_khugepaged = cpu_errors(run)
    late = delay(run, errors)
    passes["time_ns"] += np.rint(np.interp(passes["time_ns"], rows["time_ns"], late)).astype(np.int64)
    for name, more in (
        ("time_ns", late),
        ("ksmd_cpu_ns", errors * by_ksmd * rows["ksmd_cpu_ns"]),
        ("khugepaged_cpu_ns", errors * by_khugepaged * rows["khugepaged_cpu_ns"]),
    ):
        rows[name] += np.rint(more).astype(np.int64)
    machine.__dict__["passes"] = passes  # not machine.passes = …, which both have in common
    return replace(run, rows=rows, machine=machine)


def error_of(run: Run, measure: Callable[[Run], float | None]) -> float:
    """Standard error that comes from what steps cost, of anything that is measured in a run; 0 where there is nothing.

    How much it changes if all steps cost one relative standard error more, or less, whichever changes it more.

    >>> from mmlab import Scenario, simulate
    >>> run = simulate(Scenario(memory_mib=2, horizon_full_scans=2))
    >>> error_of(run, lambda run: run.metrics.ksmd_cpu_ms) > 0
    True
    >>> error_of(run, lambda run: run.metrics.freed_mib)
    0.0
    """
    value, others = measure(run), (measure(scale_costs(run)), measure(scale_costs(run, -1)))
    return max((abs(other - value) for other in others if value is not None and other is not None), default=0.0)


def error_at(run: Run, row: int) -> float:
    """Standard error of the time of a sample, s."""
    return max(abs(float(delay(run, errors)[row])) for errors in (1, -1)) / 1e9


def one_digit(error: float) -> str:
    """An error in words: no more of it is known.

    >>> one_digit(0.0234), one_digit(67.0), one_digit(1234.5)
    ('0.02', '70', '1,000')
    """
    return f"{float(f'{error:.1g}'):,.9f}".rstrip("0").rstrip(".")


def standard_errors(run: Run) -> dict[str, float]:
    """Standard errors, in their own units, of the metrics in seconds, per second or hour, and of CPU time in a run.

    As `error_of`; but of runs that end by the clock, those are compared that begin their last batch before the same
    time. None for metrics that do not depend on what steps cost.
    """
    dear, cheap = scale_costs(run), scale_costs(run, -1)
    pairs = [(run, dear), (run, cheap)]
    horizon = 1e9 * run.scenario.horizon_seconds
    if 0 < horizon <= run.rows["time_ns"][-1]:
        sooner = float(_begun(cheap.rows)[-1] - _begun(run.rows)[-1])
        pairs = [(run, _until(dear, horizon)), (_until(run, horizon + sooner), cheap)]
    for other in (other for pair in pairs for other in pair if other is not run):
        other.__dict__["zero_pages_left"] = run.zero_pages_left  # not asked for, and dear
    errors = {}
    for name in UNSURE:
        values = [(getattr(one.metrics, name), getattr(other.metrics, name)) for one, other in pairs]
        errors[name] = max((abs(other - one) for one, other in values if None not in (one, other)), default=0.0)
    return {name: error for name, error in errors.items() if error > 0}


def _begun(rows: np.ndarray) -> np.ndarray:
    """float64[samples]: when the batch of each sample began, ns."""
    each = np.diff(rows["ksmd_cpu_ns"], prepend=0) / np.maximum(1, np.diff(rows["batch"], prepend=0))
    begun: np.ndarray = rows["time_ns"] - each
    return begun


def _until(run: Run, end_ns: float) -> Run:
    """What there is of a run if no batch begins at that time or later."""
    rows = run.rows[: max(1, int(np.searchsorted(_begun(run.rows), end_ns)))]
    machine, passes = copy(run.machine), run.machine.passes.copy()
    passes["full_scan"][passes["time_ns"] > rows["time_ns"][-1]] = 0
    machine.__dict__["passes"] = passes
    return replace(run, rows=rows, machine=machine)
