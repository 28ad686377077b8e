"""Costs: what the steps of ksmd and khugepaged cost, in ns of CPU time, and how far figures in seconds can be trusted.

The model counts steps (`mmlab.kernel.state`); a cost set turns them into simulated time. Costs never change what
happens, only when: the order of batches and events stays the same unless an event is tied to seconds.

A cost set is a YAML file: those of `mmlab/cost_sets/` are known by their names, any other by its path. `mmlab
calibrate` writes them, or you do: mmlab/spec/costs.md says what is in one, with an example.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.errors import UserError, located, unknown
from mmlab.params import read_yaml
from mmlab.scenario import Scenario

STEPS: dict[str, str] = {
    "visit": "visit and checksum of a small page",
    "visit_thp": "visit and checksum of a page of a large folio",
    "visit_ksm": "visit of a KSM page",
    "skip": "page skipped by smart scan",
    "pass_over": "entry passed over (zeropage, hole)",
    "tree_level": "one level of a search in the unstable tree",
    "tree_cold": "extra cost of a level below the first 2^10 nodes",
    "dup_walk": "KSM page that the walk of a chain of equal ones looks at",
    "merge": "item attached to a KSM page",
    "merge_zero": "page replaced by the shared zeropage",
    "split": "folio that is split",
    "split_page": "each page of a folio that is split",
    "remap": "extra cost of a page remapped to the shared zeropage",
    "end_of_pass": "end of a full scan, and LRU drain of the next one",
    "wake_up": "start of a batch",
    "stable_level": "one level of a search in the stable tree",
    "khugepaged_pte": "khugepaged looks at an entry",
    "khugepaged_copy": "khugepaged copies or clears a page of a collapse",
    "merge_running_owner": "item attached to a KSM page whose owner runs on another CPU",
    "compare_kib": "1,024 bytes in which two different pages are equal, at a level of a search",
}
"""Name and meaning of each step, in the order of the model's counters. The model does not count the last two: they are
part of a merge and of a level (`CostSet.of`)."""
ADDED: dict[str, float] = {"stable_level": 110, "merge_running_owner": 5000, "compare_kib": 60}
"""Estimates, ns, of the steps that a file may leave out; each is its own standard error."""

FREE = "free"
"""The cost set that lets time pass in ksmd's sleeps only."""

_SETS = Path(__file__).parents[1] / "cost_sets"
_TEXTS = ("machine", "kernel", "date", "recording")


@dataclass(frozen=True, eq=False)
class CostSet:
    """What steps cost on one machine.

    Attributes
    ----------
    ns
        float64[len(STEPS)]: ns a step.
    estimated
        Steps that the recording does not determine. The standard error of each is its whole cost, unless the file gives
        one: it then was measured elsewhere.
    covariance
        float64[len(STEPS), len(STEPS)]: of the costs, ns².
    error
        Relative standard error of the CPU time of a scenario that was not measured; 0: not known.
    about
        Origin: machine, kernel, date, recording, and how well it predicts (`leave_one_out`).
    """

    ns: np.ndarray
    estimated: tuple[str, ...] = ()
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((len(STEPS), len(STEPS))))
    error: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> np.ndarray:
        """int64[len(STEPS)]: whole ns a step, as the model takes them."""
        return self.ns.round().astype(np.int64)

    def of(self, scenario: Scenario) -> CostSet:
        """Return the costs in a scenario: by its cost_factor and the `parts` of its steps."""
        part = scenario.cost_factor * parts(scenario)
        return replace(self, ns=part @ self.ns, covariance=part @ self.covariance @ part.T)


def parts(scenario: Scenario) -> np.ndarray:
    """Return float64[len(STEPS), len(STEPS)]: how much of each step (column) there is in each counted one (row).

    >>> part = parts(Scenario(owner_running_fraction=0.25, equal_bytes=64))
    >>> names = list(STEPS)
    >>> [float(part[names.index("merge"), names.index(step)]) for step in ("merge", "merge_running_owner")]
    [0.75, 0.25]
    """
    part, at = np.eye(len(STEPS)), {step: i for i, step in enumerate(STEPS)}
    running = scenario.owner_running_fraction
    for step in ("merge", "merge_zero"):  # the one as well as the other has to flush the owner's TLB
        part[at[step], at["merge_running_owner"]] += running
        part[at[step], at["merge"]] -= running
    part[[at["tree_level"], at["stable_level"]], at["compare_kib"]] = scenario.equal_bytes / 1024
    return part


