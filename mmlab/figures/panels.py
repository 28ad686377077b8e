"""The explorer’s figures: what `mmlab.figures.figures` shows of two runs, redrawn in a few milliseconds.

`mmlab.figures.figures` makes each figure anew, in half a second for all. A :class:`Panel` keeps its figure: an axis
with its ticks and words is drawn once for each range, and only lines and areas are drawn again, upon a copy of that.
Axes end at round numbers, so that they seldom change, and pictures can be compared while a slider moves. Titles and
legends are not in the pictures but beside them, as text. The numbers come from the tables of `figures`, and so
do colours, hatches and markers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmlab.figures import figures as plots

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from PIL import Image

    from mmlab.results.run import Run

__all__ = ["HEIGHT", "WIDTH", "Batches", "Counters", "Cpu", "Memory", "Panel", "page_map", "swatch", "thin", "until"]

WIDTH, HEIGHT = 540, 310
"""Pixels of a panel's picture."""
DPI = 128
KEPT = 24
"""Pictures of axes that are kept, 0.7 MB each."""
MAP_ROWS = 1024
"""Most rows of a page map's picture."""
INK = "#111111"
ROUND = (1, 1.5, 2, 3, 5, 8, 10)


def round_up(value: float) -> float:
    """The next round number, for the end of an axis; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in ROUND if step * power >= 0.9999 * value))


def short(value: float, least: float) -> str:
    """A tick's number, in little room: from `least` on with a letter."""
    big = [(1e6, "M"), (1e3, "k")] if value >= least else []
    return next((f"{value / size:g}{letter}" for size, letter in big if value >= size), f"{value:,g}")


def until(runs: Iterable[Run]) -> float:
    """Where to end the time axis, s: a round number shortly after the last change of memory in any of the runs."""
    last = end = 0.0
    for run in runs:
        changed = np.zeros(len(run.rows) - 1, bool)
        for name in ("frames", "huge_pmds", "ksm_entries", "zeropage_entries", "swap_entries"):
            changed |= np.diff(run.rows[name]) != 0
        times = run.rows["time_ns"][1:][changed] / 1e9
        last, end = max(last, times.max(initial=0)), max(end, float(run.rows["time_ns"][-1]) / 1e9)
    return min(end, round_up(1.1 * last)) if last else max(end, 1e-3)


def thin(time: np.ndarray, values: np.ndarray, end: float, columns: int = WIDTH) -> np.ndarray:
    """Indices of the samples that a picture of so many columns shows: first, last, least and most of each column.

    Parameters
    ----------
    time, values : array
        Of each sample; `time` ascends.
    end : float
        Time at the right edge; what is later is left out.
    """
    count = int(np.searchsorted(time, end, side="right"))
    if count <= 4 * columns:
        return np.arange(count)
    column = (time[:count] * (columns / end)).astype(np.int64)
    first = np.flatnonzero(np.diff(column, prepend=-1))
    last = np.append(first[1:], count) - 1
    by_value = np.lexsort((values[:count], column))
    return np.unique(np.concatenate([first, last, by_value[first], by_value[last]]))


