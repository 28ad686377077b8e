"""Figures from runs, one function a figure, each beside the function that makes the table it is drawn from.

``memory`` is drawn from ``memory_table``, ``batches`` from ``batches_table``, and so on: every number in a figure can
be printed, saved or compared. Where a figure compares runs it takes a mapping from label to run. All return Axes and
draw into the Axes given, so that they combine, and end by telling :func:`remember` which table was drawn: a report
saves it beside the page. :func:`show` displays a figure in a notebook with its alternative text.

The colours are seaborn's colour-blind palette, and nothing is told by colour alone: lines differ in dash and marker,
areas and bars in hatch, so that a grey print says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mmlab.figures.notebook import figure_of as figure_of  # `as`: notebooks call all of these as functions of plots
from mmlab.figures.notebook import headline as headline
from mmlab.figures.notebook import png as png
from mmlab.figures.notebook import remember as remember
from mmlab.figures.notebook import say as say
from mmlab.figures.notebook import show as show
from mmlab.figures.notebook import sure as sure
from mmlab.figures.notebook import table as table
from mmlab.figures.notebook import with_errors
from mmlab.results.uncertainty import error_at, one_digit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmlab.results.run import Run

MIB_PER_PAGE = 4 / 1024

#: What a byte of the process is, from the bottom of the stack: what it occupies, then what was given back.
KINDS = {
    "THP": ("#0173B2", ""),
    "small pages": ("#56B4E9", ""),
    "KSM pages": ("#029E73", "xxx"),
    "freed: merged into KSM pages": ("#F3E3C8", "////"),
    "freed: shared zeropage": ("#F4F4F4", "...."),
    "freed: swapped out": ("#FFFFFF", "\\\\\\\\"),
    "not present": ("#FFFFFF", ""),
}
#: Letters of a page map (as in traces) and the kind each stands for.
LETTERS = {
    "H": ("THP", "#0173B2"),
    "h": ("part of a large folio, mapped by PTEs", "#7F6BB3"),
    "A": ("small page", "#56B4E9"),
    "K": ("KSM page", "#029E73"),
    "Z": ("shared zeropage", "#F1EFE2"),
    "Y": ("huge zeropage", "#DDD6B8"),
    "S": ("swapped out", "#CA9161"),
    "N": ("not present", "#FFFFFF"),
}
DASHES: list[Any] = ["", (4, 1.5), (1, 1), (5, 1.5, 1, 1.5), (7, 1.5), (3, 1, 1, 1, 1, 1)]
MARKERS = ["o", "s", "^", "D", "v", "P"]

RC = {
    "font.family": "DejaVu Sans",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "grid.color": "#E3E3E3",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "figure.dpi": 96,
}


def use_theme() -> None:
    """The one look of all figures; every function here calls it."""
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind", rc=RC)


def axes(columns: int = 1, rows: int = 1, width: float = 9.6, height: float = 4.0, **kwargs: Any) -> list[Axes]:
    """A new figure of ``columns`` by ``rows`` panels, ``width`` by ``height`` inches, its Axes row by row."""
    import matplotlib.pyplot as plt

    use_theme()
    figure, panels = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.06)  # type: ignore[union-attr, call-arg]
    return list(panels.flat)


def side_by_side(draw: Callable[..., Axes], runs: Mapping[str, Run], height: float = 3.8, **kwargs: Any) -> list[Axes]:
    """One panel for each run, titled with its label, on common scales: for figures that cannot lie on each other."""
    panels = axes(len(runs), height=height, sharex=True, sharey=True)
    for panel, (label, run) in zip(panels, runs.items(), strict=True):
        draw(run, ax=panel, **kwargs)
        panel.set_title(label)
        if panel is not panels[0]:
            panel.set_ylabel("")
        if legend := panel.get_legend():
            legend.remove()
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure_of(panels).legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=3, handlelength=2.5, handleheight=1.1
        )
    return panels


def time_label(runs: Iterable[Run], until: float | None = None) -> str:
    """The label of an axis of simulated time, with the standard error of its end that comes from what steps cost."""
    most = 0.0
    for run in runs:
        time_ns = run.rows["time_ns"]
        end = len(time_ns) - 1 if until is None else min(int(np.searchsorted(time_ns, until * 1e9)), len(time_ns) - 1)
        most = max(most, error_at(run, end))
    return "simulated time (s)" + (f", ± {one_digit(most)} at its end" if most >= 0.0005 else "")


# --- memory over time -----------------------------------------------------------------------------------------------


def memory_table(run: Run) -> pd.DataFrame:
    """MiB of each of :data:`KINDS` at each sample (columns), by simulated time in seconds (index ``time_s``).

    THPs, small pages (PTE-mapped folios included) and KSM pages are frames that are allocated; the others were freed.
    """
    c = run.columns()
    thp = c["anonhugepages_kb"] / 1024
    ksm = c["ksm_frames"] * MIB_PER_PAGE
    return pd.DataFrame(
        {
            "THP": thp,
            "small pages": c["frames"] * MIB_PER_PAGE - thp - ksm,
            "KSM pages": ksm,
            "freed: merged into KSM pages": c["ksm_kb"] / 1024 - ksm,
            "freed: shared zeropage": c["zeropage_entries"] * MIB_PER_PAGE,
            "freed: swapped out": c["swap_kb"] / 1024,
        },
        index=pd.Index(c["time_ns"] / 1e9, name="time_s"),
    )


def memory(run: Run, ax: Axes | None = None, until: float | None = None) -> Axes:
    """Memory over time by kind, stacked, MiB. The heavy line is what is really allocated: above it, memory is free.

    Parameters
    ----------
    run : Run
    ax : Axes, optional
    until : float, optional
        End of the time axis, s. A run that ended before is drawn as it was left.
    """
    ax = ax or axes()[0]
    table = memory_table(run)
    if until is not None and until > table.index[-1]:
        table.loc[until] = table.iloc[-1]
    used = [kind for kind in table if table[kind].abs().max() > 0]
    areas = ax.stackplot(
        table.index,
        *(table[kind] for kind in used),
        labels=used,
        colors=[KINDS[kind][0] for kind in used],
        edgecolor="#555555",
        linewidth=0.3,
        step="post",
    )
    for area, kind in zip(areas, used, strict=True):
        area.set_hatch(KINDS[kind][1])
    allocated = table[[kind for kind in used if not kind.startswith("freed")]].sum(axis=1)
    ax.step(table.index, allocated, where="post", color="#111111", linewidth=2, label="allocated")
    ax.set(xlabel=time_label([run], until), ylabel="memory (MiB)", xlim=(0, until or table.index[-1]), ylim=(0, None))
    ax.legend(loc="upper right", frameon=True, reverse=True)
    return remember(ax, table, "memory")


# --- pages freed by a batch -----------------------------------------------------------------------------------------


def batches_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Pages freed by each batch: columns run, time_s, batch, freed (pages; the mean where samples were thinned)."""
    return _long({label: freed_by_batch(run) for label, run in runs.items()})


