"""What is wanted of a setting: limits such as `saved >= 90 %`, and what a run comes to beside them.

>>> Limit.parse("saved >= 90 %")
Limit(measure='saved', at_least=True, value=90.0)
>>> print(Limit.parse("ksmd_cpu ≤ 2.5"))
ksmd_cpu <= 2.5 %

Every measure is that of one run that lasts `within`, from its start to its end: what was saved for a while and lost
again is not saved. Saved and lost are said against the *reference*: the same processes and events up to the same
moment, with KSM and khugepaged off, on a kernel whose splits remap nothing.

**What is possible** is computed from the contents that the reference ends with, not from a run of ksmd. Of the
frames that only mergeable entries map, so many are needed: none for zero-filled pages (the shared zeropage has no frame
to pay), and for every other content ceil(entries with it / max_page_sharing), for each NUMA node by itself where
merge_across_nodes is 0. Zero-filled pages of a process that forbids zeropages count as any other content. The rest is
possible. Hot pages count by what they hold at that moment, so no ksmd may get to 100 %; what the underused shrinker
frees of other than mergeable memory is saved, and not among what is possible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.engine.clock import simulate
from mmlab.errors import UserError, unknown
from mmlab.kernel.state import ANON, VM_MERGEABLE, Machine
from mmlab.params import find_params, params_files, read_yaml
from mmlab.results.run import PAGES_PER_MIB, Metrics, Run
from mmlab.results.trace import load
from mmlab.scenario import Scenario
from mmlab.variants import resolve

__all__ = ["MEASURES", "Goals", "Limit", "Reference", "seconds"]

MEASURES: dict[str, tuple[str, str]] = {
    "saved": ("%", "memory saved at the end, of what is possible"),
    "saved_mib": ("MiB", "memory saved at the end: frames of the reference less frames in use"),
    "thps_lost": ("%", "THPs that the reference has more at the end, of those that it has"),
    "ksmd_cpu": ("%", "CPU time of ksmd over simulated time"),
    "khugepaged_cpu": ("%", "CPU time of khugepaged over simulated time (estimated costs)"),
    **Metrics.describe(),
}
"""Name → unit and meaning of all that a limit may be set to; below the first five, the metrics of every run."""

NOT_MET = 1e3
"""Violation of a limit whose measure has no value, such as `settled_s` of a run that did not settle."""


def seconds(text: str | float) -> float:
    """A time in s: a number of seconds, or a text with a unit.

    >>> seconds("30 min"), seconds("1.5 h"), seconds("90s"), seconds(5)
    (1800.0, 5400.0, 90.0, 5.0)
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*(s|min|h)?\s*", str(text))
    try:
        value = float(found[1]) * {None: 1, "s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e9:
        raise UserError(f'within = {text!r}: it must be a time above 0, such as "90 s", "30 min" or "2 h"')
    return value


@dataclass(frozen=True)
class Limit:
    """`measure` (one of `MEASURES`) must be at least, or at most, `value`, in the measure's unit."""

    measure: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """From `NAME >= NUMBER [UNIT]` or with `<=`.

        Raises
        ------
        UserError
            It has another form, the measure is not known, or the unit is another than the measure's.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|≥|≤)\s*(\d[\d_]*(?:\.\d*)?)\s*(\S*)\s*", str(text))
        if not found:
            raise UserError(f'goal "{text}": it must be NAME >= NUMBER or NAME <= NUMBER, e.g. "saved >= 90 %"')
        name, sign, number, unit = found.groups()
        if name not in MEASURES:
            raise UserError(f'goal "{text}": {unknown("measure", name, MEASURES)}')
        if unit and unit != MEASURES[name][0]:
            raise UserError(f'goal "{text}": {name} is measured in {MEASURES[name][0] or "plain numbers"}, not {unit}')
        return cls(name, sign in (">=", "≥"), float(number))

    def violation(self, value: float | None) -> float:
        """By which share of the limit a value misses it (of a limit of 0: by how much); 0: met."""
        if value is None or math.isnan(value):
            return NOT_MET
        miss = self.value - value if self.at_least else value - self.value
        return min(NOT_MET, max(0.0, miss) / (self.value or 1.0))

    def relaxed(self, value: float) -> Limit:
        return Limit(self.measure, self.at_least, value)

    def __str__(self) -> str:
        unit = MEASURES[self.measure][0]
        return f"{self.measure} {'>=' if self.at_least else '<='} {self.value:.4g}{' ' * bool(unit)}{unit}"


@dataclass(frozen=True)
class Reference:
    """The memory without KSM and khugepaged at the same moment; see the module.

    Attributes
    ----------
    frames, thps
        Frames in use, and THPs mapped.
    possible
        Frames that could be saved.
    """

    frames: int
    thps: int
    possible: int

    @classmethod
    def of(cls, scenario: Scenario) -> Reference:
        """At the scenario's `horizon_seconds`."""
        started = tuple(event for event in scenario.events if not event.sets("run"))
        off = scenario.replace(
            run=0,
            ksm_start_seconds=0.0,
            policy="none",
            advisor_mode="none",
            khugepaged=0,
            events=started,
            until_settled=False,
            horizon_full_scans=0,
            horizon_batches=0,
            sample_limit=100,
        )
        run = simulate(off, variant="legacy", policy="none")
        last = run.rows[-1]
        return cls(int(last["frames"]), int(last["huge_pmds"]), _possible(run.machine))

    def measures(self, run: Run) -> dict[str, float | None]:
        """All `MEASURES` of a run of that memory."""
        metrics, last = run.metrics, run.rows[-1]
        saved = self.frames - int(last["frames"])
        lost = max(0, self.thps - int(last["huge_pmds"]))
        return {
            "saved": 100 * saved / self.possible if self.possible else None,
            "saved_mib": saved / PAGES_PER_MIB,
            "thps_lost": 100 * lost / self.thps if self.thps else 0.0,
            "ksmd_cpu": metrics.ksmd_cpu_percent,
            "khugepaged_cpu": 1e8 * metrics.khugepaged_cpu_ms / max(1, int(last["time_ns"])),
            **{name: getattr(metrics, name) for name in Metrics.describe()},
        }


def _possible(m: Machine) -> int:
    """Frames that could be saved of the machine's memory as it is; see the module."""
    mapped = m.pte["kind"] == ANON
    may = mapped & ((m.pte["vm"] & VM_MERGEABLE) > 0)
    bound = np.unique(m.page["frame"][mapped & ~may])
    may &= ~np.isin(m.page["frame"], bound)
    frames = len(np.unique(m.page["frame"][may]))
    owner = np.zeros(len(m.page), np.int64)  # record of the process that each page belongs to
    for i, mm in enumerate(m.mm):
        owner[mm["base"] : mm["base"] + mm["pages"]] = i
    needs = may & ((m.page["key"] > 0) | (m.mm["forbids_zeropages"][owner] > 0))
    apart = m.mm["nid"][owner[needs]] * (1 - m.state[0]["merge_across_nodes"])
    contents = np.empty(needs.sum(), [("node", np.int64), ("key", np.uint64)])
    contents["node"], contents["key"] = apart, m.page["key"][needs]
    _, entries = np.unique(contents, return_counts=True)
    return max(0, frames - int((-(-entries // m.state[0]["max_page_sharing"])).sum()))


@dataclass(frozen=True)
class Goals:
    """What `mmlab.studies.tune.tune` is asked for.

    Attributes
    ----------
    scenario
        The workload, and what goes on beside ksmd. It lasts `within`; ksmd runs from the start unless the scenario says
        when it is started.
    limits
        What must hold at its end.
    minimise
        The cost: the measure that shall be least. Default: ksmd's CPU time.
    by
        Who may set the pace: "fixed" (pages_to_scan), "advisor", "ksmtuned".
    levels
        {knob: values to choose from} instead of `mmlab.studies.settings.LEVELS`; one value fixes the knob.
    """

    scenario: Scenario
    limits: tuple[Limit, ...]
    minimise: str = "ksmd_cpu"
    by: tuple[str, ...] = ("fixed", "advisor", "ksmtuned")
    levels: Mapping[str, tuple[int, ...]] | None = None

    @classmethod
    def of(
        cls,
        workload: Scenario | str | Path | Mapping[str, Any],
        goals: Sequence[str],
        within: str | float | None = None,
        variant: str | None = None,
        minimise: str = "ksmd_cpu",
        by: Sequence[str] = (),
        levels: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Goals:
        """Goals as they are said in a file or on the command line; `changes` are made to the workload.

        A workload is a scenario, a params file or the name of one of `params/`, or a mapping of parameters. `within` is
        by default the scenario's `horizon_seconds`.

        Raises
        ------
        UserError
            Something in it is not known or out of range, or the workload's events wait for ksmd.
        """
        if isinstance(workload, Mapping):
            workload = Scenario(**workload)
        elif not isinstance(workload, Scenario):
            workload = load(find_params(workload))
        if variant is not None:
            changes["variant"] = variant
        span = workload.horizon_seconds if within is None else seconds(within)
        if not span:
            raise UserError('within is missing: say how long it may take, such as "30 min"')
        starts = workload.sets("run") or workload.ksm_start_seconds
        asked = workload.replace(
            **{"run": workload.run if starts else 1, "policy": "none", "advisor_mode": "none", "sample_limit": 100}
            | changes
            | {"horizon_seconds": span, "horizon_full_scans": 0, "horizon_batches": 0, "until_settled": False}
        )
        resolve(asked.variant)
        if any(event.after.seconds is None for event in asked.events):
            raise UserError(
                "the workload's events wait for a batch or a full scan: another setting would be another workload. "
                "Say after: {seconds: …} instead"
            )
        limits = tuple(map(Limit.parse, goals))
        if not limits:
            raise UserError('goals: there are none: say at least one, such as "saved >= 90 %"')
        if minimise not in MEASURES:
            raise unknown("measure", minimise, MEASURES)
        from mmlab.studies.settings import BY

        for name in by:
            if name not in BY:
                raise UserError(f"by: {unknown('pace', name, BY)}")
        tried = {name: tuple(v) if isinstance(v, list | tuple) else (v,) for name, v in (levels or {}).items()}
        return cls(asked, limits, minimise, tuple(by) or tuple(BY), tried)

    @classmethod
    def ask(cls, what: str | Path, **overrides: Any) -> Goals:
        """From a goals file as :meth:`load` does, or from a params file, whose goals are among the overrides.

        Raises
        ------
        UserError
            As those do; or there is neither file.
        """
        if str(what) in params_files("goals") or (Path(what).is_file() and "goals" in read_yaml(Path(what))):
            return cls.load(what, **overrides)
        given = {name: value for name, value in overrides.items() if value}
        if not Path(what).is_file() and str(what) not in params_files():
            names = [*params_files("goals"), *params_files()]
            raise unknown("workload", what, names, "Name a params file, a goals file, or one of params/.")
        if "goals" not in given:
            raise UserError(f'{what} is a workload without goals: add some, such as --goal "saved >= 90 %"')
        return cls.of(what, **given | given.pop("set", {}))

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Goals:
        """From a goals file: `workload`, `goals`, `within`, and what else :meth:`of` takes; changes below `set`.

        An override that says something replaces the file's; `set` and `levels` are added to them.

        Raises
        ------
        UserError
            The file can't be read or says something that is not allowed; the message begins with its name.
        """
        path = find_params(path, "goals")
        try:
            values = read_yaml(path)
            for name, value in overrides.items():
                if value:
                    values[name] = {**(values.get(name) or {}), **value} if isinstance(value, dict) else value
            known = ("workload", "variant", "within", "goals", "minimise", "by", "levels", "set")
            for name in values:
                if name not in known:
                    raise unknown("key", name, known)
            for name in ("workload", "goals"):
                if name not in values:
                    raise UserError(f"{name} is missing: a goals file needs workload and goals")
            changes = values.pop("set", None) or {}
            if isinstance(values["workload"], str) and (beside := path.parent / values["workload"]).is_file():
                values["workload"] = beside
            by = values.pop("by", ())
            return cls.of(by=[by] if isinstance(by, str) else by, **values, **changes)
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
