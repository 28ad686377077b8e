"""The look of all figures, which ``looks.yaml`` and ``house.mplstyle`` describe, and the helpers that draw with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike


_LOOKS = yaml.safe_load(Path(__file__).with_name("looks.yaml").read_text(encoding="utf-8"))
LOOK: dict[str, dict[str, Any]] = _LOOKS["looks"]
LINES: list[dict[str, Any]] = _LOOKS["lines"]
for _look in (*LOOK.values(), *LINES):
    if isinstance(_look.get("linestyle"), list):
        _look["linestyle"] = 0, tuple(_look["linestyle"])  # a dash pattern, as matplotlib takes it
KINDS: dict[str, dict[str, Any]] = {kind: look | LOOK["area"] for kind, look in _LOOKS["kinds"].items()}
"""Kinds of memory and their areas, from the bottom of the stack: first what is allocated, then what was freed."""
LETTERS: dict[str, tuple[str, str]] = {letter: tuple(look) for letter, look in _LOOKS["letters"].items()}
"""The letters of a page map (trace-format), and of one that compares two: the kind of page and its colour."""
PARTS: list[dict[str, Any]] = [look | LOOK["bar"] for look in _LOOKS["parts"]]
CELLS: dict[str | bool, str] = _LOOKS["cells"]
SIGNS: dict[str, str] = _LOOKS["signs"]
MARKS = 6
"""Markers on a step line that spans its axis."""
COLUMNS = 720
"""Columns of a figure within which a long series is thinned."""


def palette() -> np.ndarray:
    """Return uint8[256, 3]: the colour of each letter of `LETTERS` by its code; white for other codes."""
    colours = np.full((256, 3), 255, np.uint8)
    for letter, (_, colour) in LETTERS.items():
        colours[ord(letter)] = list(bytes.fromhex(colour[1:]))
    return colours


def axes(
    columns: int = 1, rows: int = 1, width: float = 9.6, height: float = 4.0, count: int | None = None, **kwargs: Any
) -> list[Axes]:
    """Return the first ``count`` Axes, row by row, of a new figure; the others stay blank.

    The figure has ``columns`` by ``rows`` Axes, ``width`` by ``height`` inches and the look of ``house.mplstyle``.
    """
    import matplotlib.style
    from matplotlib.figure import Figure  # not pyplot, which would take as long again to load

    matplotlib.style.use(["default", Path(__file__).with_name("house.mplstyle")])  # not the user's own settings
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for unused in panels.flat[count:] if count else ():
        unused.set_axis_off()
    return list(panels.flat[:count])


def figure_of(drawn: Axes | Sequence[Axes] | Figure) -> Figure:
    """Return the figure that contains these Axes, or the figure itself."""
    return (drawn[0] if isinstance(drawn, Sequence) else drawn).get_figure(root=True)  # type: ignore[return-value]


def add_key(ax: Axes, label: str, **look: Any) -> None:
    """Add an area that is in the legend only."""
    ax.fill([], [], label=label, **look)


def legend_below(drawn: Sequence[Axes], ncols: int = 3) -> None:
    """Replace the legends of these Axes by one below the figure, with each label once."""
    handles: dict[str, Any] = {}
    for ax in drawn:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        if legend := ax.get_legend():
            legend.remove()
    if handles:
        figure_of(drawn).legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)


def style(number: int) -> dict[str, Any]:
    """Return colour, dash and marker of line ``number``: the first nine differ in grey, too."""
    return LINES[number % len(LINES)] | ({"color": f"C{number}"} if number >= len(LINES) else {})


def write(ax: Axes, text: str, at: tuple[Any, Any], offset: tuple[float, float] = (4, 0), **look: Any) -> None:
    """Write a text beside a point, ``offset`` typographic points away from it."""
    look = {"fontsize": 9, "va": "center", "textcoords": "offset points"} | look
    ax.annotate(text, at, xytext=offset, **look)  # type: ignore[arg-type]


def round_up(value: float) -> float:
    """Return the next round number, for the end of an axis; 1 if the value is not positive."""
    round_numbers = np.array([1, 1.5, 2, 3, 5, 8, 10]) * 10.0 ** np.floor(np.log10(value if value > 0 else 1))
    return float(round_numbers[np.searchsorted(round_numbers, 0.9999 * value)])


def short(value: float, _: object = None) -> str:
    """Format a tick's number: thousands separated, from 10,000 with k or M."""
    size, letter = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k") if abs(value) >= 1e4 else (1, "")
    return f"{value / size:,g}{letter}"


# --- long series and steps ------------------------------------------------------------------------------------------


def thin(time: np.ndarray, values: np.ndarray, end: float, columns: int = COLUMNS) -> np.ndarray:
    """Return indices of the samples to draw: the first, last, smallest and largest of each column of a picture.

    Parameters
    ----------
    time, values : array
        One entry a sample; `time` ascends.
    end : float
        Time at the right edge; later samples are left out.
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
    """Return the corners of step lines: each value (last axis) holds until the next sample, the last until `end`."""
    return np.repeat(np.append(time, end), 2)[1:-1], np.repeat(values, 2, axis=-1)


def step_line(
    time: ArrayLike, level: ArrayLike, end: float, number: int = 0, of: int = 1, edge: float = 0, columns: int = COLUMNS
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the points of line ``number`` of ``of``, and its look with ``markevery``, the indices of its markers.

    Levels hold until the next sample, the last one until ``end``. Lines differ in colour, dash and width, and their
    markers lie beside each other: lines that coincide all show.

    Parameters
    ----------
    edge : float
        End of the axis, if that is not ``end``.
    """
    time, level = np.asarray(time, float), np.asarray(level, float)
    keep = thin(time, level, end, columns)
    x, y = stepped(time[keep], level[keep], end)
    marks = (edge or end) * (np.arange(MARKS) + (number + 1) / (of + 1)) / MARKS
    marks = marks[(marks > x[0]) & (marks < end)]
    at = np.searchsorted(x, marks)
    width = {"linewidth": max(1.2, 3.0 - 0.6 * number), "markersize": 6, "markeredgecolor": "white"}
    look = style(number) | width | {"markevery": (at + np.arange(len(at))).tolist()}
    return np.insert(x, at, marks), np.insert(y, at, y[at - 1]), look
