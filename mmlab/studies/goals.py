"""Goals: limits such as `saved >= 90 %` on the measures of a run.

>>> Limit.parse("saved >= 90 %")
Limit(measure='saved', at_least=True, value=90.0)
>>> print(Limit.parse("ksmd_cpu ≤ 2.5"))
ksmd_cpu <= 2.5 %

Every measure is taken at the end of one run that lasts `within`: memory that was saved for a while and lost again is
not saved. Savings and losses are relative to the *reference*: the same processes and events up to the same moment,
with KSM and khugepaged off, on a kernel whose splits remap nothing.

`saved` is a percentage of the **ideal saving**: the frames of mergeable memory that are redundant in the reference. One
frame is needed for each distinct content (one for every max_page_sharing entries, on each NUMA node by itself where
merge_across_nodes is 0) and none for zero-filled pages, which the shared zeropage can serve; a process that forbids
zeropages needs frames for them as for any other content. Every further frame is redundant. `saved` compares the
redundant frames that a run leaves with those of the reference, so it never exceeds 100 %, and it does not matter who
freed them. Memory that the shrinker frees outside of mergeable ranges counts in `saved_mib` only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.errors import UserError, located, unknown
from mmlab.kernel.state import ANON, VM_MERGEABLE, Machine
from mmlab.params import find_params, params_files, read_yaml
from mmlab.results.metrics import PAGES_PER_MIB, Metrics
from mmlab.results.run import Run, simulate
from mmlab.results.trace import load
from mmlab.scenario import Scenario
from mmlab.studies.settings import BY
from mmlab.variants import resolve

__all__ = ["MEASURES", "Goals", "Limit", "Reference", "redundant", "seconds"]

MEASURES: dict[str, tuple[str, str]] = {
    "saved": ("%", "redundant frames of mergeable memory that are gone at the end, of those of the reference"),
    "saved_mib": ("MiB", "memory saved at the end: frames of the reference minus frames in use"),
    "thps_lost": ("%", "THPs missing at the end, of those of the reference"),
    "ksmd_cpu": ("%", "CPU time of ksmd over simulated time"),
    "khugepaged_cpu": ("%", "CPU time of khugepaged over simulated time (estimated costs)"),
    **Metrics.describe(),
}
"""Name → unit and meaning of everything that a limit may be set on: five of the study, and the metrics of every run."""

_END = {"horizon_full_scans": 0, "horizon_batches": 0, "until_settled": False}
NOT_MET = 1e3
"""Violation of a limit whose measure has no value, such as `settled_s` of a run that did not settle."""


def seconds(text: str | float) -> float:
    """Return a time in s, given as a number of seconds or with a unit.

    >>> seconds("30 min"), seconds("1.5 h"), seconds("90s"), seconds(5)
    (1800.0, 5400.0, 90.0, 5.0)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|min|h)?\s*", str(text))
    value = float(found[1]) * {None: 1, "s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < value <= 1e9:
        raise UserError(parameter="within", value=text, allowed='a time above 0, such as "90 s", "30 min" or "2 h"')
    return value


@dataclass(frozen=True)
class Limit:
    """`measure` (one of `MEASURES`) must be at least, or at most, `value`, in the measure's unit."""

    measure: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `NAME >= NUMBER [UNIT]` or `NAME <= NUMBER [UNIT]`.

        Raises
        ------
        UserError
            The text has another form, the measure is unknown, or the unit is not the measure's.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|≥|≤)\s*(\d[\d_]*(?:\.\d*)?)\s*(\S*)\s*", str(text))
        if not found:
            allowed = 'NAME >= NUMBER or NAME <= NUMBER, such as "saved >= 90 %"'
            raise UserError(parameter="goal", value=text, allowed=allowed)
        name, sign, number, unit = found.groups()
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES, "mmlab tune --help lists them.")
        if unit and unit != MEASURES[name][0]:
            raise UserError(parameter="goal", value=text, allowed=f"in {MEASURES[name][0] or 'plain numbers'}")
        if MEASURES[name][0] == "%" and float(number) > 100:
            raise UserError(parameter="goal", value=text, allowed="at most 100 %")
        return cls(name, sign in (">=", "≥"), float(number))

    def violation(self, value: float) -> float:
        """Return the share of the limit by which a value misses it (the amount, for a limit of 0); 0 if it is met."""
        if math.isnan(value):
            return NOT_MET
        miss = self.value - value if self.at_least else value - self.value
        return min(NOT_MET, max(0.0, miss) / (self.value or 1.0))

    def __str__(self) -> str:
        return f"{self.measure} {'>=' if self.at_least else '<='} {self.value:.4g} {MEASURES[self.measure][0]}".rstrip()


