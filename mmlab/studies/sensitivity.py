"""Where a metric is high or low, and which knob moves it: maps of sweeps, and Sobol indices (notebook 09)."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from mmlab.errors import unknown
from mmlab.figures.figures import heat, sure
from mmlab.params import read_yaml
from mmlab.results.metrics import METRICS
from mmlab.scenario import Scenario, flat_fields
from mmlab.studies.grid import Grid, Point
from mmlab.studies.study import Answer
from mmlab.studies.sweep import read_sweep, sweep

VARIED = read_yaml(Path(__file__).with_suffix(".yaml"))
"""The knobs that `sobol_indices` varies, and its metrics."""
MORE, LESS, SAME = "fields with more", "with less", "alike"
ALIKE = 0.01
"""A difference below this share of the first variant's largest number, or below its error, counts as none."""


def _swept(points: Grid | Iterable[Point], folder: str, jobs: int) -> pd.DataFrame:
    """Sweep into the folder, or into one that does not stay, and return its rows."""
    with nullcontext(folder) if folder else TemporaryDirectory() as place:
        sweep(points, place, jobs=jobs)
        return read_sweep(place)


def plane(grid: Grid, metric: str, folder: str = "", jobs: int = 1) -> pd.DataFrame:
    """Sweep a grid that varies two knobs under several variants, and keep a metric.

    Returns
    -------
    DataFrame
        A row a scenario. Index: variant and both knobs. Columns: the metric, its standard ``error``, the ``difference``
        from the grid's first variant, and the ``doubt`` about it (as of independent numbers; 0 where both are equal).

    Raises
    ------
    UserError
        The metric is unknown, or `mmlab.sweep` refuses the grid.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    rows = _swept(grid, folder, jobs).set_index(["variant", *(knob for knob in grid.vary if knob != "variant")])
    rows = rows.assign(error=rows.get(f"se_{metric}", 0.0))[[metric, "error"]].astype(float)
    first = rows.loc[grid.vary["variant"][0]].reindex(rows.index.droplevel(0)).set_axis(rows.index)
    gap = rows[metric] - first[metric]
    doubt = np.hypot(rows["error"], first["error"]).where(gap != 0, 0.0)
    return rows.assign(difference=gap, doubt=doubt).loc[grid.vary["variant"]]


def maps(rows: pd.DataFrame, value: str) -> Answer:
    """Draw a column of a `plane`, the metric or the difference, as a map for each variant.

    The table has the lowest and the highest field of each map, and of differences the number of fields with more, with
    less and with about as much (`ALIKE`).
    """
    metric, signed, first = rows.columns[0], value == "difference", rows.index[0][0]
    is_first = rows.index.get_level_values("variant") == first
    shown = (rows[~is_first] if signed else rows).dropna(subset=[value])
    error, unit = shown["doubt" if signed else "error"], METRICS[metric].unit
    by = shown[value].groupby("variant", sort=False)
    table = by.agg(lowest="min", at="idxmin", highest="max", there="idxmax")
    ends = {"lowest": "at", "highest": "there"}
    errors = pd.DataFrame({name: error[table[place]].to_numpy() for name, place in ends.items()}, table.index)
    table[["at", "there"]] = table[["at", "there"]].map(lambda place: ", ".join(f"{x:,g}" for x in place[1:]))
    what = f"Largest difference of {metric} from {first}" if signed else f"Largest {metric}"
    if signed:
        near = np.maximum(error, ALIKE * rows.loc[is_first, metric].abs().max()).clip(lower=1e-9)
        sides = np.select([shown[value] > near, shown[value] < -near], [MORE, LESS], SAME)
        counts = pd.crosstab(shown.index.get_level_values("variant"), sides)
        table = table.join(counts.reindex(columns=[MORE, LESS, SAME], fill_value=0))
    top = shown[value].abs().idxmax()
    where = " and ".join(f"{knob}={at:,g}" for knob, at in zip(rows.index.names[1:], top[1:], strict=True))
    finding = f"{what}: {sure(shown.at[top, value], error[top])} {unit} under {top[0]} at {where}"
    units = {name: f"{name} ({flat_fields()[name].unit})".removesuffix(" ()") for name in rows.index.names[1:]}
    fields = {name: part.droplevel(0).rename_axis(units.values()).unstack(0) for name, part in by}
    return Answer(table, finding, heat(fields, f"{metric} ({unit})", signed=signed), what, errors=errors)


def sobol_indices(
    scenario: Scenario, variants: Sequence[str], points: int, seed: int = 0, folder: str = "", jobs: int = 1
) -> Answer:
    """Return the total Sobol index of each knob for each metric of `VARIED`, by Saltelli's design.

    It is the share of a metric's variance that goes away if the knob is held fixed, its interplay with the others
    included. `points` is a power of two; the design has eight times as many scenarios for each variant.
    """
    from SALib.analyze import sobol
    from SALib.sample import sobol as design

    knobs, formulas = VARIED.values()
    problem = {"num_vars": len(knobs), "names": [*knobs], "bounds": [(0, 1)] * len(knobs)}
    grid = Grid(base=scenario.changed(), vary=knobs, design="sobol", samples=points)
    drawn = grid.at(design.sample(problem, points, calc_second_order=False, seed=seed))
    asked = pd.DataFrame([{**point, "variant": name} for name in variants for point in drawn])
    swept = _swept([grid.base | point for point in asked.to_dict("records")], folder, jobs)
    rows = asked.merge(swept.drop_duplicates(asked.columns)).set_index("variant")
    tables, doubt = {name: pd.DataFrame(np.nan, pd.Index(knobs, name="knob"), [*formulas]) for name in variants}, 0.0
    for name, (metric, formula) in product(variants, formulas.items()):
        values = rows.loc[name].eval(formula).fillna(0.0).to_numpy()
        if values.std():  # SALib takes a seed of 0 for none
            found = sobol.analyze(problem, values, calc_second_order=False, seed=1 + seed)
            tables[name][metric], doubt = found["ST"].clip(min=0).round(2), max(doubt, *found["ST_conf"])
    data = pd.concat(tables, axis=1).dropna(axis=1)
    most = {metric: data.xs(metric, axis=1, level=1).idxmax() for metric in data.columns.unique(1)}
    leads = (f"{metric} on {' / '.join(knobs)}" for metric, knobs in most.items())
    note = f"{len(drawn):,} runs of each variant. The least certain index: ± {doubt:.2g} (95 %)."
    finding = f"Depends most under {' / '.join(variants)}: {'; '.join(leads)}"
    return Answer(data, finding, heat(tables, "total Sobol index"), note=note)
