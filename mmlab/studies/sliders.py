"""What the explorer's sliders do, in three places each, and all its variants: for those who have no sliders."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmlab.figures import figures
from mmlab.results.run import simulate
from mmlab.scenario import Scenario
from mmlab.studies.runs import measured
from mmlab.studies.study import Answer
from mmlab.variants import VARIANTS

AFTER, MOST = "99 % of it after (s)", "… per budget"


def places(scenario: Scenario, compare: str, field: str, values: Sequence[float], title: str) -> Answer:
    """Study a slider in several places: a row of panels a place, a column a variant, memory over time.

    Parameters
    ----------
    scenario, compare
        The scenario with its own variant, and the variant beside it.
    field, values
        The field that the slider sets, and its values.
    title
        Caption of the table.
    """
    both = dict.fromkeys([scenario.variant, compare])
    things = {f"{field}={x:,g}, {v}": scenario.replace(**{field: x, "variant": v}) for x in values for v in both}
    found = _memory(things, field, title)
    parts = []
    for place, v in enumerate(both):
        times, most = (found.data[name].iloc[place :: len(both)] for name in (AFTER, MOST))
        pace = f"after {times.iloc[0]:,.3g} s with {values[0]:,g}, after {times.iloc[-1]:,.3g} s with {values[-1]:,g}"
        parts.append(f"{v} is done {pace}, and frees at most {most.max():,.3g} times the budget in a batch")
    return found.found(f"{title}, `{field}`: {'; '.join(parts)}.".replace("after nan s", "never"))


def variants(scenario: Scenario) -> Answer:
    """Study the scenario under every variant: a panel a variant, memory over time."""
    found = _memory({v: scenario.replace(variant=v) for v in VARIANTS}, "variant", "By variant")
    over = ", ".join(found.data.index[found.data[MOST] > 1]) or "no variant"
    back = found.data["given back (MiB)"]
    most = np.isclose(back, back.max())
    best = f"most ({back.max():,.0f} MiB) by {'all' if most.all() else ', '.join(back.index[most])}"
    return found.found(f"More than the budget is freed by one batch under: {over}; {best}.")


def _memory(things: Mapping[str, Scenario], name: str, title: str) -> Answer:
    """Simulate scenarios by their labels, and draw and measure the memory of each."""
    runs = {label: simulate(scenario) for label, scenario in things.items()}
    found = measured(runs, "sliders", name, title=title, digits={AFTER: 2, MOST: 2})
    longest = max(float(run.rows["time_ns"][-1]) / 1e9 for run in runs.values())
    until = min(longest, 1.2 * max(1.0, found.data[AFTER].max(skipna=True)))
    width = 3 if len(runs) > 6 else 2
    drawn = figures.side_by_side(figures.memory, runs, width=width, height=2.5, until=until)
    rows = found.data.iloc[:, :2].itertuples()
    said = "; ".join(f"{label}: {b:,.0f} MiB given back, 99 % of it after {t:.3g} s" for label, b, t in rows)
    return found.found("", drawn, alt=f"Memory by kind over simulated time, stacked, MiB. {said}.")
