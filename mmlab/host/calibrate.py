"""What ksmd's steps cost, from recordings of its CPU time on a real kernel.

The model repeats each recorded scenario and counts ksmd's steps in every batch; the costs are those that explain the
CPU time of the batches best: non-negative least squares of relative errors, in which batches that are far off weigh
less (Huber), because the machines that record are shared. How good they are is judged by scenarios that the fit has not
seen: each scenario is predicted from all the others.

A recording is a file of either kind, gzip-compressed or not:

* a list of scenarios, each with ``scenario`` (``name``, ``blocks`` of 512 pages, ``thp`` 0 or 1 for each, ``contents``,
  knobs, ``batches``), ``kernel``, and ``samples``: before the start and after each batch the counters and
  ``ksmd_cpu_ns``, the first number of ksmd's /proc/PID/schedstat;
* a kernel trace (`mmlab.results.trace`) with ``lab_ksmd_cpu_ns`` among its fields, as ``tests/record.py`` makes them.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.engine.costs import STEPS
from mmlab.engine.system import System
from mmlab.errors import UserError
from mmlab.params import write_atomically
from mmlab.results import trace as traces
from mmlab.results.run import simulate
from mmlab.scenario import Scenario

__all__ = ["Calibration", "Fit", "Observed", "calibrate", "fit", "observe", "processor", "read", "write"]

ESTIMATES: dict[str, float] = {
    "visit": 1000,
    "visit_thp": 770,
    "visit_ksm": 340,
    "skip": 150,  # a visit without its checksum
    "pass_over": 25,
    "tree_level": 200,
    "tree_cold": 200,
    "merge": 1700,
    "merge_zero": 1700,
    "split": 10_000,  # reverse mapping, locks and a TLB flush
    "split_page": 590,
    "remap": 500,
    "end_of_pass": 32_000,
    "wake_up": 3000,
    "khugepaged_pte": 10,  # a warm page table entry
    "khugepaged_copy": 500,  # 4 KiB at 8 GB/s
}
"""What a step is taken to cost, ns, where a recording does not tell."""

HUBER = 1.345
"""Residuals of so many standard deviations begin to weigh less: 95 % as good as least squares if none is far off."""
NORMAL = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
KNOBS = ("use_zero_pages", "pages_to_scan", "smart_scan", "max_page_sharing", "sleep_millisecs")


@dataclass(frozen=True)
class Observed:
    """One recorded scenario: what the model counts in each batch, and what the batch took.

    Attributes
    ----------
    steps
        int64[batches, len(STEPS)]
    cpu_ns
        int64[batches]: ksmd's CPU time.
    differs
        The first counter in which the model differs from the recording; "": none. What differs is of no use.
    """

    name: str
    kernel: str
    steps: np.ndarray
    cpu_ns: np.ndarray
    differs: str = ""


@dataclass(frozen=True)
class Fit:
    """Costs of steps.

    Attributes
    ----------
    ns
        float64[len(STEPS)]
    covariance
        float64[len(STEPS), len(STEPS)], ns²; of the estimated steps zero.
    estimated
        Steps that keep their estimate, because the batches do not tell.
    scatter
        Relative standard deviation of single batches.
    """

    ns: np.ndarray
    covariance: np.ndarray
    estimated: tuple[str, ...]
    scatter: float


# --- recordings -----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[tuple[Scenario, list[dict[str, int]]]]:
    """The recorded scenarios of a file, each with its samples: the one before the start, and one after each batch.

    Raises
    ------
    UserError
        When it can't be read, or has no CPU time of ksmd; the message begins with the file.
    """
    try:
        raw = Path(path).read_bytes()
        data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (EOFError, ValueError, zlib.error, RecursionError) as error:
        raise UserError(f"{path}: this is no JSON, gzip-compressed or not: {error}") from None
    entries = data if isinstance(data, list) else [data]
    try:
        found = [_of_trace(e, path) if e.get("format") == traces.FORMAT else _of_entry(e) for e in entries]
        for _, samples in found:
            for s in samples:
                if not isinstance(s["batch"], int) or not isinstance(s["ksmd_cpu_ns"], int):
                    raise TypeError(f"batch and ksmd_cpu_ns must be whole numbers: {s['batch']}, {s['ksmd_cpu_ns']}")
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: this is no recording with ksmd's CPU time: {what}. `mmlab calibrate --help` says how to make one"
        ) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def _of_entry(entry: dict[str, Any]) -> tuple[Scenario, list[dict[str, int]]]:
    asked = entry["scenario"]
    if asked.get("actions"):
        raise ValueError(f"scenario {asked['name']} has actions: record it as a kernel trace")
    process = {
        "pages": 512 * asked["blocks"],
        "contents": asked["contents"],
        "thp": [(512 * block, 512) for block, huge in enumerate(asked["thp"]) if huge],
    }
    scenario = Scenario(
        name=str(asked["name"]),
        kernel=str(entry["kernel"]),
        process_list=[process],
        horizon_seconds=0.0,
        horizon_batches=asked["batches"],
        **{knob: asked[knob] for knob in KNOBS if knob in asked},
    )
    return scenario, entry["samples"]


def _of_trace(trace: dict[str, Any], path: str | Path) -> tuple[Scenario, list[dict[str, int]]]:
    """Samples after events are left out: what ksmd does on their account is in the next batch."""
    after_events = {event.get("sample") for event in trace["scenario"]["events"]}
    rows = [row for i, row in enumerate(trace["samples"]) if i not in after_events]
    name = str(trace.get("name") or Path(path).name)
    fields = [field.replace("lab_ksmd", "ksmd") for field in trace["fields"]]
    return traces.scenario_of(trace).replace(name=name), [dict(zip(fields, row, strict=True)) for row in rows]


def observe(scenario: Scenario, samples: Sequence[dict[str, int]]) -> Observed:
    """Repeat a recorded scenario in the model: its steps between each sample and the next, if all counters agree."""
    counts: dict[int, np.ndarray] = {}

    def count(system: System) -> None:
        stat = system.m.stat[0]
        if not stat["rank"]:
            counts[int(stat["batch"])] = system.m.steps.copy()

    run = simulate(scenario, policy="none", observe=count)
    columns = run.columns()
    after_batch = {int(b): i for i, b in enumerate(columns["batch"]) if columns["rank"][i] == 0}
    batches = [s["batch"] for s in samples]
    differs = ""
    for s in samples:
        row = after_batch.get(s["batch"])
        if row is None:
            differs = differs or f"batch {s['batch']} is recorded, but not in the model"
        for name in () if row is None else traces.COUNTERS:
            if not differs and name in s and int(columns[name][row]) != s[name]:
                differs = f"batch {s['batch']}: {name} is {s[name]}, in the model {int(columns[name][row])}"
    known = np.array(sorted(counts))
    steps = [counts[known[np.searchsorted(known, b, "right") - 1]] for b in batches]
    cpu_ns = np.diff([s["ksmd_cpu_ns"] for s in samples])
    ran = cpu_ns > 0
    return Observed(scenario.name, scenario.kernel, np.diff(steps, axis=0)[ran], cpu_ns[ran], differs)


# --- the fit --------------------------------------------------------------------------------------------------------


def _least_squares(terms: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors ≥ 0 for which Σ weight (target - terms·factors)² is least; the weights, and the residuals."""
    from scipy.optimize import nnls

    weights = np.ones(len(target))
    for _ in range(100):
        root = np.sqrt(weights)
        factors, _ = nnls(terms * root[:, None], target * root)
        residuals = target - terms @ factors
        limit = max(HUBER * NORMAL * float(np.median(np.abs(residuals))), 1e-6)
        before, weights = weights, np.minimum(1, limit / np.maximum(np.abs(residuals), 1e-12))
        if np.abs(weights - before).max() < 1e-6:
            break
    return factors, weights, residuals


