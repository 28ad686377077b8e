"""Runs beside each other: what memory does, what a batch frees, what KSM's counters show; and for two of them, in which
parameters and metrics they differ, and which is better."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mmlab.figures import figures
from mmlab.results.metrics import METRICS
from mmlab.results.run import Run
from mmlab.scenario import Scenario, Set, flat_fields
from mmlab.studies.judge import better, same_task
from mmlab.studies.runs import measured
from mmlab.studies.study import Answer


def changed(runs: Mapping[str, Run]) -> Answer:
    """Study in which parameters two runs differ: their units and values in words.

    Lists of processes and of events are one row each. The free text ``name`` is no difference.
    """
    first, second = (run.scenario for run in runs.values())
    names = [n for n in Scenario.model_fields if n != "name" and getattr(first, n) != getattr(second, n)]
    units = {name: field.unit for name, field in flat_fields().items()}
    rows = [(units.get(n, ""), _words(first, n), _words(second, n)) for n in names]
    table = pd.DataFrame(rows, pd.Index(names, name="parameter"), ["unit", *runs])
    words = f"They differ in {', '.join(f'`{name}`' for name in table.index)}." if len(table) else "They are the same."
    if not same_task(first, second):
        words += " Memory or end are not the same: amounts are shown, but not judged."
    return Answer(table, words, title=f"{len(table)} of {len(Scenario.model_fields)} parameters differ")


def memory(runs: Mapping[str, Run]) -> Answer:
    """Study what the memory of each run is made of, over time."""
    found = _drawn(runs, partial(figures.side_by_side, figures.memory), "memory")
    return found.found(f"In the end: {found.finding}.")


def batches(runs: Mapping[str, Run]) -> Answer:
    """Study whether `pages_to_scan` bounds what one batch frees."""
    found = _drawn(runs, figures.batches, "batches")
    holds = "Holds" if found.data.iloc[:, 1].max() <= 1 else "Does not hold"
    return found.found(f"{holds}: a batch frees at most `pages_to_scan` pages ({found.finding})")


def counters(runs: Mapping[str, Run]) -> Answer:
    """Study whether KSM's counters show what was freed."""
    found = _drawn(runs, figures.counters, "counters")
    holds = "Does not hold" if found.data.iloc[:, 1].any() else "Holds"
    return found.found(f"{holds}: KSM counts what is freed ({found.finding})")


def _drawn(runs: Mapping[str, Run], draw: Callable[..., Any], columns: str) -> Answer:
    """Measure runs, and draw them up to the last change of memory."""
    found = measured(runs, columns, "run")
    short = found.data.rename(index=lambda label: label.split()[0])
    words = (f"{what}: {', '.join(f'{x:,.4g} {label}' for label, x in short[what].items())}" for what in short)
    return found.found("; ".join(words), draw(runs, until=figures.end_of_changes(runs.values())))


def judged(runs: Mapping[str, Run], *, whole: bool) -> Answer:
    """Study in which metrics two runs differ and which is better: in counts (`whole`), or in amounts, rates and shares.

    The error of a difference is taken as if its two numbers erred independently; as they share ksmd's costs, it is
    mostly less.
    """
    table = metrics(runs)
    table = table[[(METRICS[name].kind is int) == whole for name in table.index]]
    errors = pd.DataFrame({label: run.uncertainty for label, run in runs.items()}).reindex(table.index).fillna(0.0)
    errors["difference"] = np.hypot(*(errors[label] for label in runs)).where(table["difference"] != 0)
    wins = (f"{label} in {', '.join(table.index[table['better'] == label]) or 'nothing'}" for label in runs)
    title, digits = ("Counts", 0) if whole else ("Amounts, rates and shares", 2)
    return Answer(table, f"Better {title.lower()}: {'; '.join(wins)}.", title=title, errors=errors, digits=digits)


def _words(scenario: Scenario, name: str) -> str:
    if name == "process_list":
        count = len(scenario.process_list)
        return f"{count} process{'es' * (count > 1)}" if count else "none"
    if name == "events":
        counts = Counter(f"set {e.knob}" if isinstance(e, Set) else e.op for e in scenario.events)
        return ", ".join(f"{n} × {op}" if n > 1 else op for op, n in counts.items()) or "none"
    value = getattr(scenario, name)
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    table = pd.DataFrame({label: run.metrics.as_dict() for label, run in runs.items()}, dtype=float)
    table = table[table.fillna(0).any(axis=1)].rename_axis("metric")
    table.insert(0, "unit", [METRICS[name].unit for name in table.index])
    table["difference"] = table.iloc[:, 2] - table.iloc[:, 1]
    return table.assign(better=pd.Series(better(runs)))