def freed_by_batch(run: Run) -> pd.DataFrame:
    """:func:`batches_table` of one run: columns time_s, batch, freed."""
    s = run.samples
    count = s["batch"].diff()
    after = (s["rank"] == 0) & (count > 0)
    freed = -s["frames"].diff() / count.where(after)
    return pd.DataFrame({"time_s": s["time_s"], "batch": s["batch"], "freed": freed})[after]


def _long(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; the first column, run, has the label of each."""
    return pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True)


def batches(runs: Mapping[str, Run], ax: Axes | None = None, until: float | None = None) -> Axes:
    """Pages freed by each batch (logarithmic; batches that freed none are left out) against ``pages_to_scan``."""
    import seaborn as sns

    ax = ax or axes()[0]
    table = batches_table(runs)
    table = table[table["freed"] > 0]
    sns.scatterplot(
        table,
        x="time_s",
        y="freed",
        hue="run",
        style="run",
        hue_order=list(runs),
        style_order=list(runs),
        markers=dict(zip(runs, MARKERS, strict=False)),
        s=28,
        alpha=0.75,
        linewidth=0.3,
        edgecolor="#333333",
        ax=ax,
    )
    budgets = {run.scenario.pages_to_scan for run in runs.values()} - {0}
    for budget in sorted(budgets):
        ax.axhline(budget, color="#111111", linestyle=(0, (6, 3)), linewidth=1.4)
        ax.annotate(
            f"pages_to_scan = {budget:,}",
            (1, budget),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
        )
    end = until or max(run.samples["time_s"].iloc[-1] for run in runs.values())
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,g}")
    top = max([*budgets, table["freed"].max() if len(table) else 1])
    ax.set(
        xlabel=time_label(runs.values(), until), ylabel="pages freed by one batch", xlim=(0, end), ylim=(0.8, top * 4)
    )
    if len(table):
        ax.legend(title=None, loc="upper left", bbox_to_anchor=(0, 1.0), ncols=len(runs))
    return remember(ax, table, "batches")


# --- KSM's counters and what was freed ------------------------------------------------------------------------------


def counters_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """MiB over time, two rows a sample: what KSM's counters show saved (``pages_sharing`` + ``ksm_zero_pages``) and
    how much fewer frames are allocated than at the start. Columns run, time_s, what, MiB."""
    wide = {label: freed_and_shown(run).reset_index() for label, run in runs.items()}
    return _long({label: table.melt("time_s", var_name="what", value_name="MiB") for label, table in wide.items()})


def freed_and_shown(run: Run) -> pd.DataFrame:
    """:func:`counters_table` of one run: MiB, a column a kind, by simulated time in seconds (index ``time_s``)."""
    s = run.samples
    freed, shown = s["frames"].iloc[0] - s["frames"], s["pages_sharing"] + s["ksm_zero_pages"]
    table = pd.DataFrame({"really freed": freed * MIB_PER_PAGE, "KSM counters": shown * MIB_PER_PAGE})
    return table.set_axis(pd.Index(s["time_s"], name="time_s"))


def counters(runs: Mapping[str, Run], ax: Axes | None = None, until: float | None = None) -> Axes:
    """KSM's counters (thin, dashed) against memory really freed (broad), MiB over time, with a marker at the end."""
    from matplotlib.lines import Line2D

    ax = ax or axes()[0]
    table = counters_table(runs)
    broad, thin = {"linewidth": 6, "alpha": 0.35}, {"linewidth": 1.6, "linestyle": (0, (4, 1.5))}
    handles = []
    for number, label in enumerate(runs):
        colour, marker = f"C{number}", MARKERS[number]
        for what, look in (("really freed", broad), ("KSM counters", thin)):
            line = table[(table["run"] == label) & (table["what"] == what)]
            line = line[line["time_s"] <= (np.inf if until is None else until)]
            ax.step(line["time_s"], line["MiB"], where="post", color=colour, solid_capstyle="butt", **look)
            ax.plot(*line[["time_s", "MiB"]].iloc[-1], marker=marker, color=colour, clip_on=False, zorder=5)
            handles.append(Line2D([], [], color=colour, marker=marker, label=f"{label}: {what}", **look))
    ax.set(xlabel=time_label(runs.values(), until), ylabel="memory (MiB)", xlim=(0, until or table["time_s"].max()))
    ax.set_ylim(bottom=-0.02 * table["MiB"].max())
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=4)
    return remember(ax, table, "counters")


