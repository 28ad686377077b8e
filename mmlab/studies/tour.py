"""Small memory, batch by batch: as a picture and in words (notebook 00)."""

import numpy as np
import pandas as pd

from mmlab.figures import figures as plots
from mmlab.figures.theme import LOOK
from mmlab.results.run import Run
from mmlab.studies.study import Answer


def full_scan(run: Run, number: int) -> Answer:
    """Show a full scan of a small process: its pages after each batch, and what happened to those that were visited.

    In the figure, pages of equal content have the same letter, and zero-filled ones a 0; a frame marks those visited.

    Parameters
    ----------
    run
        A run of one process with ``events=True`` and ``maps_at="all"``.
    number
        The full scan, from 1.
    """
    visits = run.events[(run.events["full_scan"] == number) & (run.events["event"] == "visit")]
    rows = [
        (batch, page, told)
        for batch, first, count in visits[["batch", "page", "count"]].itertuples(index=False)
        for page in range(first, first + count)
        for at, told in run.why(page).table[["batch", "sentence"]].itertuples(index=False)
        if at == batch
    ]
    data = pd.DataFrame(rows, columns=["batch", "page", "what happened"]).groupby(["batch", "page"]).agg("; then ".join)
    batches = data.index.unique("batch")
    maps = np.stack([run.maps[batch, 0][0] for batch in (batches[0] - 1, *batches)])
    ax = plots.page_map(maps.ravel(), maps.shape[1], plots.axes(height=1.6 + 0.28 * len(maps))[0])
    keys = run.machine.page["key"][int(run.machine.mm[1]["base"]) :][: maps.shape[1]].tolist()
    names = dict(zip(sorted({*keys} - {0}, key=keys.index), "abcdefghijklmnopqrstuvwxyz", strict=False)) | {0: "0"}
    for row, batch in enumerate([None, *batches]):
        for page, key in enumerate(keys):
            box, weight = (LOOK["letter"], "bold") if (batch, page) in data.index else (LOOK["box"], "normal")
            ax.text(page + 0.5, row + 0.5, names[key], ha="center", va="center", size=8, weight=weight, bbox=box)
    ax.set(xlabel="page", ylabel="after batch")
    ax.set_yticks(np.arange(len(maps)) + 0.5, ["before", *map(str, batches)])
    ax.set_xticks(np.arange(maps.shape[1]) + 0.5, [*map(str, range(maps.shape[1]))])
    freed = -np.diff([run.frames[batch, 0][0] for batch in (batches[0] - 1, *batches)])
    asked = f"{run.variant}, use_zero_pages={run.scenario.use_zero_pages}"
    given_back = f"{freed.sum()} of {len(keys)} pages of memory given back, at most {freed.max()} by a batch"
    return Answer(data, f"{asked}: {len(data)} visits, {given_back}.", ax, f"Full scan {number} under {asked}")
