"""Two runs of one scenario side by side, as the explorer shows them: figures, page maps, a table and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from mmlab.figures import figures, theme
from mmlab.figures.canvas import Canvas, page_map_image
from mmlab.results.metrics import Metrics
from mmlab.results.run import Run
from mmlab.results.uncertainty import error_at, one_digit
from mmlab.studies import compare

__all__ = ["CELLS", "SIGNS", "Comparison", "Figures", "Frame", "frames", "last_frame", "template"]

CELLS = ("memory 0", "memory 1", "batches", "counters", "cpu", "map 0", "map 1")
"""Names of the pictures; 0 and 1 are the two runs."""
COLOURS = {"●": "#0173B2", "■": "#DE8F05"}
SIGNS = tuple(Markup(f'<span style="color:{c}" aria-hidden="true">{sign}</span>') for sign, c in COLOURS.items())
"""The first run is blue and round, the second orange and square, in every figure."""
MAPPED = {"huge_pmds": 512, "ksm_entries": 1, "zeropage_entries": 1, "swap_entries": 1, "frames": 1}
"""Counters whose changes a page map shows, and pages for each."""
MOMENTS = 40
"""Page maps through time, at most."""
MAP_BYTES = 64_000_000
"""Budget for the page maps of one run in memory."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, and all that is shown of them. Texts are HTML.

    Attributes
    ----------
    runs : dict
        By label; the second is compared with the first.
    end : float
        End of the time axes, s.
    pictures : dict
        PNGs of the figures, by cell.
    heads : dict
        Title, legend and alternative text of each of :data:`CELLS`.
    summary, table : str
        A sentence a run, and all metrics.
    code : str
        The same comparison in Python.
    last : Frame
        The page maps at the end.
    """

    runs: dict[str, Run]
    end: float
    pictures: dict[str, bytes]
    heads: dict[str, str]
    summary: str
    table: str
    code: str
    last: Frame


class Figures:
    """The figures of one explorer, which keep what does not change. Use it in one thread at a time."""

    def __init__(self) -> None:
        self.canvases = {name: Canvas() for name in CELLS if "map" not in name}

    def compare(self, runs: Mapping[str, Run], whole: bool = False) -> Comparison:
        """Return all that is shown of two runs.

        Parameters
        ----------
        whole : bool
            End the time axes with the runs, and not shortly after the last change.
        """
        both = list(runs.values())
        end = max(float(run.rows["time_ns"][-1]) / 1e9 for run in both) if whole else figures.end_of_changes(both)
        pictures = self.draw(runs, end)
        words = template().make_module(
            {
                "runs": [(sign, label, run) for sign, (label, run) in zip(SIGNS, runs.items(), strict=True)],
                "legends": {name: Markup(canvas.legend()) for name, canvas in self.canvases.items()},
                "described": Metrics.describe(),
                "better": compare.metrics(runs)["better"].to_dict(),
            }
        )
        heads = {name: str(getattr(words, kind)(*map(int, i))) for name in CELLS for kind, *i in [name.split()]}
        code = both[0].scenario.as_python([run.variant for run in both])
        texts = heads, str(words.summary()), str(words.metrics()), code
        return Comparison(dict(runs), end, pictures, *texts, last_frame(runs))

    def draw(self, runs: Mapping[str, Run], end: float) -> dict[str, bytes]:
        """Return PNGs of the figures, by cell, with time axes until `end`, s."""
        shown: dict[str, Any] = {f"memory {i}": run for i, run in enumerate(runs.values())}
        return {
            name: canvas.draw(getattr(figures, name.split()[0]), shown.get(name, runs), until=end)
            for name, canvas in self.canvases.items()
        }


@cache
def template() -> Any:
    """Return the template of all that the explorer says."""
    environment = Environment(autoescape=True, loader=PackageLoader("mmlab", "explorer"))
    environment.filters["number"] = _number
    environment.globals |= {"released": _released, "plus_minus": _plus_minus, "signs": SIGNS, "letters": theme.LETTERS}
    return environment.get_template("explorer.html.j2")


def _released(run: Run) -> tuple[float, float]:
    """Return when 99 % of what a run frees was freed, and the standard error of that, s."""
    frames = run.rows["frames"]
    row = int(np.flatnonzero(frames[0] - frames >= 0.99 * (frames[0] - frames[-1]))[0])
    return float(run.rows["time_ns"][row]) / 1e9, error_at(run, row)


def _plus_minus(error: float, least: float) -> str:
    return f" ± {one_digit(error)}" if error >= least else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


# --- page maps through time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The page maps of both runs at one time.

    Attributes
    ----------
    batches : tuple
        The last batch until then, of each run.
    pages : tuple
        Pages of each letter, of each run.
    """

    time_s: float
    labels: tuple[str, ...]
    batches: tuple[int, ...]
    pictures: tuple[bytes, ...]
    pages: tuple[dict[str, int], ...]

    @classmethod
    def of(cls, time_s: float, runs: Mapping[str, Run], batches: Iterable[int], maps: Sequence[Any]) -> Frame:
        """Return the frame of the letters of each process (an array) of each run."""
        counts = [np.bincount(np.concatenate(letters), minlength=128) for letters in maps]
        size = next(iter(runs.values())).scenario.pages_per_thp
        pictures = tuple(page_map_image(letters, size) for letters in maps)
        pages = tuple({letter: int(c[ord(letter)]) for letter in theme.LETTERS} for c in counts)
        return cls(time_s, tuple(runs), tuple(batches), pictures, pages)