# --- CPU time of ksmd -----------------------------------------------------------------------------------------------


def cpu_table(runs: Mapping[str, Run], until: float | None = None, parts: int = 60) -> pd.DataFrame:
    """ksmd's CPU time as a share of one CPU: columns run, time_s (where a part of the time begins), percent.

    The time until ``until`` (default: the end of the longest run), s, is cut into equal ``parts``.
    """
    end = until or max(run.samples["time_s"].iloc[-1] for run in runs.values())
    edges = np.linspace(0, end, parts + 1)
    tables = []
    for label, run in runs.items():
        used = np.interp(edges, run.samples["time_s"], run.samples["ksmd_cpu_ns"] / 1e9)
        table = pd.DataFrame({"run": label, "time_s": edges[:-1], "percent": 100 * np.diff(used) * parts / end})
        tables.append(table[edges[:-1] < run.samples["time_s"].iloc[-1]])
    return pd.concat(tables, ignore_index=True)


# --- variants beside each other -------------------------------------------------------------------------------------


def rates(
    table: pd.DataFrame, ax: Axes | None = None, label: str = "rate (MB/s)", errors: pd.DataFrame | None = None
) -> Axes:
    """Two bars a variant: rate in KSM's counters and rate in frames really freed.

    Parameters
    ----------
    table : DataFrame
        A row a variant (index), the two columns to draw, MB/s. Not a number means that nothing was merged or freed.
    errors : DataFrame, optional
        Their standard errors, in the same rows and columns: a line across the end of each bar.
    """
    import seaborn as sns

    ax = ax or axes(height=0.5 + 0.42 * len(table))[0]
    index = table.index.name or "variant"
    long = table.rename_axis(index).reset_index().melt(index, var_name="what", value_name="rate").fillna({"rate": 0.0})
    sns.barplot(
        long,
        y=index,
        x="rate",
        hue="what",
        ax=ax,
        errorbar=None,
        palette=["#0173B2", "#ECD9A6"],
        saturation=1,
        edgecolor="#333333",
        linewidth=0.8,
    )
    for column, bars, hatch in zip(table, list(ax.containers), ["", "///"], strict=False):
        found = [0.0] * len(table) if errors is None else errors[column].reindex(table.index).fillna(0.0)
        for bar, error in zip(bars, found, strict=True):
            bar.set_hatch(hatch)
            where = (bar.get_width(), bar.get_y() + bar.get_height() / 2)
            if error > 0:
                ax.errorbar(*where, xerr=error, color="#111111", capsize=2.5, linewidth=1.2)
            ax.annotate(
                sure(where[0], error) if error > 0 else f"{where[0]:,.1f}",
                (where[0] + error, where[1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    ax.set(xlabel=label, ylabel="", xlim=(0, 1.1 * max(long["rate"].max(), 1e-9)))
    ax.legend(title=None, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    ax.grid(axis="y", visible=False)
    return remember(ax, with_errors(table, errors), "rates")


# --- a recorded kernel on the model's line --------------------------------------------------------------------------


def overlay_table(run: Run, recorded: Mapping[str, Any], columns: Sequence[str]) -> pd.DataFrame:
    """Model and recording side by side: columns batch, rank, column, model, recorded; one row a recorded sample."""
    trace = recorded_samples(recorded)
    both = trace.merge(run.samples, on=["batch", "rank"], suffixes=("_recorded", "_model"), validate="one_to_one")
    parts = []
    for column in columns:
        part = both[["batch", "rank"]].assign(column=column)
        part["model"], part["recorded"] = both[f"{column}_model"], both[f"{column}_recorded"]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def recorded_samples(recorded: Mapping[str, Any]) -> pd.DataFrame:
    """The samples of a kernel trace as a table, with their batch and rank."""
    samples = pd.DataFrame(recorded["samples"], columns=recorded["fields"])
    samples.insert(1, "rank", samples.groupby("batch").cumcount())
    return samples


def overlay(run: Run, recorded: Mapping[str, Any], columns: Mapping[str, str], title: str = "") -> list[Axes]:
    """A panel for each counter: the model's line and, as circles, what the kernel showed in the same batch.

    Parameters
    ----------
    run : Run
        The model's run of the trace's scenario.
    recorded : mapping
        The trace.
    columns : mapping
        Counter → its unit.
    """
    panels = axes(len(columns), height=2.9, sharex=True)
    table = overlay_table(run, recorded, list(columns))
    for panel, (column, unit) in zip(panels, columns.items(), strict=True):
        line = run.samples
        panel.plot(line["batch"], line[column], color="C0", drawstyle="steps-post", label="mmlab")
        points = table[table["column"] == column]
        panel.plot(
            points["batch"],
            points["recorded"],
            "o",
            color="#111111",
            markersize=4.5,
            markerfacecolor="none",
            markeredgewidth=1,
            label=f"Linux {recorded['kernel']}",
        )
        top = max(line[column].max(), points["recorded"].max(), 1)
        panel.set(xlabel="batch", ylabel=unit, ylim=(-0.05 * top, 1.08 * top))
        panel.set_title(column, fontweight="normal", fontsize=10)
        panel.yaxis.set_major_formatter(lambda v, _: f"{v:,g}")
    figure = figure_of(panels)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    remember(panels[0], table, "overlay")
    return panels


def says_and_truth(tables: Mapping[str, pd.DataFrame], unit: str = "pages", width: int = 3) -> list[Axes]:
    """A panel a counter: what it says (line with the kernel's samples as circles) on what is the case (broad band).

    Parameters
    ----------
    tables : mapping
        Title → columns ``sample`` (number), ``says``, ``truth``; and ``kernel``, what a recorded kernel's counter said,
        not a number where it has no sample. The last three are of the same unit.
    width : int
        Panels in a row.
    """
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(tables) // width)
    panels = axes(width, rows, width=11.5, height=0.5 + 2.7 * rows)
    for panel in panels[len(tables) :]:
        panel.set_axis_off()
    line: dict[str, Any] = {"where": "mid", "color": "#111111", "linewidth": 1.2}
    band: dict[str, Any] = {"where": "mid", "color": "#ECB01F", "linewidth": 6, "alpha": 0.6}
    dots: dict[str, Any] = {"color": "#111111", "markerfacecolor": "none", "markersize": 4, "markeredgewidth": 0.9}
    for panel, (title, data) in zip(panels, tables.items(), strict=False):
        panel.step(data["sample"], data["truth"], **band, label="in truth")
        panel.step(data["sample"], data["says"], **line, label="what it says, mmlab")
        panel.plot(data["sample"], data["kernel"], "o", **dots, label="what it says, Linux")
        low, high = data[["says", "truth"]].min(axis=None), data[["says", "truth"]].max(axis=None)
        low, room = min(low, 0), 0.07 * max(high - min(low, 0), 1)
        panel.set(xlabel="sample", ylabel=unit, ylim=(low - room, high + room))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.yaxis.set_major_formatter(lambda v, _: f"{v:,g}")
        panel.set_title(title, fontsize=9.5)
        remember(panel, data, "says_and_truth")
    figure_of(panels).legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return panels[: len(tables)]


# --- curves: a rate or a factor over a parameter --------------------------------------------------------------------


def crossings(table: pd.DataFrame, x: str, y: str, at: float, by: str) -> pd.DataFrame:
    """Where each curve passes ``at``, interpolated between its points (logarithmically where these are far apart).

    Columns ``by`` and ``x``; a curve that stays on one side of ``at`` has no row.
    """
    rows = []
    for name, part in table.sort_values(x).groupby(by, sort=False):
        part = part[np.isfinite(part[y]) & (part[y] > 0)]
        xs, ys = part[x].to_numpy(float), np.log(part[y].to_numpy(float) / at)
        for i in np.flatnonzero((ys[:-1] < 0) != (ys[1:] < 0)):
            share = ys[i] / (ys[i] - ys[i + 1])
            logs = xs[i] > 0 and xs[i + 1] / xs[i] > 1.5
            value = xs[i] * (xs[i + 1] / xs[i]) ** share if logs else xs[i] + share * (xs[i + 1] - xs[i])
            rows.append({by: name, x: value})
    return pd.DataFrame(rows, columns=[by, x])


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    marks: Mapping[float, str] | None = None,
    at: float | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """A curve for each value of ``by``, ``y`` logarithmic, lines at ``marks``, and a diamond where it passes ``at``.

    Curves differ in colour, dash and marker. An infinite ``y`` is an ∞ at the upper edge.

    Parameters
    ----------
    table : DataFrame
        A row a point. The names of its columns ``x`` and ``y`` are the axes' labels: they carry the units.
    marks : mapping
        Value of ``y`` → the words beside its line.
    log : bool
        Logarithmic x axis, too.
    """
    import seaborn as sns

    ax = ax or axes()[0]
    finite = table.reset_index(drop=True).replace({y: {np.inf: np.nan}})
    names = list(dict.fromkeys(table[by]))
    sns.lineplot(
        finite,
        x=x,
        y=y,
        hue=by,
        style=by,
        hue_order=names,
        style_order=names,
        estimator=None,
        errorbar=None,
        dashes=DASHES[: len(names)],
        markers=MARKERS[: len(names)],
        markersize=5,
        ax=ax,
    )
    if marks or (finite[y] > 0).any():
        ax.set_yscale("log")
    if log:
        ax.set_xscale("log")
    for value, words in (marks or {}).items():
        bold = value == at
        ax.axhline(value, color="#111111", linewidth=1.6 if bold else 0.8, linestyle=(0, (2, 2)), zorder=1)
        ax.annotate(
            words,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold" if bold else "normal",
        )
    if at is not None:
        for where in crossings(table, x, y, at, by)[x]:
            ax.plot(where, at, marker="D", color="#111111", markersize=7, zorder=6)
            words = f"{float(f'{where:.3g}'):,g}"  # not 1.5e+04
            ax.annotate(words, (where, at), xytext=(6, 6), textcoords="offset points", fontsize=9)
    for number, name in enumerate(names):
        for value in table[x][(table[by] == name) & np.isposinf(table[y])]:
            ax.annotate(
                "∞",
                (value, 1),
                xycoords=("data", "axes fraction"),
                color=f"C{number}",
                ha="center",
                va="top",
                fontsize=13,
            )
    drawn = [*(marks or ()), *finite[y][finite[y] > 0]] or [1.0]
    low, high = min(drawn), max(drawn)
    ax.set(xlabel=x, ylabel=y, ylim=(low * 0.7, high * 1.6))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,g}")
    if log:
        ticks = sorted(set(table[x]))
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.legend(title=by, loc="best", frameon=True, title_fontsize=9)
    return remember(ax, table, "curves")


# --- parts of a whole, and lines over time --------------------------------------------------------------------------

#: Colours and hatches of the parts of stacked bars, in order.
PARTS = [
    ("#0173B2", ""),
    ("#56B4E9", "..."),
    ("#029E73", "xxx"),
    ("#ECD9A6", "///"),
    ("#F4F4F4", "\\\\\\"),
    ("#CA9161", "++"),
]


def stacked(table: pd.DataFrame, label: str, ax: Axes | None = None, legend: bool = True) -> Axes:
    """A horizontal bar for each row, made of its columns; the number stands in each part that has room for it.

    Parameters
    ----------
    table : DataFrame
        Rows (index) and the parts of their bars (columns), not negative.
    label : str
        Of the x axis, with its unit.
    """
    ax = ax or axes(height=1.2 + 0.34 * len(table))[0]
    whole = max(float(table.sum(axis=1).max()), 1e-9)
    left = np.zeros(len(table))
    for number, part in enumerate(table):
        colour, hatch = PARTS[number % len(PARTS)]
        widths = table[part].fillna(0).to_numpy(float)
        bars = ax.barh(
            range(len(table)),
            widths,
            left=left,
            height=0.72,
            color=colour,
            hatch=hatch,
            edgecolor="#333333",
            linewidth=0.7,
            label=part,
        )
        for bar, width in zip(bars, widths, strict=True):
            if width >= 0.05 * whole:
                ax.text(
                    bar.get_x() + width / 2,
                    bar.get_y() + bar.get_height() / 2,
                    f"{width:,.3g}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
        left += widths
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.set(xlabel=label, ylabel="", xlim=(0, 1.02 * whole), ylim=(len(table) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handlelength=2.2, handleheight=1.1)
    return remember(ax, table, "stacked")


def steps(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    ax: Axes | None = None,
    until: float | None = None,
    legend: bool = True,
) -> Axes:
    """A step line for each value of ``by``, in a colour, dash, width and marker of its own: lines on each other show.

    Parameters
    ----------
    table : DataFrame
        A row a point. The names of its columns ``x`` and ``y`` are the axes' labels: they carry the units.
    until : float, optional
        End of the x axis.
    """
    ax = ax or axes()[0]
    names = list(dict.fromkeys(table[by]))
    end = float(table[x].max()) if until is None else until
    for number, name in enumerate(names):
        line = table[(table[by] == name) & (table[x] <= end)]
        at, height = line[x].to_numpy(float), line[y].to_numpy(float)
        dashes = DASHES[number % len(DASHES)]
        ax.step(
            at,
            height,
            where="post",
            color=f"C{number}",
            linewidth=3.2 - 0.35 * number,
            linestyle=(0, dashes) if dashes else "-",
        )
        share = (np.arange(7) + (number + 1) / (len(names) + 1)) / 7  # the lines' markers beside each other
        marked = end * share[end * share <= at[-1]]
        places = np.maximum(np.searchsorted(at, marked, side="right") - 1, 0)
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(marked, height[places], marker, color=f"C{number}", markersize=6, markeredgecolor="white")
        style = (0, dashes) if dashes else "-"
        ax.plot([], [], color=f"C{number}", marker=marker, markersize=6, linestyle=style, label=name)
    top = float(table[y].max())
    ax.set(xlabel=x, ylabel=y, xlim=(0, end), ylim=(-0.03 * top, 1.06 * top) if top > 0 else (-0.1, 1))
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handlelength=4)
    return remember(ax, table, "steps")


#: What the signs of a verdict's cells mean, for the legend.
SIGNS = {"+": "best of the row (+)", " ": "in between", "-": "worst (−)", "=": "all the same"}


def verdict_table(
    cells: pd.DataFrame,
    marks: pd.DataFrame,
    text: pd.DataFrame,
    ax: Axes | None = None,
    signs: Mapping[str, str] = SIGNS,
) -> Axes:
    """A table as a figure: dark cells are the worst of their row, light ones in between, white ones the best.

    Parameters
    ----------
    cells : DataFrame
        Rows and columns, for their names.
    marks, text : DataFrame
        For each cell its sign (``+``, ``-``, ``=`` or blank) and its words.
    signs : mapping
        Sign → what it means, for the legend.
    """
    from matplotlib.patches import Patch, Rectangle

    ax = ax or axes(height=0.9 + 0.29 * len(cells))[0]
    looks = {"+": "#FFFFFF", " ": "#BFD9EA", "-": "#4C86AE", "=": "#EFEFEF"}
    for i, row in enumerate(cells.index):
        for j, column in enumerate(cells.columns):
            mark = str(marks.loc[row, column])
            ax.add_patch(Rectangle((j, i), 1, 1, facecolor=looks[mark], edgecolor="white", linewidth=1.5))
            sign = {"+": "+", "-": "−"}.get(mark, "")
            ax.text(
                j + 0.5,
                i + 0.5,
                f"{text.loc[row, column]} {sign}".strip(),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if mark == "-" else "#111111",
                fontweight="bold" if mark == "+" else "normal",
            )
    ax.set(xlim=(0, len(cells.columns)), ylim=(len(cells), 0), xlabel="", ylabel="")
    ax.set_xticks(np.arange(len(cells.columns)) + 0.5, list(cells.columns))
    ax.set_yticks(np.arange(len(cells)) + 0.5, list(cells.index))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    patches = [Patch(facecolor=looks[m], edgecolor="#888888", label=words) for m, words in signs.items()]
    if any("*" in row for row in map(str, cells.index)):
        patches.append(Patch(alpha=0, label="* from the text only"))
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, 0), ncols=len(patches))
    return remember(ax, cells, "verdict")


# --- a variant of one's own -----------------------------------------------------------------------------------------


def truth_table(
    table: pd.DataFrame,
    possible: Sequence[bool],
    ax: Axes | None = None,
    text: pd.DataFrame | None = None,
    words: tuple[str, str] = ("becomes the zeropage", "stays a page"),
) -> Axes:
    """What each variant answers in each context: dark where it remaps, hatched where the context cannot happen.

    Parameters
    ----------
    table : DataFrame
        Such as :func:`mmlab.verdict.truth_table` gives: contexts (index), variants (columns), booleans.
    possible : sequence of bool
        For each context whether it can happen.
    text : DataFrame, optional
        What is written into the cells, of the same shape.
    words : tuple of str
        What true and false are, for the legend.
    """
    from matplotlib.patches import Patch, Rectangle

    ax = ax or axes(width=11.5, height=2.2 + 0.28 * len(table.columns))[0]
    callers = list(dict.fromkeys(context.caller for context in table.index))
    flags = {"mergeable memory": "mergeable", "KSM runs": "ksm_running", "shrink_underused": "shrink_underused"}
    bottom = len(table.columns)
    looks: dict[bool, dict[str, Any]] = {True: {"facecolor": "#0173B2"}, False: {"facecolor": "#F1F1F1"}}
    hatched: dict[str, Any] = {"facecolor": "#FFFFFF", "hatch": "xxxx", "edgecolor": "#BBBBBB", "linewidth": 0}
    for number, context in enumerate(table.index):
        x = number + 0.8 * callers.index(context.caller)
        for y in range(bottom):
            yes = bool(table.iat[number, y])
            look = looks[yes] if possible[number] else hatched
            ax.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, **look))
            if text is not None and possible[number]:
                colour = "white" if yes else "#111111"
                ax.text(x + 0.5, y + 0.5, str(text.iat[number, y]), color=colour, ha="center", va="center", fontsize=9)
        for y, flag in enumerate(flags.values()):
            style = "full" if getattr(context, flag) else "none"
            ax.plot(x + 0.5, bottom + 0.6 + 0.8 * y, "o", color="#111111", markersize=5, fillstyle=style)
    for number, caller in enumerate(callers):
        size = len(table) / len(callers)
        ax.text((number + 0.5) * size + 0.8 * number, -0.25, f"split by: {caller}", ha="center", fontsize=10)
    ax.set(xlim=(0, len(table) + 0.8 * (len(callers) - 1)), ylim=(bottom + 2.7, -0.9), xlabel="", ylabel="")
    ax.set_xticks([])
    ticks = [*np.arange(bottom) + 0.5, *(bottom + 0.6 + 0.8 * np.arange(len(flags)))]
    ax.set_yticks(ticks, [*map(str, table.columns), *flags])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    patches = [Patch(**looks[yes], label=word) for yes, word in zip((True, False), words, strict=True)]
    patches.append(Patch(**hatched | {"linewidth": 1}, label="cannot happen"))
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, 0), ncols=3)
    shown = table if text is None else text
    return remember(ax, shown.set_axis(list(map(_context, table.index))), "truth_table")


