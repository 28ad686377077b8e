"""Calibration: fit the costs of ksmd's steps to recordings of its CPU time on a real kernel.

The model repeats each recorded scenario and counts ksmd's steps in every batch. The costs are those that explain the
CPU time of the batches best: non-negative least squares of relative errors, in which outliers weigh less (Huber),
because recording machines are shared. Their quality is judged by scenarios that the fit has not seen: each scenario is
predicted from all the others.

A recording is a file of either kind, gzip-compressed or not:

* a list of scenarios, each with ``scenario`` (``name``, ``blocks`` of 512 pages, ``thp`` 0 or 1 for each, ``contents``,
  knobs, ``batches``), ``kernel``, and ``samples``: before the start and after each batch the counters and
  ``ksmd_cpu_ns``, the first number of ksmd's /proc/PID/schedstat;
* a kernel trace (`mmlab.results.trace`) with ``lab_ksmd_cpu_ns`` among its fields, as `record_all` makes them.
"""

import gzip
import json
import os
import platform
import re
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.engine.costs import ADDED, STEPS, CostSet, parts
from mmlab.engine.system import System
from mmlab.errors import UserError
from mmlab.host import record as recorder
from mmlab.host.pagemap import proc
from mmlab.params import read_yaml, reading, yaml_lines
from mmlab.results import trace as traces
from mmlab.results.run import simulate
from mmlab.results.table import text_table
from mmlab.scenario import Scenario
from mmlab.workers import Progress

DATA = read_yaml(Path(__file__).with_suffix(".yaml"))
"""What is recorded, and what is assumed of steps that a recording does not determine."""
ESTIMATES: dict[str, float] = DATA["estimates"] | ADDED
"""Assumed cost of each step, ns, where a recording does not determine it."""
ERRORS = {"skip": 75, "dup_walk": 2, "compare_kib": 20}
"""Standard errors, ns, of those that were measured: of a uniform distribution between the bounds. Of the others it is
the whole cost."""

