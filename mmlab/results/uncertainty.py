"""The uncertainty of a run's times, rates and CPU figures: what steps cost is only known with an error.

Every function reads an outcome, or a run, and returns its kind.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TypeVar

import numpy as np

from mmlab.engine.costs import STEPS
from mmlab.engine.outcome import Outcome
from mmlab.results.metrics import METRICS, UNSURE

AnyRun = TypeVar("AnyRun", bound=Outcome)


def cpu_errors(run: Outcome) -> tuple[float, float]:
    """Return the relative standard errors of ksmd's and of khugepaged's CPU time that come from the costs of steps.

    For measured steps an error is at least the one with which the cost set predicts scenarios that were not measured.

    >>> from mmlab.results.run import simulate
    >>> from mmlab.scenario import Scenario
    >>> cpu_errors(simulate(Scenario(memory_mib=2, costs="free")))
    (0.0, 0.0)
    """
    costs, steps = run.costs, run.machine.steps.astype(np.float64)
    by_khugepaged = np.array([step.startswith("khugepaged") for step in STEPS])

    def error(counts: np.ndarray) -> float:
        total = float(counts @ costs.ns)
        variance = max(0.0, float(counts @ costs.covariance @ counts))
        return max(math.sqrt(variance) / total, costs.error) if total else 0.0

    return error(steps * ~by_khugepaged), error(steps * by_khugepaged)


def delay(run: Outcome, errors: float = 1.0) -> np.ndarray:
    """Return float64[samples]: the delay of each sample, ns, with every step cost shifted by `errors` standard errors.

    ksmd sleeps until a tick (ksm-scan S3): a batch that takes longer delays the next one by whole ticks, mostly none.
    Exact for the batches of a run that nothing else disturbs; where samples were thinned, for batches of their mean.
    """
    rows, more = run.rows, errors * cpu_errors(run)[0]
    count = np.maximum(1, np.diff(rows["batch"], prepend=0))
    each = np.diff(rows["ksmd_cpu_ns"], prepend=0) / count
    delay = own = more * each
    if run.scenario.sleep_millisecs:
        tick = 1e9 / run.scenario.hz
        phase = np.where(count == 1, _starts(rows) % tick, 0.0)
        delay = tick * (np.floor((phase + each + own) / tick) - np.floor((phase + each) / tick))
    late = np.cumsum(count * delay) - count * delay + own
    return np.asarray(np.maximum.accumulate(rows["time_ns"] + late) - rows["time_ns"])


def scale_costs(run: AnyRun, errors: float = 1.0) -> AnyRun:
    """Return the run with every step cost shifted by `errors` standard errors.

    Everything happens in the same order; see `delay`. What is tied to the clock (events, pressure) moves along, so
    where that sets the pace the difference overstates the error.
    """
    rows, passes = run.rows.copy(), run.machine.passes.copy()
    by_ksmd, by_khugepaged = cpu_errors(run)
    late = delay(run, errors)
    passes["time_ns"] += np.rint(np.interp(passes["time_ns"], rows["time_ns"], late)).astype(np.int64)
    rows["time_ns"] += np.rint(late).astype(np.int64)
    for name, error in (("ksmd_cpu_ns", by_ksmd), ("khugepaged_cpu_ns", by_khugepaged)):
        rows[name] += np.rint(errors * error * rows[name]).astype(np.int64)
    return _with(run, rows, passes)


def error_of(run: AnyRun, measure: Callable[[AnyRun], float | None]) -> float:
    """Return the standard error, from the costs of steps, of anything measured in a run; 0 where there is no value.

    It is the larger of the changes when all steps cost one relative standard error more, or less.

    >>> from mmlab.results.run import simulate
    >>> from mmlab.scenario import Scenario
    >>> run = simulate(Scenario(memory_mib=2, horizon_full_scans=2))
    >>> error_of(run, lambda run: run.metrics.ksmd_cpu_ms) > 0
    True
    >>> error_of(run, lambda run: run.metrics.freed_mib)
    0.0
    """
    value, others = measure(run), (measure(scale_costs(run)), measure(scale_costs(run, -1)))
    return max((abs(other - value) for other in others if value is not None and other is not None), default=0.0)


def error_at(run: Outcome, row: int) -> float:
    """Return the standard error of the time of a sample, s."""
    return max(abs(float(delay(run, errors)[row])) for errors in (1, -1)) / 1e9


def one_digit(error: float) -> str:
    """Return an error as text with one significant digit: no more of it is known.

    >>> one_digit(0.0234), one_digit(67.0), one_digit(1234.5)
    ('0.02', '70', '1,000')
    """
    return f"{float(f'{error:.1g}'):,.9f}".rstrip("0").rstrip(".")


def standard_errors(run: Outcome) -> dict[str, float]:
    """Return the standard errors, in their own units, of those metrics of a run that costs move (`UNSURE`).

    As `error_of`; but a run that ends by the clock is compared up to the last batch that starts before the same time.
    Metrics whose error is 0 are left out.
    """
    dear, cheap = scale_costs(run), scale_costs(run, -1)
    pairs = [(run, dear), (run, cheap)]
    horizon = 1e9 * run.scenario.horizon_seconds
    if 0 < horizon <= run.rows["time_ns"][-1]:
        sooner = float(_starts(cheap.rows)[-1] - _starts(run.rows)[-1])
        pairs = [(run, _until(dear, horizon)), (_until(run, horizon + sooner), cheap)]
    errors = {}
    for name in UNSURE:
        measure = METRICS[name].measure
        values = [(measure(one), measure(other)) for one, other in pairs]
        errors[name] = max((abs(b - a) for a, b in values if a is not None and b is not None), default=0.0)
    return {name: error for name, error in errors.items() if error > 0}


def _starts(rows: np.ndarray) -> np.ndarray:
    """Return float64[samples]: the time at which the batch of each sample started, ns."""
    each = np.diff(rows["ksmd_cpu_ns"], prepend=0) / np.maximum(1, np.diff(rows["batch"], prepend=0))
    return np.asarray(rows["time_ns"] - each)


def _until(run: Outcome, end_ns: float) -> Outcome:
    """Return the part of a run in which no batch starts at that time or later."""
    rows, passes = run.rows[: max(1, int(np.searchsorted(_starts(run.rows), end_ns)))], run.machine.passes.copy()
    passes["full_scan"][passes["time_ns"] > rows["time_ns"][-1]] = 0
    return _with(run, rows, passes)


def _with(run: AnyRun, rows: np.ndarray, passes: np.ndarray) -> AnyRun:
    machine = copy(run.machine)
    machine.__dict__["passes"] = passes  # not machine.passes = …, which both have in common
    return replace(run, rows=rows, machine=machine)