@dataclass(frozen=True)
class Reference:
    """The memory without KSM and khugepaged at the same moment; see the module.

    Attributes
    ----------
    frames, thps
        Frames in use, and THPs mapped.
    ideal
        Redundant frames of mergeable memory: the ideal saving.
    rows
        Samples of its run, with the columns time_ns and frames.
    """

    frames: int
    thps: int
    ideal: int
    rows: np.ndarray = field(
        default_factory=lambda: np.zeros(1, [("time_ns", np.int64), ("frames", np.int64)]), repr=False, compare=False
    )

    @classmethod
    def of(cls, scenario: Scenario) -> Reference:
        """Simulate the reference up to the scenario's `horizon_seconds`."""
        events = tuple(event for event in scenario.events if not event.sets("run"))
        off = {"run": 0, "ksm_start_seconds": 0.0, "policy": "none", "advisor_mode": "none", "khugepaged": 0}
        run = simulate(scenario.replace(**off, **_END, events=events, sample_limit=100), variant="legacy")
        last, rows = run.rows[-1], np.array(run.rows[["time_ns", "frames"]])
        return cls(int(last["frames"]), int(last["huge_pmds"]), redundant(run.machine), rows)

    def saved_mib(self, run: Run) -> np.ndarray:
        """Return float64[samples]: MiB that a run of that memory has saved at each of its samples."""
        at = np.searchsorted(self.rows["time_ns"], run.rows["time_ns"], side="right") - 1
        saved: np.ndarray = (self.rows["frames"][at] - run.rows["frames"]) / PAGES_PER_MIB
        return saved

    def until(self, run: Run, share: float) -> Run | None:
        """Return a run up to the sample at which it first saves this share of the ideal; None: it never does."""
        reached = np.flatnonzero(self.saved_mib(run) >= share * self.ideal / PAGES_PER_MIB)
        return replace(run, rows=run.rows[: reached[0] + 1]) if self.ideal and len(reached) else None

    def measures(self, run: Run) -> dict[str, float]:
        """Return all `MEASURES` of a run of that memory; NaN where one has no value."""
        last, metrics = run.rows[-1], run.metrics.as_dict()
        values = {
            "saved": 100 * (1 - redundant(run.machine) / self.ideal) if self.ideal else None,
            "saved_mib": (self.frames - int(last["frames"])) / PAGES_PER_MIB,
            "thps_lost": 100 * max(0, self.thps - int(last["huge_pmds"])) / max(1, self.thps),
            "ksmd_cpu": run.metrics.ksmd_cpu_percent,
            "khugepaged_cpu": 1e8 * run.metrics.khugepaged_cpu_ms / max(1, int(last["time_ns"])),
        }
        return {name: math.nan if v is None else float(v) for name, v in (values | metrics).items()}


