"""What KSM's own splits do to ksmd: how many times as fast as mainline a variant is, and where it is ten.

>>> cases = {mib: {"memory_mib": mib} for mib in (2, 4)}
>>> scenario = Scenario(zero_fraction=0.9, pages_to_scan=100, until_settled=True)
>>> factors(scenario, "legacy", cases, "memory (MiB)").data["factor in frames"].round(1).to_dict()
{2: 0.1, 4: 0.3}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmlab.figures.figures import crossings, curves, side_by_side
from mmlab.scenario import Scenario
from mmlab.studies.runs import measured
from mmlab.studies.study import Answer

__all__ = ["MARKS", "factors", "tenfold"]

MARKS = {1: "× 1", 2: "× 2", 10: "× 10", 100: "× 100"}

Changes = Mapping[str, Any]


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
    data, errors = found.data.fillna(0.0).unstack(sort=False), pd.DataFrame(found.errors).unstack(sort=False)
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
    y = f"{variant} over mainline"
    found = pd.concat(
        {curve: factors(base.replace(**own), variant, cases, x).data for curve, own in series.items()}, names=["curve"]
    )
    tables = {f"factor in {what}": found[f"factor in {what}"].rename(y).reset_index() for what in counted}
    at = pd.concat({title: crossings(table, x, y, 10, "curve") for title, table in tables.items()}, names=["panel"])
    at = at.rename(columns={x: "tenfold at"}).reset_index("panel").set_index(["panel", "curve"]).assign(of=x)
    where = "; ".join(f"{value:,.3g} ({curve})" for (_, curve), value in at["tenfold at"].items()) or "nowhere"
    figure = side_by_side(curves, tables, x, y, "curve", marks=MARKS, at=10, log=log)
    return Answer(at, f"Tenfold at {x}: {where}.", figure)