def moments(runs: Sequence[Run], end: float) -> np.ndarray:
    """Return simulated times, s, for page maps: half of them spread over the time, half where most changes."""
    grid = np.unique(np.concatenate([run.rows["time_ns"] for run in runs])) / 1e9
    grid = grid[grid <= end]
    done = len(runs) * grid / max(end, 1e-9)
    for run in runs:
        changes = sum(np.abs(np.diff(run.rows[name], prepend=run.rows[name][:1])) * n for name, n in MAPPED.items())
        happened = np.cumsum(changes) / max(1, np.sum(changes))
        done += happened[np.searchsorted(run.rows["time_ns"] / 1e9, grid, side="right") - 1]
    count = min(MOMENTS, max(2, MAP_BYTES // max(run.scenario.total_pages for run in runs)))
    return np.unique(grid[np.minimum(np.searchsorted(done, np.linspace(0, done[-1], count)), len(grid) - 1)])


def last_frame(runs: Mapping[str, Run]) -> Frame:
    """Return the page maps at the end."""
    batches = [int(run.rows["batch"][-1]) for run in runs.values()]
    maps = [[run.page_map(i) for i in range(run.processes)] for run in runs.values()]
    return Frame.of(max(float(run.rows["time_ns"][-1]) for run in runs.values()) / 1e9, runs, batches, maps)


def frames(runs: Mapping[str, Run], end: float, again: Callable[[Run, set[tuple[int, int]]], Run]) -> list[Frame]:
    """Return the page maps of two runs at the same :func:`moments`, and at the end.

    Parameters
    ----------
    end : float
        No moment is later, s.
    again : callable
        Simulates a run once more and keeps its page maps after these (batch, rank).
    """
    at = moments(list(runs.values()), end)
    where = []
    for run in runs.values():
        rows = run.rows[np.searchsorted(run.rows["time_ns"] / 1e9, at, side="right") - 1]
        where.append(list(zip(rows["batch"].tolist(), rows["rank"].tolist(), strict=True)))
    with ThreadPoolExecutor(len(runs)) as pool:
        maps = [run.maps for run in pool.map(again, runs.values(), map(set, where))]
    found = [
        Frame.of(t, runs, [batch for batch, _ in w], [m[place] for m, place in zip(maps, w, strict=True)])
        for t, *w in zip(at.tolist(), *where, strict=True)
    ]
    return [*found, last_frame(runs)]