HUBER = 1.345
"""Residuals beyond this many standard deviations weigh less: 95 % as efficient as least squares without outliers."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
MEASURED = ("batch", "ksmd_cpu_ns")
KNOBS = ("use_zero_pages", "pages_to_scan", "smart_scan", "max_page_sharing", "sleep_millisecs")


@dataclass(frozen=True)
class Observed:
    """One recorded scenario: the model's step counts and the measured CPU time of each batch.

    Attributes
    ----------
    steps
        float64[batches, len(STEPS)]: with the `parts` that the scenario says its steps have.
    cpu_ns
        int64[batches]: ksmd's CPU time.
    differs
        The first counter in which the model differs from the recording, "" for none. Such a scenario is not used.
    """

    name: str
    kernel: str
    steps: np.ndarray
    cpu_ns: np.ndarray
    differs: str = ""


# --- recordings -----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[tuple[Scenario, list[dict[str, int]]]]:
    """Return the recorded scenarios of a file, each with its samples: one before the start, one after each batch.

    Raises
    ------
    UserError
        The file can't be read, or has no CPU time of ksmd.
    """
    with reading(path):
        raw = Path(path).read_bytes()
        try:
            data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
            entries = data if isinstance(data, list) else [data]
            found = [_of_trace(e, path) if e.get("format") == traces.FORMAT else _of_entry(e) for e in entries]
            if any(not isinstance(s[name], int) for _, samples in found for s in samples for name in MEASURED):
                raise TypeError(f"{' and '.join(MEASURED)} must be whole numbers")
        except (EOFError, LookupError, AttributeError, TypeError, ValueError, zlib.error, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            hint = "`mmlab calibrate --help` says how to make one."
            raise UserError(f"this is no recording with ksmd's CPU time: {what}", hint=hint) from None
    return found


def _of_entry(entry: dict[str, Any]) -> tuple[Scenario, list[dict[str, int]]]:
    asked = entry["scenario"]
    if asked.get("actions"):
        raise ValueError(f"scenario {asked['name']} has actions: record it as a kernel trace")
    thps = [(512 * block, 512) for block, huge in enumerate(asked["thp"]) if huge]
    process = {"pages": 512 * asked["blocks"], "contents": asked["contents"], "thp": thps}
    ends = {"horizon_seconds": 0.0, "horizon_batches": asked["batches"]}
    about = {"name": str(asked["name"]), "kernel": str(entry["kernel"])}
    knobs = {knob: asked[knob] for knob in KNOBS if knob in asked}
    scenario = Scenario(**about, **ends, **knobs, process_list=[process])
    return scenario, entry["samples"]


def _of_trace(trace: dict[str, Any], path: str | Path) -> tuple[Scenario, list[dict[str, int]]]:
    """Return a trace's scenario and samples, without those after events: ksmd's part in them is in the next batch."""
    after_events = {event.get("sample") for event in trace["scenario"]["events"]}
    rows = [row for i, row in enumerate(trace["samples"]) if i not in after_events]
    name = str(trace.get("name") or Path(path).name)
    fields = [field.replace("lab_ksmd", "ksmd") for field in trace["fields"]]
    moved = trace.get("moved", ())
    samples = [{n: v for n, v in zip(fields, row, strict=True) if n not in moved} for row in rows]
    return traces.scenario_of(trace).replace(name=name), samples


def calibration_set() -> list[Scenario]:
    """Return the scenarios that tell the costs of ksmd's steps apart (``calibrate.yaml``), those of this machine.

    Without a second CPU no owner runs while ksmd does.
    """
    found = [Scenario(name=name, **DATA["common"] | own) for name, own in DATA["scenarios"].items()]
    return [scenario for scenario in found if not scenario.owner_running_fraction or len(_cpus()) > 1]


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def record_one(scenario: Scenario) -> traces.Trace:
    """Record a scenario of `calibration_set` on the running kernel.

    Raises
    ------
    UserError
        The machine cannot record it; see `mmlab.host.record.record`.
    """
    owner = _cpus()[1:] if scenario.owner_running_fraction else []
    plan = recorder.plan(scenario, times=1, owner_running=owner, key_offset=scenario.equal_bytes)
    trace = recorder.record(plan)
    trace["scenario"]["knobs"] |= scenario.model_dump(include={"owner_running_fraction", "equal_bytes"})
    return trace | {"name": scenario.name, "moved": trace["machine_wide"]}  # ksmd's own counters tell enough


def record_all(folder: Path, times: int = 3, progress: Progress = None) -> list[Path]:
    """Record the calibration set into a folder, all of it `times` times, and return its files.

    The recordings of a scenario lie far apart in time, so that the load of the machine at one moment matters little.
    Files that are there are kept.

    Raises
    ------
    UserError
        The machine cannot record; what was recorded before stays.
    """
    asked = [(one, folder / f"{one.name}-{n}.json.gz") for n in range(times) for one in calibration_set()]
    for done, (scenario, file) in enumerate(asked):
        if progress:
            progress(done, len(asked), f"recording {scenario.name}")
        if not file.exists():
            traces.write(file, record_one(scenario))
    return [file for _, file in asked]


def observe(scenario: Scenario, *recordings: Sequence[dict[str, int]]) -> Observed:
    """Repeat a recorded scenario in the model, and return the steps between each sample and the next.

    Of several recordings each batch has its median CPU time; those that differ from the model are left out, if not all
    do: now and then somebody else holds a page at the moment at which ksmd wants to merge it.
    """
    counts: dict[int, np.ndarray] = {}

    def count(system: System) -> None:
        stat = system.m.stat[0]
        if not stat["rank"]:
            counts[int(stat["batch"])] = system.m.steps.copy()

    columns = simulate(scenario, policy="none", observe=count).columns()
    after_batch = {int(b): i for i, b in enumerate(columns["batch"]) if columns["rank"][i] == 0}

    def difference(samples: Sequence[dict[str, int]]) -> str:
        for s, name in ((s, name) for s in samples for name in traces.COUNTERS if name in s):
            row = after_batch.get(s["batch"])
            model = "not simulated" if row is None else f"{columns[name][row]}"
            if model != str(s[name]):
                return f"batch {s['batch']}: {name} is {s[name]}, in the model {model}"
        return ""

    differs = [difference(samples) for samples in recordings]
    good = [one for one, wrong in zip(recordings, differs, strict=True) if not wrong]
    known = np.array(sorted(counts))
    steps = [counts[known[np.searchsorted(known, s["batch"], "right") - 1]] for s in recordings[0]]
    cpu_ns = np.rint(np.median([np.diff([s["ksmd_cpu_ns"] for s in one]) for one in good or recordings], axis=0))
    ran = cpu_ns > 0
    done = np.diff(steps, axis=0)[ran] @ parts(scenario)
    return Observed(scenario.name, scenario.kernel, done, cpu_ns[ran].astype(int), "" if good else differs[0])


# --- the fit --------------------------------------------------------------------------------------------------------


def _least_squares(terms: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the factors ≥ 0 that minimise Σ weight (target - terms·factors)², the weights, and the residuals."""
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


