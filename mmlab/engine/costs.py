"""What ksmd's and khugepaged's steps cost, in ns of their CPU time, and how far figures in seconds can be trusted.

The model counts steps (`mmlab.kernel.state`); a cost set turns them into simulated time. Costs never change what
happens, only when: the order of batches and events stays the same unless an event is tied to seconds.

A cost set is a YAML file: those of `mmlab/cost_sets/` are known by their names, any other by its path. `mmlab
calibrate` writes them; what a file says beside `ns` is what `CostSet` holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.errors import UserError, unknown
from mmlab.params import read_yaml

__all__ = ["STEPS", "CostSet", "cost_set", "cost_sets", "cost_table", "describe_accuracy"]

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
            raise unknown("key", key, known)
    ns, estimated, error = values.get("ns"), values.get("estimated", []), values.get("error", 0)
    if not isinstance(ns, dict):
        raise UserError(f"ns = {ns!r}: it must give the cost of every step: {', '.join(STEPS)}")
    for step in ns:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
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


def describe_accuracy(name: str) -> str:
    """How far figures in seconds and MB/s can be trusted, in a sentence.

    >>> describe_accuracy("free")
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
