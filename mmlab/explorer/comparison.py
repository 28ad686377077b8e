"""Two runs of one scenario beside each other: pictures, page maps through time, a table and words for the explorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from mmlab.figures import figures as plots
from mmlab.figures import panels
from mmlab.results.run import Metrics, Run
from mmlab.results.uncertainty import error_at, one_digit
from mmlab.studies import compare as differences

__all__ = ["CELLS", "SIGNS", "Board", "Comparison", "Frame", "frames", "last_frame"]

CELLS = ("memory 0", "memory 1", "batches", "counters", "cpu", "map 0", "map 1")
"""Names of the pictures; 0 and 1 are the two runs."""

MAPPED = {"huge_pmds": 512, "ksm_entries": 1, "zeropage_entries": 1, "swap_entries": 1, "frames": 1}
"""Counters whose changes a page map shows, and pages for each."""
MOMENTS = 40
MAP_BYTES = 64_000_000
"""Most memory for the page maps of one run."""


def times(factor: float) -> str:
    """A factor in words."""
    return f"{factor:,.0f}" if factor >= 10 else f"{factor:.2g}"


def summary(runs: Mapping[str, Run]) -> str:
    """What happened, a sentence a run, HTML."""
    sentences = []
    for number, (label, run) in enumerate(runs.items()):
        m, frames = run.metrics, run.rows["frames"]
        words = f"{SIGNS[number]} <b>{escape(label)}</b> gives back {m.freed_mib:,.0f} of {total_mib(run):,.0f} MiB"
        if m.freed_mib > 0:
            gone = np.flatnonzero(frames[0] - frames >= 0.99 * (frames[0] - frames[-1]))[0]
            after = float(run.rows["time_ns"][gone]) / 1e9
            late = error_at(run, int(gone))
            words += (
                f", 99 % of it after {after:,.3g}{_sure(late, 0.005)} s; one batch up to "
                f"{m.most_freed_by_batch:,} pages, {times(m.most_freed_per_budget)} × its budget"
            )
        unseen = m.freed_unseen_pages * plots.MIB_PER_PAGE
        words += (
            f". KSM’s counters miss {unseen:,.0f} MiB of it" if unseen >= 0.5 else ". KSM’s counters show all of it"
        )
        share = f"{m.ksmd_cpu_percent:.1f}{_sure(run.uncertainty.get('ksmd_cpu_percent', 0.0), 0.05)}"
        sentences.append(f"{words}; {m.thps_left:,} THPs are left, ksmd took {share} % of a CPU.")
    return "<br>".join(sentences)


def _sure(error: float, least: float) -> str:
    """Behind a number in a sentence: its standard error in one digit, unless it is too small to matter."""
    return f" ± {one_digit(error)}" if error >= least else ""


def total_mib(run: Run) -> float:
    """Memory of all processes at the start, MiB."""
    return run.scenario.total_pages * plots.MIB_PER_PAGE


def metrics_table(runs: Mapping[str, Run]) -> str:
    """Every metric of both runs and the difference, HTML; the better one, where that is clear, is bold and has a ✓."""
    values = [asdict(run.metrics) for run in runs.values()]
    rows = []
    better = differences.metrics(runs)["better"]
    for name, (unit, what) in Metrics.describe().items():
        a, b = (v[name] for v in values)
        change = None if a is None or b is None else b - a
        cells = [
            f'<td class="mmlab-better">✓ {number(v)}{sure(run, name)}</td>'
            if better.get(name) == label
            else f"<td>{number(v)}{sure(run, name)}</td>"
            for (label, run), v in zip(runs.items(), (a, b), strict=True)
        ]
        sign = "+" if change and change > 0 else ""
        cells.append(f"<td>{'' if change is None else '=' if not change else sign + number(change)}</td>")
        said = not unit or unit.lower().replace(" ", "_").replace("%", "percent") in name
        rows.append(_row(name if said else f"{name} ({unit})", cells, bool(a or b), what))
    head, half = _thead("metric", [*runs, "change"]), -(-len(rows) // 2)
    parts = ("What it comes to", rows[:half]), ("… and further", rows[half:])
    return "".join(
        f"<table><caption>{words}</caption>{head}<tbody>{''.join(part)}</tbody></table>" for words, part in parts
    )


def _thead(first: str, labels: Sequence[str]) -> str:
    """The head of a table with a column a run, and perhaps more."""
    signs = (*SIGNS, *[""] * len(labels))
    names = (f'<th scope="col" title="{escape(v)}">{s} {escape(v)}</th>' for s, v in zip(signs, labels, strict=False))
    return f'<thead><tr><th scope="col">{first}</th>{"".join(names)}</tr></thead>'


def _row(head: str, cells: Sequence[str], something: bool, title: str = "") -> str:
    """A row of a table; pale if there is nothing in it."""
    look = "" if something else ' class="mmlab-nothing"'
    return f'<tr{look}><th scope="row" title="{escape(title)}">{head}</th>{"".join(cells)}</tr>'


def number(value: float | None) -> str:
    """A number of the table."""
    if value is None:
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def sure(run: Run, name: str) -> str:
    """Behind a metric: its standard error that comes from the costs of steps, if it has one."""
    error = run.uncertainty.get(name, 0.0)
    return f" <small>± {number(error)}</small>" if error >= 0.005 else ""


SIGNS = (
    '<span style="color:#0173B2" aria-hidden="true">●</span>',
    '<span style="color:#DE8F05" aria-hidden="true">■</span>',
)
"""The first run is blue and round, the second orange and square, in every figure."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, and all that is shown of them."""

    runs: dict[str, Run]
    """By label; the first is the one that the other is compared with."""
    end: float
    """Of the time axes, s."""
    pictures: dict[str, bytes]
    """PNGs of the panels."""
    heads: dict[str, str]
    """Title, legend and, for those who cannot see the picture, its content, of each of :data:`CELLS`; HTML."""
    summary: str
    table: str
    code: str
    last: Frame
    """The page maps at the end."""


