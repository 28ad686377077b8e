"""Two runs beside each other: in which parameters they differ, what that does to the metrics, and which is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isclose, isnan

import pandas as pd

from mmlab.results.metrics import METRICS
from mmlab.results.run import Run
from mmlab.scenario import Scenario, Set, flat_fields

__all__ = ["metrics", "parameters", "same_task"]


def parameters(first: Scenario, second: Scenario) -> pd.DataFrame:
    """Return the parameters that differ: index the name, columns unit, first, second (in words).

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
    """Return whether both have the same memory to work on and the same end, so that amounts can be compared."""
    names = [n for n, field in flat_fields().items() if field.kind in ("workload", "horizon")]
    apart = {"name", "sample_limit"}  # these two change nothing
    return all(getattr(first, n) == getattr(second, n) for n in (*names, "process_list") if n not in apart)


def metrics(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Compare the metrics of two runs, without those that are 0 or missing in both.

    Parameters
    ----------
    runs : mapping
        Label → run, two of them.

    Returns
    -------
    DataFrame
        Index the metric; columns unit, the two labels, ``difference`` (second less first), and ``better``: the label of
        the better run, ``equal`` (within 1 %), or blank where that is not clear (`Metric.better`; amounts only for the
        :func:`same_task`). What is missing is not a number.
    """
    (one, first), (other, second) = runs.items()
    comparable = same_task(first.scenario, second.scenario)
    a, b = (run.metrics.as_dict() for run in (first, second))
    names = [name for name in METRICS if a[name] or b[name]]
    table = pd.DataFrame(
        {"unit": [METRICS[n].unit for n in names], one: [a[n] for n in names], other: [b[n] for n in names]},
        index=pd.Index(names, name="metric"),
    ).astype({one: float, other: float})
    table["difference"] = table[other] - table[one]

    def better(name: str, *values: float) -> str:
        metric = METRICS[name]
        x, y = (value if metric.good_enough is None else max(value, metric.good_enough) for value in values)
        if not metric.better or isnan(x + y) or not (comparable or metric.relative):
            return ""
        if isclose(x, y, rel_tol=0.01, abs_tol=0.005):
            return "equal"
        return other if (y > x) == (metric.better == "more") else one

    table["better"] = [better(*row) for row in zip(names, table[one], table[other], strict=True)]
    return table
