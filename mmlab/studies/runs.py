"""Studies of several runs: a row a run and a column a measure, a line a variant over time.

And how many times as fast as mainline a variant is, and where it is ten:

>>> cases = {mib: {"memory_mib": mib} for mib in (2, 4)}
>>> scenario = Scenario(zero_fraction=0.9, pages_to_scan=100, until_settled=True)
>>> factors(scenario, "legacy", cases, "memory (MiB)").data["factor in frames"].round(1).to_dict()
{2: 0.1, 4: 0.3}
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmlab.figures import figures
from mmlab.params import read_yaml
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.studies.measures import Measure, samples, standard_error, value
from mmlab.studies.scenes import CODES
from mmlab.studies.study import Answer

TIME = "simulated time (s)"
MARKS = {1: "× 1", 2: "× 2", 10: "× 10", 100: "× 100"}
"""Of the axis of a factor."""
COLUMNS = read_yaml(Path(__file__).with_name("columns.yaml"))
Thing = Run | Scenario
"""What can be measured: a run, or a scenario that is simulated for that."""
Columns = str | Mapping[str, str | Measure]
"""Heading → what `mmlab.studies.measures.value` measures; or the name of such a list of ``columns.yaml``."""
Changes = Mapping[str, Any]
"""Fields of a scenario that a case changes."""
Series = str | Callable[[Run], np.ndarray]
"""A function that returns a number for each sample; or counters as `mmlab.studies.measures.samples` reads them."""


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
    tables = found.data, pd.DataFrame(found.errors)
    data, errors = (table.unstack(sort=False).droplevel(0, axis=1) for table in tables)
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
    values = {name: series(run) if callable(series) else samples(run, series) for name, run in runs.items()}
    grid = np.linspace(0, max(float(time[-1]) for time in times.values()), 101)[:-1]
    seen = {name: values[name][np.searchsorted(times[name], grid, side="right") - 1] for name in runs}
    return pd.concat(
        pd.DataFrame({TIME: times[names[0]], what: values[names[0]], "variants": label})
        for label, names in group_equal(seen).items()
    )


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


def factors(base: Scenario, variant: str, cases: Mapping[Any, Changes], name: str, **parts: Any) -> Answer:
    """Measure how many times as fast as mainline a variant is in several cases: in frames, and in KSM's counters.

    Parameters
    ----------
    cases
        Case → fields of the scenario that it changes.
    name
        Heading of the cases.
    **parts
        Of the `Answer`.

    Returns
    -------
    Answer
        Columns: for each way of counting the rates of both, MiB/s (0: nothing), and their factor.
    """
    things = {(n, v): base.replace(**case, variant=v) for n, case in cases.items() for v in (variant, "mainline")}
    found = measured(things, {"frames": "freed_rate", "KSM's counters": "merge_rate"}, name, "variant")
    data, errors = (t.unstack(sort=False) for t in (found.data.fillna(0.0), pd.DataFrame(found.errors)))
    data, errors = (t.set_axis([f"{v}: {what} (MiB/s)" for what, v in t], axis=1) for t in (data, errors))
    for place, what in ((2, "frames"), (5, "KSM's counters")):
        data.insert(place, f"factor in {what}", data.iloc[:, place - 2] / data.iloc[:, place - 1])
    return Answer(data, errors=errors, **parts)


def tenfold(
    base: Scenario,
    variant: str,
    x: str,
    cases: Mapping[float, Changes],
    series: Mapping[str, Changes],
    *counted: str,
    log: bool = True,
) -> Answer:
    """Study over a quantity, for several curves, how many times as fast as mainline a variant is, and where it is ten.

    Parameters
    ----------
    x
        The quantity with its unit.
    cases, series
        Value of it, and name of a curve → fields of the scenario that it changes.
    *counted
        Ways of counting, a panel each: ``frames``, ``KSM's counters``.
    log
        Make the x axis logarithmic.
    """
    y, panels = f"{variant} over mainline", [f"factor in {what}" for what in counted]
    curves = {curve: factors(base.replace(**own), variant, cases, x).data for curve, own in series.items()}
    found = pd.concat(curves, names=["curve"])
    tables = {panel: found[panel].rename(y).reset_index() for panel in panels}
    places = {panel: figures.crossings(table, x, y, 10, "curve") for panel, table in tables.items()}
    at = pd.concat(places, names=["panel"]).rename(columns={x: "tenfold at"})
    at = at.reset_index("panel").set_index(["panel", "curve"]).assign(of=x)
    several = "{1}, {0}" if len(counted) > 1 else "{1}"
    where = "; ".join(f"{value:,.3g} ({several.format(*names)})" for names, value in at["tenfold at"].items())
    figure = figures.side_by_side(figures.curves, tables, x, y, "curve", marks=MARKS, at=10, log=log)
    return Answer(at, f"Tenfold at {x}: {where or 'nowhere'}.", figure)
