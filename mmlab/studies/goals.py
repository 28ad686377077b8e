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

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from mmlab.errors import UserError, located, unknown
from mmlab.kernel.state import ANON, VM_MERGEABLE, Machine
from mmlab.params import params_files, read_yaml, seconds
from mmlab.results.baseline import BY_THE_CLOCK, baseline
from mmlab.results.metrics import PAGES_PER_MIB, Metrics
from mmlab.results.run import Run
from mmlab.scenario import Scenario
from mmlab.studies.grid import Filed, beside
from mmlab.studies.settings import check_levels
from mmlab.variants import resolve

_OWN = read_yaml(Path(__file__).with_suffix(".yaml"))
MEASURES: dict[str, tuple[str, str]] = {name: tuple(about) for name, about in _OWN.items()} | Metrics.describe()
"""Name → unit and meaning of everything that a limit may be set on: five of the study, and the metrics of every run."""

Pace = Literal["fixed", "advisor", "ksmtuned", "proxmox", "kubevirt", "mom", "kata"]
_ALONE = {"policy": "none", "advisor_mode": "none", "sample_limit": 100}
NOT_MET = 1e3
"""Violation of a limit whose measure has no value, such as `settled_s` of a run that did not settle."""


def four_digits(value: object) -> object:
    """Return a number as text in four digits, anything else as it is."""
    if not isinstance(value, float) or math.isnan(value):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def measure(name: str) -> str:
    """Return the name if it is one of `MEASURES`; else it is a `UserError`."""
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES, "mmlab tune --help lists them.")
    return name


@dataclass(frozen=True)
class Limit:
    """`measure` (one of `MEASURES`) must be at least, or at most, `value`, in the measure's unit."""

    measure: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
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
        own = MEASURES[measure(name)][0]
        if unit not in ("", own) or (own == "%" and float(number) > 100):
            allowed = {"": "a plain number", "%": "in %, at most 100"}.get(own, f"in {own}")
            raise UserError(parameter="goal", value=text, allowed=allowed)
        return cls(name, sign in (">=", "≥"), float(number))

    def violation(self, value: float) -> float:
        """Return the share of the limit by which a value misses it (the amount, for a limit of 0); 0 if it is met."""
        if math.isnan(value):
            return NOT_MET
        miss = self.value - value if self.at_least else value - self.value
        return min(NOT_MET, max(0.0, miss) / (self.value or 1.0))

    def others(self, limits: Iterable[Self]) -> list[Self]:
        """Return the limits without this one."""
        return [limit for limit in limits if limit is not self]

    def __str__(self) -> str:
        return f"{self.measure} {'>=' if self.at_least else '<='} {self.value:.4g} {MEASURES[self.measure][0]}".rstrip()


@dataclass(frozen=True, eq=False)
class Reference:
    """The memory without KSM and khugepaged at the same moment; see the module.

    Attributes
    ----------
    ideal
        Redundant frames of mergeable memory at the end: the ideal saving.
    rows
        Samples of its run, with the columns time_ns, frames and huge_pmds.
    """

    ideal: int
    rows: np.ndarray

    @classmethod
    def of(cls, scenario: Scenario) -> Self:
        """Simulate the reference up to the scenario's `horizon_seconds`."""
        run = baseline(scenario.replace(sample_limit=100))
        return cls(redundant(run.machine), np.array(run.rows[["time_ns", "frames", "huge_pmds"]]))

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
        last, frames, thps = run.rows[-1], int(self.rows["frames"][-1]), int(self.rows["huge_pmds"][-1])
        values = {
            "saved": 100 * (1 - redundant(run.machine) / self.ideal) if self.ideal else None,
            "saved_mib": (frames - int(last["frames"])) / PAGES_PER_MIB,
            "thps_lost": 100 * max(0, thps - int(last["huge_pmds"])) / max(1, thps),
            "ksmd_cpu": run.metrics.ksmd_cpu_percent,
            "khugepaged_cpu": 1e8 * run.metrics.khugepaged_cpu_ms / max(1, int(last["time_ns"])),
            **run.metrics.as_dict(),
        }
        return {name: math.nan if v is None else float(v) for name, v in values.items()}