def _context(context: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in vars(context).items())


# --- the page map ---------------------------------------------------------------------------------------------------


def page_map_table(letters: np.ndarray) -> pd.DataFrame:
    """Pages of each kind in a page map: index the letter, columns kind and pages."""
    codes, counts = np.unique(letters, return_counts=True)
    names = {ord(letter): kind for letter, (kind, _) in LETTERS.items()}
    rows = {chr(code): (names.get(int(code), "?"), int(n)) for code, n in zip(codes, counts, strict=True)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "pages"])


def page_map(letters: np.ndarray, pages_per_thp: int = 512, ax: Axes | None = None) -> Axes:
    """One row a 2 MiB block, one dot a page, coloured by kind; addresses grow downwards and to the right.

    Parameters
    ----------
    letters : array of uint8
        One letter of :data:`LETTERS` a page, such as :meth:`Run.page_map` gives.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    ax = ax or axes(height=3.6)[0]
    blocks = -(-len(letters) // pages_per_thp)
    filled = np.full(blocks * pages_per_thp, ord("N"), np.uint8)
    filled[: len(letters)] = letters
    present = [letter for letter in LETTERS if (letters == ord(letter)).any()]
    codes = np.searchsorted(np.sort([ord(c) for c in LETTERS]), filled.reshape(blocks, pages_per_thp))
    ordered = sorted(LETTERS)
    colours = ListedColormap([LETTERS[c][1] for c in ordered])
    ax.imshow(
        codes,
        cmap=colours,
        norm=BoundaryNorm(range(len(ordered) + 1), len(ordered)),
        interpolation="nearest",
        aspect="auto",
        extent=(0, pages_per_thp, blocks, 0),
    )
    ax.set(xlabel="page within its block (4 KiB each)", ylabel="2 MiB block")
    ax.grid(visible=False)
    patches = [Patch(facecolor=LETTERS[c][1], edgecolor="#333333", label=f"{c}  {LETTERS[c][0]}") for c in present]
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return remember(ax, page_map_table(letters), "page_map")


def maps_compared(maps: Mapping[str, tuple[np.ndarray, np.ndarray]], pages_per_thp: int = 512) -> list[Axes]:
    """Three page maps in a row for each of ``maps``: the kernel's, the model's, and where they differ (black).

    Parameters
    ----------
    maps : mapping
        What was compared → the kernel's letters and the model's, one :data:`LETTERS` a page.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    panels = axes(3, len(maps), width=11.5, height=0.9 + 2.3 * len(maps), sharex=True, sharey="row")
    handles: dict[str, Any] = {}
    for row, (what, pair) in enumerate(maps.items()):
        three = panels[3 * row : 3 * row + 3]
        for panel, letters, who in zip(three, pair, ("kernel", f"model, {what}"), strict=False):
            page_map(letters, pages_per_thp, panel)
            legend = panel.get_legend()
            assert legend is not None
            kinds = [text.get_text() for text in legend.get_texts()]
            handles |= dict(zip(kinds, legend.get_patches(), strict=True))
            legend.remove()
            panel.set_title(who, fontsize=9.5)
        differ = pair[0] != pair[1]
        blocks = -(-len(differ) // pages_per_thp)
        shown = np.zeros(blocks * pages_per_thp, bool)
        shown[: len(differ)] = differ
        three[2].imshow(
            shown.reshape(blocks, pages_per_thp),
            cmap=ListedColormap(["#FFFFFF", "#111111"]),
            vmin=0,
            vmax=1,
            interpolation="nearest",
            aspect="auto",
            extent=(0, pages_per_thp, blocks, 0),
        )
        three[2].grid(visible=False)
        three[2].set_title(f"different: {differ.sum():,} of {len(differ):,} pages", fontsize=9.5)
        three[2].set(xlabel="page within its block (4 KiB each)")
        three[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for panel in three[1:]:
            panel.set_ylabel("")
        for panel in three if row < len(maps) - 1 else ():
            panel.set_xlabel("")
    figure_of(panels).legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return panels


# --- what a goal costs ----------------------------------------------------------------------------------------------


def tradeoff(
    table: pd.DataFrame, x: str, y: str, by: str, mark: str, within: tuple[float, float], ax: Axes | None = None
) -> Axes:
    """Curves of what one thing costs in another, both logarithmic; the shaded corner is what is wanted.

    Parameters
    ----------
    table : DataFrame
        A row a point, in the order of its curve. The names of its columns ``x`` and ``y`` are the axes' labels.
    mark : str
        The column whose value stands beside the points.
    within : pair of float
        Largest ``x`` and largest ``y`` that will do.
    """
    from matplotlib.patches import Patch

    ax = ax or axes()[0]
    drawn = table[(table[x] > 0) & (table[y] > 0)]
    names = list(dict.fromkeys(table[by]))
    for number, name in enumerate(names):
        line = drawn[drawn[by] == name]
        dashes = DASHES[number % len(DASHES)]
        ax.plot(
            line[x],
            line[y],
            color=f"C{number}",
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=name,
            linestyle=(0, dashes) if dashes else "-",
        )
        for at, height, value in line[[x, y, mark]].iloc[::2].itertuples(index=False):
            ax.annotate(
                f"{value:,g}",
                (at, height),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=8,
                color=f"C{number}",
            )
    low, bottom = min([*drawn[x], within[0]]) / 1.5, min([*drawn[y], within[1]]) / 1.5
    high, top = max([*drawn[x], within[0]]) * 2.0, max([*drawn[y], within[1]]) * 1.5
    ax.set(xlabel=x, ylabel=y, xlim=(low, high), ylim=(bottom, top), xscale="log", yscale="log")
    look: dict[str, Any] = {"facecolor": "#E8E8E8", "edgecolor": "#555555", "hatch": "..", "linewidth": 0.8}
    ax.fill_between([low, within[0]], bottom, within[1], zorder=0, **look)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda v, _: f"{v:,g}")
    ax.legend(handles=[*ax.get_legend_handles_labels()[0], Patch(**look, label="the goal")], loc="best", frameon=True)
    return remember(ax, table, "tradeoff")


# --- khugepaged against ksmd ----------------------------------------------------------------------------------------


def blocks_table(time_s: np.ndarray, letters: np.ndarray) -> pd.DataFrame:
    """What each 2 MiB block mostly is: index ``time_s``, a column a block, one of :data:`LETTERS`; H: one huge page.

    Parameters
    ----------
    time_s : array of float
        When the page maps were taken.
    letters : array of uint8, [time, block, page]
        Such as :func:`mmlab.studies.pingpong.block_maps` gives.
    """
    kinds = np.array([ord(letter) for letter in LETTERS], np.uint8)
    counts = np.stack([(letters == kind).sum(axis=2) for kind in kinds])
    counts[0] *= counts[0] == letters.shape[2]  # a block is huge as a whole, or not
    table = pd.DataFrame(kinds[counts.argmax(axis=0)].view("S1").astype(str))
    return table.set_axis(pd.Index(time_s, name="time_s"))


def blocks(time_s: np.ndarray, letters: np.ndarray, ax: Axes | None = None) -> Axes:
    """A row a 2 MiB block over simulated time, coloured by what most of it is; a triangle where it became huge again.

    Parameters are those of :func:`blocks_table`.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    ax = ax or axes(height=4.6)[0]
    table = blocks_table(time_s, letters)
    names = list(LETTERS)
    codes = table.to_numpy()
    numbers = np.vectorize(names.index)(codes)
    edges = [*time_s, time_s[-1] + ((time_s[-1] - time_s[0]) / max(1, len(time_s) - 1) or 1.0)]
    ax.pcolormesh(
        edges,
        np.arange(codes.shape[1] + 1),
        numbers.T,
        cmap=ListedColormap([LETTERS[c][1] for c in names]),
        norm=BoundaryNorm(range(len(names) + 1), len(names)),
    )
    when, block = np.nonzero((codes[1:] == "H") & (codes[:-1] != "H"))
    marks: dict[str, Any] = {"marker": "^", "color": "#FFFFFF", "markeredgecolor": "#111111", "linestyle": "none"}
    ax.plot(time_s[when + 1], block + 0.5, markersize=float(np.clip(150 / codes.shape[1], 2, 6)), **marks)
    present = [letter for letter in names if (codes == letter).any()]
    for letter in present:  # in words, too: where it stays longest
        stays = np.diff(edges) @ (codes == letter)
        block_of = int(np.flatnonzero(stays == stays.max()).mean())
        at = np.flatnonzero(codes[:, block_of] == letter)
        if stays[block_of] > 0.1 * edges[-1]:
            ax.text(
                time_s[at[len(at) // 2]],
                block_of + 0.5,
                letter,
                ha="center",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "#555555", "pad": 2, "linewidth": 0.5},
            )
    ax.set(xlabel="simulated time (s)", ylabel="2 MiB block", xlim=(0, edges[-1]), ylim=(codes.shape[1], 0))
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.grid(visible=False)
    handles: list[Any] = [
        Patch(facecolor=LETTERS[c][1], edgecolor="#333333", label=f"{c}  {'mostly ' * (c != 'H')}{LETTERS[c][0]}")
        for c in present
    ]
    if len(when):
        handles.append(Line2D([], [], markersize=6, label="collapsed", **marks))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return remember(ax, table, "blocks")


def heat(
    tables: Mapping[str, pd.DataFrame], label: str, *, signed: bool = False, digits: int = 3, width: int = 2
) -> list[Axes]:
    """Numbers over two settings as colours, a panel a table, all on one scale; each is also written into its field.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Numbers by panel's title. The names of index and columns are the axes' labels; NaN: none, a blank field.
    label : str
        What the numbers are, with their unit.
    signed : bool
        Differences: two hues from white at 0, and a sign before each number.
    digits : int
        Significant digits.
    width : int
        Panels in a row.

    Raises
    ------
    ValueError
        There is no table.
    """
    import seaborn as sns

    rows, columns = max(map(len, tables.values())), max(len(table.columns) for table in tables.values())
    across = min(width, len(tables))
    down = -(-len(tables) // across)
    panels = axes(across, down, across * (1.7 + 0.56 * columns), down * (1.0 + 0.34 * rows), sharey=True, sharex=True)
    values = np.concatenate([table.to_numpy(float).ravel() for table in tables.values()])
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    low = -top if signed else min(0.0, float(np.nanmin(values, initial=0.0)))
    look = {"vmin": low, "vmax": top, "cmap": "PuOr_r" if signed else "cividis_r", "cbar": False}
    for panel, (title, numbers) in zip(panels, tables.items(), strict=False):
        text = {"fmt": f"{'+' if signed else ''}.{digits}g", "annot": True, "annot_kws": {"size": 8}}
        sns.heatmap(numbers.astype(float), ax=panel, linewidths=0.5, **look, **text)
        panel.invert_yaxis()
        panel.set_title(title)
        panel.tick_params("x", rotation=45)
        panel.tick_params("y", rotation=0)
        panel.label_outer()
        remember(panel, numbers, "heat")
    for panel in panels[len(tables) :]:
        panel.set_axis_off()
    figure_of(panels).colorbar(panels[0].collections[0], ax=panels, label=label, shrink=0.9)
    return panels[: len(tables)]


def grid(table: pd.DataFrame, label: str, ax: Axes | None = None) -> Axes:
    """A number for each pair of two settings, in a field that is the darker the larger it is; 0 is white and bold.

    Parameters
    ----------
    table : DataFrame
        Numbers, not negative. The names of its index and columns are the axes' labels.
    label : str
        What the numbers are, with their unit: the title.
    """
    ax = ax or axes(width=6.0, height=1.4 + 0.36 * len(table))[0]
    values = table.to_numpy(float)
    top = max(float(np.nanmax(values)), 1e-9)
    ax.imshow(np.sqrt(values / top), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for i, j in np.ndindex(values.shape):
        none = values[i, j] == 0
        ax.text(
            j,
            i,
            f"{values[i, j]:,.4g}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if none else "normal",
            color="#111111" if values[i, j] < 0.5 * top else "#FFFFFF",
        )
    ax.set_xticks(range(len(table.columns)), [f"{value:,}" for value in table.columns])
    ax.set_yticks(range(len(table)), [f"{value:,}" for value in table.index])
    ax.set(xlabel=str(table.columns.name), ylabel=str(table.index.name))
    ax.set_title(label, fontsize=10)
    ax.grid(visible=False)
    return remember(ax, table, "grid")
