"""What ksmd's and khugepaged's steps cost, in ns of their CPU time, and how far figures in seconds can be trusted.

The model counts steps (`mmlab.kernel.state`); a cost set turns them into simulated time. Costs never change what
happens, only when: the order of batches and events stays the same unless an event is tied to seconds.

A cost set is a YAML file: those of `mmlab/cost_sets/` are known by their names, any other by its path. `mmlab
calibrate` writes them; what a file says beside `ns` is what `CostSet` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.errors import UserError, unknown
from mmlab.scenario import read_yaml

if TYPE_CHECKING:
    from mmlab.results.run import Run

__all__ = [
    "STEPS",
    "UNSURE",
    "CostSet",
    "cost_set",
    "cost_sets",
    "cost_table",
    "dearer",
    "error_at",
    "error_of",
    "lateness",
    "one_digit",
    "standard_errors",
    "trust",
    "uncertainty",
]

STEPS: dict[str, str] = {
    "visit": "visit and checksum of a small page",
    "visit_thp": "visit and checksum of a page of a large folio",
    "visit_ksm": "visit of a KSM page",
    "skip": "page skipped by smart scan",
    "pass_over": "entry passed over (zeropage, hole)",
    "tree_level": "one level of a search in either tree",
    "tree_cold": "… more for a level below the first 2^10 nodes",
    "merge": "item attached to a KSM page",
    "merge_zero": "page replaced by the shared zeropage",
    "split": "folio that is split",
    "split_page": "… and each of its pages",
    "remap": "… more for a page remapped to the shared zeropage",
    "end_of_pass": "end of a full scan, LRU drain of the next",
    "wake_up": "begin of a batch",
    "khugepaged_pte": "khugepaged looks at an entry",
    "khugepaged_copy": "… and copies or clears a page of a collapse",
}
"""Step names in the order of the model's counters, and what each is."""

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
FREE = "free"
"""The cost set that lets time pass in ksmd's sleeps only."""

_SETS = Path(__file__).parents[1] / "cost_sets"
_TEXTS = ("machine", "kernel", "date", "recording")


@dataclass(frozen=True)
class CostSet:
    """What steps cost on one machine.

    Attributes
    ----------
    ns
        float64[len(STEPS)]: ns a step.
    estimated
        Steps that were not measured; each is as uncertain as it is large.
    covariance
        float64[len(STEPS), len(STEPS)]: of the costs, ns².
    error
        Relative standard error of the CPU time of a scenario that was not measured; 0: not known.
    about
        Where it comes from: machine, kernel, date, recording, and how well it predicts (`leave_one_out`).
    """

    ns: np.ndarray
    estimated: tuple[str, ...]
    covariance: np.ndarray
    error: float
    about: dict[str, Any]


def cost_sets() -> list[str]:
    """The names of the cost sets that ship with mmlab.

    >>> cost_sets()
    ['epyc-6.18', 'free']
    """
    return [*sorted(path.name.removesuffix(".yaml") for path in _SETS.glob("*.yaml")), FREE]