def redundant(m: Machine) -> int:
    """Return the number of frames that only mergeable entries map and that the contents do not need; see the module."""
    mapped = m.pte["kind"] == ANON
    may = mapped & ((m.pte["vm"] & VM_MERGEABLE) > 0)
    may &= ~np.isin(m.page["frame"], m.page["frame"][mapped & ~may])
    owner = np.searchsorted(m.mm["base"], np.arange(len(m.page)), side="right") - 1
    by_zeropage = (m.page["key"] == 0) & (m.mm["forbids_zeropages"][owner] == 0)
    node = m.mm["nid"][owner] * (1 - m.state[0]["merge_across_nodes"])
    pages = pd.DataFrame({"node": node, "key": m.page["key"], "frame": m.page["frame"]})
    others = pages[may & ~by_zeropage]
    entries, frames = (part.groupby(["node", "key"]).size() for part in (others, others.drop_duplicates("frame")))
    needed = -(-entries // m.state[0]["max_page_sharing"])
    return int(pages["frame"][may & by_zeropage].nunique() + (frames - needed).clip(lower=0).sum())


def listed(given: Any) -> Any:
    """Return a single value as a list."""
    return given if isinstance(given, list | tuple) else [given]


class Goals(Filed):
    """A workload, limits on its measures, and what a search may change; see `mmlab.studies.tune.tune`.

    Attributes
    ----------
    workload
        The processes and everything beside ksmd: a scenario, parameters, or the name of a params file.
    limits
        What must hold at the end; the key is `goals`, each as in "saved >= 90 %".
    within
        How long ksmd has, in s or with a unit: "30 min". Default: the workload's `horizon_seconds`.
    variant
        The kernel variant. Default: the workload's.
    minimise
        The cost: the measure to make least. Default: ksmd's CPU time.
    by
        Who may set the pace: "fixed" (pages_to_scan), "advisor", or a tuner: "ksmtuned", "proxmox", "kubevirt", "mom",
        "kata". Default: any of the first three.
    levels
        {knob: values to choose from} instead of `mmlab.studies.settings.LEVELS`; one value fixes the knob.
    set
        Changes to the workload's parameters.
    simulate_mib
        Memory in which a larger workload is simulated (MiB); see `mmlab.studies.fleet.shrunk`.

    Raises
    ------
    UserError
        Something is unknown or out of range, or the workload's events wait for ksmd.
    """

    model_config = ConfigDict(strict=False)  # a tuple is as good as a list

    workload: Annotated[Scenario, BeforeValidator(beside)]
    limits: list[Annotated[Limit, BeforeValidator(Limit.parse)]] = Field(alias="goals", min_length=1)
    within: Annotated[float | None, BeforeValidator(seconds)] = None
    variant: str | None = None
    minimise: Annotated[str, AfterValidator(measure)] = "ksmd_cpu"
    by: tuple[Pace, ...] = ("fixed", "advisor", "ksmtuned")
    levels: dict[str, Annotated[list[int], BeforeValidator(listed), Field(min_length=1)]] = Field({})
    set: dict[str, Any] = Field({})
    simulate_mib: Annotated[float, Field(gt=0)] | None = Field(None, description="(MiB)")

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a goals file, or a params file that becomes the workload of the goals among the overrides.

        A goals file has the attributes of this class as its keys. An override that is not empty replaces the file's
        value; `set` and `levels` are added to it.

        Raises
        ------
        UserError
            The file cannot be read or says something that is not allowed; `where` is its path.
        """
        shipped = params_files() | params_files("goals")
        path = shipped.get(str(path), Path(path))
        if not path.is_file():
            raise unknown("workload", str(path), shipped, "Name a params file, a goals file, or one of params/.")
        with located(path):
            values = read_yaml(path)
            if not {"goals", "workload"} & values.keys():
                values = {"workload": values}
            given = {key: value for key, value in overrides.items() if value}
            values |= {k: {**(values.get(k) or {}), **v} if isinstance(v, dict) else v for k, v in given.items()}
            return cls(**values, folder=path.parent)

    @cached_property
    def scenario(self) -> Scenario:
        """The workload with its changes. It lasts `within`; ksmd runs from the start unless the workload starts it."""
        own, fixed = self.workload, {**BY_THE_CLOCK, "variant": self.variant or self.workload.variant}
        starts = own.sets("run") or own.ksm_start_seconds
        fixed["horizon_seconds"] = self.within or own.horizon_seconds
        return own.replace(**_ALONE | {"run": own.run if starts else 1} | self.set | fixed)

    def model_post_init(self, _: Any) -> None:
        """Check the workload with its changes, and the levels."""
        if not (self.within or self.workload.horizon_seconds):
            raise UserError("is missing", parameter="within", hint='Say how long it may take, such as "30 min".')
        resolve(self.scenario.variant)
        check_levels(self.levels)
        if any(event.after.seconds is None for event in self.scenario.events):
            problem = "they wait for a batch or a full scan, so another setting would be another workload"
            raise UserError(problem, parameter="events", hint="Say after: {seconds: …} instead.")
