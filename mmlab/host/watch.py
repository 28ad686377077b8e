"""Watch the running kernel: counters of KSM and THPs, in the terminal, in a notebook, and in a file.

A sample is one mapping: ``time_ns`` (since 1970), every file of /sys/kernel/mm/ksm by its name, lines of /proc/vmstat
and /proc/meminfo (kB), the CPU time of ksmd and khugepaged, and the zeropage entries of processes that have mergeable
memory. Of these, ksmd has placed `zeropages_by_ksm`; the others come from read faults, and from splits of huge pages
(thp-split 3.4): no counter of KSM has them. What cannot be read is left out.

Samples that are kept are appended to a journal beside the file, a line each, which becomes Parquet when the watcher
ends. After SIGKILL the next reader finds both.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from mmlab.errors import UserError
from mmlab.host.pagemap import PAGE, ZEROPAGE, ksm_stat, mapped, mergeable, open_pagemap, proc, processes, scan
from mmlab.host.runner import KSM, RefusedError, get, thread
from mmlab.params import check_folder, read_yaml, reading, write_atomically, writing
from mmlab.results.table import number

if TYPE_CHECKING:
    import ipywidgets
    import pyarrow as pa
    from rich.table import Table


Sample = dict[str, Any]
BESIDE = re.compile(r"(?m)^(thp_\w+|cow_ksm|ksm_swpin_copy|Mem\w+|AnonPages|AnonHugePages):?\s+(\d+)")
"""Lines of /proc/vmstat and /proc/meminfo."""
BARS = "▁▂▃▄▅▆▇█"
SHOWN = 40
"""Samples in a sparkline."""
SHARE = 500
"""Page tables are looked at again after this multiple of the time that it took: a fifth of a percent of a CPU."""
KNOBS = ("run", "pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan", "advisor_mode")
"""Shown below the table."""
FOLDED = 3600
"""Samples in a journal before they move to the Parquet file."""


ROWS: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_suffix(".yaml"))
"""What a table shows: its rows by their names."""


class Sampler:
    """Takes samples: ``sampler()`` returns one.

    Raises
    ------
    UserError
        The kernel has no KSM.
    """

    def __init__(self) -> None:
        if not (KSM / "run").exists():
            raise UserError("there is no KSM in this kernel", parameter=str(KSM), hint="It needs CONFIG_KSM.")
        self._look()

    def __call__(self) -> Sample:
        if time.monotonic() >= self._next_look:
            self._look()
        out: Sample = {"time_ns": time.time_ns()} | {path.name: get(path) for path in KSM.iterdir()}
        out |= {name: int(text) for name, text in out.items() if re.fullmatch(r"-?\d+", str(text))}
        out |= {key: int(value) for key, value in BESIDE.findall(proc("vmstat") + proc("meminfo"))}
        for name, folder in self._threads.items():
            if told := proc(folder.name, "schedstat").split():
                out[f"{name}_cpu_ns"] = int(told[0])
        return out | self._zeropages

    def _look(self) -> None:
        """Look at all processes, which takes longer than all the rest."""
        start, self._threads, self._zeropages = time.thread_time(), dict[str, Path](), Sample()
        self.missing = list[str]()
        """What cannot be read here, and why."""
        for name in ("ksmd", "khugepaged"):  # khugepaged is another thread after a pause
            try:
                self._threads[name] = thread(name)
            except RefusedError as error:
                self.missing.append(f"CPU of {name}: {error}")
        try:
            self._zeropages = _count_zeropages()
        except (PermissionError, UserError) as error:
            why = "needs root" if isinstance(error, PermissionError) else str(error)
            self.missing.append(f"zeropage outside KSM's counters: {why}")
        self._next_look = time.monotonic() + SHARE * (time.thread_time() - start)


def _count_zeropages() -> Sample:
    """Return the zeropage entries of processes with mergeable memory, and how many of them ksmd has placed."""
    entries = placed = 0
    for pid in filter(mergeable, processes()):
        with suppress(FileNotFoundError, ProcessLookupError), open_pagemap(pid) as file:
            placed += ksm_stat(pid).get("ksm_zero_pages", 0)
            at, end = mapped(pid)
            while at < end and len(found := scan(file.fileno(), at, end, ZEROPAGE)):
                entries, at = entries + int((found[:, 1] - found[:, 0]).sum()) // PAGE, int(found[-1, 1])
    return {"zeropage_entries": entries, "zeropages_by_ksm": placed}


# --- what is shown --------------------------------------------------------------------------------------------------


def values(history: Sequence[Sample], row: Mapping[str, Any]) -> list[float]:
    """Return what a row (of `ROWS`) shows of each sample; NaN where it cannot be read, and for a rate in the first one.

    >>> values([{"time_ns": 0, "pages_scanned": 5}, {"time_ns": 500_000_000, "pages_scanned": 105}],
    ...        {"counter": ["pages_scanned"], "rate": True})
    [nan, 200.0]
    """
    signs = {name.removeprefix("-"): -1 if name.startswith("-") else 1 for name in row["counter"]}
    sums = [sum(sign * s.get(name, math.nan) for name, sign in signs.items()) / row.get("scale", 1) for s in history]
    if not row.get("rate"):
        return sums
    change = np.diff(sums) / np.diff([s["time_ns"] / 1e9 for s in history])
    return [math.nan, *np.where(change < 0, math.nan, change).tolist()]  # below 0: another thread of this name


def _cells(history: Sequence[Sample], row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the last value of a row, its change a second over the samples shown, and the sparkline."""
    shown, seconds = values(history, row), (history[-1]["time_ns"] - history[0]["time_ns"]) / 1e9
    change = math.nan if row.get("rate") or not seconds else (shown[-1] - shown[0]) / seconds
    text = number(shown[-1], row.get("digits", 0))
    return text, "" if change != change else f"{change:+,.1f}", bars(shown, row.get("rate", False))


