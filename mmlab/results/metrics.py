"""Metrics: what is measured in a run, one function each.

A metric is a function of an `Outcome` under the decorator `metric`; nothing else is needed to add one. Its docstring is
its meaning, its return annotation the type of its column in sweeps, and the decorator says the rest. Where it is the
value of a counter at the end, a line with `counter` will do.

Units: memory in MiB, time in seconds of simulated time, rates in MiB/s (15,360 pages/s are 60 MiB/s).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np

from mmlab.engine.outcome import Outcome
from mmlab.kernel.state import ANON, FIRST, LAST, MERGE, MERGE_ZERO, SETTLED, SPLIT_PAGE
from mmlab.results.baseline import born

PAGES_PER_MIB = 256

Value = int | float | None
Better = Literal["more", "less"] | None
Function = TypeVar("Function", bound=Callable[[Outcome], Value])


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    measure
        The function: measures an outcome.
    unit
        Its unit; "" for a plain number.
    better
        Which end is clearly better, all else equal. None where that depends on what one wants: THPs left are fast
        memory or wasted memory, a high rate is quick help or a limit bypassed, and who frees nothing hides nothing.
    relative
        Comparable between runs of different memory or length.
    good_enough
        What is below this is not better than this.
    costs_move
        Depends on what steps cost, and so has a standard error.
    """

    measure: Callable[[Outcome], Value]
    unit: str = ""
    better: Better = None
    relative: bool = False
    good_enough: float | None = None
    costs_move: bool = False

    @property
    def meaning(self) -> str:
        """The docstring on one line."""
        return " ".join((self.measure.__doc__ or "").split()).removesuffix(".")

    @property
    def kind(self) -> type:
        """The type of its values where there are any: int or float."""
        hint = get_type_hints(self.measure)["return"]
        return int if int in (hint, *get_args(hint)) else float


METRICS: dict[str, Metric] = {}
"""Every metric by its name, in the order in which tables show them."""


def metric(unit: str = "", **more: Any) -> Callable[[Function], Function]:
    """Make a metric of a function; see `Metric` for the parameters."""

    def register(measure: Function) -> Function:
        METRICS[measure.__name__] = Metric(measure, unit, **more)
        return measure

    return register


def counter(name: str, unit: str, meaning: str, of: str = "", per: int = 0, **more: Any) -> None:
    """Make a metric of the value at the end of a counter, of its name if not `of` another one; `per`: divided by it."""

    def measure(o: Outcome) -> Any:
        value = int(o.rows[-1][of or name])
        return value / per if per else value

    measure.__name__, measure.__doc__ = name, meaning
    measure.__annotations__["return"] = float if per else int
    metric(unit, **more)(measure)


class Metrics:
    """The metrics of one run as attributes, each measured when it is first asked for.

    Two are equal when all their values are. `describe()` gives each metric's unit and meaning.
    """

    def __init__(self, outcome: Outcome, known: dict[str, Value]) -> None:
        self._outcome, self._known = outcome, known

    def __getattr__(self, name: str) -> Any:
        if name not in METRICS:
            raise AttributeError(f"there is no metric {name!r}")
        if name not in self._known:
            self._known[name] = METRICS[name].measure(self._outcome)
        return self._known[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *METRICS]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metrics) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, Value]:
        """Return all values by name."""
        return {name: getattr(self, name) for name in METRICS}

    @staticmethod
    def describe() -> dict[str, tuple[str, str]]:
        """Return {name: (unit, meaning)}."""
        return {name: (metric.unit, metric.meaning) for name, metric in METRICS.items()}


# --- rates ----------------------------------------------------------------------------------------------------------


def _ksm_pages(row: np.void) -> int:
    return int(row["pages_sharing"] + row["ksm_zero_pages"])


