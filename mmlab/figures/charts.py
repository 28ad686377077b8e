"""Figures of runs over simulated time: one description of each, drawn by matplotlib or by the explorer's browser.

``memory``, ``batches``, ``counters`` and ``cpu`` draw into Axes, as all functions of `mmlab.figures.figures` do.
``memory.describe(runs, end, columns)`` returns the :class:`Chart` that they draw: lines, areas and points in the units
of the axes, with the table that contains every number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.figures import theme
from mmlab.figures.theme import KINDS, LOOK
from mmlab.results.uncertainty import error_at, one_digit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmlab.results.run import Run


Columns = dict[str, np.ndarray]
MIB_PER_PAGE = 4 / 1024
CHANGING = ["frames", "huge_pmds", "ksm_entries", "zeropage_entries", "swap_entries"]
"""Counters that change whenever memory does."""


@dataclass(frozen=True)
class Layer:
    """A line, an area (with its lower edge ``low``) or points of a chart; ``look`` is what matplotlib takes."""

    x: np.ndarray
    y: np.ndarray
    look: Mapping[str, Any]
    label: str | None = None
    low: np.ndarray | None = None


@dataclass(frozen=True)
class Chart:
    """What a figure over simulated time shows.

    Attributes
    ----------
    layers : list
        From the bottom up.
    limits : tuple
        Ends of the y axis.
    tables : dict
        Label of the run → columns of its table.
    log : bool
        The y axis is logarithmic.
    """

    layers: list[Layer]
    limits: tuple[float, float]
    tables: Mapping[str, Columns]
    log: bool = False

    def draw(self, ax: Axes) -> None:
        """Draw the layers, and set the y axis."""
        from matplotlib.patches import Polygon

        for layer in self.layers:
            if layer.low is None:
                ax.plot(layer.x, layer.y, label=layer.label, **layer.look)
            else:
                corners = np.column_stack([np.append(layer.x, layer.x[::-1]), np.append(layer.y, layer.low[::-1])])
                ax.add_artist(Polygon(corners, label=layer.label, **layer.look))
        if self.log:
            ax.set_yscale("log")
        ax.yaxis.set_major_formatter(theme.short)
        ax.set_ylim(*self.limits)


Describe = Callable[[Mapping[str, "Run"], float, int], Chart]


@dataclass(frozen=True)
class OverTime:
    """A figure of runs over simulated time; made of a function that describes it.

    Attributes
    ----------
    describe : callable
        Takes runs, the end of the time axis (s) and the columns of the picture; returns the chart.
    unit : str
        Label of the y axis, with its unit.
    legend : dict
        Where the legend is and how it looks.
    """

    describe: Describe
    unit: str
    legend: Mapping[str, Any]

    def __call__(self, runs: Run | Mapping[str, Run], ax: Axes | None = None, until: float | None = None) -> Axes:
        """Draw one run, or label → run, and return the Axes.

        Parameters
        ----------
        until : float, optional
            End of the time axis, s. A run that ended before is continued as it was at its end.
        """
        import pandas as pd  # here: the explorer needs none of it

        from mmlab.figures.notebook import remember

        shown, ax = runs if isinstance(runs, Mapping) else {"": runs}, ax or theme.axes()[0]
        end = until or max(float(run.rows["time_ns"][-1]) / 1e9 for run in shown.values())
        chart = self.describe(shown, end, theme.COLUMNS)
        ax.set(xlim=(0, end), xlabel=time_label(shown.values(), until), ylabel=self.unit)
        chart.draw(ax)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(**self.legend)
        tables = {label: pd.DataFrame(columns) for label, columns in chart.tables.items()}
        data = pd.concat(tables, names=["run"]).reset_index("run") if isinstance(runs, Mapping) else tables[""]
        return remember(ax, data, self.describe.__name__)


def time_label(runs: Iterable[Run], until: float | None = None) -> str:
    """Return the label of an axis of simulated time, with the standard error of the time at its end.

    The error propagates the uncertainty of the step costs.
    """
    until_ns = (until or np.inf) * 1e9
    ends = [(run, int(np.searchsorted(run.rows["time_ns"], until_ns))) for run in runs]
    most = max(error_at(run, min(row, len(run.rows) - 1)) for run, row in ends)
    return "simulated time (s)" + (f", ± {one_digit(most)} at its end" if most >= 0.0005 else "")


def end_of_changes(runs: Collection[Run]) -> float:
    """Return a round number shortly after the last change of memory in any of the runs, s: where to end a time axis."""
    last = end = 0.0
    for time_ns, counters in ((run.rows["time_ns"], run.rows[CHANGING]) for run in runs):
        last = max(last, time_ns[1:][counters[1:] != counters[:-1]].max(initial=0) / 1e9)
        end = max(end, float(time_ns[-1]) / 1e9)
    return min(end, theme.round_up(1.1 * last)) if last else max(end, 1e-3)


# --- what is drawn --------------------------------------------------------------------------------------------------


@partial(OverTime, unit="memory (MiB)", legend={"loc": "upper right", "frameon": True, "reverse": True})
def memory(runs: Mapping[str, Run], end: float, columns: int) -> Chart:
    """Describe memory of one run by kind, stacked, MiB: allocated below the heavy line, freed above it.

    The table has time_s (simulated time, s) and MiB of each of `KINDS` at each sample. THPs, small pages (PTE-mapped
    folios included) and KSM pages are allocated frames; the others were freed.
    """
    ((label, run),) = runs.items()
    r = run.rows
    thps, ksm = r["huge_pmds"] * run.scenario.pages_per_thp, r["ksm_frames"]
    merged = r["ksm_entries"] - ksm
    pages = thps, r["frames"] - thps - ksm, ksm, merged, r["zeropage_entries"], r["swap_entries"]
    time, parts = r["time_ns"] / 1e9, [count * MIB_PER_PAGE for count in pages]
    keep = theme.thin(time, parts[0] + parts[1] + parts[2], end, columns)
    x, edges = theme.stepped(time[keep], np.cumsum([0 * time, *parts], axis=0)[:, keep], end)
    kinds = zip(KINDS.items(), edges, edges[1:], strict=False)
    areas = [Layer(x, high, look, kind, low) for (kind, look), low, high in kinds if (high > low + 1e-9).any()]
    look = dict(LOOK["allocated"])
    allocated = Layer(x, edges[3], look, look.pop("label"))
    top = 1.02 * max(run.scenario.total_pages * MIB_PER_PAGE, edges[-1].max())
    return Chart([*areas, allocated], (0, top), {label: {"time_s": time} | dict(zip(KINDS, parts, strict=True))})


@partial(OverTime, unit="pages freed by one batch", legend=LOOK["above"] | {"ncols": 4})
def batches(runs: Mapping[str, Run], end: float, columns: int) -> Chart:
    """Describe pages freed by each batch (logarithmic; without the batches that freed none) and ``pages_to_scan``.

    The table has time_s, batch, and freed (pages; the mean where samples were thinned).
    """
    tables, layers, budgets, top = {}, [], {}, 1.0
    for number, (label, run) in enumerate(runs.items()):
        count, frames, budget = np.diff(run.rows["batch"]), np.diff(run.rows["frames"]), run.rows["pages_to_scan"]
        after = (run.rows["rank"][1:] == 0) & (count > 0)
        r, freed = run.rows[1:][after], -frames[after] / count[after]
        tables[label] = {"time_s": r["time_ns"] / 1e9, "batch": r["batch"], "freed": freed}
        time, freed = tables[label]["time_s"][freed > 0], freed[freed > 0]
        keep = theme.thin(time, freed, end, columns)
        look = theme.style(number) | LOOK["batch"]
        layers.append(Layer(time[keep], freed[keep], look, label if len(keep) else None))
        changes = np.flatnonzero(np.diff(budget, prepend=-1))
        words = f"pages_to_scan = {budget[0]:,}" if len(changes) == 1 else f"pages_to_scan, {label}"
        budgets[words] = theme.stepped(run.rows["time_ns"][changes] / 1e9, budget[changes], end)
        top = max(top, budget.max(), freed.max(initial=0))
    layers += [Layer(x, y, LOOK["budget"], words) for words, (x, y) in budgets.items() if y.max() > 0]
    return Chart(layers, (0.8, float(10 ** np.ceil(np.log10(1.05 * top)))), tables, log=True)


@partial(OverTime, unit="memory (MiB)", legend=LOOK["beside"])
def counters(runs: Mapping[str, Run], end: float, columns: int) -> Chart:
    """Describe what KSM's counters show (thin, dashed) and the memory that was really freed (broad), MiB over time.

    Freed is how many fewer frames are allocated than at the start; the counters are ``pages_sharing`` and
    ``ksm_zero_pages``.
    """
    tables, layers = {}, []
    for number, (label, run) in enumerate(runs.items()):
        r, time = run.rows, run.rows["time_ns"] / 1e9
        freed, shown = r["frames"][0] - r["frames"], r["pages_sharing"] + r["ksm_zero_pages"]
        mib = {"really freed": freed * MIB_PER_PAGE, "KSM counters": shown * MIB_PER_PAGE}
        tables[label] = {"time_s": time} | mib
        for (what, values), extra in zip(mib.items(), (LOOK["freed"], LOOK["counted"]), strict=True):
            x, y, look = theme.step_line(time, values, end, number, len(runs), columns=columns)
            layers.append(Layer(x, y, look | extra, f"{label}: {what}"))
    top = theme.round_up(max(layer.y.max() for layer in layers))
    return Chart(layers, (-0.03 * top, 1.03 * top), tables)


@partial(OverTime, unit="CPU of ksmd (% of one)", legend=LOOK["above"] | {"ncols": 4})
def cpu(runs: Mapping[str, Run], end: float, columns: int) -> Chart:
    """Describe ksmd's CPU time over simulated time, % of one CPU, in 60 equal parts of the time until ``end``.

    The table's time_s is the start of a part; parts that start after the run are left out.
    """
    tables, layers, edges = {}, [], np.linspace(0, end, 61)
    for number, (label, run) in enumerate(runs.items()):
        time = run.rows["time_ns"] / 1e9
        used = np.diff(np.interp(edges, time, run.rows["ksmd_cpu_ns"] / 1e9))
        inside = edges[:-1] < max(time[-1], 1e-9)
        start, percent = edges[:-1][inside], (100 * used * 60 / end)[inside]
        tables[label] = {"time_s": start, "percent": percent}
        layers.append(Layer(*theme.step_line(start, percent, end, number, len(runs), columns=columns), label))
    top = theme.round_up(max(data["percent"].max(initial=0) for data in tables.values()))
    return Chart(layers, (0, 1.03 * top), tables)