def stepped(time: np.ndarray, values: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """The corners of step lines: each value (last axis) holds until the next sample, the last until the right edge."""
    return np.repeat(np.append(time, end), 2)[1:-1], np.repeat(values, 2, axis=-1)


def encode(picture: Image.Image) -> bytes:
    """A PNG, quickly."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


class Panel:
    """One figure whose parts stay. A subclass makes the parts, and its ``draw`` puts the data into them.

    Lines and areas are drawn upon the darker of two pictures, of the x axis and of the y axis. These are kept: one time
    axis looks the same in all panels.
    """

    times: ClassVar[dict[tuple[float, float], np.ndarray]] = {}

    def __init__(self, ylabel: str, log: bool = False) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        plots.use_theme()
        self.figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.ax = self.figure.add_axes((0.155, 0.2, 0.81, 0.77))
        self.ax.set(xlabel="simulated time (s)", ylabel=ylabel, yscale="log" if log else "linear")
        self.ax.xaxis.set_label_coords(0.5, -0.15)  # where they would be anyway, but not computed anew each time
        self.ax.yaxis.set_label_coords(-0.14, 0.5)
        self.ax.minorticks_off()
        for axis in (self.ax.xaxis, self.ax.yaxis)[: 2 - log]:
            axis.set_major_locator(MaxNLocator(5))
        self.ax.yaxis.set_major_formatter(lambda value, _: short(value, 1000 if log else 10_000))
        self.moving: list[Artist] = []
        self.heights: dict[tuple[float, float], np.ndarray] = {}

    def add(self, artist: Artist) -> Any:
        """A part that is drawn anew each time."""
        artist.set_animated(True)
        self.moving.append(artist)
        return artist

    def line(self, **look: Any) -> Any:
        """A line without points yet."""
        return self.add(self.ax.plot([], [], **look)[0])

    def picture(self) -> bytes:
        """The panel as a PNG."""
        from PIL import Image

        x = self._axis(self.times, self.ax.get_xlim(), "bottom")
        y = self._axis(self.heights, self.ax.get_ylim(), "left")
        np.minimum(x, y, out=np.asarray(self.canvas.buffer_rgba()))
        for artist in self.moving:
            if artist.get_visible():
                self.ax.draw_artist(artist)
        image = Image.frombuffer("RGBA", self.canvas.get_width_height(), self.canvas.buffer_rgba()).convert("RGB")
        image = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.putpalette([255 if value >= 247 else value for value in image.getpalette() or ()])  # white paper is white
        return encode(image)

    def _axis(self, kept: dict[tuple[float, float], np.ndarray], limits: tuple[float, float], side: str) -> np.ndarray:
        """One axis alone, with its grid, upon white: as it was drawn before, or anew."""
        if (drawn := kept.pop(limits, None)) is None:
            for each, axis in (("bottom", self.ax.xaxis), ("left", self.ax.yaxis)):
                axis.set_visible(each == side)
                self.ax.spines[each].set_visible(each == side)
            self.canvas.draw()
            drawn = np.array(self.canvas.buffer_rgba())
        kept[limits] = drawn  # the last in order of use
        if len(kept) > KEPT:
            del kept[next(iter(kept))]
        return drawn


class Memory(Panel):
    """Memory of one run over time by kind, stacked, MiB: :func:`mmlab.figures.figures.memory`."""

    def __init__(self) -> None:
        from matplotlib.patches import Polygon

        super().__init__("memory (MiB)")
        self.areas = {}
        for kind, (colour, hatch) in list(plots.KINDS.items())[:-1]:
            area = Polygon(np.zeros((3, 2)), facecolor=colour, hatch=hatch, edgecolor="#555555", linewidth=0.3)
            self.areas[kind] = self.add(self.ax.add_patch(area))
        self.allocated = self.line(color=INK, linewidth=2)

    def draw(self, run: Run, end: float, top: float) -> bytes:
        table = plots.memory_table(run)
        time, parts = table.index.to_numpy(), table.to_numpy().T
        allocated = parts[[not kind.startswith("freed") for kind in table]].sum(axis=0)
        keep = thin(time, allocated, end)
        time, edges = stepped(time[keep], np.vstack([0 * time[keep], parts[:, keep].cumsum(axis=0)]), end)
        for kind, area in self.areas.items():
            at = table.columns.get_loc(kind)
            low, high = edges[at], edges[at + 1]
            area.set_visible(bool((high > low + 1e-9).any()))
            area.set_xy(np.column_stack([np.append(time, time[::-1]), np.append(high, low[::-1])]))
        self.allocated.set_data(time, stepped(time, allocated[keep], end)[1])
        self.ax.set(xlim=(0, end), ylim=(0, 1.02 * top))
        return self.picture()


class Batches(Panel):
    """Pages freed by each batch against the budget, logarithmic: :func:`mmlab.figures.figures.batches`."""

    def __init__(self) -> None:
        super().__init__("pages freed by one batch", log=True)
        look: dict[str, Any] = {"linestyle": "none", "markersize": 5, "alpha": 0.75, "markeredgewidth": 0}
        self.marks = [self.line(color=f"C{i}", marker=plots.MARKERS[i], **look) for i in range(2)]
        self.budgets = [self.line(color=INK, linewidth=1.4, linestyle=(0, (6, 3))) for _ in range(2)]

    def draw(self, runs: Mapping[str, Run], end: float) -> bytes:
        top = 1.0
        for run, marks, budget in zip(runs.values(), self.marks, self.budgets, strict=True):
            table = plots.freed_by_batch(run)
            table = table[table["freed"] > 0]
            time, freed = table["time_s"].to_numpy(), table["freed"].to_numpy()
            keep = thin(time, freed, end)
            marks.set_data(time[keep], freed[keep])
            allowed = run.rows["pages_to_scan"]
            changes = np.flatnonzero(np.diff(allowed, prepend=-1))
            budget.set_data(*stepped(run.rows["time_ns"][changes] / 1e9, allowed[changes], end))
            top = max(top, allowed.max(), freed.max(initial=0))
        self.ax.set(xlim=(0, end), ylim=(0.8, 10 ** np.ceil(np.log10(1.2 * top))))
        return self.picture()


class Counters(Panel):
    """KSM's counters (thin, dashed) against memory really freed (broad): :func:`mmlab.figures.figures.counters`."""

    def __init__(self) -> None:
        super().__init__("memory (MiB)")
        broad: dict[str, Any] = {"linewidth": 6, "alpha": 0.35, "solid_capstyle": "butt"}
        self.freed = [self.line(color=f"C{i}", **broad) for i in range(2)]
        self.shown = [self.line(color=f"C{i}", linewidth=1.6, linestyle=(0, (4, 1.5))) for i in range(2)]
        self.ends = [self.line(color=f"C{i}", linestyle="none", marker=plots.MARKERS[i]) for i in range(2)]

    def draw(self, runs: Mapping[str, Run], end: float) -> bytes:
        top = 0.0
        for run, *lines, last in zip(runs.values(), self.freed, self.shown, self.ends, strict=True):
            table = plots.freed_and_shown(run)
            time, ends = table.index.to_numpy(), []
            for line, mib in zip(lines, table.to_numpy().T, strict=True):
                keep = thin(time, mib, end)
                line.set_data(*stepped(time[keep], mib[keep], end))
                ends.append(mib[keep[-1]])
                top = max(top, mib[keep].max())
            last.set_data([0.994 * end] * 2, ends)
        self.ax.set(xlim=(0, end), ylim=(-0.03 * round_up(top), 1.03 * round_up(top)))
        return self.picture()


class Cpu(Panel):
    """CPU time of ksmd, % of one CPU, over time in 60 parts of the axis."""

    def __init__(self) -> None:
        super().__init__("CPU of ksmd (% of one)")
        self.lines = [
            self.line(
                color=f"C{i}",
                marker=plots.MARKERS[i],
                markersize=5,
                markevery=(12 * i, 24),
                linewidth=2.6 - i,
                linestyle=(0, plots.DASHES[i]) if plots.DASHES[i] else "-",
            )
            for i in range(2)
        ]

    def draw(self, runs: Mapping[str, Run], end: float) -> bytes:
        top = 0.0
        for (label, run), line in zip(runs.items(), self.lines, strict=True):
            table = plots.cpu_table({label: run}, end)
            line.set_data(*stepped(table["time_s"].to_numpy(), table["percent"].to_numpy(), end))
            top = max(top, table["percent"].max())
        self.ax.set(xlim=(0, end), ylim=(0, 1.03 * round_up(top)))
        return self.picture()


def swatch(part: Artist, width: int = 22, height: int = 12) -> str:
    """How a line or an area of a panel looks, as an HTML image for a legend beside it."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(width / 64, height / 64), dpi=DPI)  # two pixels to a CSS pixel
    is_line = isinstance(part, Line2D)
    shown: Any = Line2D([0.04, 0.5, 0.96], [0.5] * 3) if is_line else Rectangle((0.02, 0.05), 0.96, 0.9)
    shown.update_from(part)
    shown.set(transform=figure.transFigure, animated=False, visible=True, clip_on=False)
    if is_line:
        shown.set_markevery((1, 2))
    figure.add_artist(shown)
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True, dpi=DPI)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


def page_map(processes: Sequence[np.ndarray], pages_per_thp: int) -> bytes:
    """The page maps of one or more processes below each other as a PNG: a row a block, a pixel a page.

    Parameters
    ----------
    processes : sequence of array
        Letters, as :meth:`mmlab.Run.page_map` gives them. Of more than :data:`MAP_ROWS` blocks evenly chosen ones.
    """
    from PIL import Image

    filled = [np.pad(letters, (0, -len(letters) % pages_per_thp), constant_values=ord("N")) for letters in processes]
    blocks = np.concatenate(filled).reshape(-1, pages_per_thp)
    if len(blocks) > MAP_ROWS:
        blocks = blocks[np.linspace(0, len(blocks) - 1, MAP_ROWS).round().astype(int)]
    for axis in (0, 1):  # what is small is enlarged here: a browser would blur it
        blocks = np.repeat(blocks, max(1, HEIGHT // blocks.shape[axis]), axis=axis)
    picture = Image.fromarray(blocks).convert("P")
    palette = np.zeros((256, 3), np.uint8)
    for letter, (_, colour) in plots.LETTERS.items():
        palette[ord(letter)] = list(bytes.fromhex(colour[1:]))
    picture.putpalette(palette.tobytes())
    return encode(picture)