def bars(shown: Sequence[float], rate: bool = False) -> str:
    """Return a sparkline: a character a value, from the least value (of a rate: from 0) to the largest.

    >>> bars([3, 4, math.nan, 10]), bars([3, 4, 10], rate=True)
    ('▁▂ █', '▃▃█')
    """
    known = [value for value in shown if value == value] + [0.0] * rate
    low, high = min(known, default=0), max(known, default=0)
    steps = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(" " if value != value else BARS[int((value - low) * steps)] for value in shown)


def table(history: Sequence[Sample], missing: Sequence[str]) -> Table:
    """Return the counters as a table of rich: the last value, its change a second, and a sparkline."""
    from rich.table import Column, Table

    knobs = " ".join(f"{name}={history[-1][name]}" for name in KNOBS if name in history[-1])
    caption = "\n".join((knobs, *(f"not shown: {each}" for each in missing)))
    columns = [Column("running kernel"), Column("now", justify="right"), Column("a second", justify="right")]
    columns.append(Column(f"last {len(history)} samples", no_wrap=True, min_width=SHOWN))
    out = Table(*columns, box=None, caption=caption, caption_justify="left", caption_style="")
    for name, row in ROWS.items():
        out.add_row(name, *_cells(history, row))
    return out


def line(history: Sequence[Sample]) -> str:
    """Return the last sample as a line of text."""
    cells = (f"{row['line']} {_cells(history, row)[0]}" for row in ROWS.values() if "line" in row)
    return "  ".join((f"{_time(history[-1]):%H:%M:%S}", *cells))


