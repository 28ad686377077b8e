"""Studies of several runs: a row a run and a column a measure, a line a variant over time, the model on a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmlab.figures import figures
from mmlab.params import read_yaml
from mmlab.results import trace
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.studies.measures import Measure, standard_error, value
from mmlab.studies.scenes import CODES
from mmlab.studies.study import Answer

__all__ = ["TIME", "by_variant", "group_equal", "measured", "over_time", "recorded", "timeline"]

TIME = "simulated time (s)"
COLUMNS = read_yaml(Path(__file__).with_name("columns.yaml"))
Thing = Run | Scenario
"""What can be measured: a run, or a scenario that is simulated for that."""
Columns = str | Mapping[str, str | Measure]
"""Heading → what `mmlab.studies.measures.value` measures; or the name of such a list of ``columns.yaml``."""
Series = str | Callable[[Run], np.ndarray]
"""A function that returns a number for each sample; or a counter as `mmlab.studies.measures.value` reads it."""


def measured(things: Mapping[Any, Thing], columns: Columns, *names: str, **parts: Any) -> Answer:
    """Measure runs: a row a run and a column a measure, with standard errors where what steps cost matters.

    Parameters
    ----------
    things
        Label, or tuple of labels → a run, or a scenario to be simulated.
    columns
        What to measure.
    names
        Headings of the labels.
    **parts
        Of the `Answer`.
    """
    columns = COLUMNS[columns] if isinstance(columns, str) else columns
    rows, errors = [], []
    for thing in things.values():
        run = thing if isinstance(thing, Run) else simulate(thing)
        rows.append({heading: value(run, what) for heading, what in columns.items()})
        errors.append({heading: standard_error(run, what) for heading, what in columns.items()})
    index = pd.Index(list(things)).set_names(names)
    sigma = pd.DataFrame(errors, index)
    return Answer(pd.DataFrame(rows, index).apply(pd.to_numeric), errors=sigma.loc[:, sigma.any()], **parts)


def by_variant(cases: Mapping[Any, Mapping[str, Thing]], what: str | Measure, name: str, **parts: Any) -> Answer:
    """Measure one thing in several cases: a row a case, a column a variant by its number in the discussion.

    Parameters
    ----------
    cases
        Case → runs or scenarios by their variants, such as `mmlab.studies.scenes.scene_runs` returns them.
    what, **parts
        See `measured`.
    name
        Heading of the cases.
    """
    things = {(case, CODES.get(v, [v])[0]): run for case, runs in cases.items() for v, run in runs.items()}
    found = measured(things, {"": what}, name, "variant")
    data, errors = (
        table.unstack(sort=False).droplevel(0, axis=1) for table in (found.data, pd.DataFrame(found.errors))
    )
    return Answer(data, errors=errors, **parts)


def group_equal(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return {label: variants} of those whose values (numbers, tuples or arrays) are equal, in the order given.

    >>> group_equal({"mainline": 1, "ksm-opt-out": 2, "skip-zeropage": 1})
    {'V0 V6 mainline …': ['mainline', 'skip-zeropage'], 'V2 ksm-opt-out': ['ksm-opt-out']}
    """
    groups: dict[bytes, list[str]] = {}
    for name, found in values.items():
        groups.setdefault(np.asarray(found).tobytes(), []).append(name)
    numbers = {names[0]: [CODES[name][0] for name in names if name in CODES] for names in groups.values()}
    return {" ".join([*numbers[names[0]], names[0], *["…"][: len(names) - 1]]): names for names in groups.values()}


def over_time(runs: Mapping[str, Run], series: Series, what: str) -> pd.DataFrame:
    """Return a series over simulated time, a line for each group of equal variants.

    Equal are those that are so at 100 times. Columns: simulated time (s), `what`, variants.
    """
    times = {name: run.rows["time_ns"] / 1e9 for name, run in runs.items()}
    values = {name: _samples(run, series) for name, run in runs.items()}
    grid = np.linspace(0, max(float(time[-1]) for time in times.values()), 101)[:-1]
    seen = {name: values[name][np.searchsorted(times[name], grid, side="right") - 1] for name in runs}
    return pd.concat(
        pd.DataFrame({TIME: times[names[0]], what: values[names[0]], "variants": label})
        for label, names in group_equal(seen).items()
    )


def _samples(run: Run, series: Series) -> np.ndarray:
    """Return a series: a counter of pages in MiB, or one as it is."""
    if callable(series):
        return series(run)
    return np.asarray(run.rows[series.removeprefix("#")]) / (1 if series.startswith("#") else PAGES_PER_MIB)


def timeline(
    panels: Mapping[str, Mapping[str, Run]], series: Series, what: str, until: float = 0, log: bool = False
) -> Answer:
    """Draw a series over time, a line for each group of equal variants; a panel for each set of runs.

    Parameters
    ----------
    panels
        Title → runs by their variants.
    series, what
        See `over_time`.
    until
        End of the time axis, s; 0: where the runs end.
    log
        Make the y axis logarithmic.
    """
    tables = {title: over_time(runs, series, what) for title, runs in panels.items()}
    drawn = figures.axes(len(panels), width=11.5 if len(panels) > 1 else 9.6, height=4.6, sharey=True)
    for ax, (title, runs) in zip(drawn, panels.items(), strict=True):
        label = figures.time_label(runs.values(), until or None)
        figures.steps(tables[title], TIME, what, "variants", ax, until, log=log).set(title=title, xlabel=label)
        ax.label_outer()
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=4)
    return Answer(pd.concat(tables, names=["panel"]), figure=drawn)


def recorded(name: str, columns: Mapping[str, str], title: str) -> Answer:
    """Predict a recording of a kernel that ships with mmlab, and draw counters (name → unit) of both."""
    kernel = trace.read(files("mmlab") / "recordings" / f"{name}.json.gz")  # type: ignore[arg-type]
    found = trace.compare(kernel, trace.predict(kernel))
    samples = f"{found.samples_exact} of {found.samples} samples in all counters"
    words = f"the model predicts {samples}, {found.maps_exact} of {found.maps} page maps ({title})."
    holds = f"{'Holds' if found.exact else 'Does not hold'}: {words}"
    run = simulate(trace.scenario_of(kernel))
    return Answer(figures.recorded_samples(kernel), holds, figures.overlay(run, kernel, columns, title))