def cost_set(name: str) -> CostSet:
    """A cost set by its name, or by the path of its file, which ends in .yaml.

    Raises
    ------
    UserError
        There is no such cost set, or its file says something that is not allowed.
    """
    if name == FREE:
        return CostSet(np.zeros(len(STEPS)), (), np.zeros((len(STEPS), len(STEPS))), 0.0, {})
    own = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else _SETS / f"{name}.yaml"
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        if own:
            raise UserError(
                f"costs: {name}: {error.strerror}, seen from {Path.cwd()}: name one of "
                f"{', '.join(cost_sets())}, or a file that `mmlab calibrate` wrote"
            ) from None
    near = get_close_matches(name, cost_sets(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(
        f"costs: {name!r} is not known{hint} Choose one of {', '.join(cost_sets())}, or name a file of "
        "`mmlab calibrate`, *.yaml."
    )


@lru_cache(maxsize=16)
def _read(path: Path, mtime_ns: int) -> CostSet:  # noqa: ARG001  a file that has changed is read again
    try:
        return _checked(read_yaml(path))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _checked(values: dict[str, Any]) -> CostSet:
    """A cost set from the values of its file."""
    known = ("ns", "estimated", "covariance", "error", "leave_one_out", *_TEXTS)
    for key in values:
        if key not in known:
            raise UserError(unknown("key", key, known))
    ns, estimated, error = values.get("ns"), values.get("estimated", []), values.get("error", 0)
    if not isinstance(ns, dict):
        raise UserError(f"ns = {ns!r}: it must give the cost of every step: {', '.join(STEPS)}")
    for step in ns:
        if step not in STEPS:
            raise UserError(unknown("step", step, STEPS))
    for step in STEPS:
        if not _is_number(ns.get(step), 1e12):
            raise UserError(f"ns: {step} = {ns.get(step)!r}: it must be 0 … 1e12 (ns)")
    if not _is_number(error, 1):
        raise UserError(f"error = {error!r}: the relative standard error must be 0 … 1")
    if not isinstance(estimated, list) or not set(estimated) <= set(STEPS):
        raise UserError(f"estimated = {estimated!r}: it must list steps: {', '.join(STEPS)}")
    measured = [i for i, step in enumerate(STEPS) if step not in estimated]
    costs = np.array([float(ns[step]) for step in STEPS])
    covariance = np.diag(costs**2 * [step in estimated for step in STEPS])
    if "covariance" in values:
        size = len(measured)
        try:
            covariance[np.ix_(measured, measured)] = given = np.array(values["covariance"], np.float64)
        except (ValueError, TypeError):
            given = np.zeros(0)
        if given.shape != (size, size) or not np.isfinite(given).all():
            raise UserError(
                f"covariance: it must have {size} rows of {size} numbers, one for each step that is not in estimated"
            )
    about = {key: values[key] for key in (*_TEXTS, "leave_one_out") if key in values}
    return CostSet(costs, tuple(estimated), covariance, float(error), about)


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def cost_table(name: str) -> np.ndarray:
    """int64[len(STEPS)], ns a step.

    Raises
    ------
    UserError
        There is no such cost set; see `cost_set`.
    """
    table: np.ndarray = np.rint(cost_set(name).ns).astype(np.int64)
    return table


def trust(name: str) -> str:
    """How far figures in seconds and MB/s can be trusted, in a sentence.

    >>> trust("free")
    "ksmd's steps cost nothing: time passes in its sleeps only."
    """
    found = cost_set(name)
    if not found.ns.any():
        return "ksmd's steps cost nothing: time passes in its sleeps only."
    tried = found.about.get("leave_one_out", {})
    known = (
        f"predicts the CPU time of {tried['scenarios']} recorded scenarios within {tried['median_error']:.0%} (median),"
        f" each time fitted to the others alone; its standard error is {found.error:.1%}"
        if tried
        else "does not say how well it predicts"
    )
    rest = "ksmd sleeps until a timer tick, so most times and rates err far less."
    return f"What ksmd's steps cost is the cost set {name}, which {known}. {rest}"


def uncertainty(run: Run) -> tuple[float, float]:
    """Relative standard errors of ksmd's and of khugepaged's CPU time in a run that come from the costs of its steps.

    Of measured steps it is at least the error with which the cost set predicts scenarios that were not measured.

    >>> from mmlab import Scenario, simulate
    >>> uncertainty(simulate(Scenario(memory_mib=2, costs="free")))
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


def lateness(run: Run, errors: float = 1.0) -> np.ndarray:
    """float64[samples]: how much later, in ns, each sample would be if every step cost so many relative standard errors
    more.

    ksmd sleeps until a tick (ksm-scan S3): a batch that takes longer delays the next one by whole ticks, mostly none.
    Exact for the batches of a run that nothing else disturbs; where samples were thinned, for batches of their mean.
    """
    rows, more = run.rows, errors * uncertainty(run)[0]
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


def dearer(run: Run, errors: float = 1.0) -> Run:
    """The run as it would be if every step cost so many relative standard errors more; see `lateness`.

    All happens in the same order. What is tied to the clock (events, pressure) goes along, so where that sets the pace
    the difference overstates the error.
    """
    rows, passes, machine = run.rows.copy(), run.machine.passes.copy(), copy(run.machine)
    by_ksmd, by_khugepaged = uncertainty(run)
    late = lateness(run, errors)
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
    value, others = measure(run), (measure(dearer(run)), measure(dearer(run, -1)))
    return max((abs(other - value) for other in others if value is not None and other is not None), default=0.0)


def error_at(run: Run, row: int) -> float:
    """Standard error of the time of a sample, s."""
    return max(abs(float(lateness(run, errors)[row])) for errors in (1, -1)) / 1e9


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
    dear, cheap = dearer(run), dearer(run, -1)
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