def _time(sample: Sample) -> datetime:
    return datetime.fromtimestamp(sample["time_ns"] // 10**9)


async def _follow(
    sampler: Sampler, draw: Callable[[Sequence[Sample]], object], every: float, seconds: float | None, out: Path | None
) -> None:
    """Take samples, keep them in a file if there is one (`keeping`), and draw the last `SHOWN`."""
    start, history = time.monotonic(), deque[Sample](maxlen=SHOWN)
    with keeping(out) if out else nullcontext(lambda _: None) as add:
        for tick in count():
            if seconds is not None and tick * every > seconds:
                return
            await asyncio.sleep(start + tick * every - time.monotonic())
            history.append(sampler())
            add(history[-1])
            draw(history)


def show(every: float = 1.0, seconds: float | None = None, out: Path | None = None) -> None:
    """Show the counters until the time is over, or until Ctrl-C: a live table, or lines where stdout is no terminal.

    Parameters
    ----------
    every
        Seconds between samples.
    seconds
        How long; None: until interrupted.
    out
        Keep the samples in this Parquet file (`keeping`).

    Raises
    ------
    UserError
        The kernel has no KSM; the file cannot be written, is another kind of file, or is being written already.
    """
    from rich.live import Live

    sampler = Sampler()
    with suppress(KeyboardInterrupt):
        if sys.stdout.isatty():
            with Live(auto_refresh=False) as live:
                draw = lambda history: live.update(table(history, sampler.missing), refresh=True)  # noqa: E731
                asyncio.run(_follow(sampler, draw, every, seconds, out))
        else:
            print(*(f"not shown: {each}\n" for each in sampler.missing), sep="", end="")
            asyncio.run(_follow(sampler, lambda history: print(line(history), flush=True), every, seconds, out))


def watch(every: float = 1.0, seconds: float | None = None, out: str | Path | None = None) -> ipywidgets.HTML:
    """Return a widget with the live table of `show`, for a notebook; ``close()`` ends it.

    Parameters are those of `show`.

    Raises
    ------
    UserError
        As `show`; or there is no event loop, because this is no notebook.
    """
    import ipywidgets
    from rich.console import Console

    sampler, widget = Sampler(), ipywidgets.HTML()
    console = Console(file=io.StringIO(), record=True, width=110)

    def draw(history: Sequence[Sample]) -> None:
        console.print(table(history, sampler.missing))
        widget.value = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UserError("mmlab.watch() is for notebooks", hint="In a terminal: `mmlab watch`.") from None
    widget.task = loop.create_task(_follow(sampler, draw, every, seconds, Path(out) if out else None))
    widget.observe(lambda _: widget.task.cancel(), "comm")
    return widget


# --- files ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> pa.Table:
    """Return the samples in a file and in its journal, a row each, in order.

    Raises
    ------
    UserError
        The file cannot be read, or is none of `mmlab watch`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json
    import pyarrow.parquet as pq

    with reading(path):
        try:
            parts = [pq.read_table(path)] if path.exists() else []
            if _journal(path).exists() and (whole := _journal(path).read_bytes().rpartition(b"\n")[0]):  # one is torn
                added = pyarrow.json.read_json(io.BytesIO(whole))
                parts.append(added.filter(pc.greater(added["time_ns"], parts[0]["time_ns"][-1])) if parts else added)
            return pa.concat_tables(parts, promote_options="permissive")
        except (KeyError, IndexError, pa.ArrowException) as error:
            problem = "is no Parquet file of `mmlab watch`" if path.exists() else "there is no such file"
            raise UserError(problem) from error


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


@contextmanager
def keeping(path: Path) -> Iterator[Callable[[Sample], None]]:
    """Yield a function that adds a sample to a Parquet file; samples of earlier watchers stay.

    Each sample is in the journal when the function returns, so that SIGKILL loses none of them.

    Raises
    ------
    UserError
        The file cannot be written, is another kind of file, or another watcher writes it.
    """
    check_folder(path)
    if path.exists():
        read(path)  # refuses another kind of file
    with writing(path):
        file = _journal(path).open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another `mmlab watch` writes this file", parameter="-o", value=str(path)) from None
        _fold(path, file)
        added = count(1)

        def add(sample: Sample) -> None:
            with writing(path):
                file.write(json.dumps(sample) + "\n")
                file.flush()
            if not next(added) % FOLDED:
                _fold(path, file)

        try:
            yield add
        finally:
            _fold(path, file)
            _journal(path).unlink()


def _fold(path: Path, journal: TextIO) -> None:
    """Move the samples of the journal into the Parquet file."""
    import pyarrow.parquet as pq

    if journal.seek(0, os.SEEK_END):
        content = io.BytesIO()
        pq.write_table(read(path), content, compression="zstd")
        with writing(path):
            write_atomically(path, content.getvalue(), to_stay=True)
            journal.truncate(0)


def ends(path: Path) -> list[tuple[datetime, Sample]]:
    """Return the first and the last sample in a file (`read`), with their times."""
    found = read(path)
    chosen = found.take(sorted({0, len(found) - 1})).to_pylist()
    return [(_time(one), {name: value for name, value in one.items() if value is not None}) for one in chosen]