def fit(steps: np.ndarray, cpu_ns: np.ndarray, scenario: np.ndarray) -> Fit:
    """The costs that explain the CPU time of batches best.

    A step keeps its estimate if the batches do not tell its cost: its standard error is larger than the estimate. Such
    steps are found one by one, the worst first. For example, if all folios that were split had 512 pages, nothing tells
    what a split costs from what its pages cost.

    Parameters
    ----------
    steps
        int64[batches, len(STEPS)]
    cpu_ns
        int64[batches], all positive.
    scenario
        [batches]: which one it is of. Batches of a scenario err together, since they are recorded together; errors are
        larger by what that does to a mean (Kish's design effect).
    """
    estimates = np.array([ESTIMATES[step] for step in STEPS])
    shares = steps * estimates / cpu_ns[:, None]  # of the CPU time, if each step cost its estimate
    free = np.array(steps.any(0))
    while True:
        factors = np.ones(len(STEPS))
        factors[free], weights, residuals = _least_squares(shares[:, free], 1 - shares[:, ~free].sum(1))
        scatter = NORMAL * float(np.median(np.abs(residuals)))
        together = np.bincount(np.unique(scenario, return_inverse=True)[1], weights * residuals)
        design = max(1.0, float(np.sum(together**2) / max(np.sum((weights * residuals) ** 2), 1e-12)))
        information = (shares[:, free].T * weights) @ shares[:, free] + 1e-9 * np.eye(int(free.sum()))
        covariance = np.linalg.inv(information) * scatter**2 * design
        errors = np.sqrt(np.diag(covariance))
        if not errors.size or errors.max() <= 1:
            break
        free[np.flatnonzero(free)[errors.argmax()]] = False
    whole = np.zeros((len(STEPS), len(STEPS)))
    whole[np.ix_(free, free)] = covariance * np.outer(estimates[free], estimates[free])
    return Fit(factors * estimates, whole, tuple(np.array(list(STEPS))[~free].tolist()), scatter)