def fit(steps: np.ndarray, cpu_ns: np.ndarray, scenario: np.ndarray) -> CostSet:
    """Return the costs that explain the CPU time of batches best, and in `about` the relative `scatter` of batches.

    A step keeps its estimate if the standard error of its fitted cost is larger than the estimate. Such steps are found
    one by one, the worst first. For example, if all folios that were split had 512 pages, the cost of a split cannot be
    separated from the cost of its pages. In the covariance such steps are zero.

    Parameters
    ----------
    steps
        float64[batches, len(STEPS)]
    cpu_ns
        int64[batches], all positive.
    scenario
        [batches]: the scenario of each batch. Batches of one scenario were recorded together and their errors are
        correlated, so standard errors are multiplied by Kish's design effect.
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
    estimated = tuple(step for step, determined in zip(STEPS, free, strict=True) if not determined)
    return CostSet(factors * estimates, estimated, whole, about={"scatter": scatter})


@dataclass(frozen=True)
class Calibration:
    """Fitted costs, and how well they predict scenarios that were left out.

    Attributes
    ----------
    observed
        The scenarios that the costs were fitted to.
    dropped
        Scenarios in which the model differs from the recording.
    fit
        The fit to all scenarios.
    predicted_ns
        For each scenario float64[batches]: its CPU time, predicted by the costs fitted to all the others.
    """

    observed: tuple[Observed, ...]
    dropped: tuple[Observed, ...]
    fit: CostSet
    predicted_ns: tuple[np.ndarray, ...]

    @property
    def errors(self) -> np.ndarray:
        """float64[scenarios]: predicted over measured CPU time, minus 1."""
        pairs = zip(self.observed, self.predicted_ns, strict=True)
        return np.array([predicted.sum() / one.cpu_ns.sum() - 1 for one, predicted in pairs])

    @property
    def median_error(self) -> float:
        """Median over scenarios of the relative error of the predicted CPU time."""
        return float(np.median(np.abs(self.errors)))

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of predicted and measured CPU time over all batches."""
        from scipy.stats import spearmanr

        measured = np.concatenate([one.cpu_ns for one in self.observed])
        return float(spearmanr(np.concatenate(self.predicted_ns), measured).statistic)

    def text(self) -> str:
        """Return the costs, the residual of each scenario and the overall error as text tables."""
        counts = np.array([one.steps.sum(0) for one in self.observed])
        error = np.sqrt(np.diag(self.fit.covariance))
        costs: dict[str, Any] = {"step": STEPS, "ns": self.fit.ns, "± 1 s.e.": np.where(error > 0, error, np.nan)}
        costs |= {"steps": counts.sum(0), "scenarios": (counts > 0).sum(0), "what": STEPS.values()}
        only = [np.flatnonzero(steps & ((counts > 0).sum(0) == 1)) for steps in counts > 0]
        left_out: dict[str, Any] = {"left out": [one.name for one in self.observed]}
        left_out["batches"] = [len(one.cpu_ns) for one in self.observed]
        left_out["measured, ms"] = [one.cpu_ns.sum() / 1e6 for one in self.observed]
        left_out["predicted, ms"] = [predicted.sum() / 1e6 for predicted in self.predicted_ns]
        left_out["error, %"] = [f"{100 * error:+.1f}" for error in self.errors]
        left_out["only here"] = [", ".join([*STEPS][step] for step in steps) for steps in only]
        batches = sum(left_out["batches"])
        dropped = "".join(f"{one.name} is not used: {one.differs}\n" for one in self.dropped)
        return f"""{text_table(costs, digits=0)}
(± -: the recording does not determine it, so it is an estimate)

{text_table(left_out, digits=1)}
{dropped}
Predicted from the costs of the others, scenarios are off by {100 * self.median_error:.1f} % (median of \
{len(self.observed)}); rank correlation over {batches} batches {self.rank_correlation:.3f}.
Single batches scatter by {100 * self.fit.about["scatter"]:.0f} %."""

    def cost_file(self, **about: str) -> str:
        """Return the cost set as `mmlab.engine.costs` reads it; `about`: machine, kernel, date, recording."""
        measured = [i for i, step in enumerate(STEPS) if step not in self.fit.estimated]
        covariance = self.fit.covariance[np.ix_(measured, measured)]
        errors = {one.name: round(float(error), 3) for one, error in zip(self.observed, self.errors, strict=True)}
        batches = sum(len(one.cpu_ns) for one in self.observed)
        judged: dict[str, Any] = {"median_error": round(self.median_error, 4), "scenarios": len(errors)}
        judged |= {"rank_correlation": round(self.rank_correlation, 4), "batches": batches, "errors": errors}
        head: dict[str, Any] = about | {"leave_one_out": judged, "error": round(NORMAL * self.median_error, 4)}
        head["estimated"] = {step: ERRORS.get(step, ESTIMATES[step]) for step in self.fit.estimated}
        head["ns"] = {step: round(float(cost), 1) for step, cost in zip(STEPS, self.fit.ns, strict=True)}
        head["covariance"] = [[float(f"{value:.6g}") for value in row] for row in covariance]
        return f"""\
# What ksmd's steps cost, ns of CPU time, fitted by `mmlab calibrate`. Scenarios use it by `costs:` and its name.
# The recording does not determine the steps in `estimated`; `covariance` is of the others, in their order, ns².
{yaml_lines(head, {})}"""