def _settled(o: Outcome) -> np.void | None:
    """Return the state at the end of the full scan in which the run settled; None if something has changed since."""
    settled, end, last, steps = o.machine.passes[SETTLED], o.machine.passes[LAST], o.rows[-1], o.machine.steps
    work = steps[MERGE] + steps[MERGE_ZERO] + steps[SPLIT_PAGE] + last["changed_checksums"]
    same = end[["frames", "ksm_pages", "work"]].item() == (last["frames"], _ksm_pages(last), work)
    return settled if same and settled["full_scan"] else None


def _growth(o: Outcome) -> tuple[float, int, int] | None:
    """Return seconds, and by how much KSM's pages and the frames grew, from the end of full scan 1 until settled.

    Until the end where the run did not settle; None where there was no full scan. Frames that the baseline has more
    are not counted.
    """
    first, last, settled = o.machine.passes[FIRST], o.rows[-1], _settled(o)
    more, at_first, at_settled = born(o)
    end = (last["time_ns"], _ksm_pages(last), last["frames"] - more[-1])
    if settled is not None:
        end = (settled["time_ns"], settled["ksm_pages"], settled["frames"] - at_settled)
    seconds = float(end[0] - first["time_ns"]) / 1e9
    if seconds <= 0 or not first["full_scan"]:
        return None
    return seconds, int(end[1] - first["ksm_pages"]), int(end[2] - first["frames"] + at_first)


@metric("MiB/s", costs_move=True)
def merge_rate(o: Outcome) -> float | None:
    """Growth of pages_sharing + ksm_zero_pages, from the end of full scan 1 until settled (or the end)."""
    growth = _growth(o)
    return growth and growth[1] / PAGES_PER_MIB / growth[0]


@metric("MiB/s", costs_move=True)
def freed_rate(o: Outcome) -> float | None:
    """Frames freed (as in freed_mib), from the end of full scan 1 until settled (or the end)."""
    growth = _growth(o)
    return growth and (0 - growth[2]) / PAGES_PER_MIB / growth[0]


# --- memory ---------------------------------------------------------------------------------------------------------


def _freed(o: Outcome) -> int:
    return int(o.rows[0]["frames"] - o.rows[-1]["frames"] + born(o)[0][-1])


@metric("MiB", better="more")
def freed_mib(o: Outcome) -> float:
    """Memory freed from the start to the end, in frames. Where memory is born, dies or is swapped meanwhile: how much
    less is in use than in the same scenario without KSM and khugepaged, where no split remaps."""
    return _freed(o) / PAGES_PER_MIB


@metric("pages")
def freed_unseen_pages(o: Outcome) -> int:
    """Frames freed (as in freed_mib) that pages_sharing and ksm_zero_pages do not show."""
    return max(0, _freed(o) - _ksm_pages(o.rows[-1]) + _ksm_pages(o.rows[0]))


@metric("pages")
def most_freed_by_batch(o: Outcome) -> int:
    """Most frames that one batch freed."""
    return o.most_freed_by_batch


@metric(better="less", relative=True, good_enough=1.0)
def most_freed_per_budget(o: Outcome) -> float:
    """Most frames that one batch freed over the largest pages_to_scan: above 1 the rate limit was bypassed."""
    budget = int(o.rows["pages_to_scan"].max())
    return o.most_freed_by_batch / budget if budget else 0.0


# --- ksmd -----------------------------------------------------------------------------------------------------------


@metric("%", better="less", relative=True)
def wasted_visits_share(o: Outcome) -> float:
    """Visits whose search of the unstable tree ended on a dead node."""
    return 100 * float(o.rows[-1]["wasted_visits"]) / max(1, int(o.rows[-1]["pages_scanned"]))


counter("ksmd_cpu_ms", "ms", "CPU time of ksmd.", of="ksmd_cpu_ns", per=10**6, costs_move=True)


@metric("%", better="less", relative=True, costs_move=True)
def ksmd_cpu_percent(o: Outcome) -> float:
    """CPU time of ksmd over simulated time."""
    return 100 * float(o.rows[-1]["ksmd_cpu_ns"]) / max(1, int(o.rows[-1]["time_ns"]))


# --- THPs and zero-filled pages -------------------------------------------------------------------------------------