@dataclass(frozen=True)
class Calibration:
    """Costs, and how well they predict.

    Attributes
    ----------
    observed
        The scenarios that the costs were fitted to.
    dropped
        Those in which the model differs from the recording.
    fit
        To all scenarios.
    predicted_ns
        For each scenario float64[batches]: its CPU time by the costs that all the others give.
    """

    observed: tuple[Observed, ...]
    dropped: tuple[Observed, ...]
    fit: Fit
    predicted_ns: tuple[np.ndarray, ...]

    @property
    def errors(self) -> np.ndarray:
        """float64[scenarios]: predicted over measured CPU time, less 1."""
        pairs = zip(self.observed, self.predicted_ns, strict=True)
        return np.array([predicted.sum() / one.cpu_ns.sum() - 1 for one, predicted in pairs])

    @property
    def median_error(self) -> float:
        """Median over scenarios of how far the predicted CPU time is off, as a share of the measured."""
        return float(np.median(np.abs(self.errors)))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of predicted and measured CPU time over all batches."""
        from scipy.stats import spearmanr

        measured = np.concatenate([one.cpu_ns for one in self.observed])
        return float(spearmanr(np.concatenate(self.predicted_ns), measured).statistic)

    def text(self) -> str:
        """The costs, the residuals of each scenario, and what they come to, as text tables."""
        ns, error = self.fit.ns, np.sqrt(np.diag(self.fit.covariance))
        counts = np.array([one.steps.sum(0) for one in self.observed])
        lines = [f"{'step':16}{'ns':>8}{'± 1 s.e.':>10}{'steps':>12}{'scenarios':>11}   what"]
        for i, (step, what) in enumerate(STEPS.items()):
            sure = "estimate" if step in self.fit.estimated else f"{error[i]:,.0f}"
            total, where = int(counts[:, i].sum()), int((counts[:, i] > 0).sum())
            lines.append(f"{step:16}{ns[i]:>8,.0f}{sure:>10}{total:>12,}{where:>11}   {what}")
        lines += ["", f"{'left out':24}{'batches':>8}{'measured':>12}{'predicted':>12}{'error':>9}"]
        names = np.array(list(STEPS))
        for i, (one, predicted) in enumerate(zip(self.observed, self.predicted_ns, strict=True)):
            only = names[(counts[i] > 0) & (np.delete(counts, i, 0).sum(0) == 0)]
            lines.append(
                f"{one.name:24}{len(one.cpu_ns):>8}{one.cpu_ns.sum() / 1e6:>9,.1f} ms{predicted.sum() / 1e6:>9,.1f} ms"
                f"{100 * self.errors[i]:>+7.1f} %{f'   only here: {chr(44).join(only)}' if only.size else ''}"
            )
        lines += [f"{one.name:24}not used: {one.differs}" for one in self.dropped]
        batches = sum(len(one.cpu_ns) for one in self.observed)
        lines += [
            "",
            f"Each scenario by the costs of the others: off by {100 * self.median_error:.1f} % in the median of "
            f"{len(self.observed)}; rank correlation over {batches} batches {self.rank_correlation:.3f}.",
            f"Single batches scatter by {100 * self.fit.scatter:.0f} %.",
        ]
        return "\n".join(lines)

    def cost_file(self, **about: str) -> str:
        """The cost set as `mmlab.engine.costs` reads it; `about`: machine, kernel, date, recording."""
        import yaml

        measured = [i for i, step in enumerate(STEPS) if step not in self.fit.estimated]
        covariance = self.fit.covariance[np.ix_(measured, measured)]
        head = {
            **about,
            "leave_one_out": {
                "median_error": round(self.median_error, 4),
                "rank_correlation": round(self.rank_correlation, 4),
                "scenarios": len(self.observed),
                "batches": sum(len(one.cpu_ns) for one in self.observed),
            },
            "error": round(NORMAL * self.median_error, 4),
            "estimated": list(self.fit.estimated),
            "ns": {step: round(float(cost), 1) for step, cost in zip(STEPS, self.fit.ns, strict=True)},
        }
        rows = "".join(f"  - [{', '.join(f'{value:.6g}' for value in row)}]\n" for row in covariance.tolist())
        return (
            "# What ksmd's steps cost, ns of CPU time; `mmlab calibrate` has fitted them. A scenario takes them by\n"
            "# `costs:` and this file's name. Steps in `estimated` the recording does not tell.\n"
            f"{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=110)}"
            "# Of the other steps, in their order, ns²\n"
            f"covariance:\n{rows}"
        )


def processor() -> str:
    """This computer's processor, as /proc/cpuinfo has it, and how many of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def write(path: Path, text: str) -> None:
    """Write a cost file, all of it or nothing.

    Raises
    ------
    UserError
        When it can't be written there.
    """
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def calibrate(
    recorded: Iterable[tuple[Scenario, Sequence[dict[str, int]]]],
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Fit the costs of ksmd's steps to recorded scenarios.

    A step that only one scenario has is predicted to cost nothing there: the others do not know of it.

    Parameters
    ----------
    recorded
        As `read` gives them.
    progress
        Called after each scenario with how many are done, how many there are, and its name.

    Raises
    ------
    UserError
        Fewer than two scenarios are as the model has them.
    """
    recorded, seen = list(recorded), []
    for scenario, samples in recorded:
        seen.append(observe(scenario, samples))
        if progress:
            progress(len(seen), len(recorded), scenario.name)
    good, dropped = (tuple(one for one in seen if bool(one.differs) == bad) for bad in (False, True))
    if len(good) < 2:
        why = "".join(f"; {one.name}: {one.differs}" for one in dropped[:3])
        raise UserError(
            f"{len(good)} of {len(seen)} recorded scenarios can be used{why}: a fit is judged by scenarios "
            "that it has not seen, so record at least two"
        )
    steps, cpu_ns = (np.concatenate([getattr(one, name) for one in good]) for name in ("steps", "cpu_ns"))
    number = np.repeat(np.arange(len(good)), [len(one.cpu_ns) for one in good])
    predicted = []
    for i, one in enumerate(good):
        others = number != i
        ns = fit(steps[others], cpu_ns[others], number[others]).ns
        predicted.append(one.steps @ np.where(steps[others].any(0), ns, 0.0))
    return Calibration(good, dropped, fit(steps, cpu_ns, number), tuple(predicted))
