"""Figures and the tables they are drawn from: every number in a figure can be printed, saved or compared.

All functions return Axes, draw into the Axes they are given, so that figures can be combined, and end with
:func:`remember`, which notes the table that was drawn: a report saves it beside the page. :func:`show` displays a
figure in a notebook with its alternative text.

Drawers of tables, for a study's ``plot``:

- ``curves(table, x, y, by)``: a curve for each value of ``by``, logarithmic, with marked values and crossings
- ``steps(table, x, y, by)``: step lines over time or another quantity
- ``tradeoff(table, x, y, by, mark, within)``: one quantity against what it costs in another
- ``bars(table, label)``: horizontal bars with their values and errors, beside each other or stacked
- ``heat(tables, label)``: numbers over two settings as colours
- ``verdict_table``, ``truth_table``: tables with coloured cells
- ``overlay``, ``says_and_truth``: what the model and a kernel show
- ``memory``, ``batches``, ``counters``, ``cpu``: runs over simulated time
- ``page_map``, ``maps_compared``, ``blocks``: kinds of page
- ``side_by_side(draw, things)``: any of these, a panel a run or table, with one legend

Names of columns are the axes' labels and contain the units. ``figure_of(axes)`` is the Figure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from mmlab.figures import theme
from mmlab.figures.charts import batches, counters, cpu, end_of_changes, memory, time_label
from mmlab.figures.notebook import headline, png, remember, say, show, sure, table, with_errors
from mmlab.figures.theme import CELLS, LETTERS, LOOK, SIGNS, axes, figure_of, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Ax: TypeAlias = Axes | None
    Draw: TypeAlias = Callable[..., Axes]
    Marks: TypeAlias = Mapping[float, str] | None
    Named: TypeAlias = Mapping[str, Any]
    Table: TypeAlias = pd.DataFrame

__all__ = ["axes", "bars", "batches", "blocks", "blocks_table", "counters", "cpu", "crossings", "curves"]
__all__ += ["end_of_changes", "figure_of", "headline", "heat", "legend_below", "maps_compared", "memory", "overlay"]
__all__ += ["page_map", "page_map_table", "png", "recorded_samples", "say", "says_and_truth"]
__all__ += ["show", "side_by_side", "steps", "sure", "table", "time_label", "tradeoff", "truth_table"]
__all__ += ["verdict_table"]

PLAIN = "{x:,g}"


# --- panels -----------------------------------------------------------------------------------------------------------


def side_by_side(
    draw: Draw, things: Named, *args: Any, width: int = 3, height: float = 3.8, sharex: bool = True, **how: Any
) -> list[Axes]:
    """Draw one figure a run or table, each titled with its label, on common scales and with one legend.

    Where the label of the x axis is ``{}``, it is the title.

    Parameters
    ----------
    draw : callable
        Any figure function that has the parameter ``ax``. It gets the thing and the other arguments.
    things : mapping
        Title → what `draw` draws.
    width, height
        Axes in a row, and inches of a row.
    sharex : bool
        Whether all have one x axis.
    """
    across = min(width, len(things))
    down = -(-len(things) // across)
    size = {"width": 9.6 if across < 3 else 11.5, "height": height * down}
    panels = axes(across, down, **size, count=len(things), sharex=sharex, sharey=True)
    spans = []
    for ax, (label, thing) in zip(panels, things.items(), strict=True):
        draw(thing, *args, ax=ax, **how).set(title=label, xlabel=ax.get_xlabel().format(label))
        ax.label_outer()
        spans.append(ax.get_ylim())
    if all(low < high for low, high in spans):  # each has set the common scale to its own
        ax.set_ylim(min(low for low, _ in spans), max(high for _, high in spans))
    legend_below(panels)
    return panels


# --- the model and a recorded kernel --------------------------------------------------------------------------------


def recorded_samples(recorded: Mapping[str, Any]) -> pd.DataFrame:
    """Return the samples of a recording as a table, with their batch and rank."""
    samples = pd.DataFrame(recorded["samples"], columns=recorded["fields"])
    samples.insert(1, "rank", samples.groupby("batch").cumcount())
    return samples


def overlay(
    pairs: Mapping[tuple[str, str], tuple[Table, Table]], columns: Mapping[str, str], title: str = ""
) -> list[Axes]:
    """Draw counters of the model as lines, a kernel's as points, and the kernel's less the model's in panels below.

    Parameters
    ----------
    pairs : mapping
        Labels of model and kernel → their samples, with batch and rank. Those that only one of both has are not
        compared.
    columns : mapping
        Counter → its unit.
    """
    panels = axes(len(columns), 2, height=4.0, sharex=True, height_ratios=[3, 1])
    for ax, below, (column, unit) in zip(panels, panels[len(columns) :], columns.items(), strict=False):
        data = {}
        for number, (labels, samples) in enumerate(pairs.items()):
            model, kernel = (one.set_index(["batch", "rank"])[column] for one in samples)
            table = pd.DataFrame({"model": model, "recorded": kernel.reindex(model.index)}).reset_index()
            line, point = theme.style(number), LOOK["recorded"] | {"markersize": 4.5 + 1.5 * number}
            point |= {"marker": line.pop("marker")} | ({"color": line["color"]} if len(pairs) > 1 else {})
            line |= {"label": labels[0], "linewidth": 1.5, "drawstyle": "steps-post"}
            ax.plot("batch", "model", data=table, **line)
            ax.plot("batch", "recorded", data=table, label=labels[1], **point)
            below.plot(table["batch"], table["recorded"] - table["model"], **point)
            data[labels[1]] = table
        ax.update_datalim([(0, 0), (0, 1)])
        below.update_datalim([(0, -1), (0, 1)])
        ax.set_title(column, fontsize=9.5)
        ax.set(ylabel=unit, ymargin=0.07)
        below.set(xlabel="batch", ylabel=f"diff. {unit}".strip())
        remember(ax, pd.concat(data, names=["of"]).droplevel(1) if len(pairs) > 1 else table, "overlay")
        for each in (ax, below):
            each.yaxis.set_major_formatter(PLAIN)
    figure_of(panels).suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    legend_below(panels, ncols=4)
    return panels


def says_and_truth(tables: Mapping[str, pd.DataFrame]) -> list[Axes]:
    """Draw what counters show (lines, with the kernel's samples as circles) on the true values (broad bands).

    Parameters
    ----------
    tables : mapping
        Title → columns ``sample`` (number), ``model``, ``truth``, and ``recorded`` (what a kernel's counter showed, NaN
        where it has no sample). The last three are pages.
    """
    rows = -(-len(tables) // 3)
    panels = axes(min(3, len(tables)), rows, 11.5, 0.5 + 2.7 * rows, len(tables))
    for ax, (title, data) in zip(panels, tables.items(), strict=True):
        for column in ("truth", "model", "recorded"):
            ax.plot("sample", column, data=data, drawstyle="steps-mid", **{"label": "Linux"} | LOOK[column])
        ax.update_datalim([(0, 0), (0, 1)])
        ax.set(xlabel="sample", ylabel="pages", ymargin=0.07)
        ax.set_title(title, fontsize=9.5)
        ax.yaxis.set_major_formatter(PLAIN)
        remember(ax, data, "says_and_truth")
    legend_below(panels)
    return panels


# --- lines: one quantity over another, a line for each value of a column --------------------------------------------


def crossings(table: pd.DataFrame, x: str, y: str, at: float, by: str) -> pd.DataFrame:
    """Return where each curve passes ``at``, interpolated between its points (logarithmically if they are far apart).

    Columns ``by`` and ``x``, curves in the order of the table; one that stays on one side of ``at`` has no row.
    """
    rows = []
    for name, part in table[np.isfinite(table[y]) & (table[y] > 0)].groupby(by, sort=False):
        xs, ys = part.sort_values(x)[[x, y]].to_numpy(float).T
        above = np.log(ys / at)
        for i in np.flatnonzero((above[:-1] < 0) != (above[1:] < 0)):
            (left, right), share = xs[i : i + 2], above[i] / (above[i] - above[i + 1])
            far = left > 0 and right / left > 1.5
            rows.append((name, left * (right / left) ** share if far else left + share * (right - left)))
    return pd.DataFrame(rows, columns=[by, x])


def curves(
    table: Table, x: str, y: str, by: str, marks: Marks = None, at: float = 0, log: bool = False, ax: Ax = None
) -> Axes:
    """Draw a curve for each value of ``by``, ``y`` logarithmic, with lines at ``marks`` and a diamond at each crossing.

    Curves differ in colour, dash and marker. An infinite ``y`` is an ∞ at the upper edge.

    Parameters
    ----------
    table : DataFrame
        A row a point. The names of its columns ``x`` and ``y`` are the axes' labels: they contain the units.
    marks : mapping
        Value of ``y`` → the text beside its line.
    at : float, optional
        Value of ``y`` whose crossings are marked.
    log : bool
        Make the x axis logarithmic, too.
    """
    ax, marks = ax or axes()[0], marks or {}
    top: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "fontsize": 13}
    for number, (name, part) in enumerate(table.groupby(by, sort=False)):
        line = part[np.isfinite(part[y])].sort_values(x)
        ax.plot(line[x], line[y], label=name, **theme.style(number), **LOOK["points"])
        for value in part[x][np.isposinf(part[y])]:
            theme.write(ax, "∞", (value, 1), (0, 0), color=f"C{number}", **top)
    _mark(ax, marks, at)
    if at:
        for where in crossings(table, x, y, at, by)[x]:
            ax.plot(where, at, **LOOK["crossing"])
            theme.write(ax, f"{float(f'{where:.3g}'):,g}", (where, at), (6, 9), bbox=LOOK["box"])  # not 1.5e+04
    drawn = [*marks, *table[y][np.isfinite(table[y]) & (table[y] > 0)]]
    if drawn:
        ax.set(yscale="log", ylim=(min(drawn) * 0.7, max(drawn) * 1.6))
        ax.yaxis.set_minor_formatter(PLAIN if max(drawn) < 20 * min(drawn) else "")
    ax.set(xlabel=x, ylabel=y)
    ax.yaxis.set_major_formatter(PLAIN)
    if log:
        ticks = sorted(set(table[x]))
        pairs = zip(ticks, [*ticks[1:], np.inf], strict=True)
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:,g}" if 1.25 * tick < after else "" for tick, after in pairs])
        ax.set_xticks([], minor=True)
    ax.legend(loc="best", frameon=True)
    return remember(ax, table, "curves")


def _mark(ax: Axes, marks: Mapping[float, str], at: float | None = None) -> None:
    """Draw a line across the axes at each value, with its text; the one at ``at`` is heavy."""
    for value, words in marks.items():
        width, weight = (1.6, "bold") if value == at else (0.8, "normal")
        ax.axhline(value, linewidth=width, **LOOK["mark"])
        theme.write(ax, words, (1, value), xycoords=("axes fraction", "data"), fontweight=weight)


def tradeoff(table: Table, x: str, y: str, by: str, mark: str, within: tuple[float, float], ax: Ax = None) -> Axes:
    """Draw one quantity against what it costs in another, both logarithmic; the goal is the shaded corner.

    Parameters
    ----------
    table : DataFrame
        A row a point, in the order of its curve. The names of its columns ``x`` and ``y`` are the axes' labels.
    mark : str
        The column whose value is written beside every other point.
    within : pair of float
        Largest ``x`` and largest ``y`` that meet the goal.
    """
    ax, drawn = ax or axes()[0], table[(table[x] > 0) & (table[y] > 0)]
    for number, (name, line) in enumerate(drawn.groupby(by, sort=False)):
        ax.plot(line[x], line[y], label=name, **theme.style(number), **LOOK["points"])
        for at, height, value in line[[x, y, mark]].iloc[::2].itertuples(index=False):
            theme.write(ax, f"{value:,g}", (at, height), (6, 7), fontsize=8, color=f"C{number}", bbox=LOOK["box"])
    edges = np.vstack([drawn[[x, y]], within])
    (left, bottom), (right, top) = edges.min(axis=0) / 1.5, edges.max(axis=0) * (2.0, 1.5)
    ax.fill_between([left, within[0]], bottom, within[1], **LOOK["goal"])
    ax.set(xlabel=x, ylabel=y, xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_major_formatter(PLAIN)
    ax.legend(loc="best", frameon=True)
    return remember(ax, table, "tradeoff")


def steps(
    table: Table, x: str, y: str, by: str, ax: Ax = None, until: float = 0, marks: Marks = None, log: bool = False
) -> Axes:
    """Draw a step line for each value of ``by``; see :func:`~mmlab.figures.theme.step_line`.

    Parameters
    ----------
    table : DataFrame
        A row a point. The names of its columns ``x`` and ``y`` are the axes' labels: they contain the units.
    until : float
        End of the x axis; 0: where the table ends.
    marks : mapping
        Value of ``y`` → the text beside its line.
    log : bool
        Make the y axis logarithmic.
    """
    ax, end = ax or axes()[0], until or float(table[x].max())
    top = float(table[y].max())
    ax.set(xlabel=x, ylabel=y, xlim=(0, end), ymargin=0.06)
    for number, (name, part) in enumerate(table.groupby(by, sort=False)):
        last = min(end, part[x].iloc[-1])
        across, up, look = theme.step_line(part[x], part[y], last, number, table[by].nunique(), end)
        ax.plot(across, up, label=name, **look)
    _mark(ax, marks or {})
    if log and top > 0:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter("")
    else:
        ax.update_datalim([(0, 0), (0, top or 1)])
    ax.yaxis.set_major_formatter(PLAIN)
    ax.legend(**LOOK["above"], ncols=2, handlelength=4)
    return remember(ax, table, "steps")


# --- bars -----------------------------------------------------------------------------------------------------------


def bars(table: Table, label: str, ax: Ax = None, errors: Table | None = None, stacked: bool = False) -> Axes:
    """Draw a horizontal bar for each column of each row, beside each other or stacked, with the values as text.

    Parameters
    ----------
    table : DataFrame
        Names (index) and values, not negative. NaN is drawn as 0.
    label : str
        Label of the x axis, with its unit.
    errors : DataFrame, optional
        Standard errors, in the same rows and columns: a line across the end of each bar.
    stacked : bool
        Stack the columns; only parts that have room for their value show it.
    """
    ax = ax or axes(height=1.0 + (0.34 if stacked else 0.2 * len(table.columns)) * len(table))[0]
    values, left = table.fillna(0.0).astype(float), np.zeros(len(table))
    sigma = (values * 0 if errors is None else errors.reindex_like(values)).fillna(0.0)
    whole = max(float(values.sum(axis=1).max() if stacked else (values + sigma).max(axis=None)), 1e-9)
    height = 0.72 if stacked else 0.8 / len(table.columns)
    for number, column in enumerate(table):
        look = theme.PARTS[number * (1 if stacked else 3) % len(theme.PARTS)]
        places = np.arange(len(table)) + (0 if stacked else height * (number + 0.5) - 0.4)
        error = None if errors is None else sigma[column].where(sigma[column] > 0)
        drawn = ax.barh(places, values[column], height, left, xerr=error, error_kw=LOOK["error"], label=column, **look)
        if stacked:
            parts = [f"{float(f'{value:.3g}'):,g}" if value >= 0.05 * whole else "" for value in values[column]]
            ax.bar_label(drawn, parts, label_type="center", fontsize=8, bbox=LOOK["box"])
            left = left + values[column].to_numpy()
        else:
            ax.bar_label(drawn, [*map(sure, values[column], sigma[column])], padding=4, fontsize=8)
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.set(xlabel=label, xlim=(0, (1.02 if stacked else 1.1) * whole), ylim=(len(table) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.legend(**LOOK["above"], ncols=3)
    return remember(ax, with_errors(table, errors), "bars")


# --- tables as figures ----------------------------------------------------------------------------------------------


def verdict_table(
    cells: pd.DataFrame, marks: pd.DataFrame, text: pd.DataFrame, ax: Ax = None, signs: dict[str, str] = SIGNS
) -> Axes:
    """Draw a table: dark cells are the worst of their row, white ones the best, light ones are in between.

    Parameters
    ----------
    cells : DataFrame
        What is remembered; the names of its rows and columns are drawn.
    marks, text : DataFrame
        For each cell its sign (``+``, ``-``, ``=`` or blank) and its text.
    signs : mapping
        Sign → its meaning, for the legend.
    """
    ax = ax or axes(height=0.9 + 0.29 * len(cells))[0]
    suffix = marks.replace({"+": " +", "-": " −", "=": "", " ": ""}).to_numpy()
    _draw_cells(ax, marks.set_axis(cells.columns, axis=1), text.astype(str).to_numpy() + suffix, signs)
    legend_below([ax], ncols=len(signs))
    ax.xaxis.tick_top()
    if any("*" in str(row) for row in cells.index):
        ax.set_xlabel("* from the text only", loc="right", fontsize=9)
    return remember(ax, cells, "verdict")


def truth_table(
    table: pd.DataFrame,
    possible: Collection[bool],
    ax: Ax = None,
    text: pd.DataFrame | None = None,
    words: tuple[str, str] = ("becomes the zeropage", "stays a page"),
) -> Axes:
    """Draw the answer of each variant in each context: dark where it remaps, hatched where the context cannot happen.

    Parameters
    ----------
    table : DataFrame
        Contexts (index), variants (columns), booleans: see :func:`mmlab.variants.truth_table`.
    possible : collection of bool
        For each context whether it can happen.
    text : DataFrame, optional
        Text of the cells, of the same shape.
    words : tuple of str
        The meaning of true and of false, for the legend.
    """
    ax = ax or axes(width=11.5, height=2.2 + 0.28 * len(table.columns))[0]
    ax.patch.set(**LOOK["never"])
    texts = np.full(table.T.shape, "") if text is None else text.T.astype(str).to_numpy()
    _draw_cells(ax, table[list(possible)].reindex(table.index).T, texts, {True: words[0], False: words[1]})
    theme.add_key(ax, "cannot happen", **LOOK["never"])
    legend_below([ax], ncols=3)
    flags = {"mergeable memory": "mergeable", "KSM runs": "ksm_running", "shrink_underused": "shrink_underused"}
    dots = ["\n".join("●" if getattr(context, flag) else "○" for flag in flags.values()) for context in table.index]
    ax.set_xticks(np.arange(len(table)) + 0.5, dots, linespacing=1.6, rotation=0)
    theme.write(ax, "\n".join(flags), (0, 0), (-4, -4), xycoords="axes fraction", ha="right", va="top", linespacing=1.6)
    callers = pd.Series(range(len(table))).groupby([context.caller for context in table.index], sort=False)
    for caller, places in callers:
        ax.axvline(places.min(), color="#888888", linewidth=1.4)
        ax.text(places.mean() + 0.5, -0.25, f"split by: {caller}", ha="center", fontsize=10)
    names = [", ".join(f"{name}={value}" for name, value in vars(context).items()) for context in table.index]
    return remember(ax, (table if text is None else text).set_axis(names), "truth_table")


def _draw_cells(ax: Axes, marks: pd.DataFrame, text: np.ndarray, signs: Mapping[Any, str]) -> None:
    """Draw a coloured cell with a text for each mark, none for NaN, and a legend of the colours."""
    from matplotlib.colors import ListedColormap

    look = {"cmap": ListedColormap(list(CELLS.values())), "vmin": -0.5, "vmax": len(CELLS) - 0.5}
    codes = marks.map(list(CELLS).index, na_action="ignore").astype(float)
    _mesh(ax, codes.rename_axis(index=None, columns=None), annot=text, fmt="", annot_kws={"fontsize": 9}, **look)
    for written in ax.texts:
        written.set_fontweight("bold" if written.get_text().endswith(" +") else "normal")
    for sign, words in signs.items():
        theme.add_key(ax, words, facecolor=CELLS[sign], edgecolor="#888888")


def _mesh(ax: Axes, numbers: Table, **look: Any) -> None:
    """Draw a coloured cell with its text for each number, none for NaN; the first row is on top."""
    import seaborn as sns  # here, since loading it takes a second, which the explorer need not wait

    sns.heatmap(numbers.astype(float), ax=ax, linewidths=1.0, cbar=False, **look)
    ax.tick_params(length=0, rotation=0)
    ax.grid(visible=False)


def heat(tables: Mapping[str, Table], label: str, *, signed: bool = False, digits: int = 3) -> list[Axes]:
    """Draw numbers over two settings as colours, one table beside the other on one scale, with the numbers in them.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Numbers by title. The names of index and columns are the axes' labels; NaN is a blank field.
    label : str
        Name of the numbers, with their unit.
    signed : bool
        The numbers are differences: two hues from white at 0, and a sign before each number.
    digits : int
        Significant digits.

    Raises
    ------
    ValueError
        There is no table.
    """
    rows, columns = np.max([table.shape for table in tables.values()], axis=0)
    across, down = min(2, len(tables)), -(-len(tables) // 2)
    size = across * (1.7 + 0.56 * columns), down * max(2.8, 1.0 + 0.34 * rows)
    panels = axes(across, down, *size, len(tables), sharey=True, sharex=True)
    values = np.concatenate([table.to_numpy(float).ravel() for table in tables.values()])
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    low = -top if signed else min(0.0, float(np.nanmin(values, initial=0.0)))
    look: dict[str, Any] = {"cmap": "PuOr_r" if signed else "cividis_r", "annot": True, "annot_kws": {"fontsize": 8}}
    look |= {"fmt": f"{'+' * signed},.{digits}g", "vmin": low, "vmax": top}
    for ax, (title, numbers) in zip(panels, tables.items(), strict=True):
        _mesh(ax, numbers, **look)
        ax.invert_yaxis()
        ax.set_title(title)
        ax.tick_params("x", rotation=45)
        ax.label_outer()
        remember(ax, numbers, "heat")
    figure_of(panels).colorbar(panels[0].collections[0], ax=panels, label=label, shrink=0.9)
    return panels


# --- page maps ------------------------------------------------------------------------------------------------------


def page_map_table(letters: np.ndarray) -> pd.DataFrame:
    """Return the number of pages of each kind in a page map: index the letter, columns kind and pages."""
    pages = pd.Series(letters).map(chr).value_counts().sort_index()
    return pd.DataFrame({"kind": [LETTERS.get(letter, ("?",))[0] for letter in pages.index], "pages": pages})


def page_map(letters: np.ndarray, pages_per_thp: int = 512, ax: Ax = None) -> Axes:
    """Draw one row a 2 MiB block and one dot a page, coloured by kind; addresses grow downwards and to the right.

    Parameters
    ----------
    letters : array of uint8
        One of `LETTERS` a page; see :meth:`Run.page_map`.
    """
    ax = ax or axes(height=3.6)[0]
    filled = np.pad(letters, (0, -len(letters) % pages_per_thp)).reshape(-1, pages_per_thp)
    extent = 0, pages_per_thp, len(filled), 0
    ax.imshow(theme.palette()[filled], interpolation="nearest", aspect="auto", extent=extent)
    ax.set_xlabel("page within its block (4 KiB each)")
    _finish_map(ax, letters)
    return remember(ax, page_map_table(letters), "page_map")


def _finish_map(ax: Axes, letters: np.ndarray, most: str = "") -> None:
    """Label the blocks, and add a legend with the kinds of page that occur."""
    for letter, (kind, colour) in LETTERS.items():
        if (letters == ord(letter)).any():
            label = f"{letter}  {most if letter != 'H' else ''}{kind}"
            theme.add_key(ax, label, facecolor=colour, edgecolor="#333333")
    ax.set_ylabel("2 MiB block")
    ax.locator_params(axis="y", nbins=8, integer=True)
    ax.grid(visible=False)
    ax.legend(**LOOK["outside"])


def maps_compared(maps: Mapping[str, tuple[np.ndarray, np.ndarray]], pages_per_thp: int = 512) -> list[Axes]:
    """Draw three page maps in a row for each of ``maps``: the kernel's, the model's, and where they differ (black).

    Parameters
    ----------
    maps : mapping
        What was compared → the kernel's letters and the model's, one of :data:`LETTERS` a page.
    """
    things: dict[str, np.ndarray] = {}
    for what, (kernel, model) in maps.items():
        differ = np.where(kernel == model, ord("="), ord("!")).astype(np.uint8)
        words = f"{(kernel != model).sum():,} pages differ, {what}"
        things |= {f"kernel, {what}": kernel, f"model, {what}": model, words: differ}
    return side_by_side(page_map, things, pages_per_thp, height=2.7)


def blocks_table(time_s: np.ndarray, letters: np.ndarray) -> pd.DataFrame:
    """Return the most frequent letter of each 2 MiB block (columns) at each time (index ``time_s``); H: one huge page.

    Parameters
    ----------
    time_s : array of float
        Times of the page maps.
    letters : array of uint8, [time, block, page]
        See :func:`mmlab.studies.pingpong.block_maps`.
    """
    counts = np.stack([(letters == ord(letter)).sum(axis=2) for letter in LETTERS])
    counts[0] *= counts[0] == letters.shape[2]  # a block is huge as a whole, or not
    return pd.DataFrame(np.array(list(LETTERS))[counts.argmax(axis=0)], pd.Index(time_s, name="time_s"))


def blocks(maps: tuple[np.ndarray, np.ndarray], ax: Ax = None) -> Axes:
    """Draw a row a 2 MiB block over simulated time, coloured by what most of it is; a triangle marks a collapse.

    Parameters
    ----------
    maps : pair of array
        Times and letters, as :func:`blocks_table` takes them.
    """
    ax, table, time_s = ax or axes(height=4.6)[0], blocks_table(*maps), maps[0]
    codes = table.map(ord).to_numpy(np.uint8)
    edges = np.append(time_s, time_s[-1] + ((time_s[-1] - time_s[0]) / max(1, len(time_s) - 1) or 1.0))
    ax.pcolormesh(edges, np.arange(codes.shape[1] + 1), theme.palette()[codes].swapaxes(0, 1))
    when, block = np.nonzero((codes[1:] == ord("H")) & (codes[:-1] != ord("H")))
    size = float(np.clip(150 / codes.shape[1], 2, 6))
    if len(when):
        ax.plot(time_s[when + 1], block + 0.5, markersize=size, label="collapsed", **LOOK["collapsed"])
    for letter in LETTERS:  # also written where it stays longest
        stays = np.diff(edges) @ (codes == ord(letter))
        longest = int(np.flatnonzero(stays == stays.max()).mean())
        if stays[longest] > 0.1 * edges[-1]:
            at = np.flatnonzero(codes[:, longest] == ord(letter))
            place = time_s[at[len(at) // 2]], longest + 0.5
            theme.write(ax, letter, place, (0, 0), ha="center", bbox=LOOK["letter"])
    ax.set(xlabel="simulated time (s)", xlim=(0, edges[-1]), ylim=(codes.shape[1], 0))
    _finish_map(ax, codes, "mostly ")
    return remember(ax, table, "blocks")