def processor() -> str:
    """Return the name of this computer's processor, as /proc/cpuinfo has it, and the number of CPUs."""
    named = re.search(r"(?m)^model name\s*:[ \t]*(.*\S)", proc("cpuinfo"))
    return f"{named[1] if named else platform.machine()}, {os.cpu_count()} CPUs"


def origin(found: Calibration, recordings: Sequence[Path], machine: str | None = None) -> dict[str, str]:
    """Return where costs come from, for `Calibration.cost_file`; `machine` is by default this computer."""
    kernels = ", ".join(sorted({one.kernel for one in found.observed}))
    files = ", ".join(file.name for file in recordings[:3]) + " …" * (len(recordings) > 3)
    return {"machine": machine or processor(), "kernel": kernels, "date": time.strftime("%F"), "recording": files}


def calibrate(recorded: Iterable[tuple[Scenario, Sequence[dict[str, int]]]], progress: Progress = None) -> Calibration:
    """Fit the costs of ksmd's steps to recorded scenarios.

    A step that occurs in one scenario only is predicted to cost nothing there: the others know nothing of it.

    Parameters
    ----------
    recorded
        As `read` gives them. Recordings of the same scenario are taken together: each batch counts with its median.
    progress
        Called after each scenario with the number of scenarios done, the number in all, and its name.

    Raises
    ------
    UserError
        Fewer than two scenarios agree with the model.
    """
    together, seen = dict[Scenario, list[Sequence[dict[str, int]]]](), list[Observed]()
    for scenario, samples in recorded:
        together.setdefault(scenario, []).append(samples)
    for scenario, several in together.items():
        seen.append(observe(scenario, *several))
        if progress:
            progress(len(seen), len(together), scenario.name)
    good, dropped = (tuple(one for one in seen if bool(one.differs) == bad) for bad in (False, True))
    if len(good) < 2:
        why = "".join(f"; {one.name}: {one.differs}" for one in dropped[:3])
        hint = "A fit is judged by scenarios that it has not seen: record at least two."
        raise UserError(f"{len(good)} of {len(seen)} recorded scenarios can be used{why}", hint=hint)
    steps, cpu_ns = (np.concatenate([getattr(one, name) for one in good]) for name in ("steps", "cpu_ns"))
    number = np.repeat(np.arange(len(good)), [len(one.cpu_ns) for one in good])
    predicted = []
    for i, one in enumerate(good):
        others = number != i
        ns = fit(steps[others], cpu_ns[others], number[others]).ns
        predicted.append(one.steps @ np.where(steps[others].any(0), ns, 0.0))
    return Calibration(good, dropped, fit(steps, cpu_ns, number), tuple(predicted))