class Board:
    """The panels, for one explorer: they keep what does not change. Use it in one thread at a time."""

    def __init__(self) -> None:
        self.memory = panels.Memory(), panels.Memory()
        self.batches, self.counters, self.cpu = panels.Batches(), panels.Counters(), panels.Cpu()
        memory = self.memory[0]
        used = _keys([("allocated", memory.allocated), *((k, a) for k, a in memory.areas.items() if "freed" not in k)])
        freed = _keys([(k.removeprefix("freed: "), area) for k, area in memory.areas.items() if "freed" in k])
        self.kinds = f"{used} <br>freed: {freed}"
        self.budget = _keys([("budget: pages_to_scan", self.batches.budgets[0])])
        self.what = _keys([("really freed", self.counters.freed[0]), ("KSM’s counters show", self.counters.shown[0])])

    def compare(self, runs: Mapping[str, Run], whole: bool = False) -> Comparison:
        """All that is shown of two runs.

        Parameters
        ----------
        whole : bool
            The time axes end with the runs, not shortly after the last change.
        """
        both = list(runs.values())
        end = max(float(run.rows["time_ns"][-1]) / 1e9 for run in both) if whole else panels.until(both)
        code = both[0].scenario.as_python([run.variant for run in both])
        return Comparison(
            dict(runs),
            end,
            self.draw(runs, end),
            self.heads(runs),
            summary(runs),
            metrics_table(runs),
            code,
            last_frame(runs),
        )

    def draw(self, runs: Mapping[str, Run], end: float) -> dict[str, bytes]:
        """PNGs of the panels, with time axes until `end`, s."""
        top = max(map(total_mib, runs.values()))
        pictures = {f"memory {i}": self.memory[i].draw(run, end, top) for i, run in enumerate(runs.values())}
        pictures |= {"batches": self.batches.draw(runs, end), "counters": self.counters.draw(runs, end)}
        return pictures | {"cpu": self.cpu.draw(runs, end)}

    def heads(self, runs: Mapping[str, Run]) -> dict[str, str]:
        """As in :class:`Comparison`."""
        both = "".join(f'<span class="mmlab-key">{s} {escape(v)}</span>' for s, v in zip(SIGNS, runs, strict=True))
        texts = {}
        for i, (label, run) in enumerate(runs.items()):
            m, mib = run.metrics, run.rows["frames"] * plots.MIB_PER_PAGE
            texts[f"memory {i}"] = _head(
                f"{SIGNS[i]} Memory over time: {escape(label)}",
                self.kinds,
                f"{mib[0]:,.0f} MiB are allocated at the start, {mib[-1]:,.0f} at the end, when {m.thps_left:,} THPs "
                "are left.",
                "mmlab-three",
            )
            texts[f"map {i}"] = _head(f"{SIGNS[i]} Page map: {escape(label)}", "a row a 2 MiB block, a dot a page", "")
        said = {
            "batches": "at most {m.most_freed_by_batch:,} pages, {m.most_freed_per_budget:.3g} times the budget",
            "counters": "{m.freed_mib:,.0f} MiB freed, {m.freed_unseen_pages:,} pages of it in no counter",
            "cpu": "{m.ksmd_cpu_percent:.1f} % of one CPU in all",
        }
        words = {k: "; ".join(f"{v}: {s.format(m=r.metrics)}" for v, r in runs.items()) for k, s in said.items()}
        texts["batches"] = _head("Pages freed by each batch", both + self.budget, words["batches"])
        texts["counters"] = _head("KSM’s counters and what was really freed", both + self.what, words["counters"])
        texts["cpu"] = _head("CPU time of ksmd", both, words["cpu"])
        return texts