def cost_sets() -> list[str]:
    """Return the names of the cost sets that ship with mmlab.

    >>> cost_sets()
    ['epyc-6.18', 'free']
    """
    return [*sorted(path.name.removesuffix(".yaml") for path in _SETS.glob("*.yaml")), FREE]


def cost_set(name: str) -> CostSet:
    """Return a cost set by its name, or by the path of its file, which ends in .yaml.

    Raises
    ------
    UserError
        There is no such cost set, or its file says something that is not allowed.
    """
    if name == FREE:
        return CostSet(np.zeros(len(STEPS)))
    own = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else _SETS / f"{name}.yaml"
    if not own and not path.is_file():
        raise unknown("cost set", name, cost_sets(), "A file that `mmlab calibrate` wrote ends in .yaml.")
    return _read(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=16)
def _read(path: Path, mtime_ns: int) -> CostSet:  # noqa: ARG001  a file that has changed is read again
    values = read_yaml(path)
    with located(path):
        return _checked(values)


def _checked(values: dict[str, Any]) -> CostSet:
    """Return a cost set from the values of its file."""
    known = ("ns", "estimated", "covariance", "error", "leave_one_out", *_TEXTS)
    ns, estimated, error = values.get("ns"), values.get("estimated", []), values.get("error", 0)
    if not isinstance(ns, dict):
        raise UserError(parameter="ns", value=ns, allowed=f"the cost of every step: {', '.join(STEPS)}")
    for what, names, allowed in (("key", values, known), ("step", ns, tuple(STEPS))):
        for name in (name for name in names if name not in allowed):
            raise unknown(what, name, allowed)
    if not isinstance(estimated, list | dict) or not set(estimated) <= set(STEPS):
        raise UserError(parameter="estimated", value=estimated, allowed=f"a list of steps: {', '.join(STEPS)}")
    either = {"stable_level": ns["tree_level"]} if "tree_level" in ns else {}  # once one step
    added = {step: estimate for step, estimate in (ADDED | either).items() if step not in ns}
    ns = ns | added
    if isinstance(estimated, list):
        estimated = {step: ns.get(step) for step in estimated}
    own: dict[str, Any] = estimated | added
    numbers: list[tuple[str, Any, float, str]] = [(step, ns.get(step), 1e12, "ns") for step in STEPS]
    numbers += [("error", error, 1, ""), *((step, value, 1e12, "estimated") for step, value in own.items())]
    for name, value, most, where in numbers:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
            unit = "(ns)" if where else "(a relative standard error)"
            raise UserError(parameter=name, value=value, allowed=f"0 … {most:g} {unit}", where=where)
    covariance = np.diag([float(own.get(step, 0)) ** 2 for step in STEPS])
    if "covariance" in values:
        measured = [i for i, step in enumerate(STEPS) if step not in own]
        size = len(measured)
        try:
            covariance[np.ix_(measured, measured)] = given = np.array(values["covariance"], np.float64)
        except (ValueError, TypeError):
            given = np.zeros(0)
        if given.shape != (size, size) or not np.isfinite(given).all():
            rows = f"{size} rows of {size} numbers, one for each step that is not in estimated"
            raise UserError(parameter="covariance", value=values["covariance"], allowed=rows)
    about = {key: values[key] for key in (*_TEXTS, "leave_one_out") if key in values}
    return CostSet(np.array([float(ns[step]) for step in STEPS]), tuple(own), covariance, float(error), about)


def describe_accuracy(name: str) -> str:
    """Return how far figures in seconds and MiB/s can be trusted, as a sentence.

    >>> describe_accuracy("free")
    "ksmd's steps cost nothing: time passes in its sleeps only."
    """
    found = cost_set(name)
    if not found.ns.any():
        return "ksmd's steps cost nothing: time passes in its sleeps only."
    tested = found.about.get("leave_one_out", {})
    known = (
        f"predicts the CPU time of {tested['scenarios']} recorded scenarios within {tested['median_error']:.0%} "
        f"(median), each time fitted to the others alone; its standard error is {found.error:.1%}"
        if tested
        else "does not say how well it predicts"
    )
    rest = "ksmd sleeps until a timer tick, so most times and rates err far less."
    return f"What ksmd's steps cost is the cost set {name}, which {known}. {rest}"