counter("thps_left", "THPs", "Huge pages mapped by a huge PMD at the end.", of="huge_pmds")
counter("thps_split", "THPs", "THPs split: thp_split_page.", of="thp_split_page")
counter("failed_splits", "", "Splits that failed: thp_split_page_failed.", of="thp_split_page_failed", better="less")


@metric("pages", better="less")
def zero_pages_left(o: Outcome) -> int:
    """Zero-filled pages that still have frames at the end."""
    m = o.machine
    zero = np.zeros(len(m.frame), bool)
    zero[m.page["frame"][(m.pte["kind"] == ANON) & (m.page["key"] == 0)]] = True
    return int(zero.sum())


# --- progress -------------------------------------------------------------------------------------------------------


@metric("full scans")
def full_scans(o: Outcome) -> int:
    """Full scans completed until the end."""
    return int(o.machine.passes[LAST]["full_scan"])


@metric("s", better="less", costs_move=True)
def settled_s(o: Outcome) -> float | None:
    """End of the first full scan in which smart scan skipped nothing, nothing was merged, split or freed and no
    checksum changed, with no later change; none: not settled."""
    settled = _settled(o)
    return None if settled is None else float(settled["time_ns"]) / 1e9


@metric("full scans", better="less")
def settled_full_scans(o: Outcome) -> int | None:
    """Number of the full scan in which the run settled; none: not settled."""
    settled = _settled(o)
    return None if settled is None else int(settled["full_scan"])


def _hours(o: Outcome) -> float:
    return max(1, int(o.rows[-1]["time_ns"])) / 3.6e12


@metric("THPs/h", costs_move=True)
def thps_split_per_hour(o: Outcome) -> float:
    """THPs split (thp_split_page) over simulated time."""
    return int(o.rows[-1]["thp_split_page"]) / _hours(o)


@metric("THPs/h", costs_move=True)
def collapses_per_hour(o: Outcome) -> float:
    """THPs collapsed (pages_collapsed) over simulated time."""
    return int(o.rows[-1]["pages_collapsed"]) / _hours(o)


counter("pages_collapsed", "THPs", "Ranges that khugepaged collapsed.")


@metric("MiB")
def memory_swing_mib(o: Outcome) -> float | None:
    """Most frames less fewest frames, from the end of full scan 1 to the end; none: no full scan."""
    return o.frames_range and (o.frames_range[1] - o.frames_range[0]) / PAGES_PER_MIB


@metric("ms", better="less", costs_move=True)
def khugepaged_cpu_ms(o: Outcome) -> float:
    """CPU time of khugepaged, by estimated costs."""
    return float(o.rows[-1]["khugepaged_cpu_ns"]) / 1e6


@metric("THPs/MiB", better="less", relative=True)
def thps_lost_per_mib(o: Outcome) -> float | None:
    """THPs split (thp_split_page) over the MiB that pages_sharing and ksm_zero_pages show at the end; none: no MiB."""
    pages = _ksm_pages(o.rows[-1])
    return int(o.rows[-1]["thp_split_page"]) * PAGES_PER_MIB / pages if pages else None


counter("zeropages_by_ksm", "pages", "Entries remapped to the zeropage by splits that ksmd asked for.")
counter("zeropages_by_shrinker", "pages", "Entries remapped to the zeropage by splits that the shrinker asked for.")
counter("zeropages_by_other", "pages", "Entries remapped to the zeropage by all other splits.")
counter("swapped_out_mib", "MiB", "Memory written to the swap area (pswpout).", of="pswpout", per=PAGES_PER_MIB)


@metric("THPs/GiB", relative=True)
def thps_split_per_gib_scanned(o: Outcome) -> float | None:
    """THPs split (thp_split_page) over the GiB of pages that ksmd scanned; none: it scanned nothing."""
    last = o.rows[-1]
    return int(last["thp_split_page"]) * 2**18 / int(last["pages_scanned"]) if last["pages_scanned"] else None


UNSURE = tuple(name for name, metric in METRICS.items() if metric.costs_move)
"""Metrics that depend on what steps cost: those that have standard errors."""
