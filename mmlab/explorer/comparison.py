"""Two runs of one scenario side by side, as the explorer shows them: figures, page maps, a table and sentences."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from mmlab.figures import charts, theme
from mmlab.results.metrics import Metrics
from mmlab.results.run import Run
from mmlab.results.uncertainty import error_at, one_digit
from mmlab.studies.judge import better, given_back

CHARTS = "memory 0", "memory 1", "batches", "counters", "cpu"
MAPS = "map 0", "map 1"
"""Names of the pictures; 0 and 1 are the two runs."""
SIGNS = "●", "■"
"""The first run is blue and round, the second orange and square, in every figure."""
COLUMNS = 300
"""Columns of a picture within which a long series is thinned."""
MAP_ROWS = 1024
"""Most rows of the picture of a page map."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, and all that is shown of them.

    Attributes
    ----------
    runs : dict
        By label; the second is compared with the first.
    whole : bool
        The time axes end with the runs, and not shortly after the last change.
    """

    runs: Mapping[str, Run]
    whole: bool = False

    @cached_property
    def end(self) -> float:
        """End of the time axes, s."""
        if not self.whole:
            return charts.end_of_changes(self.runs.values())
        return max(float(run.rows["time_ns"][-1]) / 1e9 for run in self.runs.values())

    @cached_property
    def letters(self) -> dict[str, list[np.ndarray]]:
        """The page maps of the processes of each run."""
        return {label: [run.page_map(i) for i in range(run.processes)] for label, run in self.runs.items()}

    @cached_property
    def pages(self) -> dict[str, dict[str, int]]:
        """Pages of each kind that occurs, by its letter, of each run."""
        counts = {label: np.bincount(np.concatenate(maps), minlength=256) for label, maps in self.letters.items()}
        return {label: {k: int(n[ord(k)]) for k in theme.LETTERS if n[ord(k)]} for label, n in counts.items()}

    def data(self) -> dict[str, Any]:
        """Return everything for the browser: numbers as float32, page maps as PNG, sentences and tables as HTML."""
        about = {"runs": self.runs, "described": Metrics.describe(), "better": better(self.runs)}
        words, scenario = template().make_module(about), next(iter(self.runs.values())).scenario
        return {
            "charts": {name: self._chart(name) for name in CHARTS},
            "maps": [self._map(name) for name in MAPS],
            "summary": str(words.summary()),
            "table": str(words.metrics()),
            "code": scenario.as_python([run.variant for run in self.runs.values()]),
        }

    def titled(self, name: str) -> tuple[str, str, dict[str, Run]]:
        """Return the title of a picture, its alternative text, and the runs it shows."""
        kind, _, place = name.partition(" ")
        runs = dict([list(self.runs.items())[int(place)]] if place else self.runs)
        words = template().module
        title = (f"{SIGNS[int(place)]} " if place else "") + words.titles[kind].format(*runs)
        alt = getattr(words, kind)(self.pages[next(iter(runs))] if kind == "map" else runs)
        return title, f"{title}. {alt}", runs

    def _chart(self, name: str) -> dict[str, Any]:
        kind = name.split()[0]
        title, alt, runs = self.titled(name)
        chart = getattr(charts, kind).describe(runs, self.end, COLUMNS)
        layers = [
            {part: _plain(value) for part, value in vars(layer).items() if value is not None} for layer in chart.layers
        ]
        about = {"title": title, "alt": alt, "quantity": template().module.quantities[kind], "layers": layers}
        return about | {"log": chart.log, "x": (0, self.end), "y": chart.limits}

    def _map(self, name: str) -> dict[str, Any]:
        title, alt, runs = self.titled(name)
        ((label, run),) = runs.items()
        maps, size = self.letters[label], run.scenario.pages_per_thp
        kinds = [theme.LETTERS[letter] for letter in self.pages[label]]
        blocks = [-(-len(letters) // size) for letters in maps]
        return {"title": title, "alt": alt, "kinds": kinds, "blocks": blocks, "picture": page_map_image(maps, size)}

    def picture(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Return all figures and page maps as one output with an alternative text, for where there is no kernel."""
        from mmlab.figures import figures
        from mmlab.figures.notebook import as_output

        names = [*CHARTS[:2], *MAPS, *CHARTS[2:]]
        panels = figures.axes(2, 4, 9.6, 13.2, len(names))
        for ax, name in zip(panels, names, strict=True):
            title, _, runs = self.titled(name)
            run, *others = runs.values()
            if name in MAPS:
                figures.page_map(np.concatenate(self.letters[next(iter(runs))]), run.scenario.pages_per_thp, ax)
            else:
                getattr(charts, name.split()[0])(runs if others else run, ax, self.end)
            ax.set_title(title, fontsize=10)
        figure = figures.figure_of(panels)
        figure.set_layout_engine(None)  # which would take half a second
        figure.subplots_adjust(0.07, 0.13, 0.99, 0.98, wspace=0.2, hspace=0.34)
        figures.legend_below(panels, ncols=3)
        return as_output(panels, " ".join(self.titled(name)[1] for name in names))


def _plain(value: Any) -> Any:
    """Return numbers as float32, as the browser takes them."""
    return value.astype("<f4").tobytes() if isinstance(value, np.ndarray) else value


def page_map_image(processes: list[np.ndarray], pages_per_thp: int) -> bytes:
    """Return the page maps of processes, one below the other, as a PNG: a row a block, a pixel a page.

    Parameters
    ----------
    processes : list of array
        Letters, as :meth:`mmlab.Run.page_map` returns them. Of more than `MAP_ROWS` blocks, evenly chosen ones are
        shown.
    """
    from PIL import Image

    filled = [np.pad(letters, (0, -len(letters) % pages_per_thp), constant_values=ord("N")) for letters in processes]
    blocks = np.concatenate(filled).reshape(-1, pages_per_thp)
    rows = min(len(blocks), MAP_ROWS)
    picture, out = Image.fromarray(blocks[np.arange(rows) * len(blocks) // rows]).convert("P"), io.BytesIO()
    picture.putpalette(theme.palette().tobytes())
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


@cache
def template() -> Any:
    """Return the template of the sentences and tables."""
    environment = Environment(autoescape=True, loader=PackageLoader("mmlab", "explorer"))
    words = {"letters": theme.LETTERS, "signs": SIGNS, "given_back": given_back, "error_at": error_at}
    return environment.get_template("explorer.html.j2", globals=words | {"one_digit": one_digit})