def _keys(parts: Sequence[tuple[str, Any]]) -> str:
    """A legend."""
    return "".join(f'<span class="mmlab-key">{panels.swatch(part)}{escape(name)}</span>' for name, part in parts)


def _head(title: str, legend: str, alternative: str, more: str = "") -> str:
    unseen = f'<span class="mmlab-unseen">{escape(alternative)}</span>'
    return f'<div class="mmlab-head {more}"><b>{title}</b>{legend}{unseen}</div>'


# --- the page map through time --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The page maps of both runs at one time."""

    time_s: float
    labels: tuple[str, ...]
    batches: tuple[int, ...]
    """The last batch until then, of each run."""
    pictures: tuple[bytes, ...]
    pages: tuple[dict[str, int], ...]
    """Pages of each letter, of each run."""

    @classmethod
    def of(
        cls, time_s: float, runs: Mapping[str, Run], batches: Iterable[int], maps: Sequence[Sequence[np.ndarray]]
    ) -> Frame:
        """From the letters of each process of each run."""
        counts = [np.bincount(np.concatenate(letters), minlength=128) for letters in maps]
        size = next(iter(runs.values())).scenario.pages_per_thp
        return cls(
            time_s,
            tuple(runs),
            tuple(batches),
            tuple(panels.page_map(letters, size) for letters in maps),
            tuple({letter: int(c[ord(letter)]) for letter in plots.LETTERS} for c in counts),
        )

    def caption(self) -> str:
        """When it is, after which batch, and how many pages of each kind there are, HTML."""
        rows = [("after batch", self.batches)]
        for letter, (kind, colour) in plots.LETTERS.items():
            chip = f'<span class="mmlab-chip" style="background:{colour}" aria-hidden="true"></span>'
            rows.append((f"{chip} {kind}", tuple(pages[letter] for pages in self.pages)))
        return (
            f"<table><caption>Pages after {self.time_s:,.3f} s</caption>{_thead('pages', self.labels)}<tbody>"
            + "".join(_row(head, [f"<td>{n:,}</td>" for n in numbers], any(numbers)) for head, numbers in rows)
            + "</tbody></table>"
        )


def moments(runs: Sequence[Run], end: float) -> np.ndarray:
    """Simulated times, s, whose page maps tell the story: as many where much happens as are spread over the time."""
    grid = np.unique(np.concatenate([run.rows["time_ns"] for run in runs])) / 1e9
    grid = grid[grid <= end]
    done = len(runs) * grid / max(end, 1e-9)
    for run in runs:
        changes = sum(np.abs(np.diff(run.rows[name], prepend=run.rows[name][:1])) * n for name, n in MAPPED.items())
        happened = np.cumsum(changes) / max(1, np.sum(changes))
        done += happened[np.searchsorted(run.rows["time_ns"] / 1e9, grid, side="right") - 1]
    count = min(MOMENTS, max(2, MAP_BYTES // max(run.scenario.total_pages for run in runs)))
    return np.unique(grid[np.minimum(np.searchsorted(done, np.linspace(0, done[-1], count)), len(grid) - 1)])


def places(run: Run, at: np.ndarray) -> list[tuple[int, int]]:
    """The (batch, rank) of the last sample until each of these times, s."""
    rows = run.rows[np.searchsorted(run.rows["time_ns"] / 1e9, at, side="right") - 1]
    return list(zip(rows["batch"].tolist(), rows["rank"].tolist(), strict=True))


def last_frame(runs: Mapping[str, Run]) -> Frame:
    """The page maps at the end."""
    batches = [int(run.rows["batch"][-1]) for run in runs.values()]
    maps = [[run.page_map(i) for i in range(run.processes)] for run in runs.values()]
    return Frame.of(max(float(run.rows["time_ns"][-1]) for run in runs.values()) / 1e9, runs, batches, maps)


def frames(runs: Mapping[str, Run], end: float, again: Callable[[Run, set[tuple[int, int]]], Run]) -> list[Frame]:
    """The page maps of two runs at the same :func:`moments`, and at the end.

    Parameters
    ----------
    end : float
        No moment is later, s.
    again : callable
        Simulates a run once more and keeps page maps after these (batch, rank).
    """
    at = moments(list(runs.values()), end)
    where = [places(run, at) for run in runs.values()]
    with ThreadPoolExecutor(len(runs)) as pool:
        maps = [run.maps for run in pool.map(again, runs.values(), map(set, where))]
    found = [
        Frame.of(t, runs, [batch for batch, _ in w], [m[place] for m, place in zip(maps, w, strict=True)])
        for t, *w in zip(at.tolist(), *where, strict=True)
    ]
    return [*found, last_frame(runs)]
