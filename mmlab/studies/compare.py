"""Two runs beside each other: in which parameters they differ, what that does to the metrics, and which is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import isclose, isnan

import pandas as pd

from mmlab.results.run import Metrics, Run
from mmlab.scenario import Scenario, Set, flat_fields

__all__ = ["metrics", "parameters", "same_task"]

BETTER = {
    "freed_mib": "more",
    "most_freed_per_budget": "less",
    "wasted_visits_share": "less",
    "ksmd_cpu_percent": "less",
    "failed_splits": "less",
    "zero_pages_left": "less",
    "settled_s": "less",
    "settled_full_scans": "less",
    "khugepaged_cpu_ms": "less",
    "thps_lost_per_mib": "less",
}
"""Metrics of which it is clear what is better, all else equal. Of the others it depends on what one wants: THPs left
are fast memory or wasted memory, a high rate is quick help or a limit bypassed, and who frees nothing hides nothing."""
PER_SOMETHING = {"most_freed_per_budget", "wasted_visits_share", "ksmd_cpu_percent", "thps_lost_per_mib"}
"""… and that can be compared whatever the memory and the length of the runs."""
GOOD_ENOUGH = {"most_freed_per_budget": 1.0}
"""What is below this is not better than this: a batch that stays within its budget does."""


def parameters(first: Scenario, second: Scenario) -> pd.DataFrame:
    """Parameters that are not equal: index the name, columns unit, first, second (in words).

    Lists of processes and of events are one row each. The free text ``name`` is no difference.

    Examples
    --------
    >>> parameters(Scenario(), Scenario(use_zero_pages=1, memory_mib=64))["second"].to_dict()
    {'use_zero_pages': '1', 'memory_mib': '64'}
    """
    units = {name: field.unit for name, field in flat_fields().items()}
    names = [n for n in Scenario.model_fields if n != "name" and getattr(first, n) != getattr(second, n)]
    rows = [(units.get(n, ""), _words(first, n), _words(second, n)) for n in names]
    return pd.DataFrame(rows, columns=["unit", "first", "second"], index=pd.Index(names, name="parameter"))


def _words(scenario: Scenario, name: str) -> str:
    if name == "process_list":
        count = len(scenario.process_list)
        return f"{count} process{'es' * (count > 1)}" if count else "none"
    if name == "events":
        counts = Counter(f"set {e.knob}" if isinstance(e, Set) else e.op for e in scenario.events)
        return ", ".join(f"{n} × {op}" if n > 1 else op for op, n in counts.items()) or "none"
    value = getattr(scenario, name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def same_task(first: Scenario, second: Scenario) -> bool:
    """Whether both have the same memory to work on and the same end, so that amounts can be compared."""
    names = [n for n, field in flat_fields().items() if field.kind in ("workload", "horizon")]
    apart = {"name", "sample_limit"}  # these two change nothing
    return all(getattr(first, n) == getattr(second, n) for n in (*names, "process_list") if n not in apart)


def metrics(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What two runs come to, without the metrics that are 0 or missing in both.

    Parameters
    ----------
    runs : mapping
        Label → run, two of them.

    Returns
    -------
    DataFrame
        Index the metric; columns unit, the two labels, ``difference`` (second less first), and ``better``: the label of
        the better run, ``equal`` (within 1 %), or blank where that is not clear (:data:`BETTER`; amounts only for the
        :func:`same_task`). What is missing is not a number.
    """
    (one, first), (other, second) = runs.items()
    comparable = same_task(first.scenario, second.scenario)
    a, b = (asdict(run.metrics) for run in (first, second))
    units = {name: unit for name, (unit, _) in Metrics.describe().items()}
    names = [name for name in units if a[name] or b[name]]
    table = pd.DataFrame(
        {"unit": [units[n] for n in names], one: [a[n] for n in names], other: [b[n] for n in names]},
        index=pd.Index(names, name="metric"),
    ).astype({one: float, other: float})
    table["difference"] = table[other] - table[one]

    def better(name: str, *values: float) -> str:
        x, y = (max(value, GOOD_ENOUGH.get(name, value)) for value in values)
        if name not in BETTER or isnan(x + y) or not (comparable or name in PER_SOMETHING):
            return ""
        return (
            "equal"
            if isclose(x, y, rel_tol=0.01, abs_tol=0.005)
            else other
            if (y > x) == (BETTER[name] == "more")
            else one
        )

    table["better"] = [better(*row) for row in zip(names, table[one], table[other], strict=True)]
    return table