def redundant(m: Machine) -> int:
    """Return the number of frames that only mergeable entries map and that the contents do not need; see the module."""
    mapped = m.pte["kind"] == ANON
    may = mapped & ((m.pte["vm"] & VM_MERGEABLE) > 0)
    may &= ~np.isin(m.page["frame"], m.page["frame"][mapped & ~may])
    owner = np.searchsorted(m.mm["base"], np.arange(len(m.page)), side="right") - 1
    by_zeropage = (m.page["key"] == 0) & (m.mm["forbids_zeropages"][owner] == 0)
    zero_filled, others = (m.page["frame"][may & chosen] for chosen in (by_zeropage, ~by_zeropage))
    node = m.mm["nid"][owner] * (1 - m.state[0]["merge_across_nodes"])
    contents = np.rec.fromarrays([node[may & ~by_zeropage], m.page["key"][may & ~by_zeropage]])
    _, content, entries = np.unique(contents, return_inverse=True, return_counts=True)
    frames = np.bincount(content[np.unique(others, return_index=True)[1]], minlength=len(entries))
    needed = -(-entries // m.state[0]["max_page_sharing"])
    return len(np.unique(zero_filled)) + int(np.maximum(0, frames - needed).sum())


@dataclass(frozen=True)
class Goals:
    """A workload, limits on its measures, and what a search may change; see `mmlab.studies.tune.tune`.

    Attributes
    ----------
    scenario
        The workload and everything beside ksmd. It lasts `within`; ksmd runs from the start unless the scenario starts
        it itself.
    limits
        What must hold at its end.
    minimise
        The cost: the measure to make least. Default: ksmd's CPU time.
    by
        Who may set the pace: "fixed" (pages_to_scan), "advisor", "ksmtuned".
    levels
        {knob: values to choose from} instead of `mmlab.studies.settings.LEVELS`; one value fixes the knob.
    """

    scenario: Scenario
    limits: tuple[Limit, ...]
    minimise: str = "ksmd_cpu"
    by: tuple[str, ...] = tuple(BY)
    levels: Mapping[str, tuple[int, ...]] | None = None

    @classmethod
    def of(
        cls,
        workload: Scenario | str | Path | Mapping[str, Any],
        goals: Sequence[str],
        within: str | float | None = None,
        variant: str | None = None,
        minimise: str = "ksmd_cpu",
        by: str | Sequence[str] = (),
        levels: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Goals:
        """Return goals as a file or the command line states them; `changes` are made to the workload.

        A workload is a scenario, a params file or the name of one of `params/`, or a mapping of parameters. `within`
        defaults to the scenario's `horizon_seconds`.

        Raises
        ------
        UserError
            Something is unknown or out of range, or the workload's events wait for ksmd.
        """
        if isinstance(workload, Mapping):
            workload = Scenario(**workload)
        elif not isinstance(workload, Scenario):
            workload = load(find_params(workload))
        span = workload.horizon_seconds if within is None else seconds(within)
        if not span:
            raise UserError("it is missing", parameter="within", hint='Say how long it may take, such as "30 min".')
        starts = workload.sets("run") or workload.ksm_start_seconds
        given = {"run": workload.run if starts else 1, "policy": "none", "advisor_mode": "none", "sample_limit": 100}
        given |= changes | _END | {"horizon_seconds": span, "variant": variant or workload.variant}
        scenario = workload.replace(**given)
        resolve(scenario.variant)
        if any(event.after.seconds is None for event in scenario.events):
            problem = "they wait for a batch or a full scan, so another setting would be another workload"
            raise UserError(problem, parameter="events", hint="Say after: {seconds: …} instead.")
        if not goals:
            raise UserError("there are none", parameter="goals", hint='Add some, such as --goal "saved >= 90 %".')
        if minimise not in MEASURES:
            raise unknown("measure", minimise, MEASURES)
        by = (by,) if isinstance(by, str) else tuple(by) or tuple(BY)
        for name in by:
            if name not in BY:
                raise unknown("pace", name, BY)
        tried = {name: tuple(v) if isinstance(v, list | tuple) else (v,) for name, v in (levels or {}).items()}
        return cls(scenario, tuple(map(Limit.parse, goals)), minimise, by, tried)

    @classmethod
    def load(cls, what: str | Path, **overrides: Any) -> Goals:
        """Read a goals file, or a params file that becomes the workload of the goals among the overrides.

        A goals file holds `workload`, `goals`, `within`, and what else :meth:`of` takes; changes to the workload stand
        below `set`. An override that is not empty replaces the file's value; `set` and `levels` are added to it.

        Raises
        ------
        UserError
            The file cannot be read or says something that is not allowed; `where` is its path.
        """
        name, path = str(what), Path(what)
        if name in params_files("goals") or (path.is_file() and {"goals", "workload"} & set(read_yaml(path))):
            path = find_params(what, "goals")
            values = read_yaml(path)
        elif path.is_file() or name in params_files():
            path = find_params(what)
            values = {"workload": path}
        else:
            hint = "Name a params file, a goals file, or one of params/."
            raise unknown("workload", what, [*params_files("goals"), *params_files()], hint)
        with located(path):
            known = ("workload", "variant", "within", "goals", "minimise", "by", "levels", "set")
            for key in values:
                if key not in known:
                    raise unknown("key", key, known)
            for key, value in overrides.items():
                if value:
                    values[key] = {**(values.get(key) or {}), **value} if isinstance(value, dict) else value
            if "workload" not in values:
                raise UserError("it is missing", parameter="workload", hint="A goals file needs workload and goals.")
            if isinstance(values["workload"], str) and (beside := path.parent / values["workload"]).is_file():
                values["workload"] = beside
            changes = values.pop("set", None) or {}
            return cls.of(**{"goals": (), **values, **changes})
