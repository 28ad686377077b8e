"""Which of two runs is better in which metric, and when a run is done; without pandas, which the explorer spares."""

from collections.abc import Mapping
from math import isclose

import numpy as np

from mmlab.results.metrics import METRICS
from mmlab.results.run import Run
from mmlab.scenario import Scenario, flat_fields


def same_task(first: Scenario, second: Scenario) -> bool:
    """Return whether both have the same memory to work on and the same end, so that amounts can be compared."""
    names = [n for n, field in flat_fields().items() if field.kind in ("workload", "horizon")]
    apart = {"name", "sample_limit"}  # these two change nothing
    return all(getattr(first, n) == getattr(second, n) for n in (*names, "process_list") if n not in apart)


def better(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return which of two runs has the better value of each metric.

    Parameters
    ----------
    runs : mapping
        Label → run, two of them.

    Returns
    -------
    dict
        Metric → the label of the better run, ``equal`` (within 1 %), or blank where that is not clear
        (`Metric.better`; amounts only for the :func:`same_task`).
    """
    (one, first), (other, second) = runs.items()
    comparable = same_task(first.scenario, second.scenario)

    def judge(name: str) -> str:
        metric, x, y = METRICS[name], getattr(first.metrics, name), getattr(second.metrics, name)
        if not metric.better or x is None or y is None or not (comparable or metric.relative):
            return ""
        x, y = (value if metric.good_enough is None else max(value, metric.good_enough) for value in (x, y))
        if isclose(x, y, rel_tol=0.01, abs_tol=0.005):
            return "equal"
        return other if (y > x) == (metric.better == "more") else one

    return {name: judge(name) for name in METRICS}


def given_back(run: Run) -> int | None:
    """Return the sample at which 99 % of what a run frees has been freed; None if it frees nothing."""
    freed = run.rows["frames"][0] - run.rows["frames"]
    return int(np.argmax(freed >= 0.99 * freed[-1])) if freed[-1] > 0 else None
